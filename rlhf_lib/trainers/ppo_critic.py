"""PPO with a critic, for a chat model: four models on one trunk (Ziegler et al. 2019; Ouyang et al. 2022, appendix C).

Policy, reference, reward model and critic are branches of one base. Below the branches nothing is trained, so the states there
are the same for all four: they are computed once a rollout, and every score, old or new, goes on from them. So what differs
between the old and the new log-probability is the policy, never the way of computing it.

B: completions    S: prompt and completion, the prompt padded on the left    T: tokens of the completion
"""

from dataclasses import dataclass

import torch
from torch import nn

from rlhf_lib import checkpoints, ppo, runs
from rlhf_lib.devices import autocast, generator
from rlhf_lib.models.layers import evaluating
from rlhf_lib.trainers.rates import level_then_down
from rlhf_lib.trainers.rollouts import by_length, check_prompts, cut, draw, measure, minibatches, trunk_logprobs, trunk_of


@dataclass
class PPOCriticConfig:
    """How policy and critic are trained.

    Args:
        iterations: rollouts, each followed by an update.
        rollout_size, max_new_tokens: completions in a rollout, and the most tokens in each.
        temperature: of sampling, and so of reference and update too.
        epochs, minibatch: passes over a rollout, and completions in an optimiser step.
        lr, critic_lr: Adam's learning rates; over the second half of the iterations they fall to zero in a line.
        clip, value_clip: how far the probability ratio may leave 1, and a value its old one.
        gamma, lam: discount, and lambda of GAE (Schulman et al. 2016).
        kl_coef: penalty on every token's KL to the reference, in reward per nat.
        kl_target: where above 0, the KL of a completion, in nats, that the penalty is adapted to keep (Ziegler et al. 2019,
            section 2.2).
        end_penalty: what an answer loses, in normalised reward, that does not end within max_new_tokens.
        max_kl: training stops when the KL of a completion passes it, in nats.
    """

    iterations: int = 20
    rollout_size: int = 64
    max_new_tokens: int = 48
    temperature: float = 1.0
    epochs: int = 2
    minibatch: int = 16
    lr: float = 2e-4
    critic_lr: float = 5e-4
    clip: float = 0.2
    value_clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    kl_coef: float = 0.05
    kl_target: float = 0.0
    end_penalty: float = 1.0
    max_kl: float = 10.0

    def __post_init__(self):
        for name in ("iterations", "max_new_tokens", "epochs", "minibatch"):
            if getattr(self, name) < 1:
                raise ValueError(f"ppo.{name} must be at least 1, got {getattr(self, name)}")
        if self.rollout_size < 2:
            raise ValueError(f"ppo.rollout_size must be at least 2, got {self.rollout_size}")
        for name in ("lr", "critic_lr", "clip", "value_clip", "max_kl", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"ppo.{name} must be above 0, got {getattr(self, name)}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"ppo.{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("kl_coef", "kl_target", "end_penalty"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"ppo.{name} must not be negative, got {getattr(self, name)}")
        if self.rollout_size % self.minibatch:
            raise ValueError(
                f"ppo.rollout_size must be a multiple of ppo.minibatch, got {self.rollout_size} and {self.minibatch}"
            )
        if self.kl_target and not self.kl_coef:
            raise ValueError("ppo.kl_target adapts ppo.kl_coef by factors, so it needs one above 0 to begin with, got 0")


def values_of(critic, trunk, start, mask):
    """The critic's value before each token of the completions, (B, T), 0 where masked: what is still to come from there."""
    with autocast(mask.device, critic.config.width, exact=True):
        hidden = critic.top(*trunk)[:, start - 1 : -1]  # (B, T, C)
    return torch.where(mask, critic.values(hidden), 0)


@torch.no_grad()
def scored(policy, reference, critic, rollout, start, temperature, batch=16):
    """Log-probabilities of the policy and of the reference, and the critic's values, (3, B, T), 0 where masked."""
    found = torch.zeros(3, *rollout.mask.shape, device=rollout.mask.device)
    with evaluating(reference):
        for rows in by_length(rollout).split(batch):
            trunk, begin, tokens, mask = cut(rollout, start, rows)
            models = [trunk_logprobs(model, trunk, begin, tokens, mask, temperature) for model in (policy, reference)]
            found[:, rows, : mask.shape[1]] = torch.stack([*models, values_of(critic, trunk, begin, mask)])
    return found


def token_rewards(scores, ended, logprobs, ref_logprobs, mask, kl_coef, end_penalty):
    """What every token is paid, (B, T), without a gradient: the KL penalty, and at the last token the completion's score.

    Args:
        scores: (B,), normalised.
        ended: (B,) bool; a completion that did not end loses `end_penalty`.
        logprobs, ref_logprobs, mask: (B, T).
        kl_coef: reward per nat.
    """
    rewards = -kl_coef * torch.where(mask, ppo.kl_estimate(logprobs, ref_logprobs, "k1"), 0).detach()
    last = mask.sum(1, keepdim=True) - 1  # (B, 1)
    return rewards.scatter_add(1, last, (scores.detach() - end_penalty * (~ended).float())[:, None])


def train(policy, critic, reference, tokenizer, prompts, reward, config, folder, seed=0, watch=None):
    """Fine-tune `policy` with PPO, and leave it in `folder/policy`.

    Args:
        policy, critic, reference: branches of one base with as many layers; the critic has a scalar head. The policy starts as
            the reference, which stays as it is.
        prompts: a list of lists of tokens; each rollout draws them without repetition, again once all were there.
        reward: a function of a Rollout that gives one number a completion, (B,), normalised. Its `trunk` are the states.
        watch: a function of a Rollout and its rewards that gives a dict of numbers to log; training never uses them.

    Returns:
        The policy that was kept, in evaluation mode: the last that was measured within `config.max_kl`.

    Raises:
        ValueError: no prompts, one that leaves no room for an answer, or branches that do not fit together.
        RunError: a loss or the KL is not finite; the last good policy is kept.
    """
    check_prompts(policy, prompts, config.max_new_tokens, "ppo")
    if not policy.base is critic.base is reference.base or len({m.lower for m in (policy, critic, reference)}) > 1:
        raise ValueError("policy, critic and reference must be branches of one base, of as many layers: load them with base=")
    both = nn.ModuleDict({"policy": policy, "critic": critic}).eval()  # no dropout: the update sees what was sampled from
    rates = (policy, config.lr), (critic, config.critic_lr)
    optimizer = torch.optim.Adam([{"params": list(model.parameters()), "lr": lr, "full": lr} for model, lr in rates])
    memory = {"kl_coef": config.kl_coef}
    show = ("kl", "reward", "ended")
    stage = runs.stage(
        "policy", folder, "policy", both, [optimizer], config.iterations + 1, seed, tokenizer, memory, policy, show
    )
    for iteration in stage:
        # Rollout: completions, their reward, and how far the policy has moved.
        places = torch.randperm(len(prompts), generator=generator(seed, "prompts", iteration))
        some = [prompts[place] for place in places[torch.arange(config.rollout_size) % len(prompts)].tolist()]
        rollout = draw(policy, tokenizer, some, config.max_new_tokens, generator(seed, "rollout", iteration), config.temperature)
        rollout.trunk, start = trunk_of(policy, rollout)
        logprobs, ref_logprobs, values = scored(policy, reference, critic, rollout, start, config.temperature)  # (B, T) each
        rollout.logprobs, mask = logprobs, rollout.mask
        ended = ((rollout.tokens == tokenizer.end_token) & mask).any(1)  # (B,)
        also = {"ended": ended.float().mean().item(), "kl_coef": memory["kl_coef"]}
        measured = measure(stage, rollout, ref_logprobs, reward, config.max_kl, iteration, watch, **also)
        if measured is None:
            break
        scores, kl, _ = measured  # (B,) each
        if iteration == config.iterations:
            continue

        # Advantages: what each token brought over what the critic expected.
        rewards = token_rewards(scores, ended, logprobs, ref_logprobs, mask, memory["kl_coef"], config.end_penalty)
        advantages, returns = ppo.gae(rewards, values, config.gamma, config.lam, mask)
        advantages = ppo.masked_whiten(advantages, mask)
        if config.kl_target:
            controller = ppo.AdaptiveKL(memory["kl_coef"], config.kl_target, horizon=10 * config.rollout_size)
            memory["kl_coef"] = controller.update(kl.mean().item(), len(kl))

        # Update: a few passes over the rollout in minibatches.
        factor = level_then_down(iteration, config.iterations)
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * factor
        steps = []
        for rows in minibatches(len(kl), config.minibatch, config.epochs, generator(seed, "minibatches", iteration)):
            trunk, begin, some, seen = cut(rollout, start, rows)
            short = slice(seen.shape[1])
            old_logprobs, old_values = logprobs[rows, short], values[rows, short]
            new_logprobs = trunk_logprobs(policy, trunk, begin, some, seen, config.temperature)  # (b, up to T)
            new_values = values_of(critic, trunk, begin, seen)
            loss, clip_fraction, approx_kl = ppo.policy_loss(
                new_logprobs, old_logprobs, advantages[rows, short], seen, config.clip
            )
            value_loss = ppo.value_loss(new_values, old_values, returns[rows, short], seen, config.value_clip)
            (loss + value_loss).backward()  # two models, so no weight between the two
            for model in (policy, critic):
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ratio = ppo.masked_mean((new_logprobs.detach() - old_logprobs).exp(), seen)
            steps.append(torch.stack([loss.detach(), value_loss.detach(), clip_fraction, approx_kl, ratio]))
        steps = torch.stack(steps)  # (minibatches, 5)
        means = steps.mean(0).tolist()
        names = ("policy_loss", "value_loss", "clip_fraction", "approx_kl")
        explained = ppo.explained_variance(values, returns, mask)
        stage.log(**dict(zip(names, means)), first_ratio=steps[0, 4].item())
        if explained.isfinite():  # there is nothing to explain where all returns are the same
            stage.log(explained_variance=explained.item())
        stage.check(means[0] + means[1])
    stage.finish()
    return checkpoints.load_tensors(policy, checkpoints.read_tensors(stage.out), stage.out).eval()
