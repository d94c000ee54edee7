"""Whether what a learner wrote works on a GPU too. Checks run on the CPU, where nobody sees on which device a new tensor lies."""

import copy
import functools

import torch
from torch import nn

from rlhf_lib.exercises.build import Build
from rlhf_lib.exercises.declare import find
from rlhf_lib.exercises.surroundings import LIMIT, limited, settled
from rlhf_lib.exercises.verdicts import draw


def moved(x, device):
    """`x` with its tensors and modules on `device`, also those in lists, tuples and dicts. Modules are moved in place."""
    if isinstance(x, (torch.Tensor, nn.Module)):
        return x.to(device)
    if isinstance(x, dict):
        return {key: moved(one, device) for key, one in x.items()}
    if isinstance(x, (list, tuple)):
        made = [moved(one, device) for one in x]
        return type(x)(*made) if hasattr(x, "_fields") else type(x)(made)
    return x


def at(device, function):
    """`function`, whose arguments are moved to `device`, and what it returns back to the CPU."""

    @functools.wraps(function, updated=())
    def call(*args, **kwargs):
        return moved(function(*moved(args, device), **moved(kwargs, device)), "cpu")

    return call


def fault_on(device, name, function):
    """What PyTorch says of devices where `function` meets the largest input of its exercise (of a build, its first probe) on
    `device`; "" if nothing."""
    exercise, inputs = find(name), draw(name)
    given = copy.deepcopy(inputs[0 if isinstance(exercise, Build) else -1])

    def run():
        if not isinstance(exercise, Build):
            return exercise.run(at(device, function), **given)
        shown, tasks = exercise.shown(given), exercise.tasks(given)
        probe = exercise.probes[shown.pop("probe")]
        return probe.run(at(device, function), *([] if tasks is None else [tasks]), **shown)

    with settled():
        said = str(limited(run, LIMIT)[1] or "")
    return said if "device" in said else ""


def stays(device, name, mine, course):
    """Whether `mine` works on the CPU alone where the course's answer works on `device` too. Says so, and how it is mended."""
    if torch.device(device).type == "cpu" or not fault_on(device, name, mine) or fault_on(device, name, course):
        return False
    print(
        f"Your {name} works on the CPU alone, and here it is given tensors on {device}: make each new tensor in it on the device "
        f"of one that came in (device=x.device), and check it again. Until then the course's runs here."
    )
    return True
