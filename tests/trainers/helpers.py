"""Small models of every family for the tests of the chat trainers, and mutants of the library's modules."""

import types
from pathlib import Path

import torch
from torch import nn

from rlhf_lib import runs
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.llama import Llama, LlamaConfig
from rlhf_lib.models.lora import Branch
from rlhf_lib.tokenization import CharTokenizer
from rlhf_lib.trainers import rollouts

FAMILIES = ("llama", "modern", "gpt2")


def language_model(family="llama", vocab=11, context=48, seed=0, spread=0.4, dropout=0.0):
    """A language model of two layers whose matrices are all drawn, so that its distributions are far from uniform."""
    torch.manual_seed(seed)
    shape = dict(vocab_size=vocab, context=context, layers=2, heads=4, width=16)
    if family == "llama":
        model = Llama(LlamaConfig(**shape, kv_heads=2, hidden=24, rope_base=500.0))
    else:
        model = GPT(GPTConfig(**shape, recipe=family, dropout=dropout))
    for weight in model.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=spread)
    return model.eval()


def branch(base, layers=1, seed=None, scalar=False, spread=0.2):
    """A Branch of `base`: its equal, or with a seed one whose adapters and head are drawn."""
    model = Branch(base, layers=layers, rank=4, alpha=8, scalar=scalar)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            nn.init.normal_(weight, std=spread, generator=generator)
    return model.eval()


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def mutant(module, *changes, **names):
    """A copy of a module of the library in which texts were replaced, (old, new) each, and names were set."""
    source = Path(module.__file__).read_text(encoding="utf-8")
    for old, new in changes:
        assert source.count(old) == 1, f"{module.__name__} has {source.count(old)} times: {old}"
        source = source.replace(old, new)
    made = types.ModuleType(module.__name__)
    exec(compile(source, f"a mutant of {module.__file__}", "exec"), made.__dict__)
    made.__dict__.update(names)
    return made


# ----------------------------------------------------------------------------------------- policies that learn from a toy reward

TOKENIZER = CharTokenizer(list("\nabcdefgh"))  # END, UNKNOWN, the line break, and eight letters: 11 tokens
V, A, END = TOKENIZER.vocab_size, TOKENIZER.encode("a")[0], TOKENIZER.end_token
PROMPTS = [[2, 2], [3, 4, 5, 6, 7], [8]]


def likes(rollout):
    """A reward that grows with the share of the letter a; about 0 and 1 are its mean and deviation under even choices."""
    share = ((rollout.tokens == A) & rollout.mask).sum(1) / rollout.mask.sum(1)
    return 8 * (share - 1 / V)


def even(context=24):
    """A GPT that chooses evenly among all tokens, with dropout and in training mode, which no policy may have."""
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=V, context=context, layers=2, heads=2, width=16, dropout=0.3)).train()


def records(folder):
    return runs.Metrics(folder).read("policy")


def share_of_a(model, length=8):
    """The share of the letter a among the tokens of 600 completions."""
    rollout = rollouts.sample(model, TOKENIZER, [PROMPTS[0]] * 600, length, torch.Generator().manual_seed(9))
    return ((rollout.tokens == A) & rollout.mask).sum().item() / rollout.mask.sum().item()
