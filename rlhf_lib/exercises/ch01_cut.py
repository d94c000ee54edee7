"""Chapter 01: the best cut of a text into tokens that have log-probabilities, by dynamic programming."""

import contextlib
import functools
import heapq
import itertools
import math
import operator
import re
import sys
from unittest import mock

import torch

from rlhf_lib.exercises.ch01_text import pick
from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.exercises.plain import Unfit

NO_CUT = "a ValueError"  # where the tokens do not make the text, whatever the error says
DEPTH = 1000  # calls within one another, as in a fresh Python; Jupyter allows more
DEEP = f"it calls itself again and again, and Python allows about {DEPTH} calls within one another; fill a table in a loop"
RAISED = "leave sys.setrecursionlimit alone, it is for every later cell too; fill a table in a loop"
NEAR = 1e-6  # how far below the best sum another cut's may be by rounding, relatively
OF_PYTHON = "unpack|not in list|not found|invalid literal|could not convert"  # ValueErrors that nobody raises on purpose
TIED = ("aaaa", "acacb")  # texts with several best cuts: what is wrong depends on which of them it began with
LONGEST = "honorificabilitudinitatibus"

KNOWN = [
    ("ab", {"a": -1.0, "b": -2.0, "ab": -4.0}),
    ("ab", {"a": -2, "b": -2, "ab": -3}),
    ("", {"a": -1.0}),
    ("", {}),
    ("a", {"b": -1.0}),
    ("a", {}),
    ("abc", {"a": 0.0, "b": 0.0, "ab": -0.5, "c": -1.0}),  # a certain token: its log-probability is 0
    ("abcd", {"abc": -2.0, "d": -1.0, "a": -1.0, "bcd": -3.5}),  # no cut ends behind ab, and ab begins no token but abc
    ("aab", {"aa": -1.0, "a": -2.0, "ab": -2.0}),  # whoever takes aa cannot go on
    ("baa", {"aa": -1.0, "a": -2.0, "ba": -2.0}),
    ("there", {"th": -2.0, "the": -3.0, "there": -7.0, "e": -2.0, "r": -4.0, "re": -1.5}),
    ("then", {"th": -2.0, "the": -3.0, "there": -7.0, "e": -2.0, "r": -4.0, "re": -1.5}),
    ("cab", {"ab": -1.0, "a": -2.0, "b": -2.0}),
    ("axa", {"a": -1.0, "ab": -1.5}),
    ("aaaa", {"a": -1.0, "aa": -2.0, "aaa": -3.5}),  # many cuts have the highest sum
    ("acacb", {"a": -0.1, "c": -0.2, "ac": -0.3, "b": -1.25}),  # two have it but for rounding
    ("abcd", {"a": -1.0001, "b": -1.0001, "ab": -2.0004, "c": -1.0002, "d": -1.0002, "cd": -2.0002}),  # little between them
    ("ba", {"b": -120.0, "a": -130.0}),
    ("ab", {"a": -400.0, "b": -450.0}),  # exp of the sum is 0
    ("ab", {"a": -1e12, "b": -1.0}),
    ("O né, o NÉ", {"O": -3.5, " ": -1.5, "né": -2.5, ", ": -2.0, "o": -3.0, " né": -3.0, "NÉ": -6.0, "o N": -4.5, "É": -5.0}),
    ("to be", {"to": -2.0, " ": -1.0, "be": -2.25, "to be": -8.0, "t": -3.0, "o b": -2.0, "e": -2.0, "o": -3.0, "b": -3.5}),
    (" to\n", {" ": -1.0, "to": -2.0, "\n": -1.5, " to": -2.5}),
    (LONGEST, {LONGEST: -9.0, LONGEST[:13]: -5.0, LONGEST[13:]: -6.0, **dict.fromkeys(sorted({*LONGEST}), -4.0)}),
]  # fmt: skip


def some_pieces(generator, text, count, longest):
    """`count` different pieces of `text` of 2 characters and more, and all its characters, with log-probabilities."""
    pieces = dict.fromkeys(sorted({*text}))
    while len(pieces) < count + len({*text}):
        size, start = pick(generator, range(2, longest + 1)), pick(generator, range(len(text)))
        pieces |= dict.fromkeys([text[start : start + size]])
    chance = torch.rand(len(pieces), generator=generator).tolist()
    return {piece: -round(0.4 + 1.2 * (len(piece) + 0.5) * one, 4) for piece, one in zip(pieces, chance)}


