"""The reward model: a GPT's body with one output, the log-odds that a passage is positive; its losses and its loop."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from rlhf_lib import labels as label_sets
from rlhf_lib import runs, tokenization
from rlhf_lib.devices import autocast, wait, world
from rlhf_lib.model import GPT, GPTConfig
from rlhf_lib.sampling import evaluating


class RewardModel(nn.Module):
    """Log-odds of positive, at every position, from what has been read up to it.

    Args:
        gpt: the GPT whose body it takes over (its language-model head is left out).
        pooling: "mean", the average of the hidden states so far, or "last", the hidden state at the position itself.
    """

    def __init__(self, gpt, pooling="mean"):
        super().__init__()
        if pooling not in ("mean", "last"):
            raise ValueError(f"pooling must be mean or last, got {pooling!r}")
        self.body, self.pooling, self.config = gpt, pooling, gpt.config
        self.body.head = nn.Identity()
        self.score = nn.Linear(gpt.config.width, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, tokens, mask=None):
        """tokens, mask: (B, T). Returns log-odds (B, T); what stands at a padded position means nothing."""
        return self.pool(self.body.hidden(tokens, mask), torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask)

    def pool(self, hidden, mask):
        """The log-odds (B, T) out of the body's hidden states (B, T, C)."""
        if self.pooling == "mean":
            hidden = (hidden * mask[..., None]).cumsum(1) / mask.cumsum(1).clamp(min=1)[..., None]
        hidden = F.dropout(hidden, self.config.dropout, self.training)
        return self.score(hidden.to(self.score.weight.dtype))[..., 0]

    def logits(self, tokens, mask=None):
        """The log-odds of whole passages, (B,): those at the last real token."""
        return last_real(self(tokens, mask), torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask)


