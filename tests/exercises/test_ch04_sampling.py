"""Chapter 04's checks: answers written another way pass, and the published mistakes get their names."""

import math

import pytest
import torch
from torch.nn import functional as F

from rlhf_lib import exercises
from rlhf_lib.exercises import verdict
from rlhf_lib.models.layers import causal_mask, pad
from rlhf_lib.sampling import draw


def with_temperature(logits, temperature):
    scaled = logits / temperature
    return scaled - scaled.logsumexp(-1, keepdim=True)


def top_k_filter(logits, k):
    smallest = logits.sort(dim=-1, descending=True).values[..., : k or None][..., -1:]
    return logits.masked_fill(logits < smallest, -math.inf)


def top_p_filter(logits, p):
    ranked, order = logits.sort(-1, descending=True)
    sums = ranked.softmax(-1).cumsum(-1)
    count = 1 + (sums < p).sum(-1, keepdim=True)  # how many tokens stay
    places = order.argsort(-1)  # each token's place among the sorted ones
    return torch.where(places < count, logits, -math.inf)


def draw_token(logprobs, uniforms):
    cumulative = logprobs.exp().cumsum(-1)
    above = cumulative > (uniforms[:, None] * cumulative[:, -1:])
    return above.int().argmax(-1)


def until_end(tokens, end_token):
    ends = (tokens == end_token).long()
    return ends.cumsum(1) - ends == 0


def sample(model, prompts, uniforms, temperature):
    was = model.training
    model.eval()
    tokens = prompts.clone()
    with torch.inference_mode():
        for step in range(uniforms.shape[1]):
            cumulative = (model(tokens)[:, -1] / temperature).softmax(-1).cumsum(-1)
            new = (cumulative <= uniforms[:, step : step + 1]).sum(1, keepdim=True)
            tokens = torch.cat([tokens, new], dim=1)
    model.train(was)
    return tokens[:, prompts.shape[1] :].clone()


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


ALTERNATIVES = {
    one.__name__: one
    for one in (
        with_temperature, top_k_filter, top_p_filter, draw_token, until_end, sample, sequence_logprob, left_padding, cached_step,
    )
}  # fmt: skip


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


def test_of_equally_likely_tokens_the_fewest_stay_and_any_of_them():
    def threshold(logits, p):
        ranked = logits.softmax(-1).sort(-1, descending=True).values
        least = ranked.masked_fill(ranked.cumsum(-1) - ranked >= p, math.inf).amin(-1, keepdim=True)
        return torch.where(logits.softmax(-1) >= least, logits, -math.inf)

    assert "take the fewest" in verdict("top_p_filter", threshold).message
    for descending in (False, True):  # of equal ones, the first or the last
        flip = (lambda x: x.flip(-1)) if descending else (lambda x: x)
        assert verdict("top_p_filter", lambda logits, p, flip=flip: flip(top_p_filter(flip(logits), p))).passed


def test_a_score_that_carries_no_gradient_does_not_pass():
    def learner(**arguments):
        return sequence_logprob(**arguments).detach()

    assert not verdict("sequence_logprob", learner).passed


def test_a_mask_without_the_causal_triangle_gets_its_name():
    def learner(real):
        return left_padding(real)[0], real[:, None, :].expand(-1, real.shape[1], -1)

    assert "no causal mask" in verdict("left_padding", learner).message


def test_dropout_left_on_while_sampling_gets_its_name():
    @torch.no_grad()
    def learner(model, prompts, uniforms, temperature):
        tokens = prompts
        for step in range(uniforms.shape[1]):
            logprobs = (model(tokens)[:, -1] / temperature).log_softmax(-1)
            tokens = torch.cat([tokens, draw(logprobs, uniforms[:, step].contiguous())[:, None]], dim=1)
        return tokens[:, prompts.shape[1] :]

    assert "dropout is still on" in verdict("sample", learner).message


def test_is_causal_with_one_query_gets_its_name():
    def learner(q, k, v, keys, values):
        keys, values = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        return F.scaled_dot_product_attention(q, keys, values, is_causal=True), keys, values

    found = verdict("cached_step", learner)
    assert "FIRST key" in found.message
    assert found.arguments["keys"].shape[2] == 2  # with an empty cache it is right: this is the smallest that shows it


def test_the_smallest_failing_input_is_shown():
    """A top-k that is right for one row alone, and no mistake that has a name, fails first on the batch."""

    def learner(logits, k):
        return top_k_filter(logits, k) if logits.dim() == 1 else top_k_filter(logits, k) + 1

    found = verdict("top_k_filter", learner)
    assert not found.mistake and found.arguments["logits"].shape == (2, 4)


def test_the_oracle_of_left_padding_agrees_with_the_library_s_padding():
    _, real = pad([[5], [5, 6, 7], [5, 6]], "left")
    positions, attend = exercises.find("left_padding").right(real)
    assert positions.tolist() == [[0, 0, 0], [0, 1, 2], [0, 0, 1]]
    assert torch.equal(attend, causal_mask(3, 3, real, "cpu")[:, 0])
