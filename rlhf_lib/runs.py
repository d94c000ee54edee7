"""A run's folder: stats in `metrics.jsonl`, and stages that resume.

    DIR/
      metrics.jsonl        one JSON object a line: stage, step, and the stats of that step
      OUT/model.safetensors, tokenizer.json    a stage's checkpoint: weights, and what is needed to read them
      OUT/state.pt         the training state that a killed stage continues from

The training state loads with `weights_only=True`: nothing here is ever unpickled.
"""

import io
import json
import math
import os
import time
import zipfile
from pathlib import Path

import torch
from tqdm.auto import tqdm

from rlhf_lib import checkpoints
from rlhf_lib.checkpoints import CheckpointError
from rlhf_lib.devices import seed_for, wait, world
from rlhf_lib.files import RunError, read_text, write_atomic

SAVE_SECONDS = 20.0


class Metrics:
    """The stats of a run, appended to `metrics.jsonl` one line a step.

    A line that a kill cut short is dropped. `rewind` forgets what a resumed stage will compute again, so the file of a
    resumed run equals that of an uninterrupted one.
    """

    def __init__(self, folder):
        self.path = Path(folder) / "metrics.jsonl"

    def read(self, stage=None):
        """The records, in order; those of one `stage` when it is given."""
        return [record for record in self._records() if stage in (None, record["stage"])]

    def log(self, stage, step, **stats):
        """Append one record; returns it."""
        record = {"stage": stage, "step": step, **stats}
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

    def sync(self):
        """Have the records on the disk, where a power cut leaves them."""
        if self.path.exists():
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())

    def _records(self):
        lines = read_text(self.path).rstrip("\n").split("\n") if self.path.exists() else []
        records = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                hash(record["stage"]), float(record["step"])
                records.append(record)
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                if number < len(lines):
                    raise RunError(f"{self.path}, line {number}: not JSON of a step; delete that line") from None
        return records


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
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as parts:  # torch packs nothing; what is packed may be of any size
                if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                    raise ValueError("packed, as no training state is")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no single class for a damaged file
        reason = (str(error) or type(error).__name__).splitlines()[0][:80]
        raise CheckpointError(f"{path} is damaged ({reason}): delete it to begin this stage again") from None


def seconds_spent(path):
    """How long the stage whose state is at `path` has worked so far; 0 when there is none."""
    state = load_state(path)
    seconds = state.get("seconds", 0.0) if isinstance(state, dict) else 0.0
    return seconds if isinstance(seconds, int | float) and math.isfinite(seconds) else 0.0


# ----------------------------------------------------------------------------------------- a stage that resumes


