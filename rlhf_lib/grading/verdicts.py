"""The verdict on each exercise of a submission: drawn here, answered in the sandbox, judged here, each step on plain data.

The learner's code never runs in this process. What comes back from it is judged in a process aside, which may break without harm.
"""

import contextlib
import functools
import math
from typing import NamedTuple

from rlhf_lib import exercises
from rlhf_lib.corpus import DATA
from rlhf_lib.exercises.build import load_optimizers
from rlhf_lib.exercises.progress import PROGRESS, number_of, times_in, tries_in
from rlhf_lib.exercises.surroundings import LIMIT
from rlhf_lib.exercises.verdicts import told
from rlhf_lib.grading.answers import Answer, Code, worked_code
from rlhf_lib.grading.aside import AsideError, aside
from rlhf_lib.grading.jail import Limits
from rlhf_lib.grading.notebook import LONG, Cell, cells_of, decoded
from rlhf_lib.grading.similar import shape
from rlhf_lib.grading.submissions import UnreadableError
from rlhf_lib.grading.wire import pack, unpack
from rlhf_lib.grading.worker import STARTING
from rlhf_lib.grading.worlds import Worlds

SITTING = 240  # minutes between two passes, at most, that somebody worked through
NOTEBOOK = 0  # the seed of the learners' own checks
RIGHT, WRONG, UNWRITTEN, MISSING, SYNTAX, STOPPED = "right", "wrong", "not written", "missing", "syntax error", "stopped"
ENDS = {
    "late": "it was stopped after {seconds:g} seconds, without an end in sight",
    "memory": "it was stopped: it takes more than {memory} MB of memory",
    "large": "what it returns is far too large",
    "died": "its process ended before it returned anything",
}


class Result(NamedTuple):
    """What became of one exercise.

    verdict: one of the six words above. mistake: its name, a sentence, or "". message: for the learner, of the published seed.
    passed, tried: probes of a build; of another exercise 1 or 0, of 1. note: for the instructor. shape, size: of its code, by
    which answers are compared (similar.py).
    """

    exercise: str
    number: str
    verdict: str
    mistake: str = ""
    message: str = ""
    passed: int = 0
    tried: int = 1
    note: str = ""
    shape: str = ""
    size: int = 0


class Survey(NamedTuple):
    """cells: of all files, the older first. exercises: of the chapters that were handed in. faults: sentences on files. work: of
    the student's own `progress.json`, see `work_in`. texts: {investigation: what they write of it}."""

    cells: list
    exercises: list
    faults: list
    work: dict = {}
    texts: dict = {}


def survey(submission, names=None):
    """Read what a student handed in. A file that cannot be read is a fault, and costs nothing else.

    Args:
        names: the exercises that count; all unless given.
    """
    cells, faults, chapters, texts = [], list(submission.skipped), set(), {}
    notes = [file for file in submission.files if file.name == PROGRESS]
    files = [file for file in submission.files if file not in notes] or submission.files
    order = sorted(files, key=lambda file: (file.name.lower().endswith(".ipynb"), file.rank))
    for file in order:
        try:
            found, there, more = aside(functools.partial(read, file))
        except AsideError as error:
            faults.append(f"{file.name}: {error}")
            continue
        if found is None:
            faults.append(f"{file.name}: {there}")
        else:
            cells += [Cell(*cell) for cell in found]
            chapters |= set(there)
            texts.update(more)
    exercises.load()
    known = [one for one in (*exercises.EXERCISES, *exercises.BUILDS) if names is None or one in names]
    work = {}
    for file in sorted(notes, key=lambda file: file.rank):
        with contextlib.suppress(AsideError):
            work = aside(functools.partial(work_in, file)) or work
    return Survey(cells, sorted((one for one in known if number_of(one)[0] in chapters), key=number_of), faults, work, texts)


def work_in(file):
    """{exercise: [tries, minutes]} of a student's `progress.json`: None where it does not say. No verdict leans on it.

    The minutes are those since the exercise that passed before, where both fell into one SITTING.
    """
    try:
        text = decoded(file.read())[:LONG]
    except UnreadableError:
        return {}
    known = {*exercises.EXERCISES, *exercises.BUILDS}
    tries = {name: count for name, count in tries_in(text).items() if name in known and 0 < count < 10_000}
    passed = sorted((when, name) for name, when in times_in(text).items() if name in known)
    found = {name: [count, None] for name, count in tries.items()}
    for (before, _), (when, name) in zip([(-math.inf, ""), *passed], passed):
        minutes = (when - before) / 60
        found[name] = [tries.get(name), round(minutes, 1) if 0 < minutes <= SITTING else None]
    return found


