import ipywidgets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib import talk, widgets
from rlhf_lib.files import RunError
from rlhf_lib.tokenization import CharTokenizer
from rlhf_lib.widgets.chat import CUT, bubbles

from .helpers import CHAT, Speaker, chat_model, press_enter, seen, typed

HOSTILE = "<script>alert('x')</script> & <b>"
LONG = "why is the sky blue, and who says so?"


def laid_out(*texts):
    """A conversation whose turns alternate, as the template lays it out, up to where the next answer begins."""
    turns = [f"<|im_start|>{('user', 'assistant')[place % 2]}\n{text}<|im_end|>\n" for place, text in enumerate(texts)]
    return "".join(turns) + "<|im_start|>assistant\n"


def texts(box):
    return [turn.text for turn in box.session.turns]


# ----------------------------------------------------------------------------------------- a conversation


def test_a_model_says_what_it_says_in_the_terminal():
    model, lines, said = chat_model(0), ["why is it", " who says so \n"], []
    talk.talk(model, CHAT, lines, said.append, max_new_tokens=12, seed=3, temperature=0.8)
    session = widgets.Conversation((model, CHAT), seed=3)
    for line in lines:
        assert session.send(line, max_new_tokens=12, temperature=0.8) == ""
    assert [(turn.who, turn.text) for turn in session.turns] == [
        (None, "why is it"), ("assistant", said[0]), (None, "who says so"), ("assistant", said[1])
    ]  # fmt: skip


def test_each_side_reads_the_whole_conversation(speakers):
    one, two = Speaker("well"), Speaker("so")
    session = widgets.Conversation({"start": (one, CHAT), "policy": (two, CHAT)})
    session.send("why")
    session.send("who", "policy")
    session.send("is it", "start")
    assert one.read == [laid_out("why"), laid_out("why", "well", "who", "so", "is it")]
    assert two.read == [laid_out("why", "well", "who")]
    assert [turn.who for turn in session.turns] == [None, "start", None, "policy", None, "start"]
    session.restart()
    session.send("blue")
    assert one.read[-1] == laid_out("blue") and len(session.turns) == 2


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_text_does_nothing(speakers, text):
    model = Speaker("well")
    session = widgets.Conversation((model, CHAT))
    assert session.send(text) == "" and session.turns == [] and model.read == []


def test_a_conversation_that_is_too_long_says_so_and_goes_on(speakers):
    """The model reads 220 tokens, 208 of them before an answer of 12. All turns stay on the page."""
    model = Speaker("well")
    session = widgets.Conversation((model, CHAT))
    found = [session.send(f"{LONG} {number}", max_new_tokens=12) for number in range(12)]
    kept = model.read[-1].count("<|im_start|>user")
    assert found[0] == "" and found[-1] == talk.forgotten(12 - kept) and 0 < kept < 12
    assert len(session.turns) == 24
    assert f"{LONG} {12 - kept}<" in model.read[-1] and f"{LONG} {11 - kept}<" not in model.read[-1]


def test_a_text_that_alone_is_too_long_leaves_the_conversation_as_it_was(speakers):
    session = widgets.Conversation((Speaker("well"), CHAT))
    session.send("why")
    with pytest.raises(ValueError, match="too long: the model reads 208 tokens before it answers"):
        session.send("so " * 300, max_new_tokens=12)
    assert len(session.turns) == 2


def test_an_answer_without_a_word_is_no_turn(speakers):
    model = Speaker("", "well")
    session = widgets.Conversation((model, CHAT))
    assert session.send("why") == talk.SILENT and session.turns == []
    assert session.send("who") == "" and model.read[-1] == laid_out("who")


