"""Build it 3.10: the pretraining loop, judged by what it does to small models that take down every call.

A probe looks at a run from the model's side (observed.py), so how the loop is written is free.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises import pretrain_runs as runs
from rlhf_lib.exercises.build import Build, Probe
from rlhf_lib.exercises.build03_steps import draw_zeros, judge_rates, judge_spike, judge_turned, run_rates, run_spike, run_turned
from rlhf_lib.exercises.declare import Investigation
from rlhf_lib.exercises.observed import (
    BATCH,
    CONTEXT,
    VOCABULARY,
    Observed,
    Past,
    draw_text,
    path_of,
    run,
    weights_of,
    where,
)


# ----------------------------------------------------------------------------------------- the records
def run_records(pretrain, tokens, held_out, start):
    model = Observed(Past(start))
    return {"records": run(pretrain, model, tokens, held_out, 7, every=3), "calls": model.steps()}


def judge_records(output, tokens, held_out, start):
    records, calls = output["records"], output["calls"]
    if not isinstance(records, list) or not all(isinstance(one, dict) for one in records):
        return "it does not return a list of dicts, one for each step"
    if not calls:
        return "the model that is given learned from no batch: train it in place, not a copy of it"
    if len(calls) != 7:
        return f"in 7 steps the model learned from {len(calls)} batches: a step calls it once, and goes backward once"
    if [one.get("step") for one in records] != list(range(1, 8)):
        return f"the steps of the records are {[one.get('step') for one in records]}; after 7 steps they are 1 to 7, in order"
    if not all(type(one.get("loss")) is float for one in records):
        return "a record's loss is no Python float: .item() makes one, and lets go of the graph"
    for record, call in zip(records, calls):
        if call["inputs"].shape != (BATCH, CONTEXT):
            return f"the model reads {tuple(call['inputs'].shape)} tokens in a step, not (batch, context) = {(BATCH, CONTEXT)}"
        starts = where(tokens, call["inputs"])
        if min(starts) < 0:
            return "a row that the model reads is no stretch of the training tokens"
        if max(starts) + CONTEXT >= len(tokens):
            return "a window ends with the last token of the text, behind which there is no target"
        places = torch.tensor(starts)[:, None] + torch.arange(CONTEXT)  # (B, T)
        before, copied, right, further = (
            F.cross_entropy(call["logits"].flatten(0, 1), tokens[(places + ahead) % len(tokens)].flatten()).item()
            for ahead in (-1, 0, 1, 2)
        )
        if abs(record["loss"] - right) > 1e-4:
            for value, sentence in (
                (copied, "the loss is that of the tokens that the model has read: the targets are not shifted by one"),
                (before, "the loss is that of the tokens before those that the model has read: the shift goes the wrong way"),
                (further, "the loss is that of the tokens after the next: the targets are shifted twice"),
                (right / math.log(2), "the loss is in bits; cross_entropy gives nats, and nats are asked for"),
                (right * BATCH * CONTEXT, "the loss is the sum over the targets; it is their mean"),
            ):
                if abs(record["loss"] - value) < 1e-3:
                    return sentence
            return (
                f"the loss of step {record['step']} is {record['loss']:.4f}, but what the model said costs {right:.4f} "
                "nats a token: the loss is that of the step's own batch, before the weights move, against the tokens one further"
            )
    having = [one["step"] for one in records if "val_loss" in one]
    if having != [3, 6, 7]:
        return f"with every=3 and 7 steps, val_loss stands in the records of steps 3, 6 and 7; here in {having}"
    return ""


# ----------------------------------------------------------------------------------------- the windows
def run_windows(pretrain, tokens, held_out, start):
    def seen(steps=40, before=0, dropout=0.0, text=tokens, **changes):
        torch.manual_seed(before)
        model = Observed(Past(start, dropout))
        run(pretrain, model, text, held_out, steps, **{"every": 40, **changes})
        return torch.stack([call["inputs"] for call in model.steps()])

    return {
        "usual": seen(), "state": seen(12, before=5), "every": seen(12, every=2), "dropout": seen(12, dropout=0.5),
        "lr": seen(12, lr=0.5), "seed": seen(40, seed=2), "short": seen(text=tokens[: 3 * CONTEXT]),
    }  # fmt: skip


def judge_windows(output, tokens, held_out, start):
    usual = output["usual"]
    for name, sentence in {
        "state": "the windows hang on torch's global random state: draw them from a generator that (seed, step) alone seeds",
        "every": "the windows change with `every`: what is done between two steps draws from the same random numbers",
        "dropout": "the windows change when the model has dropout, which draws from the same random numbers as they",
        "lr": "the windows change with the rate",
    }.items():
        if not torch.equal(output[name], usual[:12]):
            return f"{sentence}. A resumed run, or one with another model, would read other text"
    if torch.equal(usual[0], usual[1]) or torch.equal(usual[1], usual[2]):
        return "two steps read the same windows: the step does not enter what is drawn"
    if torch.equal(output["seed"], usual):
        return "another seed reads the same windows: a second seed would tell nothing"
    starts = torch.tensor([where(tokens, rows) for rows in usual])  # (steps, batch)
    if (starts[:, 1:] == starts[:, :-1]).float().mean() > 0.5:
        return "the rows of a batch are all the same window"
    same = (output["seed"][:, None] == usual).flatten(2).all(2).nonzero() + 1  # (number, 2): steps of seed 2 and of seed 1
    if len(same) > 5:
        how = "seed + step, or seed * step, makes one number of two pairs, as if it were the same run"
        return f"seed 2 reads at step {same[0, 0]} what seed 1 reads at step {same[0, 1]}: {how}"
    if max(map(max, (where(tokens[: 3 * CONTEXT], rows) for rows in output["short"]))) < 2 * CONTEXT - 1:
        return "the last token of the text is never a target: the last window begins at len(tokens) - context - 1"
    unread = torch.ones(len(tokens), dtype=torch.bool)
    unread[starts.flatten()[:, None] + torch.arange(1, CONTEXT + 1)] = False
    tenths = [part.float().mean().item() for part in unread.chunk(10)]
    if max(tenths) > 0.9:
        place = tenths.index(max(tenths))
        return f"in 40 steps nothing from {10 * place} to {10 * place + 10} % of the text is a target: draw from all tokens"
    return ""


# ----------------------------------------------------------------------------------------- what is learned
def draw_cycle(generator):
    return {"order": torch.randperm(12, generator=generator)}


def run_cycle(pretrain, order):
    table = nn.Embedding(12, 12)  # row: what follows this token, so all that it can learn is pairs
    nn.init.zeros_(table.weight)
    run(pretrain, table, order.repeat(20), order.repeat(5), 60, lr=0.3)
    return table.weight


def judge_cycle(output, order):
    if output.abs().max() == 0:
        return "after 60 steps the weights are what they were: nothing has trained them"
    place = torch.empty_like(order)
    place[order] = torch.arange(12)
    ahead = (place[output.argmax(1)] - place) % 12  # (12,): how far ahead lies what each token is taken to be followed by
    if (ahead != 1).any() and (output.argmin(1) == order[(place + 1) % 12]).all():
        return "the model has learned to avoid what follows: the step goes up the gradient"
    if (ahead != 1).any():
        return f"12 tokens repeat in one order; after 60 steps the model knows what follows {int((ahead == 1).sum())} of them"
    return ""


# ----------------------------------------------------------------------------------------- the held-out loss
def run_held_out(pretrain, tokens, held_out, start):
    found = {}
    for mode in ("training", "evaluation"):
        model = Observed(Past(start, dropout=0.5)).train(mode == "training")
        records = run(pretrain, model, tokens, held_out, 4, every=2)
        path = path_of(model)
        found[mode] = {"records": records, "calls": model.calls, "path": path[[2, 4]], "mode after": model.training}
    return found


def judge_held_out(output, tokens, held_out, start):
    for mode, found in output.items():
        steps = [call for call in found["calls"] if call["step"]]
        looks = [call for call in found["calls"] if not call["step"]]
        if not all(call["training"] for call in steps):
            return "a step is taken in evaluation mode, without dropout: call model.train() before each step"
        if not looks:
            return "nothing has read held_out: the model was not called but to learn"
        if any(call["training"] for call in looks):
            return "dropout is on while held_out is read: the model that is measured lacks half its features"
        if any(call["graph"] for call in looks):
            return "gradients are recorded while held_out is read, which costs memory for nothing: torch.no_grad()"
        for record, weights in zip(found["records"][1::2], found["path"]):
            losses = held_out_losses(weights, start, held_out)
            right = torch.cat(losses).mean().item()
            if type(record.get("val_loss")) not in (int, float):
                return "val_loss is no Python number"
            if abs(record["val_loss"] - right) > 1e-4:
                return wrong_held_out(record, right, losses)
        if found["mode after"] != (mode == "training"):
            return f"the model came in {mode} mode and goes back in the other: leave it as it was"
    return ""


def held_out_losses(weights, start, held_out):
    """The cost (nats) of each target, in windows of CONTEXT, of which the last is shorter: a list with a tensor for each."""
    model = Past(start)
    nn.utils.vector_to_parameters(weights, model.parameters())
    with torch.no_grad():
        rows = [held_out[at : at + CONTEXT + 1] for at in range(0, len(held_out) - 1, CONTEXT)]
        return [F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="none") for row in rows]


def wrong_held_out(record, right, losses):
    for value, sentence in (
        (torch.stack([one.mean() for one in losses]).mean().item(), "every window weighs the same, and the last is shorter"),
        (torch.cat(losses[:-1]).mean().item(), "the last, shorter window is left out: the score is of the whole text"),
        (right / math.log(2), "it is in bits; nats are asked for"),
        (
            torch.cat([one[: CONTEXT - 1] for one in losses]).mean().item(),
            "every window loses a target: `context` inputs need context + 1 tokens, of which the last begins the next window",
        ),
    ):
        if abs(record["val_loss"] - value) < 1e-4:
            return f"val_loss: {sentence}"
    return (
        f"val_loss at step {record['step']} is {record['val_loss']:.4f}, but the model after that step pays {right:.4f} nats a "
        "target, each token of held_out but the first once, in windows of `context` side by side, the last one shorter"
    )


# ----------------------------------------------------------------------------------------- not a number
def run_nan(pretrain, tokens, held_out, start):
    def broken(kind, logits):
        if kind == "inf":  # all tokens but one are impossible, so nearly every target costs infinitely much
            return logits.masked_fill(torch.arange(VOCABULARY) > 0, -math.inf)
        return logits * math.nan

    found = []
    for kind, step in (("nan", 4), ("inf", 4), ("nan", 1)):

        def upset(now, logits, kind=kind, step=step):
            return broken(kind, logits) if now >= step else logits

        model = Observed(Past(start), upset=upset)
        try:
            run(pretrain, model, tokens, held_out, 6)
            raised = ""
        except Exception as error:  # which one is what is judged
            raised = "FloatingPointError" if isinstance(error, FloatingPointError) else type(error).__name__
        call = next((one for one in model.calls if one["training"] and not one["logits"].isfinite().all()), model.calls[-1])
        found.append({"raised": raised, "before": call["weights"], "after": weights_of(model), "step": step})
    return found


def judge_nan(output, tokens, held_out, start):
    for one in output:
        touched = not torch.equal(one["before"], one["after"])
        if one["raised"] not in ("", "FloatingPointError"):
            return f"the loss of step {one['step']} is not finite, and it raises {one['raised']}; FloatingPointError is asked for"
        if not one["raised"]:
            lost = "the weights are lost" if not one["after"].isfinite().all() else "nobody is told"
            return f"the loss of step {one['step']} is not finite and the run goes on; {lost}: raise FloatingPointError"
        if touched:
            return "FloatingPointError is raised, but the weights have moved first: look at the loss before backward and step"
    return ""


Build("3.10", "pretrain", [
    Probe("one record a step, in nats", draw_text, run_records, judge_records),
    Probe("seed and step draw the windows", draw_text, run_windows, judge_windows),
    Probe("learns what follows", draw_cycle, run_cycle, judge_cycle),
    Probe("measures the held-out text", draw_text, run_held_out, judge_held_out),
    Probe("the rate rises and falls", draw_zeros, run_rates, judge_rates),
    Probe("forgets old gradients", lambda generator: {}, run_turned, judge_turned),
    Probe("clips a spike", draw_text, run_spike, judge_spike),
    Probe("stops at what is not a number", draw_text, run_nan, judge_nan),
    Probe("goes on where it stopped", runs.draw_resume, runs.run_resume, runs.judge_resume),
    Probe("goes on with dropout", runs.draw_resume_dropout, runs.run_resume, runs.judge_resume),
    Probe("saves whole states", draw_text, runs.run_saving, runs.judge_saving),
    Probe("goes where the weights are", draw_text, runs.run_elsewhere, runs.judge_elsewhere),
    Probe("reads Shakespeare", runs.draw_reading, runs.run_reading, runs.judge_reading, seconds=240),
])  # fmt: skip

Investigation("3.A", "A learning-rate sweep of your own")
Investigation("3.B", "Large batches or many steps")
Investigation("3.C", "Lower it further in five minutes")
