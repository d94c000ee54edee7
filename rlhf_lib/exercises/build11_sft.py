"""Build it 11.12: supervised fine-tuning on packed conversations, judged on tiny ones."""

import random

import numpy as np
import torch

from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.tiny_chat import (
    ASSISTANT,
    BEGIN,
    COUNTED,
    TOKENS,
    USER,
    WORDS,
    draw_visits,
    drawn,
    filled,
    first_step,
    flags,
    losses,
    mean_of_means,
    numbered,
    tiny,
    truth,
    turns,
    unshifted,
    watch,
    whole,
)  # fmt: skip


def form(found, epochs):
    """What is wrong with the list of held-out losses; "" if nothing is."""
    if not isinstance(found, list) or not all(isinstance(one, float) and one == one for one in found):
        return "it should return a list of floats, the held-out losses (.item() makes a float of a tensor)"
    if len(found) != epochs + 1:
        return f"it returns {len(found)} held-out losses; one before training and one after each epoch are {epochs + 1}"
    return ""


USUAL = {"epochs": 2, "row": 40, "batch": 2, "lr": 3e-3, "seed": 3}


# ----------------------------------------------------------------------------------------- the loss that it says


def run_losses(train_sft, learn, held_out, weights):
    held_out = [(tokens, [True, *spoken[1:]]) for tokens, spoken in held_out]  # nothing in it predicts its first token
    model = tiny(weights, dropout=0.3).train()
    pairs = list(zip(losses(model, held_out), flags(held_out)))
    guesses = {name: torch.cat([loss[pick(said)[1:]] for loss, said in pairs]).mean().item() for name, pick in COUNTED.items()}
    guesses["mean of means"] = mean_of_means(pairs)
    guesses["sum"] = sum(loss[spoken[1:]].sum().item() for loss, spoken in pairs)
    read = zip(unshifted(model, held_out), held_out)
    guesses["unshifted"] = torch.cat([loss[torch.tensor([False, *said[1:]])] for loss, (_, said) in read]).mean().item()
    found = train_sft(model.train(), learn, held_out, **USUAL)
    training, after = model.training, truth(model, held_out)
    of_means = mean_of_means(zip(losses(model, held_out), flags(held_out)))
    return {"training": training, "found": found, "guesses": guesses, "after": [after, of_means]}


MEANS = {
    "all": "the user's words and the layout count too: only the assistant's tokens do",
    "late": "`spoken[t]` says whether token t is the assistant's, and token t is predicted from t - 1: the first word of an "
            "answer is left out, and what stands behind its end counts",
    "no end": "the end of the turn is left out: the assistant says it, and has to learn it",
    "no first": "the first word of every answer is left out: the assistant says it too, and it is predicted from the last token "
                "of the template before it",
    "behind": "what stands behind the end of the turn counts too, the template's last token: the assistant's last is the end",
    "before": "the template's token before an answer counts too: it asks the assistant to speak, and nobody in the conversation "
              "says it",
    "user": "the tokens that count are those that the assistant does not say",
    "mean of means": "each conversation (or row) counts the same, however long its answers are: take the mean over all tokens",
    "unshifted": "the logits at t are asked for token t itself, which they have read: they predict token t + 1. Training on that "
                 "teaches it to repeat what it has just read",
    "sum": "this is a sum; the mean over the tokens does not depend on how many there are",
}  # fmt: skip


def judge_losses(output, **_):
    found, right = output["found"], output["guesses"]["right"]
    if fault := form(found, USUAL["epochs"]):
        return fault
    if abs(found[0] - right) > 1e-3 * right:
        said = f"before training it says {found[0]:.3f} nats on the held-out conversations, and {right:.3f} is right"
        for name, meaning in MEANS.items():
            if abs(found[0] - output["guesses"][name]) <= 1e-4 * right:
                return f"{said}: {meaning}"
        return f"{said}: is dropout on where it measures, does one conversation see another, or is its first token a target?"
    if output["training"]:
        return "the model is in training mode afterwards: leave it in evaluation mode, where dropout is off"
    after, of_means = output["after"]
    if abs(found[-1] - after) > 1e-3 * right:
        why = "measure after the epoch's last step, in evaluation mode; train the model itself, and no copy"
        why = MEANS["mean of means"] if abs(found[-1] - of_means) <= 1e-4 * right else why
        return f"the last loss is {found[-1]:.3f} nats, and the model as it was left has {after:.3f}: {why}"
    return ""


