"""Chapter 12: labels without pairs, the best of a group beside one drawn by chance, and the weight of a token of a copy."""

import math
import statistics

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.ch12_beyond_ppo import detached, hidden, scored, with_gradients
from rlhf_lib.exercises.compare import equal
from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.exercises.plain import as_int64, plain


# ----------------------------------------------------------------------------------------- 12.8
def draw_kto(generator):
    one = {"policy": torch.tensor([-3.0, -3.0]), "ref": torch.tensor([-2.0, -2.0]), "desirable": torch.tensor([True, False])}
    yield {**one, "kl": torch.tensor(0.5), "beta": 0.5}
    yield {**one, "kl": torch.tensor(-0.5), "beta": 0.5}  # as an estimate may have it
    same = torch.tensor([-3.0, -5.0, -1.0])
    yield {"policy": same, "ref": same, "desirable": torch.tensor([True, False, True]), "kl": torch.tensor(0.0), "beta": 0.3}
    far = torch.tensor([900.0, -900.0, 900.0, -900.0])
    desirable = torch.tensor([True, True, False, False])
    yield {"policy": far, "ref": 0 * far, "desirable": desirable, "kl": torch.tensor(2.0), "beta": 1.0}
    for count, beta in ((4, 0.4), (7, 0.1)):
        policy, ref = -6 * torch.rand(2, count, generator=generator) - 1
        desirable = torch.arange(count) % 3 > 0
        kl = 2 * torch.rand((), generator=generator) + 0.5
        yield {"policy": policy, "ref": ref, "desirable": desirable, "kl": kl, "beta": beta}
    for good in (True, False):  # one kind alone, and whole answers: their probabilities are 0 in float32
        policy, ref = torch.tensor([-320.0, -311.0]), torch.tensor([-317.0, -314.0])
        yield {"policy": policy, "ref": ref, "desirable": torch.tensor([good, good]), "kl": torch.tensor(1.0), "beta": 0.2}
    yield {"policy": far[:1] / 300, "ref": 0 * far[:1], "desirable": far[:1] > 0, "kl": torch.tensor(0.5), "beta": 0.5}
    policy, ref = torch.tensor([-400.0, -300.0, -380.0, -260.0]), torch.tensor([-340.0, -360.0, -350.0, -320.0])
    desirable = torch.tensor([True, True, False, False])
    yield {"policy": policy, "ref": ref, "desirable": desirable, "kl": torch.tensor(25.0), "beta": 0.05}
    policy, ref = -6 * torch.rand(2, 130, generator=generator) - 1
    yield {"policy": policy, "ref": ref, "desirable": torch.arange(130) % 3 > 0, "kl": torch.tensor(0.5), "beta": 0.8}


def call_kto(function, **arguments):
    """The loss, and its gradients in the policy's log-probabilities and in the KL; one below 0 may be taken as 0 just as well."""

    def made_by(function, **others):
        return with_gradients(function, ["policy", "kl"], "loss", {**arguments, **others})

    found, kl = made_by(function), arguments["kl"]
    at_0 = kl < 0 and equal(plain(found), plain(made_by(kto_by_tanh, kl=0 * kl)), 1e-5)
    return made_by(kto_by_tanh) if at_0 else found


def kto_by_tanh(policy, ref, desirable, kl, beta):
    """1 - sigmoid(x) is (1 - tanh(x / 2)) / 2."""
    signs = torch.tensor([1.0 if good else -1.0 for good in desirable.tolist()])
    return (0.5 - 0.5 * torch.tanh(beta * signs * (policy - ref - kl.detach()) / 2)).mean()


def kto_formula(
    policy, ref, desirable, kl, beta, *, from_kl=lambda x, kl, good: x - kl, number=torch.detach, good=lambda d: d,
    sign=lambda x, good: torch.where(good, x, -x), scale=lambda x, beta: beta * x, log_ratio=torch.sub,
    loss=lambda x: torch.sigmoid(-x), over=lambda losses, good: losses.mean(),
):  # fmt: skip
    said = good(desirable)
    gain = sign(scale(from_kl(log_ratio(policy, ref), number(kl), said), beta), said)
    return over(loss(gain), said)


