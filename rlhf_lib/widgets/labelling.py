"""Label passages: a session in a file, by typing or by buttons."""

from pathlib import Path

import ipywidgets as widgets

from rlhf_lib import labels
from rlhf_lib.files import write_atomic
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
            write_atomic(self.path, "\n".join(kept).encode())
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
