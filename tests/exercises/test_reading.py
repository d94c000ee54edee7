"""Reading a GPT whole and with a cache."""

import pytest
import torch

from rlhf_lib.exercises.reading import FAULTS, Named, made, read_alone, read_with_cache

SIZES = dict(vocab_size=11, context=24, layers=2, heads=2, width=16)
MASK = torch.tensor([[False, False, True, True], [True] * 4])


def drawn(*shape):
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(2))


def test_with_the_cache_a_row_reads_as_it_does_alone():
    prompts, tokens = drawn(2, 4), drawn(2, 6)
    alone = read_alone(made(0, SIZES), prompts, MASK, tokens)
    assert alone.shape == (2, 6, 11)
    for columns in (False, True):  # rotary positions: the distances alone count
        assert torch.allclose(read_with_cache(made(0, SIZES), prompts, MASK, tokens, columns=columns), alone, atol=1e-5)


@pytest.mark.parametrize("sentence", FAULTS)
def test_every_fault_shows(sentence):
    prompts, tokens = drawn(2, 4), drawn(2, 6)
    alone = read_alone(made(0, SIZES), prompts, MASK, tokens)
    for options in FAULTS[sentence]:
        assert (read_with_cache(made(0, SIZES), prompts, MASK, tokens, **options) - alone).abs().max() > 1e-2


def test_a_named_gpt_has_the_weights_the_sizes_and_the_logits_of_the_course_s():
    gpt = made(1, SIZES)
    model, tokens = Named(gpt), drawn(2, 5)
    assert {name: w.shape for name, w in model.state_dict().items()} == {n: w.shape for n, w in gpt.state_dict().items()}
    assert (model.heads, model.context, model.vocab_size) == (2, 24, 11) and not hasattr(model, "config")
    assert torch.equal(model(tokens), gpt(tokens)) and torch.equal(model.head(model.hidden(tokens)), gpt(tokens))
    assert all((weight != 0).all() for weight in gpt.parameters())


def test_some_tokens_have_no_probability_anywhere():
    logits = made(1, SIZES, never=[0, 10])(drawn(8, 20))
    assert (logits.softmax(-1)[:, :, [0, 10]] == 0).all() and (logits.softmax(-1)[:, :, 1:10] > 0).all()
