"""Whether a gradient comes back from what a learner's function makes, and whether it is that of the whole way from its input."""

import torch


def with_gradients(function, *arguments):
    """What a function makes of tensors that want a gradient; it must pass one on.

    Where the first argument and what comes back are tensors of floats, the gradient between the two must be that of all ways
    from the one to the other.
    """

    def wanting(value):
        if isinstance(value, dict):
            return {name: wanting(one) for name, one in value.items()}
        return value.requires_grad_() * 1 if torch.is_tensor(value) and value.is_floating_point() else value

    output = function(*map(wanting, arguments))
    for one in output if isinstance(output, tuple) else [output]:
        if torch.is_tensor(one) and one.is_floating_point() and not one.requires_grad:
            one.sum().backward()  # raises, and says that there is no gradient
    x = arguments[0]
    if all(torch.is_tensor(one) and one.is_floating_point() and one.numel() for one in (x, output)):
        check_gradient(function, x, arguments[1:], output)
    return output


def check_gradient(function, x, others, output, step=1e-3):
    """Raise where the gradient of `output` with respect to `x` is not how it changes along a drawn direction."""
    generator = torch.Generator().manual_seed(0)
    way, weights = (torch.randn(one.shape, generator=generator) for one in (x, output))
    (gradient,) = torch.autograd.grad((output * weights).sum(), x, retain_graph=True, allow_unused=True)
    found = torch.zeros(()) if gradient is None else (gradient * way).sum()
    here = output.detach().double()
    steps = step, step / 2, -step  # how steep it is ahead, on half of the way, and back
    with torch.no_grad():
        ahead, half, back = (((function(x + h * way, *others).double() - here) * weights).sum() / h for h in steps)
    expected = (ahead + back) / 2
    room = 0.02 * expected.abs() + 0.02 + here.abs().max() * weights.abs().sum() * 1e-6 / step  # for rounding
    straight = max((ahead - back).abs(), (ahead - half).abs()) < room  # else there is an edge or a bend within the step
    if straight and (found - expected).abs() > 2 * room:
        raise RuntimeError("the gradient that comes back is not that of the output: a part is cut off, as by detach or .data")


def call_with_gradients(function, **arguments):
    return with_gradients(function, *arguments.values())
