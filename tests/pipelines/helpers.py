"""Runs as processes of their own, and runs that are killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
KILLS = int(os.environ.get("RLHF_KILLS", 3))  # 30 for a night


SAVING_ALWAYS = "import sys; from rlhf_lib import __main__, runs; runs.SAVE_SECONDS = 0; sys.exit(__main__.main())"


def listen_to_ctrl_c():
    """A test run in the background ignores SIGINT, and its children would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=listen_to_ctrl_c,
    )


def inode(path):
    """A number that changes with every atomic write."""
    return path.stat().st_ino if path.exists() else None


def killed_at_drawn_moments(arguments, folder, work):
    """SIGKILL, up to KILLS times, each at a drawn moment of the work; the training state is saved at every step.

    Args:
        arguments: of Python, `-m rlhf_lib` and the command that leaves a run in `folder`.
        work: seconds that the whole run takes, without the imports.

    Returns:
        How often it was killed before it came to its end.
    """
    draw = random.Random(11)
    saved = folder / "settings.json"  # written anew when the work begins, behind the imports
    for attempt in range(KILLS + 1):
        before = inode(saved)
        process = started(["-c", SAVING_ALWAYS, *arguments[2:]])
        if attempt < KILLS:
            while process.poll() is None and inode(saved) == before:
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 1.8 * work / KILLS))
            process.kill()
        _, err = process.communicate()
        if process.returncode == 0:
            return attempt
        assert process.returncode == -signal.SIGKILL, err.decode()
    raise AssertionError("the last run, which nobody killed, did not come to its end")
