"""Blind sheets: what is drawn, what comes back, and every way in which it may not fit."""

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib.blind import blind_pairs, read_votes, records, resolve, votes_judge
from rlhf_lib.comparisons import Comparison
from rlhf_lib.pairwise import Record, compare, summary

PROMPTS = [f"question {number}" for number in range(30)]
ANSWERS = {model: [f"{letter}{number}" for number in range(30)] for model, letter in (("start", "x"), ("sft", "y"), ("ppo", "z"))}
PAIRS = [("ppo", "start"), ("ppo", "sft")]


def prefer(rows, letters="zyx"):
    """Verdicts of a reader who prefers the letter that stands earlier in `letters`."""
    rank = {letter: place for place, letter in enumerate(letters)}
    better = [(row, rank[row["first"][0]] < rank[row["second"][0]]) for row in rows]
    return [{"id": row["id"], "verdict": "first" if first else "second", "reader": "r1"} for row, first in better]


# ----------------------------------------------------------------------------------------- the sheet


def test_rows_show_no_source_and_the_key_has_it():
    rows, key = blind_pairs(PROMPTS, ANSWERS, PAIRS, seed=1)
    assert all(set(row) == {"id", "prompt", "first", "second"} for row in rows)
    assert not any(model in json.dumps(rows) for model in ANSWERS)
    assert [row["id"] for row in rows] == [f"{place:04d}" for place in range(1, 61)] == list(key)
    for row in rows:
        entry = key[row["id"]]
        ours, theirs = (ANSWERS[entry[side]][entry["number"]] for side in ("ours", "theirs"))
        assert (row["first"], row["second"]) == ((ours, theirs) if entry["ours_first"] else (theirs, ours))
        assert row["prompt"] == PROMPTS[entry["number"]]
    assert json.loads(json.dumps(key)) == key


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10**6), st.booleans())
def test_every_pair_is_there_half_in_each_order(count, seed, both):
    answers = {model: texts[:count] for model, texts in ANSWERS.items()}
    rows, key = blind_pairs(PROMPTS[:count], answers, PAIRS, seed, both_orders=both)
    assert len(rows) == len(key) == count * 2 * (2 if both else 1)
    seen = Counter((entry["ours"], entry["theirs"], entry["ours_first"]) for entry in key.values())
    for pair in PAIRS:
        orders = [seen[(*pair, True)], seen[(*pair, False)]]
        assert orders == ([count, count] if both else [(count + 1) // 2, count // 2])
    each = Counter((entry["ours"], entry["theirs"], entry["number"]) for entry in key.values())
    assert set(each.values()) == {2 if both else 1}
    assert rows == blind_pairs(PROMPTS[:count], answers, PAIRS, seed, both_orders=both)[0]


def test_the_order_is_shuffled_and_depends_on_the_seed():
    rows, key = blind_pairs(PROMPTS, ANSWERS, PAIRS, seed=1, both_orders=True)
    numbers = [entry["number"] for entry in key.values()]
    assert numbers[:60] != sorted(numbers[:60])
    assert len({(entry["ours"], entry["theirs"]) for entry in list(key.values())[:8]}) == 2  # the models are mixed
    assert rows != blind_pairs(PROMPTS, ANSWERS, PAIRS, seed=2, both_orders=True)[0]
    # the second order comes after the whole first reading, and in another sequence
    assert len({(entry["theirs"], entry["number"]) for entry in list(key.values())[:60]}) == 60
    assert numbers[:60] != numbers[60:]
    # nor can the order be told from the place
    firsts = [entry["ours_first"] for entry in key.values()][:60]
    assert 10 < sum(a != b for a, b in pairwise(firsts)) < 50


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([("ppo", "gold")], "'gold' has 0 answers to 30 prompts"),
        ([("ppo", "short")], "'short' has 2 answers to 30 prompts"),
        ([("ppo", "sft"), ("sft", "ppo")], "name each pair of models once"),
        ([("ppo", "ppo")], "name each pair of models once"),
    ],
)
def test_pairs_that_cannot_be_drawn_are_refused(pairs, said):
    with pytest.raises(ValueError, match=said):
        blind_pairs(PROMPTS, {**ANSWERS, "short": ["a", "b"]}, pairs, seed=0)


