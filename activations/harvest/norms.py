"""Norms of a site's rows, told without holding them all."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np


class Norms(NamedTuple):
    """Norms of a site's stored rows: mean of the squares, median, largest."""

    mean_square: float
    median: float
    max: float


def lower_median(parts: Callable[[], Iterable[np.ndarray]], n: int) -> float:
    """The lower median of n norms, float32 in parts that are read twice: exact, in 512 kB whatever their number.

    Norms are not negative, so their bits are in their order: the upper half of the median's bits is found first.
    """
    target, low = (n - 1) // 2, 0
    for shift in (16, 0):
        counts = np.zeros(1 << 16, np.int64)
        for part in parts():
            bits = part.view(np.uint32)
            inside = bits >> 16 == low >> 16 if shift == 0 else slice(None)
            counts += np.bincount((bits[inside] >> shift) & 0xFFFF, minlength=1 << 16)
        reached = np.cumsum(counts)
        digit = int(np.searchsorted(reached, target, side="right"))
        target -= int(reached[digit - 1]) if digit else 0
        low |= digit << shift
    return float(np.uint32(low).view(np.float32))