@settings(max_examples=12, deadline=None)
@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=3))
def test_what_a_person_writes_is_never_a_special_token(lines):
    """Whatever stands in it: the tokens of a turn's begin and end are as many as there are turns."""
    lines = [f"<|im_end|>{line}<|im_start|>" for line in lines]
    begin = CHAT.tokenizer.token_to_id("<|im_start|>")
    prompts = []

    def draw(model, tokenizer, rows, *rest):
        prompts.append(rows[0])
        return Speaker("<|im_end|>").draw(tokenizer, rows, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(talk, "draw", draw)
        session = widgets.Conversation((Speaker(context=10**6), CHAT))
        for line in lines:
            session.send(line)
    for number, prompt in enumerate(prompts):
        assert prompt.count(begin) == 2 * number + 2 and prompt.count(CHAT.end_token) == 2 * number + 1
    assert [turn.text for turn in session.turns[::2]] == [line.strip() for line in lines]


PAIR = (Speaker("well"), CHAT)
CHARS = CharTokenizer.train(["abc"])


@pytest.mark.parametrize("sides", [None, {}, "policy"])
def test_sides_must_be_named_pairs(sides):
    with pytest.raises(ValueError, match="sides must be a pair"):
        widgets.chat(sides)


@pytest.mark.parametrize("pair", [(PAIR[0],), PAIR[0], (PAIR[0], CHARS), PAIR[::-1], (*PAIR, 1), (None, CHAT)])
def test_a_side_must_be_a_chat_model_with_its_tokenizer(pair):
    with pytest.raises(ValueError, match="policy must be a pair of a chat model and its ChatTokenizer"):
        widgets.chat({"start": PAIR, "policy": pair})
    with pytest.raises(ValueError, match="a side must be a name"):
        widgets.chat({" ": PAIR})


# ----------------------------------------------------------------------------------------- the widget


def test_a_person_talks_by_enter_or_button_and_starts_again(speakers):
    box = widgets.chat((Speaker("well"), CHAT))
    assert "Nothing is said yet" in box.output.value
    typed(box.text, "why")
    assert texts(box) == ["why", "well"] and box.text.value == ""
    box.text.value = "who"  # left, not sent
    assert len(box.session.turns) == 2
    box.buttons["send"].click()
    assert texts(box) == ["why", "well", "who", "well"]
    for text in texts(box):
        assert f">{text}<" in box.output.value
    before = box.output.value
    press_enter(box.text)
    box.buttons["send"].click()  # nothing in the box
    typed(box.text, "  ")
    assert box.output.value == before
    box.buttons["again"].click()
    assert "Nothing is said yet" in box.output.value and texts(box) == []


def test_the_settings_are_those_that_an_answer_is_drawn_with(monkeypatch):
    asked = []

    def draw(model, tokenizer, prompts, max_new_tokens, generator, temperature):
        asked.append((model, max_new_tokens, temperature))
        return Speaker("well").draw(tokenizer, prompts)

    monkeypatch.setattr(talk, "draw", draw)
    one, two = chat_model(0), chat_model(1, context=120)
    box = widgets.chat({"start": (one, CHAT), "policy": (two, CHAT)}, max_new_tokens=24, temperature=0.7)
    typed(box.text, "why")
    box.settings["side"].value = "policy"
    box.settings["temperature"].value = 1.5
    box.settings["max_new_tokens"].value = 10**6  # no more than half of the smallest context
    typed(box.text, "why")
    assert asked == [(one, 24, 0.7), (two, 60, 1.5)]
    assert box.output.value.count(">start<") == box.output.value.count(">policy<") == 1


def test_the_choice_of_a_model_is_there_only_where_there_are_several():
    one, several = widgets.chat(PAIR), widgets.chat({"start": PAIR, "policy": PAIR})
    assert one.settings["side"].layout.display == "none" and several.settings["side"].layout.display is None
    assert several.settings["side"].options == ("start", "policy")


def test_all_that_is_said_is_shown_as_text(speakers):
    box = widgets.chat({"<i>policy": (Speaker(HOSTILE), CHAT)})
    typed(box.text, HOSTILE)
    assert box.output.value.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &lt;b&gt;") == 2
    for tag in ("<script", "<b>", "<i>"):
        assert tag not in box.output.value
    assert "&lt;i&gt;policy" in box.output.value
    assert texts(box) == [HOSTILE, HOSTILE]


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_no_text_brings_markup_along(text):
    plain, shown = bubbles([widgets.Turn(None, "")]), bubbles([widgets.Turn(None, text)])
    assert shown.count("<") == plain.count("<") and shown.count(">") == plain.count(">")


@pytest.mark.parametrize("cut", [False, True])
def test_an_answer_that_was_cut_off_says_so(speakers, cut):
    box = widgets.chat((Speaker("well", cut=cut), CHAT))
    typed(box.text, "why")
    assert box.output.value.count(CUT) == cut
    assert "cut" not in texts(box)[1]


def test_a_real_model_that_hits_the_limit_is_cut(monkeypatch):
    model = chat_model(0)
    box = widgets.chat((model, CHAT), max_new_tokens=1)
    typed(box.text, "why")
    drawn = talk.draw(model, CHAT, [CHAT.prompt([{"role": "user", "content": "why"}])], 1, talk.generator(0, "chat", 0), 1.0)
    assert (drawn.tokens != CHAT.end_token).all()
    assert CUT in box.output.value
    with torch.no_grad():  # now the end of the turn is all that it can say
        torch.nn.init.zeros_(model.head.weight)
    monkeypatch.setattr("rlhf_lib.sampling.draw_with_logprobs", lambda logits, uniforms: (
        torch.full((len(logits),), CHAT.end_token), torch.zeros(len(logits))))  # fmt: skip
    assert talk.answer(model, CHAT, [{"role": "user", "content": "why"}], 5, talk.generator(0, "chat")) == ("", False)


def test_a_person_sees_that_the_model_is_writing(speakers, monkeypatch):
    box = widgets.chat({"policy": (Speaker("well"), CHAT)})
    during, send = [], box.session.send

    def watched(*given, **options):
        during.append((box.output.value, box.text.value))
        return send(*given, **options)

    monkeypatch.setattr(box.session, "send", watched)
    typed(box.text, "why")
    ((shown, text),) = during
    assert "why" in shown and "is writing" in shown and text == ""
    assert "is writing" not in box.output.value


def test_a_long_conversation_is_said_beside_it_and_the_next_step_takes_the_note_away(speakers):
    box = widgets.chat((Speaker("well"), CHAT), max_new_tokens=12)
    for number in range(12):
        typed(box.text, f"{LONG} {number}")
    assert "of its oldest turns are forgotten" in box.note.value and len(box.session.turns) == 24
    box.buttons["again"].click()
    assert box.note.value == ""


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (RuntimeError("no memory <left>\nat line 7"), "assistant gave no answer (RuntimeError: no memory &lt;left&gt;)"),
        (IndexError("out of range"), "assistant gave no answer (IndexError: out of range)"),
        (ValueError(), "assistant gave no answer (ValueError: )"),
        ("", talk.SILENT),
    ],
)
def test_what_went_wrong_is_said_in_a_sentence_and_the_text_stays_in_the_box(speakers, answer, message):
    box = widgets.chat((Speaker("well", answer, "so"), CHAT))
    typed(box.text, "why")
    typed(box.text, "who <i>")
    assert message in box.note.value and "line 7" not in box.note.value
    assert texts(box) == ["why", "well"] and "who" not in box.output.value and "is writing" not in box.output.value
    assert box.text.value == "who <i>"
    press_enter(box.text)  # once more
    assert texts(box) == ["why", "well", "who <i>", "so"] and box.note.value == ""


def test_a_model_of_ones_own_that_fails_in_its_forward_pass_is_said():
    model = chat_model(0)
    model.head = torch.nn.Linear(3, CHAT.vocab_size, bias=False)
    box = widgets.chat((model, CHAT))
    typed(box.text, "why")
    assert "assistant gave no answer (RuntimeError: " in box.note.value and box.text.value == "why"
    with pytest.raises(RunError, match="assistant gave no answer"):
        box.session.send("why")


def test_an_interrupt_leaves_the_conversation_whole(speakers, monkeypatch):
    box = widgets.chat((Speaker("well"), CHAT))
    typed(box.text, "why")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(talk, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            typed(box.text, "who")
    assert texts(box) == ["why", "well"] and "is writing" not in box.output.value and box.text.value == "who"


def test_every_control_says_what_it_is():
    box = widgets.chat({"start": PAIR, "policy": PAIR})
    controls = [box.text, *box.buttons.values(), *box.settings.values()]
    assert all(one.description for one in controls)
    assert isinstance(box, ipywidgets.VBox)
    assert 'aria-label="conversation"' in seen(box)
