import pytest

from rlhf_lib import checkpoints, runs, widgets
from rlhf_lib.tokenization import CharTokenizer
from rlhf_lib.widgets.explorer import EXPLORED
from rlhf_lib.widgets.parts import escape

from .helpers import model_of, spans


@pytest.fixture
def run(tmp_path, tokenizer, reward_model):
    """A run's folder: policies of iterations 0, 5 and 10 and the last, 12, with their stats."""
    metrics = runs.Metrics(tmp_path)
    for iteration in range(13):
        stats = {"kl": iteration / 3, "reward_normalised": -1 + iteration / 20, "gold": iteration / 30}
        folders = ["policy"] if iteration == 12 else []
        if iteration % 5 == 0:
            folders.append(f"policy/iteration-{iteration:03d}")
        model = model_of(tokenizer, iteration)
        for folder in folders:
            checkpoints.save(tmp_path / folder, model, tokenizer, iteration=iteration, kl=-1.0)
        metrics.log("policy", iteration, **stats)
    checkpoints.save(tmp_path / "reward", reward_model, tokenizer)
    return tmp_path


def test_the_explorer_shows_the_stats_of_the_metrics(run, tokenizer):
    box = widgets.explorer(run, count=2, max_new_tokens=10)
    assert [value for _, value in box.slider.options] == [0, 5, 10, 12]
    records = {record["step"]: record for record in runs.Metrics(run).read("policy")}
    seen, pictures = set(), set()
    for iteration in (0, 5, 10, 12):
        box.slider.value = iteration
        for name in ("kl", "reward_normalised", "gold"):
            assert f">{records[iteration][name]:.4f}<" in box.values.value
        for one in widgets.checkpoint_samples(widgets.policy_checkpoints(run)[len(seen)], count=2, max_new_tokens=10):
            assert "".join(row[3] for row in spans(box.output.value)).count(escape(one.text)) >= 1
        seen.add(box.output.value)
        pictures.add(bytes(box.curves.value))
    assert len(seen) == len(pictures) == 4


def test_without_metrics_the_stats_are_those_of_the_checkpoint(run):
    (run / "metrics.jsonl").unlink()
    found = widgets.policy_checkpoints(run)
    assert [checkpoint["iteration"] for checkpoint in found] == [0, 5, 10, 12]
    assert {checkpoint["kl"] for checkpoint in found} == {-1.0}
    assert ">-1.0000<" in widgets.explorer(run, count=1, max_new_tokens=4).values.value


def test_a_folder_without_checkpoints_is_said(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint in"):
        widgets.explorer(tmp_path)


def test_a_checkpoint_lost_meanwhile_is_said(run):
    box = widgets.explorer(run, count=1, max_new_tokens=4)
    (run / "policy" / "iteration-005" / "model.safetensors").unlink()
    box.slider.value = 5
    assert "no checkpoint in" in box.note.value
    box.slider.value = 10
    assert box.note.value == ""


def test_the_curves_mark_the_checkpoint():
    records = [{"iteration": step, "kl": float(step), "reward_normalised": -1.0, "gold": 0.0} for step in range(4)]
    axes = widgets.checkpoint_curves(records, 2).axes
    assert [ax.get_title() for ax in axes] == [title for _, title, _, _ in EXPLORED]
    assert list(axes[0].lines[0].get_ydata()) == [0, 1, 2, 3]
    assert list(axes[0].lines[1].get_xdata()) == [2, 2]


def test_a_reward_model_of_another_tokenizer_is_refused(run, reward_model):
    checkpoints.save(run / "reward", reward_model, CharTokenizer.train(["hgfedcba <>&\n."[::-1] + "h"]))
    with pytest.raises(checkpoints.CheckpointError, match="were trained with different tokenizers: choose two of one run"):
        widgets.explorer(run)
