"""The language-model loop: windows of text, a schedule, evaluation in bits per character, checkpoints that resume."""

import functools
import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from rlhf_lib import checkpoints, runs
from rlhf_lib.devices import autocast, average_gradients, generator, grad_scaler, mean_over_processes, seed_for, shard
from rlhf_lib.models.gpt import GPT
from rlhf_lib.models.layers import evaluating
from rlhf_lib.trainers.muon import Muon


@dataclass
class PretrainConfig:
    """How a GPT is pretrained.

    Args:
        steps, batch: optimiser steps, and windows of `context` tokens in each.
        matrix_lr: learning rate of the blocks' matrices, which Muon steps (Jordan 2024).
        embedding_lr, head_lr: learning rates of embeddings and gains, and of the head, which AdamW steps.
        weight_decay: of Muon, pulled towards zero by lr * weight_decay each step.
        warmup: steps over which the rates rise from zero.
        decay: the last part of the run, in (0, 1], over which they fall to zero.
        evaluations: about how often the validation text is read during the run; once more at the end where it does not
            divide the steps.
    """

    steps: int = 500
    batch: int = 32
    matrix_lr: float = 0.02
    embedding_lr: float = 5e-3
    head_lr: float = 3e-3
    weight_decay: float = 0.0
    warmup: int = 10
    decay: float = 0.6
    evaluations: int = 5

    def __post_init__(self):
        for name in ("steps", "batch", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"pretrain.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("matrix_lr", "embedding_lr", "head_lr"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"pretrain.{name} must lie in (0, 1], got {getattr(self, name)}")
        if self.warmup < 0 or self.weight_decay < 0:
            raise ValueError("pretrain.warmup and pretrain.weight_decay must not be negative")
        if not 0 < self.decay <= 1:
            raise ValueError(f"pretrain.decay must lie in (0, 1], got {self.decay}")


def encode_corpus(dataset, tokenizer):
    """All works of a corpus in one row of tokens (N,) int64, END behind each, and the number of characters."""
    tokens = []
    for text in dataset["text"]:
        tokens += [*tokenizer.encode(text), tokenizer.end_token]
    return torch.tensor(tokens), sum(len(text) for text in dataset["text"])


class Windows:
    """Windows of `context` tokens that never overlap within an epoch.

    Every epoch draws the offset at which the text is cut and the order of the windows, both from (seed, epoch), so
    step k reads the same windows whether or not the run was stopped before it.

    Args:
        tokens: (N,) int64.
        context, batch: the length of a window, and windows in a batch.
    """

    def __init__(self, tokens, context, batch, seed):
        self.count = (len(tokens) - context) // context  # leaves room for the offset and the last target
        if self.count < 1:
            raise ValueError(
                f"the training text has {len(tokens)} tokens, fewer than two contexts of {context}: use a longer text"
            )
        self.tokens, self.context, self.batch, self.seed = tokens, context, batch, seed
        self.starts = functools.lru_cache(maxsize=2)(self._starts)

    def _starts(self, epoch):
        drawn = generator(self.seed, "windows", epoch)
        offset = torch.randint(self.context, (1,), generator=drawn)
        return offset + self.context * torch.randperm(self.count, generator=drawn)

    def __getitem__(self, step):
        """Inputs and targets of `step`, (batch, context) each."""
        places = range(step * self.batch, (step + 1) * self.batch)
        starts = torch.stack([self.starts(place // self.count)[place % self.count] for place in places])
        rows = self.tokens[starts[:, None] + torch.arange(self.context + 1)]  # (batch, context + 1)
        return rows[:, :-1], rows[:, 1:]


def lr_factor(step, config):
    """What the learning rates are multiplied by at `step`: up over the warm-up, level, then down to zero in a line."""
    rise = min(1.0, (step + 1) / (config.warmup + 1))
    fall = min(1.0, (config.steps - step) / (config.decay * config.steps))
    return rise * fall


def make_optimizers(model, config):
    """Muon for the blocks' matrices, AdamW for everything else."""
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    vectors = [p for p in model.blocks.parameters() if p.dim() < 2] + list(model.norm.parameters())
    embeddings = [p for name, p in model.named_parameters() if "embedding" in name]
    groups = [{"params": embeddings + vectors, "lr": config.embedding_lr}]
    if model.head.weight is not model.embedding.weight:
        groups.append({"params": [model.head.weight], "lr": config.head_lr})
    muon = Muon(matrices, lr=config.matrix_lr, weight_decay=config.weight_decay)
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)]


def set_lr(optimizers, factor):
    """Every group's learning rate: `factor` times the one it was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("full_lr", group["lr"])
            group["lr"] = group["full_lr"] * factor


@torch.no_grad()
def evaluate(model, tokens, characters, batch=64):
    """How well `model` predicts `tokens` (N,), each once, in windows of its context that do not overlap.

    Returns:
        A dict: `loss` (nats per token), `perplexity` (per token), `bits_per_char`.
    """
    context, device = model.config.context, next(model.parameters()).device
    if len(tokens) < 2:
        raise ValueError("the validation text has fewer than two tokens: use a longer text")
    nats = 0.0
    with evaluating(model), autocast(device, model.config.width):
        for start in range(0, len(tokens) - 1, batch * context):
            piece = tokens[start : start + batch * context + 1].to(device)
            whole = (len(piece) - 1) // context * context
            for width, first, last in ((context, 0, whole), (len(piece) - 1 - whole, whole, len(piece) - 1)):
                if first == last:
                    continue
                logits = model(piece[first:last].view(-1, width))
                targets = piece[first + 1 : last + 1]
                nats += F.cross_entropy(logits.float().flatten(0, 1), targets, reduction="sum").item()
    loss = nats / (len(tokens) - 1)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "bits_per_char": nats / characters / math.log(2)}


def train(model_config, config, train, validation, tokenizer, folder, seed=0, device="cpu"):
    """Pretrain a GPT, and leave the best one on the validation text in `folder/base`.

    A run that was stopped goes on where it was; on a CPU it ends with the same figures as one that was not.

    Args:
        model_config, config: a GPTConfig and a PretrainConfig.
        train: (N,) int64, the training text.
        validation: a pair of (N,) int64 and the number of characters they stand for.
        tokenizer: saved beside the weights.
        folder: the run's folder.

    Returns:
        The best model, in evaluation mode.

    Raises:
        RunError: the loss is not finite or explodes; the best weights so far are kept.
    """
    largest = max(int(tokens.max()) if len(tokens) else 0 for tokens in (train, validation[0]))
    if largest >= model_config.vocab_size:
        raise ValueError(f"token {largest} is outside the model's vocab_size of {model_config.vocab_size}")
    torch.manual_seed(seed_for(seed, "weights"))
    model = GPT(model_config).to(device)
    optimizers, scaler = make_optimizers(model, config), grad_scaler(device, model_config.width)
    windows = Windows(train, model_config.context, config.batch, seed)
    mine = shard(config.batch)
    every = max(1, config.steps // config.evaluations)
    memory = {"best": math.inf, "losses": []}  # losses: since the last record
    show = ("train_loss", "val_bits_per_char")
    stage = runs.stage("pretrain", folder, "base", model, [*optimizers, scaler], config.steps, seed, tokenizer, memory, show=show)
    for step in stage:
        set_lr(optimizers, lr_factor(step, config))
        model.train()
        inputs, targets = (rows[mine].to(device) for rows in windows[step])  # (B, T) each
        with autocast(device, model_config.width):
            logits = model(inputs)  # (B, T, V)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        scaler.scale(loss).backward()
        average_gradients(model)
        memory["losses"].append(mean_over_processes(loss.item()))
        stage.check(memory["losses"][-1], limit=3 * math.log(model_config.vocab_size))
        for optimizer in optimizers:
            scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()

        done = step + 1
        if done % every == 0 or done == config.steps:
            stats = {f"val_{name}": value for name, value in evaluate(model, *validation).items()}
            stage.check(stats["val_loss"])
            if stats["val_loss"] < memory["best"]:
                stage.keep(step=done, **stats)
                memory["best"] = stats["val_loss"]
            stage.log(**stats)
        if stage.stats or done % 10 == 0:
            train_loss = sum(memory["losses"]) / len(memory["losses"])
            stage.log(train_loss=train_loss, tokens=done * config.batch * model_config.context)
            memory["losses"] = []
    stage.finish()
    return checkpoints.load(stage.out, device)[0]
