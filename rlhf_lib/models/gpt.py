"""A small decoder-only transformer in two recipes: GPT-2's exactly, or the choices that later models settled on.

B: batch    T: new positions    S: all positions, cached ones included    C: width    H: heads    D: C // H
"""

from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.files import shown
from rlhf_lib.models.layers import attend, places, rms_norm, rotary_table, rotate

RECIPES = ("modern", "gpt2")


@dataclass
class GPTConfig:
    """The shape of a GPT.

    Args:
        vocab_size: number of tokens.
        context: the most positions the model was trained for.
        layers, heads, width: blocks, attention heads in each, and size of the residual stream.
        dropout: probability, in [0, 1), everywhere in the model.
        recipe: "modern": rotary positions (Su et al. 2021), RMSNorm (Zhang and Sennrich 2019), squared ReLU (So et al. 2021,
            Primer), normalised queries and keys (Henry et al. 2020), no biases, a head of its own. "gpt2" (Radford et al. 2019):
            learned positions, LayerNorm, GELU, biases, and a head that is the token embedding.
    """

    vocab_size: int = 2048
    context: int = 128
    layers: int = 6
    heads: int = 4
    width: int = 256
    dropout: float = 0.0
    recipe: str = "modern"

    def __post_init__(self):
        for name in ("vocab_size", "context", "layers", "heads", "width"):
            value = getattr(self, name)
            if not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, got {shown(value)}")
            if isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be at least 1, got {shown(value)}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 * heads, got width {self.width} and heads {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {self.recipe!r}")

    kv_heads = property(lambda self: self.heads)  # every head has keys and values of its own
    rope_base, rope_scaling = 10000.0, None  # of rotary positions

    @classmethod
    def gpt2(cls, **changes):
        """GPT-2 in its smallest published size unless changed."""
        return cls(**{**dict(vocab_size=50257, context=1024, layers=12, heads=12, width=768, recipe="gpt2"), **changes})


class RMSNorm(nn.Module):
    """`layers.rms_norm` with a gain of its own for each of `width` numbers."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        """x: (..., C); returns its like."""
        return rms_norm(x, self.weight)


def make_norm(config):
    """The recipe's normalisation: GPT-2's LayerNorm, or RMSNorm."""
    return nn.LayerNorm(config.width, eps=1e-5) if config.recipe == "gpt2" else RMSNorm(config.width)


class Attention(nn.Module):
    """Causal self-attention with several heads (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer = config, layer
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.recipe == "gpt2")
        self.out = nn.Linear(config.width, config.width, bias=config.recipe == "gpt2")

    def forward(self, x, table, mask, cache):
        """x: (B, T, C), and table, mask and cache as `GPT.begin` gives and `GPT.hidden` takes them; returns (B, T, C)."""
        B, T, C = x.shape
        heads = (B, T, self.config.heads, C // self.config.heads)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(x).split(C, dim=2))  # (B, H, T, D)
        if self.config.recipe == "modern":
            q, k = rotate(rms_norm(q), table), rotate(rms_norm(k), table)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D)
        y = attend(q, k, v, mask, self.config.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """Attention, then the feed-forward layer, each added to the residual stream behind a normalisation."""

    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        self.norm1, self.norm2 = make_norm(config), make_norm(config)
        self.attention = Attention(config, layer)
        self.up = nn.Linear(config.width, 4 * config.width, bias=config.recipe == "gpt2")
        self.down = nn.Linear(4 * config.width, config.width, bias=config.recipe == "gpt2")

    def forward(self, x, table, mask, cache):
        """x: (B, T, C); arguments as for `Attention.forward`; returns (B, T, C)."""
        x = x + F.dropout(self.attention(self.norm1(x), table, mask, cache), self.config.dropout, self.training)
        hidden = self.up(self.norm2(x))
        hidden = F.relu(hidden).square() if self.config.recipe == "modern" else F.gelu(hidden, approximate="tanh")
        return x + F.dropout(self.down(hidden), self.config.dropout, self.training)


class GPT(nn.Module):
    """A decoder-only transformer language model.

    Args:
        config: a GPTConfig.
    """

    kind = "gpt"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        if config.recipe == "gpt2":
            self.position_embedding = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = make_norm(config)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.apply(self.initialise)
        if config.recipe == "gpt2":
            self.head.weight = self.embedding.weight  # tied (Press and Wolf 2017)
        else:  # the residual stream starts as the embedding, and every token as likely as every other
            nn.init.zeros_(self.head.weight)
            for block in self.blocks:
                nn.init.zeros_(block.attention.out.weight)
                nn.init.zeros_(block.down.weight)

    heads = property(lambda self: self.config.heads)
    context = property(lambda self: self.config.context)
    vocab_size = property(lambda self: self.config.vocab_size)

    @staticmethod
    def initialise(module):
        """Draw the weights of one module: normal with deviation 0.02, biases 0."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def metadata(self):
        """What is needed to build it again, beside its weights."""
        return {"kind": self.kind, "config": asdict(self.config)}

    @classmethod
    def from_metadata(cls, metadata):
        """A GPT of the shape that `metadata` says, its weights drawn. Raises ValueError for a bad value."""
        return cls(GPTConfig(**metadata["config"]))

    def begin(self, tokens, mask=None, cache=None):
        """What the first block reads: the states (B, T, C), the rotary table or None, and where each position may look."""
        positions, attention_mask = places(self.config, tokens, mask, cache)
        x, table = self.embedding(tokens), None  # (B, T, C)
        if self.config.recipe == "gpt2":
            x = x + self.position_embedding(positions)
        else:
            table = rotary_table(self.config, positions)
        return F.dropout(x, self.config.dropout, self.training), table, attention_mask

    def hidden(self, tokens, mask=None, cache=None):
        """The final hidden states, before the head.

        Args:
            tokens: (B, T) int64.
            mask: (B, T) bool, True on real tokens; None when all are. Padding stands on the left or on the right.
            cache: a KVCache that holds the positions before these, and takes these in.

        Returns:
            (B, T, C). What stands at a padded position means nothing.
        """
        x, table, attention_mask = self.begin(tokens, mask, cache)
        for block in self.blocks:
            x = block(x, table, attention_mask, cache)
        return self.norm(x)

    def forward(self, tokens, mask=None, cache=None):
        """The logits (B, T, vocab_size) of the token after each position; arguments as for `hidden`."""
        return self.head(self.hidden(tokens, mask, cache))
