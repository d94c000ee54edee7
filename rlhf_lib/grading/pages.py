"""What is read in a browser: a page of feedback for each student, and the report on the class, each one file.

A page of feedback shows what passed, the mistake by its name, and the smallest input of the published seed that fails; never an
input that was drawn for the grades, and no solution.
"""

import base64
import collections
import io
import statistics
from pathlib import Path

from jinja2 import Environment

from rlhf_lib import exercises, plots
from rlhf_lib.files import write_atomic
from rlhf_lib.grading import gradebook
from rlhf_lib.grading.verdicts import RIGHT, STOPPED, SYNTAX, WRONG

FEEDBACK, REPORT, TO_READ = (
    Path(__file__).with_name(name) for name in ("feedback.html.j2", "class_report.html.j2", "to_read.html.j2")
)


def render(template, **values):
    page = Environment(autoescape=True, trim_blocks=True).from_string(template.read_text(encoding="utf-8"))
    return page.render(**values).encode()


def page_of(entry):
    return f"{gradebook.slug(entry.student, entry.id)}.html"


def write_feedback(out, entries, marks, shares, prose):
    """`feedback/NAME.html` for each student; returns {label of the entry: path}."""
    written = {}
    for entry in entries:
        share = gradebook.share_of(entry, shares)
        rows = [
            (one, gradebook.earned(one, marks[one.exercise]), marks[one.exercise].points)
            for one in entry.results
            if one.exercise in marks
        ]
        path = Path(out) / "feedback" / page_of(entry)
        texts = prose.get(entry.student, [])
        page = render(
            FEEDBACK, entry=entry, rows=rows, share=share, texts=texts, total=gradebook.total(entry, marks, shares, prose),
            most=sum(of for *_, of in rows) + sum(one.of for one in texts), right=RIGHT,
        )  # fmt: skip
        write_atomic(path, page)
        written[entry.label] = path
    return written


def write_report(out, entries, marks, shares, prose, alike):
    """`class_report.html`: pass rates, named mistakes, the distribution of marks, and what a person should look at."""
    tally = {}  # exercise -> Counter of verdicts
    mistakes = collections.Counter()
    numbers = {}
    for entry in entries:
        for one in entry.results:
            if one.exercise in marks:
                tally.setdefault(one.exercise, collections.Counter())[one.verdict] += 1
                numbers[one.exercise] = [int(part) for part in one.number.split(".")]
                if one.verdict in (WRONG, STOPPED) and one.mistake:
                    mistakes[one.number, one.exercise, one.mistake] += 1
    names = sorted(tally, key=numbers.get)
    totals = [gradebook.total(entry, marks, shares, prose) for entry in entries]
    figures = {"rates": png(pass_rates(names, tally)), "marks": png(distribution(totals))} if names else {}
    work = work_of(entries, names)
    if work:
        figures["work"] = png(tries_and_minutes(work))
    page = render(
        REPORT, entries=entries, figures=figures, tally=[(numbers[name], name, tally[name]) for name in names],
        work=[(numbers[name], name, of) for name, of in work.items()], mistakes=mistakes.most_common(60),
        alike=alike, right=RIGHT, students=[
            (one, points, sum(result.verdict == RIGHT for result in one.results if result.exercise in marks), page_of(one))
            for one, points in zip(entries, totals)
        ],
        look=[entry for entry in entries if entry.status != gradebook.GRADED],
        notes=[(entry, one) for entry in entries for one in entry.results if one.note],
        verdicts=[RIGHT, WRONG, STOPPED, SYNTAX, "not written", "missing"],
    )  # fmt: skip
    write_atomic(Path(out) / "class_report.html", page)


def write_texts(out, entries, prose):
    """`to_read.html`: what all wrote of an investigation, one under the other, with the marks that there are."""
    exercises.load()
    texts = [
        (
            number,
            one.title,
            [(entry, entry.texts[number], mark_of(entry, number, prose)) for entry in entries if number in entry.texts],
        )
        for number, one in exercises.INVESTIGATIONS.items()
    ]
    write_atomic(Path(out) / "to_read.html", render(TO_READ, texts=[one for one in texts if one[2]]))


def mark_of(entry, question, prose):
    """The Prose of a question that was marked already; None where it was not."""
    return next((one for one in prose.get(entry.student, ()) if one.question == question), None)


def pass_rates(names, tally):
    """A bar for each exercise: the share of those who handed in that is right, wrong, and not written."""
    fig, (ax,) = plots.figure(height=0.9 + 0.26 * len(names), width=7.5)
    left = [0.0] * len(names)
    kinds = {
        "right": ([RIGHT], plots.GREEN), "wrong": ([WRONG, SYNTAX], plots.ORANGE), "stopped": ([STOPPED], plots.PINK),
        "not written": (["not written", "missing"], plots.GREY),
    }  # fmt: skip
    for label, (verdicts, color) in kinds.items():
        shares = [100 * sum(tally[name][one] for one in verdicts) / tally[name].total() for name in names]
        ax.barh(names, shares, left=left, color=color, label=label)
        left = [before + share for before, share in zip(left, shares)]
    ax.invert_yaxis()
    ax.set(xlabel="% of submissions", xlim=(0, 100), title="Verdicts")
    ax.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.6 / (0.9 + 0.26 * len(names))))
    return fig


def work_of(entries, names):
    """{exercise: (students, median tries, most tries, median minutes)} of what their own files say; None for what they do not."""
    found = {}
    for name in names:
        notes = [entry.work[name] for entry in entries if name in entry.work]
        tries, minutes = ([one[place] for one in notes if one[place] is not None] for place in (0, 1))
        if tries or minutes:
            middle = [statistics.median(one) if one else None for one in (tries, minutes)]
            found[name] = len(notes), middle[0], max(tries, default=None), middle[1]
    return found


def tries_and_minutes(work):
    """The two medians of `work_of`, a bar for each exercise."""
    fig, (left, right) = plots.figure(columns=2, height=0.9 + 0.26 * len(work), width=4.2)
    for ax, place, label in ((left, 1, "tries"), (right, 3, "minutes")):
        ax.barh([*work], [of[place] or 0 for of in work.values()], color=plots.BLUE)
        ax.invert_yaxis()
        ax.set(xlabel=f"{label}, median")
    right.set_yticklabels([])
    return fig


def distribution(totals):
    fig, (ax,) = plots.figure(height=2.8, width=6)
    ax.hist(totals, bins=min(20, max(5, len(set(totals)))), color=plots.BLUE)
    ax.set(xlabel="points", ylabel="students", title="Marks")
    return fig


def png(figure):
    """A matplotlib figure as base64 text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()
