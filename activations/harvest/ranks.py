"""Several processes on one recording: the shards of each, the list of finished ones, and the merged journal.

Shard i belongs to rank i mod n and is a pure function of the manifest and i, so its bytes do not depend on the number of ranks.
Ranks do not send messages. Each lists its finished shards in its own journal, and rank 0 moves them in order and without gaps
into journal.jsonl: readers never see a gap, and the finished recording equals that of a single process.

journal.rank0001.jsonl   finished shards of rank 1 that journal.jsonl may not list yet; rank 0 has one too
rank0001.lock            locked while rank 1 writes; holds the progress of its open shard

If a rank dies, torchrun restarts all of them, and each continues its open shard. Without torchrun, rank 0 notices that the lock
of the dead rank is free and stops.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from scope.activations.errors import RecordingError
from scope.activations.format.continuing import is_of, must_continue
from scope.activations.format.files import append_line, read_journal, write_journal
from scope.activations.format.manifest import JOURNAL, LOCK, MANIFEST, Manifest, Recorded, read_recording
from scope.activations.format.remote import Remote
from scope.activations.format.shard_entry import Count, ShardEntry

from scope.errors import ScopeError
from scope.typed_json import parse_json, typed
from scope.whole_files import is_held, only_writer

_POLL = 0.1  # seconds
_PATIENCE = 60.0  # seconds in which rank 0 may still replace the manifest of an empty recording
_START = 900.0  # seconds until a rank, which loads the model first, must have been seen


@dataclass(frozen=True)
class ProcessRank:
    """Rank of this process, number of processes, and its rank on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> "ProcessRank":
        """From RANK, WORLD_SIZE and LOCAL_RANK, which torchrun sets; a single process without them.

        Raises:
            RecordingError: the variables hold no valid rank.
        """
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        values = [os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ.get("LOCAL_RANK", os.environ["RANK"])]
        if not all(value.isdigit() for value in values) or int(values[0]) >= int(values[1]):
            raise RecordingError(f"RANK is {values[0]} and WORLD_SIZE {values[1]}; let torchrun set them, or unset both.")
        return cls(*map(int, values))

    @property
    def leads(self) -> bool:
        """Whether this process writes the manifest and journal.jsonl."""
        return self.rank == 0

    def owns(self, shard: int) -> bool:
        return shard % self.world == self.rank

    @property
    def lock(self) -> str:
        return LOCK if self.leads else _lock(self.rank)


