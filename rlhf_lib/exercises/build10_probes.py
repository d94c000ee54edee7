"""What Build it 10.10 is tried with, and its first three probes: the shape of what comes out, padding, and reading."""

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
            "itself: the reward is made of other positions too. Take the state at the last real token alone"
        )
    if not output["good"].mean() > output["bad"].mean():
        return (
            "the last token alone decides who wins, and after training the worse one has the higher reward: is the margin "
            "chosen - rejected, and does every prompt stand with its own answers?"
        )
    return ""
