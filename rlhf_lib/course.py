"""What the chapters of the workbook share: which preset they run at, and where they start from."""

import os
from pathlib import Path

import torch

from rlhf_lib.corpus import DATA
from rlhf_lib.pipelines.shakespeare import PRESETS

RUNS = Path(os.environ.get("RLHF_RUNS", DATA.parent / "runs"))  # on Colab, a folder on Drive keeps what you make
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
