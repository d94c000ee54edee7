import json
from collections import Counter
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlhf_lib import comparisons, corpus, labels
from rlhf_lib.comparisons import Comparison, ComparisonError, Demonstration, Prompt

WORKS = {"hamlet": "HAMLET.\nThe rest is silence.\n\nHORATIO.\nGood night, sweet prince.", "macbeth": "MACBETH.\nTomorrow."}
PROMPTS = [
    Prompt("advice-001", "My neighbour is loud. What now?", "advice", "train"),
    Prompt("advice-004", "How do I say no?", "advice", "held_out"),
]
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Why is the sky blue?"},
]
BACKWARDS = [dict(reversed(message.items())) for message in TALK]  # the same messages, their fields in the other order

ASKED = {"id": "advice-001", "prompt": "My neighbour is loud. What now?", "kind": "advice", "split": "train"}
SHOWN = {"id": "advice-001", "answer": "Ask him kindly.", "writer": "w1"}
VOTE = {
    "id": "advice-001",
    "first": "Ask him kindly.",
    "second": "Noise!",
    "verdict": "first",
    "reader": "r1",
    "reason": "kind",
    "first_from": "sft",
    "second_from": "start",
    "round": 1,
}
LINE = {"work": "hamlet", "start": 8, "end": 16, "first": "is done.", "second": "is lost.", "verdict": "tie", "reader": "r2"}
OWN = {
    "prompt": "Why is the sky blue?",
    "first": "It is not.",
    "second": "Air scatters blue.",
    "verdict": "second",
    "reader": "r1",
}


def put(folder, *lines):
    """A file of these lines, a dict or raw text each."""
    path = folder / "lines.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


def without(row, field):
    return {name: value for name, value in row.items() if name != field}


def vote(first="a", second="b", verdict="first", reader="r1", prompt="p", **more):
    return Comparison(prompt, first, second, verdict, reader, {"prompt": prompt}, **more)


def swapped(comparison):
    """The same verdict by a reader who saw the answers on the other sides."""
    verdict = {"first": "second", "second": "first", "tie": "tie"}[comparison.verdict]
    return replace(comparison, first=comparison.second, second=comparison.first, verdict=verdict)


# ----------------------------------------------------------------------------------------- reading


def test_prompts_are_read_in_their_order(tmp_path):
    held_out = {"id": "advice-004", "prompt": "How do I say no?", "kind": "advice", "split": "held_out"}
    assert comparisons.read_prompts(put(tmp_path, ASKED, "", held_out)) == PROMPTS


def test_demonstrations_have_the_prompt_and_split_of_their_id(tmp_path):
    other = {**SHOWN, "id": "advice-004", "answer": "Kindly, and at once."}
    found = comparisons.read_demonstrations(put(tmp_path, SHOWN, other, {**SHOWN, "writer": "w2"}), PROMPTS)
    assert found == [
        Demonstration("advice-001", PROMPTS[0].prompt, "Ask him kindly.", "w1", "train"),
        Demonstration("advice-004", PROMPTS[1].prompt, "Kindly, and at once.", "w1", "held_out"),
        Demonstration("advice-001", PROMPTS[0].prompt, "Ask him kindly.", "w2", "train"),
    ]


def test_a_comparison_finds_its_prompt_by_id_in_the_plays_or_on_its_line(tmp_path):
    by_id, of_a_play, own, talk = comparisons.read_comparisons(
        put(tmp_path, VOTE, LINE, OWN, {**OWN, "prompt": TALK}), PROMPTS, WORKS
    )
    assert (by_id.prompt, by_id.split, by_id.source) == (PROMPTS[0].prompt, "train", {"id": "advice-001"})
    assert (by_id.reason, by_id.first_from, by_id.second_from, by_id.round) == ("kind", "sft", "start", 1)
    assert (of_a_play.prompt, of_a_play.split) == ("The rest", None)
    assert of_a_play.source == {"work": "hamlet", "start": 8, "end": 16}
    assert (own.prompt, own.source, own.reason, own.round) == (OWN["prompt"], {"prompt": OWN["prompt"]}, "", None)
    assert talk.prompt == TALK


