"""What is done in a run's folder.

DIR/settings.json      the run's settings; another command with other settings is refused
DIR/stages.json        what is done, with its seconds, its memory and its stats
"""

import json
import time
from pathlib import Path

from rlhf_lib import checkpoints, devices, runs
from rlhf_lib.files import RunError, read_json, write_json
from rlhf_lib.pipelines.settings import flat


def same_settings(settings, folder):
    """Refuse a folder that holds a run with other settings; nothing is written."""
    saved = Path(folder) / "settings.json"
    if saved.exists():
        old, new = read_json(saved), json.loads(json.dumps(flat(settings)))
        for name in new:
            if old.get(name) != new[name]:
                raise RunError(f"{folder} holds a run with {name}={old.get(name)!r}, not {new[name]!r}: choose another --out")


class Stages:
    """The stages of the run in `folder`.

    Raises:
        RunError: the folder holds a run with other settings.
    """

    def __init__(self, settings, folder):
        self.folder = Path(folder)
        same_settings(settings, folder)
        devices.wait()
        if devices.world()[0] == 0:
            write_json(self.folder / "settings.json", flat(settings))

    def done(self):
        """The stages that are done, a dict of name to record."""
        path = self.folder / "stages.json"
        return read_json(path) if path.exists() else {}

    def begin(self, out=None):
        """The moment at which a stage began; one that was stopped began so much earlier as it had already worked."""
        return time.monotonic() - (runs.seconds_spent(self.folder / out / "state.pt") if out else 0)

    def finish(self, name, started, out=None, **stats):
        """Note that the stage `name` is done; its training state is needed no more."""
        record = {"seconds": round(time.monotonic() - started, 2), "peak_memory_bytes": devices.peak_memory_bytes(), **stats}
        if devices.peak_card_bytes() is not None:
            record["peak_card_bytes"] = devices.peak_card_bytes()
        if devices.world()[0] == 0:
            write_json(self.folder / "stages.json", {**self.done(), name: record})
            if out:
                (self.folder / out / "state.pt").unlink(missing_ok=True)
        devices.wait()

    def need(self, name, command):
        """Refuse to go on without the stage `name`, which `command` does."""
        if name not in self.done():
            raise RunError(
                f"{self.folder} has no finished {name} stage: run `python -m rlhf_lib {command} --out {self.folder}` first"
            )

    def summary(self):
        """The stats of all stages in one dict, with `seconds` by stage and the peaks of memory."""
        done, summary = self.done(), {}
        peaks = ("peak_memory_bytes", "peak_card_bytes")
        for record in done.values():
            summary |= {name: value for name, value in record.items() if name not in ("seconds", *peaks)}
        summary["seconds"] = {name: record["seconds"] for name, record in done.items()}
        summary["seconds"]["total"] = round(sum(summary["seconds"].values()), 2)
        for peak in peaks:
            if any(peak in record for record in done.values()):
                summary[peak] = max(record.get(peak) or 0 for record in done.values())
        return summary


def publish(run, folder, names, command, presets):
    """Copy checkpoints of a finished run to `folder` in half precision, with its settings and summary.

    Args:
        names: {a checkpoint in the run, at most one folder deep: its name in `folder`}.
        command, presets: what began the run, "run" or "assistant", and its settings by preset: the summary has the whole command.
    """
    run, folder = Path(run), Path(folder)
    if not (run / "summary.json").exists():
        raise RunError(f"{run} holds no finished run: only one with a summary.json is published")
    for name, new in names.items():
        tensors = {part: tensor.half() for part, tensor in checkpoints.read_tensors(run / name).items()}
        metadata, tokenizer = checkpoints.read_metadata(run / name), checkpoints.load_tokenizer(run / name)
        if "/" in name and "branch" in metadata:  # its base is now one folder nearer
            metadata["branch"]["source"] = metadata["branch"]["source"].removeprefix("../")
        checkpoints.write(folder / new, tensors, metadata, tokenizer)
    settings, summary = read_json(run / "settings.json"), read_json(run / "summary.json")
    begun = flat(presets[settings["preset"]])
    other = [f"--{name} {value}" for name, value in settings.items() if value != begun[name] and name != "seed"]
    whole = [f"python -m rlhf_lib {command}", f"--preset {settings['preset']}", f"--seed {settings['seed']}", *other, "--out DIR"]
    write_json(folder / "settings.json", settings)
    write_json(folder / "summary.json", {"command": " ".join(whole), **summary})