def draw_cut(generator):
    yield from ({"text": text, "logprobs": logprobs} for text, logprobs in KNOWN)
    letters = ["ab", "abc", "abc", "no t", "abc", "ehrt", "aeihrt"]
    for size, count, some in zip((6, 8, 9, 10, 11, 12, 2000), (3, 5, 6, 7, 8, 7, 9), letters):
        best = mirrored = []
        while not (2 < len(best) < size and best == mirrored):  # from both ends, so that there is but one
            text = "".join(pick(generator, some) for _ in range(size))
            logprobs = some_pieces(generator, text, count, 4)
            best, back = best_by_search(text, logprobs), {piece[::-1]: one for piece, one in logprobs.items()}
            mirrored = [piece[::-1] for piece in best_by_search(text[::-1], back)[::-1]]
        yield {"text": text, "logprobs": logprobs}


def best_by_search(text, logprobs):
    """Dijkstra's shortest way over the places between characters: a token is a step as long as its -log p."""
    ways, begins = [(0.0, 0, 0)], {}
    while ways:
        length, place, start = heapq.heappop(ways)
        if place in begins:
            continue
        begins[place] = start
        for token, logprob in logprobs.items():
            if text.startswith(token, place):
                heapq.heappush(ways, (length - logprob, place + len(token), place))
    if len(text) not in begins:
        raise ValueError
    pieces, end = [], len(text)
    while end > 0:
        pieces.insert(0, text[begins[end] : end])
        end = begins[end]
    return pieces


def refuse(limit):
    raise RuntimeError(RAISED)


def call_cut(function, text, logprobs):
    """The cut; where it is one of the best, our own, since any of them is right."""
    before, best = sys.getrecursionlimit(), NO_CUT
    with contextlib.suppress(ValueError):
        best = best_by_search(text, logprobs)
    try:
        sys.setrecursionlimit(DEPTH)
        with mock.patch.object(sys, "setrecursionlimit", refuse):
            found = function(text=text, logprobs=logprobs)
    except RecursionError:
        raise RecursionError(DEEP) from None
    except ValueError as error:
        if best != NO_CUT and re.search(OF_PYTHON, str(error)):
            raise
        return NO_CUT
    finally:
        sys.setrecursionlimit(before)
    if isinstance(found, tuple):
        raise Unfit("it returned a tuple; it is to be a list of str")
    right = best != NO_CUT and type(found) is list and all(type(piece) is str and piece in logprobs for piece in found)
    if right and "".join(found) == text:
        highest, reached = (math.fsum(logprobs[piece] for piece in cut) for cut in (best, found))
        if reached >= highest - NEAR * (1 + abs(highest)):
            return best
    return ["none of the best cuts"] if text in TIED and type(found) is list else found


# ----------------------------------------------------------------------------------------- the formula, and other ways


def impossible(text, *rest):
    raise ValueError(f"these tokens do not make {text[:40]!r}")


def sizes(logprobs, text):
    return sorted({len(token) for token in logprobs})


def table(
    text, logprobs, *, see=str, lengths=sizes, is_token=dict.__contains__, worth=dict.__getitem__, begin=0.0, add=operator.add,
    keep=lambda total: True, rank=lambda total, count: total, choose=max, hole=lambda text, stop: None, none=impossible,
    empty=list, end=lambda pieces, total: pieces,
):  # fmt: skip
    """The table of the best cuts up to each place, with places to go wrong; in `best` are (sum, number of tokens, start)."""
    text = see(text)
    if not text:
        return empty()
    best = {0: (begin, 0, 0)}
    for stop in range(1, len(text) + 1):
        ways = []
        for start in (stop - length for length in lengths(logprobs, text) if length <= stop):
            if start in best and is_token(logprobs, text[start:stop]):
                total = add(best[start][0], worth(logprobs, text[start:stop]))
                ways += [(total, best[start][1] + 1, start)] * keep(total)
        if ways:
            best[stop] = choose(ways, key=lambda way: rank(*way[:2]))
        else:
            hole(text, stop)
    if len(text) not in best:
        return none(text, logprobs, best)
    return end(back(text, best), best[len(text)][0])