kto_loss = Exercise(
    "12.8", "kto_loss", draw=draw_kto, call=call_kto, right=kto_by_tanh, formula=kto_formula, mistakes={
        "undesirable answers are pulled up too: there the sign is turned": {"sign": lambda x, good: x},
        "this pulls desirable answers down and the others up: they have changed places, or 1 less the sigmoid is the sigmoid":
            [{"good": torch.logical_not}, {"loss": torch.sigmoid}],
        "a gradient goes through the KL, as if it were to be lowered here: it is a number to measure from, detach it":
            {"number": lambda kl: kl},
        "the KL is left out: a log-ratio is measured from how far the policy has moved on the whole":
            {"from_kl": lambda x, kl, good: x},
        "a KL below 0 loses its sign; take it as it is, or as 0": {"number": lambda kl: kl.detach().abs()},
        "the KL is added; a log-ratio is measured from it": {"from_kl": lambda x, kl, good: x + kl},
        "on undesirable answers the KL is not turned with the log-ratio: the sign belongs to their difference":
            {"from_kl": lambda x, kl, good: torch.where(good, x - kl, x + kl)},
        "the reference is left out: the gain is a log-ratio": {"log_ratio": lambda policy, ref: policy},
        "the log-ratio is upside down: the policy's less the reference's": {"log_ratio": lambda policy, ref: ref - policy},
        "`kl` is not used, but the mean log-ratio of the answers; use the number that was given":
            lambda policy, ref, desirable, kl, beta: kto_formula(policy, ref, desirable, (policy - ref).mean(), beta),
        "the sigmoid is made by hand: its exponential is infinite where an answer gained or lost much, and then the loss or its "
        "gradient is not a number; torch.sigmoid has both":
            [{"loss": lambda x: 1 - 1 / (1 + (-x).exp())}, {"loss": lambda x: 1 - x.exp() / (1 + x.exp())},
             {"loss": lambda x: 1 / (1 + x.exp())}],
        "the log-ratio is kept within bounds; all of it is measured":
            [{"log_ratio": lambda policy, ref, most=most: (policy - ref).clamp(-most, most)} for most in (1, 5, 10, 20, 50)],
        "this is the ratio; the gain is its logarithm, a difference": {"log_ratio": lambda policy, ref: (policy - ref).exp()},
        "the 1 is missing: an answer costs 1 less the sigmoid": {"loss": lambda x: -torch.sigmoid(x)},
        "beta is left out": {"scale": lambda x, beta: x},
        "beta scales the log-ratio alone; the KL is subtracted before, so that beta scales both":
            lambda policy, ref, desirable, kl, beta: kto_formula(policy, ref, desirable, kl / beta, beta),
        "no gradient reaches the policy's log-probabilities: the KL alone is detached": detached(kto_by_tanh),
        "this is DPO's loss of one answer, with a logarithm; KTO's is 1 less the sigmoid":
            {"loss": lambda x: -F.logsigmoid(x)},
        "this is the sum over the answers; take their mean": {"over": lambda losses, good: losses.sum()},
        "desirable and undesirable answers weigh the same however many there are; take one mean over all":
            [{"over": lambda losses, good: (losses[good].mean() + losses[~good].mean()) / 2},
             {"over": lambda losses, good: statistics.mean(some.mean() for some in (losses[good], losses[~good]) if len(some))}],
        "only the desirable answers are learned from": {"over": lambda losses, good: losses[good].mean()},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 12.9
def draw_best(generator):
    yield {"rewards": torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 4.0]]), "uniforms": torch.tensor([0.7, 0.4])}
    yield {"rewards": torch.tensor([[2.0, 2.0], [-1.0, -1.0], [0.0, 1.0]]), "uniforms": torch.tensor([0.0, 0.75, 0.25])}  # ties
    yield {"rewards": torch.tensor([[-3.0, -1.0, -2.0, -1.0]]), "uniforms": torch.tensor([0.9999])}
    for groups, size in ((3, 5), (5, 3), (4, 4)):
        rewards = torch.randint(6, (groups, size), generator=generator) + 10.0 * torch.randn(groups, 1, generator=generator)
        yield {"rewards": rewards, "uniforms": torch.rand(groups, generator=generator)}
    yield {"rewards": torch.tensor([[0.5]]), "uniforms": torch.tensor([0.75])}
    yield {"rewards": torch.tensor([[0.5, 0.5001, 0.4999]]), "uniforms": torch.tensor([0.5])}  # close together
    for groups, size in ((3, 130), (130, 3)):
        rewards = torch.randint(40, (groups, size), generator=generator) - 5000.0
        yield {"rewards": rewards, "uniforms": torch.rand(groups, generator=generator)}


