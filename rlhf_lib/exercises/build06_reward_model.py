"""Build it 6.10, `train_reward_model`: a pretrained body, one number on it, and the loop that teaches it the labels."""

import copy
import functools
import random

import numpy as np
import torch
from torch import nn

from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.declare import Investigation
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.layers import pad

NEAR = 1e-5  # how far two scores of one passage may be apart
TOKENS = 40  # the vocabulary of the small bodies


# ----------------------------------------------------------------------------------------- bodies to build upon, and scores


def small_gpt(seed, width=16, dropout=0.0):
    """A GPT with weights drawn from `seed`, so large that what stands before a token matters."""
    model = GPT(GPTConfig(vocab_size=TOKENS, context=32, layers=2, heads=2, width=width, dropout=dropout))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(std=0.3, generator=generator)
    return model.eval()


class Words(nn.Module):
    """A body that reads each token by itself: its state at a position says nothing of the others.

    seen: called with the body and the tokens (B, T) of every batch that it reads.
    """

    def __init__(self, width, seed, seen=lambda body, tokens: None):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, width)
        self.embedding.weight.data.normal_(generator=torch.Generator().manual_seed(seed))
        self.seen = seen

    def hidden(self, tokens, mask=None):
        self.seen(self, tokens)
        return self.embedding(tokens)  # (B, T, C)


@torch.no_grad()
def scores(model, rows, batch=64):
    """The log-odds of `rows` (N,), padded on the right in batches."""
    return torch.cat([model(*pad(rows[place : place + batch], "right")) for place in range(0, len(rows), batch)])


def alone(model, rows):
    return scores(model, rows, batch=1)


def whole(generator, low, high):
    return int(torch.randint(low, high, (1,), generator=generator))


def drawn_rows(generator, count, shortest=1, longest=8):
    """`count` rows of tokens of different lengths, the first longer than the second."""
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    lengths[:2] = longest, shortest
    return [torch.randint(TOKENS, (length,), generator=generator).tolist() for length in lengths]


def labelled(generator, count, **lengths):
    """Rows with drawn targets, and the seed of a body, as a probe's arguments."""
    targets = [float(one) / 2 for one in torch.randint(3, (count,), generator=generator)]
    return {"rows": drawn_rows(generator, count, **lengths), "targets": targets, "weights": whole(generator, 0, 10**6)}


def scores_fault(z, count):
    """What is wrong with scores that should be (count,); "" if nothing."""
    if not torch.is_tensor(z) or not z.is_floating_point():
        return f"the model must return a tensor of floats, one for each of the {count} rows"
    shape = tuple(z.shape)
    if shape == (count, 1):
        return f"the scores have the shape ({count}, 1): take the last dimension away, or the loss pairs every score with every target"
    if z.dim() > 1 and shape[0] == count:
        return f"the scores have the shape {shape}: one at every position? Read the one at each row's last real token"
    if shape != (count,):
        return f"{count} rows were given and the scores have the shape {shape}; it should be ({count},)"
    return "" if z.isfinite().all() else "some scores are not finite"


# ----------------------------------------------------------------------------------------- one number a row


def train_and_ask_twice(built, rows, targets, weights):
    model = built(small_gpt(weights, dropout=0.3), rows, targets, epochs=2, batch=4, lr=1e-3, seed=3)
    tokens, mask = pad(rows, "right")
    return {"first": model(tokens, mask), "again": model(tokens, mask), "one": model(tokens[:1], mask[:1])}


def judge_shape(output, rows, **_):
    first, again = output["first"], output["again"]
    fault = scores_fault(first, len(rows)) or scores_fault(output["one"], 1)
    if not fault and (first - again).abs().max() > NEAR:
        fault = (
            f"asked twice for the same passages it gives scores that are up to {(first - again).abs().max():.2f} apart: dropout is "
            "still on; return the model in evaluation mode"
        )
    return fault


# ----------------------------------------------------------------------------------------- padding never matters


