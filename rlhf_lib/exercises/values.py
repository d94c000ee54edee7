"""What holds between the values that came out and those that were expected, where no change of the oracle gives them.

Each relation is a function of pairs, a list of (got, expected, arguments) for the inputs where they differ, tensors of float64 of
one shape. It returns a sentence in which "{y}" stands for the value, or "".
"""

import math

import torch

from rlhf_lib.exercises.compare import as_tensor, is_number, off_at, one

CLOSE = 1e-4  # how near a relation must be met, relatively


def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=CLOSE, atol=1e-6, equal_nan=True)


def numbers_of(value):
    """The numbers in a value, as a tensor of float64; None where it is not made of numbers."""
    if isinstance(value, bool) or not is_number(value):
        if isinstance(value, (list, tuple)) and value and all(isinstance(x, (int, float)) for x in value):
            return torch.tensor([float(x) for x in value], dtype=torch.float64)
        return None
    tensor = as_tensor(value)
    return None if tensor.is_complex() or tensor.dtype == torch.bool else tensor.double()


# ----------------------------------------------------------------------------------------- all values


def enough(pairs, fitted):
    """Whether there are so many different expected values that `fitted` numbers could not fit them by chance."""
    return len({round(x, 9) for _, expected, _ in pairs for x in expected.flatten().tolist()}) > fitted + 1


def nothing(pairs):
    if any(got.any() or not expected.any() for got, expected, _ in pairs) or not enough(pairs, 0):
        return ""
    return "{y} is 0 on all inputs"


KNOWN = [
    (100, ": percent where a share is wanted"),
    (0.01, ": a share where percent are wanted"),
    (math.log(2), ": it is multiplied by ln 2"),
    (1 / math.log(2), ": it is divided by ln 2, bits in place of nats"),
    (1 / math.log(10), ": it is divided by ln 10, a logarithm to base 10"),
    (-1, ": a sign is turned"),
]


def one_factor(pairs):
    ratios = torch.cat([(got / expected)[expected != 0] for got, expected, _ in pairs])
    if not len(ratios) or not ratios.isfinite().all() or not enough(pairs, 1) or not close(ratios, ratios[:1].expand_as(ratios)):
        return ""
    if any((got[expected == 0] != 0).any() for got, expected, _ in pairs) or abs(ratios[0] - 1) < 1e-3 or ratios[0] == 0:
        return ""
    return times(ratios[0].item())


def times(factor):
    reason = next((words for number, words in KNOWN if abs(factor / number - 1) < 1e-3), "")
    return f"{{y}} is {one(factor)} times what is expected, on all inputs{reason}"


def nearly_right(pairs):
    """Whether what is off may be rounding, in which any number can be found."""
    return all(close(got, expected) for got, expected, _ in pairs)


def one_summand(pairs):
    gaps = torch.cat([(got - expected).flatten() for got, expected, _ in pairs])
    if nearly_right(pairs) or not gaps.isfinite().all() or not enough(pairs, 1) or not close(gaps, gaps[:1].expand_as(gaps)):
        return ""
    size = one(abs(gaps[0].item()))
    return f"{{y}} is too {'large' if gaps[0] > 0 else 'small'} by {size}, on all inputs"


def a_factor_each(pairs):
    """A factor for all values of an input, another one for each input: a wrong denominator."""
    factors = []
    for got, expected, _ in pairs:
        some = expected.abs() > 1e-9
        if int(some.sum()) < 3 or len(set(expected[some].tolist())) < 3:
            continue
        ratio = (got[some] / expected[some]).median()
        if not ratio.isfinite() or ratio == 0 or not close(got, ratio * expected):
            return ""
        factors.append(ratio.item())
    if len(factors) < 2 or len(factors) < len(pairs) / 2:
        return ""
    two = two_of(factors)
    if not two:  # then it is one factor, if it is that of the small inputs too
        alike = all(close(got, factors[0] * expected) for got, expected, _ in pairs)
        return times(factors[0]) if alike and not nearly_right(pairs) else ""
    question = "is it divided by the right number, and not scaled or clipped afterwards?"
    return f"{{y}} is right up to a factor, another one for each input ({two}): {question}"


def two_of(numbers):
    """Two different ones of some numbers, as text; "" where all are the same."""
    other = next((number for number in numbers if abs(number - numbers[0]) > CLOSE * abs(numbers[0])), None)
    return "" if other is None else f"{one(numbers[0])}, {one(other)}"


