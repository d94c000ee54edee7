"""The checks of the exercises: an oracle, drawn inputs, and the mistakes that learners make, each with its name.

A notebook says `check("causal_mask", causal_mask)`. That is three steps, and each can be taken in another process:

    inputs = draw(name, seed)              a list of dicts of tensors and plain values
    outputs = answer(name, learner, inputs)  what the learner's function makes of them, tensors and plain values again
    judge(name, inputs, outputs)           a Verdict

The exercises themselves are in one module a chapter, each one call of `Exercise` (declare.py).
"""

from typing import NamedTuple

import torch

from rlhf_lib.exercises.compare import difference, equal, is_record, raised, shown
from rlhf_lib.exercises.declare import CHAPTERS, EXERCISES, Exercise, find, load
from rlhf_lib.exercises.frame import answer
from rlhf_lib.exercises.progress import PROGRESS, progress, remember, solved

__all__ = [
    "CHAPTERS", "EXERCISES", "PROGRESS", "Exercise", "NotYet", "Verdict", "answer", "check", "draw", "equal", "find", "is_record",
    "judge", "load", "progress", "raised", "solved", "verdict",
]  # fmt: skip


class Verdict(NamedTuple):
    """What `judge` found. `message` is one sentence or a few lines for the learner; the rest is of the smallest failing input."""

    passed: bool
    message: str
    mistake: str = ""
    arguments: dict = {}
    got: object = None
    expected: object = None


class NotYet(AssertionError):
    """A check that did not pass. In a notebook it shows its message alone, without the way through this module."""

    def _render_traceback_(self):  # IPython looks for this name
        return [f"✗ {self}"]


def draw(name, seed=0):
    """The inputs of an exercise: a list of dicts of arguments, the smallest first, the same for the same seed."""
    return list(find(name).draw_inputs(torch.Generator().manual_seed(seed)))


def judge(name, inputs, outputs):
    """Compare `outputs` with the oracle's and, where they differ, with each mistake's. Returns a Verdict."""
    exercise = find(name)
    expected = answer(name, exercise.right, inputs)
    wrong = [place for place in range(len(inputs)) if not equal(outputs[place], expected[place], exercise.tolerance)]
    if not wrong:
        return Verdict(True, f"{exercise.number} {name}: right on {len(inputs)} inputs")
    first = wrong[0]
    found = dict(arguments=inputs[first], got=outputs[first], expected=expected[first])
    if is_record(outputs[first], "raised") and outputs[first]["kind"] == "NotImplementedError":
        return Verdict(
            False, f"{exercise.number} {name}: not written yet. Write it in the cell above, run that cell, then this one."
        )
    for sentence, functions in exercise.mistakes.items():
        for mistake in functions:
            if all(equal(*pair, exercise.tolerance) for pair in zip(outputs, answer(name, mistake, inputs))):
                return Verdict(False, f"{exercise.number} {name}: {sentence}", mistake=sentence, **found)
    what = difference(outputs[first], expected[first], exercise.tolerance)
    lines = [f"{exercise.number} {name}: {what}. The smallest input that fails:"]
    lines += [f"    {key} = {shown(value)}" for key, value in inputs[first].items()]
    if not is_record(outputs[first]):
        lines += [f"came out: {shown(outputs[first])}", f"expected: {shown(expected[first])}"]
    return Verdict(False, "\n".join(lines), **found)


def verdict(name, function, seed=0):
    """The three steps in one: draw inputs, take the answers of `function`, judge them. Returns a Verdict."""
    inputs = draw(name, seed)
    return judge(name, inputs, answer(name, function, inputs))


def check(name, function, seed=0):
    """Check a learner's function, say what is wrong with it, and remember that it passed.

    Raises:
        NotYet: it is not right; the message says why.
    """
    found = verdict(name, function, seed)
    if not found.passed:
        picture = find(name).draw_picture
        if picture and not is_record(found.got) and found.got is not None:
            show(picture, found)
        raise NotYet(found.message) from None
    noted = "" if remember(name) else f" (this could not be noted: {PROGRESS} cannot be written here)"
    print(f"✓ {found.message}{noted}")


def show(picture, verdict):
    """Draw what came out beside what was expected; an output too odd to be drawn gets no picture."""
    from IPython.display import display

    try:
        figure = picture(verdict.arguments, verdict.got, verdict.expected)
    except Exception:  # the learner's output may have any shape; the message says what is wrong with it
        return
    display(figure)
