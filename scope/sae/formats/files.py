"""JSON, safetensors and npz files of the formats: read or refused by name; safetensors also written."""

import json
import os
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scope.errors import DictionaryError
from scope.free_memory import free_memory
from scope.progress import size
from scope.typed_json import read_json as read_any_json
from scope.typed_json import typed
from scope.whole_files import whole_file

T = TypeVar("T")

AGAIN = "Copy or fetch it again."
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
_SMALL, _PACKED = 256 << 20, 16
"""An archive that unpacks to more bytes than _SMALL and _PACKED times its size holds no weights: those hardly compress."""


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, or a DictionaryError that names it."""
    found = read_any_json(file, DictionaryError, AGAIN)
    if not isinstance(found, dict):
        raise DictionaryError(f"{file} holds no JSON object. {AGAIN}")
    return found


def read_config(file: Path, kind: type[T]) -> T:
    """The settings in a JSON file as a dataclass; a setting of another type is refused, one that `kind` lacks left out."""
    return typed(read_any_json(file, DictionaryError, AGAIN), kind, file, DictionaryError, AGAIN)


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file, or a DictionaryError that says whether it is missing, cut short or something else."""
    refuse_irregular(file)
    refuse_too_large(file, file.stat().st_size)
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DictionaryError(f"{file} is damaged or was cut short ({error}). {AGAIN}") from None


def read_npz(file: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The arrays of an npz archive that may hold those of `names`. Nothing is unpacked before its sizes are known.

    Raises:
        DictionaryError: no npz or a damaged one; other arrays, or one twice; pickled objects; sizes that are not those of the
            file, or that no weights have.
    """
    refuse_irregular(file)
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            foreign = sorted(set(members) - set(names))
            if foreign:
                expected = ", ".join(names)
                raise DictionaryError(f"{file} holds {', '.join(foreign[:6])}; such a dictionary holds {expected}. {AGAIN}")
            if len(members) < len(archive.infolist()):
                raise DictionaryError(f"{file} holds one array twice: {', '.join(archive.namelist())}. {AGAIN}")
            refuse_too_large(file, sum(info.file_size for info in members.values()))
            for name, info in members.items():
                _refuse_other_layout(archive, info, name, file)
            return {name: _array(archive, info) for name, info in members.items()}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise DictionaryError(f"{file} is damaged or not an npz archive ({error}). {AGAIN}") from None


def _refuse_other_layout(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, file: Path) -> None:
    with archive.open(info) as member:
        version = npy.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} has npy version {version}")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        try:
            shape, _, dtype = read_header(member)
        except (RecursionError, MemoryError):
            raise ValueError(f"the header of {name} is nested too deeply") from None
        begins = member.tell()
    if dtype.hasobject:
        raise DictionaryError(f"{file} holds pickled objects, which could run code when read. They are refused.")
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise DictionaryError(f"{name} in {file} is stored as {dtype}; weights are float16, float32 or float64. {AGAIN}")
    declared = dtype.itemsize
    for length in shape:
        declared *= length
    if begins + declared != info.file_size or min(shape, default=1) < 0:
        raise DictionaryError(
            f"{name} in {file} says it has shape {shape}, {declared:,} bytes, and {info.file_size - begins:,} are there.\n"
            f"  {AGAIN}"
        )


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    with archive.open(info) as member:
        array = npy.read_array(member, allow_pickle=False)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def refuse_irregular(file: Path) -> None:
    """Raises: DictionaryError: there is no file, or a pipe, a device or a folder in its place."""
    try:
        regular = stat.S_ISREG(file.stat().st_mode)
    except FileNotFoundError:
        raise DictionaryError(f"{file.parent} has no {file.name}. Copy or fetch the whole folder.") from None
    except OSError as error:
        raise DictionaryError(f"{file} cannot be read: {error.strerror or error}.") from None
    if not regular:
        raise DictionaryError(f"{file} is not a regular file. Copy or fetch the whole folder.")


def refuse_too_large(file: Path, unpacked: int) -> None:
    """Raises: DictionaryError: its arrays take more memory than is free, or than weights in a file of its size can."""
    if unpacked > _SMALL and unpacked > _PACKED * os.path.getsize(file):
        raise DictionaryError(
            f"{file} has {size(os.path.getsize(file))} and says that it unpacks to {size(unpacked)}; weights do not pack so "
            f"small, so it is no dictionary. {AGAIN}"
        )
    free = free_memory()
    if free is not None and unpacked > free:
        raise DictionaryError(
            f"{file} holds {size(unpacked)} of weights, and {size(free)} of memory are free.\n"
            "  Free memory, or take a narrower dictionary."
        )


def write_safetensors(file: Path, arrays: Mapping[str, Tensor]) -> None:
    """Write a file whole, readable as the umask says, in the bytes in which safetensors itself would write it.

    Raises:
        OSError: there is no room or no permission; what was there before is untouched.
    """
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    with whole_file(file) as handle:
        described = {name: (arrays[name].dtype, tuple(arrays[name].shape)) for name in names}
        write_tensors(handle, described, (arrays[name] for name in names))


def write_tensors(
    handle: Any,
    described: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterator[Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file into an open file, one tensor after the other, so that no second copy of them is needed.

    `tensors` are asked for one at a time, in the order of `described`, name -> (dtype, shape).
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (dtype, shape) in described.items():
        end = at + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    packed = json.dumps(header, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % 8)
    handle.write(len(packed).to_bytes(8, "little") + packed)
    for tensor in tensors:
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        data = memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")
        for start in range(0, len(data), _PIECE):
            handle.write(data[start : start + _PIECE])
