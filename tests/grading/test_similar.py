import pytest

from rlhf_lib.grading.gradebook import Entry
from rlhf_lib.grading.similar import pairs, shape
from rlhf_lib.grading.verdicts import Result

LOOP = (
    "def gae(rewards, gamma):\n"
    "    out = 0\n"
    "    for t in range(len(rewards)):\n"
    "        out = out + gamma * rewards[t]\n"
    "    return out"
)


def test_names_docstrings_and_order_make_no_difference():
    other = (
        "def gae(r, g: float) -> float:\n"
        '    """Mine."""\n'
        "    x = 0\n"
        "    for i in range(len(r)):\n"
        "        x = x + g * r[i]\n"
        "    return x"
    )
    assert shape([LOOP])[0] == shape([other])[0]
    assert shape([LOOP, "N = 3"])[0] == shape(["N = 3", LOOP])[0] == shape(["import torch", "M = 3", other])[0]


@pytest.mark.parametrize(
    "old, new", [("+", "-"), ("gamma * rewards[t]", "rewards[t] * gamma"), ("out = 0", "out = 1"), ("range", "reversed")]
)
def test_other_code_is_other_code(old, new):
    changed = LOOP.replace(old, new)
    same = old == "range"  # a name, and names make no difference
    assert (shape([LOOP])[0] == shape([changed])[0]) is same


def entry(student, *shapes):
    return Entry(
        student, "", "", "graded", [], [Result(name, "7.1", "right", shape=one, size=size) for name, one, size in shapes]
    )


def test_pairs_that_share_enough():
    one, two, three = (
        entry("a", ("x", "s", 60), ("y", "t", 60)),
        entry("b", ("x", "s", 60), ("y", "t", 60)),
        entry("c", ("x", "s", 60)),
    )
    assert pairs([one, two, three]) == [("a", "b", ["x", "y"], 120)]
    assert pairs([one, two], worked=[entry("w", ("x", "s", 60))]) == []
    assert pairs([entry("a", ("x", "s", 20)), entry("b", ("x", "s", 20))]) == []
    assert pairs([entry("a", ("x", "", 90)), entry("b", ("x", "", 90))]) == []
    assert pairs([entry("a", ("x", "s", 90)), entry("b", ("y", "s", 90))]) == []
