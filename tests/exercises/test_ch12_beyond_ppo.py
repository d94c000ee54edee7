"""Chapter 12's checks: correct answers written another way pass, the library's kernels too, and every mistake gets its name."""

import itertools
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rlhf_lib import exercises, policy_gradient, ppo, preference
from rlhf_lib.exercises import ch12_beyond_ppo, ch12_selection, declare, is_record, verdict

DECLARED = [*vars(ch12_beyond_ppo).values(), *vars(ch12_selection).values()]
OURS = {one.name: one for one in DECLARED if isinstance(one, declare.Exercise)}
NOTEBOOK = Path(__file__).parents[2] / "solutions" / "12_beyond_ppo.ipynb"
SPACE = {"torch": torch, "F": F, "itertools": itertools}
for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
    if cell.id in OURS:
        exec(cell.source, SPACE)
worked = SimpleNamespace(**SPACE)
SEEDS = (0, 1, 7)
MISTAKES = [(name, sentence) for name, one in OURS.items() for sentence in one.mistakes]


# ----------------------------------------------------------------------------------------- right answers


def leave_one_out(rewards):
    G = rewards.shape[1]
    others = (1 - torch.eye(G, device=rewards.device)) / (G - 1)
    return rewards - rewards @ others


def group_advantages(rewards, normaliser):
    var, mean = torch.var_mean(rewards, 1, keepdim=True, correction=0)
    unit = {"none": torch.ones_like(mean), "deviation": var.sqrt(), "mean": mean}[normaliser]
    return (rewards - mean).div(unit).nan_to_num(0.0)


def silent_share(p, group):
    return torch.stack([p, 1 - p]).pow(group).sum(0)


def token_average(losses, mask, denominator):
    if denominator == "batch":
        return losses[mask].mean()
    divisor = mask.sum(1, keepdim=True) if denominator == "completion" else torch.tensor(mask.shape[1])
    return losses.div(divisor).masked_fill(~mask, 0).sum() / len(losses)


def sequence_ratio(logprobs, old_logprobs, mask):
    with torch.no_grad():
        fixed = old_logprobs.masked_fill(~mask, 0).sum(1)
    return torch.exp((logprobs.masked_fill(~mask, 0).sum(1) - fixed) / mask.float().sum(1))


def expected_gradient(probs, paid, group, advantages):
    total = torch.zeros_like(probs)
    for tokens in itertools.product(range(len(probs)), repeat=group):
        logits = probs.log().requires_grad_()
        said = logits.log_softmax(0)[list(tokens)]
        worth = advantages(paid[list(tokens)].unsqueeze(0))[0]
        (gradient,) = torch.autograd.grad((worth * said).mean(), logits)
        total += said.sum().exp().detach() * gradient
    return total


def dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    margin = beta * (policy_chosen - policy_rejected - ref_chosen + ref_rejected)
    return F.softplus(-margin).mean()


def kto_loss(policy, ref, desirable, kl, beta):
    sign = 2 * desirable.float() - 1
    return (1 - torch.sigmoid(sign * beta * ((policy - ref) - float(kl)))).sum() / len(policy)


def best_and_control(rewards, uniforms):
    rows = torch.arange(rewards.numel(), device=rewards.device).view_as(rewards)
    best = (rewards == rewards.amax(1, keepdim=True)).int().argmax(1)
    place = torch.floor(uniforms * rewards.shape[1]).long()
    return tuple(rows.gather(1, one[:, None])[:, 0] for one in (best, place))


def importance_weights(logprobs, sampler_logprobs, mask, cap):
    with torch.no_grad():
        ratio = logprobs.exp() / sampler_logprobs.exp()
        return torch.where(mask, ratio.clamp_max(cap), torch.ones(()))


ALTERNATIVES = {
    "leave_one_out": leave_one_out,
    "group_advantages": group_advantages,
    "silent_share": silent_share,
    "token_average": token_average,
    "sequence_ratio": sequence_ratio,
    "expected_gradient": expected_gradient,
    "dpo_loss": dpo_loss,
    "kto_loss": kto_loss,
    "best_and_control": best_and_control,
    "importance_weights": importance_weights,
}


def test_the_chapter_has_ten_exercises_with_names_of_their_own():
    assert [one.number for one in OURS.values()] == [f"12.{place}" for place in range(1, 11)]
    assert [*ALTERNATIVES] == [*OURS]
    exercises.load()
    assert all(declare.EXERCISES[name] is one and name not in declare.BUILDS for name, one in OURS.items())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", OURS)
