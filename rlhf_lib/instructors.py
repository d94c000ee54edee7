"""The commands of those who teach: what a class gets, and its curves in one picture."""

from pathlib import Path


def add_commands(commands):
    """Add them to the command line; returns the function behind each, by its name."""
    figures = commands.add_parser("figures", help="the curves of a run, or of a whole class's runs, in one picture")
    figures.add_argument("runs", nargs="+", metavar="DIR", help="runs' folders, or folders of such folders")
    figures.add_argument("--out", required=True, metavar="FILE", help="a PNG, SVG or PDF file")
    release = commands.add_parser("release", help="write what a class gets, everything but solutions, as a folder and a zip")
    release.add_argument("--out", required=True, metavar="DIR", help="a folder that is not there yet; the zip lies beside it")
    release.add_argument("--without-hints", action="store_true", help="leave the cards' hints out too")
    return {"figures": draw_figures, "release": write_release}


def draw_figures(options):
    from rlhf_lib.plots_runs import curves, find_runs

    out = Path(options.out)
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--out must end in .png, .svg or .pdf, got {options.out}")
    runs = find_runs(options.runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    curves(runs).savefig(out, dpi=150)
    print(f"{len(runs)} runs in {out}")


def write_release(options):
    from rlhf_lib.release import student_release

    print(*student_release(options.out, hints=not options.without_hints), sep="\n")
