"""Is a learner's wrong answer the right one after some small change: of an argument, of the result, of both in one table's row?

Every candidate is a wrong function made from the exercise's oracle, and is called as the learner's function is. It is named only
if its outputs are the learner's on all inputs.
"""

import copy
import inspect
import itertools
import re
from typing import NamedTuple

import torch

from rlhf_lib.exercises import changes, results
from rlhf_lib.exercises.compare import as_tensor
from rlhf_lib.exercises.frame import argument_names, message
from rlhf_lib.exercises.plain import plain, raised
from rlhf_lib.exercises.surroundings import limited

EACH = 2.0  # seconds for one call, a hundred times what most need: a change of a count may make it long


class Candidate(NamedTuple):
    """A sentence for the learner, and the function that makes the mistake.

    `rank`: the simpler, the lower. `family`: candidates of one family say nearly the same, so that any of them may be named.
    `open`: where its result is a NaN, whatever a learner has there counts as the same.
    """

    rank: int
    family: str
    sentence: str
    function: object
    open: bool = False


def answer_of(exercise, function, arguments):
    """What one of our functions makes of one input; the surroundings are settled already."""
    torch.default_generator.manual_seed(0)
    call = lambda: plain(exercise.run(function, **copy.deepcopy(arguments)), trusted=True)  # noqa: E731
    output, error = limited(call, EACH)
    return output if error is None else raised(type(error).__name__, message(error))


class Call(NamedTuple):
    """A call of an exercise's function: the arguments by name, and the result."""

    given: dict
    result: object


def first_call(exercise, arguments):
    """The first Call of the oracle that an input leads to; None if there is none."""
    calls, names = [], argument_names(exercise.right)

    def recorded(*given, **named):
        before = {**dict(zip(names, copy.copy(given))), **named}
        calls.append(Call(before, exercise.right(*given, **named)))
        return calls[-1].result

    answer_of(exercise, recorded, arguments)
    return calls[0] if calls else None


def candidates(exercise, inputs, wrong):
    """All Candidates of an exercise, of which the outputs on inputs[wrong[0]] differ from the right ones or not."""
    if inspect.isclass(exercise.right) or not callable(exercise.right):
        return
    call, example = first_call(exercise, inputs[wrong[0]]), first_call(exercise, inputs[0])
    if call is None:
        return
    nothing = lambda *given, **named: exercise.right(*copy.deepcopy(given), **copy.deepcopy(named))  # noqa: E731
    sentence = "what the call should change, or send a gradient to, is as if nothing had been done (a copy, detach or .item()?)"
    yield Candidate(0, "nothing", sentence, nothing)
    yield from of_result(exercise, call)
    yield from of_arguments(exercise, call, example)
    yield from of_factors(exercise, call)
    yield from of_table(exercise)
    yield from of_options(exercise)


# ----------------------------------------------------------------------------------------- arguments


def of_arguments(exercise, call, example):
    given = call.given
    for name, value in given.items():
        written = example.given.get(name) if example is not None and is_plain(value) else None
        for place, (sentence, change) in enumerate(changes.changes_of(value, written)):
            rank, text = 3 if "whatever is given" in sentence else rank_of(place), sentence.replace("{x}", name)
            yield Candidate(rank, text.split(":")[0], text, with_changed(exercise.right, {name: change}))
    for names in groups(given):
        for place, (sentence, change) in enumerate(changes.changes_of(given[names[0]])):
            text = re.sub(r"(^|where )\{x\} is", r"\1{x} are", sentence).replace("{x} goes", "{x} go")
            text = text.replace("{x}", " and ".join(names))
            if " kept between" not in text:  # it would be one of what is made of both, as likely
                yield Candidate(
                    rank_of(place), text.split(":")[0], text, with_changed(exercise.right, dict.fromkeys(names, change))
                )
    for sentence, dim, change in changes.TOGETHER:
        for size in {changes.size_of(value, dim) for value in given.values()} - {None, 0, 1}:
            names = [name for name, value in given.items() if changes.size_of(value, dim) == size]
            if len(names) == 1 and isinstance(given[names[0]], list):
                continue  # a list by itself has no rows, and its own changes are tried above
            some = sentence if len(names) == sum(changes.size_of(value, dim) is not None for value in given.values()) else ""
            which = "" if some else f" (of {', '.join(names)})"
            yield Candidate(1, sentence, sentence + which, with_changed(exercise.right, dict.fromkeys(names, change)))
    for a, b in itertools.permutations(given, 2):
        if alike_in_kind(given[a], given[b]):
            if a < b:
                yield Candidate(1, f"{a} {b}", f"{a} and {b} are exchanged", with_others(exercise.right, {a: b, b: a}))
            yield Candidate(2, f"{a} {b}", f"{b} is used in the place of {a}", with_others(exercise.right, {a: b}))


