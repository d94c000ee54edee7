"""The first four probes of Build it 6.10: what they draw, what they ask of a model, and where their verdicts turn."""

import copy
import math

import pytest
import torch
from torch import nn

from rlhf_lib.exercises import build06_probes as probes
from rlhf_lib.models.layers import pad


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def floats(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)


class Reader(nn.Module):
    """The first coordinate of the body's state at the last real token, of a copy of the body unless it is shared."""

    def __init__(self, body, share=False):
        super().__init__()
        self.body = body if share else copy.deepcopy(body)

    def forward(self, tokens, mask):
        hidden = self.body.hidden(tokens, mask)  # (B, T, C)
        return torch.stack([row[real.sum() - 1, 0] for row, real in zip(hidden, mask)])


# ----------------------------------------------------------------------------------------- bodies and rows


def test_a_small_gpt_is_its_seed_alone_and_what_stands_before_a_token_matters():
    one = probes.small_gpt(3)
    torch.manual_seed(99)
    again, other = probes.small_gpt(3), probes.small_gpt(4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters()))
    assert not torch.equal(one.embedding.weight, other.embedding.weight)
    assert not one.training and one.config.vocab_size == 40
    assert all(0.2 < weight.std() < 0.4 for weight in one.parameters() if weight.dim() == 2)
    assert probes.small_gpt(3, width=8, dropout=0.3).config.dropout == 0.3
    first, second = one.hidden(torch.tensor([[1, 7], [2, 7]]))[:, -1]
    assert (first - second).abs().max() > 0.05


def test_words_reads_every_token_by_itself_and_tells_what_it_reads():
    told = []
    words = probes.Words(8, 5, seen=lambda body, tokens: told.append((body, tokens)))
    tokens = torch.tensor([[3, 4, 3], [9, 3, 0]])
    hidden = words.hidden(tokens, tokens > 0)
    assert hidden.shape == (2, 3, 8) and told[0][0] is words and told[0][1] is tokens and len(told) == 1
    assert torch.equal(hidden[0, 0], hidden[0, 2]) and torch.equal(hidden[0, 0], hidden[1, 1])
    expected = torch.randn(40, 8, generator=generator(5))
    assert torch.equal(hidden, expected[tokens])


def test_scores_are_padded_on_the_right_in_batches_and_without_gradients():
    seen = []

    def total(tokens, mask):
        seen.append((tokens.tolist(), mask.tolist(), torch.is_grad_enabled()))
        return (tokens * mask).sum(1).float()

    rows = [[1, 2, 3], [4], [0, 5]]
    assert probes.scores(total, rows, batch=2).tolist() == [6, 4, 5]
    assert seen == [
        ([[1, 2, 3], [4, 0, 0]], [[True, True, True], [True, False, False]], False),
        ([[0, 5]], [[True, True]], False),
    ]
    seen.clear()
    assert probes.alone(total, rows).tolist() == [6, 4, 5]
    assert [tokens for tokens, _, _ in seen] == [[[1, 2, 3]], [[4]], [[0, 5]]]


def test_drawn_rows_have_the_lengths_asked_for_and_the_longest_first():
    rows = probes.drawn_rows(generator(), 200, shortest=2, longest=5)
    assert len(rows) == 200 and len(rows[0]) == 5 and len(rows[1]) == 2
    assert {len(row) for row in rows} == {2, 3, 4, 5}
    assert {token for row in rows for token in row} == set(range(40))
    assert rows == probes.drawn_rows(generator(), 200, shortest=2, longest=5)


def test_labels_are_drawn_from_all_three():
    given = probes.labelled(generator(), 100, longest=3)
    assert set(given) == {"rows", "targets", "weights"} and set(given["targets"]) == {0.0, 0.5, 1.0}
    assert len(given["rows"]) == len(given["targets"]) == 100 and 0 <= given["weights"] < 10**6
    assert {probes.whole(generator(seed), 3, 5) for seed in range(20)} == {3, 4}


