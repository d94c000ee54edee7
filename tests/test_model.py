import itertools
import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lib.model import GPT, Attention, GPTConfig, KVCache, Norm, attend, gpt2_weights, rotary_table, rotate

V, CONTEXT = 13, 16
CHOICES = {
    "positions": ("rotary", "learned"),
    "norm": ("rmsnorm", "layernorm"),
    "activation": ("relu2", "gelu"),
    "qk_norm": (True, False),
    "bias": (False, True),
    "tied": (False, True),
}
STYLES = [dict(zip(CHOICES, values)) for values in itertools.product(*CHOICES.values())]
every_style = pytest.mark.parametrize("style", STYLES, ids=lambda style: "-".join(map(str, style.values())))
both_positions = pytest.mark.parametrize("positions", CHOICES["positions"])


def random_gpt(seed=0, **changes):
    """A tiny GPT, in evaluation mode, whose every weight is random and large enough to matter, biases and norms included."""
    config = GPTConfig(**{**dict(vocab_size=V, context=CONTEXT, layers=2, heads=2, width=12), **changes})
    model = GPT(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.3, generator=generator)
            if "norm" in name and name.endswith("weight"):
                p.add_(1.0)
    return model.requires_grad_(False)


def random_tokens(batch, length, seed=0):
    return torch.randint(0, V, (batch, length), generator=torch.Generator().manual_seed(seed))


def side_by_side(rows, side, seed=1):
    """Rows of tokens as one batch, padded with arbitrary tokens (not zeros) on one side, and the mask of the real ones."""
    longest = max(map(len, rows))
    tokens = random_tokens(len(rows), longest, seed)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, own in enumerate(rows):
        where = slice(longest - len(own), longest) if side == "left" else slice(0, len(own))
        tokens[row, where] = own
        mask[row, where] = True
    return tokens, mask


def pieces(x, sizes):
    return torch.split(x, sizes, dim=1)


def close(a, b, tolerance):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


# ------------------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("name", ["vocab_size", "context", "layers", "heads", "width"])
@pytest.mark.parametrize("value", [0, -3])
def test_a_size_below_one_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got {value}$"):
        GPTConfig(**{name: value})


@pytest.mark.parametrize("width, heads", [(256, 3), (20, 4), (12, 12)])
def test_a_width_that_leaves_a_head_an_odd_or_broken_size_is_refused(width, heads):
    with pytest.raises(ValueError, match=rf"width must be a multiple of 2 \* heads, got width {width} and heads {heads}"):
        GPTConfig(width=width, heads=heads)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5, math.nan])
def test_a_dropout_outside_0_to_1_is_refused(dropout):
    with pytest.raises(ValueError, match=rf"dropout must be in \[0, 1\), got {dropout}"):
        GPTConfig(dropout=dropout)


@pytest.mark.parametrize(
    "name, allowed", [("positions", "rotary, learned"), ("norm", "rmsnorm, layernorm"), ("activation", "relu2, gelu")]
)
def test_an_unknown_choice_is_refused_and_the_known_ones_named(name, allowed):
    with pytest.raises(ValueError, match=f"{name} must be one of {allowed}, got 'sinusoidal'"):
        GPTConfig(**{name: "sinusoidal"})


def test_edge_values_are_accepted():
    config = GPTConfig(vocab_size=1, context=1, layers=1, heads=1, width=2, dropout=0.0)
    assert GPT(config)(torch.zeros(1, 1, dtype=torch.long)).shape == (1, 1, 1)
    assert GPTConfig(dropout=0.999).dropout == 0.999


def test_a_config_survives_a_dict():
    config = GPTConfig.gpt2(layers=2, dropout=0.1)
    assert GPTConfig(**config.asdict()) == config
    assert config != GPTConfig.gpt2(layers=3, dropout=0.1)


def test_gpt2_has_the_published_shape():
    ours, theirs = GPTConfig.gpt2(), GPT2Config()
    assert (ours.vocab_size, ours.context, ours.layers, ours.heads, ours.width) == (
        theirs.vocab_size,
        theirs.n_positions,
        theirs.n_layer,
        theirs.n_head,
        theirs.n_embd,
    )
    assert GPTConfig.gpt2(heads=16, width=1024).heads == 16