def rank_of(place):
    """The rank of a change at a place in its table, which begins with the likely ones."""
    return 1 if place < 12 else 2


def groups(given):
    """Lists of the names of two or more arguments that are alike, tensors or lists: one mistake may be made with all of them."""
    names = [name for name, value in given.items() if isinstance(value, (torch.Tensor, list, tuple, str))]
    found = {name: [other for other in names if alike_in_kind(given[name], given[other])] for name in names}
    return [list(some) for some in dict.fromkeys(tuple(some) for some in found.values()) if len(some) > 1]


def is_plain(value):
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)


def alike_in_kind(a, b):
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype
    if callable(a) and callable(b):
        return True
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    return (numbers and isinstance(a, bool) == isinstance(b, bool)) or (type(a) is type(b) and isinstance(a, (str, list, tuple)))


def with_changed(right, by_name):
    """`right` with some of its arguments changed before."""
    return with_others(right, {}, by_name)


def with_others(right, others, by_name=None):
    """`right` with the arguments `others[name]` in the place of `name`, and arguments changed by the functions `by_name`."""
    names = argument_names(right)

    def function(*given, **named):
        values = {**dict(zip(names, given)), **named}
        new = {name: values[other] for name, other in others.items()}
        new |= {name: finite(change(values[name]), values[name]) for name, change in (by_name or {}).items()}
        given = [new.get(name, value) for name, value in zip(names, given)] + list(given[len(names) :])
        return right(*given, **{name: new.get(name, value) for name, value in named.items()})

    return function


# ----------------------------------------------------------------------------------------- results


def of_result(exercise, call):
    result, right = call.result, exercise.right
    for name in call.given:
        if type(call.given[name]) is type(result):
            yield Candidate(0, "argument", f"this is the argument {name} as it is given", returns_argument(right, name))
        if tensors_fit(call.given[name], result):
            for sentence, combine in results.COMBINED:
                text = sentence.replace("{x}", name)
                yield Candidate(2, text, text, with_argument(right, name, combine))
    if isinstance(result, tuple) and len(result) > 1:
        words = ["first", "second", "third", "fourth", "fifth"][: len(result)]
        whole = "the pair" if len(result) == 2 else f"the {len(result)} values"
        for order in itertools.permutations(range(len(result))) if len(result) <= 3 else ():
            if list(order) != sorted(order):
                yield Candidate(
                    0, "order", f"{whole} came in another order", after(right, lambda y, order=order: [y[i] for i in order])
                )
        for place, word in enumerate(words):
            yield Candidate(0, f"alone {word}", f"only the {word} of {whole} is returned", after(right, lambda y, i=place: y[i]))
            for other, second in enumerate(words):
                if place != other:
                    sentence = f"the {word} of {whole} is the {second} once more"
                    yield Candidate(1, sentence, sentence, after(right, lambda y, i=place, j=other: [*y[:i], y[j], *y[i + 1 :]]))
            yield from of_value(right, f"the {word} of {whole}", result[place], place)
        yield from of_value(right, f"each of {whole}", result, None)
    elif isinstance(result, dict):
        for key in result:
            yield from of_value(right, f"the value of {key!r}", result[key], key)
    else:
        yield from of_value(right, "what comes back", result, None)


def tensors_fit(argument, result):
    """Whether an argument can be put together with a result, value by value or row by row."""
    if not isinstance(argument, torch.Tensor) or not isinstance(result, torch.Tensor):
        return False
    return bool(argument.dim()) and argument.shape == result.shape[: argument.dim()]


def of_value(right, what, value, place):
    """Changes of one value of the result: the one at `place`, or the whole result where that is None."""
    for number, (sentence, change) in enumerate(results.RESULT):
        yield Candidate(
            (rank_of(number) if number > 7 else 0) + of_each(value, place),
            f"{what} {sentence}",
            sentence.replace("{y}", what),
            after(right, on_numbers(change), place),
        )
    if isinstance(value, list):
        for sentence, change in results.LISTED:
            yield Candidate(0, f"{what} {sentence}", sentence.replace("{y}", what), after(right, change, place))
    if isinstance(value, str):
        for sentence, change in changes.TEXT:
            yield Candidate(1, f"{what} {sentence}", sentence.replace("{x}", what), after(right, change, place))


