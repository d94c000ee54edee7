"""Widgets for the chapters, on core ipywidgets of version 7 (Colab) or 8, and the plain parts that do without them.

    labelling       label passages                       plain: Labelling, label_by_typing
    blind_rating    rate samples without their source    plain: BlindRating, rate_by_typing
    sampler         models side by side                  plain: sample, tinted
    explorer        a run's checkpoints                  plain: checkpoints, checkpoint_samples, checkpoint_curves
    LiveCurves      curves of a loop while it runs       plain: its records and .figure()

What a person does is on disk after every press. All text is escaped before it is shown as HTML, and every colour is a tint
or a border that shows on a light page and on a dark one.
"""

import contextlib
import csv
import html
import io
import random
import threading
import time
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import torch

from rlhf_lib import judge, labels, plots, pretrain, reward, runs
from rlhf_lib.corpus import SEPARATOR
from rlhf_lib.sampling import evaluating, generate

UP, DOWN, PLAIN = (0, 114, 178), (213, 94, 0), (127, 127, 127)  # plots.BLUE, ORANGE and GREY as red, green, blue
EDGE = "1px solid rgba(127, 127, 127, 0.5)"


# ----------------------------------------------------------------------------------------- what the widgets share


def tint(color, alpha):
    """A CSS colour that lets the page's own colour through."""
    return f"rgba({color[0]}, {color[1]}, {color[2]}, {alpha:.2f})"


def escape(text):
    return html.escape(str(text))


def framed(inner, title="", height="0"):
    """HTML `inner` in a frame under a plain `title`."""
    head = f'<div style="opacity: 0.7; font-size: 90%; margin-bottom: 0.3em">{escape(title)}</div>' if title else ""
    style = f"border: {EDGE}; border-radius: 6px; padding: 0.6em 0.9em; margin: 0.3em 0; line-height: 1.45; min-height: {height}"
    return f'<div style="{style}">{head}<div style="white-space: pre-wrap; overflow-wrap: anywhere">{inner}</div></div>'


def columns(cards):
    """Cards side by side, one under the other where the page is narrow."""
    each = "".join(f'<div style="flex: 1 1 20em; min-width: 0">{one}</div>' for one in cards)
    return f'<div style="display: flex; flex-wrap: wrap; gap: 0 0.8em">{each}</div>'


def table(head, rows):
    """An HTML table of plain texts."""
    cell = f'style="border: {EDGE}; padding: 0.25em 0.7em; text-align: left; white-space: pre-wrap"'
    lines = [f"<tr>{''.join(f'<{tag} {cell}>{escape(text)}</{tag}>' for text in row)}</tr>"
             for tag, row in [("th", head), *(("td", row) for row in rows)]]  # fmt: skip
    return f'<table style="border-collapse: collapse; margin: 0.4em 0; background: none">{"".join(lines)}</table>'


def button(text, color=PLAIN, width="auto", tip=""):
    style = {"button_color": tint(color, 0.25)}
    return widgets.Button(description=text, tooltip=tip, style=style, layout=widgets.Layout(width=width, border=EDGE))


def key_box(actions, hint):
    """A text box that calls `actions[key]` for each key typed into it: core widgets have no key events of their own.

    What was typed stays in the box. Clearing it would race with the next key.
    """
    box = widgets.Text(description="keys", placeholder=hint, layout=widgets.Layout(width="24em"))

    def typed(change):
        old, new = change["old"], change["new"]
        for key in new[len(old) :].lower() if new.startswith(old) else "":
            if key in actions:
                actions[key]()

    box.observe(typed, names="value")
    return box


def guarded(action, show, note):
    """`action` as a callback: then `show()`; an error that says what is wrong stands in the HTML widget `note`."""

    def call(*_):
        note.value = ""
        for step in (action, show):
            try:
                step()
            except (ValueError, RuntimeError, OSError) as error:
                note.value = framed(escape(error), "That did not work")

    return call


