"""Whatever a function returns becomes plain data that is compared, saved and read elsewhere, or a record of what it was."""

import collections
import enum
import fractions
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib.exercises.compare import same
from rlhf_lib.exercises.plain import (
    RECORD,
    as_int64,
    changed,
    described,
    is_record,
    kept,
    late,
    odd,
    plain,
    plain_tensor,
    raised,
    unwritten,
)

SINGLE = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(), st.text(max_size=5))
TENSORS = st.lists(st.floats(width=32), max_size=4).map(torch.tensor)
KEYS = st.one_of(st.text(max_size=3), st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), st.text(max_size=2)))
PLAIN = st.recursive(
    SINGLE | TENSORS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
RECORDS = [
    raised("ValueError", "a", "a list"),
    changed("x", "in place"),
    unwritten(),
    kept(),
    late(2.5),
    odd("a set", [1, 2.0, "a"]),
]


class Number(enum.IntEnum):
    TWO = 2


class Mood(str, enum.Enum):  # noqa: UP042  # its str() is not its value
    GOOD = "good"


class Loud(float):
    def __float__(self):
        raise RuntimeError


class Subclass(torch.Tensor):
    pass


# ----------------------------------------------------------------------------------------- what is plain


@settings(max_examples=80, deadline=None)
@given(PLAIN)
def test_plain_data_stays_what_it_is_and_can_be_read_by_a_careful_reader(value):
    assert same(plain(value), value)
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    assert same(torch.load(file, weights_only=True), value)


@settings(max_examples=40, deadline=None)
@given(PLAIN)
def test_a_copy_is_made_so_that_what_is_done_to_it_does_no_harm(value):
    def empty(one):
        if isinstance(one, torch.Tensor):
            one.zero_()
        elif isinstance(one, (list, dict)):
            for inner in list(one.values() if isinstance(one, dict) else one):
                empty(inner)
            one.clear()

    before = plain(value)
    empty(plain(value))
    assert same(value, before)


@pytest.mark.parametrize(
    "value, wanted",
    [
        ((1, (2, 3)), [1, [2, 3]]),
        (collections.namedtuple("Pair", "a b")(1, 2), [1, 2]),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(b=(1,)), {"b": [1]}),
        ({(1, "a"): 2}, {(1, "a"): 2}),
        (Number.TWO, 2),
        ([Mood.GOOD], ["good"]),
        ({Mood.GOOD: Number.TWO}, {"good": 2}),
        (Loud(0.5), 0.5),
        (np.float64(2.0), 2.0),
        (np.float32(0.5), 0.5),
        (np.int64(2), 2),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        ({np.int64(3): np.float64(1.0)}, {3: 1.0}),
    ],
)
def test_what_is_nearly_plain_becomes_plain(value, wanted):
    assert same(plain(value), wanted)


def test_tuples_stay_tuples_where_that_is_asked_for():
    assert same(plain((1, [(2,)]), tuples=True), (1, [(2,)]))
    assert same(plain([1, [2]], tuples=True), [1, [2]])


@pytest.mark.parametrize(
    "value",
    [
        torch.nn.Parameter(torch.tensor([1.0, 2.0])),
        torch.tensor([1.0, 2.0], requires_grad=True) * 1,
        torch.tensor([1.0, 2.0]).as_subclass(Subclass),
        torch.tensor([1.0, 2.0]).to_sparse(),
        torch.tensor([1.0, 0.0, 2.0])[::2],
        torch._neg_view(torch.tensor([-1.0, -2.0])),
    ],
    ids=["parameter", "with a gradient", "subclass", "sparse", "strided", "negated"],
)
def test_a_tensor_of_any_make_becomes_its_values(value):
    out = plain(value)
    assert type(out) is torch.Tensor and not out.requires_grad and out.is_contiguous()
    assert same(out, torch.tensor([1.0, 2.0]))


def test_a_conjugated_tensor_has_its_values_worked_out():
    out = plain_tensor(torch.tensor([1 + 2j]).conj())
    assert not out.is_conj() and out.item() == 1 - 2j


# ----------------------------------------------------------------------------------------- what is not


@pytest.mark.parametrize(
    "value, what, inside",
    [
        ({3, 1, 2}, "a set", [1, 2, 3]),
        (frozenset({1}), "a frozenset", [1]),
        (range(3), "a range", [0, 1, 2]),
        ({"a": 1}.keys(), "a dict_keys", ["a"]),
        ({"a": 1}.values(), "a dict_values", [1]),
        (collections.deque([1, (2,)]), "a deque", [1, [2]]),
        (np.array([[1, 2]]), "a NumPy array", torch.tensor([[1, 2]])),
        (np.array(["a"]), "a NumPy array", None),
        (b"ab", "a bytes", None),
        (1j, "a complex number", None),
        (..., "an ellipsis", None),
        (fractions.Fraction(1, 2), "a Fraction", None),
        ((n for n in "ab"), "a generator (put list(...) around it)", None),
        (map(int, "12"), "a map (put list(...) around it)", None),
        (zip("a", "b"), "an iterator (zip: put list(...) around it)", None),
        (len, "a function: are the brackets of a call missing?", None),
        ("".join, "a function: are the brackets of a call missing?", None),
        (dict, "the class dict: are the brackets of a call missing?", None),
        (torch.zeros(2, device="meta"), "a tensor on the device meta, which has no values", None),
        ({torch.zeros(1): 1}, "a dict with keys such as a tensor of shape (1,)", None),
        ({(1, len): 1}, "a dict with keys such as a tuple of odd things", None),
    ],
)
def test_what_is_not_plain_is_said_in_words_with_the_values_in_it(value, what, inside):
    out = plain(value)
    assert is_record(out, "odd") and out["what"].lower() == what.lower()
    assert same(out["value"], inside)
    assert same(plain([value]), [out])


