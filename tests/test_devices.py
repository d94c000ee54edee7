import atexit
import contextlib
import hashlib
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
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.pick_device() == torch.device("mps")
    assert asked == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.pick_device() == torch.device("cuda", 0)
    assert asked == ["high"]  # TF32, on a card alone
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert devices.pick_device() == torch.device("cuda", 3)


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# device, whether it has bfloat16, width, what products run in, and what they run in where float16 is not exact enough
PRECISIONS = [
    ("cpu", True, 256, BF16, BF16),
    ("cpu", True, 1024, BF16, BF16),
    ("cpu", True, 255, FP32, FP32),
    ("cpu", False, 256, FP32, FP32),
    ("cpu", False, 64, FP32, FP32),
    ("cuda", True, 1024, BF16, BF16),
    ("cuda", True, 32, BF16, BF16),
    ("cuda", False, 1024, FP16, FP32),
    ("cuda", False, 32, FP16, FP32),
    ("cuda:3", False, 512, FP16, FP32),
    ("mps", False, 1024, FP32, FP32),
]


@pytest.mark.parametrize("device, bf16, width, dtype, exact", PRECISIONS)
def test_products_run_in_what_the_device_has_and_the_width_pays_for(monkeypatch, device, bf16, width, dtype, exact):
    monkeypatch.setattr(devices, "has_bf16", lambda device: bf16)
    asked = []
    monkeypatch.setattr(torch, "autocast", lambda *args: asked.append(args))
    for place in (device, torch.device(device)):
        assert devices.precision(place, width) == dtype
        for wanted, inexact in ((dtype, {}), (exact, {"exact": True})):
            context = devices.autocast(place, width, **inexact)
            assert isinstance(context, contextlib.nullcontext) == (wanted == FP32)
            assert asked == ([] if wanted == FP32 else [(device.split(":")[0], wanted)])
            asked.clear()


def test_precision_without_a_width_is_that_of_a_wide_model(monkeypatch):
    monkeypatch.setattr(devices, "has_bf16", lambda device: True)
    assert devices.precision("cpu") == devices.precision("cpu", 256) == BF16


@pytest.mark.parametrize("bf16, width, expected", [row[1:4] for row in PRECISIONS if row[0] == "cpu"])
@pytest.mark.parametrize("exact", [False, True])
def test_products_on_a_cpu_are_of_that_type_inside_and_of_their_own_behind(monkeypatch, bf16, width, expected, exact):
    monkeypatch.setattr(devices, "has_bf16", lambda device: bf16)
    x = torch.ones(4, 4)
    with devices.autocast("cpu", width, exact):
        assert (x @ x).dtype == expected
    assert (x @ x).dtype == FP32


@pytest.mark.parametrize("device, bf16, width, dtype, exact", PRECISIONS)
def test_losses_are_scaled_where_gradients_are_of_float16_and_nowhere_else(monkeypatch, device, bf16, width, dtype, exact):
    monkeypatch.setattr(devices, "has_bf16", lambda device: bf16)
    made = []
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: made.append((device, enabled)))
    devices.grad_scaler(device, width)
    assert made == [(device.split(":")[0], dtype == FP16)]


@pytest.mark.parametrize("optimizers", [1, 2])
def test_a_scaler_that_is_not_needed_changes_nothing(optimizers):
    scaler = devices.grad_scaler(torch.device("cpu"), 64)
    plain, scaled = nn.Linear(3, 1), nn.Linear(3, 1)
    scaled.load_state_dict(plain.state_dict())
    for model in (plain, scaled):
        steps = [torch.optim.SGD([p], 0.1) for p in model.parameters()][:optimizers]
        loss = model(torch.tensor([[1.0, 2.0, -1.0]])).square().sum()
        if model is scaled:
            assert scaler.scale(loss) is loss
        loss.backward()
        for step in steps:
            scaler.step(step) if model is scaled else step.step()
    scaler.update()
    assert torch.equal(plain.weight, scaled.weight) and torch.equal(plain.bias, scaled.bias)
    scaler.load_state_dict(scaler.state_dict())  # a stage saves and restores it as it does an optimiser


@pytest.mark.parametrize("emulated", [True, False])
def test_a_card_that_only_emulates_bfloat16_does_not_count_as_having_it(monkeypatch, emulated):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or not emulated)
    assert devices.has_bf16(torch.device("cuda")) == (not emulated)


