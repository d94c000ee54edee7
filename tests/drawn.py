"""Which tests `pytest --drawn` runs, which is how `make test` calls it: everything that is quick, and a drawn share of the rest.

A family is one test function with all its cases. Families that take at most `WHOLE` seconds run whole; of a longer one as many
cases are drawn as take `WHOLE` seconds, but at least one in `LEAST`. The commit draws them, so that one commit runs the same
tests on every machine and another commit runs others. Seconds stand in `seconds.json`; a family that is not there, as a new
one, runs whole. `make test-all`, or `pytest` without `--drawn`, runs every case; `pytest --record` writes the seconds anew.
"""

import hashlib
import json
import os
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

SECONDS = Path(__file__).with_name("seconds.json")
WHOLE = 0.4
LEAST = 16


def family(name):
    return name.split("[")[0]


def commit():
    """The commit that is checked out, or "" where there is none."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=SECONDS.parent, capture_output=True, text=True)
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def number(draw, name):
    """A number in [0, 1) that `draw` and `name` decide."""
    return int.from_bytes(hashlib.sha256(f"{draw} {name}".encode()).digest()[:6], "big") / 2**48


def share(seconds):
    """The expected share of its cases that a family of `seconds` runs."""
    return 1.0 if seconds <= WHOLE else max(WHOLE / seconds, 1 / LEAST)


def chosen(names, seconds, draw):
    """The set of those test `names` that `draw` runs; `seconds` maps families to what all their cases take.

    Of n cases with share p it takes int(p n + u), u uniform in [0, 1): p n in expectation, and every case equally often.
    """
    families = defaultdict(list)
    for name in names:
        families[family(name)].append(name)
    kept = set()
    for its, cases in families.items():
        count = int(share(seconds.get(its, 0.0)) * len(cases) + number(draw, its))
        kept.update(sorted(cases, key=lambda name: number(draw, name))[:count])
    return kept


def read():
    return json.loads(SECONDS.read_text(encoding="utf-8"))


def record(measured):
    """Write the seconds of the families in `measured` over those of the file; what takes `WHOLE` or less is left out."""
    long = {name: round(taken, 1) for name, taken in {**read(), **measured}.items() if round(taken, 1) > WHOLE}
    SECONDS.write_text(json.dumps(dict(sorted(long.items())), indent=1) + "\n", encoding="utf-8")


# ----------------------------------------------------------------------------------------- pytest's hooks, for conftest.py

TAKEN, RAN, CASES = Counter(), Counter(), Counter()  # of every family: its seconds in this run, the cases that ran, all of them


def pytest_addoption(parser):
    parser.addoption("--drawn", action="store_true", help="of what takes long only the share that the commit draws")
    parser.addoption("--record", action="store_true", help="write down what takes long, in tests/seconds.json")


def pytest_configure():
    os.environ.setdefault("RLHF_DRAW", commit())  # every worker of a run draws the same


def pytest_collection_modifyitems(config, items):
    cases = Counter(family(item.nodeid) for item in items)
    for item in items:
        item.user_properties.append(("cases", cases[family(item.nodeid)]))  # a report brings it from the worker
    if config.getoption("drawn"):
        kept = chosen([item.nodeid for item in items], read(), os.environ["RLHF_DRAW"])
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in kept])
        items[:] = [item for item in items if item.nodeid in kept]


def pytest_runtest_logreport(report):
    if report.when == "call":
        name = family(report.nodeid)
        TAKEN[name], RAN[name] = TAKEN[name] + report.duration, RAN[name] + 1
        CASES[name] = dict(report.user_properties)["cases"]


def pytest_sessionfinish(session):
    if session.config.getoption("record") and not hasattr(session.config, "workerinput"):
        record({name: taken / RAN[name] * CASES[name] for name, taken in TAKEN.items()})
