"""Chapter 01: correct answers written differently, and what is special about its checks."""

import collections
import heapq
import itertools
import math
import random
import re

import pytest
import torch
from tokenizers import Regex, pre_tokenizers

from rlhf_lib.exercises import EXERCISES, verdict
from rlhf_lib.exercises import ch01_text as text

UNKNOWN = text.UNKNOWN


def split_words(text):
    """The tokenizers library's own splitter."""
    return [piece for piece, _ in pre_tokenizers.Split(Regex(r"\w+"), "isolated").pre_tokenize_str(text)]


def build_vocabulary(pieces, size):
    return [UNKNOWN, *(piece for piece, _ in collections.Counter(pieces).most_common(size - 1))]


def encode_words(pieces, vocabulary):
    numbers = collections.defaultdict(int, zip(vocabulary, range(len(vocabulary))))
    return [numbers[piece] for piece in pieces]


def most_frequent_pair(words, counts):
    total = collections.Counter()
    for word, count in zip(words, counts):
        for place in range(len(word) - 1):
            total[word[place], word[place + 1]] += count
    return total.most_common(1)[0][0] if total else None


def merge_pair(word, pair):
    """A stack: each piece joins the one below it when the two are the pair."""
    out, merged = [], False
    for piece in word:
        if out and not merged and (out[-1], piece) == tuple(pair):
            out[-1] += piece
            merged = True
        else:
            out.append(piece)
            merged = False
    return out


def bpe_encode(word, merges):
    """GPT-2's way: merge the pair that was learned earliest, until none is left."""
    rank, word = {tuple(pair): place for place, pair in enumerate(merges)}, list(word)
    while True:
        pairs = [pair for pair in zip(word, word[1:]) if pair in rank]  # noqa: RUF007
        if not pairs:
            return word
        word = merge_pair(word, min(pairs, key=rank.get))


def split_works(works, fraction, seed):
    order = list(works)
    random.Random(f"split {seed}").shuffle(order)
    return order[: round(fraction * len(order))], order[round(fraction * len(order)) :]


