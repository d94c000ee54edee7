"""Chapter 04: temperature, top-k and top-p, drawing a token, the loop, scoring what was drawn, left padding, the KV cache."""

import math

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.sampling import distribution, draw, generate

ALL, FIRST, LAST = slice(None), slice(-1), slice(1, None)  # all places, the first ones (not the last), the last (not the first)
FINITE = (-1e3, -1e4, -1e5, -1e6, -1e8, -1e9, -1e10, -1e30, -3.4028234663852886e38)  # what people take for minus infinity


# ----------------------------------------------------------------------------------------- 4.1
def draw_logits(generator):
    yield {"logits": torch.tensor([0.0, 1.0]), "temperature": 0.5}
    for shape, temperature in (((2, 3), 2.0), ((4, 6), 0.7), ((2, 3, 5), 1.3)):
        yield {"logits": 2 * torch.randn(shape, generator=generator), "temperature": temperature}
    yield {"logits": torch.tensor([[0.0, -150.0], [410.0, 400.0]]), "temperature": 0.25}  # exp(-600) is 0, exp(1640) infinite
    for shape, temperature in (((1, 4), 1.0), ((2, 1, 3), 0.05), ((3, 4), 12.0)):
        yield {"logits": 2 * torch.randn(shape, generator=generator), "temperature": temperature}


def tempered(logits, temperature, *, heat=lambda x, t: x / t, normal=lambda x: x.log_softmax(-1), after=lambda y, t: y):
    return after(normal(heat(logits, temperature)), temperature)


def by_distribution(logits, temperature):
    return torch.distributions.Categorical(logits=logits.double() / temperature).logits.float()