@pytest.mark.parametrize(
    ("verdict", "chosen", "rejected", "tie"),
    [("first", "Ask him kindly.", "Noise!", False), ("second", "Noise!", "Ask him kindly.", False), ("tie", None, None, True)],
)
def test_the_verdict_says_which_answer_was_chosen(tmp_path, verdict, chosen, rejected, tie):
    (found,) = comparisons.read_comparisons(put(tmp_path, {**VOTE, "verdict": verdict}), PROMPTS)
    assert (found.chosen, found.rejected, found.tie) == (chosen, rejected, tie)


def test_what_was_read_cannot_be_changed():
    for item, field in ((PROMPTS[0], "split"), (vote(), "verdict")):
        with pytest.raises(FrozenInstanceError):
            setattr(item, field, "held_out")


def test_a_byte_order_mark_is_read_over_and_every_line_break_inside_a_text_stays(tmp_path):
    answer = "one\u2028two\x85three\r\nfour"
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({**VOTE, "first": answer}, ensure_ascii=False).encode() + b"\r\n")
    (found,) = comparisons.read_comparisons(path, PROMPTS)
    assert found.first == answer
    comparisons.append_comparison(path, vote())
    assert [c.first for c in comparisons.read_comparisons(path, PROMPTS)] == [answer, "a"]


# ----------------------------------------------------------------------------------------- what is refused

