"""Probe environments: tasks so small that the right answer is known; where one is not learnt, few bugs can be the reason.

A right PPO learns each of them within a few thousand steps; where one is missed, the name of the task says where to look. The
idea is Andy Jones's (2021, "Debugging RL, Without the Agonizing Pain").

    task = Task(lambda: Matching(views, best=[2, 0], actions=3), budget=8192)
    act = train_ppo(task, 8192, seed=0)
    task.log.steps, task.log.episodes, task.log.lengths  # what its environments saw
"""

import gymnasium as gym
import numpy as np

TERMINATED, TRUNCATED, ON = "terminated", "truncated", ""  # how a step ends: for good, by the clock, or not at all


class Tiny(gym.Env):
    """A task with a few numbered states.

    Args:
        views: for each state, the list of floats that is observed in it.
        actions: how many there are.
    """

    def __init__(self, views, actions):
        self.views = np.array(views, dtype=np.float32)  # (states, features)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, self.views.shape[1:], np.float32)
        self.action_space = gym.spaces.Discrete(actions)
        self.state = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.begin()
        return self.views[self.state].copy(), {}

    def step(self, action):
        reward, end = self.move(int(action))
        return self.views[self.state].copy(), float(reward), end == TERMINATED, end == TRUNCATED, {}

    def begin(self):
        """The state in which an episode starts."""
        return int(self.np_random.integers(len(self.views)))

    def move(self, action):
        """Change `self.state`; returns the reward, and how the step ends."""
        raise NotImplementedError


class Constant(Tiny):
    """One step, and a reward of 1 whatever is done. Nothing can be learnt: does the loop run, and does it keep its promises?"""

    def move(self, action):
        return 1, TERMINATED


class Paying(Tiny):
    """One step; action a pays `rewards[a]`. Has the policy's gradient the right sign?"""

    def __init__(self, views, rewards):
        super().__init__(views, len(rewards))
        self.rewards = rewards

    def move(self, action):
        return self.rewards[action], TERMINATED


class Matching(Tiny):
    """One step; in state s only action `best[s]` pays. Does the policy read its observation, and the right one?

    With `endless`, another state follows each step and the episode never ends: is a rollout cut where the budget says so? The
    pay is then a tenth, so that what is still to come does not drown it.
    """

    def __init__(self, views, best, actions, endless=False):
        super().__init__(views, actions)
        self.best, self.endless = best, endless

    def move(self, action):
        pays = action == self.best[self.state]
        self.state = self.begin()
        return (0.1 * pays, ON) if self.endless else (pays, TERMINATED)


class Delayed(Tiny):
    """At a start action `hasty[s]` takes 0.3 at once, and `patient[s]` 1 three steps later. Are later rewards counted?

    States 0 and 1 are the starts; then two for each step, the second of which says that the 1 will come.
    """

    WAIT = 3  # steps from the first to the one that pays

    def __init__(self, views, patient, hasty, actions):
        super().__init__(views, actions)  # 2 + 2 * WAIT views
        self.patient, self.hasty = patient, hasty

    def begin(self):
        return int(self.np_random.integers(2))

    def move(self, action):
        start = self.state
        if start < 2:
            self.state = 3 if action == self.patient[start] else 2
            return 0.3 if action == self.hasty[start] else 0, ON
        if start < 2 * self.WAIT:
            self.state += 2
            return 0, ON
        return start % 2, TERMINATED


class Border(Tiny):
    """One step out of a start: action `hasty[s]` takes 0.3, `onward[s]` leads to a state that is worth 1, any other to nothing.

    The episode ends there, `end` says how. TRUNCATED: it would have gone on, so the state's worth counts. TERMINATED: nothing
    follows, so it does not. What states 2 and 3 are worth, 1 and 0, is learnt from the episodes that start in them.
    """

    def __init__(self, views, hasty, onward, actions, end):
        super().__init__(views, actions)  # 4 views
        self.hasty, self.onward, self.end = hasty, onward, end

    def move(self, action):
        start = self.state
        if start < 2:
            self.state = 2 if action == self.onward[start] else 3
            return 0.3 if action == self.hasty[start] else 0, self.end
        return start == 2, TERMINATED


class BorderAtTime(Border):
    """A border at which the clock runs out in the very step that ends an episode for good, where it begins in start 1."""

    def __init__(self, views, hasty, onward, actions):
        super().__init__(views, hasty, onward, actions, TERMINATED)

    def step(self, action):
        start = self.state
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated or start == 1, info


