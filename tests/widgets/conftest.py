import pytest
import torch

from rlhf_lib.models.heads import RewardModel
from rlhf_lib.tokenization import CharTokenizer

from .helpers import model_of


@pytest.fixture(scope="module")
def tokenizer():
    return CharTokenizer.train(["abcdefgh <>&\n."])


@pytest.fixture(scope="module")
def reward_model(tokenizer):
    model = RewardModel(model_of(tokenizer, 2))
    torch.nn.init.normal_(model.score.weight)
    return model.eval()
