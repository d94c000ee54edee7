"""Comparing outputs, which are plain data (plain.py), and saying how they differ."""

import math
import re

import torch

from rlhf_lib.exercises.plain import described, is_record

WIDTH = 160  # characters of one value in a message
PLACES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def equal(a, b, tolerance):
    """Whether two outputs are the same: numbers and tensors to within `tolerance`, a number like a tensor without dimensions.

    Whole numbers are the same when they are equal, whole numbers and floats are compared as floats, and True is not 1.
    """
    if is_record(a) or is_record(b):
        return is_record(a) and is_record(b) and equal_records(a, b, tolerance)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(equal(*pair, tolerance) for pair in zip(a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key], tolerance) for key in a)
    if is_number(a) and is_number(b):
        return equal_numbers(a, b, tolerance)
    return type(a) is type(b) and isinstance(a, (str, type(None))) and a == b


def alike(output, mistaken, tolerance):
    """Whether an output is a mistake's. Two exceptions are when they say the same, whatever the numbers in it."""
    if is_record(output, "raised") and is_record(mistaken, "raised"):
        says = [re.sub(r"\d+", "0", one["message"]) + str(bool(one["returned"])) for one in (output, mistaken)]
        return output["kind"] == mistaken["kind"] and says[0] == says[1]
    return equal(output, mistaken, tolerance)


def equal_records(a, b, tolerance):
    if is_record(a, "raised") and is_record(b, "raised"):
        return a["kind"] == b["kind"]
    if is_record(a, "late") or is_record(b, "late"):
        return False  # nobody knows what would have come
    return a.keys() == b.keys() and all(equal(a[key], b[key], tolerance) for key in a)


