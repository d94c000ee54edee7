"""Chapter 08: the size of the next rollout, and the policy that is kept."""

import math
import operator
from functools import partial

import torch

from rlhf_lib.exercises.declare import Exercise


# ----------------------------------------------------------------------------------------- 8.8
def draw_sizes(generator):
    yield {"clip_fractions": [0.005, 0.004, 0.003], "completions": 256, "most": 1024}
    yield {"clip_fractions": [0.05, 0.005, 0.004, 0.003, 0.002], "completions": 100, "most": 200}
    yield {"clip_fractions": [], "completions": 64, "most": 512}
    yield {"clip_fractions": [0.004, 0.003, 0.01, 0.002, 0.001, 0.003, 0.002], "completions": 128, "most": 1024}
    yield {"clip_fractions": [0.3, 0.3, 0.3, 0.3, 0.001], "completions": 128, "most": 1024}
    yield {"clip_fractions": [0.002] * 7 + [0.2, 0.004, 0.004], "completions": 128, "most": 500}
    yield {"clip_fractions": [0.002] * 10, "completions": 512, "most": 4096}
    yield {"clip_fractions": [0.0, 0.004, 0.0, 0.0, 0.003], "completions": 64, "most": 512}
    yield {"clip_fractions": [0.002] * 9, "completions": 256, "most": 700}
    yield {"clip_fractions": [0.002] * 4 + [0.25, 0.15, 0.5, 0.9, 0.05], "completions": 64, "most": 512}  # much, after a doubling
    yield {"clip_fractions": [0.002, 0.015, 0.003, 0.004, 0.001], "completions": 64, "most": 512}  # rare in the mean of three
    for completions in (64, 48):
        drawn = 0.009 * torch.rand(14, generator=generator) + 0.02 * (torch.rand(14, generator=generator) < 0.15)
        yield {"clip_fractions": drawn.tolist(), "completions": completions, "most": 512}


def sizes_by_looking_back(clip_fractions, completions, most, rare=lambda last: max(last) < 0.01):
    """A doubling happens where the last three shares, all since the last doubling, are small."""
    sizes, since = [], 0
    for step in range(len(clip_fractions)):
        now = sizes[-1] if sizes else completions
        last = clip_fractions[max(since, step - 2) : step + 1]
        if len(last) == 3 and rare(last) and now * 2 <= most:
            now, since = now * 2, step + 1
        sizes.append(now)
    return sizes


def sizes_formula(
    clip_fractions, completions, most, *, wait=3, back=lambda count: 0, reset=True, rare=lambda share: share < 0.01, late=False,
    fits=lambda size, most: size <= most, grow=lambda size, first, most: 2 * size, often=lambda size, first, share: size,
):  # fmt: skip
    sizes, count, size = [], 0, completions
    for share in clip_fractions:
        before, count = size, count + 1 if rare(share) else back(count)
        size = size if rare(share) else often(size, completions, share)
        if count >= wait and fits(grow(size, completions, most), most):
            size, count = grow(size, completions, most), 0 if reset else count
        sizes.append(before if late else size)
    return sizes


def sizes_by_threes(clip_fractions, completions, most):
    sizes = []
    for step in range(len(clip_fractions)):
        rare = step % 3 == 2 and max(clip_fractions[step - 2 : step + 1]) < 0.01
        completions *= 2 if rare and 2 * completions <= most else 1
        sizes.append(completions)
    return sizes


def whole(number):
    """A number as it is; a TypeError where it is a whole one as a float, with which nothing can be counted."""
    is_float = isinstance(number, float) or (isinstance(number, torch.Tensor) and number.is_floating_point())
    if is_float and number == number // 1:
        operator.index(number)
    return number


def call_sizes(function, **given):
    sizes = function(**given)
    return list(map(whole, sizes)) if isinstance(sizes, (list, tuple)) else sizes


