"""The kernels of PPO: plain functions on tensors of shape (batch, time). They know no model.

A mask is True on the tokens that count. Log-probabilities and KL are in nats.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch


def masked_mean(x, mask, dim=None):
    """Mean of `x` where `mask` is True, over `dim` or over everything; 0 where nothing is."""
    mask = mask.to(x.dtype)
    x = torch.where(mask.bool(), x, 0)  # what stands under the mask may even be nan
    if dim is None:
        return x.sum() / mask.sum().clamp(min=1)
    return x.sum(dim) / mask.sum(dim).clamp(min=1)


def masked_whiten(x, mask, shift_mean=True):
    """`x` scaled to variance 1 where `mask` is True, and to mean 0 if `shift_mean`; 0 elsewhere.

    The variance is the biased one (divided by n), with 1e-8 added inside the root.
    """
    x = torch.where(mask, x, 0)
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, white if shift_mean else white + mean, 0)


def gae(rewards, values, gamma, lam, mask=None):
    """Generalised advantage estimation (Schulman et al. 2016, equation 16).

    Args:
        rewards, values: (B, T). The value after the last step, or after the last unmasked one, is 0.
        gamma, lam: discount and trace decay, in [0, 1].
        mask: (B, T) bool; None when every step counts.

    Returns:
        advantages (B, T), 0 where masked, and returns (B, T) = advantages + values, both before any whitening.
    """
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0)
        next_value, next_advantage = values[:, t], advantages[:, t]
    return advantages, advantages + values


class PolicyLoss(NamedTuple):
    """`loss` to minimise, a scalar with a gradient; `clip_fraction` in [0, 1] and `approx_kl` in nats, without one."""

    loss: torch.Tensor
    clip_fraction: torch.Tensor
    approx_kl: torch.Tensor


def policy_loss(logprobs, old_logprobs, advantages, mask, clip):
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), with the sign turned so that it is minimised.

    Args:
        logprobs: (B, T) of the policy that is being updated, with a gradient.
        old_logprobs: (B, T) of the policy that sampled.
        advantages: (B, T).
        mask: (B, T) bool.
        clip: how far the probability ratio may leave 1.

    Returns:
        PolicyLoss. `clip_fraction` is the share of tokens whose ratio lies outside [1 - clip, 1 + clip]; `approx_kl` is
        the k3 estimate of KL(old || new) on the old policy's samples.
    """
    old_logprobs, advantages = old_logprobs.detach(), advantages.detach()
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0)
    ratio = log_ratio.exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    with torch.no_grad():
        clipped = ((ratio - 1).abs() > clip).to(ratio.dtype)
        approx_kl = masked_mean(torch.expm1(log_ratio) - log_ratio, mask)  # expm1: exact where the ratio is close to 1
    return PolicyLoss(masked_mean(loss, mask), masked_mean(clipped, mask), approx_kl)


def value_loss(values, old_values, returns, mask, clip):
    """Half the squared error of the value function, clipped around its old values (PPO's published code; Huang et al. 2022).

    Args:
        values, old_values, returns: (B, T); only `values` gets a gradient.
        mask: (B, T) bool.
        clip: how far a value may move from its old one before its gradient stops.
    """
    values, old_values, returns = (torch.where(mask, x, 0) for x in (values, old_values.detach(), returns.detach()))
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum((values - returns).square(), (near - returns).square()), mask)


def kl_estimate(logprobs, ref_logprobs, kind):
    """Estimates of KL(current || reference) at tokens that the current policy sampled (Schulman 2020).

    As in the note "Approximating KL Divergence", with r = p_ref / p_current: k1 = -log r (unbiased, noisy),
    k2 = (log r)^2 / 2 (biased, steady), k3 = r - 1 - log r (unbiased and never negative).

    Returns:
        One estimate a token, in nats, in the shape of `logprobs`. Sum over a completion's tokens for its KL.

    Raises:
        ValueError: another kind.
    """
    log_ratio = ref_logprobs - logprobs
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    if kind == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"kind must be k1, k2 or k3, got {kind!r}")


@dataclass
class AdaptiveKL:
    """The coefficient of a KL penalty, steered towards a target (Ziegler et al. 2019, section 2.2).

    Args:
        beta: the coefficient to begin with.
        target: the wanted KL, in nats per completion.
        horizon: over how many completions the coefficient may grow by about a fifth.
    """

    beta: float
    target: float
    horizon: float

    def update(self, kl, completions):
        """Move `beta` after `completions` completions with mean `kl`; returns it."""
        error = max(-0.2, min(0.2, float(kl) / self.target - 1))
        self.beta *= 1 + error * completions / self.horizon
        return self.beta


def explained_variance(values, returns, mask):
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than a constant; nan for constant returns."""
    error, returns = (returns - values)[mask].detach(), returns[mask].detach()
    if not (returns != returns[:1]).any():  # the variance of equal numbers is not always 0 after rounding
        return returns.new_tensor(math.nan)
    return 1 - error.var(correction=0) / returns.var(correction=0)


def entropy(logits, mask=None):
    """The entropy, in nats, of the distributions that `logits` (B, T, V) define; their masked mean when `mask` is given."""
    logprobs = logits.log_softmax(-1)
    each = -(logprobs.exp() * logprobs.masked_fill(logprobs == -math.inf, 0)).sum(-1)  # 0 log 0 is 0, and so is its gradient
    return each if mask is None else masked_mean(each, mask)
