import io
import sys

import pytest
import torch
from torch import nn

from rlhf_lib import checkpoints, course, devices, files, talk
from rlhf_lib.checkpoints import CheckpointError
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.llama import Llama, LlamaConfig
from rlhf_lib.models.lora import Branch
from rlhf_lib.tokenization import BPETokenizer, ChatTokenizer
from rlhf_lib.trainers import rollouts

TOKENIZER = ChatTokenizer.train(["why is the sky blue, and who says so?"], 300)


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(TOKENIZER.vocab_size, context=220, layers=2, heads=2, kv_heads=1, width=32, hidden=64)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.3)
    return model


def branch(base, scalar=False):
    torch.manual_seed(1)
    new = Branch(base, 1, 4, 8, scalar=scalar, source="../base")
    for parameter in new.parameters():
        nn.init.normal_(parameter, std=0.2)
    return new.eval()


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """The folder of a run: base, sft, policy and a reward model."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints.save(folder / "base", base, TOKENIZER)
    checkpoints.save(folder / "policy", branch(base), TOKENIZER)
    checkpoints.save(folder / "sft", Branch(base, 1, 4, 8, source="../base"), TOKENIZER)
    checkpoints.save(folder / "reward", branch(base, scalar=True), TOKENIZER)
    return folder


def said(model, *lines, **options):
    """What is said to `lines`."""
    found = []
    talk.talk(model, TOKENIZER, lines, found.append, **{"max_new_tokens": 12, **options})
    return found


def drawn(prompts, text, last=TOKENIZER.end_token):
    """A Rollout of one completion of two tokens, whose text is `text` whatever they are."""
    tokens, mask = torch.tensor([[65, last, 0]]), torch.tensor([[True, True, False]])
    return rollouts.Rollout(prompts, tokens, torch.zeros(1, 3), mask, [text])


@pytest.fixture
def asked(monkeypatch):
    """The conversations that answers were drawn to; every answer is "well 1", "well 2" and so on."""
    found = []

    def draw(model, tokenizer, prompts, max_new_tokens, generator, temperature):
        found.append((tokenizer.tokenizer.decode(prompts[0], skip_special_tokens=False), max_new_tokens, temperature))
        return drawn(prompts, f" well {len(found)} ")

    monkeypatch.setattr(talk, "draw", draw)
    return found


def laid_out(*texts):
    """A conversation whose turns alternate, as the template lays it out, up to where the next answer begins."""
    roles = ("user", "assistant") * len(texts)
    turns = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in zip(roles, texts)]
    return "".join(turns) + "<|im_start|>assistant\n"


# ----------------------------------------------------------------------------------------- a talk


def test_the_conversation_is_kept(base, asked):
    assert said(base, "why is it", "  who says so \n") == ["well 1", "well 2"]
    assert [text for text, *_ in asked] == [laid_out("why is it"), laid_out("why is it", "well 1", "who says so")]
    assert asked[0][1:] == (12, talk.TEMPERATURE)


def test_new_begins_again(base, asked):
    assert said(base, "why", "/new", "who") == ["well 1", "(a new conversation)", "well 2"]
    assert asked[-1][0] == laid_out("who")


@pytest.mark.parametrize("end", ["", "   ", "\n"])
def test_an_empty_line_or_the_end_of_the_input_ends_it(base, asked, end):
    assert said(base, "why", end, "who") == ["well 1"]
    assert said(base) == []


def test_a_long_conversation_forgets_its_oldest_turns_and_says_so(base, asked):
    """The model reads 220 tokens, 208 of them before an answer of 12."""
    lines = [f"why is the sky blue, and who says so {number}?" for number in range(12)]
    found = said(base, *lines)
    notes = [text for text in found if text.startswith("(")]
    assert notes and set(notes) == {"(the conversation is longer than the model reads: 1 of its oldest turns are forgotten)"}
    assert len(asked) == 12
    last = asked[-1][0]
    assert lines[-1] in last and lines[-2] in last and lines[0] not in last
    assert last.startswith("<|im_start|>user\n")
    # no more is forgotten than has to be: with one turn more it would not fit
    kept = last.count("<|im_start|>user")
    talked = [part for number in range(12 - kept - 1, 12) for part in (lines[number], f"well {number + 1}")][:-1]
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(talked)]
    assert len(TOKENIZER.prompt(messages)) > 208 >= len(TOKENIZER.prompt(messages[2:]))


def test_a_message_that_alone_is_too_long_is_said_and_the_talk_goes_on(base, asked):
    found = said(base, "why", "so " * 300, "who")
    error = "(that message is too long: the model reads 208 tokens before it answers. Say it in fewer words)"
    assert found == ["well 1", error, "well 2"]
    assert asked[-1][0] == laid_out("why", "well 1", "who")


def test_answers_need_room(base):
    for most in (220, 0, -5):
        with pytest.raises(ValueError, match=f"--max-new-tokens must be from 1 to 219, got {most}"):
            said(base, "why", max_new_tokens=most)


def test_answers_are_those_of_the_model_and_depend_on_the_seed(base, monkeypatch):
    monkeypatch.setattr(devices, "has_bf16", lambda device: False)
    policy = branch(base)
    found = said(policy, "why is it", "who", seed=3)
    assert found == said(policy, "why is it", "who", seed=3) != said(policy, "why is it", "who", seed=4)
    assert found[0] != said(base, "why is it", seed=3)[0]
    tokens = TOKENIZER.prompt([{"role": "user", "content": "why is it"}])
    answer = rollouts.draw(policy, TOKENIZER, [tokens], 12, devices.generator(3, "chat", 0), talk.TEMPERATURE).texts[0]
    assert found[0] == answer.strip()
    cold = [said(policy, "why is it", temperature=1e-3, seed=seed) for seed in (1, 2)]
    assert cold[0] == cold[1]


def test_an_answer_without_a_word_is_said_and_its_turn_is_forgotten(base, monkeypatch):
    texts = iter(["well", " \n", "so"])
    prompts = []

    def draw(model, tokenizer, rows, *rest):
        prompts.append(tokenizer.tokenizer.decode(rows[0], skip_special_tokens=False))
        return drawn(rows, next(texts))

    monkeypatch.setattr(talk, "draw", draw)
    assert said(base, "why", "is it", "who") == ["well", f"({talk.SILENT})", "so"]
    assert prompts[-1] == laid_out("why", "well", "who")


@pytest.mark.parametrize(("last", "cut"), [(TOKENIZER.end_token, False), (66, True)])
def test_an_answer_is_cut_unless_the_model_ended_its_turn(base, monkeypatch, last, cut):
    monkeypatch.setattr(talk, "draw", lambda model, tokenizer, prompts, *rest: drawn(prompts, " so ", last))
    messages = [{"role": "user", "content": "why"}]
    assert talk.answer(base, TOKENIZER, messages, 3, devices.generator(0, "chat")) == talk.Answer("so", cut)


# ----------------------------------------------------------------------------------------- whom one talks with


@pytest.mark.parametrize(("name", "like"), [(None, "policy"), ("policy", "policy"), ("sft", "sft"), ("start", "base")])
def test_a_run_has_three_models_to_talk_with(run, name, like):
    model, tokenizer = talk.open_assistant(run, name)
    expected, _ = checkpoints.load(run / like)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(model(tokens), expected(tokens))
    assert tokenizer.fingerprint() == TOKENIZER.fingerprint()
    assert isinstance(model, Llama) == (like == "base")


def test_a_checkpoint_stands_for_itself(run):
    tokens = torch.arange(20)[None]
    policy, _ = talk.open_assistant(run / "policy")
    torch.testing.assert_close(policy(tokens), checkpoints.load(run / "policy")[0](tokens))
    for folder in ("policy", "base"):
        start, _ = talk.open_assistant(run / folder, "start")
        torch.testing.assert_close(start(tokens), checkpoints.load(run / "base")[0](tokens))
    with pytest.raises(CheckpointError, match="is one checkpoint: leave --model out, or give the folder of the run"):
        talk.open_assistant(run / "policy", "sft")


def test_what_cannot_talk_is_refused(run, tmp_path):
    with pytest.raises(CheckpointError, match="holds a reward model, not a language model"):
        talk.open_assistant(run / "reward")
    tokenizer = BPETokenizer.train(["the plays"], 300)
    checkpoints.save(tmp_path / "policy", GPT(GPTConfig(tokenizer.vocab_size, 32, 1, 2, 16)), tokenizer)
    with pytest.raises(CheckpointError, match="without a chat tokenizer: give the folder of a run of the assistant"):
        talk.open_assistant(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        talk.open_assistant(tmp_path / "none")


@pytest.mark.parametrize(
    ("saved", "found"),
    [
        ({"ppo.max_new_tokens": 20, "ppo.temperature": 0.5, "seed": 1}, (20, 0.5)),
        ({"ppo.max_new_tokens": 20, "ppo.temperature": 1}, (20, 1)),
        ({"ppo.max_new_tokens": 20}, (20, talk.TEMPERATURE)),
        (None, (talk.MAX_NEW_TOKENS, talk.TEMPERATURE)),
    ],
)
def test_answers_are_drawn_as_the_run_drew_its_own(tmp_path, saved, found):
    (tmp_path / "run" / "policy").mkdir(parents=True)
    if saved is not None:
        files.write_json(tmp_path / "run" / "settings.json", saved)
    for folder in (tmp_path / "run", tmp_path / "run" / "policy"):
        assert tuple(talk.drawn_as(folder).values()) == found and list(talk.drawn_as(folder)) == ["max_new_tokens", "temperature"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"ppo.temperature": "cold"}', "settings.json: ppo.temperature must be a number, got 'cold'; mend the file"),
        ('{"ppo.max_new_tokens": 4.5}', "settings.json: ppo.max_new_tokens must be a number, got 4.5; mend the file"),
        ('{"ppo.max_new_tokens": true}', "settings.json: ppo.max_new_tokens must be a number, got True; mend the file"),
        ("{", "settings.json is damaged .*: mend it"),
    ],
)
def test_damaged_settings_are_said(tmp_path, text, message):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(files.RunError, match=message):
        talk.drawn_as(tmp_path)


def test_the_published_run_is_what_holds_without_one():
    assert tuple(talk.drawn_as(course.ASSISTANT).values()) == (talk.MAX_NEW_TOKENS, talk.TEMPERATURE)


# ----------------------------------------------------------------------------------------- lines


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_piped_lines_are_read_without_a_mark(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("why\nwho\n"))
    assert list(talk.typed()) == ["why\n", "who\n"]
    assert capsys.readouterr().out == ""


def test_a_person_is_told_how_it_goes_and_sees_a_mark(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Terminal("why\n\n"))
    lines = talk.typed()
    assert next(lines) == "why" and next(lines) == ""
    assert capsys.readouterr().out == f"{talk.HELP}\n> > "
    assert list(lines) == []  # Ctrl-D
