"""Shuffled reading: seeded, in bounded memory, resumable at every row.

`shuffle_order.py` computes the order. A pool of rows is read as a whole and returned in batches while a thread reads the next
pool. The state is the number of rows returned so far, and every batch is a pure function of it.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from scope.activations.corpus.roles import KindOfRows
from scope.activations.errors import RecordingError
from scope.activations.format.hdf5 import NUMPY
from scope.activations.format.row_bytes import read_into, to_tensor
from scope.activations.format.shard_entry import Count
from scope.activations.read.buffer_pool import BufferPool
from scope.activations.read.shuffle_order import Order, ShuffleSource
from torch import Tensor

from scope.typed_json import typed

_LOT, _AHEAD = 32, 8  # runs of segments announced to the system at once, and lots ahead
_GATHER_BYTES = 4 << 20  # bytes gathered at once: they stay in the cache until converted

MEMORY_BYTES = 512 << 20
"""Default size of all pools of one reader."""

Pool = tuple[list[Tensor], np.ndarray]
"""The rows of a pool, one tensor [row width] per site, and their order."""


class Batches:
    """Batches of rows in a random order. A `for` loop continues at the current state, and starts over after the last epoch.

    Every row is returned once an epoch. A recording that fits `memory_bytes` is shuffled perfectly. A larger one is shuffled
    within pools of memory_bytes / 2 whose segments are drawn from all of it: two rows of a batch then share a segment with a
    probability of 1 / (segments in a pool). At the defaults that is 1 / 4096 for one site, whatever its width and the length of
    the recording; for n sites read together n / 4096, so give them n times the memory.

    Measured for batches of 4096 from 4.2 million rows in documents of 1024 (bfloat16). Pairs of rows of one document, and pairs
    of neighbouring rows, are over those of independent draws, which have 2045 and 4 a batch; the variance is that of a batch's
    mean over that of independent rows, where rows of one document correlate with 0.2:

        sites  width   memory     pairs of one document   neighbours   documents in a batch   variance
        any    any     all fits            1.00                1               2590             1.20
        1      2304    755 MB              1.65               48               2129             1.33
        1      2304    512 MiB             1.91               68               1959             1.38
        1      256     512 MiB             1.86                8               1983             1.37
        8      2304    512 MiB             8.29              536                493             2.66
        8      2304    4 GiB               1.91               68               1959             1.38

    A buffer of 755 MB that is refilled in order gives 16 to 17 times the pairs and a variance of 4.3. Neighbours remain: at 68,
    every fifteenth row of a batch has its successor in it. `python -m tests.benchmarks.mixing`
    repeats this.
    Memory beyond the pools: 12 bytes a segment, 16 bytes a row of the pools for the order, and the batches in use
    plus the one being made; the memory of a batch is reused once nothing refers to it.
    """

    def __init__(
        self,
        store: ShuffleSource,
        site: str | tuple[str, ...],
        batch_size: int,
        seed: int = 0,
        epochs: int | None = None,
        memory_bytes: float = MEMORY_BYTES,
        outliers: bool = True,
        kind: KindOfRows = "all",
    ):
        if batch_size < 1 or (epochs is not None and epochs < 1):
            wrong = f"batch_size is {batch_size}" if batch_size < 1 else f"epochs is {epochs}"
            raise RecordingError(f"{wrong}; it must be at least 1.")
        if seed < 0:
            raise RecordingError(f"seed is {seed}; it must be 0 or more.")
        if not site:
            raise RecordingError(f"No site is given to read. The recording holds {', '.join(store.sites)}.")
        self.store, self.batch_size, self.seed, self.epochs = store, batch_size, seed, epochs
        self.single = isinstance(site, str)
        self.sites = (site,) if isinstance(site, str) else tuple(site)
        self.widths = [store.sites[s] for s in self.sites]
        self.row = 0
        self._ended = False
        self.plan = Order(store, self.sites, seed, int(memory_bytes), outliers, kind)  # accepts 4e9
        self.kind: KindOfRows = kind
        self.n_rows, self.n_pools = self.plan.n_rows, self.plan.n_pools
        self.left_out = self.plan.left_out
        """Rows that are never returned: outliers by the rule of the recording, and those of another kind."""

    @property
    def epoch(self) -> int:
        return self.row // self.n_rows

    def state_dict(self) -> dict:
        """State after the last returned batch. JSON."""
        return {"row": self.row, **self._order()}

    def load_state_dict(self, state: dict) -> None:
        """Restore a state; the next batch is the one that would have followed.

        Raises:
            RecordingError: the state belongs to another order: other seed, sites, memory, or a recording that grew since.
        """
        order = self._order()
        differs = [f"{k}: {state.get(k)} then, {v} now" for k, v in order.items() if state.get(k) != v]
        if differs:
            raise RecordingError(
                "This state belongs to another order of rows (" + "; ".join(differs) + ").\n"
                "  Read with the same seed, sites and memory as before, from the recording as it was."
            )
        self.row, self._ended = typed(state.get("row"), Count, "The saved row", RecordingError), False

    def _order(self) -> dict:
        order = {"seed": self.seed, "sites": list(self.sites), "n_rows": self.n_rows, "n_pools": self.n_pools}
        return order if self.kind == "all" else order | {"rows": self.kind}

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, ...]]:
        if self._ended:
            self.row, self._ended = 0, False
        last = None if self.epochs is None else self.epochs * self.n_rows
        spare = [BufferPool(min(self.batch_size, last or self.batch_size), w) for w in self.widths]
        with _Pools(self) as pools:
            while last is None or self.row < last:
                want = self.batch_size if last is None else min(self.batch_size, last - self.row)
                batch, done = tuple(s.take(want) for s in spare), 0
                while done < want:
                    (tensors, order), offset = pools.at(self.row + done)
                    rows = torch.from_numpy(order[offset : offset + want - done])
                    for out, stored in zip(batch, tensors, strict=True):
                        gather(out[done : done + len(rows)], stored, rows)
                    done += len(rows)
                self.row += want
                yield batch[0] if self.single else batch
        self._ended = True

    def order(self, epoch: int) -> Iterator[np.ndarray]:
        """Row numbers of an epoch in their order, pool by pool. Reads no file."""
        return self.plan.of_epoch(epoch)

    def new_buffers(self) -> list[np.ndarray]:
        """Memory for a pool: one array per site."""
        return [np.empty((self.plan.most_rows, w), NUMPY[self.store.dtype]) for w in self.widths]

    def read(self, segments: np.ndarray, into: list[np.ndarray]) -> list[Tensor]:
        """The rows of some segments as stored, in the order of the recording; adjacent segments are read together."""
        segments = np.sort(segments)
        shard, within = self.plan.shard[segments], self.plan.segment[segments]
        breaks = (np.diff(segments) != 1) | (np.diff(shard) != 0)
        edges = np.concatenate([[0], np.flatnonzero(breaks) + 1, [len(segments)]])
        at = np.concatenate([[0], np.cumsum(self.plan.rows[segments])])[edges].tolist()
        firsts, shards = within[edges[:-1]].tolist(), shard[edges[:-1]].tolist()
        views = [memoryview(array).cast("B") for array in into]
        row_bytes = [array.strides[0] for array in into]
        offsets = {
            shard: [self.store.reader(shard).places[f"acts/{site}"].offset for site in self.sites]
            for shard in sorted(set(shards))
        }
        m, announced = self.store.segment_rows, 0
        for run in range(len(firsts)):
            if run % _LOT == 0 and hasattr(os, "posix_fadvise"):  # disks are faster with many requests at once
                ahead = min(run + _AHEAD * _LOT, len(firsts))
                for later in range(announced, ahead):
                    reader, n = (
                        self.store.reader(shards[later]),
                        at[later + 1] - at[later],
                    )  # a reference, since another thread may evict it
                    for offset, width in zip(offsets[shards[later]], row_bytes, strict=True):
                        os.posix_fadvise(reader.fd, offset + firsts[later] * m * width, n * width, os.POSIX_FADV_WILLNEED)
                announced = ahead
            reader, rows = self.store.reader(shards[run]), slice(at[run], at[run + 1])
            for site, array, view, offset, width in zip(self.sites, into, views, offsets[shards[run]], row_bytes, strict=True):
                part = view[rows.start * width : rows.stop * width]
                read_into(reader.fd, part, offset + firsts[run] * m * width, reader.path)
                reader.check(site, firsts[run], array[rows])
        return [to_tensor(array[: at[-1]], self.store.dtype) for array in into]


class _Pools:
    """The pool in use, and the next one, which a thread reads."""

    def __init__(self, batches: Batches):
        self.batches = batches
        self.epochs_dealt: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}
        self.current: tuple[int, int] | None = None
        self.pool: Pool | None = None
        self.next_pool: tuple[tuple[int, int], Future] | None = None
        self.buffers: list[list[np.ndarray]] = []

    def __enter__(self) -> "_Pools":
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="shuffle")
        return self

    def __exit__(self, *exc) -> None:
        self.thread.shutdown(wait=True, cancel_futures=True)

    def at(self, row: int) -> tuple[Pool, int]:
        """The pool that holds row number `row` of the stream, and the number of its rows before that one."""
        epoch, offset = divmod(row, self.batches.n_rows)
        starts = self._deal(epoch)[1]
        number = int(np.searchsorted(starts, offset, side="right")) - 1
        if self.current != (epoch, number):
            self._go_to(epoch, number)
        assert self.pool is not None
        return self.pool, offset - int(starts[number])

    def _deal(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        if epoch not in self.epochs_dealt:
            pools = self.batches.plan.deal(epoch)
            starts = np.cumsum([0] + [self.batches.plan.rows_in(p) for p in pools])[:-1]
            self.epochs_dealt = {e: d for e, d in self.epochs_dealt.items() if e == epoch - 1} | {epoch: (pools, starts)}
        return self.epochs_dealt[epoch]

    def _go_to(self, epoch: int, number: int) -> None:
        last = self.batches.epochs is not None and epoch + 1 >= self.batches.epochs
        if self.batches.n_pools == 1:
            tensors = self.pool[0] if self.pool else self._load(epoch, number)[0]
            self.pool = tensors, self.batches.plan.within(self._deal(epoch)[0][number], epoch, number)
        else:
            waiting = self.next_pool[1].result() if self.next_pool else None  # after this, the thread writes to no pool
            taken = waiting if self.next_pool and self.next_pool[0] == (epoch, number) else None
            self.pool = taken or self._load(epoch, number)
            following = (epoch, number + 1) if number + 1 < self.batches.n_pools else (epoch + 1, 0)
            self.next_pool = None
            if following[0] == epoch or not last:
                self.next_pool = following, self.thread.submit(self._load, *following)
        self.current = epoch, number

    def _load(self, epoch: int, number: int) -> Pool:
        """Read a pool into the buffers of the pool before the current one."""
        if len(self.buffers) < min(2, self.batches.n_pools):
            self.buffers.append(self.batches.new_buffers())
        else:
            self.buffers.append(self.buffers.pop(0))
        tensors = self.batches.read(self._deal(epoch)[0][number], self.buffers[-1])
        return tensors, self.batches.plan.within(self._deal(epoch)[0][number], epoch, number)


def gather(out: Tensor, stored: Tensor, rows: Tensor) -> None:
    """Copy rows of a pool to `out` as float32, a few at a time, so that they stay in the cache in between."""
    if stored.dtype == torch.float32:
        torch.index_select(stored, 0, rows, out=out)
        return
    step = max(1, _GATHER_BYTES // (stored.shape[1] * stored.itemsize))
    for at in range(0, len(rows), step):
        out[at : at + step] = stored.index_select(0, rows[at : at + step])
