import io
import re

import pytest

from rlhf_lib import plots_assistant

SFT = [
    {"stage": "sft", "step": 0, "train_loss": 3.0},
    {"stage": "sft", "step": 1, "train_loss": 2.5, "epoch": 1, "val_loss": 2.75, "val_perplexity": 15.6},
    {"stage": "sft", "step": 2, "train_loss": 2.0},
    {"stage": "sft", "step": 3, "train_loss": 1.5, "epoch": 2, "val_loss": 2.5, "val_perplexity": 12.2},
]
REWARD = [
    {"stage": "reward", "step": 0, "train_loss": 0.69},
    {
        "stage": "reward", "step": 1, "train_loss": 0.5, "epoch": 1, "held_out_loss": 0.6, "held_out_accuracy": 0.75,
        "held_out_calibration_error": 0.1, "held_out_pairs": 40,
    },
]  # fmt: skip
POLICY = [
    {
        "stage": "policy", "step": step, "reward": 0.5 * step, "kl": 1.0 * step, "clip_fraction": 0.05 * step,
        "explained_variance": -0.5 + 0.4 * step, "ended": 0.3 * step, "tokens": 30.0 - step, "entropy": 2.0,
    }
    for step in range(3)
]  # fmt: skip
LAST = {"stage": "policy", "step": 3, "reward": 2.0, "kl": 3.5, "ended": 1.0, "tokens": 26.0}  # no update behind it
RATES = {
    "win_rate_policy": 0.8, "win_rate_policy_interval": [0.7, 0.9], "win_rate_sft": 0.65, "win_rate_sft_interval": [0.55, 0.75],
    "win_rate_policy_over_sft": 0.7, "win_rate_policy_over_sft_interval": [0.6, 0.8], "win_rate_best_of_over_sft": 0.6,
    "win_rate_best_of_over_sft_interval": [0.5, 0.7],
}  # fmt: skip
CASES = {
    "fine-tuning": (plots_assistant.fine_tuning, SFT),
    "preferences": (plots_assistant.preferences, REWARD),
    "critic": (plots_assistant.critic_diagnostics, POLICY),
}
UNIT = re.compile(r"nats|share|deviations|tokens per answer")


def drawn(figure):
    """The figure, drawn as a report draws it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")
    return figure


def lines(ax):
    """The curves of an axis, as {label: [(x, y), ...]}."""
    return {line.get_label(): [tuple(map(float, p)) for p in zip(*line.get_data())] for line in ax.get_lines()}


def points(records, name):
    return [(record["step"], record[name]) for record in records if name in record]


@pytest.mark.parametrize("case", CASES)
def test_every_axis_has_a_name_and_a_unit(case):
    draw, records = CASES[case]
    for ax in drawn(draw(records)).axes:
        assert ax.get_xlabel() in ("step", "iteration")
        assert UNIT.search(ax.get_ylabel()) and ax.get_title()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_few_records_are_enough(case, count):
    draw, records = CASES[case]
    drawn(draw(records[:count]))


def test_fine_tuning_draws_every_step_and_every_evaluation():
    (ax,) = plots_assistant.fine_tuning(SFT).axes
    assert lines(ax) == {"training, one batch": points(SFT, "train_loss"), "held out": points(SFT, "val_loss")}


def test_accuracy_stands_between_length_alone_and_the_readers():
    loss, accuracy = plots_assistant.preferences(REWARD, 0.55, 0.85).axes
    assert lines(loss) == {"training, one batch": points(REWARD, "train_loss"), "held out": [(1, 0.6)]}
    assert lines(accuracy) == {
        "accuracy": [(1, 0.75)],
        "calibration error": [(1, 0.1)],
        "longer is better": [(0, 0.55), (1, 0.55)],
        "two readers agree": [(0, 0.85), (1, 0.85)],
    }
    assert accuracy.get_ylim() == (0, 1) and accuracy.get_xlim() == loss.get_xlim()  # one evaluation is a point in its place
    colours = [line.get_color() for line in accuracy.get_lines()]
    assert len(set(colours)) == len(colours)


def test_a_set_that_nobody_read_twice_has_no_line_of_readers():
    accuracy = plots_assistant.preferences(REWARD, 0.0).axes[1]  # an accuracy of 0 is a line too
    assert set(lines(accuracy)) == {"accuracy", "calibration error", "longer is better"}


def test_the_panels_of_ppo_show_what_is_logged():
    axes = drawn(plots_assistant.critic_diagnostics([*POLICY, LAST], max_kl=6.5)).axes
    names = ("reward", "kl", "clip_fraction", "explained_variance", "ended", "tokens")
    assert len(axes) == len(names)
    for ax, name in zip(axes, names):
        assert points([*POLICY, LAST], name) in lines(ax).values(), name
    assert [(0, 6.5), (1, 6.5)] in lines(axes[1]).values()
    assert len(plots_assistant.critic_diagnostics(POLICY).axes[1].get_lines()) == 1
    assert axes[4].get_ylim() == pytest.approx((0, 1.08)) and axes[5].get_ylim() == pytest.approx((0, 32.4))  # nothing is cut


def test_win_rates_have_their_intervals_and_their_names():
    (ax,) = drawn(plots_assistant.win_rates(RATES)).axes
    found = list(lines(ax).values())
    expected = [("policy", 0), ("sft", 1), ("policy_over_sft", 2), ("best_of_over_sft", 3)]
    for name, place in expected:
        low, high = RATES[f"win_rate_{name}_interval"]
        assert [(low, place), (high, place)] in found and [(RATES[f"win_rate_{name}"], place)] in found
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["PPO over start", "SFT over start", "PPO over SFT", "best of n over SFT"]
    bottom, top = ax.get_ylim()
    assert bottom > top and ax.get_xlim() == (0, 1)  # the first stands on top
