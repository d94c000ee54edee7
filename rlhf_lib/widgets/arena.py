"""Two assistants answer side by side, a person says which answer is better, and the vote becomes a comparison."""

import contextlib
import random
from typing import NamedTuple

import ipywidgets as widgets

from rlhf_lib import comparisons, pairwise
from rlhf_lib.comparisons import Comparison, ComparisonError
from rlhf_lib.devices import generator
from rlhf_lib.files import RunError, home
from rlhf_lib.widgets.chat import CUT, answer_of, checked_sides
from rlhf_lib.widgets.parts import (
    UP,
    bundle,
    button,
    checked_name,
    checked_texts,
    columns,
    enter_box,
    escape,
    framed,
    guarded,
    key_box,
    table,
    wrap,
)

VERDICTS = {"1": "first", "0": "tie", "2": "second"}
REASONS = {"a": "answers", "t": "true", "k": "kind", "b": "brief", "e": "ends"}  # the rubric of data/assistant/README.md
TRIES = 5


class Question(NamedTuple):
    """A prompt, the `names` of the two sides that answered it, and their `answers`, both in the order of the places."""

    prompt: str
    names: tuple
    answers: tuple


class Arena:
    """One reader's votes on answers of two sides at a time, in a file that `comparisons.read_comparisons` reads.

    `question` is what is asked now, a Question, None before the first; `verdict` what the reader said of it, None until then.
    Two answers that are the same, an empty one, and two that this reader has compared are not asked. A prompt of
    `prompts.jsonl` is written by its id, so that a held-out one stays held out, any other by its text.

    Args:
        sides: {name: (model, tokenizer)}, at least two.
        prompts: a list of texts to draw from; None for those of `prompts.jsonl` that a model may learn from. Votes on the
            held-out ones are for measuring: give their list to draw from them.
        file: the JSON-lines file in the learner's folder, `files.home()`; made with the first vote, shared by all readers.
        reader: who reads.
        max_new_tokens, temperature: of the answers, as in `comparisons.jsonl`; `talk.drawn_as` gives those of a run.
        seed: of prompts, sides, places and answers; None draws one, so that two windows do not ask the same.

    Raises:
        ValueError: fewer than two sides, one that is no chat model with its tokenizer, no prompts, no reader's name, or
            (ComparisonError) a damaged file.
    """

    def __init__(self, sides, prompts=None, file="arena.jsonl", reader="me", max_new_tokens=48, temperature=0.7, seed=None):
        self.sides, self.reader = checked_sides(sides), checked_name(reader, "reader")
        if len(self.sides) < 2:
            raise ValueError("an arena needs two sides: give {name: (model, tokenizer)} with two names or more")
        self.known = comparisons.read_prompts()
        learn = [prompt.prompt for prompt in comparisons.split(self.known)[0]]
        self.prompts = learn if prompts is None else [text.strip() for text in checked_texts(prompts, "prompts")]
        self.path = home() / checked_name(str(file), "file")
        self.options = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        self.seed = random.SystemRandom().randrange(2**32) if seed is None else seed
        self.question = self.verdict = None
        self.unsaved = []  # votes that the file could not take
        self.asked = len(self.mine())

    def saved(self):
        """The comparisons in the file. Raises ComparisonError for a damaged one."""
        return comparisons.read_comparisons(self.path, self.known) if self.path.exists() else []

    def votes(self):
        """All comparisons in the file, and those that it could not take."""
        return [*self.saved(), *self.unsaved]

    def mine(self):
        """This reader's votes."""
        return [vote for vote in self.votes() if vote.reader == self.reader]

    def ask(self, prompt=""):
        """Let two sides answer `prompt`, or one that is drawn where it is empty, those without a vote first.

        Raises:
            ValueError: the prompt is too long, or no two answers could be asked.
            RunError: a model gave no answer.
        """
        mine = self.mine()
        met, judged = [vote.prompt for vote in mine], {vote.pair for vote in mine}
        for _ in range(TRIES):
            draw = random.Random(f"{self.seed} {self.reader} {self.asked}")
            self.asked += 1
            text = prompt.strip() or draw.choice([text for text in self.prompts if text not in met] or self.prompts)
            names = tuple(draw.sample(list(self.sides), 2))
            question = Question(text, names, tuple(self.answer(name, text, draw.getrandbits(32)) for name in names))
            first, second = (found.text for found in question.answers)
            if first and second and first != second and comparison(question, "tie", self.reader, self.known).pair not in judged:
                self.question, self.verdict = question, None
                return
        raise ValueError(
            f"{TRIES} times the two answers were the same, empty or compared before: give another prompt or a higher temperature"
        )

    def answer(self, name, text, seed):
        """The Answer of the side `name` to `text`, drawn from `seed`."""
        messages = [{"role": "user", "content": text}]
        draw = generator(seed, "arena")
        return answer_of(self.sides, name, messages, self.options["max_new_tokens"], draw, self.options["temperature"])[0]

    def vote(self, verdict, reason=""):
        """Say which answer is better, "first", "second" or "tie", and perhaps why; once a question.

        Returns:
            A sentence where the vote could not be written, else "".

        Raises:
            ValueError: no such verdict or reason.
        """
        if reason not in ("", *REASONS.values()):
            raise ValueError(f"the reason must be one of {', '.join(REASONS.values())} or empty, got {reason!r}")
        if self.question is None or self.verdict is not None:
            return ""
        vote = comparison(self.question, verdict, self.reader, self.known, reason)
        self.verdict = verdict
        self.unsaved.append(vote)
        return self.save()

    def save(self):
        """Write what is unsaved. Returns a sentence where that failed, or where another window was faster, else ""."""
        beside = ""
        try:
            for vote in list(self.unsaved):
                if (vote.pair, vote.reader) in {(other.pair, other.reader) for other in self.saved()}:
                    beside = f"{self.reader} has compared these two answers in another window: that verdict stays"
                else:
                    comparisons.append_comparison(self.path, vote)
                self.unsaved.remove(vote)
        except (ComparisonError, RunError, OSError) as error:
            return f"the vote counts in this window and is written with the next one, if that can be: {error}"
        return beside

    def tally(self):
        """`tally` of all votes, whoever gave them."""
        return tally(self.votes())


