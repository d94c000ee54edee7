"""What 7.10 is asked of its updates, seen from outside: the gradients, the ratios, and the value at a rollout's end."""

import contextlib
import math
from collections import deque

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

CLEARLY = 1.6  # a ratio that is beyond what is ever chosen as 1 + clip


# ----------------------------------------------------------------------------------------- gradients and ratios


class Watch:
    """What is seen of the updates of one training; begin it with `watched`.

    Attributes:
        old: whether an optimiser has stepped with a gradient that is from before its last step.
        ratio: the largest ratio, to the policy that acted, of a likely action that an update makes likelier still; 1 if none.
        beyond: how far what a network reads after `trained` lies outside of what the networks have read at last before.
    """

    def __init__(self):
        self.old, self.ratio, self.beyond = False, 1.0, 0.0
        self.trained, self.ranges = False, deque(maxlen=256)  # the least and the most of each feature, of the last calls
        self.hooked, self.stepped, self.mixed = set(), set(), set()  # weights
        self.features, self.actions, self.marks = 0, 0, []
        self.said, self.taken = {}, {}  # of each mark the log-probabilities; the action, with its own when it was taken

    # ------------------------------------------------------------------ optimisers
    def before(self, optimizer, *_):
        self.old = self.old or any(weight in self.mixed for weight in weights_of(optimizer))

    def after(self, optimizer, *_):
        for weight in weights_of(optimizer):
            self.stepped.add(weight)
            if weight not in self.hooked and weight.requires_grad:
                self.hooked.add(weight)
                weight.register_hook(lambda gradient, weight=weight: self.adds(weight))

    def adds(self, weight):
        """A gradient is about to be added to what is in `weight.grad`."""
        if weight.grad is None or not weight.grad.any():
            self.mixed.discard(weight)
        elif weight in self.stepped:
            self.mixed.add(weight)
        self.stepped.discard(weight)

    # ------------------------------------------------------------------ networks
    def forward(self, module, given, out):
        """A module has read observations, or a last layer has said logits of those that were read."""
        first = given[0] if given else None
        if isinstance(first, torch.Tensor) and first.dim() and first.shape[-1] == self.features:
            self.marks = first.detach()[..., -1].flatten().tolist()
            self.reads(first.detach().reshape(-1, self.features))
        if not isinstance(module, nn.Linear) or out.shape[-1] != self.actions or out[..., 0].numel() != len(self.marks):
            return
        marks, logprobs = self.marks, out.detach().log_softmax(-1).view(-1, self.actions).tolist()
        self.said.update((mark, row) for mark, row in zip(marks, logprobs) if mark not in self.taken)
        if out.requires_grad:
            out.register_hook(lambda gradient: self.slopes(marks, logprobs, gradient.reshape(-1, self.actions).tolist()))

    def reads(self, rows):
        if not self.trained:
            self.ranges.append((rows.amin(0), rows.amax(0)))
        elif self.ranges:
            least, most = (torch.stack(ends) for ends in zip(*self.ranges))
            self.beyond = max(self.beyond, torch.maximum(least.amin(0) - rows, rows - most.amax(0)).max().item())

    def acts(self, mark, action):
        if mark in self.said:
            self.taken[mark] = action, self.said.pop(mark)[action]

    def slopes(self, marks, logprobs, gradient):
        """Entropy never raises what is likelier than 1/2."""
        for mark, row, slope in zip(marks, logprobs, gradient):
            action, before = self.taken.get(mark, (0, math.inf))
            if row[action] > math.log(0.5) and slope[action] < 0:
                self.ratio = max(self.ratio, math.exp(row[action] - before))

    def found(self):
        return {"old": self.old, "ratio": self.ratio, "beyond": self.beyond}


class Marked(gym.Wrapper):
    """An environment each of whose observations has one number more, a small one that no other has."""

    def __init__(self, env, watch, drawn):
        super().__init__(env)
        self.watch, self.drawn, self.mark = watch, drawn, 0.0
        watch.features, watch.actions = env.observation_space.shape[0] + 1, int(env.action_space.n)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (watch.features,), np.float32)

    def marked(self, observation):
        both = np.append(observation, 0.1 * self.drawn.normal()).astype(np.float32)
        self.mark = float(both[-1])
        return both

    def reset(self, **given):
        observation, info = self.env.reset(**given)
        return self.marked(observation), info

    def step(self, action):
        self.watch.acts(self.mark, int(action))
        observation, *others = self.env.step(action)
        return self.marked(observation), *others