def png(figure):
    """A matplotlib figure as the bytes of a picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def picture():
    return widgets.Image(format="png", layout=widgets.Layout(max_width="100%", align_self="flex-start"))


def wrap():
    """The layout of a row that breaks where the page is narrow."""
    return widgets.Layout(flex_flow="row wrap", align_items="center")


def bundle(rows, **parts):
    """The widget of `rows`, with its parts as attributes."""
    box = widgets.VBox(rows)
    for name, part in parts.items():
        setattr(box, name, part)
    return box


def checked_texts(texts, what):
    """`texts` as a list of str, each once. Raises ValueError for none, for one that is empty, and for a single str."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{what} must be a list of texts")
    if not texts:
        raise ValueError(f"{what}: there is no text in the list")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise ValueError(f"{what}: text {number} is empty; leave it out")
    return list(dict.fromkeys(texts))


def checked_name(name, what):
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{what} must be a name, got {name!r}")
    return name.strip()


# ----------------------------------------------------------------------------------------- labelling

LABEL_KEYS = {"n": "negative", "0": "neutral", "p": "positive"}


class Labelling:
    """One reader's labels of `texts`, in a file that `labels.read` reads.

    The file is read again before every step and written after it, so readers can share it. `current` is the passage to
    label now, None when all are done. A skipped passage is not written: it comes back in the next session.

    Args:
        texts: a list of str; a passage that is there twice is asked for once.
        path: the JSON-lines file; made with the first label.
        reader: who reads.
        checkpoint: what wrote the passages.

    Raises:
        ValueError: no passages, an empty one, no reader's name, or (LabelError) a damaged file.
    """

    def __init__(self, texts, path, reader="me", checkpoint=""):
        self.texts, self.reader = checked_texts(texts, "texts"), checked_name(reader, "reader")
        self.path, self.checkpoint = Path(path), checkpoint
        self.skipped = {}  # passage: how many labels there were when it was skipped
        self.move()

    def all_given(self):
        return labels.read(self.path) if self.path.exists() else []

    def given(self):
        """This reader's labels of these passages, in the file's order."""
        wanted = {(text, self.checkpoint) for text in self.texts}
        return [label for label in self.all_given() if label.reader == self.reader and label.source in wanted]

    def move(self):
        """On to the first passage that is neither labelled nor skipped."""
        done = {label.text for label in self.given()} | set(self.skipped)
        self.current = next((text for text in self.texts if text not in done), None)

    def label(self, name):
        """Label the current passage "negative", "neutral" or "positive", and move on."""
        if name not in labels.LABELS:
            raise ValueError(f"unknown label {name!r}; use one of {', '.join(labels.LABELS)}")
        text = self.current
        if text is not None and text not in {label.text for label in self.given()}:  # another window may have been faster
            labels.append(self.path, labels.Label(text, name, self.reader, (text, self.checkpoint)))
        self.move()

    def skip(self):
        if self.current is not None:
            self.skipped[self.current] = len(self.given())
        self.move()

    def undo(self):
        """Take the last skip or label back: its passage comes again, and its line goes out of the file."""
        given = self.given()
        if self.skipped and list(self.skipped.values())[-1] == len(given):
            self.skipped.popitem()
        elif given:
            lines = self.path.read_text(encoding="utf-8").split("\n")
            kept = [line for line in lines if not line.strip() or labels.parse(line, self.path) != given[-1]]
            runs.write_atomic(self.path, "\n".join(kept).encode())
        self.move()

    def progress(self):
        """(labelled, skipped, all)"""
        return len(self.given()), len(self.skipped), len(self.texts)

    def agreement(self):
        """`labels.agreement` with every other reader of the file who labelled some of the same passages, by name."""
        mine, by_reader = self.given(), {}
        for label in self.all_given():
            if label.source in {one.source for one in mine} and label.reader != self.reader:
                by_reader.setdefault(label.reader, []).append(label)
        return {reader: labels.agreement(mine, theirs) for reader, theirs in by_reader.items()}


