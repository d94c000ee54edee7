"""Changes of arguments: each does what its sentence says, on values worked out by hand, and keeps the form of what it changes."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib.exercises import changes, equal

T, F = True, False
quick = settings(max_examples=30, deadline=None)
TABLES = {
    "BOOL": changes.BOOL, "FLOAT": changes.FLOAT, "WHOLE": changes.WHOLE, "NUMBER": changes.NUMBER, "FLAG": changes.FLAG,
    "TEXT": changes.TEXT, "LIST": changes.LIST, "CALLABLE": changes.CALLABLE,
}  # fmt: skip
GIVEN = {
    "BOOL": torch.tensor([[T, F, T], [F, T, T], [F, F, T]]),
    "FLOAT": torch.tensor([[0.5, -2.0], [3.0, 0.25]]),
    "WHOLE": torch.tensor([[3, 1], [2, 2]]),
    "NUMBER": 2.25,
    "FLAG": True,
    "TEXT": " Ab, é1\n\nc ",
    "LIST": ["b", "", "ab", "b"],
}
BY_HAND = {  # {table: {sentence: what it makes of the value in GIVEN}}
    "BOOL": {
        "{x} is not used: this is right where {x} is True everywhere": [[T, T, T], [T, T, T], [T, T, T]],
        "{x} is turned round: this is right for a {x} with True and False exchanged": [[F, T, F], [T, F, F], [T, T, F]],
        "{x} is one place too far to the right": [[F, T, F], [F, F, T], [F, F, F]],
        "{x} is one place too far to the left": [[F, T, F], [T, T, F], [F, T, F]],
        "{x} is taken to be False everywhere": [[F, F, F], [F, F, F], [F, F, F]],
        "the first row of {x} is used for all rows": [[T, F, T], [T, F, T], [T, F, T]],
        "the last row of {x} is used for all rows": [[F, F, T], [F, F, T], [F, F, T]],
        "a place counts as soon as any row of {x} is True there": [[T, T, T], [T, T, T], [T, T, T]],
        "a place counts only where every row of {x} is True there": [[F, F, T], [F, F, T], [F, F, T]],
        "{x} is read from the end to the beginning": [[T, F, T], [T, T, F], [T, F, F]],
        "the rows of {x} are used upside down": [[F, F, T], [F, T, T], [T, F, T]],
        "{x} is transposed": [[T, F, F], [F, T, F], [T, T, T]],
        "True is counted from the beginning of a row of {x}, as if all padding were at its end":
            [[T, T, F], [T, T, F], [T, F, F]],
        "True is counted from the end of a row of {x}, as if all padding were at its beginning":
            [[F, T, T], [F, T, T], [F, F, T]],
        "the first place of {x} is taken to be False": [[F, F, T], [F, T, T], [F, F, T]],
        "the first place of {x} is taken to be True": [[T, F, T], [T, T, T], [T, F, T]],
        "the last place of {x} is taken to be False": [[T, F, F], [F, T, F], [F, F, F]],
        "the last place of {x} is taken to be True": [[T, F, T], [F, T, T], [F, F, T]],
        "the last True of each row of {x} is left out": [[T, F, F], [F, T, F], [F, F, F]],
        "the first True of each row of {x} is left out": [[F, F, T], [F, F, T], [F, F, F]],
    },
    "FLOAT": {
        "{x} is not used: this is right where {x} is 0 everywhere": [[0.0, 0.0], [0.0, 0.0]],
        "{x} is not used: this is right where {x} is 1 everywhere": [[1.0, 1.0], [1.0, 1.0]],
        "the sign of {x} is turned": [[-0.5, 2.0], [-3.0, -0.25]],
        "no gradient flows through {x}: it is detached": [[0.5, -2.0], [3.0, 0.25]],
        "{x} goes through exp first": [[math.exp(0.5), math.exp(-2)], [math.exp(3), math.exp(0.25)]],
        "{x} goes through log first": [[math.log(0.5), math.nan], [math.log(3), math.log(0.25)]],
        "{x} goes through sigmoid first": [[0.6224593, 0.1192029], [0.9525741, 0.5621765]],
        "{x} goes through softmax first": [[0.9241418, 0.0758582], [0.9399133, 0.0600867]],
        "{x} goes through log_softmax first": [[-0.0788897, -2.5788897], [-0.0619677, -2.8119677]],
        "{x} goes through logsigmoid first": [[-0.474077, -2.126928], [-0.0485874, -0.5759394]],
        "the mean of {x} is taken off first": [[0.0625, -2.4375], [2.5625, -0.1875]],
        "the mean of each row of {x} is taken off first": [[1.25, -1.25], [1.375, -1.375]],
        "each row of {x} is whitened first": [[1.0, -1.0], [1.0, -1.0]],
        "{x} is one place too far to the right": [[0.0, 0.5], [0.0, 3.0]],
        "{x} is one place too far to the left": [[-2.0, 0.0], [0.25, 0.0]],
        "{x} is rolled by one place to the right": [[-2.0, 0.5], [0.25, 3.0]],
        "{x} is read from the end to the beginning": [[-2.0, 0.5], [0.25, 3.0]],
        "the rows of {x} are used upside down": [[3.0, 0.25], [0.5, -2.0]],
        "{x} is transposed": [[0.5, 3.0], [-2.0, 0.25]],
        "the absolute value of {x} is taken first": [[0.5, 2.0], [3.0, 0.25]],
        "the square of {x} is taken first": [[0.25, 4.0], [9.0, 0.0625]],
        "the root of {x} is taken first": [[math.sqrt(0.5), math.nan], [math.sqrt(3), 0.5]],
        "1 - {x} is used in place of {x}": [[0.5, 3.0], [-2.0, 0.75]],
        "1 / {x} is used in place of {x}": [[2.0, -0.5], [1 / 3, 4.0]],
        "{x} + 1 is used in place of {x}": [[1.5, -1.0], [4.0, 1.25]],
        "{x} - 1 is used in place of {x}": [[-0.5, -3.0], [2.0, -0.75]],
        "2 * {x} is used in place of {x}": [[1.0, -4.0], [6.0, 0.5]],
        "{x} / 2 is used in place of {x}": [[0.25, -1.0], [1.5, 0.125]],
        "what is negative in {x} is taken for 0": [[0.5, 0.0], [3.0, 0.25]],
        "what is positive in {x} is taken for 0": [[0.0, -2.0], [0.0, 0.0]],
        "only the sign of {x} is used": [[1.0, -1.0], [1.0, 1.0]],
        "{x} is rounded to whole numbers first": [[0.0, -2.0], [3.0, 0.0]],
        "the fractions of {x} are cut off: whole numbers are made of it": [[0.0, -2.0], [3.0, 0.0]],
        "{x} is rounded to one digit first": [[0.5, -2.0], [3.0, 0.2]],
        "{x} is rounded to two digits first": [[0.5, -2.0], [3.0, 0.25]],
        "{x} is sorted downwards first": [[0.5, -2.0], [3.0, 0.25]],
        "the first row of {x} is used for all rows": [[0.5, -2.0], [0.5, -2.0]],
        "the last row of {x} is used for all rows": [[3.0, 0.25], [3.0, 0.25]],
        "the mean of {x} is used for all its values": [[0.4375, 0.4375], [0.4375, 0.4375]],
        "the mean of each row of {x} is used for all its values": [[-0.75, -0.75], [1.625, 1.625]],
        "the sum of {x} is used for all its values": [[1.75, 1.75], [1.75, 1.75]],
        "the first place of {x} is taken for 0": [[0.0, -2.0], [0.0, 0.25]],
        "the last place of {x} is taken for 0": [[0.5, 0.0], [3.0, 0.0]],
        "{x} is summed up along its last dimension first": [[0.5, -1.5], [3.0, 3.25]],
        "{x} is kept between -1 and 1": [[0.5, -1.0], [1.0, 0.25]],
        "{x} is kept between 0 and 1": [[0.5, 0.0], [1.0, 0.25]],
        "{x} is kept between -10 and 10": [[0.5, -2.0], [3.0, 0.25]],
    },
    "WHOLE": {
        "{x} is one too large": [[4, 2], [3, 3]],
        "{x} is one too small": [[2, 0], [1, 1]],
        "{x} is not used: this is right where {x} is 0 everywhere": [[0, 0], [0, 0]],
        "{x} is not used: this is right where {x} is 1 everywhere": [[1, 1], [1, 1]],
        "{x} is one place too far to the right": [[0, 3], [0, 2]],
        "{x} is one place too far to the left": [[1, 0], [2, 0]],
        "{x} is rolled by one place to the right": [[1, 3], [2, 2]],
        "{x} is rolled by one place to the left": [[1, 3], [2, 2]],
        "{x} is read from the end to the beginning": [[1, 3], [2, 2]],
        "the rows of {x} are used upside down": [[2, 2], [3, 1]],
        "{x} is counted from its first value": [[0, -2], [0, 0]],
        "the sign of {x} is turned": [[-3, -1], [-2, -2]],
        "1 - {x} is used in place of {x}": [[-2, 0], [-1, -1]],
        "2 * {x} is used in place of {x}": [[6, 2], [4, 4]],
        "the places of {x} are used in place of its values": [[0, 1], [0, 1]],
        "{x} is sorted first": [[1, 3], [2, 2]],
        "{x} is sorted downwards first": [[3, 1], [2, 2]],
        "the first row of {x} is used for all rows": [[3, 1], [3, 1]],
        "the last row of {x} is used for all rows": [[2, 2], [2, 2]],
        "{x} is transposed": [[3, 2], [1, 2]],
        "{x} is used without its repetitions": [1, 2, 3],
    },
    "NUMBER": {
        "{x} is not used: this is right for {x} = 1": 1.0,
        "{x} is not used: this is right for {x} = 0": 0.0,
        "the sign of {x} is turned": -2.25,
        "1 / {x} is used in place of {x}": 4 / 9,
        "1 - {x} is used in place of {x}": -1.25,
        "2 * {x} is used in place of {x}": 4.5,
        "{x} / 2 is used in place of {x}": 1.125,
        "{x} squared is used in place of {x}": 5.0625,
        "the root of {x} is used in place of {x}": 1.5,
        "exp({x}) is used in place of {x}": math.exp(2.25),
        "log({x}) is used in place of {x}": 2 * math.log(1.5),
        "the fraction of {x} is cut off": 2,
        "{x} is rounded to a whole number": 2,
        "the absolute value of {x} is used": 2.25,
        "{x} is in percent: 100 * {x} is used": 225.0,
        "{x} / 100 is used in place of {x}": 0.0225,
        "{x} is kept at most at 1": 1.0,
        "{x} is not used: this is right where {x} is so large that it limits nothing": 1e9,
    },
    "FLAG": {
        "{x} is not used: this is right for {x} = True": True,
        "{x} is not used: this is right for {x} = False": False,
        "{x} is turned round": False,
    },
    "TEXT": {
        "{x} is taken in small letters": " ab, é1\n\nc ",
        "{x} is taken in capitals": " AB, É1\n\nC ",
        "white space at the ends of {x} is taken off": "Ab, é1\n\nc",
        "white space is taken out of {x}": "Ab,é1c",
        "every run of white space in {x} is taken for one space": "Ab, é1 c",
        "only the first line of {x} is read": " Ab, é1",
        "line breaks of {x} are taken for spaces": " Ab, é1  c ",
        "line breaks are taken out of {x}": " Ab, é1c ",
        "letters that are not ASCII are taken out of {x}": " Ab, 1\n\nc ",
        "punctuation is taken out of {x}": " Ab é1\n\nc ",
        "punctuation of {x} is taken for spaces": " Ab  é1  c ",
        "digits are taken out of {x}": " Ab, é\n\nc ",
        "{x} is read backwards": " c\n\n1é ,bA ",
        "the first character of {x} is left out": "Ab, é1\n\nc ",
        "the last character of {x} is left out": " Ab, é1\n\nc",
        "only the first character of {x} is read": " ",
        "{x} is not used: this is right for an empty {x}": "",
    },
    "LIST": {
        "the last of {x} is left out": ["b", "", "ab"],
        "the first of {x} is left out": ["", "ab", "b"],
        "only the first of {x} is used": ["b"],
        "only the last of {x} is used": ["b"],
        "{x} is used in reverse": ["b", "ab", "", "b"],
        "{x} is sorted first": ["", "ab", "b", "b"],
        "{x} is sorted downwards first": ["b", "b", "ab", ""],
        "{x} is used without its repetitions": ["b", "", "ab"],
        "{x} is not used: this is right for an empty {x}": [],
        "the first of {x} stands for all of them": ["b", "b", "b", "b"],
        "what is empty in {x} is left out": ["b", "ab", "b"],
        "the parts of {x} are read backwards": ["b", "", "ba", "b"],
    },
}  # fmt: skip


@pytest.mark.parametrize("table, sentence", [(table, sentence) for table, rows in BY_HAND.items() for sentence in rows])
def test_a_change_does_what_its_sentence_says(table, sentence):
    value, wanted = copy.deepcopy(GIVEN[table]), BY_HAND[table][sentence]
    (change,) = [change for words, change in TABLES[table] if words == sentence]
    got = change(value)
    assert equal(got.tolist() if isinstance(got, torch.Tensor) else got, wanted, 1e-5)
    assert equal(value, GIVEN[table], 0)  # it makes a new one


def test_few_changes_are_without_a_value_worked_out_by_hand():
    left = {table: [one for one, _ in rows if one not in BY_HAND.get(table, {})] for table, rows in TABLES.items()}
    assert left.pop("CALLABLE")  # below
    assert sorted(set(left.pop("FLOAT"))) == [
        "{x} is kept between -100 and 100",
        *(f"{{x}} is kept between -{n} and {n}" for n in (20, 30, 50)),
        "{x} is rolled by one place to the left",
        "{x} is sorted first",
        "{x} is whitened first",
    ]
    assert left.pop("NUMBER") == ["{x} is one too large", "{x} is one too small"]
    assert not any(left.values())


def test_the_two_ways_of_sorting():
    first, second = [change for words, change in changes.FLOAT if words == "{x} is sorted first"]
    x = torch.tensor([[3.0, 1.0], [2.0, 5.0]])
    assert first(x).tolist() == [[1, 3], [2, 5]] and second(x).tolist() == [[2, 1], [3, 5]]


def test_functions_are_changed_in_what_they_give():
    x = torch.tensor([1.0, 4.0], requires_grad=True)
    not_used, zero, twice, minus, detached = [change(lambda y: 3 * y + 1) for _, change in changes.CALLABLE]
    assert [one(x).tolist() for one in (not_used, zero, twice, minus)] == [[1, 4], [0, 0], [13, 40], [-4, -13]]
    assert detached(x).tolist() == [4, 13] and not detached(x).requires_grad and minus(x).requires_grad


# ----------------------------------------------------------------------------------------- properties


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@given(shapes, st.sampled_from(["BOOL", "FLOAT", "WHOLE"]), st.integers(0, 999))
@quick
def test_changes_of_tensors_keep_shape_and_type_and_the_tensor_itself(shape, table, seed):
    x = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed))
    x = {"BOOL": x > 0, "FLOAT": x + 0.5, "WHOLE": x}[table]
    before = x.clone()
    for sentence, change in TABLES[table]:
        try:
            got = change(x)
        except (ValueError, IndexError):
            assert sentence == "{x} is transposed"  # what is not square has no other of the same shape
            continue
        assert torch.equal(x, before)
        assert got.dtype == x.dtype
        if "repetitions" in sentence:
            assert len(got) == len(set(x.flatten().tolist()))
        else:
            assert got.shape == x.shape, sentence


@given(st.integers(-7, 7), st.integers(1, 5))
@quick
def test_shifting_moves_places_and_fills_with_nothing(places, length):
    x = torch.arange(1, length + 1)
    wanted = [x[i - places].item() if 0 <= i - places < length else 0 for i in range(length)]
    assert changes.shifted(x, places).tolist() == wanted
    assert changes.shifted(x[:, None].expand(length, 2), places, 0)[:, 1].tolist() == wanted
    assert not changes.shifted(x > 0, length).any()


@given(st.lists(st.integers(-50, 50), min_size=4, max_size=12).filter(lambda x: len({*x[:4]}) > 1 and len({*x}) > 1))
@quick
def test_what_is_whitened_has_mean_0_and_variance_1(numbers):
    x = torch.tensor([numbers[:4], [1, 2, 3, 5]], dtype=torch.float64)
    white = changes.whitened(x)
    assert abs(white.mean()) < 1e-9 and abs((white**2).mean() - 1) < 1e-9
    rows = changes.whitened(x, -1)
    assert (rows.mean(-1).abs() < 1e-9).all() and ((rows**2).mean(-1) - 1).abs().max() < 1e-9


def test_a_change_that_would_change_the_kind_of_a_number_refuses():
    by_name = dict(changes.NUMBER)
    for words in ("{x} is one too large", "{x} is one too small"):
        with pytest.raises(ValueError):
            by_name[words](1.5)
    assert by_name["{x} is one too large"](4) == 5 and by_name["{x} is one too small"](4) == 3
    for words in ("exp({x}) is used in place of {x}", "{x} is in percent: 100 * {x} is used"):
        with pytest.raises(ValueError):
            by_name[words](40)
    half = by_name["{x} / 2 is used in place of {x}"]
    assert type(half(6)) is int and half(6) == 3 and half(7) == 3.5
    assert by_name["{x} is not used: this is right where {x} is so large that it limits nothing"](3) == 103  # a count may be slow


# ----------------------------------------------------------------------------------------- which changes fit


@pytest.mark.parametrize(
    "value, table",
    [
        (torch.tensor([True]), "BOOL"),
        (torch.tensor([1.0]), "FLOAT"),
        (torch.tensor([1.0], dtype=torch.bfloat16), "FLOAT"),
        (torch.tensor([1]), "WHOLE"),
        (True, "FLAG"),
        ("a", "TEXT"),
        ([1, 2], "LIST"),
        ([], "LIST"),
        (print, "CALLABLE"),
    ],
)
def test_a_value_gets_the_table_of_its_kind(value, table):
    assert changes.changes_of(value) == TABLES[table]


def test_what_nobody_changes_has_no_changes():
    for value in (None, {"a": 1}, torch.nn.Linear(1, 1)):
        assert changes.changes_of(value) == []


def test_numbers_may_be_written_in_and_the_example_comes_first():
    def written(value, example):
        rows = changes.changes_of(value, example)[len(changes.NUMBER) :]
        return [(change(value), sentence) for sentence, change in rows]

    found = written(0.7, 0.35)
    assert found[0] == (0.35, "{x} is 0.35 whatever is given: is that number of the example written in?")
    assert (0.99, "{x} is 0.99 whatever is given: is that number written in?") in found
    assert [number for number, _ in written(0.7, 0.5)].count(0.5) == 1
    assert all(type(number) is int for number, _ in written(7, 3)) and written(7, 3)[0][0] == 3
    assert written(7, 1)[0][0] == 2  # that it is 1 is in the table already


def test_a_text_may_be_the_example_and_texts_in_a_list_are_changed_each():
    rows = changes.changes_of("Otto", "Anna")
    assert rows[0][0] == "{x} is 'Anna' whatever is given: is the example written in?" and rows[0][1]("Otto") == "Anna"
    assert rows[1:] == changes.TEXT
    by_name = dict(changes.changes_of(("Ab", "C")))
    assert by_name["each of {x} is read backwards"](("Ab", "C")) == ("bA", "C")
    assert by_name["white space is taken out of each of {x}"](["a b"]) == ["ab"]
    assert "each of {x} is read backwards" not in dict(changes.changes_of(["a", 1]))


# ----------------------------------------------------------------------------------------- all at once

TOGETHER_BY_HAND = {
    "only the first row is looked at": [[1, 2, 3]],
    "only the last row is looked at": [[7, 8, 9]],
    "the last row is left out": [[1, 2, 3], [4, 5, 6]],
    "the first row is left out": [[4, 5, 6], [7, 8, 9]],
    "the rows are used upside down": [[7, 8, 9], [4, 5, 6], [1, 2, 3]],
    "the last column is left out": [[1, 2], [4, 5], [7, 8]],
    "the first column is left out": [[2, 3], [5, 6], [8, 9]],
    "only the first column is looked at": [[1], [4], [7]],
    "only the last column is looked at": [[3], [6], [9]],
    "the columns are read from the end to the beginning": [[3, 2, 1], [6, 5, 4], [9, 8, 7]],
}


@pytest.mark.parametrize("sentence, dim, change", changes.TOGETHER)
def test_rows_and_columns_of_all_arguments_are_changed_as_is_said(sentence, dim, change):
    x = torch.arange(1, 10).reshape(3, 3)
    assert change(x).tolist() == TOGETHER_BY_HAND[sentence]
    assert dim == ("column" in sentence)
    if not dim:
        assert change(x.tolist()) == TOGETHER_BY_HAND[sentence]  # a list has rows too


def test_the_size_of_a_dimension_is_of_tensors_and_the_first_one_of_lists():
    x = torch.zeros(2, 3)
    assert [changes.size_of(x, 0), changes.size_of(x, 1), changes.size_of(x, 2)] == [2, 3, None]
    assert [changes.size_of([1, 2], 0), changes.size_of((1,), 0), changes.size_of([1], 1)] == [2, 1, None]
    assert changes.size_of("ab", 0) is None and changes.size_of(3, 0) is None


def test_every_sentence_of_a_table_is_there_once_and_has_a_place_for_the_name():
    for table, rows in TABLES.items():
        sentences = [sentence for sentence, _ in rows if (table, sentence) != ("FLOAT", "{x} is sorted first")]
        assert len(set(sentences)) == len(sentences)
        assert all("{x}" in sentence for sentence in sentences)
