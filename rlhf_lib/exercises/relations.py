"""Relations between what came out and what was expected, for all exercises at once.

`judge` asks here after an exercise's own table of mistakes has found nothing. What is said must hold on every input, and what two
relations explain equally well is not claimed of one of them.
"""

import math
import re

import torch

from rlhf_lib.exercises import properties, values, whatif
from rlhf_lib.exercises.compare import alike, as_tensor, difference, equal, is_number, off_at, shown
from rlhf_lib.exercises.plain import described, is_record
from rlhf_lib.exercises.surroundings import limited, quiet, settled

TRIES = 10_000  # calls of our own functions that the search may make, more than twice what any exercise needs
SECONDS = 20.0  # that one way of searching may take in any case; by TRIES a busy machine says the same as an idle one
ENOUGH = 3  # see `information`
SAME = ", or what comes to the same"  # behind a change of a number: other programs may make the same of it
FEW = 15  # see `by_inputs`
PLACES = ("first", "second", "third", "fourth", "fifth")


def find(exercise, inputs, outputs, expected):
    """The sentence of a relation that holds wherever outputs differ from the expected ones; "" if none is found.

    Args:
        inputs, outputs, expected: lists of equal length, of dicts of arguments and of plain data.
    """
    wrong = [place for place in range(len(inputs)) if not equal(outputs[place], expected[place], exercise.tolerance)]
    if not wrong or any(is_record(outputs[place]) and not is_record(outputs[place], "odd") for place in wrong):
        return ""
    with settled(), quiet():
        for finder in (by_form, always_the_same, by_a_change, by_an_earlier_call, by_parts, by_inputs):
            sentence, _ = limited(lambda finder=finder: finder(exercise, inputs, outputs, expected, wrong), SECONDS)
            if sentence:
                return sentence
    return ""


# ----------------------------------------------------------------------------------------- right values in another form


def by_form(exercise, inputs, outputs, expected, wrong):
    """Right values of a wrong type or shape, on all wrong inputs."""
    said = {form_of(outputs[place], expected[place], exercise.tolerance) for place in wrong}
    return said.pop() if len(said) == 1 else ""


def form_of(got, expected, tolerance):
    """In a sentence, the form in which the right values came; "" if they are not right."""
    what, inside = "", got
    if isinstance(got, dict) and isinstance(expected, dict) and not is_record(got):
        if got.keys() != expected.keys():
            return difference(got, expected, tolerance)
        parts = {key: form_of(got[key], expected[key], tolerance) for key in got if not equal(got[key], expected[key], tolerance)}
        return "; ".join(f"{key!r}: {sentence}" for key, sentence in parts.items()) if all(parts.values()) else ""
    if is_record(got, "odd"):
        what, inside = got["what"], got["value"]
    if isinstance(expected, (list, tuple)) and isinstance(inside, (list, tuple)):
        if what and equal(inside, expected, tolerance):
            return f"the values are right, but they come as {what}: return {listed(expected)}"
        parts = {form_of(a, b, tolerance) for a, b in zip(inside, expected) if not equal(a, b, tolerance)}
        return parts.pop() if len(parts) == 1 and len(inside) == len(expected) else ""
    if not is_number(expected):
        if (
            isinstance(expected, (list, tuple))
            and is_number(inside)
            and equal(as_tensor(inside).tolist(), list(expected), tolerance)
        ):
            return f"the values are right, but they come as {what or 'a tensor'}: return {listed(expected)}"
        return ""
    a, b = flat(inside), flat(expected)
    if a is None or len(a) != len(b) or not equal(a.double(), b.double(), tolerance):
        return ""
    if what or not is_number(inside):
        wanted = "a tensor" if hasattr(expected, "shape") else "a number"
        what = what or ("text" if isinstance(inside, str) else "a list")
        return f"the values are right, but they come as {what}: return {wanted}"
    shapes = [tuple(as_tensor(one).shape) for one in (inside, expected)]
    if shapes[0] != shapes[1]:
        if [n for n in shapes[0] if n != 1] == [n for n in shapes[1] if n != 1]:
            where = {0: "elsewhere", 1: "too many", -1: "too few"}[
                (len(shapes[0]) > len(shapes[1])) - (len(shapes[0]) < len(shapes[1]))
            ]
            return f"the values are right, but with a dimension of size 1 {where}"
        return "the values are right, but in another shape"
    kinds = ["True and False" if flat(one).dtype == as_tensor(True).dtype else "numbers" for one in (inside, expected)]
    return f"the values are right, but they are {kinds[0]}: return {kinds[1]}" if kinds[0] != kinds[1] else ""


