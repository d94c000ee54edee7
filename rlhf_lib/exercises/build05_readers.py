"""Build it 5.10, `weigh_readers`: who reads well is found out from the votes alone, by EM (Dawid and Skene 1979)."""

import torch

from rlhf_lib.exercises.build import Build, Probe
from rlhf_lib.exercises.declare import Investigation

LABELS = ("negative", "neutral", "positive")
EVEN = (1 / 3, 1 / 3, 1 / 3)
SWAPPED = [[0.05, 0.05, 0.9], [0.05, 0.9, 0.05], [0.9, 0.05, 0.05]]  # has mixed up two buttons


def reader(right):
    """The table of a reader who is right on this share of the passages of every label, and else says either of the others."""
    return [[right if i == j else (1 - right) / 2 for j in range(3)] for i in range(3)]


def crowd(generator, count, tables, shares=EVEN, unread=0.0):
    """Votes (N, R) of readers with these tables, -1 where not read; each passage has one at least. And the true labels (N,)."""
    tables = torch.tensor(tables)  # (R, 3, 3)
    truth = torch.multinomial(torch.tensor(shares), count, True, generator=generator)
    votes = torch.multinomial(tables[:, truth].flatten(0, 1), 1, generator=generator).view(len(tables), count).T.contiguous()
    away = torch.rand(votes.shape, generator=generator) < unread
    away[torch.arange(count), torch.randint(len(tables), (count,), generator=generator)] = False
    return {"votes": votes.masked_fill(away, -1), "truth": truth}


def run(built, votes):
    return built(votes)


# ----------------------------------------------------------------------------------------- what is looked at


def read(output, votes):
    """(p (N, 3), tables (R, 3, 3), "") in double precision; or (None, None, what is wrong with the form of the output)."""
    if not (isinstance(output, (list, tuple)) and len(output) == 2 and all(torch.is_tensor(one) for one in output)):
        return None, None, "return a pair of tensors, (p, tables)"
    N, R = votes.shape
    for name, one, shape in (("p", output[0], (N, 3)), ("tables", output[1], (R, 3, 3))):
        if tuple(one.shape) != shape:
            return None, None, f"{name} has the shape {tuple(one.shape)}; with {N} passages and {R} readers it is {shape}"
        if not one.isfinite().all():
            why = "counts that are all 0 were divided by their sum, or the logarithm of 0 was taken"
            return None, None, f"there is a NaN or an infinity in {name}: {why}"
        if (one < -1e-6).any() or (one.double().sum(-1) - 1).abs().max() > 1e-3:
            over = "the three labels" if name == "p" else "what a reader says of passages of one label (a row)"
            return None, None, f"{name} is no probability over {over}: it must be 0 or more, and sum to 1"
    return output[0].double(), output[1].double(), ""


def with_form(judge):
    """A judge of (p, tables) that has first looked at their form."""

    def judged(output, votes, **rest):
        p, tables, fault = read(output, votes)
        return fault or judge(p, tables, votes, **rest)

    return judged


def by_bayes(votes, tables, shares):
    """p (N, 3) for one who knows tables and shares: Bayes' rule, vote by vote."""
    rows = []
    for row in votes.tolist():
        chances = [float(shares[label]) for label in range(3)]
        for who, vote in enumerate(row):
            if vote >= 0:
                chances = [chance * max(float(tables[who][label][vote]), 1e-9) for label, chance in enumerate(chances)]
                chances = [chance / sum(chances) for chance in chances]
        rows.append(chances)
    return torch.tensor(rows, dtype=torch.double)


def by_counting(votes, p):
    """The tables (R, 3, 3) that p implies: counts, a passage counting for each label with its probability."""
    tables = torch.full((votes.shape[1], 3, 3), 1e-9, dtype=torch.double)
    for chances, row in zip(p.tolist(), votes.tolist()):
        for who, vote in enumerate(row):
            if vote >= 0:
                tables[who, :, vote] += torch.tensor(chances, dtype=torch.double)
    return tables / tables.sum(2, keepdim=True)


def share_right(p, truth):
    return (p.argmax(1) == truth).double().mean().item()


def majority(votes):
    return torch.nn.functional.one_hot(votes + 1, 4)[:, :, 1:].sum(1).double()  # (N, 3): counts


def far(one, other):
    return (one - torch.as_tensor(other, dtype=torch.double)).abs().mean().item()


# ----------------------------------------------------------------------------------------- the probes


def draw_odd(generator):
    """A label that nobody gives, a reader who read nothing, passages with one vote."""
    votes = crowd(generator, 20, [reader(0.8)] * 4, shares=(0.5, 0.5, 0.0), unread=0.5)["votes"]
    votes[votes == 2] = 0
    return {"votes": torch.cat([votes, torch.full((20, 1), -1)], dim=1)}


