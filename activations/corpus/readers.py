"""Readers of documents from files: plain text, JSONL (compressed or not), Parquet."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scope.activations.errors import CorpusError

PLAIN = (".txt", ".md", ".rst", ".py")
PACKED = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".jsonl": open}
_PIECE = 16_384  # characters; a longer file becomes several documents, so that shuffling can mix it


@dataclass(frozen=True)
class Document:
    """A text and its name."""

    name: str
    text: str


def read_file(path: Path, name: str, field: str) -> Iterator[Document]:
    """The documents of a file, in its order; `field` is the JSONL field or the column that holds the text.

    Raises:
        CorpusError: unknown suffix, damaged file, or no such field; the message names the line.
    """
    return reader_of(path, field)(path, name)


def reader_of(path: Path, field: str) -> Callable[[Path, str], Iterator[Document]]:
    """The reader for a file, chosen by its suffix.

    Raises:
        CorpusError: no reader knows the suffix.
    """
    suffixes = [s for s in path.suffixes if s in (*PLAIN, *PACKED, ".parquet")]
    if suffixes and suffixes[-1] in PLAIN:
        return _read_plain
    if ".jsonl" in suffixes and path.suffix in PACKED:
        return lambda p, name: read_jsonl(p, name, field)
    if suffixes and suffixes[-1] == ".parquet":
        return lambda p, name: _read_parquet(p, name, field)
    raise CorpusError(f"{path} has an unknown suffix. Known: {', '.join(PLAIN)}, .jsonl(.gz, .xz, .bz2), .parquet.")


def _read_plain(path: Path, name: str) -> Iterator[Document]:
    with open(path, encoding="utf-8", errors="replace") as file:
        paragraphs: list[str] = []
        characters = number = 0
        for line in file:
            if characters > _PIECE and (not line.strip() or characters > 4 * _PIECE):
                yield Document(f"{name}#{number}", "".join(paragraphs))
                paragraphs, characters, number = [], 0, number + 1
            paragraphs.append(line)
            characters += len(line)
        text = "".join(paragraphs)
        if text.strip():
            yield Document(f"{name}#{number}" if number else name, text)


def read_jsonl(path: Path, name: str, field: str) -> Iterator[Document]:
    with PACKED[path.suffix](path, "rt", encoding="utf-8", errors="replace") as file:
        lines = enumerate(file, 1)
        while True:
            try:
                number, line = next(lines)
            except StopIteration:
                return
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise CorpusError(f"{path} is damaged and cannot be unpacked: {error}.") from None
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise CorpusError(f"{path}, line {number}, is not JSON: {error}.") from None
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                there = f"fields: {', '.join(map(str, record))}" if isinstance(record, dict) else f"a {type(record).__name__}"
                raise CorpusError(f'{path}, line {number}, has no text in a field "{field}". It has {there}.')
            yield Document(str(record.get("name") or record.get("id") or f"{name}:{number}"), record[field])


def _read_parquet(path: Path, name: str, field: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise CorpusError(f"{path} needs pyarrow to be read: pip install pyarrow") from None
    try:
        file = parquet.ParquetFile(path)
        if field not in file.schema_arrow.names:
            raise CorpusError(f'{path} has no column "{field}". It has {", ".join(file.schema_arrow.names)}.')
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=[field]):
            for text in batch.column(0).to_pylist():
                if isinstance(text, str):
                    yield Document(f"{name}:{number}", text)
                number += 1
    except pyarrow.ArrowException as error:
        raise CorpusError(f"{path} is damaged or no Parquet file: {error}.") from None


def named_field(path: Path, field: str) -> dict[str, str]:
    """The part of a file's identity that the field adds; empty for plain text."""
    return {} if path.suffix in PLAIN else {"field": field}
