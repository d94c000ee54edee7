"""Rejection sampling: of every n completions keep the best, fine-tune on what was kept, and again (Dong et al. 2023, RAFT).

There is no policy gradient: no ratio, no baseline, no negative example. Its matched control keeps a completion at random, with
all else the same; what it changes is what training on one's own samples does by itself.
"""

import copy
from dataclasses import dataclass

import torch

from rlhf_lib import checkpoints, ppo, runs
from rlhf_lib.devices import average_gradients, gather, generator, shard, world
from rlhf_lib.trainers.rates import level_then_down
from rlhf_lib.trainers.rollouts import (
    best_rows,
    check_prompts,
    in_turn,
    logprobs_of,
    measure,
    minibatches,
    sample,
    save_on_the_way,
    score,
)


@dataclass
class RejectionConfig:
    """How the policy is trained.

    Args:
        iterations: rollouts, each followed by an update.
        rollout_size, best_of: completions in a rollout, and of how many, all of one prompt, one is kept.
        max_new_tokens: the most tokens in a completion.
        temperature: of sampling, and so of reference and update too.
        epochs, minibatch: passes over what was kept, and completions in an optimiser step.
        lr: Adam's learning rate; over the second half of the iterations it falls to zero in a line.
        control: keep one of each best_of at random instead of the best.
        max_kl: training stops when the KL of a completion passes it, in nats.
        keep_every: iterations between the checkpoints that are kept on the way.
    """

    iterations: int = 12
    rollout_size: int = 640
    best_of: int = 4
    max_new_tokens: int = 48
    temperature: float = 1.0
    epochs: int = 2
    minibatch: int = 40
    lr: float = 3e-4
    control: bool = False
    max_kl: float = 10.0
    keep_every: int = 5

    def __post_init__(self):
        for name in ("iterations", "rollout_size", "max_new_tokens", "epochs", "minibatch", "keep_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"rejection.{name} must be at least 1, got {getattr(self, name)}")
        if self.best_of < 2:
            raise ValueError(f"rejection.best_of must be at least 2, got {self.best_of}")
        for name in ("lr", "max_kl", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"rejection.{name} must be above 0, got {getattr(self, name)}")
        if self.rollout_size % (self.best_of * self.minibatch):
            raise ValueError(
                "rejection.rollout_size must be a multiple of rejection.best_of times rejection.minibatch, "
                f"got {self.rollout_size}, {self.best_of} and {self.minibatch}"
            )


def train(base, tokenizer, prompts, reward, config, folder, seed=0, watch=None):
    """Fine-tune `base` on the best of its own completions, and leave the policy in `folder/policy`.

    Every iteration samples from the policy as it is, and measures, keeps and stops as PPO does. Arguments, what is returned and
    what is raised as for `grpo.train`; each prompt is answered `config.best_of` times.
    """
    check_prompts(base, prompts, config.max_new_tokens, "rejection")
    policy = copy.deepcopy(base).eval().requires_grad_(True)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr)
    show = ("kl", "reward", "gold")
    stage = runs.stage("policy", folder, "policy", policy, [optimizer], config.iterations + 1, seed, tokenizer, show=show)
    for iteration in stage:
        # Rollout: completions of each prompt, their reward, and how far the policy has moved.
        count = config.rollout_size // config.best_of
        some = in_turn(prompts, iteration * count, count, config.best_of)
        rollout = sample(
            policy, tokenizer, some, config.max_new_tokens, generator(seed, "rollout", iteration), config.temperature
        )
        measured = measure(stage, rollout, score(base, rollout, config.temperature), reward, config.max_kl, iteration, watch)
        if measured is None:
            break
        if iteration % config.keep_every == 0:
            save_on_the_way(stage, policy, tokenizer, iteration)
        if iteration == config.iterations:
            continue

        # What is kept: the best of each prompt's completions, or the control's random one.
        rewards, _, _ = measured
        chance = torch.rand(len(rollout), generator=generator(seed, "control", iteration)).to(rewards.device)
        best = best_rows(chance if config.control else rewards, config.best_of)
        kept = rollout[best.cpu()]
        stage.log(kept_reward=rewards[best].mean().item())

        # Update: supervised fine-tuning, the mean negative log-probability of the kept tokens.
        factor = level_then_down(iteration, config.iterations)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * factor
        losses = []
        for rows in minibatches(len(kept), config.minibatch, config.epochs, generator(seed, "minibatches", iteration)):
            mine = rows[shard(len(rows))]
            logprobs, mask = logprobs_of(policy, kept[mine], config.temperature), kept.mask[mine]  # (b, T)
            weight = mask.sum() * world()[1] / kept.mask[rows].sum()  # 1, unless the processes' shares differ in length
            loss = -ppo.masked_mean(logprobs, mask) * weight
            loss.backward()
            average_gradients(policy)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        loss = gather(torch.stack(losses)[None]).mean().item()
        stage.log(train_loss=loss)
        stage.check(loss)
    stage.finish()
    return checkpoints.load_tensors(policy, checkpoints.read_tensors(stage.out), stage.out).eval()
