import copy
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rlhf_lib import ppo, rlhf, runs
from rlhf_lib.model import GPT, GPTConfig
from rlhf_lib.pretrain import load_model
from rlhf_lib.reward import RewardModel, score_texts
from rlhf_lib.rlhf import Normaliser, RLHFConfig
from rlhf_lib.sampling import Samples, token_logprobs
from rlhf_lib.tokenization import CharTokenizer

TOKENIZER = CharTokenizer(list("\nabcdefgh"))  # END, UNKNOWN, the line break, and eight letters: 11 tokens
V, A = TOKENIZER.vocab_size, TOKENIZER.encode("a")[0]
PROMPT = rlhf.prompt_tokens(TOKENIZER)
CUTS = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.6, "top_k": 4},
    {"temperature": 0.9, "top_p": 0.7},
]


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
    shape = dict(iterations=3, completions=16, most_completions=16, tokens=8, epochs=2, minibatch=8, normaliser_samples=64)
    shape["form_coef"] = 0.0
    return RLHFConfig(**{**shape, "rate": 1e-3, "keep_every": 2, **changes})


class Likes(nn.Module):
    """Stands in for a reward model: the log-odds of positive grow with the share of some tokens."""

    def __init__(self, tokens=(A,), fail_at=None):
        super().__init__()
        self.tokens, self.fail_at, self.calls = torch.tensor(list(tokens)), fail_at, 0
        self.config = SimpleNamespace(width=16)

    def logits(self, tokens, mask):
        self.calls += 1
        share = (torch.isin(tokens, self.tokens) & mask).sum(1) / mask.sum(1)
        return 6 * share - 2 + (math.nan if self.calls == self.fail_at else 0)


def records(folder):
    return runs.Metrics(folder).read("policy")


def share(model, config, token=A):
    """The share of `token` among 600 completions' tokens."""
    samples = rlhf.rollout(model, PROMPT, 600, config, seed=123)
    return ((samples.tokens == token) & samples.mask).sum().item() / samples.mask.sum().item()


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def log_probabilities(model, samples, temperature=1.0, top_k=0, top_p=1.0):
    """The oracle: each token's log-probability by the definition, one row and one position at a time; rows of scalars."""
    rows = []
    for tokens, mask in zip(samples.tokens.tolist(), samples.mask.tolist()):
        row = []
        for place in range(sum(mask)):
            scores = model(torch.tensor([PROMPT + tokens[:place]]))[0, -1] / temperature
            ranked = scores.argsort(descending=True).tolist()
            kept = ranked[: top_k or V]
            p = torch.stack([scores[token] for token in kept]).softmax(0).tolist()
            while sum(p[:-1]) >= top_p:  # the last is not needed to reach p
                kept, p = kept[:-1], p[:-1]
            row.append(scores[tokens[place]] - torch.stack([scores[token] for token in kept]).logsumexp(0))
        rows.append(row)
    return rows


# ----------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sentiment": "sad"}, r"rlhf\.sentiment must be positive or negative, got 'sad'"),
        *(
            ({name: value}, rf"rlhf\.{name} must be at least 1, got {value}")
            for name in ("iterations", "completions", "tokens", "epochs", "minibatch", "normaliser_samples", "keep_every")
            for value in (0, -3)
        ),
        *(
            ({name: value}, rf"rlhf\.{name} must be above 0, got {value}")
            for name in ("rate", "clip", "max_kl", "temperature")
            for value in (0.0, -1.0, math.nan)
        ),
        ({"kl_coef": -0.1}, r"rlhf\.kl_coef must not be negative, got -0\.1"),
        ({"kl_coef": float("nan")}, r"rlhf\.kl_coef must not be negative, got nan"),
        ({"form_coef": -2.0}, r"rlhf\.form_coef must not be negative, got -2\.0"),
        ({"top_k": -1}, r"rlhf\.top_k must be 0 \(keep all\) or more, got -1"),
        ({"top_p": 2.0}, r"rlhf\.top_p must lie in \(0, 1\], got 2\.0"),
        (
            {"completions": 96, "minibatch": 64},
            r"rlhf\.completions must be a multiple of rlhf\.minibatch, got 96 and 64",
        ),
    ],
)
def test_config_refuses_a_bad_value_by_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        RLHFConfig(**changes)


def test_config_takes_the_ends_of_its_ranges():
    config = RLHFConfig(
        sentiment="negative", iterations=1, completions=1, tokens=1, epochs=1, minibatch=1, normaliser_samples=1,
        keep_every=1, kl_coef=0.0, form_coef=0.0, temperature=0.5, top_k=3, top_p=0.9,
    )  # fmt: skip
    assert config.cut == {"temperature": 0.5, "top_k": 3, "top_p": 0.9}


