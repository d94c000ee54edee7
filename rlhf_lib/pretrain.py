"""The language-model loop: windows of text, a schedule, evaluation in bits per character, checkpoints that resume."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from rlhf_lib import runs, tokenization
from rlhf_lib.devices import autocast, average_gradients, mean_over_processes, shard, wait, world
from rlhf_lib.model import GPT, GPTConfig
from rlhf_lib.sampling import evaluating


@dataclass
class PretrainConfig:
    """How a GPT is pretrained.

    Args:
        steps, batch: optimiser steps, and windows of `context` tokens in each.
        matrix_rate: learning rate of the blocks' matrices, which Muon steps (Jordan 2024).
        embedding_rate, head_rate: learning rates of embeddings and gains, and of the head, which AdamW steps.
        weight_decay: of Muon, pulled towards zero by rate * weight_decay each step.
        warmup: steps over which the rates rise from zero.
        decay: the last part of the run, in (0, 1], over which they fall to zero.
        evaluations: about how often the validation text is read during the run; once more at the end where it does not
            divide the steps.
    """

    steps: int = 500
    batch: int = 32
    matrix_rate: float = 0.02
    embedding_rate: float = 5e-3
    head_rate: float = 3e-3
    weight_decay: float = 0.0
    warmup: int = 10
    decay: float = 0.6
    evaluations: int = 5

    def __post_init__(self):
        for name in ("steps", "batch", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"pretrain.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("matrix_rate", "embedding_rate", "head_rate"):
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

    Every epoch cuts the text at another offset and takes the windows in another order, both drawn from (seed, epoch), so
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
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        offset = torch.randint(self.context, (1,), generator=generator)
        return offset + self.context * torch.randperm(self.count, generator=generator)

    def __getitem__(self, step):
        """Inputs and targets of `step`, (batch, context) each."""
        places = range(step * self.batch, (step + 1) * self.batch)
        starts = torch.stack([self.starts(place // self.count)[place % self.count] for place in places])
        rows = self.tokens[starts[:, None] + torch.arange(self.context + 1)]  # (batch, context + 1)
        return rows[:, :-1], rows[:, 1:]


def rate_factor(step, config):
    """What the learning rates are multiplied by at `step`: up over the warm-up, level, then down to zero in a line."""
    rise = min(1.0, (step + 1) / (config.warmup + 1))
    fall = min(1.0, (config.steps - step) / (config.decay * config.steps))
    return rise * fall


def make_optimizers(model, config):
    """Muon for the blocks' matrices, AdamW for everything else."""
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    vectors = [p for p in model.blocks.parameters() if p.dim() < 2] + list(model.norm.parameters())
    embeddings = [p for name, p in model.named_parameters() if "embedding" in name]
    groups = [{"params": embeddings + vectors, "lr": config.embedding_rate}]
    if not model.config.tied:
        groups.append({"params": [model.head.weight], "lr": config.head_rate})
    muon = torch.optim.Muon(matrices, lr=config.matrix_rate, weight_decay=config.weight_decay)
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)]


def set_rates(optimizers, factor):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("full_rate", group["lr"])
            group["lr"] = group["full_rate"] * factor


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


def pretrain(model_config, config, train, validation, tokenizer, folder, seed=0, device="cpu"):
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
    torch.manual_seed(seed)
    model = GPT(model_config).to(device)
    optimizers = make_optimizers(model, config)
    windows = Windows(train, model_config.context, config.batch, seed)
    mine = shard(config.batch)
    metrics = runs.Metrics(folder)
    progress = runs.Progress(Path(folder) / "base" / "state.pt", model, optimizers)
    first, kept = progress.resume()
    best = kept.get("best", math.inf)
    metrics.rewind("pretrain", first)
    every = max(1, config.steps // config.evaluations)
    losses = list(kept.get("losses", []))  # since the last record

    shown = {}
    bar = tqdm(range(first, config.steps), initial=first, total=config.steps, desc="pretrain", disable=world()[0] > 0)
    for step in bar:
        runs.seed_step(seed, step)  # dropout, if any
        set_rates(optimizers, rate_factor(step, config))
        model.train()
        inputs, targets = (rows[mine].to(device) for rows in windows[step])  # (B, T) each
        with autocast(device, model_config.width):
            logits = model(inputs)  # (B, T, V)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        average_gradients(model)
        losses.append(mean_over_processes(loss.item()))
        runs.check_finite(losses[-1], "pretrain", step, limit=3 * math.log(model_config.vocab_size))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

        done = step + 1
        figures = {}
        if done % every == 0 or done == config.steps:
            scores = evaluate(model, *validation)
            runs.check_finite(scores["loss"], "pretrain", step)
            figures = {f"val_{name}": score for name, score in scores.items()}
            if scores["loss"] < best:
                card = {"kind": "gpt", "config": model_config.asdict(), "seed": seed, "step": done, **figures}
                runs.save_checkpoint(Path(folder) / "base", model.state_dict(), card, tokenizer)
            best = min(best, scores["loss"])
        if figures or done % 10 == 0:
            train_loss = sum(losses) / len(losses)
            losses = []
            metrics.log("pretrain", step, train_loss=train_loss, tokens=done * config.batch * model_config.context, **figures)
            shown["loss"] = f"{train_loss:.3f}"
            if figures:
                shown["bpc"] = f"{figures['val_bits_per_char']:.3f}"
            bar.set_postfix(shown)
        progress.tick(done, {"best": best, "losses": losses}, now=bool(figures))
    wait()  # for the process that writes
    return load_model(Path(folder) / "base", device=device)[0]


def load_model(folder, device="cpu"):
    """The GPT and the tokeniser of the checkpoint in `folder`; the model is in evaluation mode.

    Raises:
        CheckpointError: no checkpoint there, a damaged one, or one of another kind.
    """
    tokenizer = tokenization.load(Path(folder) / "tokenizer.json")
    card, tensors = runs.load_checkpoint(folder, tokenizer)
    if card.get("kind") != "gpt":
        raise runs.CheckpointError(f"{folder} holds a {card.get('kind')} checkpoint, not a language model")
    model = runs.load_weights(GPT(GPTConfig(**card["config"])), tensors, folder)
    return model.to(device).eval(), tokenizer
