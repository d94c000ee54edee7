"""The PPO kernels against numbers worked out by hand, scalar loops and PyTorch's distributions."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from rlhf_lib import ppo

P, Q = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64)
KL_PQ, K2_PQ = 0.20078, 0.18640  # sum p log(p/q), and sum p (log q/p)^2 / 2, by hand

# What may stand under a mask: nothing of it may reach a result or a gradient.
JUNK = [0.0, -7.5, 1e30, math.inf, -math.inf, math.nan]


def row(*numbers, **options):
    return torch.tensor([numbers], dtype=torch.float64, **options)


def real(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def close(actual, expected, tolerance=1e-6, **options):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance, **options)


@st.composite
def ragged(draw):
    """A mask (B, T) with one run of real steps a row, anywhere in it, perhaps empty; and a generator for its numbers."""
    width = draw(st.integers(1, 7))
    runs = draw(st.lists(st.tuples(st.integers(0, width), st.integers(0, width)), min_size=1, max_size=4))
    mask = torch.zeros(len(runs), width, dtype=torch.bool)
    for line, ends in zip(mask, runs):
        line[min(ends) : max(ends)] = True
    return mask, torch.Generator().manual_seed(draw(st.integers(0, 2**31)))


def numbers(mask, generator, under=math.nan):
    """Normal numbers in the shape of `mask`, with `under` where it is False."""
    return torch.randn(mask.shape, generator=generator, dtype=torch.float64).masked_fill(~mask, under)


def kept(*columns):
    """The tensors' real entries as a list of tuples of floats; the mask is the last of `columns`."""
    *columns, mask = columns
    return list(zip(*(column[mask].tolist() for column in columns)))


# ----------------------------------------------------------------------------------------- mean and whitening


def test_the_mean_counts_only_real_tokens():
    x, mask = torch.tensor([[1.0, 2.0, 9.0], [6.0, 9.0, 9.0]]), torch.tensor([[True, True, False], [True, False, False]])
    close(ppo.masked_mean(x, mask), 3.0)  # of the three tokens, not of the two rows' means (3.75)
    close(ppo.masked_mean(x, mask, dim=1), [1.5, 6.0])
    close(ppo.masked_mean(x, mask, dim=0), [3.5, 2.0, 0.0])


def test_the_mean_of_nothing_is_zero():
    assert ppo.masked_mean(row(3.0, math.nan), ~real(1, 2)) == 0
    close(ppo.masked_mean(torch.full((2, 2), 5.0), torch.tensor([[False, False], [True, False]]), dim=1), [0.0, 5.0])


@settings(deadline=None, max_examples=40)
@given(ragged())
def test_the_mean_agrees_with_python(drawn):
    mask, generator = drawn
    x = numbers(mask, generator)
    one, rows = ppo.masked_mean(x, mask), ppo.masked_mean(x, mask, dim=1)
    flat = [value for (value,) in kept(x, mask)]
    assert one.item() == pytest.approx(sum(flat) / max(len(flat), 1), abs=1e-12)
    for value, line, present in zip(rows, x.tolist(), mask.tolist()):
        some = [number for number, there in zip(line, present) if there]
        assert value.item() == pytest.approx(sum(some) / max(len(some), 1), abs=1e-12)


def test_whitening_one_to_four():
    close(ppo.masked_whiten(row(1, 2, 3, 4), real(1, 4)), [[-1.3416, -0.4472, 0.4472, 1.3416]], 5e-5)


def test_whitening_can_keep_the_mean():
    white = ppo.masked_whiten(row(1, 2, 3, 4), real(1, 4), shift_mean=False)
    close(white, [[2.5 - 1.3416, 2.5 - 0.4472, 2.5 + 0.4472, 2.5 + 1.3416]], 5e-5)


def test_whitening_adds_its_epsilon_inside_the_root():
    # The variance is 1e-8, as large as the epsilon: 1e-4 / sqrt(2e-8). Outside the root it would be 0.9999.
    close(ppo.masked_whiten(row(1e-4, -1e-4), real(1, 2)), [[0.70711, -0.70711]], 1e-5)


