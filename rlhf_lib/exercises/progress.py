"""What a learner has solved: a small file in the learner's folder."""

import contextlib
import json
import time
from pathlib import Path

from rlhf_lib.exercises.declare import BUILDS, CHAPTERS, EXERCISES, INVESTIGATIONS, load
from rlhf_lib.exercises.investigations import findings
from rlhf_lib.files import RunError, add_json, home

PROGRESS = "progress.json"


def solved(path=None):
    """What has been solved here: a dict of exercise name to the time of its first pass, in seconds since 1970."""
    try:
        found = [*json.loads(Path(path or home() / PROGRESS).read_text(encoding="utf-8-sig")).items()]
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}  # no file yet, or one that cannot be read: nothing that a learner should have to mend
    times = {}
    for name, when in found:
        with contextlib.suppress(ValueError, TypeError, OverflowError):  # an entry that is no time costs no other
            times[name] = float(when)
    return times


def remember(name, path=None):
    """Note that the exercise `name` passed. Returns whether that could be written down."""
    if name not in solved(path):
        try:
            add_json(path or home() / PROGRESS, {name: round(time.time())})
        except (OSError, RunError):  # a read-only folder, a full disk, a folder of that name
            return False
    return True


def progress(path=None):
    """A table of the course by chapter, as Markdown text: exercises, what was built, investigations, and what is left."""
    load()
    solved_here = {**solved(path), **findings()}
    rows = ["| chapter | exercises | built | investigations | left to do |", "|---|---|---|---|---|"]
    for chapter, module in CHAPTERS.items():
        kinds = [[name for name in kind if number_of(name)[0] == int(chapter)] for kind in (EXERCISES, BUILDS, INVESTIGATIONS)]
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
