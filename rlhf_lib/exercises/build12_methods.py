"""Build it 12.11: one loss with four switches, of which every method of the chapter is a row."""

import math
import statistics

import torch

from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.tiny_groups import GROUP, completed, match, spoken, tiny
from rlhf_lib.policy_gradient import METHODS, Method

CLIPS, DENOMINATORS = ("none", "token", "sequence"), ("completion", "batch", "constant")
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
    return {
        name: tried(policy_gradient, paid, **batch, row=PLAIN._replace(baseline=name))["gradient"].any(1)
        for name in ("none", "batch", "leave-one-out", "group")
    }


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
    """5 more for all completions of the first prompt; and 5 more for all of them."""
    one = rewards + 5 * (torch.arange(len(rewards)) == 0)[:, None]
    found = {}
    for name in ("none", "batch", "leave-one-out", "group", "critic"):
        row = PLAIN._replace(baseline=name)
        found[name] = [tried(policy_gradient, some, **batch, row=row)["gradient"] for some in (rewards, one, rewards + 5)]
    return found


def judge_shift(output, **_):
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
    ratios = (output["leave-one-out"][0] / output["group"][0]).nan_to_num(1.0, 1.0, 1.0)
    if close(output["leave-one-out"][0], output["group"][0]):
        return "leave-one-out: this is the group's mean, with the completion itself in it: leave it out"
    return "" if ratios.max() > 1 else "leave-one-out: what is left out makes the advantages larger, by G / (G - 1)"


def run_units(policy_gradient, rewards, **batch):
    found = {}
    for name in ("none", "deviation", "mean", "fixed"):
        row = PLAIN._replace(baseline="group", normaliser=name)
        found[name] = [tried(policy_gradient, times * rewards, **batch, row=row)["gradient"] for times in (1, 10)]
    row = PLAIN._replace(normaliser="fixed")
    found["unit"] = [tried(policy_gradient, rewards, **batch, row=row, deviation=unit)["gradient"] for unit in (1.0, 4.0)]
    return found


