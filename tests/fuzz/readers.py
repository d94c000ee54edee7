"""What reads files that others made: valid ones of each kind, how they are changed, and the errors that are the reader's own."""

import base64
import contextlib
import io
import json
import struct
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

from rlhf_lib import (
    checkpoints,
    comparisons,
    corpus,
    course,
    endpoint,
    files,
    label_exports,
    labels,
    notebooks,
    runs,
    tokenization,
)
from rlhf_lib.exercises import investigations
from rlhf_lib.exercises.keep import imports_in, join, names_bound_in, split
from rlhf_lib.exercises.keep import read as read_file
from rlhf_lib.exercises.progress import noted, progress, remember, tries_in
from rlhf_lib.files import RunError
from rlhf_lib.grading import grade, gradebook, notebook, submissions, verdicts, wire
from rlhf_lib.hunt.score import noted as hunted
from rlhf_lib.models import gguf, published
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.llama import Llama, LlamaConfig
from rlhf_lib.models.lora import Branch
from rlhf_lib.pipelines import report, shakespeare
from rlhf_lib.pipelines.settings import flat
from rlhf_lib.pipelines.stages import Stages, constants, saved_settings
from rlhf_lib.widgets.rating import FIELDS, read_ratings
from tests.fuzz import changes

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = tokenization.CharTokenizer(list("abc"))
LINES = "Love and joy!\nA sorrow.\n"


class Reader(NamedTuple):
    """made(folder) writes valid files; those under `names` are changed, one at a time, by changed(draw, bytes); read(folder)
    reads them, and may raise one of `errors`: none where a damaged file is read over."""

    made: object
    names: tuple
    changed: object
    read: object
    errors: tuple


def texts(contents):
    """made() of a dict of names to texts, or to what is written as JSON."""

    def made(folder):
        for name, content in contents.items():
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    return made


def rows(*items):
    return "".join(json.dumps(item) + "\n" for item in items)


def each(folder, *readers):
    """Every reader of `readers`, so that the error of one hides no other's; raises the last of their errors."""
    last = None
    for read in readers:
        try:
            read(folder)
        except (RunError, ValueError) as error:
            last = error
    if last is not None:
        raise last


# ----------------------------------------------------------------------------------------- texts, labels, comparisons

LABELS = rows(
    {"work": "hamlet", "start": 0, "end": 5, "label": "negative", "reader": "r1"},
    {"text": "Welcome, sweet prince.", "checkpoint": "base-1", "label": "positive", "sense": 4, "reader": "r2"},
    {"text": "No.", "checkpoint": "b", "label": "neutral", "reader": "r2"},
)
PASSAGES = rows({"text": "One.", "checkpoint": "base"}, {"text": "Two.", "checkpoint": "base"}, {"text": "3.", "checkpoint": "x"})
TABLE = 'text,label,reader\nLove and joy,positive,ann\nA sorrow,2,ben\n"So, so",neutral,\n'
EXPORTS = {
    "list.json": [
        {"data": {"text": "Joy"}, "annotations": [{"completed_by": 1, "result": [{"value": {"choices": ["positive"]}}]}]},
        {"data": {"text": "Woe"}, "annotations": [{"completed_by": {"email": "a@b"}, "result": [{"value": {"rating": 2}}]}]},
    ],
    "flat.json": [{"text": "Joy", "label.responses": ["positive"], "label.responses.users": ["u1"]}],
}
DOCCANO = rows({"text": "Joy", "label": ["positive"]}, {"text": "Woe", "labels": "neg", "user_id": 3})
ARGILLA = rows(
    {"fields": {"text": "Joy"}, "responses": {"label": [{"value": "positive", "user_id": "u", "status": "submitted"}]}},
    {"text": "Woe", "label": [{"value": "negative", "user_id": "u"}]},
)
PROMPTS = rows(
    {"id": "a1", "prompt": "Why?", "kind": "advice", "split": "train"},
    {"id": "a2", "prompt": "How?", "kind": "facts", "split": "held_out"},
)
TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
COMPARED = rows(
    {"id": "a1", "first": "Yes.", "second": "No.", "verdict": "first", "reader": "r1"},
    {"work": "hamlet", "start": 0, "end": 5, "first": "x", "second": "y", "verdict": "tie", "reader": "r2", "round": 3},
    {"prompt": TALK, "first": "x", "second": "z", "verdict": "second", "reader": "r1", "first_cut": True, "reason": "kind"},
)
RATINGS = ",".join(FIELDS) + '\n1,me,4,5,,Love\n2,me,1,2,base,"a, b"\n'


