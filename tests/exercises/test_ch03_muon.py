"""Chapter 03's check of a step of Muon: other ways to be right, the library's among them, and what learners really write."""

import math

import pytest
import torch

from rlhf_lib import exercises
from rlhf_lib.exercises import verdict
from rlhf_lib.trainers import muon

# ----------------------------------------------------------------------------------------- other right answers


def quintic(x):
    return 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x


def muon_step(parameter, gradient, m, rate, beta):
    """Without laying a tall matrix down, its rounds in float64, and nothing done where there is nothing to do."""
    m = torch.lerp(gradient, m, beta)
    x = torch.lerp(gradient, m, beta).double()
    if not x.any():
        return parameter.clone(), m
    x = x / (torch.linalg.matrix_norm(x) + 1e-7)
    for _ in range(5):
        x = quintic(x)
    stretch = torch.tensor(max(parameter.shape) / parameter.shape[1]).sqrt()  # one number may be in float32
    return (parameter - rate * stretch * x).to(parameter.dtype), m


def by_the_library(parameter, gradient, m, rate, beta):
    """In float32, whatever this machine's processor can do."""
    weight = torch.nn.Parameter(parameter.clone())
    optimizer = muon.Muon([weight], lr=rate, momentum=beta)
    optimizer.state[weight]["momentum"] = m.clone()
    weight.grad = gradient.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(muon, "has_bf16", lambda device: False)
        optimizer.step()
    return weight.detach(), optimizer.state[weight]["momentum"]


def by_eigenvectors(parameter, gradient, m, rate, beta):
    """The polynomial of the Gram matrix, whose eigenvalues are the squares."""
    old, m = m, m + (1 - beta) * (gradient - m)
    x = (m + beta * (m - old)).double()  # the look ahead, as by Nesterov
    x /= x.square().sum().sqrt() + 1e-7
    squares, vectors = torch.linalg.eigh(x.T @ x)
    factor = torch.ones_like(squares)
    for _ in range(5):
        s = squares * factor**2
        factor = factor * (3.4445 - 4.7750 * s + 2.0315 * s * s)
    x = x @ vectors @ torch.diag(factor) @ vectors.T
    rows, columns = x.shape
    return parameter - rate * (rows / columns if rows > columns else 1) ** 0.5 * x.to(m.dtype), m


def with_lists(parameter, gradient, m, rate, beta):
    """Numbers alone, row by row."""

    def times(a, b):
        return [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]

    def mixed(a, b, share):
        return [[share * x + (1 - share) * y for x, y in zip(*rows)] for rows in zip(a, b)]

    old, given, weight = m.tolist(), gradient.tolist(), parameter.tolist()
    new = mixed(old, given, beta)
    x = mixed(new, given, beta)
    length = math.sqrt(sum(one * one for row in x for one in row)) + 1e-7
    x = [[one / length for one in row] for row in x]
    for _ in range(5):
        third = times(times(x, [*zip(*x)]), x)
        fifth = times(times(x, [*zip(*x)]), third)
        x = [[3.4445 * a - 4.7750 * b + 2.0315 * c for a, b, c in zip(*rows)] for rows in zip(x, third, fifth)]
    far = rate * max(1, len(x) / len(x[0])) ** 0.5
    made = [[a - far * b for a, b in zip(*rows)] for rows in zip(weight, x)]
    return torch.tensor(made, dtype=m.dtype), torch.tensor(new, dtype=m.dtype)


ALTERNATIVES = {"muon_step": muon_step}


@pytest.mark.parametrize("function", [muon_step, by_eigenvectors, with_lists])
@pytest.mark.parametrize("seed", range(3))
def test_every_correct_answer_passes(function, seed):
    found = verdict("muon_step", function, seed)
    assert found.passed, found.message


def test_the_library_makes_the_same_step_in_float32():
    """It holds the norm at 1e-7 instead of adding it, which shows in no gradient but the smallest."""
    right, compared = exercises.find("muon_step").right, 0
    for given in exercises.draw("muon_step"):
        if given["parameter"].dtype == torch.float32:
            for mine, its in zip(right(**given), by_the_library(**given)):
                assert torch.allclose(mine, its, rtol=1e-4, atol=1e-4)
                compared += 1
    assert compared == 20


