"""`scene(seed, index)`: a picture of which everything is known. The same numbers give the same picture to the byte."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scope.activations.scenes.draw import Covered, Picture, draw
from scope.activations.scenes.words import Caption, Question, questions, random_caption
from scope.activations.scenes.world import PATCH, SIDE, Thing, lay_out


@dataclass(frozen=True, eq=False)
class Scene:
    """`picture` is uint8 [48 48 3]; `covered` [object patch] says which share of each patch, row by row, each object covers."""

    seed: int
    index: int
    things: tuple[Thing, ...]
    picture: Picture
    covered: Covered

    held_out = property(lambda self: any(thing.held_out for thing in self.things))

    @property
    def text(self) -> str:
        """All that is to be said of it."""
        return Caption(tuple(thing.codes for thing in self.things)).text

    def captions(self, rng: np.random.Generator, n: int = 1) -> list[str]:
        """True captions, each naming some facts."""
        return [random_caption(self.things, rng).text for _ in range(n)]

    def questions(self) -> list[Question]:
        """Every question that has one answer; the same at every call."""
        return questions(self.things, np.random.default_rng([self.seed, self.index, 1]))


def scene(seed: int, index: int, counts: Sequence[int] = (1, 2, 3), held_out: bool = False) -> Scene:
    """Scene number `index` of a seed, with so many objects; with `held_out` one of them is a held-out pair."""
    rng = np.random.default_rng([seed, index])
    things = lay_out(rng, counts, held_out)
    return Scene(seed, index, things, *draw(things, rng))


def scenes(seed: int, n: int, counts: Sequence[int] = (1, 2, 3), held_out: bool = False, start: int = 0) -> Iterator[Scene]:
    """Scenes `start` to `start + n` of a seed."""
    return (scene(seed, index, counts, held_out) for index in range(start, start + n))


CROP = 3 * PATCH
"""Pixels of a side of a crop."""


def crop(seed: int, index: int, held_out: bool = False, aligned: bool = False) -> tuple[Scene, tuple[int, int]]:
    """(a scene of one object of which only a square of 3 x 3 patches is drawn, the row and column of its first patch). The
    square holds the object, and where it lies says where the object is; an `aligned` object has its centre in the square's."""
    rng = np.random.default_rng([seed, index, 2])
    things = lay_out(rng, (1,), held_out, aligned)
    row, column = (_first_patch(rng, centre) for centre in (things[0].y, things[0].x))
    return Scene(seed, index, things, *draw(things, rng, column * PATCH, row * PATCH, CROP)), (row, column)


def _first_patch(rng: np.random.Generator, centre: float) -> int:
    """The first of three patches that reach at least 8 pixels beyond a centre on both sides."""
    return int(rng.choice([i for i in range((SIDE - CROP) // PATCH + 1) if 8 <= centre - i * PATCH <= 16]))
