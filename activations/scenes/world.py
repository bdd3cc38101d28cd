"""The world of the synthetic scenes: one to three objects, each with a colour, a shape, a size and a place on a 3 x 3 grid.

Four pairs of colour and shape occur in no scene unless held-out ones are asked for, so that a model trained on the others can
be tested on combinations that it never saw. Centres lie on a grid of 4 pixels, half a patch: a shape then meets the patches in
few ways, which makes it learnable in minutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIDE, PATCH = 48, 8
"""Pixels of a side of a picture, and of a patch."""

GRID = SIDE // PATCH
COLOURS = ("red", "green", "blue", "yellow", "white", "black")
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
SIZES = ("small", "large")
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
FACTORS = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "place": PLACES}
"""What is known of an object, with the values of each factor in the order of their codes."""

HELD_OUT = frozenset({("green", "triangle"), ("red", "ring"), ("blue", "cross"), ("yellow", "square")})
SEEN = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT)
MOST = 3
"""Objects of a scene at most."""

_RADIUS = {"small": 4.6, "large": 7.2}
_CENTRES = ((8, 12), (20, 24, 28), (36, 40))  # of each column or row of places

Codes = tuple[int, int, int, int]
"""Colour, shape, size and place as numbers; -1: not said."""


@dataclass(frozen=True)
class Thing:
    """An object of a scene. `x`, `y` is its centre and `radius` its half width, in pixels."""

    colour: str
    shape: str
    size: str
    place: str
    x: float
    y: float
    radius: float

    pair = property(lambda self: (self.colour, self.shape))
    held_out = property(lambda self: self.pair in HELD_OUT)

    @property
    def codes(self) -> Codes:
        """The number of each of its factors' values."""
        return tuple(values.index(getattr(self, factor)) for factor, values in FACTORS.items())

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels."""
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius


def lay_out(
    rng: np.random.Generator, counts: Sequence[int] = (1, 2, 3), held_out: bool = False, aligned: bool = False
) -> tuple[Thing, ...]:
    """The objects of a random scene in reading order: no two touch, none repeats a pair of colour and shape. With `held_out`
    one of them is a held-out pair, the others are not; with `aligned` every centre is that of a patch."""
    while True:
        n = int(rng.choice(counts))
        pairs = [SEEN[i] for i in rng.choice(len(SEEN), n, replace=False)]
        if held_out:
            pairs[0] = sorted(HELD_OUT)[rng.integers(len(HELD_OUT))]
        things = [_thing(rng, pair, int(place), aligned) for pair, place in zip(pairs, rng.permutation(9), strict=False)]
        if not any(_touch(a, b) for i, a in enumerate(things) for b in things[:i]):
            return tuple(sorted(things, key=lambda thing: PLACES.index(thing.place)))


def _thing(rng: np.random.Generator, pair: tuple[str, str], place: int, aligned: bool) -> Thing:
    size = SIZES[rng.integers(2)]
    centres = [[c for c in some if not aligned or c % PATCH == PATCH // 2] for some in _CENTRES]
    y, x = (float(rng.choice(centres[i])) for i in divmod(place, 3))
    return Thing(*pair, size, PLACES[place], x, y, _RADIUS[size] + float(rng.uniform(-0.3, 0.3)))


def _touch(a: Thing, b: Thing) -> bool:
    return bool(np.hypot(a.x - b.x, a.y - b.y) < a.radius + b.radius + 1)
