import itertools
import json
import re
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib import corpus, labels
from rlhf_lib.judge import GoldJudge
from rlhf_lib.labels import Label, LabelError

WORKS = {"hamlet": "HAMLET.\nThe rest is silence.\n\nHORATIO.\nGood night, sweet prince.", "macbeth": "MACBETH.\nTomorrow."}
RANGE = {"work": "hamlet", "start": 8, "end": 28, "label": "negative", "reader": "r1"}
OWN = {"text": "KING.\nWelcome, sweet prince.", "checkpoint": "base-1", "label": "positive", "reader": "r2"}


@pytest.fixture(scope="module")
def plays():
    return corpus.load()


@pytest.fixture(scope="module")
def some_plays(plays):
    return plays.select(range(0, 38, 5))


def own(text, label="neutral", reader="r1", checkpoint="base-1", sense=None):
    return Label(text, label, reader, (text, checkpoint), sense)


def put(folder, *lines):
    """A label file of these lines, a dict or raw text each."""
    path = folder / "labels.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


# ----------------------------------------------------------------------------------------- reading and writing


def test_a_range_is_resolved_in_its_work_and_an_own_text_stands_as_it_is(tmp_path):
    first, second = labels.read(put(tmp_path, RANGE, OWN), WORKS)
    assert first == Label("The rest is silence.", "negative", "r1", ("hamlet", 8, 28))
    assert second == Label("KING.\nWelcome, sweet prince.", "positive", "r2", ("KING.\nWelcome, sweet prince.", "base-1"))


def test_the_targets_are_the_ends_and_a_soft_half():
    assert [own("x", label).target for label in labels.LABELS] == [0.0, 0.5, 1.0]


def test_a_file_keeps_its_order_and_blank_lines_do_not_count(tmp_path):
    rows = [{**OWN, "text": text} for text in ("c", "a", "b")]
    path = put(tmp_path, rows[0], "", "   ", rows[1], rows[2], "")
    assert [label.text for label in labels.read(path)] == ["c", "a", "b"]


# no surrogates: they are no characters, and UTF-8 cannot hold them
LABEL = st.builds(
    own,
    st.text(min_size=1, max_size=30).filter(str.strip),
    st.sampled_from(labels.LABELS),
    st.text(max_size=4),
    st.text(max_size=4),
    st.sampled_from([None, 1, 3, 5]),
)


@settings(deadline=None, max_examples=60)
@given(found=st.lists(LABEL, unique_by=lambda label: (label.source, label.reader), max_size=5))
def test_what_is_written_or_appended_is_read_back(tmp_path_factory, found):
    folder = tmp_path_factory.mktemp("labels")
    labels.write(folder / "written.jsonl", found)
    assert labels.read(folder / "written.jsonl") == found
    for label in found:
        labels.append(folder / "appended.jsonl", label)
        assert labels.read(folder / "appended.jsonl") == found[: found.index(label) + 1]
    assert not found or (folder / "appended.jsonl").read_bytes() == (folder / "written.jsonl").read_bytes()


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1e", "\r", "\n"])
def test_every_kind_of_line_break_inside_a_text_stays_inside(tmp_path, mark):
    label = own(f"To be,{mark}or not to be")
    labels.write(tmp_path / "labels.jsonl", [label])
    assert labels.read(tmp_path / "labels.jsonl") == [label]


