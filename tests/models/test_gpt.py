import math
from dataclasses import asdict
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config

from rlhf_lib.models.gpt import GPT, RECIPES, Attention, GPTConfig, make_norm
from rlhf_lib.models.layers import KVCache, rotary_table

V, CONTEXT = 13, 16
every_recipe = pytest.mark.parametrize("recipe", RECIPES)


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
@pytest.mark.parametrize("value", [0, -3, True])
def test_a_size_below_one_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got {value}$"):
        GPTConfig(**{name: value})


@pytest.mark.parametrize("value", [2.5, 4.0, "4", None])
def test_a_size_that_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError, match=f"^context must be a whole number, got {value!r}$"):
        GPTConfig(context=value)


@pytest.mark.parametrize("width, heads", [(256, 3), (20, 4), (12, 12)])
def test_a_width_that_leaves_a_head_an_odd_or_broken_size_is_refused(width, heads):
    with pytest.raises(ValueError, match=rf"width must be a multiple of 2 \* heads, got width {width} and heads {heads}"):
        GPTConfig(width=width, heads=heads)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5, math.nan])
def test_a_dropout_outside_0_to_1_is_refused(dropout):
    with pytest.raises(ValueError, match=rf"dropout must be in \[0, 1\), got {dropout}"):
        GPTConfig(dropout=dropout)


def test_an_unknown_recipe_is_refused_and_the_known_ones_named():
    with pytest.raises(ValueError, match="recipe must be one of modern, gpt2, got 'llama'"):
        GPTConfig(recipe="llama")


def test_edge_values_are_accepted():
    config = GPTConfig(vocab_size=1, context=1, layers=1, heads=1, width=2, dropout=0.0)
    assert GPT(config)(torch.zeros(1, 1, dtype=torch.long)).shape == (1, 1, 1)
    assert GPTConfig(dropout=0.999).dropout == 0.999


@every_recipe
def test_a_model_is_built_again_from_its_metadata(recipe):
    model = random_gpt(recipe=recipe, dropout=0.1)
    metadata = model.metadata()
    assert metadata == {"kind": "gpt", "config": asdict(model.config)}
    other = GPT.from_metadata({**metadata, "val_loss": 1.0, "tokenizer": "what else stands in a checkpoint"})
    assert other.config == model.config and other.config is not model.config
    other.load_state_dict(model.state_dict())
    tokens = random_tokens(2, 5)
    assert torch.equal(other.eval()(tokens), model(tokens))
    assert GPTConfig(**metadata["config"]) != GPTConfig.gpt2(layers=3, dropout=0.1)


def test_gpt2_has_the_published_shape():
    ours, theirs = GPTConfig.gpt2(), GPT2Config()
    assert ours.recipe == "gpt2"
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
    weight, bias = norm.weight.double(), getattr(norm, "bias", None)
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


def slow_activation(x, recipe):
    if recipe == "modern":
        return x.clamp(min=0) ** 2
    return 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


def slow_logits(model, row):
    """The whole model in float64, one position and one head at a time, for one row of tokens."""
    c = model.config
    D = c.width // c.heads
    stream = [model.embedding.weight[t].double() for t in row]
    if c.recipe == "gpt2":
        stream = [x + model.position_embedding.weight[i].double() for i, x in enumerate(stream)]
    for block in model.blocks:
        heads = []  # by position: queries, keys, values of each head
        for i, x in enumerate(stream):
            q, k, v = (part.view(c.heads, D) for part in slow_linear(slow_norm(x, block.norm1), block.attention.qkv).chunk(3))
            if c.recipe == "modern":
                q, k = (part / (part**2).mean(1, keepdim=True).sqrt() for part in (q, k))
                q, k = (torch.stack([slow_turn(head, i) for head in part]) for part in (q, k))
            heads.append((q, k, v))
        for i, (q, _, _) in enumerate(heads):
            seen = []
            for h in range(c.heads):
                weights = torch.stack([q[h] @ heads[j][1][h] / math.sqrt(D) for j in range(i + 1)]).exp()
                seen.append(sum(w * heads[j][2][h] for j, w in enumerate(weights)) / weights.sum())
            stream[i] = stream[i] + slow_linear(torch.cat(seen), block.attention.out)
            hidden = slow_activation(slow_linear(slow_norm(stream[i], block.norm2), block.up), c.recipe)
            stream[i] = stream[i] + slow_linear(hidden, block.down)
    return torch.stack([model.head.weight.double() @ slow_norm(x, model.norm) for x in stream])


