"""Chapter 05: soft targets, halves that stay apart, votes, agreement between readers, intervals, and what to label next."""

import hashlib
import math
import random
from collections import Counter

import torch

from rlhf_lib.exercises.declare import Exercise

LABELS = ("negative", "neutral", "positive")


def read_by(generator, count, chances=(0.4, 0.35, 0.25)):
    """`count` labels of a reader with these shares of negative, neutral and positive."""
    return [LABELS[place] for place in torch.multinomial(torch.tensor(chances), count, True, generator=generator).tolist()]


def read_again(generator, labels, slips=0.3):
    """A second reader of the same passages, who gives `slips` of them a label at random."""
    others = read_by(generator, len(labels), (0.2, 0.6, 0.2))
    slip = torch.rand(len(labels), generator=generator) < slips
    return [other if slipped else label for label, other, slipped in zip(labels, others, slip)]


# ----------------------------------------------------------------------------------------- 5.1

soft_targets = Exercise("5.1", "soft_targets")


@soft_targets.inputs
def _(generator):
    yield {"labels": ["positive"]}
    yield {"labels": ["negative", "neutral", "positive"]}
    for count in (5, 12):
        yield {"labels": ["neutral", *read_by(generator, count), "negative", "positive"]}


@soft_targets.oracle
def _(labels):
    return torch.tensor([("negative", "neutral", "positive").index(label) / 2 for label in labels])


def with_values(labels, negative, neutral, positive):
    return torch.tensor([{"negative": negative, "neutral": neutral, "positive": positive}[label] for label in labels])


@soft_targets.mistake("neutral is 0 here, like negative; a passage without feeling is as likely either: 0.5")
def _(labels):
    return with_values(labels, 0.0, 0.0, 1.0)


@soft_targets.mistake("neutral is 1 here, like positive; a passage without feeling is as likely either: 0.5")
def _(labels):
    return with_values(labels, 0.0, 1.0, 1.0)


@soft_targets.mistake("these run from -1 to 1; a target of cross-entropy is a probability, from 0 to 1")
def _(labels):
    return with_values(labels, -1.0, 0.0, 1.0)


@soft_targets.mistake("these are the numbers of the classes, 0, 1 and 2; a target is a probability, from 0 to 1")
def _(labels):
    return with_values(labels, 0.0, 1.0, 2.0)


@soft_targets.mistake("this is the probability of negative: turn it round, positive is 1")
def _(labels):
    return with_values(labels, 1.0, 0.5, 0.0)


@soft_targets.mistake("neutral passages are left out: they teach the model not to guess, so keep them with 0.5")
def _(labels):
    return with_values([label for label in labels if label != "neutral"], 0.0, 0.5, 1.0)


# ----------------------------------------------------------------------------------------- 5.2

split_labels = Exercise("5.2", "split_labels")


class Passage(str):
    """A text whose `hash` depends on the process, as every str's does: `salt` stands for the process."""

    salt = 0

    def __hash__(self):
        return hash((Passage.salt, str(self)))


@split_labels.inputs
def _(generator):
    for count in (400, 600):
        numbers = torch.randint(2000, (count,), generator=generator).tolist()
        yield {"texts": [f"passage {number} of the plays" for number in numbers], "held_out": 0.2}


