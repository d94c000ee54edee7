"""The three steps of a check on plain data, each of which can be taken in another process: draw, answer, judge."""

import contextlib
import os
import re
import threading
from typing import NamedTuple

from rlhf_lib.exercises import frame, relations
from rlhf_lib.exercises.build import Build, try_out
from rlhf_lib.exercises.compare import alike, difference, equal, like, shown
from rlhf_lib.exercises.declare import find
from rlhf_lib.exercises.frame import one_answer, right_answer
from rlhf_lib.exercises.plain import is_record, plain
from rlhf_lib.exercises.surroundings import LIMIT, settled

LINES = 20  # of a message
SILENT = 3.0  # seconds that the search for a mistake may take without a word


def probes(count):
    return "1 probe" if count == 1 else f"{count} probes"


class Verdict(NamedTuple):
    """What `judge` found. `message` is one sentence or a few lines for the learner; the rest is of the smallest failing input."""

    passed: bool
    message: str
    mistake: str = ""
    arguments: dict = {}
    got: object = None
    expected: object = None


def draw(name, seed=0):
    """The inputs of an exercise: a list of dicts of arguments, the smallest first; of a build, one dict for each probe.

    Raises:
        KeyError: there is no such exercise.
        RuntimeError: the exercise's own draw raised.
    """
    exercise = find(name)
    return exercise.draw(seed) if isinstance(exercise, Build) else frame.draw(name, seed)


def answer(name, function, inputs, tasks=None):
    """What `function` makes of each of `inputs`: a list of plain data (plain.py), with records where it raised, was too slow, ...

    A call may take LIMIT seconds, and all calls together TOTAL; a probe of a build as long as the probe says. `tasks`: see
    Build.answer.
    """
    exercise = find(name)
    if isinstance(exercise, Build):
        return [exercise.answer(function, one, tasks) for one in inputs]
    return frame.answer(name, function, inputs)


def judge(name, inputs, outputs, say=lambda line: None):
    """Compare `outputs` with the oracle's. Where they differ, look for the mistake whose outputs they are, then for a relation.

    Of a build: the sentence of the first probe that fails.

    say: called with a line where that search takes longer than SILENT.

    Returns a Verdict. Raises RuntimeError when the oracle itself goes wrong.
    """
    exercise = find(name)
    if not isinstance(exercise, Build):
        with settled():
            return judged(exercise, inputs, outputs, say)
    if len(outputs) != len(inputs):
        return Verdict(False, f"{exercise.number} {name}: there are {len(outputs)} outputs for {len(inputs)} inputs")
    for one, output in zip(inputs, outputs):
        fault = exercise.fault(one, plain(output, trusted=True))
        if fault:
            return failed(exercise, one["probe"], fault)
    return Verdict(True, f"{exercise.number} {name}: does what it must in {probes(len(inputs))}")


def failed(build, probe, sentence):
    place = "" if sentence.startswith("not written yet") else f", {probe}"
    return Verdict(False, f"{build.number} {build.name}{place}: {sentence}", mistake=sentence)


@contextlib.contextmanager
def said_after(seconds, say, line):
    """Says a line once what is done inside takes longer than that."""
    timer = threading.Timer(seconds, say, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def judged(exercise, inputs, outputs, say):
    """See `judge`; the surroundings are settled."""
    name = exercise.name
    title = f"{exercise.number} {name}"
    expected = [right_answer(exercise, arguments, tuples=True) for arguments in inputs]
    outputs = [plain(one, trusted=True) for one in outputs]
    if len(outputs) != len(inputs):
        return Verdict(False, f"{title}: there are {len(outputs)} outputs for {len(inputs)} inputs")
    wrong = [place for place in range(len(inputs)) if not equal(outputs[place], expected[place], exercise.tolerance)]
    if not wrong:
        return Verdict(True, f"{title}: right on {len(inputs)} input{'s' if len(inputs) != 1 else ''}")
    first = wrong[0]
    found = dict(arguments=inputs[first], got=outputs[first], expected=expected[first])
    if is_record(outputs[first], "unwritten"):
        return Verdict(False, f"{title}: not written yet. Write it in the cell above, run that cell, then this one.")
    with said_after(SILENT, say, "not right yet; looking for the likely cause ..."):
        sentence = cause(exercise, inputs, outputs, wrong)
        if sentence:
            return Verdict(False, f"{title}: {sentence}", mistake=sentence, **found)
        relation = relations.find(exercise, inputs, outputs, expected)
    what = difference(outputs[first], expected[first], exercise.tolerance)
    if re.match(rf"it raised TypeError: (\S+\.)?{name}\(\) got an unexpected keyword argument", what):
        what += ": the check calls it with the names that the stub gives to its arguments, so keep them"
    inner = what.split(" is wrong: ", 1)[-1]  # which part is wrong stands in the relation
    sentence = f"{relation}: {inner}" if relation.endswith("is wrong") else relation or what
    return Verdict(False, told(title, sentence, **found), mistake=relation, **found)


def cause(exercise, inputs, outputs, wrong):
    """The sentence of the first named mistake whose outputs these are; "" if there is none. wrong: the places that are wrong."""
    order = wrong + [place for place in range(len(inputs)) if place not in wrong]  # most mistakes differ at the first of them

    def made_by(mistake):
        for place in order:
            if not alike(outputs[place], one_answer(exercise, mistake, inputs[place], trusted=True), exercise.tolerance):
                return False
        return True

    return next((sentence for sentence, made in exercise.mistakes.items() if any(made_by(mistake) for mistake in made)), "")


def told(title, sentence, arguments, got, expected):
    """The message for a learner: what is wrong, and the smallest input that shows it."""
    end = [] if is_record(got) else [f"came out: {shown(like(got, expected))}", f"expected: {shown(expected)}"]
    room = LINES - 1 - len(end)
    lines = [f"    {key} = {shown(value)}" for key, value in arguments.items()]
    lines = lines if len(lines) <= room else [*lines[: room - 1], "    ..."]
    stop = "" if sentence.endswith("?") else "."
    return "\n".join([f"{title}: {sentence}{stop} The smallest input that fails:", *lines, *end])


def verdict(name, function, seed=0):
    """The three steps in one: draw inputs, take the answers of `function`, judge them. Returns a Verdict.

    Of a build, the probes after the first that fails are not tried, and each that passes says so. At the smoke preset, which
    only tries whether everything runs, probes that may take longer than LIMIT are left out.
    """
    exercise = find(name)
    if isinstance(exercise, Build):
        most = LIMIT if os.environ.get("RLHF_PRESET") == "smoke" else float("inf")
        probe, sentence = try_out(exercise, function, seed, most, say=print)
        if sentence:
            return failed(exercise, probe, sentence)
        tried = sum(one.seconds <= most for one in exercise.probes.values())
        long = len(exercise.probes) - tried
        rest = f" ({long} long one{'s' * (long > 1)} left out at the smoke preset)" if long else ""
        return Verdict(True, f"{exercise.number} {name}: does what it must in {probes(tried)}{rest}")
    inputs = draw(name, seed)
    return judge(name, inputs, answer(name, function, inputs), say=print)
