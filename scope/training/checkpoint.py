"""A nested state of numbers, texts and tensors in one safetensors file: written aside, on the disk, then renamed. No pickle."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scope.errors import DictionaryError
from scope.sae.formats.sae_lens import as_os_error

_MARK = "__tensor__"


def save_state(file: Path, state: dict[str, Any]) -> None:
    """After this returns the whole state is on the disk under `file`; until then the file that was there before."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_flatten(state, "", tensors))
    aside = file.with_name(file.name + ".tmp")
    try:
        save_file(tensors, aside, metadata={"state": text})
        with open(aside, "rb") as handle:
            os.fsync(handle.fileno())
    except (SafetensorError, OSError) as error:
        aside.unlink(missing_ok=True)
        raise as_os_error(error) from None
    os.replace(aside, file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


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


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return {str(k): _flatten(v, f"{path}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_flatten(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        tensors[path] = value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
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
