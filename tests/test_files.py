import contextlib
import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib import checkpoints, comparisons, corpus, files, labels, runs, tokenization
from rlhf_lib.checkpoints import CheckpointError
from rlhf_lib.comparisons import ComparisonError
from rlhf_lib.corpus import CorpusError
from rlhf_lib.files import RunError
from rlhf_lib.labels import LabelError
from rlhf_lib.pipelines import assistant_settings, shakespeare
from rlhf_lib.pipelines.stages import Stages, saved_settings


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_write_makes_the_folders_and_leaves_only_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    for content in (b"first", b"", bytes(range(256)) * 500):
        files.write_atomic(str(path), content)
        assert path.read_bytes() == content
        assert names(tmp_path) == ["a/b/file.bin"]


def test_the_old_content_stands_until_the_new_is_complete_and_on_disk(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    seen, synced = [], []
    replace, fsync = os.replace, os.fsync

    def look(source, target):
        seen.append((path.read_bytes(), Path(source).read_bytes(), Path(source).parent, Path(target), len(synced)))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", look)
    monkeypatch.setattr(files.os, "fsync", lambda number: (synced.append(number), fsync(number)))
    files.write_atomic(path, b"new content")
    # the new bytes were whole, synced, and in the same folder, where a rename is atomic
    assert seen == [(b"old", b"new content", tmp_path, path, 1)]
    assert path.read_bytes() == b"new content"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full: free some space"),
        (errno.EDQUOT, "the disk is full: free some space"),
        (errno.EFBIG, "the disk is full: free some space"),
        (errno.EACCES, "Permission denied: make the folder writable"),
        (errno.EROFS, "Read-only file system: make the folder writable"),
    ],
)
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch, where, number, said):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, where, fail)
    with pytest.raises(RunError) as caught:
        files.write_atomic(path, b"new")
    assert str(caught.value) == f"cannot write {path} ({said}, then run again; the last good file is kept)"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("below", ["x", "y/x"])
def test_a_file_where_the_folder_should_be_is_reported_and_kept(tmp_path, below):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(RunError, match=r"cannot write .*x \(.*make the folder writable"):
        files.write_atomic(tmp_path / "file" / below, b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_where_the_file_should_be_is_reported_and_kept(tmp_path):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(RunError, match="Is a directory"):
        files.write_atomic(tmp_path / "folder", b"new")
    assert (tmp_path / "folder" / "inside").is_dir()
    assert names(tmp_path) == []


def test_json_records_are_readable_and_keep_their_letters(tmp_path):
    record = {"title": "née — ¾", "list": [1, 2.5, None], "nested": {"a": True}}
    files.write_json(tmp_path / "summary.json", record)
    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert json.loads(text) == record
    assert "née — ¾" in text and text.endswith("}\n")


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1} x', b"{'a': 1}", b'{"a": "\xff"}', b"\0" * 20])
def test_a_damaged_json_file_is_named(tmp_path, content):
    path = tmp_path / "settings.json"
    files.write_json(path, {"a": [1, None], "b": "née"})
    assert files.read_json(str(path)) == {"a": [1, None], "b": "née"}
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"^{path} is damaged \(.+\): choose another --out, or delete the run's folder$"):
        files.read_json(path)


@pytest.mark.parametrize("before", [b"", b'{"a": 1}\n', b'{"a": 1}', b'\xef\xbb\xbf{"a": 1}\r\n', b"\n\n"])
def test_an_appended_line_stands_behind_what_is_there(tmp_path, before):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(before)
    files.append_json(path, {"b": "née\n\u2028"})
    line = '{"b": "née\\n\u2028"}\n'.encode()
    assert path.read_bytes() == before + (b"" if before.endswith(b"\n") or not before else b"\n") + line
    rows = [row for _, row in files.json_rows(path)]
    assert rows == [{"a": 1}] * (b"a" in before) + [{"b": "née\n\u2028"}]
    assert names(tmp_path) == ["lines.jsonl"]


def test_appending_makes_the_file_and_its_folder(tmp_path):
    files.append_json(str(tmp_path / "new" / "lines.jsonl"), {"a": None})
    assert (tmp_path / "new" / "lines.jsonl").read_bytes() == b'{"a": null}\n'


