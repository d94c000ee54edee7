"""Chapter 01: word pieces, byte-pair encoding, splits that do not leak, windows, and bits per character."""

import itertools
import math
import random
import re
from collections import Counter

import torch
from tokenizers import Tokenizer, models

from rlhf_lib.exercises.declare import Exercise

UNKNOWN = "<|unknown|>"
WORDS = ("the", "King", "is", "not", "my", "lord", "O", "love", "heart", "to", "thee", "I", "ll", "café")


def pick(generator, choices):
    return choices[int(torch.randint(len(choices), (1,), generator=generator))]


# ----------------------------------------------------------------------------------------- 1.1

split_words = Exercise("1.1", "split_words")


@split_words.inputs
def _(generator):
    for text in ("", "Be kind.", "KING.\nNo, no--\n\n'Tis I"):
        yield {"text": text}
    for length in (4, 12):
        parts = [(pick(generator, WORDS), pick(generator, (" ", ", ", ".\n\n", "'", "!", "--"))) for _ in range(length)]
        yield {"text": "".join(word + mark for word, mark in parts)}


@split_words.oracle
def _(text):
    return ["".join(run) for _, run in itertools.groupby(text, lambda c: c.isalnum() or c == "_")]


@split_words.mistake("empty strings are left in: re.split gives one where the text begins or ends with a word; drop them")
def _(text):
    return re.split(r"\b", text)


@split_words.mistake("spaces and line breaks are lost, so the text cannot be put together again: split() throws them away")
def _(text):
    return text.split()


@split_words.mistake("only the words are there: spaces, line breaks and punctuation are pieces too")
def _(text):
    return re.findall(r"\w+", text)


@split_words.mistake("punctuation is kept but spaces and line breaks are lost: what stands between two words is a piece, whole")
def _(text):
    return re.findall(r"\w+|[^\w\s]+", text)


@split_words.mistake("punctuation sticks to its word, so 'kind' and 'kind.' are two words: cut at \\b, not at spaces")
def _(text):
    return [piece for piece in re.split(r"(\s+)", text) if piece]


@split_words.mistake("each mark and each space is a piece by itself: what stands between two words stays in one piece")
def _(text):
    return re.findall(r"\w+|\W", text)


@split_words.mistake(
    "the text is in lower case now: 'KING' and 'king' are different pieces, and decoding must give the text back"
)
def _(text):
    return split_words.right(text.lower())


@split_words.mistake("these are characters; a piece here is a whole word, or all that stands between two words")
def _(text):
    return list(text)


# ----------------------------------------------------------------------------------------- 1.2

build_vocabulary = Exercise("1.2", "build_vocabulary")


@build_vocabulary.inputs
def _(generator):
    yield {"pieces": ["to", "be", "be"], "size": 2}
    yield {"pieces": ["to", "be", "or", "not", "to", "be"], "size": 4}
    yield {"pieces": ["d", "b", "c", "b", "a", "d"], "size": 10}
    for length, size in ((10, 4), (30, 8)):
        yield {"pieces": [pick(generator, "abcdefghij") for _ in range(length)], "size": size}


@build_vocabulary.oracle
def _(pieces, size):
    left, vocabulary = list(dict.fromkeys(pieces)), [UNKNOWN]
    while left and len(vocabulary) < size:
        best = left[0]
        for piece in left:
            best = piece if pieces.count(piece) > pieces.count(best) else best
        vocabulary.append(best)
        left.remove(best)
    return vocabulary


@build_vocabulary.mistake("the unknown token is missing: it comes first, and it is one of the `size`")
def _(pieces, size):
    return [piece for piece, _ in Counter(pieces).most_common(size)]


@build_vocabulary.mistake("this has one entry too many: the unknown token is one of the `size`")
def _(pieces, size):
    return [UNKNOWN, *(piece for piece, _ in Counter(pieces).most_common(size))]


@build_vocabulary.mistake("the unknown token comes last here; put it first, where its number does not depend on the size")
def _(pieces, size):
    return [*build_vocabulary.right(pieces, size)[1:], UNKNOWN]


@build_vocabulary.mistake("pieces that are equally frequent are in alphabetical order; keep the order of their first appearance")
def _(pieces, size):
    counts = Counter(pieces)
    return [UNKNOWN, *sorted(counts, key=lambda piece: (-counts[piece], piece))][:size]


