"""Build it 6.10, `train_reward_model`: a pretrained body, one number on it, and the loop that teaches it the labels."""

import functools
import random

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.build06_probes import (
    NEAR,
    TOKENS,
    Read,
    Words,
    alone,
    draw_last,
    draw_padding,
    drawn_rows,
    judge_beside,
    judge_last,
    judge_padding,
    judge_shape,
    labelled,
    scores,
    scores_fault,
    small_gpt,
    train_and_ask_twice,
    train_and_pad,
    train_beside,
    train_on_last,
    whole,
)  # fmt: skip
from rlhf_lib.exercises.declare import Investigation

# ----------------------------------------------------------------------------------------- every row in every epoch


def draw_epochs(generator):
    """23 rows that begin with numbers of their own, in batches of 5: the last batch has 3."""
    firsts = (1 + torch.randperm(23, generator=generator)).tolist()
    rows = [[first] + row for first, row in zip(firsts, drawn_rows(generator, 23))]
    return {"rows": rows, "targets": [float(place % 2) for place in range(23)], "weights": whole(generator, 0, 10**6)}


def train_and_watch(built, rows, targets, weights):
    """The first tokens of the rows that the body read with a gradient, batch by batch, in which mode, and what gradients met."""
    batches, modes, stale = [], [], []

    def seen(body, tokens):
        if torch.is_grad_enabled():
            if not batches:
                watch_gradients(body.embedding.weight, stale)
            batches.append(tokens[:, 0].tolist())
            modes.append(body.training)

    built(Words(8, weights, seen).eval(), rows, targets, epochs=3, batch=5, lr=1e-3, seed=3)
    return {"batches": batches, "modes": modes, "stale": any(stale), "height": height(built, rows[:6], targets[:6], weights)}


def height(built, rows, targets, weights, lr=1e-3):
    """The highest rate of a run of six steps, as a share of `lr`; 1 where no optimiser was seen."""
    rates = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.extend(one["lr"] for one in optimizer.param_groups))
    try:
        built(Words(8, weights), rows, targets, epochs=1, batch=1, lr=lr, seed=3)
    finally:
        hook.remove()
    return float(max(rates, default=lr)) / lr


def watch_gradients(weight, stale):
    """Note in `stale`, whenever `weight` gets a gradient, whether one is still there from before it moved."""
    come, before = [], []

    def met(weight):
        moved = bool(before) and not torch.equal(weight, before[-1])
        stale.append(moved and not torch.allclose(weight.grad, come[-1]))
        before[:] = [weight.detach().clone()]

    if weight.requires_grad and weight.is_leaf:
        weight.register_hook(lambda gradient: come.append(gradient.clone()))
        weight.register_post_accumulate_grad_hook(met)


def judge_epochs(output, rows, **_):
    batches, names = output["batches"], {row[0]: place for place, row in enumerate(rows)}
    read = [first for batch in batches for first in batch]
    counts = {first: read.count(first) for first in names}
    if not read:
        return "the body's `hidden` was never called with gradients on: nothing is trained"
    if max(map(len, batches)) > 5:
        return f"a step has {max(map(len, batches))} rows; `batch` is 5"
    if len(read) == 3 * 20 or (max(map(len, batches)) == min(map(len, batches)) == 5 and len(read) < 3 * 23):
        return "of 23 rows in batches of 5, the last 3 of an epoch are never learned from: the last, smaller batch is left out"
    if len(read) != 3 * 23:
        return f"{len(read)} rows were read with a gradient; 3 epochs of 23 rows are 69 (measure under torch.no_grad())"
    for epoch in range(3):
        part = read[23 * epoch : 23 * (epoch + 1)]
        missing = sorted(names[first] for first in set(names) - set(part))
        if missing:
            return (
                f"in epoch {epoch + 1} row {missing[0]} is not read and another one twice: an epoch reads every row once. Draw "
                "an order of all rows (torch.randperm), not single ones"
            )
    if min(counts.values()) == max(counts.values()) and read[:23] == read[23:46] == read[46:]:
        return "every epoch reads the rows in the same order: draw a new one for each"
    if not all(output["modes"]):
        return "the model is in evaluation mode while it learns, where dropout does nothing: call train() on the copy first"
    if output["stale"]:
        return "gradients of earlier steps are still there in the next one: zero them after each step"
    low = f"in a run of six steps the rate gets to {output['height']:.0%} of `lr`: let the warm-up be a share of all steps"
    return low if output["height"] < 0.4 else ""


# ----------------------------------------------------------------------------------------- the seed alone


def train_by_seeds(built, rows, targets, weights):
    return by_seeds(weights, rows, lambda gpt, **settings: built(gpt, rows, targets, epochs=3, batch=4, **settings))


def by_seeds(weights, rows, train):
    """The scores of `rows` by models that `train(gpt, lr=, seed=)` gives: twice with one seed, of a GPT with dropout, and without
    dropout with this seed, another one, and another learning rate."""

    def result(globally, lr=1e-3, seed=3, dropout=0.0):
        torch.default_generator.manual_seed(globally)
        random.seed(globally)
        np.random.seed(globally)
        return scores(train(small_gpt(weights, dropout=dropout), lr=lr, seed=seed), rows)

    same = {"once": result(1, dropout=0.3), "again": result(2, dropout=0.3)}
    return {**same, "plain": result(2), "other seed": result(2, seed=4), "other rate": result(2, lr=1e-2)}


