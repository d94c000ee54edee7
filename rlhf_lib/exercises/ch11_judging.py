"""Chapter 11: the price of a nat, judging in both orders, the place that wins, and answers of equal length."""

import math
import statistics
from functools import partial

import torch

from rlhf_lib.exercises.declare import Exercise


# ----------------------------------------------------------------------------------------- 11.7
def draw_coefficients(generator):
    yield {"kl_coef": 0.1, "kls": [6.6], "target": 6.0, "completions": 64, "horizon": 640}
    yield {"kl_coef": 0.2, "kls": [0.0, 12.0], "target": 5.0, "completions": 100, "horizon": 1000}
    yield {"kl_coef": 0.05, "kls": [4.0, 4.4, 3.8, 4.0], "target": 4.0, "completions": 32, "horizon": 64}
    yield {"kl_coef": 0.1, "kls": [6.0, 3.0], "target": 4.0, "completions": 96, "horizon": 64}  # a short horizon
    yield {"kl_coef": 3.0, "kls": [-0.5, -1.9, 0.1, 30.0], "target": 2.0, "completions": 10, "horizon": 400}
    for count in (3, 8):
        target = 1 + 8 * torch.rand((), generator=generator).item()
        kls = (target * (0.6 + torch.rand(count, generator=generator))).tolist()
        yield {"kl_coef": 0.3 / count, "kls": kls, "target": target, "completions": 16 * count, "horizon": 500}
    for kl_coef in (2e-4, 200.0):
        kls = (8 * torch.rand(130, generator=generator)).tolist()
        yield {"kl_coef": kl_coef, "kls": kls, "target": 4.0, "completions": 64, "horizon": 6400}


def coefficients_by_median(kl_coef, kls, target, completions, horizon):
    factors = [1 + completions * statistics.median((-0.2, 0.2, kl / target - 1)) / horizon for kl in kls]
    return [kl_coef * math.prod(factors[: place + 1]) for place in range(len(factors))]


def coefficients_formula(
    kl_coef, kls, target, completions, horizon, *, error=lambda kl, target: kl / target - 1, low=-0.2, high=0.2,
    share=lambda n, horizon: n / horizon, move=lambda coef, step: coef * (1 + step), compound=True, start=False,
):  # fmt: skip
    coefs = [kl_coef]
    for kl in kls:
        step = min(high, max(low, error(kl, target))) * share(completions, horizon)
        coefs.append(move(coefs[-1] if compound else kl_coef, step))
    return coefs[:-1] if start else coefs[1:]


def doubled(kl_coef, kls, target, completions, horizon):
    factors = [2 if kl > 1.5 * target else 0.5 if kl < target / 1.5 else 1 for kl in kls]
    return [kl_coef * math.prod(factors[: place + 1]) for place in range(len(kls))]


