"""Statistics of sparse codes that arrive piece by piece: each is associative, so pieces may come in any order and merge.

Moments     counts, sums, maxima, log histograms, mass per half octave    O(d_sae) memory
Shortlist   the k best of each group: strongest contexts, uniform samples  O(groups x k)
TokenCounts firings per (latent, token)                                    up to `capacity` pairs, then the rarest go
RoleCounts  firings per (latent, role of the row)                          O(d_sae x roles) memory
WordsBeside correlation of latents with words beside pictures              O((d_sae + pictures) x words) memory
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scope.features.collect.codes import BINS_PER_BAND, Codes, bins
from scope.features.pack.format import N_BINS

N_HALVES = N_BINS // BINS_PER_BAND


def runs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(starts, lengths) of the stretches of equal values in a sorted array."""
    if not len(keys):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    return starts, np.diff(np.r_[starts, len(keys)])


def order_by(*columns: np.ndarray) -> np.ndarray:
    """The stable order by columns of numbers below 2^32, the first one the most significant: what lexsort gives, but 16 bits at
    a time, which numpy sorts by radix, several times faster."""
    order: np.ndarray | None = None
    for column in reversed(columns):
        wide = len(column) > 0 and int(column.max()) >= 1 << 16
        for digit in (column & 0xFFFF, column >> 16) if wide else (column,):
            digit = digit.astype(np.uint16)
            step = np.argsort(digit if order is None else digit[order], kind="stable")
            order = step if order is None else order[step]
    assert order is not None
    return order


class Moments:
    """Per latent: firings, sums of the first four powers in float64, extremes, histogram, sum per half octave."""

    def __init__(self, d_sae: int, low: int):
        self.low = low
        self.count = np.zeros(d_sae, np.int64)
        self.sum, self.square, self.cube, self.fourth = (np.zeros(d_sae) for _ in range(4))
        self.max = np.zeros(d_sae, np.float32)
        self.min = np.full(d_sae, np.inf, np.float32)
        self.histogram = np.zeros((d_sae, N_BINS), np.uint32)
        self.mass = np.zeros((d_sae, N_HALVES))

    def add(self, codes: Codes, bin_of: np.ndarray) -> None:
        starts, lengths = runs(codes.feature)
        if not len(starts):
            return
        fired, value = codes.feature[starts], codes.value.astype(np.float64)
        self.count[fired] += lengths
        square = value * value
        powers = ((self.sum, value), (self.square, square), (self.cube, square * value), (self.fourth, square * square))
        for total, power in powers:
            total[fired] += np.add.reduceat(power, starts)
        self.max[fired] = np.maximum(self.max[fired], np.maximum.reduceat(codes.value, starts))
        self.min[fired] = np.minimum(self.min[fired], np.minimum.reduceat(codes.value, starts))
        order = order_by(codes.feature, bin_of)
        keys = codes.feature[order].astype(np.int64) * N_BINS + bin_of[order]
        starts, lengths = runs(keys)
        self.histogram.reshape(-1)[keys[starts]] += lengths.astype(np.uint32)
        halves = keys // BINS_PER_BAND
        starts, _ = runs(halves)
        self.mass.reshape(-1)[halves[starts]] += np.add.reduceat(value[order], starts)


@dataclass
class Entries:
    """Rows of a shortlist, column by column. `rank` orders within a group, smallest first; ties go to the earlier position."""

    group: np.ndarray  # int64
    rank: np.ndarray  # uint64
    position: np.ndarray  # int64
    value: np.ndarray  # float32
    twin: np.ndarray  # uint64; entries of a group with equal twins count once

    def __len__(self) -> int:
        return len(self.group)

    def __getitem__(self, rows) -> "Entries":
        return Entries(*(column[rows] for column in vars(self).values()))

    @staticmethod
    def join(parts: list["Entries"]) -> "Entries":
        return Entries(*(np.concatenate(columns) for columns in zip(*(vars(p).values() for p in parts), strict=True)))


