"""Chapter 02: mask, attention, heads, positions, norm, block, the whole GPT, and the reversal task."""

import functools
import math

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.models.gpt import GPT, GPTConfig

# ----------------------------------------------------------------------------------------- 2.1

causal_mask = Exercise("2.1", "causal_mask")


@causal_mask.inputs
def _(generator):
    for T, S in ((1, 1), (2, 2), (1, 3), (2, 3), (3, 3)):
        yield {"T": T, "S": S}
    for _ in range(3):
        T, more = torch.randint(2, 7, (2,), generator=generator).tolist()
        yield {"T": T, "S": T + more}


@causal_mask.oracle
def _(T, S):
    return torch.tensor([[key <= S - T + query for key in range(S)] for query in range(T)])


@causal_mask.mistake("True and False are swapped: True stands where a position may look")
def _(T, S):
    return ~causal_mask.right(T, S)


@causal_mask.mistake("this looks ahead: a position may see itself and what came before it, the lower triangle")
def _(T, S):
    return torch.ones(T, S, dtype=torch.bool).triu(S - T)


@causal_mask.mistake("a position must see itself too: with the diagonal cut out, the first one has nothing to look at")
def _(T, S):
    return torch.ones(T, S, dtype=torch.bool).tril(S - T - 1)


@causal_mask.mistake("each position sees one token too far, the very token that it is to predict")
def _(T, S):
    return torch.ones(T, S, dtype=torch.bool).tril(S - T + 1)


@causal_mask.mistake(
    "the triangle starts at the first key, but the T queries are the last of the S positions: row t is position S - T + t"
)
def _(T, S):
    return torch.ones(T, S, dtype=torch.bool).tril()


@causal_mask.mistake("nothing is masked: every position sees the future")
def _(T, S):
    return torch.ones(T, S, dtype=torch.bool)


@causal_mask.mistake("this is the form that is added to the scores, 0 and -inf; return booleans, True where a position may look")
def _(T, S):
    return torch.zeros(T, S).masked_fill(~causal_mask.right(T, S), -torch.inf)


@causal_mask.picture
def _(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got, expected, "mask: a row for each query, a column for each key, 1 where it may look")


# ----------------------------------------------------------------------------------------- 2.2

attention = Exercise("2.2", "attention")