def test_ranges_survive_a_round_trip_as_ranges(tmp_path):
    found = labels.read(put(tmp_path, RANGE, OWN), WORKS)
    labels.write(tmp_path / "again.jsonl", found)
    lines = (tmp_path / "again.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [RANGE, OWN]
    assert labels.read(tmp_path / "again.jsonl", WORKS) == found


def test_sense_is_read_and_written_where_there_is_one(tmp_path):
    path = put(tmp_path, OWN, {**RANGE, "sense": 4}, {**OWN, "reader": "r3", "sense": 1})
    found = labels.read(path, WORKS)
    assert [label.sense for label in found] == [None, 4, 1]
    labels.write(tmp_path / "again.jsonl", found)
    rows = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [OWN, {**RANGE, "sense": 4}, {**OWN, "reader": "r3", "sense": 1}]


def test_first_readings_keep_the_first_of_each_passage_in_order():
    given = [own("b", reader="r1"), own("a", reader="r2"), own("b", "positive", "r3"), own("c"), own("a", reader="r4")]
    assert labels.first_readings(given) == [given[0], given[1], given[3]]
    other = own("b", checkpoint="base-2")  # another model wrote the same words: another passage
    assert labels.first_readings([given[0], other]) == [given[0], other]
    assert labels.first_readings([]) == []


def test_what_a_reader_has_read_twice_is_paired_reader_by_reader():
    given = [
        *[own("a", "positive", "ann"), own("b", "negative", "ann"), own("c", "neutral", "ann"), own("a", "neutral", "bob")],
        *[own("b", "negative", "ann, again"), own("a", "neutral", "ann, again"), own("a", "positive", "bob, again")],
        own("d", "positive", "bob, again"),  # the first reading was lost
    ]
    assert labels.read_again(given) == {
        "ann": [("negative", "negative"), ("positive", "neutral")],
        "bob": [("neutral", "positive")],
    }
    assert labels.read_again(given[:4]) == {}


def test_append_keeps_what_is_there_and_heals_a_missing_line_end(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(OWN))  # no line end, as an editor may leave it
    labels.append(path, own("new words"))
    assert [label.text for label in labels.read(path)] == [OWN["text"], "new words"]
    assert path.read_bytes().startswith(json.dumps(OWN).encode() + b"\n")


def test_two_readers_of_one_passage_and_two_places_of_one_reader_are_no_duplicates(tmp_path):
    path = put(tmp_path, RANGE, {**RANGE, "reader": "r2"}, {**RANGE, "end": 27}, OWN, {**OWN, "checkpoint": "base-2"})
    assert len(labels.read(path, WORKS)) == 5


# ----------------------------------------------------------------------------------------- what is refused


def without(row, field):
    return {name: value for name, value in row.items() if name != field}


BAD = {
    "unknown label": ({**OWN, "label": "sad"}, "unknown label 'sad'; use one of negative, neutral, positive"),
    "label in capitals": ({**OWN, "label": "Positive"}, "unknown label 'Positive'"),
    "label is a number": ({**OWN, "label": 1}, "unknown label 1"),
    **{
        f"sense {sense!r}": ({**OWN, "sense": sense}, "sense must be a whole number from 1 to 5, got ")
        for sense in (0, 6, 3.0, 2.5, True, "4", [4])
    },
    "unknown work": ({**RANGE, "work": "hamlet-2"}, "the work 'hamlet-2' is not in the corpus"),
    "end after the work": ({**RANGE, "end": 65}, "the range 8 to 65 lies outside hamlet, which has 64 characters"),
    "start before the work": ({**RANGE, "start": -1}, "the range -1 to 28 lies outside hamlet"),
    "start at the end": ({**RANGE, "start": 28}, "the range 28 to 28 lies outside hamlet"),
    "range backwards": ({**RANGE, "start": 29}, "the range 29 to 28 lies outside hamlet"),
    "range in words": ({**RANGE, "end": "28"}, "the range 8 to '28' lies outside hamlet"),
    "range in fractions": ({**RANGE, "end": 28.5}, "the range 8 to 28.5 lies outside hamlet"),
    "range of blanks": ({**RANGE, "start": 28, "end": 30}, "the passage is empty; delete the line"),
    "empty text": ({**OWN, "text": ""}, "the passage is empty; delete the line"),
    "blank text": ({**OWN, "text": " \n"}, "the passage is empty; delete the line"),
    "text is a number": ({**OWN, "text": 5}, "the passage is empty; delete the line"),
    "no label": (without(OWN, "label"), "not a label, it has no label.*data/README.md"),
    "no reader": (without(RANGE, "reader"), "not a label, it has no reader"),
    "no checkpoint": (without(OWN, "checkpoint"), "not a label, it has no checkpoint"),
    "no text and no work": (without(OWN, "text"), "not a label, it has no text"),
    "no start": (without(RANGE, "start"), "not a label, it has no start"),
    "no end": (without(RANGE, "end"), "not a label, it has no end"),
    "reader is a list": ({**OWN, "reader": ["r1"]}, "not a label, its reader is no text"),
    "work is a list": ({**RANGE, "work": ["hamlet"]}, "not a label, its work is no text"),
    "checkpoint is an object": ({**OWN, "checkpoint": {}}, "not a label, its checkpoint is no text"),
    "reader is a number": ({**OWN, "reader": 7}, "not a label, its reader is no text but 7; mend the line"),
    "reader is null": ({**OWN, "reader": None}, "not a label, its reader is no text but None; mend the line"),
    "half a character": (json.dumps({**OWN, "text": "love \ud83d"}), r"half a character \(a lone surrogate\) stands in a text"),
    "half a character in a name": (json.dumps({**OWN, "reader": "\udc00"}), r"half a character \(a lone surrogate\)"),
    "nested a thousand times": ("[" * 100_000, r"not JSON that can be read \(RecursionError\)"),
    "cut short": (json.dumps(OWN)[:-5], "not JSON "),
    "not JSON": ("positive\tTo be", "not JSON "),
    "a list": ("[1, 2]", "not a JSON object with named fields"),
    "a number": ("7", "not a JSON object with named fields"),
    "null": ("null", "not a JSON object with named fields"),
}


@pytest.mark.parametrize(("line", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_named_by_file_and_line(tmp_path, line, said):
    path = put(tmp_path, OWN, "", line, {**OWN, "reader": "r3"})
    with pytest.raises(LabelError, match=rf"{re.escape(str(path))}, line 3: {said}"):
        labels.read(path, WORKS)


def test_ranges_need_a_corpus(tmp_path):
    with pytest.raises(LabelError, match="line 1: the work 'hamlet' is not in the corpus"):
        labels.read(put(tmp_path, RANGE))


@pytest.mark.parametrize("row", [RANGE, OWN])
@pytest.mark.parametrize("again", ["negative", "positive"])
def test_the_same_passage_and_reader_twice_is_refused_whatever_the_label(tmp_path, row, again):
    path = put(tmp_path, {**OWN, "reader": "r9"}, row, "", {**row, "label": again})
    said = rf"{re.escape(str(path))}, line 4: the same passage and reader as line 2; delete one of the two"
    with pytest.raises(LabelError, match=said):
        labels.read(path, WORKS)


def test_a_missing_file_is_named_with_what_to_do(tmp_path):
    with pytest.raises(LabelError, match=r"no label file at .*gone\.jsonl: label some passages first"):
        labels.read(tmp_path / "gone.jsonl")


def test_bytes_that_are_not_utf8_are_placed_by_file_and_line(tmp_path):
    path = tmp_path / "labels.jsonl"
    good = (json.dumps({**OWN, "text": "née"}, ensure_ascii=False) + "\n").encode()
    path.write_bytes(good * 2 + good.decode().encode("latin-1"))
    place = 2 * len(good) + good.index("é".encode())
    with pytest.raises(LabelError, match=rf"{re.escape(str(path))}, line 3: not UTF-8 \(byte {place}\); save the file as UTF-8"):
        labels.read(path)


# ----------------------------------------------------------------------------------------- the split


def test_the_same_texts_are_held_out_in_every_run():
    # written down once: a draw that depends on the process, the order or the rest of the set gives others
    _, held_out = labels.split([own(f"passage {number}") for number in range(40)])
    numbers = [int(label.text.split()[1]) for label in held_out]
    assert numbers == [12, 14, 28, 30, 32, 35]
    alone = [number for number in range(40) if labels.split([own(f"passage {number}")])[1]]
    assert alone == numbers


def test_a_text_is_in_one_half_only_whoever_read_it_and_wherever_it_stands():
    texts = [f"passage {number}" for number in range(300)]
    found = [Label(text, "neutral", reader, (text, place)) for text in texts for reader in ("r1", "r2") for place in "ab"]
    training, held_out = labels.split(found)
    assert sorted(map(repr, training + held_out)) == sorted(map(repr, found))
    assert not {label.text for label in training} & {label.text for label in held_out}
    backwards = labels.split(found[::-1])
    assert backwards == (training[::-1], held_out[::-1])


def test_the_held_out_share_is_what_was_asked_for():
    found = [own(f"passage {number}") for number in range(4000)]
    for share in (0.15, 0.5):
        # 4 standard deviations of a binomial count
        spread = 4 * (4000 * share * (1 - share)) ** 0.5
        assert abs(len(labels.split(found, share)[1]) - 4000 * share) < spread
    assert labels.split(found, 0) == (found, [])
    assert labels.split(found, 1) == ([], found)


def test_a_larger_share_keeps_what_was_held_out():
    found = [own(f"passage {number}") for number in range(500)]
    small, large = (set(labels.split(found, share)[1]) for share in (0.1, 0.4))
    assert small < large


# ----------------------------------------------------------------------------------------- agreement


def readings(*pairs):
    """Two readings of as many passages: `pairs` are (first label, second label, how often)."""
    names = {"-": "negative", "0": "neutral", "+": "positive"}
    drawn = [(names[a], names[b]) for a, b, count in pairs for _ in range(count)]
    first = [own(f"passage {number}", a, "r1") for number, (a, _) in enumerate(drawn)]
    second = [own(f"passage {number}", b, "r2") for number, (_, b) in enumerate(drawn)]
    return first, second[::-1]


def test_kappa_of_words_that_are_no_labels():
    # 3 of 4 the same; one says a a b c, the other a b b c: chance = (2*1 + 1*2 + 1*1) / 16
    assert labels.kappa([("a", "a"), ("a", "b"), ("b", "b"), ("c", "c")]) == pytest.approx((3 / 4 - 5 / 16) / (1 - 5 / 16))
    assert labels.kappa([("yes", "yes")] * 3) == 1.0


def test_the_draw_of_a_text_is_its_own_and_even():
    drawn = [labels.draw_of(f"text {number}") for number in range(2000)]
    assert drawn == [labels.draw_of(f"text {number}") for number in range(2000)] and len(set(drawn)) == 2000
    assert min(drawn) >= 0 and max(drawn) < 1 and sum(drawn) / 2000 == pytest.approx(0.5, abs=0.03)
    assert labels.draw_of("née") == 0xE0797758 / 2**32


def test_kappa_of_a_table_worked_out_by_hand():
    # 20 passages, 15 on the diagonal. The first reader has 8 -, 5 0, 7 +; the second 8 -, 6 0, 6 +.
    # chance = (8*8 + 5*6 + 7*6) / 400 = .34, so kappa = (.75 - .34) / .66
    first, second = readings(("-", "-", 6), ("0", "0", 4), ("+", "+", 5), ("-", "0", 2), ("0", "+", 1), ("+", "-", 2))
    found = labels.agreement(first, second)
    assert found["passages"] == 20
    assert found["agreement"] == pytest.approx(0.75)
    assert found["kappa"] == pytest.approx(0.41 / 0.66)
    assert labels.agreement(second, first) == pytest.approx(found)


@pytest.mark.parametrize(
    ("pairs", "agreement", "kappa"),
    [
        ((("-", "-", 3), ("+", "+", 5)), 1, 1),
        ((("+", "+", 4),), 1, 1),  # one class only: chance is 1 too, and they do agree
        ((("-", "-", 1), ("-", "+", 1), ("+", "-", 1), ("+", "+", 1)), 0.5, 0),
        ((("-", "+", 2), ("+", "-", 2)), 0, -1),
        ((("-", "-", 45), ("-", "+", 15), ("+", "-", 25), ("+", "+", 15)), 0.6, 0.06 / 0.46),  # chance .54
    ],
)
def test_kappa_of_known_tables(pairs, agreement, kappa):
    found = labels.agreement(*readings(*pairs))
    assert found["agreement"] == pytest.approx(agreement)
    assert found["kappa"] == pytest.approx(kappa)


def test_only_passages_that_both_read_count():
    first, second = readings(("-", "-", 2), ("+", "-", 2))
    alone = [own(f"only {number}", "positive") for number in range(10)]
    others = [own(f"other {number}", "negative", "r2") for number in range(5)]
    assert labels.agreement(first + alone, others + second) == labels.agreement(first, second)
    assert labels.agreement(first, second)["passages"] == 4


def test_readings_without_a_shared_passage_are_refused():
    with pytest.raises(LabelError, match="share no passage"):
        labels.agreement([own("a")], [own("b", reader="r2")])


# ----------------------------------------------------------------------------------------- passages


def test_passages_are_whole_phrases_of_one_speech_in_bounds_and_never_overlap(some_plays):
    works = dict(zip(some_plays["work"], some_plays["text"]))
    found = labels.passages(some_plays, 1500, seed=3)
    assert len(found) == 1500
    assert {work for work, _, _ in found} == set(works)
    for work, start, end in found:
        text = works[work]
        passage = text[start:end]
        assert 30 <= len(passage) <= 140
        assert passage == passage.strip()
        assert re.search(r"[.?!;:]['\"\]]*$", passage), passage
        # one speech: a paragraph that opens with its speaker's line, which is not part of the passage
        opening = text.rfind("\n\n", 0, start) + 2
        paragraph = text[opening : text.find("\n\n", start) if "\n\n" in text[start:] else None]
        speaker = paragraph.split("\n")[0]
        assert speaker.endswith("."), paragraph
        assert start > opening + len(speaker), paragraph
        assert end <= opening + len(paragraph), paragraph
        assert "[" not in passage
        # a phrase begins right after the speaker's line, or after the mark that ends the one before
        before = text[opening + len(speaker) : start].rstrip("'\"]\n ")
        assert before == "" or before[-1] in ".?!;:", passage
    places = sorted(found)
    for (work, _, end), (next_work, start, _) in itertools.pairwise(places):
        assert work != next_work or end <= start


def test_the_seed_alone_decides_the_passages(some_plays):
    once = labels.passages(some_plays, 200, seed=3)
    assert labels.passages(some_plays, 200, seed=3) == once
    assert labels.passages(some_plays, 100, seed=3) == once[:100]
    assert len(set(labels.passages(some_plays, 200, seed=4)) & set(once)) < 100


@pytest.mark.parametrize(("shortest", "longest"), [(10, 40), (60, 90)])
def test_other_bounds_hold_too(some_plays, shortest, longest):
    lengths = [end - start for _, start, end in labels.passages(some_plays, 300, 0, shortest, longest)]
    assert min(lengths) >= shortest and max(lengths) <= longest
    assert max(lengths) - min(lengths) > (longest - shortest) / 2  # spread over the range, not all at one length


def test_more_passages_than_there_are_is_refused(some_plays):
    with pytest.raises(ValueError, match=r"only \d+ passages of 30 to 140 characters, 1000000 asked for"):
        labels.passages(some_plays, 1_000_000, 0)


def made_up(text):
    return Dataset.from_dict({"work": ["made-up"], "text": [text]})


def test_headings_directions_and_speaker_lines_are_no_passages():
    speech = "So shaken as we are, so wan with care,\nfind we a time for frighted peace to pant."
    text = "\n\n".join(
        [
            "The Life and the Death of a King of England.",
            "SCENE I. London. The palace of the King, and a room with a view in it.",
            "[Enter the KING, with his train of lords and of ladies; and others.]",
            f"KING.\n{speech}",
            "LORD.\nMy liege, this haste was hot in question. [Kneels] And many limits of the charge set down.",
            "Here is a line that goes on after a direction, and it is a long one.",
            "ALL.\nNo mark ends this line of the many that stand here",
        ]
    )
    start, longest = text.index(speech), len(speech)  # a passage of the greatest length is taken whatever the draw
    for seed in range(10):
        assert labels.passages(made_up(text), 1, seed, 20, longest) == [("made-up", start, start + longest)]
        with pytest.raises(ValueError, match=f"only 1 passages of 20 to {longest} characters, 2 asked for"):
            labels.passages(made_up(text), 2, seed, 20, longest)


def test_a_line_that_stands_alone_never_opens_a_passage():
    # the paragraph before FOOL ends in a full stop, like a speaker's line
    speech = "Thou shouldst not have been old till thou hadst been wise."
    text = f"Title\n\nHow now, my lord.\n\nFOOL.\n{speech}\n\nLEAR.\nNo."
    start, longest = text.index(speech), len(speech)
    for seed in range(10):
        assert labels.passages(made_up(text), 1, seed, 20, longest) == [("made-up", start, start + longest)]


def test_short_phrases_join_into_one_passage_and_a_long_one_stands_apart():
    long = "this phrase is longer than the longest passage that was asked for, so that it cannot be one."
    text = f"Title\n\nKING.\nO! {long} My lord; my lord, 'tis so. And 'twas\n\n"
    expected = "My lord; my lord, 'tis so."
    start = text.index(expected)
    for seed in range(10):
        # "My lord;" alone is too short, and any length that is drawn, 10 to 26, is reached with the second phrase
        assert labels.passages(made_up(text), 1, seed, 10, 27) == [("made-up", start, start + len(expected))]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("To be, or not to be: that is the question: whether", "To be, or not to be: that is the question:"),
        (
            "\nGood night, good night! Parting is 'such sweet sorrow.' That I",
            "Good night, good night! Parting is 'such sweet sorrow.'",
        ),
        ("Good night, good night, and flights of angels.", "Good night, good night, and flights of angels."),
        ("a phrase that has no mark at all, whatever its length", None),
        ("Too short. And then nothing", None),
        ("", None),
    ],
)
def test_whole_phrases_keeps_up_to_the_last_mark(text, kept):
    assert labels.whole_phrases(text) == kept


def test_whole_phrases_counts_its_shortest_in_characters():
    assert labels.whole_phrases("Ten chars. x", shortest=10) == "Ten chars."
    assert labels.whole_phrases("Ten chars. x", shortest=11) is None


@settings(deadline=None, max_examples=100)
@given(st.text("ab .?!;:'\"]\n", max_size=30))
def test_phrases_tile_the_text_up_to_its_last_mark(text):
    found = labels.phrases(text, start=100)
    # each begins where the one before ended, and the rest holds no mark
    assert [start for start, _ in found] == [100, *(end for _, end in found)][: len(found)]
    rest = text[found[-1][1] - 100 :] if found else text
    assert not re.search(r"[.?!;:]", rest)
    assert all(re.search(r"[.?!;:]", text[start - 100 : end - 100]) for start, end in found)


# ----------------------------------------------------------------------------------------- sittings


def drawn(number):
    """Five passages, of which one is too short and one is there twice."""
    return [f"{number}, one.", None, f"{number}, two.", f"{number}, one.", "always this."]


def give(path, texts, reader="me"):
    for text in texts:
        labels.append(path, Label(text, "neutral", reader, (text, "base")))


def test_a_sitting_is_the_same_until_it_is_all_labelled_and_the_next_one_repeats_nothing(tmp_path):
    path = tmp_path / "my_labels.jsonl"
    number, first = labels.sitting(path, "me", "base", drawn, size=4)
    assert number == 1 and first == ["0, one.", "0, two.", "always this.", "3, one."]
    give(path, first[:3])
    assert labels.sitting(path, "me", "base", lambda number: [], size=4) == (1, first)  # nothing is drawn again
    give(path, first[3:])
    number, second = labels.sitting(path, "me", "base", drawn, size=4)
    assert number == 2 and len({*first, *second}) == 8
    give(path, second[1:])
    assert labels.sitting(path, "me", "base", drawn, size=4) == (2, second)


def test_another_reader_gets_the_same_passages_and_another_model_its_own(tmp_path):
    path = tmp_path / "my_labels.jsonl"
    _, first = labels.sitting(path, "me", "base", drawn, size=4)
    give(path, first)
    _, second = labels.sitting(path, "me", "base", drawn, size=4)
    assert labels.sitting(path, "she", "base", drawn, size=4) == (1, first)
    give(path, first, "me" + labels.AGAIN)  # is not the reader's own
    assert labels.sitting(path, "me", "base", drawn, size=4) == (2, second)
    number, other = labels.sitting(path, "me", "my own", lambda number: [f"other {number}"], size=2)
    assert (number, other) == (1, ["other 0", "other 1"])
    assert labels.sitting(path, "me", "base", drawn, size=4) == (2, second)


def test_a_size_that_grows_fills_up_what_was_drawn(tmp_path):
    _, few = labels.sitting(tmp_path / "mine.jsonl", "me", "base", drawn, size=3)
    _, more = labels.sitting(tmp_path / "mine.jsonl", "me", "base", drawn, size=8)
    assert more[:3] == few and len(set(more)) == 8


def test_a_draw_that_brings_nothing_new_ends_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="no fresh passage"):
        labels.sitting(tmp_path / "mine.jsonl", "me", "base", lambda number: ["always this.", None], size=2)
    assert not (tmp_path / "mine.passages.jsonl").exists()


