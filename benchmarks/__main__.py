"""The command line: `python -m benchmarks [ROWS] [--quick]`, and `python -m benchmarks frontier` or `lower`."""

import argparse
import importlib
import os
import sys
from pathlib import Path

GROUPS = {
    "decode": ("decode", "rows", "decoding against `generate` of transformers"),
    "ppo": ("ppo", "rows", "an iteration of PPO against TRL's PPO and GRPO"),
    "throughput": ("pretrain", "throughput_rows", "training throughput against the same GPT-2 in transformers"),
    "pretrain": ("pretrain", "rows", "pretraining to a validation loss against nanoGPT's recipe"),
    "growth": ("growth", "rows", "how decoding grows with batch and tokens, and memory with iterations"),
    "figure": ("figure", "rows", "from the first import of a chapter to its first figure"),
    "pipeline": ("pipeline", "rows", "the whole laptop preset against what the peers would need for it"),
}
ON_CARD = ("decode", "ppo", "throughput")


def parser():
    main = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure ours and the peers side by side.",
        epilog="rows: " + "; ".join(f"{name}: {text}" for name, (_, _, text) in GROUPS.items())
        + "; and by themselves, frontier: gold against KL for every method of chapter 12 (frontier --help), and lower: fewer "
        "bits per character in about the same minutes (lower --help)",
    )  # fmt: skip
    main.add_argument("groups", nargs="*", metavar="ROWS", help=f"{', '.join(GROUPS)} (all)")
    main.add_argument("--corpus", default="tiny", help="tiny Shakespeare as a text file; without it, through `datasets`")
    main.add_argument("--run", nargs="*", default=["runs/laptop"], metavar="DIR", help="finished laptop runs (runs/laptop)")
    main.add_argument("--rounds", type=int, metavar="N", help="how often every side is measured (5)")
    main.add_argument("--retries", type=int, metavar="N", help="how often a round that others disturbed is done again (3)")
    main.add_argument("--threads", type=int, metavar="N", help="torch's threads (as many as there are cores)")
    main.add_argument("--device", choices=("cpu", "cuda"), help="where (the CPU, then the card if there is one)")
    main.add_argument("--quick", action="store_true", help="tiny shapes and two rounds, only to see that all of it works")
    main.add_argument("--profile", action="store_true", help="also print the operators in which our side spends its time")
    main.add_argument("--out", metavar="DIR", help="where the table goes (benchmarks/results; runs/benchmarks-quick if quick)")
    return main


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in (["frontier"], ["lower"]):  # no rows of the table: runs of hours, and a file of their own
        return importlib.import_module(f"benchmarks.{arguments[0]}").main(arguments[1:])
    options = parser().parse_args(arguments)
    if unknown := set(options.groups) - set(GROUPS):
        parser().error(f"no rows called {', '.join(sorted(unknown))}: choose from {', '.join(GROUPS)}")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    import torch

    from benchmarks import table
    from benchmarks.measure import BenchmarkError
    from rlhf_lib.corpus import CorpusError

    if options.threads:
        torch.set_num_threads(options.threads)
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.retries = (0 if options.quick else 3) if options.retries is None else options.retries
    default = Path("runs") / "benchmarks-quick" if options.quick else Path(__file__).parent / "results"
    results = table.Results(options.out or default, GROUPS)
    devices = [options.device] if options.device else ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    failed = False
    for options.device in devices:
        for group in options.groups or GROUPS:
            if options.device == "cuda" and group not in ON_CARD:
                continue
            module, function, _ = GROUPS[group]
            try:
                rows = getattr(importlib.import_module(f"benchmarks.{module}"), function)(options)
            except (BenchmarkError, CorpusError) as error:
                print(f"error: {group}: {error}", file=sys.stderr)
                failed = True
                continue
            results.add(options.device, group, rows)
            print(table.markdown(rows))
    print(f"\n{results.folder / 'table.md'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