# ----------------------------------------------------------------------------------------- what it learns from


def draw_habits(generator):
    """The user always says one word, the assistant another; each answer ends, and a line break follows."""
    asked, answered = (WORDS[0] + torch.randperm(len(WORDS), generator=generator)[:2]).tolist()
    some = [turns((USER, [asked] * whole(generator, 3, 6)), (ASSISTANT, [answered] * whole(generator, 1, 4))) for _ in range(24)]
    return {"learn": some, "held_out": some[:4], "weights": whole(generator, 0, 10**6)}


def by_kind(model, some):
    """The mean loss of the user's words, the first word of an answer, the end of it, and of the line break behind it."""
    found = {"question": [], "first": [], "end": [], "behind": []}
    for loss, spoken in zip(losses(model, some), flags(some)):
        first, last = int(spoken.int().argmax()), len(spoken) - 2
        found["question"].append(loss[2 : first - 5].mean())  # the second word to the last
        found["first"].append(loss[first - 1])
        found["end"].append(loss[last - 1])
        found["behind"].append(loss[last])
    return {name: torch.stack(some).mean().item() for name, some in found.items()}


def run_habits(train_sft, learn, held_out, weights):
    model = tiny(weights, spread=0.05)
    before = by_kind(model, learn)
    train_sft(model, learn, held_out, epochs=16, row=60, batch=4, lr=5e-3, seed=3)
    return {"before": before, "after": by_kind(model, learn)}


def judge_habits(output, **_):
    left = {name: output["after"][name] / output["before"][name] for name in output["before"]}
    if left["question"] < 0.7:
        return (
            "what users say has become likelier: the loss counts their words too. It is for the assistant's tokens alone, "
            "those with `spoken` True"
        )
    behind, first = left["behind"] < 0.7, left["first"] > 0.5
    if behind and first:
        return (
            "what stands behind an answer is learned, and its first word is not: the targets are one place off. Token t is "
            "predicted by the logits at t - 1, and `spoken[t]` belongs to token t"
        )
    if first and left["end"] > 0.5:
        return "neither an answer's first word nor its end is learned: do the steps reach the model, is `lr` the rate's height?"
    if first:
        return (
            "the first word of an answer is not learned: `spoken` is True there too, and the logits that predict it are those at "
            "the last token of the template before it"
        )
    if behind:
        return (
            "what stands behind the end of an answer is learned, the template's last token: the assistant's last is the end of "
            "its turn, and `spoken` is False behind it"
        )
    if left["end"] > 0.9:
        return "the end of the assistant's turn is not learned: it would talk on for ever. `spoken` is True there too"
    if left["end"] > 0.5:
        return f"it learns too slowly, the end of a turn has {left['end']:.0%} of its loss left: is `lr` the rate's height?"
    return ""


# ----------------------------------------------------------------------------------------- rows


def run_rows(train_sft, learn, held_out, weights):
    """One step an epoch: whatever the row's length is, it is made of the same tokens. And what the first step learns from."""
    longest, found = max(len(tokens) for tokens, _ in [*learn, *held_out]), []
    for row in (longest, 96):
        model = tiny(weights)
        train_sft(model, learn, held_out, epochs=3, row=row, batch=1000, lr=1e-2, seed=3)
        found.append(torch.cat(losses(model, held_out)))
    start = torch.cat(losses(tiny(weights), held_out))
    settings = {**USUAL, "batch": 1000, "epochs": 1}
    learn = [(tokens, [True, *spoken[1:]]) for tokens, spoken in learn]  # of those in a row too nothing predicts the first token
    step = first_step(tiny(weights), learn, lambda model: train_sft(model, learn, held_out, **settings))
    return {"apart": (found[0] - found[1]).abs().mean().item(), "moved": (found[0] - start).abs().mean().item(), "step": step}


