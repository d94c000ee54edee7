"""What is done in a run's folder.

DIR/settings.json      the run's settings, written when work begins
DIR/inputs.json        fingerprints of what its stages learn from, by the setting that names it
DIR/stages.json        what is done, with its seconds, its memory and its stats
"""

import json
import math
import shlex
import time
from pathlib import Path

from rlhf_lib import checkpoints, devices, runs
from rlhf_lib.checkpoints import CheckpointError
from rlhf_lib.files import RunError, lock, read_json, read_text, shown, write_atomic, write_json
from rlhf_lib.pipelines.settings import flat

# What a setting meant before there was one: a run that was begun then goes on with that.
BEFORE = {"reward_adapters": True}
MARKS = ("pretrain.steps", "sft.epochs")  # settings that tell the two pipelines apart
PEAKS = ("peak_memory_bytes", "peak_card_bytes")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def saved_settings(folder, kind):
    """The settings of `kind`, a class, with which the run in `folder` was begun, by dotted name.

    Those that are not in its file, being younger, have their old meaning.

    Raises:
        RunError: the file is damaged, or of another pipeline or version; the message names file and field.
    """
    path, known = Path(folder) / "settings.json", flat(kind())
    saved = read_json(path)
    if any(mark in saved and mark not in known for mark in MARKS):
        raise RunError(f"{folder} holds a run of another pipeline: choose another --out")
    for name, value in saved.items():
        if name not in known:
            raise RunError(f"{path}: this version does not know the setting {name:.80}; choose another --out")
        wanted = type(known[name])
        if not (type(value) is wanted or (wanted is float and type(value) is int)):
            raise RunError(f"{path}: {name} must be {KINDS[wanted]}, got {shown(value)}; mend the file or choose another --out")
    return {**known, **{name: value for name, value in BEFORE.items() if name in known}, **saved}


class Stages:
    """The stages of the run in `folder`, to which nothing is written before work begins.

    Args:
        settings: the run's.
        parts: a dict of each stage, in order, to (the files and folders that it leaves, the settings that none before it depends
            on): these may change until it begins. A setting that is named nowhere belongs to the first.
        contents: a dict of the settings that name a file to functions without arguments, which give the fingerprint of what
            is there now. Such a setting may come to name another place with the same content.

    Raises:
        RunError: the folder holds a run with other settings, or a damaged file.
    """

    def __init__(self, settings, folder, parts, contents=None):
        self.settings, self.folder, self.parts, self.held = settings, Path(folder), parts, None
        if not (self.folder / "settings.json").exists():
            return
        old, new = saved_settings(folder, type(settings)), json.loads(json.dumps(flat(settings)))
        for name in new:
            if old[name] != new[name] and self.begun(self.owner(name)) and not self.moved(name, contents or {}):
                raise RunError(f"{folder} holds a run with {name}={old[name]!r}, not {new[name]!r}: choose another --out")

    def owner(self, name):
        """The first stage that depends on the setting `name`."""
        part = name.partition(".")[0]
        return next((stage for stage, (_, names) in self.parts.items() if part in names), next(iter(self.parts)))

    def begun(self, stage):
        """Whether the stage is done, or has left something."""
        places = [self.folder / place for place in self.parts[stage][0]]
        return stage in self.done() or any(self.left(place) for place in places)

    def left(self, place):
        """Whether a file or a folder at `place` has something in it, other than hidden files."""
        return place.is_file() or (place.is_dir() and any(not path.name.startswith(".") for path in place.iterdir()))

    def moved(self, name, contents):
        """Whether the setting `name` now names another place with the content that the run learned from."""
        try:
            return name in contents and name in self.inputs() and contents[name]() == self.inputs()[name]
        except (ValueError, RunError):  # nothing there, or nothing that can be read
            return False

    def record(self, name):
        """The dict in the file `name`, empty before there is one."""
        path = self.folder / name
        return read_json(path) if path.exists() else {}

    def inputs(self):
        """The fingerprints of what the stages that have begun learned from, by setting."""
        return self.record("inputs.json")

    def done(self):
        """The stages that are done, a dict of name to record."""
        done = self.record("stages.json")
        for name, record in done.items():
            for field in ("seconds", *PEAKS):
                number = record.get(field) if isinstance(record, dict) else "none"
                if not (type(number) in (int, float) and math.isfinite(number)) and not (field in PEAKS and number is None):
                    where = f"{self.folder / 'stages.json'} is damaged: {name:.80} has no {field}"
                    raise RunError(f"{where}; choose another --out, or delete the run's folder")
        return done

    def begin(self, *outs, **inputs):
        """The moment at which a stage began; one that was stopped began so much earlier as it had already worked.

        From here on the folder is this process's alone, until the stage is finished or the process ends.

        Args:
            outs: the folders of its checkpoints and of what it keeps, inside the run's.
            inputs: fingerprints of what it learns from, by the setting that names it.

        Raises:
            RunError: another process is at work in the folder, or what a stopped stage learns from has changed.
        """
        known = self.inputs()
        for name, content in inputs.items():
            if known.get(name, content) != content and self.begun(self.owner(name)):
                raise RunError(
                    f"{self.folder} was begun with another content of {name} {flat(self.settings)[name]}: "
                    "put that back, or choose another --out"
                )
        if devices.world()[0] == 0:
            self.held = lock(self.folder / ".lock")
            write_json(self.folder / "settings.json", flat(self.settings))
            if inputs:
                write_json(self.folder / "inputs.json", {**known, **inputs})
        devices.wait()
        return time.monotonic() - sum(runs.seconds_spent(self.folder / out / "state.pt") for out in outs)

    def keep(self, started, out):
        """Note in the folder `out` how long a stage without a training state has worked, for the case that it is stopped."""
        runs.save_state(self.folder / out / "state.pt", {"seconds": time.monotonic() - started})

    def finish(self, name, started, *outs, **stats):
        """Note that the stage `name` is done; its training state is needed no more."""
        record = {"seconds": round(time.monotonic() - started, 2), "peak_memory_bytes": devices.peak_memory_bytes(), **stats}
        card = {"peak_card_bytes": devices.peak_card_bytes(), "card": devices.card_name()}
        record |= {key: value for key, value in card.items() if value is not None}
        if devices.world()[0] == 0:
            write_json(self.folder / "stages.json", {**self.done(), name: record})
            for out in outs:
                (self.folder / out / "state.pt").unlink(missing_ok=True)
            if self.held:
                self.held.close()
        devices.wait()

    def need(self, name, command):
        """Refuse to go on without the stage `name`, which `command` does."""
        if name not in self.done():
            raise RunError(
                f"{self.folder} has no finished {name} stage: run "
                f"`python -m rlhf_lib {command} --out {shlex.quote(str(self.folder))}` first"
            )

    def summary(self):
        """The stats of all stages in one dict, with `seconds` by stage and the peaks of memory."""
        done, summary = self.done(), {}
        for record in done.values():
            summary |= {name: value for name, value in record.items() if name not in ("seconds", *PEAKS)}
        summary["seconds"] = {name: record["seconds"] for name, record in done.items()}
        summary["seconds"]["total"] = round(sum(summary["seconds"].values()), 2)
        for peak in PEAKS:
            known = [record[peak] for record in done.values() if record.get(peak) is not None]
            if known:
                summary[peak] = max(known)
        return summary


