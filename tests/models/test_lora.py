"""Among others the published mistake that a branch cannot make: minChatGPT (github.com/ethanyanjiali/minChatGPT, commit 311aa3a,
src/gpt.py, line 506) marks "only LoRA as trainable" in its reward model and critic, and so freezes their value head, which
line 497 has drawn at random: the score stays a random direction of the hidden states.
"""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rlhf_lib.models.gpt import GPT, RECIPES, GPTConfig
from rlhf_lib.models.layers import KVCache, pad
from rlhf_lib.models.llama import Llama, LlamaConfig
from rlhf_lib.models.lora import Branch, LoRALinear, counts
from rlhf_lib.sampling import generate, token_logprobs

V, WIDTH, LAYERS = 13, 24, 3
FAMILIES = ("llama", *RECIPES)
every_family = pytest.mark.parametrize("family", FAMILIES)


def base_of(family="llama", seed=0, **changes):
    """A tiny base, in evaluation mode, whose every weight is random and large enough to matter."""
    shape = {**dict(vocab_size=V, context=32, layers=LAYERS, heads=4, width=WIDTH), **changes}
    if family == "llama":
        model = Llama(LlamaConfig(**{"kv_heads": 2, "hidden": 20, **shape}))
    else:
        model = GPT(GPTConfig(**shape, recipe=family))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.3, generator=generator)
            if "norm" in name and name.endswith("weight"):
                p.add_(1.0)
    return model.eval()


