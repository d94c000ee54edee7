"""The losses of comparisons against numbers worked out by hand and a loop over pairs."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib.preference import bradley_terry_loss, dpo_loss, ipo_loss, kto_loss, ranking_loss


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


# ----------------------------------------------------------------------------------------- without a policy gradient


def answers(count, seed, scale=20.0):
    """Log-probabilities of `count` pairs: policy's chosen and rejected, reference's chosen and rejected, (N,) each."""
    return [-scale * torch.rand(count, generator=torch.Generator().manual_seed(10 * seed + n)) for n in range(4)]


def test_dpo_loss_by_hand():
    """Margins (-10 + 11) - (-9 + 8) = 2 and (-5 + 5) - (-6 + 9) = -3, of which beta keeps half."""
    pairs = [torch.tensor(x) for x in ([-10.0, -5.0], [-9.0, -6.0], [-11.0, -5.0], [-8.0, -9.0])]
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1.5))) / 2
    assert dpo_loss(*pairs, beta=0.5).item() == pytest.approx(expected, rel=1e-6)


@given(st.integers(1, 6), st.integers(0, 1000), st.floats(0.01, 2))
@settings(deadline=None, max_examples=30)
def test_dpo_ipo_and_kto_against_a_loop(count, seed, beta):
    pairs = answers(count, seed)
    margins = [a - c - (b - d) for a, b, c, d in zip(*(x.tolist() for x in pairs))]
    assert dpo_loss(*pairs, beta).item() == pytest.approx(
        sum(beta * -min(m, 0) + math.log1p(math.exp(-abs(beta * m))) for m in margins) / count, rel=1e-4, abs=1e-5
    )
    assert ipo_loss(*pairs, beta).item() == pytest.approx(sum((m - 0.5 / beta) ** 2 for m in margins) / count, rel=1e-4, abs=1e-4)
    policy, _, ref, _ = pairs
    desirable, kl = torch.arange(count) % 3 > 0, torch.tensor(1.5)
    costs = []
    for ours, theirs, good in zip(policy.tolist(), ref.tolist(), desirable.tolist()):
        gain = beta * (ours - theirs - 1.5) * (1 if good else -1)
        costs.append(1 - 1 / (1 + math.exp(-gain)))
    assert kto_loss(policy, ref, desirable, kl, beta).item() == pytest.approx(sum(costs) / count, rel=1e-4, abs=1e-6)


def test_where_a_policy_is_its_reference_the_losses_are_ln_2_a_quarter_of_a_square_and_a_half():
    chosen, rejected, _, _ = (x.double() for x in answers(7, 3))
    assert dpo_loss(chosen, rejected, chosen, rejected, 0.3).item() == pytest.approx(math.log(2), rel=1e-12)
    assert ipo_loss(chosen, rejected, chosen, rejected, 0.3).item() == pytest.approx(1 / (4 * 0.3**2), rel=1e-12)
    desirable = torch.tensor([True, False, True, True, False, False, True])
    assert kto_loss(chosen, chosen, desirable, torch.tensor(0.0), 0.3).item() == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("margin", [1000.0, -1000.0])
def test_the_losses_and_their_gradients_stay_finite_at_any_margin(margin):
    zero = torch.zeros(1)
    for loss in (dpo_loss, ipo_loss):
        chosen, rejected = torch.tensor([margin], requires_grad=True), torch.zeros(1, requires_grad=True)
        found = loss(chosen, rejected, zero, zero, 1.0)
        found.backward()
        assert found.isfinite() and chosen.grad.isfinite().all() and rejected.grad.item() == -chosen.grad.item()
    assert dpo_loss(torch.tensor([margin]), zero, zero, zero, 1.0).item() == max(0.0, -margin)
    policy = torch.tensor([margin, margin], requires_grad=True)
    found = kto_loss(policy, torch.zeros(2), torch.tensor([True, False]), torch.tensor(0.0), 1.0)
    found.backward()
    assert found.item() == 0.5 and policy.grad.isfinite().all()


def test_dpo_falls_while_both_answers_become_less_likely():
    """Only the margin counts: the chosen answer loses 5 nats, the rejected one 8."""
    zero = torch.zeros(1)
    assert dpo_loss(zero - 5, zero - 8, zero, zero, 0.1) < dpo_loss(zero, zero, zero, zero, 0.1)


def test_ipo_is_least_at_half_of_one_over_beta_where_dpo_still_pulls():
    at = torch.tensor([0.5 / 0.2], requires_grad=True)
    zero = torch.zeros(1)
    (ipo,) = torch.autograd.grad(ipo_loss(at, zero, zero, zero, 0.2), at)
    (dpo,) = torch.autograd.grad(dpo_loss(at, zero, zero, zero, 0.2), at)
    assert ipo.item() == 0 and dpo.item() < -0.01


def test_kto_pulls_desirable_answers_up_and_the_others_down_and_never_at_the_kl():
    policy, kl = torch.tensor([-3.0, -3.0], requires_grad=True), torch.tensor(0.5, requires_grad=True)
    kto_loss(policy, torch.tensor([-2.0, -2.0]), torch.tensor([True, False]), kl, 0.5).backward()
    slope = 0.5 * 0.25 / math.cosh(0.375) ** 2 / 2  # beta s (1 - s) / N at s = sigmoid(-.75)
    assert policy.grad.tolist() == pytest.approx([-slope, slope], rel=1e-5)
    assert kl.grad is None