def of_each(result, place):
    """What makes the rank of a change of all values of a tuple higher: a change of one alone that does the same is simpler."""
    return 0.5 if place is None and isinstance(result, tuple) else 0


def after(right, change, place=None):
    """`right` with a change of its result, or of the part of the result at `place`."""

    def function(*given, **named):
        result = right(*given, **named)
        if place is None:
            return change(result)
        if isinstance(result, dict):
            return {**result, place: change(result[place])}
        return tuple(change(one) if i == place else one for i, one in enumerate(result))

    return function


def on_numbers(change):
    """A change of tensors as one of tensors, numbers, lists of numbers, and tuples of these."""

    def changed(value):
        if isinstance(value, torch.Tensor):
            out = change(value)
            if out is None:
                raise ValueError
            return out
        if isinstance(value, (bool, int, float)):
            return change(as_tensor(value))
        if isinstance(value, list) and value and all(isinstance(one, (int, float)) for one in value):
            return change(torch.tensor(value)).tolist()
        if isinstance(value, tuple):
            return tuple(changed(one) for one in value)
        raise ValueError

    return changed


def finite(value, before):
    """`value`, unless it has an infinity or a NaN that was not there before: nothing that one should call an operator with."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isfinite().all() and before.isfinite().all():
        raise ValueError
    return value


def with_argument(right, name, combine):
    """`right`, whose result is put together with an argument."""
    names = argument_names(right)

    def function(*given, **named):
        argument, result = {**dict(zip(names, given)), **named}[name], right(*given, **named)
        argument = argument[(...,) + (None,) * (result.dim() - argument.dim())]
        return finite(combine(result, argument), result)

    return function


def returns_argument(right, name):
    names = argument_names(right)
    return lambda *given, **named: {**dict(zip(names, given)), **named}[name]


# ----------------------------------------------------------------------------------------- factors


def of_factors(exercise, call):
    """A result, or a part of it, that is multiplied or divided by a size of an argument, or by a number that is given."""
    parts = [("what comes back", None)]
    if isinstance(call.result, tuple) and 1 < len(call.result) <= 3:
        parts = [("each value", None), *((f"the {word} value", i) for i, word in enumerate(("first", "second", "third")))]
        parts = parts[: len(call.result) + 1]
    if isinstance(call.result, dict):
        parts = [(f"the value of {key!r}", key) for key in call.result]
    for label, size in results.sizes(call.given).items():
        for sentence, family, factor in results.FACTORS:
            for what, place in parts:
                text = sentence.replace("{n}", label).replace("{y}", what)
                rank = 2 + of_each(call.result, place)
                yield Candidate(rank, f"{what} {family}", text, scaled(exercise.right, size, factor, place))


def scaled(right, size, factor, place):
    names = argument_names(right)

    def function(*given, **named):
        n = factor(size({**dict(zip(names, given)), **named}))

        def scale(y):
            many = isinstance(n, torch.Tensor) and n.dim() and isinstance(y, torch.Tensor) and y.dim() > n.dim()
            return y * (n[..., None] if many else n)

        return after(right, on_numbers(scale), place)(*given, **named)

    return function


# ----------------------------------------------------------------------------------------- the table's mistakes


def of_table(exercise):
    """A mistake of the table with other numbers in the places where it makes NaN, as of -1e9 for -inf in a softmax."""
    for sentence, functions in exercise.mistakes.items():
        for function in functions:
            yield Candidate(2, sentence, sentence, function, open=True)


def of_options(exercise):
    """Two mistakes of the table at once, where both are options of the formula."""
    rows = [
        (sentence, function)
        for sentence, functions in exercise.mistakes.items()
        for function in functions
        if getattr(function, "func", None) is exercise.formula is not None
    ]
    for (first, one), (second, other) in itertools.combinations(rows, 2):
        if not one.keywords.keys() & other.keywords.keys():
            both = {**one.keywords, **other.keywords}
            text = f"two things at once. {first[:1].upper()}{first[1:]}; and: {second}"
            yield Candidate(3, text, text, with_options(exercise.formula, both))


def with_options(formula, options):
    return lambda *given, **named: formula(*given, **named, **options)
