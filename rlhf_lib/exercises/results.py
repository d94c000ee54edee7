"""What learners do to a right result without meaning to, as tables like those of changes.py."""

import math

import torch

from rlhf_lib.exercises.changes import row_for_all, shifted, whitened


def of_many(function):
    """`function` for what has a dimension; for a single number the change would be none."""

    def change(y):
        if not y.dim():
            raise ValueError
        return function(y)

    return change


def of_floats(function):
    """`function` for tensors of floats alone."""

    def change(y):
        if not y.is_floating_point():
            raise ValueError
        return function(y)

    return change


def of_bools(function):
    """`function` for tensors of bools alone."""

    def change(y):
        if y.dtype != torch.bool:
            raise ValueError
        return function(y)

    return change


# ----------------------------------------------------------------------------------------- a result by itself

LN2 = math.log(2)
RESULT = [
    ("{y} is minus what is expected: a sign is turned", lambda y: -y),
    ("{y} is twice what is expected", lambda y: 2 * y),
    ("{y} is half of what is expected", lambda y: y / 2),
    ("{y} is 100 times what is expected: percent where a share is wanted", lambda y: 100 * y),
    ("{y} is a hundredth of what is expected: a share where percent are wanted", lambda y: y / 100),
    ("{y} is divided by ln 2: bits where nats are wanted, or divided once too often", lambda y: y / LN2),
    ("{y} is multiplied by ln 2: nats where bits are wanted, or multiplied once too often", lambda y: y * LN2),
    ("{y} is divided by ln 10: a logarithm to base 10 where the natural one is wanted", lambda y: y / math.log(10)),
    ("{y} is 4 times what is expected", lambda y: 4 * y),
    ("{y} is a quarter of what is expected", lambda y: y / 4),
    ("{y} is exp of what is expected: a logarithm is missing, or an exp is too much", torch.exp),
    ("{y} is the logarithm of what is expected: an exp is missing, or a log is too much", torch.log),
    ("{y} is 2 to the power of what is expected", torch.exp2),
    ("{y} is the logarithm, to base 2, of what is expected", torch.log2),
    ("{y} is minus the logarithm of what is expected", lambda y: -torch.log(y)),
    ("{y} is exp of minus what is expected", lambda y: torch.exp(-y)),
    ("{y} is the square of what is expected: a root is missing", torch.square),
    ("{y} is the root of what is expected: a root is too much", torch.sqrt),
    ("{y} is 1 minus what is expected", lambda y: 1 - y),
    ("{y} is what is expected plus 1", lambda y: y + 1),
    ("{y} is what is expected minus 1", lambda y: y - 1),
    ("{y} is 1 divided by what is expected: upside down", lambda y: 1 / y),
    ("{y} has True and False exchanged", of_bools(torch.logical_not)),
    ("{y} is the absolute value of what is expected: a sign is lost", torch.abs),
    ("{y} has 0 where what is expected is negative: it is cut off there", lambda y: y.clamp(min=0)),
    ("{y} has 0 where what is expected is positive: it is cut off there", lambda y: y.clamp(max=0)),
    ("{y} is kept between 0 and 1", lambda y: y.clamp(0, 1)),
    ("{y} is kept between -1 and 1", lambda y: y.clamp(-1, 1)),
    ("{y} has 1 where what is expected is larger", lambda y: y.clamp(max=1)),
    ("{y} has 1 where what is expected is smaller", lambda y: y.clamp(min=1)),
    ("{y} went through sigmoid once more", torch.sigmoid),
    ("{y} went through softmax once more", lambda y: y.softmax(-1)),
    ("{y} went through log_softmax once more", lambda y: y.log_softmax(-1)),
    ("{y} is log-odds, or went through the inverse of sigmoid", torch.logit),
    ("{y} went through tanh once more", torch.tanh),
    ("the gradient of {y} is cut off: .detach() or .item()", lambda y: y.detach()),
    ("{y} is rounded to whole numbers", of_floats(lambda y: y.round())),
    ("the fractions of {y} are cut off: whole numbers are made of them", of_floats(lambda y: y.trunc())),
    ("the fractions of {y} are rounded down", of_floats(lambda y: y.floor())),
    ("the fractions of {y} are rounded up", of_floats(lambda y: y.ceil())),
    *(
        (f"{{y}} is rounded to {n} digit{'s' * (n > 1)}: return it as it is", lambda y, n=n: (y * 10**n).round() / 10**n)
        for n in (1, 2, 3, 4)
    ),
    ("{y} is transposed", lambda y: y.transpose(-1, -2)),
    ("{y} is read from the end to the beginning along its last dimension", lambda y: y.flip(-1)),
    ("{y} has its rows upside down", lambda y: y.flip(0)),
    ("{y} is one place too far to the right", lambda y: shifted(y, 1)),
    ("{y} is one place too far to the left", lambda y: shifted(y, -1)),
    ("{y} is one row too far down", lambda y: shifted(y, 1, 0)),
    ("{y} is one row too far up", lambda y: shifted(y, -1, 0)),
    ("{y} is rolled by one place to the right", lambda y: y.roll(1, -1)),
    ("{y} is rolled by one place to the left", lambda y: y.roll(-1, -1)),
    ("{y} is sorted", lambda y: y.sort(-1).values),
    ("{y} is sorted downwards", lambda y: y.sort(-1, descending=True).values),
    ("{y} is the places that sort it, not the values", lambda y: y.argsort(-1)),
    ("{y} is summed up along its last dimension", lambda y: y.cumsum(-1)),
    ("{y} is summed up from the end along its last dimension", lambda y: y.flip(-1).cumsum(-1).flip(-1)),
    ("{y} is the differences between neighbours", lambda y: y.diff(dim=-1)),
    ("{y} is the mean of what is expected: return the values themselves", of_many(lambda y: y.mean())),
    ("{y} is the sum of what is expected: return the values themselves", of_many(lambda y: y.sum())),
    ("{y} is the mean of what is expected, everywhere", of_many(lambda y: y.mean().expand_as(y))),
    ("{y} has its mean taken off", of_many(lambda y: y - y.mean())),
    ("{y} has its mean taken off in each row", of_many(lambda y: y - y.mean(-1, keepdim=True))),
    ("{y} is whitened once more", of_many(lambda y: whitened(y))),
    ("{y} is divided by its standard deviation", of_many(lambda y: y / y.std())),
    ("{y} is divided by its sum", of_many(lambda y: y / y.sum())),
    ("each row of {y} is divided by its sum", of_many(lambda y: y / y.sum(-1, keepdim=True))),
    ("{y} is the largest of what is expected", of_many(lambda y: y.amax())),
    ("{y} is summed over its last dimension", of_many(lambda y: y.sum(-1))),
    ("{y} is averaged over its last dimension", of_many(lambda y: y.mean(-1))),
    ("{y} is summed over its rows", of_many(lambda y: y.sum(0))),
    ("{y} is averaged over its rows", of_many(lambda y: y.mean(0))),
    ("the first row of {y} stands in all rows", lambda y: row_for_all(y, 0)),
    ("the last row of {y} stands in all rows", lambda y: row_for_all(y, -1)),
    ("{y} lacks its last value", lambda y: y[..., :-1]),
    ("{y} lacks its first value", lambda y: y[..., 1:]),
    ("{y} lacks its last row", lambda y: y[:-1]),
    ("{y} lacks its first row", lambda y: y[1:]),
    ("{y} has only its first row", lambda y: y[:1]),
    ("{y} has only its first row", lambda y: y[0]),
    ("{y} has only its last row", lambda y: y[-1]),
    ("{y} has 0 in its first place", lambda y: torch.cat([0 * y[..., :1], y[..., 1:]], -1)),
    ("{y} has 0 in its last place", lambda y: torch.cat([y[..., :-1], 0 * y[..., :1]], -1)),
    ("{y} has 0 in its first row", lambda y: torch.cat([0 * y[:1], y[1:]])),
    ("{y} has 0 in its last row", lambda y: torch.cat([y[:-1], 0 * y[:1]])),
    ("{y} has a NaN taken for 0", lambda y: y.nan_to_num(0.0, math.inf, -math.inf)),
    ("{y} has infinities and NaN taken for 0", lambda y: y.nan_to_num(0.0, 0.0, 0.0)),
    ("{y} is the square divided by 2", lambda y: y * y / 2),
]
LISTED = [  # of a list of whatever
    ("{y} is in reverse", lambda y: y[::-1]),
    ("{y} is sorted", lambda y: sorted(y)),
    ("{y} is sorted downwards", lambda y: sorted(y, reverse=True)),
    ("{y} lacks its last value", lambda y: y[:-1]),
    ("{y} lacks its first value", lambda y: y[1:]),
    ("{y} has only its first value", lambda y: y[:1]),
    ("{y} is the first value alone", lambda y: y[0]),
    ("{y} is the last value alone", lambda y: y[-1]),
    ("{y} has no repetitions", lambda y: list(dict.fromkeys(y))),
    ("{y} is the number of values, not the values", len),
    ("{y} is one text, joined", lambda y: "".join(y)),
    ("{y} is one text, joined with spaces", lambda y: " ".join(y)),
    ("{y} lacks what is empty", lambda y: [one for one in y if one != ""]),
    ("{y} lacks white space", lambda y: [one for one in y if not one.isspace()]),
    ("the texts of {y} are in small letters", lambda y: [one.lower() for one in y]),
    ("the texts of {y} lack white space at their ends", lambda y: [one.strip() for one in y]),
    ("the texts of {y} are cut into characters", lambda y: [letter for one in y for letter in one]),
    ("the parts of {y} are read backwards", lambda y: [one[::-1] for one in y]),
    ("{y} has one value too many at its end, the last one again", lambda y: [*y, y[-1]]),
]


