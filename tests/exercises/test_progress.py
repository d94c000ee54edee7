"""What a learner has solved: remembered once, whatever is wrong with the file, and told as a table."""

import importlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib import exercises
from rlhf_lib.exercises import EXERCISES, NotYet, check
from rlhf_lib.exercises.progress import PROGRESS, progress, remember, solved, tries_in
from rlhf_lib.files import RunError

exercises.load()
NAMES = sorted(EXERCISES)
DAMAGED = [
    b"",
    b"[1]",
    b"3",
    b"null",
    b'{"gae": "yes"}',
    b'{"gae": null}',
    b'{"gae": [1]}',
    b"\xff\xfe",
    b'{"gae": 1' + b"0" * 400 + b"}",  # beyond what a float holds
    b'{"gae": 1' + b"0" * 5000 + b"}",  # beyond what Python reads
    b"[" * 100_000,  # deeper than the reader goes
    b'{"gae": 17',
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_pass_is_remembered_and_a_failure_is_not(here):
    with pytest.raises(NotYet):
        check("gae", lambda **given: None)
    assert solved() == {}
    check("gae", EXERCISES["gae"].right)
    first = solved()
    assert set(first) == {"gae"}
    check("gae", EXERCISES["gae"].right)
    check("value_loss", EXERCISES["value_loss"].right)
    assert set(solved()) == {"gae", "value_loss"} and solved()["gae"] == first["gae"]


def test_the_time_of_the_first_pass_stays(here, monkeypatch):
    for now in (1000.4, 2000.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert remember("gae")
    assert remember("bpe")
    assert solved() == {"gae": 1000.0, "bpe": 2000.0}


def test_the_file_is_json_that_a_person_can_read_and_its_path_may_be_another(here):
    path = here / "folder" / "mine.json"
    assert remember("gae", path) and remember("value_loss", path)
    assert list(json.loads(path.read_text(encoding="utf-8"))) == ["tries", "gae", "value_loss"]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 8
    assert set(solved(path)) == {"gae", "value_loss"} and solved() == {}
    assert " 2 of " in progress(path) and " 2 of " not in progress()


def test_tries_are_counted_until_the_first_pass(here):
    def tries():
        return tries_in((here / PROGRESS).read_text(encoding="utf-8"))

    def stub(rewards, values, gamma, lam, mask):
        raise NotImplementedError()

    for wrong in (lambda **given: None, stub, lambda **given: 3):
        with pytest.raises(NotYet):
            check("gae", wrong)
    assert tries() == {"gae": 2} and solved() == {}  # what is not written yet is no try
    for _ in range(3):
        check("gae", EXERCISES["gae"].right)
    with pytest.raises(NotYet):
        check("gae", lambda **given: None)
    check("value_loss", EXERCISES["value_loss"].right)
    assert tries() == {"gae": 3, "value_loss": 1} and solved().keys() == {"gae", "value_loss"}


@pytest.mark.parametrize("tries", [3, None, "x", [1], {"gae": "x"}, {"gae": None}, {"gae": 1.5}, {"gae": True}])
def test_tries_that_are_none_cost_nothing(here, tries):
    (here / PROGRESS).write_text(json.dumps({"tries": tries, "value_loss": 5}))
    assert remember("gae", passed=False) and solved() == {"value_loss": 5.0}
    assert tries_in((here / PROGRESS).read_text()) == {"gae": 1}


@pytest.mark.parametrize("content", DAMAGED, ids=[repr(content[:12]) for content in DAMAGED])
def test_a_damaged_memory_does_not_stop_a_learner(here, content):
    (here / PROGRESS).write_bytes(content)
    assert solved() == {}
    assert "0 of" in progress()
    check("gae", EXERCISES["gae"].right)
    assert set(solved()) == {"gae"}


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=20) | st.text(alphabet='{}[]",:gae1.', max_size=20).map(str.encode))
def test_whatever_is_in_the_file_is_read_as_names_and_times(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "drawn.json"
    path.write_bytes(content)
    assert all(type(name) is str and type(when) is float for name, when in solved(path).items())
    assert remember("gae", path) and "gae" in solved(path)


def test_a_folder_of_the_files_name_is_left_and_said(here, capsys):
    (here / PROGRESS).mkdir()
    assert solved() == {} and remember("gae") is False
    check("gae", EXERCISES["gae"].right)
    said = capsys.readouterr().out
    assert "right on" in said and "could not be noted" in said and len(said.splitlines()) == 1
    assert {one.name for one in here.iterdir()} <= {PROGRESS, "my_rlhf.py"} and (here / PROGRESS).is_dir()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RunError("cannot write: the disk is full")])
