"""Gold score against KL for every way of chapter 12 to learn from one reward, at equal numbers of completions.

    python -m benchmarks frontier                      every method with seeds 0 to 3; goes on where it was stopped
    python -m benchmarks frontier --methods rloo dpo --seeds 0 --iterations 4
    python -m benchmarks frontier --sheet             passages for blind reading, and where each came from

All start from the published base and are paid by the published reward model, without a price on blank lines, so that every
completion has a reward of its own. Each run draws as many completions: those of its rollouts, or, for DPO, those that its
comparisons are made of. What is drawn only to measure a policy is not counted. Each run is a process of its own, so that its peak
of memory is its own.

    runs/frontier/METHOD-SEED/             a run's folder, and `done.json`, what is taken from it
    runs/frontier/sheet.jsonl, key.jsonl   passages of the end points, of best-of-32 and of the base, shuffled
    data/frontier.json                     all runs, best-of-n, and the settings; chapter 12 draws it
"""

import argparse
import json
import multiprocessing
import random
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks import table
from rlhf_lib import checkpoints, corpus, course, devices, judge, runs
from rlhf_lib.files import RunError, read_json, write_atomic, write_json
from rlhf_lib.pipelines.shakespeare import watch_rollouts
from rlhf_lib.trainers import dpo, grpo, ppo, rejection, rewards, rollouts
from rlhf_lib.trainers.dpo import DPOConfig
from rlhf_lib.trainers.grpo import GRPOConfig
from rlhf_lib.trainers.ppo import PPOConfig
from rlhf_lib.trainers.rejection import RejectionConfig

ROLLOUT, ITERATIONS = 512, 12  # completions in a rollout, and rollouts
ORIGINALS = 1024  # samples of the base that the constants of the reward come from
# Learning rates were tried with seed 0 and 2,048 completions: 1.5e-4 and 3e-4 for rloo, 3e-4 for grpo and ppo, 1e-4 and 3e-4 for
# the others. At 3e-4 the control of rejection sampling drifts 1.8 nats in 4 steps; dpo is past 4 nats after half of its
# comparisons, and within 1 at 1e-4.
FAR = {"max_kl": 30.0}  # nats, so that every run comes to its end
METHODS = {
    "ppo": PPOConfig(rollout_size=ROLLOUT, max_rollout_size=ROLLOUT, minibatch=128, **FAR),
    "rloo": GRPOConfig("rloo", rollout_size=ROLLOUT, minibatch=128, **FAR),
    "grpo": GRPOConfig("grpo", rollout_size=ROLLOUT, minibatch=128, **FAR),
    "rejection": RejectionConfig(rollout_size=ROLLOUT, minibatch=32, lr=1e-4, **FAR),
    "control": RejectionConfig(rollout_size=ROLLOUT, minibatch=32, lr=1e-4, control=True, **FAR),
    "dpo": DPOConfig(samples=ROLLOUT, lr=2e-4, **FAR),
}
TRAINERS = {PPOConfig: ppo.train, GRPOConfig: grpo.train, RejectionConfig: rejection.train}
BEST_OF = (1, 2, 4, 8, 16, 32, 64, 128, 256)
READ, READ_MORE, BEST_READ = 75, 25, 32  # passages of a run with the first seed, of one with another, and n of best-of-n
POINTS = ("step", "kl", "kl_error", "reward", "gold", "distinct_2", "separators")


def start(seed):
    """The base, its tokenizer, the prompt and the reward, whose constants come from samples drawn with `seed`."""
    base, tokenizer = checkpoints.load(course.PUBLISHED / "base")
    reward_model, _ = checkpoints.load(course.PUBLISHED / "reward", kind="reward")
    prompt = tokenizer.encode(corpus.SEPARATOR)
    originals = rollouts.sample(base, tokenizer, [prompt] * ORIGINALS, 48, devices.generator(seed, "normaliser"))
    return base, tokenizer, prompt, rewards.fit_reward(reward_model, originals, coef=0.0)


