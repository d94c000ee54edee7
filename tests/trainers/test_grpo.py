import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rlhf_lib import checkpoints, devices, runs
from rlhf_lib import policy_gradient as kernels
from rlhf_lib.files import RunError
from rlhf_lib.models.lora import Branch
from rlhf_lib.policy_gradient import METHODS
from rlhf_lib.trainers import grpo, ppo, rollouts
from rlhf_lib.trainers.grpo import GRPOConfig

from . import methods
from .helpers import END, PROMPTS, TOKENIZER, V, branch, even, language_model, likes, mutant, records, same, share_of_a, weights


@pytest.fixture(scope="module", autouse=True)
def float32():
    """As on hardware without bfloat16, so that numbers compare with the definition's."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (devices, rollouts):
            patch.setattr(module, "has_bf16", lambda device: False)
        yield


def small(**changes):
    shape = dict(iterations=3, rollout_size=16, group=4, max_new_tokens=8, minibatch=8, lr=1e-3, keep_every=2)
    return GRPOConfig(**{**shape, **changes})


def train(folder, base=None, reward=None, config=None, prompts=PROMPTS, module=grpo, **options):
    prompts = [list(prompt) for prompt in prompts]
    return module.train(
        base or language_model("modern"), TOKENIZER, prompts, reward or likes, config or small(), folder, **options
    )


def positive(rollout):
    return likes(rollout).clamp(min=0)


# ----------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "dapo"}, r"grpo\.method must be one of reinforce, .*, ppo, got 'dapo'"),
        *(
            ({name: 0}, rf"grpo\.{name} must be at least 1, got 0")
            for name in ("iterations", "group", "max_new_tokens", "epochs", "minibatch", "keep_every")
        ),
        ({"rollout_size": 1}, r"grpo\.rollout_size must be at least 2, got 1"),
        *(
            ({name: value}, rf"grpo\.{name} must be above 0, got {value}")
            for name in ("lr", "clip", "max_kl", "temperature")
            for value in (0.0, -1.0, math.nan)
        ),
        *(({name: -0.1}, rf"grpo\.{name} must not be negative, got -0\.1") for name in ("kl_coef", "max_weight")),
        ({"rollout_size": 24, "minibatch": 16}, r"grpo\.rollout_size must be a multiple of grpo\.minibatch, got 24 and 16"),
        ({"rollout_size": 24, "group": 5}, r"grpo\.rollout_size must be a multiple of grpo\.group, got 24 and 5"),
        ({"method": "rloo", "group": 1}, r"grpo\.group must be at least 2 for rloo"),
        ({"method": "gspo", "group": 1}, r"grpo\.group must be at least 2 for gspo"),
    ],
)
def test_config_refuses_a_bad_value_by_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(**changes)


def test_a_method_that_compares_no_completions_takes_groups_of_one():
    assert [name for name in METHODS if name in ("reinforce", "reinforce-baseline", "ppo") and small(method=name, group=1)]


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ([], "no prompts"),
        ([[2], []], "an empty one"),
        ([[2] * 45], r"the longest prompt and grpo\.max_new_tokens are 53 tokens, more than the context of 48"),
    ],
)
def test_prompts_are_refused_before_the_first_step(tmp_path, prompts, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(tmp_path, prompts=prompts)
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------- the data flow


@pytest.fixture
def updates(monkeypatch):
    """What the loss of each minibatch was given, and each pair of calls that made the advantages."""
    seen = {"loss": [], "advantages": []}

    def loss(*arguments):
        seen["loss"].append(arguments)
        return kernels.policy_gradient_loss(*arguments)

    def advantages(*arguments):
        seen["advantages"].append(arguments)
        return kernels.advantages(*arguments)

    monkeypatch.setattr(grpo, "policy_gradient_loss", loss)
    monkeypatch.setattr(grpo, "advantages", advantages)
    return seen


def test_each_prompt_has_its_group_and_rollouts_go_on_where_the_last_one_stopped(tmp_path):
    seen = []

    def reward(rollout):
        seen.append(rollout.prompts)
        return likes(rollout)

    train(tmp_path, reward=reward)
    for iteration, prompts in enumerate(seen):
        assert prompts == [PROMPTS[(4 * iteration + place // 4) % 3] for place in range(16)]


@pytest.mark.parametrize("name", METHODS)
def test_the_switches_of_a_row_are_those_that_the_loop_uses(tmp_path, updates, name):
    config = small(method=name, iterations=2, minibatch=16, kl_coef=0.5, clip=0.3)
    train(tmp_path, reward=positive, config=config)
    baseline, normaliser, clip, denominator = METHODS[name]
    assert [call[1:3] for call in updates["advantages"]] == [(baseline, normaliser), (baseline, "none")] * 2
    rows = records(tmp_path)
    expected = [0.0, 0.0, rows[0]["reward"], rows[0]["kl"]]  # what the critic expects is the last rollout's mean
    assert [call[3] for call in updates["advantages"]] == pytest.approx(expected, abs=1e-6)
    assert [call[4:7] for call in updates["loss"]] == [(clip, denominator, 0.3)] * 2


def test_an_advantage_is_the_rewards_less_the_price_of_the_kl(tmp_path, updates):
    config = small(method="grpo", iterations=2, minibatch=16, kl_coef=0.25, lr=1e-2)
    train(tmp_path, config=config)
    for step in range(2):
        (rewards, *_), (kl, *_) = updates["advantages"][2 * step : 2 * step + 2]
        drawn_order = torch.randperm(16, generator=devices.generator(0, "minibatches", step))
        apart = rewards - rewards.mean(1, keepdim=True)
        expected = apart / (rewards.var(1, correction=0, keepdim=True) + 1e-8).sqrt()
        expected = expected - 0.25 * (kl - kl.mean(1, keepdim=True))
        torch.testing.assert_close(updates["loss"][step][2], expected.flatten()[drawn_order], rtol=1e-4, atol=1e-5)
    assert kl.abs().max() > 0.01


def test_ppos_row_is_the_ppo_of_chapter_08(tmp_path):
    """Where no completion ends early and nothing is paid for KL, so that the two baselines are one."""
    base = language_model("modern")
    reward = lambda rollout: (rollout.tokens == 3).float().sum(1) - 1  # noqa: E731
    shape = dict(iterations=3, rollout_size=16, max_new_tokens=8, minibatch=8, epochs=2, lr=1e-3, kl_coef=0.0, keep_every=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(TOKENIZER), "end_token", None)
        ours = train(tmp_path / "ours", base, reward, small(method="ppo", **shape), PROMPTS[:1])
        theirs = ppo.train(base, TOKENIZER, PROMPTS[:1], reward, ppo.PPOConfig(max_rollout_size=16, **shape), tmp_path / "theirs")
    for name, weight in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], weight, rtol=1e-4, atol=1e-5)
    for one, other in zip(records(tmp_path / "ours"), records(tmp_path / "theirs"), strict=True):
        for key in one.keys() & other.keys() - {"stage"}:
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-4), key
    assert not same(weights(ours), weights(base))


def first_step_is_right(module, tmp_path, monkeypatch, name):
    """One step of gradient descent, against log-probabilities of one row and one position at a time."""
    base, rolled = language_model("gpt2"), []

    def reward(rollout):
        rolled.append(rollout)
        return torch.arange(12.0) % 5

    monkeypatch.setattr(torch.optim, "Adam", torch.optim.SGD)
    config = small(method=name, iterations=1, rollout_size=12, minibatch=12, group=4, lr=0.1, max_kl=1e4, kl_coef=0.0)
    policy = train(tmp_path, base, reward, config, module=module)
    rollout, expected = rolled[0], copy.deepcopy(base)
    rows = []
    for prompt, tokens, mask in zip(rollout.prompts, rollout.tokens.tolist(), rollout.mask.tolist()):
        logits = [expected(torch.tensor([prompt + tokens[:t]]))[0, -1] for t in range(sum(mask))]
        rows.append(torch.stack([scores[tokens[t]] - scores.logsumexp(0) for t, scores in enumerate(logits)]))
    assert len(set(map(len, rows))) > 1
    groups, total = (torch.arange(12.0) % 5).view(3, 4), sum(map(len, rows))
    A = {
        "reinforce": groups,
        "reinforce-baseline": groups - groups.mean(),
        "rloo": (groups - groups.mean(1, keepdim=True)) * 4 / 3,
        "maxrl": groups / groups.mean(1, keepdim=True) - 1,
        "ppo": groups,
    }.get(name, groups - groups.mean(1, keepdim=True))
    A = (A / groups.std(1, correction=0, keepdim=True) if name in ("grpo", "gspo") else A).flatten()
    if METHODS[name].denominator == "completion":
        loss = -sum(a * row.mean() for a, row in zip(A, rows)) / 12
    else:
        loss = -sum(a * row.sum() for a, row in zip(A, rows)) / (total if name == "ppo" else 12 * 8)
    loss.backward()
    for key, weight in expected.named_parameters():
        moved = base.state_dict()[key] - policy.state_dict()[key]
        torch.testing.assert_close(moved, 0.1 * weight.grad, rtol=2e-3, atol=2e-6)
    assert max(weight.grad.abs().max() for weight in expected.parameters()) > 0.01


@pytest.mark.parametrize("name", METHODS)
def test_the_first_step_is_the_policy_gradient_of_the_definition(tmp_path, monkeypatch, name):
    first_step_is_right(grpo, tmp_path, monkeypatch, name)


MUTANTS = {
    "completions of different prompts are compared": ("x.view(count, config.group)", "x.view(config.group, count).T"),
    "the advantages of other completions": ("worth[mine]", "worth[mine.flip(0)]"),
    "the baseline is forgotten": ("advantages(rewards, baseline,", "advantages(rewards, 'none',"),
    "up the wrong way": ("loss.backward()", "(-loss).backward()"),
    "the ratio to the original model": (
        "old_logprobs, mask = rollout.logprobs[mine],",
        "old_logprobs, mask = 0 * rollout.logprobs[mine],",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_in_the_loop_breaks_the_first_step(tmp_path, monkeypatch, name):
    with pytest.raises(AssertionError):
        first_step_is_right(mutant(grpo, MUTANTS[name]), tmp_path, monkeypatch, "grpo")


def test_on_the_first_minibatch_the_ratio_is_1_nothing_is_clipped_and_the_kl_is_0(tmp_path):
    base = even()
    nn.init.normal_(base.head.weight, std=0.4)
    train(tmp_path, base, config=small(iterations=1, minibatch=16, lr=1e-7, temperature=0.7))
    first = records(tmp_path)[0]
    assert first["first_ratio"] == pytest.approx(1, abs=1e-5) and first["clip_fraction"] == 0
    assert first["kl"] == pytest.approx(0, abs=1e-5) and first["approx_kl"] == pytest.approx(0, abs=1e-8)
    assert first["sampler_kl"] == pytest.approx(0, abs=1e-8) and first["sampler_ratio_max"] == pytest.approx(1, abs=1e-4)


# ----------------------------------------------------------------------------------------- sampled by a copy in bf16


@pytest.fixture
def copied(monkeypatch):
    """Rollouts are drawn by a copy of the policy in bf16, as on hardware that multiplies it fastest."""
    for module in (devices, rollouts):
        monkeypatch.setattr(module, "precision", lambda device, width=256: torch.bfloat16)


def test_what_a_copy_in_bf16_sampled_has_another_probability_under_the_policy(tmp_path, copied, updates):
    train(tmp_path / "plain", config=small(iterations=1, minibatch=16))
    row = records(tmp_path / "plain")[0]
    assert 1e-6 < row["sampler_kl"] < 1e-2 and row["sampler_ratio_max"] > 1.005
    assert (updates["loss"][0][7] == 1).all()  # no correction unless it is asked for
    assert row["first_ratio"] == pytest.approx(1, abs=1e-5)  # old and new are both the policy's own


def test_with_a_cap_the_loss_is_weighted_by_how_far_off_the_copy_was(tmp_path, copied, updates):
    seen = []

    def reward(rollout):
        seen.append(rollout)
        return likes(rollout)

    train(tmp_path, reward=reward, config=small(iterations=1, minibatch=16, max_weight=1.004))
    order = torch.randperm(16, generator=devices.generator(0, "minibatches", 0))
    rollout = seen[0]
    expected = torch.where(rollout.mask, (rollout.logprobs - rollout.sampler_logprobs).exp().clamp(max=1.004), 1)
    assert torch.equal(updates["loss"][0][7], expected[order])
    assert expected.max() == pytest.approx(1.004) and expected.min() < 0.996


# ----------------------------------------------------------------------------------------- it learns


@pytest.mark.parametrize("name", METHODS)
def test_every_method_writes_more_of_what_the_reward_likes_and_stays_within_max_kl(tmp_path, name):
    base = even()
    before = weights(base)
    config = small(method=name, iterations=6, rollout_size=48, minibatch=12, lr=8e-3, max_kl=4.0, kl_coef=0.02)
    policy = train(tmp_path, base, positive, config, PROMPTS[:1])
    rows = records(tmp_path)
    assert share_of_a(policy) > 2 / V
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.3 and 0.1 < rows[-1]["kl"] <= 4
    assert same(weights(base), before) and base.training
    assert all(weight.grad is None for weight in base.parameters())


@pytest.mark.parametrize("family", ["llama", "modern"])
def test_a_branch_learns_from_prompts_of_many_lengths_and_its_base_stays(tmp_path, family):
    base = branch(language_model(family, spread=0.1), layers=1, seed=1, spread=0.05)
    before, under, trunks = weights(base), weights(base.base), []

    def reward(rollout):
        trunks.append(rollout.trunk)
        return likes(rollout)

    config = small(method="rloo", iterations=10, rollout_size=48, group=4, minibatch=24, lr=3e-2, max_kl=8.0, kl_coef=0.02)
    policy = train(tmp_path, base, reward, config)
    rows = records(tmp_path)
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.5
    assert rows[0]["first_ratio"] == pytest.approx(1, abs=1e-5) and rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert same(weights(base), before) and same(weights(base.base), under) and not same(weights(policy), before)
    assert all(trunk[0].shape[1] == 5 + 8 for trunk in trunks)
    assert checkpoints.read_metadata(tmp_path / "policy")["kind"] == "branch"


def test_a_branchs_checkpoints_on_the_way_find_its_base(tmp_path):
    base = language_model("modern")
    checkpoints.save(tmp_path / "base", base, TOKENIZER)
    policy = train(tmp_path, Branch(base, layers=1, rank=4, alpha=8, source="../base"), config=small(lr=1e-2))
    assert same(weights(checkpoints.load(tmp_path / "policy")[0]), weights(policy))
    first, later = (checkpoints.load(tmp_path / "policy" / f"iteration-00{step}")[0] for step in (0, 2))
    assert same(weights(first.merged()), weights(base)) and not same(weights(later.merged()), weights(base))
    assert checkpoints.read_metadata(tmp_path / "policy" / "iteration-002")["iteration"] == 2


def test_what_is_watched_is_logged_and_never_learned_from(tmp_path):
    watched = train(tmp_path / "watched", watch=lambda rollout, rewards: {"gold": rewards.mean().item()})
    assert same(weights(watched), weights(train(tmp_path / "plain")))
    assert all(row["gold"] == row["reward"] for row in records(tmp_path / "watched"))


def test_the_seed_decides_the_run(tmp_path):
    first, again, other = (weights(train(tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert same(first, again) and not same(first, other)


# ----------------------------------------------------------------------------------------- stopping and going on


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder, config=small(method="ppo", iterations=5, lr=1e-2))
    return folder


@pytest.mark.parametrize(("saved", "stop"), [(0, 1), (2, 4), (6, 6)])
def test_a_resumed_run_ends_with_the_figures_of_an_uninterrupted_one(tmp_path, interrupted, uninterrupted, saved, stop):
    """PPO's row, whose critic remembers."""
    config = small(method="ppo", iterations=5, lr=1e-2)
    with pytest.raises(KeyboardInterrupt), interrupted(saved, stop):
        train(tmp_path, config=config)
    torch.manual_seed(1234)
    with interrupted() as done:
        policy = train(tmp_path, config=config)
    assert done == list(range(saved + 1, 7))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    assert same(weights(policy), weights(checkpoints.load(uninterrupted / "policy")[0]))


