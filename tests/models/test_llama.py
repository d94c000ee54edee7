import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM

from rlhf_lib.models.layers import KVCache, stretched
from rlhf_lib.models.llama import Llama, LlamaConfig, Norm
from rlhf_lib.models.weights import llama_config, llama_weights
from rlhf_lib.sampling import generate, token_logprobs

V, CONTEXT = 13, 32
SCALING = {"factor": 8.0, "low": 1.0, "high": 4.0, "original": 16}


def random_llama(seed=0, **changes):
    """A tiny Llama, in evaluation mode, whose every weight is random and large enough to matter."""
    shape = dict(vocab_size=V, context=CONTEXT, layers=2, heads=4, kv_heads=2, width=24, hidden=20, rope_base=500.0)
    model = Llama(LlamaConfig(**{**shape, **changes})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.3, generator=generator)
            if "norm" in name:
                p.add_(1.0)
    return model.requires_grad_(False)


def random_tokens(batch, length, seed=0):
    return torch.randint(0, V, (batch, length), generator=torch.Generator().manual_seed(seed))


def side_by_side(rows, side, seed=1):
    """Rows of tokens as one batch, padded with arbitrary tokens (not zeros) on one side, and the mask of the real ones."""
    longest = max(map(len, rows))
    tokens, mask = random_tokens(len(rows), longest, seed), torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, own in enumerate(rows):
        where = slice(longest - len(own), longest) if side == "left" else slice(0, len(own))
        tokens[row, where], mask[row, where] = own, True
    return tokens, mask


def close(a, b, tolerance):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


# ------------------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("name", ["vocab_size", "context", "layers", "heads", "kv_heads", "width", "hidden"])
@pytest.mark.parametrize("value", [0, -3, True])
def test_a_size_below_one_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got {value}$"):
        LlamaConfig(**{name: value})


@pytest.mark.parametrize("value", [2.5, 4.0, "4", None])
def test_a_size_that_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError, match=f"^context must be a whole number, got {value!r}$"):
        LlamaConfig(context=value)


def test_sizes_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"width must be a multiple of 2 \* heads, got width 27 and heads 9"):
        LlamaConfig(width=27)
    with pytest.raises(ValueError, match="heads must be a multiple of kv_heads, got 9 and 4"):
        LlamaConfig(kv_heads=4)
    LlamaConfig(width=18, kv_heads=9)


def test_published_shapes_have_the_numbers_of_parameters_that_they_are_known_by():
    smollm2 = LlamaConfig()
    llama32 = LlamaConfig(128256, 131072, 16, 32, 8, 2048, 8192, rope_base=500000.0)
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in Llama(config).parameters()) for config in (smollm2, llama32)]
    assert sizes == [134_515_008, 1_235_814_400]


def test_a_model_is_built_again_from_its_metadata_which_is_plain_json():
    model = random_llama(tied=False, norm_eps=1e-3, rope_scaling=SCALING)
    metadata = json.loads(json.dumps({**model.metadata(), "val_loss": 1.0}))
    other = Llama.from_metadata(metadata)
    assert metadata["kind"] == "llama" and other.config == model.config
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(random_tokens(2, 9)), model(random_tokens(2, 9)))


def test_a_state_is_taken_over_as_it_is_and_a_tied_head_may_be_left_out():
    model = random_llama()
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}
    other = Llama.of(model.config, state)
    assert not other.training and other.head.weight is other.embedding.weight and "head.weight" not in state
    assert all(p.data_ptr() == state[name].data_ptr() for name, p in other.named_parameters())
    assert torch.equal(other(random_tokens(2, 9)), model(random_tokens(2, 9)))
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"head.weight\""):
        Llama.of(LlamaConfig(**{**model.metadata()["config"], "tied": False}), state)
    with pytest.raises(RuntimeError, match=r"size mismatch for blocks\.1\.up\.weight"):
        Llama.of(model.config, {**state, "blocks.1.up.weight": torch.zeros(3, 24)})


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not():
    tied, untied = random_llama(), random_llama(tied=False)
    assert tied.head.weight is tied.embedding.weight
    assert untied.head.weight.data_ptr() != untied.embedding.weight.data_ptr()
    sizes = [sum(p.numel() for p in model.parameters()) for model in (tied, untied)]
    assert sizes[1] - sizes[0] == 24 * V