def test_whitening_equal_numbers_gives_zeros():
    close(ppo.masked_whiten(row(5, 5, 5), real(1, 3)), [[0.0, 0.0, 0.0]])
    close(ppo.masked_whiten(row(5), real(1, 1)), [[0.0]])


@settings(deadline=None, max_examples=40)
@given(ragged())
def test_whitening_agrees_with_numpy(drawn):
    mask, generator = drawn
    x = 3 * numbers(mask, generator) + 2
    white = ppo.masked_whiten(x, mask)
    assert (white[~mask] == 0).all()
    flat = x[mask].numpy()
    if len(flat):
        np.testing.assert_allclose(white[mask], (flat - flat.mean()) / np.sqrt(flat.var() + 1e-8), rtol=1e-9, atol=1e-9)
        shifted = ppo.masked_whiten(x, mask, shift_mean=False)
        np.testing.assert_allclose(shifted[mask], white[mask].numpy() + flat.mean(), rtol=1e-9, atol=1e-9)


# ----------------------------------------------------------------------------------------- GAE


def scalar_gae(rewards, values, gamma, lam):
    """One row without padding: every advantage as the discounted sum of the temporal differences that follow it."""
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, values[1:] + [0.0])]
    return [sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


def test_gae_by_hand():
    # deltas .1, .1, .7; then .7, .1 + .95 * .7 = .765, .1 + .95 * .765 = .82675
    advantages, returns = ppo.gae(row(0, 0, 1), row(0.1, 0.2, 0.3), gamma=1.0, lam=0.95)
    close(advantages, [[0.82675, 0.765, 0.7]])
    close(returns, [[0.92675, 0.965, 1.0]])


def test_gae_discounts_by_hand():
    # deltas 1 + .5 * 4 - 2 = 1 and 3 - 4 = -1; 1 + .5 * .5 * -1 = .75
    advantages, returns = ppo.gae(row(1, 3), row(2, 4), gamma=0.5, lam=0.5)
    close(advantages, [[0.75, -1.0]])
    close(returns, [[2.75, 3.0]])


@settings(deadline=None, max_examples=80)
@given(ragged(), st.floats(0, 1), st.floats(0, 1), st.sampled_from(JUNK))
def test_gae_agrees_with_a_scalar_loop_under_ragged_masks(drawn, gamma, lam, under):
    mask, generator = drawn
    rewards, values = numbers(mask, generator, under), numbers(mask, generator, under)
    advantages, returns = ppo.gae(rewards, values, gamma, lam, mask)
    assert advantages.shape == returns.shape == mask.shape
    for line in range(len(mask)):
        some = mask[line]
        expected = scalar_gae(rewards[line][some].tolist(), values[line][some].tolist(), gamma, lam)
        close(advantages[line][some], expected, 1e-9)
        close(returns[line][some], values[line][some] + torch.tensor(expected, dtype=torch.float64), 1e-9)
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


def test_gae_without_a_mask_counts_every_step():
    rewards, values = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for with_mask, without in zip(ppo.gae(rewards, values, 0.9, 0.8, real(3, 5)), ppo.gae(rewards, values, 0.9, 0.8)):
        close(with_mask, without)


@settings(deadline=None, max_examples=20)
@given(ragged(), st.floats(0, 1))
def test_with_lambda_one_the_returns_are_the_discounted_rewards_whatever_the_values(drawn, gamma):
    mask, generator = drawn
    rewards, values = numbers(mask, generator), numbers(mask, generator)
    returns = ppo.gae(rewards, values, gamma, 1.0, mask)[1]
    for line, some in enumerate(mask):
        to_go = rewards[line][some].tolist()
        expected = [sum(gamma**k * r for k, r in enumerate(to_go[t:])) for t in range(len(to_go))]
        close(returns[line][some], expected, 1e-9)


# ----------------------------------------------------------------------------------------- the policy loss


def at_ratios(*ratios):
    """Log-probabilities with a gradient, and the old ones, so that new / old are `ratios`."""
    old = torch.linspace(-2.0, -0.5, len(ratios), dtype=torch.float64)[None]
    return (old + row(*ratios).log()).requires_grad_(), old


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.5, 1.0, -1.2, 0.0),  # good and already more likely: no further
        (1.5, -1.0, 1.5, 1.5),  # bad and more likely: back, however far it went
        (0.5, 1.0, -0.5, -0.5),  # good and less likely: back
        (0.5, -1.0, 0.8, 0.0),  # bad and already less likely: no further
        (1.1, 1.0, -1.1, -1.1),  # inside the clip range both have a gradient
        (1.1, -1.0, 1.1, 1.1),
        (0.9, 3.0, -2.7, -2.7),
    ],
)
def test_policy_loss_and_gradient_by_hand(ratio, advantage, loss, gradient):
    logprobs, old = at_ratios(ratio)
    result = ppo.policy_loss(logprobs, old, row(advantage), real(1, 1), clip=0.2)
    result.loss.backward()
    close(result.loss, loss)
    close(logprobs.grad, [[gradient]])


