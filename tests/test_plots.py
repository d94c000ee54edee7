import io
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib import plots

PRETRAIN = [
    {"stage": "pretrain", "step": 9, "train_loss": 5.0, "tokens": 640},
    {"stage": "pretrain", "step": 14, "train_loss": 4.5, "tokens": 960, "val_loss": 4.75, "val_bits_per_char": 3.25},
    {"stage": "pretrain", "step": 19, "train_loss": 4.0, "tokens": 1280, "val_loss": 4.5, "val_bits_per_char": 3.0},
]
REWARD = [
    {"stage": "reward", "step": 9, "train_loss": 0.7, "epoch": 0.5},
    {
        "stage": "reward", "step": 19, "train_loss": 0.5, "epoch": 1.0, "held_out_loss": 0.6, "held_out_accuracy": 0.75,
        "held_out_calibration_error": 0.1, "held_out_passages": 40,
    },
]  # fmt: skip
POLICY = [
    {
        "stage": "policy", "step": step, "kl": kl, "reward": -0.7 + 0.1 * step, "reward_normalised": 0.5 * step,
        "gold": 0.1 * step, "distinct_2": 0.9 - 0.1 * step,
        "separators": 1.5, "clip_fraction": 0.05, "entropy": 4.0 - step, "completions": 64,
    }
    for step, kl in enumerate((-0.01, 1.0, 4.0))
]  # fmt: skip
LAST = {name: value for name, value in POLICY[0].items() if name not in ("clip_fraction", "entropy")}  # no update behind it
UNIT = re.compile(r"nats|bits|share|density|-1 to 1|deviations|count")
CASES = {
    "pretraining": (plots.pretraining, PRETRAIN),
    "reward": (plots.reward_training, REWARD),
    "policy": (plots.policy_diagnostics, POLICY),
    "over-optimisation": (plots.over_optimisation, POLICY),
}


