import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import drawn
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent
TESTS = [f"tests/test_a.py::test_one[{n}]" for n in range(20)] + ["tests/test_a.py::test_two", "tests/b/test_c.py::test_three[x]"]
SLOW = {"tests/test_a.py::test_one": 1.6, "tests/test_a.py::test_two": 40.0}


@pytest.mark.parametrize("seconds, share", [(0.0, 1.0), (0.4, 1.0), (0.8, 0.5), (1.6, 0.25), (6.4, 0.0625), (300.0, 0.0625)])
def test_a_family_runs_as_much_as_is_quick_and_a_sixteenth_at_least(seconds, share):
    assert drawn.share(seconds) == share


def test_every_case_is_drawn_as_often_as_its_share_says_and_what_is_quick_or_unknown_always():
    draws = [drawn.chosen(TESTS, SLOW, str(draw)) for draw in range(2000)]
    often = Counter(name for kept in draws for name in kept)
    assert {len([name for name in kept if "test_one" in name]) for kept in draws} == {5}  # a quarter of twenty
    for name in TESTS[:20]:
        assert abs(often[name] / 2000 - 0.25) < 0.05  # five deviations of a share of 2,000
    assert abs(often["tests/test_a.py::test_two"] / 2000 - 0.0625) < 0.03
    assert often["tests/b/test_c.py::test_three[x]"] == 2000
    together = sum({TESTS[0], TESTS[1]} <= kept for kept in draws) / 2000
    assert abs(together - 5 * 4 / (20 * 19)) < 0.025  # the cases are drawn one by one, not in blocks


@given(st.text(), st.floats(0.41, 500), st.integers(1, 60))
def test_of_a_slow_family_no_more_is_run_than_its_share_rounded_up(draw, seconds, count):
    names = [f"test_x.py::test_y[{n}]" for n in range(count)]
    kept = drawn.chosen(names, {"test_x.py::test_y": seconds}, draw)
    assert kept <= {*names} and abs(len(kept) - drawn.share(seconds) * count) < 1
    assert kept == drawn.chosen(names[::-1], {"test_x.py::test_y": seconds}, draw)


def test_the_file_of_seconds_names_tests_that_are_there():
    for name, seconds in drawn.read().items():
        path, function = name.split("::")
        assert re.search(rf"^def {function}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), name
        assert seconds > drawn.WHOLE


def test_seconds_are_written_over_those_of_before(tmp_path, monkeypatch):
    monkeypatch.setattr(drawn, "SECONDS", tmp_path / "seconds.json")
    drawn.SECONDS.write_text('{"t.py::a": 2.0, "t.py::b": 3.0, "t.py::c": 4.0}')
    drawn.record({"t.py::b": 5.04, "t.py::c": 0.4, "t.py::d": 0.2, "t.py::e": 1.5})
    assert drawn.read() == {"t.py::a": 2.0, "t.py::b": 5.0, "t.py::e": 1.5}


def test_one_commit_runs_one_share_and_only_where_it_is_asked_for(tmp_path):
    """A file of thirty slow cases and a quick one, by one process and by two."""
    (tmp_path / "drawn.py").write_text((ROOT / "tests" / "drawn.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "conftest.py").write_text("from drawn import *\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "seconds.json").write_text('{"test_it.py::test_case": 10.0}')
    cases = "@pytest.mark.parametrize('n', range(30))\ndef test_case(n):\n    time.sleep(0.05)\n"
    (tmp_path / "test_it.py").write_text(f"import time, pytest\n{cases}\ndef test_quick():\n    pass\n")

    def run(*options):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "RLHF_DRAW": "abc"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return int(re.search(r"(\d+) passed", done.stdout)[1])

    names = [f"test_it.py::test_case[{n}]" for n in range(30)]
    expected = len(drawn.chosen(names, {"test_it.py::test_case": 10.0}, "abc"))
    assert expected in (1, 2)
    assert run("--drawn", "-n", "2") == run("--drawn") == expected + 1
    assert run("--record", "-n", "2") == 31
    measured = json.loads((tmp_path / "seconds.json").read_text())
    assert measured.keys() == {"test_it.py::test_case"} and 1.4 < measured["test_it.py::test_case"] < 9
    (tmp_path / "seconds.json").write_text('{"test_it.py::test_case": 10.0}')
    assert run("--record", "--drawn", "-n", "2") == expected + 1
    measured = json.loads((tmp_path / "seconds.json").read_text())  # of thirty cases, by the one or two that ran
    assert measured.keys() == {"test_it.py::test_case"} and 1.4 < measured["test_it.py::test_case"] < 9


def test_without_git_every_run_draws_the_same(monkeypatch):
    assert re.fullmatch("[0-9a-f]{40}|", drawn.commit())
    monkeypatch.setenv("PATH", "")
    assert drawn.commit() == ""