@attention.inputs
def _(generator):
    yield {
        "q": torch.ones(1, 1, 1, 4), "k": torch.tensor([[[[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]]]),
        "v": torch.eye(2, 4)[None, None], "mask": torch.ones(1, 2, dtype=torch.bool),
    }  # fmt: skip
    for B, H, T, S, D in ((1, 1, 3, 3, 2), (1, 2, 2, 5, 4), (2, 3, 6, 6, 8)):
        q = torch.randn(B, H, T, D, generator=generator)
        k, v = torch.randn(2, B, H, S, D, generator=generator)
        yield {"q": q, "k": k, "v": v, "mask": causal_mask.right(T, S)}
    large = {"q": torch.tensor([[128.0, 2.0, 0.0, 0.0]]), "k": torch.tensor([[2.0, 0.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]])}
    yield {
        **{name: part[None, None] for name, part in large.items()},
        "v": torch.randn(1, 1, 2, 4, generator=generator), "mask": torch.ones(1, 2, dtype=torch.bool),
    }  # fmt: skip


@attention.oracle
def _(q, k, v, mask):
    """PyTorch's own operator; the weights are what comes out when the values are the identity."""
    identity = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
    return tuple(F.scaled_dot_product_attention(q, k, values, attn_mask=mask) for values in (v, identity))


def looked_up(q, k, v, mask, scale=None, dim=-1, hidden=-torch.inf):
    """Attention by its formula, with places to go wrong."""
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = scores.masked_fill(~mask, hidden).softmax(dim)
    return weights @ v, weights


@attention.mistake("this is attention without the 1/sqrt(D): divide the scores by the root of the head's size")
def _(q, k, v, mask):
    return looked_up(q, k, v, mask, scale=1.0)


@attention.mistake("the scores are divided by D; the spread of a sum of D products grows with its root, so divide by sqrt(D)")
def _(q, k, v, mask):
    return looked_up(q, k, v, mask, scale=1 / q.shape[-1])


@attention.mistake("the scores are divided by the root of the number of keys; it is the root of D, the size of a query")
def _(q, k, v, mask):
    return looked_up(q, k, v, mask, scale=k.shape[2] ** -0.5)


@attention.mistake("the scale comes after the softmax, so the weights no longer add to 1: scale the scores")
def _(q, k, v, mask):
    output, weights = looked_up(q, k, v, mask, scale=1.0)
    return output * q.shape[-1] ** -0.5, weights * q.shape[-1] ** -0.5


@attention.mistake(
    "the softmax runs over the queries: the weights of one query over all keys add to 1, so it is the last dimension"
)
def _(q, k, v, mask):
    return looked_up(q, k, v, mask, dim=-2)


@attention.mistake("the mask is ignored: every query sees every key")
def _(q, k, v, mask):
    return looked_up(q, k, v, torch.ones_like(mask))


@attention.mistake("the mask is upside down: True stands where a query may look")
def _(q, k, v, mask):
    return looked_up(q, k, v, ~mask)


@attention.mistake("masked scores are 0 here, and exp(0) = 1 is still a weight: fill them with -inf")
def _(q, k, v, mask):
    return looked_up(q, k, v, mask, hidden=0.0)


@attention.mistake("the mask comes after the softmax, so the rows add to less than 1: mask the scores, before the softmax")
def _(q, k, v, mask):
    _, weights = looked_up(q, k, v, torch.ones_like(mask))
    return (weights * mask) @ v, weights * mask


@attention.mistake("exp of a large score overflows: use torch.softmax, or take each row's largest score away first")
def _(q, k, v, mask):
    powers = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).exp() * mask
    weights = powers / powers.sum(-1, keepdim=True)
    return weights @ v, weights


@attention.picture
def _(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got[1][0, 0], expected[1][0, 0], "weights: a row for each query, a column for each key")


# ----------------------------------------------------------------------------------------- 2.3

multi_head = Exercise("2.3", "multi_head")


@multi_head.inputs
def _(generator):
    for B, T, C, heads in ((1, 2, 4, 2), (2, 3, 4, 1), (2, 3, 8, 2), (2, 5, 12, 3)):
        yield {
            "x": torch.randn(B, T, C, generator=generator),
            "qkv": torch.randn(3 * C, C, generator=generator) * C**-0.5,
            "out": torch.randn(C, C, generator=generator) * C**-0.5,
            "heads": heads,
        }


@multi_head.oracle
def _(x, qkv, out, heads):
    """PyTorch's own operator, which puts time first and marks what is forbidden."""
    T, C = x.shape[1:]
    turned = x.transpose(0, 1)  # (T, B, C)
    output, _ = F.multi_head_attention_forward(
        turned, turned, turned, C, heads, qkv, None, None, None, False, 0.0, out, None,
        training=False, need_weights=False, attn_mask=torch.ones(T, T, dtype=torch.bool).triu(1),
    )  # fmt: skip
    return output.transpose(0, 1)


def heads_of(x, qkv, out, heads, mistake=""):
    """Multi-head attention by its formula; `mistake` names what goes wrong."""
    B, T, C = x.shape
    D = C // heads
    q, k, v = (x @ qkv.T).split(C, dim=-1)
    if mistake == "q and k":
        q, k = k, q
    if mistake == "torn":
        q, k, v = (part.reshape(B, heads, T, D) for part in (q, k, v))
    elif mistake == "strided":
        q, k, v = (part.reshape(B, T, D, heads).permute(0, 3, 1, 2) for part in (q, k, v))
    elif mistake == "one head":
        q, k, v = (part[:, None] for part in (q, k, v))
    else:
        q, k, v = (part.reshape(B, T, heads, D) for part in (q, k, v))
        if mistake != "over heads":
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    scale = C**-0.5 if mistake == "whole width" else None
    y = F.scaled_dot_product_attention(q, k, v, is_causal=mistake != "no mask", scale=scale)
    if mistake not in ("scrambled", "over heads"):
        y = y.transpose(1, 2)
    y = y.reshape(B, T, C)
    if mistake == "no output":
        return y
    return y @ (out if mistake == "turned" else out.T)


