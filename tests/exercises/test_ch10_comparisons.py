"""Chapter 10's checks: answers written another way pass, named mistakes get their own names, and what is special about each."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from rlhf_lib import comparisons, exercises
from rlhf_lib.exercises import answer, verdict
from rlhf_lib.exercises.ch10_comparisons import orders_by_place
from rlhf_lib.trainers import preference

exercises.load()


def speech_mask(tokens, line_break):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for row, keep in zip(tokens.tolist(), mask):
        for place in range(len(row) - 1):
            if row[place] == row[place + 1] == line_break:
                keep[place + 2 :] = False
                break
    return mask


def rollout_prompts(count, size, rollouts, generator):
    found = torch.zeros(0, dtype=torch.long)
    while len(found) < rollouts * size:
        found = torch.hstack([found, torch.randperm(count, generator=generator)])
    return found[: rollouts * size].reshape(rollouts, -1)


def held_out_prompts(prompts, share, generator):
    names, inverse = torch.unique(prompts, return_inverse=True)
    rank = torch.randperm(len(names), generator=generator).argsort()  # the place of each prompt in the order
    return rank[inverse] < min(max(round(share * len(names)), 1), len(names) - 1)


def same_verdict(first, second, swapped):
    second = second * (1 - 2 * swapped.long())
    both = first.abs() * second.abs()
    return ((first - second) == 0).double().mean(), ((first == second) * both).sum() / both.sum()


def longer_accuracy(pairs):
    counts = torch.tensor([[len(re.findall(r"\S+", text)) for text in pair] for pair in pairs])
    return (0.5 + 0.5 * (counts[:, 0] - counts[:, 1]).sign()).mean().item()


def strengths(wins):
    wins = wins.double()
    s = torch.zeros(len(wins), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([s], max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -(wins * F.logsigmoid(s[:, None] - s)).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return (s - s.mean()).detach()


def ranked_pairs(ranks):
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    found = []
    while order:
        best = order.pop(0)
        found += [[best, other] for other in order if ranks[other] > ranks[best]]
    return found


def reliability(margins, bins):
    confidence, right = margins.abs().sigmoid(), 0.5 + 0.5 * margins.sign()
    rows = []
    for b in range(bins):
        low, high = 0.5 + b / (2 * bins), 0.5 + (b + 1) / (2 * bins)
        inside = (confidence >= low) & ((confidence < high) | (b == bins - 1))
        n = int(inside.sum())
        rows.append([n, confidence[inside].mean().item(), right[inside].mean().item()] if n else [0, 0, 0])
    return torch.tensor(rows, dtype=torch.float32)


def ceiling(agreement, accuracy):
    if not agreement > 0.5:
        raise ValueError("they say nothing")
    spread = math.sqrt(2 * agreement - 1)  # 2 p - 1
    return [0.5 + spread / 2, 0.5 + (accuracy - 0.5) / spread]


ALTERNATIVES = {
    one.__name__: one
    for one in (
        speech_mask, rollout_prompts, held_out_prompts, same_verdict, longer_accuracy, strengths, ranked_pairs, reliability,
        ceiling,
    )
}  # fmt: skip
HERE = [name for name, one in exercises.EXERCISES.items() if one.number.startswith("10.")]


def test_every_exercise_of_the_chapter_has_another_answer_and_five_named_mistakes():
    assert list(ALTERNATIVES) == HERE
    assert all(len(exercises.EXERCISES[name].mistakes) >= 5 for name in HERE)


@pytest.mark.parametrize("name", ALTERNATIVES)
@pytest.mark.parametrize("seed", [0, 5])
def test_every_correct_answer_passes(name, seed):
    found = verdict(name, ALTERNATIVES[name], seed)
    assert found.passed, found.message


def test_the_cards_examples_by_hand():
    """The numbers that stand on the cards."""
    wanted = {
        "speech_mask": torch.tensor([[True, True, True, False]]),
        "same_verdict": [0.75, 1.0],
        "longer_accuracy": 1.0,
        "strengths": torch.tensor([math.log(3) / 2, -math.log(3) / 2]),
        "ranked_pairs": [[1, 0]],
        "reliability": torch.tensor([[3, 1 / (1 + math.exp(-1)), 2 / 3]]),
        "ceiling": [0.9, 0.8],
    }
    for name, right in wanted.items():
        (output,) = answer(name, ALTERNATIVES[name], exercises.draw(name)[:1])
        assert exercises.equal(output, right, 1e-5), name


def test_the_library_agrees_on_length(monkeypatch):
    pairs = [("a b c", "d"), ("a", "b c"), ("x y", "z w"), ("e f", "g")]
    rankings = [preference.Ranking([1], [text.split() for text in pair]) for pair in pairs]
    monkeypatch.setattr(preference, "score", lambda model, rows, states=None: torch.zeros(len(rows)))
    mine = exercises.find("longer_accuracy").right(pairs)
    assert mine == preference.evaluate(None, rankings)["length_accuracy"] == (1 + 0 + 0.5 + 1) / 4


def test_the_library_agrees_on_agreement():
    sides = [("first", "second"), ("second", "first"), ("tie", "tie"), ("first", "tie"), ("first", "first")]
    swaps = [True, True, False, True, False]
    rows = [
        [comparisons.Comparison("p", f"a{n}", f"b{n}", one, "r1", {"prompt": "p"}) for n, (one, _) in enumerate(sides)],
        [
            comparisons.Comparison("p", *((f"b{n}", f"a{n}") if swap else (f"a{n}", f"b{n}")), other, "r2", {"prompt": "p"})
            for n, ((_, other), swap) in enumerate(zip(sides, swaps))
        ],
    ]
    said = comparisons.agreement(*rows)
    number = {"first": 1, "second": -1, "tie": 0}
    first, second = (torch.tensor([number[pair[side]] for pair in sides]) for side in (0, 1))
    mine = exercises.find("same_verdict").right(first, second, torch.tensor(swaps))
    assert mine == (said["agreement"], said["decided_agreement"]) == (0.8, 1.0)


def test_reliability_of_the_oracle_gives_the_library_s_calibration_error(monkeypatch):
    margins = torch.randn(200, generator=torch.Generator().manual_seed(1))
    rankings = [preference.Ranking([1], [[2], [3]]) for _ in margins]
    scores = torch.stack([margins, torch.zeros(200)], 1).flatten()
    monkeypatch.setattr(preference, "score", lambda model, rows, states=None: scores)
    n, confidence, right = exercises.find("reliability").right(margins, 5).T  # five bins of [0.5, 1] are ten of [0, 1]
    mine = (n * (right - confidence).abs()).sum() / 200
    assert abs(mine.item() - preference.evaluate(None, rankings)["calibration_error"]) < 1e-5


def test_a_strength_does_not_depend_on_who_was_met():
    """Three players in a chain of unequal numbers of games: the odds of neighbours are the pairs' own."""
    wins = torch.tensor([[0, 30, 0], [10, 0, 2], [0, 1, 0]])
    s = exercises.find("strengths").right(wins)
    assert abs((s[0] - s[1]).item() - math.log(3)) < 1e-6 and abs((s[1] - s[2]).item() - math.log(2)) < 1e-6