def test_rows_are_written_one_a_line_and_read_back(tmp_path):
    rows = [{"text": "é\u2028"}, {"n": [1, None]}]
    files.write_json_rows(tmp_path / "rows.jsonl", rows)
    assert [row for _, row in files.json_rows(tmp_path / "rows.jsonl")] == rows
    assert (tmp_path / "rows.jsonl").read_bytes() == '{"text": "é\u2028"}\n{"n": [1, null]}\n'.encode()


def test_rows_have_the_numbers_of_their_lines_in_the_file(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes('\n{"a": "\u2028\x85"}\r\n   \n{"a": 2}'.encode())
    assert list(files.json_rows(str(path))) == [(2, {"a": "\u2028\x85"}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b'{"a": 1}\n\n{oops\n', 3, r"not JSON \(Expecting property name enclosed in double quotes, column 2\); mend the line"),
        (b'{"a": 1} x\n', 1, r"not JSON \(Extra data, column 10\); mend the line"),
        (b'{"a": 1}\n["a"]\n', 2, "not a JSON object with named fields; mend the line"),
        (b'{"a": 1}\nnull\n', 2, "not a JSON object with named fields; mend the line"),
        (b'{"a": 1}\n{"a": "\xff"}\n', 2, r"not UTF-8 \(byte 16\); save the file as UTF-8"),
        (b"\xef\xbb\xbf\n\xff", 2, r"not UTF-8 \(byte 4\); save the file as UTF-8"),
    ],
)
def test_a_damaged_line_is_named_by_its_number(tmp_path, content, line, what):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"^{path}, line {line}: {what}$"):
        list(files.json_rows(path))
    with pytest.raises(KeyError):  # the caller's own kind of error
        list(files.json_rows(path, KeyError))


def test_rows_of_no_file_say_so(tmp_path):
    with pytest.raises(RunError, match=rf"^no file at {tmp_path}/x: give the path of one that exists$"):
        list(files.json_rows(tmp_path / "x"))


def test_nothing_of_it_needs_torch():
    """The command line says what is wrong with a run's folder before it imports anything slow."""
    code = "import sys; import rlhf_lib.files; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == "[]\n"


# ----------------------------------------------------------------------------------------- what several do at once

ADD = """
import sys
from rlhf_lib import files
path, who = sys.argv[1:]
for number in range(40):
    files.append_json(path + ".jsonl", {"who": who, "number": number})
    files.add_json(path + ".json", {f"{who} {number}": number})
"""


def test_two_that_add_to_one_file_at_once_lose_nothing(tmp_path):
    root = Path(__file__).resolve().parents[1]
    adding = [
        subprocess.Popen([sys.executable, "-c", ADD, str(tmp_path / "mine"), who], cwd=root, stderr=subprocess.PIPE)
        for who in ("anne", "bob")
    ]
    assert [process.communicate()[1] for process in adding] == [b"", b""]
    rows = [row for _, row in files.json_rows(tmp_path / "mine.jsonl")]
    for who in ("anne", "bob"):
        assert [row["number"] for row in rows if row["who"] == who] == list(range(40))
    assert len(files.read_json(tmp_path / "mine.json")) == len(rows) == 80


