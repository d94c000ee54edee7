"""Probes of a whole pretraining run: one that is killed and goes on, also while it saves, and one that reads Shakespeare."""

import contextlib
import functools
import io
import math
import os
import tempfile
from pathlib import Path
from unittest import mock

import torch

from rlhf_lib import corpus
from rlhf_lib.exercises.build import tick
from rlhf_lib.exercises.observed import Observed, Past, Stopped, draw_text, run, weights_of
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.trainers.pretrain import evaluate


# ----------------------------------------------------------------------------------------- stop and go on
def run_resume(pretrain, tokens, held_out, start, dropout):
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, place, seed, kill in (
            ("whole", "one", 0, 99), ("killed", "two/deep", 0, 7), ("resumed", "two/deep", 1, 99), ("again", "two/deep", 2, 99)
        ):  # fmt: skip

            def upset(step, logits, kill=kill):
                if step == kill:
                    raise Stopped
                return logits

            torch.manual_seed(0 if name in ("whole", "killed") else 100 + seed)
            model, records = Observed(Past(start + seed, dropout), upset=upset), None
            model.train(name != "again" or dropout > 0)
            came = model.training
            try:
                records = run(pretrain, model, tokens, held_out, 12, every=4, folder=str(Path(folder) / place))
            except Stopped:
                found["files"] = files_in(Path(folder) / place)
            found[name] = {"records": records, "end": weights_of(model), "steps": len(model.steps())}
            found[name]["mode"] = model.training == came
    return found


