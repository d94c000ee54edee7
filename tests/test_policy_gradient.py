"""The switches and the table's rows against numbers worked out by hand, the papers' sums in loops, and exact expectations."""

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainers.helpers import mutant

from rlhf_lib import policy_gradient, ppo
from rlhf_lib.policy_gradient import METHODS, Method, advantages, importance_weights, policy_gradient_loss

CLIPS, DENOMINATORS = ("none", "token", "sequence"), ("completion", "batch", "constant")


def drawn(N=2, G=3, T=5, seed=0, spread=0.3):
    """Rewards (N, G), and old and new log-probabilities and a mask of the N * G completions, (B, T); each has a first token."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(N, G, generator=generator, dtype=torch.float64)
    old = -3 * torch.rand(N * G, T, generator=generator, dtype=torch.float64)
    new = old + spread * torch.randn(N * G, T, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, T + 1, (N * G,), generator=generator)
    return rewards, old, new, torch.arange(T) < lengths[:, None]


# ----------------------------------------------------------------------------------------- advantages

REWARDS = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("none", [[1, 2, 6], [0, 0, 3]]),
        ("batch", [[-1, 0, 4], [-2, -2, 1]]),
        ("leave-one-out", [[-3, -1.5, 4.5], [-1.5, -1.5, 3]]),
        ("group", [[-2, -1, 3], [-1, -1, 2]]),
        ("critic", [[0.5, 1.5, 5.5], [-0.5, -0.5, 2.5]]),
    ],
)
def test_baselines_by_hand(baseline, expected):
    found = advantages(REWARDS, baseline, "none", values=0.5)
    assert found.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]


def test_normalisers_by_hand():
    """The groups' variances are 14 / 3 and 2, their means 3 and 1."""
    deviation, mean, fixed = (advantages(REWARDS, "group", name, deviation=4.0) for name in ("deviation", "mean", "fixed"))
    assert deviation[0].tolist() == pytest.approx([x / math.sqrt(14 / 3) for x in (-2, -1, 3)], rel=1e-5)
    assert deviation[1].tolist() == pytest.approx([x / math.sqrt(2) for x in (-1, -1, 2)], rel=1e-5)
    assert mean.tolist() == [pytest.approx([-2 / 3, -1 / 3, 1], abs=1e-6), pytest.approx([-1, -1, 2], abs=1e-6)]
    assert fixed.tolist() == [[-0.5, -0.25, 0.75], [-0.25, -0.25, 0.5]]


def test_a_critic_may_expect_something_else_of_each_completion():
    values = torch.tensor([[1.0, 0.0, 6.5], [0.0, 1.0, 2.0]])
    assert advantages(REWARDS, "critic", "fixed", values, 2.0).tolist() == [[0, 1, -0.25], [0, -0.5, 0.5]]


@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_what_a_group_compares_adds_up_to_nothing_and_leave_one_out_is_the_group_mean_with_more_weight(N, G, seed):
    rewards = drawn(N, G, seed=seed)[0]
    for normaliser in ("none", "deviation", "mean"):
        assert advantages(rewards, "group", normaliser).sum(1).abs().max() < 1e-9
    torch.testing.assert_close(
        advantages(rewards, "leave-one-out", "none"), advantages(rewards, "group", "none") * G / (G - 1), rtol=1e-9, atol=1e-12
    )
    white, variance = advantages(rewards, "group", "deviation"), rewards.var(1, correction=0)
    torch.testing.assert_close(white.square().mean(1), variance / (variance + 1e-8), rtol=1e-9, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("baseline", ["leave-one-out", "group"])
def test_a_group_of_equal_rewards_teaches_nothing(value, baseline):
    rewards = torch.full((2, 7), value)
    for normaliser in ("none", "deviation", "mean"):
        assert advantages(rewards, baseline, normaliser).abs().max() < 1e-2


def test_advantages_have_no_gradient():
    rewards = REWARDS.clone().requires_grad_()
    assert not any(advantages(rewards, *row[:2], values=0.0).requires_grad for row in METHODS.values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("middle", "none"), "baseline must be none, batch, leave-one-out, group or critic, got 'middle'"),
        (("none", "std"), "normaliser must be none, deviation, mean or fixed, got 'std'"),
        (("critic", "none"), "the baseline critic needs values"),
    ],
)
def test_a_switch_that_is_not_there_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        advantages(REWARDS, *arguments)


