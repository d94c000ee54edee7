"""Fewer bits per character in about the laptop preset's pretraining minutes: a board of what was tried, three seeds each.

    python -m benchmarks lower                             every row with seeds 0 to 2; goes on where it was stopped
    python -m benchmarks lower --rows start halves --seeds 0 --steps 40

Each row adds to the one before it. The first is the preset as it is.

    runs/lower/ROW-SEED-STEPS.json   one run: bits per character, steps, and seconds of the processor, with one thread
    runs/lower/board.json            all runs that were asked for; chapter 03 shows that of benchmarks/results/lower.json

B: batch    T: positions    C: width    V: vocabulary
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.devices import autocast, seed_for
from rlhf_lib.files import read_json, write_json
from rlhf_lib.models import gpt
from rlhf_lib.models.layers import attend, rms_norm, rotate
from rlhf_lib.pipelines.material import Material
from rlhf_lib.pipelines.shakespeare import PRESETS
from rlhf_lib.trainers import pretrain

ROWS = {  # what a row adds, and its batch
    "start": dict(),
    "mixed": dict(mixed=True),
    "values": dict(mixed=True, values=True),
    "table": dict(mixed=True, values=True, table=True),
    "halves": dict(mixed=True, values=True, table=True, batch=16),
}
SIZE = 8192  # rows of the table


class Attention(gpt.Attention):
    """The preset's attention, with something of the token added to its values."""

    extra = None  # (B, T, C), set before the pass

    def forward(self, x, table, mask, cache):
        B, T, C = x.shape
        heads = (B, T, self.config.heads, C // self.config.heads)
        q, k, v = self.qkv(x).split(C, dim=2)
        v = v if self.extra is None else v + self.extra
        q, k, v = (part.view(heads).transpose(1, 2) for part in (q, k, v))  # (B, H, T, D)
        y = attend(rotate(rms_norm(q), table), rotate(rms_norm(k), table), v, mask)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class Lower(gpt.GPT):
    """The preset's GPT with up to three things that cost little time.

    Args:
        mixed: every block reads a x + b e, with e the embedding and a, b learned, from 1 and 0.1.
        values: every other block has a second embedding of each token, added to its attention's values.
        table: to the embedding is added a row of a table that the token and the one before it choose, by a hash; from zero.
    """

    def __init__(self, config, mixed=False, values=False, table=False):
        super().__init__(config)
        self.mix_embedding = nn.Parameter(torch.tensor([[1.0, 0.1]] * config.layers)) if mixed else None  # (layers, 2)
        self.value_embeddings = nn.ModuleDict()
        for layer in range(1, config.layers, 2) if values else ():
            self.value_embeddings[str(layer)] = nn.Embedding(config.vocab_size, config.width)
            nn.init.normal_(self.value_embeddings[str(layer)].weight, std=0.02)
            self.blocks[layer].attention.__class__ = Attention
        self.table_embedding = nn.Embedding(SIZE, config.width) if table else None
        if table:
            nn.init.zeros_(self.table_embedding.weight)

    def forward(self, tokens):
        x, table, mask = self.begin(tokens)  # (B, T, C)
        if self.table_embedding is not None:
            before = F.pad(tokens, (1, 0))[:, :-1]  # 0 before the first
            x = x + self.table_embedding((before * 36_313 + tokens * 27_191) % SIZE)
        e = x
        for layer, block in enumerate(self.blocks):
            if self.mix_embedding is not None:
                x = self.mix_embedding[layer, 0] * x + self.mix_embedding[layer, 1] * e
            if str(layer) in self.value_embeddings:
                block.attention.extra = self.value_embeddings[str(layer)](tokens)
            x = block(x, table, mask, None)
        return self.head(self.norm(x))


def train(row, material, seed, steps=None, every=20):
    """One run of the loop of `pretrain.train`, whose last weights are taken.

    Args:
        steps: of the preset's batch; a row with another batch takes as many tokens. None for the preset's.

    Returns:
        A dict: `bits_per_char`, `processor_seconds`, `steps`, `batch`, `weights`.
    """
    s, added = material.settings, dict(ROWS[row])
    batch = added.pop("batch", s.pretrain.batch)
    config = pretrain.PretrainConfig(steps=(steps or s.pretrain.steps) * s.pretrain.batch // batch, batch=batch)
    torch.manual_seed(seed_for(seed, "weights"))
    model = Lower(s.model, **added)
    optimizers, (tokens, validation) = pretrain.make_optimizers(model, config), material.tokens
    windows = pretrain.Windows(tokens, s.model.context, batch, seed)
    started = time.process_time()
    for step in range(config.steps):
        pretrain.set_lr(optimizers, pretrain.lr_factor(step, config))
        inputs, targets = windows[step]  # (B, T) each
        with autocast("cpu", s.model.width):
            logits = model(inputs)  # (B, T, V)
        F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % every == 0:
            print(f"{row}, seed {seed}: step {step + 1} of {config.steps}", file=sys.stderr, flush=True)
    seconds = time.process_time() - started
    found = pretrain.evaluate(model, *validation)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return {
        "row": row, "seed": seed, "bits_per_char": found["bits_per_char"], "processor_seconds": seconds,
        "steps": config.steps, "batch": batch, "weights": weights,
    }  # fmt: skip


def main(arguments=None):
    options = argparse.ArgumentParser(prog="python -m benchmarks lower", description="A board of lower bits per character.")
    options.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    options.add_argument("--steps", type=int, metavar="N", help="optimiser steps of the preset's batch (the preset's)")
    options.add_argument("--folder", type=Path, default=Path("runs/lower"), metavar="DIR")
    options = options.parse_args(arguments)
    torch.set_num_threads(1)
    material = Material(PRESETS["laptop"])
    options.folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in options.seeds:
        for row in options.rows:
            path = options.folder / f"{row}-{seed}-{options.steps or material.settings.pretrain.steps}.json"
            if not path.exists():
                write_json(path, train(row, material, seed, options.steps))
            found.append(read_json(path))
    lines = board(found)
    write_json(options.folder / "board.json", lines)
    for row, line in lines.items():
        print(f"{row}: {line['mean']:.3f} bits per character ({' '.join(f'{bits:.3f}' for bits in line['bits_per_char'])})")


def board(found):
    """Of each row, in the order of ROWS: what each seed reached, their mean, and the processor's seconds."""
    lines = {}
    for row in ROWS:
        runs = sorted((run for run in found if run["row"] == row), key=lambda run: run["seed"])
        if not runs:
            continue
        bits = [run["bits_per_char"] for run in runs]
        seconds = [run["processor_seconds"] for run in runs]
        kept = {name: runs[0][name] for name in ("steps", "batch", "weights")}
        lines[row] = {"bits_per_char": bits, "mean": sum(bits) / len(bits), "processor_seconds": seconds, **kept}
    return lines
