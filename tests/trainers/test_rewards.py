import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rlhf_lib import devices
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.tokenization import CharTokenizer
from rlhf_lib.trainers import preference, rewards, rollouts
from rlhf_lib.trainers.reward import score_texts
from rlhf_lib.trainers.rewards import (
    Normaliser,
    PreferenceReward,
    SentimentReward,
    answer_scores,
    blank_line_price,
    blank_lines,
    fit_normaliser,
    fit_reward,
    fit_within,
)
from rlhf_lib.trainers.rollouts import Rollout

from .helpers import FAMILIES, branch, language_model, same, weights

TOKENIZER = CharTokenizer(list("\nabcdefgh"))
SHAPE = dict(vocab_size=TOKENIZER.vocab_size, context=24, layers=2, heads=2, width=16)


class Fixed(nn.Module):
    """A reward model with the given log-odds; it notes whether its dropout was on, and how many rows it was given."""

    def __init__(self, logits):
        super().__init__()
        self.answers, self.modes, self.rows = torch.tensor(logits), [], []
        self.config = SimpleNamespace(width=16)

    def logits(self, tokens, mask):
        self.modes.append(self.training)
        self.rows.append(len(tokens))
        return self.answers[tokens[:, 0]]  # a row's first token is its number


def numbered(count, texts=None):
    tokens = torch.arange(count)[:, None]
    mask = torch.ones(count, 1, dtype=torch.bool)
    return Rollout([[0]] * count, tokens, torch.zeros(count, 1), mask, texts or [""] * count)


def drawn(count=40, length=8):
    torch.manual_seed(0)
    prompts = [TOKENIZER.encode("\n\n")] * count
    return rollouts.sample(GPT(GPTConfig(**SHAPE)), TOKENIZER, prompts, length, torch.Generator().manual_seed(9))


def opinionated(seed=4):
    torch.manual_seed(seed)
    body = GPT(GPTConfig(**SHAPE))
    for weight in body.parameters():
        nn.init.normal_(weight, std=0.4)
    model = RewardModel(body, dropout=0.3)
    nn.init.normal_(model.score.weight)
    return model


# ----------------------------------------------------------------------------------------- the log-probability of a sentiment


def test_the_reward_is_log_p_of_the_wanted_sentiment():
    odds = [-1000.0, -2.0, 0.0, 3.0, 1000.0]
    model, rollout = Fixed(odds).train(), numbered(5)
    positive = rewards.log_reward(model, rollout).tolist()
    # log(1 / (1 + e^-x)) by hand; far out it is the log-odds themselves, and finite
    assert positive == pytest.approx([-1000, -math.log(1 + math.e**2), -math.log(2), -math.log(1 + math.e**-3), 0], abs=1e-5)
    negative = rewards.log_reward(model, rollout, "negative").tolist()
    assert negative == pytest.approx(rewards.log_reward(Fixed([-x for x in odds]), rollout).tolist(), abs=1e-6)
    assert [math.exp(a) + math.exp(b) for a, b in zip(positive, negative)] == pytest.approx([1] * 5, abs=1e-5)
    assert model.modes == [False, False] and model.training  # dropout off, and back on behind


def test_many_completions_are_rewarded_in_their_order():
    odds = torch.linspace(-3, 3, 600)
    model = Fixed(odds.tolist())
    found = rewards.log_reward(model, numbered(600))
    torch.testing.assert_close(found, -torch.log1p((-odds).exp()), rtol=0, atol=1e-5)
    assert max(model.rows) <= 256 and sum(model.rows) == 600


def test_the_reward_reads_the_completion_alone_and_up_to_its_end():
    """Each reward equals that of the completion's text scored by itself."""
    model, rollout = opinionated().train(), drawn()
    expected = []
    for tokens, mask in zip(rollout.tokens, rollout.mask):
        text = SimpleNamespace(encode=lambda _, row=tokens[mask]: row.tolist())
        expected.append(score_texts(copy.deepcopy(model), text, ["one"]).sigmoid().log().item())
    found = rewards.log_reward(model, rollout)
    assert not rollout.mask.all()  # some end early
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert found.std() > 0.05 and not found.requires_grad


# ----------------------------------------------------------------------------------------- its constants