def test_an_end_that_is_searched_for_as_one_break_gets_its_name():
    found = verdict(
        "speech_mask", lambda tokens, line_break: (tokens == line_break).int().cumsum(1) - (tokens == line_break).int() < 1
    )
    assert "a single line break ends nothing" in found.message


def zermelo(rounds, scaled=lambda p: p / p.log().mean().exp(), diagonal=True):
    """Zermelo's iteration, player by player, with the games against oneself or, as most write it, without."""

    def strengths(wins):
        K = len(wins)
        p = torch.ones(K, dtype=torch.float64)
        for _ in range(rounds):
            others = [[j for j in range(K) if diagonal or j != i] for i in range(K)]
            p = torch.stack([wins[i, o].sum() / ((wins[i, o] + wins[o, i]) / (p[i] + p[o])).sum() for i, o in enumerate(others)])
            p = scaled(p)
        return p.log()

    return strengths


@pytest.mark.parametrize("seed", [0, 5, 7])
def test_nobody_plays_against_themselves_and_everyone_has_beaten_whom_they_met(seed):
    for one in exercises.draw("strengths", seed):
        wins = one["wins"]
        assert not wins.diagonal().any() and (wins >= 0).all() and torch.equal(wins > 0, wins.T > 0)
    assert verdict("strengths", zermelo(200, diagonal=False), seed).passed


def each_its_own(count, size, rollouts, generator):
    return torch.stack([torch.randperm(count, generator=generator)[:size] for _ in range(rollouts)])


def rest_lost(count, size, rollouts, generator):
    rows, order = [], []
    for _ in range(rollouts):
        if len(order) < size:
            order = torch.randperm(count, generator=generator)
        rows.append(order[:size])
        order = order[size:]
    return torch.stack(rows)


def of_all_numbers(prompts, share, generator):
    P = int(prompts.max()) + 1
    return torch.isin(prompts, torch.randperm(P, generator=generator)[: min(max(1, round(share * P)), P - 1)])


def unbounded(prompts, share, generator):
    different = prompts.unique()
    n = round(share * len(different))
    return torch.isin(prompts, different[torch.randperm(len(different), generator=generator)[:n]])


