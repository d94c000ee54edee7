"""Side-by-side measurements against peers: `python -m benchmarks`, or one group of rows alone: `python -m benchmarks decode`."""
