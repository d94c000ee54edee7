import io
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.run import get_args_parser

from rlhf_lib import __main__ as command_line
from rlhf_lib import checkpoints, corpus, labels
from rlhf_lib.files import write_atomic, write_json
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.pipelines.assistant_settings import PRESETS as ASSISTANT_PRESETS
from rlhf_lib.pipelines.settings import flat
from rlhf_lib.pipelines.shakespeare import PRESETS
from rlhf_lib.tokenization import CharTokenizer

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [*command_line.STAGES, "assistant", "sample", "score", "chat", "labels", "publish", "grade", "release", "figures"]
PIPELINES = {"run": PRESETS, "assistant": ASSISTANT_PRESETS}
LETTERS = CharTokenizer(list("\nabcdefghij"))


@pytest.fixture
def call(capsys):
    """`call(...)`: what the command line returns and prints, (exit code, standard output, standard error)."""

    def run(*arguments):
        code = command_line.main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def rows(call):
    """`rows(...)`: the JSON lines that a command prints when all goes well."""

    def run(*arguments):
        code, out, err = call(*arguments)
        assert code == 0, err
        return [json.loads(line) for line in out.split("\n") if line]

    return run


def settings_of(*arguments):
    return command_line.settings_of(command_line.parser().parse_args([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A checkpoint whose tokens are single letters, so that a sample's tokens can be read off its text; drawn weights."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=LETTERS.vocab_size, context=32, layers=2, heads=2, width=16)).eval()
    for weight in model.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.4)
    folder = tmp_path_factory.mktemp("letters")
    checkpoints.save(folder, model, LETTERS)
    return folder, model


# ----------------------------------------------------------------------------------------- help and flags


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_is_printed_and_exits_0(command, capsys):
    with pytest.raises(SystemExit) as end:
        command_line.main([*([command] if command else []), "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "usage: python -m rlhf_lib" in text
    if command is None:
        assert all(re.search(rf"^ +{name}\b", text, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("command", PIPELINES)
def test_help_has_a_line_for_every_setting(capsys, command):
    with pytest.raises(SystemExit):
        command_line.main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for field, value in flat(PIPELINES[command]["laptop"]).items():
        if field != "preset":
            assert re.search(rf"--{re.escape(field)} \S+ [^(]{{5,}}.*?\(laptop: {re.escape(str(value))}\)", text), field


@pytest.mark.parametrize("arguments", [[], ["dance"], ["run"], ["run", "--out", "x", "--model.width", "wide"], ["sample"]])
def test_a_command_that_is_not_understood_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        command_line.main(arguments)
    assert end.value.code == 2
    assert "usage:" in capsys.readouterr().err


OTHER_WORDS = {
    "corpus": "my.txt", "tokenizer": "char", "labels": "synthetic:50", "init_from": "runs/other", "model.recipe": "gpt2",
    "reward.pooling": "last", "sentiment": "negative", "model": "gpt2", "demonstrations": "my.jsonl", "comparisons": "hh-rlhf",
    "judge": "endpoint:http://localhost:1/v1#m",
}  # fmt: skip
# Halved, for they may not stand above their partners; everything else is doubled.
HALVED = ("ppo.max_new_tokens", "ppo.minibatch", "reward.held_out", "pretrain.decay", "model.heads")


def other(field, value):
    """A value for `field` that is allowed and is not the preset's."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return OTHER_WORDS[field] if value != OTHER_WORDS[field] else "plays"
    if not value:
        return 0.5 if isinstance(value, float) else 3
    return type(value)(value / 2) if field in HALVED or isinstance(value, float) else 2 * value


@pytest.mark.parametrize("command", command_line.STAGES)
def test_every_setting_has_a_flag_that_arrives(command, tmp_path):
    for field, value in flat(PRESETS["laptop"]).items():
        if field == "preset":
            continue
        wanted = other(field, value)
        text = {True: "yes", False: "no"}[wanted] if isinstance(wanted, bool) else wanted
        got = flat(settings_of(command, "--out", tmp_path / "new", f"--{field}", text))
        assert got == {**flat(PRESETS["laptop"]), field: wanted}


def test_every_setting_of_the_assistant_has_a_flag_that_arrives(tmp_path):
    for field, value in flat(ASSISTANT_PRESETS["laptop"]).items():
        if field != "preset":
            wanted = other(field, value)
            got = settings_of("assistant", "--out", tmp_path / "new", f"--{field}", wanted)
            assert flat(got) == {**flat(ASSISTANT_PRESETS["laptop"]), field: wanted}


def test_torchrun_takes_no_flag_for_one_of_its_own():
    """It reads abbreviations of its own options everywhere on the line."""
    flags = [part for field in flat(PRESETS["laptop"]) for part in (f"--{field}", "1")]
    options = get_args_parser().parse_args(["--nproc-per-node=2", "-m", "rlhf_lib", "run", *flags, "--out", "x"])
    assert options.training_script_args == ["run", *flags, "--out", "x"]


@pytest.mark.parametrize("command", PIPELINES)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_preset_gives_the_settings_and_laptop_is_the_default(preset, command, tmp_path):
    presets = PIPELINES[command]
    assert settings_of(command, "--preset", preset, "--out", tmp_path / "new") == presets[preset]
    assert settings_of(command, "--out", tmp_path / "new") == presets["laptop"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--model.width", 100, "--model.heads", 5],  # 100 does not go with the preset's 4 heads
        ["--model.heads", 5, "--model.width", 100],
        ["--ppo.rollout_size", 30, "--ppo.minibatch", 10],
        ["--ppo.minibatch", 10, "--ppo.rollout_size", 30],
        ["--ppo.max_new_tokens", 300, "--model.context", 400],
        ["--model.context", 400, "--ppo.max_new_tokens", 300],
    ],
)
def test_settings_that_fit_together_are_taken_in_any_order(flags, tmp_path):
    got = flat(settings_of("run", "--preset", "laptop", "--out", tmp_path / "new", *flags))
    for flag, value in zip(flags[::2], flags[1::2]):
        assert got[flag.removeprefix("--")] == value


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--preset", "gpu", "--ppo.iterations", 3, "--model.recipe", "gpt2", "--labels", "synthetic:40"],
        ["--model.width", 320, "--model.heads", 5],
        ["--ppo.rollout_size", 768, "--ppo.minibatch", 96],
    ],
)
def test_a_later_command_needs_no_settings_again_and_takes_the_same_ones(flags, tmp_path):
    begun = settings_of("run", "--out", tmp_path, *flags)
    write_json(tmp_path / "settings.json", flat(begun))
    assert settings_of("train-reward", "--out", tmp_path) == begun
    assert settings_of("run", "--out", tmp_path, *flags) == begun


# ----------------------------------------------------------------------------------------- sample


def parse(text):
    """The tokens of a sample of LETTERS."""
    pieces = re.findall(r"<\|endoftext\|>|<\|unknown\|>|.", text, re.DOTALL)
    return [{"<|endoftext|>": 0, "<|unknown|>": 1}.get(piece) or LETTERS.tokens.get(piece, 0) for piece in pieces]


@pytest.mark.parametrize(("flags", "temperature", "top_k"), [([], 1.0, None), (["--temperature", 0.7, "--top-k", 5], 0.7, 5)])
def test_a_samples_log_probability_equals_rescoring(rows, letters, flags, temperature, top_k):
    folder, model = letters
    samples = rows("sample", "--checkpoint", folder, "-n", 6, "--max-new-tokens", 10, "--seed", 3, *flags)
    assert len(samples) == 6
    prompt = LETTERS.encode("\n\n")
    for sample in samples:
        assert sample.keys() == {"text", "tokens", "logprob"}
        tokens = parse(sample["text"])
        assert sample["tokens"] == len(tokens) <= 10
        logprob = 0.0
        for place, token in enumerate(tokens):
            scores = model(torch.tensor([prompt + tokens[:place]]))[0, -1] / temperature
            kept = scores.sort(descending=True).values[:top_k]
            logprob += (scores[token] - kept.logsumexp(0)).item()
        assert sample["logprob"] == pytest.approx(logprob, abs=1e-4)
        assert sample["tokens"] == 10 or tokens[-1] == 0  # it ends early only at END


def test_the_same_seed_gives_the_same_samples(rows, letters):
    ask = ("sample", "--checkpoint", letters[0], "-n", 5, "--max-new-tokens", 8)
    assert rows(*ask, "--seed", 4) == rows(*ask, "--seed", 4) != rows(*ask, "--seed", 5)
    assert rows(*ask) == rows(*ask, "--seed", 0)


def test_n_is_the_number_of_lines(rows, letters):
    assert len(rows("sample", "--checkpoint", letters[0], "--max-new-tokens", 2)) == 10
    assert len(rows("sample", "--checkpoint", letters[0], "-n", 300, "--max-new-tokens", 2)) == 300


def test_a_sample_continues_the_prompt(rows, letters):
    folder, model = letters
    tokens = LETTERS.encode("abcab")
    for _ in range(6):
        tokens.append(model(torch.tensor([tokens]))[0, -1].argmax().item())
    (sample,) = rows("sample", "--checkpoint", folder, "-n", 1, "--prompt", "abcab", "--max-new-tokens", 6, "--top-k", 1)
    expected = tokens[5:][: tokens[5:].index(0) + 1 if 0 in tokens[5:] else None]
    assert parse(sample["text"]) == expected  # without the prompt itself
    assert sample["logprob"] == pytest.approx(0, abs=1e-5)


def test_a_runs_folder_stands_for_its_policy_and_a_checkpoints_for_itself(rows, tiny_run):
    ask = ("-n", 3, "--max-new-tokens", 8, "--seed", 1)
    policy = rows("sample", "--checkpoint", tiny_run, *ask)
    assert policy == rows("sample", "--checkpoint", tiny_run / "policy", *ask)
    assert policy != rows("sample", "--checkpoint", tiny_run / "base", *ask)
    assert all(sample["logprob"] < 0 and 1 <= sample["tokens"] <= 8 and sample["text"] for sample in policy)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-n", 0], "-n must be at least 1, got 0"),
        (["--max-new-tokens", 8, "--temperature", 0], "temperature must be above 0 .*, got 0.0"),
        (["--max-new-tokens", 8, "--temperature", 1e-40], "temperature must be above 0 .*, got 1e-40"),
        (["--max-new-tokens", 8, "--top-k", -1], "top_k must be 0"),
        (["--max-new-tokens", 8, "--top-p", 1.5], r"top_p must lie in \(0, 1\], got 1.5"),
        (["--prompt", ""], "every prompt needs at least one token"),
        (["--max-new-tokens", 0], "--max-new-tokens must be from 1 to 30, .* got 0"),
        (["--max-new-tokens", 10**13], "--max-new-tokens must be from 1 to 30, .* got 10000000000000"),
        (["--prompt", "a" * 32], "--prompt has 32 tokens, and the model reads 32: give a shorter one"),
        (["--max-new-tokens", 31], "--max-new-tokens must be from 1 to 30, .* got 31"),
    ],
)
def test_sample_refuses_what_cannot_be_sampled(call, letters, flags, sentence):
    code, out, err = call("sample", "--checkpoint", letters[0], *flags)
    assert (code, out) == (1, "")
    assert re.search(f"^error: .*{sentence}", err) and "Traceback" not in err


# ----------------------------------------------------------------------------------------- score


def lines_of(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_score_adds_p_positive_and_keeps_order_and_fields(rows, tiny_run, tmp_path):
    given = [
        {"text": "The love and joy we will.", "id": 3, "note": {"by": ["é", None]}},
        {"id": 1, "text": "Death"},
        {"text": "The cruel night hast death thou sorrow.", "p_positive": "old"},
        {"text": "The love and joy we will.", "id": 3, "note": {"by": ["é", None]}},
        {"text": "Seven\n\ntables 🙂", "tokens": 4, "logprob": -1.5},
    ]
    scored = rows("score", "--checkpoint", tiny_run, "--file", lines_of(tmp_path / "a.jsonl", *given))
    assert len(scored) == len(given)
    model, tokenizer = checkpoints.load(tiny_run / "reward", kind="reward")
    for row, before in zip(scored, given):
        assert {**row, "p_positive": 0} == {**before, "p_positive": 0}
        assert 0 <= row["p_positive"] <= 1
        logit = model.logits(torch.tensor([tokenizer.encode(before["text"])])).item()  # by itself, without padding
        assert row["p_positive"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)
    assert scored[0] == scored[3]
    assert len({row["p_positive"] for row in scored}) == 4


def test_a_positive_text_scores_above_a_negative_one(rows, tiny_run, tmp_path):
    """The tiny reward model has learned its labels, so a score that is turned round shows."""
    file = lines_of(
        tmp_path / "a.jsonl",
        {"text": "The love my joy and sweet thou happy."},
        {"text": "The hate my death and foul thou cruel."},
    )
    positive, negative = rows("score", "--checkpoint", tiny_run / "reward", "--file", file)
    assert positive["p_positive"] > negative["p_positive"] + 0.05


def test_score_of_labelled_lines_says_how_many_it_got_right(call, rows, tiny_run, tmp_path):
    texts = [f"The {a} my {b} and {c} thou." for a in ("love", "hate") for b in ("joy", "death") for c in ("sweet", "cruel")]
    happy = {row["text"]: row["p_positive"] > 0.5 for row in rows(
        "score", "--checkpoint", tiny_run, "--file", lines_of(tmp_path / "a.jsonl", *({"text": text} for text in texts))
    )}  # fmt: skip
    right = [{"text": text, "label": "positive" if happy[text] else "negative"} for text in texts]
    wrong = [{**row, "label": "negative" if happy[row["text"]] else "positive"} for row in right[:3]]
    for given, share in ((right, "100.0% of 8"), (right[3:] + wrong, "62.5% of 8"), (wrong, "0.0% of 3")):
        given = [*given, {"text": "love", "label": "neutral"}, {"text": "hate"}]  # neither counts
        code, _, err = call("score", "--checkpoint", tiny_run, "--file", lines_of(tmp_path / "b.jsonl", *given))
        assert code == 0
        assert err.splitlines()[-1] == f"right on {share} passages labelled positive or negative"
    code, _, err = call("score", "--checkpoint", tiny_run, "--file", lines_of(tmp_path / "c.jsonl", *given[3:]))
    assert code == 0 and "right on" not in err


def test_score_reads_standard_input_and_skips_blank_lines(rows, tiny_run, tmp_path, monkeypatch):
    given = '{"text": "love"}\n\n   \n{"text": "hate"}'
    expected = rows("score", "--checkpoint", tiny_run, "--file", lines_of(tmp_path / "a.jsonl", given))
    assert [row["text"] for row in expected] == ["love", "hate"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    assert rows("score", "--checkpoint", tiny_run, "--file", "-") == expected


def test_score_of_nothing_is_nothing(rows, tiny_run, tmp_path):
    assert rows("score", "--checkpoint", tiny_run, "--file", lines_of(tmp_path / "a.jsonl", "\n")) == []


def test_what_sample_writes_score_reads(call, tiny_run, tmp_path):
    _, out, _ = call("sample", "--checkpoint", tiny_run, "-n", 40, "--max-new-tokens", 12)
    (tmp_path / "samples.jsonl").write_text(out, encoding="utf-8")
    code, scored, err = call("score", "--checkpoint", tiny_run, "--file", tmp_path / "samples.jsonl")
    assert code == 0, err
    before, after = ([json.loads(line) for line in text.split("\n") if line] for text in (out, scored))
    assert [{**row, "p_positive": 0} for row in before] == [{**row, "p_positive": 0} for row in after]


def test_a_line_separator_inside_a_text_is_no_line_break(rows, tiny_run, tmp_path):
    """U+2028, U+0085 and their like stand unescaped in JSON lines, such as those that sample writes."""
    line = json.dumps({"text": "love\u2028and\u0085joy"}, ensure_ascii=False) + "\n"
    (row,) = rows("score", "--checkpoint", tiny_run, "--file", lines_of(tmp_path / "a.jsonl", line))
    assert row["text"] == "love\u2028and\u0085joy"


def test_a_text_over_the_context_is_scored_in_windows_and_said_by_line(call, tiny_run, tmp_path):
    model, tokenizer = checkpoints.load(tiny_run / "reward", kind="reward")
    long = "The love my joy and cruel thou death. " * 30
    tokens = tokenizer.encode(long)
    assert len(tokens) > 3 * 64
    count = math.ceil(len(tokens) / 64)
    edges = [place * len(tokens) // count for place in range(count + 1)]
    pieces = [tokens[start:end] for start, end in itertools.pairwise(edges)]
    odds = sum(model.logits(torch.tensor([piece])).item() * len(piece) for piece in pieces) / len(tokens)
    file = lines_of(tmp_path / "a.jsonl", {"text": "love"}, "\n", {"text": long, "label": "positive"}, {"text": "death"})
    code, out, err = call("score", "--checkpoint", tiny_run, "--file", file)
    assert code == 0
    first, middle, last = [json.loads(line) for line in out.split("\n") if line]
    assert middle == {
        "text": long, "label": "positive", "windows": count, "p_positive": pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-5),
    }  # fmt: skip
    assert "windows" not in first and "windows" not in last
    said = f"{file}, line 3: {len(tokens)} tokens, and the reward model reads 64: scored in {count} windows, whose log-odds are"
    assert said in err and err.count("line ") == 1


def test_a_byte_order_mark_is_read_over(rows, tiny_run, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    (row,) = rows("score", "--checkpoint", tiny_run, "--file", tmp_path / "a.jsonl")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeff" + GOOD))
    assert rows("score", "--checkpoint", tiny_run, "--file", "-") == [row]


def streams(monkeypatch, given=b"", encoding="ascii"):
    """Standard streams in the system's own encoding, as they are under LC_ALL=C or in a console of Windows."""
    made = {
        name: io.TextIOWrapper(io.BytesIO(given if name == "stdin" else b""), encoding) for name in ("stdin", "stdout", "stderr")
    }
    for name, stream in made.items():
        monkeypatch.setattr(sys, name, stream)
    return made


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_is_read_and_printed_is_utf8_whatever_the_systems_encoding(tiny_run, monkeypatch, encoding):
    text = "Où est-il? Любовь 愛 🙂"
    made = streams(monkeypatch, json.dumps({"text": text}, ensure_ascii=False).encode(), encoding)
    assert command_line.main(["score", "--checkpoint", str(tiny_run), "--file", "-"]) == 0
    made["stdout"].flush()
    assert json.loads(made["stdout"].buffer.getvalue().decode("utf-8"))["text"] == text


def test_standard_input_that_is_not_utf8_is_refused_in_a_sentence(tiny_run, assistant_run, monkeypatch):
    for command in (["score", "--checkpoint", str(tiny_run), "--file", "-"], ["chat", "--checkpoint", str(assistant_run)]):
        made = streams(monkeypatch, b"love \xff\n")
        assert command_line.main(command) == 1
        made["stderr"].flush()
        said = made["stderr"].buffer.getvalue().decode("utf-8")
        assert re.fullmatch(r"error: (-: not UTF-8 at byte 5; .*|standard input is not UTF-8 \(byte 5\): .*)\n", said)


def test_a_word_of_the_command_line_that_no_file_can_hold_is_refused(call, letters):
    code, out, err = call("sample", "--checkpoint", letters[0], "--prompt", "a\udcff")
    assert (code, out) == (1, "") and err == "error: --prompt is not UTF-8: 'a\\udcff'\n"


def test_large_seeds_are_taken_or_refused_in_a_sentence(call, rows, letters):
    ask = ("sample", "--checkpoint", letters[0], "-n", 1, "--max-new-tokens", 2)
    assert rows(*ask, "--seed", 2**63 - 1) and rows(*ask, "--seed", -5)
    code, out, err = call(*ask, "--seed", 2**63)
    assert (code, out, err) == (1, "", f"error: --seed must be below 2^63, got {2**63}\n")


GOOD = '{"text": "love"}\n'


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (GOOD + "\n{text: love}\n", "line 3: not JSON"),
        (GOOD + '{"txt": "love"}\n', "line 2: the field `text` must be a text, got None; mend the line"),
        ('{"text": 5}\n' + GOOD, "line 1: the field `text` must be a text, got 5"),
        ('{"text": ["a", "b"]}\n', "line 1: the field `text` must be a text, got ['a', 'b']"),
        (GOOD + "[1, 2]\n", "line 2: not a JSON object with named fields"),
        (GOOD + '"text"\n', "line 2: not a JSON object with named fields"),
        (GOOD + GOOD + '{"text": ""}\n', "line 3: 0 tokens; the reward model reads 1 to 64"),
        (GOOD + '{"text": "\\ud800"}\n', "line 2: "),  # half a character: no text at all
    ],
)
def test_score_names_the_line_that_is_wrong(call, tiny_run, tmp_path, lines, sentence):
    file = lines_of(tmp_path / "bad.jsonl", lines)
    code, out, err = call("score", "--checkpoint", tiny_run, "--file", file)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {file}, {sentence}"), err


def test_score_says_what_is_wrong_with_the_file(call, tiny_run, tmp_path):
    code, _, err = call("score", "--checkpoint", tiny_run, "--file", tmp_path / "none.jsonl")
    assert code == 1 and err.startswith(f"error: no file at {tmp_path / 'none.jsonl'}")
    (tmp_path / "latin.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    code, _, err = call("score", "--checkpoint", tiny_run, "--file", tmp_path / "latin.jsonl")
    assert code == 1 and "line 1: not UTF-8 (byte 10); save the file as UTF-8" in err
    code, _, err = call("score", "--checkpoint", tiny_run, "--file", tmp_path)
    assert code == 1 and err.startswith("error: ") and str(tmp_path) in err


def test_score_refuses_a_reward_model_of_answers(call, assistant_run):
    code, out, err = call("score", "--checkpoint", assistant_run, "--file", "none.jsonl")
    assert (code, out) == (1, "") and err.startswith(f"error: {assistant_run} holds a reward model of answers: give the folder")


@pytest.mark.parametrize("flags", [["--max-new-tokens", -5], ["--max-new-tokens", 0], ["--temperature", 0]])
def test_chat_refuses_its_flags_before_anybody_has_typed(call, assistant_run, monkeypatch, flags):
    typed = iter(())
    monkeypatch.setattr("rlhf_lib.talk.typed", lambda: typed)  # nothing is typed
    code, out, err = call("chat", "--checkpoint", assistant_run, *flags)
    assert (code, out) == (1, "") and re.match(r"error: (--max-new-tokens must be from 1 to|temperature must be above 0)", err)


@pytest.mark.parametrize("command, goes_on", [("run", True), ("assistant", True), ("sample", False), ("chat", False)])
def test_ctrl_c_promises_to_go_on_only_where_something_does(call, command, goes_on, monkeypatch, tmp_path):
    def stopped(options):
        raise KeyboardInterrupt

    for name in ("stage", "assist", "sample", "chat"):
        monkeypatch.setattr(command_line, name, stopped)
    code, _, err = call(command, *(["--out"] if goes_on else ["--checkpoint"]), tmp_path)
    assert code == 130 and err.startswith("\nStopped.") and ("goes on from the last saved step" in err) == goes_on


# ----------------------------------------------------------------------------------------- errors in a sentence


def foreign(folder):
    """A checkpoint of another project: good safetensors without our metadata."""
    folder.mkdir(parents=True)
    LETTERS.save(folder / "tokenizer.json")
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, folder / "model.safetensors")
    return folder


def rubbish(folder):
    folder.mkdir(parents=True)
    LETTERS.save(folder / "tokenizer.json")
    (folder / "model.safetensors").write_bytes(b"\x80\x04rubbish" * 50)
    return folder


@pytest.mark.parametrize("make", [foreign, rubbish])
@pytest.mark.parametrize("command", [["sample"], ["score", "--file", "-"]])
def test_a_foreign_checkpoint_is_refused(call, tmp_path, monkeypatch, make, command):
    monkeypatch.setattr(sys, "stdin", io.StringIO(GOOD))
    folder = make(tmp_path / "other")
    code, out, err = call(command[0], "--checkpoint", folder, *command[1:])
    assert (code, out) == (1, "")
    assert re.match(rf"error: {folder}.* not a checkpoint of this project", err), err


@pytest.mark.parametrize("command", [["sample"], ["score", "--file", "-"]])
@pytest.mark.parametrize("there", [False, True])
def test_a_missing_checkpoint_is_named(call, tmp_path, command, there):
    folder = tmp_path if there else tmp_path / "none"
    code, out, err = call(command[0], "--checkpoint", folder, *command[1:])
    assert (code, out) == (1, "")
    assert err == f"error: no checkpoint in {folder}: give a run's folder, or one that holds a model.safetensors\n"


def test_a_checkpoint_of_the_other_kind_is_refused(call, tiny_run, letters, tmp_path):
    code, _, err = call("sample", "--checkpoint", tiny_run / "reward")
    assert code == 1 and "holds a reward model, not a language model" in err
    code, _, err = call("score", "--checkpoint", letters[0], "--file", lines_of(tmp_path / "a.jsonl", GOOD))
    assert code == 1 and "holds a language model, not a reward model" in err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--pretrain.steps", 0], r"pretrain\.steps must be at least 1, got 0"),
        (["--sentiment", "sad"], r"sentiment must be positive or negative, got 'sad'"),
        (["--model.width", 30], "width must be a multiple of 2 \\* heads, got width 30"),
        (["--ppo.max_new_tokens", 5000], r"ppo\.max_new_tokens must be below model\.context, got 5000"),
        (["--seed", -1], "seed must not be negative, got -1"),
        (["--tokenizer", "syllable"], "tokenizer must be one of word, char, bpe, got 'syllable'"),
        (["--evaluate_samples", 1], r"evaluate_samples must be at least 2, got 1"),
        (["--corpus", "/no/such/play.txt"], "no corpus at /no/such/play.txt: give plays, tiny, gutenberg, or the path"),
        (["--init_from", "/no/such/run"], "/no/such/run"),
        (["--seed", 2**63], f"seed must be below 2\\^63, got {2**63}"),
        (["--ppo.kl_coef", "inf"], r"ppo\.kl_coef must be a finite number, got inf"),
        (["--blank_line_coef", "nan"], "blank_line_coef must be a finite number, got nan"),
        (["--reward.language_coef", "nan"], r"reward\.language_coef must be a finite number, got nan"),
        (["--labels", "synthetic:abc"], "labels must be hand, a path, or synthetic:N with a whole number N above 0, got"),
        (["--labels", ""], "labels must not be empty: give a name or a path"),
        (["--corpus", ""], "corpus must not be empty: give a name or a path"),
    ],
)
def test_a_bad_setting_is_refused_in_a_sentence(call, tmp_path, flags, sentence):
    code, out, err = call("run", "--preset", "smoke", "--out", tmp_path / "new", *flags)
    assert (code, out) == (1, "")
    assert re.match(rf"error: .*{sentence}", err), err
    assert err.count("\n") == 1 and not (tmp_path / "new").exists()


def test_missing_labels_are_named(call, tiny_run, tiny, tmp_path):
    """With the base of another run, so that the labels are what the command comes to first."""
    flags = [part for name, value in {**tiny, "labels": "/no/labels.jsonl"}.items() for part in (f"--{name}", value)]
    out = tmp_path / "new"
    settings = settings_of("run", "--preset", "smoke", "--out", out, *flags)
    write_json(out / "settings.json", flat(settings))
    write_json(out / "stages.json", {"pretrain": {"seconds": 0, "peak_memory_bytes": 0}})
    (out / "base").mkdir()
    for name in ("tokenizer.json", "model.safetensors"):
        (out / "base" / name).write_bytes((tiny_run / "base" / name).read_bytes())
    code, _, err = call("train-reward", "--out", out)
    assert code == 1 and err.startswith("error: no label file at /no/labels.jsonl"), err


def test_settings_that_are_damaged_are_named(call, tmp_path):
    (tmp_path / "settings.json").write_text('{"preset": ')
    code, _, err = call("run", "--preset", "smoke", "--out", tmp_path)
    assert code == 1 and err.startswith("error: ") and "settings.json" in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "is damaged .not an object with named fields.: choose another --out"),
        ('{"preset": "huge"}', "preset is 'huge', none of smoke, laptop, gpu; mend the file or choose another --out"),
        ('{"preset": "smoke", "seed": "one"}', "seed must be a whole number, got 'one'; mend the file or choose another --out"),
        ('{"preset": "smoke", "ppo.lr": -1}', r"ppo\.lr must be above 0, got -1; mend the file or choose another --out"),
        ('{"preset": "smoke", "rlhf.rate": 1}', r"this version does not know the setting rlhf\.rate; choose another --out"),
    ],
)
def test_settings_of_another_version_are_named_by_file_and_field(call, tmp_path, content, said):
    (tmp_path / "settings.json").write_text(content)
    for command in ("run", "train-policy"):
        code, out, err = call(command, "--out", tmp_path)
        assert (code, out) == (1, "")
        assert re.fullmatch(rf"error: {tmp_path / 'settings.json'}:? {said}.*\n", err), err