def sitting(folder):
    labels.sitting(folder / "my.jsonl", "r1", "base", lambda number: [f"Fresh {number}."], size=2)


def read_compared(folder):
    prompts = comparisons.read_prompts(folder / "prompts.jsonl")
    comparisons.read_demonstrations(folder / "demos.jsonl", prompts)
    found = comparisons.read_comparisons(folder / "compared.jsonl", prompts, {"hamlet": "To be or not"})
    for one in found:
        assert one.pair and comparisons.row_of(one)
    comparisons.split(found), comparisons.pairs(found)


TEXTS = {
    "labels": Reader(
        texts({"labels.jsonl": LABELS}),
        ("labels.jsonl",),
        changes.as_rows,
        lambda folder: [labels.row(one) for one in labels.read(folder / "labels.jsonl", {"hamlet": "To be, or not"})],
        (ValueError,),
    ),
    "passages": Reader(
        texts({"my.passages.jsonl": PASSAGES}), ("my.passages.jsonl",), changes.as_rows, sitting, (ValueError, RunError)
    ),
    "tables": Reader(
        texts({"table.csv": TABLE}),
        ("table.csv",),
        changes.as_table,
        lambda folder: str(label_exports.load(folder / "table.csv")),
        (ValueError,),
    ),
    "tabs": Reader(
        texts({"table.tsv": TABLE.replace(",", "\t")}),
        ("table.tsv",),
        partial(changes.as_table, between="\t"),
        lambda folder: str(label_exports.load(folder / "table.tsv")),
        (ValueError,),
    ),
    "exports": Reader(
        texts(EXPORTS),
        tuple(EXPORTS),
        changes.as_json,
        lambda folder: each(folder, *(lambda f, n=n: str(label_exports.load(f / n)) for n in EXPORTS)),
        (ValueError,),
    ),
    "exported rows": Reader(
        texts({"doccano.jsonl": DOCCANO, "argilla.jsonl": ARGILLA}),
        ("doccano.jsonl", "argilla.jsonl"),
        changes.as_rows,
        lambda folder: each(folder, *(lambda f, n=n: label_exports.load(f / n) for n in ("doccano.jsonl", "argilla.jsonl"))),
        (ValueError,),
    ),
    "comparisons": Reader(
        texts(
            {
                "prompts.jsonl": PROMPTS,
                "compared.jsonl": COMPARED,
                "demos.jsonl": rows({"id": "a1", "answer": "So.", "writer": "w"}, {"id": "a2", "answer": "Go.", "writer": "w"}),
            }
        ),
        ("prompts.jsonl", "compared.jsonl", "demos.jsonl"),
        changes.as_rows,
        read_compared,
        (ValueError,),
    ),
    "ratings": Reader(
        texts({"ratings.csv": RATINGS}),
        ("ratings.csv",),
        changes.as_table,
        lambda folder: read_ratings(folder / "ratings.csv"),
        (ValueError,),
    ),
    "corpus": Reader(
        texts({"play.txt": "ANNE.\nLove.\n\n*** START OF THE PROJECT GUTENBERG EBOOK ***\nBEN.\nGo.\n\n*** END OF ***\nx\n"}),
        ("play.txt",),
        changes.as_text("*** START OF x ***", "\x00", "\u2028", "\r", " "),
        lambda folder: corpus.load(str(folder / "play.txt")),
        (ValueError,),
    ),
}

