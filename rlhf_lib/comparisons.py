"""Comparisons: two answers to one prompt, and which of them a reader found better, in files of JSON lines.

A line is a prompt, two answers in the order in which they were read, and a verdict. The prompt is one of `prompts.jsonl`, by its
id; a place in the plays; or a text, or a conversation, of its own:

    {"id": "advice-001", "first": "Ask him kindly.", "second": "Noise!", "verdict": "first", "reader": "r1"}
    {"work": "hamlet", "start": 1200, "end": 1260, "first": ..., "second": ..., "verdict": "tie", "reader": "r2"}
    {"prompt": "Why is the sky blue?", "first": ..., "second": ..., "verdict": "second", "reader": "r1"}

A line may also have a `reason` (a word), `first_from` and `second_from` (which model wrote the answer), `first_cut` and
`second_cut` (true where the answer was cut off before it ended by itself) and a `round` (a number).
"""

import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from rlhf_lib.chat import ChatError, check_messages, opening
from rlhf_lib.corpus import DATA
from rlhf_lib.files import append_json, json_rows, shown
from rlhf_lib.labels import draw_of, kappa

PROMPTS = DATA / "assistant" / "prompts.jsonl"
DEMONSTRATIONS = DATA / "assistant" / "demonstrations.jsonl"
COMPARISONS = DATA / "assistant" / "comparisons.jsonl"
SECOND_READING = DATA / "assistant" / "second_reading.jsonl"
BLIND = DATA / "assistant" / "blind.jsonl"  # the outcome; nothing learns from it. `round` is the run's seed
PLAYS = DATA / "labels" / "comparisons.jsonl"  # completions of given lines of the plays
PLAYS_AGAIN = DATA / "labels" / "comparisons_second_reading.jsonl"  # 120 of them, by another reader

SPLITS = ("train", "held_out")
VERDICTS = ("first", "second", "tie")
PLACES = (("id",), ("work", "start", "end"), ("prompt",))  # how a line says its prompt
NEEDED = ("first", "second", "verdict", "reader")
OPTIONAL = ("reason", "first_from", "second_from", "first_cut", "second_cut", "round")


class ComparisonError(ValueError):
    """A prompt, demonstration or comparison that is not well-formed; the message names the file and line, and what to do."""


@dataclass(frozen=True)
class Prompt:
    """What a person asks the assistant. Nothing learns from a prompt whose `split` is "held_out"."""

    id: str
    prompt: str
    kind: str
    split: str

    def __post_init__(self):
        check_texts(self, "id", "prompt", "kind")
        check_choice(self, "split", SPLITS)


@dataclass(frozen=True)
class Demonstration:
    """A good answer to the prompt with this `id`; `prompt` and `split` are that prompt's."""

    id: str
    prompt: str
    answer: str
    writer: str
    split: str

    def __post_init__(self):
        check_texts(self, "answer", "writer")


@dataclass(frozen=True)
class Comparison:
    """Two answers to `prompt`, a text or a list of messages, and which of them `reader` found better. `source` says where the
    prompt is from, as the line does; `split` is the prompt's own, None where it has none."""

    prompt: str | list
    first: str
    second: str
    verdict: str
    reader: str
    source: dict
    reason: str = ""
    first_from: str = ""
    second_from: str = ""
    first_cut: bool = False
    second_cut: bool = False
    round: int | None = None
    split: str | None = None

    def __post_init__(self):
        if isinstance(self.prompt, list):
            try:
                check_messages(self.prompt)
            except ChatError as error:
                raise ComparisonError(f"the prompt is no conversation that waits for an answer ({error})") from None
        else:
            check_texts(self, "prompt")
        check_texts(self, "first", "second", "reader")
        if self.first.strip() == self.second.strip():
            raise ComparisonError("both answers are the same; delete the line")
        check_choice(self, "verdict", VERDICTS)
        for field in ("reason", "first_from", "second_from"):
            if not isinstance(getattr(self, field), str):
                raise ComparisonError(f"{field} must be a text, got {shown(getattr(self, field))}")
        for field in ("first_cut", "second_cut"):
            if not isinstance(getattr(self, field), bool):
                raise ComparisonError(f"{field} must be true or false, got {shown(getattr(self, field))}")
        if self.round is not None and type(self.round) is not int:
            raise ComparisonError(f"round must be a whole number, got {shown(self.round)}")

    @property
    def pair(self):
        """What tells this prompt with these two answers from all others, whichever of the two came first."""
        return pair_of(row_of(self))

    @property
    def tie(self):
        """Whether neither answer was the better one."""
        return self.verdict == "tie"

    @property
    def chosen(self):
        """The better answer; None in a tie."""
        return {"first": self.first, "second": self.second, "tie": None}[self.verdict]

    @property
    def rejected(self):
        """The other answer; None in a tie."""
        return {"first": self.second, "second": self.first, "tie": None}[self.verdict]

    @property
    def ranked(self):
        """((better answer, whether it was cut off), (other answer, whether it was)); None in a tie."""
        both = (self.first, self.first_cut), (self.second, self.second_cut)
        return {"first": both, "second": both[::-1], "tie": None}[self.verdict]


