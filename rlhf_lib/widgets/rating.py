"""Rate samples without knowing which model wrote them: a session in a file, by typing or by buttons."""

import csv
import io
import random
from pathlib import Path

import ipywidgets as widgets

from rlhf_lib import judge, plots
from rlhf_lib.files import one_at_a_time, shown, write_atomic
from rlhf_lib.widgets.parts import (
    EDGE,
    PLAIN,
    UP,
    bundle,
    button,
    checked_name,
    checked_texts,
    escape,
    framed,
    guarded,
    key_box,
    table,
    tint,
    wrap,
)

SCORES = {
    "positivity": ("1 very negative", "3 neutral, 5 very positive"),
    "sense": ("1 none", "3 half of it makes sense, 5 reads like real lines"),
}
FIELDS = ("sample", "rater", "positivity", "sense", "source", "text")


def read_ratings(path):
    """The rows of a CSV file of ratings, as `judge.blind_rating` takes them; `source` is empty until it was revealed.

    Raises:
        ValueError: the file is not one, or a score is not a number from 1 to 5.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        reader = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV file of ratings ({error}): give another path") from None
    if tuple(reader.fieldnames or ()) != FIELDS:
        raise ValueError(f"{path} is not a CSV file of ratings: its first line must be {','.join(FIELDS)}")
    for number, row in enumerate(rows, 1):
        for score in SCORES:
            if row[score] not in ("1", "2", "3", "4", "5"):
                raise ValueError(
                    f"{path}, rating {number}: {score} must be 1 to 5, got {shown(row[score])}; correct it or delete it"
                )
            row[score] = int(row[score])
    return rows


def write_ratings(path, rows):
    """Write the rows of `read_ratings`, atomically."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, FIELDS)
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, buffer.getvalue().encode())


class BlindRating:
    """One rater's scores of shuffled samples of two or three models, in a CSV file; the source stays hidden until `reveal`.

    `current` is the number of the sample to rate now, None when all are done; `text` is what it says. Numbers are the
    same for all raters, the order is each rater's own.

    Args:
        samples: {"base": [text, ...], "policy": [text, ...]}, and "negative" if there is such a model; at least 2 of each.
        path: the CSV file; made with the first rating, shared by all raters.
        rater: who rates.
        seed: of the shuffle.

    Raises:
        ValueError: too few samples, no rater's name, or a file that is damaged or belongs to other samples.
    """

    def __init__(self, samples, path, rater="me", seed=0):
        if not isinstance(samples, dict) or set(samples) not in ({"base", "policy"}, set(judge.WRITERS)):
            raise ValueError('samples must be {"base": [texts], "policy": [texts]}, and "negative" if you like')
        self.path, self.rater = Path(path), checked_name(rater, "rater")
        items = [
            (source, text) for source in judge.WRITERS if source in samples for text in checked_texts(samples[source], source)
        ]
        if min(sum(source == side for source, _ in items) for side in samples) < 2:
            raise ValueError("an interval needs at least 2 different samples of each model")
        random.Random(seed).shuffle(items)
        self.items = {str(number): item for number, item in enumerate(items, 1)}
        self.order = list(self.items)
        random.Random(f"{seed} {self.rater}").shuffle(self.order)
        self.move()

    def rows(self):
        """All ratings in the file."""
        rows = read_ratings(self.path)
        if any(row["text"] != self.items.get(row["sample"], ("", None))[1] for row in rows):
            raise ValueError(f"{self.path} holds ratings of other samples, or of another seed: give another path")
        return rows

    def mine(self):
        """This rater's ratings."""
        return [row for row in self.rows() if row["rater"] == self.rater]

    def move(self):
        """On to the first sample without a rating."""
        done = {row["sample"] for row in self.mine()}
        self.current = next((number for number in self.order if number not in done), None)

    @property
    def text(self):
        """The sample to rate."""
        return self.items[self.current][1]

    @property
    def revealed(self):
        """Whether this rater has seen the sources."""
        return any(row["source"] for row in self.mine())

    def rate(self, positivity, sense):
        """Score the current sample, each score from 1 to 5, and move on."""
        for name, score in (("positivity", positivity), ("sense", sense)):
            if score not in (1, 2, 3, 4, 5):
                raise ValueError(f"{name} must be 1, 2, 3, 4 or 5, got {score!r}")
        with one_at_a_time(self.path.parent):  # all raters write to one file
            rows = self.rows()
            if self.current is not None and (self.current, self.rater) not in {(row["sample"], row["rater"]) for row in rows}:
                row = {"sample": self.current, "rater": self.rater, "positivity": positivity, "sense": sense, "source": ""}
                write_ratings(self.path, [*rows, {**row, "text": self.text}])
        self.move()

    def undo(self):
        """Take this rater's last rating back; not once the sources were seen."""
        if self.revealed:
            raise ValueError("the sources were shown: ratings can no longer be changed")
        with one_at_a_time(self.path.parent):
            mine = self.mine()
            if mine:
                write_ratings(self.path, [row for row in self.rows() if row != mine[-1]])
        self.move()

    def reveal(self):
        """Write the source beside each of this rater's ratings, once all are given."""
        if self.current is not None:
            raise ValueError("the sources stay hidden until every sample is rated")
        with one_at_a_time(self.path.parent):
            rows = [row if row["rater"] != self.rater else {**row, "source": self.items[row["sample"]][0]} for row in self.rows()]
            write_ratings(self.path, rows)

    def results(self):
        """`judge.blind_rating` of all raters who are through. Raises ValueError before `reveal`."""
        if not self.revealed:
            raise ValueError("there are results once every sample is rated and the sources are shown")
        return judge.blind_rating([row for row in self.rows() if row["source"]])


