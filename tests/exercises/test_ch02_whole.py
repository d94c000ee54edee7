"""Chapter 02, the whole GPT and its task: other correct answers pass, and what is special about the checks."""

import math

import pytest
import torch
from torch.nn import functional as F

from rlhf_lib.exercises import EXERCISES, answer, draw, judge, load, verdict
from rlhf_lib.models.gpt import GPT, GPTConfig

load()


def gpt_logits(tokens, weights, layers, heads):
    """One text and one position at a time, in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    C = w["embedding.weight"].shape[1]
    D = C // heads

    def norm(x, name):
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * w[name + ".weight"] + w[name + ".bias"]

    def linear(x, name):
        return w[name + ".weight"] @ x + w[name + ".bias"]

    rows = []
    for text in tokens.tolist():
        stream = [w["embedding.weight"][token] + w["position_embedding.weight"][t] for t, token in enumerate(text)]
        for layer in range(layers):
            at = f"blocks.{layer}."
            three = [linear(norm(x, at + "norm1"), at + "attention.qkv") for x in stream]
            for t in range(len(text)):
                parts = []
                for head in range(heads):
                    here = slice(head * D, (head + 1) * D)
                    q = three[t][:C][here]
                    keys = torch.stack([three[s][C : 2 * C][here] for s in range(t + 1)])
                    values = torch.stack([three[s][2 * C :][here] for s in range(t + 1)])
                    parts.append((keys @ q / D**0.5).softmax(0) @ values)
                stream[t] = stream[t] + linear(torch.cat(parts), at + "attention.out")
            for t, x in enumerate(stream):
                h = linear(norm(x, at + "norm2"), at + "up")
                h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
                stream[t] = x + linear(h, at + "down")
        rows.append(torch.stack([w["embedding.weight"] @ norm(x, "norm") for x in stream]))
    return torch.stack(rows).float()


def count_parameters(vocab_size, context, layers, width):
    shapes = [(vocab_size, width), (context, width), (width,), (width,)]
    for _ in range(layers):
        shapes += [(width,)] * 4 + [(3 * width, width), (3 * width,), (width, width), (width,)]
        shapes += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return sum(math.prod(shape) for shape in shapes)


def reversal_batch(sequences, separator):
    n = sequences.shape[1]
    row = F.pad(sequences, (0, n + 1), value=separator)
    row[:, n + 1 :] = sequences[:, torch.arange(n - 1, -1, -1)]
    scored = torch.arange(2 * n, device=row.device) >= n
    return row[:, :-1], torch.where(scored, row[:, 1:], -100)


ALTERNATIVES = {one.__name__: one for one in (gpt_logits, count_parameters, reversal_batch)}


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("name", ALTERNATIVES)
def test_every_correct_answer_passes(name, seed):
    found = verdict(name, ALTERNATIVES[name], seed)
    assert found.passed, found.message


def test_a_mistake_that_nobody_foresaw_shows_the_smallest_failing_input():
    def half(sequences, separator):  # right for one and for two tokens
        inputs, targets = reversal_batch(sequences, separator)
        return inputs, targets + (sequences.shape[1] > 2) * sequences.sum() % 5 * inputs

    inputs = draw("reversal_batch")
    verdict = judge("reversal_batch", inputs, answer("reversal_batch", half, inputs))
    assert verdict.mistake not in EXERCISES["reversal_batch"].mistakes and verdict.arguments is inputs[2]
    assert "came out:" in verdict.message and "expected:" in verdict.message


def test_the_loss_of_the_reversal_task_counts_the_answer_alone():
    """A model that knows the answers, and nothing of the question, has no loss under PyTorch's own cross-entropy."""
    sequences = torch.randint(1, 9, (4, 5), generator=torch.Generator().manual_seed(0))
    _, targets = EXERCISES["reversal_batch"].right(sequences, 9)
    logits = 50.0 * F.one_hot(targets.clamp(min=0), 10).float()
    assert F.cross_entropy(logits.flatten(0, 1), targets.flatten()) < 1e-6
    assert int((targets == -100).sum()) == 4 * 5


def test_the_published_size_of_gpt2():
    assert EXERCISES["count_parameters"].right(vocab_size=50257, context=1024, layers=12, width=768) == 124_439_808
    inputs = draw("count_parameters")
    right = answer("count_parameters", count_parameters, inputs)
    near = [*right[:-1], right[-1] + 1]  # one too many out of 124 million
    assert not judge("count_parameters", inputs, near).passed


def test_gpt_logits_is_what_the_library_computes_for_its_own_weights():
    model = GPT(GPTConfig.gpt2(vocab_size=11, context=8, layers=2, heads=2, width=8)).eval()
    tokens = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(gpt_logits(tokens, model.state_dict(), 2, 2), model(tokens), atol=1e-5, rtol=0)


