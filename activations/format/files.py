"""Files of a recording with checksums: JSON objects, and a journal whose last line may be torn."""

import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scope.activations.errors import RecordingError

from scope import whole_files
from scope.whole_files import FULL

_COPY = "Restore it from a copy, or record again into another folder."

_REPAIR = "`scope recording repair` gives up the shard of that line and keeps the rest; or restore the file from a copy."

WAY_OUT = (
    "`scope recording verify` says what else is; `scope recording repair` moves it aside so that the rest stays usable, "
    "and `scope harvest` then makes it again."
)
"""The way out of damage to a shard."""


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turns "disk full" within the block into a RecordingError about the file.

    Raises:
        RecordingError: there is no room for the file; other errors pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise RecordingError(
            f"{path.name} cannot be written: {FULL[error.errno]}.\n"
            f"  Finished shards are kept: make room in {path.parent} and give the same command again."
        ) from None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file of a recording whole.

    Raises:
        RecordingError: there is no room for it.
    """
    with room_for(path):
        whole_files.write_whole(path, data)


def write_json(path: Path, value: dict) -> None:
    """Write a JSON object whose last entry is the CRC-32 of all bytes before it."""
    body = json.dumps(value, indent=1, sort_keys=True).removesuffix("\n}").encode()
    write_whole(path, body + f',\n "crc32": "{zlib.crc32(body):08x}"\n}}\n'.encode())


def read_json(path: Path, checked: bool = True) -> Any:
    """Read a file of `write_json`. `checked` refuses a file without checksum, as version 1 has.

    Raises:
        RecordingError: the file is not JSON or fails its checksum.
    """
    data = path.read_bytes()
    sealed = re.fullmatch(rb'(.*),\n "crc32": "([0-9a-f]{8})"\n}\n', data, re.DOTALL)
    if (sealed and f"{zlib.crc32(sealed[1]):08x}".encode() != sealed[2]) or (checked and not sealed):
        raise RecordingError(f"{path} is damaged: it fails its checksum. {_COPY}")
    try:
        value = json.loads(data)
    except ValueError as error:
        raise RecordingError(f"{path} is damaged: {error}. {_COPY}") from None
    if isinstance(value, dict):
        value.pop("crc32", None)
    return value


def is_sound(path: Path) -> bool:
    """Whether `read_json` can read the file."""
    try:
        read_json(path)
    except RecordingError:
        return False
    return True


def journal_line(entry: dict) -> bytes:
    """A journal entry as bytes: CRC-32 in hex, a space, JSON, a line feed."""
    text = json.dumps(entry, separators=(",", ":"), sort_keys=True).encode()
    return f"{zlib.crc32(text):08x} ".encode() + text + b"\n"


def append_line(path: Path, entry: dict) -> None:
    """Append an entry to a journal and sync it. A line cut short by a full disk is ignored by readers."""
    with room_for(path), open(path, "ab") as file:
        file.write(journal_line(entry))
        file.flush()
        os.fsync(file.fileno())


def read_journal(path: Path) -> tuple[list[dict], int]:
    """(entries, number of bytes they fill). A last line cut short by a crash is ignored.

    Raises:
        RecordingError: a complete line fails its checksum.
    """
    if not path.exists():
        return [], 0
    data = path.read_bytes()
    entries, good = [], 0
    *lines, _torn = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        crc, _, text = line.partition(b" ")
        if crc != f"{zlib.crc32(text):08x}".encode():
            raise RecordingError(f"{path} is damaged: line {number} fails its checksum.\n  {_REPAIR}")
        entries.append(json.loads(text))
        good += len(line) + 1
    return entries, good


def salvage_journal(path: Path) -> list[dict | None]:
    """The entries of a journal, None for each complete line that fails its checksum."""
    entries: list[dict | None] = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():
        crc, _, text = line.partition(b" ")
        entries.append(json.loads(text) if crc == f"{zlib.crc32(text):08x}".encode() else None)
    return entries
