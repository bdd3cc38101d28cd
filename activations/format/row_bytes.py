"""Stored rows: conversion to tensors, norms, checksums, and reading them by offset."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from scope.activations.errors import RecordingError
from scope.activations.format.files import WAY_OUT
from scope.activations.format.hdf5 import NUMPY, Place
from torch import Tensor

_READ_AHEAD = 1 << 20  # bytes; larger reads are announced to the system
_NORM_ROWS = 64  # rows at once, so that their float32 copy stays in the cache


class _Crc32:
    """zlib's CRC-32 with the interface of a hash; recordings of version 1 use it."""

    def __init__(self):
        self.crc = 0

    def update(self, data) -> None:
        self.crc = zlib.crc32(data, self.crc)

    def intdigest(self) -> int:
        return self.crc


CHECKSUM: dict[str, Callable[[], Any]] = {"uint32": _Crc32, "uint64": xxhash.xxh3_64}
"""Checksum algorithm by the dtype of `sums/SITE`. CRC-32 runs at 2 GB/s a core, XXH3 at 20 to 30."""


def checksum(dtype: str, data: np.ndarray | memoryview) -> int:
    """The checksum of a segment's rows for sums of the given dtype."""
    return xxhash.xxh3_64_intdigest(data) if dtype == "uint64" else zlib.crc32(data)


def to_float(raw: np.ndarray, dtype: str) -> Tensor:
    """Stored rows as a new float32 tensor."""
    stored = to_tensor(raw, dtype)
    return stored.float() if dtype == "bfloat16" else stored.clone()


def to_tensor(raw: np.ndarray, dtype: str) -> Tensor:
    """Stored rows as a tensor of their dtype that shares their memory."""
    return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16) if dtype == "bfloat16" else torch.from_numpy(raw)


def to_raw(stored: Tensor) -> np.ndarray:
    """A tensor as numpy array, bfloat16 as uint16."""
    return stored.view(torch.int16).numpy().view(np.uint16) if stored.dtype == torch.bfloat16 else stored.numpy()


def row_norms(raw: np.ndarray, dtype: str) -> np.ndarray:
    """float32 [row]: Euclidean norms of stored rows; not finite where a value is not, or where its square overflows.

    Runs in one thread: torch would divide each small step among its threads and, on a busy machine, wait after each.
    """
    norms = np.empty(len(raw), np.float32)
    for at in range(0, len(raw), _NORM_ROWS):
        part = raw[at : at + _NORM_ROWS]
        wide = (part.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else part
        np.einsum("ij,ij->i", wide, wide, out=norms[at : at + _NORM_ROWS])
    return np.sqrt(norms, out=norms)


def read_rows(fd: int, place: Place, start: int, stop: int, path: Path) -> np.ndarray:
    """Rows [start, stop) of a dataset as stored."""
    array = np.empty((max(0, stop - start), *place.shape[1:]), NUMPY[place.dtype])
    if array.nbytes:
        read_into(fd, memoryview(array).cast("B"), place.offset + start * place.row_bytes, path)
    return array


def read_into(fd: int, view: memoryview, offset: int, path: Path) -> None:
    """Fill a buffer from a file.

    Raises:
        RecordingError: the file ends too early.
    """
    if len(view) > _READ_AHEAD and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, len(view), os.POSIX_FADV_WILLNEED)
    while len(view):
        n = os.preadv(fd, [view], offset)
        if n == 0:
            raise RecordingError(f"{path} is cut short: it ends at byte {offset}. {WAY_OUT}")
        view, offset = view[n:], offset + n