def a_summand_each(pairs):
    gaps = []
    for got, expected, _ in pairs:
        if len(set(expected.flatten().tolist())) < 3:
            continue
        gap = (got - expected).flatten().median()
        if not gap.isfinite() or abs(gap) < 1e-6 or not close(got, expected + gap):  # what is less is rounding
            return ""
        gaps.append(gap.item())
    two = two_of(gaps) if len(gaps) > 1 and len(gaps) >= len(pairs) / 2 else ""
    return f"{{y}} is right up to a number that is added, another one for each input ({two})" if two else ""


def by_rows(pairs, combine, words):
    seen = 0
    for got, expected, _ in pairs:
        if got.dim() < 2 or got.shape[-1] < 3 or got.flatten(0, -2).shape[0] < 2:
            continue
        numbers = combine(got, expected).nan_to_num(0, 0, 0).median(-1, keepdim=True).values
        back = numbers * expected if words == "a factor" else numbers + expected
        if not numbers.all() or not close(got, back):
            return ""
        seen += 1
    ending = " divided by the right number?" if words == "a factor" else " taken off what it should?"
    return (
        f"each row of {{y}} is right up to {words}, another one for each row: is it{ending}"
        if seen and seen >= len(pairs) / 2
        else ""
    )


def a_factor_a_row(pairs):
    return by_rows(pairs, lambda got, expected: got / expected, "a factor")


def a_summand_a_row(pairs):
    return by_rows(pairs, lambda got, expected: got - expected, "a number that is added")


def straight_line(pairs):
    """got = a + b * expected, with the same two numbers everywhere."""
    got, expected = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    if nearly_right(pairs) or not enough(pairs, 3) or not (got.isfinite().all() and expected.isfinite().all()):
        return ""
    b = ((got - got.mean()) * (expected - expected.mean())).sum() / ((expected - expected.mean()) ** 2).sum()
    a = got.mean() - b * expected.mean()
    if abs(b) < 1e-3 or not close(got, a + b * expected):
        return ""
    return f"{{y}} is {one(b.item())} times what is expected, {'plus' if a > 0 else 'minus'} {one(abs(a.item()))}, on all inputs"


def imprecise(pairs):
    got, expected = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    if len(got) < 3 or not (got.isfinite().all() and expected.isfinite().all()):
        return ""
    error = ((got - expected).abs() / expected.abs().clamp(min=1e-3)).max().item()
    if not 0 < error < 1e-2:
        return ""
    digits = int(-math.log10(error))
    return f"{{y}} is nearly right, to about {digits} digits: something small is added, left out or rounded"


def cut_above(pairs):
    return cut(pairs, 1, "larger")


def cut_below(pairs):
    return cut(pairs, -1, "smaller")


