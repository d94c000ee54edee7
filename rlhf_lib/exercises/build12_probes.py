"""The probes of 12.11 that look at advantages and at what a token counts, one switch at a time."""

import math

import torch

from rlhf_lib.policy_gradient import METHODS, Method

NORMALISERS = ("none", "deviation", "mean", "fixed")
DENOMINATORS = ("completion", "batch", "constant")
PLAIN = Method("none", "none", "none", "constant")
EXPECTED, DEVIATION = 0.25, 2.0  # what a critic expected, and the fixed unit, in the probes


# ----------------------------------------------------------------------------------------- one call


def draw_batch(generator, N=3, G=4, T=6):
    """Rewards (N, G) of 0 to 1, log-probabilities (N G, T) and their mask; each completion has a token, none has all of them."""
    old = -3 * torch.rand(N * G, T, generator=generator)
    lengths = torch.randint(1, T, (N * G, 1), generator=generator)
    return {
        "rewards": torch.rand(N, G, generator=generator) + 0.1,
        "logprobs": old + 0.4 * torch.randn(N * G, T, generator=generator),
        "old_logprobs": old,
        "mask": torch.arange(T) < lengths,
    }


def tried(policy_gradient, rewards, logprobs, old_logprobs, mask, row, **settings):
    """The loss of one row of the table, and its gradients; None where there is none."""
    new, old = logprobs.clone().requires_grad_(), old_logprobs.clone().requires_grad_()
    settings = {"expected": EXPECTED, "deviation": DEVIATION, **settings}
    loss = policy_gradient(rewards.clone(), new, old, mask.clone(), **row._asdict(), **settings)
    if not torch.is_tensor(loss) or loss.dim() or not loss.requires_grad:
        return {"loss": loss, "gradient": None, "old": None}
    gradient, moved = torch.autograd.grad(loss, (new, old), allow_unused=True)
    return {"loss": loss, "gradient": torch.zeros_like(new) if gradient is None else gradient, "old": moved}


def slopes(policy_gradient, rewards, batch, baseline="none", normaliser="none", **settings):
    """The gradient of a row that has no clip, even if one is used."""
    row = PLAIN._replace(baseline=baseline, normaliser=normaliser)
    return tried(policy_gradient, rewards, **batch, row=row, epsilon=1e3, **settings)["gradient"]


def close(one, other):
    return torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def run_numbers(policy_gradient, **batch):
    return {name: tried(policy_gradient, **batch, row=row) for name, row in METHODS.items()}


def judge_numbers(output, **_):
    for name, found in output.items():
        loss = found["loss"]
        if not torch.is_tensor(loss) or loss.dim():
            return f"{name}: it should return one number, a tensor without dimensions"
        if found["gradient"] is None:
            return f"{name}: the loss has no gradient: nothing in it may be detached but advantages and old log-probabilities"
        if not loss.isfinite() or not found["gradient"].isfinite().all():
            return f"{name}: the loss or its gradient is not a number"
        if not found["gradient"].any():
            return f"{name}: the loss does not move the log-probabilities: its gradient is 0 everywhere"
        if found["old"] is not None and found["old"].any():
            return (
                f"{name}: the old log-probabilities get a gradient: they are numbers that were written down at the rollout. "
                "Detach them"
            )
    return ""


# ----------------------------------------------------------------------------------------- whose advantage is whose


def run_places(policy_gradient, rewards, **batch):
    """One completion alone is paid, the second of the last prompt."""
    paid = torch.zeros_like(rewards)
    paid[-1, 1] = 1.0
    return {name: slopes(policy_gradient, paid, batch, name).any(1) for name in ("none", "batch", "leave-one-out", "group")}


