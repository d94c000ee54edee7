"""The learner's edition: `notebooks/` out of the worked notebooks in `solutions/`, by nbgrader's own preprocessors.

python -m rlhf_lib.notebooks        write notebooks/ (make notebooks)
"""

from pathlib import Path

import nbformat

from rlhf_lib.runs import write_atomic

ROOT = Path(__file__).resolve().parents[1]


def learner_edition(path):
    """The worked notebook at `path` as a learner gets it: answers, hidden tests and outputs taken out.

    Raises:
        ImportError: nbgrader is not installed.
        ValueError: the notebook breaks one of nbgrader's rules, such as a duplicate grade_id.
    """
    from nbgrader import preprocessors as steps

    notebook = nbformat.read(path, as_version=4)
    resources = {}
    for step in (
        steps.LockCells, steps.ClearSolutions, steps.ClearOutput, steps.CheckCellMetadata,
        steps.ClearHiddenTests, steps.ClearMarkScheme, steps.ComputeChecksums,
    ):  # fmt: skip
        try:
            notebook, resources = step().preprocess(notebook, resources)
        except Exception as error:  # nbgrader has an exception class for every rule
            raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    return notebook


def write_all(source=ROOT / "solutions", target=ROOT / "notebooks"):
    """Write the learner's edition of every notebook in `source` to `target`; returns the paths written."""
    written = []
    for path in sorted(Path(source).glob("*.ipynb")):
        text = nbformat.writes(learner_edition(path)) + "\n"
        write_atomic(Path(target) / path.name, text.encode())
        written.append(Path(target) / path.name)
    return written


if __name__ == "__main__":
    for written in write_all():
        print(f"wrote {written.relative_to(ROOT)}")
