"""What the probes of 11.13 stand on: tiny policy and critic, prompts of different lengths, a run as plain data, its figures.

Token 0 is never said and stands in no prompt, and END in no prompt either: their embeddings are read only on padding and behind
the end of an answer, so they move only if something there is learned from.
"""

import contextlib
import copy
import math

import torch
from torch import nn

from rlhf_lib import sampling
from rlhf_lib.exercises import tiny_rlhf
from rlhf_lib.exercises.tiny_rlhf import count, pairs, records_fault, same_weights, teller, weights

END, LENGTH, VOCABULARY = 3, 8, 20
KEYS = ("iteration", "reward", "kl", "ended", "ratio", "clip_fraction", "explained_variance")
PROMPTS = [[4 + (5 * place + 3 * spot) % 16 for spot in range(1 + place % 5)] for place in range(16)]
USUAL = {
    "end_token": END, "rollout_size": 128, "max_new_tokens": LENGTH, "kl_coef": 0.05, "end_penalty": 0.0, "lr": 3e-3,
    "critic_lr": 1e-2, "minibatch": 32, "max_kl": 100.0,
}  # fmt: skip


# ----------------------------------------------------------------------------------------- models


def tiny(seed, ends=0.0):
    """A GPT of one layer; the larger `ends`, the likelier the end token."""
    model = tiny_rlhf.tiny(seed, ends)
    with torch.no_grad():
        model.head.weight[[0, END]] = model.head.weight[[END, 0]]
        model.head.weight[0, 0] = -6.0  # what all hidden states have in common
    return model


class Critic(nn.Module):
    """One number at each position, 0 at the start, on a body of its own."""

    def __init__(self, gpt):
        super().__init__()
        self.body = copy.deepcopy(gpt)
        self.score = nn.Linear(gpt.head.weight.shape[1], 1, device=gpt.head.weight.device)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, tokens, mask=None):
        return self.score(self.body.hidden(tokens, mask))[..., 0]  # (B, T)


def generate(model, prompts, mask, uniforms, temperature=1.0, end_token=0):
    """The course's sampler by the contract of 4.10."""
    rows = [row[real].tolist() for row, real in zip(prompts, mask)]
    out = sampling.generate(
        model, rows, uniforms.shape[1], temperature=temperature, uniforms=uniforms.detach(), end_token=end_token
    )
    return torch.where(out.mask, out.tokens, end_token), out.logprobs, out.mask


def by_prompt(prompts, tokens, mask):
    """A reward that the prompt alone decides."""
    return torch.tensor([6.0 if prompt[0] % 2 else -6.0 for prompt in prompts])


# ----------------------------------------------------------------------------------------- a run, and its form


