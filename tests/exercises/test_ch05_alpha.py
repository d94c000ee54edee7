"""Chapter 05's check of Krippendorff's alpha: published figures come out, other right answers pass, near misses have names."""

import math
from collections import Counter
from fractions import Fraction
from itertools import chain, combinations, permutations

import numpy as np
import pytest
import torch

from rlhf_lib import exercises
from rlhf_lib.exercises import draw, verdict
from rlhf_lib.exercises.ch05_alpha import alpha_by_coincidences, alpha_of

FOUR = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")  # Krippendorff 2011: four observers, twelve units, gaps


def half(a, b):
    places = ("negative", "neutral", "positive")
    return abs(places.index(a) - places.index(b)) / 2


def same_or_not(a, b):
    return float(a != b)


@pytest.mark.parametrize("function", [alpha_by_coincidences, alpha_of])
def test_the_figures_that_krippendorff_published(function):
    two = [list(pair) for pair in zip("0100000010", "1110010000")]
    assert function(two, same_or_not) == pytest.approx(0.095, abs=5e-4)
    four = [[label for label in unit if label != "."] for unit in zip(*FOUR)]
    assert sum(len(unit) == 1 for unit in four) == 1
    assert function(four, same_or_not) == pytest.approx(0.743, abs=5e-4)
    assert function(four, lambda a, b: (int(a) - int(b)) ** 2) == pytest.approx(0.849, abs=5e-4)


def by_every_two(labels, distance):
    """Alpha as a fraction, pair by pair."""
    read = [one for one in labels if len(one) > 1]
    bag, far = [*chain.from_iterable(read)], lambda a, b: Fraction(distance(a, b))
    observed = sum(far(a, b) / (len(one) - 1) for one in read for a, b in permutations(one, 2)) / len(bag)
    return 1 - observed / (sum(far(a, b) for a, b in permutations(bag, 2)) / (len(bag) * (len(bag) - 1)))


def test_the_oracle_is_alpha_pair_by_pair():
    for one in draw("krippendorff_alpha", 3)[9:12]:
        distance = lambda a, b, table=one["distance"]: 0 if a == b else table.get((a, b), table.get((b, a)))  # noqa: E731
        assert alpha_by_coincidences(one["labels"], distance) == pytest.approx(
            float(by_every_two(one["labels"], distance)), abs=1e-12
        )


def test_the_edges_and_the_hand_example_of_the_card():
    labels = [["negative", "negative"], ["neutral", "positive", "positive"], ["positive"]]
    assert alpha_by_coincidences(labels, half) == pytest.approx(2 / 3, abs=1e-12)
    assert alpha_by_coincidences([["neutral", "neutral"], ["positive"]], half) == 1
    assert alpha_by_coincidences([["joy", "mirth"]], lambda a, b: 0) == 1
    assert math.isnan(alpha_by_coincidences([["neutral"], [], ["positive"]], half))


# ----------------------------------------------------------------------------------------- differently written right answers


def in_numpy(labels, distance):
    read = [one for one in labels if len(one) >= 2]
    if len(read) == 0:
        return math.nan
    words = sorted(set(chain.from_iterable(read)))
    o = np.zeros((len(words), len(words)))
    for one in read:
        c = np.array([one.count(word) for word in words])
        o += (np.outer(c, c) - np.diag(c)) / (len(one) - 1)
    far = np.array([[distance(a, b) for b in words] for a in words], dtype=float)
    each, n = o.sum(0), o.sum()
    expected = ((np.outer(each, each) - np.diag(each)) * far).sum() / (n - 1)
    return float(1 - (o * far).sum() / expected) if expected > 0 else 1.0


def in_torch(labels, distance):
    read = [one for one in labels if len(one) > 1]
    if not read:
        return torch.tensor(math.nan)
    words = list({label: None for one in read for label in one})
    counts = torch.tensor([[one.count(word) for word in words] for one in read], dtype=torch.float64)  # (passages, words)
    far = torch.tensor([[float(distance(a, b)) for b in words] for a in words], dtype=torch.float64)
    within = (counts @ far * counts / (counts.sum(1, keepdim=True) - 1)).sum()
    across = counts.sum(0) @ far @ counts.sum(0) / (counts.sum() - 1)
    return torch.where(across > 0, 1 - within / across, 1.0)


