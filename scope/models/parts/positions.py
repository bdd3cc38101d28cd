"""The positions of a run, with the rotary tables and masks that follow from them, computed once for all blocks."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scope.models.parts.cache import ModelCache
from scope.models.parts.mask import CausalMask
from scope.shapes import Heads, Mask, Positions

Angles = Float[Tensor, "#batch pos 1 d_rotary"]


class RunPositions:
    """The positions of the tokens of one run. Every block asks it for the rotary table and the mask of its own kind.

    `real` None says that there is no padding and no gap: every row of positions counts on by one. `positions` and `real` are
    those of the new tokens, `key_positions` and `key_real` those of all that can be attended to, cached tokens first.
    """

    def __init__(self, positions: Positions, real: Mask | None, cache: ModelCache | None, dtype: torch.dtype):
        self.positions, self.real, self.dtype = positions, real, dtype
        self.key_positions = positions if cache is None else cache.positions
        self.key_real = None if real is None else real if cache is None else cache.real
        self.may_start = real is not None or cache is None or cache.n_tokens == positions.shape[1]
        """False where it is known that no document starts among these tokens."""

        self.documents = None if self.key_real is None else packed_documents(self.key_positions, self.key_real)
        self._rotary: dict[tuple[int, float, float], tuple[Angles, Angles]] = {}
        self._masks: dict[int | None, CausalMask] = {}

    @property
    def starts(self) -> Mask:
        """Where a document starts: real tokens at position 0."""
        first = self.positions == 0
        return first if self.real is None else first & self.real

    def rotary(self, d_head: int, theta: float, factor: float = 1.0) -> tuple[Angles, Angles]:
        """cos and sin; one row of angles serves all texts where all rows of positions agree."""
        if (d_head, theta, factor) not in self._rotary:
            rows = self.positions if self.real is not None else self.positions[:1]
            self._rotary[d_head, theta, factor] = rotary_tables(rows, d_head, theta, self.dtype, factor)
        return self._rotary[d_head, theta, factor]

    def causal_mask(self, window: int | None) -> CausalMask:
        """For a layer that looks back `window` tokens, the query's own included; None looks at all."""
        if window not in self._masks:
            self._masks[window] = CausalMask(self.positions, self.key_positions, self.key_real, window, self.documents)
        return self._masks[window]


def packed_documents(positions: Positions, real: Mask) -> Int[Tensor, "batch key"] | None:
    """Which document of its row each token belongs to; None where no row holds more than one."""
    documents = ((positions == 0) & real).cumsum(1)
    return documents if int(documents[:, -1].max()) > 1 else None


def rotary_tables(
    positions: Positions, d_head: int, theta: float, dtype: torch.dtype, factor: float = 1.0
) -> tuple[Angles, Angles]:
    """cos and sin for absolute positions divided by `factor`, for turning feature i together with feature i + d_head / 2 (never
    with its neighbour). The sin of the first half is negated, as `rotate` wants it. Computed in float32 whatever the model's
    dtype, then cast."""
    exponents = torch.arange(0, d_head, 2, dtype=torch.int64, device=positions.device).float() / d_head
    frequencies = 1.0 / theta**exponents if factor == 1 else 1.0 / theta**exponents / factor
    angles = positions[..., None, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def rotate(x: Heads, cos: Angles, sin: Angles) -> Heads:
    """x, turned by its position's angles; one row of angles serves all texts whose positions agree. Where there are fewer
    angles than features, only the first features turn."""
    n = cos.shape[-1]
    if n < x.shape[-1]:
        return torch.cat([rotate(x[..., :n], cos, sin), x[..., n:]], -1)
    return (x * cos).add_(x.roll(x.shape[-1] // 2, -1) * sin)
