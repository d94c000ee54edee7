"""Pretraining to a validation loss against nanoGPT's recipe, and training throughput against the same GPT-2."""

import itertools
import math
import tempfile
import time
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.measure import Row, agree, measure, profile, seconds, silent
from benchmarks.peers import TOLERANCE, gpt2_pair
from rlhf_lib import corpus, devices, tokenization
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.pipelines.shakespeare import PRESETS
from rlhf_lib.trainers import pretrain as ours

# ----------------------------------------------------------------------------------------- to a validation loss

SHAPE = dict(layers=4, heads=4, width=128, context=64)  # nanoGPT's published CPU recipe for characters
RECIPE = dict(steps=2000, batch=12, warmup=100, high=1e-3, low=1e-4, betas=(0.9, 0.99), weight_decay=0.1, clip=1.0)
OURS = ours.PretrainConfig(batch=12, embedding_lr=2e-2, head_lr=2e-2, decay=1.0, evaluations=10)
STEPS = {2.0: 170, 1.9: 290}  # of our schedule, which ends at zero, for each loss
EVALUATIONS = 10
EVALUATE = ours.evaluate


class Characters:
    """A corpus by character, cut as nanoGPT cuts it: the first nine tenths to train on.

    Args:
        name: see `corpus.load`.
    """

    def __init__(self, name, most=None):
        text = "\n".join(corpus.load(name)["text"])[:most]
        self.tokenizer = tokenization.train("char", [text])
        tokens = torch.tensor(self.tokenizer.encode(text))
        cut = int(0.9 * len(tokens))
        self.train, self.validation = tokens[:cut], (tokens[cut:], len(tokens) - cut)
        self.vocab_size = self.tokenizer.vocab_size

    def batch(self, count, context):
        """Inputs and targets (count, context) from random places, as nanoGPT draws them."""
        starts = torch.randint(len(self.train) - context, (count, 1))
        rows = self.train[starts + torch.arange(context + 1)]
        return rows[:, :-1], rows[:, 1:]


class Logits(nn.Module):
    """A model of transformers that gives its logits, as ours does; so one `evaluate` reads both."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(context=model.config.n_positions, width=model.config.n_embd)

    def forward(self, tokens):
        return self.model(input_ids=tokens).logits


class Clock:
    """Seconds of training; evaluation, which only measures, is off the clock. `points` are (seconds, validation loss)."""

    def __init__(self):
        self.started, self.off, self.points = time.perf_counter(), 0.0, []

    def evaluate(self, *arguments, **options):
        began = time.perf_counter()
        scores = EVALUATE(*arguments, **options)
        self.points.append((began - self.started - self.off, scores["loss"]))
        self.off += time.perf_counter() - began
        return scores


def reached(points, loss):
    """Seconds at which the validation loss fell to `loss`, in a straight line between evaluations; inf when it never did."""
    before = (0.0, math.inf)
    for point in points:
        if point[1] <= loss:
            share = (before[1] - loss) / (before[1] - point[1]) if before[1] < math.inf else 1.0
            return before[0] + share * (point[0] - before[0])
        before = point
    return math.inf


def recipe_rate(step, steps, warmup, high, low):
    """nanoGPT's schedule: a line up, then a cosine down to `low`."""
    if step < warmup:
        return high * (step + 1) / (warmup + 1)
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train_recipe(model, data, recipe):
    """Train a GPT-2 by nanoGPT's recipe; returns the points of its clock."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": recipe["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe["high"], betas=recipe["betas"])
    context, clock = model.config.context, Clock()
    for step in range(recipe["steps"]):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = recipe_rate(step, *(recipe[name] for name in ("steps", "warmup", "high", "low")))
        inputs, targets = data.batch(recipe["batch"], context)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % max(1, recipe["steps"] // EVALUATIONS) == 0:
            clock.evaluate(model, *data.validation)
    return clock.points


def train_ours(config, data, shape, seed=0):
    """Train our GPT with `pretrain`, checkpoints and records included; returns the points of its clock."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(ours, "evaluate", clock.evaluate), silent():
        model = GPTConfig(**shape, vocab_size=data.vocab_size)
        ours.train(model, config, data.train, data.validation, data.tokenizer, folder, seed)
    return clock.points


def same_loss(data, shape):
    """Checks that one `evaluate` gives a GPT-2 of ours and one of transformers the same validation loss."""
    mine, theirs = gpt2_pair({**shape, "vocab_size": data.vocab_size})
    part = data.validation[0][: 64 * shape["context"] + 1]
    losses = (torch.tensor(EVALUATE(model, part, len(part))["loss"]) for model in (mine, Logits(theirs)))
    return agree(*losses, 1e-5, "validation losses of the same GPT-2 on both sides")