def test_completions_start_from_a_blank_line():
    assert TOKENIZER.decode(PROMPT) == "\n\n"


# ----------------------------------------------------------------------------------------- rollouts


def test_a_rollout_is_the_same_for_the_same_seed_and_another_for_another():
    model, config = gpt(), small(tokens=6)
    first, again, other = (rlhf.rollout(model, PROMPT, 300, config, seed) for seed in (3, 3, 4))
    assert first.tokens.shape == first.logprobs.shape == first.mask.shape == (300, 6)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first.tokens, other.tokens)
    assert len({tuple(row) for row in first.tokens.tolist()}) > 100  # a draw of its own for every completion


def test_after_the_end_token_everything_is_masked():
    samples = rlhf.rollout(gpt(spread=0), PROMPT, 200, small(tokens=10), seed=0)  # uniform: one token in 11 is END
    lengths = set()
    for tokens, logprobs, mask in zip(samples.tokens.tolist(), samples.logprobs.tolist(), samples.mask.tolist()):
        length = tokens.index(0) + 1 if 0 in tokens[: sum(mask)] else 10
        lengths.add(length)
        assert mask == [True] * length + [False] * (10 - length)
        assert tokens[length:] == [0] * (10 - length)
        assert logprobs[:length] == pytest.approx([-math.log(V)] * length, abs=1e-5)
        assert logprobs[length:] == [0] * (10 - length)
    assert lengths == set(range(1, 11))


@pytest.mark.parametrize("cut", CUTS)
def test_a_rollouts_log_probabilities_and_the_references_are_those_of_the_definition(cut):
    model = gpt()
    samples = rlhf.rollout(model, PROMPT, 7, small(tokens=5, **cut), seed=5)
    expected = log_probabilities(model, samples, **cut)
    rescored = rlhf.reference_logprobs(model, PROMPT, samples, small(**cut).cut)
    for place, row in enumerate(expected):
        assert samples.logprobs[place, : len(row)].tolist() == pytest.approx([x.item() for x in row], abs=1e-5)
        assert rescored[place, : len(row)].tolist() == pytest.approx([x.item() for x in row], abs=1e-5)
        assert rescored[place, len(row) :].tolist() == [0] * (5 - len(row))
    assert not rescored.requires_grad


def test_completions_follow_the_distribution_at_the_temperature():
    model = gpt()
    p = (model(torch.tensor([PROMPT]))[0, -1] / 1.5).softmax(0)
    samples = rlhf.rollout(model, PROMPT, 4000, small(tokens=1, temperature=1.5), seed=1)
    counts = torch.bincount(samples.tokens[:, 0], minlength=V) / 4000
    assert (counts - p).abs().max() < 5 * math.sqrt(0.25 / 4000)  # five standard errors at most


def test_the_reference_scores_many_rows_in_their_order():
    model = gpt()
    samples = rlhf.rollout(model, PROMPT, 150, small(tokens=4), seed=2)
    torch.testing.assert_close(rlhf.reference_logprobs(model, PROMPT, samples, small().cut), samples.logprobs, rtol=0, atol=1e-5)


def test_dropout_is_off_in_rollouts_and_the_models_mode_is_put_back():
    still, dropping = gpt(), gpt(dropout=0.5).train()
    dropping.load_state_dict(still.state_dict())
    expected, samples = (rlhf.rollout(model, PROMPT, 20, small(), seed=3) for model in (still, dropping))
    assert all(torch.equal(a, b) for a, b in zip(expected, samples))
    rescored = rlhf.reference_logprobs(dropping, PROMPT, samples, small().cut)
    torch.testing.assert_close(rescored, expected.logprobs, rtol=0, atol=1e-5)
    assert dropping.training and not still.training


# ----------------------------------------------------------------------------------------- reward, KL, advantages


class Fixed(nn.Module):
    """A reward model with the given log-odds; it notes whether its dropout was on."""

    def __init__(self, logits):
        super().__init__()
        self.answers, self.modes, self.config = torch.tensor(logits), [], SimpleNamespace(width=16)

    def logits(self, tokens, mask):
        self.modes.append(self.training)
        return self.answers[tokens[:, 0]]  # a row's first token is its number


def numbered(count):
    tokens = torch.arange(count)[:, None]
    return Samples(tokens, torch.zeros(count, 1), torch.ones(count, 1, dtype=torch.bool))


