"""Both ends of the socket between a submission's process and the environments that stay with the grader."""

import contextlib
import json
import select
import threading

import gymnasium as gym
import numpy as np
import pytest

from rlhf_lib.exercises.probe_envs import Constant, Exam, Paying, Task
from rlhf_lib.grading import worlds as module
from rlhf_lib.grading.worlds import Worlds, far_tasks

VIEWS = [[0.5, -1.0]]


@contextlib.contextmanager
def served(*tasks):
    """The far tasks of some tasks, which are answered in a thread."""
    with contextlib.closing(Worlds([*tasks])) as made:
        going = True

        def serve():
            while going and (not select.select([made.ours], [], [], 0.05)[0] or made.turn()):
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield far_tasks(made.theirs, len(tasks))
        finally:
            going = False
            thread.join()


def test_a_far_environment_is_as_the_near_one_and_its_log_stays_here():
    task = Task(lambda: Paying(VIEWS, [0.0, 2.5, 1.0]), 10)
    with served(task) as (far,):
        env, other = far(), far()
        assert env.action_space.n == 3 and env.observation_space == Paying(VIEWS, [0, 0, 0]).observation_space
        observation, info = env.reset(seed=3)
        assert observation.dtype == np.float32 and observation.tolist() == VIEWS[0] and info == {}
        assert env.step(np.int64(1))[1:] == (2.5, True, False, {})
        assert not any("Paying" in repr(one) for one in (vars(env), vars(far), vars(other)))
    assert task.seen()["actions"] == [1] and task.seen()["made"] == 2 and task.seen()["steps"] == 1


def test_a_far_pole_goes_as_the_near_one():
    near = gym.make("CartPole-v1")
    with served(Task(lambda: gym.make("CartPole-v1"), 100)) as (far,):
        env = far()
        assert np.array_equal(env.reset(seed=7)[0], near.reset(seed=7)[0])
        for action in (0, 1, 1):
            one, other = env.step(action), near.step(action)
            assert np.array_equal(one[0], other[0]) and one[1:4] == other[1:4]


def test_what_no_environment_should_be_asked_raises_there():
    with served(Task(lambda: Constant(VIEWS, 3), 1)) as (far,):
        env = far()
        with pytest.raises(RuntimeError, match="call reset\\(\\) first"):
            env.step(0)
        env.reset()
        for action in (3, -1, 0.5, None, "0"):
            with pytest.raises(ValueError, match="an action is an int from 0 to 2"):
                env.step(action)
        for _ in range(2):
            env.step(0)
            env.reset()
        with pytest.raises(RuntimeError, match="the budget is 1 steps"):
            env.step(0)


def test_an_exam_is_played_from_afar_and_only_once():
    exam = Exam(lambda: gym.make("CartPole-v1"), range(5, 8))
    with served(exam) as (far,):
        now = far.begin()
        assert len(now) == 3 and exam.seen() == {"lengths": []}
        while any(now):
            now = far.step([1, 1, 1])
        with pytest.raises(RuntimeError, match="have been played"):
            far.begin()
        with pytest.raises(ValueError):
            far.step([1])
    assert len(exam.seen()["lengths"]) == 3 and all(7 < length < 12 for length in exam.seen()["lengths"])


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[]", b'["make", 9, 0]', b'["step", 0, 0]', b'["make", "a", 0]', b'["go", 0, 0]', b"[" * 3000, b"\xff", b"3"],
)
def test_whatever_is_sent_gets_an_error_and_breaks_nothing(line):
    with contextlib.closing(Worlds([Task(lambda: Constant(VIEWS, 3), 1)])) as made:
        made.theirs.sendall(line + b"\n")
        assert made.turn()
        assert json.loads(made.theirs.recv(4096))["raised"] in module.KINDS


def test_what_does_not_end_or_is_not_read_is_cut_off(monkeypatch):
    task = Task(lambda: Constant(VIEWS, 3), 1)
    with contextlib.closing(Worlds([task])) as made:
        made.theirs.sendall(b"x" * 2 * module.LONG)  # no line's end
        assert made.turn() is False
    with contextlib.closing(Worlds([task])) as made:
        made.patience = 3
        made.theirs.sendall(b"1\n2\n3\n")
        assert made.turn() is False
    with contextlib.closing(Worlds([task])) as made:
        made.theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                made.theirs.send(b"[]\n")
        made.patience = 10**9
        turns = sum(iter(lambda: made.turn() and _again(made), False))  # nobody reads what it answers
        assert turns < 10**5


def _again(made):
    with contextlib.suppress(BlockingIOError):
        made.theirs.send(b"[]\n" * 500)
    return True


def test_environments_are_not_made_without_end(monkeypatch):
    monkeypatch.setattr(module, "MOST", 2)
    with served(Task(lambda: Constant(VIEWS, 3), 1)) as (far,):
        far(), far()
        with pytest.raises(RuntimeError, match="more than 2 environments"):
            far()
