"""Build it 3.10: the worked loop and two others pass; loops with one real mistake fail at the probe that is about it."""

import copy
import io
import math
from pathlib import Path

import nbformat
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises import find, is_record, pretrain_runs
from rlhf_lib.exercises.build import try_out
from rlhf_lib.files import write_atomic
from rlhf_lib.trainers.pretrain import Windows

NOTEBOOK = Path(__file__).resolve().parents[2] / "solutions" / "03_pretraining.ipynb"
CELLS = {cell.id: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells}
CHEAP = [name for name, probe in find("pretrain").probes.items() if probe.seconds <= 10]


def loop(*changes):
    """The worked answer, with some pieces of its text replaced, each of which stands in it once."""
    source = CELLS["pretrain"]
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    scene = {"torch": torch, "nn": nn, "F": F, "Path": Path, "math": math, "copy": copy}
    for text in (CELLS["learning_rate"], CELLS["validation_loss"], source):
        exec(text, scene)
    return scene["pretrain"]


def fault(built, probe, seed=0):
    """What a probe says of a build."""
    build = find("pretrain")
    (inputs,) = [one for one in build.draw(seed) if one["probe"] == probe]
    return build.fault(inputs, build.answer(built, inputs))


# ----------------------------------------------------------------------------------------- right builds


@pytest.mark.parametrize("seed", [7])  # the worked notebooks run seed 0
def test_the_worked_loop_reads_shakespeare(seed):
    assert fault(loop(), "reads Shakespeare", seed) == ""


def by_epochs(model, tokens, held_out, *, steps, batch, context, lr, warmup, seed, folder=None, every=50):
    """Windows that never overlap, Adam under a cosine by torch's scheduler, the random state kept, one window at a time."""
    was, log = model.training, []
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def factor(step):
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    windows = Windows(tokens, context, batch, seed)
    torch.manual_seed(seed)
    path = folder and Path(folder, "run.pt")
    if path and path.exists():
        kept = torch.load(path, weights_only=True)
        for one, state in zip((model, optimizer, schedule), kept["parts"]):
            one.load_state_dict(state)
        log = kept["log"]
        torch.set_rng_state(kept["random"])
    while len(log) < steps:
        model.train()
        inputs, targets = (part.to(next(model.parameters()).device) for part in windows[len(log)])
        loss = -model(inputs).log_softmax(2).gather(2, targets[..., None]).mean()
        optimizer.zero_grad()
        number = loss.item()
        if not math.isfinite(number):
            raise FloatingPointError("not finite")
        loss.backward()
        gradients = [weight.grad for weight in model.parameters()]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        for gradient in gradients:
            gradient.mul_(min(1.0, 1.0 / norm.item()))
        optimizer.step()
        schedule.step()
        log.append({"step": len(log) + 1, "loss": number})
        if len(log) % every == 0 or len(log) == steps:
            model.eval()
            nats, unread = [], held_out.to(next(model.parameters()).device)
            with torch.no_grad():
                for at in range(0, len(held_out) - 1, context):
                    row = unread[at : at + context + 1]
                    nats.append(F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="none"))
            log[-1]["val_loss"] = torch.cat(nats).mean().item()
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                parts, whole = [one.state_dict() for one in (model, optimizer, schedule)], io.BytesIO()
                torch.save({"parts": parts, "log": log, "random": torch.get_rng_state()}, whole)
                write_atomic(path, whole.getvalue())
    model.train(was)
    return log


ALTERNATIVES = {"pretrain": by_epochs}


@pytest.mark.parametrize("seed", [7])  # the worked notebooks run seed 0
def test_a_loop_of_another_make_passes_the_cheap_probes(seed):
    assert try_out(find("pretrain"), by_epochs, seed, most=10) == ("", "")


def test_the_loop_of_plain_momentum_passes_the_cheap_probes():
    sgd = "optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.8)"
    plain = loop(("optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)", sgd))
    for probe in CHEAP:
        if probe not in ("the rate rises and falls", "learns what follows"):  # it takes its time: see the card
            assert fault(plain, probe) == "", probe