def test_a_policy_that_went_too_far_is_not_kept(tmp_path):
    policy = train(tmp_path, even(), config=small(iterations=40, rollout_size=64, minibatch=32, lr=1e-2, max_kl=0.5))
    rows = records(tmp_path)
    assert 1 < len(rows) < 41 and all(row["kl"] <= 0.5 for row in rows)
    assert checkpoints.read_metadata(tmp_path / "policy")["iteration"] == rows[-1]["step"]
    assert same(weights(policy), weights(checkpoints.load(tmp_path / "policy")[0])) and not policy.training


def test_a_reward_that_turns_nan_stops_the_run_and_the_last_policy_is_kept(tmp_path):
    calls = []

    def reward(rollout):
        calls.append(1)
        return likes(rollout) + (math.nan if len(calls) == 3 else 0)

    with pytest.raises(RunError, match=r"policy: the loss is nan at step 2; the last good weights are kept"):
        train(tmp_path, reward=reward, config=small(iterations=6))
    assert not same(weights(checkpoints.load(tmp_path / "policy")[0]), weights(language_model("modern")))


def test_maxrl_refuses_a_negative_reward(tmp_path):
    with pytest.raises(ValueError, match="needs rewards that are not negative"):
        train(tmp_path, config=small(method="maxrl"))


