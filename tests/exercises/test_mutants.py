"""Every worked answer with one small thing changed: the check must refuse it, or the change must be one that changes nothing."""

import random

import pytest
from mutants import Mutant, mutants, passes, source, survives

from rlhf_lib import exercises
from rlhf_lib.exercises import build

exercises.load()
NAMES = sorted(exercises.EXERCISES)
PATIENCE = 10.0  # seconds for an answer that must pass

# {exercise: {mutant: why it is right on all that the card allows}}
EQUIVALENT = {
    "group_advantages": {
        "if normaliser <= 'deviation':": "none of the three names is below it",
        "if normaliser <= 'mean':": "deviation has been dealt with, none is above it",
        "return torch.where(mean != 0, apart / mean, 0)": "the rewards are not negative",
        "return apart / (apart.square().mean(1, keepdim=True) + 2e-08).sqrt()": "within the tolerance",
    },
    "token_average": {"if denominator <= 'batch':": "completion has been dealt with, constant is above it"},
    "merge_pair": {"while place != len(word):": "place goes on by 2 only where 2 pieces are left"},
    "best_cut": {
        "best = {0: (1.0, None)}": "a constant in every sum",
        "best = {0: (-1.0, None)}": "a constant in every sum",
        "for end in range(0, len(text) + 1):": "no token ends at place 0",
        "for end in range(1, len(text) + 2):": "what stands behind the last place is not read",
        "for end in range(1, len(text) + 1 + 1):": "what stands behind the last place is not read",
    },
    "attention": {
        "scores = q @ k.transpose(2, -1) / math.sqrt(q.shape[-1])": "dimension 2 of 4 is -2",
        "scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])": "transposing is symmetric",
    },
    "multi_head": {
        "q, k, v = (part.view(B, T, heads, C // heads).transpose(2, 1) for part in (q, k, v))": "transposing is symmetric",
        "return y.transpose(2, 1).reshape(B, T, C) @ out.T": "transposing is symmetric",
    },
    "rotary": {"half = x.shape[-1] / 2": "the width is even, and arange takes a float"},
    "gpt_logits": {
        "return F.layer_norm(x, x.shape[-1:], weights[f'{name}.weight'], weights[f'{name}.bias'])": "1e-5 is the default",
        "q, k, v = (part.view(B, T, heads, -1).transpose(2, 1) for part in qkv.chunk(3, dim=-1))": "transposing is symmetric",
        "x = x + linear(y.transpose(2, 1).reshape(x.shape), f'{name}.attention.out')": "transposing is symmetric",
    },
    "clip_gradient": {
        "scale = (max_norm / norm).clamp(max=1.0)": "the card names no eps; infinity is clamped too",
        "scale = (max_norm / (norm + 0.0)).clamp(max=1.0)": "the card names no eps; infinity is clamped too",
        "scale = (max_norm / (norm + 2e-06)).clamp(max=1.0)": "the card names no eps",
    },
    "accumulate_gradients": {
        "nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction='sum')": "-100 is the default",
        "total = sum(((targets > -100).sum() for _, targets in micro_batches))": "no target is below -100",
    },
    "muon_step": {
        "x = 3.4445 * x + (-4.775 * gram + gram @ (2.0315 * gram)) @ x": "a number may stand on either side of a product",
        "return (parameter - rate * max(rows / columns, 1) ** 0.5 * x, m)": "a maximum is symmetric",
    },
    "top_k_filter": {"k = min(logits.shape[-1], k)": "a minimum is symmetric"},
    "draw_token": {
        "ends = logprobs.exp().cumsum(1)": "dimension 1 of 2 is the last",
        "point = torch.minimum(below, uniforms[:, None] * total)": "a minimum is symmetric",
        "point = torch.minimum(uniforms[:, None], below)": "the total is 1 but for rounding",
        "point = torch.minimum(uniforms[:, None] / total, below)": "the total is 1 but for rounding",
        "return torch.searchsorted(ends, point, right=True)[:, -1]": "there is one column",
    },
    "until_end": {
        "return ends - ends.cumsum(1) == 0": "0 is 0 with either sign",
        "return ends.cumsum(1) - ends <= 0": "a count is never below 0",
    },
    "sequence_logprob": {
        "logprobs = scaled.log_softmax(-1).gather(2, tokens[:, 1:, None])[:, :, -1]": "there is one column",
        "scaled = logits[:, :] / temperature": "gather passes over the last position, for which there is no index",
        "threshold = scaled.topk(min(scaled.shape[-1], top_k)).values[..., -1:]": "a minimum is symmetric",
    },
    "left_padding": {
        "positions = real.cumsum(1) - 1": "the position of padding does not matter",
        "positions = (real.cumsum(1) - 1).clamp(min=-1)": "the position of padding does not matter",
        "before = torch.ones(T, T, dtype=torch.bool).tril()": "on the processor that is the device",
        "itself = torch.eye(T, dtype=torch.bool)": "on the processor that is the device",
    },
    "cached_step": {"scores = q @ keys.transpose(3, 2) / math.sqrt(q.shape[-1])": "transposing is symmetric"},
    "speculate": {
        "extra = draw_token(weights.log()[None], uniforms[-1:])": "draw_token multiplies by the sum",
        "extra = draw_token((weights * weights.sum()).log()[None], uniforms[-1:])": "draw_token multiplies by the sum",
        "extra = draw_token((weights / weights.mean()).log()[None], uniforms[-1:])": "draw_token multiplies by the sum",
    },
    "split_labels": {"(test if number <= held_out else learn).append(text)": "one text in 2**32 lies on the border"},
    "majority_vote": {
        "best = [label for label, count in counts.items() if count >= max(counts.values())]": "nothing is above the maximum",
        "result.append(best[0] if len(best) <= 1 else 'neutral')": "each passage has a vote",
        "result.append(best[-1] if len(best) == 1 else 'neutral')": "there is one",
    },
    "cohen_kappa": {
        "return 1.0 if chance >= 1 else (observed - chance) / (1 - chance)": "chance is never above 1",
        "table = confusion(second, first).double()": "kappa is symmetric",
    },
    "krippendorff_alpha": {
        "observed = sum((distance(b, a) / (len(one) - 1) for one in read for a in one for b in one)) / n": "it is symmetric",
        "expected = sum((bag[a] * bag[b] * distance(b, a) for a in bag for b in bag)) / (n * (n - 1))": "it is symmetric",
    },
    "pick_uncertain": {"distance = (0.5 - p_positive).abs().masked_fill(labelled, math.inf)": "a distance is symmetric"},
    "last_token": {
        "positions = torch.arange(x.shape[1])": "on the processor that is the device",
        "return x.gather(1, last)[:, -1]": "there is one column",
        "last = torch.where(mask, positions, -1).amax(1, keepdim=True)": "every row has a real token",
    },
    "score_rows": {
        "order = sorted(range(len(rows)))": "the order in which rows are scored changes no score",
    },
    "clear_accuracy": {
        "right = (logits >= 0) == (targets > 0.5)": "no log-odds is exactly 0",
        "right = (logits > 0) == (targets >= 0.5)": "neutral is left out",
        "right = (logits > 0) == (targets > 0.0)": "neutral is left out",
    },
    "calibration_error": {
        "gaps = torch.zeros(bins).index_add(0, place, right - confidence)": "on the processor that is the device",
        "gaps = torch.zeros(bins, device=logits.device).index_add(0, place, confidence - right)": "only the gap's size counts",
        "gaps = torch.zeros(bins, device=logits.device).index_add(-1, place, right - confidence)": "there is one dimension",
        "right = ((logits >= 0) == (targets > 0.5))[clear].float()": "at exactly 0 neither side is chosen",
        "right = ((logits > 0) == (targets >= 0.5))[clear].float()": "neutral is left out",
        "right = ((logits > 0) == (targets > 0.0))[clear].float()": "neutral is left out",
    },
    "calibrate": {
        "for _ in range(29):": "it has come to rest before",
        "for _ in range(31):": "it has come to rest before",
        "for _ in range(60):": "it has come to rest before",
        "start = w = torch.tensor([1.0, 0.0], dtype=torch.float64)": "on the processor that is the device",
        "hessian = X.T @ ((p * (1 - p))[:, None] * X) / len(x) + ridge * torch.eye(2)": "on the processor that is the device",
        "step = step / 3": "a step may be shortened in another way",
        "step = step / 4": "a step may be shortened in another way",
        "return F.binary_cross_entropy_with_logits(X @ w, t) + ridge / 2 * (start - w).square().sum()": "squares know no sign",
    },
    "reinforce_loss": {
        "logprobs = logits.log_softmax(-1).gather(1, actions[:, None])[:, -1]": "there is one column",
        "logprobs = logits.log_softmax(1).gather(1, actions[:, None])[:, 0]": "dimension 1 of 2 is the last",
    },
    "gae": {
        "rewards, values = (torch.where(mask, rewards, 1), torch.where(mask, values, 0))": "a masked step's delta is not used",
        "rewards, values = (torch.where(mask, rewards, -1), torch.where(mask, values, 0))": "a masked step's delta is not used",
        "next_value = next_advantage = torch.zeros_like(rewards[:, -1])": "the columns are of one shape",
    },
    "policy_loss": {
        "gain = torch.minimum(ratio.clamp(1 - clip, 1 + clip) * advantages, ratio * advantages)": "a minimum is symmetric",
        "clipped = ((ratio - 1).abs() >= clip).float()": "a ratio lies on the border by rounding alone",
        "clipped = ((1 - ratio).abs() > clip).float()": "a distance is symmetric",
    },
    "value_loss": {
        "worse = torch.maximum((near - returns).square(), (values - returns).square())": "a maximum is symmetric",
        "worse = torch.maximum((returns - values).square(), (near - returns).square())": "squares know no sign",
        "worse = torch.maximum((values - returns).square(), (returns - near).square())": "squares know no sign",
    },
    "explained_variance": {"return 1 - (values - returns).var() / returns.var()": "a variance knows no sign"},
    "ppo_epochs": {
        "gain = torch.minimum(ratio.clamp(1 - clip, 1 + clip) * advantages[rows], ratio * advantages[rows])":
            "a minimum is symmetric",
        "logprobs = (states[rows] @ weight).log_softmax(-1).gather(1, actions[rows, None])[:, -1]": "there is one column",
        "logprobs = (states[rows] @ weight).log_softmax(1).gather(1, actions[rows, None])[:, 0]": "dimension 1 of 2 is the last",
    },
    "log_reward": {
        "return F.logsigmoid(logits if sentiment >= 'positive' else -logits)": "there are two sentiments, 'negative' the smaller",
    },
    "action_mask": {
        "before = ends - ends.cumsum(1)": "0 is 0 with either sign",
        "prompt = torch.zeros(len(tokens), prompt_length - 1, dtype=torch.bool)": "the check has tensors of the CPU alone",
        "return torch.cat([prompt, before <= 0], dim=1)": "a count is never below 0",
    },
    "update_policy": {
        "logprobs = logits.log_softmax(-1).gather(2, tokens[rows, 1:, None])[:, :, -1]": "there is one column",
        "logits = policy(tokens[rows])[:, :] / temperature": "gather passes over the last position, for which there is no index",
    },
    "rollout_sizes": {"if rare == 3 and 2 * completions <= most:": "after 3 it is 0, or the next size is above `most` for ever"},
    "fit_gold": {
        "alpha, beta = torch.linalg.lstsq(columns, gold.double()[:, None]).solution[:, -1].tolist()": "there is one column",
    },
    "speech_mask": {
        "return ends - ends.cumsum(1) == 0": "0 is 0 with either sign",
        "return ends.cumsum(1) - ends <= 0": "a count is never below 0",
    },
    "held_out_prompts": {
        "count = min(len(different) - 1, max(1, round(share * len(different))))": "a minimum is symmetric",
        "count = min(max(round(share * len(different)), 1), len(different) - 1)": "a maximum is symmetric",
    },
    "best_of_n": {"return groups.argmax(1) + n * torch.arange(len(groups))": "on the processor that is the device"},
    "strengths": {
        "for _ in range(599):": "it has come to rest before",
        "for _ in range(601):": "it has come to rest before",
        "for _ in range(1200):": "it has come to rest before",
        "p = won / (games / (p[:, None] + p)).mean(1)": "a factor of all is divided out",
        "p = won / (games / (p[:, None] + p)).sum(0)": "the games of two, over the sum of two, are symmetric",
    },
    "ceiling": {"if agreement == 0.5:": "below it the root raises a ValueError of its own"},
    "answer_targets": {
        "targets += [False] * opening + [role <= 'assistant'] * (length + 1) + [False] * (closing - 1)":
            "'assistant' is the smallest of the three roles",
    },
    "packed_mask": {
        "texts = torch.zeros(size)": "the numbers of texts are compared and not returned",
        "same = (texts[:, None] == texts) & (texts != 0)": "no number of a text is below 0",
    },
    "token_rewards": {"paid = scores - end_penalty * ~ended": "a bool is 0 or 1 in a product"},
    "adaptive_kl": {
        "error = max(min(0.2, kl / target - 1), -0.2)": "a maximum is symmetric",
        "error = max(-0.2, min(kl / target - 1, 0.2))": "a minimum is symmetric",
    },
    "expected_gradient": {
        "tokens = torch.tensor(list(itertools.product(range(len(probs)), repeat=group)))": "on the processor that is the device",
    },
    "best_and_control": {"first = torch.arange(N) * G": "on the processor that is the device"},
    "equal_length_win_rate": {
        "near = [(outcome, other - mine) for outcome, mine, other in zip(outcomes, ours, theirs) "
        "if max(mine, other) <= 1.25 * min(mine, other)]": "the mean of the two sides does not ask which is which",
        "near = [(outcome, mine - other) for outcome, mine, other in zip(outcomes, theirs, ours) "
        "if max(mine, other) <= 1.25 * min(mine, other)]": "the mean of the two sides does not ask which is which",
        "near = [(outcome, mine - other) for outcome, mine, other in zip(outcomes, ours, theirs) "
        "if max(other, mine) <= 1.25 * min(mine, other)]": "a maximum is symmetric",
        "near = [(outcome, mine - other) for outcome, mine, other in zip(outcomes, ours, theirs) "
        "if max(mine, other) <= 1.25 * min(other, mine)]": "a minimum is symmetric",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_mutant_is_refused_but_those_that_are_listed(name):
    assert survives(name, Mutant("the answer itself", source(name)), PATIENCE)
    listed = EQUIVALENT.get(name, {})
    alive = set()
    for mutant in mutants(source(name)):
        if survives(name, mutant, PATIENCE) if mutant.name in listed else survives(name, mutant):
            alive.add(mutant.name)
    assert sorted(alive - {*listed}) == [], "the check takes these for right: mend its draw, or list them with the reason"
    assert sorted({*listed} - alive) == [], "these are refused, or there are no such mutants any more: take them off the list"


# {build: (how many mutants are drawn, {mutant of these: why it is right on all that the card allows})}
DRAWN = {
    "GPT": (30, {}),
    "train_bpe": (12, {}),
    "policy_gradient": (
        90,
        {
            "each = torch.maximum(-A * ratio.clamp(1 - epsilon, 1 + epsilon), -A * ratio)": "a maximum is symmetric",
            "if normaliser <= 'deviation':": "none of the four names is below it",
            "if clip <= 'none':": "none of the three names is below it",
        },
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_the_cheap_probes_of_a_build_refuse_every_mutant_but_those_that_are_listed(name, monkeypatch):
    monkeypatch.setattr(build, "PATIENCE", 3.0)
    count, listed = DRAWN[name]
    drawn = random.Random(0).sample(mutants(source(name)), count)
    alive = {mutant.name for mutant in drawn if passes(name, mutant)}
    assert sorted(alive - {*listed}) == [], "the probes take these for right: mend them, or list them with the reason"
    assert sorted({*listed} - alive) == [], "these are refused, or not among those drawn: take them off the list"


def test_there_are_many_mutants_and_few_that_change_nothing():
    every = sum(len(mutants(source(name))) for name in NAMES)
    assert every > 2500 and sum(map(len, EQUIVALENT.values())) < 0.04 * every
    assert {*EQUIVALENT} <= {*NAMES}


def test_what_mutants_are_made():
    text = (
        'def f(x):\n    """Says."""\n    total = 0\n    for y in x[1:]:\n        if not y >= 2:\n            continue\n'
        "        total += y.mean(dim=-1)\n    return g(total, x), total.detach()\n"
    )
    names = [mutant.name for mutant in mutants(text)]
    assert len(set(names)) == len(names)
    for name in (
        "total = 1", "total = -1", "without: total = 0", "for y in x[2:]:", "for y in x[0:]:", "for y in x[1:-1]:",
        "for y in x[:]:", "if y >= 2:", "if not y > 2:", "if not y != 2:", "if not y >= 3:", "break", "total -= y.mean(dim=-1)",
        "total += y.sum(dim=-1)", "total += y.mean(dim=-2)", "total += y.mean(dim=1)", "total += y.mean()",
        "return (g(x, total), total.detach())", "return (g(total, x), total)", "return (total.detach(), g(total, x))",
    ):  # fmt: skip
        assert name in names, name
