import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib.exercises import find, verdict
from rlhf_lib.exercises.gradients import call_with_gradients, with_gradients


def test_a_gradient_of_a_part_of_the_output_alone_is_refused():
    def skip_cut_off(x, norm1, attend, norm2, feed):
        x = x.detach() + attend(norm1(x))
        return x + feed(norm2(x))

    def without_the_spread(x, gain, bias, eps):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (x.var(-1, correction=0, keepdim=True) + eps).sqrt().detach() * gain + bias

    def half_of_it(x, positions):
        half = x.shape[-1] // 2
        angles = positions[:, None] * 10000.0 ** (-torch.arange(half) / half)
        a, b = x[..., :half], x[..., half:].detach()
        return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)

    for name, function in (("block", skip_cut_off), ("layer_norm", without_the_spread), ("rotary", half_of_it)):
        assert "a part is cut off" in verdict(name, function).message, name


def test_a_gradient_that_one_argument_or_one_output_lacks_is_refused():
    def keys_cut_off(q, k, v, mask):
        weights = (q @ k.detach().mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf).softmax(-1)
        return weights @ v, weights

    def weights_cut_off(q, k, v, mask):
        weights = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf).softmax(-1)
        return weights.detach() @ v, weights

    for function in (keys_cut_off, weights_cut_off):
        assert "a part is cut off" in verdict("attention", function).message
    plain = find("gpt_logits").right

    def without(cut, tokens, weights, layers, heads):
        return plain(tokens, weights | {cut: weights[cut].detach()}, layers, heads)

    for cut in ("blocks.0.attention.qkv.weight", "position_embedding.weight", "norm.bias"):
        assert "a part is cut off" in verdict("gpt_logits", functools.partial(without, cut)).message, cut


def test_what_has_no_gradient_at_all_raises():
    with pytest.raises(RuntimeError, match="does not require grad"):
        with_gradients(lambda x: x.detach() * 2, torch.ones(3))


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 10**6),
    st.sampled_from([torch.tanh, torch.relu, torch.square, lambda x: x.softmax(-1), lambda x: x.cumsum(-1)]),
)
def test_a_whole_gradient_passes_and_half_of_it_does_not(seed, function):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(call_with_gradients(lambda x: function(x) + 3 * x, x=x), function(x) + 3 * x)
    with pytest.raises(RuntimeError, match="a part is cut off"):
        with_gradients(lambda x: function(x) + 30 * x.detach(), x)


@pytest.mark.parametrize("seed", [802, 850, 1084])
def test_a_right_block_passes_where_a_relu_has_its_edge_within_the_step(seed):
    def block(x, norm1, attend, norm2, feed):
        x = x + attend(norm1(x))
        return x + feed(norm2(x))

    assert verdict("block", block, seed).passed


def test_what_is_empty_is_compared_and_not_differentiated():
    assert with_gradients(lambda x: x[:, :0], torch.ones(1, 3)).shape == (1, 0)


def test_of_an_edge_that_is_too_sharp_for_the_step_nothing_is_said():
    sharp = lambda x: (x / 1e-4).sigmoid()  # noqa: E731
    assert with_gradients(lambda x: sharp(x.detach()) + x, torch.zeros(5)).shape == (5,)


def test_what_is_no_float_is_passed_through():
    tokens = torch.arange(3)
    assert torch.equal(with_gradients(lambda tokens: tokens + 1, tokens), tokens + 1)
