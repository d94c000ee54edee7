import ast
import builtins
import json
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rlhf_lib import course, exercises, labels, notebooks, runs
from rlhf_lib.exercises import NotYet
from rlhf_lib.files import RunError, write_json
from rlhf_lib.hunt.score import ANSWERS, fingerprint

exercises.load()
ROOT = Path(__file__).resolve().parents[1]
WORKED = sorted((ROOT / "solutions").glob("*.ipynb"))
ANSWER = "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"
HINTS = "### Double\n\n<details><summary>Hint 1</summary>\n\nAdd.\n\n<details><summary>Hint 2</summary>\n\n2."
CARD = HINTS + "\n</details></details>"
TEST = "assert double(2) == 4\n### BEGIN HIDDEN TESTS\nassert double(3) == 6\n### END HIDDEN TESTS"


def cell(make, source, name, grade=None):
    made = make(source, id=name)
    if grade is not None:
        made.metadata["nbgrader"] = dict(
            grade=grade,
            grade_id=name,
            locked=grade,
            schema_version=3,
            solution=not grade,
            task=False,
            **({"points": 1} if grade else {}),
        )
    return made


@pytest.fixture
def worked(tmp_path):
    """A folder with one worked notebook."""
    cells = [
        cell(new_markdown_cell, "", "badge"),
        cell(new_code_cell, "#", "setup"),
        cell(new_markdown_cell, CARD, "card"),
        cell(new_code_cell, ANSWER, "double", grade=False),
        cell(new_code_cell, TEST, "check-double", grade=True),
    ]
    cells[3].outputs = [nbformat.v4.new_output("stream", text="4")]
    (tmp_path / "solutions").mkdir()
    nbformat.write(new_notebook(cells=cells), tmp_path / "solutions" / "42_a_chapter.ipynb")
    return tmp_path


def test_the_learner_gets_a_stub_and_neither_answer_nor_hidden_test_nor_output(worked):
    (path,) = notebooks.write_all(worked / "solutions", worked / "notebooks")
    cells = {one.id: one for one in nbformat.read(path, as_version=4).cells}
    assert "return 2 * x" not in cells["double"].source and "raise NotImplementedError()" in cells["double"].source
    assert cells["check-double"].source.strip() == "assert double(2) == 4"
    assert cells["double"].outputs == []


def test_the_last_fold_of_a_card_is_the_worked_answer(worked):
    (path,) = notebooks.write_all(worked / "solutions", worked / "notebooks")
    cells = {one.id: one for one in nbformat.read(path, as_version=4).cells}
    fold = "<details><summary>The worked answer</summary>\n\n```python\ndef double(x):\n    return 2 * x\n```\n\n</details>"
    assert cells["card"].source == f"{HINTS}\n\n{fold}\n</details></details>"
    before = nbformat.read(worked / "solutions" / path.name, as_version=4).cells[2]
    assert before.source == CARD  # in the worked notebook the answer stands below


@pytest.mark.parametrize("grade_id", ["investigation-4-A", "train_bpe"])
def test_an_investigation_and_a_build_have_no_answer_in_their_card(worked, grade_id):
    path = worked / "solutions" / "42_a_chapter.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[3].metadata.nbgrader.grade_id = grade_id
    notebooks.fold_answers(notebook)
    assert notebook.cells[2].source == CARD


