"""Whether what a learner wrote works on a GPU too. Checks run on the CPU, where nobody sees on which device a new tensor lies."""

import copy
import functools

import torch
from torch import nn

from rlhf_lib.exercises.build import Build
from rlhf_lib.exercises.declare import find
from rlhf_lib.exercises.surroundings import LIMIT, limited, settled
from rlhf_lib.exercises.verdicts import draw


def moved(x, device, kinds=(torch.Tensor, nn.Module)):
    """`x` with its tensors and modules, or one of these `kinds` alone, on `device`, also those in lists, tuples and dicts.
    Modules are moved in place, with tensors that they hold without having registered them."""
    if isinstance(x, nn.Module) and nn.Module in kinds:
        for part in x.modules():
            vars(part).update({key: one.to(device) for key, one in vars(part).items() if isinstance(one, torch.Tensor)})
        return x.to(device)
    if isinstance(x, torch.Tensor):
        return x.to(device) if torch.Tensor in kinds else x
    if isinstance(x, dict):
        return {key: moved(one, device, kinds) for key, one in x.items()}
    if isinstance(x, (list, tuple)):
        made = [moved(one, device, kinds) for one in x]
        return type(x)(*made) if hasattr(x, "_fields") else type(x)(made)
    return x


def at(device, function, kinds):
    """`function`, whose arguments are moved to `device`, and what it returns back to the CPU."""

    @functools.wraps(function, updated=())
    def call(*args, **kwargs):
        made = moved(function(*moved(args, device, kinds), **moved(kwargs, device, kinds)), "cpu")
        moved((args, kwargs), "cpu", (nn.Module,))
        return made

    return call


KINDS = {"tensors and modules": (torch.Tensor, nn.Module), "modules": (nn.Module,)}  # a trainer's data may stay on the CPU


def fault_on(device, name, function, kinds=KINDS["tensors and modules"]):
    """What PyTorch says of devices where `function` meets the largest input of its exercise (of a build, its first probe), of
    which these `kinds` are on `device`; "" if nothing."""
    exercise, inputs = find(name), draw(name)
    given = copy.deepcopy(inputs[0 if isinstance(exercise, Build) else -1])

    def run():
        if not isinstance(exercise, Build):
            return exercise.run(at(device, function, kinds), **given)
        shown, tasks = exercise.shown(given), exercise.tasks(given)
        probe = exercise.probes[shown.pop("probe")]
        return probe.run(at(device, function, kinds), *([] if tasks is None else [tasks]), **shown)

    with settled():
        said = str(limited(run, LIMIT)[1] or "")
    return said if "device" in said else ""


def stays(device, name, mine, course):
    """Whether `mine` works on the CPU alone where the course's answer, `course(name)`, works on `device` too. If so, says it, and
    how it is mended."""
    if torch.device(device).type == "cpu":
        return False
    if not any(
        fault_on(device, name, mine, kinds) and not fault_on(device, name, course(name), kinds) for kinds in KINDS.values()
    ):
        return False
    print(
        f"Your {name} works on the CPU alone, and here the model is on {device}: make each new tensor in it on the device of one "
        f"that came in (device=x.device), or move it there, and check it again. Until then the course's runs here."
    )
    return True
