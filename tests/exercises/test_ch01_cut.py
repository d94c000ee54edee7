"""Chapter 01's check of the best cut: any best cut is right, however it is found, and frequent mistakes have their names."""

import functools
import itertools
import math
import sys

import pytest

from rlhf_lib import exercises
from rlhf_lib.exercises import EXERCISES, draw, verdict
from rlhf_lib.exercises.ch01_cut import NO_CUT, call_cut

TOKENS = {"th": -2.0, "the": -3.0, "there": -7.0, "e": -2.0, "r": -4.0, "re": -1.5}


def from_the_right(text, logprobs):
    """For each place, from the last one on, the best sum of the rest and where its first token ends; all pairs of places."""
    best, after = [-math.inf] * len(text) + [0.0], [len(text)] * (len(text) + 1)
    for start in range(len(text) - 1, -1, -1):
        for stop in range(start + 1, len(text) + 1):
            total = logprobs.get(text[start:stop], -math.inf) + best[stop]
            if total > best[start]:
                best[start], after[start] = total, stop
    if best[0] == -math.inf:
        raise ValueError(text)
    cut, start = [], 0
    while start < len(text):
        cut.append(text[start : after[start]])
        start = after[start]
    return cut


def forward_with_lists(text, logprobs):
    """Each place sends its cut on along every token of the dict; of equals the last stays."""
    best = {0: (0, [])}
    for start in range(len(text)):
        if start not in best:
            continue
        total, cut = best.pop(start)
        for token, logprob in logprobs.items():
            stop = start + len(token)
            if text.startswith(token, start) and (stop not in best or total + logprob >= best[stop][0]):
                best[stop] = total + logprob, [*cut, token]
    try:
        return best[len(text)][1]
    except KeyError:
        raise ValueError("no cut") from None


def by_rounds(text, logprobs):
    """Bellman and Ford, one token further in each round, as long as a sum rises."""
    table, changed = {0: (0.0, "", 0)}, [0]
    while changed:
        fresh = set()
        for start in changed:
            for token in logprobs:
                stop, total = start + len(token), table[start][0] + logprobs[token]
                if text[start:stop] == token and total > table.get(stop, (-math.inf,))[0]:
                    table[stop] = total, token, start
                    fresh.add(stop)
        changed = sorted(fresh)
    if len(text) not in table:
        raise ValueError(f"{text!r} has no cut")
    cut, stop = [], len(text)
    while stop:
        _, token, stop = table[stop]
        cut.insert(0, token)
    return cut


def remembered(text, logprobs):
    """Recursion that works from the left in steps, so that it never goes deep."""
    sizes = {*map(len, logprobs)}

    @functools.cache
    def best(stop):
        if stop == 0:
            return 0.0, 0
        ways = [
            (best(stop - n)[0] + logprobs[text[stop - n : stop]], n)
            for n in sizes
            if n <= stop and text[stop - n : stop] in logprobs
        ]
        return max(ways, default=(-math.inf, 0))

    for stop in range(len(text) + 1):
        best(stop)
    if best(len(text))[0] == -math.inf:
        raise ValueError("impossible")
    cut, stop = [], len(text)
    while stop > 0:
        cut += [text[stop - best(stop)[1] : stop]]
        stop -= best(stop)[1]
    cut.reverse()
    return cut


ALTERNATIVES = {"best_cut": remembered}


@pytest.mark.parametrize("function", [from_the_right, forward_with_lists, by_rounds, remembered])
@pytest.mark.parametrize("seed", range(2))
def test_every_correct_answer_passes(function, seed):
    found = verdict("best_cut", function, seed)
    assert found.passed, found.message


def every_cut(text):
    for inside in itertools.product((False, True), repeat=max(0, len(text) - 1)):
        places = [0, *itertools.compress(range(1, len(text)), inside), len(text)]
        yield [text[a:b] for a, b in itertools.pairwise(places)] if text else []


@pytest.mark.parametrize("seed", range(3))
def test_the_oracle_has_the_highest_sum_of_all_cuts(seed):
    exercise = EXERCISES["best_cut"]
    for one in draw("best_cut", seed):
        text, logprobs = one["text"], one["logprobs"]
        if len(text) > 12:
            continue
        sums = [sum(logprobs[piece] for piece in cut) for cut in every_cut(text) if all(piece in logprobs for piece in cut)]
        try:
            found = exercise.right(text, logprobs)
        except ValueError:
            assert not sums
        else:
            assert "".join(found) == text
            assert sum(logprobs[piece] for piece in found) == pytest.approx(max(sums), abs=1e-9)


def test_the_cuts_by_hand_on_the_card():
    right = exercises.find("best_cut").right
    assert right("there", TOKENS) == ["the", "re"]
    sums = {" ".join(cut): sum(map(TOKENS.get, cut)) for cut in every_cut("there") if all(piece in TOKENS for piece in cut)}
    assert sums == {"there": -7.0, "the re": -4.5, "the r e": -9.0, "th e re": -5.5, "th e r e": -10.0}
    with pytest.raises(ValueError):
        right("then", TOKENS)


