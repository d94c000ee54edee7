"""Journeys of Build it 9.10 that differ from another in one thing, and what RLHF is told on the way."""

import contextlib
import functools
import io

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises.ch05_labels import by_sha256
from rlhf_lib.exercises.surroundings import own_random_numbers

# ----------------------------------------------------------------------------------------- the learner's process


def beside(journey, train, held_out, labelled, unseen, sizes, seed):
    """What comes of four smaller journeys: one, and three that differ from it in one thing."""
    pieces = [text[:30] for text in held_out]
    less = {**sizes, "steps": sizes["steps"] // 2, "iterations": 1, "max_new_tokens": 6}

    def go(labelled, seed=seed):
        with own_random_numbers(), contextlib.redirect_stdout(io.StringIO()):
            return journey(train, pieces, labelled, seed=seed, **less)

    one, back = go(labelled), held_back(labelled)
    long = {text for text, _ in labelled if len(one["tokenizer"].encode(text)) > sizes["context"]}
    turned = go([(text, 1 - target if text in back else target) for text, target in labelled])
    longer = go([(text, 1.0 if text in long - back else target) for text, target in labelled])
    policies = [found["policy"].state_dict() for found in (one, go(labelled, seed + 1))]
    return {
        "halved": one["base"].embedding.weight,
        "turned": [{"accuracy": float(some["accuracy"]), "scores": scores_of(some, unseen)} for some in (one, turned)],
        "longer": scores_of(longer, unseen),
        "seeds": all(torch.equal(weight, policies[1][name]) for name, weight in policies[0].items()),
    }


def held_back(labelled):
    """The texts that 5.2 holds back, a set."""
    return {*by_sha256([text for text, _ in labelled], 0.1)[1]}


@torch.no_grad()
def scores_of(found, texts):
    """The log-odds that a journey's reward model gives to each of `texts`."""
    rows = [found["tokenizer"].encode(text)[: found["base"].context] for text in texts]
    return [float(found["reward_model"](torch.tensor([row]), torch.ones(1, len(row), dtype=torch.bool))[0]) for row in rows]


@contextlib.contextmanager
def overheard(journey, sharp=False):
    """Takes down prompt and reward of each call of `rlhf`, a list of dicts; it stays empty where that has another name.

    sharp: give what `train_reward_model` returns large weights by chance, so that whatever it reads moves its log-odds.
    """
    told, names = [], getattr(journey, "__globals__", {})
    rlhf, train = names.get("rlhf"), names.get("train_reward_model")
    if not callable(rlhf):
        yield told
        return

    @functools.wraps(rlhf)
    def listening(*given, **named):
        reward = given[1] if len(given) > 1 else named.get("reward")
        if callable(reward) and "prompt" in named:
            told.append({"prompt": named["prompt"], "reward": reward})
        return rlhf(*given, **named)

    @functools.wraps(train)
    def sharpened(*given, **named):
        return with_large_weights(train(*given, **named), [*given, *named.values()])

    names["rlhf"] = listening
    if sharp and callable(train):
        names["train_reward_model"] = sharpened
    try:
        yield told
    finally:
        names["rlhf"] = rlhf
        if train is not None:
            names["train_reward_model"] = train


@torch.no_grad()
def with_large_weights(model, given=()):
    """A model whose matrices are drawn anew, but those that stand on the memory of a module in `given`."""
    others = {weight.data_ptr() for one in given if isinstance(one, nn.Module) for weight in one.parameters()}
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters() if isinstance(model, nn.Module) else ():
        if weight.dim() == 2 and weight.data_ptr() not in others:
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


@torch.no_grad()
def priced(told, tokenizer, reward_model, length=12):
    """Of one call of `rlhf` its prompt, its rewards of two completions, of which one ends early, and the log-odds of these."""
    row = tokenizer.encode("Good my lord, what is the news from court?")[:length]
    tokens = torch.tensor([row, row[:4] + [0] * (len(row) - 4)])
    mask = torch.arange(len(row)) < torch.tensor([[len(row)], [5]])  # the end token counts
    prompt = [int(token) for token in told["prompt"]]
    return {"prompt": prompt, "reward": told["reward"](tokens, mask), "odds": reward_model(tokens, mask)}


# ----------------------------------------------------------------------------------------- the judge


def turned_fault(one, other):
    """What is wrong with two journeys that differ in the targets of the passages held back, and in nothing else."""
    if max(abs(a - b) for a, b in zip(one["scores"], other["scores"])) > 1e-4:
        return (
            "the accuracy is that of passages which the reward model has learned from: other targets of the tenth that "
            "split_labels(texts, 0.1) holds back make another reward model. Hold it back before it is trained"
        )
    if abs(one["accuracy"] + other["accuracy"] - 1) > 1e-3:
        return (
            f"with the targets of the tenth that split_labels(texts, 0.1) holds back turned round, the accuracy goes from "
            f"{one['accuracy']:.3f} to {other['accuracy']:.3f}, where what was right is then wrong: count that tenth alone"
        )
    return ""


def beside_fault(turned, longer, seeds):
    """What is wrong with journeys that differ from one in one thing; see `beside`."""
    if fault := turned_fault(*turned):
        return fault
    if longer == turned[0]["scores"]:
        return (
            "other targets for all labelled passages longer than `context` make the very same reward model: it learns from none "
            "of them. Cut each to `context`, at either end, and leave none out"
        )
    if seeds:
        return (
            "two seeds make the very same policy: `seed` is an argument. Hand it to pretrain, train_reward_model and rlhf, and "
            "draw the first weights by it"
        )
    return ""


def told_fault(told):
    """What is wrong with what `rlhf` was called with."""
    for one in told:
        if one["prompt"] != [0]:
            return f"the rollouts do not begin with token 0: RLHF's prompt is {one['prompt']}, and is to be [0]"
        reward, odds = torch.as_tensor(one["reward"]).float(), torch.as_tensor(one["odds"]).float()
        right = F.logsigmoid(odds)
        others = {
            "the raw log-odds": odds, "minus log p(positive)": -right, "log p(negative)": F.logsigmoid(-odds),
            "p(positive)": odds.sigmoid(), "minus the log-odds": -odds,
        }  # fmt: skip
        if reward.shape != right.shape:
            return f"the reward that rlhf is given has the shape {tuple(reward.shape)} for 2 completions: one number for each"
        if not torch.allclose(reward, right, atol=1e-4):
            name = next((name for name, other in others.items() if torch.allclose(reward, other, atol=1e-4)), "")
            how = f"the reward that rlhf is given is {name}" if name else "the reward that rlhf is given is not log p(positive)"
            return f"{how}: it is to be F.logsigmoid of the log-odds of tokens and mask as they come, up to the end token"
    return ""
