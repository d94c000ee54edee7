"""Chapter 05: soft targets, halves that stay apart, votes, agreement between readers, intervals, and what to label next."""

import hashlib
import math
import random
from collections import Counter
from functools import cache, partial
from itertools import permutations, product

import numpy as np
import torch
from scipy import stats

from rlhf_lib.exercises.declare import Exercise

LABELS = NEGATIVE, NEUTRAL, POSITIVE = "negative", "neutral", "positive"


def spelled(word):
    """Labels out of a word of n, 0 and p."""
    return [LABELS["n0p".index(one)] for one in word]


def read_by(generator, count, chances=(0.4, 0.35, 0.25)):
    """`count` labels of a reader with these shares of negative, neutral and positive."""
    return [LABELS[place] for place in torch.multinomial(torch.tensor(chances), count, True, generator=generator).tolist()]


def read_again(generator, labels, slips=0.3):
    """A second reader of the same passages, who gives `slips` of them a label at random."""
    others = read_by(generator, len(labels), (0.2, 0.6, 0.2))
    slip = torch.rand(len(labels), generator=generator) < slips
    return [other if slipped else label for label, other, slipped in zip(labels, others, slip)]


# ----------------------------------------------------------------------------------------- 5.1


def draw_labels(generator):
    drawn = ([NEUTRAL, *read_by(generator, count), NEGATIVE, POSITIVE] for count in (5, 12))
    yield from ({"labels": labels} for labels in ([POSITIVE], [NEUTRAL], [POSITIVE, NEGATIVE], list(LABELS), *drawn))


def targets_of(labels, *, values=(0.0, 0.5, 1.0), dtype=torch.float32, use=LABELS):
    return torch.tensor([values[LABELS.index(label)] for label in labels if label in use], dtype=dtype)


def with_type(function, **given):
    tensor = function(**given)
    return {"values": tensor, "are floats": tensor.is_floating_point()}


