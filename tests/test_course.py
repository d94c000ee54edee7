import json
import shutil

import pytest
import torch

from rlhf_lib import checkpoints, course, labels
from rlhf_lib.models.lora import Branch


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(course, "HOME", tmp_path / "home")
    monkeypatch.setattr(course, "RUNS", tmp_path / "runs")


@pytest.mark.parametrize("gpu", [True, False])
def test_a_chapter_has_the_size_of_its_text_until_another_is_chosen(monkeypatch, capsys, gpu):
    monkeypatch.delenv("RLHF_PRESET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert course.preset() == "laptop"
    course.choose(preset="gpu")
    assert course.preset() == "gpu" and "the published models, and their experiments have the size gpu" in capsys.readouterr().out
    monkeypatch.setenv("RLHF_PRESET", "smoke")
    assert course.preset() == "smoke"


def test_what_cannot_be_chosen_is_said_and_changes_nothing(monkeypatch):
    monkeypatch.delenv("RLHF_PRESET", raising=False)
    course.choose(preset="gpu")
    with pytest.raises(ValueError, match="models must be one of published, own, got 'mine'"):
        course.choose(models="mine")
    with pytest.raises(ValueError, match="preset must be one of smoke, laptop, gpu, got 'huge'"):
        course.choose(preset="huge")
    with pytest.raises(ValueError, match=r"there is no finished run in .*laptop: make one with `python -m rlhf_lib run"):
        course.choose(models="own", preset="laptop")
    assert course.choices() == {"models": "published", "preset": "gpu"}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"models": ["own"], "preset": 3}', '{"preset": {}}'])
def test_a_damaged_choice_is_none(content):
    course.HOME.mkdir()
    (course.HOME / course.CHOICES).write_text(content)
    assert course.choices() == {"models": "published", "preset": "laptop"}


def test_the_environment_decides_first(monkeypatch):
    monkeypatch.setenv("RLHF_PRESET", "smoke")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert course.preset() == "smoke"
    monkeypatch.setenv("RLHF_PRESET", "huge")
    with pytest.raises(ValueError, match="RLHF_PRESET must be one of smoke, laptop, gpu, got 'huge'"):
        course.preset()


@pytest.mark.parametrize("name, values", [("smoke", (1, 1)), ("laptop", (2, 2)), ("gpu", (3, 2))])
def test_pick_takes_the_presets_value_and_the_laptops_where_gpu_has_none(monkeypatch, name, values):
    monkeypatch.setenv("RLHF_PRESET", name)
    assert (course.pick(1, 2, 3), course.pick(smoke=1, laptop=2)) == values


def test_chapters_start_from_the_published_run_until_a_finished_one_of_your_own_is_chosen(monkeypatch, tmp_path, tiny_run):
    monkeypatch.setenv("RLHF_PRESET", "smoke")
    own = course.RUNS / "smoke"
    own.mkdir(parents=True)
    (own / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="no finished run"):
        course.choose(models="own")  # no weights in it
    (own / "summary.json").unlink()
    own.rmdir()
    own.symlink_to(tiny_run)
    assert course.start_from("base") == course.SMOKE / "base"
    course.choose(models="own")
    assert course.start_from("policy") == own / "policy"
    own.unlink()
    assert course.start_from("policy") == course.SMOKE / "policy"  # it was deleted since
    own.symlink_to(tiny_run)
    course.choose(models="published")
    assert course.start_from("policy") == course.SMOKE / "policy"


def test_a_run_of_adapters_is_no_start_since_chapters_take_the_reward_model_apart(monkeypatch, tiny_run):
    monkeypatch.setenv("RLHF_PRESET", "smoke")
    own = course.RUNS / "smoke"
    shutil.copytree(tiny_run, own)
    course.choose(models="own")
    base, tokenizer = checkpoints.load(own / "base")
    checkpoints.save(own / "reward", Branch(base, rank=2, scalar=True, source="../base"), tokenizer)
    with pytest.raises(ValueError, match=r"there is no finished run in .*smoke: make one with .*, without adapters"):
        course.choose(models="own")
    assert course.start_from("reward") == course.SMOKE / "reward"


