"""Writes a shard: a file with whole contexts and the activations of the rows that count.

    tokens  documents                    [context position]  token ids with padding, and the document of each
    rows/token_id  position  context     [row]               origin of each stored row
    acts/SITE                            [row width]         bfloat16 or float32, as the manifest says
    norms/SITE                           [row]               Euclidean norm of each row as stored
    sums/SITE                            [segment]           XXH3 of every `segment_rows` rows of acts/SITE (once CRC-32)
    document_names                       [byte]              JSON list of the documents that start here
    roles                                [context position]  version 3 only: the `corpus.roles.Role` of each position
    document_facts                       [byte]              version 3 only: JSON list of their metadata
    document_pictures                    [byte]              version 3 only: small pictures of them, as files one after another;
                                                             "thumbnail" in the metadata says [first byte, number of bytes]

There is no 8-bit form. `python -m tests.benchmarks.precision` trains the same SAE on rows stored in fewer bits and scores
it on rows as computed. FVU by seed (64,005 rows of the bundled model, width 256, 250 steps, two seeds), as the model computes,
and with four dimensions moved by 50 root mean squares (`--huge 50`), as some are in the residual streams of wide models:

    float32               0.2095  0.2116      0.2096  0.2116
    bfloat16              0.2094  0.2115      0.2093  0.2119
    int8, scale per 64    0.2097  0.2118      0.2139  0.2156
    fp8, scale per row    0.2089  0.2116      0.2188  0.2211

So bfloat16 is the default: the difference to float32 is below that between seeds. 8 bits would halve the size again where no
dimension is huge; where some are, they cost two to four times the difference between seeds.

The file is an ordinary HDF5 file; `shard_reader.py` reads it. While the model runs, one thread computes norms and checksums
of the rows and another writes them; at most 64 MiB, or one batch of a site if that is more, are queued.
"""

import os
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scope.activations.errors import RecordingError
from scope.activations.format.hdf5 import NUMPY, FileLayout, crc_of_gaps
from scope.activations.format.row_bytes import CHECKSUM, read_rows, row_norms, to_float, to_raw
from torch import Tensor

from scope.progress import size
from scope.whole_files import FULL, NO_LINK, sync_folder

_BLOCK = 8 << 20  # bytes copied at once from another file
_WAITING_BYTES = 64 << 20  # bytes that may be queued for the threads


class NonFiniteError(RecordingError):
    """The model produced NaN or Inf; the shard is discarded."""