def judge_places(output, rewards, **_):
    N, G = rewards.shape
    rows = output["none"].nonzero()[:, 0].tolist()
    if rows == [N * 1 + N - 1]:
        return (
            f"completion 1 of prompt {N - 1} is paid, and row {rows[0]} learns: row n G + g is completion g of prompt n, "
            "so flatten the rewards as they are, without transposing them"
        )
    if rows != [(N - 1) * G + 1]:
        return f"completion 1 of prompt {N - 1} alone is paid; row {(N - 1) * G + 1} is to learn from it, and rows {rows} do"
    for name in ("group", "leave-one-out"):
        if output[name].nonzero()[:, 0].tolist() != list(range((N - 1) * G, N * G)):
            return (
                f"{name}: one prompt's completions are paid, and others learn from it, or not all of its own: a group is a "
                "row of the rewards, and each is compared with its own"
            )
    if not output["batch"].all():
        return "batch: the mean is that of the whole batch, so a reward anywhere moves every completion"
    return ""


def run_shift(policy_gradient, rewards, **batch):
    """5 more for all completions of the first prompt; 5 more for all of them; and 5 more expected with it."""
    one = rewards + 5 * (torch.arange(len(rewards)) == 0)[:, None]
    found = {}
    for name in ("none", "batch", "leave-one-out", "group", "critic"):
        found[name] = [slopes(policy_gradient, some, batch, name) for some in (rewards, one, rewards + 5)]
    return {"gradients": found, "expected": slopes(policy_gradient, rewards + 5, batch, "critic", expected=EXPECTED + 5)}


def judge_shift(output, **_):
    output, expected = output["gradients"], output["expected"]
    same = {name: [close(before, after) for after in others] for name, (before, *others) in output.items()}
    for name in ("leave-one-out", "group"):
        if not all(same[name]):
            return (
                f"{name}: 5 more for all completions of a prompt changes what is learned: what all of a group have in common "
                "is the prompt's, not theirs. Is the baseline the group's own?"
            )
    if same["batch"][0] or not same["batch"][1]:
        return "batch: 5 more for every completion is to change nothing, and 5 more for one prompt's something"
    for name in ("none", "critic"):
        if any(same[name]):
            return f"{name}: 5 more for every completion changes nothing: something is subtracted that follows the rewards"
    if close(output["critic"][0], output["none"][0]):
        return "critic: `expected` is not used; it is what is subtracted from the rewards"
    if not close(output["critic"][0], expected):
        return "critic: 5 more for every completion and 5 more `expected` is to change nothing: an advantage is their difference"
    ratios = (output["leave-one-out"][0] / output["group"][0]).nan_to_num(1.0, 1.0, 1.0)
    if close(output["leave-one-out"][0], output["group"][0]):
        return "leave-one-out: this is the group's mean, with the completion itself in it: leave it out"
    return "" if ratios.max() > 1 else "leave-one-out: what is left out makes the advantages larger, by G / (G - 1)"


def run_units(policy_gradient, rewards, **batch):
    found = {}
    for name in NORMALISERS:
        found[name] = [slopes(policy_gradient, times * rewards, batch, "group", name) for times in (1, 10)]
    ranks = rewards.argsort(1).argsort(1)  # 0 to G - 1: no group's deviation is small by chance
    found["near"] = [slopes(policy_gradient, times * ranks, batch, "group", "deviation") for times in (1.0, 0.002)]
    found["unit"] = [slopes(policy_gradient, rewards, batch, normaliser="fixed", deviation=unit) for unit in (1.0, 4.0)]
    found["crossed"] = {
        baseline: {name: slopes(policy_gradient, rewards, batch, baseline, name) for name in NORMALISERS}
        for baseline in ("group", "batch", "none", "critic", "leave-one-out")
    }
    return found


