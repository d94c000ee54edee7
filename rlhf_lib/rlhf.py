"""The loop that makes a language model write what a reward model likes: rollouts, then PPO.

It follows the Deep Learning Curriculum (Hilton 2022), chapter 7: the reward is the log-probability of the wanted
sentiment, normalised by constants that never change; it is the advantage of every token of its completion; there is no
value function; training stops at a KL of ten nats from the original model.

Three things are added, all small, and each can be seen to matter: a penalty on the KL, so that distance is only spent where it
pays (`--rlhf.kl_coef 0` takes it away); a price on blank lines, so that the form of a play stays (`--rlhf.form_coef 0`); and a
baseline, the last rollout's mean at each position. Without a baseline the advantages turn positive as the policy improves,
and PPO makes whatever was sampled likelier, good or bad.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from rlhf_lib import ppo, runs
from rlhf_lib.corpus import SEPARATOR
from rlhf_lib.devices import autocast, average_gradients, gather, shard, wait, world
from rlhf_lib.judge import GoldJudge, distinct_n, separators
from rlhf_lib.pretrain import load_model
from rlhf_lib.sampling import Samples, evaluating, generate, kept_tokens, token_logprobs


@dataclass
class RLHFConfig:
    """How the policy is trained.

    Args:
        sentiment: what to write more of, "positive" or "negative".
        iterations: rollouts, each followed by an update.
        completions, tokens: completions in a rollout, and tokens in each.
        most_completions: how far a rollout is enlarged when clipping is rare at the full rate.
        temperature, top_k, top_p: of sampling, and so of reference and update too.
        epochs, minibatch: passes over a rollout, and completions in an optimiser step.
        rate: Adam's learning rate; over the second half of the iterations it falls to zero in a line.
        clip: how far the probability ratio may leave 1.
        kl_coef: penalty on the KL to the original model, in normalised reward per nat; 0 for none.
        form_coef: price of a blank line, in normalised reward, per blank line too many in the average completion; 0 for none.
        max_kl: training stops when the KL of a completion passes it, in nats.
        normaliser_samples: completions of the original model that the reward's mean and deviation come from.
        keep_every: iterations between the checkpoints that are kept on the way.
    """

    sentiment: str = "positive"
    iterations: int = 12
    completions: int = 640
    tokens: int = 48
    most_completions: int = 2048
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    epochs: int = 2
    minibatch: int = 160
    rate: float = 3e-4
    clip: float = 0.2
    kl_coef: float = 0.08
    form_coef: float = 1.0
    max_kl: float = 10.0
    normaliser_samples: int = 2048
    keep_every: int = 5

    def __post_init__(self):
        if self.sentiment not in ("positive", "negative"):
            raise ValueError(f"rlhf.sentiment must be positive or negative, got {self.sentiment!r}")
        for name in ("iterations", "completions", "tokens", "epochs", "minibatch", "normaliser_samples", "keep_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"rlhf.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("rate", "clip", "max_kl", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"rlhf.{name} must be above 0, got {getattr(self, name)}")
        for name in ("kl_coef", "form_coef"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"rlhf.{name} must not be negative, got {getattr(self, name)}")
        if self.top_k < 0:
            raise ValueError(f"rlhf.top_k must be 0 (keep all) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"rlhf.top_p must lie in (0, 1], got {self.top_p}")
        if self.completions % self.minibatch:
            raise ValueError(
                f"rlhf.completions must be a multiple of rlhf.minibatch, got {self.completions} and {self.minibatch}"
            )

    @property
    def cut(self):
        """Temperature, top-k and top-p, the same wherever a probability is taken."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


def prompt_tokens(tokenizer):
    """What every completion starts from: the blank line before a speech."""
    return tokenizer.encode(SEPARATOR)


def rollout(model, prompt, count, config, seed, end_token=0):
    """`count` completions of `prompt`; under torchrun every process samples its share, and all get all of them."""
    uniforms = torch.rand(count, config.tokens, generator=torch.Generator().manual_seed(seed))
    mine = uniforms[shard(count)]
    parts = [
        generate(model, [prompt] * len(some), config.tokens, uniforms=some, end_token=end_token, **config.cut)
        for some in mine.split(256)
    ]
    return Samples(*(gather(torch.cat(columns)) for columns in zip(*parts)))


@torch.no_grad()
def rewards_of(reward_model, samples, sentiment="positive"):
    """The log-probability of `sentiment` for each completion: (B,), at most 0, in nats."""
    sign = 1.0 if sentiment == "positive" else -1.0
    with evaluating(reward_model), autocast(samples.tokens.device, reward_model.config.width):
        rows = zip(samples.tokens.split(256), samples.mask.split(256))
        return torch.cat([F.logsigmoid(sign * reward_model.logits(*part).float()) for part in rows])