@build_vocabulary.mistake(
    "equally frequent pieces are turned round: a list sorted upwards and then reversed does that; use reverse=True"
)
def _(pieces, size):
    counts = Counter(pieces)
    return [UNKNOWN, *sorted(counts, key=counts.get)[::-1]][:size]


@build_vocabulary.mistake("these are the first pieces to appear; take the most frequent ones")
def _(pieces, size):
    return [UNKNOWN, *dict.fromkeys(pieces)][:size]


@build_vocabulary.mistake("these are the least frequent pieces; the most frequent come first")
def _(pieces, size):
    counts = Counter(pieces)
    return [UNKNOWN, *sorted(counts, key=counts.get)][:size]


@build_vocabulary.mistake("the vocabulary is in alphabetical order; it is in order of frequency, and cut off at `size`")
def _(pieces, size):
    return [UNKNOWN, *sorted(set(pieces))][:size]


# ----------------------------------------------------------------------------------------- 1.3

encode_words = Exercise("1.3", "encode_words")


@encode_words.inputs
def _(generator):
    yield {"pieces": ["be"], "vocabulary": [UNKNOWN, "be", "to"]}
    yield {"pieces": ["to", "sleep", "to"], "vocabulary": [UNKNOWN, "be", "to"]}
    for length in (5, 20):
        pieces = [pick(generator, "abcdefgh") for _ in range(length)]
        yield {"pieces": [*pieces, "a", "z"], "vocabulary": [UNKNOWN, *"dacb"]}
    yield {"pieces": [], "vocabulary": [UNKNOWN, "be"]}


@encode_words.oracle
def _(pieces, vocabulary):
    places = [[place for place, known in enumerate(vocabulary) if known == piece] for piece in pieces]
    return [sum(found) for found in places]  # an empty list sums to 0, the unknown token


@encode_words.mistake("pieces outside the vocabulary are dropped; each becomes 0, so that there is a token for every piece")
def _(pieces, vocabulary):
    return [vocabulary.index(piece) for piece in pieces if piece in vocabulary]


@encode_words.mistake("pieces outside the vocabulary become -1, which an embedding cannot look up; the unknown token is 0")
def _(pieces, vocabulary):
    return [vocabulary.index(piece) if piece in vocabulary else -1 for piece in pieces]


@encode_words.mistake("a piece outside the vocabulary gets a number beyond its end: the embedding has no such row; use 0")
def _(pieces, vocabulary):
    return [vocabulary.index(piece) if piece in vocabulary else len(vocabulary) for piece in pieces]


@encode_words.mistake("the numbers are one too low: the vocabulary's first entry, the unknown token, is number 0")
def _(pieces, vocabulary):
    return [vocabulary.index(piece) - 1 if piece in vocabulary else 0 for piece in pieces]


@encode_words.mistake("the numbers are one too high: they count from 0, and the unknown token is in the vocabulary already")
def _(pieces, vocabulary):
    return [vocabulary.index(piece) + 1 if piece in vocabulary else 0 for piece in pieces]


@encode_words.mistake("a piece outside the vocabulary is a KeyError: ask the dict with .get and 0 for what it lacks")
def _(pieces, vocabulary):
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    return [numbers[piece] for piece in pieces]


@encode_words.mistake("a piece outside the vocabulary is a ValueError: .index does not know it; it should become 0")
def _(pieces, vocabulary):
    return [vocabulary.index(piece) for piece in pieces]


# ----------------------------------------------------------------------------------------- 1.4

most_frequent_pair = Exercise("1.4", "most_frequent_pair")


@most_frequent_pair.inputs
def _(generator):
    yield {"words": [["t", "o"]], "counts": [1]}
    yield {"words": [["a"]], "counts": [3]}
    yield {"words": [["l", "o", "w"], ["n", "o", "w"]], "counts": [5, 3]}
    yield {"words": [["n", "o"], ["t", "o"], ["n", "o", "t"]], "counts": [2, 4, 1]}
    yield {"words": [["m", "n"], ["x", "y"], ["a", "b"]], "counts": [2, 2, 2]}
    yield {"words": [["a", "b", "a", "b", "a", "b"], ["c", "d"]], "counts": [1, 2]}
    yield {"words": [["e", "a", "b"], ["c", "d"]], "counts": [1, 1]}
    yield {"words": [["b", "a"], ["c", "d"], ["a", "b"]], "counts": [2, 3, 2]}
    for count in (4, 8):
        words = [[pick(generator, "abcd") for _ in range(2 + place % 4)] for place in range(count)]
        yield {"words": words, "counts": torch.randint(1, 6, (count,), generator=generator).tolist()}


