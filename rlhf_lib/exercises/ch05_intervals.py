"""Chapter 05: Wilson's interval, the bootstrap, and what to label next."""

import math
from functools import partial

import numpy as np
import scipy
import torch

from rlhf_lib.exercises.ch05_labels import with_type
from rlhf_lib.exercises.declare import Exercise

# ----------------------------------------------------------------------------------------- 5.6


def draw_counts(generator):
    for right, total, z in (
        (1, 1, 1.96), (0, 10, 1.96), (1, 10, 1.96), (0, 1, 1.5), (1, 10, 2.0), (30, 30, 1.645), (742, 867, 2.6),
    ):  # fmt: skip
        yield {"right": right, "total": total, "z": z}
    for total in (20, 500):
        yield {"right": int(torch.randint(1, total // 3, (1,), generator=generator)), "total": total, "z": 1.96}
    yield {"right": 9_000_000, "total": 10_000_000, "z": 1.96}


def wilson_by_halving(right, total, z):
    """The probabilities p that are z standard errors away from the share: each found by halving an interval."""
    share, bounds = right / total, []
    for outside, inside in ((0.0, share), (1.0, share)):
        for _ in range(60):
            middle = (outside + inside) / 2
            far = (share - middle) ** 2 > z**2 * middle * (1 - middle) / total
            outside, inside = (middle, inside) if far else (outside, middle)
        bounds.append(torch.tensor(inside))
    return tuple(bounds)


def wilson(right, total, z, *, level=None, centre=lambda s, n, z: s + z**2 / (2 * n), under=lambda n, z: 1 + z**2 / n,
           last=lambda n, z: z**2 / (4 * n**2), half=lambda s, n, z, last: z * math.sqrt(s * (1 - s) / n + last(n, z)),
           end=lambda c, h, d: ((c - h) / d, (c + h) / d)):  # fmt: skip
    s, n, z = right / total, total, level or z
    low, high = end(centre(s, n, z), half(s, n, z, last), under(n, z))
    return torch.tensor(low), torch.tensor(high)


PLAIN = {"centre": lambda s, n, z: s, "last": lambda n, z: 0.0, "under": lambda n, z: 1.0}
CUT = {"end": lambda c, h, d: (max(0.0, (c - h) / d), min(1.0, (c + h) / d))}


def by_quadratic(right, total, z):
    """The two solutions of the quadratic equation for p, in float32."""
    p, n, z = torch.tensor([right / total, total, z])
    a, b = 1 + z * z / n, -(2 * p + z * z / n)
    root = (b * b - 4 * a * p * p).clamp(min=0).sqrt()
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def by_scipy(method):
    """Another of SciPy's intervals, at the level of z or at 95 %."""
    return tuple(lambda right, total, z, level=level: tuple(map(torch.tensor, scipy.stats.binomtest(right, total).proportion_ci(
        level or 1 - 2 * scipy.stats.norm.sf(z), method))) for level in (None, 0.95))  # fmt: skip


wilson_interval = Exercise(
    "5.6", "wilson_interval",
    draw=draw_counts,
    right=wilson_by_halving,
    formula=wilson,
    mistakes={
        "this is the plain interval, share +- z standard errors: with all right it has no width; use Wilson's": PLAIN,
        "this is the plain interval cut off at 0 and 1: with all right it still has no width; use Wilson's": {**PLAIN, **CUT},
        "z is 1.96 whatever the argument says": {"level": 1.96},
        "the division by 1 + z^2 / n is missing": ({"under": lambda n, z: 1.0}, {"under": lambda n, z: 1.0, **CUT}),
        "of centre and half width only one is divided by 1 + z^2 / n; both are":
            ({"end": lambda c, h, d: (c / d - h, c / d + h)}, {"end": lambda c, h, d: (c - h / d, c + h / d)}),
        "the divisor is not 1 + z^2 / n: the square or the n is missing, or the 1 is n":
            ({"under": lambda n, z: 1 + z**2}, {"under": lambda n, z: 1 + z / n}, {"under": lambda n, z: n + z**2}),
        "the centre is the share itself; Wilson's lies nearer to one half, (share + z^2 / 2n) / (1 + z^2 / n)":
            ({"centre": lambda s, n, z: s * (1 + z**2 / n)}, {"centre": lambda s, n, z: s}),
        "what is added to the share in the centre is not z^2 / 2n: the square, the 2 or brackets around 2 * n are missing":
            ({"centre": lambda s, n, z: s + z**2 / n}, {"centre": lambda s, n, z: s + z**2 / 2 * n},
             {"centre": lambda s, n, z: s + z / (2 * n)}),
        "the share is cut off to a whole number: right / total, with one slash":
            lambda right, total, z: wilson(right // total * total, total, z),
        "one is taken off the number of passages; n is total":
            lambda right, total, z: wilson(right / total * max(1, total - 1), max(1, total - 1), z),
        "the factor 1 - share is missing in the root":
            {"half": lambda s, n, z, last: z * math.sqrt(s / n + last(n, z))},
        "the root ends too early: z^2 / 4n^2 stands in it, too":
            ({"half": lambda s, n, z, last: z * math.sqrt(s * (1 - s) / n) + last(n, z)},
             {"half": lambda s, n, z, last: z * (math.sqrt(s * (1 - s) / n) + last(n, z))}),
        "the half width is twice, or half, what it should be":
            tuple({"end": lambda c, h, d, by=by: ((c - by * h) / d, (c + by * h) / d)} for by in (2, 0.5)),
        "the root is missing: a variance is not a standard error":
            {"half": lambda s, n, z, last: z * (s * (1 - s) / n + last(n, z))},
        "z is not in front of the root": {"half": lambda s, n, z, last: math.sqrt(s * (1 - s) / n + last(n, z))},
        "z is squared in front of the root": {"half": lambda s, n, z, last: z**2 * math.sqrt(s * (1 - s) / n + last(n, z))},
        "the term z^2 / 4n^2 in the root is missing: at a share of 0 or 1 it is all the width": {"last": lambda n, z: 0.0},
        "the last term in the root is not z^2 / 4n^2: a square, the 4 or brackets around 4 * n**2 are missing":
            ({"last": lambda n, z: z**2 / (4 * n)}, {"last": lambda n, z: z**2 / n**2}, {"last": lambda n, z: z / (4 * n**2)},
             {"last": lambda n, z: z**2 / 4 * n**2}),
        "this is Clopper and Pearson's exact interval; use Wilson's": by_scipy("exact"),
        "this is Wilson's interval with a correction for continuity; leave that out": by_scipy("wilsoncc"),
        "this is Agresti and Coull's interval, with half of z^2, or 2, added to the right and to the wrong ones; use Wilson's":
            ({"half": lambda s, n, z, last: z * math.sqrt((s + z**2 / 2 / n) * (1 - s + z**2 / 2 / n) / (n + z**2))},
             lambda right, total, z: wilson(right + 2, total + 4, z, **PLAIN)),
        "share (1 - share) in the root is not divided by n":
            {"half": lambda s, n, z, last: z * math.sqrt(s * (1 - s) + last(n, z))},
        "the bounds are swapped: return (low, high)": {"end": lambda c, h, d: ((c + h) / d, (c - h) / d)},
        "b^2 - 4ac in float32: for a large total little is left of two numbers that are nearly equal; compute in float64":
            by_quadratic,
        "these are the centre and the half width; return the centre less the half width, and with it added":
            {"end": lambda c, h, d: (c / d, h / d)},
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 5.7


def draw_resamples(generator):
    yield {"values": torch.tensor([0.0, 1.0]), "draws": torch.tensor([[0, 0], [0, 1], [1, 1]])}
    yield {"values": torch.tensor([-2.0, 3.0, 7.0]), "draws": torch.tensor([[2, 0, 2], [1, 1, 1]])}
    again = torch.tensor([[0, 0, 3, 1], [0, 3, 0, 1], [1, 1, 1, 2], [0, 0, 3, 1], [2, 2, 2, 2]])  # some rows and means are equal
    yield {"values": torch.tensor([5.0, -1.0, 2.0, 5.0]), "draws": again}
    for count, times in ((10, 50), (30, 400), (4, 1100)):
        values = 1 + 2 * torch.rand(count, generator=generator) ** 3
        draws = torch.randint(count, (times, count), generator=generator)
        draws[1000:] = values.argmin()  # so that the last ones tell
        yield {"values": values, "draws": draws}
    yield {"values": torch.rand(1101, generator=generator), "draws": torch.randint(1101, (4, 1101), generator=generator)}


def bootstrap_by_sorting(values, draws):
    numbers = values.tolist()
    means = sorted(sum(numbers[place] for place in row) / len(row) for row in draws.tolist())
    bounds = []
    for share in (0.025, 0.975):
        place = share * (len(means) - 1)  # between two of the sorted means, in a line
        low = math.floor(place)
        high = min(low + 1, len(means) - 1)
        bounds.append(torch.tensor(means[low] + (place - low) * (means[high] - means[low])))
    return tuple(bounds)


def resampled(values, draws, *, shares=(0.025, 0.975), of=lambda x: x.mean(1), cut=torch.quantile, end=lambda x, *two: two):
    """`of` makes the means of the drawn values (R, N), `cut` their quantiles."""
    return end(values, *(cut(of(values[draws]), share) for share in shares))


def own_draws(values, draws, seed=None, given=False):
    """Drawn here, after torch's `seed` was set or, where it is `given`, that of a generator."""
    generator = torch.Generator() if given else torch.default_generator
    if seed is not None:
        generator.manual_seed(seed)
    return resampled(values, torch.randint(len(values), draws.shape, generator=generator))


def stretched(x, q):
    """The quantile at q R, in place of q (R - 1)."""
    place = min(q * len(x), len(x) - 1)
    low, high = (x.sort().values[some] for some in (math.floor(place), math.ceil(place)))
    return low + place % 1 * (high - low)


def bells(of, divide):
    """Functions that return a mean +- 1.96 (or 2) standard deviations of what `of` makes of values and draws."""

    def bell(values, draws, correction, width, middle):
        x = of(values, draws)
        half = width * x.std(correction=correction) / divide(len(x))
        return middle(values, x).mean() - half, middle(values, x).mean() + half

    return tuple(partial(bell, correction=correction, width=width, middle=middle) for correction in (1, 0) for width in (1.96, 2)
                 for middle in (lambda values, x: x, lambda values, x: values))  # fmt: skip


bootstrap_interval = Exercise(
    "5.7", "bootstrap_interval",
    draw=draw_resamples,
    right=bootstrap_by_sorting,
    formula=resampled,
    mistakes={
        "this is where 95 % of the values lie, not the mean: draw again, and look at the means of the draws":
            lambda values, draws: tuple(values.quantile(torch.tensor([0.025, 0.975]))),
        "these are quantiles of all drawn values; average each row of draws first": {"of": torch.flatten},
        "the quantiles were taken in each resample and then averaged; each resample gives a mean, and the quantiles are theirs":
            lambda values, draws: tuple(values[draws].quantile(share, dim=1).mean() for share in (0.025, 0.975)),
        "the bounds cut off 5 % on either side, a 90 % interval: 2.5 % on either side leave 95 %": {"shares": (0.05, 0.95)},
        "the bounds do not both cut off 2.5 %, which is 0.025": tuple({"shares": shares} for shares in
            ((0.025, 0.95), (0.05, 0.975), (0.25, 0.75), (0.25, 0.975), (0.005, 0.995), (0.0025, 0.9975), (0.16, 0.84))),
        "0.025 and 0.975 were taken for percent: 2.5 % and 97.5 % of the means are meant": {"shares": (0.00025, 0.00975)},
        "this is the smallest and the largest mean: more draws would make it wider; take the 2.5 and 97.5 % quantiles":
            {"shares": (0.0, 1.0)},
        "the means run over the wrong dimension: each row of draws is one resample":
            ({"of": lambda drawn: drawn.mean(0)}, {"of": lambda drawn: drawn.reshape(drawn.shape[1], -1).mean(1)}),
        "these are sums of the drawn values; take their means": {"of": lambda drawn: drawn.sum(1)},
        "these are medians of the resamples; the mean is asked for":
            ({"of": lambda drawn: drawn.median(1).values}, {"of": lambda drawn: drawn.quantile(0.5, dim=1)}),
        "the sums of the drawn values are divided by another number than N":
            ({"of": lambda drawn: drawn.sum(1) / (drawn.shape[1] - 1)}, {"of": lambda drawn: drawn.sum(1) / len(drawn)}),
        "the quantile is one of the means; interpolate in a line between the two nearest, as torch.quantile does it":
            (*({"cut": partial(torch.quantile, interpolation=how)} for how in ("lower", "higher", "nearest", "midpoint")),
             {"cut": lambda x, q: x.quantile(q, interpolation="lower" if q < 0.5 else "higher")},
             {"cut": lambda x, q: x.sort().values[int(q * len(x))]},
             {"cut": lambda x, q: x.sort().values[int(q * len(x)) - (q > 0.5)]},
             {"cut": lambda x, q: x.sort().values[min(round(q * len(x)), len(x) - 1)]}),
        "the quantile is interpolated by another rule; torch.quantile's runs from the least mean at 0 to the largest at 1":
            (*({"cut": lambda x, q, how=how: torch.tensor(np.quantile(x.numpy(), q, method=how))} for how in
               ("weibull", "hazen", "median_unbiased", "normal_unbiased", "interpolated_inverted_cdf")), {"cut": stretched}),
        "these are other resamples than those that are given: `draws` has the places":
            (own_draws, *(partial(own_draws, seed=seed, given=given) for seed in (0, 1, 42) for given in (True, False))),
        "only the first 100 (or 1,000) draws are used; each of the R means counts":
            tuple(lambda values, draws, most=most: resampled(values, draws[:most]) for most in (100, 1000)),
        "resamples with the same mean count once; each of the R means counts": {"of": lambda drawn: drawn.mean(1).unique()},
        "a place that was drawn twice counts once; it counts as often as it was drawn":
            lambda values, draws: resampled(values, draws, of=lambda _: torch.stack([values[x.unique()].mean() for x in draws])),
        "these are standard deviations of the resamples; the mean is asked for":
            tuple({"of": lambda drawn, n=n: drawn.std(1, correction=n)} for n in (1, 0)),
        "this divides the spread of the means by the root of their number again: more draws would fake certainty":
            bells(lambda values, draws: values[draws].mean(1), math.sqrt),
        "mean +- 1.96 standard deviations assumes a symmetric bell; the quantiles of the means need no such thing":
            bells(lambda values, draws: values[draws].mean(1), lambda n: 1),
        "this is the textbook's interval, mean +- 1.96 std / sqrt(N): the draws play no part in it":
            bells(lambda values, draws: values, math.sqrt),
        "the quantiles are reflected at the mean (the basic bootstrap); return them as they are":
            {"end": lambda x, low, high: (2 * x.mean() - high, 2 * x.mean() - low)},
        "the bounds are swapped: return (low, high)": {"end": lambda x, low, high: (high, low)},
        "these are the middle and the half width; return (low, high)":
            ({"end": lambda x, a, b: ((a + b) / 2, (b - a) / 2)}, {"end": lambda x, a, b: (x.mean(), (b - a) / 2)}),
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 5.8


def draw_probabilities(generator):
    for p, known, count in (
        ([0.9, 0.6, 0.1], [0] * 3, 1), ([0.5, 0.95, 0.3, 0.55], [1, 0, 0, 0], 2), ([0.2, 0.35, 0.41], [0, 1, 0], 1),
        ([0.51, 0.96, 0.03, 0.5], [1, 0, 0, 1], 2), ([0.7, 0.4996, 0.5003, 0.5], [0] * 4, 3),
        ([0.5, 1.0, 0.3, 0.0], [1, 0, 0, 1], 2), ([0.75, 0.25, 0.625, 0.625], [1, 0, 1, 0], 2),  # each as near as a labelled one
        ([0.50003, 0.50002, 0.7, 0.50001], [0] * 4, 3), ([0.6, 0.8], [1, 0], 1),
    ):  # fmt: skip
        yield {"p_positive": torch.tensor(p), "labelled": torch.tensor(known).bool(), "count": count}
    for size, count, steps in ((8, 3, 40), (20, 6, 40), (300, 140, 1000)):
        p = (torch.randperm(steps, generator=generator)[:size].float() + 0.7) / (steps + 1)  # no two equally far from one half
        labelled = torch.rand(size, generator=generator) < 0.4
        labelled[p.sub(0.5).abs().argmin()] = True
        labelled[torch.randperm(size, generator=generator)[:count]] = False
        yield {"p_positive": p, "labelled": labelled, "count": count}


def nearest_by_sorting(p_positive, labelled, count):
    left = [(abs(p - 0.5), place) for place, p in enumerate(p_positive.tolist()) if not labelled[place]]
    return torch.tensor([place for _, place in sorted(left)[:count]])


def picked(p_positive, labelled, count, *, key=lambda p, free: (p - 0.5).abs(), lose=math.inf, hide=lambda labelled: labelled,
           fine=0.0, most=False, sort=lambda x, count, most: x.argsort(descending=most)[:count], end=lambda places, p: places,
           ):  # fmt: skip
    """The places where `key` is least (or most), with `lose` for the key of those that `hide` says."""
    distance = key(p_positive, p_positive[~labelled]) + fine * labelled
    return end(sort(distance.masked_fill(hide(labelled), lose), count, most), p_positive)


def looked_up(p_positive, labelled, count, key):
    places, keys = nearest_by_sorting(p_positive, labelled, count), key(p_positive).tolist()
    return torch.tensor([keys.index(keys[place]) for place in places])


def in_order_to(most):
    return {"end": lambda places, p: torch.cat([places[:most], places[most:].sort().values])}


def squeezed(p_positive, labelled, count):
    return (~labelled).nonzero().squeeze()[(p_positive[~labelled] - 0.5).abs().argsort()[:count]]


def by_entropy(p_positive, labelled, count, sort):
    p = p_positive
    return sort(-(p * p.log() + (1 - p) * (1 - p).log()).masked_fill(labelled, 1), count)


TOPK = {"sort": lambda x, count, most: x.topk(count, largest=most).indices}  # which has another order where there are ties
pick_uncertain = Exercise(
    "5.8", "pick_uncertain",
    draw=draw_probabilities,
    right=nearest_by_sorting,
    call=with_type,
    formula=picked,
    mistakes={
        "passages that have a label already are picked again: leave them out": {"hide": torch.zeros_like},
        "`labelled` is used the wrong way round: True is where a label is already, and that passage is left out":
            ({"hide": torch.logical_not}, {"hide": torch.logical_not, **TOPK}),
        "the labelled passages are given a distance that wins; give them one that loses":
            ({"lose": 0.0}, {"lose": 0.0, **TOPK}, {"lose": -1.0}, {"lose": -1.0, **TOPK}),
        "the penalty on labelled passages is so small that some are picked all the same; a distance is up to 0.5":
            tuple({"hide": torch.zeros_like, "fine": fine} for fine in (0.05, 0.1, 0.2, 0.25, 0.3, 0.4)),
        "labelled passages get the distance of a sure one, 0.5, or its probability, 0 or 1; give them a distance that never wins":
            tuple({"lose": 0.5, **sort} for sort in
                  ({}, TOPK, {"sort": lambda x, count, most: x.sort(stable=True).indices[:count]})),
        "labelled passages are thrown out after the first `count` were taken, so fewer come back: leave them out before":
            tuple(lambda p_positive, labelled, count, sort=sort: (
                (places := sort((p_positive - 0.5).abs(), count, False))[~labelled[places]])
                for sort in (lambda x, count, most: x.argsort()[:count], TOPK["sort"])),
        "the places are sorted and `labelled` is not: which of them have a label is labelled[places]":
            lambda p_positive, labelled, count: (p_positive - 0.5).abs().argsort()[~labelled][:count],
        "p log p is 0 times minus infinity, NaN, at a probability of 0 or 1; the distance to 0.5 is always a number":
            tuple(partial(by_entropy, sort=sort) for sort in (lambda x, n: x.argsort(descending=True)[:n],
                                                              lambda x, n: x.topk(n).indices)),
        "p (1 - p), or the entropy, is flat at 0.5, and float32 loses the order there; the distance to 0.5 keeps it":
            tuple({"key": key, "lose": -1.0, "most": True, **sort} for sort in ({}, TOPK) for key in (
                lambda p, free: p * (1 - p), lambda p, free: torch.distributions.Bernoulli(p).entropy())),
        "the place is looked up by its distance (or its p), and of two equal ones the first is found, even a labelled one":
            tuple(partial(looked_up, key=key) for key in (lambda p: (p - 0.5).abs(), lambda p: p)),
        "these are ranks, argsort of argsort; return the places that argsort gives":
            {"sort": lambda x, count, most: x.argsort().argsort()[:count]},
        "these are places among the unlabelled passages; translate them back to places among all":
            lambda p_positive, labelled, count: (p_positive[~labelled] - 0.5).abs().argsort()[:count],
        "these are the passages the model is surest of: the label would tell it what it knows; take those nearest 0.5":
            {"lose": -1.0, "most": True},
        "the largest distances come first, labelled passages before all; the smallest should":
            ({"most": True}, {"most": True, **TOPK}),
        "these are the most positive passages; take those nearest 0.5": {"key": lambda p, free: -p},
        "these are the most negative passages; take those nearest 0.5": {"key": lambda p, free: p},
        "only passages on one side of 0.5 are picked: take the distance to 0.5, without its sign":
            tuple({"key": lambda p, free, sign=sign: torch.where(sign * (p - 0.5) < 0, 2, sign * (p - 0.5))} for sign in (1, -1)),
        "these are nearest to the mean (or median) of the probabilities; take those nearest 0.5":
            ({"key": lambda p, free: (p - p.mean()).abs()}, {"key": lambda p, free: (p - p.median()).abs()},
             {"key": lambda p, free: (p - free.mean()).abs()}),
        "the right passages, but in order of their places or of their probabilities; put the most uncertain first":
            tuple({"end": end} for end in (lambda places, p: places.sort().values, lambda places, p: places[p[places].argsort()],
                                           lambda places, p: places[p[places].argsort()].flip(0))),
        "the right passages, but only the first ones are in order; the nearest to 0.5 comes first all the way":
            tuple(map(in_order_to, (10, 20, 32, 50, 64, 100, 128))),
        "squeeze() leaves no dimension where one passage alone is unlabelled; nonzero()[:, 0], or squeeze(1), keeps (1,)":
            squeezed,
        "the right passages, but the nearest to 0.5 comes last; put it first": {"end": lambda places, p: places.flip(0)},
        "this returns the probabilities, or their distances to 0.5; return the places of the passages":
            ({"end": lambda places, p: p[places]}, {"end": lambda places, p: (p[places] - 0.5).abs()}),
        "these are places as floats; to be used as places they have to be whole": {"end": lambda places, p: places.float()},
    },
)  # fmt: skip
