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


NUMBERS, PLACES, SHIFT, UNITS, AGREED, COUNTS, LEVEL, RATIOS, BEHIND, TABLE, TRAINS = BUILD.probes
FLAT = "A = advantages.detach().reshape(-1, 1)"
LOO = "advantages = leave_one_out(rewards)"
VAR = "(rewards.var(1, keepdim=True, correction=0) + 1e-8).sqrt()"
MEAN = "torch.where(mean > 0, advantages / mean, 0)"
EACH = "each = torch.maximum(-A * ratio, -A * ratio.clamp(1 - epsilon, 1 + epsilon))"
RATIO = "ratio = (logprobs - old_logprobs.detach()).exp()"
WHOLE = "ratio = sequence_ratio(logprobs, old_logprobs, mask)[:, None].expand_as(logprobs)"
LAST = "return token_average(each, mask, denominator)"
WRONG = {
    "a loss for each token": (NUMBERS, "one number", [(LAST, "return each")]),
    "a float": (NUMBERS, "one number", [(LAST, LAST + ".item()")]),
    "without a gradient": (NUMBERS, "no gradient", [(LAST, LAST + ".detach()")]),
    "old log-probabilities are trained": (NUMBERS, "get a gradient", [(RATIO, RATIO.replace(".detach()", ""))]),
    "rewards by columns": (PLACES, "without transposing", [(FLAT, FLAT.replace("advantages", "advantages.T"))]),
    "groups by columns": (
        PLACES, "a group is a row", [("mean = rewards.mean(1, keepdim=True)", "mean = rewards.mean(0, keepdim=True)")],
    ),
    "the batch's mean for the group's": (PLACES, "a group is a row", [('"group": mean', '"group": rewards.mean()')]),
    "the group's mean for the batch's": (PLACES, "whole batch", [('"batch": rewards.mean()', '"batch": mean')]),
    "leave-one-out with itself": (SHIFT, "leave it out", [(LOO, "advantages = rewards - mean")]),
    "leave-one-out by G": (
        SHIFT, "in common", [(LOO, "advantages = rewards - (rewards.sum(1, keepdim=True) - rewards) / rewards.shape[1]")],
    ),
    "a baseline where there is none": (PLACES, "is to learn from it", [('"none": 0,', '"none": rewards.mean(),')]),
    "the deviation of the batch": (
        UNITS, "whole batch", [(VAR, "(rewards.var(correction=0) + 1e-8).sqrt()")],
    ),
    "the deviation by G - 1": (UNITS, "correction=0", [(VAR, VAR.replace(", correction=0", ""))]),
    "the variance for the deviation": (UNITS, "ten times", [(VAR, VAR.replace(".sqrt()", ""))]),
    "the fixed unit is not used": (UNITS, "`deviation`", [("advantages = advantages / deviation", "pass")]),
    "no eps": (AGREED, "0 / 0", [(VAR, VAR.replace(" + 1e-8", ""))]),
    "a group without reward": (AGREED, "0 / 0", [(MEAN, "advantages / mean")]),
    "whitened over the batch": (
        PLACES, "is to learn from it", [(FLAT, "advantages = advantages - rewards.mean()\n    " + FLAT)],
    ),
    "the sign without a clip": (COUNTS, "sign of the loss", [("each = -A * logprobs", "each = A * logprobs")]),
    "a product for the sequence": (
        LEVEL, "n-th root",
        [(WHOLE, "ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0).sum(1).exp()[:, None].expand_as(logprobs)")],
    ),
    "the ratio is detached": (NUMBERS, "no gradient", [(RATIO, RATIO.replace("logprobs -", "logprobs.detach() -"))]),
    "the ratio upside down": (LEVEL, "opposite directions", [(RATIO, "ratio = (old_logprobs.detach() - logprobs).exp()")]),
    "no clip": (RATIOS, "not clipped", [(EACH, "each = -A * ratio")]),
    "the smaller loss": (RATIOS, "smaller is taken", [(EACH, EACH.replace("maximum", "minimum"))]),
    "always clipped": (RATIOS, "always taken", [(EACH, "each = -A * ratio.clamp(1 - epsilon, 1 + epsilon)")]),
    "clipped above alone": (RATIOS, "not below", [(EACH, EACH.replace("1 - epsilon, 1 + epsilon", "max=1 + epsilon"))]),
    "an epsilon of its own": (RATIOS, "`epsilon` is not used", [(EACH, EACH.replace("epsilon", "0.2"))]),
    "tokens for sequences": (RATIOS, "whole completion", [('if clip == "token":', 'if clip == "sequence":')]),
    "padding counts": (COUNTS, "behind the end", [(LAST, "return token_average(each, mask | True, denominator)")]),
    "the batch for the completion": (
        COUNTS, "completion: this is the mean over all tokens", [(LAST, LAST.replace("denominator)", '"batch")'))],
    ),
    "the longest for the constant": (
        COUNTS, "longest",
        [(LAST, "scale = mask.shape[1] / mask.sum(1).max() if denominator == 'constant' else 1\n    " + LAST + " * scale")],
    ),
    "a product with the mask": (
        BEHIND, "0 times NaN",
        [(LAST, "lengths, sums = mask.sum(1), (each * mask).sum(1)\n    return {'completion': (sums / lengths).mean(),"
                " 'batch': sums.sum() / lengths.sum(), 'constant': sums.mean() / mask.shape[1]}[denominator]")],
    ),
    "the critic is not asked": (TABLE, "ppo (baseline critic", [('"critic": expected', '"critic": 0')]),
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
