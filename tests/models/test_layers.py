import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rlhf_lib.models.gpt import GPTConfig
from rlhf_lib.models.layers import (
    KVCache,
    RMSNorm,
    attend,
    attend_in_groups,
    causal_mask,
    evaluating,
    last_real,
    pad,
    places,
    rms_norm,
    rotary_table,
    rotate,
    stretched,
)
from rlhf_lib.models.llama import LlamaConfig


def close(a, b, tolerance):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


# -------------------------------------------------------------------------------------------------------------------- batches


def test_rows_are_padded_on_either_side():
    rows = [[5], [1, 2, 3], [4, 4], [8, 0, 9]]
    tokens, mask = pad(rows, "left")
    assert tokens.tolist() == [[0, 0, 5], [1, 2, 3], [0, 4, 4], [8, 0, 9]]
    assert mask.tolist() == [[False, False, True], [True, True, True], [False, True, True], [True, True, True]]
    assert (tokens.dtype, mask.dtype) == (torch.int64, torch.bool)
    tokens, mask = pad(rows, "right")
    assert tokens.tolist() == [[5, 0, 0], [1, 2, 3], [4, 4, 0], [8, 0, 9]]
    assert mask.tolist() == [[True, False, False], [True, True, True], [True, True, False], [True, True, True]]
    assert (tokens.dtype, mask.dtype) == (torch.int64, torch.bool)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=5), st.sampled_from(["left", "right"]))
def test_the_mask_gives_back_the_rows(rows, side):
    tokens, mask = pad([torch.tensor(row) for row in rows], side)
    assert tokens.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert [row[real].tolist() for row, real in zip(tokens, mask)] == rows
    assert (tokens[~mask] == 0).all()
    assert mask[:, -1 if side == "left" else 0].all()


def test_padded_rows_are_put_on_the_device_that_is_asked_for():
    assert {part.device for part in pad([[1], [2, 3]], "left", "meta")} == {torch.device("meta")}


MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]).bool()


def test_last_real_finds_it_behind_padding_on_either_side():
    x = torch.arange(25.0).view(5, 5)
    assert last_real(x, MASK).tolist() == [2, 9, 14, 15, 24]


def test_only_the_last_real_place_has_a_gradient():
    x = torch.ones(5, 5, requires_grad=True)
    (last_real(x, MASK) * torch.tensor([1.0, 2, 3, 4, 5])).sum().backward()
    expected = torch.zeros(5, 5)
    expected[[0, 1, 2, 3, 4], [2, 4, 4, 0, 4]] = torch.tensor([1.0, 2, 3, 4, 5])
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_inside_and_the_mode_is_restored_after_an_error_too(training):
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5))).train(training)
    with evaluating(model) as inside:
        assert inside is model
        assert not any(module.training for module in model.modules())
    assert all(module.training == training for module in model.modules())
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert all(module.training == training for module in model.modules())


def test_a_part_that_was_in_evaluation_mode_stays_in_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))).train()
    model[1].eval()
    with evaluating(model):
        pass
    assert [module.training for module in model.modules()] == [True, True, False, False, False]


# ------------------------------------------------------------------------------------------------------------------ the cache

SHAPE = GPTConfig(layers=2, heads=2, width=12)


def test_a_cache_gives_every_layer_its_own_keys_and_values_in_their_order():
    cache, generator = KVCache(SHAPE, 3, 7), torch.Generator().manual_seed(0)
    whole = torch.randn(2, 2, 3, 2, 6, 6, generator=generator)  # layer, key or value, B, H, S, D
    start = 0
    for size in (3, 1, 2):
        cache.extend(torch.ones(3, size, dtype=torch.bool))
        for layer in (0, 1):
            keys, values = cache.append(layer, *whole[layer, :, :, :, start : start + size])
            assert torch.equal(keys, whole[layer, 0, :, :, : start + size])
            assert torch.equal(values, whole[layer, 1, :, :, : start + size])
        start += size
    assert cache.length == 6