def shaken(branch, seed=1):
    """The branch with random adapters and a random head."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in branch.parameters():
            p.normal_(std=0.3, generator=generator)
    return branch


def random_tokens(batch=3, length=9, seed=0):
    return torch.randint(0, V, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(a, b, tolerance):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def train(branch, steps=3):
    """A few steps on nothing in particular; returns the gradients of the first."""
    optimizer, first = torch.optim.AdamW(branch.parameters(), lr=0.05), None
    for _ in range(steps):
        optimizer.zero_grad()
        branch(random_tokens()).square().mean().backward()
        first = first or {name: p.grad.clone() for name, p in branch.named_parameters()}
        optimizer.step()
    return first


# ----------------------------------------------------------------------------------------- one layer


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6)),
    alpha=st.floats(0.5, 40),
    bias=st.booleans(),
    data=st.data(),
)
def test_a_layer_and_its_gradients_are_those_of_the_formula(sizes, alpha, bias, data):
    """y = (W + s B A) x + b with s = alpha / r. With G the gradient of the loss to y, summed over rows of x as D = G^T x, the
    gradient to B is s D A^T, and to A it is s B^T D."""
    inputs, outputs, rows = sizes
    rank = data.draw(st.integers(1, min(inputs, outputs)))
    torch.manual_seed(data.draw(st.integers(0, 999)))
    linear = nn.Linear(inputs, outputs, bias=bias)
    layer = shaken(LoRALinear(linear, rank, alpha))
    x, G = torch.randn(rows, inputs, requires_grad=True), torch.randn(rows, outputs)
    A, B = layer.A.detach().double(), layer.B.detach().double()
    W, s, D = linear.weight.detach().double(), alpha / rank, G.double().T @ x.detach().double()
    y = layer(x)
    expected = x.detach().double() @ (W + s * B @ A).T + (linear.bias.detach().double() if bias else 0)
    torch.testing.assert_close(y.detach().double(), expected, rtol=1e-5, atol=1e-5)
    y.backward(G)
    torch.testing.assert_close(layer.B.grad.double(), s * D @ A.T, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer.A.grad.double(), s * B.T @ D, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), G.double() @ (W + s * B @ A), rtol=1e-5, atol=1e-5)
    assert linear.weight.grad is None


def test_a_layer_by_hand():
    linear = nn.Linear(2, 2, bias=False)
    layer = LoRALinear(linear, rank=1, alpha=3)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        layer.A.copy_(torch.tensor([[1.0, -1.0]]))
        layer.B.copy_(torch.tensor([[2.0], [0.5]]))
        # W x = (5, 14); A x = -2; B A x = (-4, -1), times 3
        assert layer(torch.tensor([5.0, 7.0])).tolist() == [5 - 12, 14 - 3]


def test_a_fresh_layer_is_the_one_under_it_and_the_first_gradient_is_of_B_alone():
    torch.manual_seed(0)
    linear, x = nn.Linear(6, 5), torch.randn(4, 6)
    layer = LoRALinear(linear, 3, 6)
    assert torch.equal(layer(x), linear(x)) and (layer.B == 0).all() and layer.A.abs().min() > 0
    layer(x).square().sum().backward()
    assert (layer.A.grad == 0).all() and layer.B.grad.abs().min() > 0
    bound = 1 / math.sqrt(6)  # as nn.Linear draws its own weights
    assert layer.A.abs().max() <= bound and layer.A.std() > bound / 4


@pytest.mark.parametrize("rank", [0, -1, 5, 24])
def test_a_rank_that_a_matrix_cannot_have_is_refused(rank):
    with pytest.raises(ValueError, match=r"rank must lie between 1 and 4 for a matrix \[4, 6\]"):
        LoRALinear(nn.Linear(6, 4), rank, 8)
    LoRALinear(nn.Linear(6, 4), 4, 8)


# ----------------------------------------------------------------------------------------- it starts as the base


@every_family
@pytest.mark.parametrize("layers", [1, 2, None])
def test_a_fresh_branch_is_the_base_to_the_bit(family, layers):
    base = base_of(family)
    branch = Branch(base, layers, rank=4)
    tokens, mask = pad([[1, 2, 3], [4, 5, 6, 7, 8], [9]], "left")
    for arguments in ((tokens,), (tokens, mask)):
        assert torch.equal(branch(*arguments), base(*arguments))
        assert torch.equal(branch.hidden(*arguments), base.hidden(*arguments))
    assert branch.lower == LAYERS - (layers or LAYERS) and len(branch.blocks) == (layers or LAYERS)


@every_family
def test_a_fresh_scalar_head_says_nothing_yet(family):
    branch = Branch(base_of(family), 2, rank=4, scalar=True)
    assert (branch(random_tokens()) == 0).all() and branch(random_tokens()).shape == (3, 9)


@every_family
def test_a_base_with_dropout_is_put_into_evaluation_mode_and_shared_states_are_always_the_same(family):
    base = base_of(family, **({} if family == "llama" else {"dropout": 0.5})).train()
    branch = Branch(base, 2, rank=4)
    assert not base.training and not any(module.training for module in branch.modules())
    expected = base(random_tokens())
    assert torch.equal(branch(random_tokens()), expected)
    branch.train()  # the adapted blocks have dropout then, the trunk never
    assert torch.equal(branch.trunk(random_tokens())[0], branch.trunk(random_tokens())[0])
    assert torch.equal(branch(random_tokens()), expected) == (family == "llama")
    assert not base.training


# ----------------------------------------------------------------------------------------- merged


@settings(deadline=None, max_examples=20)
@given(
    family=st.sampled_from(FAMILIES),
    layers=st.integers(1, LAYERS),
    rank=st.integers(1, 6),
    alpha=st.floats(0.5, 20),
    matrices=st.sampled_from([None, ["up"], ["out", "down"]]),
    seed=st.integers(0, 99),
)
def test_merged_equals_unmerged(family, layers, rank, alpha, matrices, seed):
    base = base_of(family)
    before = copy.deepcopy(base.state_dict())
    branch = shaken(Branch(base, layers, rank, alpha, matrices), seed)
    merged = branch.merged()
    assert type(merged) is type(base) and merged.config == base.config
    tokens, mask = pad([[1, 2, 3], [4, 5, 6, 7, 8], [9]], "left")
    with torch.no_grad():
        expected = branch(tokens, mask)[mask].log_softmax(-1)
        assert (expected - base(tokens, mask)[mask].log_softmax(-1)).abs().max() > 1e-3  # it is another model
        close(merged(tokens, mask)[mask].log_softmax(-1), expected, 1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    for layer, (block, own) in enumerate(zip(merged.blocks, base.blocks, strict=True)):
        assert (block is own) == (layer < LAYERS - layers)  # what is not adapted is shared
    assert merged.embedding is base.embedding and merged.head is base.head and merged.norm is base.norm
    assert base.blocks[-1] is not merged.blocks[-1]  # and the base's own list is another


def test_a_merged_model_is_one_of_its_family_for_saving_and_sampling():
    branch = shaken(Branch(base_of(), 2, rank=2))
    merged = branch.merged()
    plain = Llama.from_metadata(merged.metadata()).eval()
    plain.load_state_dict(merged.state_dict())
    assert torch.equal(plain(random_tokens()), merged(random_tokens()))
    uniforms = torch.rand(2, 8, generator=torch.Generator().manual_seed(0))
    samples = [generate(model, [[1, 2], [3]], 8, uniforms=uniforms) for model in (branch, merged)]
    assert torch.equal(samples[0].tokens, samples[1].tokens)
    close(samples[0].logprobs, samples[1].logprobs, 1e-4)


# ----------------------------------------------------------------------------------------- what is trained


@every_family
@pytest.mark.parametrize("scalar", [False, True])
def test_training_a_branch_changes_its_adapters_and_head_and_nothing_of_the_base(family, scalar):
    base = base_of(family)
    wanted = [p.requires_grad_(number % 2 == 0).requires_grad for number, p in enumerate(base.parameters())]
    before, logits = copy.deepcopy(base.state_dict()), base(random_tokens()).detach()
    branch = Branch(base, 2, rank=4, scalar=scalar)
    if scalar:
        nn.init.normal_(branch.score.weight)  # at 0 it lets no gradient through to the adapters
    start = copy.deepcopy(branch.state_dict())
    train(branch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert torch.equal(base(random_tokens()), logits)
    assert all(p.grad is None for p in base.parameters())
    assert [p.requires_grad for p in base.parameters()] == wanted
    assert not any(torch.equal(tensor, start[name]) for name, tensor in branch.state_dict().items())


@every_family
def test_a_scalar_head_is_never_frozen_and_learns_from_the_first_step_on(family):
    branch = Branch(base_of(family), 1, rank=2, scalar=True)
    assert branch.score.weight.requires_grad and branch.score.bias.requires_grad
    loss = F.binary_cross_entropy_with_logits(branch.logits(random_tokens()), torch.tensor([1.0, 0.0, 1.0]))
    loss.backward()
    assert branch.score.weight.grad.abs().min() > 0 and branch.score.bias.grad.abs().min() > 0
    # with every score 0 the gradient to the bias is the mean of 1/2 - wanted
    close(branch.score.bias.grad, torch.tensor([-1 / 6]), 1e-6)


@every_family
@pytest.mark.parametrize("scalar", [False, True])
def test_parameters_and_state_are_the_adapters_and_the_head_alone(family, scalar):
    branch = Branch(base_of(family), 2, rank=4, matrices=["down", "out"], scalar=scalar)
    names = {f"blocks.{i}.{name}.{part}" for i in (0, 1) for name in ("attention.out", "down") for part in "AB"}
    names |= {"score.weight", "score.bias"} if scalar else set()
    assert set(branch.state_dict()) == {name for name, _ in branch.named_parameters()} == names
    assert all(p.requires_grad for p in branch.parameters())


@every_family
def test_gradients_equal_those_of_the_merged_weights_by_the_chain_rule(family):
    """Autograd's gradient to each merged weight W + s B A, turned into that of A and B by hand; padding and all."""
    base = base_of(family)
    branch = shaken(Branch(base, 2, rank=3, alpha=5))
    merged = branch.merged()
    merged.requires_grad_(True)
    tokens, mask = pad([[1, 2, 3], [4, 5, 6, 7, 8], [9]], "left")
    for model in (branch, merged):
        model(tokens, mask)[mask].log_softmax(-1)[:, 3].sum().backward()
    s, checked = 5 / 3, 0
    for block, plain in zip(branch.blocks, merged.blocks[LAYERS - 2 :], strict=True):
        weights = dict(plain.named_modules())
        for name, layer in block.named_modules():
            if isinstance(layer, LoRALinear):
                G, checked = weights[name].weight.grad, checked + 1
                for found, expected in ((layer.B.grad, s * G @ layer.A.T), (layer.A.grad, s * layer.B.T @ G)):
                    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    assert checked == 2 * (7 if family == "llama" else 4)


