"""What learners do to an argument of a right answer without meaning to, as tables; results.py has what they do to the result.

A change is (sentence, function). Applied to an exercise's oracle it makes a wrong answer of it, as the rows of an exercise's own
table do; `whatif.py` applies them, and `relations.py` asks whether a learner's outputs are those. In a sentence "{x}" is the
argument, "{y}" the result. A function that does not fit a value raises. The order is from the likely to the odd.
"""

import math

import torch


def shifted(x, places, dim=-1):
    """`x` moved along a dimension, filled up with 0 or False."""
    places = max(-x.shape[dim], min(x.shape[dim], places))
    filling = torch.zeros_like(x.narrow(dim, 0, abs(places)))
    if places > 0:
        return torch.cat([filling, x.narrow(dim, 0, x.shape[dim] - places)], dim)
    return torch.cat([x.narrow(dim, -places, x.shape[dim] + places), filling], dim)


def turned(x):
    """`x` with its last two dimensions exchanged, which must be of one size, so that its shape is the same."""
    if x.shape[-1] != x.shape[-2]:
        raise ValueError
    return x.transpose(-1, -2)


def row_for_all(x, row):
    return x[row : row + 1].expand_as(x) if row >= 0 else x[row:].expand_as(x)


def whitened(x, dim=None):
    mean = x.mean() if dim is None else x.mean(dim, keepdim=True)
    return (x - mean) / (((x - mean) ** 2).mean() if dim is None else ((x - mean) ** 2).mean(dim, keepdim=True)).sqrt()


def of_float(function):
    """`function` for floats alone: a whole number may be a count, and a large one take long."""

    def change(x):
        if not isinstance(x, float):
            raise ValueError
        return function(x)

    return change


def of_int(function):
    """`function` for whole numbers alone."""

    def change(x):
        if not isinstance(x, int):
            raise ValueError
        return function(x)

    return change


# ----------------------------------------------------------------------------------------- arguments, by their kind

