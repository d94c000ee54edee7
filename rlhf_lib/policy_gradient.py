"""The policy gradients of one family as rows of a table: REINFORCE, RLOO, GRPO, Dr. GRPO, MaxRL, GSPO and PPO.

They differ in four switches, two on the way from rewards to advantages, two on the way from advantages to a loss:

    baseline      what a reward is measured from: nothing, the mean of the batch, of the other completions of its group, of the
                  group, or what a critic expected
    normaliser    what that is divided by: nothing, the group's deviation, the group's mean, or a deviation that stays as it is
    clip          how the loss looks at the probability ratio: not at all, at each token's, or at the whole completion's
    denominator   what the sum over tokens is divided by: each completion's length, the tokens of the batch, or a constant

A group is the completions of one prompt. Kernels on tensors; they know no model. Log-probabilities are in nats.

N: groups    G: completions in each    B: completions    T: tokens in each
"""

from typing import NamedTuple

import torch

from rlhf_lib import ppo


class Method(NamedTuple):
    """A row of the table: the name of each switch's position."""

    baseline: str
    normaliser: str
    clip: str
    denominator: str


METHODS = {
    # Williams 1992, section 5 (episodic REINFORCE); and with the mean of the batch as its baseline.
    "reinforce": Method("none", "none", "none", "constant"),
    "reinforce-baseline": Method("batch", "none", "none", "constant"),
    # Kool et al. 2019; Ahmadian et al. 2024, section 3.
    "rloo": Method("leave-one-out", "none", "none", "constant"),
    # Shao et al. 2024, equation 3, and section 4.1.2 for the advantages.
    "grpo": Method("group", "deviation", "token", "completion"),
    # Liu et al. 2025, section 3.2: GRPO without the two divisions that favour some prompts and lengths.
    "dr-grpo": Method("group", "none", "token", "constant"),
    # Tajwar et al. 2026, algorithm 1; for rewards of 0 and 1.
    "maxrl": Method("group", "mean", "none", "constant"),
    # Zheng et al. 2025, equations 5 to 7.
    "gspo": Method("group", "deviation", "sequence", "completion"),
    # Schulman et al. 2017, equation 7, as chapter 08 has it: rewards in fixed units, and what was expected in place of a critic.
    "ppo": Method("critic", "fixed", "token", "batch"),
}


def advantages(rewards, baseline, normaliser, values=None, deviation=1.0):
    """What each completion is worth over what could be expected, (N, G), without a gradient.

    Args:
        rewards: (N, G), a row for each prompt.
        baseline: none, batch, leave-one-out, group or critic.
        normaliser: none, deviation (of each group, biased, 1e-8 added inside the root), mean (of each group, whose rewards must
            not be negative; a group without reward has no advantage), or fixed.
        values: what the critic expected, a number or (N, G); needed by the baseline critic alone.
        deviation: what fixed divides by, such as the reward's deviation on completions of the reference.

    Raises:
        ValueError: an unknown name, a group of one where completions are compared within groups, no values for the critic, or a
            negative reward where the mean is to be divided by.
    """
    rewards = rewards.detach()
    mean, G = rewards.mean(1, keepdim=True), rewards.shape[1]
    if G < 2 and (baseline in ("leave-one-out", "group") or normaliser == "deviation"):
        raise ValueError(f"the {baseline} baseline and {normaliser} normaliser need groups of at least 2 completions, got {G}")
    if baseline == "none":
        expected = torch.zeros_like(rewards)
    elif baseline == "batch":
        expected = rewards.mean()
    elif baseline == "leave-one-out":
        expected = (G * mean - rewards) / (G - 1)
    elif baseline == "group":
        expected = mean
    elif baseline == "critic":
        if values is None:
            raise ValueError("the baseline critic needs values: what was expected of each completion")
        expected = values
    else:
        raise ValueError(f"baseline must be none, batch, leave-one-out, group or critic, got {baseline!r}")
    apart = rewards - expected
    if normaliser == "none":
        return apart
    if normaliser == "deviation":
        return apart * torch.rsqrt((rewards - mean).square().mean(1, keepdim=True) + 1e-8)
    if normaliser == "mean":
        if (rewards < 0).any():
            raise ValueError(f"the normaliser mean needs rewards that are not negative, got {rewards.min().item():.4g}")
        return torch.where(mean > 0, apart / mean, 0)
    if normaliser == "fixed":
        return apart / deviation
    raise ValueError(f"normaliser must be none, deviation, mean or fixed, got {normaliser!r}")


