"""Chapter 10's checks of what margins and readers are worth: errors are told as errors, and no bound is put on a share."""

import math

import pytest
import torch

from rlhf_lib import exercises
from rlhf_lib.exercises import verdict


def ceiling(agreement, accuracy, true=lambda accuracy, p: (accuracy - (1 - p)) / (2 * p - 1)):
    if agreement <= 0.5:
        raise ValueError(f"readers who agree on {agreement:.0%} say nothing")
    p = (1 + math.sqrt(2 * agreement - 1)) / 2
    return p, true(accuracy, p)


def test_every_value_error_is_right_whatever_it_says():
    def silent(agreement, accuracy):
        if agreement <= 0.5:
            raise ValueError
        return ceiling(agreement, accuracy)

    assert verdict("ceiling", silent).passed and verdict("ceiling", ceiling).passed


def test_an_error_where_none_is_right_is_told():
    def strict(agreement, accuracy):
        if accuracy <= 0.5:
            raise ValueError("worse than a coin")
        return ceiling(agreement, accuracy)

    assert "it raised ValueError" in verdict("ceiling", strict).message


@pytest.mark.parametrize("bound", [lambda q: max(q, 0.0), lambda q: min(max(q, 0.0), 1.0)])
def test_a_model_may_come_out_right_on_less_than_none(bound):
    found = verdict("ceiling", lambda agreement, accuracy: (lambda p, q: (p, bound(q)))(*ceiling(agreement, accuracy)))
    assert "kept at 0 and above" in found.message
    assert ceiling(0.82, 0.06) == pytest.approx((0.9, -0.05))


def test_pairs_that_are_lost_from_a_bin_are_named():
    def lost(margins, bins):
        c = margins.abs().sigmoid()
        place = ((c - 0.5) * 2 * bins).long().clamp(max=bins - 1)
        sums = torch.zeros(bins, 3)
        sums[place] += torch.stack([torch.ones_like(c), c, (margins > 0) + 0.5 * (margins == 0)], 1)
        return torch.cat([sums[:, :1], sums[:, 1:] / sums[:, :1].clamp(min=1)], 1)

    assert "index_add" in verdict("reliability", lost).message


def test_the_bin_by_hand_on_the_card():
    found = exercises.find("reliability").right(torch.tensor([1.0, -1.0, 1.0]), 1)
    assert torch.allclose(found, torch.tensor([[3, 0.7311, 0.6667]]), atol=1e-4)
