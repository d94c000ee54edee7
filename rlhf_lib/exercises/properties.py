"""On which inputs an answer is wrong: the properties of arguments that separate them from those on which it is right."""

import itertools

import torch


def of_tensor(name, x):
    if x.dtype == torch.bool:
        yield f"{name} is False somewhere", not bool(x.all())
        yield f"{name} is True somewhere", bool(x.any())
        if x.dim() > 1:
            yield f"a row of {name} is False everywhere", not bool(x.flatten(0, -2).any(-1).all())
            yield f"a row of {name} begins with False", not bool(x[..., :1].all())
            yield f"a row of {name} ends with False", not bool(x[..., -1:].all())
    else:
        yield f"there is a negative value in {name}", bool((x < 0).any())
        yield f"there is a 0 in {name}", bool((x == 0).any())
        yield f"there are equal values in {name}", len(x.unique()) < x.numel()
        if x.dim() > 1:
            rows = x.flatten(0, -2)
            yield f"there are equal values in a row of {name}", any(len(row.unique()) < len(row) for row in rows)
        if x.numel():
            yield f"all values of {name} are equal", bool((x == x.flatten()[0]).all())
        if x.is_floating_point():
            yield f"there is an infinity or a NaN in {name}", not bool(x.isfinite().all())
            yield f"there are values above 1 in {name}", bool((x > 1).any())
            yield f"there are large values (above 50) in {name}", bool((x.abs() > 50).any())
    for dim, words in enumerate(((), ("value",), ("row", "column"))[x.dim()] if x.dim() < 3 else ()):
        yield f"{name} has more than one {words}", x.shape[dim] > 1
    yield f"{name} is empty", x.numel() == 0


def of_number(name, x):
    if isinstance(x, bool):
        yield f"{name} is True", x
        return
    yield f"{name} is 0", x == 0
    yield f"{name} is not 1", x != 1
    yield f"{name} is negative", x < 0
    yield f"{name} is above 1", x > 1
    if isinstance(x, float):
        yield f"{name} is no whole number", x != round(x) if abs(x) < 1e15 else False


def of_text(name, x):
    yield f"{name} is empty", not x
    yield f"{name} has more than one character", len(x) > 1
    yield f"there is a capital letter in {name}", x != x.lower()
    yield f"there is a letter that is not ASCII in {name}", not x.isascii()
    yield f"there is a digit in {name}", any(one.isdigit() for one in x)
    yield f"there is a line break in {name}", "\n" in x
    yield (
        f"there are two spaces or line breaks in a row in {name}",
        any(a.isspace() and b.isspace() for a, b in itertools.pairwise(x)),
    )
    yield f"{name} begins or ends with white space", x != x.strip()
    yield f"there is punctuation in {name}", any(not one.isalnum() and not one.isspace() for one in x)
    yield f"there is an apostrophe in {name}", "'" in x
    yield f"there is a hyphen in {name}", "-" in x
    yield f"a character stands twice in a row in {name}", any(a == b for a, b in itertools.pairwise(x))


def of_list(name, x):
    yield f"{name} is empty", not x
    yield f"{name} has more than one value", len(x) > 1
    yield f"the same stands twice in {name}", len({repr(one) for one in x}) < len(x)
    yield f"the same stands twice in a row in {name}", any(repr(a) == repr(b) for a, b in itertools.pairwise(x))
    if all(isinstance(one, str) for one in x) and x:
        texts = [dict(of_text(name, one)) for one in x]
        yield from ((words, any(text[words] for text in texts)) for words in texts[0] if not words.startswith(name))
        yield f"a text in {name} is empty", not all(x)
        yield f"all texts in {name} are equal", len(set(x)) == 1 < len(x)
    if all(isinstance(one, (int, float)) for one in x) and x:
        yield f"there is a negative value in {name}", any(one < 0 for one in x)
        yield f"there is a 0 in {name}", any(one == 0 for one in x)
        yield f"all values of {name} are equal", len(set(x)) == 1
    if all(isinstance(one, (list, tuple)) or (isinstance(one, torch.Tensor) and one.dim()) for one in x) and x:
        yield f"the parts of {name} have different lengths", len({len(one) for one in x}) > 1
        yield f"a part of {name} is empty", any(not len(one) for one in x)


def length_of(x):
    if isinstance(x, torch.Tensor):
        return x.shape[-1] if x.dim() else None
    return len(x) if isinstance(x, (list, tuple, str)) else None


def of_two(a, x, b, y):
    """Of two arguments: a number and a size, two numbers, two sizes."""
    n, m = length_of(x), length_of(y)
    if isinstance(x, int) and not isinstance(x, bool) and m is not None and x > 0:
        yield f"{a} is larger than the length of {b}", x > m
        yield f"{a} is as large as the length of {b}", x == m
        yield f"{a} does not divide the length of {b}", m % x != 0
        if isinstance(y, torch.Tensor) and y.dim() > 1:
            yield f"{a} does not divide the number of rows of {b}", y.shape[0] % x != 0
            yield f"{a} is larger than the number of rows of {b}", x > y.shape[0]
    if isinstance(x, (int, float)) and isinstance(y, (int, float)) and a < b:
        yield f"{a} and {b} are different", x != y
        yield f"{a} is larger than {b}", x > y
        yield f"{a} is smaller than {b}", x < y
        if isinstance(x, int) and isinstance(y, int) and x > 0 and y > 0:
            yield f"{a} does not divide {b}", y % x != 0
            yield f"{b} does not divide {a}", x % y != 0
    if n is not None and m is not None and a < b:
        yield f"{a} and {b} have different lengths", n != m
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and x.shape == y.shape and x.dtype == y.dtype:
            yield f"{a} and {b} are equal somewhere", bool((x == y).any())


def properties(arguments):
    """All properties of an input: {in words: whether it has it}."""
    found = {}
    for name, x in arguments.items():
        if isinstance(x, torch.Tensor):
            found |= of_tensor(name, x)
        elif isinstance(x, (int, float)):
            found |= of_number(name, x)
        elif isinstance(x, str):
            found |= of_text(name, x)
        elif isinstance(x, (list, tuple)):
            found |= of_list(name, x)
    for (a, x), (b, y) in itertools.permutations(arguments.items(), 2):
        found |= of_two(a, x, b, y)
    return found


def separating(inputs, wrong):
    """The properties that just the inputs at `wrong` have: a list of sentences."""
    have = [properties(arguments) for arguments in inputs]
    for name, value in inputs[0].items():
        if type(value) in (int, float):
            for one, arguments in zip(have, inputs):
                one[f"{name} is not {value!r}, as it is in the first example"] = arguments.get(name) != value
    words = [word for word in have[0] if all(word in one for one in have)]
    return [word for word in words if all(one[word] == (place in wrong) for place, one in enumerate(have))]


def far_longer(inputs, wrong):
    """A list of one sentence where an argument of the inputs at `wrong` is at least ten times as long as in any other input
    (as a limit that is written into an answer shows); else an empty list."""
    for name in inputs[0]:
        sizes = [size_of(arguments.get(name)) for arguments in inputs]
        if None in sizes:
            continue
        least, most = min(sizes[place] for place in wrong), max(size for place, size in enumerate(sizes) if place not in wrong)
        if least >= max(10 * most, 200):
            return [f"{name} is by far longer than in the others ({least} values and more, {most} at most)"]
    return []


def size_of(x):
    if isinstance(x, torch.Tensor):
        return x.numel()
    return len(x) if isinstance(x, (list, tuple, str)) else None
