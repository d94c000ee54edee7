"""The sandbox in which submissions run: bubblewrap where it is installed, else a process with the limits of jail.py alone.

    box = Sandbox()
    how, content = box.ask(request, Limits(seconds=60))
    box.close()

What bubblewrap adds: a submission sees nothing of the machine but Python, the course and a folder of its own. The worked answers
are nowhere in it. `Sandbox.warnings` says what is not contained here.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rlhf_lib.files import RunError
from rlhf_lib.grading.jail import Limits
from rlhf_lib.grading.wire import MOST
from rlhf_lib.grading.worker import HEADER, REPLY

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = Limits()
START = 300.0  # seconds that the sandbox may take to start: torch is imported
GRACE = 30.0  # seconds beyond a question's own until the sandbox is thought dead
SEEN = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")


def bubblewrap():
    """The path of bubblewrap's program, or None where it is missing or cannot be used."""
    found = shutil.which("bwrap")
    if found:
        tried = subprocess.run([found, "--ro-bind", "/", "/", "--unshare-pid", "--unshare-net", "true"], capture_output=True)
        return found if tried.returncode == 0 else None
    return None


def wrapped(program):
    """The command that comes before the worker's: what is seen of the machine, read-only, and a folder for what is written."""
    command = [program, "--die-with-parent", "--new-session", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    command += ["--unshare-user"] if os.geteuid() else []
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev", "--size", str(2**30), "--tmpfs", "/tmp"]
    course = (str(ROOT / folder) for folder in ("rlhf_lib", "data"))
    seen = [*SEEN, sys.base_prefix, sys.prefix, *map(os.path.realpath, (sys.prefix, sys.base_prefix)), *course]
    for folder in dict.fromkeys(str(above) for path in seen for above in reversed(Path(path).parents)):
        command += ["--perms", "0755", "--dir", folder]  # made by bubblewrap itself, nobody else could pass through them
    for path in dict.fromkeys(seen):
        command += ["--ro-bind-try", path, path]
    return [*command, "--chdir", "/tmp"]


class Sandbox:
    """A process that answers questions with a submission's code, each in a fresh process of its own.

    place: its number among those that run at once. hidden: paths that no submission sees, besides the worked answers.
    """

    def __init__(self, place=0, program=bubblewrap, hidden=()):
        self.place, self.program, self.process = place, program() if callable(program) else program, None
        self.hidden = [os.path.abspath(path) for path in (ROOT / "solutions", *hidden)]
        self.folder, self.warnings = None, []

    def start(self):
        """Start the worker, which takes some seconds. Raises RunError where it does not start."""
        self.close()
        self.folder = tempfile.mkdtemp(prefix="rlhf-grade-")
        os.chmod(self.folder, 0o711)  # the questions' folders in it belong to another user where the grader is root
        base = "/tmp" if self.program else self.folder
        self.wires, theirs = socket.socketpair()
        number = str(theirs.fileno())
        command = [sys.executable, "-P", "-m", "rlhf_lib.grading.worker", base, str(self.place), number, *self.hidden]
        environment = {
            "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": base, "TMPDIR": base, "RLHF_HOME": ".", "MPLCONFIGDIR": base, "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        }  # fmt: skip
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [*(wrapped(self.program) if self.program else []), *command], cwd=self.folder, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, bufsize=0, start_new_session=True,
            pass_fds=[theirs.fileno()],
        )  # fmt: skip
        theirs.close()
        line = b""
        end = time.monotonic() + START
        while not line.endswith(b"\n"):
            part = self.read(1, end)
            if not part:
                self.log.seek(0)
                last = self.log.read()[-500:].decode(errors="replace").strip().splitlines()[-1:]
                self.close()
                raise RunError(
                    f"the sandbox does not start ({''.join(last) or 'no answer'}): see `python -m rlhf_lib grade --help`"
                )
            line += part
        self.warnings = warnings(json.loads(line), bool(self.program))

    def ask(self, request, limits=DEFAULT, hidden=(), worlds=None):
        """What comes back for one request: (how, bytes), as jail.run_apart says. The next request finds a sandbox in any case.

        Args:
            hidden: paths that this request does not see, besides those that none does.
            worlds: the Worlds that its process acts in (worlds.py).
        """
        if self.process is None or self.process.poll() is not None:
            self.start()
        end = time.monotonic() + limits.seconds + GRACE
        paths = "\0".join(map(os.path.abspath, hidden)).encode()
        try:
            if worlds:
                socket.send_fds(self.wires, [b"w"], [worlds.theirs.fileno()])
            header = HEADER.pack(len(request), len(paths), worlds is not None, *limits)
            self.process.stdin.write(header + paths + request)
            reply = self.read(REPLY.size, end, worlds)
            if len(reply) == REPLY.size:
                length, how = REPLY.unpack(reply)
                if length <= MOST:
                    content = self.read(length, end)
                    if len(content) == length:
                        return how.rstrip(b"\0").decode("ascii", "replace"), content
        except (OSError, ValueError):  # a broken pipe
            pass
        self.close()
        return "died: the sandbox was ended", b""

    def read(self, length, end, worlds=None):
        """`length` bytes of the worker's answer, fewer where it ends or is too slow; meanwhile `worlds` answers."""
        parts, left = [], length
        out = self.process.stdout.fileno()
        while left:
            ready = select.select([out, *([worlds.ours] if worlds else [])], [], [], max(0.0, end - time.monotonic()))[0]
            if not ready:
                break
            if out not in ready:
                worlds = worlds if worlds.turn() else None
                continue
            part = os.read(out, min(left, 1 << 20))
            if not part:
                break
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def close(self):
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.log.close()
            self.wires.close()
            self.process = None
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None


def warnings(found, wrapped):
    """What is not contained, in sentences; none where all is."""
    if wrapped:
        behind = [] if found["apart"] else ["A submission may leave processes behind until its sandbox ends."]
        return behind if found["alone"] else [*behind, "A submission may read the published models and labels."]
    what = ["what it reads (all that a user of this machine can read)"]
    if not found["alone"]:
        what[0] += ", the worked answers, the published models and the labels among it"
        what.append("what it writes " + ("into folders that anybody can write" if found["root"] else "(wherever you can)"))
    if not found["apart"]:
        what += ["the network", "other processes of yours"]
    if sys.platform != "linux":
        what.append("memory")
    return [f"bubblewrap (`bwrap`) is not installed here. Not contained of a submission: {'; '.join(what)}."]
