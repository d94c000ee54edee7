"""Chapter 08's checks: correct answers written another way pass, and the published bugs of RLHF get their names."""

import math

import pytest
import torch
from torch.nn import functional as F

from rlhf_lib import exercises, ppo
from rlhf_lib.exercises import verdict
from rlhf_lib.trainers import rewards, rollouts


def log_reward(logits, sentiment):
    sign = {"positive": 1, "negative": -1}[sentiment]
    return -F.softplus(-sign * logits)


class FitNormaliser:
    """A class serves as well as a function that returns a function."""

    def __init__(self, base_rewards):
        self.variance, self.mean = torch.var_mean(base_rewards)

    def __call__(self, rewards):
        return rewards.sub(self.mean).mul(self.variance.rsqrt())


def action_mask(tokens, prompt_length, end_token):
    completion = tokens[:, prompt_length:]
    ended = (completion == end_token).cummax(1).values.roll(1, 1)
    ended[:, 0] = False
    return F.pad(~ended, (prompt_length - 1, 0), value=False)


def completion_kl(logprobs, ref_logprobs, mask):
    return torch.einsum("bt,bt->b", (logprobs - ref_logprobs).masked_fill(~mask, 0), mask.float())


def token_advantages(rewards, logprobs, ref_logprobs, mask, kl_coef):
    with torch.no_grad():
        penalty = (logprobs - ref_logprobs).masked_fill(~mask, 0)
        later = torch.ones(mask.shape[1], mask.shape[1], device=mask.device).tril()  # (s, t): s is at or after t
        return (rewards.unsqueeze(1) - kl_coef * penalty @ later) * mask


def with_baseline(worth, mask, baseline):
    counts = mask.sum(0)
    following = (worth * mask).sum(0) / counts.clamp(min=1)
    return (worth - baseline).masked_fill(~mask, 0), following


def update_policy(policy, optimizer, tokens, old_logprobs, advantages, mask, temperature, epochs, minibatch, clip):
    policy.train(False)
    clip_fractions = []
    for _ in range(epochs):
        for start in range(0, tokens.shape[0], minibatch):
            part = slice(start, start + minibatch)
            logits = policy(tokens[part, :-1]) / temperature
            logprobs = -F.cross_entropy(logits.transpose(1, 2), tokens[part, 1:], reduction="none")
            figures = ppo.policy_loss(logprobs, old_logprobs[part], advantages[part], mask[part], clip)
            policy.zero_grad()
            figures.loss.backward()
            optimizer.step()
            clip_fractions += [figures.clip_fraction]
    return clip_fractions


def rollout_sizes(clip_fractions, completions, most):
    sizes, rare = [], []
    for fraction in clip_fractions:
        rare = [*rare, fraction] if fraction < 0.01 else []
        if len(rare) >= 3 and completions <= most / 2:
            completions, rare = completions * 2, []
        sizes.append(completions)
    return sizes


def kept_iteration(kls, max_kl):
    kept = 0
    for iteration, kl in enumerate(kls):
        if not kl.mean() <= max_kl:
            break
        kept = iteration
    return kept


ALTERNATIVES = {
    "log_reward": log_reward,
    "fit_normaliser": FitNormaliser,
    "action_mask": action_mask,
    "completion_kl": completion_kl,
    "token_advantages": token_advantages,
    "with_baseline": with_baseline,
    "update_policy": update_policy,
    "rollout_sizes": rollout_sizes,
    "kept_iteration": kept_iteration,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ALTERNATIVES)
def test_every_correct_answer_passes(name, seed):
    assert verdict(name, ALTERNATIVES[name], seed).passed


def test_the_course_s_own_kernels_pass():
    assert verdict("completion_kl", rollouts.completion_kl).passed
    assert verdict("token_advantages", rollouts.shape_advantages).passed
    assert verdict("fit_normaliser", rewards.fit_normaliser).passed


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        (
            "log_reward",
            lambda logits, sentiment: torch.log(torch.sigmoid(logits if sentiment == "positive" else -logits)),
            "nearly 0",
        ),
        ("fit_normaliser", lambda base: lambda rewards: (rewards - rewards.mean()) / rewards.std(), "its own mean"),
        ("completion_kl", lambda logprobs, ref_logprobs, mask: ((ref_logprobs - logprobs) * mask).sum(1), "upside down"),
        ("completion_kl", lambda logprobs, ref_logprobs, mask: ppo.masked_mean(logprobs - ref_logprobs, mask, 1), "mean"),
    ],
)
def test_published_bugs_are_named(name, function, words):
    found = verdict(name, function)
    assert not found.passed
    assert found.mistake
    assert words in found.message


