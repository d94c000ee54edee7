"""Small models that take down every call, with which the probes of a training loop look at a run from the model's side."""

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, CONTEXT, BATCH = 30, 6, 4
USUAL = {"batch": BATCH, "context": CONTEXT, "lr": 0.02, "warmup": 2, "seed": 1}


class Stopped(Exception):
    """What a model raises where a probe kills the run."""


class Observed(nn.Module):
    """A model around another, which takes down every call; a step is a call whose logits got a gradient.

    stretch: stretch(step) is what the gradient of that step (1, 2, ...) is multiplied by.
    upset: upset(step, logits) gives the logits that are said instead, or raises.
    """

    def __init__(self, inner, stretch=lambda step: 1.0, upset=lambda step, logits: logits):
        super().__init__()
        self.inner, self.stretch, self.upset, self.calls, self.taken = inner, stretch, upset, [], 0

    def forward(self, tokens):
        call = {"inputs": tokens.clone(), "training": self.training, "graph": torch.is_grad_enabled(), "step": 0}
        call["weights"] = weights_of(self)
        self.calls.append(call)
        logits = self.upset(self.taken + 1, self.inner(tokens)) if self.training else self.inner(tokens)
        call["logits"] = logits.detach().clone()
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self.learn(call, gradient))
        return logits

    def learn(self, call, gradient):
        self.taken += 1
        call["step"] = self.taken
        return gradient * self.stretch(self.taken)

    def steps(self):
        return [call for call in self.calls if call["step"]]


class Past(nn.Module):
    """Looks at the mean of all that it has read: the smallest model for which it matters how a text is cut into windows."""

    def __init__(self, seed, dropout=0.0, width=8):
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)
        self.embedding, self.head, self.dropout = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY), dropout
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=drawn)

    def forward(self, tokens):
        x = self.embedding(tokens).cumsum(1) / torch.arange(1, tokens.shape[1] + 1, device=tokens.device)[:, None]  # (B, T, C)
        return self.head(F.dropout(x, self.dropout, self.training))


class Constant(nn.Module):
    """Logits that hang on nothing, and hardly on the weights: every step has the same gradient."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, tokens):
        return (0.001 * self.weight).expand(*tokens.shape, 2)


def weights_of(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()]).clone()


def path_of(watched):
    """The weights before each step, and after the last: (steps + 1, number of weights)."""
    return torch.stack([*(call["weights"] for call in watched.steps()), weights_of(watched)])


def where(tokens, rows):
    """The place in `tokens` at which each row begins, a list; -1 for a row that stands nowhere in it."""
    stretches = tokens.unfold(0, rows.shape[1], 1)  # (N - T + 1, T)
    found = [(stretches == row).all(1).nonzero().flatten().tolist() for row in rows]
    return [places[0] if places else -1 for places in found]


def run(pretrain, model, tokens, held_out, steps, **changes):
    return pretrain(model, tokens, held_out, **{**USUAL, "steps": steps, **changes})


def draw_text(generator, length=500, held_out=100):
    tokens, other = (torch.randint(VOCABULARY, (count,), generator=generator) for count in (length, held_out))
    return {"tokens": tokens, "held_out": other, "start": torch.randint(1000, (1,), generator=generator).item()}
