"""Chapter 04, scoring and caching: answers written another way pass, and the published mistakes get their names."""

import math

import pytest
import torch
from torch.nn import functional as F

from rlhf_lib import exercises
from rlhf_lib.exercises import verdict
from rlhf_lib.models.layers import causal_mask, pad


def sequence_logprob(logits, tokens, mask, temperature, top_k):
    scaled = logits[:, :-1] / temperature
    if top_k:
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[..., -1:], -math.inf)
    losses = F.cross_entropy(scaled.transpose(1, 2), tokens[:, 1:], reduction="none")
    return -losses.masked_fill(~mask[:, 1:], 0.0).sum(1)


def left_padding(real):
    attend = causal_mask(real.shape[1], real.shape[1], real, "cpu")[:, 0]
    return torch.where(real, real.long().cumsum(1) - 1, 7), attend


def cached_step(q, k, v, keys, values):
    keys, values = torch.cat([keys, k], dim=-2), torch.cat([values, v], dim=-2)
    scores = torch.einsum("bhqd,bhkd->bhqk", q, keys) / math.sqrt(q.shape[-1])
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), values), keys, values


ALTERNATIVES = {one.__name__: one for one in (sequence_logprob, left_padding, cached_step)}


@pytest.mark.parametrize("name", ALTERNATIVES)
@pytest.mark.parametrize("seed", [0, 5])
def test_every_correct_answer_passes(name, seed):
    found = verdict(name, ALTERNATIVES[name], seed)
    assert found.passed, found.message


def test_scoring_with_the_full_softmax_after_sampling_with_top_k_gets_its_name():
    def learner(logits, tokens, mask, temperature, top_k):
        return sequence_logprob(logits, tokens, mask, temperature, 0)

    assert "sampled with top-k" in verdict("sequence_logprob", learner).message


def test_scoring_at_another_temperature_gets_its_name():
    def learner(logits, tokens, mask, temperature, top_k):
        return sequence_logprob(logits, tokens, mask, 1.0, top_k)

    assert "sampled at another" in verdict("sequence_logprob", learner).message


def test_an_answer_that_never_scores_the_last_token_gets_its_name():
    def learner(logits, tokens, mask, temperature, top_k):
        last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
        mask = mask.clone()
        mask[range(len(mask)), last] = False
        return sequence_logprob(logits, tokens, mask, temperature, top_k)

    assert "never scored" in verdict("sequence_logprob", learner).message


def test_a_mask_that_is_multiplied_in_gets_its_name():
    """What was not drawn need not be among the top k: its log-probability is minus infinity."""

    def learner(logits, tokens, mask, temperature, top_k):
        scaled = logits[:, :-1] / temperature
        if top_k:
            scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[..., -1:], -math.inf)
        return (scaled.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0] * mask[:, 1:]).sum(1)

    assert "minus infinity times" in verdict("sequence_logprob", learner).message


def test_a_score_that_carries_no_gradient_does_not_pass():
    def learner(**arguments):
        return sequence_logprob(**arguments).detach()

    assert not verdict("sequence_logprob", learner).passed


def test_a_mask_without_the_causal_triangle_gets_its_name():
    def learner(real):
        return left_padding(real)[0], real[:, None, :].expand(-1, real.shape[1], -1)

    assert "no causal mask" in verdict("left_padding", learner).message


def test_is_causal_with_one_query_gets_its_name():
    def learner(q, k, v, keys, values):
        keys, values = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        return F.scaled_dot_product_attention(q, keys, values, is_causal=True), keys, values

    found = verdict("cached_step", learner)
    assert "FIRST key" in found.message
    assert found.arguments["keys"].shape[2] == 2  # with an empty cache it is right: this is the smallest that shows it


def test_the_oracle_of_left_padding_agrees_with_the_library_s_padding():
    _, real = pad([[5], [5, 6, 7], [5, 6]], "left")
    positions, attend = exercises.find("left_padding").right(real)
    assert positions.tolist() == [[0, 0, 0], [0, 1, 2], [0, 0, 1]]
    assert torch.equal(attend, causal_mask(3, 3, real, "cpu")[:, 0])


def scored(cut, pick=lambda logprobs, tokens: logprobs.gather(2, tokens[:, 1:, None])[..., 0], total=lambda x: x.sum(1)):
    """A score with a cut of its own: `cut` gets the scaled logits and top_k."""

    def answer(logits, tokens, mask, temperature, top_k):
        logprobs = cut(logits[:, :-1] / temperature, top_k).log_softmax(-1)
        return total(torch.where(mask[:, 1:], pick(logprobs, tokens), 0))

    return answer


def top(x, k, below=torch.lt, fill=-math.inf):
    return x.masked_fill(below(x, x.topk(k).values[..., -1:]), fill) if k else x