def test_a_right_answer_written_differently_passes(name, seed):
    found = verdict(name, ALTERNATIVES[name], seed)
    assert found.passed, found.message


def test_the_library_s_own_kernels_pass():
    def by_groups(rewards, normaliser):
        return policy_gradient.advantages(rewards, "group", normaliser)

    def by_ppo(losses, mask, denominator):
        if denominator == "constant":
            return torch.where(mask, losses, 0).sum(1).mean() / mask.shape[1]
        return ppo.masked_mean(losses, mask) if denominator == "batch" else ppo.masked_mean(losses, mask, 1).mean()

    kernels = {
        "leave_one_out": lambda rewards: policy_gradient.advantages(rewards, "leave-one-out", "none"),
        "group_advantages": by_groups, "token_average": by_ppo, "dpo_loss": preference.dpo_loss,
        "kto_loss": preference.kto_loss, "importance_weights": policy_gradient.importance_weights,
    }  # fmt: skip
    for name, function in kernels.items():
        found = verdict(name, function, 4)
        assert found.passed, found.message


def test_the_answers_by_hand_on_the_cards():
    by_hand = {
        "leave_one_out": torch.tensor([[-3.0, -1.5, 4.5]]),
        "group_advantages": torch.tensor([[-0.9258, -0.4629, 1.3887]]),
        "silent_share": torch.tensor([0.5, 0.82]),
        "token_average": torch.tensor(0.0),
        "sequence_ratio": torch.tensor([3.0]),
        "dpo_loss": torch.tensor(0.31326),
        "kto_loss": torch.tensor(0.5),
        "best_and_control": (torch.tensor([1, 3]), torch.tensor([2, 4])),
        "importance_weights": torch.tensor([[1.0, 1.5, 2.0, 1.0]]),
    }
    for name, expected in by_hand.items():
        found = OURS[name].right(**exercises.draw(name)[0])
        assert exercises.equal(exercises.plain.plain(found), exercises.plain.plain(expected), 1e-4), name
    for arguments, expected in zip(exercises.draw("token_average"), (0.0, 0.5, 0.25)):
        assert OURS["token_average"].right(**arguments).item() == pytest.approx(expected, abs=1e-6)
    first = exercises.draw("expected_gradient")[0]
    assert worked.expected_gradient(
        first["probs"], first["paid"], 2, partial(worked.group_advantages, normaliser="none")
    ).tolist() == pytest.approx([-0.125, 0.125])
    one = {"policy": torch.tensor([-3.0]), "ref": torch.tensor([-2.0]), "kl": torch.tensor(0.5), "beta": 0.5}
    costs = [worked.kto_loss(desirable=torch.tensor([good]), **one).item() for good in (True, False)]
    assert costs == pytest.approx([0.679, 0.321], abs=1e-3)


# ----------------------------------------------------------------------------------------- wrong answers


