"""Byte-level BPE by brute force: what the probes of chapter 01's build judge by. Nothing in it is fast.

A token is an int: 0 the end of a text, 1 to 256 the bytes, then the merges. `merges` is a list of pairs of tokens.
"""

import itertools
from collections import Counter

from rlhf_lib.exercises.ch01_text import split_words

BYTES = 257  # tokens before the first merge
cut = split_words.right


def as_bytes(word):
    return tuple(byte + 1 for byte in word.encode())


def joined(word, pair, token):
    """`word`, a tuple of tokens, with `pair` made one token from left to right."""
    made = []
    for one in word:
        if made and (made[-1], one) == tuple(pair):
            made[-1] = token
        else:
            made.append(one)
    return tuple(made)


def pairs_of(words):
    """How often each pair stands in `words`, a Counter of tuples; in the order of the text."""
    found = Counter()
    for word, count in words.items():
        for pair in itertools.pairwise(word):
            found[pair] += count
    return found


def learned(text, most, weighted=True):
    """The first `most` merges, as [(pair, how often each pair stands then)]; `weighted`: words count as often as they stand."""
    words, steps = Counter(map(as_bytes, cut(text))), []
    words = words if weighted else Counter(list(words))
    while len(steps) < most and (pairs := pairs_of(words)):
        pair = max(pairs, key=pairs.get)
        words = Counter({joined(word, pair, BYTES + len(steps)): count for word, count in words.items()})
        steps.append((pair, pairs))
    return steps


def ties(text, most):
    """How many of the first merges had a rival that stands as often."""
    return sum(list(pairs.values()).count(pairs[pair]) > 1 for pair, pairs in learned(text, most))


def encoded(text, merges, words=cut):
    """The tokens of `text`, when all merges are made in their order."""
    tokens = []
    for word in map(as_bytes, words(text)):
        for place, pair in enumerate(merges):
            word = joined(word, pair, BYTES + place)
        tokens += word
    return tokens


def pieces(merges):
    """What each token stands for, a list of bytes."""
    made = [b"", *(bytes([byte]) for byte in range(256))]
    for left, right in merges:
        made.append(made[left] + made[right])
    return made


def longest_first(text, merges):
    """The tokens of `text` when each is the longest piece that fits."""
    known, tokens = {piece: token for token, piece in enumerate(pieces(merges))}, []
    for word in map(str.encode, cut(text)):
        while word:
            size = next(size for size in range(len(word), 0, -1) if word[:size] in known)
            tokens.append(known[word[:size]])
            word = word[size:]
    return tokens


def shown(tokens, merges, between="·"):
    """The pieces of `tokens`, for a sentence."""
    known = [piece.decode("utf-8", errors="backslashreplace") for piece in pieces(merges)]
    return repr(between.join(known[token] if token < len(known) else "?" for token in tokens))


def written(tokens, merges):
    """The text of tokens by these merges."""
    pieces = [b"", *(bytes([byte]) for byte in range(256))]
    for left, right in merges:
        pieces.append(pieces[left] + pieces[right])
    return b"".join(pieces[token] for token in tokens).decode(errors="replace")
