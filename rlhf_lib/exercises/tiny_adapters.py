"""What the probes of 11.11 stand on: tiny models with large weights, their linear layers, and the adapters on them."""

import contextlib
import copy

import torch
from torch import nn

from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.llama import Llama, LlamaConfig

LAYERS, TOKENS, WIDTH = 3, 20, 16


def base_of(seed, llama=True, scalar=False, deep=False):
    """A tiny model with weights so large that each of them matters; a GPT with dropout.

    scalar: with a scalar head `score`.
    deep: a linear layer of each block lies three modules further down.
    """
    shape = dict(vocab_size=TOKENS, context=32, layers=LAYERS, heads=2, width=WIDTH)
    model = Llama(LlamaConfig(**shape, kv_heads=1, hidden=24)) if llama else GPT(GPTConfig(**shape, recipe="gpt2", dropout=0.2))
    generator = torch.Generator().manual_seed(seed)
    if scalar:
        model.score = nn.Linear(WIDTH, 1)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 or name.endswith("bias"):
            parameter.data.normal_(std=0.3, generator=generator)
    for block in model.blocks if deep else ():
        block.up = nn.Sequential(nn.Sequential(nn.Sequential(block.up)))
    return model.eval()


def tokens_of(seed):
    return torch.randint(TOKENS, (4, 10), generator=torch.Generator().manual_seed(seed))


def linears(model, layers=LAYERS):
    """{name: layer} of the linear layers in the last blocks."""
    kept = tuple(f"blocks.{place}." for place in range(LAYERS - layers, LAYERS))
    return {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear) and name.startswith(kept)}


def adapters(model):
    """{name: adapter}: the modules that can be merged."""
    return {name: one for name, one in model.named_modules() if callable(getattr(one, "merged", None))}


@torch.no_grad()
def fill(model, seed):
    """Numbers of some size in every A and B, in the order of the names."""
    generator = torch.Generator().manual_seed(seed)
    for _, one in sorted(adapters(model).items()):
        for matrix in (one.A, one.B):
            matrix.copy_(0.4 * torch.randn(matrix.shape, generator=generator))


@torch.no_grad()
def filled_by_hand(base, seed, rank, scale, layers):
    """A copy of the base whose weights have the steps that `fill` makes in them, scaled by `scale`."""
    model, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    for _, one in sorted(linears(model, layers).items()):
        A = 0.4 * torch.randn(rank, one.in_features, generator=generator)
        B = 0.4 * torch.randn(one.out_features, rank, generator=generator)
        one.weight += scale * B @ A
    return model


def devices(with_lora, seed, rank, alpha, layers):
    """Where A and B lie of adapters on a model on "meta", a device of shapes without numbers; [] where it is refused there."""
    found = set()
    with contextlib.suppress(Exception):  # what only such a device refuses is no fault
        for one in adapters(with_lora(base_of(seed).to("meta"), rank, alpha, layers)).values():
            found |= {one.A.device.type, one.B.device.type}
    return sorted(found)
