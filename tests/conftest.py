import contextlib
import gc
import io
import json
import pickle
import random

import pytest
import torch
from drawn import (  # noqa: F401
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_logreport,
    pytest_sessionfinish,
)

from rlhf_lib import runs


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """The garbage collector looks at none of what stays until the end, thousands of tests and all that they import."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def interrupted():
    """`with interrupted(saved, stop) as done:` runs a stage that is stopped by Ctrl-C after step `stop`, and that saved its
    training state after step `saved` alone (0: never). Without them it saves as always. `after(step, model)` is called
    behind each step. `done` lists the steps that were done.
    """
    tick = runs.stage.tick

    @contextlib.contextmanager
    def patched(saved=None, stop=None, after=None):
        done = []

        def stand_in(self, step):
            done.append(step)
            if saved is None:
                tick(self, step)
            elif step == saved:
                self.save(step)
            if after is not None:
                after(step, self.model)
            if step == stop:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs.stage, "tick", stand_in)
            yield done

    return patched


# ----------------------------------------------------------------------------------------- a whole run in a few seconds

NAMES = ("ANNE", "BRUTUS", "CELIA", "DUKE", "EGEUS")
MOOD = {
    "positive": ("love", "joy", "sweet", "happy", "fair", "blessed"),
    "negative": ("hate", "death", "cruel", "sorrow", "foul", "cursed"),
    "neutral": ("table", "door", "seven", "paper", "street", "corner"),
}
PLAIN = ("the", "my", "and", "thou", "hast", "this", "night", "we", "will", "see")


def words(draw, mood, count):
    """`count` words, every other one of `mood`, as a sentence."""
    chosen = [draw.choice(MOOD[mood] if place % 2 else PLAIN) for place in range(count)]
    return " ".join(chosen).capitalize() + "."


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Settings, by their dotted names, of a run that takes seconds: a made-up play, made-up labels, a very small model."""
    folder, draw = tmp_path_factory.mktemp("tiny"), random.Random(0)
    moods = list(MOOD)
    speeches = [f"{draw.choice(NAMES)}.\n{words(draw, draw.choice(moods), draw.randint(6, 12))}\n\n" for _ in range(400)]
    (folder / "play.txt").write_text("".join(speeches), encoding="utf-8")
    rows = []
    for number in range(150):
        mood = moods[number % 3]
        rows.append({"text": words(draw, mood, 8), "checkpoint": "none", "label": mood, "reader": f"r{number % 4}"})
    assert len({row["text"] for row in rows}) == len(rows)
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "corpus": str(folder / "play.txt"),
        "labels": str(folder / "labels.jsonl"),
        "ppo.max_new_tokens": 16,
        "ppo.minibatch": 16,
        "ppo.rollout_size": 32,
        "ppo.max_rollout_size": 32,
        "ppo.iterations": 2,
        "ppo.epochs": 2,
        "normaliser_samples": 64,
        "ppo.keep_every": 2,
        "model.vocab_size": 300,
        "model.context": 64,
        "model.layers": 2,
        "model.heads": 2,
        "model.width": 32,
        "pretrain.steps": 40,
        "pretrain.batch": 8,
        "pretrain.evaluations": 4,
        "reward.epochs": 4,
        "reward.batch": 8,
        "reward.lr": 5e-3,
        "evaluate_samples": 64,
    }


@pytest.fixture(scope="session")
def tiny_settings(tiny):
    """`tiny_settings(changes)`: the Settings of the tiny run, with changes by dotted name."""
    from rlhf_lib.pipelines.settings import changed
    from rlhf_lib.pipelines.shakespeare import PRESETS

    return lambda changes=None: changed(PRESETS["smoke"], {**tiny, **(changes or {})})


@pytest.fixture(scope="session")
def tiny_run(tiny_settings, tmp_path_factory):
    """The folder of a finished tiny run, made on the CPU by one thread. Not to be written to."""
    from rlhf_lib.pipelines.shakespeare import Shakespeare

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / "tiny"
    try:
        Shakespeare(tiny_settings(), folder, torch.device("cpu")).run()
    finally:
        torch.set_num_threads(threads)
    return folder


# ----------------------------------------------------------------------------------------- a whole run of the assistant