# ----------------------------------------------------------------------------------------- which matrices, and how many numbers


def test_the_numbers_that_are_trained_are_counted_by_hand():
    """A matrix of n inputs and m outputs has r (n + m) numbers. Llama here: query and out 24 to 24, key and value 24 to 12, gate
    and up 24 to 20, down 20 to 24. GPT: qkv 24 to 72, out 24 to 24, up 24 to 96, down 96 to 24."""
    llama = 2 * (24 + 24) + 2 * (24 + 12) + 2 * (24 + 20) + (20 + 24)
    gpt = (24 + 72) + (24 + 24) + 2 * (24 + 96)
    for family, each in (("llama", llama), ("modern", gpt), ("gpt2", gpt)):
        base = base_of(family)
        whole = sum(p.numel() for p in base.parameters())
        assert counts(base) == (whole, whole)
        assert counts(Branch(base, 2, rank=5)) == (2 * 5 * each, whole + 2 * 5 * each)
        head = WIDTH + 1
        assert counts(Branch(base, None, rank=1, scalar=True)) == (3 * each + head, whole + 3 * each + head)
    queries = Branch(base_of(), 3, rank=4, matrices=["query", "value"])
    assert counts(queries)[0] == 3 * 4 * ((24 + 24) + (24 + 12))
    assert counts(base_of().requires_grad_(False))[0] == 0


