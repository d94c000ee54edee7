"""Whether a gradient comes back from what a learner's function makes, and whether it is that of all ways from its arguments."""

import torch


def is_float(value):
    return torch.is_tensor(value) and value.is_floating_point()


def changed(value, change):
    """An argument with `change` applied to it where it is a tensor of floats, or to those in it where it is a dict."""
    if isinstance(value, dict):
        return {name: changed(one, change) for name, one in value.items()}
    return change(value) if is_float(value) else value


def with_gradients(function, *arguments, first=1):
    """What a function makes of tensors that want a gradient; it must pass one on, and the right one.

    Args:
        first: from how many of the arguments the gradient must be that of all ways to what comes back, counted from the first.
    """
    wanting = []

    def copied(tensor):
        wanting.append(tensor.requires_grad_())
        return tensor * 1

    some = [changed(one, copied) for one in arguments[:first]]
    leaves = list(wanting)
    output = function(*some, *(changed(one, copied) for one in arguments[first:]))
    parts = floats_of(output)
    for one in parts:
        if not one.requires_grad:
            one.sum().backward()  # raises, and says that there is no gradient
    if leaves and parts and all(one.numel() for one in [*leaves, *parts]):
        again = lambda *moved: function(*moved, *arguments[first:])  # noqa: E731
        check_gradient(again, arguments[:first], leaves, parts)
    return output


def floats_of(output):
    return [one for one in (output if isinstance(output, tuple) else [output]) if is_float(one)]


def check_gradient(function, arguments, leaves, parts):
    """Raise where the gradient is wrong along two drawn directions: along one alone, rounding may be the cause."""
    wrong = 0
    for seed in range(6):
        found = differs(function, arguments, leaves, parts, seed)
        if found is False:
            return
        wrong += found is True
        if wrong == 2:
            raise RuntimeError("the gradient that comes back is not that of the output: a part is cut off, as by detach or .data")


def differs(function, arguments, leaves, parts, seed, step=1e-3):
    """Whether the gradient of `parts` with respect to `leaves` is not how they change along a direction drawn from `seed`; None
    where they have an edge or a bend within the step."""
    generator = torch.Generator().manual_seed(seed)
    ways, weights = ([torch.randn(one.shape, generator=generator) for one in some] for some in (leaves, parts))
    gradients = torch.autograd.grad(weighed(parts, weights), leaves, retain_graph=True, allow_unused=True)
    found = sum((gradient * way).sum() for gradient, way in zip(gradients, ways) if gradient is not None)
    here = [one.detach().double() for one in parts]

    def slope(h):
        along = iter(ways)
        there = floats_of(function(*(changed(one, lambda tensor: tensor + h * next(along)) for one in arguments)))
        return weighed([one.double() - before for one, before in zip(there, here)], weights) / h

    with torch.no_grad():
        ahead, half, back = slope(step), slope(step / 2), slope(-step)
    expected = (ahead + back) / 2
    most, weight = max(one.abs().max() for one in here), sum(one.abs().sum() for one in weights)
    room = 0.02 * expected.abs() + 0.02 + most * weight * 1e-6 / step  # for rounding
    straight = max((ahead - back).abs(), (ahead - half).abs()) < room
    return bool(abs(found - expected) > 2 * room) if straight else None


def weighed(parts, weights):
    return sum((one * weight).sum() for one, weight in zip(parts, weights))


def call_with_gradients(function, first=1, **arguments):
    return with_gradients(function, *arguments.values(), first=first)
