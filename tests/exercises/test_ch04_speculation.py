"""Chapter 04's check of speculative sampling: what comes out has the target's distribution, and mistakes have their names."""

import itertools
from fractions import Fraction

import pytest
import torch

from rlhf_lib.exercises import draw, find, verdict

BELOW_1 = 1 - 2**-24


def pick(weights, number):
    """By a loop over Python's floats; the last token with a weight where rounding leaves none."""
    total, reached, last = sum(weights), 0.0, None
    for token, weight in enumerate(weights):
        reached += weight
        last = token if weight > 0 else last
        if reached > number * total and weight > 0:
            return token
    return last


def by_lists(drafted, draft_probs, target_probs, uniforms, odds=lambda p, q: min(1.0, p / q), left=lambda p, q: max(0.0, p - q)):
    target, draft, numbers = target_probs.tolist(), draft_probs.tolist(), uniforms.tolist()
    tokens = []
    for k, token in enumerate(drafted.tolist()):
        if numbers[k] < odds(target[k][token], draft[k][token]):
            tokens.append(token)
        else:
            weights = [left(p, q) for p, q in zip(target[k], draft[k])]
            return torch.tensor([*tokens, pick(weights if any(weights) else target[k], numbers[-1])])
    return torch.tensor([*tokens, pick(target[-1], numbers[-1])])


def by_masks(drafted, draft_probs, target_probs, uniforms):
    """Without a loop: the draft has a last row of zeros, of which nothing is taken off."""
    K, V = draft_probs.shape
    q, p = draft_probs.gather(1, drafted[:, None])[:, 0], target_probs[:K].gather(1, drafted[:, None])[:, 0]
    n = (uniforms[:K] * q < p).long().cumprod(0).sum()
    padded = torch.cat([draft_probs, draft_probs.new_zeros(1, V)])
    weights = (target_probs[n] - padded[n]).relu()
    weights = torch.where(weights.sum() > 0, weights, target_probs[n])
    ends = weights.cumsum(0)
    point = torch.minimum(uniforms[K] * ends[-1], ends[-1].nextafter(torch.zeros_like(ends[-1])))
    return torch.cat([drafted[:n], torch.searchsorted(ends, point[None], right=True)])


def by_logarithms(drafted, draft_probs, target_probs, uniforms):
    places = torch.arange(len(drafted), device=drafted.device)
    p, q = target_probs[places, drafted].log(), draft_probs[places, drafted].log()
    refused = (uniforms[:-1].log() >= p - q).nonzero()[:, 0].tolist()
    n = refused[0] if refused else len(drafted)
    weights = target_probs[n].clone()
    if refused:
        weights -= torch.minimum(target_probs[n], draft_probs[n])
        weights = weights if weights.any() else target_probs[n]
    ends = (weights.double() / weights.double().sum()).cumsum(0)
    above = ((ends > uniforms[-1]) & (weights > 0)).nonzero()[:, 0]
    token = above[0] if len(above) else weights.nonzero()[-1, 0]
    return torch.cat([drafted[:n], token[None]])


ALTERNATIVES = {"speculate": by_masks}


@pytest.mark.parametrize("function", [by_lists, by_masks, by_logarithms])
@pytest.mark.parametrize("seed", [0, 5, 7])
def test_every_correct_answer_passes(function, seed):
    found = verdict("speculate", function, seed)
    assert found.passed, found.message


def test_the_rounds_by_hand_on_the_card():
    draft = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.3, 0.6, 0.1, 0.0]])
    target = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.2, 0.3, 0.2, 0.3], [0.4, 0.1, 0.3, 0.2]])
    right = find("speculate").right
    for numbers, tokens in (([0.45, 0.55, 0.15], [0, 2]), ([0.45, 0.25, 0.75], [0, 1, 2]), ([0.8, 0.25, 0.75], [1])):
        assert right(torch.tensor([0, 1]), draft, target, torch.tensor(numbers)).tolist() == tokens


def points(count):
    return ((torch.arange(count) + 0.5) / count).tolist()


@pytest.mark.parametrize("function", [find("speculate").right, by_lists, by_masks])
def test_what_comes_out_has_the_targets_distribution(function):
    """All guesses, as often as the draft draws them, each with a grid of numbers that fits the chances."""
    draft = torch.tensor([[4.0, 2, 2], [2, 4, 2]]) / 8
    target = torch.tensor([[2.0, 4, 2], [4, 1, 3], [3, 3, 2]]) / 8
    first, second, third = torch.zeros(3, 3).unbind()
    for guesses in itertools.product(range(3), range(3)):
        weight = float(draft[0, guesses[0]] * draft[1, guesses[1]])
        for numbers in itertools.product(points(4), points(8), points(24)):
            tokens = function(torch.tensor(guesses), draft, target, torch.tensor(numbers)).tolist()
            for place, counts in zip(tokens, (first, second, third)):
                counts[place] += weight
    for counts, row in zip((first, second, third), target):
        assert torch.allclose(counts / counts.sum(), row, atol=1e-3)
    sizes = [float(counts.sum() / first.sum()) for counts in (second, third)]
    assert sizes == pytest.approx([6 / 8, 6 / 8 * 5 / 8], abs=1e-3)  # the sums of the smaller of both chances


