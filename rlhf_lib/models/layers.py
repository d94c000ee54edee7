"""What transformers are made of: attention, rotary positions, the cache, masks.

B: batch    T: new positions    S: all positions, cached ones included    C: width    H: heads    D: C // H
"""

import contextlib
import itertools
import math

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


@contextlib.contextmanager
def evaluating(model):
    """Dropout off inside, and every module's mode back as it was behind."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def pad(rows, side, device="cpu"):
    """Lists of tokens as one tensor: tokens (B, T) with 0 on one `side` ("left" or "right"), and the mask (B, T) of real ones."""
    longest = max(map(len, rows))
    lengths, places = torch.tensor([len(row) for row in rows])[:, None], torch.arange(longest)  # (B, 1), (T,)
    mask = places >= longest - lengths if side == "left" else places < lengths
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    tokens[mask] = torch.tensor(list(itertools.chain.from_iterable(rows)), dtype=torch.long)
    return tokens.to(device), mask.to(device)


def last_real(x, mask):
    """x (B, T) at each row's last token with mask (B, T) True: (B,)."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return x.gather(1, torch.where(mask, places, 0).amax(1, keepdim=True))[:, 0]


def mean_so_far(hidden, mask):
    """The mean of the states (B, T, C) at the real positions up to each, (B, T, C). mask: (B, T) bool."""
    return (hidden * mask[..., None]).cumsum(1) / mask.cumsum(1).clamp(min=1)[..., None]


class KVCache:
    """Keys and values of the positions already read, in memory that is reserved once.

    Args:
        config: the model's, with layers, heads, kv_heads and width.
        batch, size: rows, and positions to make room for.
    """

    def __init__(self, config, batch, size, device="cpu", dtype=torch.float32):
        shape = (config.layers, batch, config.kv_heads, size, config.width // config.heads)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (layers, B, KV, size, D)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.mask = torch.zeros(batch, size, dtype=torch.bool, device=device)  # True on real tokens
        self.length = 0  # positions filled
        self.padded = False  # whether any row has padding

    def extend(self, mask):
        """Make room for the next T positions, `mask` (B, T) saying which are real; their positions (B, T) in the row."""
        start, self.length = self.length, self.length + mask.shape[1]
        if self.length > self.mask.shape[1]:
            raise ValueError(f"the cache has room for {self.mask.shape[1]} positions, got {self.length}")
        self.mask[:, start : self.length] = mask
        return (self.mask[:, : self.length].cumsum(1) - 1).clamp(min=0)[:, start:]

    def append(self, layer, keys, values):
        """Store one layer's new keys and values (B, H, T, D); returns all of them (B, H, S, D)."""
        new = slice(self.length - keys.shape[2], self.length)
        self.keys[layer, :, :, new] = keys
        self.values[layer, :, :, new] = values
        return self.keys[layer, :, :, : self.length], self.values[layer, :, :, : self.length]

    def select(self, rows):
        """Keep only `rows` (int indices or a bool mask): finished completions leave the batch."""
        self.keys, self.values, self.mask = self.keys[:, rows], self.values[:, rows], self.mask[rows]


def attend(q, k, v, mask=None, dropout=0.0):
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    Args:
        q: (B, H, T, D), the queries of the last T of S positions.
        k, v: (B, H, S, D).
        mask: (B or 1, 1, T, S) bool, where a query may look, at least at one place. None for T = S, each looking at itself and
            what lies before it, and for T = 1, which may look at everything.
        dropout: probability with which a weight is left out.

    Returns:
        (B, H, T, D).
    """
    T, S = q.shape[2], k.shape[2]
    causal = mask is None and T > 1
    if not q.is_cpu or T * S > 2**16:  # on a CPU the fused kernel pays only where the scores outgrow the processor's cache
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)  # (B, H, T, S)
    if causal:
        mask = torch.ones(T, S, dtype=torch.bool).tril()
    if mask is not None:  # adding costs less than filling the scores themselves
        scores = scores + torch.zeros(mask.shape, dtype=scores.dtype).masked_fill(~mask, -math.inf)
    return F.dropout(scores.softmax(-1), dropout) @ v


def attend_in_groups(q, k, v, mask=None):
    """`attend` where G queries share a key-value head (Ainslie et al. 2023, section 2.2): q (B, H, T, D), k, v (B, KV, S, D)."""
    B, H, T, D = q.shape
    G = H // k.shape[1]
    if G == 1:
        return attend(q, k, v, mask)
    if T == 1:  # the queries of a group stand where positions stand: nothing is copied
        y = F.scaled_dot_product_attention(q.view(B, H // G, G, D), k, v, attn_mask=mask)  # (B, KV, G, D)
        return y.reshape(B, H, 1, D)
    return attend(q, k.repeat_interleave(G, 1), v.repeat_interleave(G, 1), mask)


class RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight on CPUs, where PyTorch has no fused kernel of it: several times as fast.

    With n = x / sqrt(...) and h = g * weight, the gradient is (h - n mean(h n)) / sqrt(...). LayerNorm's, which has a kernel, is
    the same less mean(h) / sqrt(...) if it is told that the mean of x is 0; so that part is put back.
    """

    @staticmethod
    def forward(ctx, x, weight, eps):
        """What `rms_norm` returns; arguments as there."""
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, scale, weight)
        return x * scale if weight is None else (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        """The gradients of x (..., C) and of the weight (C,), from `g` (..., C)."""
        x, scale, weight = ctx.saved_tensors
        shape, wanted = [x.shape[-1]], [True, weight is not None, False]
        zero = torch.zeros_like(scale)
        dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(g.contiguous(), x, shape, zero, scale, weight, None, wanted)
        mean = (g.sum(-1) if weight is None else g @ weight)[..., None] / x.shape[-1]
        return dx.add_(mean * scale), dweight, None


def rms_norm(x, weight=None, eps=1e-6):
    """Root-mean-square normalisation over the last dimension (Zhang and Sennrich 2019, equation 4).

    Args:
        x: (..., C).
        weight: (C,), the gain; None for none.
    """
    if x.is_cpu and x.dtype == torch.float32:
        return RMSNorm.apply(x, weight, eps)
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def causal_mask(T, S, real, device):
    """Which of S positions each of the last T may look at: (B or 1, 1, T, S) bool, or None where plain causal does.

    A padded position may look at itself, so that no row of the softmax is empty.

    Args:
        real: (B, S) bool, or int64 for several texts in a row, as in `places`; None when all are real and of one text.
    """
    if real is None and (T == S or T == 1):
        return None
    before = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)  # (T, S)
    if real is None:
        return before[None, None]
    itself = torch.eye(S, dtype=torch.bool, device=device)[S - T :]
    if real.dtype == torch.bool:
        return (before & real[:, None, None, :]) | itself
    same = real[:, None, -T:, None] == real[:, None, None, :]  # (B, 1, T, S): a text sees itself alone
    return (before & same) | itself


