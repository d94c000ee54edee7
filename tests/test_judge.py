"""The gold judge on lines that leave no doubt, and the statistics against brute force, scipy and simulations."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlhf_lib import corpus, judge, labels


@pytest.fixture(scope="module")
def gold():
    return judge.GoldJudge()


# ----------------------------------------------------------------------------------------- the gold judge

POSITIVE = [
    "O happy day! I love thee, gentle friend.",
    "Sweet joy and honour crown thy noble heart.",
    "What a beautiful, merry feast!",
]
NEGATIVE = [
    "I hate thee, vile and cruel murderer.",
    "Death, grief and horrible shame destroy us all.",
    "He is a wicked, lying villain!",
]
NEUTRAL = ["The table stands by the wall.", "Enter two Gentlemen, with a letter.", ""]


def test_the_sign_of_obvious_lines(gold):
    assert (gold.score(POSITIVE) > 0.3).all()
    assert (gold.score(NEGATIVE) < -0.3).all()
    assert (gold.score(NEUTRAL) == 0).all()


def test_scores_come_one_a_text_in_order_and_within_one(gold):
    texts = [POSITIVE[0], NEGATIVE[0], NEUTRAL[0], "love " * 500, "hate " * 500]
    scores = gold.score(texts)
    assert scores.shape == (5,)
    assert scores.is_floating_point()
    assert scores.sign().tolist() == [1, -1, 0, 1, -1]
    assert (scores.abs() <= 1).all()
    assert torch.equal(gold.score(texts[::-1]), scores.flip(0))
    assert gold.score([]).shape == (0,)


def test_the_score_is_vaders_compound(gold):
    # "love" has 3.2 in the lexicon, a negation turns it by -.74, and the sum s becomes s / sqrt(s^2 + 15).
    expected = [s / math.sqrt(s * s + 15) for s in (3.2, -0.74 * 3.2)]
    assert gold.score(["love", "not love"]).tolist() == pytest.approx(expected, abs=1e-4)


def test_the_judge_agrees_with_readers_far_more_often_than_chance(gold):
    marked = [label for label in labels.hand_made(corpus.load()) if label.label != "neutral"][::20]
    agreed = {"positive": [], "negative": []}
    for label, score in zip(marked, gold.score([label.text for label in marked]).tolist()):
        if score != 0:
            agreed[label.label].append((score > 0) == (label.label == "positive"))
    assert min(map(len, agreed.values())) > 50
    assert sum(sum(each) / len(each) for each in agreed.values()) / 2 > 0.7  # the mean of both labels: chance is .5


# ----------------------------------------------------------------------------------------- the win rate


def brute_force(first, second):
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in first for b in second) / (len(first) * len(second))


scores = st.lists(st.integers(-3, 3), min_size=2, max_size=8)  # few values, so that ties are common


def test_win_rate_and_interval_by_hand():
    # Wins of 1, 2, 3 over 2 and 0: (0, 1), (.5, 1), (1, 1). Row means .5, .75, 1 with variance .0625; column means .5, 1
    # with variance .125. The standard error is the root of .0625 / 3 + .125 / 2 = .288675.
    rate, low, high = judge.win_rate([1, 2, 3], [2, 0])
    assert rate == pytest.approx(0.75)
    assert low == pytest.approx(0.75 - 1.96 * 0.288675, abs=1e-6)
    assert high == 1.0  # not .75 + .5658


def test_the_interval_is_as_wide_on_both_sides():
    # Wins of 0, 3 over 1, 2, 4: (0, 0, 0), (1, 1, 0). Row means 0, 2/3: variance 2/9. Column means .5, .5, 0: 1/12.
    rate, low, high = judge.win_rate([0.0, 3.0] * 50, [1.0, 2.0, 4.0] * 50)
    # With 50 copies the variances are n/(n-1) of 1/9 (n = 100) and 1/18 (n = 150).
    half = 1.96 * math.sqrt(1 / 9 / 99 + 1 / 18 / 149)
    assert (rate, low, high) == pytest.approx((1 / 3, 1 / 3 - half, 1 / 3 + half), abs=1e-9)


@settings(deadline=None, max_examples=80)
@given(scores, scores)
def test_win_rate_agrees_with_brute_force_and_the_mann_whitney_statistic(first, second):
    rate, low, high = judge.win_rate(first, second)
    assert rate == pytest.approx(brute_force(first, second))
    assert rate == pytest.approx(stats.mannwhitneyu(first, second).statistic / (len(first) * len(second)))
    assert 0 <= low <= rate <= high <= 1


@settings(deadline=None, max_examples=40)
@given(scores, scores)
def test_swapping_the_sides_turns_the_win_rate_round(first, second):
    there, back = judge.win_rate(first, second), judge.win_rate(second, first)
    assert (back.rate, back.low, back.high) == pytest.approx((1 - there.rate, 1 - there.high, 1 - there.low))


@settings(deadline=None, max_examples=20)
@given(scores, scores)
def test_only_the_order_of_scores_counts(first, second):
    stretched = [[math.exp(3 * score) for score in side] for side in (first, second)]
    assert judge.win_rate(*stretched) == pytest.approx(judge.win_rate(first, second))


def test_all_ties_are_half_a_win():
    assert judge.win_rate([1, 1, 1], [1, 1]) == (0.5, 0.5, 0.5)


def test_a_clean_sweep_is_one():
    assert judge.win_rate(torch.tensor([4.0, 5.0]), torch.tensor([1.0, 2.0, 3.0])).rate == 1
    assert judge.win_rate(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0])).rate == 0


@pytest.mark.parametrize("sides", [([1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0]), ([], [1.0, 2.0])])
def test_a_win_rate_needs_two_scores_a_side(sides):
    with pytest.raises(ValueError, match=f"at least 2 scores on each side, got {len(sides[0])} and {len(sides[1])}"):
        judge.win_rate(*sides)


def covered(draw, truth, rounds=600):
    """How often the interval of a simulated comparison holds the true win rate."""
    intervals = [judge.win_rate(*draw()) for _ in range(rounds)]
    return sum(low <= truth <= high for _, low, high in intervals) / rounds


@pytest.mark.parametrize(("few", "many", "spread"), [(40, 60, 1.0), (25, 200, 1.0), (200, 25, 3.0)])
def test_the_interval_holds_the_true_win_rate_nineteen_times_in_twenty(few, many, spread):
    """Normal scores whose difference has a known distribution; sides of different size and spread."""
    generator = torch.Generator().manual_seed(few)

    def draw():
        return 0.5 + torch.randn(few, generator=generator), spread * torch.randn(many, generator=generator)

    truth = stats.norm.cdf(0.5 / math.sqrt(1 + spread**2))
    assert 0.92 <= covered(draw, truth) <= 0.975  # 600 rounds have a standard error of .009


def test_the_interval_holds_the_true_win_rate_with_many_ties():
    generator = torch.Generator().manual_seed(5)
    first, second = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.4, 0.4, 0.2])  # the chances of the scores 0, 1, 2
    chances = torch.outer(first, second)
    truth = (chances.tril(-1).sum() + 0.5 * chances.trace()).item()
    assert truth == pytest.approx(0.67)

    def draw():
        return [side.multinomial(50, replacement=True, generator=generator) for side in (first, second)]

    assert 0.92 <= covered(draw, truth) <= 0.975


# ----------------------------------------------------------------------------------------- diversity


def test_distinct_n_by_hand():
    assert judge.distinct_n(["the cat the cat"]) == pytest.approx(2 / 3)  # the-cat, cat-the, the-cat
    assert judge.distinct_n(["the cat the cat"], n=1) == pytest.approx(2 / 4)
    assert judge.distinct_n(["the cat the cat"], n=3) == 1.0
    assert judge.distinct_n(["a b c", "a b d"]) == pytest.approx(3 / 4)  # repeats count across texts


def test_n_grams_do_not_reach_from_one_text_into_the_next():
    assert judge.distinct_n(["a b", "c a b"]) == pytest.approx(2 / 3)  # a-b, c-a, a-b; with b-c it would be 3/4


def test_case_and_line_breaks_make_no_new_words():
    assert judge.distinct_n(["My lord", "my\n\nLORD"]) == 0.5


@pytest.mark.parametrize("texts", [[], [""], ["alone", "Alas"]])
def test_distinct_n_without_n_grams_is_zero(texts):
    assert judge.distinct_n(texts) == 0.0


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=6).map(" ".join), max_size=4), st.integers(1, 3))
def test_distinct_n_agrees_with_counting(texts, n):
    grams = [tuple(text.split()[i : i + n]) for text in texts for i in range(len(text.split()) - n + 1)]
    expected = len(set(grams)) / len(grams) if grams else 0.0
    assert judge.distinct_n(texts, n) == pytest.approx(expected)
    assert judge.distinct_n(texts + texts, n) == pytest.approx(expected / 2)  # the same again adds nothing new


def test_separators_by_hand():
    assert judge.separators(["ROMEO.\nAy me!\n\nJULIET.\nO!\n\n", "one line\nand another", "\n\n"]) == pytest.approx(3 / 3)
    assert judge.separators(["a\n\nb\n\nc\n\nd", "a"]) == pytest.approx(3 / 2)
    assert judge.separators(["a\nb"]) == 0


# ----------------------------------------------------------------------------------------- intervals and blind rating


def test_mean_interval_by_hand():
    # 1, 2, 3: mean 2, deviation 1, and t of .975 with 2 degrees of freedom is 4.302653.
    assert judge.mean_interval([1, 2, 3]) == pytest.approx((2, 2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20, unique=True))
def test_mean_interval_agrees_with_scipy(values):
    mean, low, high = judge.mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)


def test_equal_values_have_an_interval_of_no_width():
    assert judge.mean_interval(torch.tensor([4, 4, 4])) == (4, 4, 4)


@pytest.mark.parametrize("values", [[], [3.0]])
def test_an_interval_needs_two_values(values):
    with pytest.raises(ValueError, match=f"at least 2 values, got {len(values)}"):
        judge.mean_interval(values)


def rating(sample, source, rater, positivity, sense=3):
    return {"sample": sample, "source": source, "rater": rater, "positivity": positivity, "sense": sense}


# Two raters on samples p and q of the policy and b of the base; a third on c of the base, alone.
RATINGS = [
    rating("p", "policy", "Ann", 5, 2),
    rating("p", "policy", "Ben", 4, 3),
    rating("b", "base", "Ann", 1, 5),
    rating("b", "base", "Ben", 2, 4),
    rating("q", "policy", "Ben", 5, 1),
    rating("q", "policy", "Ann", 3, 2),
    rating("c", "base", "Cleo", 3, 3),
]


def test_a_negative_model_is_rated_beside_the_two_and_leaves_their_figures_alone():
    negative = [{"sample": f"n{n}", "source": "negative", "rater": "a", "positivity": n, "sense": 3} for n in (1, 2)]
    result, without = judge.blind_rating([*RATINGS, *negative]), judge.blind_rating(RATINGS)
    assert result["positivity"]["negative"][0] == 1.5 and "negative" not in without["sense"]
    assert result["positivity"]["win_rate"] == without["positivity"]["win_rate"]


def test_blind_rating_by_hand():
    result = judge.blind_rating(RATINGS)
    assert set(result) == {"positivity", "sense", "correlation"}
    positivity, sense = result["positivity"], result["sense"]
    # Samples count once, with the mean of their raters: p 4.5 and q 4 against b 1.5 and c 3.
    assert positivity["policy"] == pytest.approx(judge.mean_interval([4.5, 4]))
    assert positivity["policy"][0] == pytest.approx(4.25)
    assert positivity["base"] == pytest.approx(judge.mean_interval([1.5, 3]))
    assert sense["policy"] == pytest.approx(judge.mean_interval([2.5, 1.5]))
    assert sense["base"] == pytest.approx(judge.mean_interval([4.5, 3]))
    assert positivity["win_rate"].rate == pytest.approx(1)
    assert sense["win_rate"].rate == pytest.approx(0)
    # Ann 5, 1, 3 and Ben 4, 2, 5 on p, b, q: deviations (2, -2, 0) and (1, -5, 4) / 3, so 4 / sqrt(8 * 42 / 9).
    assert result["correlation"] == pytest.approx(4 / math.sqrt(8 * 42 / 9))


def test_more_raters_of_the_same_samples_do_not_make_the_interval_narrower():
    """Raters who agree say nothing new about other samples."""
    one = [rating(f"{side}{k}", side, "Ann", k % 5 + 1, k % 5 + 1) for side in ("base", "policy") for k in range(6)]
    three = [{**each, "rater": name} for each in one for name in ("Ann", "Ben", "Cleo")]
    single, triple = judge.blind_rating(one), judge.blind_rating(three)
    for score in ("positivity", "sense"):
        assert triple[score]["policy"] == pytest.approx(single[score]["policy"])
        assert triple[score]["win_rate"] == pytest.approx(single[score]["win_rate"])


def test_the_order_of_the_ratings_does_not_matter():
    """A rater stays on the same side of the correlation, whoever came first for a sample."""
    expected = judge.blind_rating(RATINGS)
    for seed in range(6):
        shuffled = random.Random(seed).sample(RATINGS, len(RATINGS))
        result = judge.blind_rating(shuffled)
        assert result["correlation"] == pytest.approx(expected["correlation"])
        assert result["positivity"]["win_rate"] == pytest.approx(expected["positivity"]["win_rate"])


def test_the_ratings_are_left_as_they_were():
    ratings = [dict(each) for each in reversed(RATINGS)]  # not in any order of raters or samples
    judge.blind_rating(ratings)
    assert ratings == RATINGS[::-1]


def test_there_is_no_correlation_without_two_raters_on_a_sample():
    alone = [rating(f"{source}{k}", source, "Ann", k + 1) for source in ("base", "policy") for k in range(4)]
    assert judge.blind_rating(alone)["correlation"] is None
    assert judge.blind_rating(alone + alone)["correlation"] is None  # the same rater twice is not two


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positivity": 6}, "rating 2: positivity must be 1, 2, 3, 4 or 5, got 6"),
        ({"positivity": 0}, "rating 2: positivity must be 1, 2, 3, 4 or 5, got 0"),
        ({"sense": None}, "rating 2: sense must be 1, 2, 3, 4 or 5, got None"),
        ({"sense": "4"}, "rating 2: sense must be 1, 2, 3, 4 or 5, got '4'"),
        ({"sense": 2.5}, "rating 2: sense must be 1, 2, 3, 4 or 5, got 2.5"),
        ({"source": "tuned"}, "rating 2: source must be one of base, policy, negative, got 'tuned'"),
    ],
)
def test_a_bad_rating_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        judge.blind_rating([RATINGS[0], RATINGS[1] | change, *RATINGS[2:]])


@pytest.mark.parametrize("ratings", [[], RATINGS[:2], RATINGS[:3]])
def test_a_blind_rating_needs_two_ratings_a_side(ratings):
    with pytest.raises(ValueError, match="at least 2 values"):
        judge.blind_rating(ratings)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=12))
def test_correlation_agrees_with_scipy(pairs):
    result = judge.correlation(pairs)
    if any(len({pair[side] for pair in pairs}) < 2 for side in (0, 1)):
        assert result is None
    else:
        assert result == pytest.approx(stats.pearsonr(*zip(*pairs)).statistic, abs=1e-9)


def test_correlation_of_straight_lines():
    assert judge.correlation([(1, 2), (2, 4), (3, 6)]) == pytest.approx(1)
    assert judge.correlation([(1, 6), (2, 4), (3, 2)]) == pytest.approx(-1)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 30), st.floats(-10, 10))
def test_a_side_that_never_varies_has_no_correlation(count, constant):
    """None, also where the rounded mean of equal numbers is not that number."""
    assert judge.correlation([(constant, k) for k in range(count)]) is None
    assert judge.correlation([(k, constant) for k in range(count)]) is None


# ----------------------------------------------------------------------------------------- best-of-n


def test_best_of_n_kl_by_hand():
    assert judge.best_of_n_kl(1) == 0
    assert judge.best_of_n_kl(2) == pytest.approx(math.log(2) - 0.5)
    assert judge.best_of_n_kl(4) == pytest.approx(0.63629, abs=1e-5)  # log 4 - 3/4
    assert f"{judge.best_of_n_kl(4):.4f}" == "0.6363"


@pytest.mark.parametrize("n", [2, 4, 16])
def test_best_of_n_kl_agrees_with_a_simulation(n):
    """The KL between two histograms: of the best of n uniform scores, and of single ones."""
    draws, bins = 200_000, 100
    best = torch.rand(draws, n, generator=torch.Generator().manual_seed(n)).amax(1)
    share = torch.histc(best, bins, 0, 1) / draws
    kl = torch.special.xlogy(share, share * bins).sum().item()  # every bin holds 1 / bins of the base's
    assert judge.best_of_n_kl(n) == pytest.approx(kl, abs=0.01)


@pytest.mark.parametrize("n", [0, -1])
def test_best_of_less_than_one_is_refused(n):
    with pytest.raises(ValueError, match=f"n must be at least 1, got {n}"):
        judge.best_of_n_kl(n)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.data())
def test_the_mean_of_best_of_n_is_that_over_all_ways_to_take_n(N, data):
    n = data.draw(st.integers(1, N))
    proxy = data.draw(st.lists(st.floats(-5, 5), min_size=N, max_size=N, unique=True))
    gold = data.draw(st.lists(st.floats(-1, 1), min_size=N, max_size=N))
    ways = [max(way, key=lambda place: proxy[place]) for way in itertools.combinations(range(N), n)]
    expected = sum(gold[place] for place in ways) / len(ways)
    assert judge.best_of_n_mean(proxy, gold, n) == pytest.approx(expected, abs=1e-9)


def test_the_mean_of_best_of_n_by_hand():
    """Of the three pairs two have the second sample as their best, and one the first: gold 7, 7 and 3."""
    proxy, gold = torch.tensor([2.0, 4.0, 1.0]), torch.tensor([3.0, 7.0, -9.0])
    assert judge.best_of_n_mean(proxy, gold, 2) == pytest.approx(17 / 3)
    assert judge.best_of_n_mean(proxy, gold, 1) == pytest.approx(1 / 3)
    assert judge.best_of_n_mean(proxy, gold, 3) == pytest.approx(7)
    assert math.isfinite(judge.best_of_n_mean(torch.arange(5000.0), torch.ones(5000), 2500))


@pytest.mark.parametrize("n", [0, 4])
def test_the_best_of_more_than_there_are_is_refused(n):
    with pytest.raises(ValueError, match=f"n must lie between 1 and the 3 samples, got {n}"):
        judge.best_of_n_mean(torch.zeros(3), torch.zeros(3), n)
