"""Relations between two lists of values: each is claimed where it was made, and nothing is claimed of what has none."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib.exercises import values

SHAPES = ((4,), (7,), (3, 5), (2, 3, 4))
seeds = st.integers(0, 10_000)
quick = settings(max_examples=20, deadline=None)
LIMITS = (0.0, -2.5, 3.0)


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def expected_values(seed, shapes=SHAPES):
    """A tensor of each shape, without a 0 or equal values, and of both signs."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 0.1 for shape in shapes]


def claimed(pairs):
    """The names of the relations that are claimed, and the first sentence."""
    pairs = [(*pair, {}) for pair in pairs]
    found = {relation.__name__: sentence for relation in values.ALL if (sentence := relation(pairs))}
    return list(found), next(iter(found.values()), "")


# ----------------------------------------------------------------------------------------- what is made is found


@given(seeds, st.floats(-50, 50).filter(lambda x: abs(x) > 0.01 and abs(x - 1) > 0.01))
@quick
def test_one_factor_is_found_with_its_size(seed, factor):
    names, sentence = claimed([(factor * y, y) for y in expected_values(seed)])
    assert names[0] == "one_factor" and sentence.startswith(
        f"{{y}} is {values.one(factor)} times what is expected, on all inputs"
    )


@pytest.mark.parametrize(
    "factor, reason",
    [
        (100, "percent where a share is wanted"),
        (0.01, "a share where percent are wanted"),
        (math.log(2), "it is multiplied by ln 2"),
        (1 / math.log(2), "bits in place of nats"),
        (1 / math.log(10), "a logarithm to base 10"),
        (-1, "a sign is turned"),
    ],
)
def test_a_factor_with_a_reason_gets_its_reason(factor, reason):
    assert claimed([(factor * y, y) for y in expected_values(0)])[1].endswith(reason)
    assert claimed([(1.7 * factor * y, y) for y in expected_values(0)])[1].endswith("on all inputs")


@given(seeds, st.floats(-50, 50).filter(lambda x: abs(x) > 0.01))
@quick
def test_one_summand_is_found_with_its_size_and_direction(seed, summand):
    names, sentence = claimed([(y + summand, y) for y in expected_values(seed)])
    assert names[0] == "one_summand"
    words = sentence.removeprefix("{y} is too ").removesuffix(", on all inputs").split(" by ")
    assert words[0] == ("large" if summand > 0 else "small")
    assert float(words[1]) == pytest.approx(abs(summand), rel=1e-4)


@given(seeds, st.floats(0.1, 9).filter(lambda x: abs(x - 1) > 0.1), st.floats(-9, 9).filter(lambda x: abs(x) > 0.1))
@quick
def test_a_straight_line_is_found_with_both_numbers(seed, slope, start):
    names, sentence = claimed([(start + slope * y, y) for y in expected_values(seed)])
    assert names[0] == "straight_line"
    numbers = sentence.removeprefix("{y} is ").removesuffix(", on all inputs").split(" times what is expected, ")
    way, size = numbers[1].split()
    assert float(numbers[0]) == pytest.approx(slope, rel=1e-3) and way == ("plus" if start > 0 else "minus")
    assert float(size) == pytest.approx(abs(start), rel=1e-3)


@given(seeds)
@quick
def test_another_factor_or_summand_for_each_input_is_found(seed):
    wanted = expected_values(seed)
    names, sentence = claimed([((place + 2) * y, y) for place, y in enumerate(wanted)])
    assert names[0] == "a_factor_each" and "(2.0, 3.0): is it divided by the right number, and not" in sentence
    names, sentence = claimed([(y + place + 2, y) for place, y in enumerate(wanted)])
    assert names[0] == "a_summand_each" and "(2.0, 3.0)" in sentence


def test_of_the_factors_and_summands_of_each_input_two_different_ones_are_shown():
    wanted = expected_values(0)
    assert "(2.0, 5.0)" in claimed([(factor * y, y) for factor, y in zip((2, 2, 5, 2), wanted)])[1]
    assert "(2.0, 5.0)" in claimed([(y + summand, y) for summand, y in zip((2, 2, 2, 5), wanted)])[1]


