"""Public sets of comparisons through `datasets`: Anthropic's hh-rlhf, sets of {prompt, chosen, rejected} or {prompt, ranked}."""

from dataclasses import dataclass
from pathlib import Path

from rlhf_lib import chat, comparisons
from rlhf_lib.chat import TURN, ChatError, as_messages, check_messages, from_transcript
from rlhf_lib.comparisons import Comparison, ComparisonError
from rlhf_lib.files import json_rows

HUB = {"hh-rlhf": "Anthropic/hh-rlhf"}  # short names
KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
FIELDS = ("prompt", "chosen", "rejected")
MOST = 16  # answers in a ranking

NO_ANSWERS = "chosen and rejected are not both texts or lists of messages"
NO_RANKING = f"ranked is not a list of 2 to {MOST} texts"
NO_PROMPT = "there is no prompt, neither a text nor a list of messages"
EMPTY_ANSWER = "an answer is empty"
PROMPTS_DIFFER = "the two prompts differ"
SAME_ANSWERS = "both answers are the same"
SAME_RANKED = "two answers of the ranking are the same"


@dataclass(frozen=True)
class Ranked:
    """Three or more `answers` to `prompt`, texts, the best first; none was cut off. The rest is as in a Comparison."""

    prompt: str | list
    answers: tuple
    source: dict
    split: str | None = None
    tie = False

    @property
    def ranked(self):
        """(answer, whether it was cut off) of each, the best first."""
        return tuple((answer, False) for answer in self.answers)


@dataclass(frozen=True)
class Loaded:
    """What was read of a set: the `comparisons`, out of so many `rows`; and `skipped`, why the others were left out, a dict of
    reason to (how many, the first one's number, from 1). As a text it says so in one sentence."""

    name: str
    comparisons: list
    rows: int
    skipped: dict

    def __str__(self):
        reasons = [f"{count:,} ({reason}; the first is row {first:,})" for reason, (count, first) in self.skipped.items()]
        skipped = "skipped " + ", ".join(reasons) if reasons else "none skipped"
        return f"{self.name}: {len(self.comparisons):,} comparisons of {self.rows:,} rows, {skipped}"


def load(name, split=None, limit=None):
    """The comparisons of a public set, or of a file in the form of one, streamed: no more is fetched than is asked for.

    A row has `chosen` and `rejected`, and a `prompt` unless these hold it. They may be texts; lists of messages, as in the
    conversational format of TRL; or whole transcripts, as in hh-rlhf (Bai et al. 2022), which are taken apart into the
    conversation up to the last turn of the assistant, and the two last turns. In their place a row may have `ranked`, a list of
    2 to 16 texts, the best answer first. A row that is malformed is skipped, and counted.

    Args:
        name: "hh-rlhf"; a set's name on the Hugging Face hub; or the path of a .jsonl, .json, .csv or .parquet file.
        split: the part of the set, "train" when None.
        limit: stop after so many comparisons; None for all.

    Returns:
        Loaded. Its comparisons are a Ranked where a row ranks more than two answers; all others are a Comparison with the verdict
        "first", and the set's name as `reader`.

    Raises:
        ComparisonError: the set cannot be read, or none of its rows can be used.
    """
    if limit is not None and limit < 1:
        raise ComparisonError(f"limit must be at least 1, or None for all, got {limit}")
    name = HUB.get(str(name), str(name))
    found, skipped, number = [], {}, 0
    for number, row in enumerate(rows(name, split or "train"), 1):
        try:
            prompt, *answers = take_apart(row)
        except ChatError as error:
            count, first = skipped.get(error.reason, (0, number))
            skipped[error.reason] = (count + 1, first)
            continue
        source = {"prompt": prompt}
        two = len(answers) == 2
        found.append(Comparison(prompt, *answers, "first", name, source) if two else Ranked(prompt, tuple(answers), source))
        if len(found) == limit:
            break
    loaded = Loaded(name, found, number, skipped)
    if not found:
        raise ComparisonError(f"no row can be used: {loaded}; give a set whose rows have {', '.join(FIELDS)}, or prompt, ranked")
    return loaded