# ----------------------------------------------------------------------------------------- checkpoints


def model(kind=GPT, shape=GPTConfig, **more):
    torch.manual_seed(0)
    return kind(shape(vocab_size=TOKENIZER.vocab_size, context=4, layers=1, heads=1, width=2, **more))


def saved_checkpoints(folder):
    base = model()
    checkpoints.save(folder / "base", base, TOKENIZER, val_loss=1.5)
    checkpoints.save(folder / "branch", Branch(base, rank=1, alpha=1, source="../base"), TOKENIZER)
    checkpoints.save(folder / "llama", model(Llama, LlamaConfig, kv_heads=1, hidden=3), TOKENIZER)


def load_each(folder):
    for name in ("base", "branch", "llama"):
        loaded, tokenizer = checkpoints.load(folder / name)
        loaded(torch.tensor([tokenizer.encode("abca")[: loaded.config.context]]))
    checkpoints.same_tokenizer(folder / "base", folder / "branch")


def saved_tokenizers(folder):
    words = tokenization.BPETokenizer.train(["to be or not to be"], 260)
    whole = words.tokenizer
    for name, one in (
        ("bpe", words),
        ("char", TOKENIZER),
        ("chat", tokenization.ChatTokenizer(whole, end="<|endoftext|>")),
    ):
        one.save(folder / f"{name}.json")


def load_tokenizers(folder, *names):
    def load(_, path):
        one = tokenization.load(path)
        one.fingerprint()
        tokens = one.encode("abc to be\n\U0001f600")
        one.decode(tokens)
        if hasattr(one, "prompt"):
            one.prompt(TALK)

    each(folder, *(partial(load, path=folder / name) for name in names or ("bpe.json", "char.json", "chat.json")))


def saved_publication(folder):
    """A Llama of two blocks as it is published, in two files of weights."""
    from safetensors.torch import save

    tokenizer = tokenization.ChatTokenizer.train(["to be or not to be"], 262).tokenizer
    shape = {"vocab_size": 262, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"max_position_embeddings": 8, "rms_norm_eps": 1e-5, "model_type": "llama", "num_key_value_heads": 1}
    shape |= {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}
    shape["rope_scaling"]["original_max_position_embeddings"] = 4
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=262, context=8, layers=1, heads=2, kv_heads=1, width=4, hidden=6, tied=False)
    ours = Llama(config).state_dict()
    parts = {name: f"self_attn.{name[0]}_proj" for name in ("query", "key", "value", "out")}
    named = {f"attention.{ours}": theirs for ours, theirs in parts.items()}
    named |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj", "norm1": "input_layernorm"}
    named |= {"norm2": "post_attention_layernorm"}
    theirs = {"model.embed_tokens.weight": ours["embedding.weight"], "lm_head.weight": ours["head.weight"]}
    theirs |= {"model.norm.weight": ours["norm.weight"]}
    theirs |= {f"model.layers.0.{new}.weight": ours[f"blocks.0.{old}.weight"] for old, new in named.items()}
    names = sorted(theirs)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, half in halves.items():
        (folder / file).write_bytes(save({name: theirs[name] for name in half}))
    weights = {name: file for file, half in halves.items() for name in half}
    settings = {"eos_token": "<|im_end|>", "bos_token": {"content": "<|im_start|>"}, "chat_template": tokenization.CHATML}
    files.write_json(folder / "config.json", shape)
    files.write_json(folder / "tokenizer_config.json", settings)
    files.write_json(folder / "model.safetensors.index.json", {"weight_map": weights})
    tokenizer.save(str(folder / "tokenizer.json"))


def load_publication(folder):
    loaded, tokenizer = published.load(str(folder))
    loaded(torch.tensor([tokenizer.prompt(TALK)[:1]]))


