"""Calling a function, a learner's or our own, and taking down what it makes of its inputs as plain data."""

import copy
import functools
import inspect
import time

import torch

from rlhf_lib.exercises.compare import equal, same
from rlhf_lib.exercises.declare import find
from rlhf_lib.exercises.plain import changed, described, is_record, kept, late, left_on, plain, raised, unwritten
from rlhf_lib.exercises.surroundings import LIMIT, SEED, TimeUp, limited, put_back_after, settled

TOTAL = 60.0  # seconds that all calls of one check may take together


def draw(name, seed=0):
    """The inputs of an exercise: a list of dicts of arguments, the smallest first, the same for the same seed.

    Raises:
        KeyError: there is no such exercise.
        RuntimeError: the exercise's own draw raised.
    """
    exercise = find(name)
    with settled():
        try:
            return list(exercise.draw_inputs(torch.Generator().manual_seed(seed)))
        except Exception as error:
            raise RuntimeError(f"the check of {exercise.number} {name} is broken: its draw raised {error!r}") from error


def answer(name, function, inputs):
    """What `function` makes of each of `inputs`: a list of plain data (plain.py), with records where it raised, was too slow, ...

    It takes at most LIMIT seconds a call, and TOTAL for all of them: what is not reached is `late`. The first of several inputs
    is asked once more at the end: if something else comes of it then, `kept` takes the place of its output.
    """
    exercise, outputs, end = find(name), [], time.monotonic() + TOTAL

    def made(arguments):
        return one_answer(exercise, function, arguments, min(LIMIT, end - time.monotonic()))

    for arguments in inputs:
        stopped = bool(outputs) and is_record(outputs[-1], "late")
        outputs.append(outputs[-1] if stopped else made(arguments))
    if len(outputs) > 1 and not is_record(outputs[-1], "late"):
        again = made(inputs[0])
        if not is_record(again, "late") and not equal(again, outputs[0], exercise.tolerance):
            outputs[0] = kept()
    return outputs


def right_answer(exercise, arguments, tuples=False):
    """The oracle's answer to one input; see `plain` for `tuples`. Raises RuntimeError when the oracle itself goes wrong."""
    return by_oracle(exercise, arguments, tuples)[0]


def by_oracle(exercise, arguments, tuples=False):
    """The oracle's answer to one input, and the names of the arguments that it changes."""
    given, watched = copy.deepcopy(arguments), Watched(exercise.right)
    with settled():
        try:
            return plain(exercise.run(watched.function, **given), trusted=True, tuples=tuples), set(watched.changes)
        except Exception as error:
            title = f"{exercise.number} {exercise.name}"
            raise RuntimeError(f"the check of {title} is broken: its own answer raised {error!r}") from error


def one_answer(exercise, function, arguments, seconds=LIMIT, trusted=False):
    """What `function` makes of one input. `trusted`: it is ours, and may return `raised(...)`."""
    if seconds <= 0:
        return late(TOTAL)
    with settled():
        given, watched = copy.deepcopy(arguments), Watched(function)

        def call():
            output = plain(exercise.run(watched.function, **given), trusted)
            touched = [key for key in arguments if not same(plain(given[key], tuples=True), plain(arguments[key], tuples=True))]
            return changed(touched[0]) if touched else output

        output, error = limited(call, seconds)
    if isinstance(error, TimeUp):
        return late(LIMIT if seconds == LIMIT else TOTAL)
    if error is not None and is_stub(function, error):
        return unwritten()
    if error is not None:
        return raised(type(error).__name__, message(error), "" if watched.inside else watched.returned)
    if watched.changes:
        allowed = by_oracle(exercise, arguments)[1]
        for name, how in watched.changes.items():
            if name not in allowed:
                return changed(name, how)
    if watched.left and equal(output, by_oracle(exercise, arguments)[0], exercise.tolerance):
        return left_on(*next(iter(watched.left.items())))
    return output


