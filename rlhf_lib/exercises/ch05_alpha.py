"""Chapter 05: Krippendorff's alpha, the agreement of any number of readers with gaps, under any distance between labels."""

import functools
import math
import time
from collections import Counter
from fractions import Fraction
from itertools import combinations, pairwise

import torch

from rlhf_lib.exercises.ch05_labels import LABELS, read_by, spelled
from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.exercises.surroundings import TimeUp, limited

# ----------------------------------------------------------------------------------------- 5.9

HALF = {("negative", "neutral"): 0.5, ("neutral", "positive"): 0.5, ("negative", "positive"): 1.0}
NOMINAL = {pair: 1 for pair in HALF}
TINY = {pair: far * 1e-7 for pair, far in HALF.items()}
DIVIDED = "division by zero"  # stands for the error, of whole numbers or floats
TOO_OFTEN = "the right alpha, out of the distances of nearly every two labels that there are"
LOOPED = "the right alpha, by a loop over nearly every two labels that there are"
MANY = 500  # labels: more are in the last input alone


def many_read(generator, passages, words=LABELS, most=4, slips=0.35):
    """What up to `most` readers said of each passage, none of some: the same word, but for slips."""
    found = []
    for truth in read_by(generator, passages):
        number = int(torch.randint(most + 1, (1,), generator=generator))
        slip = (torch.rand(number, generator=generator) < slips).tolist()
        said = (
            [other if slipped else truth for other, slipped in zip(read_by(generator, number, (0.2, 0.5, 0.3)), slip)]
            if number
            else []
        )
        found.append([words[LABELS.index(one)] for one in said])
    return found


def draw_readings_of_many(generator):
    """`distance` is a table here, of which `call_alpha` makes the function."""
    for words, distance in (
        ("nn 0pp p", HALF),
        ("nn 0pp p", NOMINAL),
        ("pp n ppp -", HALF),
        ("p n -", HALF),
        ("np pn n -", NOMINAL),
        ("nn 0pp", TINY),
        ("nnpp 0n00 pp 0", HALF),
        ("", HALF),
    ):
        yield {"labels": [spelled(word.strip("-")) for word in words.split()], "distance": distance}
    yield {"labels": [["joy", "mirth"], ["joy", "joy", "mirth"]], "distance": {("joy", "mirth"): 0.0}}
    verdicts = ("first", "tie", "second")
    yield {"labels": [["first", "tie"], ["second", "second", "tie", "first"], [], ["first"], ["first", "first"]],
           "distance": {("first", "tie"): 1.25, ("tie", "second"): 0.75, ("first", "second"): 3}}  # fmt: skip
    for passages, words, most in ((9, LABELS, 5), (20, verdicts, 3), (25, LABELS, 6)):
        far = (0.2 + 2 * torch.rand(3, generator=generator)).tolist()
        yield {"labels": many_read(generator, passages, words, most), "distance": dict(zip(combinations(words, 2), far))}
    yield {"labels": many_read(generator, 400), "distance": HALF}  # every two of its labels: more than half a million pairs


def call_alpha(function, labels, distance):
    """The function's alpha; where it is right, but asked `distance` fifty times for each of many labels, TOO_OFTEN, and where it
    is right, but slow on fifteen times as many labels, LOOPED."""
    asked = 0

    def far(a, b):
        nonlocal asked
        asked += 1
        if a != b and (a, b) not in distance and (b, a) not in distance:
            stranger = b if any(a in pair for pair in distance) else a
            raise LookupError(f"it asks for the distance of {stranger!r}, a label that nobody gave: labels may be any words")
        return looked_up(distance, a, b)

    try:
        alpha = function(labels=labels, distance=far)
    except ZeroDivisionError:
        raise ZeroDivisionError(DIVIDED) from None
    count = sum(map(len, labels))
    if count <= MANY:
        return alpha
    often = asked > 50 * count + 20_000
    try:
        right = abs(float(alpha) - of_many(tuple(map(tuple, labels)), tuple(distance.items()))) < 1e-4
    except (TypeError, ValueError, RuntimeError, OverflowError):  # no number
        return alpha
    if right and (often or is_slow(lambda: function(labels=15 * labels, distance=far))):
        return TOO_OFTEN if often else LOOPED
    return alpha