READ = {
    "prompts": comparisons.read_prompts,
    "demonstrations": lambda path: comparisons.read_demonstrations(path, PROMPTS),
    "comparisons": lambda path: comparisons.read_comparisons(path, PROMPTS, WORKS),
}
EMPTY = "must be a text that is not empty, got "
BAD = {
    "prompt, not JSON": ("prompts", "{oops", r"not JSON \(Expecting property name enclosed in double quotes, column 2\)"),
    "prompt, a list": ("prompts", '["a"]', "not a JSON object"),
    "prompt, unknown field": ("prompts", {**ASKED, "answer": "b"}, "unknown field 'answer'; a line has id, prompt, kind, split"),
    "prompt, unknown split": ("prompts", {**ASKED, "split": "test"}, "unknown split 'test'; use one of train, held_out"),
    "prompt, empty": ("prompts", {**ASKED, "prompt": " \n"}, rf"prompt {EMPTY}' \\n'"),
    "prompt, id is a number": ("prompts", {**ASKED, "id": 1}, f"id {EMPTY}1"),
    "prompt, no kind": ("prompts", {**ASKED, "kind": None}, f"kind {EMPTY}None"),
    "demonstration, unknown id": ("demonstrations", {**SHOWN, "id": "x"}, "the id 'x' is not among the prompts"),
    "demonstration, id is a list": ("demonstrations", {**SHOWN, "id": ["x"]}, r"the id \['x'\] is not among the prompts"),
    "demonstration, empty": ("demonstrations", {**SHOWN, "answer": ""}, f"answer {EMPTY}''"),
    "demonstration, no writer": ("demonstrations", {**SHOWN, "writer": ""}, f"writer {EMPTY}''"),
    "demonstration, unknown field": ("demonstrations", {**SHOWN, "split": "train"}, "unknown field 'split'"),
    "unknown verdict": ("comparisons", {**VOTE, "verdict": "both"}, "unknown verdict 'both'; use one of first, second, tie"),
    "verdict is a number": ("comparisons", {**VOTE, "verdict": 1}, "unknown verdict 1"),
    "verdict is a list": ("comparisons", {**VOTE, "verdict": ["first"]}, r"unknown verdict \['first'\]"),
    "same answers": ("comparisons", {**VOTE, "second": "Ask him kindly."}, "both answers are the same; delete the line"),
    "same but for a space": ("comparisons", {**VOTE, "second": " Ask him kindly.\n"}, "both answers are the same"),
    "same and a tie": ("comparisons", {**VOTE, "second": "Ask him kindly.", "verdict": "tie"}, "both answers are the same"),
    "empty first": ("comparisons", {**VOTE, "first": "\n"}, f"first {EMPTY}"),
    "empty second": ("comparisons", {**VOTE, "second": ""}, f"second {EMPTY}''"),
    "answer is a list": ("comparisons", {**VOTE, "second": TALK}, f"second {EMPTY}"),
    "no reader": ("comparisons", {**VOTE, "reader": ""}, f"reader {EMPTY}''"),
    "unknown id": ("comparisons", {**VOTE, "id": "advice-002"}, "the id 'advice-002' is not among the prompts"),
    "unknown field": ("comparisons", {**VOTE, "chosen": "a"}, "unknown field 'chosen'; a line has id, first, second, verdict"),
    "two kinds of prompt": ("comparisons", {**VOTE, "prompt": "a"}, "unknown field 'prompt'"),
    "no prompt": ("comparisons", without(OWN, "prompt"), "the field 'id' is missing; a line has id, first, second"),
    "reason is a number": ("comparisons", {**VOTE, "reason": 3}, "reason must be a text, got 3"),
    "model is a number": ("comparisons", {**VOTE, "second_from": 3}, "second_from must be a text, got 3"),
    "cut is a text": ("comparisons", {**VOTE, "first_cut": "yes"}, "first_cut must be true or false, got 'yes'"),
    "cut is a number": ("comparisons", {**VOTE, "second_cut": 1}, "second_cut must be true or false, got 1"),
    "round is a text": ("comparisons", {**VOTE, "round": "1"}, "round must be a whole number, got '1'"),
    "round is true": ("comparisons", {**VOTE, "round": True}, "round must be a whole number, got True"),
    "unknown work": ("comparisons", {**LINE, "work": "cardenio"}, "the work 'cardenio' is not in the corpus"),
    "work is a list": ("comparisons", {**LINE, "work": ["hamlet"]}, r"the work \['hamlet'\] is not in the corpus"),
    "range outside": ("comparisons", {**LINE, "end": 99}, "the range 8 to 99 lies outside hamlet, which has 64 characters"),
    "range before": ("comparisons", {**LINE, "start": -1}, "the range -1 to 16 lies outside hamlet"),
    "range upside down": ("comparisons", {**LINE, "start": 16}, "the range 16 to 16 lies outside hamlet"),
    "range is a text": ("comparisons", {**LINE, "start": "8"}, "the range '8' to 16 lies outside hamlet"),
    "range is true": ("comparisons", {**LINE, "start": True}, "the range True to 16 lies outside hamlet"),
    "range of white space": ("comparisons", {**LINE, "start": 7, "end": 8}, f"prompt {EMPTY}"),
    "own prompt is empty": ("comparisons", {**OWN, "prompt": ""}, f"prompt {EMPTY}''"),
    "own prompt is a number": ("comparisons", {**OWN, "prompt": 5}, f"prompt {EMPTY}5"),
    "own prompt has the answer": (
        "comparisons",
        {**OWN, "prompt": TALK[:2]},
        r"the prompt is no conversation that waits for an answer \(message 2: the last turn is not the user's\)",
    ),
    **{f"prompt lacks {field}": ("prompts", without(ASKED, field), f"the field '{field}' is missing") for field in ASKED},
    **{
        f"demonstration lacks {field}": ("demonstrations", without(SHOWN, field), f"the field '{field}' is missing")
        for field in SHOWN
    },
    **{
        f"comparison lacks {field}": ("comparisons", without(OWN, field), f"the field '{field}' is missing")
        for field in comparisons.NEEDED
    },
    **{
        f"place lacks {field}": ("comparisons", without(LINE, field), f"the field '{field}' is missing")
        for field in ("start", "end")
    },
}


