"""Work on what a submission made, in a process of its own: whatever it does there, the grader goes on."""

import contextlib
import gc
import json
import os
import resource
import select
import signal
import time

from rlhf_lib.grading.jail import pages

MOST = 64 * 2**20  # bytes of a result


class AsideError(Exception):
    """The work came to no result; the message says how it ended."""


def aside(work, seconds=120.0, memory=4 * 2**30):
    """What `work()` returns, plain JSON, from a forked process.

    Args:
        seconds: by the clock, after which it is ended.
        memory: bytes that it may take beyond what this process has.

    Raises:
        AsideError: it raised, took too long or too much, or its process died.
    """
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(out)
            gc.freeze()  # else its first collection copies all of the memory that it shares
            limited_memory(memory)
            try:
                result = {"result": work()}
                text = json.dumps(result)
            except BaseException as error:
                text = json.dumps({"error": f"{type(error).__name__}: {error}"[:300]})
            with os.fdopen(into, "wb") as file:
                file.write(text.encode())
        finally:
            os._exit(0)
    os.close(into)
    parts, end = [], time.monotonic() + seconds
    try:
        while select.select([out], [], [], max(0.0, end - time.monotonic()))[0]:
            part = os.read(out, 1 << 20)
            if not part:
                break
            parts.append(part)
            if sum(map(len, parts)) > MOST:
                raise AsideError("its result is too large")
        else:
            raise AsideError(f"no end after {seconds:g} seconds")
    finally:
        os.close(out)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    try:
        found = json.loads(b"".join(parts))
    except ValueError:
        raise AsideError("its process died") from None
    if "error" in found:
        raise AsideError(found["error"])
    return found["result"]


def limited_memory(memory):
    size = pages()[0]
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size + memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