class Shortlist:
    """The `k` entries of smallest rank in each group, exactly, whatever the order of arrival.

    With `unique`, of entries whose twins are equal only the first counts. An entry that is dropped can never come back:
    those that beat it stay, or are beaten by as many others.
    """

    def __init__(self, n_groups: int, k: int, unique: bool = False, buffer: int = 1 << 20):
        self.k, self.unique, self.buffer = k, unique, buffer
        self.worst = np.full(n_groups, np.iinfo(np.uint64).max, np.uint64)
        self.parts: list[Entries] = []
        self.waiting = 0

    def add(self, entries: Entries) -> None:
        hopeful = entries[entries.rank <= self.worst[entries.group]]
        self.parts.append(hopeful)
        self.waiting += len(hopeful)
        if self.waiting > self.buffer:
            self.compact()

    def compact(self) -> None:
        if self.k == 0 or not self.parts:
            self.parts, self.waiting = [], 0
            return
        every = Entries.join(self.parts)
        every = every[_order(every)]
        if self.unique:
            every = every[_first_of_twins(every)]
        starts, lengths = runs(every.group)
        nth = np.arange(len(every)) - np.repeat(starts, lengths)
        full = lengths >= self.k
        self.worst[every.group[starts[full]]] = every.rank[starts[full] + self.k - 1]
        self.parts = [every[nth < self.k]]
        self.waiting = 0
        self.buffer = max(self.buffer, 2 * len(self.parts[0]))

    def result(self) -> Entries:
        """What is left, in order of group, then of rank."""
        self.compact()
        nothing = np.zeros(0, np.int64)
        empty = Entries(nothing, nothing.astype(np.uint64), nothing, nothing.astype(np.float32), nothing.astype(np.uint64))
        return self.parts[0] if self.parts else empty


def _order(entries: Entries) -> np.ndarray:
    """By group, rank, position: what lexsort gives, several times faster, as one integer sort with ties mended after it."""
    wide = bool((entries.rank >> np.uint64(32)).any())  # priorities fill 64 bits, of which the upper half decides almost always
    upper = entries.rank >> np.uint64(32) if wide else entries.rank
    key = (entries.group.astype(np.uint64) << np.uint64(32)) | upper
    order = np.argsort(key)
    _, lengths = runs(key[order])
    tied = np.flatnonzero(np.repeat(lengths > 1, lengths))
    rows = order[tied]
    order[tied] = rows[np.lexsort((entries.position[rows], entries.rank[rows], entries.group[rows]))]
    return order


def _first_of_twins(entries: Entries) -> np.ndarray:
    order = np.lexsort((entries.twin, entries.group))  # stable: within equal twins the better one comes first
    group, twin = entries.group[order], entries.twin[order]
    again = np.zeros(len(entries), bool)
    again[order[1:]] = (group[1:] == group[:-1]) & (twin[1:] == twin[:-1])
    return ~again


def strongest_per_context(codes: Codes, n_ctx: int) -> np.ndarray:
    """Rows of `codes`: each latent's strongest firing in each context, the earlier one of equals."""
    place = codes.feature.astype(np.int64) * (1 << 40) + codes.position // n_ctx  # ascending, as codes are
    starts, lengths = runs(place)
    if not len(starts):
        return starts
    best = np.repeat(np.maximum.reduceat(codes.value, starts), lengths)
    rows = np.flatnonzero(codes.value == best)
    return rows[runs(place[rows])[0]]


