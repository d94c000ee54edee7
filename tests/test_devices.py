import atexit
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rlhf_lib import devices

# ------------------------------------------------------------------------------------------------------- device and precision


def test_the_device_follows_what_the_machine_has(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.pick_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.pick_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert devices.pick_device() == torch.device("cuda", 3)


@pytest.mark.parametrize(
    "bf16, width, expected",
    [
        (True, 256, torch.bfloat16),
        (True, 1024, torch.bfloat16),
        (True, 255, torch.float32),
        (False, 256, torch.float32),
        (False, 64, torch.float32),
    ],
)
def test_products_are_bfloat16_only_on_a_cpu_that_has_it_and_at_a_width_that_pays(monkeypatch, bf16, width, expected):
    monkeypatch.setattr(devices, "has_bf16", lambda device: bf16)
    x = torch.ones(4, 4)
    for device in ("cpu", torch.device("cpu")):
        with devices.autocast(device, width):
            assert (x @ x).dtype == expected
        assert (x @ x).dtype == torch.float32  # behind it nothing has changed


def test_a_card_uses_bfloat16_at_every_width_when_it_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert isinstance(devices.autocast("cuda", 1024), contextlib.nullcontext)  # a card that only emulates it
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    asked = []
    monkeypatch.setattr(torch, "autocast", lambda *args: asked.append(args))
    devices.autocast("cuda", 32)
    assert asked == [("cuda", torch.bfloat16)]


def test_only_cards_and_cpus_are_trusted_with_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for supported in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported)
        assert devices.has_bf16(torch.device("cpu")) == supported
        assert not devices.has_bf16(torch.device("mps"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the oracle is Linux's own count")
def test_peak_memory_is_what_the_kernel_counted():
    def kernel():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    before = kernel()
    peak = devices.peak_memory_bytes()
    assert isinstance(peak, int)
    assert 0.95 * before <= peak <= 1.05 * kernel()  # the kernel itself counts a little late


# ------------------------------------------------------------------------------------------------------------------ one process


def test_alone_nothing_is_shared_and_nothing_changes(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    devices.join()
    assert not torch.distributed.is_initialized()
    assert devices.world() == (0, 1)
    devices.wait()
    assert devices.shard(7) == slice(0, 7)
    assert devices.mean_over_processes(0.1) == 0.1
    rows = torch.arange(6).view(3, 2)
    assert torch.equal(devices.gather(rows), rows)
    model = nn.Linear(2, 1)
    devices.average_gradients(model)  # without gradients too
    model(torch.ones(3, 2)).sum().backward()
    devices.average_gradients(model)
    assert torch.equal(model.weight.grad, torch.full((1, 2), 3.0))


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 9), each=st.integers(0, 50))
def test_shards_are_equal_and_lie_in_order_of_rank(size, each):
    rows, shards = torch.arange(size * each), []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(size):
            patch.setattr(devices, "world", lambda rank=rank: (rank, size))
            shards.append(rows[devices.shard(len(rows))])
    assert [len(shard) for shard in shards] == [each] * size
    assert torch.equal(torch.cat(shards), rows)


@pytest.mark.parametrize("count, size", [(7, 2), (1, 4), (10, 3)])
def test_rows_that_do_not_divide_are_refused(monkeypatch, count, size):
    monkeypatch.setattr(devices, "world", lambda: (0, size))
    with pytest.raises(ValueError, match=f"{count} rows do not divide among {size} processes: choose a multiple of {size}"):
        devices.shard(count)


def test_processes_with_cards_exchange_what_lies_on_the_cpu_too(monkeypatch):
    """NCCL alone takes no tensor on the CPU, and the loops gather figures there."""
    backends = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: backends.append(backend))
    monkeypatch.setattr(atexit, "register", lambda function: None)
    devices.join()
    assert dict(pair.split(":") for pair in backends[0].split(",")) == {"cpu": "gloo", "cuda": "nccl"}


# ---------------------------------------------------------------------------------------------------------------- two processes

VALUES = [(1.0, 2.5), (0.1, 0.2), (2.0**24 + 1, 2.0**24 + 3), (3, 4)]  # the third is beyond float32's whole numbers
GATHERED = {
    "floats": torch.randn(6, 3, generator=torch.Generator().manual_seed(1)),
    "tokens": torch.arange(8).view(4, 2) * 7,
    "mask": torch.tensor([True, False, False, True]),
    "one each": torch.tensor([[0.25, 4.0], [-1.0, 3.0]]),
}

