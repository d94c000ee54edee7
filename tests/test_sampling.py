import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from rlhf_lib import sampling
from rlhf_lib.models.gpt import GPT, RECIPES, GPTConfig
from rlhf_lib.models.layers import KVCache
from rlhf_lib.sampling import (
    Samples,
    beginning,
    completion_hidden,
    completion_logits,
    distribution,
    draw,
    draw_with_logprobs,
    generate,
    restricted,
    token_logprobs,
)

V, CONTEXT = 7, 24
ALMOST_ONE = math.nextafter(1, 0)  # 1 - 2^-53; as float32 it rounds to 1
ALMOST_ONE_32 = 1 - 2**-24  # the largest float32 below 1
PROMPTS = [[1, 2, 3, 4, 5], [3], [6, 6, 1], [0, 4, 2, 5]]
CUTS = [
    dict(),
    dict(temperature=0.6),
    dict(temperature=1.7),
    dict(top_k=3),
    dict(top_p=0.7),
    dict(temperature=1.4, top_k=5, top_p=0.8),
]
every_cut = pytest.mark.parametrize("cut", CUTS, ids=lambda cut: "-".join(f"{k}={v}" for k, v in cut.items()) or "plain")


def random_gpt(seed=0, std=0.4, **changes):
    """A tiny GPT with random weights, so that its predictions are far from uniform."""
    model = GPT(GPTConfig(**{**dict(vocab_size=V, context=CONTEXT, layers=2, heads=2, width=12), **changes})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=std, generator=generator)
    return model


def random_uniforms(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def slow_distribution(logits, temperature=1.0, top_k=0, top_p=1.0):
    """The probabilities of one row as a list, one token at a time; temperature, then top-k, then top-p of what is left."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    ranking = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k:
        ranking = ranking[:top_k]
    total, kept, reached = sum(weights[i] for i in ranking), [], 0.0
    for i in ranking:
        kept.append(i)
        reached += weights[i] / total
        if reached >= top_p:
            break
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


def fits(counts, probabilities):
    """Whether counts could come from the probabilities: none where the probability is 0, and chi-square's p above 1e-3."""
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] * counts.sum()
    assert expected.min() > 5  # else chi-square means little
    return chisquare(counts[possible], expected * counts.sum() / expected.sum()).pvalue > 1e-3


def same(a, b, tolerance=1e-5):
    """Equal tokens and masks, and log-probabilities as close as float32 allows."""
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.mask, b.mask)
    torch.testing.assert_close(a.logprobs, b.logprobs, atol=tolerance, rtol=0)


# ----------------------------------------------------------------------------------------------------------- the distribution


def test_a_distribution_by_hand():
    logits = torch.tensor([0.4, 0.1, 0.3, 0.2]).log()
    cases = [
        (dict(), [0.4, 0.1, 0.3, 0.2]),
        (dict(temperature=0.5), [16 / 30, 1 / 30, 9 / 30, 4 / 30]),  # squares, over their sum
        (dict(top_k=2), [4 / 7, 0, 3 / 7, 0]),
        (dict(top_k=1), [1, 0, 0, 0]),
        (dict(top_k=4), [0.4, 0.1, 0.3, 0.2]),
        (dict(top_k=99), [0.4, 0.1, 0.3, 0.2]),
        (dict(top_p=0.39), [1, 0, 0, 0]),  # the first token reaches p alone
        (dict(top_p=0.41), [4 / 7, 0, 3 / 7, 0]),
        (dict(top_p=0.69), [4 / 7, 0, 3 / 7, 0]),
        (dict(top_p=0.71), [4 / 9, 0, 3 / 9, 2 / 9]),
        (dict(top_p=1e-9), [1, 0, 0, 0]),  # never empty
        (dict(top_k=2, top_p=0.5), [1, 0, 0, 0]),  # of the two that are left the first has 4/7, which reaches one half
        (dict(temperature=0.5, top_p=0.52), [1, 0, 0, 0]),  # the temperature comes first: 16/30 reaches p
    ]
    for cut, expected in cases:
        torch.testing.assert_close(distribution(logits, **cut).exp(), torch.tensor(expected, dtype=torch.float32), msg=str(cut))