@most_frequent_pair.oracle
def _(words, counts):
    pairs = [pair for word, count in zip(words, counts) for pair in list(itertools.pairwise(word)) * count]
    return max(pairs, key=pairs.count, default=None)  # max takes the first of equals


def best_pair(pairs_of, words, counts, choose=None):
    total = {}
    for word, count in zip(words, counts):
        for pair in pairs_of(word):
            total[pair] = total.get(pair, 0) + count
    choose = choose or (lambda total: max(total, key=total.get, default=None))
    return choose(total)


def adjacent(word):
    return itertools.pairwise(word)


@most_frequent_pair.mistake("the counts are ignored: a pair counts once for every time that its word stands in the text")
def _(words, counts):
    return best_pair(adjacent, words, [1] * len(words))


@most_frequent_pair.mistake("this pairs the last piece of a word with the first of the next: no pair crosses from word to word")
def _(words, counts):
    return best_pair(adjacent, [[piece for word, count in zip(words, counts) for piece in word * count]], [1])


@most_frequent_pair.mistake("of equally frequent pairs this takes the last in the alphabet; take the first to appear")
def _(words, counts):
    return best_pair(adjacent, words, counts, lambda total: max(total, key=lambda p: (total[p], p), default=None))


@most_frequent_pair.mistake("of equally frequent pairs this takes the last to appear; take the first")
def _(words, counts):
    return best_pair(adjacent, words, counts, lambda total: max(reversed(total), key=total.get, default=None))


@most_frequent_pair.mistake("a pair that is in a word several times is counted once: count every place where it stands")
def _(words, counts):
    return best_pair(lambda word: dict.fromkeys(adjacent(word)), words, counts)


@most_frequent_pair.mistake("this is the joined piece; return the pair itself, (left, right): merging needs to know both")
def _(words, counts):
    pair = most_frequent_pair.right(words, counts)
    return pair and "".join(pair)


@most_frequent_pair.mistake("(a, b) and (b, a) are counted as one pair: the order matters")
def _(words, counts):
    return best_pair(lambda word: (tuple(sorted(pair)) for pair in adjacent(word)), words, counts)


@most_frequent_pair.mistake(
    "when every word is a single piece there is no pair left, and max of nothing raises: return None then"
)
def _(words, counts):
    return best_pair(adjacent, words, counts, lambda total: max(total, key=total.get))


# ----------------------------------------------------------------------------------------- 1.5

merge_pair = Exercise("1.5", "merge_pair")


@merge_pair.inputs
def _(generator):
    yield {"word": ["t", "o"], "pair": ("t", "o")}
    yield {"word": ["a"], "pair": ("a", "a")}
    yield {"word": ["a", "a", "a"], "pair": ("a", "a")}
    yield {"word": ["n", "o", "n", "o", "w"], "pair": ("n", "o")}
    yield {"word": ["ae", "s", "e", "s"], "pair": ("e", "s")}
    for length in (6, 12):
        yield {"word": [pick(generator, "ab") for _ in range(length)], "pair": ("a", "b")}


@merge_pair.oracle
def _(word, pair):
    if len(word) < 2:
        return list(word)
    if tuple(word[:2]) == tuple(pair):
        return [word[0] + word[1], *merge_pair.right(word[2:], pair)]
    return [word[0], *merge_pair.right(word[1:], pair)]


def merge_once(word, pair):
    for place in range(len(word) - 1):
        if (word[place], word[place + 1]) == tuple(pair):
            return [*word[:place], "".join(pair), *word[place + 2 :]]
    return list(word)


@merge_pair.mistake("only the first place is merged: go on to the end of the word")
def _(word, pair):
    return merge_once(word, pair)


@merge_pair.mistake("this goes from right to left; from the left, a a a with the pair (a, a) becomes aa a")
def _(word, pair):
    return [piece for piece in merge_pair.right(word[::-1], tuple(pair)[::-1])][::-1]


@merge_pair.mistake("a piece is used twice, in two merges: step over both pieces after a merge, so a a a becomes aa a")
def _(word, pair):
    out, place = [], 0
    while place < len(word):
        here = tuple(word[place : place + 2]) == tuple(pair)
        out.append("".join(pair) if here else word[place])
        place += 1
        if here and tuple(word[place : place + 2]) != tuple(pair):
            place += 1
    return out


