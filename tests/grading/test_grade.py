"""Whole classes, small ones, of chapter 00."""

import csv
import io
import json
import os
import signal
import zipfile

import pytest

from rlhf_lib.files import RunError
from rlhf_lib.grading import grade as module
from rlhf_lib.grading import gradebook, verdicts
from rlhf_lib.grading.grade import Job, grade, settled_seed
from rlhf_lib.grading.submissions import find
from tests.grading.made import SHARE, STUB, chapter00

CLASS = {
    "anna/00.ipynb": chapter00(),
    "ben/00.ipynb": chapter00(STUB),
    "cleo/00.ipynb": chapter00(SHARE.replace(">", ">=")),
    "dora/00.ipynb": '{"cells": [',
    "emil_my_rlhf.py": "import torch\n" + SHARE,
    "Zoë/00 (1).ipynb": chapter00(SHARE.replace("return", "import os; os._exit(0)\n    return")),
}
FEW = {name: CLASS[name] for name in ("anna/00.ipynb", "ben/00.ipynb", "dora/00.ipynb")}
EXPECTED = {"anna": "right", "ben": "not written", "cleo": "wrong", "dora": "not gradable", "emil": "right", "Zoë": "stopped"}


def made(folder, files=CLASS):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def rows(out):
    return list(csv.DictReader(io.StringIO((out / "grades.csv").read_bytes().decode("utf-8-sig"))))


class Box:
    """The sandbox of the session in the place of a slot's own."""

    shared, asked = None, 0
    warnings = ["not contained"]

    def __init__(self, *_):
        pass

    def ask(self, *arguments):
        return self.shared.ask(*arguments)

    def close(self):
        pass


@pytest.fixture
def quick(monkeypatch, box):
    """Slots take the sandbox of the session, and one at a time."""
    monkeypatch.setattr(module, "Sandbox", Box)
    monkeypatch.setattr(Box, "shared", box)
    monkeypatch.setattr(box.process, "poll", lambda: None)  # in a slot it is nobody's child


def test_a_class_is_graded_and_graded_again_only_where_something_changed(tmp_path, quick, monkeypatch):
    submissions, out, said = made(tmp_path / "in"), tmp_path / "out", []
    entries = grade(submissions, out, seed=5, jobs=1, say=said.append)
    assert {row["student"]: row["verdict"] for row in rows(out)} == EXPECTED
    assert {entry.student: entry.status for entry in entries} == {**dict.fromkeys(EXPECTED, "graded"), "dora": "not gradable"}
    assert said == ["warning: not contained"]
    first = (out / "grades.csv").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(module, "Slot", lambda *_: pytest.fail("nothing has changed"))
        grade(submissions, out, jobs=1, say=said.append)
    assert (out / "grades.csv").read_bytes() == first
    made(submissions, {"ben/00.ipynb": chapter00()})
    real = module.grade_one

    def noted(job, one, box):
        with open(out / "log", "a") as file:
            file.write(one.student)
        return real(job, one, box)

    monkeypatch.setattr(module, "grade_one", noted)
    grade(submissions, out, jobs=1, say=said.append)
    assert {row["student"]: row["verdict"] for row in rows(out)} == {**EXPECTED, "ben": "right"}
    assert (out / "log").read_text() == "ben"
    assert len(list((out / "feedback").glob("*.html"))) == 6 and (out / "class_report.html").exists()


def test_stopped_in_the_middle_it_goes_on(tmp_path, quick):
    submissions, whole, half = made(tmp_path / "in", FEW), tmp_path / "whole", tmp_path / "half"
    grade(submissions, whole, seed=5, jobs=1, say=lambda _: None)
    job = Job(half, settled_seed(half, 5), 90.0, None, gradebook.read_points())
    (anna, *_), _ = find(submissions)
    path = job.path(anna)
    gradebook.save(path, job.fingerprint(anna), gradebook.Entry(anna.student, "", "", "begun", [], []))
    (half / ".grades.csv.1.tmp").write_text("half")
    grade(submissions, half, jobs=1, say=lambda _: None)
    assert (half / "grades.csv").read_bytes() == (whole / "grades.csv").read_bytes()


def test_a_grader_s_process_that_dies_costs_one_submission(tmp_path, quick, monkeypatch):
    real = verdicts.survey

    def deadly(submission, names=None):
        found = real(submission, names)
        if submission.student == "ben" and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    main = os.getpid()
    monkeypatch.setattr(module.verdicts, "survey", deadly)
    entries = grade(made(tmp_path / "in", FEW), tmp_path / "out", seed=5, jobs=1, say=lambda _: None)
    found = {entry.student: entry for entry in entries}
    assert found["ben"].status == "not gradable" and "by hand" in found["ben"].reasons[0]
    assert found["anna"].results[0].verdict == "right" and found["dora"].status == "not gradable"


def test_worked_answers_that_do_not_pass_stop_it(tmp_path, quick, monkeypatch):
    folder = made(tmp_path / "course", {"solutions/00_start_here.ipynb": chapter00(STUB)})
    monkeypatch.setattr(module, "ROOT", folder)
    monkeypatch.setattr(module, "course_version", lambda: "1")
    with pytest.raises(RunError, match=r"worked answers of chapter 00 do not pass on this machine: 0\.1 share_positive"):
        grade(made(tmp_path / "in"), tmp_path / "out", seed=5, jobs=1, say=lambda _: None)
    assert not (tmp_path / "out" / "grades.csv").exists()


def test_a_student_called_like_the_worked_answers_is_a_student(tmp_path, quick):
    entries = grade(
        made(tmp_path / "in", {f"{module.WORKED}/00.ipynb": chapter00(STUB)}),
        tmp_path / "out",
        seed=5,
        jobs=1,
        say=lambda _: None,
    )
    assert [(one.student, one.results[0].verdict) for one in entries] == [(module.WORKED, "not written")]


def test_a_zip_points_and_lateness(tmp_path, quick):
    path = tmp_path / "class.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("leeanna_LATE_11_22_00.ipynb", chapter00())
        archive.writestr("roeben_12_23_00.ipynb", chapter00())
    (tmp_path / "points.csv").write_text("exercise,points\nshare_positive,4\n")
    (tmp_path / "late.csv").write_text("student,share\n(late),0.5\n")
    grade(path, tmp_path / "out", tmp_path / "points.csv", 5, 1, late=tmp_path / "late.csv", say=lambda _: None)
    assert [(row["student"], row["points"], row["of"]) for row in rows(tmp_path / "out")] == [
        ("leeanna", "2", "4"),
        ("roeben", "4", "4"),
    ]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"path": "none"}, "no submissions at"),
        ({"path": "empty"}, "no submission in"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"timeout": 0.0}, "must be above 0"),
        ({"jobs": 0}, "must be above 0"),
        ({"points": "none.csv"}, "give a CSV file"),
    ],
)
def test_bad_input_is_named_before_the_first_step(tmp_path, options, said):
    made(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    path = tmp_path / options.pop("path", "in")
    with pytest.raises(RunError, match=said):
        grade(path, tmp_path / "out", say=lambda _: None, **options)
    assert not (tmp_path / "out" / "results").exists()


def test_the_seed_is_drawn_once(tmp_path):
    first = settled_seed(tmp_path / "a", None)
    assert settled_seed(tmp_path / "a", None) == first and json.loads((tmp_path / "a" / "seed.json").read_text()) == {
        "seed": first
    }
    assert settled_seed(tmp_path / "a", 7) == 7 == settled_seed(tmp_path / "a", None)
    assert len({settled_seed(tmp_path / str(n), None) for n in range(5)}) == 5
