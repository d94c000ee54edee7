"""Chapter 04, Build it 4.10: what goes wrong in reading a GPT, cache or not, in the use of a temperature, and at the end.

B: rows    N: new tokens    V: vocabulary    T: tokens of a row    C: width    H: heads    D: size of a head
"""

from functools import partial

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.reading import scores
from rlhf_lib.models.layers import rms_norm

HEATS = {  # what a learner is told, and the log-probabilities of logits (B, N, V), tokens (B, N), and a temperature
    "the temperature is used twice; the logits are divided by it once, and with_temperature does that":
        lambda x, y, t: scores(x / t**2, y),
    "the logits are multiplied by the temperature; divide them by it": lambda x, y, t: scores(x * t, y),
    "the log-probabilities are divided by the temperature, and do not sum to 1; divide the logits, before log_softmax":
        lambda x, y, t: scores(x, y) / t,
    "the temperature is used for the first token of a row alone; each token is drawn at it":
        lambda x, y, t: torch.cat([scores(x / t, y)[:, :1], scores(x, y)[:, 1:]], 1),
    "the temperature is not used for the first token of a row; each token is drawn at it":
        lambda x, y, t: torch.cat([scores(x, y)[:, :1], scores(x / t, y)[:, 1:]], 1),
}  # fmt: skip


def turned(x, base=10000.0, sign=1, pairs=False):
    """x (1, H, T, D), rotated by the positions from 0 on. pairs: neighbours with each other, and not half with half."""
    T, half = x.shape[2], x.shape[3] // 2
    angles = sign * torch.arange(T)[:, None] * base ** (-torch.arange(half, dtype=x.dtype) / half)  # (T, D/2)
    a, b = (x[..., ::2], x[..., 1::2]) if pairs else x.chunk(2, -1)
    parts = a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()
    return torch.stack(parts, -1).flatten(-2) if pairs else torch.cat(parts, -1)


def in_heads(qkv, heads):
    """Queries, keys and values (1, H, T, D) of qkv (1, T, 3C)."""
    return qkv.view(1, qkv.shape[1], 3, heads, -1).permute(2, 0, 3, 1, 4)


def joined(y):
    return y.transpose(1, 2).flatten(2)


def gained(x, weight, name):
    return rms_norm(x, weight)


def unless(names, otherwise):
    """The norms, but those of `names` otherwise."""
    return lambda x, weight, name: otherwise(x, weight) if name in names else rms_norm(x, weight)


def by_itself(x, block):
    return rms_norm(x)


def as_it_is(x, *_):
    return x


@torch.no_grad()
def read_otherwise(
    gpt, prompts, mask, tokens, *, norm=gained, split=in_heads, query=by_itself, key=by_itself, turn=turned, value=as_it_is,
    scale=lambda D, C: D**-0.5, join=joined, squash=lambda x: x.relu() ** 2, stream=("attention", "feed-forward"),
):  # fmt: skip
    """As `reading.read_alone`, which it equals without options. `stream`: what the residual stream goes on beside."""
    gpt, N, logits = gpt.double(), tokens.shape[1], []
    for prompt, real, new in zip(prompts, mask, tokens):
        x = gpt.embedding(torch.cat([prompt[real], new[:-1]])[None])  # (1, T, C)
        for block in gpt.blocks:
            q, k, v = split(block.attention.qkv(norm(x, block.norm1.weight, "norm1")), gpt.heads)
            q, k, size = turn(query(q, block)), turn(key(k, block)), scale(q.shape[-1], x.shape[-1])
            y = F.scaled_dot_product_attention(q, k, value(v), is_causal=True, scale=size)
            x = block.attention.out(join(y)) + (x if "attention" in stream else 0)
            hidden = squash(block.up(norm(x, block.norm2.weight, "norm2")))
            x = block.down(hidden) + (x if "feed-forward" in stream else 0)
        logits.append(gpt.head(norm(x, gpt.norm.weight, "last"))[0, -N:])
    return torch.stack(logits)


def over_all_heads(x, block):
    return x * (x.square().mean((1, 3), keepdim=True) + 1e-6).rsqrt()


def with_gain(x, block):
    return rms_norm(x, block.norm1.weight[: x.shape[-1]])


def without_mean(x, weight):
    return F.layer_norm(x, x.shape[-1:], weight)


