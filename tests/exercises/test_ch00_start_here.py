import pytest
import torch

from rlhf_lib.exercises import verdict


def share_positive(scores, limit):
    return sum(1 for score in scores if score > limit) / len(scores)


ALTERNATIVES = {"share_positive": share_positive}


@pytest.mark.parametrize(
    "right",
    [
        share_positive,
        lambda scores, limit: (scores > limit).float().mean().item(),
        lambda scores, limit: 1 - (scores <= limit).double().mean().item(),
        lambda scores, limit: torch.count_nonzero(scores.gt(limit)).item() / scores.numel(),
    ],
)
def test_other_right_answers_pass(right):
    assert verdict("share_positive", right).passed


def test_the_mistake_that_the_chapter_asks_for_is_named():
    found = verdict("share_positive", lambda scores, limit: (scores >= limit).float().mean().item())
    assert "use > where you have >=" in found.message


@pytest.mark.parametrize("constant", [0.0, 0.5, 1.0, 0.25])
def test_no_constant_passes(constant):
    assert not verdict("share_positive", lambda scores, limit: constant).passed
