"""Chapter 09's table of a blind rating: what loses a rating has its name."""

import itertools
import statistics

import pytest

from rlhf_lib import exercises
from rlhf_lib.exercises import verdict


def table(base, policy):
    wins = sum((p > b) + 0.5 * (p == b) for p in policy for b in base)
    return {"base": statistics.fmean(base), "policy": statistics.fmean(policy), "win_rate": wins / (len(base) * len(policy))}


def gathered(ratings, score):
    found = {"base": {}, "policy": {}}
    for one in ratings:
        found[one["source"]].setdefault(one["sample"], []).append(one[score])
    return found


def running_means(ratings, score):
    means = {}
    for one in ratings:
        key = one["source"], one["sample"]
        means[key] = (means[key] + one[score]) / 2 if key in means else one[score]
    return table(*([mean for (source, _), mean in means.items() if source == side] for side in ("base", "policy")))


def unsorted_groupby(ratings, score):
    groups = itertools.groupby(ratings, key=lambda one: (one["source"], one["sample"]))
    means = [(source, statistics.fmean(one[score] for one in group)) for (source, _), group in groups]
    return table(*([mean for source, mean in means if source == side] for side in ("base", "policy")))


def sets_of_means(ratings, score):
    found = gathered(ratings, score)
    return table(*({statistics.fmean(scores) for scores in found[side].values()} for side in ("base", "policy")))


@pytest.mark.parametrize(
    "answer, word", [(running_means, "weighs half"), (unsorted_groupby, "groupby"), (sets_of_means, "the same mean count once")]
)
def test_ratings_that_are_lost_are_named(answer, word):
    for seed in range(3):
        assert word in verdict("rating_table", answer, seed).message


def test_the_table_by_hand_on_the_card():
    scores = {"base": {"0": [1, 3], "1": [5]}, "policy": {"0": [2], "1": [4], "2": [5]}}
    ratings = [
        {"sample": sample, "source": source, "rater": "me", "positivity": one, "sense": 1}
        for source, samples in scores.items()
        for sample, some in samples.items()
        for one in some
    ]
    found = exercises.find("rating_table").right(ratings, "positivity")
    assert found == pytest.approx({"base": 3.5, "policy": 11 / 3, "win_rate": 0.5})