@settings(deadline=None, max_examples=200)
@given(
    logits=st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=9, unique=True),
    temperature=st.floats(0.3, 4),
    top_k=st.integers(0, 10),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1)),
)
def test_a_distribution_equals_a_slow_one(logits, temperature, top_k, top_p):
    ranked = sorted(logits)
    assume(all(b - a > 1e-4 for a, b in itertools.pairwise(ranked)))  # float32 must be able to rank them
    # Where a sum of probabilities comes within rounding of p, either cut is right.
    low, high = (slow_distribution(logits, temperature, top_k, top_p * scale) for scale in (1 - 1e-5, 1 + 1e-5))
    assume([p > 0 for p in low] == [p > 0 for p in high])
    expected = torch.tensor(slow_distribution(logits, temperature, top_k, top_p))
    got = distribution(torch.tensor(logits), temperature, top_k, top_p)
    assert torch.equal(got == -math.inf, expected == 0)
    kept = expected > 0
    torch.testing.assert_close(got[kept], expected[kept].log(), atol=2e-5, rtol=1e-5)


def test_every_row_of_any_shape_is_cut_by_itself():
    logits = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    cut = dict(temperature=0.8, top_k=5, top_p=0.75)
    got = distribution(logits, **cut)
    assert got.shape == logits.shape
    for i, j in itertools.product(range(2), range(3)):
        torch.testing.assert_close(got[i, j].exp(), torch.tensor(slow_distribution(logits[i, j].tolist(), **cut)))
    assert len({tuple((row > -math.inf).tolist()) for row in got.view(6, 8)}) > 1


@pytest.mark.parametrize("cut", [dict(top_k=2), dict(top_p=0.5)])
def test_ties_never_keep_more_than_asked(cut):
    kept = distribution(torch.zeros(3, 4), **cut).exp()
    assert ((kept > 0).sum(1) == 2).all()
    torch.testing.assert_close(kept.sum(1), torch.ones(3))


def test_half_precision_logits_give_full_precision_probabilities():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    got = distribution(logits, top_p=0.9)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.exp().sum(1), torch.ones(4))


def test_the_gradient_of_a_cut_distribution_is_finite_and_spares_the_cut():
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log().requires_grad_(True)
    distribution(logits, top_k=2)[0, 0].backward()
    # d log p0 / d logits = (1, 0) - (p0, p1) over the two that are kept
    torch.testing.assert_close(logits.grad, torch.tensor([[3 / 7, 0, -3 / 7, 0]]))


@pytest.mark.parametrize(
    "cut, message",
    [
        (dict(temperature=0), "temperature must be above 0 .*, got 0; for the most likely token use top_k=1"),
        (dict(temperature=-1.0), "temperature must be above 0 .*, got -1.0"),
        (dict(temperature=1e-40), "temperature must be above 0 .*, got 1e-40"),
        (dict(temperature=math.nan), "temperature must be above 0 .*, got nan"),
        (dict(top_k=-1), r"top_k must be 0 \(keep all\) or more, got -1"),
        (dict(top_p=0), r"top_p must lie in \(0, 1\], got 0"),
        (dict(top_p=1.01), r"top_p must lie in \(0, 1\], got 1.01"),
        (dict(top_p=-0.5), r"top_p must lie in \(0, 1\], got -0.5"),
        (dict(top_p=math.nan), r"top_p must lie in \(0, 1\], got nan"),
    ],
)
def test_settings_that_mean_nothing_are_refused_everywhere(cut, message):
    with pytest.raises(ValueError, match=message):
        distribution(torch.zeros(4), **cut)
    with pytest.raises(ValueError, match=message):
        generate(random_gpt(), [[1]], 2, **cut)


# ------------------------------------------------------------------------------------------------------------------- drawing


