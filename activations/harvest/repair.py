"""Damaged shards are moved aside, so that the rest of a recording stays usable; nothing is deleted.

quarantine/shard-00003.h5   as it was found
quarantine/journal.jsonl    what was moved here, why, what it held, and when

The journal of the recording keeps the line of such a shard, marked. A store then reads the rest, and says what it leaves out;
`harvest` with the settings of the recording makes a marked shard again, and its line is what it was.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from scope.activations.errors import RecordingError
from scope.activations.format.files import (
    append_line,
    is_sound,
    journal_line,
    read_json,
    salvage_journal,
    write_whole,
)
from scope.activations.format.manifest import JOURNAL, LOCK, read_recording
from scope.activations.format.remote import FETCHED, Mirror, address
from scope.activations.format.shard_reader import Fault
from scope.activations.harvest.ranks import ProcessRank, refuse_strangers
from scope.activations.read.store import ActivationStore

from scope.progress import OnProgress
from scope.whole_files import is_held, only_writer, sync_folder

QUARANTINE = "quarantine"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A shard that cannot be trusted: its number, file, rows [start, stop) of the whole recording, and what is wrong."""

    shard: int
    file: str
    rows: tuple[int, int]
    faults: tuple[Fault, ...]
    moved: str = ""
    """Where `repair` put it, within the folder; empty if it was not moved, or was not there."""


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What reading every byte of a recording's folder found."""

    damaged: list[Damage]
    quarantined: list[dict]
    """What `ActivationStore.left_out` says."""
    notes: list[str]
    """What is no damage to any row, and yet not as a finished recording is."""
    shards: int
    rows: int


def examine(folder: Path | str, on_progress: OnProgress | None = None) -> Examined:
    """Read every byte of every file of a recording against its checksum.

    What lies in a store is fetched shard by shard, even where a copy is here, and not kept.

    Raises:
        RecordingError: no recording, or its manifest or journal is damaged; the message names the file.
    """
    if url := address(folder):
        return _examine_there(url, on_progress)
    folder = Path(folder)
    recorded = read_recording(folder)
    store = ActivationStore(folder, recorded)
    with suppress(RecordingError):  # told below, as a fault
        store.hold_last()
    damaged = [_damage(store, i, faults) for i, faults in store.faults(on_progress).items()]
    notes = [] if is_held(folder, LOCK) else _notes(folder, recorded)
    return Examined(damaged=damaged, quarantined=store.left_out, notes=notes, shards=len(store.entries), rows=store.n_rows)


def _examine_there(url: str, on_progress: OnProgress | None) -> Examined:
    FETCHED.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=FETCHED, prefix="verify-") as below:
        mirror = Mirror(url, Path(below), keep=False)
        store = ActivationStore(mirror.folder, read_recording(mirror.folder))
        store.mirror = mirror
        damaged = [_damage(store, i, faults) for i, faults in store.faults(on_progress).items()]
    return Examined(damaged=damaged, quarantined=store.left_out, notes=[], shards=len(store.entries), rows=store.n_rows)


