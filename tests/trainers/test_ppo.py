import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rlhf_lib import checkpoints, devices, runs
from rlhf_lib import ppo as kernels
from rlhf_lib.files import RunError
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.lora import Branch
from rlhf_lib.sampling import completion_logits
from rlhf_lib.tokenization import CharTokenizer
from rlhf_lib.trainers import ppo, rollouts
from rlhf_lib.trainers.ppo import PPOConfig
from rlhf_lib.trainers.rewards import blank_line_price, blank_lines

from . import processes

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = CharTokenizer(list("\nabcdefgh"))  # END, UNKNOWN, the line break, and eight letters: 11 tokens
V, A = TOKENIZER.vocab_size, TOKENIZER.encode("a")[0]
PROMPT = TOKENIZER.encode("\n\n")
TEMPERATURES = (1.0, 0.7, 1.6)
on_cpu = pytest.mark.skipif(torch.backends.mps.is_available(), reason="the processes would talk through the Apple GPU")


@pytest.fixture(scope="module", autouse=True)
def float32():
    """As on hardware without bfloat16, so that numbers compare with the definition's."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (devices, rollouts):
            patch.setattr(module, "has_bf16", lambda device: False)
        yield


def gpt(seed=0, dropout=0.0, spread=0.4):
    """A small GPT whose weights are all drawn, so that its distributions are far from uniform; uniform for spread 0."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=V, context=24, layers=2, heads=2, width=16, dropout=dropout))
    if spread:
        for weight in model.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=spread)
    return model.eval()


def small(**changes):
    shape = dict(iterations=3, rollout_size=16, max_rollout_size=16, max_new_tokens=8, epochs=2, minibatch=8)
    return PPOConfig(**{**shape, "lr": 1e-3, "keep_every": 2, **changes})


def likes(tokens=(A,), sign=1.0):
    """A reward that grows with the share of some tokens; about 0 and 1 are its mean and deviation under even choices."""
    wanted = torch.tensor(list(tokens))

    def reward(rollout):
        share = (torch.isin(rollout.tokens, wanted) & rollout.mask).sum(1) / rollout.mask.sum(1)
        return sign * 8 * (share - 1 / V)

    return reward


def train(folder, base=None, reward=None, config=None, prompts=(PROMPT,), **options):
    base, config = base or gpt(), config or small()
    return ppo.train(base, TOKENIZER, [list(prompt) for prompt in prompts], reward or likes(), config, folder, **options)


def records(folder):
    return runs.Metrics(folder).read("policy")


def drawn(model, count, config, seed=123):
    generator = torch.Generator().manual_seed(seed)
    return rollouts.sample(model, TOKENIZER, [PROMPT] * count, config.max_new_tokens, generator, config.temperature)


def share(model, config, token=A):
    """The share of `token` among 600 completions' tokens."""
    rollout = drawn(model, 600, config)
    return ((rollout.tokens == token) & rollout.mask).sum().item() / rollout.mask.sum().item()


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def log_probabilities(model, rollout, temperature=1.0):
    """The oracle: each token's log-probability by the definition, one row and one position at a time; rows of scalars."""
    rows = []
    for prompt, tokens, mask in zip(rollout.prompts, rollout.tokens.tolist(), rollout.mask.tolist()):
        row = []
        for place in range(sum(mask)):
            scores = model(torch.tensor([prompt + tokens[:place]]))[0, -1] / temperature
            row.append(scores[tokens[place]] - scores.logsumexp(0))
        rows.append(row)
    return rows


# ----------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        *(
            ({name: value}, rf"ppo\.{name} must be at least 1, got {value}")
            for name in ("iterations", "max_new_tokens", "epochs", "minibatch", "keep_every")
            for value in (0, -3)
        ),
        ({"rollout_size": 1}, r"ppo\.rollout_size must be at least 2, got 1"),
        *(
            ({name: value}, rf"ppo\.{name} must be above 0, got {value}")
            for name in ("lr", "clip", "max_kl", "temperature")
            for value in (0.0, -1.0, math.nan)
        ),
        ({"rank": -1}, r"ppo\.rank must not be negative, got -1"),
        ({"kl_coef": -0.1}, r"ppo\.kl_coef must not be negative, got -0\.1"),
        ({"kl_coef": float("nan")}, r"ppo\.kl_coef must not be negative, got nan"),
        (
            {"rollout_size": 96, "minibatch": 64},
            r"ppo\.rollout_size must be a multiple of ppo\.minibatch, got 96 and 64",
        ),
    ],
)
def test_config_refuses_a_bad_value_by_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        PPOConfig(**changes)


