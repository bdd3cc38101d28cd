"""The files of a page index, and how they are written and read.

    index.json                      which model made the vectors, and how pages were read
    shards/000000.json              the pages of a shard and the checksum of its vectors; written last
    shards/000000.safetensors       vectors [pos d_embed] of its pages one after another, and the length of each before it was 1
    pictures/000000.png             each page as the model sees it: resized to the model's square
    skipped.json                    pages that could not be read, with the reason

A shard is never written twice; pages are numbered in the order of the shards. Where pages are removed, or a part of every
page's vectors is left out, a new folder is written (`scope.pages.derive`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash

from scope.pages.errors import PagesError
from scope.shapes import Acts, PerToken
from scope.typed_json import as_json, read_bytes, read_typed
from scope.whole_files import write_json, write_whole

SCHEMA = 1
INDEX, SKIPPED = "index.json", "skipped.json"
_WAY_OUT = "Make the index again: scope pages index SOURCES --model MODEL --out NEW_FOLDER"
_LARGEST = 2**34  # bytes of a shard

Dtype = Literal["float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page of an index."""

    file: str
    number: int
    """From 1, within its file."""

    width: int
    height: int
    sha256: str
    """Checksum of the file."""

    vectors: int
    blank: bool = False
    """Whether nothing is on it: all of its pixels have one colour."""

    @property
    def name(self) -> str:
        """What it is called: the file, and the page of a PDF."""
        return f"{self.file}#{self.number}" if self.file.lower().endswith(".pdf") else self.file


@dataclass(frozen=True, kw_only=True)
class Trimmed:
    """Which part of each page's vectors an index has."""

    share: float
    by: str
    """By what they were chosen: "mean" or "latents"."""

    of: str
    """The folder of the whole index."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """index.json."""

    schema: int
    model: dict[str, Any]
    family: str
    d_embed: int
    dtype: Dtype
    grid: tuple[int, int]
    """Rows and columns of patches."""

    first_patch: int
    """The position, within the vectors of a page, of its first patch."""

    pieces: tuple[str, ...]
    """The tokens of a page, whose vectors its own are."""

    dpi: int
    sources: tuple[str, ...]
    scope: str
    trimmed: Trimmed | None = None
    """None: every page has all of its vectors."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """shards/NUMBER.json."""

    pages: tuple[Page, ...]
    xxh3: str
    """Checksum of the file of vectors."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A page that could not be read."""

    page: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class _SkippedPages:
    pages: tuple[Skipped, ...] = field(default=())


def read_manifest(folder: Path) -> Manifest:
    """
    Raises:
        PagesError: there is no index, or one that is damaged or of another version.
    """
    if not (folder / INDEX).is_file():
        what = "is no folder" if not folder.is_dir() else "holds no page index: index.json is missing"
        if old := next(folder.absolute().parent.glob(f".{folder.name}.*.old"), None):  # a crash between two renames
            raise PagesError(
                f"{folder} was being replaced when the machine stopped. It is {old} now: give that its name again."
            )
        raise PagesError(f"{folder} {what}.\n  To make one: scope pages index SOURCES --model MODEL --out {folder}")
    manifest = read_typed(folder / INDEX, Manifest, PagesError, _WAY_OUT)
    if manifest.schema != SCHEMA:
        raise PagesError(f"{folder} is a page index of schema {manifest.schema}; this version reads {SCHEMA}. {_WAY_OUT}")
    rows, columns = manifest.grid
    last = manifest.first_patch + rows * columns
    if min(rows, columns, manifest.d_embed) < 1 or manifest.first_patch < 0 or last > len(manifest.pieces):
        raise PagesError(f"{folder / INDEX} is damaged: its patches and vectors do not fit each other. {_WAY_OUT}")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_json(folder / INDEX, as_json(manifest))


def read_skipped(folder: Path) -> tuple[Skipped, ...]:
    """The pages that could not be read when the index was made."""
    file = folder / SKIPPED
    return read_typed(file, _SkippedPages, PagesError, _WAY_OUT).pages if file.exists() else ()


def write_skipped(folder: Path, skipped: Sequence[Skipped]) -> None:
    write_json(folder / SKIPPED, as_json(_SkippedPages(pages=tuple(skipped))))


def shard_file(folder: Path, number: int, ending: str) -> Path:
    return folder / "shards" / f"{number:06d}.{ending}"


def picture_file(folder: Path, page: int) -> Path:
    """Where the page of that number lies as the model sees it."""
    return folder / "pictures" / f"{page:06d}.png"


def read_shards(folder: Path, manifest: Manifest) -> list[Shard]:
    """
    Raises:
        PagesError: a shard is missing or damaged.
    """
    files = sorted((folder / "shards").glob("*.json"))
    if [f.name for f in files] != [shard_file(folder, i, "json").name for i in range(len(files))]:
        raise PagesError(f"{folder / 'shards'} lacks a shard: it holds {', '.join(f.name for f in files[:12])}. {_WAY_OUT}")
    shards = [read_typed(file, Shard, PagesError, _WAY_OUT) for file in files]
    for file, shard in zip(files, shards, strict=True):
        for page in shard.pages:
            fits = (
                page.vectors == len(manifest.pieces) if manifest.trimmed is None else 0 < page.vectors <= len(manifest.pieces)
            )
            if not fits or min(page.width, page.height, page.number) < 1:
                raise PagesError(f"{file} is damaged: page {page.name} has {page.vectors} vectors. {_WAY_OUT}")
    return shards


def write_shard(folder: Path, number: int, pages: Sequence[Page], vectors: Acts, norms: PerToken) -> Shard:
    """Write the vectors, then the pages, by which the shard counts as written."""
    from safetensors.torch import save

    data = save({"vectors": vectors.contiguous(), "norms": norms.contiguous()})
    write_whole(shard_file(folder, number, "safetensors"), data)
    shard = Shard(pages=tuple(pages), xxh3=xxhash.xxh3_128_hexdigest(data))
    write_json(shard_file(folder, number, "json"), as_json(shard))
    return shard


def read_vectors(folder: Path, number: int, shard: Shard, manifest: Manifest) -> tuple[Acts, PerToken]:
    """(vectors of a shard's pages one after another, as stored; the length of each before it was brought to 1).

    Raises:
        PagesError: the file is missing, or is not what was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    file = shard_file(folder, number, "safetensors")
    data = read_bytes(file, PagesError, _WAY_OUT, _LARGEST)
    if xxhash.xxh3_128_hexdigest(data) != shard.xxh3:
        raise PagesError(f"{file} is damaged: its checksum is not the one that {number:06d}.json says. {_WAY_OUT}")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise PagesError(f"{file} is damaged: {error}. {_WAY_OUT}") from None
    n = sum(page.vectors for page in shard.pages)
    vectors, norms = tensors.get("vectors"), tensors.get("norms")
    fits = vectors is not None and tuple(vectors.shape) == (n, manifest.d_embed) and norms is not None
    if not fits or vectors.dtype != getattr(torch, manifest.dtype) or tuple(norms.shape) != (n,):
        raise PagesError(f"{file} is damaged: it does not hold {n:,} vectors of {manifest.d_embed} numbers. {_WAY_OUT}")
    return vectors, norms
