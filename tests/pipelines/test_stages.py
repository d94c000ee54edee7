import json
import time

import pytest

from rlhf_lib import devices, runs
from rlhf_lib.files import RunError
from rlhf_lib.pipelines.settings import flat
from rlhf_lib.pipelines.shakespeare import PRESETS, Settings
from rlhf_lib.pipelines.stages import Stages


@pytest.fixture
def stages(tmp_path):
    return Stages(PRESETS["smoke"], tmp_path / "run")


def read(path):
    return json.loads(path.read_text())


def test_the_settings_are_written_down_and_found_again(stages):
    assert read(stages.folder / "settings.json") == flat(PRESETS["smoke"])
    Stages(PRESETS["smoke"], stages.folder)
    Stages(PRESETS["smoke"], str(stages.folder))


def test_other_settings_in_the_folder_are_refused_by_name_and_nothing_is_written(stages):
    before = (stages.folder / "settings.json").read_bytes()
    with pytest.raises(RunError, match=rf"{stages.folder} holds a run with preset='smoke', not 'laptop': choose another --out"):
        Stages(Settings(), stages.folder)
    assert (stages.folder / "settings.json").read_bytes() == before


def test_a_damaged_file_is_named(stages):
    (stages.folder / "stages.json").write_text('{"pretrain": ')
    with pytest.raises(RunError, match=r"stages\.json is damaged"):
        stages.done()
    (stages.folder / "settings.json").write_text("[")
    with pytest.raises(RunError, match=r"settings\.json is damaged"):
        Stages(PRESETS["smoke"], stages.folder)


def test_what_is_finished_is_done_with_its_stats_and_its_state_is_gone(stages):
    assert stages.done() == {}
    state, other = stages.folder / "base" / "state.pt", stages.folder / "reward" / "state.pt"
    for path in (state, other):
        runs.save_state(path, {"seconds": 5.0})
    started = stages.begin("base")
    stages.finish("pretrain", started, "base", val_loss=1.5)
    record = stages.done()["pretrain"]
    assert record["val_loss"] == 1.5 and record["peak_memory_bytes"] > 50e6
    assert record["seconds"] == pytest.approx(5, abs=1)
    assert not state.exists() and other.exists()
    stages.finish("reward", stages.begin("reward"), "reward")
    assert list(stages.done()) == ["pretrain", "reward"]


def test_a_stage_that_was_stopped_began_as_much_earlier_as_it_had_worked(stages):
    assert stages.begin("base") == pytest.approx(time.monotonic(), abs=0.5)
    runs.save_state(stages.folder / "base" / "state.pt", {"seconds": 100.0})
    assert stages.begin("base") == pytest.approx(time.monotonic() - 100, abs=0.5)
    assert stages.begin() == pytest.approx(time.monotonic(), abs=0.5)


def test_a_stage_that_is_not_done_is_asked_for_by_the_command_that_does_it(stages):
    message = rf"has no finished policy stage: run `python -m rlhf_lib train-policy --out {stages.folder}` first"
    with pytest.raises(RunError, match=message):
        stages.need("policy", "train-policy")
    stages.finish("policy", stages.begin())
    stages.need("policy", "train-policy")


def test_the_summary_has_all_stats_the_seconds_by_stage_and_the_largest_peaks(stages):
    rows = {
        "a": {"seconds": 1.25, "peak_memory_bytes": 10, "x": 1, "shared": "a"},
        "b": {"seconds": 2.5, "peak_memory_bytes": 30, "y": [2, 3], "shared": "b"},
        "c": {"seconds": 0.25, "peak_memory_bytes": None},
    }
    (stages.folder / "stages.json").write_text(json.dumps(rows))
    assert stages.summary() == {
        "x": 1, "y": [2, 3], "shared": "b", "peak_memory_bytes": 30,
        "seconds": {"a": 1.25, "b": 2.5, "c": 0.25, "total": 4.0},
    }  # fmt: skip


def test_the_memory_of_a_card_is_noted_where_there_is_one(stages, monkeypatch):
    for name, peak in (("a", 7), ("b", 12), ("c", 9)):
        monkeypatch.setattr(devices, "peak_card_bytes", lambda peak=peak: peak)
        stages.finish(name, stages.begin())
    assert stages.done()["a"]["peak_card_bytes"] == 7
    assert stages.summary()["peak_card_bytes"] == 12
