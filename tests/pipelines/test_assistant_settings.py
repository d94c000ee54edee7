import pytest

from rlhf_lib.pipelines.assistant_settings import PRESETS, Settings


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"limit": -1}, "limit must not be negative, got -1"),
        ({"longest": -5}, "longest must not be negative, got -5"),
        ({"layers": -1}, "layers must not be negative, got -1"),
        ({"evaluate_prompts": -1}, "evaluate_prompts must not be negative, got -1"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0}, "alpha must be at least 1, got 0"),
        ({"best_of": 0}, "best_of must be at least 1, got 0"),
        ({"normaliser_samples": 1}, "normaliser_samples must be at least 2, got 1"),
        ({"sft_layers": -1}, "sft_layers must not be negative, got -1"),
        ({"layers": 0}, "layers 0 leaves no blocks that all share: give layers, or a reward model with reward_adapters"),
        ({"judge": "silver"}, "judge must be gold or endpoint:URL#MODEL, got 'silver'"),
        ({"judge": "endpoint:http://localhost:1/v1"}, "judge must be gold or endpoint:URL#MODEL"),
    ],
)
def test_bad_settings_are_refused_by_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Settings(**changes)


def test_the_presets_are_what_they_are_for():
    smoke, laptop, gpu = (PRESETS[name] for name in ("smoke", "laptop", "gpu"))
    assert [settings.preset for settings in PRESETS.values()] == list(PRESETS)
    assert (smoke.model, laptop.model, gpu.model) == ("tiny", "smollm2-135m", "gpt2-medium")
    assert (laptop.comparisons, gpu.comparisons) == ("ours", "hh-rlhf")
    assert (laptop.layers, laptop.rank, laptop.alpha, laptop.best_of) == (8, 16, 32, 16)
    assert gpu.layers == 0 and gpu.reward_adapters  # all, so that there is no trunk to put a head on
    assert not laptop.reward_adapters and laptop.sft_layers == 0
    assert smoke.ppo.iterations < laptop.ppo.iterations <= gpu.ppo.iterations