def test_positions_in_a_cache_count_the_real_tokens_of_each_row():
    cache = KVCache(SHAPE, 2, 6)
    first = cache.extend(torch.tensor([[False, False, True], [True, True, True]]))
    assert first.tolist() == [[0, 0, 0], [0, 1, 2]]
    assert cache.extend(torch.ones(2, 2, dtype=torch.bool)).tolist() == [[1, 2], [3, 4]]


def test_a_full_cache_says_so():
    cache = KVCache(SHAPE, 1, 4)
    cache.extend(torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="the cache has room for 4 positions, got 5"):
        cache.extend(torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="the cache has room for 4 positions, got 6"):
        KVCache(SHAPE, 1, 4).extend(torch.ones(1, 6, dtype=torch.bool))


@pytest.mark.parametrize("rows", [[2, 0], [1], torch.tensor([True, False, True])], ids=["reordered", "one", "mask"])
def test_a_cache_keeps_the_rows_that_are_selected(rows):
    cache = KVCache(SHAPE, 3, 4, dtype=torch.bfloat16)
    mask = torch.tensor([[True, True], [False, True], [True, True]])
    cache.extend(mask)
    keys = torch.randn(3, 2, 2, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    cache.append(0, keys, -keys)
    cache.select(rows)
    assert torch.equal(cache.keys[0, :, :, :2], keys[rows]) and torch.equal(cache.values[0, :, :, :2], -keys[rows])
    assert torch.equal(cache.mask[:, :2], mask[rows])
    assert cache.keys.dtype == torch.bfloat16 and cache.length == 2


@settings(deadline=None, max_examples=60)
@given(T=st.integers(1, 6), more=st.integers(0, 5), data=st.data())
def test_a_query_may_look_at_itself_and_at_what_is_real_before_it(T, more, data):
    S = T + more
    real = data.draw(st.none() | st.lists(st.lists(st.booleans(), min_size=S, max_size=S), min_size=1, max_size=3))
    found = causal_mask(T, S, None if real is None else torch.tensor(real), "cpu")
    if found is None:  # attend's own default says the same
        assert real is None and (T == S or T == 1)
        return
    for row, line in enumerate(real or [[True] * S]):
        for t in range(T):
            own = S - T + t
            assert found[row, 0, t].tolist() == [key == own or (key < own and line[key]) for key in range(S)]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=7, max_size=7).filter(any), min_size=1, max_size=3),
    padded=st.booleans(),
    data=st.data(),
)
def test_places_count_the_real_tokens_with_and_without_a_cache(rows, padded, data):
    real = torch.tensor(rows) if padded else torch.ones(len(rows), 7, dtype=torch.bool)
    tokens, mask = torch.zeros(len(rows), 7, dtype=torch.long), real if padded else None
    positions, looks = places(SHAPE, tokens, mask, None)
    expected = [[max(sum(row[: place + 1]) - 1, 0) for place in range(7)] for row in real.tolist()]
    assert positions.expand(len(rows), -1).tolist() == expected
    cache, cut = KVCache(SHAPE, len(rows), 9), data.draw(st.integers(1, 6))
    for part in (slice(0, cut), slice(cut, 7)):
        later, sees = places(SHAPE, tokens[:, part], None if mask is None else mask[:, part], cache)
        assert later.expand(len(rows), -1).tolist() == [row[part] for row in expected]
        if looks is not None and sees is not None:
            wanted = looks[:, :, part, : part.stop]
            assert torch.equal(sees.expand_as(wanted), wanted)


def test_more_tokens_than_the_context_are_refused_with_or_without_a_cache():
    config = GPTConfig(context=5, layers=2, heads=2, width=12)
    message = "^6 tokens are more than the model's context of 5$"
    places(config, torch.zeros(1, 5, dtype=torch.long), None, None)
    with pytest.raises(ValueError, match=message):
        places(config, torch.zeros(1, 6, dtype=torch.long), None, None)
    cache = KVCache(config, 1, 9)
    places(config, torch.zeros(1, 4, dtype=torch.long), None, cache)
    with pytest.raises(ValueError, match=message):
        places(config, torch.zeros(1, 2, dtype=torch.long), None, cache)