BOOL = [
    ("{x} is not used: this is right where {x} is True everywhere", torch.ones_like),
    ("{x} is turned round: this is right for a {x} with True and False exchanged", torch.logical_not),
    ("{x} is one place too far to the right", lambda x: shifted(x, 1)),
    ("{x} is one place too far to the left", lambda x: shifted(x, -1)),
    ("{x} is taken to be False everywhere", torch.zeros_like),
    ("the first row of {x} is used for all rows", lambda x: row_for_all(x, 0)),
    ("the last row of {x} is used for all rows", lambda x: row_for_all(x, -1)),
    ("a place counts as soon as any row of {x} is True there", lambda x: x.any(0, keepdim=True).expand_as(x)),
    ("a place counts only where every row of {x} is True there", lambda x: x.all(0, keepdim=True).expand_as(x)),
    ("{x} is read from the end to the beginning", lambda x: x.flip(-1)),
    ("the rows of {x} are used upside down", lambda x: x.flip(0)),
    ("{x} is transposed", turned),
    ("True is counted from the beginning of a row of {x}, as if all padding were at its end", lambda x: x.sort(-1, True).values),
    ("True is counted from the end of a row of {x}, as if all padding were at its beginning", lambda x: x.sort(-1).values),
    ("the first place of {x} is taken to be False", lambda x: torch.cat([x[..., :1] & False, x[..., 1:]], -1)),
    ("the first place of {x} is taken to be True", lambda x: torch.cat([x[..., :1] | True, x[..., 1:]], -1)),
    ("the last place of {x} is taken to be False", lambda x: torch.cat([x[..., :-1], x[..., :1] & False], -1)),
    ("the last place of {x} is taken to be True", lambda x: torch.cat([x[..., :-1], x[..., :1] | True], -1)),
    ("the last True of each row of {x} is left out", lambda x: x & (x.flip(-1).cumsum(-1).flip(-1) > 1)),
    ("the first True of each row of {x} is left out", lambda x: x & (x.cumsum(-1) > 1)),
]
FLOAT = [
    ("{x} is not used: this is right where {x} is 0 everywhere", torch.zeros_like),
    ("{x} is not used: this is right where {x} is 1 everywhere", torch.ones_like),
    ("the sign of {x} is turned", lambda x: -x),
    ("no gradient flows through {x}: it is detached", lambda x: x.detach()),
    ("{x} goes through exp first", torch.exp),
    ("{x} goes through log first", torch.log),
    ("{x} goes through sigmoid first", torch.sigmoid),
    ("{x} goes through softmax first", lambda x: x.softmax(-1)),
    ("{x} goes through log_softmax first", lambda x: x.log_softmax(-1)),
    ("{x} goes through logsigmoid first", torch.nn.functional.logsigmoid),
    ("the mean of {x} is taken off first", lambda x: x - x.mean()),
    ("the mean of each row of {x} is taken off first", lambda x: x - x.mean(-1, keepdim=True)),
    ("{x} is whitened first", whitened),
    ("each row of {x} is whitened first", lambda x: whitened(x, -1)),
    ("{x} is one place too far to the right", lambda x: shifted(x, 1)),
    ("{x} is one place too far to the left", lambda x: shifted(x, -1)),
    ("{x} is rolled by one place to the right", lambda x: x.roll(1, -1)),
    ("{x} is rolled by one place to the left", lambda x: x.roll(-1, -1)),
    ("{x} is read from the end to the beginning", lambda x: x.flip(-1)),
    ("the rows of {x} are used upside down", lambda x: x.flip(0)),
    ("{x} is transposed", turned),
    ("the absolute value of {x} is taken first", torch.abs),
    ("the square of {x} is taken first", torch.square),
    ("the root of {x} is taken first", torch.sqrt),
    ("1 - {x} is used in place of {x}", lambda x: 1 - x),
    ("1 / {x} is used in place of {x}", lambda x: 1 / x),
    ("{x} + 1 is used in place of {x}", lambda x: x + 1),
    ("{x} - 1 is used in place of {x}", lambda x: x - 1),
    ("2 * {x} is used in place of {x}", lambda x: 2 * x),
    ("{x} / 2 is used in place of {x}", lambda x: x / 2),
    ("what is negative in {x} is taken for 0", lambda x: x.clamp(min=0)),
    ("what is positive in {x} is taken for 0", lambda x: x.clamp(max=0)),
    ("only the sign of {x} is used", torch.sign),
    ("{x} is rounded to whole numbers first", torch.round),
    ("the fractions of {x} are cut off: whole numbers are made of it", torch.trunc),
    ("{x} is rounded to one digit first", lambda x: (x * 10).round() / 10),
    ("{x} is rounded to two digits first", lambda x: (x * 100).round() / 100),
    ("{x} is sorted first", lambda x: x.sort(-1).values),
    ("{x} is sorted downwards first", lambda x: x.sort(-1, descending=True).values),
    ("{x} is sorted first", lambda x: x.sort(0).values),
    ("the first row of {x} is used for all rows", lambda x: row_for_all(x, 0)),
    ("the last row of {x} is used for all rows", lambda x: row_for_all(x, -1)),
    ("the mean of {x} is used for all its values", lambda x: x.mean().expand_as(x)),
    ("the mean of each row of {x} is used for all its values", lambda x: x.mean(-1, keepdim=True).expand_as(x)),
    ("the sum of {x} is used for all its values", lambda x: x.sum().expand_as(x)),
    ("the first place of {x} is taken for 0", lambda x: torch.cat([0 * x[..., :1], x[..., 1:]], -1)),
    ("the last place of {x} is taken for 0", lambda x: torch.cat([x[..., :-1], 0 * x[..., :1]], -1)),
    ("{x} is summed up along its last dimension first", lambda x: x.cumsum(-1)),
    ("{x} is kept between -1 and 1", lambda x: x.clamp(-1, 1)),
    ("{x} is kept between 0 and 1", lambda x: x.clamp(0, 1)),
    *((f"{{x}} is kept between -{n} and {n}", lambda x, n=n: x.clamp(-n, n)) for n in (10, 20, 30, 50, 100)),
]
WHOLE = [
    ("{x} is one too large", lambda x: x + 1),
    ("{x} is one too small", lambda x: x - 1),
    ("{x} is not used: this is right where {x} is 0 everywhere", torch.zeros_like),
    ("{x} is not used: this is right where {x} is 1 everywhere", torch.ones_like),
    ("{x} is one place too far to the right", lambda x: shifted(x, 1)),
    ("{x} is one place too far to the left", lambda x: shifted(x, -1)),
    ("{x} is rolled by one place to the right", lambda x: x.roll(1, -1)),
    ("{x} is rolled by one place to the left", lambda x: x.roll(-1, -1)),
    ("{x} is read from the end to the beginning", lambda x: x.flip(-1)),
    ("the rows of {x} are used upside down", lambda x: x.flip(0)),
    ("{x} is counted from its first value", lambda x: x - x[..., :1]),
    ("the sign of {x} is turned", lambda x: -x),
    ("1 - {x} is used in place of {x}", lambda x: 1 - x),
    ("2 * {x} is used in place of {x}", lambda x: 2 * x),
    ("the places of {x} are used in place of its values", lambda x: torch.arange(x.shape[-1]).expand_as(x)),
    ("{x} is sorted first", lambda x: x.sort(-1).values),
    ("{x} is sorted downwards first", lambda x: x.sort(-1, descending=True).values),
    ("the first row of {x} is used for all rows", lambda x: row_for_all(x, 0)),
    ("the last row of {x} is used for all rows", lambda x: row_for_all(x, -1)),
    ("{x} is transposed", turned),
    ("{x} is used without its repetitions", torch.unique),
]
NUMBER = [
    ("{x} is not used: this is right for {x} = 1", lambda x: type(x)(1)),
    ("{x} is not used: this is right for {x} = 0", lambda x: type(x)(0)),
    ("the sign of {x} is turned", lambda x: -x),
    ("{x} is one too large", of_int(lambda x: x + 1)),
    ("{x} is one too small", of_int(lambda x: x - 1)),
    ("1 / {x} is used in place of {x}", lambda x: 1 / x),
    ("1 - {x} is used in place of {x}", lambda x: 1 - x),
    ("2 * {x} is used in place of {x}", lambda x: 2 * x),
    ("{x} / 2 is used in place of {x}", lambda x: x // 2 if type(x) is int and x % 2 == 0 else x / 2),
    ("{x} squared is used in place of {x}", lambda x: x * x),
    ("the root of {x} is used in place of {x}", math.sqrt),
    ("exp({x}) is used in place of {x}", of_float(math.exp)),
    ("log({x}) is used in place of {x}", of_float(math.log)),
    ("the fraction of {x} is cut off", of_float(int)),
    ("{x} is rounded to a whole number", of_float(round)),
    ("the absolute value of {x} is used", abs),
    ("{x} is in percent: 100 * {x} is used", of_float(lambda x: 100 * x)),
    ("{x} / 100 is used in place of {x}", of_float(lambda x: x / 100)),
    ("{x} is kept at most at 1", of_float(lambda x: min(x, 1.0))),
    (
        "{x} is not used: this is right where {x} is so large that it limits nothing",
        lambda x: 1e9 if type(x) is float else x + 100,
    ),
]
CONSTANTS = (0.1, 0.2, 0.5, 0.05, 0.01, 0.9, 0.95, 0.99, 0.999, 1e-3, 1e-5, 1e-8, 2, 3, 4, 5, 8, 10, 16, 32, 64, 100)
FLAG = [
    ("{x} is not used: this is right for {x} = True", lambda x: True),
    ("{x} is not used: this is right for {x} = False", lambda x: False),
    ("{x} is turned round", lambda x: not x),
]
TEXT = [
    ("{x} is taken in small letters", str.lower),
    ("{x} is taken in capitals", str.upper),
    ("white space at the ends of {x} is taken off", str.strip),
    ("white space is taken out of {x}", lambda x: "".join(x.split())),
    ("every run of white space in {x} is taken for one space", lambda x: " ".join(x.split())),
    ("only the first line of {x} is read", lambda x: x.split("\n")[0]),
    ("line breaks of {x} are taken for spaces", lambda x: x.replace("\n", " ")),
    ("line breaks are taken out of {x}", lambda x: x.replace("\n", "")),
    ("letters that are not ASCII are taken out of {x}", lambda x: x.encode("ascii", "ignore").decode()),
    ("punctuation is taken out of {x}", lambda x: "".join(one for one in x if one.isalnum() or one.isspace() or one == "_")),
    ("punctuation of {x} is taken for spaces", lambda x: "".join(one if one.isalnum() else " " for one in x)),
    ("digits are taken out of {x}", lambda x: "".join(one for one in x if not one.isdigit())),
    ("{x} is read backwards", lambda x: x[::-1]),
    ("the first character of {x} is left out", lambda x: x[1:]),
    ("the last character of {x} is left out", lambda x: x[:-1]),
    ("only the first character of {x} is read", lambda x: x[:1]),
    ("{x} is not used: this is right for an empty {x}", lambda x: ""),
]
LIST = [
    ("the last of {x} is left out", lambda x: x[:-1]),
    ("the first of {x} is left out", lambda x: x[1:]),
    ("only the first of {x} is used", lambda x: x[:1]),
    ("only the last of {x} is used", lambda x: x[-1:]),
    ("{x} is used in reverse", lambda x: x[::-1]),
    ("{x} is sorted first", sorted),
    ("{x} is sorted downwards first", lambda x: sorted(x, reverse=True)),
    ("{x} is used without its repetitions", lambda x: list(dict.fromkeys(x))),
    ("{x} is not used: this is right for an empty {x}", lambda x: x[:0]),
    ("the first of {x} stands for all of them", lambda x: x[:1] * len(x)),
    ("what is empty in {x} is left out", lambda x: [one for one in x if (len(one) if hasattr(one, "__len__") else one)]),
    (
        "the parts of {x} are read backwards",
        lambda x: [one[::-1] if isinstance(one, (str, list, tuple)) else one.flip(0) for one in x],
    ),
]
CALLABLE = [
    ("{x} is not used: this is right when {x} leaves its input as it is", lambda x: lambda y, *rest, **named: y),
    ("{x} is not used: this is right when {x} gives 0", lambda x: lambda y, *rest, **named: 0 * y),
    ("{x} is used twice, one after the other", lambda x: lambda *given, **named: x(x(*given, **named))),
    ("the sign of what {x} gives is turned", lambda x: lambda *given, **named: -x(*given, **named)),
    ("no gradient flows through {x}", lambda x: lambda *given, **named: x(*given, **named).detach()),
]


def changes_of(value, example=None):
    """The changes that fit an argument's value, with one for the value that it has in the first example, if there is one."""
    if isinstance(value, torch.Tensor):
        return BOOL if value.dtype == torch.bool else FLOAT if value.is_floating_point() else WHOLE
    if isinstance(value, bool):
        return FLAG
    if isinstance(value, (int, float)):
        constants = [n for n in CONSTANTS if isinstance(value, float) or type(n) is int]
        if type(example) in (int, float) and example not in (0, 1):
            constants = [example, *(n for n in constants if n != example)]
        of_example = {example: " of the example"}
        return NUMBER + [
            (f"{{x}} is {n!r} whatever is given: is that number{of_example.get(n, '')} written in?", lambda x, n=n: n)
            for n in constants
        ]
    if isinstance(value, str):
        written = [(f"{{x}} is {example!r} whatever is given: is the example written in?", lambda x: example)]
        return written + TEXT if example else TEXT
    if isinstance(value, (list, tuple)):
        parts = value and all(isinstance(one, str) for one in value) and TEXT
        return LIST + [
            (sentence.replace("{x}", "each of {x}"), lambda x, function=function: type(x)(map(function, x)))
            for sentence, function in parts or []
        ]
    if isinstance(value, torch.nn.Module):
        return []
    return CALLABLE if callable(value) else []


# ----------------------------------------------------------------------------------------- all arguments at once

TOGETHER = [  # (sentence, dimension, change): for all arguments that have equally many places in that dimension
    ("only the first row is looked at", 0, lambda x: x[:1]),
    ("only the last row is looked at", 0, lambda x: x[-1:]),
    ("the last row is left out", 0, lambda x: x[:-1]),
    ("the first row is left out", 0, lambda x: x[1:]),
    ("the rows are used upside down", 0, lambda x: x[::-1] if isinstance(x, (list, tuple)) else x.flip(0)),
    ("the last column is left out", 1, lambda x: x[:, :-1]),
    ("the first column is left out", 1, lambda x: x[:, 1:]),
    ("only the first column is looked at", 1, lambda x: x[:, :1]),
    ("only the last column is looked at", 1, lambda x: x[:, -1:]),
    ("the columns are read from the end to the beginning", 1, lambda x: x.flip(1)),
]


def size_of(value, dim):
    """The number of places that an argument has in a dimension; None if it has no such dimension."""
    if isinstance(value, torch.Tensor):
        return value.shape[dim] if value.dim() > dim else None
    return len(value) if dim == 0 and isinstance(value, (list, tuple)) else None
