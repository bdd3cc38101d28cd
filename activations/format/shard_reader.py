"""Reads a finished shard by the offsets in the journal and checks every returned byte against its checksum once.

libhdf5 never parses a file here: damaged metadata can crash the process.
"""

import os
import stat
import zlib
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from scope.activations.corpus.inputs import NO_DOCUMENT, NO_TOKEN
from scope.activations.corpus.roles import Role
from scope.activations.errors import RecordingError
from scope.activations.format.files import WAY_OUT
from scope.activations.format.hdf5 import gaps
from scope.activations.format.row_bytes import checksum, read_rows
from scope.activations.format.shard_entry import ShardEntry

from scope.typed_json import parse_json, typed

T = TypeVar("T")

_BLOCK = 8 << 20  # bytes read at once while verifying


class Fault(NamedTuple):
    """A failed checksum: a sentence, and for activations the site and the rows [start, stop) of the shard."""

    text: str
    site: str = ""
    rows: tuple[int, int] = (0, 0)


class ShardReader:
    """A finished shard. Each part is checked against its checksum the first time it is read.

    Raises:
        RecordingError: the file is missing or has another length than the journal says.
    """

    def __init__(self, folder: Path, entry: ShardEntry, segment_rows: int):
        self.path, self.entry, self.segment_rows = folder / entry.file, entry, segment_rows
        self.places = entry.datasets
        rows = entry.in_whole.contexts
        self.ranges = {"documents": (NO_DOCUMENT, entry.documents[1]), "roles": (0, len(Role)), "rows/context": rows}
        if "tokens" in self.places:
            self.ranges["rows/position"] = (NO_TOKEN, self.places["tokens"].shape[1])
        self.checked: dict[str, np.ndarray] = {}
        self.sums: dict[str, np.ndarray] = {}
        try:
            self.fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for a writer
        except FileNotFoundError:
            raise RecordingError(f"{self.path} is missing, though the journal lists it. {WAY_OUT}") from None
        except OSError as error:
            raise RecordingError(f"{self.path} cannot be read: {error.strerror}. {WAY_OUT}") from None
        status = os.fstat(self.fd)
        nbytes = status.st_size
        if nbytes != entry.bytes or not stat.S_ISREG(status.st_mode):
            self.close()
            raise RecordingError(f"{self.path} has {nbytes} bytes; {entry.bytes} were sealed. {WAY_OUT}")

    def close(self) -> None:
        if getattr(self, "fd", -1) >= 0 and os is not None and os.close is not None:  # gone while Python ends
            os.close(self.fd)
            self.fd = -1

    __del__ = close

    def small(self, name: str) -> np.ndarray:
        """A whole dataset other than activations."""
        place = self.places[name]
        array = read_rows(self.fd, place, 0, place.shape[0], self.path)
        if zlib.crc32(array) != place.crc32:
            raise RecordingError(f"{self.path} is damaged: {name} fails its checksum. {WAY_OUT}")
        low, high = self.ranges.get(name, (0, 0))
        if array.size and low < high and not low <= array.min() <= array.max() < high:
            raise RecordingError(f"{self.path} is damaged: {name} holds numbers outside of {low} to {high - 1}. {WAY_OUT}")
        return array

    def objects(self, name: str, kind: type[T]) -> list[T]:
        """The items of a dataset that holds a JSON list: names of documents, or facts about them.

        Raises:
            RecordingError: it fails its checksum, or its items are of another type.
        """
        source = f"{self.path}: {name}"
        value = parse_json(self.small(name).tobytes(), source, RecordingError, WAY_OUT)
        return typed(value, list[kind], source, RecordingError, WAY_OUT)

    def raw(self, site: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of a site as stored: uint16 that are bfloat16 bits, or float32."""
        m, n = self.segment_rows, self.places[f"acts/{site}"].shape[0]
        low, high = start // m, -(-stop // m)
        if start >= stop or self._state(site)[low:high].all():
            return read_rows(self.fd, self.places[f"acts/{site}"], start, stop, self.path)
        whole = read_rows(self.fd, self.places[f"acts/{site}"], low * m, min(high * m, n), self.path)
        self.check(site, low, whole)
        return whole[start - low * m : stop - low * m]

    def check(self, site: str, segment: int, raw: np.ndarray) -> None:
        """Check rows that cover whole segments, starting at `segment`."""
        done, m = self._state(site), self.segment_rows
        stop = segment + -(-len(raw) // m)
        if done[segment:stop].all():
            return
        sums, dtype = self.sums[site][segment:stop].tolist(), self.places[f"sums/{site}"].dtype
        for i, expected in enumerate(sums):
            if checksum(dtype, raw[i * m : (i + 1) * m]) != expected:
                first = (segment + i) * m
                last = min(first + m, self.places[f"acts/{site}"].shape[0]) - 1
                raise RecordingError(_failing(self.path, site, first, last) + " " + WAY_OUT)
        done[segment:stop] = True

    def _state(self, site: str) -> np.ndarray:
        if site not in self.checked:
            self.sums[site] = self.small(f"sums/{site}")
            self.checked[site] = np.zeros(len(self.sums[site]), bool)
        return self.checked[site]

    def faults(self) -> list[Fault]:
        """Everything that fails its checksum; empty if every byte is as written."""
        faults, crc = [], 0
        for start, end in gaps(self.places, self.entry.bytes):
            crc = zlib.crc32(os.pread(self.fd, end - start, start), crc)
        if crc != self.entry.rest_crc32:
            faults.append(Fault(f"{self.path} is damaged: its HDF5 headers fail their checksum."))
        for name in self.places:
            try:
                if name.startswith("acts/"):
                    faults += self._site_faults(name.removeprefix("acts/"))
                else:
                    self.small(name)
            except RecordingError as error:
                faults.append(Fault(str(error).removesuffix(" " + WAY_OUT)))
        return faults

    def _site_faults(self, site: str) -> list[Fault]:
        place, m = self.places[f"acts/{site}"], self.segment_rows
        try:
            sums, dtype, bad = self.small(f"sums/{site}"), self.places[f"sums/{site}"].dtype, []
        except RecordingError:
            return []  # reported as a fault of sums/SITE; the rows cannot be checked
        step = max(1, _BLOCK // max(1, place.row_bytes * m)) * m
        for start in range(0, place.shape[0], step):
            raw = read_rows(self.fd, place, start, min(start + step, place.shape[0]), self.path)
            for at in range(0, len(raw), m):
                if checksum(dtype, raw[at : at + m]) != int(sums[(start + at) // m]):
                    bad.append((start + at, min(start + at + m, place.shape[0])))
        return [Fault(_failing(self.path, site, a, b - 1), site, (a, b)) for a, b in _joined(bad)]


def _failing(path: Path, site: str, first: int, last: int) -> str:
    return f"{path} is damaged: {site}, rows {first} to {last} of this shard, fail their checksum."


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge adjacent [start, stop) spans."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
    return joined
