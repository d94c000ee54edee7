"""The probe environments: what each pays, how it ends, and what is noted of it."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rlhf_lib.exercises.probe_envs import (
    TERMINATED,
    TRUNCATED,
    Border,
    BorderAtTime,
    Constant,
    Delayed,
    Heirs,
    Log,
    Matching,
    Paying,
    Pointing,
    Watched,
)  # fmt: skip


def views(states):
    return np.eye(states, states + 1).tolist()


ALL = {
    "Constant": Constant(views(1), 3),
    "Paying": Paying(views(1), [1.0, 0.0, 0.5]),
    "Matching": Matching(views(4), [2, 0, 1, 0], 3),
    "Matching without end": Matching(views(4), [2, 0, 1, 0], 3, endless=True),
    "Delayed": Delayed(views(8), [0, 1], [1, 0], 3),
    "Border, terminated": Border(views(4), [0, 1], [1, 0], 3, TERMINATED),
    "Border, truncated": Border(views(4), [0, 1], [1, 0], 3, TRUNCATED),
    "Border at time": BorderAtTime(views(4), [0, 1], [1, 0], 3),
    "Heirs": Heirs(views(7), [0, 1], [1, 0], 3),
    "Heirs, truncated": Heirs(views(7), [0, 1], [1, 0], 3, TRUNCATED),
    "Pointing": Pointing([1.0, 0.0, 0.0]),
}


def start_in(env, state):
    """Reset until the episode begins in that state."""
    env.reset(seed=0)
    while env.state != state:
        env.reset()


@pytest.mark.parametrize("name", [name for name in ALL if "truncated" not in name])  # one step of that is too few for the checker
@pytest.mark.filterwarnings("ignore")
def test_each_is_an_environment_as_gymnasium_wants_it(name):
    check_env(ALL[name], skip_render_check=True)


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_gives_the_same_episodes(name):
    def episodes(seed):
        env, seen = ALL[name], []
        observation, _ = env.reset(seed=seed)
        for step in range(40):
            seen.append(observation.tolist())
            observation, _, terminated, truncated, _ = env.step(step % env.action_space.n)
            if terminated or truncated:
                observation, _ = env.reset()
        return seen

    assert episodes(3) == episodes(3)
    if len(ALL[name].views) > 1 or name == "Pointing":
        assert episodes(3) != episodes(4)


def test_paying_and_matching_pay_by_action_and_state():
    assert [ALL["Paying"].step(action)[1:3] for action in range(3)] == [(1.0, True), (0.0, True), (0.5, True)]
    for state, best in enumerate([2, 0, 1, 0]):
        for action in range(3):
            start_in(ALL["Matching"], state)
            assert ALL["Matching"].step(action)[1:4] == (float(action == best), True, False)
            start_in(ALL["Matching without end"], state)
            assert ALL["Matching without end"].step(action)[1:4] == (pytest.approx(0.1 * (action == best)), False, False)


@pytest.mark.parametrize("state, action, rewards", [
    (0, 0, [0, 0, 0, 1]), (0, 1, [0.3, 0, 0, 0]), (0, 2, [0, 0, 0, 0]), (1, 1, [0, 0, 0, 1]), (1, 0, [0.3, 0, 0, 0]),
])  # fmt: skip
def test_the_delayed_reward_comes_three_steps_later(state, action, rewards):
    env = ALL["Delayed"]
    start_in(env, state)
    steps = [env.step(action)] + [env.step(2) for _ in range(3)]
    assert [step[1] for step in steps] == rewards
    assert [step[2] for step in steps] == [False, False, False, True]


@pytest.mark.parametrize("end", [TERMINATED, TRUNCATED])
def test_the_border_is_crossed_into_a_state_that_is_worth_something(end):
    env = ALL[f"Border, {end}"]
    for state, action, reward, follows in ((0, 0, 0.3, 3), (0, 1, 0, 2), (0, 2, 0, 3), (1, 1, 0.3, 3), (1, 0, 0, 2)):
        start_in(env, state)
        observation, got, terminated, truncated, _ = env.step(action)
        assert (got, terminated, truncated) == (reward, end == TERMINATED, end == TRUNCATED)
        assert observation.tolist() == views(4)[follows]
    for state, worth in ((2, 1), (3, 0)):
        start_in(env, state)
        assert env.step(0)[1:4] == (worth, True, False)


def test_the_clock_may_run_out_in_the_step_that_ends_the_episode():
    env = ALL["Border at time"]
    for state in range(4):
        start_in(env, state)
        assert env.step(0)[2:4] == (True, state == 1)


def test_heirs_inherit_and_half_of_them_can_be_told():
    env, kinds, rich = ALL["Heirs"], [], False
    env.rich = True
    env.reset(seed=1)
    for step in range(400):
        start, kind = env.state % 2, env.state // 2
        kinds.append(kind)
        assert kind in (0, 1 + rich)
        action = step % 3
        assert env.step(action)[1] == pytest.approx((1 if rich else -1) + 0.3 * (action == [0, 1][start]))
        rich = action == [1, 0][start]
        env.reset()
    assert 160 < kinds.count(0) < 240 and kinds.count(1) > 80 and kinds.count(2) > 40


def test_the_log_has_what_all_environments_saw_together():
    log, told = Log(100, told=lambda log: told.append(log.steps)), []
    first, second = (Watched(gym.make("CartPole-v1"), log) for _ in range(2))
    starts = [tuple(map(float, env.reset(seed=seed)[0])) for seed, env in enumerate((first, second))]
    assert (log.made, log.starts) == (2, [[starts[0]], [starts[1]]])
    second.step(1)
    while not any(first.step(0)[2:4]):
        pass
    assert log.episodes == 1 and log.lengths == [(log.steps, log.steps - 1)]
    assert log.actions == [1] + [0] * (log.steps - 1) and told == []


def test_what_no_environment_should_be_asked_to_do_is_refused():
    log = Log(2)
    env = Watched(Constant(views(1), 3), log)
    with pytest.raises(RuntimeError, match="before reset"):
        env.step(0)
    env.reset()
    for odd in (3, -1, 1.0, np.array([1])):
        with pytest.raises(ValueError, match="an int from 0 to 2"):
            env.step(odd)
    env.step(np.int64(2))
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        env.step(0)
    for _ in range(3):
        env.reset()
        env.step(0)
    env.reset()
    with pytest.raises(RuntimeError, match="the budget is 2 steps"):
        env.step(0)
    assert log.steps == 4