def saved_gguf(folder):
    from gguf import GGUFWriter

    draw = torch.Generator().manual_seed(0)
    writer = GGUFWriter(folder / "model.gguf", "llama")
    pieces = ["<|im_start|>", "<|im_end|>", *sorted(tokenization.pre_tokenizers.ByteLevel.alphabet()), "ab"]
    for name, number in {
        "context_length": 8,
        "block_count": 1,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "embedding_length": 4,
        "feed_forward_length": 6,
    }.items():
        writer.add_uint32(f"llama.{name}", number)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", pieces)
    writer.add_array("tokenizer.ggml.token_type", [3, 3] + [1] * (len(pieces) - 2))
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    writer.add_uint32("tokenizer.ggml.eos_token_id", 1)
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    shapes = {"token_embd": (len(pieces), 4), "output_norm": (4,), "blk.0.attn_q": (4, 4), "blk.0.attn_k": (2, 4)}
    shapes |= {"blk.0.attn_v": (2, 4), "blk.0.attn_output": (4, 4), "blk.0.ffn_gate": (6, 4), "blk.0.ffn_up": (6, 4)}
    shapes |= {"blk.0.ffn_down": (4, 6), "blk.0.attn_norm": (4,), "blk.0.ffn_norm": (4,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=draw).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_gguf(folder):
    path = folder / "model.gguf"
    reader = gguf.read(path)
    loaded, tokenizer = gguf.load(path, reader), published.gguf_tokenizer(path, None, reader)
    loaded(torch.tensor([tokenizer.prompt(TALK)[: min(8, loaded.config.context)]]))


TEMPLATES = (
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{{ messages[9].content }}",
    "{% if %}",
    "{{ raise_exception('no') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{% set x = messages.append(1) %}",
    "{{ range(10 ** 9) | list }}",
    "{{ messages | tojson }}",
    "{{ 1 / 0 }}",
    "{{ lipsum.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{{ x.y.z }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages[0]['role'] + 1 }}",
    "\ue0009\ue001",
    "\ue000x\ue001",
    "\ue000\u0663\ue001",
    "{{ bos_token | attr('__class__') }}",
    "<|im_end|>",
    "\ud800",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ self }}{{ namespace(a=1).a }}",
    "{{ (" + "(" * 300,
    "{{ " + "[" * 200 + "]" * 200 + " }}",
)


def read_template(folder):
    text = (folder / "template.jinja").read_text(encoding="utf-8", errors="replace")
    inner = tokenization.ChatTokenizer.train(["to be"], 259).tokenizer
    record = {"kind": "chat", "template": text, "end": "<|im_end|>", "begin": "", "tokenizer": json.loads(inner.to_str())}
    files.write_json(folder / "tokenizer.json", record)
    try:
        load_tokenizers(folder, "tokenizer.json")
    except ValueError as error:
        raise ValueError(f"template.jinja: {error}") if "chat template" in str(error) else error from None


def saved_state(folder):
    checkpoints.save(folder / "policy", model(), TOKENIZER)
    stage_of(folder).save(2)


def stage_of(folder):
    one = model()
    memory = {"beta": 0.1, "seen": torch.zeros(3), "rows": [1, 2]}
    return runs.stage("policy", folder, "policy", one, [torch.optim.AdamW(one.parameters())], 4, 0, TOKENIZER, memory)


def go_on(folder):
    """As a run does: what is there is resumed, and goes on with the next step."""
    float(runs.seconds_spent(folder / "policy" / "state.pt"))
    stage = stage_of(folder)
    next(iter(stage), None)
    stage.save(stage.first)


class Payload:
    """Unpickling it creates the file CANARY."""

    def __reduce__(self):
        return open, ("CANARY", "w")


class Sized:
    """A pickle that asks for sixteen times a gigabyte."""

    def __reduce__(self):
        return bytearray, (2**34,)


STATES = (
    None,
    1,
    -1,
    3,
    4,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "x",
    "",
    [],
    {},
    True,
    torch.zeros(3),
    torch.ones(2, 2),
    (1, 2),
    b"x",
    torch.tensor(float("nan")),
    torch.zeros(1, dtype=torch.int8),
    Payload(),
    Sized(),
    torch.Size([1]),
    {1: 2},
    complex(1, 2),
    torch.zeros(1).expand(10**12),
    torch.empty(10**12, device="meta"),
)