def test_any_of_several_best_cuts_is_right_and_none_below_them():
    tokens = {"a": -1.0, "aa": -2.0, "aaa": -3.5}
    ours = EXERCISES["best_cut"].right("aaaa", tokens)
    for cut in (["a"] * 4, ["aa", "aa"], ["a", "aa", "a"]):
        assert call_cut(lambda text, logprobs, cut=cut: cut, "aaaa", tokens) == ours
    for wrong in (["aaa", "a"], ["a"] * 3, ["aaaa"], ["aa", "aa", ""]):
        assert call_cut(lambda text, logprobs, wrong=wrong: wrong, "aaaa", tokens) == ["none of the best cuts"]
        assert call_cut(lambda text, logprobs, wrong=wrong: wrong, "there", TOKENS) == wrong


def test_every_value_error_is_right_where_there_is_no_cut_and_none_where_there_is():
    def bare(text, logprobs):
        raise ValueError

    assert call_cut(bare, "then", TOKENS) == NO_CUT and call_cut(bare, "there", TOKENS) == NO_CUT
    assert not verdict("best_cut", bare).passed


def test_pythons_own_value_error_is_shown():
    def unpacks(text, logprobs):
        first, second = (text, logprobs, 1)
        return [first, second]

    assert "it raised ValueError: too many values to unpack" in verdict("best_cut", unpacks).message


def test_the_limit_of_calls_is_that_of_a_fresh_python_and_is_put_back():
    def deep(text, logprobs):
        return [text[0], *deep(text[1:], logprobs)] if text else []

    before = sys.getrecursionlimit()
    with pytest.raises(RecursionError, match="fill a table in a loop"):
        call_cut(deep, "ab" * 900, {"a": -1.0, "b": -1.0})
    assert sys.getrecursionlimit() == before


def test_a_limit_of_calls_that_is_raised_is_told():
    def deep(text, logprobs):
        sys.setrecursionlimit(100_000)
        return remembered(text, logprobs)

    before = sys.getrecursionlimit()
    assert "leave sys.setrecursionlimit alone" in verdict("best_cut", deep).message
    assert sys.getrecursionlimit() == before


def table(text, logprobs, first=0.0, rank=lambda total, n: total, reach=None, back=lambda cut: cut[::-1]):
    """A learner's table, with lists, and what may go wrong in it."""
    longest = reach or max(map(len, logprobs), default=1)
    best, last, count = [first] + [None] * len(text), [0] * (len(text) + 1), [0] * (len(text) + 1)
    for stop in range(1, len(text) + 1):
        for start in range(max(0, stop - longest), stop):
            piece = text[start:stop]
            if best[start] is not None and piece in logprobs:
                total, n = best[start] + logprobs[piece], count[start] + 1
                if best[stop] is None or rank(total, n) > rank(best[stop], count[stop]):
                    best[stop], last[stop], count[stop] = total, start, n
    if best[-1] is None:
        raise ValueError(text)
    cut, stop = [], len(text)
    while stop:
        cut.append(text[last[stop] : stop])
        stop = last[stop]
    return back(cut)


def greedy(text, logprobs):
    cut = []
    while text:
        size = max((n for n in range(1, len(text) + 1) if text[:n] in logprobs), default=None)
        if size is None:
            raise ValueError
        cut, text = [*cut, text[:size]], text[size:]
    return cut


def forgets_the_first(text, logprobs):
    cut = table(text, logprobs)
    return cut[1:]


def empty_is_an_error(text, logprobs):
    if not text:
        raise ValueError("nothing to cut")
    return table(text, logprobs)


def none_where_none_is(text, logprobs):
    try:
        return table(text, logprobs)
    except ValueError:
        return None


@pytest.mark.parametrize(
    "function, says",
    [
        (greedy, "the longest token from the left for good"),
        (functools.partial(table, rank=lambda total, n: -n), "fewest tokens"),
        (functools.partial(table, rank=lambda total, n: total / max(n, 1)), "the mean of a token"),
        (functools.partial(table, rank=lambda total, n: -total), "the worst cut"),
        (functools.partial(table, reach=1), "tokens of one character"),
        (functools.partial(table, reach=16), "is written in"),
        (functools.partial(table, back=lambda cut: cut), "the last first"),
        (forgets_the_first, "the first token is missing"),
        (empty_is_an_error, "the empty text has a cut"),
        (none_where_none_is, "an answer comes back"),
        (lambda text, logprobs: [text] if text in logprobs else table(text, logprobs), "comes back whole"),
        (lambda text, logprobs: (table(text, logprobs), 0.0), "it is to be a list of str"),
        (
            lambda text, logprobs: [piece for word in text.split() for piece in table(word, logprobs)],
            "spaces or line breaks are lost",
        ),
    ],
)
def test_frequent_mistakes_have_their_names(function, says):
    assert verdict("best_cut", table).passed
    assert says in verdict("best_cut", function).message
