"""Build it 9.10: the whole journey in one function, from plays and labels to a policy, out of what the learner has built."""

import contextlib
import io
import itertools
import math

import torch
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from rlhf_lib import corpus, labels
from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.build09_pairs import beside, beside_fault, overheard, priced, scores_of, told_fault
from rlhf_lib.exercises.declare import Investigation
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.sampling import completion_logits, generate

KEYS = ("tokenizer", "base", "reward_model", "policy", "bits_per_character", "accuracy", "records", "samples")
PRIME = 97  # clear passages of the tiny journey: a share of all of them is a share of no smaller number
TINY = dict(
    vocab_size=300, context=48, layers=1, heads=2, width=32, steps=20, batch=4,
    epochs=1, iterations=2, rollout_size=16, max_new_tokens=12,
)  # fmt: skip


# ----------------------------------------------------------------------------------------- what is drawn


def draw_texts(generator, characters, labelled, unseen):
    """A stretch of every play for training and another for the test, and labelled passages, of which some are never shown.

    Without a number, the labelled passages are PRIME clear ones and 20 neutral ones.
    """
    plays = corpus.load()
    halves = corpus.split(plays)
    texts = {}
    for name, half, most in (("train", "train", characters), ("held_out", "validation", characters // 10)):
        each = most // len(halves[half]["text"])
        starts = [int(torch.randint(max(1, len(text) - each), (1,), generator=generator)) for text in halves[half]["text"]]
        texts[name] = [text[start : start + each] for start, text in zip(starts, halves[half]["text"])]
    pairs = [(label.text, label.target) for label in labels.hand_made(plays)]
    order = torch.randperm(len(pairs), generator=generator).tolist()
    plain = [place for place in order if pairs[place][1] != 0.5][:unseen]
    rest = [place for place in order if place not in set(plain)]
    clear = [place for place in rest if pairs[place][1] != 0.5][:PRIME]
    shown = rest[:labelled] if labelled else clear + [place for place in rest if pairs[place][1] == 0.5][:20]
    return texts | {
        "labelled": [pairs[place] for place in shown], "unseen": [pairs[place][0] for place in plain],
        "sides": [pairs[place][1] for place in plain],
    }  # fmt: skip


def draw_tiny(generator):
    """Where the held-out text ends in capitals, which cost more: the bits of its beginning are not those of all."""
    drawn = draw_texts(generator, 20_000, None, 10)
    drawn["held_out"] += 3 * [text.upper() for text in drawn["held_out"]]
    return drawn | {"sizes": TINY, "seed": int(torch.randint(100, (1,), generator=generator))}


def draw_whole(generator):
    return draw_texts(generator, 800_000, 4000, 800) | {"sizes": {}, "seed": int(torch.randint(100, (1,), generator=generator))}


# ----------------------------------------------------------------------------------------- the learner's process


def travel(journey, train, held_out, labelled, unseen, sizes, seed):
    """What comes of one journey, as plain data: weights, tokens of the held-out text, scores of the unseen passages.

    What a whole journey prints of its stages is shown; a tiny one is quiet.
    """
    quiet = contextlib.redirect_stdout(io.StringIO()) if sizes else contextlib.nullcontext()
    with quiet, counted_steps(), overheard(journey, sharp=bool(sizes)) as told:
        found = journey(train, held_out, labelled, seed=seed, **sizes)
    missing = [key for key in KEYS if not isinstance(found, dict) or key not in found]
    if missing:
        return {"missing": missing}
    tokenizer, reward_model = found["tokenizer"], found["reward_model"]
    more = beside(journey, train, held_out, labelled, unseen, sizes, seed) if sizes else {}
    return {
        "tokens": torch.tensor(tokenizer.encode("".join(held_out))),
        "text": tokenizer.decode(tokenizer.encode(held_out[0])),
        "shape": {
            "vocab_size": found["base"].vocab_size, "context": found["base"].context, "heads": found["base"].heads,
            "width": found["base"].embedding.weight.shape[1], "layers": len(found["base"].blocks),
        },
        "base": {name: weight.detach() for name, weight in found["base"].state_dict().items()},
        "policy": {name: weight.detach() for name, weight in found["policy"].state_dict().items()},
        "scores": scores_of(found, unseen), "told": [priced(one, tokenizer, reward_model) for one in told],
        "padded": padded(reward_model), **more,
        "log_p": [log_p_of(reward_model, found[name], found["base"]) for name in ("base", "policy")],
        **{key: found[key] for key in ("bits_per_character", "accuracy", "records", "samples")},
    }  # fmt: skip


@torch.no_grad()
def padded(reward_model):
    """The log-odds of eight short texts, (8,), and of the first of them with each of the eight, masked, behind it, (8,)."""
    rows = torch.arange(1, 33).view(8, 4)
    behind, real = torch.cat([rows[:1].expand(8, -1), rows], 1), (torch.arange(8) < 4).expand(8, -1)
    return [reward_model(tokens, mask) for tokens, mask in ((rows, rows > 0), (behind, real))]


@contextlib.contextmanager
def counted_steps(most=900):
    """Moves the bar with each step of an optimiser, of which the worked journey makes about `most`."""
    made = itertools.count(1)

    def count(*_):
        step = next(made)
        tick(min(0.95, step / most), f"{step} steps of the optimisers")

    hook = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def log_p_of(reward_model, writer, base, number=256):
    """The log p(positive) (N,) that the learner's reward model gives to fresh completions of token 0."""
    shape = dict(vocab_size=base.vocab_size, context=base.context, heads=base.heads, width=base.embedding.weight.shape[1])
    model = GPT(GPTConfig(layers=len(base.blocks), **shape)).eval()
    model.load_state_dict(writer.state_dict())
    rows = generate(model, [[0]] * number, min(24, base.context - 1), generator=torch.Generator().manual_seed(12), end_token=0)
    return F.logsigmoid(torch.as_tensor(reward_model(rows.tokens, rows.mask)))


# ----------------------------------------------------------------------------------------- the judge


def rebuilt(output, which):
    model = GPT(GPTConfig(**output["shape"])).eval()
    model.load_state_dict(output[which])
    return model


@torch.no_grad()
def bits_per_character(model, tokens, characters):
    """Over the whole text, in windows of the model's context that do not overlap."""
    context, total = model.config.context, 0.0
    for start in range(0, len(tokens) - 1, context):
        row = tokens[start : start + context + 1][None]
        total += F.cross_entropy(model(row[:, :-1])[0], row[0, 1:], reduction="sum").item()
    return total / math.log(2) / characters


@torch.no_grad()
def kl_of(policy, base, prompt=(0,), length=24, number=256):
    """KL(policy || base) of a completion, which ends at token 0, in nats: at each position over the whole vocabulary."""
    rows = generate(policy, [list(prompt)] * number, length, generator=torch.Generator().manual_seed(11), end_token=0)
    both = [completion_logits(model, [list(prompt)] * number, rows.tokens, rows.mask).log_softmax(-1) for model in (policy, base)]
    return torch.where(rows.mask, (both[0].exp() * (both[0] - both[1])).sum(-1), 0).sum(1).mean().item()


def ranked_right(scores, targets):
    """The share of (positive, negative) pairs that the scores put in order; ties count half, so a constant has .5."""
    high = torch.tensor([score for score, target in zip(scores, targets) if target == 1])
    low = torch.tensor([score for score, target in zip(scores, targets) if target == 0])
    difference = high[:, None] - low
    return ((difference > 0).float() + 0.5 * (difference == 0).float()).mean().item()


def judge_tiny(output, train, held_out, sizes, **_):
    if "missing" in output:
        return f"the dict that it returns lacks {', '.join(output['missing'])}"
    wanted = {key: sizes[key] for key in ("vocab_size", "context", "layers", "heads", "width")}
    if output["shape"] != wanted:
        return f"the base has the shape {output['shape']}, where {wanted} was asked for: sizes are arguments, use them"
    if output["text"] != held_out[0]:
        return "its tokeniser does not give the text back: decode(encode(text)) differs"
    characters = sum(map(len, held_out))
    bits = bits_per_character(rebuilt(output, "base"), output["tokens"], characters)
    if not abs(bits - output["bits_per_character"]) < 0.03 * bits:
        return (
            f"it reports {output['bits_per_character']:.3f} bits per character, and its base has {bits:.3f} on all of the "
            "held-out text: is it measured on a part, on other text, in nats, per token, or after RLHF has changed the weights?"
        )
    if torch.equal(output["halved"], output["base"]["embedding.weight"]):
        return "half as many `steps` of pretraining make the very same base: `steps` is an argument, use it"
    if F.cosine_similarity(output["halved"][0], output["base"]["embedding.weight"][0], 0) > 1 - 1e-5:
        return (
            "pretraining never reads token 0, which in the tokens of `train` stands before each play: its embedding is as drawn"
        )
    if len(output["records"]) < 1 or abs(output["records"][0]["kl"]) > 1e-3:
        return "the first record of RLHF is not at KL 0: the policy must start from the base"
    if all(torch.equal(output["base"][name], output["policy"][name]) for name in output["base"]):
        return "policy and base have the same weights: RLHF did nothing, or it trained the base itself"
    if not 0 <= output["accuracy"] <= 1:
        return f"the accuracy {output['accuracy']} is no share from 0 to 1"
    if all(abs(round(output["accuracy"] * few) - output["accuracy"] * few) > 1e-3 for few in range(1, PRIME // 2)):
        return (
            f"of {PRIME} clear passages about a tenth is held back, and {output['accuracy']:.4f} is a share of no such number: "
            "count those that you held back, and no others"
        )
    fault = padded_fault(*output["padded"]) or beside_fault(output["turned"], output["longer"], output["seeds"])
    fault = fault or told_fault(output["told"])
    if fault:
        return fault
    for side in ("base", "policy"):
        if len(output["samples"].get(side, [])) < 3 or not all(isinstance(one, str) and one for one in output["samples"][side]):
            return f"samples[{side!r}] must be at least three texts"
    return ""


def padded_fault(texts, behind):
    """What is wrong with the log-odds of texts, and of one text with others masked behind it; "" if nothing is."""
    apart, moved = (float(odds.max() - odds.min()) for odds in (texts, behind))
    if moved <= 0.1 * apart:
        return ""
    return (
        f"eight texts of your reward_model have log-odds {apart:.2g} apart, and one text with these eight masked behind it has "
        f"{moved:.2g}: it ignores the mask. A text is scored at its last real token, whatever is behind"
    )


def judge_whole(output, held_out, sides, **_):
    if "missing" in output:
        return f"the dict that it returns lacks {', '.join(output['missing'])}"
    base, policy = rebuilt(output, "base"), rebuilt(output, "policy")
    bits = bits_per_character(base, output["tokens"], sum(map(len, held_out)))
    if bits > BITS:
        return f"the base has {bits:.2f} bits per character on unseen text, a right one at most {BITS}: pretraining is broken"
    right = ranked_right(output["scores"], sides)
    if right < RANKED:
        return f"of unseen pairs the reward model ranks {right:.0%} right; a coin has 50 %, a right build at least {RANKED:.0%}"
    gain = output["records"][-1]["reward"] - output["records"][0]["reward"]
    if gain < GAIN:
        return f"the normalised reward rose by {gain:.2f}, where {GAIN} are wanted: is log p(positive) of the policy rewarded?"
    before, after = output["log_p"]
    if after.mean() < before.mean() + 0.15 * before.std():
        return (
            f"the log p(positive) that your reward model gives fresh lines is {before.mean():.2f} for the base and "
            f"{after.mean():.2f} for the policy: the reward that rose is another one. Is its sign turned?"
        )
    kl = kl_of(policy, base)
    if not 0.05 < kl < 12:
        why = "the stop at max_kl is missing" if kl >= 12 else "nothing was learned"
        return f"the policy lies {kl:.1f} nats from the base, where 10 are allowed: {why}"
    return told_fault(output["told"])


BITS, RANKED, GAIN = 3.2, 0.57, 0.4

Build(
    "9.10", "journey",
    [
        Probe("a tiny journey arrives, and reports what is true", draw_tiny, travel, judge_tiny, secret=("sides",)),
        Probe("the whole journey", draw_whole, travel, judge_whole, seconds=600, secret=("sides",)),
    ],
    hides=("checkpoints/laptop-0/reward", "checkpoints/large", "checkpoints/smoke", "labels"),
)  # fmt: skip

Investigation("9.A", "Where does it start to go wrong?")
Investigation("9.B", "The second seed")
