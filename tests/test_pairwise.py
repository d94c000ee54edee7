"""Judges of every kind, and the statistics against counts by hand, brute force, published formulas and simulations."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib import pairwise
from rlhf_lib.pairwise import Record, compare, score_judge, summary

VERDICTS = ("first", "second", "tie")


def always(verdict):
    return lambda prompts, first, second: [verdict] * len(prompts)


def better(prompts, first, second):
    """Prefers the answer that says good."""
    return ["first" if "good" in one else "second" if "good" in other else "tie" for one, other in zip(first, second)]


def longer(prompts, first, second):
    sizes = [(len(one.split()), len(other.split())) for one, other in zip(first, second)]
    return ["first" if one > other else "second" if other > one else "tie" for one, other in sizes]


def texts(*lengths):
    return [" ".join(["word"] * length) for length in lengths]


def names(count):
    return [f"prompt {number}" for number in range(count)]


# ----------------------------------------------------------------------------------------- asking


def test_every_pair_is_asked_in_both_orders_and_both_verdicts_are_kept():
    asked = []

    def judge(prompts, first, second):
        asked.extend(zip(prompts, first, second))
        return ["first", "tie", "second", "refused"]

    records = compare(judge, ["p", "q"], ["a", "b"], ["x", "y"])
    assert asked == [("p", "a", "x"), ("q", "b", "y"), ("p", "x", "a"), ("q", "y", "b")]
    assert records == [Record("p", "a", "x", "first", "second"), Record("q", "b", "y", "tie", "refused")]


@pytest.mark.parametrize(
    ("judge", "lists", "said"),
    [
        (better, ([], [], []), "0 prompts, 0 and 0 answers"),
        (better, (["p"], ["a"], []), "1 prompts, 1 and 0 answers"),
        (lambda *_: ["tie"], (["p"], ["a"], ["b"]), "gave 1 verdicts on 2 questions"),
        (lambda *_: ["tie", "A"], (["p"], ["a"], ["b"]), "verdict 2 is 'A': a judge says first, second, tie or refused"),
        (lambda *_: ["tie", None], (["p"], ["a"], ["b"]), "verdict 2 is None"),
    ],
)
def test_what_is_no_comparison_is_refused(judge, lists, said):
    with pytest.raises(ValueError, match=said):
        compare(judge, *lists)


def test_the_score_judge_prefers_the_higher_score_and_ties_equal_ones():
    calls = []

    def score(prompts, answers):
        calls.append(list(zip(prompts, answers)))
        return torch.tensor([float(len(prompt) * len(answer)) for prompt, answer in zip(prompts, answers)])

    judge = score_judge(score)
    assert judge(["p", "p", "qq"], ["a", "bb", "a"], ["aa", "b", "c"]) == ["second", "first", "tie"]
    records = compare(judge, ["p", "p"], ["a", "bb"], ["aa", "a"])
    assert [record[3:] for record in records] == [("second", "first"), ("first", "second")]
    # each answer to each prompt is scored once: what a batch does to the last digit cannot set the two orders at odds
    assert calls[1] == [("p", "a"), ("p", "bb"), ("p", "aa")]


@pytest.mark.parametrize("scores", [[1.0], [1.0, math.nan], [1.0, math.inf]])
def test_scores_that_are_missing_or_no_numbers_are_refused(scores):
    with pytest.raises(ValueError, match="one finite number an answer"):
        score_judge(lambda prompts, answers: scores)(["p"], ["a"], ["b"])


# ----------------------------------------------------------------------------------------- judges that are known


@pytest.mark.parametrize(("verdict", "bias"), [("first", 50), ("second", -50)])
def test_a_judge_that_looks_at_the_place_alone(verdict, bias):
    found = summary(compare(always(verdict), names(40), texts(*[3] * 40), texts(*[4] * 40)))
    assert found["win_rate"].rate == 0.5
    assert found["position_bias"][0] == bias
    assert bias in (found["position_bias"][1], found["position_bias"][2])  # the end of the scale
    assert found["consistency"] == 0
    assert (found["contradicted"], found["ties"], found["wins"], found["losses"]) == (40, 1, 0, 0)


def test_in_one_order_the_same_judge_reports_what_one_likes():
    """minChatGPT's way: the candidate always second. A judge of the place gives 100 %, and its bias cannot be seen."""
    records = compare(always("second"), names(40), texts(*[3] * 40), texts(*[4] * 40))
    found = summary([record._replace(ours_first=None) for record in records])
    assert found["win_rate"].rate == 1
    assert found["win_rate"].low > 0.9
    assert found["position_bias"] is None
    assert found["consistency"] is None
    assert summary(records)["win_rate"].rate == 0.5