def agreement_lines(session):
    """What `session.agreement()` says, a line for each other reader."""
    return [
        f"{reader} read {a['passages']} of them too: the same label on {a['agreement']:.0%}, kappa {a['kappa']:.2f}"
        for reader, a in session.agreement().items()
    ]


def label_by_typing(texts, path, reader="me", checkpoint="", ask=input):
    """`labelling` without widgets: type n, 0 or p, s to skip, u to undo, q to stop. Returns the Labelling."""
    session = Labelling(texts, path, reader, checkpoint)
    while session.current is not None:
        labelled, _, total = session.progress()
        key = ask(f"\n{session.current}\n[{labelled} of {total}] n, 0, p (s skip, u undo, q stop): ").strip().lower()
        if key == "q":
            break
        if key in LABEL_KEYS:
            session.label(LABEL_KEYS[key])
        elif key == "s":
            session.skip()
        elif key == "u":
            session.undo()
    return session


def labelling(texts, path, reader="me", checkpoint=""):
    """Buttons and keys to label passages with; see Labelling for the arguments and the errors.

    Returns:
        A widget. `session` is its Labelling, `buttons` its buttons by name, `keyboard` the box for n, 0, p, s and u.
    """
    session = Labelling(texts, path, reader, checkpoint)
    colors = {"negative": DOWN, "neutral": PLAIN, "positive": UP}
    buttons = {name: button(f"{name} ({key})", colors[name], "9em") for key, name in LABEL_KEYS.items()}
    buttons["skip"] = button("skip (s)", width="6em", tip="not written; comes back in the next session")
    buttons["undo"] = button("undo (u)", width="6em", tip="takes the last label or skip back")
    passage, note, count = widgets.HTML(), widgets.HTML(), widgets.Label()
    bar = widgets.IntProgress(max=len(session.texts), layout=widgets.Layout(width="14em"))

    def show():
        labelled, skipped, total = session.progress()
        bar.value = labelled
        count.value = f"{labelled} of {total} labelled by {session.reader}" + (f", {skipped} skipped" if skipped else "")
        if session.current is None:
            said = [f"Done: every passage is labelled or skipped. The labels are in {session.path}", *agreement_lines(session)]
            passage.value = framed(escape("\n".join(said)), "Thank you", height="8em")
        else:
            place = session.texts.index(session.current) + 1
            title = f"passage {place} of {total}: what feeling does it leave in you?"
            passage.value = framed(f'<span style="font-size: 115%">{escape(session.current)}</span>', title, height="8em")
        for name in (*labels.LABELS, "skip"):
            buttons[name].disabled = session.current is None
        buttons["undo"].disabled = not (labelled or skipped)

    steps = {name: (lambda name=name: session.label(name)) for name in labels.LABELS}
    steps |= {"skip": session.skip, "undo": session.undo}
    actions = {name: guarded(step, show, note) for name, step in steps.items()}
    for name, action in actions.items():
        buttons[name].on_click(action)
    keys = {**LABEL_KEYS, "s": "skip", "u": "undo"}
    keyboard = key_box({key: actions[name] for key, name in keys.items()}, "click here, then type n, 0 or p")
    show()
    rows = (
        passage,
        widgets.HBox(list(buttons.values()), layout=wrap()),
        widgets.HBox([keyboard, bar, count], layout=wrap()),
        note,
    )
    return bundle(rows, session=session, buttons=buttons, keyboard=keyboard, passage=passage, count=count, note=note)


# ----------------------------------------------------------------------------------------- blind rating

