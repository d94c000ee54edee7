"""PPO without a value function, for rewards that come once, at the end of a completion.

It follows the Deep Learning Curriculum (Hilton 2022), chapter 7: the reward is the advantage of every token of its completion,
there is no value function, and training stops at a KL of ten nats from the original model. Two things are added, both small, and
each can be seen to matter: a penalty on the KL, so that distance is only spent where it pays (`kl_coef` 0 takes it away), and a
baseline, the last rollout's mean at each position. Without a baseline the advantages turn positive as the policy improves,
and PPO makes whatever was sampled likelier, good or bad.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_lib import checkpoints, ppo, runs
from rlhf_lib.devices import average_gradients, gather, generator, seed_for, shard, world
from rlhf_lib.models.lora import Branch
from rlhf_lib.trainers.rates import level_then_down
from rlhf_lib.trainers.rollouts import (
    check_prompts,
    in_turn,
    logprobs_of,
    measure,
    minibatches,
    sample,
    save_on_the_way,
    score,
    shape_advantages,
)


@dataclass
class PPOConfig:
    """How the policy is trained.

    Args:
        iterations: rollouts, each followed by an update.
        rollout_size, max_new_tokens: completions in a rollout, and the most tokens in each.
        max_rollout_size: how far a rollout is enlarged when clipping is rare at the full rate.
        temperature: of sampling, and so of reference and update too.
        epochs, minibatch: passes over a rollout, and completions in an optimiser step.
        lr: Adam's learning rate; over the second half of the iterations it falls to zero in a line.
        clip: how far the probability ratio may leave 1.
        kl_coef: penalty on the KL to the original model, in reward per nat; 0 for none.
        max_kl: training stops when the KL of a completion passes it, in nats.
        rank: of the adapters (LoRA) that are trained in place of the weights, so that a checkpoint is small; 0 for none.
        keep_every: iterations between the checkpoints that are kept on the way.
    """

    iterations: int = 12
    rollout_size: int = 640
    max_new_tokens: int = 48
    max_rollout_size: int = 2048
    temperature: float = 1.0
    epochs: int = 2
    minibatch: int = 160
    lr: float = 3e-4
    clip: float = 0.2
    kl_coef: float = 0.08
    max_kl: float = 10.0
    rank: int = 0
    keep_every: int = 5

    def __post_init__(self):
        for name in ("iterations", "max_new_tokens", "epochs", "minibatch", "keep_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"ppo.{name} must be at least 1, got {getattr(self, name)}")
        if self.rollout_size < 2:
            raise ValueError(f"ppo.rollout_size must be at least 2, got {self.rollout_size}")
        for name in ("lr", "clip", "max_kl", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"ppo.{name} must be above 0, got {getattr(self, name)}")
        if self.rank < 0:
            raise ValueError(f"ppo.rank must not be negative, got {self.rank}")
        if not self.kl_coef >= 0:
            raise ValueError(f"ppo.kl_coef must not be negative, got {self.kl_coef}")
        if self.rollout_size % self.minibatch:
            raise ValueError(
                f"ppo.rollout_size must be a multiple of ppo.minibatch, got {self.rollout_size} and {self.minibatch}"
            )


def train(base, tokenizer, prompts, reward, config, folder, seed=0, watch=None):
    """Fine-tune `base` with PPO, and leave the policy in `folder/policy`.

    Every iteration: sample a rollout, measure its KL to the original model, keep the policy if it is within
    `config.max_kl` and stop if it is not, then update. The policy that is kept has always been measured.

    Args:
        base: the GPT to start from; it stays as it is and is the reference. With adapters it is the one in `folder/base`, and is
            put into evaluation mode and left there: the policy that is returned stands on it.
        prompts: a list of lists of tokens, one a completion; each rollout goes on where the last one stopped, and round again.
            One that was enlarged begins where it would if all before it had been as large.
        reward: a function of a Rollout that gives one number a completion, (B,).
        watch: a function of a Rollout and its rewards that gives a dict of numbers to log; training never uses them.

    Returns:
        The policy, in evaluation mode.

    Raises:
        ValueError: no prompts, or one that leaves no room for a completion.
        RunError: a loss or the KL is not finite; the last good policy is kept.
        CheckpointError: adapters are to be trained, and there is no base in `folder/base`.
    """
    check_prompts(base, prompts, config.max_new_tokens, "ppo")
    if config.rank:
        checkpoints.read_metadata(Path(folder) / "base")  # adapters stand on it: not there, they could not be loaded
        torch.manual_seed(seed_for(seed, "policy adapters"))
        base = Branch(base, rank=config.rank, alpha=2 * config.rank, source="../base")  # starts as the base does
    policy = copy.deepcopy(base).eval().requires_grad_(True)  # no dropout: the update sees the distribution that was sampled from
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr)
    memory = {"baseline": torch.zeros(config.max_new_tokens), "rollout_size": config.rollout_size, "rare": 0}
    show = ("kl", "reward", "gold")
    stage = runs.stage("policy", folder, "policy", policy, [optimizer], config.iterations + 1, seed, tokenizer, memory, show=show)
    for iteration in stage:
        # Rollout: completions, their reward, and how far the policy has moved.
        size = memory["rollout_size"]
        some = in_turn(prompts, iteration * size, size)
        rollout = sample(
            policy, tokenizer, some, config.max_new_tokens, generator(seed, "rollout", iteration), config.temperature
        )
        ref_logprobs = score(base, rollout, config.temperature)  # (B, T)
        measured = measure(stage, rollout, ref_logprobs, reward, config.max_kl, iteration, watch)
        if measured is None:
            break
        rewards, _, stats = measured
        stage.log(rollout_size=size)
        if iteration % config.keep_every == 0:
            save_on_the_way(stage, policy.merged() if config.rank else policy, tokenizer, iteration, **stats)
        if iteration == config.iterations:
            continue

        # Advantages: what each token is worth, over what the last rollout had at its place.
        worth = shape_advantages(rewards, rollout.logprobs, ref_logprobs, rollout.mask, config.kl_coef)  # (B, T)
        advantages = worth - memory["baseline"].to(worth.device)
        memory["baseline"] = ppo.masked_mean(worth, rollout.mask, dim=0).cpu()  # (T,)

        # Update: a few passes over the rollout in minibatches.
        factor = level_then_down(iteration, config.iterations)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * factor
        steps = []
        for rows in minibatches(size, config.minibatch, config.epochs, generator(seed, "minibatches", iteration)):
            mine = rows[shard(len(rows))]
            old_logprobs, mask = rollout.logprobs[mine], rollout.mask[mine]
            logprobs = logprobs_of(policy, rollout[mine], config.temperature)  # (b, T)
            loss, clip_fraction, approx_kl = ppo.policy_loss(logprobs, old_logprobs, advantages[mine], mask, config.clip)
            weight = mask.sum() * world()[1] / rollout.mask[rows].sum()  # 1, unless the processes' shares differ in length
            (loss * weight).backward()
            average_gradients(policy)
            optimizer.step()
            optimizer.zero_grad()
            ratio = ppo.masked_mean((logprobs.detach() - old_logprobs).exp(), mask)
            steps.append(torch.stack([loss.detach(), clip_fraction, approx_kl, ratio]) * weight)
        steps = gather(torch.stack(steps)[None]).mean(0)  # (minibatches, 4), over all processes
        means = steps.mean(0).tolist()
        stage.log(**dict(zip(("policy_loss", "clip_fraction", "approx_kl"), means)), first_ratio=steps[0, 3].item())
        stage.check(means[0])
        memory["rare"] = memory["rare"] + 1 if means[1] < 0.01 and factor == 1 else 0
        if memory["rare"] == 3 and 2 * size <= config.max_rollout_size:  # steps this small leave room for more of them
            memory["rollout_size"], memory["rare"] = 2 * size, 0
    stage.finish()
    return checkpoints.load(stage.out, next(base.parameters()).device, base=base.base if config.rank else None)[0]