@pytest.mark.parametrize(("kind", "line", "message"), BAD.values(), ids=BAD)
def test_a_bad_line_is_named_with_what_to_do(tmp_path, kind, line, message):
    good = {
        "prompts": {**ASKED, "id": "o", "prompt": "other"},
        "demonstrations": {**SHOWN, "writer": "o"},
        "comparisons": {**OWN, "reader": "o"},
    }
    path = put(tmp_path, good[kind], "", line)
    with pytest.raises(ComparisonError, match=rf"^{path}, line 3: {message}"):
        READ[kind](path)


TWICE = {
    "id": ("prompts", ASKED, {**ASKED, "prompt": "other"}, "id"),
    "prompt": ("prompts", ASKED, {**ASKED, "id": "other", "split": "held_out"}, "prompt"),
    "demonstration": ("demonstrations", SHOWN, {**SHOWN, "answer": "Another."}, "prompt and writer"),
    "vote": ("comparisons", VOTE, {**VOTE, "verdict": "tie", "reason": "dull", "round": 2}, "pair and reader"),
    "swapped": ("comparisons", VOTE, {**VOTE, "first": VOTE["second"], "second": VOTE["first"]}, "pair and reader"),
    "place": ("comparisons", LINE, {**LINE, "verdict": "first"}, "pair and reader"),
    "own": ("comparisons", OWN, {**OWN, "verdict": "first"}, "pair and reader"),
    "talk": ("comparisons", {**OWN, "prompt": TALK}, {**OWN, "prompt": BACKWARDS}, "pair and reader"),
}


@pytest.mark.parametrize(("kind", "line", "again", "what"), TWICE.values(), ids=TWICE)
def test_what_is_there_twice_is_named_with_both_lines(tmp_path, kind, line, again, what):
    path = put(tmp_path, "", line, again)
    with pytest.raises(ComparisonError, match=rf"^{path}, line 3: the same {what} as line 2; delete one of the two$"):
        READ[kind](path)


def test_another_reader_prompt_answer_or_place_is_no_duplicate(tmp_path):
    others = [{"reader": "r9"}, {"id": "advice-004"}, {"first": "Call him."}, {"second": "Call him."}]
    lines = [VOTE, *({**VOTE, **other} for other in others), LINE, {**LINE, "end": 15}, {**LINE, "work": "macbeth"}, OWN]
    lines.append(
        {**OWN, "prompt": "advice-001", "first": VOTE["first"], "second": VOTE["second"]}
    )  # a text that looks like an id
    assert len(READ["comparisons"](put(tmp_path, *lines))) == 10


