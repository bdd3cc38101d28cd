"""Our parameter names -> those of a SigLIP on the hub, and the spellings in which transformers saves them."""

from scope.models.siglip.config import SiglipConfig, TextConfig, VisionConfig

_IN_BLOCK = {
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_HEAD = {"attn.out_proj": "attention.out_proj", "ln": "layernorm", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_BOTH = ("weight", "bias")
_BUFFERS = (".position_ids",)


def vision_names(c: VisionConfig, ours: str, theirs: str) -> dict[str, str]:
    """Names of the vision tower; `ours` and `theirs` come before each."""
    names = {"W_pos": "embeddings.position_embedding.weight"} | _modules({"patches": "embeddings.patch_embedding"})
    names |= _blocks(c.n_layers) | _modules({"ln_final": "post_layernorm"})
    if c.use_head:
        names |= {"head.probe": "head.probe"} | {f"head.attn.in_proj_{x}": f"head.attention.in_proj_{x}" for x in _BOTH}
        names |= _modules({f"head.{a}": f"head.{b}" for a, b in _HEAD.items()})
    return {ours + a: theirs + b for a, b in names.items()}


def text_names(c: TextConfig, ours: str, theirs: str) -> dict[str, str]:
    """Names of the text tower; `ours` and `theirs` come before each."""
    names = {"embed.weight": "embeddings.token_embedding.weight", "W_pos": "embeddings.position_embedding.weight"}
    names |= _blocks(c.n_layers) | _modules({"ln_final": "final_layer_norm", "head": "head"})
    return {ours + a: theirs + b for a, b in names.items()}


def _blocks(n: int) -> dict[str, str]:
    return _modules({f"blocks.{i}.{a}": f"encoder.layers.{i}.{b}" for i in range(n) for a, b in _IN_BLOCK.items()})


def _modules(modules: dict[str, str]) -> dict[str, str]:
    return {f"{ours}.{x}": f"{theirs}.{x}" for ours, theirs in modules.items() for x in _BOTH}


def tensor_names(c: SiglipConfig) -> dict[str, str]:
    names = {} if c.vision is None else vision_names(c.vision, "vision.", "vision_model.")
    names |= {} if c.text is None else text_names(c.text, "text.", "text_model.")
    return names | ({} if c.vision is None or c.text is None else {"logit_scale": "logit_scale", "logit_bias": "logit_bias"})


def canonical_name(name: str, config: SiglipConfig) -> str | None:
    """The name on the hub of a tensor, whichever way it was saved; None for what is no weight. A tower that was saved alone has
    no prefix."""
    if name.endswith(_BUFFERS):
        return None
    name = name.removeprefix("model.").removeprefix("siglip.")
    if name.startswith(("embeddings.", "encoder.", "post_layernorm.", "final_layer_norm.", "head.")):
        return ("text_model." if config.vision is None else "vision_model.") + name
    return name
