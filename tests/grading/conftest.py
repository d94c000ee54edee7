"""One sandbox for all tests of a session: it imports torch, which takes seconds."""

import os

import pytest

from rlhf_lib.grading.sandbox import Sandbox, bubblewrap


def started(program):
    """A Sandbox that has begun; tests that run side by side have users of their own."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    box = Sandbox(place=9 + int(worker), program=program)
    box.start()
    return box


@pytest.fixture(scope="session")
def box():
    """A sandbox without bubblewrap, of a grader with a secret in the environment."""
    os.environ["SECRET_TOKEN"] = "hunter2"
    made = started(None)
    yield made
    made.close()


@pytest.fixture(scope="session")
def wrapped_box():
    """A sandbox in bubblewrap; skipped where there is none."""
    program = bubblewrap()
    if program is None:
        pytest.skip("bubblewrap is not installed, or may not make namespaces here")
    made = started(program)
    yield made
    made.close()