def judge_rows(output, **_):
    if output["moved"] < 0.01:
        last = "Is an epoch's last batch a step, though it may be smaller?"
        return f"three steps at a rate of 0.01 change the losses by {output['moved']:.4f} nats: nothing is learned. {last}"
    if output["apart"] <= 0.02 * output["moved"]:
        step = output["step"]
        if step["right"] <= 0.02:
            return ""
        name = min(step, key=step.get)
        other = "it is the mean of -log p over all targets of the step; a conversation's first token is none, wherever it stands"
        why = MEANS.get(name) if step[name] <= 0.02 else other
        return f"what a step learns from is another loss than the one that is measured: {why}"
    return (
        f"with short rows it learns something else than with long ones, though every step has all conversations: the losses are "
        f"{output['apart']:.3f} nats apart. Conversations that share a row see each other (give the model the numbers of the "
        "texts, not a mask of what is padding), or rows count the same however much is said in them: take one mean over a step"
    )


def run_visits(train_sft, learn, held_out, weights):
    model = tiny(weights)
    seen = watch(model)
    given = [(list(tokens), list(spoken)) for tokens, spoken in learn]
    train_sft(model, learn, held_out, epochs=3, row=48, batch=3, lr=1e-3, seed=3)
    lists = given != [(list(tokens), list(spoken)) for tokens, spoken in learn]
    return {**seen, "lists": lists, "filled": filled(train_sft, weights)}


def judge_visits(output, learn, **_):
    steps, size = output["steps"], sum(len(tokens) for tokens, _ in learn)
    if output["lists"]:
        return "the lists of tokens are others after the training: build rows of their own"
    if not steps:
        return "the model's `embedding` never read anything with gradients on: nothing is trained"
    width, height = max(step.shape[1] for step in steps), max(step.shape[0] for step in steps)
    if width > 48 or height > 3:
        return f"a step has {height} rows of {width} tokens; `batch` is 3 rows, and `row` 48 tokens at most"
    text = [token for step in steps for row in step.tolist() for token in row]
    firsts = [text[place + 2] for place in range(len(text) - 2) if text[place : place + 2] == [BEGIN, USER]]
    names = [tokens[2] for tokens, _ in learn]
    epochs = [firsts[23 * place : 23 * (place + 1)] for place in range(3)]
    if len(firsts) != 69 or any(sorted(epoch) != sorted(names) for epoch in epochs):
        return (
            f"in 3 epochs of 23 conversations {len(firsts)} are learned from: each epoch has every conversation once, whole, "
            "the last incomplete row and batch too"
        )
    begun = [sum(row[place : place + 2] == [BEGIN, USER] for place in range(48)) for step in steps for row in step.tolist()]
    if max(begun) == 1:
        return "every row has one conversation alone: put several into a row, as long as they fit"
    if output["filled"] < 2:
        return "two conversations that fill a row to its last token do not share it: a row may have all of its `row` tokens"
    if len({tuple(epoch) for epoch in epochs}) < 3:
        return "two epochs have the conversations in one order: draw a new one for each"
    if sum(step.numel() for step in steps) > 1.6 * 3 * size:
        share = 1 - 3 * size / sum(step.numel() for step in steps)
        return f"{share:.0%} of what it reads is padding: put several conversations into a row, as long as they fit"
    if any(not torch.equal(texts, numbered(rows, learn)) for rows, texts in output["texts"]):
        return (
            "`texts` numbers the conversations of each row from 1, their own tokens alone: padding is 0, and so is nothing else"
        )
    if not all(output["modes"]):
        return "the model is in evaluation mode while it learns, where dropout does nothing: call train() before the steps"
    if sum(output["alone"]) == 1 < len(output["alone"]):
        return "gradients add up from step to step: set them to zero behind each step (zero_grad)"
    return ""


# ----------------------------------------------------------------------------------------- what is trained, and the seed


def run_frozen(train_sft, learn, held_out, weights):
    model = tiny(weights)
    model.blocks[0].requires_grad_(False)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    asked = [one.requires_grad for one in model.parameters()]
    train_sft(model, learn, held_out, **USUAL)
    moved = {name: not torch.equal(before[name], one) for name, one in model.named_parameters()}
    return {"moved": moved, "asked": asked == [one.requires_grad for one in model.parameters()]}


