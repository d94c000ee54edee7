"""Chapter 02: other correct answers pass, and what is special about its checks."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises import EXERCISES, NotYet, answer, check, draw, judge, load
from rlhf_lib.models.gpt import GPTConfig
from rlhf_lib.models.layers import rotary_table, rotate

load()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what is solved is noted in the working directory


# ----------------------------------------------------------------------------------------- other correct answers


def causal_mask(T, S):
    return torch.arange(S)[None, :] <= torch.arange(S - T, S)[:, None]


def attention(q, k, v, mask):
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(q.shape[-1])
    scores = torch.where(mask, scores, torch.tensor(-1e30))
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    weights = powers / powers.sum(-1, keepdim=True)
    return torch.einsum("bhts,bhsd->bhtd", weights, v), weights


def multi_head(x, qkv, out, heads):
    """A loop over the heads, each with its own rows of the weights and its own columns of the output matrix."""
    B, T, C = x.shape
    D = C // heads
    y = torch.zeros_like(x)
    for head in range(heads):
        rows = range(head * D, (head + 1) * D)
        q, k, v = (x @ qkv[[part * C + row for row in rows]].T for part in range(3))
        ahead = torch.full((T, T), -torch.inf, device=x.device).triu(1).expand(B, T, T)
        scores = torch.baddbmm(ahead, q, k.transpose(1, 2), alpha=D**-0.5)
        y = y + scores.softmax(-1) @ v @ out[:, list(rows)].T
    return y


def rotary(x, positions):
    half = x.shape[-1] // 2
    angles = torch.outer(positions.float(), torch.exp(-math.log(10000) * torch.arange(half, device=x.device) / half))
    angles = torch.cat([angles, angles], dim=-1)
    swapped = torch.cat([-x[..., half:], x[..., :half]], dim=-1)  # the form in most published code
    return x * angles.cos() + swapped * angles.sin()


def layer_norm(x, gain, bias, eps):
    centred = x - x.mean(dim=-1, keepdim=True)
    return torch.addcmul(bias, centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps), gain)


def block(x, norm1, attend, norm2, feed):
    stream = [x]
    for norm, part in ((norm1, attend), (norm2, feed)):
        stream.append(part(norm(sum(stream))))
    return torch.stack(stream).sum(0)


ALTERNATIVES = {
    one.__name__: one
    for one in (
        causal_mask, attention, multi_head, rotary, layer_norm, block,
    )
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("name", ALTERNATIVES)
def test_every_correct_answer_passes(name, seed):
    check(name, ALTERNATIVES[name], seed=seed)


def test_every_exercise_of_the_chapter_has_another_correct_answer():
    assert set(ALTERNATIVES) == {name for name, one in EXERCISES.items() if one.number.startswith("2.") and one.number < "2.7"}


# ----------------------------------------------------------------------------------------- what is special here


def said(name, function):
    with pytest.raises(NotYet) as refused:
        check(name, function)
    return str(refused.value)


def test_sampling_code_without_the_causal_mask_gets_its_name():
    assert "nothing is masked" in said("causal_mask", lambda T, S: torch.ones(T, S).bool())
    assert "every position sees the future" in said("multi_head", lambda x, qkv, out, heads: heads_by_pytorch(x, qkv, out, heads))


def heads_by_pytorch(x, qkv, out, heads):
    """What one gets from nn.MultiheadAttention when attn_mask is forgotten."""
    layer = nn.MultiheadAttention(x.shape[-1], heads, bias=False, batch_first=True)
    weights = {"in_proj_weight": qkv, "out_proj.weight": out}
    return torch.func.functional_call(layer, weights, (x, x, x), {"need_weights": False})[0]


def test_weights_that_are_copied_into_a_layer_get_no_gradient():
    def copied(x, qkv, out, heads):
        make, mix = nn.Linear(x.shape[-1], len(qkv), bias=False), nn.Linear(*out.shape, bias=False)
        make.weight.data, mix.weight.data = qkv.data, out.data
        y = multi_head(x, make.weight, torch.eye(len(out)), heads)
        return mix(y)

    assert "no gradient reaches `qkv` and `out`" in said("multi_head", copied)


def test_a_triangle_from_the_first_key_shows_only_where_there_are_more_keys_than_queries():
    """This is how scaled_dot_product_attention's is_causal=True counts, and it breaks a cache."""

    def is_causal(T, S):
        return F.scaled_dot_product_attention(torch.zeros(T, 1), torch.zeros(S, 1), torch.eye(S), is_causal=True) > 0

    inputs = draw("causal_mask")
    verdict = judge("causal_mask", inputs, answer("causal_mask", is_causal, inputs))
    assert "the T queries are the last of the S positions" in verdict.message
    assert verdict.arguments == {"T": 1, "S": 3}  # the smallest input with more keys than queries