def test_a_file_that_cannot_be_read_is_kept_when_something_is_added(tmp_path):
    path = tmp_path / "findings.json"
    files.add_json(path, {"2.A": "née"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as an editor of Windows saves it
    files.add_json(path, {"2.B": 1})
    assert files.read_json(path) == {"2.A": "née", "2.B": 1}
    path.write_text('{"2.A": "a sentence of mine", ')
    files.add_json(path, {"2.C": 2})
    assert files.read_json(path) == {"2.C": 2}
    assert (tmp_path / "findings.json.damaged").read_text() == '{"2.A": "a sentence of mine", '


def test_one_process_may_change_a_folder_within_a_change(tmp_path):
    with files.one_at_a_time(tmp_path), files.one_at_a_time(f"{tmp_path}"):
        files.append_json(tmp_path / "x.jsonl", {})
    assert not files.HELD


def test_a_lock_is_this_process_s_as_long_as_somebody_has_it(tmp_path):
    held = files.lock(tmp_path / ".lock")
    assert files.lock(tmp_path / ".lock") is held  # the same process may go on
    said = "import sys; from rlhf_lib import files; files.lock(sys.argv[1])"
    there = subprocess.run([sys.executable, "-c", said, f"{tmp_path / '.lock'}"], capture_output=True, text=True)
    assert "another run is at work in" in there.stderr
    held.close()
    assert files.lock(tmp_path / ".lock") is not held
    assert tmp_path / ".lock" not in files.LOCKS  # nobody kept the second


def test_one_that_hangs_stops_the_others_for_a_while_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    number = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_EX)
    files.append_json(tmp_path / "x.jsonl", {"a": 1})
    os.close(number)
    assert (tmp_path / "x.jsonl").read_bytes() == b'{"a": 1}\n'


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_no_lock(tmp_path):
    tmp_path.chmod(0o500)
    with files.one_at_a_time(tmp_path / "new"), pytest.raises(RunError, match="make the folder writable"):
        files.append_json(tmp_path / "new" / "x.jsonl", {})
    with pytest.raises(RunError, match=r"cannot write .*lock \(Permission denied\)"):
        files.lock(tmp_path / ".lock")


def test_a_replacement_that_is_refused_for_a_moment_is_tried_again(tmp_path, monkeypatch):
    """As on Windows, while a virus scanner or an indexer reads the old file."""
    real, refusals = os.replace, iter([True] * 3)

    def busy(source, target):
        if next(refusals, False):
            raise PermissionError(errno.EACCES, "Access is denied")
        real(source, target)

    monkeypatch.setattr(files, "os", SimpleNamespace(**{**vars(os), "replace": busy, "name": "nt"}))
    monkeypatch.setattr(files, "time", SimpleNamespace(sleep=lambda seconds: None))
    files.write_atomic(tmp_path / "file.bin", b"new")
    assert (tmp_path / "file.bin").read_bytes() == b"new" and names(tmp_path) == ["file.bin"]
    refusals = iter([True] * 100)
    with pytest.raises(RunError, match="Access is denied"):
        files.write_atomic(tmp_path / "file.bin", b"newer")
    assert (tmp_path / "file.bin").read_bytes() == b"new"


def test_a_value_in_a_message_is_short_however_long_or_deep_it_is():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, {"a": deep}, "x" * 10**6, list(range(10**5)), 10**4000):
        assert len(files.shown(value)) < 400
    for value in ("neutrall", None, 7, {"id": 1}, ["a", 2.5], True, "é\n"):
        assert files.shown(value) == repr(value)


# ----------------------------------------------------------------------------------------- a power cut


def test_what_was_written_is_on_the_disk_with_its_name(tmp_path, monkeypatch):
    """By the order of what the system is asked for: the bytes, then the name, then the folder that has the name, and those that
    have the names of folders that are new."""
    asked, real_fsync, real_replace = [], os.fsync, os.replace
    folders = {place: tmp_path.joinpath(*place) for place in ((), ("new",), ("new", "er"))}

    def fsync(number):
        found = os.fstat(number)
        known = {path.stat().st_ino: place for place, path in folders.items() if path.exists()}
        asked.append(known.get(found.st_ino, "folder") if stat.S_ISDIR(found.st_mode) else "file")
        real_fsync(number)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", lambda *paths: (asked.append("name"), real_replace(*paths)))
    files.write_atomic(tmp_path / "new" / "er" / "state.pt", b"weights")
    assert asked == ["file", "name", ("new", "er"), ("new",), ()]
    asked.clear()
    files.write_atomic(tmp_path / "new" / "er" / "state.pt", b"weights")
    assert asked == ["file", "name", ("new", "er")]


class Disk:
    """A disk that loses, when the power goes, every byte and every name that was not synced: what the system was asked, applied
    to two pictures of a folder, the one in memory and the one on the disk."""

    def __init__(self, root):
        self.root, self.bytes = root, {}  # of a file's number: what of it is on the disk
        self.names = {}  # of a folder's path: {name: number} as on the disk

    def fsync(self, number):
        found = os.fstat(number)
        for folder in [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]:
            if folder.stat().st_ino == found.st_ino:
                self.names[folder] = {path.name: path.stat().st_ino for path in folder.iterdir()}
            for path in folder.iterdir():
                if path.is_file() and path.stat().st_ino == found.st_ino:
                    self.bytes[found.st_ino] = path.read_bytes()

    def left(self, path):
        """What a file holds after the power cut; None where its name, its folder or its bytes are lost."""
        for folder in [parent for parent in path.parents if parent.is_relative_to(self.root)]:
            if folder != self.root and folder.name not in self.names.get(folder.parent, {}):
                return None
        return self.bytes.get(self.names.get(path.parent, {}).get(path.name))