@pytest.mark.parametrize("name", OURS)
def test_a_constant_or_an_argument_cannot_pass(name):
    inputs = exercises.draw(name)
    right = exercises.answer(name, OURS[name].right, inputs)
    assert not any(is_record(output) for output in right)
    assert any(not exercises.equal(output, right[0], 0) for output in right)
    for constant in (None, 0, torch.zeros(3), torch.zeros(2, 2)):
        found = exercises.answer(name, lambda constant=constant, **given: constant, inputs)
        assert not all(exercises.equal(one, other, 1e-5) for one, other in zip(found, right))
    for argument in inputs[0]:
        found = exercises.answer(name, lambda argument=argument, **given: given.get(argument), inputs)
        assert not all(exercises.equal(one, other, 1e-5) for one, other in zip(found, right))


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        ("leave_one_out", lambda rewards: rewards - rewards.mean(1, keepdim=True), "the others alone make the baseline"),
        ("group_advantages", lambda rewards, normaliser: (rewards - rewards.mean(1, keepdim=True)) / {
            "none": 1, "deviation": rewards.std(1, keepdim=True) + 1e-8, "mean": rewards.mean(1, keepdim=True) + 1e-8,
        }[normaliser], "correction=0"),
        ("sequence_ratio", lambda logprobs, old_logprobs, mask: torch.where(
            mask, logprobs - old_logprobs.detach(), 0).sum(1).exp(), "n-th root"),
        ("dpo_loss", lambda policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta: -torch.log(torch.sigmoid(
            beta * (policy_chosen - policy_rejected - ref_chosen + ref_rejected))).mean(), "F.logsigmoid"),
        ("importance_weights", lambda logprobs, sampler_logprobs, mask, cap: torch.where(
            mask, logprobs - sampler_logprobs, 0).exp().clamp(max=cap), "detach"),
        ("leave_one_out", lambda rewards: rewards - (rewards.sum(1) - rewards) / (rewards.shape[1] - 1), "keepdim=True"),
        ("group_advantages", lambda rewards, normaliser: (rewards - rewards.mean(1)) / {
            "none": 1, "deviation": rewards.std(1, correction=0) + 1e-8, "mean": rewards.mean(1) + 1e-8,
        }[normaliser], "keepdim=True"),
        ("token_average", lambda losses, mask, denominator: torch.where(mask, losses, 0).mean(), "divided by B T, padding"),
        ("token_average", lambda losses, mask, denominator: token_average(losses, mask, denominator).detach(),
         "no gradient reaches the losses"),
        ("sequence_ratio", lambda logprobs, old_logprobs, mask: sequence_ratio(logprobs.detach(), old_logprobs, mask),
         "no gradient reaches the log-probabilities"),
        ("dpo_loss", lambda policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta: -torch.log(1e-8 + torch.sigmoid(
            beta * (policy_chosen - policy_rejected - ref_chosen + ref_rejected))).mean(), "far out no gradient"),
        ("dpo_loss", lambda policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta: -F.logsigmoid(
            beta * (policy_chosen - policy_rejected - ref_chosen + ref_rejected).clamp(-50, 50)).mean(),
         "far out no gradient is left"),
        ("dpo_loss", lambda **given: dpo_loss(**given).item(), "no gradient reaches the policy"),
        ("kto_loss", lambda policy, ref, desirable, kl, beta: torch.sigmoid(torch.where(
            desirable, -1, 1) * (beta * (policy - ref) - kl.detach())).mean(), "beta scales both"),
        ("kto_loss", lambda **given: kto_loss(**given).detach(), "no gradient reaches the policy"),
        ("best_and_control", lambda rewards, uniforms: (
            rewards.argmax(1) + torch.arange(len(rewards)) * rewards.shape[1],
            (uniforms * rewards.shape[1]).floor() + torch.arange(len(rewards)) * rewards.shape[1]), "int64"),
        ("best_and_control", lambda rewards, uniforms: [one.float() for one in best_and_control(rewards, uniforms)], "int64"),
        ("best_and_control", lambda rewards, uniforms: (
            best_and_control(rewards, uniforms)[0],
            (uniforms * (rewards.shape[1] - 1)).round().long() + torch.arange(len(rewards)) * rewards.shape[1]), "half as often"),
        ("importance_weights", lambda logprobs, sampler_logprobs, mask, cap: (
            (logprobs - sampler_logprobs).detach() * mask).exp().clamp(max=cap), "0 times NaN"),
    ],
)  # fmt: skip
def test_well_known_mistakes_are_named(name, function, words):
    found = verdict(name, function)
    assert not found.passed
    assert found.mistake and words in found.message, found.message


def test_kto_s_kl_may_be_kept_from_falling_below_0_as_in_the_paper():
    """A KL is not negative; its estimate from samples may be, and the paper takes the larger of it and 0. Either is right."""
    found = verdict("kto_loss", lambda kl, **given: kto_loss(kl=kl.clamp(min=0), **given))
    assert found.passed, found.message


@pytest.mark.parametrize("denominator", ch12_beyond_ppo.DENOMINATORS)
def test_a_loss_that_is_wrong_is_not_said_to_have_a_wrong_gradient_alone(denominator):
    def by_seven(losses, mask, **given):
        right = token_average(losses, mask, **given)
        return torch.where(mask, losses, 0).sum() / 7 if given["denominator"] == denominator else right

    found = verdict("token_average", by_seven)
    assert not found.passed and "wrong only where" not in found.message, found.message


