"""A reward model from comparisons: which answer of two or more people prefer (Ouyang et al. 2022, section 3.5)."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from rlhf_lib import runs
from rlhf_lib.devices import autocast, generator, grad_scaler
from rlhf_lib.models.layers import evaluating, pad
from rlhf_lib.models.lora import Branch
from rlhf_lib.preference import ranking_loss
from rlhf_lib.trainers.rates import up_then_down
from rlhf_lib.trainers.reward import calibration_error


class Ranking(NamedTuple):
    """Answers to one prompt, the best first: `prompt` tokens, and `answers`, a list of two or more lists of tokens."""

    prompt: list
    answers: list


@dataclass
class PreferenceConfig:
    """How a reward model is trained on comparisons.

    Args:
        epochs, batch: passes over the comparisons, and prompts in a step.
        lr: AdamW's learning rate at its height; it rises over the first tenth and falls to zero in a line.
        weight_decay: AdamW's.
    """

    epochs: int = 2
    batch: int = 16
    lr: float = 3e-4
    weight_decay: float = 0.01

    def __post_init__(self):
        if self.epochs < 1 or self.batch < 1:
            raise ValueError(f"preference.epochs and preference.batch must be at least 1, got {self.epochs} and {self.batch}")
        if not 0 < self.lr <= 1:
            raise ValueError(f"preference.lr must lie in (0, 1], got {self.lr}")
        if not self.weight_decay >= 0:
            raise ValueError(f"preference.weight_decay must not be negative, got {self.weight_decay}")


def rewards_of(model, rows, states=None):
    """The reward of each row of tokens, (N,), with a gradient: read at the last token, the same with any padding.

    Args:
        states: what `states_of` gave for these rows and others.
    """
    if states is not None:
        return model.score(torch.stack([states[tuple(row)] for row in rows]))[:, 0]
    device = next(model.parameters()).device
    with autocast(device, model.config.width, exact=not torch.is_grad_enabled()):  # float16 only where losses are scaled
        return model.logits(*pad(rows, "right", device)).float()


def batches_by_length(rows, batch):
    """The places of `rows` in batches of rows of like length, the longest first, so that memory is short at once or never."""
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    return [order[start : start + batch] for start in range(0, len(order), batch)]


@torch.no_grad()
def score(model, rows, batch=64, states=None):
    """`rewards_of` without a gradient, (N,) on the CPU."""
    scores = torch.zeros(len(rows))
    with evaluating(model):
        for places in batches_by_length(rows, batch):
            scores[places] = rewards_of(model, [rows[place] for place in places], states).cpu()
    return scores


@torch.no_grad()
def states_of(model, rows):
    """What the head of a Branch without blocks of its own reads of each row: a dict of tuples of tokens to states (C,).

    Nothing below that head is trained, so that these states are the same in every epoch, and computed once.
    """
    states, device = {}, next(model.parameters()).device
    for places in tqdm(batches_by_length(rows, 64), desc="states", leave=False):
        some = [rows[place] for place in places]
        tokens, mask = pad(some, "right", device)
        with autocast(device, model.config.width, exact=True):
            hidden = model.hidden(tokens, mask)  # (B, T, C)
        last = mask.sum(1) - 1
        states |= zip(map(tuple, some), model.pooled(hidden, mask)[torch.arange(len(some), device=device), last])
    return states


def evaluate(model, rankings, states=None):
    """How a reward model does on `rankings` that it did not learn from; `states` as for `rewards_of`.

    Returns:
        A dict: `accuracy`, the share of pairs whose better answer has the higher reward, a tie half; `pairs`, how many; `loss`,
        nats; `length_accuracy`, that of "the longer answer is better", a tie half; `calibration_error`, of sigmoid(margin)
        as the probability that the higher reward is right.
    """
    rows = [r.prompt + answer for r in rankings for answer in r.answers]
    scores, lengths = score(model, rows, states=states), torch.tensor([float(len(row)) for row in rows])
    sizes = [len(r.answers) for r in rankings]
    margins = torch.cat([margins_of(part) for part in scores.split(sizes)])
    longer = torch.cat([margins_of(part) for part in lengths.split(sizes)])
    return {
        "accuracy": right(margins).mean().item(),
        "pairs": len(margins),
        "loss": -F.logsigmoid(margins).mean().item(),
        "length_accuracy": right(longer).mean().item(),
        "calibration_error": calibration_error(right(margins), margins.abs().sigmoid()),
    }


def margins_of(values):
    """What each better answer has more than each worse one, (K (K - 1) / 2,), from values (K,), the best answer's first."""
    better, worse = torch.triu_indices(len(values), len(values), offset=1)
    return values[better] - values[worse]