@functools.lru_cache(maxsize=4)
def of_many(labels, distances):
    """The alpha of many labels, which every answer is compared with; whole fractions take their time."""
    return alpha_by_coincidences(labels, functools.partial(looked_up, dict(distances)))


def looked_up(table, a, b):
    """The distance of two labels in a table of pairs, in which each pair stands one way round."""
    return 0 if a == b else table[a, b] if (a, b) in table else table[b, a]


def is_slow(call):
    """Whether a call is at work for a second, whatever else the machine does."""
    began = time.process_time()
    _, error = limited(call, 1.0)
    return isinstance(error, TimeUp) and time.process_time() - began > 0.5


def alpha_by_coincidences(labels, distance):
    """Krippendorff's own way: the matrix of coincidences, in fractions."""
    table, sums = Counter(), Counter()
    for one in labels:
        for place, label in enumerate(one):
            for other in one[:place] + one[place + 1 :]:
                table[label, other] += Fraction(1, len(one) - 1)
                sums[label] += Fraction(1, len(one) - 1)
    n = sum(sums.values())
    if not n:
        return math.nan
    observed = sum(weight * Fraction(distance(a, b)) for (a, b), weight in table.items()) / n
    expected = sum(sums[a] * sums[b] * Fraction(distance(a, b)) for a in sums for b in sums) / (n * (n - 1))
    return float(1 - observed / expected) if expected else 1.0


# ----------------------------------------------------------------------------------------- what goes wrong


def comparable(labels):
    return [one for one in labels if len(one) > 1]


def pairs_of(one, far):
    """The distances of all ordered pairs of one passage's labels, added up."""
    return sum(far(a, b) for a in one for b in one)


def weighed(one, far):
    return pairs_of(one, far) / (len(one) - 1)


def averaged(one, far):
    return weighed(one, far) / len(one)


def two_by_two(counts, far):
    return sum(counts[a] * counts[b] * far(a, b) for a in counts for b in counts)


def by(divisor):
    """The expected part, with some `divisor` of n."""
    return lambda counts, far, read, n: two_by_two(counts, far) / divisor(n)


EVERY_TWO = by(lambda n: n * (n - 1))


def alpha_of(
    labels, distance, *, use=comparable, pool=lambda labels, read: read, number=lambda labels, read: sum(map(len, read)),
    far=lambda d, a, b: d(a, b), apart=weighed, over=lambda labels, read, n: n, chance=EVERY_TWO, end=lambda o, e: 1 - o / e,
    full=lambda e, counts: not e, same=1.0, nothing=math.nan, often=False,
):  # fmt: skip
    """`apart` is summed up over the passages of `use` and divided by `over`; `chance` makes the expected part of the counts of
    `pool` and the `number` n. `same` comes back where it is `full`, `nothing` where there are no pairs; both may be DIVIDED.
    `often`: the distance of every two labels is asked for; or this comes back of many labels."""
    read = use(labels)
    of = lambda a, b: far(distance, a, b)  # noqa: E731
    every = [label for one in pool(labels, read) for label in one]
    counts, n = Counter(every), number(labels, read)
    if often is True:
        [distance(a, b) for a in every for b in every]
    elif often and len(every) > MANY:
        return often
    if not read:
        return found(nothing(labels) if callable(nothing) else nothing)
    observed = sum(apart(one, of) for one in read) / over(labels, read, n)
    expected = chance(counts, of, read, n)
    return found(same) if full(expected, counts) else end(observed, expected)


def found(what):
    if what == DIVIDED:
        raise ZeroDivisionError
    return what


def besides(one, **more):
    """A mistake with others beside it: a function, so that the search for two mistakes at once begins with single ones."""
    return lambda labels, distance: alpha_of(labels, distance, **{**more, **one})


EDGES = {"same": DIVIDED}, {"same": DIVIDED, "nothing": DIVIDED}


def anyhow(*mistakes):
    """Options by themselves; just the first are tried with other mistakes, and where the edges are not looked after either."""
    return (*mistakes[:1], *map(besides, mistakes[1:]), *(besides(mistakes[0], **edges) for edges in EDGES))


