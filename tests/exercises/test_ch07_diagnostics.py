"""Chapter 07's diagnostics: what is added, cut off or not divided has its name."""

import pytest

from rlhf_lib.exercises import verdict


def cut_off(logprobs, ref_logprobs):
    log_ratio = (ref_logprobs - logprobs).clamp(-10, 10)
    return -log_ratio, log_ratio.square() / 2, log_ratio.exp() - 1 - log_ratio


@pytest.mark.parametrize(
    "name, function, says",
    [
        ("kl_estimate", cut_off, "cut off"),
        ("explained_variance", lambda values, returns: 1 - (returns - values).var() / (returns.var() + 0.01), "is added"),
        ("explained_variance", lambda values, returns: 1 - (returns - values).abs().var() / returns.var(), "without their sign"),
        ("explained_variance", lambda values, returns: returns.var() - (returns - values).var(), "difference of two variances"),
    ],
)
def test_what_is_close_has_its_name(name, function, says):
    assert says in verdict(name, function).mistake
