"""Supervised fine-tuning: a chat model learns from demonstrations what an assistant says (Ouyang et al. 2022, section 3.5).

The loss counts the assistant's tokens only, the end of its turn included. Conversations are packed into rows, several in each,
and none sees another: positions begin again, and attention stops at the border.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from rlhf_lib import runs
from rlhf_lib.devices import autocast, generator, grad_scaler, has_bf16
from rlhf_lib.models.heads import head_logprobs
from rlhf_lib.models.layers import evaluating
from rlhf_lib.trainers.rates import up_then_down


@dataclass
class SFTConfig:
    """How a model is fine-tuned on demonstrations.

    Args:
        epochs: passes over the demonstrations.
        row, batch: tokens in a packed row, and about how many rows are in a step: as many as an even part of the demonstrations
            takes, more where they pack badly.
        lr: AdamW's learning rate at its height; it rises over the first tenth and falls to zero in a line.
        weight_decay: AdamW's.
    """

    epochs: int = 3
    row: int = 512
    batch: int = 4
    lr: float = 5e-4
    weight_decay: float = 0.0

    def __post_init__(self):
        for name in ("epochs", "row", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"sft.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.lr <= 1:
            raise ValueError(f"sft.lr must lie in (0, 1], got {self.lr}")
        if not self.weight_decay >= 0:
            raise ValueError(f"sft.weight_decay must not be negative, got {self.weight_decay}")


def check(conversations, size, what="conversation"):
    """Refuse conversations that `pack` has no row for, or from which nothing is learned; arguments as for `pack`.

    Raises:
        ValueError: naming one by `what` and its number, from 1.
    """
    for number, (tokens, spoken) in enumerate(conversations, 1):
        if len(tokens) > size:
            raise ValueError(f"{what} {number} has {len(tokens)} tokens, a row {size}: make sft.row longer, or leave it out")
        if not any(spoken[1:]):
            raise ValueError(f"{what} {number} has no answer of the assistant's: end it with one, or leave it out")


def pack(conversations, size):
    """Conversations in rows of `size` tokens, each in the first row with room for it.

    Args:
        conversations: a list of (tokens, spoken), as `ChatTokenizer.turns` gives them.

    Returns:
        tokens (R, size) int64, 0 on padding; texts (R, size) int64, a conversation's number in its row from 1, 0 on padding;
        targets (R, size) bool, True where a token is the assistant's and has one before it.

    Raises:
        ValueError: a conversation is longer than a row, or the assistant says nothing in it.
    """
    check(conversations, size)
    rows = []
    for tokens, spoken in conversations:
        row = next((row for row in rows if sum(len(part) for part, _ in row) + len(tokens) <= size), None)
        if row is None:
            rows.append(row := [])
        row.append((tokens, spoken))
    tokens, texts = (torch.zeros(len(rows), size, dtype=torch.long) for _ in range(2))
    targets = torch.zeros(len(rows), size, dtype=torch.bool)
    for place, row in enumerate(rows):
        start = 0
        for number, (part, spoken) in enumerate(row, 1):
            end = start + len(part)
            tokens[place, start:end], texts[place, start:end] = torch.tensor(part), number
            targets[place, start + 1 : end] = torch.tensor(spoken[1:], dtype=torch.bool)
            start = end
    return tokens, texts, targets


def spoken_logprobs(model, tokens, texts, targets):
    """The log-probability of every target, (N,) in nats, row after row. Arguments (R, T) as `pack` returns them."""
    device = tokens.device
    dtype = torch.bfloat16 if has_bf16(device) else torch.float32
    with autocast(device, model.config.width):
        hidden = model.hidden(tokens, texts)[:, :-1]  # (R, T - 1, C)
        wanted = targets[:, 1:]
        return head_logprobs(hidden[wanted], model.head.weight, tokens[:, 1:][wanted], dtype=dtype)


@torch.no_grad()
def evaluate(model, packed, batch=4):
    """Mean negative log-probability of the assistant's tokens, in nats, and its exponential.

    Args:
        packed: what `pack` returns.

    Returns:
        A dict: `loss`, `perplexity`.
    """
    device, total = next(model.parameters()).device, 0.0
    with evaluating(model):
        for rows in torch.arange(len(packed[0])).split(batch):
            total -= spoken_logprobs(model, *(part[rows].to(device) for part in packed)).sum().item()
    loss = total / int(packed[2].sum())
    return {"loss": loss, "perplexity": math.exp(min(loss, 700))}


def train(model, tokenizer, learn, held_out, config, folder, seed=0):
    """Fine-tune `model` on the conversations `learn`, and leave it in `folder/sft`.

    Args:
        model: a Branch, whose adapters are trained, or a GPT or a Llama, all of which is.
        tokenizer: its ChatTokenizer.
        learn, held_out: lists of conversations, each a list of messages that ends with the assistant's.

    Returns:
        What `evaluate` says on the held-out conversations: a dict `loss`, `perplexity`.

    Raises:
        ValueError: no conversation, one that is longer than a row or has no answer, or a row longer than the context.
        RunError: the loss is not finite.
    """
    if not learn or not held_out:
        raise ValueError(f"{len(learn)} demonstrations to learn from and {len(held_out)} held out: one of each is needed")
    context, device = model.config.context, next(model.parameters()).device
    if config.row > context:
        raise ValueError(f"sft.row is {config.row} tokens, more than the model's context of {context}: make it shorter")
    turns, test = ([tokenizer.turns(messages) for messages in some] for some in (learn, held_out))
    check(turns, config.row, "demonstration")
    check(test, config.row, "held-out demonstration")
    test = pack(test, config.row)
    per_epoch = math.ceil(sum(len(tokens) for tokens, _ in turns) / (config.row * config.batch))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=config.lr, weight_decay=config.weight_decay
    )
    scaler, steps = grad_scaler(device, model.config.width), config.epochs * per_epoch
    show = ("train_loss", "val_loss")
    stage = runs.stage("sft", folder, "sft", model, [optimizer, scaler], steps, seed, tokenizer, show=show)
    for step in stage:
        epoch, place = divmod(step, per_epoch)
        if place == 0 or step == stage.first:
            order = torch.randperm(len(turns), generator=generator(seed, "demonstrations", epoch)).tolist()
            share = [order[place::per_epoch] for place in range(per_epoch)]  # every step has as many demonstrations
        for group in optimizer.param_groups:
            group["lr"] = config.lr * up_then_down(step, steps)
        model.train()
        packed = [part.to(device) for part in pack([turns[number] for number in share[place]], config.row)]
        loss = -spoken_logprobs(model, *packed).mean()
        stage.check(loss.item())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        stage.log(train_loss=loss.item())
        if place + 1 == per_epoch:
            stage.log(epoch=epoch + 1, **{f"val_{name}": value for name, value in evaluate(model, test).items()})
    scores = evaluate(model, test)
    model.eval()
    stage.keep(**{f"val_{name}": value for name, value in scores.items()})
    stage.finish()
    return scores
