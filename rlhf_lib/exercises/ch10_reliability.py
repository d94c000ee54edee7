"""Chapter 10: what a margin is worth, and what a perfect model would reach."""

import functools
import math

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise

# ----------------------------------------------------------------------------------------- 10.8


def draw_margins(generator):
    yield {"margins": torch.tensor([1.0, -1.0, 1.0]), "bins": 1}
    yield {"margins": torch.tensor([0.0, 0.1, -3.0, 5.0, 200.0, -0.2]), "bins": 5}
    yield {"margins": torch.tensor([60.0, -60.0, 0.0, 2.0]), "bins": 2}  # a sigmoid of exactly 1
    yield {"margins": torch.tensor([1e-9, 1e-9, -2.0]), "bins": 2}  # a sigmoid of exactly 0.5 in float32
    for size, bins in ((20, 4), (60, 7), (600, 2)):
        yield {"margins": 0.4 + 1.5 * torch.randn(size, generator=generator), "bins": bins}


def reliability_by_loop(margins, bins):
    rows = [[0, 0.0, 0.0] for _ in range(bins)]
    for m in margins.double().tolist():
        c = 1 / (1 + math.exp(-abs(m)))
        row = rows[min(int((c - 0.5) * 2 * bins), bins - 1)]
        row[0], row[1], row[2] = row[0] + 1, row[1] + c, row[2] + (1.0 if m > 0 else 0.5 if m == 0 else 0.0)
    return torch.tensor([[n, c / max(n, 1), r / max(n, 1)] for n, c, r in rows])


def binned(
    margins, bins, *, confidence=lambda m: m.abs().sigmoid(), right=lambda m: (m > 0) + 0.5 * (m == 0), middle=None,
    place=lambda c, bins: ((c - 0.5) * 2 * bins).long().clamp(0, bins - 1), empty=lambda sums, n: sums / n.clamp(min=1),
    end=lambda n, c, r: torch.stack([n, c, r], 1),
):  # fmt: skip
    """`middle` takes the place of a mean confidence, `empty` divides sums by numbers, `end` puts the columns together."""
    c = confidence(margins)
    inside = F.one_hot(place(c, bins), bins + 1)[:, :bins].float()  # (N, bins)
    n = inside.sum(0)
    means = empty((c[:, None] * inside).sum(0), n) if middle is None else middle(margins, inside, n)
    return end(n, means, empty((right(margins).float()[:, None] * inside).sum(0), n))


def of_mean_margin(margins, inside, n):
    return torch.where(n > 0, ((margins.abs()[:, None] * inside).sum(0) / n.clamp(min=1)).sigmoid(), 0)


def of_bin(margins, inside, n):
    bins = inside.shape[1]
    return torch.where(n > 0, 0.5 + (torch.arange(bins) + 0.5) / (2 * bins), 0)


def last_of_each_bin(margins, bins):
    c = margins.abs().sigmoid()
    place, right = ((c - 0.5) * 2 * bins).long().clamp(max=bins - 1), (margins > 0) + 0.5 * (margins == 0)
    sums = torch.zeros(bins, 3)
    sums[place] += torch.stack([torch.ones_like(c), c, right], 1)
    return sums


def of_equal_numbers(margins, bins, cut):
    """Bins of as many pairs each, by the order of the confidences."""
    c, right, rows = margins.abs().sigmoid(), (margins > 0) + 0.5 * (margins == 0), torch.zeros(bins, 3)
    for row, part in zip(rows, cut(c.argsort(), bins)):
        if len(part):
            row[:] = torch.tensor([len(part), c[part].mean(), right[part].mean()])
    return rows


