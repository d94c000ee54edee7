"""The GPT of Build it 2.10, written out in plain tensors, with places to go wrong; and the weights it is tried with.

A `shape` is (vocab_size, context, layers, heads, width), what a GPT is made with.
"""

import math

import torch
from torch.nn import functional as F

CLOSE = 1e-4


def shapes(vocab_size, context, layers, heads, width):
    """The names of the weights, and the shape of each."""
    found = {"embedding.weight": (vocab_size, width), "norm.weight": (width,), "head.weight": (vocab_size, width)}
    for layer in range(layers):
        for name, shape in {
            "norm1": (width,), "attention.qkv": (3 * width, width), "attention.out": (width, width),
            "norm2": (width,), "up": (4 * width, width), "down": (width, 4 * width),
        }.items():  # fmt: skip
            found[f"blocks.{layer}.{name}.weight"] = shape
    return found


def draw_state(generator, shape, spread=1.0):
    """Weights that make every part matter; those of the embedding have the given spread."""
    state = {}
    for name, size in shapes(*shape).items():
        drawn = torch.randn(size, generator=generator)
        state[name] = 1 + 0.3 * drawn if len(size) == 1 else drawn * (1.5 * size[1] ** -0.5)
    state["embedding.weight"] = torch.randn(state["embedding.weight"].shape, generator=generator) * spread
    return state


def draw_tokens(generator, shape, *size):
    return torch.randint(shape[0], size, generator=generator)


LAYER_NORM = "the norms subtract the mean (LayerNorm); RMSNorm only divides by the root of the mean square"
ITS_OWN = "has an eps of its own, 1.2e-7, unless it is given one; here it is 1e-6"
SHARED = {
    "no mask": "there is no causal mask: every position sees the future",
    "no scale": "the scores are not divided by sqrt(D)",
    "root of whole C": "the scores are divided by sqrt(C); it is sqrt(D), the root of a head's size",
    "scale twice": "the scores are divided by sqrt(D) twice, or by D: `attention` divides already",
    "no normalised q, k": "queries and keys are not normalised: each head's q and k go through an RMSNorm before they are turned",
    "whole q, k": "queries and keys are normalised over the whole width; each head's D numbers are normalised by themselves",
    "length 1": "queries and keys have length 1, as by F.normalize; an RMSNorm leaves them with a mean square of 1, sqrt(D) long",
    "normalised values": "the values are normalised too: only queries and keys are",
    "no positions": "there are no positions: queries and keys are not turned, or not by the place of their token (exercise 2.4)",
    "turned values": "the values are turned too: only queries and keys are, whose dot products are to feel distances",
    "neighbours": "the pairs that are turned are neighbours, (x[2i], x[2i + 1]); here a pair is (x[i], x[i + D/2]), as in 2.4",
    "torn": "view(B, heads, T, D) tears positions apart: view(B, T, heads, D), then transpose(1, 2)",
    "scrambled": "the heads are put together without transpose(1, 2): bring them back to (B, T, heads, D) first",
    "strided": "a head takes every heads-th number; it is to take D neighbours",
    "q and k": "queries and keys are swapped: the first C rows of qkv make the queries, the next C the keys",
    "k and v": "keys and values are swapped: the second C rows of qkv make the keys, the last C the values",
    "inside": "queries, keys and values are cut inside each head; the first C rows of qkv make all queries",
    "no out": "attention.out is not used: it mixes what the heads brought home",
    "relu": "the activation is ReLU, and its square is missing",
    "gelu": "the activation is GELU in its tanh form; here it is the square of ReLU",
    "exact gelu": "the activation is GELU; here it is the square of ReLU",
    "square": "the activation is the square of x, also where x is negative; first ReLU, then the square",
    "no activation": "there is no activation between up and down",
    "layer norm": LAYER_NORM, "layer norm of gains": LAYER_NORM, "layer norm, 1e-5 of gains": LAYER_NORM,
    "no gains": "the norms do not use their gains",
    "eps": "the eps of the norms is another; it is 1e-6, beside the mean square, under the root",
    "torch's eps": f"nn.RMSNorm {ITS_OWN}",
    "no eps": "the norms have no eps; it is 1e-6, beside the mean square, under the root",
    "eps of q, k": "the eps of the norm of queries and keys is another; it is 1e-6 there too",
    "torch's eps of q, k": "F.rms_norm of queries and keys has an eps of its own, 1.2e-7, unless it is given one: 1e-6",
    "no eps of q, k": "the norm of queries and keys has no eps; it is 1e-6 there too",
    "eps of gains": "the eps of the norms in the stream is another; it is 1e-6, as for queries and keys",
    "torch's eps of gains": f"nn.RMSNorm of the stream {ITS_OWN}",
    "eps of blocks": "the eps of the norms in the blocks, norm1 and norm2, is another; it is 1e-6, as in the last norm",
    "torch's eps of blocks": "norm1 and norm2 have an eps of their own, 1.2e-7, unless they are given one; here it is 1e-6",
    "eps of last": "the eps of the last norm is another; it is 1e-6, as in the blocks",
    "torch's eps of last": f"the last norm {ITS_OWN}",
    "post-norm": "the norms stand behind the parts; each stands in front of its part",
    "swapped norms": "the two norms of a block are swapped: norm1 belongs to the attention",
    "norm1 twice": "norm1 is used twice in a block: the feed-forward part has a norm of its own, norm2",
    "normed skips": "the skips carry the normalised stream: keep the stream itself for the sum",
    "no skips": "the skips are missing: each part's output is added to the stream",
    "parallel": "the feed-forward part reads the block's input; it reads the stream with what the attention has added",
    "no last norm": "the norm behind the last block is missing",
    "tied": "the head is the embedding (tied, as in GPT-2); here it has weights of its own",
    "root of C": "the embedding is multiplied by sqrt(C); here it is used as it is",
    "block 0": "every block uses the weights of block 0",
    "one too few": "the last block is missing",
    "no last feed": "the feed-forward part of the last block is missing",
    "softmax": "these are probabilities; return the logits, the loss takes the softmax itself",
    "log-softmax": "these are log-probabilities; return the logits, without softmax",
}  # fmt: skip


