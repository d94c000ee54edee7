"""The checks of the exercises: an oracle, drawn inputs, and the mistakes that learners make, each with its name.

A notebook says `check("causal_mask", causal_mask)`. That is three steps, and each can be taken in another process:

    inputs = draw(name, seed)              a list of dicts of tensors and plain values
    outputs = answer(name, learner, inputs)  what the learner's function makes of them, tensors and plain values again
    judge(name, inputs, outputs)           a Verdict

The exercises themselves are in one module a chapter: an Exercise, its inputs, its oracle, its mistakes.
"""

import copy
import importlib
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import torch

from rlhf_lib.runs import write_atomic

CHAPTERS = {
    "01": "text", "02": "transformer", "03": "pretraining", "04": "sampling", "05": "labels",
    "06": "reward_model", "07": "policy_gradients", "08": "rlhf", "09": "over_optimisation",
}  # fmt: skip
EXERCISES = {}  # name -> Exercise, filled by the chapters' modules


class Exercise:
    """One exercise: what is drawn, what is right, and what goes wrong.

    Args:
        number: chapter and place, such as "2.3".
        name: of the function or class that the learner writes; unique in the course.
        tolerance: how far a float may be off, absolutely and relatively.

    Its parts are set by decorators:

        @exercise.inputs      a generator function; takes a torch.Generator and yields dicts of arguments, the smallest first
        @exercise.oracle      the right answer, by another way than the learner's: an operator of PyTorch, a loop, a closed form
        @exercise.mistake(s)  a wrong answer that learners really write; s says to them what they have done
        @exercise.call        how the learner's function is called, when not by `function(**arguments)`: for a class, a gradient
        @exercise.picture     draws an input with what came out beside what was expected; returns a figure
    """

    def __init__(self, number, name, tolerance=1e-5):
        if name in EXERCISES:
            raise ValueError(f"two exercises are called {name}")
        self.number, self.name, self.tolerance = number, name, tolerance
        self.mistakes = {}
        self.draw_picture = None
        self.run = lambda function, **arguments: function(**arguments)
        EXERCISES[name] = self

    def inputs(self, function):
        self.draw_inputs = function

    def oracle(self, function):
        self.right = function

    def mistake(self, sentence):
        def keep(function):
            self.mistakes[sentence] = function

        return keep

    def call(self, function):
        self.run = function

    def picture(self, function):
        self.draw_picture = function


class Verdict(NamedTuple):
    """What `judge` found. `message` is one sentence or a few lines for the learner; the rest is of the smallest failing input."""

    passed: bool
    message: str
    mistake: str = ""
    arguments: dict = {}
    got: object = None
    expected: object = None


class Raised(NamedTuple):
    """Stands for the output of a function that raised."""

    kind: str
    message: str


class Changed(NamedTuple):
    """Stands for the output of a function that changed its argument `name` in place."""

    name: str


class NotYet(AssertionError):
    """A check that did not pass. In a notebook it shows its message alone, without the way through this module."""

    def _render_traceback_(self):  # IPython looks for this name
        return [f"✗ {self}"]


def load():
    """Import every chapter's module, which fills EXERCISES."""
    for module in CHAPTERS.values():
        importlib.import_module(f"rlhf_lib.exercises.{module}")


def find(name):
    """The Exercise called `name`. Raises KeyError with the names that there are."""
    load()
    if name not in EXERCISES:
        raise KeyError(f"there is no exercise {name!r}; there are {', '.join(EXERCISES)}")
    return EXERCISES[name]


def draw(name, seed=0):
    """The inputs of an exercise: a list of dicts of arguments, the smallest first, the same for the same seed."""
    return list(find(name).draw_inputs(torch.Generator().manual_seed(seed)))


def answer(name, function, inputs):
    """What `function` makes of each of `inputs`: a list, with Raised or Changed where it raised or wrote into its input."""
    exercise, outputs = find(name), []
    for arguments in inputs:
        given = copy.deepcopy(arguments)
        try:
            torch.manual_seed(0)  # for what draws its own random numbers, such as dropout left on
            output = detached(exercise.run(function, **given))
        except Exception as error:  # whatever a learner's function may raise
            output = Raised(type(error).__name__, str(error))
        else:
            changed = [key for key in arguments if not equal(given[key], arguments[key], 0)]
            output = Changed(changed[0]) if changed else output
        outputs.append(output)
    return outputs


def judge(name, inputs, outputs):
    """Compare `outputs` with the oracle's and, where they differ, with each mistake's. Returns a Verdict."""
    exercise = find(name)
    expected = answer(name, exercise.right, inputs)
    wrong = [place for place in range(len(inputs)) if not equal(outputs[place], expected[place], exercise.tolerance)]
    if not wrong:
        return Verdict(True, f"{exercise.number} {name}: right on {len(inputs)} inputs")
    first = wrong[0]
    found = dict(arguments=inputs[first], got=outputs[first], expected=expected[first])
    if isinstance(outputs[first], Raised) and outputs[first].kind == "NotImplementedError":
        return Verdict(
            False, f"{exercise.number} {name}: not written yet. Write it in the cell above, run that cell, then this one."
        )
    for sentence, mistake in exercise.mistakes.items():
        if all(equal(*pair, exercise.tolerance) for pair in zip(outputs, answer(name, mistake, inputs))):
            return Verdict(False, f"{exercise.number} {name}: {sentence}", mistake=sentence, **found)
    what = difference(outputs[first], expected[first], exercise.tolerance)
    lines = [f"{exercise.number} {name}: {what}. The smallest input that fails:"]
    lines += [f"    {key} = {shown(value)}" for key, value in inputs[first].items()]
    if not isinstance(outputs[first], (Raised, Changed)):
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
        if picture and not isinstance(found.got, (Raised, Changed)) and found.got is not None:
            show(picture, found)
        raise NotYet(found.message) from None
    remember(name)
    print(f"✓ {found.message}")


