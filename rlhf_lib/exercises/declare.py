"""The declaration of an exercise, and where all of them are found.

def gae_formula(rewards, values, gamma, lam, mask, *, use_mask=True): ...

gae = Exercise(
    "7.3", "gae",
    draw=draw_gae,          # a generator function: takes a torch.Generator, yields dicts of arguments, the smallest first
    right=gae_by_matrix,    # the oracle: the right answer, by another way than the learner's
    formula=gae_formula,    # what wrong answers are made of by options; without options it equals `right`
    mistakes={
        "the mask is not used: padding is counted": {"use_mask": False},      # options of the formula
        "these are returns, not advantages": returns_alone,                   # a function
        "gamma or lambda is missing": ({"gamma": 1.0}, {"lam": 1.0}),         # several ways of making one mistake
    },
)  # fmt: skip
"""

import functools
import importlib
from pathlib import Path

from rlhf_lib.files import RunError

CHAPTERS = {  # the first module of each
    "00": "ch00_start_here",
    "01": "ch01_text", "02": "ch02_transformer", "03": "ch03_pretraining", "04": "ch04_sampling", "05": "ch05_labels",
    "06": "ch06_reward_model", "07": "ch07_policy_gradients", "08": "ch08_rlhf", "09": "ch09_over_optimisation",
    "10": "ch10_comparisons",
    "11": "ch11_assistant",
    "12": "ch12_beyond_ppo",
    "13": "ch13_bug_hunt",
}  # fmt: skip
EXERCISES = {}  # name -> Exercise, filled by the chapters' modules
INVESTIGATIONS = {}  # "2.A" -> Investigation
BUILDS = {}  # name -> Build, filled by the modules build01_... and so on
LOADED = []  # once those modules are all in: when their folder was last changed


class Exercise:
    """One exercise: what is drawn, what is right, and what goes wrong.

    Args:
        number: chapter and place, such as "2.3".
        name: of the function or class that the learner writes; unique in the course.
        draw: a generator function; takes a torch.Generator and yields dicts of arguments, the smallest first.
        right: the right answer, by another way than the learner's: an operator of PyTorch, a loop, a closed form. Where the
            right answer is to raise, it returns `plain.raised("ValueError")`: what it raises itself is an error of the check.
        mistakes: {sentence: what}: wrong answers that learners really write; the sentence says to them what they have done.
            `what` is a function like the learner's, a dict of keyword options for `formula`, or a tuple of several of these.
        formula: a function like the learner's with keyword options; without options it equals `right`.
        call: call(function, **arguments): how the learner's function is called, when not by `function(**arguments)`: for a
            class, a gradient, what is left behind. A dict with a key for each thing that is compared is a good thing to return.
        picture: picture(arguments, got, expected) draws what came out beside what was expected; returns a figure.
        tolerance: how far a float may be off, absolutely and relatively.

    Raises:
        ValueError: two exercises of one name, or options without a formula.
    """

    def __init__(self, number, name, *, draw, right, mistakes, formula=None, call=None, picture=None, tolerance=1e-5):
        if name in EXERCISES:
            raise ValueError(f"two exercises are called {name}")
        self.number, self.name, self.tolerance = number, name, tolerance
        self.draw_inputs, self.right, self.formula, self.draw_picture = draw, right, formula, picture
        self.run = call or (lambda function, **arguments: function(**arguments))
        self.mistakes = {sentence: self.functions(what) for sentence, what in mistakes.items()}
        EXERCISES[name] = self

    def functions(self, what):
        """The functions that a row of the table of mistakes stands for: a list."""
        if isinstance(what, (list, tuple)):
            return [function for one in what for function in self.functions(one)]
        if isinstance(what, dict):
            if self.formula is None:
                raise ValueError(f"{self.name} has options {what} for a mistake, but no formula")
            return [functools.partial(self.formula, **what)]
        return [what]


class Investigation:
    """An investigation, such as "2.A", and its title. Raises ValueError when there are two of one number."""

    def __init__(self, number, title):
        if number in INVESTIGATIONS:
            raise ValueError(f"two investigations are called {number}")
        self.number, self.title = number, title
        INVESTIGATIONS[number] = self


def load():
    """Import every chapter's modules, which fills EXERCISES and BUILDS.

    Raises:
        RunError: a module has come since they were all in, and does not go with the others.
    """
    folder = Path(__file__).parent
    at = folder.stat().st_mtime_ns  # looked at first: what comes while the modules are imported is found the next time
    if at in LOADED:
        return
    modules = [path.stem for kind in ("ch", "build") for path in sorted(folder.glob(f"{kind}[0-9]*.py"))]
    for module in modules:
        try:
            importlib.import_module(f"rlhf_lib.exercises.{module}")
        except (ImportError, ValueError):
            if LOADED:
                raise RunError("the course's files have changed since this notebook was opened: restart the kernel") from None
            raise
    LOADED[:] = [at]


def find(name):
    """The Exercise or Build called `name`. Raises KeyError with the names that there are."""
    load()
    if name in BUILDS:
        return BUILDS[name]
    if name not in EXERCISES:
        raise KeyError(f"there is no exercise {name!r}; there are {', '.join([*EXERCISES, *BUILDS])}")
    return EXERCISES[name]
