"""What the chapters of the workbook share: which preset they run at, and where they start from."""

import os
import sys

import torch

from rlhf_lib import corpus, labels
from rlhf_lib.corpus import DATA
from rlhf_lib.files import home
from rlhf_lib.pipelines.shakespeare import PRESETS

HOME = home()  # what a learner makes: on Colab a folder on Drive, if that is ticked, else the folder of the notebooks
RUNS = HOME / "runs" if os.environ.get("RLHF_HOME") else DATA.parent / "runs"
PUBLISHED = DATA / "checkpoints" / "laptop-0"


def preset():
    """The preset's name: RLHF_PRESET where that is set, else gpu on a machine with a CUDA GPU, else laptop."""
    name = os.environ.get("RLHF_PRESET") or ("gpu" if torch.cuda.is_available() else "laptop")
    if name not in PRESETS:
        raise ValueError(f"RLHF_PRESET must be one of {', '.join(PRESETS)}, got {name!r}")
    return name


def pick(smoke, laptop, gpu=None):
    """The value for this preset: `steps = pick(smoke=20, laptop=600, gpu=2500)`; gpu is laptop's when it is left out."""
    return {"smoke": smoke, "laptop": laptop, "gpu": laptop if gpu is None else gpu}[preset()]


def start_from(stage):
    """The folder of the checkpoint `stage` (base, reward or policy) to start from: of your own finished run of this preset, if
    there is one in `RUNS`, else the published one."""
    own = RUNS / preset()
    return (own if finished(own) else PUBLISHED) / stage


def finished(folder):
    """Whether a run in `folder` has all it needs to be started from."""
    return (folder / "summary.json").exists() and all(
        (folder / stage / "model.safetensors").exists() for stage in ("base", "reward", "policy")
    )


def whole_loop(names):
    """Run what a learner built on the plays and the labels: `journey` of exercise 9.10, at the smoke size.

    Args:
        names: a dict with what the learner wrote, by name: the globals of `my_rlhf.py`.
    """
    if "journey" not in names:
        sys.exit("journey (9.10) is not in my_rlhf.py yet: it puts the whole loop together, from the plays to the policy")
    plays = corpus.load()
    train, held_out = corpus.split(plays)
    names["journey"](train["text"], held_out["text"], labels.hand_made(plays))
