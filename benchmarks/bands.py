"""The curves that a learner's run is compared with: data/bands.json, from runs of the worked answers.

    python -m benchmarks.bands runs/bands --run   train what is not there yet, faults included (half an hour on two cores)
    python -m benchmarks.bands runs/bands         write data/bands.json from the folders in runs/bands

A folder is `NAME/RUN` with a metrics.jsonl; NAME is a chapter's, and RUN is `seed-N`, or `fault-WHAT` for a run that was broken
on purpose. Those of chapter 11, `11/seed-N`, are folders of `python -m rlhf_lib assistant --preset laptop --seed N`; those of
chapter 12, `12/seed-N`, the folders `grpo-N` of `python -m benchmarks frontier`. The chapters' own code runs, cell by cell, out
of solutions/, with the course's answers; a fault is a change of one line in it.
"""

import argparse
import copy
import json
import math
import re
import sys
from functools import partial
from itertools import zip_longest
from pathlib import Path

import torch

from rlhf_lib import bands, checkpoints, corpus, course, notebooks, runs
from rlhf_lib.exercises import load, probe_envs
from rlhf_lib.exercises.keep import the_course
from rlhf_lib.files import RunError, read_json, write_atomic, write_json
from rlhf_lib.pipelines.shakespeare import watch_rollouts
from rlhf_lib.policy_gradient import METHODS
from rlhf_lib.trainers import rewards, rollouts
from rlhf_lib.trainers.ppo import PPOConfig
from rlhf_lib.trainers.ppo import train as train_policy
from rlhf_lib.trainers.pretrain import encode_corpus

PROMPT = "\n\n"


def scene(chapter, cells, change=("", ""), **known):
    """What the cells of a chapter define, as a dict, with `change` (old, new) made in the one cell that has the old text.

    Args:
        known: what the cells use besides, {its name there: the name of one of the course's answers, or a value}.
    """
    (path,) = (notebooks.ROOT / "solutions").glob(f"{chapter}_*.ipynb")
    sources = {cell.id: cell.source for cell in notebooks.read(path).cells}
    old = change[0]
    if old and sum(sources[name].count(old) for name in cells) != 1:
        raise RunError(f"{path.name}: not once in the cells {', '.join(cells)}: {old}")
    found = {}
    for name in cells:
        notebooks.run_cell(sources[name].replace(*change) if old else sources[name], f"<{path.name}, {name}>", found)
    found |= {name: the_course(value) if isinstance(value, str) else value for name, value in known.items()}
    return found


# ----------------------------------------------------------------------------------------- the chapters' runs


def pretraining(seed=0, rate=3e-3, tokens=300_000, steps=400, change=("", ""), head=0.0):
    """Chapter 03, the experiment on overfitting: thirty times the text."""
    _, tokenizer = checkpoints.load(course.PUBLISHED / "base")
    halves = corpus.split(corpus.load())
    text, _ = encode_corpus(halves["train"], tokenizer)
    watched = torch.tensor(tokenizer.encode("\n\n".join(halves["validation"]["text"])[:20_000]))
    code = scene("03", ("imports", "learning_rate", "validation_loss", "pretrain"), change)
    torch.manual_seed(seed)
    shape = dict(vocab_size=tokenizer.vocab_size, context=64, layers=2, heads=4, width=128)
    model = the_course("GPT")(**shape)
    if head:
        torch.nn.init.normal_(model.head.weight, std=head)
    settings = dict(steps=steps, batch=16, context=64, lr=rate, warmup=10, seed=seed, every=40)
    return code["pretrain"](model, text[:tokens], watched, **settings)


def pole(seed=0, change=("", "")):
    """Chapter 07, the learner's PPO on the pole: the mean length of the episodes that ended in each fortieth of the budget."""
    kernels = {name: name for name in ("gae", "masked_whiten", "policy_loss")}
    code = scene("07", ("imports", "train_ppo", "own"), change, **kernels)
    log = probe_envs.Log(80_000)
    code["train_ppo"](lambda: probe_envs.Watched(code["pole"](), log), 80_000, seed)
    steps, lengths = code["over_time"]([log])
    return [{"step": step, "length": length} for step, length in zip(steps.tolist(), lengths.tolist())]


def panels(seed=0, change=("", ""), **knobs):
    """Chapter 07, the loop with instruments."""
    kernels = dict(advantages_from="gae", whiten="masked_whiten", clipped_loss="policy_loss", critic_loss="value_loss")
    kernels |= dict(explained="explained_variance", estimates="kl_estimate", GAMMA=0.99)
    code = scene("07", ("imports", "networks", "rollout", "noise", "train"), change, **kernels)
    return code["train"](30, seed, **knobs)[1]