def as_state(draw, content):
    """A training state whose parts are other ones, or whose file is damaged, or packed another way."""
    if draw.random() < 0.25:
        return changes.raw(draw, content)
    state = torch.load(io.BytesIO(content), weights_only=True)
    for _ in range(draw.choice((1, 1, 2))):
        place = state
        while isinstance(place, dict | list) and place:
            key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
            if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.3:
                break
            place = place[key]
        else:
            continue
        if draw.random() < 0.8:
            place[key] = draw.choice(STATES)
        else:
            del place[key]
    into = io.BytesIO()
    torch.save(state, into, _use_new_zipfile_serialization=draw.random() < 0.8)
    content = into.getvalue()
    if draw.random() < 0.15 and content[:2] == b"PK":  # packed, and larger than it looks
        again = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as new:
            for info in old.infolist():
                more = bytes(2**28) if "/data/" in info.filename and draw.random() < 0.3 else b""
                new.writestr(info.filename, old.read(info) + more)
        content = again.getvalue()
    return content


CHECKPOINTS = {
    "checkpoints": Reader(
        saved_checkpoints,
        ("base/model.safetensors", "branch/model.safetensors", "llama/model.safetensors"),
        changes.as_safetensors,
        load_each,
        (ValueError,),
    ),
    "named tokenizers": Reader(
        lambda folder: (
            saved_checkpoints(folder) or (folder / "base" / "tokenizer.json").write_text('{"kind": "chat", "source": "x"}')
        ),
        ("base/tokenizer.json", "branch/tokenizer.json"),
        changes.as_json,
        load_each,
        (ValueError,),
    ),
    "tokenizers": Reader(
        saved_tokenizers, ("bpe.json", "char.json", "chat.json"), changes.as_json, load_tokenizers, (ValueError,)
    ),
    "published": Reader(
        saved_publication,
        ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"),
        changes.as_json,
        load_publication,
        (ValueError,),
    ),
    "published weights": Reader(
        saved_publication, ("model-1.safetensors", "model-2.safetensors"), changes.as_safetensors, load_publication, (ValueError,)
    ),
    "gguf": Reader(saved_gguf, ("model.gguf",), changes.as_gguf, load_gguf, (ValueError,)),
    "templates": Reader(
        texts({"template.jinja": tokenization.CHATML}),
        ("template.jinja",),
        changes.as_text(*TEMPLATES),
        read_template,
        (ValueError,),
    ),
    "states": Reader(saved_state, ("policy/state.pt",), as_state, go_on, (ValueError, RunError)),
}

# ----------------------------------------------------------------------------------------- the folder of a run

NUMBERS = {"mean": 0.1, "std": 1.0}


def saved_run(folder):
    from tests.pipelines.test_report import METRICS, SAMPLES, SUMMARY

    files.write_json(folder / "summary.json", SUMMARY)
    files.write_json(folder / "settings.json", flat(shakespeare.PRESETS["smoke"]))
    files.write_json(folder / "inputs.json", {"corpus": "0" * 64})
    files.write_json(folder / "stages.json", {"pretrain": {"seconds": 1.5, "peak_memory_bytes": 10**9, "val_perplexity": 3.0}})
    files.write_json(folder / "normaliser.json", NUMBERS)
    files.write_json_rows(folder / "metrics.jsonl", [{"stage": a, "step": b, **c} for a, b, c in METRICS])
    files.write_json_rows(folder / "samples.jsonl", SAMPLES)


def read_run(folder):
    each(
        folder,
        lambda one: saved_settings(one, shakespeare.Settings),
        lambda one: Stages(shakespeare.PRESETS["smoke"], one, shakespeare.PARTS).summary(),
        lambda one: Stages(shakespeare.PRESETS["smoke"], one, shakespeare.PARTS).begin(corpus="1" * 64),
        lambda one: constants(one / "normaliser.json", *NUMBERS),
        lambda one: runs.Metrics(one).rewind("policy", 2),
    )


