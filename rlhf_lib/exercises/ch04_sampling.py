"""Chapter 04: temperature, top-k and top-p, drawing a token, its end, the loop; the other exercises are in ch04_scoring."""

import bisect
import math
from functools import partial

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.sampling import distribution, draw, generate

FINITE = (-1e3, -1e4, -1e5, -1e6, -1e8, -1e9, -1e10, -1e30, -3.4028234663852886e38)  # what people take for minus infinity


# ----------------------------------------------------------------------------------------- 4.1
def draw_logits(generator):
    yield {"logits": torch.tensor([0.0, 1.0]), "temperature": 0.5}
    for shape, temperature in (((2, 3), 2.0), ((4, 6), 0.7), ((2, 3, 5), 1.3)):
        yield {"logits": 2 * torch.randn(shape, generator=generator), "temperature": temperature}
    yield {"logits": torch.tensor([[0.0, -150.0], [410.0, 400.0]]), "temperature": 0.25}  # exp(-600) is 0, exp(1640) infinite
    for shape, temperature in (((1, 4), 1.0), ((2, 1, 3), 0.05), ((3, 4), 12.0), ((2, 3), 1.0), ((2, 300), 0.9)):
        yield {"logits": 2 * torch.randn(shape, generator=generator), "temperature": temperature}
    yield {"logits": torch.tensor([[1.0, -math.inf, 0.5], [0.3, 0.2, -math.inf]]), "temperature": 0.8}  # cut tokens


def tempered(logits, temperature, *, heat=lambda x, t: x / t, normal=lambda x: x.log_softmax(-1), after=lambda y, t: y):
    return after(normal(heat(logits, temperature)), temperature)


def by_distribution(logits, temperature):
    return torch.distributions.Categorical(logits=logits.double() / temperature).logits.float()


