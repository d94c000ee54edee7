import pytest
import torch

from rlhf_lib import talk
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.tokenization import CharTokenizer

from .helpers import Speaker, model_of


@pytest.fixture(scope="module")
def tokenizer():
    return CharTokenizer.train(["abcdefgh <>&\n."])


@pytest.fixture(scope="module")
def reward_model(tokenizer):
    model = RewardModel(model_of(tokenizer, 2))
    torch.nn.init.normal_(model.score.weight)
    return model.eval()


@pytest.fixture
def speakers(monkeypatch):
    """A Speaker says its texts; other models are drawn from as always."""
    real = talk.draw
    monkeypatch.setattr(
        talk, "draw", lambda model, *rest: model.draw(*rest) if isinstance(model, Speaker) else real(model, *rest)
    )
