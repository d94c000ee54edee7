"""Chapter 06's check of slope and offset: other ways to the same lowest point pass, and what falls short of it has its name."""

import pytest
import torch
from torch.nn import functional as F

from rlhf_lib import exercises
from rlhf_lib.exercises import verdict


def calibrate(logits, targets, ridge):
    """By L-BFGS and the gradients of PyTorch."""
    x, t = logits.double(), targets.double()
    a, b = torch.ones((), dtype=torch.float64, requires_grad=True), torch.zeros((), dtype=torch.float64, requires_grad=True)
    settings = dict(max_iter=200, tolerance_grad=1e-11, tolerance_change=1e-14, line_search_fn="strong_wolfe")
    optimizer = torch.optim.LBFGS([a, b], **settings)

    def closure():
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(a * x + b, t) + ridge / 2 * ((a - 1) ** 2 + b**2)
        loss.backward()
        return loss

    optimizer.step(closure)
    return a.item(), b.item()


ALTERNATIVES = {"calibrate": calibrate}


def newton(logits, targets, ridge, halve=True, stop=False, steps=40, use=lambda t: t == t, end=lambda a, b: (a, b)):
    """On plain numbers, the two equations solved by hand."""
    rows, a, b = list(zip(logits[use(targets)].tolist(), targets[use(targets)].tolist())), 1.0, 0.0

    def loss(a, b):
        z = torch.tensor([a * x + b for x, _ in rows], dtype=torch.float64)
        t = torch.tensor([t for _, t in rows], dtype=torch.float64)
        return F.binary_cross_entropy_with_logits(z, t).item() + ridge / 2 * ((a - 1) ** 2 + b * b)

    for _ in range(steps):
        p = torch.tensor([a * x + b for x, _ in rows], dtype=torch.float64).sigmoid().tolist()
        n = len(rows)
        ga = sum((q - t) * x for q, (x, t) in zip(p, rows)) / n + ridge * (a - 1)
        gb = sum(q - t for q, (x, t) in zip(p, rows)) / n + ridge * b
        haa = sum(q * (1 - q) * x * x for q, (x, _) in zip(p, rows)) / n + ridge
        hab = sum(q * (1 - q) * x for q, (x, _) in zip(p, rows)) / n
        hbb = sum(q * (1 - q) for q in p) / n + ridge
        determinant = haa * hbb - hab * hab
        da, db = (hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant
        if stop and loss(a - da, b - db) > loss(a, b):
            break
        while halve and loss(a - da, b - db) > loss(a, b):
            da, db = da / 2, db / 2
        a, b = a - da, b - db
    return end(a, b)


@pytest.mark.parametrize("function", [calibrate, newton])
@pytest.mark.parametrize("seed", [0, 5])
def test_every_way_to_the_lowest_point_passes(function, seed):
    found = verdict("calibrate", function, seed)
    assert found.passed, found.message


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"halve": False}, "the whole step"),
        ({"steps": 1}, "one step of Newton's"),
        ({"stop": True}, "end at the first one that leads higher"),
        ({"use": lambda t: t != 0.5}, "neutral passages are left out"),
        ({"end": lambda a, b: (b, a)}, "exchanged"),
        ({"end": lambda a, b: (1 / a, b)}, "temperature"),
        ({"end": lambda a, b: (-a, -b)}, "Platt's A and B"),
    ],
)
def test_frequent_mistakes_have_their_names(changes, says):
    drawn = exercises.draw("calibrate")
    if "use" in changes:  # a mean of nothing is an error of this program, not of every learner's
        drawn = [one for one in drawn if (one["targets"] != 0.5).any()]
    outputs = exercises.answer("calibrate", lambda **given: newton(**given, **changes), drawn)
    assert says in exercises.judge("calibrate", drawn, outputs).mistake


def slope_alone(logits, targets, ridge):
    low, high, x, t = -500.0, 500.0, logits.double(), targets.double()
    for _ in range(80):
        a = (low + high) / 2
        low, high = (a, high) if ((a * x).sigmoid() - t).mul(x).mean() + ridge * (a - 1) < 0 else (low, a)
    return a, 0.0


def by_descent(logits, targets, ridge, rate=0.1, steps=500):
    logits, targets = logits.float(), targets.float()
    w = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=rate)
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(w[0] * logits + w[1], targets)
        loss = loss + ridge / 2 * ((w - torch.tensor([1.0, 0.0])) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tuple(w.tolist())


@pytest.mark.parametrize("function, says", [(slope_alone, "the offset is left out"), (by_descent, "had not arrived")])
def test_what_falls_short_has_its_name(function, says):
    assert says in verdict("calibrate", function).mistake


def test_whole_steps_go_from_side_to_side_on_what_is_drawn():
    much_too_sure = exercises.draw("calibrate")[-2]
    a = [newton(**much_too_sure, halve=False, steps=steps)[0] for steps in (20, 21, 22)]
    assert a[0] == pytest.approx(a[2]) and a[0] * a[1] < -100


def test_the_lowest_point_by_hand_on_the_card():
    logits, targets = torch.tensor([2.0, 0.0]), torch.tensor([0.5, 0.0])
    assert newton(logits, targets, 0.1, steps=1) == pytest.approx((0.2076, -1.2872), abs=5e-5)
    a, b = exercises.find("calibrate").right(logits, targets, 0.1)
    assert (a, b) == pytest.approx((0.6915, -1.2595), abs=5e-5)
    p = (a * logits + b).sigmoid()
    assert ((p - targets) * logits).mean().item() == pytest.approx(-0.1 * (a - 1), abs=1e-6)  # the gradient is 0
    assert (p - targets).mean().item() == pytest.approx(-0.1 * b, abs=1e-6)


def test_log_odds_three_times_as_large_have_a_slope_a_third_as_large():
    x = 2 * torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = (torch.rand(400, generator=torch.Generator().manual_seed(1)) < x.sigmoid()).double()
    right = exercises.find("calibrate").right
    assert [1 / 3 * one for one in right(x, t, 1e-9)[:1]] == pytest.approx([right(3 * x, t, 1e-9)[0]], rel=1e-5)