def models():
    base, tokenizer = checkpoints.load(course.PUBLISHED / "base")
    scorer, _ = checkpoints.load(course.PUBLISHED / "reward", kind="reward")
    return base, tokenizer, scorer, tokenizer.encode(PROMPT)


def loop(seed=0, change=("", ""), iterations=12, **knobs):
    """Chapter 08, the learner's loop on the published base."""
    base, _, scorer, prompt = models()
    names = ("fit_normaliser", "completion_kl", "token_advantages", "with_baseline", "generate", "policy_loss")
    kernels = {name: name for name in names} | dict(my_log_reward="log_reward", reward_model=scorer)
    code, config = scene("08", ("imports", "normalise-picture", "rlhf"), change, **kernels), PPOConfig()
    settings = dict(lr=config.lr, kl_coef=config.kl_coef, max_new_tokens=config.max_new_tokens, rollout_size=192, minibatch=48)
    settings |= dict(seed=seed, iterations=iterations, prompt=prompt)
    return code["rlhf"](base, code["log_p_positive"], **settings | knobs)[1]


def policy(folder, seed=0):
    """Chapter 08, the library's run."""
    base, tokenizer, scorer, prompt = models()
    config = PPOConfig(iterations=20, rollout_size=256, minibatch=64, keep_every=5)
    drawn = torch.Generator().manual_seed(98)
    paid = rewards.fit_reward(scorer, rollouts.sample(base, tokenizer, [prompt] * 1024, config.max_new_tokens, drawn))
    train_policy(base, tokenizer, [prompt], paid, config, folder, seed=seed, watch=watch_rollouts(paid))


def groups(seed=0, lr=3e-4, iterations=12):
    """Chapter 12, the learner's loop without a critic on the published base, with GRPO."""
    base, tokenizer, scorer, prompt = models()
    originals = rollouts.sample(base, tokenizer, [prompt] * 512, 48, torch.Generator().manual_seed(0))
    known = dict(tokenizer=tokenizer, device=torch.device("cpu"), pays=rewards.fit_reward(scorer, originals, coef=0.0))
    code = scene("12", ("imports", "own-run"), **known)
    settings = dict(group=8, minibatch=4, max_new_tokens=48, kl_coef=0.0, max_kl=60.0, end_token=tokenizer.end_token)
    settings |= dict(loss=partial(the_course("policy_gradient"), **METHODS["grpo"]._asdict()), generate=the_course("generate"))
    return the_course("learn")(
        copy.deepcopy(base), base, code["earned"], [prompt] * 8, iterations=iterations, lr=lr, seed=seed, **settings
    )


RUNS = {
    "03": {
        "seed-0": lambda: pretraining(0),
        "seed-1": lambda: pretraining(1),
        "seed-2": lambda: pretraining(2),
        "fault-rate": lambda: pretraining(rate=0.1),
        "fault-head": lambda: pretraining(steps=40, head=0.5),
        "fault-little-text": lambda: pretraining(tokens=10_000),
        "fault-no-step": lambda: pretraining(steps=120, change=("        optimizer.step()\n", "")),
        "fault-not-shifted": lambda: pretraining(steps=120, change=("rows[:, 1:].flatten()", "rows[:, :-1].flatten()")),
    },
    "07": {
        **{f"seed-{seed}": lambda seed=seed: pole(seed) for seed in range(5)},
        "fault-low-rate": lambda: pole(change=("2.5e-3", "2.5e-5")),
        "fault-sign": lambda: pole(change=("(gain_loss + error", "(-gain_loss + error")),
    },
    "07 panels": {
        **{f"seed-{seed}": lambda seed=seed: panels(seed) for seed in range(5)},
        "fault-rate": lambda: panels(rate=0.1),
        "fault-one-step": lambda: panels(epochs=1, minibatches=1),
        "fault-old-anew": lambda: panels(
            change=("clipped_loss(logprobs, old_logprobs,", "clipped_loss(logprobs, logprobs.detach(),")
        ),
        "fault-sign": lambda: panels(change=("(policy_part + value_part", "(-policy_part + value_part")),
    },
    "08 loop": {
        "seed-0": lambda: loop(0),
        "seed-1": lambda: loop(1),
        "fault-rate": lambda: loop(lr=3e-3),
        "fault-old-anew": lambda: loop(
            iterations=1, change=("policy_loss(logprobs, old[rows]", "policy_loss(logprobs, logprobs.detach()")
        ),
        "fault-temperature": lambda: loop(
            iterations=2,
            change=("dtype=torch.bool), uniforms)", "dtype=torch.bool), uniforms, temperature=0.7)"),
        ),
    },
    "08": {
        "seed-0": lambda folder: policy(folder, 0),
    },
    "12 loop": {
        **{f"seed-{seed}": lambda seed=seed: groups(seed) for seed in range(3)},
        "fault-rate": lambda: groups(lr=3e-3, iterations=3),
    },
}  # fmt: skip


