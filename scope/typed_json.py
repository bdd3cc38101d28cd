"""Reads JSON that may be damaged, forged or huge: into checked types, or refused with the file's name and the way out."""

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from scope.errors import ScopeError

T = TypeVar("T")

LARGEST = 256 * 2**20
"""Bytes of JSON that are read at most; the largest file that scope writes is a hundredth of it."""


def read_bytes(path: Path, error: type[ScopeError] = ScopeError, way_out: str = "", largest: int = LARGEST) -> bytes:
    """The content of a regular file of bounded size.

    Raises:
        ScopeError: of the type `error`: the file is missing, unreadable, a pipe or a device, or larger than `largest` bytes.
    """
    try:
        # Without O_NONBLOCK the opening of a named pipe would wait for somebody who writes into it.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise error(_text(path, "is not a regular file", way_out))
            if status.st_size > largest:
                raise error(_text(path, f"has {status.st_size:,} bytes; at most {largest:,} are read", way_out))
            return file.read()
    except OSError as problem:
        raise error(_text(path, f"cannot be read: {problem.strerror or problem}", way_out)) from None


def parse_json(data: bytes | str, source: object, error: type[ScopeError] = ScopeError, way_out: str = "") -> Any:
    """The value of JSON text; `source` is what a message calls it.

    Raises:
        ScopeError: of the type `error`: the text is not UTF-8, not JSON, or nested too deeply.
    """
    try:
        return json.loads(data.decode() if isinstance(data, bytes) else data)
    except RecursionError:
        raise error(_text(source, "is damaged: its brackets are nested too deeply", way_out)) from None
    except ValueError as problem:
        raise error(_text(source, f"is damaged: it is not JSON ({problem})", way_out)) from None


def read_json(path: Path, error: type[ScopeError] = ScopeError, way_out: str = "", largest: int = LARGEST) -> Any:
    """The value in a JSON file.

    Raises:
        ScopeError: of the type `error`: see `read_bytes` and `parse_json`; or a text in it holds half of a character.
    """
    data = read_bytes(path, error, way_out, largest)
    value = parse_json(data, path, error, way_out)
    if b"\\u" in data and any("\ud800" <= char <= "\udfff" for char in json.dumps(value, ensure_ascii=False)):
        raise error(_text(path, "is damaged: it holds half of a surrogate pair, which is no character", way_out))
    return value


def typed(value: Any, kind: type[T] | Any, source: object, error: type[ScopeError] = ScopeError, way_out: str = "") -> T:
    """A JSON value as a dataclass or another annotated type, such as `dict[str, int]`; unknown fields are left out.

    Nothing is converted but whole numbers to floats and lists to tuples: "false" is no bool and 3.0 is no int.

    Raises:
        ScopeError: of the type `error`: a field is missing or of another type; the message names it.
    """
    try:
        return msgspec.convert(value, kind, strict=True)
    except (msgspec.ValidationError, RecursionError, UnicodeError) as problem:  # half a surrogate pair is no text
        raise error(_text(source, f"is damaged: {str(problem).replace(' - at `$.', ' - at `')}", way_out)) from None


def read_typed(path: Path, kind: type[T] | Any, error: type[ScopeError] = ScopeError, way_out: str = "") -> T:
    """The value in a JSON file as a dataclass or another annotated type.

    Raises:
        ScopeError: of the type `error`: see `read_json` and `typed`.
    """
    return typed(read_json(path, error, way_out), kind, path, error, way_out)


def as_json(value: Any) -> Any:
    """A checked value as JSON holds it, the inverse of `typed`: objects for dataclasses, lists for tuples.

    A field that equals its default is left out; one without a default is always there.
    """
    if is_dataclass(value) and not isinstance(value, type):
        values = ((f, getattr(value, f.name)) for f in fields(value))
        return {
            f.name: as_json(v) for f, v in values if v != (f.default if f.default_factory is MISSING else f.default_factory())
        }
    if isinstance(value, dict):
        return {name: as_json(v) for name, v in value.items()}
    return [as_json(v) for v in value] if isinstance(value, list | tuple) else value


def json_lines(data: bytes, source: object, error: type[ScopeError] = ScopeError, way_out: str = "") -> Iterator[Any]:
    """The values of JSON lines; empty lines are left out.

    Raises:
        ScopeError: of the type `error`: a line is not JSON; the message names its number.
    """
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            yield parse_json(line, f"{source}, line {number},", error, way_out)


def plain_name(name: str, source: object, error: type[ScopeError] = ScopeError, way_out: str = "") -> str:
    """A name that stands in the file `source`, if it can be one part of a path on every system: no folder, no parent.

    Raises:
        ScopeError: of the type `error`: it cannot.
    """
    if name.strip(". ") and name.isprintable() and len(name) <= 200 and not set(name) & set('/\\:*?"<>|'):
        return name
    raise error(_text(source, f"names {name[:80]!r}, which is not the plain name of a file", way_out))


def _text(source: object, problem: str, way_out: str) -> str:
    return f"{source} {problem}." + (f"\n  {way_out}" if way_out else "")
