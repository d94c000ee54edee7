import contextlib
import os
import re
import struct
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from rlhf_lib.models import gguf
from rlhf_lib.models.gguf import GGUFError
from rlhf_lib.models.llama import LlamaConfig
from rlhf_lib.models.published import shipped_file

TYPES = GGMLQuantizationType
BLOCKS, HEADS, KV, WIDTH, HIDDEN, V = 2, 4, 2, 64, 96, 50
SHAPES = {
    "attn_q": (WIDTH, WIDTH), "attn_k": (KV * 16, WIDTH), "attn_v": (KV * 16, WIDTH), "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN),
    "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,),
}  # fmt: skip
SAYS = {
    "llama.context_length": 40, "llama.block_count": BLOCKS, "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV, "llama.embedding_length": WIDTH, "llama.feed_forward_length": HIDDEN,
    "llama.attention.layer_norm_rms_epsilon": 0.01, "llama.rope.freq_base": 500.0, "llama.rope.dimension_count": 16,
    "llama.vocab_size": V, "tokenizer.ggml.tokens": [f"t{number}" for number in range(V)],
}  # fmt: skip


def plain_tensors(tied=True, seed=0):
    """Random float32 tensors under the names of GGUF, in the order of their rows that transformers has."""
    draw = np.random.default_rng(seed)
    shapes = {f"blk.{layer}.{name}": shape for layer in range(BLOCKS) for name, shape in SHAPES.items()}
    shapes |= {"token_embd": (V, WIDTH), "output_norm": (WIDTH,)} | ({} if tied else {"output": (V, WIDTH)})
    return {
        name: (draw.normal(scale=0.3, size=shape) + (1.0 if "norm" in name else 0.0)).astype(np.float32)
        for name, shape in shapes.items()
    }


