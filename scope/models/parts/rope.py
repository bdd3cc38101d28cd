"""Rotary positions: feature i turns together with feature i + d_head / 2 (half split, never neighbours)."""

import torch
from jaxtyping import Float
from torch import Tensor

from scope.shapes import Heads, Positions

Angles = Float[Tensor, "#batch pos 1 d_head"]


def rotary_tables(positions: Positions, d_head: int, theta: float, dtype: torch.dtype) -> tuple[Angles, Angles]:
    """cos and sin for absolute positions, the sin of the first half negated, as `rotate` wants them; computed in float32
    whatever the model's dtype, then cast."""
    exponents = torch.arange(0, d_head, 2, dtype=torch.int64, device=positions.device).float() / d_head
    angles = positions[..., None, None].float() * (1.0 / theta**exponents)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def rotate(x: Heads, cos: Angles, sin: Angles) -> Heads:
    """x, turned by its position's angles; one row of angles serves all texts whose positions agree."""
    return (x * cos).add_(x.roll(x.shape[-1] // 2, -1) * sin)
