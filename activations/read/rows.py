"""A site of a recording as an array, indexed by number, slice, mask or list."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from scope.activations.errors import RecordingError
from torch import Tensor

_NEAR = 8  # rows at most this far apart are read together


class Rows:
    """float32 [row width], read from disk on each access by `read(start, stop)`."""

    def __init__(self, site: str, shape: tuple[int, int], read: Callable[[int, int], Tensor]):
        self.site, self.shape, self.read = site, shape, read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray | Tensor | list[int]) -> Tensor:
        """float32 [n width] for a slice or an array of row numbers, [width] for one row number.

        Raises:
            RecordingError: row numbers out of range, a mask of another length, or an invalid index.
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            return self.read(start, max(start, stop)) if step == 1 else self[np.arange(start, stop, step)]
        if isinstance(rows, int | np.integer):
            return self[np.array([rows])][0]
        wanted = self._numbers(np.asarray(rows))
        out = torch.empty((len(wanted), self.shape[1]))
        order = np.argsort(wanted, kind="stable")
        for run in np.split(order, np.flatnonzero(np.diff(wanted[order]) > _NEAR) + 1):
            if len(run):
                first, last = int(wanted[run[0]]), int(wanted[run[-1]])
                out[torch.from_numpy(run)] = self.read(first, last + 1)[torch.from_numpy(wanted[run] - first)]
        return out

    def __iter__(self) -> Iterator[Tensor]:
        """float32 [width], row after row."""
        for start in range(0, len(self), 1024):
            yield from self[start : start + 1024]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """All rows as numpy sees them; memory for all of them."""
        return np.asarray(self[:].numpy(), dtype=dtype)

    def _numbers(self, wanted: np.ndarray) -> np.ndarray:
        """int64: row numbers from 0, whether they were named by number, from the end, or by a mask."""
        if wanted.dtype == bool:
            if wanted.shape != (len(self),):
                raise RecordingError(f"This mask is {wanted.shape}; {self.site} has {len(self)} rows.")
            return np.flatnonzero(wanted)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise RecordingError(
                f"Rows are named by a number, a slice, a mask or a list of numbers, not by {wanted.dtype} {wanted.shape}."
            )
        wanted = wanted.astype(np.int64)
        return np.where(wanted < 0, wanted + len(self), wanted)
