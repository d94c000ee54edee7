"""Plain data: what a learner's function returns, made into something that is compared, saved, and read in another process.

Tensors on the CPU, dense and detached; Python's numbers, str, None; lists (tuples become lists) and dicts of these. Whatever
else comes back is a *record* that says what it was. A record is a dict with the key RECORD, which no answer can have:
`torch.load` reads it with `weights_only=True`, and JSON carries it.
"""

import collections
import inspect
import numbers

import numpy as np
import torch

RECORD = "rlhf_lib.exercises: no answer"
DEEP = 20  # how far lists and dicts may be nested
MANY = 1_000_000  # how many values an answer may have outside tensors
LARGE = 100_000_000  # how many numbers a tensor may have
SIMPLE = {type(None), bool, int, float, str}
COMMON = {torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64}  # the types of nearly all tensors


class Unfit(Exception):
    """Raised by an exercise's `call`: what is wrong with what the function returned, in a sentence that stands by itself."""


def as_int64(numbers):
    """Nothing. Raises TypeError where whole numbers have fewer bits than 64."""
    if numbers.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        raise TypeError(f"these are {numbers.dtype}, not torch.int64")


def raised(kind, message="", returned=""):
    """Stands for the output of a function that raised. An oracle returns it where to raise is right.

    Args:
        kind: the name of the exception's class.
        message: what it said.
        returned: in words, what the function had returned already, where what it returned then could not be used.
    """
    return {RECORD: "raised", "kind": kind, "message": message, "returned": returned}


def changed(name, how=""):
    """Stands for the output of a function that changed its argument `name` in place; `how`, in words."""
    return {RECORD: "changed", "name": name, "how": how}


def left_on(what, value):
    """Stands for the output of a function that was right, but left a setting of torch at another `value`; both in words."""
    return {RECORD: "left on", "what": what, "value": value}


def kept():
    """Stands for the output of a function that made something else of the same arguments when it was called once more."""
    return {RECORD: "kept"}


def unwritten():
    """Stands for the output of an exercise's stub."""
    return {RECORD: "unwritten"}


def unlike_card(how):
    """Stands for the output of a function whose signature is not the card's; `how`, in a sentence."""
    return {RECORD: "unlike card", "how": how}


def late(seconds):
    """Stands for the output of a function that was stopped after `seconds`."""
    return {RECORD: "late", "seconds": seconds}


def odd(what, value=None):
    """Stands for a value that is not plain data: in words, and, where there are some, the values in it as plain data."""
    return {RECORD: "odd", "what": what, "value": value}


def is_record(value, what=None):
    """Whether `value` stands for something that is no answer: of the sort `what` ("raised", "changed", ...), or of any sort."""
    return type(value) is dict and RECORD in value and (what is None or value[RECORD] == what)


