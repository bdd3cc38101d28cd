"""Histograms with a few bars of equal width, as other tools draw them, from eight bins an octave."""

import numpy as np

N_BARS = 50


def bars(edges: np.ndarray, counts: np.ndarray, largest: float, n: int = N_BARS) -> tuple[list[float], list[float]]:
    """(centres, heights) of `n` bars of equal width from 0 to the largest activation; the heights add up to all firings.

    Firings within one bin of the pack (9 % wide) are spread evenly over it, so a bar may be off by part of one such bin.
    """
    if not counts.sum() or not largest > 0:
        return [], []
    ends = np.linspace(0, largest, n + 1)
    reached = np.minimum(edges, largest)
    reached[-1] = largest
    below = np.interp(ends, reached, np.concatenate([[0], np.cumsum(counts)]))
    below[-1] = counts.sum()
    centres = (ends[:-1] + ends[1:]) / 2
    return [round(float(v), 5) for v in centres], [round(float(v), 3) for v in np.diff(below)]


def logit_bars(counts: np.ndarray, ends: np.ndarray) -> tuple[list[float], list[int]]:
    """(centres, heights) of a latent's logits over the vocabulary; empty for packs that did not count them."""
    if not counts.size or not ends.size:
        return [], []
    edges = np.linspace(float(ends[0]), float(ends[1]), len(counts) + 1)
    return [round(float(v), 5) for v in (edges[:-1] + edges[1:]) / 2], [int(v) for v in counts]


def quantiles(edges: np.ndarray, counts: np.ndarray, n_tokens: int, at: np.ndarray, largest: float) -> np.ndarray:
    """The activation below which the share `at` of all tokens lies, silent ones included, within one bin (9 %)."""
    total = int(counts.sum())
    if not total:
        return np.zeros(len(at))
    inside = (at * n_tokens - (n_tokens - total)) / total
    reached = np.minimum(np.log(edges), np.log(largest))
    found = np.exp(np.interp(inside, np.concatenate([[0], np.cumsum(counts) / total]), reached))
    return np.where(inside > 0, found, 0.0)
