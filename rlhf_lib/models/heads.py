"""What stands on a model's body: one number a position (a reward model), and the log-probability of a token."""

import copy

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rlhf_lib.models.gpt import GPT
from rlhf_lib.models.layers import last_real, mean_so_far


class RewardModel(nn.Module):
    """Log-odds of positive, at every position, from what has been read up to it.

    Args:
        gpt: the GPT whose body it starts from; it is copied, without its head, and stays as it is.
        pooling: "mean", the average of the hidden states so far, or "last", the hidden state at the position itself.
        dropout: of the body and before the output.
    """

    kind = "reward"

    def __init__(self, gpt, pooling="mean", dropout=0.0):
        super().__init__()
        if pooling not in ("mean", "last"):
            raise ValueError(f"pooling must be mean or last, got {pooling!r}")
        self.body = copy.deepcopy(gpt)
        self.body.head = nn.Identity()
        self.config, self.pooling = self.body.config, pooling
        self.config.dropout = dropout
        self.score = nn.Linear(gpt.config.width, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def metadata(self):
        """What is needed to build it again, beside its weights."""
        return {**self.body.metadata(), "kind": self.kind, "pooling": self.pooling}

    @classmethod
    def from_metadata(cls, metadata):
        """A RewardModel of the shape that `metadata` says, its body drawn and its output 0."""
        return cls(GPT.from_metadata(metadata), metadata["pooling"], metadata["config"]["dropout"])

    def forward(self, tokens, mask=None):
        """tokens, mask: (B, T). Returns log-odds (B, T); what stands at a padded position means nothing."""
        return self.values(self.hidden(tokens, mask), torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask)

    def hidden(self, tokens, mask=None):
        """The body's final hidden states, (B, T, C)."""
        return self.body.hidden(tokens, mask)

    def values(self, hidden, mask):
        """The log-odds (B, T) out of the body's hidden states (B, T, C), in float32 under any autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            if self.pooling == "mean":
                hidden = mean_so_far(hidden, mask)
            hidden = F.dropout(hidden, self.config.dropout, self.training)
            return self.score(hidden)[..., 0]

    def logits(self, tokens, mask=None):
        """The log-odds of whole passages, (B,): those at the last real token."""
        return last_real(self(tokens, mask), torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask)


class HeadLogprobs(torch.autograd.Function):
    """Head and log-probability of the targets in one, some rows at a time, so that the logits (N, V) are never all there.

    The backward pass computes them once more: with p = softmax(logits), the gradient of log p[target] is (1 at the target) - p.
    """

    ROWS = 512

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, dtype):
        """What `head_logprobs` returns, (N,); arguments as there."""
        h, w = hidden.to(dtype), weight.to(dtype)
        logprobs, norms = [], []
        for rows, wanted in zip(h.split(HeadLogprobs.ROWS), targets.split(HeadLogprobs.ROWS)):
            logits = (rows @ w.T).float().div_(temperature)  # (rows, V)
            norms.append(logits.logsumexp(-1))
            logprobs.append(logits.gather(1, wanted[:, None])[:, 0] - norms[-1])
        ctx.save_for_backward(h, w, targets, torch.cat(norms))
        ctx.temperature, ctx.types = temperature, (hidden.dtype, weight.dtype)
        return torch.cat(logprobs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """The gradients of `hidden` (N, C) and `weight` (V, C) from that of the log-probabilities, (N,)."""
        h, w, targets, norms = ctx.saved_tensors
        dh, dw = [], torch.zeros(w.shape, device=w.device) if ctx.needs_input_grad[1] else None
        with torch.autocast(w.device.type, enabled=False):
            for rows, wanted, norm, g in zip(
                *(part.split(HeadLogprobs.ROWS) for part in (h, targets, norms, grad / ctx.temperature))
            ):
                p = (rows @ w.T).float().div_(ctx.temperature).sub_(norm[:, None]).exp_()
                dlogits = p.mul_(-g[:, None]).scatter_add_(1, wanted[:, None], g[:, None]).to(w.dtype)  # (rows, V)
                dh.append(dlogits @ w)
                if dw is not None:
                    dw += dlogits.T @ rows
        return torch.cat(dh).to(ctx.types[0]), dw if dw is None else dw.to(ctx.types[1]), None, None, None


def head_logprobs(hidden, weight, targets, temperature=1.0, dtype=torch.float32):
    """The log-probabilities of `targets` under softmax(hidden @ weight.T / temperature).

    Args:
        hidden: (N, C).
        weight: (V, C), of the head.
        targets: (N,) int64.
        dtype: of the matrix products. In bfloat16 a log-probability is off by hundredths of a nat: compare only what is
            computed the same way.

    Returns:
        (N,), in nats, float32, with a gradient to `hidden` and `weight`.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return HeadLogprobs.apply(hidden, weight, targets, temperature, dtype)
