import pytest

from rlhf_lib import labels, widgets
from rlhf_lib.files import RunError

from .helpers import lines, typist

TEXTS = ["Sweet love, welcome.", "He is dead.\nDead, I say!", "The door is <b>shut</b> & barred."]


def test_every_press_writes_a_label_that_labels_reads(tmp_path):
    box = widgets.labelling(TEXTS, tmp_path / "mine.jsonl", reader="r1", checkpoint="base-1")
    assert not (tmp_path / "mine.jsonl").exists()
    for count, name in enumerate(("positive", "negative", "neutral"), 1):
        box.buttons[name].click()
        assert [label.label for label in labels.read(tmp_path / "mine.jsonl")][-1] == name
        assert box.count.value == f"{count} of 3 labelled by r1"
    assert lines(tmp_path / "mine.jsonl")[1] == {
        "text": TEXTS[1], "checkpoint": "base-1", "label": "negative", "reader": "r1"
    }  # fmt: skip
    assert "Done" in box.passage.value
    assert all(box.buttons[name].disabled for name in ("positive", "negative", "neutral", "skip"))
    box.buttons["positive"].click()
    assert len(labels.read(tmp_path / "mine.jsonl")) == 3


def test_keys_do_what_the_buttons_do(tmp_path):
    box = widgets.labelling(TEXTS, tmp_path / "mine.jsonl")
    box.keyboard.value = "n"
    box.keyboard.value = "nxP"  # an unknown key does nothing; two keys may come at once
    assert [label.label for label in labels.read(tmp_path / "mine.jsonl")] == ["negative", "positive"]
    box.keyboard.value = "nxPu"
    box.keyboard.value = "nx"  # rubbed out: nothing to do
    box.keyboard.value = "nx0"
    assert [label.label for label in labels.read(tmp_path / "mine.jsonl")] == ["negative", "neutral"]
    box.keyboard.value = "nx0s"
    assert box.session.progress() == (2, 1, 3)


def test_undo_takes_out_the_last_line_and_no_other(tmp_path):
    path = tmp_path / "both.jsonl"
    other = labels.Label(TEXTS[0], "negative", "r2", (TEXTS[0], ""))
    labels.append(path, other)
    box = widgets.labelling(TEXTS, path, reader="r1")
    box.buttons["positive"].click()
    box.buttons["negative"].click()
    labels.append(path, labels.Label("Else.", "neutral", "r2", ("Else.", "")))
    box.buttons["undo"].click()
    assert [(row["reader"], row["text"]) for row in lines(path)] == [("r2", TEXTS[0]), ("r1", TEXTS[0]), ("r2", "Else.")]
    assert box.session.current == TEXTS[1] and "Dead, I say!" in box.passage.value
    box.buttons["undo"].click()
    assert box.buttons["undo"].disabled
    box.buttons["undo"].click()  # nothing left to undo
    assert [row["reader"] for row in lines(path)] == ["r2", "r2"]


def test_a_new_session_goes_on_where_the_last_one_stopped(tmp_path):
    widgets.labelling(TEXTS, tmp_path / "mine.jsonl").buttons["positive"].click()
    box = widgets.labelling(TEXTS, tmp_path / "mine.jsonl")
    assert box.session.current == TEXTS[1] and box.session.progress() == (1, 0, 3)
    box.buttons["undo"].click()  # also a label of the session before
    assert box.session.current == TEXTS[0] and lines(tmp_path / "mine.jsonl") == []


def test_a_skipped_passage_is_not_written_and_comes_back_in_the_next_session(tmp_path):
    box = widgets.labelling(TEXTS, tmp_path / "mine.jsonl")
    box.buttons["skip"].click()
    box.buttons["neutral"].click()
    assert [row["text"] for row in lines(tmp_path / "mine.jsonl")] == [TEXTS[1]]
    assert "1 skipped" in box.count.value and "Run the cell again" not in box.passage.value
    box.buttons["positive"].click()
    assert "Run the cell again for those that were skipped." in box.passage.value
    box.buttons["undo"].click()
    assert widgets.Labelling(TEXTS, tmp_path / "mine.jsonl").current == TEXTS[0]
    box.buttons["undo"].click()
    assert box.session.current == TEXTS[1] and lines(tmp_path / "mine.jsonl") == []
    box.buttons["undo"].click()
    assert box.session.current == TEXTS[0] and box.session.progress() == (0, 0, 3)


