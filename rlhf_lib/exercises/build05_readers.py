"""Build it 5.10, `weigh_readers`: who reads well is found out from the votes alone, by EM (Dawid and Skene 1979)."""

import random

import numpy as np
import torch

from rlhf_lib.exercises.build import Build, Probe
from rlhf_lib.exercises.build05_crowds import (
    EVEN,
    LABELS,
    SWAPPED,
    by_bayes,
    by_counting,
    counted,
    crowd,
    far,
    majority,
    minus_one_counts,
    read,
    reader,
    share_right,
    uncounted,
    whole_rows_alone,
    with_form,
)  # fmt: skip
from rlhf_lib.exercises.declare import Investigation
from rlhf_lib.exercises.surroundings import TimeUp, limited


def run(built, votes):
    return built(votes)


# ----------------------------------------------------------------------------------------- the probes


def draw_odd(generator):
    """A label that nobody gives, a reader who read nothing, passages with one vote."""
    votes = crowd(generator, 20, [reader(0.8)] * 4, shares=(0.5, 0.5, 0.0), unread=0.5)["votes"]
    votes[votes == 2] = 0
    return {"votes": torch.cat([votes, torch.full((20, 1), -1)], dim=1)}


def draw_unanimous(generator):
    truth = torch.cat([torch.tensor(9 * [0] + 9 * [1] + 9 * [2]), torch.randint(3, (9,), generator=generator)])
    return {"votes": truth[:, None].expand(-1, 4).contiguous(), "truth": truth}


def judge_unanimous(p, tables, votes, truth):
    wrong = (p.argmax(1) != truth).nonzero().flatten().tolist()
    if (p - 1 / 3).abs().max() < 1e-3:
        return "p is 1/3 for each label of every passage: from there nothing can ever move; begin with the shares of the votes"
    if wrong:
        got, label = LABELS[int(p[wrong[0]].argmax())], LABELS[truth[wrong[0]]]
        return f"a passage that all four readers call {label} comes out as {got}: columns stand for negative, neutral, positive"
    more = added(votes, tables, p)
    if more > 0.04:
        return f"about {more:.2g} is added to each count, which moves the tables where a label is rare; add 0.01 at most"
    if p.max(1).values.min() < 0.95:
        return f"four readers never differ, and yet p is only {p.max(1).values.min():.2f} on a passage: use what the tables say"
    if far(tables, reader(1.0)) > 0.05:
        return "four readers never differ, and yet their tables are far from 1 on the diagonal"
    return ""


def added(votes, tables, p):
    """What was added to each count of readers who never differ, on average; 0 where it is not the same everywhere."""
    sums, away = counted(votes, p).sum(2, keepdim=True), ~torch.eye(3, dtype=torch.bool)
    more = (tables * sums / (1 - 3 * tables))[:, away]  # x / (sum + 3 x) stands where nothing was counted
    return more.mean().item() if more.isfinite().all() and (more - more.mean()).abs().max() < 0.1 * more.mean() else 0.0


UNREAD = (0.9, 0.85, 0.9, 0.8)


def draw_unread(generator):
    return crowd(generator, 600, [reader(right) for right in UNREAD], unread=0.5)


def judge_unread(p, tables, votes, truth):
    if whole_rows_alone(tables, votes, p):
        return "only passages that every reader has read teach the tables: count each vote that there is, whoever left others out"
    for who, right in enumerate(UNREAD):
        if far(tables[who], reader(right)) > 0.06:
            why = (
                "-1 is no vote (as an index it is the last label, positive)"
                if minus_one_counts(p, tables, votes)
                else "the row is the passage's label, the column what the reader says, and each row is divided by its own sum "
                "before Bayes' rule uses it"
            )
            said = f"a reader who is right on {right:.0%} of what he read has {tables[who].diagonal().mean():.0%}"
            return f"the table of {said} on its diagonal, where half was not read: {why}"
    good = share_right(by_bayes(votes, [reader(right) for right in UNREAD], EVEN), truth)
    right = share_right(p, truth)
    if right < good - 0.03:
        return f"p is right on {right:.0%}, {good:.0%} are possible: that a passage was not read says nothing of its label"
    return ""


def draw_order(generator):
    given = crowd(generator, 120, [reader(right) for right in (0.9, 0.5, 0.6, 0.8)], unread=0.2)
    return {**given, "readers": torch.tensor([2, 0, 3, 1]), "passages": torch.randperm(120, generator=generator)}


def run_order(built, votes, readers, passages):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    found = [built(votes.clone()), built(votes[passages][:, readers].contiguous())]
    same = torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
    return [*found, bool(same and random.getstate() == before[2])]


def judge_order(output, votes, readers, passages, truth):
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
    drawn = "something is drawn at random, and chance may lead elsewhere: begin with each passage's own shares of the votes"
    return "" if output[2] else drawn


def draw_many(generator):
    return crowd(generator, 60, [reader(0.45)] * 1500)


PROMPT = 12.0  # seconds after which is looked whether a build goes on for ever with NaN
ENDLESS, DIVIDED = "goes on for ever with NaN", "divides by 0"