def rows(name, split):
    """The rows of a set, one after another as they arrive."""
    from datasets import load_dataset  # half a second, which no run on our own comparisons needs

    path = Path(name)
    kind = KINDS.get(Path(name.removesuffix(".gz")).suffix)
    if kind and not (path.is_file() and path.stat().st_size):
        raise ComparisonError(f"no rows at {path}: give the path of a file that exists and is not empty")
    options = {"data_files": name} if kind else {}
    if kind == "csv":  # an answer "NA" is no gap, and "007" no number
        options |= {"keep_default_na": False, "converters": {field: str for field in FIELDS}}
    try:
        yield from load_dataset(kind or name, split=split, streaming=True, **options)
    except Exception as error:  # datasets raises many kinds here: no network, no such set or split, a damaged file
        raise ComparisonError(why(error, name, path)) from None


def why(error, name, path):
    """One sentence about an error of `datasets`; it names the line where `path` is a file of JSON lines with a damaged one."""
    try:
        for _ in json_rows(path, ComparisonError) if path.suffix == ".jsonl" else ():
            pass
    except ComparisonError as damaged:
        return str(damaged)
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    what = "its content" if path.exists() else f"the network, or give the path of a {', '.join(KINDS)} file"
    return f"{name} cannot be read ({reason}): check the name, the split and {what}"


def take_apart(row):
    """(prompt, chosen, rejected) of a row, or (prompt, best, ..., worst) of one that has `ranked` instead: the prompt a text or a
    list of messages, the answers texts.

    Raises:
        ChatError: the row is malformed; its `reason` says how.
    """
    prompt, *answers = (row.get(field) for field in FIELDS)
    ranked = row.get("ranked") if answers == [None, None] else None
    if ranked is not None:
        if not (isinstance(ranked, list) and 2 <= len(ranked) <= MOST and all(isinstance(answer, str) for answer in ranked)):
            raise ChatError(NO_RANKING)
        answers = ranked
    if not all(isinstance(answer, str | list) for answer in answers):
        raise ChatError(NO_ANSWERS)
    if all(isinstance(text, str) and not TURN.match(text) for text in (prompt, *answers)):  # plain texts stay texts
        prompts = (prompt,)
        if not prompt.strip():
            raise ChatError(NO_PROMPT)
    else:
        prompts, answers = zip(*(conversation(prompt, answer) for answer in answers))
    if any(other != prompts[0] for other in prompts):
        raise ChatError(PROMPTS_DIFFER)
    if not all(answer.strip() for answer in answers):
        raise ChatError(EMPTY_ANSWER)
    if len({answer.strip() for answer in answers}) < len(answers):
        raise ChatError(SAME_ANSWERS if ranked is None else SAME_RANKED)
    return prompts[0], *answers


def conversation(prompt, answer):
    """(messages up to the last, the last one's content) of the conversation that `answer` ends, or of which it is the whole."""
    if isinstance(answer, str) and TURN.match(answer):  # hh-rlhf: the prompt is in it
        whole = from_transcript(answer)
    elif isinstance(answer, str) and isinstance(prompt, str) and TURN.match(prompt):  # the same, cut behind the last "Assistant:"
        whole = from_transcript(prompt + answer)
    else:
        before = plain(as_messages(prompt) if prompt and isinstance(prompt, str | list) else [])
        after = plain([{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer)
        whole = after if after[: len(before)] == before else before + after
    if not whole or not isinstance(whole[-1]["content"], str):
        raise ChatError(chat.NOT_A_MESSAGE)
    if whole[-1]["role"] != "assistant":
        raise ChatError(chat.LAST_TURN["assistant"])
    if len(whole) == 1:
        raise ChatError(NO_PROMPT)
    if whole[-2]["role"] in ("system", "assistant"):
        raise ChatError(chat.NOT_ALTERNATING)
    return check_messages(whole[:-1]), whole[-1]["content"]


def plain(messages):
    """The messages with role and content alone; None for what one lacks."""
    return [{field: m.get(field) if isinstance(m, dict) else None for field in ("role", "content")} for m in messages]


def row_of(item):
    """A Comparison or a Ranked as the dict that stands on its line."""
    return {**item.source, "ranked": [*item.answers]} if isinstance(item, Ranked) else comparisons.row_of(item)
