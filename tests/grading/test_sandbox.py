import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from rlhf_lib import exercises
from rlhf_lib.files import RunError
from rlhf_lib.grading import sandbox
from rlhf_lib.grading.jail import Limits
from rlhf_lib.grading.sandbox import Sandbox, warnings, wrapped
from rlhf_lib.grading.wire import pack, unpack
from tests.grading.made import ROOT, SHARE


def request(source):
    inputs = exercises.draw("share_positive", 3)
    return pack(
        {
            "name": "share_positive",
            "asked": "share_positive",
            "code": [["cell 1", "import torch"], ["cell 2", source]],
            "own": [],
            "course": [],
            "worked": "",
            "inputs": inputs,
        }
    )


def outputs(box, source, **limits):
    """(how it ended, the second output or the fault) of an answer; the first input is asked for twice."""
    how, content = box.ask(request(source), Limits(**{"seconds": 20.0, **limits}))
    found = unpack(content) if content else {"outputs": [None, None]}
    return how, found["outputs"][1] if "outputs" in found else found["fault"]


def inside(box, expression, before="pass"):
    """What an expression gives in the sandbox."""
    return outputs(box, f"def share_positive(scores, limit):\n    import os, sys\n    {before}\n    return {expression}")[1]


def test_a_function_is_asked(box):
    how, content = box.ask(request(SHARE), Limits(20.0))
    assert how == "answered"
    inputs = exercises.draw("share_positive", 3)
    assert exercises.judge("share_positive", inputs, unpack(content)["outputs"]).passed


def test_a_fresh_process_and_folder_for_every_question(box):
    write = "open('note', 'w').write('x'); sys.modules['note'] = os; os.environ['NOTE'] = '1'"
    assert inside(box, "os.listdir('.')", write) == ["note"]
    assert inside(box, "[os.listdir('.'), 'note' in sys.modules, 'NOTE' in os.environ]") == [[], False, False]


def test_nothing_of_the_graders_modules_is_in_it(box):
    found = inside(box, "sorted(name for name in sys.modules if name.startswith('rlhf_lib.grading.'))")
    assert found == [f"rlhf_lib.grading.{one}" for one in ("jail", "wire", "worlds")]  # no gradebook, no other submission


def test_clocks_of_the_processor_are_true(box):
    if not warnings_without(box, "other processes"):
        pytest.skip("this system has no process namespaces: there the processor's time is limited, and told coarsely")
    lines = (
        "import time\n"
        "    found = []\n"
        "    for _ in range(10):\n"
        "        one, all = time.thread_time(), time.process_time()\n"
        "        sum(range(20_000))\n"
        "        found.append((time.thread_time() - one, time.process_time() - all))"
    )
    assert all(one > 0 and all > 0.2 * one for one, all in inside(box, "found", lines))


def test_the_graders_environment_is_not_seen(box):
    assert os.environ["SECRET_TOKEN"] == "hunter2"  # since before the sandbox was started
    assert "hunter2" not in repr(inside(box, "sorted(os.environ.items())"))
    seen = inside(
        box,
        "found",
        "found = []\n"
        "    for pid in os.listdir('/proc'):\n"
        "        try: found.append(open(f'/proc/{pid}/environ').read())\n"
        "        except OSError: pass",
    )
    assert "hunter2" not in repr(seen)


