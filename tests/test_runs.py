import errno
import io
import json
import math
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

from rlhf_lib import runs, tokenization
from rlhf_lib.runs import CheckpointError, Metrics, Progress, RunError

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = tokenization.CharTokenizer(list("abc"))


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ----------------------------------------------------------------------------------------- atomic writes


def test_write_makes_the_folders_and_leaves_only_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    for content in (b"first", b"", bytes(range(256)) * 500):
        runs.write_atomic(str(path), content)
        assert path.read_bytes() == content
        assert files(tmp_path) == ["a/b/file.bin"]


def test_the_old_content_stands_until_the_new_is_complete_and_on_disk(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    seen, synced = [], []
    replace, fsync = os.replace, os.fsync

    def look(source, target):
        seen.append((path.read_bytes(), Path(source).read_bytes(), Path(source).parent, Path(target), len(synced)))
        replace(source, target)

    monkeypatch.setattr(runs.os, "replace", look)
    monkeypatch.setattr(runs.os, "fsync", lambda number: (synced.append(number), fsync(number)))
    runs.write_atomic(path, b"new content")
    # the new bytes were whole, synced, and in the same folder, where a rename is atomic
    assert seen == [(b"old", b"new content", tmp_path, path, 1)]
    assert path.read_bytes() == b"new content"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full: free some space"),
        (errno.EDQUOT, "the disk is full: free some space"),
        (errno.EFBIG, "the disk is full: free some space"),
        (errno.EACCES, "Permission denied: make the folder writable"),
        (errno.EROFS, "Read-only file system: make the folder writable"),
    ],
)
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch, where, number, said):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(runs.os, where, fail)
    with pytest.raises(RunError) as caught:
        runs.write_atomic(path, b"new")
    assert str(caught.value) == f"cannot write {path} ({said}, then run again; the last good file is kept)"
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("below", ["x", "y/x"])
def test_a_file_where_the_folder_should_be_is_reported_and_kept(tmp_path, below):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(RunError, match=r"cannot write .*x \(.*make the folder writable"):
        runs.write_atomic(tmp_path / "file" / below, b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_where_the_file_should_be_is_reported_and_kept(tmp_path):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(RunError, match="Is a directory"):
        runs.write_atomic(tmp_path / "folder", b"new")
    assert (tmp_path / "folder" / "inside").is_dir()
    assert files(tmp_path) == []


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from rlhf_lib import runs, tokenization
folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the kernel then answers EFBIG, as a full disk answers ENOSPC
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

def attempt(name, act):
    try:
        act()
    except runs.RunError as error:
        print(name, error)

attempt("bytes", lambda: runs.write_atomic(folder / "file.bin", b"n" * 5000))
attempt("state", lambda: runs.save_state(folder / "state.pt", {"x": torch.zeros(5000)}))
attempt("json", lambda: runs.write_json(folder / "summary.json", {"x": "n" * 5000}))
tokenizer = tokenization.CharTokenizer(["a"])
attempt("checkpoint", lambda: runs.save_checkpoint(folder / "base", {"w": torch.zeros(5000)}, {}, tokenizer))
metrics = runs.Metrics(folder)
attempt("metrics", lambda: [metrics.log("s", step, loss=0.5) for step in range(1000)])
runs.write_atomic(folder / "small.bin", b"fits")
"""


def test_a_full_disk_keeps_every_old_file(tmp_path):
    """A real limit on the size of files, in a process of its own."""
    runs.write_atomic(tmp_path / "file.bin", b"old")
    runs.save_state(tmp_path / "state.pt", {"x": 1})
    runs.write_json(tmp_path / "summary.json", {"x": 1})
    runs.save_checkpoint(tmp_path / "base", {"w": torch.ones(2)}, {}, tokenization.CharTokenizer(["a"]))
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["bytes", "state", "json", "checkpoint", "metrics"]
    assert all("the disk is full: free some space, then run again; the last good file is kept" in line for line in lines[:4])
    assert "metrics.jsonl (File too large): free some space, then run again" in lines[4]
    assert files(tmp_path) == sorted([*before, "metrics.jsonl", "small.bin"])  # no temporary file
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    # the figures up to the full disk are there, and the run goes on behind them
    metrics = Metrics(tmp_path)
    kept = len(metrics.read())
    assert kept > 10
    metrics.rewind("s", kept)
    metrics.log("s", kept, loss=0.5)
    assert [record["step"] for record in metrics.read()] == list(range(kept + 1))


def test_json_records_are_readable_and_keep_their_letters(tmp_path):
    record = {"title": "née — ¾", "list": [1, 2.5, None], "nested": {"a": True}}
    runs.write_json(tmp_path / "summary.json", record)
    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert json.loads(text) == record
    assert "née — ¾" in text and text.endswith("}\n")


# ----------------------------------------------------------------------------------------- checkpoints


def save(folder, tensors=None, card=None):
    runs.save_checkpoint(folder, tensors or {"w": torch.arange(6.0).view(2, 3)}, card or {"kind": "toy"}, TOKENIZER)
    return folder / "model.safetensors"


def test_a_checkpoint_comes_back_to_the_bit(tmp_path):
    tensors = {
        "float": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "half": torch.tensor([1.5, -0.0, 3e-5], dtype=torch.bfloat16),
        "whole": torch.tensor([[2**40, -1]]),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 5),
        "turned": torch.arange(6.0).view(2, 3).T,  # not contiguous
        "learned": nn.Parameter(torch.ones(2)),
    }
    card = {"kind": "gpt", "config": {"width": 4, "dropout": 0.1}, "title": "née"}
    save(tmp_path / "base", tensors, card)
    found_card, found = runs.load_checkpoint(tmp_path / "base", TOKENIZER)
    assert found_card == {**card, "tokenizer": TOKENIZER.fingerprint()} == runs.read_card(str(tmp_path / "base"))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name
    assert files(tmp_path) == ["base/model.safetensors", "base/tokenizer.json"]
    assert tokenization.load(tmp_path / "base" / "tokenizer.json").fingerprint() == TOKENIZER.fingerprint()


def test_tensors_that_share_memory_are_kept_both(tmp_path):
    """As the tied head and embedding of GPT-2."""
    shared = torch.arange(6.0)
    save(tmp_path / "base", {"embedding": shared, "head": shared, "part": shared[2:4]}, {"kind": "gpt"})
    _, found = runs.load_checkpoint(tmp_path / "base", TOKENIZER)
    assert torch.equal(found["embedding"], shared) and torch.equal(found["head"], shared)
    assert torch.equal(found["part"], shared[2:4])


def test_a_folder_without_a_checkpoint_says_what_is_missing(tmp_path):
    for act in (runs.read_card, runs.load_checkpoint):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .*: it needs a model\.safetensors"):
            act(tmp_path)


def test_another_tokenizer_is_refused(tmp_path):
    path = save(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{path} was trained with another tokenizer: use the tokenizer\.json"):
        runs.load_checkpoint(tmp_path, tokenization.CharTokenizer(list("acb")))
    runs.load_checkpoint(tmp_path, tokenization.load(tmp_path / "tokenizer.json"))
    runs.load_checkpoint(tmp_path)


def damaged(path):
    return pytest.raises(CheckpointError, match=rf"{path} is damaged or not a checkpoint of this project \(.*train it again")


def test_a_checkpoint_cut_anywhere_is_refused(tmp_path):
    path = save(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with damaged(path):
            runs.load_checkpoint(tmp_path, TOKENIZER)
    path.write_bytes(whole)
    runs.load_checkpoint(tmp_path, TOKENIZER)


def header_of(content):
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header, body):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


TAMPERED = {
    "a shape that the bytes do not fill": lambda h: h["w"].update(shape=[2, 4]),
    "a shape that overflows": lambda h: h["w"].update(shape=[2**62, 8]),
    "offsets past the end": lambda h: h["w"].update(data_offsets=[0, 10**12]),
    "offsets backwards": lambda h: h["w"].update(data_offsets=[24, 0]),
    "an unknown type": lambda h: h["w"].update(dtype="F33"),
    "no metadata": lambda h: h.pop("__metadata__"),
    "no card": lambda h: h.update(__metadata__={"format": "pt"}),
    "a card that is not JSON": lambda h: h.update(__metadata__={"card": "{'kind'"}),
    "a card that is no object": lambda h: h.update(__metadata__={"card": "[1]"}),
    "a card that names no tokenizer": lambda h: h.update(__metadata__={"card": '{"kind": "gpt"}'}),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED.keys())
def test_a_tampered_header_is_refused(tmp_path, change):
    path = save(tmp_path)
    header, body = header_of(path.read_bytes())
    path.write_bytes(with_header(header, body))
    runs.load_checkpoint(tmp_path, TOKENIZER)  # rewritten as it was, it still loads
    change(header)
    path.write_bytes(with_header(header, body))
    with damaged(path):
        runs.load_checkpoint(tmp_path, TOKENIZER)


@pytest.mark.parametrize(
    "content", [struct.pack("<Q", 2**63) + b"{}", b"\0" * 200, b"hello", safetensors_bytes({"w": torch.ones(2)})]
)
def test_other_content_under_the_name_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with damaged(path):
        runs.load_checkpoint(tmp_path, TOKENIZER)


class Payload:
    """Unpickling it creates the file `mark`."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def payloads(mark):
    """The payload as a plain pickle, and as torch saves it, alone and beside harmless entries."""
    contents = [pickle.dumps(Payload(mark), protocol) for protocol in (0, 2, 4)]
    state = {"step": 1, "extra": {}, "seconds": 0.0, "model": {}, "optimizers": [], "more": Payload(mark)}
    for saved, zipped in ((Payload(mark), True), (state, True), (state, False)):
        buffer = io.BytesIO()
        torch.save(saved, buffer, _use_new_zipfile_serialization=zipped)
        contents.append(buffer.getvalue())
    return contents


def test_the_payload_would_act_if_it_were_unpickled(tmp_path):
    # without this the two tests below could pass by chance
    contents = payloads(tmp_path / "mark")
    for content in contents[:3]:
        pickle.loads(content).close()
        (tmp_path / "mark").unlink()
    for content in contents[3:]:
        (tmp_path / "state.pt").write_bytes(content)
        torch.load(tmp_path / "state.pt", weights_only=False)
        (tmp_path / "mark").unlink()


@pytest.mark.parametrize("kind", range(6))
def test_a_pickle_under_the_name_of_a_checkpoint_is_refused_and_never_executed(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    path.write_bytes(payloads(tmp_path / "mark")[kind])
    with damaged(path):
        runs.load_checkpoint(tmp_path, TOKENIZER)
    assert not (tmp_path / "mark").exists()


def toy(width=3, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(width, 2)


def test_weights_that_fit_are_put_into_the_model():
    model, other = toy(seed=1), toy(seed=2)
    assert runs.load_weights(model, other.state_dict(), "x") is model
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(weight=torch.zeros(2, 4)), r"tensor weight \[2, [34]\] is missing or unexpected"),
        (lambda t: t.update(weight=torch.zeros(3, 2)), r"tensor weight \[(2, 3|3, 2)\] is missing or unexpected"),
        (lambda t: t.pop("bias"), r"tensor bias \[2\] is missing"),
        (lambda t: t.update(extra=torch.zeros(5)), r"tensor extra \[5\] is missing or unexpected"),
        (lambda t: t["weight"].__setitem__((1, 2), math.nan), "not finite, in tensor weight: train it again"),
        (lambda t: t["bias"].__setitem__(0, math.inf), "not finite, in tensor bias: train it again"),
        (lambda t: t["bias"].__setitem__(1, -math.inf), "not finite, in tensor bias: train it again"),
    ],
)
def test_weights_that_do_not_fit_or_are_not_finite_leave_the_model_as_it_is(change, said):
    model = toy(seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {name: tensor.clone() + 1 for name, tensor in before.items()}
    change(tensors)
    with pytest.raises(CheckpointError, match=rf"^runs/base .*{said}"):
        runs.load_weights(model, tensors, "runs/base")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ----------------------------------------------------------------------------------------- training state


def test_a_state_comes_back_with_its_tensors_and_numbers(tmp_path):
    state = {"step": 3, "nested": {"list": [1, 2.5, None, "word"], "tensor": torch.arange(4)}}
    runs.save_state(tmp_path / "state.pt", state)
    found = runs.load_state(tmp_path / "state.pt")
    assert torch.equal(found["nested"].pop("tensor"), state["nested"].pop("tensor"))
    assert found == state
    assert runs.load_state(tmp_path / "none.pt") is None


def refused(path):
    return pytest.raises(CheckpointError, match=rf"{path} is damaged \(.+\): delete it to begin this stage again")


def test_a_state_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "state.pt"
    runs.save_state(path, {"step": 3, "x": torch.ones(4)})
    whole = path.read_bytes()
    for length in [0, 1, *range(2, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with refused(path):
            runs.load_state(path)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02", b"PK\x03\x04", pickle.dumps({"step": 1}, 2)[:-3], b"\0" * 100])
def test_other_content_under_the_name_of_a_state_is_refused(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with refused(tmp_path / "state.pt"):
        runs.load_state(tmp_path / "state.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", range(6))
def test_a_state_with_code_in_it_is_refused_and_never_executed(tmp_path, kind):
    path = tmp_path / "state.pt"
    path.write_bytes(payloads(tmp_path / "mark")[kind])
    with refused(path):
        runs.load_state(path)
    with refused(path):
        Progress(path, toy(), []).resume()
    assert not (tmp_path / "mark").exists()


# ----------------------------------------------------------------------------------------- metrics


def test_records_come_back_in_order_by_stage(tmp_path):
    metrics = Metrics(tmp_path / "new" / "run")
    assert metrics.read() == []
    assert metrics.log("pretrain", 0, loss=2.5) == {"stage": "pretrain", "step": 0, "loss": 2.5}
    metrics.log("reward", 0, accuracy=0.5, note="née\u2028")
    metrics.log("pretrain", 1, loss=2.25)
    assert metrics.read("pretrain") == [
        {"stage": "pretrain", "step": 0, "loss": 2.5},
        {"stage": "pretrain", "step": 1, "loss": 2.25},
    ]
    assert metrics.read("ppo") == []
    assert [record["stage"] for record in metrics.read()] == ["pretrain", "reward", "pretrain"]
    assert metrics.read("reward")[0]["note"] == "née\u2028"
    assert Metrics(tmp_path / "new" / "run").read() == metrics.read()
    lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == metrics.read() and lines[-1] == ""


def test_a_file_cut_at_any_byte_reads_as_its_whole_lines_and_can_go_on(tmp_path):
    metrics = Metrics(tmp_path)
    records = [metrics.log("s", step, loss=step / 4, text="a}\n{é") for step in range(3)]
    whole = metrics.path.read_bytes()
    for length in range(len(whole) + 1):
        metrics.path.write_bytes(whole[:length])
        # a line whose closing brace is there is whole, with or without its line end
        count = (whole[:length] + b"\n").count(b'"}\n')
        assert metrics.read() == records[:count]
        metrics.rewind("s", count)
        for step in range(count, 3):
            metrics.log("s", step, loss=step / 4, text="a}\n{é")
        assert metrics.path.read_bytes() == whole


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    metrics = Metrics(tmp_path)
    for step in range(3):
        metrics.log("s", step)
    lines = metrics.path.read_text().splitlines(keepends=True)
    for place in (0, 1):
        metrics.path.write_text("".join([*lines[:place], lines[place][:5] + "\n", *lines[place + 1 :]]))
        for act in (metrics.read, lambda: metrics.rewind("s", 1)):
            with pytest.raises(RunError, match=rf"metrics\.jsonl, line {place + 1}: not JSON; delete that line"):
                act()


def test_rewind_forgets_one_stage_from_a_step_on(tmp_path):
    metrics = Metrics(tmp_path)
    for stage, step in [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]:
        metrics.log(stage, step)
    metrics.rewind("a", 1)
    assert [(r["stage"], r["step"]) for r in metrics.read()] == [("a", 0), ("b", 0), ("b", 1), ("b", 2)]
    metrics.rewind("b", 0)
    assert [(r["stage"], r["step"]) for r in metrics.read()] == [("a", 0)]
    metrics.rewind("c", 0)
    assert [(r["stage"], r["step"]) for r in metrics.read()] == [("a", 0)]
    assert files(tmp_path) == ["metrics.jsonl"]


def test_figures_that_cannot_be_written_stop_the_run_with_a_sentence(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl \(Is a directory\)"):
        Metrics(tmp_path).log("s", 0)


# ----------------------------------------------------------------------------------------- resume


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until the test moves it."""
    hands = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: hands.now))
    return hands


def fresh(path, width=3, seed=0, optimizers=1, seconds=20):
    model = toy(width, seed)
    kinds = [torch.optim.AdamW(model.parameters(), 0.1), torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)]
    return Progress(path, model, kinds[:optimizers], seconds)


def train(progress, steps):
    for step in steps:
        runs.seed_step(7, step)
        loss = progress.model(torch.randn(4, 3)).square().mean()
        for optimizer in progress.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in progress.optimizers:
            optimizer.step()


def test_without_a_state_a_stage_begins_at_its_first_step(tmp_path):
    progress = fresh(tmp_path / "state.pt")
    before = progress.model.weight.clone()
    assert progress.resume() == (0, {})
    assert torch.equal(progress.model.weight, before)


@pytest.mark.parametrize("optimizers", [1, 2])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_stage_ends_where_an_uninterrupted_one_ends(tmp_path, optimizers, stop):
    whole = fresh(tmp_path / "whole.pt", optimizers=optimizers)
    train(whole, range(6))
    first = fresh(tmp_path / "state.pt", optimizers=optimizers)
    train(first, range(stop))
    first.tick(stop, {"losses": [0.5, 0.25], "best": torch.tensor(3.0)}, now=True)
    train(first, range(stop, stop + 1))  # lost in the kill
    second = fresh(tmp_path / "state.pt", seed=99, optimizers=optimizers)
    step, extra = second.resume()
    assert step == stop
    assert extra == {"losses": [0.5, 0.25], "best": torch.tensor(3.0)}
    train(second, range(step, 6))
    assert torch.equal(second.model.weight, whole.model.weight)
    assert torch.equal(second.model.bias, whole.model.bias)
    assert not torch.equal(second.model.weight, first.model.weight)


def test_extra_is_empty_when_none_was_kept(tmp_path):
    fresh(tmp_path / "state.pt").tick(2, now=True)
    assert fresh(tmp_path / "state.pt").resume() == (2, {})


def test_tick_saves_when_its_seconds_are_over_and_not_before(tmp_path, clock):
    progress = fresh(tmp_path / "state.pt", seconds=20)
    clock.now += 19
    progress.tick(1)
    assert files(tmp_path) == []
    clock.now += 2
    progress.tick(2)
    assert runs.load_state(tmp_path / "state.pt")["step"] == 2
    clock.now += 19
    progress.tick(3)
    assert runs.load_state(tmp_path / "state.pt")["step"] == 2
    progress.tick(4, now=True)
    assert runs.load_state(tmp_path / "state.pt")["step"] == 4
    clock.now += 19  # counted from the last save
    progress.tick(5)
    assert runs.load_state(tmp_path / "state.pt")["step"] == 4
    assert files(tmp_path) == ["state.pt"]


def test_seconds_add_up_over_the_processes_of_a_stage(tmp_path, clock):
    path = tmp_path / "state.pt"
    assert runs.seconds_spent(path) == 0
    first = fresh(path)
    clock.now += 30
    first.tick(1, now=True)
    assert runs.seconds_spent(path) == 30
    clock.now += 1000  # no process at work
    second = fresh(path)
    second.resume()
    clock.now += 12
    second.tick(2, now=True)
    assert runs.seconds_spent(path) == 42


def test_only_the_first_process_saves(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "world", lambda: (1, 2))
    fresh(tmp_path / "state.pt").tick(1, now=True)
    assert files(tmp_path) == []
    monkeypatch.setattr(runs, "world", lambda: (0, 2))
    fresh(tmp_path / "state.pt").tick(1, now=True)
    assert files(tmp_path) == ["state.pt"]


@pytest.mark.parametrize("other", [{"width": 5}, {"optimizers": 2}])
def test_a_state_of_another_configuration_is_refused(tmp_path, other):
    path = tmp_path / "state.pt"
    progress = fresh(path)
    train(progress, range(1))
    progress.tick(1, now=True)
    with pytest.raises(CheckpointError, match=rf"{path} belongs to another configuration \(.+\): choose another --out"):
        fresh(path, **other).resume()


def test_somebody_elses_state_is_refused(tmp_path):
    runs.save_state(tmp_path / "state.pt", {"weights": torch.ones(2)})
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        fresh(tmp_path / "state.pt").resume()


# ----------------------------------------------------------------------------------------- small helpers


@pytest.mark.parametrize(
    ("value", "limit", "stops"),
    [
        (2.5, math.inf, False),
        (-2.5, math.inf, False),
        (1e300, math.inf, False),
        (3.0, 3.0, False),
        (3.01, 3.0, True),
        (math.nan, math.inf, True),
        (math.nan, 3.0, True),
        (math.inf, math.inf, True),
        (-math.inf, math.inf, True),
    ],
)
def test_a_loss_that_is_not_finite_or_too_high_stops_the_stage(value, limit, stops):
    if not stops:
        assert runs.check_finite(value, "pretrain", 12, limit) is None
        return
    with pytest.raises(
        RunError, match=r"pretrain: the loss is (nan|-?inf|3\.01) at step 12; the last good weights are kept"
    ) as e:
        runs.check_finite(value, "pretrain", 12, limit)
    assert all(advice in str(e.value) for advice in ("learning rate", "--seed", "--out"))


def test_seed_and_step_alone_decide_the_draws_of_a_step():
    def draw(seed, step):
        torch.rand(17)  # whatever was drawn before
        runs.seed_step(seed, step)
        return tuple(torch.rand(3).tolist())

    assert draw(3, 5) == draw(3, 5)
    assert len({draw(seed, step) for seed in range(4) for step in range(100)}) == 400


@pytest.mark.parametrize("seed", [0, 2**31, 2**62, 10**30])
def test_any_seed_is_good(seed):
    runs.seed_step(seed, 10**6)
    assert torch.rand(1).item() < 1