SCORES = {"positivity": ("1 very negative", "5 very positive"), "sense": ("1 makes no sense", "5 could be Shakespeare")}
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
        reader = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8"), newline=""), strict=True)
        rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV file of ratings ({error}): give another path") from None
    if tuple(reader.fieldnames or ()) != FIELDS:
        raise ValueError(f"{path} is not a CSV file of ratings: its first line must be {','.join(FIELDS)}")
    for number, row in enumerate(rows, 1):
        for score in SCORES:
            if row[score] not in ("1", "2", "3", "4", "5"):
                raise ValueError(f"{path}, rating {number}: {score} must be 1 to 5, got {row[score]!r}; correct it or delete it")
            row[score] = int(row[score])
    return rows


def write_ratings(path, rows):
    """Write the rows of `read_ratings`, atomically."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, FIELDS)
    writer.writeheader()
    writer.writerows(rows)
    runs.write_atomic(path, buffer.getvalue().encode())


class BlindRating:
    """One rater's scores of shuffled samples of two models, in a CSV file; the source stays hidden until `reveal`.

    `current` is the number of the sample to rate now, None when all are done; `text` is what it says. Numbers are the
    same for all raters, the order is each rater's own.

    Args:
        samples: {"base": [text, ...], "policy": [text, ...]}, at least 2 on each side.
        path: the CSV file; made with the first rating, shared by all raters.
        rater: who rates.
        seed: of the shuffle.

    Raises:
        ValueError: too few samples, no rater's name, or a file that is damaged or belongs to other samples.
    """

    def __init__(self, samples, path, rater="me", seed=0):
        if not isinstance(samples, dict) or set(samples) != {"base", "policy"}:
            raise ValueError('samples must be {"base": [texts], "policy": [texts]}')
        self.path, self.rater = Path(path), checked_name(rater, "rater")
        items = [(source, text) for source in ("base", "policy") for text in checked_texts(samples[source], source)]
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
        return [row for row in self.rows() if row["rater"] == self.rater]

    def move(self):
        done = {row["sample"] for row in self.mine()}
        self.current = next((number for number in self.order if number not in done), None)

    @property
    def text(self):
        return self.items[self.current][1]

    @property
    def revealed(self):
        return any(row["source"] for row in self.mine())

    def rate(self, positivity, sense):
        """Score the current sample, each score from 1 to 5, and move on."""
        for name, score in (("positivity", positivity), ("sense", sense)):
            if score not in (1, 2, 3, 4, 5):
                raise ValueError(f"{name} must be 1, 2, 3, 4 or 5, got {score!r}")
        rows = self.rows()
        if self.current is not None and (self.current, self.rater) not in {(row["sample"], row["rater"]) for row in rows}:
            row = {"sample": self.current, "rater": self.rater, "positivity": positivity, "sense": sense, "source": ""}
            write_ratings(self.path, [*rows, {**row, "text": self.text}])
        self.move()

    def undo(self):
        """Take this rater's last rating back; not once the sources were seen."""
        if self.revealed:
            raise ValueError("the sources were shown: ratings can no longer be changed")
        mine = self.mine()
        if mine:
            write_ratings(self.path, [row for row in self.rows() if row != mine[-1]])
        self.move()

    def reveal(self):
        """Write the source beside each of this rater's ratings, once all are given."""
        if self.current is not None:
            raise ValueError("the sources stay hidden until every sample is rated")
        rows = [row if row["rater"] != self.rater else {**row, "source": self.items[row["sample"]][0]} for row in self.rows()]
        write_ratings(self.path, rows)

    def results(self):
        """`judge.blind_rating` of all raters who are through. Raises ValueError before `reveal`."""
        if not self.revealed:
            raise ValueError("there are results once every sample is rated and the sources are shown")
        return judge.blind_rating([row for row in self.rows() if row["source"]])


def result_rows(result):
    """The result of a blind rating as rows of text: score, base, policy, win rate."""
    rows = []
    for score in SCORES:
        sides = ["{:.2f} ({:.2f} to {:.2f})".format(*result[score][side]) for side in ("base", "policy")]
        rows.append([score, *sides, "{:.0%} ({:.0%} to {:.0%})".format(*result[score]["win_rate"])])
    return rows


