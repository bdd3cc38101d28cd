"""The checkpoint of a training: torch's archive, whose checksums are verified before it is used."""

import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from scope.errors import CheckpointError
from scope.typed_json import read_bytes, typed
from scope.whole_files import write_whole


def read_checkpoint(file: Path) -> dict[str, Any]:
    """The state in a checkpoint, its `step` among it.

    Raises:
        CheckpointError: it is damaged; torch itself does not look at the checksums of its files.
    """
    way_out = "Delete it to start the training anew."
    data = read_bytes(file, CheckpointError, way_out, largest=1 << 40)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} fails its checksum")
        saved = torch.load(io.BytesIO(data), weights_only=True)
        return typed({"step": saved["step"]}, dict[str, int], file, CheckpointError, way_out) | saved
    except (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}).\n  {way_out}") from None


def write_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Write the state of a training, whole or not at all; `state` holds its `step`."""
    buffer = io.BytesIO()  # not written by torch, which hides a full disk behind a RuntimeError
    torch.save(state, buffer)
    write_whole(file, buffer.getvalue())
