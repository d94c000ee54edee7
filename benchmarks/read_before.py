"""A writer that has read before, on the plays: SmolLM2-135M with adapters, then PPO by chapter 10's reward, then a blind reading.

    python -m benchmarks.read_before runs/read_before           both policies are trained, and figures.json
    python -m benchmarks.read_before runs/read_before --sheet   sheet.txt, shuffled passages, and key.json, whose each is

data/labels/read_before.jsonl has what readers said of them; chapter 10 shows it. Every step goes on where it was stopped.
"""

import argparse
import copy
import math
import random
from pathlib import Path

import torch
from torch.nn import functional as F

from rlhf_lib import checkpoints, comparisons, corpus, course, devices, judge, labels, runs
from rlhf_lib.files import write_atomic, write_json
from rlhf_lib.models import published
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.models.lora import Branch
from rlhf_lib.sampling import generate
from rlhf_lib.trainers import ppo, preference, rewards, rollouts
from rlhf_lib.trainers.rates import up_then_down

LAYERS, RANK = 8, 16  # of SmolLM2's 30 blocks, the last; the others are read without a gradient
STEPS, ROWS, WINDOW, LR = 200, 4, 128, 1e-3
LENGTH = 44  # new tokens, as in chapter 10
OURS = ppo.PPOConfig(iterations=12, rollout_size=192, minibatch=48, max_new_tokens=LENGTH, keep_every=4)
THEIRS = ppo.PPOConfig(iterations=12, rollout_size=96, max_rollout_size=96, minibatch=24, max_new_tokens=LENGTH, keep_every=4)
EACH = 70  # given lines that are read, of the plays' validation part; each writer goes on from all of them


def compared():
    """The comparisons of chapter 10."""
    plays = corpus.load()
    return comparisons.read_comparisons(comparisons.PLAYS, works=dict(zip(plays["work"], plays["text"])))


def lines():
    """The given lines of chapter 10, of the plays' training part and of their validation part: two lists of texts."""
    unread = corpus.SEPARATOR.join(corpus.split(corpus.load())["validation"]["text"])
    found = sorted({one.prompt for one in compared()})
    return [line for line in found if line not in unread], [line for line in found if line in unread]


def on_speeches(tokenizer):
    """The tokeniser with the end of a speech, a blank line, as its end."""
    new = copy.copy(tokenizer)
    new.end_token = tokenizer.encode(corpus.SEPARATOR + "A")[: -len(tokenizer.encode("A"))]  # as it stands before a speech
    return new


def as_read(text):
    """A completion as readers get it: up to its last whole phrase."""
    return labels.whole_phrases(text, shortest=1) or text.strip()


