"""Chapter 09's checks: correct answers written another way pass, and what is special about best-of-n and small samples."""

import bisect
import math
import re
import statistics
from collections import defaultdict

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from rlhf_lib import exercises, judge
from rlhf_lib.exercises import verdict


def win_rate(first, second):
    ordered = second.sort().values
    below = torch.searchsorted(ordered, first, right=False)
    up_to = torch.searchsorted(ordered, first, right=True)
    return ((below + up_to) / 2 / len(second)).mean().item()


def mean_interval(values):
    xs = values.tolist()
    mean, error = statistics.fmean(xs), statistics.stdev(xs) / math.sqrt(len(xs))
    reach = -stats.t.ppf(0.025, df=len(xs) - 1) * error
    return mean, mean - reach, mean + reach


def best_of_n(rewards, n):
    whole = rewards[: len(rewards) - len(rewards) % n]
    places = torch.arange(len(whole)).reshape(-1, n)
    return places.gather(1, whole.reshape(-1, n).max(1, keepdim=True).indices).squeeze(1)


def best_of_n_kl(n):
    return 1 / n - 1 - math.log(1 / n)


def best_of_n_gold(proxy, gold, n):
    """The weights by a recursion from the top rank down, without a binomial coefficient."""
    by_rank = gold[proxy.argsort(descending=True)].tolist()
    share, total, size = 1.0, 0.0, len(by_rank)
    for rank, score in enumerate(by_rank):  # share: of the groups that hold none of the better samples
        left = size - rank
        total += share * n / left * score
        share *= max(left - n, 0) / left
    return total


def distinct_n(texts, n):
    found = []
    for text in texts:
        words = text.lower().split()
        found += zip(*(words[shift:] for shift in range(n)))
    return len(set(found)) / max(1, len(found))


def separator_ratio(policy_texts, base_texts):
    own, base = (sum(len(re.findall("\n\n", text)) for text in texts) for texts in (policy_texts, base_texts))
    return None if base == 0 else own * len(base_texts) / (len(policy_texts) * base)


def fit_gold(kl, gold):
    """The normal equations of the two columns, solved by Cramer's rule."""
    d = kl.double().clamp(min=0).sqrt()
    a, b, c = (d**2).sum(), -(d**3).sum(), (d**4).sum()
    p, q = (d * gold).sum(), -(d**2 * gold).sum()
    alpha, beta = (p * c - q * b) / (a * c - b * b), (a * q - b * p) / (a * c - b * b)
    return alpha.item(), beta.item(), (alpha / beta / 2).square().item()


def rating_table(ratings, score):
    raters = defaultdict(list)
    for one in ratings:
        raters[one["source"], one["sample"]].append(one[score])
    sides = {side: [statistics.fmean(xs) for (source, _), xs in raters.items() if source == side] for side in ("base", "policy")}
    means = {side: statistics.fmean(xs) for side, xs in sides.items()}
    signs = [(policy > base) - (policy < base) for policy in sides["policy"] for base in sides["base"]]
    return {**means, "win_rate": (1 + statistics.fmean(signs)) / 2}


ALTERNATIVES = {
    "win_rate": win_rate,
    "mean_interval": mean_interval,
    "best_of_n": best_of_n,
    "best_of_n_kl": best_of_n_kl,
    "best_of_n_gold": best_of_n_gold,
    "distinct_n": distinct_n,
    "separator_ratio": separator_ratio,
    "fit_gold": fit_gold,
    "rating_table": rating_table,
}


def ranked_win_rate(first, second):
    ranks = stats.rankdata(torch.cat([first, second]).numpy())[: len(first)]
    return torch.tensor((ranks.sum() - len(first) * (len(first) + 1) / 2) / (len(first) * len(second)))


def interval_of_a_list(values):
    deviation = values.std(correction=0) / math.sqrt(len(values) - 1)
    return [values.mean(), *(values.mean() + side * stats.t.isf(0.025, len(values) - 1) * deviation for side in (-1, 1))]