# ----------------------------------------------------------------------------------------- the synthetic rater


def test_the_synthetic_rater_says_its_name_and_its_places(some_plays):
    works = dict(zip(some_plays["work"], some_plays["text"]))
    found = labels.synthetic(GoldJudge(), 200, some_plays, seed=5)
    assert [label.source for label in found] == labels.passages(some_plays, 200, 5)
    assert all(label.text == works[label.source[0]][label.source[1] : label.source[2]] for label in found)
    assert {label.reader for label in found} == {"synthetic"}
    assert {label.label for label in found} == set(labels.LABELS)


@pytest.mark.parametrize("threshold", [0.3, 0.6])
def test_the_synthetic_labels_follow_the_judge_over_a_threshold(some_plays, threshold):
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    found = labels.synthetic(GoldJudge(), 200, some_plays, threshold=threshold)
    scores = GoldJudge().score([label.text for label in found]).tolist()
    for label, score in zip(found, scores):
        assert label.label == ("positive" if score > threshold else "negative" if score < -threshold else "neutral")
    # and the judge's sign is VADER's own
    analyzer = SentimentIntensityAnalyzer()
    strong = [label for label in found if label.label != "neutral"]
    assert len(strong) > 20
    for label in strong:
        assert (analyzer.polarity_scores(label.text)["compound"] > 0) == (label.label == "positive")


