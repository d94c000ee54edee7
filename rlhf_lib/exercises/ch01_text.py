"""Chapter 01: word pieces, a vocabulary, and byte-pair encoding; the other exercises are in ch01_windows."""

import functools
import itertools
import math
import re
from collections import Counter

import torch
from tokenizers import Tokenizer, models

from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.exercises.plain import Unfit

UNKNOWN = "<|unknown|>"
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
    for text in ("", "O", "Be kind.", "Éi, s_2", "Ωß’s—ŝ·٣", " \r\n'Tis\tI,  No", "KING.\nNo, no--\n\nO café 2x_y\n"):
        yield {"text": text}
    for length in (4, 12):
        parts = [(pick(generator, WORDS), pick(generator, (" ", ", ", ".\n\n", "'", "!", "--"))) for _ in range(length)]
        yield {"text": "".join(word + mark for word, mark in parts)}
    yield {"text": "to be, " * 900}  # more pieces than Python has calls within one another


def found(text, pattern=r"\w+|\W+", flags=0, before=str, after=list):
    return after(re.findall(pattern, before(text), flags))


def one_removed(text):
    pieces = re.split(r"\b", text)
    if "" in pieces:
        pieces.remove("")
    return pieces


split_words = Exercise(
    "1.1", "split_words", draw=draw_split_words, call=a_list, formula=found,
    right=lambda text: ["".join(run) for _, run in itertools.groupby(text, lambda c: c.isalnum() or c == "_")],
    mistakes={
        "empty strings are left in: re.split gives one where a word begins or ends the text":
            (lambda text: re.split(r"\b", text), lambda text: re.split(r"(\W+)", text), lambda text: re.split(r"(\w+)", text)),
        "the first empty string is gone, a second one stays: a word that ends the text leaves one too":
            one_removed,
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
        "hyphens count as part of a word here; they are no letters, digits or _, so \\b cuts there":
            ({"pattern": r"[\w-]+|[^\w-]+"}, {"pattern": r"[\w'-]+|[^\w'-]+"}),
        "a space that stands alone is lost: it is a piece like the others":
            {"after": lambda pieces: [piece for piece in pieces if piece != " "]},
        "only letters of ASCII count as letters here, so café is cut; \\w knows the others too":
            ({"flags": re.ASCII}, {"pattern": "[A-Za-z0-9]+|[^A-Za-z0-9]+"}, {"pattern": "[A-Za-z]+|[^A-Za-z]+"}),
        "_ does not count as part of a word; it does": {"pattern": r"[^\W_]+|[\W_]+"},
        "digits do not count as part of a word; they do": ({"pattern": r"[^\W\d]+|[\W\d]+"}, {"pattern": r"[^\W\d_]+|[\W\d_]+"}),
        "isidentifier asks what a name in Python may hold, a middle dot too; a word has letters, digits and _ alone":
            lambda text: ["".join(run) for _, run in itertools.groupby(text, lambda c: f"a{c}".isidentifier())],
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
    yield {"pieces": [str(number % 40) for number in range(43)], "size": 50}  # room for all


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
        "the unknown token takes the place of the most frequent piece: put it in front of all":
            ({"keep": lambda every, size: [UNKNOWN, *every[1:size]]},
             {"keep": lambda every, size: (every.__setitem__(0, UNKNOWN), every[:size])[1]}),
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
        "equally frequent pieces are in the order of a set, which is another in each run; keep that of appearing":
            lambda pieces, size: [UNKNOWN, *sorted(set(pieces), key=pieces.count, reverse=True)][:size],
        "of equally frequent pieces the shortest come first; keep the order of appearing":
            by_rank(lambda piece, count: (-count, len(piece))),
        "these are the first pieces to appear; take the most frequent ones": {"order": list},
        "these are the least frequent pieces; the most frequent come first": by_rank(lambda piece, count: count),
        "the vocabulary is in alphabetical order; it is in order of frequency, and cut off at `size`": ({"order": sorted},
            lambda pieces, size: [UNKNOWN, *sorted(ranked(pieces, size)[1:])], lambda pieces, size: sorted(ranked(pieces, size))),
        "spaces and line breaks get no place here; they are pieces like the others":
            {"order": lambda counts: sorted(filter(str.strip, counts), key=counts.get, reverse=True)},
        "only words get a place here; punctuation and spaces are pieces like the others":
            {"order": lambda counts: sorted(filter(str.isalnum, counts), key=counts.get, reverse=True)},
        "pieces that occur once are left out though there is room":
            tuple({"order": lambda counts, most=most: sorted(
                (one for one in counts if counts[one] > 1 or len(counts) <= most), key=counts.get, reverse=True)}
                for most in (0, 10, 20, 30)),
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
    yield {"pieces": [UNKNOWN, "to", "o", "t", "tot"], "vocabulary": [UNKNOWN, "to"]}
    yield {"pieces": ["99", "128", "256", "299", "-1"], "vocabulary": [UNKNOWN, *map(str, range(1, 300))]}
    long = "honorificabilitudinitatibus"
    yield {"pieces": [long, long[:-3], long + "!"], "vocabulary": [UNKNOWN, long + "?", long]}


class Searched(list):
    """A list that counts how often it is gone through."""

    times = 0

    def index(self, *given):
        self.times += 1
        return super().index(*given)

    def __contains__(self, one):
        self.times += 1
        return super().__contains__(one)

    def __iter__(self):
        self.times += 1
        return super().__iter__()


whole_numbers = but_no(
    lambda got: isinstance(got, tuple) or {float, torch.Tensor} & {*map(type, got or [])}, "it is a list of int"
)


def call_encode_words(function, pieces, vocabulary):
    """What the function returns; Unfit where its numbers are right, and it went through the vocabulary for each piece."""
    searched = Searched(vocabulary)
    numbers = whole_numbers(function, pieces=pieces, vocabulary=searched)
    often = searched.times > 2 * len({*pieces}) + 2
    if often and isinstance(numbers, list) and numbers == looked_up(pieces, vocabulary):
        raise Unfit(
            "the numbers are right, but it goes through `vocabulary` anew for each piece (by .index, in, or a loop), which takes "
            "minutes with 1.7 million of them: make a dict {piece: number} once"
        )
    return numbers


def looked_up(pieces, vocabulary, unknown=lambda piece, size: 0, shift=0, clean=str):
    numbers = dict(zip(vocabulary, itertools.count()))
    pieces = [clean(piece) for piece in pieces]
    return [numbers[one] + shift if one in numbers else unknown(one, len(vocabulary)) for one in pieces]


def one_more_each(pieces, vocabulary):
    """Every piece that is not known is put behind the vocabulary."""
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    return [numbers.setdefault(piece, len(numbers)) for piece in pieces]


def stripped(pieces, vocabulary):
    """The vocabulary's entries are stripped as well; what is nothing but spaces stays."""
    return looked_up(pieces, [one.strip() or one for one in vocabulary], clean=lambda piece: piece.strip() or piece)


encode_words = Exercise(
    "1.3", "encode_words", draw=draw_encode_words, formula=looked_up,
    right=lambda pieces, vocabulary: [*map({one: n for n, one in enumerate(vocabulary)}.get, pieces, itertools.repeat(0))],
    call=call_encode_words,
    mistakes={
        "pieces outside the vocabulary are dropped; each becomes 0, so that there is a token for every piece":
            lambda pieces, vocabulary: [vocabulary.index(piece) for piece in pieces if piece in vocabulary],
        "pieces outside the vocabulary become -1, which no embedding can look up; take 0": {"unknown": lambda piece, size: -1},
        "a piece outside the vocabulary gets a number beyond its end: the embedding has no such row; use 0":
            ({"unknown": lambda piece, size: size}, {"unknown": lambda piece, size: size + 1}, one_more_each),
        "a piece outside the vocabulary gets its last place; the unknown token is 0":
            ({"unknown": lambda piece, size: size - 1},
             lambda pieces, vocabulary: looked_up(pieces, ["", *vocabulary[1:]], lambda piece, size: size - 1)),
        "a piece outside the vocabulary becomes 1; the unknown token is the first entry, 0": {"unknown": lambda piece, size: 1},
        "a piece outside the vocabulary becomes None: give .get a second argument, 0": {"unknown": lambda piece, size: None},
        'a piece outside the vocabulary becomes a text; it becomes the number of "<|unknown|>", 0':
            ({"unknown": lambda piece, size: UNKNOWN}, {"unknown": lambda piece, size: piece}),
        "these are pieces, with the unknown token for those that are not known: their numbers are wanted":
            lambda pieces, vocabulary: [piece if piece in vocabulary else UNKNOWN for piece in pieces],
        "the numbers are one too low: the vocabulary's first entry, the unknown token, is number 0":
            ({"shift": -1}, lambda pieces, vocabulary: looked_up(pieces, vocabulary[1:])),
        "a piece counts as known when it is a part of an entry, or an entry a part of it: compare them whole":
            (lambda pieces, vocabulary: [next((n for n, one in enumerate(vocabulary) if piece in one), 0) for piece in pieces],
             lambda pieces, vocabulary: [next((n for n, one in enumerate(vocabulary) if one in piece), 0) for piece in pieces]),
        "the numbers are one too high: they count from 0, and the unknown token is in the vocabulary already":
            ({"shift": 1}, {"shift": 1, "unknown": lambda piece, size: 1}),
        "a piece outside the vocabulary is a KeyError: ask the dict with .get and 0 for what it lacks":
            lambda pieces, vocabulary: [dict(zip(vocabulary, itertools.count()))[piece] for piece in pieces],
        "a piece outside the vocabulary is a ValueError: .index does not know it; it should become 0":
            lambda pieces, vocabulary: [vocabulary.index(piece) for piece in pieces],
        "pieces are looked up in lower case: 'Be' and 'be' are two pieces": {"clean": str.lower},
        "pieces are stripped before they are looked up: ' be' and 'be' are two pieces": ({"clean": str.strip}, stripped),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 1.4


def draw_most_frequent_pair(generator):
    yield from ({"words": [word.split() for word in words.split("|")], "counts": counts} for words, counts in (
        ("t o", [1]), ("a|th", [3, 1]), ("h o|s o|e s", [2, 4, 3]), ("n o|t o|n o t", [2, 4, 1]), ("b o w|s o|n o w", [5, 6, 11]),
        ("m n|x y|a b", [2, 2, 2]), ("the re|o|w e r e", [7, 20, 4]), ("a b a b a b|c d", [1, 2]), ("b c|a a a", [3, 2]),
        ("a b|a b c|d e", [5, 3, 6]), ("a b|a b c|d e", [5, 3, 4]), ("a x b|a y b|c d e", [2, 2, 3]), ("e a b|c d", [1, 1]),
        ("a b|th e", [2, 2]), ("th e|b a", [2, 2]), ("b a|c d|a b", [2, 3, 2]),
        ("n o|h e", [1, 1]), ("h o|h o w|m y|m y n", [3, 3, 4, 2]), ("a b|c d|e a b", [1, 2, 1]),
        ("a bc|ab c|d e", [2, 2, 3]), ("a b c|x y|b c", [1, 2, 1])))  # fmt: skip
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


def first_to_reach(words, counts):
    total, best = Counter(), None
    for word, count in zip(words, counts):
        for pair in itertools.pairwise(word):
            total[pair] += count
            best = pair if best is None or total[pair] > total[best] else best
    return best


def by_place_in_word(words, counts):
    """First the first pairs of all words, then their second ones."""
    total = Counter()
    for place in range(max(map(len, words), default=0)):
        for word, count in zip(words, counts):
            for pair in itertools.pairwise(word[place : place + 2]):
                total[pair] += count
    return MOST(total)


def unordered(words, counts):
    """Both orders of a pair are one, and come back as they first stood."""
    total, pairs = Counter(), {}
    for word, count in zip(words, counts):
        for pair in itertools.pairwise(word):
            total[pairs.setdefault(frozenset(pair), pair)] += count
    return MOST(total)


def from_word_to_word(words, counts):
    """The piece before the first of a word is the last of the word before it."""
    ends = [[], *(word[-1:] for word in words)]
    return best_pair([end + word for end, word in zip(ends, words)], counts)


def apart(word):
    """The pairs of a word; of those of two equal pieces, as a merge would find them."""
    place = 0
    while place < len(word) - 1:
        yield word[place], word[place + 1]
        place += 2 if word[place] == word[place + 1] else 1


def not_over_itself(word):
    """The pairs of a word; of those that lie over the same pair, as in a a a, only the first."""
    last = -2
    for place, pair in enumerate(itertools.pairwise(word)):
        if pair[0] != pair[1] or last != place - 1:
            last = place if pair[0] == pair[1] else last
            yield pair


def by_joined_text(words, counts):
    total, pairs = Counter(), {}
    for word, count in zip(words, counts):
        for pair in itertools.pairwise(word):
            total["".join(pair)] += count
            pairs.setdefault("".join(pair), pair)
    return pairs.get(max(total, key=total.get, default=None))


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
             lambda words, counts: best_pair([[piece for word in words for piece in word]], [1]), from_word_to_word),
        "of equally frequent pairs this takes the last in the alphabet; take the first to appear":
            {"choose": lambda total: max(zip(total.values(), total), default=(0, None))[1]},
        "of equally frequent pairs this takes the alphabet's first; take the first to come": by_count(lambda pair, n: (-n, pair)),
        "of equally frequent pairs this takes the last to appear": {"choose": lambda total: MOST(dict(reversed(total.items())))},
        "of equally frequent pairs this takes the first to reach its count, before later words are counted; count all first":
            first_to_reach,
        "of equally frequent pairs this takes the one that stands nearest to the beginning of its word; go word by word":
            by_place_in_word,
        "of equally frequent pairs this takes that of the most frequent word; take the first to appear, in the words' own order":
            lambda words, counts: best_pair(*zip(*sorted(zip(words, counts), key=lambda one: -one[1]))) if words else None,
        "a pair that occurs once is left out; None is only for when no word has two pieces":
            {"choose": lambda total: MOST({pair: count for pair, count in total.items() if count > 1})},
        "this is the rarest pair; take the most frequent": by_count(lambda pair, count: count),
        "this is the first pair of all, however often it occurs; take the most frequent": by_count(lambda pair, count: 0),
        "a pair that is in a word several times is counted once: count every place where it stands":
            ({"pairs_of": lambda word: dict.fromkeys(itertools.pairwise(word))},
             {"pairs_of": lambda word: set(itertools.pairwise(word))}),
        "the last pair of a word is missed: n pieces have n - 1 pairs": {"pairs_of": lambda word: itertools.pairwise(word[:-1])},
        "every second pair is left out: a piece is the right one of a pair and the left one of the next":
            {"pairs_of": lambda word: zip(word[::2], word[1::2])},
        "in a a a the pair (a, a) stands twice, at both places; here a place that shares a piece is left out":
            ({"pairs_of": apart}, {"pairs_of": not_over_itself}),
        "pairs are counted by their joined text, so (a, bc) and (ab, c) are taken for one": by_joined_text,
        "pairs of characters are counted; a piece may have several": {"pairs_of": lambda word: itertools.pairwise("".join(word))},
        "(a, b) and (b, a) are counted as one pair":
            ({"pairs_of": lambda word: map(tuple, map(sorted, itertools.pairwise(word)))}, unordered),
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
        ("a a a b a a a a", "a a"), ("", "b b"), ("a b . b ( b", ". b")))  # fmt: skip
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


def merge_in_twos(word, pair):
    """Only the pairs at the places 0, 2, 4 and so on."""
    twos = [word[place : place + 2] for place in range(0, len(word), 2)]
    return [piece for two in twos for piece in (["".join(two)] if tuple(two) == tuple(pair) else two)]


def merge_over(word, pair):
    """What a merge has made is written over when the next place is the pair too: a a a becomes aa."""
    out = []
    for place, piece in enumerate(word):
        here = place > 0 and (word[place - 1], piece) == tuple(pair)
        out = [*out[:-1], "".join(pair)] if here else [*out, piece]
    return out


def merge_in_text(word, pair):
    return " ".join(word).replace(" ".join(pair), "".join(pair)).split(" ")


def replaced(text, pair):
    return text.replace(" ".join(pair), "".join(pair))


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
        "a piece is used twice, in two merges: step over both pieces after a merge, so a a a becomes aa a":
            (merge_twice, merge_over),
        "only every second place is looked at: go on by two places after a merge, by one where nothing is merged": merge_in_twos,
        "the last piece is lost when it is not merged: a loop that stops before it must keep it": {"end": 1, "rest": False},
        "the pair at the very end of the word is not merged: the loop stops too early": {"end": 2},
        "the last piece is added once more, though it has been merged: add it where the loop has not been at it":
            tuple(lambda word, pair, last=last: [*merge(word, pair, end=1, rest=False), *last(word)]
                  for last in (lambda word: word[-1:], lambda word: [word[-1]])),
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
        "the merges of the longest pieces are made first; the order of learning decides, not the length":
            {"order": lambda merges: sorted(merges, key=lambda pair: -len("".join(pair)))},
        "this merges whatever pair comes first in the word; the order of learning decides, not the place": by_place,
        "it stops at the first merge that the word does not have; skip that and go on": {"stop": lambda old, new: old == new},
        "it stops after one merge: go through all of them": ({"stop": lambda old, new: old != new},
            {"order": lambda merges: merges[:1]}, lambda word, merges: in_order(word, merges[:1]) if merges else None),
        "the last merge is not made: go through all of them": {"order": lambda merges: merges[:-1]},
        "each merge begins with the characters again: go on with what the one before has made": {"anew": True},
        "these are the characters, with nothing merged: keep what each merge returns": {"order": lambda merges: []},
        "a piece is used twice, in two merges: step over both pieces after a merge, so o o o becomes oo o":
            ({"merge": merge_twice}, {"merge": merge_over}),
        "each merge is made at one place only; make it wherever the pair stands": {"merge": functools.partial(merge, most=1)},
        "each merge goes from right to left; from the left, o o o with (o, o) becomes oo o": {"merge": merge_from_the_right},
        "replacing inside a joined string also hits the ends of longer pieces: compare whole pieces":
            ({"merge": merge_in_text}, *({"start": " ".join, "merge": replaced, "last": last} for last in (
                str.split, lambda text: text.split(" ")))),
        "the joined texts are compared, so (a, bc) is taken for (ab, c): compare piece with piece":
            {"merge": functools.partial(merge, same=same_text)},
        "the pieces are joined to one str: return the list of them": ({"last": " ".join}, {"last": "".join}),
        "the word is in lower case now: capitals are letters of their own": {"start": lambda word: list(word.lower())},
        "spaces at the ends of the word are stripped; a space is a character": {"start": lambda word: list(word.strip())},
        "it begins with bytes, so a letter outside ASCII falls in two; this word begins as characters":
            tuple({"start": lambda word, code=code: [*word.encode().decode(code, "replace")]} for code in ("latin-1", "ascii")),
    },
)  # fmt: skip
