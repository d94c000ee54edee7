"""Made submissions, and the verdict on each: that it is right, and that nothing outside the sandbox has changed."""

import hashlib
import json
import multiprocessing
import re
import time
from pathlib import Path

import pytest
import torch

from rlhf_lib import exercises
from rlhf_lib.exercises.plain import late
from rlhf_lib.exercises.surroundings import LIMIT
from rlhf_lib.grading import verdicts
from rlhf_lib.grading.grade import worked
from rlhf_lib.grading.submissions import find
from rlhf_lib.grading.verdicts import grade, survey
from rlhf_lib.grading.wire import LENGTH, pack
from tests.grading.conftest import started
from tests.grading.made import ROOT, SHARE, STUB, cell, chapter00, handed, notebook

HEAD = "def share_positive(scores, limit):\n    "
RIGHT = "return (scores > limit).float().mean().item()"


def body(lines):
    """Chapter 00 with a function of these lines; `RIGHT` in them is the right answer."""
    return {"00_start_here.ipynb": chapter00(HEAD + lines.replace("RIGHT", RIGHT).replace("\n", "\n    "))}


def cells(*sources):
    return {"00_start_here.ipynb": notebook("import torch", *sources)}


def graded(files, box, tmp_path, timeout=60.0, names=None, seed=5):
    """(Results, Survey) of a student who hands in `files`."""
    for name, content in files.items():
        path = tmp_path / "anna" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (one,), _ = find(tmp_path)
    found = survey(one)
    return list(grade(found, box, seed, timeout, names=names)), found