for sentence, kind in {
    "view(B, heads, T, D) tears positions apart: it must be view(B, T, heads, D), and then transpose(1, 2)": "torn",
    "the heads are put together without transpose(1, 2): bring them back to (B, T, heads, D), then reshape": "scrambled",
    "without transpose(1, 2) the softmax runs over the heads, not the positions: make it (B, heads, T, D)": "over heads",
    "a head takes every heads-th number; it is to take D neighbours: view(B, T, heads, D)": "strided",
    "this is one wide head: cut queries, keys and values into `heads` parts of size D first": "one head",
    "the scores are divided by sqrt(C); each head's scores are sums of D = C / heads products, so it is sqrt(D)": "whole width",
    "there is no causal mask: every position sees the future": "no mask",
    "queries and keys are swapped: the first C rows of qkv make the queries, the next C the keys": "q and k",
    "the output matrix is missing: the heads' results are still to be mixed by `out`": "no output",
    "`out` is the wrong way round: a weight is stored as (outputs, inputs), so it is y @ out.T": "turned",
}.items():  # fmt: skip
    multi_head.mistake(sentence)(lambda x, qkv, out, heads, kind=kind: heads_of(x, qkv, out, heads, kind))


@multi_head.picture
def _(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got[0], expected[0], "output, first row of the batch: (T, C)")


# ----------------------------------------------------------------------------------------- 2.4

rotary = Exercise("2.4", "rotary")


@rotary.inputs
def _(generator):
    yield {"x": torch.tensor([[[[1.0, 0.0]]]]), "positions": torch.tensor([1])}
    for shape, positions in (
        ((1, 1, 2, 4), [0, 1]), ((1, 2, 4, 6), [3, 4, 5, 6]), ((2, 2, 5, 8), [0, 0, 0, 1, 2]), ((2, 1, 3, 16), [2, 7, 20]),
    ):  # fmt: skip
        yield {"x": torch.randn(shape, generator=generator), "positions": torch.tensor(positions)}


