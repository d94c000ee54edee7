"""A small decoder-only transformer: GPT-2's architecture exactly, or the choices that later models settled on.

B: batch    T: new positions    S: all positions, cached ones included    C: width    H: heads    D: C // H
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    """The shape of a GPT. The defaults are the modern choices; `GPTConfig.gpt2()` is GPT-2.

    Args:
        vocab_size: number of tokens.
        context: the most positions the model was trained for.
        layers, heads, width: blocks, attention heads in each, and size of the residual stream.
        dropout: probability, in [0, 1).
        positions: "rotary" (Su et al. 2021, RoFormer, section 3.4) or "learned" (GPT-2).
        norm: "rmsnorm" (Zhang and Sennrich 2019) or "layernorm".
        activation: "relu2", squared ReLU (So et al. 2021, Primer), or "gelu", the tanh form that GPT-2 uses.
        qk_norm: normalise queries and keys before their product (Henry et al. 2020).
        bias: whether linear layers have one.
        tied: whether the output head is the token embedding (Press and Wolf 2017).
    """

    vocab_size: int = 2048
    context: int = 128
    layers: int = 6
    heads: int = 4
    width: int = 256
    dropout: float = 0.0
    positions: str = "rotary"
    norm: str = "rmsnorm"
    activation: str = "relu2"
    qk_norm: bool = True
    bias: bool = False
    tied: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "context", "layers", "heads", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 * heads, got width {self.width} and heads {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        choices = {"positions": ("rotary", "learned"), "norm": ("rmsnorm", "layernorm"), "activation": ("relu2", "gelu")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    @classmethod
    def gpt2(cls, **changes):
        """GPT-2's architecture (Radford et al. 2019), in its smallest published size unless changed."""
        shape = dict(vocab_size=50257, context=1024, layers=12, heads=12, width=768)
        style = dict(positions="learned", norm="layernorm", activation="gelu", qk_norm=False, bias=True, tied=True)
        return cls(**{**shape, **style, **changes})

    def asdict(self):
        return asdict(self)


class KVCache:
    """Keys and values of the positions already read, in memory that is reserved once.

    Args:
        config: the model's GPTConfig.
        batch, size: rows, and positions to make room for.
    """

    def __init__(self, config, batch, size, device="cpu", dtype=torch.float32):
        shape = (config.layers, batch, config.heads, size, config.width // config.heads)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (layers, B, H, size, D)
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


class Norm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.width))
        self.bias = nn.Parameter(torch.zeros(config.width)) if config.norm == "layernorm" else None

    def forward(self, x):
        if self.bias is None:
            return F.rms_norm(x, x.shape[-1:], self.weight, eps=1e-6)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, eps=1e-5)


