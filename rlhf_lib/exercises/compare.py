"""Comparing outputs, and saying how they differ."""

import math

import torch

RECORD = "rlhf_lib.exercises: no answer"  # the key of a dict that stands for what is no answer; frame.py lets no answer have it


def raised(kind, message=""):
    """Stands for the output of a function that raised. Plain data: what is right for an exercise may be to raise."""
    return {RECORD: "raised", "kind": kind, "message": message}


def changed(name):
    """Stands for the output of a function that changed its argument `name` in place."""
    return {RECORD: "changed", "name": name}


def is_record(value, what=None):
    """Whether `value` stands for something that is no answer: of the sort `what` ("raised", "changed", ...), or of any sort."""
    return isinstance(value, dict) and RECORD in value and (what is None or value[RECORD] == what)


def equal(a, b, tolerance):
    """Whether two outputs are the same: numbers and tensors to within `tolerance`, a number like a tensor without dimensions."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and type(a) is type(b) and all(equal(*pair, tolerance) for pair in zip(a, b))
    if is_record(a, "raised") and is_record(b, "raised"):
        return a["kind"] == b["kind"]
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key], tolerance) for key in a)
    if is_number(a) and is_number(b):
        a, b = torch.as_tensor(a), torch.as_tensor(b)
        if a.shape != b.shape or (a.dtype == torch.bool) != (b.dtype == torch.bool):
            return False
        return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
    return type(a) is type(b) and bool(a == b)


def is_number(value):
    return isinstance(value, (bool, int, float, torch.Tensor))


def difference(got, expected, tolerance):
    """In a few words, how an output differs from the expected one."""
    if is_record(got, "raised"):
        return f"it raised {got['kind']}: {got['message']}"
    if is_record(got, "changed"):
        return f"it changed its argument {got['name']} in place; make a new tensor instead"
    if got is None:
        return "it returned None; end it with a return"
    if is_number(got) and is_number(expected):
        got, expected = torch.as_tensor(got), torch.as_tensor(expected)
        if got.shape != expected.shape:
            return f"the shape is {tuple(got.shape)}, it should be {tuple(expected.shape)}"
        if (got.dtype == torch.bool) != (expected.dtype == torch.bool):
            return f"the values are {got.dtype}, they should be {expected.dtype}"
        if not got.double().isfinite().all() and expected.double().isfinite().all():
            return "there is an infinity or a NaN in what came out"
        gap = (got.double() - expected.double()).abs()
        off = int((gap > tolerance * (1 + expected.double().abs())).sum())
        return f"{off} of {gap.numel()} values are off, by up to {gap.max():.3g}"
    if type(got) is not type(expected):
        return f"it returned {type(got).__name__}, it should return {type(expected).__name__}"
    if isinstance(got, list) and len(got) != len(expected):
        return f"it returned {len(got)} values, it should return {len(expected)}"
    if isinstance(got, list):
        place = next(i for i, pair in enumerate(zip(got, expected)) if not equal(*pair, tolerance))
        return f"value {place} is wrong: {difference(got[place], expected[place], tolerance)}"
    return "this is not the expected answer"


def shown(value):
    """A value as text, a tensor with its numbers."""
    if isinstance(value, torch.Tensor):
        rounded = value.detach()
        if rounded.is_floating_point():
            rounded = (rounded.double() * 1e5).round() / 1e5 if rounded.isfinite().all() else rounded
        text = str(rounded.tolist()) if value.numel() <= 40 else f"a tensor of shape {tuple(value.shape)}"
        return text
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(shown(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {shown(one)}" for key, one in value.items()) + "}"
    text = repr(value)
    return text if len(text) <= 300 else text[:300] + " ..."
