"""Each wrong program is found at the probe of 12.11 that looks for its mistake: advantages, and what a token counts."""

import pytest
from test_build12_methods import BUILD, program

from rlhf_lib.exercises.build import try_out

NUMBERS, PLACES, SHIFT, UNITS, AGREED, COUNTS, _, _, BEHIND, _, _ = BUILD.probes
FLAT = "A = advantages.detach().reshape(-1, 1)"
LOO = "advantages = leave_one_out(rewards)"
VAR = "(rewards.var(1, keepdim=True, correction=0) + 1e-8).sqrt()"
MEAN = "torch.where(mean > 0, advantages / mean, 0)"
RATIO = "ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0).exp()"
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
    "1e-4 beside the deviation": (
        UNITS, "what is added to the deviation is too large",
        [("(rewards.var(1, keepdim=True, correction=0) + 1e-8).sqrt()", "(rewards.std(1, keepdim=True, correction=0) + 1e-4)")],
    ),
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
    "the ratio is detached": (NUMBERS, "no gradient", [(RATIO, RATIO.replace("logprobs -", "logprobs.detach() -", 1))]),
    "a ratio without a clip": (
        COUNTS, "the ratio plays no part", [("each = -A * logprobs", "each = -A * (logprobs - old_logprobs.detach()).exp()")],
    ),
    "the clip of tokens for none": (COUNTS, "the ratio plays no part", [
        ('if clip == "none":', 'if clip == "off":'), ('if clip == "token":', 'if clip in ("token", "none"):'),
    ]),
    "the clip of completions for none": (COUNTS, "the ratio plays no part", [('if clip == "none":', 'if clip == "off":')]),
    "probabilities without a clip": (COUNTS, "without the logarithm", [("each = -A * logprobs", "each = -A * logprobs.exp()")]),
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
    "the mask after exp": (BEHIND, "reaches the gradient", [(RATIO, "ratio = (logprobs - old_logprobs.detach()).exp()")]),
    "the critic is not asked": (SHIFT, "`expected` is not used", [('"critic": expected', '"critic": 0')]),
    "the critic's word is added": (SHIFT, "their difference", [('"critic": expected', '"critic": -expected')]),
    "the root mean square about the baseline": (
        UNITS, "batch: this divides by the root mean square",
        [(VAR, "advantages.square().mean(1, keepdim=True).add(1e-8).sqrt()")],
    ),
    "the deviation of the advantages": (
        UNITS, "leave-one-out: this divides by the root mean square", [(VAR, VAR.replace("rewards", "advantages"))],
    ),
    "the group's mean wherever a deviation divides": (
        UNITS, "`baseline` alone says",
        [('if normaliser == "deviation":', 'if normaliser == "deviation":\n        advantages = rewards - mean')],
    ),
    "the mean of what is left": (
        UNITS, "another one than with the baseline group",
        [(MEAN, "torch.where(mean > 0, advantages / (mean if baseline == 'group' else advantages.mean(1, keepdim=True)), 0)")],
    ),
    "the fixed unit for the group's baseline alone": (
        UNITS, "whatever the baseline is",
        [("advantages = advantages / deviation", "advantages = advantages / (1 if baseline == 'batch' else deviation)")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_is_found_at_its_own_probe(name):
    probe, word, changes = WRONG[name]
    found = try_out(BUILD, program(*changes), most=100)
    assert (found[0], word in found[1]) == (probe, True), found
