"""What 3.10 is asked of the steps that it takes: their size, and of which gradients they are made."""

from unittest import mock

import torch

from rlhf_lib.exercises.observed import Constant, Observed, Past, path_of, run


# ----------------------------------------------------------------------------------------- the size of the steps
def draw_zeros(generator):
    return {
        "warmup": torch.randint(4, 8, (1,), generator=generator).item(),
        "rate": 0.01 + torch.rand(1, generator=generator).item() / 50,
    }


def run_rates(pretrain, warmup, rate):
    def sizes(**changes):
        model, tokens = Observed(Constant()), torch.zeros(100, dtype=torch.long)
        run(pretrain, model, tokens, tokens, 24, every=24, **changes)
        return path_of(model).diff(dim=0).norm(dim=1)  # (steps,)

    made, make = [], torch.optim.Optimizer.__init__
    with mock.patch.object(torch.optim.Optimizer, "__init__", lambda *given, **named: made.append(1) or make(*given, **named)):
        usual = sizes(lr=rate, warmup=warmup)
    return {
        "usual": usual, "made": len(made), "three": sizes(lr=3 * rate, warmup=warmup), "none": sizes(lr=rate, warmup=0),
    }  # fmt: skip


def judge_rates(output, warmup, rate):
    usual, three, none = output["usual"], output["three"], output["none"]
    if output["made"] >= 24:
        return (
            "each step makes its optimiser anew, and what it remembers of earlier gradients (Adam's m and v) is lost: make it "
            "once, before the loop, and set the rate in its param_groups"
        )
    if len(usual) != 24 or usual.max() == 0:
        return "the weights do not move"
    peak = usual.max()
    if usual[0] > 0.6 * peak:
        return "the first step is as large as later ones: there is no warm-up, though Adam has seen a single gradient"
    if (usual[: warmup - 1].diff() > 0).all() and usual[:warmup].argmax() == warmup - 2:
        return (
            f"the largest step is number {warmup - 1}, one before the end of a warm-up of {warmup}: 3.3 counts steps from 0, so "
            "the first step takes the rate of step 0"
        )
    if (usual[: warmup - 1].diff() <= 0).any() or usual[:warmup].argmax() != warmup - 1:
        return f"the steps do not grow over the {warmup} steps of the warm-up"
    if usual[warmup - 1] < 0.7 * peak:
        return f"after the warm-up they are {usual[warmup - 1] / peak:.0%} of the largest: the peak comes too late"
    if usual[-1] > 0.3 * peak:
        return "the last step is as large as earlier ones: the rate does not fall to zero, and the weights never settle"
    if usual[-1] > usual[-8]:
        return "the steps do not fall at the end"
    if none[0] < 0.5 * none.max():
        return "with warmup=0 the first step is not at the peak rate"
    if not 2.5 < three.sum() / usual.sum() < 3.5:
        return "three times the rate does not make steps three times as large: `lr` is not what the steps are made of"
    return ""


# ----------------------------------------------------------------------------------------- the gradient
def run_turned(pretrain):
    tokens = torch.zeros(100, dtype=torch.long)

    def moves(steps, brought=None, **changes):
        model = Observed(Constant(), **changes)
        model.inner.weight.grad = brought
        run(pretrain, model, tokens, tokens, steps)
        return path_of(model).diff(dim=0)[:, 0]

    turned = moves(20, stretch=lambda step: 1.0 if step <= 10 else -1.0)
    return {"turned": turned, "none": moves(3), "brought": moves(3, brought=torch.tensor([1.0, -1.0]))}


def judge_turned(output):
    none, brought, output = output["none"], output["brought"], output["turned"]
    if len(output) != 20 or output.abs().max() == 0:
        return "the weights do not move"
    if output[:10].mean() <= 0:
        return "the steps go up the gradient"
    if output[16:].mean() > 0:
        return (
            "the gradient turns round at step 11, and at steps 17 to 20 the weights still move the old way: gradients of earlier "
            "steps are still in .grad, since backward adds to what is there (zero_grad)"
        )
    if not torch.equal(none, brought):
        return (
            "the model comes with something in .grad, as after any other use of it, and the first step takes that too: "
            "zero_grad before the first backward"
        )
    return ""


def run_spike(pretrain, tokens, held_out, start):
    paths = []
    for usual, sixth, head in (  # a gradient that is not stretched is about 1 long; head: the sixth of one tensor, times this
        (1000.0, 1000.0, 1.0), (1000.0, 1e6, 1.0), (4.0, 4.0, 1.0), (1000.0, 1000.0, 0.01), (1000.0, 1000.0, 1e-6),
    ):  # fmt: skip
        model = Observed(Past(start), stretch=lambda step, usual=usual, sixth=sixth: sixth if step == 6 else usual)
        weight = model.inner.head.weight
        weight.register_hook(lambda gradient, model=model, head=head: gradient * (head if model.taken == 6 else 1.0))
        run(pretrain, model, tokens, held_out, 14, every=14)
        paths.append(path_of(model))
    return paths


def judge_spike(output, tokens, held_out, start):
    plain, spiked, shorter, less, nothing = output
    usual = plain.diff(dim=0).norm(dim=1).mean()
    if (plain[5] - spiked[5]).norm() > 1e-3 * usual:
        return "two runs of the same arguments differ before anything is different"
    apart = ((plain[-1] - spiked[-1]).norm() / usual).item()
    if apart > 1:
        return (
            f"one batch in 14 with a gradient 1000 times as long throws the weights {apart:.1f} steps away from where they would "
            "be: all gradients together are to be clipped to the norm 1, after backward and before the step"
        )
    if (plain - less).norm(dim=1).max() < 1e-3 * usual and (plain - nothing).norm(dim=1).max() > 0.1 * usual:
        return (
            "a hundredth of one weight tensor's gradient, in one batch of 14, changes nothing: each tensor is clipped by its own "
            "norm, which turns the direction; all gradients together have one norm, which is to be 1 at most"
        )
    if (plain[-1] - shorter[-1]).norm() > 0.1 * usual:
        how = "clip all together to the norm 1, which leaves the direction alone; not each value (clip_grad_value_)"
        return f"gradients 4 and 1000 times as long, of one direction, move the weights to different places: {how}"
    return ""