RESULT_HEAD = ("mean (95 % interval)", "base", "policy", "policy beats base")


def correlation_line(session):
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
    for row in (RESULT_HEAD, *result_rows(session.results())):
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
    return table(RESULT_HEAD, result_rows(session.results())) + said + every


# ----------------------------------------------------------------------------------------- sampling, side by side


class Sample(NamedTuple):
    """A completion: `pieces`, its text cut at tokens; `changes`, by how much each raises the log-odds of positive, in nats
    (the first from even odds), None without a reward model."""

    pieces: list
    changes: list | None

    @property
    def text(self):
        return "".join(self.pieces)

    @property
    def log_odds(self):
        return sum(self.changes)


@torch.no_grad()
def log_odds_changes(reward_model, tokens):
    """By how much each of `tokens` (T,) raises the reward model's log-odds of positive: (T,), whose sum is the whole's."""
    with evaluating(reward_model):
        odds = reward_model(torch.as_tensor(tokens)[None].to(next(reward_model.parameters()).device))[0].float().cpu()
    return odds.diff(prepend=torch.zeros(1))


def pieces(tokenizer, tokens, changes=None):
    """A Sample of `tokens`; tokens that only together are a character (bytes of it) become one piece."""
    texts, sums, group, change = [], [], [], 0.0
    for place, token in enumerate(tokens):
        group.append(token)
        change += 0.0 if changes is None else float(changes[place])
        text = tokenizer.decode(group)
        if "\ufffd" not in text or place + 1 == len(tokens):
            texts.append(text)
            sums.append(change)
            group, change = [], 0.0
    return Sample(texts, None if changes is None else sums)


def sample(model, tokenizer, prompt="", tokens=48, count=1, seed=0, reward_model=None, **cut):
    """`count` completions of `prompt` (a blank line when it is empty), as a list of Sample.

    Args:
        tokens: how many at most.
        seed: models that are given the same one draw with the same random numbers.
        reward_model: scores the completions, without their prompt.
        cut: temperature, top_k and top_p, as for `sampling.generate`, which says what is wrong with them.
    """
    start = tokenizer.encode(prompt or SEPARATOR)
    generator = torch.Generator().manual_seed(seed)
    drawn = generate(model, [start] * count, tokens, generator=generator, end_token=tokenizer.end_token, **cut)
    rows = [row[mask].tolist() for row, mask in zip(drawn.tokens.cpu(), drawn.mask.cpu())]
    if reward_model is None:
        return [pieces(tokenizer, row) for row in rows]
    return [pieces(tokenizer, row, log_odds_changes(reward_model, row)) for row in rows]


def full_tint(samples):
    """The change of log-odds that gets the deepest tint: the 90th percentile, so that one token does not drown the rest."""
    sizes = torch.tensor([abs(change) for one in samples for change in one.changes or ()])
    return sizes.quantile(0.9).item() if len(sizes) else 0.0


def tinted(one, full=None):
    """A Sample as HTML: tokens that raise the log-odds of positive on blue, those that lower them on orange.

    Args:
        full: the change, in nats, with the deepest tint; `full_tint` of this sample when None.
    """
    if one.changes is None:
        return escape(one.text)
    full = full or full_tint([one]) or 1.0
    spans = []
    for piece, change in zip(one.pieces, one.changes):
        color = tint(UP if change > 0 else DOWN, 0.6 * min(1.0, abs(change) / full))
        spans.append(f'<span style="background: {color}" title="{change:+.2f} nats">{escape(piece)}</span>')
    return "".join(spans)


def sample_cards(drawn, prompt=""):
    """HTML cards of {model's name: list of Sample}, side by side, in one scale of tints."""
    full = full_tint([one for many in drawn.values() for one in many])
    start = f'<span style="opacity: 0.6">{escape(prompt)}</span>'
    stacks = []
    for name, many in drawn.items():
        titles = [name if one.changes is None else f"{name}, log-odds of positive {one.log_odds:+.2f}" for one in many]
        stacks.append("".join(framed(start + tinted(one, full), title) for one, title in zip(many, titles)))
    return columns(stacks)