LOST = [  # a confidence below a half is in no bin
    lambda c, bins, whole=whole: (at := whole((c - 0.5) * 2 * bins).long()).clamp(max=bins - 1).where(at >= 0, bins)
    for whole in (torch.trunc, torch.floor)
]
reliability = Exercise(
    "10.8", "reliability",
    draw=draw_margins,
    right=reliability_by_loop,
    formula=binned,
    mistakes={
        "the confidence is that of the side put higher, sigmoid(|margin|), never below a half; this is sigmoid(margin)":
            [{"confidence": torch.sigmoid}, *({"confidence": torch.sigmoid, "place": place} for place in LOST)],
        "the bins have equal width in [0, 1]; divide the range from 0.5 to 1":
            {"place": lambda c, bins: (c * bins).long().clamp(max=bins - 1)},
        "the bins have a width of 0.1, whatever their number; it is 0.5 / bins":
            {"place": lambda c, bins: ((c - 0.5) / 0.1).long().clamp(0, bins - 1)},
        "the bins hold as many pairs each, in the order of the confidences; they have equal width from 0.5 to 1":
            tuple(functools.partial(of_equal_numbers, cut=cut) for cut in (torch.tensor_split, torch.chunk)),
        "the bins' numbers are rounded to the nearest; round down":
            {"place": lambda c, bins: ((c - 0.5) * 2 * bins).round().long().clamp(0, bins - 1)},
        "a confidence of exactly 1 falls out of the last bin: clamp the bin's number to bins - 1":
            {"place": lambda c, bins: ((c - 0.5) * 2 * bins).long()},
        "a margin of exactly 0 counts as wrong; it is a coin's toss: half": {"right": lambda m: m > 0},
        "a margin of exactly 0 counts as right; it is a coin's toss: half": {"right": lambda m: m >= 0},
        "whether a margin is above 0 is read off its sigmoid, which is 0.5 for a small one too: ask the margin itself":
            {"right": lambda m: (m.sigmoid() > 0.5) + 0.5 * (m.sigmoid() == 0.5)},
        "this is the share of wrong ones": {"right": lambda m: (m < 0) + 0.5 * (m == 0)},
        "every pair counts as right: |margin| is always above 0; ask the margin itself": {"right": lambda m: m.abs() > 0},
        "this is the mean margin of a bin; take the mean of the sigmoids":
            {"middle": lambda m, inside, n: (m.abs()[:, None] * inside).sum(0) / n.clamp(min=1)},
        "this is the sigmoid of the mean margin; take the mean of the sigmoids": {"middle": of_mean_margin},
        "this is the middle of the bin; take the mean of the confidences in it": {"middle": of_bin},
        "an empty bin is said to have one pair: clamp the number for the division alone":
            {"end": lambda n, c, r: torch.stack([n.clamp(min=1), c, r], 1)},
        "a confidence of exactly 0.5 gets the place -1, the last bin, as by ceil() - 1: round down":
            [{"place": lambda c, bins: (((c - 0.5) * 2 * bins).ceil().long() - 1) % bins, "confidence": confidence}
             for confidence in (lambda m: m.abs().sigmoid(), lambda m: m.double().abs().sigmoid())],
        "an empty bin is 0 divided by 0: give it zeros": {"empty": lambda sums, n: sums / n},
        "these are sums; divide each by the number of pairs in its bin": {"empty": lambda sums, n: sums},
        "these are divided by the number of all pairs; divide by that of the bin": {"empty": lambda sums, n: sums / n.sum()},
        "these are shares of all pairs in the first column; it is the number of pairs":
            {"end": lambda n, c, r: torch.stack([n / n.sum(), c, r], 1)},
        "confidence and accuracy are exchanged: number, confidence, share right":
            {"end": lambda n, c, r: torch.stack([n, r, c], 1)},
        "rows and columns are exchanged: a row is a bin": {"end": lambda n, c, r: torch.stack([n, c, r])},
        "sums[place] += ... adds one pair to each bin, whatever their number; index_add adds all": last_of_each_bin,
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 10.9


def draw_agreements(generator):
    yield {"agreement": 0.82, "accuracy": 0.74}
    yield {"agreement": 1.0, "accuracy": 0.6}
    yield {"agreement": 0.5, "accuracy": 0.5}
    yield {"agreement": 0.3, "accuracy": 0.7}
    yield {"agreement": 0.505, "accuracy": 0.52}
    yield {"agreement": 0.6, "accuracy": 0.8}  # truly right on more than all
    yield {"agreement": 0.82, "accuracy": 0.45}
    yield {"agreement": 0.82, "accuracy": 0.06}  # truly right on less than none
    for _ in range(4):
        a, m = torch.rand(2, generator=generator).tolist()
        yield {"agreement": 0.55 + 0.4 * a, "accuracy": 0.5 + 0.4 * m}


def ceiling_by_search(agreement, accuracy):
    if agreement <= 0.5:
        raise ValueError
    low, high = 0.5, 1.0
    for _ in range(60):  # two readers agree where both are right and where both are wrong
        p = (low + high) / 2
        low, high = (p, high) if p * p + (1 - p) * (1 - p) < agreement else (low, p)
    hits, misses = p, 1 - p  # of a model that is right, and of one that is wrong
    return p, (accuracy - misses) / (hits - misses)


def reached(agreement, accuracy, *, best=lambda a: (1 + math.sqrt(2 * a - 1)) / 2, true=lambda m, p: (m - (1 - p)) / (2 * p - 1),
            least=lambda a: a > 0.5, end=lambda p, q: (p, q)):  # fmt: skip
    if not least(agreement):
        raise ValueError("readers who agree on half of the pairs say nothing")
    p = best(agreement)
    return end(p, true(accuracy, p))


def pair(function, agreement, accuracy):
    try:
        found = function(agreement=agreement, accuracy=accuracy)
    except ValueError:
        if agreement > 0.5:
            raise
        return "a ValueError"  # whatever it says
    return [float(one) for one in found]


roots = [  # of numbers below 0 too: an error, a complex number, NaN
    lambda a: (1 + math.sqrt(2 * a - 1)) / 2,
    lambda a: (1 + (2 * a - 1) ** 0.5) / 2,
    lambda a: (1 + torch.tensor(2 * a - 1).sqrt()) / 2,
]
GUARDS = (lambda a: a > 0.5, lambda a: True)
ceiling = Exercise(
    "10.9", "ceiling",
    draw=draw_agreements,
    right=ceiling_by_search,
    call=pair,
    formula=reached,
    mistakes={
        "the agreement is taken for the ceiling; a perfect model is wrong only where one reader is, not where either is":
            {"best": lambda a: a},
        "this is the root of the agreement: it forgets that two readers also agree where both are wrong":
            tuple({"best": math.sqrt, "least": least} for least in GUARDS),
        "this is the root of the agreement, and the accuracy over it: two also agree where both are wrong, p^2 + (1 - p)^2 = a":
            tuple({"best": math.sqrt, "true": lambda m, p: m / p, "least": least} for least in GUARDS),
        "the mistakes are shared out evenly, 1 - (1 - a) / 2: it forgets that two readers also agree where both are wrong":
            {"best": lambda a: 1 - (1 - a) / 2},
        "this is the other root, the chance that a reader is wrong": {"best": lambda a: (1 - math.sqrt(2 * a - 1)) / 2},
        "a half is missing: p = (1 + sqrt(2 a - 1)) / 2": {"best": lambda a: 1 + math.sqrt(2 * a - 1)},
        "brackets are missing: all of 1 + sqrt(2 a - 1) is halved": {"best": lambda a: 1 + math.sqrt(2 * a - 1) / 2},
        "this is kappa for two equal sides, 2 a - 1, or its root; ask how often one reader is right":
            ({"best": lambda a: 2 * a - 1}, {"best": lambda a: math.sqrt(2 * a - 1)}),
        "the accuracy is divided by the ceiling; a model that is wrong also gets points, where the reader is wrong too":
            {"true": lambda m, p: m / p},
        "the second number is divided by p; solved for q it is 2 p - 1": {"true": lambda m, p: (m - (1 - p)) / p},
        "the distance to the ceiling is added; solve accuracy = q p + (1 - q) (1 - p) for q": {"true": lambda m, p: m + 1 - p},
        "this is how often a model of this accuracy would be seen right; turn it round: the accuracy is what was seen":
            {"true": lambda m, p: m * p + (1 - m) * (1 - p)},
        "this is the share of the way from a coin to the ceiling; return how often the model is right":
            {"true": lambda m, p: (m - 0.5) / (p - 0.5)},
        "this divides by 2 a - 1, of the agreement; solved for q it is 2 p - 1, of the ceiling": lambda agreement, accuracy:
            reached(agreement, accuracy, true=lambda m, p: (m - (1 - p)) / (2 * agreement - 1)),
        "the second number is 1 minus the right one, how often the model is wrong; solve accuracy = q p + (1 - q) (1 - p) for q":
            {"true": lambda m, p: 1 - (m - (1 - p)) / (2 * p - 1)},
        "the second number is worked out with the agreement where the ceiling p belongs": lambda agreement, accuracy:
            reached(agreement, accuracy, true=lambda m, p: (m - (1 - agreement)) / (2 * agreement - 1)),
        "the reader's mistakes are left out of the second number; solve accuracy = q p + (1 - q) (1 - p) for q":
            {"true": lambda m, p: 2 * m - 1},
        "readers who agree on half of the pairs, or fewer, say nothing: raise ValueError":
            ({"least": lambda a: True, "best": lambda a: (1 + math.sqrt(max(0, 2 * a - 1))) / 2},
             lambda agreement, accuracy: reached(agreement, accuracy) if agreement > 0.5 else None,
             {"least": lambda a: True, "best": lambda a: (1 + math.sqrt(max(0, 2 * a - 1))) / 2,
              "true": lambda m, p: (m - (1 - p)) / (2 * p - 1) if p > 0.5 else m},
             {"least": lambda a: a >= 0.5, "true": lambda m, p: (m - (1 - p)) / (2 * p - 1) if p > 0.5 else m},
             *({"best": best, "least": least} for best in roots for least in (lambda a: True, lambda a: a >= 0.5))),
        "how often the model is truly right is kept at most at 1; it may come out above 1 by chance: leave it":
            {"end": lambda p, q: (p, min(q, 1.0))},
        "how often the model is truly right is kept at 0 and above; it may come out below by chance: leave it":
            {"end": lambda p, q: (p, max(q, 0.0))},
        "how often the model is truly right is kept between 0 and 1; it may come out on either side by chance: leave it":
            {"end": lambda p, q: (p, min(max(q, 0.0), 1.0))},
        "a model that agrees on less than half is turned round; leave it so": {
            "true": lambda m, p: (max(m, 1 - m) - (1 - p)) / (2 * p - 1)},
        "the two are exchanged: first the ceiling, then the model": {"end": lambda p, q: (q, p)},
    },
)  # fmt: skip
