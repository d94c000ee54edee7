"""Chapter 01: correct answers written differently, and what is special about its checks."""

import collections
import itertools
import re

import pytest
from tokenizers import Regex, pre_tokenizers

from rlhf_lib.exercises import EXERCISES, verdict
from rlhf_lib.exercises.ch01_text import UNKNOWN


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


ALTERNATIVES = {
    "split_words": split_words,
    "build_vocabulary": build_vocabulary,
    "encode_words": encode_words,
    "most_frequent_pair": most_frequent_pair,
    "merge_pair": merge_pair,
    "bpe_encode": bpe_encode,
}


@pytest.mark.parametrize("name, function", ALTERNATIVES.items())
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


def test_an_answer_that_changes_its_input_is_told_so():
    def in_place(word, pair):
        for place in range(len(word) - 2, -1, -1):
            if tuple(word[place : place + 2]) == tuple(pair):
                word[place : place + 2] = ["".join(pair)]
        return word

    assert "changed its argument word in place" in verdict("merge_pair", in_place).message


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


def test_the_most_frequent_pair_by_hand():
    """The card's example, which tells the commonest mistakes apart."""
    words, counts = [["n", "o"], ["n", "o", "t"], ["l", "o", "w"], ["s", "l", "o", "w"]], [1, 4, 3, 3]
    exercise = EXERCISES["most_frequent_pair"]
    assert exercise.right(words, counts) == ("l", "o")
    assert exercise.formula(words, [1, 1, 1, 1]) == ("n", "o")  # counts ignored
    assert exercise.formula(words, counts, add=max) == ("n", "o")  # counts not added


def last_piece_again(word, pair):
    """The loop ends before the last piece, which may have been merged."""
    out, place = [], 0
    while place < len(word) - 1:
        here = (word[place], word[place + 1]) == pair
        out.append("".join(pair) if here else word[place])
        place += 2 if here else 1
    return out + word[-1:]


def once_a_word(words, counts):
    total = collections.Counter()
    for word, count in zip(words, counts):
        total.update(dict.fromkeys(set(itertools.pairwise(word)), count))
    return max(total, key=total.get, default=None)


def from_the_most_frequent_word(words, counts):
    total = collections.Counter()
    for word, count in sorted(zip(words, counts), key=lambda one: one[1], reverse=True):
        for pair in itertools.pairwise(word):
            total[pair] += count
    return max(total, key=total.get, default=None)


def once_is_none(words, counts):
    pair = EXERCISES["most_frequent_pair"].formula(words, counts)
    return pair if sum(count * [*itertools.pairwise(word)].count(pair) for word, count in zip(words, counts)) > 1 else None


def in_steps_of_two(word, pair):
    twos = ([*word[place : place + 2]] for place in range(0, len(word), 2))
    return [piece for two in twos for piece in (["".join(two)] if tuple(two) == pair else two)]


def by_replacing(word, merges):
    text = " ".join(word)
    for left, right in merges:
        text = text.replace(f"{left} {right}", left + right)
    return text.split()


@pytest.mark.parametrize(
    "name, function, said",
    [
        ("split_words", lambda text: re.split(r"(\W+)", text), "empty strings are left in"),
        ("split_words", lambda text: re.findall(r"[\w'-]+|[^\w'-]+", text), "hyphens count as part of a word"),
        (
            "build_vocabulary",
            lambda pieces, size: [UNKNOWN, *sorted(set(pieces), key=pieces.count, reverse=True)][:size],
            "the order of a set",
        ),
        (
            "encode_words",
            lambda pieces, vocabulary: [next((n for n, one in enumerate(vocabulary) if piece in one), 0) for piece in pieces],
            "compare them whole",
        ),
        ("merge_pair", last_piece_again, "the last piece is added once more"),
        ("bpe_encode", by_replacing, "inside a joined string"),
        ("most_frequent_pair", once_a_word, "is counted once"),
        ("most_frequent_pair", from_the_most_frequent_word, "that of the most frequent word"),
        ("most_frequent_pair", once_is_none, "that occurs once is left out"),
        ("merge_pair", in_steps_of_two, "only every second place"),
    ],
)
def test_a_frequent_mistake_has_its_name(name, function, said):
    assert said in verdict(name, function).mistake