class Card(torch.Tensor):
    """Numbers of a card whose parallel sums are rounded here and there, up and down: a cumulative sum need not rise."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        found = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cumsum:
            noise = torch.rand(found.shape, generator=torch.Generator().manual_seed(0)) - 0.5
            found = (found.as_subclass(torch.Tensor) * (1 + 2**-21 * noise)).as_subclass(cls)
        return found


def draw_on_card(logits, uniforms):
    tokens = draw(logits.as_subclass(Card), uniforms)
    assert type(tokens) is Card  # it went that way to the end
    return tokens.as_subclass(torch.Tensor)


def test_a_draw_by_hand():
    logprobs = torch.tensor([0.25, 0.0, 0.5, 0.25]).log().expand(6, 4)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, ALMOST_ONE_32])
    assert draw(logprobs, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


@settings(deadline=None, max_examples=100)
@given(
    logits=st.lists(st.one_of(st.floats(-20, 20), st.just(-math.inf)), min_size=1, max_size=30),
    uniform=st.floats(0, 0.999999),
)
def test_a_draw_is_the_first_token_whose_cumulative_probability_exceeds_the_uniform(logits, uniform):
    assume(max(logits) > -math.inf)
    logprobs = torch.tensor(logits).log_softmax(0)
    sums = list(itertools.accumulate(p.exp().item() for p in logprobs.double()))
    assume(all(abs(uniform * sums[-1] - s) > 1e-6 for s in sums[:-1]))  # float32 decides within rounding of an edge
    expected = next(i for i, s in enumerate(sums) if s > uniform * sums[-1])
    assert draw(logprobs[None], torch.tensor([uniform])).item() == expected


def test_even_uniforms_give_every_token_its_exact_share():
    N = 10_000
    logprobs = torch.randn(12, generator=torch.Generator().manual_seed(0)).log_softmax(0)
    uniforms = (torch.arange(N) + 0.5) / N
    counts = draw(logprobs.expand(N, 12), uniforms).bincount(minlength=12)
    assert (counts - N * logprobs.exp()).abs().max() <= 1.01


@every_cut
def test_the_frequencies_of_draws_fit_the_probabilities(cut):
    N = 20_000
    logits = torch.tensor([0.3, -1.2, 1.5, 0.0, 0.9, -0.4, 0.6])
    counts = draw(distribution(logits, **cut).expand(N, V), random_uniforms(N)).bincount(minlength=V)
    assert fits(counts.double().numpy(), torch.tensor(slow_distribution(logits.tolist(), **cut)).double().numpy())


@pytest.mark.parametrize("draw", [draw, draw_on_card], ids=["cpu", "card"])
@pytest.mark.parametrize("size", [5, 300, 5000])
@pytest.mark.parametrize("uniform", [0.0, 1e-45, 2**-24, ALMOST_ONE_32, ALMOST_ONE])
def test_a_token_that_is_cut_is_never_drawn(draw, size, uniform):
    """Uniforms at both ends, with the cut tokens first, last, or all but one; sums of many rounded numbers miss 1."""
    logits = 3 * torch.randn(60, size, generator=torch.Generator().manual_seed(size))
    logits[:20, : size // 2] = -math.inf
    logits[20:40, size // 2 :] = -math.inf
    for cut in (dict(), dict(top_k=2), dict(top_k=1), dict(top_p=0.6), dict(top_k=size // 2, top_p=0.9)):
        logprobs = distribution(logits, **cut)
        for uniforms in (torch.full((60,), uniform), torch.full((60,), uniform, dtype=torch.float64)):
            tokens = draw(logprobs, uniforms)
            assert (tokens < size).all()
            assert (logprobs.gather(1, tokens[:, None]) > -math.inf).all()


def test_the_sums_of_that_card_do_fall():
    """Guards the test above, and says what a search of sums in order would meet."""
    sums = torch.tensor([[1.0] + [0.0] * 99]).as_subclass(Card).cumsum(-1)
    assert (sums.diff() < 0).any()


@settings(deadline=None, max_examples=100)
@given(
    rows=st.integers(1, 8),
    size=st.integers(1, 300),
    block=st.sampled_from([1, 7, 64, 500]),
    seed=st.integers(0, 999),
    cut=st.sampled_from(CUTS),
)
def test_the_blocks_change_nothing_and_logits_draw_as_log_probabilities_do(rows, size, block, seed, cut):
    logits = 3 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    uniforms, logprobs = random_uniforms(rows, seed=seed), distribution(logits, **cut)
    cumulative = logprobs.double().exp().cumsum(1)
    assume((cumulative - uniforms.double()[:, None] * cumulative[:, -1:]).abs().min() > 1e-6)  # float32 decides at an edge
    expected = (cumulative > uniforms.double()[:, None] * cumulative[:, -1:]).int().argmax(1)
    before = logits.clone()
    for of in (restricted(logits, **cut), logprobs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, "BLOCK", block)
            tokens, scores = draw_with_logprobs(of, uniforms)
        assert torch.equal(tokens, expected)
        torch.testing.assert_close(scores, logprobs.gather(1, tokens[:, None])[:, 0], atol=2e-6, rtol=1e-5)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("offset", [-1e4, 0.0, 1e4])
def test_only_the_differences_of_logits_count(offset):
    logits, uniforms = torch.tensor([[0.0, 1.0, 2.0, -math.inf]]).expand(50, 4), (torch.arange(50) + 0.5) / 50
    tokens, scores = draw_with_logprobs(logits + offset, uniforms)
    expected, exact = draw_with_logprobs(logits, uniforms)
    assert torch.equal(tokens, expected) and torch.equal(scores, exact)


# ---------------------------------------------------------------------------------------------------------------- generation


@every_cut
def test_the_frequencies_of_completions_fit_the_model(cut):
    """Pairs of tokens, so that draws which are not independent of one another would show. The expected share of a pair is
    the product of two slow distributions, from full forward passes."""
    N, model = 20_000, random_gpt(vocab_size=4, layers=1, std=0.5)
    samples = generate(model, [[2, 1]] * N, 2, generator=torch.Generator().manual_seed(1), **cut)
    assert samples.mask.all()
    counts = (samples.tokens[:, 0] * 4 + samples.tokens[:, 1]).bincount(minlength=16)
    with torch.no_grad():
        first = slow_distribution(model(torch.tensor([[2, 1]]))[0, -1].tolist(), **cut)
        second = [slow_distribution(model(torch.tensor([[2, 1, a]]))[0, -1].tolist(), **cut) for a in range(4)]
    expected = torch.tensor([first[a] * second[a][b] for a in range(4) for b in range(4)], dtype=torch.float64)
    assert expected.max() > 1.5 / 16  # not uniform
    assert fits(counts.double().numpy(), expected.numpy())


@every_cut
@pytest.mark.parametrize("end_token", [None, 2])
@pytest.mark.parametrize("recipe", RECIPES)
def test_returned_logprobs_equal_rescoring_without_a_cache(cut, end_token, recipe):
    model, prompts = random_gpt(recipe=recipe), PROMPTS * 5
    samples = generate(model, prompts, 12, uniforms=random_uniforms(20, 12), end_token=end_token, **cut)
    assert isinstance(samples, Samples)
    assert [part.shape for part in samples] == [(20, 12)] * 3
    assert [part.dtype for part in samples] == [torch.int64, torch.float32, torch.bool]
    with torch.no_grad():
        logprobs = token_logprobs(model, prompts, samples.tokens, samples.mask, **cut)
    torch.testing.assert_close(logprobs, samples.logprobs, atol=1e-5, rtol=0)
    assert samples.logprobs[samples.mask].isfinite().all()
    assert samples.logprobs[samples.mask].std() > 0.1
    # And both equal the slow distribution, from a forward pass over each row alone.
    for row in (0, 1, 2, 3):
        for step in range(int(samples.mask[row].sum())):
            before = torch.tensor(prompts[row] + samples.tokens[row, :step].tolist())[None]
            with torch.no_grad():
                probabilities = slow_distribution(model(before)[0, -1].tolist(), **cut)
            expected = math.log(probabilities[samples.tokens[row, step]])
            assert samples.logprobs[row, step].item() == pytest.approx(expected, abs=1e-4)


def test_generating_with_top_k_1_follows_the_most_likely_tokens():
    model = random_gpt()
    samples = generate(model, PROMPTS, 8, top_k=1, generator=torch.Generator().manual_seed(0))
    for row, prompt in enumerate(PROMPTS):
        tokens = list(prompt)
        with torch.no_grad():
            for _ in range(8):
                tokens.append(model(torch.tensor([tokens]))[0, -1].argmax().item())
        assert samples.tokens[row].tolist() == tokens[len(prompt) :]
    assert (samples.logprobs == 0).all()  # the only token left has probability 1


@every_cut
@pytest.mark.parametrize("uniform", [0.0, ALMOST_ONE])
def test_the_ends_of_the_uniforms_give_the_first_and_last_token_that_is_kept(cut, uniform):
    model = random_gpt()
    samples = generate(model, PROMPTS, 6, uniforms=torch.full((4, 6), uniform, dtype=torch.float64), **cut)
    for row, prompt in enumerate(PROMPTS):
        for step, token in enumerate(samples.tokens[row].tolist()):
            before = torch.tensor(prompt + samples.tokens[row, :step].tolist())[None]
            with torch.no_grad():
                kept = [i for i, p in enumerate(slow_distribution(model(before)[0, -1].tolist(), **cut)) if p > 0]
            assert token == (kept[-1] if uniform else kept[0])


@pytest.mark.parametrize("end_token", [0, 2])
def test_behind_the_end_token_everything_is_masked_and_zero(end_token):
    T, uniforms = 8, random_uniforms(40, 8)
    model = random_gpt()
    samples = generate(model, PROMPTS * 10, T, uniforms=uniforms, end_token=end_token)
    free = generate(model, PROMPTS * 10, T, uniforms=uniforms)
    assert free.mask.all()
    lengths = set()
    for row in range(40):
        tokens = free.tokens[row].tolist()
        length = tokens.index(end_token) + 1 if end_token in tokens else T
        lengths.add(length)
        assert samples.mask[row].tolist() == [True] * length + [False] * (T - length)
        assert samples.tokens[row].tolist() == tokens[:length] + [0] * (T - length)
        assert (samples.logprobs[row, length:] == 0).all()
        assert (samples.logprobs[row, :length] < 0).all()
        torch.testing.assert_close(samples.logprobs[row, :length], free.logprobs[row, :length], atol=1e-5, rtol=0)
    assert len(lengths) > 5 and T in lengths  # rows that end early, at different steps, and rows that do not


def test_a_completion_ends_with_the_last_of_several_end_tokens_drawn_one_after_another():
    """Against the same rows drawn to their full length and cut afterwards: the pair's first token alone ends nothing."""
    T, model = 12, random_gpt()
    uniforms = random_uniforms(80, T)
    whole = generate(model, PROMPTS * 20, T, uniforms=uniforms)
    for end in ([2, 2], [3, 2], [1], [4] * 5):
        cut, lengths = generate(model, PROMPTS * 20, T, uniforms=uniforms, end_token=end), []
        for row, row_whole, real in zip(cut.tokens.tolist(), whole.tokens.tolist(), cut.mask):
            ends = [place + len(end) for place in range(T) if row_whole[place : place + len(end)] == end]
            lengths.append(min(ends, default=T))
            assert row == row_whole[: lengths[-1]] + [0] * (T - lengths[-1])
            assert real.tolist() == [place < lengths[-1] for place in range(T)]
        assert len(end) == 5 or min(lengths) < T
        torch.testing.assert_close(cut.logprobs, torch.where(cut.mask, whole.logprobs, 0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("end_token", [None, 2])
@pytest.mark.parametrize("cut", [dict(), dict(temperature=1.3, top_k=5, top_p=0.9)], ids=["plain", "cut"])
def test_a_row_alone_gives_what_it_gives_in_a_batch(end_token, cut):
    model, uniforms = random_gpt(), random_uniforms(4, 12, seed=3)
    together = generate(model, PROMPTS, 12, uniforms=uniforms, end_token=end_token, **cut)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, [prompt], 12, uniforms=uniforms[row : row + 1], end_token=end_token, **cut)
        same(alone, Samples(*(part[row : row + 1] for part in together)))
    order = [2, 0, 3, 1]
    shuffled = generate(model, [PROMPTS[i] for i in order], 12, uniforms=uniforms[order], end_token=end_token, **cut)
    same(shuffled, Samples(*(part[order] for part in together)))
    if end_token is not None:
        assert len(set(together.mask.sum(1).tolist())) > 1


def test_another_number_changes_its_own_row_alone_and_nothing_before():
    model, uniforms = random_gpt(), random_uniforms(4, 10)
    changed = uniforms.clone()
    changed[1, 4] = (changed[1, 4] + 0.5) % 1
    before, after = (generate(model, PROMPTS, 10, uniforms=u).tokens for u in (uniforms, changed))
    moved = before != after
    assert moved[1, 4]
    assert not moved[1, :4].any() and not moved[[0, 2, 3]].any()


def test_the_same_seed_gives_the_same_samples_and_another_seed_others():
    model, generator = random_gpt(), torch.Generator().manual_seed(5)
    first, second = (generate(model, PROMPTS, 12, generator=generator) for _ in range(2))
    generator.manual_seed(5)
    torch.manual_seed(999)  # the global state has no part in it
    state = torch.get_rng_state()
    again = generate(model, PROMPTS, 12, generator=generator)
    assert torch.equal(torch.get_rng_state(), state)
    same(first, again, tolerance=0)
    assert not torch.equal(first.tokens, second.tokens)  # a generator moves on


def test_without_a_generator_the_global_seed_decides():
    model = random_gpt()
    torch.manual_seed(1)
    first, second = (generate(model, PROMPTS, 12).tokens for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(generate(model, PROMPTS, 12).tokens, first)
    assert not torch.equal(first, second)


def test_prompts_may_be_a_tensor():
    model, uniforms = random_gpt(), random_uniforms(2, 5)
    prompts = [[1, 2, 3], [4, 5, 6]]
    same(generate(model, torch.tensor(prompts), 5, uniforms=uniforms), generate(model, prompts, 5, uniforms=uniforms))


def test_dropout_is_off_while_generating_and_the_mode_is_restored():
    dropping, plain = random_gpt(dropout=0.6), random_gpt()
    uniforms = random_uniforms(4, 10)
    expected = generate(plain, PROMPTS, 10, uniforms=uniforms)
    for training in (True, False):
        dropping.train(training)
        same(generate(dropping, PROMPTS, 10, uniforms=uniforms), expected, tolerance=0)
        assert all(module.training == training for module in dropping.modules())


@pytest.mark.parametrize("end_token", [2, 5])
def test_rows_that_have_ended_leave_the_batch_when_they_are_a_quarter_of_it_and_not_before(monkeypatch, end_token):
    """Moving the cache costs as much as a step or two, and so does carrying many rows that have ended."""
    model, prompts, T = random_gpt(), PROMPTS * 5, 12
    uniforms = random_uniforms(20, T, seed=1)
    moved, widths, select, hidden = [], [], KVCache.select, GPT.hidden

    def noted(self, rows):
        before = self.keys.shape[1]
        select(self, rows)
        moved.append((before, self.keys.shape[1]))

    monkeypatch.setattr(KVCache, "select", noted)
    monkeypatch.setattr(GPT, "hidden", lambda self, *args: widths.append(len(args[0])) or hidden(self, *args))
    samples = generate(model, prompts, T, uniforms=uniforms, end_token=end_token)
    lengths, rows, wanted, expected, carried = samples.mask.sum(1), 20, [20], [], 0
    for step in range(1, T):
        left = int((lengths > step).sum())
        if left == 0:
            break
        if left <= 0.75 * rows:
            expected.append((rows, left))
            rows = left
        wanted.append(rows)
        carried = max(carried, rows - left)
    assert moved == expected and widths == wanted
    assert len(moved) >= 2 and carried >= 2  # rows did leave, and rows that had ended did stay for a while


def test_generation_ends_with_its_last_row(monkeypatch):
    model, calls, hidden = random_gpt(), [], GPT.hidden
    with torch.no_grad():
        model.head.weight.zero_()
    monkeypatch.setattr(GPT, "hidden", lambda self, *args: calls.append(1) or hidden(self, *args))
    uniforms = torch.full((4, 9), 0.5 / V)  # token 0
    uniforms[:, 2] = 5.5 / V
    samples = generate(model, PROMPTS, 9, uniforms=uniforms, end_token=5)
    assert samples.tokens.tolist() == [[0, 0, 5] + [0] * 6] * 4
    assert samples.mask.sum(1).tolist() == [3] * 4
    assert len(calls) == 3  # the prompt and two tokens; nothing is read behind the last


def test_generating_takes_no_gradient_and_leaves_gradients_on():
    model = random_gpt()
    assert not generate(model, [[1]], 3).logprobs.requires_grad
    assert torch.is_grad_enabled()
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_copy_in_bfloat16_samples_too_and_nearly_from_the_models_own_distribution():
    """As the quick copies of the rollouts do. Log-probabilities stay in float32."""
    model = random_gpt(std=0.3)
    quick = random_gpt(std=0.3).bfloat16()
    samples = generate(quick, PROMPTS * 25, 12, uniforms=random_uniforms(100, 12), end_token=2)
    assert samples.logprobs.dtype == torch.float32
    with torch.no_grad():
        exact = token_logprobs(model, PROMPTS * 25, samples.tokens, samples.mask)
    off = (samples.logprobs - exact)[samples.mask]
    assert 0 < off.abs().mean() < 0.05 and off.mean().abs() < 0.01


def test_the_context_can_be_filled_to_the_last_token():
    model = random_gpt(recipe="gpt2")
    samples = generate(model, [[1, 2], [3]], CONTEXT - 2, uniforms=random_uniforms(2, CONTEXT - 2))
    logprobs = token_logprobs(model, [[1, 2], [3]], samples.tokens, samples.mask)
    torch.testing.assert_close(logprobs.detach(), samples.logprobs, atol=2e-5, rtol=0)
    with pytest.raises(
        ValueError,
        match=f"a prompt of 2 tokens and {CONTEXT - 1} new ones are more than the model's context of {CONTEXT}: "
        "shorten the prompt or ask for fewer tokens",
    ):
        generate(model, [[1, 2], [3]], CONTEXT - 1)


@pytest.mark.parametrize(
    "prompts, new, message",
    [
        ([], 3, "every prompt needs at least one token: start from the end token or a line break"),
        ([[1], []], 3, "every prompt needs at least one token"),
        ([[1, 2], [3, V]], 3, f"token {V} at position 1 is outside the vocabulary of {V} tokens"),
        ([[-1]], 3, f"token -1 at position 0 is outside the vocabulary of {V} tokens"),
        ([[1]], 0, "max_new_tokens must be at least 1, got 0"),
        ([[1]], -2, "max_new_tokens must be at least 1, got -2"),
    ],
)
def test_what_cannot_be_continued_is_refused(prompts, new, message):
    with pytest.raises(ValueError, match=message):
        generate(random_gpt(), prompts, new)


# ----------------------------------------------------------------------------------------------------------------- rescoring


def random_completions(rows, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, V, (rows, length), generator=generator)
    lengths = torch.tensor([length, 1, length - 2, 2])[:rows]
    return tokens, torch.arange(length) < lengths[:, None]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_rescored_logits_and_logprobs_equal_those_of_each_row_alone(cut, recipe):
    """Completions that the model did not write: some of their tokens are cut and have probability 0."""
    model, (tokens, mask) = random_gpt(recipe=recipe), random_completions(4, 9)
    with torch.no_grad():
        logits = completion_logits(model, PROMPTS, tokens, mask)
        hidden = completion_hidden(model, PROMPTS, tokens, mask)
        logprobs = token_logprobs(model, PROMPTS, tokens, mask, **cut)
        assert logprobs.shape == (4, 9) and logits.shape == (4, 9, V) and hidden.shape == (4, 9, 12)
        assert torch.equal(logits, model.head(hidden))
        assert (logprobs[~mask] == 0).all()
        for row, prompt in enumerate(PROMPTS):
            own = tokens[row, mask[row]].tolist()
            alone = model(torch.tensor([prompt + own]))[0, len(prompt) - 1 : -1]
            torch.testing.assert_close(logits[row, mask[row]], alone, atol=1e-4, rtol=0)  # before temperature and cut
            for step, token in enumerate(own):
                p = slow_distribution(alone[step].tolist(), **cut)[token]
                assert logprobs[row, step].item() == pytest.approx(math.log(p) if p else -math.inf, abs=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_completions_of_prompts_of_one_length_are_scored_as_if_alone_too(recipe):
    """Nothing is padded on the left then, and no mask is needed: what stands behind the end token comes later."""
    model, prompts = random_gpt(recipe=recipe), [[1, 2], [3, 4], [5, 6], [2, 2]]
    tokens, mask = random_completions(4, 9)
    with torch.no_grad():
        found = token_logprobs(model, prompts, tokens, mask)
        for row, prompt in enumerate(prompts):
            own = tokens[row : row + 1, mask[row]]
            alone = token_logprobs(model, [prompt], own, torch.ones_like(own, dtype=torch.bool))
            torch.testing.assert_close(found[row, mask[row]], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cut", [dict(temperature=0.7), dict(top_k=5, top_p=0.9)], ids=str)
@pytest.mark.parametrize("prompts", [PROMPTS, [[1, 2]] * 4], ids=["padded", "of one length"])
def test_masked_tokens_have_no_part_in_logprobs_or_gradient(prompts, cut):
    tokens, mask = random_completions(4, 9)
    others = torch.where(mask, tokens, (tokens + 3) % V)
    grads, results = [], []
    for completion in (tokens, others):
        model = random_gpt()
        logprobs = token_logprobs(model, prompts, completion, mask, **cut)
        logprobs.sum().backward()
        results.append(logprobs.detach())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)
    assert grads[0].isfinite().all() and grads[0].abs().max() > 0.1


def test_the_gradient_raises_the_probability_of_the_completion():
    model, (tokens, mask) = random_gpt(), random_completions(4, 9)
    before = token_logprobs(model, PROMPTS, tokens, mask).sum()
    before.backward()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.01 * p.grad
    assert token_logprobs(model, PROMPTS, tokens, mask).sum() > before + 0.1


def test_completions_are_likelier_the_more_the_model_agrees_with_itself():
    """In expectation, a model's own samples are the likelier under it, by the KL to the other model, which is never negative."""
    model, other = random_gpt(0), random_gpt(1)
    samples = generate(model, PROMPTS * 50, 8, uniforms=random_uniforms(200, 8))
    with torch.no_grad():
        theirs = token_logprobs(other, PROMPTS * 50, samples.tokens, samples.mask)
    assert samples.logprobs.sum(1).mean() > theirs.sum(1).mean() + 0.5


# ----------------------------------------------------------------------------------------- what all prompts begin with


@given(st.integers(0, 12), st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_the_beginning_is_what_all_prompts_begin_with_and_each_keeps_a_token(count, rest):
    prompts = [[6] * count + row for row in rest]
    found = beginning(prompts)
    same = next((n for n, column in enumerate(zip(*prompts)) if len(set(column)) > 1), min(map(len, prompts)))
    same = min(same, min(map(len, prompts)) - 1)
    assert found == (same if same >= 8 and len(prompts) > 1 else 0)


@pytest.mark.parametrize("rest", [[[1], [2, 3, 4], [5, 5]], [[7, 8]] * 3], ids=["then they differ", "all the same"])
@pytest.mark.parametrize("recipe", ["modern", "gpt2"])
def test_a_beginning_that_is_read_once_changes_no_completion(recipe, rest):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=20, context=64, layers=2, heads=2, width=32, recipe=recipe)).eval()
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.3)
    prompts = [[9, 8, 7, 6, 5, 4, 3, 2, 1, 9, *row] for row in rest]
    assert beginning(prompts) >= 10
    uniforms = torch.rand(len(rest), 12, generator=torch.Generator().manual_seed(1))
    found = generate(model, prompts, 12, uniforms=uniforms, end_token=0)
    for row, prompt in enumerate(prompts):  # one by one nothing is shared
        alone = generate(model, [prompt], 12, uniforms=uniforms[row : row + 1], end_token=0)
        length = alone.mask.shape[1]
        assert torch.equal(found.tokens[row, :length], alone.tokens[0]) and torch.equal(found.mask[row, :length], alone.mask[0])
        torch.testing.assert_close(found.logprobs[row, :length], alone.logprobs[0], atol=1e-5, rtol=0)
