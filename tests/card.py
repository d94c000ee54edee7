"""A pretend graphics card: torch device "card", whose numbers lie in the CPU's memory and are the CPU's to the last bit.

It finds, where there is no card, what would break or be slow on one. A tensor of the card is refused beside one of the CPU, as
CUDA refuses it; copies, synchronisations and kernel launches are counted, with the lines of the library they come from:

    import card

    model.to("card")
    with card.counting() as counts:
        step(model)
    assert counts.to_host == 1, counts

Importing this module registers the device for the whole process; it needs torch 2.9 or later. What differs from a real card:
nothing is asynchronous, nothing is faster, and there is no memory to run out of; storages are empty; there are no pinned
memory and no generators of the card's own; optimisers do not take their foreach form by themselves, and dropout is not one
kernel, so there are more launches; autocast keeps no copies of weights.
"""

import contextlib
import functools
import sys
import threading
from collections import Counter
from pathlib import Path

import torch
from torch.utils import backend_registration

import rlhf_lib

aten = torch.ops.aten
ROOT = Path(rlhf_lib.__file__).resolve().parents[1]
LIBRARY = f"{ROOT / 'rlhf_lib'}/"
BETWEEN = (str(Path(torch.__file__).parent), __file__, "<")  # frames that say nothing of where a call comes from

# ----------------------------------------------------------------------------------------- what is counted

# On CUDA the host waits for these: a number comes back, or the shape of what comes out depends on numbers.
WAITING = {
    aten._local_scalar_dense, aten.equal, aten.allclose, aten.nonzero, aten.masked_select, aten.bincount, aten.multinomial,
    aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.unique_dim_consecutive,
}  # fmt: skip
INDEXING = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}
FREE = {  # no kernel, like views
    aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty, aten.new_empty_strided, aten.lift_fresh,
    aten._unsafe_view, aten._local_scalar_dense, aten._has_compatible_shallow_copy_type,
}  # fmt: skip
COPIES = {(False, True): "to_card", (True, False): "to_host", (True, True): "launches"}  # by whether source and target are cards


class Counts:
    """What was done on the card: `to_card` (copies), `to_host` (copies, and other reasons to wait for the card), `launches`.

    `lines[kind]` is a Counter of "rlhf_lib/sampling.py:158", the innermost line of the library, or of whoever called torch
    where none is. What a backward pass does belongs to the line that called `backward`.
    """

    def __init__(self):
        self.places = {kind: Counter() for kind in COPIES.values()}
        self.thread = threading.get_ident()

    to_card = property(lambda self: self.places["to_card"].total())
    to_host = property(lambda self: self.places["to_host"].total())
    launches = property(lambda self: self.places["launches"].total())

    @property
    def lines(self):
        return {
            kind: Counter({f"{file.removeprefix(f'{ROOT}/')}:{line}": n for (file, line), n in places.items()})
            for kind, places in self.places.items()
        }

    def add(self, kind):
        frames = [sys._getframe(1)]
        if threading.get_ident() != self.thread:  # a backward pass has a thread of its own
            frames.append(sys._current_frames()[self.thread])
        place = None
        for frame in frames:
            while frame is not None:
                file = frame.f_code.co_filename
                if file.startswith(LIBRARY):
                    self.places[kind][file, frame.f_lineno] += 1
                    return
                if place is None and not file.startswith(BETWEEN):
                    place = file, frame.f_lineno
                frame = frame.f_back
        self.places[kind][place or ("?", 0)] += 1

    def __repr__(self):
        rows = [f"to_card {self.to_card}, to_host {self.to_host}, launches {self.launches}"]
        for kind in ("to_host", "to_card"):
            rows += [f"{n:7d} {kind} {line}" for line, n in self.lines[kind].most_common()]
        return "\n".join(rows)


ACTIVE = []


@contextlib.contextmanager
def counting():
    """`with counting() as counts:` counts what the block does on the card; one block may stand in another."""
    counts = Counts()
    ACTIVE.append(counts)
    try:
        yield counts
    finally:
        ACTIVE.remove(counts)


def count(kind):
    for counts in ACTIVE:
        counts.add(kind)


@contextlib.contextmanager
def no_cpu_branches():
    """Inside, no tensor `is_cpu`: code that asks goes the same way on the CPU as on the card, so that the numbers compare."""
    torch.Tensor.is_cpu = property(lambda self: False)
    try:
        yield
    finally:
        del torch.Tensor.is_cpu


