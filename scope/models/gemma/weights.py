"""Hugging Face's parameter names for a Gemma 2, and reading them tensor by tensor into ours."""

from pathlib import Path

import torch
from safetensors import safe_open

from scope.errors import CheckpointError
from scope.models.gemma.model import Gemma

_IN_BLOCK = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.o_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
    "ln1": "input_layernorm",
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ln2_post": "post_feedforward_layernorm",
}


def hf_names(n_layers: int) -> dict[str, str]:
    """Our parameter name -> Hugging Face's."""
    names = {"embed.weight": "model.embed_tokens.weight", "ln_final.weight": "model.norm.weight"}
    for layer in range(n_layers):
        for ours, theirs in _IN_BLOCK.items():
            names[f"blocks.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    return names


def load_weights(model: Gemma, files: dict[str, Path], dtype: torch.dtype, device: str | torch.device) -> None:
    """Fill a model built on the meta device, one tensor at a time, so that the weights exist once.

    Raises:
        CheckpointError: a tensor that is missing, of another shape, not finite, or unknown; nothing half-loaded is returned.
    """
    names = hf_names(model.cfg.n_layers)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    missing = [theirs for theirs in names.values() if theirs not in files]
    if missing:
        raise CheckpointError(f"The checkpoint lacks {len(missing)} tensors, first {missing[0]}. It is incomplete.")
    unknown = set(files) - set(names.values()) - {"lm_head.weight"}
    if unknown:
        raise CheckpointError(f"The checkpoint holds tensors no Gemma 2 has: {', '.join(sorted(unknown)[:4])}.")
    opened = {file: safe_open(file, framework="pt") for file in set(files.values())}
    for ours, theirs in names.items():
        tensor = opened[files[theirs]].get_tensor(theirs)
        if tensor.shape != shapes[ours]:
            raise CheckpointError(f"{theirs} has shape {tuple(tensor.shape)} where config.json asks for {tuple(shapes[ours])}.")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{theirs} holds NaN or infinite values; the checkpoint is damaged.")
        _assign(model, ours, tensor.to(device=device, dtype=dtype))
    if "lm_head.weight" in files:
        head = opened[files["lm_head.weight"]].get_tensor("lm_head.weight").to(device=device, dtype=dtype)
        if not torch.equal(head, model.embed.weight):
            raise CheckpointError("lm_head.weight differs from the embedding; Gemma 2 ties them, so this is another model.")
    model.cfg.note_place(dtype, model.device)


def _assign(model: Gemma, name: str, tensor: torch.Tensor) -> None:
    owner, leaf = name.rsplit(".", 1)
    setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(tensor, requires_grad=True))