def split_works_by_lot(works, fraction, seed):
    """Each work draws a number; the smallest are for training, in the list's order."""
    numbers = torch.rand(len(works), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = set(heapq.nsmallest(round(fraction * len(works)), range(len(works)), key=numbers.__getitem__))
    return [w for i, w in enumerate(works) if i in chosen], [w for i, w in enumerate(works) if i not in chosen]


def windows(tokens, context):
    rows = tokens.unfold(0, context + 1, context)  # (N, context + 1)
    return rows[:, :-1], rows[:, 1:]


def windows_by_reshape(tokens, context):
    count = (len(tokens) - 1) // context
    return tokens[: count * context].reshape(count, context), tokens[1 : count * context + 1].reshape(count, context)


def bits_per_character(losses, text):
    return float(losses.double().mean()) * (len(losses) / len(text)) * math.log2(math.e)


ALTERNATIVES = {
    "split_words": split_words,
    "build_vocabulary": build_vocabulary,
    "encode_words": encode_words,
    "most_frequent_pair": most_frequent_pair,
    "merge_pair": merge_pair,
    "bpe_encode": bpe_encode,
    "split_works": split_works,
    "windows": windows,
    "bits_per_character": bits_per_character,
}
MORE = [("split_works", split_works_by_lot), ("windows", windows_by_reshape)]


@pytest.mark.parametrize("name, function", [*ALTERNATIVES.items(), *MORE])
@pytest.mark.parametrize("seed", range(3))
def test_every_correct_answer_passes(name, function, seed):
    found = verdict(name, function, seed)
    assert found.passed, found.message


def test_the_empty_strings_of_re_split_are_named_and_the_smallest_text_shows_them():
    found = verdict("split_words", lambda text: re.split(r"\b", text))
    assert "empty strings" in found.mistake
    assert (found.arguments, found.got, found.expected) == ({"text": ""}, [""], [])


def test_sennrichs_replacement_without_looking_at_whole_pieces_has_its_name():
    """Sennrich et al. 2016, algorithm 1, guards its regular expression against this; str.replace does not."""
    found = verdict("merge_pair", lambda word, pair: " ".join(word).replace(" ".join(pair), "".join(pair)).split(" "))
    assert "inside a joined string" in found.mistake
    assert found.arguments == {"word": ["ae", "s", "e", "s"], "pair": ("e", "s")}


def test_the_published_leak_has_its_name_whichever_way_it_is_drawn():
    def leaks(works, fraction, seed):
        first, second = list(works), list(works)
        random.shuffle(first)
        random.shuffle(second)
        size = round(fraction * len(works))
        return first[:size], second[size:]

    found = verdict("split_works", leaks)
    assert "training works turn up in validation" in found.message


def test_an_answer_that_changes_its_input_is_told_so():
    def in_place(word, pair):
        for place in range(len(word) - 2, -1, -1):
            if tuple(word[place : place + 2]) == tuple(pair):
                word[place : place + 2] = ["".join(pair)]
        return word

    assert "changed its argument word in place" in verdict("merge_pair", in_place).message


def test_the_rolled_targets_fail_on_the_shortest_text_that_shows_them():
    """Rolling is right unless the text fills its windows to the last token: 3 tokens in windows of 2 do not show it."""

    def rolled(tokens, context):
        count = len(tokens) // context * context
        return tokens[:count].view(-1, context), tokens.roll(-1)[:count].view(-1, context)

    found = verdict("windows", rolled)
    assert "wraps round" in found.mistake
    assert (len(found.arguments["tokens"]), found.arguments["context"]) == (2, 1)


def test_bits_per_character_of_a_coin_for_every_letter_is_one():
    assert text.bits_per_character.right(torch.full((5,), math.log(2)), "heads") == pytest.approx(1.0)


def test_the_learners_own_mistake_gets_the_smallest_input_and_both_answers():
    """A wrong answer with no name: the message shows the input, what came out and what was expected."""
    message = verdict("merge_pair", lambda word, pair: [*word, "x"]).message
    assert "word = ['s', 'o']" in message and "came out: ['s', 'o', 'x']" in message and "expected: ['so']" in message


def test_a_tuple_is_no_list_and_a_float_no_int():
    for name in ("split_words", "build_vocabulary", "merge_pair", "bpe_encode"):
        right = EXERCISES[name].right
        message = verdict(name, lambda right=right, **given: tuple(right(**given))).message
        assert "it is to be a list" in message
    message = verdict("encode_words", lambda pieces, vocabulary: [float(n) for n in encode_words(pieces, vocabulary)]).message
    assert "it is a list of int" in message


def test_a_word_without_the_pair_comes_back_as_a_new_list():
    """Whoever goes on to change what came back would change the caller's word."""

    def same_if_nothing_to_do(word, pair):
        return merge_pair(word, pair) if tuple(pair) in itertools.pairwise(word) else word

    assert "this is the caller's own" in verdict("merge_pair", same_if_nothing_to_do).message


def test_the_order_of_a_set_is_no_shuffle_since_it_is_another_in_every_run():
    def from_a_set(works, fraction, seed):
        order = list(set(works))
        random.Random(seed).shuffle(order)
        return order[: round(fraction * len(works))], order[round(fraction * len(works)) :]

    assert "the next time" in verdict("split_works", from_a_set).mistake

    def with_a_set(works, fraction, seed):  # to look up in a set does no harm
        train, _ = split_works(works, fraction, seed)
        return train, [work for work in works if work not in set(train)]

    assert verdict("split_works", with_a_set).passed


@pytest.mark.parametrize(
    "pieces, size, expected",
    [
        (["b", "a", "b", "a", "c"], 3, [UNKNOWN, "b", "a"]),
        (["x"], 1, [UNKNOWN]),
        ([" ", "\n", "\n"], 9, [UNKNOWN, "\n", " "]),
    ],
)
def test_the_vocabulary_by_hand(pieces, size, expected):
    assert EXERCISES["build_vocabulary"].right(pieces, size) == expected == EXERCISES["build_vocabulary"].formula(pieces, size)
