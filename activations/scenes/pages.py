"""Pages for retrieval: eight cells, each empty or with an icon or a word, so that it is known which page answers a query.

Icons are the objects of the scenes; held-out pairs of colour and shape occur on no page unless asked for. Words are black, of
pillow's own font.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw, ImageFont
from scope.activations.scenes.draw import Picture, draw
from scope.activations.scenes.world import HELD_OUT, SEEN, SIZES, Thing

PAGE = 64
"""Pixels of a side of a page."""

COLUMNS, ROWS = 2, 4
WIDTH, HEIGHT = PAGE // COLUMNS, PAGE // ROWS
"""Pixels of a cell."""

WORDS = tuple(
    "bread milk cheese apple lemon sugar salt soup rice fish water tea coffee wine cake egg butter honey oil meat door table "
    "chair lamp book paper pen letter clock key box bag coat shoe hat sock rope tree leaf grass stone river lake sea hill road "
    "house bridge tower farm horse dog cat bird cow king queen boy girl".split()
)
_SIZE, _INK = 10, 20  # of the font in pixels, of its grey level
_EMPTY, _WORD = 0.1, 0.45  # shares of the cells

Item = str | tuple[str, str]
"""A word, or the colour and shape of an icon."""


@dataclass(frozen=True, eq=False)
class Page:
    """`picture` is uint8 [64 64 3]; `items` has what each cell holds, row by row, None where it is empty."""

    seed: int
    index: int
    items: tuple[Item | None, ...]
    picture: Picture

    text = property(lambda self: " and ".join(item_text(item) for item in self.items if item is not None))

    def answers(self, query: Sequence[Item]) -> bool:
        """Whether every item of a query is on the page."""
        return all(item in self.items for item in query)

    def cells(self, item: Item) -> list[tuple[int, int, int, int]]:
        """(left, top, right, bottom) in pixels of each cell that holds the item."""
        places = [divmod(i, COLUMNS) for i, there in enumerate(self.items) if there == item]
        return [(WIDTH * x, HEIGHT * y, WIDTH * (x + 1), HEIGHT * (y + 1)) for y, x in places]


def item_text(item: Item) -> str:
    """An item in the words of a query."""
    return item if isinstance(item, str) else " ".join(item)


def query_text(query: Sequence[Item]) -> str:
    return " and ".join(map(item_text, query))


def page(seed: int, index: int, held_out: bool = False, words: bool = True) -> Page:
    """Page number `index` of a seed; with `held_out` a cell has a held-out pair, without `words` there are icons alone."""
    rng = np.random.default_rng([seed, index, 3])
    items: list[Item | None] = []
    for _ in range(COLUMNS * ROWS):
        kind = rng.random()
        if kind < _EMPTY:
            items.append(None)
        elif words and kind < _EMPTY + _WORD:
            items.append(WORDS[rng.integers(len(WORDS))])
        else:
            items.append(SEEN[rng.integers(len(SEEN))])
    if held_out:
        items[int(rng.integers(len(items)))] = sorted(HELD_OUT)[rng.integers(len(HELD_OUT))]
    return Page(seed, index, tuple(items), _drawn(items, rng))


def with_colours_exchanged(of: Page) -> Page | None:
    """A page with the same words, colours and shapes, whose icons have each other's colours: it answers other queries.

    None where that is not possible without a held-out pair, as with fewer than two icons.
    """
    rng = np.random.default_rng([of.seed, of.index, 5])
    icons = {i: item for i, item in enumerate(of.items) if isinstance(item, tuple)}
    for _ in range(20):
        order = rng.permutation(list(icons)).tolist() if icons else []
        exchanged = {i: (icons[j][0], icons[i][1]) for i, j in zip(icons, order, strict=True)}
        if exchanged != icons and not HELD_OUT & set(exchanged.values()):
            items = [exchanged.get(i, item) for i, item in enumerate(of.items)]
            return Page(of.seed, of.index, tuple(items), _drawn(items, rng))
    return None


def _drawn(items: Sequence[Item | None], rng: np.random.Generator) -> Picture:
    things, printed = [], []
    for i, item in enumerate(items):
        y, x = (i // COLUMNS) * HEIGHT, (i % COLUMNS) * WIDTH
        if isinstance(item, tuple):
            centre = x + float(rng.choice((8, 12, 16, 20, 24))), y + HEIGHT / 2
            things.append(Thing(*item, SIZES[1], "", *centre, 6.4 + float(rng.uniform(-0.4, 0.4))))
        elif item is not None:
            ink = _printed(item)
            spare = min(3, WIDTH - ink.shape[1])
            printed.append((ink, x + int(rng.integers(spare + 1)), y + int(rng.integers(3))))
    picture, _ = draw(things, rng, side=PAGE)
    for ink, x, y in printed:
        height, width = ink.shape
        picture[y : y + height, x : x + width][ink] = _INK
    return picture


def pages(seed: int, n: int, held_out: bool = False, words: bool = True, start: int = 0) -> Iterator[Page]:
    """Pages `start` to `start + n` of a seed."""
    return (page(seed, index, held_out, words) for index in range(start, start + n))


@lru_cache(maxsize=len(WORDS))
def _printed(word: str) -> Bool[np.ndarray, "height width"]:
    """Where a word has ink, as wide as it is and two pixels less high than a cell."""
    image = Image.new("L", (WIDTH, HEIGHT - 2), 0)
    ImageDraw.Draw(image).text((0, 0), word, fill=255, font=ImageFont.load_default(_SIZE))
    ink = np.asarray(image) > 110
    return ink[:, : int(np.flatnonzero(ink.any(0))[-1]) + 1]
