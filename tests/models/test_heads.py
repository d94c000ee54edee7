import copy
import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf_lib.models.gpt import GPT, RECIPES, GPTConfig
from rlhf_lib.models.heads import RewardModel, head_logprobs


def fresh_gpt(seed=0, **changes):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**{"vocab_size": 11, "context": 12, "layers": 2, "heads": 2, "width": 16, **changes}))


def random_model(pooling="mean", **changes):
    """A reward model whose every parameter counts (a fresh one starts with zeros), in evaluation mode."""
    model = RewardModel(fresh_gpt(**changes), pooling)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def padded(rows, sides, width):
    """Rows of tokens as (B, width), padded on the side that `sides` names for each with tokens that stand for something."""
    tokens = torch.arange(len(rows) * width).view(len(rows), width) % 7 + 3
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for place, (row, side) in enumerate(zip(rows, sides, strict=True)):
        real = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        tokens[place, real] = torch.tensor(row)
        mask[place, real] = True
    return tokens, mask


# ----------------------------------------------------------------------------------------- the reward model


def test_a_fresh_reward_model_has_no_opinion():
    model = RewardModel(fresh_gpt())
    assert model(torch.arange(10)[None]).abs().max() == 0


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling must be mean or last, got 'max'"):
        RewardModel(fresh_gpt(), "max")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("pooling", ["mean", "last"])
@torch.no_grad()
def test_log_odds_equal_a_loop_over_prefixes(pooling, recipe):
    model = random_model(pooling, recipe=recipe)
    tokens = torch.randint(11, (3, 12), generator=torch.Generator().manual_seed(1))
    for row, found in zip(tokens, model(tokens), strict=True):
        for end in range(1, 13):  # only what stands up to there is read
            hidden = model.body.hidden(row[None, :end])[0]
            pooled = hidden.mean(0) if pooling == "mean" else hidden[-1]
            expected = pooled @ model.score.weight[0] + model.score.bias[0]
            assert found[end - 1].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)


drawn_rows = st.lists(
    st.tuples(st.lists(st.integers(0, 10), min_size=1, max_size=9), st.sampled_from(["left", "right"])), min_size=1, max_size=5
)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_padding_on_either_side_does_not_move_the_log_odds(pooling, recipe):
    model = random_model(pooling, recipe=recipe)

    @given(drawn_rows, st.integers(0, 3))
    @settings(deadline=None, max_examples=20)
    @torch.no_grad()
    def check(drawn, more):
        rows, sides = zip(*drawn)
        width = max(map(len, rows)) + more
        found = model.logits(*padded(rows, sides, width))
        alone = torch.cat([model.logits(torch.tensor([row])) for row in rows])
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=2e-5)

    check()


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_log_odds_at_every_real_place_are_the_same_with_padding(side):
    model = random_model()
    row = [4, 9, 1, 0, 7]
    tokens, mask = padded([row], [side], 9)
    torch.testing.assert_close(model(tokens, mask)[mask], model(torch.tensor([row]))[0], rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_poolings_differ_and_so_do_passages():
    """Guards the tests above: a model that answers one number would pass them."""
    tokens = torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(2))
    mean, last = random_model("mean").logits(tokens), random_model("last").logits(tokens)
    assert (mean - last).abs().min() > 1e-3
    assert mean.unique().numel() == last.unique().numel() == 4


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_gpt_it_starts_from_stays_as_it_is_and_shares_nothing(recipe):
    gpt = fresh_gpt(recipe=recipe, dropout=0.3).eval()
    before, config = copy.deepcopy(gpt.state_dict()), copy.deepcopy(gpt.config)
    model = RewardModel(gpt, dropout=0.1).train()
    assert gpt.config == config and model.config.dropout == model.body.config.dropout == 0.1
    assert not any(module.training for module in gpt.modules())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    after = gpt.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert gpt.head.weight.shape == (11, 16)


def test_it_starts_with_the_body_of_the_gpt_and_without_its_head():
    gpt = fresh_gpt()
    for parameter in gpt.parameters():
        nn.init.normal_(parameter, std=0.4)
    model = RewardModel(gpt)
    tokens = torch.arange(11)[None]
    assert torch.equal(model.body.hidden(tokens), gpt.hidden(tokens))
    assert not any("head" in name for name in model.state_dict())
    extra = 16 + 1  # one weight for each of the body's dimensions, and a bias
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in gpt.parameters()) - 11 * 16 + extra


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_its_own_and_acts_in_the_body_and_before_the_output(dropout):
    model = RewardModel(fresh_gpt(dropout=0.9), dropout=dropout)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    tokens, mask = torch.arange(8)[None], torch.ones(1, 8, dtype=torch.bool)
    hidden = torch.ones(1, 8, 16)
    for of in (lambda: model(tokens), lambda: model.body.hidden(tokens), lambda: model.values(hidden, mask)):
        model.train()
        assert torch.equal(of(), of()) == (dropout == 0)
        model.eval()
        assert torch.equal(of(), of())


