"""The learner's edition: `notebooks/` out of the worked notebooks in `solutions/`, by nbgrader's own preprocessors, with each
exercise's answer in its card's last fold, and our figure of each investigation in the fold that says what we found; and
`solutions/my_rlhf.py`, the file that the worked answers make.

python -m rlhf_lib.notebooks                write notebooks/ and solutions/my_rlhf.py (make notebooks)
python -m rlhf_lib.notebooks --copy FOLDER  copy notebooks/ to a learner's folder (make lab)

The repository's address stands in pyproject.toml alone. From there it is stamped into every worked notebook's badge (the cell
`badge`) and into its first code cell (the cell `setup`).
"""

import argparse
import ast
import hashlib
import json
import linecache
import re
import sys
import tempfile
import tomllib
import types
from pathlib import Path

import nbformat

from rlhf_lib.files import RunError, one_line, write_atomic

ROOT = Path(__file__).resolve().parents[1]

EDITIONS = ".editions.json"  # in the learner's folder: which edition of a notebook was copied

FOLD = "\n\n<details><summary>The worked answer</summary>\n\n```python\n{answer}\n```\n\n</details>"

FOUND = "<details><summary>What we found[^<]*</summary>"

BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}/blob/main/notebooks/{name})"

SETUP = """\
# On Colab: fetch the course and install what Colab lacks (its own torch stays). Anywhere else this cell does nothing.
import os

keep_on_drive = False  # @param {{type:"boolean"}} ticked: what you make is kept on your Drive
if "COLAB_RELEASE_TAG" in os.environ:
    if keep_on_drive:
        from google.colab import drive

        drive.mount("/content/drive")
        os.environ["RLHF_HOME"] = "/content/drive/MyDrive/{folder}"
    if not os.path.exists("/content/{folder}"):
        !git clone --quiet --depth 1 {url} /content/{folder}
    %pip install --quiet --editable /content/{folder}
    import sys

    sys.path.insert(0, "/content/{folder}")
    %cd -q /content/{folder}/notebooks"""


def address():
    """The repository's public address, from pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def read(path):
    """The notebook at `path`. One that Colab saved gets its cells' ids back, which Colab keeps in their metadata.

    Raises:
        RunError: it is no notebook, or a damaged one.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        for place, cell in enumerate(notebook.cells):
            kept = str(cell.metadata.pop("id", f"cell-{place}"))
            for name in ("outputId", "colab"):
                cell.metadata.pop(name, None)
            cell.setdefault("id", kept if re.fullmatch(r"[\w-]{1,64}", kept, re.ASCII) else f"cell-{place}")
        for name in ("colab", "accelerator"):
            notebook.metadata.pop(name, None)
        notebook.nbformat_minor = max(5, notebook.nbformat_minor)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat reads older forms, and fails in many ways where they are none
        raise RunError(f"{path} is no notebook that can be read ({one_line(error)}): take the good one back") from None
    return notebook


def stamp(notebook, name):
    """Put badge and first code cell into a worked notebook; returns whether that changed anything."""
    url = address()
    colab = url.replace("https://github.com/", "https://colab.research.google.com/github/")
    fresh = {"badge": BADGE.format(colab=colab, name=name), "setup": SETUP.format(url=url, folder=url.rsplit("/", 1)[1])}
    old = [cell for cell in notebook.cells if cell.id in fresh and cell.source != fresh[cell.id]]
    for cell in old:
        cell.source = fresh[cell.id]
    return bool(old)


def fold_answers(notebook):
    """Put each worked answer into its card, folded, inside the last hint for it.

    A card of several exercises has a chain of hints for each of them, in the order of the answers below the card. A Build it
    has no answer there: reading one is a step of its own, and the card's last hint says where it stands.
    """
    from rlhf_lib import exercises

    exercises.load()
    for card, answers in cards(notebook.cells):
        answers = [cell.source for cell in answers if cell.metadata.nbgrader.grade_id not in exercises.BUILDS]
        ends = (chain_ends(card.source) or [len(card.source.rstrip())]) if answers else []
        if len(ends) != len(answers):
            raise ValueError(f"the card {card.id} has {len(ends)} chains of hints for {len(answers)} answers")
        for source, end in zip(reversed(answers), reversed(ends)):
            answer = "\n".join(line for line in source.splitlines() if not line.strip().startswith("### "))
            card.source = card.source[:end] + FOLD.format(answer=answer) + card.source[end:].rstrip()


def cards(cells):
    """Pairs of a text and the answers that stand right below it, checks between them; investigations are left out."""
    card, answers = None, []
    for cell in [*cells, None]:
        grading = cell.metadata.get("nbgrader", {}) if cell else {}
        if grading.get("solution") and not grading["grade_id"].startswith("investigation-"):
            answers.append(cell)
        elif not grading.get("grade"):
            if answers:
                yield card, answers
            card, answers = cell, []


def chain_ends(text):
    """Where each chain of hints ends: before the `</details>` that close all of it at once."""
    ends, depth, hints = [], 0, False
    for mark in re.finditer("<(/?)details>", text):
        if depth == 0:
            hints = text.startswith("<summary>Hint 1", mark.end())
        depth += -1 if mark.group(1) else 1
        if depth == 0 and hints:
            ends.append(re.search(r"(\s*</details>)+$", text[: mark.end()]).start())
    return ends


