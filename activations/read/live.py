"""Batches of activations from a running model through a shuffle buffer; no recording is stored.

The corpus is packed into contexts as in harvesting, and the same rows are left out. A *pool* holds the activations of as many
contexts as fit the memory; its rows are returned in a random order, then the next pool is filled. The content of a pool follows
from the corpus, the model, the settings and the corpus position where it begins. So the state is that position and a row
number, a few hundred bytes; resuming runs the model again over the contexts of one pool.

A corpus that fits into one pool is read by the model once: every pass returns the same rows in another order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

import numpy as np
import torch
from scope.activations.config import LiveConfig
from scope.activations.corpus.contexts import TextTokenizer, maker_of
from scope.activations.corpus.inputs import Cursor, InputMaker, Inputs, Recorder, record
from scope.activations.corpus.outlier_rule import OutlierRule
from scope.activations.corpus.sources import Corpus
from scope.activations.corpus.survey import survey
from scope.activations.errors import ActivationsError, CorpusError, RecordingError
from scope.activations.format.norms import flagged
from scope.activations.format.shard_entry import Count
from scope.activations.read.shuffle_order import permutation
from torch import Tensor

from scope.typed_json import typed

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_FEWEST = 8  # contexts in a pool; with fewer, batches would be poorly shuffled


_Place = TypedDict("_Place", {"pass": Count, "pool": Count, "row": Count, "start": Cursor, "order": dict[str, Any]})


class LiveBatches:
    """Batches float32 [batch_size width] without end; of several sites, tuples whose rows belong to the same tokens.

    When the corpus ends it is read again in another order; `passes` counts how often it was started. `memory_bytes` bounds the
    buffer.
    """

    def __init__(
        self,
        recorder: Recorder,
        tokenizer: TextTokenizer | InputMaker,
        corpus: Corpus,
        sites: Sequence[str],
        batch_size: int,
        config: LiveConfig = LiveConfig(),
        seed: int = 0,
        memory_bytes: int = 512 << 20,
    ):
        self.recorder, self.maker, self.corpus, self.config = recorder, maker_of(tokenizer), corpus, config
        self.sites, self.batch_size, self.seed = tuple(sites), batch_size, seed
        widths = recorder.sites()
        row_bytes = sum(widths[s] for s in self.sites) * _DTYPES[config.dtype].itemsize
        self.contexts = memory_bytes // (row_bytes * config.context) // config.batch_contexts * config.batch_contexts
        least = max(_FEWEST, -(-batch_size // config.context) * 2)
        if self.contexts < least:
            raise ActivationsError(
                f"A buffer of {memory_bytes / 1e6:.0f} MB holds {self.contexts} contexts of {config.context} tokens of these "
                f"sites; batches of {batch_size} are\n  not mixed by fewer than {least}. "
                "Give more memory, fewer sites, or smaller batches."
            )
        self.pass_, self.pool_number, self.row, self.start = 0, 0, 0, Cursor()
        self._current: tuple[tuple, list[Tensor], np.ndarray, Cursor, bool] | None = None
        self._rule: OutlierRule | None = None
        self._whole: list[Tensor] | None = None
        self._rows_of_pass = 0

    @property
    def passes(self) -> int:
        return self.pass_ + 1

    @property
    def whole_corpus(self) -> int | None:
        """The rows that the corpus has, where all of it fits into the buffer; None where it does not, or none was read yet."""
        return None if self._whole is None else len(self._whole[0])

    def state_dict(self) -> dict:
        """State after the last returned batch. JSON."""
        place = {"pass": self.pass_, "pool": self.pool_number, "row": self.row, "start": asdict(self.start)}
        return place | {"order": self._order()}

    def load_state_dict(self, state: dict) -> None:
        """Restore a state; the next batch is the one that would have followed. The model runs over one pool again.

        Raises:
            RecordingError: the state belongs to another order: other seed, sites, text, settings or memory.
        """
        place = typed(state, _Place, "The saved position in the corpus", RecordingError)
        order, before = self._order(), place["order"]
        names = dict.fromkeys([*order, *(name for name in ("fim", "fim_seed") if name in before)])
        differs = [f"{k}: {before.get(k)} then, {order.get(k)} now" for k in names if before.get(k) != order.get(k)]
        if differs:
            raise RecordingError(
                "This state belongs to another order of rows (" + "; ".join(differs) + ").\n"
                "  Read with the same seed, sites, text and memory as before."
            )
        self.pass_, self.pool_number, self.row, self.start = place["pass"], place["pool"], place["row"], place["start"]

    def _order(self) -> dict:
        settings = asdict(self.config) | {"exclude": list(self.config.exclude)}
        return {
            "seed": self.seed,
            "sites": list(self.sites),
            "contexts": self.contexts,
            "corpus": self.corpus.identity,
            **self.fim,
        } | settings

    @property
    def fim(self) -> dict[str, Any]:
        """How documents become infilling examples; {} where they are read as plain text."""
        return {name: self.maker.identity[name] for name in ("fim", "fim_seed") if name in self.maker.identity}

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, ...]]:
        while True:
            parts: list[list[Tensor]] = [[] for _ in self.sites]
            wanted = self.batch_size
            while wanted:
                rows, order = self._pool()
                chosen = torch.from_numpy(order[self.row : self.row + wanted])
                for part, stored in zip(parts, rows, strict=True):
                    part.append(stored.index_select(0, chosen).float())
                self.row += len(chosen)
                wanted -= len(chosen)
                if wanted:
                    self._next_pool()
            batch = tuple(torch.cat(part) for part in parts)
            yield batch[0] if len(batch) == 1 else batch

    def where(self, row: int, n: int) -> str:
        """A phrase that identifies row `row` of the last batch, for error messages."""
        return f"of pool {self.pool_number} of pass {self.pass_ + 1} through {self.corpus.spec}, made by the model just now"

    # Pools.

    def _pool(self) -> tuple[list[Tensor], np.ndarray]:
        """The rows of the current pool, and their order."""
        if self._current is None or self._current[0] != (self.pass_, self.pool_number):
            self._current = None  # frees the old pool before the new one is filled
            rows, cursor, ended = self._fill()
            self._rows_of_pass += len(rows[0])
            if ended and not self._rows_of_pass and not self.row:
                raise CorpusError(
                    f"The corpus {self.corpus.spec} has no activation to train on: all norms are above "
                    f"{self.config.outlier_times:g} times the median.\n  Give more text, or a higher outlier_times."
                )
            order = permutation(len(rows[0]), self.seed, self.pass_, self.pool_number)
            self._current = (self.pass_, self.pool_number), rows, order, cursor, ended
        return self._current[1], self._current[2]

    def _next_pool(self) -> None:
        assert self._current is not None
        *_, cursor, ended = self._current
        self.row = 0
        if ended:
            self.pass_, self.pool_number, self.start = self.pass_ + 1, 0, Cursor()
            self._rows_of_pass = 0
        else:
            self.pool_number, self.start = self.pool_number + 1, cursor

    def _fill(self) -> tuple[list[Tensor], Cursor, bool]:
        """Run the model over the contexts of the pool. (rows of each site, corpus position after them, whether it ended)."""
        if self._whole is not None:
            return self._whole, self.start, True
        packed = self._packed(0 if self.pool_number == 0 else self.pass_)
        fits = self.pool_number == 0 and packed.exhausted
        if self.pass_ and self.pool_number == 0 and not fits:
            packed = self._packed(self.pass_)
        counted = packed.counted(self.config.exclude)
        if not counted.any():
            if self.pool_number:  # the corpus ended with the last pool
                self.pass_, self.pool_number, self.start = self.pass_ + 1, 0, Cursor()
                return self._fill()
            raise CorpusError(f"The corpus {self.corpus.spec} holds no text to train on.")
        rows = [
            torch.empty((int(counted.sum()), self.recorder.sites()[s]), dtype=_DTYPES[self.config.dtype]) for s in self.sites
        ]
        keep, at = np.ones(len(rows[0]), bool), 0
        roles = packed.roles[counted]
        for first in range(0, len(packed), self.config.batch_contexts):
            some = slice(first, first + self.config.batch_contexts)
            chosen = torch.from_numpy(counted[some].reshape(-1).nonzero()[0])
            recorded = record(self.recorder, packed[some], self.sites)
            new = slice(at, at + len(chosen))
            for site, stored in zip(self.sites, rows, strict=True):
                x = recorded[site]
                stored[new] = x.index_select(0, chosen.to(x.device)).to(stored.dtype).cpu()
                keep[new] &= ~self._outliers(site, stored[new], roles[new])
            at += len(chosen)
        if not keep.all():
            left = torch.from_numpy(keep.nonzero()[0])
            rows = [stored.index_select(0, left) for stored in rows]
        if fits:
            self._whole = rows
        return rows, packed.cursor, packed.exhausted

    def _packed(self, pass_: int) -> Inputs:
        """The contexts of the pool that begins at `start`, in the order of documents of a pass."""
        stream = self.maker.stream(self.corpus.documents(self.seed + pass_), self.config.context, self.start)
        return stream.take(self.contexts)

    def _outliers(self, site: str, rows: Tensor, roles: np.ndarray) -> np.ndarray:
        if not self.config.outlier_times:
            return np.zeros(len(rows), bool)
        if self._rule is None:
            measured = survey(self.recorder, self.maker, self.corpus, self.sites, self.config, self.seed)
            self._rule = measured.rule(self.config.outlier_times)
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).numpy()
        return flagged(norms, self._rule, site, roles)