numbered = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=5)  # (text or padding, how long)


def packed(pieces):
    """A row of several texts: every piece that is not padding has a number of its own; padding, 0, may stand anywhere."""
    return [number * (kind > 0) for number, (kind, length) in enumerate(pieces, 1) for _ in range(length)]


@settings(deadline=None, max_examples=60)
@given(st.lists(numbered, min_size=1, max_size=3))
def test_of_several_texts_in_a_row_each_sees_itself_alone_and_has_positions_of_its_own(rows):
    rows = [packed(pieces) for pieces in rows]
    size = max(map(len, rows))
    texts = torch.tensor([row + [0] * (size - len(row)) for row in rows])
    positions, mask = places(GPTConfig(context=size), torch.zeros_like(texts), texts, None)
    assert positions.shape == texts.shape and mask.shape == (len(rows), 1, size, size) and mask.dtype == torch.bool
    assert torch.equal(mask, causal_mask(size, size, texts, "cpu"))
    for row, line in enumerate(texts.tolist()):
        for t in range(size):
            if line[t]:
                assert mask[row, 0, t].tolist() == [key <= t and line[key] == line[t] for key in range(size)]
                assert positions[row, t] == t - line.index(line[t])
            else:  # padding sees no text, and is not empty
                assert mask[row, 0, t, t] and not any(mask[row, 0, t, key] and line[key] for key in range(size))


def test_positions_of_texts_in_a_row_by_hand():
    texts = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 3]])
    positions, mask = places(GPTConfig(context=6), torch.zeros_like(texts), texts, None)
    assert positions[texts > 0].tolist() == [0, 1, 2, 0, 1, 0, 0, 1, 2, 3, 0]
    assert mask[1, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_bool_mask_is_one_text_with_padding(side):
    """The numbers 0 and 1 say what False and True do, wherever a token is real."""
    tokens, mask = pad([[5], [1, 2, 3], [4, 4]], side)
    positions, seen = places(GPTConfig(context=3), tokens, mask, None)
    other_positions, other_seen = places(GPTConfig(context=3), tokens, mask.long(), None)
    assert torch.equal(positions[mask], other_positions[mask])
    assert torch.equal(seen[:, 0][mask], other_seen[:, 0][mask])


def test_texts_in_a_row_longer_than_the_context_are_refused_together():
    texts = torch.tensor([[1, 1, 2, 2]])
    with pytest.raises(ValueError, match="4 tokens are more than the model's context of 3"):
        places(GPTConfig(context=3), texts, texts, None)


# ------------------------------------------------------------------------------------------------------------ rotary positions


def slow_turn(x, position):
    """Rotary positions as a product of complex numbers: the pair (x[i], x[i + D/2]) is one of them."""
    half = len(x) // 2
    angles = torch.tensor([position * 10000 ** (-i / half) for i in range(half)], dtype=torch.float64)
    turned = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones(half, dtype=torch.float64), angles)
    return torch.cat([turned.real, turned.imag])


@settings(deadline=None, max_examples=50)
@given(
    first=st.integers(0, 100),
    second=st.integers(0, 100),
    shift=st.integers(0, 100),
    half=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_rotary_products_depend_on_the_distance_alone(first, second, shift, half, seed):
    config = GPTConfig(width=2 * half, heads=1)
    q, k = torch.randn(2, 1, 1, 1, 2 * half, generator=torch.Generator().manual_seed(seed))

    def product(i, j):
        i, j = torch.tensor([[i]]), torch.tensor([[j]])
        return (rotate(q, rotary_table(config, i)) * rotate(k, rotary_table(config, j))).sum()

    close(product(first + shift, second + shift), product(first, second), 5e-4)
    close(product(first, first), (q * k).sum(), 5e-4)
    by_hand = slow_turn(q.flatten().double(), first) @ slow_turn(k.flatten().double(), second)
    close(product(first, second).double(), by_hand, 5e-4)


def test_a_quarter_turn_by_hand():
    """With two coordinates the only frequency is 1: position p turns by p radians."""
    config = GPTConfig(width=2, heads=1)
    turned = rotate(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), rotary_table(config, torch.tensor([[math.pi / 2]])))
    close(turned.flatten(), torch.tensor([0.0, 1.0]), 1e-6)


