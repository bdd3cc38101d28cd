"""Hugging Face's parameter names for a Gemma 2, and reading them tensor by tensor into ours."""

from pathlib import Path

import torch
from torch import Tensor

from scope.errors import CheckpointError
from scope.models.gemma.model import Gemma
from scope.models.stored import Reader, StoredTensor, stored_tensors

_PIECE = 1 << 22  # numbers looked at together
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
    """Fill a model built on the meta device, each tensor read from its file into the place where it stays: the weights exist
    once, and a file that changes later changes nothing. Names and shapes are held against the model before any is read.

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
    stored = stored_tensors(files)
    for ours, theirs in names.items():
        if stored[theirs].shape != tuple(shapes[ours]):
            asked, held = tuple(shapes[ours]), stored[theirs].shape
            raise CheckpointError(f"{theirs} has shape {held} where config.json asks for {asked}.")
    reader = Reader(list(stored.values()))
    try:
        for ours, theirs in names.items():
            tensor = reader.read(stored[theirs], torch.empty(shapes[ours], dtype=dtype, device=device))
            _check_finite(stored[theirs], tensor)
            _assign(model, ours, tensor)
        if "lm_head.weight" in stored:
            _check_tied(reader, stored["lm_head.weight"], model.embed.weight.detach())
    finally:
        reader.close()
    model.cfg.note_place(dtype, model.device)


def _check_finite(stored: StoredTensor, tensor: Tensor) -> None:
    if all(bool(torch.isfinite(piece).all()) for piece in tensor.view(-1).split(_PIECE)):
        return
    raise not_finite(stored, tensor.dtype)


def not_finite(stored: StoredTensor, dtype: torch.dtype) -> CheckpointError:
    """What to raise where a tensor read as `dtype` is not finite."""
    if dtype == torch.float16 and stored.dtype != torch.float16:
        return CheckpointError(
            f"{stored.name} holds NaN, infinite values or numbers beyond 65504, which float16 cannot hold. Load it in bfloat16."
        )
    return CheckpointError(f"{stored.name} holds NaN or infinite values; the checkpoint is damaged.")


def _check_tied(reader: Reader, head: StoredTensor, embedding: Tensor) -> None:
    rows = max(1, _PIECE // embedding.shape[1])
    same = head.shape == tuple(embedding.shape)
    for first in range(0, len(embedding), rows) if same else ():
        piece = embedding[first : first + rows]
        same = same and torch.equal(reader.read(head, torch.empty_like(piece), first), piece)
    if not same:
        raise CheckpointError("lm_head.weight differs from the embedding; Gemma 2 ties them, so this is another model.")


def _assign(model: Gemma, name: str, tensor: Tensor) -> None:
    owner, leaf = name.rsplit(".", 1)
    setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(tensor, requires_grad=True))