# ----------------------------------------------------------------------------------------- a result with an argument

COMBINED = [
    ("{x} is added to what is expected", lambda y, x: y + x),
    ("{x} is taken off what is expected", lambda y, x: y - x),
    ("what is expected is multiplied by {x}", lambda y, x: y * x),
    ("what is expected is divided by {x}", lambda y, x: y / x),
    ("what comes back is 0 where {x} is 0 or False", lambda y, x: torch.where(x != 0, y, torch.zeros_like(y))),
]


FACTORS = [
    (
        "{y} is {n} times what is expected: a sum where a mean is wanted, or a division is missing",
        "times",
        lambda n: n,
    ),
    (
        "{y} is what is expected divided by {n}: a mean where a sum is wanted, or one division too many",
        "over",
        lambda n: 1 / n,
    ),
    ("{y} is the root of {n} times what is expected", "root", lambda n: n**0.5),
    ("{y} is what is expected divided by the root of {n}", "by root", lambda n: n**-0.5),
    ("{y} is divided by n where n - 1 is wanted, with n {n}", "n - 1", lambda n: (n - 1) / n),
    ("{y} is divided by n - 1 where n is wanted, with n {n}", "n", lambda n: n / (n - 1)),
    ("{y} is divided by n + 1 where n is wanted, with n {n}", "n + 1", lambda n: n / (n + 1)),
    ("{y} is divided by n where n - 1 is wanted, under a root, with n {n}", "root n - 1", lambda n: ((n - 1) / n) ** 0.5),
    ("{y} is divided by n - 1 where n is wanted, under a root, with n {n}", "root n", lambda n: (n / (n - 1)) ** 0.5),
]