def test_a_card_of_several_exercises_has_each_answer_in_the_chain_of_its_hints(worked):
    notebook = nbformat.read(worked / "solutions" / "42_a_chapter.ipynb", as_version=4)
    one, two = (f"<details><summary>Hint 1 on <code>{name}</code></summary>\n\nAsk?" for name in ("double", "half"))
    plain = "<details><summary>Read</summary>\n\nMore.\n\n</details>"
    notebook.cells[2].source = f"### Both\n\n{one}\n\n<details><summary>Hint 2 on <code>double</code></summary>\n\n2.\n\n"
    notebook.cells[2].source += f"</details></details>\n\n{plain}\n\n{two}\n\n</details>"
    half = ANSWER.replace("double", "half").replace("2 * x", "x / 2")
    notebook.cells += [cell(new_code_cell, half, "half", grade=False), cell(new_code_cell, TEST, "check-half", grade=True)]
    assert [(card.id, [one.id for one in answers]) for card, answers in notebooks.cards(notebook.cells)] == [
        ("card", ["double", "half"])
    ]
    notebooks.fold_answers(notebook)
    text = notebook.cells[2].source
    marks = ("Hint 1 on <code>double", "Hint 2 on <code>double", "return 2 * x", "More.", "Hint 1 on <code>half", "return x / 2")
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places) and text.count("The worked answer") == 2
    assert text.count("<details>") == text.count("</details>") == 6 and text.endswith("</details>\n\n</details>")


def test_a_card_with_fewer_chains_of_hints_than_answers_is_named(worked):
    path = worked / "solutions" / "42_a_chapter.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(cell(new_code_cell, ANSWER.replace("double", "half"), "half", grade=False))
    nbformat.write(notebook, path)
    with pytest.raises(ValueError, match=r"42_a_chapter\.ipynb: ValueError: the card card has 1 chains of hints for 2 answers"):
        notebooks.learner_edition(path)


def test_a_card_without_hints_has_one_fold(worked):
    notebook = nbformat.read(worked / "solutions" / "42_a_chapter.ipynb", as_version=4)
    notebook.cells[2].source = "### Double\n"
    notebooks.fold_answers(notebook)
    assert notebook.cells[2].source.startswith("### Double\n\n<details>") and notebook.cells[2].source.count("</details>") == 1


def test_badge_and_first_cell_carry_the_address_of_pyproject(worked):
    url = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    owner_and_name = url.removeprefix("https://github.com/")
    notebooks.write_all(worked / "solutions", worked / "notebooks")
    for folder in ("solutions", "notebooks"):
        cells = {one.id: one.source for one in nbformat.read(worked / folder / "42_a_chapter.ipynb", as_version=4).cells}
        assert f"colab.research.google.com/github/{owner_and_name}/blob/main/notebooks/42_a_chapter.ipynb" in cells["badge"]
        assert f"git clone --quiet --depth 1 {url} " in cells["setup"]


def test_a_stamped_notebook_is_not_written_again(worked):
    notebooks.write_all(worked / "solutions", worked / "notebooks")
    path = worked / "solutions" / "42_a_chapter.ipynb"
    before = path.stat().st_mtime_ns
    notebooks.write_all(worked / "solutions", worked / "notebooks")
    assert path.stat().st_mtime_ns == before


def test_what_we_found_shows_our_figure_of_that_investigation():
    shown = 0
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        ours, found = {}, []
        for cell in notebooks.read(ROOT / "solutions" / path.name).cells:
            if cell.id.startswith("investigation-") and cell.cell_type == "code":
                pictures = [one["data"]["image/png"] for one in cell.outputs if "image/png" in one.get("data", {})]
                if pictures:
                    found.append(pictures[-1])
        for cell in notebooks.read(path).cells:
            if cell.get("attachments"):
                ours[cell.id] = cell.attachments["ours.png"]["image/png"]
                assert cell.source.count("![Our figure](attachment:ours.png)") == 1 and "<summary>What we found" in cell.source
        assert [*ours.values()] == found, path.name
        shown += len(ours)
    assert shown == len(exercises.INVESTIGATIONS)


def test_a_broken_rule_of_nbgrader_names_the_notebook(worked):
    path = worked / "solutions" / "42_a_chapter.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[3].source = "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x"
    nbformat.write(notebook, path)
    with pytest.raises(ValueError, match=r"42_a_chapter\.ipynb: RuntimeError"):
        notebooks.write_all(worked / "solutions", worked / "notebooks")


