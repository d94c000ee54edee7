"""Chapter 09: the table of a blind rating."""

import itertools
import statistics
from functools import partial, reduce

import numpy as np
import scipy
import torch

from rlhf_lib.exercises.ch09_over_optimisation import NOT_PAIRS, between, by_place, decided_rate, pair_rate
from rlhf_lib.exercises.declare import Exercise

# ----------------------------------------------------------------------------------------- 9.9


def rating(sample, source, rater, positivity, sense=3):
    return {"sample": sample, "source": source, "rater": rater, "positivity": positivity, "sense": sense}


def draw_rating_table(generator):
    two = [rating("base-0", "base", "me", 2, 5), rating("policy-0", "policy", "me", 4, 1)]
    yield {"ratings": two, "score": "positivity"}
    yield {"ratings": two, "score": "sense"}
    yield {"ratings": [rating("0", "base", "me", 3), rating("0", "base", "me", 5), two[1]], "score": "positivity"}
    again = [rating("0", "base", rater, score) for rater, score in (("me", 1), ("me", 1), ("you", 5))]
    yield {"ratings": [*again, two[1]], "score": "positivity"}
    thirds = [("base", 1), ("base", 2), ("base", 5), ("policy", 1), ("policy", 5), ("policy", 2)]  # the same means, by two ways
    ratings = [rating("0", source, rater, score) for (source, score), rater in zip(thirds, 2 * ("me", "you", "she"))]
    yield {"ratings": ratings, "score": "positivity"}
    alone = [rating("1", "base", "me", 5), rating("2", "policy", "me", 3)]
    more = [rating("0", "policy", "you", 4), rating("0", "base", "me", 1), rating("0", "base", "you", 4)]
    yield {"ratings": [*more, *alone], "score": "positivity"}
    for count, score in ((2, "positivity"), (3, "sense"), (5, "sense")):
        ratings = [*alone, rating("7", "policy", "you", 1, 2)]
        for sample, source in itertools.product("034589"[:count], ("base", "policy")):
            for rater in ("me", "you", "she", "he")[: between(generator, 1, 4)]:
                scores = 1 + torch.randint(5, (2,), generator=generator)
                ratings.append(rating(sample, source, rater, *scores.tolist()))
        order = torch.randperm(len(ratings), generator=generator).tolist()
        yield {"ratings": [ratings[place] for place in order], "score": score}


def table_by_ranks(ratings, score):
    scores = {"base": {}, "policy": {}}
    for one in ratings:
        scores[one["source"]].setdefault(one["sample"], []).append(one[score])
    base, policy = ([float(np.mean(xs)) for xs in scores[side].values()] for side in ("base", "policy"))
    wins = scipy.stats.mannwhitneyu(policy, base).statistic / (len(policy) * len(base))
    return {"base": float(np.mean(base)), "policy": float(np.mean(policy)), "win_rate": float(wins)}


def table(
    ratings, score, *, column=lambda score: score, key=lambda one: (one["source"], one["sample"]), middle=statistics.fmean,
    wins=pair_rate, overall=statistics.fmean, sides=list,
):  # fmt: skip
    gathered = {"base": {}, "policy": {}}
    for one in ratings:
        gathered[one["source"]].setdefault(key(one), []).append(one[column(score)])
    base, policy = (list(sides(middle(xs) for xs in gathered[side].values())) for side in ("base", "policy"))
    rate = wins(*(torch.tensor(side, dtype=torch.float64) for side in (policy, base)))
    return {"base": overall(base), "policy": overall(policy), "win_rate": float(rate)}


def by_id_alone(ratings, score, part):
    """The ratings of one sample id, whatever their side, count for all the sides that it has, or for the last, or the first."""
    sides = {}
    for one in ratings:
        sides.setdefault(one["sample"], []).append(one["source"])
    return table([{**one, "source": side} for one in ratings for side in dict.fromkeys(sides[one["sample"]][part])], score)


def by_raters_first(ratings, score):
    """A rater who rates a sample twice counts once, with the mean of both."""
    apart = {}
    for one in ratings:
        apart.setdefault((one["source"], one["sample"], one["rater"]), []).append(one[score])
    return table(
        [rating(sample, source, rater, *2 * (statistics.fmean(xs),)) for (source, sample, rater), xs in apart.items()], score
    )


def in_a_row(ratings, score):
    runs = itertools.groupby(ratings, key=lambda one: (one["source"], one["sample"]))
    return table([{**one, "sample": number} for number, (_, run) in enumerate(runs) for one in run], score)


