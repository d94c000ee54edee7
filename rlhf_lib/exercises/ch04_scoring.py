"""Chapter 04: scoring what was drawn, left padding, and the KV cache."""

import math

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.sampling import distribution

ALL, FIRST, LAST = slice(None), slice(-1), slice(1, None)  # all places, the first ones (not the last), the last (not the first)


# ----------------------------------------------------------------------------------------- 4.7
def draw_scored(generator):
    tokens, mask = torch.tensor([[0, 1]]), torch.tensor([[False, True]])
    yield {"logits": torch.tensor([[[0.0, 1.0], [2.0, 0.0]]]), "tokens": tokens, "mask": mask, "temperature": 1.0, "top_k": 0}
    close = torch.tensor([[[1.0, 2.0, 0.9995], [0.5, 0.25, -1.0]]])  # a little below the second is below it
    yield {"logits": close, "tokens": tokens, "mask": mask, "temperature": 1.0, "top_k": 2}
    far = torch.tensor([[[200.0, 0.0], [0.0, 200.0], [0.0, 0.0]]])
    yield {"logits": far, "tokens": torch.tensor([[0, 1, 0]]), "mask": far[..., 0] < 100, "temperature": 0.8, "top_k": 0}
    for rows, length, count, temperature, top_k in (
        (2, 5, 4, 1.0, 0), (2, 6, 5, 0.5, 0), (3, 7, 6, 0.7, 3), (4, 8, 7, 1.4, 2), (3, 5, 11, 0.9, 7),  # the last: k above S
        (2, 140, 5, 1.1, 0),
    ):  # fmt: skip
        logits, places = 2 * torch.randn(rows, length, count, generator=generator), torch.arange(length)
        ends = torch.randint(4, length + 1, (rows, 1), generator=generator)
        ends[0], ends[1] = 4, length  # one row ends early, one goes on to the last position
        starts = torch.randint(1, 4, (rows, 1), generator=generator)
        starts[0], starts[1] = 2, 1  # prompts of different lengths
        mask = (places >= starts) & (places < ends)
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
    for scores, row, real in zip(logits, tokens, mask):
        places = real[1:].nonzero()[:, 0]  # before the tokens that were drawn
        before = (scores[places].double() / temperature).exp()  # (N, V)
        kept = before.sort(-1, descending=True).values[:, : top_k or None]
        rows.append((before[range(len(places)), row[places + 1]] / kept.sum(1)).log().sum().float())
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