TINTS = (
    f'<span style="background: {tint(UP, 0.6)}">&nbsp;raises&nbsp;</span> or '
    f'<span style="background: {tint(DOWN, 0.6)}">&nbsp;lowers&nbsp;</span> the odds that the reward model calls it positive'
)


def sampler(models, tokenizer, reward_model=None, count=2):
    """Sample several models side by side with the same random numbers; every change of a setting samples again.

    Args:
        models: {name: GPT}, such as {"base": base, "tuned": policy}.
        reward_model: tints the tokens by how they change its log-odds of positive.
        count: completions of each.

    Returns:
        A widget. `settings` has its inputs by name, `again` is the button for the next seed, `output` the HTML.
    """
    if not isinstance(models, dict) or not models:
        raise ValueError('models must be {name: model}, such as {"base": base, "tuned": policy}')
    context = min(model.config.context for model in models.values())
    wide, style = widgets.Layout(width="25em"), {"description_width": "7em"}
    look = {"layout": wide, "style": style, "continuous_update": False}
    settings = {
        "prompt": widgets.Textarea(description="prompt", placeholder="empty: a blank line, where a speech begins", **look),
        "temperature": widgets.FloatSlider(description="temperature", value=1, min=0.1, max=2, step=0.05, **look),
        "top_k": widgets.IntSlider(description="top-k (0: all)", value=0, min=0, max=200, **look),
        "top_p": widgets.FloatSlider(description="top-p (1: all)", value=1, min=0.05, max=1, step=0.05, **look),
        "tokens": widgets.IntSlider(description="tokens", value=min(48, context // 2), min=1, max=context - 1, **look),
        "seed": widgets.BoundedIntText(description="seed", value=0, min=0, max=10**9, layout=wide, style=style),
    }
    again, output, note = button("another seed", UP, "10em"), widgets.HTML(), widgets.HTML()

    def draw():
        given = {name: setting.value for name, setting in settings.items()}
        drawn = {
            name: sample(model, tokenizer, count=count, reward_model=reward_model, **given) for name, model in models.items()
        }
        legend = "" if reward_model is None else f"<div>{TINTS}</div>"
        output.value = legend + sample_cards(drawn, given["prompt"])

    draw_safely = guarded(draw, lambda: None, note)
    for setting in settings.values():
        setting.observe(draw_safely, names="value")
    again.on_click(lambda _: setattr(settings["seed"], "value", settings["seed"].value + 1))
    draw_safely()
    left = widgets.VBox([settings["prompt"], settings["tokens"], settings["seed"]])
    right = widgets.VBox([settings["temperature"], settings["top_k"], settings["top_p"]])
    rows = (widgets.HBox([left, right, again], layout=wrap()), note, output)
    return bundle(rows, settings=settings, again=again, output=output, note=note)


# ----------------------------------------------------------------------------------------- a run's checkpoints


def checkpoints(run):
    """The policy's checkpoints in a run's folder, in order.

    Returns:
        A list of dicts: `iteration`, `folder`, and the figures of that iteration in `metrics.jsonl` (where it has none, those
        in the checkpoint's card), such as `kl`, `reward` and `gold`.

    Raises:
        ValueError: there is none, or (CheckpointError) one is damaged.
    """
    policy = Path(run) / "policy"
    logged = {record["step"]: record for record in runs.Metrics(run).read("policy")}
    found = {}
    for folder in [policy, *policy.glob("iteration-*")]:
        if (folder / "model.safetensors").exists():
            card = runs.read_card(folder)
            figures = logged.get(card["iteration"], card)
            found[card["iteration"]] = {**figures, "iteration": card["iteration"], "folder": folder}
    if not found:
        raise ValueError(f"no checkpoint in {policy}: train a policy first, for example with python -m rlhf_lib run --out {run}")
    return [found[iteration] for iteration in sorted(found)]


def checkpoint_samples(checkpoint, count=4, tokens=48, seed=0, reward_model=None):
    """`count` Samples of a blank line from one of `checkpoints(run)`, at temperature 1, with the random numbers of `seed`."""
    model, tokenizer = pretrain.load_model(checkpoint["folder"])
    tokens = min(tokens, model.config.context - len(tokenizer.encode(SEPARATOR)))
    return sample(model, tokenizer, tokens=tokens, count=count, seed=seed, reward_model=reward_model)


EXPLORED = (
    ("kl", "KL to the base", "nats per completion", plots.BLUE),
    ("reward", "Proxy: reward model", "log p(wanted), nats", plots.GREEN),
    ("gold", "Gold judge", "score, -1 to 1", plots.ORANGE),
)


def checkpoint_curves(records, iteration=None):
    """KL, proxy reward and gold score over the iterations, with a line at one of them."""
    fig, axes = plots.figure(3, height=2.3, width=3.1)
    for ax, (name, title, unit, color) in zip(axes, EXPLORED):
        plots.curve(ax, records, name, color=color, x="iteration", marker="o")
        ax.set(title=title, xlabel="iteration", ylabel=unit)
        ax.xaxis.get_major_locator().set_params(integer=True)
        if iteration is not None:
            ax.axvline(iteration, color=plots.GREY, linestyle="--", linewidth=1.2)
    return fig


def explorer(run, count=4, tokens=48):
    """A slider over the checkpoints of a run: KL, proxy and gold reward, and what the policy wrote then.

    Args:
        run: the run's folder. Its `reward` model, where there is one, tints the samples.
        count, tokens: samples of each checkpoint, and tokens in each.

    Returns:
        A widget. `slider` chooses the iteration, `values` shows the figures, `output` the samples.
    """
    found = checkpoints(run)
    by_iteration = {checkpoint["iteration"]: checkpoint for checkpoint in found}
    logged = [{**record, "iteration": record["step"]} for record in runs.Metrics(run).read("policy")] or found
    folder = Path(run) / "reward"
    reward_model = reward.load_model(folder)[0] if (folder / "model.safetensors").exists() else None
    gold, drawn = judge.GoldJudge(), {}
    options = [(str(iteration), iteration) for iteration in by_iteration]
    slider = widgets.SelectionSlider(
        options=options, description="iteration", continuous_update=False, layout=widgets.Layout(width="30em")
    )
    curves, values, output, note = picture(), widgets.HTML(), widgets.HTML(), widgets.HTML()

    def look():
        checkpoint = by_iteration[slider.value]
        if slider.value not in drawn:
            drawn[slider.value] = checkpoint_samples(checkpoint, count, tokens, reward_model=reward_model)
        many, texts = drawn[slider.value], [one.text for one in drawn[slider.value]]
        rows = [(title, f"{checkpoint[name]:.4f}", unit) for name, title, unit, _ in EXPLORED if name in checkpoint]
        values.value = table(("at this checkpoint", "value", "unit"), rows)
        curves.value = png(checkpoint_curves(logged, slider.value))
        full, cards = full_tint(many), []
        for one, score in zip(many, gold.score(texts).tolist()):
            odds = "" if one.changes is None else f"proxy log-odds {one.log_odds:+.2f}, "
            cards.append(framed(tinted(one, full), f"{odds}gold {score:+.2f}"))
        output.value = ("" if reward_model is None else f"<div>{TINTS}</div>") + columns(cards)

    slider.observe(guarded(look, lambda: None, note), names="value")
    look()
    return bundle((slider, curves, values, note, output), slider=slider, curves=curves, values=values, output=output, note=note)


# ----------------------------------------------------------------------------------------- curves of a running loop

PANELS = {
    "loss": ("Loss", "nats per token"),
    "train_loss": ("Training loss", "nats per token"),
    "val_loss": ("Validation loss", "nats per token"),
    "perplexity": ("Perplexity", "equally likely tokens"),
    "val_perplexity": ("Validation perplexity", "equally likely tokens"),
    "val_bits_per_char": ("Validation", "bits per character"),
    "reward": ("Reward", "log p(wanted), nats"),
    "reward_normalised": ("Reward, normalised", "standard deviations of the base"),
    "gold": ("Gold judge", "score, -1 to 1"),
    "kl": ("KL to the base", "nats per completion"),
    "approx_kl": ("KL of one update", "nats per token"),
    "clip_fraction": ("Clip fraction", "share of tokens"),
    "entropy": ("Entropy", "nats per token"),
    "explained_variance": ("Explained variance", "share"),
}
CURVE_COLORS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PINK, plots.GREY)


class LiveCurves:
    """Curves of a loop, drawn while it runs into one picture that is replaced as a whole, so that nothing flickers.

        with LiveCurves(["loss", "kl"]) as live:
            for step in range(steps):
                live.log(step, loss=..., kl=...)
        live.figure()  # a still figure, for the saved notebook

    For the loops of this library, which write to a run's folder:

        with LiveCurves(["kl", "reward"]).follow(folder, "policy"):
            rlhf.train_policy(...)

    Args:
        names: the figures to draw, a panel each; a tuple of names shares a panel.
        every: the least seconds between two drawings (one takes about a fifth of a second).
        x: what the horizontal axis says.
    """

    def __init__(self, names, every=2.0, x="step"):
        if isinstance(names, str) or not names:
            raise ValueError('names must be a list of what to draw, such as ["loss", "kl"]')
        self.panels = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in names]
        self.every, self.x, self.records = every, x, []
        self.image, self.drawn = picture(), None

    def show(self):
        """Put the picture under the running cell; nothing happens outside a notebook."""
        from IPython import display, get_ipython

        if get_ipython() is not None:
            display.display(self.image)
        self.draw()

    def log(self, step, **figures):
        """Take in the figures of one step; those that were not asked for are not drawn."""
        self.records.append({"step": step, **figures})
        if self.drawn is None:
            self.show()
        elif time.monotonic() - self.drawn >= self.every:
            self.draw()

    def draw(self):
        self.image.value = png(self.figure())
        self.drawn = time.monotonic()

    def figure(self):
        """The curves so far, as a still figure."""
        wide = min(3, len(self.panels))
        fig, axes = plots.figure(wide, rows=-(-len(self.panels) // wide), height=2.4, width=3.4)
        for ax, names in zip(axes, self.panels):
            for name, color in zip(names, CURVE_COLORS):
                records = [record for record in self.records if record.get(name) is not None]
                plots.curve(ax, records, name, name.replace("_", " ") if len(names) > 1 else None, color)
            title, unit = PANELS.get(names[0], (names[0].replace("_", " "), ""))
            ax.set(title=title if len(names) == 1 else "", xlabel=self.x, ylabel=unit)
            plots.legend(ax)
        for ax in axes[len(self.panels) :]:
            ax.set_visible(False)
        return fig

    def __enter__(self):
        self.show()
        return self

    def __exit__(self, *error):
        self.draw()

    @contextlib.contextmanager
    def follow(self, folder, stage):
        """While the block runs, draw what it writes to `folder/metrics.jsonl` as `stage`."""
        metrics, over = runs.Metrics(folder), threading.Event()

        def take():
            before, self.records = len(self.records), metrics.read(stage)
            if len(self.records) != before:
                self.draw()

        def watch():
            while not over.wait(self.every):
                take()

        thread = threading.Thread(target=watch, daemon=True)
        with self:
            thread.start()
            try:
                yield self
            finally:
                over.set()
                thread.join()
                take()
