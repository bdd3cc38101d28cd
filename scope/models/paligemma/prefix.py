"""The attention mask of a PaliGemma: tokens of the prefix see one another in both directions, the answer is causal.

    query i sees key j   iff   j <= i (and, in a local layer, less than a window back)   or   both are of the prefix

The prefix (token type 0) is the picture, <bos>, the prompt and its newline; the answer is type 1. The rule of the prefix goes
before the window of a PaliGemma 2's local layers, as in transformers. Positions count from 1.

Source: PaliGemma, section 3, arXiv:2407.07726; PaliGemma 2, arXiv:2412.03555.
"""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from scope.models.parts.cache import ModelCache
from scope.models.parts.mask import CausalMask, Piece, Visible
from scope.models.parts.positions import Angles, RunPositions, rotary_tables
from scope.shapes import Mask, Positions

TokenTypes = Int[Tensor, "batch pos"]


class PrefixMask(CausalMask):
    """A causal mask in which the tokens of `prefix` see one another whatever their order and distance."""

    prefix: Mask

    def whole(self, n_keys: int) -> Visible:
        seen = super().whole(n_keys)
        both = self.prefix[:, :, None] & self.prefix[:, None, -n_keys:]
        return seen | (both if self.real is None else both & self.real[:, None, -n_keys:])

    def _by_index(self, n_keys: int, cuts: list[slice]) -> list[Piece]:
        return self._by_mask(n_keys, cuts)

    def _by_mask(self, n_keys: int, cuts: list[slice]) -> list[Piece]:
        pieces = super()._by_mask(n_keys, cuts)
        return [replace(piece, hidden=[h for h in piece.hidden if h[1].any()]) for piece in pieces]


class PrefixPositions(RunPositions):
    """Positions from 1, and the mask of a prefix. `prefix` None: a cached run goes on, and every token of it is causal."""

    def __init__(
        self,
        positions: Positions,
        real: Mask | None,
        cache: ModelCache | None,
        dtype: torch.dtype,
        prefix: Mask | None,
    ):
        super().__init__(positions, real, cache, dtype)
        alike = prefix is not None and real is None and bool((prefix == prefix[:1]).all())
        self.prefix = prefix[:1] if alike else prefix

    def rotary(self, d_head: int, theta: float, factor: float = 1.0) -> tuple[Angles, Angles]:
        if (d_head, theta, factor) not in self._rotary:
            rows = self.positions if self.real is not None else self.positions[:1]
            self._rotary[d_head, theta, factor] = rotary_tables(rows + 1, d_head, theta, self.dtype, factor)
        return self._rotary[d_head, theta, factor]

    def causal_mask(self, window: int | None) -> CausalMask:
        if self.prefix is None:
            return super().causal_mask(window)
        if window not in self._masks:
            mask = PrefixMask(self.positions, self.key_positions, self.key_real, window)
            mask.prefix = self.prefix
            self._masks[window] = mask
        return self._masks[window]