def test_the_reward_is_log_p_of_the_wanted_sentiment():
    odds = [-1000.0, -2.0, 0.0, 3.0, 1000.0]
    model, samples = Fixed(odds).train(), numbered(5)
    positive = rlhf.rewards_of(model, samples).tolist()
    # log(1 / (1 + e^-x)) by hand; far out it is the log-odds themselves, and finite
    assert positive == pytest.approx([-1000, -math.log(1 + math.e**2), -math.log(2), -math.log(1 + math.e**-3), 0], abs=1e-5)
    negative = rlhf.rewards_of(model, samples, "negative").tolist()
    assert negative == pytest.approx(rlhf.rewards_of(Fixed([-x for x in odds]), samples).tolist(), abs=1e-6)
    assert [math.exp(a) + math.exp(b) for a, b in zip(positive, negative)] == pytest.approx([1] * 5, abs=1e-5)
    assert model.modes == [False, False] and model.training  # dropout off, and back on behind


def test_many_completions_are_rewarded_in_their_order():
    odds = torch.linspace(-3, 3, 600)
    rewards = rlhf.rewards_of(Fixed(odds.tolist()), numbered(600))
    torch.testing.assert_close(rewards, -torch.log1p((-odds).exp()), rtol=0, atol=1e-5)


def test_the_reward_reads_the_completion_alone_and_up_to_its_end():
    """Each reward equals that of the completion's text scored by itself."""
    body = gpt(seed=4, dropout=0.3)
    model = RewardModel(body).train()
    nn.init.normal_(model.score.weight)
    samples = rlhf.rollout(gpt(spread=0), PROMPT, 40, small(), seed=9)
    expected = []
    for tokens, mask in zip(samples.tokens, samples.mask):
        text = SimpleNamespace(encode=lambda _, row=tokens[mask]: row.tolist())
        expected.append(score_texts(copy.deepcopy(model), text, ["one"]).sigmoid().log().item())
    rewards = rlhf.rewards_of(model, samples)
    assert rewards.tolist() == pytest.approx(expected, abs=1e-4)
    assert rewards.std() > 0.05 and not rewards.requires_grad


LOGPROBS = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.25, -4.0]])
REFERENCE = torch.tensor([[-1.5, -1.0, -9.0], [-0.5, -1.25, -4.5]])
MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_the_kl_of_a_completion_is_a_masked_sum_in_nats():
    # k1, current less reference: .5 - 1, the third is masked; and 0 + 1 + .5
    assert rlhf.completion_kl(LOGPROBS, REFERENCE, MASK).tolist() == pytest.approx([-0.5, 1.5], abs=1e-6)
    # k3, r - 1 - log r with log r = -.5, 1; and 0, -1, -.5
    k3 = [math.exp(-0.5) - 1 + 0.5 + math.e - 2, math.exp(-1) - 1 + 1 + math.exp(-0.5) - 1 + 0.5]
    assert rlhf.completion_kl(LOGPROBS, REFERENCE, MASK, "k3").tolist() == pytest.approx(k3, abs=1e-6)


def test_what_stands_under_the_mask_never_reaches_the_kl_and_no_gradient_leaves_it():
    logprobs, reference = LOGPROBS.clone().requires_grad_(), REFERENCE.clone()
    with torch.no_grad():
        logprobs[0, 2], reference[0, 2] = math.nan, -math.inf
    kl = rlhf.completion_kl(logprobs, reference, MASK)
    assert kl.tolist() == pytest.approx([-0.5, 1.5], abs=1e-6)
    assert not kl.requires_grad


def test_the_mean_kl_of_sampled_completions_converges_to_the_exact_one():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.3, 0.3])
    tokens = torch.multinomial(p.expand(60_000, 3), 3, replacement=True, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for kind in ("k1", "k3"):
        kl = rlhf.completion_kl(p.log()[tokens], q.log()[tokens], mask, kind).mean().item()
        assert kl == pytest.approx(3 * 0.20078, abs=0.02)  # KL(p || q), for each of three tokens


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, -2.0])
    # without a penalty: the completion's reward for each of its tokens
    plain = rlhf.shape_advantages(rewards, LOGPROBS, REFERENCE, MASK, 0.0)
    assert plain.tolist() == [[1, 1, 0], [-2, -2, -2]]
    # with one: less .1 times the KL of this token and of those behind it: -.5, -1 and 1.5, 1.5, .5
    shaped = rlhf.shape_advantages(rewards, LOGPROBS, REFERENCE, MASK, 0.1)
    assert shaped[0].tolist() == pytest.approx([1.05, 1.1, 0], abs=1e-6)
    assert shaped[1].tolist() == pytest.approx([-2.15, -2.15, -2.05], abs=1e-6)


