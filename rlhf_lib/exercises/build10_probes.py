"""What Build it 10.10 is tried with, and four of its probes: the shape of what comes out, padding, reading, and the loss."""

import math
import numbers

import torch

from rlhf_lib.exercises.build06_probes import (
    NEAR,
    TOKENS,
    Words,
    alone,
    drawn_rows,
    padded_scores,
    padding_fault,
    scores,
    scores_fault,
    small_gpt,
    whole,
)
from rlhf_lib.models.layers import pad


def compared(generator, count=16, held_out=8, **lengths):
    """Drawn comparisons, (prompt, chosen, rejected) of tokens each, in two halves, and the seed of a body."""
    rows = [drawn_rows(generator, count + held_out, **lengths) for _ in range(3)]
    pairs = [list(triple) for triple in zip(*rows)]
    return {"learn": pairs[:count], "held_out": pairs[count:], "weights": whole(generator, 0, 10**6)}


def answers(pairs):
    """The rows that a reward model reads: each prompt with its better answer, then each with the other."""
    return [prompt + chosen for prompt, chosen, _ in pairs] + [prompt + rejected for prompt, _, rejected in pairs]


def swapped(pairs):
    return [[prompt, rejected, chosen] for prompt, chosen, rejected in pairs]


def both(result):
    """The model and the accuracy that a build returned."""
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise TypeError("train_preference must return two things, the model and its accuracy on the held-out pairs")
    if not isinstance(result[1], numbers.Real):
        raise TypeError(f"the accuracy must be a float, and is a {type(result[1]).__name__}; of a tensor, .item() makes one")
    return result[0], float(result[1])


def counted(model, pairs):
    """The share of pairs whose better answer has the higher reward, equal rewards as half."""
    better, other = alone(model, answers(pairs)).split(len(pairs))
    return ((better > other).float() + 0.5 * (better == other)).mean().item()


# ----------------------------------------------------------------------------------------- one number an answer


def train_and_ask_twice(built, learn, held_out, weights):
    model, accuracy = both(built(small_gpt(weights, dropout=0.3), learn, held_out, epochs=2, batch=4, lr=1e-3, seed=3))
    tokens, mask = pad(answers(learn), "right")
    return {"first": model(tokens, mask), "again": model(tokens, mask), "one": model(tokens[:1], mask[:1]), "share": accuracy}


def judge_shape(output, learn, **_):
    first, again = output["first"], output["again"]
    fault = scores_fault(first, 2 * len(learn)) or scores_fault(output["one"], 1)
    if not fault and (first - again).abs().max() > NEAR:
        fault = (
            f"asked twice for the same answers it gives rewards that are up to {(first - again).abs().max():.2f} apart: "
            "dropout is still on; return the model in evaluation mode"
        )
    if not fault and not 0 <= output["share"] <= 1:
        fault = f"the accuracy is {output['share']:.3g}; it is the share of held-out pairs that are right, between 0 and 1"
    return fault


# ----------------------------------------------------------------------------------------- padding never matters


def draw_padding(generator):
    given = compared(generator, shortest=2)
    given["learn"][2][1][-1] = given["learn"][3][0][0] = 0  # a real token 0
    return {**given, "behind": [torch.randint(TOKENS, (size,), generator=generator).tolist() for size in (1, 4, 11)] + [[0] * 6]}


def train_and_pad(built, learn, held_out, weights, behind):
    """The rewards of each answer by itself, of all in one batch, and with other tokens behind that the mask leaves out."""
    model, _ = both(built(small_gpt(weights), learn, held_out, epochs=4, batch=8, lr=1e-2, seed=3))
    return padded_scores(model, answers(learn), behind)


def judge_padding(output, learn, behind, **_):
    harm = "the longer answer of a pair would be compared with another number"
    return padding_fault(output, 2 * len(learn), behind, "an answer", "reward", "the comparisons", harm)


# ----------------------------------------------------------------------------------------- the last real token