def call_best(function, **arguments):
    """What the function returns, which can be looked up in the rollout: floats raise here, and whole numbers of few bits."""
    pair = function(**arguments)
    for one in pair if isinstance(pair, (tuple, list)) else ():
        if isinstance(one, torch.Tensor):
            if one.is_floating_point():
                torch.empty(0)[one]
            as_int64(one)
    return pair


def best_by_lists(rewards, uniforms):
    best, control, start = [], [], 0
    for row, uniform in zip(rewards.tolist(), uniforms.tolist()):
        best.append(start + row.index(max(row)))
        control.append(start + int(uniform * len(row)))
        start += len(row)
    return torch.tensor(best), torch.tensor(control)


def best_formula(
    rewards, uniforms, *, pick=lambda r: r.argmax(1), number=lambda n, i, G, N: n * G + i, place=lambda u, G: (u * G).long(),
    control=None, end=lambda best, control: (best, control),
):  # fmt: skip
    N, G = rewards.shape
    groups, winner = torch.arange(N), pick(rewards)
    drawn = number(groups, place(uniforms, G), G, N) if control is None else control(rewards, uniforms, winner)
    return end(number(groups, winner, G, N), drawn)


def without_the_best(rewards, uniforms, winner):
    """One of the other G - 1 at random."""
    N, G = rewards.shape
    place = (uniforms * (G - 1)).long()
    return torch.arange(N) * G + place + (place >= winner)


