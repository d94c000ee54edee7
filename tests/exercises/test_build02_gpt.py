"""Build it 2.10: right builds pass every probe, and each wrong one fails at its own."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises import find
from rlhf_lib.exercises.build import try_out
from rlhf_lib.exercises.keep import the_course
from rlhf_lib.models.gpt import GPT as LibraryGPT
from rlhf_lib.models.gpt import GPTConfig

BUILD = find("GPT")
CHEAP = 10.0  # seconds: the training probe may take more
TRAINING = "it learns to reverse, and only the answer"


def fault_of(built, probe, seed=0, **changes):
    """What one probe finds wrong with a build."""
    inputs = next(one for one in BUILD.draw(seed) if one["probe"] == probe)
    inputs.update(changes)
    return BUILD.fault(inputs, BUILD.answer(built, inputs))


# ----------------------------------------------------------------------------------------- another right build


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.heads, half = heads, width // heads // 2
        self.register_buffer("speeds", torch.exp(-math.log(10000) * torch.arange(half) / half), persistent=False)

    def turn(self, x, positions):
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        angles = (positions[:, None, :, None] * self.speeds).repeat(1, 1, 1, 2)
        a, b = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()

    def forward(self, x, positions, looks):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.turn(q, positions), self.turn(k, positions), v, attn_mask=looks)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2, self.attention = Norm(width), Norm(width), Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x, positions, looks):
        x = x + self.attention(self.norm1(x), positions, looks)
        hidden = self.up(self.norm2(x))
        return x + self.down(hidden * hidden.clamp(min=0))


class Right(nn.Module):
    """With modules of its own, PyTorch's operator, positions that count the real tokens, and a table that is no weight."""

    def __init__(self, vocab_size, context, layers, heads, width):
        super().__init__()
        self.vocab_size, self.context, self.heads = vocab_size, context, heads
        self.embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm, self.head = Norm(width), nn.Linear(width, vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, 0.0, 0.02)
        for weight in [self.head.weight, *(w for block in self.blocks for w in (block.attention.out.weight, block.down.weight))]:
            weight.data.zero_()

    def positions(self, tokens, mask):
        return (mask.cumsum(1) - 1).clamp(min=0)

    def looks(self, tokens, mask):
        """(B, 1, T, T): who may look at whom; padding on the left looks at itself."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        allowed = (places[None] <= places[:, None]) & mask[:, None]
        return (allowed | (places[None] == places[:, None]))[:, None]

    def hidden(self, tokens, mask=None):
        if tokens.shape[1] > self.context:
            raise ValueError(f"this model reads at most {self.context} tokens, not {tokens.shape[1]}")
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        x, positions, looks = self.embedding(tokens), self.positions(tokens, mask), self.looks(tokens, mask)
        for block in self.blocks:
            x = block(x, positions, looks)
        return self.norm(x)

    def forward(self, tokens, mask=None):
        return self.head(self.hidden(tokens, mask))


@pytest.mark.parametrize("seed", [7])  # the worked notebooks run seed 0
def test_the_worked_answer_learns(seed):
    assert fault_of(the_course("GPT"), TRAINING, seed) == ""


@pytest.mark.parametrize("seed", [7])  # the worked notebooks run seed 0
def test_another_right_build_passes_the_cheap_probes(seed):
    assert try_out(BUILD, Right, seed, most=CHEAP) == ("", "")


def test_the_librarys_own_gpt_passes_the_cheap_probes():
    class Library(LibraryGPT):
        def __init__(self, vocab_size, context, layers, heads, width):
            super().__init__(GPTConfig(vocab_size, context, layers, heads, width))

    assert try_out(BUILD, Library, most=CHEAP) == ("", "")


def test_training_comes_last_and_is_the_only_long_probe():
    cheap = [probe.name for probe in BUILD.probes.values() if probe.seconds <= CHEAP]
    assert len(cheap) == len(BUILD.probes) - 1 and list(BUILD.probes)[-1] == TRAINING


# ----------------------------------------------------------------------------------------- wrong builds


class NoMask(Right):
    """Training code without the causal mask."""

    def looks(self, tokens, mask):
        return mask[:, None, None].expand(-1, 1, tokens.shape[1], -1)


class LooksTooFar(Right):
    """A triangle that is one too wide: each position sees the very token that it is to predict."""

    def looks(self, tokens, mask):
        return torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).tril(1)[None, None]


class Torn(Right):
    """view(B, heads, T, D): what belongs to one position is cut out of several."""

    def __init__(self, vocab_size, context, layers, heads, width):
        super().__init__(vocab_size, context, layers, heads, width)
        for block in self.blocks:
            block.attention.forward = torn.__get__(block.attention)


def torn(self, x, positions, looks):
    B, T, C = x.shape
    q, k, v = (part.reshape(B, self.heads, T, C // self.heads) for part in self.qkv(x).chunk(3, -1))
    y = F.scaled_dot_product_attention(self.turn(q, positions), self.turn(k, positions), v, attn_mask=looks)
    return self.out(y.transpose(1, 2).reshape(B, T, C))


class PlainList(Right):
    """The blocks in a Python list: PyTorch does not know of them."""

    def __init__(self, *shape):
        super().__init__(*shape)
        blocks = list(self.blocks)
        del self.blocks
        self.blocks = blocks


class MaskAsWeight(Right):
    """The triangle as a buffer that is saved with the weights, as many published models have it."""

    def __init__(self, vocab_size, context, layers, heads, width):
        super().__init__(vocab_size, context, layers, heads, width)
        self.register_buffer("triangle", torch.ones(context, context).tril())


class Biases(Right):
    def __init__(self, vocab_size, context, layers, heads, width):
        super().__init__(vocab_size, context, layers, heads, width)
        self.head = nn.Linear(width, vocab_size)


class Transposed(Right):
    """A head stored as (inputs, outputs)."""

    def __init__(self, vocab_size, context, layers, heads, width):
        super().__init__(vocab_size, context, layers, heads, width)
        self.head.weight = nn.Parameter(torch.zeros(width, vocab_size))


class Tied(Right):
    """The head is the embedding: same names, same shapes, one tensor less."""

    def __init__(self, *shape):
        super().__init__(*shape)
        self.head.weight = self.embedding.weight


class RandomHead(Right):
    def __init__(self, *shape):
        super().__init__(*shape)
        nn.init.normal_(self.head.weight, std=0.02)


class RandomBlocks(Right):
    """PyTorch's own beginning for attention.out and down."""

    def __init__(self, *shape):
        super().__init__(*shape)
        for block in self.blocks:
            block.attention.out.reset_parameters()
            block.down.reset_parameters()


