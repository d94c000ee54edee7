"""Chapter 11's checks of judging: correct answers written another way pass, and wrong ones as they are written get names."""

import pytest
import torch

from rlhf_lib import exercises, pairwise
from rlhf_lib.exercises import verdict
from rlhf_lib.exercises.plain import plain


def both_orders(ours_first, ours_second):
    results = []
    for one, other in zip(ours_first, ours_second):
        record = pairwise.Record("", "", "", one, other)
        results.append({1: "win", 0: "loss", 0.5: "tie"}[pairwise.outcome(record)])
    return results


def place_and_win(ours_first, ours_second):
    def share(some):
        return torch.tensor([{"first": 2, "tie": 1, "second": 0}[one] for one in some]).double().mean().item() / 2

    return 50 * (share(ours_first) + share(ours_second)) - 50, 0.5 + (share(ours_first) - share(ours_second)) / 2


def equal_length_win_rate(outcomes, ours, theirs):
    records = [
        pairwise.Record(str(place), "a " * mine, "a " * other, None, None)
        for place, (mine, other) in enumerate(zip(ours, theirs))
    ]
    marks = {1.0: ("first", "second"), 0.5: ("tie", "tie"), 0.0: ("second", "first")}
    records = [one._replace(ours_first=marks[won][0], ours_second=marks[won][1]) for one, won in zip(records, outcomes)]
    number, rate = pairwise.length_controlled(records)
    return number, rate and rate[0]


ALTERNATIVES = {
    "both_orders": both_orders,
    "place_and_win": place_and_win,
    "equal_length_win_rate": equal_length_win_rate,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ALTERNATIVES)
def test_every_correct_answer_passes(name, seed):
    found = verdict(name, ALTERNATIVES[name], seed)
    assert found.passed, found.message


def test_a_judge_of_the_place_alone_has_all_the_bias_and_wins_half():
    for count in (1, 4, 9):
        assert place_and_win(["first"] * count, ["first"] * (10 - count)) == (50.0, 0.5)
        assert place_and_win(["second"] * count, ["second"] * (10 - count)) == (-50.0, 0.5)
    assert both_orders(["first"] * 3, ["first"] * 3) == ["tie"] * 3


def test_the_answers_by_hand_on_the_cards():
    by_hand = {
        "both_orders": ["win", "tie"],
        "place_and_win": (25.0, 0.75),
        "equal_length_win_rate": (2, 0.5),
    }
    for name, expected in by_hand.items():
        out = exercises.find(name).right(**exercises.draw(name)[0])
        assert exercises.equal(plain(out, tuples=True), plain(expected, tuples=True), 1e-6), name


# ----------------------------------------------------------------------------------------- wrong answers, as they are written


POINTS = {"first": 1.0, "tie": 0.5, "second": 0.0}


def share(some):
    return sum(POINTS[one] for one in some) / len(some)


def the_other_order_alone(ours_first, ours_second):
    return [{"second": "win", "first": "loss"}.get(one, "tie") for one in ours_second]


def all_but_wins_are_losses(ours_first, ours_second):
    results = []
    for one, other in zip(ours_first, ours_second):
        if one == "first" and other == "second":
            results.append("win")
        elif one == "tie" and other == "tie":
            results.append("tie")
        else:
            results.append("loss")
    return results


def a_word_said_twice_is_a_tie(ours_first, ours_second):
    return ["tie" if one == other else "win" if one == "first" else "loss" for one, other in zip(ours_first, ours_second)]


def either_order_wins(ours_first, ours_second):
    results = []
    for one, other in zip(ours_first, ours_second):
        if one == "first" or other == "second":
            results.append("win")
        else:
            results.append("loss" if one == "second" or other == "first" else "tie")
    return results


def by_the_sum_of_points(ours_first, ours_second):
    return ["win" if POINTS[one] + 1 - POINTS[other] >= 1 else "loss" for one, other in zip(ours_first, ours_second)]


def as_numbers(ours_first, ours_second):
    values = {("first", "second"): 1.0, ("second", "first"): 0.0}
    return [values.get(pair, 0.5) for pair in zip(ours_first, ours_second)]


def without_an_else(ours_first, ours_second):
    return [{("first", "second"): "win", ("second", "first"): "loss"}.get(pair) for pair in zip(ours_first, ours_second)]


def decided_alone(ours_first, ours_second):
    return [one for one in without_an_else(ours_first, ours_second) if one]


def in_the_judge_s_words(ours_first, ours_second):
    pairs = zip(ours_first, ours_second)
    return [{("first", "second"): "first", ("second", "first"): "second"}.get(pair, "tie") for pair in pairs]


def counted(ours_first, ours_second):
    found = both_orders(ours_first, ours_second)
    return {one: found.count(one) for one in ("tie", "loss", "win")}