best_and_control = Exercise(
    "12.9", "best_and_control", draw=draw_best, call=call_best, right=best_by_lists, formula=best_formula, mistakes={
        "these are floats, with which no row can be looked up: return row numbers, made int64 by .long()":
            {"end": lambda best, control: (best, control.float())},
        "these have fewer than 64 bits; asked for are int64: .long()": [
            {"end": lambda best, control: (best, control.int())}, {"end": lambda best, control: (best.int(), control.int())}],
        "these are places inside the groups; asked for are rows of the rollout, where group n begins at n G":
            {"number": lambda n, i, G, N: i},
        "group n begins at n G; this takes completion i of group n for row i N + n": {"number": lambda n, i, G, N: i * N + n},
        "this adds n where group n begins at n G": {"number": lambda n, i, G, N: n + i},
        "group n begins at n G, not at n N: G is the size of a group": {"number": lambda n, i, G, N: n * N + i},
        "these are the worst rows": {"pick": lambda r: r.argmin(1)},
        "of equal rewards the last is taken; take the first": {"pick": lambda r: r.shape[1] - 1 - r.flip(1).argmax(1)},
        "the best rows of the whole batch are taken; each prompt has one, or easy prompts take all": lambda rewards, uniforms: (
            rewards.flatten().sort(descending=True, stable=True).indices[: len(rewards)], best_by_lists(rewards, uniforms)[1]),
        "the control is drawn from the whole rollout; it has one completion of each prompt, as the best have":
            {"control": lambda r, u, winner: (u * r.numel()).long()},
        "the control never is the best one, so it is worse than chance; draw from all G": {"control": without_the_best},
        "the control's place is rounded; the half at both ends is drawn less often, and G is no place: cut off":
            [{"place": lambda u, G: (u * G).round().long()}, {"place": lambda u, G: (u * G).round().long().clamp(max=G - 1)}],
        "the control's place is rounded up, which gives another one where u G is a whole number; cut it off":
            {"place": lambda u, G: (u * G).ceil().long() - 1},
        "the control is the worst of each group; it is drawn by chance":
            {"control": lambda r, u, winner: torch.arange(len(r)) * r.shape[1] + r.argmin(1)},
        "the control's place is rounded from u (G - 1), so that the first and the last are drawn half as often; cut u G off":
            {"place": lambda u, G: (u * (G - 1)).round().long()},
        "the control's place is drawn from G - 1, so the last completion is never taken":
            {"place": lambda u, G: (u * (G - 1)).long()},
        "the control is the first completion of each group; the uniforms choose it": {"place": lambda u, G: (0 * u).long()},
        "the control are the best rows again": {"control": lambda r, u, winner: torch.arange(len(r)) * r.shape[1] + winner},
        "best and control came in another order": {"end": lambda best, control: (control, best)},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 12.10
def draw_weights(generator):
    sampler = torch.tensor([[-1.0, -1.0, -4.0, -1.0]])
    learner = sampler + torch.tensor([[1.0, 1.5, 3.0, 0.5]]).log()
    yield {"logprobs": learner, "sampler_logprobs": sampler, "mask": torch.tensor([[True, True, True, False]]), "cap": 2.0}
    for rows, steps, cap in ((2, 3, 1.5), (3, 5, 2.0), (4, 6, 1.1), (2, 8, 4.0)):
        new, old, mask = scored(generator, rows, steps, spread=0.8)
        old[0, 0] = new[0, 0] - 2.5  # far above every cap
        yield {"logprobs": new, "sampler_logprobs": old, "mask": mask, "cap": cap}
    old = torch.tensor([[-2.0, -9.5, 0.0, -1.5, -1.0], [-3.0, -1.0, -2.0, -1.0, -9.0]])  # no cap; tokens with gaps between them
    mask = torch.tensor([[False, True, True, True, False], [True, False, True, False, True]])
    new = hidden(generator, mask, old + torch.tensor([[1.0, 8.0, -0.5, -8.0, 1.0], [0.0, 1.0, 2.0, 3.0, 6.0]]))
    yield {"logprobs": new, "sampler_logprobs": old, "mask": mask, "cap": math.inf}
    new, old, mask = scored(generator, 2, 140, spread=0.8)
    yield {"logprobs": new, "sampler_logprobs": old, "mask": mask, "cap": 30.0}


def call_weights(function, **arguments):
    """The weights, and the gradient that they send back to the log-probabilities, which should be none."""
    return with_gradients(function, ["logprobs"], "weights", arguments)


def weights_by_loops(logprobs, sampler_logprobs, mask, cap):
    weights = torch.ones(mask.shape)
    for b, t in mask.nonzero().tolist():
        weights[b, t] = min(cap, math.exp(logprobs[b, t].item() - sampler_logprobs[b, t].item()))
    return weights


def weights_formula(
    logprobs, sampler_logprobs, mask, cap, *, apart=torch.sub, keep=lambda x, mask: torch.where(mask, x, 0), number=torch.detach,
    first=lambda x, mask: x, ratio=torch.exp, cut=lambda w, cap: w.clamp(max=cap), end=lambda w, mask: w,
):  # fmt: skip
    log_ratio = first(number(keep(apart(logprobs, sampler_logprobs), mask)), mask)
    return end(cut(ratio(log_ratio), cap), mask)


importance_weights = Exercise(
    "12.10", "importance_weights", draw=draw_weights, call=call_weights, right=weights_by_loops, formula=weights_formula,
    mistakes={
        "the ratio is upside down: the learner's probability over the sampler's": {"apart": lambda new, old: old - new},
        "nothing is cut off: one token that the sampler found unlikely outweighs all others": {"cut": lambda w, cap: w},
        "small weights are raised too: only what is above the cap is cut": {
            "cut": lambda w, cap: w.clamp(1 / cap, cap)},
        "this cuts what is small; what is above the cap is cut": {"cut": lambda w, cap: w.clamp(min=1 / cap)},
        "weights above the cap become 0; they become the cap": {"cut": lambda w, cap: torch.where(w > cap, 0, w)},
        "weights above the cap become 1; they become the cap": {"cut": lambda w, cap: torch.where(w > cap, 1, w)},
        "the cap is put on the logarithm; it is for the weight": {
            "first": lambda x, mask: x, "ratio": lambda x: x, "cut": lambda x, cap: x.clamp(max=cap).exp()},
        "the log-ratio is kept within bounds; only a weight above the cap is cut":
            [{"first": lambda x, mask, most=most: x.clamp(-most, most)} for most in (1, 2, 3, 5)],
        "the weights get a gradient: they correct for what was drawn, and are not to be trained; detach them":
            {"number": lambda x: x},
        "padding has weight 0; here it is 1, since it is masked later and 0 would lower means":
            {"end": lambda w, mask: torch.where(mask, w, 0)},
        "padding has weights of its own; there it is 1": {"keep": lambda x, mask: x},
        "a product with the mask does not hide a NaN under it, since 0 times NaN is not a number: use torch.where":
            {"keep": lambda x, mask: x * mask},
        "this is the log-ratio; the weight is its exponential": {"ratio": lambda x: x},
        "this is one weight for the whole completion, the product of its tokens'; each token has its own":
            [{"first": lambda x, mask: torch.where(mask, x.sum(1, keepdim=True), 0)},
             {"first": lambda x, mask: x.sum(1, keepdim=True).expand(x.shape)}],
        "the weights are scaled to mean 1; they stay as they are":
            [{"end": lambda w, mask: torch.where(mask, w / w[mask].mean(), 1)}, {"end": lambda w, mask: w / w[mask].mean()},
             {"end": lambda w, mask: w / w.mean()}],
    })  # fmt: skip
