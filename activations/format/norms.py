"""Norms of a site's rows: their median in bounded memory, and the rule that flags outliers.

A few tokens, above all <bos>, have norms of ten to hundreds of medians. One such row can decide a mean, a variance or a
training step. A recording stores them, since every site has the same rows, and its manifest states the threshold, so
that every reader flags the same rows.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from scope.activations.corpus.outlier_rule import OutlierRule
from scope.activations.corpus.roles import Role


class Norms(NamedTuple):
    """Summary of the norms of a site's stored rows."""

    mean_square: float
    median: float
    max: float


class RowsOfKind(NamedTuple):
    """How many rows of one kind a site has, such as patches of images, their norms, and how many of them are outliers."""

    rows: int
    norms: Norms
    outliers: int


def lower_median(parts: Callable[[], Iterable[np.ndarray]], n: int) -> float:
    """The exact lower median of n float32 norms, given in parts that are read twice, in 512 kB of memory.

    Norms are not negative, so their bit patterns sort like them: the upper 16 bits of the median are found first.
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


def flagged(norms: np.ndarray, rule: OutlierRule | None, site: str, roles: np.ndarray | None = None) -> np.ndarray:
    """bool [row]: True where a stored norm is an outlier by the rule of a manifest.

    Where a recording mixes images and text, patches have a threshold of their own; `roles` then says which rows are patches.
    """
    threshold = rule.threshold.get(site) if rule else None
    outlier = np.zeros(len(norms), bool) if threshold is None else norms > np.float32(threshold)
    if rule and rule.image and roles is not None:
        patches = roles == Role.IMAGE
        limit = rule.image.threshold.get(site)
        outlier[patches] = norms[patches] > np.float32(np.inf if limit is None else limit)
    return outlier


def n_flagged(norms: dict[str, np.ndarray], rule: OutlierRule | None, roles: np.ndarray | None = None) -> dict[str, int]:
    """Number of outliers at each site of a shard; {} if the recording has no rule."""
    return {site: int(flagged(n, rule, site, roles).sum()) for site, n in norms.items()} if rule else {}
