"""Draws the objects of a scene: signed distances with a soft edge of one pixel, on a tilted grey with noise."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from scope.activations.scenes.world import PATCH, SIDE, Thing

RGB = {
    "red": (215, 45, 40),
    "green": (45, 165, 70),
    "blue": (50, 80, 215),
    "yellow": (235, 205, 50),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
NOISE, COLOUR_JITTER = 6.0, 12.0
"""Standard deviations in grey levels: of every pixel, and of the colour of a whole object."""

Picture = UInt8[np.ndarray, "height width 3"]
Covered = Float[np.ndarray, "object patch"]


def distance(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Signed distance in pixels, about, to the edge of a shape around the origin; negative inside. `y` grows downwards."""
    across, down = np.abs(x), np.abs(y)
    if shape == "circle":
        return np.hypot(x, y) - r
    if shape == "square":
        return np.maximum(across, down) - 0.8 * r
    if shape == "triangle":
        return np.maximum(y - 0.6 * r, 0.866 * across - 0.5 * y - 0.55 * r)
    if shape == "cross":
        return np.minimum(np.maximum(across - r, down - 0.33 * r), np.maximum(down - r, across - 0.33 * r))
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.75 * r) - 0.25 * r
    return (across + down - r) * 0.707  # diamond


def draw(
    things: Sequence[Thing], rng: np.random.Generator, left: int = 0, top: int = 0, side: int = SIDE
) -> tuple[Picture, Covered]:
    """(the square of `side` pixels at `left`, `top` of a picture, the share of each of its patches that each object covers)."""
    x = np.arange(left, left + side, dtype=np.float32) + 0.5
    y = np.arange(top, top + side, dtype=np.float32)[:, None] + 0.5
    tilt = rng.uniform(-0.4, 0.4, 2).astype(np.float32)
    picture = np.repeat((rng.uniform(95, 160) + tilt[0] * (x - SIDE / 2) + tilt[1] * (y - SIDE / 2))[..., None], 3, 2)
    covered = np.zeros((len(things), side // PATCH, side // PATCH), np.float32)
    for i, thing in enumerate(things):
        inside = np.clip(0.5 - distance(thing.shape, x - thing.x, y - thing.y, thing.radius), 0, 1)
        colour = (RGB[thing.colour] + rng.normal(0, COLOUR_JITTER, 3)).astype(np.float32)
        picture += inside[..., None] * (colour - picture)
        covered[i] = inside.reshape(side // PATCH, PATCH, side // PATCH, PATCH).mean((1, 3))
    picture += NOISE * rng.standard_normal(picture.shape, dtype=np.float32)
    return picture.clip(0, 255).astype(np.uint8), covered.reshape(len(things), (side // PATCH) ** 2)