def test_the_penalty_is_detached():
    logprobs, reference = LOGPROBS.clone().requires_grad_(), REFERENCE.clone().requires_grad_()
    shaped = rlhf.shape_advantages(torch.tensor([1.0, -2.0]), logprobs, reference, MASK, 0.5)
    assert not shaped.requires_grad


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 7), st.floats(0, 2))
def test_advantages_equal_a_scalar_loop(seed, rows, length, coefficient):
    generator = torch.Generator().manual_seed(seed)
    logprobs, reference = (-torch.rand(rows, length, generator=generator) * 5 for _ in range(2))
    rewards = torch.randn(rows, generator=generator)
    ends = torch.randint(1, length + 1, (rows,), generator=generator)
    mask = torch.arange(length) < ends[:, None]
    shaped = rlhf.shape_advantages(rewards, logprobs, reference, mask, coefficient)
    for row in range(rows):
        for place in range(length):
            expected = 0.0
            if place < ends[row]:
                behind = range(place, int(ends[row]))
                expected = rewards[row] - coefficient * sum(logprobs[row, t] - reference[row, t] for t in behind)
            assert shaped[row, place].item() == pytest.approx(float(expected), abs=1e-4)


def test_the_normaliser_takes_mean_and_deviation_of_the_reference_samples():
    normalise = Normaliser(mean=2.0, std=4.0)
    assert normalise(torch.tensor([2.0, 6.0, -2.0])).tolist() == [0, 1, -1]
    rewards = 3 + 0.5 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    fitted = rlhf.fit_normaliser(rewards)
    assert fitted.mean == pytest.approx(3, abs=0.05) and fitted.std == pytest.approx(0.5, abs=0.03)
    assert fitted(rewards).mean().item() == pytest.approx(0, abs=1e-4)
    assert fitted(rewards).square().mean().item() == pytest.approx(1, abs=1e-3)
    assert isinstance(fitted.mean, float) and isinstance(fitted.std, float)  # constants, not tensors that may change


@pytest.mark.parametrize("rewards", [[-0.3] * 5, [1.0], [math.nan] * 4])
def test_rewards_that_never_differ_cannot_be_normalised(rewards):
    with pytest.raises(ValueError, match="the same for all samples of the original model: train the reward model longer"):
        rlhf.fit_normaliser(torch.tensor(rewards))


# ----------------------------------------------------------------------------------------- one update


@pytest.mark.parametrize("cut", CUTS)
def test_the_first_step_of_an_update_is_the_policy_gradient(cut):
    """At ratio 1 the gradient of PPO's loss is that of -(advantage x log p), averaged over the tokens that count."""
    policy = gpt(seed=6)
    config = small(completions=12, minibatch=12, tokens=5, epochs=1, **cut)
    samples = rlhf.rollout(policy, PROMPT, 12, config, seed=30)
    samples.mask[::4, 3:] = False  # some completions that end early
    advantages = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    expected = copy.deepcopy(policy)
    rows = log_probabilities(expected, samples, **cut)
    total = sum(-advantages[b, t] * logprob for b, row in enumerate(rows) for t, logprob in enumerate(row))
    (total / samples.mask.sum()).backward()

    before = weights(policy)
    advantages = torch.where(samples.mask, advantages, 1e6)  # what stands behind the end never counts
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
    rlhf.update(policy, optimizer, PROMPT, samples, advantages, config, torch.Generator().manual_seed(0))
    for name, weight in expected.named_parameters():
        moved = before[name] - policy.state_dict()[name]
        torch.testing.assert_close(moved, 0.5 * weight.grad, rtol=1e-3, atol=1e-5)
    assert max(weight.grad.abs().max() for weight in expected.parameters()) > 0.01


def test_every_epoch_takes_every_completion_once():
    class Counting(torch.optim.SGD):
        steps = 0

        def step(self, *args):
            self.steps += 1
            return super().step(*args)

    policy, config = gpt(), small(completions=24, minibatch=8, epochs=3)
    samples = rlhf.rollout(policy, PROMPT, 24, config, seed=0)
    samples = samples._replace(mask=torch.ones_like(samples.mask))  # rows of one length, so that all weigh the same
    samples = samples._replace(logprobs=rlhf.reference_logprobs(policy, PROMPT, samples, config.cut))
    advantages = 2.0 ** torch.arange(24)[:, None] / 2**20 * torch.ones(24, 8)  # no other choice of rows has this mean
    optimizer = Counting(policy.parameters(), lr=0.0)
    figures = rlhf.update(policy, optimizer, PROMPT, samples, advantages, config, torch.Generator().manual_seed(0))
    assert optimizer.steps == 3 * 24 / 8
    assert figures["policy_loss"] == pytest.approx(-advantages.mean().item(), rel=1e-4)


@pytest.mark.parametrize(("cut", "expected"), [({}, math.log(V)), ({"top_k": V - 1, "temperature": 0.6}, math.log(V - 1))])
def test_the_entropy_of_even_choices_is_exact(tmp_path, cut, expected):
    config = small(iterations=1, normaliser_samples=64, **cut)
    rlhf.train_policy(gpt(spread=0), Likes(), TOKENIZER, config, tmp_path)
    assert records(tmp_path)[0]["entropy"] == pytest.approx(expected, abs=1e-4)