@merge_pair.mistake("the last piece is lost when it is not merged: a loop that stops one before the end must still keep it")
def _(word, pair):
    out, place = [], 0
    while place < len(word) - 1:
        here = tuple(word[place : place + 2]) == tuple(pair)
        out.append("".join(pair) if here else word[place])
        place += 2 if here else 1
    return out


@merge_pair.mistake(
    "replacing inside a joined string also hits the end of a longer piece, here ae before s: compare whole pieces"
)
def _(word, pair):
    return " ".join(word).replace(" ".join(pair), "".join(pair)).split(" ")


@merge_pair.mistake("the second piece is still there behind the merged one: step over both")
def _(word, pair):
    joined = [
        "".join(pair) if (piece, following) == tuple(pair) else piece
        for piece, following in itertools.zip_longest(word, word[1:])
    ]
    return joined


# ----------------------------------------------------------------------------------------- 1.6

bpe_encode = Exercise("1.6", "bpe_encode")


def learn_merges(words, count):
    """The first `count` merges of byte-pair encoding on `words`, a list of str."""
    words, merges = [list(word) for word in words], []
    for _ in range(count):
        pair = most_frequent_pair.right(words, [1] * len(words))
        if pair is None:
            break
        merges.append(pair)
        words = [merge_pair.right(word, pair) for word in words]
    return merges


@bpe_encode.inputs
def _(generator):
    yield {"word": "a", "merges": [("a", "b")]}
    yield {"word": "the", "merges": [("h", "e"), ("t", "h")]}
    yield {"word": "abc", "merges": [("b", "c"), ("a", "bc"), ("a", "b")]}
    yield {"word": "nono", "merges": [("n", "o"), ("t", "o")]}
    yield {"word": "that", "merges": [("e", "r"), ("t", "h"), ("a", "t"), ("th", "at")]}
    yield {"word": "there", "merges": [("t", "h"), ("e", "r"), ("th", "er"), ("ther", "e")]}
    yield {"word": "abcd", "merges": [("c", "d"), ("b", "cd"), ("a", "b")]}
    yield {"word": "abcd", "merges": [("a", "b"), ("c", "d"), ("b", "c"), ("bc", "d")]}
    yield {"word": "xabc", "merges": [("b", "c"), ("x", "a"), ("a", "b"), ("xa", "b")]}
    for length in (8, 16):
        words = ["".join(pick(generator, "abc") for _ in range(6)) for _ in range(10)]
        yield {"word": "".join(pick(generator, "abc") for _ in range(length)), "merges": learn_merges(words, 6)}


@bpe_encode.oracle
def _(word, merges):
    """The `tokenizers` library with these merges."""
    pieces = dict.fromkeys([*word, *(part for pair in merges for part in pair), *("".join(pair) for pair in merges)])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(pair) for pair in merges])).encode(word).tokens


def in_order(word, merges, merge=merge_pair.right, stop_at_miss=False):
    word = list(word)
    for pair in merges:
        merged = merge(word, pair)
        if stop_at_miss and merged == word:
            break
        word = merged
    return word


@bpe_encode.mistake(
    "this takes the longest known piece from the left; byte-pair encoding repeats its merges in the order learned"
)
def _(word, merges):
    known, out = {*word, *("".join(pair) for pair in merges)}, []
    while word:
        end = max(end for end in range(1, len(word) + 1) if word[:end] in known)
        out.append(word[:end])
        word = word[end:]
    return out


@bpe_encode.mistake("the merges run from the last learned to the first; a later merge needs the pieces that earlier ones make")
def _(word, merges):
    return in_order(word, merges[::-1])


@bpe_encode.mistake("this merges whatever pair comes first in the word; the order of learning decides, not the place")
def _(word, merges):
    word = list(word)
    while True:
        places = [place for place, pair in enumerate(itertools.pairwise(word)) if pair in merges]
        if not places:
            return word
        word[places[0] : places[0] + 2] = ["".join(word[places[0] : places[0] + 2])]


@bpe_encode.mistake("it stops at the first merge that the word does not have; skip that one and try the next")
def _(word, merges):
    return in_order(word, merges, stop_at_miss=True)


@bpe_encode.mistake("each merge is made at one place only; make it wherever the pair stands")
def _(word, merges):
    return in_order(word, merges, merge=merge_once)