# ----------------------------------------------------------------------------------------- wrong builds

SEED = "number = 1_000_003 * seed + step"
DRAW = "starts = torch.randint(len(tokens) - context, (batch, 1), generator=torch.Generator().manual_seed(number))"
TARGETS = "rows[:, 1:].flatten())"
FINITE = "        if not loss.isfinite():\n"
RAISE = '            raise FloatingPointError(f"the loss of step {step + 1} is {loss.item()}: nothing was changed by it")\n'
RATE = 'group["lr"] = learning_rate(step, lr, warmup, steps)'
CLIP = "        nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"
BACK = "        loss.backward()\n"
STEP = "        optimizer.step()\n"
ZERO = "        optimizer.zero_grad()\n"
RECORD = 'records.append({"step": step + 1, "loss": loss.item()})'
OPTIMIZER = '        optimizer.load_state_dict(state["optimizer"])\n'
STATE = '{"model": model.state_dict(), "optimizer": optimizer.state_dict(), "records": records}'
REST = "        batches.append((inputs[:, whole:], targets[:, whole:]))"
WRITE = (
    '                torch.save(state, file.with_suffix(".new"))\n'
    '                file.with_suffix(".new").replace(file)  # the old state or the new one, never half of one\n'
)
MEASURE = 'records[-1]["val_loss"] = validation_loss(model, batches)'