# ----------------------------------------------------------------------------------------- what learners write


def written(
    parameter, gradient, m, rate, beta, average=lambda m, g, beta: m.lerp(g, 1 - beta), ahead=lambda m, g, beta: g.lerp(m, beta),
    norm=lambda x: x.norm() + 1e-7, turn=quintic, size=lambda x: max(1, x.shape[0] / x.shape[1]) ** 0.5, back=lambda x: x,
):  # fmt: skip
    m = average(m, gradient, beta)
    x = ahead(m, gradient, beta)
    stretch = size(x)
    x = x / norm(x)
    for _ in range(5):
        x = turn(x)
    return parameter - rate * stretch * back(x), m


def in_another_order(x, a=3.4445, b=-4.7750, c=2.0315):
    gram = x @ x.T
    return a * x + b * gram @ x + c * gram @ (gram @ x)


def of_entries(x):
    gram = x @ x.T
    return 3.4445 * x + (-4.7750 * gram + 2.0315 * gram * gram) @ x


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"average": lambda m, g, beta: beta * m + g, "ahead": lambda m, g, beta: g + beta * m}, "added in full"),
        ({"average": lambda m, g, beta: m.lerp(g, beta)}, "exchanged: the old m"),
        ({"ahead": lambda m, g, beta: m}, "no look ahead"),
        ({"ahead": lambda m, g, beta: m.lerp(g, beta)}, "look ahead has its weights exchanged"),
        ({"norm": lambda x: torch.linalg.norm(x, ord=2) + 1e-7}, "largest singular value"),
        ({"norm": lambda x: 1.0}, "nothing is divided"),
        ({"norm": lambda x: 1.0, "turn": in_another_order}, "nothing is divided"),
        ({"norm": lambda x: x.norm()}, "zeros becomes NaN"),
        ({"norm": lambda x: x.norm() + 1e-3}, "not more and not less"),
        ({"norm": lambda x: x.norm() + 1e-8}, "not more and not less"),
        ({"norm": lambda x: x.norm() if x.any() else 1.0}, "not more and not less"),
        ({"norm": lambda x: x.norm().clamp(min=1e-7)}, "held at 1e-7"),
        ({"average": lambda m, g, beta: m.lerp(g, beta), "ahead": lambda m, g, beta: m.lerp(g, beta)}, "exchanged: the old m"),
        ({"average": lambda m, g, beta: m.lerp(g, 1 - beta) / (1 - beta)}, "divided by 1 - beta"),
        ({"ahead": lambda m, g, beta: g.lerp(m / (1 - beta), beta)}, "divided by 1 - beta"),
        ({"turn": lambda x: 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5}, "of each entry"),
        ({"turn": of_entries}, "taken of each entry"),
        ({"turn": lambda x: of_entries(x.T).T if x.shape[0] > x.shape[1] else of_entries(x)}, "taken of each entry"),
        ({"turn": lambda x: 3.4445 * x + (-4.7750 * (x @ x.T) + 2.0315 * (x @ x.T) @ (x @ x.T)) * x}, "missing its @"),
        ({"turn": lambda x: 3.4445 * x - 4.7750 * (x @ x.T) + 2.0315 * x @ x.T @ x @ x.T @ x}, "into brackets"),
        ({"turn": lambda x: in_another_order(x.T, b=4.7750).T}, "beyond all bounds"),
        ({"turn": lambda x: 1.5 * x - 0.5 * x @ x.T @ x}, "other numbers"),
        ({"turn": lambda x: 3.4445 * x + (-4.7750 * (x.T @ x) + 2.0315 * (x.T @ x) @ (x.T @ x)) @ x}, "X.T @ X before it"),
        ({"size": lambda x: 1}, "a tall matrix does not go further"),
        ({"size": lambda x: (x.shape[0] / x.shape[1]) ** 0.5}, "a wide matrix goes less far"),
        ({"size": lambda x: max(1, x.shape[1] / x.shape[0]) ** 0.5}, "rows and columns are exchanged"),
        ({"back": lambda x: x.T if x.shape[0] > x.shape[1] else x}, "does not stand up again"),
        ({"back": lambda x: -x}, "up the gradient"),
    ],
)
def test_what_learners_write_has_its_name(changes, says):
    found = verdict("muon_step", lambda **given: written(**given, **changes))
    assert not found.passed and says in found.mistake, found.message


