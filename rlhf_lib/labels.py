"""Label sets: passages read and labelled positive, neutral or negative, as JSON lines.

A line is a passage, a label and who read it. The passage is a place in the plays or a text of its own:

    {"work": "hamlet", "start": 1200, "end": 1275, "label": "negative", "reader": "r1"}
    {"text": "KING.\\nWelcome, sweet prince.", "checkpoint": "base-1", "label": "positive", "reader": "r2"}

A line may also say how far the passage makes sense, `"sense": 4`, from 1 (none) to 5 (reads like a real line).
"""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_lib.corpus import DATA
from rlhf_lib.files import append_json, json_rows, parse_row, read_text, shown, write_atomic

LABELS = ("negative", "neutral", "positive")
TARGETS = {"negative": 0.0, "neutral": 0.5, "positive": 1.0}
HAND_MADE = (DATA / "labels" / "plays.jsonl", DATA / "labels" / "samples.jsonl")
SECOND_READING = DATA / "labels" / "second_reading.jsonl"
PUSHED = DATA / "labels" / "push.jsonl"  # samples along three pushed runs, read likewise
FRONTIER = DATA / "labels" / "frontier.jsonl"  # samples of the end points of chapter 12's frontier, read likewise
LARGE = DATA / "labels" / "large.jsonl"  # samples of both published bases and policies, and passages of the plays, read likewise
READ_BEFORE = DATA / "labels" / "read_before.jsonl"  # completions of given lines by our base and SmolLM2, read likewise
BLIND = DATA / "labels" / "blind.jsonl"  # samples of three models, read without their source; nothing learns from them
SYNTHETIC = "synthetic"  # the reader's name in a set that no person read
AGAIN = ", again"  # behind a reader's name: the second reading of a passage by the same reader


class LabelError(ValueError):
    """A label file that is not well-formed; the message names the file, the line and what to do."""


@dataclass(frozen=True)
class Label:
    """One labelled passage: `text` is what was read, `source` says where it is from (as the line does), `sense` how far it makes
    sense, from 1 to 5, or None."""

    text: str
    label: str
    reader: str
    source: tuple
    sense: int | None = None

    @property
    def target(self):
        """The probability of positive to learn: 0, 1, or a soft 0.5 for neutral."""
        return TARGETS[self.label]


def read(path, works=None):
    """The labels of a JSON-lines file.

    Args:
        path: the file.
        works: a dict of work to text, for lines that give a range; None when the file has none.

    Returns:
        A list of Label, in the file's order.

    Raises:
        LabelError: a line is not JSON, lacks a field, has an unknown label, a sense that is none of 1 to 5, a range outside
            its work, or is there twice.
    """
    path = Path(path)
    if not path.exists():
        raise LabelError(f"no label file at {path}: label some passages first, or give the path of one")
    found, seen = [], {}
    for number, line in enumerate(read_text(path, LabelError).split("\n"), 1):  # splitlines would also cut inside a text
        if not line.strip():
            continue
        here = f"{path}, line {number}"
        label = parse(line, here, works)
        key = (label.source, label.reader)
        if key in seen:
            raise LabelError(f"{here}: the same passage and reader as line {seen[key]}; delete one of the two")
        seen[key] = number
        found.append(label)
    return found


def parse(line, here, works=None):
    """One line of a label file as a Label; `here` opens the message of an error."""
    row = parse_row(line, here, LabelError)
    place = ("work", "start", "end") if "work" in row else ("text", "checkpoint")
    missing = [field for field in (*place, "label", "reader") if field not in row]
    if missing:
        raise LabelError(f"{here}: not a label, it has no {missing[0]}; see data/README.md for the fields")
    label, reader, source = row["label"], row["reader"], tuple(row[field] for field in place)
    for field in ("reader", "work", "checkpoint"):
        if not isinstance(row.get(field, ""), str):
            raise LabelError(f"{here}: not a label, its {field} is no text but {shown(row[field])}; mend the line")
    if not isinstance(label, str) or label not in LABELS:
        raise LabelError(f"{here}: unknown label {shown(label)}; use one of {', '.join(LABELS)}")
    if place[0] == "text":
        text = row["text"]
    else:
        work, start, end = source
        try:
            whole = ({} if works is None else works)[work]
        except KeyError:
            raise LabelError(f"{here}: the work {shown(work)} is not in the corpus") from None
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(whole)):
            raise LabelError(
                f"{here}: the range {shown(start)} to {shown(end)} lies outside {work}, which has {len(whole)} characters"
            )
        text = whole[start:end]
    if not isinstance(text, str) or not text.strip():
        raise LabelError(f"{here}: the passage is empty; delete the line")
    sense = row.get("sense")
    if sense not in (None, 1, 2, 3, 4, 5) or isinstance(sense, bool | float):
        raise LabelError(f"{here}: sense must be a whole number from 1 to 5, got {shown(sense)}")
    return Label(text, label, reader, source, sense)


