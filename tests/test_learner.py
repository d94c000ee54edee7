"""Learners who open the notebooks in a folder of their own and run them through: one who wrote everything in another way than
the worked answers, with tensors for numbers, on a machine with a (pretended) GPU; and one who stopped half way and broke a
function. (The worked answers themselves are run by nbval, on the CPU.)"""

import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from rlhf_lib import course, exercises
from rlhf_lib.exercises.keep import COURSE, keep

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))

TAKING = [name for name in CHAPTERS if "yours(" in (ROOT / "notebooks" / name).read_text(encoding="utf-8")]  # a learner's code

exercises.load()

LABELS = {
    "06": r"(?m)^yours +40 labels: accuracy",
    "08": r"(?m)^by your labels +[01]\.\d\d +[01]\.\d\d",
}  # what they came to, by chapter

pytestmark = pytest.mark.timeout(900)  # chapters train models, and a slow machine takes its time


def others():
    """The differently written right answers of the checks' own tests: {name: function}."""
    sys.path.insert(0, str(ROOT / "tests" / "exercises"))
    found = {}
    try:
        for path in sorted((ROOT / "tests" / "exercises").glob("test_*.py")):
            if re.match(r"test_(ch|build)\d\d", path.stem):
                found |= getattr(importlib.import_module(path.stem), "ALTERNATIVES", {})
    finally:
        sys.path.remove(str(ROOT / "tests" / "exercises"))
    return found


TENSORS = f"""
%reset -f
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import card, learner, torch
from rlhf_lib import devices, exercises
from rlhf_lib.exercises.keep import yours
exercises.yours = learner.with_tensors(yours)
devices.pick_device = lambda: torch.device("DEVICE")
"""  # the first cell of a learner whose numbers are tensors, and whose GPU is card.py's
ON_GPU = [  # chapters that ask for one; 09's runs are 08's, and take twice the time there
    name for name in TAKING
    if "pick_device" in (ROOT / "notebooks" / name).read_text(encoding="utf-8") and not name.startswith("09")
]  # fmt: skip


ENVIRONMENT = {**os.environ, "RLHF_PRESET": "smoke", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
ENVIRONMENT.pop("RLHF_HOME", None)


def sit(chapter, folder, first="", kernel=None):
    """Run a chapter of the learner's edition in `folder` at the smoke preset, without its checks; the text that it printed.

    Args:
        first: the code of a cell before all others.
        kernel: the manager of one that runs in `folder`; a fresh one when None.
    """
    notebook = nbformat.read(ROOT / "notebooks" / chapter, as_version=4)
    cells = [one for one in notebook.cells if not one.metadata.get("nbgrader", {}).get("grade")]
    notebook.cells = [new_code_cell(first), *cells]
    client = NotebookClient(
        notebook, km=kernel, timeout=800, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=ENVIRONMENT)
    outputs = [output for one in notebook.cells if one.cell_type == "code" for output in one.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def taken(printed):
    """What cells took with `yours`: (names of the learner's, names of the course's)."""
    lines = [line for line in printed.splitlines() if re.fullmatch(r"((your|the course's) \w+(, |$))+", line)]
    return tuple(set(re.findall(rf"\b{whose} (\w+)", "\n".join(lines))) for whose in ("your", "course's"))


@pytest.fixture(scope="module")
def another_way(tmp_path_factory):
    """A folder whose my_rlhf.py holds the differently written answers, with labels of its own, and the answers' names."""
    folder = tmp_path_factory.mktemp("another_way")
    found = others()
    del found["gpt_logits"]  # it goes through rows and places one by one, two seconds a training step
    del found["score_rows"]  # it asks a model for a score at every position, which the models of 6.10 do not have
    kept = {name for name, one in found.items() if not keep(name, one, folder / exercises.FILE, again=False)}
    rows = [
        (f"{word} is number {number}.", label)
        for number in range(20)
        for word, label in (("Love", "positive"), ("Hate", "negative"))
    ]
    lines = [json.dumps({"text": text, "checkpoint": "smoke", "label": label, "reader": "me"}) for text, label in rows]
    (folder / course.MY_LABELS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder, kept


@pytest.fixture(scope="module")
def kernel(another_way):
    """One kernel for all chapters in that folder: to start one and import torch takes longer than many a chapter."""
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(another_way[0]), env=ENVIRONMENT)
    client.stop_channels()
    yield manager
    manager.shutdown_kernel(now=True)


def test_most_exercises_have_a_differently_written_answer_that_can_be_kept(another_way):
    builds = {name for name, one in exercises.BUILDS.items() if one.kept}
    assert len(another_way[1]) >= 0.8 * len({*exercises.EXERCISES, *builds})


@pytest.mark.timeout(900)
@pytest.mark.parametrize("chapter", TAKING)
def test_later_cells_run_on_what_a_learner_wrote_in_another_way(another_way, kernel, chapter):
    folder, kept = another_way
    printed = sit(chapter, folder, TENSORS.replace("DEVICE", "card" if chapter in ON_GPU else "cpu"), kernel)
    mine, theirs = taken(printed)
    assert mine <= kept and not theirs & kept
    if said := LABELS.get(chapter[:2]):
        assert re.search(said, printed), "the learner's labels are used for nothing"
    if chapter[:2] not in ("00", "09"):
        assert mine, "no cell of this chapter runs on the learner's code"


def test_who_stopped_half_way_and_broke_a_function_is_blocked_nowhere(tmp_path):
    """my_rlhf.py ends in the middle of a function that chapter 04 takes, and one of chapter 02 was changed for the worse."""
    shutil.copy(COURSE, tmp_path / exercises.FILE)
    path = tmp_path / exercises.FILE
    text = path.read_text(encoding="utf-8")
    text = text.replace("def rotary(", "def rotary(*a):\n    return None\n\n\ndef old_rotary(")
    path.write_text(text[: text.index("def cached_step(") + 40], encoding="utf-8")
    printed = sit(next(name for name in CHAPTERS if name.startswith("04")), tmp_path)
    mine, theirs = taken(printed)
    assert {"rotary", "cached_step", "generate"} <= theirs
    assert {"GPT", "with_temperature", "left_padding"} <= mine
    assert "your rotary is left out (it was changed and does not pass any more" in printed
    assert path.read_text(encoding="utf-8").startswith(text[:100])
