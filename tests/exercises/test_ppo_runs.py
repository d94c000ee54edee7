"""The trainings of Build it 7.10: what the learner's function is given, what `act` is asked, where the pole's verdict turns."""

import numpy as np
import pytest
import torch

from rlhf_lib.exercises import ppo_runs as runs
from rlhf_lib.exercises.probe_envs import Constant, Task, Watched


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

    task = Task(lambda: Constant([[0.0, 1.0]], 3), 100)
    act = runs.train(train_ppo, task, 100, 7)
    one, other, steps, seed = taken[0]
    assert isinstance(one, Watched) and one is not other and one.env is not other.env and (steps, seed) == (100, 7)
    seen = task.seen()
    assert (seen["made"], seen["steps"], seen["actions"], task.log.budget) == (2, 1, [1], 100) and act(None) == 2


@pytest.mark.parametrize("found", [None, 3, "act"])
def test_a_training_that_gives_no_function_is_told_so(found):
    with pytest.raises(TypeError, match=rf"returns {type(found).__name__}, not a function act"):
        runs.train(lambda *_: found, Task(lambda: Constant([[0.0]], 3), 100), 100, 0)


def test_act_is_asked_with_vectors_of_float32():
    seen = []
    assert runs.choices(lambda x: seen.append(x) or np.int64(len(seen)), [[0.5, 1.0], [2.0, 3.0]]) == [1, 2]
    assert all(isinstance(x, np.ndarray) and x.dtype == np.float32 for x in seen) and seen[1].tolist() == [2.0, 3.0]


def test_an_exam_is_twenty_episodes_that_last_as_long_as_the_pole_stands():
    falls, stands = runs.exams([1, 2], 10)
    assert 7 < runs.played(lambda observation: 1, falls) < 12  # always to one side
    assert runs.played(balance, stands) == 500 and stands.seen() == {"lengths": [500] * 20}
    assert sum(falls.seen()["lengths"]) / 20 == runs.played(lambda observation: 1, runs.exams([1], 10)[0])


def test_the_pole_is_learnt_three_times_and_the_first_that_falls_ends_it():
    budgets = []

    def train_ppo(make_env, steps, seed):
        budgets.append((steps, seed))
        return balance if seed != 5 else lambda observation: 0

    def run(seeds):
        tasks = runs.exams(seeds, 10)
        return {"made": runs.run_pole(train_ppo, tasks, seeds, budget=50), "seen": [task.seen() for task in tasks]}

    assert runs.judge_pole(run([1, 2, 3]), [1, 2, 3], 10, 50) == "" and budgets == [(50, 1), (50, 2), (50, 3)]
    found = run([1, 5, 3])
    assert len(found["made"]) == 2 and found["seen"][2]["lengths"] == []
    assert "after training 2 of 3 the pole stands for 10 steps" in runs.judge_pole(found, [1, 5, 3], 10, 50)


def stands(*means, steps=80_000):
    """What comes of a run whose exams end with these means."""
    return {
        "made": [steps] * len(means),
        "seen": [{"lengths": [mean] * 20} for mean in means] + [{"lengths": []}] * (3 - len(means)),
    }


@pytest.mark.parametrize("output, word", [
    (stands(475, 500, 500), ""),
    (stands(474.9), "after training 1 of 3 the pole stands for 475 steps of 500 on average: it learns, and does not get there"),
    (stands(500, 60), "after training 2 of 3 the pole stands for 60 steps of 500 on average: that is hardly better"),
    (stands(500, 61), "it learns, and does not get there"),
    (stands(500, 500), "a training is missing"),
    ({**stands(500, 500), "made": [80_000] * 3}, "a training is missing"),
    ({**stands(500, 500, 500), "made": []}, "a training is missing"),
    (stands(500, steps=80_001), "training 1 took 80001 steps, and the budget is 80000"),
])  # fmt: skip
def test_the_pole_is_judged_by_steps_and_length(output, word):
    found = runs.judge_pole(output, seeds=[1, 2, 3], fresh=0)
    assert word in found and bool(found) == bool(word)


def test_the_drawn_seeds_are_three_and_the_fresh_ones_are_no_training_s():
    given = [runs.draw_pole(torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert all(len(one["seeds"]) == 3 and max(one["seeds"]) < 100_000 <= one["fresh"] for one in given)
    assert len({tuple(one["seeds"]) for one in given}) == 20