def run_many(built, votes):
    output, error = limited(lambda: built(votes.clone()), PROMPT)
    if isinstance(error, TimeUp):
        return {ENDLESS: True} if has_nan(error.__traceback__) else built(votes)
    if isinstance(error, ZeroDivisionError):
        return {DIVIDED: True}
    if error is not None:
        raise error
    return output


def has_nan(trace):
    """Whether a variable of the functions that an exception came through is or holds NaN."""
    while trace:
        if any(map(is_nan, trace.tb_frame.f_locals.values())):
            return True
        trace = trace.tb_next
    return False


def is_nan(value):
    if torch.is_tensor(value):
        return bool(value.isnan().any())
    return isinstance(value, (float, np.floating, np.ndarray)) and np.asarray(value).dtype.kind == "f" and np.isnan(value).any()


def judge_many(output, votes, truth):
    small = "with 1,500 readers the product of their probabilities is too small for a float, and becomes 0"
    if isinstance(output, dict) and ENDLESS in output:
        return f"{small}; 0 / 0 is NaN, which is never below 1e-4, so the loop does not end: add logarithms"
    if isinstance(output, dict) and DIVIDED in output:
        return f"{small}, so their sum does, too, and p is divided by it: add logarithms"
    p, _, fault = read(output, votes)
    if fault and "NaN" not in fault and "no probability" not in fault:
        return fault
    if fault or (far(p, p.mean(0).expand_as(p)) < 0.01 and p.max() < 0.9):  # nothing is left of the votes
        return f"{small}: add logarithms"
    right = share_right(p, truth)
    if right < 0.95:
        best = share_right(by_bayes(votes, [reader(0.45)] * 1500, EVEN), truth)
        return (
            f"p is right on {right:.0%}, {best:.0%} are possible: Bayes' rule takes the probability of what reader r said, j, "
            "from tables[r, i, j], for each label i"
        )
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
    """And votes of careful readers, beside one who has read six of the passages."""
    given = crowd(generator, 500, [reader(right) for right in (0.75, 0.6, 0.55, 0.5)], shares=(0.2, 0.5, 0.3))
    more = crowd(generator, 200, [reader(0.9)] * 4)
    return {**given, "few": torch.cat([more["votes"], more["truth"].where(torch.arange(200) < 6, -1)[:, None]], dim=1)}


def run_slow(built, votes, few):
    return [built(votes), built(few)]


def judge_slow(output, votes, few, truth):
    fault = with_form(judge_rest)(output[0], votes, truth=truth)
    p, tables, form = read(output[1], few)
    if fault or form:
        return fault or form
    little = "one reader has read six passages, and his table is not what he said of them: a row of few votes is counted too"
    return little if uncounted(tables, few, p) > 0.3 else ""


def judge_rest(p, tables, votes, truth):
    counts, said = counted(votes, p), majority(votes)

    def moved(*some):  # the most that a probability changes in one more step, with some shares and little added to the counts
        rounds = [by_bayes(votes, (counts + more) / (counts + more).sum(2, keepdim=True), one)
                  for one in some for more in (1e-9, 1e-3, 0.005, 0.01, 0.02)]  # fmt: skip
        return min((one - p).abs().max().item() for one in rounds)

    by_votes = said.sum(0) / said.sum(), (said / said.sum(1, keepdim=True)).mean(0)
    if moved(p.mean(0)) < 0.0003 or moved(EVEN) < 0.0003:  # that all labels are as frequent, is the next probe's
        return ""
    if moved(*by_votes) < 0.0003:
        return "p comes to rest with the labels' shares among the votes; count them anew in each step: the mean of p"
    if moved(p.mean(0).exp()) < 0.0003:
        return "p comes to rest with the labels' shares added to logarithms; add the logarithms of the shares"
    end = "go on until none changes by more than 1e-4 (the largest change, not the mean)"
    return f"one more step changes a probability by {moved(p.mean(0)):.4f}: {end}"


TRUTH = {"secret": ("truth",)}

weigh_readers = Build(
    "5.10",
    "weigh_readers",
    [
        Probe("probabilities", draw_odd, run, with_form(lambda p, tables, votes: "")),
        Probe("those who agree are believed", draw_unanimous, run, with_form(judge_unanimous), **TRUTH),
        Probe("the order plays no part", draw_order, run_order, judge_order, **TRUTH),
        Probe("what was not read does not count", draw_unread, run, with_form(judge_unread), **TRUTH),
        Probe("many readers", draw_many, run_many, judge_many, **TRUTH),
        Probe("the careless weigh less", draw_careless, run, with_form(judge_careless), **TRUTH),
        Probe("as sure as it is right", draw_unsure, run, with_form(judge_unsure), **TRUTH),
        Probe("readers lean", draw_leaning, run, with_form(judge_leaning), **TRUTH),
        Probe("mixed up buttons", draw_swapped, run, with_form(judge_swapped), **TRUTH),
        Probe("nothing changes any more", draw_slow, run_slow, judge_slow, **TRUTH),
        Probe("rare labels", draw_rare, run, with_form(judge_rare), **TRUTH),
    ],
)

Investigation("5.A", "How many passages to read twice")
Investigation("5.B", "Careless labels")