def go(built, seed, reward=count, ends=0.0, frozen=(), noise=0.0, own=None, base=None, prompts=None, **settings):
    """One run of `built`: what it returned and what has become of the models, as plain data.

    frozen: beginnings of the names of the parameters that are frozen, in the policy and in the critic's body.
    seed, own: of the models, and of the run if it has one of its own.
    In it, "learned" is how many rows the policy has read with gradients on, and "behind" are the models that were given a mask
    which is True behind the end of an answer.

    noise: how far the sampler's own log-probabilities are off, as those of half precision are.
    """
    policy = copy.deepcopy(tiny(seed, ends) if base is None else base)
    reference, critic = copy.deepcopy(policy), Critic(policy)
    bodies = {"policy": policy, "critic": critic.body}
    for body in bodies.values():
        for name, one in body.named_parameters():
            one.requires_grad_(not name.startswith(tuple(frozen)) or not frozen)
    asked, reported, learned, behind, drawing = [], [], [], set(), []
    settings = {**USUAL, "report": lambda record: reported.append(dict(record)), **settings}  # as it is then

    def reads(module, arguments):
        if torch.is_grad_enabled() and not drawing:
            learned.append(len(arguments[0]))

    def watched(name):
        def called(module, arguments, named):
            given = dict(zip(("tokens", "mask"), arguments)) | named
            tokens, mask = given.get("tokens"), given.get("mask")
            if mask is not None and mask.shape == tokens.shape and not drawing:
                ended = ((tokens == settings["end_token"]) & mask.bool()).cumsum(1)
                behind.update([name] if (ended[:, :-1].bool() & mask[:, 1:].bool()).any() else [])

        return called

    def sampler(model, prompts, mask, uniforms, temperature=1.0, end_token=0):
        asked.append({"prompts": [row[real].tolist() for row, real in zip(prompts, mask)], "left": bool(mask[:, -1].all())})
        drawing.append(True)
        tokens, logprobs, real = generate(model, prompts, mask, uniforms, temperature, end_token)
        drawing.clear()
        return tokens, logprobs + noise * torch.sin(37.0 * logprobs), real

    def paid(prompts, tokens, mask):
        ends = (tokens == settings["end_token"]).int()
        asked[-1]["whole"] = mask.shape == tokens.shape and torch.equal(mask.bool(), ends.cumsum(1) - ends == 0)
        return reward(tokens, mask) if reward in (count, pairs) else reward(prompts, tokens, mask)

    policy.embedding.register_forward_pre_hook(reads)
    for name, one in (("policy", policy), ("critic", critic), ("reference", reference)):
        one.register_forward_pre_hook(watched(name), with_kwargs=True)
    settings["seed"] = seed if own is None else own
    records = built(policy, critic, reference, paid, prompts or PROMPTS, generate=sampler, **settings)
    return {
        "records": records,
        "reported": reported,
        "asked": asked,
        "learned": sum(learned),
        "behind": sorted(behind),
        **{name: weights(one) for name, one in (("policy", policy), ("critic", critic), ("reference", reference))},
        "frozen": [
            f"{what} {name}" for what, body in bodies.items() for name, one in body.named_parameters() if not one.requires_grad
        ],
    }


def run_broken(built, seed):
    """A run whose first step makes all weights infinite or NaN; {} where it raises."""
    with contextlib.suppress(Exception):
        found = go(built, seed, iterations=3, lr=math.inf, epochs=1, minibatch=USUAL["rollout_size"], max_kl=1.0)
        return {name: found[name] for name in ("records", "policy")}
    return {}


def form(found, start, iterations):
    """What is wrong with the form of what a run returned, or with what it left of the reference; "" if nothing is."""
    fault = records_fault(found["records"], iterations, KEYS, nan=("explained_variance",))
    if fault:
        return fault
    if not same_weights(found["reference"], weights(start)):
        return "the reference has other weights after the run: it is what the KL is measured to, and never moves"
    if not all(one.get("whole", True) for one in found.get("asked", [])):
        return (
            "the mask that `reward` is given is not True up to and including the end token, and False behind it: hand it tokens "
            "and mask as `generate` gave them"
        )
    return ""


told = teller(tiny, form)


# ----------------------------------------------------------------------------------------- what is measured


def loaded(model, state):
    """A copy of a model with other weights."""
    model = copy.deepcopy(model)
    model.load_state_dict(state)
    return model


def fresh(model, number=1024, prompts=PROMPTS, length=LENGTH, end_token=END):
    """(prompts, Samples): answers by the course's sampler, to each prompt equally often."""
    asked = [prompts[place % len(prompts)] for place in range(number)]
    drawn = torch.Generator().manual_seed(123)
    return asked, sampling.generate(model, asked, length, generator=drawn, end_token=end_token)


@torch.no_grad()
def true_kl(policy, base, number=1024, prompts=PROMPTS, length=LENGTH, end_token=END):
    """KL(policy || base) of an answer in nats: at each token summed over the vocabulary, so that it is hardly noisy."""
    asked, rows = fresh(policy, number, prompts, length, end_token)
    p, q = (sampling.completion_logits(one, asked, rows.tokens, rows.mask).log_softmax(-1) for one in (policy, base))
    return torch.where(rows.mask, (p.exp() * (p - q)).sum(-1), 0).sum(1).mean().item()


def gain(policy, base, reward):
    """How many deviations of the base's rewards the policy's mean reward is above the base's."""
    before, after = (reward(rows.tokens, rows.mask) for _, rows in (fresh(base), fresh(policy)))
    return ((after.mean() - before.mean()) / before.std()).item()