def train_on_plays(reader, tokenizer, out):
    """SmolLM2 with adapters that learned from the plays' training part, a plain model; kept in `out/adapters`."""
    torch.manual_seed(0)
    branch = Branch(reader, LAYERS, RANK, 2 * RANK)
    stream = torch.tensor(tokenizer.encode(corpus.SEPARATOR.join(corpus.split(corpus.load())["train"]["text"])))
    optimizer = torch.optim.AdamW(branch.parameters(), lr=LR, weight_decay=0.0)
    stage = runs.stage("adapters", out, "adapters", branch, [optimizer], STEPS, 0, tokenizer, show=("loss",))
    for step in stage:
        starts = torch.randint(len(stream) - WINDOW, (ROWS, 1), generator=devices.generator(0, "windows", step))
        rows = stream[starts + torch.arange(WINDOW)]  # (ROWS, WINDOW)
        branch.train()
        loss = F.cross_entropy(branch(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = LR * up_then_down(step, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        stage.log(loss=loss.item())
    branch.eval()
    stage.keep()
    stage.finish()
    return checkpoints.load_tensors(branch, checkpoints.read_tensors(stage.out), stage.out).eval().merged()


def train_judge(tokenizer, out):
    """Chapter 10's reward model: the labels' body, and a new head that learned from comparisons."""
    labelled, _ = checkpoints.load(course.PUBLISHED / "reward", kind="reward")
    model = RewardModel(copy.deepcopy(labelled.body))
    learn, held_out = [], []
    trained_on = set(lines()[0])
    for one in compared():
        if not one.tie:
            answers = [tokenizer.encode(text) for text in (one.chosen, one.rejected)]
            (learn if one.prompt in trained_on else held_out).append(preference.Ranking(tokenizer.encode(one.prompt), answers))
    print(preference.train(model, tokenizer, learn, held_out, preference.PreferenceConfig(epochs=1), out))
    return checkpoints.load(out / "reward", kind="reward")[0]


def paid_by(model, tokenizer, base, its_tokenizer, prompts):
    """What a rollout of any tokeniser is paid: chapter 10's reward of its text, normalised on completions of `base`."""

    def score(rollout):
        asked = [its_tokenizer.decode(prompt) for prompt in rollout.prompts]
        rows = [tokenizer.encode(prompt) + tokenizer.encode(as_read(text)) for prompt, text in zip(asked, rollout.texts)]
        return preference.score(model, [row[-model.config.context :] for row in rows])

    originals = rollouts.draw(base, its_tokenizer, prompts, LENGTH, torch.Generator().manual_seed(98))
    normalise = rewards.fit_normaliser(score(originals))
    return lambda rollout: normalise(score(rollout))


def watch(rollout, paid):
    texts = [as_read(text) for text in rollout.texts]
    return {
        "gold": judge.GoldJudge().score(texts).mean().item(),
        "distinct_2": judge.distinct_n(texts),
        "words": sum(len(text.split()) for text in texts) / len(texts),
    }


def writers(out):
    """The writers, name -> (model, tokeniser): both bases and both policies; what is there is not trained again."""
    ours, tokenizer = checkpoints.load(course.PUBLISHED / "base")
    reader, its_tokenizer = published.load("smollm2-135m")
    learn, _ = lines()
    speeches, its_speeches = on_speeches(tokenizer), on_speeches(its_tokenizer)
    theirs = train_on_plays(reader, its_tokenizer, out / "smollm2")
    model = train_judge(tokenizer, out / "judge")
    rows, its_rows = ([one.encode(line) for line in learn] for one in (tokenizer, its_tokenizer))
    paid = paid_by(model, tokenizer, ours, speeches, rows)
    policy = ppo.train(ours, speeches, rows, paid, OURS, out / "ours", watch=watch)
    checkpoints.save(out / "smollm2" / "base", theirs, its_tokenizer)
    branch = Branch(theirs, LAYERS, RANK, 2 * RANK, source="../base")
    its_paid = paid_by(model, tokenizer, theirs, its_speeches, its_rows)
    its_policy = ppo.train(branch, its_speeches, its_rows, its_paid, THEIRS, out / "smollm2", watch=watch)
    return {
        "laptop-0": (ours, speeches),
        "laptop-0/given lines": (policy, speeches),
        "smollm2": (theirs, its_speeches),
        "smollm2/given lines": (its_policy.merged(), its_speeches),
    }


def sheet(out):
    """Write sheet.txt, which readers get, and key.json, which they do not."""
    asked = random.Random(0).sample(lines()[1], EACH)
    whole = corpus.SEPARATOR.join(corpus.split(corpus.load())["validation"]["text"])
    rows = []
    for name, (model, tokenizer) in writers(out).items():
        uniforms = torch.rand(EACH, LENGTH, generator=torch.Generator().manual_seed(7))
        encoded = [tokenizer.encode(line) for line in asked]
        found = generate(model, encoded, LENGTH, uniforms=uniforms, end_token=tokenizer.end_token)
        texts = [as_read(tokenizer.decode(row[kept])) for row, kept in zip(found.tokens, found.mask)]
        rows += [(name, *pair) for pair in zip(asked, texts)]
    for line in asked:
        start = whole.index(line) + len(line)
        real = whole[start : start + 500].split(corpus.SEPARATOR)[0]
        rows.append(("plays", line, as_read(tokenizer.decode(tokenizer.encode(real)[:LENGTH]))))
    random.Random(7).shuffle(rows)
    write_json(out / "key.json", [{"checkpoint": name, "prompt": line, "text": text} for name, line, text in rows])
    lay = "\n\n".join(f"=== {number}\n{line.rstrip()}\n--> {text}" for number, (_, line, text) in enumerate(rows))
    write_atomic(out / "sheet.txt", lay.encode())


@torch.no_grad()
def bits(model, tokenizer):
    """Bits per character as chapter 10 takes them: six plays' first 2,000 of the validation part, in pieces of 200."""
    texts = [text[:2000] for text in corpus.split(corpus.load())["validation"]["text"][:6]]
    nats = 0.0
    for piece in (text[at : at + 200] for text in texts for at in range(0, len(text), 200)):
        tokens = torch.tensor([tokenizer.encode("\n" + piece)])
        nats += F.cross_entropy(model(tokens[:, :-1])[0].float(), tokens[0, 1:], reduction="sum").item()
    return nats / math.log(2) / sum(map(len, texts))


def figures(out):
    """Write figures.json, which is data/read_before.json: bits per character of both bases, and what the runs of PPO logged."""
    found = writers(out)
    keys = ("kl", "reward", "gold", "distinct_2", "words")
    logged = {"laptop-0": out / "ours", "smollm2": out / "smollm2"}
    policies = {
        name: [{key: round(row[key], 4) for key in ("step", *keys)} for row in runs.Metrics(folder).read("policy")]
        for name, folder in logged.items()
    }
    taken = {name: round(bits(*found[name]), 4) for name in logged}
    write_json(out / "figures.json", {"bits_per_char": taken, "policies": policies})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sheet", action="store_true", help="lay out the passages (and train what is missing)")
    options = parser.parse_args()
    sheet(options.out) if options.sheet else figures(options.out)