def with_single_ones():
    """Labels of passages that were read once, in the bag, in n or in a divisor, and what comes out where there are no others."""
    pool, number = {"pool": lambda labels, read: labels}, {"number": lambda labels, read: sum(map(len, labels))}
    over = {"over": lambda labels, read, n: sum(map(len, labels))}
    ends = (1.0, lambda labels: 1.0 if any(labels) else math.nan), (DIVIDED, lambda labels: 1.0 if any(labels) else DIVIDED)
    kinds = ({**pool, **number}, {**pool, **over}, pool, number, over)
    both = (*ends, (1.0, DIVIDED), (DIVIDED, DIVIDED), (DIVIDED, math.nan))
    return (*kinds, *(besides(one, same=same, nothing=end) for one in kinds for same, end in both))


def often_or_not(*edges):
    return (*edges, *(besides(edges[0], often=often) for often in (True, LOOPED)))


def other_passages(counts, far, read, n):
    """The mean distance of two labels of different passages."""
    pairs = [far(a, b) for one, other in combinations(read, 2) for a in one for b in other]
    return sum(pairs) / len(pairs) if pairs else 0.0


def of_different(counts, far, read, n):
    return two_by_two(counts, far) / (sum(counts[a] * counts[b] for a in counts for b in counts if a != b) or 1)


def worst(one, far):
    return max(far(a, b) for a in one for b in one)


def own_kind_less_one(counts, far, read, n):
    return sum(counts[a] * (counts[b] - 1) * far(a, b) for a in counts for b in counts) / (n * (n - 1))


def of_kinds(divisor):
    return {"chance": lambda counts, far, read, n: sum(far(a, b) for a in counts for b in counts) / divisor(len(counts))}


def from_the_first(one, far):
    return sum(far(one[0], other) for other in one[1:])


def neighbours(one, far):
    return sum(far(a, b) for a, b in pairwise(one))


def from_the_majority(one, far):
    return sum(far(a, max(one, key=one.count)) for a in one)


def by_most_readers(labels):
    most = max(map(len, labels), default=0)
    return [one for one in labels if len(one) == most > 1]


def some_pairs(of):
    """`of` sums up some pairs of a passage: in one order or both, divided by m - 1 or not."""
    return tuple({"apart": lambda one, far, f=f, k=k: f * of(one, far) / (len(one) - 1) ** k} for f in (1, 2) for k in (0, 1))


def by_heart():
    places = (LABELS.index, list(LABELS).index, dict(zip(LABELS, range(3))).__getitem__)
    return ({"far": lambda d, a, b: abs(LABELS.index(a) - LABELS.index(b)) if {a, b} <= {*LABELS} else d(a, b)},
            *({"far": lambda d, a, b, place=place: abs(place(a) - place(b))} for place in places))  # fmt: skip


def bare_quotients():
    return tuple({"end": lambda o, e, what=what: 1 - o / e if e else found(what)} for what in (DIVIDED, math.nan))


