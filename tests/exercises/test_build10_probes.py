"""The first three probes of Build it 10.10: what they draw, what they ask of a model, and where their verdicts turn."""

import pytest
import torch
from torch import nn

from rlhf_lib.exercises import build10_probes as probes


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Sum(nn.Module):
    """A reward that is the sum of the real tokens."""

    def forward(self, tokens, mask):
        return (tokens * mask).sum(1).float()


def test_drawn_comparisons_are_two_halves_of_token_lists_whose_answers_differ_in_length():
    given = probes.compared(generator(3), count=20, held_out=7)
    assert len(given["learn"]) == 20 and len(given["held_out"]) == 7 and given == probes.compared(generator(3), 20, 7)
    parts = [part for pair in given["learn"] + given["held_out"] for part in pair]
    assert all(isinstance(token, int) and 0 <= token < 40 for part in parts for token in part)
    assert {len(part) for part in parts} >= {1, 8} and any(len(c) != len(r) for _, c, r in given["learn"])


def test_rows_are_prompt_and_answer_all_chosen_ones_first():
    pairs = [[[1], [2, 3], [4]], [[5, 6], [7], [8]]]
    assert probes.answers(pairs) == [[1, 2, 3], [5, 6, 7], [1, 4], [5, 6, 8]]
    assert probes.answers(probes.swapped(pairs)) == [[1, 4], [5, 6, 8], [1, 2, 3], [5, 6, 7]]


def test_the_accuracy_is_counted_with_equal_rewards_as_half():
    pairs = [[[1], [5], [2]], [[9], [1], [3]], [[4], [2, 2], [4]], [[0], [7], [6]]]  # right, wrong, equal, right
    assert probes.counted(Sum(), pairs) == (1 + 0 + 0.5 + 1) / 4
    assert probes.counted(Sum(), probes.swapped(pairs)) == 1 - 2.5 / 4


def test_what_is_no_model_and_accuracy_is_refused():
    model = Sum()
    assert probes.both((model, 0.5)) == (model, 0.5) == probes.both([model, 0.5])
    with pytest.raises(TypeError, match="must be a float, and is a Tensor"):
        probes.both((model, torch.tensor(0.25)))
    for result in (model, (model,), None):
        with pytest.raises(TypeError, match="must return two things"):
            probes.both(result)


def test_a_shape_an_accuracy_and_dropout_are_judged():
    learn = [[[1], [2], [3]]] * 2
    z = torch.arange(4.0)
    right = {"first": z, "again": z, "one": z[:1], "share": 0.5}
    assert probes.judge_shape(right, learn) == ""
    assert "between 0 and 1" in probes.judge_shape({**right, "share": 50.0}, learn)
    assert "dropout is still on" in probes.judge_shape({**right, "again": z + 0.1}, learn)
    assert "(4, 1)" in probes.judge_shape({**right, "first": z[:, None]}, learn)


def test_padding_is_judged_by_the_largest_change_and_zeros_are_told_apart():
    given = probes.draw_padding(generator(1))
    assert given["behind"][-1] == [0] * 6 and 0 in given["learn"][2][1] and 0 in given["learn"][3][0]
    z = torch.arange(2.0 * len(given["learn"]))
    right = {"alone": z, "together": z, "padded": [z] * 4}
    ask = {"learn": given["learn"], "behind": given["behind"]}
    assert probes.judge_padding(right, **ask) == ""
    assert "behind it:" in probes.judge_padding({**right, "padded": [z + 1] * 4}, **ask)
    assert "with zeros there it does not" in probes.judge_padding({**right, "padded": [z + 1] * 3 + [z]}, **ask)
    assert "batch that it is in" in probes.judge_padding({**right, "together": z + 1}, **ask)
    flat = torch.zeros_like(z)
    assert "learns nothing" in probes.judge_padding({"alone": flat, "together": flat, "padded": [flat] * 4}, **ask)


def test_the_last_token_decides_against_all_others():
    given = probes.draw_last(generator(2))
    good, bad = given["good"], given["bad"]
    for prompt, chosen, rejected in given["learn"]:
        assert chosen[-1] == good and {*chosen[:-1]} == {*prompt} == {bad}
        assert rejected[-1] == bad and {*rejected[:-1]} == {good}
    starts = given["starts"]
    level = {"good": torch.ones(len(starts)), "bad": -torch.ones(len(starts))}
    assert probes.judge_last(level, starts) == ""
    assert "made of other positions" in probes.judge_last({**level, "good": torch.arange(float(len(starts)))}, starts)
    assert "decides who wins" in probes.judge_last({"good": level["bad"], "bad": level["good"]}, starts)


def test_odds_are_judged_of_a_pair_and_of_a_chain():
    given = probes.draw_odds(generator(3))
    assert len(given["learn"]) == 25 and len({*given["answers"]}) == 5
    four = torch.tensor(4.0).log().item()
    for (won, first, second), word in (
        ((four, four, four), ""), ((four, 0.47, 0.92), "0.47 and 0.92"), ((2 * four, four, four), "judged by itself"),
        ((1.0, 1.0, 1.0), "hinge"), ((-four, -four, -four), "exchanged"),
    ):  # fmt: skip
        sentence = probes.judge_odds(torch.tensor([won, 0.0, first + second, second, 0.0]))
        assert word in sentence and bool(word) == bool(sentence)
