"""Several processes on one recording: who makes which shard, what is finished, and how it becomes one journal.

Shard i belongs to rank i mod n, and is a pure function of the manifest and i; so it does not matter who makes it, or with how
many others. Nothing is sent between ranks. Each notes its finished shards in a journal of its own, and rank 0 moves what is
finished without a gap into journal.jsonl: a reader never sees a hole, and the recording ends as the one of a single process.

journal.rank0001.jsonl   finished shards of rank 1 that journal.jsonl may not hold yet; rank 0 has one too
rank0001.lock            held while rank 1 writes; says how far its open shard is

A rank that dies is started again by torchrun, which restarts all of them: each goes on with its open shard. Without torchrun's
care nothing waits for ever: rank 0 sees that the lock of a dead rank is free.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from scope.activations.errors import RecordingError
from scope.activations.format.files import append_line, journal_line, read_journal, write_whole
from scope.activations.format.manifest import JOURNAL, LOCK, MANIFEST, Recorded, is_of, must_continue, read_recording
from scope.activations.format.remote import Remote

from scope.whole_files import FolderInUse, is_held, only_writer

_POLL = 0.1  # seconds
_PATIENCE = 60.0  # seconds in which rank 0 may still write the manifest over one that holds nothing
_START = 900.0  # seconds that a rank may take until it is first seen: it loads the model


@dataclass(frozen=True)
class ProcessRank:
    """Which of how many processes this is; `local` is its number on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> "ProcessRank":
        """As torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; alone without it.

        Raises:
            RecordingError: these are set, but to no rank.
        """
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        given = [os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ.get("LOCAL_RANK", os.environ["RANK"])]
        if not all(value.isdigit() for value in given) or int(given[0]) >= int(given[1]):
            raise RecordingError(f"RANK is {given[0]} and WORLD_SIZE {given[1]}; let torchrun set them, or unset both.")
        return cls(*map(int, given))

    @property
    def leads(self) -> bool:
        """Whether this one writes the manifest and journal.jsonl."""
        return self.rank == 0

    def owns(self, shard: int) -> bool:
        return shard % self.world == self.rank

    @property
    def lock(self) -> str:
        return LOCK if self.leads else _lock(self.rank)


