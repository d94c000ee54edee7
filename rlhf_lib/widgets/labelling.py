"""Label passages: a sitting in a file, by typing or by buttons."""

import random
from pathlib import Path

import ipywidgets as widgets

from rlhf_lib import labels
from rlhf_lib.files import one_at_a_time, read_text, write_atomic
from rlhf_lib.widgets.parts import (
    DOWN,
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
    wrap,
)

LABEL_KEYS = {"n": "negative", "0": "neutral", "p": "positive"}
KEYS_IN_WORDS = ", ".join(f"{key} {label}" for key, label in LABEL_KEYS.items())


class Labelling:
    """One reader's labels of `texts`, in a file that `labels.read` reads.

    The file is read again before every step and written after it, so readers can share it. `current` is the passage to
    label now, None when all are done. A skipped passage is not written: a new Labelling shows it again. A passage that is
    shown again is labelled under the reader's name with `labels.AGAIN` behind it.

    Args:
        texts: a list of str; a passage that is there twice is asked for once.
        path: the JSON-lines file; made with the first label.
        reader: who reads.
        checkpoint: what wrote the passages.
        again: how many passages of the first half are shown a second time, somewhere in the second half.

    Raises:
        ValueError: no passages, an empty one, no reader's name, more `again` than half of the passages, or (LabelError) a
            damaged file.
    """

    def __init__(self, texts, path, reader="me", checkpoint="", again=0):
        self.texts, self.reader = checked_texts(texts, "texts"), checked_name(reader, "reader")
        self.path, self.checkpoint = Path(path), checkpoint
        self.items = shown_twice(self.texts, self.reader, again)  # (passage, the name that it is labelled under) in order
        self.skipped = {}  # item: how many labels there were when it was skipped
        self.move()

    def all_given(self):
        """All labels in the file, of other readers and passages too. Raises LabelError for a damaged one."""
        return labels.read(self.path) if self.path.exists() else []

    def given(self):
        """This reader's labels of these passages, in the file's order."""
        wanted = {((text, self.checkpoint), reader) for text, reader in self.items}
        return [label for label in self.all_given() if (label.source, label.reader) in wanted]

    def done(self):
        """The items that are labelled, a set."""
        return {(label.text, label.reader) for label in self.given()}

    def move(self):
        """On to the first passage that is neither labelled nor skipped."""
        past = self.done() | set(self.skipped)
        self.item = next((item for item in self.items if item not in past), None)

    @property
    def current(self):
        """The passage to label, or None at the end."""
        return None if self.item is None else self.item[0]

    def label(self, name):
        """Label the current passage "negative", "neutral" or "positive", and move on."""
        if name not in labels.LABELS:
            raise ValueError(f"unknown label {name!r}; use one of {', '.join(labels.LABELS)}")
        if self.item is not None and self.item not in self.done():  # another window may have been faster
            text, reader = self.item
            labels.append(self.path, labels.Label(text, name, reader, (text, self.checkpoint)))
        self.move()

    def skip(self):
        """Leave the current passage without a label, and move on."""
        if self.item is not None:
            self.skipped[self.item] = len(self.given())
        self.move()

    def undo(self):
        """Take the last skip or label back: its passage comes again, and its line goes out of the file."""
        given = self.given()
        if self.skipped and list(self.skipped.values())[-1] == len(given):
            self.skipped.popitem()
        elif given:
            with one_at_a_time(self.path.parent):  # all readers write to one file
                lines = read_text(self.path).split("\n")
                kept = [line for line in lines if not line.strip() or labels.parse(line, self.path) != given[-1]]
                write_atomic(self.path, "\n".join(kept).encode())
        self.move()

    def progress(self):
        """(labelled, skipped, all)"""
        return len(self.given()), len(self.skipped), len(self.items)

    def agreement(self):
        """`labels.agreement` with every other reader of the file who labelled some of the same passages, by name."""
        mine, by_reader = [label for label in self.given() if label.reader == self.reader], {}
        sources = {label.source for label in mine}
        for label in self.all_given():
            if label.source in sources and label.reader != self.reader:
                by_reader.setdefault(label.reader, []).append(label)
        return {reader: labels.agreement(mine, theirs) for reader, theirs in by_reader.items()}