def result_rows(result):
    """The result of a blind rating as rows of text, the head first: score, each model's mean, win rate."""
    found = [side for side in judge.WRITERS if side in result["sense"]]
    rows = [["mean (95 % interval)", *found, "policy beats base"]]
    for score in SCORES:
        sides = ["{:.2f} ({:.2f} to {:.2f})".format(*result[score][side]) for side in found]
        rows.append([score, *sides, "{:.0%} ({:.0%} to {:.0%})".format(*result[score]["win_rate"])])
    return rows


def correlation_line(session):
    """Who rated, and how their positivity correlates, as a sentence."""
    raters = sorted({row["rater"] for row in session.rows() if row["source"]})
    value = session.results()["correlation"]
    said = "one rater: ask a second one to rate the same file" if len(raters) < 2 else "no correlation can be computed"
    if value is not None:
        said = f"their positivity correlates at {value:.2f}"
    return f"rated by {', '.join(raters)}; {said}"


def rate_by_typing(samples, path, rater="me", seed=0, ask=input):
    """`blind_rating` without widgets: type two digits (positivity, sense), u to undo, q to stop. Returns the BlindRating."""
    session = BlindRating(samples, path, rater, seed)
    while session.current is not None:
        done, total = len(session.mine()), len(session.items)
        answer = ask(f"\n{session.text}\n[{done} of {total}] positivity and sense, 1 to 5 each (u undo, q stop): ")
        answer = answer.replace(" ", "").strip().lower()
        if answer == "q":
            return session
        if answer == "u":
            session.undo()
        elif len(answer) == 2 and set(answer) <= set("12345"):
            session.rate(int(answer[0]), int(answer[1]))
    session.reveal()
    for row in result_rows(session.results()):
        print("  ".join(f"{text:<24}" for text in row).rstrip())
    print(correlation_line(session))
    return session


def blind_rating(samples, path, rater="me", seed=0):
    """Rate samples without knowing which model wrote them; see BlindRating for the arguments and the errors.

    Returns:
        A widget. `session` is its BlindRating, `scores["positivity"][3]` a button, and so on; `buttons` has "undo" and
        "reveal", `keyboard` is the box for digits.
    """
    session = BlindRating(samples, path, rater, seed)
    passage, note, count = widgets.HTML(), widgets.HTML(), widgets.Label()
    bar = widgets.IntProgress(max=len(session.items), layout=widgets.Layout(width="14em"))
    scores = {name: {value: button(str(value), width="3.2em") for value in range(1, 6)} for name in SCORES}
    buttons = {"undo": button("undo (u)", width="6em"), "reveal": button("show who wrote what", UP, "14em")}
    chosen = {}

    def choose(name, value):
        chosen[name] = value
        if len(chosen) == len(SCORES):
            given = dict(chosen)
            chosen.clear()
            session.rate(**given)

    def undo():
        if chosen:
            chosen.clear()
        else:
            session.undo()

    def show():
        done, total = len(session.mine()), len(session.items)
        bar.value, count.value = done, f"{done} of {total} rated by {session.rater}"
        if session.revealed:
            passage.value = result_html(session)
        elif session.current is None:
            passage.value = framed(
                "Every sample is rated. After you have seen the sources, nothing can be changed.", height="8em"
            )
        else:
            text = f'<span style="font-size: 115%">{escape(session.text)}</span>'
            passage.value = framed(text, f"sample {done + 1} of {total}", height="8em")
        for name, row in scores.items():
            for value, one in row.items():
                one.disabled = session.current is None
                picked = chosen.get(name) == value
                one.style.button_color = tint(UP, 0.6) if picked else tint(PLAIN, 0.25)
                one.layout.border = f"2px solid {plots.BLUE}" if picked else EDGE
        buttons["undo"].disabled = session.revealed or not (done or chosen)
        buttons["reveal"].disabled = session.current is not None or session.revealed

    for name, row in scores.items():
        for value, one in row.items():
            one.on_click(guarded(lambda name=name, value=value: choose(name, value), show, note))
    actions = {"undo": guarded(undo, show, note), "reveal": guarded(session.reveal, show, note)}
    for name, action in actions.items():
        buttons[name].on_click(action)

    def digit(value):
        return guarded(lambda: choose(next(name for name in SCORES if name not in chosen), value), show, note)

    keyboard = key_box({"u": actions["undo"], **{str(value): digit(value) for value in range(1, 6)}}, "or type two digits here")
    show()
    lines = []
    for name, (low, high) in SCORES.items():
        ends = [widgets.Label(name, layout=widgets.Layout(width="6em")), widgets.Label(low, layout=widgets.Layout(width="9em"))]
        lines.append(widgets.HBox([*ends, *scores[name].values(), widgets.Label(high)], layout=wrap()))
    rows = (
        passage,
        *lines,
        widgets.HBox([keyboard, *buttons.values()], layout=wrap()),
        widgets.HBox([bar, count], layout=wrap()),
        note,
    )
    return bundle(
        rows, session=session, scores=scores, buttons=buttons, keyboard=keyboard, passage=passage, count=count, note=note
    )


def result_html(session):
    """The table of results, who agrees with whom, and every sample with its source."""
    rated = {row["sample"]: row for row in session.mine()}
    rows = [(source, rated[number]["positivity"], rated[number]["sense"], text.strip())
            for number, (source, text) in sorted(session.items.items(), key=lambda item: item[1][0])]  # fmt: skip
    every = f"<details><summary>every sample with its source</summary>{table(('source', *SCORES, 'text'), rows)}</details>"
    said = f"<div>{escape(correlation_line(session))}</div><div>{escape(f'The ratings are in {session.path}')}</div>"
    head, *figures = result_rows(session.results())
    return table(head, figures) + said + every