def test_the_first_cell_does_nothing_outside_colab():
    source = notebooks.SETUP.format(url="https://example.org/x/y", folder="y")
    plain = "\n".join(
        line.replace(line.strip(), "pass") if line.strip()[:1] in "!%" and line.strip() else line for line in source.splitlines()
    )
    tree = ast.parse(plain)
    assert all(isinstance(one, (ast.Import, ast.Assign, ast.If)) for one in tree.body)
    (condition,) = [one for one in tree.body if isinstance(one, ast.If)]
    assert "COLAB_RELEASE_TAG" in ast.unparse(condition.test)


# ----------------------------------------------------------------------------------------- the repository's own notebooks


@pytest.mark.parametrize("path", WORKED, ids=lambda path: path.name)
def test_the_editions_are_in_step(path):
    fresh = nbformat.writes(notebooks.learner_edition(path)) + "\n"
    assert (ROOT / "notebooks" / path.name).read_text(encoding="utf-8") == fresh, "run make notebooks"


@pytest.mark.parametrize("path", WORKED, ids=lambda path: path.name)
def test_a_worked_notebook_is_executed_stamped_small_and_without_errors(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000
    assert not notebooks.stamp(notebook, path.name), "run make notebooks"
    ids = [one.id for one in notebook.cells]
    assert len(set(ids)) == len(ids)
    if not path.name.startswith("00"):
        assert {"badge", "setup"} <= set(ids)
    counts = [one.execution_count for one in notebook.cells if one.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # nbval compares nothing in a cell that was never run
    for one in notebook.cells:
        assert not any(output.output_type == "error" for output in one.get("outputs", [])), one.id


@pytest.mark.parametrize("path", WORKED, ids=lambda path: path.name)
def test_no_stored_output_holds_a_path_of_a_machine(path):
    for one in nbformat.read(path, as_version=4).cells:
        printed = "\n".join(
            str(text)
            for output in one.get("outputs", [])
            for text in (output.get("text", ""), *(said for kind, said in output.get("data", {}).items() if "image" not in kind))
        )
        assert not re.findall(r"(?<![\w.])(?:/(?:work|root|home|tmp|Users|content|opt|var|mnt)/|[A-Z]:\\)\S*", printed), one.id


def test_every_case_of_the_hunt_is_guessed_where_it_is_worked_and_asked_in_the_learners_edition():
    worked, asked = (
        [
            one.source.split("  #")[0]
            for one in nbformat.read(ROOT / folder / "13_the_bug_hunt.ipynb", as_version=4).cells
            if one.id.startswith("guess-")
        ]
        for folder in ("solutions", "notebooks")
    )
    assert asked == [f'hunt.guess("{case}", "?")' for case in sorted(ANSWERS)]
    for case, guess in zip(sorted(ANSWERS), worked):
        named = re.findall(r'"([\w-]+)"', guess)
        assert named[0] == case and {fingerprint(case, cause) for cause in named[1:]} == ANSWERS[case]


def test_no_grade_id_is_used_twice_and_every_notebook_has_its_learner_edition():
    grades = []
    for path in WORKED:
        notebook = nbformat.read(path, as_version=4)
        grades += [one.metadata.nbgrader.grade_id for one in notebook.cells if "nbgrader" in one.metadata]
    assert len(set(grades)) == len(grades)
    assert {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} == {path.name for path in WORKED}


# ----------------------------------------------------------------------------------------- what a learner meets

CHAPTERS = [path for path in WORKED if not path.name.startswith("00") and "report" not in path.name]


def part(cell):
    """What nbgrader takes a cell for: answer, check, investigation (which nobody checks), or nothing of its own."""
    grading = cell.metadata.get("nbgrader", {})
    if grading.get("grade_id", "").startswith("investigation-"):
        return "investigation"
    return "answer" if grading.get("solution") else "check" if grading.get("grade") else ""


def python(cell):
    """A code cell's source without IPython's magics and shell lines."""
    lines = cell.source.splitlines()
    return "\n".join(
        f"{line[: len(line) - len(line.lstrip())]}pass" if line.strip()[:1] in ("%", "!") else line for line in lines
    )


def names_used(source):
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def names_made(source):
    """Functions and classes that a cell defines at its top."""
    return {node.name for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_an_unsolved_exercise_fails_at_its_own_check_and_says_what_to_do(path, tmp_path, monkeypatch):
    """Run a learner's cells as far as exercises go: imports, stubs, checks."""
    monkeypatch.chdir(tmp_path)
    cells = [one for one in nbformat.read(ROOT / "notebooks" / path.name, as_version=4).cells if one.cell_type == "code"]
    space, checks = {"__name__": "learner"}, 0
    exec(python(next(one for one in cells if one.id == "imports")), space)
    for one in cells:
        if part(one) == "answer":
            exec(one.source, space)
        if part(one) == "check":
            name = one.metadata.nbgrader.grade_id.removeprefix("check-")
            with pytest.raises(NotYet, match=rf"^[\d.]+ {name}: not written yet. Write it in the cell above"):
                exec(one.source, space)
            checks += 1
    assert checks >= 5


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_no_other_cell_needs_a_learners_answer(path):
    cells = [one for one in nbformat.read(path, as_version=4).cells if one.cell_type == "code"]
    answers = set().union(*(names_made(one.source) for one in cells if part(one) == "answer"))
    assert answers and not answers & set(dir(builtins))
    for one in cells:
        if not part(one):
            assert not names_used(python(one)) & answers, one.id


def chains(card, answers):
    """The hints of a card as [(exercise, its hints' texts)], each chain opened one by one."""
    found = []
    for mark in re.finditer(
        r"<details><summary>Hint (\d)(?: on <code>(\w+)</code>)?</summary>(.*?)(?=<details><summary>Hint|$)", card, re.DOTALL
    ):
        number, name, text = mark.groups()
        name = name or answers[0].metadata.nbgrader.grade_id
        if number == "1":
            found.append((name, []))
        found[-1][1].append(text)
        assert (found[-1][0], len(found[-1][1])) == (name, int(number))
    return found


def in_words(numbers):
    """ "2.5 and 2.6", "1.1 to 1.3"."""
    return f"{numbers[0]} {'and' if len(numbers) == 2 else 'to'} {numbers[-1]}" if len(numbers) > 1 else numbers[0]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_a_card_has_its_difficulty_importance_time_and_hints_that_open_one_by_one(path):
    cells = nbformat.read(path, as_version=4).cells
    for card, answers in notebooks.cards(cells):
        names = [one.metadata.nbgrader.grade_id for one in answers]
        kind = "Build it|Mend it" if names[0] in exercises.BUILDS else "Exercises" if len(names) > 1 else "Exercise"
        numbers = re.escape(in_words([exercises.find(name).number for name in names]))
        line = r"\n+Difficulty [●○]{5} · importance [●○]{5} · [\d to]+ minutes"
        assert re.search(rf"^### ({kind}) {numbers} · .+{line}", card.source, re.MULTILINE), card.id
        hints = chains(card.source, answers)
        assert [name for name, _ in hints] == names, card.id
        for _, texts in hints:  # each inside the one before
            assert re.search(r"</details>\s*" * len(texts), texts[-1]), card.id
        assert len(notebooks.chain_ends(card.source)) == len(names), card.id
        assert re.search(r"</details>\s*" * len(hints[-1][1]) + "$", card.source), card.id
        place = next(place for place, one in enumerate(cells) if one.id == card.id)
        below = cells[place + 1 : place + 1 + 2 * len(names)]
        assert [one.id for one in below] == [which for name in names for which in (name, f"check-{name}")], card.id
        assert [part(one) for one in below] == ["answer", "check"] * len(names), card.id


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_the_first_hint_of_every_card_asks(path):
    """A question outside of code; what it leads to is told in a later hint."""
    for card, answers in notebooks.cards(nbformat.read(path, as_version=4).cells):
        for name, texts in chains(card.source, answers):
            assert "?" in re.sub("`[^`]*`", "", texts[0]), name


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_the_innermost_fold_of_every_card_is_the_answer_or_says_where_it_stands(path):
    cells = nbformat.read(ROOT / "notebooks" / path.name, as_version=4).cells
    worked = {one.id: one.source for one in nbformat.read(path, as_version=4).cells}
    for card, answers in notebooks.cards(cells):
        assert card.source.count("<details>") == card.source.count("</details>"), card.id
        folds = re.findall(
            r"<details><summary>([^<]*)</summary>((?:(?!<details>).)*?)</details>\s*</details>", card.source, re.DOTALL
        )
        assert len(folds) == len(answers), card.id  # what is folded in a fold and holds none
        for (summary, fold), one in zip(folds, answers):
            if one.metadata.nbgrader.grade_id in exercises.BUILDS:
                assert f"solutions/{path.name}" in fold, one.id
            else:
                code = re.search(r"```python\n(.*)\n```", fold, re.DOTALL).group(1)
                space = ast.parse(code)  # whole functions
                assert summary == "The worked answer" and "SOLUTION" not in code, one.id
                kept = [line for line in worked[one.id].splitlines() if "SOLUTION" not in line]
                assert code.splitlines() == kept and space.body, one.id


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_an_investigation_asks_first_notes_a_finding_and_shows_ours_folded(path):
    """In the learner's edition its cell stops with NotImplementedError, and the notebook goes on behind it."""
    cells = nbformat.read(path, as_version=4).cells
    for place, one in enumerate(cells):
        if part(one) == "investigation":
            number = one.metadata.nbgrader.grade_id.removeprefix("investigation-").replace("-", ".")
            card = cells[place - 1].source
            assert re.search(rf"^### Investigation {re.escape(number)} · .+", card, re.MULTILINE), one.id
            assert "prediction" in card.lower() and exercises.INVESTIGATIONS[number].title in card, one.id
            assert f'done("{number}", ' in one.source and "figure=" in one.source, one.id
            assert "raises-exception" in one.metadata.get("tags", []), one.id
            assert cells[place + 1].source.startswith("<details><summary>What we found</summary>"), one.id


def test_every_build_and_investigation_has_its_cell():
    names = {
        one.metadata.nbgrader.grade_id
        for path in WORKED
        for one in nbformat.read(path, as_version=4).cells
        if "nbgrader" in one.metadata
    }
    assert {*exercises.EXERCISES, *exercises.BUILDS} <= names
    assert {f"investigation-{number.replace('.', '-')}" for number in exercises.INVESTIGATIONS} <= names


def test_the_courses_own_file_is_in_step_and_leans_on_nothing_of_the_library():
    text = notebooks.worked_file()
    assert (ROOT / "solutions" / "my_rlhf.py").read_text(encoding="utf-8") == text, "run make notebooks"
    code = text.split("# ---- the end")[0]
    assert "rlhf_lib" not in code


def test_a_worked_answer_that_leans_on_its_notebook_is_refused(worked, monkeypatch):
    path = worked / "solutions" / "42_a_chapter.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[3].source = "def win_rate(x):\n    return factor * x"
    notebook.cells[3].metadata.nbgrader.grade_id = "win_rate"
    nbformat.write(notebook, path)
    with pytest.raises(RunError, match="the worked answer win_rate cannot stand alone: it uses `factor`"):
        notebooks.worked_file(worked / "solutions")


def test_the_command_writes_everything_only_when_nothing_else_is_asked_for(worked, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "write_all", lambda: pytest.fail("everything was written"))
    for words in (["--help"], ["--Copy", "mine"], ["--copy"]):
        with pytest.raises(SystemExit):
            notebooks.main(words)
    (worked / "file").write_text("")
    capsys.readouterr()
    assert notebooks.main(["--copy", str(worked / "file" / "mine")]) == 1
    assert capsys.readouterr().err.startswith("error: cannot write")
    assert notebooks.main(["--copy", str(worked / "mine")]) == 0 and "Copied to" in capsys.readouterr().out


def test_a_learners_copy_is_made_once_and_never_overwritten(worked):
    notebooks.write_all(worked / "solutions", worked / "notebooks")
    mine, theirs = worked / "mine" / "42_a_chapter.ipynb", worked / "notebooks" / "42_a_chapter.ipynb"
    (line,) = notebooks.hand_out(worked / "mine", worked / "notebooks")
    assert "Copied to" in line and "42_a_chapter.ipynb" in line and mine.read_bytes() == theirs.read_bytes()
    mine.write_text("my own work")
    assert notebooks.hand_out(worked / "mine", worked / "notebooks") == []
    theirs.write_text("a newer edition")
    for _ in range(2):  # it is said again, until the learner has taken it
        (line,) = notebooks.hand_out(worked / "mine", worked / "notebooks")
        assert "42_a_chapter.ipynb is newer than your copy" in line and "another name" in line
    assert mine.read_text() == "my own work"
    mine.rename(worked / "mine" / "old.ipynb")
    (line,) = notebooks.hand_out(worked / "mine", worked / "notebooks")
    assert "Copied to" in line and mine.read_text() == "a newer edition"
    assert (worked / "mine" / "old.ipynb").read_text() == "my own work"


@pytest.mark.parametrize("record", ["", "[]", "{"])
def test_a_damaged_record_of_editions_overwrites_nothing(worked, record):
    notebooks.write_all(worked / "solutions", worked / "notebooks")
    notebooks.hand_out(worked / "mine", worked / "notebooks")
    mine = worked / "mine" / "42_a_chapter.ipynb"
    mine.write_text("my own work")
    (worked / "mine" / notebooks.EDITIONS).write_text(record)
    assert notebooks.hand_out(worked / "mine", worked / "notebooks") == []
    assert mine.read_text() == "my own work"


@pytest.mark.parametrize("path", WORKED, ids=lambda path: path.name)
def test_a_diagram_is_no_wider_than_a_small_window(path):
    """JupyterLab beside its file browser shows 84 characters and more at 1,250 pixels; a longer line wraps and breaks the
    picture. A command, which begins with !, may wrap.
    """
    for one in nbformat.read(path, as_version=4).cells:
        if one.cell_type == "markdown":
            fenced = "".join(re.findall(r"^```\w*\n(.*?)^```", one.source, re.MULTILINE | re.DOTALL)).splitlines()
            indented = re.findall(r"^    (.+)", one.source, re.MULTILINE)
            wide = [line for line in fenced + indented if len(line) > 84 and not line.startswith("!")]
            assert not wide, (one.id, wide)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", [one for one in CHAPTERS if one.name[:2] in ("00", "05")], ids=lambda path: path.name)
def test_nbgrader_accepts_the_answers(path, tmp_path, monkeypatch):
    """`nbgrader validate` on a chapter's imports, answers and checks, which nbval runs in every chapter."""
    monkeypatch.setenv("RLHF_PRESET", "smoke")  # long probes are left out
    from nbgrader.validator import Validator
    from traitlets.config import Config

    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [
        one for one in notebook.cells if part(one) in ("answer", "check") or one.id == "imports" or one.id.endswith("-pieces")
    ]
    nbformat.write(notebook, tmp_path / path.name)
    patient = Config({"ExecutePreprocessor": {"timeout": 250}, "Execute": {"timeout": 250}})  # a build's probes take their time
    found = Validator(config=patient).validate(str(tmp_path / path.name))
    assert not found.get("failed") and not found.get("changed"), found


def test_a_notebook_that_colab_saved_gives_the_same_edition(worked):
    """Colab writes version 4.0, in which cells have no ids, keeps these in the metadata, and adds notes of its own."""
    path = worked / "solutions" / "42_a_chapter.ipynb"
    before = notebooks.write_all(worked / "solutions", worked / "before")[0].read_bytes()
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved["nbformat_minor"] = 0
    saved["metadata"] |= {"colab": {"provenance": [], "gpuType": "T4"}, "accelerator": "GPU"}
    for one in saved["cells"]:
        one["metadata"] |= {"id": one.pop("id"), "outputId": "3f2a", "colab": {"base_uri": "https://localhost:8080/"}}
    path.write_text(json.dumps(saved), encoding="utf-8")
    assert notebooks.write_all(worked / "solutions", worked / "after")[0].read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.encode()[:-30],
        lambda text: b"\xff" + text.encode(),
        lambda text: b"[1]",
        lambda text: b"7",
        lambda text: b"[" * 5000,
        lambda text: text.replace('"nbformat": 4', '"nbformat": 1').encode(),
        lambda text: text.replace('"nbformat": 4', '"nbformat": {}').encode(),
        lambda text: text.replace('"nbformat": 4', '"nbformat": 99').encode(),
        lambda text: text.replace('"nbformat": 4', '"nbformat": null').encode(),
        lambda text: json.dumps({**json.loads(text), "cells": 7}).encode(),
        lambda text: json.dumps({**json.loads(text), "cells": [7]}).encode(),
        lambda text: json.dumps({**json.loads(text), "metadata": []}).encode(),
    ],
)
def test_a_damaged_notebook_is_named_in_one_sentence(worked, change):
    path = worked / "solutions" / "42_a_chapter.ipynb"
    path.write_bytes(change(path.read_text(encoding="utf-8")))
    with pytest.raises(RunError, match=rf"^{path} is no notebook that can be read \(.+\): take the good one back$"):
        notebooks.write_all(worked / "solutions", worked / "notebooks")
    assert not (worked / "notebooks").exists()


def test_the_report_gathers_what_a_learners_folder_holds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(course, "HOME", tmp_path)
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    sources = {cell.id: cell.source for cell in nbformat.read(ROOT / "solutions" / "09_report.ipynb", as_version=4).cells}
    shown, space = [], {}
    exec(sources["imports"].replace("%matplotlib inline", ""), space)
    space.update(display=lambda one: shown.append(getattr(one, "data", one)))

    def run(name):
        shown.clear()
        exec(sources[name], space)
        return capsys.readouterr().out, [*shown]

    for name, said in (
        ("whole", "has not run to its end"),
        ("labels", "No labels of your own"),
        ("pushed", "No run is kept in far/"),
    ):
        out, tables = run(name)
        assert said in out and not tables
    made = {"accuracy": 0.75, "held_back": 100, "constant": 0.61, "bits_per_character": 2.914, "minutes": 2.34}
    made |= {"labels": 4321, "own_labels": 40, "reward": [0.1, 0.4, 0.7], "kl": [0.0, 3.0, 6.21]}
    write_json(tmp_path / course.WHOLE, made)
    table = run("whole")[1][0]
    for value in (
        "75%, from 66% to 82%",
        "61%",
        "2.91",
        "0.10 to 0.70",
        "6.2",
        "4,321, 40",
        "2.3",
        "of 100 clear passages",
    ):
        assert value in table  # Wilson's interval of 75 of 100 is 0.657 to 0.825
    rows = [("a", "positive", "ann"), ("b", "neutral", "ann"), ("a", "positive", "ann, again"), ("b", "negative", "ann, again")]
    for text, label, reader in rows:
        labels.append(tmp_path / course.MY_LABELS, labels.Label(text, label, reader, (text, "base-1")))
    out = run("labels")[0]
    assert "2 passages labelled" in out and "ann read 2 of them twice: the same label on 1, kappa 0.33" in out
    log = runs.Metrics(tmp_path / "far")
    for step, (kl, gold) in enumerate(((0.0, 0.1), (4.0, 0.5), (9.0, 0.3))):
        log.log("policy", step, kl=kl, gold=gold, reward_normalised=kl / 9, distinct_2=0.9, separators=1.0)
    out, (figure,) = run("pushed")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["0", "1", "2"] and "<- gold is highest" in out.splitlines()[2]
    assert figure.axes[0].get_title() == "Reward"
