"""The peer's GPT-2, of `transformers`, and ours with the same weights."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.measure import agree
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.weights import gpt2_weights

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


def gpt2_config(config, **more):
    """The transformers configuration of a GPTConfig, without dropout and without an end token."""
    return GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context, n_embd=config.width, n_layer=config.layers,
        n_head=config.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, **more,
    )  # fmt: skip


def gpt2_pair(shape, device="cpu", dtype=torch.float32, seed=0):
    """GPT-2 twice with the same weights, drawn at random: ours, and GPT2LMHeadModel.

    Args:
        shape: a dict of vocab_size, context, layers, heads, width, and what else is not as in GPT-2.
        seed: of the weights.
    """
    config = GPTConfig.gpt2(**shape)
    torch.manual_seed(seed)
    theirs = GPT2LMHeadModel(gpt2_config(config))
    ours = GPT(config)
    ours.load_state_dict(gpt2_weights(theirs.state_dict()))
    return ours.to(device, dtype).eval(), theirs.to(device, dtype).eval()


@torch.no_grad()
def same_logits(ours, theirs, tokens):
    """Checks that both models give `tokens` (B, T) the same logits; returns the sentence that says so."""
    return agree(ours(tokens), theirs(input_ids=tokens).logits, TOLERANCE[next(ours.parameters()).dtype], "logits")
