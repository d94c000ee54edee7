"""The cells of what people hand in: notebooks of every version and from every editor, and Python files."""

import ast
import contextlib
import json
import warnings
from pathlib import Path
from typing import NamedTuple

from rlhf_lib.grading.submissions import UnreadableError

LONG = 400_000  # characters of one cell


class Cell(NamedTuple):
    """place: where it stands, "07.ipynb, cell 5". code: whether it is run. name: the exercise's, by the course's metadata."""

    place: str
    source: str
    code: bool
    name: str = ""


def cells_of(name, content):
    """The cells of a file. Raises UnreadableError, with a sentence, when it is no notebook and no Python file."""
    text = decoded(content)
    if not text.strip():
        raise UnreadableError("it is empty")
    if name.lower().endswith(".py"):
        return [Cell(Path(name).name, text, True)]
    if not name.lower().endswith(".ipynb"):
        raise UnreadableError("it is no notebook (.ipynb) and no Python file (.py)")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "a web page" if text.lstrip()[:1] == "<" else f"not JSON: {error}"
        raise UnreadableError(f"it is no notebook, or a damaged one ({kind})") from None
    if not isinstance(found, dict):
        raise UnreadableError("it is no notebook: JSON without cells")
    sheets = found.get("worksheets")  # nbformat 3 and older
    rows = found.get("cells") if sheets is None else [row for sheet in listed(sheets) for row in listed(get(sheet, "cells"))]
    if not isinstance(rows, list):
        raise UnreadableError("it is no notebook: JSON without cells")
    return [cell_of(f"{name}, cell {number}", row) for number, row in enumerate(rows, 1) if isinstance(row, dict)]


def decoded(content):
    """Text in UTF-8 or, with a mark at its start, UTF-16; lines end in \\n."""
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableError(f"it is not UTF-8 at byte {error.start}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def listed(value):
    return value if isinstance(value, list) else []


def get(value, key):
    return value.get(key) if isinstance(value, dict) else None


def cell_of(place, row):
    source = row.get("source", row.get("input", ""))
    if isinstance(source, list):
        source = "".join(part for part in source if isinstance(part, str))
    source = (source if isinstance(source, str) else "").replace("\r\n", "\n").replace("\r", "\n")
    name = get(get(row.get("metadata"), "nbgrader"), "grade_id")
    name = name if isinstance(name, str) and name.isidentifier() else ""
    return Cell(place, source[: LONG + 1], row.get("cell_type") == "code", name)


def statements(cell):
    """The top-level statements of a cell as ast nodes, IPython's magics read as IPython reads them.

    Raises:
        SyntaxError: it is no Python; the message is for the learner.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    if len(cell.source) > LONG:
        raise SyntaxError(f"it has more than {LONG} characters")
    source = cell.source
    if source.lstrip().startswith(("%%time", "%%capture", "%%timeit", "%%prun")):
        source = source.lstrip().partition("\n")[2]
    elif source.lstrip().startswith("%%"):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(SyntaxError):
                source = TransformerManager().transform_cell(source)
            return ast.parse(source).body
    except SyntaxError:
        raise
    except (ValueError, RecursionError, MemoryError, IndexError) as error:
        raise SyntaxError(f"Python cannot read it ({type(error).__name__}: {error})") from None
