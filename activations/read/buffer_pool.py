"""Memory of batches that nobody holds any more, for the next ones.

Memory that is new to a process is zeroed by the system page by page, on first touch. For batches of tens of megabytes that
costs more than to bring their rows together: 1.4 CPU seconds against 0.3 for each GB of rows as stored.
"""

import weakref

import numpy as np
import torch
from torch import Tensor

_KEPT = 4  # batches held at once, beyond which none is followed; a loop needs two: the one in use, the one being made


class Spare:
    """float32 tensors [rows width], each over memory that no other living tensor, view or saved gradient uses."""

    def __init__(self, rows: int, width: int):
        self.shape = rows, width
        self.blocks: list[tuple[np.ndarray, weakref.ref]] = []

    def take(self, rows: int) -> Tensor:
        """A tensor of that many rows, at most those of the room; its values are whatever lay there."""
        at = next((i for i, (_, used) in enumerate(self.blocks) if used() is None), None)
        if at is not None:
            block = self.blocks.pop(at)[0]
        else:
            del self.blocks[: len(self.blocks) - _KEPT + 1]  # theirs who hold it
            block = np.empty(self.shape, np.float32)
        view = block[:rows]  # the storage that torch makes of it holds this very object for as long as anything uses it
        self.blocks.append((block, weakref.ref(view)))
        return torch.from_numpy(view)