@bpe_encode.mistake("it stops after the first merge: go through all of them")
def _(word, merges):
    present = next((pair for pair in merges if merge_pair.right(list(word), pair) != list(word)), None)
    return list(word) if present is None else merge_pair.right(list(word), present)


# ----------------------------------------------------------------------------------------- 1.7

split_works = Exercise("1.7", "split_works")


@split_works.inputs
def _(generator):
    for count in (10, 20, 38):
        works = [f"play-{number:02}" for number in torch.randperm(99, generator=generator)[:count].tolist()]
        yield {"works": works, "fraction": 0.9, "seed": int(torch.randint(1000, (1,), generator=generator))}


@split_works.call
def _(function, works, fraction, seed):
    """What holds of the split, whichever way the works were shuffled: tried with five seeds, each in two states of the world."""
    tried = {}
    for one in range(seed, seed + 5):
        for world in (1, 2):
            torch.manual_seed(world)
            random.seed(world)
            tried[one, world] = [list(half) for half in function(list(works), fraction, one)]
    train, _ = tried[seed, 1]
    return {
        "works for training": len(train),
        "some work is on both sides": any(set(a) & set(b) for a, b in tried.values()),
        "some work is on neither side": any(set(works) - set(a) - set(b) for a, b in tried.values()),
        "same seed, same split": all(tried[one, 1] == tried[one, 2] for one in range(seed, seed + 5)),
        "another seed, another split": len({tuple(sorted(b)) for _, b in tried.values()}) > 1,
        "validation is the end of the list": all(set(b) == set(works[-len(b) :]) for _, b in tried.values() if b),
    }


@split_works.oracle
def _(works, fraction, seed):
    order = random.Random(seed).sample(works, len(works))
    size = round(fraction * len(works))
    return order[:size], order[size:]


def shuffled(works, seed=None):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return [works[place] for place in torch.randperm(len(works), generator=generator).tolist()]


@split_works.mistake("each half comes from a shuffle of its own, so training works turn up in validation: shuffle once, then cut")
def _(works, fraction, seed):
    size = round(fraction * len(works))
    return shuffled(works, seed)[:size], shuffled(works, seed + 1)[size:]


@split_works.mistake(
    "the shuffles have no seed and there are two of them: training works turn up in validation; shuffle once, seeded"
)
def _(works, fraction, seed):
    size = round(fraction * len(works))
    return shuffled(works)[:size], shuffled(works)[size:]


@split_works.mistake(
    "the shuffle has no seed: the next run trains on works that this one validates on; use a generator with the seed"
)
def _(works, fraction, seed):
    size = round(fraction * len(works))
    order = shuffled(works)
    return order[:size], order[size:]


@split_works.mistake(
    "nothing is shuffled: the works come in alphabetical or other order, and the last ones are not like the rest"
)
def _(works, fraction, seed):
    size = round(fraction * len(works))
    return works[:size], works[size:]


@split_works.mistake("the split is the same for every seed: give the seed to the generator that shuffles")
def _(works, fraction, seed):
    size = round(fraction * len(works))
    order = shuffled(works, 0)
    return order[:size], order[size:]


@split_works.mistake("the halves are swapped: the larger part, `fraction` of the works, is for training")
def _(works, fraction, seed):
    size = round((1 - fraction) * len(works))
    order = shuffled(works, seed)
    return order[:size], order[size:]


@split_works.mistake("all works are for training, those of validation too: the validation loss would measure memory")
def _(works, fraction, seed):
    order = shuffled(works, seed)
    return order, order[round(fraction * len(works)) :]


@split_works.mistake("both sizes are rounded down, so a work is lost: what training does not get is validation's")
def _(works, fraction, seed):
    order = shuffled(works, seed)
    size, rest = int(fraction * len(works)), int((1 - fraction) * len(works))
    return order[:size], order[size : size + rest]


# ----------------------------------------------------------------------------------------- 1.8

windows = Exercise("1.8", "windows")


@windows.inputs
def _(generator):
    yield {"tokens": torch.arange(3), "context": 2}
    yield {"tokens": torch.arange(9), "context": 4}
    yield {"tokens": torch.arange(8), "context": 4}
    for count, context in ((14, 3), (40, 8)):
        yield {"tokens": torch.randint(100, (count,), generator=generator), "context": context}


