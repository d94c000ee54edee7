"""Chapter 09: comparing two models, best-of-n, diversity and form, and the curve of gold against proxy reward."""

import itertools
import math
import re
import statistics
from collections import Counter
from functools import partial

import scipy
import torch

from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.exercises.plain import as_int64
from rlhf_lib.exercises.surroundings import quiet


def between(generator, low, high):
    """A whole number from `low` to `high`, both of them possible."""
    return torch.randint(low, high + 1, (1,), generator=generator).item()


def some(generator, options, count):
    return [options[place] for place in torch.randint(len(options), (count,), generator=generator).tolist()]


# ----------------------------------------------------------------------------------------- 9.1


def draw_win_rate(generator):
    yield {"first": torch.tensor([1.0, 0.0]), "second": torch.tensor([0.0, 0.0])}
    yield {"first": torch.tensor([-1.0, 0.5, 0.2]), "second": torch.tensor([0.2, -3.0])}
    yield {"first": torch.tensor([0.3, 0.3004, -0.2]), "second": torch.tensor([0.305, 0.3, 0.35])}  # close, not tied
    yield {"first": torch.tensor([1000.0, 1000.005, 1e-9]), "second": torch.tensor([1000.002, 0.0])}
    yield {"first": torch.tensor([1, -1, 0, 0]), "second": torch.tensor([0, 1, 0])}  # whole numbers
    yield {"first": torch.tensor([-7.0, 0.0, 2.0, 50.0]), "second": torch.tensor([2.0, 0.0, 4.0, 1.0])}
    for shift in (-1, 2):
        sizes = between(generator, 5, 8), between(generator, 9, 12)
        first, second = (torch.randint(4, (size,), generator=generator) for size in sizes)
        yield {"first": (first + shift) / 4, "second": (second + shift) / 4}
    for sizes in ((12, 1100), (270, 40)):
        first, second = (torch.randint(20, (size,), generator=generator) / 4 for size in sizes)
        first[0], second[0] = 5.0, -0.25  # more wins than 255
        yield {"first": first, "second": second}


def pair_rate(first, second, *, tie=0.5, loss=0, over=lambda n, m: n * m, close=0.0, near=0.0):
    gap, close = first.double()[:, None] - second.double(), close + near * second.double().abs()
    points = (gap > close).sum() + tie * (gap.abs() <= close).sum() + loss * (gap < -close).sum()
    return points.item() / over(len(first), len(second))


def decided_rate(first, second):
    return pair_rate(first, second, tie=0) / pair_rate(first, second, tie=0, loss=1)


def by_place(first, second, turn=torch.Tensor.tolist):
    return statistics.fmean((a > b) + (a == b) / 2 for a, b in zip(turn(first), turn(second)))


def one_number(first_of=torch.clone, second_of=torch.clone, **options):
    """The rate of what is left of the two sides: one number, such as a mean, or, all of them."""
    return lambda first, second: pair_rate(torch.atleast_1d(first_of(first)), torch.atleast_1d(second_of(second)), **options)


def in_bytes(first, second, dim):
    wins, ties = (of(first[:, None], second).sum(dim, dtype=torch.uint8).double().sum() for of in (torch.gt, torch.eq))
    return (wins + ties / 2) / len(first) / len(second)


def searched(first, second):
    """By binary search in `second` as it is."""
    below, up_to = (torch.searchsorted(second, first, right=right) for right in (False, True))
    return (below + up_to).double().mean().item() / 2 / len(second)


