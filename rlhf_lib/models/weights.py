"""Published weights under the names of this library's modules."""


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