def running(scores, kind):
    mean = kind(0)
    for number, score in enumerate(scores, 1):
        mean = mean + (score - mean) / number
    return float(mean)


PARTS = slice(None), slice(-1, None), slice(1)
OTHER = {"base": "policy", "policy": "base", "positivity": "sense", "sense": "positivity"}
EACH_RATING = {"key": lambda one: object()}
rating_table = Exercise(
    "9.9", "rating_table", draw=draw_rating_table, right=table_by_ranks, formula=table,
    mistakes={
        "a sample that two rated counts twice: take the mean of its ratings first, so that each sample counts once": [
            EACH_RATING, lambda **given: table(**given) | {"win_rate": table(**given, **EACH_RATING)["win_rate"]},
            lambda **given: table(**given, **EACH_RATING) | {"win_rate": table(**given)["win_rate"]},
        ],
        "this is the other column: look up the score that is asked for": {"column": OTHER.get},
        "one column is written in, positivity or sense: look up the score that is asked for":
            [{"column": lambda score: "positivity"}, {"column": lambda score: "sense"}],
        "base and policy are swapped: the win rate is the policy's over the base": [
            lambda ratings, score: table([one | {"source": OTHER[one["source"]]} for one in ratings], score),
            {"wins": lambda p, b: pair_rate(b, p)},
        ],
        "ties count nothing in the win rate; scores from 1 to 5 tie often, each counts half": {"wins": partial(pair_rate, tie=0)},
        "ties count as a win; a tie counts half": {"wins": partial(pair_rate, tie=1)},
        "the win rate is wins minus losses; it is wins and half the ties": {"wins": partial(pair_rate, tie=0, loss=-1)},
        "the wins are not divided by the number of pairs": [{"wins": partial(pair_rate, over=over)} for over in NOT_PAIRS],
        "ties are left out of the win rate; keep them, each as half a win": {"wins": decided_rate},
        "of a sample that several rated one rating is left: take the mean":
            [{"middle": middle} for middle in (lambda xs: xs[-1], lambda xs: xs[0], max, min)],
        "a rater who rates a sample twice counts with the last score alone; every rating counts": lambda ratings, score:
            table(list({(one["source"], one["sample"], one["rater"]): one for one in ratings}.values()), score),
        "this is the mean of the raters' means; take that of all scores, so that each rating counts as much as any other":
            by_raters_first,
        "equal means differ in the last digit, as running ones do, and are no ties any more: add up the scores, then divide once":
            [{"middle": partial(running, kind=np.float32)}, {"middle": partial(running, kind=float)},
             {"middle": lambda xs: sum(x / len(xs) for x in xs)}],
        "a sample's ratings are summed up; take their mean": {"middle": sum},
        "(mean + next) / 2 is the mean of two ratings alone: of three, the last one weighs half":
            {"middle": partial(reduce, lambda mean, score: (mean + score) / 2)},
        "only a sample's ratings that follow each other are gathered, as by groupby; the list is in any order": in_a_row,
        "samples with the same mean count once, as in a set; each sample counts": {"sides": dict.fromkeys},
        "of a sample's ratings this is the median; take their mean": {"middle": statistics.median},
        "raters who give a sample the same score count once, as in a set; each rating counts":
            {"middle": lambda xs: statistics.fmean(set(xs))},
        "a sample's mean is made a whole number; keep it as it is":
            [{"middle": lambda xs: round(statistics.fmean(xs))}, {"middle": lambda xs: sum(xs) // len(xs)}],
        "samples of base and policy may have the same id: gather the ratings by source and sample":
            [lambda ratings, score, part=part: by_id_alone(ratings, score, part) for part in PARTS],
        "the ratings of one rater are gathered; gather those of one sample": {"key": lambda one: one["rater"]},
        "only one rater's ratings are used; a sample has the mean of all of its ratings":
            lambda ratings, score: table([one for one in ratings if one["rater"] == "me"], score),
        "the median of the samples stands for their mean": {"overall": statistics.median},
        "the win rate is that of the means; compare each with each":
            {"wins": lambda p, b: pair_rate(p.mean()[None], b.mean()[None])},
        "the win rate is over the base's mean; compare each with each": {"wins": lambda p, b: pair_rate(p, b.mean()[None])},
        "the win rate compares samples in the same place only; compare each of one side with each of the other":
            {"wins": by_place},
    },
)  # fmt: skip
