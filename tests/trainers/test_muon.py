import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rlhf_lib.trainers import muon
from rlhf_lib.trainers.muon import Muon, orthogonalise

SHAPES = [(8, 8), (24, 8), (8, 32), (1, 5)]


def matrices(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def stepped(optimizer, params, steps=4, seed=1):
    """The matrices after some steps on drawn gradients."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator) * torch.rand((), generator=generator)
        optimizer.step()
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("changes", [{}, {"momentum": 0.8}, {"weight_decay": 0.3}, {"lr": 0.5, "weight_decay": 0.1}])
def test_where_bf16_is_native_it_is_torchs_muon_to_the_last_bit(monkeypatch, changes):
    monkeypatch.setattr(muon, "has_bf16", lambda device: True)
    options = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.0, **changes}
    ours, theirs = matrices(), matrices()
    expected = stepped(torch.optim.Muon(theirs, **options), theirs)
    found = stepped(Muon(ours, **options), ours)
    assert all(map(torch.equal, found, expected))
    assert not any(map(torch.equal, found, matrices()))


def test_elsewhere_it_computes_in_float32_and_comes_close(monkeypatch):
    moves = {}
    for native in (True, False):
        monkeypatch.setattr(muon, "has_bf16", lambda device, native=native: native)
        params = matrices()
        moves[native] = [q - p for p, q in zip(matrices(), stepped(Muon(params, lr=0.02), params, steps=1))]
    for rough, fine in zip(moves[True], moves[False], strict=True):
        assert not torch.equal(rough, fine)
        torch.testing.assert_close(rough, fine, rtol=0, atol=0.05 * 0.02 * 24**0.5)  # a twentieth of the largest singular value


@given(st.integers(1, 12), st.integers(1, 12), st.floats(1e-3, 1e3), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_the_directions_stay_and_their_sizes_come_to_about_1(rows, columns, size, seed):
    """The oracle is a singular value decomposition; what is far below the largest is not lifted all the way."""
    update = size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    left, values, right = torch.linalg.svd(update, full_matrices=False)
    found = left.T @ orthogonalise(update) @ right.T
    assert found.shape == (len(values), len(values))
    lifted = found.diagonal()
    assert ((lifted > 0.65) & (lifted < 1.25))[values > 0.03 * values.norm()].all()
    torch.testing.assert_close(found - torch.diag(lifted), torch.zeros_like(found), rtol=0, atol=2e-3)


def test_orthogonalise_by_hand():
    """One step on a singular value x: 3.4445 x - 4.775 x^3 + 2.0315 x^5, with 3 and 4 over their norm of 5."""
    x = torch.tensor([0.6, 0.8], dtype=torch.float64)
    expected = 3.4445 * x - 4.775 * x**3 + 2.0315 * x**5
    update = torch.tensor([[0.0, 3.0, 0.0], [-4.0, 0.0, 0.0]])
    found = orthogonalise(update, steps=1)
    assert found.dtype == torch.float32
    assert found[0, 1].item() == pytest.approx(expected[0].item(), rel=1e-6)
    assert found[1, 0].item() == pytest.approx(-expected[1].item(), rel=1e-6)
    assert torch.equal(found == 0, update == 0)
    assert torch.equal(orthogonalise(update.T, steps=1), found.T)
    assert orthogonalise(update, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_zero_gradient_moves_nothing_and_gives_no_nan():
    params = matrices()
    for p in params:
        p.grad = torch.zeros_like(p)
    Muon(params, lr=0.1).step()
    assert all(map(torch.equal, params, matrices()))


def test_a_matrix_without_a_gradient_stays():
    params = matrices()
    params[0].grad = torch.ones_like(params[0])
    Muon(params, lr=0.1, weight_decay=0.5).step()
    assert [torch.equal(p, q) for p, q in zip(params, matrices())] == [False, True, True, True]


def test_what_was_saved_is_gone_on_with():
    params = matrices()
    optimizer = Muon(params, lr=0.02)
    stepped(optimizer, params)
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    twin = Muon(twins, lr=0.5)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(map(torch.equal, stepped(optimizer, params, seed=2), stepped(twin, twins, seed=2)))


def test_a_matrix_gets_its_momentum_once(monkeypatch):
    made, real = [], torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda p: made.append(p.shape) or real(p))
    params = matrices()
    stepped(Muon(params, lr=0.02), params, steps=3)
    assert made == SHAPES