def test_the_number_of_parameters():
    with torch.device("meta"):
        gpt2, modern = GPT(GPTConfig.gpt2()), GPT(GPTConfig())
    assert sum(p.numel() for p in gpt2.parameters()) == 124_439_808  # what GPT-2 small is known to have
    # Two tables of 2048 x 256; six blocks of 4 + 8 matrices 256 x 256 and two norms; the last norm.
    assert sum(p.numel() for p in modern.parameters()) == 2 * 2048 * 256 + 6 * (12 * 256**2 + 2 * 256) + 256


# ---------------------------------------------------------------------------------------------------------- the architecture


def slow_norm(x, norm):
    weight, bias = norm.weight.double(), norm.bias
    if bias is None:  # Zhang and Sennrich 2019, equation 4
        return x / ((x * x).sum() / len(x) + 1e-6).sqrt() * weight
    mean = x.sum() / len(x)
    return (x - mean) / (((x - mean) ** 2).sum() / len(x) + 1e-5).sqrt() * weight + bias.double()


def slow_linear(x, layer):
    y = layer.weight.double() @ x
    return y if layer.bias is None else y + layer.bias.double()


def slow_turn(x, position):
    """Rotary positions as a product of complex numbers: the pair (x[i], x[i + D/2]) is one of them."""
    half = len(x) // 2
    angles = torch.tensor([position * 10000 ** (-i / half) for i in range(half)], dtype=torch.float64)
    turned = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones(half, dtype=torch.float64), angles)
    return torch.cat([turned.real, turned.imag])


def slow_activation(x, kind):
    if kind == "relu2":
        return x.clamp(min=0) ** 2
    return 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


def slow_logits(model, row):
    """The whole model in float64, one position and one head at a time, for one row of tokens."""
    c = model.config
    D = c.width // c.heads
    stream = [model.embedding.weight[t].double() for t in row]
    if c.positions == "learned":
        stream = [x + model.position_embedding.weight[i].double() for i, x in enumerate(stream)]
    for block in model.blocks:
        heads = []  # by position: queries, keys, values of each head
        for i, x in enumerate(stream):
            q, k, v = (part.view(c.heads, D) for part in slow_linear(slow_norm(x, block.norm1), block.attention.qkv).chunk(3))
            if c.qk_norm:
                q, k = (part / (part**2).mean(1, keepdim=True).sqrt() for part in (q, k))
            if c.positions == "rotary":
                q, k = (torch.stack([slow_turn(head, i) for head in part]) for part in (q, k))
            heads.append((q, k, v))
        for i, (q, _, _) in enumerate(heads):
            seen = []
            for h in range(c.heads):
                weights = torch.stack([q[h] @ heads[j][1][h] / math.sqrt(D) for j in range(i + 1)]).exp()
                seen.append(sum(w * heads[j][2][h] for j, w in enumerate(weights)) / weights.sum())
            stream[i] = stream[i] + slow_linear(torch.cat(seen), block.attention.out)
            hidden = slow_activation(slow_linear(slow_norm(stream[i], block.norm2), block.up), c.activation)
            stream[i] = stream[i] + slow_linear(hidden, block.down)
    return torch.stack([model.head.weight.double() @ slow_norm(x, model.norm) for x in stream])


@every_style
def test_logits_equal_a_slow_model_written_out_position_by_position(style):
    model, tokens = random_gpt(**style), random_tokens(1, 5)
    expected = slow_logits(model, tokens[0].tolist())
    assert expected.std() > 0.3  # the comparison is about something
    torch.testing.assert_close(model(tokens)[0].double(), expected, atol=1e-4, rtol=1e-5)


def random_hugging_face_gpt2(tied, seed=0):
    config = GPT2Config(
        vocab_size=50, n_positions=20, n_embd=24, n_layer=3, n_head=3, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(seed)
    theirs = GPT2LMHeadModel(config).eval().requires_grad_(False)
    for name, p in theirs.named_parameters():
        p.normal_(mean=1.0 if "ln_" in name and name.endswith("weight") else 0.0, std=0.3)
    ours = GPT(GPTConfig.gpt2(vocab_size=50, context=20, layers=3, heads=3, width=24, tied=tied)).eval()
    return theirs, ours


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_those_of_transformers_gpt2(tied):
    theirs, ours = random_hugging_face_gpt2(tied)
    same = theirs.lm_head.weight.data_ptr() == theirs.transformer.wte.weight.data_ptr()
    assert same == tied
    ours.load_state_dict(gpt2_weights(theirs.state_dict()))
    tokens = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(0))
    expected = theirs(tokens).logits
    assert expected.std() > 1
    close(ours(tokens), expected, 1e-4)