def equal_numbers(a, b, tolerance):
    if isinstance(a, int) and isinstance(b, int):  # of any size
        return a == b and isinstance(a, bool) == isinstance(b, bool)
    a, b = as_tensor(a), as_tensor(b)
    if a.shape != b.shape or (kind(a) != kind(b) and {kind(a), kind(b)} & {"bool", "complex"}):
        return False
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if kind(a) == kind(b) != "float":
        return torch.equal(a.to(b.dtype), b) if a.dtype == b.dtype else torch.equal(a.long(), b.long())
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def same(a, b):
    """Whether two plain values are the very same: types, shapes, dtypes and values, NaN like NaN."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
    if type(a) is not type(b):
        return False
    if isinstance(a, (int, str)):
        return a == b
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return a == b or (a != a and b != b)


def is_number(value):
    return isinstance(value, (bool, int, float, torch.Tensor))


def as_tensor(value):
    """A number or tensor as a tensor; a whole number beyond 64 bits as a float."""
    if isinstance(value, torch.Tensor):
        return value
    if type(value) is int and not -(2**63) <= value < 2**63:
        value = math.inf * (1 if value > 0 else -1) if abs(value) > 1e300 else float(value)
    return torch.tensor(value, dtype=torch.float64 if type(value) is float else None)


def kind(tensor):
    """ "bool", "whole", "float" or "complex"."""
    if tensor.dtype == torch.bool:
        return "bool"
    return "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "whole"


# ----------------------------------------------------------------------------------------- in words


def difference(got, expected, tolerance, what="it returned", should="it should return"):
    """In one sentence without its full stop, how an output differs from the expected one, at the first place where it does.

    Args:
        what, should: how the sentence about a whole value begins, which is another one inside a list or dict.
    """
    if is_record(got):
        return difference_of_record(got, expected, what, should)
    if is_record(expected, "raised"):
        return f"it should raise {expected['kind']}; {what} {described(got)}"
    if got is None:
        if what == "it returned":
            return "it returned None; end every way through it with a return"
        return f"{what} None, {should} {described(expected)}"
    if is_number(got) and is_number(expected):
        return difference_of_numbers(as_tensor(got), as_tensor(expected), tolerance)
    if isinstance(got, str) and isinstance(expected, str):
        return difference_of_texts(got, expected)
    if isinstance(got, dict) and isinstance(expected, dict):
        return difference_of_dicts(got, expected, tolerance)
    if isinstance(got, (list, tuple)) and isinstance(expected, (list, tuple)):
        return difference_of_lists(got, expected, tolerance, what, should)
    return f"{what} {described(got)}, {should} {described(expected)}"


def difference_of_record(got, expected, what, should):
    if is_record(got, "raised"):
        if got["kind"] == "Unfit":
            return got["message"]
        said = f"{got['kind']}: {got['message']}" if got.get("message") else got["kind"]
        if not got.get("returned"):
            return f"it raised {said}"
        if "does not require grad" in str(got["message"]):
            return f"it returned {got['returned']} without a gradient: .detach(), .item(), float() or torch.no_grad() cut it off"
        if re.search("'(float|int)' object has no attribute 'backward'", str(got["message"])):
            return f"it returned {got['returned']}, and a plain number has no gradient: .item() or float() cuts it off"
        return f"it returned {got['returned']}, which cannot be used as the card says ({said})"
    if is_record(got, "left on"):
        return (
            f"the values are right, but {got['what']} is {got['value']} after the call, for every later cell: leave it as it was"
        )
    if is_record(got, "changed"):
        return f"it changed its argument {got['name']} {got['how'] or 'in place; make a new tensor instead'}"
    if is_record(got, "kept"):
        return (
            "called once more with the same arguments, it does something else: it keeps something from one call to the next "
            "(in a default argument, or outside the function), or draws random numbers that no seed decides"
        )
    if is_record(got, "late"):
        return f"it was stopped after {got['seconds']:g} seconds: is there a loop that never ends?"
    if is_record(got, "odd"):
        return f"{what} {got['what']}, {should} {described(expected)}"
    return "it is not written yet"


def difference_of_numbers(got, expected, tolerance):
    if got.shape != expected.shape:
        return f"the shape is {tuple(got.shape)}, it should be {tuple(expected.shape)}"
    if kind(got) != kind(expected) and {kind(got), kind(expected)} & {"bool", "complex"}:
        return f"the values are {got.dtype}, they should be {expected.dtype}"
    if got.is_complex():
        got, expected = torch.view_as_real(got), torch.view_as_real(expected)
    a, b = got.double(), expected.double()
    for odd, word in ((a.isnan() & ~b.isnan(), "a NaN"), (a.isinf() & ~b.isinf(), "an infinity")):
        if odd.any() and not (word == "an infinity" and b.isinf().any()):  # where some belong, a place is said below
            return f"there is an infinity or a NaN in what came out: {word}{first_place(odd)}"
    if got.numel() == 1:
        came, wanted = one(got.item()), one(expected.item())
        came, wanted = (came, wanted) if came != wanted else (repr(got.item()), repr(expected.item()))
        return f"{came} came out, {wanted} was expected"
    if (odd := ~(a.isfinite() & b.isfinite()) & (a != b) & ~(a.isnan() & b.isnan())).any():
        return f"{one(a[odd][0].item())} came out{first_place(odd)}, where {one(b[odd][0].item())} was expected"
    gap = torch.where(a == b, 0.0, (a - b).abs())
    off = off_at(a, b, tolerance)
    if kind(got) == "bool":
        return f"{int(off.sum())} of {off.numel()} values are wrong, the first{first_place(off)}"
    if kind(got) == kind(expected) == "whole":  # numbers of tokens, of rows, ...: how far they are apart says nothing
        off = got != expected  # of any size
        return f"{int(off.sum())} of {off.numel()} values are off, the first{first_place(off)}"
    return (
        f"{int(off.sum())} of {off.numel()} values are off, by up to {gap[off].max():.3g}" if off.any() else "the values are off"
    )


def off_at(got, expected, tolerance):
    """Where two tensors of float64 differ by more than `tolerance`, relatively above 1; equal infinities and two NaN do not."""
    near = expected.isfinite() & ((got - expected).abs() <= tolerance * (1 + expected.abs()))
    return ~(near | (got == expected) | (got.isnan() & expected.isnan()))


def first_place(off):
    """In words, the first place of a tensor that is True in `off`; nothing for a tensor of one value."""
    if off.numel() <= 1:
        return ""
    place = off.nonzero()[0].tolist()
    return f" at place {place[0] if len(place) == 1 else tuple(place)}"


def difference_of_texts(got, expected):
    place = next((i for i, pair in enumerate(zip(got, expected)) if pair[0] != pair[1]), min(len(got), len(expected)))
    if place == len(got):
        return f"the text ends too early: {shown(expected[place:], 60)} is missing at its end"
    if place == len(expected):
        return f"the text goes on too long: {shown(got[place:], 60)} is too much at its end"
    start = max(0, place - 10)
    return (
        f"the texts differ from place {place} on: {shown(got[start : place + 20], 60)} came out, "
        f"{shown(expected[start : place + 20], 60)} was expected"
    )


def difference_of_dicts(got, expected, tolerance):
    missing, extra = [key for key in expected if key not in got], [key for key in got if key not in expected]
    if missing and extra:
        return f"the key {shown(missing[0], 60)} is missing; there is {shown(extra[0], 60)} instead"
    if missing or extra:
        keys = ", ".join(shown(key, 40) for key in (missing or extra)[:3])
        return f"keys are missing: {keys}" if missing else f"there are keys that should not be there: {keys}"
    key = next(key for key in expected if not equal(got[key], expected[key], tolerance))
    return f"value of {shown(key, 60)} is wrong: {difference(got[key], expected[key], tolerance, 'it is', 'it should be')}"


def difference_of_lists(got, expected, tolerance, what, should):
    if len(got) != len(expected):
        if isinstance(expected, list):
            return f"{what} a list with {len(got)} value{'s' * (len(got) != 1)}, it should have {len(expected)}"
        wanted = described(expected) if len(expected) == 2 else len(expected)
        return f"{what} {len(got)} value{'s' * (len(got) != 1)}, {should} {wanted}"
    wrong = (i for i, pair in enumerate(zip(got, expected)) if not equal(*pair, tolerance))
    place = next(wrong)
    inner = difference(got[place], expected[place], tolerance, "it is", "it should be")
    if isinstance(expected, tuple) and len(expected) <= len(PLACES):
        whole = "the pair" if len(expected) == 2 else f"{len(expected)} values"
        if not (more := [*wrong]):
            return f"the {PLACES[place]} of {whole} is wrong: {inner}"
        which = f"the {', '.join(PLACES[one] for one in [place, *more[:-1]])} and {PLACES[more[-1]]}"
        which = ("both" if len(expected) == 2 else "all") if len(more) + 1 == len(expected) else which
        return f"{which} of {whole} are wrong; the {PLACES[place]}: {inner}"
    if place >= len(PLACES):
        return f"value {place + 1} of {len(got)} is wrong: {inner}"
    return f"the {PLACES[place]} value is wrong: {inner}"


# ----------------------------------------------------------------------------------------- values as text


def one(number):
    """A number as text, a float to five digits."""
    if not isinstance(number, float):
        return str(number)
    text = f"{number + 0.0:.5g}"  # 0.0 for -0.0, which is the same
    return f"{text}.0" if text.lstrip("-").isdigit() else text


def shown(value, width=WIDTH):
    """A value as text, at most about `width` characters of it: a tensor with its numbers, and with its shape if they are many."""
    text = written(value, 4 * width)
    if len(text) <= width:
        return text
    shape = f"a tensor of shape {tuple(value.shape)}: " if isinstance(value, torch.Tensor) else ""
    return f"{shape}{text[: width - len(shape)]} ..."


def like(got, expected):
    """`got` with tuples where `expected` has them, so that the same is shown alike: plain data has lists alone."""
    if isinstance(got, list) and isinstance(expected, (list, tuple)):
        rest = [*expected[-1:], None][:1] * (len(got) - len(expected))
        return type(expected)(like(*pair) for pair in zip(got, [*expected, *rest]))
    if isinstance(got, dict) and isinstance(expected, dict) and not is_record(got):
        return {key: like(one, expected.get(key)) for key, one in got.items()}
    return got


def written(value, room):
    """A value as text that is cut off once it is longer than `room`."""
    if is_record(value):
        return value.get("what", value.get("kind", "nothing"))
    if isinstance(value, torch.Tensor):
        if not value.dim():
            return one(value.item())
        value = value.detach()
        return listed([written(one, room) for one in (value if value.dim() else [value])[: max(1, room // 3)]], "[]")
    if isinstance(value, (list, tuple)):
        brackets = "[]" if isinstance(value, list) else "()" if len(value) != 1 else ("(", ",)")
        return listed([written(one, room) for one in value[: max(1, room // 3)]], brackets)
    if isinstance(value, dict):
        return listed([f"{written(key, room)}: {written(one, room)}" for key, one in list(value.items())[:room]], "{}")
    if isinstance(value, float):
        return one(value)
    if isinstance(value, int) and value.bit_length() > 10_000:
        return described(value)
    return repr(value)[: room + 1]


def listed(parts, brackets):
    return brackets[0] + ", ".join(parts) + brackets[1]