def test_config_takes_the_ends_of_its_ranges():
    config = PPOConfig(
        iterations=1, rollout_size=2, max_new_tokens=1, epochs=1, minibatch=1, keep_every=1, kl_coef=0.0, temperature=0.5
    )
    assert config.temperature == 0.5


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ([], "there are no prompts, or an empty one"),
        ([PROMPT, []], "there are no prompts, or an empty one"),
        ([[2] * 17], r"the longest prompt and ppo\.max_new_tokens are 25 tokens, more than the context of 24"),
    ],
)
def test_prompts_are_refused_before_the_first_step(tmp_path, prompts, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(tmp_path, prompts=prompts)
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------- one update


@pytest.fixture
def updates(monkeypatch):
    """What each minibatch of an update was given: (rows of the rollout as tokens, old log-probabilities, advantages, mask)."""
    seen, real = [], kernels.policy_loss

    def look(logprobs, old_logprobs, advantages, mask, clip):
        seen.append((logprobs.detach().clone(), old_logprobs.clone(), advantages.clone(), mask.clone()))
        return real(logprobs, old_logprobs, advantages, mask, clip)

    monkeypatch.setattr(kernels, "policy_loss", look)
    return seen


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("prompts", [(PROMPT,), (PROMPT, [3], [4, 5, 6, 7])], ids=["one prompt", "prompts of many lengths"])
def test_the_first_step_of_an_update_is_the_policy_gradient(tmp_path, monkeypatch, temperature, prompts):
    """At ratio 1 the gradient of PPO's loss is that of -(advantage x log p), averaged over the tokens that count."""
    seen, real = [], ppo.sample

    def look(*arguments):
        seen.append(real(*arguments))
        return seen[-1]

    advantages = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))

    def worth(rewards, logprobs, ref_logprobs, mask, kl_coef):
        return torch.where(mask, advantages, 1e6)  # what stands behind the end never counts

    monkeypatch.setattr(ppo, "sample", look)
    monkeypatch.setattr(ppo, "shape_advantages", worth)
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.SGD)
    base = gpt(seed=6)
    config = small(
        rollout_size=12, minibatch=12, max_new_tokens=5, epochs=1, iterations=1, temperature=temperature, lr=0.5, max_kl=1e3
    )
    policy = train(tmp_path, base, config=config, prompts=prompts)

    expected = copy.deepcopy(base)
    rows = log_probabilities(expected, seen[0], temperature)
    assert len({len(row) for row in rows}) > 1  # some completions end early
    total = sum(-advantages[b, t] * logprob for b, row in enumerate(rows) for t, logprob in enumerate(row))
    (total / seen[0].mask.sum()).backward()
    for name, weight in expected.named_parameters():
        moved = base.state_dict()[name] - policy.state_dict()[name]
        torch.testing.assert_close(moved, 0.5 * weight.grad, rtol=1e-3, atol=1e-5)
    assert max(weight.grad.abs().max() for weight in expected.parameters()) > 0.01


def test_every_epoch_takes_every_completion_once(tmp_path, updates):
    train(tmp_path, reward=lambda rollout: torch.arange(24.0), config=small(
        rollout_size=24, minibatch=8, epochs=3, iterations=1, kl_coef=0.0
    ))  # fmt: skip
    assert [len(mask) for _, _, _, mask in updates] == [8] * 9
    for epoch in range(3):
        numbers = [int(row[0]) for _, _, advantages, _ in updates[3 * epoch : 3 * epoch + 3] for row in advantages]
        assert sorted(numbers) == list(range(24))  # a completion's advantage is its number
        assert numbers != list(range(24))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_entropy_of_even_choices_is_exact(tmp_path, temperature):
    train(tmp_path, gpt(spread=0), config=small(iterations=1, temperature=temperature))
    assert records(tmp_path)[0]["entropy"] == pytest.approx(math.log(V), abs=1e-4)


