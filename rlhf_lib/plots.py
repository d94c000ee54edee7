"""Figures of a run's records, in one style: axes with names and units, colours that colour-blind readers can tell apart."""

import math

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette, the part that also shows on a dark page.
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7F7F7F"


def figure(columns=1, rows=1, height=3.2, width=4.6):
    """A figure with `rows` by `columns` axes, and the axes as a list, row by row."""
    fig = Figure(figsize=(width * columns, height * rows), layout="constrained", facecolor="white")
    axes = list(fig.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    return fig, axes


def legend(ax, **options):
    """The legend of what has been drawn with a label; none when nothing has."""
    handles, names = ax.get_legend_handles_labels()
    if handles:
        ax.legend(handles, names, frameon=False, **options)


def curve(ax, records, name, label=None, color=BLUE, x="step", marker=""):
    """Draw one figure of the records that have it, against `x`."""
    points = [(record[x], record[name]) for record in records if name in record and x in record]
    if points:
        ax.plot(*zip(*points), color=color, label=label, marker=marker, markersize=3.5, linewidth=1.6)
        if x == "step":
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return points


def band(ax, at, low, high, label="stored runs, widened", color=GREEN):
    """Shade what is expected: from `low` to `high` at the points `at`, three lists of one length."""
    ax.fill_between(at, low, high, color=color, alpha=0.25, linewidth=0, label=label)


def from_zero(ax):
    """The whole scale of an axis, from 0 to a little above its highest point."""
    ax.set_ylim(0, 1.08 * (max((max(line.get_ydata()) for line in ax.get_lines()), default=0) or 1))


def side_by_side(got, expected, title="", mask=None):
    """Two matrices as images in one colour scale: what came out, and what was expected; masked places are left white.

    Args:
        got, expected: (rows, columns) tensors.
        mask: (rows, columns) bool, the places that count; None for all.

    Returns:
        The figure; None when both are a single number, where there is nothing to see.
    """
    if got.numel() == expected.numel() == 1:
        return None
    pair = [
        part.detach().double().masked_fill(~mask, math.nan) if mask is not None else part.detach().double()
        for part in (got, expected)
    ]
    finite = torch.cat([part[part.isfinite()] for part in pair])
    low, high = (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 1.0)
    fig, axes = figure(2, height=3.0, width=3.6)
    for ax, part, name in zip(axes, pair, ("came out", "expected")):
        image = ax.imshow(part.numpy(), vmin=low, vmax=high, cmap="viridis", aspect="auto")
        ax.set(title=name, xlabel="column", ylabel="row")
        ax.locator_params(integer=True, min_n_ticks=1)
        ax.grid(False)
    fig.colorbar(image, ax=axes)
    fig.suptitle(title)
    return fig


def pretraining(records):
    """Training and validation loss (nats per token), and validation bits per character."""
    fig, (loss, bits) = figure(2)
    curve(loss, records, "train_loss", "training", GREY)
    curve(loss, records, "val_loss", "validation", BLUE, marker="o")
    loss.set(title="Loss", xlabel="step", ylabel="nats per token")
    legend(loss)
    points = curve(bits, records, "val_bits_per_char", color=BLUE, marker="o")
    bits.set(title="Validation", xlabel="step", ylabel="bits per character")
    if points:
        bits.annotate(f"{points[-1][1]:.3f}", points[-1], textcoords="offset points", xytext=(-12, 8))
    return fig


def reward_training(records):
    """The reward model's loss (nats), its accuracy on held-out labels, and its calibration error."""
    fig, (loss, accuracy) = figure(2)
    curve(loss, records, "train_loss", "training, one batch", GREY, x="epoch")
    curve(loss, records, "held_out_loss", "held out", BLUE, x="epoch", marker="o")
    loss.set(title="Loss", xlabel="epoch", ylabel="nats")
    legend(loss)
    curve(accuracy, records, "held_out_accuracy", "accuracy, neutral left out", BLUE, x="epoch", marker="o")
    curve(accuracy, records, "held_out_calibration_error", "calibration error", ORANGE, x="epoch", marker="o")
    accuracy.set(title="Held-out labels", xlabel="epoch", ylabel="share", ylim=(0, 1))
    legend(accuracy)
    return fig


def policy_diagnostics(records, max_kl=None):
    """Reward, KL to the original model, clip fraction and entropy over the iterations."""
    fig, axes = figure(2, rows=2, height=2.7)
    panels = (
        ("reward", "Reward", "deviations of the base"),
        ("kl", "KL to the original model", "nats per completion"),
        ("clip_fraction", "Clip fraction", "share of tokens"),
        ("entropy", "Entropy", "nats per token"),
    )
    for ax, (name, title, unit) in zip(axes, panels):
        curve(ax, records, name, marker="o")
        ax.set(title=title, xlabel="iteration", ylabel=unit)
    if max_kl:
        axes[1].axhline(max_kl, color=ORANGE, linestyle="--", linewidth=1.2, label="limit")
    axes[2].axhspan(0.01, 0.2, color=GREEN, alpha=0.12, label="1 to 20 %")
    from_zero(axes[3])  # it is estimated from what was drawn: without the whole scale, noise looks like news
    for ax in axes[1:3]:
        legend(ax)
    return fig


def over_optimisation(records):
    """Proxy reward and gold score over the root of the KL, and diversity on the same axis (Gao et al. 2022, figure 1)."""
    rooted = [{**record, "root_kl": math.sqrt(max(0.0, record["kl"]))} for record in records if "kl" in record]
    fig, (reward, diversity) = figure(2)
    curve(reward, rooted, "reward_normalised", "proxy: reward model, normalised", BLUE, x="root_kl", marker="o")
    reward.set(title="Reward", xlabel="root KL, √nats", ylabel="standard deviations of the base")
    gold = reward.twinx()
    gold.spines["top"].set_visible(False)
    curve(gold, rooted, "gold", "gold judge", ORANGE, x="root_kl", marker="s")
    low, high = gold.get_ylim()
    gold.set_ylim(min(low, -0.1), max(high, 0.7))  # so that a small change looks small
    gold.set_ylabel("gold score, -1 to 1")
    handles = [line for ax in (reward, gold) for line in ax.get_lines()]
    reward.legend(handles=handles, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2)
    curve(diversity, rooted, "distinct_2", "distinct-2", GREEN, x="root_kl", marker="o")
    curve(diversity, rooted, "separators", "blank lines per completion", PINK, x="root_kl", marker="s")
    diversity.set(title="Diversity and form", xlabel="root KL, √nats", ylabel="share, count")
    diversity.set_ylim(bottom=0)
    legend(diversity)
    return fig


def gold_histogram(base, policy):
    """How the gold judge scores completions of the base (N,) and of the policy (M,)."""
    fig, (ax,) = figure(1, width=6)
    bins = [step / 10 for step in range(-10, 11)]
    ax.hist([list(base), list(policy)], bins=bins, density=True, color=[GREY, BLUE], label=["base", "policy"])
    ax.set(title="Completions by gold score", xlabel="gold score, -1 to 1", ylabel="density")
    legend(ax)
    return fig
