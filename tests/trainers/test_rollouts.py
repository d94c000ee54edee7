import copy
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rlhf_lib import checkpoints, devices
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.lora import Branch
from rlhf_lib.tokenization import CharTokenizer
from rlhf_lib.trainers import rollouts
from rlhf_lib.trainers.rollouts import Rollout, completion_kl, minibatches, shape_advantages

from .helpers import FAMILIES, branch, language_model, mutant, same, weights

TOKENIZER = CharTokenizer(list("\nabcdefgh"))  # END, UNKNOWN, the line break, and eight letters: 11 tokens
V = TOKENIZER.vocab_size
PROMPT = TOKENIZER.encode("\n\n")
TEMPERATURES = (1.0, 0.7, 1.6)


def gpt(seed=0, dropout=0.0, spread=0.4, **changes):
    """A small GPT whose weights are all drawn, so that its distributions are far from uniform; uniform for spread 0."""
    torch.manual_seed(seed)
    shape = {"vocab_size": V, "context": 24, "layers": 2, "heads": 2, "width": 16, **changes}
    model = GPT(GPTConfig(**shape, dropout=dropout))
    if spread:
        for weight in model.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=spread)
    return model.eval()


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """As on hardware without bfloat16, so that numbers compare with the definition's."""
    for module in (devices, rollouts):
        monkeypatch.setattr(module, "has_bf16", lambda device: False)


def sample(model, count, length, seed=0, prompts=(PROMPT,), **options):
    some = [list(prompts[place % len(prompts)]) for place in range(count)]
    return rollouts.sample(model, TOKENIZER, some, length, torch.Generator().manual_seed(seed), **options)


@torch.no_grad()
def log_probabilities(model, rollout, temperature=1.0):
    """The oracle: each token's log-probability by the definition, one row and one position at a time; rows of floats."""
    rows = []
    for prompt, tokens, mask in zip(rollout.prompts, rollout.tokens.tolist(), rollout.mask.tolist()):
        row = []
        for place in range(sum(mask)):
            scores = model(torch.tensor([prompt + tokens[:place]]))[0, -1].double() / temperature
            row.append((scores[tokens[place]] - scores.logsumexp(0)).item())
        rows.append(row)
    return rows


# ----------------------------------------------------------------------------------------- sampling


