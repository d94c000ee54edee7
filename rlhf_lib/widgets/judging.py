"""A person judges the answers of a finished run: blind, every pair in both orders."""

from pathlib import Path

import ipywidgets as widgets

from rlhf_lib import comparisons, pairwise
from rlhf_lib.files import home, json_rows, shown
from rlhf_lib.labels import draw_of
from rlhf_lib.pipelines.judging import as_text
from rlhf_lib.talk import Answer
from rlhf_lib.widgets.arena import VERDICTS, Question, comparison, question_html, tally_html
from rlhf_lib.widgets.parts import UP, bundle, button, checked_name, escape, framed, guarded, key_box, wrap

AGAIN = ", again"  # behind the reader's name where a pair is read once more: a file has one verdict of a reader on a pair


def answer_pairs(answers, ours, theirs):
    """(prompt, our Answer, their Answer) of each prompt, a list; see Judging for the arguments and the errors."""
    where = "answers" if isinstance(answers, list) else Path(answers) / "answers.jsonl"
    sides = {}
    for number, row in enumerate(answers, 1) if isinstance(answers, list) else json_rows(where, ValueError):
        if not row.get("prompt") or not isinstance(row.get("answer"), str):
            raise ValueError(f"{where}, line {number}: needs `side`, `prompt` and a text as `answer`, got {shown(row)}; mend it")
        found = row["prompt"], Answer(row["answer"].strip(), not row.get("ended", True))
        sides.setdefault(str(row.get("side")), []).append(found)
    both = [sides.get(side, []) for side in (ours, theirs)]
    one, other = ([prompt for prompt, _ in side] for side in both)
    if ours == theirs or not one or one != other:
        there = ", ".join(sides) or "none"
        raise ValueError(f"{where}: {ours} and {theirs} must be two sides that answered the same prompts; the sides are {there}")
    return [(prompt, mine, their) for (prompt, mine), (_, their) in zip(*both)]


class Judging:
    """One reader's verdicts on pairs of answers, blind and in both orders, in a file that `comparisons.read_comparisons` reads.

    All pairs are read once, in an order and with places that are drawn for the reader, and then all once more with the places
    exchanged. Two answers that are the same tie unread, and an empty one loses. `current` is the Question asked now, None when
    all are answered, and `done` their number; the next session goes on there.

    Args:
        answers: the folder of a run of the assistant, whose answers.jsonl is read, or a list of such rows, dicts with `side`,
            `prompt`, `answer` and perhaps `ended`.
        ours, theirs: two of its sides: start, sft, policy or best_of.
        count: how many prompts, the first of the run; None for all. With more of them, a session goes on.
        file: the JSON-lines file in the learner's folder, `files.home()`; made with the first verdict, shared by all readers.
        reader: who reads.

    Raises:
        ValueError: a row that is no answer, a side that is not there, sides that answered other prompts, a count below 1, no
            reader's name, or (ComparisonError) a damaged file.
    """

    def __init__(self, answers, ours="policy", theirs="start", count=None, file="judged.jsonl", reader="me"):
        self.sides, self.reader = (ours, theirs), checked_name(reader, "reader")
        if count is not None and count < 1:
            raise ValueError(f"count must be at least 1, or None for all prompts, got {count}")
        self.pairs = answer_pairs(answers, ours, theirs)[:count]
        self.path = home() / checked_name(str(file), "file")
        self.known = comparisons.read_prompts()
        draw = lambda what, pair: draw_of(f"{what} {self.reader} {pair}")  # noqa: E731
        asked = sorted((pair for pair in self.pairs if unread(*pair[1:]) is None), key=lambda pair: draw("order", pair))
        first = [Question(prompt, self.sides, (one, other)) for prompt, one, other in asked]
        first = [turned(one) if draw("place", pair) < 0.5 else one for one, pair in zip(first, asked)]
        self.questions = [*first, *map(turned, first)]
        self.move()

    def verdicts(self):
        """{(prompt, first answer, second answer): verdict} of this reader."""
        votes = comparisons.read_comparisons(self.path, self.known) if self.path.exists() else []
        mine = [vote for vote in votes if vote.reader in (self.reader, self.reader + AGAIN)]
        return {(as_text(vote.prompt), vote.first, vote.second): vote.verdict for vote in mine}

    def move(self):
        said = self.verdicts()
        left = [question for question in self.questions if key_of(question) not in said]
        self.current, self.done = (left or [None])[0], len(self.questions) - len(left)

    def say(self, verdict):
        """Say which answer is better, "first", "second" or "tie"; it is in the file before the next pair is asked."""
        if self.current is not None and key_of(self.current) not in (said := self.verdicts()):  # nor answered in another window
            reader = self.reader + AGAIN * (key_of(turned(self.current)) in said)
            comparisons.append_comparison(self.path, comparison(self.current, verdict, reader, self.known))
        self.move()

    def results(self):
        """`pairwise.summary` of our side, as the pipeline makes it of its judge's verdicts; ValueError before all is read."""
        if self.current is not None:
            left = len(self.questions) - self.done
            raise ValueError(f"{left} of {len(self.questions)} readings are left: read them, or judge fewer prompts with `count`")
        said, records = self.verdicts(), []
        for prompt, one, other in self.pairs:
            question = Question(prompt, self.sides, (one, other))
            both = unread(one, other) or [said[key_of(order)] for order in (question, turned(question))]
            records.append(pairwise.Record(as_text(prompt), one.text, other.text, *both))
        return pairwise.summary(records)