@torch.no_grad()
def test_the_entropy_agrees_with_that_of_the_whole_distribution(moved):
    rollout = drawn(moved.policy, 2000, moved.config, seed=77)
    logits = completion_logits(moved.policy, rollout.prompts, rollout.tokens, rollout.mask)
    exact = kernels.entropy(logits, rollout.mask).item()
    error = rollout.logprobs[rollout.mask].std().item() / math.sqrt(moved.config.rollout_size * rollout.mask.sum().item() / 2000)
    assert moved.records[-1]["entropy"] == pytest.approx(exact, abs=4 * error)
    assert exact < math.log(V) - 4 * error  # so an even distribution's would not pass


def test_stats_of_an_update_show_a_ratio_that_left_the_clip_range(tmp_path, monkeypatch):
    """Every old log-probability is lowered by ln 1.5, so that the ratio is 1.5 everywhere."""
    real = ppo.sample

    def older(*arguments):
        rollout = real(*arguments)
        rollout.logprobs = torch.where(rollout.mask, rollout.logprobs - math.log(1.5), 0)
        return rollout

    monkeypatch.setattr(ppo, "sample", older)
    config = small(minibatch=16, epochs=1, iterations=1, kl_coef=0.0)
    train(tmp_path, reward=lambda rollout: torch.ones(16), config=config)
    stats = records(tmp_path)[0]
    assert stats["first_ratio"] == pytest.approx(1.5, abs=1e-4)
    assert stats["clip_fraction"] == 1
    assert stats["approx_kl"] == pytest.approx(1.5 - 1 - math.log(1.5), abs=1e-4)
    assert stats["policy_loss"] == pytest.approx(-1.2, abs=1e-5)


# ----------------------------------------------------------------------------------------- the loop


def first_is_one(record, ratio=1e-5, kl=1e-5):
    assert record["first_ratio"] == pytest.approx(1, abs=ratio)
    assert record["clip_fraction"] == 0
    assert record["approx_kl"] == pytest.approx(0, abs=1e-8)
    assert record["kl"] == pytest.approx(0, abs=kl)
    assert record["kl_k3"] == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_on_the_first_minibatch_the_ratio_is_1_nothing_is_clipped_and_the_kl_to_the_reference_is_0(tmp_path, temperature):
    """Sampling, reference and update share one temperature, and dropout is off in all of them."""
    base = gpt(dropout=0.4).train()
    config = small(iterations=1, epochs=1, minibatch=16, lr=1e-7, temperature=temperature)
    train(tmp_path, base, config=config, prompts=(PROMPT, [3, 4, 5]))
    first_is_one(records(tmp_path)[0])


def test_so_it_is_where_rollouts_are_sampled_by_a_copy_in_bf16(tmp_path, monkeypatch, updates):
    """The copy's log-probabilities are off by hundredths of a nat; those of the rollout are the policy's own."""
    for module in (devices, rollouts):
        monkeypatch.setattr(module, "has_bf16", lambda device: True)
        monkeypatch.setattr(module, "precision", lambda device, width=256: torch.bfloat16)
    train(tmp_path, config=small(iterations=1, epochs=1, minibatch=16, lr=1e-7))
    first_is_one(records(tmp_path)[0], ratio=0, kl=0)
    logprobs, old_logprobs, _, mask = updates[0]
    assert torch.equal(logprobs[mask], old_logprobs[mask]) and logprobs.dtype == torch.float32


