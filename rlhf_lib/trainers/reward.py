"""The reward model's loop: labelled passages, the sentiment loss, a language-model loss beside it, held-out labels."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib import checkpoints, runs
from rlhf_lib import labels as label_sets
from rlhf_lib.devices import autocast, generator, grad_scaler, seed_for
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.models.layers import evaluating, last_real, pad
from rlhf_lib.models.lora import Branch
from rlhf_lib.trainers.rates import up_then_down

UNCLEAR = "no held-out passage is positive or negative: label more passages"


@dataclass
class RewardConfig:
    """How a reward model is trained.

    Args:
        epochs, batch: passes over the labels, and passages in a step.
        lr: AdamW's learning rate at its height; it rises over the first tenth and falls to zero in a line.
        weight_decay: AdamW's.
        dropout: in the body and before the output.
        language_coef: weight of the language-model loss on the same passages, which keeps the body from learning the
            few labels by heart (Radford et al. 2018, GPT, section 3.2, equation 5); 0 for none.
        pooling: "mean" or "last".
        rank: of the adapters (LoRA) that are trained in place of the body's weights, so that a checkpoint is small; 0 for
            none. With adapters `dropout` is not used: the blocks have the base's own.
        held_out: the share of labels kept for the test.
    """

    epochs: int = 3
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.01
    dropout: float = 0.1
    language_coef: float = 0.2
    pooling: str = "mean"
    rank: int = 0
    held_out: float = 0.15

    def __post_init__(self):
        if self.epochs < 1 or self.batch < 1:
            raise ValueError(f"reward.epochs and reward.batch must be at least 1, got {self.epochs} and {self.batch}")
        if not 0 < self.lr <= 1:
            raise ValueError(f"reward.lr must lie in (0, 1], got {self.lr}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"reward.held_out must lie between 0 and 1, got {self.held_out}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"reward.dropout must lie in [0, 1), got {self.dropout}")
        if self.rank < 0:
            raise ValueError(f"reward.rank must not be negative, got {self.rank}")
        if self.weight_decay < 0 or self.language_coef < 0:
            raise ValueError("reward.weight_decay and reward.language_coef must not be negative")


def sentiment_loss(logits, targets, mask):
    """Cross-entropy of the last real token's log-odds with the label; nothing else in the row counts.

    Args:
        logits: (B, T), log-odds of positive at every position.
        targets: (B,), probability of positive: 1, 0, or a soft 0.5 for neutral.
        mask: (B, T) bool, True on real tokens, padding on either side.

    Returns:
        The mean over the batch, in nats. For a neutral passage it is least, ln 2, at log-odds 0.
    """
    return F.binary_cross_entropy_with_logits(last_real(logits, mask), targets)


def batches(lengths, size, generator):
    """One epoch: rows of like length together, which saves padding, in batches of `size` in a drawn order.

    Args:
        lengths: (N,) int64; rows are sorted by it within every 16 batches' worth of a drawn order.

    Returns:
        A list of ceil(N / size) tensors of row numbers; every row is in one of them.
    """
    order = torch.randperm(len(lengths), generator=generator)
    sorted_parts = [part[lengths[part].argsort(stable=True)] for part in order.split(16 * size)]
    rows = [rows for part in sorted_parts for rows in part.split(size)]
    return [rows[place] for place in torch.randperm(len(rows), generator=generator).tolist()]


def score_texts(model, tokenizer, texts, batch=128):
    """The log-odds of positive of each text (N,), on the CPU. Raises ValueError for an empty text, or one over the context."""
    rows = [tokenizer.encode(text) for text in texts]
    for number, tokens in enumerate(rows, 1):
        if not 0 < len(tokens) <= model.config.context:
            raise ValueError(f"text {number} has {len(tokens)} tokens: the reward model reads 1 to {model.config.context}")
    return score_tokens(model, rows, batch)


@torch.no_grad()
def score_tokens(model, rows, batch=128):
    """The log-odds of positive of each of `rows`, lists of tokens that fit the context, (N,), on the CPU."""
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))  # rows of one length together: little padding
    scores = torch.zeros(len(rows))
    with evaluating(model), autocast(device, model.config.width):
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            scores[places] = model.logits(*pad([rows[place] for place in places], "right", device)).float().cpu()
    return scores


def windows(tokens, context):
    """A list of tokens cut into as few pieces as the context allows, of like length."""
    count = math.ceil(len(tokens) / context)
    return [tokens[place * len(tokens) // count : (place + 1) * len(tokens) // count] for place in range(count)]


def score_windows(model, texts):
    """The log-odds of positive of each text (N,), given as its windows: their mean, each window weighed by its tokens."""
    scores = score_tokens(model, [piece for text in texts for piece in text]).split([len(text) for text in texts])
    lengths = [torch.tensor([float(len(piece)) for piece in text]) for text in texts]
    return torch.stack([(found * weight).sum() / weight.sum() for found, weight in zip(scores, lengths)])


def calibration_error(right, confidence):
    """Expected calibration error in ten bins (Guo et al. 2017, section 2): how far confidence is from the share that is right.

    Args:
        right: (N,), 1 where a guess is right, 0 where it is wrong, or a share of 1.
        confidence: (N,) in [0, 1], the probability that it is right.
    """
    bins = (confidence * 10).long().clamp(max=9)
    gaps = [(right[bins == b] - confidence[bins == b]).sum().abs().item() for b in range(10)]
    return sum(gaps) / len(right)


def evaluate(model, tokenizer, labels):
    """How a reward model does on `labels` that it did not learn from.

    Returns:
        A dict: `accuracy` (share of positive and negative passages on the right side of 0, neutral left out), `passages`
        (how many those are), `loss` (nats, neutral included), `calibration_error` (neutral left out).

    Raises:
        ValueError: none is positive or negative, or a passage is longer than the context.
    """
    logits = score_texts(model, tokenizer, [label.text for label in labels])
    targets = torch.tensor([label.target for label in labels])
    clear = targets != 0.5
    if not clear.any():
        raise ValueError(UNCLEAR)
    right = ((logits > 0) == (targets > 0.5))[clear].float()
    confidence = torch.maximum(logits.sigmoid(), 1 - logits.sigmoid())[clear]
    return {
        "accuracy": right.mean().item(),
        "passages": int(clear.sum()),
        "loss": F.binary_cross_entropy_with_logits(logits, targets).item(),
        "calibration_error": calibration_error(right, confidence),
    }


def train(gpt, tokenizer, labels, config, folder, seed=0, device="cpu"):
    """Train a reward model on `labels`, from a pretrained GPT, and leave it in `folder/reward`.

    Args:
        gpt: a GPT; it stays as it is. With adapters it is the one in `folder/base`, on `device`, and is put into evaluation
            mode and left there: what is returned stands on it.
        labels: a list of Label; `labels.split` keeps a part of it for the test.

    Returns:
        The reward model, in evaluation mode, and what `evaluate` says of it on the held-out labels.

    Raises:
        ValueError: too few labels to learn from and to test on, none held out that is positive or negative, or a passage longer
            than the context.
        CheckpointError: adapters are to be trained, and there is no base in `folder/base`.
        RunError: the loss is not finite; no checkpoint is written.
    """
    learn, held_out = label_sets.split(labels, config.held_out)
    if not learn or not held_out:
        raise ValueError(f"{len(labels)} labels are too few to learn from and to test on: label more passages")
    if all(label.target == 0.5 for label in held_out):
        raise ValueError(UNCLEAR)
    rows = [tokenizer.encode(label.text) for label in learn]
    lengths = torch.tensor([len(row) for row in rows])
    longest = max(int(lengths.max()), *(len(tokenizer.encode(label.text)) for label in held_out))
    if longest > gpt.config.context:
        raise ValueError(f"a passage has {longest} tokens, more than the context of {gpt.config.context}: use a longer context")
    targets = torch.tensor([label.target for label in learn])
    if config.rank:
        checkpoints.read_metadata(Path(folder) / "base")  # adapters stand on it: not there, they could not be loaded
        torch.manual_seed(seed_for(seed, "reward adapters"))
        branch = dict(rank=config.rank, alpha=2 * config.rank, pooling=config.pooling, source="../base")
        model = Branch(gpt, scalar=True, **branch).requires_grad_(True)
    else:
        model = RewardModel(gpt, config.pooling, config.dropout).to(device)
    head = nn.Linear(gpt.config.width, gpt.config.vocab_size, bias=False).to(device)
    head.load_state_dict(gpt.head.state_dict())
    both = nn.ModuleDict({"reward": model, "language_head": head})
    optimizer = torch.optim.AdamW(both.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    scaler = grad_scaler(device, gpt.config.width)
    per_epoch = math.ceil(len(rows) / config.batch)
    steps = config.epochs * per_epoch
    show = ("train_loss", "held_out_accuracy")
    stage = runs.stage("reward", folder, "reward", both, [optimizer, scaler], steps, seed, tokenizer, result=model, show=show)
    for step in stage:
        epoch, place = divmod(step, per_epoch)
        if place == 0 or step == stage.first:
            order = batches(lengths, config.batch, generator(seed, "label batches", epoch))
        chosen = order[place]
        for group in optimizer.param_groups:
            group["lr"] = config.lr * up_then_down(step, steps)
        model.train()
        tokens, mask = pad([rows[row] for row in chosen.tolist()], "right", device)  # (B, T) each
        with autocast(device, gpt.config.width):
            hidden = model.hidden(tokens, mask)  # (B, T, C)
            real = mask[:, 1:].nonzero(as_tuple=True)  # once: a card is waited for to know how many there are
            language = head(hidden[:, :-1][real])  # (real next tokens, V)
        loss = sentiment_loss(model.values(hidden, mask), targets[chosen].to(device), mask)
        language_loss = torch.zeros((), device=device)  # passages of one token have no next one
        if len(language):
            language_loss = F.cross_entropy(language.float(), tokens[:, 1:][real])
        stage.check((loss + language_loss).item())
        scaler.scale(loss + config.language_coef * language_loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

        if place + 1 == per_epoch:
            stage.log(**{f"held_out_{name}": value for name, value in evaluate(model, tokenizer, held_out).items()})
        if stage.stats or (step + 1) % 10 == 0:
            stage.log(train_loss=loss.item(), epoch=(step + 1) / per_epoch)
    model.eval()
    scores = evaluate(model, tokenizer, held_out)
    stage.keep(raters=sorted({label.reader for label in learn}), **scores)
    stage.finish()
    return model, scores
