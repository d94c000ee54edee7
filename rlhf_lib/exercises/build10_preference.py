"""Build it 10.10, `train_preference`: a reward model that learns from comparisons which of two answers people prefer."""

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.build06_probes import (
    NEAR,
    TOKENS,
    Words,
    alone,
    beside,
    beside_fault,
    drawn_rows,
    scores,
    scores_fault,
    small_gpt,
    whole,
)
from rlhf_lib.exercises.build06_reward_model import by_seeds, judge_seeds, watch_gradients
from rlhf_lib.exercises.build10_probes import (
    answers,
    both,
    compared,
    counted,
    draw_last,
    draw_odds,
    draw_padding,
    judge_last,
    judge_odds,
    judge_padding,
    judge_shape,
    swapped,
    train_and_ask_twice,
    train_and_pad,
    train_on_last,
    train_on_odds,
)  # fmt: skip

# ----------------------------------------------------------------------------------------- finite at any margin


def draw_wide(generator):
    """Two answers, each of which wins as often as the other, and a body whose states are in the hundreds."""
    prompt, a, b = torch.randperm(TOKENS, generator=generator)[:3].tolist()
    return {"learn": [[[prompt], [a], [b]], [[prompt], [b], [a]]] * 8, "weights": whole(generator, 0, 10**6)}


def train_on_wide(built, learn, weights):
    body = Words(8, weights)
    body.embedding.weight.data *= 300
    model, _ = both(built(body, learn, learn[:2], epochs=2, batch=1, lr=1.0, seed=3))
    return scores(model, answers(learn[:2]))


def judge_wide(output, **_):
    if torch.is_tensor(output) and output.shape == (4,) and not output.isfinite().all():
        return (
            "a margin of -1000 makes the loss infinite and every weight NaN: log(sigmoid) underflows there. Use "
            "F.logsigmoid(margin), which is finite for any"
        )
    return scores_fault(output, 4)


# ----------------------------------------------------------------------------------------- swapping the sides