KIND = ("Ask", "Tell", "Show", "Give", "Write")
THINGS = ("them kindly", "her today", "him a good reason", "a friend first", "the truth", "us how it went")


def spoken(draw, count):
    """`count` short sentences."""
    return " ".join(f"{draw.choice(KIND)} {draw.choice(THINGS)}." for _ in range(count))


@pytest.fixture(scope="session")
def tiny_talks(tmp_path_factory):
    """The paths of made-up demonstrations and comparisons on the project's own prompts."""
    from rlhf_lib import comparisons

    folder, draw = tmp_path_factory.mktemp("talks"), random.Random(1)
    prompts = comparisons.read_prompts()
    train, held_out = ([p for p in prompts if p.split == split] for split in ("train", "held_out"))
    shown = [{"id": p.id, "answer": spoken(draw, 2), "writer": "w1"} for p in train[:20] + held_out[:5]]
    compared = []
    for place, prompt in enumerate(train[:40] + held_out[:15]):
        pair = [spoken(draw, 1), f"{spoken(draw, 1)} But no."]  # the one without "no" is better
        better = draw.randrange(2)
        first, second = pair if better == 0 else pair[::-1]
        verdict = "tie" if place % 11 == 10 else ("first", "second")[better]
        row = {"id": prompt.id, "first": first, "second": second, "verdict": verdict, "reader": "r1"}
        compared.append({**row, "second_cut": True} if place % 5 == 4 else row)
    paths = {"demonstrations": folder / "shown.jsonl", "comparisons": folder / "compared.jsonl"}
    for name, rows in (("demonstrations", shown), ("comparisons", compared)):
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture(scope="session")
def tiny_assistant(tiny_talks):
    """Settings, by their dotted names, of a run of the assistant that takes seconds."""
    return {
        **tiny_talks,
        "model": "tiny",
        "limit": 0,
        "layers": 1,
        "rank": 2,
        "alpha": 4,
        "normaliser_samples": 16,
        "best_of": 3,
        "evaluate_prompts": 6,
        "sft.epochs": 2,
        "sft.row": 128,
        "sft.batch": 4,
        "sft.lr": 2e-2,
        "preference.epochs": 4,
        "preference.batch": 8,
        "preference.lr": 2e-2,
        "ppo.iterations": 2,
        "ppo.rollout_size": 8,
        "ppo.minibatch": 4,
        "ppo.epochs": 2,
        "ppo.max_new_tokens": 10,
        "ppo.lr": 1e-2,
        "ppo.max_kl": 100.0,
    }


@pytest.fixture(scope="session")
def assistant_settings(tiny_assistant):
    """`assistant_settings(changes)`: the Settings of the tiny run of the assistant, with changes by dotted name."""
    from rlhf_lib.pipelines.assistant_settings import PRESETS
    from rlhf_lib.pipelines.settings import changed

    return lambda changes=None: changed(PRESETS["smoke"], {**tiny_assistant, **(changes or {})})


@pytest.fixture(scope="session")
def assistant_run(assistant_settings, tmp_path_factory):
    """The folder of a finished tiny run of the assistant, made on the CPU by one thread. Not to be written to."""
    from rlhf_lib.pipelines.assistant import Assistant

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("assistant") / "tiny"
    try:
        Assistant(assistant_settings(), folder, torch.device("cpu")).run()
    finally:
        torch.set_num_threads(threads)
    return folder


# ----------------------------------------------------------------------------------------- files that would run code


class Payload:
    """Unpickling it creates the file `mark`."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.fixture(scope="session")
def payloads():
    """`payloads(mark)`: six files that create the file `mark` when they are unpickled: the payload as a plain pickle in three
    protocols, and as torch saves it, alone and beside harmless entries."""

    def made(mark):
        contents = [pickle.dumps(Payload(mark), protocol) for protocol in (0, 2, 4)]
        state = {"step": 1, "memory": {}, "seconds": 0.0, "model": {}, "optimizers": [], "more": Payload(mark)}
        for saved, zipped in ((Payload(mark), True), (state, True), (state, False)):
            buffer = io.BytesIO()
            torch.save(saved, buffer, _use_new_zipfile_serialization=zipped)
            contents.append(buffer.getvalue())
        return contents

    return made
