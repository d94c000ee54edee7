"""What the probes of 8.10 stand on: tiny models, made-up rewards, a run taken down as plain data, and what is measured of it."""

import copy
import math

import torch

from rlhf_lib.exercises.plain import is_record
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.sampling import completion_logits, generate

PROMPT = [7, 3, 11]
LENGTH = 8  # tokens of a completion
KEYS = ("iteration", "reward", "kl", "ratio", "clip_fraction")
USUAL = {"prompt": PROMPT, "rollout_size": 256, "max_new_tokens": LENGTH, "kl_coef": 0.05, "lr": 3e-3, "minibatch": 64}


# ----------------------------------------------------------------------------------------- models and rewards


def tiny(seed, ends=0.0, dropout=0.0):
    """A GPT of one layer and random weights that is far from uniform; the larger `ends`, the likelier the end token."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(vocab_size=20, context=32, layers=1, heads=2, width=32, dropout=dropout)).eval()
        for weight, std in ((model.embedding.weight, 1.0), (model.head.weight, 0.2), (model.blocks[0].attention.out.weight, 0.1)):
            torch.nn.init.normal_(weight, std=std)
        torch.nn.init.normal_(model.blocks[0].down.weight, std=0.1)
    with torch.no_grad():
        model.embedding.weight[:, 0] = 3.0  # what all hidden states have in common
        model.head.weight[:, 0] = 0.0
        model.head.weight[0, 0] = ends
    return model


def count(tokens, mask, token=5):
    """How often a completion has one token: a reward that is easy to raise."""
    return ((tokens == token) & mask).sum(1).float()


def pairs(tokens, mask):
    """How often a token is the one before it plus one: a reward that needs the right token at the right place."""
    return ((tokens[:, 1:] == tokens[:, :-1] + 1) & mask[:, 1:]).sum(1).float()


def fresh(model, prompt=PROMPT, length=LENGTH, number=1024):
    """Completions by the course's sampler."""
    drawn = torch.Generator().manual_seed(123)
    return generate(model, [prompt] * number, length, generator=drawn, end_token=0)


@torch.no_grad()
def true_kl(policy, base, prompt=PROMPT, length=LENGTH, number=1024):
    """KL(policy || base) of a completion in nats: at each position summed over the vocabulary, so that it is hardly noisy."""
    rows = fresh(policy, prompt, length, number)
    p, q = (
        completion_logits(model, [prompt] * len(rows.tokens), rows.tokens, rows.mask).log_softmax(-1) for model in (policy, base)
    )
    return torch.where(rows.mask, (p.exp() * (p - q)).sum(-1), 0).sum(1).mean().item()


# ----------------------------------------------------------------------------------------- a run, and its form


def weights(module):
    """A module's weights; None for what is no module."""
    return {name: one.clone() for name, one in module.state_dict().items()} if isinstance(module, torch.nn.Module) else None


def around(module):
    """What is not weights: the mode of each part, and of each weight whether it is to learn and whether it has a gradient."""
    return {
        "mode": [part.training for part in module.modules()],
        "requires_grad": [one.requires_grad for one in module.parameters()],
        "grad": [one.grad is not None for one in module.parameters()],
    }


def go(rlhf, base, reward=count, **settings):
    """One run: what it returned, as plain data; `base` is what has become of the base's weights, `left` what else has changed."""
    before = around(base)
    policy, records = rlhf(base, reward, **{**USUAL, **settings})
    left = [what for what, found in around(base).items() if found != before[what]]
    return {"records": records, "policy": weights(policy), "base": weights(base), "left": left}


def same_weights(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


def loaded(base, found):
    """The policy of a run as a model: a copy of `base` with its weights."""
    model = copy.deepcopy(base)
    model.load_state_dict(found["policy"])
    return model


def number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def records_fault(records, iterations, keys, last=None, nan=()):
    """What is wrong with the form of a run's records; "" if nothing is.

    Args:
        keys, last: the numbers that a record has, and the last one, if those are others; those in `nan` may be no number.
    """
    if not isinstance(records, list) or not records or not all(isinstance(one, dict) and not is_record(one) for one in records):
        return "the records that it returns are not a list of dicts, one for each rollout that was measured"
    if len(records) > iterations + 1:
        return f"{iterations} iterations have {len(records)} records: one for each, and at most one more for the final policy"
    for place, record in enumerate(records):
        for key in keys if last is None or place < len(records) - 1 else last:
            if not number(record.get(key)) and not (key in nan and isinstance(record.get(key), float)):
                return f"record {place} has {key} = {record.get(key)!r:.60}: a number is needed (.item() makes one of a tensor)"
        if record["iteration"] != place:
            return f"record {place} says iteration {record['iteration']}: they count from 0, and every iteration has one"
    return ""


def form(found, base, iterations):
    """What is wrong with the form of what a run returned; "" if nothing is."""
    names = weights(base)
    if found["policy"] is None or found["policy"].keys() != names.keys():
        return "the first thing returned is not a model with gpt's weights in other values: return (policy, records)"
    return records_fault(found["records"], iterations, KEYS, last=KEYS[:3])  # no update need follow the last


def teller(tiny, form):
    """The decorator of a judge that looks at the form of every run first; the judge is given the runs, a list, and the base.

    Args:
        tiny: makes the base, tiny(seed, ends).
        form: says what is wrong with the form of a run, form(found, base, iterations).
    """

    def told(judge):
        def judged(output, seed, iterations, ends=0.0, **others):
            base = tiny(seed, ends)
            for found in output["runs"]:
                fault = form(found, base, iterations)
                if fault:
                    return fault
            return judge(output["runs"], base, **{key: value for key, value in output.items() if key != "runs"})

        return judged

    return told


told = teller(tiny, form)


def drawn(**fixed):
    return lambda generator: {"seed": int(torch.randint(1000, (1,), generator=generator)), **fixed}