rollout_sizes = Exercise(
    "8.8", "rollout_sizes", draw=draw_sizes, call=call_sizes, right=sizes_by_looking_back, formula=sizes_formula, mistakes={
        "the rollout grows at every rare update; wait for three in a row, one may be chance": {"wait": 1},
        "the rollout grows at the second rare update in a row; wait for three": {"wait": 2},
        "this waits for a fourth update in a row; the third one is enough": {"wait": 4},
        "this counts rare updates in all; one with enough clipping in between sets the count back to 0":
            {"back": lambda count: count},
        "an update with enough clipping takes one off the count; it sets the count back to 0":
            {"back": lambda count: max(0, count - 1)},
        "the mean of three shares is below 0.01; each of the three should be":
            partial(sizes_by_looking_back, rare=lambda last: sum(last) < 0.03),
        "the updates are looked at three by three; any three in a row count": sizes_by_threes,
        "after a doubling the count has to start at 0 again, or the next rare update doubles at once": {"reset": False},
        "the rollout grows past `most`": [{"fits": lambda size, most: True}, {"fits": lambda size, most: size < 2 * most}],
        "the rollout may be as large as `most`; only a doubling past it is left out": {"fits": lambda size, most: size < most},
        "a doubling that would pass `most` is cut down to it; leave it out":
            {"grow": lambda size, first, most: min(2 * size, most)},
        "this grows when clipping is frequent; then steps are too long already. It grows when clipping is rare, below 1 %":
            [{"rare": lambda share: share >= 0.01}, {"rare": lambda share: share > 0.01}],
        "0.01 itself is not below 0.01": {"rare": lambda share: share <= 0.01},
        "a share of exactly 0 is below 0.01 too": {"rare": lambda share: 0 < share < 0.01},
        "the limit is not 0.01, which is 1 %": [{"rare": lambda share, most=most: share < most} for most in (0.001, 0.1, 1)],
        "each size is written down before the doubling; it is that of the rollout which follows the update": {"late": True},
        "the first size is added each time; the size doubles": {"grow": lambda size, first, most: size + first},
        "the size doubles once only, or from the first one each time; three rare updates more double it again":
            {"grow": lambda size, first, most: 2 * first},
        "an update with enough clipping makes the rollout smaller again; it only sets the count back":
            [{"often": lambda size, first, share: first}, {"often": lambda size, first, share: size // 2},
             *({"often": lambda size, first, share, most=most: max(first, size // 2) if share > most else size}
               for most in (0, 0.1, 0.2, 0.3))],
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 8.9
def spread(*means):
    """KLs of two completions each, with these means."""
    return [torch.tensor([mean - 1.0, mean + 1.0]) for mean in means]


def draw_kept(generator):
    yield {"kls": [torch.tensor([0.0]), torch.tensor([8.0]), torch.tensor([12.0])], "max_kl": 10.0}
    yield {"kls": spread(0.0), "max_kl": 5.0}
    yield {"kls": spread(0.0, 4.0, 6.0), "max_kl": 7.0}
    yield {"kls": spread(0.0, 4.0, 6.0, 6.5), "max_kl": 6.0}  # the third is at the limit
    yield {"kls": spread(0.0, 5.0, math.nan, 6.0), "max_kl": 8.0}
    yield {"kls": spread(0.0, 6.0, 12.0, 9.0), "max_kl": 11.0}
    yield {"kls": spread(0.0, 12.0, 9.0, 13.0, 8.0), "max_kl": 10.0}
    yield {"kls": spread(0.0, 12.0, 13.0, 8.0), "max_kl": 10.0}
    yield {"kls": spread(0.0, 40.0, math.nan, 50.0), "max_kl": math.inf}  # a NaN is not within that either
    for last in ((-3.0, 5.0, 25.0), (6.5, 0.0, 7.0), (1.0, math.nan, 2.0)):
        yield {"kls": [torch.zeros(2), *map(torch.tensor, ((6.0, -4.0), (0.0, 1.0, 14.0), last, (0.0, 0.0)))], "max_kl": 6.0}
    yield {"kls": [torch.zeros(2), torch.tensor([14.0, -8.0])], "max_kl": 4.0}
    yield {"kls": [torch.zeros(2), torch.tensor([-9.0, -3.0]), torch.tensor([1.0, 3.0])], "max_kl": 5.0}  # far below the limit
    late = torch.cat([torch.full((110,), 2.0), torch.full((40,), 50.0)])
    yield {"kls": [torch.zeros(2), late, torch.ones(2)], "max_kl": 10.0}
    for count in (6, 12):
        means = 0.1 + 1.5 * torch.rand(count, generator=generator).cumsum(0)
        kls = [torch.zeros(8), *(mean + torch.randn(8, generator=generator) for mean in means)]
        yield {"kls": kls, "max_kl": 0.8 * means[-1].item()}


def kept_by_list(kls, max_kl):
    within = [float(sum(kl.tolist())) / len(kl) <= max_kl for kl in kls]
    return within.index(False) - 1 if False in within else len(kls) - 1


def kept_formula(kls, max_kl, *, mean=torch.mean, past=lambda kl, most: not kl <= most, limit=None, back=1, end=None):
    limit = max_kl if limit is None else limit
    first = next((place for place, kl in enumerate(kls) if past(mean(kl), limit)), None)
    last = len(kls) - 1 if first is None else first - back
    return last if end is None else end(kls, last)


def two_beyond(kls, max_kl):
    beyond = [not kl.mean() <= max_kl for kl in kls]
    return next((k - 1 for k in range(1, len(kls)) if all(beyond[k : k + 2])), len(kls) - 1)


kept_iteration = Exercise(
    "8.9", "kept_iteration", draw=draw_kept, call=lambda function, **given: whole(function(**given)),
    right=kept_by_list, formula=kept_formula, mistakes={
        "this is the policy that passed the limit; keep the one before, the last that was measured within it": {"back": 0},
        "training never stops: this is the last iteration, whatever its KL is": {"past": lambda kl, most: False},
        "this finds the last one within the limit anywhere; training stops the first time that the limit is passed":
            lambda kls, max_kl: max(place for place, kl in enumerate(kls) if kl.mean() <= max_kl),
        "this stops only where two iterations in a row, or the last one, are beyond the limit; the first one stops it":
            two_beyond,
        "this stops at the last iteration beyond the limit; training stops the first time that the limit is passed":
            lambda kls, max_kl:
                max((place for place, kl in enumerate(kls) if not kl.mean() <= max_kl), default=len(kls)) - 1,
        "this finds the largest KL within the limit; training stops the first time that the limit is passed":
            lambda kls, max_kl: max((kl.mean().item(), place) for place, kl in enumerate(kls) if kl.mean() <= max_kl)[1],
        "a KL that is NaN is not > max_kl, so this trains on when broken: ask whether not kl <= max_kl":
            {"past": lambda kl, most: kl > most},
        "completions whose KL is NaN are left out of the mean; such a policy is broken": {"mean": torch.nanmean},
        "a KL at the limit is within it": {"past": lambda kl, most: not kl < most},
        "one completion over the limit stops this; single estimates are noise, the limit is for their mean": {"mean": torch.max},
        "this stops only where all completions are over the limit; the limit is for their mean": {"mean": torch.min},
        "this looks at one completion; the limit is for the mean": [{"mean": lambda kl: kl[0]}, {"mean": lambda kl: kl[-1]}],
        "this adds the completions up; the limit is for the mean of a completion": {"mean": torch.sum},
        "this is the median; the limit is for the mean": [{"mean": torch.median}, {"mean": lambda kl: kl.quantile(0.5)}],
        "negative estimates count as positive, or as 0; with their sign the mean is right":
            [{"mean": lambda kl: kl.abs().mean()}, {"mean": lambda kl: kl.clamp(min=0).mean()},
             {"mean": lambda kl: kl.mean().abs()}],
        "where all are within, this returns -1, since argmax of zeros is 0; it should be the last":
            lambda kls, max_kl: [not kl.mean() <= max_kl for kl in [*kls, torch.tensor(math.inf)]].index(True) % len(kls) - 1,
        "this counts the iterations within the limit, those behind the stop too":
            [lambda kls, max_kl, less=less: sum(bool(kl.mean() <= max_kl) for kl in kls) - less for less in (1, 0)],
        "where all are within, this is one too many: numbers start from 0, so the last is len(kls) - 1":
            lambda kls, max_kl: kept_formula([*kls, torch.tensor(-math.inf)], max_kl),
        "this is the mean of all iterations so far; the limit is for each iteration's own":
            [lambda kls, max_kl: kept_formula([torch.stack([kl.mean() for kl in kls[: n + 1]]) for n in range(len(kls))], max_kl),
             lambda kls, max_kl: kept_formula([torch.cat(kls[: n + 1]) for n in range(len(kls))], max_kl)],
        "this is the KL of the policy that is kept; return the iteration's number":
            [{"end": lambda kls, last: kls[last].mean().item()}, {"end": lambda kls, last: kls[last]}],
    })  # fmt: skip