N_TIMES_N = {"chance": by(lambda n: n * n)}
EACH_PASSAGE = {"apart": averaged, "over": lambda labels, read, n: len(read)}
MISTAKES = {
    "a passage with one label is divided by m - 1, which is 0; leave it out": ({"use": list},),
    "this is Fleiss' kappa, or what comes to the same: each passage weighs alike, and chance divides by n * n":
        ({**EACH_PASSAGE, **N_TIMES_N},),
    "each passage weighs alike, however many labels it has; divide the sum of its pairs by m - 1, and the sum of all by n":
        (EACH_PASSAGE, {**EACH_PASSAGE, "apart": lambda one, far: pairs_of(one, far) / len(one) ** 2}),
    "each passage's pairs are averaged, by m (m - 1), and then divided by n once more: divide the first time by m - 1 alone":
        ({"apart": averaged},),
    "all pairs weigh alike, so that a passage with many readers weighs more than its labels; divide each one's by m - 1":
        ({"apart": pairs_of, "over": lambda labels, read, n: sum(len(one) * (len(one) - 1) for one in read)},),
    "the pairs of a passage are not divided by m - 1: each label would count once for every other reader": ({"apart": pairs_of},),
    "the pairs of a passage are divided by m; a label is compared with the m - 1 others":
        ({"apart": lambda one, far: pairs_of(one, far) / len(one)},),
    "the pairs of a passage are multiplied by m - 1; divide them by it":
        ({"apart": lambda one, far: pairs_of(one, far) * (len(one) - 1)},),
    "every passage is divided by the most readers less 1; m is the number of its own labels":
        ({"apart": pairs_of, "over": lambda labels, read, n: n * (max(map(len, read)) - 1)},),
    "brackets are missing around m - 1: it is all of it that the pairs of a passage are divided by": (
        {"apart": lambda one, far: pairs_of(one, far) / len(one) - 1},
        *({"apart": lambda one, far, k=k: pairs_of(one, far) / len(one) - len(one) * (len(one) - k)} for k in (0, 1))),
    "the observed part is divided by the number of passages; divide it by n, the number of labels that can be compared":
        ({"over": lambda labels, read, n: len(read)}, {"over": lambda labels, read, n: len(labels)}),
    "the expected part is divided by n * n, as if a label could be compared with itself: n (n - 1)": (N_TIMES_N,),
    "the expected part is not divided by n (n - 1): are brackets missing, or one of the two?": tuple(
        {"chance": by(divisor)} for divisor in (lambda n: n / (n - 1), lambda n: n * n - 1, lambda n: n, lambda n: n - 1,
                                               lambda n: 1)),
    "in the expected part 1 is taken off the count of the second label, of whatever kind; just n (n - 1) takes it off":
        ({"chance": own_kind_less_one},),
    "the expected part is a mean over kinds of labels; a kind counts as often as it was given":
        (of_kinds(lambda k: k * k), of_kinds(lambda k: max(1, k * (k - 1)))),
    "the expected part is a mean over pairs of different labels; pairs of equal ones have the distance 0, and count, too":
        ({"chance": of_different},),
    "the expected part has no pairs of one passage; chance knows no passages: every two of the n labels":
        ({"chance": other_passages},),
    "the observed part is divided by the largest distance; divide it by the mean distance in the bag": (
        {"chance": lambda counts, far, read, n: worst(counts, far)},),
    "observed or expected is twice too large beside the other: take each pair in both orders in both, or in one in both":
        ({"end": lambda o, e: 1 - o / e / 2}, {"end": lambda o, e: 1 - 2 * o / e}),
    "the distance is not used: here labels are the same or not (nominal alpha)": ({"far": lambda d, a, b: float(a != b)},),
    "the distance is taken for closeness, 1 - distance; it is 0 for equal labels already":
        ({"far": lambda d, a, b: 1 - d(a, b)}, {"far": lambda d, a, b: 1 - d(a, b) if a != b else 0.0}),
    "the distance is squared; where the paper squares differences of numbers, that is in its distance already":
        ({"far": lambda d, a, b: d(a, b) ** 2},),
    "the distances are those of negative, neutral and positive in a row, whatever `distance` says; ask it": by_heart(),
    "what is neither negative, neutral nor positive is left out; labels may be any words":
        ({"use": lambda labels: comparable([[label for label in one if label in LABELS] for one in labels])},),
    "of equal labels on one passage only one is left, as by set(); each reader's counts":
        ({"use": lambda labels: comparable([list(dict.fromkeys(one)) for one in labels])},),
    "of equal labels on one passage only one is left for the observed part, as by set(); each reader's counts":
        ({"apart": lambda one, far: weighed([*dict.fromkeys(one)], far) if len({*one}) > 1 else 0.0},
         {"apart": lambda one, far: pairs_of([*dict.fromkeys(one)], far) / (len(one) - 1)}),
    "of equal labels on one passage only one is left in the bag, as by set(); each reader's counts":
        ({"pool": lambda labels, read: map(set, read)},
         {"pool": lambda labels, read: map(set, read), "number": lambda labels, read: sum(map(len, map(set, read)))}),
    "this is a weighted kappa of the first two labels of each passage; places in the list are no readers": ({
        "apart": lambda one, far: far(*one[:2]), "over": lambda labels, read, n: len(read),
        "chance": lambda counts, far, read, n: sum(far(one[0], other[1]) for one in read for other in read) / len(read) ** 2},),
    "only the worst pair of a passage counts, as by max(); every pair does":
        ({"apart": lambda one, far: len(one) * worst(one, far)}, {**EACH_PASSAGE, "apart": worst}),
    "passages with just two labels count, or only those with more; each from two labels on does":
        ({"use": lambda labels: [one for one in labels if len(one) == 2]},
         {"use": lambda labels: [one for one in labels if len(one) > 2]}),
    "only the first two labels of each passage are compared; every two of its labels are":
        ({"use": lambda labels: [one[:2] for one in comparable(labels)]}, {"apart": lambda one, far: weighed(one[:2], far)},
         {"apart": lambda one, far: far(one[0], one[1])}),
    "each label is compared with the first one of its passage alone; every two are": some_pairs(from_the_first),
    "each label is compared with the next one of its passage alone; every two are": some_pairs(neighbours),
    "each label is compared with the most frequent one of its passage; the readers are compared with each other":
        some_pairs(from_the_majority),
    "only passages with the most readers count; those with gaps do too, from two labels on": ({"use": by_most_readers},),
    "passages on which all readers agree are left out; agreement is what is measured":
        ({"use": lambda labels: [one for one in comparable(labels) if len({*one}) > 1]},),
    "this is the disagreement, observed / expected; alpha is 1 minus it":
        ({"end": lambda o, e: o / e}, {"end": lambda o, e: o / e, "same": 0.0}),
    "this is 1 minus the observed disagreement; chance plays no part in it": ({"end": lambda o, e: 1 - o},),
    "this is the observed disagreement alone": ({"end": lambda o, e: o, "same": 0.0},),
    "expected and observed are exchanged: 1 - observed / expected": ({"end": lambda o, e: 1 - e / o if o else 1.0},),
    "this is expected - observed; divide it by the expected disagreement": ({"end": lambda o, e: e - o, "same": 0.0},),
    "the expected disagreement is taken for the expected agreement, in (a - e) / (1 - e)":
        ({"end": lambda o, e: (1 - o - e) / (1 - e)},),
    "an alpha below 0 becomes 0; readers may agree less often than by chance": ({"end": lambda o, e: max(0.0, 1 - o / e)},),
}  # fmt: skip
EDGE_MISTAKES = {
    "where the expected disagreement is 0 this divides by 0; return 1": often_or_not({"same": DIVIDED}),
    "where the expected disagreement is 0 this gives 0, or nothing; return 1, as full agreement":
        often_or_not({"same": 0.0}, {"same": None}),
    "where the expected disagreement is 0 this gives NaN; return 1, as full agreement": often_or_not({"same": math.nan}),
    "where no passage has two labels this divides by 0; nothing is known then: return math.nan":
        often_or_not({"nothing": DIVIDED}),
    "where no passage has two labels nothing is known, neither agreement nor disagreement: return math.nan":
        often_or_not({"nothing": 1.0}, {"nothing": 0.0}, {"nothing": None}),
    "it divides by 0 where the expected disagreement is 0: return 1 there; and math.nan where no passage has two labels":
        often_or_not(*({"same": DIVIDED, "nothing": one} for one in (DIVIDED, 1.0, 0.0))),
    "a small expected disagreement is taken for none; distances may be small numbers, of any unit: ask whether it is 0":
        tuple({"full": lambda e, counts, least=least: e < least} for least in (1e-6, 1e-5, 1e-4)),
    "this sees only where all labels are equal that chance expects nothing; different labels may have the distance 0, too: "
    "ask the expected disagreement":
        often_or_not(*({**one, "full": lambda e, counts: len(counts) == 1} for one in bare_quotients())),
}  # fmt: skip
krippendorff_alpha = Exercise(
    "5.9", "krippendorff_alpha",
    draw=draw_readings_of_many,
    right=alpha_by_coincidences,
    call=call_alpha,
    formula=alpha_of,
    mistakes={
        "this alpha is right, but it asks for more than 50 distances a label, as who goes through every two labels of the bag: "
        "count each label, and ask once for every two different ones": {"often": True},
        "this alpha is right, but it goes through every two labels of the bag: with the distances remembered that is still too "
        "slow; count each label, and go through every two different ones": besides({"often": LOOPED}),
        **EDGE_MISTAKES,
        "labels of passages that were read once count here, in the bag or in n; they can be compared with nothing, and drop out":
            with_single_ones(),
        **{sentence: anyhow(*options) for sentence, options in MISTAKES.items()},
    },
)  # fmt: skip