WRONG = [
    ("one record a step, in nats", "shifted by one", [(TARGETS, "rows[:, :-1].flatten())")]),
    ("one record a step, in nats", "wrong way",
     [("model(rows[:, :-1])", "model(rows[:, 1:])"), (TARGETS, "rows[:, :-1].flatten())")]),
    ("one record a step, in nats", "shifted twice",
     [("context + 1)].to", "context + 2)].to"), ("len(tokens) - context, (b", "len(tokens) - context - 1, (b"),
      ("model(rows[:, :-1])", "model(rows[:, :-2])"), (TARGETS, "rows[:, 2:].flatten())")]),
    ("one record a step, in nats", "tokens one further", [(TARGETS, "rows[:, 1:].flip(0).flatten())")]),
    ("one record a step, in nats", "not a copy of it",
     [("    device, was_training", "    model = copy.deepcopy(model)\n    device, was_training")]),
    ("one record a step, in nats", "1 to 7", [(RECORD, RECORD.replace("step + 1", "step"))]),
    ("one record a step, in nats", "Python float", [(RECORD, RECORD.replace("loss.item()", "loss"))]),
    ("one record a step, in nats", "in bits", [(RECORD, RECORD.replace("loss.item()", "loss.item() / math.log(2)"))]),
    ("one record a step, in nats", "3, 6 and 7", [(" or step + 1 == steps:", ":")]),
    ("one record a step, in nats", "no stretch", [("rows = tokens[", "rows = held_out[: len(tokens)].repeat(9)[")]),
    ("seed and step draw the windows", "global random state", [(", generator=torch.Generator().manual_seed(number)", ""),
                                                               ("        torch.manual_seed(number)  # dropout\n", "")]),
    ("seed and step draw the windows", "does not enter", [(SEED, "number = seed")]),
    ("seed and step draw the windows", "another seed", [(SEED, "number = step")]),
    ("seed and step draw the windows", "seed 2 reads at step 1 what seed 1 reads at step 2", [(SEED, "number = seed + step")]),
    ("seed and step draw the windows", "makes one number of two pairs", [(SEED, "number = seed * step")]),
    ("seed and step draw the windows", "draw from all", [(DRAW, DRAW.replace("len(tokens)", "min(66, len(tokens))"))]),
    ("seed and step draw the windows", "the last window", [(DRAW, DRAW.replace("- context", "- context - 1"))]),
    ("seed and step draw the windows", "same window", [(DRAW, DRAW.replace("(batch, 1)", "(1, 1)") + ".repeat(batch, 1)")]),
    ("learns what follows", "nothing has trained", [(STEP, "")]),
    ("learns what follows", "up the gradient", [(BACK, "        (-loss).backward()\n")]),
    ("measures the held-out text", "dropout is on",
     [(MEASURE, "with torch.no_grad():\n                model(inputs[:, :context])\n            " + MEASURE)]),
    ("measures the held-out text", "evaluation mode", [("        model.train()\n", "")]),
    ("measures the held-out text", "last, shorter window", [(REST, "        pass")]),
    ("measures the held-out text", "every window loses a target",
     [(MEASURE, 'records[-1]["val_loss"] = validation_loss(model, [(x[:, :-1], y[:, :-1]) if x.shape[1] == context else (x, y) '
                "for x, y in batches])")]),
    ("measures the held-out text", "weighs the same",
     [(MEASURE, 'records[-1]["val_loss"] = sum(validation_loss(model, [(x[i:i+1], y[i:i+1])]) for x, y in batches '
                "for i in range(len(x))) / sum(len(x) for x, _ in batches)")]),
    ("measures the held-out text", "leave it as it was", [("    model.train(was_training)\n", "")]),
    ("the rate rises and falls", "no warm-up", [(RATE, 'group["lr"] = learning_rate(step, lr, 0, steps)')]),
    ("the rate rises and falls", "does not fall", [(RATE, 'group["lr"] = lr * min(1, (step + 1) / max(1, warmup))')]),
    ("the rate rises and falls", "no warm-up", [(RATE, "pass")]),
    ("the rate rises and falls", "ZeroDivisionError",
     [(RATE, 'group["lr"] = min(lr * (step + 1) / warmup, lr * (1 - step / steps))')]),
    ("the rate rises and falls", "three times", [(RATE, 'group["lr"] = learning_rate(step, 0.01, warmup, steps)')]),
    ("the rate rises and falls", "one before the end of a warm-up",
     [(RATE, 'group["lr"] = learning_rate(step + 1, lr, warmup, steps)')]),
    ("the rate rises and falls", "makes its optimiser anew",
     [(ZERO, "        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate(step, lr, warmup, steps))\n" + ZERO)]),
    ("forgets old gradients", "zero_grad", [(ZERO, "")]),
    ("forgets old gradients", "the model comes with something in .grad", [(ZERO, ""), (STEP, STEP + ZERO)]),
    ("clips a spike", "clipped", [(CLIP, "")]),
    ("clips a spike", "clip_grad_value_", [(CLIP, CLIP.replace("norm", "value"))]),
    ("clips a spike", "by its own norm",
     [(CLIP, "        [nn.utils.clip_grad_norm_(one, 1.0) for one in model.parameters()]\n")]),
    ("clips a spike", "clipped", [(BACK + CLIP, CLIP + BACK)]),
    ("clips a spike", "clipped", [(CLIP + STEP, STEP + CLIP)]),
    ("stops at what is not a number", "the weights are lost", [(FINITE + RAISE, "")]),
    ("stops at what is not a number", "raises ValueError", [(RAISE, RAISE.replace("FloatingPointError", "ValueError"))]),
    ("stops at what is not a number", "moved first",
     [(FINITE + RAISE, ""), (STEP, STEP + FINITE + RAISE)]),
    ("stops at what is not a number", "not finite and the run goes on",
     [(FINITE, "        if loss.isnan():\n")]),
    ("goes on where it stopped", "no file",
     [("    records, file = [], None if folder is None else Path(folder) / \"state.pt\"", "    records, file = [], None")]),
    ("goes on where it stopped", "weights_only",
     [
        (STATE, STATE.replace('"records": records', '"records": records, "file": file')),
      ("weights_only=True", "weights_only=False")]),
    ("goes on where it stopped", "begins anew", [("range(len(records), steps)", "range(steps)")]),
    ("goes on where it stopped", "step 4 once more",
     [("range(len(records), steps)", "range(max(0, len(records) - 1), steps)"),
      ('        records = state["records"]\n', '        records = state["records"]\n        begun = len(records)\n'),
      (RECORD, "records[step:] = []\n        " + RECORD)]),
    ("goes on where it stopped", "other weights", [('        model.load_state_dict(state["model"])\n', "")]),
    ("goes on where it stopped", "moments", [(OPTIMIZER, "")]),
    ("goes on where it stopped", "moments",
     [(RATE, 'group["lr"] = learning_rate(step - begun, lr, warmup, steps)'),
      ("    for step in range", "    begun = len(records)\n    for step in range")]),
    ("goes on where it stopped", "the steps",
     [('        records = state["records"]\n', '        done = len(state["records"])\n'),
      ("range(len(records), steps)", "range(done if file is not None and file.exists() else 0, steps)")]),
    ("goes on where it stopped", "in another mode than it came in",
     [("    for step in range", "    model.train()\n    if len(records) == steps: return records\n    for step in range")]),
    ("goes on with dropout", "in another mode than it came in",
     [("    for step in range", "    if len(records) == steps: return model.eval() and records\n    for step in range")]),
    ("goes on with dropout", "other features", [("        torch.manual_seed(number)  # dropout\n", "")]),
    ("saves whole states", "half file", [(WRITE, "                torch.save(state, file)\n")]),
    ("saves whole states", "half file",
     [(WRITE, "                file.unlink(missing_ok=True)\n                torch.save(state, file)\n")]),
    ("saves whole states", "the old file was removed first",
     [(WRITE, WRITE.replace('file.with_suffix(".new").replace(file)  # the',
                            'file.unlink(missing_ok=True)\n                file.with_suffix(".new").rename(file)  # the'))]),
    ("saves whole states", "after the last step",
     [("            if file is not None:\n", "            if file is not None and (step + 1) % every == 0:\n")]),
    ("saves whole states", "after the last step", [
        ("        if (step + 1) % every == 0 or step + 1 == steps:\n", "        if (step + 1) % every == 0:\n"),
        ("    model.train(was_training)\n", "    " + MEASURE + "\n    model.train(was_training)\n"),
     ]),
    ("goes where the weights are", "stay on the CPU", [("[starts + torch.arange(context + 1)].to(device)",
                                                        "[starts + torch.arange(context + 1)]")]),
    ("reads Shakespeare", "bits per character", [(RATE, 'group["lr"] = 0.01 * learning_rate(step, lr, warmup, steps)')]),
]  # fmt: skip