@pytest.mark.parametrize("name", ["token_average", "sequence_ratio", "importance_weights"])
def test_a_completion_s_tokens_may_stand_behind_others_and_apart(name):
    masks = [one["mask"].int() for one in exercises.draw(name)]
    assert any((mask[:, 0] == 0).any() and (mask.diff(dim=1) != 0).sum(1).max() > 2 for mask in masks)


def test_the_loss_expected_of_the_first_input_of_12_4_is_0_to_the_last_bit():
    assert OURS["token_average"].right(**exercises.draw("token_average")[0]).item() == 0.0


# ----------------------------------------------------------------------------------------- what the chapter says of them


def true_gradient(probs, paid):
    logits = probs.log().requires_grad_()
    return torch.autograd.grad(logits.softmax(0) @ paid, logits)[0]


@pytest.mark.parametrize("G", [2, 3, 4])
def test_leave_one_out_keeps_the_gradient_and_the_groups_mean_one_in_g_less(G):
    probs, paid = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([1.0, -2.0, 0.5])
    right, found = true_gradient(probs, paid), worked.expected_gradient
    assert torch.allclose(found(probs, paid, G, worked.leave_one_out), right, atol=1e-6)
    own = found(probs, paid, G, partial(worked.group_advantages, normaliser="none"))
    assert torch.allclose(own, right * (G - 1) / G, atol=1e-6)


@pytest.mark.parametrize("G", [2, 4])
def test_maxrl_climbs_one_term_less_with_its_baseline(G):
    probs, paid = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.0, 1.0, 0.0])

    def series(last):
        logits = probs.log().requires_grad_()
        p = logits.softmax(0)[1]
        return torch.autograd.grad(-sum((1 - p) ** k / k for k in range(1, last + 1)), logits)[0]

    with_it = worked.expected_gradient(probs, paid, G, partial(worked.group_advantages, normaliser="mean"))
    without = worked.expected_gradient(probs, paid, G, lambda r: (r / r.mean(1, keepdim=True)).nan_to_num(0.0))
    assert torch.allclose(with_it, series(G - 1), atol=1e-6) and torch.allclose(without, series(G), atol=1e-6)


@given(st.integers(1, 4), st.integers(2, 7), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_leave_one_out_is_the_groups_advantage_with_more_weight(N, G, seed):
    rewards = torch.randn(N, G, generator=torch.Generator().manual_seed(seed))
    plain = worked.group_advantages(rewards, "none")
    assert torch.allclose(worked.leave_one_out(rewards), plain * G / (G - 1), atol=1e-5)


def test_a_bad_answer_at_length_is_punished_a_tenth_a_token():
    mask = torch.arange(100) < torch.tensor([[10], [100]])
    losses = torch.ones(2, 100, requires_grad=True)
    for denominator, ratio in (("completion", 10), ("batch", 1), ("constant", 1)):
        (gradient,) = torch.autograd.grad(worked.token_average(losses, mask, denominator), losses)
        assert (gradient[0, 0] / gradient[1, 0]).item() == pytest.approx(ratio)


def test_the_variance_of_the_pencil_problem():
    """Success with probability .9: the steps' variance by baseline, of both cases with their probabilities."""
    for b, variance in ((0.0, 0.0009), (0.1, 0.0), (0.9, 0.0576)):
        steps = [((1 - b) * 0.1, 0.9), (-b * -0.9, 0.1)]
        mean = sum(step * chance for step, chance in steps)
        assert mean == pytest.approx(0.09)
        assert sum(chance * (step - mean) ** 2 for step, chance in steps) == pytest.approx(variance, abs=1e-9)


def test_silent_groups_are_those_that_a_listing_finds():
    for p, group in ((0.02, 8), (0.5, 3), (0.9, 4)):
        alike = sum(
            math.prod(p if won else 1 - p for won in group_) for group_ in itertools.product((0, 1), repeat=group)
            if len({*group_}) == 1
        )  # fmt: skip
        assert worked.silent_share(torch.tensor([p]), group).item() == pytest.approx(alike, rel=1e-5)


def test_where_a_policy_is_its_reference_dpo_begins_at_ln_2_and_kto_at_a_half():
    x, y = torch.tensor([-3.0, -8.0]), torch.tensor([-4.0, -1.0])
    assert worked.dpo_loss(x, y, x, y, 0.3).item() == pytest.approx(math.log(2))
    assert worked.kto_loss(x, x, torch.tensor([True, False]), torch.tensor(0.0), 0.3).item() == pytest.approx(0.5)
