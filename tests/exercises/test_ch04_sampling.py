"""Chapter 04's checks: answers written another way pass, and the published mistakes get their names."""

import math

import pytest
import torch

from rlhf_lib import exercises
from rlhf_lib.exercises import verdict
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
    with torch.no_grad():
        for step in range(uniforms.shape[1]):
            cumulative = (model(tokens)[:, -1] / temperature).softmax(-1).cumsum(-1)
            new = (cumulative <= uniforms[:, step : step + 1]).sum(1, keepdim=True)
            tokens = torch.cat([tokens, new], dim=1)
    model.train(was)
    return tokens[:, prompts.shape[1] :].clone()


ALTERNATIVES = {
    one.__name__: one
    for one in (
        with_temperature, top_k_filter, top_p_filter, draw_token, until_end, sample,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERNATIVES)
@pytest.mark.parametrize("seed", [0, 5])
def test_every_correct_answer_passes(name, seed):
    found = verdict(name, ALTERNATIVES[name], seed)
    assert found.passed, found.message


def test_of_equally_likely_tokens_the_fewest_stay_and_any_of_them():
    def threshold(logits, p):
        ranked = logits.softmax(-1).sort(-1, descending=True).values
        least = ranked.masked_fill(ranked.cumsum(-1) - ranked >= p, math.inf).amin(-1, keepdim=True)
        return torch.where(logits.softmax(-1) >= least, logits, -math.inf)

    assert "take the fewest" in verdict("top_p_filter", threshold).message
    for descending in (False, True):  # of equal ones, the first or the last
        flip = (lambda x: x.flip(-1)) if descending else (lambda x: x)
        assert verdict("top_p_filter", lambda logits, p, flip=flip: flip(top_p_filter(flip(logits), p))).passed


def test_two_equal_tokens_that_both_stay_or_both_go_are_told_so():
    def answer(both):
        return lambda logits, p: both(logits) if len(logits) == 2 and logits.dim() == 1 else top_p_filter(logits, p)

    assert "one goes, whichever" in verdict("top_p_filter", answer(torch.clone)).mistake

    def counted(logits, p):
        rows = logits.softmax(-1).reshape(-1, logits.shape[-1]).tolist()
        before = [[sum(y for j, y in enumerate(row) if j != i and y >= x) for i, x in enumerate(row)] for row in rows]
        return logits.masked_fill(torch.tensor(before).view(logits.shape) >= p, -math.inf)

    assert "all go" in verdict("top_p_filter", counted).mistake


@pytest.mark.parametrize("seed", range(3))
def test_in_one_row_more_than_256_tokens_reach_p(seed):
    right = exercises.find("top_p_filter").right
    assert max(right(**one).isfinite().sum(-1).max() for one in exercises.draw("top_p_filter", seed)) > 256


def test_dropout_left_on_while_sampling_gets_its_name():
    @torch.no_grad()
    def learner(model, prompts, uniforms, temperature):
        tokens = prompts
        for step in range(uniforms.shape[1]):
            logprobs = (model(tokens)[:, -1] / temperature).log_softmax(-1)
            tokens = torch.cat([tokens, draw(logprobs, uniforms[:, step].contiguous())[:, None]], dim=1)
        return tokens[:, prompts.shape[1] :]

    assert "dropout is still on" in verdict("sample", learner).message


def test_the_smallest_failing_input_is_shown():
    """A top-k that is right for one row alone, and no mistake that has a name, fails first on the batch."""

    def learner(logits, k):
        return top_k_filter(logits, k) if logits.dim() == 1 else top_k_filter(logits, k) + 1

    found = verdict("top_k_filter", learner)
    assert not found.mistake and found.arguments["logits"].shape == (2, 4)


@pytest.mark.parametrize(
    "name, function, said",
    [
        (
            "with_temperature",
            lambda logits, temperature: (logits / temperature).log_softmax(min(1, logits.dim() - 1)),
            "dimension",
        ),
        ("with_temperature", lambda logits, temperature: (logits / temperature).softmax(-1).clamp(min=1e-9).log(), "away from 0"),
        ("with_temperature", lambda logits, temperature: (logits / temperature).log_softmax(1), "dimension"),
        ("with_temperature", lambda logits, temperature: (logits / temperature).log_softmax(-1) / math.log(2), "to the base 2"),
        ("top_k_filter", lambda logits, k: logits.topk(min(k, logits.shape[-1])).values, "keep the shape"),
        ("top_k_filter", lambda logits, k: logits.masked_fill(logits.argsort(-1, descending=True) >= k, -math.inf), "argsort of"),
        (
            "top_k_filter",
            lambda logits, k: logits + (logits < logits.topk(min(k, logits.shape[-1])).values[..., -1:]).float() * -math.inf,
            "is NaN: masked_fill",
        ),
        (
            "draw_token",
            lambda logprobs, uniforms: (logprobs.exp().cumsum(-1) >= uniforms[:, None]).int().argmax(-1),
            "at uniform 0",
        ),
        (
            "draw_token",
            lambda logprobs, uniforms: (logprobs.exp().cumsum(-1) > 1 - uniforms[:, None]).int().argmax(-1),
            "turned round",
        ),
        (
            "top_k_filter",
            lambda logits, k: logits.masked_fill(logits < logits.flatten().topk(min(k, logits.shape[-1])).values[-1], -math.inf),
            "one threshold",
        ),
        (
            "top_p_filter",
            lambda logits, p: logits.masked_fill(logits < top_p_filter(logits, p).nan_to_num(neginf=math.inf).min(), -math.inf),
            "one threshold",
        ),
        ("until_end", lambda tokens, end_token: (tokens != end_token).cumprod(1).roll(-1, 1).bool(), "moved the wrong way"),
        ("until_end", lambda tokens, end_token: (tokens == end_token).cumsum(1).roll(1, 1) == 0, "roll brings the last column"),
        (
            "draw_token",
            lambda logprobs, uniforms: (logprobs.exp().cumsum(-1) > uniforms).int().argmax(-1),
            "laid along the vocabulary",
        ),
        (
            "top_p_filter",
            lambda logits, p: torch.where(top_p_filter(logits, p).isinf(), -math.inf, logits.softmax(-1)),
            "what stays was normalised",
        ),
        ("sample", torch.inference_mode()(sample), "the tokens are inference_mode's"),
    ],
)
def test_a_frequent_mistake_has_its_name(name, function, said):
    assert said in verdict(name, function).mistake


def test_a_cut_that_is_gathered_back_goes_the_wrong_way():
    def gathered(logits, p):
        ranked, order = logits.softmax(-1).sort(-1, descending=True)
        return logits.masked_fill((ranked.cumsum(-1) - ranked >= p).gather(-1, order), -math.inf)

    assert verdict("top_p_filter", gathered).mistake.startswith("gather(order) takes the cut the wrong way")


def test_tokens_in_a_list_are_told_to_be_a_tensor():
    message = verdict("draw_token", lambda **given: draw_token(**given).tolist()).message
    assert "it returned a list of 1" in message and "tokens are to be a tensor" in message


def test_a_mask_of_one_row_is_drawn_with_whole_ticks():
    mask = torch.tensor([[True, True, False]])
    figure = exercises.find("until_end").draw_picture({}, mask, mask)
    assert all(tick == round(tick) for ax in figure.axes[:2] for tick in (*ax.get_xticks(), *ax.get_yticks()))


def test_tokens_copied_out_of_inference_mode_are_tokens_like_any_other():
    """They can be saved for a gradient."""
    assert verdict("sample", lambda *given: torch.inference_mode()(sample)(*given).clone()).passed


@pytest.mark.parametrize("find", [lambda ends, u: (ends <= u).sum(1).clamp(max=11), lambda ends, u: (ends > u).int().argmax(1)])
def test_logits_that_are_drawn_from_like_log_probabilities_are_told_so(find):
    def learner(model, prompts, uniforms, temperature):
        mode, tokens = model.training, prompts
        model.eval()
        with torch.no_grad():
            for number in uniforms.split(1, dim=1):
                ends = (model(tokens)[:, -1] / temperature).exp().cumsum(1)
                tokens = torch.cat([tokens, find(ends, number)[:, None]], dim=1)
        model.train(mode)
        return tokens[:, prompts.shape[1] :]

    assert "draw_token got logits and not log-probabilities" in verdict("sample", learner).mistake


def unnormalised(logits, p):
    ranked, order = logits.exp().sort(-1, descending=True)
    cut = ranked.cumsum(-1) - ranked >= p
    return logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), -math.inf)


def test_exp_without_its_sum_has_its_name():
    assert "does not sum to 1" in verdict("top_p_filter", unnormalised).mistake


def with_ends(stop, fill):
    """A `sample` that takes token 0 for an end: `stop` by which rows have ended, and filled behind it or not."""

    def answer(model, prompts, uniforms, temperature):
        tokens = sample(model, prompts, uniforms, temperature)
        ended = (tokens == 0).cumsum(1) > 0
        last = [step for step in range(tokens.shape[1]) if stop(ended[:, step])][:1]
        tokens = torch.where(until_end(tokens, 0), tokens, 0) if fill else tokens
        return tokens[:, : last[0] + 1] if last else tokens

    return answer


@pytest.mark.parametrize("seed", [0, 5, 7])
@pytest.mark.parametrize(
    "stop, fill, said",
    [
        (torch.all, False, "it stops at token 0"),
        (torch.all, True, "it stops at token 0"),
        (torch.any, False, "it stops at token 0"),
        (lambda ended: False, True, "what stands behind an end is filled"),
    ],
)
def test_a_loop_that_knows_of_an_end_is_told_that_there_is_none(stop, fill, said, seed):
    assert said in verdict("sample", with_ends(stop, fill), seed).mistake