def read_report(folder):
    report.png = lambda figure: base64.b64encode(b"PNG").decode()
    report.write_report(folder)


def read_settings(folder):
    each(
        folder,
        lambda one: saved_settings(one, shakespeare.Settings),
        lambda one: Stages(shakespeare.PRESETS["smoke"], one, shakespeare.PARTS).summary(),
    )


RUNS = {
    "runs": Reader(
        saved_run, ("stages.json", "inputs.json", "normaliser.json"), changes.as_json, read_run, (RunError, ValueError)
    ),
    "reports": Reader(saved_run, ("summary.json",), changes.as_json, read_report, (RunError,)),
    "reported rows": Reader(saved_run, ("metrics.jsonl", "samples.jsonl"), changes.as_rows, read_report, (RunError,)),
    "settings": Reader(saved_run, ("settings.json", "stages.json"), changes.as_json, read_settings, (RunError, ValueError)),
    "metrics": Reader(saved_run, ("metrics.jsonl",), changes.as_rows, read_run, (RunError,)),
}

# ----------------------------------------------------------------------------------------- what learners hand in

PYTHON = (
    "%%time",
    "!touch CANARY",
    "%run x",
    "def f(:",
    "(" * 150,
    "(" * 5000,
    "-" * 5000 + "1",
    "x = " + "[" * 90 + "]" * 90,
    "\x00",
    "\ud800",
    "open('CANARY', 'w')",
    "import os; os.system('touch CANARY')",
    "class A: pass",
    "@",
    '"""',
    "return 1",
    "\t x",
    "\f",
    "x" * 5000,
    "a" + ".a" * 3000,
    "1" + " + 1" * 3000,
    "# ---- 7.3 gae [00000000]",
    "# ---- 0.1 share_positive [d1f3451d]",
    "# ---- the end",
    "# ---- 9.99 nothing [0123abcd]",
    "# ---- " + "9" * 5000 + ".1 gae [00000000]",
    "# ---- \u0663.1 gae [00000000]",
    "lambda: (yield)",
    "from __future__ import braces",
    "share_positive = 1",
    "del share_positive",
    "raise SystemExit",
    "1" * 5000,
    "x: int = 1",
    "if 1:",
)


def saved_notebook(folder):
    from tests.grading.made import chapter00

    (folder / "00_start_here.ipynb").write_text(chapter00(), encoding="utf-8")


def read_notebook(folder):
    path = folder / "00_start_here.ipynb"
    found = notebooks.read(path)
    assert found.cells is not None
    notebooks.learner_edition(path)


def cells_of(folder):
    for path in sorted(folder.iterdir()):
        try:
            for cell in notebook.cells_of(path.name, path.read_bytes()):
                with contextlib.suppress(SyntaxError):
                    notebook.statements(cell)
        except submissions.UnreadableError as error:
            assert str(error)


def survey(folder):
    """What is found of each student; whatever it is, nothing is raised but RunError, where there is nothing to find."""
    found, lost = submissions.find(next(folder.iterdir()))
    assert all(isinstance(sentence, str) for sentence in lost)
    for one in found:
        for file in one.files:
            verdicts.read(file)
            verdicts.work_in(file)


def saved_zip(folder):
    from tests.grading.made import chapter00

    inside = io.BytesIO()
    with zipfile.ZipFile(inside, "w") as packed:
        packed.writestr("00_start_here.ipynb", chapter00())
        packed.writestr("progress.json", json.dumps({"tries": {"share_positive": 2}, "share_positive": 1.7e9}))
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("submission_12/00_start_here.ipynb", chapter00())
        packed.writestr("Ben Jonson_7_assignsubmission_file_/00_start_here.ipynb", chapter00())
        packed.writestr("marlowekit_LATE_77_88_work.zip", inside.getvalue())
        packed.writestr(
            "submission_metadata.yml", "submission_12:\n  :submitters:\n  - :name: Ann\n    :sid: '1'\n    :email: a@b\n"
        )


