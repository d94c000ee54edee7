"""Chapter 03: a step of Muon, which takes a matrix as a whole."""

import functools
import itertools

import torch

from rlhf_lib.exercises.declare import Exercise

A, B, C = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024
TINY = 1e-7


# ----------------------------------------------------------------------------------------- 3.11
def draw_matrices(generator):
    first = {"parameter": torch.eye(2), "gradient": torch.tensor([[0.0, 8.0], [-8.0, 0.0]])}
    yield {**first, "m": torch.tensor([[4.0, 4.0], [-4.0, -4.0]]), "rate": 0.1, "beta": 0.5}
    for rows, columns, size, rate, beta in (
        (2, 3, 1.0, 0.8, 0.9), (3, 3, 0.3, 0.7, 0.6), (5, 2, 1.0, 0.5, 0.95), (4, 1, 20.0, 1.5, 0.8), (1, 3, 2.0, 2.0, 0.7),
        (4, 7, 0.02, 1.2, 0.0), (36, 8, 300.0, 0.9, 0.85),
    ):  # fmt: skip
        parameter, gradient, m = torch.randn(3, rows, columns, generator=generator)
        yield {"parameter": parameter, "gradient": size * gradient, "m": 0.7 * size * m, "rate": rate, "beta": beta}
    parameter, m = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    yield {"parameter": parameter, "gradient": m.flip(0), "m": 0 * m, "rate": 0.4, "beta": 0.9}  # a first step
    yield {"parameter": parameter, "gradient": 0 * m, "m": m, "rate": 0.6, "beta": 0.8}
    yield {"parameter": parameter, "gradient": 0 * m, "m": 0 * m, "rate": 0.3, "beta": 0.9}
    for size in (2e-8, 5e-11):  # 1e-7 is not little; and so small that five rounds of a wrong sum do not run away
        yield {"parameter": parameter, "gradient": size * m.flip(1), "m": size * m, "rate": 0.7, "beta": 0.2}
    one, other, rest = (torch.randn(shape, generator=generator) for shape in ((6, 1), (1, 4), (2, 6, 4)))
    gradient, m = one * other + 0.02 * rest  # one direction drowns the others
    yield {"parameter": one - other, "gradient": gradient, "m": m, "rate": 1.1, "beta": 0.75}
    edge = torch.full((3, 3), 3.3e38)  # a step further it is infinite, but in float64
    yield {"parameter": edge, "gradient": gradient[:3, :3], "m": -torch.eye(3), "rate": 9e37, "beta": 0.3}
    parameter, gradient, m = torch.randn(3, 5, 3, generator=generator, dtype=torch.float64)
    parameter[0, 0] = 1e100  # float32 ends at 3.4e38
    yield {"parameter": parameter, "gradient": 1e100 * gradient, "m": 1e100 * m, "rate": 0.8, "beta": 0.7}


def call_finite(function, parameter, rate, **given):
    """What the function returns, with NaN for a matrix that ran away: where its entries end is chance."""
    far = 1e4 * max(1, rate, parameter.abs().max().item())
    pair = function(parameter=parameter, rate=rate, **given)
    if isinstance(pair, (list, tuple)) and all(isinstance(one, torch.Tensor) and one.is_floating_point() for one in pair):
        return tuple(one if (one.double().abs() < far).all() else torch.full_like(one, torch.nan) for one in pair)
    return pair


def muon_by_values(parameter, gradient, m, rate, beta):
    """The singular values, each one sent five times through the polynomial; nothing is iterated on the matrix."""
    kind = parameter.dtype
    weight, gradient, m = parameter.double(), gradient.double(), m.double()
    m = m + (1 - beta) * (gradient - m)
    u, values, v = torch.linalg.svd(gradient + beta * (m - gradient), full_matrices=False)
    values = values / (values.square().sum().sqrt() + TINY)
    for _ in range(5):
        values = values * (A + values.square() * (B + values.square() * C))
    rows, columns = weight.shape
    turned = u @ torch.diag(values) @ v
    return (weight - rate * max(1, rows / columns) ** 0.5 * turned).to(kind), m.to(kind)


def mean(m, gradient, beta):
    return beta * m + (1 - beta) * gradient


def by_norm(x, gradient, more=TINY):
    return x / (x.norm() + more)


def of_grams(x, a, b, c):
    gram = x @ x.T
    return a * x + (b * gram + c * gram @ gram) @ x


def one_by_one(x, a, b, c):
    gram = x @ x.T
    return a * x + b * gram @ x + c * gram @ gram @ x


