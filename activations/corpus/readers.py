"""Readers of documents from files: plain text, JSON lines, JSON, CSV, Parquet, Arrow, and folders of `datasets.save_to_disk`.

Memory is bounded whatever a file holds: a record, and a batch of a table, may have `LARGEST` characters or bytes.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from scope.activations.corpus.document import Document
from scope.activations.corpus.files import KNOWN, PLAIN, Form, damage_named, form_of, open_text
from scope.activations.corpus.layouts import RecordFields, columns, document_of
from scope.activations.errors import CorpusError

from scope.typed_json import parse_json, plain_name, read_typed

LARGEST = 64 * 2**20
"""Characters of a record."""

_PIECE = 16_384  # characters; a longer file becomes several documents, so that shuffling can mix it
_LINE = 4 * _PIECE  # characters; a longer line is cut at white space
_ROWS, _PICTURES = 256, 16  # rows of a table at once
_SAVED, _SPLITS = "state.json", "dataset_dict.json"


def read_file(path: Path, name: str, field: str | RecordFields) -> Iterator[Document]:
    """The documents of a file, in its order; `field` is the field or the column that holds the text.

    Raises:
        CorpusError: unknown suffix, damaged file, or no such field; the message names the line.
    """
    form = known_form(path)
    readers: dict[str, Callable[[Path, str, Any], Iterator[Document]]] = {
        **dict.fromkeys(PLAIN, lambda path, name, _: _read_plain(path, name)),
        ".jsonl": read_jsonl,
        ".ndjson": read_jsonl,
        ".json": _read_json,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
        ".arrow": _read_arrow,
    }
    return _guarded(path, readers[form.kind](path, name, field))


def known_form(path: Path) -> Form:
    """The form of a file.

    Raises:
        CorpusError: its suffix is unknown.
    """
    form = form_of(path)
    if form is None:
        raise CorpusError(f"{path} has an unknown suffix. Known: {KNOWN}.")
    return form


def named_field(form: Form, field: str) -> dict[str, str]:
    """The part of a file's identity that the field adds; empty for plain text."""
    return {} if form.kind in PLAIN else {"field": field}


def _guarded(path: Path, documents: Iterator[Document]) -> Iterator[Document]:
    """The documents, with what libraries raise of damage as a CorpusError."""
    while True:
        with damage_named(path):
            document = next(documents, None)
        if document is None:
            return
        yield document


def _read_plain(path: Path, name: str) -> Iterator[Document]:
    with open_text(path) as file:
        paragraphs: list[str] = []
        characters = number = 0
        for line in _lines(file):
            if characters > _PIECE and (not line.strip() or characters > 4 * _PIECE):
                yield Document(f"{name}#{number}", "".join(paragraphs))
                paragraphs, characters, number = [], 0, number + 1
            paragraphs.append(line)
            characters += len(line)
        text = "".join(paragraphs)
        if text.strip():
            yield Document(f"{name}#{number}" if number else name, text)


def _lines(file: TextIOWrapper) -> Iterator[str]:
    """The lines of a text; longer ones than `_LINE` in parts, cut at white space."""
    rest = ""
    while part := file.readline(_LINE):
        part, rest = rest + part, ""
        if len(part) >= _LINE and not part.endswith("\n"):
            last = part.rsplit(None, 1)[-1]
            if len(last) < _LINE // 2 and not part[-1].isspace():
                part, rest = part[: len(part) - len(last)], last
        yield part
    if rest:
        yield rest


def read_jsonl(path: Path, name: str, field: str | RecordFields) -> Iterator[Document]:
    with open_text(path) as file:
        number = 0
        while line := file.readline(LARGEST):
            number += 1
            if len(line) == LARGEST and not line.endswith("\n"):
                raise CorpusError(f"{path}, line {number}, is longer than {LARGEST:,} characters. A document is a line.")
            if line.strip():
                record = parse_json(line, f"{path}, line {number},", CorpusError)
                yield document_of(record, field, f"{path}, line {number}", f"{name}:{number}")


