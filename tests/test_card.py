import copy
import io
import math
from pathlib import Path

import card
import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.sampling import generate

SMALL = dict(vocab_size=61, context=32, layers=2, heads=2, width=32)
CONFIGS = {"modern": GPTConfig(**SMALL, dropout=0.15), "gpt2": GPTConfig.gpt2(**SMALL)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def grid(device="card"):
    return torch.arange(6.0).view(2, 3).to(device)


def same(first, second):
    """Whether two tensors, or lists of them, hold the same numbers, wherever they are."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first.detach().cpu(), second.detach().cpu())
    return len(first) == len(second) and all(map(same, first, second))


# ----------------------------------------------------------------------------------------- what is refused

MIXED = {
    "sum": lambda x: x + x.cpu(),
    "sum of a number there and a tensor here": lambda x: x.sum() + x.cpu(),
    "concatenation": lambda x: torch.cat([x.cpu(), x]),
    "matrix product": lambda x: x.cpu() @ x.T,
    "where": lambda x: torch.where(x.cpu() > 2, x, 0),
    "gather": lambda x: x.gather(1, torch.zeros(2, 1, dtype=torch.long)),
    "embedding": lambda x: F.embedding(torch.tensor([0, 1]), x),
    "values": lambda x: x.index_put((torch.tensor([0], device="card"),), torch.zeros(1, 3)),
    "indices there into a tensor here": lambda x: x.cpu()[torch.tensor([0], device="card")],
    "change of a tensor here": lambda x: torch.tensor(1.0).add_(x.sum()),
    "a module here": lambda x: nn.Linear(3, 2)(x),
    "loss": lambda x: F.mse_loss(x, x.cpu()),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_tensor_of_the_cpu_beside_one_of_the_card_is_refused(name):
    with pytest.raises(card.DeviceError, match=r"expected all tensors to be on the same device, got .* on cpu"):
        MIXED[name](grid())


def test_a_generator_of_the_cpu_cannot_draw_on_the_card():
    for draw in (
        lambda: torch.rand(2, generator=seeded(), device="card"),
        lambda: torch.randperm(3, generator=seeded(), device="card"),
        lambda: torch.multinomial(grid() + 1, 1, generator=seeded()),
    ):
        with pytest.raises(card.DeviceError, match="generator"):
            draw()


def test_numpy_is_refused_until_the_tensor_is_brought_over():
    import numpy as np

    for convert in (lambda x: x.numpy(), np.asarray):
        with pytest.raises(TypeError, match=r"can't convert card:0 device type tensor to numpy"):
            convert(grid())
    assert grid().cpu().numpy().shape == (2, 3)
    assert f"{grid().max():.1f}" == f"{grid().max().item():.1f}"


def test_what_cuda_allows_is_allowed():
    x = grid()
    assert same(x + torch.tensor(1.0), grid("cpu") + 1)
    assert same(x[torch.tensor([1, 0])], grid("cpu")[[1, 0]])
    assert same(x[torch.tensor([True, False])], grid("cpu")[:1])
    x[0] = torch.zeros(3)  # a copy
    x[1, 1] = 7
    x[x > 6] = 0
    assert x.tolist() == [[0, 0, 0], [3, 0, 5]]


# ----------------------------------------------------------------------------------------- what is counted


def filled(x, value):
    x[x > 2] = value


COUNTED = {  # copies to the card, waits for it, and launches at least
    "a sum": (lambda x: x + x, 0, 0, 1),
    "views": (lambda x: x.T.unsqueeze(0)[:, 1:].expand(4, -1, -1).detach(), 0, 0, 0),
    "a matrix product": (lambda x: x @ x.T, 0, 0, 1),
    "item": (lambda x: x[0, 1].item(), 0, 1, 0),
    "float": (lambda x: float(x[0, 1]), 0, 1, 0),
    "tolist": (lambda x: x.tolist(), 0, 1, 0),
    "bool": (lambda x: bool(x[0, 1]), 0, 1, 0),
    "if": (lambda x: 1 if (x > 1).any() else 0, 0, 1, 2),
    "cpu": (lambda x: x.cpu(), 0, 1, 0),
    "cpu and dtype": (lambda x: x.to("cpu", torch.float64), 0, 1, 0),
    "numbers one by one": (lambda x: [int(number) for number in x[0]], 0, 3, 0),
    "a copy from the card": (lambda x: torch.zeros(2, 3).copy_(x), 0, 1, 0),
    "a mask": (lambda x: x[x > 2], 0, 1, 2),
    "two masks": (lambda x: x[x[:, 0] > 0, x[0] > 1], 0, 2, 3),
    "a mask of the CPU": (lambda x: x[x.cpu() > 2], 1, 1, 1),
    "a mask filled with a number": (lambda x: filled(x, 0), 0, 0, 2),
    "a mask filled with a tensor": (lambda x: filled(x, x.new_zeros(3)), 0, 1, 2),
    "masked_fill": (lambda x: x.masked_fill(x > 2, 0), 0, 0, 2),
    "nonzero": (lambda x: x.nonzero(), 0, 1, 1),
    "where without values": (lambda x: torch.where(x > 2), 0, 1, 2),
    "masked_select": (lambda x: x.masked_select(x > 2), 0, 1, 2),
    "unique": (lambda x: x.unique(), 0, 1, 1),
    "repeat_interleave": (lambda x: x[0].repeat_interleave(torch.tensor([1, 0, 2], device="card")), 1, 1, 1),
    "equal": (lambda x: torch.equal(x, x), 0, 1, 1),
    "allclose": (lambda x: torch.allclose(x, x), 0, 1, 1),
    "a number as index": (lambda x: x[torch.tensor(1, device="card")], 1, 1, 0),
    "indices": (lambda x: x[x[0].argmax(keepdim=True) * 0], 0, 0, 3),
    "indices of the CPU": (lambda x: x[torch.tensor([0])], 1, 0, 1),
    "to the card": (lambda x: torch.zeros(3).to("card"), 1, 0, 0),
    "to where it is": (lambda x: x.to("card"), 0, 0, 0),
    "another dtype": (lambda x: x.double(), 0, 0, 1),
    "a tensor out of a list": (lambda x: torch.tensor([1, 2], device="card"), 1, 0, 0),
    "zeros": (lambda x: torch.zeros(3, device="card"), 0, 0, 1),
    "waiting": (lambda x: torch.card.synchronize(), 0, 1, 0),
    "what is not on the card": (lambda x: torch.ones(3).sum().item(), 0, 0, 0),
}


@pytest.mark.parametrize("name", COUNTED)
def test_copies_waits_and_launches_are_counted(name):
    act, *expected = COUNTED[name]
    x = grid()
    with card.counting() as counts:
        act(x)
    assert [counts.to_card, counts.to_host] == expected[:2], counts
    assert counts.launches >= expected[2] and bool(counts.launches) == bool(expected[2]), counts.lines
    with card.counting() as after:
        pass
    x.tolist()
    assert after.to_host == 0  # the block is over


def test_counts_say_which_line():
    with card.counting() as outer:
        model = GPT(CONFIGS["modern"]).to("card")
        with card.counting() as counts:
            generate(model, [[1, 2], [3]], 4, generator=seeded())
    assert len(counts.lines["to_host"]) == counts.to_host == 1
    file, line = next(iter(counts.lines["to_host"])).split(":")
    text = (Path(card.ROOT) / file).read_text().splitlines()
    assert file == "rlhf_lib/models/layers.py" and "bool(mask.all())" in text[int(line) - 1]
    assert outer.to_card == counts.to_card + len(list(model.parameters()))
    assert outer.lines["to_card"][f"tests/test_card.py:{test_counts_say_which_line.__code__.co_firstlineno + 2}"] > 1
    assert "to_host 1" in repr(counts) and "2 to_card rlhf_lib/models/layers.py" in repr(counts)


def test_what_a_backward_pass_does_belongs_to_the_line_that_called_it():
    x = grid().requires_grad_()
    loss = x[x.detach() > 2].sum()
    with card.counting() as counts:
        loss.backward()
    assert counts.to_host == 1 and next(iter(counts.lines["to_host"])).startswith("tests/test_card.py:")
    assert counts.launches > 1 and len(counts.lines["launches"]) == 1


# ----------------------------------------------------------------------------------------- numbers

FACTORIES = {
    "zeros": lambda d: torch.zeros(2, 3, device=d),
    "ones": lambda d: torch.ones(2, dtype=torch.bool, device=d),
    "full": lambda d: torch.full((2,), 3, device=d),
    "arange": lambda d: torch.arange(1, 7, 2, device=d),
    "linspace": lambda d: torch.linspace(0, 1, 4, device=d),
    "eye": lambda d: torch.eye(3, dtype=torch.bool, device=d),
    "tril": lambda d: torch.ones(3, 4, dtype=torch.bool, device=d).tril(1),
    "triu_indices": lambda d: torch.triu_indices(3, 3, offset=1, device=d),
    "tensor": lambda d: torch.tensor([[1.0, 2.0]], device=d),
    "number": lambda d: torch.tensor(2.5, device=d),
    "as_tensor": lambda d: torch.as_tensor([1, 2], device=d),
    "new_tensor": lambda d: torch.zeros(1, device=d).new_tensor(math.inf),
    "zeros_like": lambda d: torch.zeros_like(torch.ones(3), device=d),
    "empty": lambda d: torch.empty(3, device=d).fill_(1),
    "rand": lambda d: torch.rand(7, device=d),
    "randn": lambda d: torch.randn(7, device=d),
    "randint": lambda d: torch.randint(9, (7,), device=d),
    "randperm": lambda d: torch.randperm(7, device=d),
    "normal_": lambda d: torch.empty(7, device=d).normal_(std=0.02),
    "bernoulli": lambda d: torch.full((9,), 0.5, device=d).bernoulli(),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_factories_make_the_numbers_of_the_cpu(name):
    made = []
    for device in ("cpu", "card"):
        torch.manual_seed(3)
        made.append(FACTORIES[name](device))
        assert made[-1].device.type == device
    assert made[0].shape == made[1].shape and same(*made)


OPERATORS = {
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "cumsum": lambda x: x.cumsum(-1),
    "sort": lambda x: x.sort(-1, descending=True)[0],
    "topk": lambda x: x.topk(3).values,
    "argsort": lambda x: x.argsort(stable=True),
    "scatter": lambda x: x * torch.zeros_like(x).scatter(-1, x.topk(2).indices, 1.0),
    "gather": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    "searchsorted": lambda x: torch.searchsorted(x.exp().cumsum(-1), x[:, :1].exp().contiguous(), right=True),
    "index_put": lambda x: x.index_put((x[:, 0].argsort(),), x[:1], accumulate=True),
    "multinomial": lambda x: x.softmax(-1).multinomial(2),
    "dropout": lambda x: F.dropout(x, 0.15),
    "rms_norm": lambda x: F.rms_norm(x, (8,)),
    "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "quantile": lambda x: x.quantile(0.9),
    "flip": lambda x: x.flip(1).cumsum(1).flip(1),
    "nextafter": lambda x: torch.nextafter(x, torch.zeros_like(x)),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.view(1, 1, 5, 8)] * 3, is_causal=True),
    "attention, dropout": lambda x: F.scaled_dot_product_attention(*[x.view(1, 1, 5, 8)] * 3, dropout_p=0.3),
    "attention, mask": lambda x: F.scaled_dot_product_attention(
        *[x.view(1, 1, 5, 8)] * 3, attn_mask=torch.ones(5, 5, dtype=torch.bool, device=x.device).tril()
    ),
    "attention, mask and dropout": lambda x: F.scaled_dot_product_attention(
        *[x.view(1, 1, 5, 8)] * 3, attn_mask=torch.ones(5, 5, dtype=torch.bool, device=x.device).tril(), dropout_p=0.3
    ),
    "metadata in place": lambda x: x.clone().unsqueeze_(0).transpose_(1, 2).squeeze_(0),
    "inference": torch.inference_mode()(lambda x: F.dropout(x * 2, 0.5)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_and_their_gradients_give_the_numbers_of_the_cpu(name):
    outcomes = []
    for device in ("cpu", "card"):
        x = torch.randn(5, 8, generator=seeded()).to(device).requires_grad_()
        torch.manual_seed(1)
        y = OPERATORS[name](x)
        if y.requires_grad:
            y.square().sum().backward()
        outcomes.append([y, x if x.grad is None else x.grad])
        assert y.device.type == device
    assert outcomes[0][0].shape == outcomes[1][0].shape and same(*outcomes)


OPTIMISERS = {
    "SGD": lambda model: [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)],
    "Adam": lambda model: [torch.optim.Adam(model.parameters(), lr=1e-2)],
    "AdamW": lambda model: [torch.optim.AdamW(model.parameters(), lr=1e-2)],
    "AdamW, foreach": lambda model: [torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=True)],
    "AdamW, fused": lambda model: [torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)],
    "Muon": lambda model: [torch.optim.Muon([p for p in model.blocks.parameters() if p.dim() == 2], lr=1e-2)],
}


def trained(config, optimiser, device, steps=2):
    """A GPT after some steps on made-up tokens, and its losses."""
    torch.manual_seed(0)
    model = GPT(config).to(device)
    optimisers = OPTIMISERS[optimiser](model)
    tokens = torch.randint(config.vocab_size, (4, 13), generator=seeded(1)).to(device)
    mask = torch.ones(4, 12, dtype=torch.bool)
    mask[0, :3] = False
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(tokens[:, :-1], mask.to(device)).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimisers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_training_and_sampling_give_the_numbers_of_the_cpu(config, optimiser):
    with card.no_cpu_branches():
        there, losses_there = trained(CONFIGS[config], optimiser, "card")
        here, losses_here = trained(CONFIGS[config], optimiser, "cpu")
        assert losses_there == losses_here
        assert all(same(p, q) for p, q in zip(there.parameters(), here.parameters(), strict=True))
        prompts = [[1, 2, 3], [4]]
        drawn = [generate(model, prompts, 12, generator=seeded(2), end_token=5) for model in (there, here)]
        assert same(*drawn) and drawn[0].tokens.device.type == "card"
    assert torch.zeros(1).is_cpu


# ----------------------------------------------------------------------------------------- modules, files, precision


def test_a_module_keeps_its_parameters_where_it_goes():
    model = GPT(CONFIGS["gpt2"])
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # made first, as one may
    for device in ("card", "cpu", "card"):
        model.to(device)
        assert all(p is before[name] and isinstance(p, nn.Parameter) for name, p in model.named_parameters())
        assert model.head.weight is model.embedding.weight and model.head.weight.device.type == device
        tokens = torch.tensor([[1, 2]], device=device)
        assert model.head.weight.grad is None or model.head.weight.grad.device.type == device
        model(tokens).sum().backward()
        optimizer.step()
    twin = copy.deepcopy(model)
    assert twin.head.weight is twin.embedding.weight and isinstance(twin.head.weight, nn.Parameter)
    with torch.no_grad():
        twin.head.weight.zero_()
    assert model.head.weight.any() and twin.half().head.weight.inner.dtype == torch.float16


def test_setting_data_changes_the_numbers():
    x = nn.Parameter(grid())
    x.data = x.data * 2
    x.data.add_(1)
    assert same(x, grid("cpu") * 2 + 1)


@pytest.mark.parametrize("made", ["cpu", "card"])
@pytest.mark.parametrize("wanted", ["cpu", "card", None])
def test_files_are_read_where_they_are_wanted(made, wanted):
    model = nn.Linear(3, 2).to(made)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, device=made)).sum().backward()
    optimizer.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "x": grid(made)[1:]}, file)
    file.seek(0)
    state = torch.load(file, map_location=wanted, weights_only=True)
    assert state["x"].device.type == (wanted or made) and state["x"].tolist() == [[3, 4, 5]]
    twin = nn.Linear(3, 2).to("card")
    other = torch.optim.AdamW(twin.parameters())
    twin.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    for step in (optimizer.step, other.step):
        for p, q in zip(model.parameters(), twin.parameters()):
            p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        step()
    assert all(map(same, model.parameters(), twin.parameters()))
    weights = load(save({name: tensor.cpu() for name, tensor in twin.state_dict().items()}))
    assert same(weights["weight"], twin.weight)


def test_autocast_halves_products_and_keeps_losses_single():
    layer, x = nn.Linear(3, 3).to("card"), grid()
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("card", dtype):
            logits = layer(x)
            assert logits.dtype == dtype and (x @ x.T).dtype == dtype and (x + x).dtype == torch.float32
            loss = F.cross_entropy(logits, torch.tensor([0, 1], device="card"))
            assert loss.dtype == logits.softmax(-1).dtype == torch.float32
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32  # not on the card
        loss.backward()
        assert layer.weight.grad.dtype == torch.float32
    assert layer(x).dtype == torch.float32


def test_a_gradient_scaler_waits_once_a_step():
    layer, x = nn.Linear(3, 3).to("card"), grid()
    scaler = torch.amp.GradScaler("card", init_scale=8.0)
    optimizer = torch.optim.AdamW(layer.parameters())
    before = layer.weight.detach().clone()
    for _ in range(2):
        with card.counting() as counts:
            with torch.autocast("card", torch.float16):
                loss = layer(x).square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert counts.to_host == 1 and not torch.equal(before, layer.weight)


def test_printing_and_forked_random_states_work():
    assert repr(grid()[0]) == "CardTensor(tensor([0., 1., 2.]))" and "nan" in f"{grid() / 0}"
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with torch.random.fork_rng():
        torch.rand(5, device="card")
    assert same(torch.rand(2, device="card"), expected)
