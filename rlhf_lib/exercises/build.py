"""Build it: a large exercise that is judged by what the learner's program does, one probe after another, cheap ones first.

A probe is three functions on plain data. `draw` makes its inputs; `run` uses the learner's function or class, in the
learner's process; `judge` says, elsewhere if need be, what is wrong with what came out:

gpt = Build("2.10", "GPT", [
    Probe("the future is hidden", draw_tokens, run_two_futures, judge_the_first_half),
    Probe("learns to reverse", draw_task, train_and_sample, judge_accuracy, seconds=120),
])
"""  # fmt: skip

import contextlib
import copy
import functools
import inspect
import time
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from rlhf_lib.exercises.compare import equal
from rlhf_lib.exercises.declare import BUILDS, EXERCISES
from rlhf_lib.exercises.frame import is_stub, message
from rlhf_lib.exercises.plain import described, is_record, late, plain, raised, unlike_card, unwritten
from rlhf_lib.exercises.surroundings import LIMIT, TimeUp, limited, settled

PATIENCE = 60.0  # seconds for a cheap probe, which takes one or two on a machine with nothing else to do
DEFAULTS = {  # of a card's signature: what an argument is where it is not given
    "pretrain": {"folder": None, "every": 50},
    "generate": {"temperature": 1.0, "end_token": 0},
    "rlhf": {"max_kl": 10.0, "epochs": 2, "minibatch": None, "clip": 0.2, "report": None},
    "train_assistant": {
        "gamma": 1.0, "lam": 0.95, "clip": 0.2, "value_clip": 0.2, "epochs": 2, "minibatch": 16, "max_kl": 10.0, "report": None,
    },
    "policy_gradient": {"epsilon": 0.2, "expected": 0.0, "deviation": 1.0},
    "learn": {"epochs": 1, "minibatch": 4, "max_kl": 10.0, "report": None},
}  # fmt: skip


class Probe(NamedTuple):
    """One thing that a build must do.

    name: what holds when it passes, in a few words: "the future is hidden".
    draw: draw(generator) gives a dict of arguments, plain data (plain.py).
    run: run(built, **arguments) makes the learner's function or class work, and returns what is judged: plain data.
    judge: judge(output, **arguments) returns "" where all is well, else one sentence that says what the failure means.
    seconds: how long `run` may take; a cheap probe, one that says nothing of it, has PATIENCE.
    secret: names of arguments that `judge` knows and `run` is not given: a process that holds the answer may return it.
    tasks: tasks(**arguments) gives what the learner's program acts in, a list of `Task` or `Exam` (probe_envs.py), which stay
        where the judge is. `run` is called as run(built, tasks, **arguments), and `judge` gets {"made": what it returned,
        "seen": what each task saw}.
    """

    name: str
    draw: object
    run: object
    judge: object
    seconds: float = LIMIT
    secret: tuple = ()
    tasks: object = None

    @property
    def patience(self):
        """The seconds after which `run` is stopped. Where it acts in tasks, each step may wait for a busy grader."""
        if self.seconds != LIMIT:
            return self.seconds
        return 3 * PATIENCE if self.tasks else PATIENCE


