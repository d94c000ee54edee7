"""What a learner has solved: a small file beside the notebooks."""

import json
import time
from pathlib import Path

from rlhf_lib.exercises.declare import CHAPTERS, EXERCISES, load
from rlhf_lib.runs import RunError, write_atomic

PROGRESS = "progress.json"  # beside the notebooks that one works in


def solved(path=PROGRESS):
    """What has been solved here: a dict of exercise name to the time of its first pass, in seconds since 1970."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return {str(name): float(when) for name, when in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # no file yet, or one that cannot be read: nothing that a learner should have to mend


def remember(name, path=PROGRESS):
    """Note that the exercise `name` passed. Returns whether that could be written down."""
    known = solved(path)
    if name not in known:
        try:
            write_atomic(path, json.dumps({**known, name: round(time.time())}, indent=1).encode())
        except (OSError, RunError):  # a read-only folder, a full disk, a folder of that name
            return False
    return True


def progress(path=PROGRESS):
    """A table of all exercises by chapter, as Markdown text: what is solved, and what is left."""
    load()
    done = solved(path)
    rows = ["| chapter | solved | left to do |", "|---|---|---|"]
    for chapter, module in CHAPTERS.items():
        names = [name for name, one in EXERCISES.items() if one.number.split(".")[0] == str(int(chapter))]
        names.sort(key=lambda name: int(EXERCISES[name].number.split(".")[1]))
        left = [name for name in names if name not in done]
        title = module.split("_", 1)[1].replace("_", " ")
        rows.append(f"| {chapter} {title} | {len(names) - len(left)} of {len(names)} | {', '.join(left) or '-'} |")
    return "\n".join(rows)