def draw_last(generator):
    """Comparisons in which the last token decides, and all others say the opposite."""
    good, bad, *others = torch.randperm(TOKENS, generator=generator).tolist()
    pairs = [[[bad] * whole(generator, 1, 4), [bad] * whole(generator, 1, 7) + [good],
              [good] * whole(generator, 1, 7) + [bad]] for _ in range(32)]  # fmt: skip
    starts = [[], [good], [bad], [bad, bad, good], others[:5], others[5:14]]
    return {"learn": pairs, "starts": starts, "good": good, "bad": bad, "weights": whole(generator, 0, 10**6)}


def train_on_last(built, learn, starts, good, bad, weights):
    model, _ = both(built(Words(8, weights), learn, learn[:4], epochs=12, batch=8, lr=1e-2, seed=3))
    return {token: scores(model, [start + [end] for start in starts]) for token, end in (("good", good), ("bad", bad))}


def judge_last(output, starts, **_):
    for z in (output["good"], output["bad"]):
        fault = scores_fault(z, len(starts))
        if fault:
            return fault
    spread = max((z.max() - z.min()).item() for z in output.values())
    if not spread <= NEAR:
        return (
            f"two answers with one last token get rewards that are {spread:.2f} apart, from a body that reads every token by "
            "itself: the reward is made of other positions (the one before the last, a mean of all). Take the state at the last "
            "real token alone"
        )
    if not output["good"].mean() > output["bad"].mean():
        return (
            "the last token alone decides who wins, and after training the worse one has the higher reward: is the margin "
            "chosen - rejected, and does every prompt stand with its own answers?"
        )
    return ""


# ----------------------------------------------------------------------------------------- only the difference counts


def draw_odds(generator):
    """Answers a and b to three prompts, and c, d and e to others; a beats b four times in five, c beats d, and d beats e."""
    *prompts, a, b, c, d, e = torch.randperm(TOKENS, generator=generator)[:8].tolist()
    met = [(prompts[0], a, b), (prompts[1], a, b), (prompts[2], a, b), (prompts[0], c, d), (prompts[1], d, e)]
    pairs = [[[prompt], *sides] for prompt, x, y in met for sides in [([x], [y])] * 4 + [([y], [x])]]
    return {"learn": pairs, "answers": [a, b, c, d, e], "weights": whole(generator, 0, 10**6)}


def train_on_odds(built, learn, answers, weights):
    model, _ = both(built(Words(8, weights), learn, learn[:2], epochs=150, batch=25, lr=2e-2, seed=3))
    return scores(model, [learn[0][0] + [answer] for answer in answers])


def judge_odds(output, **_):
    fault = scores_fault(output, 5)
    if fault:
        return fault
    a, b, c, d, e = output.tolist()
    margin, right = a - b, math.log(4)
    chain = abs(c - d - right) < 0.2 and abs(d - e - right) < 0.2
    said = f"one answer wins four times in five, and the margin comes out as {margin:.2f}; ln 4 = {right:.2f} would be right"
    if abs(margin - right) < 0.15 and not chain:
        return (
            "of three answers the first beats the second, and that one the third, four times in five each; the margins come out "
            f"as {c - d:.2f} and {d - e:.2f}; ln 4 = {right:.2f} is right for both. Does the training not come to rest? Or are a "
            "pair's rewards set against those of other pairs? A constant added to one pair's two must change nothing"
        )
    if abs(margin - right) < 0.15:
        return ""
    if abs(margin - 2 * right) < 0.3:
        return (
            f"{said}: each answer is judged by itself, chosen against 1 and rejected against 0, or against those of other pairs. "
            "Only the difference of a pair's two counts: a constant added to both rewards must change nothing"
        )
    if max(abs(one - 1) for one in (margin, c - d, d - e)) < 0.2:
        return f"{said}: a hinge loss stops at a margin of 1; Bradley-Terry is -log sigmoid(margin)"
    if abs(margin + right) < 0.15:
        return f"{said}: the sides are exchanged; chosen - rejected should be large"
    return f"{said}: the loss is not -log sigmoid(chosen - rejected) of each pair, or the training does not come to rest"
