"""Chapter 02: mask, attention, heads, positions, norm, block; the whole GPT and its task are in ch02_whole."""

import functools
import math
import re

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_lib.exercises.compare import equal
from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.exercises.gradients import call_with_gradients, with_gradients
from rlhf_lib.exercises.plain import Unfit

MANY = 64  # positions, so many that a loop over them is seen


def same(value):
    return value


def pictured(title, matrix=same, row="query", column="key"):
    def picture(arguments, got, expected):
        from rlhf_lib import plots

        figure = plots.side_by_side(matrix(got), matrix(expected), title)
        for ax in figure.axes[:2] if figure else ():
            ax.set(xlabel=column, ylabel=row)
        return figure

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
    gaps = [[False, True, False, True]]  # one query, for which a part is padding
    yield one([[1, 2, 0]], [[2, 0, 1], [1, 1, 1], [0, 1, 0], [0, 0, 2]], [[3, 0, 1], [1, 0, 3], [0, 5, 0], [0, 2, 0]], gaps)
    for B, H, T, S, D in ((1, 1, 3, 3, 2), (1, 1, 4, 4, 4), (2, 1, 2, 5, 3), (2, 3, 6, 6, 8), (2, 3, 4, 5, 7)):
        q = torch.randn(B, H, T, D, generator=generator)
        k, v = torch.randn(2, B, H, S, D, generator=generator)
        mask = (torch.rand(T, S, generator=generator) < 0.5) | torch.eye(T, S).bool()  # no query is left without a key
        yield {"q": q, "k": k, "v": v, "mask": triangle(T, S) if D % 4 == 0 else mask}
    yield one([[128, 2, 0, 0]], [[2, 0, 0, 0], [2, 1, 0, 0]], torch.randn(2, 4, generator=generator).tolist(), [[True, True]])
    yield one([[1, 0], [2, 1]], [[-30000, 1], [90, 9]], [[8, 2], [7, 7]], [[True, False], [True, False]])


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


def overflowing(q, k, v, mask, eps=0.0):
    powers = (q @ k.mT / q.shape[-1] ** 0.5).exp() * mask
    if eps:
        return powers / (powers.sum(-1, keepdim=True) + eps) @ v, powers / (powers.sum(-1, keepdim=True) + eps)
    return powers / powers.sum(-1, keepdim=True) @ v, powers / powers.sum(-1, keepdim=True)