def test_old_new_and_reference_log_probabilities_are_scored_in_one_way(tmp_path, monkeypatch):
    """What `generate` returns is not used: other numbers from it change nothing."""
    real = rollouts.generate

    def wrong(*arguments, **options):
        samples = real(*arguments, **options)
        return samples._replace(logprobs=samples.logprobs + 1)

    right = weights(train(tmp_path / "right"))
    monkeypatch.setattr(rollouts, "generate", wrong)
    assert same(weights(train(tmp_path / "wrong")), right)
    assert (tmp_path / "wrong" / "metrics.jsonl").read_bytes() == (tmp_path / "right" / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A base, its weights before, a policy that learned to like the letter a, the configuration and the folder."""
    folder = tmp_path_factory.mktemp("moved")
    base = gpt(spread=0, dropout=0.2).train()
    before = copy.deepcopy(base)
    config = small(iterations=14, rollout_size=64, max_rollout_size=64, minibatch=32, lr=3e-3, max_kl=2.0)
    given = copy.deepcopy(config)
    policy = train(folder, base, config=config)
    return SimpleNamespace(
        base=base, before=before, policy=policy, config=config, given=given, folder=folder, records=records(folder)
    )


def test_the_policy_writes_more_of_what_the_reward_likes_and_stays_within_max_kl(moved):
    assert share(moved.base, moved.config) == pytest.approx(1 / V, abs=0.02)
    assert share(moved.policy, moved.config) > 2 / V
    assert moved.records[-1]["reward"] > moved.records[0]["reward"] + 0.5
    assert all(record["kl"] <= 2 for record in moved.records)
    assert moved.records[-1]["kl"] > 0.1  # it went somewhere


def test_the_other_sign_writes_less_of_it(tmp_path, moved):
    policy = train(tmp_path, moved.base, likes(sign=-1), moved.config)
    assert share(policy, moved.config) < 0.5 / V
    assert records(tmp_path)[-1]["reward"] > records(tmp_path)[0]["reward"]


def test_what_the_caller_gives_stays_as_it_is(moved):
    assert same(weights(moved.base), weights(moved.before))
    assert not same(weights(moved.policy), weights(moved.before))
    assert moved.base.training and moved.base.config == moved.before.config
    assert all(weight.grad is None and weight.requires_grad for weight in moved.base.parameters())
    assert moved.config == moved.given


def test_prompts_and_a_frozen_base_stay_as_they_are_and_its_policy_learns(tmp_path):
    base, prompts = gpt().requires_grad_(False), [list(PROMPT), [3, 4, 5]]
    before, given = weights(base), copy.deepcopy(prompts)
    policy = ppo.train(base, TOKENIZER, prompts, likes(), small(), tmp_path)
    assert prompts == given and same(weights(base), before)
    assert not any(weight.requires_grad for weight in base.parameters())
    assert not same(weights(policy), before)


def test_completion_i_continues_prompt_i_and_round_again(tmp_path):
    prompts, seen = [list(PROMPT), [3, 4, 5], [6]], []

    def reward(rollout):
        seen.append(rollout.prompts)
        return likes()(rollout)

    train(tmp_path, reward=reward, prompts=prompts)
    assert seen == [[prompts[(16 * rollout + place) % 3] for place in range(16)] for rollout in range(4)]


def test_dropout_stays_off_while_the_policy_learns(moved):
    """With it the first ratio of an update would not be 1, for the base here has dropout."""
    ratios = [record["first_ratio"] for record in moved.records[:-1]]
    assert ratios == pytest.approx([1] * len(ratios), abs=1e-4)
    assert not moved.policy.training


def test_the_folder_holds_the_policy_that_was_returned_and_those_on_the_way(moved):
    loaded, tokenizer = checkpoints.load(moved.folder / "policy")
    assert same(weights(loaded), weights(moved.policy))
    assert tokenizer.fingerprint() == TOKENIZER.fingerprint()
    last = moved.records[-1]["step"]
    kept = {path.name for path in (moved.folder / "policy").iterdir() if path.is_dir()}
    assert kept == {f"iteration-{step:03d}" for step in range(0, last + 1, 2)}
    for step in range(0, last + 1, 2):
        metadata = checkpoints.read_metadata(moved.folder / "policy" / f"iteration-{step:03d}")
        assert (metadata["iteration"], metadata["kl"]) == (step, moved.records[step]["kl"])
    assert same(weights(checkpoints.load(moved.folder / "policy" / "iteration-000")[0]), weights(moved.before))


def test_every_iteration_leaves_a_record_with_the_known_names(moved):
    assert [record["step"] for record in moved.records] == list(range(len(moved.records)))
    names = {"kl", "kl_error", "kl_k3", "reward", "entropy", "tokens", "rollout_size"}
    learning = {"policy_loss", "clip_fraction", "approx_kl", "first_ratio"}
    for record in moved.records[:-1]:
        assert {"stage", "step"} | names | learning == record.keys()
    assert names <= moved.records[-1].keys()
    assert 0 < moved.records[2]["clip_fraction"] < 1


def test_the_metadatas_kl_is_that_of_the_kept_policy(moved):
    metadata = checkpoints.read_metadata(moved.folder / "policy")
    rollout = drawn(moved.policy, 2000, moved.config, seed=77)
    reference = rollouts.score(moved.base, rollout)
    kl = torch.where(rollout.mask, rollout.logprobs - reference, 0).sum(1)
    error = math.hypot(metadata["kl_error"], kl.std().item() / math.sqrt(2000))
    assert metadata["kl"] == pytest.approx(kl.mean().item(), abs=4 * error)
    assert metadata["iteration"] == moved.records[-1]["step"] and metadata["kl"] == moved.records[-1]["kl"]


def test_the_logged_reward_is_the_mean_of_the_reward_function(tmp_path):
    means = []

    def reward(rollout):
        given = likes()(rollout)
        means.append(given.mean().item())
        return given

    train(tmp_path, reward=reward)
    assert [record["reward"] for record in records(tmp_path)] == means and len(means) == 4


def test_training_stops_at_max_kl_and_keeps_the_last_policy_within_it(tmp_path):
    config = small(iterations=40, rollout_size=64, minibatch=32, lr=1e-2, max_kl=0.5, keep_every=1)
    policy = train(tmp_path, gpt(spread=0), config=config)
    done = records(tmp_path)
    assert 2 <= len(done) < 41
    assert all(record["kl"] <= 0.5 for record in done)
    metadata = checkpoints.read_metadata(tmp_path / "policy")
    assert 0 < metadata["kl"] <= 0.5
    assert metadata["iteration"] == done[-1]["step"]
    kept = checkpoints.load(tmp_path / "policy" / f"iteration-{metadata['iteration']:03d}")[0]
    assert same(weights(policy), weights(kept))
    assert {path.name for path in (tmp_path / "policy").glob("iteration-*")} == {f"iteration-{r['step']:03d}" for r in done}


def test_a_penalty_keeps_the_policy_closer(tmp_path):
    kls = []
    for coefficient in (0.0, 3.0):
        config = small(iterations=6, rollout_size=32, minibatch=16, lr=3e-3, kl_coef=coefficient)
        train(tmp_path / str(coefficient), gpt(spread=0), config=config)
        kls.append(records(tmp_path / str(coefficient))[-1]["kl"])
    assert kls[1] < 0.5 * kls[0]


def test_the_advantage_is_the_reward_over_what_the_last_rollout_had_there(tmp_path, updates):
    seen = []

    def reward(rollout):
        seen.append((rollout, likes()(rollout)))
        return seen[-1][1]

    config = small(iterations=3, kl_coef=0.0, lr=3e-3, epochs=1, minibatch=16)
    train(tmp_path, gpt(spread=0), reward, config)
    assert len(updates) == 3
    baseline = [0.0] * 8
    for iteration, ((rollout, worth), (_, old_logprobs, advantages, mask)) in enumerate(zip(seen, updates)):
        (order,) = rollouts.minibatches(16, 16, 1, devices.generator(0, "minibatches", iteration))
        assert torch.equal(old_logprobs, rollout.logprobs[order]) and torch.equal(mask, rollout.mask[order])
        for place in range(8):
            counts = mask[:, place]
            torch.testing.assert_close(advantages[counts, place], worth[order][counts] - baseline[place], rtol=0, atol=1e-5)
            baseline[place] = worth[order][counts].mean() if counts.any() else 0.0


def test_the_rate_holds_for_half_of_the_iterations_and_then_falls_to_zero(tmp_path, monkeypatch):
    rates = []

    class Noting(torch.optim.Adam):
        def step(self, *arguments):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments)

    monkeypatch.setattr(torch.optim, "Adam", Noting)
    train(tmp_path, config=small(iterations=8, lr=4e-3, epochs=1, minibatch=16))
    assert rates == pytest.approx([4e-3] * 5 + [3e-3, 2e-3, 1e-3])  # by hand


def test_a_reward_that_likes_blank_lines_makes_more_of_them_unless_they_have_a_price(tmp_path):
    line_break = TOKENIZER.encode("\n")[0]
    original = blank_lines(drawn(gpt(spread=0), 4000, small()).texts).mean().item()
    shares = []

    def separators(rollout, rewards):
        return {"separators": blank_lines(rollout.texts).mean().item()}

    for coefficient in (0.0, 20.0):

        def reward(rollout, coefficient=coefficient):
            lines = blank_lines(rollout.texts)
            return likes([line_break])(rollout) - blank_line_price(lines, original, coefficient)

        config = small(iterations=14, rollout_size=64, max_rollout_size=64, minibatch=16, lr=6e-3, kl_coef=0.0, max_kl=100.0)
        folder = tmp_path / str(coefficient)
        train(folder, gpt(spread=0), reward, config, watch=separators)
        rows = records(folder)
        shares.append(sum(row["separators"] for row in rows[-3:]) / 3)
    first = rows[0]["separators"]
    assert shares[0] > first + 0.5
    assert shares[1] < first + 0.25 * (shares[0] - first)


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (64, [16] * 3 + [32] * 3 + [64] * 11),
        (40, [16] * 3 + [32] * 14),
        (16, [16] * 17),
    ],
)
def test_the_rollout_doubles_after_three_iterations_that_hardly_clip(tmp_path, most, expected):
    config = small(iterations=16, max_rollout_size=most, max_new_tokens=3, lr=1e-9)  # steps too small to leave the clip range
    train(tmp_path, config=config)
    assert [record["rollout_size"] for record in records(tmp_path)] == expected
    assert all(record["clip_fraction"] == 0 for record in records(tmp_path)[:-1])


def test_only_three_such_iterations_in_a_row_double_it(tmp_path, monkeypatch):
    fractions = iter([0.0, 0.0, 0.5, 0.009, 0.0, 0.0101, 0.0, 0.0, 0.0] + [0.2] * 11)
    real = kernels.policy_loss

    def clipped(*arguments):
        return real(*arguments)._replace(clip_fraction=torch.tensor(now[0]))

    def watch(rollout, rewards):  # once an iteration
        now[0] = next(fractions, 0.2)
        return {}

    now = [0.0]
    monkeypatch.setattr(kernels, "policy_loss", clipped)
    config = small(iterations=20, max_rollout_size=64, max_new_tokens=3)
    train(tmp_path, config=config, watch=watch)
    assert [record["rollout_size"] for record in records(tmp_path)] == [16] * 9 + [32] * 12


def test_little_clipping_does_not_count_once_the_rate_falls(tmp_path):
    config = small(iterations=4, max_rollout_size=64, max_new_tokens=3, lr=1e-9)  # at the full rate: iterations 0, 1 and 2
    train(tmp_path, config=config)
    assert [record["rollout_size"] for record in records(tmp_path)] == [16, 16, 16, 32, 32]
    config = small(iterations=3, max_rollout_size=64, max_new_tokens=3, lr=1e-9)  # 0 and 1
    train(tmp_path / "short", config=config)
    assert [record["rollout_size"] for record in records(tmp_path / "short")] == [16] * 4


def test_what_is_watched_is_logged_and_never_learned_from(tmp_path):
    watches = {
        "nothing": None,
        "constant": lambda rollout, rewards: {"gold": 0.25},
        "length": lambda rollout, rewards: {"gold": float(rollout.mask.sum()), "mean": rewards.mean().item()},
    }
    learned = {name: weights(train(tmp_path / name, watch=watch)) for name, watch in watches.items()}
    assert same(learned["nothing"], learned["constant"]) and same(learned["nothing"], learned["length"])
    assert "gold" not in records(tmp_path / "nothing")[0]
    assert [record["gold"] for record in records(tmp_path / "constant")] == [0.25] * 4
    for record in records(tmp_path / "length"):
        assert record["gold"] > 16 and record["mean"] == record["reward"]


def test_a_reward_that_has_a_gradient_is_a_number_to_the_loop(tmp_path):
    weight, seen = torch.ones((), requires_grad=True), []
    watch = lambda rollout, rewards: seen.append(rewards.requires_grad) or {}  # noqa: E731
    policy = train(tmp_path / "graph", reward=lambda rollout: weight * likes()(rollout), watch=watch)
    assert seen == [False] * 4 and weight.grad is None
    assert same(weights(policy), weights(train(tmp_path / "plain")))


def test_the_seed_decides_the_run(tmp_path):
    runs_of = [(0, "a"), (0, "b"), (1, "c")]
    policies = [weights(train(tmp_path / name, seed=seed)) for seed, name in runs_of]
    assert same(policies[0], policies[1])
    assert not same(policies[0], policies[2])


# ----------------------------------------------------------------------------------------- stopping and going on

WAYS = {
    "moving": small(iterations=5, lr=1e-2, kl_coef=0.1),
    "growing": small(iterations=5, lr=1e-9, max_rollout_size=32),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folders = {way: tmp_path_factory.mktemp(way) for way in WAYS}
    for way, config in WAYS.items():
        train(folders[way], config=config)
    return folders


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("saved", "stop"), [(0, 1), (1, 2), (2, 4), (5, 6), (6, 6)])
def test_a_resumed_run_ends_with_the_figures_of_an_uninterrupted_one(tmp_path, interrupted, uninterrupted, way, saved, stop):
    config, whole = WAYS[way], uninterrupted[way]
    with pytest.raises(KeyboardInterrupt), interrupted(saved, stop):
        train(tmp_path, config=config)
    torch.manual_seed(1234)  # whatever the process did before it went on
    with interrupted() as done:
        policy = train(tmp_path, config=config)
    assert done == list(range(saved + 1, 7))  # what was saved is not done again
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert same(weights(policy), weights(checkpoints.load(whole / "policy")[0]))
    assert checkpoints.read_metadata(tmp_path / "policy") == checkpoints.read_metadata(whole / "policy")


def test_the_ways_of_the_test_above_do_move_and_grow(uninterrupted):
    assert records(uninterrupted["moving"])[-1]["kl_k3"] > 0.01
    assert [record["rollout_size"] for record in records(uninterrupted["growing"])] == [16] * 3 + [32] * 3


def test_a_run_that_was_stopped_by_its_kl_and_is_asked_again_keeps_its_policy(tmp_path):
    config = small(iterations=40, rollout_size=64, minibatch=32, lr=1e-2, max_kl=0.5)
    first = train(tmp_path, gpt(spread=0), config=config)
    metadata, log = checkpoints.read_metadata(tmp_path / "policy"), (tmp_path / "metrics.jsonl").read_bytes()
    again = train(tmp_path, gpt(spread=0), config=config)
    assert same(weights(first), weights(again))
    assert checkpoints.read_metadata(tmp_path / "policy") == metadata
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


def test_a_reward_that_turns_nan_stops_the_run_and_the_last_policy_is_kept(tmp_path):
    calls = []

    def reward(rollout):
        calls.append(1)
        return likes()(rollout) + (math.nan if len(calls) == 3 else 0)

    with pytest.raises(RunError, match=r"policy: the loss is nan at step 2; the last good weights are kept"):
        train(tmp_path, reward=reward, config=small(iterations=6))
    kept, _ = checkpoints.load(tmp_path / "policy")  # refuses values that are not finite
    assert checkpoints.read_metadata(tmp_path / "policy")["iteration"] in (1, 2)
    assert not same(weights(kept), weights(gpt()))


def test_a_kl_that_explodes_stops_the_run_with_a_sentence(tmp_path):
    with pytest.raises(RunError, match=r"policy: the KL to the original model is .* at step 1; the last good weights are kept"):
        train(tmp_path, config=small(iterations=6, lr=1.0, max_kl=1e-3))
    assert checkpoints.read_metadata(tmp_path / "policy")["iteration"] == 0
    assert same(weights(checkpoints.load(tmp_path / "policy")[0]), weights(gpt()))


# ----------------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of what `processes.py` does in two processes, what each of them says, and what one does by itself."""
    folder, alone = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", processes.__file__, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *launch], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    one = {
        "plain": processes.trained(alone / "plain", max_kl=100.0),
        "stopped": processes.trained(alone / "stopped", max_kl=0.5),
    }
    return SimpleNamespace(folder=folder, said=said, alone=alone, one=one)