def test_nothing_outside_is_written(box, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("without bubblewrap only root can run submissions as another user; the warning says so")
    places = [
        str(path)
        for path in (tmp_path / "x", ROOT / "made_by_a_submission", "/made_by_a_submission", os.path.expanduser("~/made"))
    ]
    tried = inside(
        box,
        "tried",
        f"tried = []\n"
        f"    for path in {places!r}:\n"
        f"        try: open(path, 'w'); tried.append(path)\n"
        f"        except OSError: pass",
    )
    assert tried == [] and not any(os.path.exists(path) for path in places)


def test_there_is_no_network(box):
    if not warnings_without(box, "the network"):
        pytest.skip("this system has no network namespaces; the warning says so")
    lines = (
        "import socket\n"
        "    s = socket.socket(); s.settimeout(5)\n"
        "    try: s.connect(('127.0.0.1', {port})); r = 'connected'\n"
        "    except OSError as e: r = 'no'"
    )
    import socket

    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        here.listen()
        port = here.getsockname()[1]
        assert inside(box, "r", lines.format(port=port)) == "no"


def warnings_without(box, word):
    return not any(word in sentence for sentence in box.warnings)


def test_modules_that_it_writes_are_nobody_else_s(box):
    write = (
        "pass\n"
        "    for name in ('torch', 'sitecustomize', 'usercustomize', 'json'):\n"
        "        for folder in ('.', '..', '../..'):\n"
        "            try: open(f'{folder}/{name}.py', 'w').write('raise SystemExit(9)')\n"
        "            except OSError: pass"
    )
    assert "torch.py" in inside(box, "os.listdir('.')", write)
    assert inside(box, "os.listdir('.')") == []
    assert inside(box, "[sys.path[0], __import__('json').__file__.startswith('/usr') or sys.prefix]")[0] == str(ROOT)


def test_the_worked_answers_are_not_in_it(box):
    if not warnings_without(box, "the worked answers"):
        pytest.skip("this system has no mount namespaces; the warning says so")
    assert inside(box, "os.listdir(folder)", f"folder = {str(ROOT / 'solutions')!r}") == []
    found = (
        "import gc\n"
        "    from rlhf_lib.exercises.keep import the_course\n"
        "    try: the_course('train_ppo'); found = ['the worked answer']\n"
        "    except Exception as error: found = [type(error).__name__]\n"
        "    found += [one for one in gc.get_objects() if callable(one) and getattr(one, '__module__', '') == 'course_rlhf']"
    )
    assert inside(box, "found", found) == ["RunError"]


def test_other_processes_cannot_be_ended(box):
    if not warnings_without(box, "other processes"):
        pytest.skip("this system has no process namespaces; the warning says so")
    before = box.process.pid
    inside(
        box,
        "1",
        "import signal\n"
        "    for pid in [os.getppid(), *range(2, 60)]:\n"
        "        try: pid == os.getpid() or os.kill(pid, 9)\n"
        "        except OSError: pass",
    )
    outputs(box, f"import os\ndef share_positive(scores, limit):\n    os.kill({os.getpid()}, 0)\n    return 1")
    assert inside(box, "7") == 7 and box.process.pid == before


@pytest.mark.parametrize(
    "place, how",
    [
        ("x = [os._exit(3)]", "died"),
        ("x = os.kill(os.getpid(), 9)", "died: SIGKILL"),
        ("x = ctypes.string_at(0)", "died: SIGSEGV"),
    ],
)
def test_how_a_process_died_is_said(box, place, how):
    source = f"import os, ctypes\n{place}\ndef share_positive(scores, limit):\n    return 1"
    assert outputs(box, source)[0] == how
    assert inside(box, "7") == 7


def test_limits_of_time(box):
    start = time.monotonic()
    source = (
        "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\ndef share_positive(scores, limit):\n    while True: pass"
    )
    assert outputs(box, source, seconds=1.0)[0] == "late"
    source = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    assert outputs(box, source, seconds=1.0)[0] == "late"
    assert time.monotonic() - start < 60


def test_limits_of_memory(box):
    one = outputs(box, "def share_positive(scores, limit):\n    return len(bytearray(10**12))")
    assert one[1]["kind"] == "MemoryError"
    many = (
        "import os, time\n"
        "def share_positive(scores, limit):\n"
        "    for _ in range(2): os.fork()\n"
        "    x = b'x' * (60 * 2**20)\n"
        "    time.sleep(60)"
    )
    assert outputs(box, many, memory=200 * 2**20, seconds=60.0)[0] == "memory"  # each of them has no more than 60 MB


def test_a_fork_bomb_is_limited_and_leaves_nothing(box):
    before = len(os.listdir("/proc"))
    source = (
        "import os\ndef share_positive(scores, limit):\n    while True:\n        try: os.fork()\n        except OSError: pass"
    )
    assert outputs(box, source, seconds=1.0, processes=12)[0] == "late"
    time.sleep(0.2)
    assert len(os.listdir("/proc")) < before + 10
    assert inside(box, "7") == 7


def test_a_process_that_goes_to_the_background_is_ended(box):
    if not warnings_without(box, "other processes"):
        pytest.skip("this system has no process namespaces; the warning says so")
    name = "left_behind_by"
    source = (
        f"import ctypes, os, time\n"
        f"def share_positive(scores, limit):\n"
        f"    if os.fork() == 0:\n"
        f"        os.setsid()\n"
        f"        ctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)\n"
        f"        os.fork()\n"
        f"        time.sleep(60)\n"
        f"        os._exit(0)\n"
        f"    return 1"
    )
    assert outputs(box, source)[0] == "answered"
    time.sleep(0.2)
    names = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            names.append(Path(f"/proc/{pid}/comm").read_text().strip())
    assert name not in names


def test_limits_of_files_and_of_what_is_printed(box):
    assert (
        outputs(box, "def share_positive(scores, limit):\n    open('x', 'wb').write(bytes(10**7))", files=10**6)[1]["kind"]
        == "OSError"
    )
    assert inside(box, "1", "sys.stdout.write('x' * 10**8); os.write(1, b'x' * 10**7)") == 1


def test_what_it_writes_to_its_descriptors_is_an_answer_and_no_more(box):
    source = (
        "import os\n"
        "def share_positive(scores, limit):\n"
        "    for n in range(3, 50):\n"
        "        try: os.write(n, b'junk' * 100)\n"
        "        except OSError: pass\n"
        "    os._exit(0)"
    )
    how, _ = outputs(box, source)
    assert how.startswith("died") or how == "large" or how == "answered"
    assert inside(box, "7") == 7


def test_a_sandbox_that_does_not_start_says_why(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "executable", "/bin/false")
    with pytest.raises(RunError, match="the sandbox does not start"):
        Sandbox(program=None).start()


STAND_IN = """#!{python} -IS
import os, struct, sys, time
out = sys.stdout.buffer
out.write(b'{{"apart": true, "alone": true, "root": true}}\\n')
out.flush()
while header := sys.stdin.buffer.read({header}):
    request = sys.stdin.buffer.read(struct.unpack_from(">Q", header)[0])
    if request == b"exit":
        os._exit(0)
    if request == b"sleep":
        time.sleep(60)
    length = {{b"long": {most} + 1, b"half": 9}}.get(request, len(request))
    out.write(struct.pack(">Q64s", length, b"answered") + request)
    out.flush()
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A Sandbox whose worker gives back what it is sent, or does what that says."""
    program = tmp_path / "worker"
    program.write_text(STAND_IN.format(python=os.path.realpath(sys.executable), header=sandbox.HEADER.size, most=sandbox.MOST))
    program.chmod(0o755)
    monkeypatch.setattr(sandbox.sys, "executable", str(program))
    monkeypatch.setattr(sandbox, "GRACE", 1.0)
    box = Sandbox(program=None)
    yield box
    box.close()


def test_whatever_becomes_of_the_sandbox_the_next_question_finds_one(stand_in):
    assert stand_in.ask(b"anything") == ("answered", b"anything")
    for request in (b"exit", b"sleep", b"long", b"half"):
        assert stand_in.ask(request, Limits(0.2)) == ("died: the sandbox was ended", b"")
        assert stand_in.process is None and stand_in.folder is None
        assert stand_in.ask(b"again", Limits(60.0)) == ("answered", b"again")
    os.kill(stand_in.process.pid, signal.SIGKILL)
    stand_in.process.wait()
    assert stand_in.ask(b"again", Limits(60.0)) == ("answered", b"again")


def test_what_is_not_contained_is_said():
    assert warnings({"apart": True, "alone": True, "root": False}, True) == []
    assert "processes behind" in warnings({"apart": False, "alone": False, "root": False}, True)[0]
    assert "may read the published models" in warnings({"apart": True, "alone": False, "root": False}, True)[0]
    sentence = warnings({"apart": False, "alone": False, "root": False}, False)[0]
    assert "the network" in sentence and "wherever you can" in sentence and "bwrap" in sentence and "the worked" in sentence
    sentence = warnings({"apart": True, "alone": False, "root": True}, False)[0]
    assert "the network" not in sentence and "folders that anybody can write" in sentence
    sentence = warnings({"apart": True, "alone": True, "root": False}, False)[0]
    assert "what it reads" in sentence and "what it writes" not in sentence and "worked" not in sentence


def test_nothing_of_the_machine_is_writable_in_bubblewrap():
    command = wrapped("bwrap")
    assert command.index("--tmpfs") < command.index("--ro-bind-try")  # else a course in /tmp would be hidden by it
    assert "--bind" not in command and {"--unshare-net", "--unshare-pid", "--die-with-parent"} <= set(command)


# ----------------------------------------------------------------------------------------- bubblewrap


def test_in_bubblewrap_a_function_is_asked_and_the_machine_is_not_seen(wrapped_box):
    assert wrapped_box.warnings == []
    assert inside(wrapped_box, "7") == 7
    assert inside(wrapped_box, "os.path.exists('/etc/passwd') or os.path.exists('/home') or os.path.exists('/var')") is False
    places = ["/tmp/x", "/x", str(ROOT / "x"), str(ROOT / "rlhf_lib" / "x"), "/usr/x", "/dev/shm/x"]
    tried = inside(
        wrapped_box,
        "tried",
        f"tried = []\n"
        f"    for path in {places!r}:\n"
        f"        try: open(path, 'w'); tried.append(path)\n"
        f"        except OSError: pass",
    )
    assert tried in ([], ["/tmp/x"])  # its own, which is emptied
    places = [Path(one) for one in (ROOT, sys.prefix, sys.base_prefix)]  # which are seen, also where they lie under /tmp
    known = {one.parts[2] for one in places if one.parts[1] == "tmp"}
    assert len({*inside(wrapped_box, "os.listdir('/tmp')")} - known) <= 1