# ----------------------------------------------------------------------------------------- tensors


class DeviceError(RuntimeError):
    """A tensor of the CPU where one of the card belongs, or the other way round."""


class CardTensor(torch.Tensor):
    """A tensor on the card; `inner`, a tensor of the CPU, holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, **layout, device="card:0")
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return run(op, *args, **(kwargs or {}))

    def __tensor_flatten__(self):  # what has these two keeps its identity in `module.to("card")`, and tied weights stay tied
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return CardTensor(inner["inner"])

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value):
        if isinstance(value, CardTensor):
            torch.Tensor.data.__set__(self, value)
            self.inner = value.inner
        else:  # `module.cpu()`
            moved = torch.nn.Parameter(value, self.requires_grad)
            moved.grad = None if self.grad is None else self.grad.cpu()
            torch.utils.swap_tensors(self, moved)

    def tolist(self):
        return self.detach().cpu().tolist()

    def numpy(self, **_):
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_, **__):
        return self.numpy()

    def __format__(self, spec):  # torch does so for its own tensors alone
        return format(self.item(), spec) if self.dim() == 0 else super().__format__(spec)

    def __reduce_ex__(self, protocol):  # for torch.save: a copy on the CPU, and the device that it goes back to
        parts = (self.detach().cpu(), self.dtype, str(self.device), self.requires_grad)
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, parts

    def __repr__(self):
        return f"CardTensor({self.inner})"


def inner(x):
    """What stands for `x` on the CPU: tensors and devices of the card, also in lists."""
    if isinstance(x, (list, tuple)):
        return type(x)(map(inner, x))
    if isinstance(x, CardTensor):
        return x.inner
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == "card" else x


def outer(x, known):
    """`x` on the card; a tensor that was changed in place is one of `known`."""
    if isinstance(x, (list, tuple)):
        return type(x)(outer(y, known) for y in x)
    if not isinstance(x, torch.Tensor):
        return x
    found = known.get(id(x))
    if found is not None and (found.shape != x.shape or found.stride() != x.stride()):
        torch.Tensor.data.__set__(found, CardTensor(x))  # its shape was changed in place
    return CardTensor(x) if found is None else found


def tensors_in(args):
    for x in args:
        if isinstance(x, torch.Tensor):
            yield x
        elif isinstance(x, (list, tuple)):
            yield from tensors_in(x)


def run(op, *args, **kwargs):
    """Run one operator on the CPU; refuse what CUDA refuses, and count."""
    packet = op.overloadpacket
    device = kwargs.get("device")
    on_card = device is None or torch.device(device).type == "card"  # where the outcome belongs
    if packet is aten.copy_:
        return copy(*args)
    if packet is aten._to_copy:
        return to_copy(*args, **kwargs)

    tensors = list(tensors_in([*args, *kwargs.values()]))
    strangers = [tensor for tensor in tensors if not isinstance(tensor, CardTensor)]
    known = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, CardTensor)}
    if packet in INDEXING and isinstance(args[0], CardTensor):
        for index in tensors_in(args[1]):
            if not isinstance(index, CardTensor):  # brought over
                count("to_card")
                strangers = [tensor for tensor in strangers if tensor is not index]
            elif index.dtype == torch.bool and (len(args) < 3 or args[2].dim() > 0):  # to fill a mask with a number takes no wait
                count("to_host")
    changed = [x for x, slot in zip(args, op._schema.arguments) if slot.alias_info is not None and slot.alias_info.is_write]
    if known and any(tensor.dim() > 0 or any(tensor is x for x in changed) for tensor in strangers):
        where = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise DeviceError(f"{op}: expected all tensors to be on the same device, got {where}")
    if on_card and kwargs.get("generator") is not None:
        raise DeviceError(f"{op}: a generator of the CPU cannot draw on the card; draw on the CPU, then move it")

    if packet in WAITING or (packet is aten.repeat_interleave and kwargs.get("output_size") is None):
        count("to_host")
    if packet not in FREE and not op.is_view:
        count("launches")
    result = op(*inner(args), **{name: inner(x) for name, x in kwargs.items() if name != "pin_memory"})
    return outer(result, known) if on_card else result


def copy(target, source, non_blocking=False):
    """`target.copy_(source)`, on the card or between devices."""
    count(COPIES[isinstance(source, CardTensor), isinstance(target, CardTensor)])
    inner(target).copy_(inner(source))
    return target


def to_copy(source, **kwargs):
    """`source.to(...)` where that makes a new tensor, on the card or between devices."""
    on_card = torch.device(kwargs.get("device") or source.device).type == "card"
    count(COPIES[isinstance(source, CardTensor), on_card])
    kwargs = {name: inner(x) for name, x in kwargs.items() if name not in ("non_blocking", "pin_memory")}
    result = aten._to_copy(inner(source), **kwargs)
    return CardTensor(result) if on_card else result


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    """F.scaled_dot_product_attention by the kernel that the CPU would choose; torch knows none for this device."""
    more = {"scale": scale, "enable_gqa": enable_gqa}
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    choice = torch._fused_sdp_choice(*inner((query, key, value, attn_mask)), dropout_p, is_causal, **more)
    if choice == torch.nn.attention.SDPBackend.FLASH_ATTENTION.value:
        flash = aten._scaled_dot_product_flash_attention_for_cpu
        return flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return aten._scaled_dot_product_attention_math(query, key, value, attn_mask, dropout_p, is_causal, None, **more)[0]


def dropout(x, p, train):
    """F.dropout in the steps of the CPU; torch's fused one for cards rounds otherwise."""
    if p == 0 or not train or x.numel() == 0:
        return x
    return x * (torch.zeros_like(x) if p == 1 else torch.empty_like(x).bernoulli_(1 - p).div_(1 - p))


