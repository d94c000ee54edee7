"""What the widgets share: frames, tables, buttons, keys."""

import asyncio
import html
import io

import ipywidgets as widgets

UP, DOWN, PLAIN = (0, 114, 178), (213, 94, 0), (127, 127, 127)  # plots.BLUE, ORANGE and GREY as red, green, blue
EDGE = "1px solid rgba(127, 127, 127, 0.5)"


def tint(color, alpha):
    """A CSS colour that lets the page's own colour through."""
    return f"rgba({color[0]}, {color[1]}, {color[2]}, {alpha:.2f})"


def escape(text):
    """`text` as it stands in HTML."""
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
    """A button with a tint of `color`; `tip` is shown under the mouse."""
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


def enter_box(action, description, hint, patience=0.5):
    """A text box that calls `action()` when Enter is pressed in it, and not when it is left.

    The browser says that Enter was pressed before it says what was typed, if that is new: so a press waits for the text, at most
    `patience` seconds. With `continuous_update` the text would come letter by letter, and the last ones behind the press too.
    """
    box = widgets.Text(description=description, placeholder=hint, continuous_update=False, layout=widgets.Layout(flex="1 1 20em"))
    presses = []  # those that wait

    def go(press):
        if press in presses:
            presses.clear()
            action()

    def said(_, content, buffers):
        if content.get("event") == "submit":
            presses.append(object())
            try:
                asyncio.get_running_loop().call_later(patience, go, presses[-1])
            except RuntimeError:  # no loop that a text could come through
                go(presses[-1])

    box.on_msg(said)
    box.observe(lambda _: go(presses[-1] if presses else None), names="value")
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
    """An empty place for a PNG, no wider than the page."""
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
    """`name` without spaces around it. Raises ValueError, by `what`, where it is no text or empty."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{what} must be a name, got {name!r}")
    return name.strip()