def spun(x, rounds=5, numbers=(A, B, C), turn=of_grams):
    for _ in range(rounds):
        x = turn(x, *numbers)
    return x


def muon(
    parameter, gradient, m, rate, beta, *, average=mean, ahead=lambda new, g, beta, old: mean(new, g, beta), divided=by_norm,
    spin=spun, stretch=lambda rows, columns: max(1, rows / columns) ** 0.5, out=lambda new, m, made: (new, m),
    move=lambda weight, change, rate: weight - rate * change,
):  # fmt: skip
    """`ahead` gets the new m, the gradient, beta and the old m; `out` also gets what was made on the way, as a dict."""
    new = average(m, gradient, beta)
    look = ahead(new, gradient, beta, m)
    turned = spin(divided(look, gradient))
    change = stretch(*parameter.shape) * turned
    return out(move(parameter, change, rate), new, dict(look=look, turned=turned, old=m, change=rate * change))


def by_svd(x, least=-1.0):
    u, values, v = torch.linalg.svd(x, full_matrices=False)
    return u @ torch.diag((values > least).to(x.dtype)) @ v


def in_short(kind, laid, before, late, turn=of_grams):
    """`laid`: a tall matrix lies down; `before`: its norm is taken in `kind` already; `late`: so is the step's size."""

    def step(parameter, gradient, m, rate, beta):
        new = mean(m, gradient, beta)
        x, tall = mean(new, gradient, beta), laid and parameter.shape[0] > parameter.shape[1]
        x = x.T if tall else x
        x = x.to(kind) if before else by_norm(x, x).to(kind)
        x = spun(by_norm(x, x) if before else x, turn=turn)
        x = (x.T if tall else x) if late else (x.T if tall else x).to(parameter.dtype)
        return parameter - rate * max(1, parameter.shape[0] / parameter.shape[1]) ** 0.5 * x, new

    return step


def in_other(kind, back=False, function=muon):
    """All of it in `kind`; `back`: what comes out is as it came in."""

    def step(parameter, gradient, m, **given):
        made = function(parameter=parameter.to(kind), gradient=gradient.to(kind), m=m.to(kind), **given)
        return tuple(one.to(parameter.dtype) for one in made) if back else made

    return step


def gram_of_start(x):
    start = x @ x.T
    return spun(x, turn=lambda x, a, b, c: a * x + (b * start + c * start @ start) @ x)


def averaged_behind(look):
    """The matrix of each gradient is turned first, and the average is taken of these."""

    def step(parameter, gradient, m, rate, beta):
        turned = spun(by_norm(gradient, gradient))
        new = mean(m, turned, beta)
        stretch = max(1, parameter.shape[0] / parameter.shape[1]) ** 0.5
        return parameter - rate * stretch * (mean(new, turned, beta) if look else new), new

    return step


def laid(turn):
    """What `turn` makes of the rounds of a matrix that lies down where it is tall."""
    return lambda x: spun(x.T, turn=turn).T if x.shape[0] > x.shape[1] else spun(x, turn=turn)


def ways(part, *options):
    """Several ways of one mistake; only the first is an option, which the check tries together with other mistakes."""
    return [{part: options[0]}, *(lambda one=one, **given: muon(**given, **{part: one}) for one in options[1:])]


def turns(*turn):
    return ways("spin", *(spin for one in turn for spin in (lambda x, one=one: spun(x, turn=one), laid(one))))


def of_entries(x, a, b, c, times, apart):
    """The Gram matrix times itself entry by entry: one after the other, as each rounds in its own way."""
    gram = x @ x.T
    square = c * gram * gram if times else c * gram**2
    return a * x + b * gram @ x + square @ x if apart else a * x + (b * gram + square) @ x


def numbers(*three):
    return ways("spin", *(lambda x, one=one: spun(x, numbers=one) for one in three))


