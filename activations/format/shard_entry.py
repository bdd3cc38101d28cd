"""The journal entry of a finished shard: the file, what it holds, and where each dataset of it lies.

Entries come from files that others may have written, so every name, count and offset is checked before anything is read by it.
"""

import math
import re
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any

from msgspec import Meta
from scope.activations.corpus.inputs import Cursor
from scope.activations.format.hdf5 import Place

Count = Annotated[int, Meta(ge=0, le=2**62)]
Span = tuple[Count, Count]
"""First, and one past the last."""

_OF_BYTES = ("document_names", "document_facts", "document_pictures")
_FILE = re.compile(r"shard-\d+(-\d+)?\.h5")


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Rows and contexts of a shard in the whole recording, where shards before it are in quarantine."""

    rows: Span
    contexts: Span


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A shard that `scope recording repair` moved aside: where to ("" if there was no file), and the failed checks."""

    file: str
    why: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A line of the journal. Fields with a default are written only where they differ from it."""

    shard: Count
    file: str
    bytes: Count
    contexts: Span
    rows: Span
    documents: Span
    """Documents that start in this shard."""
    exhausted: bool
    """Whether the corpus ends with this shard."""
    datasets: dict[str, Place]
    rest_crc32: Count | None = None
    """Checksum of all bytes outside the datasets."""
    mean_square_norm: dict[str, float] = field(default_factory=dict)
    max_norm: dict[str, float] = field(default_factory=dict)
    cursor: Cursor | None = None
    """Position in the corpus after this shard; None for a shard whose journal line was lost."""
    outliers: dict[str, Count] | None = None
    """Number of outliers by site."""
    inputs: str | None = None
    """Digest of the inputs, where they are more than tokens."""
    remade: dict[str, str] | None = None
    """Versions of the libraries, where a repaired shard came out with other bits."""
    quarantined: Quarantined | None = None
    whole: Whole | None = None

    def __post_init__(self):
        if not _FILE.fullmatch(self.file):
            raise ValueError(f"{self.file[:80]!r} is no name of a shard")
        for name in ("contexts", "rows", "documents"):
            start, stop = getattr(self, name)
            if start > stop:
                raise ValueError(f"{name} go from {start} to {stop}")

    @property
    def n_contexts(self) -> int:
        return self.contexts[1] - self.contexts[0]

    @property
    def n_rows(self) -> int:
        return self.rows[1] - self.rows[0]

    @property
    def in_whole(self) -> Whole:
        """Its rows and contexts in the whole recording, with the shards in quarantine counted."""
        return self.whole or Whole(rows=self.rows, contexts=self.contexts)

    def renumbered(self, row: int, context: int) -> "ShardEntry":
        """The entry with its rows and contexts counted from these numbers."""
        rows, contexts = (row, row + self.n_rows), (context, context + self.n_contexts)
        return replace(self, rows=rows, contexts=contexts, whole=self.in_whole)


def layout(
    n_contexts: int,
    context: int,
    n_rows: int,
    names: int,
    widths: dict[str, int],
    dtype: str,
    segment_rows: int,
    sums: str = "uint64",
    facts: int | None = None,
    pictures: int | None = None,
) -> dict[str, tuple[tuple[int, ...], str]]:
    """The datasets of a shard in file order, name -> (shape, dtype). `names` and `facts` are bytes of JSON; `facts`, and roles
    beside them, are in version 3; there, `pictures` are bytes of small pictures, if there are any."""
    datasets: dict[str, tuple[tuple[int, ...], str]] = {
        "tokens": ((n_contexts, context), "int32"),
        "documents": ((n_contexts, context), "int32"),
        "document_names": ((names,), "uint8"),
    }
    if facts is not None:
        datasets |= {"roles": ((n_contexts, context), "uint8"), "document_facts": ((facts,), "uint8")}
    if pictures is not None:
        datasets["document_pictures"] = ((pictures,), "uint8")
    datasets |= {f"rows/{name}": ((n_rows,), "int32") for name in ("token_id", "position", "context")}
    for site, width in widths.items():
        datasets[f"acts/{site}"] = ((n_rows, width), dtype)
        datasets[f"norms/{site}"] = ((n_rows,), "float32")
        datasets[f"sums/{site}"] = ((-(-n_rows // segment_rows),), sums)
    return datasets


def misfit(entry: ShardEntry, manifest: Any) -> str:
    """What of a readable shard's entry contradicts itself or the recording's manifest; "" if nothing does."""
    widths, config = manifest.layout.widths, manifest.config
    lengths = {name: entry.datasets[name].shape for name in _OF_BYTES if name in entry.datasets}
    expected = layout(
        entry.n_contexts,
        config.context,
        entry.n_rows,
        math.prod(lengths.get("document_names", (0,))),
        {site: widths[site] for site in config.sites},
        config.dtype,
        manifest.layout.segment_rows,
        "uint32" if manifest.version == 1 else "uint64",
        math.prod(lengths.get("document_facts", (0,))) if manifest.has_roles else None,
        math.prod(lengths["document_pictures"]) if "document_pictures" in lengths and manifest.has_roles else None,
    )
    if expected.keys() != entry.datasets.keys():
        return f"it lists other datasets than the manifest, such as {min(expected.keys() ^ entry.datasets.keys())[:80]}"
    for name, (shape, dtype) in expected.items():
        place = entry.datasets[name]
        if (place.shape, place.dtype) != (shape, dtype):
            return f"{name} is {place.dtype} {list(place.shape)}; by the manifest it is {dtype} {list(shape)}"
        if place.crc32 is None and not name.startswith("acts/"):
            return f"{name} has no checksum"
    stored = sorted((place.offset, place.offset + place.nbytes) for place in entry.datasets.values() if place.nbytes)
    if any(stop > start for (_, stop), (start, _) in pairwise(stored)) or any(stop > entry.bytes for _, stop in stored):
        return "its datasets overlap or lie outside of the file"
    for norms in (entry.mean_square_norm, entry.max_norm):
        if not all(0 <= norms.get(site, -1) < math.inf for site in config.sites):
            return "a norm is missing, negative or not finite"
    if entry.rest_crc32 is None or entry.cursor is None:
        return "a checksum or the position in the corpus is missing"
    return ""