def test_a_rollout_is_the_same_for_the_same_seed_and_another_for_another():
    model = gpt()
    first, again, other = (sample(model, 300, 6, seed) for seed in (3, 3, 4))
    assert first.tokens.shape == first.logprobs.shape == first.mask.shape == (300, 6) and len(first) == 300
    for name in ("tokens", "logprobs", "mask"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.texts == again.texts and not torch.equal(first.tokens, other.tokens)
    assert len({tuple(row) for row in first.tokens.tolist()}) > 100  # a draw of its own for every completion


@pytest.mark.parametrize("batch", [7, 64, 256])
def test_a_row_is_the_same_whatever_else_is_in_the_batch(batch):
    model = gpt()
    whole, parts = sample(model, 150, 6), sample(model, 150, 6, batch=batch)
    assert torch.equal(whole.tokens, parts.tokens) and torch.equal(whole.mask, parts.mask)
    torch.testing.assert_close(whole.logprobs, parts.logprobs, rtol=0, atol=1e-5)


def test_after_the_end_token_everything_is_masked():
    rollout = sample(gpt(spread=0), 200, 10)  # uniform: one token in 11 is END
    lengths = set()
    for tokens, logprobs, mask in zip(rollout.tokens.tolist(), rollout.logprobs.tolist(), rollout.mask.tolist()):
        length = tokens.index(0) + 1 if 0 in tokens[: sum(mask)] else 10
        lengths.add(length)
        assert mask == [True] * length + [False] * (10 - length)
        assert tokens[length:] == [0] * (10 - length)
        assert logprobs[:length] == pytest.approx([-math.log(V)] * length, abs=1e-5)
        assert logprobs[length:] == [0] * (10 - length)
    assert lengths == set(range(1, 11))


def test_the_texts_are_the_completions_up_to_their_end_without_their_prompts():
    rollout = sample(gpt(spread=0), 60, 8)
    for text, tokens, mask in zip(rollout.texts, rollout.tokens, rollout.mask, strict=True):
        assert text == TOKENIZER.decode(tokens[: int(mask.sum())].tolist())


def test_each_completion_continues_its_own_prompt():
    """Behind the letter x comes the letter that follows x, all but for sure: a model made by hand."""
    model = gpt(spread=0, layers=1)
    with torch.no_grad():
        table = torch.eye(V, 16)
        model.embedding.weight.copy_(table)
        model.head.weight.copy_(40 * table.roll(1, 0))
    prompts = [TOKENIZER.encode(text) for text in ("a", "bbbbc", "\nd")]
    rollout = sample(model, 7, 3, prompts=prompts)
    assert rollout.texts == ["bcd", "def", "efg", "bcd", "def", "efg", "bcd"]
    assert rollout.prompts == [prompts[place % 3] for place in range(7)]


def test_completions_follow_the_distribution_at_the_temperature():
    model = gpt()
    p = (model(torch.tensor([PROMPT]))[0, -1] / 1.5).softmax(0)
    rollout = sample(model, 4000, 1, seed=1, temperature=1.5)
    counts = torch.bincount(rollout.tokens[:, 0], minlength=V) / 4000
    assert (counts - p).abs().max() < 5 * math.sqrt(0.25 / 4000)  # five standard errors at most


def test_what_is_drawn_is_what_is_sampled_but_for_the_log_probabilities():
    model, prompts = gpt(), [PROMPT, [3], [4, 5, 6]] * 20
    drawn, sampled = (
        function(model, TOKENIZER, prompts, 6, torch.Generator().manual_seed(2), 1.3, 7)
        for function in (rollouts.draw, rollouts.sample)
    )
    assert torch.equal(drawn.tokens, sampled.tokens) and torch.equal(drawn.mask, sampled.mask)
    assert drawn.texts == sampled.texts and drawn.prompts == prompts and drawn.trunk is None
    assert drawn.logprobs.shape == (60, 6) and (drawn.logprobs == 0).all() and (sampled.logprobs[sampled.mask] < 0).all()


def branches_sample_as_they_score(module, family):
    """The branch's own distribution at each place, one row at a time, inverted at the uniforms that the generator gives."""
    model, prompts = branch(language_model(family), seed=1), [[3], [4, 5, 6]] * 5
    found = module.draw(model, TOKENIZER, prompts, 6, torch.Generator().manual_seed(2), 1.6)
    uniforms = torch.rand(10, 6, generator=torch.Generator().manual_seed(2))
    for prompt, tokens, mask, draws in zip(prompts, found.tokens.tolist(), found.mask.tolist(), uniforms):
        row = []
        while len(row) < 6 and TOKENIZER.end_token not in row:
            p = (model(torch.tensor([prompt + row]))[0, -1] / 1.6).softmax(0).double()
            row.append(int((p.cumsum(0) <= draws[len(row)]).sum()))
        assert tokens == row + [0] * (6 - len(row)) and mask == [True] * len(row) + [False] * (6 - len(row))
    assert not found.mask.all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_branch_is_sampled_with_its_adapters_and_stays_as_it_is(family):
    branches_sample_as_they_score(rollouts, family)
    model = branch(language_model(family), seed=1)
    before = weights(model), weights(model.base)
    quick = rollouts.quick_copy(model)
    assert quick.blocks[0] is model.base.blocks[0] and quick.head is model.base.head  # what is not adapted is not copied
    rollouts.draw(model, TOKENIZER, [PROMPT] * 4, 3, torch.Generator())
    assert same(weights(model), before[0]) and same(weights(model.base), before[1])


MUTANTS = {
    "the base without its adapters": ("model.merged() if", "model.base if"),
    "another temperature": ("temperature=temperature, uniforms", "temperature=1.0, uniforms"),
    "goes on behind the end token (minChatGPT at 311aa3a, src/gpt.py line 386)": (
        "end_token=tokenizer.end_token",
        "end_token=None",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_test_above_finds_a_mistake(name):
    with pytest.raises(AssertionError):
        branches_sample_as_they_score(mutant(rollouts, MUTANTS[name], has_bf16=lambda device: False), "llama")


# ----------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("prompts", [(PROMPT,), (PROMPT, [3], [4, 5, 6, 7, 8])], ids=["one prompt", "prompts of many lengths"])
def test_a_rollouts_log_probabilities_and_the_references_are_those_of_the_definition(temperature, prompts):
    model, reference = gpt(), gpt(seed=1)
    rollout = sample(model, 7, 5, seed=5, prompts=prompts, temperature=temperature)
    for found, scored_by in ((rollout.logprobs, model), (rollouts.score(reference, rollout, temperature), reference)):
        assert not found.requires_grad
        for place, row in enumerate(log_probabilities(scored_by, rollout, temperature)):
            assert found[place, : len(row)].tolist() == pytest.approx(row, abs=1e-5)
            assert found[place, len(row) :].tolist() == [0] * (5 - len(row))


@pytest.mark.parametrize("batch", [1, 40, 1000])
def test_many_rows_are_scored_in_their_order(batch):
    model = gpt()
    rollout = sample(model, 150, 4, seed=2)
    torch.testing.assert_close(rollouts.score(model, rollout, batch=batch), rollout.logprobs, rtol=0, atol=1e-5)


def test_the_log_probabilities_of_the_update_have_a_gradient_and_the_values_of_scoring():
    model = gpt()
    rollout = sample(model, 20, 6, temperature=0.8)
    logprobs = rollouts.logprobs_of(model, rollout, 0.8)
    assert torch.equal(logprobs, rollout.logprobs)
    logprobs.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_dropout_is_off_in_rollouts_and_scoring_and_the_models_mode_is_put_back():
    still, dropping = gpt(), gpt(dropout=0.5).train()
    dropping.load_state_dict(still.state_dict())
    expected, rollout = (sample(model, 20, 8, seed=3) for model in (still, dropping))
    assert torch.equal(expected.tokens, rollout.tokens)
    for found in (rollout.logprobs, rollouts.score(dropping, rollout)):
        torch.testing.assert_close(found, expected.logprobs, rtol=0, atol=1e-5)
    assert dropping.training and not still.training


@pytest.fixture
def bf16(float32, monkeypatch):
    """As if the hardware multiplied bfloat16 itself, and the model were wide enough: this CPU computes with it in any case."""
    for module in (devices, rollouts):
        monkeypatch.setattr(module, "has_bf16", lambda device: True)
        monkeypatch.setattr(module, "precision", lambda device, width=256: torch.bfloat16)


def test_where_nothing_is_faster_the_model_samples_itself(monkeypatch):
    monkeypatch.setattr(rollouts, "precision", lambda device, width=256: torch.float32)
    model = gpt()
    assert rollouts.quick_copy(model) is model


def test_the_quick_copy_is_in_bf16_and_the_model_stays_as_it_is(bf16):
    model = gpt()
    before = copy.deepcopy(model.state_dict())
    quick = rollouts.quick_copy(model)
    assert {weight.dtype for weight in quick.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    sample(model, 10, 4)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_what_the_quick_copy_drew_is_scored_by_the_model_the_way_the_update_does(bf16):
    """So the first ratio is 1, and the KL of a model to itself 0, whatever the copy rounds."""
    model = gpt()
    rollout = sample(model, 40, 8)
    assert rollout.logprobs.dtype == torch.float32
    assert torch.equal(rollouts.logprobs_of(model, rollout).detach(), rollout.logprobs)
    assert torch.equal(rollouts.score(copy.deepcopy(model), rollout), rollout.logprobs)
    off = [
        found - right
        for row, by_definition in zip(rollout.logprobs.tolist(), log_probabilities(model, rollout))
        for found, right in zip(row, by_definition)
    ]
    assert 0 < max(map(abs, off)) < 0.1  # scored in bf16, in nats


# ----------------------------------------------------------------------------------------- rows of a rollout


@pytest.mark.parametrize("rows", [torch.tensor([4, 0, 4]), slice(2, 5), torch.tensor([], dtype=torch.long)])
def test_rows_of_a_rollout_keep_what_belongs_together(rows):
    prompts = [[place] for place in range(6)]
    tokens = torch.arange(6)[:, None] * 10 + torch.arange(3)
    rollout = Rollout(prompts, tokens, -tokens.float(), tokens % 2 == 0, [str(place) for place in range(6)])
    rollout.trunk = (tokens, None, None)
    part, places = rollout[rows], torch.arange(6)[rows].tolist()
    assert torch.equal(part.trunk[0], tokens[rows]) and part.trunk[1:] == (None, None)
    assert part.prompts == [[place] for place in places] and part.texts == [str(place) for place in places]
    assert len(part) == len(places)
    for found, whole in ((part.tokens, tokens), (part.logprobs, -tokens.float()), (part.mask, tokens % 2 == 0)):
        assert torch.equal(found, whole[rows])


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 4), st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_minibatches_take_every_row_once_an_epoch_in_a_drawn_order(batches, size, epochs, seed):
    count = batches * size
    parts = list(minibatches(count, size, epochs, torch.Generator().manual_seed(seed)))
    again = list(minibatches(count, size, epochs, torch.Generator().manual_seed(seed)))
    assert all(map(torch.equal, parts, again))
    assert [len(part) for part in parts] == [size] * (batches * epochs)
    for epoch in range(epochs):
        rows = torch.cat(parts[epoch * batches : (epoch + 1) * batches]).tolist()
        assert sorted(rows) == list(range(count))


def test_every_epoch_has_another_order():
    orders = Counter(tuple(part.tolist()) for part in minibatches(40, 40, 6, torch.Generator().manual_seed(0)))
    assert len(orders) == 6 and tuple(range(40)) not in orders


# ----------------------------------------------------------------------------------------- KL and advantages

LOGPROBS = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.25, -4.0]])
REFERENCE = torch.tensor([[-1.5, -1.0, -9.0], [-0.5, -1.25, -4.5]])
MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_the_kl_of_a_completion_is_a_masked_sum_in_nats():
    # k1, current less reference: .5 - 1, the third is masked; and 0 + 1 + .5
    assert completion_kl(LOGPROBS, REFERENCE, MASK).tolist() == pytest.approx([-0.5, 1.5], abs=1e-6)
    # k3, r - 1 - log r with log r = -.5, 1; and 0, -1, -.5
    k3 = [math.exp(-0.5) - 1 + 0.5 + math.e - 2, math.exp(-1) - 1 + 1 + math.exp(-0.5) - 1 + 0.5]
    assert completion_kl(LOGPROBS, REFERENCE, MASK, "k3").tolist() == pytest.approx(k3, abs=1e-6)