class WideEmbedding(Right):
    """PyTorch's own beginning for the embedding: standard deviation 1."""

    def __init__(self, *shape):
        super().__init__(*shape)
        self.embedding.reset_parameters()


class HiddenBeforeNorm(Right):
    """`hidden` is what the last block leaves; the norm is in `forward`."""

    def hidden(self, tokens, mask=None):
        norm, self.norm = self.norm, nn.Identity()
        try:
            return super().hidden(tokens, mask)
        finally:
            self.norm = norm

    def forward(self, tokens, mask=None):
        return self.head(self.norm(self.hidden(tokens, mask)))


class AcrossTheBatch(Right):
    """Queries and keys are normalised over the rows of the batch too."""

    def __init__(self, *shape):
        super().__init__(*shape)
        for block in self.blocks:
            attention = block.attention
            attention.turn = lambda x, positions, attention=attention: (
                Attention.turn(attention, x / x.square().mean((0, 1, 3), keepdim=True).sqrt(), positions)
                * x.square().mean((0, 1, 3), keepdim=True).sqrt()
            )


class ScaledByLength(Right):
    """The scores grow with the length of the text, and not with the position."""

    def __init__(self, *shape):
        super().__init__(*shape)
        for block in self.blocks:
            attention = block.attention
            attention.turn = lambda x, positions, attention=attention: (
                Attention.turn(attention, x, positions) * math.log(1 + x.shape[2])
            )


class IgnoresPadding(Right):
    """The mask of padding is taken and never used."""

    def hidden(self, tokens, mask=None):
        return super().hidden(tokens)