EPS = {"eps": 1e-5, "layer norm, 1e-5": 1e-5, "torch's eps": torch.finfo(torch.float32).eps, "no eps": 0.0}


def reference(tokens, state, heads, wrong=""):
    """(logits, hidden) of a GPT with these weights, written out, in float64; `wrong` is a name of SHARED."""
    w, (B, T) = {name: tensor.double() for name, tensor in state.items()}, tokens.shape
    C = w["norm.weight"].shape[0]
    D = C // heads

    def norm(x, gain=None):
        kind, _, place = wrong.partition(" of ")
        here = ("q, k",) if gain is None else ("gains", "last" if gain == "norm" else "blocks")
        kind = kind if place in ("", *here) else ""
        x = x - x.mean(-1, keepdim=True) if kind.startswith("layer norm") else x
        x = x / (x.square().mean(-1, keepdim=True) + EPS.get(kind, 1e-6)).sqrt()
        return x if gain is None or wrong == "no gains" else x * w[f"{gain}.weight"]

    def cut(x):
        if wrong == "torn":
            return x.reshape(B, heads, T, D)
        return (x.view(B, T, D, heads).mT if wrong == "strided" else x.view(B, T, heads, D)).transpose(1, 2)

    def turn(x):
        if wrong == "no positions":
            return x
        a, b = (x[..., 0::2], x[..., 1::2]) if wrong == "neighbours" else x.chunk(2, -1)
        angles = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(D // 2).double() / (D // 2))
        turned = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)
        pair = (turned.real, turned.imag)
        return torch.stack(pair, -1).flatten(-2) if wrong == "neighbours" else torch.cat(pair, -1)

    def attend(x, name):
        made = x @ w[f"{name}.qkv.weight"].T
        made = made.view(B, T, heads, 3, D).transpose(2, 3).flatten(2) if wrong == "inside" else made
        q, k, v = made.split(C, -1)
        q, k, v = {"q and k": (k, q, v), "k and v": (q, v, k)}.get(wrong, (q, k, v))
        q, k = (norm(q), norm(k)) if wrong == "whole q, k" else (q, k)
        q, k, v = cut(q), cut(k), cut(v)
        q, k = (q, k) if wrong in ("whole q, k", "no normalised q, k") else (norm(q), norm(k))
        q, k = (q / D**0.5, k / D**0.5) if wrong == "length 1" else (q, k)
        v = norm(v) if wrong == "normalised values" else v
        q, k, v = turn(q), turn(k), turn(v) if wrong == "turned values" else v
        scores = q @ k.mT / {"no scale": 1.0, "root of whole C": C**0.5, "scale twice": D}.get(wrong, D**0.5)
        hidden = torch.ones(T, T).triu(1) * (wrong != "no mask")
        y = scores.masked_fill(hidden.bool(), -math.inf).softmax(-1) @ v
        y = (y if wrong == "scrambled" else y.transpose(1, 2)).reshape(B, T, C)
        return y if wrong == "no out" else y @ w[f"{name}.out.weight"].T

    acts = {"relu": F.relu, "gelu": lambda x: F.gelu(x, approximate="tanh"), "exact gelu": F.gelu, "square": torch.square}
    acts["no activation"] = torch.clone
    act = acts.get(wrong, lambda x: F.relu(x) ** 2)
    x = w["embedding.weight"][tokens] * (C**0.5 if wrong == "root of C" else 1.0)
    layers = sum(name.endswith("norm1.weight") for name in w)
    for layer in range(layers - (wrong == "one too few")):
        name = f"blocks.{0 if wrong == 'block 0' else layer}"
        parts = {
            "norm1": lambda x, name=name: attend(x, f"{name}.attention"),
            "norm2": lambda x, name=name: act(x @ w[f"{name}.up.weight"].T) @ w[f"{name}.down.weight"].T,
        }
        if wrong == "no last feed" and layer == layers - 1:
            del parts["norm2"]
        before, others = x, {"swapped norms": {"norm1": "norm2", "norm2": "norm1"}, "norm1 twice": {"norm2": "norm1"}}
        for gain, part in parts.items():
            other = others.get(wrong, {}).get(gain, gain)
            if wrong == "post-norm":
                x = norm(x + part(x), f"{name}.{gain}")
                continue
            read = norm(before if wrong == "parallel" else x, f"{name}.{other}")
            x = (read if wrong == "normed skips" else 0.0 if wrong == "no skips" else x) + part(read)
    x = x if wrong == "no last norm" else norm(x, "norm")
    logits = x @ w["embedding.weight" if wrong == "tied" else "head.weight"].T
    return {"softmax": logits.softmax(-1), "log-softmax": logits.log_softmax(-1)}.get(wrong, logits), x


