"""A conversation: a list of messages {"role": ..., "content": ...}, the form that chat templates and TRL read."""

import re

ROLES = ("system", "user", "assistant")
TURN = re.compile(r"\n\n(Human|Assistant):")  # what opens a turn in the transcripts of Anthropic's hh-rlhf
SPEAKERS = {"Human": "user", "Assistant": "assistant"}

NO_MESSAGE = "there is no message"
NOT_A_MESSAGE = "a message is not a role and a content, both texts"
UNKNOWN_ROLE = "a role is none of system, user and assistant"
NOT_ALTERNATING = "the roles do not alternate: system, if any, then user and assistant in turn"
EMPTY_MESSAGE = "a message is empty"
NO_TURN = "the transcript does not begin with a blank line and Human: or Assistant:"
LAST_TURN = {role: f"the last turn is not the {role}'s" for role in ROLES}


class ChatError(ValueError):
    """A conversation that is not well-formed. `reason` says what is wrong, the same words for the same fault; the message says
    also where."""

    def __init__(self, reason, number=None):
        super().__init__(reason if number is None else f"message {number}: {reason}")
        self.reason = reason


def check_messages(messages, last="user"):
    """`messages`, if they are a conversation whose roles alternate and whose last turn is that of `last`.

    Args:
        messages: a list of {"role", "content"}; it may begin with one message of the system.
        last: "user" where an answer is to come, "assistant" where it is there, None where either will do.

    Raises:
        ChatError: they are not; the message names the first that is wrong, counted from 1.
    """
    if not isinstance(messages, list) or not messages:
        raise ChatError(NO_MESSAGE)
    turn = 0  # of the user where it is even
    for number, message in enumerate(messages, 1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise ChatError(NOT_A_MESSAGE, number)
        if role not in ROLES:
            raise ChatError(UNKNOWN_ROLE, number)
        if not content.strip():
            raise ChatError(EMPTY_MESSAGE, number)
        if number == 1 and role == "system":
            continue
        if role != ("user", "assistant")[turn % 2]:
            raise ChatError(NOT_ALTERNATING, number)
        turn += 1
    if last is not None and messages[-1]["role"] != last:
        raise ChatError(LAST_TURN[last], len(messages))
    return messages


def as_messages(prompt):
    """`prompt` as a conversation: a text is the only message of the user; a list stays what it is."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def opening(prompt):
    """The words that a prompt begins with: a text itself, or the first message of the user in a conversation."""
    return next(message["content"] for message in as_messages(prompt) if message["role"] == "user")


def from_transcript(text):
    """The messages of a transcript in the form of hh-rlhf (Bai et al. 2022): "\\n\\nHuman: ...\\n\\nAssistant: ...".

    The white space around a turn is dropped. A blank line and "Human:" inside a turn cannot be told from a turn.

    Raises:
        ChatError: there is something before the first turn, or no turn at all. The roles are not checked.
    """
    before, *parts = TURN.split(text)
    if before or not parts:
        raise ChatError(NO_TURN)
    return [{"role": SPEAKERS[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2])]
