"""Calling a learner's function."""

import copy

import torch

from rlhf_lib.exercises.compare import changed, equal, raised
from rlhf_lib.exercises.declare import find


def answer(name, function, inputs):
    """What `function` makes of each of `inputs`: a list, with `raised` or `changed` where it raised or wrote into its input."""
    exercise, outputs = find(name), []
    for arguments in inputs:
        given = copy.deepcopy(arguments)
        try:
            torch.manual_seed(0)  # for what draws its own random numbers, such as dropout left on
            output = detached(exercise.run(function, **given))
        except Exception as error:  # whatever a learner's function may raise
            output = raised(type(error).__name__, str(error))
        else:
            touched = [key for key in arguments if not equal(given[key], arguments[key], 0)]
            output = changed(touched[0]) if touched else output
        outputs.append(output)
    return outputs


def detached(value):
    """`value` with every tensor in it cut off from its graph."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: detached(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [detached(one) for one in value]
    return value