def train(config, budget, seed, folder):
    """One run. Returns its seconds, without those that only measured, its peak of memory, and a point for every measurement."""
    base, tokenizer, prompt, pays = start(seed)
    watch, aside, begun = watch_rollouts(pays), 0.0, time.monotonic()
    if isinstance(config, DPOConfig):
        drawn = rollouts.draw(base, tokenizer, [prompt] * budget, config.max_new_tokens, devices.generator(seed, "comparisons"))
        pairs = dpo.compared(drawn, pays(drawn))
        aside = time.monotonic() - begun
        held_out = max(1, len(pairs) // 16)
        dpo.train(base, tokenizer, pairs[held_out:], pairs[:held_out], [prompt], pays, config, folder, seed, watch)
        steps = -(-(len(pairs) - held_out) // config.batch) * config.epochs
    else:
        TRAINERS[type(config)](base, tokenizer, [prompt], pays, config, folder, seed, watch)
        steps = config.iterations
    rows = [row for row in runs.Metrics(folder).read("policy") if "kl" in row]
    points = [{"completions": round(budget * row["step"] / steps), **{name: row[name] for name in POINTS}} for row in rows]
    seconds = max(time.monotonic() - begun, aside + runs.seconds_spent(folder / "policy" / "state.pt"))  # a run that was resumed
    if isinstance(config, DPOConfig):
        begun = time.monotonic()
        fresh = rollouts.sample(
            base, tokenizer, [prompt] * config.samples, config.max_new_tokens, devices.generator(seed, "timed")
        )
        pays(fresh), watch(fresh, rollouts.score(base, fresh).sum(1))
        seconds -= len(points) * (time.monotonic() - begun)
    return {"seconds": round(seconds, 1), "peak_memory_bytes": devices.peak_memory_bytes(), "points": points}


def run(method, config, budget, seed, folder):
    """`train`, once: the record that a finished run has left is taken. Raises RunError where the folder has other settings."""
    settings, done = folder / "settings.json", folder / "done.json"
    wanted = {"method": method, "seed": seed, "completions": budget, "config": asdict(config)}
    if settings.exists() and read_json(settings) != wanted:
        raise RunError(f"{folder} holds a run with other settings: delete it, or give another --runs")
    write_json(settings, wanted)
    if not done.exists():
        write_json(done, {**wanted, **train(config, budget, seed, folder)})
    return read_json(done)


def best_of_n(budget, seed):
    """Best-of-n from `budget` completions of the base: for each n its KL, and the mean reward and gold of what it picks."""
    base, tokenizer, prompt, pays = start(seed)
    drawn = rollouts.draw(base, tokenizer, [prompt] * budget, 48, devices.generator(seed, "best of n"))
    proxy, gold = pays(drawn), judge.GoldJudge().score(drawn.texts)
    found = [{"n": n, "kl": judge.best_of_n_kl(n)} for n in BEST_OF if n <= budget]
    for one in found:
        one |= {name: judge.best_of_n_mean(proxy, score, one["n"]) for name, score in (("reward", proxy), ("gold", gold))}
    return {"seed": seed, "points": found}


def sheet(seeds, folder):
    """Lay out passages for blind reading: `sheet.jsonl` has their texts, shuffled, `key.jsonl` who wrote them too."""
    lacking = [name for name in (f"{m}-{seed}" for seed in seeds for m in METHODS) if not (folder / name / "done.json").exists()]
    if lacking:
        print(f"error: {folder / lacking[0]} holds no finished run: run this without --sheet first", file=sys.stderr)
        return 1
    base, tokenizer, prompt, pays = start(0)

    def drawn(model, count, seed, stream):
        return rollouts.draw(model, tokenizer, [prompt] * count, 48, devices.generator(1000 + seed, stream))

    rows = [("laptop-0", text) for text in drawn(base, READ, 0, "read").texts]
    for seed in seeds:
        for method in METHODS:
            policy, _ = checkpoints.load(folder / f"{method}-{seed}" / "policy")
            texts = drawn(policy, READ_MORE if seed else READ, seed, "read").texts
            rows += [(f"{method}-{seed}", text) for text in texts]
    for part in (1, 2):
        many = drawn(base, BEST_READ * READ, part, "read best")
        rows += [(f"best-of-{BEST_READ}", many.texts[row]) for row in rollouts.best_rows(pays(many), BEST_READ).tolist()]
    random.Random(1).shuffle(rows)
    texts = [{"id": number, "text": text} for number, (_, text) in enumerate(rows)]
    keys = [{**one, "writer": writer} for one, (writer, _) in zip(texts, rows)]
    for name, lines in (("sheet.jsonl", texts), ("key.jsonl", keys)):
        write_atomic(folder / name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    return 0


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks frontier", description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help=f"{', '.join(METHODS)} (all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3], metavar="N", help="seeds (0 1 2 3)")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, metavar="N", help=f"rollouts of a run ({ITERATIONS})")
    parser.add_argument("--rollout", type=int, default=ROLLOUT, metavar="N", help=f"completions in each ({ROLLOUT})")
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"), metavar="DIR", help="where runs go (runs/frontier)")
    parser.add_argument("--out", type=Path, default=corpus.DATA, metavar="DIR", help="where the figures go (data)")
    parser.add_argument("--sheet", action="store_true", help="only lay out passages of the runs for blind reading")
    options = parser.parse_args(arguments)
    if options.sheet:
        return sheet(options.seeds, options.runs)
    budget, records, configs = options.iterations * options.rollout, [], {}
    try:
        for method in options.methods:
            config = METHODS[method]
            sizes = {"iterations": options.iterations, "rollout_size": options.rollout}
            configs[method] = replace(config, **({"samples": options.rollout} if isinstance(config, DPOConfig) else sizes))
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:  # a process for each run
            for seed in options.seeds:
                for method, config in configs.items():
                    records.append(processes.apply(run, (method, config, budget, seed, options.runs / f"{method}-{seed}")))
                    last, spent = records[-1]["points"][-1], records[-1]["seconds"]
                    print(f"{method} {seed}: gold {last['gold']:.3f} at {last['kl']:.2f} nats, {spent} s", flush=True)
            picked = processes.starmap(best_of_n, [(budget, seed) for seed in options.seeds])
    except (RunError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_json(options.out / "frontier.json", {"machine": table.machine("cpu"), "best_of_n": picked, "runs": records})
    print(options.out / "frontier.json")
    return 0


if __name__ == "__main__":
    main()