def test_clip_fraction_and_approx_kl_by_hand():
    logprobs, old = at_ratios(1.5, 1.1, 0.7, 1.0)
    result = ppo.policy_loss(logprobs, old, row(1, -1, 1, -1), real(1, 4), clip=0.2)
    close(result.clip_fraction, 0.5)  # 1.5 and 0.7, on whichever side the advantage is
    # (.5 - log 1.5 + .1 - log 1.1 - .3 - log .7) / 4
    close(result.approx_kl, (0.3 - math.log(1.5 * 1.1 * 0.7)) / 4)


def test_the_policy_loss_is_a_mean_over_tokens_not_over_rows():
    logprobs = torch.zeros(2, 3, dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages = torch.tensor([[1.0, 1, 1], [5, 0, 0]], dtype=torch.float64)
    close(ppo.policy_loss(logprobs, logprobs, advantages, mask, 0.2).loss, -2.0)  # of the rows' means it would be -3


@settings(deadline=None, max_examples=60)
@given(ragged(), st.sampled_from([0.1, 0.2, 0.5]))
def test_policy_loss_agrees_with_a_scalar_loop(drawn, clip):
    mask, generator = drawn
    logprobs, old, advantages = (numbers(mask, generator) for _ in range(3))
    result = ppo.policy_loss(logprobs, old, advantages, mask, clip)
    losses, clipped, kls = [], [], []
    for new, before, advantage in kept(logprobs, old, advantages, mask):
        ratio = math.exp(new - before)
        inside = min(max(ratio, 1 - clip), 1 + clip)
        losses.append(-min(ratio * advantage, inside * advantage))
        clipped.append(ratio != inside)
        kls.append(ratio - 1 - (new - before))
    for figure, each in zip(result, (losses, clipped, kls)):
        assert figure.item() == pytest.approx(sum(each) / max(len(each), 1), abs=1e-9)


def test_first_minibatch_has_ratio_one_clip_fraction_zero_and_no_kl():
    """Before any step the new policy is the old one: the loss is minus the mean advantage, its gradient REINFORCE's."""
    generator = torch.Generator().manual_seed(1)
    old = -torch.rand(4, 6, generator=generator) * 5
    advantages = torch.randn(4, 6, generator=generator)
    logprobs = old.clone().requires_grad_()
    result = ppo.policy_loss(logprobs, old, advantages, real(4, 6), clip=0.2)
    result.loss.backward()
    assert result.clip_fraction == 0
    assert result.approx_kl == 0
    close(result.loss, -advantages.mean().double())
    close(logprobs.grad, -advantages.double() / 24)
    for kind in ("k1", "k2", "k3"):  # and the reference is the policy itself
        assert (ppo.kl_estimate(logprobs, old, kind) == 0).all()


def test_approx_kl_is_exact_for_the_small_steps_of_a_low_learning_rate():
    # In float32 the ratio itself is off by 6e-8 here, more than the whole of x^2/2 + x^3/6.
    for step in (1e-4, -1e-4):
        logprobs = torch.tensor([[step]])
        result = ppo.policy_loss(logprobs, torch.zeros(1, 1), torch.ones(1, 1), real(1, 1), clip=0.2)
        assert result.approx_kl.item() == pytest.approx(step**2 / 2 + step**3 / 6, rel=1e-3)


def test_approx_kl_estimates_kl_of_the_old_policy_to_the_new():
    old = P.log().expand(1, 3)
    # Every token counted as often as the old policy draws it: the mean over 7, 2 and 1 copies.
    copies = torch.tensor([0] * 7 + [1] * 2 + [2])
    result = ppo.policy_loss(Q.log()[copies][None], old[:, copies], torch.zeros(1, 10).double(), real(1, 10), clip=0.2)
    close(result.approx_kl, KL_PQ, 1e-5)


# ----------------------------------------------------------------------------------------- the value loss


@pytest.mark.parametrize(
    ("old", "new", "target", "loss", "gradient"),
    [
        (0.0, 1.0, 1.0, 0.32, 0.0),  # max(0, (.2 - 1)^2) / 2: it moved further than allowed, so it gets no gradient
        (0.0, 0.1, 1.0, 0.405, -0.9),  # inside the clip range: half the squared error, as it is
        (0.0, -1.0, 1.0, 2.0, -2.0),  # moved away from the return: the larger of 4 and 1.44, and back
        (2.0, 1.0, 1.0, 0.32, 0.0),  # the same on the other side
    ],
)
def test_value_loss_and_gradient_by_hand(old, new, target, loss, gradient):
    values = row(new, requires_grad=True)
    result = ppo.value_loss(values, row(old), row(target), real(1, 1), clip=0.2)
    result.backward()
    close(result, loss)
    close(values.grad, [[gradient]])


@settings(deadline=None, max_examples=40)
@given(ragged(), st.sampled_from([0.1, 0.2, 1.0]))
def test_value_loss_agrees_with_a_scalar_loop(drawn, clip):
    mask, generator = drawn
    values, old, returns = (numbers(mask, generator) for _ in range(3))
    errors = []
    for new, before, target in kept(values, old, returns, mask):
        near = min(max(new, before - clip), before + clip)
        errors.append(max((new - target) ** 2, (near - target) ** 2) / 2)
    assert ppo.value_loss(values, old, returns, mask, clip).item() == pytest.approx(sum(errors) / max(len(errors), 1), abs=1e-9)


# ----------------------------------------------------------------------------------------- KL


def test_k1_and_k3_have_the_kl_as_their_expectation_and_k2_has_its_own():
    """By enumeration: each estimate, weighted by the current policy's probability."""
    expectation = {kind: (P * ppo.kl_estimate(P.log(), Q.log(), kind)).sum() for kind in ("k1", "k2", "k3")}
    close(kl_divergence(Categorical(P), Categorical(Q)), KL_PQ, 1e-5)
    close(expectation["k1"], KL_PQ, 1e-5)
    close(expectation["k3"], KL_PQ, 1e-5)
    close(expectation["k2"], K2_PQ, 1e-5)


def test_sample_means_of_k1_and_k3_converge_to_the_kl_and_k2_does_not():
    count = 200_000
    draws = torch.multinomial(P, count, replacement=True, generator=torch.Generator().manual_seed(2))
    estimates = {kind: ppo.kl_estimate(P.log()[draws], Q.log()[draws], kind) for kind in ("k1", "k2", "k3")}
    errors = {kind: 4 * each.std().item() / math.sqrt(count) for kind, each in estimates.items()}
    assert max(errors.values()) < 0.007  # so that KL_PQ, K2_PQ and the KL of the other direction, .2274, are told apart
    for kind, expected in (("k1", KL_PQ), ("k2", K2_PQ), ("k3", KL_PQ)):
        assert estimates[kind].mean().item() == pytest.approx(expected, abs=errors[kind])
    assert estimates["k3"].std() < 0.5 * estimates["k1"].std()  # what k3 is for


@settings(deadline=None, max_examples=30)
@given(st.floats(-8, 0), st.floats(-8, 0))
def test_kl_estimates_by_their_formulas(current, reference):
    r = math.exp(reference) / math.exp(current)
    expected = {"k1": -math.log(r), "k2": math.log(r) ** 2 / 2, "k3": r - 1 - math.log(r)}
    for kind, value in expected.items():
        estimate = ppo.kl_estimate(row(current), row(reference), kind)
        assert estimate.shape == (1, 1)
        assert estimate.item() == pytest.approx(value, rel=1e-9, abs=1e-9)
    assert ppo.kl_estimate(torch.tensor([current]), torch.tensor([reference]), "k3") >= 0


def test_k3_is_exact_between_policies_that_hardly_differ():
    x = 1e-4
    estimate = ppo.kl_estimate(torch.tensor([0.0]), torch.tensor([x]), "k3")
    assert estimate.item() == pytest.approx(x**2 / 2 + x**3 / 6, rel=1e-3)


def test_a_kl_in_a_loss_has_a_gradient_in_the_current_policy():
    slopes = {"k1": 1.0, "k2": math.log(3 / 2), "k3": 1 - 2 / 3}  # d/dlogp, at p_current = .6 and p_ref = .4
    for kind, slope in slopes.items():
        current = row(0.6).log().requires_grad_()
        ppo.kl_estimate(current, row(0.4).log(), kind).sum().backward()
        close(current.grad, [[slope]])


def test_an_unknown_kind_of_kl_is_refused():
    with pytest.raises(ValueError, match="kind must be k1, k2 or k3, got 'k4'"):
        ppo.kl_estimate(row(-1), row(-2), "k4")


@pytest.mark.parametrize(
    ("kl", "completions", "beta"),
    [
        (6.6, 50, 0.105),  # a tenth too far: .1 (1 + .1 * 50 / 100)
        (5.4, 50, 0.095),
        (60.0, 50, 0.11),  # far too far, clipped to a fifth: .1 (1 + .2 * 50 / 100)
        (0.0, 50, 0.09),
        (6.0, 50, 0.1),  # on target
        (60.0, 25, 0.105),
    ],
)
def test_one_step_of_the_adaptive_kl_by_hand(kl, completions, beta):
    control = ppo.AdaptiveKL(beta=0.1, target=6.0, horizon=100)
    assert control.update(kl, completions) == pytest.approx(beta)
    assert control.beta == pytest.approx(beta)


def test_steps_of_the_adaptive_kl_add_up():
    control = ppo.AdaptiveKL(beta=0.1, target=6.0, horizon=1000)
    for _ in range(100):
        control.update(1e9, 10)
    assert control.beta == pytest.approx(0.1 * math.exp(0.2), rel=1e-3)  # about a fifth over the horizon


def test_the_adaptive_kl_steers_to_its_target():
    control = ppo.AdaptiveKL(beta=3.0, target=6.0, horizon=100)
    for _ in range(400):
        control.update(3.0 / control.beta, 32)  # a policy whose KL falls as the penalty grows
    assert 3.0 / control.beta == pytest.approx(6.0, rel=1e-3)


def test_the_adaptive_kl_stays_a_plain_number_when_given_a_tensor():
    control = ppo.AdaptiveKL(beta=0.1, target=6.0, horizon=100)
    assert isinstance(control.update(torch.tensor(6.6), 50), float)
    assert control.beta == pytest.approx(0.105)


# ----------------------------------------------------------------------------------------- explained variance and entropy


def test_explained_variance_by_hand():
    returns = row(1, 2, 3, 4)
    mask = real(1, 4)
    close(ppo.explained_variance(returns, returns, mask), 1.0)
    close(ppo.explained_variance(row(7, 7, 7, 7), returns, mask), 0.0)  # a constant explains nothing
    close(ppo.explained_variance(-returns, returns, mask), -3.0)  # 1 - Var(2 r) / Var(r)
    close(ppo.explained_variance(returns + 10, returns, mask), 1.0)  # being off by a constant costs nothing
    close(ppo.explained_variance(row(1, 1, 2, 2), returns, mask), 0.6)  # errors 0, 1, 1, 2: 1 - .5 / 1.25


@settings(deadline=None, max_examples=40)
@given(ragged())
def test_explained_variance_agrees_with_numpy(drawn):
    mask, generator = drawn
    values, returns = numbers(mask, generator), numbers(mask, generator)
    result = ppo.explained_variance(values, returns, mask).item()
    if mask.sum() < 2:
        assert math.isnan(result)
    else:
        flat, error = returns[mask].numpy(), (returns - values)[mask].numpy()
        assert result == pytest.approx(1 - error.var() / flat.var(), rel=1e-6, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.floats(-100, 100, width=32))
def test_constant_returns_have_no_variance_to_explain(count, constant):
    """nan, also where the rounded mean of equal numbers is not that number."""
    values = torch.linspace(-1, 1, count)[None]
    assert ppo.explained_variance(values, torch.full((1, count), constant), real(1, count)).isnan()


def test_explained_variance_is_a_figure_without_a_gradient():
    assert not ppo.explained_variance(row(1, 3, requires_grad=True), row(3, 4, requires_grad=True), real(1, 2)).requires_grad


def test_no_returns_at_all_have_no_variance_to_explain():
    assert ppo.explained_variance(row(1, 2), row(3, 4), ~real(1, 2)).isnan()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(0, 2**31), st.sampled_from([0.1, 1.0, 30.0]))