def test_the_shipped_models_branch_has_the_size_that_it_is_planned_with():
    """Rank 16 on all matrices of the last 10 of 30 blocks of SmolLM2-135M."""
    with torch.device("meta"):
        base = Llama(LlamaConfig())
        each = 2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)
        assert counts(Branch(base, 10, rank=16)) == (10 * 16 * each, 134_515_008 + 10 * 16 * each)


def test_an_unknown_matrix_is_refused_and_the_known_ones_named():
    message = "matrices: a block has no 'querry'; choose from gate, up, down, query, key, value, out"
    with pytest.raises(ValueError, match=message):
        Branch(base_of(), matrices=["value", "querry"])
    with pytest.raises(ValueError, match="matrices: a block has no 'query'; choose from up, down, qkv, out"):
        Branch(base_of("modern"), matrices=["query"])
    with pytest.raises(
        ValueError, match="matrices is empty, so that nothing would be trained: name some of up, down, qkv, out, or"
    ):
        Branch(base_of("modern"), matrices=[])


@pytest.mark.parametrize("layers", [0, -1, 4])
def test_a_number_of_layers_that_the_model_has_not_is_refused(layers):
    with pytest.raises(ValueError, match=f"layers must lie between 1 and the model's 3, got {layers}"):
        Branch(base_of(), layers)
    with pytest.raises(ValueError, match=r"rank must lie between 1 and 12 for a matrix \[12, 24\]"):
        Branch(base_of(), rank=13)


# ----------------------------------------------------------------------------------------- one trunk


@every_family
def test_four_branches_share_the_base_and_their_trunks_say_the_same(family):
    base = base_of(family)
    four = [shaken(Branch(base, 2, rank=2, scalar=scalar), seed) for seed, scalar in enumerate((False, False, True, True))]
    memory = {p.data_ptr() for p in base.parameters()}
    for branch in four:
        assert {b.data_ptr() for b in branch.buffers()} <= memory and branch.head.weight.data_ptr() in memory
        assert not {p.data_ptr() for p in branch.parameters()} & memory
    tokens, mask = pad([[1, 2, 3], [4, 5, 6, 7, 8], [9]], "left")
    trunks = [branch.trunk(tokens, mask) for branch in four]
    assert all(torch.equal(trunk[0], trunks[0][0]) and not trunk[0].requires_grad for trunk in trunks)
    for branch in four:  # the states of one serve all
        assert torch.equal(branch.top(*trunks[0]), branch.hidden(tokens, mask))
    hidden = [branch.hidden(tokens, mask) for branch in four]
    assert all((hidden[0] - other).abs().max() > 1e-2 for other in hidden[1:])
    with torch.no_grad():  # what happens to the base happens to all
        base.blocks[-1].down.weight.zero_()
    assert all((branch.blocks[-1].down.frozen.weight == 0).all() for branch in four)


