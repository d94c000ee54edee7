"""What Build it 7.10 sees of updates: old gradients, ratios beyond the clip, and whether a rollout's end has a value."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from rlhf_lib.exercises import build07_watch as kit


class Walk(gym.Env):
    """Never ends; observes how many steps it has taken, and pays 1 each time."""

    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32), gym.spaces.Discrete(3)
    steps = 0

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.array([self.steps], np.float32), 1.0, False, False, {}


def stepped(*orders):
    """Whether old gradients are seen in a training that does, one after the other, what each letter says."""
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    does = {"z": optimizer.zero_grad, "b": lambda: (weight * 3).sum().backward(), "s": optimizer.step}
    with kit.watched(Walk) as (watch, _):
        for order in "".join(orders):
            does[order]()
    return watch.old


def test_gradients_of_earlier_steps_are_seen_where_they_are_stepped_with():
    assert not stepped("zbs" * 3) and not stepped("bsz" * 3) and not stepped("bbszbbs")  # two losses, one step
    assert not stepped("bsb", "zbs")  # what was added to old ones is thrown away
    assert stepped("bsbs") and stepped("zbbsbbs")


def ratio_of(before, after, sign, action=1):
    """The ratio that is seen of one action, taken at logits `before` and updated at `after` in the direction of `sign`."""
    with kit.watched(Walk) as (watch, marked):
        env = marked()
        observation, _ = env.reset(seed=0)
        layer = nn.Linear(2, 3, bias=False)
        nn.init.zeros_(layer.weight)
        shift = torch.tensor(observation)[1]
        for logits in (before, after):
            with torch.no_grad():
                layer.weight[:, 1] = torch.tensor(logits) / shift
            said = layer(torch.tensor(observation)[None])
            if logits is before:
                env.step(action)
        (sign * said.log_softmax(-1)[0, action]).backward()
    return watch.found()["ratio"]


def test_the_ratio_is_of_likely_actions_that_are_pushed_up():
    """From 1/3 to 1/2 and more: logits 0, ln 4, 0 give 2/3."""
    level, high = [0.0, 0.0, 0.0], [0.0, float(np.log(4)), 0.0]
    assert ratio_of(level, high, -1) == pytest.approx(2.0, rel=1e-4)
    assert ratio_of(level, high, 1) == 1.0  # pushed down
    assert ratio_of(level, high, -1, action=0) == 1.0  # unlikely: entropy may raise it
    assert "2.0 times as likely" in kit.watch_fault(False, 2.0) and kit.watch_fault(False, 1.3) == ""
    assert "zero_grad" in kit.watch_fault(True, 1.0)


def trainer(target):
    """Two rollouts of 4 steps, and after each a step towards target(rewards, the last observation, the one before)."""

    def train(make_env):
        env = make_env()
        seen, weight = [env.reset(seed=0)[0]], nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for _ in range(3):
            rewards = []
            for _ in range(4):
                observation, reward, *_ = env.step(0)
                seen.append(observation)
                rewards.append(reward)
            optimizer.zero_grad()
            (weight - float(target(rewards, seen[-1][0], seen[-2][0]))).square().sum().backward()
            optimizer.step()

    return train


@pytest.mark.parametrize("target, forgets", [
    (lambda rewards, last, before: sum(rewards) + 0.9 * last, False),
    (lambda rewards, last, before: sum(rewards), True),
    (lambda rewards, last, before: sum(rewards[:-1]) + 0.9 * before, False),  # it leaves the last step out
])  # fmt: skip
def test_a_rollout_whose_end_has_no_value_is_seen(target, forgets):
    train = trainer(target)
    with kit.updates_seen(Walk) as (plain, seen):
        train(seen)
    assert plain.ends == [8] and len(plain.gradients) == 2
    assert kit.forgets_the_end(plain, [Walk, Walk], train) is forgets


def test_a_training_of_one_update_is_not_asked():
    assert kit.forgets_the_end(kit.Updates(), [], None) is False
