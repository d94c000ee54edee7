"""Chapter 12: what a group says of each of its completions, what tokens are divided by, and a loss of preferences."""

import itertools
import math
import statistics
from functools import partial

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise, Investigation


def ragged(generator, rows, steps):
    """A mask (rows, steps) of rows of different lengths, 1 at least; none is as long as the columns but the first."""
    lengths = torch.randint(1, max(2, steps), (rows, 1), generator=generator)
    lengths[0] = steps
    return torch.arange(steps) < lengths


def hidden(generator, mask, x):
    """x with something under the mask that nobody may look at: a large number in some places, NaN in others."""
    large = 9 * torch.randn(mask.shape, generator=generator)
    under = torch.where(torch.rand(mask.shape, generator=generator) < 0.5, large, math.nan)
    return torch.where(mask, x, under)


def scored(generator, rows, steps, spread=0.4):
    """Log-probabilities of tokens under two models, and their mask."""
    old = -3 * torch.rand(rows, steps, generator=generator)
    new, mask = old + spread * torch.randn(rows, steps, generator=generator), ragged(generator, rows, steps)
    return hidden(generator, mask, new), hidden(generator, mask, old), mask


def with_gradients(function, names, out, arguments):
    """What a function makes of its arguments, as `out`, and the gradients that its sum sends to some of them; 0 where none."""
    given = {name: one.clone().requires_grad_() if name in names else one for name, one in arguments.items()}
    result = function(**given)
    if getattr(result, "requires_grad", False):
        (result * (1 + torch.arange(result.numel()).view(result.shape))).sum().backward()
    gradients = {name: torch.zeros_like(given[name]) if given[name].grad is None else given[name].grad for name in names}
    return {out: result, **{f"gradient of {name}": one for name, one in gradients.items()}}


def detached(right):
    """The right answer, without a gradient."""
    return lambda **arguments: right(**arguments).detach()


# ----------------------------------------------------------------------------------------- 12.1
def draw_left_out(generator):
    yield {"rewards": torch.tensor([[1.0, 2.0, 6.0]])}
    yield {"rewards": torch.tensor([[0.0, 1.0], [3.0, -1.0]])}
    yield {"rewards": torch.tensor([[0.5, 0.5, 0.5], [1.0, 0.0, 0.0]])}
    for groups, size in ((4, 3), (2, 5), (3, 8)):
        centre = torch.randn(groups, 1, generator=generator)
        yield {"rewards": 2 * centre + torch.randn(groups, size, generator=generator)}
    yield {"rewards": torch.tensor([[0.504, 0.5, 0.502]])}  # close together
    for groups, size in ((2, 130), (130, 2)):
        yield {"rewards": torch.randn(groups, size, generator=generator)}


def left_out_by_loops(rewards):
    rows = rewards.tolist()
    return torch.tensor([[r - statistics.fmean(row[:i] + row[i + 1 :]) for i, r in enumerate(row)] for row in rows])


def left_out_formula(rewards, *, dim=1, keep=True, expect=lambda total, r, G: (total - r) / (G - 1), end=torch.sub):
    return end(rewards, expect(rewards.sum(dim, keepdim=keep), rewards, rewards.shape[dim]).expand_as(rewards))


def best_of_the_others(total, rewards, G):
    ranked = rewards.sort(1, descending=True).values
    return torch.where(rewards == ranked[:, :1], ranked[:, 1:2], ranked[:, :1])