adaptive_kl = Exercise(
    "11.7", "adaptive_kl", draw=draw_coefficients, right=coefficients_by_median, formula=coefficients_formula, mistakes={
        "the error is not held within -0.2 to 0.2, so that one wild rollout moves the coefficient far":
            {"low": -math.inf, "high": math.inf},
        "the error is held below 0.2 and not above -0.2": {"low": -math.inf},
        "the error is held above -0.2 and not below 0.2": {"high": math.inf},
        "the coefficient never falls: a KL below the target has to lower it": {"low": 0.0},
        "the coefficient never rises: a KL above the target has to raise it": {"high": 0.0},
        "the step is held, with its share of the horizon in it; hold the error alone":
            lambda kl_coef, kls, target, completions, horizon: coefficients_formula(
                kl_coef, kls, target, 1, 1, error=lambda kl, target: (kl / target - 1) * completions / horizon),
        "min and max have changed places, so that the error is the same always": [{"low": 0.2, "high": -0.2}, {"low": 0.2}],
        "it is held within other bounds than -0.2 to 0.2":
            [{"low": -bound, "high": bound} for bound in (0.02, 0.1, 0.25, 0.5, 1.0, 2.0)],
        "the sign is turned: a KL above the target has to raise the price": {"error": lambda kl, target: 1 - kl / target},
        "the error loses its sign: a KL below the target has to lower the price":
            {"error": lambda kl, target: abs(kl / target - 1)},
        "the difference is divided by the KL; divide by the target":
            [{"error": lambda kl, target: (kl - target) / kl}, {"error": lambda kl, target: (kl - target) / kl if kl else 0.0},
             {"error": lambda kl, target: (kl - target) / kl if kl else -1.0}],
        "the KL loses its sign: an estimate below 0 is below the target too, and lowers the price":
            {"error": lambda kl, target: abs(kl) / target - 1},
        "the error is a difference in nats; divide by the target": {"error": lambda kl, target: kl - target},
        "target and KL have changed places in the error": {"error": lambda kl, target: target / kl - 1 if kl else 1e9},
        "1 is not subtracted: at the target the error is 0": [
            {"error": lambda kl, target: kl / target}, {"error": lambda kl, target: kl / target, "low": 0.8, "high": 1.2}],
        "the gain is a fixed 0.1, as in the paper; here it is completions over horizon": {"share": lambda n, horizon: 0.1},
        "the error is that of the mean of all KLs so far; each rollout has its own": lambda kl_coef, kls, **others:
            coefficients_formula(kl_coef, [statistics.fmean(kls[: place + 1]) for place in range(len(kls))], **others),
        "the coefficient is kept below or above a bound; it may become any number":
            [*({"move": lambda coef, step, most=most: min(most, coef * (1 + step))} for most in (0.5, 1.0, 10.0, 100.0)),
             *({"move": lambda coef, step, least=least: max(least, coef * (1 + step))} for least in (0.001, 0.01))],
        "the number of completions and the horizon are not used: a whole step each time": {"share": lambda n, horizon: 1},
        "completions over horizon is upside down": {"share": lambda n, horizon: horizon / n},
        "completions // horizon is a whole number, mostly 0; divide with /": {"share": lambda n, horizon: n // horizon},
        "completions over horizon is kept at 1 at most; a rollout may have more completions than the horizon":
            {"share": lambda n, horizon: min(1.0, n / horizon)},
        "the horizon is not used": {"share": lambda n, horizon: n},
        "the number of completions is not used": {"share": lambda n, horizon: 1 / horizon},
        "the step is added; the coefficient is multiplied by 1 plus it": {"move": lambda coef, step: coef + step},
        "this is the step alone; the coefficient is multiplied by 1 plus the step": {"move": lambda coef, step: coef * step},
        "it doubles and halves, as the penalty of the PPO paper does (section 4); here it moves by the error": doubled,
        "the coefficient is divided where it is to be multiplied": {"move": lambda coef, step: coef / (1 + step)},
        "the exponential of the step is a little more than 1 plus it": {"move": lambda coef, step: coef * math.exp(step)},
        "every coefficient is made from the first; each goes on from the one before": {"compound": False},
        "this is one rollout late: each coefficient is the one after its rollout": {"start": True},
        "the coefficient to begin with stands in front; asked for is the one after each rollout":
            lambda kl_coef, kls, **others: [kl_coef, *coefficients_formula(kl_coef, kls, **others)],
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 11.8
VERDICTS, OUTCOMES = ("first", "second", "tie"), ("win", "loss", "tie")


def draw_orders(generator):
    yield {"ours_first": ["first", "first"], "ours_second": ["second", "first"]}
    every = [(one, other) for one in VERDICTS for other in VERDICTS]
    yield {"ours_first": [one for one, _ in every], "ours_second": [other for _, other in every]}
    yield {"ours_first": [], "ours_second": []}
    for count in (4, 9, 130):
        first, second = torch.randint(3, (2, count), generator=generator).tolist()
        yield {"ours_first": [VERDICTS[one] for one in first], "ours_second": [VERDICTS[one] for one in second]}


def orders_by_table(ours_first, ours_second):
    table = {("first", "second"): "win", ("second", "first"): "loss"}
    return [table.get(pair, "tie") for pair in zip(ours_first, ours_second)]


def orders_formula(ours_first, ours_second, *, points=(1, 0, 0.5), turned=(0, 1, 0.5), say=None, keep=None):
    """`points` of "first", "second" and "tie" for us in each order; `say` makes the outcome of both orders' points."""
    say = say or (lambda one, other: one if one == other else 0.5)
    gained = [(points[VERDICTS.index(a)], turned[VERDICTS.index(b)]) for a, b in zip(ours_first, ours_second)]
    results = [say(one, other) for one, other in gained if keep is None or keep(one, other)]
    return [{1: "win", 0: "loss"}.get(result, "tie") for result in results]


def sided(one, other):
    """A win where the mean of the points is above a half."""
    return 1 if one + other > 1 else 0 if one + other < 1 else 0.5


def contradiction(one, other, outcome):
    """Both orders have to agree, but a contradiction is `outcome`."""
    return outcome if {one, other} == {0, 1} else one if one == other else 0.5


def in_words(**words):
    """The right outcomes, each as `words` has it."""
    return lambda ours_first, ours_second: [words.get(one, one) for one in orders_by_table(ours_first, ours_second)]


def one_behind_the_other(ours_first, ours_second):
    first, second = {"first": "win", "second": "loss"}, {"first": "loss", "second": "win"}
    return [first.get(one, "tie") for one in ours_first] + [second.get(one, "tie") for one in ours_second]


both_orders = Exercise(
    "11.8", "both_orders", draw=draw_orders, right=orders_by_table, formula=orders_formula, mistakes={
        "the second order is not turned round: there \"second\" is the verdict for our answer": {"turned": (1, 0, 0.5)},
        "the first order is turned round too: there \"first\" is the verdict for our answer": {"points": (0, 1, 0.5)},
        "win and loss have changed places": {"points": (0, 1, 0.5), "turned": (1, 0, 0.5)},
        "only the order with our answer first is used: a judge that likes the first place makes us win":
            {"say": lambda one, other: one},
        "only the order with our answer second is used: a judge that likes that place makes us win":
            {"say": lambda one, other: other},
        "one order decides, and the other is asked only where it says tie; both have to say it":
            [{"say": lambda one, other: other if one == 0.5 else one},
             {"say": lambda one, other: one if other == 0.5 else other}],
        "a loss in one order and a tie in the other is called a loss; only what both orders say counts":
            {"say": lambda one, other: 1 if one == other == 1 else 0 if one + other < 1 else 0.5},
        "a win in one order and a tie in the other is called a win; only what both orders say counts": {"say": sided},
        "one order in our favour is called a win; both have to say it":
            [{"say": max}, {"say": lambda one, other: 1 if 1 in (one, other) else 0 if 0 in (one, other) else 0.5}],
        "one order against us is called a loss; both have to say it":
            [{"say": min}, {"say": lambda one, other: 0 if 0 in (one, other) else 1 if 1 in (one, other) else 0.5},
             {"say": lambda one, other: 1 if one == other == 1 else 0 if other == 0 and one < 1 else 0.5}],
        "what is no win is called a loss; a loss is what both orders say, and all the rest is a tie": [
            {"say": lambda one, other: int(one == other == 1)},
            {"say": lambda one, other: 0.5 if one == other == 0.5 else int(one == other == 1)},
            {"say": lambda one, other: 0.5 if one + other == 1 else int(one == other == 1)}],
        "what is no loss is called a win; a win is what both orders say, and all the rest is a tie": [
            {"say": lambda one, other: int(one + other > 0)},
            {"say": lambda one, other: 0.5 if one == other == 0.5 else int(one + other > 0)},
            {"say": lambda one, other: 0.5 if one + other == 1 else int(one + other > 0)}],
        "nothing is a tie here: where the two orders balance, neither has won":
            [{"say": lambda one, other: int(one + other >= 1)}, {"say": lambda one, other: int(one + other > 1)}],
        "where the two orders say different words the first one decides, even against a tie; only what both say counts":
            [{"say": lambda one, other: 0.5 if one + other == 1 else one},
             {"say": lambda one, other: 0.5 if one + other == 1 else int(one == 1)}],
        "a contradiction is called a loss; it is a tie": {"say": lambda one, other: contradiction(one, other, 0)},
        "a contradiction is called a win; it is a tie": {"say": lambda one, other: contradiction(one, other, 1)},
        "pairs whose orders contradict each other are left out; they are ties":
            [{"keep": lambda one, other: one == other}, {"keep": lambda one, other: {one, other} != {0, 1}}],
        "pairs without a winner are left out; each pair has an outcome": {"keep": lambda one, other: one == other != 0.5},
        "two ties are not a loss": {"say": lambda one, other: int(one == other == 1) if one == other else 0.5},
        "these are numbers; an outcome is one of the words \"win\", \"loss\" and \"tie\"":
            [in_words(win=1, loss=0, tie=0.5), in_words(win=1, loss=-1, tie=0)],
        "where neither side has won, None came out; that is a \"tie\"": in_words(tie=None),
        "these are verdicts, on places; an outcome is ours, a \"win\" or a \"loss\"": in_words(win="first", loss="second"),
        "each order has outcomes of its own here; both together make one for each pair": one_behind_the_other,
        "these are the numbers of wins, losses and ties; asked for is the outcome of each pair":
            lambda ours_first, ours_second: {one: orders_by_table(ours_first, ours_second).count(one) for one in OUTCOMES},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 11.9
def draw_places(generator):
    yield {"ours_first": ["first", "first"], "ours_second": ["first", "second"]}
    yield {"ours_first": ["first"], "ours_second": ["second", "second", "tie"]}
    yield {"ours_first": ["tie", "second", "first", "first"], "ours_second": ["second"]}
    yield {"ours_first": ["second", "second", "second"], "ours_second": ["second", "second"]}
    for one, other in ((7, 4), (3, 11), (130, 70)):
        first, second = torch.randint(3, (one,), generator=generator), torch.randint(3, (other,), generator=generator)
        yield {"ours_first": [VERDICTS[x] for x in first], "ours_second": [VERDICTS[x] for x in second]}


def places_by_halves(ours_first, ours_second):
    """What the first place wins in each order, by counting."""
    rates = [(2 * one.count("first") + one.count("tie")) / (2 * len(one)) for one in (ours_first, ours_second)]
    return 50 * (rates[0] + rates[1] - 1), 0.5 * (1 + rates[0] - rates[1])


def places_formula(
    ours_first, ours_second, *, tie=0.5, drop=False, pooled=(False, False), bias=lambda rate: 100 * (rate - 0.5),
    swap=False, orders=(0, 1), win=lambda rate: rate, end=lambda bias, rate: (bias, rate),
):  # fmt: skip
    """`pooled`: whether bias, and win rate, are means over all verdicts; `orders`: those that the win rate comes from."""
    both = [[v for v in one if not (drop and v == "tie")] for one in (ours_first, ours_second)]
    marks = [[{"first": 1.0, "second": 0.0, "tie": tie}[v] for v in one] for one in both]
    ours = [marks[0], [(1 - mark if verdict != "tie" else tie) for mark, verdict in zip(marks[1], both[1])]]

    def mean(groups, together):
        groups = [[x for group in groups for x in group]] if together else groups
        means = [sum(group) / len(group) if group else 0.5 for group in groups]
        return sum(means) / len(means)

    place, rate = mean(marks, pooled[0]), mean([ours[order] for order in orders], pooled[1])
    return end(bias(1 - place if swap else place), win(rate))


def bias_from(of):
    """`of` makes the bias of a and b, how often the first place wins in each order; the win rate is right."""

    def answer(ours_first, ours_second):
        a, b = (sum({"first": 1.0, "tie": 0.5}.get(one, 0.0) for one in some) / len(some) for some in (ours_first, ours_second))
        return of(a, b), (a + 1 - b) / 2

    return answer


def by_lengths(ours_first, ours_second, of=lambda one, other: (len(one), len(other)), tie=0.5):
    """`of` makes what a and b are divided by of the two lists."""
    points = {"first": 1.0, "tie": tie, "second": 0.0}
    sums = (sum(points[verdict] for verdict in one) for one in (ours_first, ours_second))
    a, b = (total / count for total, count in zip(sums, of(ours_first, ours_second)))
    return 100 * ((a + b) / 2 - 0.5), (a + 1 - b) / 2


TURNED = {"first": "second", "second": "first", "tie": "tie"}


def one_tie(ours_first, ours_second):
    """However many ties an order has, a half is added once."""
    a, b = ((some.count("first") + 0.5 * ("tie" in some)) / len(some) for some in (ours_first, ours_second))
    return 100 * ((a + b) / 2 - 0.5), (a + 1 - b) / 2


def wins_counted(ours_first, ours_second):
    """A win rate in which ties count as nothing; the bias is right."""
    wins = ours_first.count("first") / len(ours_first) + ours_second.count("second") / len(ours_second)
    return places_by_halves(ours_first, ours_second)[0], wins / 2


place_and_win = Exercise(
    "11.9", "place_and_win", draw=draw_places, right=places_by_halves, formula=places_formula, mistakes={
        "all verdicts are thrown together; where one order was asked oftener, strength and the bias of the place are mixed up. "
        "Take each order's rate, then their mean":
            [{"pooled": pooled} for pooled in ((True, True), (True, False), (False, True))],
        "the win rate is that of the order with our answer first": {"orders": (0,)},
        "the win rate is that of the order with our answer second": {"orders": (1,)},
        "the win rate does not turn the second order round: it is how often the first place wins":
            lambda ours_first, ours_second: (lambda bias: (bias, bias / 100 + 0.5))(places_formula(ours_first, ours_second)[0]),
        "ties count as nothing; as half a win for each side": [
            {"tie": 0.0}, wins_counted, partial(by_lengths, tie=0.0),
            lambda ours_first, ours_second: by_lengths(ours_first, ["second" if one == "tie" else one for one in ours_second])],
        "several ties count as one; each is half a win for each side": one_tie,
        "ties count as wins; as half a win for each side": {"tie": 1.0},
        "ties are left out; they count as half": {"drop": True},
        "this is how often the first place wins; the bias is how much oftener than half, in points":
            [{"bias": lambda rate: 100 * rate}, {"bias": lambda rate: rate}],
        "the bias is a share; in points it is 100 times that": {"bias": lambda rate: rate - 0.5},
        "the bias is the difference between the two places, which is twice how much oftener than half the first one wins":
            {"bias": lambda rate: 100 * (2 * rate - 1)},
        "the bias compares our own wins in the two orders; it is how often the first place wins, whoever stands there":
            [bias_from(lambda a, b: 100 * (a - b)), bias_from(lambda a, b: 50 * (a - b))],
        "the bias is that of one order, where our answers or theirs always stand first; take the mean of both orders":
            [bias_from(lambda a, b: 100 * (a - 0.5)), bias_from(lambda a, b: 100 * (b - 0.5))],
        "only as many verdicts count as the shorter list has; every verdict does": lambda ours_first, ours_second: places_formula(
            *zip(*zip(ours_first, ours_second))),
        "both orders are divided by the length of one list; each by its own":
            [partial(by_lengths, of=of) for of in (lambda one, other: (len(one),) * 2, lambda one, other: (len(other),) * 2)],
        "b is how often ours wins in the second place; it is how often the first place wins, where theirs stands":
            lambda ours_first, ours_second: places_by_halves(ours_first, [TURNED[verdict] for verdict in ours_second]),
        "the win rate is the sum of both orders'; take their mean": {"win": lambda rate: 2 * rate},
        "the sign of the bias is turned: above 0 is for the first place": {"swap": True},
        "a bias against the first place has a minus": {"bias": lambda rate: 100 * abs(rate - 0.5)},
        "the win rate is theirs; ours is what is left": {"win": lambda rate: 1 - rate},
        "the win rate is in percent; asked for is a share": {"win": lambda rate: 100 * rate},
        "the win rate comes first; the bias does": {"end": lambda bias, rate: (rate, bias)},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 11.10
def draw_lengths(generator):
    yield {"outcomes": [1.0, 0.0, 1.0], "ours": [10, 8, 30], "theirs": [8, 10, 10]}
    yield {"outcomes": [1.0, 1.0, 0.0, 0.5], "ours": [12, 11, 8, 10], "theirs": [10, 10, 10, 10]}
    yield {"outcomes": [1.0, 0.5, 0.0], "ours": [100, 75, 126], "theirs": [80, 100, 100]}
    yield {"outcomes": [1.0, 0.0], "ours": [11, 12], "theirs": [10, 10]}  # ours is always the longer
    yield {"outcomes": [1.0, 1.0], "ours": [40, 5], "theirs": [10, 50]}  # none is alike
    yield {"outcomes": [0.0, 0.0, 1.0], "ours": [9, 10, 30], "theirs": [10, 10, 10]}  # a rate of 0
    yield {"outcomes": [1.0, 0.0, 0.0], "ours": [4, 5, 0], "theirs": [4, 4, 0]}
    yield {"outcomes": [1.0, 0.0, 0.5, 1.0, 1.0], "ours": [9, 10, 12, 10, 14], "theirs": [10, 10, 11, 11, 11]}  # by a word; by 3
    for count, most in ((9, 40), (16, 40), (130, 1300)):
        theirs = torch.randint(8, most, (count,), generator=generator)
        ours = (theirs * (0.7 + 0.7 * torch.rand(count, generator=generator))).long()
        ours[2] = theirs[2]
        outcomes = (torch.randint(3, (count,), generator=generator) / 2).tolist()
        yield {"outcomes": outcomes, "ours": ours.tolist(), "theirs": theirs.tolist()}


def at_length_by_sides(outcomes, ours, theirs):
    alike = [4 * max(pair) <= 5 * min(pair) for pair in zip(ours, theirs)]
    sides = [[], []]
    for near, outcome, mine, other in zip(alike, outcomes, ours, theirs):
        if near and mine >= other:
            sides[0].append(outcome)
        if near and mine <= other:
            sides[1].append(outcome)
    return sum(alike), statistics.fmean(map(statistics.fmean, sides)) if all(sides) else None


def at_length_formula(
    outcomes, ours, theirs, *, alike=lambda mine, other: max(mine, other) <= 1.25 * min(mine, other), pooled=False,
    longer=lambda gap: gap >= 0, shorter=lambda gap: gap <= 0, empty=None, only=None, number=None, end=lambda rate: rate,
    worth=lambda outcome: outcome, combine=lambda sides: sum(sum(side) / len(side) for side in sides) / len(sides),
):  # fmt: skip
    near = [(worth(value), mine - other) for value, mine, other in zip(outcomes, ours, theirs) if alike(mine, other)]
    sides = [[value for value, gap in near if there(gap)] for there in (longer, shorter)]
    sides = [[value for value, _ in near]] if pooled else sides if only is None else [sides[only]]
    filled = [side for side in sides if side]
    if callable(empty) and len(filled) < len(sides):
        rate = empty(sides)
    else:
        rate = end(combine(filled)) if len(filled) == len(sides) else empty
    return (len(near) if number is None else number(near, outcomes)), rate


def other_side(sides, none=None):
    """The mean of those means that there are."""
    means = [sum(side) / len(side) for side in sides if side]
    return sum(means) / len(means) if means else none


def filled_with(value):
    """The mean of both means, of which one that has no pair is `value`."""
    return lambda sides: sum(sum(side) / len(side) if side else value for side in sides) / len(sides)


def mean_of_all(outcomes, ours, theirs):
    number, rate = at_length_formula(outcomes, ours, theirs)
    return number, rate if rate is None else at_length_formula(outcomes, ours, theirs, pooled=True)[1]


def without_ties(outcomes, ours, theirs):
    return at_length_formula(*map(list, zip(*[one for one in zip(outcomes, ours, theirs) if one[0] != 0.5])))


def unknown(pair):
    """`pair` makes what is returned where the rate is None, of the number of pairs."""

    def answer(outcomes, ours, theirs):
        number, rate = at_length_formula(outcomes, ours, theirs)
        return pair(number) if rate is None else (number, rate)

    return answer


equal_length_win_rate = Exercise(
    "11.10", "equal_length_win_rate", draw=draw_lengths, right=at_length_by_sides, formula=at_length_formula, mistakes={
        "all pairs count, of whatever length": {"alike": lambda mine, other: True},
        "a quarter more is measured from the longer answer; the shorter one is what it is a quarter more than":
            {"alike": lambda mine, other: abs(mine - other) <= 0.25 * max(mine, other)},
        "a pair counts only if the longer one is less than a quarter longer; just a quarter is within":
            {"alike": lambda mine, other: max(mine, other) < 1.25 * min(mine, other)},
        "only an answer of ours that is too long is left out; one that is too short is not alike either":
            {"alike": lambda mine, other: mine <= 1.25 * other},
        "only an answer of theirs that is too long is left out; one that is too short is not alike either":
            {"alike": lambda mine, other: other <= 1.25 * mine},
        "the quarter is measured from theirs, whichever is the longer; it is one of the shorter answer": [
            {"alike": lambda mine, other: abs(mine - other) <= 0.25 * other},
            {"alike": lambda mine, other: other > 0 and 0.75 <= mine / other <= 1.25}],
        "the quarter is measured from ours, whichever is the longer; it is one of the shorter answer": [
            {"alike": lambda mine, other: abs(mine - other) <= 0.25 * mine},
            {"alike": lambda mine, other: mine > 0 and 0.75 <= other / mine <= 1.25}],
        "the quarter is measured from the mean of the two lengths; it is one of the shorter answer":
            {"alike": lambda mine, other: abs(mine - other) <= 0.25 * (mine + other) / 2},
        "a quarter of the words is rounded, up too; 1.25 times the shorter one is the limit":
            {"alike": lambda mine, other: abs(mine - other) <= round(0.25 * min(mine, other))},
        "the limit is another than a quarter more": [
            {"alike": lambda mine, other, more=more: max(mine, other) <= more * min(mine, other)} for more in (1.1, 1.2, 1.5, 2)],
        "two answers of no words are of like length too; a ratio divides by 0 there, or leaves them out": [
            {"alike": lambda mine, other: min(mine, other) > 0 and max(mine, other) <= 1.25 * min(mine, other)},
            {"alike": lambda mine, other: max(mine, other) / min(mine, other) <= 1.25}],
        "only pairs of equal length count; up to a quarter longer is alike": {"alike": lambda mine, other: mine == other},
        "these are the pairs of unlike length": [
            {"alike": lambda mine, other: max(mine, other) > 1.25 * min(mine, other)},
            {"alike": lambda mine, other: max(mine, other) >= 1.25 * min(mine, other)}],
        "this is one mean over all pairs alike: where ours is mostly the longer, a judge of length alone still makes us win. "
        "Take the mean of those where ours is longer and of those where it is shorter, then the mean of the two":
            [{"pooled": True}, mean_of_all, {"combine": lambda sides: sum(map(sum, sides)) / sum(map(len, sides))}],
        "pairs of equal length are on neither side; they belong to both":
            {"longer": lambda gap: gap > 0, "shorter": lambda gap: gap < 0},
        "pairs of equal length are on one side only; they belong to both":
            [{"longer": lambda gap: gap > 0}, {"shorter": lambda gap: gap < 0}],
        "only those pairs count in which ours is the longer": {"only": 0},
        "only those pairs count in which ours is the shorter": {"only": 1},
        "where one side has no pair, this takes the other one; then nobody can tell, and the rate is None":
            [{"empty": other_side}, {"empty": lambda sides: other_side(sides, 0.0)}],
        "where one side has no pair this is a number, or NaN; nobody can tell, and the rate is None":
            [{"empty": 0.5}, {"empty": 0.0}, {"empty": math.nan}, {"empty": filled_with(0.5)}, {"empty": filled_with(0.0)}],
        "where one side has no pair its mean is a division by 0; nobody can tell then, and the rate is None":
            {"empty": lambda sides: sum(sum(side) / len(side) for side in sides)},
        "where the rate is None the number of pairs is still a number: return both":
            [unknown(lambda number: None), unknown(lambda number: (None, None)), unknown(lambda number: (0, None))],
        "a tie counts as a loss; it is half a win": {"worth": lambda outcome: float(outcome == 1)},
        "a tie counts as a win; it is half of one": {"worth": lambda outcome: float(outcome > 0)},
        "ties are left out; a tie is half a win": without_ties,
        "this is how much oftener we win where ours is the longer; asked for is the mean of both means":
            {"combine": lambda sides: sum(sides[0]) / len(sides[0]) - sum(sides[1]) / len(sides[1])},
        "this is the sum of the two means; asked for is the mean of both":
            {"combine": lambda sides: sum(sum(side) / len(side) for side in sides)},
        "the number is that of all pairs; asked for is how many the rate rests on": {"number": lambda near, all: len(all)},
        "a pair of equal length is counted twice; it is one pair":
            {"number": lambda near, all: len(near) + sum(gap == 0 for _, gap in near)},
        "the rate is in percent; asked for is a share": {"end": lambda rate: 100 * rate},
        "the rate is theirs; ours is what is left": {"end": lambda rate: 1 - rate},
    })  # fmt: skip