def judge_frozen(output, **_):
    low = [name for name, moved in output["moved"].items() if moved and name.startswith("blocks.0.")]
    if low or not output["asked"]:
        return (
            f"{low[0] if low else 'a parameter'} was frozen and is not any more: give the optimiser those parameters that "
            "require a gradient, and leave requires_grad as it is (the base under an adapter is not to move)"
        )
    still = [name for name, moved in output["moved"].items() if not moved and not name.startswith("blocks.0.")]
    if still:
        return f"{still[0]} requires a gradient and did not move: train the model that came in, all of it that is not frozen"
    return ""


def run_seeds(train_sft, learn, held_out, weights):
    def result(globally, seed=3, lr=1e-3):
        torch.default_generator.manual_seed(globally)
        random.seed(globally)
        np.random.seed(globally)
        model = tiny(weights, dropout=0.2)
        train_sft(model, learn, held_out, **{**USUAL, "seed": seed, "lr": lr})
        return torch.cat(losses(model, held_out))

    once = result(1)
    others = {"again": result(2), "other seed": result(2, seed=4), "other rate": result(2, lr=3e-3)}
    return {name: (one - once).abs().max().item() for name, one in others.items()}


def judge_seeds(output, **_):
    if not output["again"] <= 1e-5:
        return (
            f"two trainings with one seed end {output['again']:.3f} nats apart: something is drawn from the global generator. "
            "The order comes from a generator with this seed; for dropout, which takes none, call torch.manual_seed(seed) first"
        )
    for what in ("other seed", "other rate"):
        if output[what] <= 1e-5:
            return f"an{what} ends in the very same model: it is not used"
    return ""


# ----------------------------------------------------------------------------------------- training


def draw_task(generator):
    """The user says three words, the assistant says them backwards."""

    def some(count):
        asked = [[whole(generator, WORDS[0], TOKENS) for _ in range(3)] for _ in range(count)]
        return [turns((USER, one), (ASSISTANT, one[::-1])) for one in asked]

    return {"learn": some(1200), "held_out": some(60), "weights": whole(generator, 0, 10**6), "epochs": 8}


def run_task(train_sft, learn, held_out, weights, epochs):
    model, steps = tiny(weights, width=48, spread=0.05), []
    total = epochs * sum(len(tokens) for tokens, _ in learn) / (8 * 60)

    def seen(*_):
        if torch.is_grad_enabled():
            steps.append(None)
            tick(len(steps) / total, f"step {len(steps)} of about {total:.0f}")

    model.embedding.register_forward_hook(seen)
    found = train_sft(model, learn, held_out, epochs=epochs, row=60, batch=8, lr=5e-3, seed=3)
    return {"found": found, "state": model.state_dict()}


def judge_task(output, learn, held_out, weights, epochs):
    model = tiny(weights, width=48, spread=0.05)
    first = truth(model, held_out)
    model.load_state_dict(output["state"])
    last = truth(model, held_out)
    if last < 0.3 * first:
        return form(output["found"], epochs)
    return (
        f"on conversations that it has not seen the loss falls from {first:.2f} to {last:.2f} nats a token only; a good build "
        f"gets below {0.3 * first:.2f}. A rate that rises over the first steps and falls to 0 towards the end helps, and a "
        "limit on the gradient's norm"
    )


train_sft = Build("11.12", "train_sft", [
    Probe("says its held-out loss", drawn(), run_losses, judge_losses),
    Probe("learns what the assistant says", draw_habits, run_habits, judge_habits),
    Probe("no conversation sees another", drawn(), run_rows, judge_rows),
    Probe("every conversation once an epoch, in full rows", draw_visits, run_visits, judge_visits),
    Probe("what is frozen stays frozen", drawn(), run_frozen, judge_frozen),
    Probe("the seed alone decides", drawn(), run_seeds, judge_seeds),
    Probe("answers what it has not seen", draw_task, run_task, judge_task, seconds=300),
])  # fmt: skip