@split_labels.call
def _(function, texts, held_out):
    """What holds of the halves, whichever hash they come from: split in two processes, in another order, and with more texts."""

    def split(some, process):
        Passage.salt = process
        random.seed(process)
        torch.manual_seed(process)
        return [[str(text) for text in half] for half in function([Passage(text) for text in some], held_out)]

    learn, kept = split(texts, 1)
    later = split(texts, 2)
    turned = split(texts[::-1], 1)
    longer = split([f"new passage {number}" for number in range(100)] + texts, 1)
    share = len(set(kept)) / len(set(texts))
    ends = texts[: len(texts) // 4], texts[-len(texts) // 4 :]
    return {
        "some text is in both halves": bool(set(learn) & set(kept)),
        "every passage is in a half": Counter(learn) + Counter(kept) == Counter(texts),
        "about held_out of them is held out": abs(share - held_out) < 0.1,
        "they come from all over the set": all(sum(t in {*kept} for t in part) < 0.5 * len(part) for part in ends),
        "the next run has the same halves": set(later[1]) == set(kept),
        "another order has the same halves": set(turned[1]) == set(kept),
        "more labels leave the old ones where they are": set(longer[1]) & set(texts) == set(kept),
    }


@split_labels.oracle
def _(texts, held_out):
    draws = [int(hashlib.md5(text.encode()).hexdigest(), 16) / 2**128 for text in texts]
    return [t for t, draw in zip(texts, draws) if draw >= held_out], [t for t, draw in zip(texts, draws) if draw < held_out]


def cut(texts, held_out):
    size = round(held_out * len(texts))
    return texts[size:], texts[:size]


def mixed(texts, seed=None):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return [texts[place] for place in torch.randperm(len(texts), generator=generator).tolist()]


@split_labels.mistake(
    "an unseeded shuffle: the next run tests on passages that this one learned from; let a hash of the text decide"
)
def _(texts, held_out):
    some = mixed(list(dict.fromkeys(texts)))
    kept = set(some[: round(held_out * len(some))])
    return [text for text in texts if text not in kept], [text for text in texts if text in kept]


@split_labels.mistake(
    "an unseeded shuffle, and a passage that is there twice may be in both halves: let a hash of the text decide"
)
def _(texts, held_out):
    return cut(mixed(texts), held_out)


@split_labels.mistake("each half comes from a shuffle of its own and they share passages: the test knows what was learned")
def _(texts, held_out):
    size = round(held_out * len(texts))
    return mixed(texts)[size:], mixed(texts)[:size]


@split_labels.mistake(
    "a seeded shuffle depends on the order and the number of labels: one more label, and all change sides; hash the text"
)
def _(texts, held_out):
    return cut(mixed(texts, seed=0), held_out)


@split_labels.mistake(
    "Python's hash() of a text differs from process to process; use hashlib.sha256(text.encode()) or another fixed hash"
)
def _(texts, held_out):
    kept = {text for text in texts if random.Random(hash(text)).random() < held_out}
    return [text for text in texts if text not in kept], [text for text in texts if text in kept]


@split_labels.mistake("the first or last passages are held out: they come from one or two plays; let a hash of each text decide")
def _(texts, held_out):
    return cut(texts, held_out)


@split_labels.mistake("the halves are swapped: return (learn, held out), and `held_out` is the share of the second")
def _(texts, held_out):
    return split_labels.right(texts, held_out)[::-1]


@split_labels.mistake("passages that are there twice are thrown away; both readings of one passage stay, in the same half")
def _(texts, held_out):
    return split_labels.right(list(dict.fromkeys(texts)), held_out)


# ----------------------------------------------------------------------------------------- 5.3

majority_vote = Exercise("5.3", "majority_vote")


@majority_vote.inputs
def _(generator):
    negative, neutral, positive = LABELS
    yield {"votes": [[positive]]}
    yield {"votes": [[positive, negative]]}
    yield {"votes": [[negative, positive, positive], [positive, neutral]]}
    yield {"votes": [[neutral, positive, positive, negative], [negative, positive, negative, positive]]}
    yield {"votes": [[negative, negative, neutral, positive, positive], [positive, positive, negative]]}
    for passages, readers in ((4, 3), (8, 5)):
        yield {"votes": [read_by(generator, readers, (1 / 3, 1 / 3, 1 / 3)) for _ in range(passages)]}


@majority_vote.oracle
def _(votes):
    found = []
    for one in votes:
        best = [label for label in LABELS if all(one.count(label) >= one.count(other) for other in LABELS)]
        found.append(best[0] if len(best) == 1 else "neutral")
    return found


@majority_vote.mistake("a tie goes to the label that was voted for first; who happened to read first should not decide: neutral")
def _(votes):
    return [Counter(one).most_common(1)[0][0] for one in votes]


@majority_vote.mistake("a tie goes to the first label of the alphabet, so to negative; a tie is neutral")
def _(votes):
    return [max(LABELS, key=one.count) for one in votes]


@majority_vote.mistake("a tie goes to the last label of the alphabet, so to positive; a tie is neutral")
def _(votes):
    return [max(LABELS[::-1], key=one.count) for one in votes]


@majority_vote.mistake("this asks for more than half of the votes; the most votes are enough, when no other label has as many")
def _(votes):
    return [next((label for label in LABELS if one.count(label) > len(one) / 2), "neutral") for one in votes]


@majority_vote.mistake("this asks for all votes: one reader who differs should be outvoted")
def _(votes):
    return [one[0] if len(set(one)) == 1 else "neutral" for one in votes]


@majority_vote.mistake("this rounds the mean of the votes as numbers: negative, positive, positive would come out as neutral")
def _(votes):
    return [LABELS[round(sum(map(LABELS.index, one)) / len(one))] for one in votes]


@majority_vote.mistake("this is the first reader's label: count the others' too")
def _(votes):
    return [one[0] for one in votes]


# ----------------------------------------------------------------------------------------- 5.4

confusion = Exercise("5.4", "confusion")


@confusion.inputs
def _(generator):
    yield {"first": ["positive", "positive"], "second": ["positive", "neutral"]}
    yield {"first": ["negative", "neutral", "negative"], "second": ["neutral", "neutral", "neutral"]}
    for count in (12, 60):
        first = ["positive", *read_by(generator, count)]
        yield {"first": first, "second": ["negative", *read_again(generator, first[1:])]}


@confusion.oracle
def _(first, second):
    pairs = list(zip(first, second))
    return torch.tensor([[pairs.count((a, b)) for b in LABELS] for a in LABELS])


@confusion.mistake("rows and columns are swapped: the row is the first reader's label, the column the second's")
def _(first, second):
    return confusion.right(second, first)


@confusion.mistake("only labels that were given have a row and a column; keep all three, or two matrices cannot be compared")
def _(first, second):
    given = [place for place, label in enumerate(LABELS) if label in first + second]
    return confusion.right(first, second)[given][:, given]


@confusion.mistake("rows and columns stand in order of appearance; their order is negative, neutral, positive")
def _(first, second):
    order = list(dict.fromkeys([*first, *second, *LABELS]))
    places = [LABELS.index(label) for label in order]
    return confusion.right(first, second)[places][:, places]


@confusion.mistake("these are shares of all passages; return counts")
def _(first, second):
    return confusion.right(first, second) / len(first)


@confusion.mistake("each row is divided by its sum; return counts")
def _(first, second):
    counts = confusion.right(first, second)
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


@confusion.mistake(
    "a place of the matrix is 1 when the pair occurs at all: an index assignment does not add up; count every passage"
)
def _(first, second):
    return confusion.right(first, second).clamp(max=1)


@confusion.mistake("the order of the labels is turned round: it is negative, neutral, positive")
def _(first, second):
    return confusion.right(first, second).flip(0, 1)


@confusion.picture
def _(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got, expected, "passages by the first reader's label (rows) and the second's (columns)")


# ----------------------------------------------------------------------------------------- 5.5

cohen_kappa = Exercise("5.5", "cohen_kappa")


@cohen_kappa.inputs
def _(generator):
    negative, neutral, positive = LABELS
    yield {"first": [positive, negative], "second": [positive, neutral]}
    yield {"first": [neutral, neutral, negative, positive], "second": [neutral, negative, negative, positive]}
    yield {"first": [neutral, neutral], "second": [neutral, neutral]}
    for count in (20, 100):
        first = [*LABELS, *read_by(generator, count)]
        yield {"first": first, "second": [positive, neutral, positive, *read_again(generator, first[3:])]}


def kappa(observed, chance):
    return torch.tensor(1.0 if chance == 1 else (observed - chance) / (1 - chance))


def observed_share(first, second):
    return sum(a == b for a, b in zip(first, second)) / len(first)


@cohen_kappa.oracle
def _(first, second):
    """The chance part by brute force: how often any label of one agrees with any label of the other."""
    chance = sum(a == b for a in first for b in second) / len(first) ** 2
    return kappa(observed_share(first, second), chance)


@cohen_kappa.mistake("this is the share of equal labels; kappa subtracts what two readers have in common by chance")
def _(first, second):
    return torch.tensor(observed_share(first, second))


@cohen_kappa.mistake("chance is taken as 1/3; readers who say neutral most of the time agree by chance far more often")
def _(first, second):
    return kappa(observed_share(first, second), 1 / 3)


@cohen_kappa.mistake("chance is made from both readers' labels in one pot (Scott's pi); multiply each reader's own shares")
def _(first, second):
    pot = Counter(first) + Counter(second)
    return kappa(observed_share(first, second), sum((n / (2 * len(first))) ** 2 for n in pot.values()))


@cohen_kappa.mistake("chance is made from the first reader's shares alone; multiply them with the second's")
def _(first, second):
    return kappa(observed_share(first, second), sum((n / len(first)) ** 2 for n in Counter(first).values()))


@cohen_kappa.mistake("this is not divided by 1 - chance: readers who always agree must come out at 1")
def _(first, second):
    chance = sum(first.count(label) * second.count(label) for label in LABELS) / len(first) ** 2
    return torch.tensor(1.0 if chance == 1 else observed_share(first, second) - chance)


@cohen_kappa.mistake("when both readers give every passage the same one label this divides 0 by 0: they agree fully, return 1")
def _(first, second):
    chance = sum(first.count(label) * second.count(label) for label in LABELS) / len(first) ** 2
    return (torch.tensor(observed_share(first, second)) - chance) / (torch.tensor(1.0) - chance)


@cohen_kappa.mistake("when both readers give every passage the same one label this returns 0: they agree fully, return 1")
def _(first, second):
    value = cohen_kappa.right(first, second)
    return 0 * value if len({*first, *second}) == 1 else value


# ----------------------------------------------------------------------------------------- 5.6

wilson_interval = Exercise("5.6", "wilson_interval")


@wilson_interval.inputs
def _(generator):
    yield {"right": 1, "total": 1, "z": 1.96}
    yield {"right": 0, "total": 10, "z": 1.96}
    yield {"right": 1, "total": 10, "z": 1.96}
    yield {"right": 8, "total": 10, "z": 1.0}
    for total in (20, 500):
        yield {"right": int(torch.randint(1, total // 3, (1,), generator=generator)), "total": total, "z": 1.96}
    yield {"right": 742, "total": 867, "z": 2.58}


@wilson_interval.oracle
def _(right, total, z):
    """The probabilities p that are z standard errors away from the share: each found by halving an interval."""
    share, bounds = right / total, []
    for outside, inside in ((0.0, share), (1.0, share)):
        for _ in range(60):
            middle = (outside + inside) / 2
            far = (share - middle) ** 2 > z**2 * middle * (1 - middle) / total
            outside, inside = (middle, inside) if far else (outside, middle)
        bounds.append(torch.tensor(inside))
    return tuple(bounds)


def wilson(right, total, z, shrink=True, under=None):
    share = right / total
    under = 1 + z**2 / total if under is None else under
    centre = share + z**2 / (2 * total) if shrink else share * under
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return torch.tensor((centre - half) / under), torch.tensor((centre + half) / under)


@wilson_interval.mistake("this is the plain interval, share +- z standard errors: with all right it has no width; use Wilson's")
def _(right, total, z):
    share = right / total
    half = z * math.sqrt(share * (1 - share) / total)
    return torch.tensor(share - half), torch.tensor(share + half)


@wilson_interval.mistake("this is the plain interval cut off at 0 and 1: with all right it still has no width; use Wilson's")
def _(right, total, z):
    share = right / total
    half = z * math.sqrt(share * (1 - share) / total)
    return torch.tensor(max(0.0, share - half)), torch.tensor(min(1.0, share + half))


@wilson_interval.mistake("z is 1.96 whatever the argument says")
def _(right, total, z):
    return wilson(right, total, 1.96)


@wilson_interval.mistake("the division by 1 + z^2 / n is missing")
def _(right, total, z):
    return wilson(right, total, z, under=1.0)


@wilson_interval.mistake("the centre is the share itself; Wilson's lies nearer to one half, (share + z^2 / 2n) / (1 + z^2 / n)")
def _(right, total, z):
    return wilson(right, total, z, shrink=False)


@wilson_interval.mistake("the root is missing: a variance is not a standard error")
def _(right, total, z):
    share, under = right / total, 1 + z**2 / total
    half = z * (share * (1 - share) / total + z**2 / (4 * total**2))
    centre = share + z**2 / (2 * total)
    return torch.tensor((centre - half) / under), torch.tensor((centre + half) / under)


@wilson_interval.mistake("the term z^2 / 4n^2 in the root is missing: at a share of 0 or 1 it is all the width there is")
def _(right, total, z):
    share, under = right / total, 1 + z**2 / total
    half, centre = z * math.sqrt(share * (1 - share) / total), share + z**2 / (2 * total)
    return torch.tensor((centre - half) / under), torch.tensor((centre + half) / under)


@wilson_interval.mistake("the bounds are swapped: return (low, high)")
def _(right, total, z):
    return wilson(right, total, z)[::-1]


# ----------------------------------------------------------------------------------------- 5.7

bootstrap_interval = Exercise("5.7", "bootstrap_interval")


@bootstrap_interval.inputs
def _(generator):
    yield {"values": torch.tensor([0.0, 1.0]), "draws": torch.tensor([[0, 0], [0, 1], [1, 1]])}
    for count, times in ((10, 50), (30, 400)):
        values = 1 + 2 * torch.rand(count, generator=generator) ** 3
        yield {"values": values, "draws": torch.randint(count, (times, count), generator=generator)}


@bootstrap_interval.oracle
def _(values, draws):
    means = sorted(sum(values[place].item() for place in row) / len(row) for row in draws.tolist())
    bounds = []
    for share in (0.025, 0.975):
        place = share * (len(means) - 1)  # between two of the sorted means, in a line
        low = math.floor(place)
        high = min(low + 1, len(means) - 1)
        bounds.append(torch.tensor(means[low] + (place - low) * (means[high] - means[low])))
    return tuple(bounds)


def between(x, low=0.025, high=0.975):
    return tuple(x.quantile(torch.tensor([low, high], dtype=x.dtype)).unbind())


@bootstrap_interval.mistake("this is where 95 % of the values lie, not the mean: draw again, and look at the means of the draws")
def _(values, draws):
    return between(values)


@bootstrap_interval.mistake("the bounds cut off 5 % on either side, a 90 % interval: 2.5 % on either side leave 95 %")
def _(values, draws):
    return between(values[draws].mean(1), 0.05, 0.95)


@bootstrap_interval.mistake(
    "this is the smallest and the largest mean: more draws would make it wider; take the 2.5 and 97.5 % quantiles"
)
def _(values, draws):
    return between(values[draws].mean(1), 0.0, 1.0)


@bootstrap_interval.mistake("the means run over the wrong dimension: a row of draws is one resample, so average over each row")
def _(values, draws):
    return between(values[draws].mean(0))


@bootstrap_interval.mistake(
    "this divides the spread of the means by the root of their number again: more draws would fake certainty"
)
def _(values, draws):
    means = values[draws].mean(1)
    half = 1.96 * means.std() / math.sqrt(len(means))
    return means.mean() - half, means.mean() + half


@bootstrap_interval.mistake(
    "mean +- 1.96 standard deviations assumes a symmetric bell; the quantiles of the means need no such thing"
)
def _(values, draws):
    means = values[draws].mean(1)
    return means.mean() - 1.96 * means.std(), means.mean() + 1.96 * means.std()


@bootstrap_interval.mistake("the bounds are swapped: return (low, high)")
def _(values, draws):
    return between(values[draws].mean(1))[::-1]


# ----------------------------------------------------------------------------------------- 5.8

pick_uncertain = Exercise("5.8", "pick_uncertain")


@pick_uncertain.inputs
def _(generator):
    yield {"p_positive": torch.tensor([0.9, 0.6, 0.1]), "labelled": torch.tensor([False, False, False]), "count": 1}
    yield {"p_positive": torch.tensor([0.5, 0.95, 0.3, 0.55]), "labelled": torch.tensor([True, False, False, False]), "count": 2}
    for size, count in ((8, 3), (20, 6)):
        p = (torch.randperm(40, generator=generator)[:size].float() + 0.7) / 41  # no two equally far from one half
        labelled = torch.rand(size, generator=generator) < 0.4
        labelled[p.sub(0.5).abs().argmin()] = True
        labelled[torch.randperm(size, generator=generator)[:count]] = False
        yield {"p_positive": p, "labelled": labelled, "count": count}


@pick_uncertain.oracle
def _(p_positive, labelled, count):
    left = [(abs(p - 0.5), place) for place, p in enumerate(p_positive.tolist()) if not labelled[place]]
    return torch.tensor([place for _, place in sorted(left)[:count]])


@pick_uncertain.mistake("passages that have a label already are picked again: leave them out")
def _(p_positive, labelled, count):
    return (p_positive - 0.5).abs().argsort()[:count]


@pick_uncertain.mistake("these are places among the unlabelled passages; translate them back to places among all")
def _(p_positive, labelled, count):
    return (p_positive[~labelled] - 0.5).abs().argsort()[:count]


@pick_uncertain.mistake(
    "these are the passages the model is surest of: the label would tell it what it knows; take those nearest 0.5"
)
def _(p_positive, labelled, count):
    return (p_positive - 0.5).abs().masked_fill(labelled, -1).argsort(descending=True)[:count]


@pick_uncertain.mistake("these are the most positive passages; take those nearest 0.5")
def _(p_positive, labelled, count):
    return p_positive.masked_fill(labelled, -1).argsort(descending=True)[:count]


@pick_uncertain.mistake("these are the most negative passages; take those nearest 0.5")
def _(p_positive, labelled, count):
    return p_positive.masked_fill(labelled, 2).argsort()[:count]


@pick_uncertain.mistake("only passages above 0.5 are picked: take the distance to 0.5, without its sign")
def _(p_positive, labelled, count):
    return (p_positive - 0.5).masked_fill(labelled | (p_positive < 0.5), 2).argsort()[:count]


@pick_uncertain.mistake("the right passages, but in order of their place; put the most uncertain first")
def _(p_positive, labelled, count):
    return pick_uncertain.right(p_positive, labelled, count).sort().values


@pick_uncertain.mistake("this returns the probabilities; return the places of the passages")
def _(p_positive, labelled, count):
    return p_positive[pick_uncertain.right(p_positive, labelled, count)]