NOT_PAIRS = min, max, lambda n, m: 1, lambda n, m: n, lambda n, m: m, lambda n, m: n * n, lambda n, m: n + m
NUMBERS = torch.mean, torch.median, torch.amax, torch.amin, lambda scores: scores.double().mean()
win_rate = Exercise(
    "9.1", "win_rate", draw=draw_win_rate, formula=pair_rate,
    right=lambda first, second: float(scipy.stats.mannwhitneyu(first, second).statistic / len(first) / len(second)),  # ties half
    mistakes={
        "a tie counts nothing here; it counts half, or a model would lose against itself": {"tie": 0},
        "a tie counts as a win here; it counts half": {"tie": 1},
        "a tie counts some other part of a win here than half": [{"tie": tie} for tie in (-1, -0.5, 0.25, 1 / 3, 2)],
        "ties are left out: with many ties a few pairs would decide. Keep them, each as half a win": decided_rate,
        "scores that are only close count as a tie here; a tie is two equal scores":
            [{"close": close} for close in (1e-3, 0.01, 0.1, 1 - 1e-9)] + [{"close": 1e-8, "near": 1e-5}]  # as torch.isclose
            + [one_number(*[lambda scores, d=d: scores.double().round(decimals=d)] * 2) for d in (1, 2, 3)],
        "the points have the dtype of the scores: where those are whole numbers, the half of a tie becomes 0. Make them floats":
            lambda first, second: pair_rate(first, second, tie=0.5 if first.is_floating_point() else 0),
        "the wins are counted in 8 bits, in which 256 of them are 0 again; count in int64 or in floats":
            [partial(in_bytes, dim=dim) for dim in (0, 1, (0, 1))],
        "only the pairs of one place are compared; the samples are not paired, so compare each with every one":
            [by_place, partial(by_place, turn=lambda scores: sorted(scores.tolist()))],
        "this is how often the second wins": lambda first, second: pair_rate(second, first),
        "this is wins minus losses, from -1 to 1; the win rate is wins and half the ties": {"tie": 0, "loss": -1},
        "this is wins over losses; divide by all pairs":
            lambda first, second: pair_rate(first, second, tie=0) / (pair_rate(second, first, tie=0) or math.nan),
        "the wins, ties as half, are not divided by the number of pairs, which is N * M": [{"over": over} for over in NOT_PAIRS],
        "one side stands with one number, such as its mean; compare each of its completions with each of the other side's":
            [one_number(second_of=of, tie=tie) for of in NUMBERS for tie in (0.5, 0, 1)] + [one_number(of) for of in NUMBERS],
        "the sides' means or medians are compared, 1, 0.5 or 0; compare each with each": [one_number(of, of) for of in NUMBERS],
        "this is a soft win, a sigmoid; a win counts as 1": lambda first, second: (first[:, None] - second).sigmoid().mean(),
        "the last score of a side is left out": [
            one_number(**{side: lambda scores: scores[:-1]}, over=over) for side, overs in (
                ("first_of", (lambda n, m: n * m, lambda n, m: (n + 1) * m)),
                ("second_of", (lambda n, m: n * m, lambda n, m: n * (m + 1))),
            ) for over in overs
        ],
        "scores that come twice count once; take all": one_number(torch.unique, torch.unique),
        "right only where the scores that are searched are in ascending order: searchsorted needs sorted ones":
            [searched, lambda first, second: 1 - searched(second, first)],
        "wins and half the ties are made a whole number before they are divided":
            lambda first, second: int(pair_rate(first, second, over=lambda n, m: 1)) / (len(first) * len(second)),
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 9.2


def draw_mean_interval(generator):
    yield {"values": torch.tensor([1.0, 4.0])}
    yield {"values": torch.tensor([-1.0, 0.0, 6.0, 2.0])}
    yield {"values": torch.tensor([2.0, 2.0, 2.0])}
    yield {"values": torch.tensor([1.0, 1.0, 4.0, 1.0])}
    for size in (between(generator, 5, 9), 20, between(generator, 32, 60), 1100):
        skewed = torch.rand(size, generator=generator).log().neg()
        yield {"values": between(generator, -4, 4) + between(generator, 2, 4) * skewed}


def interval_by_scipy(values):
    x = values.double().numpy()
    low, high = (x.mean() + scipy.stats.sem(x) * t for t in scipy.stats.t.interval(0.95, len(x) - 1))
    return float(x.mean()), float(low), float(high)


def student(n, share=0.975, spent=1):
    return scipy.stats.t.ppf(share, n - spent)


def interval(
    values, *, times=student, error=lambda s, n: s / math.sqrt(n), middle=torch.mean, spread=torch.std,
    give=lambda mean, reach: (mean, mean - reach, mean + reach),
):  # fmt: skip
    x, n = values.double(), len(values)
    return give(middle(x).item(), times(n) * error(spread(x).item(), n))


NORMAL = 1.96, statistics.NormalDist().inv_cdf(0.975)
mean_interval = Exercise(
    "9.2", "mean_interval", draw=draw_mean_interval, right=interval_by_scipy, formula=interval,
    mistakes={
        "this is where single values lie; the mean's own deviation is smaller, std / sqrt(n)":
            [{"error": lambda s, n: s, "times": times} for times in (student, lambda n: 1.96, lambda n: 2)],
        "the deviation is divided by n; the error of a mean falls with the root of n": {"error": lambda s, n: s / n},
        "the error of the mean is std / sqrt(n); n - 1 is in the deviation already": {"error": lambda s, n: s / math.sqrt(n - 1)},
        "this is the variance: take its root": [{"spread": torch.var}, {"spread": torch.var, "error": lambda s, n: s / n}],
        "1.96 is right for many values only; for n of them take Student's t with n - 1 degrees of freedom":
            [{"times": lambda n, k=k: k} for k in NORMAL],
        "the interval is the same number of standard errors wide for any n; take t with n - 1 degrees of freedom":
            [{"times": lambda n, k=k: k} for k in (1, 2, 3, 4.303, 1.645, 2.576)] + [{"times": lambda n: student(3)}],
        "Student's t is left for the normal distribution's 1.96 where n is large; take t for every n":
            [{"times": lambda n, k=k, top=top: student(n) if n < top else k} for k in NORMAL for top in (30, 100)],
        "of equal values the bounds are NaN, as those of stats.t.interval with scale=0; both are the mean":
            {"give": lambda mean, reach: (mean, *(mean + side * reach if reach else math.nan for side in (-1, 1)))},
        "this is the 95 % point of one side, a 90 % interval; leave out 2.5 % on either side: t.ppf(0.975, ...)":
            {"times": lambda n: student(n, 0.95)},
        "this is not the 95 % interval, which leaves out 2.5 % on either side":
            [{"times": lambda n, p=p: student(n, p)} for p in (0.05, 0.9, 0.99, 0.995, 0.9975)],
        "t has n - 1 degrees of freedom: one is spent on the mean":
            [{"times": lambda n, spent=spent: student(n, spent=spent)} for spent in (-1, 0, 2)],
        "the variance is divided by n here; a sample's is divided by n - 1": {"spread": lambda x: x.std(correction=0)},
        "the quantile is the distance to either side; do not halve it": {"times": lambda n: student(n) / 2},
        "the bounds are given as distances from the mean; return where they lie":
            [{"give": lambda mean, reach, sign=sign: (mean, sign * reach, reach)} for sign in (-1, 1)],
        "stats.t.cdf and pdf take a point; stats.t.ppf gives the one below which a share lies":
            [{"times": lambda n, of=of: getattr(scipy.stats.t, of)(0.975, n - 1)} for of in ("cdf", "pdf")],
        "the bounds are cut off; a mean may lie anywhere": [
            {"give": lambda m, r, low=low, high=high: (m, max(m - r, low), min(m + r, high))}
            for low, high in ((-1.0, 1.0), (0.0, 1.0), (0.0, math.inf))
        ],
        "the median stands for the mean": [{"middle": torch.median}, {"middle": lambda x: x.quantile(0.5)}],
        "these are quantiles of the values, or their smallest and largest; they do not say how sure the mean is":
            [lambda values, q=q: (values.mean(), values.quantile(q), values.quantile(1 - q)) for q in (0, 0.025, 0.05)],
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 9.3


def draw_best_of_n(generator):
    yield {"rewards": torch.tensor([1.0, 3.0, 9.0, 8.0]), "n": 2}
    yield {"rewards": torch.tensor([-9.5, -2.5]), "n": 1}
    yield {"rewards": torch.tensor([-120.001, -120.0, -0.50001, -0.5]), "n": 2}  # very low, and close
    yield {"rewards": torch.tensor([-3.0, -1.0, -2.0, -6.0, -7.0, -5.0]), "n": 3}
    yield {"rewards": torch.tensor([9.0, 2.0, 8.0, 7.0, 1.0, 4.0, 3.0, 99.0]), "n": 3}
    for count, n, left in ((1, between(generator, 5, 9), 2), (3, 4, 0), (between(generator, 4, 6), 3, 2), (2, 8, 5)):
        yield {"rewards": torch.randn(count * n + left, generator=generator) - 1, "n": n}
    yield {"rewards": torch.tensor([5.0, 1.0, 2.0, 5.0, 4.0, 5.0]), "n": 2}  # the same reward wins in every group
    yield {"rewards": torch.randperm(1100, generator=generator) / -8, "n": 4}


def looked_up(function, rewards, n):
    """The winners' places; where they are floats, with which nothing can be looked up, or of few bits, they raise."""
    places = function(rewards=rewards, n=n)
    if torch.is_tensor(places) and places.is_floating_point() and torch.equal(places, places.round()):
        rewards[places]
    if torch.is_tensor(places):
        as_int64(places)
    return places


def winners(rewards, n, *, best=lambda groups: groups.argmax(1), start=lambda group, n: group * n):
    groups = rewards[: len(rewards) // n * n].view(-1, n)
    return best(groups) + start(torch.arange(len(groups)), n)


def strided(rewards, n, places):
    count = len(rewards) // n
    return places(rewards[: count * n].view(n, count).argmax(0), torch.arange(count), n, count)


best_of_n = Exercise(
    "9.3", "best_of_n", draw=draw_best_of_n, call=looked_up, formula=winners,
    right=lambda rewards, n: torch.tensor(
        [max(range(i - n, i), key=xs.__getitem__) for xs in [rewards.tolist()] for i in range(n, len(xs) + 1, n)]),
    mistakes={
        "these are places within the groups; add each group's start to get the place among all samples":
            {"start": lambda group, n: 0},
        "the number of the group is added; group g begins at place g * n": {"start": lambda group, n: group},
        "the places are a whole group too far; group g begins at place g * n": {"start": lambda group, n: group * n + n},
        "group g begins at place g * n, not at g times the number of groups": {"start": lambda group, n: group * len(group)},
        "these are the best rewards; return where they are, so that text and gold score can be looked up":
            {"best": lambda groups: groups.amax(1), "start": lambda group, n: 0},
        "the places are right, but floats, which look nothing up; return int64": {"start": lambda group, n: group * float(n)},
        "the places have fewer than 64 bits; asked for are int64": lambda rewards, n: winners(rewards, n).int(),
        "this picks the worst of each group": {"best": lambda groups: groups.argmin(1)},
        "these are the best of all samples; best-of-n picks one out of every group of n, good group or bad":
            [lambda rewards, n, turn=turn, end=end: turn(rewards[: end(len(rewards), n)].topk(len(rewards) // n)[1])
             for turn in (torch.clone, torch.msort) for end in (lambda N, n: N, lambda N, n: N // n * n)],
        "in a group without a positive reward the first sample wins: does the search for the best begin at 0? Begin at -inf":
            {"best": lambda groups: groups.clamp(min=0).argmax(1)},
        "in a group of low rewards the first sample wins: the search for the best begins at a number such as -100. Begin at -inf":
            {"best": lambda groups: groups.clamp(min=-100).argmax(1)},
        "close rewards become equal, as by .half(); compare them as they are": {"best": lambda groups: groups.half().argmax(1)},
        "view(n, -1) makes n groups; a group is a row of view(-1, n)": lambda rewards, n:
            (count := len(rewards) // n) * torch.arange(n) + rewards[: count * n].view(n, count).argmax(1),
        "the samples are sorted before they are cut into groups; a group is n samples that follow each other as they came": [
            lambda rewards, n, down=down: (order := rewards.argsort(descending=down))[winners(rewards[order], n)]
            for down in (False, True)
        ],
        "the groups are strided: a group is n samples that follow each other, so view(-1, n) and the maximum over dim 1": [
            partial(strided, places=places) for places in (
                lambda best, g, n, count: best * count + g, lambda best, g, n, count: best + g * n, lambda best, *others: best
            )
        ],
        "a winner is looked up by its reward, which may stand further ahead too: add argmax to the group's start":
            lambda rewards, n: torch.tensor([rewards.tolist().index(one) for one in rewards[winners(rewards, n)].tolist()]),
        "the last group is left out where it is full: range goes up to len(rewards) - n, which it does not reach": [
            lambda rewards, n, kind=kind: torch.tensor(winners(rewards[:-1], n).tolist(), dtype=kind)
            for kind in (None, torch.long)
        ],
        "the last group has fewer than n samples, so it is a weaker best-of: leave it out":
            lambda rewards, n: torch.stack([i + rewards[i : i + n].argmax() for i in range(0, len(rewards), n)]),
        "the incomplete group at the end is not cut off, and does not fit into rows of n: leave it out first": [
            lambda rewards, n, rows=rows: rows(rewards, n).argmax(1) + n * torch.arange(len(rewards) // n) for rows in (
                lambda rewards, n: rewards.view(-1, n), lambda rewards, n: rewards.view(len(rewards) // n, n),
                lambda rewards, n: torch.stack(rewards.split(n)),
            )
        ],
        "what does not fill a group is left out at the beginning; leave it out at the end":
            [lambda rewards, n, add=add: winners(rewards[len(rewards) % n :], n) + add * (len(rewards) % n) for add in (0, 1)],
        "the winners are sorted by their reward; leave them in the order of the groups": [
            lambda rewards, n, down=down: (places := winners(rewards, n))[rewards[places].argsort(descending=down)]
            for down in (False, True)
        ],
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 9.4


best_of_n_kl = Exercise(
    "9.4", "best_of_n_kl",
    draw=lambda generator: ({"n": n} for n in (1, 2, 3, *(between(generator, n, 9 * n) for n in (5, 50, 500)))),
    # the best of n uniforms u has density n u^(n-1), the base 1; the integral is over v = u^n, which is uniform for best-of-n
    right=lambda n: scipy.integrate.quad(lambda v: math.log(n) + (n - 1) / n * math.log(v), 0, 1, epsabs=1e-10, epsrel=1e-10)[0],
    formula=lambda n, *, log=math.log, off=lambda n: (n - 1) / n: log(n) - off(n),
    mistakes={
        "log n is only an upper bound: it forgets the (n - 1) / n that comes off": {"off": lambda n: 0},
        "(n - 1) / n is subtracted, not added": {"off": lambda n: (1 - n) / n},
        "this subtracts 1, which is right for large n only; best-of-1 is the base itself, so its KL is 0":
            [{"off": lambda n: 1}, lambda n: max(0.0, math.log(n) - 1)],
        "log n counts with a minus; it is log n - (n - 1) / n": {"log": lambda n: -math.log(n)},
        "this is divided by n; it is log n - (n - 1) / n":
            [lambda n: math.log(n) / n, lambda n: (math.log(n) - n + 1) / n, lambda n: (math.log(n) - 1 + 1 / n) / n],
        "this subtracts 1 / n; what comes off is (n - 1) / n": {"off": lambda n: 1 / n},
        "the fraction that comes off is another one: it is (n - 1) / n": [
            {"off": lambda n, top=top, bottom=bottom: (n + top) / (n + bottom)} for top, bottom in ((1, 0), (-1, 1), (0, 1))
        ] + [{"off": lambda n: (n - 1) / 2 / n}, {"off": lambda n: (n - 1) / n**2}] + [
            {"off": lambda n: n / (n - 1)}, {"off": lambda n: n / (n - 1) if n > 1 else 0}, {"off": lambda n: (n - 1) / (n + 1)},
        ],
        "log1p(n) is log(1 + n)": {"log": math.log1p},
        "brackets are missing: n - 1 / n is not (n - 1) / n": [{"off": lambda n: n - 1 / n}, {"off": lambda n: n + 1 / n}],
        "(n - 1) / n is a factor here; it is subtracted": lambda n: math.log(n) * (n - 1) / n,
        "these are bits: take the natural logarithm, as all KLs here are in nats":
            [{"log": math.log2}, lambda n: (math.log(n) - (n - 1) / n) / math.log(2)],
        "the logarithm is to base 10, not natural": [{"log": math.log10}, lambda n: (math.log(n) - (n - 1) / n) / math.log(10)],
        "this is (n - 1) / n alone; log n is missing": {"log": lambda n: 2 * (n - 1) / n},
        "this is its root, the axis of the plot; return the KL itself, in nats": lambda n: math.sqrt(math.log(n) - (n - 1) / n),
        "this is the other direction, KL(base || best-of-n)": lambda n: n - 1 - math.log(n),
        "n - 1 comes off, not (n - 1) / n: the mean of log u is -1/n under best-of-n, and -1 under the base, where u is uniform":
            {"off": lambda n: n - 1},
        "the density of best-of-n is n u^(n-1); its factor n is missing": [{"log": lambda n: 0}, lambda n: (1 - n) / n**2],
        "the KL of the worked example is written in":
            [lambda n, kl=kl, first=first: kl if n > first else 0.0 for kl in (0.6363, math.log(4) - 0.75) for first in (0, 1)],
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 9.5


def draw_best_of_n_gold(generator):
    yield {"proxy": torch.tensor([1.0, 2.0, 3.0]), "gold": torch.tensor([4.0, 0.0, 3.0]), "n": 2}
    some_n = between(generator, 4, 6), between(generator, 400, 600)
    for size, n in ((5, 1), (6, 6), (7, 3), (8, 2), (9, some_n[0]), (1100, some_n[1])):  # the last: no float holds C(N, n)
        proxy = torch.randperm(size, generator=generator) - 2 + 0.5 * torch.rand(size, generator=generator)  # no ties
        proxy = proxy / (1 + size // 50)  # none of them is large
        yield {"proxy": proxy, "gold": 10 * torch.rand(size, generator=generator) - 4, "n": n}


def gold_by_groups(proxy, gold, n):
    """Every group of n there is, one after the other; where they are too many, from the best sample down."""
    if len(proxy) < 12:
        groups = itertools.combinations(range(len(proxy)), n)
        return statistics.fmean(gold[max(group, key=lambda i: proxy[i].item())].item() for group in groups)
    left, total = 1.0, 0.0  # the share of groups without any of the samples so far
    for better, place in enumerate(proxy.argsort(descending=True).tolist()):
        inside = min(1.0, n / (len(proxy) - better))  # how likely it is in a group without any better one
        total, left = total + left * inside * gold[place].item(), left * (1 - inside)
    return total


def share_won(i, size, n):
    """The share of the groups of n out of `size` that the sample of rank i, counted from the lowest, is the best of."""
    return math.comb(i, n - 1) / math.comb(size, n)


def gold_by_rank(proxy, gold, n, *, order=lambda proxy, gold: proxy.argsort(), share=share_won):
    return math.fsum(share(i, len(gold), n) * score for i, score in enumerate(gold[order(proxy, gold)].tolist()))


best_of_n_gold = Exercise(
    "9.5", "best_of_n_gold", draw=draw_best_of_n_gold, right=gold_by_groups, formula=gold_by_rank,
    mistakes={
        "this picks by gold; best-of-n picks by proxy and is measured by gold": {"order": lambda proxy, gold: gold.argsort()},
        "this is the winners' proxy reward; return what gold says of them": lambda proxy, gold, n: gold_by_rank(proxy, proxy, n),
        "the ranks run the wrong way: this is worst-of-n. Sort by the proxy, lowest first":
            {"order": lambda proxy, gold: proxy.argsort(descending=True)},
        "gold is left as it came; sort it by the proxy, lowest first": {"order": lambda proxy, gold: torch.arange(len(proxy))},
        "gold is looked up by each sample's rank (argsort of argsort); gold[proxy.argsort()] has it in order":
            {"order": lambda proxy, gold: proxy.argsort().argsort()},
        "these weights let a group hold a sample twice; of rank i, C(i, n-1) groups out of C(N, n) are won":
            [{"share": lambda i, size, n: ((i + 1) / size) ** n - (i / size) ** n},
             *({"share": lambda i, size, n, by=by: n * ((i + by) / size) ** (n - 1) / size} for by in (0, 1))],
        "the rank counts from 0: the sample of rank i beats i others, so C(i, n-1), not C(i + 1, n-1) or C(i - 1, n-1)":
            [{"share": lambda i, size, n, by=by: math.comb(max(0, i + by), n - 1) / math.comb(size, n)} for by in (-1, 1)],
        "the other members of the group are n - 1 of i samples: C(i, n-1), not C(i, n) or C(i + 1, n)":
            [{"share": lambda i, size, n, by=by: math.comb(i + by, n) / math.comb(size, n)} for by in (0, 1)],
        "the groups are counted wrongly: there are C(N, n) of them": [
            {"share": lambda i, size, n, of=of: math.comb(i, n - 1) / of(size, n)} for of in (
                lambda N, n: math.comb(N, n - 1), lambda N, n: math.comb(N - 1, n - 1), lambda N, n: math.comb(N - 1, n) or 1,
                lambda N, n: N**n, math.perm)],
        "// makes the weights 0: divide by / instead": {"share": lambda i, size, n: math.comb(i, n - 1) // math.comb(size, n)},
        "the binomials become floats, which are too small for large N; first divide whole by whole: comb(i, n - 1) / comb(N, n)":
            [{"share": lambda i, size, n: float(math.comb(i, n - 1)) / float(math.comb(size, n))},
             {"share": lambda i, size, n: share_won(i, size, n) if size < 1000 else math.nan},
             lambda proxy, gold, n: sum(
                 math.comb(i, n - 1) * score for i, score in enumerate(gold[proxy.argsort()].tolist())
             ) / math.comb(len(proxy), n)],
        "a rank is left out: those from n - 1 to N - 1 win groups":
            [{"share": lambda i, size, n: share_won(i, size, n) * (i >= n)},
             {"share": lambda i, size, n: share_won(i, size, n) * (i < size - 1)}],
        "groups are counted in every order of their samples; a group has none":
            {"share": lambda i, size, n: math.perm(i, n - 1) / math.perm(size, n)},
        "this cuts the samples into groups once: right on average, but noisy. Average over all groups there are":
            lambda proxy, gold, n: gold[winners(proxy, n)].mean().item(),
        "the samples are sorted and cut once; take all groups": lambda proxy, gold, n: gold[proxy.argsort()][n - 1 :: n].mean(),
        "the wins of each sample are not divided by the C(N, n) groups": {"share": lambda i, size, n: math.comb(i, n - 1)},
        "this is the gold score of the best of all N samples, which is best-of-N": lambda proxy, gold, n: gold[proxy.argmax()],
        "this is the mean of the n best by proxy; take all groups": lambda proxy, gold, n: gold[proxy.topk(n).indices].mean(),
        "this is the mean gold score of all samples, which is best-of-1": lambda proxy, gold, n: gold.mean(),
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 9.6


def draw_distinct_n(generator):
    yield {"texts": ["my love my love"], "n": 2}
    yield {"texts": ["My love", "my love my", "joy"], "n": 2}
    yield {"texts": ["joy", ""], "n": 2}
    yield {"texts": [], "n": 1}
    yield {"texts": ["a nother an other"], "n": 2}
    yield {"texts": ["O my lord", "Ay", "o  my\nlord", "O my lord, my", "O my lord"], "n": 3}
    for count, n in ((3, 1), (between(generator, 4, 6), 2), (5, 3), (130, 4)):
        words = some(generator, ("love", "joy", "lord"), 2) + some(generator, ("Love,", "lord's", "O!"), 2)
        texts = ["".join(itertools.chain(*zip(some(generator, words, 8), some(generator, " \n\t\r", 8)))) for _ in range(count)]
        yield {"texts": [*texts, texts[0], "Sweet  joy"], "n": n}


def distinct_by_counter(texts, n):
    counts = Counter()
    for text in texts:
        words = text.casefold().split()
        counts.update(" ".join(words[end - n : end]) for end in range(n, len(words) + 1))
    return len(counts) / counts.total() if counts else 0.0


def grams(words, n):
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def lower_words(text):
    return text.lower().split()


def distinct(
    texts, n, *, words=lower_words, cut=grams, count=lambda found: len(set(found)), of=lambda found, ws, n: len(found), empty=0.0
):
    found = [gram for text in texts for gram in cut(words(text), n)]
    return count(found) / of(found, [words(text) for text in texts], n) if found or empty is None else empty


def one(*_):
    return 1


def once(found):
    return list(Counter(found).values()).count(1)


def mean_share(texts, n, least, guard):
    shares = [distinct([text], n) for text in texts if len(text.split()) >= least * n]
    return sum(shares) / len(shares) if shares or not guard else 0.0


distinct_n = Exercise(
    "9.6", "distinct_n", draw=draw_distinct_n, right=distinct_by_counter, formula=distinct,
    mistakes={
        "this is the mean of each text's own share: a line that every text repeats would go unnoticed. Pool all texts":
            [partial(mean_share, least=least, guard=guard) for least in (0, 1) for guard in (False, True)],
        "some n-grams run from one text into the next":
            [lambda texts, n: distinct([" ".join(texts)], n), lambda texts, n: distinct(["".join(texts)], n)],
        "lines are cut by themselves; an n-gram may run over a line break within a text":
            lambda texts, n: distinct([line for text in texts for line in text.splitlines()], n),
        "these are n-grams of characters; split the text into words first": [{"words": str.lower}, {"words": str}],
        "case makes a difference here: put the text in lower case first": {"words": str.split},
        "the texts are split at single blanks; split at white space of any kind": {"words": lambda text: text.lower().split(" ")},
        "only blanks, tabs and line breaks part words here; text.split() knows all white space":
            {"words": lambda text: re.findall(r"[^ \t\n]+", text.lower())},
        "punctuation is taken off; words are what stands between white space":
            [{"words": lambda text, word=word: re.findall(word, text.lower())} for word in (r"\w+", r"[\w']+")],
        "the different n-grams are divided by the number of words or texts; divide by the number of n-grams":
            [{"of": lambda found, ws, n: sum(map(len, ws))}, {"of": lambda found, ws, n: len(set(itertools.chain(*ws)))},
             {"of": lambda found, ws, n: len(ws)}],
        "what a text repeats of another text is not noticed: pool the n-grams before you count the different ones":
            lambda texts, n: sum(distinct([text], n, of=one) for text in texts) / (distinct(texts, n, count=len, of=one) or 1),
        "what a text repeats within itself is not noticed; count all n-grams": {"cut": lambda ws, n: list(set(grams(ws, n)))},
        "a text of w words has w - n + 1 n-grams, or none; they are counted otherwise here, and divided by":
            [{"of": lambda found, ws, n: sum(len(one) - n + 1 for one in ws) or math.inf},
             {"of": lambda found, ws, n: sum(map(len, ws)) - n + 1},
             {"of": lambda found, ws, n: sum(max(0, len(one) - n) for one in ws) or 1}],
        "these are words, whatever n is": {"cut": lambda ws, n: grams(ws, 1)},
        "these are pairs, whatever n is": {"cut": lambda ws, n: grams(ws, 2)},
        "these are n-grams of all lengths up to n": {"cut": lambda ws, n: [gram for k in range(n) for gram in grams(ws, k + 1)]},
        "the n-grams are a word too long or short": [{"cut": lambda ws, n, by=by: grams(ws, n + by)} for by in (-1, 1)],
        "the n-grams do not overlap here; one begins at every word": {"cut": lambda ws, n: grams(ws, n)[::n]},
        "the first or the last n-gram of each text is missing: a text of w words has w - n + 1 of them":
            [{"cut": lambda ws, n, part=part: grams(ws, n)[part]} for part in (slice(1, None), slice(-1))],
        "a text of just n words has one n-gram; it is left out here": {"cut": lambda ws, n: grams(ws, n) if len(ws) > n else []},
        "some n-grams have fewer than n words: the last begins n words before the end, and a shorter text has none":
            [{"cut": lambda ws, n: [tuple(ws[i : i + n]) for i in range(len(ws))]},
             *({"cut": lambda ws, n, least=least: grams(ws, n) or [tuple(ws)][: len(ws) + least]} for least in (0, 1))],
        "the order of the words within an n-gram is lost: (my, love) is not (love, my)":
            [{"cut": lambda ws, n, bag=bag: [tuple(bag(gram)) for gram in grams(ws, n)]} for bag in (sorted, frozenset)],
        "the words of an n-gram are joined with nothing between them: (a, nother) is not (an, other)":
            {"cut": lambda ws, n: ["".join(gram) for gram in grams(ws, n)]},
        "a text that comes twice is counted once; take all texts": lambda texts, n: distinct(list(dict.fromkeys(texts)), n),
        "these are the n-grams that occur only once; count each different one, however often it occurs":
            [{"count": once}, {"count": once, "of": lambda found, ws, n: len(set(found))}],
        "this is the number of different n-grams; divide by how many there are": {"of": one},
        "this is the share that are repeated; return the share that are different":
            [{"count": lambda found: len(found) - len(set(found)), "empty": empty} for empty in (0.0, 1.0)],
        "texts too short for a single n-gram make this divide by 0; return 0.0 for them": {"empty": None},
        "without a single n-gram this is 1.0; return 0.0": {"empty": 1.0},
        "without a single n-gram this is None; return 0.0":
            lambda texts, n: None if (share := distinct(texts, n, empty=-1)) == -1 else share,
        "re.split finds an empty word where a text begins or ends with white space; text.split() does not":
            {"words": lambda text: re.split(r"\s+", text.lower())},
        "1 is added to the number of n-grams": {"of": lambda found, ws, n: len(found) + 1},
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 9.7


def draw_separator_ratio(generator):
    yield {"policy_texts": ["O joy.\n\nKING.\nLove!\n\n"], "base_texts": ["A day.\n\nB", "Night."]}
    yield {"policy_texts": ["\n\nO\n\n\nP\nQ\nR", "S\n\nT", "U"], "base_texts": ["V\n\nW\nX\n\nY"]}
    yield {"policy_texts": ["O\n\nP"], "base_texts": ["one\ntwo"]}
    yield {"policy_texts": ["O\n \nP"], "base_texts": ["one\n\n\n\ntwo", "", "three"]}
    for counts in ((5, 8), (between(generator, 130, 140), 3)):
        pieces = [[some(generator, ("day", "\n", "\n\n", "\n \n", "love my", "."), 9) for _ in range(count)] for count in counts]
        policy, base = (["\n\n" + "".join(one) for one in side] for side in pieces)
        yield {"policy_texts": policy, "base_texts": base}


def ratio_by_split(policy_texts, base_texts):
    rates = [sum(len(text.split("\n\n")) - 1 for text in texts) / len(texts) for texts in (policy_texts, base_texts)]
    return rates[0] / rates[1] if rates[1] else None


def blank_lines(text):
    return text.count("\n\n")


def ratio(
    policy_texts, base_texts, *, count=blank_lines, total=sum, per=len, of=lambda policy, base: policy / base,
    undefined=lambda policy, base: not base,
):  # fmt: skip
    policy, base = (total([count(text) for text in texts]) / per(texts) for texts in (policy_texts, base_texts))
    return None if undefined(policy, base) else of(policy, base)


def ratio_joined(policy_texts, base_texts, glue):
    policy, base = (blank_lines(glue.join(texts)) / len(texts) for texts in (policy_texts, base_texts))
    return policy / base if base else None


ANY = re.compile("").match
LINES = str.splitlines, lambda text: text.split("\n")
separator_ratio = Exercise(
    "9.7", "separator_ratio", draw=draw_separator_ratio, right=ratio_by_split, formula=ratio,
    mistakes={
        "these are totals; the two sets differ in size, so divide each by its number of completions": {"per": lambda texts: 1},
        "the ratio is upside down: policy over base, above 1 where the policy writes more blank lines":
            [{"of": lambda p, b: b / p}, lambda **texts: ratio(*reversed(texts.values()))],
        "this counts completions with a separator; count each, a policy may write five": {"count": lambda text: "\n\n" in text},
        "this counts line breaks or lines; a separator is a blank line, two line breaks in a row": [
            *({"count": lambda text, per=per: text.count("\n") // per} for per in (1, 2)),
            {"count": lambda text: text.count("\n") + 1}, {"count": lambda text: len(text.splitlines())},
        ],
        'this counts empty lines; count "\\n\\n" as text.count does: three line breaks in a row are one, four are two': [
            {"count": lambda text: len(re.findall("(?=\n\n)", text))},
            *({"count": lambda text, lines=lines: lines(text).count("")} for lines in LINES),
            *({"count": lambda text, lines=lines: [line.strip() for line in lines(text)].count("")} for lines in LINES),
        ],
        "blank lines in a row count as one; four line breaks are two": {"count": lambda text: len(re.findall("\n\n+", text))},
        "a line of nothing but blanks counts as a blank line here; only two line breaks in a row are one":
            [{"count": lambda text, blank=blank: len(re.findall(blank, text))} for blank in (r"\n\s*\n", r"\n[ \t]*\n")],
        "these are the pieces that the separators leave; there is one separator fewer":
            [{"count": lambda text, full=full: len([*filter(full, text.split("\n\n"))])} for full in (ANY, bool, str.strip)],
        "the texts are stripped first: blank lines at their ends count too":
            [{"count": lambda text, strip=strip: blank_lines(strip(text))} for strip in (str.strip, str.rstrip, str.lstrip)],
        "blank lines come about where texts are joined: count each text by itself":
            [partial(ratio_joined, glue=glue) for glue in ("", "\n", " \n")],
        "// cuts the rates to whole numbers: divide by /": {"total": lambda counts: sum(counts) // len(counts), "per": one},
        "the ratio is made a whole number, as by //: divide by /":
            [{"of": lambda p, b: p // b}, {"of": lambda p, b: round(p / b)}],
        "this is the difference; the ratio is the same for a base that writes few or many": {"of": lambda p, b: p - b},
        "this is the policy's rate alone; divide by the base's": {"of": lambda p, b: p},
        "this is the policy's share of both; divide by the base's rate alone": {"of": lambda p, b: p / (p + b)},
        "this is how much more the policy writes, over the base; the ratio is 1 more": {"of": lambda p, b: p / b - 1},
        "this is the median or the most of a completion; take the mean":
            [{"total": total, "per": lambda texts: 1} for total in (statistics.median, max)],
        "completions without a blank line do not count; divide by all":
            {"per": lambda texts: sum("\n\n" in text for text in texts) or 1},
        "the blank lines are divided by how long the texts are, in characters, words or lines; count them per completion":
            [{"per": lambda texts, of=of: sum(len(of(text)) for text in texts)} for of in (str, str.split, str.splitlines)],
        "only as many texts as the shorter list has are looked at; take all": lambda **texts: ratio(*zip(*zip(*texts.values()))),
        "a policy without a blank line has the ratio 0, not None": {"undefined": lambda p, b: not p or not b},
        "when the base has no separator at all this divides by 0; return None then, there is no ratio":
            [{"undefined": lambda p, b: False}, {"undefined": lambda p, b: 1 / 0 if not b else False}],
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 9.8


def draw_fit_gold(generator):
    yield {"kl": torch.tensor([0.0, 1.0, 4.0]), "gold": torch.tensor([0.0, 3.0, 4.0])}
    yield {"kl": torch.tensor([9.0, 1.0, 4.0]), "gold": torch.tensor([1.5, 0.75, 1.25])}
    yield {"kl": torch.tensor([-0.04, 1.0, 4.0, 9.0]), "gold": torch.tensor([0.1, 0.5, 0.7, 0.6])}
    for size, bend in ((5, 0.04), (between(generator, 8, 12), 0.07)):
        kl = torch.linspace(0.5, between(generator, 12, 25), size) + 0.3 * torch.rand(size, generator=generator)
        gold = kl.sqrt() * (0.5 - bend * kl.sqrt()) + 0.03 * torch.randn(size, generator=generator)
        order = torch.randperm(size, generator=generator)
        yield {"kl": kl[order], "gold": gold[order]}
    yield {"kl": torch.cat([torch.zeros(1), kl]), "gold": torch.cat([torch.tensor([0.2]), gold])}


def fit_by_search(kl, gold):
    """scipy's optimiser on the sum of squares, from nowhere in particular."""
    d, gold = kl.clamp(min=0).sqrt().double().numpy(), gold.double().numpy()
    found = scipy.optimize.least_squares(lambda x: d * (x[0] - x[1] * d) - gold, [1.0, 1.0], method="lm", xtol=1e-12, ftol=1e-12)
    alpha, beta = found.x.tolist()
    return alpha, beta, (alpha / (2 * beta)) ** 2


def met_nan():
    raise ArithmeticError("least squares met a NaN or an infinity")


def fitted(function, kl, gold):
    """What it returns. At a NaN every way of least squares raises, and MKL prints, in words of its own: here all say the same."""
    try:
        return function(kl=kl, gold=gold)
    except (RuntimeError, ValueError) as error:
        if re.search("illegal value|not converge|failed to converge|infs or NaNs|singular", str(error)):
            met_nan()
        raise


def fit(
    kl, gold, *, d=lambda kl: kl.clamp(min=0).sqrt(), columns=lambda d: [d, -(d**2)], weight=torch.ones_like, at_nan=met_nan,
    give=lambda a, b: (a, b, (a / (2 * b)) ** 2),
):  # fmt: skip
    d = d(kl.double())
    scale = weight(d)
    columns, gold = torch.stack(columns(d), 1) * scale[:, None], gold.double() * scale
    if not (columns.isfinite().all() and gold.isfinite().all()):
        return at_nan()
    alpha, beta = torch.linalg.solve(columns.T @ columns, columns.T @ gold)[:2].tolist()
    return give(alpha, beta)


AT_NAN = met_nan, lambda: (math.nan,) * 3


def third(of):
    return {"give": lambda a, b: (a, b, of(a, b))}


def measured(of):
    return lambda kl, gold: (*fit(kl, gold)[:2], of(kl, gold))


fit_gold = Exercise(
    "9.8", "fit_gold", tolerance=1e-4, draw=draw_fit_gold, call=quiet()(fitted), formula=fit, right=fit_by_search,
    mistakes={
        "d is the KL here; Gao et al.'s curve is over its root":
            [{"d": d, **third(lambda a, b, to=to: (a / (2 * b)) ** to)} for d in (torch.clone, torch.relu) for to in (1, 2)],
        "the fit has a constant of its own; the base has gold 0 at distance 0, so the curve goes through there":
            {"columns": lambda d: [d, -(d**2), torch.ones_like(d)]},
        "gold is shifted so that it begins at 0; it is counted from the base already":
            [lambda kl, gold, first=first: fit(kl, gold - gold[first(kl)]) for first in (torch.argmin, lambda kl: 0)],
        "beta has the wrong sign: the curve is d (alpha - beta d), and beta is positive where gold falls in the end":
            {"give": lambda a, b: (a, -b, (a / (2 * b)) ** 2)},
        "this is the curve of RL, d (alpha - beta log d); fit that of best-of-n, d (alpha - beta d)": [
            {"columns": lambda d: [d, -torch.xlogy(d, d)], **third(top)} for top in (
                lambda a, b: (a / (2 * b)) ** 2, lambda a, b: math.exp(2 * (a / b - 1)), lambda a, b: math.exp(a / b - 1),
            )
        ],
        "there the curve is back at 0, at d = alpha / beta; its top is half as far, at d = alpha / (2 beta)":
            [third(lambda a, b: (a / b) ** 2), third(lambda a, b: a / b)],
        "brackets are missing: the KL at the top is (alpha / (2 * beta)) ** 2":
            [third(lambda a, b: (a / 2 * b) ** 2), third(lambda a, b: a / (2 * b) ** 2)],
        "the third number is the top's distance d; return its KL, the square": third(lambda a, b: a / (2 * b)),
        "the third number is how high the curve's top is; return the KL at which it is": third(lambda a, b: a**2 / (4 * b)),
        "the third number is another than (alpha / (2 * beta)) ** 2, the KL at the top": [
            third(of) for of in (
                lambda a, b: abs(a / 2 / b) ** 0.5, lambda a, b: a / 4 / b, lambda a, b: a**2 / (2 * b), lambda a, b: -a / 2 / b,
                lambda a, b: (2 * a / b) ** 2, lambda a, b: (b / 2 / a) ** 2,
            )
        ],
        "the third number is the largest KL measured; return the KL at the top of the curve": measured(lambda kl, gold: kl.max()),
        "the third number is read off the point with the highest gold; return the KL at the top of the curve": [
            measured(of) for of in (
                lambda kl, gold: kl[gold.argmax()], lambda kl, gold: kl[gold.argmax()].sqrt(), lambda kl, gold: gold.max(),
            )
        ],
        "dividing by d first gives points near the base too much weight (and 0 / 0 where d is 0); fit gold itself":
            [{"weight": torch.reciprocal, "at_nan": at} for at in AT_NAN] + [{"weight": lambda d: (d > 0) / d.clamp(min=1e-9)}]
            + [{"weight": torch.reciprocal, "d": lambda kl, least=10.0**-n: kl.clamp(min=least).sqrt()} for n in (4, 6, 8, 12)],
        "an estimated KL may lie a little below 0, and has no root: take it as 0 first":
            [{"d": torch.sqrt, "at_nan": at_nan} for at_nan in AT_NAN],
        "an estimated KL below 0 is taken without its sign; take it as 0": {"d": lambda kl: kl.abs().sqrt()},
        "the points are weighted by their distance or KL; least squares weights them alike":
            [{"weight": torch.clone}, {"weight": torch.sqrt}, {"weight": torch.square}],
    },
)  # fmt: skip