def row(label):
    """A Label as the dict that stands on its line."""
    fields = ("work", "start", "end") if len(label.source) == 3 else ("text", "checkpoint")
    sense = {} if label.sense is None else {"sense": label.sense}
    return {**dict(zip(fields, label.source)), "label": label.label, **sense, "reader": label.reader}


def write(path, labels):
    """Write a list of Label as JSON lines, atomically."""
    write_atomic(path, "".join(json.dumps(row(label), ensure_ascii=False) + "\n" for label in labels).encode())


def append(path, label):
    """Add one Label to a file, keeping what is there."""
    append_json(path, row(label))


def hand_made(plays, paths=HAND_MADE):
    """The hand-made set: `paths` in a row, with ranges resolved in `plays`, a corpus as `corpus.load()` returns it."""
    works = dict(zip(plays["work"], plays["text"]))
    return [label for path in paths for label in read(path, works)]


def first_readings(labels):
    """`labels` without the second and later readings of a passage."""
    first = {}
    for label in labels:
        first.setdefault(label.source, label)
    return list(first.values())


def read_again(labels):
    """{reader: [(label, label of the second reading)]} of the passages that a reader has read twice (see `AGAIN`)."""
    first = {(label.reader, label.source): label.label for label in labels}
    pairs = {}
    for label in labels:
        reader = label.reader.removesuffix(AGAIN)
        if reader != label.reader and (reader, label.source) in first:
            pairs.setdefault(reader, []).append((first[reader, label.source], label.label))
    return pairs


def split(labels, held_out=0.15):
    """(training, held-out) labels. A passage's text alone decides its half, so the halves are the same in every run."""
    halves = ([], [])
    for label in labels:
        halves[draw_of(label.text) < held_out].append(label)
    return halves


def draw_of(text):
    """A number in [0, 1) that the text alone decides, as if it were drawn for it."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def agreement(first, second):
    """How far two readers agree on the passages that both read.

    Returns:
        A dict: `passages` (how many both read), `agreement` (share with the same label), `kappa` (agreement beyond what
        two readers with these label frequencies have by chance; 1 is full, 0 is chance).
    """
    other = {label.source: label.label for label in second}
    pairs = [(label.label, other[label.source]) for label in first if label.source in other]
    if not pairs:
        raise LabelError("the two readings share no passage: agreement needs passages that both readers labelled")
    return {"passages": len(pairs), "agreement": sum(a == b for a, b in pairs) / len(pairs), "kappa": kappa(pairs)}


def kappa(pairs):
    """Cohen's kappa (Cohen 1960) of two readers' words for the same things, a list of (one's, the other's): their agreement
    beyond chance. 1 where both always said the same one word."""
    observed = sum(a == b for a, b in pairs) / len(pairs)
    mine, theirs = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(mine[word] * theirs[word] for word in mine) / len(pairs) ** 2
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


# ----------------------------------------------------------------------------------------- passages to label

PHRASE = re.compile(r"[^.?!;:]*[.?!;:]+['\"\]]*\s*")


def phrases(text, start=0):
    """The phrases of `text`, as (start, end): each runs to the mark that ends it."""
    return [(start + match.start(), start + match.end()) for match in PHRASE.finditer(text)]


def passages(dataset, count, seed, shortest=30, longest=140):
    """`count` passages of whole phrases out of speeches of the plays, as (work, start, end), no two overlapping.

    Args:
        dataset: a corpus with `work` and `text`.
        shortest, longest: length in characters (about 10 and 45 tokens).
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for work, text in zip(dataset["work"], dataset["text"]):
        for speech in re.finditer(r"(?<=\n\n)[^\n\[]+\.\n(?!\n)((?:(?!\n\n)[\s\S])+)", text):
            if "[" in speech[1]:
                continue
            start, end = None, None
            wanted = shortest + int(torch.randint(longest - shortest, (1,), generator=generator))
            for first, last in phrases(speech[1], speech.start(1)):
                if start is None or last - start > longest:
                    start = first
                end = first + len(text[first:last].rstrip())
                if min(wanted, longest) <= end - start <= longest:
                    found.append((work, start, end))
                    start = None
                    wanted = shortest + int(torch.randint(longest - shortest, (1,), generator=generator))
    if count > len(found):
        raise ValueError(f"only {len(found)} passages of {shortest} to {longest} characters, {count} asked for")
    order = torch.randperm(len(found), generator=generator)[:count]
    return [found[place] for place in order.tolist()]