class TokenCounts:
    """Firings and their summed activation per (latent, token).

    Exact while no more than `capacity` different pairs appear. Beyond that the least frequent go, but never the `keep` most
    frequent of a latent; `lost` then bounds by how much any count may be too low.
    """

    def __init__(self, d_vocab: int, keep: int, capacity: int = 1 << 23):
        self.d_vocab, self.keep, self.capacity = d_vocab, keep, capacity
        self.key, self.count, self.sum = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.waiting = self.lost = 0

    def add(self, codes: Codes, tokens: np.ndarray) -> None:
        """`tokens` are the ids at the codes' positions."""
        order = order_by(codes.feature, tokens)
        key = codes.feature[order].astype(np.int64) * self.d_vocab + tokens[order]
        value = codes.value[order].astype(np.float64)
        starts, lengths = runs(key)
        if not len(starts):
            return
        self.parts.append((key[starts], lengths, np.add.reduceat(value, starts)))
        self.waiting += len(starts)
        if self.waiting > self.capacity // 4:
            self.merge()

    def merge(self) -> None:
        columns = [np.concatenate(c) for c in zip((self.key, self.count, self.sum), *self.parts, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        key, count, total = (c[order] for c in columns)
        starts, _ = runs(key)
        if len(starts):
            self.key, self.count, self.sum = key[starts], np.add.reduceat(count, starts), np.add.reduceat(total, starts)
        self.parts, self.waiting = [], 0
        if len(self.key) > self.capacity:
            self._prune()

    def _prune(self) -> None:
        feature = self.key // self.d_vocab
        order = np.lexsort((-self.count, feature))
        starts, lengths = runs(feature[order])
        nth = np.empty(len(order), np.int64)
        nth[order] = np.arange(len(order)) - np.repeat(starts, lengths)
        cut = np.partition(self.count, len(self.count) - self.capacity // 2)[len(self.count) - self.capacity // 2]
        stays = (nth < self.keep) | (self.count >= cut)
        self.lost += int(self.count[~stays].max(initial=0))
        self.key, self.count, self.sum = self.key[stays], self.count[stays], self.sum[stays]

    def result(self, d_sae: int) -> dict[str, np.ndarray]:
        """The `keep` most frequent tokens of each latent (ties to the smaller id), and of all its tokens how many there are
        and how many make up half of its firings."""
        self.merge()
        feature, token = self.key // self.d_vocab, self.key % self.d_vocab
        order = np.lexsort((token, -self.count, feature))
        feature, token, count, total = feature[order], token[order], self.count[order], self.sum[order]
        starts, lengths = runs(feature)
        nth = np.arange(len(feature)) - np.repeat(starts, lengths)
        n_tokens, n_half = np.zeros(d_sae, np.int64), np.zeros(d_sae, np.int64)
        ids = np.full((d_sae, self.keep), -1, np.int32)
        counts, sums = np.zeros((d_sae, self.keep), np.int64), np.zeros((d_sae, self.keep))
        if len(feature):
            running = np.cumsum(count)
            before = np.repeat(running[starts] - count[starts], lengths)
            all_of = np.repeat(np.add.reduceat(count, starts), lengths)
            n_tokens[feature[starts]] = lengths
            n_half += np.bincount(feature[(running - before - count) * 2 < all_of], minlength=d_sae)
            first = nth < self.keep
            ids[feature[first], nth[first]], counts[feature[first], nth[first]] = token[first], count[first]
            sums[feature[first], nth[first]] = total[first]
        return {"id": ids, "count": counts, "sum": sums, "n_tokens": n_tokens, "n_half": n_half}


class RoleCounts:
    """Firings and their summed activation per (latent, role), beside the rows of each role."""

    def __init__(self, d_sae: int, n_roles: int):
        self.count, self.sum = np.zeros((d_sae, n_roles), np.int64), np.zeros((d_sae, n_roles))
        self.rows = np.zeros(n_roles, np.int64)

    def add(self, feature: np.ndarray, value: np.ndarray, role: np.ndarray, rows: np.ndarray) -> None:
        """`role` [firing] is that of each firing's row; `rows` [n_roles] how many rows of each role were read."""
        key, n = feature.astype(np.int64) * len(self.rows) + role, self.count.size
        self.count += np.bincount(key, minlength=n).reshape(self.count.shape)
        self.sum += np.bincount(key, value.astype(np.float64), n).reshape(self.sum.shape)
        self.rows += rows


class WordsBeside:
    """The correlation, over pictures, of a latent's strongest activation in each with every frequent word of the texts beside
    them. A picture in which it is silent counts as 0.

    Memory: 4 bytes x (latents + pictures) x at most `most` words.
    """

    def __init__(self, d_sae: int, texts: Sequence[str], most: int = 512, least: int = 3):
        sets = [set(re.findall(r"[^\W_]+", text.lower())) for text in texts]
        counts = Counter(word for words in sets for word in words)
        frequent = [w for w, n in counts.most_common() if least <= n <= len(texts) - least]
        self.words, self.n = sorted(frequent[:most]), len(texts)
        self.present = np.array([[word in words for word in self.words] for words in sets], np.float32)
        self.present = self.present.reshape(self.n, len(self.words))
        self.cross = np.zeros((d_sae, len(self.words)), np.float32)
        self.sum, self.square = np.zeros(d_sae), np.zeros(d_sae)

    def add(self, feature: np.ndarray, context: np.ndarray, value: np.ndarray, first: int, n: int) -> None:
        """`value` [firing] is the strongest of a latent in a context of the `n` from `first` on."""
        if not self.words:
            return
        strongest = np.zeros((n, len(self.sum)), np.float32)
        strongest[context - first, feature] = value
        self.cross += strongest.T @ self.present[first : first + n]
        self.sum += strongest.sum(0, dtype=np.float64)
        self.square += np.square(strongest, dtype=np.float64).sum(0)

    def result(self) -> np.ndarray:
        """float64 [d_sae words]: correlations; 0 where a latent never or always fires alike."""
        share, mean = self.present.mean(0, dtype=np.float64), self.sum / max(self.n, 1)
        spread = np.sqrt(np.maximum(self.square / max(self.n, 1) - mean**2, 0))
        covariance = self.cross / max(self.n, 1) - mean[:, None] * share
        scale = spread[:, None] * np.sqrt(share * (1 - share))
        return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12)

    @property
    def chance(self) -> float:
        """The largest correlation with any of so many words that fewer than one in twenty latents of no meaning exceed."""
        return float(np.sqrt(2 * np.log(20 * max(1, len(self.words))) / max(1, self.n)))


def start_bins(codes: Codes, low: int) -> tuple[np.ndarray, np.ndarray]:
    """(histogram bin, half octave) of each firing."""
    found = bins(codes.value, low)
    return found, found // BINS_PER_BAND