# ----------------------------------------------------------------------------------------- the shape of scores


@pytest.mark.parametrize("z, word", [
    ([0.0, 1.0, 2.0], "tensor of floats"),
    (None, "tensor of floats"),
    (torch.tensor([0, 1, 2]), "tensor of floats"),
    (torch.zeros(3, 1), "last dimension away"),
    (torch.zeros(3, 7), "at every position"),
    (torch.zeros(3, 1, 1), "at every position"),
    (torch.zeros(()), "3 rows were given and the scores have the shape ()"),
    (torch.zeros(1, 3), "the shape (1, 3); it should be (3,)"),
    (torch.zeros(4), "the shape (4,); it should be (3,)"),
    (floats(0, math.nan, 1), "not finite"),
    (floats(0, 1, -math.inf), "not finite"),
])  # fmt: skip
def test_scores_of_another_form_are_told_apart(z, word):
    assert word in probes.scores_fault(z, 3)


def test_scores_of_the_right_form_pass_in_any_precision():
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert probes.scores_fault(torch.zeros(3, dtype=dtype), 3) == ""
    assert probes.scores_fault(torch.zeros(1), 1) == ""
    assert "last dimension away" in probes.scores_fault(torch.zeros(1, 1), 1)


def test_two_answers_may_be_a_hundred_thousandth_apart_and_no_more():
    def verdict(apart, one=1):
        return probes.judge_shape({"first": floats(1, 2), "again": floats(1, 2 + apart), "one": torch.zeros(one)}, [[1], [2]])

    assert verdict(0.0) == verdict(8e-6) == ""
    assert "dropout is still on" in verdict(1.3e-5) and "0.50 apart" in verdict(-0.5)
    assert "1 rows were given" in verdict(0.0, one=2)


def test_the_shape_is_asked_for_of_a_model_trained_with_dropout():
    given = probes.labelled(generator(), 6)
    taken = []

    def built(gpt, rows, targets, **settings):
        taken.append((gpt.config.dropout, rows, targets, settings))
        return Reader(gpt)

    output = probes.train_and_ask_twice(built, **given)
    assert taken == [(0.3, given["rows"], given["targets"], {"epochs": 2, "batch": 4, "lr": 1e-3, "seed": 3})]
    assert output["first"].shape == (6,) and output["one"].shape == (1,)
    assert probes.judge_shape(output, **given) == ""
    asleep = probes.train_and_ask_twice(lambda gpt, *_, **__: Reader(gpt).train(), **given)
    assert "dropout is still on" in probes.judge_shape(asleep, **given)


# ----------------------------------------------------------------------------------------- padding


def test_rows_for_the_padding_hold_real_zeros_and_what_stands_behind_them():
    for seed in range(5):
        given = probes.draw_padding(generator(seed))
        assert given["rows"][2][-1] == 0 and given["rows"][3][0] == 0 and min(map(len, given["rows"])) == 2
        assert [len(extra) for extra in given["behind"]] == [1, 4, 11, 6] and given["behind"][3] == [0] * 6
        assert max(map(len, given["rows"])) + 11 <= 32  # the context


def test_each_row_is_read_alone_together_and_with_tokens_behind_it():
    rows, behind = [[1, 2, 3], [4, 5]], [[7], [8, 9]]
    given = {"rows": rows, "targets": [0.0, 1.0], "weights": 0, "behind": behind}
    sizes = probes.train_and_pad(lambda *_, **__: lambda tokens, mask: mask.sum(1) + 100.0 * tokens.shape[1], **given)
    assert sizes["alone"].tolist() == [303, 202] and sizes["together"].tolist() == [303, 302]
    assert [found.tolist() for found in sizes["padded"]] == [[403, 302], [503, 402]]
    masked = probes.train_and_pad(lambda *_, **__: lambda tokens, mask: (tokens * ~mask).sum(1).float(), **given)
    assert masked["alone"].tolist() == [0, 0] and [found.tolist() for found in masked["padded"]] == [[7, 7], [17, 17]]


