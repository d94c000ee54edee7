"""Muon (Jordan 2024): momentum for matrices, each step turned into the nearest matrix that stretches all directions alike."""

import math

import torch

from rlhf_lib.devices import has_bf16


def orthogonalise(update, steps=5, dtype=torch.float32):
    """`update` (A, B) with all its singular values pushed to about 1 (0.7 to 1.2), by Newton and Schulz's iteration.

    Args:
        steps: of the quintic iteration x -> a x + b x^3 + c x^5 on the singular values, steep at 0.
        dtype: what the products run in; bfloat16 is enough where the hardware has it.

    Returns:
        (A, B), of `dtype`.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = update.shape[0] > update.shape[1]
    x = update.to(dtype).T if tall else update.to(dtype)
    x = x / x.norm().clamp(min=1e-7)  # the largest singular value is at most 1
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Steps matrices by their orthogonalised momentum, with Nesterov's look ahead.

    Unlike `torch.optim.Muon` it computes in bfloat16 only where the hardware has it: a T4 would have to emulate it.

    Args:
        params: matrices.
        lr: learning rate; a tall matrix (A, B) moves by sqrt(A / B) times as much.
        momentum: of the running mean of gradients.
        weight_decay: pulls towards zero by lr * weight_decay each step.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        """One step of every matrix that has a gradient, momentum first."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                mean = self.state[p]["momentum"]
                mean.lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(mean, group["momentum"])
                dtype = torch.bfloat16 if has_bf16(p.device) else torch.float32
                p.mul_(1 - group["lr"] * group["weight_decay"])
                stretch = math.sqrt(max(1, p.shape[0] / p.shape[1]))
                p.add_(orthogonalise(ahead, dtype=dtype), alpha=-group["lr"] * stretch)