@torch.no_grad()
def reference_logprobs(reference, prompt, samples, cut, keep=None):
    """The original model's log-probabilities of the completions' tokens: (B, T).

    Args:
        cut: temperature, top_k and top_p.
        keep: (B, T, V) bool, the tokens that the sampler's cut left; None when it cut none.
    """
    parts = []
    with evaluating(reference):
        for rows in torch.arange(len(samples.tokens)).split(128):
            kept = None if keep is None else keep[rows]
            some = (samples.tokens[rows], samples.mask[rows])
            parts.append(token_logprobs(reference, [prompt] * len(rows), *some, keep=kept, **cut)[0])
    return torch.cat(parts)


def texts_of(samples, tokenizer):
    """The completions as text, a list of B."""
    return [tokenizer.decode(row[mask]) for row, mask in zip(samples.tokens, samples.mask)]


def blank_lines(texts):
    """How many blank lines each completion has, (B,) float: the form that the policy should not change."""
    return torch.tensor([float(text.count(SEPARATOR)) for text in texts])


def form_price(blanks, original, form_coef):
    """What a blank line costs, in normalised reward: `form_coef` times how many too many there are in a completion on average.

    Short speeches have room for few bad feelings, so the reward likes them a little, and a KL penalty hardly holds them back:
    half as many blank lines again cost a tenth of a nat. Where there are too few, the price is a prize.

    Args:
        blanks: (B,), blank lines in each completion.
        original: the original model's mean.
    """
    return form_coef * (blanks.mean().item() - original)


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


class Normaliser(NamedTuple):
    """Fixed constants of the reward: its mean and standard deviation on completions of the original model."""

    mean: float
    std: float

    def __call__(self, rewards):
        return (rewards - self.mean) / self.std


def fit_normaliser(rewards):
    """The constants of `rewards` (N,): mean and standard deviation. Raises ValueError when all are the same."""
    if len(rewards) < 2 or not rewards.std() > 0:
        raise ValueError("the reward is the same for all samples of the original model: train the reward model longer")
    return Normaliser(rewards.mean().item(), rewards.std().item())


def update(policy, optimizer, prompt, samples, advantages, config, generator, keep=None):
    """PPO's epochs over one rollout.

    Args:
        samples: the rollout, with the log-probabilities under the policy that sampled it.
        advantages: (B, T).
        keep: (B, T, V) bool, the tokens that the sampler's cut left; None when it cut none.

    Returns:
        A dict of means over the minibatches: `policy_loss`, `clip_fraction`, `approx_kl`; and `first_ratio`, the probability
        ratio of the first minibatch, which is 1 where sampling and update agree.
    """
    figures = []
    policy.eval()  # no dropout: the update sees the distribution that was sampled from
    for _ in range(config.epochs):
        for rows in torch.randperm(len(advantages), generator=generator).split(config.minibatch):
            whole = samples.mask[rows].sum()
            rows = rows[shard(len(rows))]
            tokens, old_logprobs, mask = (part[rows] for part in (samples.tokens, samples.logprobs, samples.mask))
            kept = None if keep is None else keep[rows]
            logprobs = token_logprobs(policy, [prompt] * len(rows), tokens, mask, keep=kept, **config.cut)[0]
            loss, clip_fraction, approx_kl = ppo.policy_loss(logprobs, old_logprobs, advantages[rows], mask, config.clip)
            weight = mask.sum() * world()[1] / whole  # 1, unless the processes' shares differ in length
            (loss * weight).backward()
            average_gradients(policy)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                ratio = ppo.masked_mean((logprobs - old_logprobs).exp(), mask)
            figures.append([loss.item(), clip_fraction.item(), approx_kl.item(), ratio.item()])
    means = gather(torch.tensor(figures, device=samples.tokens.device).mean(0, keepdim=True)).mean(0).tolist()
    return {**dict(zip(("policy_loss", "clip_fraction", "approx_kl"), means)), "first_ratio": figures[0][3]}


