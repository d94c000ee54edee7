"""A few damaged files of each kind for every reader, and the looking after itself. Nightly: `python -m tests.fuzz all`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import changes
from tests.fuzz.drive import fuzz
from tests.fuzz.readers import Reader, texts

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = os.environ.get("RLHF_FUZZED", "6")


def test_a_few_damaged_files_of_every_kind_are_read_or_refused_in_a_sentence(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz", "all", "--examples", EXAMPLES, "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count(" 0 faults") == len(done.stdout.splitlines()) > 30


def of(act):
    """A reader that does this with a file."""
    return Reader(texts({"a.json": {"a": 1}}), ("a.json",), changes.as_json, lambda folder: act(folder / "a.json"), (ValueError,))


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("act", "fault"),
    [
        (lambda path: path.read_bytes(), None),
        (lambda path: fail(ValueError(f"{path} is damaged: mend it")), None),
        (lambda path: fail(ValueError("it is damaged: mend it")), "does not name the file"),
        (lambda path: fail(ValueError(f"{path} is damaged:\nmend it")), "no one sentence"),
        (lambda path: fail(ValueError(f"{path} is damaged: {'x' * 2000}")), "no one sentence"),
        (lambda path: fail(KeyError("a")), "KeyError at"),
        (lambda path: fail(SystemExit(1)), "SystemExit at"),
        (lambda path: b"\xff".decode(), "bare UnicodeDecodeError"),
        (lambda path: bytearray(os.urandom(2**20)) * 200, "memory"),
        (lambda path: os.system("true"), "something was executed or written"),
        (lambda path: subprocess.run(["true"]), "something was executed or written"),
        (lambda path: open(ROOT / "not_here.txt", "a").close(), "something was executed or written"),
        (lambda path: open("CANARY", "w").close(), "something was executed or written"),
        (lambda path: os._exit(3), "the child died or hung"),
        (lambda path: time.sleep(60), "TimeUp at"),
    ],
)
def test_what_no_reader_may_do_is_seen(tmp_path, monkeypatch, act, fault):
    monkeypatch.setattr("tests.fuzz.drive.PATIENCE", 1)
    found = fuzz("made", of(act), tmp_path, examples=2)
    (ROOT / "not_here.txt").unlink(missing_ok=True)
    assert [one.startswith(fault) for one in found.faults] == [True] if fault else not found.faults
    if fault:
        assert (tmp_path / "made").is_dir()
