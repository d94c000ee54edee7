"""Chapter 01: word pieces, byte-pair encoding, splits that do not leak, windows, and bits per character."""

import functools
import itertools
import math
import random
import re
from collections import Counter

import torch
from tokenizers import Tokenizer, models
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise

UNKNOWN = "<|unknown|>"
LN2 = math.log(2)
WORDS = ("the", "King", "is", "not", "my", "lord", "O", "love", "2nd", "to", "act_3", "I", "ll", "café")
NAMES = ("<unk>", "<UNK>", "[UNK]", "<unknown>", "unknown", "<|unk|>", "UNKNOWN", "|unknown|", "<|UNKNOWN|>")  # not ours


def pick(generator, choices):
    return choices[int(torch.randint(len(choices), (1,), generator=generator))]


def but_no(wrong, says):
    """A `call` for a card that names the answer's type: what `wrong` is true of cannot be used, however right its values."""

    def call(function, **arguments):
        output = function(**arguments)
        if wrong(output):
            raise TypeError(says)
        return output

    return call


a_list = but_no(lambda output: isinstance(output, tuple), "it is to be a list")

# ----------------------------------------------------------------------------------------- 1.1


def draw_split_words(generator):
    for text in ("", "O", "Be kind.", "Éi, s_2", "Ωß’s—ŝ٣", " \r\n'Tis\tI,  No", "KING.\nNo, no--\n\nO café 2x_y\n"):
        yield {"text": text}
    for length in (4, 12):
        parts = [(pick(generator, WORDS), pick(generator, (" ", ", ", ".\n\n", "'", "!", "--"))) for _ in range(length)]
        yield {"text": "".join(word + mark for word, mark in parts)}


def found(text, pattern=r"\w+|\W+", flags=0, before=str, after=list):
    return after(re.findall(pattern, before(text), flags))