def test_the_whole_loop_gets_texts_and_labels_as_plain_data_and_prints_what_came_of_it(capsys):
    got = {}
    made = {
        "bits_per_character": 2.914,
        "accuracy": torch.tensor(0.62),
        "records": [{"reward": 0.08, "kl": 0.0}, {"reward": 0.5, "kl": 4.0}, {"reward": 0.904, "kl": 9.46}],
        "samples": {"base": ["\nAlas! ", "O woe!", "left out"], "policy": ["I thank you.", "My love!", "left out"]},
    }

    def journey(train, held_out, labelled):
        got.update(train=train, held_out=held_out, labelled=labelled)
        return made

    def split_labels(texts, held_out):  # by another hash than the course's
        assert held_out == 0.1 and len(set(texts)) == len(texts)
        return [text for text in texts if len(text) % 9], [text for text in texts if not len(text) % 9]

    course.whole_loop({"journey": journey, "split_labels": split_labels})
    held_back = [target for text, target in dict(got["labelled"]).items() if not len(text) % 9 and target != 0.5]
    constant = max(held_back.count(0.0), held_back.count(1.0)) / len(held_back)
    assert 0.5 < constant < 0.8
    assert capsys.readouterr().out.splitlines() == [
        "",
        f"2.91 bits per character; the reward model is right on 62% (one answer for all: {constant:.0%})",
        "reward 0.08 to 0.90, KL 0.0 to 9.5 nats",
        *["===== base", "---", "Alas!", "---", "O woe!", "===== policy", "---", "I thank you.", "---", "My love!"],
    ]
    assert len(got["train"]) == len(got["held_out"]) == 38 and all(isinstance(text, str) for text in got["train"])
    assert len(got["labelled"]) > 4000 and sum(map(len, got["train"])) > 700_000
    assert all(isinstance(text, str) for text, _ in got["labelled"])
    assert {target for _, target in got["labelled"]} == {0.0, 0.5, 1.0}
    left = json.loads((course.HOME / "my_rlhf.json").read_text(encoding="utf-8"))
    assert 0 <= left.pop("minutes") < 1
    assert left == {
        "bits_per_character": 2.914, "accuracy": pytest.approx(0.62), "constant": constant, "held_back": len(held_back),
        "labels": len(got["labelled"]), "own_labels": 0, "reward": [0.08, 0.5, 0.904], "kl": [0.0, 4.0, 9.46],
    }  # fmt: skip
    assert not any(text.startswith("My own") for text, _ in got["labelled"])
    row = '{"text": "My own line.", "checkpoint": "laptop-0", "label": "positive", "reader": "me"}'
    (course.HOME / course.MY_LABELS).write_text(f"{row}\n{row.replace('me', 'you')}\n", encoding="utf-8")
    before = len(got["labelled"])
    made["records"] = made["records"][:1]  # stopped at once
    course.whole_loop({"journey": journey, "split_labels": split_labels})
    assert len(got["labelled"]) == before + 1 and got["labelled"][-1] == ("My own line.", 1.0)
    assert json.loads((course.HOME / "my_rlhf.json").read_text(encoding="utf-8"))["own_labels"] == 1
    course.whole_loop({"journey": journey})  # a journey that splits in a way of its own
    held_back = [target for text, target in got["labelled"] if labels.draw_of(text) < 0.1 and target != 0.5]
    left = json.loads((course.HOME / "my_rlhf.json").read_text(encoding="utf-8"))
    assert left["held_back"] == len(held_back) and left["constant"] == held_back.count(0.0) / len(held_back) > 0.5
    with pytest.raises(SystemExit, match=r"journey \(9\.10\) is not in my_rlhf\.py yet"):
        course.whole_loop({})


@pytest.mark.parametrize(("preset", "run"), [("smoke", "SMOKE"), ("laptop", "PUBLISHED"), ("gpu", "PUBLISHED")])
def test_the_smoke_preset_starts_from_tiny_models_and_the_others_from_the_published_ones(monkeypatch, preset, run):
    monkeypatch.setenv("RLHF_PRESET", preset)
    assert course.start_from("base") == getattr(course, run) / "base"


@pytest.mark.parametrize("run", ["PUBLISHED", "SMOKE"])
@pytest.mark.parametrize("stage", ["base", "reward", "policy"])
def test_the_published_models_load(stage, run):
    model, tokenizer = checkpoints.load(getattr(course, run) / stage, kind="reward" if stage == "reward" else "gpt")
    assert model.config.vocab_size == tokenizer.vocab_size
    assert run == "PUBLISHED" or sum(weight.numel() for weight in model.parameters()) < 700_000
