"""What a learner has solved, and after how many tries: a small file in the learner's folder."""

import contextlib
import json
import time
from pathlib import Path

from rlhf_lib.exercises.declare import BUILDS, CHAPTERS, EXERCISES, INVESTIGATIONS, load
from rlhf_lib.exercises.investigations import findings
from rlhf_lib.files import RunError, add_json, home

PROGRESS = "progress.json"  # {exercise: when it passed first, in seconds since 1970}, and TRIES: {exercise: their number}
TRIES = "tries"


def noted(path=None):
    """The text of the file, or "" where there is none that can be read: nothing that a learner should have to mend."""
    try:
        return Path(path or home() / PROGRESS).read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return ""


def items(text):
    try:
        return [*json.loads(text).items()]
    except (ValueError, AttributeError, RecursionError):
        return []


def solved(path=None):
    """What has been solved here: a dict of exercise name to the time of its first pass, in seconds since 1970."""
    return times_in(noted(path))


def times_in(text):
    """`solved`, of the text of a file."""
    times = {}
    for name, when in items(text):
        with contextlib.suppress(ValueError, TypeError, OverflowError):  # an entry that is no time costs no other
            times[name] = float(when)
    return times


def tries_in(text):
    """{exercise: how often it was checked until it passed, or so far} in the text of a file."""
    found = dict(items(text)).get(TRIES)
    return {name: count for name, count in found.items() if type(count) is int} if isinstance(found, dict) else {}


def remember(name, path=None, passed=True):
    """Note that the exercise `name` was checked, and when it passed first. Returns whether that could be written down."""
    path, text = path or home() / PROGRESS, noted(path)
    if name in times_in(text):
        return True
    try:
        tries = tries_in(text)
        tries[name] = tries.get(name, 0) + 1
        add_json(path, {TRIES: tries, **({name: round(time.time())} if passed else {})})
    except (OSError, RunError, ValueError):  # a read-only folder, a full disk, a folder of that name
        return False
    return True


def progress(path=None, begun=False):
    """A table of the course by chapter, as Markdown text: exercises, what was built, investigations, and what is left.

    Args:
        begun: only the chapters in which something is solved.
    """
    load()
    solved_here = {**solved(path), **findings()}
    rows = ["| chapter | exercises | built | investigations | left to do |", "|---|---|---|---|---|"]
    for chapter, module in CHAPTERS.items():
        kinds = [[name for name in kind if number_of(name)[0] == int(chapter)] for kind in (EXERCISES, BUILDS, INVESTIGATIONS)]
        if begun and not any(name in solved_here for names in kinds for name in names):
            continue
        counts = [f"{sum(name in solved_here for name in names)} of {len(names)}" if names else "-" for names in kinds]
        left = [name for names in kinds for name in sorted(names, key=number_of) if name not in solved_here]
        title = module.split("_", 1)[1].replace("_", " ")
        rows.append(f"| {chapter} {title} | {' | '.join(counts)} | {', '.join(left) or '-'} |")
    return "\n".join(rows)


def number_of(name):
    """(chapter, place) of an exercise, a build or an investigation; the place of an investigation is a letter's."""
    one = EXERCISES.get(name) or BUILDS.get(name) or INVESTIGATIONS[name]
    chapter, place = one.number.split(".")
    return int(chapter), int(place) if place.isdigit() else ord(place)