# ----------------------------------------------------------------------------------------- the device

# Under autocast CUDA computes these in half precision, and those in single; the rest in what they get.
HALF = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")
SINGLE = (
    "softmax.int", "log_softmax.int", "nll_loss", "binary_cross_entropy_with_logits", "mse_loss", "layer_norm", "rms_norm",
    "exp", "expm1", "log", "log1p", "pow.Tensor_Scalar", "rsqrt", "reciprocal", "sum", "sum.dim_IntList", "cumsum",
    "norm.Scalar", "logsumexp", "softplus",
)  # fmt: skip
AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def autocast_kernel(op, half):
    def kernel(*args, **kwargs):
        dtype = torch.get_autocast_dtype("card") if half else torch.float32

        def cast(x):
            wanted = isinstance(x, CardTensor) and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
            return x.to(dtype) if wanted else x

        with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
            return op(*map(cast, args), **{name: cast(x) for name, x in kwargs.items()})

    return kernel


class CardStorage(torch.UntypedStorage):
    """What torch.load(..., map_location="card") puts tensors on: the CPU's memory, under the card's name."""

    device = property(lambda self: torch.device("card:0"))


def load_storage(storage, location):
    if location.startswith("card"):
        storage.__class__ = CardStorage
        count("to_card")
        return storage


class Module(backend_registration._DummyBackendModule):
    """`torch.card`. What is drawn on the card comes from the CPU's generator."""

    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: torch.set_rng_state(state))

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]

    def synchronize(self, device=None):
        count("to_host")

    def device(self, index):
        return contextlib.nullcontext()


def register():
    backend_registration._setup_privateuseone_for_python_backend("card", Module())
    every, ours = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(run, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in ("copy_", "_local_scalar_dense", "_to_copy"):  # torch.tensor calls these under __torch_dispatch__
        op = getattr(aten, name).default
        ours.impl(name, lambda *args, op=op, **kwargs: run(op, *args, **kwargs), "PrivateUse1")
    for name, kernel in (("scaled_dot_product_attention", attention), ("dropout", dropout)):
        ours.impl(name, kernel, "AutogradPrivateUse1")
        ours.impl(name, kernel, "PrivateUse1")  # in inference mode
    for name in (*HALF, *SINGLE):
        packet, _, overload = name.partition(".")
        op = getattr(getattr(aten, packet), overload or "default")
        ours.impl(name, autocast_kernel(op, name in HALF), "AutocastPrivateUse1")
    torch.serialization.register_package(5, lambda storage: None, load_storage)
    return every, ours


def keep_identity(compatible):
    """`module.cpu()` asks torch's function `compatible` whether it may set `data`; for a tensor of the card it may."""
    return functools.wraps(compatible)(lambda old, new: isinstance(old, CardTensor) or compatible(old, new))


torch._has_compatible_shallow_copy_type = keep_identity(torch._has_compatible_shallow_copy_type)
LIBRARIES = register()  # they last as long as somebody holds them