@rotary.oracle
def _(x, positions):
    """A pair is a complex number, and turning it is a product."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    for t, position in enumerate(positions.tolist()):
        for i in range(half):
            angle = position * 10000 ** (-i / half)
            pairs[..., t, i] *= complex(math.cos(angle), math.sin(angle))
    return torch.cat([pairs.real, pairs.imag], dim=-1).float()


def turned(x, positions, exponent=None, minus=-1.0, plus=1.0, pairs="halves"):
    """Rotary positions, with places to go wrong."""
    half = x.shape[-1] // 2
    if exponent is None:
        exponent = torch.arange(half) / half
    angles = positions[:, None] * 10000.0**-exponent  # (T, D/2)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if pairs == "neighbours" else x.chunk(2, dim=-1)
    new = (a * cos + minus * b * sin, plus * a * sin + b * cos)
    return torch.stack(new, dim=-1).flatten(-2) if pairs == "neighbours" else torch.cat(new, dim=-1)


@rotary.mistake("the pairs are neighbours, (x[2i], x[2i + 1]), as in GPT-J; here a pair is (x[i], x[i + D/2])")
def _(x, positions):
    return turned(x, positions, pairs="neighbours")


@rotary.mistake("the pairs turn the wrong way: (a cos - b sin, a sin + b cos)")
def _(x, positions):
    return turned(x, positions, minus=1.0, plus=-1.0)


@rotary.mistake("a minus is missing, so lengths change and this is no rotation: (a cos - b sin, a sin + b cos)")
def _(x, positions):
    return turned(x, positions, minus=1.0)


@rotary.mistake("the frequencies fall half as fast as they should: the exponent is -i / (D/2)")
def _(x, positions):
    return turned(x, positions, exponent=torch.arange(x.shape[-1] // 2) / x.shape[-1])


@rotary.mistake("every pair turns at the same speed: pair i has the frequency 10000 ** (-i / (D/2))")
def _(x, positions):
    return turned(x, positions, exponent=torch.zeros(x.shape[-1] // 2))


@rotary.mistake("the positions are counted from 0 here; use those that are given, a row may have padding or a cache before it")
def _(x, positions):
    return turned(x, torch.arange(len(positions)))


@rotary.mistake("sines and cosines are added to x; rotary positions multiply: they turn each pair by its angle")
def _(x, positions):
    half = x.shape[-1] // 2
    angles = positions[:, None] * 10000.0 ** (-torch.arange(half) / half)
    return x + torch.cat([angles.sin(), angles.cos()], dim=-1)


# ----------------------------------------------------------------------------------------- 2.5

layer_norm = Exercise("2.5", "layer_norm")


@layer_norm.inputs
def _(generator):
    yield {"x": torch.tensor([[1.0, 3.0]]), "gain": torch.ones(2), "bias": torch.zeros(2), "eps": 1e-5}
    yield {"x": torch.tensor([[2.0, 2.0]]), "gain": torch.tensor([1.0, 2.0]), "bias": torch.tensor([0.0, 1.0]), "eps": 1e-5}
    for shape, eps in (((3, 4), 1e-5), ((2, 3, 5), 0.1)):
        gain, bias = torch.randn(2, shape[-1], generator=generator)
        yield {"x": 1 + 2 * torch.randn(shape, generator=generator), "gain": gain, "bias": bias, "eps": eps}


@layer_norm.oracle
def _(x, gain, bias, eps):
    return F.layer_norm(x, x.shape[-1:], gain, bias, eps)


def normed(x, gain, bias, eps, dim=-1, unbiased=False, centre=True):
    x = x - x.mean(dim, keepdim=True) if centre else x
    variance = x.var(dim, unbiased=unbiased, keepdim=True) if centre else (x * x).mean(dim, keepdim=True)
    return x / (variance + eps).sqrt() * gain + bias


@layer_norm.mistake("the variance is divided by C - 1; here it is the biased one, divided by C")
def _(x, gain, bias, eps):
    return normed(x, gain, bias, eps, unbiased=True)


@layer_norm.mistake("the mean is still in it, which makes this RMSNorm: subtract the mean first")
def _(x, gain, bias, eps):
    return normed(x, gain, bias, eps, centre=False)


@layer_norm.mistake("this divides by the variance; divide by its root, so that the spread becomes 1")
def _(x, gain, bias, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps) * gain + bias


@layer_norm.mistake("eps stands outside the root; it belongs to the variance, inside")
def _(x, gain, bias, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True).sqrt() + eps) * gain + bias


@layer_norm.mistake("eps is missing: a vector whose numbers are all equal gives 0 / 0")
def _(x, gain, bias, eps):
    return normed(x, gain, bias, 0.0)


@layer_norm.mistake("mean and variance are taken across the rows, as in batch norm; take each vector's own, the last dimension")
def _(x, gain, bias, eps):
    return normed(x, gain, bias, eps, dim=0)


@layer_norm.mistake("one mean and one variance serve the whole batch; each vector has its own, with keepdim=True")
def _(x, gain, bias, eps):
    return normed(x, gain, bias, eps, dim=tuple(range(x.dim())))


@layer_norm.mistake("gain and bias are missing: multiply by the gain and add the bias after normalising")
def _(x, gain, bias, eps):
    return F.layer_norm(x, x.shape[-1:], eps=eps)


# ----------------------------------------------------------------------------------------- 2.6

block = Exercise("2.6", "block")


@block.inputs
def _(generator):
    yield {"x": torch.tensor([[[1.0, -1.0]]]), "heads": 1, "seed": 0}
    for B, T, C, heads in ((1, 3, 4, 2), (2, 4, 8, 2)):
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


@block.call
def _(function, x, heads, seed):
    """A block of random weights, drawn from `seed`; the function gets its parts."""
    width = x.shape[-1]
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.5, generator=generator)
        return function(x, layer.norm1, Attend(layer), layer.norm2, lambda x: layer.linear2(layer.linear1(x).relu()))


@block.oracle
def _(x, norm1, attend, norm2, feed):
    """PyTorch's own layer, with the norm first."""
    return attend.layer(x, src_mask=attend.mask(x))


