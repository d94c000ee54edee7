"""Policy gradients without a critic: several completions of each prompt, compared with each other.

One loop for every row of `policy_gradient.METHODS`. Prompts, completions, rewards, advantages, loss: the methods differ in the
last two steps alone.
"""

import copy
from dataclasses import dataclass

import torch

from rlhf_lib import checkpoints, ppo, runs
from rlhf_lib.devices import average_gradients, gather, generator, shard, world
from rlhf_lib.policy_gradient import METHODS, advantages, importance_weights, policy_gradient_loss
from rlhf_lib.trainers.rates import level_then_down
from rlhf_lib.trainers.rollouts import check_prompts, in_turn, logprobs_of, measure, minibatches, sample, save_on_the_way, score


@dataclass
class GRPOConfig:
    """How the policy is trained.

    Args:
        method: a row of `policy_gradient.METHODS`. Those without a clip do not see the ratio, so that all steps of a rollout but
            its first are off-policy; with epochs 1 and minibatch = rollout_size there is one.
        iterations: rollouts, each followed by an update.
        rollout_size, group: completions in a rollout, and how many of them answer one prompt.
        max_new_tokens: the most tokens in a completion.
        temperature: of sampling, and so of reference and update too.
        epochs, minibatch: passes over a rollout, and completions in an optimiser step.
        lr: Adam's learning rate; over the second half of the iterations it falls to zero in a line.
        clip: how far the probability ratio may leave 1, that of a whole completion for gspo.
        kl_coef: price of a completion's KL to the original model, per nat, in units of the advantage; 0 for none. It has the
            method's baseline, not its normaliser.
        max_weight: where above 0, the cap of the importance weights that make up for sampling with a quicker copy.
        max_kl: training stops when the KL of a completion passes it, in nats.
        keep_every: iterations between the checkpoints that are kept on the way.
    """

    method: str = "grpo"
    iterations: int = 12
    rollout_size: int = 640
    group: int = 8
    max_new_tokens: int = 48
    temperature: float = 1.0
    epochs: int = 1
    minibatch: int = 160
    lr: float = 3e-4
    clip: float = 0.2
    kl_coef: float = 0.08
    max_weight: float = 0.0
    max_kl: float = 10.0
    keep_every: int = 5

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"grpo.method must be one of {', '.join(METHODS)}, got {self.method!r}")
        for name in ("iterations", "group", "max_new_tokens", "epochs", "minibatch", "keep_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"grpo.{name} must be at least 1, got {getattr(self, name)}")
        if self.rollout_size < 2:
            raise ValueError(f"grpo.rollout_size must be at least 2, got {self.rollout_size}")
        for name in ("lr", "clip", "max_kl", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"grpo.{name} must be above 0, got {getattr(self, name)}")
        for name in ("kl_coef", "max_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"grpo.{name} must not be negative, got {getattr(self, name)}")
        for name in ("minibatch", "group"):
            if self.rollout_size % getattr(self, name):
                raise ValueError(
                    f"grpo.rollout_size must be a multiple of grpo.{name}, got {self.rollout_size} and {getattr(self, name)}"
                )
        if self.group == 1 and METHODS[self.method].baseline in ("group", "leave-one-out"):
            raise ValueError(f"grpo.group must be at least 2 for {self.method}, which compares completions of one prompt, got 1")


def train(base, tokenizer, prompts, reward, config, folder, seed=0, watch=None):
    """Fine-tune `base` by a row of the table, and leave the policy in `folder/policy`.

    Every iteration: sample a rollout, measure its KL to the original model, keep the policy if it is within
    `config.max_kl` and stop if it is not, then update. The policy that is kept has always been measured.

    Args:
        base: the GPT or Branch to start from; it stays as it is and is the reference.
        prompts: a list of lists of tokens, each answered `config.group` times; each rollout goes on where the last one stopped,
            and round again. With one prompt the groups are parts of the rollout.
        reward: a function of a Rollout that gives one number a completion, (B,); a Branch's rollouts have its trunk.
        watch: a function of a Rollout and its rewards that gives a dict of numbers to log; training never uses them.

    Returns:
        The policy that was kept, in evaluation mode.

    Raises:
        ValueError: no prompts, one that leaves no room for a completion, or a negative reward for maxrl.
        RunError: a loss or the KL is not finite; the last good policy is kept.
    """
    check_prompts(base, prompts, config.max_new_tokens, "grpo")
    baseline, normaliser, clip, denominator = METHODS[config.method]
    policy = copy.deepcopy(base).eval().requires_grad_(True)  # no dropout: the update sees the distribution that was sampled from
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr)
    memory = {"reward": 0.0, "kl": 0.0}  # what a critic that only knows the last rollout expects
    show = ("kl", "reward", "gold")
    stage = runs.stage("policy", folder, "policy", policy, [optimizer], config.iterations + 1, seed, tokenizer, memory, show=show)
    for iteration in stage:
        # Rollout: completions of each prompt, their reward, and how far the policy has moved.
        count = config.rollout_size // config.group
        some = in_turn(prompts, iteration * count, count, config.group)
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

        # Advantages: what each completion is worth over what could be expected, less what its KL costs over that.
        rewards, kl = (x.view(count, config.group) for x in measured[:2])
        worth = advantages(rewards, baseline, normaliser, memory["reward"])
        worth = (worth - config.kl_coef * advantages(kl, baseline, "none", memory["kl"])).flatten()  # (B,)
        memory["reward"], memory["kl"] = rewards.mean().item(), kl.mean().item()
        off = importance_weights(rollout.logprobs, rollout.sampler_logprobs, rollout.mask, torch.inf)  # (B, T)
        weights = off.clamp(max=config.max_weight) if config.max_weight else torch.ones_like(off)
        off_kl = ppo.masked_mean(off - 1 - off.log(), rollout.mask)  # k3 of KL(copy || policy), nats per token
        stage.log(sampler_kl=off_kl.item(), sampler_ratio_max=off.max().item())

        # Update: a pass over the rollout, or a few, in minibatches.
        factor = level_then_down(iteration, config.iterations)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * factor
        steps = []
        for rows in minibatches(len(rollout), config.minibatch, config.epochs, generator(seed, "minibatches", iteration)):
            mine = rows[shard(len(rows))]
            old_logprobs, mask = rollout.logprobs[mine], rollout.mask[mine]
            logprobs = logprobs_of(policy, rollout[mine], config.temperature)  # (b, T)
            loss, clip_fraction, approx_kl = policy_gradient_loss(
                logprobs, old_logprobs, worth[mine], mask, clip, denominator, config.clip, weights[mine]
            )
            share = mask.sum() * world()[1] / rollout.mask[rows].sum()  # 1, unless the processes' shares differ in length
            loss = loss * share if denominator == "batch" else loss
            loss.backward()
            average_gradients(policy)
            optimizer.step()
            optimizer.zero_grad()
            ratio = ppo.masked_mean((logprobs.detach() - old_logprobs).exp(), mask)
            steps.append(torch.stack([loss.detach(), clip_fraction, approx_kl, ratio]))
        steps = gather(torch.stack(steps)[None]).mean(0)  # (minibatches, 4), over all processes
        means = steps.mean(0).tolist()
        stage.log(**dict(zip(("policy_loss", "clip_fraction", "approx_kl"), means)), first_ratio=steps[0, 3].item())
        stage.check(means[0])
    stage.finish()
    return checkpoints.load_tensors(policy, checkpoints.read_tensors(stage.out), stage.out).eval()
