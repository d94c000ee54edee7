"""Chapter 08's size of the next rollout and kept policy: what counts has to be whole, and a mean far below 0 is within."""

import pytest
import torch

from rlhf_lib.exercises import verdict


def sizes(clip_fractions, completions, most, back=lambda count: 0):
    found, rare = [], 0
    for share in clip_fractions:
        rare = rare + 1 if share < 0.01 else back(rare)
        if rare == 3 and 2 * completions <= most:
            completions, rare = 2 * completions, 0
        found.append(completions)
    return found


def kept(kls, max_kl, mean=torch.mean):
    return next((place - 1 for place, kl in enumerate(kls) if not mean(kl) <= max_kl), len(kls) - 1)


def test_right_answers_pass():
    assert verdict("rollout_sizes", sizes).passed and verdict("kept_iteration", kept).passed
    assert verdict("kept_iteration", lambda kls, max_kl: torch.tensor(kept(kls, max_kl))).passed


def test_what_counts_is_whole():
    found = verdict("rollout_sizes", lambda **given: list(map(float, sizes(**given))))
    assert "cannot be interpreted as an integer" in found.message
    assert "integer" in verdict("kept_iteration", lambda kls, max_kl: torch.tensor(float(kept(kls, max_kl)))).message
    found = verdict("kept_iteration", lambda kls, max_kl: kls[kept(kls, max_kl)].mean().item())
    assert "return the iteration's number" in found.mistake


def from_the_end(kls, max_kl):
    for place in range(len(kls) - 1, 0, -1):
        if not kls[place].mean() <= max_kl:
            return place - 1
    return len(kls) - 1


@pytest.mark.parametrize(
    "name, function, says",
    [
        ("rollout_sizes", lambda **given: sizes(**given, back=lambda count: max(0, count - 1)), "takes one off"),
        ("kept_iteration", lambda kls, max_kl: kept(kls, max_kl, lambda kl: kl.mean().abs()), "negative estimates"),
        ("kept_iteration", from_the_end, "stops at the last iteration beyond"),
        ("kept_iteration", lambda kls, max_kl: sum(bool(kl.mean() <= max_kl) for kl in kls) - 1, "behind the stop"),
        ("kept_iteration", lambda kls, max_kl: torch.tensor([not kl.mean() <= max_kl for kl in kls]).int().argmax().item() - 1,
         "argmax of zeros"),
    ],
)  # fmt: skip
def test_frequent_mistakes_have_their_names(name, function, says):
    assert says in verdict(name, function).mistake