def judge_units(output, rewards, **_):
    for name in ("deviation", "mean"):
        if not close(*output[name]):
            return (
                f"{name}: ten times the reward changes what is learned: the unit is that of the rewards of the group, and so "
                "divides itself out"
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
    if torch.allclose(units, right, rtol=1e-2):
        return ""
    means = (meaning for meaning, guess in guesses.items() if torch.allclose(units, guess, rtol=1e-2))
    return "deviation: " + next(means, f"the first group is divided by {units[0]:.3f}, its deviation is {right[0]:.3f}")


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


# ----------------------------------------------------------------------------------------- the ratio


def run_level(policy_gradient, logprobs, old_logprobs, **batch):
    """New and old are one."""
    return {
        denominator: {
            clip: tried(
                policy_gradient, **batch, logprobs=old_logprobs, old_logprobs=old_logprobs,
                row=PLAIN._replace(clip=clip, denominator=denominator),
            )["gradient"]
            for clip in CLIPS
        }
        for denominator in DENOMINATORS
    }  # fmt: skip


def judge_level(output, mask, **_):
    lengths = mask.sum(1, keepdim=True)
    for denominator, found in output.items():
        none, token, sequence = (found[clip] for clip in CLIPS)
        if close(none, -token):
            return (
                "with and without a clip the loss pulls in opposite directions: it is -advantage times the log-probability "
                "without one, and -advantage times the ratio, new over old, with one"
            )
        if not close(none, token):
            return (
                f"{denominator}: at a ratio of 1 the losses with and without a clip have other gradients. The gradient of the "
                "ratio is that of the log-probability there, and no bound is reached"
            )
        if close(sequence, lengths * token) and not close(sequence, token):
            return "sequence: this is the product of the tokens' ratios; take its n-th root, n the completion's length"
        if not close(sequence, token):
            return f"{denominator}: at a ratio of 1 the clip of whole completions has another gradient than that of tokens"
    return ""


RATIOS = ((1.5, 1.5), (1.1, 1.1), (0.5, 0.5), (0.9, 0.9), (3.0, 1 / 3), (1.0, 1.69))


def draw_ratios(generator):
    """Completions of two tokens that move by known ratios, each twice: once with an advantage of 1, once with -1."""
    old = -1 - torch.rand(len(RATIOS), 1, 2, generator=generator).expand(-1, 2, -1)  # (6, 2, 2)
    new = old + torch.tensor(RATIOS)[:, None].log()
    return {
        "rewards": torch.tensor([[1.0, -1.0]]).repeat(len(RATIOS), 1), "logprobs": new.flatten(0, 1),
        "old_logprobs": old.flatten(0, 1), "mask": torch.ones(2 * len(RATIOS), 2, dtype=torch.bool),
    }  # fmt: skip


def run_ratios(policy_gradient, **batch):
    return {
        clip: [
            tried(policy_gradient, **batch, row=PLAIN._replace(clip=clip), epsilon=epsilon)["gradient"] for epsilon in (0.2, 10.0)
        ]
        for clip in CLIPS
    }


def geometric(log_ratio):
    return log_ratio.mean(1, keepdim=True).exp()


def held(clip, rewards, logprobs, old_logprobs, epsilon, pick=torch.maximum, low=1.0, turn=1, whole=geometric):
    """The gradient that is right, or that of a known mistake."""
    new = logprobs.clone().requires_grad_()
    log_ratio, A = turn * (new - old_logprobs), rewards.flatten()[:, None]
    ratio = whole(log_ratio).expand_as(new) if clip == "sequence" else log_ratio.exp()
    each = pick(-A * ratio, -A * ratio.clamp(1 - low * epsilon, 1 + epsilon))
    return torch.autograd.grad(each.sum(1).mean() / 2, new)[0]


def judge_ratios(output, rewards, logprobs, old_logprobs, **_):
    given = (rewards, logprobs, old_logprobs)
    mistakes = {
        "the ratio is not clipped": {"pick": lambda whole, cut: whole},
        "the clipped ratio is always taken; of the two losses the larger one counts, so that a step too far can be taken back":
            {"pick": lambda whole, cut: cut},
        "of the two losses the smaller is taken: it never stops what pays, and stops what would mend. The larger loss counts":
            {"pick": torch.minimum},
        "the ratio is clipped above and not below": {"low": 1e6},
        "the ratio is upside down: new over old": {"turn": -1},
        "this is the mean of the tokens' ratios; the geometric mean is the exponential of the mean of their logarithms":
            {"whole": lambda log_ratio: log_ratio.exp().mean(1, keepdim=True)},
    }  # fmt: skip
    for clip in ("token", "sequence"):
        found, wide = output[clip]
        if close(found, held(clip, *given, 0.2)):
            if not close(wide, held(clip, *given, 10.0)):
                return f"{clip}: with epsilon 10 nothing is clipped, and yet the loss holds something: `epsilon` is not used"
            continue
        for meaning, options in mistakes.items():
            if close(found, held(clip, *given, 0.2, **options)):
                return f"{clip}: {meaning}"
        other = "sequence" if clip == "token" else "token"
        if close(found, held(other, *given, 0.2)):
            return f"{clip}: this looks at the ratio of the {'whole completion' if other == 'sequence' else 'single token'}"
        return f"{clip}: with known ratios outside 0.8 to 1.2 the gradient is not that of the larger of two losses"
    if not close(*output["none"]):
        return "none: without a clip the ratio plays no part, and epsilon neither"
    return ""


# ----------------------------------------------------------------------------------------- the tokens


def run_counts(policy_gradient, rewards, **batch):
    """All rewards are -1, so that a token's gradient is what it counts."""
    return {
        denominator: tried(policy_gradient, 0 * rewards - 1, **batch, row=PLAIN._replace(denominator=denominator))["gradient"]
        for denominator in DENOMINATORS
    }


def judge_counts(output, mask, **_):
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
    for denominator, right in zip(DENOMINATORS, known.values()):
        found = output[denominator]
        if found[~mask].any():
            return f"{denominator}: tokens behind the end of a completion count: nobody chose them"
        if close(found, torch.where(mask, right, 0.0)):
            continue
        if close(found, torch.where(mask, -right, 0.0)):
            return f"{denominator}: with a reward of -1 each token becomes likelier: the sign of the loss is turned"
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
            found[name].append([one["loss"], torch.where(mask, one["gradient"], 0)])
    return found


def judge_behind(output, **_):
    for name, (first, other, odd) in output.items():
        if not all(map(close, first, other)):
            return f"{name}: what stands behind the end of a completion changes the loss: keep it out of sums and lengths"
        if not all(map(close, first, odd)):
            return (
                f"{name}: a NaN behind the end of a completion reaches the loss: a product with the mask does not hide it, since "
                "0 times NaN is not a number. Use torch.where"
            )
    return ""


# ----------------------------------------------------------------------------------------- the table


def bounded(A, ratio):
    return min(A * ratio, A * min(max(ratio, 0.8), 1.2))


def by_the_paper(name, rewards, new, old, mask):
    """The loss of a row as its paper sums it, in plain loops over lists."""
    B, T, tokens = len(mask), len(mask[0]), sum(map(sum, mask))
    whole, total = [r for row in rewards for r in row], 0.0
    for place, r in enumerate(whole):
        G = len(rewards[0])
        row, here = rewards[place // G], [t for t in range(T) if mask[place][t]]
        log_p, ratios = sum(new[place][t] for t in here), [math.exp(new[place][t] - old[place][t]) for t in here]
        mean, deviation = statistics.fmean(row), statistics.pstdev(row)
        if name in ("reinforce", "reinforce-baseline", "rloo", "maxrl"):
            A = {
                "reinforce": r, "reinforce-baseline": r - statistics.fmean(whole), "rloo": r - (sum(row) - r) / (G - 1),
                "maxrl": (r - mean) / mean,
            }[name]  # fmt: skip
            total -= A * log_p / (B * T)
        elif name == "grpo":
            total -= statistics.fmean(bounded((r - mean) / deviation, ratio) for ratio in ratios) / B
        elif name == "dr-grpo":
            total -= sum(bounded(r - mean, ratio) for ratio in ratios) / (B * T)
        elif name == "gspo":
            total -= bounded((r - mean) / deviation, math.prod(ratios) ** (1 / len(here))) / B
        elif name == "ppo":
            total -= sum(bounded((r - EXPECTED) / DEVIATION, ratio) for ratio in ratios) / tokens
        else:
            raise KeyError(name)
    return total


def run_table(policy_gradient, **batch):
    return {name: tried(policy_gradient, **batch, row=row)["loss"] for name, row in METHODS.items()}


def judge_table(output, rewards, logprobs, old_logprobs, mask):
    given = [one.tolist() for one in (rewards, logprobs, old_logprobs, mask)]
    for name, loss in output.items():
        right = by_the_paper(name, *given)
        if abs(loss.item() - right) > 1e-3 * abs(right) + 1e-5:
            switches = ", ".join(f"{key} {value}" for key, value in METHODS[name]._asdict().items())
            return f"{name} ({switches}): the loss is {loss.item():.5f}; the paper's sum is {right:.5f}"
    return ""


# ----------------------------------------------------------------------------------------- training


def draw_training(generator):
    return {"seed": int(torch.randint(1000, (1,), generator=generator)), "updates": 40}


def trained(policy_gradient, row, seed, updates, told):
    """The mean reward before and after: a tiny model that is paid for saying tokens of its prompt."""
    policy, numbers = tiny(seed), torch.Generator().manual_seed(seed)
    optimizer, means = torch.optim.Adam(policy.parameters(), lr=1e-2), []
    for update in range(updates + 1):
        prompts, tokens, old, mask = completed(policy, numbers)
        rewards = match(prompts, tokens, mask).view(-1, GROUP)
        means.append(rewards.mean().item())
        logprobs = spoken(policy, prompts, tokens)
        settings = dict(epsilon=0.2, expected=means[max(0, update - 1)], deviation=0.3)
        policy_gradient(rewards, logprobs, old, mask, **row._asdict(), **settings).backward()
        optimizer.step()
        optimizer.zero_grad()
        told(update)
    return means[0], means[-1]


def run_training(policy_gradient, seed, updates):
    found, all_of_them = {}, len(METHODS) * (updates + 1)
    for place, (name, row) in enumerate(METHODS.items()):

        def told(update, name=name, place=place):
            tick((place * (updates + 1) + update) / all_of_them, name)

        found[name] = trained(policy_gradient, row, seed, updates, told)
    return found


def judge_training(output, **_):
    for name, (before, after) in output.items():
        if not after > before + 0.2:
            return (
                f"{name}: on a tiny model that is paid for repeating its prompt the reward goes from {before:.2f} to {after:.2f} "
                "only, and every row of the table is to gain 0.2"
            )
    return ""


policy_gradient = Build("12.11", "policy_gradient", [
    Probe("one number, and a gradient", draw_batch, run_numbers, judge_numbers),
    Probe("each completion learns from its own reward", draw_batch, run_places, judge_places),
    Probe("what all of a group have in common teaches nothing", draw_batch, run_shift, judge_shift),
    Probe("the unit of the reward", draw_batch, run_units, judge_units),
    Probe("a group that agrees teaches nothing", draw_batch, run_agreed, judge_agreed),
    Probe("what a token counts", draw_batch, run_counts, judge_counts),
    Probe("at a ratio of 1 every clip is alike", draw_batch, run_level, judge_level),
    Probe("what the clip holds back", draw_ratios, run_ratios, judge_ratios),
    Probe("nothing behind the end", draw_batch, run_behind, judge_behind),
    Probe("every row is its paper's", draw_batch, run_table, judge_table),
    Probe("every row learns", draw_training, run_training, judge_training, seconds=180),
])  # fmt: skip
