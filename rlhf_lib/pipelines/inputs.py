"""What the assistant learns from and is judged on, read and checked as a whole before the first step of work."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_lib import comparisons, public_sets
from rlhf_lib.chat import as_messages, opening
from rlhf_lib.comparisons import ComparisonError, Demonstration
from rlhf_lib.files import json_rows
from rlhf_lib.labels import draw_of
from rlhf_lib.trainers.preference import Ranking

OURS = "ours"
PUBLIC = {"chosen", "ranked"}  # a line of a public set's form has one of them


@dataclass
class Inputs:
    """Everything of which one half is learned from and the other held out, as (learn, held out), two lists each.

    Args:
        demonstrations: conversations, each a list of messages that ends with the assistant's.
        rankings: a preference.Ranking for each comparison that is no tie, of those to learn from at most `settings.limit`.
        beyond: a list of the others, of which only a gold judge learns.
        prompts: texts or lists of messages; those held out in an order that their texts alone decide, so that the first few are
            of all kinds.
        left_out: how many were too long for the model, a dict by what they are.
        agreement: what `comparisons.agreement` says of two readers; None where nobody read twice.
        loaded: what was read of public sets, or held out beside a file, in sentences; "" where nothing was.
        asked: which prompts the assistant is asked, in a sentence; "" where they are ours alone.
    """

    demonstrations: tuple
    rankings: tuple
    beyond: list
    prompts: tuple
    left_out: dict
    agreement: dict | None
    loaded: str
    asked: str

    def contents(self):
        """What the run learns from, as JSON can hold it, by the setting that names it."""
        learned = [*self.rankings[0], *self.beyond, *self.rankings[1]]
        return {"demonstrations": self.demonstrations, "comparisons": [self.prompts, [list(ranking) for ranking in learned]]}

    def notes(self):
        """What was left out and which prompts are asked, in sentences."""
        counts = [f"{count:,} {name}" for name, count in self.left_out.items() if count]
        too_long = f"Left out, being too long: {', '.join(counts)}." if counts else ""
        return [sentence for sentence in (self.loaded, too_long, self.asked) if sentence]


def read(settings, tokenizer, context):
    """The Inputs that `settings`, those of the assistant, name for a model that reads `context` tokens.

    What is longer than the model or the settings allow is left out and counted. Prompts are those of
    `data/assistant/prompts.jsonl` and those that the comparisons spell out; where they name none of ours by its id, these alone.

    Raises:
        ComparisonError, ChatError: a file or a set that is not there or not well-formed.
        ValueError: settings that do not fit the model, or a half in which nothing is left.
    """
    s, most = settings, min(settings.longest or context, context)
    for name, value in (("sft.row", s.sft.row), ("ppo.max_new_tokens", s.ppo.max_new_tokens + 1)):
        if value > context:
            raise ValueError(f"{name} is too much for a model that reads {context} tokens: make it smaller")
    asked = comparisons.read_prompts(comparisons.PROMPTS)
    shown, demonstrated = read_demonstrations(s.demonstrations, s.limit, asked)
    compared, loaded = read_comparisons(s.comparisons, s.limit, asked)
    second = comparisons.SECOND_READING
    agreement = None
    if s.comparisons == OURS and second.exists():
        agreement = comparisons.agreement(compared, comparisons.read_comparisons(second, asked))
    halved = {item.prompt: item.split for item in asked}  # a prompt of ours stays in its half, however a file says it
    shown, compared = (
        [replace(one, split=halved[begun]) if (begun := opening(one.prompt)) in halved else one for one in some]
        for some in (shown, compared)
    )
    own = [comparison for comparison in compared if "id" not in comparison.source]
    ours = asked if len(own) < len(compared) else []
    prompts = list({json.dumps(item.prompt): item for item in [*own, *ours]}.values())
    beside = f" and our {len(ours):,}" if ours else ""
    note = f"Asked are {len(prompts) - len(ours):,} prompts that the comparisons spell out{beside}."
    prompts.sort(key=lambda item: draw_of(opening(item.prompt)))
    left_out = {}

    def halves(name, items, made, length, most):
        """What is `made` of the `items` of each half, without what has a `length` of more than `most` tokens."""
        whole = [[made(item) for item in half] for half in comparisons.split(items)]
        fitting = [[thing for thing in half if length(thing) <= most] for half in whole]
        left_out[name] = sum(map(len, whole)) - sum(map(len, fitting))
        if not all(fitting):
            advice = "add some to other prompts, whose texts decide which are held out"
            if left_out[name]:
                advice = "give shorter ones, or change longest, sft.row or ppo.max_new_tokens"
            raise ValueError(
                f"{name}: {len(fitting[0])} to learn from and {len(fitting[1])} held out, {left_out[name]} of more than {most} "
                f"tokens left out; at least one of each is needed: {advice}"
            )
        return tuple(fitting)

    compared = [comparison for comparison in compared if not comparison.tie]
    compared.sort(key=lambda item: draw_of(json.dumps(public_sets.row_of(item))))  # so that the first few are of all prompts
    learn, held_out = halves(
        "comparisons",
        compared,
        lambda item: ranking(tokenizer, item),
        lambda item: len(item.prompt) + max(map(len, item.answers)),
        most,
    )
    few = s.limit or len(learn)
    return Inputs(
        demonstrations=halves(
            "demonstrations",
            shown,
            lambda item: [*as_messages(item.prompt), {"role": "assistant", "content": item.answer}],
            lambda talk: len(tokenizer.turns(talk)[0]),
            min(s.sft.row, most),
        ),
        rankings=(learn[:few], held_out),
        beyond=learn[few:],
        prompts=halves(
            "prompts",
            prompts,
            lambda item: item.prompt,
            lambda prompt: len(prompt_tokens(tokenizer, prompt)),
            most - s.ppo.max_new_tokens,
        ),
        left_out=left_out,
        agreement=agreement,
        loaded=" ".join(filter(None, [demonstrated, loaded])),
        asked=note if len(prompts) > len(ours) else "",
    )


def of_our_form(name):
    """Whether `name` is a file of JSON lines, and none of them in the form of a public set."""
    return Path(name).suffix == ".jsonl" and all(PUBLIC.isdisjoint(row) for _, row in json_rows(name, ComparisonError))


def read_demonstrations(name, limit, prompts):
    """(demonstrations, a sentence on what else was read): ours, a file's of our form, or the better answers of a public set, with
    the conversations before them."""
    if name == OURS or of_our_form(name):
        return comparisons.read_demonstrations(comparisons.DEMONSTRATIONS if name == OURS else name, prompts), ""
    loaded = public_sets.load(name, limit=limit or None)
    shown = [Demonstration("", one.prompt, one.ranked[0][0], loaded.name, None) for one in loaded.comparisons]
    return shown, f"Demonstrations are the better answers of {loaded}."


def read_comparisons(name, limit, prompts):
    """(comparisons, a sentence on what else was read): ours, a file's of our form, or those of a public set or of a file in its
    form, in which a line may rank more than two answers.

    A file that names our prompts and none of those held out, as votes of the arena do, is tested on our own held-out comparisons.
    """
    if name == OURS:
        return comparisons.read_comparisons(comparisons.COMPARISONS, prompts), ""
    if of_our_form(name):
        found = comparisons.read_comparisons(name, prompts)
        halves = {one.split for one in found if not one.tie}
        if "train" not in halves or "held_out" in halves:
            return found, ""
        ours = comparisons.read_comparisons(comparisons.COMPARISONS, prompts)
        test = [one for one in ours if one.split == "held_out" and not one.tie]
        return [*found, *test], f"{name} has no held-out prompt: our {len(test):,} comparisons of such prompts are the test."
    loaded = public_sets.load(name, limit=limit or None)
    return loaded.comparisons, str(loaded)


def prompt_tokens(tokenizer, prompt):
    """The tokens from which an answer to `prompt`, a text or a list of messages, goes on."""
    return tokenizer.prompt(as_messages(prompt))


def answer_tokens(tokenizer, answer, cut=False):
    """The tokens of an answer, the end of the turn included unless it was cut off before."""
    return tokenizer.encode(answer.strip()) + ([] if cut else [tokenizer.end_token])


def ranking(tokenizer, comparison):
    """The Ranking of a comparison that is no tie."""
    answers = [answer_tokens(tokenizer, *answer) for answer in comparison.ranked]
    return Ranking(prompt_tokens(tokenizer, comparison.prompt), answers)