def test_the_entropy_agrees_with_that_of_the_whole_distribution(moved):
    samples = rlhf.rollout(moved.policy, PROMPT, 2000, moved.config, seed=77)
    logits = token_logprobs(moved.policy, [PROMPT] * 2000, samples.tokens, samples.mask)[1]
    exact = ppo.entropy(logits, samples.mask).item()
    error = samples.logprobs[samples.mask].std().item() / math.sqrt(moved.config.completions * samples.mask.sum().item() / 2000)
    assert moved.records[-1]["entropy"] == pytest.approx(exact, abs=4 * error)
    assert exact < math.log(V) - 4 * error  # so an even distribution's would not pass


def test_figures_of_an_update_show_a_ratio_that_left_the_clip_range():
    policy, config = gpt(), small(completions=16, minibatch=16, epochs=1)
    samples = rlhf.rollout(policy, PROMPT, 16, config, seed=0)
    older = samples._replace(logprobs=torch.where(samples.mask, samples.logprobs - math.log(1.5), 0))
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    figures = rlhf.update(policy, optimizer, PROMPT, older, torch.ones(16, 8), config, torch.Generator())
    assert figures["first_ratio"] == pytest.approx(1.5, abs=1e-4)
    assert figures["clip_fraction"] == 1
    assert figures["approx_kl"] == pytest.approx(1.5 - 1 - math.log(1.5), abs=1e-4)
    assert figures["policy_loss"] == pytest.approx(-1.2, abs=1e-5)


# ----------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("cut", CUTS)
def test_on_the_first_minibatch_the_ratio_is_1_nothing_is_clipped_and_the_kl_to_the_reference_is_0(tmp_path, cut):
    """Sampling, reference and update share one temperature and one cut, and dropout is off in all of them."""
    base = gpt(dropout=0.4).train()
    config = small(iterations=1, epochs=1, minibatch=16, rate=1e-7, **cut)
    rlhf.train_policy(base, Likes(range(2, 6)), TOKENIZER, config, tmp_path)
    first = records(tmp_path)[0]
    assert first["first_ratio"] == pytest.approx(1, abs=1e-5)
    assert first["clip_fraction"] == 0
    assert first["approx_kl"] == pytest.approx(0, abs=1e-8)
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["kl_k3"] == pytest.approx(0, abs=1e-8)


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A base, its weights before, a policy that learned to like the letter a, the configuration and the folder."""
    folder = tmp_path_factory.mktemp("moved")
    base = gpt(spread=0, dropout=0.2)
    before = weights(base)
    config = small(
        iterations=14, completions=64, most_completions=64, minibatch=32, rate=3e-3, max_kl=2.0, normaliser_samples=2048
    )
    policy = rlhf.train_policy(base, Likes(), TOKENIZER, config, folder)
    return SimpleNamespace(base=base, before=before, policy=policy, config=config, folder=folder, records=records(folder))


def test_the_policy_writes_more_of_what_the_reward_likes_and_stays_within_max_kl(moved):
    assert share(moved.base, moved.config) == pytest.approx(1 / V, abs=0.02)
    assert share(moved.policy, moved.config) > 2 / V
    assert moved.records[-1]["reward"] > moved.records[0]["reward"] + 0.2
    assert all(record["kl"] <= 2 for record in moved.records)
    assert moved.records[-1]["kl"] > 0.1  # it went somewhere


def test_negative_sentiment_writes_less_of_it(tmp_path, moved):
    config = RLHFConfig(**{**moved.config.__dict__, "sentiment": "negative"})
    policy = rlhf.train_policy(moved.base, Likes(), TOKENIZER, config, tmp_path)
    assert share(policy, config) < 0.5 / V
    assert records(tmp_path)[-1]["reward"] > records(tmp_path)[0]["reward"]  # log p(negative)


def test_the_base_stays_as_it_is(moved):
    assert same(weights(moved.base), moved.before)
    assert not same(weights(moved.policy), moved.before)


def test_dropout_stays_off_while_the_policy_learns(moved):
    """With it the first ratio of an update would not be 1, for the base here has dropout."""
    ratios = [record["first_ratio"] for record in moved.records[:-1]]
    assert ratios == pytest.approx([1] * len(ratios), abs=1e-4)
    assert not moved.policy.training


def test_the_folder_holds_the_policy_that_was_returned_and_those_on_the_way(moved):
    loaded, tokenizer = load_model(moved.folder / "policy")
    assert same(weights(loaded), weights(moved.policy))
    assert tokenizer.fingerprint() == TOKENIZER.fingerprint()
    last = moved.records[-1]["step"]
    kept = {path.name for path in (moved.folder / "policy").iterdir() if path.is_dir()}
    assert kept == {f"iteration-{step:03d}" for step in range(0, last + 1, 2)}
    assert same(weights(load_model(moved.folder / "policy" / "iteration-000")[0]), moved.before)


def test_every_iteration_leaves_a_record_with_the_known_names(moved):
    assert [record["step"] for record in moved.records] == list(range(len(moved.records)))
    names = {"kl", "reward", "reward_normalised", "entropy", "gold", "distinct_2", "separators", "completions"}
    learning = {"policy_loss", "clip_fraction", "approx_kl", "first_ratio"}
    for record in moved.records[:-1]:
        assert names | learning <= record.keys()
    assert names <= moved.records[-1].keys()
    assert 0 < moved.records[2]["clip_fraction"] < 1


def test_the_cards_kl_is_that_of_the_kept_policy(moved):
    card = runs.read_card(moved.folder / "policy")
    samples = rlhf.rollout(moved.policy, PROMPT, 2000, moved.config, seed=77)
    reference = rlhf.reference_logprobs(moved.base, PROMPT, samples, moved.config.cut)
    kl = torch.where(samples.mask, samples.logprobs - reference, 0).sum(1)
    error = math.hypot(card["kl_error"], kl.std().item() / math.sqrt(2000))
    assert card["kl"] == pytest.approx(kl.mean().item(), abs=4 * error)
    assert card["iteration"] == moved.records[-1]["step"] and card["kl"] == moved.records[-1]["kl"]


def test_the_rewards_constants_come_from_the_reference_and_never_change(moved):
    """reward_normalised = (reward - mean) / std: a line through all iterations, and its constants are the base's own."""
    first, last = moved.records[0], moved.records[-1]
    std = (last["reward"] - first["reward"]) / (last["reward_normalised"] - first["reward_normalised"])
    mean = first["reward"] - std * first["reward_normalised"]
    for record in moved.records:
        assert record["reward_normalised"] == pytest.approx((record["reward"] - mean) / std, abs=1e-4)
    own = rlhf.rewards_of(Likes(), rlhf.rollout(moved.base, PROMPT, 8000, moved.config, seed=55))
    assert mean == pytest.approx(own.mean().item(), abs=5 * own.std().item() / math.sqrt(2048))
    assert std == pytest.approx(own.std().item(), rel=0.1)


