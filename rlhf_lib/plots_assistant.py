"""Figures of the assistant's records, in the style of `plots`."""

from rlhf_lib.plots import BLUE, GREEN, GREY, ORANGE, curve, figure, from_zero, legend


def fine_tuning(records):
    """The loss of fine-tuning on the assistant's tokens (nats per token), of each step and on held-out demonstrations."""
    fig, (ax,) = figure(1, width=6)
    curve(ax, records, "train_loss", "training, one batch", GREY)
    curve(ax, records, "val_loss", "held out", BLUE, marker="o")
    ax.set(title="Loss on the assistant's tokens", xlabel="step", ylabel="nats per token")
    legend(ax)
    return fig


def preferences(records, length_accuracy=None, reader_agreement=None):
    """The reward model's loss (nats) and its accuracy on held-out comparisons.

    Args:
        length_accuracy: of "the longer answer is better" on the same comparisons.
        reader_agreement: how often two readers agree, the most that an accuracy can mean; None where nobody read twice.
    """
    fig, (loss, accuracy) = figure(2)
    curve(loss, records, "train_loss", "training, one batch", GREY)
    curve(loss, records, "held_out_loss", "held out", BLUE, marker="o")
    loss.set(title="Loss", xlabel="step", ylabel="nats")
    legend(loss)
    curve(accuracy, records, "held_out_accuracy", "accuracy", BLUE, marker="o")
    curve(accuracy, records, "held_out_calibration_error", "calibration error", ORANGE, marker="o")
    for value, label, color in ((length_accuracy, "longer is better", GREY), (reader_agreement, "two readers agree", GREEN)):
        if value is not None:
            accuracy.axhline(value, color=color, linestyle="--", linewidth=1.2, label=label)
    accuracy.set(title="Held-out comparisons", xlabel="step", ylabel="share", xlim=loss.get_xlim(), ylim=(0, 1))
    legend(accuracy)
    return fig


def critic_diagnostics(records, max_kl=None):
    """PPO with a critic: reward, KL to the reference, clip fraction, explained variance, answers that end, and their length."""
    fig, axes = figure(2, rows=3, height=2.7)
    panels = (
        ("reward", "Reward", "deviations of the reference"),
        ("kl", "KL to the reference", "nats per answer"),
        ("clip_fraction", "Clip fraction", "share of tokens"),
        ("explained_variance", "Explained variance of the critic", "share"),
        ("ended", "Answers that end", "share"),
        ("tokens", "Length", "tokens per answer"),
    )
    for ax, (name, title, unit) in zip(axes, panels):
        curve(ax, records, name, marker="o")
        ax.set(title=title, xlabel="iteration", ylabel=unit)
    if max_kl:
        axes[1].axhline(max_kl, color=ORANGE, linestyle="--", linewidth=1.2, label="limit")
    axes[2].axhspan(0.01, 0.2, color=GREEN, alpha=0.12, label="1 to 20 %")
    axes[3].set_ylim(top=1)
    for ax in axes[4:]:
        from_zero(ax)
    for ax in axes[1:3]:
        legend(ax)
    return fig


def win_rates(summary):
    """How often one side's answer beats another's, with 95 % intervals, from `summary.json`."""
    names = {
        "win_rate_policy": "PPO over start",
        "win_rate_sft": "SFT over start",
        "win_rate_policy_over_sft": "PPO over SFT",
        "win_rate_best_of_over_sft": "best of n over SFT",
    }
    fig, (ax,) = figure(1, width=6, height=2.4)
    for place, name in enumerate(names):
        if summary.get(name) is None:  # a summary of another version, or every verdict was refused
            continue
        low, high = summary[f"{name}_interval"]
        ax.plot([low, high], [place, place], color=GREY, linewidth=1.6)
        ax.plot([summary[name]], [place], color=BLUE, marker="o", markersize=6, linestyle="")
    ax.axvline(0.5, color=ORANGE, linestyle="--", linewidth=1.2)
    ax.set(title="Win rates", xlabel="share of prompts, ties as half", xlim=(0, 1), ylim=(len(names) - 0.5, -0.5))
    ax.set_yticks(range(len(names)), names.values())
    return fig
