"""Chapter 06: how far what the model says is from how often it is right, and a slope and an offset that mend it."""

import functools
import math

import torch
from scipy import optimize
from torch.nn import functional as F

from rlhf_lib.exercises.ch06_reward_model import EVERY, on_side, with_type
from rlhf_lib.exercises.declare import Exercise

HELD = 1e9  # a ridge that lets nothing move


# ----------------------------------------------------------------------------------------- 6.7


def draw_confidences(generator):
    yield {"logits": torch.tensor([0.75, 0.75]).logit(), "targets": torch.tensor([1.0, 0.0]), "bins": 10}
    yield {"logits": torch.tensor([0.75, 0.75, 0.75]).logit(), "targets": torch.tensor([1.0, 1.0, 0.0]), "bins": 10}
    probabilities = torch.tensor([0.95, 0.92, 0.97, 0.55, 0.58, 0.15, 0.33, 0.36, 0.98])
    targets = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.5])
    for bins in (10, 4):
        yield {"logits": probabilities.logit(), "targets": targets, "bins": bins}
    yield {"logits": torch.tensor([60.0, -60.0, 1.0]), "targets": torch.tensor([0.0, 0.0, 1.0]), "bins": 5}  # confidence 1
    yield {"logits": torch.tensor([60.0, 3.0, -2.5, 1.0]), "targets": torch.tensor([0.0, 1.0, 0.0, 1.0]), "bins": 5}  # and others
    yield {"logits": torch.tensor([0.4, -2.0, -0.3, 2.5]), "targets": torch.tensor([0.5, 0.0, 0.0, 1.0]), "bins": 1}
    for size, bins in ((40, 7), (60, 4), (120, 20), (500, 2)):
        targets = torch.randint(3, (size,), generator=generator) / 2
        targets[:3] = torch.tensor([0.0, 0.5, 1.0])
        logits = 1.5 * (targets - 0.3) + 1.5 * torch.randn(size, generator=generator)
        yield {"logits": logits, "targets": targets, "bins": bins}


def error_by_loop(logits, targets, bins):
    members = {}
    for z, t in zip(logits.double().tolist(), targets.tolist()):
        if t != 0.5:
            confidence = 1 / (1 + math.exp(-abs(z)))
            members.setdefault(min(int(confidence * bins), bins - 1), []).append((confidence, (z > 0) == (t == 1)))
    count = sum(len(pairs) for pairs in members.values())
    gaps = [sum(right for _, right in pairs) - sum(confidence for confidence, _ in pairs) for pairs in members.values()]
    return torch.tensor(sum(map(abs, gaps)) / count, dtype=torch.float32)


def weighted(gap, count, used):
    return (gap.abs() * count).sum() / count.sum()


def calibration(logits, targets, bins, *, use=lambda t: t != 0.5, right=on_side, confidence=lambda z: z.abs().sigmoid(),
                place=lambda c, bins: (c * bins).long().clamp(max=bins - 1), end=weighted):  # fmt: skip
    """`end` makes the error of each bin's accuracy less its confidence, the number of its passages, and which are used."""
    used = use(targets)
    c = confidence(logits)[used]
    inside = F.one_hot(place(c, bins), 2 * bins + 1)[:, :bins].float()  # (N, bins)
    count = inside.sum(0)
    gaps = ((right(logits, targets)[used].float() - c)[:, None] * inside).sum(0) / count.clamp(min=1)
    return end(gaps, count, used)


def each_last(logits, targets, bins):
    """An index assignment keeps one passage of each bin."""
    clear = targets != 0.5
    c, right = logits[clear].abs().sigmoid(), on_side(logits, targets)[clear].float()
    last = dict(zip((c * bins).long().clamp(max=bins - 1).tolist(), (right - c).tolist()))
    return torch.tensor(sum(map(abs, last.values())) / len(c))


def different_ones(logits, targets, bins):
    return calibration(*torch.stack([logits, targets], 1).unique(dim=0).T, bins)


