"""A talk with an assistant in the terminal."""

import sys
from pathlib import Path
from typing import NamedTuple

from rlhf_lib import checkpoints, sampling
from rlhf_lib.checkpoints import CheckpointError
from rlhf_lib.devices import generator
from rlhf_lib.files import RunError, read_json, shown
from rlhf_lib.tokenization import ChatTokenizer
from rlhf_lib.trainers.rollouts import draw, quick_copy

MODELS = ("policy", "sft", "start")
HELP = "Type what you want to say. /new begins again, an empty line ends."
MAX_NEW_TOKENS, TEMPERATURE = 48, 0.7  # of answers, where no run says otherwise: as in comparisons.jsonl and the published run
SILENT = "the model ended its turn without a word: say it again, or in other words"


def open_assistant(folder, name=None, device="cpu"):
    """The model and the tokeniser to talk with.

    Args:
        folder: that of a run of the assistant, or of a checkpoint.
        name: of a run one of MODELS: after PPO (the default), after fine-tuning, or before both. Of a checkpoint None or "start".

    Raises:
        CheckpointError: there is no such checkpoint, or it is no chat model's.
    """
    place = Path(folder)
    if not (place / "model.safetensors").exists():
        place = place / ("policy" if name is None else "sft" if name == "start" else name)
    elif name not in (None, "start"):
        raise CheckpointError(f"{folder} is one checkpoint: leave --model out, or give the folder of the run")
    model, tokenizer = checkpoints.load(place, device)
    if not isinstance(tokenizer, ChatTokenizer):
        raise CheckpointError(
            f"{place} holds a language model without a chat tokenizer: give the folder of a run of the assistant"
        )
    return (getattr(model, "base", model) if name == "start" else model), tokenizer


def drawn_as(folder):
    """The most tokens and the temperature with which a run's answers were drawn, in training and for the judge.

    Args:
        folder: that of a run or of one of its checkpoints; MAX_NEW_TOKENS and TEMPERATURE where no settings.json lies beside.

    Returns:
        {"max_new_tokens": int, "temperature": number}.

    Raises:
        RunError: settings.json is damaged.
    """
    found = {"max_new_tokens": MAX_NEW_TOKENS, "temperature": TEMPERATURE}
    places = Path(folder) / "settings.json", Path(folder).resolve().parent / "settings.json"
    path = next((place for place in places if place.exists()), None)
    if path is None:
        return found
    saved = read_json(path, "mend it, or copy it from the run once more")
    for name, standard in found.items():
        found[name] = value = saved.get(f"ppo.{name}", standard)
        if type(value) is not int and type(value) is not type(standard):
            raise RunError(f"{path}: ppo.{name} must be a number, got {shown(value)}; mend the file")
    return found


def fitting(tokenizer, messages, most):
    """The newest of `messages` that have at most `most` tokens, oldest turns left out first, and how many turns those are.

    Raises:
        ValueError: the last message alone has more.
    """
    for start in range(0, len(messages), 2):
        if len(tokenizer.prompt(messages[start:])) <= most:
            return messages[start:], start // 2
    raise ValueError(f"that message is too long: the model reads {most} tokens before it answers. Say it in fewer words")


class Answer(NamedTuple):
    """What a model said: its `text`, and whether the limit `cut` it off before it ended its turn."""

    text: str
    cut: bool


def answer(model, tokenizer, messages, max_new_tokens, generator, temperature=1.0):
    """The model's Answer to a conversation that leaves room for it, see `fitting`; the token that ends its turn ends it."""
    drawn = draw(model, tokenizer, [tokenizer.prompt(messages)], max_new_tokens, generator, temperature)
    last = drawn.tokens[drawn.mask][-1].item()
    return Answer(drawn.texts[0].strip(), last != tokenizer.end_token)


def forgotten(turns):
    """The sentence for a conversation of which `turns` turns do not fit."""
    return f"the conversation is longer than the model reads: {turns} of its oldest turns are forgotten"


def talk(model, tokenizer, lines, say, max_new_tokens=MAX_NEW_TOKENS, temperature=TEMPERATURE, seed=0):
    """Answer each of `lines` until one is empty, the conversation kept.

    Args:
        model: a chat model, or a Branch.
        lines: an iterable of texts, as a person types them.
        say: called with each answer, and with what there is to say beside.
    """
    most = model.config.context - max_new_tokens
    if max_new_tokens < 1 or most < 1:
        raise ValueError(f"--max-new-tokens must be from 1 to {model.config.context - 1}, got {max_new_tokens}")
    sampling.check_temperature(temperature)
    model, messages = quick_copy(model), []
    for turn, line in enumerate(lines):
        asked = line.strip()
        if not asked:
            break
        if asked == "/new":
            messages = []
            say("(a new conversation)")
            continue
        try:
            messages, dropped = fitting(tokenizer, [*messages, {"role": "user", "content": asked}], most)
        except ValueError as error:
            say(f"({error})")
            continue
        if dropped:
            say(f"({forgotten(dropped)})")
        text = answer(model, tokenizer, messages, max_new_tokens, generator(seed, "chat", turn), temperature).text
        if not text:
            say(f"({SILENT})")
            messages = messages[:-1]
            continue
        messages = [*messages, {"role": "assistant", "content": text}]
        say(text)


def typed():
    """Lines of standard input, with a mark before each where a person types them."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    print(HELP)
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