def test_settings_saved_by_an_editor_with_a_byte_order_mark_are_read(tmp_path):
    wanted = settings_of("run", "--preset", "smoke", "--seed", 7, "--out", tmp_path)
    write_json(tmp_path / "settings.json", flat(wanted))
    (tmp_path / "settings.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "settings.json").read_bytes())
    assert settings_of("run", "--out", tmp_path) == wanted


def test_a_run_of_any_version_can_be_reported(call, tiny_run, assistant_run, tmp_path):
    """Settings, stages and summary are not those of this version; the report alone is written."""
    for run, lost in ((tiny_run, "raters gold_win_rate_interval kl_nats"), (assistant_run, "left_out parameters answers")):
        folder = tmp_path / run.parent.name
        for name in ("settings.json", "summary.json", "metrics.jsonl", "samples.jsonl", "answers.jsonl"):
            if (run / name).exists():
                write_atomic(folder / name, (run / name).read_bytes())
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        write_json(folder / "summary.json", {name: value for name, value in summary.items() if name not in lost.split()})
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        write_json(folder / "settings.json", {"rlhf.rate": 1, **{n: v for n, v in settings.items() if not n.startswith("ppo.")}})
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        code, _, err = call("report", "--out", folder)
        assert code == 0, err
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert "–" in page and page.count("data:image/png;base64,") >= 4
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.html"} == before


def test_a_command_that_only_reads_claims_no_folder(call, tmp_path):
    for command in ("report", "evaluate", "train-policy", "train-reward"):
        code, _, err = call(command, "--preset", "smoke", "--out", tmp_path / "new")
        assert code == 1 and re.match(r"error: .* has no finished \w+ stage: run `python -m rlhf_lib", err), err
    assert not (tmp_path / "new").exists()


def test_an_installation_without_data_says_how_to_get_them(call, tiny, monkeypatch, tmp_path):
    """As `pip install git+…` leaves one."""
    monkeypatch.setattr(corpus, "DATA", tmp_path / "data")
    monkeypatch.setattr(labels, "HAND_MADE", [tmp_path / "data" / "labels" / "plays.jsonl"])
    monkeypatch.setattr(labels.hand_made, "__defaults__", (labels.HAND_MADE,))
    monkeypatch.setattr(corpus, "load_plays", lambda: corpus.load_path(Path(tiny["corpus"])))
    code, out, err = call("run", "--preset", "smoke", "--out", tmp_path / "new")
    assert (code, out) == (1, "") and err.startswith(f"error: no label file at {tmp_path / 'data' / 'labels' / 'plays.jsonl'}")
    assert "come with a clone of the repository, not with pip: set RLHF_DATA to its folder data" in err


def test_a_bug_is_not_passed_off_as_a_users_mistake(monkeypatch, tiny_run):
    def broken(options):
        raise TypeError("a bug")

    monkeypatch.setattr(command_line, "sample", broken)
    with pytest.raises(TypeError, match="a bug"):
        command_line.main(["sample", "--checkpoint", str(tiny_run)])


def test_the_module_exits_with_the_code_and_prints_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_lib", "run", "--preset", "smoke", "--out", tmp_path / "x", "--pretrain.batch", "0"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip() == "error: pretrain.batch must be at least 1, got 0"
    assert done.stdout == "" and not (tmp_path / "x").exists()


# ----------------------------------------------------------------------------------------- the assistant


def flags(settings):
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def test_the_assistants_command_goes_on_from_its_folder_alone_and_says_what_came_of_it(call, assistant_run, tiny_assistant):
    for more in ([], ["--preset", "smoke", *flags(tiny_assistant)]):
        code, out, err = call("assistant", "--out", assistant_run, *more)
        assert code == 0, err
        summary = json.loads((assistant_run / "summary.json").read_text())
        assert f"Reward model right on {summary['reward_accuracy']:.1%} (the " in out
        assert f"judged by the gold reward model, PPO wins {summary['win_rate_policy']:.1%} (" in out
        assert f"at {summary['kl_nats']:.1f} nats" in out
        assert out.endswith(f"Read {assistant_run / 'report.html'}\n")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--sft.epochs", 0], r"sft\.epochs must be at least 1, got 0"),
        (["--judge", "silver"], "judge must be gold or endpoint:URL#MODEL, got 'silver'"),
        (["--judge", "endpoint:ftp://x#m"], "base_url must be http"),
        (["--comparisons", "/no/such.jsonl"], r"no file at /no/such\.jsonl"),
        (["--demonstrations", "/no/such.jsonl"], r"no file at /no/such\.jsonl"),
        (["--model", "gpt9"], "no published model 'gpt9': choose one of smollm2-135m"),
        (["--layers", 40], "layers must lie between 1 and the model's 2, got 40"),
        (["--ppo.max_new_tokens", 600], r"ppo\.max_new_tokens is too much for a model that reads 512 tokens"),
    ],
)
def test_what_the_assistant_cannot_use_is_refused_in_a_sentence(call, tiny_assistant, tmp_path, more, sentence):
    code, out, err = call("assistant", "--preset", "smoke", "--out", tmp_path / "new", *flags(tiny_assistant), *more)
    assert (code, out) == (1, "")
    assert re.match(rf"error: .*{sentence}", err), err
    assert err.count("\n") == 1 and not (tmp_path / "new").exists()