class EmptySoftmax(Right):
    """Padding on the left may look at nothing, not even at itself."""

    def looks(self, tokens, mask):
        T = tokens.shape[1]
        return (torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril() & mask[:, None])[:, None]

    def hidden(self, tokens, mask=None):  # the operator gives 0 or NaN there, by version; by hand it is NaN
        x = super().hidden(tokens, mask)
        return x if mask is None else x.masked_fill(~self.looks(tokens, mask).any(-1).squeeze(1)[..., None], torch.nan)


class PutOutOfTheWay(EmptySoftmax):
    """The softmax over nothing is NaN, and what it makes is set to 0: the logits are right, the way back is not."""

    def hidden(self, tokens, mask=None):
        x = Right.hidden(self, tokens, mask)
        if mask is None:
            return x
        empty = ~self.looks(tokens, mask).any(-1).squeeze(1)[..., None]
        return x + (0 * x.mean() / (~empty)).masked_fill(empty, 0.0)


class UpsideDown(Right):
    """True is taken for padding."""

    def hidden(self, tokens, mask=None):
        return super().hidden(tokens, None if mask is None else ~mask)


class NoPositions(Right):
    def positions(self, tokens, mask):
        return torch.zeros_like(tokens)


class NotNormalised(Right):
    """Queries and keys are turned, and not normalised."""

    def __init__(self, *shape):
        super().__init__(*shape)
        for block in self.blocks:
            attention = block.attention
            attention.turn = lambda x, positions, attention=attention: unnormalised(attention, x, positions)


def unnormalised(attention, x, positions):
    size = x.square().mean(-1, keepdim=True).add(1e-6).sqrt()
    return Attention.turn(attention, x, positions) * size


class PlainReLU(Right):
    def __init__(self, *shape):
        super().__init__(*shape)
        for block in self.blocks:
            block.forward = relu_block.__get__(block)


def relu_block(self, x, positions, looks):
    x = x + self.attention(self.norm1(x), positions, looks)
    return x + self.down(self.up(self.norm2(x)).relu())


class Detached(Right):
    """The attention's input is cut from the graph, as a `.data` or `.detach()` for speed does."""

    def __init__(self, *shape):
        super().__init__(*shape)
        for block in self.blocks:
            block.norm1.forward = lambda x, norm=block.norm1: Norm.forward(norm, x).detach()


class Frozen(Right):
    """A model that was made without gradients."""

    def forward(self, tokens, mask=None):
        with torch.no_grad():
            hidden = self.hidden(tokens, mask)
        return self.head(hidden)


class Endless(Right):
    """No end of the context: rotary positions go on for ever."""

    def hidden(self, tokens, mask=None):
        self.context, context = 10**9, self.context
        try:
            return Right.hidden(self, tokens, mask)
        finally:
            self.context = context


class Asserts(Right):
    def hidden(self, tokens, mask=None):
        assert tokens.shape[1] <= self.context
        return super().hidden(tokens, mask)


class Mute(Right):
    def hidden(self, tokens, mask=None):
        if tokens.shape[1] > self.context:
            raise ValueError
        return super().hidden(tokens, mask)


class OnTheProcessor(Right):
    """The triangle is made on the CPU, wherever the tokens are."""

    def looks(self, tokens, mask):
        return super().looks(tokens, mask) & torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()


class EyeOnTheProcessor(Right):
    """What padding looks at is made on the CPU, and only with a mask."""

    def hidden(self, tokens, mask=None):
        mask = mask if mask is None else mask | torch.zeros(tokens.shape[1], dtype=torch.bool)
        return super().hidden(tokens, mask)


class InPlaceOfTheCausal(Right):
    """With a mask of padding there is no causal one."""

    def hidden(self, tokens, mask=None):
        looks, own = self.looks, torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        try:
            self.looks = looks if mask is None else lambda tokens, mask: (mask[:, None] | own)[:, None]
            return super().hidden(tokens, mask)
        finally:
            self.looks = looks


class OtherNorms(Right):
    def __init__(self, *shape, blocks=Norm, last=Norm):
        super().__init__(*shape)
        for block in self.blocks:
            block.norm1, block.norm2 = blocks(shape[-1]), blocks(shape[-1])
        self.norm = last(shape[-1])