def permuted(matrix, heads):
    """Rows as llama.cpp wants them: inside a head, first each coordinate's and then its partner's, half a head further on."""
    D = len(matrix) // heads
    order = [h * D + i + partner for h in range(heads) for i in range(D // 2) for partner in (0, D // 2)]
    return matrix[order]


def write(path, tensors, kind=TYPES.F32, says=SAYS, architecture="llama"):
    """A GGUF file with `tensors`, its matrices in the type `kind`; a value of None is not said."""
    writer = GGUFWriter(path, architecture)
    for name, said in says.items():
        if isinstance(said, list):
            writer.add_array(name, said)
        elif isinstance(said, str):
            writer.add_string(name, said)
        elif said is not None:
            (writer.add_float32 if isinstance(said, float) else writer.add_uint32)(name, said)
    for name, tensor in tensors.items():
        heads = {"attn_q": HEADS, "attn_k": KV}.get(name.split(".")[-1])
        tensor = permuted(tensor, heads) if heads else tensor
        own = kind if tensor.ndim == 2 else TYPES.F32
        data = tensor if own == TYPES.F32 else quants.quantize(tensor, own)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def by_hand(data, kind):
    """The numbers in the bytes (rows, bytes a row) of a quantised matrix, from the layout of its blocks of 32."""
    data = np.ascontiguousarray(data)
    if kind == TYPES.F32:
        return data.view(np.float32)
    if kind == TYPES.F16:
        return data.view(np.float16).astype(np.float32)
    rows = len(data)
    if kind == TYPES.Q8_0:  # a scale in float16, then 32 signed bytes
        blocks = data.reshape(rows, -1, 34)
        scale = blocks[:, :, :2].copy().view(np.float16).astype(np.float32)
        return (scale * blocks[:, :, 2:].view(np.int8)).reshape(rows, -1)
    assert kind == TYPES.Q4_1  # scale and lowest value in float16, then 16 bytes: the lower halves are the first 16 numbers
    blocks = data.reshape(rows, -1, 20)
    scale, lowest = (blocks[:, :, at : at + 2].copy().view(np.float16).astype(np.float32) for at in (0, 2))
    numbers = np.concatenate([blocks[:, :, 4:] & 15, blocks[:, :, 4:] >> 4], axis=2)
    return (scale * numbers + lowest).reshape(rows, -1)


def tokens(batch=3, length=20):
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(0))


# ----------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [TYPES.F32, TYPES.F16, TYPES.Q8_0, TYPES.Q4_1], ids=lambda kind: kind.name)
def test_weights_are_those_that_were_written_up_to_the_rounding_of_their_type(tmp_path, kind, tied):
    tensors = plain_tensors(tied)
    model = gguf.load(write(tmp_path / "small.gguf", tensors, kind))
    assert model.config.norm_eps == pytest.approx(0.01)
    assert model.config == LlamaConfig(V, 40, BLOCKS, HEADS, KV, WIDTH, HIDDEN, tied, model.config.norm_eps, 500.0)
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    state = model.state_dict()
    assert torch.equal(state["head.weight"], state["embedding.weight"]) == tied
    names = {f"blk.{layer}.{theirs}": f"blocks.{layer}.{ours}" for theirs, ours in gguf.NAMES.items() for layer in range(BLOCKS)}
    for theirs, ours in (names | gguf.WHOLE).items():
        if theirs in tensors:
            written, found = tensors[theirs], state[f"{ours}.weight"].numpy()
            rounded = written if written.ndim == 1 else by_hand(quants.quantize(written, kind), kind)  # rows are rounded alone
            np.testing.assert_allclose(found, rounded, rtol=0, atol=1e-6)
            assert np.abs(found - written).max() < {"F32": 1e-9, "F16": 1e-3, "Q8_0": 0.01, "Q4_1": 0.12}[kind.name]


@pytest.mark.parametrize("kind", [TYPES.F16, TYPES.Q8_0, TYPES.Q4_1], ids=lambda kind: kind.name)
def test_logits_equal_those_that_transformers_reads_from_the_same_file(tmp_path, kind):
    path = write(tmp_path / "small.gguf", plain_tensors(tied=kind == TYPES.Q4_1), kind)
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="small.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        expected, found = theirs(tokens()).logits, gguf.load(path)(tokens())
    assert expected.std() > 1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_what_a_file_leaves_out_has_its_usual_value(tmp_path):
    says = {**SAYS, "llama.attention.head_count_kv": None, "llama.rope.freq_base": None}
    tensors = plain_tensors()
    for layer in range(BLOCKS):
        for name in ("attn_k", "attn_v"):
            tensors[f"blk.{layer}.{name}"] = tensors[f"blk.{layer}.attn_q"]
    config = gguf.load(write(tmp_path / "small.gguf", tensors, says=says)).config
    assert (config.kv_heads, config.rope_base) == (HEADS, 10000.0)


@pytest.mark.parametrize("heads, D", [(1, 2), (1, 8), (3, 4), (9, 64)])
def test_rows_are_put_back_into_the_order_of_rotary_pairs_half_a_head_apart(heads, D):
    matrix = torch.randn(heads * D, 5, generator=torch.Generator().manual_seed(0))
    found = gguf.unpermuted(torch.from_numpy(permuted(matrix.numpy(), heads)), heads)
    assert torch.equal(found, matrix)


def test_values_are_numbers_texts_or_lists_of_them(tmp_path):
    reader = gguf.read(write(tmp_path / "small.gguf", plain_tensors(), says={**SAYS, "general.name": "née"}))
    assert gguf.value(reader, "general.name") == "née"
    assert gguf.value(reader, "llama.block_count") == BLOCKS
    assert gguf.value(reader, "tokenizer.ggml.tokens")[:2] == ["t0", "t1"]
    assert gguf.value(reader, "llama.nothing") is None and gguf.value(reader, "llama.nothing", 7) == 7


def test_the_shipped_files_tensors_are_those_that_its_bytes_spell():
    """Where some of them lie, and their bytes dequantised by hand."""
    path = shipped_file()
    reader, whole = gguf.read(path), np.memmap(path, dtype=np.uint8, mode="r")
    wanted = ("token_embd", "output_norm", "blk.0.attn_q", "blk.17.attn_k", "blk.17.attn_v", "blk.29.ffn_down", "blk.3.ffn_norm")
    tensors = {t.name.removesuffix(".weight"): t for t in reader.tensors if t.name.removesuffix(".weight") in wanted}
    rows = SimpleNamespace(data=tensors["token_embd"].data[:99], tensor_type=TYPES.Q8_0)  # 49152 take seconds
    state = gguf.state_of({**tensors, "token_embd": rows}, LlamaConfig())
    assert len(tensors) == len(state) == len(wanted)
    assert {t.tensor_type for t in tensors.values()} == {TYPES.Q4_1, TYPES.Q8_0, TYPES.F32}
    for (name, tensor), found in zip(tensors.items(), state.values(), strict=True):
        data = whole[tensor.data_offset : tensor.data_offset + int(tensor.n_bytes)]
        data = data.reshape(int(tensor.shape[-1]) if len(tensor.shape) == 2 else 1, -1)[: len(found)]
        expected = by_hand(data, tensor.tensor_type).reshape(found.shape)
        heads = {"attn_q": 9, "attn_k": 3}.get(name.split(".")[-1])
        found = permuted(found.numpy(), heads) if heads else found.numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert found.std() > 0.01


# ----------------------------------------------------------------------------------------- what is refused


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(GGUFError, match=rf"^no GGUF file at {tmp_path}/gone\.gguf: check the path, or fetch the file$"):
        gguf.load(tmp_path / "gone.gguf")


def test_a_file_that_is_cut_short_or_of_another_kind_is_named(tmp_path):
    path = write(tmp_path / "small.gguf", plain_tensors(), TYPES.Q8_0)
    whole = path.read_bytes()
    cuts = [whole[:length] for length in (0, 3, 4, 20, 100, 500, 3000, len(whole) // 2, len(whole) - 40)]
    for content in (*cuts, b"GGUF" + b"\xff" * 100, b"PK\x03\x04" + bytes(200), b"<html>" * 50):
        path.write_bytes(content)
        with pytest.raises(GGUFError, match=rf"^{path} is damaged or no GGUF file \(.*\): delete it and fetch it again$"):
            gguf.load(path)
    path.write_bytes(whole)
    gguf.load(path)


def test_another_architecture_is_named(tmp_path):
    path = write(tmp_path / "small.gguf", plain_tensors(), architecture="qwen2")
    with pytest.raises(GGUFError, match=rf"^{path} holds a model of the architecture 'qwen2': only llama is known$"):
        gguf.load(path)


@pytest.mark.parametrize("name", [
    "context_length", "block_count", "attention.head_count", "embedding_length", "feed_forward_length",
    "attention.layer_norm_rms_epsilon",
])  # fmt: skip
def test_a_size_that_is_not_said_is_named(tmp_path, name):
    path = write(tmp_path / "small.gguf", plain_tensors(), says={**SAYS, f"llama.{name}": None})
    with pytest.raises(GGUFError, match=rf"^{path} does not say llama\.{re.escape(name)}: fetch another file$"):
        gguf.load(path)


def test_stretched_rotary_positions_are_refused_and_not_read_as_plain_ones(tmp_path):
    said = "has stretched rotary frequencies, which are not read from GGUF: use the safetensors files"
    path = write(tmp_path / "small.gguf", {**plain_tensors(), "rope_freqs": np.ones(8, np.float32)})
    with pytest.raises(GGUFError, match=said):
        gguf.load(path)
    path = write(tmp_path / "other.gguf", plain_tensors(), says={**SAYS, "llama.rope.scaling.type": "yarn"})
    with pytest.raises(GGUFError, match=said):
        gguf.load(path)
    gguf.load(write(tmp_path / "none.gguf", plain_tensors(), says={**SAYS, "llama.rope.scaling.type": "none"}))


WRONG = {
    "a tensor that is missing": (
        lambda t: t.pop("blk.1.ffn_up"),
        {},
        r"Missing key\(s\) in state_dict: \"blocks\.1\.up\.weight\"",
    ),
    "no embedding": (lambda t: t.pop("token_embd"), {}, r"embedding\.weight|head\.weight"),
    "experts": (lambda t: t.update({"blk.0.ffn_gate_inp": np.ones((4, WIDTH), np.float32)}), {}, "Unexpected key.*ffn_gate_inp"),
    "another shape": (lambda t: t.update({"blk.0.ffn_up": t["blk.0.ffn_down"]}), {}, r"size mismatch for blocks\.0\.up\.weight"),
    "another number of blocks": (lambda t: None, {"llama.block_count": 1}, r"Unexpected key.*blocks\.1"),
    "another number of heads": (lambda t: None, {"llama.attention.head_count": 5}, r"width must be a multiple of 2 \* heads"),
    "no tokens": (lambda t: None, {"tokenizer.ggml.tokens": None}, "vocab_size must be at least 1, got 0"),
    "other tokens": (lambda t: None, {"tokenizer.ggml.tokens": ["a", "b"]}, "size mismatch"),
}


@pytest.mark.parametrize("change, says, said", WRONG.values(), ids=WRONG.keys())
def test_a_file_that_does_not_fit_its_own_description_is_named(tmp_path, change, says, said):
    tensors = plain_tensors()
    change(tensors)
    path = write(tmp_path / "small.gguf", tensors, says={**SAYS, **says})
    with pytest.raises(GGUFError, match=rf"^{path} does not fit its own description \(.*({said}).*\): fetch another file$"):
        gguf.load(path)


# ----------------------------------------------------------------------------------------- whatever a file holds


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    return folder, write(folder / "right.gguf", plain_tensors()).read_bytes()


@pytest.mark.filterwarnings("ignore")
@given(st.data())
@settings(deadline=None, max_examples=int(os.environ.get("RLHF_FUZZ", 50)), suppress_health_check=[HealthCheck.too_slow])
def test_a_file_with_changed_bytes_is_read_or_refused_in_a_sentence_and_in_little_memory(small_file, data):
    folder, content = small_file
    head = content.index(b"blk.0") + 2000  # what says what is there; behind it stand weights
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place, width = data.draw(st.integers(0, head)), data.draw(st.sampled_from([1, 2, 4, 8]))
        changed[place : place + width] = data.draw(st.binary(min_size=width, max_size=width) | st.just(b"\xff" * width))
    path = folder / "changed.gguf"
    path.write_bytes(bytes(changed[: data.draw(st.just(len(changed)) | st.integers(0, len(changed)))]))
    tracemalloc.start()
    try:
        with contextlib.suppress(GGUFError):
            gguf.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(content) + 100e6


@pytest.mark.parametrize(("length", "said"), [(2**60, "a list goes on behind the end"), (2**64 - 1, "a list goes on")])
def test_a_list_whose_length_lies_is_refused_at_the_end_of_the_file(tmp_path, length, said):
    """The package alone would append nothing to it until the memory is gone."""
    path = write(tmp_path / "model.gguf", {}, says={"llama.numbers": [True, False, True]})
    content = path.read_bytes()
    place = content.index(b"llama.numbers") + len(b"llama.numbers") + 8  # behind the types of the field and of the list
    assert struct.unpack_from("<Q", content, place)[0] == 3
    path.write_bytes(content[:place] + struct.pack("<Q", length) + content[place + 8 :])
    with pytest.raises(GGUFError, match=rf"^{path} is damaged or no GGUF file .*{said}"):
        gguf.load(path)


def test_more_entries_than_any_model_has_are_refused_before_they_take_memory(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", {}, says={"llama.numbers": list(range(300))})
    monkeypatch.setattr(gguf, "MOST", 290)
    with pytest.raises(GGUFError, match="more than 290 entries"):
        gguf.read(path)
    monkeypatch.setattr(gguf, "MOST", 310)
    assert gguf.value(gguf.read(path), "llama.numbers") == list(range(300))


def test_a_text_that_is_not_utf8_is_named(tmp_path):
    path = write(tmp_path / "m.gguf", plain_tensors())
    path.write_bytes(path.read_bytes().replace(b"t7", b"\x807"))
    with pytest.raises(
        gguf.GGUFError, match=r"^tokenizer.ggml.tokens in .*m.gguf is no text in UTF-8: delete the file and fetch it again$"
    ):
        gguf.load(path)