def test_what_stands_under_the_mask_never_reaches_the_kl_and_no_gradient_leaves_it():
    logprobs, reference = LOGPROBS.clone().requires_grad_(), REFERENCE.clone()
    with torch.no_grad():
        logprobs[0, 2], reference[0, 2] = math.nan, -math.inf
    kl = completion_kl(logprobs, reference, MASK)
    assert kl.tolist() == pytest.approx([-0.5, 1.5], abs=1e-6)
    assert not kl.requires_grad


def test_the_mean_kl_of_sampled_completions_converges_to_the_exact_one():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.3, 0.3])
    tokens = torch.multinomial(p.expand(60_000, 3), 3, replacement=True, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for kind in ("k1", "k3"):
        kl = completion_kl(p.log()[tokens], q.log()[tokens], mask, kind).mean().item()
        assert kl == pytest.approx(3 * 0.20078, abs=0.02)  # KL(p || q), for each of three tokens


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, -2.0])
    # without a penalty: the completion's reward for each of its tokens
    plain = shape_advantages(rewards, LOGPROBS, REFERENCE, MASK, 0.0)
    assert plain.tolist() == [[1, 1, 0], [-2, -2, -2]]
    # with one: less .1 times the KL of this token and of those behind it: -.5, -1 and 1.5, 1.5, .5
    shaped = shape_advantages(rewards, LOGPROBS, REFERENCE, MASK, 0.1)
    assert shaped[0].tolist() == pytest.approx([1.05, 1.1, 0], abs=1e-6)
    assert shaped[1].tolist() == pytest.approx([-2.15, -2.15, -2.05], abs=1e-6)