@pytest.mark.parametrize("base", [10.0, 500000.0])
def test_the_base_says_how_fast_each_pair_turns(base):
    """Pair i of D/2 turns by base^(-i / (D/2)) radians a position."""
    config = LlamaConfig(width=16, heads=2, kv_heads=1, rope_base=base)
    cos, sin = rotary_table(config, torch.tensor([[0, 1, 7]]))
    angles = [[place * base ** (-i / 4) for i in range(4)] for place in (0, 1, 7)]
    close(cos[0, 0], torch.tensor([[math.cos(angle) for angle in row] for row in angles]), 1e-5)
    close(sin[0, 0], torch.tensor([[math.sin(angle) for angle in row] for row in angles]), 1e-5)
    assert cos.shape == sin.shape == (1, 1, 3, 4)


def test_waves_are_stretched_by_hand():
    """Into a context of 100, waves of 10, 50, 80 and 200 fit 10, 2, 1.25 and 0.5 times. At low 1 and high 4 the first stays, the
    last is halved, and of the others 1/3 and 1/12 stay."""
    waves = torch.tensor([10.0, 50.0, 80.0, 200.0])
    found = stretched(2 * math.pi / waves, factor=2.0, low=1.0, high=4.0, original=100)
    close(found * waves / (2 * math.pi), torch.tensor([1.0, 2 / 3, 13 / 24, 0.5]), 1e-6)


@settings(deadline=None, max_examples=40)
@given(st.floats(1, 64), st.floats(0.5, 2), st.floats(2.5, 9), st.integers(8, 9000), st.integers(2, 40))
def test_stretching_slows_every_wave_by_a_factor_between_1_and_all_of_it_and_keeps_their_order(factor, low, high, original, half):
    plain = 10000.0 ** (-torch.arange(half) / half)
    found = stretched(plain, factor, low, high, original)
    ratio = plain / found
    assert (ratio >= 1 - 1e-5).all() and (ratio <= factor * (1 + 1e-5)).all()
    assert (ratio.diff() >= -1e-4 * factor).all()  # the slower a wave, the more
    turns = original * plain / (2 * math.pi)
    close(found[turns >= high], plain[turns >= high], 1e-7)
    close(found[turns <= low], plain[turns <= low] / factor, 1e-7)
    config = LlamaConfig(width=2 * half, heads=1, kv_heads=1, rope_base=10000.0)
    config.rope_scaling = dict(factor=factor, low=low, high=high, original=original)
    close(rotary_table(config, torch.tensor([[1]]))[1][0, 0, 0], found.sin(), 1e-6)


def test_rotating_keeps_the_type_of_what_it_turns():
    config = GPTConfig(width=8, heads=1)
    x, table = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(0)), rotary_table(config, torch.arange(5)[None])
    assert rotate(x.bfloat16(), table).dtype == torch.bfloat16
    close(rotate(x.bfloat16(), table).float(), rotate(x, table), 0.05)