def read(file):
    """[cells, chapters, texts] of a file, or [None, why it cannot be read, {}]."""
    try:
        cells = cells_of(file.name, file.read() if file.name.lower().endswith((".ipynb", ".py")) else b"no cells")
    except UnreadableError as error:
        return [None, str(error), {}]
    cells = [cell for cell in cells if cell.code or cell.name in exercises.EXERCISES or cell.name in exercises.BUILDS]
    code = Code(cells)
    return [cells, sorted(code.chapters()), code.texts()]


@functools.lru_cache(maxsize=256)
def drawn(name, seed):
    return exercises.draw(name, seed)


def grade(found, box, seed, timeout=90.0, known=(), names=None):
    """The Results of a Survey, one after another, the earlier exercises first.

    Args:
        box: the Sandbox.
        seed: of the inputs that are drawn.
        timeout: seconds of one question; a probe of a build has its own.
        known: Results that there are already.
        names: the exercises, in order; those of the survey unless given.
    """
    there = {result.exercise: result for result in known}
    names = found.exercises if names is None else names
    answers = answers_of(found.cells, [name for name in names if name not in there])
    for name in names:
        if name not in there:
            there[name] = one_result(found.cells, name, answers[name], box, seed, timeout, there)
        yield there[name]


def answers_of(cells, names, ours=()):
    """{name: [an Answer, its shape]}, read in a process aside; in the place of one that cannot be read, a sentence."""

    def read():
        code = Code(cells)
        return {name: with_shape(code.answer(name, ours)) for name in names}

    try:
        return {name: [Answer(*answer), form] for name, (answer, form) in aside(read).items()}
    except AsideError as error:
        if len(names) == 1:
            return {names[0]: f"the cells cannot be read ({error})"}
        return {name: answers_of(cells, [name], ours)[name] for name in names}


def one_result(cells, name, answer, box, seed, timeout, there):
    """The Result of one exercise; `answer` is of `answers_of`."""
    number = exercises.find(name).number
    if isinstance(answer, str):
        return Result(name, number, SYNTAX, message=answer, tried=tried(name))
    answer, form = answer
    if answer.fault:
        verdict, sentence = answer.fault
        return Result(name, number, verdict, sentence if verdict == SYNTAX else "", sentence, tried=tried(name))
    notes = [f"takes {', '.join(answer.library)} from the library"] if answer.library else []
    notes += [f"names {', '.join(answer.odd)}, which no exercise needs: read it"] if answer.odd else []
    note = "; ".join(notes)
    result = tried_out(name, answer, box, seed, timeout)
    wrong = [other for other in answer.own if other in there and there[other].verdict != RIGHT]
    if result.verdict != RIGHT and wrong:
        other = answers_of(cells, [name], wrong)[name]
        again = result if isinstance(other, str) else tried_out(name, other[0], box, seed, timeout)
        if again.verdict == RIGHT:
            result = again
            note = "; ".join(filter(None, [note, f"right with the course's {', '.join(wrong)} in the place of theirs"]))
    return result._replace(note=note, shape=form[0], size=form[1])


def with_shape(answer):
    return [answer, shape([source for _, source in answer.code])]


def tried(name):
    return len(exercises.BUILDS[name].probes) if name in exercises.BUILDS else 1


