"""Manifest and journal of a recording: its origin and settings, and the finished shards.

manifest.json     written before the first shard; everything that must be equal to continue this recording
journal.jsonl     one line per finished shard, appended after the shard is synced and renamed
shard-00000.h5    see shard_writer.py; shard-00007-24.h5 is a last shard that holds only 24 contexts so far
open-00003.json   progress of shard 3 while it is being written
recording.lock    names the process that is writing

ranks.py describes the files of several writing processes, remote.py recordings in an object store.
"""

import math
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta
from scope.activations.corpus.outlier_rule import OutlierRule
from scope.activations.corpus.roles import LEAVES_OUT
from scope.activations.errors import RecordingError
from scope.activations.format.files import COPY, read_journal, read_json
from scope.activations.format.shard_entry import Count, ShardEntry, misfit

from scope.renamed import warn
from scope.typed_json import as_json, typed

FORMAT, VERSION = "activations", 2
WITH_ROLES = 3
"""The version of recordings that also store what each row is, since its token does not tell: patches of images, say."""
_OLD = 1  # its manifest has no checksum, and its sums are CRC-32
MANIFEST, JOURNAL, LOCK = "manifest.json", "journal.jsonl", "recording.lock"

Positive = Annotated[int, Meta(ge=1, le=2**62)]
Imported = TypedDict("Imported", {"from": str, "unknown": list[str], "exported": dict[str, Any]})
"""Where activations of another library came from, and what is unknown of them."""


@dataclass(frozen=True, kw_only=True)
class RecordedConfig:
    """The settings of a recording. See HarvestConfig; imported recordings do not have all of them."""

    sites: tuple[str, ...]
    tokens: Count
    context: Positive
    batch_contexts: Count
    shard_rows: Count
    dtype: Literal["bfloat16", "float32"]
    seed: int | None
    exclude: tuple[str, ...]
    outlier_times: float | None = None

    def __post_init__(self):
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise ValueError("it names no site, or one twice")
        if unknown := sorted(set(self.exclude) - set(LEAVES_OUT)):
            raise ValueError(f"exclude has {unknown[0][:40]!r}; the rules are {', '.join(LEAVES_OUT)}")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How rows are divided into shards and segments."""

    widths: dict[str, Positive]
    contexts_per_shard: Count
    segment_rows: Positive
    packing: str


@dataclass(frozen=True, kw_only=True)
class Continued:
    """From which context on other libraries or another batch size made the recording."""

    versions: dict[str, str]
    batch_contexts: Count
    from_context: Count


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A shard in quarantine, without which a recording is read."""

    shard: Count
    rows: tuple[Count, Count]
    contexts: tuple[Count, Count]
    why: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest of a recording. Fields with a default are written only where they differ from it."""

    format: str
    version: int
    model: dict[str, Any]
    tokenizer: dict[str, Any]
    corpus: dict[str, Any]
    config: RecordedConfig
    layout: Layout
    versions: dict[str, str]
    outliers: OutlierRule | None
    continued: tuple[Continued, ...] = ()
    imported: Imported | None = None
    left_out: tuple[LeftOut, ...] = ()
    replacement_characters: Count = 0
    """Characters U+FFFD in the text that was recorded, which stand for bytes that are no UTF-8."""
    skipped_documents: Count = 0
    """Documents of which nothing was recorded, such as pictures that cannot be read; their facts say why."""

    def __post_init__(self):
        missing = [site for site in self.config.sites if site not in self.layout.widths]
        if missing:
            raise ValueError(f"it has no width of {missing[0][:80]}")

    @property
    def has_roles(self) -> bool:
        return self.version == WITH_ROLES

    @property
    def unknown(self) -> list[str]:
        """What is unknown of imported activations."""
        return self.imported["unknown"] if self.imported else []

    def __getitem__(self, key: str) -> Any:
        """The manifest was a dictionary in version 0.1.0."""
        warn(f"manifest[{key!r}]", f"manifest.{key}")
        return self.to_json()[key]

    def to_json(self) -> dict[str, Any]:
        """The manifest as results record it, and as its file holds it."""
        return as_json(self)


@dataclass(frozen=True)
class Recorded:
    """A recording's manifest, the entries of its journal, and the number of journal bytes that they fill."""

    manifest: Manifest
    entries: list[ShardEntry]
    journal_bytes: int
    cut_short: bool = False
    """Whether the journal ends in a part of a line."""

    @property
    def n_contexts(self) -> int:
        return self.entries[-1].contexts[1] if self.entries else 0

    @property
    def n_rows(self) -> int:
        return self.entries[-1].rows[1] if self.entries else 0

    @property
    def exhausted(self) -> bool:
        """Whether the corpus ended before the budget was reached."""
        return bool(self.entries) and self.entries[-1].exhausted


