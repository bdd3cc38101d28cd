"""Filling a model from a checkpoint, tensor by tensor, each held against the config before it is read."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from scope.errors import CheckpointError
from scope.models.parts.decoder import Decoder
from scope.models.stored import Reader, StoredTensor, canonical_tensors, stored_tensors

_PIECE = 1 << 22  # numbers looked at together
_HEAD = "lm_head.weight"  # the unembedding, which some checkpoints store though it is the embedding


def matching(
    model: nn.Module, files: dict[str, Path], rows_follow: bool = False
) -> tuple[dict[str, StoredTensor], StoredTensor | None]:
    """(our parameter name -> the tensor in the files, the unembedding if it is stored too). Only headers are read. With
    `rows_follow` the embedding in the files may have fewer rows than the model's.

    Raises:
        CheckpointError: a tensor that is missing, unknown or of another shape than config.json asks for.
    """
    names, stored = model.tensor_names(model.cfg), canonical_tensors(stored_tensors(files), model.canonical_name)
    missing = [theirs for theirs in names.values() if theirs not in stored]
    if missing:
        raise CheckpointError(f"The checkpoint lacks {len(missing)} tensors, first {missing[0]}. It is incomplete.")
    if unknown := sorted(set(stored) - set(names.values()) - {_HEAD}):
        raise CheckpointError(f"The checkpoint holds tensors no {model.cfg.family_name} has: {', '.join(unknown[:4])}.")
    for ours, p in model.named_parameters():
        shape = stored[names[ours]].shape
        begins = rows_follow and ours == "embed.weight" and shape[1:] == tuple(p.shape)[1:] and shape[0] <= p.shape[0]
        if shape != tuple(p.shape) and not begins:
            raise CheckpointError(f"{names[ours]} has shape {shape} where config.json asks for {tuple(p.shape)}.")
    return {ours: stored[theirs] for ours, theirs in names.items()}, stored.get(_HEAD)


def load_weights(
    model: nn.Module, files: dict[str, Path], dtype: torch.dtype, device: str | torch.device, rows_follow: bool = False
) -> None:
    """Fill a model built on the meta device, each tensor read from its file into the place where it stays: the weights exist
    once, and a file that changes later changes nothing. With `rows_follow`, rows of the embedding that the files lack are zeros
    for an adapter to fill.

    Raises:
        CheckpointError: a tensor that is missing, of another shape, not finite, or unknown; nothing half-loaded is returned.
    """
    stored, head = matching(model, files, rows_follow)
    reader = Reader([*stored.values(), *([head] if head else [])])
    try:
        for name, tensor in stored.items():
            values = reader.read(tensor, torch.empty(tensor.shape, dtype=dtype, device=device))
            check_finite(tensor, values)
            if missing := model.get_parameter(name).shape[0] - len(values):
                values = torch.cat([values, values.new_zeros(missing, *values.shape[1:])])
            put(model, name, nn.Parameter(values))
        if head:
            embedding = model.embed.weight.detach()
            rows = max(1, _PIECE // embedding.shape[1])
            check_tied(model, reader, head, ((i, embedding[i : i + rows]) for i in range(0, len(embedding), rows)))
    finally:
        reader.close()
    model.on_placed()


def check_finite(stored: StoredTensor, values: Tensor) -> None:
    """Raises CheckpointError where values read from a file are not finite. Makes no copy of them."""
    pieces = values.view(-1).split(_PIECE)
    if all(torch.isfinite(extreme) for piece in pieces for extreme in torch.aminmax(piece)):  # NaN is passed on
        return
    if values.dtype == torch.float16 and stored.dtype != torch.float16:
        raise CheckpointError(
            f"{stored.name} holds NaN, infinite values or numbers beyond 65504, which float16 cannot hold. Load it in bfloat16."
        )
    raise CheckpointError(f"{stored.name} holds NaN or infinite values; the checkpoint is damaged.")


def check_tied(model: Decoder, reader: Reader, head: StoredTensor, pieces: Iterable[tuple[int, Tensor]]) -> None:
    """Raises CheckpointError where a stored unembedding is not the embedding, given as (first row, rows)."""
    same = head.shape == tuple(model.embed.weight.shape)
    for first, rows in pieces if same else ():
        same = same and torch.equal(reader.read(head, torch.empty_like(rows), first), rows)
    if not same:
        raise CheckpointError(
            f"lm_head.weight differs from the embedding; {model.cfg.family_name} ties them, so this is another model."
        )


def put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, parameter)
