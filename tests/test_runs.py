import json
import math
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rlhf_lib import checkpoints, files, runs, tokenization
from rlhf_lib.checkpoints import CheckpointError
from rlhf_lib.files import RunError
from rlhf_lib.runs import Metrics, stage

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = tokenization.CharTokenizer(list("abc"))


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ----------------------------------------------------------------------------------------- a full disk

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from rlhf_lib import checkpoints, files, runs, tokenization
folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the kernel then answers EFBIG, as a full disk answers ENOSPC
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

def attempt(name, act):
    try:
        act()
    except files.RunError as error:
        print(name, error)

attempt("bytes", lambda: files.write_atomic(folder / "file.bin", b"n" * 5000))
attempt("state", lambda: runs.save_state(folder / "state.pt", {"x": torch.zeros(5000)}))
attempt("json", lambda: files.write_json(folder / "summary.json", {"x": "n" * 5000}))
tokenizer = tokenization.CharTokenizer(["a"])
attempt("checkpoint", lambda: checkpoints.write(folder / "base", {"w": torch.zeros(5000)}, {}, tokenizer))
metrics = runs.Metrics(folder)
attempt("metrics", lambda: [metrics.log("s", step, loss=0.5) for step in range(1000)])
files.write_atomic(folder / "small.bin", b"fits")
"""


def test_a_full_disk_keeps_every_old_file(tmp_path):
    """A real limit on the size of files, in a process of its own."""
    files.write_atomic(tmp_path / "file.bin", b"old")
    runs.save_state(tmp_path / "state.pt", {"x": 1})
    files.write_json(tmp_path / "summary.json", {"x": 1})
    checkpoints.write(tmp_path / "base", {"w": torch.ones(2)}, {}, tokenization.CharTokenizer(["a"]))
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
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
    assert names(tmp_path) == sorted([*before, "metrics.jsonl", "small.bin"])  # no temporary file
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    # the stats up to the full disk are there, and the run goes on behind them
    metrics = Metrics(tmp_path)
    kept = len(metrics.read())
    assert kept > 10
    metrics.rewind("s", kept)
    metrics.log("s", kept, loss=0.5)
    assert [record["step"] for record in metrics.read()] == list(range(kept + 1))


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


def test_the_payload_would_act_if_it_were_unpickled(tmp_path, payloads):
    # without this the tests that refuse it could pass by chance
    contents = payloads(tmp_path / "mark")
    for content in contents[:3]:
        pickle.loads(content).close()
        (tmp_path / "mark").unlink()
    for content in contents[3:]:
        (tmp_path / "state.pt").write_bytes(content)
        torch.load(tmp_path / "state.pt", weights_only=False)
        (tmp_path / "mark").unlink()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", range(6))
def test_a_state_with_code_in_it_is_refused_and_never_executed(tmp_path, payloads, kind):
    path = tmp_path / "state.pt"
    path.write_bytes(payloads(tmp_path / "mark")[kind])
    with refused(path):
        runs.load_state(path)
    with refused(path):
        fresh(tmp_path, out=".")
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
            with pytest.raises(RunError, match=rf"metrics\.jsonl, line {place + 1}: not JSON of a step; delete that line"):
                act()


def test_rewind_forgets_one_stage_from_a_step_on(tmp_path):
    metrics = Metrics(tmp_path)
    for name, step in [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]:
        metrics.log(name, step)
    metrics.rewind("a", 1)
    assert [(r["stage"], r["step"]) for r in metrics.read()] == [("a", 0), ("b", 0), ("b", 1), ("b", 2)]
    metrics.rewind("b", 0)
    assert [(r["stage"], r["step"]) for r in metrics.read()] == [("a", 0)]
    metrics.rewind("c", 0)
    assert [(r["stage"], r["step"]) for r in metrics.read()] == [("a", 0)]
    assert names(tmp_path) == ["metrics.jsonl"]


def test_stats_that_cannot_be_written_stop_the_run_with_a_sentence(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl \(Is a directory\)"):
        Metrics(tmp_path).log("s", 0)


# ----------------------------------------------------------------------------------------- a stage that resumes


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until the test moves it."""
    hands = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: hands.now))
    return hands


