"""The score of the bug hunt: a cause that is named before the program was read counts two points, after it one.

The right causes stand here as fingerprints, so that nobody reads them by accident.
"""

import contextlib
import hashlib
import json

from rlhf_lib.files import RunError, add_json, home
from rlhf_lib.hunt.cases import CASES, number, text_of
from rlhf_lib.hunt.symptoms import CAUSES

FILE = "hunt.json"  # in the learner's folder
UNREAD, READ = 2, 1  # points for a case
GUESSED = set()  # in this session, wherever notes cannot be kept
ANSWERS = {
    "01": {"34070359"},
    "02": {"b378665a"},
    "03": {"b87daf6d"},
    "04": {"bfbcb5de"},
    "05": {"176495b7"},
    "06": {"d58b0f02"},
    "07": {"0bd4be50"},
    "08": {"ae3377f0"},
    "09": {"41acc2e4", "a3d72fb4"},
    "10": {"7e886c83"},
    "11": {"9206a63c"},
    "12": {"76d79ee8"},
    "13": {"55918cc6"},
    "14": {"b0c7e6d3", "b719091a"},
    "15": {"7011dc2b"},
    "16": {"90b09662"},
    "17": {"4f2e5c10"},
    "18": {"e14aebd6", "0b634b09"},
    "19": {"21159b97"},
}


def fingerprint(case, cause):
    return hashlib.sha256(f"{case} {cause}".encode()).hexdigest()[:8]


def noted():
    """What was guessed here: {case: {"read": bool, "unread": [causes], "with": [causes], "points": number}}."""
    try:
        found = json.loads((home() / FILE).read_text(encoding="utf-8-sig"))
        return {case: whole(note) for case, note in found.items() if case in CASES and isinstance(note, dict)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}  # no file yet, or one that cannot be read


def whole(note):
    """A case's note without what is damaged in it."""
    points = note.get("points", 0)
    points = points if isinstance(points, (int, float)) and not isinstance(points, bool) else 0
    named = {when: note[when] for when in ("unread", "with") if isinstance(note.get(when), list)}
    named = {when: [one for one in causes if one in CAUSES] for when, causes in named.items() if {*map(type, causes)} <= {str}}
    return {"read": note.get("read") is True, "points": points, **named}


def note(case, **fields):
    """Keep some fields of a case; where the folder cannot be written, the hunt goes on without."""
    with contextlib.suppress(OSError, RunError):
        add_json(home() / FILE, {case: {**noted().get(case, {}), **fields}})


def source(case, name=None):
    """The text of a program, its function called `name` (mend_07 for case 07). From now on the case counts one point.

    The text needs `import torch`, `from torch import nn` and `from torch.nn import functional as F`, and some of the standard
    library's copy and math.

    Raises:
        KeyError: there is no such case.
    """
    case = number(case)
    note(case, read=True)
    return text_of(case, name or f"mend_{case}")


def read(case):
    """Print the text of a program, once it was guessed what is wrong with it; before that, what to do."""
    case = number(case)
    before = noted().get(case, {})
    if before.get("unread") or before.get("read") or case in GUESSED:
        print(source(case).rstrip())
    else:
        print(f"First a guess, in the cell above. (Without one: print(hunt.source({case!r})), and the case counts {READ} point.)")


def guess(case, *causes):
    """Say what is wrong with a program: the names of one cause or two of `CAUSES`, or "nothing". Prints what it counts.

    There is one guess before the program is read, and one after, which may name what the first has left out. A "?" is none yet.
    A right cause beside one too many counts half.

    Raises:
        KeyError: there is no such case, or no such cause.
        ValueError: no cause, or the same one twice, or more than two.
    """
    case = number(case)
    if causes == ("?",):
        print(f"case {case}: not guessed yet. Write a name of hunt.causes() in the place of the ?")
        return
    for cause in causes:
        if cause not in CAUSES:
            raise KeyError(f"there is no cause {cause!r}; there are {', '.join(CAUSES)}")
    if len(set(causes)) != len(causes) or not 1 <= len(causes) <= 2:
        raise ValueError(f"case {case}: name one cause or two different ones, such as guess({case!r}, 'leak')")
    before, right = noted().get(case, {}), ANSWERS[case]
    earlier = before.get("unread", [])
    when, worth = ("with", READ) if before.get("read") else ("unread", UNREAD)
    known, hits = ({one for one in some if fingerprint(case, one) in right} for some in (earlier, causes))
    if "with" in before or len(known) == len(right):
        print(f"case {case}: this one is settled")
    elif when in before:
        print(f"case {case}: that guess was made. Run the next cell, hunt.read({case!r}), and guess once more")
    elif set(causes) == set(earlier):
        print(f"case {case}: that was the first guess. Write another name; it costs nothing yet")
    else:
        more = worth * len(hits - known) / len(right) / (2 if len(causes) > len(right) else 1)
        points = before.get("points", 0) + more
        note(case, **{when: list(causes), "points": points})
        GUESSED.add(case)
        print(verdict(case, when, points, len(causes), len(hits | known), len(right)))


def verdict(case, when, points, named, hits, wrong):
    """What a guess is told that named `named` causes, when `hits` are found of the `wrong` things that are wrong."""
    worded = f"{points:g} point{'s' * (points != 1)}"
    if hits == wrong and named <= wrong:
        return f"✓ case {case}: that is it, {worded}. Now mend it"
    if hits == wrong:
        return f"case {case}: one of the two is right, and only one thing is wrong: {worded}. Now mend it"
    if hits:
        rest = "Look for the other while you mend it" if when == "with" else "Run the next cell, hunt.read, and name both"
        return f"case {case}: one of two things, and it is right: {worded}. {rest}"
    if when == "unread":
        return f"✗ case {case}: not that. Run the next cell, hunt.read({case!r}), and guess once more"
    return f"✗ case {case}: not that. Mend it: the check says what the curves still show"


def score():
    """A table of the cases and their points, as Markdown text."""
    notes = noted()
    rows = ["| case | | guessed unread | guessed with the program | points |", "|---|---|---|---|---|"]
    total = 0.0
    for case, one in CASES.items():
        here = notes.get(case, {})
        points = here.get("points", 0)
        total += points
        guesses = [", ".join(here.get(when, [])) or "-" for when in ("unread", "with")]
        rows.append(f"| {case} | {one.title} | {' | '.join(guesses)} | {points:g} |")
    return "\n".join([*rows, f"| | | | of {UNREAD * len(CASES)} | **{total:g}** |"])
