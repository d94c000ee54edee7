"""From the first import of a chapter to its first figure."""

import json
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from benchmarks.measure import BenchmarkError, Row, measure

SOLUTIONS = Path(__file__).resolve().parents[1] / "solutions"


def has_figure(cell):
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def first_figure(path):
    """Seconds from the first code cell's start to the first figure; the kernel has started before.

    Raises:
        BenchmarkError: a cell fails, or no figure comes.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}})
    with client.setup_kernel():
        started = time.perf_counter()
        for place, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                try:
                    client.execute_cell(cell, place)
                except CellExecutionError as error:
                    raise BenchmarkError(f"{path.name}, cell {place}: {error.ename}: {error.evalue}") from None
                if has_figure(cell):
                    return time.perf_counter() - started
    raise BenchmarkError(f"{path.name} shows no figure any more")


def chapters():
    """The worked notebooks that show a figure."""
    saved = {path: json.loads(path.read_text(encoding="utf-8"))["cells"] for path in sorted(SOLUTIONS.glob("*.ipynb"))}
    return [path for path, cells in saved.items() if any(has_figure(cell) for cell in cells)]


def rows(options):
    paths = chapters()[:1] if options.quick else chapters()
    if not paths:
        raise BenchmarkError("no notebook in solutions/ has a figure among its outputs: run them first")
    figures, others = measure(lambda: {path.stem: first_figure(path) for path in paths}, options, "figure")
    return [
        Row(
            name=f"first figure, {chapter}", work=f"from import to the first figure of chapter {chapter}", unit="seconds",
            kind="at most", ours=times, wanted=5, others=others,
        )
        for chapter, times in figures.items()
    ]  # fmt: skip
