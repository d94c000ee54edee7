import json
import shlex
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rlhf_lib import __main__ as command_line
from rlhf_lib import checkpoints, devices, runs
from rlhf_lib.files import RunError, write_json
from rlhf_lib.pipelines import assistant_settings
from rlhf_lib.pipelines.settings import changed, flat
from rlhf_lib.pipelines.shakespeare import PARTS, PRESETS, Settings
from rlhf_lib.pipelines.stages import Stages, command_of, constants, measured, saved_settings
from rlhf_lib.tokenization import CharTokenizer


@pytest.fixture
def opened(tmp_path):
    """`opened(changes, contents)`: the stages of a run at the smoke preset with changes, in one folder."""
    return lambda changes=None, contents=None: Stages(changed(PRESETS["smoke"], changes or {}), tmp_path / "run", PARTS, contents)


@pytest.fixture
def stages(opened):
    return opened()


def read(path):
    return json.loads(path.read_text())


def done(stages, name):
    """The stage `name` as if it had been done."""
    stages.finish(name, stages.begin())


def test_nothing_is_written_before_work_begins_then_the_settings_are(stages, opened):
    assert not stages.folder.exists()
    stages.begin("base")
    assert read(stages.folder / "settings.json") == flat(PRESETS["smoke"])
    opened()
    Stages(PRESETS["smoke"], str(stages.folder), PARTS)


def test_other_settings_in_the_folder_are_refused_by_name_and_nothing_is_written(stages):
    done(stages, "pretrain")
    before = (stages.folder / "settings.json").read_bytes()
    with pytest.raises(RunError, match=rf"{stages.folder} holds a run with preset='smoke', not 'laptop': choose another --out"):
        Stages(Settings(), stages.folder, PARTS)
    assert (stages.folder / "settings.json").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value", "stage"),
    [
        ("corpus", "tiny", "pretrain"),
        ("seed", 3, "pretrain"),
        ("model.width", 64, "pretrain"),
        ("labels", "synthetic:40", "reward"),
        ("reward.lr", 0.5, "reward"),
        ("ppo.lr", 0.5, "policy"),
        ("sentiment", "negative", "policy"),
        ("normaliser_samples", 9, "policy"),
        ("evaluate_samples", 9, "evaluate"),
    ],
)
def test_a_setting_may_change_until_the_first_stage_that_depends_on_it_begins(opened, name, value, stage):
    order, changes = list(PARTS), {name: value}
    opened().begin("base")  # stopped before anything was saved
    for earlier in order[: order.index(stage)]:
        done(opened(), earlier)
    done(opened(changes), "x")  # now it is the run's
    with pytest.raises(RunError, match=rf"holds a run with {name}={value!r}, not "):
        done(opened(changes), stage) or opened()


@pytest.mark.parametrize("left", ["base/state.pt", "base/model.safetensors"])
def test_a_stage_has_begun_when_it_has_left_something(opened, left):
    stages = opened()
    stages.begin("base")
    opened({"seed": 1})
    (stages.folder / "base").mkdir()
    (stages.folder / "base" / ".state.pt.1.tmp").write_text("half a file of a killed run")
    opened({"seed": 1})
    (stages.folder / left).write_text("")
    with pytest.raises(RunError, match="seed=0, not 1"):
        opened({"seed": 1})


# ----------------------------------------------------------------------------------------- what is learned from


def test_what_a_stopped_stage_learned_from_must_be_there_unchanged_when_it_goes_on(opened):
    opened().begin("base", corpus="a")
    opened().begin("base", corpus="b")  # nothing was saved of a
    state = opened().folder / "base" / "state.pt"
    runs.save_state(state, {"seconds": 1.0})
    opened().begin("base", corpus="b")
    with pytest.raises(RunError, match=r"run was begun with another content of corpus plays: put that back, or choose another"):
        opened().begin("base", corpus="c")
    opened().begin("reward", labels="new")  # what no stage has learned from may change


def test_a_path_may_name_another_place_with_the_same_content(opened):
    stages = opened({"labels": "/old/labels.jsonl"})
    stages.finish("reward", stages.begin("reward", labels="same"), "reward")
    moved = {"labels": "/new/labels.jsonl"}
    again = opened(moved, {"labels": lambda: "same"})
    again.begin("policy")
    assert read(stages.folder / "settings.json")["labels"] == "/new/labels.jsonl"

    def gone():
        raise ValueError("no such file")

    for content in (lambda: "other", gone):
        with pytest.raises(RunError, match=r"labels='/new/labels\.jsonl', not '/elsewhere'"):
            opened({"labels": "/elsewhere"}, {"labels": content})
    with pytest.raises(RunError, match=r"labels='/new/labels\.jsonl', not 'hand'"):
        opened({"labels": "hand"})


# ----------------------------------------------------------------------------------------- two runs in one folder

SECOND = """
import sys
from rlhf_lib.files import RunError, lock
try:
    held = lock(sys.argv[1])
except RunError as error:
    print(error)
else:
    print("mine", flush=True)
    sys.stdin.read()
"""