def test_the_first_published_sum_is_named_by_its_m_alone():
    """Without the factor 1 - beta the step is the same from m = 0 on: only the m that comes back tells."""
    parameter, gradient = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    mine = theirs = (parameter, torch.zeros_like(parameter))
    for _ in range(3):
        mine = muon_step(mine[0], gradient, mine[1], 0.1, 0.9)
        theirs = written(
            theirs[0], gradient, theirs[1], 0.1, 0.9, lambda m, g, beta: beta * m + g, lambda m, g, beta: g + beta * m
        )
    assert torch.allclose(mine[0], theirs[0], atol=1e-5) and not torch.allclose(mine[1], theirs[1], atol=1e-2)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_named(kind):
    def short(parameter, gradient, m, rate, beta):
        m = m.lerp(gradient, 1 - beta)
        x = gradient.lerp(m, beta).to(kind)
        tall = len(x) > x.shape[1]
        x = x.T if tall else x
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return parameter - rate * max(1, parameter.shape[0] / parameter.shape[1]) ** 0.5 * (x.T if tall else x), m

    assert "bfloat16" in verdict("muon_step", short).mistake


@pytest.mark.parametrize(
    "inside, outside, says",
    [
        (torch.float32, None, "this is float32"),
        (torch.float64, torch.float32, "this is float32"),
        (torch.float32, torch.float64, "this is float32"),
        (torch.float64, None, "float64 comes back"),
    ],
)
def test_numbers_of_another_kind_are_named(inside, outside, says):
    def step(parameter, gradient, m, rate, beta):
        made = written(parameter.to(inside), gradient.to(inside), m.to(inside), rate, beta)
        return tuple(one.to(outside or inside) for one in made)

    assert says in verdict("muon_step", step).mistake


def test_a_mistake_keeps_its_name_where_the_numbers_are_of_another_kind():
    def step(parameter, gradient, m, rate, beta):
        return written(parameter.double(), gradient.double(), m.double(), rate, beta, ahead=lambda m, g, beta: m)

    assert "no look ahead" in verdict("muon_step", step).mistake


def test_a_weight_decay_of_the_whole_rate_is_named():
    def step(parameter, rate, **given):
        return written((1 - rate) * parameter, rate=rate, **given)

    assert "weight decay" in verdict("muon_step", step).mistake


def test_arguments_stay_as_they_are():
    def in_place(parameter, gradient, m, rate, beta):
        new, m = written(parameter, gradient, m.lerp_(gradient, 0), rate, beta)
        return parameter.copy_(new), m

    assert "changed its argument parameter in place" in verdict("muon_step", in_place).message


# ----------------------------------------------------------------------------------------- the card


def test_the_example_by_hand_on_the_card():
    given = exercises.draw("muon_step")[0]
    parameter, m = exercises.find("muon_step").right(**given)
    assert torch.allclose(parameter.float(), torch.tensor([[0.9802, -0.0921], [0.0921, 1.0198]]), atol=5e-5)
    assert m.tolist() == [[2, 6], [-6, -2]]
    taller = {**given, **{name: torch.cat([given[name], torch.zeros(2, 2)]) for name in ("parameter", "gradient", "m")}}
    further = exercises.find("muon_step").right(**taller)[0][:2] - taller["parameter"][:2]
    assert torch.allclose(further, math.sqrt(2) * (parameter - given["parameter"]))


def test_the_rounds_on_the_card_are_those_of_its_singular_values():
    rows = {0.8: [0.9765, 0.7211, 1.0895, 0.6960, 1.1192], 0.6: [1.1933, 0.9119, 0.8011, 0.9747, 0.7229]}
    for size, after in rows.items():
        for right in after:
            size = quintic(torch.tensor([[size]], dtype=torch.float64)).item()
            assert size == pytest.approx(right, abs=6e-5)
