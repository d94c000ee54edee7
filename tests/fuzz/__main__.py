"""Damage files for minutes, and look at what their readers say.

python -m tests.fuzz                          the names of the readers
python -m tests.fuzz NAME... --minutes 10     "all" for all; --seed N for other files; faulty ones are kept in --out
"""

import argparse
import sys
from pathlib import Path

from tests.fuzz.drive import fuzz
from tests.fuzz.readers import READERS


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("names", nargs="*", choices=[*READERS, "all", []], metavar="NAME")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--examples", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("/tmp/rlhf-fuzz"))
    options = parser.parse_args()
    if not options.names:
        print(*READERS, sep="\n")
    worst = 0
    for name in READERS if options.names == ["all"] else options.names:
        found = fuzz(name, READERS[name], options.out, options.seed, options.examples, 60 * options.minutes)
        counts = f"{found.examples} examples, {found.refused} refused, {found.seconds:.0f} s, {len(found.faults)} faults"
        print(f"{name}: {counts}", flush=True)
        for fault in found.faults.values():
            print(f"  {fault}", flush=True)
        worst = max(worst, len(found.faults))
    sys.exit(worst > 0)


if __name__ == "__main__":
    main()