def right(margins):
    """How right each margin is, (N,): 1 where it is above 0, 0 where it is below, a half in a tie."""
    return (margins > 0).float() + 0.5 * (margins == 0)


def check(rankings, context, what):
    """Refuse, by `what` and its number from 1, a ranking of one answer, or one longer than the model's context."""
    for number, ranking in enumerate(rankings, 1):
        if len(ranking.answers) < 2:
            raise ValueError(f"{what} {number} has {len(ranking.answers)} answers: at least two can be compared")
        longest = len(ranking.prompt) + max(map(len, ranking.answers))
        if longest > context:
            raise ValueError(f"{what} {number} has {longest} tokens, more than the context of {context}: leave it out")


def train(model, tokenizer, learn, held_out, config, folder, seed=0):
    """Train a reward model on rankings, and leave it in `folder/reward`.

    Args:
        model: a Branch with a scalar head, or a RewardModel: anything with `logits(tokens, mask)` -> (B,).
        learn, held_out: lists of Ranking.

    Returns:
        What `evaluate` says of it on the held-out rankings.

    Raises:
        ValueError: nothing to learn from or to test on, a ranking of one answer, or an answer longer than the model's context.
        RunError: the loss is not finite.
    """
    if not learn or not held_out:
        raise ValueError(f"{len(learn)} comparisons to learn from and {len(held_out)} held out: at least one of each is needed")
    check(learn, model.config.context, "comparison")
    check(held_out, model.config.context, "held-out comparison")
    per_epoch = math.ceil(len(learn) / config.batch)
    steps = config.epochs * per_epoch
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=config.lr, weight_decay=config.weight_decay
    )
    show = ("train_loss", "held_out_accuracy")
    scaler = grad_scaler(next(model.parameters()).device, model.config.width)
    stage = runs.stage("reward", folder, "reward", model, [optimizer, scaler], steps, seed, tokenizer, show=show)
    states = None
    if isinstance(model, Branch) and not model.blocks:  # a head alone
        states = states_of(model, [r.prompt + answer for r in [*learn, *held_out] for answer in r.answers])
    for step in stage:
        epoch, place = divmod(step, per_epoch)
        if place == 0 or step == stage.first:
            order = torch.randperm(len(learn), generator=generator(seed, "comparisons", epoch)).tolist()
        some = [learn[number] for number in order[place * config.batch : (place + 1) * config.batch]]
        for group in optimizer.param_groups:
            group["lr"] = config.lr * up_then_down(step, steps)
        model.train()
        rewards = rewards_of(model, [r.prompt + answer for r in some for answer in r.answers], states)  # all in one batch
        parts = rewards.split([len(r.answers) for r in some])
        loss = torch.stack([ranking_loss(part[None]) for part in parts]).mean()
        stage.check(loss.item())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        stage.log(train_loss=loss.item())
        if place + 1 == per_epoch:
            stage.log(epoch=epoch + 1, **{f"held_out_{name}": value for name, value in evaluate(model, held_out, states).items()})
    model.eval()
    scores = evaluate(model, held_out, states)
    stage.keep(**scores)
    stage.finish()
    return scores
