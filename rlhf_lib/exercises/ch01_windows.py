"""Chapter 01: splits that do not leak, windows, and bits per character."""

import functools
import itertools
import math
import random
import unicodedata

import numpy as np
import torch
from torch.nn import functional as F

from rlhf_lib.exercises.ch01_text import WORDS, but_no, pick
from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.exercises.plain import Unfit

LN2 = math.log(2)

# ----------------------------------------------------------------------------------------- 1.7


class Title(str):
    """A str whose place in a set is another in each world, as it is for a str in each run of Python."""

    world = 0

    def __hash__(self):
        return hash((Title.world, str(self)))

    __eq__ = str.__eq__


def draw_split_works(generator):
    for count, fraction, most in (
        (9, 0.5, 1),
        (11, 0.3, 1000),
        (12, 0.8, 1000),
        (20, 0.9, 9),
        (25, 0.83, 1),
        (9, 0.97, 9),
        (8, 0.04, 9),
    ):
        works = [f"play-{number:02}" for number in torch.randperm(99, generator=generator)[:count].tolist()]
        yield {"works": works, "fraction": fraction, "seed": int(torch.randint(most, (1,), generator=generator))}


def states():
    """Those of the generators that all share."""
    _, keys, *rest = np.random.get_state()
    return random.getstate(), torch.get_rng_state().numpy().tobytes(), keys.tobytes(), rest


def call_split_works(function, works, fraction, seed):
    """What holds of the split, whichever way the works were shuffled: tried with eight seeds, each in two states of the world.

    Raises:
        TypeError: a half is no list.
        Unfit: a half's size varies from split to split.
    """
    tried, seeds, count = {}, range(seed, seed + 8), len(works)
    for one, world in itertools.product(seeds, (1, 2)):
        Title.world = 2 * one + world
        torch.default_generator.manual_seed(Title.world)
        random.seed(Title.world)
        np.random.seed(Title.world)
        before = states()
        train, validation = function([Title(work) for work in works], fraction, one)
        if not all(isinstance(half, list) for half in (train, validation)):
            raise TypeError("each half is to be a list")
        untouched = before == states()
        tried[one, world] = [[str(work) if isinstance(work, str) else work for work in half] for half in (train, validation)]
    splits = list(tried.values())
    sizes = {(len(a), len(b)) for a, b in splits}
    if len({size for size, _ in sizes}) > 1:
        raise Unfit("the number for training varies; it is always round(fraction * len(works))")
    if len(sizes) > 1:
        raise Unfit("the number for validation varies; it is always what training does not get")
    another = len({(frozenset(a), frozenset(b)) for a, b in splits}) > 3
    runs = [sum(work in b and works[place - 1] not in b for place, work in enumerate(works)) for _, b in splits]
    return {
        "works for training and validation": list(sizes.pop()),
        "some work is on both sides": any(set(a) & set(b) for a, b in splits),
        "some work is on neither side": any(set(works) - set(a) - set(b) for a, b in splits),
        "some work is twice on one side": any(len(set(half)) < len(half) for split in splits for half in split),
        "something is no work": any(set(a + b) - set(works) for a, b in splits),
        "same seed, same split": all([*map(set, tried[one, 1])] == [*map(set, tried[one, 2])] for one in seeds),
        "same seed, same order": all(tried[one, 1] == tried[one, 2] for one in seeds),
        "the random numbers of others are left alone": untouched,
        "another seed, another split": another,
        "training is the beginning of the list": all(set(a) == set(works[: len(a)]) for a, _ in splits),
        "validation is the end of the list": all(set(b) == set(works[count - min(len(b), count) :]) for _, b in splits),
        "validation is neighbours of the list": another and max(runs) == 1,
    }


def split_by_sample(works, fraction, seed):
    order = random.Random(seed).sample(works, len(works))
    return order[: round(fraction * len(works))], order[round(fraction * len(works)) :]


