"""Checkpoints: a nested state of numbers, texts and tensors in one safetensors file, without pickle.

Tensors are written one after the other, so that saving a training needs no second copy of it in memory. A tensor of which
every process holds a part stands in the state as a `Part`; the file holds it whole, and so says nothing of how many there were.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scope.errors import DictionaryError
from scope.whole_files import file_aside, remove_asides

_MARK = "__tensor__"
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_PIECE = 1 << 26  # bytes handed to the system at once


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
    text = json.dumps(_flatten(state, "", leaves))
    header = _header(text, leaves)
    if not writes:
        for leaf in leaves.values():
            _whole(leaf, gather)
        return
    remove_asides(file)  # of a kill amid saving
    try:
        with file_aside(file) as aside, open(aside, "wb", buffering=0) as handle:
            _write(handle, header)
            for leaf in leaves.values():
                _write(handle, _bytes(_whole(leaf, gather)))
    except OSError as error:
        raise _with_way_out(error, file) from None


def load_state(file: Path) -> dict[str, Any]:
    """What `save_state` wrote.

    Raises:
        DictionaryError: the file is damaged.
    """
    try:
        with safe_open(file, "pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
            return _unflatten(json.loads(handle.metadata()["state"]), tensors)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DictionaryError(f"{file} is damaged ({error}). Delete it to start the training anew.") from None


def _with_way_out(error: OSError, file: Path) -> OSError:
    previous = f"the last one, {file}, is untouched" if file.exists() else "there was none before"
    return OSError(error.errno, f"{os.strerror(error.errno or 0)}: the checkpoint was not saved; {previous}", str(file))


def _whole(leaf: Tensor | Part, gather: Gather | None) -> Tensor | None:
    if isinstance(leaf, Tensor):
        return leaf
    return gather(leaf) if gather else leaf.tensor


def _bytes(tensor: Tensor | None) -> memoryview:
    assert tensor is not None
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def _write(handle, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    at = 0
    while at < len(view):
        at += handle.write(view[at : at + _PIECE])


def _header(text: str, leaves: dict[str, Tensor | Part]) -> bytes:
    """The length and the JSON with which a safetensors file begins."""
    described: dict[str, Any] = {"__metadata__": {"state": text}}
    at = 0
    for name, leaf in leaves.items():
        tensor = leaf.tensor if isinstance(leaf, Part) else leaf
        shape = list(tensor.shape)
        if isinstance(leaf, Part):
            shape[leaf.dim] = leaf.size
        end = at + tensor.element_size() * int(np.prod(shape, dtype=np.int64))
        described[name] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": [at, end]}
        at = end
    packed = json.dumps(described).encode()
    packed += b" " * (-len(packed) % 8)
    return len(packed).to_bytes(8, "little") + packed


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
