"""How a row is measured: every side once a round, in turn; medians over rounds; a round that others disturbed is repeated."""

import contextlib
import io
import os
import statistics
import sys
import time
from dataclasses import dataclass, field

import psutil
import torch

QUIET = 0.05  # the share of all cores' time that other processes may take during a round


class BenchmarkError(RuntimeError):
    """A row that cannot be measured: the two sides do not compute the same, or something it needs is not there."""


def busy_seconds():
    """CPU time that all processes have taken since the machine started, and what a host has taken from a virtual machine."""
    times = psutil.cpu_times()
    return sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))


def own_seconds():
    """CPU time of this process and of the children that have ended."""
    times = psutil.Process().cpu_times()
    return times.user + times.system + times.children_user + times.children_system


class Watch:
    """`with Watch() as watch:` leaves in `watch.others` the share of all cores' time that other processes took."""

    def __enter__(self):
        self.began = time.perf_counter(), busy_seconds() - own_seconds()
        return self

    def __exit__(self, *exception):
        wall, others = time.perf_counter() - self.began[0], busy_seconds() - own_seconds() - self.began[1]
        self.others = max(0.0, others) / (wall * (os.cpu_count() or 1))


def measure(once, options, name):
    """What `once` gives in each round; a round in which others took more than QUIET is done again.

    Args:
        once: runs every side one time, in turn, and returns a dict of figures.
        options: has `rounds`, how many are kept, and `retries`, how often one that was disturbed is done again.
        name: printed with the progress.

    Returns:
        The figures as a dict of lists, and the share of the machine that others took in each round. Of a round that never
        was quiet the quietest attempt is kept, and its share tells that it was disturbed.
    """
    kept = []
    for number in range(options.rounds):
        attempts = []
        while not attempts or (attempts[-1][0] > QUIET and len(attempts) <= options.retries):
            with Watch() as watch:
                figures = once()
            attempts.append((watch.others, figures))
            shown = ", ".join(f"{side} {figure:,.4g}" for side, figure in figures.items())
            verdict = "" if watch.others <= QUIET else ", disturbed"
            print(
                f"{name}, round {number + 1} of {options.rounds}: {shown} (others {watch.others:.0%}{verdict})", file=sys.stderr
            )
        kept.append(min(attempts, key=lambda attempt: attempt[0]))
    return {side: [figures[side] for _, figures in kept] for side in kept[0][1]}, [others for others, _ in kept]


def seconds(work, device="cpu"):
    """How long `work()` takes; a card's queue is emptied before either reading of the clock."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def wait(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def silent():
    """Nothing printed inside: progress bars and records are not what is measured."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def agree(ours, theirs, tolerance, what):
    """A sentence that two tensors agree, relative to their largest element.

    Raises:
        BenchmarkError: they do not, so there is nothing to compare.
    """
    gap = ((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()
    if not gap <= tolerance:
        raise BenchmarkError(f"{what} differ by {gap:.2g} of the largest, more than {tolerance}: these are two computations")
    return f"{what} agree within {gap:.0e} of the largest"


def profile(work, rows=15):
    """The operators in which `work()` spends its time, as a table of text."""
    work()
    with torch.profiler.profile() as recorded:
        work()
    where = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return recorded.key_averages().table(sort_by=where, row_limit=rows, max_name_column_width=50)


def card_busy(work):
    """The share of the time in which a CUDA card computed during `work()`."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        passed = seconds(work, "cuda")
    return sum(event.self_device_time_total for event in recorded.key_averages()) * 1e-6 / passed


# ----------------------------------------------------------------------------------------- rows


KINDS = ("faster", "sooner", "lower", "at most")


@dataclass
class Row:
    """One line of the table.

    Args:
        name: unique, and the label in the plot.
        work: what is done, with its shapes.
        unit: of the figures.
        ours: our figures, one a round.
        kind: how the sides compare: "faster" (ours / theirs, for rates), "sooner" (theirs / ours, for seconds), "lower"
            (theirs - ours, for losses), "at most" (ours alone, against a limit).
        wanted: what the comparison should reach, or the limit; None when nothing is asked.
        peer, theirs: the peer and its figures, one a round.
        check: how it was checked that both sides compute the same.
        others: the share of the machine that other processes took in each round.
        note: what else a reader should know.
    """

    name: str
    work: str
    unit: str
    ours: list[float]
    kind: str = "faster"
    wanted: float | None = None
    peer: str = ""
    theirs: list[float] = field(default_factory=list)
    check: str = ""
    others: list[float] = field(default_factory=list)
    note: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    @property
    def gain(self):
        """What is compared with `wanted`: the median over the rounds of each round's ratio or difference.

        A machine that is slow for a round slows both sides of it, and leaves their ratio as it is. Sides that were not
        measured in the same rounds are compared by their medians.
        """
        if self.kind == "at most":
            return statistics.median(self.ours)
        pairs = list(zip(self.ours, self.theirs))
        if len(self.ours) != len(self.theirs):
            pairs = [(statistics.median(self.ours), statistics.median(self.theirs))]
        if self.kind == "lower":
            return statistics.median(theirs - ours for ours, theirs in pairs)
        return statistics.median(ours / theirs if self.kind == "faster" else theirs / ours for ours, theirs in pairs)

    @property
    def met(self):
        """Whether `wanted` is reached; None when nothing is asked."""
        if self.wanted is None:
            return None
        return self.gain <= self.wanted if self.kind == "at most" else self.gain >= self.wanted

    @property
    def disturbed(self):
        """How many rounds never were quiet."""
        return sum(share > QUIET for share in self.others)
