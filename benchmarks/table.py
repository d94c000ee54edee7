"""The results: `results.json`, which every run of a row updates, and out of it `table.md` and a plot for each device."""

import os
import platform
import statistics
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.measure import QUIET, Row
from rlhf_lib import devices, plots
from rlhf_lib.files import read_json, write_atomic, write_json

PACKAGES = ("torch", "transformers", "trl", "accelerate", "tokenizers", "numpy")
UNITS = {"faster": " x", "sooner": " x", "lower": " lower", "at most": ""}


def machine(device):
    """What figures of `device` depend on beside the code: hardware, threads and versions."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "none"
    if device == "cuda":
        return {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "versions": versions}
    bf16 = devices.has_bf16(torch.device("cpu"))
    return {
        "name": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "bf16 in hardware": bf16,
        "system": platform.system(), "versions": versions,
    }  # fmt: skip


def cpu_name():
    """The processor's name, as Linux knows it, or what Python says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def number(x):
    """Three figures that count, and no fraction from a hundred on."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def spread(figures):
    """The median, and in brackets the lowest and the highest."""
    if not figures:
        return ""
    middle, low, high = number(statistics.median(figures)), number(min(figures)), number(max(figures))
    return middle if low == high else f"{middle} ({low} to {high})"


def verdict(row):
    if row.wanted is None:
        return ""
    sign = "at most " if row.kind == "at most" else ""
    return f"{sign}{number(row.wanted)}{UNITS[row.kind]}{'' if row.met else ', **missed**'}"


def markdown(rows):
    """The rows as a markdown table."""
    lines = ["| work | ours | peer | theirs | ours against theirs | wanted |", "|---|---|---|---|---|---|"]
    for row in rows:
        work = f"{row.work} ({row.unit})"
        if row.disturbed:
            work += f"; **disturbed** in {row.disturbed} of {len(row.others)} rounds"
        gain = "" if row.kind == "at most" else f"{number(row.gain)}{UNITS[row.kind]}"
        lines.append(f"| {' | '.join((work, spread(row.ours), row.peer, spread(row.theirs), gain, verdict(row)))} |")
    return "\n".join(lines)


def page(device, here, rows):
    """A device's part of table.md: what it ran on, the table, and how equality was checked."""
    title = "CPU" if device == "cpu" else "GPU"
    facts = "; ".join(f"{name} {value}" for name, value in here.items() if name not in ("name", "versions"))
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    checks = "\n".join(f"- {row.name}: {'; '.join(filter(None, (row.check, row.note)))}" for row in rows if row.check or row.note)
    return (
        f"## {title}: {here['name']}\n\n{facts}\n\nVersions: {versions}\n\n{markdown(rows)}\n\n"
        f"Medians, lowest and highest in brackets; the comparison is the median of those of the rounds. A round in which other "
        f"processes took more than {QUIET:.0%} of the machine was measured again.\n\n"
        f"### What was checked first, and notes\n\n{checks}\n"
    )


def plot(rows):
    """How many times faster each row is than its peer, with a line where it was wanted; None when no row has a peer."""
    rows = [row for row in rows if row.kind in ("faster", "sooner")][::-1]
    if not rows:
        return None
    fig, (ax,) = plots.figure(width=8, height=0.9 + 0.42 * len(rows))
    ax.barh([row.name for row in rows], [row.gain for row in rows], color=plots.BLUE, height=0.6)
    for place, row in enumerate(rows):
        ax.annotate(f" {number(row.gain)}", (row.gain, place), va="center", fontsize=9)
        if row.wanted is not None:
            ax.plot([row.wanted] * 2, [place - 0.4, place + 0.4], color=plots.ORANGE, linewidth=2)
    ax.axvline(1, color=plots.GREY, linewidth=1)
    ax.set(xscale="log", xlabel="times as fast as the peer (orange: wanted)")
    ax.set_xlim(min(0.5, 0.8 * min(row.gain for row in rows)), 2 * max(row.gain for row in rows))
    ax.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    ax.minorticks_off()
    ax.grid(visible=False, axis="y")
    return fig


class Results:
    """Everything that has been measured, in a folder.

    Args:
        folder: holds `results.json`; a row that is measured again replaces the old one, and rows that another machine or
            other versions gave are dropped.
        order: the names of the groups of rows, in the table's order.
    """

    def __init__(self, folder, order):
        self.folder, self.order = Path(folder), list(order)
        path = self.folder / "results.json"
        self.saved = read_json(path) if path.exists() else {}

    def add(self, device, group, rows):
        """Take in the rows of a group, and write everything anew."""
        here = machine(device)
        old = self.saved.get(device, {})
        groups = old["groups"] if old.get("machine") == here else {}
        records = [{**asdict(row), "median": statistics.median(row.ours), "gain": row.gain, "met": row.met} for row in rows]
        self.saved[device] = {"machine": here, "groups": {**groups, group: records}}
        write_json(self.folder / "results.json", self.saved)
        self.write()

    def rows(self, device):
        """All rows of a device, group by group."""
        groups = self.saved[device]["groups"]
        fields = Row.__dataclass_fields__
        return [
            Row(**{name: value for name, value in record.items() if name in fields})
            for group in self.order
            for record in groups.get(group, [])
        ]

    def write(self):
        pages = ["# Side by side\n\nWritten by `make bench`.\n"]
        for device, part in self.saved.items():
            rows = self.rows(device)
            pages.append(page(device, part["machine"], rows))
            if fig := plot(rows):
                fig.savefig(self.folder / f"speed-{device}.png", dpi=110)
        write_atomic(self.folder / "table.md", "\n".join(pages).encode())