def test_the_normaliser_takes_mean_and_deviation_of_the_reference_samples():
    normalise = Normaliser(mean=2.0, std=4.0)
    assert normalise(torch.tensor([2.0, 6.0, -2.0])).tolist() == [0, 1, -1]
    given = 3 + 0.5 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    fitted = fit_normaliser(given)
    assert fitted.mean == pytest.approx(3, abs=0.05) and fitted.std == pytest.approx(0.5, abs=0.03)
    assert fitted(given).mean().item() == pytest.approx(0, abs=1e-4)
    assert fitted(given).square().mean().item() == pytest.approx(1, abs=1e-3)
    assert isinstance(fitted.mean, float) and isinstance(fitted.std, float)  # constants, not tensors that may change


@pytest.mark.parametrize("given", [[-0.3] * 5, [1.0], [math.nan] * 4])
def test_rewards_that_never_differ_cannot_be_normalised(given):
    with pytest.raises(ValueError, match="the same for all samples of the original model: train the reward model longer"):
        fit_normaliser(torch.tensor(given))


# ----------------------------------------------------------------------------------------- blank lines


def test_blank_lines_are_counted_in_the_text():
    found = blank_lines(["a\n\nb\n\n", "a\nbcdef", "\n\n\n\nab", ""])
    assert found.tolist() == [2, 0, 2, 0] and found.dtype == torch.float32


def test_the_price_of_a_blank_line_by_hand():
    blanks = torch.tensor([0.0, 1.0, 2.0, 3.0])  # 1.5 a completion
    assert blank_line_price(blanks, 1.0, 2.0).tolist() == pytest.approx([0, 1, 2, 3])
    assert blank_line_price(blanks, 2.0, 2.0).tolist() == pytest.approx([0, -1, -2, -3])  # too few: a prize
    assert blank_line_price(blanks, 1.0, 0.0).tolist() == [0] * 4


# ----------------------------------------------------------------------------------------- both together

TEXTS = ["a\n\nb", "ab", "\n\n\n\n", "c"]  # .75 blank lines each


@pytest.mark.parametrize("sentiment", rewards.SENTIMENTS)
def test_the_reward_of_a_rollout_by_hand(sentiment):
    odds = [2.0, -1.0, 0.5, 0.0]
    reward = SentimentReward(Fixed(odds), sentiment, Normaliser(-0.5, 0.25), blanks=0.25, coef=3.0)
    rollout = numbered(4, TEXTS)
    sign = 1 if sentiment == "positive" else -1
    plain = [(-math.log(1 + math.exp(-sign * x)) + 0.5) / 0.25 for x in odds]
    price = [3 * (0.75 - 0.25) * lines for lines in (1, 0, 2, 0)]
    assert reward.price(rollout).tolist() == pytest.approx(price)
    assert reward(rollout).tolist() == pytest.approx([a - b for a, b in zip(plain, price)], abs=1e-5)


def test_the_constants_come_from_the_originals_and_stay():
    odds = torch.linspace(-2, 2, 64)
    originals = numbered(64, ["a\n\n"] * 16 + ["b"] * 48)
    reward = fit_reward(Fixed(odds.tolist()), originals, "negative", coef=0.5)
    given = torch.nn.functional.logsigmoid(-odds)
    assert reward.normalise.mean == pytest.approx(given.mean().item(), abs=1e-6)
    assert reward.normalise.std == pytest.approx(given.std().item(), abs=1e-6)
    assert (reward.sentiment, reward.blanks, reward.coef) == ("negative", 0.25, 0.5)
    constants = reward.normalise, reward.blanks
    assert (reward(originals) + reward.price(originals)).mean().item() == pytest.approx(0, abs=1e-5)
    assert reward.price(originals).tolist() == [0] * 64  # they have as many as they have
    few = numbered(3, ["b"] * 3)
    first = reward(few)  # of another rollout, whose mean and deviation are others
    assert first.mean().abs() > 0.5 and (reward.normalise, reward.blanks) == constants
    assert torch.equal(reward(few), first)
    assert torch.equal(reward(few[torch.tensor([1])]), first[1:2])  # a completion's reward is its own


def test_a_reward_model_without_an_opinion_is_refused():
    with pytest.raises(ValueError, match="train the reward model longer"):
        fit_reward(RewardModel(GPT(GPTConfig(**SHAPE))), drawn())


def test_the_reward_leaves_the_reward_model_and_the_rollout_as_they_are():
    model, rollout = opinionated().train(), drawn()
    before, given = copy.deepcopy(model.state_dict()), copy.deepcopy(rollout)
    fit_reward(model, rollout)(rollout)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before) and model.training
    assert all(weight.grad is None for weight in model.parameters())
    assert (rollout.prompts, rollout.texts) == (given.prompts, given.texts)
    for name in ("tokens", "logprobs", "mask"):
        assert torch.equal(getattr(rollout, name), getattr(given, name))


