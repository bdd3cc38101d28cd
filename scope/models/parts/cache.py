"""What generation remembers: per layer, the keys and values of the tokens so far.

A local layer only ever looks back `window - 1` tokens, so its entry drops what lies further; absolute positions travel
with the keys, which is what masks are made from.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scope.shapes import Heads, Keys


@dataclass
class LayerCache:
    """Keys and values of one layer, [batch key kv d_head]; `window` None keeps all."""

    window: int | None = None
    k: Tensor | None = None
    v: Tensor | None = None

    def append(self, k: Heads, v: Heads) -> tuple[Keys, Keys]:
        """All keys and values that the new tokens may see, the new ones last; then forgets what no later token sees."""
        if self.k is not None:
            k, v = torch.cat([self.k, k], dim=1), torch.cat([self.v, v], dim=1)
        keep = k.shape[1] if self.window is None else min(k.shape[1], self.window - 1)
        start = k.shape[1] - keep
        # A slice would keep the whole storage alive; local layers copy their short tail instead.
        self.k, self.v = (k, v) if start == 0 else (k[:, start:].clone(), v[:, start:].clone())
        return k, v


@dataclass
class ModelCache:
    """One LayerCache a block, and the positions and padding that all blocks share."""

    layers: list[LayerCache]
    positions: Tensor | None = None  # [batch pos], absolute, of every token so far
    real: Tensor | None = None  # [batch pos], False at padding
    extra: dict = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        return 0 if self.positions is None else self.positions.shape[1]

    def extend(self, positions: Tensor, real: Tensor) -> None:
        if self.positions is not None:
            positions, real = torch.cat([self.positions, positions], 1), torch.cat([self.real, real], 1)
        self.positions, self.real = positions, real

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch, in this order."""
        self.positions, self.real = self.positions[rows], self.real[rows]
        for layer in self.layers:
            layer.k, layer.v = layer.k[rows], layer.v[rows]
