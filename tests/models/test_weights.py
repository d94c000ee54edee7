import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM
from transformers import LlamaConfig as TheirConfig

from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.llama import Llama, LlamaConfig
from rlhf_lib.models.weights import gpt2_weights, llama_config, llama_weights


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


# ------------------------------------------------------------------------------------------------------------------ Llamas

VALUES = {  # the config.json of Llama 3.2 1B, as far as it matters
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192, "max_position_embeddings": 131072, "hidden_act": "silu",
    "rms_norm_eps": 1e-05, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192},
}  # fmt: skip
STRETCHED = {"factor": 32.0, "low": 1.0, "high": 4.0, "original": 8192}


def without(*names, **changes):
    return {name: value for name, value in (VALUES | changes).items() if name not in names}


def test_a_published_config_says_what_a_llama_is():
    config = LlamaConfig(**llama_config(VALUES))
    assert config == LlamaConfig(128256, 131072, 16, 32, 8, 2048, 8192, True, 1e-5, 500000.0, STRETCHED)


@pytest.mark.parametrize(
    "values, changes",
    [
        (without("rope_scaling"), {"rope_scaling": None}),
        (without(rope_scaling=None), {"rope_scaling": None}),
        (without("rope_scaling", "rope_theta"), {"rope_scaling": None, "rope_base": 10000.0}),
        (without("rope_scaling", "rope_theta", rope_parameters={**VALUES["rope_scaling"], "rope_theta": 500000}), {}),
        (without("rope_scaling", "rope_theta", rope_parameters={"rope_type": "default", "rope_theta": 7.0}),
         {"rope_scaling": None, "rope_base": 7.0}),
        (without("num_key_value_heads"), {"kv_heads": 32}),
        (without(num_key_value_heads=None, head_dim=None), {"kv_heads": 32}),
        (without("head_dim", "hidden_act", "attention_bias", "mlp_bias"), {}),
        (without("tie_word_embeddings"), {"tied": False}),
    ],
)  # fmt: skip
def test_older_and_newer_files_say_the_same_in_other_words(values, changes):
    assert llama_config(values) == llama_config(VALUES) | changes


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"attention_bias": True}, "config.json asks for biases or another activation"),
        ({"mlp_bias": True}, "config.json asks for biases or another activation"),
        ({"hidden_act": "gelu"}, "config.json asks for biases or another activation"),
        ({"head_dim": 128}, "config.json has head_dim 128, not hidden_size / heads = 64"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rotary positions of the kind 'yarn': only default and llama3"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary positions of the kind 'linear': only default and llama3"),
    ],
)
def test_what_this_llama_does_not_have_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        llama_config(VALUES | changes)


@pytest.mark.parametrize("tied", [True, False])
def test_llama_weights_are_found_under_the_names_of_published_files(tied):
    """With or without `model.` before the names, with old files' rotary frequencies, and without a tied head."""
    torch.manual_seed(0)
    shape = dict(vocab_size=50, hidden_size=24, num_attention_heads=4, num_key_value_heads=2, intermediate_size=20)
    theirs = LlamaForCausalLM(TheirConfig(**shape, num_hidden_layers=2, tie_word_embeddings=tied)).eval().requires_grad_(False)
    for parameter in theirs.parameters():
        parameter.normal_(mean=float(parameter.dim() == 1), std=0.3)
    tensors = theirs.state_dict()
    if tied:
        del tensors["lm_head.weight"]
    older = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    older |= {f"layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(3) for layer in range(2)}
    tokens = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(0))
    for files in (tensors, older):
        ours = Llama.of(LlamaConfig(**llama_config(theirs.config.to_dict())), llama_weights(files))
        close(ours(tokens), theirs(tokens).logits, 1e-4)


def test_an_untied_llamas_head_is_not_made_up():
    assert "head.weight" not in llama_weights({"model.embed_tokens.weight": torch.zeros(5, 4)})