# --------------------------------------------------------------------------------------------- the architecture, two oracles


def slow_norm(x, norm):
    return x / ((x * x).sum() / len(x) + norm.eps).sqrt() * norm.weight.double()


def slow_turn(x, position, config):
    """Rotary positions as a product of complex numbers: the pair (x[i], x[i + D/2]) is one of them."""
    half = len(x) // 2
    turn = torch.tensor([position * config.rope_base ** (-i / half) for i in range(half)], dtype=torch.float64)
    turned = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones(half, dtype=torch.float64), turn)
    return torch.cat([turned.real, turned.imag])


def slow_logits(model, row):
    """The whole model in float64, one position and one head at a time, for one row of tokens."""
    c = model.config
    D, G = c.width // c.heads, c.heads // c.kv_heads
    stream = [model.embedding.weight[t].double() for t in row]
    for block in model.blocks:
        seen = []  # by position: queries, keys and values
        for i, x in enumerate(stream):
            y = slow_norm(x, block.norm1)
            q, k, v = (
                (part.weight.double() @ y).view(-1, D)
                for part in (block.attention.query, block.attention.key, block.attention.value)
            )
            seen.append(([slow_turn(one, i, c) for one in q], [slow_turn(one, i, c) for one in k], v))
        for i, x in enumerate(stream):
            heads = []
            for h in range(c.heads):
                own = h // G  # the first G heads share the first key-value head
                weights = torch.stack([seen[i][0][h] @ seen[j][1][own] / math.sqrt(D) for j in range(i + 1)]).softmax(0)
                heads.append(sum(w * seen[j][2][own] for j, w in enumerate(weights)))
            x = x + block.attention.out.weight.double() @ torch.cat(heads)
            y = slow_norm(x, block.norm2)
            gate = block.gate.weight.double() @ y
            stream[i] = x + block.down.weight.double() @ (gate / (1 + (-gate).exp()) * (block.up.weight.double() @ y))
    return torch.stack([model.head.weight.double() @ slow_norm(x, model.norm) for x in stream])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_equal_a_slow_model_written_out_position_by_position(kv_heads):
    model, tokens = random_llama(kv_heads=kv_heads, norm_eps=0.02), random_tokens(1, 5)
    expected = slow_logits(model, tokens[0].tolist())
    assert expected.std() > 0.3  # the comparison is about something
    close(model(tokens)[0].double(), expected, 1e-4)


@st.composite
def published(draw):
    """What a config.json of a small Llama says."""
    kv_heads, group, half = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    values = dict(
        vocab_size=draw(st.integers(2, 30)), hidden_size=kv_heads * group * 2 * half, num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads, intermediate_size=draw(st.integers(1, 24)), num_hidden_layers=draw(st.integers(1, 3)),
        max_position_embeddings=64, rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 0.1])),
        tie_word_embeddings=draw(st.booleans()), rope_theta=draw(st.sampled_from([10.0, 10000.0, 500000.0])),
    )  # fmt: skip
    if draw(st.booleans()):
        low, factor = draw(st.sampled_from([0.5, 1.0])), draw(st.sampled_from([2.0, 32.0]))
        values["rope_scaling"] = dict(
            rope_type="llama3", factor=factor, low_freq_factor=low, high_freq_factor=4 * low, original_max_position_embeddings=16
        )
    return values


