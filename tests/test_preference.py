"""The losses of comparisons against numbers worked out by hand and a loop over pairs."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib.preference import bradley_terry_loss, ranking_loss


def test_bradley_terry_loss_by_hand():
    """Margins of ln 3, 0 and -ln 3 are won with probability 3/4, 1/2 and 1/4."""
    chosen = torch.tensor([1 + math.log(3), 4.0, -2.0])
    rejected = torch.tensor([1.0, 4.0, -2 + math.log(3)])
    expected = -(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 4)) / 3
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(expected, rel=1e-6)


def test_bradley_terry_loss_and_its_gradient_stay_finite_at_any_margin():
    for margin, loss, slope in ((1000.0, 0.0, 0.0), (-1000.0, 1000.0, -1.0)):
        chosen, rejected = torch.tensor([margin], requires_grad=True), torch.zeros(1, requires_grad=True)
        found = bradley_terry_loss(chosen, rejected)
        found.backward()
        assert found.item() == loss
        assert (chosen.grad.item(), rejected.grad.item()) == (slope, -slope)


@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_ranking_loss_is_the_mean_over_all_pairs(N, K, seed):
    rewards = 3 * torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    pairs = [(row[i], row[j]) for row in rewards.tolist() for i, j in itertools.combinations(range(K), 2)]
    assert len(pairs) == N * K * (K - 1) // 2
    expected = sum(math.log1p(math.exp(worse - better)) for better, worse in pairs) / len(pairs)
    assert ranking_loss(rewards).item() == pytest.approx(expected, rel=1e-5)


def test_ranking_two_answers_is_bradley_terry():
    rewards = torch.tensor([[1.0, 0.25], [-2.0, 3.0], [0.5, 0.5]])
    assert ranking_loss(rewards).item() == pytest.approx(bradley_terry_loss(rewards[:, 0], rewards[:, 1]).item(), rel=1e-6)


def test_ranking_loss_and_its_gradient_stay_finite_at_any_margin():
    rewards = torch.tensor([[-1000.0, 0.0, 1000.0]], requires_grad=True)  # the order upside down
    loss = ranking_loss(rewards)
    loss.backward()
    assert loss.item() == pytest.approx((1000 + 2000 + 1000) / 3)
    assert rewards.grad.tolist()[0] == pytest.approx([-2 / 3, 0, 2 / 3], abs=1e-6)


def test_one_answer_is_no_ranking():
    with pytest.raises(ValueError, match="a ranking needs at least 2 answers, got 1"):
        ranking_loss(torch.zeros(3, 1))


def test_a_better_margin_costs_less_and_the_losses_are_in_the_precision_of_the_rewards():
    margins = torch.linspace(-5, 5, 11, dtype=torch.float64)
    losses = torch.stack([bradley_terry_loss(margin[None], torch.zeros(1).double()) for margin in margins])
    assert (losses.diff() < 0).all() and losses.dtype == torch.float64
    assert losses[5].item() == pytest.approx(math.log(2), rel=1e-12)
    ranked = torch.tensor([[3.0, 1.0, -1.0]], dtype=torch.float64)
    assert ranking_loss(ranked) < ranking_loss(ranked.flip(1)) and ranking_loss(ranked).dtype == torch.float64
