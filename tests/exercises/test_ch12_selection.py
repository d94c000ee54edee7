"""Chapter 12's checks of the best and its control, and of a token's weight: what differs by little has its own name."""

import pytest
import torch

from rlhf_lib.exercises import verdict


def best_and_control(rewards, uniforms, place=lambda u, G: (u * G).long(), start=lambda N, G: torch.arange(N) * G):
    N, G = rewards.shape
    return start(N, G) + rewards.argmax(1), start(N, G) + place(uniforms, G)


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"place": lambda u, G: (u * G).round().long().clamp(max=G - 1)}, "rounded; the half at both ends"),
        ({"place": lambda u, G: (u * G).ceil().long() - 1}, "rounded up"),
        ({"start": lambda N, G: torch.arange(N) * N}, "not at n N"),
    ],
)
def test_places_that_are_a_little_off_are_named(changes, word):
    assert word in verdict("best_and_control", lambda **given: best_and_control(**given, **changes)).message
    assert verdict("best_and_control", best_and_control).passed


def test_rewards_in_place_of_rows_are_told_as_floats():
    message = verdict("best_and_control", lambda rewards, uniforms: (rewards.amax(1), rewards.amin(1))).message
    assert "these are floats" in message and "return row numbers" in message


def test_what_is_done_above_the_cap_is_named():
    def one_above(logprobs, sampler_logprobs, mask, cap):
        weights = torch.where(mask, logprobs - sampler_logprobs, 0).detach().exp()
        return torch.where(weights > cap, 1.0, weights)

    assert "become 1" in verdict("importance_weights", one_above).message