@pytest.mark.parametrize("row", [("leave-one-out", "none"), ("group", "none"), ("none", "deviation")])
def test_a_group_of_one_has_nothing_to_compare(row):
    with pytest.raises(ValueError, match="need groups of at least 2 completions, got 1"):
        advantages(torch.ones(4, 1), *row)


def test_a_negative_reward_cannot_be_divided_by_the_mean():
    with pytest.raises(ValueError, match=r"needs rewards that are not negative, got -0\.5"):
        advantages(torch.tensor([[1.0, -0.5]]), "group", "mean")


# ----------------------------------------------------------------------------------------- the loss by hand


def test_the_loss_by_hand():
    """Two completions of 1 and 3 tokens, ratios 1.5; 1, 1.5, 1/2; advantages 1 and -2; epsilon .2, T = 3.

    Token losses with a clip: -1.2; 2, 3, 1.6. Without: 1 * .7; -2 * .1 * 6.
    """
    mask = torch.tensor([[True, False, False], [True, True, True]])
    old = torch.tensor([[-0.7 - math.log(1.5), 9.0, 9.0], [-0.1, -0.2 - math.log(1.5), -0.3 + math.log(2)]])
    new = torch.tensor([[-0.7, -5.0, 7.0], [-0.1, -0.2, -0.3]])
    A = torch.tensor([1.0, -2.0])
    by_hand = {
        ("token", "completion"): (-1.2 + (2 + 3 + 1.6) / 3) / 2,
        ("token", "batch"): (-1.2 + 2 + 3 + 1.6) / 4,
        ("token", "constant"): (-1.2 + 2 + 3 + 1.6) / 6,
        ("none", "completion"): (0.7 - 2 * 0.6 / 3) / 2,
        ("none", "batch"): (0.7 - 2 * 0.6) / 4,
        ("none", "constant"): (0.7 - 2 * 0.6) / 6,
    }
    shared = (1 * 1.5 * 0.5) ** (1 / 3)  # the second completion's ratio, .909
    by_hand |= {("sequence", "completion"): (-1.2 + 2 * shared) / 2, ("sequence", "batch"): (-1.2 + 6 * shared) / 4}
    for (clip, denominator), expected in by_hand.items():
        found = policy_gradient_loss(new, old, A, mask, clip, denominator)
        assert found.loss.item() == pytest.approx(expected, abs=1e-6), (clip, denominator)
        assert found.clip_fraction.item() == {"none": 0, "token": 3 / 4, "sequence": 1 / 4}[clip]
        ratios = (1.5, 1, 1.5, 0.5)
        assert found.approx_kl.item() == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 4, abs=1e-6)


def test_weights_multiply_each_tokens_loss():
    _, old, new, mask = drawn()
    weights = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    A = torch.linspace(-1, 1, len(mask), dtype=torch.float64)
    for clip, denominator in itertools.product(CLIPS, DENOMINATORS):
        single = 0.0
        for b, t in mask.nonzero().tolist():
            alone = torch.zeros_like(mask)
            alone[b, t] = True
            one = policy_gradient_loss(new, old, A, mask, clip, denominator, weights=alone.double()).loss.item()
            single += one * weights[b, t].item()
        found = policy_gradient_loss(new, old, A, mask, clip, denominator, weights=weights).loss.item()
        assert found == pytest.approx(single, rel=1e-9)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("clip", CLIPS)