def test_the_penalty_and_the_rewards_are_detached():
    rewards = torch.tensor([1.0, -2.0], requires_grad=True)
    logprobs, reference = LOGPROBS.clone().requires_grad_(), REFERENCE.clone().requires_grad_()
    shaped = shape_advantages(rewards, logprobs, reference, MASK, 0.5)
    assert not shaped.requires_grad


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 7), st.floats(0, 2))
def test_advantages_equal_a_scalar_loop(seed, rows, length, coefficient):
    generator = torch.Generator().manual_seed(seed)
    logprobs, reference = (-torch.rand(rows, length, generator=generator) * 5 for _ in range(2))
    rewards = torch.randn(rows, generator=generator)
    ends = torch.randint(1, length + 1, (rows,), generator=generator)
    mask = torch.arange(length) < ends[:, None]
    shaped = shape_advantages(rewards, logprobs, reference, mask, coefficient)
    for row in range(rows):
        for place in range(length):
            expected = 0.0
            if place < ends[row]:
                behind = range(place, int(ends[row]))
                expected = rewards[row] - coefficient * sum(logprobs[row, t] - reference[row, t] for t in behind)
            assert shaped[row, place].item() == pytest.approx(float(expected), abs=1e-4)


# ----------------------------------------------------------------------------------------- a trunk, and a copy that sampled