def read_recording(folder: Path) -> Recorded:
    """Read manifest and journal.

    Raises:
        RecordingError: there is no recording, it has an unknown version, or manifest or journal are damaged.
    """
    manifest = read_manifest(folder)
    entries, good, cut_short = read_journal(folder / JOURNAL)
    check_entries(folder / JOURNAL, manifest, entries)
    return Recorded(manifest, entries, good, cut_short)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a recording.

    Raises:
        RecordingError: there is no recording, it has an unknown version, or its manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        problem = "which does not exist" if not folder.exists() else "which has no manifest.json"
        raise RecordingError(f"There is no recording in {folder}, {problem}.\n  To make one: scope harvest --out {folder}")
    value = read_json(path, checked=False)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise RecordingError(f"{path} is not the manifest of a recording. Give the folder that `scope harvest` wrote.")
    if value.get("version") not in (_OLD, VERSION, WITH_ROLES):
        what = f"{folder} is a recording of version {str(value.get('version'))[:40]}"
        raise RecordingError(f"{what}; this program reads versions {_OLD} to {WITH_ROLES}.")
    return manifest_of(read_json(path, checked=value["version"] != _OLD), path)


def manifest_of(value: Any, source: object) -> Manifest:
    """A manifest from its JSON value.

    Raises:
        RecordingError: a field is missing, of another type, or contradicts another.
    """
    value = {"outliers": None} | value if isinstance(value, dict) else value  # recordings once had no rule
    manifest = typed(value, Manifest, source, RecordingError, COPY)
    for group in (manifest.outliers, manifest.outliers and manifest.outliers.image):
        for limit in group.threshold.values() if group else ():
            if limit is not None and not 0 <= limit < math.inf:
                raise RecordingError(f"{source} is damaged: the threshold of outliers is {limit}. {COPY}")
    return manifest


def check_entries(path: Path, manifest: Manifest, entries: list[ShardEntry]) -> None:
    """Check that the shards of a journal follow each other and hold what the manifest says.

    Raises:
        RecordingError: shards are missing, or an entry contradicts itself or the manifest.
    """
    context = row = 0
    for i, entry in enumerate(entries):
        problem = "" if entry.quarantined else misfit(entry, manifest)
        if entry.contexts[0] != context:
            problem = f"contexts {context} to {entry.contexts[0]} are missing"
        elif entry.rows[0] != row or entry.shard != i:
            problem = f"shard {entry.shard} follows shard {i - 1}, or its rows begin at {entry.rows[0]} instead of {row}"
        if problem:
            raise RecordingError(f"{path} is damaged: line {i + 1}: {problem}.\n  {COPY}")
        context, row = entry.contexts[1], entry.rows[1]


def loose_ends(folder: Path, recorded: Recorded) -> list[str]:
    """What a crash left in a folder that no process is writing: a part of a journal line, and shards that are not listed."""
    again = "The same `scope harvest` as before lists or makes it again."
    listed = {entry.file for entry in recorded.entries}
    notes = [f"{JOURNAL} ends in a line that was cut short; the shard of that line does not count. {again}"]
    notes = notes if recorded.cut_short else []
    for path in sorted(folder.glob("shard-*.h5")):
        if path.name not in listed:
            why = "a run was stopped, or the journal lost its end"
            notes.append(f"{path.name} is here, but {JOURNAL} does not list it: {why}. {again}")
    return notes


def versions() -> dict[str, str]:
    """Versions of Python and the libraries that compute, since rounding may differ between them."""
    numbers = {"python": platform.python_version()}
    for package in ("torch", "numpy", "h5py", "transformers", "tokenizers"):
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            continue
    return numbers


def without_missing(journal: list[ShardEntry]) -> tuple[list[ShardEntry], tuple[LeftOut, ...]]:
    """(entries of the shards that can be read, numbered without gaps; what the shards in quarantine held).

    A renumbered entry keeps its numbers in the whole recording in `whole`.
    """
    if not any(entry.quarantined for entry in journal):
        return journal, ()
    kept, left_out, row, context = [], [], 0, 0
    for entry in journal:
        if entry.quarantined:
            why = entry.quarantined.why
            left_out.append(LeftOut(shard=entry.shard, rows=entry.rows, contexts=entry.contexts, why=why))
            continue
        kept.append(entry.renumbered(row, context))
        row, context = kept[-1].rows[1], kept[-1].contexts[1]
    return kept, tuple(left_out)


def describe_missing(folder: Path, left_out: tuple[LeftOut, ...], n_rows: int) -> str:
    """A sentence about the shards that are missing from a recording with `n_rows` readable rows; empty if none is."""
    if not left_out:
        return ""
    rows = sum(hole.rows[1] - hole.rows[0] for hole in left_out)
    shards = ", ".join(str(hole.shard) for hole in left_out)
    noun, was, is_, it = ("shard", "was", "is", "it") if len(left_out) == 1 else ("shards", "were", "are", "them")
    return (
        f"{folder} is read without {rows:,} of {n_rows + rows:,} rows: {noun} {shards} {was} damaged and {is_} in quarantine. "
        f"The same `scope harvest` as before makes {it} again."
    )
