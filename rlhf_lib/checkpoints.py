"""Checkpoints of every kind of model: a folder with `model.safetensors` and the `tokenizer.json` it was trained with.

The weights carry their metadata: the kind of model, its configuration, the tokeniser's fingerprint, and what was measured of it.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from rlhf_lib import tokenization
from rlhf_lib.devices import world
from rlhf_lib.files import one_line, shown, write_atomic
from rlhf_lib.models import published
from rlhf_lib.models.gpt import GPT
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.models.llama import Llama
from rlhf_lib.models.lora import Branch
from rlhf_lib.models.weights import check_sizes

KINDS = {model.kind: model for model in (GPT, Llama, RewardModel)}
DIFFER = "{} and {} were trained with different tokenizers: choose two of one run"
NAMES = {"gpt": "a language model", "reward": "a reward model"}


class CheckpointError(ValueError):
    """A file that is not a usable checkpoint; the message names it and says what to do."""


def save(folder, model, tokenizer, **stats):
    """Write the checkpoint of `model`, with `stats` (what was measured of it) in its metadata."""
    write(folder, model.state_dict(), {**model.metadata(), **stats}, tokenizer)


def write(folder, tensors, metadata, tokenizer):
    """Write a checkpoint: `tokenizer.json`, then `model.safetensors`. Under torchrun only the first process writes."""
    if world()[0] > 0:
        return
    tokenizer.save(Path(folder) / "tokenizer.json")
    metadata = {**metadata, "tokenizer": tokenizer.fingerprint()}
    # A copy each: safetensors refuses tensors that share memory, as a tied head and embedding do.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomic(Path(folder) / "model.safetensors", safetensors_bytes(tensors, {"metadata": json.dumps(metadata)}))


def read_metadata(folder):
    """The metadata of the checkpoint in `folder`, a dict with at least `kind`, `config` and `tokenizer`."""
    path = Path(folder) / "model.safetensors"
    if not path.exists():
        raise CheckpointError(f"no checkpoint in {folder}: it needs a model.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()["metadata"])
        metadata["config"], str.isalnum(metadata["tokenizer"]), hash(metadata.get("kind"))  # as every checkpoint of ours
        if metadata.get("kind") == Branch.kind:
            dict.items(metadata["branch"])
        return metadata
    except (SafetensorError, OSError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint of this project ({one_line(error, kind=False)}): train it again"
        ) from None


def read_tensors(folder):
    """The tensors of the checkpoint in `folder`, by name."""
    with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in list(file.keys())}


def role(metadata):
    """ "gpt" where the checkpoint is a language model of any family, "reward" where it gives one number a text."""
    if metadata.get("kind") == Branch.kind:
        return "reward" if metadata["branch"].get("scalar") else "gpt"
    return "gpt" if metadata.get("kind") == Llama.kind else metadata.get("kind")


def load(folder, device="cpu", kind="gpt", base=None):
    """The model and the tokeniser of the checkpoint in `folder`; the model is in evaluation mode.

    Args:
        kind: "gpt" for a language model of any family, "reward" for a reward model.
        base: the model that a branch stands on, where it is loaded already; else it is found by the name in the checkpoint.

    Raises:
        CheckpointError: no checkpoint there, a damaged one, one of another kind, or beside another tokeniser.
        PublishedError: it stands on a published model that cannot be read.
        ValueError: its tokenizer.json is missing or damaged. Both errors above are ValueErrors too.
    """
    metadata = read_metadata(folder)
    path = Path(folder) / "model.safetensors"
    if role(metadata) != kind:
        found = NAMES.get(role(metadata), f"a {metadata.get('kind')} checkpoint")
        raise CheckpointError(f"{folder} holds {found}, not {NAMES[kind]}: give the folder of {NAMES[kind]}")
    tokenizer = load_tokenizer(folder)
    if metadata["tokenizer"] != tokenizer.fingerprint():
        raise CheckpointError(f"{path} was trained with another tokenizer: use the tokenizer.json that was saved with it")
    if metadata["kind"] == Branch.kind and base is None:
        base = base_of(folder, metadata, device)
    tensors = read_tensors(folder)
    try:
        if metadata["kind"] == Branch.kind:
            model = Branch(base, **metadata["branch"])
        else:
            check_sizes(metadata["config"], tensors)
            model = KINDS[metadata["kind"]].from_metadata(metadata)
    except (AttributeError, TypeError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} has a configuration that this version does not know ({one_line(error, kind=False)}): train it again"
        ) from None
    return load_tensors(model, tensors, path).to(device).eval(), tokenizer


def load_tokenizer(folder):
    """The tokeniser of the checkpoint in `folder`; that of a published model comes from where its weights do."""
    path = Path(folder) / "tokenizer.json"
    if path.exists() and path.stat().st_size < 1000:  # too short for a vocabulary: maybe the name of a published one
        try:
            source = json.loads(path.read_text(encoding="utf-8")).get("source")
        except (ValueError, AttributeError, RecursionError):
            source = None
        if source:
            if source not in published.NAMES:
                raise CheckpointError(f"{path} names no published model but {shown(source)}: take back the one saved with it")
            return published.load_tokenizer(source)
    return tokenization.load(path)


def base_of(folder, metadata, device):
    """The model that the branch in `folder` stands on: a published one, or that of the folder beside it, adapters merged."""
    source = metadata["branch"].get("source")
    if not isinstance(source, str):
        raise CheckpointError(f"{folder} holds a branch and does not say of which model: give that model as base")
    if source in published.NAMES:
        model, tokenizer = published.load(source, device)
    else:
        check_ends(folder, metadata)
        model, tokenizer = load(Path(folder) / source, device)
    if tokenizer.fingerprint() != metadata["tokenizer"]:
        raise CheckpointError(DIFFER.format(folder, source if source in published.NAMES else Path(folder) / source))
    return model.merged() if isinstance(model, Branch) else model


def check_ends(folder, metadata):
    """Raises CheckpointError where a branch stands on itself, at once or by way of others."""
    place, below = Path(folder), set()
    while metadata.get("kind") == Branch.kind and isinstance(source := metadata["branch"].get("source"), str):
        if place.resolve() in below:
            raise CheckpointError(f"{folder} holds a branch that stands on itself: give its model as base")
        if source in published.NAMES:
            return
        below.add(place.resolve())
        place = place / source
        metadata = read_metadata(place)


def load_tensors(model, tensors, path):
    """Put `tensors` into `model`; raises CheckpointError when names or shapes differ, or a value is not finite."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wrong := sorted(set(expected.items()) ^ set(found.items())):
        name, shape = wrong[0]
        raise CheckpointError(f"{path} does not fit its configuration: tensor {name} {list(shape)} is missing or unexpected")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path} holds values that are not finite, in tensor {name}: train it again")
    model.load_state_dict(tensors)
    return model


def same_tokenizer(first, second):
    """Refuse two checkpoints whose tokenisers differ: one would read the other's tokens as other words.

    Raises:
        CheckpointError: naming both folders.
    """
    if read_metadata(first)["tokenizer"] != read_metadata(second)["tokenizer"]:
        raise CheckpointError(DIFFER.format(first, second))