def repair(folder: Path | str, on_progress: OnProgress | None = None) -> list[Damage]:
    """Move every damaged shard into quarantine/ and mark it in the journal. What was moved; nothing is written if all is well.

    A journal line that fails its checksum costs its shard, and no more.

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
        refuse_strangers(folder, ProcessRank())
        lost = _mend_journal(folder)
        for path in sorted(folder.glob("open*.json")):
            if not is_sound(path):
                _move(folder, path.name, {"why": ["it fails its checksum; the open shard begins anew"]})
        recorded = read_recording(folder)
        store = ActivationStore(folder, recorded)
        found = []
        for i, faults in store.faults(on_progress).items():
            damage = _damage(store, i, faults)
            why = [_local(fault.text, folder) for fault in faults]
            held = {"shard": damage.shard, "rows": list(damage.rows), "why": why}
            moved = _move(folder, damage.file, held)
            found.append(Damage(**vars(damage) | {"moved": moved}))
        marks = {d.shard: {"file": d.moved, "why": [_local(fault.text, folder) for fault in d.faults]} for d in found}
        if marks:
            entries = [e | ({"quarantined": marks[e["shard"]]} if e["shard"] in marks else {}) for e in recorded.entries]
            write_whole(folder / JOURNAL, b"".join(map(journal_line, entries)))
    return lost + found


def _damage(store: ActivationStore, index: int, faults: list[Fault]) -> Damage:
    entry = store.entries[index]
    rows = entry.get("whole", entry)["rows"]
    return Damage(shard=entry["shard"], file=entry["file"], rows=(rows[0], rows[1]), faults=tuple(faults))


def _notes(folder: Path, recorded) -> list[str]:
    """Only while nobody writes: a writer's own folder has such things for moments."""
    found, listed = [], {entry["file"] for entry in recorded.entries}
    journal = folder / JOURNAL
    if journal.exists() and journal.stat().st_size > recorded.journal_bytes:
        found.append(f"{JOURNAL} ends in a line that was cut short; the shard of that line does not count.")
    for path in sorted(folder.glob("shard-*.h5")):
        if path.name not in listed:
            found.append(
                f"{path.name} is here, but {JOURNAL} does not list it: a run was stopped, or the journal lost its end."
            )
    for path in sorted(folder.glob("open*.json")):
        if not is_sound(path):
            found.append(
                f"{path.name} fails its checksum; `scope recording repair` moves it aside, and the open shard begins anew."
            )
    return found


def _mend_journal(folder: Path) -> list[Damage]:
    """Where lines fail their checksum, put marked ones in their places that say what can be told from their neighbours."""
    path = folder / JOURNAL
    lines = salvage_journal(path)
    if None not in lines:
        return []
    context_of = lambda e, end: e["contexts"][end]  # noqa: E731
    per_shard = read_json(folder / "manifest.json", checked=False)["layout"]["contexts_per_shard"]
    while lines and lines[-1] is None:
        lines.pop()  # nothing follows: harvest makes it as if it had never been
    entries, found, why = [], [], "its line in the journal fails its checksum"
    for i, entry in enumerate(lines):
        if entry is None:
            after = next(e for e in lines[i:] if e)
            rows = entries[-1]["rows"][1] if entries else 0
            begin = context_of(entries[-1], 1) if entries else 0
            alone = lines[i + 1] is not None
            entry = {
                "shard": i,
                "file": f"shard-{i:05d}.h5",
                "bytes": 0,
                "datasets": {},
                "contexts": [begin, context_of(after, 0) if alone else begin + per_shard],
                "rows": [rows, after["rows"][0] if alone else rows],
                "documents": [entries[-1]["documents"][1] if entries else 0, after["documents"][0]],
                "exhausted": False,
            }
            entry["quarantined"] = {"file": _move(folder, entry["file"], {"shard": i, "why": [why]}), "why": [why]}
            rows_held = (entry["rows"][0], entry["rows"][1])
            fault = Fault(f"{path} is damaged: the line of shard {i} fails its checksum.")
            found.append(
                Damage(shard=i, file=entry["file"], rows=rows_held, faults=(fault,), moved=entry["quarantined"]["file"])
            )
        entries.append(entry)
    _copy_aside(folder, path)
    write_whole(path, b"".join(map(journal_line, entries)))
    return found


def _copy_aside(folder: Path, path: Path) -> None:
    target = _free(folder, path.name + ".damaged")
    write_whole(target, path.read_bytes())


def _move(folder: Path, name: str, held: dict) -> str:
    """Put a file into quarantine; '' if there is none. What is noted first is true even if this is cut short."""
    place = _free(folder, name)
    there = (folder / name).exists()
    line = {"file": place.name if there else "", "from": name, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    append_line(folder / QUARANTINE / JOURNAL, line | held)
    if there:
        os.replace(folder / name, place)
        sync_folder(folder / QUARANTINE)
        sync_folder(folder)
    return f"{QUARANTINE}/{place.name}" if there else ""


def _free(folder: Path, name: str) -> Path:
    """A name in quarantine/ that nothing has: what was moved there before stays."""
    (folder / QUARANTINE).mkdir(exist_ok=True)
    place, n = folder / QUARANTINE / name, 1
    while place.exists():
        n += 1
        place = folder / QUARANTINE / f"{name}.{n}"
    return place


def _local(text: str, folder: Path) -> str:
    return text.replace(f"{folder}/", "")