@every_recipe
def test_logits_equal_a_slow_model_written_out_position_by_position(recipe):
    model, tokens = random_gpt(recipe=recipe), random_tokens(1, 5)
    expected = slow_logits(model, tokens[0].tolist())
    assert expected.std() > 0.3  # the comparison is about something
    torch.testing.assert_close(model(tokens)[0].double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])  # eps matters at the first, and must not at the last
def test_norms_equal_their_formulas_and_torch(scale):
    x = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0)) * scale + 0.7 * scale
    weight, bias = torch.linspace(-1, 2, 12), torch.linspace(3, -3, 12)
    theirs = {"modern": nn.RMSNorm(12, eps=1e-6), "gpt2": nn.LayerNorm(12, eps=1e-5)}
    results = {}
    for recipe, oracle in theirs.items():
        norm = make_norm(GPTConfig(width=12, heads=2, recipe=recipe))
        for module in (norm, oracle):
            module.weight.data = weight.clone()
            if recipe == "gpt2":
                module.bias.data = bias.clone()
        results[recipe] = norm(x)
        close(results[recipe], oracle(x), 1e-5)
        by_hand = torch.stack([slow_norm(row, norm) for row in x.double().view(-1, 12)]).view_as(x)
        torch.testing.assert_close(results[recipe].double(), by_hand, atol=1e-5, rtol=1e-5)
    assert (results["modern"] - results["gpt2"]).abs().max() > 0.1


def test_an_rms_norm_by_hand():
    norm = make_norm(GPTConfig(width=2, heads=1))
    # The root of the mean square of (3, 4) is sqrt(12.5).
    close(norm(torch.tensor([3.0, 4.0])), torch.tensor([0.848528, 1.131371]), 1e-5)


# ----------------------------------------------------------------------------------------------------------------- causality


@every_recipe
def test_a_token_moves_its_own_logits_and_later_ones_but_none_before(recipe):
    model, tokens = random_gpt(recipe=recipe), random_tokens(1, 8)
    before = model(tokens)[0]
    for place in range(8):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % V
        moved = (model(changed)[0] - before).abs().amax(1)  # (T,)
        assert (moved[:place] <= 1e-6).all(), place
        assert (moved[place:] > 1e-4).all(), place


@every_recipe
def test_rows_of_a_batch_do_not_see_each_other(recipe):
    model, tokens = random_gpt(recipe=recipe), random_tokens(3, 6)
    together = model(tokens)
    for row in range(3):
        close(model(tokens[row : row + 1])[0], together[row], 1e-5)


# ------------------------------------------------------------------------------------------------------------------ the cache


@every_recipe
def test_a_cached_step_equals_an_uncached_one(recipe):
    model, tokens = random_gpt(recipe=recipe), random_tokens(2, 9)
    whole = model(tokens)
    for sizes in ([1] * 9, [4, 1, 1, 3], [1, 7, 1], [9]):
        cache = KVCache(model.config, 2, 9)
        logits = torch.cat([model(piece, cache=cache) for piece in pieces(tokens, sizes)], dim=1)
        close(logits, whole, 1e-5)
        assert cache.length == 9


@settings(deadline=None, max_examples=25)
@given(data=st.data(), recipe=st.sampled_from(RECIPES), side=st.sampled_from(["left", "right"]))
def test_any_pieces_of_padded_rows_equal_the_rows_alone(data, recipe, side):
    """Pieces may be all padding for some rows; the cache may be larger than needed."""
    lengths = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
    rows = [random_tokens(1, length, seed)[0] for seed, length in enumerate(lengths)]
    tokens, mask = side_by_side(rows, side)
    sizes, left = [], tokens.shape[1]
    while left:
        sizes.append(data.draw(st.integers(1, left)))
        left -= sizes[-1]
    model = random_gpt(recipe=recipe)
    cache = KVCache(model.config, len(rows), tokens.shape[1] + data.draw(st.integers(0, 3)))
    parts = zip(pieces(tokens, sizes), pieces(mask, sizes))
    logits = torch.cat([model(part, part_mask, cache) for part, part_mask in parts], dim=1)
    for row, own in enumerate(rows):
        close(logits[row, mask[row]], model(own[None])[0], 1e-4)


@every_recipe
def test_steps_behind_a_padded_prompt_equal_the_unpadded_row(recipe):
    model = random_gpt(recipe=recipe)
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
@every_recipe
def test_selected_rows_of_a_cache_go_on_as_if_alone(rows, padded, recipe):
    model = random_gpt(recipe=recipe)
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


