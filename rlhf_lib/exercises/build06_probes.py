"""What Build it 6.10 is tried with, and its first four probes: the shape of what comes out, padding, reading, and the GPT."""

import copy

import torch
from torch import nn

from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.layers import pad

NEAR = 1e-5  # how far two scores of one passage may be apart
TOKENS = 40  # the vocabulary of the small bodies


# ----------------------------------------------------------------------------------------- bodies to build upon, and scores


class Read(GPT):
    """A GPT that tells of every batch that it reads: `seen` is called with it and the mask."""

    def hidden(self, tokens, mask=None, *more, **named):
        self.seen(self, mask)
        return super().hidden(tokens, mask, *more, **named)


def small_gpt(seed, width=16, dropout=0.0, kind=GPT):
    """A GPT with weights drawn from `seed`, so large that what stands before a token matters."""
    model = kind(GPTConfig(vocab_size=TOKENS, context=32, layers=2, heads=2, width=width, dropout=dropout))
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
        return f"the scores have the shape ({count}, 1): take the last dimension away, or a loss may pair each with all targets"
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
            f"asked twice for the same passages it gives scores that are up to {(first - again).abs().max():.2f} apart: "
            "dropout is still on; return the model in evaluation mode"
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
    return padded_scores(built(small_gpt(weights), rows, targets, epochs=6, batch=8, lr=1e-2, seed=3), rows, behind)


def padded_scores(model, rows, behind):
    found = {"alone": alone(model, rows), "together": scores(model, rows), "padded": []}
    for extra in behind:
        pairs = [(torch.tensor([row + extra]), torch.arange(len(row + extra))[None] < len(row)) for row in rows]
        with torch.no_grad():
            found["padded"].append(torch.cat([model(*pair) for pair in pairs]))
    return found


def judge_padding(output, rows, behind, **_):
    return padding_fault(
        output, len(rows), behind, "a passage", "score", "its labels", "in another batch it would be paid another reward"
    )


def padding_fault(output, count, behind, one, score, source, harm):
    """What padding changes, in the words of an exercise: `one` has a `score`, learned from `source`, and a change does `harm`."""
    own = output["alone"]
    fault = scores_fault(own, count)
    if fault:
        return fault
    if own.max() - own.min() < 1e-3:
        return f"every {one.split()[1]} has the same {score} after training: the model learns nothing from {source}"
    changes = [(found - own).abs().max().item() for found in output["padded"]]
    for extra, change in zip(behind, changes):
        if not change <= NEAR:
            hint = " (with zeros there it does not: ask the mask, not the tokens, what is real)" if changes[-1] <= NEAR else ""
            return (
                f"{one}'s {score} changes by {change:.3f} with {len(extra)} padded positions behind it{hint}: {harm}. "
                "Read it at the last position where the mask is True"
            )
    change = (output["together"] - own).abs().max().item()
    return "" if change <= NEAR else f"{one}'s {score} changes by {change:.3f} with the batch that it is in: padding is read"


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
    return {
        "good": scores(model, [start + [good] for start in starts]),
        "bad": scores(model, [start + [bad] for start in starts]),
    }


def judge_last(output, starts, **_):
    for z in (output["good"], output["bad"]):
        fault = scores_fault(z, len(starts))
        if fault:
            return fault
    spread = max((z.max() - z.min()).item() for z in output.values())
    if not spread <= NEAR:
        return (
            f"two passages with one last token get scores that are {spread:.2f} apart, from a body that reads every token by "
            "itself: the score is made of other positions too (their mean, their sum, the first). Take the state at the last "
            "real token alone"
        )
    high, low = output["good"], output["bad"]
    if high.min() > 0.5 and high.max() < 1.1 and low.min() > -0.1 and low.max() < 0.5:
        return "the scores are probabilities (or were fitted to the targets by squared errors): return log-odds, 0 for even odds"
    wrong = int((high <= 0).sum() + (low >= 0).sum())
    if wrong == 2 * len(starts):
        return (
            "the last token alone says the label, and after training every passage is on the wrong side: the sides are exchanged "
            "(a target of 1 is positive), or what is read in training is not the last real token"
        )
    if wrong:
        return (
            f"the last token alone says the label, and {wrong} of {2 * len(starts)} passages are on the wrong side after "
            "training: what is read in training is not the last real token, or the rows and the targets do not belong together"
        )
    return ""


# ----------------------------------------------------------------------------------------- the GPT stays as it was


def train_beside(built, rows, targets, weights):
    return beside(weights, lambda gpt: built(gpt, rows, targets, epochs=3, batch=8, lr=1e-2, seed=3), rows, (rows, targets))


def beside(weights, train, rows, given):
    """What `train(gpt)`, which gives a model, does to a GPT in training mode, to one in evaluation mode and to the lists `given`;
    the scores of `rows` before and after the first GPT is changed."""
    gpt = small_gpt(weights).train()
    gpt.head.requires_grad_(False)
    before, lists = copy.deepcopy(gpt), copy.deepcopy(given)
    model = train(gpt)
    pairs = list(zip(before.parameters(), gpt.parameters()))
    found = {
        "weights": max((old - new).abs().max().item() for old, new in pairs),
        "frozen": any(old.requires_grad != new.requires_grad for old, new in pairs),
        "gradients": any(new.grad is not None for _, new in pairs),
        "mode": not all(one.training for one in gpt.modules()),
        "lists": lists != given,
        "scores": scores(model, rows),
    }
    for parameter in gpt.parameters():
        parameter.data += 1
    found["later"], asleep = scores(model, rows), small_gpt(weights)
    train(asleep)
    return {**found, "woken": any(one.training for one in asleep.modules())}


def judge_beside(output, **_):
    return beside_fault(output, "scores", "the lists `rows` or `targets` are others after the training: pad copies of the rows")


def beside_fault(output, what, lists):
    """What the training changed that was not its own; `what` a model gives, and the sentence on `lists`."""
    change = (output["later"] - output["scores"]).abs().max().item()
    if output["weights"]:
        return "the weights of the GPT that came in are others after the training: PPO needs it as it was. Train a copy"
    if not change <= NEAR:
        return (
            f"the {what} change by {change:.2f} when the GPT that came in is changed later: the two share weights, and PPO "
            "would move its own judge. Copy the body with copy.deepcopy"
        )
    for name, sentence in (
        ("frozen", "parameters of the GPT that came in have another requires_grad: freeze, or free, a copy"),
        ("gradients", "the GPT that came in has gradients after the training: train a copy"),
        ("mode", "the GPT that came in was in training mode and is not any more: call eval() on the copy"),
        ("woken", "the GPT that came in was in evaluation mode and is not any more: call train() on the copy"),
        ("lists", lists),
    ):
        if output[name]:
            return sentence
    return ""