def policy_gradient_loss(logprobs, old_logprobs, advantages, mask, clip, denominator, epsilon=0.2, weights=None):
    """The loss whose gradient is the policy gradient, with two of the switches.

    Without a clip a token costs -advantage * log p, and the ratio plays no part. With one it costs -advantage * ratio, and stops
    to pull where the ratio has left [1 - epsilon, 1 + epsilon] in the direction that it is pulled. The ratio of a sequence is the
    geometric mean of its tokens', and all of them share it.

    Args:
        logprobs: (B, T) of the policy that is being updated, with a gradient.
        old_logprobs: (B, T) of the policy that sampled.
        advantages: (B,), one number a completion.
        mask: (B, T) bool.
        clip: none, token or sequence.
        denominator: completion (the mean over each one's tokens, then over completions), batch (the mean over all tokens), or
            constant (the sum over each one's tokens, divided by T; then the mean over completions).
        epsilon: how far the ratio may leave 1.
        weights: (B, T), what each token's loss is multiplied by, see `importance_weights`; None for 1.

    Returns:
        A PolicyLoss; see `ppo.policy_loss`. Without a clip its clip_fraction is 0.

    Raises:
        ValueError: an unknown name.
    """
    old_logprobs, advantages = old_logprobs.detach(), advantages.detach()[:, None]  # (B, 1)
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0)
    clipped = torch.zeros_like(mask)
    if clip == "none":
        each = -advantages * logprobs
    elif clip in ("token", "sequence"):
        ratio = (log_ratio if clip == "token" else ppo.masked_mean(log_ratio, mask, 1)[:, None].expand_as(log_ratio)).exp()
        each = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - epsilon, 1 + epsilon))
        clipped = (ratio.detach() - 1).abs() > epsilon
    else:
        raise ValueError(f"clip must be none, token or sequence, got {clip!r}")
    each = torch.where(mask, each if weights is None else each * weights, 0)
    if denominator == "completion":
        loss = ppo.masked_mean(each, mask, 1).mean()
    elif denominator == "batch":
        loss = ppo.masked_mean(each, mask)
    elif denominator == "constant":
        loss = each.sum(1).mean() / mask.shape[1]
    else:
        raise ValueError(f"denominator must be completion, batch or constant, got {denominator!r}")
    with torch.no_grad():
        approx_kl = ppo.masked_mean(torch.expm1(log_ratio) - log_ratio, mask)
    return ppo.PolicyLoss(loss, ppo.masked_mean(clipped.to(loss.dtype), mask), approx_kl)


def importance_weights(logprobs, sampler_logprobs, mask, cap):
    """How much likelier each token was to the model that learns than to the copy that sampled it, (B, T), at most `cap`.

    A copy in bf16 or on another engine draws from a slightly other distribution, so that a rollout is off-policy before the
    first update. Multiplied by these weights its gradient is that of the model itself, but for what the cap cuts off, which would
    make it noisy (truncated importance sampling; Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training").

    Args:
        logprobs: (B, T), the policy's before its update, scored as in the update.
        sampler_logprobs: (B, T), those of what was sampled from.
        mask: (B, T) bool; the weight is 1 where it is False.
        cap: above 0, such as 2.
    """
    return torch.where(mask, logprobs - sampler_logprobs, 0).detach().exp().clamp(max=cap)
