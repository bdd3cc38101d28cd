"""One harvest under way: shard after shard, each a pure function of the manifest and its number.

What a crash can leave: a torn journal line, a file that no line lists, an open shard, a sealed one that was not sent yet. The
next run drops the first two and goes on with the others where they stand.
"""

import json
import time
import zlib
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from scope.activations.corpus.inputs import Cursor, InputMaker, Packed, Recorder, record
from scope.activations.errors import ActivationsError, CorpusError, RecordingError
from scope.activations.format.files import read_json, write_json
from scope.activations.format.hdf5 import ITEM_BYTES, skeleton
from scope.activations.format.manifest import FORMAT, WITH_ROLES, Recorded, contexts_for, versions
from scope.activations.format.norms import n_flagged
from scope.activations.format.remote import Remote
from scope.activations.format.shard_reader import ShardReader
from scope.activations.format.shard_writer import ShardWriter, layout
from scope.activations.harvest.ranks import Ledger, ProcessRank, held
from scope.activations.harvest.recovery import clean, contexts_of_open, mark_of, note_open

from scope.progress import OnProgress

_WATERMARK_SECONDS = 20.0  # at most so much work is lost to kill -9
_SAY_SECONDS = 1.0


class Run:
    """One process's part of a run over a folder that is locked and whose manifest fits."""

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
        self.ledger = Ledger(out, recorded, ranks, remote)
        self.on_progress = on_progress or (lambda done, total, numbers: None)
        layout = self.manifest["layout"]
        self.with_roles = self.manifest["version"] == WITH_ROLES
        self.per_shard, self.segment_rows = layout["contexts_per_shard"], layout["segment_rows"]
        self.row_bytes = sum(w * ITEM_BYTES[config.dtype] for w in layout["widths"].values())
        self.n_contexts = contexts_for(config.tokens, config.context)
        self.started, self.stored, self.said = time.monotonic(), 0, time.monotonic()
        self.open = (0, 0)  # the shard under way, and its contexts so far

    def run(self) -> None:
        clean(self.out, self.recorded, self.ledger.done, self.ranks)
        self._send_sealed()
        holes = not all(map(held, self.recorded.entries))
        if holes:  # a damaged shard was moved aside; it is made as it was, whatever the budget is now
            self.n_contexts = max(self.n_contexts, self.recorded.n_contexts)
        if holes or (not self.recorded.exhausted and self.recorded.n_contexts < self.n_contexts):
            n_contexts, exhausted = self._walk()
            if self.ranks.leads:
                self.ledger.wait_for(n_contexts, self.per_shard, self._tell)
                if exhausted:
                    self.ledger.mark_exhausted()
        elif self.ranks.leads:
            self.ledger.commit()
        self.ledger.clean()

    def _walk(self) -> tuple[int, bool]:
        """Pack the whole rest of the corpus up to the budget, run what is ours. (contexts there are, corpus ended)."""
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
            kept = packed.counted(self.config.exclude)
            if self.ranks.owns(number) and not self._finished(number, len(packed)):
                self._shard(number, first, opened, rows, packed, kept)
            rows += int(kept.sum())
            if packed.exhausted:
                return first + len(packed), True
        return self.n_contexts, False

    def _start(self) -> tuple[int, Cursor, int]:
        """(the first shard that is not whole, where the corpus stands there, rows before it)."""
        number = 0
        while self._finished(number, self.per_shard):
            number += 1
        if number == 0:
            return 0, Cursor(), 0
        before = self.ledger.done[number - 1]
        return number, Cursor(**before["cursor"]), before["rows"][1]

    def _finished(self, number: int, contexts: int) -> bool:
        return held(self.ledger.done.get(number)) >= contexts

    def _shard(self, number: int, first: int, opened: int, rows: int, packed: Packed, kept: np.ndarray) -> None:
        n, digest = len(packed), packed.digest()
        old = self.ledger.done.get(number)
        partial, lost = (old, None) if held(old) else (None, old)
        _same_inputs(lost, packed, digest)
        name = f"shard-{number:05d}" + ("" if n == self.per_shard else f"-{n}") + ".h5"
        resumed = contexts_of_open(self.out, number, name, digest)
        shard = self._writer(self.out / name, n, int(kept.sum()), packed, keep=resumed > 0)
        self.open = number, 0
        try:
            self._put_rows(shard, first, packed, kept)
            done = self._take_over(shard, resumed, partial, packed, kept)
            self._run_batches(shard, number, packed, digest, kept, done)
            entry = shard.seal()
        except KeyboardInterrupt:
            with suppress(ActivationsError, OSError):
                self._watermark(shard, number, digest)
            shard.close()
            raise
        except BaseException:
            shard.drop()
            raise
        entry |= {
            "shard": number,
            "contexts": [first, first + n],
            "rows": [rows, rows + int(kept.sum())],
            "documents": [opened, packed.cursor.documents],
            "cursor": asdict(packed.cursor),
            "exhausted": packed.exhausted,
            "outliers": n_flagged(shard.norms, self.manifest.get("outliers"), packed.roles[kept]),
        }
        if self.with_roles:
            entry["inputs"] = digest
        if lost and lost["contexts"] == entry["contexts"] and lost["datasets"] not in ({}, entry["datasets"]):
            entry["remade"] = versions()  # the same text, and not the same bits: another machine, or other libraries
        self._commit(number, entry)

    def _writer(self, path: Path, n: int, n_rows: int, packed: Packed, keep: bool) -> ShardWriter:
        context, dtype, version = self.config.context, self.config.dtype, self.manifest["version"]
        sums = "uint32" if version == 1 else "uint64"  # a recording goes on in the form in which it began
        names, facts = _json(packed.names), _json(packed.facts) if self.with_roles else None
        widths = self.manifest["layout"]["widths"]
        datasets = layout(n, context, n_rows, names, widths, dtype, self.segment_rows, sums, facts)
        shard = ShardWriter(path, skeleton({"format": FORMAT, "version": version}, datasets), self.segment_rows, keep)
        shard.put("document_names", np.frombuffer(names, np.uint8))
        if facts is not None:
            shard.put("document_facts", np.frombuffer(facts, np.uint8))
            shard.put("roles", packed.roles)
        return shard

    def _put_rows(self, shard: ShardWriter, first: int, packed: Packed, kept: np.ndarray) -> None:
        context, position = np.nonzero(kept)
        shard.put("tokens", packed.tokens)
        shard.put("documents", packed.documents)
        shard.put("rows/token_id", packed.tokens[kept])
        shard.put("rows/position", position)
        shard.put("rows/context", context + first)

    def _run_batches(self, shard: ShardWriter, number: int, packed: Packed, digest: str, kept: np.ndarray, done: int) -> None:
        marked = time.monotonic()
        for start in range(done, len(packed), self.config.batch_contexts):
            stop = min(start + self.config.batch_contexts, len(packed))
            chosen = torch.from_numpy(kept[start:stop].reshape(-1).nonzero()[0])
            for site, x in record(self.recorder, packed[start:stop], self.config.sites).items():
                shard.append(site, shard.rounded(site, x).index_select(0, chosen.to(x.device)))
            shard.contexts = stop
            self.stored += len(chosen) * self.row_bytes
            self.open = number, stop
            self._tell()
            if time.monotonic() - marked > _WATERMARK_SECONDS:
                self._watermark(shard, number, digest)
                marked = time.monotonic()

    def _take_over(self, shard: ShardWriter, resumed: int, partial: dict | None, packed: Packed, kept: np.ndarray) -> int:
        """Contexts that need not be run again: from the file of an interrupted run, or the partial shard that is extended."""
        if resumed:
            for site in self.config.sites:
                shard.take(site, int(kept[:resumed].sum()), shard.own(site), write=False)
            shard.contexts = resumed
            return resumed
        if partial is None:
            return 0
        if self.remote and not (self.out / partial["file"]).exists():
            self.remote.fetch(partial["file"], self.out / partial["file"])
        old = ShardReader(self.out, partial, self.segment_rows)
        before = old.small("tokens")
        whole = len(before) // self.config.batch_contexts * self.config.batch_contexts  # a shorter batch may round otherwise
        if not np.array_equal(before[:whole], packed.tokens[:whole]):
            raise RecordingError(f"The corpus no longer gives the text of {old.path.name}. Record into another folder.")
        for site in self.config.sites:
            shard.take(site, int(kept[:whole].sum()), lambda a, b, site=site: old.raw(site, a, b), write=True)
        old.close()
        shard.contexts = whole
        return whole

    def _watermark(self, shard: ShardWriter, number: int, digest: str) -> None:
        """Note how far the open shard has come, after what it holds is on the disk."""
        shard.flush()
        n = shard.contexts // self.config.batch_contexts * self.config.batch_contexts
        note_open(self.out, number, shard.path.name, n, digest)

    def _commit(self, number: int, entry: dict) -> None:
        """List a sealed shard; one for a store is sent first, and noted here until it has arrived."""
        if self.remote:
            staged = self.out / f"staged-{number:05d}.json"
            write_json(staged, entry)
            mark_of(self.out, number).unlink(missing_ok=True)
            self.remote.push(self.out / entry["file"])
            self.ledger.add(entry)
            (self.out / entry["file"]).unlink()
            staged.unlink()
        else:
            self.ledger.add(entry)
            mark_of(self.out, number).unlink(missing_ok=True)

    def _send_sealed(self) -> None:
        """Send the shards that an earlier run sealed and could not send."""
        for staged in sorted(self.out.glob("staged-*.json")) if self.remote else ():
            number = int(staged.stem.removeprefix("staged-"))
            entry = read_json(staged)
            path = self.out / entry["file"]
            if not self.ranks.owns(number):
                continue
            if path.exists() and path.stat().st_size == entry["bytes"]:
                self._commit(number, entry)
            staged.unlink(missing_ok=True)

    def _tell(self) -> None:
        """Say how far all ranks are: rank 0 to whoever looks, the others to rank 0."""
        now = time.monotonic()
        if not self.ranks.leads:
            if now - self.said > _SAY_SECONDS:
                self.said = now
                self.ledger.say(*self.open)
            return
        if self.ranks.world > 1 and now - self.said > _SAY_SECONDS:
            self.said = now
            self.ledger.refresh()
        number, contexts = self.open
        sealed = sum(map(held, self.ledger.done.values()))
        mine = max(0, contexts - held(self.ledger.done.get(number)))
        done = min(self.n_contexts, sealed + mine + self.ledger.under_way())
        seconds = max(now - self.started, 1e-9)
        numbers = {"MB/s": self.stored * self.ranks.world / seconds / 1e6}
        if self.ranks.world > 1:
            numbers["ranks"] = self.ranks.world
        self.on_progress(done * self.config.context, self.n_contexts * self.config.context, numbers)


def _same_inputs(lost: dict | None, packed: Packed, digest: str) -> None:
    """A shard in quarantine is made again from the inputs it had.

    Raises:
        RecordingError: the corpus gives other ones.
    """
    made, tokens = (lost or {}).get("datasets", {}).get("tokens"), packed.tokens
    if not made or tuple(made["shape"]) != tokens.shape:
        return
    if zlib.crc32(np.ascontiguousarray(tokens, "<i4")) != made["crc32"] or lost.get("inputs", digest) != digest:
        raise RecordingError(f"The corpus no longer gives the text of {lost['file']}. Record into another folder.")


def _json(value: list) -> bytes:
    return json.dumps(value).encode()
