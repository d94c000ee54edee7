"""Two models' answers compared pair by pair, each pair in both orders, and what the verdicts say.

A judge is a function on lists, judge(prompts, first, second) -> one verdict a pair: "first", "second", "tie", or "refused" where
the judge gave none. People, reward models and language models all fit it.

A judge that sees one order only cannot tell a better answer from a better place. minChatGPT (ethanyanjiali/minChatGPT, commit
311aa3a, src/evaluate.py) reports 88 and 96 % wins from one: lines 166, 192 and 218 put the candidate second in every comparison,
and all three worked examples of the judge's prompt end in "B" (lines 108, 125 and 140), the second one against its own
explanation, which wants A (line 142).
"""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from rlhf_lib.comparisons import words
from rlhf_lib.judge import WinRate

FOR_FIRST = {"first": 1.0, "tie": 0.5, "second": 0.0}  # the points that a verdict gives the answer in the first place
REFUSED = "refused"


class Record(NamedTuple):
    """One pair and its verdicts: `ours_first` when our answer stood first, `ours_second` when it stood second; None where that
    order was not asked for."""

    prompt: str
    ours: str
    theirs: str
    ours_first: str | None
    ours_second: str | None


# ----------------------------------------------------------------------------------------- judges


def compare(judge, prompts, ours, theirs):
    """Ask `judge` about each pair of answers in both orders, in one call.

    Args:
        judge: see the head of this file.
        prompts, ours, theirs: (N,) texts each.

    Returns:
        A list of N Record.

    Raises:
        ValueError: the lists differ in length or are empty, or the judge's answer is not one verdict a question.
    """
    if not len(prompts) == len(ours) == len(theirs) > 0:
        got = f"{len(prompts)} prompts, {len(ours)} and {len(theirs)} answers"
        raise ValueError(f"compare needs as many prompts as answers of each side, at least one, got {got}")
    verdicts = list(judge([*prompts, *prompts], [*ours, *theirs], [*theirs, *ours]))  # (2 N,)
    if len(verdicts) != 2 * len(prompts):
        raise ValueError(f"the judge gave {len(verdicts)} verdicts on {2 * len(prompts)} questions: it must give one each")
    for number, verdict in enumerate(verdicts, 1):
        if verdict not in (*FOR_FIRST, REFUSED):
            raise ValueError(f"verdict {number} is {verdict!r}: a judge says first, second, tie or refused")
    N = len(prompts)
    return [Record(*pair) for pair in zip(prompts, ours, theirs, verdicts[:N], verdicts[N:])]


def score_judge(score):
    """The judge that prefers the higher score; equal scores tie. Each answer is scored once, so the place cannot matter.

    Args:
        score: score(prompts, answers) -> (N,) finite numbers, for instance a gold reward model's.
    """

    def judge(prompts, first, second):
        asked = list(dict.fromkeys([*zip(prompts, first), *zip(prompts, second)]))
        scores = [float(value) for value in score([prompt for prompt, _ in asked], [answer for _, answer in asked])]
        if len(scores) != len(asked) or not all(map(math.isfinite, scores)):
            raise ValueError(f"score must give one finite number an answer; {len(asked)} answers got {scores[:5]} and so on")
        of = dict(zip(asked, scores))
        pairs = [(of[prompt, one], of[prompt, other]) for prompt, one, other in zip(prompts, first, second)]
        return ["first" if one > other else "second" if other > one else "tie" for one, other in pairs]

    return judge


# ----------------------------------------------------------------------------------------- what the verdicts say


def points(record):
    """What our answer got in each order that was asked: 1, 0.5 or 0, one or two numbers."""
    first = [] if record.ours_first is None else [FOR_FIRST[record.ours_first]]
    return first if record.ours_second is None else [*first, 1 - FOR_FIRST[record.ours_second]]


def outcome(record):
    """1 when our answer won in each order that was asked, 0 when it lost in each, else 0.5: only what both orders say counts
    (Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", section 3.4)."""
    got = set(points(record))
    return got.pop() if len(got) == 1 else 0.5


def rate_interval(values):
    """The mean of (N,) values in [0, 1] and its 95 % interval, as WinRate.

    Half a win, half a loss and a tie are added before the usual normal interval: for wins, ties and losses this is "Wald+2" of
    Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions". Without them it has no width
    at all where every pair is won.
    """
    values = np.asarray(values, dtype=float)
    N = len(values) + 2
    mean, square = (values.sum() + 1) / N, ((values**2).sum() + 0.75) / N
    half = 1.96 * math.sqrt((square - mean**2) / N)
    return WinRate(float(values.mean()), max(0.0, float(mean - half)), min(1.0, float(mean + half)))


def by_prompt(records, values):
    """The mean of the values of each prompt: a prompt that is there several times counts once."""
    groups = {}
    for record, value in zip(records, values):
        groups.setdefault(record.prompt, []).append(value)
    return [sum(group) / len(group) for group in groups.values()]


