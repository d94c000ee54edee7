"""The path for those who run nbgrader: from source to feedback with nbgrader itself, and its marks beside ours."""

import csv
import os
import sys
from pathlib import Path

import nbformat
import pytest

from rlhf_lib.__main__ import main
from rlhf_lib.notebooks import ROOT

NAME, CHAPTER = "00_start_here.ipynb", "chapter-00"
RIGHT = "def share_positive(scores, limit):\n    return sum(score > limit for score in scores.tolist()) / len(scores)"
WRONG = "def share_positive(scores, limit):\n    return (scores >= limit).float().mean().item()"
PATCH = "def check(*arguments, **options):\n    print('right')"
HANDED_IN = {"ada": (RIGHT, None), "bo": (WRONG, None), "di": (WRONG, PATCH)}  # di patches the check


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course folder with the submissions of a class, autograded and with feedback, and nbgrader's marks: {student: points}."""
    from nbgrader.api import Gradebook
    from nbgrader.apps.api import NbGraderAPI
    from traitlets.config import Config

    folder = tmp_path_factory.mktemp("course")
    (folder / "source" / CHAPTER).mkdir(parents=True)
    (folder / "source" / CHAPTER / NAME).write_bytes((ROOT / "solutions" / NAME).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RLHF_PRESET", "smoke")
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # nbgrader calls alembic
        patch.chdir(folder)
        config = Config({"CourseDirectory": {"root": str(folder), "course_id": "rlhf"}, "ExecutePreprocessor": {"timeout": 250}})
        api = NbGraderAPI(config=config)
        assert api.generate_assignment(CHAPTER)["success"]
        for student, (answer, more) in HANDED_IN.items():
            notebook = nbformat.read(folder / "release" / CHAPTER / NAME, as_version=4)
            place = next(n for n, cell in enumerate(notebook.cells) if cell.id == "share_positive")
            notebook.cells[place].source = answer
            if more:
                notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(more))
            path = folder / "submitted" / student / CHAPTER / NAME
            path.parent.mkdir(parents=True)
            nbformat.write(notebook, path)
            for step in (api.autograde, api.generate_feedback):
                found = step(CHAPTER, student)
                assert found["success"], found
    with Gradebook(f"sqlite:///{folder}/gradebook.db") as marks:
        yield folder, {student: marks.find_submission(CHAPTER, student).score for student in HANDED_IN}


def test_every_student_gets_feedback(course):
    folder, _ = course
    for student in HANDED_IN:
        page = (folder / "feedback" / student / CHAPTER / NAME.replace("ipynb", "html")).read_text(encoding="utf-8")
        assert "share_positive" in page


def test_marks_agree_with_ours_but_for_the_one_that_patched_the_check(course, monkeypatch):
    folder, theirs = course
    monkeypatch.setenv("RLHF_PRESET", "smoke")
    assert main(["grade", str(folder / "submitted"), "--out", str(folder / "grades"), "--jobs", "1"]) == 0
    with open(folder / "grades" / "grades.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    ours = {row["student"]: float(row["points"]) for row in rows if row["exercise"] == "share_positive"}
    full = theirs["ada"]
    assert full > 0 and theirs == {"ada": full, "bo": 0, "di": full}  # nbgrader runs what the student wrote
    assert ours == {"ada": full, "bo": 0, "di": 0}