def test_a_reward_model_is_built_again_from_its_metadata():
    model = RewardModel(fresh_gpt(recipe="gpt2"), "last", dropout=0.2).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    metadata = model.metadata()
    assert (metadata["kind"], metadata["pooling"], metadata["config"]["dropout"]) == ("reward", "last", 0.2)
    other = RewardModel.from_metadata({**metadata, "accuracy": 0.75}).eval()
    other.load_state_dict(model.state_dict())
    tokens = torch.arange(10)[None]
    assert torch.equal(other(tokens), model(tokens))
    assert other.metadata() == metadata


@pytest.mark.parametrize("pooling", ["mean", "last"])
@torch.no_grad()
def test_texts_that_differ_a_little_have_scores_that_differ_under_autocast_too(pooling):
    """In bfloat16 a score has eight bits: 400 texts would share some 340 scores, and a ranking of them would be noise."""
    model = random_model(pooling)
    tokens = torch.randint(11, (400, 12), generator=torch.Generator().manual_seed(0)).unique(dim=0)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(tokens)
        scores = model.logits(tokens)
    assert found.dtype == scores.dtype == torch.float32
    assert scores.unique().numel() >= 0.99 * len(tokens)
    torch.testing.assert_close(scores, model.logits(tokens), rtol=0, atol=0.3)  # the body's own rounding
    assert torch.corrcoef(torch.stack([scores, model.logits(tokens)]))[0, 1] > 0.999