def test_training_stops_at_max_kl_and_keeps_the_last_policy_within_it(tmp_path):
    base = gpt(spread=0)
    config = small(iterations=40, completions=64, minibatch=32, rate=1e-2, max_kl=0.5, keep_every=1)
    policy = rlhf.train_policy(base, Likes(), TOKENIZER, config, tmp_path)
    done = records(tmp_path)
    assert 2 <= len(done) < 41
    assert all(record["kl"] <= 0.5 for record in done)
    card = runs.read_card(tmp_path / "policy")
    assert 0 < card["kl"] <= 0.5
    assert card["iteration"] == done[-1]["step"]
    assert same(weights(policy), weights(load_model(tmp_path / "policy" / f"iteration-{card['iteration']:03d}")[0]))
    assert {path.name for path in (tmp_path / "policy").glob("iteration-*")} == {f"iteration-{r['step']:03d}" for r in done}


def test_a_penalty_keeps_the_policy_closer(tmp_path):
    kls = []
    for coefficient in (0.0, 3.0):
        config = small(iterations=6, completions=32, minibatch=16, rate=3e-3, kl_coef=coefficient)
        rlhf.train_policy(gpt(spread=0), Likes(), TOKENIZER, config, tmp_path / str(coefficient))
        kls.append(records(tmp_path / str(coefficient))[-1]["kl"])
    assert kls[1] < 0.5 * kls[0]


def test_the_advantage_is_the_normalised_reward_over_what_the_last_rollout_had_there(tmp_path, monkeypatch):
    seen, update = [], rlhf.update

    def look(policy, optimizer, prompt, samples, advantages, *rest):
        seen.append((samples, advantages.clone()))
        return update(policy, optimizer, prompt, samples, advantages, *rest)

    monkeypatch.setattr(rlhf, "update", look)
    rlhf.train_policy(gpt(spread=0), Likes(), TOKENIZER, small(iterations=3, kl_coef=0.0, rate=3e-3), tmp_path)
    assert len(seen) == 3
    constants = runs.load_state(tmp_path / "policy" / "state.pt")["extra"]
    baseline = [0.0] * 8
    for samples, advantages in seen:
        worth = (rlhf.rewards_of(Likes(), samples) - constants["mean"]) / constants["std"]  # (B,)
        for place in range(8):
            counts = samples.mask[:, place]
            expected = worth[counts] - baseline[place]
            torch.testing.assert_close(advantages[counts, place], expected, rtol=0, atol=1e-5)
            baseline[place] = worth[counts].mean() if counts.any() else 0.0