def test_a_judge_that_is_always_right():
    ours = ["good"] * 30 + ["bad"] * 10
    found = summary(compare(better, names(40), ours, ["bad"] * 30 + ["good"] * 5 + ["bad"] * 5))
    assert found["win_rate"].rate == pytest.approx((30 + 2.5) / 40)
    assert (found["wins"], found["losses"], found["ties"]) == (30 / 40, 5 / 40, 5 / 40)
    assert (found["consistency"], found["contradicted"]) == (1, 0)
    assert found["position_bias"][0] == 0
    assert found["length_ratio"] == 1
    assert found["longer_win_rate"] is None  # all are one word


def test_a_judge_that_likes_length_and_nothing_else():
    draw = random.Random(0)
    theirs = [draw.randint(20, 60) for _ in range(150)]
    ours = [round(length * draw.choice((0.8, 0.9, 1.2, 1.3, 1.4, 1.5))) for length in theirs]
    found = summary(compare(longer, names(150), texts(*ours), texts(*theirs)))
    assert found["win_rate"].low > 0.55  # it looks as though ours were better
    assert found["longer_win_rate"].rate == 1
    assert found["length_ratio"] == pytest.approx(sum(ours) / sum(theirs))
    assert found["words"] == (sum(ours) / 150, sum(theirs) / 150)
    assert found["length_controlled"].rate == pytest.approx(0.5)
    assert found["length_controlled"].low < 0.5 < found["length_controlled"].high
    like = [max(pair) <= 1.25 * min(pair) for pair in zip(ours, theirs)]
    assert found["length_controlled_pairs"] == sum(like) < 150


def test_a_refused_pair_is_counted_and_left_out():
    records = [
        Record("a", "one", "two", "first", "second"),
        Record("b", "one", "two", "refused", "first"),
        Record("c", "one", "two", "second", "refused"),
    ]
    found = summary(records)
    assert (found["pairs"], found["refused"], found["win_rate"].rate) == (1, 2, 1)
    with pytest.raises(ValueError, match="of 2 pairs none has them"):
        summary(records[1:])
    with pytest.raises(ValueError, match="of 0 pairs"):
        summary([])


# ----------------------------------------------------------------------------------------- drawn tables of verdicts

SOME = st.lists(
    st.builds(
        Record,
        st.sampled_from("pqrstuvw"),
        st.integers(0, 6).map(lambda n: " ".join("a" * n)),
        st.integers(0, 6).map(lambda n: " ".join("b" * n)),
        st.sampled_from((*VERDICTS, "refused", None)),
        st.sampled_from((*VERDICTS, "refused", None)),
    ).filter(lambda record: record[3:] != (None, None)),
    min_size=1,
    max_size=12,
)


def count(records):
    """The same figures in the plainest way, for records of different prompts."""
    kept = [r for r in records if r.ours_first != "refused" and r.ours_second != "refused"]
    won = lost = tied = agree = both = long = unlike = 0
    like = {"longer": [], "shorter": []}
    firsts = {"ours": [], "theirs": []}
    for r in kept:
        said = []  # who won
        for verdict, first, second in ((r.ours_first, "ours", "theirs"), (r.ours_second, "theirs", "ours")):
            if verdict is None:
                continue
            said.append({"first": first, "second": second, "tie": "tie"}[verdict])
            firsts[first].append({"first": 1, "second": 0, "tie": 0.5}[verdict])
        winner = said[0] if len(said) == 1 or said[0] == said[1] else "tie"
        won, lost, tied = won + (winner == "ours"), lost + (winner == "theirs"), tied + (winner == "tie")
        both, agree = both + (len(said) == 2), agree + (len(said) == 2 and said[0] == said[1])
        mine, other = len(r.ours.split()), len(r.theirs.split())
        score = {"ours": 1, "theirs": 0, "tie": 0.5}[winner]
        if mine == other or (mine and other and 0.8 <= mine / other <= 1.25):
            like["longer"] += [score] * (mine >= other)
            like["shorter"] += [score] * (mine <= other)
        if mine != other:
            unlike += 1
            long += 0.5 if winner == "tie" else (winner == "ours") == (mine > other)
    bias = None
    if firsts["ours"] and firsts["theirs"]:
        bias = 100 * (sum(sum(side) / len(side) for side in firsts.values()) / 2 - 0.5)
    return {
        "kept": kept,
        "rates": [share / len(kept) for share in (won, lost, tied, won + tied / 2)] if kept else None,
        "contradicted": both - agree,
        "consistency": agree / both if both else None,
        "bias": bias,
        "controlled": sum(sum(side) / len(side) for side in like.values()) / 2 if all(like.values()) else None,
        "longer": long / unlike if unlike else None,
    }


