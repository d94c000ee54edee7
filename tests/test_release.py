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
            f"{folder.name}/{p.relative_to(folder).as_posix()}": p.read_bytes()
            for p in folder.rglob("*")
            if p.is_file() and "__pycache__" not in p.parts  # other tests have run Python in the folder
        }


def test_what_we_found_goes_with_its_figure(released):
    for folder, _ in released.values():
        for path in (folder / "notebooks").glob("*.ipynb"):
            assert '"ours.png"' not in path.read_text(encoding="utf-8")


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
        (r"Hint \d+[^\n]*?", ["Say it.", "And then?", "Yes."], ["Look", "```"]),
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


HEADING = r"^### (Exercises?|Build it|Mend it|Investigation) (\d+\.\w+)(?: (?:and|to) \d+\.\d+)? · .+$"
MINUTES = r"\n+Difficulty (●+○*) · importance (●+○*) · (\d+)(?: to (\d+))? minutes$"
SPELLED = dict(zip(("half an", "two", "four", "five", "six", "seven", "eight", "nine", "ten"), (0.5, 2, *range(4, 11))))


def texts_of(chapter):
    return {cell.id: cell.source for cell in read(chapter).cells if cell.cell_type == "markdown"}


def time_of(chapter):
    """The hours that its first text promises, as (least, most)."""
    least, most = re.search(r"\bTime\W+(half an|[a-z]+)(?: to ([a-z]+))? hours?", texts_of(chapter)["intro"]).groups()
    return SPELLED[least], SPELLED[most or least]


def span(hours):
    least, *most = (float(number.replace("½", "0.5")) for number in hours.split(" to "))
    return least, *(most or [least])


def test_every_card_has_its_difficulty_importance_and_minutes():
    for path in (ROOT / "solutions").glob("[01]*.ipynb"):
        text = "\n\n".join(texts_of(path).values())
        headed = re.findall(HEADING + MINUTES, text, re.MULTILINE)
        every = re.findall(HEADING, text, re.MULTILINE)
        assert [card[:2] for card in headed] == every, path.name
        assert all(len(difficulty) == len(importance) == 5 for _, _, difficulty, importance, *_ in headed), path.name


def test_the_map_the_chapters_and_the_instructors_page_give_the_same_hours():
    """No fewer than the cards' minutes, and up to an hour and a half more; in 09 an hour for the blind rating too."""
    report = ROOT / "solutions" / "09_report.ipynb"
    chapters = {path.name[:2]: path for path in (ROOT / "solutions").glob("[01]*.ipynb") if path != report}
    overview = texts_of(chapters["00"])["map"]
    mapped = {number: span(hours) for number, hours in re.findall(r"^\| (\d\d) \|.+\| ([^|]+) \|$", overview, re.MULTILINE)}
    page = (ROOT / "INSTRUCTORS.md").read_text(encoding="utf-8")
    given = {number: span(hours) for number, hours in re.findall(r"^\| (\d\d) [^|]+\| ([^|]+) \|", page, re.MULTILINE)}
    assert mapped.keys() == chapters.keys() and given == {number: its for number, its in mapped.items() if number != "00"}
    for number, path in chapters.items():
        promised = time_of(path)
        cards = re.findall(HEADING + MINUTES, "\n\n".join(texts_of(path).values()), re.MULTILINE)
        for place, bound in enumerate(promised):
            hours = sum(int(card[4 + place] or card[4]) for card in cards) / 60
            assert hours <= bound <= hours + 1.5 + (number == "09"), (path.name, hours, bound)
            assert mapped[number][place] == bound + (number == "09") * time_of(report)[place], path.name
    assert [round(sum(its[place] for its in mapped.values()), -1) for place in (0, 1)] == [80, 90]
    assert "Eighty to ninety hours in all" in overview


def test_without_the_stand_ins_nothing_is_written(tmp_path):
    for name in ("rlhf_lib", "data", "notebooks", "solutions"):
        (tmp_path / "root" / name).mkdir(parents=True)
    with pytest.raises(RunError, match=r"my_rlhf\.py is missing, which stands in .*: run make notebooks"):
        student_release(tmp_path / "out", root=tmp_path / "root")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
