"""What the probes of 11.13 stand on: a token that is never said, the sampler's contract, a run's form, and the exact KL."""

import copy

import pytest
import torch

from rlhf_lib.exercises import tiny_assistant as kit
from rlhf_lib.exercises.plain import odd
from rlhf_lib.sampling import token_logprobs

RECORD = dict(iteration=0, reward=0.0, kl=0.0, ended=0.5, ratio=1.0, clip_fraction=0.0, explained_variance=float("nan"))


def sampled(ends=0.8, noise=0):
    model = kit.tiny(1, ends)
    prompts = torch.tensor([[0, 0, 5], [6, 7, 8]])
    real = torch.tensor([[False, False, True], [True, True, True]])
    uniforms = torch.rand(2, kit.LENGTH, generator=torch.Generator().manual_seed(noise))
    return model, kit.generate(model, prompts, real, uniforms, end_token=kit.END)


def test_token_0_is_never_said_and_the_end_token_the_oftener_the_larger_ends():
    shares = []
    for ends in (0.0, 0.8, 1.6):
        _, rows = kit.fresh(kit.tiny(3, ends), 256)
        assert not (rows.tokens == 0)[rows.mask].any()
        shares.append(((rows.tokens == kit.END) & rows.mask).any(1).float().mean().item())
    assert shares == sorted(shares) and shares[2] > shares[0] + 0.3


def test_the_sampler_keeps_the_contract_of_exercise_4_10():
    for noise in range(5):
        model, (tokens, logprobs, mask) = sampled(noise=noise)
        assert (tokens[~mask] == kit.END).all() and (logprobs[~mask] == 0).all()
        assert torch.equal(mask.cumprod(1).bool(), mask) and mask[:, 0].all()
        right = token_logprobs(model, [[5], [6, 7, 8]], tokens, mask)
        assert torch.allclose(logprobs, right, atol=1e-5)


def test_a_critic_starts_at_0_and_has_a_body_of_its_own():
    model = kit.tiny(1)
    critic = kit.Critic(model)
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.equal(critic(tokens), torch.zeros(1, 3))
    assert critic.body.embedding.weight.data_ptr() != model.embedding.weight.data_ptr()


def built(policy, critic, reference, reward, prompts, *, generate, report, seed, end_token, **settings):
    """A run of one rollout and no update."""
    start = torch.tensor([[0] * (5 - len(one)) + one for one in prompts])
    uniforms = torch.rand(len(prompts), 8, generator=torch.Generator().manual_seed(seed))
    tokens, _, mask = generate(policy, start, start > 0, uniforms, end_token=end_token)
    report(RECORD)
    return [{**RECORD, "reward": reward(prompts, tokens, mask).mean().item()}]


def test_a_run_is_taken_down_as_plain_data():
    found = kit.go(built, 2, frozen=["head"])
    assert [one["iteration"] for one in found["reported"]] == [0] and found["frozen"] == [
        "policy head.weight",
        "critic head.weight",
    ]
    assert found["asked"] == [{"prompts": kit.PROMPTS, "left": True, "whole": True}]
    assert kit.form(found, kit.tiny(2), 0) == ""
    assert kit.same_weights(found["policy"], kit.weights(kit.tiny(2)))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"records": None}, "list of dicts"),
        ({"records": []}, "list of dicts"),
        ({"records": [odd("an object")]}, "list of dicts"),
        ({"records": [RECORD] * 3}, "1 iterations have 3 records"),
        ({"records": [{**RECORD, "kl": None}]}, "kl = None"),
        ({"records": [{**RECORD, "kl": float("nan")}]}, "kl = nan"),
        ({"records": [{**RECORD, "explained_variance": None}]}, "explained_variance = None"),
        ({"records": [{**RECORD, "iteration": 1}]}, "count from 0"),
        ({"reference": kit.weights(kit.tiny(3))}, "the reference has other weights"),
    ],
)
def test_a_run_of_another_form_is_told_so(change, word):
    found = {**kit.go(built, 2), **change}
    assert word in kit.form(found, kit.tiny(2), 1)


def test_the_exact_kl_is_0_for_one_model_and_the_mean_of_log_ratios_for_two():
    base, policy = kit.tiny(4), kit.tiny(4)
    with torch.no_grad():
        policy.head.weight += 0.1 * torch.randn(policy.head.weight.shape, generator=torch.Generator().manual_seed(0))
    assert abs(kit.true_kl(base, base)) < 1e-6
    asked, rows = kit.fresh(policy, 4096)
    ratios = rows.logprobs - token_logprobs(base, asked, rows.tokens, rows.mask).detach()
    ratios = torch.where(rows.mask, ratios, 0).sum(1)
    assert abs(kit.true_kl(policy, base) - ratios.mean()) < 4 * ratios.std() / 64 + 0.02
    assert kit.gain(base, copy.deepcopy(base), kit.count) == 0