def message(error):
    """What an exception says, at most 200 characters of it."""
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = "(what it says cannot be shown)"
    if type(error) is NotImplementedError and not text:
        place = innermost(error)
        text = f"{place} is not written yet" if place else ""
    return text if len(text) <= 200 else text[:200] + " ..."


def innermost(error):
    """The name of the function in which an exception was raised."""
    trace, name = error.__traceback__, ""
    while trace is not None:
        trace, name = trace.tb_next, trace.tb_frame.f_code.co_name
    return name


def is_stub(function, error):
    """Whether `error` is the `raise NotImplementedError()` of an exercise's stub, raised by `function` itself."""
    if type(error) is not NotImplementedError or error.args:
        return False
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    function = inspect.unwrap(function) if callable(function) else function
    own = vars(function).values() if inspect.isclass(function) else [function]
    codes = [getattr(inspect.unwrap(getattr(one, "__func__", one)), "__code__", None) for one in own]
    return trace.tb_frame.f_code in codes


class Watched:
    """A function that an exercise's `call` calls: what it returned last, which of its arguments it changed, and what it left on.

    `function` takes its place; a class stays itself, since `call` may want more of it than to be called.
    """

    def __init__(self, function):
        self.returned, self.inside, self.changes, self.left = "", 0, {}, {}
        self.function = function
        if callable(function) and not inspect.isclass(function):
            self.function = self.wrapped(function)

    def wrapped(self, function):
        names = argument_names(function)

        def call(*arguments, **named):
            given = {**dict(zip([*names, *map(str, range(len(names), len(arguments)))], arguments)), **named}
            before = {name: state(one) for name, one in given.items()}
            self.inside += 1
            with put_back_after() as left:
                output = function(*arguments, **named)
            self.inside -= 1
            allowed = SEED if "seed" in given else None  # a function that is given a seed may set it
            self.left |= {what: str(value) for what, value in left.items() if what != allowed}
            self.returned = described(output)
            for name, one in given.items():
                how = how_changed(before[name], state(one))
                if how:
                    self.changes.setdefault(name, how)
            return output

        try:
            return functools.wraps(function)(call)
        except Exception:  # an object with strange attributes
            return call


def argument_names(function):
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some builtins have none
        return []


def state(value):
    """What a call must leave as it was of an argument, as plain data; None where it is nothing that is looked at.

    Of a tensor a pair: its values, and whether it requires a gradient.
    """
    if isinstance(value, torch.nn.Module):
        weights = {name: plain(one) for name, one in value.state_dict().items()}
        frozen = [name for name, one in value.named_parameters() if not one.requires_grad]
        training = [name for name, one in value.named_modules() if one.training]
        return {"module": True, "weights": weights, "frozen": frozen, "training": training}
    if isinstance(value, torch.Tensor):
        return plain(value), value.requires_grad
    return plain(value) if isinstance(value, (list, dict)) else None


def how_changed(before, after):
    """In a few words what has become of an argument; "" if nothing. `before` and `after` are of `state`."""
    if same(before, after):
        return ""
    if isinstance(before, tuple):
        if not same(before[0], after[0]):
            return "in place; make a new tensor instead"
        return "in place: no gradient reaches it after the call; write .detach(), without _" if before[1] else ""
    if isinstance(before, list) and len(before) == len(after) and any(isinstance(one, torch.Tensor) for one in before):
        return "in place: what is in it is other after the call; make a new list of new tensors instead"
    if not (isinstance(before, dict) and before.get("module") is True):
        return f"in place; make a new {type(after).__name__} instead"
    if not same(before["weights"], after["weights"]):
        return "in place: its weights are others after the call"
    if before["frozen"] != after["frozen"]:
        return "in place: other parameters have requires_grad after the call"
    if len(before["training"]) < len(after["training"]):
        return "in place: it is in training mode after the call, as it was not before"
    return "in place: it is in evaluation mode after the call, as it was not before"
