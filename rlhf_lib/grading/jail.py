"""What a process may do that runs a submission: limits that the system keeps, for processes forked from one that imported torch.

Each question is answered in a fresh process with its own folder. Where the system has namespaces (Linux) it has no network, sees
no other processes, and writes nowhere but in that folder. Outside of it nothing of the submission is ever imported or run.
"""

import contextlib
import ctypes
import itertools
import os
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rlhf_lib.grading.wire import MOST

NEW_USER, NEW_PID, NEW_NET, NEW_IPC, NEW_MOUNTS = 0x10000000, 0x20000000, 0x40000000, 0x08000000, 0x00020000  # of unshare(2)
BIND, RECURSIVE, PRIVATE = 0x1000, 0x4000, 0x40000  # of mount(2)
MOUNT_SETATTR, READ_ONLY, FROM_HERE, ALL_BELOW = 442, 1, -100, 0x8000  # of mount_setattr(2), which Linux has since 5.12
ROOM = 256 * 2**20  # bytes of all the files of a question together, where its folder is a file system of its own
NO_NEW_PRIVILEGES, DUMPABLE, PARENT_DEATH = 38, 4, 1  # of prctl(2)
NOBODY = 65_000  # the user that a submission runs as when the grader is root; a place of the sandbox is added
PACE = 0.1  # seconds between two looks at the memory


class Limits(NamedTuple):
    """seconds: of one question by the clock. memory: bytes beyond those of torch itself. files: bytes of each file."""

    seconds: float = 60.0
    memory: int = 3 * 2**30
    processes: int = 32
    files: int = 64 * 2**20


def system(name, *arguments):
    """Call a function of the C library; whether it worked."""
    try:
        return getattr(ctypes.CDLL(None), name)(*arguments) == 0
    except (AttributeError, OSError):  # not Linux
        return False


def hide():
    """Nobody but root may look into this process's memory or environment, nor into those forked from it."""
    system("prctl", DUMPABLE, 0, 0, 0, 0)


def die_with_parent():
    system("prctl", PARENT_DEATH, signal.SIGKILL, 0, 0, 0)


def apart():
    """Leave the network and the sight of other processes; returns whether the system lets us."""
    spaces, user, group = NEW_PID | NEW_NET | NEW_IPC, os.geteuid(), os.getegid()
    if user == 0:
        return system("unshare", spaces)
    if not system("unshare", spaces | NEW_USER):
        return False
    system("prctl", DUMPABLE, 1, 0, 0, 0)  # else the files below are root's
    for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with contextlib.suppress(OSError):  # without them nothing could be written into a file system of its own
            Path(f"/proc/self/{name}").write_bytes(line.encode())
    hide()
    return True


def read_only(folder, uid, hidden=()):
    """Make all files read-only to this process but those of `folder`, which is empty and has ROOM, and those in `hidden` empty.

    Returns whether the system lets us. It comes after `apart`, in the first process of the new space.
    """
    if not (system("unshare", NEW_MOUNTS) and system("mount", b"none", b"/", None, RECURSIVE | PRIVATE, None)):
        return False
    system("mount", b"proc", b"/proc", b"proc", 0, None)  # with these processes alone
    with contextlib.suppress(AttributeError, OSError):
        attributes = struct.pack("4Q", READ_ONLY, 0, 0, 0)
        if ctypes.CDLL(None).syscall(MOUNT_SETATTR, FROM_HERE, b"/", ALL_BELOW, attributes, len(attributes)) != 0:
            return False
        for path in hidden:
            if os.path.isdir(path):
                system("mount", b"none", os.fsencode(path), b"tmpfs", READ_ONLY, b"size=4k")
            elif os.path.exists(path):
                system("mount", os.fsencode(os.devnull), os.fsencode(path), None, BIND, None)
        if not system("mount", b"none", os.fsencode(folder), b"tmpfs", 0, f"size={ROOM},nr_inodes=4096,mode=0700".encode()):
            return False
        if os.geteuid() == 0:
            os.chown(folder, uid, uid)
        return True
    return False


def tried(work):
    """Whether `work()` is true in a process of its own, and its first child there."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if work() else 1)
    return os.waitpid(pid, 0)[1] == 0


def can_be_apart():
    """(whether `apart` works here, whether `read_only` does too)."""
    with tempfile.TemporaryDirectory() as folder:
        return tried(apart), tried(lambda: apart() and tried(lambda: read_only(folder, os.geteuid())))


def pages(pid="self"):
    """(bytes of address space, bytes of its own in memory) of a process; zeros where that is not known."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()  # with the process's name, which may have any byte but a line's end
        lines = dict(line.split(b":", 1) for line in status.strip().split(b"\n"))
        size, *own = (int(lines[name].split()[0]) * 1024 for name in (b"VmSize", b"RssAnon", b"RssShmem"))
    except (OSError, ValueError, KeyError):  # no /proc here, or the process has ended
        return 0, 0
    return size, sum(own)