@pytest.mark.parametrize(
    "function, said",
    [
        (scored(lambda x, k: top(x, k, torch.le)), "one token too few"),
        (scored(lambda x, k: top(x, k, fill=0.0)), "cut tokens got a logit of 0"),
        (scored(lambda x, k: top(x, max(1, k))), "top_k = 0 cuts nothing; here the likeliest token alone stays"),
        (
            scored(lambda x, k: torch.full_like(x, -math.inf).scatter(-1, (best := x.topk(k)).indices, best.values)),
            "top_k = 0 cuts nothing; here it cuts all",
        ),
        (scored(top, lambda logprobs, tokens: logprobs.amax(-1)), "the likeliest tokens"),
        (scored(top, total=torch.sum), "all completions are added up"),
        (scored(top, total=lambda x: x), "not added up"),
        (scored(top, total=lambda x: x.sum()[None]), "all completions are added up"),
    ],
)
def test_a_score_gets_the_name_of_what_is_wrong_with_it(function, said):
    assert verdict("sequence_logprob", scored(top)).passed
    assert said in verdict("sequence_logprob", function).mistake


def test_a_squeeze_of_all_dimensions_gets_its_name():
    def learner(logits, tokens, mask, temperature, top_k):
        logprobs = top(logits[:, :-1] / temperature, top_k).log_softmax(-1)
        return torch.where(mask[:, 1:], logprobs.gather(2, tokens[:, 1:, None]).squeeze(), 0).sum(1)

    assert verdict("sequence_logprob", learner).mistake.startswith("squeeze() takes away")


@pytest.mark.parametrize("kept", [lambda old, new: old[:, :, 1:], lambda old, new: torch.cat([old, new], 2)[:, :, 1:-1]])
def test_a_cache_that_loses_its_oldest_entry_is_told_so(kept):
    def learner(q, k, v, keys, values):
        return cached_step(q, k, v, *(kept(*pair) for pair in ((keys, k), (values, v))))

    assert "the oldest token falls out of the cache" in verdict("cached_step", learner).mistake


def test_positions_of_another_type_are_told_so():
    message = verdict("left_padding", lambda real: (left_padding(real)[0].float(), left_padding(real)[1])).message
    assert "no int64, the type that the card asks for" in message


def test_a_mask_of_floats_is_told_so():
    message = verdict("left_padding", lambda real: (left_padding(real)[0], left_padding(real)[1].float())).message
    assert "attend is to be bool, not torch.float32" in message


def test_an_output_of_keys_and_one_beside_the_softmax_have_their_names():
    def of_keys(q, k, v, keys, values):
        return cached_step(q, k, k, keys, keys)[0], *cached_step(q, k, v, keys, values)[1:]

    assert verdict("cached_step", of_keys).mistake.startswith("the output is made of the keys")

    def beside(q, k, v, keys, values):
        old = (q @ keys.mT / math.sqrt(q.shape[-1])).softmax(-1) @ values
        return old + v, *cached_step(q, k, v, keys, values)[1:]

    assert verdict("cached_step", beside).mistake.startswith("the new value is added")


def test_a_score_normalised_before_it_is_divided_gets_its_name():
    def learner(logits, tokens, mask, temperature, top_k):
        scaled = logits[:, :-1].log_softmax(-1) / temperature
        if top_k:
            scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[..., -1:], -math.inf)
        scores = scaled.gather(2, tokens[:, 1:, None])[:, :, 0]
        return torch.where(mask[:, 1:], scores, 0).sum(1)

    assert "divided by the temperature; divide the logits" in verdict("sequence_logprob", learner).message


@pytest.mark.parametrize("dimension, what", [(1, "heads"), (2, "keys")])
def test_scores_divided_by_the_root_of_another_size_get_their_name(dimension, what):
    def learner(q, k, v, keys, values):
        keys, values = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        return (q @ keys.mT / math.sqrt(keys.shape[dimension])).softmax(-1) @ values, keys, values

    assert f"the root of the number of {what}" in verdict("cached_step", learner).mistake


def test_padding_is_drawn_where_the_masks_differ_with_whole_ticks_and_else_not():
    draw = exercises.find("left_padding").draw_picture
    right = {"mask": torch.eye(3, dtype=torch.bool).repeat(2, 1, 1)}
    with pytest.raises(ValueError, match="nothing to draw"):
        draw({}, right, right)
    wrong = {"mask": right["mask"].clone()}
    wrong["mask"][0, 0, 1] = True
    figure = draw({"real": torch.tensor([[False, True, True]] * 2)}, wrong, right)
    assert "prompt 0" in figure.get_suptitle()
    drawn = torch.tensor(figure.axes[1].images[0].get_array().filled(math.nan))
    assert drawn[0].isnan().all() and torch.equal(drawn[1:], right["mask"][0, 1:].double())  # the row of padding is left white
    assert all(tick == round(tick) for ax in figure.axes[:2] for tick in (*ax.get_xticks(), *ax.get_yticks()))


@pytest.mark.parametrize("part", ["keys", "values"])
@pytest.mark.parametrize("read", [False, True])
def test_a_new_key_or_value_in_front_is_named_by_itself(part, read):
    def learner(q, k, v, keys, values):
        y, new_keys, new_values = cached_step(q, k, v, keys, values)
        if part == "keys":
            new_keys = torch.cat([k, keys], dim=2)
        else:
            new_values = torch.cat([v, values], dim=2)
        return F.scaled_dot_product_attention(q, new_keys, new_values) if read else y, new_keys, new_values

    assert verdict("cached_step", learner).mistake.startswith(f"{part}: the new one stands in front")