# ----------------------------------------------------------------------------------------- what people prefer


@pytest.fixture
def float32(monkeypatch):
    """As on hardware without bfloat16, so that numbers compare with the definition's."""
    for module in (devices, rollouts):
        monkeypatch.setattr(module, "has_bf16", lambda device: False)


def answered(family, layers=1, count=40, begin=()):
    """A base and a rollout of it on prompts of many lengths, which begin alike, with the trunk's states."""
    base = language_model(family, dropout=0.4)
    prompts = [[*begin, *[[3, 4], [5, 6, 7, 8, 9], [10]][place % 3]] for place in range(count)]
    policy = branch(base, layers, seed=1)
    rollout = rollouts.draw(policy, TOKENIZER, prompts, 6, torch.Generator().manual_seed(0))
    rollout.trunk, _ = rollouts.trunk_of(policy, rollout)
    return base, rollout


def whole_rows(rollout):
    return [prompt + tokens[mask].tolist() for prompt, tokens, mask in zip(rollout.prompts, rollout.tokens, rollout.mask)]


@pytest.mark.parametrize("begin", [(), (4, 2, 9, 9, 3, 8, 7, 5, 2)])
@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answers_score_from_the_trunk_is_that_of_prompt_and_answer_read_by_themselves(float32, family, batch, begin):
    base, rollout = answered(family, begin=begin)
    assert rollout.trunk[3] == len(begin)
    judge = branch(base, seed=4, scalar=True).train()
    assert len(set(rollout.mask.sum(1).tolist())) > 2
    scores = answer_scores(judge, rollout, batch)
    assert judge.training and not scores.requires_grad and scores.std() > 0.1
    torch.testing.assert_close(scores, preference.score(judge, whole_rows(rollout)), rtol=0, atol=1e-4)


def test_so_it_is_with_all_layers_and_up_to_rounding_in_bfloat16(float32, monkeypatch):
    base, rollout = answered("llama", layers=2)
    judge = branch(base, layers=2, seed=4, scalar=True)
    torch.testing.assert_close(answer_scores(judge, rollout), preference.score(judge, whole_rows(rollout)), rtol=0, atol=1e-4)
    exact = answer_scores(judge, rollout)
    monkeypatch.setattr(devices, "precision", lambda device, width=256: torch.bfloat16)
    near = preference.score(judge, whole_rows(rollout))
    assert 0 < (near - exact).abs().max() < 0.2 * exact.std()


def test_no_float16_where_rewards_are_compared(float32, monkeypatch):
    """As on a card without bfloat16, where only training is in float16: its losses are scaled, and nothing is read off them."""
    base, rollout = answered("llama")
    judge = branch(base, seed=4, scalar=True)
    expected = answer_scores(judge, rollout), preference.score(judge, whole_rows(rollout))
    monkeypatch.setattr(devices, "precision", lambda device, width=256: torch.float16)
    assert torch.equal(answer_scores(judge, rollout), expected[0])
    assert torch.equal(preference.score(judge, whole_rows(rollout)), expected[1])


def test_a_preference_reward_is_the_score_by_fixed_constants(float32):
    base, rollout = answered("llama")
    judge = branch(base, seed=4, scalar=True)
    before, scores = weights(judge), answer_scores(judge, rollout)
    reward = PreferenceReward(judge, Normaliser(0.5, 2.0))
    torch.testing.assert_close(reward(rollout), (scores - 0.5) / 2)
    fitted = PreferenceReward(judge, fit_normaliser(scores))(rollout)
    assert fitted.mean().item() == pytest.approx(0, abs=1e-5) and fitted.std().item() == pytest.approx(1, abs=1e-4)
    assert same(weights(judge), before) and not reward(rollout).requires_grad


def test_the_deviation_within_prompts_leaves_out_what_all_answers_to_a_prompt_share():
    rewards = torch.tensor([[1.0, 3.0], [101.0, 103.0], [-7.0, -5.0]])  # each two are 2 apart: variance 2 around their mean
    fitted = fit_within(rewards)
    assert fitted.mean == pytest.approx(196 / 6) and fitted.std == pytest.approx(2**0.5)
    shifted = fit_within(rewards + torch.tensor([[5.0], [-90.0], [40.0]]))
    assert shifted.std == pytest.approx(2**0.5)
    one = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    assert fit_within(one).std == pytest.approx(one.std().item(), rel=1e-5)


def test_rewards_that_never_differ_within_a_prompt_are_refused():
    with pytest.raises(ValueError, match=r"^the reward is the same for all answers to a prompt: train the reward model longer$"):
        fit_within(torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