def equal_bins(logits, targets, bins):
    clear = targets != 0.5
    c, right = logits[clear].abs().sigmoid(), on_side(logits, targets)[clear].float()
    return sum((right - c)[places].sum().abs() for places in c.argsort().chunk(bins)) / len(c)


calibration_error = Exercise(
    "6.7", "calibration_error",
    draw=draw_confidences,
    right=error_by_loop,
    call=with_type,
    formula=calibration,
    mistakes={
        "every bin counts the same; weight each gap by the share of passages in its bin":
            tuple({"end": end} for end in (lambda g, n, used: g.abs().sum() / (n > 0).sum(), lambda g, n, used: g.abs().mean(),
                                           lambda g, n, used: g.abs().sum())),
        "this is not divided by the number of passages": {"end": lambda g, n, used: (g.abs() * n).sum()},
        "this is divided by the number of bins, not of clear passages": {"end": lambda g, n, used: (g.abs() * n).sum() / len(g)},
        "this is divided by all passages, neutral ones included": {"end": lambda g, n, used: (g.abs() * n).sum() / len(used)},
        "gaps of opposite sign cancel: take the absolute value in each bin before adding":
            ({"end": lambda g, n, used: ((g * n).sum() / n.sum()).abs()}, {"end": lambda g, n, used: (g * n).sum() / n.sum()},
             {"end": lambda g, n, used: -(g * n).sum() / n.sum()}),
        "an empty bin has the mean of nothing, NaN: leave it out": {"end": lambda g, n, used: weighted(g, n, used) + 0 / n.min()},
        "the middle of the bin stands in place of the mean confidence in it": lambda logits, targets, bins: calibration(
                logits, targets, bins, confidence=lambda z: ((z.abs().sigmoid() * bins).long().clamp(max=bins - 1) + 0.5) / bins),
        "this is the Brier score, of squared errors; bins compare the mean confidence with the share that is right":
            lambda logits, targets, bins: (logits.sigmoid() - targets)[targets != 0.5].square().mean(),
        "the confidence is the size of the log-odds; it is a probability, their sigmoid": {"confidence": torch.abs},
        "the bins have equal numbers of passages; they have equal width": equal_bins,
        "the gaps are squared; take their absolute values":
            ({"end": lambda g, n, used: weighted(g**2, n, used)}, {"end": lambda g, n, used: weighted(g**2, n, used).sqrt()}),
        "this is the largest gap of any bin; average the gaps": {"end": lambda g, n, used: g.abs().max()},
        "the probability of positive was used as confidence; take that of the side chosen": {"confidence": torch.sigmoid},
        "this compares the probability of positive with the share of positive ones; take those of the side chosen":
            {"confidence": torch.sigmoid, "right": lambda z, t: t > 0.5},
        "the confidence is |2 p - 1|; it is max(p, 1 - p)": {"confidence": lambda z: (2 * z.sigmoid() - 1).abs()},
        "neutral passages are in it: leave them out": tuple({"use": EVERY, "right": right} for right in (on_side,
            lambda z, t: on_side(z, t) & (t != 0.5), lambda z, t: on_side(z, t) | (t == 0.5), lambda z, t: (z > 0) == (t > 0))),
        "a confidence of exactly 1 falls out of the last bin: clamp the bin's number to bins - 1":
            tuple({"place": lambda c, bins: (c * bins).long(), "end": lambda g, n, used, whole=whole:
                   (g.abs() * n).sum() / (used.sum() if whole else n.sum())} for whole in (True, False)),
        "a confidence of exactly 1 has a bin of its own; it belongs to the last one, with others that are nearly sure":
            lambda logits, targets, bins: calibration(logits, targets, bins + 1, place=lambda c, more: (c * bins).long()),
        "the bins' numbers are rounded to the nearest; round down":
            {"place": lambda c, bins: (c * bins).round().long().clamp(max=bins - 1)},
        "the bins divide the range from 0.5 to 1; they have equal width in [0, 1]":
            {"place": lambda c, bins: ((2 * c - 1) * bins).long().clamp(max=bins - 1)},
        "each bin keeps only one of its passages: an index assignment does not add up": each_last,
        "passages with equal log-odds and targets count once, as in a set or a dict; each one counts": different_ones,
        "the gap was taken passage by passage; accuracy and confidence are averaged within a bin first":
            lambda logits, targets, bins: calibration(logits, targets, len(logits), place=lambda c, bins: torch.arange(len(c))),
        "log-odds are compared with 0.5; even odds are log-odds of 0": {"right": lambda z, t: (z > 0.5) == (t > 0.5)},
        "this is a Python number; return a scalar tensor": {"end": lambda g, n, used: weighted(g, n, used).item()},
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 6.11


def draw_log_odds(generator):
    def tensors(logits, targets, ridge):
        return {"logits": torch.tensor(logits), "targets": torch.tensor(targets), "ridge": ridge}

    def labels(p):
        """A label for each probability; about a third are neutral, those in the middle more often."""
        clear = torch.rand(len(p), generator=generator) < 0.35 + 1.3 * (p - 0.5).abs()
        return torch.where(clear, (torch.rand(len(p), generator=generator) < p).float(), 0.5)

    yield tensors([2.0, 0.0], [0.5, 0.0], 0.1)
    yield tensors([1.5], [0.5], 0.3)
    yield tensors([-3.0, -1.0, 0.5, 2.0, 2.5], [0.0, 0.0, 1.0, 1.0, 1.0], 0.02)  # separable
    yield tensors([-15.0, -10.0, -5.0, 5.0, 10.0], [0.0, 0.0, 0.0, 1.0, 1.0], 0.00005)  # in a flat valley
    yield tensors([0.5, -1.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0], 0.2)  # one class alone
    yield tensors([4.0, 1.0, -2.0], [0.5, 0.5, 0.5], 1)  # all neutral; the ridge is a whole number
    x = 1.5 * torch.randn(41, generator=generator) - 0.4
    yield {"logits": x, "targets": labels((2 * x + 0.7).sigmoid()), "ridge": 0.02}  # not sure enough
    x = 0.1 * torch.randn(37, generator=generator)
    yield {"logits": x, "targets": labels((20 * x).sigmoid()), "ridge": 0.0005}  # not nearly sure enough
    x = 1.5 * torch.randn(26, generator=generator) + 0.5
    yield {"logits": x, "targets": labels((-0.8 * x - 0.6).sigmoid()), "ridge": 0.04}  # upside down
    x = 8 * torch.randn(33, generator=generator) + 3
    t = labels((x / 8).sigmoid())
    x[:3], t[:3] = torch.tensor([40.0, 44.0, -42.0]), torch.tensor([0.5, 1.0, 0.0])  # a sigmoid of exactly 1 in float64
    yield {"logits": x, "targets": t, "ridge": 0.08}  # much too sure: a whole step of Newton's goes too far
    x = torch.randn(58, generator=generator, dtype=torch.float64)
    t = labels((x - 0.5).sigmoid()).double()
    t[:5] = 0.8  # of five readers four
    yield {"logits": 3 * x + 4, "targets": t, "ridge": 0.03}  # nearly always called positive


def best_offset(a, x, t, ridge):
    """The b of the least loss for a given slope: the gradient rises with b, and is 0 not further than 1 / ridge from 0."""
    return optimize.brentq(lambda b: (torch.sigmoid(a * x + b) - t).mean().item() + ridge * b, -1 / ridge, 1 / ridge, xtol=1e-13)


def one_inside_the_other(logits, targets, ridge):
    """The slope is where the gradient is 0 at the offset that is best for it: one search inside the other."""
    x, t = logits.double(), targets.double()

    def slope_gradient(a):
        b = best_offset(a, x, t, ridge)
        return ((torch.sigmoid(a * x + b) - t) * x).mean().item() + ridge * (a - 1)

    most = x.abs().mean().item() / ridge + 1  # the pull of the labels is no stronger than the mean of |x|
    a = optimize.brentq(slope_gradient, 1 - most, 1 + most, xtol=1e-12)
    return a, best_offset(a, x, t, ridge)


def until_it_falls(loss, w, step):
    while loss(w - step) > loss(w):
        step = step / 2
    return step


def whole(loss, w, step):
    return step


def half_at_most(loss, w, step):
    return step / 2 if loss(w - step) > loss(w) else step


def none_that_rises(loss, w, step):
    return 0 * step if loss(w - step) > loss(w) else step


def platt(
    logits, targets, ridge, *, use=lambda x, t: (x, t), toward=(1.0, 0.0), start=(1.0, 0.0), pull=lambda ridge, n: (ridge, ridge),
    slope=lambda pull: pull, curved=torch.diag, weight=lambda p: p * (1 - p), mean=lambda n: n, once=False, steps=60,
    cut=until_it_falls, least=None, cost=F.binary_cross_entropy_with_logits, end=lambda a, b: (a, b),
):  # fmt: skip
    """Newton's method.

    `pull` are the ridges of a and b, `slope` and `curved` what of them is in gradient and Hessian, `mean` what the Hessian's sums
    are divided by; `once`: p is not renewed; `cut` shortens a step; the last one lowers the loss by less than `least`.
    """
    x, t = use(logits.double(), targets.double())
    X, toward, w = torch.stack([x, torch.ones_like(x)], 1), torch.tensor(toward).double(), torch.tensor(start).double()
    pull = torch.tensor(pull(ridge, len(x))).double()

    def loss(w):
        return cost(X @ w, t) + (pull * (w - toward) ** 2).sum() / 2

    p = (X @ w).sigmoid()
    for _ in range(steps):
        p = p if once else (X @ w).sigmoid()
        gradient = X.T @ (p - t) / len(x) + slope(pull) * (w - toward)
        hessian = X.T @ (weight(p)[:, None] * X) / mean(len(x)) + curved(pull)
        step = cut(loss, w, torch.linalg.solve(hessian, gradient))
        if step.abs().max() < 1e-12:
            break
        before, w = w, w - step
        if least and loss(before) - loss(w) < least:
            break
    return end(*w.tolist())


def downhill(logits, targets, ridge, *, rate, steps, start=(1.0, 0.0), adam=False):
    """Gradient descent, or Adam: on plain numbers, of which there are few."""
    rows, (a, b) = list(zip(logits.tolist(), targets.tolist())), start
    means, squares = [0.0, 0.0], [0.0, 0.0]
    for step in range(1, steps + 1):
        gaps = [0.5 + 0.5 * math.tanh((a * x + b) / 2) - t for x, t in rows]
        moves = [sum(gap * x for gap, (x, _) in zip(gaps, rows)) / len(rows) + ridge * (a - 1), sum(gaps) / len(rows) + ridge * b]
        if adam:
            means = [0.9 * m + 0.1 * g for m, g in zip(means, moves)]
            squares = [0.999 * s + 0.001 * g * g for s, g in zip(squares, moves)]
            moves = [m / (1 - 0.9**step) / (math.sqrt(s / (1 - 0.999**step)) + 1e-8) for m, s in zip(means, squares)]
        a, b = a - rate * moves[0], b - rate * moves[1]
    return a, b


def newton(**options):
    """Newton's method as somebody else goes it: no option of the formula, which would be tried together with every other."""
    return lambda logits, targets, ridge: platt(logits, targets, ridge, **options)


def too_few(rates, **options):
    return tuple(functools.partial(downhill, rate=rate, steps=steps, **options) for rate, many in rates for steps in many)


def by_logarithms(z, t):
    p = z.sigmoid()
    return -(t * p.log() + (1 - t) * (1 - p).log()).mean()


def in_turn(logits, targets, ridge, *, rounds):
    """The best a for a given b, then the best b for that a, and so on, beginning at b = 0."""
    b = 0.0
    for _ in range(rounds):
        a, _ = platt(logits, targets, ridge, pull=lambda ridge, n: (ridge, HELD), toward=(1.0, b), start=(1.0, b))
        b = best_offset(a, logits.double(), targets.double(), ridge)
    return a, b


def offset_then_slope(logits, targets, ridge):
    _, b = platt(logits, targets, ridge, pull=lambda ridge, n: (HELD, ridge))
    return platt(logits, targets, ridge, pull=lambda ridge, n: (ridge, HELD), toward=(1.0, b), start=(1.0, b))


def by_temperature(logits, targets, ridge, end):
    """Fitted as x / T + b, the ridge pulling T to 1."""
    x, t = logits.double(), targets.double()

    def loss(w):
        z = x / w[0] + w[1]
        return F.binary_cross_entropy_with_logits(z, t).item() + ridge / 2 * ((w[0] - 1) ** 2 + w[1] ** 2)

    return end(*optimize.minimize(loss, [1.0, 0.0], tol=1e-9).x.tolist())


def never_below_zero(logits, targets, ridge):
    a, b = platt(logits, targets, ridge)
    return (a, b) if a >= 0 else (0.0, best_offset(0.0, logits.double(), targets.double(), ridge))


def squared_errors(logits, targets, ridge, half=1.0):
    x, t = logits.double(), targets.double()

    def error(w):
        p = torch.sigmoid(w[0] * x + w[1])
        return half * ((p - t) ** 2).mean().item() + ridge / 2 * ((w[0] - 1) ** 2 + w[1] ** 2)

    return tuple(optimize.minimize(error, [1.0, 0.0], tol=1e-9).x.tolist())


def smoothed(x, t):
    """Platt's targets: as if one more passage of each class had been seen with the other label."""
    more, less = (t == 1).sum(), (t == 0).sum()
    return x, torch.where(t == 1, (more + 1) / (more + 2), torch.where(t == 0, 1 / (less + 2), t))


def standardised(x, t, correction=1):
    return (x - x.mean()) / x.std(correction=correction), t


def outputs(logits, targets, ridge, end):
    a, b = one_inside_the_other(logits, targets, ridge)
    return end(a * logits + b)


calibrate = Exercise(
    "6.11", "calibrate",
    tolerance=1e-4,
    draw=draw_log_odds,
    right=one_inside_the_other,
    formula=platt,
    mistakes={
        "this is (1, 0), where it began: is the step taken uphill, or halved until nothing is left of it?":
            lambda logits, targets, ridge: (1.0, 0.0),
        "the offset is left out, as in temperature scaling: b is free too": {"pull": lambda ridge, n: (ridge, HELD)},
        "only the offset moves, and a stays 1: both are free": {"pull": lambda ridge, n: (HELD, ridge)},
        "both are pulled to 0; a is pulled to 1, where nothing is changed": {"toward": (0.0, 0.0)},
        "both are pulled to 1; b is pulled to 0, where nothing is changed": {"toward": (1.0, 1.0)},
        "a is pulled to 0 and b to 1; it is a that is pulled to 1": {"toward": (0.0, 1.0)},
        "the ridge holds a alone; it is ridge / 2 ((a - 1)^2 + b^2)": {"pull": lambda ridge, n: (ridge, 0.0)},
        "the ridge holds b alone; it is ridge / 2 ((a - 1)^2 + b^2)": {"pull": lambda ridge, n: (0.0, ridge)},
        "the ridge pulls twice as hard: with ridge / 2 before the squares, its gradient is ridge (a - 1) and ridge b":
            {"pull": lambda ridge, n: (2 * ridge, 2 * ridge)},
        "the ridge pulls half as hard: with ridge / 2 before the squares, its gradient is ridge (a - 1) and ridge b":
            {"pull": lambda ridge, n: (ridge / 2, ridge / 2)},
        "the cross-entropy is summed, or the ridge divided by N: the loss is the mean, and the ridge is added to it as it is":
            {"pull": lambda ridge, n: (ridge / n, ridge / n)},
        "the ridge counts once for every passage, or a mean was divided by N again: it is added once, to the mean":
            {"pull": lambda ridge, n: (ridge * n, ridge * n)},
        "neutral passages are left out; each counts, with its target of 0.5":
            tuple({"use": lambda x, t, some=some: (x[some(t)], t[some(t)])} for some in
                  (lambda t: t != 0.5, lambda t: (t == 0) | (t == 1))),
        "the targets are made 0 or 1, and 0.5 became 0; take them as they are":
            ({"use": lambda x, t: (x, t.round())}, {"use": lambda x, t: (x, t.trunc())}),
        "the targets are made 0 or 1, and 0.5 became 1; take them as they are":
            ({"use": lambda x, t: (x, (t >= 0.5).double())}, {"use": lambda x, t: (x, t.ceil())}),
        "these are targets as Platt smoothed them; the ridge takes care of that: take them as they are": {"use": smoothed},
        "the labels are turned round, positive for negative": {"use": lambda x, t: (x, 1 - t)},
        "the log-odds went through a sigmoid first; the line a x + b is for the log-odds": {"use": lambda x, t: (x.sigmoid(), t)},
        "these are for log-odds that were standardised first; a and b are for them as they came":
            tuple({"use": functools.partial(standardised, correction=one)} for one in (1, 0)),
        "the mean was taken off the log-odds first; a and b are for them as they came": {"use": lambda x, t: (x - x.mean(), t)},
        "this is one step of Newton's method; p changes with it, so go on until nothing moves":
            (newton(steps=1, cut=whole), newton(steps=1), newton(steps=1, start=(0.0, 0.0))),
        "Newton's method was stopped after a few steps; go on until nothing moves":
            (newton(steps=2, cut=whole), newton(steps=3, cut=whole),
             *(newton(steps=steps, start=start) for steps in (2, 3) for start in ((1.0, 0.0), (0.0, 0.0))),
             *(newton(steps=steps) for steps in (4, 5, 6))),
        "the steps end where the loss falls by little, or in float32 seems not to; in a flat valley there is a long way to go: "
        "until the step is small, in float64":
            tuple(newton(least=least) for least in (1e-3, 1e-4, 1e-6)),
        "the whole step is taken wherever it leads, and goes too far where the model is sure and wrong; halve it until the loss "
        "does not rise":
            tuple(newton(steps=steps, cut=whole) for steps in (4, 5, 6, 7, 8, 10, 15, 20, 50)),
        "the steps end at the first one that leads higher; halve that one, and go on": newton(cut=none_that_rises),
        "p was worked out once, before the steps; every step needs p at its own a and b":
            tuple(newton(once=True, cut=whole, steps=steps) for steps in (2, 3, 5, 10, 20, 50, 100)),
        "the Hessian lacks its weights p (1 - p), so the steps are short and had not arrived when they ended":
            tuple(newton(weight=torch.ones_like, cut=whole, steps=steps) for steps in (5, 10, 20, 25, 50, 100)),
        "a step is halved once at most; go on halving as long as the loss is higher at its end":
            tuple(newton(cut=half_at_most, steps=steps) for steps in (10, 20, 25, 30, 50, 100)),
        "log p and log(1 - p) are infinite where p has rounded, and no two losses can be compared; take the operator on log-odds":
            tuple(newton(cost=by_logarithms, steps=steps) for steps in (10, 20, 25, 30, 50, 100)),
        "the Hessian is a sum where the gradient is a mean, so the steps are short and had not arrived when they ended":
            tuple(newton(mean=lambda n: 1, cut=whole, steps=steps) for steps in (5, 10, 20, 30, 50, 100)),
        "the ridge is missing in the Hessian, or it is singular without it: add the ridge to its diagonal":
            tuple(newton(curved=lambda pull: 0 * pull.diag(), cut=cut, steps=steps) for steps in (10, 20, 30, 50, 100)
                  for cut in (until_it_falls, whole))
            + tuple(newton(curved=lambda pull, tiny=tiny: tiny * torch.eye(2, dtype=pull.dtype), steps=steps)
                    for tiny in (1e-9, 1e-8, 1e-6) for steps in (30, 50)),
        "the ridge is added to all four places of the Hessian; no product of a and b is in it: add it to the diagonal alone":
            tuple(newton(curved=lambda pull: pull.expand(2, 2), steps=steps) for steps in (10, 20, 30, 50, 100)),
        "the ridge is missing in the gradient, or what comes to the same: it adds ridge (a - 1) and ridge b":
            tuple(newton(slope=torch.zeros_like, cut=cut, steps=steps) for steps in (10, 20, 30, 50, 100)
                  for cut in (whole, until_it_falls)),
        "gradient descent had not arrived when it was stopped; go on, or take Newton's steps": (
            *too_few([(1.0, (10, 50, 100)), (0.5, (100, 200)), (0.1, (50, 100, 200, 500, 1000)), (0.01, (100, 200, 500, 1000))]),
            *too_few([(0.3, (500, 1000, 2000)), (0.1, (2000, 5000)), (0.01, (2000, 5000))]),
            *too_few([(0.1, (100, 1000)), (0.01, (100, 1000))], start=(0.0, 0.0)),
            *too_few([(0.1, (50, 100)), (0.01, (100, 200)), (0.001, (100, 1000))], adam=True)),
        "a was fitted without an offset and then b with that a, once each; the two depend on each other":
            functools.partial(in_turn, rounds=1),
        "b was fitted with a = 1 and then a with that b, once each; the two depend on each other": offset_then_slope,
        "a and b were searched in turn, and not often enough: the two depend on each other":
            tuple(functools.partial(in_turn, rounds=rounds) for rounds in (2, 3, 4, 5, 10)),
        "a is not let below 0; a model that is upside down needs that":
            (never_below_zero, lambda logits, targets, ridge: platt(logits, targets, ridge, end=lambda a, b: (max(a, 0.0), b))),
        "this is the least squared error of the probabilities; take the cross-entropy":
            tuple(functools.partial(squared_errors, half=half) for half in (1.0, 0.5)),
        "this is the temperature, 1 / a; return a itself": tuple({"end": end} for end in (
            lambda a, b: (1 / a, b), lambda a, b: (1 / a, b / a), lambda a, b: (1 / a, -b / a))),
        "a temperature was fitted, x / T + b with a ridge that pulls T to 1; it is a x + b, and a that is pulled":
            tuple(functools.partial(by_temperature, end=end) for end in (lambda T, b: (T, b), lambda T, b: (1 / T, b))),
        "in place of b stands the border -b / a, or b / a; return a and b of a x + b":
            ({"end": lambda a, b: (a, -b / a)}, {"end": lambda a, b: (a, b / a)}),
        "the offset went through a sigmoid; b is added to log-odds": {"end": lambda a, b: (a, 1 / (1 + math.exp(-b)))},
        "these are Platt's A and B, of 1 / (1 + exp(A x + B)); for sigmoid(a x + b) both have the other sign":
            {"end": lambda a, b: (-a, -b)},
        "b has the wrong sign: it is added": {"end": lambda a, b: (a, -b)},
        "a has the wrong sign": {"end": lambda a, b: (-a, b)},
        "a and b are exchanged: the slope comes first": {"end": lambda a, b: (b, a)},
        "a is returned as its logarithm": {"end": lambda a, b: (math.log(a) if a > 0 else math.nan, b)},
        "the offset is not returned: the answer is the pair (a, b)": {"end": lambda a, b: a},
        "this is what becomes of the log-odds; return a and b themselves":
            tuple(functools.partial(outputs, end=end) for end in (lambda z: z, torch.sigmoid)),
        "these are rounded; return a and b as they are":
            tuple({"end": lambda a, b, digits=digits: (round(a, digits), round(b, digits))} for digits in (1, 2, 3)),
    },
)  # fmt: skip
