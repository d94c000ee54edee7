"""How a GPT is read: whole, or with a cache, and what goes wrong in a cache. For the probes of the chapters that build on it.

B: rows    P: prompt, padding included    N: new tokens    V: vocabulary    H: heads    D: size of a head
"""

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.layers import rms_norm, rotary_table, rotate


class Named(nn.Module):
    """A GPT as the learner's own is: the weights by their names, `heads`, `context`, `vocab_size`, and no cache of ours."""

    def __init__(self, gpt):
        super().__init__()
        self.embedding, self.blocks, self.norm, self.head = gpt.embedding, gpt.blocks, gpt.norm, gpt.head
        self.heads, self.context, self.vocab_size = gpt.config.heads, gpt.config.context, gpt.config.vocab_size
        self.whole = [gpt]  # in a list, so that its weights have no second name

    def hidden(self, tokens, mask=None):
        return self.whole[0].hidden(tokens, mask)

    def forward(self, tokens, mask=None):
        return self.head(self.hidden(tokens, mask))


@torch.no_grad()
def made(seed, sizes, never=()):
    """A GPT with drawn weights, none of them zero; the tokens `never` have a probability of 0 everywhere."""
    generator, gpt = torch.Generator().manual_seed(seed), GPT(GPTConfig(**sizes))
    for weight in gpt.parameters():
        if weight.dim() == 1:  # gains
            weight.copy_(0.5 + torch.rand(weight.shape, generator=generator))
        else:
            weight.copy_(1.5 * torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
    gpt.embedding.weight.normal_(generator=generator)
    if never:  # the residual stream's first number is the same at every place, and these tokens hate it
        gpt.embedding.weight[:, 0] = 4.0
        for block in gpt.blocks:
            block.attention.out.weight[0] = block.down.weight[0] = 0.0
        gpt.head.weight[list(never)] = 0.0
        gpt.head.weight[list(never), 0] = -5000.0
    return gpt


@torch.no_grad()
def read_alone(gpt, prompts, mask, tokens):
    """The logits (B, N, V), float64, that each of `tokens` (B, N) is drawn from: every row alone, whole, without its padding."""
    gpt, N, logits = gpt.double(), tokens.shape[1], []
    for prompt, real, new in zip(prompts, mask, tokens):
        logits.append(gpt(torch.cat([prompt[real], new[:-1]])[None])[0, -N:])
    return torch.stack(logits)


@torch.no_grad()
def without_cache(model, prompts, uniforms):
    """The loop of exercise 4.6."""
    tokens = prompts
    for n in range(uniforms.shape[1]):
        chances = model(tokens)[:, -1].softmax(-1)
        new = (chances.cumsum(-1) <= uniforms[:, n, None]).sum(-1, keepdim=True).clamp(max=chances.shape[1] - 1)
        tokens = torch.cat([tokens, new], 1)
    return tokens[:, prompts.shape[1] :]


def scores(logits, tokens):
    """The log-probabilities (B, N) of tokens."""
    return logits.log_softmax(-1).gather(2, tokens[:, :, None])[:, :, 0]


def drawn(logits, uniforms):
    """The first token whose running sum exceeds the uniform: (B, N)."""
    return (logits.softmax(-1).cumsum(-1) <= uniforms[:, :, None]).sum(-1).clamp(max=logits.shape[-1] - 1)


# ----------------------------------------------------------------------------------------- what goes wrong in a cache


@torch.no_grad()
def read_with_cache(
    gpt, prompts, mask, tokens, *, position=None, turned=True, old=True, itself=True, kept=True, causal=True,
    hidden_prompt=True, hidden_later=True, columns=False,
):  # fmt: skip
    """The logits (B, N, V), float64, that given tokens are drawn from, as a cache with a fault gives them.

    position: of a new token, made of the number of real tokens before it and of its column. turned: whether keys are rotated.
    old, itself: whether a new token sees the cache, and itself. kept: whether new keys stay in the cache. causal: whether the
    prompt is read with the triangle. hidden_prompt, hidden_later: whether padding is hidden from the prompt, from new tokens.
    columns: whether positions count the padding, which changes nothing where it is hidden.
    """
    gpt, config, (B, P), logits = gpt.double(), gpt.config, prompts.shape, []
    cache, seen = [None] * config.layers, mask if hidden_later else torch.ones_like(mask)
    triangle = torch.ones(P, P, dtype=torch.bool).tril() if causal else torch.ones(P, P, dtype=torch.bool)
    attend = (triangle & (mask[:, None] if hidden_prompt else torch.ones_like(mask)[:, None])) | torch.eye(P, dtype=torch.bool)
    new, places = prompts, torch.arange(P)[None] if columns else (mask.cumsum(1) - 1).clamp(min=0)
    for n in range(tokens.shape[1]):
        x, table = gpt.embedding(new), rotary_table(config, places)
        for layer, block in enumerate(gpt.blocks):
            parts = block.attention.qkv(block.norm1(x)).split(config.width, 2)
            q, k, v = (one.view(B, -1, config.heads, config.width // config.heads).transpose(1, 2) for one in parts)
            q, k = rotate(rms_norm(q), table), rotate(rms_norm(k), table) if turned else rms_norm(k)
            keys, values = (k, v) if n == 0 else (torch.cat(pair, 2) for pair in zip(cache[layer], (k, v)))
            if n == 0 or kept:
                cache[layer] = keys, values
            y = F.scaled_dot_product_attention(q, keys, values, attend[:, None])
            x = x + block.attention.out(y.transpose(1, 2).reshape(x.shape))
            x = x + block.down(F.relu(block.up(block.norm2(x))).square())
        logits.append(gpt.head(gpt.norm(x[:, -1])))
        real, column = mask.sum(1) + n, torch.full((B,), P + n)
        places = position(real, column) if position else column if columns else real
        new, places = tokens[:, n, None], places[:, None]
        before = torch.cat([seen, torch.ones(B, n if kept else 0, dtype=torch.bool)], 1) & old
        attend = torch.cat([before, torch.full((B, 1), itself)], 1)[:, None]
    return torch.stack(logits, 1)


def either(**options):
    """A fault where positions count the padding, and where they do not."""
    return [dict(options, columns=columns) for columns in (False, True)]


FAULTS = {  # what a learner is told, and the options that make the fault
    "the new tokens look at the padding: a padded column stays hidden from every token to come": either(hidden_later=False),
    "the padding is looked at: hide its columns from the prompt's tokens and from all new ones":
        either(hidden_prompt=False, hidden_later=False),
    "the prompt's tokens look at the padding: the mask is causal and leaves padded columns out": either(hidden_prompt=False),
    "new tokens are placed by their column, and the prompt's by their number in the row: where a row has padding the distances "
        "are wrong; one way for both": [{"position": lambda real, column: column}],
    "the prompt's tokens are placed by their column, and new ones by their number in the row: where a row has padding the "
        "distances are wrong; one way for both": [{"columns": True, "position": lambda real, _: real}],
    "every new token is read at position 0: it stands behind all that were read before": [{"position": lambda real, _: 0 * real}],
    "new tokens are one position too far: the first stands right behind the prompt": [{"position": lambda real, _: real + 1}],
    "the first new token has the position of the prompt's last: it stands one behind": [{"position": lambda real, _: real - 1}],
    "a new token sees nothing but itself: the cache is not read": [{"old": False}],
    "a new token does not see itself: put its key and value into the cache first, then attend": [{"itself": False}],
    "the keys of new tokens do not stay in the cache: it ends with the prompt": [{"kept": False}],
    "queries are rotated and keys are not: a key is rotated by its own position before it goes into the cache":
        [{"turned": False}],
    "the prompt is read without the causal mask: its tokens look at those behind them": [{"causal": False}],
}  # fmt: skip