muon_step = Exercise(
    "3.11", "muon_step", draw=draw_matrices, call=call_finite, right=muon_by_values, formula=muon, tolerance=1e-4, mistakes={
        # the average and the look ahead
        "the weights of old and new are exchanged: the old m has beta, the gradient 1 - beta": (
            {"average": lambda m, g, b: mean(g, m, b)},
            {"average": lambda m, g, b: mean(g, m, b), "ahead": lambda m, g, b, old: mean(g, m, b)}),
        "the gradient is added in full; m is an average, to which it adds (1 - beta) times itself": [
            {"average": lambda m, g, b: b * m + g, "ahead": ahead} for ahead in (
                lambda m, g, b, old: b * m + g, lambda m, g, b, old: mean(m, g, b), lambda m, g, b, old: m)],
        "m is divided by 1 - beta; here it is not corrected for its start": (
            {"average": lambda m, g, b: mean(m, g, b) / (1 - b)},
            lambda **given: muon(**given, ahead=lambda new, g, b, old: mean(new / (1 - b), g, b)),
            lambda **given: muon(**given, ahead=lambda new, g, b, old: mean(new, g, b) / (1 - b)),
            lambda **given: muon(**given, average=lambda m, g, b: mean(m, g, b) / (1 - b), ahead=lambda new, g, b, old: (
                mean(new * (1 - b), g, b)))),
        "there is no look ahead: the new m itself is turned; mix the gradient into it once more":
            {"ahead": lambda m, g, b, old: m},
        "the look ahead has its weights exchanged: the new m has beta, the gradient 1 - beta":
            {"ahead": lambda m, g, b, old: mean(g, m, b)},
        "the look ahead takes the gradient in full: it has 1 - beta, as in m": {"ahead": lambda m, g, b, old: b * m + g},
        "the look ahead adds (1 - beta) of the gradient to all of m, which has beta": {
            "ahead": lambda m, g, b, old: m + (1 - b) * g},
        "the gradient alone is turned: m takes no part in the step": {"ahead": lambda m, g, b, old: g},
        "the m of before this step is turned, and the gradient comes a step late": {"ahead": lambda m, g, b, old: old},
        "the gradient is turned first and averaged then; average first, and turn what is looked ahead": (
            averaged_behind(True), averaged_behind(False)),
        # the norm
        "nothing is divided by the norm: what is far above 1 grows with each round, beyond all bounds":
            {"divided": lambda x, g: x},
        "this divides by the largest singular value; divide by the Frobenius norm, the root of the sum of all squares":
            {"divided": lambda x, g: x / (torch.linalg.matrix_norm(x, 2) + TINY)},
        "this divides by the nuclear norm, the sum of singular values; the Frobenius norm is the root of the sum of squares":
            {"divided": lambda x, g: x / (torch.linalg.matrix_norm(x, "nuc") + TINY)},
        "each row is divided by a norm of its own, which makes another matrix; one number divides all":
            {"divided": lambda x, g: x / (x.norm(dim=1, keepdim=True) + TINY)},
        "each column is divided by a norm of its own, which makes another matrix; one number divides all":
            {"divided": lambda x, g: x / (x.norm(dim=0, keepdim=True) + TINY)},
        "this divides by the norm of the gradient; divide what is turned by its own":
            {"divided": lambda x, g: x / (g.norm() + TINY)},
        "this divides by the norm of m; divide what is looked ahead by its own": lambda m, gradient, beta, **given: muon(
            m=m, gradient=gradient, beta=beta, **given, divided=lambda x, g: x / (mean(m, g, beta).norm() + TINY)),
        "this divides by the squared norm: its root is missing": {"divided": lambda x, g: x / (x.square().sum() + TINY)},
        "this divides by the sum of the absolute values; the norm is the root of the sum of squares":
            {"divided": lambda x, g: x / (x.abs().sum() + TINY)},
        "this divides by the largest absolute value; the norm is the root of the sum of squares":
            {"divided": lambda x, g: x / (x.abs().max() + TINY)},
        "a matrix of zeros becomes NaN, 0 / 0: add 1e-7 to the norm": {"divided": lambda x, g: x / x.norm()},
        "what is added to the norm is 1e-7, not more and not less: a small gradient shows it":
            ways("divided", *(lambda x, g, more=more: by_norm(x, g, more) for more in (
                1e-20, 1e-12, 1e-8, 1e-6, 1e-5, 1e-3))),
        "the norm is held at 1e-7 or more; add 1e-7 to it, however large it is":
            lambda **given: muon(**given, divided=lambda x, g: x / x.norm().clamp(min=TINY)),
        "only a norm above 1 is divided by; a small matrix is brought to the norm 1 as well": (
            {"divided": lambda x, g: x / x.norm().clamp(min=1)}, {"divided": lambda x, g: x / (x.norm() + TINY).clamp(min=1)}),
        "each round divides by the norm again; divide once, before the first": (
            {"spin": lambda x: spun(x, turn=lambda x, *abc: by_norm(of_grams(x, *abc), x))},
            {"spin": lambda x: spun(x, turn=lambda x, *abc: of_grams(by_norm(x, x), *abc))}),
        "the norm is multiplied back at the end; that the step has forgotten how long the gradient was is what is wanted":
            lambda **given: muon(**given, out=lambda new, m, made: (
                given["parameter"] - made["change"] * made["look"].norm(), m)),
        # the rounds
        "the powers are taken of each entry; X cubed is X @ X.T @ X, so that each singular value is cubed":
            turns(lambda x, a, b, c: a * x + b * x**3 + c * x**5),
        "the square of X @ X.T is taken of each entry; it is the product of the matrix with itself":
            turns(*(functools.partial(of_entries, times=one, apart=two) for one in (False, True) for two in (False, True))),
        "X @ X.T stands behind X, or X.T @ X before it: X cubed is X @ X.T @ X, whichever you multiply first": turns(
            lambda x, a, b, c: a * x + (b * (x.T @ x) + c * (x.T @ x) @ (x.T @ x)) @ x,
            lambda x, a, b, c: a * x + x @ (b * (x @ x.T) + c * (x @ x.T) @ (x @ x.T))),
        "the term with c has a third power too; it is a fifth: X @ X.T twice before X": turns(
            lambda x, a, b, c: a * x + (b + c) * x @ x.T @ x),
        "the last X of a round is missing its @: * multiplies entry by entry": turns(
            lambda x, a, b, c: a * x + (b * (x @ x.T) + c * (x @ x.T) @ (x @ x.T)) * x),
        "X stands behind one of the two terms only: put both into brackets before @ x": turns(
            lambda x, a, b, c: a * x + b * (x @ x.T) + c * (x @ x.T) @ (x @ x.T) @ x,
            lambda x, a, b, c: a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T)),
        "the term with a is missing: a X belongs to each round": turns(lambda x, a, b, c: of_grams(x, 0, b, c)),
        "the term with a has X without a: 3.4445 X": turns(lambda x, a, b, c: of_grams(x, 1, b, c)),
        "X @ X.T is made once, before the rounds; each round needs that of its own X": {"spin": gram_of_start},
        "the three numbers stand in another order: 3.4445 with X, -4.7750 with its third power, 2.0315 with its fifth":
            numbers((C, B, A)),
        "the rounds grow beyond all bounds: is it divided by the root of the sum of squares, and is 3.4445 with X, -4.7750 with "
        "its third power and 2.0315 with its fifth, all added?": (
            {"divided": lambda x, g: x / (x.square().mean().sqrt() + TINY)},
            numbers((A, -B, C), (A, -B, -C), (-A, B, -C), (A, B, -C), (-A, B, C), (A, C, B), (B, A, C), (B, C, A), (C, A, B))),
        "these are other numbers than 3.4445, -4.7750 and 2.0315, such as those of Newton and Schulz, 3/2 and -1/2":
            numbers((1.5, -0.5, 0.0), (15 / 8, -10 / 8, 3 / 8), (2.0, -1.5, 0.5), (3.0, -16 / 5, 6 / 5), (A, B, 0.0)),
        "there is one round; there are five": {"spin": lambda x: spun(x, 1)},
        "nothing is turned: this is gradient descent with momentum": [
            {"divided": lambda x, g: x, "spin": lambda x: x, **size} for size in ({}, {"stretch": lambda rows, columns: 1})],
        "there is no round at all: the matrix is only divided by its norm": {"spin": lambda x: x},
        "there are more or fewer than five rounds": [{"spin": lambda x, n=n: spun(x, n)} for n in (3, 4, 6, 10)],
        "all singular values come out as 1, as an SVD gives them; five rounds leave the large ones at 0.7 to 1.2": (
            {"spin": by_svd}, {"spin": lambda x: by_svd(x, 1e-5)}),
        "this is the sign of each entry; the matrix as a whole is turned": {"spin": torch.sign},
        "this is computed in bfloat16, or in half precision, which have three digits: stay in the numbers that came": [
            *(in_short(torch.bfloat16, *three) for three in itertools.product((True, False), repeat=3)),
            *(in_short(torch.float16, laid, True, late) for laid in (True, False) for late in (True, False)),
            *(in_short(torch.bfloat16, laid, True, False, one_by_one) for laid in (True, False))],
        "this is float32, on the way or where it comes back, and float64 came: stay in the numbers that came": (
            in_other(torch.float32), in_other(torch.float32, back=True),
            lambda **given: muon(**given, out=lambda new, m, made: (new.float(), m)),
            lambda **given: muon(**given, out=lambda new, m, made: (new, m.float()))),
        "float64 comes back, and float32 came: stay in the numbers that came": (
            in_other(torch.float64), lambda parameter, **given: muon(parameter=parameter.double(), **given)),
        # the size of the step
        "a tall matrix does not go further: its step is sqrt(rows / columns) times as long, by the shape that the parameter has":
            {"stretch": lambda rows, columns: 1},
        "rows and columns are exchanged in the size of the step: a tall matrix goes further, not a wide one":
            {"stretch": lambda rows, columns: max(1, columns / rows) ** 0.5},
        "a wide matrix goes less far; the size is sqrt(rows / columns), and at least 1": {"stretch": lambda rows, columns:
            (rows / columns) ** 0.5},
        "rows // columns cuts the fraction off before the root is taken: divide with /":
            {"stretch": lambda rows, columns: max(1, rows // columns) ** 0.5},
        "a tall matrix goes rows / columns times as far; the root is missing":
            {"stretch": lambda rows, columns: max(1, rows / columns)},
        "min for max: a wide matrix goes less far, and a tall one no further":
            {"stretch": lambda rows, columns: min(1, rows / columns) ** 0.5},
        "a tall matrix goes less far; multiply by sqrt(rows / columns)":
            {"stretch": lambda rows, columns: max(1, rows / columns) ** -0.5},
        "a wide matrix goes further too; only a tall one does": {"stretch": lambda rows, columns:
            (max(rows, columns) / min(rows, columns)) ** 0.5},
        "the size has the root of the longer side, as in Liu et al. 2025; here it is the root of max(1, rows / columns)":
            ({"stretch": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5}, {"stretch": lambda rows, columns:
            max(rows, columns) ** 0.5}),
        "the size has the root of all rows; it is the root of rows / columns, and at least 1":
            {"stretch": lambda rows, columns: rows**0.5},
        "nothing moves where the gradient is zeros; m is not, and the average and the step go on":
            (lambda parameter, gradient, m, **given: muon(parameter, gradient, m, **given) if gradient.any() else (parameter, m),
             lambda parameter, gradient, **given: muon(parameter, gradient, **given, out=lambda new, m, made: (
                 new if gradient.any() else parameter, m))),
        "this goes up the gradient: subtract the step": {"move": lambda weight, change, rate: weight + rate * change},
        "the step is not multiplied by the rate": {"move": lambda weight, change, rate: weight - change},
        "the parameter is pulled towards 0 (weight decay); here is none":
            [{"move": lambda weight, change, rate, decay=decay: weight * (1 - rate * decay) - rate * change}
             for decay in (0.01, 0.1, 1.0)],
        "the usual rate of 0.02 or beta of 0.95 is written in: use the arguments": (
            lambda rate, **given: muon(rate=0.02, **given), lambda beta, **given: muon(beta=0.95, **given),
            lambda rate, beta, **given: muon(rate=0.02, beta=0.95, **given)),
        # what comes back
        "a tall matrix was laid down and does not stand up again: take .T of the result too": lambda parameter, **given: muon(
            parameter=parameter, **given, move=lambda weight, change, rate: (
                weight - rate * (change.T if weight.shape[0] > weight.shape[1] else change))),
        "a tall matrix was laid down and stood up again by view or reshape, which mixes its entries: take .T of the result":
            {"spin": lambda x: spun(x.T).reshape(x.shape) if x.shape[0] > x.shape[1] else spun(x)},
        "the m of before this step comes back; return the new one": {"out": lambda new, m, made: (new, made["old"])},
        "the matrix that was looked ahead comes back for m; m is the average alone": {"out": lambda new, m, made: (
            new, made["look"])},
        "m and the look ahead are exchanged: the new m goes through the rounds, and what is mixed once more comes back for m":
            lambda gradient, beta, **given: muon(gradient=gradient, beta=beta, **given, ahead=lambda m, g, b, old: m, out=(
                lambda new, m, made: (new, mean(m, gradient, beta)))),
        "the turned matrix comes back for m; m is the average as it was before the norm and the rounds":
            {"out": lambda new, m, made: (new, made["turned"])},
        "m comes back divided by its norm; return it as it is": {"out": lambda new, m, made: (new, by_norm(m, m))},
        "the step comes back, not the parameter behind it": ({"out": lambda new, m, made: (made["change"], m)}, {
            "out": lambda new, m, made: (-made["change"], m)}),
        "the two came in another order: first the parameter, then m": {"out": lambda new, m, made: (m, new)},
        "the parameter comes back alone; return m beside it, for the next step": {"out": lambda new, m, made: new},
    })  # fmt: skip
for place, (sentence, functions) in enumerate(muon_step.mistakes.items()):  # of two faults, the numbers' kind is the smaller
    if not sentence.endswith("stay in the numbers that came"):
        functions += [in_other(kind, function=functions[0]) for kind in (torch.float64, torch.float32)[: 2 if place < 10 else 1]]