def saved_yaml(folder):
    (folder / "all" / "submission_12").mkdir(parents=True, exist_ok=True)
    (folder / "all" / "submission_12" / "my_rlhf.py").write_text("x = 1\n")
    (folder / "all" / "submission_metadata.yml").write_text(
        "submission_12:\n  :submitters:\n  - :name: Ann\n    :sid: '1'\n    :email: a@b\n  :created_at: 2026-01-01\n"
    )


YAML = (
    "- x",
    "!!python/object/apply:os.system ['touch CANARY']",
    "a: &a [*a]",
    "a: &a ['x', 'x']\nb: &b [*a, *a]",
    "[" * 2000,
    ": :",
    "\t",
    "submission_13: {':submitters': [1]}",
    "  :submitters: [{':name': {}}]",
    "? [1]",
    "1: 2",
    "2026-13-45: 1",
    "a: 1e999",
    "--- x",
)


def read_grades(folder):
    from rlhf_lib.exercises import load

    load()
    each(
        folder,
        lambda one: gradebook.read_points(one / "points.csv"),
        lambda one: gradebook.read_late(one / "late.csv", {"Ann", "Ben"}),
        lambda one: gradebook.read_prose(one / "prose.csv", {"Ann", "Ben"}),
    )


def saved_entry(folder):
    result = verdicts.Result("share_positive", "0.1", "right")
    entry = gradebook.Entry("Ann", "1", "a@b", "graded", [], [result], False, {"share_positive": [2, None]}, {})
    gradebook.save(folder / "ann.json", "f" * 64, entry)
    files.write_json(folder / "seed.json", {"seed": 3})


def read_entry(folder):
    from rlhf_lib.exercises import load

    load()
    each(folder, lambda one: grade.settled_seed(one, None), lambda one: tables_of(gradebook.load(one / "ann.json"), one))


def tables_of(entry, folder):
    from rlhf_lib.grading import pages

    marks = gradebook.read_points()
    gradebook.write_tables(folder / "out", [entry], marks, {}, {})
    pages.write_feedback(folder / "out", [entry], marks, {}, {})


LEARNERS = {
    "notebooks": Reader(saved_notebook, ("00_start_here.ipynb",), changes.as_json, read_notebook, (RunError, ValueError)),
    "handed in": Reader(saved_notebook, ("00_start_here.ipynb",), changes.as_json, cells_of, ()),
    "python": Reader(
        texts({"my.py": "import torch\n\n\n# In[1]:\ndef gae(x):\n    return x\n\n\n# In[2]:\ncheck(gae)\n"}),
        ("my.py",),
        changes.as_text(*PYTHON),
        cells_of,
        (),
    ),
    "zips": Reader(saved_zip, ("all.zip",), changes.as_zip, survey, (RunError,)),
    "gradescope": Reader(saved_yaml, ("all/submission_metadata.yml",), changes.as_text(*YAML), survey, (RunError,)),
    "grades": Reader(
        texts(
            {
                "points.csv": "exercise,points,partial\nshare_positive,2,no\ngae,1.5,yes\n",
                "late.csv": "student,share\nAnn,0.5\n(late),0.8\n",
                "prose.csv": "student,question,points,of,comment\nAnn,1,2,3,good\nBen,1,0,3,\n",
            }
        ),
        ("points.csv", "late.csv", "prose.csv"),
        changes.as_table,
        read_grades,
        (RunError,),
    ),
    "entries": Reader(saved_entry, ("ann.json", "seed.json"), changes.as_json, read_entry, (RunError,)),
}

# ----------------------------------------------------------------------------------------- the learner's own folder

KEPT = """\
import torch


# ---- 0.1 share_positive [d1f3451d]

def share_positive(scores, limit):
    return (scores > limit).float().mean().item()


# ---- 1.1 split_words [d7ffca9b]

def split_words(text):
    return text.split()


# ---- the end
"""


