"""The GPT of Build it 2.10 written out: it is the library's, and each of its mistakes is told from the others."""

import pytest
import torch

from rlhf_lib.exercises import find
from rlhf_lib.exercises.formula02_gpt import SHARED, draw_cases, draw_state, draw_tokens, held_out, reference, reversals
from rlhf_lib.models.gpt import GPT, GPTConfig

PROBE = find("GPT").probes["given weights give the right logits"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_reference_is_what_the_library_computes():
    shape = (9, 12, 2, 3, 12)
    state, tokens = draw_state(generator(), shape), draw_tokens(generator(1), shape, 2, 10)
    library = GPT(GPTConfig(*shape))
    library.load_state_dict(state)
    logits, hidden = reference(tokens, state, heads=3)
    torch.testing.assert_close(library(tokens), logits.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(library.hidden(tokens), hidden.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", [0, 7])
def test_every_named_mistake_is_told_from_the_others(seed):
    """A build that makes one of them gets its sentence, not another's."""
    inputs = draw_cases(generator(seed))
    for name, sentence in SHARED.items():
        made = [reference(case["tokens"], case["state"], case["shape"][3], name) for case in inputs["cases"]]
        assert PROBE.judge([{"logits": logits, "hidden": hidden} for logits, hidden in made], **inputs) == sentence, name


def test_small_queries_show_an_eps_that_is_not_theirs():
    """A query of mean square 1e-6 comes out with 1 / (1 + 1) = 0.5 with an eps of 1e-6, and 1 / 1.12 = 0.89 with 1.2e-7."""
    inputs = draw_cases(generator())
    last = inputs["cases"][-1]
    right, wrong = (reference(last["tokens"], last["state"], 2, name)[0] for name in ("", "torch's eps of q, k"))
    assert (right - wrong).abs().max() > 1e-3


def test_a_mistake_without_a_name_is_told_where_it_shows_first():
    inputs = draw_cases(generator())
    right = [reference(case["tokens"], case["state"], case["shape"][3]) for case in inputs["cases"]]
    out = [{"logits": logits, "hidden": hidden} for logits, hidden in right]
    for place in (2, 3):
        out[place]["logits"] = out[place]["logits"] * 1.01
    assert "first in the feed-forward part" in PROBE.judge(out, **inputs)


def test_the_rows_of_the_task_read_the_same_backwards_and_none_of_training_is_held_out():
    rows = reversals(5, generator())
    assert torch.equal(rows, rows.flip(1)) and (rows[:, 8] == 16).all() and (rows[:, :8] < 16).all()
    assert not torch.equal(held_out(3)[:64], reversals(64, generator(3)))
