"""What a class gets: everything that a learner needs, and nothing that gives answers away beyond what the checks need.

python -m rlhf_lib release --out DIR [--without-hints]   (make student-release)
"""

import os
import re
import shutil
import zipfile
import zlib
from pathlib import Path

import nbformat

from rlhf_lib.exercises.keep import FILE, PACKED
from rlhf_lib.files import RunError, one_line, write_atomic
from rlhf_lib.notebooks import ROOT

FILES = (
    "README.md",
    "LICENSE",
    "SECURITY.md",
    "Makefile",
    "pyproject.toml",
    "constraints.txt",
    "environment.yml",
    "tests/colab.txt",
)
FOLDERS = ("rlhf_lib", "data")
LEFT_OUT = {"__pycache__", "cache", "grading", "release.py", ".ipynb_checkpoints"}  # two of them the instructor's alone
WITHHELD = """The worked notebooks are with your instructor. my_rlhf.z has, packed, the functions that stand in for what you have
not written yet.
"""

# A fold is closed where the line says so; folds stand in one another, the worked answer in the last hint.
OPEN, CLOSE = "<details><summary>", "</details>"


def without_folds(text, title):
    """`text` without the folds whose summary fits the pattern `title`, and without what stands in them."""
    kept, rest = "", text
    while found := re.search(rf"\n*{OPEN}{title}</summary>", rest):
        depth, end = 0, found.start()
        for mark in re.finditer(f"{OPEN}|{CLOSE}", rest[found.start() :]):
            depth += 1 if mark.group() == OPEN else -1
            if depth == 0:
                end = found.start() + mark.end()
                break
        else:
            raise ValueError(f"a fold {found.group().strip()!r} is not closed")
        kept, rest = kept + rest[: found.start()], rest[end:]
    return kept + rest


def student_edition(notebook, hints=True):
    """A learner's notebook without worked answers, what investigations found, and what was wrong with a program; without hints
    too, if so wanted."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = without_folds(cell.source, "(?:The worked answer|What we found|What it was)[^<]*")
            if not hints:
                cell.source = without_folds(cell.source, r"Hint \d+[^\n]*?")
            if "attachment:" not in cell.source:
                cell.pop("attachments", None)  # our figures
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "markdown" or cell.source.strip()]
    return notebook


def student_release(target, hints=True, root=ROOT):
    """Write the folder `target` and beside it `target`.zip; returns the paths of the two.

    Args:
        target: a folder that is not there yet.
        hints: whether the cards keep their hints. Worked answers and what investigations found are left out always.

    Raises:
        RunError: the folder or the zip is there already, `root` is no clone of the repository, or the disk is full.
    """
    target, root = Path(target), Path(root)
    archive = target.with_name(target.name + ".zip")
    for there in (target, archive):
        if there.exists():
            raise RunError(f"{there} is there already: choose another --out, or delete it")
    if missing := [name for name in (*FOLDERS, "notebooks") if not (root / name).is_dir()]:
        raise RunError(f"{root} has no folder {missing[0]}: make a release in a clone of the repository")
    if not (root / "solutions" / FILE).is_file():
        raise RunError(
            f"{root / 'solutions' / FILE} is missing, which stands in for what a student has not written: run make notebooks"
        )
    whole = target.with_name(f".{target.name}.tmp")  # it gets its name when all is in it
    shutil.rmtree(whole, ignore_errors=True)
    try:
        fill(whole / target.name, hints, root)
        pack(whole / target.name, whole / archive.name)
        os.replace(whole / archive.name, archive)
        os.replace(whole / target.name, target)
    except (OSError, shutil.Error) as error:
        raise RunError(
            f"cannot write {target} ({one_line(error, kind=False)}): free some space, or choose another --out"
        ) from error
    finally:
        shutil.rmtree(whole, ignore_errors=True)
    return target, archive


def fill(target, hints, root):
    """Write all that a class gets into the folder `target`; arguments as for `student_release`."""
    for name in FILES:
        if (root / name).exists():
            write_atomic(target / name, (root / name).read_bytes())
    for name in FOLDERS:
        shutil.copytree(root / name, target / name, ignore=lambda folder, names: LEFT_OUT & set(names))
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = student_edition(nbformat.read(path, as_version=4), hints)
        write_atomic(target / "notebooks" / path.name, (nbformat.writes(notebook) + "\n").encode())
    write_atomic(target / "solutions" / "README.md", WITHHELD.encode())
    stand_ins = (root / "solutions" / FILE).read_bytes()
    write_atomic(target / "solutions" / PACKED, zlib.compress(stand_ins, 9))  # `yours` needs them; nobody reads them by accident
    readme = target / "README.md"
    write_atomic(readme, with_links_that_lead_somewhere(readme.read_text(encoding="utf-8"), target).encode())


def with_links_that_lead_somewhere(text, folder):
    """`text`, a page in `folder`, in which a link to a file that is not there is its words alone."""
    there = lambda link: "://" in link or link.startswith("#") or (folder / link.partition("#")[0]).exists()  # noqa: E731
    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", lambda found: found[0] if there(found[2]) else found[1], text)


def pack(folder, archive):
    """Write the zip `archive` of all files in `folder`, by their names from its own on."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, Path(folder.name) / path.relative_to(folder))
