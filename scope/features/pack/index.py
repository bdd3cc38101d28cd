"""Fast look-ups in a table of a million latents: flags as bits, sorted orders, texts matched once each.

Everything is built on first use and kept with the pack; nothing here is written to disk.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from threading import RLock

import numpy as np
import pandas as pd

from scope.escape import fold

FLAGS = ("dead", "dense", "rare", "single-token", "duplicate", "output")
"""Flags by their bit."""


class Index:
    """Over the columns of one table. Safe to share between threads."""

    def __init__(self, table: pd.DataFrame):
        self.table = table
        self._lock = RLock()
        self._columns: dict[str, np.ndarray] = {}
        self._orders: dict[str, np.ndarray] = {}
        self._pieces: dict[str, Pieces] = {}

    def renewed(self, table: pd.DataFrame, changed: Sequence[str]) -> "Index":
        """The index of a table that differs in some columns (not the flags); what is known of the others stays."""
        new = Index(table)
        with self._lock:
            new._columns = {name: values for name, values in self._columns.items() if name not in changed}
            new._orders = {key: order for key, order in self._orders.items() if key.rsplit(" ", 1)[0] not in changed}
            new._pieces = {name: pieces for name, pieces in self._pieces.items() if name not in changed}
            if "bits" in self.__dict__:
                new.bits = self.bits
        return new

    def column(self, name: str) -> np.ndarray:
        """A column of numbers as float64."""
        with self._lock:
            if name not in self._columns:
                self._columns[name] = self.table[name].to_numpy(np.float64)
            return self._columns[name]

    def order(self, name: str, rising: bool = False) -> np.ndarray:
        """All ids by this column, falling or rising, equal ones by id; those without the figure come last either way."""
        key = f"{name} {'up' if rising else 'down'}"
        with self._lock:
            if key not in self._orders:
                values = self.column(name)
                self._orders[key] = order_of(values if rising else -values)
            return self._orders[key]

    @cached_property
    def bits(self) -> np.ndarray:
        """[d_sae] one bit a flag, in the order of FLAGS."""
        codes, texts = pd.factorize(self.table["flags"])
        known = np.array([sum(1 << i for i, flag in enumerate(FLAGS) if flag in text.split(",")) for text in texts], np.uint8)
        return known[codes]

    def flagged(self, flags: Sequence[str]) -> np.ndarray:
        """[d_sae] whether a latent bears any of these flags."""
        mask = np.uint8(sum(1 << FLAGS.index(flag) for flag in flags))
        return (self.bits & mask) != 0

    def text(self, name: str) -> "Pieces":
        """A column of texts, to be searched."""
        with self._lock:
            if name not in self._pieces:
                self._pieces[name] = Pieces(self.table[name])
            return self._pieces[name]


class Pieces:
    """A column of texts of which many are equal: each different one is looked at once, whatever its case."""

    def __init__(self, column: pd.Series):
        import pyarrow as pa

        self.codes, texts = pd.factorize(column)
        self.folded = [fold(str(text)) for text in texts]
        self._arrow = pa.array(self.folded, pa.large_string())

    def containing(self, wanted: str) -> np.ndarray:
        """[rows] whether the text holds `wanted`, which is folded already."""
        return self._over(self._holding(wanted))

    def equal(self, wanted: str) -> np.ndarray:
        """[rows] whether the text is `wanted`, but for outer spaces."""
        holding = self._holding(wanted)
        return self._over(self._refined(holding, lambda text: text.strip() == wanted))

    def with_word(self, wanted: str) -> np.ndarray:
        """[rows] whether one of the text's words is `wanted`."""
        holding = self._holding(wanted)
        return self._over(self._refined(holding, lambda text: wanted in re.split(r"[^\w']+", text)))

    def _holding(self, wanted: str) -> np.ndarray:
        import pyarrow.compute as pc

        return pc.match_substring(self._arrow, wanted).to_numpy(zero_copy_only=False)

    def _refined(self, holding: np.ndarray, test) -> np.ndarray:
        matches = holding.copy()
        for i in np.flatnonzero(holding):
            matches[i] = test(self.folded[i])
        return matches

    def _over(self, matches: np.ndarray) -> np.ndarray:
        return matches[self.codes]


MOST_TOKENS = 8_000_000
"""Tokens of a pack's text that are searched; the first ones of a longer text."""
MOST_PLACES = 50_000
"""Occurrences of a text that are looked at."""


class ContextTexts:
    """The contexts of a pack as one folded text, to be searched for words that are split into several tokens."""

    def __init__(self, contexts: np.ndarray, pieces: Sequence[str]):
        some = np.asarray(contexts[: max(1, MOST_TOKENS // max(contexts.shape[1], 1))])
        texts = [pieces[i] if i < len(pieces) else "" for i in some.reshape(-1).tolist()]
        self.start = np.zeros(len(texts) + 1, np.int64)
        """[tokens + 1] where each token begins in the text."""
        np.cumsum([len(text) for text in texts], out=self.start[1:])
        self.text = "".join(texts)

    def places(self, wanted: str) -> tuple[int, np.ndarray]:
        """(occurrences, positions of the tokens that they touch, rising) of a folded text."""
        begins, at = [], self.text.find(wanted)
        while at >= 0 and len(begins) < MOST_PLACES:
            begins.append(at)
            at = self.text.find(wanted, at + max(len(wanted), 1))
        if not begins:
            return 0, np.zeros(0, np.int64)
        begin = np.array(begins)
        first = np.searchsorted(self.start, begin, "right") - 1
        stop = np.searchsorted(self.start, begin + len(wanted), "left")
        touched = first[:, None] + np.arange(int((stop - first).max()))
        return len(begins), np.unique(touched[touched < stop[:, None]])


def order_of(values: np.ndarray) -> np.ndarray:
    """The order that sorts `values` upwards, equal ones by place, NaN last: np.argsort(values, kind="stable"), faster.

    Value and place share one 64-bit key: the lowest bits of the value make room for the place. What is rounded together by
    that is sorted once more.
    """
    values = np.where(np.isnan(values), np.inf, values) + 0.0  # + 0 makes one zero of both
    bits = values.view(np.int64)
    rising = (bits ^ ((bits >> 63) & np.int64(2**63 - 1))).view(np.uint64) ^ np.uint64(1 << 63)
    room = np.uint64(max(len(values) - 1, 1).bit_length())
    keys = ((rising >> room) << room) | np.arange(len(values), dtype=np.uint64)
    keys.sort()
    order = (keys & np.uint64((1 << int(room)) - 1)).astype(np.int64)
    ordered = values[order]
    return order if (ordered[1:] >= ordered[:-1]).all() else order[np.argsort(ordered, kind="stable")]
