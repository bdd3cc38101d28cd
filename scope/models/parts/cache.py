"""The memory of generation for the tokens so far: an entry for each block, of whatever kind the block makes.

Attention keeps keys and values. A local layer only ever looks back `window - 1` tokens, so its entry drops what lies further;
absolute positions travel with the keys, which is what masks are made from.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from scope.shapes import Heads, Keys

_ROOM = 64  # tokens of room at least, so that not every new one makes new storage
_LOCAL_ROOM = 1024


@runtime_checkable
class CacheEntry(Protocol):
    """What one block remembers. The block alone reads and extends it; these two are what a cache asks of it."""

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch, in this order."""
        ...

    def repeated(self, n: int) -> "CacheEntry":
        """A copy of the one row, n times."""
        ...


class LayerCache:
    """Keys and values of one layer; `window` None keeps all. `k` and `v` show what is remembered, [batch key kv d_head].

    They lie head by head with room at the end: a new token is written behind the others, and storage that is full is
    replaced by larger, never written over, so that what was given out stays what it was.
    """

    gaps = 0
    """Padding between real tokens, in the row that has most of it: so many keys more are kept."""

    def __init__(self, window: int | None = None, k: Keys | None = None, v: Keys | None = None):
        self.window = window
        self.keys = None if k is None else k.transpose(1, 2)
        self.values = None if v is None else v.transpose(1, 2)
        self.start, self.end = 0, 0 if k is None else k.shape[1]
        self.room = self.end  # what came from outside is not written to

    k = property(lambda self: None if self.keys is None else self.keys[:, :, self.start : self.end].transpose(1, 2))
    v = property(lambda self: None if self.values is None else self.values[:, :, self.start : self.end].transpose(1, 2))

    def append(self, k: Heads, v: Heads) -> tuple[Keys, Keys]:
        """All keys and values that the new tokens may see, the new ones last; then forgets what no later token sees."""
        end = self.end + k.shape[1]
        if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
            seen = self._joined(k, v)
            self.keys, self.values = (t.transpose(1, 2) for t in seen)
            self.start, self.end, self.room = 0, seen[0].shape[1], 0
        elif end <= self.room:
            self.keys[:, :, self.end : end], self.values[:, :, self.end : end] = k.transpose(1, 2), v.transpose(1, 2)
            self.end = end
            seen = self.k, self.v
        else:
            seen = self._joined(k, v)
            n = seen[0].shape[1]
            keep = n if self.window is None else min(n, self.window - 1 + self.gaps)
            self.room = keep + max(_ROOM, keep // 2 if self.window is None else min(self.window, _LOCAL_ROOM))
            self.keys, self.values = (self._stored(t[:, n - keep :]) for t in seen)
            self.start, self.end = 0, keep
        if self.window is not None:
            self.start = max(self.start, self.end - self.window + 1 - self.gaps)
        return seen

    def _joined(self, k: Heads, v: Heads) -> tuple[Keys, Keys]:
        if self.keys is None or self.start == self.end:
            return k, v
        return torch.cat([self.k, k], dim=1), torch.cat([self.v, v], dim=1)

    def _stored(self, t: Keys) -> Tensor:
        """[batch kv room d_head] that begins with t."""
        batch, n, kv, d_head = t.shape
        storage = t.new_empty(batch, kv, self.room, d_head)
        storage[:, :, :n] = t.transpose(1, 2)
        return storage

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch, in this order."""
        self.keys, self.values = self.keys[rows], self.values[rows]

    def repeated(self, n: int) -> "LayerCache":
        """The one row, n times; what is appended to the copy does not change this one."""
        if self.k is None:
            return LayerCache(self.window)
        return LayerCache(self.window, self.k.expand(n, -1, -1, -1), self.v.expand(n, -1, -1, -1))


@dataclass
class ModelCache:
    """One entry a block, and the positions and padding that all blocks share."""

    layers: list[CacheEntry]
    positions: Tensor | None = None  # [batch pos], absolute, of every token so far
    real: Tensor | None = None  # [batch pos], False at padding
    padded: bool = True  # False where it is known that every token so far is real

    @property
    def n_tokens(self) -> int:
        return 0 if self.positions is None else self.positions.shape[1]

    def extend(self, positions: Tensor, real: Tensor, padded: bool) -> None:
        self.padded = padded
        if self.positions is not None:
            positions, real = torch.cat([self.positions, positions], 1), torch.cat([self.real, real], 1)
        self.positions, self.real = positions, real
        if padded:
            gaps = int((~real & (real.cumsum(1) > 0)).sum(1).max())
            for layer in self.layers:
                layer.gaps = gaps

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch, in this order."""
        self.positions, self.real = self.positions[rows], self.real[rows]
        for layer in self.layers:
            layer.select(rows)

    def repeated(self, n: int) -> "ModelCache":
        """The cache of one row, n times; what is appended to the copy does not change this one."""
        copy = ModelCache([layer.repeated(n) for layer in self.layers], padded=self.padded)
        if self.positions is not None:
            copy.positions, copy.real = self.positions.expand(n, -1), self.real.expand(n, -1)
        return copy
