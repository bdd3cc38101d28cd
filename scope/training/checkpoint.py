"""Checkpoints: a nested state of numbers, texts and tensors in one safetensors file, without pickle.

Tensors are written one after the other, so that saving a training needs no second copy of it in memory. A tensor of which
every process holds a part stands in the state as a `Part`; the file holds it whole, and so says nothing of how many there were.
The last tensor is the SHA-256 of all bytes before it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scope.errors import DictionaryError
from scope.sae.formats.files import refuse_irregular, write_tensors
from scope.typed_json import parse_json
from scope.whole_files import remove_asides, whole_file

VERSION = 3
"""Of the state; before it a file had no checksum."""

_MARK, _CHECKSUM = "__tensor__", "sha256"
_PIECE = 1 << 26  # bytes hashed at a time


@dataclass(frozen=True)
class Part:
    """This process's slice along `dim` of a tensor whose `size` there is that of all processes together."""

    tensor: Tensor
    dim: int
    size: int


Gather = Callable[[Part], Tensor | None]
"""The whole tensor on the process that writes, None on the others. Every process calls it for the same parts in order."""


def save_state(file: Path, state: dict[str, Any], gather: Gather | None = None, writes: bool = True) -> None:
    """After this returns the whole state is on the disk under `file`; until then the file that was there before.

    Raises:
        OSError: there is no room, or no permission, to write it; nothing of the attempt is left.
    """
    leaves: dict[str, Tensor | Part] = {}
    text = json.dumps(_flatten({"version": VERSION} | state, "", leaves))
    if not writes:
        for leaf in leaves.values():
            _whole(leaf, gather)
        return
    remove_asides(file)  # of a kill amid saving
    described = {name: _described(leaf) for name, leaf in leaves.items()}
    try:
        with whole_file(file) as handle:
            hashed = _Hashed(handle)

            def tensors() -> Iterator[Tensor]:
                for leaf in leaves.values():
                    whole = _whole(leaf, gather)
                    assert whole is not None
                    yield whole
                yield torch.frombuffer(bytearray(hashed.sha256.digest()), dtype=torch.uint8)

            write_tensors(hashed, described | {_CHECKSUM: (torch.uint8, (32,))}, tensors(), {"state": text})
    except OSError as error:
        raise _with_way_out(error, file) from None


def load_state(file: Path) -> dict[str, Any]:
    """What `save_state` wrote.

    Raises:
        DictionaryError: the file is damaged.
    """
    refuse_irregular(file)
    way_out = "Delete it to start the training anew."
    try:
        with safe_open(file, "pt") as handle:
            names = set(handle.keys())
            state = parse_json(handle.metadata()["state"], f"The state in {file}", DictionaryError, way_out)
            if _CHECKSUM in names or state["version"] >= VERSION:
                _refuse_other_bytes(file, bytes(handle.get_tensor(_CHECKSUM).tolist()))
            tensors = {name: handle.get_tensor(name) for name in names - {_CHECKSUM}}
            return _unflatten(state, tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DictionaryError(f"{file} is damaged ({error}).\n  {way_out}") from None


def _refuse_other_bytes(file: Path, expected: bytes) -> None:
    """Compare all bytes but the last 32 with their checksum.

    Raises:
        ValueError: they were changed after they were written.
    """
    digest, left = hashlib.sha256(), os.path.getsize(file) - len(expected)
    with open(file, "rb") as handle:
        while left > 0 and (piece := handle.read(min(_PIECE, left))):
            digest.update(piece)
            left -= len(piece)
        if digest.digest() != expected or handle.read() != expected:
            raise ValueError("it fails its checksum")


class _Hashed:
    """A file whose bytes are hashed as they are written."""

    def __init__(self, handle: IO[bytes]):
        self.handle, self.sha256 = handle, hashlib.sha256()

    def write(self, data: Any) -> None:
        self.sha256.update(data)
        self.handle.write(data)


def _with_way_out(error: OSError, file: Path) -> OSError:
    previous = f"the last one, {file}, is untouched" if file.exists() else "there was none before"
    return OSError(error.errno, f"{os.strerror(error.errno or 0)}: the checkpoint was not saved; {previous}", str(file))


def _whole(leaf: Tensor | Part, gather: Gather | None) -> Tensor | None:
    if isinstance(leaf, Tensor):
        return leaf
    return gather(leaf) if gather else leaf.tensor


def _described(leaf: Tensor | Part) -> tuple[torch.dtype, tuple[int, ...]]:
    if isinstance(leaf, Tensor):
        return leaf.dtype, tuple(leaf.shape)
    shape = list(leaf.tensor.shape)
    shape[leaf.dim] = leaf.size
    return leaf.tensor.dtype, tuple(shape)


def _flatten(value: Any, path: str, leaves: dict[str, Tensor | Part]) -> Any:
    if isinstance(value, dict):
        return {str(k): _flatten(v, f"{path}/{k}", leaves) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_flatten(v, f"{path}/{i}", leaves) for i, v in enumerate(value)]
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor | Part):
        leaves[path] = value
        return {_MARK: path}
    if isinstance(value, np.generic):
        return value.item()
    return value


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_MARK}:
            return tensors[value[_MARK]]
        return {k: _unflatten(v, tensors) for k, v in value.items()}
    return [_unflatten(v, tensors) for v in value] if isinstance(value, list) else value
