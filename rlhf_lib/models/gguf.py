"""Llamas from GGUF files, the form of llama.cpp, read with the package `gguf`."""

import numpy as np
import torch
from gguf import GGUFReader, dequantize

from rlhf_lib.files import one_line
from rlhf_lib.models.llama import Llama, LlamaConfig

NAMES = {
    "attn_q": "attention.query", "attn_k": "attention.key", "attn_v": "attention.value", "attn_output": "attention.out",
    "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down", "attn_norm": "norm1", "ffn_norm": "norm2",
}  # fmt: skip
MOST = 500_000  # entries of all lists; Llama 3 has 400,000, and each takes 150 bytes or more of memory
WHOLE = {"token_embd": "embedding", "output_norm": "norm", "output": "head"}


class GGUFError(ValueError):
    """A GGUF file that is not a usable Llama; the message names it and says what is wrong."""


class Reader(GGUFReader):
    """One that goes on no further than its file: of a list whose length lies the package would read nothing for ever."""

    entries = 0

    def _get_field_parts(self, orig_offs, raw_type):
        self.entries += 1
        if orig_offs >= len(self.data):
            raise ValueError("a list goes on behind the end of the file")
        if self.entries > MOST:
            raise ValueError(f"more than {MOST:,} entries")
        return super()._get_field_parts(orig_offs, raw_type)


def read(path):
    """The GGUFReader of `path`. Raises GGUFError when it is damaged, cut short or of another architecture."""
    try:
        reader = Reader(path)
        architecture = value(reader, "general.architecture")
    except FileNotFoundError:
        raise GGUFError(f"no GGUF file at {path}: check the path, or fetch the file") from None
    except Exception as error:  # the package has no error of its own for a damaged file
        raise GGUFError(f"{path} is damaged or no GGUF file ({one_line(error)}): delete it and fetch it again") from None
    if architecture != "llama":
        raise GGUFError(f"{path} holds a model of the architecture {architecture!r}: only llama is known")
    return reader


def value(reader, name, default=None):
    """What the file says under `name`: a number, a text or a list of them. Raises GGUFError when a text is not UTF-8."""
    field = reader.get_field(name)
    try:
        return default if field is None else field.contents()
    except UnicodeDecodeError:
        raise GGUFError(f"{name} in {reader.data.filename} is no text in UTF-8: delete the file and fetch it again") from None


def load(path, reader=None):
    """The Llama in the GGUF file at `path`, dequantised to float32, in evaluation mode.

    Args:
        reader: what `read` gave for it, where that has been called already (it takes seconds).

    Raises:
        GGUFError: the file is damaged, of another architecture, or lacks a tensor.
    """
    reader = reader or read(path)
    tensors = {tensor.name.removesuffix(".weight"): tensor for tensor in reader.tensors}
    say = {name: value(reader, f"llama.{name}") for name in (
        "context_length", "block_count", "attention.head_count", "attention.head_count_kv", "embedding_length",
        "feed_forward_length", "attention.layer_norm_rms_epsilon",
    )}  # fmt: skip
    if missing := [name for name, found in say.items() if found is None and name != "attention.head_count_kv"]:
        raise GGUFError(f"{path} does not say llama.{missing[0]}: fetch another file")
    if "rope_freqs" in tensors or value(reader, "llama.rope.scaling.type", "none") != "none":
        raise GGUFError(f"{path} has stretched rotary frequencies, which are not read from GGUF: use the safetensors files")
    heads, tokens = say["attention.head_count"], value(reader, "tokenizer.ggml.tokens", ())
    try:
        config = LlamaConfig(
            vocab_size=len(tokens),
            context=say["context_length"],
            layers=say["block_count"],
            heads=heads,
            kv_heads=say["attention.head_count_kv"] or heads,
            width=say["embedding_length"],
            hidden=say["feed_forward_length"],
            tied="output" not in tensors,
            norm_eps=float(say["attention.layer_norm_rms_epsilon"]),
            rope_base=float(value(reader, "llama.rope.freq_base", 10000.0)),
        )
        return Llama.of(config, state_of(tensors, config))
    except (ValueError, TypeError, RuntimeError) as error:  # among them a tensor that is missing, unknown or of another shape
        reason = str(error).splitlines()[-1].strip()[:100]
        raise GGUFError(f"{path} does not fit its own description ({reason}): fetch another file") from None


def state_of(tensors, config):
    """The state of a Llama out of the file's tensors, by their names without ".weight"."""
    state = {}
    for name, tensor in tensors.items():
        layer, _, part = name.removeprefix("blk.").partition(".")
        ours = WHOLE.get(name) or (f"blocks.{layer}.{NAMES[part]}" if part in NAMES else name)
        weight = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        if part == "attn_q":
            weight = unpermuted(weight, config.heads)
        if part == "attn_k":
            weight = unpermuted(weight, config.kv_heads)
        state[f"{ours}.weight"] = weight
    return state


def unpermuted(weight, heads):
    """Rows of a query or key matrix (H * D, C) from llama.cpp's order, where the two coordinates of a rotary pair are neighbours,
    to that of `layers.rotate`, where they are half a head apart."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