split_words = Exercise(
    "1.1", "split_words", draw=draw_split_words, call=a_list, formula=found,
    right=lambda text: ["".join(run) for _, run in itertools.groupby(text, lambda c: c.isalnum() or c == "_")],
    mistakes={
        "empty strings are left in: re.split gives one where a word begins or ends the text": lambda text: re.split(r"\b", text),
        "the first and last piece are dropped, whatever they are; drop only those that are empty":
            (lambda text: re.split(r"\b", text)[1:-1], {"after": lambda pieces: pieces[1:-1]}),
        "the last piece is missing: what is collected when the text ends is a piece too": {"after": lambda pieces: pieces[:-1]},
        "the empty text gives one empty piece here; it has none, []": {"after": lambda pieces: pieces or [""]},
        "spaces and line breaks are lost: split() throws them away": (str.split, lambda text: text.split(" ")),
        "only the words are there: what stands between is a piece": ({"pattern": r"\w+"}, lambda text: re.split(r"\W+", text)),
        "only what stands between the words is there: the words are pieces too": {"pattern": r"\W+"},
        "punctuation is kept but spaces and line breaks are lost: what stands between two words is a piece, whole":
            ({"pattern": r"\w+|[^\w\s]+"}, {"pattern": r"\w+|[^\w\s]"}),
        "pieces of nothing but spaces and line breaks are lost: drop the empty strings alone":
            {"after": lambda pieces: [piece for piece in pieces if piece.strip()]},
        "line breaks are lost: a piece between two words may hold some": ({"pattern": r"\w+|[^\w\n]+"},
            {"before": lambda text: text.replace("\n", "")},
            lambda text: [piece for line in text.split("\n") for piece in found(line)]),
        "pieces are stripped of spaces, which are a part of the text": {"after": lambda pieces: [*map(str.strip, pieces)]},
        "spaces and line breaks at the ends of the text are stripped; they are pieces too": {"before": str.strip},
        "punctuation sticks to its word, so 'kind' and 'kind.' are two words: cut at \\b, not at spaces":
            ({"pattern": r"\S+|\s+"}, lambda text: re.split(r"(\s+)", text), {"pattern": r"\S+\s*|\s+"}),
        "each mark and each space is a piece by itself: what stands between two words stays in one piece": {"pattern": r"\w+|\W"},
        "punctuation and spaces are cut apart: what stands between two words is one piece": {"pattern": r"\w+|\s+|[^\w\s]+"},
        "words hold what stands beside them: cut on both sides of each": ({"pattern": r"\w+\W*|\W+"}, {"pattern": r"\W*\w+|\W+"}),
        "the apostrophe counts as part of a word here; it is no letter, digit or _, so \\b cuts there":
            ({"pattern": r"[\w']+|[^\w']+"}, {"pattern": r"\w+(?:'\w+)*|\W+"}),
        "only letters of ASCII count as letters here, so café is cut; \\w knows the others too":
            ({"flags": re.ASCII}, {"pattern": "[A-Za-z0-9]+|[^A-Za-z0-9]+"}, {"pattern": "[A-Za-z]+|[^A-Za-z]+"}),
        "_ does not count as part of a word; it does": {"pattern": r"[^\W_]+|[\W_]+"},
        "digits do not count as part of a word; they do": ({"pattern": r"[^\W\d]+|[\W\d]+"}, {"pattern": r"[^\W\d_]+|[\W\d_]+"}),
        "the text is in lower case: 'KING' and 'king' are two pieces, and decoding gives the text back": {"before": str.lower},
        "these are characters; a piece here is a whole word, or all that stands between two words": list,
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 1.2


def draw_build_vocabulary(generator):
    yield from ({"pieces": list(pieces), "size": size} for pieces, size in (
        (("to", "be", "be"), 2), (("so", "ho", "so"), 1), ("O I I am I\ni!", 5), (("d", *"bcbac", "d", "The", *["the"] * 3), 10),
        ("cabacb,acb ", 6)))  # fmt: skip
    for length, size in ((10, 4), (30, 8), (40, 7)):
        yield {"pieces": [pick(generator, [*"abCdefgH", " ", ", "]) for _ in range(length)], "size": size}
    yield {"pieces": [], "size": 3}


def by_brute_force(pieces, size):
    left, vocabulary = list(dict.fromkeys(pieces)), [UNKNOWN]
    while left and len(vocabulary) < size:
        best = left[0]
        for piece in left:
            best = piece if pieces.count(piece) > pieces.count(best) else best
        vocabulary.append(best)
        left.remove(best)
    return vocabulary


def ranked(pieces, size, clean=str, order=None, keep=lambda every, size: [UNKNOWN, *every][:size]):
    """The vocabulary, with places to go wrong; `order` gets {piece: count}, and `keep` the pieces in order."""
    counts = Counter(map(clean, pieces))
    return keep(sorted(counts, key=counts.get, reverse=True) if order is None else list(order(counts)), size)


def by_rank(rank):
    """Pieces in the order of `rank(piece, count)`, the smallest first."""
    return {"order": lambda counts: sorted(counts, key=lambda piece: rank(piece, counts[piece]))}


build_vocabulary = Exercise(
    "1.2", "build_vocabulary", draw=draw_build_vocabulary, right=by_brute_force, call=a_list, formula=ranked,
    mistakes={
        "the unknown token is missing: it comes first, and it is one of the `size`":
            ({"keep": lambda every, size: every[:size]}, {"keep": lambda every, size: every[: size - 1]}),
        "one entry too many: the unknown token is one of the `size`": {"keep": lambda every, size: [UNKNOWN, *every[:size]]},
        "with size 1 there is room for the unknown token alone: a limit of 0 is taken for no limit, or for 1":
            tuple({"keep": lambda every, size, zero=zero: [UNKNOWN, *every[: size - 1 or zero]]} for zero in (None, 1)),
        "the unknown token comes last here; put it first, where its number does not depend on the size":
            ({"keep": lambda every, size: [*every[: size - 1], UNKNOWN]}, {"keep": lambda every, size: [*every, UNKNOWN]}),
        'the unknown token has another name here; it is "<|unknown|>"':
            tuple({"keep": lambda every, size, name=name: [name, *every][:size]} for name in NAMES),
        "equally frequent pieces are in alphabetical order; keep that of appearing":
            by_rank(lambda piece, count: (-count, piece)),
        "equally frequent pieces are in reversed alphabetical order; keep that of appearing":
            by_rank(lambda piece, count: (-count, [-ord(letter) for letter in piece] + [1])),
        "equally frequent pieces are turned round: a list sorted upwards and then reversed does that; use reverse=True":
            ({"order": lambda counts: sorted(counts, key=counts.get)[::-1]}, lambda pieces, size: ranked(pieces[::-1], size)),
        "pieces that are equally frequent are in order of their last appearance; it is to be the first":
            lambda pieces, size: ranked(sorted(pieces, key=dict(zip(pieces, range(len(pieces)))).get), size),
        "these are the first pieces to appear; take the most frequent ones": {"order": list},
        "these are the least frequent pieces; the most frequent come first": by_rank(lambda piece, count: count),
        "the vocabulary is in alphabetical order; it is in order of frequency, and cut off at `size`": ({"order": sorted},
            lambda pieces, size: [UNKNOWN, *sorted(ranked(pieces, size)[1:])], lambda pieces, size: sorted(ranked(pieces, size))),
        "spaces and line breaks get no place here; they are pieces like the others":
            {"order": lambda counts: sorted(filter(str.strip, counts), key=counts.get, reverse=True)},
        "only words get a place here; punctuation and spaces are pieces like the others":
            {"order": lambda counts: sorted(filter(str.isalnum, counts), key=counts.get, reverse=True)},
        "pieces that occur once are left out though there is room":
            {"order": lambda counts: sorted((one for one in counts if counts[one] > 1), key=counts.get, reverse=True)},
        "capital letters are lost: 'The' and 'the' are two pieces": {"clean": str.lower},
        "these are characters: joined to one text, the pieces are lost": lambda pieces, size: ranked("".join(pieces), size),
        "these are pairs of a piece and its count, what Counter.most_common gives; return the pieces alone":
            lambda pieces, size: [UNKNOWN, *Counter(pieces).most_common(size - 1)],
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 1.3


def draw_encode_words(generator):
    yield {"pieces": ["be"], "vocabulary": [UNKNOWN, "be", "to"]}
    yield {"pieces": ["so", "O", " ", "so"], "vocabulary": [UNKNOWN, " ", "so", "be", "to"]}
    yield {"pieces": ["Be", "be", " be", "\n", "bee", "be"], "vocabulary": [UNKNOWN, "to", "\n", "be", " "]}
    for length in (5, 20, 0):
        pieces = [pick(generator, "abcdefghZ") for _ in range(length)] + ["a", "z"][:length]
        yield {"pieces": pieces, "vocabulary": [UNKNOWN, *"dacb"]}
    yield {"pieces": [UNKNOWN, "to", "o"], "vocabulary": [UNKNOWN, "to"]}


def looked_up(pieces, vocabulary, unknown=lambda piece, size: 0, shift=0, clean=str):
    pieces = [clean(piece) for piece in pieces]
    return [vocabulary.index(one) + shift if one in vocabulary else unknown(one, len(vocabulary)) for one in pieces]


encode_words = Exercise(
    "1.3", "encode_words", draw=draw_encode_words, formula=looked_up,
    right=lambda pieces, vocabulary: [sum(n for n, known in enumerate(vocabulary) if known == piece) for piece in pieces],
    call=but_no(lambda got: isinstance(got, tuple) or {float, torch.Tensor} & {*map(type, got or [])}, "it is a list of int"),
    mistakes={
        "pieces outside the vocabulary are dropped; each becomes 0, so that there is a token for every piece":
            lambda pieces, vocabulary: [vocabulary.index(piece) for piece in pieces if piece in vocabulary],
        "pieces outside the vocabulary become -1, which no embedding can look up; take 0": {"unknown": lambda piece, size: -1},
        "a piece outside the vocabulary gets a number beyond its end: the embedding has no such row; use 0":
            ({"unknown": lambda piece, size: size}, {"unknown": lambda piece, size: size + 1}),
        "a piece outside the vocabulary gets its last place; the unknown token is 0":
            ({"unknown": lambda piece, size: size - 1},
             lambda pieces, vocabulary: looked_up(pieces, ["", *vocabulary[1:]], lambda piece, size: size - 1)),
        "a piece outside the vocabulary becomes 1; the unknown token is the first entry, 0": {"unknown": lambda piece, size: 1},
        "a piece outside the vocabulary becomes None: give .get a second argument, 0": {"unknown": lambda piece, size: None},
        'a piece outside the vocabulary becomes a text; it becomes the number of "<|unknown|>", 0':
            ({"unknown": lambda piece, size: UNKNOWN}, {"unknown": lambda piece, size: piece}),
        "these are pieces, with the unknown token for those that are not known: their numbers are wanted":
            lambda pieces, vocabulary: [piece if piece in vocabulary else UNKNOWN for piece in pieces],
        "the numbers are one too low: the vocabulary's first entry, the unknown token, is number 0": {"shift": -1},
        "the numbers are one too high: they count from 0, and the unknown token is in the vocabulary already":
            ({"shift": 1}, {"shift": 1, "unknown": lambda piece, size: 1}),
        "a piece outside the vocabulary is a KeyError: ask the dict with .get and 0 for what it lacks":
            lambda pieces, vocabulary: [dict(zip(vocabulary, range(99)))[piece] for piece in pieces],
        "a piece outside the vocabulary is a ValueError: .index does not know it; it should become 0":
            lambda pieces, vocabulary: [vocabulary.index(piece) for piece in pieces],
        "pieces are looked up in lower case: 'Be' and 'be' are two pieces": {"clean": str.lower},
        "pieces are stripped before they are looked up: ' be' and 'be' are two pieces": {"clean": str.strip},
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 1.4


def draw_most_frequent_pair(generator):
    yield from ({"words": [word.split() for word in words.split("|")], "counts": counts} for words, counts in (
        ("t o", [1]), ("a|th", [3, 1]), ("h o|s o|e s", [2, 4, 3]), ("n o|t o|n o t", [2, 4, 1]), ("b o w|s o|n o w", [5, 6, 11]),
        ("m n|x y|a b", [2, 2, 2]), ("the re|o|w e r e", [7, 20, 4]), ("a b a b a b|c d", [1, 2]), ("b c|a a a", [3, 2]),
        ("a b|a b c|d e", [5, 3, 6]), ("a b|a b c|d e", [5, 3, 4]), ("a x b|a y b|c d e", [2, 2, 3]), ("e a b|c d", [1, 1]),
        ("a b|th e", [2, 2]), ("th e|b a", [2, 2]), ("b a|c d|a b", [2, 3, 2]),
        ("a b|c d|e a b", [1, 2, 1]), ("a bc|ab c|d e", [2, 2, 3])))  # fmt: skip
    for size in (4, 8, 0):
        words = [[pick(generator, ["a", "b", "c", "th"]) for _ in range(1 + place % 4)] for place in range(size)]
        yield {"words": words, "counts": torch.randint(1, 16, (size,), generator=generator).tolist()}


def first_of_the_most(words, counts):
    pairs = [pair for word, count in zip(words, counts) for pair in list(itertools.pairwise(word)) * count]
    return max(pairs, key=pairs.count, default=None)  # max takes the first of equals


def by_count(rank):
    """The first pair in the order of `rank(pair, count)`."""
    return {"choose": lambda total: min(total, key=lambda pair: rank(pair, total[pair]), default=None)}


MOST = by_count(lambda pair, count: -count)["choose"]  # min takes the first of equals


def best_pair(words, counts, pairs_of=itertools.pairwise, add=int.__add__, choose=MOST, last=tuple):
    total = {}
    for word, count in zip(words, counts):
        for pair in pairs_of(word):
            total[pair] = add(total.get(pair, 0), count)
    pair = choose(total)
    return pair if pair is None else last(pair)


most_frequent_pair = Exercise(
    "1.4", "most_frequent_pair", draw=draw_most_frequent_pair, right=first_of_the_most, formula=best_pair,
    call=but_no(lambda output: isinstance(output, list), "it is to be a tuple, (left, right)"),
    mistakes={
        "the counts are ignored: a pair counts once for every time that its word comes": {"add": lambda old, count: old + 1},
        "a pair's count is set anew by each word: add the word's count to what the pair has": {"add": lambda old, count: count},
        "only the largest count of a word with the pair is kept: add the counts of all of them": {"add": max},
        "only the most frequent word is looked at: the pairs of all words count":
            lambda words, counts: best_pair([max(zip(counts, words), key=lambda one: one[0])[1]] if words else [], [1]),
        "this pairs the last piece of a word with the next word's first: no pair crosses from word to word":
            (lambda words, counts: best_pair([[piece for word, count in zip(words, counts) for piece in word * count]], [1]),
             lambda words, counts: best_pair([[piece for word in words for piece in word]], [1])),
        "of equally frequent pairs this takes the last in the alphabet; take the first to appear":
            {"choose": lambda total: max(zip(total.values(), total), default=(0, None))[1]},
        "of equally frequent pairs this takes the alphabet's first; take the first to come": by_count(lambda pair, n: (-n, pair)),
        "of equally frequent pairs this takes the last to appear": {"choose": lambda total: MOST(dict(reversed(total.items())))},
        "this is the rarest pair; take the most frequent": by_count(lambda pair, count: count),
        "this is the first pair of all, however often it occurs; take the most frequent": by_count(lambda pair, count: 0),
        "a pair that is in a word several times is counted once: count every place where it stands":
            {"pairs_of": lambda word: dict.fromkeys(itertools.pairwise(word))},
        "the last pair of a word is missed: n pieces have n - 1 pairs": {"pairs_of": lambda word: itertools.pairwise(word[:-1])},
        "pairs of characters are counted; a piece may have several": {"pairs_of": lambda word: itertools.pairwise("".join(word))},
        "(a, b) and (b, a) are counted as one pair": {"pairs_of": lambda word: map(tuple, map(sorted, itertools.pairwise(word)))},
        "this is the joined piece; return the pair itself, (left, right): merging needs to know both": {"last": "".join},
        "the pair is the wrong way round: (left, right)": {"last": lambda pair: pair[::-1]},
        "this is the pair's count; return the pair": {"choose": lambda total: max(total.values(), default=None), "last": int},
        "this is the pair with its count; return the pair":
            {"choose": lambda total: max(total.items(), key=lambda one: one[1], default=None)},
        "when every word is a single piece there is no pair, and max of nothing raises: return None then":
            ({"choose": lambda total: max(total, key=total.get)}, {"choose": lambda total: Counter(total).most_common(1)[0][0]}),
        "when every word is a single piece there is no pair: return None then":
            tuple(lambda words, counts, none=none: best_pair(words, counts) or none for none in ((), ("", ""), (None, None), "")),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 1.5


def draw_merge_pair(generator):
    yield from ({"word": word.split(), "pair": tuple(pair.split())} for word, pair in (
        ("s o", "s o"), ("b", "b b"), ("b b b", "b b"), ("b a", "a b"), ("n o n o w", "n o"), ("t he th e", "th e"),
        ("ae s e s", "e s"), ("a c b a b", "a b"), ("o th er s th", "th er"),
        ("a a a b a a a a", "a a"), ("", "b b")))  # fmt: skip
    for length in (6, 12):
        left, right = pick(generator, [("a", "b"), ("b", "a"), ("ab", "a")])
        yield {"word": [pick(generator, [left, right, "a"]) for _ in range(length)] + [left, right], "pair": (left, right)}


def merge_by_recursion(word, pair):
    if len(word) < 2:
        return list(word)
    if tuple(word[:2]) == tuple(pair):
        return [word[0] + word[1], *merge_by_recursion(word[2:], pair)]
    return [word[0], *merge_by_recursion(word[1:], pair)]


def merge(word, pair, same=tuple.__eq__, made=lambda left, right: [left + right], step=2, most=math.inf, end=0, rest=True):
    """A loop from left to right, with places to go wrong: `end` pieces are not looked at, and the `rest` is added or not."""
    out, place, merges = [], 0, 0
    while place < len(word) - end and merges < most:
        here = place + 1 < len(word) and same((word[place], word[place + 1]), tuple(pair))
        out += made(word[place], word[place + 1]) if here else [word[place]]
        place, merges = place + (step if here else 1), merges + here
    return out + (word[place:] if rest else [])


def merge_from_the_right(word, pair):
    out, place = [], len(word)
    while place > 0:
        here = tuple(word[max(place - 2, 0) : place]) == tuple(pair)
        out.insert(0, "".join(pair) if here else word[place - 1])
        place -= 2 if here else 1
    return out


def merge_twice(word, pair):
    """A piece that ends one merge begins the next one."""
    both = [tuple(word[place : place + 2]) == tuple(pair) for place in range(-1, len(word))]
    both[0] = False
    return ["".join(pair) if both[place + 1] else word[place] for place in range(len(word)) if both[place + 1] or not both[place]]


def merge_in_text(word, pair):
    return " ".join(word).replace(" ".join(pair), "".join(pair)).split(" ")


def same_text(one, pair):
    return "".join(one) == "".join(pair)


def call_merge_pair(function, word, pair):
    before, output = list(word), a_list(function, word=word, pair=pair)
    if output is word and word == before:
        raise TypeError("it is to be a new list, and this is the caller's own")
    return output


merge_pair = Exercise(
    "1.5", "merge_pair", draw=draw_merge_pair, right=merge_by_recursion, call=call_merge_pair, formula=merge,
    mistakes={
        "only the first place is merged: go on to the end of the word": {"most": 1},
        "nothing is merged: where the two pieces of the pair are neighbours, they become one": {"most": 0},
        "this goes from right to left; from the left, a a a with the pair (a, a) becomes aa a": merge_from_the_right,
        "a piece is used twice, in two merges: step over both pieces after a merge, so a a a becomes aa a": merge_twice,
        "the last piece is lost when it is not merged: a loop that stops before it must keep it": {"end": 1, "rest": False},
        "the pair at the very end of the word is not merged: the loop stops too early": {"end": 2},
        "replacing inside a joined string also hits the end of a longer piece: compare whole pieces": merge_in_text,
        "the joined texts are compared, so (t, he) is taken for (th, e): compare piece with piece": {"same": same_text},
        "the word is joined and cut into characters again, so longer pieces are lost: merge pieces":
            (lambda word, pair: merge_by_recursion(list("".join(word)), pair), lambda word, pair: list("".join(word))),
        "the second piece is there once more: step over both": ({"step": 1}, {"made": lambda left, right: [left + right, right]}),
        "(b, a) is merged as well as (a, b): the order matters": {"same": lambda one, pair: set(one) == set(pair)},
        "only the left piece is compared: the right one must be the pair's too": {"same": lambda one, pair: one[0] == pair[0]},
        "the two pieces are joined with something between them; join them without":
            tuple({"made": lambda left, right, between=between: [left + between + right]} for between in " -_+"),
        "the merged piece has its halves the wrong way round": {"made": lambda left, right: [right + left]},
        "the pair is removed; one piece made of both stands in its place": {"made": lambda left, right: []},
        "the word is joined to one str: return the list of its pieces": lambda word, pair: "".join(word),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 1.6


def learn_merges(words, count):
    """The first `count` merges of byte-pair encoding on `words`, a list of str; no two of them make the same piece."""
    words, merges = [list(word) for word in words], []
    for _ in range(count):
        pair = first_of_the_most(words, [1] * len(words))
        if pair is None or "".join(pair) in map("".join, merges):
            break
        merges.append(pair)
        words = [merge_by_recursion(word, pair) for word in words]
    return merges


def draw_bpe_encode(generator):
    yield from ({"word": word, "merges": [tuple(pair.split("+")) for pair in merges.split("|") if pair]} for word, merges in (
        ("o", "o+b"), ("so", ""), ("she", "h+e|s+h"), ("abc", "b+c|a+bc|a+b"), ("abc", "b+c|a+b|ab+c"),
        ("ooo", "o+o"), (" Né ", "n+é| +N| N+é|é+ "), ("nono", "n+o|t+o"), ("that", "e+r|t+h|a+t|th+at"),
        ("there", "t+h|e+r|th+er|ther+e"), ("abcd", "c+d|b+cd|a+b"), ("abcd", "a+b|c+d|b+c|bc+d"), ("xabc", "b+c|x+a|a+b|xa+b"),
        ("abacab", "a+b|a+c|ab+ac"), ("", "o+b")))  # fmt: skip
    for length in (8, 16):
        words = ["".join(pick(generator, "abc") for _ in range(6)) for _ in range(10)]
        yield {"word": "".join(pick(generator, "abc") for _ in range(length)), "merges": learn_merges(words, 6)}


def by_library(word, merges):
    """The `tokenizers` library with these merges."""
    pieces = dict.fromkeys([*word, *(part for pair in merges for part in pair), *("".join(pair) for pair in merges)])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(pair) for pair in merges])).encode(word).tokens


def in_order(word, merges, merge=merge_by_recursion, start=list, order=list, stop=lambda old, new: False, anew=False, last=list):
    """The merges one after another, with places to go wrong."""
    word = new = start(word)
    for pair in order(merges):
        new, old = merge(word if anew else new, pair), new
        if stop(old, new):
            break
    return last(new)


def longest(word, merges):
    known, out = {*word, *("".join(pair) for pair in merges)}, []
    while word:
        end = max(end for end in range(1, len(word) + 1) if word[:end] in known)
        word, out = word[end:], [*out, word[:end]]
    return out


def by_place(word, merges):
    word = list(word)
    while places := [place for place, pair in enumerate(itertools.pairwise(word)) if pair in merges]:
        word[places[0] : places[0] + 2] = ["".join(word[places[0] : places[0] + 2])]
    return word


bpe_encode = Exercise(
    "1.6", "bpe_encode", draw=draw_bpe_encode, right=by_library, call=a_list, formula=in_order,
    mistakes={
        "this takes the longest known piece from the left; byte-pair encoding repeats its merges in order": longest,
        "the merges run from the last to the first; later ones need the pieces of earlier ones":
            {"order": lambda merges: merges[::-1]},
        "this merges whatever pair comes first in the word; the order of learning decides, not the place": by_place,
        "it stops at the first merge that the word does not have; skip that and go on": {"stop": lambda old, new: old == new},
        "it stops after one merge: go through all of them": ({"stop": lambda old, new: old != new},
            {"order": lambda merges: merges[:1]}, lambda word, merges: in_order(word, merges[:1]) if merges else None),
        "the last merge is not made: go through all of them": {"order": lambda merges: merges[:-1]},
        "each merge begins with the characters again: go on with what the one before has made": {"anew": True},
        "these are the characters, with nothing merged: keep what each merge returns": {"order": lambda merges: []},
        "each merge is made at one place only; make it wherever the pair stands": {"merge": functools.partial(merge, most=1)},
        "each merge goes from right to left; from the left, o o o with (o, o) becomes oo o": {"merge": merge_from_the_right},
        "replacing inside a joined string also hits the ends of longer pieces: compare whole pieces": {"merge": merge_in_text},
        "the joined texts are compared, so (a, bc) is taken for (ab, c): compare piece with piece":
            {"merge": functools.partial(merge, same=same_text)},
        "the pieces are joined to one str: return the list of them": ({"last": " ".join}, {"last": "".join}),
        "the word is in lower case now: capitals are letters of their own": {"start": lambda word: list(word.lower())},
        "spaces at the ends of the word are stripped; a space is a character": {"start": lambda word: list(word.strip())},
        "it begins with bytes, so a letter outside ASCII falls in two; this word begins as characters":
            tuple({"start": lambda word, code=code: [*word.encode().decode(code, "replace")]} for code in ("latin-1", "ascii")),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 1.7


class Title(str):
    """A str whose place in a set is another in each world, as it is for a str in each run of Python."""

    world = 0

    def __hash__(self):
        return hash((Title.world, str(self)))

    __eq__ = str.__eq__


def draw_split_works(generator):
    for count, fraction, most in (
        (9, 0.5, 1),
        (11, 0.3, 1000),
        (12, 0.8, 1000),
        (20, 0.9, 9),
        (25, 0.83, 1),
        (9, 0.97, 9),
        (8, 0.04, 9),
    ):
        works = [f"play-{number:02}" for number in torch.randperm(99, generator=generator)[:count].tolist()]
        yield {"works": works, "fraction": fraction, "seed": int(torch.randint(most, (1,), generator=generator))}


def call_split_works(function, works, fraction, seed):
    """What holds of the split, whichever way the works were shuffled: tried with eight seeds, each in two states of the world."""
    tried, seeds, count = {}, range(seed, seed + 8), len(works)
    for one, world in itertools.product(seeds, (1, 2)):
        Title.world = 2 * one + world
        torch.manual_seed(Title.world)
        random.seed(Title.world)
        before = random.getstate(), torch.get_rng_state().tolist()
        train, validation = function([Title(work) for work in works], fraction, one)
        if not all(isinstance(half, list) for half in (train, validation)):
            raise TypeError("each half is to be a list")
        untouched = before == (random.getstate(), torch.get_rng_state().tolist())
        tried[one, world] = [[str(work) if isinstance(work, str) else work for work in half] for half in (train, validation)]
    splits = list(tried.values())
    sizes = {(len(a), len(b)) for a, b in splits}
    another = len({(frozenset(a), frozenset(b)) for a, b in splits}) > 3
    runs = [sum(work in b and works[place - 1] not in b for place, work in enumerate(works)) for _, b in splits]
    return {
        "works for training and validation": list(sizes.pop()) if len(sizes) == 1 else "other numbers for other seeds",
        "some work is on both sides": any(set(a) & set(b) for a, b in splits),
        "some work is on neither side": any(set(works) - set(a) - set(b) for a, b in splits),
        "some work is twice on one side": any(len(set(half)) < len(half) for split in splits for half in split),
        "something is no work": any(set(a + b) - set(works) for a, b in splits),
        "same seed, same split": all(tried[one, 1] == tried[one, 2] for one in seeds),
        "the random numbers of others are left alone": untouched,
        "another seed, another split": another,
        "training is the beginning of the list": all(set(a) == set(works[: len(a)]) for a, _ in splits),
        "validation is the end of the list": all(set(b) == set(works[count - min(len(b), count) :]) for _, b in splits),
        "validation is neighbours of the list": another and max(runs) == 1,
    }


def split_by_sample(works, fraction, seed):
    order = random.Random(seed).sample(works, len(works))
    return order[: round(fraction * len(works))], order[round(fraction * len(works)) :]


def shuffled(works, seed=None):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return [works[place] for place in torch.randperm(len(works), generator=generator).tolist()]


def split_by(works, fraction, seed, size=round, order=shuffled, other=None, skip=0, rest=lambda share: None):
    """Shuffle and cut, with places to go wrong: `order` makes the training half, `other` the validation half."""
    count, first = size(fraction * len(works)), order(works, seed)
    return first[:count], (other(works, seed) if other else first)[count + skip :][: rest((1 - fraction) * len(works))]


def without(train, works):
    """A split whose validation half is what is not in `train`."""
    return train, [work for work in works if work not in train]


split_works = Exercise(
    "1.7", "split_works", draw=draw_split_works, right=split_by_sample, call=call_split_works, formula=split_by,
    mistakes={
        "each half has a shuffle of its own, so training works turn up in validation: shuffle once, then cut":
            {"other": lambda works, seed: shuffled(works, seed + 1)},
        "there are two shuffles without a seed: training works turn up in validation; shuffle once, seeded":
            {"order": lambda works, seed: shuffled(works), "other": lambda works, seed: shuffled(works)},
        "validation is cut from the list as it was, so training works turn up in it": {"other": lambda works, seed: works},
        "the same seed splits otherwise the next time, and trains on this time's validation: make a generator with the seed":
            ({"order": lambda works, seed: shuffled(works)}, {"order": lambda works, seed: shuffled([*set(works)], seed)}),
        "the seed is given to the generator that all share: later random numbers are the same again; use one of your own":
            {"order": lambda works, seed: (torch.manual_seed(seed), shuffled(works))[1]},
        "nothing is shuffled before the cut: works come in some order, and the last are not like the rest":
            {"order": lambda works, seed: works},
        "nothing is shuffled: the list is only turned, and neighbours stay together":
            {"order": lambda works, seed: works[seed % len(works) :] + works[: seed % len(works)]},
        "the split is the same for every seed: give the seed to the generator": {"order": lambda works, seed: shuffled(works, 0)},
        "the halves are swapped: `fraction` of the works is for training, and training comes first":
            (lambda works, fraction, seed: split_by(works, fraction, seed)[::-1],
             lambda works, fraction, seed: split_by(works, 1 - fraction, seed)),
        "all works are for training, those of validation too: the validation loss would measure memory":
            lambda works, fraction, seed: (shuffled(works, seed), split_by(works, fraction, seed)[1]),
        "the number for training is rounded down; it is round(...)": {"size": int},
        "the number for training is rounded up; it is round(...)": {"size": math.ceil},
        "both sizes are rounded down, so a work is lost: what training does not get is validation's": {"size": int, "rest": int},
        "the work at the cut is in both halves: validation begins where training ends": {"skip": -1},
        "the work at the cut is in neither half: validation begins where training ends": {"skip": 1},
        "works are drawn with replacement, so that some come twice: shuffle once, then cut":
            ({"order": lambda works, seed: random.Random(seed).choices(works, k=len(works))},
             lambda works, fraction, seed: without(random.Random(seed).choices(works, k=round(fraction * len(works))), works)),
        "each work draws a lot of its own, so that the sizes differ from seed to seed; they are fixed":
            lambda works, fraction, seed: without([w for w in works if random.Random(f"{seed} {w}").random() < fraction], works),
        "these are works' places; return the works": lambda works, fraction, seed: split_by(range(len(works)), fraction, seed),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 1.8


def draw_windows(generator):
    yield {"tokens": torch.tensor([7, 3, 8]), "context": 2}
    yield {"tokens": torch.tensor([4, 9]), "context": 1}
    for count, context in ((11, 5), (10, 5), (15, 4), (14, 3), (7, 1), (44, 8)):
        yield {"tokens": torch.randint(1, 100, (count,), generator=generator), "context": context}
    yield {"tokens": torch.randint(30_000, 200_000, (13,), generator=generator), "context": 4}  # of a large vocabulary


def windows_by_lists(tokens, context):
    starts = [start for start in range(0, len(tokens), context) if start + context < len(tokens)]
    rows = [tokens[start : start + context + 1].tolist() for start in starts]
    return torch.tensor([row[:-1] for row in rows]), torch.tensor([row[1:] for row in rows])


def cut(tokens, context, step=None, start=0, shift=1, after=lambda inputs, targets: (inputs, targets)):
    """Windows cut one by one, with places to go wrong: `step` is from one to the next."""
    starts = range(start, len(tokens) - context - max(shift, 0) + 1, step or context)
    return after(*(torch.stack([tokens[one + more : one + more + context] for one in starts]) for more in (0, shift)))


def rolled(tokens, context, shift=-1, left=0):
    count = (len(tokens) - left) // context * context
    return tokens[:count].view(-1, context), tokens.roll(shift)[:count].view(-1, context)


def filled(tokens, context, value=0):
    padded = F.pad(tokens, (0, -(len(tokens) - 1) % context), value=value)
    return padded[:-1].view(-1, context), padded[1:].view(-1, context)


def windows_picture(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(torch.cat(list(got), dim=1), torch.cat(list(expected), dim=1), "inputs, and targets right of them")


windows = Exercise(
    "1.8", "windows", draw=draw_windows, right=windows_by_lists, formula=cut, picture=windows_picture,
    call=but_no(lambda pair: isinstance(pair, tuple) and getattr(pair[0], "dtype", 0) == torch.float32, "tokens are int"),
    mistakes={
        "the windows overlap: each begins one token after the last; begin the next where the last one ends": {"step": 1},
        "blocks of context + 1 tokens share none: the first of each block is never a target; step by context":
            lambda tokens, context: cut(tokens, context, step=context + 1),
        "targets and inputs are the same: the target of a position is the token after it":
            ({"shift": 0}, {"after": lambda x, y: (x, x)}, {"after": lambda x, y: (y, y)}),
        "inputs and targets have changed places: inputs first, and the target is the token after": {"after": lambda x, y: (y, x)},
        "the targets are shifted the wrong way: the target is the token after, not the one before":
            tuple(functools.partial(rolled, shift=1, left=left) for left in (0, 1)),
        "the targets are two tokens further on; the target is the very next token":
            ({"shift": 2}, functools.partial(rolled, shift=-2), functools.partial(rolled, shift=-2, left=1)),
        "the last target is the text's first token: rolling wraps round; the last token has no target": rolled,
        "each window's last target is its own first token: shift, then cut": {"after": lambda x, y: (x, x.roll(-1, dims=1))},
        "each window's last target is filled up; it is the first token of the next window":
            tuple({"after": lambda x, y, value=value: (x, F.pad(y[:, :-1], (0, 1), value=value))} for value in (0, -1, -100)),
        "the rest of the text is a window too, filled up; leave out what does not fill a window":
            tuple(functools.partial(filled, value=value) for value in (0, -1, -100)),
        "the beginning of the text is dropped, not the end: the first window begins at the first token":
            lambda tokens, context: cut(tokens, context, start=(len(tokens) - 1) % context),
        "the last whole window is missing: (N - 1) // context fit": {"after": lambda x, y: (x[:-1], y[:-1])},
        "only the first window is here: go on to the end of the text": {"after": lambda x, y: (x[:1], y[:1])},
        "the targets begin at the next window; a target is the very next token": {"after": lambda x, y: (x[:-1], x[1:])},
        "a window steps through the text, down a column; it is a run of neighbours, along a row: view(W, context)":
            {"after": lambda *pair: tuple(part.flatten().view(part.shape[1], part.shape[0]).T for part in pair)},
        "these are the tokens' places; return the tokens": lambda tokens, context: cut(torch.arange(len(tokens)), context),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 1.9


def draw_bits_per_character(generator):
    yield {"losses": torch.tensor([3.0]) * LN2, "text": "O!"}
    yield {"losses": torch.tensor([3.0, 1.0, 2.5]) * LN2, "text": " Né\n"}
    for count in (1, 5, 12):
        text = "".join(pick(generator, WORDS) + pick(generator, (" ", "\n", ", ")) for _ in range(count)) + "cafe\u0301\t\r\n"
        yield {"losses": 0.01 + 4 * torch.rand(count, generator=generator), "text": text}
    yield {"losses": torch.tensor([0.5, 120.0]), "text": "Alas"}  # exp(120) is infinite in float32


def by_code_length(losses, text):
    """The bits of a code for the text with these probabilities: the logarithm, to base 2, of their product."""
    return torch.tensor(-sum(math.log2(math.exp(-loss)) for loss in losses.tolist()) / sum(1 for _ in text))


def bits(losses, text, total=torch.sum, count=len, unit=LN2, after=lambda bits: bits):
    return after(total(losses) / unit / count(text))


bits_per_character = Exercise(
    "1.9", "bits_per_character", draw=draw_bits_per_character, right=by_code_length, formula=bits,
    mistakes={
        "these are nats; a bit is ln 2 nats, so divide by ln 2": {"unit": 1.0},
        "this is multiplied by ln 2; to go from nats to bits, divide": {"unit": 1 / LN2},
        "ln 2 is rounded; take math.log(2)": tuple({"unit": unit} for unit in (0.69, 0.693, 0.6931, 0.7)),
        "this is divided by ln 10; a bit is ln 2 nats": {"unit": math.log(10)},
        "these are bits per token: longer ones look worse; count characters": {"total": torch.mean, "count": lambda text: 1},
        "these are nats per token, what cross-entropy gives: sum them, divide by characters and by ln 2":
            {"total": torch.mean, "count": lambda text: 1, "unit": 1.0},
        "these are the bits of the whole text: divide by its characters": {"count": lambda text: 1},
        "these are the nats of the whole text: divide by its characters and by ln 2": {"count": lambda text: 1, "unit": 1.0},
        "the mean over the tokens is divided by all characters: take the sum of the losses": {"total": torch.mean},
        "the mean is multiplied by the characters; divide the sum": lambda losses, text: losses.mean() / LN2 * len(text),
        "tokens and characters have changed places: the mean loss is multiplied by characters per token":
            lambda losses, text: losses.mean() / LN2 * len(text) / len(losses),
        "this is the perplexity per token; bits per character has no exponential in it":
            {"total": torch.mean, "count": lambda text: 1, "unit": 1.0, "after": torch.exp},
        "this is the perplexity per character; there is no exponential in bits": ({"after": torch.exp2}, {"after": torch.exp}),
        "this is a logarithm of the losses, which are logarithms: divide by ln 2 to get bits":
            ({"after": torch.log2, "unit": 1.0}, {"total": lambda losses: losses.sum().log2(), "unit": 1.0},
             {"total": lambda losses: losses.log2().sum(), "unit": 1.0}),
        "the losses are taken for probabilities; they are -ln p already": {"total": lambda losses: -losses.log().sum()},
        "this is divided by bytes: a letter such as é has two; count characters": {"count": lambda text: len(text.encode())},
        "spaces or line breaks are left out of the count: they are characters that the model has to predict":
            ({"count": lambda text: len("".join(text.split()))}, {"count": lambda text: len(text.replace(" ", ""))},
             {"count": lambda text: len(text.replace("\n", ""))}),
        "spaces and line breaks at the ends are stripped before counting: they are characters too":
            ({"count": lambda text: len(text.strip())}, {"count": lambda text: len(text.rstrip())}),
        "only letters and digits are counted: all characters count":
            ({"count": lambda text: sum(map(str.isalnum, text))}, {"count": lambda text: sum(map(str.isalpha, text))}),
        "each different character is counted once: all characters count": {"count": lambda text: len(set(text))},
        "this is divided by the number of words; count characters, len(text)": {"count": lambda text: len(text.split())},
        "one figure for each token has come out: sum the losses": {"total": lambda losses: losses},
        "the last token's loss is left out: each token of the text has one": {"total": lambda losses: losses[:-1].sum()},
        "whole bits: divide by / and do not round": ({"after": torch.floor}, {"after": torch.round}, {"after": torch.ceil}),
        "this is upside down, characters per bit": {"after": lambda bits: 1 / bits},
    },
)  # fmt: skip
