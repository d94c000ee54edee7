"""Chapter 07: three estimates of the KL, and explained variance."""

import math

import torch

from rlhf_lib.exercises.declare import Exercise


# ----------------------------------------------------------------------------------------- 7.7
def draw_kl_estimate(generator):
    yield {"logprobs": torch.tensor([0.5]).log(), "ref_logprobs": torch.tensor([0.25]).log()}
    for shape in ((3,), (), (2, 3), (2, 1, 4), (12,)):
        logprobs, ref_logprobs = -torch.rand(2, *shape, generator=generator) * 3 - 0.01
        yield {"logprobs": logprobs, "ref_logprobs": ref_logprobs}
    yield {"logprobs": torch.tensor([-0.1, -14.0]), "ref_logprobs": torch.tensor([-15.0, -0.2])}  # far apart


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


kl_estimate = Exercise(
    "7.7", "kl_estimate", draw=draw_kl_estimate, right=kl_by_numbers, formula=kl_formula, mistakes={
        "the ratio is upside down in all three: it is reference over current, exp(ref_logprobs - logprobs)":
            {"x": lambda p, q: q - p},
        "k3's ratio is upside down (k1 and k2 are right): its r is reference over current": {"k3": lambda x, r: 1 / r - 1 - x},
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
            [{"x": lambda p, q, most=most: (p - q).clamp(-most, most)} for most in (1, 2, 5, 10)],
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
    for size, scale, noise in ((5, 2.0, 1.0), (6, -0.5, 0.5), (20, 0.7, 0.3)):
        values, errors = torch.randn(2, size, generator=generator)
        yield {"values": values, "returns": scale * values + noise * errors + 3}


def explained_by_numbers(values, returns):
    errors, targets = (returns - values).tolist(), returns.tolist()
    spread = [sum((x - sum(xs) / len(xs)) ** 2 for x in xs) / len(xs) for xs in (errors, targets)]
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
             for n in (0, 1) for eps in (0.1, 0.01, 1e-3, 1e-4)],
        "this is a difference of two variances; divide that of the errors by that of the returns":
            [lambda values, returns, n=n: variance(returns, n) - variance(returns - values, n) for n in (0, 1)],
        "a sum of squares stands above, a variance below":
            [{"above": lambda e: (e**2).sum()}, {"above": lambda e: variance(e) * len(e)}],
        "this is the correlation, squared or not, which does not see values of the wrong scale; use Var(returns - values)":
            [lambda values, returns, n=n: torch.corrcoef(torch.stack([values, returns]))[0, 1] ** n for n in (1, 2)],
        "this is the slope of a regression; use Var(returns - values)":
            [lambda values, returns, x=x: covariance(values, returns) / variance((values, returns)[x]) for x in (0, 1)],
        "this is the values' variance over the returns'": lambda values, returns: variance(values) / variance(returns),
        "standard deviations are not variances: square them": {"above": torch.std, "below": torch.std},
        "a negative result becomes 0 or loses its sign: below 0 the critic is worse than a constant, and that is worth knowing":
            [{"end": lambda x: (1 - x).clamp(min=0)}, {"end": lambda x: (1 - x).abs()}],
        "this is the variance of the errors without their sign; take that of returns - values as it is":
            {"above": lambda e: variance(e.abs())},
        "mean absolute deviations stand in place of the variances": {
            key: lambda x: (x - x.mean()).abs().mean() for key in ("above", "below")},
    })  # fmt: skip
