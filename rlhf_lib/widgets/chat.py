"""Talk with an assistant, or with several in one conversation."""

from typing import NamedTuple

import ipywidgets as widgets

from rlhf_lib.devices import generator
from rlhf_lib.files import RunError
from rlhf_lib.talk import MAX_NEW_TOKENS, SILENT, TEMPERATURE, answer, fitting, forgotten
from rlhf_lib.tokenization import ChatTokenizer
from rlhf_lib.widgets.parts import (
    PLAIN,
    UP,
    bundle,
    button,
    checked_name,
    enter_box,
    escape,
    framed,
    guarded,
    tint,
    wrap,
)

CUT = '<span style="opacity: 0.7"> [cut off at the limit of tokens]</span>'  # behind an answer that did not end by itself


class Turn(NamedTuple):
    """What one said: `who`, a side's name or None for the person; `text`; whether the limit `cut` it off."""

    who: str | None
    text: str
    cut: bool = False


class Conversation:
    """A conversation with one or several models; each reads all of it, whichever of them wrote the answers.

    `turns` is what was said, a list of Turn.

    Args:
        sides: {name: (model, tokenizer)}, or one such pair, as `talk.open_assistant` returns it.
        seed: of what is drawn; one model says the same to the same turns as in the terminal's `chat`.

    Raises:
        ValueError: `sides` is none of these, or a tokenizer is no ChatTokenizer.
    """

    def __init__(self, sides, seed=0):
        self.sides, self.seed, self.turns, self.sent = checked_sides(sides), seed, [], 0

    def send(self, text, side=None, max_new_tokens=MAX_NEW_TOKENS, temperature=TEMPERATURE):
        """Say `text` to a side, the first unless it is named, and take in its answer; an empty text does nothing.

        Returns:
            What there is to say beside, a sentence; "" where there is nothing. `turns` grows by the text and the answer, or by
            neither.

        Raises:
            ValueError: the text alone is too long for the model.
            RunError: the model gave no answer.
        """
        text = text.strip()
        if not text:
            return ""
        name = side or next(iter(self.sides))
        draw, self.sent = generator(self.seed, "chat", self.sent), self.sent + 1
        messages = [{"role": "assistant" if turn.who else "user", "content": turn.text} for turn in self.turns]
        messages.append({"role": "user", "content": text})
        found, dropped = answer_of(self.sides, name, messages, max_new_tokens, draw, temperature)
        if not found.text:
            return SILENT
        self.turns += [Turn(None, text), Turn(name, *found)]
        return forgotten(dropped) if dropped else ""

    def restart(self):
        """Begin again: what was said is forgotten."""
        self.turns = []


def checked_sides(sides):
    """`sides` as {name: (model, tokenizer)}; one pair is named "assistant"."""
    sides = {"assistant": sides} if isinstance(sides, (tuple, list)) else sides
    if not isinstance(sides, dict) or not sides:
        raise ValueError('sides must be a pair (model, tokenizer), or {name: pair}, such as {"sft": sft, "policy": policy}')
    for name, pair in sides.items():
        checked_name(name, "a side")
        fits = isinstance(pair, (tuple, list)) and len(pair) == 2 and hasattr(pair[0], "config")
        if not fits or not isinstance(pair[1], ChatTokenizer):
            raise ValueError(f"{name} must be a pair of a chat model and its ChatTokenizer, as talk.open_assistant returns it")
    return dict(sides)


def answer_of(sides, name, messages, max_new_tokens, draw, temperature):
    """The Answer of the side `name` to a conversation, and how many of its oldest turns did not fit."""
    model, tokenizer = sides[name]
    messages, dropped = fitting(tokenizer, messages, model.config.context - max_new_tokens)
    try:
        return answer(model, tokenizer, messages, max_new_tokens, draw, temperature), dropped
    except Exception as error:  # whatever a model may raise, in one line
        said = str(error).strip().partition("\n")[0]
        raise RunError(f"{name} gave no answer ({type(error).__name__}: {said})") from error


def bubble(turn):
    """A Turn as HTML: the person's on the right, a model's on the left, each under its name."""
    mine = turn.who is None
    place = f"margin-left: 15%; background: {tint(UP, 0.15)}" if mine else f"margin-right: 15%; background: {tint(PLAIN, 0.08)}"
    inner = framed(escape(turn.text) + CUT * turn.cut, "you" if mine else turn.who)
    return f'<div style="{place}; border-radius: 6px">{inner}</div>'


def bubbles(turns):
    """Turns as HTML, in a box that shows the newest and scrolls back."""
    said = "".join(map(bubble, turns)) or '<div style="opacity: 0.7; padding: 0.6em">Nothing is said yet.</div>'
    style = "max-height: 28em; overflow-y: auto; display: flex; flex-direction: column-reverse; max-width: 56em"
    return f'<div role="log" aria-label="conversation" tabindex="0" style="{style}"><div>{said}</div></div>'


def chat(sides, max_new_tokens=MAX_NEW_TOKENS, temperature=TEMPERATURE, seed=0):
    """Talk with an assistant; an answer ends where the model ends its turn, and appears as a whole.

    Args:
        sides, seed: see Conversation, which says what is wrong with them.
        max_new_tokens, temperature: where the sliders stand at first; `talk.drawn_as` gives those of a run.

    Returns:
        A widget. `session` is its Conversation, `text` the box for what one says, `buttons` has "send" and "again", `settings`
        the model, the temperature and the most tokens, `output` shows the conversation.
    """
    session = Conversation(sides, seed)
    most = max(1, min(model.config.context for model, _ in session.sides.values()) // 2)

    def look():
        return {"layout": widgets.Layout(width="24em"), "style": {"description_width": "8em"}}

    settings = {
        "side": widgets.Dropdown(description="model", options=list(session.sides), **look()),
        "temperature": widgets.FloatSlider(description="temperature", value=temperature, min=0.1, max=2, step=0.05, **look()),
        "max_new_tokens": widgets.IntSlider(
            description="most tokens", value=min(max_new_tokens, most), min=1, max=most, **look()
        ),
    }
    output, note = widgets.HTML(), widgets.HTML()
    buttons = {"send": button("send (Enter)", UP, "9em"), "again": button("start again", width="8em", tip="forgets all turns")}

    def show(*waiting):
        output.value = bubbles([*session.turns, *waiting])

    def send():
        given = text.value
        if not given.strip():
            return
        text.value = ""
        options = {name: setting.value for name, setting in settings.items()}
        show(Turn(None, given.strip()), Turn(options["side"], "… is writing"))
        try:
            beside = session.send(given, **options)
            note.value = framed(escape(beside)) if beside else ""
        except BaseException:  # also the kernel's interrupt
            text.value = given
            raise
        finally:
            show()
        if beside == SILENT:
            text.value = given

    actions = {name: guarded(step, show, note) for name, step in (("send", send), ("again", session.restart))}
    text = enter_box(actions["send"], "you", "say something, then press Enter")
    for name, action in actions.items():
        buttons[name].on_click(action)
    show()
    if len(session.sides) == 1:
        settings["side"].layout.display = "none"  # nothing to choose
    rows = (
        output,
        widgets.HBox([text, *buttons.values()], layout=wrap()),
        note,
        widgets.HBox(list(settings.values()), layout=wrap()),
    )
    return bundle(rows, session=session, text=text, buttons=buttons, settings=settings, output=output, note=note)