def shown_twice(texts, reader, again):
    """A list of (text, reader), with `again` texts of the first half once more in the second, in a drawn order."""
    half = len(texts) // 2
    if not 0 <= again <= half:
        raise ValueError(f"again must lie between 0 and {half}, half of the passages, got {again}")
    draw = random.Random(0)
    before = {}  # the place of a text: what is shown again before it
    for place, text in zip(draw.sample(range(half, len(texts)), again), draw.sample(texts[:half], again)):
        before[place] = (text, reader + labels.AGAIN)
    return [item for place, text in enumerate(texts) for item in (before.get(place), (text, reader)) if item]


def agreement_lines(session):
    """What `session.agreement()` says, a line for each other reader."""
    return [
        f"{reader} read {a['passages']} of them too: the same label on {a['agreement']:.0%}, kappa {a['kappa']:.2f}"
        for reader, a in session.agreement().items()
    ]


def label_by_typing(texts, path, reader="me", checkpoint="", again=0, ask=input):
    """`labelling` without widgets: type a key of LABEL_KEYS, s to skip, u to undo, q to stop. Returns the Labelling."""
    session = Labelling(texts, path, reader, checkpoint, again)
    while session.current is not None:
        labelled, _, total = session.progress()
        key = ask(f"\n{session.current}\n[{labelled} of {total}] {KEYS_IN_WORDS} (s skip, u undo, q stop): ").strip().lower()
        if key == "q":
            break
        if key in LABEL_KEYS:
            session.label(LABEL_KEYS[key])
        elif key == "s":
            session.skip()
        elif key == "u":
            session.undo()
    return session


def labelling(texts, path, reader="me", checkpoint="", again=0):
    """Buttons and keys to label passages with; see Labelling for the arguments and the errors.

    Returns:
        A widget. `session` is its Labelling, `buttons` its buttons by name, `keyboard` the box for n, 0, p, s and u.
    """
    session = Labelling(texts, path, reader, checkpoint, again)
    colors = {"negative": DOWN, "neutral": PLAIN, "positive": UP}
    buttons = {name: button(f"{name} ({key})", colors[name], "9em") for key, name in LABEL_KEYS.items()}
    buttons["skip"] = button("skip (s)", width="6em", tip="not written; comes back when the cell is run again")
    buttons["undo"] = button("undo (u)", width="6em", tip="takes the last label or skip back")
    passage, note, count = widgets.HTML(), widgets.HTML(), widgets.Label()
    bar = widgets.IntProgress(max=len(session.items), layout=widgets.Layout(width="14em"))

    def show():
        labelled, skipped, total = session.progress()
        bar.value = labelled
        count.value = f"{labelled} of {total} labelled by {session.reader}" + (f", {skipped} skipped" if skipped else "")
        if session.current is None:
            back = "Run the cell again for those that were skipped. " if skipped else ""
            done = f"Done: every passage is labelled or skipped. {back}The labels are in {session.path}"
            said = [done, *agreement_lines(session)]
            passage.value = framed(escape("\n".join(said)), "Thank you", height="8em")
        else:
            place = session.items.index(session.item) + 1
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
    keyboard = key_box({key: actions[name] for key, name in keys.items()}, f"click here: {KEYS_IN_WORDS}")
    show()
    rows = (
        passage,
        widgets.HBox(list(buttons.values()), layout=wrap()),
        widgets.HBox([keyboard, bar, count], layout=wrap()),
        note,
    )
    return bundle(rows, session=session, buttons=buttons, keyboard=keyboard, passage=passage, count=count, note=note)