def test_left_padded_logits_equal_those_of_transformers_gpt2():
    theirs, ours = random_hugging_face_gpt2(tied=True)
    ours.load_state_dict(gpt2_weights(theirs.state_dict()))
    tokens = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) >= torch.tensor([[0], [3], [8]])
    places = (mask.long().cumsum(1) - 1).clamp(min=0)
    expected = theirs(tokens, attention_mask=mask.long(), position_ids=places).logits
    close(ours(tokens, mask)[mask], expected[mask], 1e-4)


def test_gpt2_weights_are_found_under_the_names_of_published_files():
    """Published files have no `transformer.` before the names, no head, and each block's causal mask as buffers."""
    theirs, ours = random_hugging_face_gpt2(tied=True)
    tensors = theirs.transformer.state_dict()
    assert "wte.weight" in tensors and "lm_head.weight" not in tensors
    for layer in range(3):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 20, 20).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    ours.load_state_dict(gpt2_weights(tensors))  # strict: nothing missing, nothing left over
    tokens = torch.arange(12)[None]
    close(ours(tokens), theirs(tokens).logits, 1e-4)


@pytest.mark.parametrize("order", [1, -1])
def test_an_untied_head_keeps_its_own_weights_in_whatever_order_they_come(order):
    embedding, head = torch.zeros(5, 4), torch.ones(5, 4)
    tensors = [("transformer.wte.weight", embedding), ("lm_head.weight", head)][::order]
    renamed = gpt2_weights(dict(tensors))
    assert torch.equal(renamed["embedding.weight"], embedding)
    assert torch.equal(renamed["head.weight"], head)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])  # eps matters at the first, and must not at the last
def test_norms_equal_their_formulas_and_torch(scale):
    x = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0)) * scale + 0.7 * scale
    weight, bias = torch.linspace(-1, 2, 12), torch.linspace(3, -3, 12)
    theirs = {"rmsnorm": nn.RMSNorm(12, eps=1e-6), "layernorm": nn.LayerNorm(12, eps=1e-5)}
    results = {}
    for kind, oracle in theirs.items():
        norm = Norm(GPTConfig(width=12, heads=2, norm=kind))
        for module in (norm, oracle):
            module.weight.data = weight.clone()
            if kind == "layernorm":
                module.bias.data = bias.clone()
        results[kind] = norm(x)
        close(results[kind], oracle(x), 1e-5)
        by_hand = torch.stack([slow_norm(row, norm) for row in x.double().view(-1, 12)]).view_as(x)
        torch.testing.assert_close(results[kind].double(), by_hand, atol=1e-5, rtol=1e-5)
    assert (results["rmsnorm"] - results["layernorm"]).abs().max() > 0.1


def test_an_rms_norm_by_hand():
    norm = Norm(GPTConfig(width=2, heads=1))
    # The root of the mean square of (3, 4) is sqrt(12.5).
    close(norm(torch.tensor([3.0, 4.0])), torch.tensor([0.848528, 1.131371]), 1e-5)


# ----------------------------------------------------------------------------------------------------------------- causality


@every_style
def test_a_token_moves_its_own_logits_and_later_ones_but_none_before(style):
    model, tokens = random_gpt(**style), random_tokens(1, 8)
    before = model(tokens)[0]
    for place in range(8):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % V
        moved = (model(changed)[0] - before).abs().amax(1)  # (T,)
        assert (moved[:place] <= 1e-6).all(), place
        assert (moved[place:] > 1e-4).all(), place


@both_positions
def test_rows_of_a_batch_do_not_see_each_other(positions):
    model, tokens = random_gpt(positions=positions), random_tokens(3, 6)
    together = model(tokens)
    for row in range(3):
        close(model(tokens[row : row + 1])[0], together[row], 1e-5)


# ------------------------------------------------------------------------------------------------------------------ the cache


@every_style
def test_a_cached_step_equals_an_uncached_one(style):
    model, tokens = random_gpt(**style), random_tokens(2, 9)
    whole = model(tokens)
    for sizes in ([1] * 9, [4, 1, 1, 3], [1, 7, 1], [9]):
        cache = KVCache(model.config, 2, 9)
        logits = torch.cat([model(piece, cache=cache) for piece in pieces(tokens, sizes)], dim=1)
        close(logits, whole, 1e-5)
        assert cache.length == 9


