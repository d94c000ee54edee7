"""Where the work runs: the device, the precision, its random numbers, and several processes with one copy of the model each."""

import atexit
import contextlib
import hashlib
import os

# Batches of many lengths fill oneDNN's cache with a kernel for every shape, up to a gigabyte in a run. It is read once, at the
# first matrix product; a small cache is as fast, since most shapes never come back.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")

import torch
import torch.distributed as dist


def pick_device():
    """cuda (this process's own card under torchrun), else mps, else cpu. On a card, float32 products run in TF32."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def has_bf16(device):
    """Whether the hardware multiplies bfloat16 matrices itself (a T4 does not; a CPU with AVX512-BF16 or AMX does)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def precision(device, width=256):
    """The type that matrix products run in where it pays.

    bfloat16 where the hardware has it, on a CPU from width 256 (below, the conversions cost more than they save); float16 on a
    card without bfloat16, such as a T4, where gradients need a `grad_scaler`; float32 elsewhere.
    """
    device = torch.device(device)
    if has_bf16(device) and (device.type == "cuda" or width >= 256):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def autocast(device, width, exact=False):
    """Autocast to `precision`.

    Weights are cast once and kept until the context ends: leave it before the optimiser's step.

    Args:
        exact: no float16. A ratio of two probabilities, as PPO has, needs its range or its digits.
    """
    device, dtype = torch.device(device), precision(device, width)
    if dtype == torch.float32 or (exact and dtype == torch.float16):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def grad_scaler(device, width):
    """Scales losses so that float16 gradients do not vanish (Micikevicius et al. 2018, section 3.2); else it does nothing."""
    return torch.amp.GradScaler(torch.device(device).type, enabled=precision(device, width) == torch.float16)


def seed_for(seed, stream, step=0):
    """One number for all that is drawn at `step` of `stream` ("windows", "rollout" ...) in a run with `seed`."""
    digest = hashlib.sha256(f"{seed} {stream} {step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed, stream, step=0):
    """A torch.Generator on the CPU for `step` of `stream`: what it draws depends on these three alone."""
    return torch.Generator().manual_seed(seed_for(seed, stream, step))


def peak_memory_bytes():
    """The most memory this process has held, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * 1024


def peak_card_bytes():
    """The most memory that tensors of this process have taken on its card, in bytes; None without a card."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def card_name():
    """The name of this process's card, such as "Tesla T4"; None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


# ------------------------------------------------------------------------- data-parallel training
# Every process holds the whole model and a slice of each batch; gradients are averaged over processes, so that N processes
# take the step that one process takes on the whole batch. Start with: torchrun --nproc-per-node=N -m rlhf_lib ...


def join():
    """Join the processes that torchrun started; alone, nothing happens."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        # With cards, gloo too: figures that are gathered on the CPU, and waiting, need it.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(dist.destroy_process_group)  # else its threads may abort the process that ends


def world():
    """(rank, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wait():
    """Let every process reach this line before any goes on."""
    if world()[1] > 1:
        dist.barrier()


def shard(count):
    """The slice of `count` rows that belongs to this process. Raises ValueError when they do not divide evenly."""
    rank, size = world()
    if count % size:
        raise ValueError(f"{count} rows do not divide among {size} processes: choose a multiple of {size}")
    return slice(rank * count // size, (rank + 1) * count // size)


def average_gradients(model):
    """Replace every gradient by its mean over processes."""
    if world()[1] == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world()[1]
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))


def mean_over_processes(value):
    """The mean of a Python number over processes."""
    if world()[1] == 1:
        return value
    total = torch.tensor(float(value), dtype=torch.float64, device=pick_device())
    dist.all_reduce(total)
    return (total / world()[1]).item()


def gather(tensor):
    """The tensors (N, ...) of all processes in a row, in order of rank."""
    if world()[1] == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world()[1])]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def shared_out(function, *tensors):
    """`function` of the rows of `tensors` (B, ...), each process doing its share; all get the whole result (B, ...)."""
    if world()[1] == 1:
        return function(*tensors)
    count, (rank, size) = len(tensors[0]), world()
    share = -(-count // size)  # the last shares wrap round where the rows do not divide evenly
    rows = torch.arange(rank * share, (rank + 1) * share) % count
    return gather(function(*(tensor[rows] for tensor in tensors)))[:count]


def agreed(value):
    """The first process's word on a yes or no, so that none goes on alone."""
    if world()[1] == 1:
        return bool(value)
    word = torch.tensor(float(value), device=pick_device())
    dist.broadcast(word, 0)
    return bool(word.item())
