import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lib import files
from rlhf_lib.files import RunError


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
