"""What works on the CPU alone is found before a chapter gives it tensors of a GPU; the pretend card stands for one."""

from typing import NamedTuple

import card  # noqa: F401  the device
import pytest
import torch
from torch import nn

from rlhf_lib import exercises
from rlhf_lib.exercises import keep, yours
from rlhf_lib.exercises.elsewhere import fault_on, moved, stays
from rlhf_lib.exercises.keep import the_course

exercises.load()

# What the chapters give tensors of a GPU, where the trial of it means something: its own inputs move as a whole.
GIVEN = (
    "next_token_loss", "perplexity_and_bits", "clip_gradient", "adam_step", "validation_loss", "with_temperature",
    "top_k_filter", "top_p_filter", "sample", "sequence_logprob", "until_end", "cached_step", "rotary", "GPT", "generate",
    "policy_loss", "kl_estimate", "completion_kl", "token_advantages", "with_baseline", "update_policy", "train_reward_model",
    "log_reward", "rlhf", "gae", "masked_whiten", "value_loss", "explained_variance", "packed_mask", "train_preference",
    "train_assistant", "policy_gradient", "dpo_loss", "kto_loss", "group_advantages", "leave_one_out", "importance_weights",
)  # fmt: skip


class Pair(NamedTuple):
    first: object
    second: object


def test_tensors_and_modules_are_moved_wherever_they_are():
    x = torch.arange(3.0)
    there = moved({"a": [x, (x, "word")], "b": Pair(nn.Linear(3, 2), 4)}, "card")
    assert there["a"][0].device.type == there["a"][1][0].device.type == "card" and there["a"][1][1] == "word"
    assert isinstance(there["b"], Pair) and there["b"].first.weight.device.type == "card" and there["b"].second == 4
    assert torch.equal(moved(there, "cpu")["a"][0], x)


@pytest.mark.parametrize("name", GIVEN)
def test_the_worked_answers_work_on_the_card(name):
    assert fault_on("card", name, the_course(name)) == ""


def rotary(x, positions):
    half = x.shape[-1] // 2
    angles = torch.outer(positions.float(), 10000.0 ** (-torch.arange(half) / half))
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()], -1)


def turned(x, positions):
    """`rotary` on any device, since new tensors lie where x does."""
    with x.device:
        return rotary(x, positions)


def explained_variance(values, returns):
    return 1 - (returns - values).numpy().var() / returns.numpy().var()


@pytest.mark.parametrize("name, function", [("rotary", rotary), ("explained_variance", explained_variance)])
def test_a_right_answer_for_the_cpu_alone_is_found_and_the_learner_told(name, function, capsys):
    assert "device" in fault_on("card", name, function)
    assert stays("card", name, function, the_course)
    assert f"Your {name} works on the CPU alone, and here the model is on card" in capsys.readouterr().out


def test_what_works_there_or_fails_for_another_reason_is_taken(capsys):
    assert not stays("card", "rotary", turned, the_course)
    assert not stays("card", "rotary", lambda x, positions: 1 / 0, the_course)
    assert capsys.readouterr().out == ""


def test_nothing_is_tried_on_the_cpu_or_said_where_the_course_s_works_there_alone_too():
    def never(*args):
        raise AssertionError("it was called")

    assert not stays("cpu", "rotary", never, never)
    assert not stays("card", "rotary", rotary, lambda name: rotary)


def test_yours_takes_the_course_s_on_a_gpu_and_the_learner_s_on_the_cpu(tmp_path, capsys):
    path = tmp_path / exercises.FILE
    assert keep("rotary", rotary, path, again=False) == ""
    assert yours("rotary", path=path).__module__ == "my_rlhf"
    assert yours("rotary", device=torch.device("card"), path=path) is the_course("rotary")
    said = capsys.readouterr().out.splitlines()
    assert (
        said[0] == "your rotary" and said[1].startswith("Your rotary works on the CPU alone") and said[2] == "the course's rotary"
    )


def test_a_build_of_a_learner_is_tried_too(capsys):
    def generate(model, prompts, mask, uniforms, temperature=1.0, end_token=0):
        torch.arange(prompts.shape[1]) + prompts
        return the_course("generate")(model, prompts, mask, uniforms, temperature, end_token)

    assert stays("card", "generate", generate, the_course)
