"""The cells of what people hand in: notebooks of every version and from every editor, and Python files."""

import ast
import contextlib
import json
import re
import warnings
from pathlib import Path
from typing import NamedTuple

from rlhf_lib.grading.submissions import UnreadableError

LONG = 400_000  # characters of one cell
BEGINS = re.compile(r'(?:@|def |class |async def |import |from |check\(|# In\[|# ?%%|\w+ *=|""")')  # a line that begins a part


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
        return parts_of(Path(name).name, text)
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


def parts_of(name, text):
    """A Python file as one cell; as several where it is no Python as a whole, so that one bad function costs no other."""
    whole = Cell(name, text, True)
    if len(text) > LONG or is_python(whole):
        return [whole]
    parts, last = [], ""
    for number, line in enumerate(text.split("\n"), 1):
        if not parts or (BEGINS.match(line) and not last.startswith("@")):
            parts.append((f"{name}, cell from line {number}", []))
        parts[-1][1].append(line)
        last = line if line.strip() else last
    cells = []
    for place, lines in parts:
        cell = Cell(place, "\n".join(lines), True)
        if cells and not is_python(cell) and not is_python(cells[-1]):  # a text of several lines, or what follows on an error
            cell = Cell(cells[-1].place, f"{cells.pop().source}\n{cell.source}", True)
        cells.append(cell)
    return cells


def is_python(cell):
    try:
        return statements(cell) is not None
    except SyntaxError:
        return False


def decoded(content):
    """Text in UTF-8, 16 or 32, as JSON may be, else in Windows-1252, as old editors on Windows save it; lines end in \\n."""
    try:
        text = content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")
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