@settings(deadline=None, max_examples=25)
@given(data=st.data(), positions=st.sampled_from(CHOICES["positions"]), side=st.sampled_from(["left", "right"]))
def test_any_pieces_of_padded_rows_equal_the_rows_alone(data, positions, side):
    """Pieces may be all padding for some rows; the cache may be larger than needed."""
    lengths = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
    rows = [random_tokens(1, length, seed)[0] for seed, length in enumerate(lengths)]
    tokens, mask = side_by_side(rows, side)
    sizes, left = [], tokens.shape[1]
    while left:
        sizes.append(data.draw(st.integers(1, left)))
        left -= sizes[-1]
    model = random_gpt(positions=positions)
    cache = KVCache(model.config, len(rows), tokens.shape[1] + data.draw(st.integers(0, 3)))
    parts = zip(pieces(tokens, sizes), pieces(mask, sizes))
    logits = torch.cat([model(part, part_mask, cache) for part, part_mask in parts], dim=1)
    for row, own in enumerate(rows):
        close(logits[row, mask[row]], model(own[None])[0], 1e-4)


@every_style
def test_steps_behind_a_padded_prompt_equal_the_unpadded_row(style):
    model = random_gpt(**style)
    rows = [random_tokens(1, length, seed)[0] for seed, length in enumerate((9, 6, 4))]
    for side in ("left", "right"):
        tokens, mask = side_by_side([row[:-3] for row in rows], side)
        cache = KVCache(model.config, 3, 9)
        model(tokens, mask, cache)
        last = torch.stack([row[-3:] for row in rows])  # (B, 3)
        steps = [model(step, None, cache) for step in last.split(1, dim=1)]
        logits = torch.cat(steps, dim=1)  # (B, 3, V)
        for row, own in enumerate(rows):
            close(logits[row], model(own[None])[0, -3:], 1e-4)


@pytest.mark.parametrize("rows", [[2, 0], [1], torch.tensor([True, False, True])], ids=["reordered", "one", "mask"])
@pytest.mark.parametrize("padded", [False, True])
@both_positions
def test_selected_rows_of_a_cache_go_on_as_if_alone(rows, padded, positions):
    model = random_gpt(positions=positions)
    lengths = (5, 2, 4) if padded else (5, 5, 5)
    starts = [random_tokens(1, length, seed)[0] for seed, length in enumerate(lengths)]
    tokens, mask = side_by_side(starts, "left")
    cache = KVCache(model.config, 3, 8)
    model(tokens, mask, cache)
    cache.select(rows)
    kept = torch.arange(3)[rows].tolist()
    more = random_tokens(len(kept), 3, seed=9)
    logits = torch.cat([model(step, None, cache) for step in more.split(1, dim=1)], dim=1)
    for i, row in enumerate(kept):
        close(logits[i], model(torch.cat([starts[row], more[i]])[None])[0, -3:], 1e-4)


def test_a_full_cache_says_so():
    model = random_gpt()
    cache = KVCache(model.config, 1, 4)
    model(random_tokens(1, 4), cache=cache)
    with pytest.raises(ValueError, match="the cache has room for 4 positions, got 5"):
        model(random_tokens(1, 1), cache=cache)
    with pytest.raises(ValueError, match="the cache has room for 4 positions, got 6"):
        model(random_tokens(1, 6), cache=KVCache(model.config, 1, 4))


@both_positions
def test_the_context_can_be_filled_and_not_passed(positions):
    model, tokens = random_gpt(positions=positions), random_tokens(1, CONTEXT + 1)
    message = f"{CONTEXT + 1} tokens are more than the model's context of {CONTEXT}"
    whole = model(tokens[:, :-1])
    with pytest.raises(ValueError, match=message):
        model(tokens)
    cache = KVCache(model.config, 1, CONTEXT + 1)
    close(model(tokens[:, :-1], cache=cache), whole, 1e-5)
    with pytest.raises(ValueError, match=message):
        model(tokens[:, -1:], cache=cache)


# ------------------------------------------------------------------------------------------------------------------- padding


@every_style
def test_padding_does_not_move_logits(style):
    model = random_gpt(**style)
    rows = [random_tokens(1, length, seed)[0] for seed, length in enumerate((8, 5, 1))]
    alone = [model(own[None])[0] for own in rows]
    for side in ("left", "right"):
        tokens, mask = side_by_side(rows, side)
        for cache in (None, KVCache(model.config, 3, 8)):
            logits = model(tokens, mask, cache)
            assert logits.isfinite().all()  # what stands at padding means nothing, but is a number
            for row in range(3):
                close(logits[row, mask[row]], alone[row], 1e-4)


