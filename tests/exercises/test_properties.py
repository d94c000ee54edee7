"""Properties of inputs, and those that separate the inputs on which an answer is wrong from those on which it is right."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib.exercises.properties import far_longer, length_of, properties, separating

TENSORS = st.one_of(
    st.lists(st.floats(width=32), max_size=4).map(torch.tensor),
    st.lists(st.integers(-3, 3), max_size=4).map(lambda values: torch.tensor(values, dtype=torch.long)),
    st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=1, max_size=3).map(torch.tensor),
    st.just(torch.tensor(0.5)),
    st.just(torch.zeros(2, 0, 3)),
)
VALUES = st.one_of(
    st.booleans(),
    st.integers(-5, 5),
    st.floats(),
    st.text(max_size=6),
    st.lists(st.integers(-2, 2), max_size=4),
    st.lists(st.text(max_size=2), max_size=3),
    st.lists(TENSORS, max_size=2),
    TENSORS,
    st.none(),
)


def true_of(**arguments):
    """The sentences that are true of an input."""
    return {sentence for sentence, holds in properties(arguments).items() if holds}


# ----------------------------------------------------------------------------------------- one argument


@pytest.mark.parametrize(
    "x, wanted",
    [
        (
            torch.tensor([[True, True], [True, True]]),
            {"x is True somewhere", "x has more than one row", "x has more than one column"},
        ),
        (
            torch.tensor([[True, False], [False, False]]),
            {
                "x is True somewhere",
                "x is False somewhere",
                "a row of x is False everywhere",
                "a row of x begins with False",
                "a row of x ends with False",
                "x has more than one row",
                "x has more than one column",
            },
        ),
        (torch.tensor([False, True]), {"x is True somewhere", "x is False somewhere", "x has more than one value"}),
        (torch.tensor([2.0]), {"there are values above 1 in x", "all values of x are equal"}),
        (
            torch.tensor([0.0, -60.0, 0.0]),
            {
                "there is a 0 in x",
                "there is a negative value in x",
                "there are equal values in x",
                "there are large values (above 50) in x",
                "x has more than one value",
            },
        ),
        (
            torch.tensor([[1, 2], [2, 1]]),
            {"there are equal values in x", "x has more than one row", "x has more than one column"},
        ),
        (
            torch.tensor([[1, 1]]),
            {
                "there are equal values in x",
                "there are equal values in a row of x",
                "all values of x are equal",
                "x has more than one column",
            },
        ),
        (torch.tensor([0.5, math.nan]), {"there is an infinity or a NaN in x", "x has more than one value"}),
        (torch.tensor(-0.5), {"there is a negative value in x", "all values of x are equal"}),
        (torch.zeros(0), {"x is empty"}),
        (True, {"x is True"}),
        (False, set()),
        (1, set()),
        (0, {"x is 0", "x is not 1"}),
        (-3, {"x is not 1", "x is negative"}),
        (2.0, {"x is not 1", "x is above 1"}),
        (0.5, {"x is not 1", "x is no whole number"}),
        (math.inf, {"x is not 1", "x is above 1"}),
        (math.nan, {"x is not 1"}),
        ("", {"x is empty"}),
        ("a", set()),
        ("aB", {"x has more than one character", "there is a capital letter in x"}),
        ("é1", {"x has more than one character", "there is a letter that is not ASCII in x", "there is a digit in x"}),
        (
            "a \n",
            {
                "x has more than one character",
                "there is a line break in x",
                "there are two spaces or line breaks in a row in x",
                "x begins or ends with white space",
            },
        ),
        (
            "it's",
            {"x has more than one character", "there is punctuation in x", "there is an apostrophe in x"},
        ),
        (
            "too-",
            {
                "x has more than one character",
                "there is punctuation in x",
                "there is a hyphen in x",
                "a character stands twice in a row in x",
            },
        ),
        ([], {"x is empty"}),
        ([3], {"all values of x are equal"}),
        (
            [0, -1, 0],
            {"x has more than one value", "the same stands twice in x", "there is a negative value in x", "there is a 0 in x"},
        ),
        (
            (2, 2),
            {
                "x has more than one value",
                "the same stands twice in x",
                "the same stands twice in a row in x",
                "all values of x are equal",
            },
        ),
        (
            ["a", "B"],
            {
                "x has more than one value",
                "there is a capital letter in x",
            },
        ),
        (
            ["ab", ""],
            {
                "x has more than one value",
                "a text in x is empty",
            },
        ),
        (
            ["ab", "ab"],
            {
                "x has more than one value",
                "the same stands twice in x",
                "the same stands twice in a row in x",
                "all texts in x are equal",
            },
        ),
        ([[1], []], {"x has more than one value", "the parts of x have different lengths", "a part of x is empty"}),
        ([torch.zeros(2), torch.ones(3)], {"x has more than one value", "the parts of x have different lengths"}),
        ([torch.tensor(1.0), torch.tensor(2.0)], {"x has more than one value"}),  # which have no length
        ([None, {}], {"x has more than one value"}),
        (None, set()),
    ],
)
def test_what_is_true_of_one_argument(x, wanted):
    assert true_of(x=x) == wanted


def test_the_length_of_an_argument_is_that_of_its_last_dimension():
    values = ["abc", [1, 2], (), torch.zeros(2, 5), torch.tensor(1.0), 7, None]
    assert [length_of(value) for value in values] == [3, 2, 0, 5, None, None, None]


# ----------------------------------------------------------------------------------------- two arguments


def of_both(**arguments):
    """The sentences that are true of two arguments and name both."""
    a, b = arguments
    return {sentence for sentence in true_of(**arguments) if a in sentence.split() and b in sentence.split()}


@pytest.mark.parametrize(
    "k, x, wanted",
    [
        (2, [1, 2, 3, 4], set()),
        (4, "abcd", {"k is as large as the length of x"}),
        (3, "abcd", {"k does not divide the length of x"}),
        (5, "abcd", {"k is larger than the length of x", "k does not divide the length of x"}),
        (0, "abcd", set()),
        (True, "abcd", set()),
        (2.0, "abcd", set()),
        (
            3,
            torch.zeros(2, 3),
            {
                "k is as large as the length of x",
                "k does not divide the number of rows of x",
                "k is larger than the number of rows of x",
            },
        ),
        (3, torch.tensor(1.0), set()),
    ],
)
def test_what_is_true_of_a_number_and_a_size(k, x, wanted):
    assert of_both(k=k, x=x) == wanted
    assert of_both(x=x, k=k) == wanted


@pytest.mark.parametrize(
    "p, q, wanted",
    [
        (2, 2, set()),
        (2, 6, {"p and q are different", "p is smaller than q", "q does not divide p"}),
        (6, 4, {"p and q are different", "p is larger than q", "p does not divide q", "q does not divide p"}),
        (0.5, 1, {"p and q are different", "p is smaller than q"}),
        ("ab", [1], {"p and q have different lengths"}),
        ("ab", [1, 2], set()),
        (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0]), {"p and q are equal somewhere"}),
        (torch.tensor([1.0, 2.0]), torch.tensor([3, 2]), set()),
        (torch.zeros(1, 2), torch.zeros(2), set()),
    ],
)
def test_what_is_true_of_two_numbers_or_two_sizes(p, q, wanted):
    assert of_both(p=p, q=q) == wanted
    assert of_both(q=q, p=p) == wanted


# ----------------------------------------------------------------------------------------- all of them


@settings(max_examples=100, deadline=None)
@given(VALUES, VALUES)
def test_of_any_input_each_sentence_names_its_arguments_and_is_true_or_false(one, other):
    found = properties({"alpha": one, "beta": other})
    assert all(type(holds) is bool for holds in found.values())
    assert all("alpha" in sentence or "beta" in sentence for sentence in found)
    assert {sentence for sentence in found if "beta" not in sentence} == set(properties({"alpha": one}))


# ----------------------------------------------------------------------------------------- separating


def numbers(*values):
    return [{"x": value} for value in values]


def test_the_property_is_found_that_only_the_wrong_inputs_have():
    assert separating(numbers(3, 1, -2, 4, -5), [2, 4]) == ["x is negative"]
    assert separating([{"text": text} for text in ("ab", "b", "abc", "A", "cAb")], [3, 4]) == [
        "there is a capital letter in text"
    ]
    inputs = [{"k": k, "x": torch.arange(4.0)} for k in (1, 2, 3, 4, 3)]
    assert separating(inputs, [2, 4]) == ["k does not divide the length of x"]


def test_all_properties_are_named_that_separate_equally_well():
    assert separating(numbers(1, 0, 1), [1]) == ["x is 0", "x is not 1", "x is not 1, as it is in the first example"]
    assert separating(numbers(3, -1, 3), [1]) == ["x is negative", "x is not 3, as it is in the first example"]


def test_a_property_that_a_right_input_has_or_a_wrong_one_lacks_is_not_named():
    assert separating(numbers(1, 1, -1, -2), [2]) == []
    assert separating(numbers(1, 1, -1, 1), [2, 3]) == []
    assert separating(numbers(3, 3, 3), [1]) == []


def test_a_constant_that_was_written_in_shows_by_the_first_example():
    assert separating([{"gamma": gamma, "on": True} for gamma in (0.5, 0.5, 0.9, 0.25)], [2, 3]) == [
        "gamma is not 0.5, as it is in the first example"
    ]
    assert separating([{"on": on} for on in (True, False, False)], [1, 2]) == []  # that it is True is no number written in


def test_a_property_that_not_all_inputs_can_have_is_not_named():
    assert separating([{"x": 1}, {"x": 1}, {"x": "-"}], [2]) == ["x is not 1, as it is in the first example"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.fixed_dictionaries({"k": st.integers(-3, 6), "text": st.text("aB -", max_size=4)}), min_size=2, max_size=5),
    st.data(),
)
def test_what_is_named_is_true_of_just_the_wrong_inputs(inputs, data):
    wrong = sorted(data.draw(st.sets(st.integers(0, len(inputs) - 1), min_size=1)))
    have = [properties(arguments) for arguments in inputs]
    named = separating(inputs, wrong)
    for sentence in named:
        of_first = [arguments["k"] != inputs[0]["k"] for arguments in inputs]
        holds = of_first if "as it is in the first example" in sentence else [one[sentence] for one in have]
        assert [place for place, one in enumerate(holds) if one] == wrong
    for sentence in set.intersection(*map(set, have)):
        if [place for place, one in enumerate(have) if one[sentence]] == wrong:
            assert sentence in named


def test_inputs_that_are_by_far_longer_than_all_others_are_told():
    inputs = [{"k": 5, "x": torch.zeros(*shape), "names": ["a"] * 7} for shape in ((3,), (2, 5), (300,), (4,), (10, 31))]
    assert far_longer(inputs, [2, 4]) == ["x is by far longer than in the others (300 values and more, 10 at most)"]
    assert far_longer(inputs, [4]) == []  # the other long one is right
    assert far_longer(inputs[:2], [1]) == []  # three times as long, and short
    assert far_longer([{"text": "x" * size} for size in (20, 300, 200)], [1, 2]) == [
        "text is by far longer than in the others (200 values and more, 20 at most)"
    ]
    assert far_longer([{"text": "x" * size} for size in (20, 300, 199)], [1, 2]) == []
    assert far_longer([{"text": "x" * size} for size in (21, 300, 200)], [1, 2]) == []
    assert far_longer([{"x": 1}, {"x": "x" * 300}, {"x": ""}], [1]) == []
