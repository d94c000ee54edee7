import os
import shutil
import tempfile
from pathlib import Path

import pytest

from rlhf_lib.grading import jail
from rlhf_lib.grading.jail import Limits, run_apart

# The rest of what a jail keeps is tried in test_sandbox.py, from inside a submission.


def no_child_is_left():
    """Nothing but the sandbox of the session, which is alive."""
    try:
        return os.waitpid(-1, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return True


@pytest.fixture
def base():
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o711)
    yield folder
    shutil.rmtree(folder)


def test_bytes_come_back_and_the_folder_is_emptied(base):
    def work():
        open("left", "w").close()
        return os.getcwd().encode()

    how, content = run_apart(work, Limits(20.0), base, 9)
    assert how == "answered" and content.decode().startswith(base)
    assert os.listdir(base) == []
    assert no_child_is_left()


def test_how_it_ended(base):
    def fail():
        raise ValueError

    assert run_apart(fail, Limits(20.0), base, 9) == ("died", b"")
    assert run_apart(lambda: os._exit(7), Limits(20.0), base, 9) == ("died", b"")
    assert run_apart(lambda: __import__("time").sleep(60), Limits(0.5), base, 9) == ("late", b"")


def test_an_answer_of_no_bytes_is_an_answer(base):
    assert run_apart(lambda: b"", Limits(20.0), base, 9) == ("answered", b"")
    assert run_apart(lambda: b"x" * 3_000_000, Limits(20.0), base, 9) == ("answered", b"x" * 3_000_000)


def test_an_answer_may_be_too_large(base, monkeypatch):
    monkeypatch.setattr(jail, "MOST", 1_000_000)
    assert run_apart(lambda: bytes(1_000_000), Limits(20.0), base, 9)[0] == "answered"
    assert run_apart(lambda: bytes(1_000_001), Limits(20.0), base, 9) == ("large", b"")


def test_as_root_it_runs_as_nobody(base):
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    assert run_apart(lambda: repr(os.getresuid()).encode(), Limits(20.0), base, 9)[1] == b"(65009, 65009, 65009)"
    assert run_apart(lambda: repr(os.getgroups()).encode(), Limits(20.0), base, 9)[1] == b"[]"


@pytest.fixture
def here():
    """A folder in which anybody may write."""
    folder = Path(tempfile.mkdtemp())
    os.chmod(folder, 0o777)
    yield folder
    shutil.rmtree(folder)


def alone():
    return jail.can_be_apart() == (True, True)


def test_it_writes_in_its_folder_alone_and_has_room_for_so_much(base, here, monkeypatch):
    if not alone():
        pytest.skip("this system lets nobody make a read-only view of its files; the warning says so")
    monkeypatch.setattr(jail, "ROOM", 3 * 2**20)

    def work():
        said = []
        for path in ("a", here / "b", "/tmp/made_by_a_submission", "/dev/shm/made_by_a_submission"):
            try:
                open(path, "w").close()
                said.append("written")
            except OSError:
                said.append("not written")
        try:
            for number in range(10):
                with open(f"many{number}", "wb") as file:
                    file.write(bytes(2**20))
        except OSError as error:
            said.append(error.strerror)
        return "; ".join(said).encode()

    said = run_apart(work, Limits(20.0), base, 9)[1]
    assert said.decode().split("; ") == ["written", *["not written"] * 3, "No space left on device"]
    assert os.listdir(base) == [] == os.listdir(here)


def test_what_is_hidden_is_empty_and_of_other_processes_nothing_is_seen(base, here):
    if not alone():
        pytest.skip("this system lets nobody make a view of its own of its files; the warning says so")
    (here / "folder").mkdir()
    for name in ("folder/answers.py", "class.zip", "seen"):
        (here / name).write_text("secret")

    def work():
        seen = [os.listdir(here / "folder"), (here / "class.zip").read_text(), (here / "seen").read_text()]
        return repr([*seen, sorted(name for name in os.listdir("/proc") if name.isdigit())]).encode()

    hidden = [str(here / name) for name in ("folder", "class.zip", "none")]
    assert run_apart(work, Limits(20.0), base, 9, hidden)[1] == b"[[], '', 'secret', ['1', '2']]"
    assert (here / "folder" / "answers.py").read_text() == "secret"


def test_no_file_of_the_grader_stays_open(base, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s")
    with open(secret) as file:
        number = file.fileno()

        def work():
            try:
                return os.read(number, 10)
            except OSError:
                return b"closed"

        assert run_apart(work, Limits(20.0), base, 9)[1] in (b"closed", b"")


def test_the_family_of_a_process_and_its_pages():
    if not os.path.exists("/proc/self/task"):
        pytest.skip("no /proc here")
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:
            jail.system("prctl", 15, b"a\x1c:\r\x85\n\xffb", 0, 0, 0)  # a name that is no text, and more than one line
            os.write(into, b"x")
        __import__("time").sleep(60)
    os.read(out, 1)
    found = jail.family(pid)
    assert found[0] == pid and len(found) == 2 and jail.pages(found[1])[1] > 2**20
    for one in found:
        os.kill(one, 9)
    os.waitpid(pid, 0)
    assert jail.pages(2**30) == (0, 0)


def test_signals_have_names():
    assert jail.signal_name(9) == "SIGKILL" and jail.signal_name(99) == "signal 99"


def test_emptying_a_folder_follows_no_link(base, tmp_path):
    (tmp_path / "kept").write_text("kept")
    os.symlink(tmp_path, os.path.join(base, "link"))
    os.mkdir(os.path.join(base, "folder"))
    jail.empty(base)
    assert os.listdir(base) == [] and (tmp_path / "kept").exists()
