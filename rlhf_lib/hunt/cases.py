"""The programs of the bug hunt by number: what they are called, what they record, how they are run and read."""

import inspect
import math
import re
from collections import Counter
from typing import NamedTuple

from rlhf_lib import plots
from rlhf_lib.hunt import readers, texts, writers


class Case(NamedTuple):
    """A program: its title, the function, and {curve: what it says, with its unit}."""

    title: str
    program: object
    curves: dict


PPO = {
    "reward": "mean reward of a rollout",
    "approx_kl": "KL(old || new), nats a letter",
    "clip_fraction": "share of clipped ratios",
}
CASES = {
    "01": Case("Stained pages", texts.program_01, {
        "loss": "cross-entropy, nats a letter", "gradient_norm": "norm of the gradient", "moved": "length of a step",
    }),
    "02": Case("The candidate wins", readers.program_02, {
        "win_rate": "share of wins so far", "interval": "half of its 95 % interval",
    }),
    "03": Case("Fifteen rollouts", writers.program_03, PPO),
    "04": Case("A small adapter", readers.program_04, {
        "loss": "Bradley-Terry loss, nats", "accuracy": "share of held-out pairs in order", "margin": "mean margin of a batch",
    }),
    "05": Case("More of the letter b", writers.program_05, {"reward": "mean reward of a rollout", "kl": "KL, nats a text"}),
    "06": Case("Eighty comparisons", readers.program_06, {
        "train_loss": "nats a pair", "train_accuracy": "share of pairs", "validation_loss": "nats a pair",
        "validation_accuracy": "share of pairs",
    }),
    "07": Case("Over and over", texts.program_07, {"loss": "cross-entropy, nats a letter"}),
    "08": Case("A rare letter", writers.program_08, {
        "score": "twice the share of b", "kl": "KL, nats a letter", "reward": "score less what the KL costs",
    }),
    "09": Case("Short texts", texts.program_09, {"loss": "cross-entropy, nats a letter"}),
    "10": Case("Two hundred labels", readers.program_10, {
        "train_loss": "nats a text", "train_accuracy": "share of texts", "test_accuracy": "share of texts",
    }),
    "11": Case("Long and short", readers.program_11, {
        "loss": "Bradley-Terry loss, nats", "accuracy_short": "share, the better is shorter",
        "accuracy_long": "share, the better is longer",
    }),
    "12": Case("Twenty passes", writers.program_12, {
        "reward": "mean reward of a rollout", "approx_kl": "KL where the passes stopped, nats", "passes": "passes over a rollout",
    }),
    "13": Case("What people chose", texts.program_13, {"loss": "DPO loss, nats", "accuracy": "share of pairs in order"}),
    "14": Case("Texts that end", writers.program_14, {
        "score": "mean score of a rollout", "kl": "KL, nats a text", "beta": "coefficient of the KL", "length": "letters a text",
    }),
    "15": Case("Four answers in order", readers.program_15, {
        "loss": "ranking loss, nats a pair", "accuracy": "share of held-out pairs in order",
    }),
    "16": Case("Paid for cd", writers.program_16, {"reward": "mean reward of a rollout", "kl": "KL, nats a text"}),
    "17": Case("Eight texts at a time", writers.program_17, {
        "score": "mean score of a rollout", "reward": "score less what the KL costs", "kl": "KL, nats a text",
        "clip_fraction": "share of clipped ratios",
    }),
    "18": Case("Endless texts", readers.program_18, {
        "loss": "Bradley-Terry loss, nats", "gradient_norm": "norm of the gradient", "accuracy": "share of held-out pairs",
    }),
    "19": Case("What is still to come", writers.program_19, {
        "reward": "mean score of a rollout", "value": "mean value", "value_error": "squared error of the values",
        "length": "letters a text",
    }),
}  # fmt: skip


def number(case):
    """The number of a case, "07", for "07", "7" or 7. Raises KeyError with the numbers that there are."""
    found = str(case).zfill(2)
    if found not in CASES:
        raise KeyError(f"there is no case {case!r}; there are {', '.join(CASES)}")
    return found


def run(case, seed=0, **options):
    """What a program records: a dict with `curves`, {name: list of floats}, and for some `samples`, a list of str.

    Args:
        case: its number, such as "07".
        seed: the same seed gives the same records.
        options: the program's own arguments, such as `steps`.

    Raises:
        KeyError: there is no such case.
    """
    return CASES[number(case)].program(seed, **options)


def text_of(case, name):
    """The text of a program, its function called `name`."""
    program = CASES[number(case)].program
    return re.sub(rf"\b{program.__name__}\b", name, inspect.getsource(program))


def tell(case, record):
    """Print where each curve of a record begins, how far it goes and where it ends; other numbers; and the commonest samples."""
    print(f"{'':18}{'first':>10}{'smallest':>10}{'largest':>10}{'last':>10}")
    for name in CASES[number(case)].curves:
        curve = record["curves"][name]
        there = [one for one in curve if one == one]  # without what is no number
        row = (curve[0], min(there, default=curve[0]), max(there, default=curve[0]), curve[-1])
        print(f"{name:18}" + "".join(f"{value:z10.3f}" for value in row))
    for name, value in record.items():
        if isinstance(value, (int, float)):
            print(f"{name:18}{value:40.3f}")
    if record.get("samples"):
        counts = Counter(map(str, record["samples"]))
        said = [sample if count == 1 else f"{sample} ({count} times)" for sample, count in counts.most_common(5)]
        print(f"samples, {len(counts)} of {counts.total()} different: " + ", ".join(said))


def figure(case, *records, labels=()):
    """A figure of a program's curves, one panel each; several records are drawn in one panel, in different colours.

    Args:
        case: its number.
        records: what `run`, or a mended program, returned.
        labels: a name for each of the records.
    """
    units = CASES[number(case)].curves
    rows = 2 if len(units) == 4 else 1
    fig, axes = plots.figure(len(units) // rows, rows, width=3.6, height=2.8)
    last = max(len(record["curves"][name]) for record in records for name in units) - 1
    for ax, (name, unit) in zip(axes, units.items()):
        for place, record in enumerate(records):
            color = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PINK, plots.GREY)[place % 5]
            label = labels[place] if place < len(labels) else None
            curve = record["curves"][name]
            ax.plot(curve, color=color, label=label, linewidth=1.4)
            bad = [step for step, one in enumerate(curve) if not math.isfinite(one)]
            if bad:
                ax.axvspan(bad[0], len(curve) - 1, color=color, alpha=0.12, linewidth=0)
                ax.annotate("no number", (bad[0], 0.92), xycoords=("data", "axes fraction"), fontsize=8)
        ax.set(title=name, ylabel=unit, xlabel="step")
        ax.set_xlim(-0.03 * last, 1.03 * last)
        low, high = ax.get_ylim()
        if high - low < 1e-3:  # a line, but for rounding
            ax.set_ylim((low + high) / 2 - 0.05, (low + high) / 2 + 0.05)
    plots.legend(axes[0])
    return fig
