"""The gold judge, and the statistics of comparing two models: win rate, diversity, blind rating."""

import math
from typing import NamedTuple

import scipy
import torch
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from rlhf_lib.corpus import SEPARATOR


class GoldJudge:
    """Stands in for a person who can rate a million lines: VADER (Hutto and Gilbert 2014), a lexicon with rules.

    The reward model never learns from it; it only measures.
    """

    def __init__(self):
        self.analyzer = SentimentIntensityAnalyzer()

    def score(self, texts):
        """VADER's compound score of each text, (N,) in [-1, 1]: above 0 is positive."""
        return torch.tensor([self.analyzer.polarity_scores(text)["compound"] for text in texts])


class WinRate(NamedTuple):
    """How often the first beats the second, ties as half, and the bounds of the 95 % interval."""

    rate: float
    low: float
    high: float


def win_rate(first, second):
    """How often a completion of `first` scores higher than one of `second`; a tie counts half.

    Every completion is compared with every one of the other side (the Mann-Whitney statistic). The interval is 1.96
    standard errors wide on either side, with the standard error of DeLong et al. 1988.

    Args:
        first, second: (N,) and (M,) scores, at least 2 each.
    """
    first, second = torch.as_tensor(first, dtype=torch.float64), torch.as_tensor(second, dtype=torch.float64)
    if len(first) < 2 or len(second) < 2:
        raise ValueError(f"a win rate needs at least 2 scores on each side, got {len(first)} and {len(second)}")
    wins = (first[:, None] > second).double() + 0.5 * (first[:, None] == second)  # (N, M)
    rate = wins.mean().item()
    error = math.sqrt(wins.mean(1).var().item() / len(first) + wins.mean(0).var().item() / len(second))
    return WinRate(rate, max(0.0, rate - 1.96 * error), min(1.0, rate + 1.96 * error))


def distinct_n(texts, n=2):
    """Distinct-n (Li et al. 2016, section 5): different n-grams of words over all n-grams, in [0, 1].

    Texts with more words repeat themselves more; compare sets of like length and number only. 0 when there is no n-gram.
    """
    grams = [gram for text in texts for gram in zip(*(text.lower().split()[start:] for start in range(n)))]
    return len(set(grams)) / len(grams) if grams else 0.0


def separators(texts):
    """Blank lines per text. A policy that games its reward may fill its completions with them, or avoid them."""
    return sum(text.count(SEPARATOR) for text in texts) / len(texts)


def mean_interval(values):
    """(mean, low, high): the mean of (N,) numbers and its 95 % interval from Student's t."""
    values = torch.as_tensor(values, dtype=torch.float64)
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, got {len(values)}")
    mean = values.mean().item()
    half = scipy.special.stdtrit(len(values) - 1, 0.975) * values.std().item() / math.sqrt(len(values))
    return mean, mean - half, mean + half


WRITERS = ("base", "policy", "negative")  # who may have written what is rated blind; a negative model is not always there


def blind_rating(ratings):
    """What a blind rating says: raters saw shuffled samples of two or three models without their source.

    Args:
        ratings: a list of dicts with `sample` (its id), `source` ("base", "policy" or "negative"), `rater`, and the scores
            `positivity` and `sense`, each from 1 to 5.

    Returns:
        A dict with, for each score, `base`, `policy` and, if there are ratings of it, `negative` as (mean, low, high), and
        `win_rate` of policy over base, where a sample that several raters read counts once, with their mean; and
        `correlation`, between raters' positivity on samples that two or more rated (None when there are none).
    """
    for number, rating in enumerate(ratings, 1):
        for score in ("positivity", "sense"):
            if rating[score] not in (1, 2, 3, 4, 5):
                raise ValueError(f"rating {number}: {score} must be 1, 2, 3, 4 or 5, got {rating[score]!r}")
        if rating["source"] not in WRITERS:
            raise ValueError(f"rating {number}: source must be one of {', '.join(WRITERS)}, got {rating['source']!r}")
    found = [side for side in WRITERS if side != "negative" or any(rating["source"] == side for rating in ratings)]
    result = {}
    for score in ("positivity", "sense"):
        sides = {side: sample_means([r for r in ratings if r["source"] == side], score) for side in found}
        result[score] = {side: mean_interval(values) for side, values in sides.items()}
        result[score]["win_rate"] = win_rate(sides["policy"], sides["base"])
    pairs = []
    ratings = sorted(ratings, key=lambda rating: str(rating["rater"]))  # a rater is on the same side of all pairs with another
    for place, rating in enumerate(ratings):
        others = [o for o in ratings[place + 1 :] if o["sample"] == rating["sample"] and o["rater"] != rating["rater"]]
        pairs += [(rating["positivity"], other["positivity"]) for other in others]
    result["correlation"] = correlation(pairs)
    return result


def sample_means(ratings, score):
    """The mean `score` of each sample over its raters, a list."""
    by_sample = {}
    for rating in ratings:
        by_sample.setdefault(rating["sample"], []).append(rating[score])
    return [sum(scores) / len(scores) for scores in by_sample.values()]


def correlation(pairs):
    """Pearson's correlation of pairs of numbers; None for fewer than 2 pairs or when one side never varies."""
    if len(pairs) < 2:
        return None
    x, y = torch.tensor(pairs, dtype=torch.float64).T
    if (x == x[0]).all() or (y == y[0]).all():
        return None
    return torch.corrcoef(torch.stack([x, y]))[0, 1].item()


def best_of_n_kl(n):
    """KL(best-of-n || base) in nats, log n - (n - 1) / n (Stiennon et al. 2020, appendix G.3); for n = 4 it is .6363."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def best_of_n_mean(proxy, gold, n):
    """The mean gold of best-of-n chosen by the proxy, over all ways to take n of N samples (Nakano et al. 2021, appendix I).

    The sample with the i-th lowest proxy is the best of its n in C(i - 1, n - 1) of the C(N, n) ways.

    Args:
        proxy, gold: (N,) scores of the same samples, N at least n.
    """
    proxy, gold = torch.as_tensor(proxy, dtype=torch.float64), torch.as_tensor(gold, dtype=torch.float64)
    N = len(proxy)
    if not 1 <= n <= N:
        raise ValueError(f"n must lie between 1 and the {N} samples, got {n}")
    rank = torch.arange(n, N + 1, dtype=torch.float64)  # those below n are never the best
    ways = torch.lgamma(rank) - torch.lgamma(rank - n + 1)  # log of (i - 1)! / (i - n)!
    return ((ways - ways.logsumexp(0)).exp() @ gold[proxy.argsort()][n - 1 :]).item()