def gold_by_log_gamma(proxy, gold, n):
    i = torch.arange(n - 1, len(gold), dtype=torch.float64)  # the lower ranks win no group

    def log_comb(top, k):
        top, k = torch.as_tensor(top, dtype=torch.float64), torch.as_tensor(k, dtype=torch.float64)
        return torch.lgamma(top + 1) - torch.lgamma(k + 1) - torch.lgamma(top - k + 1)

    return ((log_comb(i, n - 1) - log_comb(len(gold), n)).exp() * gold[proxy.argsort()][n - 1 :]).sum()


def fit_without_the_base(kl, gold):
    """Points at distance 0 say nothing about a curve that goes through 0."""
    d, gold = kl[kl > 0].sqrt(), gold[kl > 0]
    alpha, minus_beta = torch.linalg.lstsq(torch.stack([d, d.square()], 1), gold[:, None]).solution[:, 0].tolist()
    return alpha, -minus_beta, (alpha / minus_beta / 2) ** 2


OTHERS = [
    ("win_rate", ranked_win_rate),
    ("mean_interval", lambda values: tuple(float(x) for x in interval_of_a_list(values))),
    (
        "best_of_n",
        lambda rewards, n: torch.tensor([int(g.argmax()) + i * n for i, g in enumerate(rewards.split(n)) if len(g) == n]),
    ),
    ("best_of_n_gold", gold_by_log_gamma),
    ("fit_gold", fit_without_the_base),
    ("distinct_n", lambda texts, n: distinct_n(list(reversed(texts)), n)),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name, function", [*ALTERNATIVES.items(), *OTHERS])
def test_every_correct_answer_passes(name, function, seed):
    assert verdict(name, function, seed).passed


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_what_a_mistake_raises_is_meant(name):
    """A slip in a row of the table would raise everywhere, and be told of everything that raises the same."""
    inputs = exercises.draw(name)
    for sentence, functions in exercises.find(name).mistakes.items():
        for outputs in (exercises.answer(name, function, inputs) for function in functions):
            raised = [output["kind"] for output in outputs if exercises.is_record(output)]
            meant = {"ZeroDivisionError", "OverflowError", "IndexError", "ArithmeticError"}
            if "does not fit into rows" in sentence:
                meant.add("RuntimeError")  # of view and stack
            if "fewer than 64 bits" in sentence:
                meant.add("TypeError")
            if "its mean" in sentence or "means or medians" in sentence:
                meant.add("RuntimeError")  # of a mean of whole numbers
            assert set(raised) <= meant, sentence


def test_the_course_s_own_judge_passes():
    assert verdict("win_rate", lambda first, second: judge.win_rate(first, second).rate).passed
    for name in ("mean_interval", "best_of_n_kl", "distinct_n"):
        assert verdict(name, getattr(judge, name)).passed


def test_the_worked_examples():
    right = {name: exercises.find(name).right for name in ALTERNATIVES}
    assert right["win_rate"](torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.0, 2.0, 2.0])) == pytest.approx(6 / 9)
    assert right["best_of_n_kl"](4) == pytest.approx(0.6363, abs=1e-4)
    first = exercises.draw("best_of_n_gold")[0]
    assert right["best_of_n_gold"](**first) == pytest.approx(2.0)
    assert right["distinct_n"](["my love my love"], 2) == pytest.approx(2 / 3)
    assert right["fit_gold"](**exercises.draw("fit_gold")[0]) == pytest.approx((4.0, 1.0, 4.0))


def test_the_best_of_n_formula_is_the_kl_that_simulation_finds():
    n, draws = 4, 200_000
    best = torch.rand(draws, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).amax(1)
    simulated = (n * best ** (n - 1)).log().mean().item()
    assert exercises.find("best_of_n_kl").right(n) == pytest.approx(simulated, abs=0.01)


def test_the_unbiased_estimate_beats_one_cut_into_groups():
    generator = torch.Generator().manual_seed(0)
    once = exercises.find("best_of_n_gold").mistakes
    (once,) = next(functions for sentence, functions in once.items() if "cuts the samples into groups once" in sentence)
    found = {"once": [], "all": []}
    for _ in range(100):
        proxy = torch.rand(64, generator=generator)
        gold = proxy + 0.3 * torch.randn(64, generator=generator)
        found["once"].append(once(proxy, gold, 8))
        found["all"].append(best_of_n_gold(proxy, gold, 8))
    assert statistics.fmean(found["once"]) == pytest.approx(statistics.fmean(found["all"]), abs=0.03)
    assert statistics.stdev(found["all"]) < 0.8 * statistics.stdev(found["once"])