@every_recipe
def test_the_context_can_be_filled_and_not_passed(recipe):
    model, tokens = random_gpt(recipe=recipe), random_tokens(1, CONTEXT + 1)
    message = f"{CONTEXT + 1} tokens are more than the model's context of {CONTEXT}"
    whole = model(tokens[:, :-1])
    with pytest.raises(ValueError, match=message):
        model(tokens)
    cache = KVCache(model.config, 1, CONTEXT + 1)
    close(model(tokens[:, :-1], cache=cache), whole, 1e-5)
    with pytest.raises(ValueError, match=message):
        model(tokens[:, -1:], cache=cache)


# ------------------------------------------------------------------------------------------------------------------- padding


@every_recipe
def test_padding_does_not_move_logits(recipe):
    model = random_gpt(recipe=recipe)
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


@every_recipe
def test_the_model_knows_the_order_of_tokens(recipe):
    """With one layer and no positions, the last logits could not tell which of two earlier tokens came first."""
    model = random_gpt(recipe=recipe, layers=1)
    a, b = model(torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]]))[:, -1]
    assert (a - b).abs().max() > 1e-3


def test_shifting_all_positions_leaves_attention_unchanged():
    config = GPTConfig(width=16, heads=2)
    torch.manual_seed(0)
    attention = Attention(config, 0).eval().requires_grad_(False)
    x, places = torch.randn(2, 6, 16), torch.arange(6)[None]

    def attend(positions):
        return attention(x, rotary_table(config, positions), None, None)

    close(attend(places + 57), attend(places), 1e-4)
    assert (attend(places * 2) - attend(places)).abs().max() > 1e-2  # other distances do change it


# ---------------------------------------------------------------------------------------------------- the start, and dropout


def test_a_modern_model_starts_with_uniform_predictions():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=V, context=8, layers=2, heads=2, width=16))
    logprobs = model(random_tokens(3, 8)).log_softmax(2)
    close(logprobs, torch.full_like(logprobs, -math.log(V)), 1e-6)
    # The blocks add nothing yet: what reaches the head is the normalised embedding, different for different tokens.
    x = model.embedding(random_tokens(3, 8))
    close(model.hidden(random_tokens(3, 8)), model.norm(x), 1e-5)
    assert x.std() > 0.01


def test_a_modern_model_learns_from_its_uniform_start():
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


def test_the_recipe_of_gpt2_has_one_table_and_does_not_start_uniform():
    torch.manual_seed(0)
    shape = dict(vocab_size=V, context=8, layers=1, heads=2, width=64)
    tied, untied = (GPT(GPTConfig(**shape, recipe=recipe)) for recipe in ("gpt2", "modern"))
    assert tied.head.weight is tied.embedding.weight
    assert untied.head.weight is not untied.embedding.weight
    # One table of tokens less, one of positions more, and biases: of four layers and of three norms.
    biases = (3 + 1 + 4 + 1) * 64 + 3 * 64
    assert sum(p.numel() for p in tied.parameters()) == sum(p.numel() for p in untied.parameters()) - V * 64 + 8 * 64 + biases
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


@every_recipe
def test_dropout_acts_in_training_and_never_in_evaluation(recipe):
    dropping, plain = random_gpt(dropout=0.5, recipe=recipe), random_gpt(dropout=0.0, recipe=recipe)
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


@every_recipe
def test_dropout_has_one_probability_wherever_it_acts(recipe):
    """Behind the embedding, on the attention's weights, and behind both halves of every block."""
    model, acted = random_gpt(dropout=0.25, recipe=recipe), []

    def watch(x, p=0.5, training=True, inplace=False):
        acted.append((p if training else 0.0, x.dim()))
        return x

    with mock.patch.object(F, "dropout", watch):
        model.train()(random_tokens(1, 8))
        block = [(0.25, 4), (0.25, 3), (0.25, 3)]
        assert acted == [(0.25, 3)] + 2 * block
        acted.clear()
        model.eval()(random_tokens(1, 8))
    assert {p for p, _ in acted} == {0.0}


def test_dropout_may_be_changed_afterwards_and_is_the_configurations():
    model, tokens = random_gpt(), random_tokens(1, 8)
    before = model.train()(tokens)
    assert torch.equal(model(tokens), before)
    model.config.dropout = 0.5
    assert (model(tokens) - before).abs().max() > 0.1
