"""Sampling from a language model, and the log-probabilities of what was sampled.

B: completions    P: prompt tokens, padded on the left    T: new tokens    V: vocabulary
"""

import contextlib
import math
from typing import NamedTuple

import torch

from rlhf_lib.model import KVCache
from rlhf_lib.tokenization import check_tokens


class Samples(NamedTuple):
    """Completions: `tokens` (B, T) int64; their `logprobs` (B, T) in nats, under the distribution they were drawn from;
    `mask` (B, T) bool, True up to and including the end token. Behind it tokens and log-probabilities are 0."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    mask: torch.Tensor


@contextlib.contextmanager
def evaluating(model):
    """Dropout off inside, and back as it was behind."""
    training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(training)


def pad_left(prompts, device="cpu"):
    """Lists of tokens as one tensor: tokens (B, P) with 0 on the left, and the mask (B, P) of real ones."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, longest - len(prompt) :] = True
    return tokens.to(device), mask.to(device)


def distribution(logits, temperature=1.0, top_k=0, top_p=1.0, keep=None):
    """Log-probabilities (..., V) of the distribution that is sampled from; -inf for tokens that are cut.

    Sampling, reference and update all go through here, so they agree on temperature and on the cut.

    Args:
        logits: (..., V).
        temperature: above 0; divides the logits.
        top_k: keep the k most likely tokens (Fan et al. 2018); 0 keeps all.
        top_p: of those, keep the fewest whose probability reaches p (Holtzman et al. 2020, section 3.1); 1 keeps all.
        keep: (..., V) bool, the tokens that another model's cut left (see `kept_tokens`), in place of top_k and top_p.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; for the most likely token use top_k=1")
    if top_k < 0:
        raise ValueError(f"top_k must be 0 (keep all) or more, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    if keep is not None:
        return logits.masked_fill(~keep, -math.inf).log_softmax(-1)
    if 0 < top_k < logits.shape[-1]:
        keep = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, logits.topk(top_k).indices, True)
        logits = logits.masked_fill(~keep, -math.inf)
    if top_p < 1:
        ranked, order = logits.softmax(-1).sort(-1, descending=True)
        cut = ranked.cumsum(-1) - ranked >= top_p  # the tokens before it reach p already
        logits = logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), -math.inf)
    return logits.log_softmax(-1)


def draw(logprobs, uniforms):
    """One token a row by inverting the cumulative distribution: many times faster on a CPU than torch.multinomial.

    Args:
        logprobs: (B, V), as `distribution` returns them.
        uniforms: (B,) in [0, 1).

    Returns:
        tokens (B,): the first whose cumulative probability exceeds the uniform.
    """
    cumulative = logprobs.exp().cumsum(-1)  # (B, V)
    total = cumulative[:, -1:]
    point = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True)[:, 0]


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
        model: a GPT.
        prompts: a list of lists of tokens, or a (B, P) tensor of prompts of one length.
        temperature, top_k, top_p: see `distribution`.
        generator: a torch.Generator on the CPU, for repeatable samples.
        uniforms: (B, max_new_tokens) numbers in [0, 1) to draw with, instead of a generator. Row b's completion depends
            on row b's numbers alone, whatever else is in the batch.
        end_token: where it is drawn the completion ends; None to go on to the full length.

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
    tokens, mask = pad_left(prompts, device)
    if uniforms is None:
        uniforms = torch.rand(len(prompts), max_new_tokens, generator=generator)
    uniforms = uniforms.to(device)
    out = torch.zeros(len(prompts), max_new_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(len(prompts), max_new_tokens, device=device)
    out_mask = torch.zeros(len(prompts), max_new_tokens, dtype=torch.bool, device=device)
    live = torch.arange(len(prompts), device=device)  # the rows that have not ended

    with evaluating(model):
        cache = KVCache(model.config, len(prompts), longest + max_new_tokens, device, next(model.parameters()).dtype)
        hidden = model.hidden(tokens, None if bool(mask.all()) else mask, cache)[:, -1]  # (B, C)
        for step in range(max_new_tokens):
            scores = distribution(model.head(hidden), temperature, top_k, top_p)  # (live, V)
            chosen = draw(scores, uniforms[live, step])  # (live,)
            out[live, step] = chosen
            logprobs[live, step] = scores.gather(1, chosen[:, None])[:, 0]
            out_mask[live, step] = True
            if end_token is not None and bool((chosen == end_token).any()):
                going = chosen != end_token
                live, chosen = live[going], chosen[going]
                if not len(live):
                    break
                cache.select(going)
            if step + 1 < max_new_tokens:
                hidden = model.hidden(chosen[:, None], None, cache)[:, -1]
    return Samples(out, logprobs, out_mask)


def token_logprobs(model, prompts, tokens, mask, *, temperature=1.0, top_k=0, top_p=1.0, keep=None):
    """The log-probabilities of completions, without a cache: those that `generate` returned, now with a gradient.

    Args:
        prompts: as for `generate`.
        tokens, mask: (B, T), a completion each, as in Samples.
        keep: (B, T, V) bool, the tokens that the sampler's cut left, in place of a cut of this model's own.

    Returns:
        logprobs (B, T), 0 where masked, and logits (B, T, V) before temperature and cut.
    """
    start, start_mask = pad_left([list(map(int, prompt)) for prompt in prompts], tokens.device)
    P = start.shape[1]
    whole = torch.cat([start, tokens], dim=1)[:, :-1]  # the last token predicts nothing
    whole_mask = torch.cat([start_mask, mask], dim=1)[:, :-1]
    padded = not bool(start_mask.all())  # padding on the right is behind everything that counts
    hidden = model.hidden(whole, whole_mask if padded else None)[:, P - 1 :]  # (B, T, C)
    logits = model.head(hidden)  # (B, T, V)
    logprobs = distribution(logits, temperature, top_k, top_p, keep).gather(2, tokens[:, :, None])[:, :, 0]
    return torch.where(mask, logprobs, 0), logits


@torch.no_grad()
def kept_tokens(model, prompts, tokens, mask, *, temperature=1.0, top_k=0, top_p=1.0):
    """Which tokens top-k and top-p left to the sampler at each position: (B, T, V) bool, or None when nothing is cut.

    Reference and update must cut these same tokens. A cut of their own could leave out a token that was sampled, whose
    log-probability would then be minus infinity, and so would any KL or ratio made of it.
    """
    if top_k == 0 and top_p == 1:
        return None
    with evaluating(model):
        logits = token_logprobs(model, prompts, tokens, mask)[1]
    keep = distribution(logits, temperature, top_k, top_p) > -math.inf
    return keep.scatter(2, tokens[:, :, None], True)  # a tie at the border may fall the other way without the cache