def test_whenever_the_power_goes_the_old_or_the_new_content_is_there(tmp_path, monkeypatch):
    """After every single request to the system: what was said to be saved before is there whole, or what replaces it."""
    disk, path, said, moments = Disk(tmp_path), tmp_path / "runs" / "one" / "state.pt", [], []
    real_fsync, real_replace = os.fsync, os.replace

    def look():
        left = disk.left(path)
        moments.append(left)
        assert left in ([*said[-1:], current] if said else [None, current])

    def fsync(number):
        look()
        real_fsync(number)
        disk.fsync(number)
        look()

    def replace(fresh, target):
        real_replace(fresh, target)
        look()

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", replace)
    for current in (b"first", b"second", b"", b"third" * 1000):
        files.write_atomic(path, current)
        assert disk.left(path) == current  # as soon as it is said to be saved
        said.append(current)
    assert len(set(moments)) == 5


# ----------------------------------------------------------------------------------------- whatever a file holds

FUZZ = int(os.environ.get("RLHF_FUZZ", 50))  # examples: tens of thousands for a night
NAMES = st.sampled_from(["work", "start", "end", "text", "checkpoint", "label", "reader", "sense", "seed", "preset", "kind"])
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["hamlet", "positive", "bpe"]) | st.text(max_size=5)
)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=8), max_leaves=15)
CONTENT = st.one_of(JSON.map(lambda one: json.dumps(one).encode()), st.text(max_size=80).map(str.encode), st.binary(max_size=80))


def readers(folder):
    """What reads files that others made, and the errors that are theirs: a sentence, and no traceback."""
    kinds = (shakespeare.Settings, assistant_settings.Settings)
    return {
        "labels.jsonl": (lambda path: labels.read(path, {"hamlet": "To be"}), LabelError),
        "rows.jsonl": (lambda path: list(files.json_rows(path)), RunError),
        "comparisons.jsonl": (lambda path: comparisons.read_comparisons(path, []), ComparisonError),
        "text.txt": (corpus.load, CorpusError),
        "tokenizer.json": (tokenization.load, ValueError),
        "model.safetensors": (lambda path: checkpoints.read_metadata(path.parent), CheckpointError),
        "state.pt": (runs.load_state, CheckpointError),
        "metrics.jsonl": (lambda path: runs.Metrics(path.parent).read("x"), RunError),
        "settings.json": (lambda path: [saved_settings(path.parent, kind) for kind in kinds], RunError),
        "stages.json": (lambda path: Stages(shakespeare.PRESETS["smoke"], path.parent, shakespeare.PARTS).done(), RunError),
    }


@pytest.mark.filterwarnings("ignore")
@given(CONTENT, st.binary(max_size=8))
@settings(deadline=None, max_examples=FUZZ)
def test_whatever_a_file_holds_it_is_read_or_refused_in_a_sentence(tmp_path_factory, content, head):
    folder = tmp_path_factory.getbasetemp() / "drawn"
    folder.mkdir(exist_ok=True)
    for name, (read, error) in readers(folder).items():
        for path in folder.glob("*.*"):
            path.unlink()
        path = folder / name
        path.write_bytes(len(content).to_bytes(8, "little") + content if name == "model.safetensors" and head else content)
        with contextlib.suppress(error):
            read(path)


def test_an_exception_is_told_in_one_line_with_its_kind():
    assert files.one_line(ValueError("two\n  lines")) == "ValueError: two lines"
    assert files.one_line(ValueError("two\n  lines"), kind=False) == "two lines"
    assert files.one_line(KeyError()) == "KeyError:" and files.one_line(KeyError(), kind=False) == "KeyError"
    assert len(files.one_line(ValueError("x" * 500))) == 120
