"""The loop: a child reads one damaged file after another, and this process looks after the child.

A fault is an error that is not the reader's own; a message that is not one line, is long, or does not name the file; memory above
twice the file's size and 100 MB; more seconds than PATIENCE; something executed or written outside of the folder; a dead child.
"""

import contextlib
import hashlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

PATIENCE = 20  # seconds for one file
SPARE = 100 * 2**20  # bytes
WALL = 3 * 2**30  # bytes of address space beyond what the child has at its start
LONG = 1000  # characters of a message
RUNS_CODE = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.kill", "shutil.rmtree"}
FOLDER = None  # where the child may write
SEEN = []  # what it did that no reader does


class Found(NamedTuple):
    """faults: {where it failed: a sentence on the first}; refused: how many files were refused as they should."""

    examples: int
    refused: int
    seconds: float
    faults: dict


class TimeUp(BaseException):
    pass


def watch(event, arguments):
    """An audit hook: what is run, and what is opened for writing outside of FOLDER."""
    if FOLDER is None:
        return
    if event in RUNS_CODE:
        SEEN.append(f"{event} {arguments!r:.100}")
    elif event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int) and arguments[2] & 3:
        path = os.path.abspath(arguments[0])
        if not path.startswith((FOLDER, "/dev/null", "/proc/self")):
            SEEN.append(f"opened {path:.100} for writing")


def memory():
    """(resident now, its peak since it was last forgotten), in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmHWM"].split()[0]) * 1024


def forget_peak():
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def fuzz(name, reader, out, seed=0, examples=100, seconds=600.0):
    """Damage the files of a Reader (readers.py), at most so many and so long; faulty ones are kept in `out`/name.

    Returns:
        Found.
    """
    begun, place, total, refused, faults = time.monotonic(), 0, 0, 0, {}
    while place < examples and time.monotonic() - begun < seconds:
        folder = Path(tempfile.mkdtemp(prefix="rlhf-fuzz-"))
        listen, say = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(listen)
            with os.fdopen(say, "w", encoding="utf-8") as pipe, contextlib.suppress(BaseException):
                work(name, reader, folder, seed, place, examples, begun + seconds, pipe)
            os._exit(0)
        os.close(say)
        with os.fdopen(listen, encoding="utf-8") as pipe:
            last, ended = None, False
            while select.select([pipe], [], [], 9 * PATIENCE)[0] and (line := pipe.readline()):
                said = json.loads(line)
                if "done" in said:
                    ended = True
                    continue
                place, last, fault = said["number"] + 1, said, said.get("fault")
                total, refused = total + said.get("read", 0), refused + said.get("refused", 0)
                if fault and fault not in faults:
                    faults[fault] = said["sentence"]
                    keep(out, name, fault, said, folder)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if not ended:
            fault = f"the child died or hung ({status})"
            last = last or {"number": place}
            if fault not in faults:
                faults[fault] = f"{fault} behind example {last['number']}"
                keep(out, name, fault, last, folder)
            place = last["number"] + 1
        shutil.rmtree(folder, ignore_errors=True)
    return Found(total, refused, time.monotonic() - begun, faults)


def keep(out, name, fault, said, folder):
    target = Path(out) / name / hashlib.sha256(fault.encode()).hexdigest()[:8]
    target.mkdir(parents=True, exist_ok=True)
    (target / "fault.txt").write_text(json.dumps(said, indent=1) + "\n" + said.get("trace", ""), encoding="utf-8")
    with contextlib.suppress(OSError):
        shutil.copy(folder / "now", target / "file")


def work(name, reader, folder, seed, place, examples, end, pipe):
    """What the child does."""
    global FOLDER
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    os.chdir(folder)
    home = folder / "files"
    home.mkdir()
    reader.made(home)
    os.fsync = lambda number: None  # nothing here has to outlive a power cut
    whole = {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}
    signal.signal(signal.SIGALRM, too_long)
    with contextlib.suppress(BaseException):  # imports and caches on the way, from files that are as they should be
        signal.alarm(3 * PATIENCE)
        reader.read(home)
    signal.alarm(0)
    size = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + WALL, resource.RLIM_INFINITY))
    sys.addaudithook(watch)
    count = refused = 0
    for number in range(place, examples):
        if time.monotonic() > end:
            break
        draw = random.Random(f"{name} {seed} {number}")
        each = draw.choice(reader.names)
        try:
            content = reader.changed(draw, whole[each])
        except (UnicodeError, ValueError, RuntimeError, TypeError):  # a second change did not fit the first
            continue
        shutil.rmtree(home)
        for one, before in {**whole, each: content}.items():
            (home / one).parent.mkdir(parents=True, exist_ok=True)
            (home / one).write_bytes(before)
        (folder / "now").write_bytes(content)
        if number % 20 == 0:
            say(pipe, number=number, begun=True, read=count, refused=refused)
            count = refused = 0
        fault, sentence, trace, was_refused = attempt(reader, home, each, len(content))
        count, refused = count + 1, refused + was_refused
        if fault:
            say(pipe, number=number, fault=fault, sentence=sentence, trace=trace, file=each, read=count, refused=refused)
            count = refused = 0
    say(pipe, number=number, read=count, refused=refused)
    say(pipe, done=True)


def say(pipe, **fields):
    pipe.write(json.dumps(fields) + "\n")
    pipe.flush()


def too_long(*_):
    raise TimeUp(f"no end after {PATIENCE} seconds")


def attempt(reader, home, name, size):
    """(fault, sentence, traceback, whether it was refused) of reading one damaged file; the fault is "" where all is well."""
    global FOLDER
    forget_peak()
    before, trace, refused = memory()[0], "", False
    SEEN.clear()
    FOLDER = str(home.parent)
    signal.alarm(PATIENCE)
    try:
        reader.read(home)
        fault = sentence = ""
    except reader.errors as error:
        fault, sentence, trace, refused = *wrong_words(error, home, name), traceback.format_exc()[-3000:], True
    except BaseException as error:
        trace = traceback.format_exc()[-6000:]
        fault = f"{type(error).__name__} at {where(error)}"
        sentence = f"{fault}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
        FOLDER = None
    more = memory()[1] - before
    if SEEN or (home.parent / "CANARY").exists() or (home / "CANARY").exists():
        fault = sentence = f"something was executed or written: {SEEN[:1]}"
        (home.parent / "CANARY").unlink(missing_ok=True)
    elif more > 2 * size + SPARE and not fault:
        fault, sentence = "memory", f"{more >> 20} MB for a file of {size} bytes"
    return fault, sentence, trace, refused


def wrong_words(error, home, name):
    """What is wrong with an error's message: (what, sentence), both "" where it is one line that names the file."""
    text = str(error)
    if isinstance(error, UnicodeError | json.JSONDecodeError):
        return f"bare {type(error).__name__} at {where(error)}", text[:200]
    if "\n" in text.strip() or len(text) > LONG:
        return f"no one sentence at {where(error)}", f"{len(text)} characters: {text[:200]!r}"
    if str(home) not in text and Path(name).name not in text:
        return f"does not name the file at {where(error)}", text[:200]
    return "", ""


def where(error):
    """The last line of the library that an error came by, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "rlhf_lib" in frame.filename] or frames
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (ours[-1], frames[-1])]
    return " ".join(dict.fromkeys(places))