def sizes(given):
    """The numbers that a result may be multiplied with by mistake: {in words: a function of the arguments}."""
    found = {}
    for name, value in given.items():
        if isinstance(value, torch.Tensor) and value.dim():
            names = (
                ["the number of rows of", "the number of columns of"]
                if value.dim() == 2
                else ["the size of the first dimension of"]
            )
            if value.dim() == 1:
                names = ["the length of"]
            for dim, words in enumerate(names):
                found[f"{words} {name}"] = lambda given, name=name, dim=dim: given[name].shape[dim]
            if value.dim() > 2:
                found[f"the size of the last dimension of {name}"] = lambda given, name=name: given[name].shape[-1]
                found[f"the size of the second dimension of {name}"] = lambda given, name=name: given[name].shape[1]
            if value.dim() > 1:
                found[f"the number of values of {name}"] = lambda given, name=name: given[name].numel()
            if value.dtype == torch.bool:
                found[f"the number of True in {name}"] = lambda given, name=name: given[name].sum()
                found[f"the share of True in {name}"] = lambda given, name=name: given[name].float().mean()
                found[f"the number of True in the row of {name}"] = lambda given, name=name: given[name].sum(-1)
                found[f"the share of True in the row of {name}"] = lambda given, name=name: given[name].float().mean(-1)
        elif isinstance(value, (list, tuple, str)):
            found[f"the length of {name}"] = lambda given, name=name: len(given[name])
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[name] = lambda given, name=name: given[name]
    return found