def likeliest(logits, tokens, mask, temperature, top_k):
    best = distribution(logits[:, :-1], temperature, top_k).max(-1).values
    return torch.where(mask[:, 1:], best, 0).sum(1)


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
    "the completions are taken to begin, or to end, where the first row's does; the mask says it of each row": (
        masked(lambda m: m & (torch.arange(m.shape[1]) >= m[0].int().argmax())),
        masked(lambda m: m & (torch.arange(m.shape[1]) <= m[0].nonzero()[-1])),
        masked(lambda m: m & (torch.arange(m.shape[1]) >= m[0].int().argmax()) & (
            torch.arange(m.shape[1]) <= m[0].nonzero()[-1]))),
    "the mask is upside down: what was not drawn is scored": masked(lambda m: ~m),
    "minus infinity times a mask of 0 is NaN: torch.where(mask, logprobs, 0)": {"total": lambda x, m: (x * m).sum(1)},
    "scored at temperature 1, sampled at another: the logits are divided by the sampler's temperature here too":
        {"scores": lambda x, t, k: distribution(x, 1.0, k)},
    "the log-probabilities are divided by the temperature; divide the logits, before you normalise":
        ({"scores": lambda x, t, k: distribution(x, 1.0, k) / t}, {"scores": lambda x, t, k: x.log_softmax(-1) / t}),
    "scored with the full softmax, sampled with top-k: cut the same tokens before you normalise":
        {"scores": lambda x, t, k: distribution(x, t, 0)},
    "neither temperature nor top-k is used: the completion was drawn with both":
        {"scores": lambda x, t, k: distribution(x, 1.0, 0)},
    "one token too few is kept by top-k: cut what is below the k-th largest, not what is equal to it":
        {"scores": lambda x, t, k: distribution(x, t, max(1, k - 1) if k else 0)},
    "top_k = 0 cuts nothing; here the likeliest token alone stays": {"scores": lambda x, t, k: distribution(x, t, max(1, k))},
    "top_k = 0 cuts nothing; here it cuts all tokens, and the softmax of nothing is NaN":
        {"scores": lambda x, t, k: distribution(x, t, k) if k else (0 * x).masked_fill(x == x, -math.inf).log_softmax(-1)},
    "cut tokens got a logit of 0, which is exp(0) = 1 before normalising: use minus infinity":
        {"scores": lambda x, t, k: torch.where(distribution(x, t, k).isinf(), 0.0, x / t).log_softmax(-1)},
    "one top-k threshold is used for all positions; each has its own":
        {"scores": lambda x, t, k: (x / t).masked_fill(
            x < x.topk(min(k, x.shape[-1])).values[..., -1].min(), -math.inf).log_softmax(-1) if k else distribution(x, t, 0)},
    "these are the log-probabilities of the likeliest tokens; those of the tokens that were drawn are wanted": likeliest,
    "all completions are added up; each has a sum of its own": ({"total": lambda x, m: torch.where(m, x, 0).sum().expand(len(x))},
        {"total": lambda x, m: torch.where(m, x, 0).sum()}, {"total": lambda x, m: x[m].sum()[None]}),
    "squeeze() takes away each dimension of size 1, the positions too where there are two tokens: squeeze(-1) takes the last":
        {"total": lambda x, m: torch.where(m, x.squeeze(), 0).sum(1)},
    "the log-probabilities are not added up: one number for each completion": {"total": lambda x, m: torch.where(m, x, 0)},
    "one token too many is kept by top-k": {"scores": lambda x, t, k: distribution(x, t, k + 1 if k else 0)},
    "a logit a little below the k-th stays too: compare without a tolerance": {"scores": lambda x, t, k: (x / t).masked_fill(
        x < x.topk(min(k, x.shape[-1])).values[..., -1:] - 1e-3, -math.inf).log_softmax(-1) if k else distribution(x, t, 0)},
    "this is the mean over the tokens; the log-probability of a completion is the sum":
        ({"total": lambda x, m: torch.where(m, x, 0).sum(1) / m.sum(1)}, {"total": lambda x, m: torch.where(m, x, 0).mean(1)}),
    "log(softmax) turns a very small probability into log(0) = -inf: log_softmax does both at once":
        {"scores": lambda x, t, k: distribution(x, t, k).exp().log()},
    "something keeps the probability away from 0, and caps what an unlikely token gets; log_softmax needs no help":
        [{"scores": change} for eps in (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12) for change in (
            lambda x, t, k, eps=eps: (distribution(x, t, k).exp() + eps).log(),
            lambda x, t, k, eps=eps: distribution(x, t, k).exp().clamp(min=eps).log())]
        + [{"scores": lambda x, t, k, low=low: distribution(x, t, k).clamp(min=low)} for low in (-20, -50, -100)],
    "raw logits are not log-probabilities: put them through log_softmax first": {"scores": lambda x, t, k: x / t},
    "the softmax runs over the positions; the vocabulary is the last dimension":
        {"scores": lambda x, t, k: (x / t).log_softmax(1)},
    "the probabilities are multiplied and the logarithm is taken last: a product of many becomes 0; add up logarithms":
        {"total": lambda x, m: torch.where(m, x, 0).exp().prod(1).log()},
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
    yield {"real": torch.arange(270) >= torch.tensor([[100], [3]])}


def as_far_as_real(function, real):
    """Positions and mask, as far as real tokens go; and how many rows of the mask are empty, padding included."""
    positions, attend = function(real)
    if attend.dtype != torch.bool:
        raise TypeError(f"attend is to be bool, not {attend.dtype}")
    return {
        "positions": torch.where(real, positions, 0), "type of positions": str(positions.dtype),
        "mask": attend & real[:, :, None], "rows with nothing to look at": (~attend.any(-1)).sum(),
    }  # fmt: skip


