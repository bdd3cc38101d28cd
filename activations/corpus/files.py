"""Files of text by kind: their name says the kind and how they are packed, their first bytes whether that is so."""

import bz2
import codecs
import gzip
import io
import lzma
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.activations.corpus.document import REPLACEMENT
from scope.activations.errors import CorpusError

PLAIN = (".txt", ".md", ".rst", ".py")
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
TABLES = (".parquet", ".arrow")


def _zstandard(path: Path, mode: str) -> Any:
    import zstandard

    return zstandard.open(path, mode, dctx=zstandard.ZstdDecompressor(max_window_size=_WINDOW))


PACKED: dict[str, Callable[[Path, str], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": _zstandard}
KNOWN = f"{', '.join((*PLAIN, *RECORDS))} (each also with {', '.join(PACKED)}) and {', '.join(TABLES)}"
"""The suffixes that are read, for messages."""

NOT_TEXT = {
    b"version https://git-lfs.github.com/spec/": "a pointer of git-lfs instead of the data. Fetch it: git lfs pull",
    b"/annex/objects/": "a pointer of git-annex instead of the data. Fetch it: git annex get",
    b"PK\x03\x04": "a ZIP archive. Unpack it first",
    b"\x1f\x8b": "packed by gzip. End its name in .gz",
    b"BZh": "packed by bzip2. End its name in .bz2",
    b"\xfd7zXZ": "packed by xz. End its name in .xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd. End its name in .zst",
    b"PAR1": "a Parquet file. End its name in .parquet",
    b"ARROW1": "an Arrow file. End its name in .arrow",
    b"%PDF-": "a PDF. Extract its text first",
    b"{\\rtf": "Rich Text. Save it as plain text first",
    b"SQLite format 3": "an SQLite database. Export its text first",
    b"\x89HDF": "an HDF5 file, and no text",
    b"\x89PNG": "an image, and no text",
    b"\xff\xd8\xff": "an image, and no text",
    b"GIF8": "an image, and no text",
    b"\x7fELF": "a program, and no text",
    b"\x80\x04\x95": "a Python pickle, which is never opened. Save its text as JSONL",
}
"""First bytes of what is not text, and the way out. A kind is a line."""

_POINTERS = (b"version https://git-lfs.github.com/spec/", b"/annex/objects/")
"""What stands in place of a file's data, packed or not."""

_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
_BOMS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # after UTF-32, whose marks begin alike
_LIBRARIES = ("pyarrow", "zstandard", "_csv")  # their errors have no other common base
_HEAD = 1 << 16  # bytes
_ODD = 0.01  # share of characters that may be no UTF-8
_WINDOW = 2**31  # bytes that a packed .zst may ask for


@dataclass(frozen=True)
class Form:
    """Kind of a file, such as .jsonl, and how it is packed, such as .gz or not at all."""

    kind: str
    packed: str = ""


def form_of(path: Path) -> Form | None:
    """The form that a file's name says; None if none is known."""
    *_, before, last = ("", "", *(suffix.lower() for suffix in path.suffixes))
    if last in PACKED and before in (*PLAIN, *RECORDS):
        return Form(before, last)
    return Form(last) if last in (*PLAIN, *RECORDS, *TABLES) else None


@contextmanager
def damage_named(path: Path):
    """Turns what libraries raise of damaged files into a CorpusError that names the file.

    Raises:
        CorpusError: the file cannot be unpacked or parsed, or asks for more memory than there is.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise CorpusError(f"{path} is damaged and cannot be unpacked: {error}.") from None
    except MemoryError as error:
        raise CorpusError(f"{path} asks for more memory than there is: {error or 'it unpacks to too much'}.") from None
    except Exception as error:
        if not isinstance(error, UnicodeError) and type(error).__module__.split(".")[0] not in _LIBRARIES:
            raise
        raise CorpusError(f"{path} is damaged: {str(error).strip() or type(error).__name__}.") from None


def open_text(path: Path, newline: str | None = None) -> io.TextIOWrapper:
    """A file's text, unpacked, by the encoding that its first bytes say; bytes that are none become U+FFFD."""
    form = form_of(path)
    packed = form.packed if form else ""
    with damage_named(path):
        with _open_bytes(path, packed) as raw:
            head = raw.read(4)
        return io.TextIOWrapper(_open_bytes(path, packed), _encoding(head), "replace", newline)


def check(path: Path, form: Form) -> None:
    """Check by its first bytes that a file is what its name says: UTF-8, or what begins with a mark of another encoding.

    Raises:
        CorpusError: it is a pointer, an archive, binary, or in an encoding that nothing names.
    """
    with damage_named(path):
        with open(path, "rb") as raw:
            pointer = raw.read(64).startswith(_POINTERS)
        with _open_bytes(path, "" if pointer else form.packed) as raw:
            head = raw.read(_HEAD)
    reason = next((reason for first, reason in NOT_TEXT.items() if head.startswith(first)), None)
    if form.kind in TABLES:
        if reason and form.kind[1:].upper() not in reason.upper():
            raise CorpusError(f"{path} is {reason}.")
        if form.kind == ".arrow":
            try_arrow(path)
        return
    if reason:
        raise CorpusError(f"{path} is {reason}.")
    encoding = _encoding(head)
    if encoding == "utf-8" and head.count(0) * 1000 > len(head):
        even, odd = head[::2].count(0), head[1::2].count(0)
        wide = max(even, odd) * 4 > len(head)
        way_out = f"Convert it: iconv -f UTF-16{'BE' if even > odd else 'LE'} -t UTF-8" if wide else "Give text"
        raise CorpusError(
            f"{path} is {'UTF-16 without a mark that says so' if wide else 'binary'}, and no UTF-8 text. {way_out}."
        )
    text = head.decode(encoding, "replace")
    odd_ones = text[:-4].count(REPLACEMENT) - head.count(REPLACEMENT.encode())
    if odd_ones > _ODD * len(text):
        raise CorpusError(
            f"{path} is no UTF-8 text: of its first {len(text):,} characters {odd_ones:,} are none.\n"
            "  Convert it from the encoding that it has, as iconv -f WINDOWS-1252 -t UTF-8 does."
        )


def try_arrow(path: Path) -> None:
    """Read an Arrow file in a process of its own first: pyarrow ends the process that reads a damaged one.

    Raises:
        CorpusError: it is damaged.
    """
    process = subprocess.run([sys.executable, "-c", _TRY, str(path)], capture_output=True, text=True, errors="replace")
    if process.returncode:
        error_lines = process.stderr.strip().splitlines() or ["it cannot be read"]
        raise CorpusError(f"{path} is damaged or no Arrow file: {error_lines[-1][:300]}.")


_TRY = """
import sys
import pyarrow as pa
with pa.memory_map(sys.argv[1]) as source:
    try:
        reader = pa.ipc.open_stream(source)
        batches = reader
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(source)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    reader.schema.names, str(reader.schema)
    for batch in batches:
        batch.validate(full=True)
"""


def _encoding(head: bytes) -> str:
    return next((encoding for mark, encoding in _BOMS.items() if head.startswith(mark)), "utf-8")


def _open_bytes(path: Path, packed: str) -> Any:
    return PACKED[packed](path, "rb") if packed else open(path, "rb")
