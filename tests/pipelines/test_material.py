import json
from pathlib import Path

import pytest
from datasets import Dataset

from rlhf_lib import checkpoints, corpus
from rlhf_lib.checkpoints import CheckpointError
from rlhf_lib.corpus import CorpusError
from rlhf_lib.files import RunError
from rlhf_lib.labels import LabelError
from rlhf_lib.pipelines import material
from rlhf_lib.pipelines.material import Material, Works, check_taken, taken_fingerprint

RUSSIAN = "Царь входит в зал и говорит о любви и о смерти"  # two bytes a letter


@pytest.fixture
def made(tiny_settings):
    return lambda changes=None: Material(tiny_settings(changes))


@pytest.fixture
def no_plays(monkeypatch):
    load = corpus.load
    monkeypatch.setattr(corpus, "load", lambda name="plays": pytest.fail("fetched") if name == "plays" else load(name))


def labelled(path, texts, labels=("positive", "negative", "neutral")):
    rows = [
        {"text": text, "checkpoint": "none", "label": labels[place % len(labels)], "reader": "r1"}
        for place, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# ----------------------------------------------------------------------------------------- what is wrong with the inputs

NUMBERED = [f"love {place} times" for place in range(60)]
WRONG = {
    "no such corpus": ({"corpus": "gone.txt"}, CorpusError, "no corpus at gone.txt"),
    "a corpus of a few words": (
        {"corpus": "a few words of text"},
        ValueError,
        "fewer than two contexts of 64: use a longer text",
    ),
    "no such labels": ({"labels": "gone.jsonl"}, LabelError, "no label file at gone.jsonl"),
    "labels that are a folder": ({"labels": "."}, LabelError, r"\. cannot be read \(Is a directory\): give the path of a file"),
    "a CSV file": ({"labels": "text,label\nlove,positive\n"}, LabelError, "line 1: not JSON .*; mend the line"),
    "a bad line": ({"labels": '{"text": "love"}\n'}, LabelError, "line 1: not a label, it has no checkpoint"),
    "too few labels": ({"labels": NUMBERED[:1]}, LabelError, "at least one of each is needed: label more passages$"),
    "all neutral": (
        {"labels": NUMBERED, "kinds": ("neutral",)},
        LabelError,
        r"labels .*: 0 passages labelled positive or negative to learn from and 0 held out; at least one of each is needed",
    ),
    "passages longer than the context": (
        {"labels": [f"{RUSSIAN} {place}" for place in range(60)], "tokenizer": "char"},
        LabelError,
        r"and 0 held out \(60 of 60 have more tokens than model\.context, 40\).*: give a larger --model\.context",
    ),
    "more passages than the text has": ({"labels": "synthetic:100000"}, ValueError, r"only \d+ passages of 30 to 140 characters"),
    "no room behind the blank line": (
        {"tokenizer": "char", "ppo.max_new_tokens": 39},
        ValueError,
        r"ppo\.max_new_tokens must be at most 38 with a context of 40 tokens, got 39",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_the_inputs_is_said_before_anything_is_begun(tiny_settings, tmp_path, case):
    """By `run`, which reads everything first, and leaves nothing behind."""
    from rlhf_lib.pipelines.shakespeare import Shakespeare

    changes, error, said = WRONG[case]
    changes, kinds = dict(changes), changes.get("kinds", ("positive", "negative", "neutral"))
    changes.pop("kinds", None)
    for name in ("corpus", "labels"):
        wanted = changes.get(name)
        if isinstance(wanted, list):
            changes[name] = labelled(tmp_path / "own.jsonl", wanted, kinds)
        elif wanted and (" " in wanted or "\n" in wanted):
            (tmp_path / f"{name}.txt").write_text(wanted, encoding="utf-8")
            changes[name] = str(tmp_path / f"{name}.txt")
    if changes.get("tokenizer") == "char":
        changes["model.context"] = 40
    run = Shakespeare(tiny_settings(changes), tmp_path / "run", "cpu")
    with pytest.raises(error, match=said):
        run.run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("labels", ["synthetic:abc", "synthetic:-5", "synthetic:", "synthetic:0", "synthetic:1e3", "", " "])
def test_labels_that_name_nothing_are_refused_with_the_settings(tiny_settings, labels):
    with pytest.raises(ValueError, match=r"^labels must "):
        tiny_settings({"labels": labels})


def test_a_corpus_without_a_name_is_refused_with_the_settings(tiny_settings):
    with pytest.raises(ValueError, match="corpus must not be empty: give a name or a path"):
        tiny_settings({"corpus": ""})


# ----------------------------------------------------------------------------------------- what is learned from


def test_passages_over_the_context_are_left_out_and_counted(tiny_settings, tmp_path, capsys):
    from rlhf_lib.pipelines.shakespeare import Shakespeare

    texts = [f"love {place}" if place % 4 else f"{place} {RUSSIAN * 9}" for place in range(80)]
    run = Shakespeare(tiny_settings({"labels": labelled(tmp_path / "own.jsonl", texts)}), tmp_path / "run", "cpu")
    assert [label.text for label in run.material.passages] == [text for text in texts if RUSSIAN not in text]
    assert run.notes() == ["Left out: 20 labelled passages of more than 64 tokens (model.context)."]
    assert not (tmp_path / "run").exists()


def test_labels_with_texts_of_their_own_fetch_no_plays(made, no_plays):
    assert len(made().labels) == 150 and len(made().passages) == 150


def test_ranges_are_those_of_the_runs_own_corpus(made, tiny, no_plays, tmp_path):
    text = Path(tiny["corpus"]).read_text(encoding="utf-8").strip()
    row = {"work": "play", "start": 6, "end": 40, "label": "positive", "reader": "r1"}
    (tmp_path / "own.jsonl").write_text(json.dumps(row), encoding="utf-8")
    assert [label.text for label in made({"labels": str(tmp_path / "own.jsonl")}).labels] == [text[6:40]]


def test_a_work_is_looked_for_in_one_corpus_after_the_other_and_no_further_than_need_be():
    read = []

    def source(name, **works):
        return lambda: read.append(name) or Dataset.from_dict({"work": list(works), "text": list(works.values())})

    works = Works(source("own", hamlet="mine"), source("plays", hamlet="theirs", lear="old"))
    assert read == [] and works["hamlet"] == "mine" and read == ["own"]
    assert works["lear"] == "old" and works["hamlet"] == "mine" and read == ["own", "plays"]
    for _ in range(2):
        with pytest.raises(KeyError, match="macbeth"):
            works["macbeth"]
    assert read == ["own", "plays"]


def test_the_fingerprints_are_those_of_the_content_wherever_it_lies(made, tiny, tmp_path):
    for name in ("corpus", "labels"):
        (tmp_path / "play.txt").write_bytes(Path(tiny[name]).read_bytes())
        (tmp_path / "moved").mkdir(exist_ok=True)
        moved = tmp_path / "moved" / Path(tiny[name]).name
        moved.write_bytes(Path(tiny[name]).read_bytes())
        content = made().contents()[name]()
        assert made({name: str(moved)}).contents()[name]() == content
        moved.write_bytes(moved.read_bytes().replace(b"love", b"hate", 1))
        assert made({name: str(moved)}).contents()[name]() != content


# ----------------------------------------------------------------------------------------- another run's checkpoints


@pytest.fixture
def other(tiny_run, tmp_path):
    """A copy of the tiny run's base and reward model, which may be written to."""
    for name in material.TAKEN:
        (tmp_path / "other" / name).mkdir(parents=True)
        for file in ("tokenizer.json", "model.safetensors"):
            (tmp_path / "other" / name / file).write_bytes((tiny_run / name / file).read_bytes())
    return tmp_path / "other"


def test_a_run_may_start_from_checkpoints_of_one_tokenizer(tiny_settings, other):
    check_taken(tiny_settings({"init_from": str(other)}))
    assert taken_fingerprint(other) == taken_fingerprint(str(other))


def test_a_reward_model_of_another_tokenizer_of_the_same_size_is_refused(tiny_settings, other, tmp_path):
    """Vocabulary sizes agree, so that nothing else would stop a run whose rewards are those of other words."""
    from rlhf_lib.pipelines.shakespeare import Shakespeare

    model, tokenizer = checkpoints.load(other / "reward", kind="reward")
    metadata = checkpoints.read_metadata(other / "reward")
    swapped = json.loads(tokenizer.dump())
    vocabulary = swapped["tokenizer"]["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(swapped), encoding="utf-8")
    checkpoints.write(other / "reward", model.state_dict(), metadata, material.tokenization.load(tmp_path / "tokenizer.json"))
    before = taken_fingerprint(other)
    with pytest.raises(CheckpointError, match=rf"{other}/base and {other}/reward were trained with different tokenizers"):
        Shakespeare(tiny_settings({"init_from": str(other)}), tmp_path / "run", "cpu").run()
    assert not (tmp_path / "run").exists() and taken_fingerprint(other) == before


@pytest.mark.parametrize(
    ("lost", "error", "said"),
    [
        ("base/model.safetensors", RunError, r"has no base/model\.safetensors: --init_from needs the folder of a finished run"),
        ("reward/tokenizer.json", RunError, r"has no reward/tokenizer\.json: --init_from needs"),
    ],
)
def test_a_file_that_the_other_run_lacks_is_named(tiny_settings, other, lost, error, said):
    (other / lost).unlink()
    with pytest.raises(error, match=said):
        check_taken(tiny_settings({"init_from": str(other)}))


def test_checkpoints_of_another_kind_version_or_context_are_named(tiny_settings, other):
    settings = tiny_settings({"init_from": str(other)})
    with pytest.raises(ValueError, match=r"ppo\.max_new_tokens must be at most 6\d with a context of 64 tokens, got 100"):
        check_taken(tiny_settings({"init_from": str(other), "model.context": 200, "ppo.max_new_tokens": 100}))
    tensors, tokenizer = checkpoints.read_tensors(other / "base"), checkpoints.load_tokenizer(other / "base")
    metadata = checkpoints.read_metadata(other / "base")
    checkpoints.write(other / "base", tensors, {n: v for n, v in metadata.items() if n != "val_perplexity"}, tokenizer)
    with pytest.raises(CheckpointError, match=r"base/model\.safetensors does not say its val_perplexity: train it again"):
        check_taken(settings)
    for file in ("model.safetensors", "tokenizer.json"):
        (other / "base" / file).write_bytes((other / "reward" / file).read_bytes())
    with pytest.raises(CheckpointError, match=r"base holds a reward model, not a language model"):
        check_taken(settings)