def test_an_eps_of_another_size_shows_where_the_stream_is_small():
    """The published GPT-2 has 1e-5; PyTorch's layer_norm has it too, but what is copied from BERT has 1e-12."""
    small = draw("gpt_logits")[-1]
    assert small["spread"] < 0.01
    formula = EXERCISES["gpt_logits"].formula

    def as_bert(tokens, weights, layers, heads):
        return formula(tokens, weights, layers, heads, eps=1e-12)

    verdict = judge("gpt_logits", draw("gpt_logits"), answer("gpt_logits", as_bert, draw("gpt_logits")))
    assert "the eps of the norms" in verdict.mistake and verdict.arguments["spread"] == small["spread"]


def test_the_weights_of_a_message_are_those_of_the_check():
    one = draw("gpt_logits")[1]
    space = dict(one)
    exec(one["made"], space)
    came = gpt_logits(one["tokens"], space["weights"], one["layers"], one["heads"])
    torch.testing.assert_close(came, answer("gpt_logits", gpt_logits, [one])[0], atol=1e-5, rtol=1e-5)


def test_what_is_drawn_has_blocks_of_two_digits_and_a_long_text():
    inputs = draw("gpt_logits")
    assert max(one["layers"] for one in inputs) > 10 and max(one["tokens"].shape[1] for one in inputs) > 64


def test_a_float_is_no_count_and_int32_no_token():
    message = verdict("count_parameters", lambda **sizes: float(count_parameters(**sizes))).message
    assert "it is to be an int" in message
    assert "int64" in verdict("reversal_batch", lambda **given: tuple(part.int() for part in reversal_batch(**given))).message


def written_out(hidden=-torch.inf, late=False, gelus=1, norm2="norm2", torn=False):
    """GPT-2 as learners write it out, with a place to go wrong."""

    def answer(tokens, weights, layers, heads):
        def linear(x, name):
            return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

        def norm(x, name):
            return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

        B, T = tokens.shape
        x = weights["embedding.weight"][tokens] + weights["position_embedding.weight"][:T]
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        for layer in range(layers):
            at = f"blocks.{layer}."
            parts = linear(norm(x, f"{at}norm1"), f"{at}attention.qkv").chunk(3, -1)
            q, k, v = (y.reshape(B, heads, T, -1) if torn else y.view(B, T, heads, -1).transpose(1, 2) for y in parts)
            scores = q @ k.mT / q.shape[-1] ** 0.5
            shares = scores.softmax(-1) * ~future if late else scores.masked_fill(future, hidden).softmax(-1)
            y = shares @ v if torn else (shares @ v).transpose(1, 2)
            x = x + linear(y.reshape(x.shape), f"{at}attention.out")
            y = linear(F.gelu(linear(norm(x, at + norm2), f"{at}up"), approximate="tanh"), f"{at}down")
            x = x + (F.gelu(y, approximate="tanh") if gelus == 2 else y)
        return norm(x, "norm") @ weights["embedding.weight"].T

    return answer


@pytest.mark.parametrize(
    "options, said",
    [
        ({"hidden": 0.0}, "masked scores are 0 here"),
        ({"late": True}, "the mask comes after the softmax"),
        ({"gelus": 2}, "an activation behind down too"),
        ({"norm2": "norm1"}, "norm1 is used twice"),
        ({"torn": True}, "tears positions apart"),
    ],
)
def test_a_gpt_that_is_written_out_has_its_mistake_named(options, said):
    assert verdict("gpt_logits", written_out()).passed
    assert said in verdict("gpt_logits", written_out(**options)).mistake


def test_two_parts_that_are_not_counted_are_both_named():
    """12 C^2 a block is the number that everybody quotes; it leaves out 9 C of biases, and 4 C of the norms."""

    def quoted(vocab_size, context, layers, width):
        return (vocab_size + context + 2) * width + layers * 12 * width**2

    message = verdict("count_parameters", quoted).message
    assert "The biases of the linear layers are missing" in message and "4 x width numbers are missing in each block" in message


@pytest.mark.parametrize("blank", [lambda separator: 0, lambda separator: separator])
def test_inputs_without_the_answer_have_their_name(blank):
    def blank_behind(sequences, separator):
        inputs, targets = reversal_batch(sequences, separator)
        inputs = inputs.clone()
        inputs[:, sequences.shape[1] + 1 :] = blank(separator)
        return inputs, targets

    assert verdict("reversal_batch", blank_behind).mistake.startswith("the answer is not in the inputs")