def judge_units(output, rewards, **_):
    for name in ("deviation", "mean"):
        if not close(*output[name]):
            return (
                f"{name}: ten times the reward changes what is learned: the unit is that of the rewards of the group, and so "
                "divides itself out"
            )
    if not torch.allclose(*output["near"], rtol=3e-3, atol=1e-6):
        return (
            "deviation: where rewards lie close together less is learned: what is added to the deviation is too large; at most "
            "1e-8 is added to the variance"
        )
    for name in ("none", "fixed"):
        if not close(10 * output[name][0], output[name][1]):
            return f"{name}: ten times the reward is to teach ten times as much"
    if not close(output["unit"][0], 4 * output["unit"][1]):
        return "fixed: advantages are divided by `deviation`, whatever the rewards are"
    plain = output["none"][0].abs().sum(1).view(rewards.shape)
    scaled = output["deviation"][0].abs().sum(1).view(rewards.shape)
    units = (plain / scaled).nanmedian(1).values  # what each group was divided by
    right = rewards.std(1, correction=0)
    guesses = {
        "the deviation is divided by G - 1, PyTorch's own default; it is that of the group itself: correction=0": rewards.std(1),
        "this divides by the variance; the deviation is its root": rewards.var(1, correction=0),
        "the deviation is that of the whole batch; each group has its own": rewards.std(correction=0).expand_as(right),
        "the mean divides": rewards.mean(1),
    }
    if not torch.allclose(units, right, rtol=1e-2):
        means = (meaning for meaning, guess in guesses.items() if torch.allclose(units, guess, rtol=1e-2))
        return "deviation: " + next(means, f"the first group is divided by {units[0]:.3f}, its deviation is {right[0]:.3f}")
    return judge_crossed(output["crossed"], rewards)


def judge_crossed(output, rewards):
    """A group's unit is the same whatever was subtracted."""
    mean, G = rewards.mean(1, keepdim=True), rewards.shape[1]
    means = {
        "group": mean, "leave-one-out": (G * mean - rewards) / (G - 1), "batch": rewards.mean(), "none": 0, "critic": EXPECTED,
    }  # fmt: skip
    units = {"deviation": rewards.std(1, correction=0), "mean": mean[:, 0], "fixed": torch.full_like(mean[:, 0], DEVIATION)}
    for baseline, found in output.items():
        for name, unit in units.items():

            def divided_by(unit, plain=found["none"], scaled=found[name]):
                return close(plain, unit.repeat_interleave(G)[:, None] * scaled)

            here = f"{name} with the baseline {baseline}"
            if divided_by(unit):
                continue
            if name == "deviation" and divided_by((rewards - means[baseline]).square().mean(1).sqrt()):
                return (
                    f"{here}: this divides by the root mean square of the advantages, which is about the baseline; the deviation "
                    "is that of the rewards about their group's mean, whatever was subtracted"
                )
            if close(found[name], output["group"][name]):
                return f"{here}: the group's mean is subtracted; `baseline` alone says what is, whatever `normaliser` says"
            if name == "fixed":
                return f"{here}: advantages are divided by `deviation`, whatever the baseline is"
            return f"{here}: the unit is another one than with the baseline group; it is that of the group's rewards in both"
    return ""


def run_agreed(policy_gradient, rewards, **batch):
    """The completions of one prompt agree at a half, those of another at nothing."""
    some = torch.cat([torch.tensor([[0.5], [0.0]]).expand(-1, rewards.shape[1]), rewards[2:]])
    rows = {name: row for name, row in METHODS.items() if row.baseline in ("group", "leave-one-out")}
    return {name: tried(policy_gradient, some, **batch, row=row)["gradient"] for name, row in rows.items()}


def judge_agreed(output, rewards, **_):
    G = rewards.shape[1]
    for name, gradient in output.items():
        if not gradient.isfinite().all():
            return (
                f"{name}: a group whose rewards are all alike gives 0 / 0, and one NaN in a gradient ends the training: add 1e-8 "
                "to the variance, and let a group without reward have advantages of 0"
            )
        if gradient[: 2 * G].abs().max() > 1e-5:
            return f"{name}: a group whose rewards are all alike has nothing to compare, and yet something is learned from it"
        if not gradient[2 * G :].any():
            return f"{name}: because one group agrees, nothing is learned from any"
    return ""