def train_policy(base, reward_model, tokenizer, config, folder, seed=0, judge=None):
    """Fine-tune `base` with PPO on the reward model's reward, and leave the policy in `folder/policy`.

    Every iteration: sample a rollout, measure its KL to the original model, keep the policy if it is within
    `config.max_kl` and stop if it is not, then update. The policy that is kept has always been measured.

    Args:
        base: the GPT to start from; it stays as it is and is the reference.
        judge: a GoldJudge whose mean score is logged beside the reward; training never uses it.

    Returns:
        The policy, in evaluation mode.

    Raises:
        RunError: a loss or the KL is not finite; the last good policy is kept.
    """
    judge = judge or GoldJudge()
    reference = base.eval().requires_grad_(False)
    policy = copy.deepcopy(base).requires_grad_(True)
    device = next(policy.parameters()).device
    prompt = prompt_tokens(tokenizer)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.rate)
    metrics = runs.Metrics(folder)
    folder = Path(folder) / "policy"
    progress = runs.Progress(folder / "state.pt", policy, [optimizer])
    first, kept = progress.resume()
    metrics.rewind("policy", first)

    if first == 0:
        originals = rollout(reference, prompt, config.normaliser_samples, config, seed=seed * 1_000_003 + 999_983)
        constants = fit_normaliser(rewards_of(reward_model, originals, config.sentiment))
        blanks = blank_lines(texts_of(originals, tokenizer)).mean().item()
        kept = {"mean": constants.mean, "std": constants.std, "blanks": blanks, "completions": config.completions, "rare": 0}
        kept["baseline"] = torch.zeros(config.tokens)
        progress.tick(0, kept, now=True)
    normalise = Normaliser(kept["mean"], kept["std"])
    completions, rare = kept["completions"], kept["rare"]

    bar = tqdm(range(first, config.iterations + 1), initial=first, total=config.iterations, desc="policy", disable=world()[0] > 0)
    for iteration in bar:
        # Rollout: completions, their reward, and how far the policy has moved.
        step_seed = seed * 1_000_003 + iteration
        samples = rollout(policy, prompt, completions, config, step_seed)  # (B, T) each
        rewards = rewards_of(reward_model, samples, config.sentiment)  # (B,)
        keep = kept_tokens(policy, [prompt] * completions, samples.tokens, samples.mask, **config.cut)  # (B, T, V) or None
        ref_logprobs = reference_logprobs(reference, prompt, samples, config.cut, keep)  # (B, T)
        kl = completion_kl(samples.logprobs, ref_logprobs, samples.mask)  # (B,)
        runs.check_finite(kl.mean().item(), "policy", iteration, limit=100 * config.max_kl)
        if kl.mean() > config.max_kl:
            break
        texts = texts_of(samples, tokenizer)
        figures = {
            "kl": kl.mean().item(),
            "kl_error": (kl.std() / math.sqrt(len(kl))).item(),
            "kl_k3": completion_kl(samples.logprobs, ref_logprobs, samples.mask, "k3").mean().item(),
            "reward": rewards.mean().item(),
            "reward_normalised": normalise(rewards).mean().item(),
            "entropy": -ppo.masked_mean(samples.logprobs, samples.mask).item(),  # nats per token
            "gold": judge.score(texts).mean().item(),
            "distinct_2": distinct_n(texts),
            "separators": separators(texts),
            "completions": completions,
        }
        bar.set_postfix(kl=f"{figures['kl']:.2f}", reward=f"{figures['reward']:.3f}", gold=f"{figures['gold']:.3f}")
        card = {"kind": "gpt", "config": policy.config.asdict(), "seed": seed, "iteration": iteration, **figures}
        runs.save_checkpoint(folder, policy.state_dict(), card, tokenizer)
        if iteration % config.keep_every == 0:
            runs.save_checkpoint(folder / f"iteration-{iteration:03d}", policy.state_dict(), card, tokenizer)
        if iteration < config.iterations:
            factor = min(1, 2 * (1 - iteration / config.iterations))
            for group in optimizer.param_groups:
                group["lr"] = config.rate * factor
            # Update: the completion's reward is the advantage of each of its tokens, over what the last rollout had there.
            blanks = blank_lines(texts).to(device)  # (B,)
            net = normalise(rewards) - form_price(blanks, kept["blanks"], config.form_coef) * blanks  # (B,)
            worth = shape_advantages(net, samples.logprobs, ref_logprobs, samples.mask, config.kl_coef)  # (B, T)
            advantages = worth - kept["baseline"].to(device)
            kept["baseline"] = ppo.masked_mean(worth, samples.mask, dim=0)  # (T,)
            generator = torch.Generator().manual_seed(step_seed)
            figures |= update(policy, optimizer, prompt, samples, advantages, config, generator, keep)
            runs.check_finite(figures["policy_loss"], "policy", iteration)
            rare = rare + 1 if figures["clip_fraction"] < 0.01 and factor == 1 else 0
            if rare == 3 and 2 * completions <= config.most_completions:
                completions, rare = 2 * completions, 0  # steps this small leave room for a less noisy gradient
        metrics.log("policy", iteration, **figures)
        progress.tick(iteration + 1, {**kept, "completions": completions, "rare": rare})

    wait()  # for the process that writes
    return load_model(folder, device)[0]