soft_targets = Exercise(
    "5.1", "soft_targets",
    draw=draw_labels,
    right=lambda labels: torch.tensor([LABELS.index(label) / 2 for label in labels]),
    call=with_type,
    formula=targets_of,
    mistakes={
        "neutral is 0 here, like negative; a passage without feeling is as likely either: 0.5": {"values": (0.0, 0.0, 1.0)},
        "neutral is 1 here, like positive; a passage without feeling is as likely either: 0.5": {"values": (0.0, 1.0, 1.0)},
        "negative has the target of neutral, 0.5; it is 0": {"values": (0.5, 0.5, 1.0)},
        "these run from -1 to 1; a target of cross-entropy is a probability, from 0 to 1":
            ({"values": (-1.0, 0.0, 1.0)}, {"values": (-1, 0, 1), "dtype": None}),
        "these are the numbers of the classes, 0, 1 and 2; a target is a probability, from 0 to 1":
            ({"values": (0.0, 1.0, 2.0)}, {"values": (0, 1, 2), "dtype": None}),
        "this is the probability of negative: turn it round, positive is 1":
            ({"values": (1.0, 0.5, 0.0)}, {"values": (1, 0.5, 0), "dtype": None}),
        "neutral passages are left out: they teach the model not to guess, so keep them with 0.5":
            ({"use": (NEGATIVE, POSITIVE)}, {"use": (NEGATIVE, POSITIVE), "values": (0, 0.5, 1), "dtype": None}),
        "a tensor of whole numbers has no room for 0.5, so neutral has become 0; make it one of floats": {"dtype": torch.long},
        "without a neutral label this is a tensor of whole numbers, and a loss asks for floats: write 0.0 and 1.0":
            {"values": (0, 0.5, 1), "dtype": None},
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 5.2


class Passage(str):
    """A text whose `hash` depends on the process, as every str's does: `salt` stands for the process."""

    salt = 0

    def __hash__(self):
        return hash((Passage.salt, str(self)))

    def encode(self, *arguments):
        return Bytes(str(self).encode(*arguments))


class Bytes(bytes):
    def __hash__(self):
        return hash((Passage.salt, bytes(self)))


LONG = "; and so went we, by twos and by threes, out of the hall’s east door"
PARTS = (lambda text: text.split("\n")[0], lambda text: text.split("\n")[-1], len)


def draw_texts(generator):
    """Texts of which some are there twice, and many begin or end alike."""
    for count, held_out in ((251, 0.35), (401, 0.65)):
        numbers = torch.randint(2 * count, (count,), generator=generator).tolist()
        texts = [f"{'ABCDÉFGHIJK'[n % 11]}. Say on{LONG}.\nTwas {n} of us\n{'who went ' * (n % 5)}{LONG}." for n in numbers]
        yield {"texts": [*texts, " Exit. \n"], "held_out": held_out}


def what_is_wrong(function, texts, held_out):
    """What must hold of the halves whichever hash they come from: in words, the first thing that does not."""

    def split(some, share=held_out, run=1, process=1):
        Passage.salt = process
        for seed in (random.seed, np.random.seed, torch.default_generator.manual_seed):
            seed(run)
        halves = function([Passage(text) for text in some], share)
        fine = all(isinstance(half, (list, tuple)) and all(isinstance(text, str) for text in half) for half in halves)
        return [Counter(map(str, half)) for half in halves] if fine else (None, None)

    def together(part):  # whether texts that have a part in common are always on one side, where there are many
        groups = {}
        for text in came:
            groups.setdefault(part(text), []).append(text in kept)
        sides = [sum(group) / len(group) for group in groups.values() if len(group) > 10]
        return {*sides} == {0, 1}

    def held(some, **how):
        return {text for text in split(some, **how)[1] if text in some}

    came, (learn, kept) = Counter(texts), split(texts)
    if learn is None:
        return "they are no lists of str"
    out, many = learn + kept, {f"verse {number}" for number in range(4000)}
    share = cache(lambda held_out: len(held(many, share=held_out)) / len(many))
    faults = {
        "a text is in them that did not come in": lambda: set(out) - set(came),
        "some passages are in both, others in neither": lambda: came - out and out - came,
        "a text that came in twice comes out once": lambda: came - out and set(came) == set(out),
        "some passages are in neither": lambda: came - out,
        "some passages are in both": lambda: out - came,
        "another run has others": lambda: held(texts, run=2) != set(kept),
        "another process has others": lambda: held(texts, process=2) != set(kept),
        "another order has others": lambda: held(texts[100:] + texts[:100]) != set(kept),
        "with more texts, some change sides": lambda: held(texts[:50] + sorted(many)[:100] + texts) & {*texts} != set(kept),
        "a text that came in twice is in both": lambda: set(learn) & set(kept),
        "a part of the text decides": lambda: any(map(together, PARTS)),
        "nearly nothing is held out": lambda: share(held_out) < 0.02,
        "nearly all is held out": lambda: share(held_out) > 0.98,
        "another held_out has the same": lambda: abs(share(held_out) - share(1 - held_out)) < 0.1,
        "they are swapped": lambda: abs(share(held_out) - 1 + held_out) < 0.04,
        "another share than held_out is held out": lambda: abs(share(held_out) - held_out) > 0.04,
    }
    return next((fault for fault, found in faults.items() if found()), "nothing")


def by_sha256(texts, held_out):
    kept = {text for text in texts if int(hashlib.sha256(text.encode()).hexdigest(), 16) < held_out * 2**256}
    return [text for text in texts if text not in kept], [text for text in texts if text in kept]


def by_hash(texts, held_out, *, part=str, some=list, share=lambda share: share, copy=str, swap=False):
    halves = [], []
    for text in some(texts):
        number = int(hashlib.md5(part(text).encode()).hexdigest(), 16) / 2**128
        halves[number < share(held_out)].append(copy(text))
    return halves[::-1] if swap else halves


def cut(texts, held_out, once=False):
    """The first of `texts`, a share `held_out`, and the others; `once`: of the different ones, with each one's copies."""
    some = list(dict.fromkeys(texts)) if once else texts
    size = round(held_out * len(some))
    kept = set(some[:size])
    return ([t for t in texts if t not in kept], [t for t in texts if t in kept]) if once else (some[size:], some[:size])


def shuffled(texts, seed=None):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return [texts[place] for place in torch.randperm(len(texts), generator=generator).tolist()]


def first_copies(texts, held_out):
    """The first of each text's copies goes where its hash says, the others to learn."""
    kept, first = set(by_sha256(texts, held_out)[1]), {text: place for place, text in reversed(list(enumerate(texts)))}
    test = [place for text, place in first.items() if text in kept]
    return [text for place, text in enumerate(texts) if place not in test], [texts[place] for place in test]


split_labels = Exercise(
    "5.2", "split_labels",
    draw=draw_texts,
    right=by_sha256,
    call=lambda function, **given: {"wrong with the halves": what_is_wrong(function, **given)},
    formula=by_hash,
    mistakes={
        "an unseeded shuffle or coin: the next run tests on passages that this one learned from; let a hash of the text decide":
            tuple(lambda texts, held_out, once=once: cut(shuffled(texts), held_out, once) for once in (False, True)),
        "some passages are in both halves and others in neither (a shuffle for each half?): the test knows what was learned":
            lambda texts, held_out: (cut(shuffled(texts), held_out)[0], cut(shuffled(texts), held_out)[1]),
        "the side depends on the place in the list, by a seeded shuffle or by counting; hash the text alone":
            (lambda texts, held_out: cut(shuffled(texts, seed=0), held_out), cut),
        "a text's side depends on the other texts: one more label, and some change sides; compare its own hash with held_out":
            lambda texts, held_out: cut(sorted(texts, key=lambda text: hashlib.md5(text.encode()).digest()), held_out, True),
        "Python's hash() of a text, or the order of a set, differs from process to process; use hashlib.sha256(text.encode())":
            lambda texts, held_out: by_hash(texts, held_out, part=lambda text: str(hash(text))),
        "the halves are swapped: return (learn, held out), and `held_out` is the share of the second": {"swap": True},
        "passages that are there twice are thrown away; both readings stay, in the same half": {"some": dict.fromkeys},
        "of a passage that is there twice, one may be in each half; all copies of a text belong on one side": first_copies,
        "some passages are in neither half; every one belongs in one of them": {"some": lambda texts: texts[9:]},
        "held-out passages are in the learning half too: the test knows what was learned":
            lambda texts, held_out: (texts, by_sha256(texts, held_out)[1]),
        "the texts that come out are not those that came in: change a copy, for the hash alone": {"copy": str.lower},
        "these are no lists of texts; return two lists with the texts themselves": {"copy": len},
        "(nearly) nothing is held out: divide the hash by the largest number that it can be": {"share": lambda share: 0.0},
        "(nearly) everything is held out: divide the hash by the largest number that it can be": {"share": lambda share: 1.0},
        "texts that begin or end alike, or are equally long, all go together: hash the whole text":
            tuple({"part": lambda text, part=part: str(part(text))} for part in PARTS),
        "`held_out` plays no part: another share gives the same halves": {"share": lambda share: 0.15},
        "the share of the texts in the test half is not `held_out`": {"share": lambda share: 0.8 * share},
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 5.3


def draw_votes(generator):
    for votes in (["p"], ["pn"], ["npp", "p0", "n"], ["0ppn", "npnp", "n0"], ["p0n", "nn0pp", "pp"], ["00pnp", "n00pn", "nnn"],
                  ["p0np0n", "00p", "nnnpppp"], ["0ppnpnn", "n00p0", "n0pn"], ["pp0nnp0", "n0"]):  # fmt: skip
        yield {"votes": list(map(spelled, votes))}
    for passages, readers in ((4, 3), (8, 5), (12, 4)):
        yield {"votes": [read_by(generator, readers, (1 / 3, 1 / 3, 1 / 3)) for _ in range(passages)]}


def most_by_loop(votes):
    best = [[label for label in LABELS if all(one.count(label) >= one.count(other) for other in LABELS)] for one in votes]
    return [some[0] if len(some) == 1 else NEUTRAL for some in best]


def voted(votes, *, tie=lambda best, one: NEUTRAL, counted=lambda one: one):
    """`tie` chooses among the labels with the most votes, where there are several."""
    found = []
    for one in votes:
        counts = Counter(counted(one))
        best = [label for label in LABELS if counts[label] == max(counts.values(), default=0)]
        found.append(best[0] if len(best) == 1 else tie(best, one))
    return found


def each(label_of):
    """A function of all votes out of one of the votes on one passage."""
    return lambda votes: [label_of(one) for one in votes]


def first_of(order, best, one=None):
    return next((label for label in order if label in best), NEUTRAL)


def ties(seen):
    """Ways of deciding a tie of which `seen` says that it is none."""
    ways = (lambda best, one: first_of(one, best), *(partial(first_of, order) for order in (LABELS, LABELS[::-1])))
    return tuple({"tie": lambda best, one, way=way: NEUTRAL if seen(best, one) else way(best, one)} for way in ways)


majority_vote = Exercise(
    "5.3", "majority_vote",
    draw=draw_votes,
    right=most_by_loop,
    formula=voted,
    mistakes={
        "a tie goes to the label that was voted for first; who happened to read first should not decide: neutral":
            {"tie": lambda best, one: first_of(one, best)},
        "a tie goes to the first label of the alphabet, so to negative; it is neutral": {"tie": partial(first_of, LABELS)},
        "a tie goes to the last label of the alphabet, so to positive; it is neutral": {"tie": partial(first_of, LABELS[::-1])},
        "a tie goes to the label that stands first in some list, dict or set of labels; a tie is neutral":
            tuple({"tie": partial(first_of, order)} for order in permutations(LABELS) if order not in (LABELS, LABELS[::-1])),
        "every tie is positive (or every one negative) here; a tie is neutral":
            tuple({"tie": lambda best, one, label=label: label} for label in (POSITIVE, NEGATIVE)),
        "a tie is seen only where all labels that were given have as many votes; two that share the most are one, too":
            ties(lambda best, one: {*best} == {*one}),
        "a tie of three goes to one of them; it is neutral, like a tie of two": ties(lambda best, one: len(best) == 2),
        "this asks for more than half of the votes; the most votes are enough, when no other label has as many":
            each(lambda one: next((label for label in LABELS if one.count(label) > len(one) / 2), NEUTRAL)),
        "this asks for half of the votes; the most votes may be fewer, and two labels may have half each":
            tuple(each(lambda one, order=order: next((x for x in order or one if one.count(x) >= len(one) / 2), NEUTRAL))
                  for order in (None, *permutations(LABELS))),
        "this asks for all votes: one reader who differs should be outvoted":
            each(lambda one: one[0] if len(set(one)) == 1 else NEUTRAL),
        "this rounds the mean of the votes as numbers: negative, positive, positive would come out as neutral":
            tuple(each(lambda one, whole=whole: LABELS[whole(sum(map(LABELS.index, one)) / len(one))])
                  for whole in (round, lambda x: int(x + 0.5), math.ceil, math.floor)),
        "this is the median, which takes the labels for numbers; count the votes for each label":
            (each(lambda one: sorted(one)[len(one) // 2]), each(lambda one: sorted(one)[(len(one) - 1) // 2])),
        "neutral votes are not counted, or weigh nothing; neutral is a label like the others, and wins with the most votes":
            each(lambda one: LABELS[int(np.sign(one.count(POSITIVE) - one.count(NEGATIVE))) + 1]),
        "positive and negative on one passage make it neutral, whatever the numbers; one who differs should be outvoted":
            {"counted": lambda one: [] if {NEGATIVE, POSITIVE} <= {*one} else one},
        "this is the label of the first (or the last) reader: count the others' too":
            (each(lambda one: one[0]), each(lambda one: one[-1])),
        "a tie goes to the label that was voted for last; it is neutral": {"tie": lambda best, one: first_of(one[::-1], best)},
        "this is the label with the fewest votes": each(lambda one: Counter(one).most_common()[-1][0]),
        "a tie gets no label, None; it is neutral": {"tie": lambda best, one: None},
        "these are numbers of classes; return the labels themselves":
            (lambda votes: list(map(LABELS.index, voted(votes))), lambda votes: [LABELS.index(one) - 1 for one in voted(votes)]),
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 5.4


def draw_readings(generator):
    yield {"first": [POSITIVE, POSITIVE], "second": [POSITIVE, NEUTRAL]}
    yield {"first": [NEGATIVE, NEUTRAL, NEGATIVE], "second": [NEUTRAL, NEUTRAL, NEUTRAL]}
    yield {"first": [NEUTRAL], "second": [NEGATIVE]}
    for count in (12, 60):
        first = [POSITIVE, *read_by(generator, count)]
        yield {"first": first, "second": [NEGATIVE, *read_again(generator, first[1:])]}
    yield {"first": [NEUTRAL] * 300, "second": [NEUTRAL] * 299 + [POSITIVE]}


def counts_by_place(first, second):
    places = [3 * LABELS.index(a) + LABELS.index(b) for a, b in zip(first, second)]
    return torch.tensor(places).bincount(minlength=9).view(3, 3)


def table(first, second, *, then=lambda t: t, orders=lambda first, second: (LABELS, LABELS)):
    rows, columns = orders(first, second)
    return then(torch.tensor([[list(zip(first, second)).count((a, b)) for b in columns] for a in rows]))


def compare_tables(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got, expected, "passages by the first reader's label (rows) and the second's (columns)")


confusion = Exercise(
    "5.4", "confusion",
    draw=draw_readings,
    right=counts_by_place,
    formula=table,
    picture=compare_tables,
    mistakes={
        "rows and columns are swapped: the row is the first reader's label, the column the second's": {"then": lambda t: t.T},
        "only labels that were given have a row and a column; keep all three, or two matrices cannot be compared":
            ({"orders": lambda first, second: 2 * [sorted({*first, *second})]},
             {"orders": lambda first, second: (sorted({*first}), sorted({*second}))}),
        "rows and columns stand in order of appearance; their order is negative, neutral, positive":
            ({"orders": lambda first, second: 2 * [dict.fromkeys([*first, *second, *LABELS])]},
             {"orders": lambda first, second: (dict.fromkeys([*first, *LABELS]), dict.fromkeys([*second, *LABELS]))}),
        "the order of the labels is turned round: it is negative, neutral, positive":
            {"orders": lambda first, second: 2 * [LABELS[::-1]]},
        "these are shares of all passages; return counts":
            ({"then": lambda t: t / t.sum()}, {"then": lambda t: 100 * t / t.sum()}),
        "each row (or column) is divided by its sum; return counts":
            tuple({"then": lambda t, dim=dim, least=least: t / t.sum(dim, keepdim=True).clamp(min=least)}
                  for dim in (0, 1) for least in (0, 1)),
        "a place of the matrix is 1 when the pair occurs at all: an index assignment does not add up; count every passage":
            {"then": lambda t: t.clamp(max=1)},
        "the order of the labels, in the rows or in the columns, is another one than negative, neutral, positive":
            tuple({"orders": lambda first, second, both=both: both} for both in product(permutations(LABELS), repeat=2)
                  if both not in (2 * (LABELS,), 2 * (LABELS[::-1],))),
        "both directions are added up, as if it did not matter who said what; the row is the first reader's label":
            ({"then": lambda t: t + t.T}, {"then": lambda t: (t + t.T) / 2}, {"then": lambda t: t + t.T - t.diag().diag()}),
        "these are products of the readers' own counts, what chance would give; count the pairs of labels that there are":
            ({"then": lambda t: t.sum(1)[:, None] * t.sum(0)}, {"then": lambda t: t.sum(1)[:, None] * t.sum(0) / t.sum()}),
        "both lists were sorted first, so labels of different passages are paired":
            lambda first, second: table(sorted(first), sorted(second)),
        "passages with the same label twice are left out, or only they are counted; the diagonal is as good as the rest":
            ({"then": lambda t: t.diag().diag()}, {"then": lambda t: t - t.diag().diag()}),
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 5.5


def draw_pairs_of_readers(generator):
    for words in ("pn p0", "00np 0nnp", "00 00", "p p", "pnp npn", "000 0n0", "pnpp pppp", "nn pp", "n0p n0p", "0ppn p0pn"):
        yield dict(zip(("first", "second"), map(spelled, words.split())))
    for count in (20, 60):
        first = [*LABELS, *read_by(generator, count)]
        yield {"first": first, "second": [POSITIVE, NEUTRAL, POSITIVE, *read_again(generator, first[3:])]}
    yield {"first": [NEUTRAL] * 150, "second": [NEUTRAL] * 149 + [POSITIVE]}  # chance is nearly 1


def kappa_by_pairs(first, second):
    """The chance part by brute force: how often any label of one agrees with any label of the other."""
    if len({*first, *second}) == 1:
        return torch.tensor(1.0)
    observed = sum(a == b for a, b in zip(first, second)) / len(first)
    chance = sum(a == b for a in first for b in second) / len(first) ** 2
    return torch.tensor((observed - chance) / (1 - chance))


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def kappa(first, second, *, chance=dot, end=lambda o, c: (o - c) / (1 - c), one=1.0, sure=lambda c, *readers: c == 1):
    """`chance` makes p_e of the shares of the labels, `end` kappa of p_o and p_e; `one` is the value where all is `sure`."""
    shares = [[labels.count(label) / len(labels) for label in LABELS] for labels in (first, second)]
    c = chance(*shares)
    return torch.tensor(one if sure(c, {*first}, {*second}) else end(sum(a == b for a, b in zip(first, second)) / len(first), c))


def weighted(power):
    def apart(pairs):
        return sum(abs(LABELS.index(a) - LABELS.index(b)) ** power for a, b in pairs)

    return lambda first, second: torch.tensor(1 - len(first) * apart(zip(first, second)) / (apart(product(first, second)) or 1))


def clear_kappa(first, second, neutral=all, empty=None):
    """Without the passages on which all (any) of the readers say neutral; of none left, `empty` or an error."""
    some = [pair for pair in zip(first, second) if not neutral(label == NEUTRAL for label in pair)]
    return kappa(*zip(*some)) if some else torch.tensor(0 / len(some) if empty is None else empty)


def one_sided(square):
    """Chance from one reader's shares alone, with what may be said where it is 1."""
    apart = {"sure": lambda c, a, b: len(a | b) == 1, "end": lambda o, c: (o - c) / (1 - c) if c < 1 else 0.0}
    return tuple({"chance": square, **more} for more in ({}, {"one": 0.0}, apart))


cohen_kappa = Exercise(
    "5.5", "cohen_kappa",
    draw=draw_pairs_of_readers,
    right=kappa_by_pairs,
    formula=kappa,
    mistakes={
        "this is the share of equal labels; kappa subtracts what two readers have in common by chance": {"end": lambda o, c: o},
        "chance is taken as 1/3; readers who say neutral most of the time agree by chance far more often":
            {"chance": lambda a, b: 1 / 3},
        "chance is taken as 1/2, or as 1 / the labels that were given; multiply the readers' shares of each label, and add up":
            ({"chance": lambda a, b: 1 / 2}, {"chance": lambda a, b: 1 / sum(x + y > 0 for x, y in zip(a, b))}),
        "chance is made from both readers' labels in one pot (Scott's pi); multiply each reader's own shares":
            {"chance": lambda a, b: sum(((x + y) / 2) ** 2 for x, y in zip(a, b))},
        "chance is made from the first reader's shares alone; multiply them with the second's":
            one_sided(lambda a, b: dot(a, a)),
        "chance is made from the second reader's shares alone; multiply them with the first's":
            one_sided(lambda a, b: dot(b, b)),
        "neutral is left out of the chance; readers agree on it by chance, too": {"chance": lambda a, b: dot(a[::2], b[::2])},
        "chance leaves out labels that no passage has from both readers; each reader's own shares are what counts":
            lambda first, second: kappa(first, second, chance=lambda a, b: sum(
                x * y for x, y, label in zip(a, b, LABELS) if (label, label) in zip(first, second))),
        "passages that one or both call neutral are left out; agreement on neutral is agreement":
            tuple(partial(clear_kappa, neutral=some, empty=empty) for some in (all, any) for empty in (None, 1.0, 0.0)),
        "this is not divided by 1 - chance: readers who always agree must come out at 1":
            ({"end": lambda o, c: o - c}, {"end": lambda o, c: o - c, "sure": lambda *given: False}),
        "chance is made from the most frequent labels alone; add up all three":
            ({"chance": lambda a, b: max(x * y for x, y in zip(a, b))}, {"chance": lambda a, b: max(a) * max(b)}),
        "this weighs how far two labels are apart (weighted kappa); here they are the same or not": (weighted(1), weighted(2)),
        "this is divided by 1 - agreement; divide by 1 - chance": {"end": lambda o, c: (o - c) / (1 - o) if o < 1 else 1.0},
        "when both readers give every passage the same one label this divides 0 by 0: they agree fully, return 1":
            ({"one": math.nan}, {"sure": lambda *given: False}),
        "when both readers give every passage the same one label this returns 0: they agree fully, return 1": {"one": 0.0},
        "a reader with one label only is not full agreement: return 1 only when both give every passage the same one":
            tuple({"sure": lambda c, a, b, most=most: most(len(a), len(b)) == 1} for most in
                  (max, min, lambda a, b: a, lambda a, b: b)),
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 5.6


def draw_counts(generator):
    for right, total, z in ((1, 1, 1.96), (0, 10, 1.96), (0, 1, 1.5), (1, 10, 2.0), (30, 30, 1.645), (742, 867, 2.6)):
        yield {"right": right, "total": total, "z": z}
    for total in (20, 500):
        yield {"right": int(torch.randint(1, total // 3, (1,), generator=generator)), "total": total, "z": 1.96}


def wilson_by_halving(right, total, z):
    """The probabilities p that are z standard errors away from the share: each found by halving an interval."""
    share, bounds = right / total, []
    for outside, inside in ((0.0, share), (1.0, share)):
        for _ in range(60):
            middle = (outside + inside) / 2
            far = (share - middle) ** 2 > z**2 * middle * (1 - middle) / total
            outside, inside = (middle, inside) if far else (outside, middle)
        bounds.append(torch.tensor(inside))
    return tuple(bounds)


def wilson(right, total, z, *, level=None, centre=lambda s, n, z: s + z**2 / (2 * n), under=lambda n, z: 1 + z**2 / n,
           last=lambda n, z: z**2 / (4 * n**2), half=lambda s, n, z, last: z * math.sqrt(s * (1 - s) / n + last(n, z)),
           end=lambda c, h, d: ((c - h) / d, (c + h) / d)):  # fmt: skip
    s, n, z = right / total, total, level or z
    low, high = end(centre(s, n, z), half(s, n, z, last), under(n, z))
    return torch.tensor(low), torch.tensor(high)


PLAIN = {"centre": lambda s, n, z: s, "last": lambda n, z: 0.0, "under": lambda n, z: 1.0}
CUT = {"end": lambda c, h, d: (max(0.0, (c - h) / d), min(1.0, (c + h) / d))}


def by_scipy(method):
    """Another of SciPy's intervals, at the level of z or at 95 %."""
    return tuple(lambda right, total, z, level=level: tuple(map(torch.tensor, stats.binomtest(right, total).proportion_ci(
        level or 1 - 2 * stats.norm.sf(z), method))) for level in (None, 0.95))  # fmt: skip


wilson_interval = Exercise(
    "5.6", "wilson_interval",
    draw=draw_counts,
    right=wilson_by_halving,
    formula=wilson,
    mistakes={
        "this is the plain interval, share +- z standard errors: with all right it has no width; use Wilson's": PLAIN,
        "this is the plain interval cut off at 0 and 1: with all right it still has no width; use Wilson's": {**PLAIN, **CUT},
        "z is 1.96 whatever the argument says": {"level": 1.96},
        "the division by 1 + z^2 / n is missing": ({"under": lambda n, z: 1.0}, {"under": lambda n, z: 1.0, **CUT}),
        "of centre and half width only one is divided by 1 + z^2 / n; both are":
            ({"end": lambda c, h, d: (c / d - h, c / d + h)}, {"end": lambda c, h, d: (c - h / d, c + h / d)}),
        "the divisor is not 1 + z^2 / n: the square or the n is missing, or the 1 is n":
            ({"under": lambda n, z: 1 + z**2}, {"under": lambda n, z: 1 + z / n}, {"under": lambda n, z: n + z**2}),
        "the centre is the share itself; Wilson's lies nearer to one half, (share + z^2 / 2n) / (1 + z^2 / n)":
            ({"centre": lambda s, n, z: s * (1 + z**2 / n)}, {"centre": lambda s, n, z: s}),
        "what is added to the share in the centre is not z^2 / 2n: the square, the 2 or brackets around 2 * n are missing":
            ({"centre": lambda s, n, z: s + z**2 / n}, {"centre": lambda s, n, z: s + z**2 / 2 * n},
             {"centre": lambda s, n, z: s + z / (2 * n)}),
        "the root is missing: a variance is not a standard error":
            {"half": lambda s, n, z, last: z * (s * (1 - s) / n + last(n, z))},
        "z is not in front of the root": {"half": lambda s, n, z, last: math.sqrt(s * (1 - s) / n + last(n, z))},
        "z is squared in front of the root": {"half": lambda s, n, z, last: z**2 * math.sqrt(s * (1 - s) / n + last(n, z))},
        "the term z^2 / 4n^2 in the root is missing: at a share of 0 or 1 it is all the width": {"last": lambda n, z: 0.0},
        "the last term in the root is not z^2 / 4n^2: a square, the 4 or brackets around 4 * n**2 are missing":
            ({"last": lambda n, z: z**2 / (4 * n)}, {"last": lambda n, z: z**2 / n**2}, {"last": lambda n, z: z / (4 * n**2)},
             {"last": lambda n, z: z**2 / 4 * n**2}),
        "this is Clopper and Pearson's exact interval; use Wilson's": by_scipy("exact"),
        "this is Wilson's interval with a correction for continuity; leave that out": by_scipy("wilsoncc"),
        "this is Agresti and Coull's interval, with half of z^2 added to the right and to the wrong ones; use Wilson's":
            {"half": lambda s, n, z, last: z * math.sqrt((s + z**2 / 2 / n) * (1 - s + z**2 / 2 / n) / (n + z**2))},
        "share (1 - share) in the root is not divided by n":
            {"half": lambda s, n, z, last: z * math.sqrt(s * (1 - s) + last(n, z))},
        "the bounds are swapped: return (low, high)": {"end": lambda c, h, d: ((c + h) / d, (c - h) / d)},
        "these are the centre and the half width; return the centre less the half width, and with it added":
            {"end": lambda c, h, d: (c / d, h / d)},
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 5.7


def draw_resamples(generator):
    yield {"values": torch.tensor([0.0, 1.0]), "draws": torch.tensor([[0, 0], [0, 1], [1, 1]])}
    yield {"values": torch.tensor([-2.0, 3.0, 7.0]), "draws": torch.tensor([[2, 0, 2], [1, 1, 1]])}
    again = torch.tensor([[0, 0, 3, 1], [0, 3, 0, 1], [1, 1, 1, 2], [0, 0, 3, 1], [2, 2, 2, 2]])  # some rows and means are equal
    yield {"values": torch.tensor([5.0, -1.0, 2.0, 5.0]), "draws": again}
    for count, times in ((10, 50), (30, 400)):
        values = 1 + 2 * torch.rand(count, generator=generator) ** 3
        yield {"values": values, "draws": torch.randint(count, (times, count), generator=generator)}


def bootstrap_by_sorting(values, draws):
    means = sorted(sum(values[place].item() for place in row) / len(row) for row in draws.tolist())
    bounds = []
    for share in (0.025, 0.975):
        place = share * (len(means) - 1)  # between two of the sorted means, in a line
        low = math.floor(place)
        high = min(low + 1, len(means) - 1)
        bounds.append(torch.tensor(means[low] + (place - low) * (means[high] - means[low])))
    return tuple(bounds)


def resampled(values, draws, *, shares=(0.025, 0.975), of=lambda x: x.mean(1), cut=torch.quantile, end=lambda x, *two: two):
    """`of` makes the means of the drawn values (R, N), `cut` their quantiles."""
    return end(values, *(cut(of(values[draws]), share) for share in shares))


def bells(of, divide):
    """Functions that return a mean +- 1.96 (or 2) standard deviations of what `of` makes of values and draws."""

    def bell(values, draws, correction, width, middle):
        x = of(values, draws)
        half = width * x.std(correction=correction) / divide(len(x))
        return middle(values, x).mean() - half, middle(values, x).mean() + half

    return tuple(partial(bell, correction=correction, width=width, middle=middle) for correction in (1, 0) for width in (1.96, 2)
                 for middle in (lambda values, x: x, lambda values, x: values))  # fmt: skip


bootstrap_interval = Exercise(
    "5.7", "bootstrap_interval",
    draw=draw_resamples,
    right=bootstrap_by_sorting,
    formula=resampled,
    mistakes={
        "this is where 95 % of the values lie, not the mean: draw again, and look at the means of the draws":
            lambda values, draws: tuple(values.quantile(torch.tensor([0.025, 0.975]))),
        "these are quantiles of all drawn values; average each row of draws first": {"of": torch.flatten},
        "the quantiles were taken in each resample and then averaged; each resample gives a mean, and the quantiles are theirs":
            lambda values, draws: tuple(values[draws].quantile(share, dim=1).mean() for share in (0.025, 0.975)),
        "the bounds cut off 5 % on either side, a 90 % interval: 2.5 % on either side leave 95 %": {"shares": (0.05, 0.95)},
        "the bounds do not both cut off 2.5 %, which is 0.025": tuple({"shares": shares} for shares in
            ((0.025, 0.95), (0.05, 0.975), (0.25, 0.75), (0.25, 0.975), (0.005, 0.995), (0.0025, 0.9975), (0.16, 0.84))),
        "0.025 and 0.975 were taken for percent: 2.5 % and 97.5 % of the means are meant": {"shares": (0.00025, 0.00975)},
        "this is the smallest and the largest mean: more draws would make it wider; take the 2.5 and 97.5 % quantiles":
            {"shares": (0.0, 1.0)},
        "the means run over the wrong dimension: each row of draws is one resample": {"of": lambda drawn: drawn.mean(0)},
        "these are sums of the drawn values; take their means": {"of": lambda drawn: drawn.sum(1)},
        "these are medians of the resamples; the mean is asked for":
            ({"of": lambda drawn: drawn.median(1).values}, {"of": lambda drawn: drawn.quantile(0.5, dim=1)}),
        "the sums of the drawn values are divided by another number than N":
            ({"of": lambda drawn: drawn.sum(1) / (drawn.shape[1] - 1)}, {"of": lambda drawn: drawn.sum(1) / len(drawn)}),
        "the quantile is one of the means; interpolate in a line between the two nearest, as torch.quantile does it":
            (*({"cut": partial(torch.quantile, interpolation=how)} for how in ("lower", "higher", "nearest", "midpoint")),
             {"cut": lambda x, q: x.sort().values[int(q * len(x))]},
             {"cut": lambda x, q: x.sort().values[int(q * len(x)) - (q > 0.5)]},
             {"cut": lambda x, q: x.sort().values[min(round(q * len(x)), len(x) - 1)]}),
        "this divides the spread of the means by the root of their number again: more draws would fake certainty":
            bells(lambda values, draws: values[draws].mean(1), math.sqrt),
        "mean +- 1.96 standard deviations assumes a symmetric bell; the quantiles of the means need no such thing":
            bells(lambda values, draws: values[draws].mean(1), lambda n: 1),
        "this is the textbook's interval, mean +- 1.96 std / sqrt(N): the draws play no part in it":
            bells(lambda values, draws: values, math.sqrt),
        "the quantiles are reflected at the mean (the basic bootstrap); return them as they are":
            {"end": lambda x, low, high: (2 * x.mean() - high, 2 * x.mean() - low)},
        "the bounds are swapped: return (low, high)": {"end": lambda x, low, high: (high, low)},
        "these are the middle and the half width; return (low, high)":
            ({"end": lambda x, a, b: ((a + b) / 2, (b - a) / 2)}, {"end": lambda x, a, b: (x.mean(), (b - a) / 2)}),
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 5.8


def draw_probabilities(generator):
    for p, known, count in (
        ([0.9, 0.6, 0.1], [0] * 3, 1), ([0.5, 0.95, 0.3, 0.55], [1, 0, 0, 0], 2), ([0.2, 0.35, 0.41], [0, 1, 0], 1),
        ([0.51, 0.96, 0.03, 0.5], [1, 0, 0, 1], 2), ([0.7, 0.4996, 0.5003, 0.5], [0] * 4, 3),
        ([0.5, 1.0, 0.3, 0.0], [1, 0, 0, 1], 2),
    ):  # fmt: skip
        yield {"p_positive": torch.tensor(p), "labelled": torch.tensor(known).bool(), "count": count}
    for size, count in ((8, 3), (20, 6)):
        p = (torch.randperm(40, generator=generator)[:size].float() + 0.7) / 41  # no two equally far from one half
        labelled = torch.rand(size, generator=generator) < 0.4
        labelled[p.sub(0.5).abs().argmin()] = True
        labelled[torch.randperm(size, generator=generator)[:count]] = False
        yield {"p_positive": p, "labelled": labelled, "count": count}


def nearest_by_sorting(p_positive, labelled, count):
    left = [(abs(p - 0.5), place) for place, p in enumerate(p_positive.tolist()) if not labelled[place]]
    return torch.tensor([place for _, place in sorted(left)[:count]])


def picked(p_positive, labelled, count, *, key=lambda p, free: (p - 0.5).abs(), lose=math.inf, hide=lambda labelled: labelled,
           fine=0.0, most=False, sort=lambda x, count, most: x.argsort(descending=most)[:count], end=lambda places, p: places,
           ):  # fmt: skip
    """The places where `key` is least (or most), with `lose` for the key of those that `hide` says."""
    distance = key(p_positive, p_positive[~labelled]) + fine * labelled
    return end(sort(distance.masked_fill(hide(labelled), lose), count, most), p_positive)


TOPK = {"sort": lambda x, count, most: x.topk(count, largest=most).indices}  # which has another order where there are ties
pick_uncertain = Exercise(
    "5.8", "pick_uncertain",
    draw=draw_probabilities,
    right=nearest_by_sorting,
    call=with_type,
    formula=picked,
    mistakes={
        "passages that have a label already are picked again: leave them out": {"hide": torch.zeros_like},
        "`labelled` is used the wrong way round: True is where a label is already, and that passage is left out":
            ({"hide": torch.logical_not}, {"hide": torch.logical_not, **TOPK}),
        "the labelled passages are given a distance that wins; give them one that loses":
            ({"lose": 0.0}, {"lose": 0.0, **TOPK}, {"lose": -1.0}, {"lose": -1.0, **TOPK}),
        "the penalty on labelled passages is so small that some are picked all the same; a distance is up to 0.5":
            tuple({"hide": torch.zeros_like, "fine": fine} for fine in (0.05, 0.1, 0.2, 0.25, 0.3, 0.4)),
        "these are places among the unlabelled passages; translate them back to places among all":
            lambda p_positive, labelled, count: (p_positive[~labelled] - 0.5).abs().argsort()[:count],
        "these are the passages the model is surest of: the label would tell it what it knows; take those nearest 0.5":
            {"lose": -1.0, "most": True},
        "the largest distances come first, labelled passages before all; the smallest should":
            ({"most": True}, {"most": True, **TOPK}),
        "these are the most positive passages; take those nearest 0.5": {"key": lambda p, free: -p},
        "these are the most negative passages; take those nearest 0.5": {"key": lambda p, free: p},
        "only passages on one side of 0.5 are picked: take the distance to 0.5, without its sign":
            tuple({"key": lambda p, free, sign=sign: torch.where(sign * (p - 0.5) < 0, 2, sign * (p - 0.5))} for sign in (1, -1)),
        "these are nearest to the mean (or median) of the probabilities; take those nearest 0.5":
            ({"key": lambda p, free: (p - p.mean()).abs()}, {"key": lambda p, free: (p - p.median()).abs()},
             {"key": lambda p, free: (p - free.mean()).abs()}),
        "the right passages, but in order of their places or of their probabilities; put the most uncertain first":
            tuple({"end": end} for end in (lambda places, p: places.sort().values, lambda places, p: places[p[places].argsort()],
                                           lambda places, p: places[p[places].argsort()].flip(0))),
        "the right passages, but the nearest to 0.5 comes last; put it first": {"end": lambda places, p: places.flip(0)},
        "this returns the probabilities, or their distances to 0.5; return the places of the passages":
            ({"end": lambda places, p: p[places]}, {"end": lambda places, p: (p[places] - 0.5).abs()}),
        "these are places as floats; to be used as places they have to be whole": {"end": lambda places, p: places.float()},
    },
)  # fmt: skip
