"""What reads wrongly by options reads rightly without them, and each option changes what is read."""

import pytest
import torch

from rlhf_lib.exercises.build04_misread import UNLIKE, read_otherwise
from rlhf_lib.exercises.reading import made, read_alone

GPT = made(3, dict(vocab_size=23, context=48, layers=2, heads=2, width=32))
PROMPTS, TOKENS = torch.randint(23, (2, 3, 6), generator=torch.Generator().manual_seed(3))
MASK = torch.arange(6) >= torch.tensor([[3], [0], [4]])


def test_without_options_it_reads_as_the_model_does():
    right = read_alone(GPT, PROMPTS, MASK, TOKENS)
    torch.testing.assert_close(read_otherwise(GPT, PROMPTS, MASK, TOKENS), right, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sentence", UNLIKE)
def test_each_option_reads_otherwise(sentence):
    right = read_alone(GPT, PROMPTS, MASK, TOKENS)
    for options in UNLIKE[sentence]:
        assert (read_otherwise(GPT, PROMPTS, MASK, TOKENS, **options) - right).abs().max() > 1e-2