@every_family
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shared", [1, 4, 6])
def test_what_all_rows_begin_with_is_computed_once_and_has_the_gradient_of_all(family, padded, shared):
    """The oracle computes every row whole. Padding stands behind what is shared."""
    tokens = torch.randint(1, 9, (5, 10), generator=torch.Generator().manual_seed(0))
    tokens[:, :6] = tokens[0, :6]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    if padded:
        mask[1, 6:8] = mask[3, 6] = mask[0, 8:] = False
    branch = shaken(Branch(base_of(family).double(), 2, rank=2)).double()
    found = []
    for count in (0, shared):
        read = []
        hook = branch.blocks[0].register_forward_hook(lambda block, inputs, out, read=read: read.append(inputs[0].shape[:2]))
        hidden = branch.top(*branch.trunk(tokens, mask if padded else None, shared=count), shared=count)
        hook.remove()
        assert [tuple(size) for size in read] == ([(6, 10 - min(count, 5))] if count else [(5, 10)])
        found.append([hidden[mask], *torch.autograd.grad(hidden[mask].sin().sum(), branch.parameters())])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert all(part.abs().max() > 1e-3 for part in found[1])


@every_family
def test_two_positions_are_enough_to_share_one_and_one_is_not(family):
    branch = shaken(Branch(base_of(family), 2, rank=2)).eval()
    for tokens in (torch.tensor([[1, 2], [1, 3]]), torch.tensor([[4], [4]])):
        hidden = branch.top(*branch.trunk(tokens, shared=1), shared=1)
        torch.testing.assert_close(hidden, branch.hidden(tokens), rtol=1e-4, atol=1e-4)


@every_family
def test_a_copy_is_a_branch_of_its_own_on_the_same_base(family):
    base = base_of(family)
    branch = shaken(Branch(base, 2, rank=2, scalar=True))
    branch.score.bias.requires_grad_(False)
    before = copy.deepcopy(branch.state_dict())
    other = copy.deepcopy(branch)
    assert other.base is base and torch.equal(other(random_tokens()), branch(random_tokens()))
    assert {b.data_ptr() for b in other.buffers()} == {b.data_ptr() for b in branch.buffers()}
    assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in branch.parameters()}
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in branch.parameters()]
    assert other.metadata() == branch.metadata() and other.training == branch.training
    shaken(other, seed=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in branch.state_dict().items())
    held = {"policy": branch, "same": branch, "base": base}
    copied = copy.deepcopy(held)
    assert copied["policy"] is copied["same"] and copied["policy"] is not branch


# ----------------------------------------------------------------------------------------- as a model


@every_family
@pytest.mark.parametrize("layers", [1, 3])
def test_a_cached_step_equals_an_uncached_one_and_samples_their_rescoring(family, layers):
    branch = shaken(Branch(base_of(family), layers, rank=2, alpha=2))
    with torch.no_grad():
        whole = branch(random_tokens(2, 9))
        for sizes in ([1] * 9, [4, 1, 1, 3]):
            cache = KVCache(branch.config, 2, 9)
            steps = [branch(piece, cache=cache) for piece in random_tokens(2, 9).split(sizes, dim=1)]
            close(torch.cat(steps, dim=1), whole, 1e-5 * max(1.0, whole.abs().max().item()))
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    samples = generate(branch, prompts, 12, generator=torch.Generator().manual_seed(0), end_token=3)
    close(token_logprobs(branch, prompts, samples.tokens, samples.mask).detach(), samples.logprobs, 1e-4)


@every_family
def test_a_scalar_branch_reads_the_last_real_token_and_padding_does_not_move_it(family):
    branch = shaken(Branch(base_of(family), 2, rank=2, scalar=True))
    rows = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
    with torch.no_grad():
        alone = torch.stack([branch(torch.tensor([row]))[0, -1] for row in rows])
        for side in ("left", "right"):
            close(branch.logits(*pad(rows, side)), alone, 1e-4)
        tokens = torch.tensor([[4, 5, 6, 7, 8]])
        assert torch.equal(branch.logits(tokens), branch(tokens)[:, -1])
        hidden = branch.hidden(tokens)
        close(branch(tokens), hidden @ branch.score.weight[0] + branch.score.bias, 1e-5)