Exercise("4.1", "with_temperature", draw=draw_logits, right=by_distribution, formula=tempered, mistakes={
    "the temperature is upside down: divide the logits by it, so that a low one sharpens": {"heat": lambda x, t: x * t},
    "the temperature is not used": {"heat": lambda x, t: x},
    "temperatures below 1 are raised to 1": {"heat": lambda x, t: x / max(t, 1)},
    "low temperatures are raised to a least one: divide by the temperature that is given":
        [{"heat": lambda x, t, least=least: x / max(t, least)} for least in (0.1, 0.2, 0.25, 0.3, 0.5)],
    "at temperature 1 the logits come back as they are: log_softmax makes log-probabilities of them there too":
        lambda logits, temperature: logits if temperature == 1 else tempered(logits, temperature),
    "these are logarithms to the base 2 or 10; log-probabilities are natural logarithms":
        [{"normal": normal} for base in (2, 10) for normal in (
            lambda x, base=base: x.log_softmax(-1) / math.log(base), lambda x, base=base: x.softmax(-1).log() / math.log(base))],
    "the log-probabilities were divided after log_softmax and no longer sum to 1: divide the logits before":
        {"heat": lambda x, t: x, "after": lambda y, t: y / t},
    "these are still logits: after the division, log_softmax makes log-probabilities of them": {"normal": lambda x: x},
    "the maximum is taken off, but not the logarithm of the sum": {"normal": lambda x: x - x.amax(-1, True)},
    "these are probabilities; return their logarithms": {"normal": lambda x: x.softmax(-1)},
    "these are probabilities to a power, which no longer sum to 1: divide the logits before":
        {"heat": lambda x, t: x, "normal": lambda x: x.softmax(-1), "after": lambda y, t: y ** (1 / t)},
    "the softmax runs over the wrong dimension: the vocabulary is the last one, dim=-1":
        ({"normal": lambda x: x.log_softmax(0)}, {"normal": lambda x: x.log_softmax(min(1, x.dim() - 1))},
         {"normal": lambda x: x.log_softmax(1)}),
    "something keeps the probability away from 0, and caps what an unlikely token gets; log_softmax needs no help":
        [{"normal": change} for eps in (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12) for change in (
            lambda x, eps=eps: (x.softmax(-1) + eps).log(), lambda x, eps=eps: x.softmax(-1).clamp(min=eps).log())]
        + [{"normal": lambda x, top=top: x.clamp(-top, top).log_softmax(-1)} for top in (10, 20, 30, 50, 80, 100)],
    "the sum of exponentials is that of the logits before they were divided": lambda logits, temperature: (
        (logits - logits.amax(-1, True)) / temperature - (logits - logits.amax(-1, True)).exp().sum(-1, keepdim=True).log()),
    "the mean is taken off first, and where a token is cut, at minus infinity, all becomes NaN: take off the maximum, or nothing":
        ({"normal": lambda x: (x - x.mean(-1, True)).log_softmax(-1)}, {"heat": lambda x, t: (x - x.mean(-1, True)) / t}),
    "the softmax runs over all rows at once; each row sums to 1": {"normal": lambda x: x.flatten().log_softmax(0).view(x.shape)},
    "softmax and then log underflows to minus infinity for unlikely tokens: log_softmax does both at once":
        {"normal": lambda x: x.softmax(-1).log()},
    "exp overflows, since the maximum is not taken off before it: log_softmax does that":
        ({"normal": lambda x: (x.exp() / x.exp().sum(-1, keepdim=True)).log()},
         {"normal": lambda x: x - x.exp().sum(-1, keepdim=True).log()}),
    "one maximum is taken off all rows, and a row far below it underflows: each row has its own, log_softmax takes it": (
        {"normal": lambda x: x - x.max() - (x - x.max()).exp().sum(-1, keepdim=True).log()},
        {"normal": lambda x: ((x - x.max()).exp() / (x - x.max()).exp().sum(-1, keepdim=True)).log()}),
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 4.2
def draw_top_k(generator):
    yield {"logits": torch.tensor([1.0, 3.0, 2.0]), "k": 2}
    for *shape, k in ((4, 1), (2, 4, 1), (3, 6, 3), (5, 9, 4), (2, 3, 7, 2), (2, 3, 3), (2, 3, 5)):  # k may be V, or more
        yield {"logits": 2 * torch.randn(shape, generator=generator), "k": k}
    yield {"logits": torch.tensor([[3.0, 3.0, 1.0, 2.0], [0.0, 5.0, 5.0, 0.0], [-1.0, -2.0, -2.0, -1.0]]), "k": 2}  # equal ones
    yield {"logits": torch.tensor([[200.0, -50.0, 0.0]]), "k": 2}  # two probabilities are 0 in float32
    yield {"logits": torch.tensor([3.0, 2.0, 2.0, 1.0]), "k": 2}  # the second and the third are equal
    yield {"logits": torch.tensor([[1.0, 2.0, 3.0], [3.0, 5.0, 6.0]]), "k": 2}  # a logit stays in one row and goes in the other
    yield {"logits": torch.tensor([[1.0, 0.9995, 2.0], [1.0, 0.999996, 2.0]]), "k": 2}  # a little below is below
    yield {"logits": torch.tensor([1.0, -math.inf, 2.0, -math.inf]), "k": 3}  # two are cut already
    for *shape, k in ((2, 1, 1), (1, 2, 4, 2), (2, 300, 130)):
        yield {"logits": 2 * torch.randn(shape, generator=generator), "k": k}


def ties_either_way(function, logits, k):
    """What comes back; where the k-th largest has equals, k tokens may stay, or all the equal ones: then they all do."""
    out = function(logits=logits, k=k)
    if logits.dim() == 1 and k < len(logits) and torch.is_tensor(out) and out.shape == logits.shape:
        edge = logits.sort(descending=True).values[k - 1]
        tied = logits == edge
        if tied.sum() > 1 and (out == edge)[tied].sum() == k - (logits > edge).sum():
            return torch.where(tied, edge, out)
    return out


def top_k_by_ranks(logits, k):
    rows = logits.reshape(-1, logits.shape[-1]).tolist()
    kept = [[x if bisect.bisect_left(ranked, -x) < k else -math.inf for x in row]  # so many lie above it
            for row in rows for ranked in [sorted(-x for x in row)]]  # fmt: skip
    return torch.tensor(kept).reshape(logits.shape)


def best(logits, k, *, count=lambda k, v: min(k, v), of=lambda x: x, cut=-math.inf, after=lambda y: y):
    """The `count` best of each row by what `of` makes of them; `cut` for the others."""
    k = max(0, min(count(k, logits.shape[-1]), logits.shape[-1]))
    keep = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, of(logits).topk(k).indices, True)
    return after(torch.where(keep, logits, cut))


def fail_beyond(logits, k):
    if k > logits.shape[-1]:
        raise RuntimeError("selected index k out of range")
    return best(logits, k)


def below(threshold):
    """Top-k by a threshold that is not each row's own k-th largest logit."""
    return lambda logits, k: logits.masked_fill(logits < threshold(logits, min(k, logits.shape[-1])), -math.inf)


Exercise("4.2", "top_k_filter", draw=draw_top_k, call=ties_either_way, right=top_k_by_ranks, formula=best, mistakes={
    "cut tokens got a logit of 0, which is exp(0) = 1 before normalising: use minus infinity": {"cut": 0.0},
    "cut tokens got a large negative number; minus infinity makes their probability 0": [{"cut": cut} for cut in FINITE],
    "the logits that stay became 0 or 1: they should be as they were":
        [{"after": lambda y, number=number: torch.where(y.isinf(), y, number)} for number in (0.0, 1.0)],
    "0 times minus infinity is NaN: masked_fill, or torch.where": lambda logits, k: (
        logits + (logits < logits.topk(min(k, logits.shape[-1])).values[..., -1:]).float() * -math.inf),
    "argsort gives the tokens in order of their size, not each token's rank: it is argsort of argsort":
        lambda logits, k: logits.masked_fill(logits.argsort(-1, descending=True) >= k, -math.inf),
    "the threshold is the k-th smallest (kthvalue counts from below); it is the k-th largest":
        below(lambda x, k: x.kthvalue(k, -1, keepdim=True).values),
    "probabilities are compared, and of those that are 0 in float32 too many stay: compare the logits":
        lambda logits, k: logits.masked_fill(
            logits.softmax(-1) < logits.softmax(-1).topk(min(k, logits.shape[-1])).values[..., -1:], -math.inf),
    "this keeps the k least likely tokens; keep the most likely": {"of": lambda x: -x},
    "the k least likely tokens are cut; the k most likely should stay": {"count": lambda k, v: v - k},
    "this keeps the largest absolute values; the k largest logits stay": {"of": torch.abs},
    "k - 1 tokens are left: the k-th stays too, so cut what is below it, not what is equal to it":
        ({"count": lambda k, v: min(k, v) - 1}, lambda logits, k: logits.masked_fill(
            logits <= logits.topk(min(k, logits.shape[-1])).values[..., -1:], -math.inf),
         lambda logits, k: best(logits, k - 1) if k < logits.shape[-1] else logits,
         lambda logits, k: logits if k >= logits.shape[-1] else logits.masked_fill(
             logits <= logits.topk(k).values[..., -1:], -math.inf)),
    "a logit a little below the k-th stays too: compare without a tolerance": (
        below(lambda x, k: x.topk(k).values[..., -1:] - 1e-3),
        below(lambda x, k: (y := x.topk(k).values[..., -1:]) - 1e-5 * y.abs() - 1e-8)),
    "a logit of 0 that should stay is cut: 0 is a logit like any other":
        {"after": lambda y: y.masked_fill(y == 0, -math.inf)},
    "where the k-th and the next are equal both are cut, and fewer than k stay: cut only what is below the k-th largest":
        lambda logits, k: logits if k >= logits.shape[-1] else logits.masked_fill(
            logits <= logits.topk(k + 1).values[..., -1:], -math.inf),
    "only the k largest logits come back: keep the shape (..., V), with minus infinity in the places of the others":
        (lambda logits, k: logits.topk(min(k, logits.shape[-1])).values, lambda logits, k: logits.topk(k).values),
    "k + 1 tokens are left: the first k of the sorted ones have places 0 to k - 1": {"count": lambda k, v: k + 1},
    "one threshold is used for the whole batch; each row has its own k-th largest logit":
        (lambda logits, k: best(logits.flatten(), k).reshape(logits.shape),
         below(lambda x, k: x.topk(k).values[..., -1].min()), below(lambda x, k: x.topk(k).values[..., -1].max()),
         below(lambda x, k: x.flatten().topk(k).values[-1])),
    "what is among another row's k largest stays here too: torch.isin looks into all rows; each row has its own":
        lambda logits, k: logits.masked_fill(~torch.isin(logits, logits.topk(min(k, logits.shape[-1])).values), -math.inf),
    "the first row's threshold is used for all rows; each row has its own":
        below(lambda x, k: x.reshape(-1, x.shape[-1])[0].topk(k).values[-1]),
    "equal logits are counted as one, and too many stay: count tokens, not different values":
        lambda logits, k: torch.stack([row.masked_fill(row < row.unique().flip(0)[:k][-1], -math.inf)
                                       for row in logits.reshape(-1, logits.shape[-1])]).view(logits.shape),
    "this looks for the largest along the first dimension; the vocabulary is the last":
        lambda logits, k: best(logits.movedim(0, -1), k).movedim(-1, 0),
    "the kept logits lie in order of size; each must stay at its own token's place":
        {"after": lambda y: y.sort(-1, descending=True).values},
    "this fails when k is larger than the vocabulary: then keep everything, min(k, V)": fail_beyond,
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 4.3
def draw_top_p(generator):
    yield {"logits": torch.tensor([0.2, 0.5, 0.3]).log(), "p": 0.6}
    yield {"logits": torch.zeros(2), "p": 0.5}  # the first of two equal ones reaches p exactly
    yield {"logits": torch.tensor([0.05, 0.1, 0.6, 0.25]).log(), "p": 0.8}
    yield {"logits": torch.tensor([[0.27, 0.26, 0.24, 0.23], [0.72, 0.26, 0.01, 0.01]]).log(), "p": 0.7}  # an even and a sure row
    for *shape, p in ((2, 5, 0.05), (3, 6, 0.5), (4, 9, 0.9), (2, 2, 4, 0.7), (2, 4, 1.0), (1, 7, 0.6)):
        yield {"logits": 1.5 * torch.randn(shape, generator=generator), "p": p}
    yield {"logits": torch.tensor([[200.0, 201.0, 100.0], [-300.0, -299.0, -300.5]]), "p": 0.8}  # exp would be infinite, or 0
    for count, p in ((3, 0.5), (4, 0.75)):
        yield {"logits": torch.full((count,), 1.5), "p": p}
    yield {"logits": torch.tensor([[0.6995, 0.2, 0.1005], [0.7005, 0.2, 0.0995]]).log(), "p": 0.7}  # a little below is below
    yield {"logits": torch.tensor([[0.5], [-2.0]]), "p": 0.3}
    yield {"logits": 0.1 * torch.randn(380, generator=generator), "p": 0.855}  # more than 256 are kept
    yield {"logits": torch.tensor([0.15, 0.25, 0.0, 0.5]).log(), "p": 0.8}  # the card's, after top-k


def ties(logits):
    return bool(logits.max() == logits.min())


def ties_in_any_order(function, logits, p):
    """What comes back; where all tokens are equally likely it is sorted, since nobody says which of them stay."""
    out = function(logits, p)
    return out.sort(-1).values if ties(logits) else out


def top_p_by_loops(logits, p):
    whole = logits.reshape(-1, logits.shape[-1]).double()
    out = torch.full_like(whole, -math.inf)
    for row, chances in enumerate(whole.softmax(-1).tolist()):
        reached = 0.0
        for token in sorted(range(len(chances)), key=lambda token: -chances[token]):
            if reached >= p and p < 1:
                break
            out[row, token] = whole[row, token]
            reached += chances[token]
    return out.float().reshape(logits.shape)


def nucleus(
    logits, p, *, of=lambda x: x.softmax(-1), down=True, gone=lambda x, sums, p: sums - x >= p, back=True, cut=-math.inf,
    after=lambda y: y,
):  # fmt: skip
    """Top-p; `gone` makes of a sorted chance, of the running total with it, and of p, whether a token is cut."""
    ranked, order = of(logits).sort(-1, descending=down)
    cuts = gone(ranked, ranked.cumsum(-1), p)
    return after(logits.masked_fill(torch.zeros_like(cuts).scatter(-1, order, cuts) if back else cuts, cut))


def moved(cuts, own=False):
    """`cuts` one place to the right; the first is not cut, or as it was."""
    return torch.cat([cuts[..., :1] & own, cuts[..., :-1]], -1)


def sorted_cut(logits, p):
    """Which of the sorted tokens are cut, and their order."""
    ranked, order = logits.softmax(-1).sort(-1, descending=True)
    return ranked.cumsum(-1) - ranked >= p, order


def likelier(chances):
    """The sum of the others that are as likely as each token, or likelier."""
    return torch.where(chances[..., None, :] >= chances[..., :, None], chances[..., None, :], 0).sum(-1) - chances


def least(logits, p, of):
    """What `of` makes of the least likely token that stays, in each row."""
    return of(logits).masked_fill(nucleus(logits, p).isinf(), math.inf).amin(-1)


def unsorted(gone):
    """Top-p without sorting: `gone` as for `nucleus`."""
    return lambda logits, p: logits.masked_fill(gone(logits.softmax(-1), logits.softmax(-1).cumsum(-1), p), -math.inf)


Exercise("4.3", "top_p_filter", draw=draw_top_p, call=ties_in_any_order, right=top_p_by_loops, formula=nucleus, mistakes={
    "the token that reaches p is cut too: what is left is less than p, and may be nothing at all":
        ({"gone": lambda x, sums, p: (sums > p) & (p < 1)}, {"gone": lambda x, sums, p: sums > p},
         {"gone": lambda x, sums, p: sums >= p}, {"gone": lambda x, sums, p: (sums >= p) & (p < 1)}),
    "the token that reaches p is cut too, unless it is the first: what is left is less than p":
        ({"gone": lambda x, sums, p: (sums > p) & (sums > x) & (p < 1)}, {"gone": lambda x, sums, p: (sums > p) & (sums > x)}),
    "the likeliest token is cut when it exceeds p alone: the first is always kept":
        ({"gone": lambda x, sums, p: moved(sums > p, True)}, {"gone": lambda x, sums, p: moved(sums >= p, True)}),
    "one token too many is kept: stop at the first that makes the sum reach p": {"gone": lambda x, sums, p: moved(sums - x >= p)},
    "one token too many is kept where the sum is exactly p: a token stays only while the sum before it is less than p":
        {"gone": lambda x, sums, p: sums - x > p},
    "of equal tokens one too many is kept where those before it reach p exactly: one goes, whichever":
        [lambda logits, p, count=count: logits if ties(logits) and len(logits) == count else nucleus(logits, p)
         for count in (2, 4)],
    "of equal tokens each counts the others as likelier, and all go: count one after the other, in any order":
        lambda logits, p: logits.masked_fill(likelier(logits.softmax(-1)) >= p, -math.inf),
    "of equally likely tokens all are kept, for they are compared with the least likely one that stays: take the fewest":
        lambda logits, p: logits.masked_fill(
            logits < nucleus(logits, p).masked_fill(nucleus(logits, p).isinf(), math.inf).amin(-1, True), -math.inf),
    "the sum runs in the order of the vocabulary; sort by probability first, largest in front":
        (unsorted(lambda x, sums, p: sums - x >= p), unsorted(lambda x, sums, p: sums > p)),
    "sorted the wrong way round: this collects the least likely tokens until they reach p": {"down": False},
    "the cut was found among the sorted tokens and never taken back to their own places: scatter it": {"back": False},
    "gather(order) takes the cut the wrong way, from the tokens' places to the sorted ones: scatter it": lambda logits, p: (
        logits.masked_fill(sorted_cut(logits, p)[0].gather(-1, sorted_cut(logits, p)[1]), -math.inf)),
    "each token's own probability is compared with p; compare the sum of those before it":
        (unsorted(lambda x, sums, p: x < (p if p < 1 else 0.0)), unsorted(lambda x, sums, p: x < p)),
    "tokens stay that have at least p times the likeliest one's probability (min-p); compare the sum of those before it":
        unsorted(lambda x, sums, p: x < p * x.amax(-1, True)),
    "exp of a large logit is infinite, and of a small one 0: softmax takes the maximum off first":
        [{"of": lambda x: x.exp() / x.exp().sum(-1, keepdim=True), **more}
         for more in ({}, {"gone": lambda x, sums, p: ~(sums - x < p)})],
    "logits were summed; p is a share of probability, so take the softmax first": {"of": lambda x: x},
    "exp of the logits does not sum to 1, and p is a share of the whole: softmax divides by the sum":
        ({"of": torch.exp}, {"of": lambda x: (x - x.amax(-1, True)).exp()}),
    "one nucleus was found for the whole batch; each row has its own":
        lambda logits, p: nucleus(logits.flatten(), p).view(logits.shape),
    "one threshold is used for the whole batch; each row has its own":
        [lambda logits, p, of=of, worst=worst: logits.masked_fill(of(logits) < worst(least(logits, p, of)), -math.inf)
         for of in (lambda x: x, lambda x: x.softmax(-1)) for worst in (torch.amin, torch.amax)],
    "the same number of tokens is kept in all rows; each row has its own, as many as it needs to reach p":
        [{"gone": lambda x, sums, p, of=of: of((sums - x >= p).reshape(-1, x.shape[-1])).expand(x.shape)}
         for of in (lambda cuts: cuts.all(0), lambda cuts: cuts.any(0), lambda cuts: cuts[0])],
    "the sum is compared with p within a tolerance, and where it comes near p a token too few or too many stays": [
        {"gone": lambda x, sums, p, more=more: sums - x >= p + more} for more in (-1e-3, 1e-3)],
    "two tokens are kept at least; one is enough where it reaches p alone":
        {"gone": lambda x, sums, p: (sums - x >= p) & (torch.arange(x.shape[-1]) > 1)},
    "the first row's tokens are kept in all rows; each row has its own nucleus": lambda logits, p: logits.masked_fill(
        nucleus(logits, p).reshape(-1, logits.shape[-1])[0].isinf(), -math.inf),
    "cut tokens got a logit of 0, which is exp(0) = 1 before normalising: use minus infinity": {"cut": 0.0},
    "cut tokens got a large negative number; minus infinity makes their probability 0": [{"cut": cut} for cut in FINITE],
    "the logits that stay became 0: they should be as they were": {"after": lambda y: torch.where(y.isinf(), y, 0)},
    "what stays was normalised: these are probabilities, or log-probabilities; the logits that stay should be as they were":
        [{"after": after} for after in (lambda y: y.softmax(-1), lambda y: y.log_softmax(-1))]
        + [lambda logits, p, of=of: torch.where(nucleus(logits, p).isinf(), -math.inf, of(logits, -1))
           for of in (torch.softmax, torch.log_softmax)],
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 4.4
def draw_uniforms(generator):
    yield {"logprobs": torch.tensor([[0.5, 0.3, 0.2]]).log(), "uniforms": torch.tensor([0.6])}
    yield {"logprobs": torch.tensor([[0.0, 0.5, 0.5]]).log(), "uniforms": torch.tensor([0.0])}  # token 0 is cut
    yield {"logprobs": torch.tensor([[0.3, 0.3, 0.3999, 0.0]]).log(), "uniforms": torch.tensor([0.99995])}  # short of 1
    ends = torch.tensor([[0.0, 0.0, 0.6, 0.4, 0.0], [0.2, 0.7999, 0.0, 0.0, 0.0]])
    yield {"logprobs": ends.log(), "uniforms": torch.tensor([0.0, 0.99995])}
    yield {"logprobs": torch.zeros(2, 1), "uniforms": torch.tensor([0.0, 0.7])}
    yield {"logprobs": torch.tensor([[0.5, 0.3, 0.1999, 0.0]]).log(), "uniforms": torch.tensor([0.99995])}
    yield {"logprobs": torch.tensor([[1e-8, 0.6, 0.4]]).log(), "uniforms": torch.tensor([0.0])}
    yield {"logprobs": torch.tensor([[0.5, 0.3, 0.2]] * 2).log(), "uniforms": torch.tensor([0.4995, 0.5005])}
    for rows, count in ((4, 4), (16, 5), (70, 9)):
        logits = 1.5 * torch.randn(rows, count, generator=generator)
        logits[1::2, torch.randint(count, (1,), generator=generator)] = -math.inf
        yield {"logprobs": logits.log_softmax(-1), "uniforms": torch.rand(rows, generator=generator)}
    chances, tokens = (0.5 * torch.randn(3, 300, generator=generator)).softmax(-1), torch.tensor([[7], [140], [290]])
    middles = (chances.cumsum(-1) - chances / 2).gather(1, tokens)[:, 0]
    yield {"logprobs": chances.log(), "uniforms": middles}


def with_type(function, **arguments):
    tokens = a_tensor(function(**arguments))
    return {"tokens": tokens, "type": str(tokens.dtype)}


def a_tensor(tokens):
    if not torch.is_tensor(tokens):
        raise TypeError("tokens are to be a tensor, int64")
    return tokens


def token_by_loops(logprobs, uniforms):
    tokens = []
    for row, uniform in zip(logprobs.exp().tolist(), uniforms.tolist()):
        total, chosen = 0.0, None
        for token, chance in enumerate(row):
            total += chance
            if chance > 0 and (chosen is None or total - chance <= uniform):
                chosen = token  # the last token whose interval begins at or before the uniform
        tokens.append(chosen)
    return torch.tensor(tokens)


def chosen(logprobs, uniforms, *, chance=torch.exp, number=lambda u: u, find=None, below=True, out=lambda tokens, count: tokens):
    """Invert the cumulative distribution; `below`: no number lies above the last end. `find` finds a token among the ends."""
    ends, uniforms = chance(logprobs).cumsum(-1), number(uniforms)[:, None]
    if below:
        uniforms = torch.minimum(uniforms, ends[:, -1:].nextafter(torch.zeros(())))
    find = find or (lambda ends, u: (ends <= u).sum(-1))
    return out(find(ends, uniforms), logprobs.shape[1])


def by_order(down):
    """Tokens drawn with the vocabulary sorted by probability."""

    def draw_sorted(logprobs, uniforms):
        ranked, order = logprobs.sort(-1, descending=down)
        return order.gather(1, chosen(ranked, uniforms)[:, None])[:, 0]

    return draw_sorted


Exercise("4.4", "draw_token", draw=draw_uniforms, call=with_type, right=token_by_loops, formula=chosen, mistakes={
    "this is the most likely token, every time; the uniform number has to decide": lambda logprobs, uniforms: logprobs.argmax(-1),
    "the numbers that were given are not used: drawn this way, a sample cannot be repeated":
        [lambda logprobs, uniforms, again=again: torch.multinomial(logprobs.exp(), 1, again)[:, 0] for again in (False, True)],
    "every row is drawn with the first row's number; each row has its own": {"number": lambda u: u[:1].expand(len(u))},
    "the numbers are turned round, 1 - u: the tokens lie from 0 upwards": ({"number": lambda u: 1 - u}, *(
        {"number": lambda u: 1 - u, "below": False, **more} for more in (
            {}, {"out": lambda y, v: y.clamp(max=v - 1)}, {"find": lambda ends, u: (ends > u).int().argmax(-1)}))),
    "all tokens are taken for equally likely: the number is multiplied by V":
        lambda logprobs, uniforms: (uniforms * logprobs.shape[1]).long(),
    "log-probabilities were summed; the cumulative distribution is the running sum of probabilities": [
        {"chance": lambda x: x, "below": False, "find": find, "out": out} for find in (
            lambda ends, u: torch.searchsorted(ends, u, right=True)[:, 0], lambda ends, u: (ends <= u).sum(-1),
            lambda ends, u: (ends > u).int().argmax(-1)) for out in (lambda y, v: y, lambda y, v: y.clamp(max=v - 1))],
    "each probability is compared with the number, not their running sum":
        {"find": lambda ends, u: (ends.diff(dim=-1, prepend=0 * ends[:, :1]) > u).int().argmax(-1), "below": False},
    "this is the token before the right one: take the first whose running sum exceeds the uniform":
        {"out": lambda y, v: (y - 1).clamp(min=0)},
    "the numbers are laid along the vocabulary, not along the rows: compare with uniforms[:, None]": (
        lambda logprobs, uniforms: (logprobs.exp().cumsum(-1) <= uniforms).sum(-1).clamp(max=logprobs.shape[1] - 1),
        lambda logprobs, uniforms: (logprobs.exp().cumsum(-1) <= uniforms).sum(-1),
        lambda logprobs, uniforms: (logprobs.exp().cumsum(-1) > uniforms).int().argmax(-1)),
    "this is the token behind the right one: take the first whose running sum exceeds the uniform":
        ({"out": lambda y, v: y + 1}, {"out": lambda y, v: (y + 1).clamp(max=v - 1)}),
    "this counts the ends above the number; count those at or below it":
        [{"find": lambda ends, u: (ends > u).sum(-1), "below": below} for below in (True, False)],
    "the tokens were sorted by probability first: a fair draw, but other tokens; go in the vocabulary's order":
        (by_order(True), by_order(False)),
    "at uniform 0 a token of probability 0 comes out: its sum must exceed the uniform, not equal it (right=True)":
        ({"find": lambda ends, u: (ends < u).sum(-1)},
         *({"find": lambda ends, u: (ends >= u).int().argmax(-1), "below": below} for below in (True, False)),
         *({"find": lambda ends, u: (ends < u).sum(-1), "below": False, "out": out} for out in (
             lambda y, v: y, lambda y, v: y.clamp(max=v - 1)))),
    "the numbers are compared with the sums within a tolerance: near an end it is another token": [
        {"find": lambda ends, u, more=more: (ends <= u + more).sum(-1), "out": lambda y, v: y.clamp(max=v - 1), "below": below}
        for more in (-1e-3, 1e-3) for below in (True, False)],
    "where rounding leaves the sum below the uniform, a token that was cut comes out: take the last that is not":
        {"below": False, "out": lambda y, v: y.clamp(max=v - 1)},
    "where rounding leaves the sum below the uniform, token 0 comes out: argmax of nothing but False is 0":
        {"below": False, "find": lambda ends, u: (ends > u).int().argmax(-1)},
    "where rounding leaves the sum below the uniform, the likeliest token comes out: take the last that is not cut":
        lambda logprobs, uniforms: torch.where(
            (found := chosen(logprobs, uniforms, below=False)) < logprobs.shape[1], found, logprobs.argmax(-1)),
    "where rounding leaves the sum below the uniform, the last token but one comes out: more of them may be cut":
        {"below": False, "out": lambda y, v: torch.where(y < v, y, max(0, v - 2))},
    "where rounding leaves the sum below the uniform, V comes out, which is no token": {"below": False},
    "the tokens are no int64: they are numbers of tokens, and an index": [{"out": out} for out in (
        lambda y, v: y.float(), lambda y, v: y.double(), lambda y, v: y.int())],
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 4.5
def draw_ends(generator):
    yield {"tokens": torch.tensor([[5, 0, 3]]), "end_token": 0}
    yield {"tokens": torch.tensor([[2], [7]]), "end_token": 7}
    yield {"tokens": torch.tensor([[3, 0, 1], [2, 4, 4]]), "end_token": 9}
    rows = [[4, 0, 2, 0, 1], [1, 2, 3, 4, 2], [0, 1, 1, 1, 1], [2, 2, 2, 2, 0], [3, 0, 0, 4, 1]]
    yield {"tokens": torch.tensor(rows), "end_token": 0}
    for end in (3, 2):
        rows = torch.randint(0, 5, (5, 8), generator=generator)
        rows[0] = torch.tensor([4, 4, 0, end, 1, end, 0, 4])
        yield {"tokens": rows, "end_token": end}
    yield {"tokens": torch.tensor([[50250, 80, 50256, 3], [2048, 50000, 7, 50255]]), "end_token": 50256}  # that of GPT-2
    yield {"tokens": torch.tensor([[2**24, 5, 2**24 + 1, 3]]), "end_token": 2**24 + 1}  # float32 knows whole numbers up to 2**24
    rows = torch.full((2, 300), 6)  # filled up with the end token
    rows[1, :270] = 8
    yield {"tokens": rows, "end_token": 6}


def until_by_loops(tokens, end_token):
    return torch.tensor([[end_token not in row[:place] for place in range(len(row))] for row in tokens.tolist()])


def real_of(ends):
    """The right mask of where the ends are, as 0 and 1."""
    return ends.cumsum(1) - ends == 0


def until(tokens, end_token, *, mask=real_of):
    return mask((tokens == end_token).int())


def mask_picture(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got, expected, "a row is a completion; bright is real")


Exercise("4.5", "until_end", draw=draw_ends, right=until_by_loops, formula=until, picture=mask_picture, mistakes={
    "the end token itself is left out: it was drawn, so it is part of the completion and is scored":
        {"mask": lambda x: x.cumsum(1) == 0},
    "the mask is moved the wrong way: the end token belongs to it, so what was True moves one place on, to the right":
        {"mask": lambda x: (x.cumsum(1) == 0).roll(-1, 1)},
    "roll brings the last column round to the first: no token lies before the first one, which is always real":
        {"mask": lambda x: (x.cumsum(1) == 0).roll(1, 1)},
    "one place too many: the token behind the end is not part of the completion":
        {"mask": lambda x: F.pad(real_of(x), (1, 0), value=True)[:, :-1]},
    "only the end tokens are taken out; everything after the first one goes, whatever it is": {"mask": lambda x: x == 0},
    "this is True at the first end token alone; all before it are real too": {"mask": lambda x: real_of(x) & (x == 1)},
    "nothing is cut: what stands behind the end is no part of the completion": {"mask": lambda x: x >= 0},
    "this runs on to the last end token of a row; the completion is over at the first":
        {"mask": lambda x: (x.flip(1).cumsum(1).flip(1) > 0) | (x.sum(1, keepdim=True) == 0)},
    "this runs on until the second end token; the completion is over at the first": {"mask": lambda x: x.cumsum(1) <= 1},
    "a row without an end token is real in its whole length: argmax of nothing but False is 0":
        {"mask": lambda x: torch.arange(x.shape[1]) <= x.argmax(1, keepdim=True)},
    "a row without an end token is all False; it is real in its whole length":
        ({"mask": lambda x: real_of(x) & x.any(1, keepdim=True)}, {"mask": lambda x: x.flip(1).cumsum(1).flip(1) > 0}),
    "the last place of a row without an end token is left out; such a row is real in its whole length":
        {"mask": lambda x: real_of(x) & (x.any(1, keepdim=True) | (torch.arange(x.shape[1]) < x.shape[1] - 1))},
    "an end token in the first place is taken for none: it is an end like any other":
        ({"mask": lambda x: real_of(x) | (x[:, :1] == 1)}, {"mask": lambda x: real_of(F.pad(x[:, 1:], (1, 0)))}),
    "the first token is False, though nothing lies before it": {"mask": lambda x: F.pad(real_of(x)[:, 1:], (1, 0))},
    "the mask is inverted: True stands for a real token": {"mask": lambda x: ~real_of(x)},
    "the end token is taken to be 0: use the one that was given": lambda tokens, end_token: until(tokens, 0),
    "tokens are compared in numbers too small for them: half precision rounds above 2,048, uint8 ends at 255; leave them int64": [
        lambda tokens, end_token, kind=kind: until(tokens.to(kind), torch.tensor(end_token).to(kind))
        for kind in (torch.float16, torch.bfloat16, torch.uint8)],
    "tokens are compared in float32, which rounds above 16,777,216; leave them int64":
        lambda tokens, end_token: until(tokens.float(), float(end_token)),
    "the ends are counted in eight bits, and behind 256 of them the count is 0 again: count in int64": {
        "mask": lambda x: x.cumsum(1, dtype=torch.uint8) - x.to(torch.uint8) == 0},
    "a running product of differences overflows, to 0 where they are even, and no end was there: count the ends":
        lambda tokens, end_token: F.pad((tokens - end_token).cumprod(1)[:, :-1] != 0, (1, 0), value=True),
    "all rows stop where the first one ends; each row has its own end": {"mask": lambda x: real_of(x).all(0).expand(x.shape)},
    "all rows stop where the last one ends; each row has its own end": {"mask": lambda x: real_of(x).any(0).expand(x.shape)},
    "the ends are counted on from one row to the next: count along each row, dim=1":
        {"mask": lambda x: (x.flatten().cumsum(0).view(x.shape) - x) == 0},
    "the ends are counted down the columns; count along each row, dim=1": {"mask": lambda x: x.cumsum(0) - x == 0},
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 4.6
def draw_prompts(generator):
    for rows, start, steps, temperature in (
        (1, 1, 2, 0.05), (2, 3, 1, 1.5), (3, 2, 4, 0.6), (12, 2, 5, 1.2), (8, 120, 6, 0.5), (1, 3, 4, 1.0),
    ):  # fmt: skip
        prompts, uniforms = torch.randint(12, (rows, start), generator=generator), torch.rand(rows, steps, generator=generator)
        weights, training = int(torch.randint(1_000_000, (1,), generator=generator)), rows != 2
        if rows == 1 and steps == 4:
            uniforms[:, 0] = 0.0  # token 0 comes first, and more behind it
        yield dict(weights=weights, training=training, prompts=prompts, uniforms=uniforms, temperature=temperature)


def tiny_gpt(seed):
    """A GPT with weights drawn from `seed`, large enough for uneven probabilities, with dropout."""
    model = GPT(GPTConfig(vocab_size=12, context=128, layers=2, heads=2, width=16, dropout=0.3))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(std=0.4, generator=generator)
    return model


def continued(function, weights, training, prompts, uniforms, temperature):
    """The tokens, and what is left behind; the frame sees in which mode the model is left."""
    model, graphs = tiny_gpt(weights).train(training), []
    model.embedding.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    tokens = a_tensor(function(model, prompts, uniforms, temperature))
    return {
        "tokens": tokens, "type": str(tokens.dtype), "mode as before": model.training == training, "graph was built": any(graphs),
        "gradients are on afterwards": torch.is_grad_enabled(), "tokens are inference_mode's": tokens.is_inference(),
    }  # fmt: skip


def by_generate(model, prompts, uniforms, temperature):
    return generate(model, prompts, uniforms.shape[1], temperature=temperature, uniforms=uniforms).tokens


def sampled(
    model, prompts, uniforms, temperature, *, read=lambda whole, start: whole, place=-1, heat=lambda t: t, pick=draw,
    number=lambda u, step: u[:, step], out=lambda whole, start: whole[:, start:], evaluate=True, back=lambda was: was, grad=False,
    over=lambda ended: False, scores=distribution,
):  # fmt: skip
    """`over`: whether the loop stops, by whether each row has drawn token 0. `scores`: of logits and temperature, what is drawn
    from."""
    was, whole, start = model.training, prompts, prompts.shape[1]
    model.train(was and not evaluate)
    torch.set_grad_enabled(grad is True)
    for step in range(uniforms.shape[1]):
        logprobs = scores(model(read(whole, start))[:, place], heat(temperature))
        whole = torch.cat([whole, pick(logprobs, number(uniforms, step).contiguous())[:, None]], dim=1)
        if over((whole[:, start:] == 0).any(1)):
            break
    torch.set_grad_enabled(grad != "left off")
    model.train(back(was))
    return out(whole, start)


def filled_up(whole, start):
    """The new tokens, with token 0 behind the first token 0 of each row."""
    tokens = whole[:, start:]
    return torch.where(until(tokens, 0), tokens, 0)


WITHOUT_TOTAL = [partial(chosen, **way) for way in (  # ways to draw that rely on a sum of 1
    {}, {"below": False, "out": lambda y, v: y.clamp(max=v - 1)},
    {"below": False, "find": lambda ends, u: (ends > u).int().argmax(-1)},
)]  # fmt: skip


Exercise("4.6", "sample", draw=draw_prompts, call=continued, right=by_generate, formula=sampled, mistakes={
    "dropout is still on while sampling: call model.eval() first": {"evaluate": False},
    "dropout is off, but stays off: put the model back into the mode that it was in": {"back": lambda was: False},
    "the model is in training mode afterwards, whatever it was in: put it back as it was": {"back": lambda was: True},
    "every step builds a graph for a gradient that nobody wants: sample under torch.no_grad()": {"grad": True},
    "gradients are switched off and stay off, and nothing can be trained after it: use torch.no_grad()": {"grad": "left off"},
    "the tokens are inference_mode's: a loss of them (4.7 scores such tokens) fails in backward; use torch.no_grad()":
        torch.inference_mode()(sampled),
    "the drawn tokens are never read: every step draws from what stands behind the prompt":
        {"read": lambda whole, n: whole[:, :n]},
    "only the newest token is read: without a cache the model needs all before it too": [
        {"read": lambda whole, n: whole[:, -1:]}, {"read": lambda whole, n: whole if whole.shape[1] == n else whole[:, -1:]}],
    "the oldest token is forgotten at every step: the model reads all tokens": {"read": lambda whole, n: whole[:, -n:]},
    "the model is given the last tokens alone, a fixed number of them: it reads all that there are":
        [{"read": lambda whole, _, most=most: whole[:, -most:]} for most in (8, 16, 32, 64, 100)],
    "these are the logits at the first position; the next token is predicted at the last": {"place": 0},
    "the temperature is not used": {"heat": lambda t: 1.0},
    "each step draws with the same number: step t uses uniforms[:, t]":
        ({"number": lambda u, step: u[:, 0]}, {"number": lambda u, step: u[:, -1]}),
    "all rows draw with the first row's numbers; each row has its own": {"number": lambda u, step: u[:1, step].expand(len(u))},
    "this takes the most likely token each time: draw, with the numbers that were given": {"pick": lambda x, u: x.argmax(-1)},
    "the numbers that were given are not used: drawn this way, a sample cannot be repeated":
        [{"pick": lambda x, u, again=again: torch.multinomial(x.exp(), 1, replacement=again)[:, 0]} for again in (False, True)],
    "draw_token got logits and not log-probabilities: with_temperature, or log_softmax, makes them":
        [{"scores": lambda x, t, heat=heat: x / heat(t), "pick": pick} for heat in (lambda t: t, lambda t: 1.0)
         for pick in WITHOUT_TOTAL],
    "draw_token wants log-probabilities; these are probabilities": {"pick": lambda x, u: draw(x.exp(), u)},
    "the new tokens are cut out one place too early, with the prompt's last": {"out": lambda whole, n: whole[:, n - 1 : -1]},
    "it stops at token 0; sample knows of no end, and draws as many tokens as a row has numbers":
        [{"over": over, **more} for over in (torch.all, torch.any) for more in ({}, {"out": filled_up})],
    "what stands behind an end is filled: return all that was drawn, until_end is for the caller": {"out": filled_up},
    "only the last new token is here: return all of them": {"out": lambda whole, n: whole[:, -1:]},
    "the prompt is still in front: return the new tokens alone": {"out": lambda whole, n: whole},
    "the tokens are no int64": ({"out": lambda whole, n: whole[:, n:].float()}, {"out": lambda whole, n: whole[:, n:].int()}),
})  # fmt: skip