def places(config, tokens, mask, cache):
    """The positions (B or 1, T) of `tokens` (B, T) in their texts, and where each may look, as `causal_mask` says.

    Args:
        mask: (B, T) bool, True on real tokens; or int64, the number of the text that a token is of, from 1, and 0 on padding:
            several texts in a row, none of which sees another. None when all are real and of one text.

    Raises:
        ValueError: more tokens, cached ones included, than the model's context.
    """
    T = tokens.shape[1]
    if cache is None:
        positions = torch.arange(T, device=tokens.device)[None]  # (1, T)
        real, longest = mask, T
        if mask is not None and mask.dtype == torch.bool:
            positions = (mask.cumsum(1) - 1).clamp(min=0)  # (B, T)
        elif mask is not None:
            begins = torch.cat([torch.ones_like(mask[:, :1], dtype=torch.bool), mask[:, 1:] != mask[:, :-1]], dim=1)
            positions = positions - torch.where(begins, positions, 0).cummax(1).values  # from where its text begins
    else:
        cache.padded = cache.padded or (mask is not None and not bool(mask.all()))
        positions = cache.extend(torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask)
        real, longest = cache.mask[:, : cache.length] if cache.padded else None, cache.length
    if longest > config.context:
        raise ValueError(f"{longest} tokens are more than the model's context of {config.context}")
    return positions, causal_mask(T, longest, real, tokens.device)


def rotary_table(config, positions):
    """Cosines and sines (B, 1, T, D/2) of the angles that rotate each pair of coordinates at `positions` (B, T)."""
    half = config.width // config.heads // 2
    frequencies = config.rope_base ** (-torch.arange(half, device=positions.device) / half)
    if config.rope_scaling is not None:
        frequencies = stretched(frequencies, **config.rope_scaling)
    angles = positions[:, None, :, None] * frequencies  # (B, 1, T, D/2)
    return angles.cos(), angles.sin()


def stretched(frequencies, factor, low, high, original):
    """Rotary frequencies of a model that was trained on for longer contexts, by the rule that Llama 3.1 was published with.

    Waves that fit `high` times and more into the `original` context stay; those that fit at most `low` times become `factor`
    times as long; in between the two are mixed in a line.
    """
    turns = original * frequencies / (2 * math.pi)  # how often a wave fits into the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)


class Rotate(torch.autograd.Function):
    """The turn (a cos - b sin, a sin + b cos) in four passes over memory; the gradient is turned back by the same angle."""

    @staticmethod
    def turn(x, cos, sin):
        """x (B, H, T, D) turned by the angles of `cos` and `sin`, (B, 1, T, D/2) each."""
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        (a, b), (first, second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
        torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
        torch.mul(a, sin, out=second).addcmul_(b, cos)
        return out

    @staticmethod
    def forward(ctx, x, cos, sin):
        """What `rotate` returns: `turn`."""
        ctx.save_for_backward(cos, sin)
        return Rotate.turn(x, cos, sin)

    @staticmethod
    def backward(ctx, g):
        """The gradient of x, (B, H, T, D): `g` turned back."""
        cos, sin = ctx.saved_tensors
        return Rotate.turn(g, cos, -sin), None, None


def rotate(x, table):
    """Rotary positions (Su et al. 2021, section 3.4): turn the pair (x[i], x[i + D/2]) by its angle. x: (B, H, T, D)."""
    cos, sin = (part.to(x.dtype) for part in table)
    return Rotate.apply(x, cos, sin)
