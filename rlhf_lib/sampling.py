"""Sampling from a language model, and the log-probabilities of what was sampled.

B: completions    P: prompt tokens, padded on the left    T: new tokens    V: vocabulary
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

from rlhf_lib.models.heads import head_logprobs
from rlhf_lib.models.layers import KVCache, evaluating, pad
from rlhf_lib.tokenization import check_tokens

BLOCK = 64  # tokens whose probabilities are added up before one is drawn
SHORTEST = 8  # tokens at the beginning of all prompts that pay to be read once for all


class Samples(NamedTuple):
    """Completions: `tokens` (B, T) int64; their `logprobs` (B, T) in nats, under the distribution they were drawn from;
    `mask` (B, T) bool, True up to and including the end token. Behind it tokens and log-probabilities are 0."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    mask: torch.Tensor


def check_temperature(temperature):
    """Refuse a temperature by which logits cannot be divided: 0, or so little that they overflow."""
    if not 1e-6 <= temperature < math.inf:
        least = "above 0 (0.000001 at least)"
        raise ValueError(f"temperature must be {least}, got {temperature}; for the most likely token use top_k=1")


def restricted(logits, temperature=1.0, top_k=0, top_p=1.0):
    """The logits (..., V), float32, of what is sampled from: divided by the temperature, -inf for tokens that are cut.

    Args:
        logits: (..., V).
        temperature: at least 1e-6; divides the logits.
        top_k: keep the k most likely tokens (Fan et al. 2018); 0 keeps all.
        top_p: of those, keep the fewest whose probability reaches p (Holtzman et al. 2020, section 3.1); 1 keeps all.
    """
    check_temperature(temperature)
    if top_k < 0:
        raise ValueError(f"top_k must be 0 (keep all) or more, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        keep = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, logits.topk(top_k).indices, True)
        logits = logits.masked_fill(~keep, -math.inf)
    if top_p < 1:
        ranked, order = logits.softmax(-1).sort(-1, descending=True)
        cut = ranked.cumsum(-1) - ranked >= top_p  # the tokens before it reach p already
        logits = logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), -math.inf)
    return logits


def distribution(logits, temperature=1.0, top_k=0, top_p=1.0):
    """Log-probabilities (..., V) of the distribution that is sampled from; arguments and errors as for `restricted`."""
    return restricted(logits, temperature, top_k, top_p).log_softmax(-1)


def draw(logits, uniforms):
    """One token a row, a (B,) tensor; see `draw_with_logprobs`."""
    return draw_with_logprobs(logits, uniforms)[0]


def draw_with_logprobs(logits, uniforms):
    """One token a row by inverting the cumulative distribution: many times faster on a CPU than torch.multinomial.

    The vocabulary is added up in blocks: first the block is found, then the token in it. So the running sums are short; and where
    a card, which adds up in parallel, rounds a sum down, a token that was cut is still never drawn.

    Args:
        logits: (B, V), as `restricted` returns them, or log-probabilities.
        uniforms: (B,) in [0, 1).

    Returns:
        tokens (B,), the first whose cumulative probability exceeds the uniform, and their log-probabilities (B,).
    """
    V = logits.shape[1]
    top = logits.amax(-1, keepdim=True)  # (B, 1)
    weights = (logits - top).exp_()
    weights = (F.pad(weights, (0, -V % BLOCK)) if V % BLOCK else weights).view(len(logits), -1, BLOCK)  # (B, blocks, BLOCK)
    sums = weights.sum(-1)  # (B, blocks)
    below = sums.cumsum(-1)
    total = below[:, -1:]
    which = first(below > uniforms[:, None] * total, sums)  # (B, 1)
    inside = weights.gather(1, which[:, :, None].expand(-1, -1, BLOCK))[:, 0]  # (B, BLOCK)
    rest = uniforms[:, None] * total - (below - sums).gather(1, which)
    tokens = which * BLOCK + first(inside.cumsum(-1) > rest, inside)  # (B, 1)
    return tokens[:, 0], (logits.gather(1, tokens) - top - total.log())[:, 0]


def first(reached, weights):
    """The first place (B, 1) where `reached` is True and the weight above 0; the last with a weight where there is none."""
    found, places = reached & (weights > 0), torch.arange(weights.shape[1], device=weights.device)
    last = torch.where(weights > 0, places, 0).amax(-1, keepdim=True)
    return torch.where(found.any(-1, keepdim=True), found.int().argmax(-1, keepdim=True), last)


