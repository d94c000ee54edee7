"""The gradebook: a file of results for each student; `grades.csv`, and tables that Canvas, Moodle and Gradescope import.

Points, lateness and marks for prose come from small CSV files, whose every line is checked before the first step of work.
"""

import csv
import hashlib
import io
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from rlhf_lib import exercises
from rlhf_lib.files import RunError, read_json, shown, write_atomic, write_json
from rlhf_lib.grading.verdicts import RIGHT, Result

GRADED, PARTLY, NOT = "graded", "partly graded", "not gradable"
BUILD_POINTS = 5.0
FORMULA = (*"=+-@＝＋－＠", "\t", "\r", "\n")  # how a cell begins that a spreadsheet would run


class Mark(NamedTuple):
    """What an exercise is worth: points, and whether a build earns a share of them by the probes that it passes."""

    points: float
    partial: bool = False


class Entry(NamedTuple):
    """What became of one student's submission. status: graded, partly graded or not gradable. reasons: sentences."""

    student: str
    id: str
    email: str
    status: str
    reasons: list
    results: list
    late: bool = False
    work: dict = {}  # of verdicts.work_in
    texts: dict = {}  # {investigation: what they write of it}

    @property
    def label(self):
        return f"{self.student} ({self.id})" if self.id else self.student


class Prose(NamedTuple):
    """A mark that a person gave for what a student wrote."""

    question: str
    points: float
    of: float
    comment: str


def slug(student, identity):
    """A file name for a student: the same each time, different for different students, safe on every disk."""
    plain = unicodedata.normalize("NFKD", student).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-")[:40] or "student"
    return f"{plain}-{hashlib.sha256(f'{student} {identity}'.encode()).hexdigest()[:8]}"


def save(path, fingerprint, entry):
    write_json(path, {"fingerprint": fingerprint, **entry._asdict(), "results": [result._asdict() for result in entry.results]})


def load(path, fingerprint=None):
    """The Entry at `path`, or None where there is none, or one of another fingerprint."""
    if not Path(path).exists():
        return None
    found = read_json(path, "delete the file, and the submission is graded again")
    if fingerprint is not None and found.get("fingerprint") != fingerprint:
        return None
    found.pop("fingerprint", None)
    try:
        entry = Entry(**{**found, "results": [Result(**result) for result in found["results"]]})
        for row in (entry, *entry.results):
            for name, kind in type(row).__annotations__.items():
                if not isinstance(getattr(row, name), kind):
                    raise TypeError(f"{name} is {shown(getattr(row, name))}")
        "".join([*entry.reasons, *entry.texts.values()])
    except (KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({str(error)[:160]}): delete it, and the submission is graded again") from None
    return entry


def status_of(found, results):
    """(status, reasons) of a Survey and the Results there are."""
    reasons = list(found.faults)
    if not found.exercises:
        return NOT, reasons or ["there is no exercise of the course in what was handed in"]
    if len(results) < len(found.exercises):
        return PARTLY, [*reasons, f"{len(found.exercises) - len(results)} exercises could not be graded"]
    return (PARTLY if found.faults else GRADED), reasons


# ----------------------------------------------------------------------------------------- small files


def rows_of(path, fields):
    """(line, row) of a CSV file with a head. Raises RunError, naming file and line, where a field is missing."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'}): give a CSV file in UTF-8"
        ) from None
    table = csv.DictReader(io.StringIO(text))
    try:
        head = [name.strip().lower() for name in table.fieldnames or []]
        table.fieldnames = head
        rows = [(table.line_num, row) for row in table]
    except csv.Error as error:
        raise RunError(f"{path}, line {table.line_num + 1}: not a table ({error}); save it as CSV again") from None
    lacking = [name for name in fields if name not in head]
    if lacking:
        raise RunError(f"{path}, line 1: there is no column {lacking[0]!r}; its first line must name {', '.join(fields)}")
    for line, row in rows:
        if any((value or "").strip() for value in row.values() if not isinstance(value, list)):
            yield line, {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}


def number_in(path, line, row, field, least=0.0, most=1e6):
    try:
        value = float(row[field])
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise RunError(f"{path}, line {line}: {field} must be a number from {least:g} to {most:g}, got {shown(row[field])}")
    return value


def read_points(path=None):
    """{exercise: Mark}: of the file at `path` (columns exercise, points and perhaps partial, yes or no), else what the notebooks
    say: 1 for an exercise, 5 for a build, 1 for a program that is only mended. Raises RunError."""
    exercises.load()
    if path is None:
        builds = {name: Mark(BUILD_POINTS if one.kept else 1.0) for name, one in exercises.BUILDS.items()}
        return {**{name: Mark(1.0) for name in exercises.EXERCISES}, **builds}
    marks = {}
    for line, row in rows_of(path, ("exercise", "points")):
        name = row["exercise"]
        if name not in exercises.EXERCISES and name not in exercises.BUILDS:
            raise RunError(f'{path}, line {line}: there is no exercise {shown(name)}; write its name as in `check("gae", gae)`')
        if name in marks:
            raise RunError(f"{path}, line {line}: {name} stands here a second time; leave one of the lines")
        partial = row.get("partial", "") or "no"
        if partial.lower() not in ("yes", "no"):
            raise RunError(f"{path}, line {line}: partial must be yes or no, got {shown(partial)}")
        marks[name] = Mark(number_in(path, line, row, "points"), partial.lower() == "yes")
    return marks


def read_late(path, students):
    """{student: share of the points that is left} from a file with the columns student and share, such as 0.8 for a day late.

    A line `(late)` holds for all that Canvas marks as late. Raises RunError.
    """
    shares = {}
    for line, row in rows_of(path, ("student", "share")) if path else ():
        name = unicodedata.normalize("NFC", row["student"])
        if name != "(late)" and name not in students:
            raise RunError(
                f"{path}, line {line}: nobody called {shown(name)} handed in; write the name as in grades.csv, or (late)"
            )
        shares[name] = number_in(path, line, row, "share", 0.0, 1.0)
    return shares


def read_prose(path, students):
    """{student: [Prose]} of a file with the columns student, question, points, of and perhaps comment; {} where there is none.

    Raises RunError.
    """
    marks = {}
    for line, row in rows_of(path, ("student", "question", "points", "of")) if Path(path).exists() else ():
        name = unicodedata.normalize("NFC", row["student"])
        if name not in students:
            raise RunError(f"{path}, line {line}: nobody called {shown(name)} handed in; write the name as in grades.csv")
        of = number_in(path, line, row, "of")
        mark = Prose(row["question"], number_in(path, line, row, "points", 0.0, of), of, row.get("comment", ""))
        if any(one.question == mark.question for one in marks.setdefault(name, [])):
            raise RunError(f"{path}, line {line}: {name} has a mark for {shown(mark.question)} already; leave one of the lines")
        marks[name].append(mark)
    return marks


# ----------------------------------------------------------------------------------------- tables


def earned(result, mark):
    if result.verdict == RIGHT:
        return mark.points
    return mark.points * result.passed / result.tried if mark.partial and result.tried else 0.0


def share_of(entry, shares):
    """The share of the points that lateness leaves."""
    return next(
        (shares[key] for key in (entry.id, entry.student) if key in shares), shares.get("(late)", 1.0) if entry.late else 1.0
    )


def rows_for(entries, marks, shares, prose):
    """The rows of `grades.csv`: student, exercise, points, verdict, mistake. A submission without results has one row."""
    for entry in entries:
        share = share_of(entry, shares)
        base = {"student": entry.student, "id": entry.id, "status": entry.status, "late": f"{share:g}"}
        results = [one for one in entry.results if one.exercise in marks]
        for one in results:
            mark = marks[one.exercise]
            points = {"points": f"{earned(one, mark) * share:g}", "of": f"{mark.points:g}"}
            what = {"exercise": one.exercise, "verdict": one.verdict, "mistake": one.mistake, "note": one.note}
            yield {**base, "number": one.number, **points, **what}
        for one in prose.get(entry.student, ()):
            points = {"points": f"{one.points * share:g}", "of": f"{one.of:g}"}
            yield {**base, "exercise": one.question, **points, "verdict": "marked by hand", "note": one.comment}
        if not results or entry.status == NOT:
            yield {**base, "points": "0", "verdict": entry.status, "note": "; ".join(entry.reasons)}


COLUMNS = ("student", "id", "number", "exercise", "points", "of", "verdict", "mistake", "note", "status", "late")


def total(entry, marks, shares, prose):
    code = sum(earned(one, marks[one.exercise]) for one in entry.results if one.exercise in marks)
    return (code + sum(one.points for one in prose.get(entry.student, ()))) * share_of(entry, shares)


def table(columns, rows):
    """A CSV table as bytes, with a mark that spreadsheets know UTF-8 by; nothing in it is run by a spreadsheet."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: f"'{value}" if str(value).startswith(FORMULA) and not number(value) else value for key, value in row.items()}
        )
    return b"\xef\xbb\xbf" + text.getvalue().encode()