def balanced(records, given):
    """The mean over two sides of the mean value on each, and its 95 % interval, as WinRate: as if both were there equally often.

    Args:
        records: (N,) Record.
        given: for each record a list of (side, value), the side 0 or 1, the value in [0, 1].

    Returns:
        A WinRate; None where a side never occurs.
    """
    count = Counter(record.prompt for record in records)
    sizes = [0.0, 0.0]  # of the sides, in prompts
    for record, marks in zip(records, given):
        for side, _ in marks:
            sizes[side] += 1 / count[record.prompt]
    if 0 in sizes:
        return None
    values = [0.5 + sum((value - 0.5) * len(count) / (2 * sizes[side]) for side, value in marks) for marks in given]
    return rate_interval(by_prompt(records, values))


def position_bias(records):
    """How much oftener than half the first place wins, ties as half, in points from -50 to 50, and its 95 % interval.

    The mean over our answers in the first place and over ours in the second: so a better side, or one that stands first more
    often, does not count as bias. None where all verdicts are of one order: place and side cannot be told apart then.
    """
    orders = [[(0, record.ours_first), (1, record.ours_second)] for record in records]
    given = [[(side, FOR_FIRST[verdict]) for side, verdict in order if verdict is not None] for order in orders]
    rate = balanced(records, given)
    return rate and tuple(100 * (bound - 0.5) for bound in rate)


def length_controlled(records):
    """The win rate at like length: (the number of pairs that it rests on, WinRate).

    Pairs of which the longer answer has at most a quarter more words than the other; the mean over those where ours is the
    longer and over those where it is the shorter (a pair of equal length is in both), so that a judge of length alone gives a
    half, or about that where some are of equal length. None where ours is always the longer or always the shorter: length and
    side cannot be told apart then. Dubois et al. 2024, "Length-Controlled AlpacaEval", fit a logistic regression instead. It uses
    all pairs, but where a judge follows length closely, as a gamed reward does, its value at equal length is one of the curve and
    not of the pairs.
    """
    gaps = [(record, words(record.ours), words(record.theirs)) for record in records]
    like = [(record, mine - other) for record, mine, other in gaps if max(mine, other) <= 1.25 * min(mine, other)]
    given = [[(side, outcome(record)) for side, there in ((0, gap >= 0), (1, gap <= 0)) if there] for record, gap in like]
    return len(like), balanced([record for record, _ in like], given)


def summary(records):
    """What the verdicts on pairs of answers say of ours; pairs of which a verdict was refused are counted and left out.

    Returns:
        A dict: `pairs` (left in) and `refused` (left out), numbers; `win_rate`, a WinRate, ties as half; `wins`, `losses` and
        `ties`, shares; `contradicted`, the number of pairs whose two orders disagree, which count as ties; `consistency`, the
        share that agree, None when no pair was read in both orders; `position_bias` (points, low, high) or None; `words`, the
        mean length of our and of their answers; `length_ratio`, ours over theirs, None when theirs are empty;
        `longer_win_rate`, a WinRate, of the answer with more words, None when there is none; `length_controlled`, a WinRate or
        None, of the `length_controlled_pairs` pairs of like length.

        The unit is the prompt: one that is there several times counts once in rates, bias and intervals.

    Raises:
        ValueError: no pair is left.
    """
    asked = len(records)
    records = [record for record in records if REFUSED not in record[3:]]
    if not records:
        raise ValueError(f"a summary needs pairs with verdicts; of {asked} pairs none has them")
    outcomes = [outcome(record) for record in records]
    both = [set(points(record)) for record in records if None not in record[3:]]
    contradicted = sum(len(got) > 1 for got in both)
    lengths = [(words(record.ours), words(record.theirs)) for record in records]
    like, controlled = length_controlled(records)
    ours, theirs = (sum(side) / len(records) for side in zip(*lengths))
    unlike = [place for place, (mine, other) in enumerate(lengths) if mine != other]
    longer = [outcomes[place] if lengths[place][0] > lengths[place][1] else 1 - outcomes[place] for place in unlike]
    return {
        "pairs": len(records),
        "refused": asked - len(records),
        "win_rate": rate_interval(by_prompt(records, outcomes)),
        **{name: outcomes.count(value) / len(records) for name, value in (("wins", 1), ("losses", 0), ("ties", 0.5))},
        "contradicted": contradicted,
        "consistency": (len(both) - contradicted) / len(both) if both else None,
        "position_bias": position_bias(records),
        "words": (ours, theirs),
        "length_ratio": ours / theirs if theirs else None,
        "longer_win_rate": rate_interval(by_prompt([records[place] for place in unlike], longer)) if unlike else None,
        "length_controlled_pairs": like,
        "length_controlled": controlled,
    }