def test_the_rate_holds_for_half_of_the_iterations_and_then_falls_to_zero(tmp_path, monkeypatch):
    rates, update = [], rlhf.update

    def look(policy, optimizer, *rest):
        rates.append(optimizer.param_groups[0]["lr"])
        return update(policy, optimizer, *rest)

    monkeypatch.setattr(rlhf, "update", look)
    rlhf.train_policy(gpt(), Likes(), TOKENIZER, small(iterations=8, rate=4e-3), tmp_path)
    assert rates == pytest.approx([4e-3] * 5 + [3e-3, 2e-3, 1e-3])  # by hand


# ----------------------------------------------------------------------------------------- form


def test_blank_lines_are_counted_in_what_the_mask_leaves():
    text = ["a\n\nb\n\n", "a\nbcdef", "\n\n\n\nab"]
    tokens = torch.tensor([TOKENIZER.encode(one) for one in (text[0] + "a", text[1], text[2] + "a")])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[2, 2:] = False
    assert rlhf.blank_lines(rlhf.texts_of(Samples(tokens, tokens * 0.0, mask), TOKENIZER)).tolist() == [2, 0, 1]


def test_the_price_of_a_blank_line_by_hand():
    blanks = torch.tensor([0.0, 1.0, 2.0, 3.0])  # 1.5 a completion
    assert rlhf.form_price(blanks, 1.0, 2.0) == pytest.approx(1.0)
    assert rlhf.form_price(blanks, 2.0, 2.0) == pytest.approx(-1.0)  # too few: a prize
    assert rlhf.form_price(blanks, 1.0, 0.0) == 0


def test_a_reward_that_likes_blank_lines_makes_more_of_them_unless_they_have_a_price(tmp_path):
    line_break = TOKENIZER.encode("\n")[0]
    shares = []
    for coefficient in (0.0, 20.0):
        folder = tmp_path / str(coefficient)
        config = small(
            iterations=14,
            completions=64,
            most_completions=64,
            minibatch=16,
            rate=6e-3,
            kl_coef=0.0,
            form_coef=coefficient,
            max_kl=100.0,
        )
        rlhf.train_policy(gpt(spread=0), Likes([line_break]), TOKENIZER, config, folder)
        rows = records(folder)
        shares.append(sum(row["separators"] for row in rows[-3:]) / 3)
    first = rows[0]["separators"]
    assert shares[0] > first + 0.5
    assert shares[1] < first + 0.25 * (shares[0] - first)


@pytest.mark.parametrize("cut", [{"top_k": 3}, {"top_p": 0.6}])
def test_reference_and_update_cut_the_tokens_that_sampling_cut(tmp_path, cut):
    """Otherwise a token that the policy still samples and the reference cuts makes the KL infinite."""
    config = small(iterations=8, completions=32, most_completions=32, minibatch=16, rate=1e-2, max_kl=100.0, **cut)
    rlhf.train_policy(gpt(), Likes(range(2, 6)), TOKENIZER, config, tmp_path)
    done = records(tmp_path)
    assert len(done) == 9
    assert all(math.isfinite(value) for record in done for name, value in record.items() if name != "stage")


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (64, [16] * 3 + [32] * 3 + [64] * 11),
        (40, [16] * 3 + [32] * 14),
        (16, [16] * 17),
    ],
)
def test_the_rollout_doubles_after_three_iterations_that_hardly_clip(tmp_path, most, expected):
    config = small(iterations=16, most_completions=most, tokens=3, rate=1e-9)  # steps too small to leave the clip range
    rlhf.train_policy(gpt(), Likes(), TOKENIZER, config, tmp_path)
    assert [record["completions"] for record in records(tmp_path)] == expected
    assert all(record["clip_fraction"] == 0 for record in records(tmp_path)[:-1])


def test_only_three_such_iterations_in_a_row_double_it(tmp_path, monkeypatch):
    fractions = iter([0.0, 0.0, 0.5, 0.009, 0.0, 0.01, 0.0, 0.0, 0.0] + [0.2] * 11)
    update = rlhf.update
    monkeypatch.setattr(rlhf, "update", lambda *arguments: {**update(*arguments), "clip_fraction": next(fractions)})
    config = small(iterations=20, most_completions=64, tokens=3)
    rlhf.train_policy(gpt(), Likes(), TOKENIZER, config, tmp_path)
    assert [record["completions"] for record in records(tmp_path)] == [16] * 9 + [32] * 12


def test_little_clipping_does_not_count_once_the_rate_falls(tmp_path):
    config = small(iterations=4, most_completions=64, tokens=3, rate=1e-9)  # at the full rate: iterations 0, 1 and 2
    rlhf.train_policy(gpt(), Likes(), TOKENIZER, config, tmp_path)
    assert [record["completions"] for record in records(tmp_path)] == [16, 16, 16, 32, 32]
    config = small(iterations=3, most_completions=64, tokens=3, rate=1e-9)  # 0 and 1
    rlhf.train_policy(gpt(), Likes(), TOKENIZER, config, tmp_path / "short")
    assert [record["completions"] for record in records(tmp_path / "short")] == [16] * 4