def test_a_kl_that_is_not_detached_is_found_by_its_gradient_alone():
    def attached(rewards, logprobs, ref_logprobs, mask, kl_coef):
        kl = torch.where(mask, logprobs - ref_logprobs, 0)
        return torch.where(mask, rewards[:, None] - kl_coef * kl.flip(1).cumsum(1).flip(1), 0)

    inputs = exercises.draw("token_advantages")
    ours = exercises.answer("token_advantages", attached, inputs)
    right = exercises.answer("token_advantages", token_advantages, inputs)
    for one, other in zip(ours, right):
        torch.testing.assert_close(one["advantages"], other["advantages"])
    assert "detach" in exercises.judge("token_advantages", inputs, ours).message


def test_the_worked_example_of_the_advantages():
    (first, *_) = exercises.draw("token_advantages")
    out = exercises.answer("token_advantages", exercises.find("token_advantages").right, [first])[0]
    assert out["advantages"].tolist()[0] == pytest.approx([0.925, 0.975, 0.975])


def test_some_masks_begin_with_false():
    for name in ("completion_kl", "token_advantages", "with_baseline"):
        assert any(not given["mask"][:, 0].all() for given in exercises.draw(name)), name


def test_a_row_has_more_end_tokens_than_eight_bits_can_count():
    counts = [(one["tokens"][:, one["prompt_length"] :] == one["end_token"]).sum(1) for one in exercises.draw("action_mask")]
    assert max(count.max() for count in counts) > 256


def test_the_update_s_first_minibatch_clips_nothing_when_the_policy_is_the_one_that_sampled():
    (first, *rest) = exercises.draw("update_policy")
    (on_policy, *others) = exercises.answer("update_policy", update_policy, [first, *rest])
    assert on_policy["clip fractions"][0] == 0
    assert sum(0 < float(one["clip fractions"][0]) <= 1 for one in others) == 2  # where the rollout is a little older


def test_dropout_left_on_is_named_and_a_policy_put_back_to_training_mode_is_not():
    def back_in_training(policy, optimizer, **others):
        fractions = update_policy(policy, optimizer, **others)
        policy.train()
        return fractions

    def forgets(policy, optimizer, **others):
        class Training:  # a policy whose mode cannot be changed
            train = eval = staticmethod(lambda mode=True: policy)
            zero_grad = staticmethod(policy.zero_grad)
            __call__ = staticmethod(policy)

        return update_policy(Training(), optimizer, **others)

    assert verdict("update_policy", back_in_training).passed
    assert not verdict("update_policy", forgets).passed


def test_the_smallest_failing_example_is_shown():
    only_full_rows = verdict("completion_kl", lambda logprobs, ref_logprobs, mask: torch.tensor([math.log(2)]))
    assert "The smallest input that fails" in only_full_rows.message  # right on the first input, wrong from the second on
    assert only_full_rows.arguments["logprobs"].shape == (1, 1)
    anything = verdict("action_mask", lambda tokens, prompt_length, end_token: torch.zeros(tokens.shape).bool())
    assert "the shape is (1, 4), it should be (1, 3)" in anything.message


def test_the_policy_that_is_kept_has_been_measured_within_the_limit():
    for arguments in exercises.draw("kept_iteration", 3):
        kept = kept_iteration(**arguments)
        assert arguments["kls"][kept].mean() <= arguments["max_kl"]


def test_an_infinity_under_the_mask_does_no_harm_to_a_sum_and_is_told_where_it_does():
    product = verdict("completion_kl", lambda logprobs, ref_logprobs, mask: ((logprobs - ref_logprobs) * mask).sum(1))
    assert "use torch.where" in product.mistake


def test_a_normaliser_may_not_be_changed_by_another_run_s():
    constants = {}

    def shared(base_rewards):
        constants.update(mean=base_rewards.mean(), std=base_rewards.std())
        return lambda rewards: (rewards - constants["mean"]) / constants["std"]

    assert not verdict("fit_normaliser", shared).passed


def test_an_infinity_under_the_mask_is_told_where_the_kl_to_come_is_summed():
    def product(rewards, logprobs, ref_logprobs, mask, kl_coef, sign=1):
        to_come = ((logprobs - ref_logprobs) * mask).detach().flip(1).cumsum(1).flip(1)
        return (rewards[:, None] - sign * kl_coef * to_come) * mask

    assert "use torch.where" in verdict("token_advantages", product).mistake
    turned = verdict("token_advantages", lambda **given: product(**given, sign=-1))
    assert "pays for running away" in turned.mistake


def to_the_second_end(tokens, prompt_length, end_token):
    ends = (tokens[:, prompt_length:] == end_token).int()
    prompt = torch.zeros(len(tokens), prompt_length - 1, dtype=torch.bool)
    return torch.cat([prompt, ends.cumsum(1) - ends <= 1], 1)


