"""Chapter 07: the critic's loss, three estimates of the KL, and explained variance."""

import math

import torch
from torch.nn import functional as F

from rlhf_lib.exercises import ch07_policy_gradients as ch07
from rlhf_lib.exercises.declare import Exercise


# ----------------------------------------------------------------------------------------- 7.6
def draw_value_loss(generator):
    row = torch.ones(1, 1, dtype=torch.bool)
    worked, at_zero = ((3.0, 2.0, 3.0, 0.2), (3.0, 2.0, 2.0, 0.2)), ((1.0, 0.0, 1.0, 0.2), (1.0, 0.0, 0.0, 0.2))
    for new, old, target, clip in (*worked, *at_zero, (3.0, 2.0, 4.0, 0.5), (-2.0, 1.0, -3.0, 0.1), (30.0, 2.0, -20.0, 0.2)):
        yield {"values": row * new, "old_values": row * old, "returns": row * target, "mask": row, "clip": clip}
    holes = torch.tensor([[False, True, True], [True, False, True]])
    values, old_values, returns = torch.randn(3, 2, 3, generator=generator)
    yield {"values": values, "old_values": old_values, "returns": returns, "mask": holes, "clip": math.inf}  # nothing is held
    for rows, steps, clip in ((2, 3, 0.5), (4, 6, 0.3), (5, 8, 1.0)):
        values, old_values, returns = torch.randn(3, rows, steps, generator=generator)
        mask = ch07.ragged(rows, steps, generator)
        yield {"values": values, "old_values": old_values + 1, "returns": returns, "mask": mask, "clip": clip}


def call_value_loss(function, values, **others):
    """The loss, and its gradient."""
    values = values.clone().requires_grad_()
    loss = function(values, **others)
    loss.backward()
    return {"loss": loss, "gradient": values.grad}


def value_loss_by_cases(values, old_values, returns, mask, clip):
    losses = []
    for value, old, target in zip(values[mask], old_values[mask], returns[mask]):
        bound = old + clip if value > old else old - clip
        held = (value - old).abs() > clip and (bound - target).abs() > (value - target).abs()  # then there is no gradient
        losses.append(((bound if held else value) - target) ** 2 / 2)
    return torch.stack(losses).mean() + 0 * values.sum()


def value_loss_formula(
    values, old_values, returns, mask, clip, *, near=lambda v, old, clip: old + (v - old).clamp(-clip, clip), pick=torch.maximum,
    error=torch.square, half=0.5, mean="real", fixed=None, late=False,
):  # fmt: skip
    held = near(values, old_values, clip if fixed is None else fixed)
    errors = error(values - returns), error(held - returns)
    loss = pick(*(ch07.MEANS[mean](one, mask) for one in errors)) if late else ch07.MEANS[mean](pick(*errors), mask)
    return half * loss + 0 * values.sum()


