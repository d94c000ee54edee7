"""Chapter 05's intervals: what is close to them has its name."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from rlhf_lib.exercises import verdict
from rlhf_lib.exercises.ch05_intervals import wilson_interval


def test_the_interval_that_the_check_expects_is_scipys():
    bounds = stats.binomtest(742, 867).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval.right(742, 867, stats.norm.ppf(0.975))
    assert (low.item(), high.item()) == pytest.approx((bounds.low, bounds.high), abs=1e-6)


def wilson(share, total, z, root):
    centre, under = share + z**2 / (2 * total), 1 + z**2 / total
    return (centre - z * root) / under, (centre + z * root) / under


def without_the_other_share(right, total, z):
    return wilson(right / total, total, z, math.sqrt(right / total / total + z**2 / (4 * total**2)))


def root_of_a_part(right, total, z):
    share = right / total
    return wilson(share, total, z, math.sqrt(share * (1 - share) / total) + z**2 / (4 * total**2))


def whole_share(right, total, z):
    share = right // total
    return wilson(share, total, z, math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)))


def kept_under(*names):
    """Wilson's interval out of a table that knows these arguments alone."""
    known = {}

    def interval(**given):
        key = tuple(given[name] for name in names)
        if key not in known:
            known[key] = wilson_interval.right(**given)
        return known[key]

    return interval


@pytest.mark.parametrize("names", [("right", "total"), ("right", "z"), ("total", "z")])
def test_an_interval_that_is_kept_under_a_part_of_the_arguments_does_not_pass(names):
    assert not verdict("wilson_interval", kept_under(*names)).passed


def two_and_two(right, total, z):
    share, n = (right + 2) / (total + 4), total + 4
    half = z * math.sqrt(share * (1 - share) / n)
    return share - half, share + half


def by_hazen(values, draws):
    return tuple(np.quantile(values[draws].mean(1).numpy(), [0.025, 0.975], method="hazen"))


def own_draws(values, draws):
    means = values[torch.randint(len(values), draws.shape)].mean(1)
    return means.quantile(0.025), means.quantile(0.975)


def different_means(values, draws):
    means = values[draws].mean(1).unique()
    return means.quantile(0.025), means.quantile(0.975)


@pytest.mark.parametrize(
    "name, function, says",
    [
        ("wilson_interval", without_the_other_share, "factor 1 - share"),
        ("wilson_interval", root_of_a_part, "ends too early"),
        ("wilson_interval", whole_share, "whole number"),
        ("wilson_interval", two_and_two, "Agresti"),
        ("bootstrap_interval", by_hazen, "another rule"),
        ("bootstrap_interval", own_draws, "`draws` has the places"),
        ("bootstrap_interval", different_means, "count once"),
    ],
)
def test_what_is_close_has_its_name(name, function, says):
    assert says in verdict(name, function).mistake


def test_bounds_in_a_tensor_are_asked_for_as_a_pair():
    message = verdict(
        "bootstrap_interval", lambda values, draws: values[draws].mean(1).quantile(torch.tensor([0.025, 0.975]))
    ).message
    assert "they come as a tensor: return a pair" in message
