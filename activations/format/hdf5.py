"""Lays out an HDF5 file in memory: the offset of each dataset, and every byte that is not data.

A writer that is killed or runs out of disk inside libhdf5 loses the file, and sometimes the process (h5py#914, h5py#1807).
So the library never writes to the disk here. It lays out a file of contiguous datasets, all allocated at once, into a
dictionary; our own code then writes the bytes in place, and the result opens in any HDF5 tool.
"""

import math
import zlib
from dataclasses import dataclass

import h5py
import numpy as np

ITEM_BYTES = {"bfloat16": 2, "float32": 4, "int32": 4, "uint32": 4, "uint64": 8, "uint8": 1}
NUMPY = {"bfloat16": np.dtype("<u2"), "float32": np.dtype("<f4"), "int32": np.dtype("<i4"), "uint8": np.dtype("u1")} | {
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
}
"""numpy dtype of each stored dtype; numpy has no bfloat16, so those are read as 16-bit integers."""

_ALIGNMENT = 4096  # datasets of a page or more start on one


@dataclass(frozen=True)
class Place:
    """Location of a dataset in its file: contiguous and uncompressed, starting at `offset`."""

    offset: int
    shape: tuple[int, ...]
    dtype: str
    crc32: int | None = None
    """Checksum of the bytes; None for activations, which have one for each segment."""

    def __post_init__(self):
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"dtype {self.dtype[:40]!r} is none of {', '.join(ITEM_BYTES)}")
        if self.offset < 0 or not self.shape or min(self.shape) < 0:
            raise ValueError(f"a dataset of shape {list(self.shape)} at byte {self.offset} cannot be")

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.row_bytes


@dataclass(frozen=True)
class FileLayout:
    """A file without its data: `pieces` are the other bytes by offset, `nbytes` is the size of the file."""

    pieces: dict[int, bytes]
    places: dict[str, Place]
    nbytes: int


def lay_out(attrs: dict[str, str | int], datasets: dict[str, tuple[tuple[int, ...], str]]) -> FileLayout:
    """Lay out datasets, given as name -> (shape, dtype name), in one file."""
    memory = _Memory()
    offsets = {}
    with h5py.File(
        memory,
        "w",
        libver=("v110", "v110"),
        alignment_threshold=_ALIGNMENT,
        alignment_interval=_ALIGNMENT,
        meta_block_size=65536,
    ) as file:
        for name, value in attrs.items():
            file.attrs[name] = value
        for name, (shape, dtype) in datasets.items():
            offsets[name] = _allocate(file, name, shape, dtype)
    places = {name: Place(offsets[name], tuple(shape), dtype) for name, (shape, dtype) in datasets.items()}
    return FileLayout(memory.pieces, places, memory.nbytes)


def gaps(places: dict[str, Place], nbytes: int) -> list[tuple[int, int]]:
    """The (start, end) ranges of a file that belong to no dataset: headers, groups, attributes, alignment."""
    ranges, at = [], 0
    for place in sorted((p for p in places.values() if p.nbytes), key=lambda p: p.offset):
        if place.offset > at:
            ranges.append((at, place.offset))
        at = place.offset + place.nbytes
    return [*ranges, (at, nbytes)] if at < nbytes else ranges


def crc_of_gaps(file_layout: FileLayout) -> int:
    """CRC-32 of all bytes outside the datasets, in file order."""
    crc = 0
    for start, end in gaps(file_layout.places, file_layout.nbytes):
        block = bytearray(end - start)
        for offset, piece in file_layout.pieces.items():
            low, high = max(offset, start), min(offset + len(piece), end)
            if low < high:
                block[low - start : high - start] = piece[low - offset : high - offset]
        crc = zlib.crc32(block, crc)
    return crc


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> int:
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_layout(h5py.h5d.CONTIGUOUS)
    create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    create.set_obj_track_times(False)  # equal recordings are equal byte for byte
    link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    link.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(tuple(shape))
    dataset = h5py.h5d.create(file.id, name.encode(), _file_type(dtype), space, create, link)
    return dataset.get_offset() or 0


def _file_type(dtype: str) -> h5py.h5t.TypeID:
    if dtype != "bfloat16":
        return h5py.h5t.py_create(NUMPY[dtype])
    # HDF5 can describe it field by field, and every tool then shows numbers; converting is slow (hdf5#6480), so we never do
    bfloat16 = h5py.h5t.IEEE_F32LE.copy()
    bfloat16.set_fields(15, 7, 8, 0, 7)  # sign, exponent from bit 7, 8 of it, mantissa from bit 0, 7 of it
    bfloat16.set_size(2)
    bfloat16.set_ebias(127)
    return bfloat16


class _Memory:
    """The part of a file object that h5py uses; records written bytes by offset."""

    def __init__(self):
        self.pieces: dict[int, bytes] = {}
        self.at = self.nbytes = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.nbytes)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def write(self, data) -> int:
        self.pieces[self.at] = bytes(data)
        self.at += len(data)
        self.nbytes = max(self.nbytes, self.at)
        return len(data)

    def truncate(self, nbytes: int | None = None) -> int:
        self.nbytes = self.at if nbytes is None else nbytes
        return self.nbytes

    def flush(self) -> None:
        pass

    def read(self, n: int = -1) -> bytes:
        raise OSError("A lay_out is only written.")

    def readinto(self, buffer) -> int:
        raise OSError("A lay_out is only written.")
