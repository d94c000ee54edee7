"""Label files of other tools as labels of ours: tables (CSV, TSV), and what doccano, Label Studio and Argilla export.

A label is one of our three words, in any case or cut to three letters, or a rating from 1 to 5, of which 3 is neutral.
"""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

from rlhf_lib.files import parse_row, read_text
from rlhf_lib.labels import LABELS, Label, LabelError

TEXTS = ("text", "passage", "sentence", "content", "review")
VALUES = ("label", "labels", "sentiment", "rating", "choice", "annotation", "score")
READERS = ("reader", "annotator", "rater", "user", "completed_by", "annotation_agent", "user_id")
RATINGS = {1: "negative", 2: "negative", 3: "neutral", 4: "positive", 5: "positive"}
NO_TEXT, NO_LABEL, SEVERAL, TWICE = "no text", "no label", "several labels", "the same passage and reader again"


@dataclass(frozen=True)
class Taken:
    """What was read of a file: the `labels`, out of so many `rows`; and `left`, why others were left out, a dict of reason to
    (how many, the first one's number, from 1). As a text it says so in one sentence."""

    name: str
    labels: list
    rows: int
    left: dict

    def __str__(self):
        readers = len({label.reader for label in self.labels})
        reasons = [f"{count:,} ({reason}; the first is row {first:,})" for reason, (count, first) in self.left.items()]
        left = "left out " + ", ".join(reasons) if reasons else "nothing left out"
        return f"{self.name}: {len(self.labels):,} labels by {readers} readers taken of {self.rows:,} rows, {left}"


def load(path):
    """The labels of a file of another tool.

    Args:
        path: a table with a line of headings (comma, semicolon or tab between its columns), JSON lines, or a list in JSON.

    Returns:
        Taken. Its labels have the file's name as `checkpoint`; a reader whom the file does not name is "me".

    Raises:
        LabelError: the file cannot be read, or none of its rows can be used.
    """
    path, labels, left, number, seen = Path(path), [], {}, 0, set()
    for number, row in enumerate(rows(path), 1):
        text, found = text_of(row), judgements(row)
        reasons = [NO_TEXT] if text is None else [NO_LABEL] if not found else []
        for reader, value in found if not reasons else ():
            name = label_of(value)
            if name not in LABELS:
                reasons.append(name)
            elif (text, reader) in seen:
                reasons.append(TWICE)
            else:
                seen.add((text, reader))
                labels.append(Label(text, name, reader, (text, path.stem)))
        for reason in reasons:
            count, first = left.get(reason, (0, number))
            left[reason] = (count + 1, first)
    taken = Taken(str(path), labels, number, left)
    if not labels:
        raise LabelError(
            f"no row can be used: {taken}; a row needs a text ({TEXTS[0]}) and a label ({', '.join(LABELS)}, or 1 to 5)"
        )
    return taken


def rows(path):
    """The rows of a file, a list of dicts."""
    text = read_text(path, LabelError)
    if text.lstrip()[:1] == "[":
        try:
            found = json.loads(text)
            json.dumps(found, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise LabelError(f"{path}: not JSON ({error}); export it again") from None
        return [row if isinstance(row, dict) else {} for row in found]
    if text.lstrip()[:1] == "{":
        lines = enumerate(text.split("\n"), 1)
        return [parse_row(line, f"{path}, line {number}", LabelError) for number, line in lines if line.strip()]
    headings = text.split("\n", 1)[0]
    between = max(",;\t", key=headings.count)
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=between, strict=True)
        return [{str(name).strip().lower(): value for name, value in row.items()} for row in table]
    except csv.Error as error:
        raise LabelError(f"{path}, line {table.line_num + 1}: not a table ({error}); export it again") from None


def text_of(row):
    """The text of a row, wherever the tool has put it; None where there is none."""
    for place in (row, row.get("data"), row.get("fields"), row.get("inputs")):
        for name in TEXTS if isinstance(place, dict) else ():
            if isinstance(place.get(name), str) and place[name].strip():
                return place[name].replace("\r\n", "\n")
    return None


def judgements(row):
    """What readers said of a row, a list of (reader, value)."""
    if "data" in row and isinstance(row.get("annotations"), list):  # Label Studio
        kept = [one for one in row["annotations"] if isinstance(one, dict) and not one.get("was_cancelled")]
        return [(reader_of(one), value) for one in kept for value in studio_values(one.get("result"))]
    if isinstance(row.get("responses"), dict):  # Argilla
        answers = [answer for given in row["responses"].values() if isinstance(given, list) for answer in given]
        return argilla_values(answers)
    for name in VALUES:
        value = row.get(name)
        if isinstance(value, list) and value and all(isinstance(one, dict) and "value" in one for one in value):  # Argilla
            return argilla_values(value)
        given = row.get(f"{name}.responses")
        if isinstance(given, list):  # Argilla, its columns laid out flat
            readers = row.get(f"{name}.responses.users") or [None] * len(given)
            return [(reader_of({"reader": reader}), one) for reader, one in zip(readers, given)]
        if value not in (None, "", []):  # a table, doccano, or Label Studio's short form
            return [(reader_of(row), value)]
    return []


def studio_values(result):
    """The choices and ratings in one reader's result of Label Studio."""
    values = [one.get("value") for one in result or () if isinstance(one, dict)]
    return [value.get("choices", value.get("rating")) for value in values if isinstance(value, dict)]


def argilla_values(answers):
    """(reader, value) of each answer that was handed in."""
    kept = [one for one in answers if isinstance(one, dict) and one.get("status", "submitted") == "submitted"]
    return [(reader_of(one), one.get("value")) for one in kept]


def reader_of(row):
    """Who read, as a text; "me" where nobody is named."""
    for name in READERS:
        reader = row.get(name)
        reader = reader.get("email", reader.get("id")) if isinstance(reader, dict) else reader
        if reader not in (None, "") and not isinstance(reader, list):
            return str(reader)
    return "me"


def label_of(value):
    """One of our labels; for a value that is none, why not."""
    while isinstance(value, list | dict):  # doccano's list of labels, Argilla's {"value": ...}
        if len(value) != 1:
            return SEVERAL if value else NO_LABEL
        value = value[0] if isinstance(value, list) else next(iter(value.values()))
    word = str(value).strip().lower()
    if word in ("", "none"):
        return NO_LABEL
    if word.removesuffix(".0") in ("1", "2", "3", "4", "5"):
        return RATINGS[int(float(word))]
    return {label[:3]: label for label in LABELS}.get(word, word if word in LABELS else f"unknown label {word[:40]!r}")