def test_a_hidden_division_by_zero_is_named():
    def careless(policy_texts, base_texts):
        rates = [sum(text.count("\n\n") for text in texts) / len(texts) for texts in (policy_texts, base_texts)]
        return rates[0] / rates[1]

    assert "return None" in verdict("separator_ratio", careless).message


def test_the_smallest_input_that_fails_is_the_one_shown():
    found = verdict("best_of_n", lambda rewards, n: torch.tensor([1, 2]))
    assert found.arguments["n"] == 1  # right on the first input
    assert "The smallest input that fails" in found.message
    constant = verdict("best_of_n_kl", lambda n: 0.0)
    assert constant.arguments == {"n": 2}  # best-of-1 is 0 from the base


def test_places_that_look_nothing_up_are_refused():
    message = verdict("best_of_n", lambda rewards, n: best_of_n(rewards, n).float()).message
    assert "return int64" in message


def clipped_nowhere(solve):
    def fit(kl, gold):
        d = kl.sqrt()
        alpha, beta = solve(torch.stack([d, -d.square()], 1), gold)
        return float(alpha), float(beta), float((alpha / (2 * beta)) ** 2)

    return fit


@pytest.mark.parametrize(
    "solve",
    [
        lambda columns, gold: torch.linalg.lstsq(columns, gold[:, None]).solution[:, 0],
        lambda columns, gold: np.linalg.lstsq(columns.numpy(), gold.numpy(), rcond=None)[0],
        lambda columns, gold: linalg.lstsq(columns.numpy(), gold.numpy())[0],
        lambda columns, gold: torch.linalg.pinv(columns) @ gold,
        lambda columns, gold: torch.linalg.solve(columns.T @ columns, columns.T @ gold),
    ],
)
def test_a_root_of_less_than_nothing_is_named_however_it_breaks(solve, capfd):
    assert "below 0" in verdict("fit_gold", clipped_nowhere(solve)).message
    assert capfd.readouterr() == ("", "")  # MKL complains of a NaN in lines of its own
    assert "below 0" not in verdict("fit_gold", lambda kl, gold: clipped_nowhere(solve)(kl.clamp(min=0), gold - 1)).message


def test_thousands_of_samples_need_whole_numbers():
    def in_floats(proxy, gold, n):
        top = float(math.comb(len(gold), n))
        return sum(math.comb(i, n - 1) / top * score for i, score in enumerate(gold[proxy.argsort()].tolist()))

    assert "become floats" in verdict("best_of_n_gold", in_floats).message


def begins_at_zero(rewards, n):
    winners = []
    for group in range(len(rewards) // n):
        best, place = 0.0, group * n
        for i in range(group * n, (group + 1) * n):
            if rewards[i] > best:
                best, place = rewards[i], i
        winners.append(place)
    return torch.tensor(winners)


def by_bisection(first, second):
    second = second.tolist()
    ranks = [bisect.bisect_left(second, x) + bisect.bisect_right(second, x) for x in first.tolist()]
    return sum(ranks) / 2 / len(first) / len(second)


@pytest.mark.parametrize(
    "name, function, says",
    [
        ("win_rate", by_bisection, "in ascending order"),
        ("best_of_n", begins_at_zero, "begin at 0"),
        ("best_of_n", lambda rewards, n: rewards[: len(rewards) // n * n].topk(len(rewards) // n).indices, "best of all samples"),
        ("best_of_n", lambda rewards, n: rewards.reshape(-1, n).argmax(1) + torch.arange(0, len(rewards), n), "is not cut off"),
        ("separator_ratio", lambda policy_texts, base_texts: exercises.find("separator_ratio").formula(
            policy_texts, base_texts, of=lambda p, b: p // b), "whole number"),
    ],
)  # fmt: skip
def test_frequent_mistakes_have_their_names(name, function, says):
    assert says in verdict(name, function).mistake