def test_only_cards_and_cpus_are_trusted_with_bfloat16(monkeypatch):
    for avx, amx in ((True, True), (True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert devices.has_bf16(torch.device("cpu")) == (avx or amx)
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


def test_the_peak_of_a_card_is_what_torch_counted_and_none_without_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.peak_card_bytes() is None and devices.card_name() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 12345)
    assert devices.peak_card_bytes() == 12345


# -------------------------------------------------------------------------------------------------------------- random numbers


def test_a_generator_is_made_from_seed_stream_and_step_alone():
    def draw(*source):
        torch.rand(17)  # whatever was drawn before
        return tuple(torch.rand(3, generator=devices.generator(*source)).tolist())

    assert draw(3, "rollout", 5) == draw(3, "rollout", 5)
    assert draw(3, "rollout") == draw(3, "rollout", 0)
    sources = [(seed, stream, step) for seed in range(4) for stream in ("windows", "rollout") for step in range(50)]
    assert len({draw(*source) for source in sources}) == 400
    state = torch.get_rng_state()
    draw_again = devices.generator(3, "rollout", 5)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator has no part in it
    assert draw_again.device == torch.device("cpu")
    assert draw_again.initial_seed() == devices.seed_for(3, "rollout", 5)


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10**30), stream=st.text(max_size=8), step=st.integers(0, 10**9))
def test_any_seed_gives_a_number_that_torch_takes(seed, stream, step):
    number = devices.seed_for(seed, stream, step)
    assert 0 <= number < 2**63
    torch.manual_seed(number)
    digest = int(hashlib.sha256(f"{seed} {stream} {step}".encode()).hexdigest()[:16], 16)
    assert number == digest // 2


def test_seeds_are_the_same_on_every_machine_and_in_every_process():
    """Else neither a resumed run nor a published one could be repeated."""
    assert devices.seed_for(0, "windows") == 3207655237370495221
    assert devices.seed_for(7, "rollout", 12) == 2306106607333316407


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
    assert torch.equal(devices.shared_out(lambda a, b: a + 2 * b, rows, rows), 3 * rows)
    for value in (True, torch.tensor(True), 1):
        assert devices.agreed(value) is True
    for value in (False, torch.tensor(False), 0):
        assert devices.agreed(value) is False
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


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 6), count=st.integers(1, 30))
def test_work_that_is_shared_out_is_all_done_and_every_share_is_of_one_size(size, count):
    """Also where the rows do not divide, or are fewer than the processes."""
    rows, shares = torch.arange(count * 2).view(count, 2), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "gather", lambda share: share)  # what one process hands over
        for rank in range(size):
            patch.setattr(devices, "world", lambda rank=rank: (rank, size))
            shares.append(devices.shared_out(lambda part, same: part + same, rows, rows))
    assert {len(share) for share in shares} == {-(-count // size)}
    assert torch.equal(torch.cat(shares)[:count], 2 * rows)


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

shared, done = {}, []  # the rows of each process's share
for count in (8, 7, 1):
    rows = torch.arange(3 * count).view(count, 3).float()
    shared[count] = devices.shared_out(lambda part, more: done.append(len(part)) or part.sum(1) + more, rows, torch.ones(count))

result = {
    "world": (rank, size), "arrived": arrived, "shard": mine, "refusal": refusal, "steps": steps, "weights": model.state_dict(),
    "own_loss": loss.item(), "mean_loss": devices.mean_over_processes(loss.item()), "gathered": gathered,
    "means": [devices.mean_over_processes(pair[rank]) for pair in values],
    "agreed": [devices.agreed(value) for value in (rank == 0, rank == 1, torch.tensor(rank == 0), False)],
    "shared": shared, "done": done,
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


def test_every_process_goes_by_the_first_ones_word(two_processes):
    """They would wait for one another for ever, if one of them stopped alone."""
    for result in two_processes:
        assert result["agreed"] == [True, False, True, False]


def test_every_process_does_its_share_and_gets_the_whole(two_processes):
    for result in two_processes:
        for count, found in result["shared"].items():
            assert found.tolist() == [9.0 * row + 4 for row in range(count)]
        assert result["done"] == [4, 4, 1]
