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
