"""The order of shuffled rows: segments are distributed over pools, and rows are shuffled within each pool.

The recording is cut into its segments (runs of 8 to 256 neighbouring rows, about 64 kB). Each epoch they are put in a random
order and distributed over pools that fit the memory; within a pool rows come in a random order.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from scope.activations.corpus.roles import KindOfRows
from scope.activations.errors import RecordingError
from scope.activations.format.hdf5 import ITEM_BYTES
from scope.activations.format.shard_entry import ShardEntry
from scope.activations.format.shard_reader import ShardReader


@runtime_checkable
class ShuffleSource(Protocol):
    """The part of an ActivationStore that shuffled reading uses."""

    entries: list[ShardEntry]
    sites: dict[str, int]
    dtype: str
    segment_rows: int
    n_rows: int
    starts: list[int]

    def outlier_rows(self, index: int, sites: tuple[str, ...]) -> np.ndarray: ...
    def other_rows(self, index: int, kind: KindOfRows) -> np.ndarray: ...
    def reader(self, shard: int) -> ShardReader: ...


class Order:
    """A pure function of recording, sites, seed and memory. Segments are numbered through the whole recording.

    Raises:
        RecordingError: the memory is too small for two segments, or every row is an outlier.
    """

    def __init__(
        self,
        store: ShuffleSource,
        sites: tuple[str, ...],
        seed: int,
        memory_bytes: int,
        outliers: bool,
        kind: KindOfRows = "all",
    ):
        self.store, self.seed = store, seed
        in_entry = np.array([entry.n_rows for entry in store.entries])
        counts = -(-in_entry // store.segment_rows)
        self.shard = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        """int32 [segment]: index of its entry in the store."""
        self.segment = np.concatenate([np.arange(n, dtype=np.int32) for n in counts])
        """int32 [segment]: its number within the entry."""
        self.rows = np.minimum(store.segment_rows, in_entry[self.shard] - self.segment * store.segment_rows).astype(np.int32)
        """int32 [segment]: number of rows."""
        self._flagged = {} if outliers and kind == "all" else self._find_flagged(() if outliers else sites, kind)
        self._given = self.rows.copy()  # rows that are not left out
        for segment, rows in self._flagged.items():
            self._given[segment] -= len(rows)
        self.n_rows = int(self._given.sum())
        """Rows of an epoch."""
        self.left_out = store.n_rows - self.n_rows
        if not self.n_rows:
            what = "" if kind == "all" else f"no {kind} rows, or "
            raise RecordingError(
                f"All {store.n_rows} rows are {what}outliers by the rule of the recording; nothing is left to read."
            )
        row_bytes = sum(store.sites[site] for site in sites) * ITEM_BYTES[store.dtype]
        whole = store.n_rows * row_bytes <= memory_bytes
        per_pool = memory_bytes // 2 // (row_bytes * store.segment_rows)
        if not whole and not per_pool:
            raise RecordingError(
                f"memory_bytes is {memory_bytes:,}; two pools of one segment each, {store.segment_rows} rows of these "
                f"sites, take {2 * row_bytes * store.segment_rows:,}.\n"
                "  Give more memory, for thousands of segments if rows are to be mixed well, or fewer sites."
            )
        self.n_pools = 1 if whole else -(-len(self.shard) // per_pool)
        largest = store.n_rows if whole else -(-len(self.shard) // self.n_pools) * store.segment_rows
        self.most_rows = min(largest, store.n_rows)
        """Rows of the largest pool."""

    def deal(self, epoch: int) -> list[np.ndarray]:
        """The segments of each pool of an epoch."""
        if self.n_pools == 1:
            return [np.arange(len(self.shard))]
        return np.array_split(permutation(len(self.shard), self.seed, epoch), self.n_pools)

    def of_epoch(self, epoch: int) -> Iterator[np.ndarray]:
        """Which rows of the recording come out in an epoch, in their order, pool by pool."""
        starts = np.array(self.store.starts)
        for number, segments in enumerate(self.deal(epoch)):
            segments = np.sort(segments)
            first = starts[self.shard[segments]] + self.segment[segments].astype(np.int64) * self.store.segment_rows
            lengths = self.rows[segments]
            inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            rows = np.repeat(first, lengths) + inside
            yield rows[self.within(segments, epoch, number)]

    def within(self, segments: np.ndarray, epoch: int, number: int) -> np.ndarray:
        """The order of a pool's rows, as indices into its rows in the order of the recording."""
        segments = np.sort(segments)
        n = self.rows_in(segments)
        order = permutation(n, self.seed, epoch, 1, number)
        if n == self.rows[segments].sum():
            return order
        included = np.ones(int(self.rows[segments].sum()), bool)
        starts = np.cumsum(self.rows[segments]) - self.rows[segments]
        for place in np.flatnonzero(self.rows[segments] != self._given[segments]):
            included[starts[place] + self._flagged[int(segments[place])]] = False
        return np.flatnonzero(included)[order]

    def rows_in(self, segments: np.ndarray) -> int:
        """Number of rows of some segments, without those left out."""
        return int(self._given[segments].sum())

    def _find_flagged(self, sites: tuple[str, ...], kind: KindOfRows) -> dict[int, np.ndarray]:
        """Rows that are left out, counted from the first of their segment, by segment."""
        flagged: dict[int, np.ndarray] = {}
        begins = np.searchsorted(self.shard, np.arange(len(self.store.entries)))
        for i in range(len(self.store.entries)):
            rows = self.store.outlier_rows(i, sites)
            rows = rows if kind == "all" else np.union1d(rows, self.store.other_rows(i, kind))
            segments = rows // self.store.segment_rows
            for segment in np.unique(segments):
                flagged[int(begins[i] + segment)] = rows[segments == segment] - segment * self.store.segment_rows
        return flagged


def permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of n numbers that depends on the key only, on every machine and with every NumPy.

    NumPy guarantees the raw output of a bit generator, but not the methods of Generator; so raw output is sorted.
    """
    draws = np.random.PCG64(np.random.SeedSequence([n, *key])).random_raw(n)
    return np.argsort(draws, kind="stable")
