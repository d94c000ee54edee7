import re

import pytest

from rlhf_lib import files, judge, widgets
from rlhf_lib.widgets import rating

from .helpers import SAMPLES, typist


def shown(box):
    """All that a person sees of a blind rating: HTML, labels, the words on buttons."""
    seen = []
    todo = [box]
    while todo:
        one = todo.pop()
        seen += [str(getattr(one, name, "")) for name in ("value", "description", "tooltip", "placeholder")]
        todo += getattr(one, "children", ())
    return "\n".join(seen)


def score_of(text):
    """A rater who likes exclamation and love."""
    return 5 if "!" in text else 4 if "love" in text or "happy" in text else 2


def rate_all(box, offset=0):
    while box.session.current is not None:
        box.scores["positivity"][min(5, score_of(box.session.text) + offset)].click()
        box.scores["sense"][3].click()


def test_three_models_are_rated_in_one_sheet(tmp_path):
    box = widgets.blind_rating({**SAMPLES, "negative": ["Alas!", "O woe!"]}, tmp_path / "ratings.csv")
    rate_all(box)
    box.buttons["reveal"].click()
    head, positivity, _ = widgets.result_rows(box.session.results())
    assert head == ["mean (95 % interval)", "base", "policy", "negative", "policy beats base"] and len(positivity) == len(head)


def test_ratings_are_written_one_by_one_and_the_source_is_hidden_until_the_end(tmp_path):
    path = tmp_path / "ratings.csv"
    box = widgets.blind_rating(SAMPLES, path, rater="r1")
    sources = re.compile("base|policy")
    for count in range(1, 7):
        text = box.session.text
        assert not sources.search(shown(box))
        box.scores["sense"][2].click()  # in either order, and a changed mind counts
        box.scores["sense"][4].click()
        assert len(widgets.read_ratings(path)) == count - 1
        box.scores["positivity"][score_of(text)].click()
        row = widgets.read_ratings(path)[-1]
        assert (row["text"], row["positivity"], row["sense"], row["rater"]) == (text, score_of(text), 4, "r1")
        assert not sources.search(path.read_text())
    assert not sources.search(shown(box))
    with pytest.raises(ValueError, match="once every sample is rated"):
        box.session.results()
    box.buttons["reveal"].click()
    rows = widgets.read_ratings(path)
    assert sorted(row["sample"] for row in rows) == list("123456")
    assert all(row["text"] in SAMPLES[row["source"]] for row in rows)
    assert path.read_text().splitlines()[0] == "sample,rater,positivity,sense,source,text"


def test_the_results_are_those_of_the_judge(tmp_path):
    box = widgets.blind_rating(SAMPLES, tmp_path / "ratings.csv")
    rate_all(box)
    box.buttons["reveal"].click()
    ratings = [
        {"sample": text, "source": side, "rater": "me", "positivity": score_of(text), "sense": 3}
        for side, texts in SAMPLES.items()
        for text in texts
    ]
    expected, result = judge.blind_rating(ratings), box.session.results()
    for score in ("positivity", "sense"):
        assert result[score]["win_rate"] == pytest.approx(expected[score]["win_rate"])
        assert result[score]["policy"] == pytest.approx(expected[score]["policy"])
    seen = box.passage.value
    assert "{:.2f} ({:.2f} to {:.2f})".format(*expected["positivity"]["policy"]) in seen
    assert "{:.0%} ({:.0%} to {:.0%})".format(*expected["positivity"]["win_rate"]) in seen
    assert "&lt;i&gt;rain" in seen and "<i>" not in seen


def test_the_samples_are_shuffled_by_seed_and_rater(tmp_path):
    many = {side: [f"{side[0]} {number}" for number in range(20)] for side in ("base", "policy")}
    session = widgets.BlindRating(many, tmp_path / "r.csv", "r1", seed=3)
    again, other, later = (
        widgets.BlindRating(many, tmp_path / "r.csv", rater, seed) for rater, seed in (("r1", 3), ("r2", 3), ("r1", 4))
    )
    assert session.order == again.order and session.items == again.items
    assert session.items == other.items and session.order != other.order
    assert session.items != later.items
    first_half = [session.items[number][0] for number in session.order[:20]]
    assert 4 <= first_half.count("base") <= 16


def test_a_rating_resumes_and_undoes(tmp_path):
    path = tmp_path / "ratings.csv"
    box = widgets.blind_rating(SAMPLES, path)
    box.keyboard.value = "3"
    box.keyboard.value = "35"
    box.keyboard.value = "3541"
    rows = widgets.read_ratings(path)
    assert [(row["positivity"], row["sense"]) for row in rows] == [(3, 5), (4, 1)]
    again = widgets.blind_rating(SAMPLES, path)
    assert again.session.current == box.session.current == again.session.order[2]
    again.keyboard.value = "2"
    again.keyboard.value = "2u"  # first the half-given one
    assert len(widgets.read_ratings(path)) == 2
    again.keyboard.value = "2uu"
    assert widgets.read_ratings(path) == rows[:1]
    assert again.session.current == again.session.order[1]