class ShardWriter:
    """Writes one shard under a temporary name and renames it when it is complete and synced.

    The whole file is allocated before the first row, so a disk that is too small is noticed here.

    Raises:
        RecordingError: there is no room; no file is left behind.
    """

    def __init__(self, path: Path, file_layout: FileLayout, segment_rows: int, keep: bool = False):
        self.path, self.file_layout, self.segment_rows = path, file_layout, segment_rows
        self.aside = path.with_name(path.name + ".tmp")
        self.sites = [name.removeprefix("acts/") for name in file_layout.places if name.startswith("acts/")]
        self.rows = dict.fromkeys(self.sites, 0)
        self.norms = {s: np.empty(file_layout.places[f"norms/{s}"].shape, "<f4") for s in self.sites}
        self.sums = {s: np.zeros(p.shape, NUMPY[p.dtype]) for s in self.sites for p in [file_layout.places[f"sums/{s}"]]}
        self.crc: dict[str, int] = {}
        self.partial_sums: dict[str, Any] = {}  # by site: checksum of a segment that is not full yet
        self.counting, self.writing = (ThreadPoolExecutor(1, thread_name_prefix=f"shard-{n}") for n in ("counts", "writes"))
        self.queue: deque[tuple[int, list[Future]]] = deque()
        self.contexts = 0  # contexts written so far, for the watermark
        if not keep:
            self.aside.unlink(missing_ok=True)
        self.fd = os.open(self.aside, os.O_RDWR | (NO_LINK if keep else os.O_CREAT | os.O_EXCL | NO_LINK), 0o666)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.fd, 0, file_layout.nbytes)
            os.ftruncate(self.fd, file_layout.nbytes)
            for offset, piece in file_layout.pieces.items():
                self._write(piece, offset)
        except BaseException as error:
            self.drop()
            raise self._explained(error) from None

    def put(self, name: str, array: np.ndarray) -> None:
        """Write a whole small dataset."""
        place = self.file_layout.places[name]
        raw = np.ascontiguousarray(array, dtype=NUMPY[place.dtype])
        if raw.shape != place.shape:
            raise ValueError(f"{name} is {raw.shape}; {place.shape} was laid out.")
        self.crc[name] = zlib.crc32(raw)
        self._write(raw, place.offset)

    def append(self, site: str, x: Tensor) -> None:
        """Store the next rows [n width] of a site in the dtype of the recording. `x` must not be changed afterwards.

        Raises:
            NonFiniteError: a value is NaN or Inf, here or in queued rows; the message names the row.
        """
        self._queue(site, to_raw(self.rounded(site, x).cpu().contiguous()))

    def rounded(self, site: str, x: Tensor) -> Tensor:
        """Activations in the dtype of the recording; selecting rows afterwards moves fewer bytes."""
        return x.detach().to(torch.bfloat16 if self.file_layout.places[f"acts/{site}"].dtype == "bfloat16" else torch.float32)

    def take(self, site: str, n_rows: int, read: Callable[[int, int], np.ndarray], write: bool) -> None:
        """Add rows that exist already. `read(start, stop)` returns them as stored; `write` copies them into this file."""
        place = self.file_layout.places[f"acts/{site}"]
        step = max(self.segment_rows, _BLOCK // place.row_bytes)
        for start in range(0, n_rows, step):
            self._queue(site, read(start, min(start + step, n_rows)), write)

    def rows_on_disk(self, site: str) -> Callable[[int, int], np.ndarray]:
        """Reads the rows that an earlier process wrote to this file, for `take`."""
        place = self.file_layout.places[f"acts/{site}"]
        return lambda start, stop: read_rows(self.fd, place, start, stop, self.aside)

    def _count(self, site: str, raw: np.ndarray, first: int) -> None:
        """Norms and checksums of rows, the first of which is row `first`."""
        dtype = self.file_layout.places[f"acts/{site}"].dtype
        norms = row_norms(raw, dtype)
        if not np.isfinite(norms).all():
            wide = to_float(raw, dtype).double()
            bad = (~wide.isfinite().all(1)).nonzero()
            if len(bad):
                raise NonFiniteError(
                    f"{site} is NaN or Inf at row {first + int(bad[0])} of {self.path.name} ({len(bad)} of {len(raw)} rows "
                    "of that batch).\n  Load the model in float32 or bfloat16, or leave that site out."
                )
            norms = wide.norm(dim=1).float().numpy()  # finite values whose squares overflow float32
        self.norms[site][first : first + len(raw)] = norms
        self._sum(site, first, raw)

    def _sum(self, site: str, first: int, raw: np.ndarray) -> None:
        m, sums, at = self.segment_rows, self.sums[site], 0
        new = CHECKSUM[self.file_layout.places[f"sums/{site}"].dtype]
        while at < len(raw):
            segment, inside = divmod(first + at, m)
            running = self.partial_sums.pop(site) if inside else new()
            step = min(m - inside, len(raw) - at)
            running.update(raw[at : at + step])
            sums[segment] = running.intdigest()
            if inside + step < m:
                self.partial_sums[site] = running
            at += step

    def flush(self) -> None:
        """Sync everything written so far."""
        self._wait_for_queue()
        os.fsync(self.fd)

    def seal(self) -> dict[str, Any]:
        """Finish the file and rename it. Returns the fields of its `ShardEntry` that describe the file."""
        self._wait_for_queue()
        try:
            for site in self.sites:
                expected = self.file_layout.places[f"acts/{site}"].shape[0]
                if self.rows[site] != expected:
                    raise ValueError(f"{site} has {self.rows[site]} rows; {expected} were laid out.")
                self.put(f"norms/{site}", self.norms[site])
                self.put(f"sums/{site}", self.sums[site])
            os.fsync(self.fd)
        except OSError as error:
            raise self._explained(error) from None
        self.close()
        os.replace(self.aside, self.path)
        sync_folder(self.path.parent)
        return {
            "file": self.path.name,
            "bytes": self.file_layout.nbytes,
            "datasets": {name: replace(place, crc32=self.crc.get(name)) for name, place in self.file_layout.places.items()},
            "rest_crc32": crc_of_gaps(self.file_layout),
            "mean_square_norm": {s: _mean_square(self.norms[s]) for s in self.sites},
            "max_norm": {s: float(self.norms[s].max(initial=0.0)) for s in self.sites},
        }

    def close(self) -> None:
        """Close the unfinished file and leave it for a later process."""
        for thread in (self.counting, self.writing):
            thread.shutdown(wait=True, cancel_futures=True)
        if getattr(self, "fd", -1) >= 0:
            os.close(self.fd)
            self.fd = -1

    def drop(self) -> None:
        """Close and remove the unfinished file."""
        self.close()
        self.aside.unlink(missing_ok=True)

    def _queue(self, site: str, raw: np.ndarray, write: bool = True) -> None:
        """Queue the next rows of a site for both threads, and wait while too many bytes are queued."""
        place, first = self.file_layout.places[f"acts/{site}"], self.rows[site]
        self.rows[site] += len(raw)
        tasks = [self.counting.submit(self._count, site, raw, first)]
        if write:
            tasks.append(self.writing.submit(self._write_through, raw, place.offset + first * place.row_bytes))
        self.queue.append((raw.nbytes, tasks))
        while self.queue and (_done(self.queue[0][1]) or sum(n for n, _ in self.queue) > _WAITING_BYTES):
            self._await_first()

    def _wait_for_queue(self) -> None:
        while self.queue:
            self._await_first()

    def _await_first(self) -> None:
        for future in self.queue[0][1]:
            future.result()
        self.queue.popleft()  # after the wait, so that `flush` waits again if Ctrl-C interrupts it

    def _write_through(self, raw: np.ndarray, offset: int) -> None:
        self._write(raw, offset)
        if hasattr(os, "posix_fadvise"):  # on Linux this starts writing dirty pages back and keeps them
            os.posix_fadvise(self.fd, offset, raw.nbytes, os.POSIX_FADV_DONTNEED)

    def _write(self, data, offset: int) -> None:
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        try:
            while len(view):
                n = os.pwrite(self.fd, view, offset)
                view, offset = view[n:], offset + n
        except OSError as error:
            raise self._explained(error) from None

    def _explained(self, error: BaseException) -> BaseException:
        if not isinstance(error, OSError) or error.errno not in FULL:
            return error
        free, folder = os.statvfs(self.path.parent), self.path.parent
        return RecordingError(
            f"{self.path.name} cannot be written: {FULL[error.errno]}.\n"
            f"  It needs {size(self.file_layout.nbytes)}; {size(free.f_bavail * free.f_frsize)} are free in {folder}.\n"
            "  Finished shards are kept: make room and give the same command again, or record fewer sites."
        )


def _done(futures: list[Future]) -> bool:
    return all(future.done() for future in futures)


def _mean_square(norms: np.ndarray) -> float:
    return float(np.mean(norms.astype(np.float64) ** 2)) if len(norms) else 0.0
