"""Chapter 05: soft targets, halves that stay apart, votes, and agreement between readers."""

import hashlib
import math
import random
from collections import Counter
from functools import cache, partial
from itertools import permutations, product

import numpy as np
import torch

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
    drawn = ([NEUTRAL, *read_by(generator, count), NEGATIVE, POSITIVE] for count in (5, 12, 1098))
    yield from ({"labels": labels} for labels in ([POSITIVE], [NEUTRAL], [POSITIVE, NEGATIVE], list(LABELS), *drawn))


def targets_of(labels, *, values=(0.0, 0.5, 1.0), dtype=torch.float32, use=LABELS):
    return torch.tensor([values[LABELS.index(label)] for label in labels if label in use], dtype=dtype)


def by_order(labels, some, whole=True):
    """The place of each label among `some`, as a share of the last place or of 2."""
    some = list(some)
    return torch.tensor([some.index(label) / (max(1, len(some) - 1) if whole else 2) for label in labels])


def in_blocks(labels, size, rest):
    """Whole blocks of `size` alone, where there is one; `rest` behind them."""
    whole = len(labels) // size * size or len(labels)
    return torch.cat([targets_of(labels[:whole]), torch.full((len(labels) - whole,), rest)])


def with_type(function, **given):
    tensor = function(**given)
    return {"values": tensor, "are floats": torch.as_tensor(tensor).is_floating_point()}


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
        "neutral has changed places with negative or positive: negative is 0, neutral 0.5, positive 1":
            ({"values": (0.5, 0.0, 1.0)}, {"values": (0.0, 1.0, 0.5)}),
        "the targets are smoothed; negative is 0 and positive 1, as the reader said":
            tuple({"values": (one, 0.5, 1 - one)} for one in (0.01, 0.05, 0.1, 0.2, 0.25)),
        "the numbers depend on which labels are in the list, or which comes first; each label has one target, whatever is given":
            tuple(partial(lambda labels, order, whole: by_order(labels, order(labels), whole), order=order, whole=whole)
                  for order in (lambda labels: sorted({*labels}), dict.fromkeys) for whole in (True, False)),
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
        "whole blocks of labels are filled in, and what stands behind the last one is not; every label has its target":
            tuple(partial(in_blocks, size=size, rest=rest) for size in (16, 32, 64, 100, 128, 256, 1000) for rest in (0.5, 0.0)),
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
    numbers = torch.randint(802, (401,), generator=generator).tolist()
    texts = [f"{'ABCDÉFGHIJK'[n % 11]}. Say on{LONG}.\nTwas {n} of us\n{'who went ' * (n % 5)}{LONG}." for n in numbers]
    yield {"texts": [*texts, " Exit. \n"], "held_out": 0.35}  # one input: two might have two different faults


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
    off = lambda *some: max(abs(share(one) - one) for one in some)  # noqa: E731

    def with_skips(some):  # whether the text behind each held-out one is skipped, as in a list that shrinks while it is read
        first = [some[place] in held(some[place:] + some[:place], share=0.6) for place in range(len(some))]  # none is before it
        found, place = set(), 0
        while place < len(some):
            found |= {some[place]} if first[place] else set()
            place += 1 + first[place]
        return not all(first) and found == held(some, share=0.6) != {text for text, out in zip(some, first) if out}

    half_negative = (lambda one: (1 + one) / 2, lambda one: min(1, 0.5 + one))
    far = lambda of: max(abs(share(one) - of(one)) for one in (held_out, 1 - held_out, 0.15))  # noqa: E731
    faults = {
        "a text is in them that did not come in": lambda: set(out) - set(came),
        "some passages are in both, others in neither": lambda: came - out and out - came,
        "a text that came in twice comes out once": lambda: came - out and set(came) == set(out),
        "some passages are in neither": lambda: came - out,
        "some passages are in both": lambda: out - came,
        "another run has others": lambda: held(texts, run=2) != set(kept),
        "another process has others": lambda: held(texts, process=2) != set(kept),
        "the text behind each held-out one is skipped": lambda: with_skips(sorted(many)[:60]),
        "another order has others": lambda: held(texts[100:] + texts[:100]) != set(kept),
        "with more texts, some change sides": lambda: held(texts[:50] + sorted(many)[:100] + texts) & {*texts} != set(kept),
        "a text that came in twice is in both": lambda: set(learn) & set(kept),
        "a part of the text decides": lambda: any(map(together, PARTS)),
        "nearly nothing is held out": lambda: share(held_out) < 0.02,
        "nearly all is held out": lambda: share(held_out) > 0.98,
        "another held_out has the same": lambda: abs(share(held_out) - share(1 - held_out)) < 0.1,
        "half of the numbers are negative": lambda: min(map(far, half_negative)) < 0.025,
        "they are swapped": lambda: abs(share(held_out) - 1 + held_out) < 0.04,
        "another share than held_out is held out": lambda: off(held_out, 1 - held_out, 0.15) > 0.04,
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


def shrinking(texts, held_out):
    """By SHA-256, out of the list that the loop runs over."""
    learn, kept = list(texts), set(by_sha256(texts, held_out)[1])
    test = [learn.pop(place) for place, text in enumerate(learn) if text in kept]
    return learn, test


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
        "the text behind each held-out one is skipped: do not remove from the list that the loop runs over; build two new lists":
            shrinking,
        "far more than `held_out` is held out, as when half of the numbers are negative: read the hash's bytes as unsigned":
            ({"share": lambda share: (1 + share) / 2}, {"share": lambda share: 0.5 + share}),
        "the halves are swapped: return (learn, held out), and `held_out` is the share of the second": {"swap": True},
        "passages that are there twice are thrown away; both readings stay, in the same half": {"some": dict.fromkeys},
        "of a passage that is there twice, one may be in each half; all copies of a text belong on one side": first_copies,
        "some passages are in neither half; every one belongs in one of them": {"some": lambda texts: texts[9:]},
        "held-out passages are in the learning half too: the test knows what was learned":
            lambda texts, held_out: (texts, by_sha256(texts, held_out)[1]),
        "the texts that come out are not those that came in: change a copy, for the hash alone": {"copy": str.lower},
        "these are no lists of texts; return two lists with the texts themselves": {"copy": len},
        "(nearly) nothing is held out: divide the hash by the largest number that it can be": {"share": lambda share: 0.0},
        "(nearly) everything is held out: take a hash whose numbers spread evenly, and divide by the largest":
            {"share": lambda share: 1.0},
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
    yield {"votes": [spelled(10 * "p" + 9 * "n"), spelled(9 * "n" + 10 * "0")]}  # as text "9" is above "10"
    for passages, readers in ((4, 3), (8, 5), (12, 4)):
        yield {"votes": [read_by(generator, readers, (1 / 3, 1 / 3, 1 / 3)) for _ in range(passages)]}
    yield {"votes": [spelled(1024 * "p" + 1023 * "n")]}  # 50.02 %
    yield {"votes": list(map(list, zip(*(read_by(generator, 131) for _ in range(3)))))}


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


def as_text(one):
    counts = {label: str(one.count(label)) for label in one}
    best = [label for label, count in counts.items() if count == max(counts.values())]
    return best[0] if len(best) == 1 else NEUTRAL


def by_rounded_shares(one, digits):
    shares = {label: round(one.count(label) / len(one), digits) for label in LABELS}
    best = [label for label in LABELS if shares[label] == max(shares.values())]
    return best[0] if len(best) == 1 else NEUTRAL


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
        "a tie with neutral goes to the other label; it is neutral, like every tie":
            {"tie": lambda best, one: best[best[0] == NEUTRAL] if len(best) == 2 and NEUTRAL in best else NEUTRAL},
        "a single vote is not enough here; it has the most votes, if no other label has one":
            each(lambda one: voted([one])[0] if one.count(voted([one])[0]) > 1 else NEUTRAL),
        "an even number of votes is no tie in itself": each(lambda one: max(one, key=one.count) if len(one) % 2 else NEUTRAL),
        "this asks for more than half of the votes; the most votes are enough, when no other label has as many":
            each(lambda one: next((label for label in LABELS if one.count(label) > len(one) / 2), NEUTRAL)),
        "this asks for half of the votes; the most votes are enough, when no other label has as many":
            each(lambda one: voted([one])[0] if one.count(voted([one])[0]) >= len(one) / 2 else NEUTRAL),
        "votes of earlier passages count again: begin with no votes at each passage":
            lambda votes: voted([[label for one in votes[: place + 1] for label in one] for place in range(len(votes))]),
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
        "the numbers of votes are compared as text, in which 9 is above 10; compare whole numbers": each(as_text),
        "shares are rounded before they are compared, and a lead of one vote is lost; compare the numbers of votes":
            tuple(each(partial(by_rounded_shares, digits=digits)) for digits in (1, 2, 3)),
        "the votes are read by column, as by zip(*votes); each list in `votes` is a passage, not a reader":
            lambda votes: voted(list(zip(*votes))),
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
    yield {"first": [NEUTRAL] * 2300, "second": [NEUTRAL] * 2299 + [POSITIVE]}  # half precision counts to 2048


def counts_by_place(first, second, times=3):
    places = [times * LABELS.index(a) + LABELS.index(b) for a, b in zip(first, second)]
    return torch.tensor(places).bincount(minlength=9).view(3, 3)


def table(first, second, *, then=lambda t: t, orders=lambda first, second: (LABELS, LABELS)):
    rows, columns = orders(first, second)
    return then(torch.tensor([[list(zip(first, second)).count((a, b)) for b in columns] for a in rows]))


def added_up(t):
    """Shares, of which each passage adds 1 / N, in float32."""
    each = np.full(int(t.sum()), 1 / int(t.sum()), np.float32).cumsum()
    return torch.tensor([[each[n - 1] if n else 0.0 for n in row] for row in t.tolist()])


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
            ({"then": lambda t: t / t.sum()}, {"then": lambda t: 100 * t / t.sum()}, {"then": added_up}),
        "every row counts all passages by the second label: [[0] * 3] * 3 is one row three times; make three rows":
            {"then": lambda t: t.sum(0).expand(3, 3)},
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
        "8 bits count to 127 or 255, then begin anew: take whole numbers of 64 bits, or floats":
            ({"then": lambda t: t.to(torch.uint8)}, {"then": lambda t: t.to(torch.int8)}),
        "half precision counts to 2048 (or 256) and stands still there: take whole numbers of 64 bits, or floats":
            tuple({"then": lambda t, most=most: t.clamp(max=most)} for most in (2048, 256)),
        "two pairs of labels have the same number: there are three columns, so a pair's is 3 * row + column":
            tuple(partial(counts_by_place, times=times) for times in (2, 1)),
        "the last passage (or the first) is left out: every one counts":
            (lambda first, second: table(first[:-1], second[:-1]), lambda first, second: table(first[1:], second[1:])),
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
    yield {"first": [NEUTRAL] * 190, "second": [NEUTRAL] * 189 + [POSITIVE]}  # chance is nearly 1, and 190 * 189 above 2**15


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


def in_torch(o, c):
    """Kappa as tensors make it, where x / 0 is no error."""
    return ((torch.tensor(o) - c) / (1 - torch.tensor(c))).item()


def one_sided(square):
    """Chance from one reader's shares alone, with what may be said where it is 1."""
    ends = (lambda o, c: (o - c) / (1 - c) if c < 1 else 0.0, in_torch)
    apart = ({"sure": lambda c, a, b: len(a | b) == 1, "end": end} for end in ends)
    return tuple({"chance": square, **more} for more in ({}, {"one": 0.0}, *apart))


def unshared():
    """Sums in the places of shares, with two ways of seeing full agreement."""
    sure = (lambda c, *readers: c == 1, lambda c, a, b: len(a | b) == 1)

    def made(first, second, observed, chance, sure, end):
        n = len(first)
        return kappa(first, second, chance=lambda a, b: chance(n) * dot(a, b), sure=sure,
                     end=lambda o, c: end(observed(n) * o, c))  # fmt: skip

    ways = [(lambda n: 1, lambda n: n), (lambda n: n, lambda n: 1), (lambda n: n, lambda n: n), (lambda n: n, lambda n: n * n),
            (lambda n: 1, lambda n: n * n), (lambda n: 1, lambda n: n / max(1, n - 1))]  # fmt: skip
    ends = (lambda o, c: (o - c) / (1 - c), in_torch)
    return tuple(partial(made, observed=way[0], chance=way[1], sure=one, end=end) for way in ways for one in sure for end in ends)


def once_divided(first, second, end):
    """The products of counts divided by N, and nothing done where chance is 1: 0 / 0 for one passage alone."""
    return kappa(first, second, chance=lambda a, b: len(first) * dot(a, b), sure=lambda *given: False, end=end)


def from_the_diagonal(first, second, sure, one):
    both = [sum(a == b == label for a, b in zip(first, second)) / len(first) for label in LABELS]
    return kappa(first, second, chance=lambda a, b: dot(both, both), sure=sure, one=one, end=in_torch)


def in_16_bits(first, second):
    ours, theirs = (torch.tensor(list(map(labels.count, LABELS)), dtype=torch.int16) for labels in (first, second))
    return kappa(first, second, chance=lambda a, b: (ours * theirs).sum().item() / len(first) ** 2)


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
        "this is observed - chance / (1 - chance): brackets are missing, (observed - chance) / (1 - chance)":
            {"end": lambda o, c: o - c / (1 - c)},
        "this is not divided by 1 - chance: readers who always agree must come out at 1":
            ({"end": lambda o, c: o - c}, {"end": lambda o, c: o - c, "sure": lambda *given: False}),
        "chance is made from the most frequent labels alone; add up all three":
            ({"chance": lambda a, b: max(x * y for x, y in zip(a, b))}, {"chance": lambda a, b: max(a) * max(b)}),
        "agreement and chance are shares: equal labels are divided by N, each product of two counts by N * N": unshared(),
        "two slips: divide each product of two counts by N * N; return 1 where both give every passage the same one label":
            tuple(partial(once_divided, end=end) for end in (lambda o, c: (o - c) / (1 - c), in_torch)),
        "chance is made from the labels that both gave the same passage, the diagonal; multiply the readers' own shares":
            tuple(partial(from_the_diagonal, sure=sure, one=one) for one in (1.0, 0.0) for sure in (
                lambda c, *readers: c == 1, lambda c, a, b: len(a | b) == 1, lambda *given: False)),
        "a product of two counts goes beyond 16 bits and comes out negative: take whole numbers of 64 bits, or floats":
            in_16_bits,
        "1 is returned as soon as chance is near 1; only where both readers give every passage the same one label":
            tuple({"sure": lambda c, *readers, most=most: c > most} for most in (0.9, 0.95, 0.99)),
        "a kappa below 0 becomes 0: readers may agree less often than by chance":
            {"end": lambda o, c: max(0.0, (o - c) / (1 - c))},
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