@block.mistake("the skip around the attention is missing: add its output to x")
def _(x, norm1, attend, norm2, feed):
    x = attend(norm1(x))
    return x + feed(norm2(x))


@block.mistake("the skip around the feed-forward part is missing: add its output to x")
def _(x, norm1, attend, norm2, feed):
    return feed(norm2(x + attend(norm1(x))))


@block.mistake("this is post-norm, the 2017 order: here the norm stands in front of a part, and nothing stands on the skip")
def _(x, norm1, attend, norm2, feed):
    x = norm1(x + attend(x))
    return norm2(x + feed(x))


@block.mistake("the skip carries the normalised x: keep x itself for the sum, and give the norm's output to the part alone")
def _(x, norm1, attend, norm2, feed):
    x = norm1(x)
    x = norm2(x + attend(x))
    return x + feed(x)


@block.mistake("both parts read the block's input; the feed-forward part is to read what the attention has written")
def _(x, norm1, attend, norm2, feed):
    return x + attend(norm1(x)) + feed(norm2(x))


@block.mistake("the second skip starts from the block's input, so what the attention wrote is lost: add to the sum so far")
def _(x, norm1, attend, norm2, feed):
    return x + feed(norm2(x + attend(norm1(x))))


@block.mistake("there are no norms: each part reads norm(x)")
def _(x, norm1, attend, norm2, feed):
    x = x + attend(x)
    return x + feed(x)


@block.mistake("the norms stand behind the parts: normalise what a part reads, not what it writes")
def _(x, norm1, attend, norm2, feed):
    x = x + norm1(attend(x))
    return x + norm2(feed(x))


@block.mistake("norm1 is used twice: the feed-forward part has a norm of its own, norm2")
def _(x, norm1, attend, norm2, feed):
    x = x + attend(norm1(x))
    return x + feed(norm1(x))


# ----------------------------------------------------------------------------------------- 2.7

gpt_logits = Exercise("2.7", "gpt_logits", tolerance=1e-4)


@gpt_logits.inputs
def _(generator):
    for B, T, layers, heads, width in ((1, 1, 1, 1, 4), (1, 3, 1, 2, 8), (2, 5, 3, 2, 8)):
        seed = int(torch.randint(1000, (), generator=generator))
        tokens = torch.randint(7, (B, T), generator=generator)
        yield {"tokens": tokens, "layers": layers, "heads": heads, "width": width, "seed": seed}