def test_a_full_disk_stops_no_learner(here, monkeypatch, error):
    assert remember("gae")

    def full(*_):
        raise error

    module = importlib.import_module("rlhf_lib.exercises.progress")  # as an attribute it is the function
    monkeypatch.setattr(module, "add_json", full)
    assert remember("value_loss") is False
    assert remember("gae") is True  # it is there already
    assert set(solved()) == {"gae"}


# ----------------------------------------------------------------------------------------- the table


KINDS = tuple(dict(kind) for kind in (EXERCISES, exercises.BUILDS, exercises.INVESTIGATIONS))  # as the course has them


def order(name):
    """Where an exercise, a build or an investigation stands: (chapter, place)."""
    number = next(kind[name] for kind in KINDS if name in kind).number
    chapter, place = number.split(".")
    return int(chapter), int(place) if place.isdigit() else place


def cells(chapter, table):
    """What the table says of a chapter: (its title, how many exercises, builds and investigations are done, what is left)."""
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {chapter} ")]
    return row.strip("| ").split(" | ")


def test_the_table_counts_what_is_solved(here):
    assert remember("gae")
    title, *counts, left = cells("07", progress())
    there = [[name for name, one in kind.items() if one.number.startswith("7.")] for kind in KINDS]
    assert title == "07 policy gradients" and counts == [f"{n} of {len(kind)}" for n, kind in zip((1, 0, 0), there)]
    assert left.split(", ") == [name for kind in there for name in sorted(kind, key=order) if name != "gae"]
    assert {"value_loss", "train_ppo", "7.A"} <= set(left.split(", "))


def test_the_order_of_the_table_is_that_of_the_numbers_whatever_was_declared_first(here, monkeypatch):
    before = progress()
    monkeypatch.setattr(importlib.import_module("rlhf_lib.exercises.progress"), "EXERCISES", dict(reversed(EXERCISES.items())))
    assert progress() == before


def test_a_table_of_what_is_begun_leaves_the_other_chapters_out(here):
    assert progress(begun=True).splitlines() == progress().splitlines()[:2]
    remember("gae")
    remember("train_bpe", passed=False)  # tried, and not solved
    assert progress(begun=True).splitlines() == [
        *progress().splitlines()[:2],
        *[r for r in progress().splitlines() if "| 07 " in r],
    ]
    exercises.done("9.A", "a finding that is long enough")
    assert [row[2:4] for row in progress(begun=True).splitlines()[2:]] == ["07", "09"]


@settings(max_examples=20, deadline=None)
@given(st.sets(st.sampled_from(NAMES)))
def test_every_exercise_is_either_solved_or_left_and_stands_in_its_chapters_order(tmp_path_factory, done):
    path = tmp_path_factory.getbasetemp() / "progress.json"
    path.write_text(json.dumps({**dict.fromkeys(done, 1.0), "an exercise of last year": 1.0}))
    table = progress(path)
    head = "| chapter | exercises | built | investigations | left to do |"
    assert table.splitlines()[:2] == [head, "|---|---|---|---|---|"]
    assert len(table.splitlines()) == 2 + len(exercises.CHAPTERS)
    rows = [cells(chapter, table) for chapter in exercises.CHAPTERS]
    left = [name for row in rows if row[-1] != "-" for name in row[-1].split(", ")]
    assert sorted(left) == sorted(set().union(*KINDS) - done)
    places = [order(name) for name in left if name in EXERCISES]
    assert places == sorted(places)
    counts = [row[1].split(" of ") for row in rows if row[1] != "-"]  # a chapter of builds has no exercises
    assert sum(int(solved) for solved, _ in counts) == len(done)
    assert sum(int(all_of_them) for _, all_of_them in counts) == len(NAMES)