def bias_of_our_wins(ours_first, ours_second):
    return 100 * (share(ours_first) - share(ours_second)), (share(ours_first) + 1 - share(ours_second)) / 2


def bias_of_one_order(ours_first, ours_second):
    return 100 * (share(ours_first) - 0.5), (share(ours_first) + 1 - share(ours_second)) / 2


def pair_by_pair(ours_first, ours_second):
    pairs = [(POINTS[one], POINTS[other]) for one, other in zip(ours_first, ours_second)]
    rates = [sum(some) / len(pairs) for some in zip(*pairs)]
    return 50 * (sum(rates) - 1), (rates[0] + 1 - rates[1]) / 2


def seconds_counted(ours_first, ours_second):
    bias = 100 * ((share(ours_first) + share(ours_second)) / 2 - 0.5)
    return bias, (ours_first.count("first") / len(ours_first) + ours_second.count("second") / len(ours_second)) / 2


def near(limit=lambda mine, other: max(mine, other) <= 1.25 * min(mine, other), rate=None, guard=True, value=lambda won: won):
    """An answer to 11.10 with one thing changed."""
    rate = rate or (lambda longer, shorter: (sum(longer) / len(longer) + sum(shorter) / len(shorter)) / 2)

    def answer(outcomes, ours, theirs):
        kept = [(value(won), mine - other) for won, mine, other in zip(outcomes, ours, theirs) if limit(mine, other)]
        longer, shorter = [won for won, gap in kept if gap >= 0], [won for won, gap in kept if gap <= 0]
        return len(kept), None if guard and not (longer and shorter) else rate(longer, shorter)

    return answer


def nothing_to_say(outcomes, ours, theirs):
    found = near()(outcomes, ours, theirs)
    return None if found[1] is None else found


def all_together(longer, shorter):
    return sum(longer + shorter) / len(longer + shorter)


def half_for_none(longer, shorter):
    return sum(sum(side) / len(side) if side else 0.5 for side in (longer, shorter)) / 2


WRONG = [
    ("both_orders", the_other_order_alone, "our answer second is used"),
    ("both_orders", all_but_wins_are_losses, "what is no win is called a loss"),
    ("both_orders", a_word_said_twice_is_a_tie, "the first one decides"),
    ("both_orders", either_order_wins, "one order in our favour"),
    ("both_orders", by_the_sum_of_points, "nothing is a tie here"),
    ("both_orders", as_numbers, "these are numbers"),
    ("both_orders", without_an_else, "None came out"),
    ("both_orders", decided_alone, "without a winner are left out"),
    ("both_orders", in_the_judge_s_words, "these are verdicts"),
    ("both_orders", counted, "the outcome of each pair"),
    ("place_and_win", bias_of_our_wins, "compares our own wins"),
    ("place_and_win", bias_of_one_order, "that of one order"),
    ("place_and_win", pair_by_pair, "the shorter list"),
    ("place_and_win", seconds_counted, "ties count as nothing"),
    ("equal_length_win_rate", near(lambda mine, other: abs(mine - other) <= 0.25 * mine), "measured from ours"),
    ("equal_length_win_rate", near(lambda mine, other: other and 0.75 <= mine / other <= 1.25), "measured from theirs"),
    ("equal_length_win_rate", near(lambda mine, other: abs(mine - other) <= (mine + other) / 8), "mean of the two lengths"),
    ("equal_length_win_rate", near(lambda mine, other: other <= 1.25 * mine), "only an answer of theirs"),
    ("equal_length_win_rate", near(lambda mine, other: abs(mine - other) <= round(min(mine, other) / 4)), "rounded"),
    ("equal_length_win_rate", near(lambda mine, other: max(mine, other) <= 1.2 * min(mine, other)), "another than a quarter"),
    ("equal_length_win_rate", near(lambda mine, other: max(mine, other) / min(mine, other) <= 1.25), "divides by 0 there"),
    ("equal_length_win_rate", near(guard=False), "its mean is a division by 0"),
    ("equal_length_win_rate", near(rate=half_for_none, guard=False), "this is a number, or NaN; nobody can tell"),
    ("equal_length_win_rate", nothing_to_say, "still a number: return both"),
    (
        "equal_length_win_rate",
        near(rate=lambda longer, shorter: sum(longer + shorter) / len(longer + shorter)),
        "this is one mean",
    ),
    ("equal_length_win_rate", near(value=lambda won: won > 0.5), "a tie counts as a loss"),
    ("equal_length_win_rate", near(value=lambda won: won >= 0.5), "a tie counts as a win"),
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("name", "function", "words"), WRONG, ids=lambda one: one if isinstance(one, str) else "")
def test_wrong_answers_are_named(name, function, words, seed):
    found = verdict(name, function, seed)
    assert not found.passed
    assert found.mistake in exercises.find(name).mistakes and words in found.mistake, found.message