@pytest.mark.parametrize("family", FAMILIES)
def test_a_branchs_rollout_has_its_trunk_and_is_scored_from_there_as_without_it(family):
    base = language_model(family)
    model, other = branch(base, seed=1), branch(base, seed=2)
    rollout = sample(model, 9, 6, prompts=([3], [4, 5, 6], PROMPT), temperature=0.8)
    rows = torch.tensor([7, 0, 3])
    for one in (model, other):
        found = rollouts.score(one, rollout, 0.8, batch=4)
        bare = Rollout(rollout.prompts, rollout.tokens, rollout.logprobs, rollout.mask, rollout.texts)
        assert rollout.trunk is not None and bare.trunk is None
        torch.testing.assert_close(found, rollouts.score(one, bare, 0.8), rtol=0, atol=1e-4)
        torch.testing.assert_close(rollouts.logprobs_of(one, rollout[rows], 0.8), found[rows], rtol=0, atol=1e-5)
        assert (found[~rollout.mask] == 0).all()
    logprobs = rollouts.logprobs_of(model, rollout[rows])
    gradients = torch.autograd.grad(logprobs.sum(), list(model.parameters()))
    whole = bare[rows]
    for one, other in zip(gradients, torch.autograd.grad(rollouts.logprobs_of(model, whole).sum(), list(model.parameters()))):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_rollout_knows_the_probabilities_that_it_was_sampled_with(monkeypatch):
    prompts = ([3], [4, 5, 6])
    rollout = sample(gpt(), 40, 6, prompts=prompts, temperature=0.8)
    torch.testing.assert_close(rollout.sampler_logprobs, rollout.logprobs, rtol=0, atol=1e-4)
    assert torch.equal(rollout[2:5].sampler_logprobs, rollout.sampler_logprobs[2:5])
    monkeypatch.setattr(rollouts, "precision", lambda device, width: torch.bfloat16)
    copied = sample(gpt(), 40, 6, prompts=prompts, temperature=0.8)
    off = (copied.sampler_logprobs - copied.logprobs).abs()
    assert 1e-3 < off.max() < 0.3 and (off[~copied.mask] == 0).all()


# ----------------------------------------------------------------------------------------- what is measured of fresh samples


