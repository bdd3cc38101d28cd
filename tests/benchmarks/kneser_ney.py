"""Interpolated modified Kneser-Ney over token ids, by sorted unique counts: a few GB and a few minutes for 45 M tokens.

An n-gram is named by (rank of its first n - 1 tokens among the (n-1)-grams, last token), so that any order fits 64 bits.
Below the highest order a count is the number of different tokens that precede the n-gram.
Source: Chen and Goodman, "An empirical study of smoothing techniques for language modeling", 1998, section 3.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Order:
    """All n-grams of one length: sorted keys, counts, and running totals from which any context's sums are read."""

    keys: np.ndarray
    counts: np.ndarray
    discounts: np.ndarray  # taken from a count of 0, 1, 2, 3 or more


class KneserNey:
    """Fit on a stream of ids; `bits(ids, boundary)` is the cost of a text that follows a boundary token."""

    def __init__(self, stream: np.ndarray, d_vocab: int, order: int = 5):
        self.d_vocab, self.orders = d_vocab, []
        stream = stream.astype(np.int64)
        below = np.zeros(len(stream), dtype=np.int64)  # rank of the (n-1)-gram that ends before each position
        ranks_before = None
        for _ in range(order):
            grams = below * d_vocab + stream
            keys, first, ranks, counts = np.unique(grams, return_index=True, return_inverse=True, return_counts=True)
            del grams
            if ranks_before is not None:  # what is the n-gram's suffix, one shorter: one more token seen before it
                preceding = np.bincount(ranks_before[first], minlength=len(self.orders[-1][0]))
                self.orders[-1] = (self.orders[-1][0], preceding)
            self.orders.append((keys, counts))
            ranks_before = ranks.astype(np.int32)
            del ranks, first
            below = np.concatenate([[0], ranks_before[:-1]]).astype(np.int64)
        self.orders = [Order(k, np.maximum(c, 1), discounts(np.maximum(c, 1))) for k, c in self.orders]

    def bits(self, ids: np.ndarray, boundary: int) -> np.ndarray:
        """-log2 p of each id, the first one seen after `boundary`."""
        ids = np.concatenate([[boundary], ids]).astype(np.int64)
        p = np.full(len(ids), 1.0 / self.d_vocab)
        below = np.zeros(len(ids), dtype=np.int64)  # rank of the context, -1 where it was never seen
        for order in self.orders:
            known = below >= 0
            keys = np.where(known, below * self.d_vocab + ids, 0)
            at = np.minimum(np.searchsorted(order.keys, keys), len(order.keys) - 1)
            found = known & (order.keys[at] == keys)
            count = np.where(found, order.counts[at], 0)
            totals, kept = self._context(order, below)
            discounted = np.maximum(count - order.discounts[np.minimum(count, 3)], 0.0)
            with np.errstate(invalid="ignore", divide="ignore"):
                p = np.where(totals > 0, discounted / totals + kept / totals * p, p)
            ranks = np.where(found, at, -1)
            below = np.concatenate([[-1], ranks[:-1]])
        return -np.log2(p[1:])

    def _context(self, order: Order, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each context: the sum of its counts, and the mass its discounts free for the shorter context."""
        contexts, inverse = np.unique(below, return_inverse=True)
        low = np.searchsorted(order.keys, contexts * self.d_vocab)
        high = np.searchsorted(order.keys, (contexts + 1) * self.d_vocab)
        totals, freed = np.zeros(len(contexts)), np.zeros(len(contexts))
        for i, (a, b) in enumerate(zip(low, high, strict=True)):
            if contexts[i] >= 0 and b > a:
                counts = order.counts[a:b]
                totals[i] = counts.sum()
                freed[i] = order.discounts[np.minimum(counts, 3)].sum()
        return totals[inverse], freed[inverse]


def discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken from a count of 0, 1, 2, and 3 or more: Chen and Goodman's estimate from counts of counts."""
    n = [int((counts == c).sum()) for c in (1, 2, 3, 4)]
    if min(n) == 0:  # too small a text to estimate from
        return np.array([0.0, 0.5, 0.75, 0.9])
    y = n[0] / (n[0] + 2 * n[1])
    return np.array([0.0, *(c - (c + 1) * y * n[c] / n[c - 1] for c in (1, 2, 3))])