# What is stored of each: the stage in metrics.jsonl, the settings that a run must share to be compared, and each curve's unit,
# margin and, where it cannot be negative, floor, and where it begins with the same value in all runs, the margin there.
CLIPPED = ("share", 0.03, 0.1)
KERNELS = {"clip_fraction": CLIPPED, "kl": ("nats a completion", 1.2, None, 0.05), "entropy": ("nats a token", 0.2)}
HERE, PUBLISHED = {"preset": "laptop"}, {"preset": "laptop", "models": "published"}
STORED = {
    "03": dict(
        what="the experiment on overfitting, thirty times the text",
        x="step", at=(1, 5, 10, 15, 20, 30, *range(40, 401, 20)), settings=HERE,
        curves={"loss": ("nats a token", 0.3), "val_loss": ("nats a token", 0.15)},
    ),
    "07": dict(what="your PPO on the pole", x="step", settings=HERE, curves={"length": ("steps", 30, 0.4)}),
    "07 panels": dict(
        what="the loop with instruments", x="iteration", settings=HERE,
        curves={
            "length": ("steps", 30, 0.4), "clip_fraction": CLIPPED, "approx_kl": ("nats a step", 0.003, 0.1),
            "entropy": ("nats a step", 0.05), "explained_variance": ("share", 0.2),
        },
    ),
    "08 loop": dict(
        what="your loop on the published base", x="iteration", settings=PUBLISHED,
        curves={
            "reward": ("deviations", 0.3), "kl": KERNELS["kl"], "ratio": ("", 0.01), "clip_fraction": CLIPPED,
        },
    ),
    "08": dict(
        what="the library's run", x="step", stage="policy", settings=PUBLISHED,
        curves={
            **KERNELS, "reward": ("deviations", 0.3), "gold": ("-1 to 1", 0.1), "first_ratio": ("", 0.01),
        },
    ),
    "11 sft": dict(
        what="fine-tuning of the published run", x="step", stage="sft",
        settings=("preset", "model", "demonstrations", "limit", "longest", "sft_layers", "sft.epochs", "sft.batch", "sft.lr"),
        curves={"train_loss": ("nats a token", 0.25), "val_loss": ("nats a token", 0.05)},
    ),
    "11 reward": dict(
        what="the reward model of the published run", x="step", stage="reward",
        settings=("preset", "model", "comparisons", "preference.epochs", "preference.batch", "preference.lr"),
        curves={"held_out_accuracy": ("share", 0.04), "held_out_loss": ("nats", 0.03)},
    ),
    "11 policy": dict(
        what="PPO of the published run", x="step", stage="policy",
        settings=(
            "preset", "model", "demonstrations", "comparisons", "layers", "ppo.iterations", "ppo.rollout_size",
        ),
        curves={
            "reward": ("deviations", 0.8), **KERNELS, "explained_variance": ("share", 0.2), "first_ratio": ("", 0.01),
        },
    ),
    "12 loop": dict(
        what="your loop without a critic, with GRPO", x="iteration", settings=PUBLISHED,
        curves={"reward": ("deviations", 0.3), "kl": KERNELS["kl"], "ratio": ("", 0.01)},
    ),
    "12 grpo": dict(
        what="GRPO of the frontier", x="step", stage="policy", settings=("method", "iterations", "rollout_size", "group"),
        curves={
            **KERNELS, "reward": ("deviations", 0.2), "gold": ("-1 to 1", 0.08), "first_ratio": ("", 0.01),
        },
    ),
}  # fmt: skip


