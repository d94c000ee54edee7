"""Lay out lines of both published writers, and of the plays, for blind reading.

    python -m benchmarks.reading runs/reading   sheet.txt, the shuffled passages, and key.json, where each came from

data/labels/large.jsonl has what readers said of them; chapter 09 shows it.
"""

import argparse
import random
from pathlib import Path

from rlhf_lib import checkpoints, corpus, course, devices, labels
from rlhf_lib.files import write_atomic, write_json
from rlhf_lib.trainers import rollouts

WRITERS = {
    "laptop-0": course.PUBLISHED / "base",
    "laptop-0/policy": course.PUBLISHED / "policy",
    "large": course.LARGE / "base",
    "large/policy": course.LARGE / "policy",
}
EACH, REAL, TOKENS = 150, 75, 48  # passages of each writer, and of the plays; new tokens before they are cut


def completions(folder, count, seed):
    """`count` completions of a blank line, cut after their last whole phrase; those of fewer than 30 characters are left out."""
    model, tokenizer = checkpoints.load(folder)
    prompt, texts = tokenizer.encode(corpus.SEPARATOR), []
    while len(texts) < count:
        drawn = devices.generator(seed, "reading", len(texts))
        rows = rollouts.draw(model, tokenizer, [prompt] * count, TOKENS, drawn)
        texts += [cut for cut in map(labels.whole_phrases, rows.texts) if cut]
    return texts[:count]


def real(count, seed):
    """The same of the plays' validation part: what stands behind a blank line that was drawn."""
    tokenizer = checkpoints.load_tokenizer(course.PUBLISHED / "base")
    text, draw, found = corpus.SEPARATOR.join(corpus.split(corpus.load())["validation"]["text"]), random.Random(seed), []
    places = [place for place in range(len(text) - 1000) if text.startswith(corpus.SEPARATOR, place)]
    for place in draw.sample(places, len(places)):
        start = place + len(corpus.SEPARATOR)
        cut = labels.whole_phrases(tokenizer.decode(tokenizer.encode(text[start : start + 500])[:TOKENS]))
        found += [cut] if cut else []
        if len(found) == count:
            return found
    raise ValueError(f"only {len(found)} passages, {count} asked for")


def sheet(out, each=EACH, of_plays=REAL):
    """Write sheet.txt, which readers get, and key.json, which they do not."""
    rows = [(writer, text) for writer, folder in WRITERS.items() for text in completions(folder, each, seed=0)]
    rows += [("plays", text) for text in real(of_plays, seed=0)]
    random.Random(7).shuffle(rows)
    write_json(out / "key.json", [{"checkpoint": writer, "text": text} for writer, text in rows])
    lines = "\n\n".join(f"=== {number}\n{text}" for number, (_, text) in enumerate(rows))
    write_atomic(out / "sheet.txt", lines.encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    sheet(parser.parse_args().out)