class Toy(nn.Linear):
    """The smallest model that a stage can keep."""

    def metadata(self):
        return {"kind": "toy", "config": {"width": self.in_features}}


def fresh(folder, out="toy", steps=6, width=3, optimizers=1, seed=7, start=0, **options):
    torch.manual_seed(start)
    model = Toy(width, 2)
    kinds = [torch.optim.AdamW(model.parameters(), 0.1), torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)]
    return stage("toy", folder, out, model, kinds[:optimizers], steps, seed, TOKENIZER, **options)


def work(toy, until=None):
    """Every step of the stage, or up to the step `until`, which is done but for what comes behind it."""
    for step in toy:
        loss = toy.model(torch.randn(4, toy.model.in_features)).square().mean()
        loss.backward()
        for optimizer in toy.optimizers:
            optimizer.step()
        for optimizer in toy.optimizers:
            optimizer.zero_grad()
        toy.memory["losses"] = [*toy.memory.get("losses", []), loss.item()]
        toy.log(loss=loss.item())
        toy.keep(loss=loss.item())
        if step == until:
            return toy
    toy.finish()
    return toy


@pytest.fixture
def saves(monkeypatch):
    """`saves(at)`: from now on a stage is saved where the next step is one of `at`, and nowhere else."""

    def at(*steps):
        monkeypatch.setattr(stage, "tick", lambda self, step: self.save(step) if step in steps else None)

    return at


def weights(toy):
    return torch.cat([parameter.detach().flatten() for parameter in toy.model.parameters()])


def test_without_a_state_a_stage_does_all_its_steps(tmp_path):
    toy = fresh(tmp_path, steps=4)
    torch.manual_seed(0)
    assert torch.equal(weights(toy), weights(SimpleNamespace(model=Toy(3, 2))))
    assert list(toy) == [0, 1, 2, 3]
    assert (toy.first, toy.memory) == (0, {})


def test_a_finished_stage_has_no_step_left(tmp_path):
    first = work(fresh(tmp_path))
    again = fresh(tmp_path, start=99)
    assert list(again) == []
    assert torch.equal(weights(again), weights(first))


