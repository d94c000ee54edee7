"""What a policy is paid for, as a function of a rollout: a sentiment, less a price on blank lines; or what people prefer."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from rlhf_lib.corpus import SEPARATOR
from rlhf_lib.devices import autocast, shared_out
from rlhf_lib.models.layers import evaluating, last_real
from rlhf_lib.models.lora import trunk_rows
from rlhf_lib.trainers.rollouts import whole

SENTIMENTS = ("positive", "negative")


@torch.no_grad()
def log_reward(reward_model, rollout, sentiment="positive", batch=256):
    """The log-probability of `sentiment` for each completion: (B,), at most 0, in nats. Every process scores its share."""
    sign = 1.0 if sentiment == "positive" else -1.0

    def scored(tokens, mask):
        rows = zip(tokens.split(batch), mask.split(batch))
        return torch.cat([F.logsigmoid(sign * reward_model.logits(*part).float()) for part in rows])

    with evaluating(reward_model), autocast(rollout.tokens.device, reward_model.config.width):
        return shared_out(scored, rollout.tokens, rollout.mask)


class Normaliser(NamedTuple):
    """Fixed constants of the reward: its mean and standard deviation on completions of the original model."""

    mean: float
    std: float

    def __call__(self, rewards):
        return (rewards - self.mean) / self.std


def fit_normaliser(rewards):
    """The constants of `rewards` (N,): mean and standard deviation. Raises ValueError when all are the same."""
    rewards = rewards.cpu()
    if len(rewards) < 2 or not rewards.max() > rewards.min():  # the deviation of equal numbers is not always exactly 0
        raise ValueError("the reward is the same for all samples of the original model: train the reward model longer")
    return Normaliser(rewards.mean().item(), rewards.std().item())


def fit_within(rewards):
    """The constants of rewards (N, K), K answers to each of N prompts: the mean of all, the deviation around each prompt's own.

    Some prompts are answered well by any model. That part of the reward is no policy's merit, and as a unit it would make what is
    look small.

    Raises:
        ValueError: all answers to each prompt have the same reward.
    """
    rewards = rewards.cpu()
    apart = rewards - rewards.mean(1, keepdim=True)
    if not (rewards.amax(1) > rewards.amin(1)).any():
        raise ValueError("the reward is the same for all answers to a prompt: train the reward model longer")
    return Normaliser(rewards.mean().item(), (apart.square().sum() / (apart.numel() - len(apart))).sqrt().item())


def blank_lines(texts):
    """How many blank lines each text has, (B,) float: the form that the policy should not change."""
    return torch.tensor([float(text.count(SEPARATOR)) for text in texts])


def blank_line_price(blanks, original, coef):
    """What blank lines cost each completion, (B,), in normalised reward: each `coef` times how many too many the average has.

    Short speeches have room for few bad feelings, so the reward likes them a little, and a KL penalty hardly holds them back:
    half as many blank lines again cost a tenth of a nat. Where there are too few, the price is a prize.

    Args:
        blanks: (B,), blank lines in each completion.
        original: the original model's mean.
    """
    return coef * (blanks.mean() - original) * blanks


class SentimentReward(NamedTuple):
    """The reward of a rollout, one number a completion: a sentiment's normalised log-probability, less the price of blank lines.

    Args:
        reward_model: a RewardModel, or a Branch with a scalar head.
        sentiment: "positive" or "negative".
        normalise: a Normaliser.
        blanks: the original model's blank lines per completion.
        coef: price of a blank line, in normalised reward, per blank line too many in the average completion; 0 for none.
    """

    reward_model: torch.nn.Module
    sentiment: str
    normalise: Normaliser
    blanks: float
    coef: float

    def __call__(self, rollout):
        score = self.normalise(log_reward(self.reward_model, rollout, self.sentiment))
        return score - self.price(rollout).to(score.device)

    def price(self, rollout):
        """(B,), on the CPU."""
        return blank_line_price(blank_lines(rollout.texts), self.blanks, self.coef)


def fit_reward(reward_model, originals, sentiment="positive", coef=1.0):
    """The SentimentReward whose constants come from `originals`, a Rollout of the original model, and stay as they are."""
    normalise = fit_normaliser(log_reward(reward_model, originals, sentiment))
    return SentimentReward(reward_model, sentiment, normalise, blank_lines(originals.texts).mean().item(), coef)


@torch.no_grad()
def answer_scores(reward_model, rollout, batch=32):
    """A scalar branch's number at the last token of each completion, (B,), from the trunk's states in `rollout.trunk`."""
    real, scores = whole(rollout, rollout.trunk[3])[1], []  # (B, S)
    assert real.shape == rollout.trunk[0].shape[:2], "a part of a rollout needs a trunk of its own"
    with evaluating(reward_model), autocast(rollout.tokens.device, reward_model.config.width, exact=True):
        for rows in torch.arange(len(rollout)).split(batch):
            hidden = reward_model.top(*trunk_rows(rollout.trunk, rows))  # (b, S, C)
            scores.append(last_real(reward_model.values(hidden, real[rows]), real[rows]))
    return torch.cat(scores)


class PreferenceReward(NamedTuple):
    """The reward of a rollout whose `trunk` is known: a reward model's score, normalised by fixed constants.

    Args:
        reward_model: a Branch with a scalar head, of as many layers as the policy.
        normalise: a Normaliser, fitted on completions of the reference.
    """

    reward_model: torch.nn.Module
    normalise: Normaliser

    def __call__(self, rollout):
        return self.normalise(answer_scores(self.reward_model, rollout))
