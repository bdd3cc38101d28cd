"""JSON files of saved runs and sweeps: read with bounds, and with nothing in them that could not be written again."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from scope.errors import EditError, ScopeError
from scope.typed_json import parse_json, read_bytes
from scope.whole_files import beside, write_whole

T = TypeVar("T")


def read_stored(source: str | Path, name: str, build: Callable[[Any], T], data: bytes | None = None) -> T:
    """What `build` makes of the JSON value in a file, or of JSON text itself.

    Args:
        name: what messages call it.
        data: the file's content, where it was read already.

    Raises:
        EditError: the file cannot be read, is no JSON, or `build` refuses it.
    """
    data = content(source, name) if data is None else data
    try:
        return build(checked(parse_json(data, "it", EditError)))
    except ScopeError as problem:
        raise EditError(f"No {name} can be read from {str(source)[:80]!r}: {problem}") from None


def content(source: str | Path, name: str = "steering run") -> bytes:
    """The content of a file, or JSON text itself.

    Raises:
        EditError: the file cannot be read.
    """
    if str(source).lstrip().startswith("{"):
        return str(source).encode(errors="surrogatepass")
    try:
        return read_bytes(Path(source), EditError)
    except (EditError, ValueError) as problem:  # a name may hold a zero byte
        raise EditError(f"No {name} can be read from {str(source)[:80]!r}: {problem}") from None


def checked(value: Any) -> Any:
    """A JSON value whose numbers are finite and whose texts can be written again.

    Raises:
        EditError: Infinity, NaN, a whole number that no array holds, or half of a surrogate pair.
    """
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            todo += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            todo += one
        elif isinstance(one, float) and not math.isfinite(one):
            raise EditError(f"it holds {one}, which is no number.")
        elif isinstance(one, int) and abs(one) >= 2**63:
            raise EditError("it holds a whole number of more than 63 bits.")
        elif isinstance(one, str) and not one.isascii() and any("\ud800" <= char <= "\udfff" for char in one):
            raise EditError(f"it holds half of a character, {one[:40]!a}.")
    return value


def runs_folders(pack: str | Path) -> tuple[Path, Path]:
    """(where the runs of a pack are saved: in it, so that they move with it; where earlier versions saved them: beside it, as
    runs/demo/pack.steering, which is still read)."""
    return Path(pack) / "steering", beside(Path(pack), ".steering")


def is_name(name: str) -> bool:
    """Whether a saved run can be called that: twelve hexadecimal digits, the beginning of the hash of its content."""
    return re.fullmatch(r"[0-9a-f]{12}", name) is not None


def saved_names(*folders: Path) -> list[str]:
    """Names of the runs in some folders, the newest first."""
    files = [f for folder in folders if folder.is_dir() for f in folder.glob("*.json") if is_name(f.stem)]
    return list(dict.fromkeys(f.stem for f in sorted(files, key=lambda f: -f.stat().st_mtime_ns)))


def check_schema(raw: Any, known: Sequence[int], what: str) -> None:
    """
    Raises:
        EditError: it was written by another version, or is no saved run.
    """
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if type(schema) is not int or schema not in known:
        readable = " and ".join(map(str, known))
        raise EditError(f"This {what} was saved with schema {str(schema)[:20]}; this version reads {what}s of {readable}.")


def write_file(file: str | Path, text: str) -> None:
    """Write a file whole, making its folder."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(file), text)
