"""Overlap between scored text and training text, measured on the text itself and not on names of corpora (P7).

Texts are compared by their runs of RUN tokens, at every place within a context. A dictionary's folder keeps the KEPT smallest
hashes of the runs in its training text. The hash alone decides which runs are compared: a run of the scored text whose hash is
below the greatest kept one is either among the kept ones or was not in the training text. A few hundred kilobytes thus suffice
for any amount of text, and both texts are sampled in the same way.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scope.errors import ScopeError
from scope.typed_json import read_bytes
from scope.whole_files import whole_file

RUN, KEPT, FILE = 24, 32768, "text_read.npy"
_CONTEXTS = 4096  # hashed at a time
_EVERY = np.iinfo(np.uint64).max


@dataclass(frozen=True)
class Overlap:
    """`shared` of `compared` runs of tokens were read in training."""

    shared: int
    compared: int

    def sentence(self) -> str:
        if not self.compared:
            return "Too little of this text can be compared with the training text: the dictionary may have been trained on it."
        share = f"{self.shared / self.compared:.1%} of {self.compared:,} runs of {RUN} tokens compared"
        return f"Of this text {share} are in the training text of the dictionary."


def smallest(tokens: np.ndarray, documents: np.ndarray | None = None) -> np.ndarray:
    """uint64, ascending: the KEPT smallest hashes of the runs in contexts of tokens [n position].

    The first token of a context, <bos>, is in no run, nor is padding, where `documents` [n position] is negative.
    """
    found = np.empty(0, np.uint64)
    for part in _hashes(tokens, documents):
        if len(found) == KEPT:
            part = part[part < found[-1]]
        found = np.union1d(found, part)[:KEPT]
    return found


def overlap(read: np.ndarray, tokens: np.ndarray, documents: np.ndarray | None = None) -> Overlap:
    """How much of `tokens` is in a text whose `smallest` hashes are `read`."""
    last = read[-1] if len(read) == KEPT else _EVERY
    here = [part[part <= last] for part in _hashes(tokens, documents)] if len(read) else []
    runs = np.unique(np.concatenate(here)) if here else np.empty(0, np.uint64)
    return Overlap(int(np.isin(runs, read, assume_unique=True).sum()), len(runs))


def save_hashes(folder: Path, read: np.ndarray) -> None:
    """Write the hashes of a training text beside the dictionary; an equal file is left as it is."""
    there = load_hashes(folder)
    if there is None or not np.array_equal(there, read):
        with whole_file(folder / FILE) as file:
            np.save(file, read)


def load_hashes(folder: Path) -> np.ndarray | None:
    """The hashes that `save_hashes` wrote; None where a dictionary has none."""
    try:
        read = np.load(io.BytesIO(read_bytes(folder / FILE, largest=8 * KEPT + 4096)), allow_pickle=False)
    except (ScopeError, OSError, ValueError, EOFError, MemoryError, RecursionError):
        return None
    return read if read.dtype == np.uint64 and read.ndim == 1 else None


def _hashes(tokens: np.ndarray, documents: np.ndarray | None) -> Iterator[np.ndarray]:
    """Hashes of the runs of tokens, some contexts at a time, in no order."""
    factors = np.random.default_rng(2412).integers(0, 2**63, RUN, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    for first in range(0, len(tokens), _CONTEXTS):
        some = np.asarray(tokens[first : first + _CONTEXTS])[:, 1:].astype(np.uint64)
        if some.shape[1] < RUN:
            return
        runs = some.shape[1] - RUN + 1
        sums = np.zeros((len(some), runs), np.uint64)
        for place, factor in enumerate(factors):  # overflow is meant: sums are modulo 2^64
            sums += (some[:, place : place + runs] + np.uint64(1)) * factor
        there = np.ones(sums.shape, bool)
        if documents is not None:
            nobody = np.asarray(documents[first : first + _CONTEXTS])[:, 1:] < 0
            before = np.concatenate([np.zeros((len(some), 1), np.int64), nobody.cumsum(1)], axis=1)
            there = before[:, RUN:] == before[:, :runs]
        yield _mixed(sums[there])


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Numbers spread evenly over 64 bits (the finaliser of splitmix64), so that the smallest are a fair sample."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    return numbers ^ (numbers >> np.uint64(31))
