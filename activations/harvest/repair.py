"""Verifies recordings, and moves damaged shards aside so that the rest stays usable. Nothing is deleted.

quarantine/shard-00003.h5   the damaged file
quarantine/journal.jsonl    a line per moved file: its name, rows, the reason and the time

The journal of the recording keeps the entry of such a shard, marked as quarantined. An ActivationStore reads the other shards
and lists the missing ones; `harvest` with the settings of the recording makes them again.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from scope.activations.errors import RecordingError
from scope.activations.format.files import append_line, is_sound, salvage_journal, write_journal, write_whole
from scope.activations.format.manifest import JOURNAL, LOCK, LeftOut, Recorded, loose_ends, read_manifest, read_recording
from scope.activations.format.remote import FETCHED, Mirror, address
from scope.activations.format.shard_entry import Quarantined, ShardEntry
from scope.activations.format.shard_reader import Fault
from scope.activations.harvest.ranks import ProcessRank, refuse_other_runs
from scope.activations.harvest.recovery import Watermark
from scope.activations.read.store import ActivationStore

from scope.progress import OnProgress
from scope.whole_files import is_held, only_writer, sync_folder

QUARANTINE = "quarantine"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A damaged shard: its number, file, rows [start, stop) of the whole recording, and the failed checks."""

    shard: int
    file: str
    rows: tuple[int, int]
    faults: tuple[Fault, ...]
    moved: str = ""
    """Path below the folder that `repair` moved it to; empty if it was not moved or is missing."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Result of verifying a recording."""

    damaged: list[Damage]
    quarantined: tuple[LeftOut, ...]
    """As `ActivationStore.left_out`."""
    notes: list[str]
    """Irregularities that damage no row, such as unlisted files."""
    shards: int
    rows: int


def examine(folder: Path | str, on_progress: OnProgress | None = None) -> Examination:
    """Read every byte of every file of a recording against its checksum.

    Shards in a store are fetched one by one, even if there is a local copy, and not kept.

    Raises:
        RecordingError: no recording, or its manifest or journal is damaged; the message names the file.
    """
    if url := address(folder):
        return _examine_remote(url, on_progress)
    folder = Path(folder)
    recorded = read_recording(folder)
    store = ActivationStore(folder, recorded)
    with suppress(RecordingError):  # reported below, as a fault
        store.pin_last()
    damaged = [_damage(store, i, faults) for i, faults in store.faults(on_progress).items()]
    notes = [] if is_held(folder, LOCK) else _notes(folder, recorded)
    return Examination(damaged=damaged, quarantined=store.left_out, notes=notes, shards=len(store.entries), rows=store.n_rows)


def _examine_remote(url: str, on_progress: OnProgress | None) -> Examination:
    FETCHED.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=FETCHED, prefix="verify-") as below:
        mirror = Mirror(url, Path(below), keep=False)
        store = ActivationStore(mirror.folder, read_recording(mirror.folder))
        store.mirror = mirror
        damaged = [_damage(store, i, faults) for i, faults in store.faults(on_progress).items()]
    return Examination(damaged=damaged, quarantined=store.left_out, notes=[], shards=len(store.entries), rows=store.n_rows)


def repair(folder: Path | str, on_progress: OnProgress | None = None) -> list[Damage]:
    """Move damaged shards into quarantine/, mark them in the journal, and return them. A sound recording is not changed.

    A journal line that fails its checksum loses its shard only.

    Raises:
        RecordingError: no recording, its manifest is damaged, it is being written, or it lies in a store.
    """
    if url := address(folder):
        raise RecordingError(
            f"{url} is in a store, and repair moves files within a folder.\n"
            "  Copy the recording into a folder, repair the copy, and send it back or go on with it here."
        )
    folder = Path(folder)
    if not folder.is_dir():
        read_recording(folder)  # raises
    with only_writer(folder, LOCK):
        refuse_other_runs(folder, ProcessRank())
        lost = _repair_journal(folder)
        for path in sorted(folder.glob("open*.json")):
            if not is_sound(path, Watermark):
                _move(folder, path.name, {"why": ["it fails its checksum; the unfinished shard starts over"]})
        recorded = read_recording(folder)
        store = ActivationStore(folder, recorded)
        damaged = []
        for i, faults in store.faults(on_progress).items():
            damage = _damage(store, i, faults)
            why = [_local(fault.text, folder) for fault in faults]
            facts = {"shard": damage.shard, "rows": list(damage.rows), "why": why}
            moved = _move(folder, damage.file, facts)
            damaged.append(Damage(**vars(damage) | {"moved": moved}))
        marks = {
            d.shard: Quarantined(file=d.moved, why=tuple(_local(fault.text, folder) for fault in d.faults)) for d in damaged
        }
        if marks:
            entries = [replace(e, quarantined=marks.get(e.shard, e.quarantined)) for e in recorded.entries]
            write_journal(folder / JOURNAL, entries)
    return lost + damaged