def shuffled(works, seed=None):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return [works[place] for place in torch.randperm(len(works), generator=generator).tolist()]


def split_by(works, fraction, seed, size=round, order=shuffled, other=None, skip=0, rest=lambda share: None):
    """Shuffle and cut, with places to go wrong: `order` makes the training half, `other` the validation half."""
    count, first = size(fraction * len(works)), order(works, seed)
    return first[:count], (other(works, seed) if other else first)[count + skip :][: rest((1 - fraction) * len(works))]


def set_order(works):
    return list(set(works))


def without(train, works):
    """A split whose validation half is what is not in `train`."""
    return train, [work for work in works if work not in train]


split_works = Exercise(
    "1.7", "split_works", draw=draw_split_works, right=split_by_sample, call=call_split_works, formula=split_by,
    mistakes={
        "each half has a shuffle of its own, so training works turn up in validation: shuffle once, then cut":
            {"other": lambda works, seed: shuffled(works, seed + 1)},
        "there are two shuffles without a seed: training works turn up in validation; shuffle once, seeded":
            {"order": lambda works, seed: shuffled(works), "other": lambda works, seed: shuffled(works)},
        "validation is cut from the list as it was, so training works turn up in it": {"other": lambda works, seed: works},
        "the same seed splits otherwise the next time, and trains on this time's validation: make a generator with the seed":
            ({"order": lambda works, seed: shuffled(works)}, {"order": lambda works, seed: shuffled([*set(works)], seed)}),
        "in a fresh Python the same works come in another order: a set has another one in each run; keep the works in a list":
            (lambda works, fraction, seed: tuple(f(half) for f, half in zip((set_order, list), split_by(works, fraction, seed))),
             lambda works, fraction, seed: tuple(f(half) for f, half in zip((list, set_order), split_by(works, fraction, seed))),
             lambda works, fraction, seed: tuple(map(set_order, split_by(works, fraction, seed)))),
        "the seed is given to the generator that all share: later random numbers are the same again; use one of your own":
            ({"order": lambda works, seed: (torch.manual_seed(seed), shuffled(works))[1]},
             {"order": lambda works, seed: (np.random.seed(seed), [works[n] for n in np.random.permutation(len(works))])[1]}),
        "nothing is shuffled before the cut: works come in some order, and the last are not like the rest":
            {"order": lambda works, seed: works},
        "nothing is shuffled: the list is only turned, and neighbours stay together":
            {"order": lambda works, seed: works[seed % len(works) :] + works[: seed % len(works)]},
        "the split is the same for every seed: give the seed to the generator": {"order": lambda works, seed: shuffled(works, 0)},
        "the halves are swapped: `fraction` of the works is for training, and training comes first":
            (lambda works, fraction, seed: split_by(works, fraction, seed)[::-1],
             lambda works, fraction, seed: split_by(works, 1 - fraction, seed)),
        "all works are for training, those of validation too: the validation loss would measure memory":
            lambda works, fraction, seed: (shuffled(works, seed), split_by(works, fraction, seed)[1]),
        "the number for training is rounded down; it is round(...)": {"size": int},
        "the number for training is rounded up; it is round(...)": {"size": math.ceil},
        "half a work is rounded up; round(...), which the card asks for, takes the even number": {"size": lambda x: int(x + 0.5)},
        "each half gets one work at least; round(...), which the card asks for, may give it none":
            lambda works, fraction, seed: split_by(works, min(max(fraction, 1 / len(works)), 1 - 1 / len(works)), seed),
        "both sizes are rounded down, so a work is lost: what training does not get is validation's": {"size": int, "rest": int},
        "the work at the cut is in both halves: validation begins where training ends": {"skip": -1},
        "the work at the cut is in neither half: validation begins where training ends": {"skip": 1},
        "works are drawn with replacement, so that some come twice: shuffle once, then cut":
            ({"order": lambda works, seed: random.Random(seed).choices(works, k=len(works))},
             lambda works, fraction, seed: without(random.Random(seed).choices(works, k=round(fraction * len(works))), works)),
        "each work draws a lot of its own, so that the sizes differ from seed to seed; they are fixed":
            lambda works, fraction, seed: without([w for w in works if random.Random(f"{seed} {w}").random() < fraction], works),
        "these are works' places; return the works": lambda works, fraction, seed: split_by(range(len(works)), fraction, seed),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 1.8


def draw_windows(generator):
    yield {"tokens": torch.tensor([7, 3, 8]), "context": 2}
    yield {"tokens": torch.tensor([4, 9]), "context": 1}
    for count, context in ((11, 5), (10, 5), (15, 4), (14, 3), (7, 1), (44, 8)):
        yield {"tokens": torch.randint(1, 100, (count,), generator=generator), "context": context}
    yield {"tokens": torch.randint(30_000, 200_000, (13,), generator=generator), "context": 4}  # of a large vocabulary
    yield {"tokens": torch.randint(1, 100, (901,), generator=generator), "context": 3}  # 300 windows
    for start, step in ((3, 1), (1, 2)):  # a part of another tensor: what stands beside it in memory is not its own
        yield {"tokens": torch.randint(1, 100, (21,), generator=generator)[start::step], "context": 4}


def windows_by_lists(tokens, context):
    starts = [start for start in range(0, len(tokens), context) if start + context < len(tokens)]
    rows = [tokens[start : start + context + 1].tolist() for start in starts]
    return torch.tensor([row[:-1] for row in rows]), torch.tensor([row[1:] for row in rows])


def cut(tokens, context, step=None, start=0, shift=1, after=lambda inputs, targets: (inputs, targets)):
    """Windows cut one by one, with places to go wrong: `step` is from one to the next."""
    starts = range(start, len(tokens) - context - max(shift, 0) + 1, step or context)
    return after(*(torch.stack([tokens[one + more : one + more + context] for one in starts]) for more in (0, shift)))


def rolled(tokens, context, shift=-1, left=0):
    count = (len(tokens) - left) // context * context
    return tokens[:count].view(-1, context), tokens.roll(shift)[:count].view(-1, context)


def filled(tokens, context, value=0):
    padded = F.pad(tokens, (0, -(len(tokens) - 1) % context), value=value)
    return padded[:-1].view(-1, context), padded[1:].view(-1, context)


def too_many(tokens, context, cut=torch.Tensor.view):
    """N // context windows, by a `cut` that the last one's targets may be too few for."""
    W = len(tokens) // context
    return tuple(cut(tokens[start : start + W * context], W, context) for start in (0, 1))


def in_memory(tokens, context, start=0):
    """`tokens` taken for numbers that stand one behind the other in memory, the first at place `start`."""
    W = (len(tokens) - 1) // context
    return tuple(tokens.as_strided((W, context), (context, 1), start + shift) for shift in (0, 1))


def windows_picture(arguments, got, expected):
    from rlhf_lib import plots

    if not all(part.numel() for part in got):
        return None
    return plots.side_by_side(torch.cat(list(got), dim=1), torch.cat(list(expected), dim=1), "inputs, and targets right of them")


windows = Exercise(
    "1.8", "windows", draw=draw_windows, right=windows_by_lists, formula=cut, picture=windows_picture,
    call=but_no(lambda pair: isinstance(pair, tuple) and getattr(pair[0], "dtype", 0) == torch.float32, "tokens are int"),
    mistakes={
        "the windows overlap: each begins one token after the last; begin the next where the last one ends": {"step": 1},
        "blocks of context + 1 tokens share none: the first of each block is never a target; step by context":
            lambda tokens, context: cut(tokens, context, step=context + 1),
        "targets and inputs are the same: the target of a position is the token after it":
            ({"shift": 0}, {"after": lambda x, y: (x, x)}, {"after": lambda x, y: (y, y)}),
        "inputs and targets have changed places: inputs first, and the target is the token after": {"after": lambda x, y: (y, x)},
        "the targets are shifted the wrong way: the target is the token after, not the one before":
            tuple(functools.partial(rolled, shift=1, left=left) for left in (0, 1)),
        "the targets are two tokens further on; the target is the very next token":
            ({"shift": 2}, functools.partial(rolled, shift=-2), functools.partial(rolled, shift=-2, left=1)),
        "the last target is the text's first token: rolling wraps round; the last token has no target": rolled,
        "each window's last target is its own first token: shift, then cut": {"after": lambda x, y: (x, x.roll(-1, dims=1))},
        "each window's last target is filled up; it is the first token of the next window":
            tuple({"after": lambda x, y, value=value: (x, F.pad(y[:, :-1], (0, 1), value=value))} for value in (0, -1, -100)),
        "the rest of the text is a window too, filled up; leave out what does not fill a window":
            tuple(functools.partial(filled, value=value) for value in (0, -1, -100)),
        "the beginning of the text is dropped, not the end: the first window begins at the first token":
            lambda tokens, context: cut(tokens, context, start=(len(tokens) - 1) % context),
        "these are N // context windows, and the last one may have no target: W = (N - 1) // context":
            (too_many, functools.partial(too_many, cut=lambda part, W, context: part.view(-1, context)),
             functools.partial(too_many, cut=lambda part, W, size: torch.stack([part[n * size :][:size] for n in range(W)]))),
        "the last whole window is missing: (N - 1) // context fit": ({"after": lambda x, y: (x[:-1], y[:-1])},
             lambda tokens, context: tuple(part[:-1] for part in rolled(tokens, context))),
        "only the first window is here: go on to the end of the text": {"after": lambda x, y: (x[:1], y[:1])},
        "the targets begin at the next window; a target is the very next token": {"after": lambda x, y: (x[:-1], x[1:])},
        "a window steps through the text, down a column; it is a run of neighbours, along a row: view(W, context)":
            {"after": lambda *pair: tuple(part.flatten().view(part.shape[1], part.shape[0]).T for part in pair)},
        "the targets are the inputs plus 1: a target is the token that stands after it in the text":
            {"after": lambda x, y: (x, x + 1)},
        "as_strided reads the memory, whatever tokens stand there: `tokens` may be a part of another tensor; slice it, then view":
            (in_memory, lambda tokens, context: in_memory(tokens, context, tokens.storage_offset())),
        "these are the tokens' places; return the tokens": lambda tokens, context: cut(torch.arange(len(tokens)), context),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 1.9


def draw_bits_per_character(generator):
    yield {"losses": torch.tensor([3.0]) * LN2, "text": "O!"}
    yield {"losses": torch.tensor([3.0, 1.0, 2.5]) * LN2, "text": " Né\n"}
    for count in (1, 5, 12):
        text = "".join(pick(generator, WORDS) + pick(generator, (" ", "\n", ", ")) for _ in range(count)) + "cafe\u0301\t\r\n"
        yield {"losses": 0.01 + 4 * torch.rand(count, generator=generator), "text": text}
    yield {"losses": torch.tensor([0.5, 120.0]), "text": "Alas"}  # exp(120) is infinite in float32
    yield {"losses": 4.0 + torch.arange(250) % 3, "text": "Words, " * 160}  # exp(-1249) is 0, in float64 too


def by_code_length(losses, text):
    """The bits of a code for the text with these probabilities: the logarithm, to base 2, of their product."""
    return -sum(math.log2(math.exp(-loss)) for loss in losses.tolist()) / sum(1 for _ in text)


def bits(losses, text, total=torch.sum, count=len, unit=LN2, after=lambda bits: bits):
    return after(total(losses) / unit / count(text))


bits_per_character = Exercise(
    "1.9", "bits_per_character", draw=draw_bits_per_character, right=by_code_length, formula=bits,
    mistakes={
        "these are nats; a bit is ln 2 nats, so divide by ln 2": {"unit": 1.0},
        "this is multiplied by ln 2; to go from nats to bits, divide": {"unit": 1 / LN2},
        "ln 2 is rounded; take math.log(2)": tuple({"unit": unit} for unit in (0.69, 0.693, 0.6931, 0.7)),
        "this is divided by ln 10; a bit is ln 2 nats": {"unit": math.log(10)},
        "these are bits per token: longer ones look worse; count characters": {"total": torch.mean, "count": lambda text: 1},
        "these are nats per token, what cross-entropy gives: sum them, divide by characters and by ln 2":
            {"total": torch.mean, "count": lambda text: 1, "unit": 1.0},
        "these are the bits of the whole text: divide by its characters": {"count": lambda text: 1},
        "these are the nats of the whole text: divide by its characters and by ln 2": {"count": lambda text: 1, "unit": 1.0},
        "the mean over the tokens is divided by all characters: take the sum of the losses": {"total": torch.mean},
        "the mean is multiplied by the characters; divide the sum": lambda losses, text: losses.mean() / LN2 * len(text),
        "tokens and characters have changed places: the mean loss is multiplied by characters per token":
            lambda losses, text: losses.mean() / LN2 * len(text) / len(losses),
        "this is the perplexity per token; bits per character has no exponential in it":
            {"total": torch.mean, "count": lambda text: 1, "unit": 1.0, "after": torch.exp},
        "this is the perplexity per character; there is no exponential in bits": ({"after": torch.exp2}, {"after": torch.exp}),
        "this is a logarithm of the losses, which are logarithms: divide by ln 2 to get bits":
            ({"after": torch.log2, "unit": 1.0}, {"total": lambda losses: losses.sum().log2(), "unit": 1.0},
             {"total": lambda losses: losses.log2().sum(), "unit": 1.0}),
        "the losses are taken for probabilities; they are -ln p already": {"total": lambda losses: -losses.log().sum()},
        "this is divided by bytes: a letter such as é has two; count characters": {"count": lambda text: len(text.encode())},
        "spaces or line breaks are left out of the count: they are characters that the model has to predict":
            ({"count": lambda text: len("".join(text.split()))}, {"count": lambda text: len(text.replace(" ", ""))},
             {"count": lambda text: len(text.replace("\n", ""))}, {"count": lambda text: len("".join(text.splitlines()))}),
        "a letter and an accent behind it are counted as one character; `len` counts two":
            {"count": lambda text: len(unicodedata.normalize("NFC", text))},
        "spaces and line breaks at the ends are stripped before counting: they are characters too":
            ({"count": lambda text: len(text.strip())}, {"count": lambda text: len(text.rstrip())}),
        "only letters and digits are counted: all characters count":
            ({"count": lambda text: sum(map(str.isalnum, text))}, {"count": lambda text: sum(map(str.isalpha, text))}),
        "each different character is counted once: all characters count": {"count": lambda text: len(set(text))},
        "this is divided by the number of words; count characters, len(text)": {"count": lambda text: len(text.split())},
        "one figure for each token has come out: sum the losses": {"total": lambda losses: losses},
        "the last token's loss is left out: each token of the text has one": {"total": lambda losses: losses[:-1].sum()},
        "this is rounded: divide by / and leave the number as it is":
            ({"after": torch.floor}, {"after": torch.round}, {"after": torch.ceil},
             {"total": lambda x: (x.sum() / LN2).floor() * LN2},
             *({"after": lambda bits, n=n: bits.round(decimals=n)} for n in (1, 2, 3))),
        "exp of a large loss is infinite, and of minus a large loss 0, and so is their logarithm lost: divide by ln 2":
            {"total": lambda x: x.exp().log().sum()},
        "one character is left out of the count, or one is too many: divide by len(text)":
            tuple({"count": lambda text, more=more: len(text) + more} for more in (-1, 1)),
        "this is upside down, characters per bit": {"after": lambda bits: 1 / bits},
    },
)  # fmt: skip