def show_figures(notebook):
    """Put our figure of each investigation into the fold that says what we found: the learner's edition has no outputs."""
    picture = None
    for cell in notebook.cells:
        for output in cell.get("outputs", []) if cell.id.startswith("investigation-") else ():
            picture = output.get("data", {}).get("image/png", picture)
        if (fold := re.search(FOUND, cell.source)) and picture:
            cell.source = f"{cell.source[: fold.end()]}\n\n![Our figure](attachment:ours.png){cell.source[fold.end() :]}"
            cell.attachments, picture = {"ours.png": {"image/png": picture}}, None


def hide_guesses(notebook):
    """Put a question mark in the place of each worked guess of the bug hunt."""
    for cell in notebook.cells:
        cell.source = re.sub(r'^hunt\.guess\(("\d\d"), .*?\)', r'hunt.guess(\1, "?")', cell.source)


def learner_edition(path):
    """The worked notebook at `path` as a learner gets it: answers folded, and guesses, hidden tests and outputs taken out.

    Raises:
        ImportError: nbgrader is not installed.
        ValueError: the notebook breaks one of nbgrader's rules, such as a duplicate grade_id.
    """
    from nbgrader import preprocessors as steps

    notebook, resources = read(path), {}
    try:
        fold_answers(notebook)
        show_figures(notebook)
        hide_guesses(notebook)
        for step in (
            steps.LockCells, steps.ClearSolutions, steps.ClearOutput, steps.CheckCellMetadata,
            steps.ClearHiddenTests, steps.ClearMarkScheme, steps.ComputeChecksums,
        ):  # fmt: skip
            notebook, resources = step().preprocess(notebook, resources)
    except Exception as error:  # nbgrader has an exception class for every rule
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    return notebook


def worked_file(source=ROOT / "solutions"):
    """The text of `my_rlhf.py` as the worked answers of the notebooks in `source` make it: the course's own.

    Raises:
        RunError: an answer cannot stand alone; the message says which and why.
    """
    from rlhf_lib import exercises

    exercises.load()
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / exercises.FILE
        for path in sorted(Path(source).glob("*.ipynb")):
            scene = types.ModuleType(path.stem)  # what the learner's notebook knows: its imports, and the answers so far
            for cell in read(path).cells:
                name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
                if name in exercises.BUILDS and not exercises.BUILDS[name].kept:
                    continue
                answer = name in exercises.EXERCISES or name in exercises.BUILDS
                if cell.cell_type != "code" or not (answer or cell.id == "imports"):
                    continue
                run_cell(cell.source, f"<{path.name}, {cell.id}>", vars(scene))
                for one in () if answer else {*exercises.EXERCISES, *exercises.BUILDS} & vars(scene).keys():
                    del vars(scene)[one]  # the library's; the notebook takes the learner's with `yours` before the answer
                fault = exercises.keep(name, vars(scene)[name], kept, again=False) if answer else ""
                if fault:
                    raise RunError(f"{path}: the worked answer {name} cannot stand alone: {fault}")
        return kept.read_text(encoding="utf-8")


def run_cell(source, name, namespace):
    """Run a cell's import statements and definitions, so that their source is found as in a notebook."""
    tree = ast.parse("\n".join("" if line.startswith(("%", "!")) else line for line in source.splitlines()))
    tree.body = [one for one in tree.body if isinstance(one, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))]
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(tree, name, "exec"), namespace)


def write_all(source=ROOT / "solutions", target=ROOT / "notebooks"):
    """Stamp every notebook in `source`, and write its learner's edition to `target`; returns the paths written."""
    written = []
    for path in sorted(Path(source).glob("*.ipynb")):
        notebook = read(path)
        if stamp(notebook, path.name):
            write_atomic(path, (nbformat.writes(notebook) + "\n").encode())
        text = nbformat.writes(learner_edition(path)) + "\n"
        write_atomic(Path(target) / path.name, text.encode())
        written.append(Path(target) / path.name)
    return written


def hand_out(target, source=ROOT / "notebooks"):
    """Copy the learner's notebooks to `target`, a folder of the learner's own, once; nothing in it is ever overwritten.

    Returns:
        Lines to show: what was copied, and which chapters are newer in `source` than the copy was.
    """
    source, target = Path(source), Path(target)
    record = target / EDITIONS
    try:
        editions = json.loads(record.read_text(encoding="utf-8"))  # file name -> fingerprint of the edition that was copied
        editions = {str(name): str(one) for name, one in editions.items()}
    except (OSError, ValueError, AttributeError):
        editions = {}
    copied, newer = [], []
    for path in sorted(source.glob("*.ipynb")):
        content = path.read_bytes()
        edition = hashlib.sha256(content).hexdigest()
        if not (target / path.name).exists():
            write_atomic(target / path.name, content)
            editions[path.name] = edition
            copied.append(path.name)
        elif editions.get(path.name, edition) != edition:
            newer.append(path.name)
    if copied:
        write_atomic(record, json.dumps(editions, indent=1).encode())
    lines = [f"Copied to {target}: {', '.join(copied)}."] if copied else []
    how = "To take the new one, give your copy another name and start again"
    return lines + [f"{name} is newer than your copy in {target}. {how}." for name in newer]


def main(arguments=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_lib.notebooks", description="Write notebooks/ and solutions/my_rlhf.py."
    )
    parser.add_argument("--copy", metavar="FOLDER", help="instead, copy notebooks/ to a learner's folder, overwriting nothing")
    options = parser.parse_args(arguments)
    try:
        if options.copy is not None:
            print(*hand_out(options.copy), sep="\n")
            return 0
        for written in write_all():
            print(f"wrote {written.relative_to(ROOT)}")
        write_atomic(ROOT / "solutions" / "my_rlhf.py", worked_file().encode())
        print("wrote solutions/my_rlhf.py")
    except (RunError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
