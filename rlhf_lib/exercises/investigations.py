"""Investigations: questions that a learner settles with an experiment and a plot of their own. What they found is kept here."""

import json
import re
import time

from rlhf_lib.exercises.declare import INVESTIGATIONS, load
from rlhf_lib.files import RunError, add_json, home

FINDINGS = "findings.json"  # in the learner's folder; the figures are in the folder `figures` beside it
FEWEST = 5  # words of a finding


def done(number, finding, figure=None):
    """Note what an investigation found: it counts as done, and the report of chapter 09 takes it up.

    Args:
        number: the investigation's, such as "2.A".
        finding: what was found, in a sentence of the learner's own.
        figure: a matplotlib figure that shows it; saved as `figures/2.A.png`.

    Returns:
        The figure, so that a cell that ends with this call shows it. None for one of pyplot's: a notebook shows that by itself.

    Raises:
        KeyError: there is no such investigation.
        ValueError: the finding is no sentence yet.
    """
    load()
    if number not in INVESTIGATIONS:
        raise KeyError(f"there is no investigation {number!r}; there are {', '.join(INVESTIGATIONS)}")
    if not isinstance(finding, str) or len(re.findall(r"\w+", finding)) < FEWEST:
        raise ValueError(f"{number}: say in a sentence of at least {FEWEST} words what you found")
    note = {"finding": " ".join(finding.split()), "when": round(time.time())}
    try:
        add_json(home() / FINDINGS, {number: note})
        if figure is not None:
            (home() / "figures").mkdir(exist_ok=True)
            figure.savefig(home() / "figures" / f"{number}.png", dpi=110)
    except (OSError, RunError) as error:
        print(f"✓ {number} (this could not be noted: {error})")
    else:
        print(f"✓ {number} {INVESTIGATIONS[number].title}: noted" + (", with its figure" if figure is not None else ""))
    return None if figure is None or figure.canvas.manager else figure


def findings():
    """What was noted here: {number: {"finding": a sentence, "when": seconds since 1970}}."""
    try:
        found = json.loads((home() / FINDINGS).read_text(encoding="utf-8-sig"))
        return {str(number): {"finding": str(note["finding"]), "when": float(note["when"])} for number, note in found.items()}
    except (OSError, ValueError, AttributeError, TypeError, KeyError, OverflowError, RecursionError):
        return {}  # no file yet, or one that cannot be read