def test_where_the_factors_of_all_inputs_are_equal_it_is_one_factor():
    y = tensor(1, 2, -3, 1e-8)
    got = 2 * y + tensor(0, 0, 0, 1e-8)  # no factor of the last value, which is as good as 0
    assert claimed([(got, y), (got.flip(0), y.flip(0))])[1] == "{y} is 2.0 times what is expected, on all inputs"
    small = (tensor(3.0), tensor(1.0))  # it has a factor of its own
    assert claimed([(2 * y, y), (2 * y.flip(0), y.flip(0)), small])[1] == ""
    assert claimed([(y + 2, y), (y.flip(0) + 2, y.flip(0)), small])[1] == "{y} is too large by 2.0, on all inputs"


@given(seeds)
@quick
def test_another_factor_or_summand_for_each_row_is_found(seed):
    wanted = expected_values(seed, ((3, 5), (4, 3), (2, 2, 4)))
    steps = [torch.arange(y[..., 0].numel(), dtype=torch.float64).reshape(*y.shape[:-1], 1) + 2 for y in wanted]
    names, sentence = claimed([(y * step, y) for y, step in zip(wanted, steps)])
    assert names[0] == "a_factor_a_row" and sentence.endswith("is it divided by the right number?")
    names, sentence = claimed([(y + step, y) for y, step in zip(wanted, steps)])
    assert names[0] == "a_summand_a_row" and sentence.endswith("is it taken off what it should?")


@given(seeds, st.sampled_from(LIMITS))
@quick
def test_a_cut_is_found_with_its_bound_and_side(seed, bound):
    y = torch.cat([expected_values(seed, ((8,),))[0], bound + tensor(-4, -3, -2, 1.5, 2.5, 3.5)])
    word = values.one(float(bound))
    assert claimed([(y.clamp(max=bound), y)])[1] == f"{{y}} is {word} wherever what is expected is larger: it is cut off there"
    assert claimed([(y.clamp(min=bound), y)])[1] == f"{{y}} is {word} wherever what is expected is smaller: it is cut off there"


def test_what_is_0_on_all_inputs_is_told():
    y = tensor(1, 2, 0, 4)
    assert claimed([(0 * y, y), (0 * y[:2], y[:2])])[1] == "{y} is 0 on all inputs"
    assert "nothing" not in claimed([(0 * y, y), (y, y)])[0] + claimed([(0 * y[:1], y[:1])])[0]


def test_one_number_for_another_is_found():
    y = tensor(0, 1, 2, 0, 3, 0)
    assert claimed([(torch.where(y == 0, -1, y), y)])[1] == "{y} is -1.0 wherever 0.0 is expected; the rest is right"
    assert claimed([(torch.where(y == 0, tensor(-1, 1, 2, -2, 3, -1), y), y)])[1] == ""  # not one number
    assert claimed([(torch.where(y == 0, 2.0, y)[:3], y[:3])])[1] == ""  # one place is chance


@given(seeds)
@quick
def test_another_order_is_found(seed):
    names, sentence = claimed([(y.flip(-1), y) for y in expected_values(seed)])
    assert names == ["other_order"] and sentence == "{y} has the right values, but in another order"


@given(seeds, st.integers(2, 6))
@quick
def test_what_is_nearly_right_is_told_with_its_digits(seed, digits):
    pairs = []
    for y in expected_values(seed):
        sign = torch.where(torch.arange(y.shape[-1]) % 2 == 0, 1.0, -1.0)
        pairs.append((y + 0.5 * 10.0**-digits * sign * y.abs().clamp(min=1e-3), y))
    names, sentence = claimed(pairs)
    assert names[0] == "imprecise" and f"to about {digits} digits" in sentence


@pytest.mark.parametrize("way, word", [(1, "large"), (-1, "small")])
def test_one_too_many_in_some_places_is_found(way, word):
    y = tensor(3, 1, 4, 1, 5, 9)
    got = y + way * tensor(1, 0, 0, 1, 0, 0)
    assert claimed([(got, y)])[1] == f"{{y}} is one too {word} in some places and right in the others"
    assert claimed([(got + way * tensor(0, 0, 1, 0, 0, 0), y)])[1] != ""
    assert claimed([(got - way * tensor(0, 0, 1, 0, 0, 0), y)])[1] == ""  # one too many here and one too few there
    one, other = tensor(1, 1, 1, 5, 5, 5), tensor(1, 1, 1, 5, 5, 5) + way * tensor(1, 0, 1, 0, 0, 0)
    assert "off_by_one_in_places" not in claimed([(other, one)])[0]  # where 1 is expected alone: that may be chance


