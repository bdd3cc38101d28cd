"""One harvest under way: shard after shard, each a pure function of the manifest and its number.

What a crash can leave: a torn journal line, a file that no line lists, an open shard. The next run drops the first two and
goes on with the third where its watermark stands.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from activations.contexts import Cursor, Packed, Packer, kept_positions
from activations.errors import ActivationsError, CorpusError, RecordingError
from activations.files import append_line, journal_line, read_json, write_json, write_whole
from activations.hdf5 import ITEM_BYTES, skeleton
from activations.manifest import FORMAT, JOURNAL, OPEN, VERSION, Recorded, contexts_for
from activations.shards import ShardReader, ShardWriter

OnProgress = Callable[[int, int, dict], None]

_WATERMARK_SECONDS = 20.0  # at most so much work is lost to kill -9


class Run:
    """One run over a folder that is locked and whose manifest fits."""

    def __init__(self, recorder, tokenizer, corpus, config, out, recorded: Recorded, on_progress):
        self.recorder, self.tokenizer, self.corpus, self.config, self.out = recorder, tokenizer, corpus, config, out
        self.manifest, self.entries = recorded.manifest, recorded.entries
        self.on_progress = on_progress or (lambda done, total, numbers: None)
        layout = self.manifest["layout"]
        self.per_shard, self.segment_rows = layout["contexts_per_shard"], layout["segment_rows"]
        self.n_contexts = contexts_for(config.tokens, config.context)
        self.recorded, self.journal_bytes = recorded, recorded.journal_bytes
        self.started, self.stored = time.monotonic(), 0

    def run(self) -> None:
        self._clean()
        done = self.recorded.n_contexts
        if self.recorded.exhausted or done >= self.n_contexts:
            return
        partial = self.entries[-1] if self.entries and done % self.per_shard else None
        before = self.entries[:-1] if partial else self.entries
        cursor = Cursor(**before[-1]["cursor"]) if before else Cursor()
        packer = Packer(self.corpus.documents(self.config.seed), self.tokenizer, self.config.context, cursor)
        for number in range(len(before), -(-self.n_contexts // self.per_shard)):
            first = number * self.per_shard
            opened = packer.opened
            packed = packer.take(min(self.per_shard, self.n_contexts - first))
            if not len(packed.tokens):
                if number == 0:
                    raise CorpusError(f"The corpus {self.corpus.spec} holds no text, so there is nothing to record.")
                self._mark_exhausted()
                return
            self._shard(number, first, opened, packed, partial)
            partial = None
            if packed.exhausted:
                return

    def _shard(self, number: int, first: int, opened: int, packed: Packed, partial: dict | None) -> None:
        n = len(packed.tokens)
        kept = kept_positions(packed.tokens, packed.documents, self.config.exclude, self.tokenizer)
        rows = self.entries[-1 if partial is None else -2]["rows"][1] if number else 0
        name = f"shard-{number:05d}" + ("" if n == self.per_shard else f"-{n}") + ".h5"
        resumed = self._resumable(name, packed.tokens)
        shard = self._writer(self.out / name, n, int(kept.sum()), packed.names, keep=resumed > 0)
        try:
            self._put_rows(shard, first, packed, kept)
            done = self._take_over(shard, resumed, partial, packed.tokens, kept)
            self._run_batches(shard, number, packed.tokens, kept, done)
            entry = shard.seal()
        except KeyboardInterrupt:
            with suppress(ActivationsError, OSError):
                self._watermark(shard, packed.tokens)
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
        }
        self._commit(entry, partial)

    def _writer(self, path: Path, n: int, n_rows: int, names: list[str], keep: bool) -> ShardWriter:
        context, dtype = self.config.context, self.config.dtype
        datasets: dict[str, tuple[tuple[int, ...], str]] = {
            "tokens": ((n, context), "int32"),
            "documents": ((n, context), "int32"),
            "document_names": ((len(_names(names)),), "uint8"),
        }
        datasets |= {f"rows/{name}": ((n_rows,), "int32") for name in ("token_id", "position", "context")}
        for site, width in self.manifest["layout"]["widths"].items():
            datasets[f"acts/{site}"] = ((n_rows, width), dtype)
            datasets[f"norms/{site}"] = ((n_rows,), "float32")
            datasets[f"sums/{site}"] = ((-(-n_rows // self.segment_rows),), "uint32")
        shard = ShardWriter(path, skeleton({"format": FORMAT, "version": VERSION}, datasets), self.segment_rows, keep)
        shard.put("document_names", np.frombuffer(_names(names), np.uint8))
        return shard

    def _put_rows(self, shard: ShardWriter, first: int, packed: Packed, kept: np.ndarray) -> None:
        context, position = np.nonzero(kept)
        shard.put("tokens", packed.tokens)
        shard.put("documents", packed.documents)
        shard.put("rows/token_id", packed.tokens[kept])
        shard.put("rows/position", position)
        shard.put("rows/context", context + first)

    def _run_batches(self, shard: ShardWriter, number: int, tokens: np.ndarray, kept: np.ndarray, done: int) -> None:
        marked = time.monotonic()
        device = getattr(self.recorder, "device", "cpu")
        for start in range(done, len(tokens), self.config.batch_contexts):
            stop = min(start + self.config.batch_contexts, len(tokens))
            batch = torch.from_numpy(tokens[start:stop].astype(np.int64)).to(device)
            with torch.no_grad():
                recorded = self.recorder.record(batch, self.config.sites)
            chosen = torch.from_numpy(kept[start:stop].reshape(-1).nonzero()[0])
            for site in self.config.sites:
                x = shard.rounded(site, recorded[site].flatten(0, 1))
                shard.append(site, x.index_select(0, chosen.to(x.device)))
            shard.contexts = stop
            self._tell(number * self.per_shard + stop, len(chosen))
            if time.monotonic() - marked > _WATERMARK_SECONDS:
                self._watermark(shard, tokens)
                marked = time.monotonic()

    def _take_over(self, shard: ShardWriter, resumed: int, partial: dict | None, tokens: np.ndarray, kept: np.ndarray) -> int:
        """Contexts that need not be run again: from the file of an interrupted run, or the partial shard that is extended."""
        if resumed:
            for site in self.config.sites:
                shard.take(site, int(kept[:resumed].sum()), shard.own(site), write=False)
            shard.contexts = resumed
            return resumed
        if partial is None:
            return 0
        old = ShardReader(self.out, partial, self.segment_rows)
        before = old.small("tokens")
        whole = len(before) // self.config.batch_contexts * self.config.batch_contexts  # a shorter batch may round otherwise
        if not np.array_equal(before[:whole], tokens[:whole]):
            raise RecordingError(f"The corpus no longer gives the text of {old.path.name}. Record into another folder.")
        for site in self.config.sites:
            shard.take(site, int(kept[:whole].sum()), lambda a, b, site=site: old.raw(site, a, b), write=True)
        old.close()
        shard.contexts = whole
        return whole

    def _watermark(self, shard: ShardWriter, tokens: np.ndarray) -> None:
        """Note how far the open shard has come, after what it holds is on the disk."""
        shard.flush()
        n = shard.contexts // self.config.batch_contexts * self.config.batch_contexts
        write_json(self.out / OPEN, {"file": shard.path.name, "contexts": n, "tokens": _digest(tokens)})

    def _resumable(self, name: str, tokens: np.ndarray) -> int:
        path = self.out / OPEN
        if not path.exists() or not (self.out / (name + ".tmp")).exists():
            return 0
        mark = read_json(path)
        return mark["contexts"] if mark["file"] == name and mark["tokens"] == _digest(tokens) else 0

    def _commit(self, entry: dict, partial: dict | None) -> None:
        path = self.out / JOURNAL
        if partial is None:
            append_line(path, entry)
            self.entries = [*self.entries, entry]
        else:
            self.entries = [*self.entries[:-1], entry]
            write_whole(path, b"".join(map(journal_line, self.entries)))
            if partial["file"] != entry["file"]:
                (self.out / partial["file"]).unlink(missing_ok=True)
        (self.out / OPEN).unlink(missing_ok=True)

    def _mark_exhausted(self) -> None:
        """The corpus ended exactly with the last shard: say so in its line."""
        self.entries = [*self.entries[:-1], self.entries[-1] | {"exhausted": True}]
        write_whole(self.out / JOURNAL, b"".join(map(journal_line, self.entries)))

    def _clean(self) -> None:
        """Remove what a crash left: a torn journal line, files that no line lists and that cannot be continued."""
        journal = self.out / JOURNAL
        if journal.exists() and journal.stat().st_size > self.journal_bytes:
            os.truncate(journal, self.journal_bytes)
        listed = {entry["file"] for entry in self.entries}
        mark = self.out / OPEN
        going_on = read_json(mark)["file"] + ".tmp" if mark.exists() else ""
        for path in self.out.iterdir():
            stray_shard = path.name.startswith("shard-") and path.suffix == ".h5" and path.name not in listed
            if stray_shard or (path.suffix == ".tmp" and path.name != going_on):
                path.unlink()

    def _tell(self, contexts: int, n_rows: int) -> None:
        self.stored += n_rows * sum(w * ITEM_BYTES[self.config.dtype] for w in self.manifest["layout"]["widths"].values())
        seconds = max(time.monotonic() - self.started, 1e-9)
        done, total = contexts * self.config.context, self.n_contexts * self.config.context
        self.on_progress(done, total, {"MB/s": self.stored / seconds / 1e6})


def _names(names: list[str]) -> bytes:
    return json.dumps(names).encode()


def _digest(tokens: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens)).hexdigest()