def draw_padding(generator):
    given = labelled(generator, 16, shortest=2)
    given["rows"][2][-1] = given["rows"][3][0] = 0  # a real token 0
    given["behind"] = [torch.randint(TOKENS, (size,), generator=generator).tolist() for size in (1, 4, 11)] + [[0] * 6]
    return given


def train_and_pad(built, rows, targets, weights, behind):
    """The scores of each row by itself, of all in one batch, and with other tokens behind it that the mask leaves out."""
    model = built(small_gpt(weights), rows, targets, epochs=6, batch=8, lr=1e-2, seed=3)
    found = {"alone": alone(model, rows), "together": scores(model, rows), "padded": []}
    for extra in behind:
        pairs = [(torch.tensor([row + extra]), torch.arange(len(row + extra))[None] < len(row)) for row in rows]
        with torch.no_grad():
            found["padded"].append(torch.cat([model(*pair) for pair in pairs]))
    return found


def judge_padding(output, rows, behind, **_):
    own = output["alone"]
    fault = scores_fault(own, len(rows))
    if fault:
        return fault
    if own.max() - own.min() < 1e-3:
        return "every passage has the same score after training: the model learns nothing from its labels"
    changes = [(found - own).abs().max().item() for found in output["padded"]]
    for extra, change in zip(behind, changes):
        if not change <= NEAR:
            hint = " (with zeros there it does not: ask the mask, not the tokens, what is real)" if changes[-1] <= NEAR else ""
            return (
                f"a passage's score changes by {change:.3f} with {len(extra)} padded positions behind it{hint}: in another batch it "
                "would be paid another reward. Read it at the last position where the mask is True"
            )
    change = (output["together"] - own).abs().max().item()
    return "" if change <= NEAR else f"a passage's score changes by {change:.3f} with the batch that it is in: padding is read"


# ----------------------------------------------------------------------------------------- the last real token


def draw_last(generator):
    """Passages in which the last token says the label, and all others say the opposite."""
    good, bad, *others = torch.randperm(TOKENS, generator=generator).tolist()
    sides = {1.0: (good, bad), 0.0: (bad, good)}
    targets = [float(place % 2) for place in range(32)]
    rows = [[sides[target][1]] * whole(generator, 1, 7) + [sides[target][0]] for target in targets]
    starts = [[], [good], [bad], [bad, bad, good], others[:5], others[5:14]]
    return {"rows": rows, "targets": targets, "starts": starts, "good": good, "bad": bad, "weights": whole(generator, 0, 10**6)}


def train_on_last(built, rows, targets, starts, good, bad, weights):
    model = built(Words(8, weights), rows, targets, epochs=12, batch=8, lr=1e-2, seed=3)
    return {"good": scores(model, [start + [good] for start in starts]), "bad": scores(model, [start + [bad] for start in starts])}


def judge_last(output, starts, **_):
    for z in (output["good"], output["bad"]):
        fault = scores_fault(z, len(starts))
        if fault:
            return fault
    spread = max((z.max() - z.min()).item() for z in output.values())
    if not spread <= NEAR:
        return (
            f"two passages with one last token get scores that are {spread:.2f} apart, from a body that reads every token by itself: "
            "the score is made of other positions too (their mean, their sum, the first). Take the state at the last real token alone"
        )
    wrong = int((output["good"] <= 0).sum() + (output["bad"] >= 0).sum())
    if wrong:
        return (
            f"the last token alone says the label, and {wrong} of {2 * len(starts)} passages are on the wrong side after training: what "
            "is read in training is not the last real token, or the rows and the targets do not belong together"
        )
    return ""


# ----------------------------------------------------------------------------------------- the GPT stays as it was