def back(text, best, stop=None):
    pieces, stop = [], len(text) if stop is None else stop
    while stop:
        pieces.append(text[best[stop][2] : stop])
        stop = best[stop][2]
    return pieces[::-1]


def one_by_one(text, logprobs, *, choose=lambda fits, logprobs: max(fits, key=len), stuck=impossible, turn=False):
    """From the left, or, turned, from the right: of the tokens that fit, `choose` takes one for good."""
    cut, given = [], text
    while text:
        fits = [token for token in logprobs if (text.endswith if turn else text.startswith)(token)]
        if not fits:
            return stuck(given, cut, text)
        token = choose(fits, logprobs)
        cut, text = ([token, *cut], text[: -len(token)]) if turn else ([*cut, token], text[len(token) :])
    return cut


STUCK = [
    impossible, lambda given, cut, text: cut, lambda *rest: None, lambda *rest: [], lambda given, cut, text: [*cut, text],
    lambda given, cut, text: [*cut, *text],
]  # fmt: skip


def for_good(**more):
    return tuple(functools.partial(one_by_one, stuck=stuck, **more) for stuck in STUCK)


def first_that_fits(text, logprobs, longest=True):
    """Depth first, without the calls: from each place the first token behind which the rest can be cut."""
    rest = {len(text): None}
    for start in reversed(range(len(text))):
        for size in sizes(logprobs, text)[:: -1 if longest else 1]:
            if start + size in rest and text[start : start + size] in logprobs:
                rest[start] = start + size
                break
    if 0 not in rest:
        return impossible(text)
    cut, start = [], 0
    while start < len(text):
        cut.append(text[start : rest[start]])
        start = rest[start]
    return cut


def merged(text, logprobs):
    """From single characters: join the two neighbours that make the likeliest token, until none do."""
    if not {*text} <= {*logprobs}:
        return impossible(text)
    cut = list(text)
    while pairs := [(logprobs[a + b], -place) for place, (a, b) in enumerate(itertools.pairwise(cut)) if a + b in logprobs]:
        place = -max(pairs)[1]
        cut[place : place + 2] = [cut[place] + cut[place + 1]]
    return cut


def likeliest_anywhere(text, logprobs, whole=False):
    """The likeliest token in the text, then the same to its left and right."""
    done, rest = [], [text]
    while rest:
        part = rest.pop()
        inside = [token for token in logprobs if token in part]
        if part in logprobs and (whole or part == max(inside, key=logprobs.get)):
            done.append(part)
        elif part:
            if not inside:
                return impossible(text)
            left, token, right = part.partition(max(inside, key=logprobs.get))
            rest += [right, token, left]
    return done


def each_once(text, logprobs):
    """A token that the best cut so far has already is left out."""
    best = {0: (0.0, [])}
    for stop in range(1, len(text) + 1):
        ways = [(best[start][0] + logprobs[text[start:stop]], start) for start in range(max(0, stop - 30), stop)
                if start in best and text[start:stop] in logprobs and text[start:stop] not in best[start][1]]  # fmt: skip
        if ways:
            total, start = max(ways)
            best[stop] = total, [*best[start][1], text[start:stop]]
    return best[len(text)][1] if len(text) in best else impossible(text)


def at_most_two(text, logprobs):
    cuts = [[text]] + [[text[:place], text[place:]] for place in range(1, len(text))]
    cuts = [cut for cut in cuts if all(piece in logprobs for piece in cut)]
    return max(cuts, key=lambda cut: sum(map(logprobs.get, cut))) if cuts else [] if not text else impossible(text)


def both(**more):
    """Of equals the first is taken: with the short tokens first, and with the long ones."""
    return {"lengths": sizes, **more}, {"lengths": lambda logprobs, text: sizes(logprobs, text)[::-1], **more}


def passing(worth):
    """A character that is no token passes for one."""
    return {"lengths": lambda p, text: sorted({1, *sizes(p, text)}), "worth": lambda p, one: p.get(one, worth),
            "is_token": lambda p, one: one in p or len(one) == 1}  # fmt: skip


