"""Whole classes, small ones, of chapter 00."""

import csv
import io
import json
import os
import shutil
import signal
import types
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


@pytest.fixture(scope="module")
def quick(box):
    """Slots take the sandbox of the session, and one at a time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "Sandbox", Box)
        patched.setattr(Box, "shared", box)
        patched.setattr(box.process, "poll", lambda: None)  # in a slot it is nobody's child
        yield


@pytest.fixture(scope="module")
def first(quick, tmp_path_factory):
    """A class that was graded: folder, entries, and what was said."""
    folder, said = tmp_path_factory.mktemp("class"), []
    entries = grade(made(folder / "in"), folder / "out", seed=5, jobs=1, say=said.append)
    return types.SimpleNamespace(folder=folder, entries=entries, said=said)


@pytest.fixture
def graded(first, tmp_path):
    """A copy of that class for a test of its own: (submissions, out)."""
    shutil.copytree(first.folder, tmp_path, dirs_exist_ok=True)
    return tmp_path / "in", tmp_path / "out"


def test_a_class_is_graded(first):
    out = first.folder / "out"
    assert {row["student"]: row["verdict"] for row in rows(out)} == EXPECTED
    status = {entry.student: entry.status for entry in first.entries}
    assert status == {**dict.fromkeys(EXPECTED, "graded"), "dora": "not gradable"}
    assert first.said == ["warning: not contained"]
    assert len(list((out / "feedback").glob("*.html"))) == 6 and (out / "class_report.html").exists()


def test_what_has_not_changed_is_not_graded_again(graded, monkeypatch):
    submissions, out = graded
    tables = {path.name: path.read_bytes() for path in out.glob("*.csv")}
    monkeypatch.setattr(module, "Slot", lambda *_: pytest.fail("nothing has changed"))
    grade(submissions, out, jobs=1, say=lambda _: None)
    assert {path.name: path.read_bytes() for path in out.glob("*.csv")} == tables and "grades.csv" in tables


def test_what_has_changed_is_graded_again(graded, monkeypatch):
    submissions, out = graded
    made(submissions, {"ben/00.ipynb": chapter00()})
    real = module.grade_one

    def noted(job, one, box):
        with open(out / "log", "a") as file:
            file.write(one.student)
        return real(job, one, box)

    monkeypatch.setattr(module, "grade_one", noted)
    grade(submissions, out, jobs=1, say=lambda _: None)
    assert {row["student"]: row["verdict"] for row in rows(out)} == {**EXPECTED, "ben": "right"}
    assert (out / "log").read_text() == "ben"


def test_stopped_in_the_middle_it_goes_on(graded, first, tmp_path):
    submissions, whole = graded
    half = tmp_path / "half"
    job = Job(submissions, half, settled_seed(half, 5), 90.0, None, gradebook.read_points())
    found = {one.student: one for one in find(submissions)[0]}
    for student, one in found.items():
        if student in ("emil", "Zoë"):  # done
            (half / "results").mkdir(exist_ok=True)
            shutil.copy(Job(submissions, whole, 5, 90.0, None, job.names).path(one), job.path(one))
        elif student == "anna":  # begun
            gradebook.save(job.path(one), job.fingerprint(one), gradebook.Entry(student, "", "", "begun", [], []))
    (half / ".grades.csv.1.tmp").write_text("half")
    grade(submissions, half, jobs=1, say=lambda _: None)
    assert (half / "grades.csv").read_bytes() == (first.folder / "out" / "grades.csv").read_bytes()


def test_a_grader_s_process_that_dies_costs_one_submission(graded, monkeypatch):
    real = verdicts.survey

    def deadly(submission, names=None):
        found = real(submission, names)
        if submission.student == "ben" and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    main = os.getpid()
    monkeypatch.setattr(module.verdicts, "survey", deadly)
    submissions, out = graded
    made(submissions, {"anna/00.ipynb": chapter00() + " ", "ben/00.ipynb": chapter00(), "Zoë/00 (1).ipynb": chapter00(STUB)})
    found = {entry.student: entry for entry in grade(submissions, out, jobs=1, say=lambda _: None)}
    assert found["ben"].status == "not gradable" and "by hand" in found["ben"].reasons[0]
    assert found["anna"].results[0].verdict == "right" and found["dora"].status == "not gradable"
    assert found["Zoë"].results[0].verdict == "not written"


def test_worked_answers_that_do_not_pass_stop_it(tmp_path, quick, monkeypatch):
    folder = made(tmp_path / "course", {"solutions/00_start_here.ipynb": chapter00(STUB)})
    monkeypatch.setattr(module, "ROOT", folder)
    monkeypatch.setattr(module, "course_version", lambda: "1")
    with pytest.raises(RunError, match=r"worked answers of chapter 00 do not pass on this machine: 0\.1 share_positive"):
        grade(made(tmp_path / "in"), tmp_path / "out", seed=5, jobs=1, say=lambda _: None)
    assert not (tmp_path / "out" / "grades.csv").exists()


def test_a_student_called_like_the_worked_answers_is_a_student(graded, tmp_path):
    submissions = made(tmp_path / "other", {f"{module.WORKED}/00.ipynb": chapter00(STUB)})
    entries = grade(submissions, graded[1], jobs=1, say=lambda _: None)
    assert [(one.student, one.results[0].verdict) for one in entries] == [(module.WORKED, "not written")]


def test_a_zip_points_and_lateness(tmp_path, quick):
    path = tmp_path / "class.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("leeanna_LATE_11_22_00.ipynb", chapter00())
        archive.writestr("roeben_12_23_00.ipynb", chapter00())
    (tmp_path / "points.csv").write_text("exercise,points\nshare_positive,4\n")
    (tmp_path / "late.csv").write_text("student,share\n(late),0.5\n")
    late = tmp_path / "late.csv"
    grade(path, tmp_path / "out", tmp_path / "points.csv", 5, 1, late=late, say=lambda _: None, dry_run=False)
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


@pytest.mark.parametrize(
    "noted", ["{}", '{"seed": "x"}', '{"seed": -3}', '{"seed": true}', '{"seed": 1e9}', '{"seed": [1]}', "[1]"]
)
def test_a_seed_that_is_none_is_named(tmp_path, noted):
    (tmp_path / "seed.json").write_text(noted, encoding="utf-8")
    with pytest.raises(RunError, match=rf"^{tmp_path / 'seed.json'} is damaged"):
        settled_seed(tmp_path, None)
    assert settled_seed(tmp_path, 5) == 5


def test_the_seed_is_drawn_once(tmp_path):
    first = settled_seed(tmp_path / "a", None)
    assert settled_seed(tmp_path / "a", None) == first and json.loads((tmp_path / "a" / "seed.json").read_text()) == {
        "seed": first
    }
    assert settled_seed(tmp_path / "a", 7) == 7 == settled_seed(tmp_path / "a", None)
    assert len({settled_seed(tmp_path / str(n), None) for n in range(5)}) == 5
