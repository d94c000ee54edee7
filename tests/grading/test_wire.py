import contextlib
import json
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_lib.exercises.compare import same
from rlhf_lib.grading.wire import LENGTH, pack, unpack

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5)
TENSORS = st.sampled_from([
    torch.tensor(1.5), torch.zeros(0, 3), torch.arange(6).reshape(2, 3).T, torch.tensor([True, False]),
    torch.tensor([1.0, float("nan")], dtype=torch.float64), torch.tensor([1 + 2j]), torch.ones(2, dtype=torch.bfloat16),
    torch.ones(3, requires_grad=True),
])  # fmt: skip
PLAIN = st.recursive(
    SCALARS | TENSORS,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.tuples(st.text(max_size=2), st.integers()), inside, max_size=3)
    ),
    max_leaves=8,
)


def alike(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.detach().nan_to_num(7), b.nan_to_num(7))
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a machine may be busy
@given(PLAIN)
def test_plain_data_comes_back_as_it_was(value):
    assert alike(value, unpack(pack(value)))


def test_nan_infinity_and_half_a_character_come_back():
    back = unpack(pack([float("nan"), float("inf"), -float("inf"), "\ud800"]))
    assert back[0] != back[0] and back[1:] == [float("inf"), -float("inf"), "\ud800"]


@pytest.mark.parametrize("value", [object(), {1, 2}, [lambda: 0], b"bytes", torch.empty(2, dtype=torch.bits8)])
def test_what_is_no_plain_data_is_refused(value):
    with pytest.raises(ValueError, match=r"no plain data|not plain data"):
        pack(value)


def test_a_list_that_holds_itself_is_refused():
    loop = []
    loop.append(loop)
    with pytest.raises(ValueError):
        pack(loop)


def forged(text, tensors=None):
    return LENGTH.pack(len(text)) + text + safetensors.torch.save(tensors or {})


@pytest.mark.parametrize("content", [
    b"", b"\0" * 7, struct.pack(">Q", 2**63) + b"x", pack([1])[:-1], forged(b"{"), forged(b'{"tensor": "9"}'),
    forged(b'{"made": 1}'), forged(b'{"dict": 3}'), forged(b'{"dict": [[[1], 2]]}'), forged(b'{"tuple": [1], "dict": []}'),
    forged(b"[" * 200_000), forged(b"\xff\xfe"), forged(json.dumps({"complex": "0"}).encode(), {"0": torch.ones(3)}),
    forged(b"1" * 10_000), b"cos\nsystem\n(S'true'\ntR.",
])  # fmt: skip
def test_a_forged_message_is_a_value_error(content):
    with pytest.raises(ValueError):
        unpack(content)


@given(st.binary(max_size=60), st.integers(0, 400))
def test_whatever_is_changed_in_a_message_nothing_but_a_value_error_comes(noise, place):
    message = bytearray(pack({"outputs": [torch.ones(2), (1, "x")]}))
    message[place : place + len(noise)] = noise
    with contextlib.suppress(ValueError):
        unpack(bytes(message))


def test_same_knows_them_too():
    assert same(unpack(pack({"a": torch.ones(2)})), {"a": torch.ones(2)})
