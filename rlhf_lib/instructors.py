"""The commands of those who teach: what a class gets, its grades, and its curves in one picture."""

import io
from pathlib import Path

from rlhf_lib.files import RunError, write_atomic


def add_commands(commands):
    """Add them to the command line; returns the function behind each, by its name."""
    figures = commands.add_parser("figures", help="the curves of a run, or of a whole class's runs, in one picture")
    figures.add_argument("runs", nargs="+", metavar="DIR", help="runs' folders, or folders of such folders")
    figures.add_argument("--out", required=True, metavar="FILE", help="a PNG, SVG or PDF file")
    release = commands.add_parser("release", help="write what a class gets, everything but solutions, as a folder and a zip")
    release.add_argument("--out", required=True, metavar="DIR", help="a folder that is not there yet; the zip lies beside it")
    release.add_argument("--without-hints", action="store_true", help="leave the cards' hints out too")
    marks = commands.add_parser("grade", help="grade a class: notebooks by student, each run in a sandbox and judged outside")
    marks.add_argument("submissions", metavar="SUBMISSIONS", help="a folder or zip, as Canvas, Moodle or Gradescope export it")
    marks.add_argument("--out", required=True, metavar="DIR", help="where the gradebook goes; a second run grades what changed")
    marks.add_argument("--points", metavar="FILE", help="CSV with exercise, points and perhaps partial; only these are graded")
    marks.add_argument("--seed", type=int, metavar="N", help="of the inputs (drawn once, and kept in DIR)")
    marks.add_argument("--jobs", type=int, metavar="N", help="how many submissions at a time (as many as there are cores)")
    marks.add_argument(
        "--timeout", type=float, default=90.0, metavar="S", help="seconds of one question (90; a build has its own)"
    )
    marks.add_argument("--late", metavar="FILE", help="CSV with student and share, what lateness leaves of the points")
    return {"figures": draw_figures, "release": write_release, "grade": grade}


def must_have(name):
    """Raises RunError in a class's copy of the course, which has no modules that are the instructor's alone."""
    if not Path(__file__).with_name(name).exists():
        raise RunError("this is a class's copy of the course: grades and releases are made in the instructor's")


def draw_figures(options):
    """Draw the curves of finished runs. Raises ValueError where `--out` is not .png, .svg or .pdf."""
    from rlhf_lib.plots_runs import curves, find_runs

    out = Path(options.out)
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--out must end in .png, .svg or .pdf, got {options.out}")
    runs, picture = find_runs(options.runs), io.BytesIO()
    curves(runs).savefig(picture, format=out.suffix[1:].lower(), dpi=150)
    write_atomic(out, picture.getvalue())
    print(f"{len(runs)} runs in {out}")


def write_release(options):
    """Write a class's copy of the course, and say what is in it."""
    must_have("release.py")
    from rlhf_lib.release import student_release

    print(*student_release(options.out, hints=not options.without_hints), sep="\n")


def grade(options):
    """Grade a folder of submissions: `grading.grade.main`."""
    must_have("grading")
    from rlhf_lib.grading.grade import main

    main(options)