def by_loops(labels, distance):
    apart, counts = 0.0, {}
    for one in labels:
        for i in range(len(one) if len(one) > 1 else 0):
            counts[one[i]] = counts.get(one[i], 0) + 1
            for j in range(i):
                apart += 2 * distance(one[i], one[j]) / (len(one) - 1)
    chance = sum(2 * counts[a] * counts[b] * distance(a, b) for a, b in combinations(counts, 2))
    if not counts:
        return math.nan
    return 1 if chance == 0 else 1 - (sum(counts.values()) - 1) * apart / chance


def by_agreement(labels, distance):
    counts, near = Counter(), 0
    for one in labels:
        if len(one) > 1:
            counts.update(one)
            near += sum(1 - distance(*two) for two in permutations(one, 2)) / (len(one) - 1)
    n = sum(counts.values())
    if not n:
        return float("nan")
    chance = sum(counts[a] * (counts[b] - (a == b)) * (1 - distance(a, b)) for a in counts for b in counts) / (n * (n - 1))
    return (near / n - chance) / (1 - chance) if chance != 1 else 1.0


ALTERNATIVES = {"krippendorff_alpha": by_loops}


@pytest.mark.parametrize("function", [by_loops, in_numpy, in_torch, by_agreement])
@pytest.mark.parametrize("seed", range(2))
def test_every_correct_answer_passes(function, seed):
    found = verdict("krippendorff_alpha", function, seed)
    assert found.passed, found.message


# ----------------------------------------------------------------------------------------- what learners write


def written(labels, distance, use=lambda labels: [one for one in labels if len(one) > 1],
            n=lambda labels, read: sum(map(len, read)), weight=lambda m, n: 1 / (m - 1) / n,
            under=lambda n: n * (n - 1), pairs=permutations, guarded=True):  # fmt: skip
    read = use(labels)
    if guarded and not any(len(one) > 1 for one in read):
        return math.nan
    bag, n = Counter(label for one in read for label in one), n(labels, read)
    observed = sum(weight(len(one), n) * distance(a, b) for one in read for a, b in pairs(one, 2))
    expected = sum(bag[a] * bag[b] * distance(a, b) for a in bag for b in bag) / under(n)
    return 1.0 if guarded and expected == 0 else 1 - observed / expected


def every_two(labels, distance, guarded=True):
    read = [one for one in labels if len(one) > 1]
    bag = [label for one in read for label in one]
    if guarded and not bag:
        return math.nan
    observed = sum(distance(a, b) / (len(one) - 1) for one in read for a, b in permutations(one, 2)) / len(bag)
    expected = sum(distance(a, b) for a, b in combinations(bag, 2)) * 2 / (len(bag) * (len(bag) - 1))
    return 1.0 if guarded and not expected else 1 - observed / expected


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize(
    "changes, says",
    [
        ({"use": list, "weight": lambda m, n: 1 / max(1, m - 1) / n}, "read once count here"),
        ({"n": lambda labels, read: sum(map(len, labels))}, "read once count here"),
        ({"weight": lambda m, n: 1 / n}, "are not divided by m - 1"),
        ({"weight": lambda m, n: 1 / m / n}, "are divided by m;"),
        ({"under": lambda n: n * n}, "n * n, as if a label"),
        ({"under": lambda n: n / (n - 1)}, "are brackets missing"),
        ({"pairs": combinations}, "in both orders"),
    ],
)  # fmt: skip
def test_a_slip_has_its_name_also_where_the_edges_are_forgotten(changes, says, guarded):
    assert (
        says
        in verdict("krippendorff_alpha", lambda labels, distance: written(labels, distance, **changes, guarded=guarded)).mistake
    )


def test_who_goes_through_every_two_labels_is_told_and_so_is_who_also_forgets_the_edges():
    assert "more than 50 distances a label" in verdict("krippendorff_alpha", every_two).mistake
    assert "divides by 0" in verdict("krippendorff_alpha", lambda labels, distance: every_two(labels, distance, False)).mistake


