"""A learner who returns a tensor without dimensions where a card says a float: the checks take that, so later cells have to."""

import functools
import inspect

import torch


def as_tensors(x):
    """`x` with its floats as tensors, also those in lists, tuples and dicts."""
    if type(x) is float:
        return torch.tensor(x, dtype=torch.float64)
    if type(x) in (list, tuple):
        return type(x)(map(as_tensors, x))
    return {key: as_tensors(one) for key, one in x.items()} if type(x) is dict else x


def with_tensors(yours):
    """`yours`, whose functions return tensors for floats."""

    def turned(function):
        if inspect.isclass(function):
            return function
        return functools.wraps(function)(lambda *args, **kwargs: as_tensors(function(*args, **kwargs)))

    def taken(*names, **options):
        found = yours(*names, **options)
        return turned(found) if len(names) == 1 else [turned(one) for one in found]

    return taken