class OneHot(nn.Module):
    """A body whose state is the token itself, one 1 among zeros, whatever is learned: what a linear layer makes of it has one
    term that is not 0, and comes out the same in whatever order it is summed. Rewards of equal answers are equal to the bit."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, TOKENS)

    def hidden(self, tokens, mask=None):
        return F.one_hot(tokens, TOKENS) + 0 * self.embedding(tokens)  # (B, T, C)


def draw_swap(generator):
    given = compared(generator, held_out=15)
    for _, chosen, rejected in given["held_out"]:
        rejected[-1] = (rejected[-1] + (chosen == rejected)) % TOKENS  # no pair is drawn as an answer with itself
    return given


def train_and_swap(built, learn, held_out, weights):
    """The accuracies on held-out pairs, on the same with their sides exchanged, and on pairs of an answer with itself."""
    settings = dict(epochs=2, batch=8, lr=1e-2, seed=3)
    alike = [[prompt, chosen, chosen] for prompt, chosen, _ in held_out[:8]]
    model, own = both(built(small_gpt(weights), learn, held_out, **settings))
    rest = [both(built(small_gpt(weights), learn, pairs, **settings))[1] for pairs in (swapped(held_out), learn)]
    equal = both(built(OneHot(), learn, alike, **settings))[1]
    return {"own": own, "counted": counted(model, held_out), "swapped": rest[0], "learned": rest[1], "alike": equal}


def judge_swap(output, **_):
    own, counts = output["own"], output["counted"]
    if abs(own - counts) > NEAR and abs(own - output["learned"]) <= NEAR:
        return f"the accuracy, {own:.2f}, is that of the pairs that were learned from; measure it on those held out"
    if not 0.25 <= output["alike"] <= 0.75:  # rounding may part two equal rewards, and a pair of the eight is 1/16 then
        return f"on pairs of an answer with itself the accuracy is {output['alike']:.2f}; equal rewards count as half: 0.50"
    if abs(own + output["swapped"] - 1) > NEAR:
        return (
            f"the accuracy is {own:.2f}, and {output['swapped']:.2f} when the sides of the held-out pairs are exchanged: the two "
            "must add up to 1. Is the better answer's reward compared with the other one's, on the pairs that were held out?"
        )
    if abs(own - counts) > NEAR:
        return f"the accuracy is said to be {own:.3f}; counted with the model that comes back it is {counts:.3f}"
    return ""


# ----------------------------------------------------------------------------------------- both answers in one batch


def draw_epochs(generator):
    """23 pairs to learn from and 9 held out, each with a prompt that begins with a number of its own."""
    given = compared(generator, 23, 9)
    firsts = (1 + torch.randperm(32, generator=generator)).tolist()
    for first, pair in zip(firsts, given["learn"] + given["held_out"]):
        pair[0].insert(0, first)
    return given


class Read(Words):
    """Takes down in `places`, call by call, which states the rewards are made of while it learns: those that get a gradient."""

    def hidden(self, tokens, mask=None):
        states = super().hidden(tokens, mask)
        if states.requires_grad:
            states.register_hook(lambda gradient: self.places.append((gradient != 0).any(-1)))
        return states


def train_and_watch(built, learn, held_out, weights):
    """The rows that the body read with a gradient, call by call, in which modes it read, which of their states the rewards were
    made of, whether gradients met others that were still there, and how far the body and the linear layer have moved."""
    calls, modes, quiet, found, stale, Read.places = [], [], [], [], [], []

    def seen(body, tokens):
        found.append(body.embedding.weight.detach().clone())
        if torch.is_grad_enabled():
            if not calls:
                watch_gradients(body.embedding.weight, stale)
            calls.append(tokens.tolist())
            modes.append(body.training)
        else:
            quiet.append(body.training)

    both(built(Read(8, weights, seen).eval(), learn, held_out, epochs=3, batch=5, lr=1e-2, seed=3))
    moved = (found[-1] - found[0]).abs().max().item() if found else 0.0
    return {
        "calls": calls, "modes": modes, "quiet": quiet, "moved": moved, "places": Read.places, "stale": any(stale),
        "turned": turned(built, learn[0][0][0], learn[1][0][0]),
    }  # fmt: skip


def turned(built, a, b):
    """How far the margin of `a` over `b` is another where `a` wins than where `b` does, of a body whose states never change."""
    margins = []
    for sides in ([[a], [b]], [[b], [a]]):
        model, _ = both(built(OneHot(), [[[a], *sides]] * 8, [[[a], *sides]], epochs=3, batch=4, lr=1e-2, seed=3))
        margins.append(scores(model, [[a, a], [a, b]]).diff().item())
    return abs(margins[0] - margins[1])


def beyond(row, places, pairs):
    """Whether the reward of a padded row is made of other states than that of its last real token; `places` as in `Read`."""
    ends = [
        start + len(whole_row) - 1
        for whole_row in answers(pairs)
        for start in (0, len(row) - len(whole_row))
        if row[start : start + len(whole_row)] == whole_row
    ]
    return not {*places.nonzero()[:, 0].tolist()} <= {*ends}


def prompt_of(row, pairs):
    """The first token, which no two pairs share, of the prompt that `row` has with one of its answers and padding; else None."""
    for whole_row in answers(pairs):
        if whole_row in (row[: len(whole_row)], row[-len(whole_row) :]):
            return whole_row[0]


def judge_epochs(output, learn, held_out, **_):
    own = [pair[0][0] for pair in learn]
    calls = [[prompt_of(row, learn + held_out) for row in call] for call in output["calls"]]
    read = [first for call in calls for first in call]
    if not read:
        return "the body's `hidden` was never called with gradients on: nothing is trained"
    if None in read:
        other = [row for call in output["calls"] for row in call][read.index(None)]
        return (
            f"a row that is learned from is {other}, which is no prompt with one of its answers behind it: each row is the whole "
            "prompt + the whole answer"
        )
    if {*read} & {pair[0][0] for pair in held_out}:
        return "held-out pairs are read with a gradient: learn from `learn` alone, and measure under torch.no_grad()"
    if any(call.count(first) % 2 for call in calls for first in call):
        return (
            "the two answers of a pair are not in one batch: put the better and the other answers of a step one below the "
            "other, read them in one call, and split the rewards"
        )
    if max(map(len, calls)) > 10:
        return f"a step has {max(map(len, calls)) // 2} pairs; `batch` is 5"
    if len(read) != 3 * 46:
        return f"{len(read) / 2:g} pairs were learned from; 3 epochs of 23 are 69, the last smaller batch of each epoch included"
    epochs = [read[46 * epoch : 46 * (epoch + 1)] for epoch in range(3)]
    if any({*epoch} != {*own} for epoch in epochs):
        return "in an epoch a pair is left out and another comes twice: draw an order of all pairs (torch.randperm)"
    if len({tuple(epoch) for epoch in epochs}) < 3:
        return "two epochs read the pairs in the same order: draw a new one for each"
    if not all(output["modes"]):
        return (
            "the model is in evaluation mode while it learns, where dropout does nothing: call train() before the steps, and "
            "again where it was measured in between"
        )
    if any(output["quiet"]):
        return "the model is in training mode while it is measured: dropout makes the accuracy a draw. Call eval() first"
    both_of = zip(output["calls"], output["places"])
    if any(beyond(row, places, learn) for call, places_of in both_of for row, places in zip(call, places_of)):
        return (
            "while it learns a reward is made of padding, or of other states than that of the row's last real token: hand on the "
            "mask there as in the measurement"
        )
    if not output["moved"]:
        return "the body's weights are after the training what they were: the whole body learns, not the linear layer alone"
    if output["turned"] <= NEAR:
        return (
            "the linear layer is after the training what it was: give the optimiser all parameters of the model, not the body's "
            "alone"
        )
    return "gradients of earlier steps are still there in the next one: zero them after each step" if output["stale"] else ""


# ----------------------------------------------------------------------------------------- the GPT stays as it was


def train_beside(built, learn, held_out, weights):
    train = lambda gpt: both(built(gpt, learn, held_out, epochs=3, batch=8, lr=1e-2, seed=3))[0]  # noqa: E731
    return beside(weights, train, answers(learn), (learn, held_out))


def judge_beside(output, **_):
    lists = "the lists `learn` or `held_out` are others after the training: make new rows of them"
    return beside_fault(output, "rewards", lists)


# ----------------------------------------------------------------------------------------- the seed alone


def train_by_seeds(built, learn, held_out, weights):
    train = lambda gpt, **settings: both(built(gpt, learn, held_out, epochs=3, batch=4, **settings))[0]  # noqa: E731
    return by_seeds(weights, answers(learn), train)


# ----------------------------------------------------------------------------------------- a planted preference

PAIRS, UNSEEN, EPOCHS, BATCH, GAP = 600, 150, 12, 24, 3


def draw_planted(generator):
    """Answers in which six tokens please and six displease; the better one has GAP more of pleasing less displeasing ones."""
    pleasing, displeasing = torch.randperm(TOKENS, generator=generator)[:12].view(2, 6).tolist()
    worth = lambda row: sum(token in pleasing for token in row) - sum(token in displeasing for token in row)  # noqa: E731
    pairs = []
    while len(pairs) < PAIRS + 2 * UNSEEN:
        prompt, a, b = (drawn_rows(generator, 3, 3, 9)[2] for _ in range(3))
        if abs(worth(a) - worth(b)) >= GAP:
            pairs.append([prompt, *sorted((a, b), key=worth, reverse=True)])
    first = torch.randint(2, (UNSEEN,), generator=generator).tolist()  # whether the better one of a pair comes first
    return {
        "learn": pairs[:PAIRS], "held_out": pairs[PAIRS : PAIRS + UNSEEN], "weights": whole(generator, 0, 10**6), "first": first,
        "unseen": [[a, *((b, c) if one else (c, b))] for one, (a, b, c) in zip(first, pairs[PAIRS + UNSEEN :])],
    }  # fmt: skip


def train_on_planted(built, learn, held_out, weights, unseen):
    gpt, steps, total = small_gpt(weights), [], EPOCHS * -(-len(learn) // BATCH)

    def count(*_):
        if torch.is_grad_enabled():
            steps.append(None)
            tick(len(steps) / total, f"step {len(steps)} of {total}")

    gpt.embedding.register_forward_hook(count)
    model, accuracy = both(built(gpt, learn, held_out, epochs=EPOCHS, batch=BATCH, lr=1e-2, seed=3))
    return {"accuracy": accuracy, "counted": counted(model, held_out), "unseen": alone(model, answers(unseen))}


def judge_planted(output, first, **_):
    fault = scores_fault(output["unseen"], 2 * UNSEEN)
    if fault:
        return fault
    if abs(output["accuracy"] - output["counted"]) > 0.01:
        return (
            f"the accuracy is said to be {output['accuracy']:.3f}; counted with the model that comes back it is "
            f"{output['counted']:.3f}"
        )
    one, other = output["unseen"].split(UNSEEN)
    right = ((one > other) == torch.tensor(first).bool()).float().mean().item()
    if right >= 0.9:
        return ""
    return (
        f"on pairs that it has not read it is right on {right:.1%}, and needs 90 %; a good build is right on 95 %. Does the "
        "whole body learn, and not the linear layer alone? Is the optimiser one like Adam, at the rate that is given, which "
        "falls? Is the gradient's norm kept in bounds?"
    )


preference = Build("10.10", "train_preference", [
    Probe("one number an answer", compared, train_and_ask_twice, judge_shape),
    Probe("padding never matters", draw_padding, train_and_pad, judge_padding),
    Probe("the last real token is read", draw_last, train_on_last, judge_last),
    Probe("finite at any margin", draw_wide, train_on_wide, judge_wide),
    Probe("both answers in one batch, held-out pairs in none", draw_epochs, train_and_watch, judge_epochs),
    Probe("the seed alone decides", compared, train_by_seeds, lambda output, learn, **_: judge_seeds(output, answers(learn))),
    Probe("swapping the sides negates", draw_swap, train_and_swap, judge_swap),
    Probe("only the difference counts", draw_odds, train_on_odds, judge_odds),
    Probe("the GPT stays as it was", compared, train_beside, judge_beside),
    Probe("right on 90 % of a preference that it has not read", draw_planted, train_on_planted, judge_planted, seconds=240,
          secret=("first",)),
])  # fmt: skip