def check_texts(item, *fields):
    """Raises ComparisonError unless each of `fields` of `item` is a text that is not empty."""
    for field in fields:
        value = getattr(item, field)
        if not isinstance(value, str) or not value.strip():
            raise ComparisonError(f"{field} must be a text that is not empty, got {shown(value)}")


def check_choice(item, field, choices):
    """Raises ComparisonError unless the field of `item` is one of `choices`."""
    if getattr(item, field) not in choices:
        raise ComparisonError(f"unknown {field} {shown(getattr(item, field))}; use one of {', '.join(choices)}")


# ----------------------------------------------------------------------------------------- files


def read_prompts(path=PROMPTS):
    """The prompts of a JSON-lines file, a list of Prompt in its order.

    Raises:
        ComparisonError: a line is not UTF-8 or JSON, lacks a field or has an unknown one, has an empty text or an unknown split,
            or an id or a prompt is there twice.
    """

    def parse(row):
        check_fields(row, ("id", "prompt", "kind", "split"))
        return Prompt(**row)

    return read(path, parse, lambda item: [("id", item.id), ("prompt", item.prompt)])


def read_demonstrations(path, prompts):
    """The demonstrations of a JSON-lines file, a list of Demonstration in its order.

    Args:
        prompts: the list that `read_prompts` returned.

    Raises:
        ComparisonError: as `read_prompts`; an id that is not among the prompts, or the same prompt and writer twice.
    """
    by_id = {prompt.id: prompt for prompt in prompts}

    def parse(row):
        check_fields(row, ("id", "answer", "writer"))
        prompt = find_prompt(row["id"], by_id)
        return Demonstration(prompt=prompt.prompt, split=prompt.split, **row)

    return read(path, parse, lambda item: [("prompt and writer", (item.id, item.writer))])


def read_comparisons(path, prompts=(), works=None):
    """The comparisons of a JSON-lines file, a list of Comparison in its order.

    Args:
        prompts: the list that `read_prompts` returned, for lines that give an id.
        works: a dict of work to text, for lines that give a place in the plays.

    Raises:
        ComparisonError: as `read_prompts`; an unknown verdict, two answers that are the same, a prompt that is not there, or the
            same pair of answers and reader twice, whichever of them came first.
    """
    by_id = {prompt.id: prompt for prompt in prompts}

    def parse(row):
        place = place_of(row)
        check_fields(row, place + NEEDED, OPTIONAL)
        prompt, split = row.get("prompt"), None
        if place[0] == "id":
            found = find_prompt(row["id"], by_id)
            prompt, split = found.prompt, found.split
        elif place[0] == "work":
            prompt = find_passage(row, works or {})
        rest = {field: value for field, value in row.items() if field not in place}
        return Comparison(prompt=prompt, source={field: row[field] for field in place}, split=split, **rest)

    return read(path, parse, lambda item: [("pair and reader", (item.pair, item.reader))])


def append_comparison(path, comparison):
    """Add one Comparison to a file, keeping what is there.

    Raises:
        ComparisonError: the reader has compared these two answers already, or a line of the file is damaged.
    """
    for number, other in json_rows(path, ComparisonError) if Path(path).exists() else ():
        if (pair_of(other), other.get("reader")) == (comparison.pair, comparison.reader):
            raise ComparisonError(f"{path}, line {number}: {comparison.reader} has compared this pair already; delete that line")
    append_json(path, row_of(comparison))


def row_of(comparison):
    """A Comparison as the dict that stands on its line."""
    optional = {field: getattr(comparison, field) for field in OPTIONAL}
    optional = {field: value for field, value in optional.items() if value != getattr(Comparison, field)}  # not the default
    return {**comparison.source, **{field: getattr(comparison, field) for field in NEEDED}, **optional}


