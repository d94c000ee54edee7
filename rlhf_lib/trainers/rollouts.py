"""Rollouts: completions of prompts, scored by the model that wrote them and by the reference, and what follows from that.

B: completions    T: tokens in each
"""

import copy
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_lib import checkpoints, ppo
from rlhf_lib.devices import agreed, autocast, gather, has_bf16, precision, shard, shared_out
from rlhf_lib.models import published
from rlhf_lib.models.heads import head_logprobs
from rlhf_lib.models.layers import evaluating, pad
from rlhf_lib.models.lora import Branch, trunk_rows
from rlhf_lib.sampling import beginning, generate, token_logprobs


@dataclass(eq=False)
class Rollout:
    """Completions and where they come from.

    Args:
        prompts: a list of B lists of tokens.
        tokens: (B, T) int64, up to and including the end token; 0 behind it.
        logprobs: (B, T), nats, under the model that sampled; 0 behind the end token.
        mask: (B, T) bool, True up to and including the end token.
        texts: a list of B, the completions as text.
        trunk: where several models share one, what `trunk_of` says of prompts and completions, S tokens in all: states (B, S, C),
            rotary table, attention mask, and how many tokens all prompts begin with.
        sampler_logprobs: (B, T), as `logprobs`, under the copy that tokens were drawn from.
    """

    prompts: list
    tokens: torch.Tensor
    logprobs: torch.Tensor
    mask: torch.Tensor
    texts: list
    trunk: tuple | None = None
    sampler_logprobs: torch.Tensor | None = None

    def __len__(self):
        return len(self.tokens)

    @functools.cached_property
    def lengths(self):
        """How many tokens each completion has, (B,) int64 on the CPU: a card is asked once a rollout."""
        return self.mask.sum(1).cpu()

    def __getitem__(self, rows):
        """The rollout of `rows`, a (b,) tensor of row numbers or a slice."""
        places = torch.arange(len(self))[rows].tolist()
        prompts, texts = ([whole[place] for place in places] for whole in (self.prompts, self.texts))
        trunk = None if self.trunk is None else trunk_rows(self.trunk, rows)
        drawn = None if self.sampler_logprobs is None else self.sampler_logprobs[rows]
        return Rollout(prompts, self.tokens[rows], self.logprobs[rows], self.mask[rows], texts, trunk, drawn)


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
    """A Rollout of `model`, one completion for each of `prompts`, without log-probabilities of the model's: they are 0.

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
    tokens, logprobs, mask = (gather(torch.cat(columns)) for columns in zip(*drawn))
    texts = [tokenizer.decode(row[kept]) for row, kept in zip(tokens.cpu(), mask.cpu())]
    return Rollout(prompts, tokens, torch.zeros_like(logprobs), mask, texts, sampler_logprobs=logprobs)


def sample(model, tokenizer, prompts, max_new_tokens, generator, temperature=1.0, batch=256):
    """A Rollout of `model`, with the log-probabilities that `score` gives, and a Branch's trunk; arguments as for `draw`."""
    rollout = draw(model, tokenizer, prompts, max_new_tokens, generator, temperature, batch)
    if isinstance(model, Branch):
        rollout.trunk, _ = trunk_of(model, rollout)
    rollout.logprobs = score(model, rollout, temperature)
    return rollout


@torch.no_grad()
def trunk_of(branch, rollout, batch=16):
    """The trunk's states of prompts and completions, and S - T, where completions begin.

    What all prompts begin with stands before their padding, so that it need not be computed for each.
    """
    shared = beginning(rollout.prompts)
    tokens, mask = whole(rollout, shared)
    start = tokens.shape[1] - rollout.tokens.shape[1]
    with evaluating(branch), autocast(tokens.device, branch.config.width, exact=True):
        x, table, attention_mask = branch.base.begin(tokens, mask)
        if branch.lower == 0:  # nothing below the branch but the embedding
            return (x, table, attention_mask, shared), start
        x = torch.zeros_like(x)
        for rows in by_length(rollout).split(batch):
            place = rows[:, None], columns(rollout, start, rows, shared)[0]
            x[place] = branch.trunk(tokens[place], mask[place], shared=shared)[0]
    return (x, table, attention_mask, shared), start


def whole(rollout, shared):
    """Prompts and completions (B, S), and which are real (B, S): the `shared` tokens of all prompts, padding, and the rest."""
    rest, real = pad([prompt[shared:] for prompt in rollout.prompts], "left", rollout.tokens.device)
    first = torch.tensor([prompt[:shared] for prompt in rollout.prompts], dtype=torch.long, device=rest.device)  # (B, P)
    tokens, mask = [first, rest, rollout.tokens], [torch.ones_like(first, dtype=torch.bool), real, rollout.mask]
    return torch.cat(tokens, 1), torch.cat(mask, 1)


def by_length(rollout):
    """The rows of a rollout, (B,), those of like length together: little is padding in a batch of them."""
    lengths = torch.tensor([len(prompt) for prompt in rollout.prompts]) + rollout.lengths
    return lengths.argsort(stable=True)


def columns(rollout, start, rows, shared):
    """The columns of prompts and completions, of S, that some `rows` need, and how many of them are prompts'.

    The others are padding in all of these rows.
    """
    longest = max(len(rollout.prompts[row]) for row in rows.tolist())
    needed = torch.arange(start - longest + shared, start + int(rollout.lengths[rows].max()))
    return torch.cat([torch.arange(shared), needed]).to(rollout.tokens.device), longest


