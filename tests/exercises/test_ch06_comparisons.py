"""Chapter 06's losses on comparisons and rankings: mistakes that are right for small margins, or for two answers."""

import pytest
import torch
from torch.nn import functional as F

from rlhf_lib.exercises import verdict


def by_probabilities(chosen, rejected):
    return F.binary_cross_entropy((chosen - rejected).sigmoid(), torch.ones_like(chosen))


def without_ties(chosen, rejected):
    return F.softplus(rejected - chosen)[chosen != rejected].mean()


def out_of_sight(chosen, rejected):
    return (-(chosen - rejected).sigmoid().log()).nan_to_num(posinf=100.0).mean()


def plackett_luce(rewards):
    return sum(rewards[:, i:].logsumexp(1) - rewards[:, i] for i in range(rewards.shape[1])).mean()


def zeros_between(rewards):
    return F.softplus(-(rewards[:, :, None] - rewards[:, None]).triu(1)).mean()


def worse_detached(rewards):
    better, worse = torch.triu_indices(rewards.shape[1], rewards.shape[1], 1)
    return F.softplus(rewards[:, worse].detach() - rewards[:, better]).mean()


@pytest.mark.parametrize(
    "name, function, says",
    [
        ("pair_loss", by_probabilities, "binary_cross_entropy has one"),
        ("pair_loss", without_ties, "equal rewards"),
        ("pair_loss", out_of_sight, "stays NaN"),
        ("pair_loss", lambda chosen, rejected: F.softplus(1 + rejected - chosen).mean(), "its sign alone"),
        ("ranked_loss", plackett_luce, "Plackett"),
        ("ranked_loss", zeros_between, "adds log 2"),
        ("ranked_loss", worse_detached, "detached"),
    ],
)
def test_what_is_close_has_its_name(name, function, says):
    assert says in verdict(name, function).mistake