leave_one_out = Exercise(
    "12.1", "leave_one_out", draw=draw_left_out, right=left_out_by_loops, formula=left_out_formula, mistakes={
        "the completion itself is in the mean that it is measured from: the others alone make the baseline":
            {"expect": lambda total, r, G: total / G},
        "the sum of the others is divided by G; there are G - 1 of them": {"expect": lambda total, r, G: (total - r) / G},
        "the sum of the others is divided by 2, as in a group of three; there are G - 1 of them":
            {"expect": lambda total, r, G: (total - r) / 2},
        "the sum of the whole group is divided by G - 1: take the completion's own reward off first":
            {"expect": lambda total, r, G: total / (G - 1)},
        "this is the sum of the others; their mean is the baseline": {"expect": lambda total, r, G: total - r},
        "this is the median of the others; their mean is the baseline": lambda rewards: rewards - torch.stack(
            [torch.cat([rewards[:, :i], rewards[:, i + 1 :]], 1).median(1).values for i in range(rewards.shape[1])], 1),
        "the columns are taken for groups; each row is one prompt's":
            [{"dim": 0}, {"dim": 0, "expect": lambda total, r, G: (total - r) / (r.shape[1] - 1)}],
        "the sum of the others is divided by N - 1, the number of other prompts; there are G - 1 others in a group":
            {"expect": lambda total, r, G: (total - r) / max(1, len(r) - 1)},
        "one of the others alone is the baseline; it is the mean of them all":
            [{"expect": lambda total, r, G, by=by: r.roll(by, 1)} for by in (-1, 1)],
        "G / (G - 1) is upside down: it makes the distance from the mean of all one from the mean of the others":
            {"expect": lambda total, r, G: r - (r - total / G) * (G - 1) / G},
        "a row's sum, (N,), stands beside the columns, as if each column were one prompt's: keepdim=True makes it (N, 1)":
            {"keep": False},
        "the others are those of the whole batch; they are those of the same prompt":
            {"expect": lambda total, r, G: (r.sum() - r) / (r.numel() - 1)},
        "the baseline is the mean of the whole batch; an easy prompt then looks like a good answer":
            {"expect": lambda total, r, G: r.mean()},
        "the baseline is the best of the others; it is their mean": {"expect": best_of_the_others},
        "the sign is turned: a completion that is better than the others has a positive advantage":
            {"end": lambda r, expected: expected - r},
        "these are the baselines; the advantage is the reward less its baseline": {"end": lambda r, expected: expected},
        "this is divided by the group's deviation, as in GRPO; RLOO leaves it":
            [{"end": lambda r, expected, n=n: (r - expected) / (r.std(1, keepdim=True, correction=n) + 1e-8)} for n in (0, 1)],
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 12.2
NORMALISERS = ("none", "deviation", "mean")


def draw_groups(generator):
    yield {"rewards": torch.tensor([[1.0, 2.0, 6.0]]), "normaliser": "deviation"}
    yield {"rewards": torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "normaliser": "mean"}
    yield {"rewards": torch.tensor([[0.5, 0.5, 0.5], [1.0, 2.0, 0.0]]), "normaliser": "deviation"}
    yield {"rewards": torch.tensor([[0.0, 4.0], [1.0, 1.0], [2.0, 3.0]]), "normaliser": "none"}
    for normaliser in NORMALISERS:  # some agree, and not all
        yield {"rewards": torch.tensor([[0.0, 0.0, 3.0], [3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]), "normaliser": normaliser}
    yield {"rewards": torch.tensor([[0.3, 0.4, 0.45], [0.9, 0.8, 1.0]]), "normaliser": "deviation"}  # close together
    for normaliser in NORMALISERS:
        for groups, size in ((3, 2), (2, 6)):
            orders = torch.stack([torch.randperm(size, generator=generator) for _ in range(groups)])
            rewards = orders + 0.5 * torch.rand(groups, size, generator=generator)  # so far apart that 1e-8 is nothing
            yield {"rewards": rewards + 2 * torch.rand(groups, 1, generator=generator), "normaliser": normaliser}
    for normaliser in ("none", "deviation"):  # rewards below 0
        yield {"rewards": torch.tensor([[-3.0, -1.0, -2.0], [-8.0, -2.0, 4.0]]), "normaliser": normaliser}
    for rewards in ([0.53, 0.5, 0.51], [1e-4, 2e-4, 6e-4]):  # closer still
        yield {"rewards": torch.tensor([rewards]), "normaliser": "deviation" if rewards[0] > 0.1 else "mean"}
    for normaliser, groups, size in (("deviation", 2, 130), ("mean", 130, 2)):
        orders = torch.stack([torch.randperm(size, generator=generator) for _ in range(groups)])
        yield {"rewards": 1.0 + orders, "normaliser": normaliser}
        yield {"rewards": (torch.arange(130) == 7)[None].float(), "normaliser": normaliser}  # one success alone


def call_groups(function, rewards, normaliser):
    """What the function returns: to two digits where rewards are close together, since 1e-8 may be added to the variance."""
    found, deviation = function(rewards=rewards, normaliser=normaliser), rewards.std(1, correction=0)
    close = torch.is_tensor(found) and bool(((deviation > 0) & (deviation < 0.03)).any())
    return found.round(decimals=2) if close and found.is_floating_point() else found


def groups_by_loops(rewards, normaliser):
    unit = {"none": lambda row: 1.0, "deviation": statistics.pstdev, "mean": statistics.fmean}[normaliser]
    rows = [(row, statistics.fmean(row), unit(row)) for row in rewards.tolist()]
    return torch.tensor([[(r - mean) / u if u else 0.0 for r in row] for row, mean, u in rows])


def groups_formula(
    rewards, normaliser, *, dim=1, expect=lambda r, dim: r.mean(dim, keepdim=True), guard=True, use=lambda normaliser: normaliser,
    deviation=lambda r, dim: r.std(dim, keepdim=True, correction=0), mean=lambda r, dim: r.mean(dim, keepdim=True),
    divide=torch.div,
):  # fmt: skip
    apart, name = rewards - expect(rewards, dim), use(normaliser)
    if name == "none":
        return apart
    unit = deviation(rewards, dim) if name == "deviation" else mean(rewards, dim)
    return torch.where((unit == 0) & guard, 0, divide(apart, unit))


def flat_mean(rewards, dim):
    return rewards.mean(dim)


def flat_deviation(rewards, dim):
    return rewards.std(dim, correction=0)


group_advantages = Exercise(
    "12.2", "group_advantages", draw=draw_groups, call=call_groups, right=groups_by_loops, formula=groups_formula, mistakes={
        "a group whose rewards are all alike gives 0 / 0, which is not a number: it teaches nothing, its advantages are 0":
            [{"guard": False}, *(lambda rewards, normaliser, one=one: groups_formula(rewards, normaliser, guard=normaliser != one)
                                 for one in ("deviation", "mean"))],
        "the deviation is divided by G - 1, PyTorch's own default; here it is that of the group itself: correction=0":
            {"deviation": lambda r, dim: r.std(dim, keepdim=True)},
        "this divides by the variance; the deviation is its root":
            {"deviation": lambda r, dim: r.var(dim, keepdim=True, correction=0)},
        "the deviation is that of the whole batch; each group has its own":
            {"deviation": lambda r, dim: r.std(correction=0).expand_as(r)},
        "more than 1e-8 is added, which shrinks groups whose rewards are close: at most 1e-8": [
            *({"deviation": lambda r, dim, eps=eps: r.std(dim, keepdim=True, correction=0) + eps} for eps in (1e-4, 1e-3, 1e-2)),
            *({"deviation": lambda r, dim, eps=eps: (r.var(dim, keepdim=True, correction=0) + eps).sqrt()}
              for eps in (1e-6, 1e-5, 1e-4))],
        "groups whose rewards are close count as groups that agree; their rewards differ, and they teach something":
            [*({"deviation": lambda r, dim, least=least: r.std(dim, keepdim=True, correction=0)
                * (r.amax(dim, keepdim=True) - r.amin(dim, keepdim=True) >= least)} for least in (0.05, 0.1, 0.2)),
             *(lambda rewards, normaliser, least=least: groups_formula(rewards, normaliser).masked_fill(
                 rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True) < least, 0) for least in (0.05, 0.1, 0.2))],
        "a group is taken to agree where two of its rewards do; all of them have to": [
            lambda rewards, normaliser, one=one, other=other: groups_formula(rewards, normaliser).masked_fill(
                rewards[:, one, None] == rewards[:, other, None], 0) for one, other in ((0, 1), (0, -1), (-2, -1))],
        "the advantages are kept within bounds; they may be of any size":
            [lambda rewards, normaliser, most=most: groups_formula(rewards, normaliser).clamp(-most, most)
             for most in (1, 2, 3, 5, 10, 100)],
        "the mean is kept above a bound, or something is added to it; it divides as it is, and a rare success counts for more": [
            *({"mean": lambda r, dim, least=least: r.mean(dim, keepdim=True).clamp(min=least)} for least in (0.001, 0.1, 1)),
            *({"mean": lambda r, dim, eps=eps: r.mean(dim, keepdim=True) + eps} for eps in (1e-4, 1e-3, 1e-2))],
        "mean and unit are those of the whole batch; each group has its own": [
            {"expect": lambda r, dim: r.mean(), "deviation": lambda r, dim: r.std(correction=0).expand_as(r),
             "mean": lambda r, dim: r.mean().expand_as(r)},
            lambda rewards, normaliser: groups_formula(rewards.view(1, -1), normaliser).view(rewards.shape).masked_fill(
                (rewards == rewards[:, :1]).all(1, keepdim=True), 0)],
        "this divides by the mean of the whole batch; each group has its own": {"mean": lambda r, dim: r.mean().expand_as(r)},
        "the columns are taken for groups; each row is one prompt's": {"dim": 0},
        "a row's mean, (N,), stands beside the columns, as if each column were one prompt's: keepdim=True makes it (N, 1)": [
            {"expect": flat_mean, "deviation": flat_deviation, "mean": flat_mean}, {"expect": flat_mean},
            {"deviation": flat_deviation, "mean": flat_mean}, {"deviation": flat_deviation}, {"mean": flat_mean}],
        "the baseline is the mean of the whole batch; each group has its own":
            {"expect": lambda r, dim: r.mean()},
        "the baseline leaves the completion itself out, as RLOO's does; here it is the mean of the whole group":
            {"expect": lambda r, dim: (r.sum(dim, keepdim=True) - r) / (r.shape[dim] - 1)},
        "nothing is subtracted: the advantage is the reward less the group's mean": {"expect": lambda r, dim: 0},
        "`normaliser` is not used, nothing is divided": {"use": lambda normaliser: "none"},
        "`normaliser` is not used, all is divided by the deviation": {"use": lambda normaliser: "deviation"},
        "deviation and mean have changed places": {
            "use": lambda normaliser: {"deviation": "mean", "mean": "deviation"}.get(normaliser, normaliser)},
        "nothing is subtracted with \"none\": the advantage is the reward less the group's mean":
            lambda rewards, normaliser: rewards if normaliser == "none" else groups_formula(rewards, normaliser),
        "nothing is subtracted with \"mean\": the advantage is the reward less the group's mean, over that mean":
            lambda rewards, normaliser: groups_formula(rewards, normaliser, expect=lambda r, dim: 0 * r)
            if normaliser == "mean" else groups_formula(rewards, normaliser),
        "\"mean\" divides by the deviation too; by the group's mean":
            {"use": lambda normaliser: "none" if normaliser == "none" else "deviation"},
        "this divides by the mean distance from the group's mean; by the root of the mean square distance":
            {"deviation": lambda r, dim: (r - r.mean(dim, keepdim=True)).abs().mean(dim, keepdim=True)},
        "this divides by the root of the rewards' mean square; the distances are from the group's mean":
            {"deviation": lambda r, dim: r.square().mean(dim, keepdim=True).sqrt()},
        "the deviation is kept above a bound, which shrinks groups whose rewards are close: at most 1e-8 is added":
            [{"deviation": lambda r, dim, least=least: r.std(dim, keepdim=True, correction=0).clamp(min=least)}
             for least in (0.02, 0.05, 0.1, 1.0)],
        "this multiplies by the deviation or mean; divide": {"divide": torch.mul},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 12.3
def draw_silent(generator):
    yield {"p": torch.tensor([0.5, 0.1]), "group": 2}
    yield {"p": torch.tensor([0.02, 0.5, 0.98]), "group": 8}
    yield {"p": torch.tensor([0.0, 1.0, 0.3]), "group": 5}
    yield {"p": torch.tensor([0.25, 0.6]), "group": 1}
    for size in (3, 4, 16):
        yield {"p": torch.rand(size, generator=generator), "group": size}
    yield {"p": torch.tensor([1e-4, 0.02, 0.98]), "group": 64}


def silent_by_counts(p, group):
    """1 less the chance of every number of successes from which something is learned."""
    mixed = [math.comb(group, k) * p.double() ** k * (1 - p.double()) ** (group - k) for k in range(1, group)]
    return (1 - sum(mixed, torch.zeros(len(p), dtype=torch.float64))).float()


def silent_formula(p, group, *, won=True, lost=True, power=lambda G: G, join=torch.add, end=lambda share: share):
    all_won, all_lost = p ** power(group) * won, (1 - p) ** power(group) * lost
    return end(join(all_won, all_lost))


silent_share = Exercise(
    "12.3", "silent_share", draw=draw_silent, right=silent_by_counts, formula=silent_formula, mistakes={
        "groups in which all succeed are left out: they agree too, and teach nothing": {"won": False},
        "groups in which all fail are left out: they agree too, and teach nothing": {"lost": False},
        "all fail is taken to be as likely as all succeed, which holds at 0.5 alone": lambda p, group: 2 * p**group,
        "the chance that two agree is multiplied by itself; whether others agree with one hangs on what that one is":
            lambda p, group: (p * p + (1 - p) * (1 - p)) ** (group - 1),
        "(1 - p) / p is infinite at p = 0, and 0 times that is not a number: p**group + (1 - p)**group":
            lambda p, group: p**group * (1 + ((1 - p) / p) ** group),
        "a group of one agrees with itself, always; here it is said to teach something":
            lambda p, group: silent_formula(p, group) * (group > 1),
        "this is the share of groups that teach something": {"end": lambda share: 1 - share},
        "all succeed and all fail cannot both happen: add the two chances": {"join": torch.mul},
        "this is the chance that all others agree with one: G completions have to be alike, not G - 1":
            {"power": lambda G: G - 1},
        "this is for groups of 2, whatever `group` says": {"power": lambda G: 2},
        "the chances of one completion are multiplied by G; those of G independent ones are multiplied with each other":
            lambda p, group: group * p + group * (1 - p),
        "the chance of both at once is subtracted; all succeed and all fail never happen together":
            lambda p, group: p**group + (1 - p) ** group - (p * (1 - p)) ** group,
        "brackets are missing: all fail with (1 - p) ** group": lambda p, group: p**group + 1 - p**group,
        "this is the larger of the two chances; add them": {"join": torch.maximum},
        "this is in percent; asked for is a share": {"end": lambda share: 100 * share},
        "this is how many groups teach something for each that does not":
            {"end": lambda share: (1 - share) / share},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 12.4
DENOMINATORS = ("completion", "batch", "constant")


def draw_averages(generator):
    two, mask = torch.tensor([[-1.0, 9.0, 9.0, 9.0], [1.0, 1.0, 1.0, 9.0]]), torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0]]).bool()
    for denominator in DENOMINATORS:
        yield {"losses": two, "mask": mask, "denominator": denominator}
    for rows, steps in ((3, 5), (4, 6)):
        for denominator in DENOMINATORS:
            mask = ragged(generator, rows, steps)
            mask[:, -1] = False  # no completion is as long as it may be
            losses = hidden(generator, mask, torch.randn(rows, steps, generator=generator) + 0.3)
            yield {"losses": losses, "mask": mask, "denominator": denominator}
    for denominator in DENOMINATORS:  # some tokens cost nothing
        losses = torch.tensor([[0.0, 2.0, 0.0, 7.0], [1.0, 0.0, 7.0, 7.0]])
        yield {"losses": losses, "mask": losses < 7, "denominator": denominator}
    for denominator in DENOMINATORS:  # the tokens do not stand first, and not side by side
        losses = torch.tensor([[7.0, 2.0, 8.0, 1.0, -1.0], [3.0, 9.0, 7.0, -2.0, 8.0]])
        yield {"losses": losses, "mask": losses < 7, "denominator": denominator}
    for denominator in DENOMINATORS:
        mask = torch.arange(1030) < torch.tensor([[1020], [400]])
        losses = hidden(generator, mask, torch.randn(2, 1030, generator=generator) + 0.3)
        yield {"losses": losses, "mask": mask, "denominator": denominator}


def call_average(function, **arguments):
    """The loss, and its gradient: how much each token counts. That of padding is a part of its own."""
    found, mask = with_gradients(function, ["losses"], "loss", arguments), arguments["mask"]
    gradient = found.pop("gradient of losses")
    return {**found, "gradient of losses": gradient[mask], "gradient under the mask": gradient[~mask]}


def averages_by_rows(losses, mask, denominator):
    """Each completion's sum over what its tokens are divided by."""
    B, T = mask.shape
    total = 0 * losses[mask].sum()
    for row, here in zip(losses, mask):
        count = {"completion": B * int(here.sum()), "batch": int(mask.sum()), "constant": B * T}[denominator]
        total = total + row[here].sum() / count
    return total


def first_ones(mask):
    """As many True in a row as there are, but the first ones."""
    return torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True)


def up_to_the_last(mask):
    """The place behind the last True of each row."""
    return (mask * torch.arange(1, mask.shape[1] + 1)).amax(1)


def averages_formula(
    losses, mask, denominator, *, keep=lambda x, mask: torch.where(mask, x, 0), lengths=lambda mask: mask.sum(1),
    use=lambda name: name, completion=lambda s, n, T: (s / n).mean(), batch=lambda s, n, T: s.sum() / n.sum(),
    constant=lambda s, n, T: s.mean() / T,
):  # fmt: skip
    """`s` and `n` are each completion's sum and length, (B,)."""
    s, n, T = keep(losses, mask).sum(1), lengths(mask), mask.shape[1]
    return {"completion": completion, "batch": batch, "constant": constant}[use(denominator)](s, n, T)


token_average = Exercise(
    "12.4", "token_average", draw=draw_averages, call=call_average, right=averages_by_rows, formula=averages_formula,
    mistakes={
        "padding is counted: what stands where the mask is False belongs to nobody":
            [{"keep": lambda x, mask: x}, {"keep": lambda x, mask: x, "lengths": lambda mask: (mask | True).sum(1)}],
        "a product with the mask does not hide a NaN under it, since 0 times NaN is not a number: use torch.where":
            {"keep": lambda x, mask: x * mask},
        "the first tokens of a row are taken for the completion's, or its length is counted up to the last one: the mask says "
        "which are its tokens, wherever they stand": [
            {"keep": lambda x, mask: torch.where(first_ones(mask), x, 0)}, {"lengths": lambda mask: up_to_the_last(mask)}],
        "the mask is turned round": {"keep": lambda x, mask: torch.where(mask, 0, x), "lengths": lambda mask: (~mask).sum(1)},
        "this is divided by B T, padding included, whatever `denominator` says: that is the constant alone":
            {"lengths": lambda mask: (mask | True).sum(1)},
        "completion: the sums are divided by T, padding included; divide each by its own completion's length":
            {"completion": lambda s, n, T: s.mean() / T},
        "batch: the sum is divided by B T, padding included; divide by the number of all tokens":
            {"batch": lambda s, n, T: s.mean() / T},
        "no gradient reaches the losses: something on the way is detached, or was made a number by .item()":
            {"keep": lambda x, mask: torch.where(mask, x, 0).detach()},
        "completion: the mean length divides; each completion has its own": {
            "completion": lambda s, n, T: s.mean() / n.float().mean()},
        "completion: each one's mean is added up; take the mean over the completions":
            {"completion": lambda s, n, T: (s / n).sum()},
        "batch: this is a mean of the completions' means; divide the sum of all tokens by the number of all tokens":
            {"batch": lambda s, n, T: (s / n).mean()},
        "batch: the sum is divided by the number of completions; divide by the number of their tokens":
            {"batch": lambda s, n, T: s.mean()},
        "constant: this divides by the longest completion of the batch, which is another number in every batch; T is the same":
            {"constant": lambda s, n, T: s.mean() / n.max()},
        "constant: this divides by the mean length, which is another number in every batch; T is the same":
            {"constant": lambda s, n, T: s.mean() / n.float().mean()},
        "constant: this divides by the number of completions, or by the first one's length; T is the number of columns":
            [{"constant": lambda s, n, T: s.mean() / len(s)}, {"constant": lambda s, n, T: s.mean() / n[0]}],
        "completion: 1 is added to the length": {"completion": lambda s, n, T: (s / (n + 1)).mean()},
        "batch: this is the sum; divide it by the number of all tokens": {"batch": lambda s, n, T: s.sum()},
        "constant: the sums are not divided by T": {"constant": lambda s, n, T: s.mean()},
        "constant: this is the sum; divide it by B T": {"constant": lambda s, n, T: s.sum()},
        "constant: the sums are divided by T and added up; take the mean over the completions":
            {"constant": lambda s, n, T: s.sum() / T},
        "completion and batch have changed places":
            {"use": lambda name: {"completion": "batch", "batch": "completion"}.get(name, name)},
        "tokens with a loss of 0 are left out of the number of tokens: count the mask": lambda losses, mask, denominator:
            averages_formula(losses, mask, denominator, lengths=lambda mask: (mask & (losses != 0)).sum(1).clamp(min=1)),
        "`denominator` is not used, each completion's own length divides": {"use": lambda name: "completion"},
        "`denominator` is not used, the tokens of the batch divide": {"use": lambda name: "batch"},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 12.5
def draw_sequences(generator):
    old, mask = torch.tensor([[-3.0, -3.0, -3.0]]), torch.tensor([[True, True, False]])
    yield {"logprobs": old + torch.tensor([[2.0, 4.5, 3.0]]).log(), "old_logprobs": old, "mask": mask}
    yield {"logprobs": torch.tensor([[-0.5]]), "old_logprobs": torch.tensor([[-1.5]]), "mask": torch.ones(1, 1).bool()}
    for rows, steps in ((2, 3), (3, 6), (4, 20)):
        new, old, mask = scored(generator, rows, steps)
        yield {"logprobs": new, "old_logprobs": old, "mask": mask}
    old = torch.tensor([[-32.0, -1.0, -4.0], [-1.0, -24.0, -3.0]])  # far apart, and near on the whole
    far = old + torch.tensor([[31.0, -29.5, 0.2], [-22.5, 23.0, 0.1]])
    yield {"logprobs": far, "old_logprobs": old, "mask": torch.ones(2, 3).bool()}
    old = torch.full((2, 120), -2.0)
    yield {"logprobs": old + torch.tensor([[1.0], [-1.0]]), "old_logprobs": old, "mask": torch.ones(2, 120).bool()}  # a long one
    old = torch.tensor([[0.0, -2.0, -1.0, -9.0], [-5.0, -120.0, -1.5, -1.0]])  # one was certain, one has not moved
    new = torch.tensor([[-0.5, 0.0, -1.0, -1.0], [-1.0, -112.0, -9.0, -1.5]])
    mask = torch.tensor([[True, True, True, False], [False, True, False, True]])
    yield {"logprobs": new, "old_logprobs": old, "mask": mask}
    new, old, mask = scored(generator, 2, 300)
    yield {"logprobs": new, "old_logprobs": old, "mask": mask}


def call_sequences(function, **arguments):
    """The ratios, and the gradients of their sum, each with a weight of its own."""
    return with_gradients(function, ["logprobs", "old_logprobs"], "ratio", arguments)


def sequences_by_roots(logprobs, old_logprobs, mask):
    """The n-th root of the product of n ratios."""
    ratios = [(new[here] - old[here].detach()).double().exp() for new, old, here in zip(logprobs, old_logprobs, mask)]
    return torch.stack([one.prod() ** (1 / len(one)) for one in ratios]).float()


def through_ratios(logprobs, old_logprobs, mask, root):
    """The mask stands behind the exponential; `root` makes a number a row of ratios (B, T) and lengths."""
    return root(torch.where(mask, (logprobs - old_logprobs.detach()).exp(), 1), mask.sum(1))


def sequences_formula(
    logprobs, old_logprobs, mask, *, old=torch.detach, apart=torch.sub, keep=lambda x, mask: torch.where(mask, x, 0),
    first=lambda x: x, mean=lambda x, n, T: x.sum(1) / n, last=torch.exp,
):  # fmt: skip
    log_ratio = apart(logprobs, old(old_logprobs))
    return last(mean(keep(first(log_ratio), mask), mask.sum(1), mask.shape[1]))


sequence_ratio = Exercise(
    "12.5", "sequence_ratio", draw=draw_sequences, call=call_sequences, right=sequences_by_roots, formula=sequences_formula,
    mistakes={
        "this is the product of all ratios: at 100 tokens it leaves any bounds. Take its n-th root, n the completion's length":
            {"mean": lambda x, n, T: x.sum(1)},
        "this is the mean of the tokens' ratios; the geometric mean is the exponential of the mean of their logarithms":
            {"first": torch.exp, "last": lambda x: x},
        "the sum is divided by T, padding included; divide by the completion's own length":
            {"mean": lambda x, n, T: x.sum(1) / T},
        "padding is counted: set it to 0 where the mask is False": [
            {"keep": lambda x, mask: x}, {"keep": lambda x, mask: x, "mean": lambda x, n, T: x.mean(1)},
            lambda logprobs, old_logprobs, mask: sequences_formula(
                torch.where(mask, logprobs, 0), old_logprobs, mask, keep=lambda x, mask: x)],
        "the first tokens of a row are taken for the completion's: the mask says which are its tokens, wherever they stand":
            {"keep": lambda x, mask: torch.where(first_ones(mask), x, 0)},
        "tokens with a logarithm of 0, which were certain or have not moved, are left out of the length: count the mask": [
            {"mean": lambda x, n, T: x.sum(1) / (x != 0).sum(1).clamp(min=1)},
            lambda logprobs, old_logprobs, mask: sequences_formula(
                logprobs, old_logprobs, mask,
                mean=lambda x, n, T: x.sum(1) / (mask & (old_logprobs != 0)).sum(1).clamp(min=1))],
        "the product of many ratios is infinite, or 0, before its root is taken: take the exponential of the logarithms' mean": [
            lambda logprobs, old_logprobs, mask: sequences_formula(
                logprobs, old_logprobs, mask, last=lambda x: x, mean=lambda x, n, T: x.exp().prod(1) ** (1 / n)),
            partial(through_ratios, root=lambda ratios, n: ratios.prod(1) ** (1 / n))],
        "what stands under the mask is hidden behind the exponential, whose gradient is not a number at a NaN: set the "
        "log-ratio itself to 0": partial(through_ratios, root=lambda ratios, n: (ratios.log().sum(1) / n).exp()),
        "the ratio is clipped here; the clip belongs to the loss": {"last": lambda x: x.exp().clamp(0.8, 1.2)},
        "each token's log-ratio is kept within bounds; the completion's ratio is made of all of it":
            [{"first": lambda x, most=most: x.clamp(-most, most)} for most in (1, 2, 3, 5, 10, 20)],
        "this is the square root of the product, whatever the length; the n-th root of n tokens":
            {"mean": lambda x, n, T: x.sum(1) / 2},
        "a product with the mask does not hide a NaN under it, since 0 times NaN is not a number: use torch.where":
            {"keep": lambda x, mask: x * mask},
        "the ratio is upside down: new over old": {"apart": lambda new, old: old - new},
        "this is the logarithm of the ratio; the exponential is missing": {"last": lambda x: x},
        "the old log-probabilities get a gradient: they are numbers that were written down at the rollout; detach them":
            {"old": lambda x: x},
        "no gradient reaches the log-probabilities: it is the old ones alone that are detached":
            {"first": torch.detach},
        "one number for the whole batch; each completion has a ratio of its own":
            {"mean": lambda x, n, T: (x.sum() / n.sum()).expand(len(x))},
        "the lengths' mean divides; each completion has its own length": {"mean": lambda x, n, T: x.sum(1) / n.float().mean()},
        "the sum is divided by the root of the length; divide by the length": {"mean": lambda x, n, T: x.sum(1) / n.sqrt()},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 12.6
ADVANTAGES = {
    "none": lambda r: r,
    "leave-one-out": left_out_formula,
    "group": lambda r: groups_formula(r, "none"),
    "deviation": lambda r: groups_formula(r, "deviation"),
    "mean": lambda r: groups_formula(r, "mean"),
}


def draw_expected(generator):
    yield {"probs": torch.tensor([0.5, 0.5]), "paid": torch.tensor([0.0, 1.0]), "group": 2, "row": "group"}
    yield {"probs": torch.tensor([0.5, 0.3, 0.2]), "paid": torch.tensor([0.0, 1.0, 3.0]), "group": 1, "row": "none"}
    yield {"probs": torch.tensor([0.6, 0.4]), "paid": torch.tensor([2.0, 1.0]), "group": 3, "row": "leave-one-out"}
    yield {"probs": torch.tensor([0.5, 0.0, 0.5]), "paid": torch.tensor([0.0, 2.0, 1.0]), "group": 2, "row": "group"}
    yield {"probs": torch.tensor([0.7, 0.1, 0.2]), "paid": torch.tensor([0.0, 1.0, 0.0]), "group": 3, "row": "mean"}
    for size, group, row in ((3, 2, "leave-one-out"), (4, 3, "group"), (3, 4, "deviation"), (4, 2, "none"), (17, 2, "group")):
        probs = torch.rand(size, generator=generator) + 0.1
        paid = torch.randint(-8, 9, (size,), generator=generator) / 4  # a group that agrees has exactly its mean
        yield {"probs": probs / probs.sum(), "paid": paid, "group": group, "row": row}


def call_expected(function, probs, paid, group, row):
    """`row` names the function that makes advantages of rewards (N, G)."""
    return function(probs=probs, paid=paid, group=group, advantages=ADVANTAGES[row])


def expected_by_counts(probs, paid, group, advantages):
    """Groups with the same tokens in another order are alike: each is taken once, times the number of its orders."""
    total = torch.zeros(len(probs), dtype=torch.float64)
    for tokens in itertools.combinations_with_replacement(range(len(probs)), group):
        counts = [tokens.count(token) for token in range(len(probs))]
        chance = math.factorial(group)
        for count, p in zip(counts, probs.tolist()):
            chance *= p**count / math.factorial(count)
        worth = advantages(paid[list(tokens)][None])[0].double()
        for token, A in zip(tokens, worth.tolist()):
            total[token] += chance * A / group
        total -= chance * worth.sum().item() / group * probs.double()
    return total.float()


def expected_formula(
    probs, paid, group, advantages, *, groups=lambda V, G: itertools.product(range(V), repeat=G),
    chance=lambda probs, tokens: probs[tokens].prod(1), worth=lambda advantages, r: advantages(r),
    slope=lambda hot, probs: hot - probs, over=lambda steps: steps.mean(1), end=lambda total: total,
):  # fmt: skip
    tokens = torch.tensor(list(groups(len(probs), group)), dtype=torch.long).view(-1, group)  # (M, G)
    steps = worth(advantages, paid[tokens])[..., None] * slope(F.one_hot(tokens, len(probs)), probs)  # (M, G, V)
    return end((chance(probs, tokens)[:, None] * over(steps)).sum(0))


expected_gradient = Exercise(
    "12.6", "expected_gradient", draw=draw_expected, call=call_expected, right=expected_by_counts, formula=expected_formula,
    mistakes={
        "all groups count the same; a group counts by its probability, the product of its tokens'":
            {"chance": lambda probs, tokens: torch.full((len(tokens),), 1.0 / len(tokens))},
        "the probabilities of a group's tokens are added; they are drawn one after another, so multiply":
            {"chance": lambda probs, tokens: probs[tokens].sum(1)},
        "the logarithm of a probability of 0 is -inf, and 0 times that is not a number: multiply the probabilities themselves":
            {"chance": lambda probs, tokens: (F.one_hot(tokens, len(probs)).sum(1) * probs.log()).sum(1).exp()},
        "only so many groups are listed, such as 256; list all of them":
            {"groups": lambda V, G: itertools.islice(itertools.product(range(V), repeat=G), 256)},
        "groups of one token alone are left out; they teach nothing only where the group's mean is subtracted":
            {"chance": lambda probs, tokens: probs[tokens].prod(1) * (tokens != tokens[:, :1]).any(1)},
        "a token is drawn at most once in a group here; each completion is drawn from all tokens":
            {"groups": lambda V, G: itertools.permutations(range(V), G)},
        "a group is counted once for all orders of its tokens; each order is a group of its own":
            {"groups": lambda V, G: itertools.combinations_with_replacement(range(V), G)},
        "the gradient of log p in the logits is 1 at the token that was drawn, less the probability, everywhere: - p is missing":
            {"slope": lambda hot, probs: hot},
        "this is the gradient in the probabilities; in the logits it is 1 at the token less p":
            {"slope": lambda hot, probs: hot / probs},
        "the group's terms are added up; take their mean": {"over": lambda steps: steps.sum(1)},
        "this is the gradient of p; that of log p is not multiplied by the token's probability":
            {"slope": lambda hot, probs: (hot * probs).sum(-1, keepdim=True) * (hot - probs)},
        "the rewards stand where the advantages belong": {"worth": lambda advantages, r: r},
        "the advantages are made of all groups at once, as if one row; each group is a row of its own":
            {"worth": lambda advantages, r: advantages(r.reshape(1, -1)).view(r.shape)},
        "the advantages are made of the columns; every row is a group of its own":
            {"worth": lambda advantages, r: advantages(r.T).T},
        "one of the group's probabilities is left out; a group has the product of them all": [
            {"chance": lambda probs, tokens: probs[tokens[:, 1:]].prod(1)},
            {"chance": lambda probs, tokens: probs[tokens[:, :-1]].prod(1)}],
        "the sign is turned: asked for is the direction in which the logits go, not the gradient of a loss":
            {"end": lambda total: -total},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 12.7
NAMES = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")


def draw_dpo(generator):
    yield {**dict(zip(NAMES, torch.tensor([[-10.0], [-9.0], [-11.0], [-8.0]]))), "beta": 0.5}
    same = torch.tensor([-3.0, -7.0])
    yield {**dict(zip(NAMES, (same, same - 1, same, same - 1))), "beta": 0.2}  # a policy that is its reference
    far = torch.tensor([1000.0, -1000.0, 2.0])
    yield {**dict(zip(NAMES, (far, 0 * far, 0 * far, 0 * far + 0.5))), "beta": 1.0}
    for count, beta in ((3, 0.1), (5, 0.7), (130, 0.3)):
        yield {**dict(zip(NAMES, -8 * torch.rand(4, count, generator=generator) - 2)), "beta": beta}
    ref = torch.tensor([[-319.0, -309.0, -332.0, -297.0], [-311.25, -306.5, -299.5, -293.0]])  # whole answers
    policy = ref + torch.tensor([[-1.0, -1.0, -3.0, -3.0], [0.25, 1.5, 0.5, 3.0]])
    yield {**dict(zip(NAMES, (*policy, *ref))), "beta": 1.0}


def call_dpo(function, **arguments):
    """The loss, and its gradients in the policy's log-probabilities."""
    return with_gradients(function, NAMES[:2], "loss", arguments)


def dpo_by_two_classes(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """A choice between two answers, of which the first is right."""
    logits = beta * torch.stack([policy_chosen - ref_chosen, policy_rejected - ref_rejected], 1)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


def dpo_formula(
    policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta, *, reference=lambda one, other: one - other, sign=1,
    scale=lambda margin, beta: beta * margin, loss=lambda z, beta: -F.logsigmoid(z), over=torch.mean, sides=(1, 1),
    before=lambda margin: margin,
):  # fmt: skip
    ours = sides[0] * policy_chosen - sides[1] * policy_rejected
    margin = sign * (ours - reference(sides[0] * ref_chosen, sides[1] * ref_rejected))
    return over(loss(scale(before(margin), beta), beta))


CUTS = [
    *({"loss": lambda z, beta, eps=10.0**-n: -(z.sigmoid() + eps).log()} for n in (5, 6, 7, 8, 9, 10, 12)),
    *({"loss": lambda z, beta, eps=10.0**-n: -z.sigmoid().clamp(min=eps).log()} for n in (5, 6, 7, 8, 9, 10, 12)),
    *({"loss": lambda z, beta, most=most: -F.logsigmoid(z.clamp(-most, most))}
      for most in (2, 5, 10, 15, 20, 30, 50, 60, 80, 88, 100)),
]  # fmt: skip

dpo_loss = Exercise(
    "12.7", "dpo_loss", draw=draw_dpo, call=call_dpo, right=dpo_by_two_classes, formula=dpo_formula, mistakes={
        "the sigmoid has become 0, or an exponential infinite, and so is the loss: F.logsigmoid does all steps at once":
            [{"loss": lambda z, beta: -z.sigmoid().log()}, {"loss": lambda z, beta: (1 + (-z).exp()).log()}],
        "these are ratios of probabilities, which are 0 for a whole answer in 32 bits: subtract the logarithms": [
            lambda policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta: -F.logsigmoid(beta * (
                (policy_chosen.exp() / ref_chosen.exp()) / (policy_rejected.exp() / ref_rejected.exp())).log()).mean(),
            lambda policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta: -F.logsigmoid(beta * (
                (policy_chosen.exp() / ref_chosen.exp()).log() - (policy_rejected.exp() / ref_rejected.exp()).log())).mean()],
        "softplus is a straight line above its threshold; leave that at 20, where nobody can tell":
            [{"loss": lambda z, beta, end=end: F.softplus(-z, threshold=end)} for end in (1.0, 2.0, 3.0, 5.0)],
        "margin or sigmoid is kept within bounds, or a little is added inside the logarithm, and far out no gradient is left: "
        "F.logsigmoid is finite without either":
            CUTS,
        "no gradient reaches the policy's log-probabilities: only the reference's are fixed": detached(dpo_by_two_classes),
        "the reference is left out: what it finds likely anyway is then paid for": {"reference": lambda one, other: 0},
        "the reference's difference is added; subtract it": {"reference": lambda one, other: other - one},
        "beta stands in front of the logsigmoid; it scales the margin inside":
            {"scale": lambda margin, beta: margin, "loss": lambda z, beta: -beta * F.logsigmoid(z)},
        "beta is left out: it scales the margin": {"scale": lambda margin, beta: margin},
        "the margin is divided by beta; multiply": {"scale": lambda margin, beta: margin / beta},
        "beta scales the policy's difference alone; it belongs to the whole margin":
            lambda policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta: -F.logsigmoid(
                beta * (policy_chosen - policy_rejected) - (ref_chosen - ref_rejected)).mean(),
        "chosen and rejected have changed places: it learns what readers did not want": {"sign": -1},
        "the sign of the loss is turned: it is to fall where the margin grows": {"loss": lambda z, beta: F.logsigmoid(z)},
        "this is the sum over the pairs; take their mean": {"over": torch.sum},
        "the mean is taken over the margins, before the logsigmoid; each pair has a loss of its own":
            {"before": lambda margin: margin.mean()},
        "the rejected answer is left out; the margin is a difference of two log-ratios": {"sides": (1, 0)},
        "this is IPO's loss, a square; DPO's is the negative log-sigmoid":
            {"scale": lambda margin, beta: margin, "loss": lambda z, beta: (z - 1 / (2 * beta)).square()},
        "this is 1 less the sigmoid; the loss is minus its logarithm": {"loss": lambda z, beta: torch.sigmoid(-z)},
    })  # fmt: skip

Investigation("12.A", "How many completions is a method worth?")
Investigation("12.B", "Is it the selection, or the fine-tuning?")
Investigation("12.C", "Where does the probability go?")
Investigation("12.D", "What the rule does not see")
Investigation("12.E", "What is left of a batch?")
