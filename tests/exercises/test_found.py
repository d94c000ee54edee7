"""Every relation is found when it is made, and nothing is claimed of what has none."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_lib import exercises
from rlhf_lib.exercises import EXERCISES, answer, changes, compare, draw, find, relations, results, values, verdict, whatif

exercises.load()


@pytest.fixture
def exercise():
    """`exercise(right=..., ...)`: an exercise "made_up" for this test alone."""

    def declare(**parts):
        EXERCISES.pop("made_up", None)
        return exercises.Exercise("99.1", "made_up", **{"mistakes": {}, **parts})

    yield declare
    EXERCISES.pop("made_up", None)


def found(function, seed=0):
    return verdict("made_up", function, seed).mistake


# ----------------------------------------------------------------------------------------- a loss with a mask, as an example


def masked(generator):
    for rows, columns in ((2, 3), (3, 5), (4, 7), (5, 6)):
        lengths = torch.randint(1, columns, (rows, 1), generator=generator)
        x, y = (torch.randn(rows, columns, generator=generator) for _ in range(2))
        yield {"x": x, "y": y, "mask": torch.arange(columns) < lengths, "clip": 0.2 + 0.1 * rows, "n": rows + 1}


def errors(x, y, mask, clip, n):
    """Squared errors, no more than clip, where mask is True; the n-th part of their sum."""
    return (((x - y) ** 2).clamp(max=clip) * mask).sum() / n


RESULTS = {
    "minus what is expected": lambda x, y, mask, clip, n: -errors(x, y, mask, clip, n),
    "100 times what is expected: percent": lambda x, y, mask, clip, n: 100 * errors(x, y, mask, clip, n),
    "divided by ln 2": lambda x, y, mask, clip, n: errors(x, y, mask, clip, n) / math.log(2),
    "is exp of what is expected": lambda x, y, mask, clip, n: errors(x, y, mask, clip, n).exp(),
    "is the logarithm of what is expected": lambda x, y, mask, clip, n: errors(x, y, mask, clip, n).log(),
    "the square of what is expected": lambda x, y, mask, clip, n: errors(x, y, mask, clip, n) ** 2,
    "1 minus what is expected": lambda x, y, mask, clip, n: 1 - errors(x, y, mask, clip, n),
    "1 divided by what is expected": lambda x, y, mask, clip, n: 1 / errors(x, y, mask, clip, n),
    "what is expected plus 1": lambda x, y, mask, clip, n: 1 + errors(x, y, mask, clip, n),
    "rounded to 2 digits": lambda x, y, mask, clip, n: round(errors(x, y, mask, clip, n).item(), 2),
    "n is not used: this is right for n = 1": lambda x, y, mask, clip, n: n * errors(x, y, mask, clip, n),
    "divided by the number of columns of x": lambda x, y, mask, clip, n: errors(x, y, mask, clip, n) / x.shape[1],
    "divided by the number of True in mask": lambda x, y, mask, clip, n: errors(x, y, mask, clip, n) / mask.sum(),
    "the root of the number of values of x times": lambda x, y, mask, clip, n: errors(x, y, mask, clip, n) * x.numel() ** 0.5,
    "n is one too small": lambda x, y, mask, clip, n: errors(x, y, mask, clip, n - 1),
    "1.75 times what is expected, on all inputs": lambda x, y, mask, clip, n: 1.75 * errors(x, y, mask, clip, n),
    "too large by 0.37, on all inputs": lambda x, y, mask, clip, n: 0.37 + errors(x, y, mask, clip, n),
    "nearly right": lambda x, y, mask, clip, n: errors(x, y, mask, clip, n) * (1 + 0.001 * x[0, 0].sign() * x[0, 0].abs().cos()),
    "with a dimension of size 1 too many": lambda x, y, mask, clip, n: errors(x, y, mask, clip, n)[None],
    "they come as a NumPy array": lambda x, y, mask, clip, n: np.array([errors(x, y, mask, clip, n).item()]),
    "always the same, 0.25": lambda x, y, mask, clip, n: 0.25,
}
ARGUMENTS = {
    "mask is not used": {"mask": torch.ones_like},
    "mask is turned round": {"mask": torch.logical_not},
    "mask is one place too far to the right": {"mask": lambda mask: changes.shifted(mask, 1)},
    "mask is one place too far to the left": {"mask": lambda mask: changes.shifted(mask, -1)},
    "the first row of mask is used for all rows": {"mask": lambda mask: mask[:1].expand_as(mask)},
    "the sign of x is turned": {"x": torch.neg},
    "x is not used: this is right where x is 0": {"x": torch.zeros_like},
    "x goes through exp first": {"x": torch.exp},
    "x and y go through sigmoid first": {"x": torch.sigmoid, "y": torch.sigmoid},
    "each row of y is whitened first": {"y": lambda y: changes.whitened(y, -1)},
    "x is rolled by one place to the right": {"x": lambda x: x.roll(1, -1)},
    "the rows of x are used upside down": {"x": lambda x: x.flip(0)},
    "x is sorted first": {"x": lambda x: x.sort(-1).values},
    "clip is 0.4 whatever is given: is that number of the example written in?": {"clip": lambda clip: 0.4},
    "clip is 0.95 whatever is given: is that number written in?": {"clip": lambda clip: 0.95},
    "the root of clip is used in place of clip": {"clip": math.sqrt},
    "only the first row is looked at": {"x": lambda x: x[:1], "y": lambda y: y[:1], "mask": lambda mask: mask[:1]},
    "the first column is left out": dict.fromkeys(("x", "y", "mask"), lambda z: z[:, 1:]),
}


@pytest.mark.parametrize("words", RESULTS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_change_of_the_result_is_found(exercise, words, seed):
    exercise(draw=masked, right=errors)
    assert words in found(RESULTS[words], seed)


@pytest.mark.parametrize("words", ARGUMENTS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_change_of_an_argument_is_found(exercise, words, seed):
    exercise(draw=masked, right=errors)

    def learner(**given):
        return errors(**{**given, **{name: change(given[name]) for name, change in ARGUMENTS[words].items()}})

    assert words in found(learner, seed)


def test_exchanged_arguments_and_one_in_the_place_of_another_are_found(exercise):
    def right(first, second, x):
        return first**2 * x + second

    def draws(generator):
        for size in (1, 3, 5, 4):
            first, second = torch.rand(2, generator=generator).tolist()
            yield {"first": first, "second": second, "x": torch.randn(size, generator=generator)}

    exercise(draw=draws, right=right)
    assert found(lambda first, second, x: right(second, first, x)) == "first and second are exchanged"
    assert found(lambda first, second, x: right(first, first, x)) == "first is used in the place of second"


def test_a_change_is_found_through_a_call_that_takes_gradients(exercise):
    def call(function, x, y, mask, clip, n):
        x = x.clone().requires_grad_()
        loss = function(x, y, mask, clip, n)
        loss.backward()
        return {"loss": loss, "gradient": x.grad}

    exercise(draw=masked, right=errors, call=call)
    assert "minus what is expected" in found(RESULTS["minus what is expected"])
    assert "mask is not used" in found(lambda x, y, mask, clip, n: errors(x, y, torch.ones_like(mask), clip, n))
    said = found(lambda x, y, mask, clip, n: errors(x, y, mask, clip, n).detach() + 0 * x.sum())
    assert said == "'loss' is right; 'gradient' is 0 on all inputs"
    assert "without a gradient" in verdict("made_up", lambda *given: errors(*given).detach()).message


def test_two_options_at_once_are_found(exercise):
    def formula(x, y, mask, clip, n, use_mask=True, use_clip=True, power=2):
        error = (x - y).abs() ** power
        error = error.clamp(max=clip) if use_clip else error
        return (error * mask if use_mask else error).sum() / n

    mistakes = {"no mask": {"use_mask": False}, "no clip": {"use_clip": False}, "no square": {"power": 1}}
    exercise(draw=masked, right=errors, formula=formula, mistakes=mistakes)
    assert found(lambda **given: formula(**given, use_clip=False)) == "no clip"
    assert found(lambda **given: formula(**given, use_clip=False, power=1)) == "two things at once. No clip; and: no square"


# ----------------------------------------------------------------------------------------- several values


def table(generator):
    for rows, columns in ((1, 3), (3, 5), (4, 4), (5, 6)):
        yield {"x": torch.randn(rows, columns, generator=generator), "mask": torch.rand(rows, columns, generator=generator) < 0.6}


def normal(x, mask):
    return (x * x + 0.1).cumsum(-1)


TABLES = {
    "each row of what comes back is divided by its sum": lambda y, x, mask: y / y.sum(-1, keepdim=True),
    "is transposed": lambda y, x, mask: y.T,
    "upside down": lambda y, x, mask: y.flip(0),
    "one place too far to the right": lambda y, x, mask: changes.shifted(y, 1),
    "has 0 in its last place": lambda y, x, mask: torch.cat([y[:, :-1], 0 * y[:, :1]], 1),
    "lacks its last row": lambda y, x, mask: y[:-1],
    "the differences between neighbours": lambda y, x, mask: y.diff(dim=-1),
    "is summed over its last dimension": lambda y, x, mask: y.sum(-1),
    "x is added to what is expected": lambda y, x, mask: y + x,
    "is 0 where mask is 0 or False": lambda y, x, mask: y * mask,
    "right up to a factor, another one for each input": lambda y, x, mask: y * (1 + x[0, 0].abs()),
    "each row of what comes back is right up to a factor": lambda y, x, mask: y * (1.5 + x[:, :1].abs()),
    "each row of what comes back is right up to a number": lambda y, x, mask: y + (1.5 + x[:, :1].abs()),
    "wrong only where mask is False": lambda y, x, mask: torch.where(mask, y, y + x.abs() + 1),
    "wrong only in the first column": lambda y, x, mask: torch.cat([y[:, :1] + x[:, :1].abs() + 0.5, y[:, 1:]], 1),
    "is 1.0 wherever what is expected is larger": lambda y, x, mask: y.clamp(max=1.0),
    "as a list": lambda y, x, mask: y.tolist(),
    "minus 2.5, on all inputs": lambda y, x, mask: 3 * y - 2.5,
    "the right values, but in another order": lambda y, x, mask: torch.cat([y[:, 1:2], y[:, 2:], y[:, :1]], 1).flip(1),
}


@pytest.mark.parametrize("words", TABLES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_relation_of_many_values_is_found(exercise, words, seed):
    exercise(draw=table, right=normal)
    assert words in found(lambda x, mask: TABLES[words](normal(x, mask), x, mask), seed) or (
        words == "is 1.0 wherever what is expected is larger"
        and "has 1 where what is expected is larger" in found(lambda x, mask: normal(x, mask).clamp(max=1.0), seed)
    )


def test_a_wrong_part_is_named_once_and_a_question_has_no_full_stop(exercise):
    exercise(draw=table, right=lambda x, mask: (x.sum(-1), x.amax(-1)))
    said = verdict("made_up", lambda x, mask: (x.sum(-1) * torch.rand(len(x)), x.amax(-1))).message
    assert re.search(r"right; only the first value is wrong: \S+ came out, ", said)
    exercise(draw=table, right=normal)
    said = verdict("made_up", lambda x, mask: normal(x, mask) * (1 + x[0, 0].abs())).message
    assert "clipped afterwards? The smallest" in said


def test_parts_are_told_apart(exercise):
    exercise(draw=table, right=lambda x, mask: (x.mean(-1), x.std(-1) if x.shape[1] > 1 else x[:, 0]))
    right = find("made_up").right
    assert "the pair came in another order" in found(lambda x, mask: right(x, mask)[::-1])
    assert "only the first of the pair is returned" in found(lambda x, mask: right(x, mask)[0])
    said = found(lambda x, mask: (right(x, mask)[0], right(x, mask)[1] * 1.3))
    assert said == "the first value is right; the second value is 1.3 times what is expected, on all inputs"
    said = found(lambda x, mask: (right(x, mask)[0], x.std(-1, unbiased=False)))
    assert "the second value is divided by n where n - 1 is wanted, under a root" in said


def test_keys_are_told(exercise):
    exercise(draw=table, right=lambda x, mask: {"mean": x.mean(), "share": mask.float().mean()})
    right = find("made_up").right
    said = found(lambda x, mask: {"mean": x.mean(), "shar": mask.float().mean()})
    assert said == "the key 'share' is missing; there is 'shar' instead"
    assert "the value of 'share' is 100 times" in found(lambda x, mask: {**right(x, mask), "share": 100 * mask.float().mean()})


# ----------------------------------------------------------------------------------------- texts and lists


def texts(generator):
    words = ["to be", "or not", "To Be", "that is; the question", "a", "the  rest", "is silence, O"]
    for _ in range(6):
        order = torch.randperm(len(words), generator=generator).tolist()
        yield {"text": ". ".join(words[place] for place in order), "count": order[0] + 2}


TEXTS = {
    "are in small letters": lambda text, count: text.lower().split(" ")[:count],
    "lacks its last value": lambda text, count: text.split(" ")[: count - 1],
    "is in reverse": lambda text, count: text.split(" ")[:count][::-1],
    "is sorted": lambda text, count: sorted(text.split(" ")[:count]),
    "lacks what is empty": lambda text, count: [one for one in text.split(" ")[:count] if one],
    "is one text, joined with spaces": lambda text, count: " ".join(text.split(" ")[:count]),
    "they come as a set": lambda text, count: set(text.split(" ")[:count]),
    "count is one too large": lambda text, count: text.split(" ")[: count + 1],
}


@pytest.mark.parametrize("words", [words for words in TEXTS if "set" not in words])
def test_a_relation_of_texts_is_found(exercise, words):
    exercise(draw=texts, right=lambda text, count: text.split(" ")[:count])
    said = found(TEXTS[words])
    assert words in said or (words == "lacks its last value" and "count is one too small" in said)


def test_a_list_in_another_order_and_one_with_gaps(exercise):
    def draws(generator):
        for size in (3, 5, 8, 7):
            yield {"x": torch.randperm(20, generator=generator)[:size].tolist()}

    exercise(draw=draws, right=lambda x: sorted(x))
    assert (
        found(lambda x: sorted(x, key=lambda one: (one % 3, one))) == "what comes back has the right values, but in another order"
    )
    assert "they come as a set" in found(lambda x: set(x)) or "a set" in verdict("made_up", lambda x: set(x)).message


# ----------------------------------------------------------------------------------------- inputs on which it is wrong


def test_the_property_of_the_inputs_that_are_wrong_is_said(exercise):
    def draws(generator):
        for size, tie in ((3, False), (4, True), (6, False), (5, True), (7, False), (8, True)):
            x = torch.randn(size, generator=generator)
            x[-1] = x[0] if tie else x[-1]
            yield {"x": x}

    exercise(draw=draws, right=lambda x: x.exp().sum())
    said = found(lambda x: x.exp().sum() + (0.3 + x[1].abs() if len(x.unique()) < len(x) else 0))
    assert said == "right on 3 of 6 inputs, and wrong on just those where there are equal values in x"


# ----------------------------------------------------------------------------------------- nothing is claimed


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_noise_has_no_relation(exercise, seed):
    exercise(draw=masked, right=errors)
    noise = torch.Generator().manual_seed(seed)
    assert found(lambda **given: torch.randn((), generator=noise) * 3, seed) == ""
    exercise(draw=table, right=normal)
    assert found(lambda x, mask: torch.randn(x.shape, generator=noise), seed) == ""


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), factor=st.floats(1.1, 9))
def test_a_factor_is_found_whatever_it_is(exercise, seed, factor):
    exercise(draw=table, right=normal)
    said = found(lambda x, mask: factor * normal(x, mask), seed)
    assert f"{compare.one(factor)} times what is expected" in said or "twice" in said or "4 times" in said


@pytest.mark.parametrize("name", ["gae", "causal_mask", "merge_pair", "distinct_n", "rating_table"])
def test_a_right_answer_has_no_relation(name):
    inputs = draw(name)
    right = answer(name, EXERCISES[name].right, inputs)
    assert relations.find(EXERCISES[name], inputs, right, right) == ""


def test_what_two_changes_explain_equally_is_not_claimed_of_one(exercise):
    def draws(generator):
        for size in (3, 4, 6):
            yield {"x": torch.randn(size, generator=generator), "y": torch.randn(size, generator=generator)}

    exercise(draw=draws, right=lambda x, y: (x * y).sum() + 1)
    assert found(lambda x, y: 1 - (x * y).sum()) == "the sign of x is turned; or: the sign of y is turned"


def test_few_small_numbers_prove_nothing(exercise):
    def draws(generator):
        for size in (2, 3, 4):
            yield {"x": torch.arange(size), "k": 2}

    exercise(draw=draws, right=lambda x, k: len(x) > k)
    assert found(lambda x, k: len(x) <= k) == ""


def test_a_search_ends(exercise, monkeypatch):
    monkeypatch.setattr(relations, "SECONDS", 0.2)

    def slow(x, mask):
        for _ in range(10**5):
            x = x + 0
        return x

    exercise(draw=table, right=slow)
    assert found(lambda x, mask: x + torch.rand(()) * 3 * x.sign()) == ""


# ----------------------------------------------------------------------------------------- the tables


def test_no_sentence_stands_twice_in_a_table():
    for rows in (changes.BOOL, changes.WHOLE, changes.NUMBER, changes.TEXT, changes.LIST, changes.CALLABLE, results.LISTED):
        assert len({sentence for sentence, *_ in rows}) == len(rows)


@pytest.mark.parametrize("relation", values.ALL, ids=lambda relation: relation.__name__)
def test_no_relation_of_values_trips_over_odd_numbers(relation):
    nan, inf = float("nan"), float("inf")
    for numbers in ([nan, 1.0], [inf, 1.0], [0.0, 0.0], [1.0], [1.0, 2.0, 3.0]):
        for others in ([nan] * len(numbers), [0.0] * len(numbers), [inf] * len(numbers)):
            pair = (torch.tensor(numbers, dtype=torch.float64), torch.tensor(others, dtype=torch.float64), {})
            assert isinstance(relation([pair, pair]), str)


@pytest.mark.filterwarnings("ignore")
def test_every_candidate_of_every_exercise_can_be_tried():
    """A candidate that does not fit raises inside; none may bring the search down."""
    for name in ("gae", "merge_pair", "block", "rating_table", "train_step"):
        exercise, inputs = EXERCISES[name], draw(name)
        some = list(whatif.candidates(exercise, inputs, [0]))
        assert len(some) > 20
        for candidate in some[::7]:
            whatif.answer_of(exercise, candidate.function, inputs[0])
