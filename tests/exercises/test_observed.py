"""Models that take down every call: their numbers by hand, what counts as a step, and where a row stands in a text."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises.observed import (
    VOCABULARY,
    Constant,
    Observed,
    Past,
    Stopped,
    draw_text,
    path_of,
    run,
    weights_of,
    where,
)  # fmt: skip


class Line(nn.Module):
    """Logits (w0 x, w1 x) for a token x: two weights whose gradient is known."""

    def __init__(self, *weights):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weights))

    def forward(self, tokens):
        return tokens[..., None] * self.weight


def descend(model, tokens, wanted, lr=1.0):
    """One step of plain descent on the sum of logits times `wanted`."""
    (model(tokens) * wanted).sum().backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight -= lr * weight.grad
            weight.grad = None


# ----------------------------------------------------------------------------------------- what is taken down


def test_a_step_is_a_call_whose_logits_got_a_gradient():
    model, tokens = Observed(Line(1.0, 2.0)), torch.tensor([[1, 3]])
    with torch.no_grad():
        model.eval()(tokens)
    model.train()
    model(tokens)  # looked at, and thrown away
    descend(model, tokens, torch.tensor([1.0, 0.0]))
    descend(model, tokens, torch.tensor([0.0, 2.0]))
    assert [call["step"] for call in model.calls] == [0, 0, 1, 2] and model.taken == 2
    assert [call["training"] for call in model.calls] == [False, True, True, True]
    assert [call["graph"] for call in model.calls] == [False, True, True, True]
    assert model.steps() == model.calls[2:]
    # the gradient of w0 is 1 + 3 = 4, then that of w1 is 2 * 4 = 8
    assert path_of(model).tolist() == [[1, 2], [-3, 2], [-3, -6]]
    assert model.steps()[1]["logits"].tolist() == [[[-3, 2], [-9, 6]]]
    assert not model.steps()[1]["logits"].requires_grad


def test_what_was_taken_down_does_not_change_with_what_comes_later():
    model, tokens = Observed(Line(1.0, 2.0)), torch.tensor([[1, 3]])
    model(tokens)
    tokens.zero_()
    model.inner.weight.data.fill_(9.0)
    call = model.calls[0]
    assert call["inputs"].tolist() == [[1, 3]] and call["weights"].tolist() == [1, 2]
    assert call["logits"].tolist() == [[[1, 2], [3, 6]]]


def test_the_gradient_of_each_step_is_stretched_by_its_own_number():
    model, tokens = Observed(Line(0.0, 0.0), stretch=lambda step: [10.0, -1.0][step - 1]), torch.tensor([[1, 3]])
    descend(model, tokens, torch.tensor([1.0, 0.5]))
    descend(model, tokens, torch.tensor([1.0, 0.5]))
    assert path_of(model).tolist() == [[0, 0], [-40, -20], [-36, -18]]


def test_what_is_said_is_upset_in_training_alone_and_a_refusal_is_taken_down_without_logits():
    def upset(step, logits):
        if step == 2:
            raise Stopped
        return logits + step

    model, tokens = Observed(Line(1.0, 2.0), upset=upset), torch.tensor([[1]])
    assert model(tokens).tolist() == [[[2, 3]]]  # step 1 has not been taken yet
    assert model.eval()(tokens).tolist() == [[[1, 2]]]
    model.train()
    descend(model, tokens, torch.tensor([1.0, 0.0]))
    assert model.steps()[0]["logits"].tolist() == [[[2, 3]]]
    with pytest.raises(Stopped):
        model(tokens)
    assert "logits" not in model.calls[-1] and model.calls[-1]["step"] == 0
    assert path_of(model).tolist() == [[1, 2], [0, 2]]


# ----------------------------------------------------------------------------------------- the small models


def test_past_reads_the_mean_of_all_that_stands_so_far():
    model, tokens = Past(4), torch.tensor([[7, 2, 7], [0, 29, 1]])
    e, w, b = model.embedding.weight, model.head.weight, model.head.bias
    logits = model(tokens)
    assert logits.shape == (2, 3, VOCABULARY)
    for row in range(2):
        for place in range(3):
            mean = sum(e[token] for token in tokens[row, : place + 1].tolist()) / (place + 1)
            torch.testing.assert_close(logits[row, place], w @ mean + b, atol=2e-5, rtol=1e-5)


def test_past_hangs_on_its_seed_alone_and_drops_features_in_training_alone():
    torch.manual_seed(0)
    one, state = Past(4, dropout=0.5), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(weights_of(one), weights_of(Past(4))) and not torch.equal(weights_of(one), weights_of(Past(5)))
    tokens = torch.tensor([[7, 2, 7]])
    torch.set_rng_state(state)
    assert not torch.equal(one(tokens), one(tokens))
    assert torch.equal(one.eval()(tokens), Past(4).train()(tokens))


def test_constant_has_the_same_gradient_at_every_step():
    """Both tokens are taken to be as likely, so 0 as the target pulls at the logits by 1/2, and at the weights by 0.0005."""
    model, tokens = Observed(Constant()), torch.zeros(4, 6, dtype=torch.long)
    for _ in range(3):
        logits = model(tokens)
        assert logits.shape == (4, 6, 2)
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        torch.testing.assert_close(model.inner.weight.grad, torch.tensor([-0.0005, 0.0005]), atol=1e-8, rtol=1e-5)
        model.inner.weight.data -= 20 * model.inner.weight.grad
        model.inner.weight.grad = None
    assert abs(path_of(model)[3, 0].item() - 0.03) < 1e-5


def test_weights_are_one_row_in_the_order_of_the_parameters_and_a_copy():
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1, bias=False))
    nn.utils.vector_to_parameters(torch.arange(4.0), model.parameters())
    found = weights_of(model)
    assert found.tolist() == [0, 1, 2, 3] and not found.requires_grad
    found += 1
    assert weights_of(model).tolist() == [0, 1, 2, 3]
    assert weights_of(Line(5.0, 6.0)).tolist() == [5, 6]
    alone = Line(5.0, 6.0)
    weights_of(alone).zero_()
    assert alone.weight.tolist() == [5, 6]


def test_a_path_without_steps_is_where_the_weights_are():
    assert path_of(Observed(Line(1.0, 2.0))).tolist() == [[1, 2]]


# ----------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("rows, places", [
    ([[5, 1, 4]], [0]),
    ([[4, 1, 4], [1, 4, 1]], [2, 1]),  # 1 4 1 stands at 1 and nowhere else; 4 1 4 at 2
    ([[1, 4, 7]], [3]),  # the last stretch
    ([[4, 7, 5]], [-1]),  # not around the end
    ([[1, 4, 9], [5, 1, 4]], [-1, 0]),
    ([[1, 4]], [1]),  # at 1 and at 3: the first
])  # fmt: skip
def test_where_a_row_begins_in_a_text(rows, places):
    assert where(torch.tensor([5, 1, 4, 1, 4, 7]), torch.tensor(rows)) == places


def test_where_agrees_with_a_search_in_a_string():
    tokens = torch.randint(3, (200,), generator=torch.Generator().manual_seed(0))
    rows = torch.randint(3, (60, 5), generator=torch.Generator().manual_seed(1))
    text = "".join(map(str, tokens.tolist()))
    expected = [text.find("".join(map(str, row))) for row in rows.tolist()]
    assert -1 in expected and max(expected) > 50 and where(tokens, rows) == expected


def test_a_row_longer_than_the_text_is_refused():
    with pytest.raises(RuntimeError):
        where(torch.tensor([1, 2]), torch.tensor([[1, 2, 3]]))


def test_a_run_has_the_usual_settings_but_for_those_that_are_changed():
    def pretrain(*given, **settings):
        return given, settings

    given, settings = run(pretrain, "model", "tokens", "held out", 9, lr=0.5, every=3)
    assert given == ("model", "tokens", "held out")
    assert settings == {"batch": 4, "context": 6, "lr": 0.5, "warmup": 2, "seed": 1, "steps": 9, "every": 3}
    assert run(pretrain, 0, 0, 0, 9)[1] == {"batch": 4, "context": 6, "lr": 0.02, "warmup": 2, "seed": 1, "steps": 9}


def test_drawn_texts_are_even_over_the_vocabulary_and_not_one_another():
    given = draw_text(torch.Generator().manual_seed(0), length=30_000, held_out=30_000)
    again = draw_text(torch.Generator().manual_seed(0), length=30_000, held_out=30_000)
    assert torch.equal(given["tokens"], again["tokens"]) and given["start"] == again["start"] and 0 <= given["start"] < 1000
    assert given["tokens"].dtype == torch.long and not torch.equal(given["tokens"], given["held_out"])
    for text in (given["tokens"], given["held_out"]):
        counts = torch.bincount(text, minlength=VOCABULARY)
        assert len(counts) == VOCABULARY and (counts - 1000).abs().max() < 5 * math.sqrt(1000)
    usual = draw_text(torch.Generator())
    assert (len(usual["tokens"]), len(usual["held_out"])) == (500, 100)