@pytest.mark.parametrize("kind", READ)
def test_a_file_that_is_not_there_or_not_utf8_is_named(tmp_path, kind):
    with pytest.raises(ComparisonError, match=rf"^no file at {tmp_path}/x.jsonl: "):
        READ[kind](tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_bytes(b'\n{"id": "caf\xe9"}\n')
    with pytest.raises(ComparisonError, match=rf"^{tmp_path}/x.jsonl, line 2: not UTF-8 \(byte 12\); save the file as UTF-8$"):
        READ[kind](tmp_path / "x.jsonl")


def test_a_comparison_that_is_made_is_checked_like_one_that_is_read():
    for wrong in ({"verdict": "neither"}, {"second": "a"}, {"first": ""}, {"reader": ""}, {"prompt": []}, {"round": 1.5}):
        with pytest.raises(ComparisonError):
            vote(**wrong)


# ----------------------------------------------------------------------------------------- adding a vote

TEXT = st.text(min_size=1, max_size=12).filter(str.strip)  # no surrogates: they are no characters, and UTF-8 cannot hold them


@st.composite
def votes(draw):
    first, second = draw(TEXT), draw(TEXT)
    assume(first.strip() != second.strip())
    source, prompt, split = draw(
        st.sampled_from(
            [
                ({"id": "advice-001"}, PROMPTS[0].prompt, "train"),
                ({"id": "advice-004"}, PROMPTS[1].prompt, "held_out"),
                ({"work": "hamlet", "start": 8, "end": 16}, "The rest", None),
                ({"prompt": "Why?\u2028"}, "Why?\u2028", None),
                ({"prompt": TALK}, TALK, None),
            ]
        )
    )
    verdict, reader = draw(st.sampled_from(comparisons.VERDICTS)), draw(TEXT)
    optional = {field: draw(st.text(max_size=4)) for field in ("reason", "first_from", "second_from")}
    optional |= {field: draw(st.booleans()) for field in ("first_cut", "second_cut")}
    optional["round"] = draw(st.sampled_from([None, 0, 7]))
    return Comparison(prompt, first, second, verdict, reader, source, split=split, **optional)


@settings(deadline=None, max_examples=50)
@given(found=st.lists(votes(), unique_by=lambda c: (c.pair, c.reader), max_size=4))
def test_what_is_appended_is_read_back_and_no_vote_counts_twice(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("votes") / "new" / "votes.jsonl"
    for count, comparison in enumerate(found, 1):
        comparisons.append_comparison(path, comparison)
        assert comparisons.read_comparisons(path, PROMPTS, WORKS) == found[:count]
    before = path.read_bytes() if found else b""
    for line, comparison in enumerate(found, 1):
        for again in (comparison, swapped(comparison)):
            with pytest.raises(ComparisonError) as error:
                comparisons.append_comparison(path, again)
            assert str(error.value) == f"{path}, line {line}: {again.reader} has compared this pair already; delete that line"
    assert not found or path.read_bytes() == before


def test_an_answer_that_was_cut_off_is_known_by_its_place_in_the_ranking(tmp_path):
    (found,) = comparisons.read_comparisons(put(tmp_path, {**VOTE, "first_cut": True, "second_cut": False}), PROMPTS)
    assert found.ranked == (("Ask him kindly.", True), ("Noise!", False))
    turned = replace(found, verdict="second")
    assert turned.ranked == (("Noise!", False), ("Ask him kindly.", True))
    assert replace(found, verdict="tie").ranked is None
    assert comparisons.row_of(found) == {**VOTE, "first_cut": True}  # in the file only where it is true


def test_lines_come_out_as_they_went_in(tmp_path):
    cut = {**{field: value for field, value in VOTE.items() if field != "round"}, "second": "Noi", "second_cut": True, "round": 0}
    lines = [VOTE, LINE, OWN, {**OWN, "prompt": TALK}, cut]
    for comparison in comparisons.read_comparisons(put(tmp_path, *lines), PROMPTS, WORKS):
        comparisons.append_comparison(tmp_path / "again.jsonl", comparison)
    again = (tmp_path / "again.jsonl").read_text(encoding="utf-8").splitlines()
    assert [list(json.loads(line).items()) for line in again] == [list(line.items()) for line in lines]


def test_a_vote_is_not_added_to_a_damaged_file(tmp_path):
    path = put(tmp_path, OWN, "{oops")
    before = path.read_bytes()
    with pytest.raises(ComparisonError, match=rf"^{path}, line 2: not JSON"):
        comparisons.append_comparison(path, vote())
    assert path.read_bytes() == before
    path = put(tmp_path, OWN, '{"prompt": 3}')  # is no comparison, and no reason to lose a vote
    comparisons.append_comparison(path, vote())
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[-1]) == {
        "prompt": "p",
        "first": "a",
        "second": "b",
        "verdict": "first",
        "reader": "r1",
    }


# ----------------------------------------------------------------------------------------- pairs and halves


def test_pairs_are_the_decided_comparisons_with_the_better_answer_first():
    given = [vote(), vote(verdict="tie"), vote(verdict="second", prompt="q"), vote(prompt=TALK)]
    assert comparisons.pairs(given) == [("p", "a", "b"), ("q", "b", "a"), (TALK, "a", "b")]
    assert comparisons.pairs([]) == []


def test_a_prompts_own_split_decides_whatever_share_is_asked_for():
    given = [vote(prompt=f"{number}", split=("train", "held_out")[number % 3 == 0]) for number in range(12)]
    for share in (0, 0.15, 1):
        training, held_out = comparisons.split(given, share)
        assert held_out == given[::3] and training == [c for c in given if c not in held_out]
    assert comparisons.split(PROMPTS) == (PROMPTS[:1], PROMPTS[1:])
    shown = [Demonstration(prompt.id, prompt.prompt, "a", "w", prompt.split) for prompt in PROMPTS]
    assert comparisons.split(shown) == (shown[:1], shown[1:])


def test_without_a_split_the_text_decides_as_for_labels():
    texts = [f"passage {number}" for number in range(300)]
    found = [vote(prompt=text, reader=reader) for text in texts for reader in ("r1", "r2")]
    for share in (0.15, 0.4):
        halves = comparisons.split(found, share)
        expected = labels.split([labels.Label(text, "neutral", "r", (text, "base")) for text in texts], share)
        assert [[c.prompt for c in half[::2]] for half in halves] == [[label.text for label in half] for half in expected]
        assert [len(half) for half in halves] == [2 * len(half) for half in expected]
    assert comparisons.split(found) == comparisons.split(found, 0.15)


def test_a_conversation_is_in_the_half_of_its_opening_however_far_it_went():
    for number in range(60):
        opening = {"role": "user", "content": f"question {number}"}
        talks = [[opening], [{"role": "system", "content": "Be kind."}, opening], [opening, *TALK[1:]]]
        halves = comparisons.split([vote(prompt=f"question {number}"), *(vote(prompt=talk) for talk in talks)], 0.5)
        assert sorted(map(len, halves)) == [0, 4]


# ----------------------------------------------------------------------------------------- agreement


def readings(*verdicts):
    """Two readings of as many pairs, by verdicts like ("first", "tie"), with the same sides for both."""
    return [
        [vote(prompt=f"{place}", verdict=two[side], reader=f"r{side}") for place, two in enumerate(verdicts)] for side in (0, 1)
    ]


def test_agreement_of_a_table_worked_out_by_hand():
    # rows: the first reader's a, b, tie; columns: the second's
    table = [[4, 1, 1], [0, 3, 1], [1, 1, 3]]
    words = comparisons.VERDICTS
    verdicts = [(words[row], words[column]) for row in range(3) for column in range(3) for _ in range(table[row][column])]
    first, second = readings(*verdicts)
    found = comparisons.agreement(first, second)
    # chance = (6*5 + 4*5 + 5*5) / 225 = 1/3; 4 + 1 + 0 + 3 pairs without a tie, 7 of them the same
    assert found == {
        "pairs": 15,
        "agreement": pytest.approx(10 / 15),
        "kappa": pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3)),
        "decided": 8,
        "decided_agreement": pytest.approx(7 / 8),
    }


