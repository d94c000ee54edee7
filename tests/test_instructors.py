import argparse

import pytest

from rlhf_lib import instructors
from rlhf_lib.__main__ import parser
from rlhf_lib.files import RunError


def test_every_command_has_its_function_and_its_help(capsys):
    commands = argparse.ArgumentParser().add_subparsers()
    assert instructors.add_commands(commands).keys() == commands.choices.keys()
    assert all(commands.choices[name].format_help().count("DIR") for name in commands.choices)


def test_the_command_line_has_them_too():
    others = parser().parse_args(["release", "--out", "x"]).others
    assert others["release"] is instructors.write_release and others["figures"] is instructors.draw_figures
    assert others["grade"] is instructors.grade


@pytest.mark.parametrize("line", [["release", "--out", "x"], ["grade", "class", "--out", "x"]])
def test_a_class_s_copy_has_neither_grades_nor_releases(line, tmp_path, monkeypatch):
    monkeypatch.setattr(instructors, "__file__", str(tmp_path / "instructors.py"))
    options = parser().parse_args(line)
    with pytest.raises(RunError, match="a class's copy of the course"):
        options.others[options.command](options)


def test_hints_are_left_out_when_asked(tmp_path, monkeypatch, capsys):
    from rlhf_lib import release

    asked = []
    monkeypatch.setattr(release, "student_release", lambda out, hints: asked.append((out, hints)) or ("folder", "zip"))
    for more in ([], ["--without-hints"]):
        options = parser().parse_args(["release", "--out", "class", *more])
        options.others["release"](options)
    assert asked == [("class", True), ("class", False)] and capsys.readouterr().out == "folder\nzip\n" * 2