def padding_by_loops(real):
    B, T = real.shape
    padding = [T - int(row.sum()) for row in real]
    positions = torch.tensor([[max(0, query - padding[row]) for query in range(T)] for row in range(B)])
    looks = torch.zeros(B, T, T, dtype=torch.bool)
    for row, n in enumerate(padding):
        for query in range(T):
            looks[row, query, min(n, query) : query + 1] = True
    return positions, looks


def padded(
    real, *, count=lambda real: (real.cumsum(1) - 1).clamp(min=0), before=torch.tril, seen=lambda real: real[:, None, :],
    itself=True, out=lambda attend: attend, size=lambda real: real.shape[1],
):  # fmt: skip
    T = size(real)
    attend = before(torch.ones(T, T, dtype=torch.bool)) & seen(real)
    return count(real), out(attend | torch.eye(T, dtype=torch.bool) if itself is True else attend)


def padding_picture(arguments, got, expected):
    from rlhf_lib import plots

    differ = (got["mask"] != expected["mask"]).flatten(1).any(1).nonzero()[:, 0].tolist()
    if not differ:
        raise ValueError("the masks are equal: there is nothing to draw")
    title = f"prompt {differ[0]}: row looks at column (real rows)"
    rows = arguments["real"][differ[0]][:, None].expand(expected["mask"][differ[0]].shape)
    return plots.side_by_side(got["mask"][differ[0]], expected["mask"][differ[0]], title, rows)