# ----------------------------------------------------------------------------------------- the tokens


def run_counts(policy_gradient, rewards, **batch):
    """All rewards are -1, so that a token's gradient is what it counts."""
    return {
        denominator: tried(policy_gradient, 0 * rewards - 1, **batch, row=PLAIN._replace(denominator=denominator))["gradient"]
        for denominator in DENOMINATORS
    }


def judge_counts(output, logprobs, old_logprobs, mask, **_):
    B, T = mask.shape
    lengths = mask.sum(1, keepdim=True).float()
    known = {
        "the mean over each completion's tokens, then over completions": 1 / (B * lengths),
        "the mean over all tokens of the batch": 1 / lengths.sum(),
        "the sum over a completion's tokens divided by T, then the mean over completions": torch.tensor(1 / (B * T)),
        "the sum over a completion's tokens, without dividing by T": torch.tensor(1 / B),
        "the sum over completions of their means": 1 / lengths,
        "a division by the longest completion of the batch, which is another number in every batch": 1 / (B * lengths.max()),
    }
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0)
    ratios = [one.exp() for one in (log_ratio, log_ratio.sum(1, keepdim=True) / lengths)]
    ratios += [torch.where(ratio < 0.8, 0, ratio) for ratio in ratios]  # with a clip
    for denominator, right in zip(DENOMINATORS, known.values()):
        found = output[denominator]
        if found[~mask].any():
            return f"{denominator}: tokens behind the end of a completion count: nobody chose them"
        if close(found, torch.where(mask, right, 0.0)):
            continue
        if close(found, torch.where(mask, -right, 0.0)):
            return f"{denominator}: with a reward of -1 each token becomes likelier: the sign of the loss is turned"
        if any(close(found, torch.where(mask, right * ratio, 0.0)) for ratio in ratios):
            return "with clip none the ratio plays no part: a token costs -A log p, and its gradient is no ratio's"
        if close(found, torch.where(mask, right * logprobs.exp(), 0.0)):
            return "with clip none a token costs -A log p; this is -A p, without the logarithm"
        for meaning, count in known.items():
            if close(found, torch.where(mask, count, 0.0)):
                return f"{denominator}: this is {meaning}"
        return f"{denominator}: a token of the first completion counts {found[0, 0]:.4f}, not {right.flatten()[0]:.4f}"
    return ""


def run_behind(policy_gradient, logprobs, old_logprobs, mask, **batch):
    """Something else, and NaN, behind the end."""
    found = {name: [] for name in METHODS}
    for under in (0.0, 7.0, math.nan):
        new, old = (torch.where(mask, x, under) for x in (logprobs, old_logprobs))
        old = old + torch.where(mask, 0, 0.5)
        for name, row in METHODS.items():
            one = tried(policy_gradient, **batch, logprobs=new, old_logprobs=old, mask=mask, row=row)
            found[name].append([one["loss"], one["gradient"]])
    return found


def judge_behind(output, mask, **_):
    for name, found in output.items():
        first, other, odd = ([loss, torch.where(mask, gradient, 0)] for loss, gradient in found)
        if not all(map(close, first, other)):
            return f"{name}: what stands behind the end of a completion changes the loss: keep it out of sums and lengths"
        if not all(map(close, first, odd)):
            return (
                f"{name}: a NaN behind the end of a completion reaches the loss: a product with the mask does not hide it, since "
                "0 times NaN is not a number. Use torch.where"
            )
        if not all(gradient.isfinite().all() for _, gradient in found):
            return (
                f"{name}: a NaN behind the end of a completion does not reach the loss, but it reaches the gradient, and by it "
                "every weight: the gradient of exp hands it on. Use torch.where before exp"
            )
    return ""