def test_two_raters_share_a_file_and_see_their_agreement_at_the_end(tmp_path):
    path = tmp_path / "both.jsonl"
    first, second = (widgets.labelling(TEXTS, path, reader=name) for name in ("r1", "r2"))
    for mine, theirs in (("positive", "positive"), ("negative", "neutral"), ("neutral", "neutral")):
        assert "kappa" not in first.passage.value
        first.buttons[mine].click()
        second.buttons[theirs].click()
    read = labels.read(path)
    sides = [[label for label in read if label.reader == name] for name in ("r1", "r2")]
    expected = labels.agreement(*sides)
    assert expected["passages"] == 3
    assert second.session.agreement() == {"r1": expected}
    assert f"{expected['agreement']:.0%}, kappa {expected['kappa']:.2f}" in second.passage.value


def test_two_windows_of_one_reader_never_label_what_was_not_shown(tmp_path):
    left, right = (widgets.labelling(TEXTS, tmp_path / "mine.jsonl") for _ in range(2))
    left.buttons["positive"].click()
    right.buttons["negative"].click()  # still shows the first passage
    assert [(row["text"], row["label"]) for row in lines(tmp_path / "mine.jsonl")] == [(TEXTS[0], "positive")]
    assert right.session.current == TEXTS[1]


def test_passages_are_escaped(tmp_path):
    box = widgets.labelling(TEXTS[2:], tmp_path / "<u>.jsonl")
    assert "<b>" not in box.passage.value and "&lt;b&gt;shut&lt;/b&gt; &amp; barred" in box.passage.value
    box.buttons["neutral"].click()
    assert "<u>" not in box.passage.value


def test_a_file_that_cannot_be_written_is_said_and_the_passage_stays(tmp_path, monkeypatch):
    box = widgets.labelling(TEXTS, tmp_path / "mine.jsonl")

    def full(path, label):
        raise RunError("the disk is <full>")

    with monkeypatch.context() as patch:
        patch.setattr(labels, "append", full)
        box.buttons["positive"].click()
    assert "the disk is &lt;full&gt;" in box.note.value and box.session.current == TEXTS[0]
    box.buttons["positive"].click()
    assert box.note.value == "" and box.session.current == TEXTS[1]


def test_a_file_damaged_meanwhile_is_said(tmp_path):
    box = widgets.labelling(TEXTS, tmp_path / "mine.jsonl")
    (tmp_path / "mine.jsonl").write_text("{oops\n")
    box.buttons["positive"].click()
    assert "line 1" in box.note.value
    assert (tmp_path / "mine.jsonl").read_text() == "{oops\n"
    with pytest.raises(labels.LabelError, match="line 1"):
        widgets.labelling(TEXTS, tmp_path / "mine.jsonl")


@pytest.mark.parametrize(
    "texts, reader, message",
    [
        ("one text", "me", "must be a list"),
        ([], "me", "no text"),
        (["a", " \n"], "me", "text 2 is empty"),
        ([1], "me", "must be a list of texts"),
        (["a"], " ", "reader must be a name"),
        (["a"], None, "reader must be a name"),
    ],
)
def test_bad_input_is_said_in_one_sentence(tmp_path, texts, reader, message):
    with pytest.raises(ValueError, match=message):
        widgets.labelling(texts, tmp_path / "mine.jsonl", reader)