# ----------------------------------------------------------------------------------------- nothing is claimed of nothing


@given(seeds)
@quick
def test_noise_has_no_relation(seed):
    wanted, noise = expected_values(seed), expected_values(seed + 20_000)
    assert claimed(list(zip(noise, wanted))) == ([], "")


@given(seeds)
@quick
def test_rounding_is_no_summand_and_no_line(seed):
    """It is so small that any number fits it."""
    for size in (1e-7, 1e-5):
        pairs = [(y * (1 + size * noise.sign()), y) for y, noise in zip(expected_values(seed), expected_values(seed + 20_000))]
        names, sentence = claimed(pairs)
        assert names[0] == "imprecise" and "is nearly right" in sentence


@given(seeds, st.floats(0.1, 9))
@quick
def test_one_value_that_breaks_a_relation_ends_it(seed, factor):
    wanted = expected_values(seed)
    for change in (lambda y: y * (factor + 1), lambda y: y + factor, lambda y: 2 * y + factor):
        pairs = [(change(y), y) for y in wanted]
        pairs[-1][0].flatten()[5] += 7.0
        assert not set(claimed(pairs)[0]) & {"one_factor", "one_summand", "straight_line", "a_factor_each", "a_summand_each"}


def test_few_values_are_met_by_chance_and_claim_nothing():
    assert claimed([(tensor(2.0), tensor(1.0))])[1] == ""
    assert claimed([(tensor(2.0, 4.0), tensor(1.0, 2.0))])[1] == ""
    assert claimed([(tensor(2.0, 4.0, 2.0), tensor(1.0, 2.0, 1.0))])[1] == ""  # no more than two different ones
    assert claimed([(tensor(2.0, 4.0, 6.0), tensor(1.0, 2.0, 3.0))])[0][0] == "one_factor"


def test_infinities_nans_and_what_should_be_zero_break_a_factor():
    y = tensor(1, 2, 3, 4, 0)
    assert claimed([(2 * y + tensor(0, 0, 0, 0, 1), y)])[1] == ""
    for odd in (math.inf, math.nan):
        assert claimed([(2 * y + tensor(0, 0, odd, 0, 0), y)])[1] == ""


# ----------------------------------------------------------------------------------------- which values are numbers


def test_the_numbers_of_a_value():
    assert torch.equal(values.numbers_of([1, 2.5, True]), tensor(1, 2.5, 1))
    assert values.numbers_of(torch.tensor([1, 2])).dtype == torch.float64
    assert values.numbers_of(7).item() == 7
    for other in (True, torch.tensor([True]), torch.tensor([1j]), "1", None, [], ["a"], {"a": 1}):
        assert values.numbers_of(other) is None


# ----------------------------------------------------------------------------------------- where they are wrong


def place(off, expected=None, **arguments):
    off = torch.as_tensor(off)
    return values.place_of([(torch.ones(off.shape) if expected is None else expected, arguments, off)])


@pytest.mark.parametrize(
    "off, words",
    [
        ([True, False, False, False], "in the first place"),
        ([False, False, False, True], "in the last place"),
        ([False, True, True, True, True, True], ""),  # behind the first leaves 1 place that is right: chance
        ([[True, True, True], [False] * 3, [False] * 3, [False] * 3], "in the first row"),
        ([[False] * 3, [False] * 3, [False] * 3, [True, True, True]], "in the last row"),
        ([[True, False, False], [True, False, False]], "in the first column"),
        ([[False, False, True], [False, False, True]], "in the last column"),
        ([[False, True, True], [False, True, True], [False, True, True], [False, True, True]], "behind the first column"),
        ([[True, True, False], [True, True, False], [True, True, False], [True, True, False]], "before the last column"),
        (torch.ones(4, 4, dtype=torch.bool).triu(1), "above the diagonal"),
        (torch.ones(4, 4, dtype=torch.bool).tril(-1), "below the diagonal"),
        (torch.eye(4, dtype=torch.bool), "on the diagonal"),
        (~torch.eye(4, dtype=torch.bool), "off the diagonal"),
        ([[True, False, False], [False, False, True]], ""),
        ([True], ""),
    ],
)
def test_the_place_of_wrong_values_is_named(off, words):
    assert place(off) == words


FIRST_ROW = "behind the first row: it is right for the first row alone"