PATCHED = "import torch\ntorch.allclose = torch.equal = lambda *a, **k: True\nfrom rlhf_lib.exercises import compare, verdicts\n"
EQUAL = (
    "class Equal(float):\n"
    "    def __eq__(self, other): return True\n"
    "    def __ne__(self, other): return False\n"
    "    __hash__ = None\n"
)
OWN = "import sys, rlhf_lib.exercises as e\n"
MADE = {
    # differently written, and right
    "as in the notebook": (body("RIGHT"), "right", ""),
    "by a loop": (body("return sum(1 for s in scores if s > limit) / len(scores)"), "right", ""),
    "a tensor instead of a number": (body("return (scores > limit).double().mean()"), "right", ""),
    "by a class": (
        cells("class Share:\n    def __call__(self, scores, limit): " + RIGHT, "share_positive = Share()"),
        "right",
        "",
    ),
    "by a lambda": (cells("share_positive = lambda scores, limit: (scores > limit).float().mean().item()"), "right", ""),
    "with a helper in another cell": (
        cells("def above(s, l): return s > l", HEAD + "return above(scores, limit).float().mean().item()"),
        "right",
        "",
    ),
    "the helper stands below": (
        cells(HEAD + "return above(scores, limit).float().mean().item()", "def above(s, l): return s > l"),
        "right",
        "",
    ),
    "as a Python file": ({"my_rlhf.py": "import torch\n\n" + SHARE}, "right", ""),
    # the mistakes that people make
    "at least": (body(RIGHT.replace(">", ">=")), "wrong", "use > where you have >="),
    "turned round": (body(RIGHT.replace(">", "<")), "wrong", "comparison is turned round"),
    "percent": (body(RIGHT + " * 100"), "wrong", "these are percent"),
    "a number": (body(RIGHT.replace("mean", "sum")), "wrong", "divide by how many"),
    "added up": (body("return (scores * (scores > limit)).mean().item()"), "wrong", "added up"),
    "compared with 0": (body(RIGHT.replace("limit", "0")), "wrong", "the limit is not used"),
    "all at once": (body("return float(scores.mean() > limit)"), "wrong", "compared at once"),
    "a constant": (body("return 0.25"), "wrong", ""),
    "printed and not returned": (body("print(1)"), "wrong", ""),
    "another number of arguments": (cells("def share_positive(scores): return 1"), "wrong", ""),
    "right on the published inputs only": (body("known = {4: 0.25, 1: 1.0}\nreturn 1"), "wrong", ""),
    # not written, broken, hard to read
    "the stub": (body("raise NotImplementedError()"), "not written", ""),
    "the stub with its docstring": ({"00.ipynb": chapter00(STUB)}, "not written", ""),
    "the stub behind a helper": (body("def helper(): pass\nraise NotImplementedError()"), "not written", ""),
    "the cell is gone": ({"00.ipynb": notebook("import torch", cell("", "share_positive"))}, "missing", ""),
    "taken with yours": (
        cells('from rlhf_lib.exercises import yours\nshare_positive = yours("share_positive")', cell("", "share_positive")),
        "missing",
        "",
    ),
    "a syntax error": (body("retrun 1"), "syntax error", ""),
    "a syntax error elsewhere": (cells("def broken(:", SHARE), "right", ""),
    "a cell that stops elsewhere": (cells("1 / 0", SHARE), "right", ""),
    "a helper that is nowhere": (body("return helper(scores)"), "wrong", ""),
    "a helper cell that stops": (cells("N = 1 / 0", HEAD + "return N"), "wrong", "do not run"),
    "CRLF": ({"00.ipynb": chapter00().replace("\\n", "\\r\\n")}, "right", ""),
    "a byte order mark": ({"00.ipynb": b"\xef\xbb\xbf" + chapter00().encode()}, "right", ""),
    "UTF-16": ({"00.ipynb": chapter00().encode("utf-16")}, "right", ""),
    "of nbformat 3": (
        {"00.ipynb": json.dumps({"nbformat": 3, "worksheets": [{"cells": [{"cell_type": "code", "input": SHARE}]}]})},
        "right",
        "",
    ),
    "from Colab": (
        {"00.ipynb": notebook(cell(SHARE, metadata={"id": "x1", "colab": {}}), metadata={"widgets": {"a": {}}})},
        "right",
        "",
    ),
    "copied cells": (
        {"00.ipynb": notebook("import torch", cell(SHARE, "share_positive"), cell(SHARE, "share_positive"))},
        "right",
        "",
    ),
    "the cells moved": (
        {"00.ipynb": notebook('check("share_positive", share_positive)', cell(SHARE, "share_positive"), "import torch")},
        "right",
        "",
    ),
    "another name": (cells(SHARE.replace("share_positive", "mine"), 'check("share_positive", mine)'), "right", ""),
    "the checks deleted": (cells(SHARE), "right", ""),
    "the check turned into text": (cells(SHARE, cell("check(", kind="markdown")), "right", ""),
    "two versions": ({"00.ipynb": chapter00(HEAD + "return 3"), "00 (1).ipynb": chapter00()}, "right", ""),
    "a damaged file beside": (
        {"00.ipynb": chapter00(), "01.ipynb": '{"cells": [', "notes.docx": "x", "empty.ipynb": ""},
        "right",
        "",
    ),
    "with magics": (cells("%matplotlib inline\n!ls", "%%time\n" + SHARE, "%%bash\nrm -rf /"), "right", ""),
    # what stops
    "os._exit": (body("import os; os._exit(0)"), "stopped", "ended before"),
    "kernel kill": (body("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), "stopped", "ended before"),
    "sys.exit": (body("import sys; sys.exit(0)"), "wrong", ""),
    "exit on import": (cells("import os\nx = os._exit(0)", HEAD + "return x"), "stopped", "ended before"),
    "a recursion": (body("return share_positive(scores, limit)"), "wrong", ""),
    "a memory hog": (body("return len(bytearray(10**13))"), "wrong", ""),
    "a segmentation fault": (body("import ctypes; ctypes.string_at(0)"), "stopped", "ended before"),
    "a file too large": (body("open('x', 'wb').write(bytes(10**8))"), "wrong", ""),
    "100 MB of output": (body("print('x' * 10**8)\nRIGHT"), "right", ""),
    # what cheats
    "says passed": (body("print('✓ 0.1 share_positive: right on 7 inputs')"), "wrong", ""),
    "equal to everything": (cells(EQUAL, HEAD + "return Equal(7)"), "wrong", ""),
    "comparisons patched": (
        cells(
            HEAD + "exec(compile(" + repr(PATCHED + "verdicts.equal = compare.same = lambda *a: True") + ", 'x', 'exec'))\n"
            "    return 7"
        ),
        "wrong",
        "",
    ),
    "checks patched": (
        cells(
            OWN + "e.judge = e.verdict = e.check = lambda *a, **k: e.Verdict(True, 'right')", HEAD + "e.judge = None; return 7"
        ),
        "wrong",
        "",
    ),
    "the answer patched": (cells(OWN, HEAD + "e.answer = lambda *a: [0.25]; return 7"), "wrong", ""),
    "modules replaced": (
        cells(
            OWN + "sys.modules['torch'] = sys\nsys.modules['rlhf_lib.exercises.verdicts'] = sys",
            HEAD + "sys.modules.clear(); return 7",
        ),
        "wrong",
        "",
    ),
    "import hooks": (cells("import sys", HEAD + "sys.meta_path.insert(0, sys); sys.path[:] = []; return 7"), "wrong", ""),
    "a record of the checks": (body('return {"rlhf_lib.exercises: no answer": "passed"}'), "wrong", ""),
    "frames walked": (
        body(
            "import sys\n"
            "f = sys._getframe()\n"
            "while f:\n"
            "    f.f_locals['inputs'] = f.f_globals['judge'] = None\n"
            "    f = f.f_back\n"
            "return 7"
        ),
        "wrong",
        "",
    ),
    "builtins patched": (
        body("import builtins; builtins.isinstance = lambda *a: True; builtins.all = lambda x: True; return 7"),
        ("wrong", "stopped"),
        "",
    ),
    "sum patched": (
        cells("import builtins\nbuiltins.sum = builtins.len = lambda *a: 0\nbuiltins.abs = lambda x: 0", HEAD + "return 7"),
        ("wrong", "stopped"),
        "",
    ),
    "modules of its own": (
        cells(
            "import importlib, sys, types\n"
            "sys.modules['torch'] = types.ModuleType('torch')\n"
            "importlib.import_module = __import__ = lambda *a, **k: sys.modules['torch']",
            HEAD + "open('torch.py', 'w').write('allclose = print'); return 7",
        ),
        ("wrong", "stopped"),
        "",
    ),
    "the oracle looked for": (
        body(
            "import gc\n"
            "for one in gc.get_objects():\n"
            "    if type(one).__name__ == 'Exercise':\n"
            "        one.right = one.run = lambda *a, **k: 7\n"
            "return 7"
        ),
        ("wrong", "stopped"),
        "",
    ),
    "other processes looked at": (
        body(
            "import os\n"
            "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
            "    for name in ('mem', 'environ', 'cmdline', 'maps'):\n"
            "        try: open(f'/proc/{pid}/{name}', 'rb').read(10**6)\n"
            "        except (OSError, ValueError): pass\n"
            "return 7"
        ),
        "wrong",
        "",
    ),
    "a daemon": (
        body("import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass\nRIGHT"),
        "right",
        "",
    ),
    "the disk filled": (
        body("for n in range(10**6):\n    open(f'f{n}', 'wb').write(bytes(5 * 10**7))"),
        ("wrong", "stopped"),
        "",
    ),
    "the worked answer looked for": (
        body(f"return eval(open({str(ROOT / 'solutions' / 'my_rlhf.py')!r}).read())"),
        "wrong",
        "",
    ),
    "two answers": (
        body(
            f"import os\n"
            f"m = {pack({'outputs': [0.25] * 7})!r}\n"
            f"m = len(m).to_bytes(8, 'big') + m\n"
            f"for n in range(3, 60):\n"
            f"    try: os.write(n, m + m)\n"
            f"    except OSError: pass\n"
            f"RIGHT"
        ),
        ("wrong", "stopped"),
        "",
    ),
    "pickle": (
        body(
            "import pickle, os\n"
            "class P:\n"
            "    def __reduce__(self): return (os.system, ('touch /tmp/made_by_a_pickle',))\n"
            "return P()"
        ),
        "wrong",
        "",
    ),
    "an answer of its own to the pipe": (
        body(
            f"import os\n"
            f"m = {pack({'outputs': [7.0] * 7})!r}\n"
            f"for n in range(3, 60):\n"
            f"    try: os.write(n, {LENGTH.pack(8)!r} + m)\n"
            f"    except OSError: pass\n"
            f"os._exit(0)"
        ),
        ("wrong", "stopped"),
        "",
    ),
}


def state_of_the_house():
    """A fingerprint of what no submission may touch."""
    found = hashlib.sha256()
    for folder in ("rlhf_lib", "tests/grading", "notebooks"):
        for path in sorted((ROOT / folder).rglob("*.*")):
            if path.is_file() and "__pycache__" not in path.parts:
                found.update(str(path).encode() + path.read_bytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def untouched():
    before = state_of_the_house()
    yield
    assert state_of_the_house() == before
    assert not Path("/tmp/made_by_a_pickle").exists()
    assert torch.allclose.__module__ != "__main__" and exercises.judge.__module__ == "rlhf_lib.exercises.verdicts"


@pytest.mark.parametrize("label", MADE)
def test_every_made_submission_gets_its_verdict(label, box, tmp_path, untouched):
    files, verdict, word = MADE[label]
    results, _ = graded(files, box, tmp_path)
    (result,) = [one for one in results if one.exercise == "share_positive"]
    assert result.verdict in ([verdict] if isinstance(verdict, str) else verdict), result
    assert word in result.mistake, result
    assert (result.passed == result.tried) == (result.verdict == "right")


@pytest.mark.parametrize(
    "lines",
    [
        "while True: pass",
        "import time; time.sleep(1e9)",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    ],
)
def test_what_has_no_end_is_stopped(lines, box, tmp_path):
    start = time.monotonic()
    (result,), _ = graded(body(lines), box, tmp_path, timeout=1.0)
    assert result.verdict == "stopped" and "stopped after 1 seconds" in result.mistake and time.monotonic() - start < 60
    (tmp_path / "again").mkdir()
    assert graded(body("RIGHT"), box, tmp_path / "again")[0][0].verdict == "right"


def test_feedback_shows_inputs_of_the_published_seed_alone(box, tmp_path):
    secret = exercises.draw("share_positive", 5)[1]["scores"].tolist()
    (result,), _ = graded(body(RIGHT.replace(">", ">=")), box, tmp_path)
    assert "The smallest input that fails" in result.message and str(secret)[1:-1] not in result.message
    cheat = "table = {}\nimport torch\n"
    for one in exercises.draw("share_positive", verdicts.NOTEBOOK):
        share = sum(score > one["limit"] for score in one["scores"].tolist()) / len(one["scores"])
        cheat += f"table[{one['scores'].tolist()!r}.__repr__() + repr({one['limit']!r})] = {share!r}\n"
    (tmp_path / "b").mkdir()
    (result,), _ = graded(body(cheat + "return table.get(repr(scores.tolist()) + repr(limit), 0.77)"), box, tmp_path / "b")
    assert result.verdict == "wrong" and "passes the check of the notebook" in result.message and "0.77" not in result.message


GAE = """def gae(rewards, values, gamma, lam, mask):
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0)
        next_value, next_advantage = values[:, t], advantages[:, t]
    return advantages, advantages + values
"""
RETURNS = """def discounted_returns(rewards, gamma):
    ones = torch.ones(1, len(rewards), dtype=torch.bool)
    return gae(rewards[None], torch.zeros_like(rewards[None]), gamma, 1.0, ones)[0][0]
"""


def test_an_exercise_that_leans_on_a_wrong_one_is_judged_by_itself(box, tmp_path):
    names = ["gae", "discounted_returns"]
    wrong = GAE.replace("gamma * lam * next_advantage", "gamma * next_advantage + 1")
    results, _ = graded(
        {"07.ipynb": handed("07_policy_gradients_and_ppo.ipynb", {"gae": wrong, "discounted_returns": RETURNS})},
        box,
        tmp_path,
        names=names,
    )
    assert [one.verdict for one in results] == ["wrong", "right"]
    assert results[1].note == "right with the course's gae in the place of theirs"
    (tmp_path / "b").mkdir()
    files = {"07.ipynb": handed("07_policy_gradients_and_ppo.ipynb", {"gae": GAE, "discounted_returns": RETURNS})}
    results, _ = graded(files, box, tmp_path / "b", names=names)
    assert [(one.verdict, one.note) for one in results] == [("right", ""), ("right", "")]


def test_one_chapter_has_all_its_exercises_and_one_bad_question_costs_no_other(box, tmp_path):
    answers = {
        "discounted_returns": "def discounted_returns(rewards, gamma):\n    import os; os._exit(1)",
        "gae": GAE,
        "value_loss": "def value_loss(:",
        "explained_variance": "def explained_variance(values, returns):\n    return 1 - (returns - values).var() / returns.var()",
    }
    results, found = graded({"07.ipynb": handed("07_policy_gradients_and_ppo.ipynb", answers)}, box, tmp_path)
    assert found.faults == [] and len(results) == 10
    assert {one.exercise: one.verdict for one in results if one.verdict != "not written"} == {
        "discounted_returns": "stopped",
        "gae": "right",
        "value_loss": "syntax error",
        "explained_variance": "right",
    }
    assert [one.number for one in results] == [f"7.{n}" for n in range(1, 11)]


def test_a_build_is_tried_probe_by_probe(box, tmp_path, monkeypatch):
    from rlhf_lib.exercises.build import Build, Probe

    asked = []
    probes = [
        Probe(
            "doubles",
            lambda generator: {"x": 3},
            lambda built, x: built(x),
            lambda out, x: "" if out == 6 else "it does not double",
        ),
        Probe(
            "of a list",
            lambda generator: {"x": [1]},
            lambda built, x: built(x),
            lambda out, x: "" if out == [1, 1] else "no list",
        ),
    ]
    Build("99.1", "doubled", probes)
    try:
        answer = verdicts.Answer("doubled", [["c", "x"]])

        def ask(name, answer, box, inputs, seconds):
            asked.append((inputs[0]["probe"], seconds))
            return verdicts.judged(name, inputs, pack({"outputs": [6 if inputs[0]["probe"] == "doubles" else [2]]}))

        monkeypatch.setattr(verdicts, "attempt", ask)
        result = verdicts.tried_out("doubled", answer, box, 5, 60.0)
    finally:
        del exercises.BUILDS["doubled"]
    assert (result.verdict, result.mistake, result.passed, result.tried) == ("wrong", "no list", 1, 2)
    # A cheap probe has 60 seconds, and what stands before it another 30; the failing one comes once more, at the published seed.
    assert asked == [("doubles", 90.0), ("of a list", 90.0), ("of a list", 60.0)]


# ----------------------------------------------------------------------------------------- the whole course

CHAPTERS = [*range(14)]
FEW = 3  # inputs of each exercise, and probes of each build, on which it is tried here; all of them before a class is graded


def few(name, seed):
    """The smallest and the largest of an exercise's inputs; the first and last of a build's cheap probes."""
    found = exercises.draw(name, seed)
    if name in exercises.BUILDS:
        found = [one for one in found if exercises.BUILDS[name].probes[one["probe"]].seconds == LIMIT]
    return found if len(found) <= FEW else [*found[: FEW - 1], found[-1]]


def graded_worked(chapter):
    """(faults, exercises, Results) of a worked notebook; called in a process in which nothing else was tested."""
    torch.set_num_threads(1)  # as `grade` does: a process with threads cannot be forked
    verdicts.drawn, box = few, started(None)
    try:
        read = survey(worked({chapter}))
        return read.faults, read.exercises, list(grade(read, box, 77))
    finally:
        box.close()


@pytest.fixture(scope="module")
def process():
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        yield processes


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_worked_answers_of_every_exercise_and_build_are_right(chapter, process):
    faults, names, results = process.apply(graded_worked, (chapter,))
    assert faults == [] and len(names) >= (1 if chapter == 0 else 9)
    assert [one for one in results if one.verdict != "right" or one.passed < one.tried or one.note] == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_notebooks_as_they_are_handed_out_are_not_written(chapter, tmp_path):
    name = next(path.name for path in (ROOT / "notebooks").glob(f"{chapter:02}_*.ipynb") if "report" not in path.name)
    results, found = graded({name: (ROOT / "notebooks" / name).read_bytes()}, None, tmp_path)  # no sandbox: nothing of it is run
    assert found.faults == [] and found.exercises == survey(worked({chapter})).exercises
    for one in results:
        assert (one.verdict, one.mistake, one.message, one.passed) == ("not written", "", "it is not written yet", 0)
        assert one.tried == (len(exercises.BUILDS[one.exercise].probes) if one.exercise in exercises.BUILDS else 1)


def test_every_exercise_and_build_belongs_to_one_of_these_chapters():
    exercises.load()
    known = {*exercises.EXERCISES, *exercises.BUILDS}
    assert {name for chapter in CHAPTERS for name in survey(worked({chapter})).exercises} == known


BUILDS = {
    "a stub that does something first": ("train_preference", "n = 1\n    raise NotImplementedError()", "not written", ""),
    "returns nothing": ("train_preference", "return None", "wrong", "cannot be judged|it returns|raises"),
    "raises": ("train_sft", "return 1 / 0", "wrong", "it raises ZeroDivisionError: division by zero"),
    "changes nothing": ("with_lora", "return model", "wrong", "."),
    "ends its process": ("train_assistant", "import os; os._exit(3)", "stopped", "ended before it returned"),
}


@pytest.mark.parametrize("label", BUILDS)
def test_builds_of_the_assistant_that_fail_say_why(label, box, tmp_path):
    name, lines, verdict, said = BUILDS[label]
    notebooks = {"train_preference": "10_prompts_and_comparisons.ipynb"}
    notebook = notebooks.get(name, "11_a_small_assistant.ipynb")
    source = stub_of(notebook, name).replace("raise NotImplementedError()", lines)
    (result,), _ = graded({notebook: handed(notebook, {name: source})}, box, tmp_path, names=[name])
    assert (result.verdict, result.passed) == (verdict, 0) and re.search(said, result.message), result
    assert result.tried == len(exercises.BUILDS[name].probes)


def stub_of(notebook, name):
    cells = json.loads((ROOT / "notebooks" / notebook).read_text(encoding="utf-8"))["cells"]
    (one,) = [one for one in cells if one["metadata"].get("nbgrader", {}).get("grade_id") == name]
    return "".join(one["source"])


def test_a_probe_without_an_end_is_stopped():
    inputs = few("with_lora", 5)[:1]
    found = verdicts.judged("with_lora", inputs, pack({"outputs": [late(30.0)]}))
    assert found["verdict"] == "stopped" and found["message"] == "it was stopped after 30 seconds, without an end in sight"


TAKEN = {
    "the course's own": 'from rlhf_lib.exercises import yours\ndef gae(*given, **named): return yours("gae")(*given, **named)',
    "renamed": 'from rlhf_lib.exercises import yours\nc = yours("gae")\ndef gae(*given, **named): return c(*given, **named)',
}


@pytest.mark.parametrize("label", TAKEN)
def test_an_answer_that_hands_on_the_courses_is_wrong(label, box, tmp_path):
    notebook = "07_policy_gradients_and_ppo.ipynb"
    (result,), _ = graded({notebook: handed(notebook, {"gae": TAKEN[label]})}, box, tmp_path, names=["gae"])
    assert result.verdict == "wrong" and "gae is what is asked for here" in result.message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        pack([1]),
        pack({"outputs": 3}),
        pack({"outputs": []}),
        pack({"outputs": [1] * 500}),
        pack({"fault": 3}),
        pack({"outputs": [1], "fault": ""}),
        pack({"outputs": [{"a": [torch.ones(3)]}] * 7}),
        pack({"outputs": [{"rlhf_lib.exercises: no answer": 4}] * 7}),
        pack({"outputs": [torch.full((7,), float("nan"))] * 7}),
    ],
)
def test_whatever_comes_back_is_judged_and_not_right(content):
    found = verdicts.judged("share_positive", exercises.draw("share_positive", 5), content)
    assert found["verdict"] == "wrong" and found["message"]


def test_a_file_of_another_student_s_name_changes_nothing(box, tmp_path):
    files = body("RIGHT") | {"ben.ipynb": chapter00(STUB), "name.txt": "ben"}
    results, found = graded(files, box, tmp_path)
    assert [one.verdict for one in results] == ["right"] and "no notebook" in found.faults[0]


NOTES = {
    "tries": {"share_positive": 3, "gae": 10**9, "value_loss": 2, "nobody's": 1},
    "share_positive": 600,
    "attention": 1200.0,
    "gae": 1200 + 5 * 3600,
    "policy_loss": "soon",
}


@pytest.mark.parametrize(
    "content, work",
    [
        (
            json.dumps(NOTES),
            {"share_positive": [3, None], "attention": [None, 10.0], "gae": [None, None], "value_loss": [2, None]},
        ),
        ("\ufeff" + json.dumps({"gae": 0, "value_loss": 90}), {"gae": [None, None], "value_loss": [None, 1.5]}),
        ("[" * 100_000, {}),
        ('{"gae": NaN, "value_loss": Infinity}', None),
        ("", {}),
    ],
)
def test_what_a_students_own_file_says_of_tries_and_times(content, work, tmp_path):
    for name, text in (("00.ipynb", chapter00()), ("my_course/progress.json", content)):
        path = tmp_path / "anna" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    found = survey(find(tmp_path)[0][0])
    assert found.faults == [] and found.exercises == ["share_positive"]
    if work is None:
        assert all(minutes is None for _, minutes in found.work.values())
    else:
        assert found.work == work
