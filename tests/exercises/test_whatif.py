"""Candidates: wrong functions made from a right one. Each makes just the mistake that its sentence tells."""

import copy
import time

import pytest
import torch

from rlhf_lib.exercises import EXERCISES, Exercise, equal, is_record, whatif
from rlhf_lib.exercises.surroundings import settled

X, Y = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]]), torch.tensor([[2.0, 2.0, 1.0], [1.0, 0.0, 3.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def made(right, **others):
    """An Exercise that is not among the course's."""
    exercise = Exercise("0.1", "made for a test", **{"draw": None, "mistakes": {}, "right": right, **others})
    del EXERCISES["made for a test"]
    return exercise


def answers(right, arguments, **others):
    """{sentence: what the candidate makes of the arguments}; of two candidates with one sentence, the first."""
    exercise, found = made(right, **others), {}
    with settled():
        for one in whatif.candidates(exercise, [arguments], [0]):
            found.setdefault(one.sentence, whatif.answer_of(exercise, one.function, arguments))
    return found


def ranks(right, arguments, **others):
    return {one.sentence: one.rank for one in whatif.candidates(made(right, **others), [arguments], [0])}


def difference(x, y, scale):
    return (x - y) * scale


# ----------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "sentence, wanted",
    [
        ("x is not used: this is right where x is 0 everywhere", -2 * Y),
        ("the sign of y is turned", 2 * (X + Y)),
        ("scale is one too large", 3 * (X - Y)),
        ("scale squared is used in place of scale", 4 * (X - Y)),
        ("x and y are exchanged", 2 * (Y - X)),
        ("y is used in the place of x", 0 * X),
        ("the sign of x and y is turned", 2 * (Y - X)),
        (
            "x and y are not used: this is right where x and y are 1 everywhere",
            torch.zeros(2, 3),
        ),
        ("the mean of each row of x and y is taken off first", 2 * ((X - Y) - (X - Y).mean(-1, keepdim=True))),
        ("x and y are one place too far to the left", 2 * torch.tensor([[-4.0, 2.0, 0.0], [4.0, -4.0, 0.0]])),
        ("only the first row is looked at", 2 * (X - Y)[:1]),
        ("the last column is left out", 2 * (X - Y)[:, :2]),
        ("this is the argument x as it is given", X),
        ("x is taken off what is expected", 2 * (X - Y) - X),
        ("what comes back is minus what is expected: a sign is turned", 2 * (Y - X)),
        ("what comes back is averaged over its last dimension", 2 * (X - Y).mean(-1)),
        ("what comes back lacks its first row", 2 * (X - Y)[1:]),
        (
            "what comes back is what is expected divided by the number of columns of x: "
            "a mean where a sum is wanted, or one division too many",
            2 * (X - Y) / 3,
        ),
        ("what comes back is the root of the number of values of x times what is expected", 2 * (X - Y) * 6**0.5),
    ],
)
def test_a_candidate_makes_the_mistake_that_it_tells(sentence, wanted):
    arguments = {"x": X, "y": Y, "scale": 2}
    assert equal(answers(difference, arguments)[sentence], wanted, 1e-6)


def test_candidates_change_neither_the_input_nor_the_oracle():
    arguments = {"x": X.clone(), "y": Y.clone(), "scale": 2}
    before = copy.deepcopy(arguments)
    answers(difference, arguments)
    assert equal(arguments, before, 0) and equal(difference(**arguments), 2 * (X - Y), 0)


def test_arguments_may_be_given_by_their_place():
    exercise = made(difference, call=lambda function, x, y, scale: function(x, y, scale=scale))
    arguments = {"x": X, "y": Y, "scale": 2}
    assert whatif.first_call(exercise, arguments).given.keys() == {"x", "y", "scale"}
    found = {
        one.sentence: whatif.answer_of(exercise, one.function, arguments)
        for one in whatif.candidates(exercise, [arguments], [0])
        if one.sentence in ("x and y are exchanged", "the sign of scale is turned", "y is used in the place of x")
    }
    assert equal(found["x and y are exchanged"], 2 * (Y - X), 1e-6)
    assert equal(found["the sign of scale is turned"], 2 * (Y - X), 1e-6)
    assert equal(found["y is used in the place of x"], 0 * X, 1e-6)


def test_only_arguments_of_one_kind_are_exchanged():
    alike = whatif.alike_in_kind
    assert alike(X, Y) and not alike(X, X[:1]) and not alike(X, X > 0) and not alike(X, 1.0)
    assert alike(1, 2.0) and alike(True, False) and not alike(True, 1)
    assert alike("a", "b") and alike([1], [2]) and not alike([1], (1,)) and not alike("a", ["a"])
    assert alike(print, len) and not alike(print, 1) and not alike({}, {}) and not alike(None, None)
    given = {"x": X, "scale": 1.0, "y": Y, "mask": MASK, "a": [1], "b": [2], "other": 2.0}
    assert whatif.groups(given) == [["x", "y"], ["a", "b"]]  # numbers are changed one by one


def test_of_some_arguments_with_rows_their_names_are_told():
    def masked(x, mask, z):
        return (x * mask).sum() + z.sum()

    found = answers(masked, {"x": X, "mask": MASK, "z": torch.tensor([1.0, 2.0, 3.0, 4.0])})
    assert found["the first row is left out (of x, mask)"].item() == 0.5 + 10
    assert found["the first row is left out (of z)"].item() == -1 + 0.5 + 9


def test_a_list_by_itself_has_no_rows():
    alone = answers(lambda word, merges: [word, *merges], {"word": "she", "merges": ["sh", "he"]})
    assert alone["merges is used in reverse"] == ["she", "he", "sh"] and "the rows are used upside down" not in alone
    both = answers(lambda words, counts: [*words, *counts], {"words": ["so", "ho"], "counts": [5, 3]})
    assert both["the rows are used upside down"] == ["ho", "so", 3, 5]


def test_the_example_may_be_written_in():
    exercise = made(lambda x, scale: x * scale)
    inputs = [{"x": X, "scale": 0.35}, {"x": X, "scale": 0.8}]
    (one,) = [one for one in whatif.candidates(exercise, inputs, [1]) if "of the example" in one.sentence]
    assert one.sentence == "scale is 0.35 whatever is given: is that number of the example written in?"
    assert one.rank == 3 and equal(whatif.answer_of(exercise, one.function, inputs[1]), 0.35 * X, 1e-6)


def test_no_operator_is_called_with_an_infinity_that_was_not_given():
    found = answers(lambda x: x.sum(-1), {"x": torch.tensor([[0.0, 1.0]])})
    assert is_record(found["1 / x is used in place of x"], "raised")
    given = torch.tensor([1.0, float("inf")])
    assert torch.equal(whatif.finite(-given, given), -given)
    with pytest.raises(ValueError):
        whatif.finite(given, torch.tensor([1.0, 2.0]))


# ----------------------------------------------------------------------------------------- results


def test_parts_of_a_pair_are_changed_by_themselves_and_together():
    found = answers(lambda x: (x.sum(-1), x.amax(-1)), {"x": X})
    total, most = torch.tensor([2.0, 3.5]), torch.tensor([3.0, 4.0])
    for sentence, wanted in {
        "the pair came in another order": [most, total],
        "only the first of the pair is returned": total,
        "only the second of the pair is returned": most,
        "the first of the pair is the second once more": [most, most],
        "the second of the pair is minus what is expected: a sign is turned": [total, -most],
        "each of the pair is twice what is expected": [2 * total, 2 * most],
        "the second value is what is expected divided by the root of the number of columns of x": [total, most / 3**0.5],
    }.items():
        assert equal(found[sentence], wanted, 1e-6), sentence


def test_three_values_have_five_other_orders():
    exercise = made(lambda a: (a, a + 1, a + 2))
    inputs = [{"a": 10}]
    orders = [one for one in whatif.candidates(exercise, inputs, [0]) if one.family == "order"]
    found = sorted(whatif.answer_of(exercise, one.function, inputs[0]) for one in orders)
    assert found == [[10, 12, 11], [11, 10, 12], [11, 12, 10], [12, 10, 11], [12, 11, 10]]
    assert {one.sentence for one in orders} == {"the 3 values came in another order"}


def test_a_change_of_one_of_a_pair_is_simpler_than_one_of_both():
    found = ranks(lambda x: (x.sum(-1), x.amax(-1)), {"x": X})
    for sentence in ("{} is minus what is expected: a sign is turned", "{} is sorted", "{} is transposed"):
        one, both = (found[sentence.format(what)] for what in ("the first of the pair", "each of the pair"))
        assert one < both < one + 1
    end = " value is the root of the number of values of x times what is expected"
    assert found["the first" + end] < found["each" + end] < found["the first" + end] + 1
    assert ranks(lambda x: x.sum(-1), {"x": X})["what comes back is sorted"] == 2


def test_values_of_a_dict_are_changed_by_themselves():
    found = answers(lambda a: {"one": a, "two": 2.0 * a}, {"a": 3.0})
    assert found["the value of 'two' is minus what is expected: a sign is turned"] == {"one": 3.0, "two": -6.0}
    assert found["the value of 'one' is a times what is expected: a sum where a mean is wanted, or a division is missing"] == {
        "one": 9.0,
        "two": 6.0,
    }


def test_texts_and_lists_that_come_back_are_changed():
    found = answers(lambda text: text.split(), {"text": "Be not afraid"})
    assert found["what comes back is in reverse"] == ["afraid", "not", "Be"]
    assert found["what comes back is one text, joined with spaces"] == "Be not afraid"
    assert found["text is taken in small letters"] == ["be", "not", "afraid"]
    found = answers(lambda words: " ".join(words), {"words": ["Be", "not"]})
    assert found["what comes back is read backwards"] == "ton eB"
    assert found["the last of words is left out"] == "Be"


def test_what_is_0_by_a_mask_is_spread_over_further_dimensions():
    def spread(x, mask):
        return x[..., None] * torch.tensor([1.0, 2.0])

    found = answers(spread, {"x": X, "mask": MASK})["what comes back is 0 where mask is 0 or False"]
    assert found.tolist() == [[[1, 2], [-2, -4], [0, 0]], [[0.5, 1], [0, 0], [0, 0]]]


def test_a_change_may_change_nothing_of_one_input_or_of_one_part_of_it():
    absolute = whatif.on_numbers(torch.abs)
    assert absolute(Y).tolist() == Y.tolist() and absolute(-Y).tolist() == Y.tolist()
    assert absolute([-1, 2]) == [1, 2] and absolute(-2.5).item() == 2.5
    assert torch.equal(absolute((-Y, -X))[1], X.abs()) and torch.equal(absolute((-Y, Y))[1], Y)
    with pytest.raises(ValueError):
        absolute("text")
    with pytest.raises(ValueError):
        whatif.on_numbers(lambda y: None)(Y)


def test_a_gradient_that_is_cut_off_is_told_where_it_is_asked_for():
    def gradient(function, x):
        x = x.clone().requires_grad_()
        function(x).sum().backward()
        return x.grad

    found = answers(lambda x: x * x, {"x": X}, call=gradient)
    assert is_record(found["no gradient flows through x: it is detached"], "raised")
    assert is_record(found["the gradient of what comes back is cut off: .detach() or .item()"], "raised")
    assert equal(found["2 * x is used in place of x"], 8 * X, 1e-6)  # the gradient, which is compared here


def test_factors_by_the_number_of_true_are_by_row_or_over_all():
    found = answers(lambda x, mask: x + 1, {"x": X, "mask": MASK})
    end = ": a mean where a sum is wanted, or one division too many"
    whole = found[f"what comes back is what is expected divided by the number of True in mask{end}"]
    rows = found[f"what comes back is what is expected divided by the number of True in the row of mask{end}"]
    assert equal(whole, (X + 1) / 3, 1e-6) and equal(rows, (X + 1) / torch.tensor([[2.0], [1.0]]), 1e-6)


# ----------------------------------------------------------------------------------------- two rows of the table


def weighed(x, weight, *, sign=1, power=1, half=False):
    return sign * weight**power * x / (2 if half else 1)


def test_two_rows_of_the_table_are_made_at_once_unless_they_set_the_same_option():
    table = {"turned": {"sign": -1}, "squared": {"power": 2}, "rooted": {"power": 0.5}, "of its own": lambda x, weight: x}
    found = answers(lambda x, weight: weight * x, {"x": X, "weight": 4.0}, formula=weighed, mistakes=table)
    two = {sentence: got for sentence, got in found.items() if "two things" in sentence}
    assert {*two} == {"two things at once. Turned; and: squared", "two things at once. Turned; and: rooted"}
    assert equal(two["two things at once. Turned; and: squared"], -16 * X, 1e-6)
    assert equal(two["two things at once. Turned; and: rooted"], -2 * X, 1e-6)


def test_pairs_of_rows_are_families_of_their_own():
    """So that two pairs that make the same are both told, or none of them."""
    table = {"turned": {"sign": -1}, "squared": {"power": 2}, "halved": {"half": True}}
    exercise = made(lambda x, weight: weight * x, formula=weighed, mistakes=table)
    families = [one.family for one in whatif.candidates(exercise, [{"x": X, "weight": 4.0}], [0]) if "two things" in one.sentence]
    assert len(set(families)) == len(families) == 3


# ----------------------------------------------------------------------------------------- order, and what has none


def test_the_likely_ranks_before_the_odd():
    found = ranks(difference, {"x": X, "y": Y, "scale": 2})
    nothing = "what the call should change, or send a gradient to, is as if nothing had been done (a copy, detach or .item()?)"
    assert found[nothing] == 0
    assert found["what comes back is minus what is expected: a sign is turned"] == 0
    assert found["x and y are exchanged"] == found["the sign of x is turned"] == 1
    assert found["y is used in the place of x"] == found["x is summed up along its last dimension first"] == 2
    assert found["scale is 10 whatever is given: is that number written in?"] == 3


def test_classes_and_functions_that_are_never_called_have_no_candidates():
    class Right:
        pass

    assert list(whatif.candidates(made(Right), [{"x": X}], [0])) == []
    assert list(whatif.candidates(made(7), [{"x": X}], [0])) == []
    assert list(whatif.candidates(made(difference, call=lambda function, x: x), [{"x": X}], [0])) == []


def test_an_answer_is_plain_data_with_the_same_random_numbers_each_time():
    exercise = made(lambda n: torch.rand(n))
    one, other = (whatif.answer_of(exercise, exercise.right, {"n": 3}) for _ in range(2))
    assert torch.equal(one, other)
    got = whatif.answer_of(exercise, lambda n: (1, 2), {"n": 3})
    assert got == [1, 2]


def test_what_raises_or_takes_too_long_is_a_record(monkeypatch):
    monkeypatch.setattr(whatif, "EACH", 0.05)
    exercise = made(lambda n: n)
    got = whatif.answer_of(exercise, lambda n: n // 0, {"n": 3})
    assert is_record(got, "raised") and got["kind"] == "ZeroDivisionError"
    started = time.monotonic()
    assert is_record(whatif.answer_of(exercise, lambda n: time.sleep(60), {"n": 3}), "raised")
    assert time.monotonic() - started < 30


def test_the_first_call_is_kept_with_its_arguments_by_name():
    def twice(function, x):
        return [function(x), function(-x)]

    def right(x):
        return x + 1

    call = whatif.first_call(made(right, call=twice), {"x": 5})
    assert call == whatif.Call({"x": 5}, 6)
    assert whatif.first_call(made(right, call=lambda function, x: None), {"x": 5}) is None