def without_ties(ranks):
    return [(i, j) for i in range(len(ranks)) for j in range(i + 1, len(ranks)) if ranks[i] != ranks[j]]


def uphill(wins):
    s = torch.zeros(len(wins), dtype=torch.float64)
    for _ in range(200):
        s += 0.01 * (wins - (wins + wins.T) * (s[:, None] - s).sigmoid()).sum(1)
    return s - s.mean()


def numbers_below(prompts, share, generator):
    different = prompts.unique()
    n = min(max(1, round(share * len(different))), len(different) - 1)
    return torch.isin(prompts, different[torch.randperm(len(different), generator=generator) < n])


def over_all(first, second, swapped):
    second = torch.where(swapped, -second, second)
    same = first == second
    return same.float().mean(), (same & (first != 0) & (second != 0)).sum() / len(first)


def decided_alike(first, second, swapped):
    same = first == torch.where(swapped, -second, second)
    return same.float().mean(), same[first * torch.where(swapped, -second, second) > 0].float().mean()


def replaced(first, second, swapped):
    turned = second.clone()
    turned[swapped & (turned == 1)] = -1
    turned[swapped & (turned == -1)] = 1
    same = (first == turned).float()
    return same.mean(), same[(first != 0) & (turned != 0)].mean()


def or_half(pairs):
    return sum(len(chosen.split()) > len(rejected.split()) or 0.5 for chosen, rejected in pairs) / len(pairs)


def by_re_split(pairs):
    counts = [[len(re.split(r"\s+", text.strip())) for text in pair] for pair in pairs]
    return sum((a > b) + 0.5 * (a == b) for a, b in counts) / len(counts)


def rounded_down(count, size, rollouts, generator):
    orders = [torch.randperm(count, generator=generator) for _ in range(rollouts * size // count)]
    return torch.cat(orders)[: rollouts * size].reshape(rollouts, size)


def all_at_once(count, size, rollouts, generator):
    numbers = torch.arange(count).repeat(math.ceil(rollouts * size / count))
    return numbers[torch.randperm(len(numbers), generator=generator)][: rollouts * size].view(rollouts, size)


def unguarded(least=lambda agreement: True, root=math.sqrt, kept=lambda q: q):
    def ceiling(agreement, accuracy):
        if not least(agreement):
            raise ValueError("they say nothing")
        p = 0.5 + root(2 * agreement - 1) / 2
        return p, kept((accuracy - 1 + p) / (p - (1 - p)))

    return ceiling


NAMED = [
    ("rollout_prompts", "every rollout begins a new order", each_its_own),
    ("rollout_prompts", "the rest of an epoch is thrown away", rest_lost),
    ("rollout_prompts", "the rest of an epoch is thrown away", orders_by_place),
    ("held_out_prompts", "one of all numbers up to the largest", of_all_numbers),
    ("held_out_prompts", "at least one is on either side", unbounded),
    ("ranked_pairs", "stand in their order already", without_ties),
    ("strengths", "not yet at the maximum", uphill),
    ("held_out_prompts", "the places at which the order has a number below n", numbers_below),
    ("same_verdict", "divided by the number of all pairs", over_all),
    ("strengths", "not yet at the maximum", zermelo(20)),
    ("strengths", "take the mean of the logarithms away", zermelo(300, scaled=lambda p: p / p.mean())),
    ("same_verdict", "always 1", decided_alike),
    ("same_verdict", "both come out as -1 (or as 1)", replaced),
    ("longer_accuracy", "a shorter chosen text", or_half),
    ("longer_accuracy", "an empty text", by_re_split),
    ("strengths", "the logarithm of the number", lambda wins: (s := wins.sum(1).double().log()) - s.mean()),
    ("rollout_prompts", "number is rounded down", rounded_down),
    ("rollout_prompts", "shuffled at once", all_at_once),
    ("ceiling", "raise ValueError", unguarded()),
    ("ceiling", "raise ValueError", unguarded(least=lambda agreement: agreement >= 0.5)),
    ("ceiling", "raise ValueError", unguarded(root=lambda x: x**0.5)),
    ("ceiling", "raise ValueError", unguarded(root=lambda x: torch.tensor(x).sqrt())),
    ("ceiling", "at most at 1", unguarded(least=lambda agreement: agreement > 0.5, kept=lambda q: min(q, 1))),
]


@pytest.mark.parametrize("name, words, wrong", NAMED)
@pytest.mark.parametrize("seed", [0, 7])
def test_what_learners_write_is_named(name, words, wrong, seed):
    found = verdict(name, wrong, seed)
    assert not found.passed and words in found.message.split("\n")[0]
