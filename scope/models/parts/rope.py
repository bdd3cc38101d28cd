"""Rotary positions: feature i turns together with feature i + d_head / 2 (half split, never neighbours)."""

import torch
from jaxtyping import Float
from torch import Tensor

from scope.shapes import Heads, Positions

Angles = Float[Tensor, "#batch pos d_head"]


def rotary_tables(positions: Positions, d_head: int, theta: float, dtype: torch.dtype) -> tuple[Angles, Angles]:
    """cos and sin for absolute positions, computed in float32 whatever the model's dtype, then cast."""
    exponents = torch.arange(0, d_head, 2, dtype=torch.int64, device=positions.device).float() / d_head
    angles = positions[..., None].float() * (1.0 / theta**exponents)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Heads, cos: Angles, sin: Angles) -> Heads:
    """x, turned by its position's angles; one row of angles serves all texts whose positions agree."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, :, None] + torch.cat([-second, first], dim=-1) * sin[:, :, None]