def number(value):
    try:
        return float(value) is not None
    except ValueError:
        return False


def write_tables(out, entries, marks, shares, prose, title="RLHF from Shakespeare"):
    """`grades.csv`, and one table each for Canvas, Moodle and Gradescope."""
    out = Path(out)
    write_atomic(out / "grades.csv", table(COLUMNS, rows_for(entries, marks, shares, prose)))
    most = sum(mark.points for mark in counted(entries, marks).values())
    most += sum({one.question: one.of for texts in prose.values() for one in texts}.values())
    points = {id(entry): f"{total(entry, marks, shares, prose):g}" for entry in entries}
    column = f"{title} ({most:g} points)"
    canvas = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section", title)
    rows = [{"Student": "    Points Possible", title: f"{most:g}"}]
    rows += [{"Student": entry.student, "ID": entry.id, title: points[id(entry)]} for entry in entries]
    write_atomic(out / "canvas.csv", table(canvas, rows))
    moodle = ("Identifier", "Full name", "Email address", "Grade", "Maximum grade", "Last modified (grade)", "Feedback comments")
    rows = [
        {
            "Identifier": f"Participant {entry.id}" if entry.id else "", "Full name": entry.student, "Email address": entry.email,
            "Grade": points[id(entry)], "Maximum grade": f"{most:g}", "Feedback comments": comment(entry),
        }
        for entry in entries
    ]  # fmt: skip
    write_atomic(out / "moodle.csv", table(moodle, rows))
    gradescope = ("Name", "SID", "Email", column)
    rows = [{"Name": entry.student, "SID": entry.id, "Email": entry.email, column: points[id(entry)]} for entry in entries]
    write_atomic(out / "gradescope.csv", table(gradescope, rows))


def counted(entries, marks):
    """Those exercises of `marks` that count here: of the chapters that anybody handed in."""
    there = {one.exercise for entry in entries for one in entry.results}
    return {name: mark for name, mark in marks.items() if name in there}


def comment(entry):
    """In a line, what the student should know."""
    if entry.status == NOT:
        return f"Not gradable: {'; '.join(entry.reasons)}"
    open_ones = [f"{one.number} {one.exercise}: {one.verdict}" for one in entry.results if one.verdict != RIGHT]
    return "; ".join(open_ones) or "all right"