def test_nothing_behind_the_end_counts_and_old_log_probabilities_and_advantages_get_no_gradient(clip, denominator):
    _, old, new, mask = drawn()
    found = []
    for noise in (0.0, 7.0, math.nan):
        old_, new_ = (torch.where(mask, x, noise).requires_grad_() for x in (old, new))
        A = torch.linspace(-1, 1, len(mask), dtype=torch.float64, requires_grad=True)
        result = policy_gradient_loss(new_, old_, A, mask, clip, denominator)
        result.loss.backward()
        assert old_.grad is None and A.grad is None and (new_.grad[~mask] == 0).all()
        found.append([result.loss.item(), *(x.item() for x in result[1:]), *new_.grad[mask].tolist()])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("clip", "denominator", "sentence"),
    [
        ("ratio", "batch", "clip must be none, token or sequence, got 'ratio'"),
        ("token", "length", "denominator must be completion, batch or constant, got 'length'"),
    ],
)
def test_a_switch_of_the_loss_that_is_not_there_is_refused(clip, denominator, sentence):
    _, old, new, mask = drawn()
    with pytest.raises(ValueError, match=sentence):
        policy_gradient_loss(new, old, torch.zeros(len(mask)), mask, clip, denominator)


# ----------------------------------------------------------------------------------------- the rows against their papers


def clipped(A, ratio):
    return min(A * ratio, A * min(max(ratio, 0.8), 1.2))


def by_the_paper(name, rewards, old, new, mask):
    """The loss of a row, as its paper sums it, in plain loops over lists."""
    T = len(mask[0])
    total, tokens = 0.0, sum(map(sum, mask))
    everything = [r for row in rewards for r in row]
    B = len(everything)
    for n, row in enumerate(rewards):
        for i, r in enumerate(row):
            b = n * len(row) + i
            places = [t for t in range(T) if mask[b][t]]
            length, log_p = len(places), sum(new[b][t] for t in places)
            ratios = [math.exp(new[b][t] - old[b][t]) for t in places]
            others = row[:i] + row[i + 1 :]
            if name == "reinforce":
                total -= r * log_p / (B * T)
            elif name == "reinforce-baseline":
                total -= (r - statistics.fmean(everything)) * log_p / (B * T)
            elif name == "rloo":
                total -= (r - statistics.fmean(others)) * log_p / (B * T)
            elif name == "grpo":
                A = (r - statistics.fmean(row)) / math.sqrt(statistics.pvariance(row) + 1e-8)
                total -= sum(clipped(A, ratio) for ratio in ratios) / length / B
            elif name == "dr-grpo":
                A = r - statistics.fmean(row)
                total -= sum(clipped(A, ratio) for ratio in ratios) / (B * T)
            elif name == "maxrl":
                total -= (r - statistics.fmean(row)) / statistics.fmean(row) * log_p / (B * T)
            elif name == "gspo":
                A = (r - statistics.fmean(row)) / math.sqrt(statistics.pvariance(row) + 1e-8)
                total -= clipped(A, math.prod(ratios) ** (1 / length)) / B
            elif name == "ppo":
                total -= sum(clipped((r - 0.25) / 2, ratio) for ratio in ratios) / tokens
            else:
                raise AssertionError(f"no oracle for {name}")
    return total


@pytest.mark.parametrize("name", METHODS)
@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_every_row_is_its_papers_formula(name, N, G, T, seed):
    rewards, old, new, mask = drawn(N, G, T, seed)
    baseline, normaliser, clip, denominator = METHODS[name]
    A = advantages(rewards, baseline, normaliser, values=0.25, deviation=2.0)
    found = policy_gradient_loss(new, old, A.flatten(), mask, clip, denominator).loss.item()
    expected = by_the_paper(name, rewards.tolist(), old.tolist(), new.tolist(), mask.tolist())
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_every_position_of_every_switch_is_in_a_row():
    """So none of them is dead."""
    positions = [set(column) for column in zip(*METHODS.values())]
    assert positions == [
        {"none", "batch", "leave-one-out", "group", "critic"},
        {"none", "deviation", "mean", "fixed"},
        set(CLIPS),
        set(DENOMINATORS),
    ]
    assert len(set(METHODS.values())) == len(METHODS)


