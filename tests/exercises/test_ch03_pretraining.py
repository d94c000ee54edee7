"""Chapter 03: other ways to be right, and what is special in its checks."""

import copy
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


def train_step(model, optimizer, inputs, targets, max_norm):
    model.train()
    loss = -model(inputs).log_softmax(-1).gather(2, targets[..., None]).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    for parameter, gradient in zip(model.parameters(), gradients):
        parameter.grad = gradient * min(1.0, max_norm / norm.item())
    optimizer.step()
    return loss.item()


@torch.inference_mode()
def validation_loss(model, batches):
    model.eval()
    losses = [F.cross_entropy(model(x).transpose(1, 2), y, reduction="none").flatten() for x, y in batches]
    model.train()
    return torch.cat(losses).mean()


def accumulate_gradients(model, micro_batches):
    for parameter in model.parameters():
        parameter.grad = None
    counts = [(targets >= 0).sum() for _, targets in micro_batches]
    for count, (inputs, targets) in zip(counts, micro_batches):
        mean = F.cross_entropy(model(inputs).transpose(1, 2), targets)
        (mean * count / sum(counts)).backward()


def accumulate_gradients_summed(model, micro_batches):
    parameters, total = list(model.parameters()), sum((targets >= 0).sum() for _, targets in micro_batches)
    parts = []
    for inputs, targets in micro_batches:
        picked = model(inputs).log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
        parts.append(torch.autograd.grad(-picked[targets >= 0].sum() / total, parameters))
    for parameter, gradients in zip(parameters, zip(*parts)):
        parameter.grad = sum(gradients)


def training_state(model, optimizer, step):
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    return copy.deepcopy({**parts, "random": torch.random.get_rng_state()})


def training_state_cloned(model, optimizer, step):
    moments = optimizer.state_dict()
    state = {key: {name: x.clone() for name, x in one.items()} for key, one in moments["state"].items()}
    return {
        "model": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "optimizer": {**moments, "state": state},
        "step": step,
        "random": torch.get_rng_state(),
    }


ALTERNATIVES = {
    "next_token_loss": next_token_loss,
    "perplexity_and_bits": perplexity_and_bits,
    "learning_rate": learning_rate,
    "adam_step": adam_step,
    "clip_gradient": clip_gradient,
    "train_step": train_step,
    "validation_loss": validation_loss,
    "accumulate_gradients": accumulate_gradients,
    "training_state": training_state,
}

MORE = [
    ("next_token_loss", next_token_loss_picked),
    ("accumulate_gradients", accumulate_gradients_summed),
    ("training_state", training_state_cloned),
]


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


def test_clipping_before_backward_is_named():
    def clipped_too_early(model, optimizer, inputs, targets, max_norm):
        model.train()
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    assert "clipped before backward" in verdict("train_step", clipped_too_early).mistake


def test_dropout_left_on_is_named():
    @torch.no_grad()
    def in_whatever_mode(model, batches):
        nats = sum(F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item() for x, y in batches)
        return nats / sum(y.numel() for _, y in batches)

    assert verdict("validation_loss", in_whatever_mode).mistake.startswith("dropout is left on")


def test_the_mean_of_unequal_micro_batches_is_named():
    def as_trainers_did(model, micro_batches):
        model.zero_grad()
        for inputs, targets in micro_batches:
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            (loss / len(micro_batches)).backward()

    assert "mean of the micro-batches' means" in verdict("accumulate_gradients", as_trainers_did).mistake


def test_best_weights_kept_by_reference_are_named():
    def by_reference(model, optimizer, step):
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "random": torch.get_rng_state()}

    assert verdict("training_state", by_reference).mistake.startswith("state_dict() gives the tensors themselves")


def test_gradients_that_stay_switched_off_are_named():
    def off(model, batches):
        torch.set_grad_enabled(False)
        model.eval()
        nats = sum(F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item() for x, y in batches)
        model.train()
        return nats / sum(y.numel() for _, y in batches)

    assert verdict("validation_loss", off).mistake.startswith("gradients are switched off and stay off")
    assert torch.is_grad_enabled()


def test_one_large_batch_is_refused_though_its_gradients_are_right():
    def whole(model, micro_batches):
        model.zero_grad()
        inputs, targets = (torch.cat([part.flatten() for part in parts])[None] for parts in zip(*micro_batches))
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()

    assert verdict("accumulate_gradients", whole).mistake.startswith("the micro-batches are put together")


def test_a_training_step_that_clears_its_gradients_at_the_end_alone_is_named():
    def late(model, optimizer, inputs, targets, max_norm):
        model.train()
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    assert verdict("train_step", late).mistake.startswith("the gradients are cleared after the step")


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


def test_a_run_resumed_from_the_oracle_is_the_run_without_a_stop():
    for arguments in exercises.draw("training_state"):
        exercise = exercises.find("training_state")
        torch.manual_seed(0)
        both = exercise.run(exercise.right, **arguments)
        assert both["missing keys"] == [] and both["without a stop"].keys() == both["resumed"].keys()
        assert all(torch.equal(part, both["resumed"][name]) for name, part in both["without a stop"].items())


def test_pictures_can_be_drawn():
    exercise = exercises.find("learning_rate")
    arguments = exercises.draw("learning_rate")[-1]
    rates = exercise.run(exercise.right, **arguments)
    assert exercise.draw_picture(arguments, {"rates": rates["rates"] * 0}, rates).axes
