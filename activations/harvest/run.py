"""Makes the shards of a harvest, each a pure function of the manifest and its number.

A crash can leave a torn journal line, an unlisted file, an unfinished shard, or a finished one that was not sent to its store.
The next run removes the first two and continues with the others.
"""

import json
import time
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scope.activations.corpus.inputs import Cursor, InputMaker, Packed, Recorder, record
from scope.activations.errors import ActivationsError, CorpusError, RecordingError
from scope.activations.format.continuing import contexts_for
from scope.activations.format.files import read_object, write_json
from scope.activations.format.hdf5 import ITEM_BYTES, lay_out
from scope.activations.format.manifest import FORMAT, MANIFEST, Recorded, versions
from scope.activations.format.norms import n_flagged
from scope.activations.format.remote import Remote
from scope.activations.format.shard_entry import ShardEntry, layout
from scope.activations.format.shard_reader import ShardReader
from scope.activations.format.shard_writer import ShardWriter
from scope.activations.harvest.ranks import FinishedShards, ProcessRank, n_readable
from scope.activations.harvest.recovery import clean, read_watermark, watermark_path, write_watermark

from scope.progress import OnProgress
from scope.typed_json import as_json

_WATERMARK_SECONDS = 20.0  # kill -9 loses at most this much work
_REPORT_SECONDS = 1.0


