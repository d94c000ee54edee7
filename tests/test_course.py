import pytest
import torch

from rlhf_lib import checkpoints, course


@pytest.mark.parametrize("gpu, name", [(True, "gpu"), (False, "laptop")])
def test_without_a_wish_the_machine_decides(monkeypatch, gpu, name):
    monkeypatch.delenv("RLHF_PRESET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert course.preset() == name


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


def test_chapters_start_from_the_published_run_until_there_is_a_finished_one_of_your_own(monkeypatch, tmp_path, tiny_run):
    monkeypatch.setenv("RLHF_PRESET", "smoke")
    monkeypatch.setattr(course, "RUNS", tmp_path)
    assert course.start_from("base") == course.PUBLISHED / "base"
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "summary.json").write_text("{}")
    assert course.start_from("base") == course.PUBLISHED / "base"  # no weights in it
    (tmp_path / "smoke" / "summary.json").unlink()
    (tmp_path / "smoke").rmdir()
    (tmp_path / "smoke").symlink_to(tiny_run)
    assert course.start_from("policy") == tmp_path / "smoke" / "policy"


@pytest.mark.parametrize("stage", ["base", "reward", "policy"])
def test_the_published_models_load(stage):
    model, tokenizer = checkpoints.load(course.PUBLISHED / stage, kind="reward" if stage == "reward" else "gpt")
    assert model.config.vocab_size == tokenizer.vocab_size