class stage:
    """The steps of a training loop, with everything around them that is not the algorithm.

        stage = runs.stage("pretrain", folder, "base", model, [optimizer], steps, seed, tokenizer)
        for step in stage:                  # from where a killed run was; torch's generator is seeded for each step
            ...
            stage.check(loss)               # stops the run when it is not finite
            stage.log(train_loss=loss)      # into metrics.jsonl
            stage.keep(val_loss=val_loss)   # the weights as they are now are the result so far
        stage.finish()                      # the checkpoint is on disk

    The state is saved every `SAVE_SECONDS`, and at the last step, but never so often that saving takes over a twentieth of the
    time. When that happens changes no figure: every step draws its randomness from (seed, stage, step) alone.

    Args:
        name: its name in metrics.jsonl.
        folder, out: the run's folder, and the folder inside it for the stage's checkpoint and state.
        model, optimizers: whose state is saved; anything with a `state_dict` will do.
        steps: how many there are in all.
        tokenizer: saved beside the weights.
        memory: a dict of tensors and numbers that the loop changes and that a resumed run has to find again.
        result: the model that the checkpoint is of, where `model` holds more than it.
        show: names of stats that stand on the progress bar.

    Raises:
        CheckpointError: the state in the folder is damaged or belongs to another configuration.
    """

    def __init__(self, name, folder, out, model, optimizers, steps, seed, tokenizer, memory=None, result=None, show=()):
        self.name, self.out, self.steps, self.seed, self.show = name, Path(folder) / out, steps, seed, show
        self.model, self.optimizers, self.tokenizer = model, optimizers, tokenizer
        self.tokens = tokenizer.fingerprint()
        self.result = model if result is None else result
        self.memory = {} if memory is None else memory
        self.metrics = Metrics(folder)
        self.kept, self.stats, self.shown = None, {}, {}
        self.saved = self.started = time.monotonic()
        self.saving = self.before = 0.0  # seconds that a save takes; seconds spent before this process
        self.first = self.step = self.resume()
        self.metrics.rewind(name, self.first)

    def __iter__(self):
        bar = tqdm(range(self.first, self.steps), initial=self.first, total=self.steps, desc=self.name, disable=world()[0] > 0)
        for self.step in bar:
            self.stats = {}
            torch.manual_seed(seed_for(self.seed, f"{self.name} step", self.step))  # dropout
            yield self.step
            if self.stats:
                self.metrics.log(self.name, self.step, **self.stats)
                self.shown |= {name: f"{self.stats[name]:.3f}" for name in self.show if name in self.stats}
                bar.set_postfix(self.shown)
            self.tick(self.step + 1)

    def log(self, **stats):
        """Record `stats` of this step: one line in metrics.jsonl once the step is done."""
        self.stats |= stats

    def check(self, loss, limit=math.inf, what="loss"):
        """Stop the run when a loss, or `what` else (a number), is not finite, or over `limit`; what was kept is on disk then."""
        if not math.isfinite(loss) or loss > limit:
            self.write_kept()
            kept = "; the last good weights are kept" if (self.out / "model.safetensors").exists() else ""
            raise RunError(
                f"{self.name}: the {what} is {loss:.4g} at step {self.step}{kept}. "
                "Lower the learning rate, or give another --seed, and start in a new --out"
            )

    def keep(self, **stats):
        """The weights as they are now, with `stats` in their metadata, are what the stage leaves."""
        tensors = {name: tensor.detach().clone() for name, tensor in self.result.state_dict().items()}
        self.kept = tensors, {**self.result.metadata(), "seed": self.seed, **stats}

    def write_kept(self):
        """Write the checkpoint of what was kept, if that is not on disk yet."""
        if self.kept is not None:
            checkpoints.write(self.out, *self.kept, self.tokenizer)
            self.kept = None

    def tick(self, step):
        """Save, if it is time: `step` is the next to do."""
        if step == self.steps or time.monotonic() - self.saved >= max(SAVE_SECONDS, 20 * self.saving):
            self.save(step)

    def save(self, step):
        """Save what a killed run continues from."""
        begun = time.monotonic()
        self.write_kept()
        if world()[0] == 0:
            self.metrics.sync()
            state = {"step": step, "memory": self.memory, "seconds": self.before + begun - self.started}
            state["tokenizer"] = self.tokens
            state["model"] = self.model.state_dict()
            state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
            save_state(self.out / "state.pt", state)
        self.saved = time.monotonic()
        self.saving = self.saved - begun

    def resume(self):
        """Restore what was saved; returns the step to go on with."""
        path = self.out / "state.pt"
        state = load_state(path)
        if state is None:
            return 0
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                if isinstance(optimizer, torch.amp.GradScaler) and not saved:
                    continue  # the run began without float16, and so without a scaler
                optimizer.load_state_dict(saved)
            self.memory |= state["memory"]
            self.before, step = float(state["seconds"]), state["step"]
            if type(step) is not int or not 0 <= step <= self.steps or not 0 <= self.before < math.inf:
                raise ValueError(f"step {step!r:.20} of {self.steps} after {self.before} s")
            other = state.get("tokenizer", self.tokens) != self.tokens
        except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:80]
            raise CheckpointError(f"{path} belongs to another configuration ({reason}): choose another --out") from None
        if other:
            raise CheckpointError(
                f"{path} was begun with another tokenizer than that of the text as it is now: put back what it learned from, or "
                "choose another --out"
            )
        return step

    def finish(self):
        """Write what was kept; every process waits until it is there."""
        self.write_kept()
        wait()