def family(pid):
    """The process and all that came from it, at most a thousand."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError, ValueError):
            for task in os.listdir(f"/proc/{one}/task"):
                found += [int(child) for child in Path(f"/proc/{one}/task/{task}/children").read_bytes().split()]
        if len(found) > 1000:
            break
    return found


def confine(limits, uid, folder, shared):
    """Take from this process what a submission does not need. `shared`: its user's other processes count with its own."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.chdir(folder)
    own = {resource.RLIMIT_FSIZE: limits.files, resource.RLIMIT_NOFILE: 256, resource.RLIMIT_CORE: 0}
    if shared:  # else all that it starts ends with it; and the limit makes clocks of the processor coarse, which probes read
        own[resource.RLIMIT_CPU] = int(limits.seconds) + 5
    if sys.platform == "linux":
        own[resource.RLIMIT_AS] = pages()[0] + limits.memory
        own[resource.RLIMIT_NPROC] = limits.processes + (threads_of(os.getuid()) if shared and os.geteuid() else 0)
    for what, most in own.items():
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    system("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    hide()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file that grows too large is an OSError


def threads_of(uid):
    """How many threads the user has already: a limit of processes counts them too."""
    count = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == uid:
                count += len(os.listdir(entry / "task"))
    return count


def run_apart(work, limits, base, place=0, hidden=(), kept=()):
    """`work()`, which returns bytes, in a jail of its own.

    Args:
        base: a folder of the sandbox; the jail gets a folder in it, and afterwards it is emptied.
        place: of the sandbox among those that run at once.
        hidden: paths that are empty in the jail, where the system has namespaces.
        kept: descriptors that stay open in it.

    Returns:
        (how it ended, bytes). How: "answered"; "late"; "memory", more than it may have; "large", an answer longer than MOST;
        "died", with the signal's name or the exit status behind it.
    """
    folder = tempfile.mkdtemp(dir=base)
    uid = NOBODY + place
    if os.geteuid() == 0:
        os.chown(folder, uid, uid)
    before, (out, into) = pages()[1], os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            die_with_parent()
            for low, high in itertools.pairwise([2, *sorted({into, *kept}), 4096]):
                os.closerange(low + 1, high)
            if apart():
                inside(lambda: first(work, limits, uid, folder, hidden, into), into)
            else:
                answer(work, limits, uid, folder, into, True)
        finally:
            os._exit(1)
    os.close(into)
    how = "died"
    try:
        how, content = collect(out, pid, limits, before)
    finally:
        os.close(out)
        status = ended(pid, 0 if how else 1.0)
        empty(base)
    if how:
        return how, b""
    if len(content) < 8 or struct.unpack_from(">Q", content)[0] != len(content) - 8:
        code = os.waitstatus_to_exitcode(status)
        code = code - 128 if code > 128 else max(0, -code)
        return f"died: {signal_name(code)}" if code else "died", b""
    return "answered", content[8:]


def ended(pid, patience):
    """The exit status of a child that has `patience` seconds to end by itself; then it is killed, with all in its group."""
    end = time.monotonic() + patience
    gone, status = os.waitpid(pid, os.WNOHANG)
    while not gone and time.monotonic() < end:
        time.sleep(0.005)
        gone, status = os.waitpid(pid, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    return status if gone else os.waitpid(pid, 0)[1]


def empty(folder):
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


def inside(work, into):
    """`work()` in a child, whose end is this process's."""
    pid = os.fork()
    if pid == 0:
        try:
            die_with_parent()
            work()
        finally:
            os._exit(1)
    os.close(into)
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)  # 128 + the signal's number, as shells say


def first(work, limits, uid, folder, hidden, into):
    """The first process of a jail apart, whose end ends all others in it."""
    read_only(folder, uid, hidden)
    inside(lambda: answer(work, limits, uid, folder, into, False), into)


def answer(work, limits, uid, folder, into, shared):
    """In the jail: confine this process, do the work, write what came of it, and end."""
    confine(limits, uid, folder, shared)
    content = work()
    content = struct.pack(">Q", len(content)) + content
    while content:
        content = content[os.write(into, content) :]
    os._exit(0)


def collect(out, pid, limits, before):
    """(how it ended, or "" where it came to an end by itself; what was written)."""
    end, parts, size, whole = time.monotonic() + limits.seconds, [], 0, None
    look = time.monotonic() + PACE
    while True:
        now = time.monotonic()
        if now >= end:
            return "late", b""
        if now >= look:
            look = now + PACE
            if sum(max(0, pages(one)[1] - before) for one in family(pid)) > limits.memory:
                return "memory", b""
        if select.select([out], [], [], min(PACE, end - now))[0]:
            part = os.read(out, 1 << 20)
            parts.append(part)
            size += len(part)
            if whole is None and size >= 8:
                whole = struct.unpack_from(">Q", b"".join(parts))[0] + 8
            if size > MOST + 8:
                return "large", b""
            if not part or size == whole:
                return "", b"".join(parts)


def signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