def pair_of(row):
    """`Comparison.pair` of the dict on a line, which may lack anything."""
    prompt = {field: row.get(field) for field in place_of(row)}
    return json.dumps(prompt, sort_keys=True), frozenset(json.dumps(row.get(side)) for side in ("first", "second"))


def place_of(row):
    """The fields by which a line says its prompt; ("id",) where it does not."""
    return next((fields for fields in PLACES if fields[0] in row), PLACES[0])


def read(path, parse, keys):
    """`parse(row)` of every line; of the things that `keys` lists for it, (what it is, value), none may be there twice."""
    found, seen = [], {}
    for number, row in json_rows(path, ComparisonError):
        try:
            item = parse(row)
            for key in keys(item):
                if key in seen:
                    raise ComparisonError(f"the same {key[0]} as line {seen[key]}; delete one of the two")
                seen[key] = number
        except ComparisonError as error:
            raise ComparisonError(f"{path}, line {number}: {error}") from None
        found.append(item)
    return found


def check_fields(row, needed, optional=()):
    """Raises ComparisonError unless a row has all of `needed`, and nothing beside them and `optional`."""
    for field in needed:
        if field not in row:
            raise ComparisonError(f"the field {field!r} is missing; a line has {', '.join(needed)}")
    for field in row:
        if field not in needed + optional:
            raise ComparisonError(f"unknown field {shown(field)}; a line has {', '.join(needed + optional)}")


def find_prompt(name, by_id):
    """The prompt with the id `name`. Raises ComparisonError where `by_id` has none."""
    if not isinstance(name, str) or name not in by_id:
        raise ComparisonError(f"the id {shown(name)} is not among the prompts; mend it, or add the prompt to their file")
    return by_id[name]


def find_passage(row, works):
    """The text that a row names by work, start and end, in characters. Raises ComparisonError where there is none."""
    work, start, end = row["work"], row["start"], row["end"]
    if not isinstance(work, str) or work not in works:
        raise ComparisonError(f"the work {shown(work)} is not in the corpus")
    if not (type(start) is type(end) is int and 0 <= start < end <= len(works[work])):
        raise ComparisonError(
            f"the range {shown(start)} to {shown(end)} lies outside {work}, which has {len(works[work])} characters"
        )
    return works[work][start:end]


# ----------------------------------------------------------------------------------------- what is made of them


def pairs(comparisons):
    """(prompt, chosen, rejected) of each comparison that is no tie, a list; of a `public_sets.Ranked` all its pairs."""
    decided = [(c.prompt, *two) for c in comparisons if not c.tie for two in combinations(c.ranked, 2)]
    return [(prompt, chosen, rejected) for prompt, (chosen, _), (rejected, _) in decided]


def split(items, held_out=0.15):
    """(training, held-out) prompts, demonstrations or comparisons, each prompt with all that is its own in one half.

    Where a prompt has a split of its own, that decides. Elsewhere its text alone does, as in `labels.split`; in a conversation
    the first message of the user, so that no conversation goes on in the other half.
    """
    halves = ([], [])
    for item in items:
        its_own = item.split or SPLITS[draw_of(opening(item.prompt)) < held_out]
        halves[SPLITS.index(its_own)].append(item)
    return halves


def agreement(first, second):
    """How far two readers agree on the pairs of answers that both compared, whichever answer each of them saw first.

    Returns:
        A dict: `pairs` (how many both compared), `agreement` (share with the same verdict), `kappa` (`labels.kappa` over one
        answer, the other and tie), `decided` (how many neither called a tie), `decided_agreement` (share of those with the same
        verdict; None when there are none).
    """
    other = {c.pair: word(c) for c in second}
    both = [(word(c), other[c.pair]) for c in first if c.pair in other]
    if not both:
        raise ComparisonError("the two readings share no pair: agreement needs pairs of answers that both readers compared")
    decided = [a == b for a, b in both if "tie" not in (a, b)]
    return {
        "pairs": len(both),
        "agreement": sum(a == b for a, b in both) / len(both),
        "kappa": kappa(both),
        "decided": len(decided),
        "decided_agreement": sum(decided) / len(decided) if decided else None,
    }


def word(comparison):
    """The verdict without the sides: "a" for the answer that stands first in the alphabet, "b" for the other, or "tie"."""
    return "tie" if comparison.tie else "a" if comparison.chosen < comparison.rejected else "b"


def words(text):
    """How many words a text has."""
    return len(text.split())