def draw_unanimous(generator):
    truth = torch.randint(3, (240,), generator=generator)
    return {"votes": truth[:, None].expand(-1, 4).contiguous(), "truth": truth}


def judge_unanimous(p, tables, votes, truth):
    wrong = (p.argmax(1) != truth).nonzero().flatten().tolist()
    if (p - 1 / 3).abs().max() < 1e-3:
        return "p is 1/3 for each label of every passage: from there nothing can ever move; begin with the shares of the votes"
    if wrong:
        got, label = LABELS[int(p[wrong[0]].argmax())], LABELS[truth[wrong[0]]]
        return f"a passage that all four readers call {label} comes out as {got}: columns stand for negative, neutral, positive"
    if p.max(1).values.min() < 0.95:
        return f"four readers never differ, and yet p is only {p.max(1).values.min():.2f} on a passage: use what the tables say"
    if far(tables, reader(1.0)) > 0.05:
        return "four readers never differ, and yet their tables are far from 1 on the diagonal"
    return ""


def draw_unread(generator):
    return crowd(generator, 600, [reader(0.9), reader(0.85), reader(0.9), reader(0.8)], unread=0.5)


def judge_unread(p, tables, votes, truth):
    for who, right in enumerate((0.9, 0.85, 0.9, 0.8)):
        if far(tables[who], reader(right)) > 0.06:
            return (
                f"the table of a reader who is right on {right:.0%} of what he read has {tables[who].diagonal().mean():.0%} on "
                "its diagonal, where half was not read: -1 is no vote (as an index it is the last label, positive)"
            )
    good = share_right(by_bayes(votes, [reader(right) for right in (0.9, 0.85, 0.9, 0.8)], EVEN), truth)
    right = share_right(p, truth)
    if right < good - 0.03:
        return f"p is right on {right:.0%}, {good:.0%} are possible: that a passage was not read says nothing of its label"
    return ""


def draw_order(generator):
    given = crowd(generator, 120, [reader(right) for right in (0.9, 0.5, 0.6, 0.8)], unread=0.2)
    return {**given, "readers": torch.tensor([2, 0, 3, 1]), "passages": torch.randperm(120, generator=generator)}


def run_order(built, votes, readers, passages):
    return [built(votes.clone()), built(votes[passages][:, readers].contiguous())]


def judge_order(output, votes, readers, passages, truth):
    if not isinstance(output, (list, tuple)) or len(output) != 2:
        return "return a pair of tensors, (p, tables)"
    p, tables, fault = read(output[0], votes)
    if fault:
        return fault
    other_p, other_tables, fault = read(output[1], votes)
    if fault:
        return fault
    if (other_p - p[passages]).abs().max() > 0.01:
        return (
            "p changes when readers and passages are listed in another order: no reader may be trusted for his place in the list"
        )
    if (other_tables - tables[readers]).abs().max() > 0.01:
        return "a reader's table changes when the readers are listed in another order"
    return ""


def draw_many(generator):
    return crowd(generator, 60, [reader(0.45)] * 1500)


def judge_many(output, votes, truth):
    p, _, fault = read(output, votes)
    if fault and p is None and "NaN" not in fault and "no probability" not in fault:
        return fault
    if fault or share_right(p, truth) < 0.95:
        return "with 1,500 readers the product of their probabilities is too small for a float, and becomes 0: add logarithms"
    return ""


CARELESS = [reader(right) for right in (0.9, 0.88, 0.85, 0.4, 0.4, 0.4, 0.4)]


def draw_careless(generator):
    return crowd(generator, 800, CARELESS)


def judge_careless(p, tables, votes, truth):
    right, best = share_right(p, truth), share_right(by_bayes(votes, CARELESS, EVEN), truth)
    simple = share_right(majority(votes), truth)
    if right < max(best - 0.03, simple + 0.02):
        return (
            f"of seven readers three are careful; p is right on {right:.0%}, a plain majority on {simple:.0%}, and {best:.0%} "
            "are possible: the votes of careless readers weigh too much"
        )
    return ""


def draw_unsure(generator):
    return crowd(generator, 1200, [reader(right) for right in (0.75, 0.72, 0.7, 0.68, 0.65)])


def judge_unsure(p, tables, votes, truth):
    right, sure = share_right(p, truth), p.max(1).values.mean().item()
    if sure > right + 0.07:
        return (
            f"p is {sure:.2f} on average where it is right on {right:.0%}: each round took its best guess for certain; let a "
            "passage count for each label with its probability"
        )
    if sure < right - 0.07:
        return f"p is {sure:.2f} on average where it is right on {right:.0%}: it makes too little of the votes"
    return ""


