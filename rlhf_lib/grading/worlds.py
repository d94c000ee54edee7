"""Environments that stay with the grader: a submission's process steps them over a socket, and never holds what they hide.

    worlds = Worlds(tasks)                      here; `tasks` are a probe's, see exercises/build.py
    how, content = box.ask(request, limits, worlds=worlds)
    tasks[0].seen()                             what has happened in them, which nobody could forge

In the submission's process `far_tasks(socket, count)` has the same form as `tasks`. A message is a line of JSON, and each gets
one line in reply: ["make", task], ["reset", environment, seed] or ["step", environment, action]; of an Exam, ["begin", task] or
["move", task, actions].
"""

import json
import socket

import gymnasium as gym
import numpy as np

from rlhf_lib.exercises.probe_envs import Task, must_be_an_action

LONG = 4096  # bytes of a message
MOST = 256  # environments of one question
KINDS = {"RuntimeError": RuntimeError, "ValueError": ValueError}


# ----------------------------------------------------------------------------------------- here


class Worlds:
    """The tasks of one question, for the process that has `theirs`, one end of a socket. `close` it in the end."""

    def __init__(self, tasks):
        self.tasks, self.envs, self.rest = tasks, [], b""
        self.patience = 10_000 + sum(4 * task.log.budget for task in tasks if isinstance(task, Task))  # messages
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)

    def close(self):
        self.ours.close()
        self.theirs.close()

    def turn(self):
        """Answer what has come; returns whether there may be more. What is no message, or is not waited for, ends it."""
        try:
            part = self.ours.recv(LONG)
            *lines, self.rest = (self.rest + part).split(b"\n")
            for line in lines:
                self.ours.sendall(json.dumps(self.reply(line)).encode() + b"\n")
        except OSError:  # it has ended, or does not read what it asked for
            return False
        self.patience -= len(lines)
        return bool(part) and len(self.rest) < LONG and self.patience > 0

    def reply(self, line):
        try:
            what, number, value = json.loads(line)
            if what == "make":
                return self.make(self.tasks[number])
            if what == "begin":
                return self.tasks[number].begin()
            if what == "move":
                return self.tasks[number].step(value)
            env = self.envs[number]
            if what == "reset":
                return env.reset(seed=value)[0].tolist()
            observation, reward, terminated, truncated, _ = env.step(value)
            return [observation.tolist(), float(reward), bool(terminated), bool(truncated)]
        except Exception as error:  # whatever was sent
            kind = type(error).__name__
            return {"raised": kind if kind in KINDS else "RuntimeError", "message": str(error)[:500]}

    def make(self, task):
        if len(self.envs) >= MOST:
            raise RuntimeError(f"more than {MOST} environments are made")
        self.envs.append(task())
        space = self.envs[-1].observation_space
        return [len(self.envs) - 1, space.low.tolist(), space.high.tolist(), int(self.envs[-1].action_space.n)]


# ----------------------------------------------------------------------------------------- there


class Far(gym.Env):
    """An environment of task number `task` at the other end of `wire`."""

    def __init__(self, wire, task):
        self.wire = wire
        self.number, low, high, actions = wire("make", task)
        self.observation_space = gym.spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
        self.action_space = gym.spaces.Discrete(actions)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.array(self.wire("reset", self.number, seed if seed is None else int(seed)), np.float32), {}

    def step(self, action):
        must_be_an_action(action, self.action_space)
        observation, reward, terminated, truncated = self.wire("step", self.number, int(action))
        return np.array(observation, np.float32), reward, terminated, truncated, {}


class FarTask:
    """Task number `number`, a Task or an Exam, at the other end of `wire`."""

    def __init__(self, wire, number):
        self.wire, self.number = wire, number

    def __call__(self):
        return Far(self.wire, self.number)

    def begin(self):
        return self.wire("begin", self.number)

    def step(self, actions):
        return self.wire("move", self.number, actions)


def far_tasks(end, count):
    """The tasks at the other end of a socket."""
    answers = end.makefile("rb")

    def wire(what, number, value=None):
        end.sendall(json.dumps([what, number, value]).encode() + b"\n")
        line = answers.readline()
        if not line:
            raise RuntimeError("the environments are gone")
        found = json.loads(line)
        if isinstance(found, dict):
            raise KINDS[found["raised"]](found["message"])
        return found

    return [FarTask(wire, number) for number in range(count)]