def files_in(folder):
    """Each file's name, and whether torch.load reads it with weights_only=True; text files are left alone."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".json", ".jsonl", ".txt", ".csv", ".safetensors"):
            try:
                torch.load(path, weights_only=True)
                found.setdefault(path.name, True)
            except Exception:
                found[path.name] = False
    return found


def draw_resume(generator):
    return {**draw_text(generator), "dropout": 0.0}


def draw_resume_dropout(generator):
    return {**draw_text(generator), "dropout": 0.5}


def judge_resume(output, tokens, held_out, start, dropout):
    whole, resumed, again = (output[name] for name in ("whole", "resumed", "again"))
    if not output.get("files"):
        return "with `folder` and every=4, a run that is killed at step 7 has left no file of its state there"
    for name, loads in output["files"].items():
        if not loads:
            return f"{name} cannot be read by torch.load(weights_only=True): keep tensors, numbers, dicts and lists alone"
    if resumed["steps"] == 9:
        return "killed at step 7 of 12 and called again, it takes step 4 once more, which the state of step 4 has in it already"
    if resumed["steps"] > 8:
        return f"killed at step 7 of 12 and called again, it takes {resumed['steps']} steps: it begins anew, not behind step 4"
    numbers = [one["step"] for one in resumed["records"]]
    if numbers != list(range(1, 13)):
        return f"called again, it returns the steps {numbers}; the list is that of the whole run, 1 to 12, each once"
    pairs = zip(whole["records"], resumed["records"])
    other = next((one["step"] for one, two in pairs if one != two), 0)
    first = 13 - resumed["steps"]  # the first step that was taken after the stop
    if other and other < first:
        return f"the record of step {other}, before the stop, is not what it was"
    if other or not torch.equal(whole["end"], resumed["end"]):
        if dropout:
            return f"with dropout the resumed run differs from step {other or 12} on: other features are dropped"
        if other == first:
            return (
                f"the loss of step {other}, the first after the stop, differs: other weights or other windows than without a stop"
            )
        return (
            f"the loss of step {first}, the first after the stop, is the same, and then the runs part: the optimiser's moments "
            "and step count are lost, or the schedule begins anew"
        )
    if again["steps"] or again["records"] != whole["records"]:
        return "called once more when all 12 steps are done, it trains again; there is nothing left to do but return the list"
    if not torch.equal(again["end"], whole["end"]):
        return "called once more when all 12 steps are done, it leaves the model's weights as they came: load them"
    if not again["mode"]:
        return "called once more when all 12 steps are done, the model goes back in another mode than it came in: put it back"
    return ""


# ----------------------------------------------------------------------------------------- what is saved, and when
def run_saving(pretrain, tokens, held_out, start):
    """12 steps with every=5: called again when they are done; stopped half way through the first save behind step 10; and
    stopped where a new file is about to be put in the place of the old one.
    """
    found, write = {}, torch.save
    moves = {name: getattr(os, name) for name in ("replace", "rename")}
    with tempfile.TemporaryDirectory() as folder:
        for name, place, seed in (
            ("whole", "one", 0), ("again", "one", 1), ("cut", "two", 0), ("resumed", "two", 1),
            ("between", "three", 0), ("after between", "three", 1),
        ):  # fmt: skip
            model, records, error = Observed(Past(start + seed)), None, ""

            def half(state, file, *more, model=model, **named):
                if model.taken < 10:
                    return write(state, file, *more, **named)
                write(state, whole := io.BytesIO())
                part = whole.getvalue()[: whole.tell() // 2]
                file.write(part) if hasattr(file, "write") else Path(file).write_bytes(part)
                raise Stopped

            def moved(how, *given, model=model, **named):
                if model.taken >= 10:
                    raise Stopped
                return moves[how](*given, **named)

            changes = {how: functools.partial(moved, how) if name == "between" else moves[how] for how in moves}
            try:
                with mock.patch.object(torch, "save", half if name == "cut" else write), mock.patch.multiple(os, **changes):
                    records = run(pretrain, model, tokens, held_out, 12, every=5, folder=str(Path(folder) / place))
            except Exception as one:  # a stop, or a file that cannot be read: which one is what is judged
                error = type(one).__name__
            found[name] = {"records": records, "end": weights_of(model), "steps": len(model.steps()), "error": error}
    return found


def judge_saving(output, tokens, held_out, start):
    whole, again, cut, resumed, after = (output[name] for name in ("whole", "again", "cut", "resumed", "after between"))
    if whole["error"] or again["error"]:
        return f"12 steps with every=5, and the same call once more, raise {whole['error'] or again['error']}"
    if whole["steps"] != 12:
        return f"in 12 steps the model learned from {whole['steps']} batches"
    if again["steps"]:
        return (
            f"after 12 steps with every=5 the same call takes {again['steps']} steps again: the state after the last step is to "
            "be saved too, also where `every` does not hit it"
        )
    if cut["error"] != "Stopped":  # it saves in another way than by torch.save
        return ""
    if resumed["error"] or resumed["steps"] == 12:
        what = f"raises {resumed['error']}" if resumed["error"] else "begins anew"
        return (
            f"stopped while it saves the state of step 10, it {what} when it is called again: the half file stands where the "
            "state of step 5 stood. Write it under another name, then let Path.replace put it in the old one's place"
        )
    if resumed["records"] != whole["records"] or not torch.equal(resumed["end"], whole["end"]):
        return "stopped while it saves the state of step 10, it goes on differently than without a stop"
    if output["between"]["error"] == "Stopped" and (after["error"] or after["steps"] == 12):
        what = f"raises {after['error']} when it is called again" if after["error"] else "begins anew"
        return (
            f"stopped between writing the new state and putting it in the old one's place, it {what}: the old file was "
            "removed first. Path.replace puts the new one in its place in one step, and needs no unlink"
        )
    return ""


# ----------------------------------------------------------------------------------------- another device
def run_elsewhere(pretrain, tokens, held_out, start):
    """Where the first batch lies when the weights lie on "meta", a device of shapes without numbers, where nothing can train."""
    places = []

    def look(model, given):
        places.append(given[0].device.type)
        raise Stopped

    model = Past(start).to("meta")
    model.register_forward_pre_hook(look)
    with contextlib.suppress(Stopped, NotImplementedError, RuntimeError):  # what only such a device refuses is no fault
        run(pretrain, model, tokens, held_out, 1)
    return places


def judge_elsewhere(output, tokens, held_out, start):
    if not output:
        return "the model was never called"
    if output[0] != "cpu":
        return ""
    return (
        "the weights are on another device and the windows stay on the CPU: on a GPU it stops at the first step. Move each "
        "batch, and the held-out text, to next(model.parameters()).device"
    )


# ----------------------------------------------------------------------------------------- Shakespeare
READ, HELD, STEPS, BITS = 300_000, 10_000, 500, 3.4  # characters to train on and to hold out, steps, and what is to be reached
SHAPE = {"context": 32, "layers": 2, "heads": 4, "width": 96}


@functools.lru_cache(maxsize=1)
def characters():
    """The plays as numbers (N,), one a character, and how many different ones there are."""
    text = "\n\n".join(corpus.load("plays")["text"])
    known = {one: place for place, one in enumerate(sorted(set(text)))}
    return torch.tensor([known[one] for one in text]), len(known)


def draw_reading(generator):
    return {"start": torch.randint(4_000_000, (1,), generator=generator).item()}


def run_reading(pretrain, start):
    text, vocabulary = characters()
    tokens, held_out = text[start : start + READ], text[start + READ : start + READ + HELD]
    torch.manual_seed(start)
    model, done = GPT(GPTConfig(vocab_size=vocabulary, **SHAPE)), [0]

    def count(module, *_):
        done[0] += module.training
        tick(done[0] / STEPS, f"step {done[0]} of {STEPS}")

    model.register_forward_pre_hook(count)
    pretrain(model, tokens, held_out, steps=STEPS, batch=32, context=SHAPE["context"], lr=0.006, warmup=20, seed=start, every=100)
    return dict(model.state_dict())


def judge_reading(output, start):
    text, vocabulary = characters()
    model = GPT(GPTConfig(vocab_size=vocabulary, **SHAPE))
    model.load_state_dict(output)
    unseen = text[start + READ + HELD : start + READ + 4 * HELD]  # neither trained on nor held out
    bits = evaluate(model, unseen, len(unseen) - 1)["bits_per_char"]
    if not bits <= BITS:  # no number is not below it either
        return (
            f"after {STEPS} steps the model pays {bits:.2f} bits per character of unseen text; a sound loop gets below {BITS} "
            f"(all characters alike: {math.log2(vocabulary):.1f}; by frequency: 4.8; by pairs: 3.6)"
        )
    return ""