def judge_seeds(output, rows, **_):
    fault = scores_fault(output["once"], len(rows)) or scores_fault(output["plain"], len(rows))
    if fault:
        return fault
    apart = {name: (output[name] - output["plain"]).abs().max().item() for name in ("other seed", "other rate")}
    again = (output["again"] - output["once"]).abs().max().item()
    if not again <= NEAR:
        return (
            f"two trainings with the same seed give scores that are {again:.3f} apart: something is drawn from the "
            "global generator (the order, the start of the linear layer, dropout). Draw it from a generator with this seed; for "
            "dropout, which takes none, call torch.manual_seed(seed) first"
        )
    if apart["other seed"] <= NEAR:
        return "another seed gives the very same model: the order of the rows is not drawn from it"
    return "another `lr` gives the very same model: it is not used" if apart["other rate"] <= NEAR else ""


# ----------------------------------------------------------------------------------------- neutral is in the middle


def draw_neutral(generator):
    """Three passages, each labelled four times: once positive else neutral, once negative else neutral, always neutral."""
    some = [[one] for one in torch.randperm(TOKENS, generator=generator)[:3].tolist()]
    targets = [1.0, 0.5, 0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    return {"some": some, "targets": targets, "weights": whole(generator, 0, 10**6)}


def train_on_neutral(built, some, targets, weights):
    rows, clear = [row for row in some for _ in range(4)], [[one] for one in range(4)]
    found = scores(built(Words(8, weights), rows, targets, epochs=120, batch=12, lr=2e-2, seed=3), some)
    sure = built(Words(8, weights), clear, [1.0, 1.0, 0.0, 0.0], epochs=240, batch=4, lr=2e-2, seed=3)
    return {"some": found, "clear": scores(sure, clear)}


def judge_neutral(output, **_):
    fault = scores_fault(output["some"], 3) or scores_fault(output["clear"], 4)
    if fault:
        return fault
    up, down, middle = p = output["some"].sigmoid().tolist()
    said = "p(positive) is {:.2f}, {:.2f} and {:.2f} where 0.62, 0.38 and 0.50 would be right".format(*p)
    if up > 0.9 and down < 0.1:
        return f"{said}: neutral passages are left out of the loss; their target of 0.5 should pull towards log-odds 0"
    if middle > 0.95 and abs(down - 0.75) < 0.03:
        return f"{said}: neutral passages count as positive; keep the soft target 0.5"
    if middle < 0.05 and abs(up - 0.25) < 0.03:
        return f"{said}: neutral passages count as negative; keep the soft target 0.5"
    if max(abs(one - 0.5) for one in p) < 0.06:
        return f"{said}: all get the mean of the targets. Does the loss pair each score with every target, (B, 1) beside (B,)?"
    if max(abs(up - 0.625), abs(down - 0.375), abs(middle - 0.5)) >= 0.06:
        return f"{said}: the loss is not the cross-entropy of log-odds and soft targets, or the training does not come to rest"
    return drawn_in(output["clear"] * torch.tensor([1, 1, -1, -1]))


def drawn_in(sure):
    """A sentence where clear passages come to rest: with log-odds `sure` of their labels, which should go on growing."""
    if not 0.5 < sure.min() <= sure.max() < min(3.7, sure.min() + 0.08):
        return ""
    p = sure.mean().sigmoid()
    return (
        f"passages that are always positive come to rest at p = {p:.2f}, and always negative ones at {1 - p:.2f}: the targets "
        "are drawn towards the middle; learn from the 1.0 and 0.0 that are given"
    )


# ----------------------------------------------------------------------------------------- by heart


def draw_by_heart(generator):
    given = labelled(generator, 40, shortest=2, longest=6)
    return {**given, "targets": [float(place % 2) for place in range(40)]}


def train_by_heart(built, rows, targets, weights):
    """The scores, what of the body has not moved, and whether it was read without any mask."""
    gpt, bodies, masked = small_gpt(weights, width=8, kind=Read), [], []
    gpt.seen = lambda body, mask: (bodies.append(body), masked.append(mask is not None))
    found = {"scores": alone(built(gpt, rows, targets, epochs=40, batch=8, lr=1e-2, seed=3), rows)}
    before, after = (dict(one.named_parameters()) for one in (gpt, bodies[-1] if bodies else gpt))
    still = [name for name in before if name in after and torch.equal(before[name], after[name].to(before[name].device))]
    still = [name for name in still if not name.startswith("head")]
    return {**found, "still": still if any(one is not gpt for one in bodies) else [], "masked": any(masked) or not masked}


def judge_by_heart(output, rows, targets, **_):
    fault = scores_fault(output["scores"], len(rows))
    if fault:
        return fault
    right = int(((output["scores"] > 0) == (torch.tensor(targets) > 0.5)).sum())
    if right >= 0.95 * len(rows):
        if output["still"]:
            return f"of the body {output['still'][0]} has not moved: the whole model learns, so give the optimiser all of it"
        both = "the body is read without the mask: hand it on, gpt.hidden(tokens, mask), for a body may look both ways"
        return "" if output["masked"] else both
    return (
        f"after 40 epochs only {right} of 40 passages are on the side of their label, with a body of 8 numbers a state: does "
        "the optimiser get the body too, and not the linear layer alone? Does each step use its own gradient, rows and "
        "targets?"
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


def train_on_labels(built, rows, targets, unseen):
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
        f"it is right on {right:.1%} of {len(unseen)} clear passages that it has not read, and needs {BAR:.0%}; a good build is "
        f'right on 83 %, "negative" to everything on {constant:.0%}. {hint}'
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
    Probe("right on 80 % of the labels that it has not read", draw_labels, train_on_labels, judge_labels, seconds=540,
          secret=("answers",)),
], hides=("checkpoints/laptop-0/reward", "checkpoints/large", "checkpoints/smoke", "labels"))  # fmt: skip

Investigation("6.A", "Another draw of the labels")
Investigation("6.B", "Which state knows the feeling?")
Investigation("6.C", "More labels, or surer ones?")