def test_a_passage_given_twice_is_asked_for_once(tmp_path):
    box = widgets.labelling(["a", "b", "a"], tmp_path / "mine.jsonl")
    box.buttons["positive"].click()
    box.buttons["positive"].click()
    assert len(labels.read(tmp_path / "mine.jsonl")) == 2 and box.session.current is None
    with pytest.raises(ValueError, match="unknown label 'good'"):
        box.session.label("good")


def test_labelling_by_typing(tmp_path):
    session = widgets.label_by_typing(TEXTS, tmp_path / "mine.jsonl", ask=typist("n", "what?", "u", " P ", "s", "q"))
    assert [row["label"] for row in lines(tmp_path / "mine.jsonl")] == ["positive"]
    assert session.current == TEXTS[2]
    session = widgets.label_by_typing(TEXTS, tmp_path / "mine.jsonl", ask=typist("0", "0"))
    assert session.progress() == (3, 0, 3)


def test_every_question_says_which_key_stands_for_which_label(tmp_path):
    asked = []
    widgets.label_by_typing(TEXTS, tmp_path / "mine.jsonl", ask=lambda question: asked.append(question) or "q")
    assert asked == [f"\n{TEXTS[0]}\n[0 of 3] n negative, 0 neutral, p positive (s skip, u undo, q stop): "]
    box = widgets.labelling(TEXTS, tmp_path / "mine.jsonl")
    assert box.keyboard.placeholder == "click here: n negative, 0 neutral, p positive"


def test_some_passages_are_shown_again_and_their_second_labels_stand_under_another_name(tmp_path):
    texts = [f"Passage {number}." for number in range(20)]
    box = widgets.labelling(texts, tmp_path / "mine.jsonl", reader="r1", again=4)
    shown = []
    while box.session.current is not None:
        shown.append(box.session.current)
        assert box.count.value.startswith(f"{len(shown) - 1} of 24 labelled by r1")
        assert f"passage {len(shown)} of 24" in box.passage.value
        box.buttons["negative" if shown[-1] in shown[:-1] else "neutral"].click()
    twice = [text for text in texts if shown.count(text) == 2]
    assert len(shown) == 24 and len(twice) == 4 and set(twice) <= set(texts[:10])
    assert list(dict.fromkeys(shown)) == texts  # the first showings are in order
    assert min(place for place, text in enumerate(shown) if text in shown[:place]) >= 10
    read = labels.read(tmp_path / "mine.jsonl")
    assert {label.reader for label in read} == {"r1", "r1" + labels.AGAIN}
    assert [label.text for label in labels.first_readings(read)] == texts
    found = box.session.agreement()["r1, again"]
    assert found["passages"] == 4 and found["agreement"] == 0
    assert "r1, again read 4 of them too: the same label on 0%" in box.passage.value


def test_undo_skip_and_a_new_session_know_first_and_second_showings_apart(tmp_path):
    texts = [f"Passage {number}." for number in range(4)]
    session = widgets.Labelling(texts, tmp_path / "mine.jsonl", again=2)
    order = list(session.items)
    for _ in range(order.index(next(item for item in order if item[1] == "me, again"))):
        session.label("positive")
    first = session.current
    session.skip()
    assert session.current != first and session.progress() == (2, 1, 6)
    session.undo()
    assert session.current == first
    session.label("negative")
    assert [label.label for label in labels.read(tmp_path / "mine.jsonl") if label.text == first] == ["positive", "negative"]
    session.undo()
    assert [label.label for label in labels.read(tmp_path / "mine.jsonl") if label.text == first] == ["positive"]
    session.label("neutral")
    later = widgets.label_by_typing(texts, tmp_path / "mine.jsonl", again=2, ask=typist("p", "q"))
    assert later.items == order and later.progress() == (4, 0, 6)


@pytest.mark.parametrize("again", [-1, 2])
def test_no_more_than_half_of_the_passages_are_shown_again(tmp_path, again):
    with pytest.raises(ValueError, match="again must lie between 0 and 1"):
        widgets.Labelling(TEXTS, tmp_path / "mine.jsonl", again=again)
