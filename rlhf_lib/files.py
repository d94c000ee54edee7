"""Files written whole or not at all, and the error of a run that cannot go on. Nothing here needs torch."""

import contextlib
import errno
import json
import os
from pathlib import Path


class RunError(RuntimeError):
    """A run that cannot go on; the message says why, what is kept, and what to do."""


def home():
    """The learner's own folder: RLHF_HOME where that is set (on Colab, a folder on Drive), else the one that is worked in."""
    return Path(os.environ.get("RLHF_HOME") or ".")


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


def write_json_rows(path, rows):
    """Write `rows` as a file of JSON lines."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def append_json(path, record):
    """Add `record` to a file of JSON lines, keeping what is there; a last line without an end gets one."""
    path = Path(path)
    before = path.read_bytes() if path.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    write_atomic(path, before + (json.dumps(record, ensure_ascii=False) + "\n").encode())


def read_json(path):
    """The JSON file at `path`. Raises RunError, naming it, when it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise RunError(f"{path} is damaged ({error}): choose another --out, or delete the run's folder") from None


def json_rows(path, error=RunError):
    """(line number, dict) of every line of a file of JSON lines that is not blank; a byte order mark is read over.

    Raises:
        error: the file is not there, or a line is not UTF-8 or no JSON object; the message names it.
    """
    path = Path(path)
    if not path.exists():
        raise error(f"no file at {path}: give the path of one that exists")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as damage:
        line = content[: damage.start].count(b"\n") + 1
        raise error(f"{path}, line {line}: not UTF-8 (byte {damage.start}); save the file as UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also cut inside a text, at U+2028 or U+0085
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as damage:
            raise error(f"{path}, line {number}: not JSON ({damage.msg}, column {damage.colno}); mend the line") from None
        if not isinstance(row, dict):
            raise error(f"{path}, line {number}: not a JSON object with named fields; mend the line")
        yield number, row