def listed(expected):
    """In words, the form of an expected list or tuple: what a card shows in round brackets is a pair, or a tuple."""
    return described(expected) if isinstance(expected, tuple) else "a list"


def flat(value):
    """The numbers in a value in one row, as a tensor; None if they are none."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, (list, tuple)):
        parts = [flat(one) for one in value]
        if not parts or any(part is None for part in parts):
            return None
        return torch.cat([part.double() for part in parts])
    tensor = as_tensor(value) if is_number(value) else None
    return None if tensor is None or tensor.is_complex() else tensor.flatten()


def always_the_same(exercise, inputs, outputs, expected, wrong):
    """A constant, where more than one thing is expected."""
    first = outputs[0]
    if len(inputs) < 3 or is_record(first) or any(not equal(one, first, 0) for one in outputs):
        return ""
    if not is_number(first) or not is_number(expected[wrong[0]]) or first is True or first is False:
        return ""
    if as_tensor(first).is_complex() or as_tensor(first).shape != as_tensor(expected[wrong[0]]).shape:
        return ""
    if all(equal(one, expected[0], exercise.tolerance) for one in expected):
        return ""
    return f"this is always the same, {shown(first, 60)}, whatever is given"


# ----------------------------------------------------------------------------------------- the right answer after a change


def by_a_change(exercise, inputs, outputs, expected, wrong):
    """A Candidate of whatif.py that makes the same of every input."""
    whole = sum(information(outputs[place], expected[place], exercise.tolerance) for place in wrong)
    if whole < ENOUGH:
        return ""
    order = wrong + [place for place in range(len(inputs)) if place not in wrong]
    found, tries = [], 0
    for one in whatif.candidates(exercise, inputs, wrong):
        known = 0
        for place in order:
            tries += 1
            made = whatif.answer_of(exercise, one.function, inputs[place])
            if one.open:
                known += information(filled(made, expected[place]), expected[place], exercise.tolerance)
                made = filled(made, outputs[place])
            if not alike(outputs[place], made, exercise.tolerance):
                break
        else:
            if not one.open or known >= max(ENOUGH, whole / 2):
                found.append(one)
        if tries > TRIES:
            return ""  # what was not tried may explain the outputs as well
    if all(getattr(right, "ndim", 0) == 1 for right in expected):  # a vector has places, and no rows
        found = [one for one in found if not re.match("what comes back .*row", one.sentence)] or found
    return claimed(found)


def filled(made, output):
    """`made` with what `output` has in the places of its NaN."""
    if isinstance(made, (list, tuple)) and isinstance(output, (list, tuple)) and len(made) == len(output):
        return [filled(*pair) for pair in zip(made, output)]
    if isinstance(made, dict) and isinstance(output, dict) and made.keys() == output.keys():
        return {key: filled(made[key], output[key]) for key in made}
    if is_number(made) and is_number(output) and as_tensor(made).shape == as_tensor(output).shape:
        made = as_tensor(made)
        return torch.where(made.isnan(), as_tensor(output), made) if made.is_floating_point() else made
    return made


def claimed(found):
    """What is said of the Candidates that explain the outputs equally well: the simplest, or the two simplest, or nothing."""
    found = [one for one in found if one.rank == min(other.rank for other in found)]
    families = list({one.family: one.sentence for one in reversed(found)}.items())[::-1]
    sentences = list(dict.fromkeys(sentence for _, sentence in families))
    if len(sentences) == 1:
        return sentences[0] + SAME * any(words in sentences[0] for words in (" used in place of ", " taken for 0"))
    return f"{sentences[0]}; or: {sentences[1]}" if len(sentences) == 2 else ""


def information(got, expected, tolerance):
    """Roughly, how many wrong values could not be met by chance: a float counts 3, a whole number 1, True or False a half."""
    if isinstance(got, dict) and isinstance(expected, dict):
        return sum(information(got[key], expected[key], tolerance) for key in got if key in expected)
    if isinstance(got, (list, tuple)) and isinstance(expected, (list, tuple)) and len(got) == len(expected):
        return sum(information(*pair, tolerance) for pair in zip(got, expected))
    if equal(got, expected, tolerance):
        return 0
    if is_number(got):
        numbers, right = as_tensor(got).flatten(), as_tensor(expected).flatten() if is_number(expected) else None
        if right is not None and right.shape == numbers.shape:
            numbers = numbers[~((numbers.double() - right.double()).abs() <= tolerance)]
        broken = numbers.double() != numbers.double().round()
        return (0.5 if numbers.dtype == as_tensor(True).dtype else 1.0) * len(numbers) + 2 * int(broken.sum())
    return min(4, len(got)) if isinstance(got, (str, list, tuple)) else 1


def by_an_earlier_call(exercise, inputs, outputs, expected, wrong):
    """On each wrong input just what an earlier one should give: an answer is found again that was kept."""
    for place in wrong:
        earlier = [right for right in expected[:place] if not equal(right, expected[place], exercise.tolerance)]
        if is_record(outputs[place]) or not any(equal(outputs[place], right, exercise.tolerance) for right in earlier):
            return ""
    if sum(information(outputs[place], expected[place], exercise.tolerance) for place in wrong) < 2 * ENOUGH:
        return ""
    return "it returns what was right for an earlier call: something is kept, and found again by too few of the arguments"


# ----------------------------------------------------------------------------------------- parts, values, places


def by_parts(exercise, inputs, outputs, expected, wrong):
    """Which parts of the answer are right, and what holds of the values of the others."""
    parts = parts_of(outputs, expected)
    bad = {
        name: [
            (got, right, inputs[place]) for place, (got, right) in enumerate(pairs) if not equal(got, right, exercise.tolerance)
        ]
        for name, pairs in parts.items()
    }
    good, bad = [name for name, pairs in bad.items() if not pairs], {name: pairs for name, pairs in bad.items() if pairs}
    count = len(inputs)
    said = [sentence for name, pairs in bad.items() if (sentence := of_values(name, pairs, exercise.tolerance, count))]
    good = [name for name in good if not isinstance(parts[name][0][1], bool)]  # these are no part of the answer itself
    if not said and not (good and len(bad) == 1):
        return ""
    said = said or [f"only {next(iter(bad))} is wrong"]
    right = f"{' and '.join(good[:3])} {'are' if len(good) > 1 else 'is'} right; " if good else ""
    return right + "; ".join(said[:2])


def parts_of(outputs, expected):
    """The parts of all answers: {name: a list of (got, expected) for each input}; one part where they have none, or others."""
    pairs, first = list(zip(outputs, expected)), expected[0]
    if all(
        isinstance(got, dict) and isinstance(right, dict) and got.keys() == right.keys() == first.keys() for got, right in pairs
    ):
        return {f"{key!r}": [(got[key], right[key]) for got, right in pairs] for key in first}
    if all(isinstance(got, list) and isinstance(right, tuple) and len(got) == len(right) == len(first) for got, right in pairs):
        return {f"the {word} value": [(got[i], right[i]) for got, right in pairs] for i, word in enumerate(PLACES[: len(first)])}
    return {"what comes back": pairs}


def of_values(name, pairs, tolerance, inputs):
    """What holds of one part: a relation of its values, or the places where it is wrong.

    Args:
        pairs: a list of (got, expected, arguments), one for each input on which the part is wrong.
        inputs: how many there are. On a single one of several, anything can be found by chance.
    """
    if len(pairs) == 1 < inputs:
        return by_truth(name, pairs, tolerance)
    numbers = [(values.numbers_of(got), values.numbers_of(right), arguments) for got, right, arguments in pairs]
    same_shape = all(a is not None and b is not None and a.shape == b.shape for a, b, _ in numbers)
    if same_shape:
        for relation in values.ALL:
            sentence = relation(numbers)
            if sentence:
                where = "on all inputs" if len(pairs) == inputs else "wherever it is wrong"
                return sentence.replace("{y}", name).replace("on all inputs", where)
    if all(is_number(a) and is_number(b) and as_tensor(a).shape == as_tensor(b).shape for a, b, _ in pairs):
        where = places_of(pairs, tolerance)
        return f"{name} is wrong only {where}" if where else ""
    return of_texts(name, pairs)


def places_of(pairs, tolerance):
    return values.place_of([(as_tensor(right), arguments, off(got, right, tolerance)) for got, right, arguments in pairs])


def by_truth(name, pairs, tolerance):
    """Of one wrong input: whether just True, or just False, came out wrong; which takes many values to be chance."""
    if not all(is_number(a) and is_number(b) and as_tensor(a).shape == as_tensor(b).shape for a, b, _ in pairs):
        return ""
    where = places_of(pairs, tolerance)
    return f"{name} is wrong only {where}" if "expected, and never" in where else ""


def off(got, right, tolerance):
    """Where two values of one shape differ: a bool tensor."""
    return off_at(as_tensor(got).double(), as_tensor(right).double(), tolerance)


TEXTS = [  # (sentence, whether two texts or lists have this relation)
    ("{y} differs in capital letters only", lambda a, b: a.lower() == b.lower()),
    ("{y} differs in white space only", lambda a, b: "".join(a.split()) == "".join(b.split())),
    ("{y} has the right values in another order", lambda a, b: sorted(map(repr, a)) == sorted(map(repr, b))),
    ("{y} is empty wherever it is wrong", lambda a, b: not a and b),
    ("{y} stops too early: its end is missing", lambda a, b: len(a) < len(b) and a == b[: len(a)]),
    ("{y} begins too late: its beginning is missing", lambda a, b: len(a) < len(b) and a == b[len(b) - len(a) :]),
    ("{y} goes on too long: its end is too much", lambda a, b: len(a) > len(b) and a[: len(b)] == b),
    ("{y} begins too early: its beginning is too much", lambda a, b: len(a) > len(b) and a[len(a) - len(b) :] == b),
    ("{y} lacks some values, the others are right", lambda a, b: len(a) < len(b) and is_part(a, b)),
    ("{y} has values that should not be there, besides the right ones", lambda a, b: len(a) > len(b) and is_part(b, a)),
]  # fmt: skip


def is_part(some, of):
    """Whether the values of `some` stand in `of` in the same order, with others between them."""
    rest = iter(of)
    return all(any(equal(one, other, 0) for other in rest) for one in some)


def of_texts(name, pairs):
    """A relation of texts or lists that holds for all pairs."""
    if len(pairs) < 2 or not all(type(a) is type(b) and isinstance(a, (str, list)) for a, b, _ in pairs):
        return ""
    for sentence, holds in TEXTS:
        try:
            if all(holds(a, b) for a, b, _ in pairs):
                return sentence.replace("{y}", name)
        except (AttributeError, TypeError):
            continue  # it is about texts, and these are lists
    return ""


# ----------------------------------------------------------------------------------------- inputs


def by_inputs(exercise, inputs, outputs, expected, wrong):
    """What just those inputs have in common on which the answer is wrong."""
    right = len(inputs) - len(wrong)
    found = properties.separating(inputs, wrong) if right > 1 and len(inputs) > 4 else []
    if len(wrong) == 1 or math.comb(len(inputs), right) < FEW:  # so few ways to be wrong that some property fits by chance
        found = [words for words in found if words.endswith(" is 0") or "large values" in words]
    if len(found) != 1 and right > 1:
        found = properties.far_longer(inputs, wrong)
    return f"right on {right} of {len(inputs)} inputs, and wrong on just those where {found[0]}" if len(found) == 1 else ""
