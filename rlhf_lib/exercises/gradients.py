"""Whether a gradient comes back from what a learner's function makes, and whether it is that of all of it."""

import torch


def with_gradients(function, *arguments):
    """What a function makes of tensors that want a gradient; it must pass on that of its output, and not of a part of it."""

    def wanting(value):
        if isinstance(value, dict):
            return {name: wanting(one) for name, one in value.items()}
        return value.requires_grad_() * 1 if torch.is_tensor(value) and value.is_floating_point() else value

    output = function(*map(wanting, arguments))
    for one in output if isinstance(output, tuple) else [output]:
        if torch.is_tensor(one) and one.is_floating_point() and not one.requires_grad:
            one.sum().backward()  # raises, and says that there is no gradient
    x = arguments[0]
    if torch.is_tensor(output) and torch.is_tensor(x) and output.is_floating_point() and x.is_floating_point():
        check_gradient(function, x, arguments[1:])
    return output


def check_gradient(function, x, others, step=1e-3):
    """Raise where the gradient with respect to `x` is not how the output changes along a drawn direction."""
    generator = torch.Generator().manual_seed(0)
    x, one, way = x.detach(), x.detach().clone().requires_grad_(), torch.randn(x.shape, generator=generator)
    output = function(one * 1, *others)
    weights = torch.randn(output.shape, generator=generator)
    (gradient,) = torch.autograd.grad((output * weights).sum(), one, allow_unused=True)
    found = torch.zeros(()) if gradient is None else (gradient * way).sum()
    with torch.no_grad():
        ends = [[function(x + sign * h * way, *others).double() for sign in (1, -1)] for h in (step, step / 2)]
    expected, again = (((up - down) * weights).sum() / (2 * h) for (up, down), h in zip(ends, (step, step / 2)))
    room = 0.02 * expected.abs() + 0.02 + output.detach().abs().max() * weights.abs().sum() * 1e-6 / step  # for rounding
    straight = (expected - again).abs() < room  # else the step is too long here to say anything
    if straight and (found - expected).abs() > 2 * room:
        raise RuntimeError("the gradient that comes back is not that of the output: a part is cut off, as by detach or .data")


def call_with_gradients(function, **arguments):
    return with_gradients(function, *arguments.values())
