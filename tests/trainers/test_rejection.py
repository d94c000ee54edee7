import copy
import math

import pytest
import torch
from torch import nn

from rlhf_lib import checkpoints, devices
from rlhf_lib.files import RunError
from rlhf_lib.judge import best_of_n_kl
from rlhf_lib.models.lora import Branch
from rlhf_lib.trainers import rejection, rollouts
from rlhf_lib.trainers.rejection import RejectionConfig

from .helpers import PROMPTS, TOKENIZER, V, branch, even, language_model, likes, records, same, share_of_a, weights


@pytest.fixture(scope="module", autouse=True)
def float32():
    """As on hardware without bfloat16, so that numbers compare with the definition's."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (devices, rollouts):
            patch.setattr(module, "has_bf16", lambda device: False)
        yield


def small(**changes):
    shape = dict(iterations=3, rollout_size=32, best_of=4, max_new_tokens=8, epochs=2, minibatch=4, lr=1e-3, keep_every=2)
    return RejectionConfig(**{**shape, **changes})


def train(folder, base=None, reward=None, config=None, prompts=PROMPTS, **options):
    prompts = [list(prompt) for prompt in prompts]
    base = base or language_model("modern")
    return rejection.train(base, TOKENIZER, prompts, reward or likes, config or small(), folder, **options)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        *(
            ({name: 0}, rf"rejection\.{name} must be at least 1, got 0")
            for name in ("iterations", "rollout_size", "max_new_tokens", "epochs", "minibatch", "keep_every")
        ),
        ({"best_of": 1}, r"rejection\.best_of must be at least 2, got 1"),
        *(
            ({name: value}, rf"rejection\.{name} must be above 0, got {value}")
            for name in ("lr", "max_kl", "temperature")
            for value in (0.0, math.nan)
        ),
        (
            {"rollout_size": 24, "minibatch": 4},
            r"rejection\.rollout_size must be a multiple of .*best_of times .*, got 24, 4 and 4",
        ),
    ],
)
def test_config_refuses_a_bad_value_by_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(**changes)


def test_prompts_are_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"the longest prompt and rejection\.max_new_tokens are 53 tokens"):
        train(tmp_path, prompts=[[2] * 45])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def kept(monkeypatch):
    """The rows of completions that each minibatch learned from: (prompts, tokens)."""
    seen = []

    def look(policy, rollout, temperature):
        seen.append((rollout.prompts, rollout.tokens.tolist()))
        return rollouts.logprobs_of(policy, rollout, temperature)

    monkeypatch.setattr(rejection, "logprobs_of", look)
    return seen


@pytest.mark.parametrize("control", [False, True])
def test_one_completion_of_each_prompts_is_learned_from_once_an_epoch(tmp_path, kept, control):
    """The best, or the control's: a random one, from another place in each group."""
    rolled = []

    def reward(rollout):
        rolled.append(rollout)
        return likes(rollout) + torch.linspace(0, 1e-3, len(rollout))  # no ties

    train(tmp_path, reward=reward, config=small(iterations=1, control=control))
    rollout, scores = rolled[0], likes(rolled[0]) + torch.linspace(0, 1e-3, 32)
    assert rollout.prompts == [PROMPTS[place // 4 % 3] for place in range(32)]
    for epoch in (kept[:2], kept[2:]):
        learned = sorted((*prompts, tokens) for part in epoch for prompts, tokens in zip(part[0], part[1]))
        places = []
        for group in range(8):
            rows = list(range(4 * group, 4 * group + 4))
            best = max(rows, key=lambda row: scores[row])
            places.append([row - rows[0] for row in rows if (*rollout.prompts[row], rollout.tokens[row].tolist()) in learned])
            if not control:
                assert (*rollout.prompts[best], rollout.tokens[best].tolist()) in learned
        assert len(learned) == 8 and all(places)
        assert len({place[0] for place in places}) > 2
    row = records(tmp_path)[0]
    if not control:
        assert row["kept_reward"] == pytest.approx(scores.view(8, 4).amax(1).mean().item(), abs=1e-5)
        assert row["kept_reward"] > row["reward"] + 0.2


def test_the_step_is_that_of_the_mean_negative_log_probability(tmp_path, monkeypatch, kept):
    base = language_model("gpt2")
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.SGD)
    policy = train(tmp_path, base, config=small(iterations=1, epochs=1, minibatch=8, lr=0.1, max_kl=1e4))
    (prompts, tokens), expected = kept[0], copy.deepcopy(base)
    total, count = 0.0, 0
    for prompt, row in zip(prompts, tokens):
        row = row[: row.index(0) + 1] if 0 in row else row  # up to and including the end token
        for place, token in enumerate(row):
            total = total - expected(torch.tensor([prompt + row[:place]]))[0, -1].log_softmax(0)[token]
            count += 1
    (total / count).backward()
    assert records(tmp_path)[0]["train_loss"] == pytest.approx((total / count).item(), rel=1e-4)
    for key, weight in expected.named_parameters():
        moved = base.state_dict()[key] - policy.state_dict()[key]
        torch.testing.assert_close(moved, 0.1 * weight.grad, rtol=2e-3, atol=2e-6)


def test_it_writes_more_of_what_the_reward_likes_and_its_control_does_not(tmp_path):
    base, shares = even(), {}
    before = weights(base)
    for control in (False, True):
        config = small(iterations=8, rollout_size=128, minibatch=8, lr=6e-3, max_kl=5.0, control=control)
        policy = train(tmp_path / str(control), base, config=config, prompts=PROMPTS[:1])
        shares[control] = share_of_a(policy)
        assert all(row["kl"] <= 5 for row in records(tmp_path / str(control)))
    assert shares[False] > 2 / V and shares[True] < 1.5 / V
    assert same(weights(base), before) and base.training


def test_one_round_moves_about_as_far_as_best_of_n(tmp_path):
    """Fine-tuned to the end on the best of 4 one-token completions, the policy is best-of-4: .6363 nats, less what ties take."""
    base, values = even(), torch.linspace(0, 1, V)
    nn.init.zeros_(base.head.weight)
    config = small(iterations=1, rollout_size=6000, max_new_tokens=1, minibatch=500, epochs=30, lr=3e-2, max_kl=9.0)
    policy = train(tmp_path, base, lambda rollout: values[rollout.tokens[:, 0]], config, PROMPTS[:1])
    p = policy(torch.tensor([PROMPTS[0]]))[0, -1].softmax(0)
    ranks = torch.arange(V + 1) / V
    exact = ranks[1:] ** 4 - ranks[:-1] ** 4  # the highest of four even draws
    assert (p - exact).abs().max() < 0.04
    kl, exactly = (torch.special.xlogy(x, x * V).sum().item() for x in (p, exact))
    assert kl == pytest.approx(exactly, abs=0.06) and exactly < best_of_n_kl(4)


def test_a_branch_learns_from_prompts_of_many_lengths_and_its_base_stays(tmp_path):
    base = branch(language_model("llama", spread=0.1), layers=1, seed=1, spread=0.05)
    before, under = weights(base), weights(base.base)
    config = small(iterations=8, rollout_size=64, minibatch=8, lr=3e-2, max_kl=8.0)
    policy = train(tmp_path, base, config=config)
    rows = records(tmp_path)
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.4 and rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert same(weights(base), before) and same(weights(base.base), under) and not same(weights(policy), before)


def test_a_branchs_checkpoints_on_the_way_find_its_base(tmp_path):
    base = language_model("modern")
    checkpoints.save(tmp_path / "base", base, TOKENIZER)
    policy = train(tmp_path, Branch(base, layers=1, rank=4, alpha=8, source="../base"), config=small(lr=1e-2))
    assert same(weights(checkpoints.load(tmp_path / "policy")[0]), weights(policy))
    first, later = (checkpoints.load(tmp_path / "policy" / f"iteration-00{step}")[0] for step in (0, 2))
    assert same(weights(first.merged()), weights(base)) and not same(weights(later.merged()), weights(base))
    assert checkpoints.read_metadata(tmp_path / "policy" / "iteration-002")["iteration"] == 2


def test_what_is_watched_is_logged_and_never_learned_from_and_the_seed_decides(tmp_path):
    watched = train(tmp_path / "watched", watch=lambda rollout, rewards: {"gold": rewards.mean().item()})
    assert same(weights(watched), weights(train(tmp_path / "plain")))
    assert all(row["gold"] == row["reward"] for row in records(tmp_path / "watched"))
    assert not same(weights(watched), weights(train(tmp_path / "other", seed=1)))


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize(("saved", "stop"), [(0, 1), (2, 3)])
def test_a_resumed_run_ends_with_the_figures_of_an_uninterrupted_one(tmp_path, interrupted, saved, stop, control):
    config = small(lr=1e-2, control=control)
    whole = train(tmp_path / "whole", config=config)
    with pytest.raises(KeyboardInterrupt), interrupted(saved, stop):
        train(tmp_path / "cut", config=config)
    torch.manual_seed(1234)
    with interrupted() as done:
        policy = train(tmp_path / "cut", config=config)
    assert done == list(range(saved + 1, 5)) and same(weights(policy), weights(whole))
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_it_stops_at_max_kl_and_at_a_loss_that_is_not_finite(tmp_path, monkeypatch):
    train(tmp_path / "far", even(), config=small(iterations=30, rollout_size=64, minibatch=8, lr=1e-2, max_kl=0.5))
    rows = records(tmp_path / "far")
    assert 1 < len(rows) < 31 and all(row["kl"] <= 0.5 for row in rows)
    assert checkpoints.read_metadata(tmp_path / "far" / "policy")["iteration"] == rows[-1]["step"]
    monkeypatch.setattr(rejection, "logprobs_of", lambda *_: rollouts.logprobs_of(*_) + math.nan)
    with pytest.raises(RunError, match="policy: the loss is nan at step 0; the last good weights are kept"):
        train(tmp_path / "nan")