class Run:
    """The part of a harvest that one process makes. The folder is locked and its manifest checked."""

    def __init__(
        self,
        recorder: Recorder,
        maker: InputMaker,
        corpus,
        config,
        out: Path,
        recorded: Recorded,
        on_progress: OnProgress | None,
        ranks: ProcessRank = ProcessRank(),
        remote: Remote | None = None,
    ):
        self.recorder, self.maker, self.corpus, self.config, self.out = recorder, maker, corpus, config, out
        self.manifest, self.recorded, self.ranks, self.remote = recorded.manifest, recorded, ranks, remote
        self.finished = FinishedShards(out, recorded, ranks, remote)
        self.on_progress = on_progress or (lambda done, total, numbers: None)
        self.with_roles = self.manifest.has_roles
        self.per_shard, self.segment_rows = self.manifest.layout.contexts_per_shard, self.manifest.layout.segment_rows
        self.row_bytes = sum(w * ITEM_BYTES[config.dtype] for w in self.manifest.layout.widths.values())
        self.n_contexts = contexts_for(config.tokens, config.context)
        self.started, self.stored, self.reported = time.monotonic(), 0, time.monotonic()
        self.open = (0, 0)  # number of the unfinished shard, and its contexts so far

    def run(self) -> None:
        clean(self.out, self.recorded, self.finished.done, self.ranks)
        self._send_sealed()
        missing = not all(map(n_readable, self.recorded.entries))
        if missing:  # a damaged shard was moved aside; it is made again whatever the budget is
            self.n_contexts = max(self.n_contexts, self.recorded.n_contexts)
        if missing or (not self.recorded.exhausted and self.recorded.n_contexts < self.n_contexts):
            n_contexts, exhausted = self._walk()
            if self.ranks.leads:
                self.finished.wait_for(n_contexts, self.per_shard, self._report)
                if exhausted:
                    self.finished.mark_exhausted()
        elif self.ranks.leads:
            self.finished.commit()
        if self.ranks.leads:
            self._write_counts()
        self.finished.clean()

    def _write_counts(self) -> None:
        """Put into the manifest how many characters of the text stand for bytes that are no UTF-8, and how many documents were
        skipped."""
        cursor = self.finished.committed[-1].cursor if self.finished.committed else None
        counts = {} if cursor is None else {"replacement_characters": cursor.replaced, "skipped_documents": cursor.skipped}
        if any(getattr(self.manifest, name) != n for name, n in counts.items()):
            self.manifest = replace(self.manifest, **counts)
            write_json(self.out / MANIFEST, self.manifest.to_json())
            if self.remote:
                self.remote.push(self.out / MANIFEST)

    def _walk(self) -> tuple[int, bool]:
        """Pack the rest of the corpus up to the budget and make the shards of this rank.

        Returns the number of contexts, and whether the corpus has ended.
        """
        start, cursor, rows = self._start()
        stream = self.maker.stream(self.corpus.documents(self.config.seed), self.config.context, cursor)
        for number in range(start, -(-self.n_contexts // self.per_shard)):
            first = number * self.per_shard
            opened = stream.opened
            packed = stream.take(min(self.per_shard, self.n_contexts - first))
            if not len(packed):
                if number == 0:
                    raise CorpusError(f"The corpus {self.corpus.spec} holds no text, so there is nothing to record.")
                return first, True
            counted = packed.counted(self.config.exclude)
            if self.ranks.owns(number) and not self._finished(number, len(packed)):
                self._shard(number, first, opened, rows, packed, counted)
            rows += int(counted.sum())
            if packed.exhausted:
                return first + len(packed), True
        return self.n_contexts, False

    def _start(self) -> tuple[int, Cursor, int]:
        """(number of the first unfinished shard, corpus position there, rows before it)."""
        number = 0
        while self._finished(number, self.per_shard):
            number += 1
        if number == 0:
            return 0, Cursor(), 0
        before = self.finished.done[number - 1]
        assert before.cursor is not None  # only shards in quarantine lack it
        return number, before.cursor, before.rows[1]

    def _finished(self, number: int, contexts: int) -> bool:
        return n_readable(self.finished.done.get(number)) >= contexts

    def _shard(self, number: int, first: int, opened: int, rows: int, packed: Packed, counted: np.ndarray) -> None:
        n, digest = len(packed), packed.digest()
        old = self.finished.done.get(number)
        partial, lost = (old, None) if n_readable(old) else (None, old)
        _same_inputs(lost, packed, digest)
        name = f"shard-{number:05d}" + ("" if n == self.per_shard else f"-{n}") + ".h5"
        resumed = read_watermark(self.out, number, name, digest)
        shard = self._writer(self.out / name, n, int(counted.sum()), packed, keep=resumed > 0)
        self.open = number, 0
        try:
            self._put_rows(shard, first, packed, counted)
            done = self._reuse(shard, resumed, partial, packed, counted)
            self._run_batches(shard, number, packed, digest, counted, done)
            sealed = shard.seal()
        except KeyboardInterrupt:
            with suppress(ActivationsError, OSError):
                self._watermark(shard, number, digest)
            shard.close()
            raise
        except BaseException:
            shard.drop()
            raise
        entry = ShardEntry(
            **sealed,
            shard=number,
            contexts=(first, first + n),
            rows=(rows, rows + int(counted.sum())),
            documents=(opened, packed.cursor.documents),
            cursor=packed.cursor,
            exhausted=packed.exhausted,
            outliers=n_flagged(shard.norms, self.manifest.outliers, packed.roles[counted]),
            inputs=digest if self.with_roles else None,
        )
        if lost and lost.contexts == entry.contexts and lost.datasets not in ({}, entry.datasets):
            entry = replace(entry, remade=versions())  # same inputs, other bits: another machine or other libraries
        self._commit(entry)

    def _writer(self, path: Path, n: int, n_rows: int, packed: Packed, keep: bool) -> ShardWriter:
        context, dtype, version = self.config.context, self.config.dtype, self.manifest.version
        sums = "uint32" if version == 1 else "uint64"  # a recording keeps its version
        names, facts = _json(packed.names), _json(_with_thumbnails(packed)) if self.with_roles else None
        widths, n_facts = self.manifest.layout.widths, None if facts is None else len(facts)
        pictures = (b"".join(packed.pictures) or None) if self.with_roles else None
        n_pictures = None if pictures is None else len(pictures)
        datasets = layout(n, context, n_rows, len(names), widths, dtype, self.segment_rows, sums, n_facts, n_pictures)
        shard = ShardWriter(path, lay_out({"format": FORMAT, "version": version}, datasets), self.segment_rows, keep)
        shard.put("document_names", np.frombuffer(names, np.uint8))
        if facts is not None:
            shard.put("document_facts", np.frombuffer(facts, np.uint8))
            shard.put("roles", packed.roles)
        if pictures is not None:
            shard.put("document_pictures", np.frombuffer(pictures, np.uint8))
        return shard

    def _put_rows(self, shard: ShardWriter, first: int, packed: Packed, counted: np.ndarray) -> None:
        context, position = np.nonzero(counted)
        shard.put("tokens", packed.tokens)
        shard.put("documents", packed.documents)
        shard.put("rows/token_id", packed.tokens[counted])
        shard.put("rows/position", position)
        shard.put("rows/context", context + first)

    def _run_batches(
        self, shard: ShardWriter, number: int, packed: Packed, digest: str, counted: np.ndarray, done: int
    ) -> None:
        marked = time.monotonic()
        for start in range(done, len(packed), self.config.batch_contexts):
            stop = min(start + self.config.batch_contexts, len(packed))
            chosen = torch.from_numpy(counted[start:stop].reshape(-1).nonzero()[0])
            for site, x in record(self.recorder, packed[start:stop], self.config.sites).items():
                shard.append(site, shard.rounded(site, x).index_select(0, chosen.to(x.device)))
            shard.contexts = stop
            self.stored += len(chosen) * self.row_bytes
            self.open = number, stop
            self._report()
            if time.monotonic() - marked > _WATERMARK_SECONDS:
                self._watermark(shard, number, digest)
                marked = time.monotonic()

    def _reuse(self, shard: ShardWriter, resumed: int, partial: ShardEntry | None, packed: Packed, counted: np.ndarray) -> int:
        """Add contexts of an interrupted run, or of the shorter shard that is extended. Returns their number."""
        if resumed:
            for site in self.config.sites:
                shard.take(site, int(counted[:resumed].sum()), shard.rows_on_disk(site), write=False)
            shard.contexts = resumed
            return resumed
        if partial is None:
            return 0
        if self.remote and not (self.out / partial.file).exists():
            self.remote.fetch(partial.file, self.out / partial.file)
        old = ShardReader(self.out, partial, self.segment_rows)
        before = old.small("tokens")
        whole = len(before) // self.config.batch_contexts * self.config.batch_contexts  # a shorter batch may round differently
        if not np.array_equal(before[:whole], packed.tokens[:whole]):
            raise RecordingError(f"The corpus no longer gives the text of {old.path.name}. Record into another folder.")
        for site in self.config.sites:
            shard.take(site, int(counted[:whole].sum()), lambda a, b, site=site: old.raw(site, a, b), write=True)
        old.close()
        shard.contexts = whole
        return whole

    def _watermark(self, shard: ShardWriter, number: int, digest: str) -> None:
        """Sync the unfinished shard and record its progress."""
        shard.flush()
        n = shard.contexts // self.config.batch_contexts * self.config.batch_contexts
        write_watermark(self.out, number, shard.path.name, n, digest)

    def _commit(self, entry: ShardEntry) -> None:
        """List a finished shard. For a store it is sent first; a staged-*.json file marks it until it has arrived."""
        if self.remote:
            staged = self.out / f"staged-{entry.shard:05d}.json"
            write_json(staged, as_json(entry))
            watermark_path(self.out, entry.shard).unlink(missing_ok=True)
            self.remote.push(self.out / entry.file)
            self.finished.add(entry)
            (self.out / entry.file).unlink()
            staged.unlink()
        else:
            self.finished.add(entry)
            watermark_path(self.out, entry.shard).unlink(missing_ok=True)

    def _send_sealed(self) -> None:
        """Send the shards that an earlier run finished and could not send."""
        for staged in sorted(self.out.glob("staged-*.json")) if self.remote else ():
            entry = read_object(staged, ShardEntry)
            path = self.out / entry.file
            if not self.ranks.owns(entry.shard):
                continue
            if path.exists() and path.stat().st_size == entry.bytes:
                self._commit(entry)
            staged.unlink(missing_ok=True)

    def _report(self) -> None:
        """Report progress: rank 0 to `on_progress`, the others to rank 0."""
        now = time.monotonic()
        if not self.ranks.leads:
            if now - self.reported > _REPORT_SECONDS:
                self.reported = now
                self.finished.report(*self.open)
            return
        if self.ranks.world > 1 and now - self.reported > _REPORT_SECONDS:
            self.reported = now
            self.finished.refresh()
        number, contexts = self.open
        sealed = sum(map(n_readable, self.finished.done.values()))
        open_now = max(0, contexts - n_readable(self.finished.done.get(number)))
        done = min(self.n_contexts, sealed + open_now + self.finished.under_way())
        seconds = max(now - self.started, 1e-9)
        numbers = {"MB/s": self.stored * self.ranks.world / seconds / 1e6}
        if self.ranks.world > 1:
            numbers["ranks"] = self.ranks.world
        self.on_progress(done * self.config.context, self.n_contexts * self.config.context, numbers)


def _same_inputs(lost: ShardEntry | None, packed: Packed, digest: str) -> None:
    """Check that a shard in quarantine is made again from the same inputs.

    Raises:
        RecordingError: the corpus has changed.
    """
    tokens, place = packed.tokens, lost.datasets.get("tokens") if lost else None
    if lost is None or place is None or place.shape != tokens.shape:
        return
    if zlib.crc32(np.ascontiguousarray(tokens, "<i4")) != place.crc32 or (lost.inputs or digest) != digest:
        raise RecordingError(f"The corpus no longer gives the text of {lost.file}. Record into another folder.")


def _with_thumbnails(packed: Packed) -> list[dict]:
    """The facts of each document, with the place of its small picture among those of the shard."""
    if not packed.pictures:
        return packed.facts
    starts = np.cumsum([0, *map(len, packed.pictures)])[:-1].tolist()
    places = [{"thumbnail": [a, len(data)]} if data else {} for a, data in zip(starts, packed.pictures, strict=True)]
    return [facts | place for facts, place in zip(packed.facts, places, strict=True)]


def _json(value: list) -> bytes:
    return json.dumps(value).encode()