def of_all_the_worth(rewards, logprobs, ref_logprobs, mask, kl_coef):
    kl = torch.where(mask, logprobs - ref_logprobs, 0).detach().flip(1).cumsum(1).flip(1)
    return torch.where(mask, kl_coef * (rewards[:, None] - kl), 0)


def without_zeros(worth, mask, baseline):
    real = torch.where(mask, worth, 0)
    return torch.where(mask, worth - baseline, 0), real.sum(0) / (real != 0).sum(0).clamp(min=1)


def by_probabilities(logits, sentiment, reduction="none"):
    target = torch.full_like(logits, float(sentiment == "positive"))
    return -F.binary_cross_entropy(logits.sigmoid(), target, reduction=reduction)


def all_batches(base_rewards):
    seen = [base_rewards]

    def normalise(rewards):
        result = (rewards - torch.cat(seen).mean()) / torch.cat(seen).std()
        seen.append(rewards)
        return result

    return normalise


def along_tokens(rewards, logprobs, ref_logprobs, mask, kl_coef):
    kl = torch.where(mask, logprobs - ref_logprobs, 0).detach().flip(1).cumsum(1).flip(1)
    return torch.where(mask, rewards - kl_coef * kl, 0)


def in_double(logits, sentiment):
    return torch.log((logits if sentiment == "positive" else -logits).double().sigmoid()).float()


def by_the_length(rewards, logprobs, ref_logprobs, mask, kl_coef):
    kl = torch.where(mask, logprobs - ref_logprobs, 0).detach().flip(1).cumsum(1).flip(1)
    return torch.where(mask, rewards[:, None] - kl_coef * kl / mask.sum(1, keepdim=True), 0)


def back_in_training(policy, *given, epochs, **named):
    policy.eval()
    fractions = []
    for _ in range(epochs):
        fractions += exercises.find("update_policy").formula(policy, *given, epochs=1, dropout=policy.training, **named)
        policy.train()
    return fractions


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        ("log_reward", by_probabilities, "F.binary_cross_entropy, at -100"),
        ("log_reward", lambda logits, sentiment: torch.log1p(-logits.sigmoid()) if sentiment == "negative" else
         F.logsigmoid(logits), "p rounds to 1"),
        ("fit_normaliser", all_batches, "move with every batch"),
        ("action_mask", lambda tokens, prompt_length, end_token: (torch.arange(tokens.shape[1]) >= prompt_length) & (
            (ends := (tokens == end_token) & (torch.arange(tokens.shape[1]) >= prompt_length)).cumsum(1) - ends.int() == 0),
         "one column for each token"),
        ("completion_kl", lambda logprobs, ref_logprobs, mask: torch.where(mask, logprobs - ref_logprobs, 0).sum(0),
         "runs over the completions"),
        ("completion_kl", lambda logprobs, ref_logprobs, mask: (logprobs * mask - ref_logprobs).sum(1), "of padding"),
        ("completion_kl", lambda logprobs, ref_logprobs, mask: (logprobs - ref_logprobs)[mask].view(len(mask), -1).sum(1),
         "of one length"),
        ("token_advantages", along_tokens, "laid along the tokens"),
        ("update_policy", back_in_training, "dropout is on from the second on"),
        ("log_reward", lambda logits, sentiment: F.logsigmoid(logits if sentiment == "Positive" else -logits), "as it is given"),
        ("log_reward", lambda logits, sentiment: F.logsigmoid(logits if sentiment == "positive" else 1 - logits), "not 1 - x"),
        ("fit_normaliser", lambda base: lambda rewards: rewards - base.mean() / base.std(), "brackets"),
        ("action_mask", to_the_second_end, "second end token"),
        ("action_mask", lambda tokens, prompt_length, end_token: ((tokens == end_token).cumsum(1) == 0)[:, 1:],
         "end token itself is an action, and the prompt's tokens"),
        ("completion_kl", lambda logprobs, ref_logprobs, mask: (logprobs - ref_logprobs).nan_to_num(0, 0, 0).sum(1),
         "choose by the mask"),
        ("token_advantages", of_all_the_worth, "multiplies the reward"),
        ("with_baseline", without_zeros, "a worth of 0"),
        ("log_reward", in_double, "double precision"),
        ("fit_normaliser", lambda base: lambda rewards: (rewards - base.mean()) / (base.std() + 1e-5), "a small number"),
        ("token_advantages", by_the_length, "by a number of tokens"),
    ],
)  # fmt: skip
def test_frequent_mistakes_have_their_names(name, function, words):
    assert words in verdict(name, function).mistake
