"""JSON objects and safetensors files of the formats: read or refused by name; safetensors also written."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scope.errors import DictionaryError
from scope.whole_files import settle_file


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, or a DictionaryError that names it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DictionaryError(f"{file} cannot be read as JSON ({error}).") from None
    if not isinstance(found, dict):
        raise DictionaryError(f"{file} holds no JSON object.")
    return found


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file, or a DictionaryError that says whether it is missing, cut short or something else."""
    try:
        return load_file(file)
    except FileNotFoundError:
        raise DictionaryError(f"{file.parent} has no {file.name}. Copy or fetch the whole folder.") from None
    except (SafetensorError, OSError) as error:
        raise DictionaryError(f"{file} is damaged or was cut short ({error}). Copy or fetch it again.") from None


def write_safetensors(file: Path, arrays: dict[str, Tensor]) -> None:
    """Write a file whole, readable as the umask says.

    Raises:
        OSError: there is no room or no permission; what was there before is untouched.
    """
    aside = file.with_name(file.name + ".tmp")
    try:
        save_file(arrays, aside)
        settle_file(aside, file)
    except (SafetensorError, OSError) as error:
        aside.unlink(missing_ok=True)
        raise as_os_error(error) from None


def as_os_error(error: Exception) -> Exception:
    """The operating system's error inside safetensors' ("No space left on device (os error 28)"), with its number."""
    if isinstance(error, OSError):
        return error
    message = str(error)
    if "os error " in message:
        return OSError(int(message.rsplit("os error ", 1)[1].split(")")[0]), message)
    return error
