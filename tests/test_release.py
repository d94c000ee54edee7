import ast
import errno
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile

import nbformat
import pytest

from rlhf_lib import exercises, release
from rlhf_lib.__main__ import main
from rlhf_lib.files import RunError
from rlhf_lib.notebooks import ROOT, read
from rlhf_lib.release import student_edition, student_release, without_folds


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The folder that a class gets with hints, that without, and their zips."""
    folder = tmp_path_factory.mktemp("release")
    return {hints: student_release(folder / str(hints), hints) for hints in (True, False)}


def answers():
    """(exercise or build, what its worked answer does) for every one: the statements in its functions, docstrings left out."""
    exercises.load()
    for path in sorted((ROOT / "solutions").glob("*.ipynb")):
        for cell in read(path).cells:
            name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
            if cell.cell_type == "code" and (name in exercises.EXERCISES or name in exercises.BUILDS):
                for function in ast.walk(ast.parse(cell.source)):
                    if isinstance(function, ast.FunctionDef):
                        yield name, bare(function)


def bare(function):
    documented = ast.get_docstring(function) is not None
    return "\n".join(ast.unparse(statement) for statement in function.body[documented:])


def code_of(text):
    """All functions of a text that can be read as Python, also those in fences."""
    parts = [text, *(textwrap.dedent(part).removeprefix("python\n") for part in text.split("```")[1::2])]
    for part in parts:
        lines = ["" if line.startswith(("%", "!")) else line for line in part.splitlines()]
        try:
            tree = ast.parse("\n".join(lines))
        except SyntaxError:
            continue
        yield from (bare(one) for one in ast.walk(tree) if isinstance(one, ast.FunctionDef))


def test_a_release_can_be_installed(released, tmp_path):
    """As `pip install -e .` does, which `make run` and `make lab` call."""
    program = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    for folder, _ in released.values():
        copy = shutil.copytree(folder, tmp_path / folder.name)  # the build leaves files
        subprocess.run([sys.executable, "-c", program, tmp_path], cwd=copy, check=True, capture_output=True, timeout=120)
        assert list(tmp_path.glob("*.whl"))


def test_the_links_of_a_release_lead_somewhere(released):
    for folder, _ in released.values():
        text = (folder / "README.md").read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
        assert links and all((folder / link).exists() for link in links)
        assert "INSTRUCTORS.md" in text and "(INSTRUCTORS.md)" not in text


def test_a_release_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"has no folder rlhf_lib: make a release in a clone"):
        student_release(tmp_path / "class", root=tmp_path)

    def full(folder, archive):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"cannot write .*class \(.*No space left.*choose another"):
        patch.setattr(release, "pack", full)
        student_release(tmp_path / "class")
    assert list(tmp_path.iterdir()) == []
    assert all(path.exists() for path in student_release(tmp_path / "class"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["class", "class.zip"]


def test_no_notebook_of_a_release_holds_an_answer(released):
    said = {text for name, text in answers() if len(text) > 40}
    assert len(said) > 80
    for folder, _ in released.values():
        paths = sorted((folder / "notebooks").glob("*.ipynb"))
        assert [path.name for path in paths] == [path.name for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
        for path in paths:
            for cell in nbformat.read(path, as_version=4).cells:
                assert not said & {*code_of(cell.source)}, (path.name, cell.id)
                assert "BEGIN SOLUTION" not in cell.source and "HIDDEN TESTS" not in cell.source


def test_the_search_above_finds_an_answer_in_a_learners_own_edition():
    said = {text for name, text in answers() if len(text) > 40}
    found = {
        text
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for cell in nbformat.read(path, as_version=4).cells
        for text in code_of(cell.source)
    }
    assert len(said & found) > 40


def test_no_build_stands_in_the_library(released):
    built = {
        text for name, text in answers() if name in exercises.BUILDS and exercises.BUILDS[name].kept and text.count("\n") >= 8
    }
    assert len(built) >= 9
    for path in (released[True][0] / "rlhf_lib").rglob("*.py"):
        assert not built & {*code_of(path.read_text(encoding="utf-8"))}, path


def test_nothing_of_the_instructors_is_in_it(released):
    for folder, _ in released.values():
        assert {path.name for path in (folder / "solutions").iterdir()} == {"README.md", "my_rlhf.z"}
        names = {path.name for path in folder.rglob("*")}
        assert not names & {"grading", "release.py", "my_rlhf.py", "cache", "__pycache__", ".git"}
        assert (folder / "data" / "checkpoints" / "assistant" / "sft" / "model.safetensors").exists()
        assert (folder / "tests" / "colab.txt").exists()  # make needs it


def test_a_student_who_missed_an_exercise_goes_on_with_the_courses(released, tmp_path):
    """As the first cells of chapters 08 and 11 do. Nobody comes upon the worked answers in them by chance."""
    folder, _ = released[True]
    program = "import torch; from rlhf_lib.exercises import yours; _, price = yours('generate', 'log_reward'); "
    program += "print(price(torch.zeros(1), 'positive'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.stdout == "the course's generate, the course's log_reward\ntensor([-0.6931])\n", done.stderr
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert b"def journey(" not in path.read_bytes() or path.suffix == ".ipynb", path  # to be written, in chapter 09


def test_the_zip_holds_the_folder(released):
    for folder, archive in released.values():
        with zipfile.ZipFile(archive) as packed:
            assert packed.testzip() is None
            inside = {name: packed.read(name) for name in packed.namelist()}
        assert inside == {
            f"{folder.name}/{p.relative_to(folder).as_posix()}": p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }


def test_hints_stay_or_go(released):
    texts = {}
    for hints, (folder, _) in released.items():
        texts[hints] = "".join(
            (folder / "notebooks" / f"{n}.ipynb").read_text("utf-8") for n in ("02_the_transformer", "08_rlhf")
        )
    assert texts[True].count("<summary>Hint") > 20 and "<summary>Hint" not in texts[False]
    for text in texts.values():
        assert not re.search("<summary>(What we found|The worked answer|What it was)", text)
        assert text.count("<details>") == text.count("</details>") > 10  # questions and readings keep theirs


CARD = """Say it.

