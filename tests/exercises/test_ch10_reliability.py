"""Chapter 10's checks of what margins and readers are worth: errors are told as errors, and no bound is put on a share."""

import math
from functools import partial

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


@pytest.mark.parametrize(
    "bound, words", [(lambda q: max(q, 0.0), "kept at 0 and above"), (lambda q: min(max(q, 0.0), 1.0), "kept between 0 and 1")]
)
def test_a_model_may_come_out_right_on_less_than_none(bound, words):
    found = verdict("ceiling", lambda agreement, accuracy: (lambda p, q: (p, bound(q)))(*ceiling(agreement, accuracy)))
    assert words in found.message
    assert ceiling(0.82, 0.06) == pytest.approx((0.9, -0.05))


def test_pairs_that_are_lost_from_a_bin_are_named():
    def lost(margins, bins):
        c = margins.abs().sigmoid()
        place = ((c - 0.5) * 2 * bins).long().clamp(max=bins - 1)
        sums = torch.zeros(bins, 3)
        sums[place] += torch.stack([torch.ones_like(c), c, (margins > 0) + 0.5 * (margins == 0)], 1)
        return torch.cat([sums[:, :1], sums[:, 1:] / sums[:, :1].clamp(min=1)], 1)

    assert "index_add" in verdict("reliability", lost).message


def places_by_ceil(margins, bins, place=lambda c, bins: math.ceil((c - 0.5) * 2 * bins) - 1, least=0):
    sums = [[0.0, 0.0, 0.0] for _ in range(bins)]
    for m in margins.tolist():
        c = 1 / (1 + math.exp(-abs(m)))
        row = sums[place(c, bins)]
        row[0], row[1], row[2] = row[0] + 1, row[1] + c, row[2] + (m > 0) + 0.5 * (m == 0)
    return torch.tensor([[max(n, least), c / max(n, 1), r / max(n, 1)] for n, c, r in sums])


@pytest.mark.parametrize(
    "name, function, says",
    [
        ("reliability", places_by_ceil, "the place -1"),
        ("reliability", lambda margins, bins: places_by_ceil(
            margins, bins, lambda c, bins: min(int((c - 0.5) * 2 * bins), bins - 1), least=1), "said to have one pair"),
        ("ceiling", partial(ceiling, true=lambda accuracy, p: (p - accuracy) / (2 * p - 1)), "1 minus the right one"),
    ],
)  # fmt: skip
def test_frequent_mistakes_have_their_names(name, function, says):
    assert says in verdict(name, function).mistake


def test_the_bin_by_hand_on_the_card():
    found = exercises.find("reliability").right(torch.tensor([1.0, -1.0, 1.0]), 1)
    assert torch.allclose(found, torch.tensor([[3, 0.7311, 0.6667]]), atol=1e-4)