class Heirs(Tiny):
    """One step: action `fair[s]` pays 0.3; `costly[s]` pays nothing, but makes the *next* episode pay 2 more. That is no business
    of this one: does credit leak across a reset?

    State 2 k + s is start s, with what it has inherited hidden (k = 0), or shown as poor (1) or rich (2): half of the time it
    can be seen, so that neither the next value nor the next advantage leaks unpunished. State 6 is observed at the end, `end`
    says of which kind: it tells nothing of what was done, so that its value, which counts after TRUNCATED, moves no choice.
    """

    def __init__(self, views, fair, costly, actions, end=TERMINATED):
        super().__init__(views, actions)  # 7 views
        self.fair, self.costly, self.end, self.rich = fair, costly, end, False

    def reset(self, *, seed=None, options=None):
        self.rich = self.rich and seed is None  # with a seed, all begins anew
        return super().reset(seed=seed, options=options)

    def begin(self):
        kind = 1 + self.rich if self.np_random.random() < 0.5 else 0
        return 2 * kind + int(self.np_random.integers(2))

    def move(self, action):
        start, reward = self.state % 2, 1 if self.rich else -1
        self.rich, self.state = action == self.costly[start], 6
        return reward + 0.3 * (action == self.fair[start]), self.end


class Pointing(Tiny):
    """One step; the observation is a random vector, and one of two actions pays, by the side of `normal` on which it lies.

    Its starts are as many as there are episodes: who seeds what, and how often?
    """

    def __init__(self, normal):
        super().__init__([normal], 2)
        self.normal, self.view = np.array(normal), None

    def begin(self):
        self.views[0] = self.np_random.normal(size=len(self.normal))
        return 0

    def move(self, action):
        return action == int(self.views[0] @ self.normal > 0), TERMINATED


# ----------------------------------------------------------------------------------------- what an environment saw


class Log:
    """What all environments of one training saw together.

    Args:
        budget: how many steps they were to be given; at twice as many they refuse.
        told: called with the log after every 500 steps.

    Attributes:
        made, steps, episodes: how many; an episode counts when it has ended.
        left: how many episodes were left before their end, by a reset.
        actions: all actions, in the order in which they came.
        starts: for each environment, the observations (tuples) with which its episodes began.
        lengths: (steps so far, length) of each episode, at its end.
    """

    def __init__(self, budget, told=None):
        self.budget, self.told = budget, told
        self.made, self.steps, self.episodes, self.left = 0, 0, 0, 0
        self.actions, self.starts, self.lengths = [], [], []


class Watched(gym.Wrapper):
    """An environment that notes in `log` what it sees, and refuses what no environment should be asked to do."""

    def __init__(self, env, log):
        super().__init__(env)
        self.log, self.length, self.going = log, 0, False
        self.starts = []
        log.made += 1
        log.starts.append(self.starts)

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        self.starts.append(tuple(float(x) for x in observation))
        self.log.left += self.going
        self.length, self.going = 0, True
        return observation, info

    def step(self, action):
        log = self.log
        if not self.going:
            raise RuntimeError("step() comes before reset(), or after the end of an episode: call reset() first, each time")
        must_be_an_action(action, self.action_space)
        if log.steps >= 2 * log.budget:
            raise RuntimeError(
                f"the environments have been stepped {log.steps} times, and the budget is {log.budget} steps: it counts the "
                "steps of all environments together, and a rollout is cut where it ends, also within an episode"
            )
        observation, reward, terminated, truncated, info = self.env.step(action)
        log.steps, self.length = log.steps + 1, self.length + 1
        log.actions.append(int(action))
        if terminated or truncated:
            self.going = False
            log.episodes += 1
            log.lengths.append((log.steps, self.length))
        if log.told and log.steps % 500 == 0:
            log.told(log)
        return observation, reward, terminated, truncated, info


def must_be_an_action(action, space):
    if not space.contains(action):
        raise ValueError(f"step() is given {action!r}: an action is an int from 0 to {int(space.n) - 1}")


class Task:
    """What one training acts in: each call makes another environment, and what all of them see together is in `log`.

    Args:
        make: make() gives an environment.
        budget, told: of the Log.
    """

    def __init__(self, make, budget, told=None):
        self.make, self.log = make, Log(budget, told)

    def __call__(self):
        return Watched(self.make(), self.log)

    def seen(self):
        """The log as plain data."""
        return {name: value for name, value in vars(self.log).items() if name not in ("budget", "told")}


class Exam:
    """One episode from each of `seeds`, all played side by side, and only once. make: make() gives an environment."""

    def __init__(self, make, seeds):
        self.make, self.seeds, self.envs, self.going, self.lengths = make, seeds, [], [], []

    def begin(self):
        """What is observed at the start of each episode, a list of lists."""
        if self.envs:
            raise RuntimeError("these episodes have been played")
        self.envs = [self.make() for _ in self.seeds]
        self.going, self.lengths = [True] * len(self.envs), [0] * len(self.envs)
        return [env.reset(seed=seed)[0].tolist() for env, seed in zip(self.envs, self.seeds)]

    def step(self, actions):
        """A step in each episode that goes on, by its action (int); returns what is observed then, None where it is over."""
        found = []
        for place, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            observation = None
            if self.going[place]:
                must_be_an_action(action, env.action_space)
                observation, _, terminated, truncated, _ = env.step(action)
                self.lengths[place] += 1
                self.going[place] = not (terminated or truncated)
            found.append(observation.tolist() if self.going[place] else None)
        return found

    def seen(self):
        """How long each episode lasted; no lengths where they were not played to the end."""
        return {"lengths": [] if any(self.going) else self.lengths}