class FinishedShards:
    """The finished shards of a recording, made by any rank. `done` maps the number of a shard to its journal entry."""

    def __init__(self, folder: Path, recorded: Recorded, ranks: ProcessRank, remote: Remote | None = None):
        self.folder, self.ranks, self.remote = folder, ranks, remote
        self.committed, self._bytes = list(recorded.entries), recorded.journal_bytes
        self.done: dict[int, ShardEntry] = {}
        self._seen: set[int] = set()
        self._stale = {rank: self._holder(rank) for rank in range(1, ranks.world) if not is_held(folder, _lock(rank))}
        self._began = time.monotonic()
        self.refresh()

    def refresh(self) -> None:
        """Read the journals of the other ranks again."""
        if self.remote:
            self.remote.pull(self.folder, "journal.rank*.jsonl")
        entries = list(self.committed) if self.ranks.leads else read_journal(self.folder / JOURNAL)[0]
        for path in sorted(self.folder.glob("journal.rank*.jsonl")):
            entries += _settled(path)
        for entry in entries:
            self._add(entry)

    def add(self, entry: ShardEntry) -> None:
        """List a finished shard of this rank, synced on return. Rank 0 commits it if no earlier one is missing."""
        self._add(entry)
        if self.ranks.leads:
            self.commit()
        if not self._is_committed(entry):
            path = self.folder / _journal(self.ranks.rank)
            if path.exists():
                os.truncate(path, read_journal(path)[1])  # a line that a crash cut short
            append_line(path, entry)
            if self.remote:
                self.remote.push(path)

    def commit(self) -> None:
        """Rank 0: add shards to journal.jsonl in order, up to the first gap; a longer last shard replaces its old line."""
        path, removed, grown = self.folder / JOURNAL, [], False
        before = len(self.committed)
        for i, old in enumerate(self.committed):
            new = self.done[i]
            if n_readable(new) > n_readable(old):
                self.committed[i], grown = new, True
                removed += [old.file] if old.file != new.file else []
        while len(self.committed) in self.done:
            previous = self.committed[-1].contexts[1] if self.committed else 0
            entry = self.done[len(self.committed)]
            if entry.contexts[0] != previous:
                break  # it continues a longer version of the last shard
            self.committed.append(entry)
        if grown:
            write_journal(path, self.committed)
        else:
            for entry in self.committed[before:]:
                append_line(path, entry)
        if self.remote and (grown or len(self.committed) > before):
            self.remote.push(path)
        for name in removed:
            (self.folder / name).unlink(missing_ok=True)
            if self.remote:
                self.remote.remove(name)

    def mark_exhausted(self) -> None:
        """Rank 0: mark the last entry, since the corpus ended exactly there."""
        last = self.committed[-1]
        if not last.exhausted:
            self.committed[-1] = self.done[last.shard] = replace(last, exhausted=True)
            write_journal(self.folder / JOURNAL, self.committed)
            if self.remote:
                self.remote.push(self.folder / JOURNAL)

    def wait_for(self, n_contexts: int, per_shard: int, report: Callable[[], None] = lambda: None) -> None:
        """Rank 0: commit shards until those of the first contexts are complete.

        Raises:
            RecordingError: a rank has ended before its shards were finished.
        """
        while True:
            gone = [r for r in range(1, self.ranks.world) if not self._lives(r)]
            self.refresh()  # after looking at the locks, so that shards finished just before are seen
            self.commit()
            report()
            if self.committed and self.committed[-1].contexts[1] >= n_contexts and all(map(n_readable, self.committed)):
                return
            shards = range(-(-n_contexts // per_shard))
            due = {
                i % self.ranks.world
                for i in shards
                if n_readable(self.done.get(i)) < min(per_shard, n_contexts - i * per_shard)
            }
            late = [rank for rank in gone if rank in due]
            if late and not self.remote:  # locks of other machines cannot be seen
                raise RecordingError(
                    f"Rank {late[0]} of {self.ranks.world} ended before its shards were finished; finished ones are kept.\n"
                    "  Give the same command again, with any number of processes."
                )
            time.sleep(_POLL if not self.remote else 20 * _POLL)

    def clean(self) -> None:
        """Remove the journals of ranks once journal.jsonl lists all of their shards, and the locks."""
        if self.ranks.leads:
            for path in self.folder.glob("journal.rank*.jsonl"):
                if all(map(self._is_committed, _settled(path))):
                    path.unlink()
                    if self.remote:
                        self.remote.remove(path.name)
        for path in self.folder.glob("rank*.lock") if self.ranks.leads else [self.folder / self.ranks.lock]:
            path.unlink(missing_ok=True)

    def under_way(self) -> int:
        """Contexts in the open shards of the other ranks on this machine, as last reported."""
        total = 0
        for rank in range(1, self.ranks.world):
            progress = self._holder(rank).partition("\n")[2]
            with suppress(ScopeError):  # the rank is writing it
                shard, contexts = typed(parse_json(progress, ""), tuple[int, Count], "")
                total += contexts if shard not in self.done else 0
        return total

    def report(self, shard: int, contexts: int) -> None:
        """Ranks other than 0: write the progress of the open shard to the lock, for the progress bar. Errors are ignored."""
        path = self.folder / self.ranks.lock
        with suppress(OSError):
            first = path.read_text().partition("\n")[0]
            with open(path, "r+") as file:
                file.write(f"{first}\n{json.dumps([shard, contexts])}\n")
                file.truncate()

    def _is_committed(self, entry: ShardEntry) -> bool:
        number = entry.shard
        return number < len(self.committed) and n_readable(self.committed[number]) >= n_readable(entry)

    def _add(self, entry: ShardEntry) -> None:
        old = self.done.get(entry.shard)
        if old is None or n_readable(entry) > n_readable(old):
            self.done[entry.shard] = entry

    def _lives(self, rank: int) -> bool:
        """Whether a rank is running, or has not been seen yet and may still start."""
        alive = is_held(self.folder, _lock(rank))
        if alive or self._holder(rank) not in ("", self._stale.get(rank)):  # it started and died before we looked
            self._seen.add(rank)
        return alive or (rank not in self._seen and time.monotonic() - self._began < _START)

    def _holder(self, rank: int) -> str:
        """Content of a rank's lock; empty if there is none."""
        try:
            return (self.folder / _lock(rank)).read_text(errors="replace")
        except FileNotFoundError:
            return ""


def refuse_other_runs(folder: Path, ranks: ProcessRank) -> None:
    """Rank 0: check that no process of a run with more ranks is still writing.

    Raises:
        FolderInUse: one is; the message names it.
    """
    for path in sorted(folder.glob("rank*.lock")):
        number = re.fullmatch(r"rank(\d+)\.lock", path.name)
        if number and int(number[1]) >= ranks.world:
            with only_writer(folder, path.name):
                pass


def wait_for_manifest(folder: Path, manifest: Manifest, ranks: ProcessRank, remote: Remote | None) -> Recorded:
    """Ranks other than 0: wait until rank 0 has written the manifest of this run.

    Raises:
        RecordingError: the folder holds another recording, or no manifest after 15 minutes.
    """
    began = time.monotonic()
    path = folder / MANIFEST
    while True:
        if remote and ranks.local == 0:
            remote.pull(folder, MANIFEST, replace=True)
            remote.pull(folder, "journal*.jsonl")
        waited = time.monotonic() - began
        if path.exists():
            recorded = read_recording(folder)
            if is_of(recorded.manifest, manifest):
                return recorded
            if waited > _PATIENCE:
                must_continue(folder, recorded.manifest, manifest)
        if waited > _START:
            raise RecordingError(f"Rank 0 has begun no recording in {folder} for {waited:.0f} s. Does every rank see it?")
        time.sleep(_POLL if not remote else 20 * _POLL)


@contextmanager
def only_rank(folder: Path, ranks: ProcessRank) -> Iterator[None]:
    """Hold the lock of this rank. With several ranks, retry for 10 s: rank 0 looks at locks, and killed ranks end slowly.

    Raises:
        FolderInUse: another process holds it.
    """
    with only_writer(folder, ranks.lock, patience=10.0 if ranks.world > 1 else 0.0):
        yield


def _settled(path: Path) -> list[ShardEntry]:
    """The entries of a rank's journal, which may be removed at any moment."""
    try:
        return read_journal(path)[0]
    except FileNotFoundError:
        return []


def n_readable(entry: ShardEntry | None) -> int:
    """Number of readable contexts of a shard; 0 if it is unknown or in quarantine."""
    return 0 if entry is None or entry.quarantined else entry.n_contexts


def _journal(rank: int) -> str:
    return f"journal.rank{rank:04d}.jsonl"


def _lock(rank: int) -> str:
    return f"rank{rank:04d}.lock"