@pytest.mark.parametrize("changes, word", [
    ({}, ""),
    ({"padded": [floats(0, 1, 2 + 8e-6)] * 2}, ""),
    ({"padded": [floats(0, 1, 2.5), floats(0, 1, 2.25)]}, "changes by 0.500 with 1 padded positions behind it: in another batch"),
    ({"padded": [floats(0, 1, 2), floats(0, 1, 2.25)]}, "changes by 0.250 with 6 padded"),
    ({"padded": [floats(0, 1, 2.5), floats(0, 1, 2)]}, "with zeros there it does not"),
    ({"padded": [floats(0, 1, math.nan), floats(0, 1, 2)]}, "changes by nan"),
    ({"together": floats(0.5, 1, 2)}, "changes by 0.500 with the batch"),
    ({"together": floats(math.nan, 1, 2)}, "changes by nan with the batch"),
    ({"alone": floats(2, 2, 2.0005)}, "learns nothing"),
    ({"alone": floats(0, 1, math.inf)}, "not finite"),
])  # fmt: skip
def test_what_padding_changes_is_found(changes, word):
    output = {"alone": floats(0, 1, 2), "together": floats(0, 1, 2), "padded": [floats(0, 1, 2)] * 2, **changes}
    found = probes.judge_padding(output, rows=[[1], [2], [3]], behind=[[5], [0] * 6], targets=None)
    assert word in found and bool(found) == bool(word)


def test_a_reader_of_the_last_real_token_passes_and_one_of_the_last_position_does_not():
    given = probes.draw_padding(generator(4))
    right = probes.train_and_pad(lambda gpt, *_, **__: Reader(gpt), **given)
    assert probes.judge_padding(right, **given) == ""
    wrong = probes.train_and_pad(lambda gpt, *_, **__: lambda tokens, mask: gpt.hidden(tokens, mask)[:, -1, 0], **given)
    assert "in another batch" in probes.judge_padding(wrong, **given)


# ----------------------------------------------------------------------------------------- the last real token


@pytest.mark.parametrize("seed", range(3))
def test_the_last_token_says_the_label_and_all_others_the_opposite(seed):
    given = probes.draw_last(generator(seed))
    good, bad = given["good"], given["bad"]
    assert good != bad and given["targets"] == [0.0, 1.0] * 16
    for row, target in zip(given["rows"], given["targets"]):
        assert 2 <= len(row) <= 7
        assert row[-1] == (good if target else bad) and set(row[:-1]) == {bad if target else good}
    assert given["starts"][:4] == [[], [good], [bad], [bad, bad, good]]
    assert [len(start) for start in given["starts"][4:]] == [5, 9]
    assert not {good, bad} & {*given["starts"][4], *given["starts"][5]}


def test_the_starts_are_asked_with_each_of_the_two_tokens_behind_them():
    given = probes.draw_last(generator())
    read = []

    def built(body, rows, targets, **settings):
        assert isinstance(body, probes.Words) and rows == given["rows"] and targets == given["targets"]
        return lambda tokens, mask: read.append(tokens[mask].tolist()) or tokens[torch.arange(6), mask.sum(1) - 1].float()

    output = probes.train_on_last(built, **given)
    assert output["good"].tolist() == [given["good"]] * 6 and output["bad"].tolist() == [given["bad"]] * 6
    assert read == [[token for start in given["starts"] for token in [*start, given[last]]] for last in ("good", "bad")]