def key_of(question):
    return as_text(question.prompt), *(found.text for found in question.answers)


def turned(question):
    """A Question with the places exchanged."""
    return Question(question.prompt, question.names[::-1], question.answers[::-1])


def unread(ours, theirs):
    """The verdicts (ours first, ours second) on a pair that nobody need read; None where somebody must."""
    if ours.text == theirs.text:
        return "tie", "tie"
    return None if ours.text and theirs.text else ("first", "second") if ours.text else ("second", "first")


def result_html(session):
    found = session.results()
    said = f"Both orders say the same of {found['consistency']:.0%} of the pairs. The verdicts are in {session.path}"
    return tally_html({session.sides: found}, found["position_bias"]) + framed(escape(said))


def judge_run(answers, ours="policy", theirs="start", count=None, file="judged.jsonl", reader="me"):
    """Judge a run's answers blind, in both orders; see Judging for the arguments and the errors.

    Returns:
        A widget. `session` is its Judging, `buttons` has "first", "tie" and "second", `keyboard` is the box for their keys,
        `output` shows the pair, and the results at the end.
    """
    session = Judging(answers, ours, theirs, count, file, reader)
    output, note, count = widgets.HTML(), widgets.HTML(), widgets.Label()
    bar = widgets.IntProgress(max=max(1, len(session.questions)), layout=widgets.Layout(width="14em"))
    buttons = {name: button(f"{name} ({key})", UP, "8em") for key, name in VERDICTS.items()}

    def show():
        bar.value, count.value = session.done, f"{session.done} of {len(session.questions)} read by {session.reader}"
        for each in buttons.values():
            each.disabled = session.current is None
        if session.current is None:
            output.value = result_html(session)
        else:
            output.value = question_html(session.current._replace(prompt=as_text(session.current.prompt)))

    actions = {name: guarded(lambda name=name: session.say(name), show, note) for name in VERDICTS.values()}
    for name, action in actions.items():
        buttons[name].on_click(action)
    keyboard = key_box({key: actions[name] for key, name in VERDICTS.items()}, "click here, then type 1, 0 or 2")
    show()
    line = widgets.HBox([*buttons.values(), keyboard], layout=wrap())
    rows = (output, line, widgets.HBox([bar, count], layout=wrap()), note)
    return bundle(rows, session=session, buttons=buttons, keyboard=keyboard, output=output, count=count, note=note)