def test_the_row_of_ppo_is_the_loss_of_chapter_08():
    _, old, new, mask = drawn(4, 4, 7, 3)
    A = torch.linspace(-2, 2, 16, dtype=torch.float64)
    ours = policy_gradient_loss(new, old, A, mask, "token", "batch", 0.1)
    theirs = ppo.policy_loss(new, old, A[:, None].expand_as(mask), mask, 0.1)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_where_the_ratio_is_1_every_clip_has_one_gradient(denominator):
    _, old, _, mask = drawn(seed=5)
    A, gradients = torch.linspace(-2, 2, len(mask), dtype=torch.float64), []
    for clip in CLIPS:
        new = old.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(policy_gradient_loss(new, old, A, mask, clip, denominator).loss, new)
        gradients.append(gradient)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradients[0], gradient, rtol=1e-9, atol=1e-12)


# ----------------------------------------------------------------------------------------- exact expectations
# One token out of three, so that every group of G completions can be listed with its probability.

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
PAID = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)


def expected_gradient(method, G, paid=PAID):
    """The mean over all groups of G of the gradient of -loss in the logits of P, exactly; ratio 1, values 0."""
    total, mask = torch.zeros(3, dtype=torch.float64), torch.ones(G, 1, dtype=torch.bool)
    for group in itertools.product(range(3), repeat=G):
        tokens = torch.tensor(group)
        logits = P.log().requires_grad_()
        new = logits.log_softmax(0)[tokens][:, None]
        A = advantages(paid[tokens][None], method.baseline, method.normaliser, values=0.0)[0]
        loss = policy_gradient_loss(new, new.detach(), A, mask, method.clip, method.denominator).loss
        total -= P[tokens].prod() * torch.autograd.grad(loss, logits)[0]
    return total


def true_gradient(function, paid=PAID):
    logits = P.log().requires_grad_()
    return torch.autograd.grad(function(logits.softmax(0) @ paid), logits)[0]