# Each process trains on its half of the batch, and writes down what it saw. It reads its task from a file, so that the
# process it is compared with has the very same one.
SCRIPT = """
import atexit
import sys
import time
from pathlib import Path

import torch

from rlhf_lib import devices

folder = Path(sys.argv[1])
model, x, y, values, whole = torch.load(folder / "task.pt", weights_only=False)

assert devices.world() == (0, 1)
atexit.register(lambda: (folder / f"left-{rank}").write_text(str(devices.world()[1])))  # runs behind what join() registers
devices.join()
devices.join()  # a second time changes nothing
rank, size = devices.world()

if rank == 1:  # the other must wait for this
    time.sleep(0.5)
    (folder / "arrived").touch()
devices.wait()
arrived = (folder / "arrived").exists()

parameters = [p for p in model.parameters() if p.requires_grad]
mine = devices.shard(len(x))
steps = []
for _ in range(3):
    model.zero_grad()
    loss = (model(x[mine]) - y[mine]).square().mean()
    loss.backward()
    devices.average_gradients(model)
    steps.append([p.grad.clone() for p in parameters])
    with torch.no_grad():
        for p in parameters:
            p -= 0.1 * p.grad

gathered = {name: devices.gather(rows[devices.shard(len(rows))]) for name, rows in whole.items()}
gathered["turned"] = devices.gather(torch.arange(6).view(2, 3).t() + 10 * rank)
try:
    devices.shard(7)
    refusal = None
except ValueError as error:
    refusal = str(error)

result = {
    "world": (rank, size), "arrived": arrived, "shard": mine, "refusal": refusal, "steps": steps, "weights": model.state_dict(),
    "own_loss": loss.item(), "mean_loss": devices.mean_over_processes(loss.item()), "gathered": gathered,
    "means": [devices.mean_over_processes(pair[rank]) for pair in values],
}
torch.save(result, folder / f"result-{rank}.pt")
"""


def tiny_task():
    """A model of two layers, of which one parameter is frozen and has no gradient, and a batch of eight rows."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    model[0].bias.requires_grad_(False)
    return model, torch.randn(8, 3), torch.randn(8, 1)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two real processes, started by torchrun, wrote down, in order of rank."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SCRIPT)
    torch.save((*tiny_task(), VALUES, GATHERED), folder / "task.pt")
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    env |= {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.run([*command, folder / "script.py", folder], env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-3000:]
    results = [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in (0, 1)]
    return [{**result, "left": (folder / f"left-{rank}").read_text()} for rank, result in enumerate(results)]


def test_two_processes_know_each_other_and_wait(two_processes):
    for rank, result in enumerate(two_processes):
        assert result["world"] == (rank, 2)
        assert result["shard"] == slice(4 * rank, 4 * rank + 4)
        assert result["refusal"] == "7 rows do not divide among 2 processes: choose a multiple of 2"
        assert result["arrived"]


def test_two_processes_part_before_they_end(two_processes):
    """A process that ends while still in the group may be aborted by the group's threads, and the run reported as failed."""
    assert [result["left"] for result in two_processes] == ["1", "1"]  # each is alone again


def test_two_processes_take_the_steps_that_one_takes_on_the_whole_batch(two_processes):
    model, x, y = tiny_task()
    parameters = [p for p in model.parameters() if p.requires_grad]
    for step in range(3):
        model.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        expected = [p.grad for p in parameters]
        for result in two_processes:
            torch.testing.assert_close(result["steps"][step], expected, atol=1e-6, rtol=1e-5)
        with torch.no_grad():
            for p in parameters:
                p -= 0.1 * p.grad
    for result in two_processes:
        torch.testing.assert_close(result["weights"], model.state_dict(), atol=1e-6, rtol=1e-5)
        assert result["mean_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert abs(two_processes[0]["own_loss"] - two_processes[1]["own_loss"]) > 0.01  # their halves differ


def test_every_process_gathers_all_rows_in_order_of_rank(two_processes):
    for result in two_processes:
        gathered = result["gathered"]
        for name, whole in GATHERED.items():
            assert gathered[name].dtype == whole.dtype
            assert torch.equal(gathered[name], whole), name
        assert gathered["turned"].tolist() == [[0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15]]


def test_every_process_gets_the_same_mean(two_processes):
    for result in two_processes:
        assert result["means"] == pytest.approx([(a + b) / 2 for a, b in VALUES], rel=1e-12)
