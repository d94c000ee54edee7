import os
import time

import pytest

from rlhf_lib.grading import aside as module
from rlhf_lib.grading.aside import AsideError, aside


def test_the_result_comes_back_and_nothing_else_changes():
    seen = []

    def work():
        seen.append(1)
        os.environ["ASIDE"] = "set"
        return {"a": [1, None, "ü"]}

    assert aside(work) == {"a": [1, None, "ü"]}
    assert seen == [] and "ASIDE" not in os.environ


@pytest.mark.parametrize("work, said", [
    (lambda: 1 / 0, "ZeroDivisionError: division by zero"), (lambda: os._exit(3), "its process died"),
    (lambda: os.kill(os.getpid(), 9), "its process died"), (lambda: bytearray(10**13), "MemoryError"),
    (lambda: object(), "not JSON serializable"), (lambda: exit(2), "SystemExit"),
])  # fmt: skip
def test_how_it_ended_is_said(work, said):
    with pytest.raises(AsideError, match=said):
        aside(work)


def test_it_is_ended_when_its_time_is_up():
    start = time.monotonic()
    with pytest.raises(AsideError, match=r"no end after 0\.3 seconds"):
        aside(lambda: time.sleep(60), seconds=0.3)
    assert time.monotonic() - start < 20


def test_a_result_may_be_too_large(monkeypatch):
    monkeypatch.setattr(module, "MOST", 1000)
    with pytest.raises(AsideError, match="too large"):
        aside(lambda: "x" * 5000)


def no_child_is_left():
    """Nothing but the sandbox of the session, which is alive."""
    try:
        return os.waitpid(-1, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return True


def test_no_process_and_no_file_is_left():
    before = os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else []
    for _ in range(5):
        aside(lambda: 1)
    assert len(os.listdir("/proc/self/fd") if before else []) <= len(before)
    assert no_child_is_left()