# ----------------------------------------------------------------------------------------- the way back


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.permutations("xyz"))
def test_verdicts_find_their_models_again(seed, both, letters):
    rows, key = blind_pairs(PROMPTS, ANSWERS, PAIRS, seed, both_orders=both)
    verdicts = prefer(rows, letters)
    found = resolve(rows, key, verdicts[::-1])
    assert set(found) == set(PAIRS)
    for (ours, theirs), some in found.items():
        assert [record.prompt for record in some] == PROMPTS
        assert [record.ours for record in some] == ANSWERS[ours]
        assert [record.theirs for record in some] == ANSWERS[theirs]
        assert all((None in record[3:]) != both for record in some)
        figures = summary(some)
        assert figures["win_rate"].rate == (letters.index("z") < letters.index({"sft": "y", "start": "x"}[theirs]))
        assert figures["position_bias"][0] == pytest.approx(0, abs=1e-9)
        assert figures["consistency"] == (1 if both else None)


def test_a_reader_who_likes_the_first_place_is_seen_in_one_order_too():
    rows, key = blind_pairs(PROMPTS, ANSWERS, PAIRS[:1], seed=0)
    figures = summary(resolve(rows, key, [{"id": row["id"], "verdict": "first"} for row in rows])[PAIRS[0]])
    assert figures["win_rate"].rate == 0.5
    assert figures["position_bias"][0] == 50


def broken(change):
    rows, key = blind_pairs(PROMPTS, ANSWERS, PAIRS, seed=0)
    verdicts = prefer(rows)
    return change(rows, key, verdicts) or (rows, key, verdicts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows, key, verdicts: verdicts.pop(4) and None, r"1 ids are in the rows and not in the verdicts \(0005\)"),
        (lambda rows, key, verdicts: verdicts.append(verdicts[2]), r"1 ids are in the verdicts more than once \(0003\)"),
        (lambda rows, key, verdicts: verdicts[0].update(id="77"), r"1 ids are in the verdicts and not in the rows \(77\)"),
        (lambda rows, key, verdicts: key.pop("0002") and None, r"1 ids are in the rows and not in the key \(0002\)"),
        (lambda rows, key, verdicts: (rows, key, []), r"60 ids .* not in the verdicts \(0001, 0002, 0003, 0004, 0005\)"),
        (
            lambda rows, key, verdicts: verdicts[6].update(verdict="A"),
            "row 0007: the verdict must be first, second or tie, got 'A'",
        ),
        (lambda rows, key, verdicts: verdicts[6].update(first="other"), "row 0007: its verdict was given on other texts"),
    ],
)
def test_verdicts_that_do_not_fit_the_rows_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        resolve(*broken(change))


# ----------------------------------------------------------------------------------------- the file of verdicts

VOTE = {"id": "0001", "prompt": "p", "first": "a", "second": "b", "verdict": "tie", "reader": "r1", "reason": "both stray"}