def test_attention_without_its_scale_is_named_also_when_it_is_pytorchs_own():
    def unscaled(q, k, v, mask):
        weights = (q @ k.mT).masked_fill(~mask, float("-inf")).softmax(-1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0), weights

    assert "this is attention without the 1/sqrt(D)" in said("attention", unscaled)


def test_an_overflow_is_named_and_shown_on_the_large_scores():
    def naive(q, k, v, mask):
        powers = torch.exp(q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, 0)
        weights = powers / powers.sum(-1, keepdim=True)
        return weights @ v, weights

    inputs = draw("attention")
    verdict = judge("attention", inputs, answer("attention", naive, inputs))
    assert "overflows" in verdict.message and verdict.arguments is inputs[-2]


def test_the_worked_example_of_attention():
    q, k = torch.ones(1, 1, 1, 4), torch.stack([torch.ones(4), torch.zeros(4)])[None, None]
    output, weights = EXERCISES["attention"].right(q, k, torch.eye(2, 4)[None, None], torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor([0.8808, 0.1192]), atol=1e-4, rtol=0)
    torch.testing.assert_close(output[0, 0, 0], torch.tensor([0.8808, 0.1192, 0.0, 0.0]), atol=1e-4, rtol=0)


def test_rotary_is_what_the_library_does():
    config = GPTConfig(width=16, heads=2)
    x, positions = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 4])
    ours = EXERCISES["rotary"].right(x, positions)
    torch.testing.assert_close(ours, rotate(x, rotary_table(config, positions[None])), atol=1e-5, rtol=0)


def position_by_position(x, positions):
    turned = [rotary(x[:, :, [place]], positions[[place]]) for place in range(len(positions))]
    return torch.cat(turned, dim=2)


def on_the_processor(x, positions):
    half = x.shape[-1] // 2
    angles = positions[:, None] * 10000.0 ** (-torch.arange(half) / half)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1)


def test_a_loop_over_positions_and_a_tensor_on_another_device_are_told_where_the_numbers_are_right():
    assert "goes through the positions in a loop" in said("rotary", position_by_position)
    assert "does not lie where x does" in said("rotary", on_the_processor)


def test_the_worked_example_of_rotary():
    x = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4)
    turned = EXERCISES["rotary"].right(x, torch.tensor([1]))[0, 0, 0]
    torch.testing.assert_close(turned, torch.tensor([0.540, 1.000, 0.841, 0.010]), atol=5e-4, rtol=0)


@pytest.mark.parametrize("name", ["causal_mask", "attention", "multi_head"])
def test_pictures_are_drawn_from_what_came_out(name):
    exercise, inputs = EXERCISES[name], draw(name)[1]
    right = answer(name, exercise.right, [inputs])[0]
    figure = exercise.draw_picture(inputs, right, right)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["came out", "expected"]
    assert figure.axes[0].get_ylabel() == ("place" if name == "multi_head" else "query")


def test_without_a_gradient_nothing_can_be_trained():
    def detached(x, gain, bias, eps):
        return layer_norm(x, gain, bias, eps).detach()

    assert "without a gradient" in said("layer_norm", detached)


def test_a_mask_that_is_not_causal_is_to_be_used_as_it_is():
    def with_its_own(q, k, v, mask):
        return attention(q, k, v, causal_mask(*mask.shape))

    assert "a causal mask is used in place of the one that is given" in said("attention", with_its_own)


def test_huge_numbers_under_the_mask_do_not_matter_and_small_fills_do():
    def filled(low):
        def answer(q, k, v, mask):
            weights = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, low).softmax(-1)
            return weights @ v, weights

        return answer

    assert "not low enough" in said("attention", filled(-100.0))
    check("attention", filled(-1e9))