def test_entropy_agrees_with_torch_distributions(words, seed, scale):
    logits = scale * torch.randn(2, 3, words, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = Categorical(logits=logits).entropy()
    close(ppo.entropy(logits), expected)
    close(ppo.entropy(logits + 100), expected)
    mask = torch.tensor([[True, False, False], [True, True, False]])
    close(ppo.entropy(logits, mask), expected[mask].mean())


def test_entropy_of_even_and_certain_choices():
    close(ppo.entropy(torch.zeros(1, 1, 8)), [[math.log(8)]])  # in nats, not bits
    close(ppo.entropy(torch.tensor([[[1000.0, 0.0, 0.0]]])), [[0.0]])
    close(ppo.entropy(P.log()[None, None]), [[0.80182]], 1e-5)  # -.7 log .7 - .2 log .2 - .1 log .1


def test_tokens_cut_by_top_k_add_no_entropy_and_get_no_gradient():
    cut = torch.tensor([[[0.5, -1.0, -math.inf]]], requires_grad=True)
    whole = torch.tensor([[[0.5, -1.0]]], requires_grad=True)
    for logits in (cut, whole):
        ppo.entropy(logits, real(1, 1)).backward()
    close(ppo.entropy(cut.detach()), ppo.entropy(whole.detach()).double())
    assert whole.grad.abs().sum() > 0.1
    close(cut.grad[..., :2], whole.grad.double())
    assert cut.grad[..., 2] == 0


# ----------------------------------------------------------------------------------------- what holds for all of them

# Every kernel that takes a mask, as a function of four (B, T) tensors, the mask, and nothing else.
MASKED = {
    "masked_mean": lambda a, b, c, d, mask: [ppo.masked_mean(a, mask)],
    "masked_mean by row": lambda a, b, c, d, mask: [ppo.masked_mean(a, mask, dim=1)],
    "masked_whiten": lambda a, b, c, d, mask: [ppo.masked_whiten(a, mask)],
    "masked_whiten around its mean": lambda a, b, c, d, mask: [ppo.masked_whiten(a, mask, shift_mean=False)],
    "gae": lambda a, b, c, d, mask: list(ppo.gae(a, b, 0.9, 0.8, mask)),
    "policy_loss": lambda a, b, c, d, mask: list(ppo.policy_loss(a, b, c, mask, 0.2)),
    "value_loss": lambda a, b, c, d, mask: [ppo.value_loss(a, b, c, mask, 0.2)],
    "explained_variance": lambda a, b, c, d, mask: [ppo.explained_variance(a, b, mask)],
    "entropy": lambda a, b, c, d, mask: [ppo.entropy(torch.stack([a, b, c, d], dim=-1), mask)],
}

MASK = torch.tensor([[False, True, True, True, False], [False, False, True, False, False], [True, True, True, True, True]])


def test_every_kernel_with_a_mask_is_in_the_padding_tests():
    public = inspect.getmembers(ppo, lambda thing: inspect.isfunction(thing) and thing.__module__ == ppo.__name__)
    with_mask = {name for name, function in public if "mask" in inspect.signature(function).parameters}
    assert with_mask == {name.split()[0] for name in MASKED}


def run(name, columns, mask):
    """A kernel's results, and the gradient of each column where there is one."""
    columns = [column.clone().requires_grad_() for column in columns]
    results = MASKED[name](*columns, mask)
    # Weights that differ, so that sums which are always zero still show a gradient.
    loss = sum((result * torch.arange(1, result.numel() + 1).view(result.shape)).sum() for result in results)
    if loss.requires_grad:
        loss.backward()
    return [result.detach() for result in results], [column.grad for column in columns]


def columns_with(under, mask=MASK):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(mask.shape, generator=generator).masked_fill(~mask, under) for _ in range(4)]