def cut(rollout, start, rows):
    """Some `rows` of a rollout, without what is padding in all of them: their trunk, where completions begin, tokens, mask."""
    some, begin = columns(rollout, start, rows, rollout.trunk[3])
    T = len(some) - begin
    return trunk_rows(rollout.trunk, rows, some), begin, rollout.tokens[rows, :T], rollout.mask[rows, :T]


def logprobs_of(model, rollout, temperature=1.0):
    """`model`'s log-probabilities of a rollout's tokens, (B, T) in nats, with a gradient: the way all scoring goes.

    Where the rollout has a trunk, a Branch shares it and goes on from there.
    """
    tokens, mask = rollout.tokens, rollout.mask
    if rollout.trunk is not None and isinstance(model, Branch):
        start = rollout.trunk[0].shape[1] - tokens.shape[1]
        return trunk_logprobs(model, rollout.trunk, start, tokens, mask, temperature)
    dtype = torch.bfloat16 if has_bf16(tokens.device) else torch.float32  # of the head, where most of the work is
    with autocast(tokens.device, model.config.width, exact=True):
        return token_logprobs(model, rollout.prompts, tokens, mask, temperature=temperature, dtype=dtype)


def trunk_logprobs(branch, trunk, start, tokens, mask, temperature=1.0):
    """A Branch's log-probabilities of completions, (B, T) in nats, 0 where masked, from the trunk's states, with a gradient.

    Args:
        trunk, start: what `trunk_of` says, or of some of its rows `cut`: the trunk, and where completions begin.
        tokens, mask: (B, T), the completions.
    """
    dtype = torch.bfloat16 if has_bf16(tokens.device) else torch.float32  # of the head
    with autocast(tokens.device, branch.config.width, exact=True):
        hidden = branch.top(*trunk)[:, start - 1 : -1]  # (B, T, C): each token is predicted from the place before it
        found = head_logprobs(hidden[mask], branch.head.weight, tokens[mask], temperature, dtype)
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, found)


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
    return torch.where(mask, rewards.detach()[:, None] - kl_coef * to_go, 0)


def in_turn(prompts, first, count, group=1):
    """`count` of the prompts from place `first` on, round and round, each `group` times."""
    return [prompts[place % len(prompts)] for place in range(first, first + count) for _ in range(group)]


def best_rows(scores, n):
    """The row of the highest of each n scores that stand together, (B / n,), from scores (B,)."""
    return scores.view(-1, n).argmax(1) + torch.arange(0, len(scores), n, device=scores.device)


def minibatches(count, size, epochs, generator):
    """The rows of each optimiser step: `epochs` times all of `count` in a drawn order, `size` at a time."""
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).split(size)


def measure(stage, rollout, ref_logprobs, reward, max_kl, step, watch=None, **also):
    """Log how far the policy that wrote `rollout` has moved and what it earns, and keep it: the head of a step on fresh samples.

    Args:
        stage: the runs.stage of the policy; its checkpoint gets `step` as `iteration`.
        ref_logprobs: (B, T), the original model's.
        reward: a function of a Rollout that gives one number a completion, (B,).
        max_kl: nats; from there on nothing is kept.
        watch: a function of a Rollout and its rewards that gives a dict of numbers to log.
        also: more numbers to log, by name.

    Returns:
        rewards (B,) and KL (B,) of the completions, without a gradient, and what was logged, a dict; None where the mean KL has
        passed `max_kl`.

    Raises:
        RunError: the KL is not finite, or a hundred times `max_kl`.
    """
    mask = rollout.mask
    kl = completion_kl(rollout.logprobs, ref_logprobs, mask)
    stage.check(kl.mean().item(), limit=100 * max_kl, what="KL to the original model")
    if agreed(kl.mean() > max_kl):
        return None
    rewards = reward(rollout).to(kl.device).detach()
    stats = {
        "kl": kl.mean().item(),
        "kl_error": (kl.std() / math.sqrt(len(kl))).item(),
        "kl_k3": completion_kl(rollout.logprobs, ref_logprobs, mask, "k3").mean().item(),
        "reward": rewards.mean().item(),
        "entropy": -ppo.masked_mean(rollout.logprobs, mask).item(),  # nats per token
        "tokens": mask.sum(1).float().mean().item(),
        **also,
        **(watch(rollout, rewards) if watch else {}),
    }
    stage.log(**stats)
    stage.keep(iteration=step, **stats)
    return rewards, kl, stats


def save_on_the_way(stage, policy, tokenizer, iteration, **stats):
    """Write an iteration's policy to `iteration-NNN` in the stage's folder: a Branch's base is one folder further from there.

    Args:
        stats: what was measured of it, for the metadata.
    """
    source = policy.shape["source"] if isinstance(policy, Branch) else None
    if source and source not in published.NAMES:
        stats["branch"] = {**policy.shape, "source": (Path("..") / source).as_posix()}
    folder = stage.out / f"iteration-{iteration:03d}"
    checkpoints.save(folder, policy, tokenizer, seed=stage.seed, iteration=iteration, **stats)


def check_prompts(model, prompts, max_new_tokens, name):
    """Refuse, before the first step, prompts that leave no room for a completion; `name` is that of the settings.

    Raises:
        ValueError: there are none, one is empty, or one is too long.
    """
    if not prompts or not all(prompts):
        raise ValueError("there are no prompts, or an empty one: give at least one list of at least one token")
    longest, context = max(map(len, prompts)) + max_new_tokens, model.config.context
    if longest > context:
        raise ValueError(f"the longest prompt and {name}.max_new_tokens are {longest} tokens, more than the context of {context}")