@settings(deadline=None, max_examples=40)
@given(values=published(), batch=st.integers(1, 3), T=st.integers(1, 40), seed=st.integers(0, 999))
def test_logits_equal_those_of_transformers(values, batch, T, seed):
    theirs = LlamaForCausalLM(TheirConfig(**values, pad_token_id=None)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, p in theirs.named_parameters():
        p.normal_(mean=1.0 if "norm" in name else 0.0, std=0.3, generator=generator)
    tokens = torch.randint(values["vocab_size"], (batch, T), generator=generator)
    expected = theirs(tokens).logits
    for config in (values, json.loads(theirs.config.to_json_string(use_diff=False))):  # as older files say it, and as newer ones
        ours = Llama.of(LlamaConfig(**llama_config(config)), llama_weights(theirs.state_dict()))
        assert ours.config.tied == values["tie_word_embeddings"]
        close(ours(tokens), expected, 1e-4)


@pytest.mark.parametrize("changes", [{"rope_base": 10.0}, {"rope_scaling": SCALING}, {"norm_eps": 0.1}, {"kv_heads": 4}])
def test_what_a_config_says_moves_the_logits(changes):
    """Guards the tests above."""
    tokens, plain = random_tokens(1, 30), random_llama()
    changed = random_llama(**changes)
    if "kv_heads" not in changes:
        changed.load_state_dict(plain.state_dict())
    assert (changed(tokens) - plain(tokens)).abs().max() > 0.1


def test_an_rms_norm_by_hand():
    """The mean square of 3 and 4 is 12.5; with eps 3.5 the root is 4."""
    norm = Norm(LlamaConfig(width=2, heads=1, kv_heads=1, norm_eps=3.5)).requires_grad_(False)
    close(norm(torch.tensor([3.0, 4.0])), torch.tensor([0.75, 1.0]), 1e-6)
    norm.weight.copy_(torch.tensor([2.0, -1.0]))
    close(norm(torch.tensor([3.0, 4.0])), torch.tensor([1.5, -1.0]), 1e-6)


def test_stretched_frequencies_are_those_of_the_longer_context():
    """Llama 3.2 1B: 64 numbers a head, base 500000, stretched 32 times; the reading of its own inventors, wave by wave."""
    frequencies = 500000.0 ** (-torch.arange(32) / 32)
    found = stretched(frequencies, factor=32.0, low=1.0, high=4.0, original=8192)
    for one, mine in zip(frequencies.tolist(), found.tolist(), strict=True):
        wave = 2 * math.pi / one
        if wave < 8192 / 4:
            expected = one
        elif wave > 8192:
            expected = one / 32
        else:
            share = (8192 / wave - 1) / 3
            expected = (1 - share) * one / 32 + share * one
        assert mine == pytest.approx(expected, rel=1e-5)


# ----------------------------------------------------------------------------------------------------- causality and padding


def test_a_token_moves_its_own_logits_and_later_ones_but_none_before():
    model, tokens = random_llama(), random_tokens(1, 8)
    before = model(tokens)[0]
    for place in range(8):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % V
        moved = (model(changed)[0] - before).abs().amax(1)  # (T,)
        assert (moved[:place] <= 1e-6).all() and (moved[place:] > 1e-4).all(), place


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    kv_heads=st.sampled_from([1, 2, 4]),
    scaling=st.sampled_from([None, SCALING]),
)
def test_padding_does_not_move_logits(lengths, side, kv_heads, scaling):
    model = random_llama(kv_heads=kv_heads, rope_scaling=scaling)
    rows = [random_tokens(1, length, seed)[0] for seed, length in enumerate(lengths)]
    tokens, mask = side_by_side(rows, side)
    for cache in (None, KVCache(model.config, len(rows), max(lengths))):
        logits = model(tokens, mask, cache)
        assert logits.isfinite().all()
        for row, own in enumerate(rows):
            close(logits[row, mask[row]], model(own[None])[0], 1e-4)


