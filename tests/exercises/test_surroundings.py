"""A call of a learner's function ends in time, and what was around it goes on as before."""

import contextlib
import functools
import signal
import sys
import threading
import time

import pytest

from rlhf_lib.exercises import EXERCISES, frame, load, verdict
from rlhf_lib.exercises.surroundings import TimeUp, limited

load()
NAME = "discounted_returns"
RIGHT = EXERCISES[NAME].right

# ----------------------------------------------------------------------------------------- the limit of time


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(frame, "LIMIT", 0.3)


def spin(rewards, gamma):
    while True:
        pass


def swallow(rewards, gamma):
    while True:
        try:  # noqa: SIM105
            time.sleep(0.01)
        except:  # noqa: E722
            pass


@pytest.mark.parametrize("learner", [spin, swallow, lambda rewards, gamma: time.sleep(100)])
def test_an_endless_call_is_stopped_and_said(impatient, learner):
    started = time.monotonic()
    found = verdict(NAME, learner)
    assert "it was stopped after 0.3 seconds: is there a loop that never ends?" in found.message
    assert time.monotonic() - started < 5


def in_a_with(rewards, gamma):
    with contextlib.nullcontext():
        spin(rewards, gamma)


def in_a_finally(rewards, gamma):
    try:
        spin(rewards, gamma)
    finally:
        gamma += 1
        rewards += 1


@pytest.mark.parametrize("learner", [spin, swallow, in_a_with, in_a_finally])
def test_no_later_error_is_told_as_if_it_came_from_the_stop(impatient, learner):
    verdict(NAME, learner)
    assert sys.exc_info() == (None, None, None)
    with pytest.raises(ZeroDivisionError) as error:
        1 / 0  # noqa: B018
    assert error.value.__context__ is None


OURS = """
import contextlib
import time

@contextlib.contextmanager
def changed(done):
    try:
        yield
    finally:
        for step in range(15):
            time.sleep(0.01)
            done.append(step)

def run(learner, done):
    with changed(done):
        return learner(1, 1)
"""


@pytest.mark.parametrize("learner", [spin, swallow, in_a_with])
def test_the_course_cleans_up_behind_what_was_stopped(learner):
    """Also where that takes longer than until the next stop; and at once, not when somebody collects what was left over."""
    space, done = {"__name__": "rlhf_lib.exercises.made"}, []
    exec(OURS, space)
    assert isinstance(limited(functools.partial(space["run"], learner, done), 0.1)[1], TimeUp)
    assert done == [*range(15)]


@pytest.mark.parametrize("seconds", [0, 1e-4, 3e-3])
def test_a_call_of_many_short_calls_is_stopped(seconds):
    """However short they are, and wherever in the course's own lines its time is over; nothing of them is left behind."""

    def search():
        end = time.monotonic() + 20
        while time.monotonic() < end:
            assert limited(lambda: time.sleep(seconds) or 3, 5) == (3, None)

    took = []
    for number in range(30):
        before = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGINT), sys.gettrace()
        started = time.monotonic()
        assert isinstance(limited(search, 0.003 + number / 10_000)[1], TimeUp)
        took.append(time.monotonic() - started)
        assert (signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGINT), sys.gettrace()) == before
    assert sorted(took)[20] < 0.1, took  # a busy machine may be slow at some of them


def test_the_end_of_a_call_is_not_swallowed_by_one_in_it():
    def inner():
        while True:
            limited(lambda: time.sleep(0.02), 5)

    def search():
        while True:
            limited(functools.partial(swallow, 1, 1), 5)

    for function in (inner, search):
        started = time.monotonic()
        assert isinstance(limited(function, 0.1)[1], TimeUp)
        assert time.monotonic() - started < 3


def test_it_is_stopped_in_another_thread_too(impatient):
    found = []
    thread = threading.Thread(target=lambda: found.append(verdict(NAME, spin)))
    thread.start()
    thread.join(20)
    assert "it was stopped after" in found[0].message


def test_all_calls_together_have_a_limit(monkeypatch):
    monkeypatch.setattr(frame, "TOTAL", 0.5)

    def slow(rewards, gamma):
        time.sleep(0.3)
        return RIGHT(rewards, gamma)

    assert "it was stopped after 0.5 seconds" in verdict(NAME, slow).message


def test_an_import_is_not_broken_off(tmp_path, monkeypatch):
    """A module that is half imported would stay so for the rest of the session."""
    (tmp_path / "slow_to_import.py").write_text("import time\nfor _ in range(60):\n    time.sleep(0.01)\nready = True\n")
    monkeypatch.syspath_prepend(tmp_path)

    def learner():
        import slow_to_import

        time.sleep(5)
        return slow_to_import

    assert isinstance(limited(learner, 0.1)[1], TimeUp)
    assert sys.modules.pop("slow_to_import").ready


def test_an_alarm_that_was_set_is_kept():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    kept = signal.setitimer(signal.ITIMER_REAL, 0.4)
    start = time.monotonic()
    try:
        assert limited(lambda: 1, 5) == (1, None)
        remaining = signal.getitimer(signal.ITIMER_REAL)[0]
        assert 0.1 < remaining <= 0.4
        limited(lambda: time.sleep(0.8), 5)  # it rings in the middle of a call
        assert len(rung) == 1 and 0.3 < rung[0] - start < 0.8
        assert isinstance(limited(lambda: time.sleep(5), 0.2)[1], TimeUp)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *kept)


def test_an_alarm_or_ctrl_c_from_outside_goes_through():
    class OutsideError(BaseException):
        pass

    def ring(*_):
        raise OutsideError

    before = signal.signal(signal.SIGALRM, ring)
    kept = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(OutsideError):
            verdict(NAME, lambda rewards, gamma: time.sleep(3))
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *kept)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            verdict(NAME, lambda rewards, gamma: signal.raise_signal(signal.SIGINT) or time.sleep(3))
    finally:
        signal.signal(signal.SIGINT, before)