def comparison(question, verdict, reader, known, reason=""):
    """A verdict on a Question as a Comparison; a prompt of `known`, a list of comparisons.Prompt, is written by its id."""
    found = next((prompt for prompt in known if prompt.prompt.strip() == question.prompt), None)
    first, second = question.answers
    return Comparison(
        prompt=question.prompt,
        first=first.text,
        second=second.text,
        verdict=verdict,
        reader=reader,
        source={"id": found.id} if found else {"prompt": question.prompt},
        reason=reason,
        first_from=question.names[0],
        second_from=question.names[1],
        first_cut=first.cut,
        second_cut=second.cut,
        split=found and found.split,
    )


def tally(votes):
    """What votes say of each two sides that were compared.

    Args:
        votes: Comparison objects (comparisons.py); those that do not say which two sides wrote the answers are left out.

    Returns:
        {(ours, theirs): `pairwise.summary` of the votes on two sides, of ours}, and `pairwise.position_bias` of all votes.
    """
    records = {}
    for vote in votes:
        if not vote.first_from or not vote.second_from or vote.first_from == vote.second_from:
            continue
        pair = tuple(sorted((vote.first_from, vote.second_from)))
        if pair[0] == vote.first_from:
            record = pairwise.Record(vote.pair[0], vote.first, vote.second, vote.verdict, None)
        else:
            record = pairwise.Record(vote.pair[0], vote.second, vote.first, None, vote.verdict)
        records.setdefault(pair, []).append(record)
    everything = [record for some in records.values() for record in some]
    return {pair: pairwise.summary(records[pair]) for pair in sorted(records)}, pairwise.position_bias(everything)


def question_html(question, verdict=None):
    """The prompt and the two answers side by side; who wrote them once there is a verdict."""
    cards = []
    for place, name, found in zip(("first", "second"), question.names, question.answers):
        title = f"{place} answer"
        if verdict is not None:
            title += f", by {name}" + (", the better one" if verdict == place else ", a tie" if verdict == "tie" else "")
        cards.append(framed(escape(found.text) + CUT * found.cut, title, height="6em"))
    return framed(escape(question.prompt), "prompt") + columns(cards)