def cut(pairs, sign, word):
    """got = min(expected, bound) for sign 1, max for -1, with one bound everywhere."""
    got, expected = (sign * torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    off = off_at(got, expected, CLOSE)
    if len(set(expected[off].tolist())) < 3 or len(set(expected[~off].tolist())) < 3 or not got[off].isfinite().all():
        return ""
    bound = got[off][0]
    if not close(got[off], bound.expand_as(got[off])) or (expected[off] < bound).any() or (expected[~off] > bound + 1e-6).any():
        return ""
    return f"{{y}} is {one((sign * bound).item())} wherever what is expected is {word}: it is cut off there"


def one_for_another(pairs):
    """One number stands wherever one other is expected, and all else is right."""
    got, expected = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    off = off_at(got, expected, CLOSE)
    values, wanted = set(got[off].tolist()), set(expected[off].tolist())
    if len(values) != 1 or len(wanted) != 1 or int(off.sum()) < 3 or off.all() or (expected[~off] == expected[off][0]).any():
        return ""
    return f"{{y}} is {one(values.pop())} wherever {one(wanted.pop())} is expected; the rest is right"


def other_order(pairs):
    if not all(
        got.numel() == expected.numel() and close(got.flatten().sort().values, expected.flatten().sort().values)
        for got, expected, _ in pairs
    ):
        return ""
    if not any(len(set(expected.flatten().tolist())) > 2 for _, expected, _ in pairs):
        return ""
    return "{y} has the right values, but in another order"


def off_by_one_in_places(pairs):
    got, expected = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    gap = got - expected
    if (
        (got != got.round()).any()
        or (expected != expected.round()).any()
        or (gap.abs() > 1).any()
        or len(set(gap.tolist())) != 2
        or len(gap) < 4
        or len(set(expected[gap != 0].tolist())) < 2  # one number for another, perhaps by chance
    ):
        return ""
    way = "large" if gap.max() > 0 else "small"
    return f"{{y}} is one too {way} in some places and right in the others" if 0 in gap.tolist() else ""


ALL = (
    nothing, one_factor, one_summand, one_for_another, straight_line, imprecise, cut_above, cut_below,
    a_factor_each, a_summand_each, a_factor_a_row, a_summand_a_row, other_order, off_by_one_in_places,
)  # fmt: skip


# ----------------------------------------------------------------------------------------- where they are wrong


def regions(off, expected, arguments):
    """Places that may be just those where values are wrong: {in words: a bool tensor of the shape of `off`}."""
    found = {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and value.dtype == torch.bool and value.shape == off.shape[: value.dim()]:
            mask = value.reshape(value.shape + (1,) * (off.dim() - value.dim())).expand_as(off)
            found[f"where {name} is False"], found[f"where {name} is True"] = ~mask, mask
    for dim in range(off.dim() if off.dim() < 3 else 0):
        places = torch.arange(off.shape[dim]).reshape([-1 if i == dim else 1 for i in range(off.dim())]).expand_as(off)
        word = "place" if off.dim() == 1 else ("row", "column")[dim]
        found[f"in the first {word}"], found[f"in the last {word}"] = places == 0, places == off.shape[dim] - 1
        if word != "row":
            found[f"behind the first {word}"], found[f"before the last {word}"] = places > 0, places < off.shape[dim] - 1
    if off.dim() > 1 and off.shape[-1] == off.shape[-2]:
        ones = torch.ones_like(off)
        found["above the diagonal"], found["below the diagonal"] = ones.triu(1), ones.tril(-1)
        found["on the diagonal"], found["off the diagonal"] = ones.triu() & ones.tril(), ~(ones.triu() & ones.tril())
    if expected.dtype == torch.bool:
        found["where False is expected, and never where True is"] = ~expected
        found["where True is expected, and never where False is"] = expected
    else:
        masks = [place for words, place in found.items() if words.endswith((" is False", " is True"))]
        found["where what is expected is negative"] = expected < 0
        if not any(mask.any() and torch.equal(mask, expected == 0) for mask in masks):  # then the mask says it
            found["where what is expected is 0"] = expected == 0
    return found


def place_of(pairs):
    """The places where values are wrong on all inputs, in words; "" where they are not simple.

    Args:
        pairs: a list of (expected, arguments, off) for the wrong inputs; `off` is True where values are wrong.
    """
    return simple_place(pairs) or first_row_alone(pairs)


def simple_place(pairs):
    pairs = [(off, regions(off, expected, arguments)) for expected, arguments, off in pairs if off.dim() and off.numel() > 1]
    wrong, total = sum(int(off.sum()) for off, _ in pairs), sum(off.numel() for off, _ in pairs)
    fitting = []
    for words in pairs[0][1] if pairs else ():
        if all(words in found and not (off & ~found[words]).any() for off, found in pairs):
            fitting.append((sum(int(found[words].sum()) for _, found in pairs), words))
    fitting.sort()
    if not fitting or total - fitting[0][0] < 3 or (len(fitting) > 1 and fitting[1][0] == fitting[0][0]):
        return ""
    size, words = fitting[0]
    return words if wrong >= (0.2 if "expected, and never" in words else 0.7) * size else ""


def first_row_alone(pairs):
    """The rows but the first, in words, where all of them are wrong on all inputs; "" where the first row is also special in
    that a mask hides nothing of it, which explains it as well."""
    if len(pairs) < 2 or any(off.dim() < 2 or len(off) < 2 or off[0].numel() < 2 for _, _, off in pairs):
        return ""
    if any(off[0].any() or not off[1:].flatten(1).any(1).all() for _, _, off in pairs):
        return ""
    later = torch.cat([off[1:].flatten() for _, _, off in pairs])
    masks = {name for _, arguments, off in pairs for name, value in arguments.items() if is_mask(value, off)}
    if later.float().mean() < 0.7 or not any(len(off) > 2 for _, _, off in pairs):
        return ""
    if any(all(first_row_is_full(arguments.get(name)) for _, arguments, _ in pairs) for name in masks):
        return ""
    return "behind the first row: it is right for the first row alone"


def is_mask(value, off):
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool and value.dim() > 1 and len(value) == len(off)


def first_row_is_full(mask):
    return isinstance(mask, torch.Tensor) and bool(mask[0].all()) and not mask.all()
