"""Files of a recording with checksums: JSON objects, and a journal whose last line may be torn."""

import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from scope.activations.errors import RecordingError
from scope.activations.format.shard_entry import ShardEntry

from scope import whole_files
from scope.typed_json import as_json, parse_json, read_bytes, typed
from scope.whole_files import FULL, NO_LINK

T = TypeVar("T")

COPY = "Restore it from a copy, or record again into another folder."
"""The way out of damage to a manifest."""

_REPAIR = "`scope recording repair` gives up the shard of that line and keeps the rest; or restore the file from a copy."

WAY_OUT = (
    "`scope recording verify` says what else is; `scope recording repair` moves it aside so that the rest stays usable, "
    "and `scope harvest` then makes it again."
)
"""The way out of damage to a shard."""

_LARGEST = 2**32
"""Bytes of a journal that are read at most; a line has some 200 bytes for each dataset of its shard."""


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
    data = read_bytes(path, RecordingError, COPY)
    sealed = re.fullmatch(rb'(.*),\n "crc32": "([0-9a-f]{8})"\n}\n', data, re.DOTALL)
    if (sealed and f"{zlib.crc32(sealed[1]):08x}".encode() != sealed[2]) or (checked and not sealed):
        raise RecordingError(f"{path} is damaged: it fails its checksum. {COPY}")
    value = parse_json(data, path, RecordingError, COPY)
    if isinstance(value, dict):
        value.pop("crc32", None)
    return value


def read_object(path: Path, kind: type[T]) -> T:
    """Read a file of `write_json` as a dataclass.

    Raises:
        RecordingError: the file is not JSON, fails its checksum, or a field is missing or of another type.
    """
    return typed(read_json(path), kind, path, RecordingError, COPY)


def is_sound(path: Path, kind: type) -> bool:
    """Whether `read_object` can read the file."""
    try:
        read_object(path, kind)
    except RecordingError:
        return False
    return True


def journal_line(entry: Any) -> bytes:
    """A journal entry as bytes: CRC-32 in hex, a space, JSON, a line feed."""
    text = json.dumps(as_json(entry), separators=(",", ":"), sort_keys=True).encode()
    return f"{zlib.crc32(text):08x} ".encode() + text + b"\n"


def append_line(path: Path, entry: Any) -> None:
    """Append an entry to a journal and sync it. A line cut short by a full disk is ignored by readers."""
    with room_for(path), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_LINK, 0o666), "ab") as file:
        file.write(journal_line(entry))
        file.flush()
        os.fsync(file.fileno())


def write_journal(path: Path, entries: list[ShardEntry]) -> None:
    """Write a journal whole."""
    write_whole(path, b"".join(map(journal_line, entries)))


def read_journal(path: Path) -> tuple[list[ShardEntry], int, bool]:
    """(entries, number of bytes they fill, whether a part of a line follows, as a crash leaves it and a writer for a moment).

    Raises:
        RecordingError: a complete line fails its checksum, or is no entry.
    """
    entries, good = [], 0
    *lines, rest = _lines(path)
    for number, line in enumerate(lines, 1):
        entry = _entry(line, f"{path}, line {number},")
        if entry is None:
            raise RecordingError(f"{path} is damaged: line {number} fails its checksum.\n  {_REPAIR}")
        entries.append(entry)
        good += len(line) + 1
    return entries, good, bool(rest)


def salvage_journal(path: Path) -> list[ShardEntry | None]:
    """The entries of a journal, None for each complete line that fails its checksum.

    Raises:
        RecordingError: a line that passes its checksum is no entry.
    """
    return [_entry(line, f"{path}, line {number},") for number, line in enumerate(_lines(path)[:-1], 1)]


def _lines(path: Path) -> list[bytes]:
    """The lines of a journal, and what follows the last line feed."""
    return read_bytes(path, RecordingError, COPY, _LARGEST).split(b"\n") if os.path.lexists(path) else [b""]


def _entry(line: bytes, source: str) -> ShardEntry | None:
    crc, _, text = line.partition(b" ")
    if crc != f"{zlib.crc32(text):08x}".encode():
        return None
    return typed(parse_json(text, source, RecordingError, COPY), ShardEntry, source, RecordingError, COPY)