def drawn(figure):
    """The figure as PNG bytes: what a report does with it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")
    return figure


def lines(ax):
    """The curves of an axis, as {label: [(x, y), ...]}."""
    return {line.get_label(): list(zip(*([float(v) for v in values] for values in line.get_data()))) for line in ax.get_lines()}


def points(records, name, x="step"):
    return [(record[x], record[name]) for record in records if name in record]


@pytest.mark.parametrize("case", CASES)
def test_every_axis_has_a_name_and_a_unit(case):
    draw, records = CASES[case]
    figure = drawn(draw(records))
    for ax in figure.axes:
        shared = ax.get_xlabel() == "" and any(
            ax.get_shared_x_axes().joined(ax, other) for other in figure.axes if other is not ax
        )
        assert shared or re.search(r"step|epoch|iteration|root KL, √nats", ax.get_xlabel())
        assert UNIT.search(ax.get_ylabel()), ax.get_ylabel()
        assert ax.get_title() or shared


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_few_records_are_enough(case, count):
    draw, records = CASES[case]
    drawn(draw(records[:count]))


@pytest.mark.parametrize("case", CASES)
def test_no_record_gives_an_empty_figure(case):
    figure = drawn(CASES[case][0]([]))
    assert all(len(values) == 0 for ax in figure.axes for name, values in lines(ax).items() if not name.startswith("_"))


def test_pretraining_draws_both_losses_and_the_bits():
    loss, bits = drawn(plots.pretraining(PRETRAIN)).axes
    assert loss.get_ylabel() == "nats per token" and bits.get_ylabel() == "bits per character"
    assert lines(loss) == {"training": points(PRETRAIN, "train_loss"), "validation": points(PRETRAIN, "val_loss")}
    assert list(lines(bits).values()) == [points(PRETRAIN, "val_bits_per_char")]
    assert [text.get_text() for text in bits.texts] == ["3.000"]  # the last one
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation"]


def test_the_reward_models_figures_are_drawn_over_the_epochs():
    loss, share = drawn(plots.reward_training(REWARD)).axes
    assert list(lines(loss).values()) == [points(REWARD, "train_loss", "epoch"), points(REWARD, "held_out_loss", "epoch")]
    assert list(lines(share).values()) == [[(1.0, 0.75)], [(1.0, 0.1)]]
    assert share.get_ylim() == (0, 1)


def test_the_policys_panels_show_reward_kl_clip_fraction_and_entropy():
    axes = drawn(plots.policy_diagnostics(POLICY + [{**LAST, "step": 3}], max_kl=6.5)).axes
    assert len(axes) == 4
    for ax, name in zip(axes, ("reward", "kl", "clip_fraction", "entropy")):
        expected = points(POLICY, name) + ([(3, LAST[name])] if name in LAST else [])
        assert expected in lines(ax).values()
    # the line where training stops
    assert [(0, 6.5), (1, 6.5)] in lines(axes[1]).values()
    assert len(plots.policy_diagnostics(POLICY).axes[1].get_lines()) == 1
    assert axes[3].get_ylim() == pytest.approx((0, 1.08 * POLICY[0]["entropy"]))  # the top point is not cut


def test_gold_and_proxy_are_drawn_over_the_root_of_the_kl():
    proxy, diversity, gold = drawn(plots.over_optimisation(POLICY)).axes
    roots = [0.0, 1.0, 2.0]  # an estimate under 0 counts as 0
    assert list(lines(proxy).values()) == [list(zip(roots, (0.0, 0.5, 1.0)))]
    assert list(lines(gold).values()) == [list(zip(roots, [record["gold"] for record in POLICY]))]
    assert list(lines(diversity).values()) == [
        list(zip(roots, [record[name] for record in POLICY])) for name in ("distinct_2", "separators")
    ]
    assert len(proxy.get_legend().get_texts()) == 2  # both axes share one legend
    assert diversity.get_ylim()[0] == 0


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=30),
    st.lists(st.floats(-1, 1), min_size=1, max_size=30),
)
def test_the_histogram_holds_every_score(base, policy):
    (ax,) = plots.gold_histogram(base, policy).axes
    assert ax.get_xlabel() == "gold score, -1 to 1" and ax.get_ylabel() == "density"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["base", "policy"]
    for bars, scores in zip(ax.containers, (base, policy)):
        heights = [bar.get_height() * 0.1 * len(scores) for bar in bars]  # bins of a tenth
        assert sum(heights) == pytest.approx(len(scores), rel=1e-6)
        assert max(heights) >= math.ceil(len(scores) / 20) - 1e-6  # 20 bins
        assert all(abs(height - round(height)) < 1e-6 for height in heights)


def test_the_histogram_puts_a_score_into_its_bin():
    (ax,) = drawn(plots.gold_histogram([0.0, 0.05, -0.95], [1.0])).axes
    base, policy = ([(round(bar.get_x(), 1), bar.get_height()) for bar in bars if bar.get_height()] for bars in ax.containers)
    assert [x for x, _ in base] == [-1.0, 0.0] and [height for _, height in base] == pytest.approx([10 / 3, 20 / 3])
    assert len(policy) == 1 and policy[0][0] >= 0.9


def test_colours_of_one_axis_differ():
    for draw, records in CASES.values():
        for ax in draw(records).axes:
            colours = [line.get_color() for line in ax.get_lines()]
            assert len(set(colours)) == len(colours)


def test_side_by_side_shows_both_in_one_scale_and_leaves_masked_places_out():
    got, expected = torch.tensor([[0.0, 5.0], [9.0, 1.0]]), torch.tensor([[0.0, 2.0], [9.0, 1.0]])
    mask = torch.tensor([[True, True], [False, True]])
    fig = plots.side_by_side(got, expected, "mask", mask)
    left, right = (ax.images[0] for ax in fig.axes[:2])
    assert left.get_clim() == right.get_clim() == (0, 5)
    assert left.get_array()[0].tolist() == [0, 5] and right.get_array()[0].tolist() == [0, 2]
    assert math.isnan(float(np.ma.filled(left.get_array(), np.nan)[1, 0]))
    assert [ax.get_title() for ax in fig.axes[:2]] == ["came out", "expected"]


def test_side_by_side_has_ticks_at_whole_rows_and_columns_and_draws_no_single_number():
    fig = plots.side_by_side(torch.zeros(1, 2), torch.ones(1, 2))
    for ax in fig.axes[:2]:
        assert [tick for tick in ax.get_xticks() if 0 <= tick < 2] == [0, 1] and set(ax.get_yticks()) <= {-1, 0, 1}
    assert plots.side_by_side(torch.zeros(1, 1), torch.ones(1, 1)) is None
    assert plots.side_by_side(torch.zeros(1, 2), torch.ones(1, 1)) is not None


def test_side_by_side_draws_outputs_without_a_finite_number():
    plots.side_by_side(torch.full((2, 2), math.nan), torch.full((2, 2), math.inf)).canvas.draw()


def test_a_band_is_shaded_from_low_to_high():
    _, (ax,) = plots.figure(1)
    plots.band(ax, [0, 1], [1.0, 2.0], [3.0, 3.0], label="expected")
    (path,) = ax.collections[0].get_paths()
    assert path.get_extents().extents.tolist() == [0.0, 1.0, 1.0, 3.0] and ax.collections[0].get_label() == "expected"