@pytest.mark.parametrize("under", JUNK)
@pytest.mark.parametrize("name", MASKED)
def test_what_stands_under_the_mask_changes_neither_result_nor_gradient(name, under):
    expected, slopes = run(name, columns_with(1.0), MASK)
    assert any(slope is not None and slope[MASK].any() for slope in slopes) or name == "explained_variance"
    results, gradients = run(name, columns_with(under), MASK)
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-6)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert (gradient is None) == (slope is None)
        if slope is not None:
            torch.testing.assert_close(gradient[MASK], slope[MASK], rtol=1e-5, atol=1e-6)
            if name != "entropy":  # log_softmax hands on what its logits hold
                assert (gradient[~MASK] == 0).all()


@pytest.mark.parametrize(("left", "right"), [(0, 3), (2, 0), (1, 2)])
@pytest.mark.parametrize("name", MASKED)
def test_more_padding_on_either_side_changes_nothing(name, left, right):
    def padded(x, fill):
        return torch.nn.functional.pad(x, (left, right), value=fill)

    columns = columns_with(1.0)
    expected = MASKED[name](*columns, MASK)
    results = MASKED[name](*(padded(column, math.nan) for column in columns), padded(MASK, False))
    for result, wanted in zip(results, expected, strict=True):
        if wanted.shape == MASK.shape:
            assert result.shape == (3, left + 5 + right)
            outside = torch.cat([result[:, :left], result[:, left + 5 :]], dim=1)
            assert (outside == 0).all()
            result = result[:, left : left + 5]
        torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(MASKED) - {"explained_variance"}))