def test_what_was_revealed_can_no_longer_be_changed(tmp_path):
    path = tmp_path / "ratings.csv"
    box = widgets.blind_rating(SAMPLES, path)
    rate_all(box)
    box.buttons["undo"].click()
    assert len(widgets.read_ratings(path)) == 5
    rate_all(box)
    box.buttons["reveal"].click()
    before = path.read_bytes()
    for box_ in (box, widgets.blind_rating(SAMPLES, path)):
        assert box_.buttons["undo"].disabled and "policy" in box_.passage.value
        box_.buttons["undo"].click()
        assert "can no longer be changed" in box_.note.value
        box_.scores["sense"][1].click()
        box_.scores["positivity"][1].click()
    assert path.read_bytes() == before


def test_two_raters_rate_the_same_file(tmp_path):
    path = tmp_path / "ratings.csv"
    first, second = (widgets.blind_rating(SAMPLES, path, rater=name) for name in ("r1", "r2"))
    rate_all(first)
    first.buttons["reveal"].click()
    assert "one rater" in first.passage.value
    assert "policy" not in shown(second)
    rate_all(second, offset=1)
    assert {row["source"] for row in widgets.read_ratings(path) if row["rater"] == "r2"} == {""}
    second.buttons["reveal"].click()
    assert len(widgets.read_ratings(path)) == 12
    by_sample = [{row["sample"]: row["positivity"] for row in widgets.read_ratings(path) if row["rater"] == name}
                 for name in ("r1", "r2")]  # fmt: skip
    expected = judge.correlation([(by_sample[0][number], by_sample[1][number]) for number in by_sample[0]])
    assert second.session.results()["correlation"] == pytest.approx(expected)
    assert f"{expected:.2f}" in second.passage.value and "r1, r2" in second.passage.value


@pytest.mark.parametrize(
    "content, message",
    [
        ("a,b\n1,2\n", "first line must be"),
        ("sample,rater,positivity,sense,source,text\n1,me,6,3,,x\n", "rating 1: positivity must be 1 to 5, got '6'"),
        ("sample,rater,positivity,sense,source,text\n1,me,5,3,,x\n", "other samples"),
        (b"\xff\xfe\x00", "not a CSV file"),
        ("", "first line must be"),
    ],
)
def test_a_file_that_does_not_belong_is_refused(tmp_path, content, message):
    (tmp_path / "ratings.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        widgets.blind_rating(SAMPLES, tmp_path / "ratings.csv")


@pytest.mark.parametrize(
    "samples, message",
    [
        ({"base": ["a", "b"]}, "samples must be"),
        ({"base": ["a", "b"], "negative": ["c", "d"]}, "samples must be"),
        ({"base": ["a", "b"], "policy": ["c"]}, "at least 2 different"),
        ({"base": ["a", "b"], "policy": ["c", ""]}, "policy: text 2 is empty"),
        ({"base": "ab", "policy": ["c", "d"]}, "base must be a list"),
    ],
)
def test_too_few_or_bad_samples_are_refused(tmp_path, samples, message):
    with pytest.raises(ValueError, match=message):
        widgets.blind_rating(samples, tmp_path / "ratings.csv")
    session = widgets.BlindRating(SAMPLES, tmp_path / "ratings.csv")
    with pytest.raises(ValueError, match="positivity must be"):
        session.rate(0, 3)
    with pytest.raises(ValueError, match="hidden until"):
        session.reveal()


def test_rating_by_typing(tmp_path, capsys):
    session = widgets.rate_by_typing(SAMPLES, tmp_path / "ratings.csv", ask=typist("3 4", "9", "u", "34", "15", "q"))
    assert [(row["positivity"], row["sense"]) for row in session.mine()] == [(3, 4), (1, 5)]
    assert "policy" not in capsys.readouterr().out
    widgets.rate_by_typing(SAMPLES, tmp_path / "ratings.csv", ask=typist("22", "33", "44", "55"))
    assert "policy beats base" in capsys.readouterr().out
    assert {row["source"] for row in widgets.read_ratings(tmp_path / "ratings.csv")} == {"base", "policy"}


def test_a_sheet_is_read_and_written_while_no_other_rater_can(tmp_path, monkeypatch):
    """Two raters at once, in two processes, lose nothing: each change is made under a lock of the folder."""
    write, locked = rating.write_ratings, []
    monkeypatch.setattr(rating, "write_ratings", lambda path, rows: (locked.append(tmp_path in files.HELD), write(path, rows)))
    session = rating.BlindRating(SAMPLES, tmp_path / "ratings.csv")
    session.rate(4, 4)
    session.undo()
    while session.current is not None:
        session.rate(4, 4)
    session.reveal()
    assert locked == [True] * 9 and tmp_path not in files.HELD


def test_ratings_that_a_spreadsheet_saved_with_a_byte_order_mark_are_read(tmp_path):
    rating.BlindRating(SAMPLES, tmp_path / "ratings.csv").rate(4, 4)
    before = widgets.read_ratings(tmp_path / "ratings.csv")
    (tmp_path / "ratings.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "ratings.csv").read_bytes())
    assert widgets.read_ratings(tmp_path / "ratings.csv") == before
