"""How far an open shard has come, and what a crash left of a run.

open-00003.json says of shard 3, while it is written, which file it is, how many of its contexts are on the disk, and a digest
of the text that it is of: the next run goes on there if it finds the same text.
"""

import os
import re
from pathlib import Path

from scope.activations.format.files import is_sound, read_json, write_json
from scope.activations.format.manifest import JOURNAL, Recorded
from scope.activations.harvest.ranks import ProcessRank


def mark_of(folder: Path, number: int) -> Path:
    """Where it is noted how far a shard has come."""
    return folder / f"open-{number:05d}.json"


def note_open(folder: Path, number: int, file: str, contexts: int, digest: str) -> None:
    """Note that the first contexts of an open shard of inputs with that digest are on the disk."""
    write_json(mark_of(folder, number), {"file": file, "contexts": contexts, "tokens": digest})


def contexts_of_open(folder: Path, number: int, file: str, digest: str) -> int:
    """How many contexts of the shard that is to be made an earlier run has left on the disk; 0 where it is of another text."""
    path = mark_of(folder, number)
    if not path.exists() or not (folder / (file + ".tmp")).exists():
        return 0
    mark = read_json(path)
    return mark["contexts"] if mark["file"] == file and mark["tokens"] == digest else 0


def clean(folder: Path, recorded: Recorded, done: dict[int, dict], ranks: ProcessRank) -> None:
    """Remove what a crash left of ours: a torn journal line, files that no line lists and that cannot be continued."""
    journal = folder / JOURNAL
    if ranks.leads and journal.exists() and journal.stat().st_size > recorded.journal_bytes:
        os.truncate(journal, recorded.journal_bytes)
    for mark in _our_marks(folder, ranks):
        if not is_sound(mark):
            mark.unlink()  # that shard begins anew
    listed = {entry["file"] for entry in [*recorded.entries, *done.values()]}
    listed |= {read_json(staged)["file"] for staged in folder.glob("staged-*.json")}
    for path in sorted(folder.glob("shard-*")):
        number = re.match(r"shard-(\d+)", path.name)
        if number is None or not ranks.owns(int(number[1])):
            continue
        mark = mark_of(folder, int(number[1]))
        going_on = mark.exists() and path.name == read_json(mark)["file"] + ".tmp"
        if (path.suffix == ".h5" and path.name not in listed) or (path.suffix == ".tmp" and not going_on):
            path.unlink()
    strays = [".*.tmp", "*.json.tmp", "journal.jsonl.tmp", "open.json"]  # of today and of version 0.1.0
    for path in [p for pattern in strays if ranks.world == 1 for p in folder.glob(pattern)]:
        path.unlink()
    for mark in _our_marks(folder, ranks):
        if not (folder / (read_json(mark)["file"] + ".tmp")).exists():
            mark.unlink()


def _our_marks(folder: Path, ranks: ProcessRank) -> list[Path]:
    return [mark for mark in folder.glob("open-*.json") if ranks.owns(int(mark.stem.removeprefix("open-")))]
