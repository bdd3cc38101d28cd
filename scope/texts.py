"""One text or several: what is done with one text is done with each of a list, in its order."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from scope.errors import ScopeError
from scope.typed_json import json_lines, parse_json, read_bytes

T = TypeVar("T")


def for_each_text(texts: object, do: Callable[[str], T], error: type[ScopeError]) -> T | list[T]:
    """The result for a text, or a list with the result for each of several texts.

    Raises:
        ScopeError: of the type `error`: there is no text, or what is no text, such as ids of tokens or the turns of a chat.
    """
    each = [do(text) for text in list_of_texts(texts, error)]
    return each[0] if isinstance(texts, str) else each


def list_of_texts(texts: object, error: type[ScopeError]) -> list[str]:
    """The text, or each of several texts, as a list.

    Raises:
        ScopeError: of the type `error`: there is no text, or what is no text. A mapping is none, such as what a tokenizer of
            transformers returns: its keys are words too, and would be read in place of the tokens.
    """
    if isinstance(texts, str):
        return [texts]
    each = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, bytes | Mapping) else [texts]
    strange = [type(text).__name__ for text in each if not isinstance(text, str)]
    if strange or not each:
        what = f"holds a {strange[0]}" if each else "is empty"
        raise error(f"A text is needed, or a list of texts; what was given {what}. Give text, such as 'The dog runs'.")
    return each


def texts_of_file(file: Path, error: type[ScopeError]) -> list[str]:
    """The texts of a file: a text a line, or .json (a list) or .jsonl of texts, or of objects with a "prompt" or "text".

    Raises:
        ScopeError: of the type `error`: it cannot be read, or holds no text.
    """
    data, way_out = (
        read_bytes(file, error, "Give a file with a prompt on each line."),
        'Give texts, or {"prompt": "..."} objects.',
    )
    if file.suffix == ".json":
        values: list[Any] = parse_json(data, file, error, way_out)
    elif file.suffix == ".jsonl":
        values = list(json_lines(data, file, error, way_out))
    else:
        values = [line for line in data.decode("utf-8-sig", errors="replace").splitlines() if line.strip()]
    rows = values if isinstance(values, list) else [values]
    texts = [row.get("prompt", row.get("text")) if isinstance(row, dict) else row for row in rows]
    strange = next((i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()), None)
    if strange is not None:
        raise error(f"Entry {strange + 1} of {file} holds no text. {way_out}")
    if not texts:
        raise error(f"{file} holds no text.")
    return texts