class Stage:
    """Takes down what a runs.stage is told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *arguments, **named: self.told.append((name, *arguments, named))


def test_what_is_logged_of_a_rollout_is_what_is_kept_with_it():
    base, policy = gpt(), gpt(seed=1)
    rollout, stage = sample(policy, 50, 6), Stage()
    reference = rollouts.score(base, rollout)
    rewards, kl, told = rollouts.measure(
        stage, rollout, reference, lambda r: r.mask.sum(1).float(), 1e3, 7, lambda r, pay: {"gold": pay.max().item()}, price=0.1
    )
    (checked, value, named), (logged, stats), (kept, metadata) = stage.told
    assert told == stats
    assert (checked, logged, kept) == ("check", "log", "keep") and metadata == {"iteration": 7, **stats}
    assert named == {"limit": 1e5, "what": "KL to the original model"}
    lengths = rollout.mask.sum(1).float()
    each = (torch.where(rollout.mask, rollout.logprobs - reference, 0)).sum(1)
    assert torch.equal(rewards, lengths) and torch.equal(kl, each)
    assert value == stats["kl"] == pytest.approx(each.mean().item(), rel=1e-5)
    assert stats["kl_error"] == pytest.approx(each.std().item() / math.sqrt(50), rel=1e-5)
    assert stats["reward"] == stats["tokens"] == pytest.approx(lengths.mean().item(), rel=1e-6)
    assert stats["entropy"] == pytest.approx(-rollout.logprobs[rollout.mask].mean().item(), rel=1e-5)
    assert stats["gold"] == lengths.max().item() and stats["kl_k3"] > 0 and stats["price"] == 0.1
    assert torch.equal(rollout.lengths, rollout.mask.sum(1)) and torch.equal(rollout[3:9].lengths, rollout.lengths[3:9])


def test_where_the_kl_has_passed_its_bound_nothing_is_kept_and_no_reward_asked_for():
    rollout, stage = sample(gpt(seed=1), 20, 6), Stage()
    assert rollouts.measure(stage, rollout, rollout.logprobs - 1, None, 0.5, 0) is None
    assert [told[0] for told in stage.told] == ["check"]


@pytest.mark.parametrize(("prompts", "sentence"), [([], "there are no prompts"), ([[1], []], "an empty one")])
def test_prompts_that_cannot_be_answered_are_refused(prompts, sentence):
    with pytest.raises(ValueError, match=sentence):
        rollouts.check_prompts(gpt(), prompts, 4, "grpo")
    rollouts.check_prompts(gpt(), [[1] * 20], 4, "grpo")
    with pytest.raises(ValueError, match=r"the longest prompt and grpo\.max_new_tokens are 25 tokens, more than .* 24"):
        rollouts.check_prompts(gpt(), [[1] * 20, [1] * 21], 4, "grpo")


@pytest.mark.parametrize(
    ("source", "further"),
    [("../base", "../../base"), ("../../sft", "../../../sft"), ("/runs/base", "/runs/base"), ("smollm2-135m",) * 2, (None, None)],
)
def test_a_branch_that_is_saved_on_the_way_says_where_its_base_is_from_there(tmp_path, source, further):
    policy, stage = Branch(language_model(), layers=1, rank=2, alpha=4, source=source), Stage()
    stage.out, stage.seed = tmp_path / "policy", 3
    rollouts.save_on_the_way(stage, policy, TOKENIZER, 7, kl=0.5)
    metadata = checkpoints.read_metadata(tmp_path / "policy" / "iteration-007")
    assert metadata["branch"] == {**policy.shape, "source": further} and policy.shape["source"] == source
    assert (metadata["seed"], metadata["iteration"], metadata["kl"]) == (3, 7, 0.5)


def test_the_best_row_of_each_group_by_hand():
    scores = torch.tensor([1.0, 3, 2, -5, -7, -4])
    assert [rollouts.best_rows(scores, n).tolist() for n in (3, 2, 1)] == [[1, 5], [1, 2, 5], [0, 1, 2, 3, 4, 5]]


def test_prompts_come_in_turn_and_in_groups():
    assert rollouts.in_turn("abc", 2, 4) == ["c", "a", "b", "c"]
    assert rollouts.in_turn("abc", 1, 3, group=2) == ["b", "b", "c", "c", "a", "a"]