@windows.oracle
def _(tokens, context):
    starts = [start for start in range(0, len(tokens), context) if start + context < len(tokens)]
    rows = [tokens[start : start + context + 1].tolist() for start in starts]
    return torch.tensor([row[:-1] for row in rows]), torch.tensor([row[1:] for row in rows])


@windows.mistake("the windows overlap: each begins one token after the last; begin the next where the last one ends")
def _(tokens, context):
    rows = tokens.unfold(0, context + 1, 1)
    return rows[:, :-1], rows[:, 1:]


@windows.mistake(
    "targets and inputs are the same: the target of a position is the token after it, or there is nothing to predict"
)
def _(tokens, context):
    inputs, _ = windows.right(tokens, context)
    return inputs, inputs.clone()


@windows.mistake("the targets are shifted the wrong way: the target is the token after, not the one before")
def _(tokens, context):
    inputs, targets = windows.right(tokens, context)
    return targets, inputs


@windows.mistake("the last target is the text's first token: rolling wraps round; the last token has no target, so leave it out")
def _(tokens, context):
    count = len(tokens) // context * context
    return tokens[:count].view(-1, context), tokens.roll(-1)[:count].view(-1, context)


@windows.mistake("blocks of context + 1 tokens that share none: the first token of each block is never a target; step by context")
def _(tokens, context):
    rows = tokens[: len(tokens) // (context + 1) * (context + 1)].view(-1, context + 1)
    return rows[:, :-1], rows[:, 1:]


@windows.mistake("the rest of the text is a window too, filled up with 0: leave out what does not fill a window")
def _(tokens, context):
    count = -(-(len(tokens) - 1) // context)
    padded = torch.cat([tokens, tokens.new_zeros(count * context + 1 - len(tokens))])
    return padded[:-1].view(-1, context), padded[1:].view(-1, context)


@windows.mistake("the last whole window is missing: (N - 1) // context of them fit, since the last token is only a target")
def _(tokens, context):
    inputs, targets = windows.right(tokens, context)
    return inputs[:-1], targets[:-1]


@windows.mistake("the targets begin at the next window; the target of a position is the very next token")
def _(tokens, context):
    inputs, _ = windows.right(tokens, context)
    return inputs[:-1], inputs[1:]


@windows.picture
def _(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(torch.cat(list(got), dim=1), torch.cat(list(expected), dim=1), "inputs, and targets right of them")


# ----------------------------------------------------------------------------------------- 1.9

bits_per_character = Exercise("1.9", "bits_per_character")


@bits_per_character.inputs
def _(generator):
    yield {"losses": torch.tensor([1.0, 2.0]) * math.log(2), "text": "Ho!"}
    for count in (1, 5, 12):
        text = "".join(pick(generator, WORDS) + " " for _ in range(count)) + "café"
        yield {"losses": 4 * torch.rand(count, generator=generator), "text": text}


@bits_per_character.oracle
def _(losses, text):
    """The bits of a code for the text with these probabilities: the logarithm, to base 2, of their product."""
    return torch.tensor(-sum(math.log2(math.exp(-loss)) for loss in losses.tolist()) / sum(1 for _ in text))


@bits_per_character.mistake("these are nats; a bit is ln 2 nats, so divide by ln 2")
def _(losses, text):
    return losses.sum() / len(text)


@bits_per_character.mistake("this is multiplied by ln 2; to go from nats to bits, divide")
def _(losses, text):
    return losses.sum() / len(text) * math.log(2)


@bits_per_character.mistake("these are bits per token: a tokeniser with longer pieces looks worse; divide by the characters")
def _(losses, text):
    return losses.mean() / math.log(2)


@bits_per_character.mistake("this is divided by bytes: a letter such as é has two; count characters, len(text)")
def _(losses, text):
    return losses.sum() / len(text.encode()) / math.log(2)


@bits_per_character.mistake("the mean over the tokens is divided by all characters: take the sum of the losses")
def _(losses, text):
    return losses.mean() / len(text) / math.log(2)


@bits_per_character.mistake("these are nats per token, what cross-entropy gives: sum them, divide by characters and by ln 2")
def _(losses, text):
    return losses.mean()


@bits_per_character.mistake("this is the perplexity per token; bits per character has no exponential in it")
def _(losses, text):
    return losses.mean().exp()


@bits_per_character.mistake("spaces are left out of the count: a space is a character that the model has to predict")
def _(losses, text):
    return losses.sum() / len("".join(text.split())) / math.log(2)