@torch.no_grad()
def generate(
    model,
    prompts,
    max_new_tokens,
    *,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    generator=None,
    uniforms=None,
    end_token=None,
):
    """Continue each prompt by up to `max_new_tokens` tokens.

    Args:
        model: a language model: a GPT, a Llama, or a Branch of one.
        prompts: a list of lists of tokens, or a (B, P) tensor of prompts of one length.
        temperature, top_k, top_p: see `restricted`.
        generator: a torch.Generator on the CPU, for repeatable samples.
        uniforms: (B, max_new_tokens) numbers in [0, 1) to draw with, instead of a generator. Row b's completion depends
            on row b's numbers alone, whatever else is in the batch, but for rounding.
        end_token: where it is drawn the completion ends, or a list of tokens: where they are drawn one after another, as the two
            line breaks behind a speech. None to go on to the full length.

    Returns:
        Samples.

    Raises:
        ValueError: an empty prompt, a token outside the vocabulary, or more tokens than the model's context holds.
    """
    device = next(model.parameters()).device
    prompts = [check_tokens(prompt, model.config.vocab_size) for prompt in prompts]
    if not prompts or not all(prompts):
        raise ValueError("every prompt needs at least one token: start from the end token or a line break")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    longest = max(map(len, prompts))
    if longest + max_new_tokens > model.config.context:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones are more than the model's context of "
            f"{model.config.context}: shorten the prompt or ask for fewer tokens"
        )
    shared = beginning(prompts)
    tokens, mask = pad([prompt[shared:] for prompt in prompts], "left", device)
    if uniforms is None:
        uniforms = torch.rand(len(prompts), max_new_tokens, generator=generator)
    uniforms = uniforms.to(device)
    out = torch.zeros(len(prompts), max_new_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(len(prompts), max_new_tokens, device=device)
    out_mask = torch.zeros(len(prompts), max_new_tokens, dtype=torch.bool, device=device)
    live = torch.arange(len(prompts), device=device)  # the rows that have not ended
    end = torch.tensor([end_token] if isinstance(end_token, int) else end_token or [], dtype=torch.long, device=device)

    with evaluating(model):
        rows, size = 1 if shared else len(prompts), longest + max_new_tokens
        cache = KVCache(model.config, rows, size, device, next(model.parameters()).dtype)
        if shared:
            model.hidden(torch.tensor([prompts[0][:shared]], device=device), None, cache)
            cache.select(torch.zeros(len(prompts), dtype=torch.long, device=device))  # for all rows
        hidden = model.hidden(tokens, mask if len(set(map(len, prompts))) > 1 else None, cache)[:, -1]  # (B, C)
        going = torch.ones(len(prompts), dtype=torch.bool, device=device)
        for step in range(max_new_tokens):
            logits = restricted(model.head(hidden), temperature, top_k, top_p)  # (live, V)
            chosen, scores = draw_with_logprobs(logits, uniforms[live, step])  # (live,) each
            out[live, step] = torch.where(going, chosen, 0)
            logprobs[live, step] = torch.where(going, scores, 0)
            out_mask[live, step] = going
            if step + 1 == max_new_tokens:
                break
            if 0 < len(end) <= step + 1:
                going = going & (out[live, step + 1 - len(end) : step + 1] != end).any(1)
                left = int(going.sum())  # the one number a token that the host asks for
                if left == 0:
                    break
                if left <= 0.75 * len(live):  # moving the cache costs as much as a step or two
                    rows = going.int().argsort(descending=True, stable=True)[:left]  # without asking a card again
                    live, chosen, going = live[rows], chosen[rows], going[rows]
                    cache.select(rows)
            hidden = model.hidden(chosen[:, None], None, cache)[:, -1]
    return Samples(out, logprobs, out_mask)


def beginning(prompts):
    """How many tokens all `prompts` begin with, and that are read once for all; 0 where it is too few to pay. Each keeps one."""
    shortest = min(map(len, prompts)) - 1
    count = next((place for place in range(shortest) if len({prompt[place] for prompt in prompts}) > 1), shortest)
    return count if len(prompts) > 1 and count >= SHORTEST else 0


def completion_hidden(model, prompts, tokens, mask):
    """The final hidden states (B, T, C) that completions are predicted from; arguments as for `token_logprobs`."""
    start, start_mask = pad(prompts, "left", tokens.device)
    P = start.shape[1]
    whole = torch.cat([start, tokens], dim=1)[:, :-1]  # the last token predicts nothing
    whole_mask = torch.cat([start_mask, mask], dim=1)[:, :-1]
    padded = len(set(map(len, prompts))) > 1  # padding on the right is behind everything that counts
    return model.hidden(whole, whole_mask if padded else None)[:, P - 1 :]


def completion_logits(model, prompts, tokens, mask):
    """The logits (B, T, V) that completions are drawn from, before temperature and cut; arguments as for `token_logprobs`."""
    return model.head(completion_hidden(model, prompts, tokens, mask))


def token_logprobs(model, prompts, tokens, mask, *, temperature=1.0, top_k=0, top_p=1.0, dtype=torch.float32):
    """The log-probabilities of completions, without a cache: those that `generate` returned, now with a gradient.

    Args:
        prompts: a list of B lists of tokens.
        tokens, mask: (B, T), a completion each, as in Samples.
        temperature, top_k, top_p: those of sampling, see `restricted`.
        dtype: of the head's products where nothing is cut, see `head_logprobs`.

    Returns:
        (B, T), in nats, 0 where masked; -inf for a token that this model, another than the one that wrote it, cuts.
    """
    if top_k or top_p != 1:
        logprobs = distribution(completion_logits(model, prompts, tokens, mask), temperature, top_k, top_p)  # (B, T, V)
        return torch.where(mask, logprobs.gather(2, tokens[:, :, None])[:, :, 0], 0)
    hidden = completion_hidden(model, prompts, tokens, mask)  # (B, T, C)
    logprobs = head_logprobs(hidden.flatten(0, 1), model.head.weight, tokens.flatten(), temperature, dtype)
    return torch.where(mask, logprobs.view(tokens.shape), 0)
