"""How decoding grows with batch and tokens, and whether a run's memory stays flat over its iterations."""

import math
from dataclasses import replace

import psutil
import torch

from benchmarks.measure import Row, measure, seconds
from benchmarks.ppo import CPU, QUICK, Models, Stopwatch, our_ppo
from rlhf_lib import corpus
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.sampling import generate

MODEL = dict(layers=4, heads=4, width=128, vocab_size=2048)
BATCHES, TOKENS, ITERATIONS = [32, 64, 128, 256], [128, 256, 512, 1024], 90  # the allocator settles by iteration 45
MEGABYTE = 2**20


def exponent(sizes, times):
    """The slope b of the line through log(times) over log(sizes): times grow like sizes to the power b."""
    x, y = [math.log(size) for size in sizes], [math.log(passed) for passed in times]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def memory_bytes():
    return psutil.Process().memory_info().rss


def per_iteration(seen):
    """By how many bytes memory grew in an iteration, over the second half, when every buffer has been made."""
    later = seen[len(seen) // 2 :]
    return (later[-1] - later[0]) / (len(later) - 1)


def rows(options):
    batches, lengths, iterations = ([2, 4, 8], [8, 16, 32], 6) if options.quick else (BATCHES, TOKENS, ITERATIONS)
    torch.manual_seed(0)
    model = GPT(GPTConfig(**MODEL, context=lengths[-1] + 1)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.02)

    def decode(batch, tokens):
        return seconds(lambda: generate(model, [[0]] * batch, tokens))

    decode(batches[0], lengths[0])

    def once():
        figures = {f"{batch} rows": decode(batch, lengths[0]) for batch in batches}
        return {**figures, **{f"{tokens} tokens": decode(batches[0], tokens) for tokens in lengths}}

    figures, others = measure(once, options, "growth")
    by_batch = [exponent(batches, times) for times in zip(*(figures[f"{batch} rows"] for batch in batches))]
    by_tokens = [exponent(lengths, times) for times in zip(*(figures[f"{tokens} tokens"] for tokens in lengths))]
    return [
        Row(
            name="decoding over batch", work=f"decoding: seconds over batch, {batches[0]} to {batches[-1]}",
            unit="power", kind="at most", ours=by_batch, wanted=1.1, others=others,
        ),
        Row(
            name="decoding over tokens", work=f"decoding: seconds over tokens, to {lengths[-1]} positions",
            unit="power", kind="at most", ours=by_tokens, wanted=1.1, others=others,
        ),
        memory_row(options, iterations),
    ]  # fmt: skip


def memory_row(options, iterations):
    """Memory at every iteration of one run of PPO."""
    shape = QUICK if options.quick else replace(CPU, epochs=1)
    models = Models(shape, "\n\n".join(corpus.load(options.corpus)["text"]))
    watch = Stopwatch(look=memory_bytes)
    our_ppo(models, shape, iterations, watch)
    grown = per_iteration(watch.seen)
    first, last = watch.seen[len(watch.seen) // 2] / MEGABYTE, watch.seen[-1] / MEGABYTE
    return Row(
        name="memory over iterations", work=f"memory of a run of PPO grows by, each iteration of {iterations}",
        unit="MB an iteration", kind="at most", ours=[grown / MEGABYTE], wanted=0.5,
        note=f"{first:.0f} MB half-way, {last:.0f} MB at the end",
    )  # fmt: skip