def ending(change, empty=list):
    return {"end": lambda cut, total: change(cut), "empty": empty}


def by_words(*patterns):
    return tuple(lambda text, logprobs, pattern=pattern: [
        piece for word in re.findall(pattern, text) for piece in table(word, logprobs)] for pattern in patterns)  # fmt: skip


best_cut = Exercise(
    "1.11", "best_cut", draw=draw_cut, right=best_by_search, call=call_cut, formula=table,
    mistakes={  # p are the log-probabilities, and `one` is a piece
        "this takes the longest token from the left for good; the best cut may begin with a shorter one": for_good(),
        "this takes the longest token from the right for good; the best cut may end with a shorter one": for_good(turn=True),
        "at each place this takes the likeliest token that fits for good; a less likely one may leave more to what follows":
            tuple(way for turn in (0, 1) for way in for_good(choose=lambda fits, p: max(fits, key=p.get), turn=turn)),
        "this takes the shortest token that fits at each place for good": for_good(choose=lambda fits, p: min(fits, key=len)),
        "this is the first cut that is found, with the longest tokens tried first; go on, and keep the one with the highest sum":
            first_that_fits,
        "this is the first cut that is found, with the shortest tokens tried first; go on, and keep the one with the highest sum":
            functools.partial(first_that_fits, longest=False),
        "this joins the neighbours that make the likeliest token, and never parts them again, or what comes to the same": merged,
        "this takes the likeliest token of the whole text out first, then of what is left on both sides; compare whole cuts":
            (likeliest_anywhere, functools.partial(likeliest_anywhere, whole=True)),
        "this is a cut into the fewest tokens; compare sums of log-probabilities":
            (*both(rank=lambda total, count: -count), {"rank": lambda total, count: (-count, total)}),
        "this is a cut into the most tokens; compare sums of log-probabilities":
            ({"rank": lambda total, count: count}, {"rank": lambda total, count: (count, total)}),
        "only tokens of one character are used": {"lengths": lambda p, text: [1]},
        "a text that is a token itself comes back whole; its parts may have a higher sum":
            lambda text, logprobs: [text] if text in logprobs else table(text, logprobs),
        "no more than two tokens are tried; a cut may have as many as the text has characters": at_most_two,
        "a token is used once only, or what comes to the same: it may stand in the text as often as it fits": each_once,
        "this is the worst cut, with the lowest sum; log-probabilities are below 0, and the best is the one nearest to it":
            both(choose=min),
        "this compares the mean of a token; the sum is what counts, and a cut into more tokens has more to pay":
            both(rank=lambda total, count: total / count),
        "log-probabilities are multiplied; the product of probabilities is the sum of their logarithms":
            (*both(begin=1.0, add=operator.mul), *both(begin=1.0, add=operator.mul, choose=min)),
        "probabilities are multiplied: on a long text each product is too small for a float and becomes 0; add the logarithms":
            (*both(begin=1.0, add=operator.mul, worth=lambda p, one: math.exp(p[one])),
             {"begin": 1.0, "add": operator.mul, "worth": lambda p, one: math.exp(p[one]), "keep": bool}),
        "a low number stands for a place that no cut reaches, and a sum may be lower still: take -math.inf, or None":
            tuple({"keep": lambda total, low=low: total > low} for low in (-1e2, -1e3, -1e4, -1e5, -1e6, -1e9)),
        "sums are rounded before they are compared: a cut that is a little better is lost; leave them as they are":
            tuple(way for n in (0, 1, 2, 3) for way in both(add=lambda total, worth, n=n: round(total + worth, n))),
        "only the last token's log-probability is compared: add the highest sum of what stands before it":
            both(add=lambda total, worth: worth),
        "log-probabilities are weighted with the number of characters; a token counts once, however long it is":
            (*both(worth=lambda p, one: p[one] * len(one)), *both(worth=lambda p, one: p[one] / len(one))),
        "the log-probabilities are made to add up to probability 1 first; they are to be taken as they are":
            {"worth": lambda p, one: p[one] - math.log(sum(map(math.exp, p.values())))},
        "a token or a cut whose log-probability is 0 is taken for none: 0 is false in an `if`; ask with `in`, or `is None`":
            ({"is_token": lambda p, one: bool(p.get(one))}, {"keep": bool},
             {"is_token": lambda p, one: bool(p.get(one)), "keep": bool}),
        "it gives up at a place where no cut ends, though a token may reach over it: go on behind it": {"hole": impossible},
        "it does not go on from a piece that is no token to longer ones: `abc` may be a token where `ab` is none": (
            {"is_token": lambda p, one: all(one[: end + 1] in p for end in range(len(one)))},
            {"is_token": lambda p, one: all(one[start:] in p for start in range(len(one)))}),
        "the longest tokens are never looked for: a range ends before its last number":
            {"lengths": lambda p, text: range(1, max(sizes(p, text), default=0))},
        "max of the tokens is the last in the alphabet; the longest is max(logprobs, key=len)":
            {"lengths": lambda p, text: range(1, len(max(p, default="")) + 1)},
        "how long a token may be is written in; ask the dict, it may be longer":
            tuple({"lengths": lambda p, text, most=most: range(1, most + 1)} for most in (*range(2, 13), 15, 16, 20, 24, 25)),
        "the whole text comes back as one piece: a piece that is no token has to count as -infinity and not as 0, and so has "
        "a place that no cut reaches, or what comes to the same":
            (ending(lambda cut: ["".join(cut)]) | {"is_token": lambda p, one: True, "worth": lambda p, one: 0.0,
             "lengths": lambda p, text: [1]}, lambda text, logprobs: [text],
             *both(worth=lambda p, one: p.get(one, 0), is_token=lambda p, one: True)),
        "the tokens do not make this text, and an answer comes back; raise a ValueError": (
            *({"none": lambda *rest, answer=answer: answer} for answer in (None, [], "", False, [""], -math.inf)),
            {"none": lambda text, *rest: [text]}, {"none": lambda text, *rest: list(text)},
            {"none": lambda text, p, best: back(text, best, max(best))},
            {"none": lambda text, p, best: [*back(text, best, max(best)), text[max(best) :]]}),
        "a character that is no token is let through, as some tokenisers do with an unknown token; raise a ValueError":
            tuple(map(passing, (0, -5, -10, -20, -50, -100, -1000, -1e6, -1e9))),
        "the empty text has a cut, the one into no tokens: return []": (
            {"empty": lambda: [""]}, {"empty": lambda: None}, {"empty": functools.partial(impossible, "")},
            lambda text, logprobs: table(text, logprobs) if logprobs else impossible(text)),
        "the tokens come in the wrong order, the last first: they are found from the end": ending(lambda cut: cut[::-1]),
        "the first token is missing: the one that begins at place 0 belongs to the cut": ending(lambda cut: cut[1:]),
        "the last token is missing: the one that ends where the text ends belongs to the cut": ending(lambda cut: cut[:-1]),
        "this is the sum; return the tokens": ({"end": lambda cut, total: total, "empty": float},
            {"end": lambda cut, total: [cut, total], "empty": lambda: [[], 0.0]}),
        "the tokens are joined to one str; return the list of them":
            tuple(ending(lambda cut, gap=gap: gap.join(cut), str) for gap in ("", " ", "|")),
        "these are lengths or places; return the tokens themselves": (
            ending(lambda cut: [*map(len, cut)]), ending(lambda cut: [*itertools.accumulate(map(len, cut))]),
            *(ending(lambda cut: [0, *itertools.accumulate(map(len, cut))], empty) for empty in (list, lambda: [0])),
            ending(lambda cut: [0, *itertools.accumulate(map(len, cut))][:-1])),
        "the text is cut into words first; a token may reach from one word into the next":
            by_words(r"\w+|\W+", r"\S+|\s+", r"\S+|\s", r" ?\S+| "),
        "spaces or line breaks are lost: they are characters of the text": (*by_words(r"\S+"),
            *({"see": see} for see in (str.strip, str.rstrip, str.lstrip, lambda text: text.replace(" ", "")))),
        "the text is taken in small letters; capitals are characters of their own": {"see": str.lower},
    },
)  # fmt: skip
