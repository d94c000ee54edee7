import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.weights import gpt2_weights


def close(a, b, tolerance):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def random_hugging_face_gpt2(seed=0):
    config = GPT2Config(vocab_size=50, n_positions=20, n_embd=24, n_layer=3, n_head=3, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(seed)
    theirs = GPT2LMHeadModel(config).eval().requires_grad_(False)
    for name, p in theirs.named_parameters():
        p.normal_(mean=1.0 if "ln_" in name and name.endswith("weight") else 0.0, std=0.3)
    ours = GPT(GPTConfig.gpt2(vocab_size=50, context=20, layers=3, heads=3, width=24)).eval()
    return theirs, ours


def test_logits_equal_those_of_transformers_gpt2():
    theirs, ours = random_hugging_face_gpt2()
    assert theirs.lm_head.weight.data_ptr() == theirs.transformer.wte.weight.data_ptr()
    ours.load_state_dict(gpt2_weights(theirs.state_dict()))
    tokens = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(0))
    expected = theirs(tokens).logits
    assert expected.std() > 1
    close(ours(tokens), expected, 1e-4)


def test_left_padded_logits_equal_those_of_transformers_gpt2():
    theirs, ours = random_hugging_face_gpt2()
    ours.load_state_dict(gpt2_weights(theirs.state_dict()))
    tokens = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) >= torch.tensor([[0], [3], [8]])
    places = (mask.long().cumsum(1) - 1).clamp(min=0)
    expected = theirs(tokens, attention_mask=mask.long(), position_ids=places).logits
    close(ours(tokens, mask)[mask], expected[mask], 1e-4)


def test_gpt2_weights_are_found_under_the_names_of_published_files():
    """Published files have no `transformer.` before the names, no head, and each block's causal mask as buffers."""
    theirs, ours = random_hugging_face_gpt2()
    tensors = theirs.transformer.state_dict()
    assert "wte.weight" in tensors and "lm_head.weight" not in tensors
    for layer in range(3):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 20, 20).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    ours.load_state_dict(gpt2_weights(tensors))  # strict: nothing missing, nothing left over
    tokens = torch.arange(12)[None]
    close(ours(tokens), theirs(tokens).logits, 1e-4)


@pytest.mark.parametrize("order", [1, -1])
def test_an_untied_head_keeps_its_own_weights_in_whatever_order_they_come(order):
    embedding, head = torch.zeros(5, 4), torch.ones(5, 4)
    tensors = [("transformer.wte.weight", embedding), ("lm_head.weight", head)][::order]
    renamed = gpt2_weights(dict(tensors))
    assert torch.equal(renamed["embedding.weight"], embedding)
    assert torch.equal(renamed["head.weight"], head)
