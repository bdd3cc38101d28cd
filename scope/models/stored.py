"""Reads tensors of safetensors files piece by piece into memory that is already allocated.

Nothing is mapped: a mapped file counts against an address-space limit and, while it is looked at, as resident memory.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scope.errors import CheckpointError
from scope.typed_json import parse_json, typed

AGAIN = "Fetch it again."
"""The way out where a file of a checkpoint is damaged."""

_LONGEST_HEADER = 100_000_000  # bytes, as in safetensors itself
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_PIECE = 1 << 23  # elements converted at once, when the file's dtype is not the one asked for
_AHEAD = 1 << 22  # bytes read at once by read_ahead


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: rows [first, last) of it can be read without the rest."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def stored_tensors(files: dict[str, Path]) -> dict[str, StoredTensor]:
    """Where each tensor of a checkpoint lies; `files` says in which file it is.

    Raises:
        CheckpointError: a header that cannot be read, a file that is cut short, a dtype that holds no weights.
    """
    headers = {file: read_header(file) for file in set(files.values())}
    tensors = {}
    for name, file in files.items():
        start, entries = headers[file]
        entry = entries[name]
        if entry.dtype not in _DTYPES:
            raise CheckpointError(f"{name} in {file} is stored as {entry.dtype[:20]}; weights are {', '.join(_DTYPES)}.")
        tensors[name] = StoredTensor(name, file, _DTYPES[entry.dtype], tuple(entry.shape), start + entry.data_offsets[0])
    return tensors


_PREFIXES = {"language_model.model.": "model.", "model.language_model.": "model.", "language_model.lm_head.": "lm_head."}
_HEADLESS = ("embed_tokens.", "layers.", "norm.", "final_norm.")  # as transformers saves a model without its unembedding
_OTHER_PARTS = tuple(at + part for at in ("", "model.") for part in ("vision_tower.", "multi_modal_projector."))


def language_name(name: str) -> str | None:
    """The name of a tensor in a model of text alone, whichever way it was saved; None if it is not the language model's."""
    if name.startswith(_OTHER_PARTS):
        return None
    for before, after in _PREFIXES.items():
        if name.startswith(before):
            return after + name.removeprefix(before)
    return f"model.{name}" if name.startswith(_HEADLESS) else name


def canonical_tensors(
    stored: dict[str, StoredTensor], canonical: Callable[[str], str | None] = language_name
) -> dict[str, StoredTensor]:
    """The tensors of a model under its canonical names; `canonical` gives None for what is no part of it.

    Raises:
        CheckpointError: two tensors have one such name.
    """
    part: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        if (ours := canonical(name)) in part:
            raise CheckpointError(f"The checkpoint holds {ours} twice, as {part[ours].name} and as {name}.")
        if ours is not None:
            part[ours] = tensor
    return part


@dataclass(frozen=True)
class HeaderEntry:
    """What the header of a safetensors file says of a tensor."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]

    @property
    def fits(self) -> bool:
        """Whether its place is as long as shape and dtype say; of a dtype that is not read, nothing is known."""
        if self.dtype not in _DTYPES:
            return True
        first, last = self.data_offsets
        return min(self.shape, default=0) >= 0 and last - first == math.prod(self.shape) * _DTYPES[self.dtype].itemsize


def read_header(file: Path) -> tuple[int, dict[str, HeaderEntry]]:
    """(where the data begin, name -> dtype, shape and place) of a safetensors file, without mapping it.

    Raises:
        CheckpointError: it is none, or is cut short.
    """
    if not file.is_file():  # the opening of a named pipe would wait
        raise CheckpointError(f"{file} is not a regular file. {AGAIN}")
    try:
        with open(file, "rb") as opened:
            size, length = os.fstat(opened.fileno()).st_size, int.from_bytes(opened.read(8), "little")
            if not 0 < length <= min(size - 8, _LONGEST_HEADER):
                raise CheckpointError(f"{file} is damaged or cut short: its header does not fit into it. {AGAIN}")
            text = opened.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}.") from None
    raw = parse_json(text, f"The header of {file}", CheckpointError, AGAIN)
    if isinstance(raw, dict):
        raw.pop("__metadata__", None)
    entries = typed(raw, dict[str, HeaderEntry], f"The header of {file}", CheckpointError, AGAIN)
    places = sorted(entry.data_offsets for entry in entries.values())
    whole = [last for _, last in ((0, 0), *places)][:-1] == [first for first, _ in places]  # each begins where one ends
    if not whole or not all(entry.fits for entry in entries.values()):
        raise CheckpointError(f"{file} is damaged: its header gives tensors places that do not fit them. {AGAIN}")
    end = 8 + length + (places[-1][1] if places else 0)
    if end > size:
        raise CheckpointError(f"{file} is damaged or cut short: it has {size:,} of {end:,} bytes. {AGAIN}")
    return 8 + length, entries


class Reader:
    """Reads stored tensors into given ones, converting dtype and device on the way; holds at most one small scratch."""

    def __init__(self, tensors: Sequence[StoredTensor]):
        self.opened = {file: os.open(file, os.O_RDONLY) for file in {t.file for t in tensors}}
        self.scratch = torch.empty(0, dtype=torch.uint8)

    def close(self, close=os.close) -> None:  # bound now: when the interpreter ends, os may be gone before the reader is
        while self.opened:
            close(self.opened.popitem()[1])

    def __del__(self):
        self.close()

    def read(self, stored: StoredTensor, into: Tensor, first_row: int = 0) -> Tensor:
        """Fill the contiguous tensor `into` with as many rows of the stored one, from `first_row` on.

        Raises:
            CheckpointError: the file has become shorter.
        """
        width = math.prod(stored.shape[1:])
        at, item = stored.offset + first_row * width * stored.dtype.itemsize, stored.dtype.itemsize
        flat = into.view(-1)
        if stored.dtype == into.dtype and into.device.type == "cpu":
            self._fill(stored, flat.view(torch.uint8), at)
            return into
        for start in range(0, len(flat), _PIECE):
            part = flat[start : start + _PIECE]
            if len(self.scratch) < len(part) * item:
                self.scratch = torch.empty(len(part) * item, dtype=torch.uint8)
            raw = self.scratch[: len(part) * item]
            self._fill(stored, raw, at + start * item)
            part.copy_(raw.view(stored.dtype))
        return into

    def _fill(self, stored: StoredTensor, target: Tensor, at: int) -> None:
        view, done = memoryview(target.numpy()), 0
        while done < len(view):
            got = os.preadv(self.opened[stored.file], [view[done:]], at + done)
            if got <= 0:
                raise CheckpointError(f"{stored.file} ended within {stored.name}; it was changed while it was being read.")
            done += got

    def read_ahead(self, tensors: Sequence[StoredTensor]) -> None:
        """Have the system hold these tensors' bytes in its own cache, so that the next read of them does not wait."""
        buffer = bytearray(_AHEAD)
        for stored in tensors:
            file = self.opened.get(stored.file)
            for at in range(stored.offset, stored.offset + stored.nbytes, _AHEAD):
                if file is not None:
                    os.preadv(file, [buffer], at)