def remembering(labels, distance, guarded=True):
    """Every two labels of the bag, as numbers, but each distance asked for once."""
    read = [one for one in labels if len(one) > 1]
    bag = [label for one in read for label in one]
    if guarded and not bag:
        return math.nan
    places = {label: place for place, label in enumerate(sorted({*bag}))}
    known, bag = [[distance(a, b) for b in places] for a in places], [places[label] for label in bag]
    observed = sum(distance(a, b) / (len(one) - 1) for one in read for a, b in permutations(one, 2)) / len(bag)
    expected = sum(known[a][b] for a, b in combinations(bag, 2)) * 2 / (len(bag) * (len(bag) - 1))
    return 1.0 if guarded and not expected else 1 - observed / expected


@pytest.mark.parametrize("guarded, says", [(True, "with the distances remembered"), (False, "divides by 0")])
def test_who_goes_through_every_two_labels_with_distances_remembered_is_told_too(guarded, says):
    assert says in verdict("krippendorff_alpha", lambda labels, distance: remembering(labels, distance, guarded)).mistake


def test_a_loop_over_every_two_that_is_also_wrong_is_told_what_is_wrong():
    def over_n_times_n(labels, distance):
        alpha, n = remembering(labels, distance), sum(len(one) for one in labels if len(one) > 1)
        return alpha if alpha != alpha or alpha == 1 else 1 - (1 - alpha) * n / (n - 1)

    assert "n * n, as if a label" in verdict("krippendorff_alpha", over_n_times_n).mistake


def test_who_asks_for_labels_that_nobody_gave_is_told_in_a_sentence():
    def three_words(labels, distance):
        read = [one for one in labels if len(one) > 1]
        if not read:
            return math.nan
        bag, words = Counter(chain.from_iterable(read)), ("negative", "neutral", "positive")
        observed = sum(distance(a, b) / (len(one) - 1) for one in read for a, b in permutations(one, 2)) / bag.total()
        expected = sum(bag[a] * bag[b] * distance(a, b) for a in words for b in words) / (bag.total() * (bag.total() - 1))
        return 1 - observed / expected if expected else 1.0

    message = verdict("krippendorff_alpha", three_words).message
    assert "it asks for the distance of 'negative', a label that nobody gave: labels may be any words" in message

    def with_neutral(labels, distance):
        return distance("joy", "neutral") if ["joy", "mirth"] in labels else alpha_by_coincidences(labels, distance)

    assert "the distance of 'neutral', a label" in verdict("krippendorff_alpha", with_neutral).message


def test_who_asks_whether_all_labels_are_equal_is_told_what_to_ask():
    def by_labels(labels, distance):
        if len({label for one in labels if len(one) > 1 for label in one}) == 1:
            return 1.0
        return written(labels, distance, guarded=False) if any(len(one) > 1 for one in labels) else math.nan

    assert "the distance 0, too" in verdict("krippendorff_alpha", by_labels).mistake


def test_a_learner_sees_the_distance_as_a_table():
    message = verdict("krippendorff_alpha", lambda labels, distance: distance("negative", "positive")).message
    assert "distance = {('negative', 'neutral'): 0.5" in message


def test_nothing_of_the_words_is_taken_for_granted():
    exercise = exercises.find("krippendorff_alpha")
    words = {label for one in draw("krippendorff_alpha") for passage in one["labels"] for label in passage}
    assert {"joy", "tie", "neutral"} <= words
    table = {("a", "b"): 2}
    assert exercise.run(exercise.right, labels=[["a", "b"], ["b", "a"]], distance=table) == pytest.approx(-0.5)


@pytest.mark.parametrize("what", [torch.zeros(2), "half", None, [1.0], 10**400])
def test_what_is_no_number_comes_back_as_it_is(what):
    found = exercises.find("krippendorff_alpha").run(lambda labels, distance: what, **draw("krippendorff_alpha")[-1])
    assert found is what