def test_a_batch_without_a_single_real_token_gives_zero(name):
    nothing = torch.zeros_like(MASK)
    for result in MASKED[name](*columns_with(math.nan, nothing), nothing):
        assert (result == 0).all()


def test_the_policy_loss_has_a_gradient_in_the_new_log_probabilities_only():
    logprobs, old, advantages = (column.requires_grad_() for column in columns_with(0.0)[:3])
    result = ppo.policy_loss(logprobs, old, advantages, MASK, clip=0.2)
    result.loss.backward()
    assert logprobs.grad[MASK].any()
    assert old.grad is None
    assert advantages.grad is None
    assert result.loss.shape == result.clip_fraction.shape == result.approx_kl.shape == ()
    assert not result.clip_fraction.requires_grad
    assert not result.approx_kl.requires_grad


def test_the_value_loss_has_a_gradient_in_the_values_only():
    values, old, returns = (column.requires_grad_() for column in columns_with(0.0)[:3])
    ppo.value_loss(values, old, returns, MASK, clip=0.2).backward()
    assert values.grad[MASK].any()
    assert old.grad is None
    assert returns.grad is None


def test_returns_computed_from_the_values_are_still_a_fixed_target():
    """Nothing flows back through GAE when a learner forgets to turn gradients off for it."""
    rewards, start = columns_with(0.0)[:2]
    values = start.clone().requires_grad_()
    advantages, returns = ppo.gae(rewards, values, 0.9, 0.8, MASK)
    (
        ppo.value_loss(values, values, returns, MASK, 0.2) + ppo.policy_loss(rewards, rewards, advantages, MASK, 0.2).loss
    ).backward()
    # Half the squared error's own gradient: the error over the number of real tokens.
    torch.testing.assert_close(values.grad, torch.where(MASK, start - returns.detach(), 0) / MASK.sum(), rtol=1e-5, atol=1e-6)


def test_the_kernels_leave_their_inputs_alone_and_keep_their_dtype():
    for name, kernel in MASKED.items():
        columns = columns_with(0.5)
        before = [column.clone() for column in columns]
        for result in kernel(*columns, MASK):
            assert result.dtype == torch.float32, name
        for column, copy in zip(columns, before):
            assert torch.equal(column, copy), name