def show(picture, verdict):
    """Draw what came out beside what was expected; an output too odd to be drawn gets no picture."""
    from IPython.display import display

    try:
        figure = picture(verdict.arguments, verdict.got, verdict.expected)
    except Exception:  # the learner's output may have any shape; the message says what is wrong with it
        return
    display(figure)


# ----------------------------------------------------------------------------------------- comparing outputs


def detached(value):
    """`value` with every tensor in it cut off from its graph."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: detached(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [detached(one) for one in value]
    return value


def equal(a, b, tolerance):
    """Whether two outputs are the same: numbers and tensors to within `tolerance`, a number like a tensor without dimensions."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and not (isinstance(a, Raised) or isinstance(b, Raised)):
        return len(a) == len(b) and type(a) is type(b) and all(equal(*pair, tolerance) for pair in zip(a, b))
    if isinstance(a, Raised) and isinstance(b, Raised):
        return a.kind == b.kind
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key], tolerance) for key in a)
    if is_number(a) and is_number(b):
        a, b = torch.as_tensor(a), torch.as_tensor(b)
        if a.shape != b.shape or (a.dtype == torch.bool) != (b.dtype == torch.bool):
            return False
        return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
    return type(a) is type(b) and bool(a == b)


def is_number(value):
    return isinstance(value, (bool, int, float, torch.Tensor))


def difference(got, expected, tolerance):
    """In a few words, how an output differs from the expected one."""
    if isinstance(got, Raised):
        return f"it raised {got.kind}: {got.message}"
    if isinstance(got, Changed):
        return f"it changed its argument {got.name} in place; make a new tensor instead"
    if got is None:
        return "it returned None; end it with a return"
    if is_number(got) and is_number(expected):
        got, expected = torch.as_tensor(got), torch.as_tensor(expected)
        if got.shape != expected.shape:
            return f"the shape is {tuple(got.shape)}, it should be {tuple(expected.shape)}"
        if (got.dtype == torch.bool) != (expected.dtype == torch.bool):
            return f"the values are {got.dtype}, they should be {expected.dtype}"
        if not got.double().isfinite().all() and expected.double().isfinite().all():
            return "there is an infinity or a NaN in what came out"
        gap = (got.double() - expected.double()).abs()
        off = int((gap > tolerance * (1 + expected.double().abs())).sum())
        return f"{off} of {gap.numel()} values are off, by up to {gap.max():.3g}"
    if type(got) is not type(expected):
        return f"it returned {type(got).__name__}, it should return {type(expected).__name__}"
    if isinstance(got, list) and len(got) != len(expected):
        return f"it returned {len(got)} values, it should return {len(expected)}"
    if isinstance(got, list):
        place = next(i for i, pair in enumerate(zip(got, expected)) if not equal(*pair, tolerance))
        return f"value {place} is wrong: {difference(got[place], expected[place], tolerance)}"
    return "this is not the expected answer"


def shown(value):
    """A value as text, a tensor with its numbers."""
    if isinstance(value, torch.Tensor):
        rounded = value.detach()
        if rounded.is_floating_point():
            rounded = (rounded.double() * 1e5).round() / 1e5 if rounded.isfinite().all() else rounded
        text = str(rounded.tolist()) if value.numel() <= 40 else f"a tensor of shape {tuple(value.shape)}"
        return text
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(shown(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {shown(one)}" for key, one in value.items()) + "}"
    text = repr(value)
    return text if len(text) <= 300 else text[:300] + " ..."


# ----------------------------------------------------------------------------------------- what has been solved

PROGRESS = "progress.json"  # beside the notebooks that one works in


def solved(path=PROGRESS):
    """What has been solved here: a dict of exercise name to the time of its first pass, in seconds since 1970."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return {str(name): float(when) for name, when in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # no file yet, or one that cannot be read: nothing that a learner should have to mend


def remember(name, path=PROGRESS):
    """Note that the exercise `name` passed."""
    known = solved(path)
    if name not in known:
        write_atomic(path, json.dumps({**known, name: round(time.time())}, indent=1).encode())


def progress(path=PROGRESS):
    """A table of all exercises by chapter, as Markdown text: what is solved, and what is left."""
    load()
    done = solved(path)
    rows = ["| chapter | solved | left to do |", "|---|---|---|"]
    for chapter, module in CHAPTERS.items():
        names = [name for name, one in EXERCISES.items() if one.number.split(".")[0] == str(int(chapter))]
        names.sort(key=lambda name: int(EXERCISES[name].number.split(".")[1]))
        left = [name for name in names if name not in done]
        rows.append(
            f"| {chapter} {module.replace('_', ' ')} | {len(names) - len(left)} of {len(names)} | {', '.join(left) or '-'} |"
        )
    return "\n".join(rows)