def plain(value, trusted=False, tuples=False):
    """`value` as plain data.

    Args:
        trusted: records in it are taken as they are; otherwise, in what a learner returns, a dict that looks like one is odd.
        tuples: tuples stay tuples, to say of a pair that it is one.
    """
    count = 0

    def walk(value, depth):
        nonlocal count
        if type(value) in SIMPLE:
            return value
        kind = next((kind for kind in (dict, list, tuple) if isinstance(value, kind)), None)
        if depth + bool(kind) > DEEP:
            return odd(f"lists or dicts nested more than {DEEP} deep, or one that contains itself")
        if isinstance(value, torch.Tensor):
            return plain_tensor(value)
        if isinstance(value, np.generic):
            return walk(value.item(), depth + 1)
        if isinstance(value, (int, float, str)):  # a class made from one, such as an IntEnum
            own = next(own for own in (int.__int__, float.__float__, str.__str__) if isinstance(value, own.__objclass__))
            return own(value)  # whatever the class makes of int(value) or str(value)
        if kind:
            count += kind.__len__(value)
            if count > MANY:
                return odd("too many values to look at")
        if kind is dict:
            if RECORD in value and not trusted:
                return odd("a dict with a key of the checks")
            keys = [walk_key(key) for key in dict.keys(value)]
            if any(is_record(key) for key in keys):
                return odd(f"a dict with keys such as {next(key for key in keys if is_record(key))['what']}")
            return dict(zip(keys, [walk(one, depth + 1) for one in dict.values(value)]))
        if kind:
            inside = [one if type(one) in SIMPLE else walk(one, depth + 1) for one in kind.__iter__(value)]
            return tuple(inside) if tuples and kind is tuple else inside
        if isinstance(value, np.ndarray):
            inside = plain_tensor(torch.from_numpy(np.ascontiguousarray(value))) if value.dtype.kind in "biuf" else None
            return odd("a NumPy array", inside)
        if isinstance(value, (set, frozenset, range, collections.deque)) or type(value).__name__ in ("dict_keys", "dict_values"):
            some = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else list(value)
            return odd(described(value), walk(some, depth + 1))
        return odd(described(value))

    def walk_key(key):
        if isinstance(key, tuple):
            keys = [walk_key(one) for one in tuple.__iter__(key)]
            return odd("a tuple of odd things") if any(is_record(one) for one in keys) else tuple(keys)
        if key is None or isinstance(key, (bool, int, float, str, np.generic)):
            return walk(key, DEEP - 1)
        return odd(described(key))

    try:
        return walk(value, 0)
    except Exception as error:  # objects may have a strange `__iter__`, `__len__` or `__class__`
        return odd(f"{described(value)}, which cannot be read: {type(error).__name__}")


def plain_tensor(value):
    """A tensor's values on the CPU, dense and detached; a record where it has none, or too many."""
    try:
        if is_common(value):
            return torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
        if value.is_meta:
            return odd("a tensor on the device meta, which has no values")
        if value.is_nested:
            return odd("a nested tensor", [plain_tensor(one) for one in value.unbind()])
        if value.numel() > LARGE:
            return odd(f"a tensor of shape {tuple(value.shape)}, which is far too large")
        with torch.no_grad():
            value = value.detach()
            value = value.dequantize() if value.is_quantized else value
            value = value.to_dense() if value.layout != torch.strided else value
            value = value.to("cpu").as_subclass(torch.Tensor)
            out = torch.empty(value.shape, dtype=value.dtype).copy_(value)  # resolves what is lazily conjugated or negated
            out.is_complex() or out.double()  # else a dtype without values, such as bits8
            return out
    except Exception as error:
        return odd(f"a tensor ({type(value).__name__}) that cannot be read: {type(error).__name__}")


def is_common(value):
    """Whether a tensor is one of the many whose values are simply copied."""
    kind = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided and value.dtype in COMMON
    return kind and value.is_cpu and not value.is_nested and value.numel() <= LARGE


def described(value):
    """In a few words, what sort of thing a value is."""
    try:
        return describe(value)
    except Exception:
        return f"a {type(value).__name__}"


def describe(value):
    kind = type(value)
    if value is None:
        return "None"
    if kind is bool:
        return str(value)
    if is_record(value, "odd"):
        return value["what"]
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}" + ("" if value.is_floating_point() else f" and {value.dtype}")
    if isinstance(value, (tuple, list)):
        name = "a pair" if isinstance(value, tuple) and len(value) == 2 else f"a {kind.__name__} of {len(value)}"
        return f"an empty {kind.__name__}" if not len(value) else name
    if inspect.isgenerator(value) or kind.__name__ == "map":
        return f"a {kind.__name__} (put list(...) around it)"
    if inspect.isroutine(value):
        return "a function: are the brackets of a call missing?"
    if inspect.isclass(value):
        return f"the class {value.__name__}: are the brackets of a call missing?"
    if inspect.iscoroutine(value):
        return "a coroutine (write def without async)"
    if hasattr(kind, "__next__"):
        return f"an iterator ({kind.__name__}: put list(...) around it)"
    if isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real):
        return "a complex number"
    if kind is int and value.bit_length() > 10_000:
        return "a whole number of more than 3000 digits"  # Python refuses to write out much longer ones
    if kind in (int, float):
        return f"the number {value!r}"[:60]
    return f"{'an' if kind.__name__[:1] in 'aeiouAEIOU' else 'a'} {kind.__name__}"
