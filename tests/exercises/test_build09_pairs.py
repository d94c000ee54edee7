"""What Build it 9.10 sees where two journeys differ in one thing, and in what `rlhf` is told."""

import pytest
import torch
from torch import nn

from rlhf_lib.exercises.build09_pairs import beside_fault, held_back, overheard, turned_fault, with_large_weights
from rlhf_lib.exercises.keep import the_course


def test_other_targets_of_the_tenth_held_back_change_its_accuracy_alone():
    one = {"accuracy": 0.7, "scores": [0.1, 0.2]}
    assert turned_fault(one, {"accuracy": 0.3, "scores": [0.1, 0.2]}) == ""
    assert "learned from" in turned_fault(one, {"accuracy": 0.3, "scores": [0.1, 0.21]})
    assert "from 0.700 to 0.600" in turned_fault(one, {"accuracy": 0.6, "scores": [0.1, 0.2]})
    labelled = [(str(place), target) for place in range(100) for target in [(0.0, 0.5, 1.0)[place % 3]]]
    back = {*the_course("split_labels")([text for text, _ in labelled], 0.1)[1]}
    assert 3 < len(back) < 20 and held_back(labelled) == back


def test_other_targets_of_long_passages_and_another_seed_make_another_model():
    pair = [{"accuracy": 0.7, "scores": [0.1, 0.2]}, {"accuracy": 0.3, "scores": [0.1, 0.2]}]
    assert beside_fault(pair, [0.1, 0.3], False) == ""
    assert "longer than `context` make the very same reward model" in beside_fault(pair, [0.1, 0.2], False)
    assert "two seeds make the very same policy" in beside_fault(pair, [0.1, 0.3], True)
    assert "what was right is then wrong" in beside_fault(pair[:1] * 2, [0.1, 0.2], True)


def test_large_weights_are_drawn_for_what_stands_on_no_other_memory():
    body, other = nn.Linear(4, 4), nn.Linear(4, 4)
    model, before = nn.Sequential(body, other), body.weight.clone()
    assert with_large_weights(model, [3, body]) is model and with_large_weights(abs) is abs
    assert torch.equal(body.weight, before) and 0.1 < other.weight.std() < 0.6
    with_large_weights(model)
    assert not torch.equal(body.weight, before)


def test_a_reward_model_is_sharpened_on_its_way_and_its_trainer_put_back():
    def train_reward_model(gpt):
        return nn.Linear(4, 4)

    names = {"rlhf": len, "train_reward_model": train_reward_model}
    exec("def journey(): return train_reward_model(3)", names)
    with overheard(names["journey"], sharp=True):
        assert torch.equal(names["journey"]().weight, with_large_weights(nn.Linear(4, 4)).weight)
    assert names["train_reward_model"] is train_reward_model


def test_what_rlhf_is_told_is_taken_down_and_it_is_put_back():
    def rlhf(gpt, reward, *, prompt, lr=1.0):
        return gpt, reward, prompt, lr

    names = {"rlhf": rlhf}
    exec("def journey(): return rlhf(1, reward=abs, prompt=[0]), rlhf(1, len, prompt=[7], lr=2.0)\ndef other(): return 5", names)
    with overheard(names["journey"]) as heard:
        assert names["journey"]() == ((1, abs, [0], 1.0), (1, len, [7], 2.0)) and names["rlhf"] is not rlhf
        with pytest.raises(TypeError):
            names["rlhf"](1)
    assert heard == [{"prompt": [0], "reward": abs}, {"prompt": [7], "reward": len}] and names["rlhf"] is rlhf
    del names["rlhf"]
    with overheard(names["other"]) as heard:  # it has joined its pieces in another way
        assert names["other"]() == 5
    assert heard == []
