"""The curves of several runs in one picture: one run, one learner's seeds, a whole class."""

from pathlib import Path
from statistics import median

from rlhf_lib import plots
from rlhf_lib.files import RunError
from rlhf_lib.runs import Metrics

COLOURS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PINK)


def find_runs(folders):
    """The runs in `folders`, {name: records}: each is a run's folder, or one of whose subfolders, at any depth, are.

    A name is the folder's own, and as much of the path before it as tells it from the others.

    Raises:
        RunError: a folder is not there, or holds no run.
    """
    paths = []
    for folder in map(Path, folders):
        found = sorted(path.parent for path in folder.rglob("settings.json") if (path.parent / "metrics.jsonl").exists())
        if not found:
            raise RunError(f"{folder} holds no run: give a run's folder, or one that holds such folders")
        paths += [path for path in found if path not in paths]
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return {"/".join(path.parts[-depth:]): Metrics(path).read() for path in paths}


def curves(runs):
    """Validation perplexity and reward of all runs; more than four are grey, with the median of those that have a point there.

    Args:
        runs: {name: records}, as `find_runs` gives them; of the plays or of the assistant.
    """
    fig, axes = plots.figure(2)
    panels = (("val_perplexity", ("pretrain", "sft"), "step"), ("reward", ("policy",), "iteration"))
    few = len(runs) <= len(COLOURS)
    for ax, (figure, stages, axis) in zip(axes, panels):
        points, drawn = {}, 0
        for place, (name, records) in enumerate(runs.items()):
            some = [record for record in records if record["stage"] in stages]
            curve = plots.curve(ax, some, figure, name if few else None, COLOURS[place] if few else plots.GREY)
            drawn += bool(curve)
            for x, y in curve:
                points.setdefault(x, []).append(y)
        if not few and points:
            middle = [(x, median(ys)) for x, ys in sorted(points.items())]
            ax.plot(*zip(*middle), color=plots.BLUE, linewidth=2.4, label=f"median of {drawn} runs")
        ax.set_xlabel(axis)
        plots.legend(ax, fontsize=8)
    axes[0].set(title="Held-out text", ylabel="perplexity")
    axes[1].set(title="Reward", ylabel="deviations of the reference")
    return fig