def test_what_is_drawn_goes_beyond_what_is_made_beforehand():
    assert any(one["mask"].tolist() == [[False, True, False, True]] for one in draw("attention"))
    assert max(one["x"].shape[1] for one in draw("multi_head")) > 128
    assert max(int(one["positions"].max()) for one in draw("rotary")) > 8192


def test_a_part_may_give_back_what_it_reads_and_is_called_once():
    def in_place(x, norm1, attend, norm2, feed):
        y = attend(norm1(x))
        y += x
        return feed(norm2(y)) + y

    def adding(x, norm1, attend, norm2, feed):
        x += attend(norm1(x))
        return x + feed(norm2(x))

    def adding_later(x, norm1, attend, norm2, feed):
        x = x + attend(norm1(x))
        x += feed(norm2(x))
        return x

    assert "it changed its argument x in place" in said("block", in_place)
    assert "it changed its argument x in place" in said("block", adding)
    assert "it changes a tensor in place, as x += ... does" in (message := said("block", adding_later))
    assert "parts_of(x, heads, seed)" in message and "norm1, attend" in message
    assert "attend is called twice" in said("block", lambda x, n, a, m, f: x + a(n(x)) + f(m(x + a(n(x)))))


def test_the_parts_of_a_message_are_those_of_the_check():
    one = draw("block")[0]
    space = dict(one)
    exec(one["made"], space)
    came = block(*(space[name] for name in ("x", "norm1", "attend", "norm2", "feed")))
    torch.testing.assert_close(came.detach(), answer("block", block, [one])[0])


def test_a_variance_in_one_pass_is_lost_far_from_0():
    def one_pass(x, gain, bias, eps):
        mean = x.mean(-1, keepdim=True)
        return (x - mean) * torch.rsqrt((x * x).mean(-1, keepdim=True) - mean**2 + eps) * gain + bias

    assert "is the difference of two large numbers" in said("layer_norm", one_pass)
    check("layer_norm", lambda x, gain, bias, eps: F.layer_norm(x, gain.shape, gain, bias, eps))


@pytest.mark.parametrize("by_hand", [(1.0, 3.0, -1.0, 1.0), (2.0, 2.0, 0.0, 0.0)])
def test_layer_norm_by_hand(by_hand):
    *x, low, high = by_hand
    came = EXERCISES["layer_norm"].formula(torch.tensor([x]), torch.ones(2), torch.zeros(2), 1e-5)
    torch.testing.assert_close(came, torch.tensor([[low, high]]), atol=1e-4, rtol=0)


def test_a_mask_that_comes_late_is_named_also_when_the_rows_are_divided_again():
    def late(q, k, v, mask):
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) * mask
        weights = weights / weights.sum(-1, keepdim=True)
        return weights @ v, weights

    assert "0 is divided by 0" in said("attention", late)


def test_weights_that_are_not_those_of_the_output_are_named():
    def both(q, k, v, mask):
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v, scores.softmax(-1)

    assert "made without the mask" in said("attention", both)


@pytest.mark.parametrize(
    "parts, name", [((0, 0, 0), "rows of their own"), ((0, 1, 1), "rows of their own"), ((2, 0, 1), "another order")]
)
def test_heads_made_by_the_wrong_rows_are_named(parts, name):
    def heads_of(x, qkv, out, heads):
        rows = qkv.chunk(3)
        return multi_head(x, torch.cat([rows[one] for one in parts]), out, heads)

    assert name in said("multi_head", heads_of)


def test_pairs_read_as_neighbours_and_written_as_halves_are_named():
    def half_and_half(x, positions):
        n = x.shape[-1] // 2
        angles = positions[:, None] * 10000.0 ** (-torch.arange(n) / n)
        a, b = x[..., ::2], x[..., 1::2]
        return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)

    assert "read as neighbours and written as halves" in said("rotary", half_and_half)


def test_parts_side_by_side_as_in_gpt_j_are_named():
    assert "both parts read the block's input" in said("block", lambda x, n, a, m, f: x + a(n(x)) + f(n(x)))