def weights_of(optimizer):
    return [weight for group in optimizer.param_groups for weight in group["params"]]


@contextlib.contextmanager
def watched(task):
    """A Watch, and the task with observations that are Marked."""
    watch, drawn = Watch(), np.random.default_rng(0)
    hooks = [
        register_optimizer_step_pre_hook(watch.before), register_optimizer_step_post_hook(watch.after),
        register_module_forward_hook(watch.forward),
    ]  # fmt: skip
    try:
        yield watch, lambda: Marked(task(), watch, drawn)
    finally:
        for hook in hooks:
            hook.remove()


def watch_fault(old, ratio):
    """What is wrong with the gradients and the ratios of a Watch; "" if nothing is."""
    if old:
        return (
            "the optimiser steps with gradients of earlier minibatches, which are still in .grad, since backward adds to what is "
            "there: zero_grad() before each backward"
        )
    if ratio > CLEARLY:
        return (
            f"in one update an action gets {ratio:.1f} times as likely as when it was drawn, and is pushed up still: the ratio "
            "is to be clipped, against the log-probabilities of the rollout, which stay as they were in all epochs"
        )
    return ""


# ----------------------------------------------------------------------------------------- the end of a rollout

LATEST = 2  # the update that is looked at: at the first a critic may still give all states one value


class Seen(Exception):
    """Ends a training behind update number LATEST."""


class Updates:
    """The gradients of the updates up to number LATEST, and how far each environment then was.

    Args:
        at: for each environment the step that is changed, a list.
        change: what is changed in it: "observation", "reward", or nothing.
        stops: whether the training ends there.
    """

    def __init__(self, at=(), change="", stops=False):
        self.at, self.change, self.stops = at, change, stops
        self.envs, self.gradients, self.done, self.updating = [], [], 0, False
        self.ends = []

    def before(self, optimizer, *_):
        if not self.updating:
            self.updating = True
            self.done += 1
            if self.done == LATEST:
                self.ends = [env.steps for env in self.envs]
        if self.done <= LATEST:
            given = [weight.grad.double() for weight in weights_of(optimizer) if weight.grad is not None]
            self.gradients.append([number.item() for one in given for number in (one.sum(), one.norm())])

    def acts(self):
        self.updating = False
        if self.stops and self.done >= LATEST:
            raise Seen


class Changed(gym.Wrapper):
    """An environment that counts its steps, one of which may be changed: see Updates."""

    def __init__(self, env, updates):
        super().__init__(env)
        self.updates, self.place, self.steps = updates, len(updates.envs), 0
        updates.envs.append(self)

    def step(self, action):
        self.updates.acts()
        self.steps += 1
        observation, reward, *others = self.env.step(action)
        if self.steps == dict(enumerate(self.updates.at)).get(self.place):
            observation = observation + np.float32(self.updates.change == "observation")
            reward = reward + (self.updates.change == "reward")
        return observation, reward, *others


@contextlib.contextmanager
def updates_seen(task, **changes):
    """Updates, and the task in which they are seen."""
    updates = Updates(**changes)
    hook = register_optimizer_step_pre_hook(updates.before)
    try:
        with contextlib.suppress(Seen):
            yield updates, lambda: Changed(task(), updates)
    finally:
        hook.remove()


def forgets_the_end(plain, tasks, train):
    """Whether in update LATEST the observation behind a rollout's last step has no part, though its reward has.

    Args:
        plain: the Updates of a training.
        tasks: two of the same kind, for two more trainings.
        train: train(task), the same training.
    """
    if plain.done < LATEST:
        return False
    for task, change in zip(tasks, ("observation", "reward")):
        with updates_seen(task, at=plain.ends, change=change, stops=True) as (updates, changed):
            train(changed)
        if (updates.gradients == plain.gradients) != (change == "observation"):
            return False
    return True