LEANING = [
    [[0.9, 0.08, 0.02], [0.3, 0.65, 0.05], [0.02, 0.08, 0.9]],  # takes much for negative
    [[0.7, 0.28, 0.02], [0.02, 0.96, 0.02], [0.02, 0.28, 0.7]],  # says neutral where others see a feeling
    [[0.85, 0.1, 0.05], [0.03, 0.62, 0.35], [0.02, 0.03, 0.95]],  # takes much for positive
    reader(0.85),
]


def draw_leaning(generator):
    return crowd(generator, 1500, LEANING)


def judge_leaning(p, tables, votes, truth):
    off, turned = far(tables, LEANING), far(tables.transpose(1, 2), LEANING)
    if off < 0.035:
        return ""
    if turned < off:
        return "the tables are transposed: the row is the passage's label, the column what the reader says"
    evened = torch.stack([torch.tensor(reader(float(table.diagonal().mean()))) for table in tables]).double()
    if far(tables, evened) < 0.01:
        return "each reader has one share of right votes here; keep how often he says what, label by label: readers lean"
    if far(by_counting(votes, p), LEANING) < 0.035:
        return (
            f"the tables are {off:.2f} away from the readers' true ones, and those that the returned p counts are not: tables "
            "and p do not belong together. Count the votes again with that p, and go on until neither changes"
        )
    return f"the tables are {off:.2f} away from the readers' true ones, on average over the entries, where .02 are possible"


def draw_swapped(generator):
    return crowd(generator, 700, [reader(0.8), reader(0.8), reader(0.8), SWAPPED])


def judge_swapped(p, tables, votes, truth):
    best = share_right(by_bayes(votes, [reader(0.8)] * 3 + [SWAPPED], EVEN), truth)
    right = share_right(p, truth)
    if right < best - 0.03:
        return (
            f"one of four readers has mixed up two buttons; p is right on {right:.0%} where {best:.0%} are possible: "
            "he says positive where it is negative, so his table tells what he means"
        )
    if far(tables[3], SWAPPED) > 0.08:
        return "the reader who has mixed up two buttons has a table that does not show it"
    return ""


RARE = (0.06, 0.88, 0.06)


def draw_rare(generator):
    return crowd(generator, 2000, [reader(right) for right in (0.85, 0.8, 0.8, 0.75)], shares=RARE)


def judge_rare(p, tables, votes, truth):
    neutral, true = p[:, 1].mean().item(), (truth == 1).double().mean().item()
    if abs(neutral - true) > 0.05:
        return (
            f"{true:.0%} of the passages are neutral, and p gives neutral {neutral:.0%} on average: how frequent a label is, "
            "is a part of Bayes' rule"
        )
    right = share_right(p, truth)
    if right < true - 0.01:
        return f"p is right on {right:.0%}; who says neutral to everything is on {true:.0%}: use how frequent the labels are"
    return ""


def draw_slow(generator):
    return crowd(generator, 500, [reader(right) for right in (0.75, 0.6, 0.55, 0.5)], shares=(0.2, 0.5, 0.3))


def judge_slow(p, tables, votes, truth):
    counted = by_counting(votes, p)
    moved = min(far(by_bayes(votes, counted, shares), p) for shares in (p.mean(0), EVEN))  # the shares are the next probe's
    if moved > 0.0008:
        end = "go on until no probability changes by more than 1e-4, and add next to nothing to the counts"
        return f"one more round changes p by {moved:.4f} on average: {end}"
    return ""


TRUTH = {"secret": ("truth",)}

weigh_readers = Build(
    "5.10",
    "weigh_readers",
    [
        Probe("probabilities", draw_odd, run, with_form(lambda p, tables, votes: "")),
        Probe("those who agree are believed", draw_unanimous, run, with_form(judge_unanimous), **TRUTH),
        Probe("the order plays no part", draw_order, run_order, judge_order, **TRUTH),
        Probe("what was not read does not count", draw_unread, run, with_form(judge_unread), **TRUTH),
        Probe("many readers", draw_many, run, judge_many, **TRUTH),
        Probe("the careless weigh less", draw_careless, run, with_form(judge_careless), **TRUTH),
        Probe("as sure as it is right", draw_unsure, run, with_form(judge_unsure), **TRUTH),
        Probe("readers lean", draw_leaning, run, with_form(judge_leaning), **TRUTH),
        Probe("mixed up buttons", draw_swapped, run, with_form(judge_swapped), **TRUTH),
        Probe("nothing changes any more", draw_slow, run, with_form(judge_slow), **TRUTH),
        Probe("rare labels", draw_rare, run, with_form(judge_rare), **TRUTH),
    ],
)

Investigation("5.A", "How many passages to read twice")
Investigation("5.B", "Careless labels")
