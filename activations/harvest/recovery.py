"""Progress marks of unfinished shards, and removal of what a crash left.

While shard 3 is written, open-00003.json holds the name of its file, the number of contexts on the disk, and a digest of its
inputs. The next run continues there if its inputs are the same.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from scope.activations.format.files import is_sound, read_object, write_json
from scope.activations.format.manifest import JOURNAL, Recorded
from scope.activations.format.shard_entry import Count, ShardEntry
from scope.activations.harvest.ranks import ProcessRank

from scope.typed_json import as_json


@dataclass(frozen=True, kw_only=True)
class Watermark:
    """Progress of an unfinished shard: its file, the contexts that are on the disk, and the digest of its inputs."""

    file: str
    contexts: Count
    tokens: str


def watermark_path(folder: Path, number: int) -> Path:
    """File that holds the progress of an unfinished shard."""
    return folder / f"open-{number:05d}.json"


def write_watermark(folder: Path, number: int, file: str, contexts: int, digest: str) -> None:
    """Record that the first contexts of an unfinished shard are on the disk."""
    write_json(watermark_path(folder, number), as_json(Watermark(file=file, contexts=contexts, tokens=digest)))


def read_watermark(folder: Path, number: int, file: str, digest: str) -> int:
    """Number of contexts that an earlier run wrote of a shard; 0 if its inputs differ."""
    path = watermark_path(folder, number)
    if not path.exists() or not (folder / (file + ".tmp")).exists():
        return 0
    mark = read_object(path, Watermark)
    return mark.contexts if mark.file == file and mark.tokens == digest else 0


def clean(folder: Path, recorded: Recorded, done: dict[int, ShardEntry], ranks: ProcessRank) -> None:
    """Remove what a crash of this rank left: a torn journal line, and files that are neither listed nor can be continued."""
    journal = folder / JOURNAL
    if ranks.leads and journal.exists() and journal.stat().st_size > recorded.journal_bytes:
        os.truncate(journal, recorded.journal_bytes)
    for mark in _our_marks(folder, ranks):
        if not is_sound(mark, Watermark):
            mark.unlink()  # that shard starts over
    listed = {entry.file for entry in [*recorded.entries, *done.values()]}
    listed |= {read_object(staged, ShardEntry).file for staged in folder.glob("staged-*.json")}
    for path in sorted(folder.glob("shard-*")):
        number = re.match(r"shard-(\d+)", path.name)
        if number is None or not ranks.owns(int(number[1])):
            continue
        mark = watermark_path(folder, int(number[1]))
        continued = mark.exists() and path.name == read_object(mark, Watermark).file + ".tmp"
        if (path.suffix == ".h5" and path.name not in listed) or (path.suffix == ".tmp" and not continued):
            path.unlink()
    strays = [".*.tmp", "*.json.tmp", "journal.jsonl.tmp", "open.json"]  # of this version and of 0.1.0
    for path in [p for pattern in strays if ranks.world == 1 for p in folder.glob(pattern)]:
        path.unlink()
    for mark in _our_marks(folder, ranks):
        if not (folder / (read_object(mark, Watermark).file + ".tmp")).exists():
            mark.unlink()


def _our_marks(folder: Path, ranks: ProcessRank) -> list[Path]:
    return [mark for mark in folder.glob("open-*.json") if ranks.owns(int(mark.stem.removeprefix("open-")))]
