import pytest

from rlhf_lib import runs, widgets
from rlhf_lib.widgets import live as live_module


def test_live_curves_draw_what_was_logged_into_one_picture():
    live = widgets.LiveCurves(["loss", ("train_loss", "val_loss"), "clip_fraction", "mystery"], every=0)
    image, pictures = live.image, []
    with live:
        for step in range(3):
            live.log(step, loss=3.0 - step, train_loss=step, val_loss=None if step % 2 else 9.0, stage="pretrain")
            pictures.append(bytes(image.value))
    assert live.image is image and pictures[-1].startswith(b"\x89PNG")
    assert len(set(pictures)) == 3
    loss, both, clip, mystery = (ax for ax in live.figure().axes if ax.get_visible())
    assert [list(part) for part in loss.lines[0].get_data()] == [[0, 1, 2], [3, 2, 1]]
    assert list(both.lines[1].get_data()[0]) == [0, 2]
    assert (loss.get_ylabel(), clip.get_ylabel()) == ("nats per token", "share of tokens")
    assert mystery.get_title() == "mystery" and not mystery.lines
    assert all(ax.get_xlabel() == "step" for ax in (loss, both, clip, mystery))


def test_live_curves_do_not_draw_at_every_step(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(live_module.time, "monotonic", lambda: now[0])
    live = widgets.LiveCurves(["kl"], every=5)
    drawn = []
    monkeypatch.setattr(live_module, "png", lambda figure: drawn.append(now[0]) or b"")
    with live:
        for step in range(12):
            live.log(step, kl=step)
            now[0] += 1
    assert drawn == [100, 105, 110, 112]


def test_live_curves_follow_a_loop_of_the_library(tmp_path):
    metrics = runs.Metrics(tmp_path)
    live = widgets.LiveCurves(["kl"], every=0.02)
    metrics.log("pretrain", 0, kl=7.0)
    with live.follow(tmp_path, "policy"):
        before = live.image.value
        for step in range(3):
            metrics.log("policy", step, kl=float(step))
        for _ in range(200):
            if live.image.value != before:
                break
            live_module.time.sleep(0.05)
        assert live.image.value != before  # drawn while the loop runs
        metrics.log("policy", 3, kl=3.0)
    assert [record["kl"] for record in live.records] == [0, 1, 2, 3]
    assert list(live.figure().axes[0].lines[0].get_ydata()) == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="the loop"), live.follow(tmp_path, "policy"):
        raise RuntimeError("the loop stops")


@pytest.mark.parametrize("names", ["loss", []])
def test_live_curves_need_names(names):
    with pytest.raises(ValueError, match="names must be a list"):
        widgets.LiveCurves(names)
