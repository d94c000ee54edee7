"""Chapter 03, steps of a training run: other ways to be right, and what is special in the checks."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib import exercises
from rlhf_lib.exercises import verdict


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


ALTERNATIVES = [
    ("train_step", train_step),
    ("validation_loss", validation_loss),
    ("accumulate_gradients", accumulate_gradients),
    ("accumulate_gradients", accumulate_gradients_summed),
    ("training_state", training_state),
    ("training_state", training_state_cloned),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name, function", ALTERNATIVES)
def test_every_correct_answer_passes(name, function, seed):
    found = verdict(name, function, seed)
    assert found.passed, found.message


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


def test_a_run_resumed_from_the_oracle_is_the_run_without_a_stop():
    for arguments in exercises.draw("training_state"):
        exercise = exercises.find("training_state")
        torch.manual_seed(0)
        both = exercise.run(exercise.right, **arguments)
        assert both["without a stop"].keys() == both["resumed"].keys()
        assert all(torch.equal(part, both["resumed"][name]) for name, part in both["without a stop"].items())


def test_keys_that_a_state_lacks_are_named():
    def other_names(model, optimizer, step):
        return {"weights": model.state_dict(), "moments": optimizer.state_dict(), "step": step, "random": torch.get_rng_state()}

    assert "(TypeError: it lacks the keys 'model', 'optimizer')" in verdict("training_state", other_names).message


def test_a_state_is_taken_without_a_draw_from_the_generator():
    def drawn(model, optimizer, step):
        torch.rand(1)
        return training_state(model, optimizer, step)

    assert verdict("training_state", drawn).mistake.startswith("the call changes torch's generator")


def test_a_step_that_returns_nothing_is_told_so():
    message = verdict("train_step", lambda *given: train_step(*given) and None).message
    assert "it returned None" in message and "end it with a return" in message


@pytest.mark.parametrize("kind", [1.0, float("inf")])
def test_another_norm_is_named(kind):
    def by_kind(model, optimizer, inputs, targets, max_norm):
        model.train()
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm, norm_type=kind)
        optimizer.step()
        return loss.item()

    assert verdict("train_step", by_kind).mistake.startswith("another norm is clipped")


@pytest.mark.parametrize(
    "line, said", [("eval", "the first batch: model.eval()"), ("train", "first batch alone"), ("return", "inside the loop")]
)
def test_a_line_inside_the_loop_that_belongs_outside_is_named(line, said):
    @torch.no_grad()
    def looped(model, batches):
        model.train(line == "eval")
        nats, count = 0.0, 0
        for inputs, targets in batches:
            nats += F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum").item()
            count += targets.numel()
            model.train(line != "eval")
            if line == "return":
                return nats / count
        model.train()
        return nats / count

    assert said in verdict("validation_loss", looped).mistake


def test_gradients_with_dropout_off_and_old_ones_divided_in_are_named():
    def evaluated(model, micro_batches):
        model.eval()
        accumulate_gradients(model, micro_batches)

    assert verdict("accumulate_gradients", evaluated).mistake.startswith("dropout is switched off")

    def divided(model, micro_batches):
        for inputs, targets in micro_batches:
            F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum").backward()
        for parameter in model.parameters():
            parameter.grad /= sum((targets != -100).sum() for _, targets in micro_batches)

    assert verdict("accumulate_gradients", divided).mistake.startswith("the gradients are divided at the end")