@pytest.mark.parametrize("pooling", ["mean", "last"])
@torch.no_grad()
def test_hidden_states_of_any_type_are_pooled_in_float32(pooling):
    model = random_model(pooling)
    hidden = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    mask = torch.ones(3, 12, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.values(hidden, mask)
    assert found.dtype == torch.float32
    assert torch.equal(found, model.values(hidden.float(), mask))


# ----------------------------------------------------------------------------------------- the log-probability of a token


@settings(deadline=None, max_examples=50)
@given(
    N=st.integers(0, 9),
    C=st.integers(1, 6),
    V=st.integers(1, 12),
    temperature=st.floats(0.3, 3),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 999),
)
def test_log_probabilities_and_their_gradient_equal_those_of_a_softmax(N, C, V, temperature, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = (scale * torch.randn(N, C, generator=generator)).requires_grad_(True)
    weight = torch.randn(V, C, generator=generator).requires_grad_(True)
    targets, factor = torch.randint(V, (N,), generator=generator), torch.randn(N, generator=generator)
    found = head_logprobs(hidden, weight, targets, temperature)
    assert found.shape == (N,) and found.dtype == torch.float32
    logits = hidden.double() @ weight.double().T / temperature
    exact = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
    grads = [torch.autograd.grad((x * factor).sum(), (hidden, weight)) for x in (found, exact)]
    rounding = 2.0**-22 * (1 + max(map(abs, logits.flatten().tolist()), default=0.0))  # of a probability: of its logit
    by_row = factor.abs()[:, None] / temperature  # (N, 1)
    for got, right, terms in zip(*grads, (by_row * weight.abs().sum(0), (by_row * hidden.abs()).sum(0))):
        assert ((got - right).abs() <= rounding * terms).all()


def test_log_probabilities_by_hand():
    """Logits ln 1, ln 2 and ln 5: probabilities 1/8, 2/8, 5/8; at temperature 1/2 their squares, 1/30, 4/30, 25/30."""
    weight = torch.tensor([[0.0], [math.log(2)], [math.log(5)]])
    hidden, targets = torch.ones(3, 1), torch.tensor([0, 1, 2])
    torch.testing.assert_close(head_logprobs(hidden, weight, targets).exp(), torch.tensor([1 / 8, 2 / 8, 5 / 8]))
    halved = head_logprobs(hidden, weight, targets, temperature=0.5)
    torch.testing.assert_close(halved.exp(), torch.tensor([1 / 30, 4 / 30, 25 / 30]))


def test_log_probabilities_are_finite_at_any_logit():
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    found = head_logprobs(hidden, weight, torch.tensor([1, 0]))
    assert found.tolist() == [-2e4, -2e4]
    found.sum().backward()
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()


@torch.no_grad()
def test_log_probabilities_of_a_model_in_bfloat16_are_summed_in_float32():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(64, 32, generator=generator), 0.1 * torch.randn(500, 32, generator=generator)
    targets = torch.randint(500, (64,), generator=generator)
    exact = head_logprobs(hidden, weight, targets)
    found = head_logprobs(hidden.bfloat16(), weight.bfloat16(), targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=0.05)
    whole = head_logprobs(hidden.bfloat16()[:1].expand(500, -1), weight.bfloat16(), torch.arange(500))
    assert whole.exp().sum().item() == pytest.approx(1, abs=1e-5)  # the rounding is that of the logits alone


def drawn_inputs(N, V, C=16, seed=0):
    """Hidden states, a head, targets, and how much each log-probability counts."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(N, C, generator=generator), 0.3 * torch.randn(V, C, generator=generator)
    factor = torch.randn(N, generator=generator) / N
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(V, (N,), generator=generator), factor


def plain_logprobs(hidden, weight, targets, temperature=1.0):
    return (hidden @ weight.T / temperature).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def value_and_gradients(logprobs, hidden, weight, factor):
    return [logprobs.detach(), *torch.autograd.grad((logprobs * factor).sum(), (hidden, weight))]


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.9])
@pytest.mark.parametrize("V", [37, 1001])
@pytest.mark.parametrize("N", [1, 511, 512, 513, 1300])
def test_rows_of_more_than_one_piece_equal_log_softmax_and_so_do_both_gradients(N, V, temperature):
    hidden, weight, targets, factor = drawn_inputs(N, V)
    found = head_logprobs(hidden, weight, targets, temperature)
    expected = plain_logprobs(hidden, weight, targets, temperature)
    for one, other in zip(*(value_and_gradients(x, hidden, weight, factor) for x in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


def test_bfloat16_products_are_off_by_little_and_what_comes_out_is_of_the_type_that_went_in():
    hidden, weight, targets, factor = drawn_inputs(700, 301)
    found = value_and_gradients(head_logprobs(hidden, weight, targets, 0.8, torch.bfloat16), hidden, weight, factor)
    expected = value_and_gradients(plain_logprobs(hidden, weight, targets, 0.8), hidden, weight, factor)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert 0 < (one - other).abs().max() < 0.02 * other.abs().max()
    half = weight.detach().bfloat16().requires_grad_()
    (gradient,) = torch.autograd.grad(head_logprobs(hidden, half, targets).sum(), half)
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inside_an_autocast_the_type_that_is_asked_for_counts_on_the_way_back_too(dtype):
    hidden, weight, targets, factor = drawn_inputs(600, 37)
    alone = value_and_gradients(head_logprobs(hidden, weight, targets, dtype=dtype), hidden, weight, factor)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(hidden @ weight.T, (hidden.double() @ weight.double().T).float())  # it does act here
        within = value_and_gradients(head_logprobs(hidden, weight, targets, dtype=dtype), hidden, weight, factor)
    assert all(map(torch.equal, alone, within))


class Memory(TorchDispatchMode):
    """The numbers in the largest tensor that is made inside, and the most that are there at once, each storage counted once."""

    def __init__(self):
        super().__init__()
        self.largest = self.most = 0
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *(x.numel() for x in tensors)])
        self.made = [ref for ref in self.made if ref() is not None] + [weakref.ref(x) for x in tensors]
        sizes = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() // 4 for x in (ref() for ref in self.made)}
        self.most = max(self.most, sum(sizes.values()))
        return out


def test_the_logits_are_never_all_there():
    N, V = 4096, 1001
    hidden, weight, targets, factor = drawn_inputs(N, V)
    seen = {}
    for name, function in {"ours": head_logprobs, "plain": plain_logprobs}.items():
        with Memory() as seen[name]:
            value_and_gradients(function(hidden, weight, targets), hidden, weight, factor)
    assert seen["plain"].largest == N * V <= seen["plain"].most  # the count sees them where they are
    assert seen["ours"].largest == 512 * V
    assert seen["ours"].most < N * V / 2


def test_log_probabilities_have_no_second_derivative_and_say_so():
    hidden, weight, targets, _ = drawn_inputs(5, 7)
    (first,) = torch.autograd.grad(head_logprobs(hidden, weight, targets).square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()


def test_the_heads_gradient_is_computed_where_it_is_asked_for_alone():
    """A frozen head, as a branch has, saves its product of (V, rows) by (rows, C); the other gradient is the same to the bit."""
    hidden, weight, targets, factor = drawn_inputs(600, 37)
    both = torch.autograd.grad((head_logprobs(hidden, weight, targets) * factor).sum(), (hidden, weight))
    products = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                products.append(tuple(out.shape))
            return out

    for head, shapes in ((weight.detach(), []), (weight, [(37, 16)] * 2)):
        loss = (head_logprobs(hidden, head, targets) * factor).sum()
        products.clear()
        with Products():
            loss.backward()
        assert [shape for shape in products if shape == (37, 16)] == shapes
        assert torch.equal(hidden.grad, both[0])
        hidden.grad = None
    assert torch.equal(weight.grad, both[1])
    (alone,) = torch.autograd.grad((head_logprobs(hidden.detach(), weight, targets) * factor).sum(), weight)
    assert torch.equal(alone, both[1])