class LayerNorms(OtherNorms):
    def __init__(self, *shape):
        super().__init__(*shape, blocks=(own := lambda width: nn.LayerNorm(width, bias=False)), last=own)


class EpsOfTheLast(OtherNorms):
    def __init__(self, *shape):
        super().__init__(*shape, last=nn.RMSNorm)


class EpsOfTheBlocks(OtherNorms):
    def __init__(self, *shape):
        super().__init__(*shape, blocks=nn.RMSNorm)


class PostNorm(Right):
    def __init__(self, *shape):
        super().__init__(*shape)
        for block in self.blocks:
            block.forward = post_norm.__get__(block)


def post_norm(self, x, positions, looks):
    x = self.norm1(x + self.attention(x, positions, looks))
    return self.norm2(x + self.down(self.up(x).relu().square()))


class QueriesAlone(Right):
    """Queries are turned and keys are not: a score depends on where its query stands."""

    def positions(self, tokens, mask):
        return torch.arange(tokens.shape[1]).expand(tokens.shape)

    def __init__(self, *shape):
        super().__init__(*shape)
        for block in self.blocks:
            block.attention.turn = queries_alone(block.attention)


def queries_alone(attention):
    calls = itertools.count()
    return lambda x, positions: Attention.turn(attention, x, positions * (1 - next(calls) % 2))


class InPlace(Right):
    def __init__(self, *shape):
        super().__init__(*shape)
        for block in self.blocks:
            block.forward = in_place.__get__(block)


def in_place(self, x, positions, looks):
    x = x + self.attention(self.norm1(x), positions, looks)
    x += self.down(self.up(self.norm2(x)).relu().square())
    return x


class HiddenIsEndless(Right):
    """Only `forward` looks at the length."""

    def hidden(self, tokens, mask=None):
        return Endless.hidden(self, tokens, mask)

    def forward(self, tokens, mask=None):
        if tokens.shape[1] > self.context:
            raise ValueError(f"at most {self.context} tokens")
        return super().forward(tokens, mask)


class PaddingIsFree(Right):
    """Padding is not counted among the tokens of a context."""

    def hidden(self, tokens, mask=None):
        free = mask is not None and mask.sum(1).max() <= self.context
        return (Endless.hidden if free else Right.hidden)(self, tokens, mask)


class LeaksInTraining(Right):
    """The mask is there in evaluation alone."""

    def looks(self, tokens, mask):
        return torch.ones_like(super().looks(tokens, mask)) if self.training else super().looks(tokens, mask)


class Noisy(Right):
    """Dropout of one half on the stream, in training alone."""

    def forward(self, tokens, mask=None):
        return self.head(F.dropout(self.hidden(tokens, mask), 0.9, self.training))


class Repeats(Right):
    """Positions that begin again after 10 tokens: right in short texts."""

    def positions(self, tokens, mask):
        return super().positions(tokens, mask) % 10


class KeepsTheMask(Right):
    """Who looks at whom is kept for the next tokens of the same shape, whatever their mask."""

    def looks(self, tokens, mask):
        if getattr(self, "shape", None) != tokens.shape:
            self.shape, self.kept = tokens.shape, super().looks(tokens, mask)
        return self.kept