def one_maximum(q, k, v, mask):
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    powers = (scores - scores.max()).exp()
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
        "the scores are divided by sqrt(H x D), the width of all heads together; it is the root of one head's size D":
            {"scale": lambda q, k: (q.shape[1] * q.shape[3]) ** -0.5},
        "the scale comes after the softmax, so the weights no longer add to 1: scale the scores":
            {"scale": lambda q, k: 1.0, "late": lambda weights, mask, q: weights * q.shape[-1] ** -0.5},
        "the softmax runs over the queries: a query's weights over all keys add to 1, so it is the last dimension": {"dim": -2},
        "the softmax runs over the heads: a query's weights over all keys add to 1, so it is the last dimension": {"dim": 1},
        "the mask is ignored: every query sees every key": {"seen": torch.ones_like},
        "the mask is not used where there is a single query: it may have keys that it must not look at":
            {"seen": lambda mask: mask | torch.tensor(len(mask) == 1)},
        "a causal mask is used in place of the one that is given": {"seen": lambda mask: triangle(*mask.shape)},
        "a causal mask is laid over the one that is given: use that one as it is":
            tuple({"seen": lambda mask, first=first: mask & triangle(*mask.shape, first)}
                  for first in (lambda T, S: S - T, lambda T, S: 0)),
        "the mask is upside down: True stands where a query may look": {"seen": torch.logical_not},
        "masked scores are 0 here, and exp(0) = 1 is still a weight: fill them with -inf": {"hidden": 0.0},
        "masked scores are not low enough: beside large scores they are still a weight":
            tuple({"hidden": low} for low in (-1.0, -10.0, -100.0)),
        "the mask comes after the softmax, so the rows add to less than 1: mask the scores, before the softmax":
            {"seen": torch.ones_like, "late": lambda weights, mask, q: weights * mask},
        "the mask comes after the softmax, and where hidden keys had all the weight 0 is divided by 0: mask the scores":
            {"seen": torch.ones_like, "late": lambda weights, mask, q: weights * mask / (weights * mask).sum(-1, keepdim=True)},
        "the mask is added as 0 and 1: fill in -inf": lambda q, k, v, mask: attention_by_operator(q, k, v, mask.float()),
        "exp of a large score overflows: use torch.softmax, or take each row's largest score away first":
            (overflowing, *(functools.partial(overflowing, eps=eps) for eps in (1e-5, 1e-6, 1e-8, 1e-9, 1e-12))),
        "one maximum is taken off all scores, and a row far below it is 0 / 0: each row has its own, torch.softmax takes it":
            one_maximum,
        "the keys are viewed as (D, S): transpose(-2, -1)": {"turn": lambda k: k.reshape(*k.shape[:2], k.shape[3], -1)},
        "these are the scores beside the output; return the weights, what softmax makes of them":
            ({"last": lambda out, weights, scores, k, v: (out, scores)},
             lambda q, k, v, mask: (looked_up(q, k, v, mask)[0], (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf))),
        "the weights that are returned are made without the mask; the output's own are wanted":
            {"last": lambda out, weights, scores, k, v: (out, scores.softmax(-1))},
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
    x, qkv, out = (torch.randn(size, generator=generator) for size in ((1, 130, 2), (6, 2), (2, 2)))
    yield {"x": x, "qkv": qkv, "out": out, "heads": 1}  # longer than a mask that is made beforehand
    x, qkv = torch.tensor([[[1.0], [2.0], [-1.0]]]), torch.tensor([[10.0], [10.0], [0.5]])  # scores of hundreds
    yield {"x": x, "qkv": qkv, "out": torch.ones(1, 1), "heads": 1}


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
    if "torn" in how:
        return x.reshape(B, heads, T, -1)
    if "strided" in how:
        return x.reshape(B, T, -1, heads).permute(0, 3, 1, 2)
    if how == "one":
        return x[:, None]
    return x.reshape(B, T, -1, heads if how == "size" else C // heads).transpose(1, 1 if how == "no transpose" else 2)


def put_together(y, shape, how=""):
    """Heads in (B, T, C), which is `shape`, with places to go wrong."""
    return (y if "scrambled" in how else y.permute(0, 2, 3, 1) if "both ways" in how else y.transpose(1, 2)).reshape(shape)


def heads_of(x, qkv, out, heads, parts="qkv", cut="", join="", mix=lambda y, out: y @ out.T, skip=0, **look):
    """Multi-head attention by its formula, with places to go wrong: `parts` make queries, keys, values; `look` as `looked_up`."""
    (B, T, C), made = x.shape, x @ qkv.T
    if cut == "inside":
        q, k, v = made.view(B, T, heads, 3, -1).permute(3, 0, 2, 1, 4)
    elif cut == "3 in front":
        q, k, v = made.reshape(3, B, T, heads, -1).transpose(2, 3)
    elif cut == "inside, last":
        q, k, v = made.view(B, T, heads, -1, 3).permute(4, 0, 2, 1, 3)
    else:
        found = dict(zip("qkv", made.split(C, dim=-1)))
        q, k, v = (cut_heads(found[one], heads, cut) for one in parts)
    y, _ = looked_up(q, k, v, triangle(q.shape[2], k.shape[2]), **look)
    y = y.mean(1, keepdim=True).expand(y.shape) if join == "mean" else y
    y = y.sum(1, keepdim=True).expand(y.shape) if join == "sum" else y
    return skip * x + mix(put_together(y, x.shape, "scrambled" if cut == "no transpose" else join), out)


def copied_into_layers(x, qkv, out, heads):
    return heads_of(x, qkv.detach(), out.detach(), heads)


multi_head = Exercise(
    "2.3", "multi_head", draw=draw_multi_head, right=heads_by_operator, formula=heads_of,
    call=functools.partial(call_with_gradients, first=3),
    picture=pictured("output, first row of the batch: (T, C)", lambda output: output[0], "place", "number"),
    mistakes={
        "view(B, heads, T, D) tears positions apart: it must be view(B, T, heads, D), and then transpose(1, 2)":
            ({"cut": "torn"}, {"cut": "torn", "join": "scrambled"}),
        "the heads are put together without transpose(1, 2): back to (B, T, heads, D), then reshape": {"join": "scrambled"},
        "without transpose(1, 2) the softmax runs over the heads: make it (B, heads, T, D)": {"cut": "no transpose"},
        "a head takes every heads-th number; it is to take D neighbours: view(B, T, heads, D)":
            ({"cut": "strided"}, {"cut": "strided", "join": "both ways"}),
        "this is one wide head: cut queries, keys and values into `heads` parts of size D first": {"cut": "one"},
        "`heads` is taken for the size of a head; it is their number, and the size is C // heads": {"cut": "size"},
        "queries, keys and values are cut inside each head; the first C rows of qkv make all queries": 
            ({"cut": "inside"}, {"cut": "inside, last"}),
        "view(3, B, T, heads, D) tears positions apart: the 3 stands behind T, and permute brings it to the front":
            {"cut": "3 in front"},
        "the scores are divided by sqrt(C); a head's are sums of D = C / heads products":
            {"scale": lambda q, k: (q.shape[1] * q.shape[3]) ** -0.5},
        "the scores are not divided by sqrt(D)": {"scale": lambda q, k: 1.0},
        "the scores are divided by sqrt(D) twice, or by D: the operator divides already": {"scale": lambda q, k: 1 / q.shape[-1]},
        "there is no causal mask: every position sees the future": {"seen": torch.ones_like},
        "the mask is made for so many positions beforehand, and a text may be longer: make it as long as x":
            tuple({"seen": lambda mask, most=most: mask[:most, :most]} for most in (64, 100, 128)),
        "the weights are copied into a layer, and no gradient reaches `qkv` and `out`: use them as they are": copied_into_layers,
        "the mask looks ahead: a position sees itself and what came before it":
            {"seen": lambda mask: ~triangle(*mask.shape, more=-1)},
        "each position sees one token too far, the one behind it": {"seen": lambda mask: triangle(*mask.shape, more=1)},
        "a position must see itself too, not only what came before it":
            tuple({"seen": lambda mask: triangle(*mask.shape, more=-1), "hidden": low} for low in (-1e9, -torch.inf)),
        "masked scores are 0 here, and exp(0) = 1 is still a weight: fill them with -inf": {"hidden": 0.0},
        "the mask comes after the softmax, so the weights add to less than 1: mask the scores, before the softmax":
            {"seen": torch.ones_like, "late": lambda weights, mask, q: weights * mask},
        "queries and keys are swapped: the first C rows of qkv make the queries, the next C the keys": {"parts": "kqv"},
        "the parts of qkv have another order: queries, keys, values": 
            tuple({"parts": parts} for parts in ("vkq", "qvk", "kvq", "vqk")),
        "queries, keys and values are not each made by rows of their own: the first C rows of qkv, the next C, the last C":
            tuple({"parts": parts} for parts in ("qqq", "kkk", "vvv", "qqv", "kkv", "qkk", "qkq", "qvv")),
        "the output matrix is missing: `out` mixes the heads' results": {"mix": lambda y, out: y},
        "`out` is the wrong way round: a weight is stored as (outputs, inputs), so it is y @ out.T": {"mix": torch.matmul},
        "x is added to the result: the skip is the block's, not the attention's": {"skip": 1},
        "the heads' results are averaged or added up; put them side by side": ({"join": "mean"}, {"join": "sum"}),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 2.4


def draw_rotary(generator):
    yield {"x": torch.tensor([[[[2.0, 1.0]]]]), "positions": torch.tensor([2])}
    for shape, positions in (
        ((1, 1, 2, 4), [0, 1]), ((1, 2, 4, 6), [3, 4, 5, 6]), ((2, 2, 5, 8), [0, 0, 0, 1, 2]), ((2, 3, 3, 16), [70, 7, 2]),
        ((1, 2, 4, 6), [3, 9, 5, 6]), ((1, 1, 2, 4), [1, 0]),  # as many as above, and others
    ):  # fmt: skip
        yield {"x": torch.randn(shape, generator=generator), "positions": torch.tensor(positions)}
    yield {"x": torch.randn((1, 1, 2, 4), generator=generator), "positions": torch.tensor([300, 3])}
    x = torch.randn((1, 1, 2, 2), generator=generator)
    yield {"x": x, "positions": torch.tensor([10_000, 1024])}  # beyond most tables; with one pair no rounded frequency matters
    yield {"x": torch.randn((1, 1, MANY, 4), generator=generator), "positions": torch.arange(MANY)}


def rotary_by_complex(x, positions):
    """A pair is a complex number, and turning it is a product."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    angles = [[position * 10000 ** (-i / half) for i in range(half)] for position in positions.tolist()]
    turns = torch.tensor([[complex(math.cos(angle), math.sin(angle)) for angle in row] for row in angles])
    return torch.cat([(pairs * turns).real, (pairs * turns).imag], dim=-1).float()


class Operations(TorchDispatchMode):
    """Counts what PyTorch is asked to do."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **kwargs or {})


def stays_behind(function, **arguments):
    """Whether something in it lies on the processor where the arguments lie on "meta", a device of shapes without numbers."""
    try:
        function(**{name: one.to("meta") for name, one in arguments.items()})
    except Exception as error:  # any other one is the lack of numbers
        return bool(re.search("expected device|same device", str(error)))
    return False


def call_rotary(function, x, positions):
    """The turned numbers; Unfit where they are right, and one position after the other was turned."""
    y = call_with_gradients(function, x=x, positions=positions)
    if len(positions) == MANY and torch.is_tensor(y) and equal(y, rotary_by_complex(x, positions), 1e-4):
        with Operations() as asked:
            function(x=x, positions=positions)
        if stays_behind(function, x=x, positions=positions):
            raise Unfit("a new tensor does not lie where x does: give torch.arange and its like device=x.device")
        if asked.count >= MANY:
            raise Unfit(
                "it goes through the positions in a loop; turn all of them at once, by the table of position times frequency"
            )
    return y


def turned(
    x, positions, exponent=lambda i, n: -i / n, base=10000.0, at=same, minus=1, plus=1, pairs="", again=False, unit=1.0,
    waves=(torch.cos, torch.sin), last=same,
):  # fmt: skip
    """Rotary positions, with places to go wrong."""
    half = x.shape[-1] // 2
    angles = unit * at(positions)[:, None] * base ** exponent(torch.arange(half, device=x.device), half)  # (T, D/2)
    cos, sin = (wave(angles) for wave in waves)
    a, b = (x[..., 0::2], x[..., 1::2]) if "neighbours" in pairs else x.chunk(2, dim=-1)
    b = b.flip(-1) if pairs == "mirrored" else b
    new = a * cos - minus * b * sin
    new = new, plus * (new if again else a) * sin + b * cos
    if pairs == "neighbours":
        return torch.stack(new, dim=-1).flatten(-2)
    return last(torch.cat([new[0], new[1].flip(-1) if pairs == "mirrored" else new[1]], dim=-1))


def added(x, positions, order=(torch.sin, torch.cos)):
    angles = positions[:, None] * 10000.0 ** (-torch.arange(x.shape[-1] // 2) / (x.shape[-1] // 2))
    return x + torch.cat([one(angles) for one in order], dim=-1)


def from_a_table(rows):
    return {"at": lambda positions: torch.arange(rows)[positions]}


def twice_in_a_row(x, positions):
    cos, sin = (
        part.repeat_interleave(2, -1) for part in added(torch.zeros_like(x), positions, (torch.cos, torch.sin)).chunk(2, -1)
    )
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


rotary = Exercise(
    "2.4", "rotary", draw=draw_rotary, right=rotary_by_complex, formula=turned, call=call_rotary, tolerance=2e-5,
    mistakes={
        "the pairs are neighbours, (x[2i], x[2i + 1]), as in GPT-J; here a pair is (x[i], x[i + D/2])": {"pairs": "neighbours"},
        "the pairs are read as neighbours and written as halves: a pair is (x[i], x[i + D/2]), before and after":
            {"pairs": "neighbours that become halves"},
        "the pairs are (x[i], x[D - 1 - i]), the second half backwards; here a pair is (x[i], x[i + D/2])": {"pairs": "mirrored"},
        "each angle stands twice in a row, as for pairs of neighbours; the pairs are (x[i], x[i + D/2])": twice_in_a_row,
        "the pairs turn the wrong way: (a cos - b sin, a sin + b cos)": {"minus": -1, "plus": -1},
        "sine and cosine have changed places: at position 0 nothing may turn": {"waves": (torch.sin, torch.cos)},
        "a minus is missing, so lengths change and this is no rotation: (a cos - b sin, a sin + b cos)": {"minus": -1},
        "a minus is too much, so lengths change and this is no rotation: (a cos - b sin, a sin + b cos)": {"plus": -1},
        "x is only multiplied by cosines; what a turn takes from the other coordinate is missing": {"minus": 0, "plus": 0},
        "the two halves of the result have changed places": {"last": lambda y: torch.cat(y.chunk(2, -1)[::-1], -1)},
        "the result is in pairs of neighbours; the halves stand side by side":
            {"last": lambda y: torch.stack(y.chunk(2, -1), -1).flatten(-2)},
        "the second half is made from the first half that has been turned already: keep the old one": {"again": True},
        "the frequencies fall half as fast as they should: the exponent is -i / (D/2)": {"exponent": lambda i, n: -i / (2 * n)},
        "the frequencies fall twice as fast as they should: the exponent is -i / (D/2)": {"exponent": lambda i, n: -2 * i / n},
        "the frequencies fall a little too fast: the last pair's exponent is not -1, it is -i / (D/2) for every i":
            {"exponent": lambda i, n: -i / max(1, n - 1)},
        "the frequencies rise: the exponent has a minus, -i / (D/2)": {"exponent": lambda i, n: i / n},
        "the pairs are counted from 1; the first pair is i = 0, with the frequency 1": {"exponent": lambda i, n: -(i + 1) / n},
        "every pair turns at the same speed: pair i has the frequency 10000 ** (-i / (D/2))": {"exponent": lambda i, n: 0 * i},
        "the exponents are whole numbers: -i // (D/2) rounds -i / (D/2) down, to 0 or -1": {"exponent": lambda i, n: -i // n},
        "the base of the frequencies is another; it is 10000": tuple({"base": base} for base in (1000.0, 100000.0, 500000.0)),
        "the positions are counted from 0 here; use those that are given, a row may have padding or a cache before it":
            {"at": lambda positions: torch.arange(len(positions))},
        "the positions are counted from the first one, or from the lowest; use them as they are":
            ({"at": lambda positions: positions - positions[0]}, {"at": lambda positions: positions - positions.min()}),
        "the positions are taken to go up by one from the first; each is given":
            {"at": lambda positions: positions[0] + torch.arange(len(positions))},
        "a table has so many places, and a position may be beyond its end: make the angles of the positions that are given":
            tuple(map(from_a_table, (128, 512, 1024))),
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
    far = torch.tensor([[3000.5, 3001.75], [3000.25, 3000.5]])  # mean and variance are exact, squares are not
    yield {"x": far, "gain": torch.tensor([1.0, 2.0]), "bias": torch.tensor([0.5, -1.0]), "eps": 1e-5}


def call_layer_norm(function, x, **rest):
    """Far from 0 a step that shows a gradient is lost in rounding."""
    return with_gradients(function, x, *rest.values(), first=3 if x.abs().max() < 1000 else 0)


def by_root(centred, variance, eps):
    return (variance + eps).sqrt()


def normed(x, gain, bias, eps, dim=lambda x: -1, n=0, centre=1, spread=by_root, end=lambda y, gain, bias: y * gain + bias):
    """LayerNorm with places to go wrong: the variance is divided by C - `n`, and `spread` is what x is divided by."""
    mean = x.mean(dim(x), keepdim=True)
    variance = x.var(dim(x), correction=n, keepdim=True) if centre else x.square().mean(dim(x), keepdim=True)
    return end((x - centre * mean) / spread(x - mean, variance, eps), gain, bias)


def by_deviation(centred, variance, eps):
    return (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def in_one_pass(x, gain, bias, eps, least=-math.inf):
    variance = (x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square()).clamp(min=least)
    return (x - x.mean(-1, keepdim=True)) / (variance + eps).sqrt() * gain + bias


def by_raw(x, gain, bias, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain + bias


layer_norm = Exercise(
    "2.5", "layer_norm", draw=draw_layer_norm, formula=normed, call=call_layer_norm,
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
        "eps is only a lower bound here; it is added to the variance, whatever that is":
            ({"spread": lambda x, var, eps: var.sqrt().clamp(min=eps)},
             {"spread": lambda x, var, eps: var.clamp(min=eps).sqrt()}),
        "eps is subtracted; it is added to the variance": {"spread": lambda x, var, eps: (var - eps).sqrt()},
        "this is the mean distance from the mean; divide by the root of the mean square":
            ({"spread": lambda x, var, eps: x.abs().mean(-1, keepdim=True) + eps},
             {"spread": lambda x, var, eps: (x.abs().mean(-1, keepdim=True) + eps).sqrt()},
             {"spread": lambda x, var, eps: (x.abs().mean(-1, keepdim=True).square() + eps).sqrt()}),
        "the mean is subtracted above, but the mean square below is that of x itself: square what the mean is subtracted from":
            by_raw,
        "squares are summed, not averaged: the variance is their mean":
            ({"spread": lambda x, var, eps: (x.square().sum(-1, keepdim=True) + eps).sqrt()},
             {"spread": lambda x, var, eps: x.norm(dim=-1, keepdim=True) + eps}),
        "mean(x²) - mean(x)² is the difference of two large numbers where x is far from 0: subtract the mean, then square":
            (in_one_pass, functools.partial(in_one_pass, least=0.0)),
        "mean and variance are taken across the rows, as in batch norm; take each vector's own": {"dim": lambda x: 0},
        "one mean and variance serve the whole batch; each vector has its own":
            ({"dim": lambda x: tuple(range(x.dim()))}, {"dim": lambda x: (0, -1)}),
        "mean and variance are taken along dimension 1; a vector is the last dimension":
            ({"dim": lambda x: min(1, x.dim() - 1)}, {"dim": lambda x: 1}),
        "mean and variance are taken along the last dimension but one; a vector is the last": {"dim": lambda x: -2},
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
    made = "from rlhf_lib.exercises.ch02_transformer import parts_of; norm1, attend, norm2, feed = parts_of(x, heads, seed)"
    yield {"x": torch.tensor([[[2.0, -1.0]]]), "heads": 1, "seed": 0, "made": made}
    yield {"x": torch.tensor([[[2.0, -1.0]]]), "parts": "each gives back the very tensor that it reads"}
    for B, T, C, heads in ((1, 3, 4, 2), (3, 1, 6, 2), (2, 4, 8, 2)):
        seed = int(torch.randint(1000, (), generator=generator))
        yield {"x": torch.randn(B, T, C, generator=generator), "heads": heads, "seed": seed, "made": made}


class Attend:
    """The attention of one of PyTorch's layers, causal, as a function of x alone."""

    def __init__(self, layer):
        self.layer, self.calls = layer, 0

    def mask(self, x):
        return nn.Transformer.generate_square_subsequent_mask(x.shape[1])

    def __call__(self, x):
        self.calls += 1
        return self.layer.self_attn(x, x, x, attn_mask=self.mask(x), need_weights=False)[0]


class GiveBack(Attend):
    """What it reads, and the block of parts that all do so."""

    def __init__(self):
        super().__init__(lambda x, src_mask: 4 * x)

    def __call__(self, x):
        self.calls += 1
        return x


def call_block(function, x, heads=1, seed=0, made="", parts=""):
    """A block of random weights, drawn from `seed`, or of functions that give back what they read."""
    outputs = []

    def once(x, norm1, attend, norm2, feed):
        attend.calls, before = 0, x.detach().clone()
        output = function(x, norm1, attend, norm2, feed)
        if attend.calls > 1:
            raise TypeError("attend is called more than once")
        if not torch.equal(x, before):
            outputs.append(output)
        return output

    given = (same, GiveBack(), same, same) if parts else parts_of(x, heads, seed)
    try:
        return with_gradients(once, x, *given)
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        if outputs:
            return outputs[0].detach()  # the frame says that x was changed
        way = "write x = x + ..., which makes a new tensor"
        raise Unfit(f"it changes a tensor in place, as x += ... does, and the gradient needs it as it was: {way}") from None


def parts_of(x, heads, seed):
    """norm1, attend, norm2 and feed of PyTorch's layer, with weights drawn from `seed`."""
    width = x.shape[-1]
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.5, generator=generator)
    layer.requires_grad_(False)
    return layer.norm1, Attend(layer), layer.norm2, lambda x: layer.linear2(layer.linear1(x).relu())


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
        "both parts read the block's input; feed is to read what attend has written":
            ({"second": lambda x, y, f, n: y + f(n(x))}, lambda x, n, a, m, f: x + a(n(x)) + f(n(x))),
        "the stream is added twice: the second line adds what feed writes, once": {"second": lambda x, y, f, n: y + y + f(n(y))},
        "the second skip starts from the block's input: the attention's part is lost": {"second": lambda x, y, f, n: x + f(n(y))},
        "the feed-forward part reads what the attention has written alone; it reads the stream, x and what was added":
            (lambda x, n, a, m, f: x + (y := a(n(x))) + f(m(y)), lambda x, n, a, m, f: x + f(m(a(n(x))))),
        "attend is called twice, at twice the cost, and with dropout it answers otherwise: keep the stream that it leaves":
            lambda x, n, a, m, f: x + a(n(x)) + f(m(x + a(n(x)))),
        "there are no norms: each part reads norm(x)": {"first": lambda x, a, n: x + a(x), "second": lambda x, y, f, n: y + f(y)},
        "the first norm is missing: the attention reads norm1(x)": {"first": lambda x, a, n: x + a(x)},
        "the second norm is missing: the feed-forward part reads norm2 of the stream": {"second": lambda x, y, f, n: y + f(y)},
        "both norms stand in front of the feed-forward part, none in front of the attention":
            (lambda x, n, a, m, f: (y := x + a(x)) + f(m(n(y))), lambda x, n, a, m, f: (y := x + a(x)) + f(n(m(y)))),
        "the norms stand behind the parts: normalise what a part reads, not what it writes":
            {"first": lambda x, a, n: x + n(a(x)), "second": lambda x, y, f, n: y + n(f(y))},
        "a norm stands in front of a part and behind it: what a part writes is added as it is": (
            {"first": lambda x, a, n: x + n(a(n(x)))}, {"second": lambda x, y, f, n: y + n(f(n(y)))},
            {"first": lambda x, a, n: x + n(a(n(x))), "second": lambda x, y, f, n: y + n(f(n(y)))}),
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
