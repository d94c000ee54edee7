"""Files written whole or not at all, and the error of a run that cannot go on. Nothing here needs torch."""

import contextlib
import errno
import hashlib
import json
import os
import reprlib
import time
import weakref
from pathlib import Path

HELD = set()  # the folders that this process changes at the moment
LOCKS = weakref.WeakValueDictionary()  # the open files of its locks, by path
PATIENCE = 10.0  # seconds
REPLACE_TRIES = 10  # a virus scanner or an indexer of Windows holds a file for a moment
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 80


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
        new = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(fresh, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace(fresh, path)
        for folder in (path.parent, *(folder.parent for folder in new)):
            sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):  # no fresh file, or its folder is a file
            fresh.unlink()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = "the disk is full: free some space" if full else f"{error.strerror}: make the folder writable"
        raise RunError(f"cannot write {path} ({what}, then run again; the last good file is kept)") from error


def replace(fresh, path):
    """`os.replace`, tried again where another program holds the file for a moment."""
    for again in range(REPLACE_TRIES):
        try:
            return os.replace(fresh, path)
        except PermissionError:
            if os.name != "nt" or again + 1 == REPLACE_TRIES:
                raise
            time.sleep(0.1)


def sync_folder(folder):
    """Have the names of the files in `folder` on the disk, so that a power cut leaves what was written there."""
    with contextlib.suppress(OSError):  # Windows and some network drives know no such thing
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextlib.contextmanager
def one_at_a_time(folder):
    """Let processes that change files in `folder` do so one after another; where the system has no such locks, as they come."""
    folder = Path(folder).absolute()
    if folder in HELD:  # by this process, around this
        yield
        return
    try:
        import fcntl

        folder.mkdir(parents=True, exist_ok=True)
        number = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows; a folder that cannot be made is said when the file is written
        yield
        return
    try:
        wait_for(lambda: fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB))
        HELD.add(folder)
        yield
    finally:
        HELD.discard(folder)
        os.close(number)  # which gives the lock back


def wait_for(lock):
    """Take a lock once the others have given it back; after a while without it, for they may hang. Some drives have no locks."""
    for _ in range(int(PATIENCE / 0.02)):
        try:
            return lock()
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:
            return None


def lock(path):
    """An open file that keeps other processes from locking `path`, until it is closed or dropped or the process ends, however it
    ends. The same one where this process has it already.

    Raises:
        RunError: another process holds it.
    """
    path = Path(path).absolute()
    there = LOCKS.get(path)
    if there is not None and not there.closed:
        return there
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror}): make the folder writable, or choose another") from error
    try:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            file.close()
            raise RunError(f"another run is at work in {path.parent}: wait for it, or choose another --out") from None
    LOCKS[path] = file
    return file


def one_line(error, kind=True):
    """What an exception says, after its kind, for a sentence of ours: one line of at most 120 characters.

    kind=False: what it says alone, where it says anything.
    """
    name = type(error).__name__
    return " ".join((f"{name}: {error}" if kind else str(error) or name).split())[:120]


def shown(value):
    """`repr(value)` for a message: short, however long or deeply nested the value is."""
    return SHORT.repr(value)


def fingerprint(content):
    """Of bytes, or of what JSON can hold: the same for the same content alone."""
    content = content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def write_json(path, record):
    """Write `record` as an indented JSON file, whole or not at all."""
    write_atomic(path, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def write_json_rows(path, rows):
    """Write `rows` as a file of JSON lines."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def add_json(path, fields):
    """Put `fields`, a dict, into the JSON object at `path`, keeping the others and what another process puts there. A file that
    cannot be read is kept too, as NAME.damaged."""
    path = Path(path)
    with one_at_a_time(path.parent):
        known = {}
        if path.is_file():
            try:
                known = read_json(path)
            except RunError:
                replace(path, path.with_name(f"{path.name}.damaged"))
        write_json(path, {**known, **fields})


def append_json(path, record):
    """Add `record` to a file of JSON lines, keeping what is there and what others add; a last line without an end gets one."""
    path = Path(path)
    with one_at_a_time(path.parent):
        before = path.read_bytes() if path.exists() else b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        write_atomic(path, before + (json.dumps(record, ensure_ascii=False) + "\n").encode())


def read_json(path, advice="choose another --out, or delete the run's folder"):
    """The JSON object at `path`, a dict; a byte order mark is read over. Raises RunError, naming it and with `advice` what to do,
    when it is damaged."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        record = json.loads(text)
        if "\\u" in text:
            json.dumps(record, ensure_ascii=False).encode()  # half a character would fail wherever it is written
        if not isinstance(record, dict):
            raise ValueError("not an object with named fields")
        return record
    except (OSError, ValueError, RecursionError) as error:  # unreadable, not JSON, or not UTF-8
        raise RunError(f"{path} is damaged ({str(error)[:160]}): {advice}") from None


def read_text(path, error=RunError):
    """The text of a UTF-8 file, without its byte order mark.

    Raises:
        error: there is no such file, it cannot be read, or it is not UTF-8; the message names it, and the line.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as problem:
        if not path.exists():
            raise error(f"no file at {path}: give the path of one that exists") from None
        raise error(f"{path} cannot be read ({problem.strerror}): give the path of a file") from None
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as damage:
        line = content[: damage.start].count(b"\n") + 1
        raise error(f"{path}, line {line}: not UTF-8 (byte {damage.start}); save the file as UTF-8") from None


def parse_row(line, here, error=RunError):
    """The dict on one line of JSON; `here` opens the message of an error.

    Raises:
        error: it is no JSON, no object, or has half a character in a text, which no file could hold.
    """
    try:
        row = json.loads(line)
        if "\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as damage:
        raise error(f"{here}: not JSON ({damage.msg}, column {damage.colno}); mend the line") from None
    except UnicodeEncodeError:
        raise error(f"{here}: half a character (a lone surrogate) stands in a text; mend the line") from None
    except (RecursionError, ValueError) as damage:  # nested too deep, or a number of thousands of digits
        raise error(f"{here}: not JSON that can be read ({type(damage).__name__}); mend the line") from None
    if not isinstance(row, dict):
        raise error(f"{here}: not a JSON object with named fields; mend the line")
    return row


def json_rows(path, error=RunError):
    """(line number, dict) of every line of a file of JSON lines that is not blank; a byte order mark is read over.

    Raises:
        error: the file is not there, or a line is not UTF-8 or no JSON object; the message names it.
    """
    text = read_text(path, error)
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also cut inside a text, at U+2028 or U+0085
        if line.strip():
            yield number, parse_row(line, f"{path}, line {number}", error)