class Build:
    """A large exercise: its number, the name of what the learner writes, and its probes in the order in which they are tried.

    kept: whether what passes belongs into the learner's file, `my_rlhf.py`.
    hides: folders of data/ that hold what it asks for, such as a model that would pass; a grader shows them to no answer.

    Raises:
        ValueError: two exercises of one name, or two probes of one name.
    """

    def __init__(self, number, name, probes, kept=True, hides=()):
        if name in EXERCISES or name in BUILDS:
            raise ValueError(f"two exercises are called {name}")
        self.number, self.name, self.kept, self.hides = number, name, kept, hides
        self.probes = {probe.name: probe for probe in probes}
        if len(self.probes) < len(probes):
            raise ValueError(f"{number} {name} has two probes of one name")
        BUILDS[name] = self

    def draw(self, seed=0):
        """A list of dicts, one for each probe: its name as `probe`, and its arguments. The same for the same seed."""
        inputs = []
        for place, probe in enumerate(self.probes.values()):
            with settled():
                inputs.append({"probe": probe.name, **probe.draw(torch.Generator().manual_seed(1000 * seed + place))})
        return inputs

    def shown(self, inputs):
        """One probe's inputs without what is secret."""
        return {name: value for name, value in inputs.items() if name not in self.probes[inputs["probe"]].secret}

    def tasks(self, inputs):
        """The tasks of one probe's inputs, a list; None where it has none."""
        given = copy.deepcopy(inputs)
        probe = self.probes[given.pop("probe")]
        return probe.tasks(**given) if probe.tasks else None

    def answer(self, built, inputs, tasks=None):
        """What comes of one probe's inputs, as plain data; a record where it raised, was too slow or is not written yet.

        tasks: those of the probe, where they are in another process; what they saw is then None.
        """
        wrong = wrong_default(built, DEFAULTS.get(self.name, {}))
        if wrong:
            return unlike_card(wrong)
        given = copy.deepcopy(self.shown(inputs))
        probe, far = self.probes[given.pop("probe")], tasks is not None
        tasks = tasks if far else self.tasks(inputs)
        more = [] if tasks is None else [tasks]
        with settled(), bar(f"{self.number} {probe.name}", probe.seconds):
            load_optimizers()
            output, error = limited(lambda: plain(probe.run(built, *more, **given)), probe.patience)
        if isinstance(error, TimeUp):
            return late(probe.patience)
        if error is not None:
            return unwritten() if is_stub(built, error) else raised(type(error).__name__, message(error))
        if probe.tasks is None or is_record(output):
            return output
        return {"made": output, "seen": None if far else [task.seen() for task in tasks]}

    def fault(self, inputs, output):
        """What is wrong with the output of one probe: one sentence, or "" if nothing is."""
        given = dict(inputs)
        probe = self.probes[given.pop("probe")]
        if is_record(output, "unwritten"):
            return "not written yet. Write it in the cell above, run that cell, then this one"
        if is_record(output, "late"):
            busy = "on a busy machine, try again after torch.set_num_threads(1)"
            loop = "a Python loop over single numbers, in it or in what it calls, may be the cause"
            return f"it was stopped after {output['seconds']:g} seconds, without an end in sight: {loop}; {busy}"
        if is_record(output, "raised"):
            return f"it raises {output['kind']}" + (f": {output['message']}" if output["message"] else "")
        if is_record(output, "unlike card"):
            return output["how"]
        if is_record(output):
            return f"it returns {output.get('what', 'nothing that can be read')}"
        try:
            with settled():
                return probe.judge(output, **given)
        except Exception as error:  # what a learner's program returned may have any form
            return f"what it returns cannot be judged ({type(error).__name__}: {message(error)}): look at the contract again"


def wrong_default(function, defaults):
    """A sentence on the first argument whose default is not what it should be; "" where there is none."""
    found = inspect.signature(function).parameters if inspect.isfunction(function) else {}
    for name, value in defaults.items():
        default = found[name].default if name in found else value
        if default is inspect.Parameter.empty:
            return f"{name} has to be given; by the card it is {value} where it is not"
        if not equal(plain(default), value, 0):
            return f"{name} is {described(default)} where it is not given; by the card it is {value}"
    return ""


@functools.cache
def load_optimizers():
    """PyTorch loads hundreds of modules with a session's first optimizer: seconds that no probe should be charged."""
    torch.optim.SGD([torch.zeros(1)], lr=1.0)


def try_out(build, built, seed=0, most=float("inf"), say=lambda line: None):
    """Run the probes that may take at most `most` seconds, one by one, up to the first that fails; see `Verdict` for the result.

    say: called with a line for each probe that passed.

    Returns:
        (the name of the probe that failed, its sentence); ("", "") when all pass.
    """
    for inputs in build.draw(seed):
        if build.probes[inputs["probe"]].seconds > most:
            continue
        start = time.perf_counter()
        fault = build.fault(inputs, build.answer(built, inputs))
        if fault:
            return inputs["probe"], fault
        say(f"  ✓ {inputs['probe']} ({time.perf_counter() - start:.1f} s)")
    return "", ""


# ----------------------------------------------------------------------------------------- how far a long probe is

shown = []  # the bar of the probe that is running, if it is a long one


@contextlib.contextmanager
def bar(title, seconds):
    """A progress bar for a probe that may take longer than LIMIT; `tick` moves it."""
    if seconds <= LIMIT:
        yield
        return
    with tqdm(total=1.0, desc=title, leave=False, bar_format="{desc} {bar} {percentage:3.0f} % done{postfix}") as made:
        shown.append(made)
        try:
            yield
        finally:
            shown.pop()


def tick(share, note=""):
    """Called in a probe's `run`: `share` of its work (0 to 1) is done; `note` stands beside the bar."""
    if shown:
        shown[-1].n = min(max(share, 0.0), 1.0)
        shown[-1].set_postfix_str(note)