@on_cpu
@pytest.mark.parametrize("name", ["plain", "stopped"])
def test_two_processes_take_the_steps_of_one(two, name):
    """But for what sums in another order do."""
    ours, theirs = records(two.folder / name), records(two.alone / name)
    assert len(ours) == len(theirs) > 1
    for mine, other in zip(ours, theirs):
        assert mine.keys() == other.keys()
        for key in other.keys() - {"stage"}:
            assert mine[key] == pytest.approx(other[key], rel=1e-3, abs=1e-3), (other["step"], key)
    assert two.said[0][name]["weights"] == two.said[1][name]["weights"]  # to the last bit: one and the same model
    assert two.said[0][name]["weights"] == pytest.approx(two.one[name]["weights"], rel=1e-3)


@on_cpu
def test_two_processes_share_the_scoring_out(two):
    alone = two.one["plain"]["read"]
    assert alone == {"base": 5 * 24, "reward model": 5 * 24}  # with its constants fitted before they are counted
    for said in two.said:
        assert said["plain"]["read"] == {name: rows / 2 for name, rows in alone.items()}


@on_cpu
def test_the_stop_is_decided_once_for_all(two):
    """By the first process; were each to go by its own measure, one would wait for the other for ever."""
    assert [said["only 0 would stop"]["iterations"] for said in two.said] == [2, 2]
    assert [said["only 1 would stop"]["iterations"] for said in two.said] == [5, 5]
    assert 1 < two.said[0]["stopped"]["iterations"] == two.said[1]["stopped"]["iterations"] < 5