def tally_html(summaries, bias):
    """Wins and losses of each two sides, and how the places fared."""
    if not summaries:
        return framed("No vote yet.", "votes")
    rows = []
    for (ours, theirs), found in summaries.items():
        wins, ties, losses = (round(found[name] * found["pairs"]) for name in ("wins", "ties", "losses"))
        rate = "{:.0%} ({:.0%} to {:.0%})".format(*found["win_rate"])
        place = bias_text(found["position_bias"])
        rows.append((f"{ours} against {theirs}", found["pairs"], f"{wins}, {ties}, {losses}", rate, place))
    head = ("sides", "votes", "wins, ties, losses", "win rate (95 % interval)", "position bias, points")
    said = f"Position bias of all votes, how many points oftener than half the first place wins: {bias_text(bias)}"
    return table(head, rows) + f"<div>{said}</div>"


def bias_text(bias):
    """What `pairwise.position_bias` gives, as text."""
    return "not known yet" if bias is None else "{:+.0f} ({:+.0f} to {:+.0f})".format(*bias)


def arena(sides, prompts=None, file="arena.jsonl", reader="me", max_new_tokens=48, temperature=0.7, seed=None):
    """Compare two assistants blind, side by side; see Arena for the arguments and the errors.

    Returns:
        A widget. `session` is its Arena, `text` the box for a prompt of one's own, `reason` the choice of a reason, `buttons` has
        "first", "tie", "second" and "next", `keyboard` is the box for their keys, `output` shows the question, `tally` the votes.
    """
    session = Arena(sides, prompts, file, reader, max_new_tokens, temperature, seed)
    output, tally, note = widgets.HTML(), widgets.HTML(), widgets.HTML()
    buttons = {name: button(f"{name} ({key})", UP, "8em") for key, name in VERDICTS.items()}
    buttons["next"] = button("next question (n)", width="11em", tip="without a vote the question is left out")
    options = [("no reason", ""), *((f"{name} ({key})", name) for key, name in REASONS.items())]
    reason = widgets.Dropdown(description="reason", options=options, layout=widgets.Layout(width="16em"))

    def show():
        if session.question is None:
            output.value = framed("Press n for a question, or type a prompt of your own and press Enter.", height="8em")
        else:
            output.value = question_html(session.question, session.verdict)
        for name in VERDICTS.values():
            buttons[name].disabled = session.question is None or session.verdict is not None
        with contextlib.suppress(ValueError, OSError):  # a file that was damaged meanwhile; the note says so when it is written
            tally.value = tally_html(*session.tally())

    def ask():
        given, text.value = text.value, ""
        output.value = framed("Two of the models are writing …", height="8em")
        try:
            session.ask(given)
            reason.value = ""
        except BaseException:  # also the kernel's interrupt
            text.value = given
            raise
        finally:
            show()

    def vote(verdict):
        warning = session.vote(verdict, reason.value)
        note.value = framed(escape(warning)) if warning else ""

    actions = {name: guarded(lambda name=name: vote(name), show, note) for name in VERDICTS.values()}
    actions["next"] = guarded(ask, show, note)
    for name, action in actions.items():
        buttons[name].on_click(action)
    keys = {key: actions[name] for key, name in {**VERDICTS, "n": "next"}.items()}
    keys |= {key: (lambda name=name: setattr(reason, "value", name)) for key, name in REASONS.items()}
    keyboard = key_box(keys, "click here, then type 1, 0, 2 or n")
    text = enter_box(actions["next"], "prompt", "your own, or empty for a drawn one")
    show()
    rows = (
        widgets.HBox([text, buttons["next"]], layout=wrap()),
        output,
        widgets.HBox([buttons[name] for name in VERDICTS.values()] + [reason, keyboard], layout=wrap()),
        note,
        tally,
    )
    return bundle(
        rows, session=session, text=text, reason=reason, buttons=buttons, keyboard=keyboard, output=output, tally=tally, note=note
    )
