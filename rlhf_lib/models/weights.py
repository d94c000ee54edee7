"""Published weights under the names of this library's modules."""

from rlhf_lib.files import shown


def check_sizes(config, tensors):
    """Raises ValueError where a model of `config`, a dict, would be larger than `tensors`: it would take memory and time
    before it is seen not to fit."""
    sizes = {size for tensor in tensors.values() for size in tensor.shape}
    names = ["vocab_size", "width", "hidden", *(["context"] if config.get("recipe") == "gpt2" else [])]
    for name in names:
        if name in config and config[name] not in sizes:
            raise ValueError(f"{name} {shown(config[name])} is no size of its tensors")
    if config["layers"] > len(tensors):
        raise ValueError(f"{shown(config['layers'])} layers are more than it has tensors")


def gpt2_weights(tensors):
    """The state of transformers' `GPT2LMHeadModel` under the names of a GPT of the recipe "gpt2", for `load_state_dict`.

    GPT-2 stores its linear layers transposed (its Conv1D): every such matrix is turned over.
    """
    names = {
        "ln_1": "norm1", "ln_2": "norm2", "attn.c_attn": "attention.qkv", "attn.c_proj": "attention.out",
        "mlp.c_fc": "up", "mlp.c_proj": "down",
    }  # fmt: skip
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("transformer.")
        if name == "wte.weight":
            renamed["embedding.weight"] = tensor
            renamed.setdefault("head.weight", tensor)  # published files leave a tied head out
        elif name == "lm_head.weight":
            renamed["head.weight"] = tensor
        elif name == "wpe.weight":
            renamed["position_embedding.weight"] = tensor
        elif name.startswith("ln_f."):
            renamed[name.replace("ln_f", "norm")] = tensor
        elif name.startswith("h."):
            _, layer, rest = name.split(".", 2)
            part, kind = rest.rsplit(".", 1)
            if part in names:  # the rest are GPT-2's causal-mask buffers
                turned = tensor.t() if tensor.dim() == 2 else tensor
                renamed[f"blocks.{layer}.{names[part]}.{kind}"] = turned
    return renamed


LLAMA_NAMES = {
    "self_attn.q_proj": "attention.query", "self_attn.k_proj": "attention.key", "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out", "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
    "input_layernorm": "norm1", "post_attention_layernorm": "norm2",
}  # fmt: skip
WHOLE_NAMES = {"embed_tokens.weight": "embedding.weight", "norm.weight": "norm.weight", "lm_head.weight": "head.weight"}


def llama_weights(tensors):
    """The state of transformers' `LlamaForCausalLM` under the names of a Llama, for `Llama.of`."""
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.")
        if name in WHOLE_NAMES:
            renamed[WHOLE_NAMES[name]] = tensor
        elif name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            part = rest.removesuffix(".weight")
            if part in LLAMA_NAMES:  # the rest are old files' rotary frequencies
                renamed[f"blocks.{layer}.{LLAMA_NAMES[part]}.weight"] = tensor
    return renamed


def llama_config(values):
    """What a published `config.json` says of a Llama, as the arguments of a LlamaConfig.

    Raises:
        ValueError: something in it that this Llama does not have.
    """
    if values.get("attention_bias") or values.get("mlp_bias") or values.get("hidden_act", "silu") != "silu":
        raise ValueError("config.json asks for biases or another activation: only Llamas without them are known")
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if (values.get("head_dim") or width // heads) != width // heads:  # null where it is what follows from the rest
        raise ValueError(f"config.json has head_dim {values['head_dim']}, not hidden_size / heads = {width // heads}")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"config.json has rotary positions of the kind {kind!r}: only default and llama3 are known")
    scaling = None
    if kind == "llama3":
        names = {"factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor"}
        scaling = {ours: float(rope[theirs]) for ours, theirs in names.items()}
        scaling["original"] = int(rope["original_max_position_embeddings"])
    return dict(
        vocab_size=values["vocab_size"], context=values["max_position_embeddings"], layers=values["num_hidden_layers"],
        heads=heads, kv_heads=values.get("num_key_value_heads") or heads, width=width, hidden=values["intermediate_size"],
        tied=values.get("tie_word_embeddings", False), norm_eps=float(values["rms_norm_eps"]),
        rope_base=float(rope.get("rope_theta", values.get("rope_theta", 10000.0))), rope_scaling=scaling,
    )  # fmt: skip
