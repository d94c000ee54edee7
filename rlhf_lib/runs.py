"""A run's folder: weights and training state written atomically, figures in `metrics.jsonl`, resume.

    DIR/
      metrics.jsonl        one JSON object a line: stage, step, and the figures of that step
      STAGE/model.safetensors, tokenizer.json    a checkpoint: weights, and what is needed to read them
      STAGE/state.pt       the training state that a killed stage continues from

Weights are safetensors; the training state loads with `weights_only=True`: nothing here is ever unpickled.
"""

import contextlib
import errno
import io
import json
import math
import os
import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from rlhf_lib.devices import world


class RunError(RuntimeError):
    """A run that cannot go on; the message says why, what is kept, and what to do."""


class CheckpointError(ValueError):
    """A file that is not a usable checkpoint; the message names it and says what to do."""


def write_atomic(path, content):
    """Write `content` (bytes) to `path` so that at any moment the old or the new content is there, never half of one.

    Raises:
        RunError: the disk is full or the folder cannot be written; what was at `path` is still there.
    """
    path = Path(path)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(fresh, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # no fresh file, or its folder is a file
            fresh.unlink()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = "the disk is full: free some space" if full else f"{error.strerror}: make the folder writable"
        raise RunError(f"cannot write {path} ({what}, then run again; the last good file is kept)") from error


def write_json(path, record):
    write_atomic(path, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path):
    """The JSON file at `path`. Raises RunError, naming it, when it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise RunError(f"{path} is damaged ({error}): choose another --out, or delete the run's folder") from None


# ----------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(folder, tensors, card, tokenizer):
    """Write a checkpoint: `tokenizer.json`, then `model.safetensors` with `card` (a dict) in its metadata.

    Under torchrun only the first process writes, here and wherever this module writes a run's files.
    """
    if world()[0] > 0:
        return
    tokenizer.save(Path(folder) / "tokenizer.json")
    card = {**card, "tokenizer": tokenizer.fingerprint()}
    # A copy each: safetensors refuses tensors that share memory, as a tied head and embedding do.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomic(Path(folder) / "model.safetensors", safetensors_bytes(tensors, {"card": json.dumps(card)}))


def read_card(folder):
    """The card of the checkpoint in `folder`: what kind of model, its configuration, its tokeniser's fingerprint."""
    path = Path(folder) / "model.safetensors"
    if not path.exists():
        raise CheckpointError(f"no checkpoint in {folder}: it needs a model.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads(file.metadata()["card"])
        card["tokenizer"]  # every card of ours has it
        return card
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint of this project ({error}): train it again") from None


def load_checkpoint(folder, tokenizer=None):
    """The card and the tensors of the checkpoint in `folder`.

    Args:
        tokenizer: when given, the one the weights must have been trained with.

    Raises:
        CheckpointError: no checkpoint there, a damaged one, or one that belongs to another tokeniser.
    """
    card = read_card(folder)
    path = Path(folder) / "model.safetensors"
    if tokenizer is not None and card["tokenizer"] != tokenizer.fingerprint():
        raise CheckpointError(f"{path} was trained with another tokenizer: use the tokenizer.json that was saved with it")
    with safe_open(path, framework="pt") as file:
        return card, {name: file.get_tensor(name) for name in list(file.keys())}


def load_weights(model, tensors, path):
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


# ----------------------------------------------------------------------------------------- training state


def save_state(path, state):
    """Write a training state (nested dicts and lists of tensors and numbers) atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_state(path):
    """The training state at `path`, or None when there is none. Raises CheckpointError when it is damaged."""
    if not Path(path).exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no single class for a damaged file
        reason = (str(error) or type(error).__name__).splitlines()[0][:80]
        raise CheckpointError(f"{path} is damaged ({reason}): delete it to begin this stage again") from None


# ----------------------------------------------------------------------------------------- metrics


class Metrics:
    """The figures of a run, appended to `metrics.jsonl` one line a step.

    A line that a kill cut short is dropped. `rewind` forgets what a resumed stage will compute again, so the file of a
    resumed run equals that of an uninterrupted one.
    """

    def __init__(self, folder):
        self.path = Path(folder) / "metrics.jsonl"

    def read(self, stage=None):
        """The records, in order; those of one `stage` when it is given."""
        return [record for record in self._records() if stage in (None, record["stage"])]

    def log(self, stage, step, **figures):
        """Append one record; returns it."""
        record = {"stage": stage, "step": step, **figures}
        if world()[0] > 0:
            return record
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.path} ({error.strerror}): free some space, then run again") from error
        return record

    def rewind(self, stage, step):
        """Drop every record of `stage` at or after `step`, and a line that was cut short."""
        if world()[0] > 0:
            return
        kept = [r for r in self._records() if r["stage"] != stage or r["step"] < step]
        write_atomic(self.path, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def _records(self):
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        records = []
        for number, line in enumerate(lines, 1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                if number < len(lines):
                    raise RunError(f"{self.path}, line {number}: not JSON; delete that line") from None
        return records


# ----------------------------------------------------------------------------------------- a stage that resumes


SAVE_SECONDS = float(os.environ.get("RLHF_SAVE_SECONDS", 20))


class Progress:
    """The state a stage continues from: saved every `seconds`, so that a kill costs at most so much.

    When a save happens never changes a figure: every step draws its randomness from (seed, step) alone.

    Args:
        path: the stage's `state.pt`.
        model, optimizers: whose state is kept.
        seconds: how often `tick` saves; the environment's RLHF_SAVE_SECONDS, or 20.
    """

    def __init__(self, path, model, optimizers, seconds=SAVE_SECONDS):
        self.path, self.model, self.optimizers, self.seconds = Path(path), model, optimizers, seconds
        self.saved = self.started = time.monotonic()
        self.before = 0.0  # seconds spent before this process

    def resume(self):
        """Restore model and optimisers; returns (step to go on with, what `tick` kept beside them)."""
        state = load_state(self.path)
        if state is None:
            return 0, {}
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0][:80]
            raise CheckpointError(f"{self.path} belongs to another configuration ({reason}): choose another --out") from None
        self.before = state["seconds"]
        return state["step"], state["extra"]

    def tick(self, step, extra=None, now=False):
        """Save, if it is time (or `now`): `step` is the next step to do, `extra` a dict of tensors and numbers."""
        if world()[0] == 0 and (now or time.monotonic() - self.saved >= self.seconds):
            self.saved = time.monotonic()
            state = {"step": step, "extra": extra or {}, "seconds": self.before + self.saved - self.started}
            state["model"] = self.model.state_dict()
            state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
            save_state(self.path, state)


def seconds_spent(path):
    """How long the stage whose state is at `path` has worked so far; 0 when there is none."""
    state = load_state(path)
    return state["seconds"] if state else 0.0


def check_finite(value, stage, step, limit=math.inf):
    """Stop the stage when a loss is not finite, or over `limit`; the checkpoints on disk stay as they are."""
    if not math.isfinite(value) or value > limit:
        raise RunError(
            f"{stage}: the loss is {value:.4g} at step {step}; the last good weights are kept. "
            "Lower the learning rate, or give another --seed, and start in a new --out"
        )


def seed_step(seed, step):
    """Seed torch's global generator for one step of training, from (seed, step) alone."""
    torch.manual_seed((seed * 1_000_003 + step) % 2**63)