def test_padded_rows_leave_no_trace_in_the_gradient():
    """A NaN at a padded position would reach every weight through the backward pass."""
    model = random_gpt().requires_grad_(True)
    rows = [random_tokens(1, length, seed)[0] for seed, length in enumerate((6, 2))]
    tokens, mask = side_by_side(rows, "left")
    model(tokens, mask)[mask].square().sum().backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for own in rows:
        model(own[None]).square().sum().backward()
    for p, grad in zip(model.parameters(), together):
        torch.testing.assert_close(grad, p.grad, atol=1e-3, rtol=1e-3)
    assert all(grad.abs().max() > 0 for grad in together)


# ----------------------------------------------------------------------------------------------------------------- positions


@both_positions
def test_the_model_knows_the_order_of_tokens(positions):
    """With one layer and no positions, the last logits could not tell which of two earlier tokens came first."""
    model = random_gpt(positions=positions, layers=1)
    a, b = model(torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]]))[:, -1]
    assert (a - b).abs().max() > 1e-3


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


@pytest.mark.parametrize("qk_norm", [True, False])
def test_shifting_all_positions_leaves_attention_unchanged(qk_norm):
    config = GPTConfig(width=16, heads=2, qk_norm=qk_norm)
    torch.manual_seed(0)
    attention = Attention(config, 0).eval().requires_grad_(False)
    x, places = torch.randn(2, 6, 16), torch.arange(6)[None]

    def attend(positions):
        return attention(x, rotary_table(config, positions), None, None)

    close(attend(places + 57), attend(places), 1e-4)
    assert (attend(places * 2) - attend(places)).abs().max() > 1e-2  # other distances do change it


# ---------------------------------------------------------------------------------------------------- the start, and dropout


@pytest.mark.parametrize("style", [{}, dict(positions="learned", norm="layernorm", activation="gelu", bias=True)])
def test_an_untied_model_starts_with_uniform_predictions(style):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=V, context=8, layers=2, heads=2, width=16, **style))
    logprobs = model(random_tokens(3, 8)).log_softmax(2)
    close(logprobs, torch.full_like(logprobs, -math.log(V)), 1e-6)
    # The blocks add nothing yet: what reaches the head is the normalised embedding, different for different tokens.
    x = model.embedding(random_tokens(3, 8))
    if style:
        x = x + model.position_embedding(torch.arange(8))
    close(model.hidden(random_tokens(3, 8)), model.norm(x), 1e-5)
    assert x.std() > 0.01


def test_an_untied_model_learns_from_its_uniform_start():
    """A head of zeros passes no gradient to the blocks at first; training must get past that."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=V, context=12, layers=1, heads=2, width=16))
    tokens = random_tokens(4, 12)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(80):
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(V), abs=1e-5)
    assert losses[-1] < 0.3
    assert all((p - start[name]).abs().max() > 1e-3 for name, p in model.named_parameters())


def test_a_tied_model_has_one_table_and_does_not_start_uniform():
    torch.manual_seed(0)
    tied, untied = (GPT(GPTConfig(vocab_size=V, context=8, layers=1, heads=2, width=64, tied=tied)) for tied in (True, False))
    assert tied.head.weight is tied.embedding.weight
    assert untied.head.weight is not untied.embedding.weight
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == V * 64
    assert tied(random_tokens(1, 8)).std() > 0.01


def test_weights_start_small_and_biases_at_zero():
    torch.manual_seed(0)
    model = GPT(GPTConfig.gpt2(vocab_size=500, context=64, layers=2, heads=2, width=64))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        else:
            assert p.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(p.mean().item()) < 0.001, name


@both_positions
def test_dropout_acts_in_training_and_never_in_evaluation(positions):
    dropping, plain = random_gpt(dropout=0.5, positions=positions), random_gpt(dropout=0.0, positions=positions)
    tokens = random_tokens(1, 8)
    assert torch.equal(dropping(tokens), plain(tokens))
    torch.manual_seed(0)
    dropping.train()
    once, again = dropping(tokens), dropping(tokens)
    assert (once - again).abs().max() > 0.1
    assert torch.equal(plain.train()(tokens), plain.eval()(tokens))


def test_hidden_is_what_the_head_reads():
    model, tokens = random_gpt(), random_tokens(2, 7)
    hidden = model.hidden(tokens)
    assert hidden.shape == (2, 7, 12)
    close(model(tokens), hidden @ model.head.weight.T, 1e-5)