@pytest.mark.parametrize("name", ["reinforce", "rloo", "ppo"])
@pytest.mark.parametrize("paid", [PAID, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)])
def test_baselines_that_do_not_look_at_the_completion_itself_leave_the_gradient_of_the_mean_reward(name, paid):
    found = expected_gradient(METHODS[name], 3, paid)
    torch.testing.assert_close(found, true_gradient(lambda mean: mean, paid), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("G", [2, 3, 4])
def test_the_groups_own_mean_shrinks_it_by_one_in_g(G):
    found = expected_gradient(METHODS["dr-grpo"], G)
    torch.testing.assert_close(found, true_gradient(lambda mean: mean) * (G - 1) / G, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("G", [2, 4])
def test_maxrl_follows_the_likelihood_of_success_cut_off_at_g(G):
    """The gradient of -sum of (1 - p)^k / k (Tajwar et al. 2026): up to k = G without the baseline, which costs the last term."""

    def likelihood(p):
        return -sum((1 - p) ** k / k for k in range(1, G))

    torch.testing.assert_close(expected_gradient(METHODS["maxrl"], G), true_gradient(likelihood), rtol=1e-9, atol=1e-12)
    bare = METHODS["maxrl"]._replace(baseline="none")
    torch.testing.assert_close(
        expected_gradient(bare, G), true_gradient(lambda p: likelihood(p) - (1 - p) ** G / G), rtol=1e-9, atol=1e-12
    )


def test_the_deviation_makes_rare_successes_count_more():
    """Its gradient is that of another objective: beside the mean's it is larger where success is rarer."""
    rare = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    gains = []
    for paid in (PAID, rare):
        whole, plain = (expected_gradient(Method("group", n, "none", "constant"), 4, paid) for n in ("deviation", "none"))
        gains.append((whole.norm() / plain.norm()).item())
    assert gains[1] > gains[0] > 1


# ----------------------------------------------------------------------------------------- what a copy sampled


def test_importance_weights_by_hand():
    mask = torch.tensor([[True, True, True, False]])
    logprobs, sampler = torch.tensor([[-1.0, -1.0, -1.0, 3.0]]), torch.tensor([[-1.0, -1 - math.log(1.5), -4.0, math.nan]])
    assert importance_weights(logprobs, sampler, mask, 2.0).tolist()[0] == pytest.approx([1, 1.5, 2, 1])
    assert not importance_weights(logprobs.requires_grad_(), sampler, mask, 2.0).requires_grad


@pytest.mark.parametrize(("cap", "exact"), [(10.0, True), (1.1, False)])
def test_weights_give_the_gradient_of_the_model_that_did_not_sample(cap, exact):
    """Tokens come from another distribution Q; in expectation their weighted gradient is that under P, unless the cap cuts."""
    Q, paid = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    mask, gradients = torch.ones(1, 1, dtype=torch.bool), []
    for weighted in (True, False):
        total = torch.zeros(3, dtype=torch.float64)
        for token in range(3):
            logits = P.log().requires_grad_()
            new = logits.log_softmax(0)[token].view(1, 1)
            weights = importance_weights(new, Q.log()[token].view(1, 1), mask, cap) if weighted else None
            loss = policy_gradient_loss(new, new.detach(), paid[token][None], mask, "token", "batch", weights=weights).loss
            total -= Q[token] * torch.autograd.grad(loss, logits)[0]
        gradients.append((total - true_gradient(lambda mean: mean, paid)).abs().max().item())
    assert (gradients[0] < 1e-12) == exact
    assert gradients[1] > 0.05


# ----------------------------------------------------------------------------------------- mistakes that are really made

MUTANTS = {
    "the mean with itself, not without": ("(G * mean - rewards) / (G - 1)", "mean"),
    "divided by G where one was left out": ("(G * mean - rewards) / (G - 1)", "(G * mean - rewards) / G"),
    "the deviation of the whole batch": (".square().mean(1, keepdim=True) + 1e-8", ".square().mean() + 1e-8"),
    "the variance for the deviation": ("torch.rsqrt((rewards", "torch.reciprocal((rewards"),
    "the sign of the loss": ("each = -advantages * logprobs", "each = advantages * logprobs"),
    "clipped on one side": (".clamp(1 - epsilon, 1 + epsilon)", ".clamp(max=1 + epsilon)"),
    "the smaller loss": ("each = torch.maximum(", "each = torch.minimum("),
    "the ratio upside down": ("torch.where(mask, logprobs - old_logprobs, 0)", "torch.where(mask, old_logprobs - logprobs, 0)"),
    "a sequence's ratio without its length": ("ppo.masked_mean(log_ratio, mask, 1)", "log_ratio.sum(1)"),
    "padding counts in a completion's mean": ("loss = ppo.masked_mean(each, mask, 1).mean()", "loss = each.mean()"),
    "padding counts in the batch's mean": ("loss = ppo.masked_mean(each, mask)\n", "loss = each.mean()\n"),
    "the longest completion for the constant": (".mean() / mask.shape[1]", ".mean() / mask.sum(1).max()"),
    "masked tokens are not left out": (
        "torch.where(mask, each if weights is None",
        "torch.where(mask | True, each if weights is None",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_breaks_a_row(name):
    module = mutant(policy_gradient, MUTANTS[name])
    broken = []
    for row, (baseline, normaliser, clip, denominator) in METHODS.items():
        for seed in range(6):
            rewards, old, new, mask = drawn(3, 4, 6, seed, spread=0.6)
            A = module.advantages(rewards, baseline, normaliser, 0.25, 2.0).flatten()
            found = module.policy_gradient_loss(new, old, A, mask, clip, denominator).loss.item()
            expected = by_the_paper(row, rewards.tolist(), old.tolist(), new.tolist(), mask.tolist())
            broken += [row] * (abs(found - expected) > 1e-4)
    assert broken