def read_home(folder):
    """Nothing here is the learner's to mend: damaged files are read over."""
    import os

    os.environ["RLHF_HOME"], course.HOME = str(folder), folder
    course.choices(), investigations.findings(), hunted(), progress()
    assert isinstance(remember("share_positive", passed=True), bool)
    tries_in(noted())
    notebooks.hand_out(folder / "copies", folder / "source")


def saved_home(folder):
    (folder / "copies").mkdir(exist_ok=True)
    (folder / "source").mkdir(exist_ok=True)
    contents = {
        "progress.json": {"tries": {"share_positive": 3}, "gae": 1.7e9},
        "choices.json": {"models": "own", "preset": "gpu"},
        "findings.json": {"2.A": {"finding": "it is so and so", "when": 1.7e9}},
        "hunt.json": {"01": {"read": True, "points": 1, "unread": ["sign"], "with": []}},
        "copies/.editions.json": {"00_start_here.ipynb": "0" * 64},
    }
    for name, content in contents.items():
        files.write_json(folder / name, content)


def read_kept(folder):
    """All that looks at the file without running it."""
    text = read_file(folder / "my_rlhf.py")
    head, sections = split(text)
    join(head, sections)
    imports_in(head)
    for one in sections.values():
        names_bound_in(one.code)


HOMES = {
    "home": Reader(
        saved_home,
        ("progress.json", "choices.json", "findings.json", "hunt.json", "copies/.editions.json"),
        changes.as_json,
        read_home,
        (),
    ),
    "kept": Reader(texts({"my_rlhf.py": KEPT}), ("my_rlhf.py",), changes.as_text(*PYTHON), read_kept, ()),
}

# ----------------------------------------------------------------------------------------- what a server or a process answers


ANSWER = {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": "A"}}], "usage": {"total_tokens": 3}}
CACHED = rows(
    {"request": "f" * 64, "model": "m", "verdict": "first", "reply": "A"},
    {"request": "e" * 64, "model": "m", "verdict": "refused", "reply": None},
)


def read_answer(folder):
    answer = (folder / "answer.json").read_bytes()
    endpoint.shown(answer)
    endpoint.seconds(answer[:40].decode("latin-1"))
    try:
        endpoint.verdict(endpoint.text_of(answer))
    except endpoint.Again as error:
        assert "\n" not in str(error)
    with contextlib.suppress(endpoint.Again, RunError):
        said = SimpleNamespace(read=lambda most: answer[:most], code=400 + len(answer) % 200, headers={"Retry-After": "5"})
        endpoint.failure("http://x", said)


def saved_message(folder):
    values = [1, 2.5, "x", None, (1, [torch.arange(3)]), {"a": torch.tensor([1j]), 2: True}]
    (folder / "message.bin").write_bytes(wire.pack(values))


def read_message(folder):
    with contextlib.suppress(ValueError):  # of the grader's own process, which says what became of the answer
        wire.unpack((folder / "message.bin").read_bytes())


def as_message(draw, content):
    length = struct.unpack(">Q", content[:8])[0]
    if draw.random() < 0.3:
        return changes.raw(draw, content)
    text = changes.as_json(draw, content[8 : 8 + length])
    told = len(text) if draw.random() < 0.8 else draw.choice((0, 1, 2**40, 2**63))
    return struct.pack(">Q", told) + text + content[8 + length :]


SERVERS = {
    "answers": Reader(texts({"answer.json": ANSWER}), ("answer.json",), changes.as_json, read_answer, ()),
    "cache": Reader(
        texts({"cache.jsonl": CACHED}),
        ("cache.jsonl",),
        changes.as_rows,
        lambda folder: endpoint.read_cache(folder / "cache.jsonl"),
        (RunError,),
    ),
    "messages": Reader(saved_message, ("message.bin",), as_message, read_message, ()),
}

READERS = {**TEXTS, **CHECKPOINTS, **RUNS, **LEARNERS, **HOMES, **SERVERS}