class Ledger:
    """The finished shards of a recording, whoever made them. `done` maps a shard's number to its journal entry."""

    def __init__(self, folder: Path, recorded: Recorded, ranks: ProcessRank, remote: Remote | None = None):
        self.folder, self.ranks, self.remote = folder, ranks, remote
        self.committed, self._bytes = list(recorded.entries), recorded.journal_bytes
        self.done: dict[int, dict] = {}
        self._seen: set[int] = set()
        self._stale = {rank: self._holder(rank) for rank in range(1, ranks.world) if not is_held(folder, _lock(rank))}
        self._began = time.monotonic()
        self.refresh()

    def refresh(self) -> None:
        """See what other ranks have finished since."""
        if self.remote:
            self.remote.pull(self.folder, "journal.rank*.jsonl")
        found = list(self.committed) if self.ranks.leads else read_journal(self.folder / JOURNAL)[0]
        for path in sorted(self.folder.glob("journal.rank*.jsonl")):
            found += _settled(path)
        for entry in found:
            self._know(entry)

    def add(self, entry: dict) -> None:
        """Note a shard of ours, on the disk before this returns. Rank 0 commits it where no earlier one is missing."""
        self._know(entry)
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
        """Rank 0: move what is finished without a gap into journal.jsonl; a last shard that grew replaces its old line."""
        path, removed, grown = self.folder / JOURNAL, [], False
        before = len(self.committed)
        for i, old in enumerate(self.committed):
            new = self.done[i]
            if held(new) > held(old):
                self.committed[i], grown = new, True
                removed += [old["file"]] if old["file"] != new["file"] else []
        while len(self.committed) in self.done:
            previous = self.committed[-1]["contexts"][1] if self.committed else 0
            entry = self.done[len(self.committed)]
            if entry["contexts"][0] != previous:
                break  # it follows a longer last shard than the one that is there
            self.committed.append(entry)
        if grown:
            self._write(self.committed)
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
        """Rank 0: the corpus ended exactly with the last shard; say so in its line."""
        last = self.committed[-1]
        if not last["exhausted"]:
            self.committed[-1] = self.done[last["shard"]] = last | {"exhausted": True}
            self._write(self.committed)
            if self.remote:
                self.remote.push(self.folder / JOURNAL)

    def wait_for(self, n_contexts: int, per_shard: int, tell: Callable[[], None] = lambda: None) -> None:
        """Rank 0: until the other ranks have finished their shards of the first contexts, committing as they do.

        Raises:
            RecordingError: a rank has left before its work was done.
        """
        while True:
            gone = [r for r in range(1, self.ranks.world) if not self._lives(r)]
            self.refresh()  # after the look at the locks: what a rank did before it left is seen
            self.commit()
            tell()
            if self.committed and self.committed[-1]["contexts"][1] >= n_contexts and all(map(held, self.committed)):
                return
            shards = range(-(-n_contexts // per_shard))
            due = {i % self.ranks.world for i in shards if held(self.done.get(i)) < min(per_shard, n_contexts - i * per_shard)}
            late = [rank for rank in gone if rank in due]
            if late and not self.remote:  # ranks of other machines have their locks there
                raise RecordingError(
                    f"Rank {late[0]} of {self.ranks.world} has left before its shards were finished; the others' are kept.\n"
                    "  Give the same command again, with any number of processes."
                )
            time.sleep(_POLL if not self.remote else 20 * _POLL)

    def clean(self) -> None:
        """Remove the ranks' journals and locks once journal.jsonl holds all that they say, and the leftovers of dead ranks."""
        if self.ranks.leads:
            for path in self.folder.glob("journal.rank*.jsonl"):
                if all(map(self._is_committed, _settled(path))):
                    path.unlink()
                    if self.remote:
                        self.remote.remove(path.name)
        for path in self.folder.glob("rank*.lock") if self.ranks.leads else [self.folder / self.ranks.lock]:
            path.unlink(missing_ok=True)

    def under_way(self) -> int:
        """Contexts in the open shards of the other ranks of this machine, as they last said."""
        total = 0
        for rank in range(1, self.ranks.world):
            with suppress(OSError, ValueError):
                shard, contexts = json.loads((self.folder / _lock(rank)).read_text().partition("\n")[2] or "[-1, 0]")
                total += contexts if shard not in self.done else 0
        return total

    def say(self, shard: int, contexts: int) -> None:
        """A rank other than 0: how far the open shard is. Best effort, for the progress bar."""
        path = self.folder / self.ranks.lock
        with suppress(OSError):
            first = path.read_text().partition("\n")[0]
            with open(path, "r+") as file:
                file.write(f"{first}\n{json.dumps([shard, contexts])}\n")
                file.truncate()

    def _is_committed(self, entry: dict) -> bool:
        number = entry["shard"]
        return number < len(self.committed) and held(self.committed[number]) >= held(entry)

    def _know(self, entry: dict) -> None:
        old = self.done.get(entry["shard"])
        if old is None or held(entry) > held(old):
            self.done[entry["shard"]] = entry

    def _write(self, entries: list[dict]) -> None:
        write_whole(self.folder / JOURNAL, b"".join(map(journal_line, entries)))

    def _lives(self, rank: int) -> bool:
        """Whether a rank is at work, or has not been seen yet and may still come."""
        held = is_held(self.folder, _lock(rank))
        if held or self._holder(rank) not in ("", self._stale.get(rank)):  # one that died before we looked left its name
            self._seen.add(rank)
        return held or (rank not in self._seen and time.monotonic() - self._began < _START)

    def _holder(self, rank: int) -> str:
        """What a rank wrote into its lock; nothing where it has none."""
        try:
            return (self.folder / _lock(rank)).read_text(errors="replace")
        except FileNotFoundError:
            return ""


def refuse_strangers(folder: Path, ranks: ProcessRank) -> None:
    """Rank 0: no process of another run may still be at work here.

    Raises:
        FolderInUse: one is; the message names it.
    """
    for path in sorted(folder.glob("rank*.lock")):
        number = re.fullmatch(r"rank(\d+)\.lock", path.name)
        if number and int(number[1]) >= ranks.world:
            with only_writer(folder, path.name):
                pass


def wait_for_manifest(folder: Path, manifest: dict, ranks: ProcessRank, remote: Remote | None) -> Recorded:
    """A rank other than 0: the recording, once rank 0 has begun the one that this run is of.

    Raises:
        RecordingError: rank 0 has begun another, or none within a quarter of an hour.
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
    """Hold the lock of this rank. With several, a moment's patience: rank 0 looks at locks, and a killed rank is slow to go.

    Raises:
        FolderInUse: another process holds it.
    """
    with ExitStack() as stack:
        patience = time.monotonic() + (10.0 if ranks.world > 1 else 0.0)
        while True:
            try:
                stack.enter_context(only_writer(folder, ranks.lock))
                break
            except FolderInUse:
                if time.monotonic() >= patience:
                    raise
                time.sleep(_POLL)
        yield


def _settled(path: Path) -> list[dict]:
    """The entries of a journal that its rank may be writing just now, or rank 0 removing."""
    try:
        return read_journal(path)[0]
    except FileNotFoundError:
        return []


def held(entry: dict | None) -> int:
    """How many contexts of a shard there are to read; none where it is unknown, or in quarantine."""
    return 0 if entry is None or "quarantined" in entry else entry["contexts"][1] - entry["contexts"][0]


def _journal(rank: int) -> str:
    return f"journal.rank{rank:04d}.jsonl"


def _lock(rank: int) -> str:
    return f"rank{rank:04d}.lock"
