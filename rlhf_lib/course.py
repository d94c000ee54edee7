"""What the chapters of the workbook share: which preset they run at, and where they start from."""

import json
import os
import sys
import time

from rlhf_lib import checkpoints, corpus, labels
from rlhf_lib.corpus import DATA
from rlhf_lib.files import home, write_json
from rlhf_lib.pipelines.shakespeare import PRESETS

HOME = home()  # what a learner makes: on Colab a folder on Drive, if that is ticked, else the folder of the notebooks
RUNS = HOME / "runs" if os.environ.get("RLHF_HOME") else DATA.parent / "runs"
CHOICES = "choices.json"  # in HOME
MY_LABELS = "my_labels.jsonl"  # in HOME
WHOLE = "my_rlhf.json"  # in HOME: what came of `python my_rlhf.py`
MODELS = ("published", "own")
PUBLISHED = DATA / "checkpoints" / "laptop-0"
SMOKE = DATA / "checkpoints" / "smoke"  # so small that every experiment takes seconds: what the smoke preset starts from
LARGE = DATA / "checkpoints" / "large"  # a base of 19 million weights, its reward model and policy: to read
ASSISTANT = DATA / "checkpoints" / "assistant"


def choices():
    """What the learner has chosen with `choose`: a dict with "models" and "preset"."""
    try:
        found = json.loads((HOME / CHOICES).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        found = {}  # nothing chosen, or a file that cannot be read
    found = found if isinstance(found, dict) else {}
    return {
        "models": found["models"] if found.get("models") in MODELS else "published",
        "preset": found["preset"] if found.get("preset") in [*PRESETS] else "laptop",
    }


def choose(models=None, preset=None):
    """Choose what all chapters start from, and how large their experiments are; noted in the learner's folder.

    Args:
        models: "published", those that the text speaks of (so it is until you choose), or "own", those of your own run.
        preset: "laptop" (so it is until you choose) or "gpu", larger experiments for a machine with a CUDA card.

    Raises:
        ValueError: no such choice, or there is no finished run of your own.
    """
    wanted = choices()
    for name, value, allowed in (("models", models, MODELS), ("preset", preset, [*PRESETS])):
        if value is not None and value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        wanted[name] = value or wanted[name]
    own = RUNS / (os.environ.get("RLHF_PRESET") or wanted["preset"])
    if wanted["models"] == "own" and not finished(own):
        make = f"make one with `python -m rlhf_lib run --out {own}`, without adapters"
        raise ValueError(f"there is no finished run in {own}: {make}")
    write_json(HOME / CHOICES, wanted)
    kind = "tiny" if (wanted["models"], wanted["preset"]) == ("published", "smoke") else wanted["models"]
    print(f"The chapters start from the {kind} models, and their experiments have the size {wanted['preset']}.")


def preset():
    """The preset's name: RLHF_PRESET where that is set, else what was chosen, else laptop."""
    name = os.environ.get("RLHF_PRESET") or choices()["preset"]
    if name not in PRESETS:
        raise ValueError(f"RLHF_PRESET must be one of {', '.join(PRESETS)}, got {name!r}")
    return name


def pick(smoke, laptop, gpu=None):
    """The value for this preset: `steps = pick(smoke=20, laptop=600, gpu=2500)`; gpu is laptop's when it is left out."""
    return {"smoke": smoke, "laptop": laptop, "gpu": laptop if gpu is None else gpu}[preset()]


def start_from(stage):
    """The folder of the checkpoint `stage` (base, reward or policy) to start from: the published one, a tiny one for smoke, or
    the learner's own where that was chosen and the run of this preset is finished."""
    own = RUNS / preset()
    published = pick(smoke=SMOKE, laptop=PUBLISHED)
    return (own if choices()["models"] == "own" and finished(own) else published) / stage


def finished(folder):
    """Whether a run in `folder` has all it needs to be started from, whole models: chapters take the reward model apart."""
    stages = ("base", "reward", "policy")
    whole = (folder / "summary.json").exists() and all((folder / stage / "model.safetensors").exists() for stage in stages)
    return whole and all("branch" not in checkpoints.read_metadata(folder / stage) for stage in stages)


def whole_loop(names):
    """Run what a learner built, `journey` of exercise 9.10, at the smoke size: the beginning of every play, some of the published
    labels, and all of the learner's own. Prints what came of it, figures and two samples of each side, and leaves the figures in
    the learner's folder, `my_rlhf.json`, for the report.

    Args:
        names: a dict with what the learner wrote, by name: the globals of `my_rlhf.py`.
    """
    if "journey" not in names:
        sys.exit("journey (9.10) is not in my_rlhf.py yet: it puts the whole loop together, from the plays to the policy")
    plays = corpus.load()
    halves = corpus.split(plays)
    train, held_out = (
        [text[:most] for text in halves[half]["text"]] for half, most in (("train", 20_000), ("validation", 2_000))
    )
    own = my_labels(plays)
    labelled = [*labels.hand_made(plays)[::2], *own]
    begun = time.monotonic()
    made = names["journey"](train, held_out, [(label.text, label.target) for label in labelled])
    targets = {label.text: label.target for label in labelled}
    if "split_labels" in names:  # exercise 5.2's, by which `journey` splits them
        _, held_back = names["split_labels"]([*targets], 0.1)
    else:
        held_back = [label.text for label in labels.split(labelled, 0.1)[1]]
    clear = [targets[text] for text in held_back if targets[text] != 0.5]
    rewards, kls = ([float(record[key]) for record in made["records"]] for key in ("reward", "kl"))
    found = {
        "minutes": (time.monotonic() - begun) / 60,
        "bits_per_character": float(made["bits_per_character"]),
        "accuracy": float(made["accuracy"]),
        "constant": max(clear.count(0.0), clear.count(1.0)) / len(clear),
        "held_back": len(clear),
        "labels": len(labelled),
        "own_labels": len(own),
        "reward": rewards,
        "kl": kls,
    }
    right = f"right on {found['accuracy']:.0%} (one answer for all: {found['constant']:.0%})"
    print(f"\n{found['bits_per_character']:.2f} bits per character; the reward model is {right}")
    print(f"reward {rewards[0]:.2f} to {rewards[-1]:.2f}, KL {kls[0]:.1f} to {kls[-1]:.1f} nats")
    for name, texts in made["samples"].items():
        print(f"===== {name}", *(text.strip() for text in texts[:2]), sep="\n---\n")
    write_json(HOME / WHOLE, found)


def my_labels(plays):
    """The learner's own labels out of chapter 05, the first reading of each passage: a list of labels.Label, [] without a file.

    Args:
        plays: what `corpus.load` gives, for labels by place.

    Raises:
        LabelError: a file that is not well-formed; its message names the line.
    """
    path = HOME / MY_LABELS
    return labels.first_readings(labels.read(path, dict(zip(plays["work"], plays["text"])))) if path.exists() else []
