"""Reads what the recurrence of a block did on some tokens, as the numbers that a sum over tokens of its state is made from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scope.errors import UnknownSite
from scope.models.griffin.model import Griffin
from scope.models.griffin.scan import Channels
from scope.shapes import Mask, Tokens


@dataclass(frozen=True)
class Recurrence:
    """h_t = a_t h_(t-1) + write_t, of one block: state[:, t] is a[:, t] * state[:, t - 1] + write[:, t].

    `a` is what the state was multiplied with: 0 where a document starts, 1 at padding, where `write` is 0.
    """

    a: Channels
    write: Channels
    state: Channels
    starts: Mask
    """Where a document starts, position 0 of a text included."""

    gate: Channels
    """exp(log a), also where a document starts. There the write is not multiplied with sqrt(1 - gate^2), so it is larger by
    1 / sqrt(1 - gate^2) than the same input would write anywhere else."""


@torch.no_grad()
def recurrence(
    model: Griffin, tokens: Tokens, layer: int, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
) -> Recurrence:
    """One block's recurrence on tokens [batch pos]; blocks above it do not run. Hooks that are installed act.

    Raises:
        UnknownSite: the block attends, or there is none of that number.
    """
    kinds = model.cfg.layer_types
    if not 0 <= layer < len(kinds) or kinds[layer] != "recurrent":
        recurrent = ", ".join(str(n) for n, kind in enumerate(kinds) if kind == "recurrent")
        raise UnknownSite(f"Block {layer} has no recurrence; blocks {recurrent} have one.")
    names = [f"blocks.{layer}.rec.hook_{name}" for name in ("a", "write", "state")]
    options = {"attention_mask": attention_mask, "position_ids": position_ids, "stop_at_layer": layer + 1}
    _, cache = model.run_with_cache(tokens, names_filter=names, **options)
    gate, write, state = (cache[name] for name in names)
    real, starts = model.run.real[..., None], (model.run.positions == 0) & model.run.real
    a = gate.masked_fill(starts[..., None], 0.0).masked_fill(~real, 1.0)
    return Recurrence(a, write.masked_fill(~real, 0.0), state, starts, gate)
