import csv
import io
import json

import pytest

from rlhf_lib import exercises
from rlhf_lib.files import RunError
from rlhf_lib.grading import gradebook
from rlhf_lib.grading.gradebook import Entry, Mark, Prose, read_late, read_points, read_prose, slug, table, write_tables
from rlhf_lib.grading.verdicts import Result, Survey

RIGHT = Result("gae", "7.3", "right", passed=1, tried=1)
WRONG = Result("value_loss", "7.6", "wrong", "the mean is missing", "7.6 value_loss: ...", 0, 1)
BUILD = Result("train_ppo", "7.10", "wrong", "no", "no", 6, 8)


def entry(student="anna", results=(RIGHT, WRONG, BUILD), status="graded", **more):
    return Entry(student, more.pop("id", ""), more.pop("email", ""), status, more.pop("reasons", []), list(results), **more)


def read(path):
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"))))


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_points_of_the_notebooks_are_one_and_five():
    marks = read_points()
    assert marks["gae"] == Mark(1.0) and marks["train_ppo"] == Mark(5.0)
    assert marks.keys() == {*exercises.EXERCISES, *exercises.BUILDS}


def test_points_of_a_file(tmp_path):
    path = write(tmp_path / "p.csv", "Exercise,Points,Partial\ngae,2,\n\ntrain_ppo, 10 ,yes\n")
    assert read_points(path) == {"gae": Mark(2.0), "train_ppo": Mark(10.0, True)}


@pytest.mark.parametrize(
    "text, said",
    [
        ("exercise\ngae\n", r"p\.csv, line 1: there is no column 'points'"),
        ("exercise,points\nnothing,1\n", "line 2: there is no exercise 'nothing'"),
        ("exercise,points\ngae,much\n", "line 2: points must be a number from 0 to 1e"),
        ("exercise,points\ngae,-1\n", "line 2: points must be"),
        ("exercise,points\ngae,nan\n", "line 2: points must be"),
        ("exercise,points\ngae,1\ngae,2\n", "line 3: gae stands here a second time"),
        ("exercise,points,partial\ngae,1,maybe\n", "line 2: partial must be yes or no"),
        ("", "line 1: there is no column"),
    ],
)
def test_a_bad_line_of_points_is_named(tmp_path, text, said):
    with pytest.raises(RunError, match=said):
        read_points(write(tmp_path / "p.csv", text))
    with pytest.raises(RunError, match="give a CSV file"):
        read_points(tmp_path / "none.csv")


def test_lateness(tmp_path):
    path = write(tmp_path / "l.csv", "student,share\nanna,0.5\n(late),0.8\n")
    shares = read_late(path, {"anna", "ben"})
    assert shares == {"anna": 0.5, "(late)": 0.8} and read_late(None, set()) == {}
    assert gradebook.share_of(entry("anna", late=True), shares) == 0.5
    assert gradebook.share_of(entry("ben", late=True), shares) == 0.8
    assert gradebook.share_of(entry("ben"), shares) == 1.0
    with pytest.raises(RunError, match="line 2: nobody called 'carl'"):
        read_late(write(tmp_path / "l.csv", "student,share\ncarl,0.5\n"), {"anna"})
    with pytest.raises(RunError, match="line 2: share must be a number from 0 to 1"):
        read_late(write(tmp_path / "l.csv", "student,share\nanna,2\n"), {"anna"})


def test_what_is_earned():
    marks = {"gae": Mark(2.0), "value_loss": Mark(3.0, True), "train_ppo": Mark(8.0, True)}
    assert gradebook.total(entry(), marks, {}, {}) == 2.0 + 0.0 + 6.0
    assert gradebook.total(entry(), marks, {"anna": 0.5}, {}) == 4.0
    assert gradebook.total(entry(), {"gae": Mark(1.0), "train_ppo": Mark(8.0)}, {}, {}) == 1.0


def test_the_tables(tmp_path):
    people = [entry(id="17", email="a@x.org"), entry("Zoë", status="not gradable", results=(), reasons=["it is empty"])]
    marks = {"gae": Mark(2.0), "value_loss": Mark(3.0), "train_ppo": Mark(5.0), "attention": Mark(9.0)}
    write_tables(tmp_path, people, marks, {}, {})
    rows = read(tmp_path / "grades.csv")
    assert [(row["student"], row["exercise"], row["points"], row["of"], row["verdict"], row["mistake"]) for row in rows] == [
        ("anna", "gae", "2", "2", "right", ""),
        ("anna", "value_loss", "0", "3", "wrong", "the mean is missing"),
        ("anna", "train_ppo", "0", "5", "wrong", "no"),
        ("Zoë", "", "0", "", "not gradable", ""),
    ]
    assert rows[3]["note"] == "it is empty"
    canvas = read(tmp_path / "canvas.csv")
    assert [row["RLHF from Shakespeare"] for row in canvas] == ["10", "2", "0"] and canvas[1]["ID"] == "17"
    moodle = read(tmp_path / "moodle.csv")
    assert moodle[0]["Identifier"] == "Participant 17" and moodle[0]["Grade"] == "2" and moodle[0]["Maximum grade"] == "10"
    assert moodle[0]["Last modified (grade)"] == ""  # without the column Moodle takes no file: importgradeslib.php, init()
    assert moodle[0]["Feedback comments"] == "7.6 value_loss: wrong; 7.10 train_ppo: wrong"
    assert moodle[1]["Feedback comments"] == "Not gradable: it is empty"
    assert read(tmp_path / "gradescope.csv")[0]["RLHF from Shakespeare (10 points)"] == "2"