class Attention(nn.Module):
    """Causal self-attention with several heads (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer = config, layer
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x, positions, mask, cache):
        B, T, C = x.shape
        heads = (B, T, self.config.heads, C // self.config.heads)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(x).split(C, dim=2))  # (B, H, T, D)
        if self.config.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        if self.config.positions == "rotary":
            q, k = rotate(q, positions), rotate(k, positions)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D)
        y = attend(q, k, v, mask, self.config.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


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


def rotary_table(config, positions):
    """Cosines and sines (B, 1, T, D/2) of the angles that rotate each pair of coordinates at `positions` (B, T)."""
    half = config.width // config.heads // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=positions.device) / half)
    angles = positions[:, None, :, None] * frequencies  # (B, 1, T, D/2)
    return angles.cos(), angles.sin()


def rotate(x, table):
    """Rotary positions: turn the pair (x[i], x[i + D/2]) by its angle. x: (B, H, T, D)."""
    cos, sin = (part.to(x.dtype) for part in table)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.activation, self.dropout = config.activation, config.dropout
        self.norm1, self.norm2 = Norm(config), Norm(config)
        self.attention = Attention(config, layer)
        self.up = nn.Linear(config.width, 4 * config.width, bias=config.bias)
        self.down = nn.Linear(4 * config.width, config.width, bias=config.bias)

    def forward(self, x, positions, mask, cache):
        x = x + F.dropout(self.attention(self.norm1(x), positions, mask, cache), self.dropout, self.training)
        hidden = self.up(self.norm2(x))
        hidden = F.relu(hidden).square() if self.activation == "relu2" else F.gelu(hidden, approximate="tanh")
        return x + F.dropout(self.down(hidden), self.dropout, self.training)


class GPT(nn.Module):
    """A decoder-only transformer language model.

    Args:
        config: a GPTConfig.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = Norm(config)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.apply(self.initialise)
        if config.tied:
            self.head.weight = self.embedding.weight
        else:  # the residual stream starts as the embedding, and every token as likely as every other
            nn.init.zeros_(self.head.weight)
            for block in self.blocks:
                nn.init.zeros_(block.attention.out.weight)
                nn.init.zeros_(block.down.weight)

    @staticmethod
    def initialise(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def hidden(self, tokens, mask=None, cache=None):
        """The final hidden states, before the head.

        Args:
            tokens: (B, T) int64.
            mask: (B, T) bool, True on real tokens; None when all are. Padding stands on the left or on the right.
            cache: a KVCache that holds the positions before these, and takes these in.

        Returns:
            (B, T, C). What stands at a padded position means nothing.
        """
        T = tokens.shape[1]
        if cache is None:
            positions = torch.arange(T, device=tokens.device)[None]  # (1, T)
            if mask is not None:
                positions = (mask.cumsum(1) - 1).clamp(min=0)  # (B, T)
            real, longest = mask, T
        else:
            cache.padded = cache.padded or (mask is not None and not bool(mask.all()))
            positions = cache.extend(torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask)
            real, longest = cache.mask[:, : cache.length] if cache.padded else None, cache.length
        if longest > self.config.context:
            raise ValueError(f"{longest} tokens are more than the model's context of {self.config.context}")

        x = self.embedding(tokens)  # (B, T, C)
        if self.config.positions == "learned":
            x = x + self.position_embedding(positions)
        x = F.dropout(x, self.config.dropout, self.training)
        table = rotary_table(self.config, positions) if self.config.positions == "rotary" else None
        attention_mask = causal_mask(T, longest, real, tokens.device)
        for block in self.blocks:
            x = block(x, table, attention_mask, cache)
        return self.norm(x)

    def forward(self, tokens, mask=None, cache=None):
        """The logits (B, T, vocab_size) of the token after each position; arguments as for `hidden`."""
        return self.head(self.hidden(tokens, mask, cache))


def causal_mask(T, S, real, device):
    """Which of S positions each of the last T may look at: (B or 1, 1, T, S) bool, or None where plain causal does.

    A padded position may look at itself, so that no row of the softmax is empty.
    """
    if real is None and (T == S or T == 1):
        return None
    before = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)  # (T, S)
    if real is None:
        return before[None, None]
    itself = torch.eye(S, dtype=torch.bool, device=device)[S - T :]
    return (before & real[:, None, None, :]) | itself


def gpt2_weights(tensors):
    """The state of transformers' `GPT2LMHeadModel` under this module's names, for `GPT.load_state_dict`.

    GPT-2 stores its linear layers transposed (its Conv1D): every such matrix is turned over.
    """
    names = {
        "ln_1": "norm1", "ln_2": "norm2", "attn.c_attn": "attention.qkv", "attn.c_proj": "attention.out",
        "mlp.c_fc": "up", "mlp.c_proj": "down",
    }  # fmt: skip
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("transformer.")
        if name == "wte.weight":
            renamed["embedding.weight"] = tensor
            renamed.setdefault("head.weight", tensor)  # published files leave a tied head out
        elif name == "lm_head.weight":
            renamed["head.weight"] = tensor
        elif name == "wpe.weight":
            renamed["position_embedding.weight"] = tensor
        elif name.startswith("ln_f."):
            renamed[name.replace("ln_f", "norm")] = tensor
        elif name.startswith("h."):
            _, layer, rest = name.split(".", 2)
            part, kind = rest.rsplit(".", 1)
            if part in names:  # the rest are GPT-2's causal-mask buffers
                turned = tensor.t() if tensor.dim() == 2 else tensor
                renamed[f"blocks.{layer}.{names[part]}.{kind}"] = turned
    return renamed
