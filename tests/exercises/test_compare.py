"""When two outputs are the same, and what is said of two that are not."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlhf_lib.exercises import EXERCISES, verdict
from rlhf_lib.exercises.compare import alike, as_tensor, difference, equal, like, off_at, one, same, shown
from rlhf_lib.exercises.plain import changed, late, odd, raised, unwritten

NAN, INF = math.nan, math.inf
TOLERANCE = 1e-5


def tensors(numbers):
    return st.lists(numbers, max_size=4).map(torch.tensor)


FLOATS = st.floats(-1e6, 1e6)
SINGLE = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
TENSORS = st.one_of(tensors(st.floats(width=32)), tensors(st.integers(-9, 9)), tensors(st.booleans()))
OUTPUTS = st.recursive(
    SINGLE | TENSORS | st.sampled_from([raised("KeyError"), unwritten(), odd("a set", [1])]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


# ----------------------------------------------------------------------------------------- the same


@pytest.mark.parametrize(
    "a, b, wanted",
    [
        (torch.tensor(1.0), 1.0, True),
        (torch.tensor([1, 2]), torch.tensor([1.0, 2.0]), True),
        (torch.tensor([1, 2], dtype=torch.int32), torch.tensor([1, 2]), True),
        (torch.tensor([1], dtype=torch.float64), torch.tensor([1], dtype=torch.float16), True),
        (torch.tensor([True]), torch.tensor([1]), False),
        (torch.tensor([True]), torch.tensor([1.0]), False),
        (True, 1, False),
        (True, torch.tensor(True), True),
        (torch.tensor([1.0]), torch.tensor(1.0), False),
        (torch.tensor([[1.0]]), torch.tensor([1.0]), False),
        (torch.tensor(NAN), torch.tensor(NAN), True),
        (torch.tensor([INF, -INF]), torch.tensor([INF, -INF]), True),
        (torch.tensor(INF), torch.tensor(-INF), False),
        (torch.tensor(1.0), torch.tensor(1.00002), False),
        (torch.tensor(1.0), torch.tensor(1.000002), True),
        (1e6, 1e6 + 5, True),  # the tolerance is relative too
        (1e6, 1e6 + 50, False),
        (torch.tensor([1 + 1j]), torch.tensor([1 + 1j]), True),
        (torch.tensor([1 + 1j]), torch.tensor([1 - 1j]), False),
        (torch.tensor([1 + 0j]), torch.tensor([1.0]), False),
        (torch.zeros(0), torch.zeros(0, dtype=torch.long), True),
        (torch.zeros(0, 2), torch.zeros(0, 3), False),
        (10**7, 10**7 + 1, False),  # whole numbers have no tolerance
        (10**400, 10**400, True),
        (10**400, 10**400 + 1, False),
        (10**400, 0.0, False),
        (2**80, float(2**80), True),
        (["a", "b"], ["a", "b"], True),
        (["a"], ["a", "b"], False),
        ([1, 2], (1, 2), True),
        ([1.0, 2.0], torch.tensor([1.0, 2.0]), False),
        ({"x": 1}, {"x": 1.0}, True),
        ({"x": 1}, {"y": 1}, False),
        ({"x": 1, "y": 2}, {"y": 2, "x": 1}, True),
        (None, None, True),
        (None, torch.tensor(0.0), False),
        (None, False, False),
        ("1", 1, False),
        ("", [], False),
        (raised("ValueError", "a"), raised("ValueError", "b"), True),
        (raised("ValueError", "a"), raised("KeyError", "a"), False),
        (raised("ValueError", "a"), ["ValueError", "a"], False),
        (raised("ValueError"), unwritten(), False),
        (late(3.0), late(3.0), False),  # nobody knows what would have come
        (odd("a set", [1, 2]), odd("a set", [1, 2]), True),
        (odd("a set", [1, 2]), odd("a set", [1, 3]), False),
        (odd("a set", [1, 2]), [1, 2], False),
        (changed("x"), changed("y"), False),
        ([unwritten()], [unwritten()], True),
    ],
)
def test_when_two_outputs_are_the_same(a, b, wanted):
    assert equal(a, b, TOLERANCE) is wanted
    assert equal(b, a, TOLERANCE) is wanted


@settings(max_examples=60, deadline=None)
@given(OUTPUTS, OUTPUTS)
def test_an_output_is_itself_and_the_very_same_is_equal(a, b):
    assert equal(a, a, 0) and same(a, a)
    assert equal(a, b, TOLERANCE) == equal(b, a, TOLERANCE)
    assert same(a, b) == same(b, a)
    assert equal(a, b, 0) or not same(a, b)


@settings(max_examples=60, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=5), st.data())
def test_one_value_off_is_seen_wherever_it_is_and_a_tenth_of_the_tolerance_is_not(values, data):
    place = data.draw(st.integers(0, len(values) - 1))
    right = torch.tensor(values, dtype=torch.float64)
    for factor, wanted in ((0.1, True), (3, False)):
        got = right.clone()
        got[place] += factor * TOLERANCE * (1 + abs(values[place]))
        assert equal(got, right, TOLERANCE) is wanted
        assert equal([1, {"a": got}], [1, {"a": right}], TOLERANCE) is wanted
        assert equal(got.tolist(), values, TOLERANCE) is wanted


@given(st.integers(), st.integers())
def test_whole_numbers_are_the_same_when_they_are_equal_as_numbers_and_as_tensors(a, b):
    assert equal(a, b, 1.0) is (a == b)
    if all(-(2**63) <= n < 2**63 for n in (a, b)):
        assert equal(torch.tensor(a), b, 1.0) is (a == b)


def test_the_very_same_means_types_shapes_and_dtypes():
    pairs = [
        (torch.tensor([NAN, 1.0]), torch.tensor([NAN, 1.0]), True),
        (torch.tensor([NAN, 1.0]), torch.tensor([1.0, NAN]), False),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), False),
        (torch.tensor([1.0]), torch.tensor([[1.0]]), False),
        (torch.tensor(1.0), 1.0, False),
        (torch.tensor(1.0), torch.tensor(1.0 + 1e-7), False),
        (1, 1.0, False),
        (1, True, False),
        (NAN, NAN, True),
        ([1], (1,), False),
        ([1, 2], [1], False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, False),  # the order is part of it
        ({"a": [NAN]}, {"a": [NAN]}, True),
        ("a", None, False),
    ]
    for a, b, wanted in pairs:
        assert same(a, b) is wanted and same(b, a) is wanted, (a, b)


def test_two_exceptions_are_one_mistakes_when_they_say_the_same_whatever_the_numbers():
    assert alike(raised("IndexError", "index 3 is out of range"), raised("IndexError", "index 15 is out of range"), 0)
    assert not alike(raised("RuntimeError", "a"), raised("RuntimeError", "b"), 0)
    assert not alike(raised("IndexError", "a"), raised("KeyError", "a"), 0)
    assert not alike(raised("IndexError", "a", "a list of 3"), raised("IndexError", "a"), 0)  # one of them returned first
    assert alike(raised("IndexError", "a", "a list of 3"), raised("IndexError", "a", "a list of 4"), 0)
    assert alike(1.0, 1.05, 0.1) and not alike(1.0, 1.05, 0.01)
    assert not alike(1.0, raised("IndexError", "a"), 0)


def test_a_number_as_a_tensor_keeps_what_it_is():
    assert [as_tensor(n).dtype for n in (True, 1, 1.0)] == [torch.bool, torch.int64, torch.float64]
    assert as_tensor(2**63 - 1).item() == 2**63 - 1
    assert as_tensor(2**63).item() == 2.0**63 and as_tensor(-(10**400)).item() == -INF
    with torch.no_grad():
        tensor = torch.zeros(2, dtype=torch.int8)
        assert as_tensor(tensor) is tensor


# ----------------------------------------------------------------------------------------- in words


@pytest.mark.parametrize(
    "got, expected, sentence",
    [
        (torch.zeros(3, 1), torch.zeros(3), "the shape is (3, 1), it should be (3,)"),
        (torch.zeros(2, dtype=torch.bool), torch.zeros(2), "the values are torch.bool, they should be torch.float32"),
        (0.25, 0.5, "0.25 came out, 0.5 was expected"),
        (3, torch.tensor(4), "3 came out, 4 was expected"),
        (1.00003, 1.0, "1.00003 came out, 1.0 was expected"),  # not "1.0 came out, 1.0 was expected"
        (2**80 + 1, 2.0**70, "1.2089e+24 came out, 1.1806e+21 was expected"),
        (torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.5, 3.0]), "2 of 3 values are off, by up to 1"),
        (torch.tensor([1, 9]), torch.tensor([1, 2]), "1 of 2 values are off, the first at place 1"),
        (torch.tensor([2**62, 0]), torch.tensor([2**62 + 1, 0]), "1 of 2 values are off, the first at place 0"),
        (torch.tensor([1.0, 9.0]), torch.tensor([1, 2]), "1 of 2 values are off, by up to 7"),
        (
            torch.tensor([[True, False], [True, True]]),
            torch.tensor([[True, False], [False, False]]),
            "2 of 4 values are wrong, the first at place (1, 0)",
        ),
        (
            torch.tensor([1.0, NAN]),
            torch.tensor([1.0, 2.0]),
            "there is an infinity or a NaN in what came out: a NaN at place 1",
        ),
        (-INF, 1.0, "there is an infinity or a NaN in what came out: an infinity"),
        (torch.tensor([-INF, -INF]), torch.tensor([-INF, 0.5]), "-inf came out at place 1, where 0.5 was expected"),
        (torch.tensor([INF, 0.0]), torch.tensor([INF, 1.0]), "1 of 2 values are off, by up to 1"),
        (torch.tensor([NAN, 0.0]), torch.tensor([NAN, 1.0]), "1 of 2 values are off, by up to 1"),
        (torch.tensor([0.0, 2.0]), torch.tensor([0.0, INF]), "2.0 came out at place 1, where inf was expected"),
        (torch.tensor([-INF, 2.0]), torch.tensor([INF, 2.0]), "-inf came out at place 0, where inf was expected"),
        (torch.tensor([0.0, 2.0]), torch.tensor([0.0, NAN]), "2.0 came out at place 1, where nan was expected"),
        (None, 1.0, "it returned None; end every way through it with a return"),
        ([None], [1.0], "the first value is wrong: it is None, it should be the number 1.0"),
        ("0.5", 0.5, "it returned a str, it should return the number 0.5"),
        ([1.0], torch.zeros(2), "it returned a list of 1, it should return a tensor of shape (2,)"),
        ("to be", "to be or not", "the text ends too early: ' or not' is missing at its end"),
        ("to be!", "to be", "the text goes on too long: '!' is too much at its end"),
        ("bake", "bike", "the texts differ from place 1 on: 'bake' came out, 'bike' was expected"),
        (
            "0123456789abcde" + "x" * 30,
            "0123456789abcde" + "y" * 30,  # ten characters before, and the place with nineteen behind it
            f"the texts differ from place 15 on: '56789abcde{'x' * 20}' came out, '56789abcde{'y' * 20}' was expected",
        ),
        ({"a": 1}, {"a": 1, "b": 2, "c": 3}, "keys are missing: 'b', 'c'"),
        ({"a": 1, "b": 2}, {"a": 1}, "there are keys that should not be there: 'b'"),
        ({"a": 1}, {"b": 1}, "the key 'b' is missing; there is 'a' instead"),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "value of 'b' is wrong: 2 came out, 3 was expected"),
        (
            {"a": {"b": []}},
            {"a": {"b": [1]}},
            "value of 'a' is wrong: value of 'b' is wrong: it is a list with 0 values, it should have 1",
        ),
        ([1, 2, 3], [1, 2], "it returned a list with 3 values, it should have 2"),
        ([1, 2, 3, 4], (1, 2, 3), "it returned 4 values, it should return 3"),
        ([1], (1, 2), "it returned 1 value, it should return a pair"),
        ([1, 5], (1, 2), "the second of the pair is wrong: 5 came out, 2 was expected"),
        ([1, 2, 5], (1, 2, 3), "the third of 3 values is wrong: 5 came out, 3 was expected"),
        ([4, 5], (1, 2), "both of the pair are wrong; the first: 4 came out, 1 was expected"),
        ([4, 2, 5], (1, 2, 3), "the first and third of 3 values are wrong; the first: 4 came out, 1 was expected"),
        (
            [1, 4, 5, 6],
            (1, 2, 3, 4),
            "the second, third and fourth of 4 values are wrong; the second: 4 came out, 2 was expected",
        ),
        ([4, 5, 6], (1, 2, 3), "all of 3 values are wrong; the first: 4 came out, 1 was expected"),
        ([1, 2, 5], [1, 2, 3], "the third value is wrong: 5 came out, 3 was expected"),
        ([0] * 12, [*[0] * 11, 1], "value 12 of 12 is wrong: 0 came out, 1 was expected"),
        (raised("IndexError", "index 3"), 1.0, "it raised IndexError: index 3"),
        (raised("IndexError"), 1.0, "it raised IndexError"),
        (raised("Unfit", "the size varies", "a pair"), 1.0, "the size varies"),
        (
            raised("RuntimeError", "element 0 of tensors does not require grad", "a tensor of shape ()"),
            1.0,
            "it returned a tensor of shape () without a gradient: .detach(), .item(), float() or torch.no_grad() cut it off",
        ),
        (
            raised("AttributeError", "'float' object has no attribute 'backward'", "the number 1.0"),
            1.0,
            "it returned the number 1.0, and a plain number has no gradient: .item() or float() cuts it off",
        ),
        (
            raised("AttributeError", "'float' object has no attribute 'backward'"),  # raised in the learner's own function
            1.0,
            "it raised AttributeError: 'float' object has no attribute 'backward'",
        ),
        (
            raised("AttributeError", "no backward", "the number 1.0"),
            1.0,
            "it returned the number 1.0, which cannot be used as the card says (AttributeError: no backward)",
        ),
        (changed("x"), 1.0, "it changed its argument x in place; make a new tensor instead"),
        (
            changed("model", "in place: its weights are others"),
            1.0,
            "it changed its argument model in place: its weights are others",
        ),
        (late(5.0), 1.0, "it was stopped after 5 seconds: is there a loop that never ends?"),
        (odd("a set"), [1], "it returned a set, it should return a list of 1"),
        ([odd("a set")], [[1, 2]], "the first value is wrong: it is a set, it should be a list of 2"),
        (unwritten(), 1.0, "it is not written yet"),
        (2.0, raised("ValueError"), "it should raise ValueError; it returned the number 2.0"),
        (None, raised("ValueError"), "it should raise ValueError; it returned None"),
    ],
)
def test_a_difference_is_said_in_a_sentence(got, expected, sentence):
    assert not equal(got, expected, TOLERANCE)
    assert difference(got, expected, TOLERANCE) == sentence


@settings(max_examples=80, deadline=None)
@given(OUTPUTS, OUTPUTS)
def test_any_two_different_outputs_get_one_sentence_without_its_full_stop(got, expected):
    assume(not equal(got, expected, TOLERANCE))
    sentence = difference(got, expected, TOLERANCE)
    assert len(sentence) > 10 and not sentence.endswith(".") and "by up to nan" not in sentence and "\n" not in sentence


@settings(max_examples=60, deadline=None)
@given(st.lists(FLOATS, min_size=2, max_size=6), st.data())
def test_the_values_that_are_off_are_counted(values, data):
    places = data.draw(st.sets(st.integers(0, len(values) - 1), min_size=1))
    right = torch.tensor(values, dtype=torch.float64)
    got = right.clone()
    got[list(places)] += 1000.0
    assert difference(got, right, TOLERANCE) == f"{len(places)} of {len(values)} values are off, by up to 1e+03"


@given(st.text(max_size=30), st.text(max_size=30))
def test_the_place_where_two_texts_part_is_where_they_are_the_same_no_longer(a, b):
    assume(a != b)
    sentence = difference(a, b, 0)
    if b.startswith(a):
        assert sentence.startswith("the text ends too early")
    elif a.startswith(b):
        assert sentence.startswith("the text goes on too long")
    else:
        place = int(sentence.split("from place ")[1].split()[0])
        assert a[:place] == b[:place] and a[place] != b[place]


# ----------------------------------------------------------------------------------------- values as text


@pytest.mark.parametrize(
    "value, text",
    [
        (1.0, "1.0"),
        (-0.0, "0.0"),
        (torch.tensor([-0.0, -0.5]), "[0.0, -0.5]"),
        (0.123456789, "0.12346"),
        (1e-9, "1e-09"),
        (NAN, "nan"),
        (-INF, "-inf"),
        (7, "7"),
        (True, "True"),
        (None, "None"),
        ("a\nb", "'a\\nb'"),
        (torch.tensor(2.0), "2.0"),
        (torch.tensor([[1, 2], [3, 4]]), "[[1, 2], [3, 4]]"),
        (torch.tensor([0.5, 1.0]), "[0.5, 1.0]"),
        (torch.zeros(0), "[]"),
        ([1, [2.0, "x"]], "[1, [2.0, 'x']]"),
        ((1, 2), "(1, 2)"),
        ({"a": torch.tensor([1])}, "{'a': [1]}"),
        (odd("a set"), "a set"),
        ([raised("ValueError"), unwritten()], "[ValueError, nothing]"),
    ],
)
def test_a_value_is_shown_as_one_would_write_it(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    "got, expected, text",
    [
        ([1, 2], (3, 4), "(1, 2)"),
        ([[1, 2], 5], ([1, 3], 4), "([1, 2], 5)"),
        ([["a", "b"], ["c", "d"]], [("a", "b")], "[('a', 'b'), ('c', 'd')]"),
        ({"a": [1, 2], "b": [3]}, {"a": (1, 3)}, "{'a': (1, 2), 'b': [3]}"),
        ([[1]], [], "[[1]]"),
        ([1], torch.zeros(1), "[1]"),
        ([1], (1, 2), "(1,)"),
    ],
)
def test_what_came_out_has_the_brackets_of_what_was_expected(got, expected, text):
    assert shown(like(got, expected)) == text


@given(st.floats(-1e300, 1e300))
def test_a_float_is_shown_to_five_digits_and_never_as_a_whole_number(number):
    text = one(number)
    assert not text.lstrip("-").isdigit()
    assert math.isclose(float(text), number, rel_tol=1e-4, abs_tol=1e-300)


@settings(max_examples=60, deadline=None)
@given(OUTPUTS, st.sampled_from([60, 160]))
def test_a_shown_value_stands_in_one_line_of_the_width_that_was_asked_for(value, width):
    text = shown(value, width)
    assert len(text.removesuffix(" ...")) <= width and "\n" not in text


@pytest.mark.parametrize(
    "value", [list(range(1000)), "x" * 5000, {"a": ["y" * 300] * 50}, [[torch.zeros(9, 9)] * 9] * 9, 10**300]
)
def test_what_is_too_long_is_cut_off(value):
    assert len(shown(value)) == 164 and shown(value).endswith(" ...")


def test_of_a_tensor_that_is_cut_off_the_shape_is_said():
    text = shown(torch.arange(300.0).view(30, 10))
    assert text.startswith("a tensor of shape (30, 10): [[0.0, 1.0, 2.0") and text.endswith(" ...") and len(text) == 164


def test_a_number_too_long_for_python_to_write_out_gets_a_message_too():
    name = "discounted_returns"
    assert shown([10**5000, 1]) == "[a whole number of more than 3000 digits, 1]"
    for value in (10**5000, [-(10**5000)], {10**5000: 1}):
        found = verdict(name, lambda rewards, gamma, value=value: value)
        assert not found.passed and "came out: " in found.message
    assert verdict(name, EXERCISES[name].right).passed


def test_where_values_are_off_infinities_count_as_values():
    inf, nan = math.inf, math.nan
    got = torch.tensor([1.0, 1.0, 5.0, inf, -inf, -inf, nan, nan, 1.05], dtype=torch.float64)
    expected = torch.tensor([1.0, 1.2, -inf, inf, inf, 5.0, nan, 1.0, 1.0], dtype=torch.float64)
    assert off_at(got, expected, 0.05).tolist() == [False, True, True, False, True, True, False, True, False]
