"""The trainings of Build it 7.10: what the learner's function is given, what `act` is asked, where the pole's verdict turns."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from rlhf_lib.exercises import ppo_runs as runs
from rlhf_lib.exercises.probe_envs import Constant, Watched


def balance(observation):
    """Pushes the cart under the pole."""
    place, speed, angle, turning = observation
    return int(angle + 0.5 * turning + 0.05 * place + 0.1 * speed > 0)


def test_a_training_gets_watched_environments_its_budget_and_its_seed():
    taken = []

    def train_ppo(make_env, steps, seed):
        taken.append((make_env(), make_env(), steps, seed))
        taken[0][0].reset(seed=seed)
        taken[0][0].step(1)
        return lambda observation: 2

    act, log = runs.train(train_ppo, lambda: Constant([[0.0, 1.0]], 3), 100, 7)
    one, other, steps, seed = taken[0]
    assert isinstance(one, Watched) and one is not other and one.env is not other.env and (steps, seed) == (100, 7)
    assert (log.made, log.steps, log.actions, log.budget) == (2, 1, [1], 100) and act(None) == 2


@pytest.mark.parametrize("found", [None, 3, "act"])
def test_a_training_that_gives_no_function_is_told_so(found):
    with pytest.raises(TypeError, match=rf"returns {type(found).__name__}, not a function act"):
        runs.train(lambda *_: found, lambda: Constant([[0.0]], 3), 100, 0)


def test_act_is_asked_with_vectors_of_float32():
    seen = []
    assert runs.choices(lambda x: seen.append(x) or np.int64(len(seen)), [[0.5, 1.0], [2.0, 3.0]]) == [1, 2]
    assert all(isinstance(x, np.ndarray) and x.dtype == np.float32 for x in seen) and seen[1].tolist() == [2.0, 3.0]


def test_an_episode_of_the_pole_lasts_as_long_as_it_stands():
    (pushed,) = runs.lengths_of(lambda observation: 1, lambda: gym.make("CartPole-v1"), [3])
    assert 7 < pushed < 12  # always to one side
    assert runs.lengths_of(balance, lambda: gym.make("CartPole-v1"), [1, 2]) == [500, 500]


def test_the_pole_is_learnt_three_times_and_the_first_that_falls_ends_it():
    budgets = []

    def train_ppo(make_env, steps, seed):
        budgets.append((steps, seed))
        return balance if seed != 5 else lambda observation: 0

    assert [one["length"] for one in runs.run_pole(train_ppo, [1, 2, 3], 10, budget=50)] == [500, 500, 500]
    assert budgets == [(50, 1), (50, 2), (50, 3)]
    short = runs.run_pole(train_ppo, [1, 5, 3], 10, budget=50)
    assert len(short) == 2 and short[1]["length"] < 15


def stands(*lengths, steps=80_000):
    return [{"steps": steps, "length": length} for length in lengths]


@pytest.mark.parametrize("output, word", [
    (stands(475.0, 500.0, 500.0), ""),
    (stands(474.9), "after training 1 of 3 the pole stands for 475 steps of 500 on average: it learns, and does not get there"),
    (stands(500.0, 60.0), "after training 2 of 3 the pole stands for 60 steps of 500 on average: that is hardly better"),
    (stands(500.0, 61.0), "it learns, and does not get there"),
    (stands(500.0, 500.0), "a training is missing"),
    (stands(500.0, steps=80_001), "training 1 took 80001 steps, and the budget is 80000"),
])  # fmt: skip
def test_the_pole_is_judged_by_steps_and_length(output, word):
    found = runs.judge_pole(output, seeds=[1, 2, 3], fresh=0)
    assert word in found and bool(found) == bool(word)


def test_the_drawn_seeds_are_three_and_the_fresh_ones_are_no_training_s():
    given = [runs.draw_pole(torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert all(len(one["seeds"]) == 3 and max(one["seeds"]) < 100_000 <= one["fresh"] for one in given)
    assert len({tuple(one["seeds"]) for one in given}) == 20
