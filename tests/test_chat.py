import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib import chat
from rlhf_lib.chat import ChatError


def talk(*turns, system=None):
    """A conversation of these turns, the user's first."""
    messages = [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]
    return ([] if system is None else [{"role": "system", "content": system}]) + messages


def transcript(*turns):
    return "".join(f"\n\n{('Human', 'Assistant')[place % 2]}: {turn}" for place, turn in enumerate(turns))


# ----------------------------------------------------------------------------------------- what is a conversation


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("ab \n", min_size=1).filter(str.strip), min_size=1, max_size=5), st.sampled_from([None, "Be kind."]))
def test_turns_that_alternate_are_a_conversation_that_waits_for_the_other(turns, system):
    messages = talk(*turns, system=system)
    last, other = ("user", "assistant") if len(turns) % 2 else ("assistant", "user")
    assert chat.check_messages(messages, last) is messages
    assert chat.check_messages(messages, None) is messages
    with pytest.raises(ChatError) as error:
        chat.check_messages(messages, other)
    assert error.value.reason == f"the last turn is not the {other}'s"
    assert str(error.value) == f"message {len(messages)}: the last turn is not the {other}'s"


BAD = {
    "no list": ("hello", None, chat.NO_MESSAGE),
    "empty": ([], None, chat.NO_MESSAGE),
    "a tuple": (tuple(talk("a")), None, chat.NO_MESSAGE),
    "a text for a message": (["hello"], 1, chat.NOT_A_MESSAGE),
    "no role": ([{"content": "a"}], 1, chat.NOT_A_MESSAGE),
    "no content": ([*talk("a", "b"), {"role": "user"}], 3, chat.NOT_A_MESSAGE),
    "a number for a content": ([{"role": "user", "content": 5}], 1, chat.NOT_A_MESSAGE),
    "a list for a role": ([{"role": ["user"], "content": "a"}], 1, chat.NOT_A_MESSAGE),
    "another role": ([*talk("a", "b"), {"role": "tool", "content": "a"}], 3, chat.UNKNOWN_ROLE),
    "a role in capitals": ([{"role": "User", "content": "a"}], 1, chat.UNKNOWN_ROLE),
    "white space": (talk("a", " \n"), 2, chat.EMPTY_MESSAGE),
    "an empty system": (talk("a", system=""), 1, chat.EMPTY_MESSAGE),
    "the assistant first": (talk("a", "b")[1:], 1, chat.NOT_ALTERNATING),
    "the assistant behind the system": (talk("a", "b", system="s")[::2], 2, chat.NOT_ALTERNATING),
    "the user twice": (talk("a") + talk("b"), 2, chat.NOT_ALTERNATING),
    "the assistant twice": (talk("a", "b") + talk("a", "b")[1:] + talk("c"), 3, chat.NOT_ALTERNATING),
    "the system twice": (talk(system="s") + talk("a", system="s"), 2, chat.NOT_ALTERNATING),
    "the system in the middle": (talk("a", "b") + talk("c", system="s"), 3, chat.NOT_ALTERNATING),
    "the system alone": (talk(system="s"), 1, chat.LAST_TURN["user"]),
}


@pytest.mark.parametrize(("messages", "number", "reason"), BAD.values(), ids=BAD)
def test_what_is_no_conversation_is_named_with_its_place_and_rule(messages, number, reason):
    with pytest.raises(ChatError) as error:
        chat.check_messages(messages)
    assert error.value.reason == reason
    assert str(error.value) == (reason if number is None else f"message {number}: {reason}")


def test_a_text_is_the_only_message_of_the_user_and_a_conversation_stays():
    assert chat.as_messages("Why?") == [{"role": "user", "content": "Why?"}]
    messages = talk("a", "b", "c", system="s")
    assert chat.as_messages(messages) is messages


def test_the_opening_is_what_the_user_says_first():
    assert chat.opening("Why?") == "Why?"
    assert chat.opening(talk("a", "b", "c", system="s")) == "a"


# ----------------------------------------------------------------------------------------- transcripts


def test_a_transcript_becomes_messages_whatever_its_turns_hold():
    text = "\n\nHuman: What is\n\n2 and 2?\n\nAssistant:Four. Human: no turn\nAssistant: nor this \n\nHuman: Sure?\n\nAssistant:"
    assert chat.from_transcript(text) == [
        {"role": "user", "content": "What is\n\n2 and 2?"},
        {"role": "assistant", "content": "Four. Human: no turn\nAssistant: nor this"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": ""},
    ]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("ab:\n .", max_size=12).map(str.strip), min_size=1, max_size=6))
def test_a_transcript_of_turns_gives_the_turns(turns):
    assert chat.from_transcript(transcript(*turns)) == talk(*turns)


def test_the_roles_of_a_transcript_stay_as_they_are_even_where_they_do_not_alternate():
    roles = [message["role"] for message in chat.from_transcript("\n\nAssistant: a\n\nAssistant: b\n\nHuman: c")]
    assert roles == ["assistant", "assistant", "user"]


@pytest.mark.parametrize("text", ["", "hello", "Human: a", "\nHuman: a", "so\n\nHuman: a", " \n\nHuman: a", "\n\nHUMAN: a"])
def test_a_text_that_does_not_begin_with_a_turn_is_no_transcript(text):
    with pytest.raises(ChatError) as error:
        chat.from_transcript(text)
    assert error.value.reason == chat.NO_TURN