def whole_phrases(text, shortest=30):
    """`text` up to the end of its last whole phrase; None when that is shorter than `shortest` characters."""
    ends = [end for _, end in phrases(text)]
    kept = text[: ends[-1]].strip() if ends else ""
    return kept if len(kept) >= shortest else None


# ----------------------------------------------------------------------------------------- sittings


def sitting(path, reader, checkpoint, draw, size=100):
    """The fresh passages that `reader` is to label now: the first `size` that are not all labelled, or the next `size`.

    What was drawn is kept beside the labels, in `my_labels.passages.jsonl`: a sitting goes on where it was stopped, on another
    machine too, a second reader gets the same passages, and none is drawn twice.

    Args:
        path: the file of labels.
        checkpoint: the name of what writes the passages; those of others are passed over.
        draw: draw(number) returns a list of fresh passages, other ones for another number; None in it is passed over.

    Returns:
        (number of the sitting, from 1; its passages, a list of `size` different str)

    Raises:
        LabelError: one of the two files is damaged.
        ValueError: `draw` brings nothing new.
    """
    path = Path(path)
    beside = path.with_suffix(".passages.jsonl")
    rows = []
    for number, row in json_rows(beside, LabelError) if beside.exists() else ():
        if not (isinstance(row.get("text"), str) and isinstance(row.get("checkpoint"), str)):
            raise LabelError(f"{beside}, line {number}: not a passage with text and checkpoint; delete the file")
        rows.append(row)
    texts = [row["text"] for row in rows if row["checkpoint"] == checkpoint]
    done = {label.text for label in read(path) if label.reader == reader} if path.exists() else set()
    before = next((place for place, text in enumerate(texts) if text not in done), len(texts)) // size * size
    known = len(texts)
    while len(texts) < before + size:
        new = [text for text in dict.fromkeys(draw(len(texts))) if text is not None and text not in texts]
        if not new:
            raise ValueError("no fresh passage was drawn: another seed, or a model that writes whole phrases, is needed")
        texts += new[: before + size - len(texts)]
    if len(texts) > known:
        rows += [{"text": text, "checkpoint": checkpoint} for text in texts[known:]]
        write_atomic(beside, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return before // size + 1, texts[before : before + size]


# ----------------------------------------------------------------------------------------- the synthetic rater


def synthetic(judge, count, dataset=None, seed=0, threshold=0.3):
    """`count` passages of the plays, labelled by a gold judge instead of a reader.

    A synthetic rater gives as many labels as a study needs (Gao, Schulman and Hilton 2022, "Scaling Laws for Reward Model
    Overoptimization", section 2). A reward model that learned from it has seen its own judge: say so beside every figure.

    Args:
        judge: a `judge.GoldJudge`.
        dataset: the corpus to draw from; the plays when None.
        threshold: a gold score above it is positive, below minus it negative, neutral between.

    Returns:
        A list of Label whose reader is "synthetic".
    """
    from rlhf_lib.corpus import load

    dataset = load() if dataset is None else dataset
    works = dict(zip(dataset["work"], dataset["text"]))
    places = passages(dataset, count, seed)
    texts = [works[work][start:end] for work, start, end in places]
    scores = judge.score(texts).tolist()
    names = ["positive" if s > threshold else "negative" if s < -threshold else "neutral" for s in scores]
    return [Label(text, name, SYNTHETIC, place) for text, name, place in zip(texts, names, places)]