def away(a, b):
    """How far two tensors are from each other, at most; infinite where a number is none."""
    return (a.double() - b.double()).abs().nan_to_num(math.inf).amax().item()


def misshapen(logits, shape, what="the logits"):
    """A sentence where `logits` are no tensor of this shape."""
    if not torch.is_tensor(logits):
        return f"{what} are no tensor"
    return "" if tuple(logits.shape) == tuple(shape) else f"{what} have the shape {tuple(logits.shape)}, not {tuple(shape)}"


def named(out, cases):
    """The sentence of the mistake that explains the logits of all cases; "" where there is none, or nothing is wrong."""

    def fits(place, wrong=""):
        case, one = cases[place], out[place]["logits"]
        expected = reference(case["tokens"], case["state"], case["shape"][3], wrong)[0]
        return not misshapen(one, expected.shape) and away(one, expected) < CLOSE

    order = sorted(range(len(out)), key=fits)  # those that are wrong first: they rule most mistakes out
    if fits(order[0]):
        return ""
    return next((sentence for name, sentence in SHARED.items() if all(fits(place, name) for place in order)), "")


def judge_reference(out, cases):
    def fits(one, expected):
        return torch.is_tensor(one) and one.shape == expected.shape and away(one, expected) < CLOSE

    right = [reference(case["tokens"], case["state"], case["shape"][3]) for case in cases]
    wrong = [place for place, one in enumerate(out) if not fits(one["logits"], right[place][0])]
    if wrong:
        case, one = cases[wrong[0]], out[wrong[0]]["logits"]
        if sentence := named(out, cases) or misshapen(one, right[wrong[0]][0].shape):
            return sentence
        return f"with given weights the logits are off by up to {away(one, right[wrong[0]][0]):.2g}, and first {case['where']}"
    for place, one in enumerate(out):
        if not fits(one["hidden"], right[place][1]):
            return "the logits are right, but `hidden` is not what the head reads: return the stream behind the last norm"
    return ""


# ----------------------------------------------------------------------------------------- what it is tried with

LETTERS, LENGTH = 16, 8  # of the reversal task


def draw_cases(generator):
    """Weights and tokens for the reference, from the simplest model on; `where` says what each shows."""
    cases = []
    for where, shape, length, silent in (
        ("where the blocks add nothing (look at embedding, last norm and head)", (5, 4, 1, 1, 4), 3, ("out", "down")),
        ("in the attention (the feed-forward part adds nothing here)", (7, 6, 1, 2, 8), 5, ("down",)),
        ("in the feed-forward part (the attention adds nothing here)", (7, 6, 1, 2, 8), 5, ("out",)),
        ("in two blocks, one behind the other", (9, 12, 2, 3, 12), 10, ()),
        ("where the numbers in the stream, in queries and keys are small", (9, 8, 2, 2, 8), 6, ("qkv", "down")),
    ):
        small = 0.002 if "small" in where else 0.0
        state = draw_state(generator, shape, small or 1.0)
        state = {name: one * small if name.split(".")[-2] in silent else one for name, one in state.items()}
        cases.append({"where": where, "shape": shape, "state": state, "tokens": draw_tokens(generator, shape, 2, length)})
    return {"cases": cases}


def other_futures(tokens, shape):
    """The text, and for each place the text with another token there."""
    yield tokens
    for place in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % shape[0]
        yield changed


def padded(tokens, lengths, side):
    """The mask (B, T) of rows that are padded on one side; what stands in the padding is what `tokens` have there."""
    places = torch.arange(tokens.shape[1])
    sizes = torch.tensor(lengths)[:, None]
    return places < sizes if side == "right" else places >= tokens.shape[1] - sizes


def reversals(count, generator):
    """(count, 2 LENGTH + 1): letters, the separator, the letters backwards."""
    letters = torch.randint(LETTERS, (count, LENGTH), generator=generator)
    return torch.cat([letters, torch.full((count, 1), LETTERS), letters.flip(1)], dim=1)


def held_out(seed):
    """300 rows of the reversal task that no training with this seed sees."""
    return reversals(300, torch.Generator().manual_seed(seed + 1))
