import hashlib
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf_lib import wheels

NAME = "some_thing-1.2.3-py3-none-any.whl"
CONTENT = b"PK\x03\x04 what pip brings \xff\x00"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class OurError(ValueError):
    pass


def fetch(folder, sha256=SHA256):
    return wheels.fetch("some-thing==1.2.3", folder / NAME, sha256, OurError)


@pytest.fixture
def pip(monkeypatch):
    """The commands that were run in the place of pip, which brings two files."""
    commands = []

    def download(command, **options):
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / NAME).write_bytes(CONTENT)
        (folder / "dependency-1.0-py3-none-any.whl").write_bytes(b"not asked for")
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(wheels.subprocess, "run", download)
    return commands


def test_pip_fetches_it_once_without_its_dependencies_and_it_alone_is_kept(tmp_path, pip):
    kept = tmp_path / "data" / "cache"
    assert fetch(kept) == kept / NAME
    assert (kept / NAME).read_bytes() == CONTENT
    assert [path.name for path in kept.iterdir()] == [NAME]
    (command,) = pip
    assert command[1:4] == ["-m", "pip", "download"] and {"--no-deps", "some-thing==1.2.3"} <= set(command)
    assert not Path(command[command.index("--dest") + 1]).exists()
    assert wheels.fetch("some-thing==1.2.3", str(kept / NAME), SHA256) == kept / NAME
    assert len(pip) == 1


def test_one_that_is_kept_is_checked_every_time_and_a_changed_one_named(tmp_path, pip):
    (tmp_path / NAME).write_bytes(CONTENT + b"x")
    found = hashlib.sha256(CONTENT + b"x").hexdigest()
    message = f"^{re.escape(str(tmp_path / NAME))} has SHA-256 {found[:12]}…, expected {SHA256[:12]}…: delete it and try again$"
    with pytest.raises(OurError, match=message):
        fetch(tmp_path)
    (tmp_path / NAME).unlink()
    assert fetch(tmp_path).read_bytes() == CONTENT
    assert len(pip) == 1


def test_a_download_with_another_sha_is_refused(tmp_path, pip):
    with pytest.raises(OurError, match=f"has SHA-256 {SHA256[:12]}…, expected 000000000000…"):
        fetch(tmp_path, "0" * 64)
    with pytest.raises(ValueError, match="has SHA-256"):  # the error unless another is named
        wheels.fetch("some-thing==1.2.3", tmp_path / NAME, "0" * 64)


def test_without_an_index_the_message_says_where_to_put_the_wheel(tmp_path, monkeypatch):
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # the real pip, which may not ask anybody
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(OurError) as caught:
        fetch(tmp_path / "cache")
    said = str(caught.value)
    assert said.startswith("pip could not fetch some-thing==1.2.3 (")
    assert "No matching distribution" in said
    assert f"download {NAME} elsewhere (https://pypi.org/project/some-thing/1.2.3/#files)" in said
    assert said.endswith(f"put it at {tmp_path / 'cache' / NAME}")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("code", "stderr", "reason"),
    [
        (1, "", "no message"),
        (1, "WARNING: retrying\nERROR: no route to host\n", "ERROR: no route to host"),
        (0, "", "no message"),
    ],
)
def test_a_silent_or_talkative_pip_is_reported_by_its_last_line(tmp_path, monkeypatch, code, stderr, reason):
    done = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr(wheels.subprocess, "run", lambda command, **options: done)
    with pytest.raises(OurError, match=rf"\({reason}\): download {re.escape(NAME)} elsewhere"):
        fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_pip_says_is_read_whatever_its_encoding(tmp_path, monkeypatch):
    """pip writes in the system's encoding: a Latin-1 é is no UTF-8."""
    (tmp_path / "python").write_text("#!/bin/sh\nprintf 'no route to Orl\\303\\251ans, or to Orl\\351ans\\n' >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(wheels.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(OurError, match=r"\(no route to Orléans, or to Orl.ans\)"):
        fetch(tmp_path)
