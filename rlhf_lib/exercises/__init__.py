"""The checks of the exercises: an oracle, drawn inputs, and the mistakes that learners make, each with its name.

A notebook says `check("causal_mask", causal_mask)`. That is three steps, and each can be taken in another process:

    inputs = draw(name, seed)              a list of dicts of tensors and plain values
    outputs = answer(name, learner, inputs)  what the learner's function makes of them, plain data again (plain.py)
    judge(name, inputs, outputs)           a Verdict

The exercises themselves are in one module a chapter, each one call of `Exercise` (declare.py).
"""

from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.compare import equal
from rlhf_lib.exercises.declare import BUILDS, CHAPTERS, EXERCISES, INVESTIGATIONS, Exercise, Investigation, find, load
from rlhf_lib.exercises.investigations import done, findings
from rlhf_lib.exercises.keep import FILE, UNKEPT, complete, keep, yours
from rlhf_lib.exercises.plain import is_record, raised
from rlhf_lib.exercises.progress import PROGRESS, progress, remember, solved
from rlhf_lib.exercises.verdicts import Verdict, answer, draw, judge, verdict

__all__ = [
    "BUILDS", "CHAPTERS", "EXERCISES", "FILE", "INVESTIGATIONS", "PROGRESS", "Build", "Exercise", "Investigation", "NotYet",
    "Probe", "Verdict", "answer", "check", "complete", "done", "draw", "equal", "find", "findings", "is_record", "judge",
    "keep", "load", "progress", "raised", "solved", "tick", "verdict", "yours",
]  # fmt: skip


class NotYet(AssertionError):
    """A check that did not pass. In a notebook it shows its message alone, without the way through this module."""

    def _render_traceback_(self):  # IPython looks for this name
        return [f"✗ {self}"]


def check(name, function, seed=0):
    """Check a learner's function or class; say what is wrong with it, or remember that it passed and keep it (keep.py).

    Raises:
        NotYet: it is not right; the message says why.
    """
    found = verdict(name, function, seed)
    if not found.passed:
        picture = getattr(find(name), "draw_picture", None)
        if picture and not is_record(found.got) and found.got is not None:
            show(picture, found)
        if "not written yet. Write it" not in found.message:
            remember(name, passed=False)
        raise NotYet(found.message) from None
    noted = "" if remember(name) else f" (this could not be noted: {PROGRESS} cannot be written here)"
    print(f"✓ {found.message}{noted}")
    if not getattr(find(name), "kept", True):
        return
    fault = keep(name, function)
    (UNKEPT.add if fault else UNKEPT.discard)(name)
    if fault:
        print(f"  right, but not kept in {FILE}: {fault}.")


def show(picture, verdict):
    """Draw what came out beside what was expected; an output too odd to be drawn gets no picture."""
    try:
        from IPython.display import display

        figure = picture(verdict.arguments, verdict.got, verdict.expected)
    except Exception:  # the learner's output may have any shape; the message says what is wrong with it
        return
    if figure is not None:
        display(figure)
