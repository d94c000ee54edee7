"""Label files of other tools as labels of ours: tables (CSV, TSV), and what doccano, Label Studio and Argilla export.

A label is one of our three words, in any case or cut to three letters, or a rating from 1 to 5, of which 3 is neutral.
"""

import contextlib
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
UNDONE = "skipped, discarded or a draft"
UNKNOWN = "drafts and discarded answers are not marked in this form: write records.to_datasets().to_json(FILE) in Argilla"
LISTED = "a list in a cell of a table: export JSON lines"
OTHERS = {
    b"PK\x03\x04": "a zip archive or a workbook: unpack it, or save the sheet as CSV",
    b"PAR1": "Parquet: export JSON lines",
}


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
        Taken. Its labels have the file's name as `checkpoint`; a reader whom the file does not name is "me", or, in an export of
        doccano that is not called "all", has the file's name.

    Raises:
        LabelError: the file cannot be read, or none of its rows can be used.
    """
    path, labels, left, number, seen = Path(path), [], {}, 0, set()
    for number, row in enumerate(rows(path), 1):
        text, found = text_of(row), judgements(row, path.stem)
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
            f"no row can be used: {taken}; a row needs a text (named {TEXTS[0]}) and a label (named {', '.join(VALUES[:4])}; "
            f"one of {', '.join(LABELS)}, or 1 to 5)"
        )
    return taken


def rows(path):
    """The rows of a file, a list of dicts."""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # what is wrong with the file is said below
        start = file.read(4)
        if start in OTHERS:
            raise LabelError(f"{path}: {OTHERS[start]}")
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
    if headings.lstrip('"').startswith("__label__"):
        raise LabelError(f"{path}: fastText does not say where a text ends: export JSONL")
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


def judgements(row, file):
    """What readers said of a row of the file of that name, a list of (reader, value); the value of what was not handed in is
    UNDONE, and UNKNOWN where that is not said."""
    if "data" in row and isinstance(row.get("annotations"), list):  # Label Studio
        given = [one for one in row["annotations"] if isinstance(one, dict)]
        return [(reader_of(one), value) for one in given for value in studio_values(one)]
    if isinstance(row.get("responses"), dict):  # Argilla
        answers = [answer for given in row["responses"].values() if isinstance(given, list) for answer in given]
        return argilla_values(answers)
    for name in sorted(row, key=lambda name: name.removesuffix(".responses") not in VALUES):
        value = row[name]
        if name.endswith(".responses"):  # Argilla 2
            return flat_values(row, name)
        if isinstance(value, list) and value and all(isinstance(one, dict) and "value" in one for one in value):  # Argilla 1
            return argilla_values(value)
    value = next((row[name] for name in VALUES if row.get(name) not in (None, "", [])), None)
    if value is None:
        return []
    if str(row.get("status")).lower() in ("discarded", "edited", "draft"):  # Argilla 1
        value = UNDONE
    doccano = {"Comments", "comments"} & set(row) and file != "all"  # it names each reader's file after them
    return [(reader_of(row, file if doccano else "me"), value)]  # or a table, or Label Studio's short form


def studio_values(annotation):
    """The choices and ratings in one reader's annotation of Label Studio."""
    if annotation.get("was_cancelled"):
        return [UNDONE]
    result = annotation.get("result")
    values = [one.get("value") for one in result if isinstance(one, dict)] if isinstance(result, list) else []
    found = [value.get("choices", value.get("rating")) for value in values if isinstance(value, dict)]
    return [value for value in found if value is not None]  # an explanation is neither


def flat_values(row, name):
    """(reader, value) of each answer to a question of Argilla 2, whose parts stand in three columns."""
    columns = [row.get(name + part) for part in ("", ".users", ".status")]
    if not columns[0]:
        return []
    if not all(isinstance(column, list) for column in columns):  # in a table
        return [(reader_of(row), LISTED)]
    return argilla_values([dict(zip(("value", "user_id", "status"), answer)) for answer in zip(*columns)])


def argilla_values(answers):
    """(reader, value) of each answer, a dict of "value", "status" and a reader."""
    found = []
    for one in answers:
        if isinstance(one, dict):
            status = one.get("status")
            value = one.get("value") if status == "submitted" else UNDONE if status else UNKNOWN
            found.append((reader_of(one), value))
    return found


def reader_of(row, nobody="me"):
    """Who read, as a text; `nobody` where no one is named."""
    for name in READERS:
        reader = row.get(name)
        reader = reader.get("email", reader.get("id")) if isinstance(reader, dict) else reader
        if reader not in (None, "") and not isinstance(reader, list):
            return str(reader)
    return nobody


def label_of(value):
    """One of our labels; for a value that is none, why not."""
    if value in (UNDONE, UNKNOWN, LISTED):
        return value
    if isinstance(value, str) and value.startswith(("[", "{")):  # a rating or several choices in Label Studio's tables
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return LISTED
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
