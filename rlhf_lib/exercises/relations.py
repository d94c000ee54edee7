"""Relations between what came out and what was expected, for all exercises at once.

`judge` asks here after an exercise's own table of mistakes has found nothing. What is said must hold on every input, and what two
relations explain equally well is not claimed of one of them.
"""

from rlhf_lib.exercises.compare import alike, equal, is_number, shown
from rlhf_lib.exercises.plain import is_record
from rlhf_lib.exercises.surroundings import limited, settled
from rlhf_lib.exercises.whatif import answer_of, candidates

SECONDS = 5.0  # that the search may take


def find(exercise, inputs, outputs, expected):
    """The sentence of a relation that holds wherever outputs differ from the expected ones; "" if none is found.

    Args:
        inputs, outputs, expected: lists of equal length, of dicts of arguments and of plain data.
    """
    wrong = [place for place in range(len(inputs)) if not equal(outputs[place], expected[place], exercise.tolerance)]
    if not wrong or any(is_record(outputs[place]) for place in wrong):
        return ""
    found = []
    for finder in (always_the_same, by_a_change):
        with settled():
            limited(lambda finder=finder: found.append(finder(exercise, inputs, outputs, expected, wrong)), SECONDS)
        if found and found[-1]:
            return found[-1]
    return ""


def always_the_same(exercise, inputs, outputs, expected, wrong):
    """A constant, where more than one thing is expected."""
    first = outputs[0]
    if len(inputs) < 3 or any(not equal(one, first, 0) for one in outputs):
        return ""
    if all(equal(one, expected[0], exercise.tolerance) for one in expected):
        return ""
    return f"this is always the same, {shown(first, 60)}, whatever is given" if is_number(first) else ""


def by_a_change(exercise, inputs, outputs, expected, wrong):
    """A Candidate of whatif.py that makes the same of every input."""
    if information(outputs, expected, wrong) < 3:
        return ""
    order = wrong + [place for place in range(len(inputs)) if place not in wrong]
    found = []
    for candidate in candidates(exercise, inputs, wrong):
        if all(
            alike(outputs[place], answer_of(exercise, candidate.function, inputs[place]), exercise.tolerance) for place in order
        ):
            found.append(candidate)
    return claimed(found)


def claimed(found):
    """What is said of the Candidates that explain the outputs equally well: the simplest, or the two simplest, or nothing."""
    found = [one for one in found if one.rank == min(other.rank for other in found)]
    families = list({one.family: one.sentence for one in reversed(found)}.items())[::-1]
    sentences = list(dict.fromkeys(sentence for _, sentence in families))
    return sentences[0] if len(sentences) == 1 else f"{sentences[0]}; or: {sentences[1]}" if len(sentences) == 2 else ""


def information(outputs, expected, wrong):
    """Roughly, how many values could not be met by chance: a float counts 3, anything else 1."""
    return sum(weight(outputs[place], expected[place]) for place in wrong)


def weight(got, expected):
    if isinstance(got, dict):
        return sum(weight(got[key], expected[key]) for key in got if key in expected) if isinstance(expected, dict) else 1
    if isinstance(got, (list, tuple)):
        return max(1, sum(weight(one, None) for one in got))
    if is_number(got) and not isinstance(got, (bool, int, float)):
        values = got.double().flatten()
        return int((3 * (values != values.round())).sum()) + min(1, values.numel())
    return 3 if isinstance(got, float) and got != round(got) else 1