def check_preset(folder, settings, presets):
    """Refuse the `settings` of the run in `folder`, a dict by dotted name, where their preset is none of `presets`."""
    if settings["preset"] not in presets:
        where, names = Path(folder) / "settings.json", ", ".join(presets)
        raise RunError(f"{where}: preset is {settings['preset']!r}, none of {names}; mend the file or choose another --out")


def publish(run, folder, names, command, presets, files=()):
    """Copy checkpoints of a finished run to `folder` in half precision, with its settings and summary. All is read before
    anything is written.

    Args:
        folder: one that is not there yet.
        names: {a checkpoint in the run, at most one folder deep: its name in `folder`}.
        command, presets: what began the run, "run" or "assistant", and its settings by preset: the summary has the whole command.
        files: names of files that are copied as they are.

    Raises:
        RunError: the folder is there already, the run is not finished, or a file is missing or damaged.
        CheckpointError: a checkpoint is missing or damaged.
    """
    run, folder = Path(run), Path(folder)
    if folder.exists():
        raise RunError(f"{folder} is there already: choose another --to, or delete it")
    if not (run / "summary.json").exists():
        raise RunError(f"{run} holds no finished run: only one with a summary.json is published")
    settings, summary = saved_settings(run, type(presets["laptop"])), read_json(run / "summary.json")
    check_preset(run, settings, presets)
    summary = {"command": command_of(command, settings, presets), **summary}
    contents, found = {name: read_text(run / name).encode() for name in files}, {}
    for name, new in names.items():
        metadata, tokenizer = checkpoints.read_metadata(run / name), checkpoints.load_tokenizer(run / name)
        tensors = {part: tensor.half() for part, tensor in checkpoints.read_tensors(run / name).items()}
        if "/" in name and "branch" in metadata:  # its base is now one folder nearer
            metadata["branch"]["source"] = metadata["branch"]["source"].removeprefix("../")
        found[new] = tensors, metadata, tokenizer
    for new, checkpoint in found.items():
        checkpoints.write(folder / new, *checkpoint)
    for name, content in contents.items():
        write_atomic(folder / name, content)
    write_json(folder / "settings.json", settings)
    write_json(folder / "summary.json", summary)


def command_of(command, settings, presets):
    """The command that begins a run with `settings`, a dict by dotted name, in the folder DIR."""
    begun = flat(presets[settings["preset"]])
    other = {name: value for name, value in settings.items() if value != begun[name] and name not in ("preset", "seed")}
    words = []
    for name, value in {"preset": settings["preset"], "seed": settings["seed"], **other, "out": "DIR"}.items():
        words += [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]
    return shlex.join(["python", "-m", "rlhf_lib", command, *words])


def measured(folder, *names):
    """What was measured of the checkpoint in `folder`, a dict of `names` to what its metadata says.

    Raises:
        CheckpointError: it says nothing of one, being of another version or of another tool.
    """
    metadata, path = checkpoints.read_metadata(folder), Path(folder) / "model.safetensors"
    for name in names:
        if name not in metadata:
            raise CheckpointError(f"{path} does not say its {name}: train it again with this version")
    return {name: metadata[name] for name in names}


def constants(path, *names):
    """The numbers of the reward that a policy stage has kept at `path`, a dict of `names`. Raises RunError where one is none."""
    kept = read_json(path)
    for name in names:
        if type(kept.get(name)) not in (int, float) or not math.isfinite(kept[name]):
            raise RunError(f"{path} is damaged: {name} is no number; delete the folder {path.parent} to begin this stage again")
    return {name: kept[name] for name in names}