@pytest.fixture
def short(monkeypatch):
    """The training probe with a fifth of its steps, and as much less to reach."""
    monkeypatch.setattr(pretrain_runs, "STEPS", 100)
    monkeypatch.setattr(pretrain_runs, "BITS", 3.8)


def test_the_shorter_training_probe_passes_the_worked_loop(short):
    assert fault(loop(), "reads Shakespeare") == ""


@pytest.mark.parametrize("probe, word, changes", WRONG, ids=[f"{probe}: {word}" for probe, word, _ in WRONG])
def test_a_wrong_loop_fails_first_at_its_own_probe_and_is_told_why(probe, word, changes, short):
    built = loop(*changes)
    failed, said = try_out(find("pretrain"), built, most=10)
    if probe not in CHEAP:
        assert (failed, said) == ("", "")
        failed, said = probe, fault(built, probe)
    assert failed == probe and word in said, (failed, said)


def nothing(model, tokens, held_out, *, steps, every=50, **others):
    """Pretends to train: a list of plausible records."""
    losses = [math.log(30) / (1 + step / 10) for step in range(steps)]
    records = [{"step": step + 1, "loss": loss} for step, loss in enumerate(losses)]
    for record in records:
        if record["step"] % every == 0 or record["step"] == steps:
            record["val_loss"] = record["loss"]
    return records


@pytest.mark.parametrize("probe", find("pretrain").probes)
def test_no_probe_is_passed_by_a_loop_that_only_pretends(probe, short):
    assert fault(nothing, probe)


def test_an_output_of_any_form_is_judged():
    for value in (None, [], {}, [1, 2], "done", torch.zeros(3)):
        for probe in CHEAP:
            assert fault(lambda *_, value=value, **__: value, probe), (probe, value)


def test_a_probe_does_not_print(capfd):
    for probe in CHEAP[:4]:
        assert not is_record(fault(loop(), probe))
    assert capfd.readouterr().out == ""
