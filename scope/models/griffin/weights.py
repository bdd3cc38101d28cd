"""Our parameter names -> those of a RecurrentGemma checkpoint on the hub."""

from scope.models.griffin.config import GriffinConfig

_LINEAR = ("weight", "bias")
_MIXER = {
    "recurrent": {
        **{f"rec.linear_{x}.{p}": f"linear_{x}.{p}" for x in ("x", "y", "out") for p in _LINEAR},
        **{f"rec.conv_{p}": f"conv_1d.{p}" for p in _LINEAR},
        "rec.recurrent_param": "rg_lru.recurrent_param",
        **{f"rec.{gate}_gate_{p}": f"rg_lru.{gate}_gate_{p}" for gate in ("input", "recurrent") for p in _LINEAR},
    },
    "local": {f"attn.{x}_proj.weight": f"{x}_proj.weight" for x in "qkvo"} | {"attn.o_proj.bias": "o_proj.bias"},
}
_MLP = {f"mlp.{x}_proj.{p}": f"mlp_block.{x}_proj.{p}" for x in ("gate", "up", "down") for p in _LINEAR}
_QKV_BIASES = {f"attn.{x}_proj.bias": f"{x}_proj.bias" for x in "qkv"}


def tensor_names(config: GriffinConfig) -> dict[str, str]:
    names = {"embed.weight": "model.embed_tokens.weight", "ln_final.weight": "model.final_norm.weight"}
    for layer, kind in enumerate(config.layer_types):
        mixer = _MIXER[kind] | (_QKV_BIASES if kind == "local" and config.attention_bias else {})
        in_block = {ours: f"temporal_block.{theirs}" for ours, theirs in mixer.items()} | _MLP
        in_block |= {"ln1.weight": "temporal_pre_norm.weight", "ln2.weight": "channel_pre_norm.weight"}
        names |= {f"blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}" for ours, theirs in in_block.items()}
    return names
