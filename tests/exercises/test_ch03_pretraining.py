"""Chapter 03: other ways to be right, and what is special in its checks."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib import exercises
from rlhf_lib.exercises import verdict
from rlhf_lib.trainers import pretrain

# ----------------------------------------------------------------------------------------- other right answers


def next_token_loss(logits, tokens, mask):
    targets = tokens[:, 1:].masked_fill(~mask[:, 1:], -100)
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), targets)


def next_token_loss_picked(logits, tokens, mask):
    picked = logits.log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    return -(picked * mask[:, 1:]).sum() / mask[:, 1:].sum()


def perplexity_and_bits(losses, counts, characters):
    loss = torch.dot(losses.double(), counts / counts.sum().double())
    return loss, 2 ** (loss / math.log(2)), loss * counts.sum() / characters * math.log2(math.e)


def learning_rate(step, peak, warmup, steps):
    return peak * min((step + 1) / max(warmup, 1), (steps - step) / (steps - warmup))


def adam_step(parameter, gradient, m, v, step, rate, beta1, beta2, eps):
    m, v = torch.lerp(gradient, m, beta1), v + (1 - beta2) * (gradient * gradient - v)
    corrected = rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)  # Kingma and Ba's faster order of the same step
    return parameter - corrected * m / (v.sqrt() + eps * math.sqrt(1 - beta2**step)), m, v


def clip_gradient(gradients, max_norm):
    norm = sum(gradient.square().sum() for gradient in gradients).sqrt()
    if norm <= max_norm:
        return [gradient.clone() for gradient in gradients], norm
    return [gradient / norm * max_norm for gradient in gradients], norm


ALTERNATIVES = {
    "next_token_loss": next_token_loss,
    "perplexity_and_bits": perplexity_and_bits,
    "learning_rate": learning_rate,
    "adam_step": adam_step,
    "clip_gradient": clip_gradient,
}

MORE = [("next_token_loss", next_token_loss_picked)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name, function", [*ALTERNATIVES.items(), *MORE])
def test_every_correct_answer_passes(name, function, seed):
    found = verdict(name, function, seed)
    assert found.passed, found.message


# ----------------------------------------------------------------------------------------- the published mistakes


def test_a_second_beta_that_is_the_first_is_named():
    def both_the_first(parameter, gradient, m, v, step, rate, beta1, beta2, eps):
        weight = nn.Parameter(parameter.clone())
        optimizer = torch.optim.Adam([weight], lr=rate, betas=(beta1, beta1), eps=eps)
        m, v = m.clone(), v.clone()
        optimizer.state[weight] = {"step": torch.tensor(step - 1.0), "exp_avg": m, "exp_avg_sq": v}
        weight.grad = gradient
        optimizer.step()
        return weight, m, v

    assert verdict("adam_step", both_the_first).mistake.startswith("the second beta is set to the first")


# ----------------------------------------------------------------------------------------- what the learner is shown


def test_the_worked_example_of_the_loss():
    arguments = exercises.draw("next_token_loss")[0]
    assert exercises.find("next_token_loss").right(**arguments).item() == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)


def test_the_worked_example_of_the_scores():
    arguments = exercises.draw("perplexity_and_bits")[0]
    loss, perplexity, bits = exercises.find("perplexity_and_bits").right(**arguments)
    assert (loss, perplexity, bits) == pytest.approx((1.5 * math.log(2), 2**1.5, 0.6))


def test_the_smallest_failing_input_is_shown():
    """Right where nothing is padded: the first input passes, the second is the smallest that fails."""

    def half_right(logits, tokens, mask):
        loss = next_token_loss(logits, tokens, mask)
        return loss if mask.all() else loss + logits.square().mean()

    found = verdict("next_token_loss", half_right)
    assert not found.passed and not found.mistake
    assert found.arguments["tokens"].shape == (2, 4) and "tokens = " in found.message


def test_a_detached_loss_does_not_pass():
    found = verdict("next_token_loss", lambda **arguments: next_token_loss(**arguments).detach().requires_grad_())
    assert not found.passed


def test_the_schedule_is_the_librarys_in_its_fall():
    """The library's schedule with a fall over the whole run, after a warm-up of none, is the exercise's."""
    config = pretrain.PretrainConfig(steps=20, warmup=0, decay=1.0)
    right = exercises.find("learning_rate").right
    for step in range(20):
        assert pretrain.lr_factor(step, config) == pytest.approx(float(right(step, 1.0, 0, 20)), abs=1e-6)


@pytest.mark.parametrize("told", [("steps",), ("peak", "steps"), ("warmup", "steps"), ("peak", "warmup")])
def test_rates_kept_in_a_table_under_a_part_of_the_arguments_are_refused(told):
    table = {}

    def kept(step, **given):
        rates = [learning_rate(one, **given) for one in range(given["steps"])]
        return table.setdefault(tuple(given[name] for name in told), rates)[step]

    def learner(step, peak, warmup, steps):
        return kept(step, peak=peak, warmup=warmup, steps=steps)

    assert not verdict("learning_rate", learner).passed


def test_pictures_can_be_drawn():
    exercise = exercises.find("learning_rate")
    arguments = exercises.draw("learning_rate")[-1]
    rates = exercise.run(exercise.right, **arguments)
    assert exercise.draw_picture(arguments, {"rates": rates["rates"] * 0}, rates).axes


def test_a_case_without_a_return_is_told_so():
    def unless_at_the_peak(step, peak, warmup, steps):
        if step != warmup:
            return learning_rate(step, peak, warmup, steps)

    assert "there is no rate for step 2: end each case with a return" in verdict("learning_rate", unless_at_the_peak).message


@pytest.mark.parametrize(
    "rise, fall, said",
    [
        (lambda t, w: t / (w - 1), None, "step 0 has rate 0"),
        (None, lambda t, w, n: (n - t) / (n - w + 1), "the rate is below the peak"),
        (None, lambda t, w, n: (n - t) / n, "the fall is counted from step 0"),
    ],
)
def test_a_schedule_that_is_off_by_one_is_named(rise, fall, said):
    def schedule(step, peak, warmup, steps):
        if step < warmup:
            return peak * (rise(step, warmup) if rise else (step + 1) / warmup)
        return peak * (fall(step, warmup, steps) if fall else (steps - step) / (steps - warmup))

    assert said in verdict("learning_rate", schedule).mistake


def test_a_warm_up_that_is_one_step_too_short_is_named():
    def short(step, peak, warmup, steps):
        return peak * (step + 1) / warmup if step + 1 < warmup else peak * (steps - step) / (steps - warmup)

    assert verdict("learning_rate", short).mistake.startswith("the warm-up is one step too short")


def test_clipped_gradients_without_their_norm_are_told_how_many_there_are():
    """With two tensors a list of them would be taken for the pair that is asked for."""
    message = verdict("clip_gradient", lambda gradients, max_norm: clip_gradient(gradients, max_norm)[0]).message
    assert "it returned a list of 3" in message


def test_a_norm_in_front_of_the_clipped_gradients_is_named():
    swapped = verdict("clip_gradient", lambda gradients, max_norm: clip_gradient(gradients, max_norm)[::-1])
    assert swapped.mistake.startswith("clipped gradients and norm have changed places")
    twice = verdict("clip_gradient", lambda gradients, max_norm: 2 * clip_gradient(gradients, max_norm)[1:])
    assert not twice.passed and "changed places" not in twice.message


def test_gradients_of_zero_divided_by_their_norm_are_named():
    def by_norm(gradients, max_norm):
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        return [gradient / norm * norm.clamp(max=max_norm) for gradient in gradients], norm

    assert verdict("clip_gradient", by_norm).mistake.startswith("gradients that are all 0 become NaN")


def test_a_loss_by_exp_and_one_of_mixed_logits_have_their_names():
    def naive(logits, tokens, mask):
        costs = logits.exp().sum(-1).log()[:, :-1] - logits[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
        return costs[mask[:, 1:]].mean()

    assert verdict("next_token_loss", naive).mistake.startswith("exp of a large logit is infinite")

    def mixed(logits, tokens, mask):
        rows = logits[:, :-1].transpose(1, 2).reshape(-1, logits.shape[-1])
        return F.cross_entropy(rows, tokens[:, 1:].flatten(), reduction="none")[mask[:, 1:].flatten()].mean()

    assert verdict("next_token_loss", mixed).mistake.startswith("transpose and reshape mix")