def rows(options):
    quick = options.quick
    data = Characters(options.corpus, 20_000 if quick else None)
    shape = {**SHAPE, **(dict(layers=2, heads=2, width=32) if quick else {})}
    recipe = {**RECIPE, **(dict(steps=20, warmup=2) if quick else {})}
    steps = dict.fromkeys(STEPS, 10) if quick else STEPS
    targets = {2.0: 4.5, 1.9: 4.4} if quick else {target: target for target in STEPS}
    same = same_loss(data, shape)
    if options.profile:
        print(profile(lambda: train_ours(replace(OURS, steps=10, evaluations=1), data, shape)))
    train_ours(replace(OURS, steps=3, evaluations=1), data, shape)  # warms up

    seeds = itertools.count()

    def once():
        seed = next(seeds)
        _, model = gpt2_pair({**shape, "vocab_size": data.vocab_size}, seed=seed)  # seeds the recipe's batches too
        peer = train_recipe(Logits(model), data, recipe)
        figures = {"recipe, seconds": peer[-1][0], "recipe, loss": peer[-1][1], "recipe to 2.0": reached(peer, targets[2.0])}
        for target, count in steps.items():
            points = train_ours(replace(OURS, steps=count), data, shape, seed)
            per_step = points[-1][0] / count
            figures[f"ours to {target}"] = reached(points, targets[target])
        # A schedule that ends when the recipe does, a tenth earlier to be sure.
        longer = replace(OURS, steps=int(0.9 * peer[-1][0] / per_step), evaluations=1)
        points = train_ours(longer, data, shape, seed)
        return {**figures, "ours, seconds": points[-1][0], "ours, loss": points[-1][1]}

    figures, others = measure(once, options, "pretrain")
    model = f"{shape['layers']} layers, width {shape['width']}, context {shape['context']}, characters"
    rest = {"peer": "nanoGPT's recipe", "check": same, "others": others}
    pairs = zip(figures["ours, seconds"], figures["recipe, seconds"])
    return [
        Row(
            name="pretraining to 2.0", work=f"pretraining to validation loss 2.0, {model}", unit="seconds", kind="sooner",
            ours=figures["ours to 2.0"], theirs=figures["recipe to 2.0"], wanted=5, **rest,
        ),
        Row(
            name="pretraining to 1.9, against 2.0", work="pretraining, ours to 1.9 against the recipe to 2.0", unit="seconds",
            kind="sooner", ours=figures["ours to 1.9"], theirs=figures["recipe to 2.0"], wanted=1, **rest,
        ),
        Row(
            name="loss at equal time", work="validation loss after the time that the recipe takes", unit="nats per character",
            kind="lower", ours=figures["ours, loss"], theirs=figures["recipe, loss"], wanted=0.1, **rest,
            note="seconds, ours and the recipe's: " + ", ".join(f"{a:.0f} and {b:.0f}" for a, b in pairs),
        ),
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------- throughput

WIDE = dict(layers=6, heads=6, width=384, context=256)


def train_step(model, optimizers, inputs, targets, width):
    """One optimiser step; bf16 autocast where the library would use it."""
    with devices.autocast(inputs.device, width):
        logits = model(inputs)
    F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def training_sides(shape, batch, device="cpu"):
    """What takes an optimiser step on each side, the sentence that says what was checked, and the tokens of a step.

    Three sides: ours as `pretrain` trains it; our code for the peer's architecture and optimiser; and the peer's.
    """
    torch.manual_seed(0)
    own = GPT(GPTConfig(**shape)).to(device)
    same, theirs = gpt2_pair(shape, device)
    theirs = Logits(theirs)
    tokens = torch.randint(shape["vocab_size"], (batch, shape["context"] + 1), device=device)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    with torch.no_grad(), devices.autocast(device, shape["width"]):
        check = agree(same(inputs[:4]), theirs(inputs[:4]), TOLERANCE[torch.bfloat16], "logits of the same GPT-2 on both sides")

    def stepper(model, optimizers):
        return lambda: train_step(model.train(), optimizers, inputs, targets, shape["width"])

    sides = {
        "ours": stepper(own, ours.make_optimizers(own, ours.PretrainConfig())),
        "ours, same GPT-2": stepper(same, [torch.optim.AdamW(same.parameters(), lr=1e-3)]),
        "peer": stepper(theirs, [torch.optim.AdamW(theirs.parameters(), lr=1e-3)]),
    }
    return sides, check, batch * shape["context"]


def throughput_rows(options):
    shape, batch, steps = {**WIDE, "vocab_size": 65}, 32, 3
    if options.device == "cuda":
        model = PRESETS["gpu"].model
        shape = {name: getattr(model, name) for name in ("layers", "heads", "width", "context", "vocab_size")}
        batch, steps = PRESETS["gpu"].pretrain.batch, 20
    if options.quick:
        shape, batch, steps = dict(layers=2, heads=2, width=32, context=16, vocab_size=65), 4, 1
    sides, same, tokens = training_sides(shape, batch, options.device)
    if options.profile:
        print(profile(sides["ours"]))
    for side in sides.values():
        side()

    def once():
        def several(side):
            return lambda: [side() for _ in range(steps)]

        return {name: steps * tokens / seconds(several(side), options.device) for name, side in sides.items()}

    figures, others = measure(once, options, "throughput")
    kind = precision(options.device, shape["width"])
    model = f"{shape['layers']} layers, width {shape['width']}, context {shape['context']}, batch {batch}, {kind}"
    rest = {
        "peer": "transformers GPT-2", "theirs": figures["peer"], "unit": "tokens/s", "check": same, "others": others,
        "wanted": None if options.device == "cuda" else 1.2,
    }  # fmt: skip
    return [
        Row(
            name=f"training, width {shape['width']}", work=f"training, {model}; ours with its own architecture and Muon",
            ours=figures["ours"], **rest,
        ),
        Row(
            name=f"training, width {shape['width']}, same GPT-2", work=f"training, {model}; the same GPT-2 and AdamW in our code",
            ours=figures["ours, same GPT-2"], **rest,
        ),
    ]  # fmt: skip


def precision(device, width):
    """What autocast makes of a model of this width."""
    with devices.autocast(device, width):
        return "bf16 autocast" if torch.is_autocast_enabled(device) else "fp32"