def test_scores_are_in_float32_under_autocast():
    branch = shaken(Branch(base_of(), 2, rank=2, scalar=True))
    tokens = random_tokens(200, 12).unique(dim=0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = branch.logits(tokens)
    assert scores.dtype == torch.float32 and scores.unique().numel() >= 0.99 * len(tokens)


@every_family
def test_a_branch_is_built_again_from_its_metadata_its_state_and_its_base(family):
    base = base_of(family)
    branch = shaken(Branch(base, 2, rank=2, alpha=3, matrices=["down"], scalar=True, source="../base"))
    metadata = branch.metadata()
    assert metadata["kind"] == "branch" and metadata["config"] == base.metadata()["config"]
    shape = dict(layers=2, rank=2, alpha=3, matrices=["down"], scalar=True, depth=None, pooling="last", source="../base")
    assert metadata["branch"] == shape
    other = Branch(base, **metadata["branch"])
    halves = {name: tensor.half() for name, tensor in branch.state_dict().items()}  # as they are published
    other.load_state_dict(halves)
    assert {p.dtype for p in other.parameters()} == {torch.float32}
    close(other(random_tokens()).detach(), branch(random_tokens()).detach(), 0.05)
    other.load_state_dict(branch.state_dict())
    assert torch.equal(other(random_tokens()), branch(random_tokens()))


def test_a_branch_does_not_follow_a_base_that_is_given_another_type_afterwards():
    """As its docstring says; whoever does it is told by PyTorch, and never served wrong numbers."""
    base = base_of("gpt2")
    branch = Branch(base, 2, rank=2)
    base.double()
    assert branch.blocks[0].down.frozen.weight.dtype == torch.float32
    with pytest.raises(RuntimeError, match="type"):
        branch(random_tokens())


@pytest.mark.parametrize("padding", (0, 3))
def test_a_mean_head_reads_the_mean_of_the_real_states_so_far(padding):
    base = base_of("llama")
    branch = shaken(Branch(base, 1, rank=2, scalar=True, pooling="mean"))
    tokens = random_tokens()[:, :7]
    left = torch.cat([torch.zeros(len(tokens), padding, dtype=torch.long), tokens], 1)
    mask = torch.arange(7 + padding)[None] >= padding
    mask = mask.expand(len(tokens), -1)
    with torch.no_grad():
        hidden = branch.hidden(tokens)
        expected = [branch.score(hidden[:, : t + 1].mean(1))[:, 0] for t in range(7)]
        close(branch(left, mask)[:, padding:], torch.stack(expected, 1), 1e-4)
        close(branch.logits(left, mask), expected[-1], 1e-4)
        behind = torch.cat([tokens, torch.full((len(tokens), 2), 3)], 1)
        right = torch.arange(9)[None].expand(len(tokens), -1) < 7
        close(branch.logits(behind, right), expected[-1], 1e-4)


def test_another_pooling_is_refused():
    with pytest.raises(ValueError, match=r"^pooling must be mean or last, got 'max'$"):
        Branch(base_of("llama"), 1, rank=2, scalar=True, pooling="max")


@every_family
def test_a_head_on_the_trunk_reads_its_states_and_has_nothing_else_to_train(family):
    base = base_of(family)
    branch = shaken(Branch(base, 1, rank=2, scalar=True, depth=0, pooling="mean"))
    assert sorted(branch.state_dict()) == ["score.bias", "score.weight"]
    tokens = random_tokens()
    with torch.no_grad():
        x, _, _ = branch.trunk(tokens)
        close(branch.logits(tokens), branch.score(base.norm(x).mean(1))[:, 0], 1e-5)


@pytest.mark.parametrize("options", (dict(scalar=False, depth=0), dict(scalar=True, depth=2), dict(scalar=True, depth=-1)))
def test_another_depth_is_refused(options):
    with pytest.raises(ValueError, match=r"^depth is for scalar branches, and at most their layers, got "):
        Branch(base_of("llama"), 1, rank=2, **options)