def test_padded_rows_leave_no_trace_in_the_gradient():
    model = random_llama().requires_grad_(True)
    rows = [random_tokens(1, length, seed)[0] for seed, length in enumerate((6, 2))]
    tokens, mask = side_by_side(rows, "left")
    model(tokens, mask)[mask].square().sum().backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for own in rows:
        model(own[None]).square().sum().backward()
    for found, p in zip(together, model.parameters(), strict=True):
        torch.testing.assert_close(found, p.grad, rtol=1e-4, atol=1e-4 * p.grad.abs().max().item())


# ------------------------------------------------------------------------------------------------------------------ the cache


@settings(deadline=None, max_examples=25)
@given(
    data=st.data(),
    kv_heads=st.sampled_from([1, 2, 4]),
    scaling=st.sampled_from([None, SCALING]),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
)
def test_any_pieces_of_rows_equal_the_rows_alone(data, kv_heads, scaling, lengths):
    """A step at a time or several; pieces may be all padding for some rows."""
    rows = [random_tokens(1, length, seed)[0] for seed, length in enumerate(lengths)]
    tokens, mask = side_by_side(rows, "left")
    model = random_llama(kv_heads=kv_heads, rope_scaling=scaling)
    cache, start = KVCache(model.config, len(rows), tokens.shape[1] + 2), 0
    assert cache.keys.shape[2] == kv_heads
    logits = []
    while start < tokens.shape[1]:
        end = start + data.draw(st.integers(1, tokens.shape[1] - start))
        logits.append(model(tokens[:, start:end], mask[:, start:end], cache))
        start = end
    logits = torch.cat(logits, dim=1)
    for row, own in enumerate(rows):
        close(logits[row, mask[row]], model(own[None])[0], 1e-5)


def test_the_context_can_be_filled_and_not_passed():
    model, tokens = random_llama(), random_tokens(1, CONTEXT + 1)
    message = f"{CONTEXT + 1} tokens are more than the model's context of {CONTEXT}"
    whole = model(tokens[:, :-1])
    with pytest.raises(ValueError, match=message):
        model(tokens)
    cache = KVCache(model.config, 1, CONTEXT + 1)
    close(model(tokens[:, :-1], cache=cache), whole, 1e-5)
    with pytest.raises(ValueError, match=message):
        model(tokens[:, -1:], cache=cache)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_of_samples_equal_rescoring(kv_heads, temperature):
    """Prompts of different length, some of which end early and leave the batch."""
    model = random_llama(kv_heads=kv_heads, rope_scaling=SCALING)
    prompts = [random_tokens(1, length, seed)[0].tolist() for seed, length in enumerate((7, 1, 4, 4, 2, 9))]
    generator = torch.Generator().manual_seed(0)
    samples = generate(model, prompts, 16, temperature=temperature, generator=generator, end_token=2)
    assert 6 < samples.mask.sum() < samples.mask.numel()
    again = token_logprobs(model, prompts, samples.tokens, samples.mask, temperature=temperature)
    close(again, samples.logprobs, 1e-4)
    for row, prompt in enumerate(prompts):  # and by the whole distribution, without padding
        own = samples.tokens[row][samples.mask[row]]
        whole = torch.tensor([prompt + own.tolist()])
        expected = (model(whole)[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1).gather(1, own[:, None])[:, 0]
        close(samples.logprobs[row][samples.mask[row]], expected, 1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_base": {}},
        {"rope_base": 0.0},
        {"norm_eps": "x"},
        {"norm_eps": float("nan")},
        {"rope_base": float("inf")},
        {"rope_base": 10**19},
        {"rope_scaling": {"factor": "x", "low": 1.0, "high": 4.0, "original": 8}},
    ],
)
def test_a_number_of_the_shape_that_is_none_is_refused_by_name(change):
    with pytest.raises(ValueError, match=r"must be a number above 0 and below 1e18, got"):
        LlamaConfig(**change)