WRONG = [
    (KeepsTheMask, "padding moves nothing", "real tokens look at padding"),
    (NoMask, "the future is hidden", "mask leaks"),
    (LooksTooFar, "the future is hidden", "mask leaks"),
    (Torn, "the future is hidden", "heads are cut"),
    (PlainList, "the weights have their names and shapes", "plain list"),
    (MaskAsWeight, "the weights have their names and shapes", "persistent=False"),
    (Biases, "the weights have their names and shapes", "no layer has a bias"),
    (Transposed, "the weights have their names and shapes", "(outputs, inputs)"),
    (Tied, "the weights have their names and shapes", "share a tensor"),
    (RandomHead, "it starts from knowing nothing", "the head does not begin at zero"),
    (RandomBlocks, "it starts from knowing nothing", "writes random numbers into the stream"),
    (WideEmbedding, "it starts from knowing nothing", "standard deviation of"),
    (HiddenBeforeNorm, "it starts from knowing nothing", "`hidden` is not norm(embedding)"),
    (AcrossTheBatch, "a text's logits depend on that text alone", "other texts of its batch"),
    (ScaledByLength, "a text's logits depend on that text alone", "length of the text"),
    (IgnoresPadding, "padding moves nothing", "real tokens look at padding"),
    (EmptySoftmax, "padding moves nothing", "let it look at itself"),
    (PutOutOfTheWay, "padding moves nothing", "it comes back in the gradient"),
    (UpsideDown, "padding moves nothing", "True stands on real tokens"),
    (NoPositions, "given weights give the right logits", "there are no positions"),
    (NotNormalised, "given weights give the right logits", "queries and keys are not normalised"),
    (PlainReLU, "given weights give the right logits", "its square is missing"),
    (Frozen, "gradients reach every weight", "no gradient reaches"),
    (Detached, "gradients reach every weight", "no gradient reaches"),
    (Endless, "the context has an end", "without a word"),
    (Asserts, "the context has an end", "AssertionError"),
    (Mute, "the context has an end", "a sentence that names the context"),
    (OnTheProcessor, "it runs on any device", "(in rotary or another function of yours that it calls: x.device)"),
    (EyeOnTheProcessor, "it runs on any device", "it stops with a mask"),
    (InPlaceOfTheCausal, "padding moves nothing", "does not take its place"),
    (QueriesAlone, "padding moves nothing", "a score depends on more than the distance"),
    (InPlace, "padding moves nothing", "x += ... does not"),
    (LayerNorms, "it starts from knowing nothing", "the norms subtract the mean"),
    (EpsOfTheLast, "it starts from knowing nothing", "the last norm has an eps of its own"),
    (EpsOfTheBlocks, "given weights give the right logits", "norm1 and norm2 have an eps of their own"),
    (PostNorm, "it starts from knowing nothing", "the norms stand behind the parts"),
    (HiddenIsEndless, "the context has an end", "`hidden`: 7 tokens are read"),
    (PaddingIsFree, "the context has an end", "one of them padding: 7 tokens are read"),
    (LeaksInTraining, TRAINING, "in training it sees the token"),
    (Noisy, TRAINING, "99 % are to be"),
    (Repeats, TRAINING, "99 % are to be"),
]


@pytest.mark.parametrize(("built", "probe", "words"), WRONG, ids=lambda one: getattr(one, "__name__", ""))
def test_a_wrong_build_fails_at_its_own_probe(built, probe, words):
    if probe == TRAINING:
        assert try_out(BUILD, built, most=CHEAP) == ("", "")
        assert words in fault_of(built, probe, steps=60)
    else:
        failed, sentence = try_out(BUILD, built, most=CHEAP)
        assert (failed, words in sentence) == (probe, True), sentence


def test_an_attention_that_takes_no_wider_mask_is_named():
    class Own(the_course("GPT")):
        def hidden(self, tokens, mask=None):
            def attention(q, k, v, mask):
                scores = q @ k.mT / q.shape[-1] ** 0.5
                scores[..., ~mask] = -torch.inf
                return scores.softmax(-1) @ v, scores

            x = super().hidden(tokens, mask)
            if mask is not None:
                attention(*torch.ones(3, 4, 2, 7, 3), torch.ones(4, 1, 7, 7, dtype=torch.bool))
            return x

    assert "attention stops at the mask that it is given" in fault_of(Own, "padding moves nothing")


def test_the_stub_is_not_written_yet():
    class Stub(nn.Module):
        def __init__(self, vocab_size, context, layers, heads, width):
            raise NotImplementedError()

    assert "not written yet" in try_out(BUILD, Stub)[1]


@pytest.mark.parametrize("output", [0.0, 1.0])
def test_a_constant_passes_only_the_first_probes(output):
    class Constant(Right):
        def forward(self, tokens, mask=None):
            return torch.full((*tokens.shape, self.vocab_size), output) + 0 * self.head(self.hidden(tokens, mask))

    assert "do not read its own token" in (fault := fault_of(Constant, "the future is hidden")) or "own token" in fault
    for probe in ("given weights give the right logits", "gradients reach every weight"):
        assert fault_of(Constant, probe)
    assert fault_of(Constant, TRAINING, steps=2)