def test_completions_that_end_early_are_sampled_so(tmp_path):
    train(tmp_path, config=small(iterations=1))
    row = runs.Metrics(tmp_path).read("policy")[0]
    assert 1 < row["tokens"] < 8 and END == 0


# ----------------------------------------------------------------------------------------- two processes


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="the processes would talk through the Apple GPU")
def test_two_processes_take_the_steps_of_one_in_every_trainer_of_this_family(tmp_path):
    tests = Path(__file__).resolve().parents[1]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", methods.__name__, str(tmp_path / "two")]
    path = os.pathsep.join(map(str, (tests.parent, tests)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, *launch], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    methods.trained(tmp_path / "one")
    for name in ("rloo", "grpo", "ppo", "rejection", "dpo"):
        ours, theirs = (records(tmp_path / number / name) for number in ("two", "one"))
        assert len(ours) == len(theirs) > 2
        for mine, other in zip(ours, theirs):
            for key in other.keys() - {"stage", "clip_fraction"}:
                assert mine[key] == pytest.approx(other[key], rel=1e-2, abs=2e-3), (name, other["step"], key)
        one, two = (checkpoints.load(tmp_path / number / name / "policy")[0] for number in ("one", "two"))
        for key, weight in weights(one).items():
            torch.testing.assert_close(weights(two)[key], weight, rtol=1e-2, atol=1e-3)
