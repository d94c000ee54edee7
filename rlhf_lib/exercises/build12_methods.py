"""Build it 12.11: one loss with four switches, of which every method of the chapter is a row."""

import math
import statistics

import torch

from rlhf_lib.exercises import build12_probes as probes
from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.build12_probes import DENOMINATORS, DEVIATION, EXPECTED, PLAIN, close, draw_batch, tried
from rlhf_lib.exercises.tiny_groups import GROUP, completed, earned, match, spoken, tiny
from rlhf_lib.exercises.tiny_rlhf import weights
from rlhf_lib.policy_gradient import METHODS

CLIPS = ("none", "token", "sequence")


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
        if close(sequence, token):
            continue
        if sequence[~mask].any():
            return "sequence: padding is counted in s(y): set the log-ratios to 0 where the mask is False"
        if close(sequence, lengths * token):
            return "sequence: this is the product of the tokens' ratios; take its n-th root, n the completion's length"
        if close(mask.shape[1] * sequence, lengths * token):
            return "sequence: the sum in s(y) is divided by T, padding included; divide by the completion's own length"
        return (
            f"{denominator}: at a ratio of 1 the clip of whole completions has another gradient than that of tokens: is s(y) the "
            "mean over its own tokens, and does every token that is real have it?"
        )
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


def larger_loss(A, ratio, cut):
    return torch.maximum(-A * ratio, -A * cut)


def held(clip, rewards, logprobs, old_logprobs, epsilon, cost=larger_loss, low=1.0, high=1.0, turn=1, whole=geometric):
    """The gradient that is right, or that of a known mistake; `low` and `high` are how far the two bounds are off."""
    new = logprobs.clone().requires_grad_()
    log_ratio, A = turn * (new - old_logprobs), rewards.flatten()[:, None]
    ratio = whole(log_ratio).expand_as(new) if clip == "sequence" else log_ratio.exp()
    each = cost(A, ratio, ratio.clamp(1 - low * epsilon, 1 + high * epsilon))
    return torch.autograd.grad(each.sum(1).mean() / 2, new)[0]


def judge_ratios(output, rewards, logprobs, old_logprobs, **_):
    given = (rewards, logprobs, old_logprobs)
    mistakes = {
        "the ratio is not clipped": {"cost": lambda A, ratio, cut: -A * ratio},
        "the clipped ratio is always taken; of the two losses the larger one counts, so that a step too far can be taken back":
            {"cost": lambda A, ratio, cut: -A * cut},
        "of the two losses the smaller is taken: it never stops what pays, and stops what would mend. The larger loss counts":
            {"cost": lambda A, ratio, cut: torch.minimum(-A * ratio, -A * cut)},
        "the smaller of the two ratios is taken; of the two losses the larger counts, which with A < 0 has the larger ratio":
            {"cost": lambda A, ratio, cut: -A * torch.minimum(ratio, cut)},
        "the larger of the two ratios is taken; of the two losses the larger counts, which with A > 0 has the smaller ratio":
            {"cost": lambda A, ratio, cut: -A * torch.maximum(ratio, cut)},
        "the ratio is clipped above and not below": {"low": 1e6},
        "the ratio is clipped below and not above": {"high": 1e6},
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
    return {"seed": int(torch.randint(1000, (1,), generator=generator)), "updates": 30}


def trained(policy_gradient, row, seed, updates, told):
    """The weights of a tiny model that was paid for saying tokens of its prompt."""
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
    return weights(policy)


def run_training(policy_gradient, seed, updates):
    found, all_of_them = {}, len(METHODS) * (updates + 1)
    for place, (name, row) in enumerate(METHODS.items()):

        def told(update, name=name, place=place):
            tick((place * (updates + 1) + update) / all_of_them, name)

        found[name] = trained(policy_gradient, row, seed, updates, told)
    return found


def judge_training(output, seed, **_):
    policy = tiny(seed)
    before = earned(policy)
    for name in METHODS:
        policy.load_state_dict(output[name])
        after = earned(policy)
        if not after > before + 0.2:
            return (
                f"{name}: on a tiny model that is paid for repeating its prompt the reward goes from {before:.2f} to {after:.2f} "
                "only, and every row of the table is to gain 0.2"
            )
    return ""


policy_gradient = Build("12.11", "policy_gradient", [
    Probe("one number, and a gradient", draw_batch, probes.run_numbers, probes.judge_numbers),
    Probe("each completion learns from its own reward", draw_batch, probes.run_places, probes.judge_places),
    Probe("what all of a group have in common teaches nothing", draw_batch, probes.run_shift, probes.judge_shift),
    Probe("the unit of the reward", draw_batch, probes.run_units, probes.judge_units),
    Probe("a group that agrees teaches nothing", draw_batch, probes.run_agreed, probes.judge_agreed),
    Probe("what a token counts", draw_batch, probes.run_counts, probes.judge_counts),
    Probe("at a ratio of 1 every clip is alike", draw_batch, run_level, judge_level),
    Probe("what the clip holds back", draw_ratios, run_ratios, judge_ratios),
    Probe("nothing behind the end", draw_batch, probes.run_behind, probes.judge_behind),
    Probe("every row is its paper's", draw_batch, run_table, judge_table),
    Probe("every row learns", draw_training, run_training, judge_training, seconds=180),
])  # fmt: skip
