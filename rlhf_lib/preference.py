"""The kernels of comparisons: losses over pairs and rankings of rewards. They know no model."""

import torch
from torch.nn import functional as F


def bradley_terry_loss(chosen, rejected):
    """-log sigmoid(chosen - rejected), the mean over the pairs (Bradley and Terry 1952; Ouyang et al. 2022, equation 1).

    Args:
        chosen, rejected: (N,) rewards of the preferred and of the other answer; any margin gives a finite loss.
    """
    return -F.logsigmoid(chosen - rejected).mean()


def ranking_loss(rewards):
    """The Bradley-Terry loss of all pairs among K ranked answers, the mean over the pairs (Ouyang et al. 2022, equation 1).

    Args:
        rewards: (N, K), K at least 2, best answer first.
    """
    K = rewards.shape[1]
    if K < 2:
        raise ValueError(f"a ranking needs at least 2 answers, got {K}")
    better, worse = torch.triu_indices(K, K, offset=1, device=rewards.device)
    return bradley_terry_loss(rewards[:, better], rewards[:, worse])


def dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """Direct preference optimisation: -log sigmoid(beta * margin), the mean over the pairs (Rafailov et al. 2023, equation 7).

    The margin is how much likelier than under the reference the policy has made the chosen answer, less the same of the rejected
    one. A policy that still is its reference has margins of 0, and so a loss of ln 2. The loss knows the margin alone: both
    answers may become less likely while it falls.

    Args:
        policy_chosen, policy_rejected: (N,) log-probabilities of whole answers, in nats, with a gradient.
        ref_chosen, ref_rejected: (N,), the reference's.
        beta: what a nat is worth, in reward; any margin gives a finite loss.
    """
    return bradley_terry_loss(beta * (policy_chosen - ref_chosen), beta * (policy_rejected - ref_rejected))


def ipo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """Identity preference optimisation: (margin - 1 / (2 beta))^2, the mean over the pairs (Azar et al. 2024, equation 17).

    The margin is drawn to a number, where DPO's wants more for ever. Arguments as for `dpo_loss`; `beta` is the paper's tau.
    """
    margin = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
    return (margin - 1 / (2 * beta)).square().mean()


def kto_loss(policy, ref, desirable, kl, beta):
    """Kahneman-Tversky optimisation, for labels without pairs (Ethayarajh et al. 2024, equation 8, with both lambdas 1).

    A desirable answer costs 1 - sigmoid(beta * (log(policy / ref) - kl)), and an undesirable one the same of the negative number;
    the mean over the answers. A policy that still is its reference has a loss of a half.

    Args:
        policy, ref: (N,) log-probabilities of whole answers, in nats; `policy` with a gradient.
        desirable: (N,) bool.
        kl: KL(policy || ref), in nats, at least 0: what a log ratio is measured from. It gets no gradient.
        beta: as for `dpo_loss`.
    """
    gain = beta * (policy - ref - kl.detach())
    return torch.sigmoid(torch.where(desirable, -gain, gain)).mean()
