"""Chapter 01, splits, windows and bits: correct answers written differently, and what is special about the checks."""

import heapq
import math
import random

import numpy as np
import pytest
import torch

from rlhf_lib.exercises import EXERCISES, draw, verdict


def split_works(works, fraction, seed):
    order = list(works)
    random.Random(f"split {seed}").shuffle(order)
    return order[: round(fraction * len(order))], order[round(fraction * len(order)) :]


def split_works_by_lot(works, fraction, seed):
    """Each work draws a number; the smallest are for training, in the list's order."""
    numbers = torch.rand(len(works), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = set(heapq.nsmallest(round(fraction * len(works)), range(len(works)), key=numbers.__getitem__))
    return [w for i, w in enumerate(works) if i in chosen], [w for i, w in enumerate(works) if i not in chosen]


def windows(tokens, context):
    rows = tokens.unfold(0, context + 1, context)  # (N, context + 1)
    return rows[:, :-1], rows[:, 1:]


def windows_by_reshape(tokens, context):
    count = (len(tokens) - 1) // context
    return tokens[: count * context].reshape(count, context), tokens[1 : count * context + 1].reshape(count, context)


def bits_per_character(losses, text):
    return float(losses.double().mean()) * (len(losses) / len(text)) * math.log2(math.e)


ALTERNATIVES = [
    ("split_works", split_works),
    ("split_works", split_works_by_lot),
    ("windows", windows),
    ("windows", windows_by_reshape),
    ("bits_per_character", bits_per_character),
]


@pytest.mark.parametrize("name, function", ALTERNATIVES)
@pytest.mark.parametrize("seed", range(3))
def test_every_correct_answer_passes(name, function, seed):
    found = verdict(name, function, seed)
    assert found.passed, found.message


def test_the_published_leak_has_its_name_whichever_way_it_is_drawn():
    def leaks(works, fraction, seed):
        first, second = list(works), list(works)
        random.shuffle(first)
        random.shuffle(second)
        size = round(fraction * len(works))
        return first[:size], second[size:]

    found = verdict("split_works", leaks)
    assert "training works turn up in validation" in found.message


def test_the_rolled_targets_fail_on_the_shortest_text_that_shows_them():
    """Rolling is right unless the text fills its windows to the last token: 3 tokens in windows of 2 do not show it."""

    def rolled(tokens, context):
        count = len(tokens) // context * context
        return tokens[:count].view(-1, context), tokens.roll(-1)[:count].view(-1, context)

    found = verdict("windows", rolled)
    assert "wraps round" in found.mistake
    assert (len(found.arguments["tokens"]), found.arguments["context"]) == (2, 1)


@pytest.mark.parametrize(
    "cut",
    [
        lambda part, W, context: part.view(W, context),
        lambda part, W, context: part.reshape(-1, context),
        lambda part, W, context: torch.stack([part[row * context : (row + 1) * context] for row in range(W)]),
    ],
)
def test_a_window_too_many_has_its_name_though_it_raises(cut):
    def cut_too_far(tokens, context):
        W = len(tokens) // context
        return tuple(cut(tokens[start : start + W * context], W, context) for start in (0, 1))

    assert "W = (N - 1) // context" in verdict("windows", cut_too_far).mistake


def test_tokens_may_be_a_part_of_another_tensor():
    drawn = [one["tokens"] for one in draw("windows")]
    assert any(one.storage_offset() for one in drawn) and any(one.stride() != (1,) for one in drawn)


def test_a_coin_for_each_work_is_told_that_the_number_is_fixed():
    def by_coins(works, fraction, seed):
        coin = random.Random(seed)
        heads = [coin.random() < fraction for _ in works]
        return [w for w, head in zip(works, heads) if head], [w for w, head in zip(works, heads) if not head]

    assert "the number for training varies; it is always round(fraction * len(works))" in verdict("split_works", by_coins).message


def test_bits_per_character_of_a_coin_for_every_letter_is_one():
    assert EXERCISES["bits_per_character"].right(torch.full((5,), math.log(2)), "heads") == pytest.approx(1.0)


def test_the_order_of_a_set_is_no_shuffle_since_it_is_another_in_every_run():
    def from_a_set(works, fraction, seed):
        order = list(set(works))
        random.Random(seed).shuffle(order)
        return order[: round(fraction * len(works))], order[round(fraction * len(works)) :]

    assert "the next time" in verdict("split_works", from_a_set).mistake

    def with_a_set(works, fraction, seed):  # to look up in a set does no harm
        train, _ = split_works(works, fraction, seed)
        return train, [work for work in works if work not in set(train)]

    assert verdict("split_works", with_a_set).passed


def test_numpys_generator_is_one_that_all_share():
    def seeded(works, fraction, seed):
        np.random.seed(seed)
        order = [works[place] for place in np.random.permutation(len(works))]
        return order[: round(fraction * len(works))], order[round(fraction * len(works)) :]

    assert "the generator that all share" in verdict("split_works", seeded).mistake

    def of_its_own(works, fraction, seed):
        order = [works[place] for place in np.random.default_rng(seed).permutation(len(works))]
        return order[: round(fraction * len(works))], order[round(fraction * len(works)) :]

    assert verdict("split_works", of_its_own).passed


def test_half_a_work_goes_where_round_lets_it():
    """Of 9 works a half is 4.5: round gives 4, and int(4.5 + 0.5) gives 5."""

    def half_up(works, fraction, seed):
        order = random.Random(seed).sample(works, len(works))
        return order[: int(fraction * len(works) + 0.5)], order[int(fraction * len(works) + 0.5) :]

    assert verdict("split_works", half_up).mistake.startswith("half a work is rounded up")


@pytest.mark.parametrize(
    "function, said",
    [
        (lambda losses, text: losses.exp().log2().sum() / len(text), "exp of a large loss is infinite"),
        (lambda losses, text: round(losses.sum().item() / math.log(2) / len(text), 2), "this is rounded"),
        (lambda losses, text: losses.sum() / math.log(2) / (len(text) - 1), "one character is left out"),
        (lambda losses, text: str((losses.sum() / math.log(2) / len(text)).item()), "return a number"),
    ],
)
def test_what_happens_to_the_bits_has_its_name(function, said):
    assert said in verdict("bits_per_character", function).message