@settings(max_examples=150, deadline=None)
@given(SOME)
def test_drawn_tables_against_a_count(records):
    records = [record._replace(prompt=str(number)) for number, record in enumerate(records)]
    expected = count(records)
    if not expected["kept"]:
        with pytest.raises(ValueError, match="none has them"):
            summary(records)
        return
    found = summary(records)
    assert found["pairs"] == len(expected["kept"])
    assert found["refused"] == len(records) - found["pairs"]
    shares = [found["wins"], found["losses"], found["ties"], found["win_rate"].rate]
    assert shares == pytest.approx(expected["rates"], abs=1e-12)
    assert found["contradicted"] == expected["contradicted"]
    assert found["consistency"] == expected["consistency"]
    assert (found["longer_win_rate"] and found["longer_win_rate"].rate) == pytest.approx(expected["longer"], abs=1e-12)
    assert (found["length_controlled"] and found["length_controlled"].rate) == pytest.approx(expected["controlled"], abs=1e-9)
    assert (found["position_bias"] and found["position_bias"][0]) == pytest.approx(expected["bias"], abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(SOME)
def test_relations_that_hold_for_any_table(records):
    if all("refused" in record[3:] for record in records):
        return
    found = summary(records)
    rates = [found[name] for name in ("win_rate", "longer_win_rate", "length_controlled") if found[name]]
    assert all(-1e-9 <= rate.low - 1e-9 <= rate.rate <= rate.high + 1e-9 <= 1 + 2e-9 for rate in rates)
    if found["position_bias"]:
        bias, low, high = found["position_bias"]
        assert -50 - 1e-9 <= low - 1e-9 <= bias <= high + 1e-9 <= 50 + 2e-9
    # every pair with the sides exchanged: what was won is lost, the place is liked as before
    other = summary([Record(r.prompt, r.theirs, r.ours, r.ours_second, r.ours_first) for r in records])
    for name in ("win_rate", "length_controlled"):
        mirrored = found[name] and (1 - found[name].rate, 1 - found[name].high, 1 - found[name].low)
        assert other[name] == pytest.approx(mirrored)
    assert other["position_bias"] == pytest.approx(found["position_bias"])
    assert other["longer_win_rate"] == pytest.approx(found["longer_win_rate"])
    assert (other["wins"], other["losses"], other["consistency"]) == (found["losses"], found["wins"], found["consistency"])
    # every pair asked eight times over: the prompt is the unit, so nothing is surer than before
    again = summary(records * 8)
    for name in ("win_rate", "position_bias", "longer_win_rate", "length_controlled"):
        assert again[name] == pytest.approx(found[name])


def test_a_prompt_that_is_there_several_times_counts_once():
    won, lost = ("first", "second"), ("second", "first")
    records = [Record("p", "a", "b", *won)] * 3 + [Record("p", "a", "b", *lost), Record("q", "a", "b", *lost)]
    assert summary(records)["win_rate"].rate == pytest.approx((0.75 + 0) / 2)


# ----------------------------------------------------------------------------------------- intervals


def test_the_interval_by_hand():
    # 3 wins and a loss, with half a win, half a loss and a tie more: 4 / 6 on the mean, 3.75 / 6 on the squares
    half = 1.96 * math.sqrt((3.75 / 6 - (4 / 6) ** 2) / 6)
    assert pairwise.rate_interval([1, 1, 0, 1]) == pytest.approx((0.75, 4 / 6 - half, min(1, 4 / 6 + half)))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_the_interval_is_wald_plus_2_of_agresti_and_min(wins, losses, ties):
    n = wins + losses + ties
    if n == 0:
        return
    difference = (wins - losses) / (n + 2)  # of the two proportions that win, in their notation
    half = 1.96 * math.sqrt(wins + losses + 1 - (wins - losses) ** 2 / (n + 2)) / (n + 2)
    low, high = max(-1, difference - half), min(1, difference + half)
    expected = ((wins + ties / 2) / n, 0.5 + low / 2, 0.5 + high / 2)
    assert pairwise.rate_interval([1] * wins + [0] * losses + [0.5] * ties) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n", [20, 60])
@pytest.mark.parametrize(("win", "tie"), [(0.5, 0.0), (0.7, 0.0), (0.9, 0.0), (0.6, 0.2), (0.2, 0.7), (0.05, 0.9)])
def test_the_interval_covers_the_truth_exactly_counted(n, win, tie):
    """Over every table that can occur, each with its probability."""
    covered, loss = 0.0, 1 - win - tie
    for wins in range(n + 1):
        for ties in range(n - wins + 1):
            losses = n - wins - ties
            if (ties and not tie) or (losses and loss < 1e-12):
                continue
            low, high = pairwise.rate_interval([1] * wins + [0.5] * ties + [0] * losses)[1:]
            if low <= win + tie / 2 <= high:
                ways = math.comb(n, wins) * math.comb(n - wins, ties)
                covered += ways * win**wins * tie**ties * loss**losses
    assert 0.93 < covered < 0.999


def test_the_intervals_cover_the_truth_in_simulations():
    """A judge that sees quality by chance and likes the first place by 10 points: 150 pairs, 400 times."""
    draw, runs = random.Random(3), 400
    inside = Counter()
    # P(first | ours first) = .75, P(first | ours second) = .45: bias 10 points; won .75 * .55, lost .25 * .45
    rate = 0.75 * 0.55 + (1 - 0.75 * 0.55 - 0.25 * 0.45) / 2

    def judge(prompts, first, second):
        return ["first" if draw.random() < (0.75 if one == "ours" else 0.45) else "second" for one in first]

    for _ in range(runs):
        records = compare(judge, names(150), ["ours"] * 150, ["theirs"] * 150)
        outcomes = [pairwise.outcome(record) for record in records]
        _, low, high = pairwise.rate_interval(outcomes)
        inside["rate"] += low <= rate <= high
        _, low, high = pairwise.position_bias(records)
        inside["bias"] += low <= 10 <= high
    assert all(0.92 < inside[name] / runs < 0.98 for name in ("rate", "bias")), inside


# ----------------------------------------------------------------------------------------- length


def test_the_rate_at_like_length_by_hand():
    won, lost, tied = ("first", "second"), ("second", "first"), ("tie", "tie")
    table = [
        (10, 8, won),  # a quarter more: in
        (11, 8, won),  # more than a quarter: out
        (9, 9, tied),  # both longer and shorter
        (8, 10, won),
        (8, 9, lost),
        (8, 11, lost),  # out
        (0, 1, lost),  # out
        (0, 0, won),
    ]
    records = [Record(str(n), *texts(ours, theirs), *verdicts) for n, (ours, theirs, verdicts) in enumerate(table)]
    pairs, rate = pairwise.length_controlled(records)
    assert pairs == 5
    assert rate.rate == pytest.approx(((1 + 0.5 + 1) / 3 + (0.5 + 1 + 0 + 1) / 4) / 2)
    figures = summary(records)
    assert (figures["length_controlled_pairs"], figures["length_controlled"]) == (5, rate)


def test_a_better_side_that_is_longer_keeps_its_rate_at_like_length():
    """P(ours wins) = sigmoid(.8 + 1.5 * log ratio), ours a third longer: without control it seems to win too often."""
    draw, runs, truth = random.Random(5), 200, 1 / (1 + math.exp(-0.8))
    inside, plain, controlled = 0, [], []
    for _ in range(runs):
        records = []
        for number in range(300):
            theirs = draw.randint(40, 120)
            ours = round(theirs * math.exp(draw.gauss(0.3, 0.3)))
            won = draw.random() < 1 / (1 + math.exp(-0.8 - 1.5 * math.log(ours / theirs)))
            records.append(
                Record(str(number), "w " * ours, "w " * theirs, *(("first", "second") if won else ("second", "first")))
            )
        _, (rate, low, high) = pairwise.length_controlled(records)
        plain.append(sum(map(pairwise.outcome, records)) / len(records))
        controlled.append(rate)
        inside += low <= truth <= high
    assert sum(plain) / runs - truth > 0.05
    assert sum(controlled) / runs == pytest.approx(truth, abs=0.012)
    assert 0.91 < inside / runs < 0.99


def test_where_ours_is_always_longer_nothing_is_said_and_where_mostly_little():
    records = compare(longer, names(150), texts(*[24] * 150), texts(*[20] * 150))
    assert pairwise.length_controlled(records) == (150, None)
    assert pairwise.length_controlled(records[:3] + compare(longer, ["odd"], ["one"], ["one two"])) == (
        3,
        None,
    )  # out of the band
    shorter = Record("odd", *texts(20, 24), "second", "first")
    pairs, rate = pairwise.length_controlled([*records, shorter])
    assert (pairs, rate.rate) == (151, pytest.approx(0.5))
    assert rate.high - rate.low > 0.9