def _read_json(path: Path, name: str, field: str | RecordFields) -> Iterator[Document]:
    """The records of a list, one after another as in JSON lines, or in the one list that an object holds."""
    for number, record in enumerate(_json_values(path)):
        if isinstance(record, dict) and columns(field, record) is None:
            lists = [value for value in record.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
            if len(lists) == 1:
                for i, inner in enumerate(lists[0]):
                    yield document_of(inner, field, f"{path}, record {i}", f"{name}:{i}")
                continue
        yield document_of(record, field, f"{path}, record {number}", f"{name}:{number}")


def _json_values(path: Path) -> Iterator[Any]:
    """The values of a file, each parsed when it is there whole; a list is not held in memory."""
    decoder, text, at, ended, first = json.JSONDecoder(), "", 0, False, True
    with open_text(path) as file:
        while True:
            while at < len(text) and (text[at].isspace() or (text[at] == "," and not first)):
                at += 1
            if first and text[at : at + 1] == "[":
                at, first = at + 1, False
                continue
            if at < len(text) and text[at] != "]":
                try:
                    value, at = decoder.raw_decode(text, at)
                    first = False
                    yield value
                    continue
                except RecursionError:
                    raise CorpusError(f"{path} is damaged: its brackets are nested too deeply.") from None
                except ValueError as error:
                    if ended:
                        raise CorpusError(f"{path} is not JSON: {error}.") from None
                    if len(text) - at > LARGEST:
                        raise CorpusError(f"{path} holds a record of more than {LARGEST:,} characters.") from None
            if ended:
                return
            more = file.read(max(1 << 16, len(text) - at))
            text, at, ended = text[at:] + more, 0, not more


def _read_csv(path: Path, name: str, field: str | RecordFields) -> Iterator[Document]:
    with open_text(path, newline="") as file:
        csv.field_size_limit(LARGEST)
        kind = known_form(path).kind
        rows = csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",", restkey="(more)")
        there = [column for column in rows.fieldnames or () if column]
        if columns(field, there) is None:
            raise CorpusError(_no_column(path, field, there))
        for number, row in enumerate(rows):
            yield document_of(row, field, f"{path}, row {number}", f"{name}:{number}")


def _read_parquet(path: Path, name: str, field: str | RecordFields) -> Iterator[Document]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        wanted = _wanted(path, field, schema.names)
    texts = [column for column in wanted if str(schema.field(column).type) in ("string", "large_string")]
    # A page may repeat one long text many times; as a dictionary it takes memory once.
    with parquet.ParquetFile(path, read_dictionary=texts, page_checksum_verification=True) as file:
        batches = file.iter_batches(batch_size=_ROWS if isinstance(field, str) else _PICTURES, columns=wanted)
        yield from _rows(path, name, field, batches)


def _read_arrow(path: Path, name: str, field: str | RecordFields) -> Iterator[Document]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)
            batches: Iterable[Any] = reader
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        wanted = _wanted(path, field, reader.schema.names)
        parts = (batch.slice(a, _ROWS).select(wanted) for batch in batches for a in range(0, batch.num_rows, _ROWS))
        yield from _rows(path, name, field, parts)


def _wanted(path: Path, field: str | RecordFields, there: list[str]) -> list[str]:
    wanted = columns(field, there)
    if wanted is None:
        raise CorpusError(_no_column(path, field, there))
    return wanted


def _no_column(path: Path, field: str | RecordFields, there: list[str]) -> str:
    wanted, flag = (f'"{field}"', "--text-field") if isinstance(field, str) else ("with pictures", "--picture-field")
    return f"{path} has no column {wanted}. It has {', '.join(there)[:500]}. Name one with {flag}."


def _rows(path: Path, name: str, field: str | RecordFields, batches: Iterable[Any]) -> Iterator[Document]:
    """The documents of the rows of some batches. Of texts, a row without a value is left out; where a picture belongs, it is a
    document without one."""
    number = 0
    for batch in batches:
        for i in range(batch.num_rows):
            row = {column: batch.column(column)[i].as_py() for column in batch.schema.names}
            if not isinstance(field, str) or any(value is not None for value in row.values()):
                if any(isinstance(value, str) and len(value) > LARGEST for value in row.values()):
                    raise CorpusError(f"{path}, row {number}, holds a text of more than {LARGEST:,} characters.")
                yield document_of(row, field, f"{path}, row {number}", f"{name}:{number}")
            number += 1


def saved_files(folder: Path) -> tuple[list[Path], list[str]] | None:
    """(files of a folder of `datasets.save_to_disk`, names of the splits left out); None for any other folder.

    Of several splits the one called train is read, or the only one.

    Raises:
        CorpusError: it is damaged, or none of several splits is called train.
    """
    if (folder / _SPLITS).is_file():
        splits = read_typed(folder / _SPLITS, dict[str, list[str]], CorpusError).get("splits", [])
        names = [plain_name(split, folder / _SPLITS, CorpusError) for split in splits]
        if "train" not in names and len(names) != 1:
            raise CorpusError(f"{folder} holds the splits {', '.join(names)}; give the folder of one of them.")
        chosen = "train" if "train" in names else names[0]
        files = saved_files(folder / chosen)
        if files is None:
            raise CorpusError(f"{folder / chosen} is damaged: it has no {_SAVED}.")
        return files[0], [name for name in names if name != chosen]
    if not (folder / _SAVED).is_file() or not (folder / "dataset_info.json").is_file():
        return None
    state = read_typed(folder / _SAVED, dict[str, Any], CorpusError)
    source = folder / _SAVED
    if state.get("_indices_files"):
        raise CorpusError(f"{folder} holds a selection by indices. Save it again with datasets.save_to_disk.")
    listed = state.get("_data_files")
    if not isinstance(listed, list) or not all(isinstance(f, dict) and isinstance(f.get("filename"), str) for f in listed):
        raise CorpusError(f"{source} is damaged: it lists no files.")
    files = [folder / plain_name(entry["filename"], source, CorpusError) for entry in listed]
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        raise CorpusError(f"{source} lists {', '.join(missing) or 'no files'}, which are not there.")
    return files, []