def test_nothing_in_a_table_is_run_by_a_spreadsheet():
    text = table(("a", "b"), [{"a": "=HYPERLINK(1)", "b": "-1.5"}, {"a": "@x", "b": "-x"}, {"a": 'a,b\n"c"', "b": "ü"}]).decode(
        "utf-8-sig"
    )
    wide = table(("a",), [{"a": "＝1+1"}, {"a": "\n=1"}, {"a": "+4.5e3"}]).decode("utf-8-sig")
    assert [row[0] for row in csv.reader(io.StringIO(wide, newline=""))] == ["a", "'＝1+1", "'\n=1", "+4.5e3"]
    assert list(csv.reader(io.StringIO(text)))[1:] == [["'=HYPERLINK(1)", "-1.5"], ["'@x", "'-x"], ['a,b\n"c"', "ü"]]


def test_a_name_of_a_file_for_every_student():
    names = [
        slug(*one)
        for one in (("Zoë Müller", ""), ("Zoe Muller", ""), ("Zoë Müller", "2"), ("../../etc", ""), ("李雷", ""), ("CON", ""))
    ]
    assert len(set(names)) == 6 and all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") for name in names
    )


def test_an_entry_comes_back_where_nothing_has_changed(tmp_path):
    path = tmp_path / "results" / "anna.json"
    gradebook.save(path, "f1", entry())
    assert gradebook.load(path, "f1") == entry() == gradebook.load(path)
    assert gradebook.load(path, "f2") is None and gradebook.load(tmp_path / "none") is None


def test_the_status_of_a_submission():
    assert gradebook.status_of(Survey([], ["gae"], []), [RIGHT]) == ("graded", [])
    assert gradebook.status_of(Survey([], ["gae"], ["x.ipynb: it is empty"]), [RIGHT]) == (
        "partly graded",
        ["x.ipynb: it is empty"],
    )
    assert gradebook.status_of(Survey([], ["gae", "value_loss"], []), [RIGHT])[0] == "partly graded"
    assert gradebook.status_of(Survey([], [], ["x: it is empty"]), []) == ("not gradable", ["x: it is empty"])
    assert gradebook.status_of(Survey([], [], []), [])[0] == "not gradable"


def test_marks_for_prose_are_merged(tmp_path):
    path = write(tmp_path / "prose.csv", 'student,question,points,of,comment\nanna,7.A,2.5,3,"clear, and honest"\n')
    prose = read_prose(path, {"anna"})
    assert prose == {"anna": [Prose("7.A", 2.5, 3.0, "clear, and honest")]} and read_prose(tmp_path / "none.csv", set()) == {}
    write_tables(tmp_path, [entry(), entry("ben")], {"gae": Mark(2.0)}, {"anna": 0.5}, prose)
    assert [(row["student"], row["exercise"], row["points"]) for row in read(tmp_path / "grades.csv")] == [
        ("anna", "gae", "1"),
        ("anna", "7.A", "1.25"),
        ("ben", "gae", "2"),
    ]
    assert [row["RLHF from Shakespeare"] for row in read(tmp_path / "canvas.csv")] == ["5", "2.25", "2"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("anna,7.A,4,3,", "line 2: points must be a number from 0 to 3"),
        ("ben,7.A,1,3,", "line 2: nobody called 'ben'"),
        ("anna,7.A,1,3,\nanna,7.A,1,3,", "line 3: anna has a mark for '7.A' already"),
    ],
)
def test_a_bad_line_of_prose_is_named(tmp_path, text, said):
    with pytest.raises(RunError, match=said):
        read_prose(write(tmp_path / "prose.csv", "student,question,points,of,comment\n" + text), {"anna"})


@pytest.mark.parametrize("text", ["exercise,points\ngae," + "9" * 140_000, "x" * 140_000 + ",points\ngae,1"])
def test_a_cell_larger_than_any_is_refused_with_its_line(tmp_path, text):
    path = write(tmp_path / "p.csv", text)
    with pytest.raises(RunError, match=rf"^{path}, line \d: not a table \(field larger than field limit \(131072\)\)"):
        read_points(path)


def test_a_long_word_is_cut_short_in_a_message(tmp_path):
    path = write(tmp_path / "p.csv", "exercise,points\n" + "9" * 5000 + ",1")
    with pytest.raises(RunError, match=rf"^{path}, line 2: there is no exercise '999") as caught:
        read_points(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "change",
    [
        {"results": 7},
        {"results": ["x"]},
        {"results": [{"exercise": ["x"], "number": "1.1", "verdict": "right"}]},
        {"results": [{"exercise": "gae", "number": "1.1", "verdict": "right", "tried": "x"}]},
        {"reasons": 7},
        {"reasons": [7]},
        {"texts": {"2.A": 7}},
        {"student": None},
        {"work": []},
        {"unknown": 1},
        {"student": "\ud800"},
    ],
)
def test_a_damaged_entry_is_named(tmp_path, change):
    entry = Entry("Ann", "1", "", "graded", [], [Result("gae", "7.3", "right")])
    path = tmp_path / "ann.json"
    gradebook.save(path, "f" * 64, entry)
    assert gradebook.load(path) == entry
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(RunError, match=rf"^{path} is damaged \("):
        gradebook.load(path)