UNLIKE = {  # what a learner is told, and the options of `read_otherwise` that read so
    "the queries and keys of each head are not normalised: RMS over D, without a gain, before they are rotated":
        [{"query": as_it_is, "key": as_it_is}, {"query": as_it_is}, {"key": as_it_is}],
    "queries and keys are normalised over all heads at once; each head by itself, over D":
        [{"query": over_all_heads, "key": over_all_heads}],
    "the norm of queries and keys has a gain here; it has none": [{"query": with_gain, "key": with_gain}],
    "a norm's gain is left out: it is the module's .weight":
        [{"norm": unless(names, lambda x, weight: rms_norm(x))} for names in (("norm1", "norm2", "last"), ("norm1", "norm2"),
         ("norm1",), ("norm2",), ("last",))],
    "the last norm is missing: model.norm comes before model.head": [{"norm": unless(("last",), as_it_is)}],
    "the norm before the attention, norm1, or before the feed-forward layer, norm2, is missing":
        [{"norm": unless(names, as_it_is)} for names in (("norm1",), ("norm2",), ("norm1", "norm2"))],
    "the norms are LayerNorms here; RMSNorm takes no mean off": [{"norm": unless(("norm1", "norm2", "last"), without_mean)}],
    "the feed-forward layer's function is the squared ReLU, relu(x) ** 2, and here it is another":
        [{"squash": squash} for squash in (torch.relu, torch.square, F.gelu, F.silu)],
    "the scores are to be divided by sqrt(D), D being the size of a head, and by nothing else":
        [{"scale": scale} for scale in (lambda D, C: 1.0, lambda D, C: 1 / D, lambda D, C: C**-0.5)],
    "the values are rotated; only queries and keys are": [{"value": turned}],
    "queries and keys are not rotated: the attention does not know where a token stands": [{"turn": as_it_is}],
    "neighbours are rotated with each other; it is the first half of a head with its second half": [
        {"turn": partial(turned, pairs=True)}],
    "the rotation goes the other way round: (a cos - b sin, a sin + b cos)": [{"turn": partial(turned, sign=-1)}],
    "the angles are others: position * 10000 ** (-i / (D / 2)), i from 0 to D / 2 - 1":
        [{"turn": partial(turned, base=base)} for base in (100.0, 1000.0, 1e5, 5e5, 1e6, 1e8)],
    "qkv is cut in another order: q, k, v are its thirds, and each head is D numbers side by side": [
        {"split": split} for split in (
            lambda x, H: x.view(1, x.shape[1], H, 3, -1).permute(3, 0, 2, 1, 4),
            lambda x, H: x.view(1, x.shape[1], 3, -1, H).permute(2, 0, 4, 1, 3),
            lambda x, H: [part.reshape(1, H, x.shape[1], -1) for part in x.chunk(3, 2)])],
    "the heads are not laid side by side again: transpose (B, H, T, D) to (B, T, H, D) before the reshape":
        [{"join": lambda y: y.reshape(1, y.shape[2], -1)}],
    "the residual stream is lost: attention and feed-forward layer are both added to x":
        [{"stream": stream} for stream in ((), ("attention",), ("feed-forward",))],
}  # fmt: skip


def misdrawn(tokens, untempered, wrong, uniforms, temperature, real):
    """Which token was drawn otherwise than its uniform says, where the network is read right."""
    if temperature != 1 and bool((tokens == untempered)[real].all()):
        return f"the tokens are drawn at temperature 1 and scored at {temperature:g}: one distribution does both"
    row, n = wrong.nonzero()[0].tolist()
    return (
        f"the network is read right, for the log-probabilities fit the tokens, but token {n} of row {row} is not the one on "
        f"which uniforms[{row}, {n}] = {uniforms[row, n]:.4f} falls: draw as in exercise 4.4, each row and step with "
        "its own number"
    )


def around_the_end(output, right, end_token):
    """What is wrong with the mask, and with what stands behind the end. `right`: what must be drawn behind the tokens before."""
    tokens, logprobs, mask = output
    ends = (tokens == end_token).int()
    real = ends.cumsum(1) - ends == 0  # up to and including the first end token
    for row, n in (mask != real).nonzero().tolist():
        if mask[row, n]:
            return f"the mask is True at token {n} of row {row}, behind the end token: what stands there was not drawn"
        if tokens[row, n] == end_token == right[row, n]:
            return "the mask leaves the end token out: it was drawn like any other, so it is part of the completion and is scored"
        return (
            f"row {row} is broken off before token {n}, though it had not ended: a row ends when it draws the end token itself, "
            "not when another row does, nor for one in its prompt"
        )
    if (tokens[~real] != end_token).any():
        return f"behind the end of a row stands something else than the end token ({end_token}): the row has ended"
    if (logprobs[~real] != 0).any():
        return "behind the end of a row the log-probabilities are not 0: nothing was drawn there, and sums would count it"
    return ""