@pytest.mark.parametrize("good, bad, word", [
    (floats(2, 2, 2), floats(-1, -1, -1), ""),
    (floats(2, 2, 2 + 8e-6), floats(-1, -1, -1), ""),
    (floats(2, 2, 2), floats(-1, -1, -1.25), "0.25 apart"),
    (floats(2, 2, 2), floats(1, 1, 1), "3 of 6"),
    (floats(-2, -2, -2), floats(1, 1, 1), "every passage"),
    (floats(0.9, 0.9, 0.9), floats(0.1, 0.1, 0.1), "return log-odds"),
    (floats(1.2, 1.2, 1.2), floats(-0.2, -0.2, -0.2), ""),
    (floats(0, 0, 0), floats(-1, -1, -1), "3 of 6"),
    (floats(2, 2, 2), floats(0, 0, 0), "3 of 6"),
    (floats(2, 2, 2), floats(-1, -1, math.nan), "not finite"),
    (torch.zeros(3, 1), floats(-1, -1, -1), "last dimension away"),
])  # fmt: skip
def test_the_last_token_alone_decides_and_on_the_right_side_of_zero(good, bad, word):
    found = probes.judge_last({"good": good, "bad": bad}, starts=[[], [1], [2, 3]], rows=None)
    assert word in found and bool(found) == bool(word)


# ----------------------------------------------------------------------------------------- the GPT that came in


def builder(spoil=lambda gpt, rows, targets: None, share=False):
    """Trains nothing, returns a Reader, and does one thing more to what it was given."""

    def built(gpt, rows, targets, **settings):
        model = Reader(gpt, share).eval() if not share else Reader(gpt, share)
        spoil(gpt, rows, targets)
        return model

    return built


def nudge(gpt, rows, targets):
    gpt.blocks[1].up.weight.data[0, 0] += 1e-4


def leave_gradients(gpt, rows, targets):
    gpt.hidden(*pad(rows[:2], "right")).sum().backward()


@pytest.mark.parametrize("spoil, word", [
    (lambda *_: None, ""),
    (nudge, "Train a copy"),
    (lambda gpt, *_: gpt.requires_grad_(False), "requires_grad"),
    (lambda gpt, *_: gpt.requires_grad_(True), "requires_grad"),
    (leave_gradients, "has gradients"),
    (lambda gpt, *_: gpt.blocks[0].eval(), "was in training mode"),
    (lambda gpt, *_: gpt.blocks[0].train(), "was in evaluation mode"),
    (lambda gpt, rows, targets: rows.reverse(), "`rows` or `targets`"),
    (lambda gpt, rows, targets: rows[0].append(0), "`rows` or `targets`"),
    (lambda gpt, rows, targets: targets.pop(), "`rows` or `targets`"),
], ids=["nothing", "weights", "frozen", "freed", "gradients", "mode", "woken", "order", "a row", "targets"])  # fmt: skip
def test_whatever_is_done_to_the_gpt_or_the_lists_is_found(spoil, word):
    given = probes.labelled(generator(), 8)
    found = probes.judge_beside(probes.train_beside(builder(spoil), **given), **given)
    assert word in found and bool(found) == bool(word)


def test_a_body_that_is_shared_is_found_though_nothing_has_changed_it():
    given = probes.labelled(generator(), 8)
    output = probes.train_beside(builder(share=True), **given)
    assert output["weights"] == 0 and "share weights" in probes.judge_beside(output, **given)


def test_the_worst_mistake_is_said_first():
    fine = {"weights": 0.0, "frozen": False, "gradients": False, "mode": False, "woken": False, "lists": False}
    output = {**fine, "scores": floats(1, 2), "later": floats(1, 2)}
    assert probes.judge_beside(output, rows=None) == ""
    for name, value, word in (
        ("lists", True, "the lists"), ("woken", True, "in evaluation mode and"),
        ("mode", True, "mode"), ("gradients", True, "has gradients"), ("frozen", True, "freeze"),
        ("later", floats(1, 1.5), "by 0.50"), ("weights", 0.1, "others after the training"),
    ):  # fmt: skip
        output[name] = value
        assert word in probes.judge_beside(output, rows=None)