@gpt_logits.call
def _(function, tokens, layers, heads, width, seed):
    """Weights of a small GPT-2 with 7 tokens and 6 positions, drawn from `seed`: large, so that every part matters."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embedding.weight": (7, width), "position_embedding.weight": (6, width)}
    for layer in range(layers):
        for name, shape in {
            "norm1": (width,), "attention.qkv": (3 * width, width), "attention.out": (width, width),
            "norm2": (width,), "up": (4 * width, width), "down": (width, 4 * width),
        }.items():  # fmt: skip
            shapes[f"blocks.{layer}.{name}.weight"], shapes[f"blocks.{layer}.{name}.bias"] = shape, shape[:1]
    shapes["norm.weight"] = shapes["norm.bias"] = (width,)
    weights = {name: 0.6 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return function(tokens, weights, layers, heads)


@gpt_logits.oracle
def _(tokens, weights, layers, heads):
    vocab_size, width = weights["embedding.weight"].shape
    model = GPT(GPTConfig.gpt2(vocab_size=vocab_size, context=6, layers=layers, heads=heads, width=width)).eval()
    model.load_state_dict({**weights, "head.weight": weights["embedding.weight"]})
    return model(tokens)


def gpt2(tokens, weights, layers, heads, mistake=""):
    """The forward pass of GPT-2, written out; `mistake` names what goes wrong."""

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], None if mistake == "no bias" else weights[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    B, T = tokens.shape
    x = weights["embedding.weight"][tokens]
    if mistake == "batch positions":
        x = x + weights["position_embedding.weight"][:B, None]
    elif mistake != "no positions":
        x = x + weights["position_embedding.weight"][:T]
    for layer in range(layers):
        at = f"blocks.{0 if mistake == 'shared' else layer}"
        y = linear(x if mistake == "post-norm" else norm(x, f"{at}.norm1"), f"{at}.attention.qkv")
        q, k, v = (part.view(B, T, heads, -1).transpose(1, 2) for part in y.chunk(3, dim=-1))
        scale = 1.0 if mistake == "no scale" else None
        y = F.scaled_dot_product_attention(q, k, v, is_causal=mistake != "no mask", scale=scale)
        x = x + linear(y.transpose(1, 2).reshape(x.shape), f"{at}.attention.out")
        x = norm(x, f"{at}.norm1") if mistake == "post-norm" else x
        y = linear(x if mistake == "post-norm" else norm(x, f"{at}.norm2"), f"{at}.up")
        y = y.relu() if mistake == "relu" else F.gelu(y, approximate="none" if mistake == "exact" else "tanh")
        x = x + linear(y, f"{at}.down")
        x = norm(x, f"{at}.norm2") if mistake == "post-norm" else x
    x = x if mistake == "no last norm" else norm(x, "norm")
    logits = x @ weights["embedding.weight"].T
    return {"probabilities": logits.softmax(-1), "last": logits[:, -1]}.get(mistake, logits)


for sentence, kind in {
    "the positions are missing: add row t of the position embedding at place t": "no positions",
    "the position embedding is added along the batch; its row t belongs to place t of every text": "batch positions",
    "there is no causal mask: every position sees the future": "no mask",
    "the attention's scores lack the 1/sqrt(D)": "no scale",
    "every block uses the weights of block 0; each layer has its own, blocks.0, blocks.1 and so on": "shared",
    "the norms stand behind the parts (post-norm); GPT-2 normalises in front of each part": "post-norm",
    "the last norm is missing: GPT-2 normalises once more before the head": "no last norm",
    "the activation is ReLU; GPT-2 has GELU in its tanh form": "relu",
    "this is the exact GELU; GPT-2 has the tanh form, F.gelu(x, approximate='tanh')": "exact",
    "the biases of the linear layers are missing": "no bias",
    "these are probabilities; return the logits, the loss takes the softmax itself": "probabilities",
    "only the last position is here; return logits for every position, all are trained at once": "last",
}.items():
    gpt_logits.mistake(sentence)(lambda tokens, weights, layers, heads, kind=kind: gpt2(tokens, weights, layers, heads, kind))


# ----------------------------------------------------------------------------------------- 2.8

count_parameters = Exercise("2.8", "count_parameters", tolerance=0.0)


@count_parameters.inputs
def _(generator):
    yield {"vocab_size": 3, "context": 2, "layers": 1, "width": 2}
    for _ in range(3):
        vocab_size, context, layers, half = torch.randint(2, 12, (4,), generator=generator).tolist()
        yield {"vocab_size": vocab_size + 11, "context": context, "layers": layers, "width": 2 * half}
    yield {"vocab_size": 50257, "context": 1024, "layers": 12, "width": 768}


@count_parameters.oracle
@functools.lru_cache(maxsize=64)
def _(vocab_size, context, layers, width):
    """Build the model without its numbers, and count."""
    with torch.device("meta"):
        model = GPT(GPTConfig.gpt2(vocab_size=vocab_size, context=context, layers=layers, heads=1, width=width))
    return sum(p.numel() for p in model.parameters())


for sentence, missing in {
    "the token embedding is counted twice: the head is tied to it, so it is one matrix": lambda V, P, L, C: -V * C,
    "the position embedding is missing: context x width": lambda V, P, L, C: P * C,
    "the biases of the linear layers are missing: 9 x width in each block": lambda V, P, L, C: 9 * L * C,
    "the norms are missing: two in each block and one at the end, each with gain and bias": lambda V, P, L, C: (4 * L + 2) * C,
    "the norms have a bias too, not a gain alone": lambda V, P, L, C: (2 * L + 1) * C,
    "the last norm, behind the blocks, is missing": lambda V, P, L, C: 2 * C,
    "the feed-forward part has two linear layers, up to 4 x width and down again": lambda V, P, L, C: L * (4 * C * C + C),
    "queries, keys and values have a matrix each, and a bias": lambda V, P, L, C: L * (2 * C * C + 2 * C),
    "the attention's output matrix is missing, and its bias": lambda V, P, L, C: L * (C * C + C),
    "only one block is counted; there are `layers` of them": lambda V, P, L, C: (L - 1) * (12 * C * C + 13 * C),
}.items():
    count_parameters.mistake(sentence)(
        lambda vocab_size, context, layers, width, missing=missing: (
            count_parameters.right(vocab_size, context, layers, width) - missing(vocab_size, context, layers, width)
        )
    )


# ----------------------------------------------------------------------------------------- 2.9

reversal_batch = Exercise("2.9", "reversal_batch", tolerance=0.0)


@reversal_batch.inputs
def _(generator):
    yield {"sequences": torch.tensor([[5]]), "separator": 9}
    yield {"sequences": torch.tensor([[5, 3]]), "separator": 9}
    for rows, length in ((2, 3), (3, 5)):
        yield {"sequences": torch.randint(1, 9, (rows, length), generator=generator), "separator": 9}
    yield {"sequences": torch.tensor([[1, 2, 3, 4], [4, 4, 2, 1]]), "separator": 0}


@reversal_batch.oracle
def _(sequences, separator):
    inputs, targets = [], []
    for sequence in sequences.tolist():
        answer = sequence[::-1]
        inputs.append([*sequence, separator, *answer[:-1]])
        targets.append([-100] * len(sequence) + answer)
    return torch.tensor(inputs), torch.tensor(targets)


def reversal(sequences, separator, answer=None, unscored=0, ignored=-100, shift=1, apart=True):
    """The rows of the task, with places to go wrong."""
    middle = [torch.full_like(sequences[:, :1], separator)] if apart else []
    row = torch.cat([sequences, *middle, sequences.flip(1) if answer is None else answer], dim=1)
    targets = row[:, shift : shift + row.shape[1] - 1].clone()
    targets[:, : sequences.shape[1] + unscored] = ignored
    return row[:, :-1], targets


@reversal_batch.mistake("the question is scored too: nobody can predict random tokens, so their targets are -100")
def _(sequences, separator):
    return reversal(sequences, separator, unscored=-sequences.shape[1])


@reversal_batch.mistake("the answer is the sequence as it was; it is to be the sequence backwards")
def _(sequences, separator):
    return reversal(sequences, separator, answer=sequences)


@reversal_batch.mistake("the batch is turned round, not each sequence: flip dimension 1")
def _(sequences, separator):
    return reversal(sequences, separator, answer=sequences.flip(0))


@reversal_batch.mistake("the targets are the inputs themselves: the target at place t is the token at t + 1")
def _(sequences, separator):
    return reversal(sequences, separator, shift=0)


@reversal_batch.mistake("the answer's first token is not scored: it is predicted at the separator, place n")
def _(sequences, separator):
    return reversal(sequences, separator, unscored=1)


@reversal_batch.mistake("the separator is scored, and it is part of the question: the first n targets are -100")
def _(sequences, separator):
    return reversal(sequences, separator, unscored=-1)


@reversal_batch.mistake("what is not scored has the target 0, which is a token: cross_entropy leaves out -100")
def _(sequences, separator):
    return reversal(sequences, separator, ignored=0)


@reversal_batch.mistake("there is no separator: the model cannot know where the question ends")
def _(sequences, separator):
    return reversal(sequences, separator, apart=False, unscored=-1)