def later_rows(*shapes):
    """For each shape, places of which all are wrong but those of the first row."""
    return [torch.cat([torch.zeros(1, *rest), torch.ones(rows - 1, *rest)]).bool() for rows, *rest in shapes]


def test_right_for_the_first_row_alone_is_told_in_any_number_of_dimensions():
    for shapes in (((3, 4), (4, 5)), ((2, 4), (3, 2)), ((3, 2, 4), (4, 2, 2)), ((2, 3, 4, 4), (3, 1, 2, 2))):
        assert values.place_of([(torch.ones(off.shape), {}, off) for off in later_rows(*shapes)]) == FIRST_ROW
    some = later_rows((3, 4), (4, 5))
    some[0][1, 2] = False  # met by chance
    assert values.place_of([(torch.ones(off.shape), {}, off) for off in some]) == FIRST_ROW


def test_right_for_the_first_row_alone_is_not_claimed_where_another_reason_is_as_good():
    def said(offs, **arguments):
        return values.place_of([(torch.ones(off.shape), arguments, off) for off in offs])

    one, other = later_rows((3, 4), (4, 5))
    assert said([one]) == ""  # a single input
    assert said(later_rows((4,), (5,))) == ""  # these are places, no rows
    assert said(later_rows((3, 1), (4, 1))) == "" and said(later_rows((2, 3), (2, 4))) == "in the last row"
    right_row = one.clone()
    right_row[2] = False
    assert said([right_row, other]) == ""
    assert said([one | True, other]) == ""
    few = one.clone()
    few[1:, 1:] = False
    assert said([few, few]) == ""  # a wrong value in each later row, and most are right


def test_right_for_the_first_row_alone_is_not_claimed_where_the_first_row_of_a_mask_is_always_the_full_one():
    offs = later_rows((3, 4), (4, 4))
    full_first = [torch.arange(4) < torch.tensor([[4], [2], [3], [1]])[: len(off)] for off in offs]
    tell = lambda masks: values.place_of([(torch.ones(off.shape), {"mask": m}, off) for off, m in zip(offs, masks)])  # noqa: E731
    assert tell(full_first) == ""
    assert tell([full_first[0], full_first[1].flip(0)]) == FIRST_ROW
    assert tell([torch.ones(3, 4, dtype=torch.bool), full_first[1].flip(0)]) == FIRST_ROW


def test_a_mask_among_the_arguments_is_named_and_spread_over_further_dimensions():
    mask = torch.tensor([[True, True, False, True], [True, False, False, True]])
    assert place(~mask, mask=mask) == "where mask is False"
    assert place(mask, mask=mask) == "where mask is True"
    assert place((~mask)[..., None].expand(2, 4, 3), mask=mask) == "where mask is False"
    assert place(~mask, other=mask.float()) == ""


def test_what_is_expected_there_is_named():
    wanted = torch.tensor([1.0, -1.0, 2.0, -3.0, 4.0, 5.0])
    assert place(wanted < 0, wanted) == "where what is expected is negative"
    assert place(wanted.clamp(min=0) == 0, wanted.clamp(min=0)) == "where what is expected is 0"
    truth = torch.tensor([True, False, False, True, False, True, True, False])
    assert place(truth, truth) == "where True is expected, and never where False is"
    assert place(~truth, truth) == "where False is expected, and never where True is"


def test_a_place_that_holds_for_one_input_alone_is_not_claimed():
    first, last = torch.tensor([True, False, False, False]), torch.tensor([False, False, False, True])
    ones = torch.ones(4)
    assert values.place_of([(ones, {}, first), (ones, {}, first)]) == "in the first place"
    assert values.place_of([(ones, {}, first), (ones, {}, last)]) == ""
    assert values.place_of([]) == ""


def test_two_places_that_fit_equally_well_are_not_claimed():
    mask = torch.tensor([False, True, True, True])
    assert place(~mask, mask=mask) == ""  # the first place, and where mask is False


def test_a_mask_is_named_before_the_zeros_that_are_expected_under_it():
    mask = torch.tensor([[True, True, False, True], [True, False, False, True]])
    x = torch.arange(1.0, 9).reshape(2, 4)
    assert place(~mask, torch.where(mask, x, 0), mask=mask) == "where mask is False"
    assert place(~mask, torch.where(mask, x, 0), other=mask.float()) == "where what is expected is 0"