def test_a_coroutine_is_said_to_be_one():
    async def learner():
        return 1

    value = learner()
    assert plain(value)["what"] == "a coroutine (write def without async)"
    value.close()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantised_tensor_becomes_the_numbers_that_it_stands_for():
    assert same(plain(torch.quantize_per_tensor(torch.tensor([1.1, 2.0]), 0.5, 0, torch.qint8)), torch.tensor([1.0, 2.0]))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_keeps_its_parts():
    out = plain(torch.nested.nested_tensor([torch.zeros(2), torch.ones(1)]))
    assert out["what"] == "a nested tensor" and same(out["value"], [torch.zeros(2), torch.ones(1)])


def test_what_is_too_large_or_too_deep_is_not_read_to_its_end(monkeypatch):
    assert "a tensor of shape (1000000000000,), which is far too large" in plain(torch.zeros(1).expand(10**12))["what"]
    circle = []
    circle.append(circle)
    assert "or one that contains itself" in str(plain(circle))
    nested = 7
    for _ in range(20):
        nested = [nested]
    assert same(plain(nested), nested) and "nested more than 20 deep" in str(plain([nested]))
    monkeypatch.setitem(plain.__globals__, "MANY", 5)
    many = odd("too many values to look at")
    assert same(plain([1, 2, 3, 4, 5]), [1, 2, 3, 4, 5]) and plain([1, 2, 3, 4, 5, 6]) == many
    assert plain([[1, 2, 3], {"a": 4}]) == [[1, 2, 3], many]


class Strange:
    def __getattribute__(self, name):
        raise RuntimeError(name)

    def __len__(self):
        raise RuntimeError


class StrangeList(list):
    def __iter__(self):
        raise RuntimeError

    def __len__(self):
        raise RuntimeError


class StrangeSet(set):
    def __iter__(self):
        raise ZeroDivisionError


def test_objects_that_cannot_be_looked_at_get_a_record_too():
    for value in (Strange(), [Strange()], {"a": Strange()}):
        assert is_record(plain(value), "odd") and "cannot be read: RuntimeError" in plain(value)["what"]
    assert plain(StrangeList([1, 2])) == [1, 2]  # the list's own way through it is taken
    assert "cannot be read: ZeroDivisionError" in plain(StrangeSet({1}))["what"]
    assert described(StrangeList([1])) == "a StrangeList"


@pytest.mark.parametrize("value", [[1, {2}, 3], {"a": {2}}, ([{2}],)])
def test_one_odd_value_leaves_the_others_as_they_are(value):
    def replaced(one):
        if isinstance(one, dict):
            return {key: replaced(inner) for key, inner in one.items()}
        return [replaced(inner) for inner in one] if isinstance(one, (list, tuple)) else odd("a set", [2]) if one == {2} else one

    assert plain(value) == replaced(value)


# ----------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("record", RECORDS, ids=[record[RECORD] for record in RECORDS])
def test_a_record_is_known_as_its_own_sort_and_json_carries_it(record):
    sorts = ["raised", "changed", "unwritten", "kept", "late", "odd"]
    assert is_record(record) and [sort for sort in sorts if is_record(record, sort)] == [record[RECORD]]
    assert json.loads(json.dumps(record)) == record
    assert plain(record, trusted=True) == record and plain([record], trusted=True) == [record]


@pytest.mark.parametrize("record", RECORDS, ids=[record[RECORD] for record in RECORDS])
def test_a_learner_cannot_return_a_record(record):
    forged = odd("a dict with a key of the checks")
    assert plain(record) == forged
    assert plain([1, {"a": record}]) == [1, {"a": forged}]
    assert plain(collections.OrderedDict(record)) == forged


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_plain_data_is_no_record(value):
    assert not is_record(value) and not is_record(value, "odd") and not is_record([raised("KeyError")])


# ----------------------------------------------------------------------------------------- in words


@pytest.mark.parametrize(
    "value, words",
    [
        (None, "None"),
        (True, "True"),
        (3, "the number 3"),
        (0.1, "the number 0.1"),
        (10**90, "the number 1" + "0" * 48),
        ("a", "a str"),
        ({}, "a dict"),
        ([], "an empty list"),
        ((), "an empty tuple"),
        ([1, 2], "a list of 2"),
        ((1, 2), "a pair"),
        ((1, 2, 3), "a tuple of 3"),
        (torch.zeros(2, 3), "a tensor of shape (2, 3)"),
        (torch.zeros((), dtype=torch.bool), "a tensor of shape () and torch.bool"),
        (torch.nn.Linear(1, 1), "a Linear"),
        (OSError(), "an OSError"),
        (odd("a set"), "a set"),
    ],
)
def test_a_value_is_described_in_a_few_words(value, words):
    assert described(value) == words


def test_a_number_too_long_for_python_to_write_out_is_described_too():
    assert described(10**5000) == described(-(10**5000)) == "a whole number of more than 3000 digits"


def test_whole_numbers_of_fewer_bits_are_refused_where_a_card_says_int64():
    for kind in (torch.int64, torch.float32, torch.bool):  # whether floats and bools are right is said elsewhere
        assert as_int64(torch.ones(2).to(kind)) is None
    for kind in (torch.uint8, torch.int8, torch.int16, torch.int32):
        with pytest.raises(TypeError, match=r"these are torch\.\w+, not torch\.int64"):
            as_int64(torch.ones(2, dtype=kind))
