"""Build it 12.11: right programs pass its probes, and each wrong one is found at the probe that looks for its mistake."""

from pathlib import Path

import nbformat
import pytest
import torch

from rlhf_lib import policy_gradient as library
from rlhf_lib.exercises import build12_methods
from rlhf_lib.exercises.build import try_out

BUILD = build12_methods.policy_gradient
NOTEBOOK = Path(__file__).parents[2] / "solutions" / "12_beyond_ppo.ipynb"
CELLS = {cell.id: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells}
SOURCE = CELLS[BUILD.name]


def program(*changes):
    """The worked answer, with pieces of its text replaced."""
    source = SOURCE
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    names = {"torch": torch}
    exec("\n\n".join([*map(CELLS.get, ("leave_one_out", "group_advantages", "token_average", "sequence_ratio")), source]), names)
    return names[BUILD.name]


def by_the_library(rewards, logprobs, old_logprobs, mask, *, baseline, normaliser, clip, denominator, epsilon=0.2, expected=0.0,
                   deviation=1.0):  # fmt: skip
    A = library.advantages(rewards, baseline, normaliser, expected, deviation).flatten()
    return library.policy_gradient_loss(logprobs, old_logprobs, A, mask, clip, denominator, epsilon).loss


def by_loops(rewards, logprobs, old_logprobs, mask, *, baseline, normaliser, clip, denominator, epsilon=0.2, expected=0.0,
             deviation=1.0):  # fmt: skip
    """Written differently: a completion at a time, on its real tokens alone."""
    total, (N, G) = 0.0, rewards.shape
    for b in range(N * G):
        row, r = rewards[b // G], rewards[b // G, b % G]
        others = torch.cat([row[: b % G], row[b % G + 1 :]])
        means = {"none": 0.0, "batch": rewards.mean(), "leave-one-out": others.mean(), "group": row.mean(), "critic": expected}
        A = r - means[baseline]
        spread = {"none": 1.0, "deviation": row.std(correction=0), "mean": row.mean(), "fixed": deviation}[normaliser]
        A = A / spread if normaliser in ("none", "fixed") or spread > 1e-6 else torch.zeros(())
        new, old = logprobs[b][mask[b]], old_logprobs[b][mask[b]].detach()
        if clip == "none":
            each = -A * new
        else:
            gap = new - old if clip == "token" else (new - old).mean().expand(len(new))
            low, high = gap.exp(), gap.exp().clip(1 - epsilon, 1 + epsilon)
            each = -torch.min(A * low, A * high)
        share = {"completion": 1 / (N * G * len(new)), "batch": 1 / int(mask.sum()), "constant": 1 / mask.numel()}[denominator]
        total = total + each.sum() * share
    return total


@pytest.mark.parametrize("seed", [7])
def test_the_worked_answer_passes_the_cheap_probes(seed):
    assert try_out(BUILD, program(), seed, most=100) == ("", "")


@pytest.mark.parametrize("answer", [by_the_library, by_loops])
def test_an_answer_written_differently_passes_the_cheap_probes(answer):
    assert try_out(BUILD, answer, 3, most=100) == ("", "")


FIRST, *_, LEVEL, RATIOS, _, TABLE, TRAINS = BUILD.probes
EACH = "each = torch.maximum(-A * ratio, -A * ratio.clamp(1 - epsilon, 1 + epsilon))"
RATIO = "ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0).exp()"
WHOLE = "ratio = sequence_ratio(logprobs, old_logprobs, mask)[:, None].expand_as(logprobs)"
LAST = "return token_average(each, mask, denominator)"
WRONG = {
    "a product for the sequence": (
        LEVEL, "n-th root",
        [(WHOLE, "ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0).sum(1).exp()[:, None].expand_as(logprobs)")],
    ),
    "the ratio upside down": (LEVEL, "opposite directions", [(RATIO, "ratio = (old_logprobs.detach() - logprobs).exp()")]),
    "padding in the ratio of a completion": (
        LEVEL, "padding is counted in s(y)",
        [(WHOLE, "ratio = ((logprobs - old_logprobs.detach()).sum(1) / mask.sum(1)).exp()[:, None].expand_as(logprobs)")],
    ),
    "the mean over all columns in the ratio of a completion": (
        LEVEL, "padding is counted in s(y)",
        [(WHOLE, "ratio = (logprobs - old_logprobs.detach()).mean(1).exp()[:, None].expand_as(logprobs)")],
    ),
    "the ratio of a completion by T": (
        LEVEL, "divided by T, padding included",
        [(WHOLE, "ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0).mean(1).exp()[:, None].expand_as(logprobs)")],
    ),
    "the ratio of a completion by the mean length": (
        LEVEL, "the mean over its own tokens",
        [(WHOLE, "ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0).sum(1) / mask.sum(1).float().mean()\n"
                 "            ratio = ratio.exp()[:, None].expand_as(logprobs)")],
    ),
    "the smaller ratio": (
        RATIOS, "smaller of the two ratios",
        [(EACH, "each = -A * torch.minimum(ratio, ratio.clamp(1 - epsilon, 1 + epsilon))")],
    ),
    "the larger ratio": (
        RATIOS, "larger of the two ratios",
        [(EACH, "each = -A * torch.maximum(ratio, ratio.clamp(1 - epsilon, 1 + epsilon))")],
    ),
    "clipped below alone": (RATIOS, "not above", [(EACH, EACH.replace("1 - epsilon, 1 + epsilon", "min=1 - epsilon"))]),
    "no clip": (RATIOS, "not clipped", [(EACH, "each = -A * ratio")]),
    "the smaller loss": (RATIOS, "smaller is taken", [(EACH, EACH.replace("maximum", "minimum"))]),
    "always clipped": (RATIOS, "always taken", [(EACH, "each = -A * ratio.clamp(1 - epsilon, 1 + epsilon)")]),
    "clipped above alone": (RATIOS, "not below", [(EACH, EACH.replace("1 - epsilon, 1 + epsilon", "max=1 + epsilon"))]),
    "an epsilon of its own": (RATIOS, "`epsilon` is not used", [(EACH, EACH.replace("epsilon", "0.2"))]),
    "tokens for sequences": (RATIOS, "whole completion", [('if clip == "token":', 'if clip == "sequence":')]),
    "another bound where none is given": (FIRST, "epsilon is the number 0.1", [("epsilon=0.2", "epsilon=0.1")]),
    "something is expected where nothing is said": (FIRST, "expected is the number 1.0", [("expected=0.0", "expected=1.0")]),
    "a unit of 0 where none is given": (FIRST, "by the card it is 1.0", [("deviation=1.0", "deviation=0.0")]),
    "no clip beside the group's mean": (
        TABLE, "grpo (baseline group", [('if clip == "none":', 'if clip == "none" or baseline == "group":')],
    ),
    "the mean ratio for the geometric mean": (
        RATIOS, "mean of the tokens' ratios",
        [(WHOLE, "ratio = (torch.where(mask, logprobs - old_logprobs.detach(), 0).exp() * mask).sum(1) / mask.sum(1)\n"
                 "            ratio = ratio[:, None].expand_as(logprobs)")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_is_found_at_its_own_probe(name):
    probe, word, changes = WRONG[name]
    found = try_out(BUILD, program(*changes), most=100)
    assert (found[0], word in found[1]) == (probe, True), found


def test_the_oracle_of_the_table_is_the_library_s_for_every_row():
    inputs = next(one for one in BUILD.draw(5) if one["probe"] == TABLE)
    assert BUILD.fault(inputs, BUILD.answer(by_the_library, inputs)) == ""


def test_every_row_learns():
    inputs = {**next(one for one in BUILD.draw(2) if one["probe"] == TRAINS), "updates": 25}
    assert BUILD.fault(inputs, BUILD.answer(program(), inputs)) == ""


def test_a_loss_with_its_sign_turned_everywhere_does_not_learn():
    inputs = {**next(one for one in BUILD.draw(2) if one["probe"] == TRAINS), "updates": 2}
    turned = program((LAST, "return -token_average(each, mask, denominator)"))
    assert "to gain 0.2" in BUILD.fault(inputs, BUILD.answer(turned, inputs))


def test_the_stub_is_not_written_yet():
    def policy_gradient(rewards, logprobs, old_logprobs, mask, **switches):
        raise NotImplementedError()

    assert try_out(BUILD, policy_gradient)[1].startswith("not written yet")
