"""The score: two points before the program is read, one after, and half of them for one of two."""

import importlib
import json

import pytest

from rlhf_lib import hunt
from rlhf_lib.hunt.score import ANSWERS, FILE, fingerprint
from tests.hunt.repairs import REPAIRS

score = importlib.import_module("rlhf_lib.hunt.score")  # the package's own `score` is the function
RIGHT = {case: tuple(REPAIRS.get(case, ("nothing",))) for case in hunt.CASES}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    monkeypatch.setattr(score, "GUESSED", set())
    return tmp_path


def total():
    return float(hunt.score().splitlines()[-1].split("**")[1])


def test_the_right_causes_are_those_that_the_repairs_mend():
    assert {case: {fingerprint(case, cause) for cause in causes} for case, causes in RIGHT.items()} == ANSWERS


def test_all_guessed_unread_are_38_points(capsys):
    for case, causes in RIGHT.items():
        hunt.guess(case, *causes)
    assert capsys.readouterr().out.count("✓ case") == 19
    assert total() == 38


def test_after_reading_a_case_counts_one_point(capsys):
    assert hunt.source(3).startswith("def mend_03(seed=0, rollouts=15):")
    hunt.guess("03", "one-step")
    assert "that is it, 1 point. Now mend it" in capsys.readouterr().out and total() == 1


def test_a_wrong_guess_waits_for_the_program_and_there_is_one_more(capsys):
    hunt.guess("03", "sign")
    hunt.guess("03", "one-step")
    assert "that guess was made. Run the next cell" in capsys.readouterr().out.splitlines()[-1] and total() == 0
    assert "def study(" in hunt.source("03", "study")
    hunt.guess("03", "one-step")
    assert total() == 1
    hunt.guess("03", "sign")
    assert "settled" in capsys.readouterr().out.splitlines()[-1] and total() == 1


def test_two_wrong_guesses_are_the_last(capsys):
    hunt.guess("06", "leak")
    hunt.source("06")
    hunt.guess("06", "dropout")
    hunt.guess("06", "nothing")
    assert "settled" in capsys.readouterr().out.splitlines()[-1] and total() == 0


def test_one_of_two_is_half_of_the_points(capsys):
    hunt.guess("09", "no-end")
    assert "one of two things" in capsys.readouterr().out and total() == 1
    hunt.source("14")
    hunt.guess("14", "kl-of-another", "sign")
    assert "the other while you mend it" in capsys.readouterr().out and total() == 1.5


def test_the_other_of_two_may_be_named_with_the_program(capsys):
    hunt.guess("09", "no-end")
    hunt.read("09")
    hunt.guess("09", "no-end", "padding-learnt")
    assert "that is it, 1.5 points" in capsys.readouterr().out and total() == 1.5
    hunt.guess("09", "no-end", "padding-learnt")
    assert "settled" in capsys.readouterr().out and total() == 1.5


def test_a_right_cause_beside_one_too_many_counts_half(capsys):
    hunt.guess("03", "one-step", "sign")
    assert "only one thing is wrong: 1 point" in capsys.readouterr().out and total() == 1


def test_the_first_guess_again_costs_nothing(capsys):
    """As when all cells are run once more."""
    hunt.guess("03", "sign")
    hunt.read("03")
    hunt.guess("03", "sign")
    assert "that was the first guess" in capsys.readouterr().out.splitlines()[-1]
    hunt.guess("03", "one-step")
    assert total() == 1


@pytest.mark.parametrize("causes, error, words", [
    (("gremlins",), KeyError, "there is no cause 'gremlins'; there are nothing, "),
    ((), ValueError, "name one cause or two"),
    (("leak", "leak"), ValueError, "two different ones"),
    (("leak", "sign", "dropout"), ValueError, "name one cause or two"),
])  # fmt: skip
def test_what_cannot_be_guessed_is_refused_and_not_noted(causes, error, words, folder):
    with pytest.raises(error, match=words):
        hunt.guess("03", *causes)
    assert not (folder / FILE).exists()


@pytest.mark.parametrize("text", ["", "[]", "null", '{"03": 1}', '{"03": {"points": "many", "unread": 3}}', "\xff"])
def test_a_damaged_note_is_none(text, folder):
    (folder / FILE).write_text(text, encoding="latin-1")
    assert total() == 0
    hunt.read("03")
    hunt.guess("03", "one-step")  # and the hunt goes on
    assert total() == 2


def test_a_folder_that_cannot_be_written_stops_no_hunt(folder, monkeypatch, capsys):
    monkeypatch.setenv("RLHF_HOME", str(folder / "a file" / "no folder"))
    (folder / "a file").write_text("", encoding="utf-8")
    assert "def mend_03" in hunt.source("03")
    hunt.guess("03", "one-step")
    assert "✓ case 03" in capsys.readouterr().out


def test_what_is_noted_is_plain(folder):
    hunt.guess("03", "one-step")
    assert json.loads((folder / FILE).read_text(encoding="utf-8")) == {"03": {"unread": ["one-step"], "points": 2.0}}


def test_a_question_mark_is_no_guess_yet(capsys):
    hunt.guess("01", "?")
    assert "case 01: not guessed yet" in capsys.readouterr().out
    assert hunt.score().count("| - | - | 0 |") == 19


def test_a_program_is_printed_when_a_guess_was_made(capsys):
    hunt.read("3")
    assert "First a guess" in capsys.readouterr().out and total() == 0
    hunt.guess("03", "sign")
    hunt.read("3")
    assert "def mend_03(seed=0, rollouts=15):" in capsys.readouterr().out
    hunt.guess("03", "one-step")
    assert total() == 1


def test_where_nothing_can_be_noted_a_guess_still_opens_the_program(folder, monkeypatch, capsys):
    monkeypatch.setenv("RLHF_HOME", str(folder / "file"))
    (folder / "file").write_text("")
    hunt.guess("03", "one-step")
    hunt.read("03")
    assert "def mend_03" in capsys.readouterr().out