def _damage(store: ActivationStore, index: int, faults: list[Fault]) -> Damage:
    entry = store.entries[index]
    return Damage(shard=entry.shard, file=entry.file, rows=entry.in_whole.rows, faults=tuple(faults))


def _notes(folder: Path, recorded: Recorded) -> list[str]:
    """Irregularities of a folder that no process is writing."""
    notes = loose_ends(folder, recorded)
    for path in sorted(folder.glob("open*.json")):
        if not is_sound(path, Watermark):
            notes.append(f"{path.name} fails its checksum; `scope recording repair` moves it aside and the shard starts over.")
    return notes


def _repair_journal(folder: Path) -> list[Damage]:
    """Replace lines that fail their checksum by entries in quarantine, whose numbers follow from the neighbouring lines."""
    path = folder / JOURNAL
    lines = salvage_journal(path)
    if None not in lines:
        return []
    per_shard = read_manifest(folder).layout.contexts_per_shard
    while lines and lines[-1] is None:
        lines.pop()  # no line follows: harvest makes that shard again
    entries: list[ShardEntry] = []
    damaged, why = [], "its line in the journal fails its checksum"
    for i, entry in enumerate(lines):
        if entry is None:
            after = next(e for e in lines[i:] if e)
            row, context, document = (getattr(entries[-1], of)[1] if entries else 0 for of in ("rows", "contexts", "documents"))
            alone = lines[i + 1] is not None
            file = f"shard-{i:05d}.h5"
            moved = _move(folder, file, {"shard": i, "why": [why]})
            entry = ShardEntry(
                shard=i,
                file=file,
                bytes=0,
                datasets={},
                contexts=(context, after.contexts[0] if alone else context + per_shard),
                rows=(row, after.rows[0] if alone else row),
                documents=(document, after.documents[0]),
                exhausted=False,
                quarantined=Quarantined(file=moved, why=(why,)),
            )
            fault = Fault(f"{path} is damaged: the line of shard {i} fails its checksum.")
            damaged.append(Damage(shard=i, file=file, rows=entry.rows, faults=(fault,), moved=moved))
        entries.append(entry)
    _copy_aside(folder, path)
    write_journal(path, entries)
    return damaged


def _copy_aside(folder: Path, path: Path) -> None:
    target = _unused_path(folder, path.name + ".damaged")
    write_whole(target, path.read_bytes())


def _move(folder: Path, name: str, facts: dict) -> str:
    """Move a file into quarantine; '' if there is none. The note is written first, in case of a crash."""
    place = _unused_path(folder, name)
    exists = (folder / name).exists()
    line = {"file": place.name if exists else "", "from": name, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    append_line(folder / QUARANTINE / JOURNAL, line | facts)
    if exists:
        os.replace(folder / name, place)
        sync_folder(folder / QUARANTINE)
        sync_folder(folder)
    return f"{QUARANTINE}/{place.name}" if exists else ""


def _unused_path(folder: Path, name: str) -> Path:
    """An unused path in quarantine/."""
    (folder / QUARANTINE).mkdir(exist_ok=True)
    place, n = folder / QUARANTINE / name, 1
    while place.exists():
        n += 1
        place = folder / QUARANTINE / f"{name}.{n}"
    return place


def _local(text: str, folder: Path) -> str:
    return text.replace(f"{folder}/", "")