@pytest.mark.parametrize("optimizers", [1, 2])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_stage_ends_where_an_uninterrupted_one_ends(tmp_path, saves, optimizers, stop):
    whole = work(fresh(tmp_path / "whole", optimizers=optimizers))
    saves(stop)
    first = work(fresh(tmp_path / "run", optimizers=optimizers), until=stop)  # that last step is lost in the kill
    torch.manual_seed(1234)  # whatever the process did before it went on
    second = fresh(tmp_path / "run", start=99, optimizers=optimizers)
    assert second.first == stop
    assert second.memory == {"losses": whole.memory["losses"][:stop]}
    assert second.memory != first.memory
    work(second)
    assert torch.equal(weights(second), weights(whole))
    assert not torch.equal(weights(second), weights(first))
    assert second.memory == whole.memory
    for name in ("metrics.jsonl", "toy/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_callers_memory_is_the_one_that_is_saved_and_restored(tmp_path):
    memory = {"best": torch.tensor(3.0), "size": 8}
    toy = fresh(tmp_path, memory=memory)
    assert toy.memory is memory
    memory["size"] = 16
    toy.save(2)
    other = {"best": None, "size": 8, "fresh": 1}
    again = fresh(tmp_path, memory=other)
    assert again.memory is other
    assert other == {"best": torch.tensor(3.0), "size": 16, "fresh": 1}


def test_tick_saves_when_its_seconds_are_over_and_not_before(tmp_path, clock):
    toy = fresh(tmp_path, steps=100)
    clock.now += runs.SAVE_SECONDS - 1
    toy.tick(1)
    assert not (tmp_path / "toy" / "state.pt").exists()
    clock.now += 1
    toy.tick(2)
    assert runs.load_state(tmp_path / "toy" / "state.pt")["step"] == 2
    clock.now += runs.SAVE_SECONDS - 1  # counted from the last save
    toy.tick(3)
    assert runs.load_state(tmp_path / "toy" / "state.pt")["step"] == 2
    clock.now += 1
    toy.tick(4)
    assert runs.load_state(tmp_path / "toy" / "state.pt")["step"] == 4
    toy.tick(100)  # the last step, whatever the clock says
    assert runs.load_state(tmp_path / "toy" / "state.pt")["step"] == 100
    assert names(tmp_path) == ["metrics.jsonl", "toy/state.pt"]


def test_saving_takes_a_twentieth_of_the_time_at_most(tmp_path, clock, monkeypatch):
    write, took = runs.save_state, 3.0

    def slow(path, state):
        write(path, state)
        clock.now += took

    monkeypatch.setattr(runs, "save_state", slow)
    toy, began, saved = fresh(tmp_path, steps=10**6), clock.now, []
    monkeypatch.setattr(toy, "save", lambda step: (saved.append(step), stage.save(toy, step)))
    for step in range(1, 2000):
        clock.now += 1
        toy.tick(step)
    assert len(saved) > 20
    assert took * len(saved) / (clock.now - began) <= 1 / 20
    assert took * len(saved) / (clock.now - began) > 1 / 25  # and as often as that allows


def test_seconds_add_up_over_the_processes_of_a_stage(tmp_path, clock):
    path = tmp_path / "toy" / "state.pt"
    assert runs.seconds_spent(path) == 0
    first = fresh(tmp_path)
    clock.now += 30
    first.save(1)
    assert runs.seconds_spent(path) == 30
    clock.now += 1000  # no process at work
    second = fresh(tmp_path)
    clock.now += 12
    second.save(2)
    assert runs.seconds_spent(path) == 42


def test_only_the_first_process_saves_and_logs(tmp_path, monkeypatch):
    for rank in (1, 0):
        for module in (runs, checkpoints):
            monkeypatch.setattr(module, "world", lambda rank=rank: (rank, 2))
        work(fresh(tmp_path))
        assert names(tmp_path) == (
            [] if rank else ["metrics.jsonl", "toy/model.safetensors", "toy/state.pt", "toy/tokenizer.json"]
        )


@pytest.mark.parametrize("other", [{"width": 5}, {"optimizers": 2}])
def test_a_state_of_another_configuration_is_refused(tmp_path, other):
    fresh(tmp_path).save(1)
    path = tmp_path / "toy" / "state.pt"
    with pytest.raises(CheckpointError, match=rf"{path} belongs to another configuration \(.+\): choose another --out"):
        fresh(tmp_path, **other)


@pytest.mark.parametrize("state", [{"weights": torch.ones(2)}, {}, [1, 2], 3, {"model": 3}], ids=str)
def test_somebody_elses_state_is_refused(tmp_path, state):
    runs.save_state(tmp_path / "toy" / "state.pt", state)
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        fresh(tmp_path)
    assert runs.seconds_spent(tmp_path / "toy" / "state.pt") == 0  # asked before the stage begins: no traceback of its own


# ----------------------------------------------------------------------------------------- what a stage logs and keeps


def test_a_step_that_logs_is_one_line_and_one_that_does_not_is_none(tmp_path):
    toy = fresh(tmp_path, steps=4)
    for step in toy:
        if step != 2:
            toy.log(loss=step / 2)
        if step == 1:
            toy.log(accuracy=0.75)
    assert toy.metrics.read() == [
        {"stage": "toy", "step": 0, "loss": 0.0},
        {"stage": "toy", "step": 1, "loss": 0.5, "accuracy": 0.75},
        {"stage": "toy", "step": 3, "loss": 1.5},
    ]


def test_a_resumed_stage_forgets_what_it_computes_again_and_no_other_stages_lines(tmp_path, saves):
    Metrics(tmp_path).log("other", 9, loss=1.0)
    saves(2)
    work(fresh(tmp_path), until=4)
    assert [(record["stage"], record["step"]) for record in Metrics(tmp_path).read()][1:] == [("toy", step) for step in range(4)]
    toy = fresh(tmp_path)
    assert [(r["stage"], r["step"]) for r in toy.metrics.read()] == [("other", 9), ("toy", 0), ("toy", 1)]


def test_the_bar_shows_the_stats_that_it_should(tmp_path, capsys):
    toy = fresh(tmp_path, steps=3, show=("kl", "reward"))
    for step in toy:
        if step == 1:
            toy.log(kl=1 / 3, other=7 / 9)
    shown = capsys.readouterr().err
    assert "toy: 100%" in shown and "3/3" in shown and "kl=0.333" in shown
    assert "0.778" not in shown and "reward" not in shown


def test_seed_name_and_step_alone_decide_the_draws_of_a_step(tmp_path):
    def draws(folder, seed, name="toy", waste=0):
        toy = stage(name, tmp_path / folder, "toy", Toy(3, 2), [], 40, seed, TOKENIZER)
        found = []
        for step in toy:
            found.append(tuple(torch.rand(3).tolist()))
            torch.rand(waste * step)
        return found

    first = draws("a", 3)
    assert draws("b", 3, waste=17) == first
    others = [first, draws("c", 4), draws("d", 3, "pretrain")]
    assert len({draw for found in others for draw in found}) == 120


@pytest.mark.parametrize("seed", [0, 2**31, 2**62, 10**30])
def test_any_seed_is_good(tmp_path, seed):
    assert len([torch.rand(1) for _ in fresh(tmp_path, seed=seed)]) == 6


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
def test_a_loss_that_is_not_finite_or_too_high_stops_the_stage(tmp_path, value, limit, stops):
    toy = fresh(tmp_path, steps=50)
    for step in toy:
        if step == 12:
            break
    if not stops:
        assert toy.check(value, limit) is None
        return
    with pytest.raises(RunError, match=r"toy: the loss is (nan|-?inf|3\.01) at step 12\. Lower the learning rate") as e:
        toy.check(value, limit)
    assert all(advice in str(e.value) for advice in ("learning rate", "--seed", "--out"))


def kept(folder):
    return checkpoints.read_tensors(folder / "toy"), checkpoints.read_metadata(folder / "toy")


def test_what_was_kept_last_is_on_disk_when_the_loss_is_not_finite(tmp_path):
    toy = fresh(tmp_path)
    for step in toy:
        if step < 3:
            before = weights(toy).clone()
            toy.keep(step=step, loss=step / 4)
        nn.init.constant_(toy.model.weight, step)  # training goes on
        if step == 4:
            with pytest.raises(RunError, match=r"at step 4; the last good weights are kept\. Lower"):
                toy.check(math.nan)
            break
    tensors, metadata = kept(tmp_path)
    assert torch.equal(torch.cat([tensors["weight"].flatten(), tensors["bias"]]), before)
    assert metadata == {**toy.model.metadata(), "seed": 7, "step": 2, "loss": 0.5, "tokenizer": TOKENIZER.fingerprint()}


def test_a_loss_that_is_not_finite_before_anything_was_kept_leaves_no_checkpoint(tmp_path):
    toy = fresh(tmp_path)
    next(iter(toy))
    with pytest.raises(RunError):
        toy.check(math.nan)
    assert names(tmp_path) == ["metrics.jsonl"]


def test_what_is_kept_is_written_when_the_stage_is_saved_or_finished_and_not_before(tmp_path):
    toy = fresh(tmp_path)
    toy.keep(at="first")
    assert not (tmp_path / "toy").exists()
    toy.save(1)
    assert kept(tmp_path)[1]["at"] == "first"
    toy.keep(at="second")
    toy.keep(at="third")
    toy.finish()
    assert kept(tmp_path)[1]["at"] == "third"
    (tmp_path / "toy" / "model.safetensors").unlink()
    toy.save(2)  # what is on disk is not written again
    toy.finish()
    assert names(tmp_path / "toy") == ["state.pt", "tokenizer.json"]


def test_the_checkpoint_is_there_before_the_state_that_relies_on_it(tmp_path, monkeypatch):
    """Killed between the two, a run goes on from the older state and keeps the same weights again."""
    order, write, save = [], checkpoints.write, runs.save_state
    monkeypatch.setattr(checkpoints, "write", lambda *args: (order.append("checkpoint"), write(*args)))
    monkeypatch.setattr(runs, "save_state", lambda *args: (order.append("state"), save(*args)))
    toy = fresh(tmp_path)
    toy.keep()
    toy.save(1)
    assert order == ["checkpoint", "state"]


def test_the_checkpoint_may_be_of_a_part_of_what_is_trained(tmp_path, saves):
    """As the reward model's, beside which a language head is trained."""

    def begun(start):
        torch.manual_seed(start)
        both = nn.ModuleDict({"result": Toy(3, 2), "head": nn.Linear(2, 5)})
        return stage("toy", tmp_path, "toy", both, [], 3, 0, TOKENIZER, result=both["result"])

    first = begun(0)
    first.keep()
    first.save(1)
    tensors, metadata = kept(tmp_path)
    assert set(tensors) == {"weight", "bias"} and metadata["kind"] == "toy"
    second = begun(1)
    for mine, theirs in zip(second.model.state_dict().values(), first.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(tensors["weight"], second.model["result"].weight)


def test_every_process_waits_until_the_checkpoint_is_there(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(runs, "wait", lambda: seen.append((tmp_path / "toy" / "model.safetensors").exists()))
    toy = fresh(tmp_path)
    toy.keep()
    toy.finish()
    assert seen == [True]


# ----------------------------------------------------------------------------------------- what it was begun with


def test_a_state_of_another_tokenizer_is_refused_and_one_that_does_not_say_goes_on(tmp_path, monkeypatch):
    fresh(tmp_path).save(2)
    assert fresh(tmp_path).first == 2
    monkeypatch.setattr(sys.modules[__name__], "TOKENIZER", tokenization.CharTokenizer(list("acb")))  # of the same size
    state = tmp_path / "toy" / "state.pt"
    with pytest.raises(CheckpointError, match=rf"^{state} was begun with another tokenizer than that of the text as it is now"):
        fresh(tmp_path)
    older = runs.load_state(state)
    del older["tokenizer"]
    runs.save_state(state, older)
    assert fresh(tmp_path).first == 2


def test_metrics_are_on_the_disk_before_the_state_that_counts_on_them(tmp_path, monkeypatch):
    """Of a power cut between the two, the metrics have what is done again, and never lack what is not."""
    asked, fsync, replace = [], os.fsync, os.replace
    toy = fresh(tmp_path)
    toy.metrics.log("toy", 0, loss=1.0)
    metrics = os.stat(tmp_path / "metrics.jsonl").st_ino

    def record(number):
        asked.append(os.fstat(number).st_ino == metrics)
        fsync(number)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "replace", lambda fresh, path: (asked.append(Path(path).name), replace(fresh, path)))
    toy.save(1)
    assert asked.index(True) < asked.index("state.pt")


def test_what_else_than_a_loss_exploded_is_called_by_its_name(tmp_path):
    with pytest.raises(RunError, match=r"^toy: the KL to the original model is 1e\+06 at step 0\."):
        fresh(tmp_path).check(1e6, limit=1000, what="KL to the original model")


# ----------------------------------------------------------------------------------------- states that nobody saved


def test_a_packed_state_is_refused_before_it_is_unpacked(tmp_path):
    """torch packs nothing, and what is packed may be a thousand times as large as the file."""
    runs.save_state(tmp_path / "good.pt", {"x": torch.zeros(4)})
    path = tmp_path / "state.pt"
    with zipfile.ZipFile(tmp_path / "good.pt") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info) + (bytes(2**28) if "/data/" in info.filename else b""))
    assert path.stat().st_size < 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with refused(path):
        runs.load_state(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


@pytest.mark.parametrize(
    "change",
    [
        {"step": 10**6},
        {"step": -1},
        {"step": 1.5},
        {"step": "1"},
        {"step": True},
        {"step": {}},
        {"seconds": math.nan},
        {"seconds": -1.0},
        {"seconds": "x"},
        {"seconds": None},
        {"model": 7},
        {"model": {1: 2}},
        {"optimizers": 7},
        {"optimizers": [7]},
        {"optimizers": [{"state": 7, "param_groups": []}]},
        {"optimizers": [{"state": {}, "param_groups": 7}]},
        {"memory": 7},
        {"memory": None},
    ],
)
def test_a_state_whose_parts_are_none_is_refused_by_name(tmp_path, change):
    fresh(tmp_path).save(1)
    path = tmp_path / "toy" / "state.pt"
    runs.save_state(path, {**runs.load_state(path), **change})
    with pytest.raises(CheckpointError, match=rf"^{path} belongs to another configuration \(.+\): choose another --out$"):
        fresh(tmp_path)
    assert isinstance(runs.seconds_spent(path), int | float) and math.isfinite(runs.seconds_spent(path))