Exercise("4.1", "with_temperature", draw=draw_logits, right=by_distribution, formula=tempered, mistakes={
    "the temperature is upside down: divide the logits by it, so that a low one sharpens": {"heat": lambda x, t: x * t},
    "the temperature is not used": {"heat": lambda x, t: x},
    "temperatures below 1 are raised to 1": {"heat": lambda x, t: x / max(t, 1)},
    "the log-probabilities were divided after log_softmax and no longer sum to 1: divide the logits before":
        {"heat": lambda x, t: x, "after": lambda y, t: y / t},
    "these are still logits: after the division, log_softmax makes log-probabilities of them": {"normal": lambda x: x},
    "the maximum is taken off, but not the logarithm of the sum": {"normal": lambda x: x - x.amax(-1, True)},
    "these are probabilities; return their logarithms": {"normal": lambda x: x.softmax(-1)},
    "these are probabilities to a power, which no longer sum to 1: divide the logits before":
        {"heat": lambda x, t: x, "normal": lambda x: x.softmax(-1), "after": lambda y, t: y ** (1 / t)},
    "the softmax runs over the wrong dimension: the vocabulary is the last one, dim=-1": {"normal": lambda x: x.log_softmax(0)},
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


def ties_either_way(function, logits, k):
    """What comes back; where the k-th largest has equals, k tokens may stay, or all the equal ones: then they all do."""
    out = function(logits=logits, k=k)
    if logits.dim() == 1 and k < len(logits) and torch.is_tensor(out) and out.shape == logits.shape:
        edge = logits.sort(descending=True).values[k - 1]
        tied = logits == edge
        if tied.sum() > 1 and (out == edge)[tied].sum() == k - (logits > edge).sum():
            return torch.where(tied, edge, out)
    return out


def top_k_by_counting(logits, k):
    rows = logits.reshape(-1, logits.shape[-1]).tolist()
    kept = [[x if sum(other > x for other in row) < k else -math.inf for x in row] for row in rows]
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


Exercise("4.2", "top_k_filter", draw=draw_top_k, call=ties_either_way, right=top_k_by_counting, formula=best, mistakes={
    "cut tokens got a logit of 0, which is exp(0) = 1 before normalising: use minus infinity": {"cut": 0.0},
    "cut tokens got a large negative number; minus infinity makes their probability 0": [{"cut": cut} for cut in FINITE],
    "the logits that stay became 0: they should be as they were": {"after": lambda y: torch.where(y.isinf(), y, 0)},
    "this keeps the k least likely tokens; keep the most likely": {"of": lambda x: -x},
    "the k least likely tokens are cut; the k most likely should stay": {"count": lambda k, v: v - k},
    "this keeps the largest absolute values; the k largest logits stay": {"of": torch.abs},
    "k - 1 tokens are left: the k-th stays too, so cut what is below it, not what is equal to it":
        ({"count": lambda k, v: min(k, v) - 1}, lambda logits, k: logits.masked_fill(
            logits <= logits.topk(min(k, logits.shape[-1])).values[..., -1:], -math.inf)),
    "k + 1 tokens are left: the first k of the sorted ones have places 0 to k - 1": {"count": lambda k, v: k + 1},
    "one threshold is used for the whole batch; each row has its own k-th largest logit":
        (lambda logits, k: best(logits.flatten(), k).reshape(logits.shape),
         below(lambda x, k: x.topk(k).values[..., -1].min()), below(lambda x, k: x.topk(k).values[..., -1].max())),
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
    for *shape, p in ((2, 5, 0.05), (3, 6, 0.5), (4, 9, 0.9), (2, 2, 4, 0.7), (2, 4, 1.0), (1, 7, 0.6)):
        yield {"logits": 1.5 * torch.randn(shape, generator=generator), "p": p}
    yield {"logits": torch.tensor([[200.0, 201.0, 100.0], [-300.0, -299.0, -300.5]]), "p": 0.8}  # exp would be infinite, or 0
    for count, p in ((3, 0.5), (4, 0.75)):
        yield {"logits": torch.full((count,), 1.5), "p": p}


def ties_in_any_order(function, logits, p):
    """What comes back; where all tokens are equally likely it is sorted, since nobody says which of them stay."""
    out = function(logits, p)
    return out.sort(-1).values if logits.max() == logits.min() else out


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


def unsorted(gone):
    """Top-p without sorting: `gone` as for `nucleus`."""
    return lambda logits, p: logits.masked_fill(gone(logits.softmax(-1), logits.softmax(-1).cumsum(-1), p), -math.inf)


Exercise("4.3", "top_p_filter", draw=draw_top_p, call=ties_in_any_order, right=top_p_by_loops, formula=nucleus, mistakes={
    "the token that reaches p is cut too: what is left is less than p, and may be nothing at all":
        ({"gone": lambda x, sums, p: (sums > p) & (p < 1)}, {"gone": lambda x, sums, p: sums > p}),
    "the token that reaches p is cut too, unless it is the first: what is left is less than p":
        ({"gone": lambda x, sums, p: (sums > p) & (sums > x) & (p < 1)}, {"gone": lambda x, sums, p: (sums > p) & (sums > x)}),
    "the likeliest token is cut when it exceeds p alone: the first is always kept":
        ({"gone": lambda x, sums, p: moved(sums > p, True)}, {"gone": lambda x, sums, p: moved(sums >= p, True)}),
    "one token too many is kept: stop at the first that makes the sum reach p": {"gone": lambda x, sums, p: moved(sums - x >= p)},
    "one token too many is kept where the sum is exactly p: it has reached p then, so >= p":
        {"gone": lambda x, sums, p: sums - x > p},
    "of equally likely tokens all are kept, for they are compared with the least likely one that stays: take the fewest":
        lambda logits, p: logits.masked_fill(
            logits < nucleus(logits, p).masked_fill(nucleus(logits, p).isinf(), math.inf).amin(-1, True), -math.inf),
    "the sum runs in the order of the vocabulary; sort by probability first, largest in front":
        (unsorted(lambda x, sums, p: sums - x >= p), unsorted(lambda x, sums, p: sums > p)),
    "sorted the wrong way round: this collects the least likely tokens until they reach p": {"down": False},
    "the cut was found among the sorted tokens and never taken back to their own places: scatter it": {"back": False},
    "each token's own probability is compared with p; compare the sum of those before it":
        (unsorted(lambda x, sums, p: x < (p if p < 1 else 0.0)), unsorted(lambda x, sums, p: x < p)),
    "tokens stay that have at least p times the likeliest one's probability (min-p); compare the sum of those before it":
        unsorted(lambda x, sums, p: x < p * x.amax(-1, True)),
    "exp of a large logit is infinite, and of a small one 0: softmax takes the maximum off first":
        {"of": lambda x: x.exp() / x.exp().sum(-1, keepdim=True)},
    "logits were summed; p is a share of probability, so take the softmax first": {"of": lambda x: x},
    "one nucleus was found for the whole batch; each row has its own":
        lambda logits, p: nucleus(logits.flatten(), p).view(logits.shape),
    "the first row's tokens are kept in all rows; each row has its own nucleus": lambda logits, p: logits.masked_fill(
        nucleus(logits, p).reshape(-1, logits.shape[-1])[0].isinf(), -math.inf),
    "cut tokens got a logit of 0, which is exp(0) = 1 before normalising: use minus infinity": {"cut": 0.0},
    "cut tokens got a large negative number; minus infinity makes their probability 0": [{"cut": cut} for cut in FINITE],
    "the logits that stay became 0: they should be as they were": {"after": lambda y: torch.where(y.isinf(), y, 0)},
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
    for rows, count in ((4, 4), (16, 5), (32, 9)):
        logits = 1.5 * torch.randn(rows, count, generator=generator)
        logits[1::2, torch.randint(count, (1,), generator=generator)] = -math.inf
        yield {"logprobs": logits.log_softmax(-1), "uniforms": torch.rand(rows, generator=generator)}


def with_type(function, **arguments):
    tokens = function(**arguments)
    return {"tokens": tokens, "type": str(tokens.dtype)}


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
        lambda logprobs, uniforms: (logprobs.exp().cumsum(-1) <= uniforms).sum(-1)),
    "this is the token behind the right one: take the first whose running sum exceeds the uniform":
        ({"out": lambda y, v: y + 1}, {"out": lambda y, v: (y + 1).clamp(max=v - 1)}),
    "this counts the ends above the number; count those at or below it":
        [{"find": lambda ends, u: (ends > u).sum(-1), "below": below} for below in (True, False)],
    "the tokens were sorted by probability first: a fair draw, but other tokens; go in the vocabulary's order":
        (by_order(True), by_order(False)),
    "at uniform 0 a token of probability 0 comes out: its sum must exceed the uniform, not equal it (right=True)":
        ({"find": lambda ends, u: (ends < u).sum(-1)}, {"find": lambda ends, u: (ends >= u).int().argmax(-1)}),
    "where rounding leaves the sum below the uniform, a token that was cut comes out: take the last that is not":
        {"below": False, "out": lambda y, v: y.clamp(max=v - 1)},
    "where rounding leaves the sum below the uniform, token 0 comes out: argmax of nothing but False is 0":
        {"below": False, "find": lambda ends, u: (ends > u).int().argmax(-1)},
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
    yield {"tokens": torch.full((1, 300), 6), "end_token": 6}  # filled up with the end token


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
    "an end token in the first place is taken for none: it is an end like any other":
        ({"mask": lambda x: real_of(x) | (x[:, :1] == 1)}, {"mask": lambda x: real_of(F.pad(x[:, 1:], (1, 0)))}),
    "the first token is False, though nothing lies before it": {"mask": lambda x: F.pad(real_of(x)[:, 1:], (1, 0))},
    "the mask is inverted: True stands for a real token": {"mask": lambda x: ~real_of(x)},
    "the end token is taken to be 0: use the one that was given": lambda tokens, end_token: until(tokens, 0),
    "all rows stop where the first one ends; each row has its own end": {"mask": lambda x: real_of(x).all(0).expand(x.shape)},
    "all rows stop where the last one ends; each row has its own end": {"mask": lambda x: real_of(x).any(0).expand(x.shape)},
    "the ends are counted on from one row to the next: count along each row, dim=1":
        {"mask": lambda x: (x.flatten().cumsum(0).view(x.shape) - x) == 0},
    "the ends are counted down the columns; count along each row, dim=1": {"mask": lambda x: x.cumsum(0) - x == 0},
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 4.6
def draw_prompts(generator):
    for rows, start, steps, temperature in ((1, 1, 2, 0.7), (2, 3, 1, 1.5), (3, 2, 4, 0.6), (12, 2, 5, 1.2)):
        prompts, uniforms = torch.randint(12, (rows, start), generator=generator), torch.rand(rows, steps, generator=generator)
        weights, training = int(torch.randint(1_000_000, (1,), generator=generator)), rows != 2
        yield dict(weights=weights, training=training, prompts=prompts, uniforms=uniforms, temperature=temperature)


def tiny_gpt(seed):
    """A GPT with weights drawn from `seed`, large enough for uneven probabilities, with dropout."""
    model = GPT(GPTConfig(vocab_size=12, context=16, layers=2, heads=2, width=16, dropout=0.3))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(std=0.4, generator=generator)
    return model


def continued(function, weights, training, prompts, uniforms, temperature):
    """The tokens, and what is left behind; the frame sees in which mode the model is left."""
    model, graphs = tiny_gpt(weights).train(training), []
    model.embedding.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    tokens = function(model, prompts, uniforms, temperature)
    return {
        "tokens": tokens, "type": str(tokens.dtype), "mode as before": model.training == training, "graph was built": any(graphs),
        "gradients are on afterwards": torch.is_grad_enabled(),
    }  # fmt: skip


def by_generate(model, prompts, uniforms, temperature):
    return generate(model, prompts, uniforms.shape[1], temperature=temperature, uniforms=uniforms).tokens


def sampled(
    model, prompts, uniforms, temperature, *, read=lambda whole, start: whole, place=-1, heat=lambda t: t, pick=draw,
    number=lambda u, step: u[:, step], out=lambda whole, start: whole[:, start:], evaluate=True, back=lambda was: was, grad=False,
):  # fmt: skip
    was, whole, start = model.training, prompts, prompts.shape[1]
    model.train(was and not evaluate)
    torch.set_grad_enabled(grad is True)
    for step in range(uniforms.shape[1]):
        logprobs = distribution(model(read(whole, start))[:, place], heat(temperature))
        whole = torch.cat([whole, pick(logprobs, number(uniforms, step).contiguous())[:, None]], dim=1)
    torch.set_grad_enabled(grad != "left off")
    model.train(back(was))
    return out(whole, start)


Exercise("4.6", "sample", draw=draw_prompts, call=continued, right=by_generate, formula=sampled, mistakes={
    "dropout is still on while sampling: call model.eval() first": {"evaluate": False},
    "dropout is off, but stays off: put the model back into the mode that it was in": {"back": lambda was: False},
    "the model is in training mode afterwards, whatever it was in: put it back as it was": {"back": lambda was: True},
    "every step builds a graph for a gradient that nobody wants: sample under torch.no_grad()": {"grad": True},
    "gradients are switched off and stay off, and nothing can be trained after it: use torch.no_grad()": {"grad": "left off"},
    "the drawn tokens are never read: every step draws from what stands behind the prompt":
        {"read": lambda whole, n: whole[:, :n]},
    "only the newest token is read: without a cache the model needs all before it too": {"read": lambda whole, n: whole[:, -1:]},
    "the oldest token is forgotten at every step: the model reads all tokens": {"read": lambda whole, n: whole[:, -n:]},
    "these are the logits at the first position; the next token is predicted at the last": {"place": 0},
    "the temperature is not used": {"heat": lambda t: 1.0},
    "each step draws with the same number: step t uses uniforms[:, t]":
        ({"number": lambda u, step: u[:, 0]}, {"number": lambda u, step: u[:, -1]}),
    "all rows draw with the first row's numbers; each row has its own": {"number": lambda u, step: u[:1, step].expand(len(u))},
    "this takes the most likely token each time: draw, with the numbers that were given": {"pick": lambda x, u: x.argmax(-1)},
    "the numbers that were given are not used: drawn this way, a sample cannot be repeated":
        [{"pick": lambda x, u, again=again: torch.multinomial(x.exp(), 1, replacement=again)[:, 0]} for again in (False, True)],
    "the prompt is still in front: return the new tokens alone": {"out": lambda whole, n: whole},
    "the tokens are no int64": ({"out": lambda whole, n: whole[:, n:].float()}, {"out": lambda whole, n: whole[:, n:].int()}),
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 4.7
def draw_scored(generator):
    tokens, mask = torch.tensor([[0, 1]]), torch.tensor([[False, True]])
    yield {"logits": torch.tensor([[[0.0, 1.0], [2.0, 0.0]]]), "tokens": tokens, "mask": mask, "temperature": 1.0, "top_k": 0}
    far = torch.tensor([[[200.0, 0.0], [0.0, 200.0], [0.0, 0.0]]])
    yield {"logits": far, "tokens": torch.tensor([[0, 1, 0]]), "mask": far[..., 0] < 100, "temperature": 0.8, "top_k": 0}
    for rows, length, count, temperature, top_k in (
        (2, 5, 4, 1.0, 0), (2, 6, 5, 0.5, 0), (3, 7, 6, 0.7, 3), (4, 8, 7, 1.4, 2), (3, 5, 11, 0.9, 7),  # the last: k above S
    ):  # fmt: skip
        logits, places = 2 * torch.randn(rows, length, count, generator=generator), torch.arange(length)
        ends = torch.randint(4, length + 1, (rows, 1), generator=generator)
        ends[0], ends[1] = 4, length  # one row ends early, one goes on to the last position
        mask = (places >= 2) & (places < ends)
        tokens = torch.randint(count, (rows, length), generator=generator)  # prompt and filling: not among the top k
        choices = logits.topk(top_k or count).indices.roll(1, 1)  # (B, S, k): a sampler can only have drawn these
        picked = torch.randint(choices.shape[2], (rows, length, 1), generator=generator)
        tokens = torch.where(mask, choices.gather(2, picked)[:, :, 0], tokens)
        yield {"logits": logits, "tokens": tokens, "mask": mask, "temperature": temperature, "top_k": top_k}
    logits, tokens = 2 * torch.randn(3, 2, 5, generator=generator), torch.tensor([[0, 4], [2, 1], [3, 3]])
    mask = torch.tensor([[False, True], [False, True], [False, False]])
    yield {"logits": logits, "tokens": tokens, "mask": mask, "temperature": 0.8, "top_k": 0}  # prompts and answers of one token


def scores_and_gradient(function, logits, **others):
    """The log-probabilities, and the gradient of a sum in which each row has its own weight."""
    logits = logits.clone().requires_grad_()
    scores = function(logits, **others)
    (scores * torch.arange(1, len(logits) + 1)).sum().backward()
    return {"log-probabilities": scores, "gradient": logits.grad}


def score_by_loops(logits, tokens, mask, temperature, top_k):
    rows = []
    for scores, row, real in zip(logits, tokens.tolist(), mask.tolist()):
        total = 0 * scores.sum()
        for place in range(1, len(row)):
            if real[place]:
                before = (scores[place - 1].double() / temperature).exp()
                kept = before.sort(descending=True).values[: top_k or None]
                total = total + (before[row[place]] / kept.sum()).log().float()
        rows.append(total)
    return torch.stack(rows)


def score(
    logits, tokens, mask, temperature, top_k, *, said=FIRST, wanted=LAST, counted=LAST, scores=distribution,
    total=lambda x, m: torch.where(m, x, 0).sum(1),
):  # fmt: skip
    """`said`, `wanted`, `counted`: the places of logits, tokens, mask; `total` gets log-probabilities and mask, (B, S - 1)."""
    logprobs = scores(logits[:, said], temperature, top_k).gather(2, tokens[:, wanted, None])[:, :, 0]
    return total(logprobs, mask[:, counted])


def masked(change):
    """The score with another mask."""
    return lambda logits, tokens, mask, temperature, top_k: score(logits, tokens, change(mask), temperature, top_k)


Exercise("4.7", "sequence_logprob", draw=draw_scored, call=scores_and_gradient, right=score_by_loops, formula=score, mistakes={
    "logits and tokens are not shifted: the logits at t predict the token at t + 1": {"said": ALL, "wanted": ALL, "counted": ALL},
    "the shift goes the wrong way: the logits at position t predict the token at t + 1":
        ({"said": LAST, "wanted": FIRST, "counted": FIRST}, {"said": LAST, "wanted": FIRST}),
    "the mask is not shifted with the tokens: it is the target that must have been drawn, mask[:, 1:]": {"counted": FIRST},
    "the last token of each completion is never scored": masked(lambda m: m & F.pad(m[:, 1:], (0, 1))),
    "the prompt is scored too: only what the mask marks was drawn": masked(lambda m: m.flip(1).cumsum(1).flip(1) > 0),
    "what stands behind the end token is scored too: the mask says where the completion is over":
        masked(lambda m: m.cumsum(1) > 0),
    "the mask is not used: the prompt and what stands behind the end are scored too": masked(lambda m: m | True),
    "the mask is upside down: what was not drawn is scored": masked(lambda m: ~m),
    "minus infinity times a mask of 0 is NaN: torch.where(mask, logprobs, 0)": {"total": lambda x, m: (x * m).sum(1)},
    "scored at temperature 1, sampled at another: the logits are divided by the sampler's temperature here too":
        {"scores": lambda x, t, k: distribution(x, 1.0, k)},
    "the log-probabilities are divided by the temperature; divide the logits, before you normalise":
        {"scores": lambda x, t, k: distribution(x, 1.0, k) / t},
    "scored with the full softmax, sampled with top-k: cut the same tokens before you normalise":
        {"scores": lambda x, t, k: distribution(x, t, 0)},
    "one token too many is kept by top-k": {"scores": lambda x, t, k: distribution(x, t, k + 1 if k else 0)},
    "this is the mean over the tokens; the log-probability of a completion is the sum":
        ({"total": lambda x, m: torch.where(m, x, 0).sum(1) / m.sum(1)}, {"total": lambda x, m: torch.where(m, x, 0).mean(1)}),
    "log(softmax) turns a very small probability into log(0) = -inf: log_softmax does both at once":
        {"scores": lambda x, t, k: distribution(x, t, k).exp().log()},
    "something keeps the probability away from 0, and caps what an unlikely token gets; log_softmax needs no help":
        [{"scores": change} for eps in (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12) for change in (
            lambda x, t, k, eps=eps: (distribution(x, t, k).exp() + eps).log(),
            lambda x, t, k, eps=eps: distribution(x, t, k).exp().clamp(min=eps).log())],
    "raw logits are not log-probabilities: put them through log_softmax first": {"scores": lambda x, t, k: x / t},
    "the softmax runs over the positions; the vocabulary is the last dimension":
        {"scores": lambda x, t, k: (x / t).log_softmax(1)},
    "these are sums of probabilities; add up their logarithms": {"total": lambda x, m: torch.where(m, x, -math.inf).exp().sum(1)},
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 4.8
def draw_padding(generator):
    yield {"real": torch.tensor([[False, True, True]])}
    yield {"real": torch.tensor([[True]])}
    for rows, length in ((3, 4), (4, 6), (2, 5)):
        padding = torch.randint(0, length, (rows, 1), generator=generator)
        padding[-1], padding[0], padding[1] = length - 1, 0, 2  # of one token, of full length, of two tokens less
        yield {"real": torch.arange(length) >= padding}


def as_far_as_real(function, real):
    """Positions and mask, as far as real tokens go; and how many rows of the mask are empty, padding included."""
    positions, attend = function(real)
    return {
        "positions": torch.where(real, positions, 0), "type of positions": str(positions.dtype),
        "mask": attend & real[:, :, None], "rows with nothing to look at": (~attend.any(-1)).sum(),
    }  # fmt: skip


def padding_by_loops(real):
    B, T = real.shape
    padding = [T - int(row.sum()) for row in real]
    positions = torch.tensor([[max(0, query - padding[row]) for query in range(T)] for row in range(B)])
    looks = [[[n <= key <= query or key == query for key in range(T)] for query in range(T)] for n in padding]
    return positions, torch.tensor(looks)


def padded(
    real, *, count=lambda real: (real.cumsum(1) - 1).clamp(min=0), before=torch.tril, seen=lambda real: real[:, None, :],
    itself=True, out=lambda attend: attend,
):  # fmt: skip
    T = real.shape[1]
    attend = before(torch.ones(T, T, dtype=torch.bool)) & seen(real)
    return count(real), out(attend | torch.eye(T, dtype=torch.bool) if itself is True else attend)


def padding_picture(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got["mask"][-1], expected["mask"][-1], "last prompt: row looks at column (real rows)")


Exercise("4.8", "left_padding", draw=draw_padding, call=as_far_as_real, right=padding_by_loops, formula=padded,
    picture=padding_picture, mistakes={
    "there is no causal mask: a token may look at itself and at what comes before it, when sampling too": {"before": lambda x: x},
    "the triangle reaches one too far: each token sees the next": {"before": lambda x: x.tril(1)},
    "padding can be looked at: leave out the columns where `real` is False": {"seen": lambda r: r[:, None, :] | True},
    "the rows of padding are masked, not its columns: nobody may look AT padding, real[:, None, :]":
        {"seen": lambda r: r[:, :, None], "itself": False},
    "positions count the padding: the first real token of every row is at position 0":
        {"count": lambda r: torch.arange(r.shape[1]).expand(r.shape)},
    "positions start at 1: the first real token is at position 0": {"count": lambda r: r.cumsum(1)},
    "positions are counted from the end, not from the first real token": {"count": lambda r: r.flip(1).cumsum(1).flip(1) - 1},
    "positions are counted down the batch; count along each row, dim=1": {"count": lambda r: (r.cumsum(0) - 1).clamp(min=0)},
    "the number of real tokens is taken off the positions; take off that of the padding":
        [{"count": lambda r, least=least: (torch.arange(r.shape[1]) - r.sum(1, True)).clamp(min=least)} for least in (0, -9)],
    "positions are floats; they are int64, to look up an embedding": {"count": lambda r: (r.float().cumsum(1) - 1).clamp(min=0)},
    "a token cannot see itself: the diagonal belongs to the mask, tril(0)": {"before": lambda x: x.tril(-1), "itself": False},
    "a real token cannot see itself, though padding can: the diagonal belongs to all":
        lambda r: (padded(r)[0], padded(r)[1] & ~torch.diag_embed(r)),
    "rows of padding are empty, and the softmax of an empty row is NaN: let each position look at itself": {"itself": False},
    "the triangle is upside down: this looks at what comes after, never at what came before":
        ({"before": torch.triu}, {"out": lambda x: x.mT}),
    "this is for padding on the right: the first columns are taken for the real ones":
        (lambda r: padded(r.flip(1)), lambda r: (torch.arange(r.shape[1]).expand(r.shape), padded(r.flip(1))[1])),
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 4.9
def draw_caches(generator):
    for B, H, S, D in ((1, 1, 0, 2), (1, 1, 2, 2), (2, 1, 3, 4), (2, 3, 5, 4)):
        q, k, v = torch.randn(3, B, H, 1, D, generator=generator)
        keys, values = torch.randn(2, B, H, S, D, generator=generator)
        yield {"q": q, "k": k, "v": v, "keys": keys, "values": values}
    q, k, v, *cache = torch.randint(-2, 3, (7, 2, 3, 1, 16), generator=generator).float()  # scores up to some hundreds, exactly
    yield {"q": 64 * q, "k": k, "v": v, "keys": torch.cat(cache, dim=2), "values": torch.cat(cache, dim=2).flip(3)}


def step_by_torch(q, k, v, keys, values):
    keys, values = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
    return F.scaled_dot_product_attention(q, keys, values), keys, values


def behind(old, new):
    return torch.cat([old, new], dim=2)


def stepped(
    q, k, v, keys, values, *, scale=lambda x: x.shape[-1] ** 0.5, weights=lambda x: x.softmax(-1), add=behind,
    seen=lambda old, new: new, kept=lambda old, new: new,
):  # fmt: skip
    """`seen` and `kept`: which of the old and the new cache is attended to, and returned."""
    new_keys, new_values = add(keys, k), add(values, v)
    shares = weights(q @ seen(keys, new_keys).mT / scale(q))
    return shares @ seen(values, new_values), kept(keys, new_keys), kept(values, new_values)


Exercise("4.9", "cached_step", draw=draw_caches, right=step_by_torch, formula=stepped, mistakes={
    "the new token cannot see itself: append its key and value first, then attend": {"seen": lambda old, new: old},
    "is_causal=True lines one query up with the FIRST key, so it sees that one alone: the last token sees all":
        lambda q, k, v, keys, values: (behind(values, v)[:, :, :1], behind(keys, k), behind(values, v)),
    "the scores are not divided by sqrt(D)": {"scale": lambda x: 1},
    "the scores are divided by D; divide by its root": {"scale": lambda x: x.shape[-1]},
    "the scores are multiplied by sqrt(D); divide by it": {"scale": lambda x: x.shape[-1] ** -0.5},
    "the scores are divided by the root of the whole width, H * D; each head has its own D":
        {"scale": lambda x: (x.shape[1] * x.shape[-1]) ** 0.5},
    "there is no softmax: the scores themselves weigh the values": {"weights": lambda x: x},
    "the softmax runs over the single query and gives 1 everywhere: normalise over the keys, dim=-1":
        {"weights": lambda x: x.softmax(-2)},
    "all tokens weigh the same: this is the mean of the values": {"weights": lambda x: (0 * x).softmax(-1)},
    "this is the value of the best key alone, without a softmax":
        {"weights": lambda x: F.one_hot(x.argmax(-1), x.shape[-1]).float()},
    "exp overflows for large scores and gives NaN: softmax takes the maximum off first":
        {"weights": lambda x: x.exp() / x.exp().sum(-1, keepdim=True)},
    "the old cache is returned: without the new key and value, the next step cannot see this token":
        {"kept": lambda old, new: old},
    "the new key and value were put in front: the cache is in the order of the positions, new ones go last":
        {"add": lambda old, new: behind(new, old)},
    "the last place of the cache is overwritten; the new token makes it one longer":
        {"add": lambda old, new: behind(old[:, :, :-1], new)},
    "the oldest token falls out of the cache; the new token makes it one longer":
        {"add": lambda old, new: behind(old, new)[:, :, 1:]},
    "the cache was not used: this token sees nothing but itself":
        ({"seen": lambda old, new: new[:, :, -1:]}, {"add": lambda old, new: new}),
})  # fmt: skip
