"""The tiny models of Build it 11.11: where their linear layers lie, and where adapters on them do."""

import torch
from torch import nn

from rlhf_lib.exercises import tiny_adapters as kit


def with_adapters(where):
    """A `with_lora` that adapts one layer in place, with A and B on `where(weight)`."""

    class Adapter(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.A, self.B = (torch.zeros(1, device=where(linear.weight)) for _ in range(2))

        def merged(self):
            return None

    def with_lora(model, rank, alpha, layers):
        model.blocks[-1].up = Adapter(model.blocks[-1].up)
        return model

    return with_lora


def test_a_linear_layer_lies_further_down_and_the_model_says_the_same():
    plain, deep = kit.base_of(3), kit.base_of(3, deep=True)
    assert torch.equal(plain(kit.tokens_of(1)), deep(kit.tokens_of(1)))
    assert {*kit.linears(deep, 1)} - {*kit.linears(plain, 1)} == {"blocks.2.up.0.0.0"}


def test_where_adapters_lie_is_seen_and_what_raises_has_none():
    assert kit.devices(with_adapters(lambda weight: weight.device), 3, 2, 1.0, 1) == ["meta"]
    assert kit.devices(with_adapters(lambda weight: "cpu"), 3, 2, 1.0, 1) == ["cpu"]
    assert kit.devices(with_adapters(lambda weight: weight.sum().item()), 3, 2, 1.0, 1) == []


def test_numbers_that_are_filled_in_are_those_of_the_weights_made_by_hand():
    base = kit.base_of(2)
    assert torch.equal(kit.filled_by_hand(base, 5, 2, 0.0, 2)(kit.tokens_of(1)), base(kit.tokens_of(1)))
    assert not torch.equal(kit.filled_by_hand(base, 5, 2, 1.0, 2)(kit.tokens_of(1)), base(kit.tokens_of(1)))