def second(path):
    return subprocess.Popen([sys.executable, "-c", SECOND, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_second_process_in_the_folder_is_refused_and_a_killed_one_leaves_no_lock(stages, opened):
    path = stages.folder / ".lock"
    first = second(path)
    assert first.stdout.readline() == "mine\n"
    with pytest.raises(RunError, match=rf"another run is at work in {stages.folder}: wait for it, or choose another --out"):
        stages.begin("base")
    first.kill()
    first.wait()
    started = stages.begin("base")
    opened().begin("base")  # the same process goes on
    assert second(path).communicate()[0] == f"another run is at work in {stages.folder}: wait for it, or choose another --out\n"
    stages.finish("pretrain", started, "base")
    assert second(path).communicate()[0] == "mine\n"


# ----------------------------------------------------------------------------------------- damaged, or of another version


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": "1"}, r"seed must be a whole number, got '1'"),
        ({"seed": 1.0}, r"seed must be a whole number, got 1\.0"),
        ({"seed": True}, r"seed must be a whole number, got True"),
        ({"ppo.lr": None}, r"ppo\.lr must be a number, got None"),
        ({"corpus": ["plays"]}, r"corpus must be a text, got \['plays'\]"),
        ({"rlhf.rate": 0.1}, r"this version does not know the setting rlhf\.rate; choose another --out"),
    ],
)
def test_settings_of_another_version_or_damaged_are_named_by_field(stages, change, said):
    write_json(stages.folder / "settings.json", {**flat(PRESETS["smoke"]), **change})
    with pytest.raises(RunError, match=rf"^{stages.folder / 'settings.json'}: {said}"):
        saved_settings(stages.folder, Settings)


def test_settings_that_an_older_run_does_not_have_keep_their_old_meaning(tmp_path):
    assistant = flat(assistant_settings.PRESETS["laptop"])
    older = {name: value for name, value in assistant.items() if name not in ("reward_adapters", "sft_layers")}
    write_json(tmp_path / "settings.json", older)
    assert saved_settings(tmp_path, assistant_settings.Settings) == {**assistant, "reward_adapters": True}


@pytest.mark.parametrize("record", [[], None, {"peak_memory_bytes": 3}, {"seconds": "5"}])
def test_a_record_of_a_stage_that_is_none_is_named(stages, record):
    write_json(stages.folder / "stages.json", {"pretrain": record})
    with pytest.raises(RunError, match=rf"{stages.folder / 'stages.json'} is damaged: pretrain has no seconds"):
        stages.done()


def test_what_a_checkpoint_does_not_say_is_named(tmp_path):
    checkpoints.write(tmp_path, {}, {"config": {}, "accuracy": 0.5}, CharTokenizer(["a"]))
    assert measured(tmp_path, "accuracy") == {"accuracy": 0.5}
    with pytest.raises(checkpoints.CheckpointError, match=r"model\.safetensors does not say its raters: train it again"):
        measured(tmp_path, "accuracy", "raters")


@pytest.mark.parametrize(
    "kept", [{"mean": 1.0}, {"mean": 1.0, "std": "2"}, {"mean": 1.0, "std": float("inf")}, {"mean": 1, "std": True}]
)
def test_constants_of_the_reward_that_are_no_numbers_are_named(tmp_path, kept):
    write_json(tmp_path / "reward.json", kept)
    assert constants(tmp_path / "reward.json", "mean") == {"mean": 1}
    with pytest.raises(
        RunError, match=rf"^{tmp_path / 'reward.json'} is damaged: std is no number; delete the folder {tmp_path}"
    ):
        constants(tmp_path / "reward.json", "mean", "std")


NAMES = st.text(min_size=1).filter(lambda text: text.strip() and "\0" not in text and not text.startswith("synthetic:"))


@given(NAMES, NAMES, st.integers(0, 2**63 - 1))
@hypothesis_settings(max_examples=40, deadline=None)
def test_the_command_that_is_printed_runs_as_printed(corpus, labels, seed):
    """Read by the shell's rules, it gives the settings that it was made of."""
    wanted = changed(PRESETS["smoke"], {"corpus": corpus, "labels": labels, "seed": seed, "ppo.lr": 1e-5})
    words = shlex.split(command_of("run", flat(wanted), PRESETS))
    assert words[:3] == ["python", "-m", "rlhf_lib"] and words[-2:] == ["--out", "DIR"]
    assert command_line.settings_of(command_line.parser().parse_args(words[3:])) == wanted


# ----------------------------------------------------------------------------------------- stages.json


def test_a_damaged_file_is_named(stages):
    stages.begin("base")
    (stages.folder / "stages.json").write_text('{"pretrain": ')
    with pytest.raises(RunError, match=r"stages\.json is damaged"):
        stages.done()
    (stages.folder / "settings.json").write_text("[")
    with pytest.raises(RunError, match=r"settings\.json is damaged"):
        Stages(PRESETS["smoke"], stages.folder, PARTS)


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
    stages.keep(time.monotonic() - 30, ".")
    assert stages.begin(".", "base") == pytest.approx(time.monotonic() - 130, abs=0.5)
    stages.finish("evaluate", stages.begin("."), ".", "base")
    assert not list(stages.folder.rglob("state.pt"))


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
    write_json(stages.folder / "stages.json", rows)
    assert stages.summary() == {
        "x": 1, "y": [2, 3], "shared": "b", "peak_memory_bytes": 30,
        "seconds": {"a": 1.25, "b": 2.5, "c": 0.25, "total": 4.0},
    }  # fmt: skip


def test_the_memory_of_a_card_is_noted_where_there_is_one(stages, monkeypatch):
    for name, peak in (("a", 7), ("b", 12), ("c", 9)):
        monkeypatch.setattr(devices, "peak_card_bytes", lambda peak=peak: peak)
        monkeypatch.setattr(devices, "card_name", lambda: "Tesla T4")
        stages.finish(name, stages.begin())
    assert stages.done()["a"]["peak_card_bytes"] == 7
    assert stages.summary()["peak_card_bytes"] == 12 and stages.summary()["card"] == "Tesla T4"