def test_draws_meet_every_number_of_accepted_tokens_and_every_edge():
    inputs = draw("speculate")
    sizes = {(len(one["drafted"]), one["target_probs"].shape[1]) for one in inputs}
    left = [len(one["drafted"]) + 1 - len(find("speculate").right(**one)) for one in inputs]
    assert {0, 1, 2, 3, 4} <= set(left) and len(sizes) > 12
    assert any(not len(one["drafted"]) for one in inputs)
    assert {one["target_probs"].dtype for one in inputs} == {torch.float32, torch.float64}
    assert any((one["uniforms"] == BELOW_1).any() for one in inputs) and any((one["uniforms"] == 0).any() for one in inputs)
    for one in inputs:
        places = torch.arange(len(one["drafted"]))
        assert (one["draft_probs"][places, one["drafted"]] > 0).all()
        assert torch.allclose(one["target_probs"].sum(1), torch.ones(()).to(one["target_probs"]), atol=2e-4)


@pytest.mark.parametrize("seed", range(6))
def test_no_number_lies_so_near_a_border_that_rounding_decides(seed):
    for one in draw("speculate", seed)[12:]:
        exact = find("speculate").right(**one)
        for shift in (-1e-5, 1e-5):
            near = {**one, "uniforms": (one["uniforms"] + shift).clamp(0, BELOW_1)}
            assert torch.equal(find("speculate").right(**near), exact)


@pytest.mark.parametrize(
    "function, says",
    [
        (lambda **given: by_lists(**given, odds=lambda p, q: min(1.0, q / p) if p else 1.0), "upside down"),
        (lambda **given: by_lists(**given, odds=lambda p, q: p), "the target's probability alone"),
        (lambda **given: by_lists(**given, left=lambda p, q: p), "drawn from the target's row"),
        (lambda **given: by_lists(**given, left=lambda p, q: abs(p - q)), "|p - q|"),
        (lambda **given: by_lists(**given)[:-1], "one more follows"),
        (lambda **given: by_lists(**given).float(), "no int64"),
    ],
)
def test_frequent_mistakes_have_their_names(function, says):
    assert says in verdict("speculate", function).mistake


def by_parts(refused, accepted, chance=lambda u, p, q: u < p / q):
    """By the rows that a token each is drawn from: at a refusal, of p's rows, q's, and k; and where there is none, of p's."""

    def answer(drafted, draft_probs, target_probs, uniforms):
        tokens, rows = [], accepted(target_probs)
        for k, token in enumerate(drafted.tolist()):
            if not chance(uniforms[k], target_probs[k, token], draft_probs[k, token]):
                rows = refused(target_probs, draft_probs, k)
                break
            tokens.append(token)
        return torch.tensor([*tokens, *(pick(row.tolist(), uniforms[-1]) for row in rows)])

    return answer


def left(p, q, k):
    return (p[k] - q[k]).clamp(min=0) if (p[k] > q[k]).any() else p[k]


@pytest.mark.parametrize(
    "function, says",
    [
        (by_parts(lambda p, q, k: [left(p, q, k)], lambda p: []), "where all are accepted nothing follows"),
        (by_parts(lambda p, q, k: [p[-1]], lambda p: [p[-1]]), "at a refusal the extra token is drawn from row K"),
        (by_parts(lambda p, q, k: [left(p, q, k), p[-1]], lambda p: [p[-1]]), "two tokens follow a refusal"),
        (by_parts(lambda p, q, k: [left(p, q, k), p[k + 1]], lambda p: [p[-1]]), "two tokens follow a refusal"),
        (by_parts(lambda p, q, k: [left(p, q, k)], lambda p: [p[-1]], chance=lambda u, p, q: u > p / q), "turned round"),
        (by_parts(lambda p, q, k: [], lambda p: [p[-1]]), "at a refusal nothing follows"),
        (by_parts(lambda p, q, k: [p[k]], lambda p: [p[-1]]), "drawn from the target's row"),
    ],
)
def test_a_token_too_many_too_few_or_of_another_row_has_its_name(function, says):
    assert verdict("speculate", by_parts(lambda p, q, k: [left(p, q, k)], lambda p: [p[-1]])).passed
    assert says in verdict("speculate", function).mistake


@pytest.mark.parametrize("odds, says", [(lambda p, q: min(1.0, p / q), "0 / 0"), (lambda p, q: q, "the draft's probability q")])
@pytest.mark.parametrize("otherwise", [0, 2, 3])
def test_where_nothing_is_left_p_is_drawn_from_and_a_mistake_keeps_its_name(odds, says, otherwise):
    one = draw("speculate")[11]
    assert find("speculate").right(**one).tolist() == [2, 1]
    assert not (one["target_probs"][1] > one["draft_probs"][1]).any()

    def learner(drafted, draft_probs, target_probs, uniforms):
        tokens = by_lists(drafted, draft_probs, target_probs, uniforms, odds=odds)
        n = len(tokens) - 1
        if n < len(drafted) and not (target_probs[n] > draft_probs[n]).any():
            tokens[n] = otherwise
        return tokens

    assert says in verdict("speculate", learner).mistake


def test_what_is_no_tensor_is_told():
    message = verdict("speculate", lambda **given: by_lists(**given).tolist()).message
    assert "tokens are to be a tensor, int64" in message


def test_the_oracle_rounds_nothing():
    """A third is refused at a third, whatever float it is."""
    third = torch.tensor([[1 / 3, 2 / 3]], dtype=torch.float64)
    draft = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    target = third.repeat(2, 1)
    number = torch.tensor([1 / 3, 0.5], dtype=torch.float64)
    assert Fraction(number[0].item()) == Fraction(third[0, 0].item())
    assert find("speculate").right(torch.tensor([0]), draft, target, number).tolist() == [1]