def collect(out):
    """What data/bands.json holds, from the folders in `out`."""
    found = {}
    for name, plan in STORED.items():
        place = out / (name if name in RUNS else name.split()[0])
        seeds = sorted(place.glob("seed-*"))
        if not seeds:
            raise RunError(f"{place} holds no seed-0: make it with --run, or see the top of {Path(__file__).name}")
        stage, axis = plan.get("stage", "run"), plan["x"]
        tables = {run.name: curves_of(run, stage, axis) for run in [*seeds, *sorted((out / name).glob("fault-*"))]}
        at = plan.get("at") or sorted({x for run in seeds for curve in plan["curves"] for x in tables[run.name].get(curve, {})})
        settings = plan["settings"]
        if not isinstance(settings, dict):
            logged = read_json(seeds[0] / "settings.json")
            settings = {key: (logged | logged.get("config", {}))[key] for key in settings}
        found[name] = {
            "what": plan["what"],
            "from": told_of([run.name.removeprefix("seed-") for run in seeds]),
            "settings": settings, "x": axis, "at": list(at),
            "curves": {
                curve: {key: size for key, size in zip(("unit", "margin", "floor", "start"), sizes) if size is not None}
                | {"runs": [[tables[run.name].get(curve, {}).get(x) for x in at] for run in seeds]}
                for curve, sizes in plan["curves"].items()
            },
            "faults": {
                fault.removeprefix("fault-"): thinned(table, plan["curves"], at)
                for fault, table in tables.items() if fault.startswith("fault-")
            },
        }  # fmt: skip
    return dict(sorted((found | printed()).items()))


def told_of(seeds):
    if len(seeds) == 1:
        return f"one run, seed {seeds[0]}"
    return f"{len(seeds)} runs, seeds {seeds[0]} {'and' if len(seeds) == 2 else 'to'} {seeds[-1]}"


def curves_of(folder, stage, axis):
    """{curve: {x: value}} of a run, to four digits; what is no finite number is left out."""
    table = {}
    for record in runs.Metrics(folder).read(stage):
        for key, value in record.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                table.setdefault(key, {})[record[axis]] = float(f"{value:.4g}")
    return table


def thinned(table, curves, at):
    """The records of a run at the stored points, as the chapters' loops would give them."""
    return {curve: [[x, table[curve][x]] for x in at if x in table[curve]] for curve in curves if curve in table}


def printed():
    """The bands of chapter 06, whose curves are a few points: what its cells have printed."""
    (path,) = (notebooks.ROOT / "solutions").glob("06_*.ipynb")
    cells = {cell.id: "".join(one.get("text", "") for one in cell.get("outputs", [])) for cell in notebooks.read(path).cells}

    def line(cell, start):
        """The figures behind `start` in what a cell has printed."""
        (found,) = re.findall(rf"^{start} +([\d., ]+)$", cells[cell], re.MULTILINE)
        return [float(one) for one in found.split(", ")]

    three = [float(one) for one in re.findall(r"fine-tuned +\d+ labels: accuracy ([\d.]+)", cells["curve"])]
    of_size = [
        line("investigation-6A", "300, other seeds") + line("investigation-6A", "300, other labels")[1:],
        line("investigation-6A", "1,000, other labels and seed"),
        three[2:],
    ]
    losses = {"train_loss": line("train", "the 300 labels"), "held_out_loss": line("train", "held out")}
    return {
        "06": {
            "what": "a reward model of 300 labels, after so many epochs", "from": "one run, seed 0", "settings": PUBLISHED,
            "x": "epoch", "at": [1, 2, 4, 8], "faults": {},
            "curves": {curve: {"unit": "nats", "margin": 0.06, "runs": [values]} for curve, values in losses.items()},
        },
        "06 labels": {
            "what": "your reward model by the labels that it learned from",
            "from": "five runs of 300 labels, two of 1,000 and one of 3,000", "settings": PUBLISHED,
            "x": "labels", "at": [300, 1000, 3000], "faults": {},
            "curves": {"accuracy": {"unit": "share", "margin": 0.04, "runs": list(map(list, zip_longest(*of_size)))}},
        },
    }  # fmt: skip


def train(out, names):
    """Make the runs of some names that are not there yet."""
    load()
    for name in names:
        for run, make in RUNS[name].items():
            folder = out / name / run
            if (folder / "done.json").exists():
                continue
            if name == "08":
                make(folder)
            else:
                runs.Metrics(folder).rewind("run", -math.inf)
                for place, record in enumerate(make()):
                    runs.Metrics(folder).log("run", record.get("step", place), **{k: v for k, v in record.items() if k != "step"})
            write_json(folder / "done.json", {"threads": torch.get_num_threads(), "torch": torch.__version__})
            print(f"{folder}: {len(runs.Metrics(folder).read())} records", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--run", nargs="*", metavar="NAME", help=f"train: {', '.join(RUNS)}, all of them without a name")
    chosen = parser.parse_args()
    if chosen.run is not None:
        train(chosen.out, chosen.run or list(RUNS))
        sys.exit()
    write_atomic(bands.FILE, json.dumps(collect(chosen.out), separators=(",", ":")).replace('},"', '},\n"').encode())
    print(f"wrote {bands.FILE}")