# ------------------------------------------------------------------------------------------------------------------ attention


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(*(st.integers(1, 4) for _ in range(2)), st.integers(1, 9), st.integers(1, 8)),
    more=st.integers(0, 6),
    kind=st.sampled_from(("causal", "one", "mask", "one mask for all rows")),
    seed=st.integers(0, 99),
)
def test_attend_equals_pytorchs_own_attention_and_so_does_its_gradient(shape, more, kind, seed):
    B, H, T, D = shape
    T, S = {"causal": (T, T), "one": (1, T + more)}.get(kind, (T, T + more))
    generator = torch.Generator().manual_seed(seed)

    def draw(size):
        return torch.randn(B, H, size, D, generator=generator, dtype=torch.float64, requires_grad=True)

    q, k, v = draw(T), draw(S), draw(S)
    mask = None
    if "mask" in kind:
        mask = torch.rand(B if kind == "mask" else 1, 1, T, S, generator=generator) < 0.5
        mask[..., 0] = True  # no row is empty
    mine = attend(q, k, v, mask)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=kind == "causal")
    torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn(mine.shape, generator=generator, dtype=torch.float64)
    grads = [torch.autograd.grad((y * weight).sum(), (q, k, v)) for y in (mine, expected)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    B=st.integers(1, 3),
    KV=st.integers(1, 3),
    G=st.integers(1, 4),
    T=st.integers(1, 6),
    more=st.integers(0, 5),
    masked=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
def test_queries_share_key_value_heads_in_groups(B, KV, G, T, more, masked, strided, seed):
    """One head at a time: head h attends to the key-value head h // G; the gradient too."""
    S, generator = T + (more if masked or T == 1 else 0), torch.Generator().manual_seed(seed)

    def draw(heads, size):  # as models have them: (B, T, H, D) turned, or contiguous
        x = torch.randn(B, size, heads, 4, generator=generator, dtype=torch.float64).transpose(1, 2)
        return (x if strided else x.contiguous()).requires_grad_()

    q, k, v = draw(KV * G, T), draw(KV, S), draw(KV, S)
    mask = None
    if masked:
        mask = torch.rand(B, 1, T, S, generator=generator) < 0.5
        mask[..., 0] = True
    found = attend_in_groups(q, k, v, mask)
    heads = [attend(q[:, h : h + 1], k[:, h // G : h // G + 1], v[:, h // G : h // G + 1], mask) for h in range(KV * G)]
    expected = torch.cat(heads, dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    grads = [torch.autograd.grad((y * weight).sum(), (q, k, v)) for y in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
def test_attend_is_the_same_on_either_side_of_the_size_where_the_fused_kernel_takes_over(masked):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 300, 8, generator=generator)
    mask = torch.rand(1, 1, 300, 300, generator=generator) < 0.5
    mask = (mask | torch.eye(300, dtype=torch.bool)).tril() if masked else None
    with mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as fused:
        whole = attend(q, k, v, mask)  # 300 x 300 scores
        assert fused.call_count == 1
        part = attend(*(x[:, :, :200] for x in (q, k, v)), mask[..., :200, :200] if masked else None)
        assert fused.call_count == 1
    torch.testing.assert_close(whole[:, :, :200], part, rtol=1e-5, atol=1e-6)


def test_attend_in_bfloat16_is_as_exact_as_the_fused_kernel_up_to_the_rounding_of_its_scores():
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 8, 4, 128, 64, generator=generator, dtype=torch.float64)
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        mine = attend(*(x.bfloat16() for x in (q, k, v)))
    fused = F.scaled_dot_product_attention(*(x.bfloat16() for x in (q, k, v)), is_causal=True)
    errors = [(y.double() - exact).square().mean().sqrt().item() for y in (mine, fused)]
    assert errors[0] < 2 * errors[1] < 0.01


def test_attend_leaves_weights_out_at_the_rate_of_dropout_and_keeps_their_mean():
    torch.manual_seed(0)
    q, k, v = torch.zeros(64, 1, 16, 4), torch.zeros(64, 1, 16, 4), torch.eye(16)[:, :4].expand(64, 1, 16, 4)
    seen = attend(q, k, v, torch.ones(1, 1, 16, 16, dtype=torch.bool), dropout=0.25)  # every weight is 1/16, or left out
    assert sorted(seen.unique().tolist()) == pytest.approx([0, 1 / 12])
    assert (seen == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


# -------------------------------------------------------------------------------------------------------------- normalisation


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 5), max_size=3).flatmap(lambda some: st.integers(1, 40).map(lambda C: (*some, C))),
    weighted=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
    eps=st.sampled_from([1e-6, 1e-2]),
    seed=st.integers(0, 999),
)
def test_rms_norm_equals_pytorchs_own_and_so_do_its_gradients(shape, weighted, scale, eps, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (scale * torch.randn(shape, generator=generator)).requires_grad_()
    weight = torch.randn(shape[-1], generator=generator).requires_grad_() if weighted else None
    factor, wanted = torch.randn(shape, generator=generator), (x, weight) if weighted else (x,)
    sides = []
    for norm, dtype in ((rms_norm, torch.float32), (lambda x, w, eps: F.rms_norm(x, x.shape[-1:], w, eps), torch.float64)):
        y = norm(x.to(dtype), weight.to(dtype) if weighted else None, eps)
        sides.append([y.float(), *torch.autograd.grad((y * factor).sum(), wanted)])
    for one, other in zip(*sides, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("eps", [1e-6, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 1, 3, 4), (4, 1)])
def test_the_gradient_of_rms_norm_is_the_slope_of_what_it_computes(shape, weighted, eps):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    if weighted:
        weight = torch.randn(shape[-1], generator=generator, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, weight: RMSNorm.apply(x, weight, eps), (x, weight))
    else:
        assert torch.autograd.gradcheck(lambda x: RMSNorm.apply(x, None, eps), x)


def test_rms_norm_by_hand():
    """The mean square of 3 and 4 is 12.5; with eps 3.5 the root is 4."""
    x = torch.tensor([3.0, 4.0])
    close(rms_norm(x, eps=3.5), x / 4, 1e-6)
    close(rms_norm(x, torch.tensor([2.0, -1.0]), eps=3.5), torch.tensor([1.5, -1.0]), 1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_rms_norm_of_zeros_is_zero_and_its_gradient_is_that_of_eps_alone(weighted):
    x = torch.zeros(2, 4, requires_grad=True)
    weight = torch.tensor([1.0, 2, 3, 4]) if weighted else None
    y = rms_norm(x, weight, eps=1e-4)
    y.sum().backward()
    assert (y == 0).all()
    expected = 100 * (weight if weighted else torch.ones(4))  # 1 / sqrt(1e-4)
    torch.testing.assert_close(x.grad, expected.expand(2, 4), rtol=1e-5, atol=0)


STRIDES = {  # (6, 4) each, as they come out of transposing, broadcasting and slicing
    "transposed": lambda generator: torch.randn(4, 6, generator=generator).T,
    "expanded over rows": lambda generator: torch.randn(1, 4, generator=generator).expand(6, 4),
    "expanded over both": lambda generator: torch.randn(1, 1, generator=generator).expand(6, 4),
    "every other one": lambda generator: torch.randn(12, 8, generator=generator)[::2, ::2],
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", STRIDES)
def test_rms_norm_takes_inputs_and_gradients_that_are_not_contiguous(name, weighted):
    generator = torch.Generator().manual_seed(0)
    strided, plain = STRIDES[name](generator), torch.randn(6, 4, generator=generator)
    weight = torch.randn(4, generator=generator, requires_grad=True) if weighted else None
    assert not strided.is_contiguous()
    for value, gradient in ((plain, strided), (strided, plain), (strided, strided)):
        x = value.detach().requires_grad_()
        assert x.stride() == value.stride()
        wanted = (x, weight) if weighted else (x,)
        found = torch.autograd.grad(rms_norm(x, weight), wanted, gradient)
        expected = torch.autograd.grad(F.rms_norm(x, (4,), weight, 1e-6), wanted, gradient)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_rms_norm_leaves_what_it_is_given_as_it_is():
    x, weight, gradient = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    given, before = (x.requires_grad_(), gradient), (x.detach().clone(), gradient.clone())
    rms_norm(x, weight[0]).backward(gradient)
    assert all(map(torch.equal, given, before))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rms_norm_in_other_types_is_pytorchs_own(dtype):
    x, weight = torch.randn(9, 8, generator=torch.Generator().manual_seed(0)).to(dtype).split([8, 1])
    with mock.patch.object(RMSNorm, "apply", wraps=RMSNorm.apply) as own:
        found = rms_norm(x, weight[0])
        assert own.call_count == 0
        rms_norm(x.float(), weight[0].float())
        assert own.call_count == 1
    assert found.dtype == dtype and torch.equal(found, F.rms_norm(x, (8,), weight[0], 1e-6))


def test_rms_norm_has_no_second_derivative_and_says_so():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (first,) = torch.autograd.grad(rms_norm(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()
