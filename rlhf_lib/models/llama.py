"""The Llama family (Touvron et al. 2023, section 2.2): SmolLM2, Llama 3.2 and others whose weights are published.

B: batch    T: new positions    S: all positions, cached ones included    C: width    H: heads    KV: key-value heads    D: C // H
"""

from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.files import shown
from rlhf_lib.models.layers import attend_in_groups, places, rms_norm, rotary_table, rotate

STRETCH = ("factor", "low", "high", "original")  # of `layers.stretched`


@dataclass
class LlamaConfig:
    """The shape of a Llama.

    Args:
        vocab_size: number of tokens.
        context: the most positions the model was trained for.
        layers, heads, kv_heads, width: blocks, attention heads in each, heads of keys and values that they share in groups
            (Ainslie et al. 2023), and size of the residual stream.
        hidden: size of the feed-forward layer.
        tied: whether the head is the token embedding.
        norm_eps: of the RMSNorms.
        rope_base: of the rotary positions (Su et al. 2021).
        rope_scaling: None, or a dict of factor, low, high and original, as `layers.stretched` takes them.
    """

    vocab_size: int = 49152
    context: int = 8192
    layers: int = 30
    heads: int = 9
    kv_heads: int = 3
    width: int = 576
    hidden: int = 1536
    tied: bool = True
    norm_eps: float = 1e-5
    rope_base: float = 100000.0
    rope_scaling: dict | None = None

    dropout = 0.0  # not a field: no model of this family has any

    def __post_init__(self):
        for name in ("vocab_size", "context", "layers", "heads", "kv_heads", "width", "hidden"):
            value = getattr(self, name)
            if not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, got {shown(value)}")
            if isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be at least 1, got {shown(value)}")
        stretch = {} if self.rope_scaling is None else {name: self.rope_scaling[name] for name in STRETCH}
        for name, value in {"norm_eps": self.norm_eps, "rope_base": self.rope_base, **stretch}.items():
            if not (isinstance(value, int | float) and 0 < value < 1e18):  # as more, int64 and float32 have no room
                raise ValueError(f"{name} must be a number above 0 and below 1e18, got {shown(value)}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 * heads, got width {self.width} and heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}")


class Norm(nn.Module):
    """`layers.rms_norm` with a gain and the config's `norm_eps`."""

    def __init__(self, config):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(config.width)), config.norm_eps

    def forward(self, x):
        """x: (..., C); returns its like."""
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention whose heads share keys and values in groups."""

    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer = config, layer
        size = config.width // config.heads * config.kv_heads
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, size, bias=False)
        self.value = nn.Linear(config.width, size, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x, table, mask, cache):
        """x: (B, T, C), and table, mask and cache as `Llama.begin` gives and `Llama.hidden` takes them; returns (B, T, C)."""
        B, T, C = x.shape
        D = C // self.config.heads
        q, k, v = (part(x).view(B, T, -1, D).transpose(1, 2) for part in (self.query, self.key, self.value))
        q, k = rotate(q, table), rotate(k, table)  # (B, H, T, D), (B, KV, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, KV, S, D)
        y = attend_in_groups(q, k, v, mask)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """Attention, then the gated feed-forward layer, each added to the residual stream behind a normalisation."""

    def __init__(self, config, layer):
        super().__init__()
        self.norm1, self.norm2 = Norm(config), Norm(config)
        self.attention = Attention(config, layer)
        self.gate = nn.Linear(config.width, config.hidden, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x, table, mask, cache):
        """x: (B, T, C); arguments as for `Attention.forward`; returns (B, T, C)."""
        x = x + self.attention(self.norm1(x), table, mask, cache)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))  # SwiGLU (Shazeer 2020)


class Llama(nn.Module):
    """A decoder-only language model of the Llama family.

    Args:
        config: a LlamaConfig.
    """

    kind = "llama"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = Norm(config)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        if config.tied:
            self.head.weight = self.embedding.weight

    def metadata(self):
        """What is needed to build it again, beside its weights."""
        return {"kind": self.kind, "config": asdict(self.config)}

    @classmethod
    def from_metadata(cls, metadata):
        """A Llama of the shape that `metadata` says, its weights drawn. Raises ValueError for a bad value."""
        return cls(LlamaConfig(**metadata["config"]))

    @classmethod
    def of(cls, config, state):
        """The Llama of `config` with the weights `state`, which it takes over: none is drawn or copied first.

        A tied head may be left out, as published files do.
        """
        if config.layers > len(state):
            raise ValueError(f"{config.layers} layers, and {len(state)} tensors")
        if config.tied:
            state = {**state, "head.weight": state.get("embedding.weight")}
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(state, assign=True)
        if config.tied:
            model.head.weight = model.embedding.weight
        return model.eval()

    def begin(self, tokens, mask=None, cache=None):
        """What the first block reads: the states (B, T, C), the rotary table, and where each position may look."""
        positions, attention_mask = places(self.config, tokens, mask, cache)
        return self.embedding(tokens), rotary_table(self.config, positions), attention_mask

    def hidden(self, tokens, mask=None, cache=None):
        """The final hidden states (B, T, C), before the head; arguments as for `GPT.hidden`."""
        x, table, attention_mask = self.begin(tokens, mask, cache)
        for block in self.blocks:
            x = block(x, table, attention_mask, cache)
        return self.norm(x)

    def forward(self, tokens, mask=None, cache=None):
        """The logits (B, T, vocab_size) of the token after each position; arguments as for `GPT.hidden`."""
        return self.head(self.hidden(tokens, mask, cache))