def test_a_folder_of_the_other_pipeline_is_refused(call, assistant_run, tiny_run):
    for command, folder in (("assistant", tiny_run), ("run", assistant_run)):
        before = (folder / "settings.json").read_bytes()
        code, out, err = call(command, "--out", folder)
        assert (code, out, err) == (1, "", f"error: {folder} holds a run of another pipeline: choose another --out\n")
        assert (folder / "settings.json").read_bytes() == before


def test_the_assistant_is_no_work_for_several_processes(call, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = call("assistant", "--preset", "smoke", "--out", tmp_path / "new")
    assert (code, out, err) == (1, "", "error: the assistant is trained by one process: start it without torchrun\n")


def test_a_table_of_labels_becomes_a_label_file_and_what_is_there_stays(call, tmp_path):
    (tmp_path / "mine.csv").write_text("text;label;reader\nO love!;positive;anne\nO death;;bob\n", encoding="utf-8")
    out = tmp_path / "mine.jsonl"
    code, said, _ = call("labels", tmp_path / "mine.csv", "--out", out)
    assert (
        code == 0
        and f"{tmp_path / 'mine.csv'}: 1 labels by 1 readers taken of 2 rows, left out 1 (no label; the first is" in said
    )
    assert json.loads(out.read_text()) == {"text": "O love!", "checkpoint": "mine", "label": "positive", "reader": "anne"}
    code, _, err = call("labels", tmp_path / "mine.csv", "--out", out)
    assert code == 1 and err == f"error: {out} is there already: choose another --out, nothing is overwritten\n"
    code, _, err = call("labels", tmp_path / "gone.csv", "--out", tmp_path / "new.jsonl")
    assert code == 1 and err.startswith(f"error: no file at {tmp_path / 'gone.csv'}") and not (tmp_path / "new.jsonl").exists()


def test_chat_answers_what_is_piped_to_it(call, assistant_run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Why is the sky blue?\n/new\nWhy is the sky blue?\n\nnot read\n"))
    code, out, err = call("chat", "--checkpoint", assistant_run, "--max-new-tokens", 8)
    assert code == 0, err
    assert "\n(a new conversation)\n" in out and "not read" not in out
    monkeypatch.setattr(sys, "stdin", io.StringIO("Why is the sky blue?"))
    _, again, _ = call("chat", "--checkpoint", assistant_run / "policy", "--max-new-tokens", 8)
    assert out.startswith(again.rstrip("\n"))
    for other in (["--model", "start"], ["--seed", 1]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Why is the sky blue?"))
        assert call("chat", "--checkpoint", assistant_run, "--max-new-tokens", 8, *other)[1] != again


def test_chat_draws_as_the_run_did_unless_a_flag_says_otherwise(call, assistant_run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    drawn = []
    monkeypatch.setattr(
        "rlhf_lib.talk.talk", lambda *_, max_new_tokens, temperature, seed: drawn.append((max_new_tokens, temperature))
    )
    saved = json.loads((assistant_run / "settings.json").read_text())
    most, temperature = saved["ppo.max_new_tokens"], saved["ppo.temperature"]
    for flags_ in ([], ["--temperature", 0.3], ["--max-new-tokens", 7], ["--model", "sft"]):
        code, _, err = call("chat", "--checkpoint", assistant_run, *flags_)
        assert code == 0, err
    assert drawn == [(most, temperature), (most, 0.3), (7, temperature), (most, temperature)]
    assert most not in (7, 48) and temperature != 0.7


def test_chat_refuses_a_checkpoint_of_another_kind(call, assistant_run, tiny_run, tmp_path):
    for folder, sentence in (
        (assistant_run / "reward", "holds a reward model, not a language model"),
        (tiny_run, "holds a language model without a chat tokenizer: give the folder of a run of the assistant"),
        (tmp_path, "no checkpoint in"),
    ):
        code, out, err = call("chat", "--checkpoint", folder)
        assert (code, out) == (1, "") and sentence in err and err.count("\n") == 1


def test_publish_knows_an_assistants_run_and_the_copy_can_talk_and_be_sampled(call, assistant_run, tmp_path, monkeypatch):
    code, _, err = call("publish", "--run", assistant_run, "--to", tmp_path / "published")
    assert code == 0, err
    command = json.loads((tmp_path / "published" / "summary.json").read_text())["command"]
    arguments = command.removeprefix("python -m rlhf_lib ").replace("--out DIR", f"--out {tmp_path / 'again'}").split()
    assert flat(settings_of(*arguments)) == json.loads((assistant_run / "settings.json").read_text())
    monkeypatch.setattr(sys, "stdin", io.StringIO("Why?"))
    code, out, err = call("chat", "--checkpoint", tmp_path / "published", "--max-new-tokens", 8)
    assert code == 0 and out.strip(), err


def test_settings_of_an_assistants_run_are_found_in_its_folder(tmp_path, tiny_assistant):
    begun = settings_of("assistant", "--preset", "smoke", "--out", tmp_path, *flags(tiny_assistant), "--seed", 5)
    write_json(tmp_path / "settings.json", flat(begun))
    assert settings_of("assistant", "--out", tmp_path) == begun
