"""A reward that can be checked: blank verse, whose lines have ten syllables, or eleven with a weak one at the end.

Syllables are counted by rules of spelling, without a dictionary. Where a rule is wrong, a policy that is paid by it finds out.
"""

import functools
import re

import torch

SYLLABLES = (10, 11)  # of a line of blank verse
VOWELS = re.compile("[aeiouy]+")
# An e that is not said, behind a consonant: love, loves, loved, lovely, but not horses, hated, table; and tongue, and something.
SILENT = re.compile(
    r"(?<=[^aeiouy])(?<![^aeiouylr][lr])e"
    r"(?:$|(?=s$)(?<![sxzcg]e)(?<![cs]he)|(?=d$)(?<![td]e)"
    r"|(?=(?:ly|less|ness|ments?|ful|well|some|forth|dom|hood|thing|times?|what|fore|of|in|wise)$))"
    r"|(?<=[gq])ue(?=s?$)"
)
# Vowels side by side in two syllables: glorious, but not gracious; playing, royal; usual, virtuous, quiet, theory; and prism.
APART = re.compile(
    r"(?<![ctsgx])(?<!sh)i(?!age)(?=[aou])|[aeou](?=ing)|(?<=.)y(?=[aiou])|[ao](?=ye)|(?<=[^qgaeiou])u(?=[ae][^aeiou])|u(?=ou|ity|in)"
    r"|i(?=et)|e(?=o[^up])|(?<=cr)e(?=at)|(?:s|th)(?=m$)"
)
HEADING = re.compile(r"[^a-z]*|(?:ACT|SCENE)\b.*|[A-Z]\w+(?: [A-Z]\w+)?\.|\[.*")  # ROMEO.  SCENE II.  First Lord.  [Exit]


@functools.lru_cache(65536)
def syllables(word):
    """How many syllables a word has, by its spelling.

    An apostrophe stands for a vowel that is not said, as in o'er and render'd; so th' has no syllable of its own.
    """
    letters = re.sub("[^a-z]", "", word.lower())
    first = VOWELS.search(letters)
    if first is None:
        return 0
    said = letters[: first.end()] + SILENT.sub("", letters[first.end() :])
    return len(VOWELS.findall(said)) + len(APART.findall(said))


def line_syllables(line):
    """How many syllables a line has; words that a hyphen or a dash joins are words of their own."""
    return sum(syllables(word) for word in re.findall(r"[A-Za-z']+", line))


def spoken_lines(text):
    """The lines of a text that somebody says, without names, stage directions, acts and scenes, and what stands behind the last
    line break, which may have been cut off."""
    lines = [line.strip() for line in text.split("\n")[:-1]]
    return [line for line in lines if not HEADING.fullmatch(line)]


def share_of_verse(text):
    """The share of a text's spoken lines that are as long as a line of blank verse; 0 where it has none."""
    lines = spoken_lines(text)
    return sum(line_syllables(line) in SYLLABLES for line in lines) / len(lines) if lines else 0.0


def verse_reward(rollout):
    """The `share_of_verse` of each completion of a Rollout, (B,) in [0, 1], on the CPU: a reward that nobody had to learn."""
    return torch.tensor([share_of_verse(text) for text in rollout.texts])