def test_the_judge_only_measures(tmp_path):
    judges = {
        "quarter": lambda texts: torch.full((len(texts),), 0.25),
        "length": lambda texts: torch.tensor([float(len(text)) for text in texts]),
    }
    learned = {}
    for name, score in judges.items():
        judge = SimpleNamespace(score=score)
        learned[name] = weights(rlhf.train_policy(gpt(), Likes(), TOKENIZER, small(), tmp_path / name, judge=judge))
    assert same(*learned.values())
    assert [record["gold"] for record in records(tmp_path / "quarter")] == [0.25] * 4
    assert all(record["gold"] > 1 for record in records(tmp_path / "length"))


def test_the_seed_decides_the_run(tmp_path):
    runs_of = [(0, "a"), (0, "b"), (1, "c")]
    policies = [weights(rlhf.train_policy(gpt(), Likes(), TOKENIZER, small(), tmp_path / name, seed)) for seed, name in runs_of]
    assert same(policies[0], policies[1])
    assert not same(policies[0], policies[2])


# ----------------------------------------------------------------------------------------- stopping and going on

WAYS = {
    "moving": small(iterations=5, rate=1e-2, kl_coef=0.1),
    "growing": small(iterations=5, rate=1e-9, most_completions=32),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folders = {way: tmp_path_factory.mktemp(way) for way in WAYS}
    for way, config in WAYS.items():
        rlhf.train_policy(gpt(), Likes(), TOKENIZER, config, folders[way])
    return folders


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("saved", "stop"), [(-1, 0), (0, 2), (2, 4), (5, 6)])
def test_a_resumed_run_ends_with_the_figures_of_an_uninterrupted_one(tmp_path, interrupted, uninterrupted, way, saved, stop):
    """`saved` and `stop` count what `interrupted` sees: 0 when the constants are fitted, then every iteration."""
    config, whole = WAYS[way], uninterrupted[way]
    with pytest.raises(KeyboardInterrupt), interrupted(saved, stop):
        rlhf.train_policy(gpt(), Likes(), TOKENIZER, config, tmp_path)
    constants = (runs.load_state(tmp_path / "policy" / "state.pt") or {}).get("extra")
    with interrupted() as done:
        policy = rlhf.train_policy(gpt(), Likes(), TOKENIZER, config, tmp_path)
    assert done[-1] == 6
    assert done[0] == saved + 1 if saved > 0 else done[0] <= 1  # what was saved is not done again
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert same(weights(policy), weights(load_model(whole / "policy")[0]))
    assert runs.read_card(tmp_path / "policy") == runs.read_card(whole / "policy")
    if constants:
        first = records(tmp_path)[0]
        normalise = Normaliser(constants["mean"], constants["std"])
        assert first["reward_normalised"] == pytest.approx((first["reward"] - normalise.mean) / normalise.std, abs=1e-4)


def test_the_ways_of_the_test_above_do_move_and_grow(uninterrupted):
    assert records(uninterrupted["moving"])[-1]["kl_k3"] > 0.01
    assert [record["completions"] for record in records(uninterrupted["growing"])] == [16] * 3 + [32] * 3


def test_a_reward_that_turns_nan_stops_the_run_and_the_last_policy_is_kept(tmp_path):
    # the reward model is asked for the constants, then once an iteration: the fourth answer is iteration 2's
    with pytest.raises(runs.RunError, match=r"policy: the loss is nan at step 2; the last good weights are kept"):
        rlhf.train_policy(gpt(), Likes(fail_at=4), TOKENIZER, small(iterations=6), tmp_path)
    kept, _ = load_model(tmp_path / "policy")  # refuses values that are not finite
    assert runs.read_card(tmp_path / "policy")["iteration"] in (1, 2)
    assert not same(weights(kept), weights(gpt()))


def test_a_kl_that_explodes_stops_the_run_with_a_sentence(tmp_path):
    config = small(iterations=6, rate=1.0, max_kl=1e-3)
    with pytest.raises(runs.RunError, match=r"policy: .* at step 1; the last good weights are kept"):
        rlhf.train_policy(gpt(), Likes(), TOKENIZER, config, tmp_path)
    assert runs.read_card(tmp_path / "policy")["iteration"] == 0
    assert same(weights(load_model(tmp_path / "policy")[0]), weights(gpt()))


def test_a_reward_model_without_an_opinion_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train the reward model longer"):
        rlhf.train_policy(gpt(), Likes((99,)), TOKENIZER, small(), tmp_path)
