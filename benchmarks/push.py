"""Push the published base against reward models of 300, 1,000 and all labels, and lay checkpoints out for blind reading.

    python -m benchmarks.push runs/push           three runs of PPO without a price on KL (about ten minutes on two cores)
    python -m benchmarks.push runs/push --sheet   the shuffled passages, sheet.txt, and where each came from, key.json

Chapter 09 draws what readers said of them: data/labels/push.jsonl, and data/push.json for the figures of the runs.
"""

import argparse
import json
import random
from pathlib import Path

import torch

from rlhf_lib import checkpoints, corpus, course, labels, runs
from rlhf_lib.files import write_atomic, write_json
from rlhf_lib.pipelines.shakespeare import watch_rollouts
from rlhf_lib.trainers import reward, rewards, rollouts
from rlhf_lib.trainers.ppo import PPOConfig, train

LABELS = {"300": 6, "1000": 4, "all": 0}  # how many, and the epochs; the published reward model has all of them
READ = {"300": (2, 5, 9, 15, 22), "1000": (2, 5, 9, 15, 25), "all": (2, 5, 9, 14, 21)}  # iterations that are read
HARD = PPOConfig(
    iterations=30, rollout_size=192, max_rollout_size=192, minibatch=64, epochs=4, lr=5e-4, kl_coef=0.0, max_kl=80.0, keep_every=1
)
EACH, FRESH = 150, 75  # passages of a pushed checkpoint, and of the base


def push(out):
    """Three runs, in `out/300`, `out/1000` and `out/all`; each goes on where it was stopped."""
    base, tokenizer = checkpoints.load(course.PUBLISHED / "base")
    prompt = tokenizer.encode(corpus.SEPARATOR)
    originals = rollouts.sample(base, tokenizer, [prompt] * 512, HARD.max_new_tokens, torch.Generator().manual_seed(98))
    labelled = labels.hand_made(corpus.load())
    for name, epochs in LABELS.items():
        if epochs:
            some = random.Random(0).sample(labelled, int(name))
            body, _ = checkpoints.load(course.PUBLISHED / "base")
            judged_by, _ = reward.train(body, tokenizer, some, reward.RewardConfig(epochs=epochs), out / f"reward-{name}")
        else:
            judged_by, _ = checkpoints.load(course.PUBLISHED / "reward", kind="reward")
        paid = rewards.fit_reward(judged_by, originals)
        train(base, tokenizer, [prompt], paid, HARD, out / name, watch=watch_rollouts(paid))


def figures(out):
    """What the runs logged: a list of dicts, one for each iteration of each run."""
    keys = {"kl": "kl", "proxy": "reward_normalised", "vader": "gold", "distinct_2": "distinct_2"}
    return [
        {"labels": name, "iteration": row["step"], **{key: round(row[logged], 4) for key, logged in keys.items()}}
        for name in LABELS
        for row in runs.Metrics(out / name).read("policy")
    ]


def sheet(out):
    """Write sheet.txt, which readers get, and key.json, which they do not."""
    found = [("laptop-0", course.PUBLISHED / "base", FRESH, 1000)]
    for name, iterations in READ.items():
        for one in iterations:
            found.append((f"push-{name}/{one:03d}", out / name / "policy" / f"iteration-{one:03d}", EACH, 1000 + one))
    passages = []
    for writer, folder, count, seed in found:
        model, tokenizer = checkpoints.load(folder)
        prompt, drawn, texts = tokenizer.encode(corpus.SEPARATOR), torch.Generator().manual_seed(seed), []
        while len(texts) < count:
            rows = rollouts.sample(model, tokenizer, [prompt] * 64, HARD.max_new_tokens, drawn)
            texts += [cut for cut in map(labels.whole_phrases, rows.texts) if cut]
        passages += [{"checkpoint": writer, "text": text} for text in texts[:count]]
    random.Random(5).shuffle(passages)
    write_json(out / "key.json", passages)
    lines = "\n\n".join(f"=== {number}\n{one['text']}" for number, one in enumerate(passages))
    write_atomic(out / "sheet.txt", lines.encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sheet", action="store_true", help="lay out the passages of finished runs")
    chosen = parser.parse_args()
    if chosen.sheet:
        sheet(chosen.out)
        print(json.dumps(figures(chosen.out)))
    else:
        push(chosen.out)
