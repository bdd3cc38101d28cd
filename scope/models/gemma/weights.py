"""Our parameter names -> those of a Gemma checkpoint on the hub."""

from scope.models.gemma.config import GemmaConfig

_IN_BLOCK = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.o_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
    "ln1": "input_layernorm",
}
_NORMS = {"ln2": "post_attention_layernorm"}
"""Gemma 1: the norm before the MLP, named after where it stands."""

_FOUR_NORMS = {
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ln2_post": "post_feedforward_layernorm",
}


_QK_NORMS = {"attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm"}


def tensor_names(config: GemmaConfig) -> dict[str, str]:
    in_block = _IN_BLOCK | (_FOUR_NORMS if config.post_norms else _NORMS) | (_QK_NORMS if config.use_qk_norm else {})
    names = {"embed.weight": "model.embed_tokens.weight", "ln_final.weight": "model.norm.weight"}
    for layer in range(config.n_layers):
        for ours, theirs in in_block.items():
            names[f"blocks.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    return names
