"""What Build it 7.10 trains: `train_ppo` in environments that are watched, and at last with a pole on a cart."""

import gymnasium as gym
import numpy as np
import torch

from rlhf_lib.exercises import probe_envs as envs
from rlhf_lib.exercises.build import tick

POLE_STEPS, POLE_LENGTH = 80_000, 475


def train(train_ppo, make, budget, seed, told=None):
    """(act, log) of a training in environments that `make()` gives."""
    log = envs.Log(budget, told)
    act = train_ppo(lambda: envs.Watched(make(), log), budget, seed)
    if not callable(act):
        raise TypeError(f"train_ppo returns {type(act).__name__}, not a function act(observation)")
    return act, log


def choices(act, views):
    """What `act` does at each view."""
    return [int(act(np.array(view, dtype=np.float32))) for view in views]


# ----------------------------------------------------------------------------------------- the pole


def draw_pole(generator):
    return {
        "seeds": torch.randint(100_000, (3,), generator=generator).tolist(),
        "fresh": int(torch.randint(1_000_000, 2_000_000, (), generator=generator)),
    }


def lengths_of(act, make, seeds):
    """How long an episode of `act` lasts from each seed."""
    env, lengths = make(), []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        length, going = 0, True
        while going:
            observation, _, terminated, truncated, _ = env.step(int(act(observation)))
            length, going = length + 1, not (terminated or truncated)
        lengths.append(length)
    return lengths


def run_pole(train_ppo, seeds, fresh, budget=POLE_STEPS):
    found = []
    for place, seed in enumerate(seeds):

        def told(log, place=place):
            last = [length for _, length in log.lengths[-20:]]
            note = f"seed {place + 1} of {len(seeds)}, an episode lasts {sum(last) / max(len(last), 1):.0f} steps"
            tick((place + log.steps / log.budget) / len(seeds), note)

        act, log = train(train_ppo, lambda: gym.make("CartPole-v1"), budget, seed, told)
        lengths = lengths_of(act, lambda: gym.make("CartPole-v1"), range(fresh, fresh + 20))
        found.append({"steps": log.steps, "length": sum(lengths) / len(lengths)})
        if found[-1]["length"] < POLE_LENGTH or log.steps > budget:
            break
    return found


LITTLE = (
    "that is hardly better than without training, though the tiny environments are learnt: look at the settings, above all the "
    "learning rate, the number of optimiser steps for each rollout, and the discount"
)
ALMOST = (
    "it learns, and does not get there: is the learning rate too low, or still high at the end? Are there too few rollouts, or "
    "too few optimiser steps for each? Does time out count as falling?"
)


def judge_pole(output, seeds, fresh, budget=POLE_STEPS):
    for place, one in enumerate(output, 1):
        if one["steps"] > budget:
            return f"training {place} took {one['steps']} steps, and the budget is {budget}, those of all environments together"
        if one["length"] < POLE_LENGTH:
            means = ALMOST if one["length"] > 60 else LITTLE
            return (
                f"after training {place} of {len(seeds)} the pole stands for {one['length']:.0f} steps of 500 on average: {means}"
            )
    return "" if len(output) == len(seeds) else "a training is missing"