Exercise("4.8", "left_padding", draw=draw_padding, call=as_far_as_real, right=padding_by_loops, formula=padded,
    picture=padding_picture, mistakes={
    "there is no causal mask: a token may look at itself and at what comes before it, when sampling too": {"before": lambda x: x},
    "the triangle reaches one too far: each token sees the next": {"before": lambda x: x.tril(1)},
    "the mask is as large as there are rows, len(real); it has a row and a column for each position, T = real.shape[1]":
        {"size": len},
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
    "positions are no int64, the type that the card asks for":
        [{"count": lambda r, kind=kind: (r.cumsum(1) - 1).clamp(min=0).to(kind)} for kind in (torch.float32, torch.int32)],
    "positions are counted in numbers too small for them: int8 ends at 127, uint8 at 255; count in int64": [
        {"count": lambda r, kind=kind: (r.cumsum(1, dtype=kind) - 1).clamp(min=0).long()} for kind in (torch.int8, torch.uint8)]
        + [{"count": lambda r, kind=kind: r.cumsum(1, dtype=kind).long() - 1} for kind in (torch.int8, torch.uint8)],
    "positions are counted from the first row's first real token; each row has its own":
        {"count": lambda r: (torch.arange(r.shape[1]) - r[0].int().argmax()).clamp(min=0).expand(r.shape)},
    "each position sees itself alone: & for |": {"out": lambda attend: attend & torch.eye(attend.shape[-1], dtype=torch.bool),
        "itself": False},
    "the first column can be looked at in every row, padding or not: let each position look at itself":
        {"out": lambda attend: attend | (torch.arange(attend.shape[-1]) == 0), "itself": True},
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
    for B, H, S, D in ((1, 1, 0, 2), (1, 1, 2, 2), (2, 1, 3, 4), (2, 3, 5, 4), (1, 1, 300, 3)):
        q, k, v = torch.randn(3, B, H, 1, D, generator=generator)
        keys, values = torch.randn(2, B, H, S, D, generator=generator)
        if S == 3:
            keys[0, 0, 1], values[1, 0, 0], k[1] = 0.0, 0.0, 0.0  # zeros like any other numbers
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


def part_in_front(place, read):
    """The step with the new one in front in the keys or values: of the cache that comes back, or where it is read, too."""

    def call(q, k, v, keys, values):
        out = [*stepped(q, k, v, keys, values)]
        out[place] = behind(*((k, keys) if place == 1 else (v, values)))
        if read:
            out[0] = (q @ out[1].mT / q.shape[-1] ** 0.5).softmax(-1) @ out[2]
        return tuple(out)

    return call


def without_zeros(new):
    """The step in which keys of zeros are left out; `new`: the new one, too."""

    def call(q, k, v, keys, values):
        filled = (behind(keys, k) != 0).any(-1)[:, :, None, :]
        filled[..., -1] |= not new
        return stepped(q, k, v, keys, values, weights=lambda x: x.masked_fill(~filled, -math.inf).softmax(-1))

    return call


Exercise("4.9", "cached_step", draw=draw_caches, right=step_by_torch, formula=stepped, mistakes={
    "the new token cannot see itself: append its key and value first, then attend":
        ({"seen": lambda old, new: old}, {"seen": lambda old, new: old if old.shape[2] else new}),
    "the new value is added to what the cache gives; its weight comes out of the same softmax as the others'":
        lambda q, k, v, keys, values: (stepped(q, k, v, keys, values, seen=lambda old, new: old)[0] + v,
                                       *stepped(q, k, v, keys, values)[1:]),
    "the output is made of the keys; average the values":
        lambda q, k, v, keys, values: (stepped(q, k, k, keys, keys)[0], *stepped(q, k, v, keys, values)[1:]),
    "the softmax runs over the heads: normalise over the keys, dim=-1": {"weights": lambda x: x.softmax(1)},
    "is_causal=True lines one query up with the FIRST key, so it sees that one alone: the last token sees all":
        lambda q, k, v, keys, values: (behind(values, v)[:, :, :1], behind(keys, k), behind(values, v)),
    "the scores are not divided by sqrt(D)": {"scale": lambda x: 1},
    "the scores are divided by D; divide by its root": {"scale": lambda x: x.shape[-1]},
    "the scores are divided by 8, the root of 64; D is the size of the last dimension, q.shape[-1]": {"scale": lambda x: 8},
    "the scores are multiplied by sqrt(D); divide by it": {"scale": lambda x: x.shape[-1] ** -0.5},
    "the scores are divided by the root of the whole width, H * D; each head has its own D":
        {"scale": lambda x: (x.shape[1] * x.shape[-1]) ** 0.5},
    "the scores are divided by the root of the number of heads; divide by that of a head's size, D, the last dimension":
        {"scale": lambda x: x.shape[1] ** 0.5},
    "the scores are divided by the root of the number of keys; divide by that of a head's size, D, the last dimension":
        lambda q, k, v, keys, values: stepped(q, k, v, keys, values, scale=lambda x: (keys.shape[2] + 1) ** 0.5),
    "there is no softmax: the scores themselves weigh the values": {"weights": lambda x: x},
    "the softmax runs over the single query and gives 1 everywhere: normalise over the keys, dim=-1":
        {"weights": lambda x: x.softmax(-2)},
    "all tokens weigh the same: this is the mean of the values": {"weights": lambda x: (0 * x).softmax(-1)},
    "this is the value of the best key alone, without a softmax":
        {"weights": lambda x: F.one_hot(x.argmax(-1), x.shape[-1]).float()},
    "exp overflows for large scores and gives NaN: softmax takes the maximum off first":
        {"weights": lambda x: x.exp() / x.exp().sum(-1, keepdim=True)},
    "keys of zeros are taken for empty places and left out; they are keys like any other, with the score 0":
        [without_zeros(new) for new in (False, True)],
    "the old cache is returned: without the new key and value, the next step cannot see this token":
        {"kept": lambda old, new: old},
    "the new key and value were put in front: the cache is in the order of the positions, new ones go last":
        {"add": lambda old, new: behind(new, old)},
    **{f"{name}: the new one stands in front; the cache is in the order of the positions, new ones go last":
        [part_in_front(place, read) for read in (False, True)] for place, name in ((1, "keys"), (2, "values"))},
    "the last place of the cache is overwritten; the new token makes it one longer":
        {"add": lambda old, new: behind(old[:, :, :-1], new)},
    "the oldest token falls out of the cache; the new token makes it one longer":
        ({"add": lambda old, new: behind(old, new)[:, :, 1:]}, {"add": lambda old, new: behind(old[:, :, 1:], new)},
         {"kept": lambda old, new: new[:, :, 1:]}, {"kept": lambda old, new: new[:, :, min(1, old.shape[2]):]}),
    "only the newest keys are looked at, a fixed number of them; the new token sees all":
        [{"seen": lambda old, new, most=most: new[:, :, -most:]} for most in (16, 32, 64, 100, 128, 256)],
    "the cache was not used: this token sees nothing but itself":
        ({"seen": lambda old, new: new[:, :, -1:]}, {"add": lambda old, new: new}),
})  # fmt: skip