def tried_out(name, answer, box, seed, timeout):
    """The Result of running an answer in the sandbox."""
    number, probes = exercises.find(name).number, exercises.BUILDS[name].probes if name in exercises.BUILDS else None
    passed, fault = 0, None
    if probes is None:
        fault = attempt(name, answer, box, drawn(name, seed), timeout)
    else:
        for place, inputs in enumerate(drawn(name, seed)):
            probe = probes[inputs["probe"]]
            fault = attempt(name, answer, box, [inputs], probe.patience + STARTING)
            if fault and probe.seconds > LIMIT:  # it may be timed, and this machine was busy
                fault = attempt(name, answer, box, [inputs], probe.patience + STARTING)
            if fault:
                break
            passed = place + 1
    if not fault:
        return Result(name, number, RIGHT, passed=tried(name), tried=tried(name))
    long = probes is not None and [*probes.values()][passed].seconds > LIMIT
    if fault["verdict"] == WRONG and not long:  # what a long probe says holds no inputs, and it is not run once more
        inputs = drawn(name, NOTEBOOK)
        shown = attempt(name, answer, box, inputs if probes is None else inputs[passed : passed + 1], timeout)
        hidden = f"{number} {name}: it passes the check of the notebook, and is wrong on other inputs"
        fault["message"] = shown["message"] if shown and shown["verdict"] == WRONG else hidden
        if probes is not None and fault["message"] == hidden:
            fault["mistake"] = f"wrong in the probe “{[*probes][passed]}”"
    return Result(name, number, fault["verdict"], fault["mistake"], fault["message"], passed, tried(name))


def attempt(name, answer, box, inputs, seconds):
    """None where the answer is right on these inputs; else its verdict, mistake and message."""
    build = exercises.BUILDS.get(name)
    tasks, hidden = (build.tasks(inputs[0]), [DATA / one for one in build.hides]) if build else (None, [])
    request = {
        "name": name,
        "inputs": [build.shown(one) for one in inputs] if build else inputs,
        "tasks": len(tasks or ()),
        "asked": answer.asked,
        "code": answer.code,
        "own": answer.own,
        "course": answer.course,
        "worked": worked_code(answer, name),
    }
    limits = Limits(seconds=seconds)
    with contextlib.closing(Worlds(tasks)) if tasks else contextlib.nullcontext() as worlds:
        how, content = box.ask(pack(request), limits, hidden, worlds)
    if how != "answered":
        kind = how.partition(":")[0]
        sentence = ENDS.get(kind, ENDS["died"]).format(seconds=limits.seconds, memory=limits.memory >> 20)
        detail = how.removeprefix(f"{kind}: ") if ": " in how else ""  # the signal's name
        return {"verdict": STOPPED, "mistake": sentence, "message": sentence + (f" ({detail})" if detail else "")}
    load_optimizers()  # which some oracles need: here once, else in each process aside
    try:
        return aside(lambda: judged(name, inputs, content, tasks))
    except AsideError as error:
        sentence = "what it returns cannot be judged"
        return {"verdict": WRONG, "mistake": sentence, "message": f"{sentence} ({error})"}


def judged(name, inputs, content, tasks=None):
    """See `attempt`; `content` is what the sandbox wrote. `tasks` have seen what its process did in them."""
    try:
        found = unpack(content)
        if type(found) is not dict or not ({"outputs"} == found.keys() or {"fault"} == found.keys()):
            raise ValueError("something else came back than an answer")
        if "fault" in found:
            fault = str(found["fault"])[:400]
            return {"verdict": WRONG, "mistake": "its cells do not run", "message": f"its cells do not run: {fault}"}
        if type(found["outputs"]) is not list:
            raise ValueError("something else came back than a list")
        if tasks and not any(exercises.is_record(one) for one in found["outputs"]):
            found["outputs"] = [{"made": one["made"], "seen": [task.seen() for task in tasks]} for one in found["outputs"]]
    except (KeyError, TypeError, ValueError) as error:
        return {
            "verdict": WRONG,
            "mistake": "what it returns cannot be read",
            "message": f"what it returns cannot be read: {error}",
        }
    verdict = exercises.judge(name, inputs, found["outputs"])
    if verdict.passed:
        return None
    if any(exercises.is_record(one, "unwritten") for one in found["outputs"]):
        return {"verdict": UNWRITTEN, "mistake": "", "message": "it is not written yet"}
    if any(exercises.is_record(one, "late") for one in found["outputs"]):
        sentence = ENDS["late"].format(seconds=LIMIT if name in exercises.EXERCISES else found["outputs"][0]["seconds"])
        return {"verdict": STOPPED, "mistake": sentence, "message": sentence}
    message = verdict.message
    if verdict.arguments and "\n" not in message:  # of a mistake that has a name; here its smallest input is shown too
        sentence = message.partition(f"{name}: ")[2]
        message = told(f"{exercises.find(name).number} {name}", sentence, verdict.arguments, verdict.got, verdict.expected)
    return {"verdict": WRONG, "mistake": (verdict.mistake or "another mistake")[:300], "message": message[:4000]}
