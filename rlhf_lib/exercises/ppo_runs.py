"""What Build it 7.10 trains: `train_ppo` in environments that are watched, and at last with a pole on a cart."""

import gymnasium as gym
import numpy as np
import torch

from rlhf_lib.exercises import probe_envs as envs
from rlhf_lib.exercises.build import tick

POLE_STEPS, POLE_LENGTH, EPISODES = 80_000, 475, 20


def train(train_ppo, task, budget, seed):
    """`act` of a training in the environments of a Task."""
    act = train_ppo(task, budget, seed)
    if not callable(act):
        raise TypeError(f"train_ppo returns {type(act).__name__}, not a function act(observation)")
    return act


def choices(act, views):
    """What `act` does at each view."""
    return [int(act(np.array(view, dtype=np.float32))) for view in views]


# ----------------------------------------------------------------------------------------- the pole


def draw_pole(generator):
    return {
        "seeds": torch.randint(100_000, (3,), generator=generator).tolist(),
        "fresh": int(torch.randint(1_000_000, 2_000_000, (), generator=generator)),
    }


def pole():
    return gym.make("CartPole-v1")


def exams(seeds, fresh, budget=POLE_STEPS):
    """For each training EPISODES of the pole, which begin as no training did."""
    return [envs.Exam(pole, range(fresh, fresh + EPISODES)) for _ in seeds]


def played(act, exam):
    """The mean length of the episodes of an Exam."""
    now, total = exam.begin(), 0
    while any(now):
        total += sum(one is not None for one in now)
        now = exam.step([0 if one is None else choices(act, [one])[0] for one in now])
    return total / EPISODES


def run_pole(train_ppo, tasks, seeds, budget=POLE_STEPS):
    """How many steps each training took. What `act` is worth afterwards is seen in the exams."""
    steps = []
    for place, seed in enumerate(seeds):

        def told(log, place=place):
            last = [length for _, length in log.lengths[-20:]]
            note = f"seed {place + 1} of {len(seeds)}, an episode lasts {sum(last) / max(len(last), 1):.0f} steps"
            tick((place + log.steps / log.budget) / len(seeds), note)

        task = envs.Task(pole, budget, told)
        act = train(train_ppo, task, budget, seed)
        steps.append(task.log.steps)
        if played(act, tasks[place]) < POLE_LENGTH or task.log.steps > budget:
            break
    return steps


LITTLE = (
    "that is hardly better than without training, though the tiny environments are learnt: look at the settings, above all the "
    "learning rate, the number of optimiser steps for each rollout, and the discount"
)
ALMOST = (
    "it learns, and does not get there: is the learning rate too low, or still high at the end? Are there too few rollouts, or "
    "too few optimiser steps for each? Does time out count as falling?"
)


def judge_pole(output, seeds, fresh, budget=POLE_STEPS):
    for place, (exam, steps) in enumerate(zip(output["seen"], output["made"]), 1):
        if steps > budget:
            return f"training {place} took {steps} steps, and the budget is {budget}, those of all environments together"
        if not exam["lengths"]:
            break
        length = sum(exam["lengths"]) / EPISODES
        if length < POLE_LENGTH:
            means = ALMOST if length > 60 else LITTLE
            return f"after training {place} of {len(seeds)} the pole stands for {length:.0f} steps of 500 on average: {means}"
    done = len(output["made"]) == len(seeds) and all(exam["lengths"] for exam in output["seen"])
    return "" if done else "a training is missing"
