import json

import matplotlib.pyplot as plt
import pytest

from rlhf_lib import plots
from rlhf_lib.exercises import declare, done, findings, progress
from rlhf_lib.exercises.declare import Investigation

SENTENCE = "More heads did not help: 12 % of 50 in every run."


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.delenv("RLHF_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    declare.load()
    monkeypatch.setattr(declare, "INVESTIGATIONS", declare.INVESTIGATIONS)
    for number in ("2.Y", "2.Z"):
        Investigation(number, f"Title of {number}")
    yield tmp_path
    for number in ("2.Y", "2.Z"):
        declare.INVESTIGATIONS.pop(number)


def test_a_finding_is_noted_with_its_figure_and_ticks_in_the_table(here, capsys):
    fig, ax = plt.subplots()
    ax.plot([1, 2])
    done("2.Z", SENTENCE, figure=fig)
    assert capsys.readouterr().out == "✓ 2.Z Title of 2.Z: noted, with its figure\n"
    assert findings()["2.Z"]["finding"] == SENTENCE
    assert (here / "figures" / "2.Z.png").read_bytes().startswith(b"\x89PNG")
    row = next(line for line in progress().splitlines() if line.startswith("| 02"))
    assert "2.Y" in row and "2.Z" not in row


def test_a_cell_that_ends_with_it_shows_the_figure_once(here):
    fig, _ = plots.figure()
    assert done("2.Z", SENTENCE, figure=fig) is fig
    own, _ = plt.subplots()  # a notebook shows what pyplot has made, whatever the cell ends with
    assert done("2.Z", SENTENCE, figure=own) is None
    plt.close(own)
    assert done("2.Z", SENTENCE) is None
    (here / "findings.json").unlink()
    (here / "findings.json").mkdir()
    assert done("2.Z", SENTENCE, figure=fig) is fig  # not noted, but seen


def test_a_later_sentence_replaces_the_first_and_leaves_the_others(here):
    done("2.Z", SENTENCE)
    done("2.Y", SENTENCE + " Ü")
    done("2.Z", "It was the learning rate  after all.")
    assert {number: note["finding"] for number, note in findings().items()} == {
        "2.Y": SENTENCE + " Ü",
        "2.Z": "It was the learning rate after all.",
    }


@pytest.mark.parametrize("finding", ["", "...", "it was four words", None, 7, "? ? ? ? ? ?"])
def test_no_sentence_no_tick(here, finding):
    with pytest.raises(ValueError, match=r"2\.Z: say in a sentence of at least 5 words"):
        done("2.Z", finding)
    assert findings() == {}


def test_an_unknown_number_is_said(here):
    with pytest.raises(KeyError, match=r"no investigation '2\.X'; there are .*2\.Z"):
        done("2.X", SENTENCE)


def test_two_of_one_number_are_refused():
    with pytest.raises(ValueError, match=r"two investigations are called 2\.Z"):
        Investigation("2.Z", "again")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"2.Z": 3}', '{"2.Z": {"finding": "x"}}', "\udcff"])
def test_a_damaged_file_counts_as_none_and_is_mended_by_the_next(here, content):
    (here / "findings.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    assert findings() == {}
    done("2.Z", SENTENCE)
    assert list(json.loads((here / "findings.json").read_text(encoding="utf-8"))) == ["2.Z"]


def test_it_lives_in_the_learners_folder(here, monkeypatch):
    monkeypatch.setenv("RLHF_HOME", str(here / "drive"))
    done("2.Z", SENTENCE)
    assert (here / "drive" / "findings.json").exists() and not (here / "findings.json").exists()


def test_a_folder_that_cannot_be_written_costs_a_word_and_no_more(here, capsys):
    (here / "findings.json").mkdir()
    done("2.Z", SENTENCE)
    assert "could not be noted" in capsys.readouterr().out