def test_a_score_on_the_threshold_is_neutral():
    scores = [0.5, 0.51, -0.5, -0.51, 0.0, 1.0]
    judge = SimpleNamespace(score=lambda texts: torch.tensor(scores, dtype=torch.float64))
    # 120 speeches of 120 characters: most are taken whatever the draw of their length
    text = "Title\n\n" + "\n\n".join("SPEAKER.\n" + "a" * 119 + "." for _ in range(120))
    found = labels.synthetic(judge, len(scores), made_up(text), threshold=0.5)
    assert [label.label for label in found] == ["neutral", "positive", "neutral", "negative", "neutral", "positive"]


# ----------------------------------------------------------------------------------------- the hand-made set


def test_hand_made_reads_several_files_in_a_row(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    paths = [put(tmp_path / "one", RANGE), put(tmp_path / "two", OWN)]
    dataset = Dataset.from_dict({"work": list(WORKS), "text": list(WORKS.values())})
    assert [label.text for label in labels.hand_made(dataset, paths)] == ["The rest is silence.", OWN["text"]]


def test_the_hand_made_set_is_well_formed(plays):
    found = labels.hand_made(plays)
    sources = [sum(len(label.source) == length for label in found) for length in (3, 2)]  # of the plays, of samples
    assert len(found) >= 2500
    assert min(sources) >= 0.4 * 2500
    for name in labels.LABELS:
        assert sum(label.label == name for label in found) >= 0.15 * len(found), name
    assert labels.SYNTHETIC not in {label.reader for label in found}
    second = labels.read(labels.SECOND_READING, dict(zip(plays["work"], plays["text"])))
    assert len(second) >= 200
    agreement = labels.agreement(found, second)
    assert agreement["passages"] >= 200
    assert agreement["kappa"] > 0.5


def test_the_blind_reading_is_what_its_card_says_and_makes_samples_as_many_as_passages_of_the_plays(plays):
    read = labels.read(labels.BLIND)
    first = labels.first_readings(read)
    second = read[len(first) :]
    assert read[: len(first)] == first
    assert (len(first), len(second)) == (3242, 320)
    writers = [label.source[1] for label in first]
    assert [writers.count(name) for name in ("laptop-0", "laptop-0/policy", "laptop-0/negative")] == [1100, 1100, 1042]
    assert min(len(label.text) for label in first) >= 30
    found = labels.hand_made(plays)
    assert {label.text for label in found}.isdisjoint(label.text for label in first)  # nothing has learned from it
    assert {label.reader for label in found}.isdisjoint(label.reader for label in read)
    assert sum(len(label.source) == 2 for label in found + first) == sum(len(label.source) == 3 for label in found)
    assert labels.agreement(first, second) == {"passages": 320, "agreement": 0.925, "kappa": pytest.approx(0.811, abs=1e-3)}
    pairs = [(one, other) for other in second for one in first if one.source == other.source]
    assert all(one.reader != other.reader and {one.label, other.label} != {"positive", "negative"} for one, other in pairs)
    assert all(abs(one.sense - other.sense) <= 1 for one, other in pairs)


def test_the_reading_of_the_pushed_policies_is_what_its_card_and_chapter_09_say(plays):
    read = labels.read(labels.PUSHED)
    first = labels.first_readings(read)
    second = read[len(first) :]
    assert (len(first), len(second)) == (2325, 240) and read[: len(first)] == first
    counts = [sum(label.label == name for label in first) for name in ("positive", "neutral", "negative")]
    assert counts == [538, 1768, 19]
    logged = json.loads((labels.DATA / "push.json").read_text(encoding="utf-8"))
    runs = {f"push-{one['labels']}/{one['iteration']:03d}" for one in logged}
    writers = [label.source[1] for label in first]
    assert set(writers) - {"laptop-0"} <= runs and writers.count("laptop-0") == 75
    assert all(writers.count(name) == 150 for name in set(writers) - {"laptop-0"}) and len(set(writers)) == 16
    learned = {label.text for label in labels.hand_made(plays)}
    assert learned.isdisjoint(label.text for label in first)
    found = labels.agreement(first, second)
    assert (found["agreement"], found["kappa"]) == (pytest.approx(0.992, abs=1e-3), pytest.approx(0.977, abs=1e-3))
    by_source = {label.source: label for label in first}
    pairs = [(by_source[label.source], label) for label in second]
    assert all(one.reader != other.reader and abs(one.sense - other.sense) <= 1 for one, other in pairs)
    assert sum(one.sense == other.sense for one, other in pairs) / len(pairs) == 0.825

    def good(writer):
        mine = [label for label in first if label.source[1] == writer]
        return sum(label.label == "positive" and label.sense >= 3 for label in mine) / len(mine)

    # the event of the chapter: the share of good lines rises, and falls again
    assert good("push-1000/005") < 0.05 and good("push-1000/015") > 0.29 and good("push-1000/025") < 0.15
    assert good("push-300/015") > 0.12 and good("push-300/022") < 0.05


def test_the_reading_of_the_frontier_is_what_its_card_and_chapter_12_say(plays):
    read = labels.read(labels.FRONTIER)
    first = labels.first_readings(read)
    second = read[len(first) :]
    assert (len(first), len(second)) == (1125, 150) and read[: len(first)] == first
    assert [sum(label.label == name for label in first) for name in ("positive", "neutral", "negative")] == [141, 980, 4]
    writers = [label.source[1] for label in first]
    methods = {run["method"] for run in json.loads((labels.DATA / "frontier.json").read_text(encoding="utf-8"))["runs"]}
    counts = {f"{method}-{seed}": 25 if seed else 75 for method in methods for seed in range(4)}
    assert {name: writers.count(name) for name in writers} == {**counts, "best-of-32": 150, "laptop-0": 75}
    learned = {label.text for label in labels.hand_made(plays)}
    assert learned.isdisjoint(label.text for label in first)
    found = labels.agreement(first, second)
    assert (found["agreement"], found["kappa"]) == (0.98, pytest.approx(0.912, abs=1e-3))
    by_source = {label.source: label for label in first}
    pairs = [(by_source[label.source], label) for label in second]
    assert all(one.reader != other.reader and abs(one.sense - other.sense) <= 1 for one, other in pairs)
    assert sum(one.sense == other.sense for one, other in pairs) / len(pairs) == 0.82


def test_a_byte_order_mark_before_the_first_line_is_read_over(tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(b"\xef\xbb\xbf" + (json.dumps(OWN) + "\r\n").encode())
    assert [label.text for label in labels.read(tmp_path / "mine.jsonl")] == [OWN["text"]]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff",
        b"{",
        b"[" * 5000,
        b"{oops",
        b'["a"]',
        b"9" * 5000,
        b'{"text": 1, "checkpoint": "b"}',
        b'{"text": "x"}',
        b'{"text": "\\ud800"}',
    ],
)
def test_a_damaged_list_of_passages_is_named_with_its_line(tmp_path, line):
    beside = tmp_path / "mine.passages.jsonl"
    beside.write_bytes(b'{"text": "One.", "checkpoint": "base"}\n' + line + b"\n")
    with pytest.raises(LabelError, match=rf"^{beside}, line 2: "):
        labels.sitting(tmp_path / "mine.jsonl", "me", "base", lambda number: ["x"], size=1)