value_loss = Exercise(
    "7.6", "value_loss", draw=draw_value_loss, call=call_value_loss, right=value_loss_by_cases, formula=value_loss_formula,
    mistakes={
        "this takes the smaller error; the larger one makes the bound that keeps the value near the old": {"pick": torch.minimum},
        "nothing is clipped here: compare with the error of the value held within clip of the old": {"pick": lambda v, held: v},
        "only the held value's error is here: a value that has gone the wrong way does not come back":
            {"pick": lambda v, held: held},
        "the two errors are added or averaged; take the larger":
            [{"pick": lambda v, held: v + held}, {"pick": lambda v, held: (v + held) / 2}],
        "the larger of two means is taken; take the larger error at each position, then the mean": {"late": True},
        "the half in front is missing": {"half": 1.0},
        **ch07.mean_mistakes({}),
        "the errors are not squared": {"error": torch.abs},
        "the larger error is taken with its sign, then squared; square both errors first":
            {"error": lambda e: e, "pick": lambda v, held: torch.maximum(v, held).square()},
        "the held value is detached: within clip it is the value itself, and needs its gradient":
            {"near": lambda v, old, clip: old + (v - old).clamp(-clip, clip).detach()},
        "the move is clipped on one side only; the value may move by clip either way":
            [{"near": lambda v, old, clip: old + (v - old).clamp(max=clip)},
             {"near": lambda v, old, clip: old + (v - old).clamp(min=-clip)}],
        "this is Huber's loss; take the larger of two squared errors, of the value and of the held one":
            [lambda values, old_values, returns, mask, clip: F.huber_loss(values[mask], returns[mask], delta=clip),
             lambda values, old_values, returns, mask, clip: F.smooth_l1_loss(values[mask], returns[mask], beta=clip),
             lambda values, old_values, returns, mask, clip: F.smooth_l1_loss(values[mask], returns[mask]),
             {"error": lambda e: F.smooth_l1_loss(e, 0 * e, reduction="none"), "half": 1.0}],
        "clip may be infinite, and then nothing is held: a move that is divided by it is 0, and 0 times infinity is not a number":
            {"near": lambda v, old, clip: old + clip * ((v - old) / clip).clamp(-1, 1)},
        "the return is held near the old value; hold the new value": lambda values, old_values, returns, mask, clip:
            0.5 * (values - old_values - (returns - old_values).clamp(-clip, clip))[mask].square().mean(),
        "the value itself is clipped into [-clip, clip]; clip how far it moved":
            {"near": lambda v, old, clip: v.clamp(-clip, clip)},
        "clip is taken as a share of the old value; it is a distance, the same for every value":
            [{"near": lambda v, old, clip: v.clamp(old * (1 - clip), old * (1 + clip))},
             {"near": lambda v, old, clip: torch.maximum(torch.minimum(v, old * (1 + clip)), old * (1 - clip))},
             {"near": lambda v, old, clip: old * (v / old).clamp(1 - clip, 1 + clip)},
             {"near": lambda v, old, clip: old + torch.maximum(torch.minimum(v - old, clip * old.abs()), -clip * old.abs())}],
        "the clipped move is added to the new value, or to none, or subtracted; add it to the old value":
            [{"near": lambda v, old, clip, start=start, sign=sign: start(v, old) + sign * (v - old).clamp(-clip, clip)}
             for start, sign in ((lambda v, old: v, 1), (lambda v, old: 0, 1), (lambda v, old: old, -1), (lambda v, old: v, -1))],
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 7.7
def draw_kl_estimate(generator):
    yield {"logprobs": torch.tensor([0.5]).log(), "ref_logprobs": torch.tensor([0.25]).log()}
    for shape in ((3,), (), (2, 3), (2, 1, 4)):
        logprobs, ref_logprobs = -torch.rand(2, *shape, generator=generator) * 3 - 0.01
        yield {"logprobs": logprobs, "ref_logprobs": ref_logprobs}
    yield {"logprobs": torch.tensor([-0.1, -14.0]), "ref_logprobs": torch.tensor([-15.0, -0.2])}  # far apart
    for logprobs, ref_logprobs in (([-0.5], [-120.5]), ([-120.0, -120.5], [-121.0, -119.5])):  # exp makes 0 of these
        yield {"logprobs": torch.tensor(logprobs), "ref_logprobs": torch.tensor(ref_logprobs)}
    logprobs, ref_logprobs = -torch.rand(2, 140, generator=generator) * 3 - 0.01
    yield {"logprobs": logprobs, "ref_logprobs": ref_logprobs}


def kl_by_numbers(logprobs, ref_logprobs):
    rows = []
    for current, reference in zip(logprobs.double().flatten().tolist(), ref_logprobs.double().flatten().tolist()):
        r = math.exp(reference) / math.exp(current)
        rows.append([-math.log(r), math.log(r) ** 2 / 2, r - 1 - math.log(r)])
    return tuple(k.reshape(logprobs.shape) for k in torch.tensor(rows).float().T)


def kl_formula(
    logprobs, ref_logprobs, *, x=lambda p, q: p - q, k1=lambda x, r: x, k2=lambda x, r: x**2 / 2, k3=lambda x, r: r - 1 + x,
    end=lambda k, p: k,
):  # fmt: skip
    """`x` is -log r; `end` is what happens to each of the three at the end, with the log-probabilities at hand."""
    x = x(logprobs, ref_logprobs)
    return tuple(end(k(x, (-x).exp()), logprobs) for k in (k1, k2, k3))


def from_two_exps(logprobs, ref_logprobs):
    k1, k2, _ = kl_formula(logprobs, ref_logprobs)
    return k1, k2, ref_logprobs.exp() / logprobs.exp() - 1 + k1


kl_estimate = Exercise(
    "7.7", "kl_estimate", draw=draw_kl_estimate, right=kl_by_numbers, formula=kl_formula, mistakes={
        "the ratio is upside down in all three: it is reference over current, exp(ref_logprobs - logprobs)":
            [{"x": lambda p, q: q - p}, {"x": lambda p, q: q - p, "k3": lambda x, r: r - 1 - r.log()}],
        "k3's ratio is upside down (k1 and k2 are right): its r is reference over current":
            [{"k3": lambda x, r: x.exp() - 1 - x}, {"k3": lambda x, r: x.exp() - 1 - x.exp().log()}],
        "k1 has the wrong sign: with it in a reward, the policy would be paid for running away": {"k1": lambda x, r: -x},
        "a negative k1 loses its sign, or becomes 0; k1 is often negative, and only so its mean is right":
            [{"k1": lambda x, r: x.clamp(min=0)}, {"k1": lambda x, r: x.abs()}],
        "the half in k2 is missing: k2 = (log r)^2 / 2": {"k2": lambda x, r: x**2},
        "k2 is halved, but not squared: k2 = (log r)^2 / 2": [{"k2": lambda x, r: x / 2}, {"k2": lambda x, r: -x / 2}],
        "k2 squares r - 1: k2 = (log r)^2 / 2": {"k2": lambda x, r: (r - 1) ** 2 / 2},
        "k3 = (r - 1) - log r; the -1 is missing, so it is not 0 where both models agree": {"k3": lambda x, r: r + x},
        "k3 adds the logarithm: k3 = (r - 1) - log r": {"k3": lambda x, r: r - 1 - x},
        "k3 has no logarithm: k3 = (r - 1) - log r": {"k3": lambda x, r: r - 1},
        "k3 is r log r - (r - 1), right for draws from the reference: k3 = (r - 1) - log r": {"k3": lambda x, r: 1 - r - r * x},
        "log r is cut off at some number; it is used as it is":
            [{"x": lambda p, q, most=most: (p - q).clamp(-most, most)} for most in (1, 2, 5, 10, 20, 50, 100)],
        "exp makes 0 of a very unlikely token, and 0 has no logarithm: take log r from the difference, and r as its exponential":
            [from_two_exps, {"x": lambda p, q: -(q - p).exp().log()}, {"x": lambda p, q: -(q.exp() / p.exp()).log()}],
        "these are means over the tokens; return a value for each token, without a mean": {"end": lambda k, p: k.mean()},
        "each is multiplied by the token's probability, as in an exact sum; these are draws": {"end": lambda k, p: k * p.exp()},
        "the arguments are taken for probabilities; they are logarithms, take the difference": {"x": lambda p, q: (p / q).log()},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 7.8
def draw_explained(generator):
    for returns in ([2.0, 3.0, 5.0], [1.0, 2.0, 4.0]):
        yield {"values": torch.tensor([1.0, 2.0, 3.0]), "returns": torch.tensor(returns)}
    yield {"values": torch.tensor([2.0, 3.0, 4.5]), "returns": torch.tensor([1.0, 2.0, 3.0])}  # little more than an offset
    yield {"values": torch.tensor([2.0, -1.0]), "returns": torch.tensor([0.0, 1.0])}  # below 0
    for size, scale, noise, offset, unit in (
        (5, 2.0, 1.0, 3, 1), (6, -0.5, 0.5, 3, 1), (20, 0.7, 0.3, 3, 1), (6, 0.8, 1.0, 0, 1e-4), (1100, 0.8, 0.6, 0.5, 1),
    ):  # fmt: skip
        values, errors = unit * torch.randn(2, size, generator=generator)
        yield {"values": values, "returns": scale * values + noise * errors + offset}


def explained_by_numbers(values, returns):
    errors, targets = (returns - values).tolist(), returns.tolist()
    means = [math.fsum(xs) / len(xs) for xs in (errors, targets)]
    spread = [math.fsum((x - mean) ** 2 for x in xs) for xs, mean in zip((errors, targets), means)]
    return torch.tensor(1 - spread[0] / spread[1])


def variance(x, correction=0):
    return x.var(correction=correction)


def explained_formula(values, returns, *, above=variance, below=variance, of=lambda values, x: x, end=lambda x: 1 - x):
    return end(above(returns - values) / below(of(values, returns)))


def covariance(values, returns):
    return ((values - values.mean()) * (returns - returns.mean())).mean()


explained_variance = Exercise(
    "7.8", "explained_variance", draw=draw_explained, right=explained_by_numbers, formula=explained_formula, mistakes={
        "this is the share that is left unexplained; subtract it from 1": {"end": lambda x: x},
        "the two variances stand upside down: that of the errors over that of the returns": {"end": lambda x: 1 - 1 / x},
        "it is divided by the variance of the values; what is to be explained is the returns": {"of": lambda values, _: values},
        "the mean squared error counts a constant offset too; take the variance of returns - values":
            [{"above": lambda e: (e**2).mean(), "below": lambda x, n=n: variance(x, n)} for n in (0, 1)],
        "a mean square stands below, or above and below; take variances, which no offset changes":
            [{"below": lambda x: (x**2).mean()}, {"above": lambda e: (e**2).mean(), "below": lambda x: (x**2).mean()}],
        "one variance is divided by n, the other by n - 1":
            [{"above": lambda e: variance(e, 1)}, {"below": lambda x: variance(x, 1)}],
        "something is added to the variance of the returns; divide by it as it is":
            [{"below": lambda x, n=n, eps=eps: variance(x, n) + eps, "above": lambda e, n=n: variance(e, n)}
             for n in (0, 1) for eps in (0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8)],
        "returns that vary little are taken for constant, and 0 comes out; they are never all equal here":
            lambda values, returns: explained_formula(values, returns) * (variance(returns) > 1e-6),
        "this is a difference of two variances; divide that of the errors by that of the returns":
            [lambda values, returns, n=n: variance(returns, n) - variance(returns - values, n) for n in (0, 1)],
        "a sum of squares stands above, a variance below":
            [{"above": lambda e: (e**2).sum()}, {"above": lambda e: variance(e) * len(e)}],
        "this is the correlation, squared or not, which does not see values of the wrong scale; use Var(returns - values)":
            [*(lambda values, returns, n=n: torch.corrcoef(torch.stack([values, returns]))[0, 1] ** n for n in (1, 2)),
             lambda values, returns: covariance(values, returns) ** 2 / (variance(values) * variance(returns)).clamp(min=1e-12)],
        "this is the slope of a regression; use Var(returns - values)":
            [lambda values, returns, x=x: covariance(values, returns) / variance((values, returns)[x]) for x in (0, 1)],
        "this is the values' variance over the returns'": lambda values, returns: variance(values) / variance(returns),
        "the variance of the values stands in the place of that of the errors, returns - values":
            lambda values, returns: 1 - variance(values) / variance(returns),
        "standard deviations are not variances: square them": {"above": torch.std, "below": torch.std},
        "a negative result becomes 0 or loses its sign: below 0 the critic is worse than a constant, and that is worth knowing":
            [{"end": lambda x: (1 - x).clamp(min=0)}, {"end": lambda x: (1 - x).abs()}],
        "this is the variance of the errors without their sign; take that of returns - values as it is":
            {"above": lambda e: variance(e.abs())},
        "mean absolute deviations stand in place of the variances": {
            key: lambda x: (x - x.mean()).abs().mean() for key in ("above", "below")},
    })  # fmt: skip
