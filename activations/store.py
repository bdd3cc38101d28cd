"""`ActivationStore`: a recording, read. Every site is one array of rows; every row knows its token, position and context."""

import bisect
import json
from collections import OrderedDict
from collections.abc import Callable
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from activations.errors import RecordingError, UnknownSiteError
from activations.hdf5 import NUMPY
from activations.manifest import Recorded, read_recording
from activations.shards import ShardReader, to_float
from activations.shuffle import MEMORY_BYTES, Batches

_OPEN_SHARDS = 64


class Norms(NamedTuple):
    """Norms of a site's stored rows: mean of the squares, median, largest."""

    mean_square: float
    median: float
    max: float


class ActivationStore:
    """A recording as it stood when it was opened; a writer may go on beside it.

        store = ActivationStore.open("runs/recording")
        store["blocks.3.hook_resid_post"][1000:2000]      # float32 [1000 width]
        store.token_ids[1000:2000]                        # which token each row is
        store.tokens[store.contexts_of[1000]]             # the whole context it stands in

    What is read is held against its checksum the first time. Memory: what is asked for, and 4 bytes a row for the arrays of
    tokens, positions and contexts once they are used.
    """

    def __init__(self, folder: Path, recorded: Recorded):
        self.folder, self.manifest, self.entries = folder, recorded.manifest, recorded.entries
        self.sites: dict[str, int] = {s: self.manifest["layout"]["widths"][s] for s in self.manifest["config"]["sites"]}
        self.dtype: str = self.manifest["config"]["dtype"]
        self.context: int = self.manifest["config"]["context"]
        self.segment_rows: int = self.manifest["layout"]["segment_rows"]
        self.n_rows, self.n_contexts, self.exhausted = recorded.n_rows, recorded.n_contexts, recorded.exhausted
        self.starts = [entry["rows"][0] for entry in self.entries]
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._lock = Lock()  # the shuffled reader reads ahead in a thread

    @classmethod
    def open(cls, folder: str | Path, whole: bool = True) -> "ActivationStore":
        """Open a recording. Every shard must be there and of its length, unless `whole` is False, as for `verify`.

        Raises:
            RecordingError: no recording, an empty one, or one whose files are missing, cut short or damaged.
        """
        folder = Path(folder)
        recorded = read_recording(folder)
        if not recorded.entries:
            raise RecordingError(
                f"The recording in {folder} holds nothing yet: no shard is finished.\n  Give the same `scope harvest` again."
            )
        store = cls(folder, recorded)
        for entry in recorded.entries if whole else ():
            path = folder / entry["file"]
            found = path.stat().st_size if path.exists() else None
            if found != entry["bytes"]:
                store.reader(entry["shard"])  # raises, and says why
        return store

    def __repr__(self) -> str:
        return f"ActivationStore({str(self.folder)!r}: {self.n_rows:,} rows of {', '.join(self.sites)})"

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, site: str) -> "Rows":
        """
        Raises:
            UnknownSiteError: the recording does not hold that site.
        """
        self.width(site)
        return Rows(self, site)

    def width(self, site: str) -> int:
        if site not in self.sites:
            near = get_close_matches(site, self.sites, n=4, cutoff=0.3)
            raise UnknownSiteError(
                f"{self.folder} holds no activations of {site}.\n"
                f"  It holds: {', '.join(near or self.sites)}\n"
                f"  To record it: scope harvest --sites {site} with another --out"
            )
        return self.sites[site]

    def reader(self, shard: int) -> ShardReader:
        """The open file of a shard; the least used are closed."""
        with self._lock:
            if shard not in self._readers:
                self._readers[shard] = ShardReader(self.folder, self.entries[shard], self.segment_rows)
            self._readers.move_to_end(shard)
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
            return self._readers[shard]

    def raw(self, site: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as they are stored: float32, or uint16 that are the bits of bfloat16."""
        self.width(site)
        if not 0 <= start <= stop <= self.n_rows:
            raise RecordingError(f"Rows {start} to {stop} are asked for; {self.folder} holds rows 0 to {self.n_rows}.")
        parts = []
        for shard in range(max(0, bisect.bisect_right(self.starts, start) - 1), len(self.entries)):
            first, end = self.entries[shard]["rows"]
            low, high = max(start, first), min(stop, end)
            if low < high:
                parts.append(self.reader(shard).raw(site, low - first, high - first))
            if end >= stop:
                break
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, self.sites[site]), NUMPY[self.dtype])

    @cached_property
    def tokens(self) -> np.ndarray:
        """int32 [context position]: what the model read, <bos> first, <pad> where a last context is short."""
        return self._whole("tokens")

    @cached_property
    def documents(self) -> np.ndarray:
        """int32 [context position]: index into `document_names` of the text each token is from; -1 for padding."""
        return self._whole("documents")

    @cached_property
    def document_names(self) -> list[str]:
        """Names of the documents, in the order in which they were read."""
        return [name for i in range(len(self.entries)) for name in json.loads(self.reader(i).small("document_names").tobytes())]

    @cached_property
    def token_ids(self) -> np.ndarray:
        """int32 [row]: the token at which each row was recorded."""
        return self._whole("rows/token_id")

    @cached_property
    def positions(self) -> np.ndarray:
        """int32 [row]: where in its context each row stands; <bos> is 0."""
        return self._whole("rows/position")

    @cached_property
    def contexts_of(self) -> np.ndarray:
        """int32 [row]: which context each row stands in."""
        return self._whole("rows/context")

    @cached_property
    def row_starts(self) -> np.ndarray:
        """int64 [context + 1]: the rows of context i are row_starts[i] to row_starts[i + 1]."""
        return np.searchsorted(self.contexts_of, np.arange(self.n_contexts + 1))

    def rows_of_context(self, context: int) -> slice:
        """The rows of a context, in the order of their positions."""
        if not 0 <= context < self.n_contexts:
            raise RecordingError(f"Context {context} is asked for; {self.folder} holds 0 to {self.n_contexts - 1}.")
        return slice(int(self.row_starts[context]), int(self.row_starts[context + 1]))

    def norms(self, site: str) -> Norms:
        """Mean square, median and largest norm over all rows; what `exclude` left out, as <bos>, is not among them."""
        self.width(site)
        rows = [entry["rows"][1] - entry["rows"][0] for entry in self.entries]
        squares = [entry["mean_square_norm"][site] for entry in self.entries]
        largest = max(entry["max_norm"][site] for entry in self.entries)
        return Norms(float(np.average(squares, weights=rows)), self._median(site), largest)

    def row_norms(self, site: str) -> np.ndarray:
        """float32 [row]: the norm of every row."""
        self.width(site)
        return self._whole(f"norms/{site}")

    def sinks(self, site: str, times: float = 10.0) -> np.ndarray:
        """Rows whose norm is more than `times` the median: attention sinks and the like, which can decide a mean alone."""
        return np.flatnonzero(self.row_norms(site) > times * self.norms(site).median)

    def shuffled(
        self,
        site: str | tuple[str, ...],
        batch_size: int,
        seed: int = 0,
        epochs: int | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Batches:
        """Batches float32 [batch_size width] in a seeded random order, without end unless `epochs` is given.

        Given several sites, a batch is a tuple of tensors whose rows belong to the same tokens. See `Batches`.
        """
        for name in (site,) if isinstance(site, str) else site:
            self.width(name)
        return Batches(self, site, batch_size, seed, epochs, memory_bytes)

    def verify(self, on_progress: Callable[[int, int, dict], None] | None = None) -> list[str]:
        """Read every byte of every shard; what fails its checksum, in words. Empty means that all is as it was sealed."""
        found, total, done = [], sum(entry["bytes"] for entry in self.entries), 0
        for entry in self.entries:
            try:
                found += self.reader(entry["shard"]).faults()
            except RecordingError as error:
                found.append(str(error))
            done += entry["bytes"]
            if on_progress:
                on_progress(done, total, {"damaged": len(found)})
        return found

    def _whole(self, name: str) -> np.ndarray:
        return np.concatenate([self.reader(i).small(name) for i in range(len(self.entries))])

    def _median(self, site: str) -> float:
        """The lower median, exactly, in 256 kB whatever the size: norms are positive, so their bits are in their order."""
        target, low = (self.n_rows - 1) // 2, 0
        for shift in (16, 0):
            counts = np.zeros(1 << 16, np.int64)
            for i in range(len(self.entries)):
                bits = self.reader(i).small(f"norms/{site}").view(np.uint32)
                inside = bits >> 16 == low >> 16 if shift == 0 else slice(None)
                counts += np.bincount((bits[inside] >> shift) & 0xFFFF, minlength=1 << 16)
            reached = np.cumsum(counts)
            digit = int(np.searchsorted(reached, target, side="right"))
            target -= int(reached[digit - 1]) if digit else 0
            low |= digit << shift
        return float(np.uint32(low).view(np.float32))


class Rows:
    """One site of a recording as an array of float32 rows."""

    def __init__(self, store: ActivationStore, site: str):
        self.store, self.site = store, site
        self.shape = (store.n_rows, store.sites[site])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray | Tensor | list[int]) -> Tensor:
        """float32 [n width] for a slice or an array of row numbers, [width] for one row number."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                return self[np.arange(start, stop, step)]
            return to_float(self.store.raw(self.site, start, max(start, stop)), self.store.dtype)
        if isinstance(rows, int | np.integer):
            return self[np.array([rows])][0]
        wanted = np.asarray(rows)
        if wanted.dtype == bool:
            wanted = np.flatnonzero(wanted)
        wanted = np.where(wanted < 0, wanted + len(self), wanted).astype(np.int64)
        out = torch.empty((len(wanted), self.shape[1]))
        order = np.argsort(wanted, kind="stable")
        for run in np.split(order, np.flatnonzero(np.diff(wanted[order]) > 8) + 1):
            if len(run):
                first, last = int(wanted[run[0]]), int(wanted[run[-1]])
                block = to_float(self.store.raw(self.site, first, last + 1), self.store.dtype)
                out[torch.from_numpy(run)] = block[torch.from_numpy(wanted[run] - first)]
        return out
