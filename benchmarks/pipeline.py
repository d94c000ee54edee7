"""The whole laptop preset against what the peers would need for the same work, assembled from their rates at its shapes."""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.decode import peer_generate
from benchmarks.measure import Row, measure, seconds
from benchmarks.peers import gpt2_pair
from benchmarks.ppo import Iteration, Models, trl_ppo
from benchmarks.pretrain import training_sides
from rlhf_lib import corpus, labels, runs, tokenization
from rlhf_lib.files import read_json

CLIP = 128  # completions of the shorter rollout at which TRL's rate is measured


def finished(folder):
    """The run's summary, its settings, and how much it did of everything; the run is made where there is none."""
    folder = Path(folder)
    if not (folder / "summary.json").exists():
        print(f"{folder} holds no finished run: running the laptop preset", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "rlhf_lib", "run", "--preset", "laptop", "--out", folder], check=True)
    settings = read_json(folder / "settings.json")
    return read_json(folder / "summary.json"), settings, amounts(folder, settings)


def amounts(folder, settings):
    """The work of a run, stage by stage: tokens trained on, completions of PPO, tokens sampled beside it."""
    tokenizer = tokenization.load(folder / "base" / "tokenizer.json")
    learned, _ = labels.split(labels.hand_made(corpus.load("plays")), settings["reward.held_out"])
    rollouts = [record["rollout_size"] for record in runs.Metrics(folder).read("policy")]
    return {
        "pretrain": settings["pretrain.steps"] * settings["pretrain.batch"] * settings["model.context"],
        "reward": settings["reward.epochs"] * sum(len(tokenizer.encode(label.text)) for label in learned),
        "policy": sum(rollouts[:-1]),  # the last rollout is only measured
        "samples": (settings["normaliser_samples"] + 2 * settings["evaluate_samples"]) * settings["ppo.max_new_tokens"],
    }


def peer_rates(settings, options):
    """What the peers do in a second at the run's shapes, and the share of the machine that others took."""
    sizes = {name: settings[f"model.{name}"] for name in ("layers", "heads", "width", "context", "vocab_size")}
    tokens, minibatch = settings["ppo.max_new_tokens"], min(CLIP, settings["ppo.minibatch"])
    shape = Iteration(
        sizes["layers"],
        sizes["heads"],
        sizes["width"],
        sizes["vocab_size"],
        minibatch,
        tokens,
        settings["ppo.epochs"],
        minibatch,
    )
    models = Models(shape, "\n\n".join(corpus.load(settings["corpus"])["text"]))
    sides, _, per_step = training_sides(sizes, settings["pretrain.batch"])
    _, writer = gpt2_pair(sizes)
    prompts = torch.zeros(64, 1, dtype=torch.long)
    sides["peer"]()
    peer_generate(writer, prompts, tokens, use_cache=True)

    def once():
        return {
            "transformers, training tokens": per_step / seconds(sides["peer"]),
            "TRL PPO, completions": trl_ppo(models, shape),
            "generate, tokens": prompts.shape[0] * tokens / seconds(lambda: peer_generate(writer, prompts, tokens, True)),
        }

    figures, others = measure(once, options, "pipeline, peers")
    return figures, others


def arithmetic(work, rates):
    """The peers' seconds for every part, and the sum written out.

    Args:
        work: a dict as `amounts` gives it.
        rates: tokens trained on, completions of PPO, and tokens sampled, each in a second.
    """
    training, completions, sampling = rates
    parts = {
        "pretraining": (work["pretrain"], training, "tokens"),
        "reward model": (work["reward"], training, "tokens"),
        "PPO": (work["policy"], completions, "completions"),
        "normaliser and evaluation": (work["samples"], sampling, "tokens"),
    }
    total = sum(amount / rate for amount, rate, _ in parts.values())
    terms = [
        f"{name} {amount:,} {unit} / {rate:,.4g} = {amount / rate / 60:.1f} min" for name, (amount, rate, unit) in parts.items()
    ]
    return total, f"{'; '.join(terms)}; together {total / 60:.1f} min"


def rows(options):
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.run = [quick_run(Path(scratch) / "run", options.corpus)]
        found = [finished(folder) for folder in options.run]
    summaries, settings, work = [summary for summary, _, _ in found], found[0][1], found[0][2]
    figures, others = peer_rates(settings, options)
    theirs = [arithmetic(work, rates)[0] for rates in zip(*figures.values())]
    _, terms = arithmetic(work, [statistics.median(rates) for rates in figures.values()])
    ours = [summary["seconds"]["total"] for summary in summaries]
    quality = [
        f"seed {s['seed']}: {s['val_bits_per_char']:.3f} bits per character, reward model {s['reward_accuracy']:.1%}, "
        f"gold win rate {s['gold_win_rate']:.1%} at {s['kl_nats']:.1f} nats"
        for s in summaries
    ]
    stages = ", ".join(f"{name} {passed:.0f} s" for name, passed in summaries[0]["seconds"].items())
    rest = {"unit": "seconds", "ours": ours}
    return [
        Row(
            name="laptop preset", work=f"whole pipeline, {settings['preset']} preset", kind="at most", wanted=300, **rest,
            note=f"ours: {stages}; {'; '.join(quality)}",
        ),
        Row(
            name="laptop preset, against the peers", work=f"{settings['preset']} preset, the same amounts of work", kind="sooner",
            peer="transformers and TRL, assembled", theirs=theirs, others=others, note=f"the peers': {terms}", **rest,
        ),
    ]  # fmt: skip


def quick_run(folder, text):
    """A run of the smoke preset, made smaller; returns its folder."""
    small = {
        "model.vocab_size": 300, "model.context": 256, "model.width": 32, "model.heads": 2, "pretrain.steps": 2,
        "ppo.iterations": 2, "ppo.max_new_tokens": 8, "ppo.rollout_size": 8, "ppo.minibatch": 8, "normaliser_samples": 16,
        "reward.batch": 512, "evaluate_samples": 8, "corpus": text,
    }  # fmt: skip
    options = [part for name, value in small.items() for part in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", "rlhf_lib", "run", "--preset", "smoke", "--out", folder, *options], check=True)
    return folder