<details><summary>Hint 1</summary>

Look.

<details><summary>Hint 2</summary>

Look again.

<details><summary>The worked answer</summary>

```python
x
```

</details></details></details>

And then?

<details><summary>Answer</summary>

Yes.

</details>"""


@pytest.mark.parametrize(
    "title, left, gone",
    [
        ("The worked answer", ["Look.", "Look again.", "And then?", "Yes."], ["```"]),
        (r"Hint \d+", ["Say it.", "And then?", "Yes."], ["Look", "```"]),
        ("Answer", ["Look again.", "```", "And then?"], ["Yes."]),
        ("None", ["Look again.", "```", "And then?", "Yes."], []),
    ],
)
def test_a_fold_goes_with_what_stands_in_it(title, left, gone):
    text = without_folds(CARD, title)
    assert all(part in text for part in left) and not any(part in text for part in gone)
    assert text.count("<details>") == text.count("</details>")


def test_a_fold_that_is_not_closed_is_named():
    with pytest.raises(ValueError, match="<details><summary>Hint 1</summary>' is not closed"):
        without_folds("<details><summary>Hint 1</summary>\nLook.", r"Hint \d+")


def test_a_cell_that_was_a_fold_alone_goes():
    found = "<details><summary>What we found</summary>\n\nMuch.\n\n</details>"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in ("Before.", found)])
    assert [cell.source for cell in student_edition(notebook).cells] == ["Before."]


@pytest.mark.parametrize("there", ["class", "class.zip"])
def test_nothing_is_overwritten(tmp_path, there, capsys):
    (tmp_path / there).write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match=f"{there} is there already"):
        student_release(tmp_path / "class")
    assert main(["release", "--out", str(tmp_path / "class")]) == 1
    assert "choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [there]


def test_the_instructors_page_gives_the_hours_of_the_cards():
    spelled = {"an hour": 60, "an hour and a half": 90, "two hours": 120}
    page = (ROOT / "INSTRUCTORS.md").read_text(encoding="utf-8")
    given = dict(re.findall(r"^\| (\d\d) [^|]+\| (\d+) \|", page, re.MULTILINE))
    chapters = sorted((ROOT / "solutions").glob("[01]*.ipynb"))
    assert given.keys() == {path.name[:2] for path in chapters} - {"00"}
    for path in chapters:
        text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
        times = re.findall(r"^Difficulty \S+ · importance \S+ · (.+)$", text, re.MULTILINE)
        ranges = [spelled.get(one) or [int(number) for number in re.findall(r"\d+", one)] for one in times]
        minutes = sum(one if isinstance(one, int) else sum(one) / len(one) for one in ranges)
        if path.name[:2] in given and "report" not in path.name:
            assert int(given[path.name[:2]]) == round(minutes / 60), path.name
