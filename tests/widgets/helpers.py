"""What several of these tests need: a person who types, small models, and the tinted spans of a sample."""

import json
import re

import torch

from rlhf_lib.models.gpt import GPT, GPTConfig

CONFIG = dict(context=32, layers=1, heads=1, width=8)
SAMPLES = {
    "base": ["The door.", 'A "table", seven\nchairs.', "Cold <i>rain</i>."],
    "policy": ["Sweet joy!", "O happy day.", "My love, my life."],
}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def typist(*answers):
    left = list(answers)
    return lambda question: left.pop(0)


def model_of(tokenizer, seed):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **CONFIG)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


def spans(text):
    found = re.findall(r'background: rgba\((\d+), (\d+), (\d+), ([\d.]+)\)" title="([+-][\d.]+) nats">([^<]*)<', text)
    return [(tuple(map(int, row[:3])), float(row[3]), float(row[4]), row[5]) for row in found]
