"""What learners do to a right result: each change does what its sentence says, and is told from the others."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib.exercises.compare import equal, same
from rlhf_lib.exercises.results import COMBINED, FACTORS, LISTED, RESULT, of_floats, of_many, sizes

Y = torch.tensor([[1.0, -2.0], [4.0, 0.5]])
V = torch.tensor([3.0, 1.0, 2.0])


def changes(table, words):
    """The changes whose sentence begins with `words`, up to a colon or to its end."""
    found = [change for sentence, change in table if sentence.split(":")[0] == words]
    assert found, words
    return found


def t(*values):
    return torch.tensor(values)


# ----------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    "words, value, wanted",
    [
        ("{y} is minus what is expected", V, t(-3.0, -1.0, -2.0)),
        ("{y} is twice what is expected", V, t(6.0, 2.0, 4.0)),
        ("{y} is half of what is expected", V, t(1.5, 0.5, 1.0)),
        ("{y} is 100 times what is expected", V, t(300.0, 100.0, 200.0)),
        ("{y} is a hundredth of what is expected", V, t(0.03, 0.01, 0.02)),
        ("{y} is divided by ln 2", t(math.log(8)), t(3.0)),
        ("{y} is multiplied by ln 2", t(3.0), t(math.log(8))),
        ("{y} is divided by ln 10", t(math.log(1000)), t(3.0)),
        ("{y} is 4 times what is expected", V, t(12.0, 4.0, 8.0)),
        ("{y} is a quarter of what is expected", V, t(0.75, 0.25, 0.5)),
        ("{y} is exp of what is expected", t(0.0, 1.0), t(1.0, math.e)),
        ("{y} is the logarithm of what is expected", t(1.0, math.e), t(0.0, 1.0)),
        ("{y} is 2 to the power of what is expected", V, t(8.0, 2.0, 4.0)),
        ("{y} is the logarithm, to base 2, of what is expected", t(8.0, 2.0), t(3.0, 1.0)),
        ("{y} is minus the logarithm of what is expected", t(1.0, math.e), t(0.0, -1.0)),
        ("{y} is exp of minus what is expected", t(0.0, -1.0), t(1.0, math.e)),
        ("{y} is the square of what is expected", V, t(9.0, 1.0, 4.0)),
        ("{y} is the root of what is expected", t(9.0, 4.0), t(3.0, 2.0)),
        ("{y} is 1 minus what is expected", V, t(-2.0, 0.0, -1.0)),
        ("{y} is what is expected plus 1", V, t(4.0, 2.0, 3.0)),
        ("{y} is what is expected minus 1", V, t(2.0, 0.0, 1.0)),
        ("{y} is 1 divided by what is expected", t(4.0, 0.5), t(0.25, 2.0)),
        ("{y} has True and False exchanged", t(True, False), t(False, True)),
        ("{y} is the absolute value of what is expected", t(-1.0, 2.0), t(1.0, 2.0)),
        ("{y} has 0 where what is expected is negative", t(-1.0, 2.0), t(0.0, 2.0)),
        ("{y} has 0 where what is expected is positive", t(-1.0, 2.0), t(-1.0, 0.0)),
        ("{y} is kept between 0 and 1", t(-1.0, 0.5, 2.0), t(0.0, 0.5, 1.0)),
        ("{y} is kept between -1 and 1", t(-3.0, 0.5, 2.0), t(-1.0, 0.5, 1.0)),
        ("{y} has 1 where what is expected is larger", t(-3.0, 2.0), t(-3.0, 1.0)),
        ("{y} has 1 where what is expected is smaller", t(-3.0, 2.0), t(1.0, 2.0)),
        ("{y} went through sigmoid once more", t(0.0, math.log(3)), t(0.5, 0.75)),
        ("{y} went through softmax once more", t(0.0, math.log(3)), t(0.25, 0.75)),
        ("{y} went through log_softmax once more", t(0.0, math.log(3)), t(math.log(0.25), math.log(0.75))),
        ("{y} is log-odds, or went through the inverse of sigmoid", t(0.5, 0.75), t(0.0, math.log(3))),
        ("{y} went through tanh once more", t(0.0, math.log(2)), t(0.0, 0.6)),
        ("{y} is rounded to whole numbers", t(-1.6, 1.2), t(-2.0, 1.0)),
        ("the fractions of {y} are cut off", t(-1.6, 1.2), t(-1.0, 1.0)),
        ("the fractions of {y} are rounded down", t(-1.6, 1.2), t(-2.0, 1.0)),
        ("the fractions of {y} are rounded up", t(-1.6, 1.2), t(-1.0, 2.0)),
        ("{y} is rounded to 1 digit", t(0.12345), t(0.1)),
        ("{y} is rounded to 2 digits", t(0.12345), t(0.12)),
        ("{y} is rounded to 3 digits", t(0.12345), t(0.123)),
        ("{y} is rounded to 4 digits", t(0.12344), t(0.1234)),
        ("{y} is transposed", Y, t([1.0, 4.0], [-2.0, 0.5])),
        ("{y} is read from the end to the beginning along its last dimension", Y, t([-2.0, 1.0], [0.5, 4.0])),
        ("{y} has its rows upside down", Y, t([4.0, 0.5], [1.0, -2.0])),
        ("{y} is one place too far to the right", V, t(0.0, 3.0, 1.0)),
        ("{y} is one place too far to the left", V, t(1.0, 2.0, 0.0)),
        ("{y} is one row too far down", Y, t([0.0, 0.0], [1.0, -2.0])),
        ("{y} is one row too far up", Y, t([4.0, 0.5], [0.0, 0.0])),
        ("{y} is rolled by one place to the right", V, t(2.0, 3.0, 1.0)),
        ("{y} is rolled by one place to the left", V, t(1.0, 2.0, 3.0)),
        ("{y} is sorted", V, t(1.0, 2.0, 3.0)),
        ("{y} is sorted downwards", V, t(3.0, 2.0, 1.0)),
        ("{y} is the places that sort it, not the values", V, t(1, 2, 0)),
        ("{y} is summed up along its last dimension", V, t(3.0, 4.0, 6.0)),
        ("{y} is summed up from the end along its last dimension", V, t(6.0, 3.0, 2.0)),
        ("{y} is the differences between neighbours", V, t(-2.0, 1.0)),
        ("{y} is the mean of what is expected", V, torch.tensor(2.0)),
        ("{y} is the sum of what is expected", V, torch.tensor(6.0)),
        ("{y} is the mean of what is expected, everywhere", V, t(2.0, 2.0, 2.0)),
        ("{y} has its mean taken off", Y, t([0.125, -2.875], [3.125, -0.375])),
        ("{y} has its mean taken off in each row", Y, t([1.5, -1.5], [1.75, -1.75])),
        ("{y} is whitened once more", t(1.0, 5.0), t(-1.0, 1.0)),
        ("{y} is divided by its standard deviation", V, V),
        ("{y} is divided by its sum", V, V / 6),
        ("each row of {y} is divided by its sum", t([1.0, 3.0], [2.0, 0.0]), t([0.25, 0.75], [1.0, 0.0])),
        ("{y} is the largest of what is expected", Y, torch.tensor(4.0)),
        ("{y} is summed over its last dimension", Y, t(-1.0, 4.5)),
        ("{y} is averaged over its last dimension", Y, t(-0.5, 2.25)),
        ("{y} is summed over its rows", Y, t(5.0, -1.5)),
        ("{y} is averaged over its rows", Y, t(2.5, -0.75)),
        ("the first row of {y} stands in all rows", Y, t([1.0, -2.0], [1.0, -2.0])),
        ("the last row of {y} stands in all rows", Y, t([4.0, 0.5], [4.0, 0.5])),
        ("{y} lacks its last value", V, t(3.0, 1.0)),
        ("{y} lacks its first value", V, t(1.0, 2.0)),
        ("{y} lacks its last row", Y, t([1.0, -2.0])),
        ("{y} lacks its first row", Y, t([4.0, 0.5])),
        ("{y} has only its last row", Y, t(4.0, 0.5)),
        ("{y} has 0 in its first place", V, t(0.0, 1.0, 2.0)),
        ("{y} has 0 in its last place", V, t(3.0, 1.0, 0.0)),
        ("{y} has 0 in its first row", Y, t([0.0, 0.0], [4.0, 0.5])),
        ("{y} has 0 in its last row", Y, t([1.0, -2.0], [0.0, 0.0])),
        ("{y} has a NaN taken for 0", t(math.nan, math.inf, 1.0), t(0.0, math.inf, 1.0)),
        ("{y} has infinities and NaN taken for 0", t(math.nan, -math.inf, 1.0), t(0.0, 0.0, 1.0)),
        ("{y} is the square divided by 2", V, t(4.5, 0.5, 2.0)),
    ],
)
def test_a_change_does_what_its_sentence_says(words, value, wanted):
    before = value.clone()
    (change,) = changes(RESULT, words)
    assert equal(change(value), wanted, 1e-6)
    assert same(value, before)


def test_a_first_row_may_come_with_its_dimension_or_without():
    assert [change(Y).tolist() for change in changes(RESULT, "{y} has only its first row")] == [[[1.0, -2.0]], [1.0, -2.0]]


def test_a_gradient_is_cut_off_and_the_values_stay():
    (change,) = changes(RESULT, "the gradient of {y} is cut off")
    value = V.clone().requires_grad_()
    assert not change(value).requires_grad and torch.equal(change(value), V)


@pytest.mark.parametrize(
    "words, value, wanted",
    [
        ("{y} is in reverse", ["a", "b"], ["b", "a"]),
        ("{y} is sorted", [2, 1], [1, 2]),
        ("{y} is sorted downwards", [1, 2], [2, 1]),
        ("{y} lacks its last value", [1, 2, 3], [1, 2]),
        ("{y} lacks its first value", [1, 2, 3], [2, 3]),
        ("{y} has only its first value", [1, 2, 3], [1]),
        ("{y} is the first value alone", [1, 2, 3], 1),
        ("{y} is the last value alone", [1, 2, 3], 3),
        ("{y} has no repetitions", ["b", "a", "b"], ["b", "a"]),
        ("{y} is the number of values, not the values", [5, 6, 7], 3),
        ("{y} is one text, joined", ["a", "b"], "ab"),
        ("{y} is one text, joined with spaces", ["a", "b"], "a b"),
        ("{y} lacks what is empty", ["a", "", " "], ["a", " "]),
        ("{y} lacks white space", ["a", "", " "], ["a", ""]),
        ("the texts of {y} are in small letters", ["To", "BE"], ["to", "be"]),
        ("the texts of {y} lack white space at their ends", [" a b\n"], ["a b"]),
        ("the texts of {y} are cut into characters", ["to", "be"], ["t", "o", "b", "e"]),
        ("the parts of {y} are read backwards", ["ab", [1, 2]], ["ba", [2, 1]]),
        ("{y} has one value too many at its end, the last one again", [1, 2], [1, 2, 2]),
    ],
)
def test_a_change_of_a_list_does_what_its_sentence_says(words, value, wanted):
    before = list(value)
    (change,) = changes(LISTED, words)
    assert same(change(value), wanted) and value == before


@pytest.mark.parametrize(
    "words, wanted",
    [
        ("{x} is added to what is expected", t(5.0, 1.0)),
        ("{x} is taken off what is expected", t(1.0, 1.0)),
        ("what is expected is multiplied by {x}", t(6.0, 0.0)),
        ("what is expected is divided by {x}", t(1.5, math.inf)),
        ("what comes back is 0 where {x} is 0 or False", t(3.0, 0.0)),
    ],
)
def test_a_result_is_put_together_with_an_argument(words, wanted):
    (change,) = changes(COMBINED, words)
    assert same(change(t(3.0, 1.0), t(2.0, 0.0)), wanted)


def test_a_mask_of_true_and_false_leaves_a_result_where_it_is_true():
    (change,) = changes(COMBINED, "what comes back is 0 where {x} is 0 or False")
    assert same(change(t(3.0, 1.0), t(False, True)), t(0.0, 1.0))


# ----------------------------------------------------------------------------------------- the tables as a whole


def test_every_change_of_a_result_is_worked_out_above():
    tested = {row[0] for row in test_a_change_does_what_its_sentence_says.pytestmark[0].args[1]}
    left = {sentence.split(":")[0] for sentence, _ in RESULT} - tested
    assert left == {"{y} has only its first row", "the gradient of {y} is cut off"}
    listed = {row[0] for row in test_a_change_of_a_list_does_what_its_sentence_says.pytestmark[0].args[1]}
    assert listed == {sentence for sentence, _ in LISTED}


def test_a_sentence_names_what_it_is_about_and_ends_without_a_full_stop():
    assert all("{y}" in sentence for sentence, _ in RESULT + LISTED)
    assert all("{x}" in sentence for sentence, _ in COMBINED)
    assert all("{y}" in sentence and "{n}" in sentence for sentence, _, _ in FACTORS)
    everything = [row[0] for row in RESULT + LISTED + COMBINED + FACTORS]
    assert not any(sentence.endswith(".") for sentence in everything)


def outcomes(value):
    """The tensors that the changes make of `value`, but for those that leave it as it is."""
    made = []
    for sentence, change in RESULT:
        try:
            out = change(value)
        except ValueError:  # not for numbers of this type
            continue
        if out is not None and not same(out, value):
            made.append((sentence, out))
    return made


@pytest.mark.parametrize("value", [t(0.5, -2.0), t(1, 2)])
def test_no_change_makes_nothing_of_a_result(value):
    """Else an answer of None would be told what it has exchanged."""
    exchanged = dict(RESULT)["{y} has True and False exchanged"]
    with pytest.raises(ValueError):
        exchanged(value)


def test_no_two_changes_make_the_same_of_a_result():
    """Else only one of them would ever be named, or both at once."""
    value = torch.tensor([[0.31415, -1.7, 2.4], [5.2, 0.77, -0.1], [0.9, 3.3, -7.7]], dtype=torch.float64)
    value[0, 1] = -math.e
    made = outcomes(value)
    assert len(made) == len(RESULT) - 4  # True and False, a gradient, two of NaN: these change other values than this
    for (one, a), (other, b) in itertools.combinations(made, 2):
        assert not equal(a, b, 1e-6), (one, other)


@pytest.mark.filterwarnings("ignore:std")
@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=4))
def test_what_a_change_is_given_it_leaves_as_it_was(values):
    value = torch.tensor(values)
    before = value.clone()
    for _, change in RESULT + [(sentence, lambda y, change=change: change(y, y)) for sentence, change in COMBINED]:
        try:
            out = change(value)
        except (IndexError, RuntimeError, ValueError):
            continue  # it is about rows, or about more than one value
        assert out is None or isinstance(out, torch.Tensor)
    assert same(value, before)


def test_what_changes_nothing_of_a_single_number_is_refused_for_it():
    change = of_many(lambda y: y.mean())
    assert change(V).item() == 2.0
    with pytest.raises(ValueError):
        change(torch.tensor(3.0))
    for words in ("{y} is the mean of what is expected", "{y} is the largest of what is expected", "{y} has its mean taken off"):
        with pytest.raises(ValueError):
            changes(RESULT, words)[0](torch.tensor(3.0))


def test_whole_numbers_are_not_rounded():
    change = of_floats(lambda y: y.round())
    assert change(t(1.6)).item() == 2.0
    for value in (t(1, 2), t(True)):
        with pytest.raises(ValueError):
            change(value)


# ----------------------------------------------------------------------------------------- factors


@pytest.mark.parametrize(
    "family, wanted",
    [
        ("times", 4.0),
        ("over", 0.25),
        ("root", 2.0),
        ("by root", 0.5),
        ("n - 1", 0.75),
        ("n", 4 / 3),
        ("n + 1", 0.8),
        ("root n - 1", 0.75**0.5),
        ("root n", (4 / 3) ** 0.5),
    ],
)
def test_the_factors_of_four_values(family, wanted):
    (factor,) = [factor for _, name, factor in FACTORS if name == family]
    assert math.isclose(factor(4), wanted)
    assert torch.allclose(factor(torch.tensor([4.0, 4.0])), torch.tensor([wanted, wanted]))


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=6))
def test_a_variance_with_the_other_divisor_differs_by_its_factor(values):
    x = torch.tensor(values, dtype=torch.float64)
    factors = {name: factor(len(values)) for _, name, factor in FACTORS}
    biased, unbiased = x.var(correction=0), x.var(correction=1)
    assert torch.allclose(biased, unbiased * factors["n - 1"]) and torch.allclose(unbiased, biased * factors["n"])
    assert torch.allclose(biased.sqrt(), unbiased.sqrt() * factors["root n - 1"])
    assert torch.allclose(unbiased.sqrt(), biased.sqrt() * factors["root n"])
    assert torch.allclose(x.mean(), x.sum() * factors["over"]) and torch.allclose(x.sum(), x.mean() * factors["times"])


def sized(**given):
    return {words: size(given) for words, size in sizes(given).items()}


@pytest.mark.parametrize(
    "x, wanted",
    [
        (torch.zeros(3), {"the length of x": 3}),
        (torch.zeros(2, 3), {"the number of rows of x": 2, "the number of columns of x": 3, "the number of values of x": 6}),
        (
            torch.zeros(2, 3, 5),
            {
                "the size of the first dimension of x": 2,
                "the size of the second dimension of x": 3,
                "the size of the last dimension of x": 5,
                "the number of values of x": 30,
            },
        ),
        (torch.tensor(3.0), {}),
        ("abc", {"the length of x": 3}),
        ([1, 2], {"the length of x": 2}),
        ((), {"the length of x": 0}),
        (0.5, {"x": 0.5}),
        (7, {"x": 7}),
        (True, {}),
        (None, {}),
    ],
)
def test_the_sizes_of_an_argument(x, wanted):
    assert sized(x=x) == wanted


def test_of_a_mask_true_is_counted_as_a_whole_and_in_each_row():
    found = sized(mask=t([True, False], [True, True]))
    assert found["the number of True in mask"].item() == 3 and found["the share of True in mask"].item() == 0.75
    assert found["the number of True in the row of mask"].tolist() == [1, 2]
    assert found["the share of True in the row of mask"].tolist() == [0.5, 1.0]


def test_each_size_is_that_of_its_own_argument_at_the_time_of_the_call():
    """The functions are made in a loop, from one input, and are used on others."""
    made = sizes({"a": torch.zeros(2, 3), "b": [1], "k": 1})
    other = {"a": torch.zeros(5, 7), "b": "abcd", "k": 9}
    assert {words: size(other) for words, size in made.items()} == {
        "the number of rows of a": 5,
        "the number of columns of a": 7,
        "the number of values of a": 35,
        "the length of b": 4,
        "k": 9,
    }