VERDICTS = st.tuples(st.sampled_from(comparisons.VERDICTS), st.sampled_from(comparisons.VERDICTS))


@settings(deadline=None, max_examples=60)
@given(st.lists(VERDICTS, min_size=1, max_size=12), st.data())
def test_agreement_whatever_side_the_answers_were_on_and_whoever_comes_first(verdicts, data):
    first, second = readings(*verdicts)
    found = comparisons.agreement(first, second)
    sides = [[swapped(c) if data.draw(st.booleans()) else c for c in reading] for reading in (first, second)]
    order = data.draw(st.permutations(sides[1]))
    assert comparisons.agreement(sides[0], order) == found
    assert comparisons.agreement(second, first) == pytest.approx(found)
    # and against a plain count
    decided = [a == b for a, b in verdicts if a != "tie" and b != "tie"]
    assert found["agreement"] == pytest.approx(sum(a == b for a, b in verdicts) / len(verdicts))
    assert (found["pairs"], found["decided"]) == (len(verdicts), len(decided))
    assert found["decided_agreement"] == (pytest.approx(sum(decided) / len(decided)) if decided else None)


def test_answers_are_told_apart_by_their_text_and_not_by_their_side():
    first = [vote("a", "b", "first"), vote("b", "a", "first", prompt="q")]  # a; b
    second = [vote("b", "a", "second", "r2"), vote("b", "a", "first", "r2", prompt="q")]  # a; b
    found = comparisons.agreement(first, second)
    assert (found["agreement"], found["kappa"], found["decided_agreement"]) == (1, 1, 1)
    found = comparisons.agreement(first, [swapped(first[0]), replace(first[1], verdict="second")])
    assert (found["agreement"], found["kappa"]) == (0.5, pytest.approx((0.5 - 0.5) / (1 - 0.5)))


