"""Chapter 02: mask, attention, heads, positions, norm, block, the whole GPT, and the reversal task."""

import functools
import math

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises.ch01_text import but_no
from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.exercises.gradients import call_with_gradients, with_gradients
from rlhf_lib.models.gpt import GPT, GPTConfig

NO_TOKENS = (torch.int32, torch.float32)


def same(value):
    return value


def pictured(title, matrix=same):
    def picture(arguments, got, expected):
        from rlhf_lib import plots

        return plots.side_by_side(matrix(got), matrix(expected), title)

    return picture


# ----------------------------------------------------------------------------------------- 2.1


def draw_causal_mask(generator):
    for T, S in ((1, 1), (2, 2), (1, 3), (2, 4), (3, 3)):
        yield {"T": T, "S": S}
    for _ in range(3):
        T, more = torch.randint(2, 7, (2,), generator=generator).tolist()
        yield {"T": T, "S": T + more}
    yield {"T": 3, "S": 1500}  # a long text


def triangle(T, S, first=lambda T, S: S - T, more=0, last=same):
    """The triangle from the diagonal `first` on, with places to go wrong."""
    return last(torch.ones(T, S, dtype=torch.bool).tril(first(T, S) + more))


causal_mask = Exercise(
    "2.1", "causal_mask", draw=draw_causal_mask, formula=triangle,
    picture=pictured("mask: a row for each query, a column for each key, 1 where it may look"),
    right=lambda T, S: torch.tensor([[key <= S - T + query for key in range(S)] for query in range(T)]),
    mistakes={
        "True and False are swapped: True stands where a position may look": {"last": torch.logical_not},
        "this looks ahead: a position may see itself and what came before it, the lower triangle":
            (lambda T, S: ~triangle(T, S, more=-1), lambda T, S: ~triangle(T, S, lambda T, S: -1)),
        "this looks ahead, not at itself: a position sees itself and its past": lambda T, S: ~triangle(T, S, lambda T, S: 0),
        "a position must see itself too: with the diagonal cut out, the first one has nothing to look at": {"more": -1},
        "each position sees one token too far, the very token that it is to predict": {"more": 1},
        "the triangle starts at key 0, but the T queries are the last of the S positions: add S - T": {"first": lambda T, S: 0},
        "the diagonal's sign is turned: row t is position S - T + t": {"first": lambda T, S: T - S},
        "nothing is masked: every position sees the future": {"more": 99},
        "this is the form that is added to the scores, 0 and -inf; return booleans, True where a position may look":
            tuple({"last": lambda mask, low=low: torch.zeros(mask.shape).masked_fill(~mask, low)} for low in (-torch.inf, -1e9)),
        "queries and keys have changed places: a row for each query, a column for each key": ({"last": lambda mask: mask.T},
            lambda T, S: triangle(S, T), lambda T, S: triangle(S, T, first=lambda T, S: T - S),
            lambda T, S: triangle(S, T, first=lambda T, S: 0)),
        "the rows are upside down: the last query is the last row, and sees most": {"last": lambda mask: mask.flip(0)},
        "the columns are turned round: key 0 is the first column": {"last": lambda mask: mask.flip(1)},
        "each position sees itself alone: what came before it is there to be read too":
            ({"last": lambda mask: mask & mask.flip(0).cumsum(0).flip(0).eq(1)}, lambda T, S: torch.eye(T, S, dtype=torch.bool)),
        "each query sees the keys that were there before, none of the T new": lambda T, S: torch.arange(S).expand(T, S) < S - T,
        "every query may see the first key here, and beyond it only what came before itself: a position sees itself":
            {"more": -1, "last": lambda mask: mask | (torch.arange(mask.shape[1]) == 0)},
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 2.2


def draw_attention(generator):
    def one(q, k, v, mask):
        q, k, v = (torch.tensor([[part]], dtype=torch.float) for part in (q, k, v))
        return {"q": q, "k": k, "v": v, "mask": torch.tensor(mask)}

    yield one([[1, 2, 0]], [[1, 1, 1], [0, 0, 2]], [[1, 0, 3], [0, 2, 0]], [[True, True]])
    for B, H, T, S, D in ((1, 1, 3, 3, 2), (1, 1, 4, 4, 4), (2, 1, 2, 5, 3), (2, 3, 6, 6, 8), (2, 3, 4, 5, 7)):
        q = torch.randn(B, H, T, D, generator=generator)
        k, v = torch.randn(2, B, H, S, D, generator=generator)
        mask = (torch.rand(T, S, generator=generator) < 0.5) | torch.eye(T, S).bool()  # no query is left without a key
        yield {"q": q, "k": k, "v": v, "mask": triangle(T, S) if D % 4 == 0 else mask}
    yield one([[128, 2, 0, 0]], [[2, 0, 0, 0], [2, 1, 0, 0]], torch.randn(2, 4, generator=generator).tolist(), [[True, True]])
    yield one([[1, 0], [2, 1]], [[-300, 1], [90, 9]], [[8, 2], [7, 7]], [[True, False], [True, False]])


def attention_by_operator(q, k, v, mask):
    """PyTorch's own operator; the weights are what comes out when the values are the identity."""
    identity = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
    return tuple(F.scaled_dot_product_attention(q, k, values, attn_mask=mask) for values in (v, identity))


def looked_up(
    q, k, v, mask, scale=lambda q, k: q.shape[-1] ** -0.5, dim=-1, hidden=-torch.inf, turn=lambda k: k.mT, seen=same, **ends
):
    """Attention by its formula, with places to go wrong: `late` comes after the softmax, `last` gets output, weights, scores."""
    scores = q @ turn(k) * scale(q, k)
    weights = scores.masked_fill(~seen(mask), hidden).softmax(dim)
    weights = ends.get("late", lambda weights, mask, q: weights)(weights, mask, q)
    return ends.get("last", lambda out, weights, scores, k, v: (out, weights))(weights @ v, weights, scores, k, v)


def overflowing(q, k, v, mask):
    powers = (q @ k.mT / q.shape[-1] ** 0.5).exp() * mask
    return powers / powers.sum(-1, keepdim=True) @ v, powers / powers.sum(-1, keepdim=True)


attention = Exercise(
    "2.2", "attention", draw=draw_attention, right=attention_by_operator, formula=looked_up,
    call=functools.partial(call_with_gradients, first=3),
    picture=pictured("weights: a row for each query, a column for each key", lambda pair: pair[1][0, 0]),
    mistakes={
        "this is attention without the 1/sqrt(D): divide the scores by the root of the head's size": {"scale": lambda q, k: 1.0},
        "the scores are divided by D; a sum of D products spreads as its root: sqrt(D)": {"scale": lambda q, k: 1 / q.shape[-1]},
        "the scores are multiplied by sqrt(D); divide by it": {"scale": lambda q, k: q.shape[-1] ** 0.5},
        "the scores are divided by a fixed number, such as the example's 2; divide by sqrt(D)":
            tuple({"scale": lambda q, k, by=by: 1 / by} for by in (2, 8, 4, 64**0.5, 64)),
        "the scores are divided by the root of the number of keys; it is that of D": {"scale": lambda q, k: k.shape[2] ** -0.5},
        "the scores are divided by the root of the number of queries or heads; it is that of D":
            tuple({"scale": lambda q, k, dim=dim: q.shape[dim] ** -0.5} for dim in (2, 1)),
        "the scale comes after the softmax, so the weights no longer add to 1: scale the scores":
            {"scale": lambda q, k: 1.0, "late": lambda weights, mask, q: weights * q.shape[-1] ** -0.5},
        "the softmax runs over the queries: a query's weights over all keys add to 1, so it is the last dimension": {"dim": -2},
        "the softmax runs over the heads: a query's weights over all keys add to 1, so it is the last dimension": {"dim": 1},
        "the mask is ignored: every query sees every key": {"seen": torch.ones_like},
        "a causal mask is used in place of the one that is given": {"seen": lambda mask: triangle(*mask.shape)},
        "the mask is upside down: True stands where a query may look": {"seen": torch.logical_not},
        "masked scores are 0 here, and exp(0) = 1 is still a weight: fill them with -inf": {"hidden": 0.0},
        "masked scores are not low enough: beside large scores they are still a weight":
            tuple({"hidden": low} for low in (-1.0, -10.0, -100.0)),
        "the mask comes after the softmax, so the rows add to less than 1: mask the scores, before the softmax":
            {"seen": torch.ones_like, "late": lambda weights, mask, q: weights * mask},
        "the mask is added as 0 and 1: fill in -inf": lambda q, k, v, mask: attention_by_operator(q, k, v, mask.float()),
        "exp of a large score overflows: use torch.softmax, or take each row's largest score away first": overflowing,
        "the keys are viewed as (D, S): transpose(-2, -1)": {"turn": lambda k: k.reshape(*k.shape[:2], k.shape[3], -1)},
        "these are the scores beside the output; return the weights, what softmax makes of them":
            ({"last": lambda out, weights, scores, k, v: (out, scores)},
             lambda q, k, v, mask: (looked_up(q, k, v, mask)[0], (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf))),
        "these are logarithms of the weights: use softmax": {"last": lambda out, weights, scores, k, v: (out, weights.log())},
        "the output is made of the keys; average the values": {"last": lambda out, weights, scores, k, v: (weights @ k, weights)},
        "the output is made of scores, not of the weights": {"last": lambda out, weights, scores, k, v: (scores @ v, weights)},
        "output and weights have changed places": {"last": lambda out, weights, scores, k, v: (weights, out)},
        "the weights are rounded": tuple({"late": lambda weights, mask, q, n=n: weights.round(decimals=n)} for n in (2, 3, 4)),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 2.3


def draw_multi_head(generator):
    for B, T, C, heads in ((1, 2, 4, 2), (1, 1, 6, 3), (2, 3, 4, 1), (2, 3, 8, 2), (3, 4, 6, 6), (2, 5, 12, 3)):
        x = torch.randn(B, T, C, generator=generator)
        qkv, out = torch.randn(4 * C, C, generator=generator).mul(C**-0.5).split([3 * C, C])
        yield {"x": x, "qkv": qkv, "out": out, "heads": heads}


def heads_by_operator(x, qkv, out, heads):
    """PyTorch's own operator, which puts time first and marks what is forbidden."""
    T, C = x.shape[1:]
    turned = x.transpose(0, 1)  # (T, B, C)
    output, _ = F.multi_head_attention_forward(
        turned, turned, turned, C, heads, qkv, None, None, None, False, 0.0, out, None,
        training=False, need_weights=False, attn_mask=torch.ones(T, T, dtype=torch.bool).triu(1),
    )  # fmt: skip
    return output.transpose(0, 1)


def cut_heads(x, heads, how=""):
    """(B, T, C) in heads, (B, H, T, D), with places to go wrong."""
    B, T, C = x.shape
    if how == "torn":
        return x.reshape(B, heads, T, -1)
    if how == "strided":
        return x.reshape(B, T, -1, heads).permute(0, 3, 1, 2)
    if how == "one":
        return x[:, None]
    return x.reshape(B, T, -1, heads if how == "size" else C // heads).transpose(1, 1 if how == "no transpose" else 2)


def heads_of(x, qkv, out, heads, parts="qkv", cut="", scale=None, mask="causal", join="", mix=lambda y, out: y @ out.T, skip=0):
    """Multi-head attention by its formula, with places to go wrong."""
    (B, T, C), made = x.shape, x @ qkv.T
    if cut == "inside":
        q, k, v = made.view(B, T, heads, 3, -1).permute(3, 0, 2, 1, 4)
    else:
        found = dict(zip(parts, made.split(C, dim=-1)))
        q, k, v = (cut_heads(found[one], heads, cut) for one in "qkv")
    forward = ~triangle(T, T, more=-1) if mask == "ahead" else None
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=forward, is_causal=mask == "causal", scale=scale and scale(C, heads))
    y = y.mean(1, keepdim=True).expand(y.shape) if join == "mean" else y
    y = (y if join == "scrambled" or cut == "no transpose" else y.transpose(1, 2)).reshape(B, T, C)
    return skip * x + mix(y, out)


multi_head = Exercise(
    "2.3", "multi_head", draw=draw_multi_head, right=heads_by_operator, formula=heads_of, call=call_with_gradients,
    picture=pictured("output, first row of the batch: (T, C)", lambda output: output[0]),
    mistakes={
        "view(B, heads, T, D) tears positions apart: it must be view(B, T, heads, D), and then transpose(1, 2)":
            ({"cut": "torn"}, {"cut": "torn", "join": "scrambled"}),
        "the heads are put together without transpose(1, 2): back to (B, T, heads, D), then reshape": {"join": "scrambled"},
        "without transpose(1, 2) the softmax runs over the heads: make it (B, heads, T, D)": {"cut": "no transpose"},
        "a head takes every heads-th number; it is to take D neighbours: view(B, T, heads, D)": {"cut": "strided"},
        "this is one wide head: cut queries, keys and values into `heads` parts of size D first": {"cut": "one"},
        "`heads` is taken for the size of a head; it is their number, and the size is C // heads": {"cut": "size"},
        "queries, keys and values are cut inside each head; the first C rows of qkv make all queries": {"cut": "inside"},
        "the scores are divided by sqrt(C); a head's are sums of D = C / heads products": {"scale": lambda C, heads: C**-0.5},
        "the scores are not divided by sqrt(D)": {"scale": lambda C, heads: 1.0},
        "the scores are divided by sqrt(D) twice, or by D: the operator divides already": {"scale": lambda C, heads: heads / C},
        "there is no causal mask: every position sees the future": {"mask": ""},
        "the mask looks ahead: a position sees itself and what came before it": {"mask": "ahead"},
        "queries and keys are swapped: the first C rows of qkv make the queries, the next C the keys": {"parts": "kqv"},
        "the parts of qkv have another order: queries, keys, values": tuple({"parts": parts} for parts in ("vkq", "qvk", "kvq")),
        "the output matrix is missing: `out` mixes the heads' results": {"mix": lambda y, out: y},
        "`out` is the wrong way round: a weight is stored as (outputs, inputs), so it is y @ out.T": {"mix": torch.matmul},
        "x is added to the result: the skip is the block's, not the attention's": {"skip": 1},
        "the heads' results are averaged; put them side by side": {"join": "mean"},
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 2.4


def draw_rotary(generator):
    yield {"x": torch.tensor([[[[2.0, 1.0]]]]), "positions": torch.tensor([2])}
    for shape, positions in (
        ((1, 1, 2, 4), [0, 1]), ((1, 2, 4, 6), [3, 4, 5, 6]), ((2, 2, 5, 8), [0, 0, 0, 1, 2]), ((2, 3, 3, 16), [70, 7, 2]),
    ):  # fmt: skip
        yield {"x": torch.randn(shape, generator=generator), "positions": torch.tensor(positions)}
    yield {"x": torch.randn((1, 1, 2, 4), generator=generator), "positions": torch.tensor([300, 3])}  # beyond most tables


def rotary_by_complex(x, positions):
    """A pair is a complex number, and turning it is a product."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    angles = [[position * 10000 ** (-i / half) for i in range(half)] for position in positions.tolist()]
    turns = torch.tensor([[complex(math.cos(angle), math.sin(angle)) for angle in row] for row in angles])
    return torch.cat([(pairs * turns).real, (pairs * turns).imag], dim=-1).float()


def turned(
    x, positions, exponent=lambda i, n: -i / n, base=10000.0, at=same, minus=1, plus=1, pairs="", again=False, unit=1.0, last=same
):
    """Rotary positions, with places to go wrong."""
    half = x.shape[-1] // 2
    angles = unit * at(positions)[:, None] * base ** exponent(torch.arange(half), half)  # (T, D/2)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if pairs == "neighbours" else x.chunk(2, dim=-1)
    b = b.flip(-1) if pairs == "mirrored" else b
    new = a * cos - minus * b * sin
    new = new, plus * (new if again else a) * sin + b * cos
    if pairs == "neighbours":
        return torch.stack(new, dim=-1).flatten(-2)
    return last(torch.cat([new[0], new[1].flip(-1) if pairs == "mirrored" else new[1]], dim=-1))


def added(x, positions, order=(torch.sin, torch.cos)):
    angles = positions[:, None] * 10000.0 ** (-torch.arange(x.shape[-1] // 2) / (x.shape[-1] // 2))
    return x + torch.cat([one(angles) for one in order], dim=-1)


def twice_in_a_row(x, positions):
    cos, sin = (
        part.repeat_interleave(2, -1) for part in added(torch.zeros_like(x), positions, (torch.cos, torch.sin)).chunk(2, -1)
    )
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


rotary = Exercise(
    "2.4", "rotary", draw=draw_rotary, right=rotary_by_complex, formula=turned, call=call_with_gradients, tolerance=2e-5,
    mistakes={
        "the pairs are neighbours, (x[2i], x[2i + 1]), as in GPT-J; here a pair is (x[i], x[i + D/2])": {"pairs": "neighbours"},
        "the pairs are (x[i], x[D - 1 - i]), the second half backwards; here a pair is (x[i], x[i + D/2])": {"pairs": "mirrored"},
        "each angle stands twice in a row, as for pairs of neighbours; the pairs are (x[i], x[i + D/2])": twice_in_a_row,
        "the pairs turn the wrong way: (a cos - b sin, a sin + b cos)": {"minus": -1, "plus": -1},
        "a minus is missing, so lengths change and this is no rotation: (a cos - b sin, a sin + b cos)": {"minus": -1},
        "a minus is too much, so lengths change and this is no rotation: (a cos - b sin, a sin + b cos)": {"plus": -1},
        "x is only multiplied by cosines; what a turn takes from the other coordinate is missing": {"minus": 0, "plus": 0},
        "the two halves of the result have changed places": {"last": lambda y: torch.cat(y.chunk(2, -1)[::-1], -1)},
        "the result is in pairs of neighbours; the halves stand side by side":
            {"last": lambda y: torch.stack(y.chunk(2, -1), -1).flatten(-2)},
        "the second half is made from the first half that has been turned already: keep the old one": {"again": True},
        "the frequencies fall half as fast as they should: the exponent is -i / (D/2)": {"exponent": lambda i, n: -i / (2 * n)},
        "the frequencies fall twice as fast as they should: the exponent is -i / (D/2)": {"exponent": lambda i, n: -2 * i / n},
        "the frequencies rise: the exponent has a minus, -i / (D/2)": {"exponent": lambda i, n: i / n},
        "the pairs are counted from 1; the first pair is i = 0, with the frequency 1": {"exponent": lambda i, n: -(i + 1) / n},
        "every pair turns at the same speed: pair i has the frequency 10000 ** (-i / (D/2))": {"exponent": lambda i, n: 0 * i},
        "the base of the frequencies is another; it is 10000": tuple({"base": base} for base in (1000.0, 100000.0, 500000.0)),
        "the positions are counted from 0 here; use those that are given, a row may have padding or a cache before it":
            {"at": lambda positions: torch.arange(len(positions))},
        "the positions are counted from the first one; use them as they are": {"at": lambda positions: positions - positions[0]},
        "the positions are counted from 1; use them as they are": {"at": lambda positions: positions + 1},
        "the angles are taken for degrees: cos and sin want radians, as they are": {"unit": math.pi / 180},
        "sines and cosines are added to x; rotary positions multiply: they turn each pair by its angle":
            (added, lambda x, positions: added(x, positions, (torch.cos, torch.sin))),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 2.5


def draw_layer_norm(generator):
    yield {"x": torch.tensor([[1.0, 5.0, 3.0]]), "gain": torch.ones(3), "bias": torch.zeros(3), "eps": 0.01}
    yield {"x": torch.tensor([[2.0, 2.0]]), "gain": torch.tensor([1.0, 2.0]), "bias": torch.tensor([0.5, 1.0]), "eps": 1e-6}
    for shape, eps in (((4,), 1e-3), ((3, 4), 1e-5), ((2, 3, 5), 0.1), ((2, 1, 3, 4), 2.0), ((2, 1), 0.3)):
        gain, bias = torch.randn(2, shape[-1], generator=generator)
        yield {"x": 1 + 2 * torch.randn(shape, generator=generator), "gain": gain, "bias": bias, "eps": eps}


def by_root(centred, variance, eps):
    return (variance + eps).sqrt()


def normed(x, gain, bias, eps, dim=lambda x: -1, n=0, centre=1, spread=by_root, end=lambda y, gain, bias: y * gain + bias):
    """LayerNorm with places to go wrong: the variance is divided by C - `n`, and `spread` is what x is divided by."""
    mean = x.mean(dim(x), keepdim=True)
    variance = x.var(dim(x), correction=n, keepdim=True) if centre else x.square().mean(dim(x), keepdim=True)
    return end((x - centre * mean) / spread(x - mean, variance, eps), gain, bias)


def by_deviation(centred, variance, eps):
    return (centred.square().mean(-1, keepdim=True) + eps).sqrt()


layer_norm = Exercise(
    "2.5", "layer_norm", draw=draw_layer_norm, formula=normed, call=call_with_gradients,
    right=lambda x, gain, bias, eps: F.layer_norm(x, x.shape[-1:], gain, bias, eps),
    mistakes={
        "the variance is divided by C - 1; here it is the biased one, divided by C": {"n": 1},
        "x.std divides by C - 1, and eps stands outside the root": {"n": 1, "spread": lambda x, var, eps: var.sqrt() + eps},
        "the mean is still in it, which makes this RMSNorm: subtract the mean first": {"centre": 0},
        "the mean is not subtracted, but the variance is about it: subtract it from x too": {"centre": 0, "spread": by_deviation},
        "this divides by the variance; divide by its root": {"spread": lambda x, var, eps: var + eps},
        "eps stands outside the root; it belongs inside": {"spread": lambda x, var, eps: var.sqrt() + eps},
        "eps is missing: a vector whose numbers are all equal gives 0 / 0": {"spread": lambda x, var, eps: var.sqrt()},
        "eps is a fixed number here; use the one that is given":
            tuple({"spread": lambda x, var, eps, fixed=fixed: (var + fixed) ** 0.5} for fixed in (1e-5, 1e-6, 1e-8, 1e-12)),
        "eps is subtracted; it is added to the variance": {"spread": lambda x, var, eps: (var - eps).sqrt()},
        "this is the mean distance from the mean; divide by the root of the mean square":
            ({"spread": lambda x, var, eps: x.abs().mean(-1, keepdim=True) + eps},
             {"spread": lambda x, var, eps: (x.abs().mean(-1, keepdim=True) + eps).sqrt()}),
        "squares are summed, not averaged: the variance is their mean":
            ({"spread": lambda x, var, eps: (x.square().sum(-1, keepdim=True) + eps).sqrt()},
             {"spread": lambda x, var, eps: x.norm(dim=-1, keepdim=True) + eps}),
        "mean and variance are taken across the rows, as in batch norm; take each vector's own": {"dim": lambda x: 0},
        "one mean and variance serve the whole batch; each vector has its own": {"dim": lambda x: tuple(range(x.dim()))},
        "mean and variance are over all dimensions but the first": {"dim": lambda x: tuple(range(min(1, x.dim() - 1), x.dim()))},
        "gain and bias are missing: multiply by the gain and add the bias after normalising": {"end": lambda y, gain, bias: y},
        "the gain is missing: multiply by it after normalising": {"end": lambda y, gain, bias: y + bias},
        "the bias is missing: add it at the end": {"end": lambda y, gain, bias: y * gain},
        "gain and bias are swapped: multiply by the gain, add the bias": {"end": lambda y, gain, bias: y * bias + gain},
        "the bias is multiplied by the gain too: multiply first, then add": {"end": lambda y, gain, bias: (y + bias) * gain},
        "x is divided first and the mean is subtracted afterwards: subtract x's own mean, then divide":
            {"centre": 0, "spread": by_deviation, "end": lambda y, gain, bias: (y := y * gain) - y.mean(-1, keepdim=True) + bias},
        "gain and bias come first, before normalising: they have no effect of their own there":
            lambda x, gain, bias, eps: F.layer_norm(x * gain + bias, x.shape[-1:], eps=eps),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 2.6


def draw_block(generator):
    yield {"x": torch.tensor([[[2.0, -1.0]]]), "heads": 1, "seed": 0}
    for B, T, C, heads in ((1, 3, 4, 2), (3, 1, 6, 2), (2, 4, 8, 2)):
        seed = int(torch.randint(1000, (), generator=generator))
        yield {"x": torch.randn(B, T, C, generator=generator), "heads": heads, "seed": seed}


class Attend:
    """The attention of one of PyTorch's layers, causal, as a function of x alone."""

    def __init__(self, layer):
        self.layer = layer

    def mask(self, x):
        return nn.Transformer.generate_square_subsequent_mask(x.shape[1])

    def __call__(self, x):
        return self.layer.self_attn(x, x, x, attn_mask=self.mask(x), need_weights=False)[0]


def call_block(function, x, heads, seed):
    """A block of random weights, drawn from `seed`; the function gets its parts."""
    width = x.shape[-1]
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.5, generator=generator)
    layer.requires_grad_(False)
    return with_gradients(function, x, layer.norm1, Attend(layer), layer.norm2, lambda x: layer.linear2(layer.linear1(x).relu()))


def block_by_layer(x, norm1, attend, norm2, feed):
    """PyTorch's own layer, with the norm first."""
    return attend.layer(x, src_mask=attend.mask(x))


def stream(x, norm1, attend, norm2, feed, first=lambda x, a, n: x + a(n(x)), second=lambda x, y, f, n: y + f(n(y)), last=None):
    """The block in its two lines, with places to go wrong: x goes in, y is what the first line leaves."""
    z = second(x, first(x, attend, norm1), feed, norm2)
    return last(x, z, norm1, norm2) if last else z


block = Exercise(
    "2.6", "block", draw=draw_block, right=block_by_layer, formula=stream, call=call_block,
    mistakes={
        "the skip around the attention is missing: add its output to x": {"first": lambda x, a, n: a(n(x))},
        "the skip around the feed-forward part is missing: add its output to x": {"second": lambda x, y, f, n: f(n(y))},
        "both skips are missing: add to the stream": {"first": lambda x, a, n: a(n(x)), "second": lambda x, y, f, n: f(n(y))},
        "this is post-norm, the 2017 order: here the norm stands in front of a part, and nothing stands on the skip":
            lambda x, n, a, m, f: m((y := n(x + a(x))) + f(y)),
        "the skip carries the normalised x: keep x itself for the sum, and give the norm's output to the part alone":
            ({"first": lambda x, a, n: n(x) + a(n(x)), "second": lambda x, y, f, n: n(y) + f(n(y))},),
        "the first skip carries the normalised x: keep x itself for the sum": {"first": lambda x, a, n: n(x) + a(n(x))},
        "the second skip carries the normalised stream: keep the stream itself": {"second": lambda x, y, f, n: n(y) + f(n(y))},
        "both parts read the block's input; feed is to read what attend has written": {"second": lambda x, y, f, n: y + f(n(x))},
        "the second skip starts from the block's input: the attention's part is lost": {"second": lambda x, y, f, n: x + f(n(y))},
        "the feed-forward part reads what the attention has written alone; it reads the stream, x and what was added":
            (lambda x, n, a, m, f: x + (y := a(n(x))) + f(m(y)), lambda x, n, a, m, f: x + f(m(a(n(x))))),
        "there are no norms: each part reads norm(x)": {"first": lambda x, a, n: x + a(x), "second": lambda x, y, f, n: y + f(y)},
        "the first norm is missing: the attention reads norm1(x)": {"first": lambda x, a, n: x + a(x)},
        "the second norm is missing: the feed-forward part reads norm2 of the stream": {"second": lambda x, y, f, n: y + f(y)},
        "both norms stand in front of the feed-forward part, none in front of the attention":
            (lambda x, n, a, m, f: (y := x + a(x)) + f(m(n(y))), lambda x, n, a, m, f: (y := x + a(x)) + f(n(m(y)))),
        "the norms stand behind the parts: normalise what a part reads, not what it writes":
            {"first": lambda x, a, n: x + n(a(x)), "second": lambda x, y, f, n: y + n(f(y))},
        "norm1 is used twice: the feed-forward part has a norm of its own, norm2": lambda x, n, a, m, f: stream(x, n, a, n, f),
        "the norms are swapped: norm1 belongs to the attention": lambda x, n, a, m, f: stream(x, m, a, n, f),
        "the feed-forward part comes first: the attention does":
            (lambda x, n, a, m, f: stream(x, m, f, n, a), lambda x, n, a, m, f: stream(x, n, f, m, a)),
        "what the attention writes is subtracted: add it": {"first": lambda x, a, n: x - a(n(x))},
        "what the feed-forward part writes is subtracted: add it": {"second": lambda x, y, f, n: y - f(n(y))},
        "the block's input is added once more: it is in the stream already": {"last": lambda x, z, n, m: x + z},
        "there is a norm on the result: nothing stands on the stream":
            tuple({"last": lambda x, z, n, m, which=which: (n, m)[which](z)} for which in (0, 1)),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 2.7


def draw_gpt_logits(generator):
    for B, T, layers, heads, width, vocab_size, context, spread in (
        (1, 1, 1, 1, 4, 3, 2, 1.0), (1, 3, 1, 2, 8, 7, 6, 1.0), (2, 4, 3, 4, 8, 9, 4, 1.0), (3, 5, 2, 2, 12, 5, 8, 0.002),
    ):  # fmt: skip
        yield {
            "tokens": torch.randint(vocab_size, (B, T), generator=generator), "layers": layers, "heads": heads, "width": width,
            "context": context, "vocab_size": vocab_size, "spread": spread, "seed": int(torch.rand(1, generator=generator) * 99),
        }  # fmt: skip


def call_gpt_logits(function, tokens, layers, heads, width, vocab_size, context, spread, seed):
    """Weights of a small GPT-2, drawn from `seed`: large, so that every part matters; the embeddings have `spread`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embedding.weight": (vocab_size, width), "position_embedding.weight": (context, width)}
    for layer in range(layers):
        for name, shape in {
            "norm1": (width,), "attention.qkv": (3 * width, width), "attention.out": (width, width),
            "norm2": (width,), "up": (4 * width, width), "down": (width, 4 * width),
        }.items():  # fmt: skip
            shapes[f"blocks.{layer}.{name}.weight"], shapes[f"blocks.{layer}.{name}.bias"] = shape, shape[:1]
    shapes["norm.weight"] = shapes["norm.bias"] = (width,)
    weights = {name: 0.6 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in ("embedding.weight", "position_embedding.weight"):
        weights[name] *= spread
    logits = with_gradients(function, tokens, weights, layers, heads, first=2)
    return logits / spread if torch.is_tensor(logits) else logits


def gpt_by_library(tokens, weights, layers, heads):
    (vocab_size, width), context = weights["embedding.weight"].shape, len(weights["position_embedding.weight"])
    config = GPTConfig.gpt2(vocab_size=vocab_size, context=context, layers=layers, heads=heads, width=width)
    return torch.func.functional_call(GPT(config).eval(), {**weights, "head.weight": weights["embedding.weight"]}, (tokens,))


def tanh_gelu(x):
    return F.gelu(x, approximate="tanh")


def gpt2(tokens, weights, layers, heads, mistake="", eps=1e-5, biases="qkv out up down", act=tanh_gelu, last=same):
    """The forward pass of GPT-2, written out; `mistake` names what goes wrong."""
    wrong, biases = mistake.__eq__, biases.split()

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"] if name.split(".")[-1] in biases else None)

    def norm(x, name):
        plain = wrong("plain norms") or (wrong("plain last norm") and name == "norm")
        gain, bias = (None, None) if plain else (weights[f"{name}.weight"], weights[f"{name}.bias"])
        return F.layer_norm(x, x.shape[-1:], gain, bias, eps)

    B, T = tokens.shape
    table, post = weights["position_embedding.weight"], wrong("post-norm")
    places = {"batch positions": table.repeat(B, 1)[:B, None], "from 1": table.roll(-1, 0)[:T], "no positions": 0.0}
    x = weights["embedding.weight"][tokens] * (table.shape[1] ** 0.5 if wrong("root of C") else 1.0)
    x = x + places.get(mistake, table[-T:] if wrong("last rows") else table[:T])
    for layer in range(layers - wrong("one too few")):
        at, before = f"blocks.{0 if wrong('shared') else layer}.", x
        norms = [f"{at}norm2", f"{at}norm1"] if wrong("swapped norms") else [f"{at}norm1", f"{at}norm2"]
        q, k, v = linear(x if post else norm(x, norms[0]), f"{at}attention.qkv").chunk(3, dim=-1)
        q, k = (k, q) if wrong("q and k") else (q, k)
        q, k, v = (cut_heads(part, heads, mistake) for part in (q, k, v))
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=not wrong("no mask"), scale={"no scale": 1.0, "root of whole C": x.shape[-1] ** -0.5}.get(mistake)
        )
        y = (y if wrong("scrambled") else y.transpose(1, 2)).reshape(x.shape)
        x = (0.0 if wrong("no first skip") else norm(x, norms[0]) if wrong("normed skips") else x) + (
            y if wrong("no out") else linear(y, f"{at}attention.out")
        )
        x = norm(x, norms[0]) if post else x
        y = before if wrong("parallel") else x
        y = act(linear(y if post else norm(y, norms[1]), f"{at}up"))
        x = (0.0 if wrong("no second skip") else norm(x, norms[1]) if wrong("normed skips") else x) + linear(y, f"{at}down")
        x = norm(x, norms[1]) if post else x
    logits = (x if wrong("no last norm") else norm(x, "norm")) @ weights["embedding.weight"].T
    return last(logits)


gpt_logits = Exercise(
    "2.7", "gpt_logits", draw=draw_gpt_logits, right=gpt_by_library, formula=gpt2, call=call_gpt_logits, tolerance=1e-4,
    mistakes={
        "the positions are missing: add row t of the position embedding at place t": {"mistake": "no positions"},
        "the position embedding is added along the batch; row t belongs to place t of every text": {"mistake": "batch positions"},
        "the positions are counted from 1: row 0 of the position embedding belongs to the first place": {"mistake": "from 1"},
        "these are the last T rows of the position embedding; take the first T": {"mistake": "last rows"},
        "the embedding is multiplied by sqrt(C), as in the paper of 2017; GPT-2 does not": {"mistake": "root of C"},
        "there is no causal mask: every position sees the future": {"mistake": "no mask"},
        "the attention's scores lack the 1/sqrt(D)": {"mistake": "no scale"},
        "the attention's scores are divided by sqrt(C); it is sqrt(D), the root of a head's size": {"mistake": "root of whole C"},
        "view(B, heads, T, D) tears positions apart: view(B, T, heads, D), then transpose(1, 2)": {"mistake": "torn"},
        "the heads are put together without transpose(1, 2): bring them back to (B, T, heads, D) first": {"mistake": "scrambled"},
        "a head takes every heads-th number; it is to take D neighbours": {"mistake": "strided"},
        "this is one wide head: cut queries, keys and values into `heads` parts first": {"mistake": "one"},
        "queries and keys are swapped: queries, keys, values is the order": {"mistake": "q and k"},
        "the attention's output matrix is missing": {"mistake": "no out"},
        "every block uses the weights of block 0; each layer has its own, blocks.0, blocks.1 and so on": {"mistake": "shared"},
        "the last block is missing: there are `layers` of them, from 0 to layers - 1": {"mistake": "one too few"},
        "the norms stand behind the parts (post-norm); GPT-2 normalises in front of each part": {"mistake": "post-norm"},
        "the two norms of a block are swapped: norm1 belongs to the attention": {"mistake": "swapped norms"},
        "the norms lack their gain and bias": {"mistake": "plain norms"},
        "the last norm lacks its gain and bias": {"mistake": "plain last norm"},
        "the last norm is missing: GPT-2 normalises once more before the head": {"mistake": "no last norm"},
        "the eps of the norms is another; it is 1e-5": tuple({"eps": eps} for eps in (1e-12, 1e-6, 1e-8, 1e-3, 0.0)),
        "the feed-forward part reads the block's input; it reads what the attention has written": {"mistake": "parallel"},
        "the skip around the attention is missing": {"mistake": "no first skip"},
        "the skip around the feed-forward part is missing": {"mistake": "no second skip"},
        "the skips carry the normalised stream: keep the stream itself for the sum": {"mistake": "normed skips"},
        "the activation is ReLU; GPT-2 has GELU in its tanh form": {"act": torch.relu},
        "this is the exact GELU; GPT-2 has the tanh form, F.gelu(x, approximate='tanh')": {"act": F.gelu},
        "there is no activation between up and down; GPT-2 has GELU in its tanh form": {"act": same},
        "the activation is another; it is tanh GELU": tuple({"act": act} for act in (F.silu, torch.tanh, torch.sigmoid, F.elu)),
        "the biases of the linear layers are missing": {"biases": ""},
        "a bias of the attention is missing: qkv and out": tuple({"biases": f"{one} up down"} for one in ("out", "qkv", "")),
        "a bias of the second part is missing: up, down": tuple({"biases": f"qkv out {one}"} for one in ("up", "down", "")),
        "these are probabilities; return the logits, the loss takes softmax itself": {"last": lambda logits: logits.softmax(-1)},
        "these are log-probabilities; return the logits, without softmax": {"last": lambda logits: logits.log_softmax(-1)},
        "only the last position is here; return logits for every position, all are trained at once":
            ({"last": lambda logits: logits[:, -1]}, {"last": lambda logits: logits[:, -1:]}),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 2.8


def draw_count_parameters(generator):
    yield {"vocab_size": 5, "context": 3, "layers": 1, "width": 2}
    for _ in range(3):
        vocab_size, context, layers, half = torch.randint(2, 12, (4,), generator=generator).tolist()
        yield {"vocab_size": vocab_size + 11, "context": context, "layers": layers, "width": 2 * half}
    yield {"vocab_size": 50257, "context": 1024, "layers": 12, "width": 768}
    yield {"vocab_size": 2048, "context": 128, "layers": 4, "width": 256}


@functools.lru_cache(maxsize=64)
def parameters_of_model(vocab_size, context, layers, width):
    """Build the model without its numbers, and count."""
    with torch.device("meta"):
        model = GPT(GPTConfig.gpt2(vocab_size=vocab_size, context=context, layers=layers, heads=1, width=width))
    return sum(p.numel() for p in model.parameters())


def off_by(more):
    """The right count, and what `more` says of V tokens, P places, L layers and width C."""
    return lambda *, vocab_size, **other: parameters_of_model(vocab_size, **other) + more(vocab_size, *other.values())


count_parameters = Exercise(
    "2.8", "count_parameters", draw=draw_count_parameters, right=parameters_of_model, tolerance=0.0,
    call=but_no(lambda n: isinstance(n, float) or getattr(n, "dtype", 0) == torch.float32, "it is to be an int"),
    mistakes={
        "the token embedding is counted twice: the head is tied to it, so it is one matrix": off_by(lambda V, P, L, C: V * C),
        "the head has a bias here; it has none": off_by(lambda V, P, L, C: V),
        "the token embedding is missing: vocab_size x width; it is the head too": off_by(lambda V, P, L, C: -V * C),
        "the position embedding is missing: context x width": off_by(lambda V, P, L, C: -P * C),
        "the position embedding is counted in every block; there is one": off_by(lambda V, P, L, C: (L - 1) * P * C),
        "the context is 1024 whatever it says": off_by(lambda V, P, L, C: (1024 - P) * C),
        "the biases of the linear layers are missing: 9 x width in each block": off_by(lambda V, P, L, C: -9 * L * C),
        "3 x width numbers are missing in each block: qkv's bias; up's is 4 x width": off_by(lambda V, P, L, C: -3 * L * C),
        "width numbers are missing in each block: attention.out and down have a bias each": off_by(lambda V, P, L, C: -L * C),
        "the feed-forward part has biases too: 5 x width in each block": off_by(lambda V, P, L, C: -5 * L * C),
        "the norms are missing: two in each block, one at the end, gain and bias": off_by(lambda V, P, L, C: -(4 * L + 2) * C),
        "the norms have a bias too, not a gain alone": off_by(lambda V, P, L, C: -(2 * L + 1) * C),
        "2 x width numbers are missing in each block: two norms, with gain and bias": off_by(lambda V, P, L, C: -2 * L * C),
        "4 x width numbers are missing in each block: two norms; the attention's biases": off_by(lambda V, P, L, C: -4 * L * C),
        "the last norm, behind the blocks, is missing": off_by(lambda V, P, L, C: -2 * C),
        "the last norm is counted in every block; there is one": off_by(lambda V, P, L, C: (L - 1) * 2 * C),
        "the last norm has a bias too, not a gain alone": off_by(lambda V, P, L, C: -C),
        "one norm too many is counted: two in each block and one at the end": off_by(lambda V, P, L, C: 2 * C),
        "the feed-forward part has two linear layers, up and down again": off_by(lambda V, P, L, C: -L * (4 * C * C + C)),
        "the feed-forward part is missing: up to 4 x width and down again": off_by(lambda V, P, L, C: -L * (8 * C * C + 5 * C)),
        "the feed-forward part is 4 x width wide, not 3 x width": off_by(lambda V, P, L, C: -L * (2 * C * C + C)),
        "queries, keys and values have a matrix each, and a bias": off_by(lambda V, P, L, C: -L * (2 * C * C + 2 * C)),
        "the attention's output matrix is missing, and its bias": off_by(lambda V, P, L, C: -L * (C * C + C)),
        "only one block is counted; there are `layers` of them": off_by(lambda V, P, L, C: -(L - 1) * (12 * C * C + 13 * C)),
        "one block is missing: there are `layers` of them": off_by(lambda V, P, L, C: -(12 * C * C + 13 * C)),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 2.9


def draw_reversal_batch(generator):
    yield {"sequences": torch.tensor([[6]]), "separator": 8}
    yield {"sequences": torch.tensor([[2, 7]]), "separator": 11}
    for rows, length, separator in ((2, 3, 9), (3, 5, 16), (4, 2, 31)):
        yield {"sequences": torch.randint(1, 9, (rows, length), generator=generator), "separator": separator}
    yield {"sequences": torch.tensor([[1, 2, 3, 4], [4, 4, 2, 1]]), "separator": 0}


def reversal_by_lists(sequences, separator):
    inputs, targets = [], []
    for sequence in sequences.tolist():
        answer = sequence[::-1]
        inputs.append([*sequence, separator, *answer[:-1]])
        targets.append([-100] * len(sequence) + answer)
    return torch.tensor(inputs), torch.tensor(targets)


def reversal(sequences, separator, answer=lambda x: x.flip(1), unscored=int, ignored=-100, shift=1, apart=True, last=None):
    """The rows of the task, with places to go wrong."""
    middle = [torch.full_like(sequences[:, :1], separator)] if apart else []
    row = torch.cat([sequences, *middle, answer(sequences)], dim=1)
    targets = row[:, shift : shift + row.shape[1] - 1].clone()
    targets[:, : unscored(sequences.shape[1])] = ignored
    return last(row[:, :-1], targets, sequences.shape[1]) if last else (row[:, :-1], targets)


reversal_batch = Exercise(
    "2.9", "reversal_batch", draw=draw_reversal_batch, right=reversal_by_lists, formula=reversal, tolerance=0.0,
    call=but_no(lambda pair: isinstance(pair, tuple) and any(getattr(one, "dtype", 0) in NO_TOKENS for one in pair), "use int64"),
    mistakes={
        "the question is scored too: nobody can predict random tokens, so their targets are -100": {"unscored": lambda n: 0},
        "only the separator's target is -100: the targets of the whole question are":
            ({"unscored": lambda n: 0, "last": lambda x, y, n: (x, y.index_fill(1, torch.tensor([n - 1]), -100))},),
        "the answer is the sequence as it was; it is to be the sequence backwards": {"answer": same},
        "the batch is turned round, not each sequence: flip dimension 1": {"answer": lambda x: x.flip(0)},
        "the batch is turned round as well as each sequence: flip dimension 1 alone": {"answer": lambda x: x.flip(0, 1)},
        "the answer is sorted downwards; it is to be the sequence backwards": {"answer": lambda x: x.sort(1, descending=True)[0]},
        "the targets are the inputs themselves: the target at place t is the token at t + 1": {"shift": 0},
        "the answer's first token is not scored: it is predicted at the separator, place n": {"unscored": lambda n: n + 1},
        "the separator is scored, and it is part of the question: the first n targets are -100": {"unscored": lambda n: n - 1},
        "nothing is scored: all targets are -100; the answer's are its tokens": {"unscored": lambda n: 99},
        "what is not scored has another target; cross_entropy skips -100": tuple({"ignored": one} for one in (0, -1, -99, 100)),
        "what is not scored has the separator as its target; cross_entropy leaves out -100":
            lambda sequences, separator: reversal(sequences, separator, ignored=separator),
        "-100 is in the inputs too: clone before you write": {"last": lambda x, y, n: (torch.cat([x[:, :1], y[:, :-1]], 1), y)},
        "inputs and targets have changed places": {"last": lambda x, y, n: (y, x)},
        "there is no separator: the model cannot know where the question ends": {"apart": False, "unscored": lambda n: n - 1},
    },
)  # fmt: skip
