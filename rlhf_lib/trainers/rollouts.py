"""Rollouts: completions of prompts, scored by the model that wrote them and by the reference, and what follows from that.

B: completions    T: tokens in each
"""

import copy
from dataclasses import dataclass

import torch

from rlhf_lib import ppo
from rlhf_lib.devices import autocast, gather, has_bf16, precision, shard, shared_out
from rlhf_lib.models.layers import evaluating
from rlhf_lib.models.lora import Branch
from rlhf_lib.sampling import generate, token_logprobs


@dataclass(eq=False)
class Rollout:
    """Completions and where they come from.

    Args:
        prompts: a list of B lists of tokens.
        tokens: (B, T) int64, up to and including the end token; 0 behind it.
        logprobs: (B, T), nats, under the model that sampled; 0 behind the end token.
        mask: (B, T) bool, True up to and including the end token.
        texts: a list of B, the completions as text.
        trunk: where several models share one, what it says of prompts and completions; a part of the rollout has none.
    """

    prompts: list
    tokens: torch.Tensor
    logprobs: torch.Tensor
    mask: torch.Tensor
    texts: list
    trunk: tuple | None = None

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, rows):
        """The rollout of `rows`, a (b,) tensor of row numbers or a slice."""
        places = torch.arange(len(self))[rows].tolist()
        prompts, texts = ([whole[place] for place in places] for whole in (self.prompts, self.texts))
        return Rollout(prompts, self.tokens[rows], self.logprobs[rows], self.mask[rows], texts)


def quick_copy(model):
    """A copy of `model` to sample with, of the type that the hardware multiplies fastest; maybe the model itself.

    What it draws from is off by the rounding of its weights and activations, hundredths of a nat a token. So a rollout is scored
    afterwards by the model itself, the same way as in the update.
    """
    parameter = next(model.parameters())
    model = model.merged() if isinstance(model, Branch) else model
    dtype = precision(parameter.device, model.config.width)
    return model if dtype == parameter.dtype else copy.deepcopy(model).to(dtype)


def draw(model, tokenizer, prompts, max_new_tokens, generator, temperature=1.0, batch=256):
    """A Rollout of `model`, one completion for each of `prompts`, without log-probabilities: they are 0.

    Args:
        prompts: a list of B lists of tokens.
        generator: a torch.Generator on the CPU. Under torchrun every process draws the same numbers from its own and samples its
            share of the rows; all get the whole rollout.
        batch: how many are sampled at once.
    """
    uniforms = torch.rand(len(prompts), max_new_tokens, generator=generator)
    mine = shard(len(prompts))
    quick, drawn = quick_copy(model), []
    for rows in torch.arange(len(prompts))[mine].split(batch):
        some = [prompts[row] for row in rows.tolist()]
        drawn.append(generate(
            quick, some, max_new_tokens, temperature=temperature, uniforms=uniforms[rows], end_token=tokenizer.end_token
        ))  # fmt: skip
    tokens, _, mask = (gather(torch.cat(columns)) for columns in zip(*drawn))
    texts = [tokenizer.decode(row[kept]) for row, kept in zip(tokens.cpu(), mask.cpu())]
    return Rollout(prompts, tokens, torch.zeros(tokens.shape, device=tokens.device), mask, texts)


def sample(model, tokenizer, prompts, max_new_tokens, generator, temperature=1.0, batch=256):
    """A Rollout of `model`, with the log-probabilities that `score` gives; arguments as for `draw`."""
    rollout = draw(model, tokenizer, prompts, max_new_tokens, generator, temperature, batch)
    rollout.logprobs = score(model, rollout, temperature)
    return rollout


def logprobs_of(model, rollout, temperature=1.0):
    """`model`'s log-probabilities of a rollout's tokens, (B, T) in nats, with a gradient: the way all scoring goes."""
    device = rollout.tokens.device
    dtype = torch.bfloat16 if has_bf16(device) else torch.float32  # of the head, where most of the work is
    with autocast(device, model.config.width, exact=True):
        return token_logprobs(model, rollout.prompts, rollout.tokens, rollout.mask, temperature=temperature, dtype=dtype)


@torch.no_grad()
def score(model, rollout, temperature=1.0, batch=128):
    """`logprobs_of` without a gradient, `batch` rows at a time; every process takes its share of the rows."""

    def scored(places):
        with evaluating(model):
            return torch.cat([logprobs_of(model, rollout[rows], temperature) for rows in places.split(batch)])

    return shared_out(scored, torch.arange(len(rollout)))


def completion_kl(logprobs, ref_logprobs, mask, kind="k1"):
    """KL(current || reference) of each completion, (B,): the masked sum over its tokens, in nats, without a gradient."""
    return torch.where(mask, ppo.kl_estimate(logprobs, ref_logprobs, kind), 0).sum(1).detach()


def shape_advantages(rewards, logprobs, ref_logprobs, mask, kl_coef):
    """What each token is worth before the baseline: its completion's reward, less the penalty on the KL still to come.

    A token cannot change the KL of the tokens before it, so that part would only be noise.

    Args:
        rewards: (B,), normalised.
        logprobs, ref_logprobs, mask: (B, T).
        kl_coef: reward per nat; with 0 every token of a completion has the completion's reward.

    Returns:
        (B, T), without a gradient: the policy is not rewarded for what it does to its own probabilities in the update.
    """
    kl = torch.where(mask, ppo.kl_estimate(logprobs, ref_logprobs, "k1"), 0).detach()
    to_go = kl.flip(1).cumsum(1).flip(1)
    return torch.where(mask, rewards[:, None] - kl_coef * to_go, 0)


def minibatches(count, size, epochs, generator):
    """The rows of each optimiser step: `epochs` times all of `count` in a drawn order, `size` at a time."""
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).split(size)
