"""One shard: a file of whole contexts and the activations of their kept rows, written in place, sealed once, read by position.

    tokens  documents                    [context position]  what the model read, padding included, and whose text it is
    rows/token_id  position  context     [row]               where each kept row comes from
    acts/SITE                            [row width]         bfloat16 or float32, as the manifest says
    norms/SITE                           [row]               Euclidean norm of each row as stored
    sums/SITE                            [segment]           CRC-32 of every `segment_rows` rows of acts/SITE
    document_names                       [byte]              JSON list of the documents that start here

The file is an ordinary HDF5 file, but we read it by the offsets in the journal and never let libhdf5 parse one: damaged
metadata can take the process with it. Every byte that is returned has been held against its checksum once.
"""

import errno
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from activations.errors import RecordingError
from activations.files import sync_folder
from activations.hdf5 import NUMPY, Place, Skeleton, crc_of_gaps, gaps

_BLOCK = 8 << 20  # bytes moved at once when rows are taken over from another file
_NORM_ROWS = 64  # at once: what is widened to float32 stays in the cache
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota is used up",
    errno.EFBIG: "files may not be that large here",
}


class NonFiniteError(RecordingError):
    """The model produced NaN or Inf; nothing of that shard is kept."""


class ShardWriter:
    """Fills one shard, beside its final name, and renames it when all of it is on the disk.

    The whole file is reserved before the first row, so a disk that is too small refuses here.

    Raises:
        RecordingError: there is no room; nothing is left behind.
    """

    def __init__(self, path: Path, bones: Skeleton, segment_rows: int, keep: bool = False):
        self.path, self.bones, self.segment_rows = path, bones, segment_rows
        self.aside = path.with_name(path.name + ".tmp")
        self.sites = [name.removeprefix("acts/") for name in bones.places if name.startswith("acts/")]
        self.rows = dict.fromkeys(self.sites, 0)
        self.norms = {s: np.empty(bones.places[f"norms/{s}"].shape, "<f4") for s in self.sites}
        self.sums = {s: np.zeros(bones.places[f"sums/{s}"].shape, "<u4") for s in self.sites}
        self.crc: dict[str, int] = {}
        self.contexts = 0  # how many are in, for whoever notes how far this has come
        self.fd = os.open(self.aside, os.O_RDWR | os.O_CREAT | (0 if keep else os.O_TRUNC), 0o644)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.fd, 0, bones.nbytes)
            os.ftruncate(self.fd, bones.nbytes)
            for offset, piece in bones.pieces.items():
                self._write(piece, offset)
        except BaseException as error:
            self.drop()
            raise self._explained(error) from None

    def put(self, name: str, array: np.ndarray) -> None:
        """Write a whole small dataset."""
        place = self.bones.places[name]
        raw = np.ascontiguousarray(array, dtype=NUMPY[place.dtype])
        if raw.shape != place.shape:
            raise ValueError(f"{name} is {raw.shape}; {place.shape} was laid out.")
        self.crc[name] = zlib.crc32(raw)
        self._write(raw, place.offset)

    def append(self, site: str, x: Tensor) -> None:
        """Store the next rows [n width] of a site, rounded to the dtype of the recording.

        Raises:
            NonFiniteError: a value is NaN or Inf; the message names the row.
        """
        place = self.bones.places[f"acts/{site}"]
        stored = self.rounded(site, x).cpu().contiguous()
        self._count(site, stored)
        offset = place.offset + (self.rows[site] - len(stored)) * place.row_bytes
        self._write(_raw(stored), offset)

    def rounded(self, site: str, x: Tensor) -> Tensor:
        """Activations in the dtype in which the recording stores them; picking rows afterwards moves fewer bytes."""
        return x.detach().to(torch.bfloat16 if self.bones.places[f"acts/{site}"].dtype == "bfloat16" else torch.float32)

    def take(self, site: str, n_rows: int, read: Callable[[int, int], np.ndarray], write: bool) -> None:
        """Count rows that exist already: `read(start, stop)` gives them as stored; `write` copies them into this file."""
        place = self.bones.places[f"acts/{site}"]
        step = max(self.segment_rows, _BLOCK // place.row_bytes)
        for start in range(0, n_rows, step):
            raw = read(start, min(start + step, n_rows))
            self._count(site, _tensor(raw, place.dtype))
            if write:
                self._write(raw, place.offset + start * place.row_bytes)

    def own(self, site: str) -> Callable[[int, int], np.ndarray]:
        """A reader of what an earlier process left in this file, for `take`."""
        place = self.bones.places[f"acts/{site}"]
        return lambda start, stop: _read_rows(self.fd, place, start, stop, self.aside)

    def _count(self, site: str, stored: Tensor) -> None:
        first = self.rows[site]
        parts = stored.split(_NORM_ROWS)
        norms = torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float32) for part in parts])
        if not bool(norms.isfinite().all()):
            wide = stored.double()
            bad = (~wide.isfinite().all(1)).nonzero()
            if len(bad):
                raise NonFiniteError(
                    f"{site} is NaN or Inf at row {first + int(bad[0])} of {self.path.name} ({len(bad)} of {len(stored)} rows "
                    "of that batch).\n  Load the model in float32 or bfloat16, or leave that site out."
                )
            norms = wide.norm(dim=1).float()  # finite values whose squares overflow float32
        self.norms[site][first : first + len(stored)] = norms.numpy()
        raw, m, sums = _raw(stored), self.segment_rows, self.sums[site]
        at = 0
        while at < len(raw):
            segment, inside = divmod(first + at, m)
            step = min(m - inside, len(raw) - at)
            sums[segment] = zlib.crc32(raw[at : at + step], int(sums[segment]))
            at += step
        self.rows[site] = first + len(stored)

    def flush(self) -> None:
        """Bring what is written so far to the disk."""
        os.fsync(self.fd)

    def seal(self) -> dict:
        """Finish the file under its own name; returns what the journal must know to read and check it."""
        try:
            for site in self.sites:
                expected = self.bones.places[f"acts/{site}"].shape[0]
                if self.rows[site] != expected:
                    raise ValueError(f"{site} has {self.rows[site]} rows; {expected} were laid out.")
                self.put(f"norms/{site}", self.norms[site])
                self.put(f"sums/{site}", self.sums[site])
            os.fsync(self.fd)
        except OSError as error:
            raise self._explained(error) from None
        os.close(self.fd)
        self.fd = -1
        os.replace(self.aside, self.path)
        sync_folder(self.path.parent)
        datasets = {
            name: place.to_json() | ({"crc32": self.crc[name]} if name in self.crc else {})
            for name, place in self.bones.places.items()
        }
        return {
            "file": self.path.name,
            "bytes": self.bones.nbytes,
            "datasets": datasets,
            "rest_crc32": crc_of_gaps(self.bones),
            "mean_square_norm": {s: _mean_square(self.norms[s]) for s in self.sites},
            "max_norm": {s: float(self.norms[s].max(initial=0.0)) for s in self.sites},
        }

    def close(self) -> None:
        """Let go of the unfinished file and leave it for a later process."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def drop(self) -> None:
        """Let go of the unfinished file and remove it."""
        self.close()
        self.aside.unlink(missing_ok=True)

    def _write(self, data, offset: int) -> None:
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        try:
            while len(view):
                n = os.pwrite(self.fd, view, offset)
                view, offset = view[n:], offset + n
        except OSError as error:
            raise self._explained(error) from None

    def _explained(self, error: BaseException) -> BaseException:
        if not isinstance(error, OSError) or error.errno not in _FULL:
            return error
        free = os.statvfs(self.path.parent)
        return RecordingError(
            f"{self.path.name} cannot be written: {_FULL[error.errno]}.\n"
            f"  It needs {size(self.bones.nbytes)}; {size(free.f_bavail * free.f_frsize)} are free in {self.path.parent}.\n"
            "  Finished shards are kept: make room and give the same command again, or record fewer sites."
        )


class ShardReader:
    """A sealed shard, read by position. Each part is held against its checksum the first time it is read.

    Raises:
        RecordingError: the file is missing or has another length than the journal says.
    """

    def __init__(self, folder: Path, entry: dict, segment_rows: int):
        self.path, self.entry, self.segment_rows = folder / entry["file"], entry, segment_rows
        self.places = {name: Place.from_json(d) for name, d in entry["datasets"].items()}
        self.checked: dict[str, np.ndarray] = {}
        self.sums: dict[str, np.ndarray] = {}
        try:
            self.fd = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            raise RecordingError(f"{self.path} is missing, though the journal lists it. {_WAY_OUT}") from None
        found = os.fstat(self.fd).st_size
        if found != entry["bytes"]:
            self.close()
            raise RecordingError(f"{self.path} has {found} bytes; {entry['bytes']} were sealed. {_WAY_OUT}")

    def close(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            os.close(self.fd)
            self.fd = -1

    __del__ = close

    def small(self, name: str) -> np.ndarray:
        """A dataset other than activations, whole."""
        place = self.places[name]
        array = _read_rows(self.fd, place, 0, place.shape[0], self.path)
        if zlib.crc32(array) != self.entry["datasets"][name]["crc32"]:
            raise RecordingError(f"{self.path} is damaged: {name} fails its checksum. {_WAY_OUT}")
        return array

    def raw(self, site: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of a site as stored: uint16 that are bfloat16 bits, or float32."""
        m, n = self.segment_rows, self.places[f"acts/{site}"].shape[0]
        low, high = start // m, -(-stop // m)
        done = self._state(site)
        if start >= stop or done[low:high].all():
            return _read_rows(self.fd, self.places[f"acts/{site}"], start, stop, self.path)
        whole = _read_rows(self.fd, self.places[f"acts/{site}"], low * m, min(high * m, n), self.path)
        self.check(site, low, whole)
        return whole[start - low * m : stop - low * m]

    def check(self, site: str, segment: int, raw: np.ndarray) -> None:
        """Hold rows that begin with a segment, and end with one, against the checksums."""
        done, m = self._state(site), self.segment_rows
        for i, at in enumerate(range(0, len(raw), m), segment):
            if not done[i]:
                if zlib.crc32(raw[at : at + m]) != int(self.sums[site][i]):
                    last = min((i + 1) * m, self.places[f"acts/{site}"].shape[0]) - 1
                    raise RecordingError(
                        f"{self.path} is damaged: {site}, rows {i * m} to {last} of this shard, fail their checksum. {_WAY_OUT}"
                    )
                done[i] = True

    def _state(self, site: str) -> np.ndarray:
        if site not in self.checked:
            self.sums[site] = self.small(f"sums/{site}")
            self.checked[site] = np.zeros(len(self.sums[site]), bool)
        return self.checked[site]

    def faults(self) -> list[str]:
        """Everything that fails its checksum, said in words; empty means that every byte of the file is as sealed."""
        found = []
        crc = 0
        for start, end in gaps(self.places, self.entry["bytes"]):
            crc = zlib.crc32(os.pread(self.fd, end - start, start), crc)
        if crc != self.entry["rest_crc32"]:
            found.append(f"{self.path} is damaged: its HDF5 headers fail their checksum.")
        for name in self.places:
            try:
                if name.startswith("acts/"):
                    found += self._site_faults(name.removeprefix("acts/"))
                else:
                    self.small(name)
            except RecordingError as error:
                found.append(str(error).removesuffix(" " + _WAY_OUT))
        return found

    def _site_faults(self, site: str) -> list[str]:
        place, m = self.places[f"acts/{site}"], self.segment_rows
        sums, bad = self.small(f"sums/{site}"), []
        step = max(1, _BLOCK // max(1, place.row_bytes * m)) * m
        for start in range(0, place.shape[0], step):
            raw = _read_rows(self.fd, place, start, min(start + step, place.shape[0]), self.path)
            for at in range(0, len(raw), m):
                if zlib.crc32(raw[at : at + m]) != int(sums[(start + at) // m]):
                    bad.append((start + at, min(start + at + m, place.shape[0]) - 1))
        return [f"{self.path} is damaged: {site}, rows {a} to {b} of this shard, fail their checksum." for a, b in bad]


_WAY_OUT = "`scope recording verify` says what else is; record again into another folder, or restore the file."


def size(nbytes: float) -> str:
    """Bytes for people: 302 MB, 1.2 GB."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if nbytes < 1000 or unit == "TB":
            return f"{nbytes:.0f} {unit}" if nbytes >= 10 or unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    raise AssertionError


def to_float(raw: np.ndarray, dtype: str) -> Tensor:
    """Stored rows as a float32 tensor of its own."""
    stored = _tensor(raw, dtype)
    return stored.float() if dtype == "bfloat16" else stored.clone()


def _tensor(raw: np.ndarray, dtype: str) -> Tensor:
    return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16) if dtype == "bfloat16" else torch.from_numpy(raw)


def _raw(stored: Tensor) -> np.ndarray:
    return stored.view(torch.int16).numpy().view(np.uint16) if stored.dtype == torch.bfloat16 else stored.numpy()


def _mean_square(norms: np.ndarray) -> float:
    return float(np.mean(norms.astype(np.float64) ** 2)) if len(norms) else 0.0


def _read_rows(fd: int, place: Place, start: int, stop: int, path: Path) -> np.ndarray:
    array = np.empty((max(0, stop - start), *place.shape[1:]), NUMPY[place.dtype])
    if array.nbytes:
        read_into(fd, memoryview(array).cast("B"), place.offset + start * place.row_bytes, path)
    return array


def read_into(fd: int, view: memoryview, offset: int, path: Path) -> None:
    """Fill a buffer from a file.

    Raises:
        RecordingError: the file ends too early.
    """
    while len(view):
        n = os.preadv(fd, [view], offset)
        if n == 0:
            raise RecordingError(f"{path} is cut short: it ends at byte {offset}. {_WAY_OUT}")
        view, offset = view[n:], offset + n