# ----------------------------------------------------------------------------------------- adapters in place of all weights


def with_adapters(folder, seed=0, **changes):
    base = gpt()
    checkpoints.save(folder / "base", base, TOKENIZER)
    config = small(**{**dict(iterations=6, rollout_size=64, max_rollout_size=64, lr=2e-2, rank=4), **changes})
    return train(folder, base=base, config=config, seed=seed), config


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    return folder, *with_adapters(folder)


def test_adapters_learn_what_the_reward_likes_and_the_base_stays(adapted):
    folder, policy, config = adapted
    assert isinstance(policy, Branch) and share(policy, config) > share(gpt(), config) + 0.05
    assert same(weights(policy.base), weights(gpt()))
    first, last = records(folder)[0], records(folder)[-1]
    assert first["first_ratio"] == pytest.approx(1, abs=1e-5) and first["kl"] == 0 and last["kl_k3"] > 0.01


def test_the_checkpoint_holds_the_adapters_alone_and_those_on_the_way_are_whole(adapted):
    folder, policy, config = adapted
    assert {name.rsplit(".", 1)[1] for name in checkpoints.read_tensors(folder / "policy")} == {"A", "B"}
    loaded, _ = checkpoints.load(folder / "policy")
    rollout = drawn(policy, 20, config)
    assert torch.equal(drawn(loaded, 20, config).logprobs, rollout.logprobs)
    torch.testing.assert_close(rollouts.score(policy.merged(), rollout), rollout.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(rollouts.score(gpt(), rollout), rollouts.score(policy.base, rollout), atol=0, rtol=0)
    kept, _ = checkpoints.load(folder / "policy" / "iteration-006")
    assert isinstance(kept, GPT) and same(weights(kept), weights(policy.merged()))


def test_the_seed_draws_the_adapters_whatever_was_drawn_before(adapted, tmp_path):
    torch.manual_seed(99)
    again, _ = with_adapters(tmp_path / "again")
    other, _ = with_adapters(tmp_path / "other", seed=1)
    assert same(weights(again), weights(adapted[1])) and not same(weights(other), weights(adapted[1]))


def test_adapters_without_a_base_to_stand_on_are_refused_before_the_first_step(tmp_path):
    with pytest.raises(checkpoints.CheckpointError, match=r"no checkpoint in .*base: it needs a model\.safetensors"):
        train(tmp_path, config=small(rank=2))
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(("saved", "stop"), [(0, 2), (3, 4)])
def test_a_resumed_run_of_adapters_ends_with_the_figures_of_one_that_was_not_stopped(adapted, tmp_path, interrupted, saved, stop):
    with pytest.raises(KeyboardInterrupt), interrupted(saved, stop):
        with_adapters(tmp_path)
    torch.manual_seed(1234)
    policy, _ = with_adapters(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (adapted[0] / "metrics.jsonl").read_bytes()
    assert same(weights(policy), weights(adapted[1]))