def train_beside(built, rows, targets, weights):
    gpt = small_gpt(weights).train()
    gpt.head.requires_grad_(False)
    before = copy.deepcopy(gpt)
    given = copy.deepcopy((rows, targets))
    model = built(gpt, rows, targets, epochs=3, batch=8, lr=1e-2, seed=3)
    pairs = list(zip(before.parameters(), gpt.parameters()))
    found = {
        "weights": max((old - new).abs().max().item() for old, new in pairs),
        "frozen": any(old.requires_grad != new.requires_grad for old, new in pairs),
        "gradients": any(new.grad is not None for _, new in pairs),
        "mode": not all(one.training for one in gpt.modules()),
        "lists": given != (rows, targets),
        "scores": scores(model, rows),
    }
    for parameter in gpt.parameters():
        parameter.data += 1
    return {**found, "later": scores(model, rows)}


def judge_beside(output, rows, **_):
    change = (output["later"] - output["scores"]).abs().max().item()
    if output["weights"]:
        return "the weights of the GPT that came in are others after the training: PPO needs it as it was. Train a copy"
    if not change <= NEAR:
        return (
            f"the scores change by {change:.2f} when the GPT that came in is changed later: the two share weights, and PPO would move "
            "its own judge. Copy the body with copy.deepcopy"
        )
    for what, sentence in (
        ("frozen", "parameters of the GPT that came in have another requires_grad: freeze, or free, a copy"),
        ("gradients", "the GPT that came in has gradients after the training: train a copy"),
        ("mode", "the GPT that came in was in training mode and is not any more: call eval() on the copy"),
        ("lists", "the lists `rows` or `targets` are others after the training: pad copies of the rows"),
    ):
        if output[what]:
            return sentence
    return ""


# ----------------------------------------------------------------------------------------- every row in every epoch


def draw_epochs(generator):
    """23 rows that begin with numbers of their own, in batches of 5: the last batch has 3."""
    firsts = (1 + torch.randperm(23, generator=generator)).tolist()
    rows = [[first] + row for first, row in zip(firsts, drawn_rows(generator, 23))]
    return {"rows": rows, "targets": [float(place % 2) for place in range(23)], "weights": whole(generator, 0, 10**6)}


def train_and_watch(built, rows, targets, weights):
    """The first tokens of the rows that the body read with a gradient, batch by batch, and in which mode."""
    batches, modes = [], []

    def seen(body, tokens):
        if torch.is_grad_enabled():
            batches.append(tokens[:, 0].tolist())
            modes.append(body.training)

    built(Words(8, weights, seen).eval(), rows, targets, epochs=3, batch=5, lr=1e-3, seed=3)
    return {"batches": batches, "modes": modes}


def judge_epochs(output, rows, **_):
    batches, names = output["batches"], {row[0]: place for place, row in enumerate(rows)}
    read = [first for batch in batches for first in batch]
    counts = {first: read.count(first) for first in names}
    if not read:
        return "the body's `hidden` was never called with gradients on: nothing is trained"
    if max(map(len, batches)) > 5:
        return f"a step has {max(map(len, batches))} rows; `batch` is 5"
    if len(read) == 3 * 20 or max(map(len, batches)) == min(map(len, batches)) == 5 and len(read) < 3 * 23:
        return "of 23 rows in batches of 5, the last 3 of an epoch are never learned from: the last, smaller batch is left out"
    if len(read) != 3 * 23:
        return f"{len(read)} rows were read with a gradient; 3 epochs of 23 rows are 69 (measure under torch.no_grad())"
    for epoch in range(3):
        part = read[23 * epoch : 23 * (epoch + 1)]
        missing = sorted(names[first] for first in set(names) - set(part))
        if missing:
            return (
                f"in epoch {epoch + 1} row {missing[0]} is not read and another one twice: an epoch reads every row once. Draw an order "
                "of all rows (torch.randperm), not single ones"
            )
    if min(counts.values()) == max(counts.values()) and read[:23] == read[23:46] == read[46:]:
        return "every epoch reads the rows in the same order: draw a new one for each"
    if not all(output["modes"]):
        return "the model is in evaluation mode while it learns, where dropout does nothing: call train() on the copy first"
    return ""


