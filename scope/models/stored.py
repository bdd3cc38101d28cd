"""Reads tensors of safetensors files piece by piece into memory that is already allocated.

Nothing is mapped: a mapped file counts against an address-space limit and, while it is looked at, as resident memory.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scope.errors import CheckpointError

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
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(f"{name} in {file} is stored as {entry['dtype']}; weights are {', '.join(_DTYPES)}.")
        tensors[name] = StoredTensor(
            name, file, _DTYPES[entry["dtype"]], tuple(entry["shape"]), start + entry["data_offsets"][0]
        )
    return tensors


_PREFIXES = {"language_model.model.": "model.", "model.language_model.": "model.", "language_model.lm_head.": "lm_head."}
_HEADLESS = ("embed_tokens.", "layers.", "norm.")  # as transformers saves a model without its unembedding
_OTHER_PARTS = tuple(at + part for at in ("", "model.") for part in ("vision_tower.", "multi_modal_projector."))


def language_name(name: str) -> str | None:
    """The name of a tensor in a model of text alone, whichever way it was saved; None if it is not the language model's."""
    if name.startswith(_OTHER_PARTS):
        return None
    for before, after in _PREFIXES.items():
        if name.startswith(before):
            return after + name.removeprefix(before)
    return f"model.{name}" if name.startswith(_HEADLESS) else name


def language_part(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of the language model under the names of a model of text alone."""
    return {ours: tensor for name, tensor in stored.items() if (ours := language_name(name)) is not None}


def read_header(file: Path) -> tuple[int, dict]:
    """(where the data begin, name -> dtype, shape and data_offsets) of a safetensors file, without mapping it.

    Raises:
        CheckpointError: it is none, or is cut short.
    """
    size = os.path.getsize(file)
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= size - 8:
            raise CheckpointError(f"{file} is damaged or cut short: its header does not fit into it. Fetch it again.")
        try:
            entries = json.loads(opened.read(length))
            entries.pop("__metadata__", None)
            places = sorted(tuple(entry["data_offsets"]) for entry in entries.values())
            end = 8 + length + (places[-1][1] if places else 0)
            whole = [last for _, last in ((0, 0), *places)][:-1] == [first for first, _ in places]  # each begins where one ends
            whole = whole and all(_fits(entry) for entry in entries.values())
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise CheckpointError(f"{file} is damaged: its header is not that of safetensors. Fetch it again.") from None
    if not whole:
        raise CheckpointError(f"{file} is damaged: its header gives tensors places that do not fit them. Fetch it again.")
    if end > size:
        raise CheckpointError(f"{file} is damaged or cut short: it has {size:,} of {end:,} bytes. Fetch it again.")
    return 8 + length, entries


def _fits(entry: dict) -> bool:
    """Whether a tensor's place is as long as its shape and dtype say; of a dtype that is not read, nothing is known."""
    first, last = entry["data_offsets"]
    item = _DTYPES[entry["dtype"]].itemsize if entry["dtype"] in _DTYPES else None
    return item is None or (min(entry["shape"], default=0) >= 0 and last - first == math.prod(entry["shape"]) * item)


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