def test_only_pairs_that_both_compared_count():
    first, second = readings(("first", "first"), ("first", "second"))
    alone = [vote(prompt="alone"), vote(second="c", prompt="0")]
    others = [vote(prompt="other", reader="r2"), vote(first="c", prompt="1", reader="r2")]
    assert comparisons.agreement(first + alone, others + second) == comparisons.agreement(first, second)
    with pytest.raises(ComparisonError, match="the two readings share no pair"):
        comparisons.agreement(first, others)


def test_words_are_what_stands_between_spaces_and_line_breaks():
    assert [comparisons.words(text) for text in ("a  b\nc", "some much-longer words", " one ", "")] == [3, 3, 1, 0]


# ----------------------------------------------------------------------------------------- the plays' comparisons


def test_the_comparisons_of_the_plays_and_their_second_reading_are_what_the_data_card_says():
    plays = corpus.load()
    works = dict(zip(plays["work"], plays["text"]))
    first, second = (comparisons.read_comparisons(path, works=works) for path in (comparisons.PLAYS, comparisons.PLAYS_AGAIN))
    table = {}
    for one in first:
        row = table.setdefault(one.reader, Counter())
        row.update([one.verdict, "all", *(["sense"] if one.reason == "sense" else [])])
        assert (one.reason == "") == one.tie and one.reason in ("", "feeling", "sense")
    counts = {reader: tuple(row[name] for name in ("all", "first", "second", "tie", "sense")) for reader, row in table.items()}
    assert counts == {"b1": (390, 158, 185, 47, 36), "b2": (390, 194, 172, 24, 117), "b3": (259, 136, 113, 10, 58)}
    assert len(first) == 1039 and {*Counter(one.prompt for one in first).values()} == {2, 3, 4}
    answers = [(one.prompt, text) for one in first for text in (one.first, one.second)]
    assert len({*answers}) == len(answers) and min(len(text) for _, text in answers) >= 15
    works = {half: "\n".join(part["text"]) for half, part in corpus.split(plays).items()}
    halves = Counter(next(half for half, text in works.items() if prompt in text) for prompt in {one.prompt for one in first})
    assert halves["train"] == halves["validation"] == 140 and all(one.prompt.endswith("\n") for one in first)

    held_out = {one.pair for one in comparisons.split(first)[1]}
    assert len(second) == 120 and {one.pair for one in second} <= held_out
    by_pair = {one.pair: one for one in first}
    assert sum(by_pair[one.pair].first != one.first for one in second) == 57
    found = comparisons.agreement(first, second)
    assert round(found["agreement"], 3) == 0.833 and round(found["kappa"], 2) == 0.70
    assert found["decided"] == 108 and round(found["decided_agreement"], 3) == 0.907