def last_real(x, mask):
    """x (B, T) at each row's last token with mask (B, T) True: (B,)."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return x.gather(1, torch.where(mask, places, 0).amax(1, keepdim=True))[:, 0]


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


def bradley_terry_loss(chosen, rejected):
    """-log sigmoid(chosen - rejected), the mean over the pairs (Bradley and Terry 1952; Ouyang et al. 2022, equation 1).

    Args:
        chosen, rejected: (N,) rewards of the preferred and of the other answer; any margin gives a finite loss.
    """
    return -F.logsigmoid(chosen - rejected).mean()


def ranking_loss(rewards):
    """The Bradley-Terry loss of all pairs among K ranked answers, the mean over the pairs (Ouyang et al. 2022, equation 1).

    Args:
        rewards: (N, K), K at least 2, best answer first.
    """
    K = rewards.shape[1]
    if K < 2:
        raise ValueError(f"a ranking needs at least 2 answers, got {K}")
    better, worse = torch.triu_indices(K, K, offset=1, device=rewards.device)
    return bradley_terry_loss(rewards[:, better], rewards[:, worse])


# ----------------------------------------------------------------------------------------- the loop


@dataclass
class RewardConfig:
    """How a reward model is trained.

    Args:
        epochs, batch: passes over the labels, and passages in a step.
        rate: AdamW's learning rate at its height; it rises over the first tenth and falls to zero in a line.
        weight_decay: AdamW's.
        dropout: in the body and before the output.
        language_coef: weight of the language-model loss on the same passages, which keeps the body from learning the
            few labels by heart (Radford et al. 2018, GPT, section 3.2, equation 5); 0 for none.
        pooling: "mean" or "last".
        held_out: the share of labels kept for the test.
    """

    epochs: int = 3
    batch: int = 32
    rate: float = 1e-3
    weight_decay: float = 0.01
    dropout: float = 0.1
    language_coef: float = 0.2
    pooling: str = "mean"
    held_out: float = 0.15

    def __post_init__(self):
        if self.epochs < 1 or self.batch < 1:
            raise ValueError(f"reward.epochs and reward.batch must be at least 1, got {self.epochs} and {self.batch}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"reward.rate must lie in (0, 1], got {self.rate}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"reward.held_out must lie between 0 and 1, got {self.held_out}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"reward.dropout must lie in [0, 1), got {self.dropout}")
        if self.weight_decay < 0 or self.language_coef < 0:
            raise ValueError("reward.weight_decay and reward.language_coef must not be negative")


def pad_right(rows, device="cpu"):
    """Lists of tokens as one tensor (B, T) with 0 on the right, and the mask (B, T) of real ones."""
    longest = max(map(len, rows))
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.as_tensor(row)
        mask[place, : len(row)] = True
    return tokens.to(device), mask.to(device)


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


@torch.no_grad()
def score_texts(model, tokenizer, texts, batch=128):
    """The log-odds of positive of each text (N,), on the CPU. Raises ValueError for an empty text, or one over the context."""
    device = next(model.parameters()).device
    rows = [tokenizer.encode(text) for text in texts]
    for number, tokens in enumerate(rows, 1):
        if not 0 < len(tokens) <= model.config.context:
            raise ValueError(f"text {number} has {len(tokens)} tokens: the reward model reads 1 to {model.config.context}")
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))  # rows of one length together: little padding
    scores = torch.zeros(len(rows))
    with evaluating(model), autocast(device, model.config.width):
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            scores[places] = model.logits(*pad_right([rows[place] for place in places], device)).float().cpu()
    return scores


def test(model, tokenizer, labels):
    """How a reward model does on `labels` that it did not learn from.

    Returns:
        A dict: `accuracy` (share of positive and negative passages on the right side of 0, neutral left out), `passages`
        (how many those are), `loss` (nats, neutral included), `calibration_error` (expected calibration error in ten
        bins; Guo et al. 2017, section 2; neutral left out).
    """
    logits = score_texts(model, tokenizer, [label.text for label in labels])
    targets = torch.tensor([label.target for label in labels])
    clear = targets != 0.5
    if not clear.any():
        raise ValueError("no held-out passage is positive or negative: label more passages")
    right = ((logits > 0) == (targets > 0.5))[clear].float()
    confidence = torch.maximum(logits.sigmoid(), 1 - logits.sigmoid())[clear]
    bins = (confidence * 10).long().clamp(max=9)
    gaps = [(right[bins == b] - confidence[bins == b]).sum().abs().item() for b in range(10)]
    return {
        "accuracy": right.mean().item(),
        "passages": int(clear.sum()),
        "loss": F.binary_cross_entropy_with_logits(logits, targets).item(),
        "calibration_error": sum(gaps) / len(right),
    }


def train(gpt, tokenizer, labels, config, folder, seed=0, device="cpu"):
    """Train a reward model on `labels`, from a pretrained GPT, and leave it in `folder/reward`.

    Args:
        gpt: a GPT; its body is taken over and changed.
        labels: a list of Label; `labels.split` keeps a part of it for the test.

    Returns:
        The reward model, in evaluation mode, and what `test` says of it on the held-out labels.

    Raises:
        RunError: the loss is not finite; nothing is written.
    """
    learn, held_out = label_sets.split(labels, config.held_out)
    if not learn or not held_out:
        raise ValueError(f"{len(labels)} labels are too few to learn from and to test on: label more passages")
    rows = [tokenizer.encode(label.text) for label in learn]
    lengths = torch.tensor([len(row) for row in rows])
    longest = max(int(lengths.max()), *(len(tokenizer.encode(label.text)) for label in held_out))
    if longest > gpt.config.context:
        raise ValueError(f"a passage has {longest} tokens, more than the context of {gpt.config.context}: use a longer context")
    targets = torch.tensor([label.target for label in learn])
    gpt.config.dropout = config.dropout
    for block in gpt.blocks:
        block.dropout = config.dropout
    language_head = gpt.head
    model = RewardModel(gpt, config.pooling)
    both = nn.ModuleDict({"reward": model, "language_head": language_head}).to(device)
    optimizer = torch.optim.AdamW(both.parameters(), lr=config.rate, weight_decay=config.weight_decay)
    per_epoch = math.ceil(len(rows) / config.batch)
    steps = config.epochs * per_epoch
    metrics = runs.Metrics(folder)
    progress = runs.Progress(Path(folder) / "reward" / "state.pt", both, [optimizer])
    first, _ = progress.resume()
    metrics.rewind("reward", first)

    shown = {}
    bar = tqdm(range(first, steps), initial=first, total=steps, desc="reward", disable=world()[0] > 0)
    for step in bar:
        epoch, place = divmod(step, per_epoch)
        if place == 0 or step == first:
            order = batches(lengths, config.batch, torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        chosen = order[place]
        runs.seed_step(seed, step)  # dropout
        factor = min((step + 1) / (0.1 * steps + 1), (steps - step) / (0.9 * steps))
        for group in optimizer.param_groups:
            group["lr"] = config.rate * factor
        model.train()
        tokens, mask = pad_right([rows[row] for row in chosen.tolist()], device)  # (B, T) each
        with autocast(device, gpt.config.width):
            hidden = model.body.hidden(tokens, mask)  # (B, T, C)
            logits = model.pool(hidden, mask)  # (B, T)
            language = language_head(hidden[:, :-1][mask[:, 1:]])  # (real next tokens, V)
        loss = sentiment_loss(logits.float(), targets[chosen].to(device), mask)
        language_loss = torch.zeros((), device=device)  # passages of one token have no next one
        if mask[:, 1:].any():
            language_loss = F.cross_entropy(language.float(), tokens[:, 1:][mask[:, 1:]])
        runs.check_finite(loss.item() + language_loss.item(), "reward", step)
        (loss + config.language_coef * language_loss).backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

        figures = {}
        if place + 1 == per_epoch:
            figures = {f"held_out_{name}": figure for name, figure in test(model, tokenizer, held_out).items()}
        if figures or (step + 1) % 10 == 0:
            metrics.log("reward", step, train_loss=loss.item(), epoch=(step + 1) / per_epoch, **figures)
            shown["loss"] = f"{loss.item():.3f}"
            if figures:
                shown["accuracy"] = f"{figures['held_out_accuracy']:.3f}"
            bar.set_postfix(shown)
        progress.tick(step + 1, now=step + 1 == steps)
    model.eval()
    scores = test(model, tokenizer, held_out)
    raters = sorted({label.reader for label in learn})
    card = {"kind": "reward", "config": gpt.config.asdict(), "pooling": config.pooling, "seed": seed}
    runs.save_checkpoint(Path(folder) / "reward", model.state_dict(), {**card, "raters": raters, **scores}, tokenizer)
    wait()  # for the process that writes
    return model, scores


def load_model(folder, device="cpu"):
    """The RewardModel and the tokeniser of the checkpoint in `folder`; errors as `pretrain.load_model`."""
    tokenizer = tokenization.load(Path(folder) / "tokenizer.json")
    card, tensors = runs.load_checkpoint(folder, tokenizer)
    if card.get("kind") != "reward":
        raise runs.CheckpointError(f"{folder} holds a {card.get('kind')} checkpoint, not a reward model")
    model = RewardModel(GPT(GPTConfig(**card["config"])), card["pooling"])
    return runs.load_weights(model, tensors, folder).to(device).eval(), tokenizer