# ----------------------------------------------------------------------------------------- the seed alone


def train_by_seeds(built, rows, targets, weights):
    def result(globally, lr=1e-3, seed=3):
        torch.default_generator.manual_seed(globally)
        random.seed(globally)
        np.random.seed(globally)
        return scores(built(small_gpt(weights), rows, targets, epochs=3, batch=4, lr=lr, seed=seed), rows)

    return {"once": result(1), "again": result(2), "other seed": result(2, seed=4), "other rate": result(2, lr=1e-2)}


def judge_seeds(output, rows, **_):
    once = output["once"]
    fault = scores_fault(once, len(rows))
    if fault:
        return fault
    apart = {name: (z - once).abs().max().item() for name, z in output.items()}
    if not apart["again"] <= NEAR:
        return (
            f"two trainings with the same seed give scores that are {apart['again']:.3f} apart: something is drawn from the global "
            "generator (the order, the start of the linear layer, dropout). Draw it from a generator with this seed"
        )
    if apart["other seed"] <= NEAR:
        return "another seed gives the very same model: the order of the rows is not drawn from it"
    return "another `lr` gives the very same model: it is not used" if apart["other rate"] <= NEAR else ""


# ----------------------------------------------------------------------------------------- neutral is in the middle


def draw_neutral(generator):
    """Three passages, each labelled four times: once positive and three times neutral, once negative and so on, always neutral."""
    some = [[one] for one in torch.randperm(TOKENS, generator=generator)[:3].tolist()]
    targets = [1.0, 0.5, 0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    return {"some": some, "targets": targets, "weights": whole(generator, 0, 10**6)}


def train_on_neutral(built, some, targets, weights):
    rows = [row for row in some for _ in range(4)]
    return scores(built(Words(8, weights), rows, targets, epochs=120, batch=12, lr=2e-2, seed=3), some)


def judge_neutral(output, **_):
    fault = scores_fault(output, 3)
    if fault:
        return fault
    up, down, middle = p = output.sigmoid().tolist()
    said = "p(positive) is {:.2f}, {:.2f} and {:.2f} where 0.62, 0.38 and 0.50 would be right".format(*p)
    if (output - torch.tensor([0.625, 0.375, 0.5])).abs().max() < 0.06:
        return "the scores are probabilities (or were fitted to the targets by squared errors): return log-odds, 0 for even odds"
    if up > 0.8 and down < 0.2:
        return f"{said}: neutral passages are left out of the loss; their target of 0.5 should pull towards log-odds 0"
    if middle > 0.85:
        return f"{said}: neutral passages count as positive; keep the soft target 0.5"
    if middle < 0.15:
        return f"{said}: neutral passages count as negative; keep the soft target 0.5"
    if up < 0.45 and down > 0.55:
        return f"{said}: the sides are exchanged; a target of 1 is positive"
    near = max(abs(up - 0.625), abs(down - 0.375), abs(middle - 0.5)) < 0.06
    return "" if near else f"{said}: the loss is not the cross-entropy of log-odds and soft targets, or the training does not come to rest"


# ----------------------------------------------------------------------------------------- by heart


def draw_by_heart(generator):
    given = labelled(generator, 40, shortest=2, longest=6)
    return {**given, "targets": [float(place % 2) for place in range(40)]}


def train_by_heart(built, rows, targets, weights):
    model = built(small_gpt(weights, width=8), rows, targets, epochs=40, batch=8, lr=1e-2, seed=3)
    return alone(model, rows)


def judge_by_heart(output, rows, targets, **_):
    fault = scores_fault(output, len(rows))
    if fault:
        return fault
    right = int(((output > 0) == (torch.tensor(targets) > 0.5)).sum())
    if right >= 0.95 * len(rows):
        return ""
    return (
        f"after 40 epochs only {right} of 40 passages are on the side of their label, with a body of 8 numbers a state: does the "
        "optimiser get the body too, and not the linear layer alone? Does each step use its own gradient, of its own rows and targets?"
    )


# ----------------------------------------------------------------------------------------- real labels

LONGEST, EPOCHS, BATCH, RATE, BAR = 44, 2, 32, 1e-3, 0.80


@functools.cache
def hand_labels():
    """The clear hand-made labels as (rows, targets): those to learn from, at most LONGEST tokens, and all held-out ones."""
    from rlhf_lib import corpus, course, labels, tokenization

    tokenizer = tokenization.load(course.PUBLISHED / "base" / "tokenizer.json")
    halves = []
    for half in labels.split(labels.hand_made(corpus.load())):
        halves.append([(tokenizer.encode(label.text), label.target) for label in half if label.target != 0.5])
    return [pair for pair in halves[0] if len(pair[0]) <= LONGEST], halves[1]


def draw_labels(generator, most=None):
    learn, test = hand_labels()
    order = torch.randperm(len(learn), generator=generator)[:most].tolist()
    (rows, targets), (unseen, answers) = zip(*(learn[place] for place in order)), zip(*test)
    return {"rows": list(rows), "targets": list(targets), "unseen": list(unseen), "answers": list(answers)}


def train_on_labels(built, rows, targets, unseen, answers):
    from rlhf_lib import checkpoints, course

    gpt, steps = checkpoints.load(course.PUBLISHED / "base")[0], []
    total = EPOCHS * -(-len(rows) // BATCH)

    def count(*_):
        if torch.is_grad_enabled():
            steps.append(None)
            tick(len(steps) / total, f"step {len(steps)} of {total}")

    gpt.embedding.register_forward_hook(count)
    model = built(gpt, rows, targets, epochs=EPOCHS, batch=BATCH, lr=RATE, seed=3)
    order = sorted(range(len(unseen)), key=lambda place: len(unseen[place]))  # rows of like length together: little padding
    z = torch.zeros(len(unseen))
    z[order] = scores(model, [unseen[place] for place in order])
    return z


def judge_labels(output, unseen, answers, **_):
    fault = scores_fault(output, len(unseen))
    if fault:
        return fault
    positive = torch.tensor(answers) > 0.5
    right, constant = ((output > 0) == positive).float().mean(), (~positive).float().mean()
    if right >= BAR:
        return ""
    hint = "Does the whole body learn, at this rate? Is every label used?"
    if right > 0.77:
        hint = "A rate that falls to 0 towards the end, and a limit on the gradient's norm, bring two points"
    return (
        f"it is right on {right:.1%} of {len(unseen)} clear passages that it has not read, and needs {BAR:.0%}; a good build is right "
        f'on 83 %, "negative" to everything on {constant:.0%}. {hint}'
    )


reward_model = Build("6.10", "train_reward_model", [
    Probe("one number a row", functools.partial(labelled, count=12), train_and_ask_twice, judge_shape),
    Probe("padding never matters", draw_padding, train_and_pad, judge_padding),
    Probe("the last real token is read", draw_last, train_on_last, judge_last),
    Probe("the GPT stays as it was", functools.partial(labelled, count=16), train_beside, judge_beside),
    Probe("every row in every epoch", draw_epochs, train_and_watch, judge_epochs),
    Probe("the seed alone decides", functools.partial(labelled, count=16), train_by_seeds, judge_seeds),
    Probe("neutral is in the middle", draw_neutral, train_on_neutral, judge_neutral),
    Probe("learns 40 passages by heart", draw_by_heart, train_by_heart, judge_by_heart),
    Probe("right on 80 % of the labels that it has not read", draw_labels, train_on_labels, judge_labels, seconds=540),
])  # fmt: skip

Investigation("6.A", "Another draw of the labels")
Investigation("6.B", "Which state knows the feeling?")
Investigation("6.C", "More labels, or surer ones?")