def write(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def test_votes_come_back_as_they_were_written(tmp_path):
    plain = {field: VOTE[field] for field in ("id", "first", "second", "verdict", "reader")}
    odd = {**VOTE, "id": "2", "first": "line\u2028and \u0085 “marks” 🙂"}
    raw = json.dumps(odd, ensure_ascii=False).encode("utf-8")
    path = write(tmp_path / "votes.jsonl", VOTE, b"", raw, {**plain, "id": "3"}, {**plain, "reader": "r2"}, b"")
    assert read_votes(path) == [VOTE, odd, {**plain, "id": "3"}, {**plain, "reader": "r2"}]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Windows' editors save it
    assert len(read_votes(path)) == 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'"first"', "not a JSON object"),
        (b"\xff", "not UTF-8"),
        (rb'{"id": "\ud800"}', "half a character"),
        ({**VOTE, "verdict": "A"}, "must be first, second or tie, got 'A'"),
        ({**VOTE, "first": 3}, "every field must be a text"),
        ({**VOTE, "reason": None}, "every field must be a text"),
        ({"id": "9", "verdict": "tie"}, "a vote has 'first', this line has not"),
        (VOTE, "the same id and reader as line 1"),
    ],
)
def test_a_line_that_is_no_vote_is_named(tmp_path, line, said):
    path = write(tmp_path / "votes.jsonl", VOTE, b"", line)
    with pytest.raises(ValueError, match=rf"votes\.jsonl, line 3: .*{said}"):
        read_votes(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file at .*none\.jsonl"):
        read_votes(tmp_path / "none.jsonl")


def test_what_a_reader_left_is_a_judge(tmp_path):
    rows, key = blind_pairs(PROMPTS, ANSWERS, PAIRS, seed=3, both_orders=True)
    votes = [{**row, **vote} for row, vote in zip(rows, prefer(rows))]
    judge = votes_judge(read_votes(write(tmp_path / "votes.jsonl", *votes)))
    records = compare(judge, PROMPTS, ANSWERS["ppo"], ANSWERS["start"])
    assert records == resolve(rows, key, votes)["ppo", "start"]
    assert summary(records)["win_rate"].rate == 1
    with pytest.raises(ValueError, match="nobody read this pair in this order"):
        compare(judge, PROMPTS, ANSWERS["sft"], ANSWERS["start"])


def test_votes_that_no_judge_can_be_made_of():
    with pytest.raises(ValueError, match="vote 0001 has no prompt"):
        votes_judge([{field: VOTE[field] for field in VOTE if field != "prompt"}])
    with pytest.raises(ValueError, match="vote 0009 contradicts another on the same texts"):
        votes_judge([VOTE, {**VOTE, "id": "0009", "verdict": "first"}])
    assert votes_judge([VOTE, {**VOTE, "id": "0009"}])(["p"], ["a"], ["b"]) == ["tie"]


# ----------------------------------------------------------------------------------------- comparisons of known sources


def said(first, second, verdict, prompt="q", round=0):
    """A comparison; the letter that an answer begins with is its model."""
    sources = dict(first_from=first[0], second_from=second[0])
    return Comparison(prompt, first, second, verdict, "r", {"prompt": prompt}, round=round, **sources)


def test_both_orders_of_a_pair_are_one_record_with_ours_by_name():
    found = [said("x1", "y1", "first"), said("x2", "y2", "tie", "r"), said("y1", "x1", "first"), said("x1", "z1", "second")]
    assert records(found, "x", "y") == [Record("q", "x1", "y1", "first", "first"), Record("r", "x2", "y2", "tie", None)]
    assert records(found, "y", "x") == [Record("q", "y1", "x1", "first", "first"), Record("r", "y2", "x2", None, "tie")]
    assert records(found, "z", "x") == [Record("q", "z1", "x1", None, "second")]
    assert records(found, "z", "y") == []


def test_the_same_answers_of_another_run_are_another_record():
    found = [said("x1", "y1", "first"), said("x1", "y1", "second", round=1), said("y1", "x1", "tie", round=1)]
    assert [record[3:] for record in records(found, "x", "y")] == [("first", None), ("second", "tie")]


def test_one_order_that_two_readers_saw_is_refused():
    with pytest.raises(ValueError, match=r"two readers saw 'x1' and 'y1' in the same order: keep one of them"):
        records([said("x1", "y1", "first"), said("x1", "y1", "tie")], "x", "y")


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["first", "second", "tie"])), min_size=1, max_size=12))
def test_each_verdict_counts_for_its_side(drawn):
    found = [
        said(*(("x", "y") if straight else ("y", "x")), verdict, prompt=f"{place}")
        for place, (straight, verdict) in enumerate(drawn)
    ]
    points = {("first", True): 1, ("second", False): 1, ("tie", True): 0.5, ("tie", False): 0.5}
    rate = summary(records(found, "x", "y"))["win_rate"].rate
    assert rate == pytest.approx(sum(points.get((verdict, straight), 0) for straight, verdict in drawn) / len(drawn))
