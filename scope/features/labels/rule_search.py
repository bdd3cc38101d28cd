"""The search for the rule that best predicts where a latent fires.

Half of the contexts choose: for every property, and for pairs of them, the values (at most MOST_VALUES) that together have the
best F1 of "fires exactly where the rule holds" are added one by one, and the best of all rules is taken. The other half of the
contexts score it. How often a rule holds is counted over the whole text; on how many firings, in the sample of the latent's
firings that the pack keeps.

Beside each score stand that of the best single token, found and scored in the same way, and the null: the same search for the
same number of firings at positions drawn uniformly, as if the activations were shuffled over the text.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scope.features.labels.properties import Property, TextProperties
from scope.features.labels.rules import Rule
from scope.null_seeds import null_seed
from scope.progress import OnProgress

MOST_VALUES = 16
_PER_VALUE, _PER_PROPERTY = 0.003, 0.01
"""Rise of F1 that a further value, and a second property, must bring."""
_LEAST_SHARE = 0.004
_BLOCK = 8192
"""Latents whose samples are looked up at once."""

SINGLE = (
    "token",
    "class",
    "ending",
    "previous token",
    "token before the previous",
    "next token",
    "previous class",
    "word before",
    "beginning of the word",
    "place in the line",
    "beginning of the line",
    "place in the context",
    "domain",
    "inside",
)
PAIRS = (
    *[("token", other) for other in ("class", "previous class", "next class", "class before the previous", "domain")],
    *[("token", other) for other in ("place in the line", "indentation", "repetition", "bracket", "inside")],
    *[("token", other) for other in ("previous token", "next token", "word before")],
    *[("class", other) for other in ("previous class", "next class", "previous token", "ending", "word before", "domain")],
    *[("class", other) for other in ("place in the line", "beginning of the word", "bracket")],
    ("previous token", "token before the previous"),
    ("previous token", "domain"),
    ("ending", "previous class"),
)


@dataclass(frozen=True)
class RuleScore:
    """A rule with its F1 on the half that chose it and on the other, beside the best single token's and the null's on the
    latter; None where nothing was found."""

    rule: Rule | None
    chosen: float
    score: float
    single_token: float
    null: float
    firings: int
    """Sampled firings of the half that scores."""


@dataclass(eq=False)
class _Sample:
    """Sampled firings of some latents in the two halves: the row of each firing's latent and its position."""

    rows: tuple[np.ndarray, np.ndarray]
    places: tuple[np.ndarray, np.ndarray]
    n: np.ndarray
    """Float[2 latents] sampled firings."""
    weight: np.ndarray
    """Float[latents] firings that a sampled one stands for."""


def half_of(places: np.ndarray, n_ctx: int) -> np.ndarray:
    """0 or 1: in which half of the text the context of a position lies."""
    return ((places // n_ctx).astype(np.int64) * 2654435761 >> 16) & 1


def search_rules(
    text: TextProperties,
    firings: np.ndarray,
    count: np.ndarray,
    promoted: np.ndarray | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> list[RuleScore]:
    """The best rule of each latent.

    Args:
        firings: Int[latents n] positions of firings drawn uniformly from all; -1 is an empty place.
        count: Int[latents] all firings.
        promoted: Int[latents k] ids of the tokens that each promotes; -1 is an empty place.
    """
    firings = np.where(firings < len(text.ids), firings, -1)
    blocks = [slice(a, a + _BLOCK) for a in range(0, len(firings), _BLOCK)]
    drawn = np.random.default_rng(null_seed("rules of shuffled activations", seed))
    counted = np.flatnonzero(text.counted)
    searches = []
    for block in blocks:
        real = firings[block]
        none = np.where(real >= 0, drawn.choice(counted, real.shape) if len(counted) else -1, -1)
        searches.append((_Search(text, real, count[block]), _Search(text, none, count[block])))
    candidates = [(name,) for name in SINGLE] + list(PAIRS)
    for number, names in enumerate(candidates):
        _try(text, names, searches, None if promoted is None or names != ("next token",) else promoted, blocks)
        if on_progress:
            on_progress(number + 1, len(candidates), {})
    return [score for real, null in searches for score in _results(text, real, null)]


class _Search:
    """The best rule so far of each latent of a block."""

    def __init__(self, text: TextProperties, firings: np.ndarray, count: np.ndarray):
        n = len(firings)
        halves, there = half_of(firings, text.n_ctx), firings >= 0
        masks = [there & (halves == half) for half in (0, 1)]
        self.sample = _Sample(
            rows=tuple(np.nonzero(mask)[0] for mask in masks),
            places=tuple(firings[mask] for mask in masks),
            n=np.array([mask.sum(1) for mask in masks], float),
            weight=np.maximum(count, 1) / np.maximum(there.sum(1), 1),
        )
        self.rank, self.chosen, self.score, self.single = (np.zeros(n) for _ in range(4))
        self.names = np.full(n, None, object)
        self.values = np.full(n, None, object)

    def take(self, names: tuple[str, ...], f1: np.ndarray, held_out: np.ndarray, sets: np.ndarray, value_of, kind: str) -> None:
        """Keep, of each latent, the rule of `sets` [latents most] (numbers of values, -1 none) where it ranks higher."""
        rank = f1 - _PER_PROPERTY * (len(names) - 1)
        better = np.flatnonzero(rank > self.rank)
        self.rank[better], self.chosen[better], self.score[better] = rank[better], f1[better], held_out[better]
        for i in better.tolist():
            self.names[i] = (names, kind)
            self.values[i] = value_of(sets[i][sets[i] >= 0])


def _try(text: TextProperties, names: tuple[str, ...], searches, promoted: np.ndarray | None, blocks) -> None:
    """Let the rules of one property, or of two together, compete in all searches."""
    columns = [text[name] for name in names]
    values, size, value_of = _joint(columns, [s.sample for pair in searches for s in pair])
    half = half_of(np.arange(len(values)), text.n_ctx)
    stood = [np.bincount(values[text.counted & (values >= 0) & (half == h)], minlength=size) for h in (0, 1)]
    for block, pair in zip(blocks, searches, strict=True):
        for search in pair:
            sample = search.sample
            f1, sets = _best_sets(sample, values, stood[0], size, MOST_VALUES)
            search.take(names, f1, _f1(sample, 1, values, stood[1], sets), sets, value_of, "")
            if names == ("token",):
                _, one = _best_sets(sample, values, stood[0], size, 1)
                search.single = _f1(sample, 1, values, stood[1], one)
        if promoted is not None:
            search = pair[0]
            sets = _numbers_of(text, promoted[block], columns[0])
            f1 = _f1(search.sample, 0, values, stood[0], sets)
            search.take(names, f1, _f1(search.sample, 1, values, stood[1], sets), sets, value_of, "promoted")


def _numbers_of(text: TextProperties, ids: np.ndarray, column: Property) -> np.ndarray:
    """Numbers of folded tokens by id; each once a row."""
    by_id, _ = text.folded
    numbers = np.sort(np.where(ids >= 0, by_id[np.maximum(ids, 0)], -1), 1)
    numbers[:, 1:][numbers[:, 1:] == numbers[:, :-1]] = -1
    return numbers.astype(np.int64)


def _joint(columns: list[Property], samples: list[_Sample]):
    """(Int[tokens] numbers of the values of one property or of two together, how many there are, number -> names). Of pairs of
    values only those on which some latent fires have a number."""
    if len(columns) == 1:
        column = columns[0]
        return column.values, len(column.names), lambda numbers: tuple((column.names[i],) for i in numbers.tolist())
    one, two = columns
    width = len(two.names)
    keys = np.where((one.values >= 0) & (two.values >= 0), one.values.astype(np.int64) * width + two.values, -1)
    known = np.unique(np.concatenate([np.unique(keys[sample.places[0]]) for sample in samples]))
    known = known[known >= 0]
    if not len(known):
        return np.full(len(keys), -1, np.int64), 0, lambda numbers: ()
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    values = np.where(known[at] == keys, at, -1)

    def names(numbers: np.ndarray) -> tuple[tuple[str, str], ...]:
        return tuple((one.names[k // width], two.names[k % width]) for k in known[numbers].tolist())

    return values, len(known), names


def _best_sets(sample: _Sample, values: np.ndarray, stood: np.ndarray, size: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """([latents] best F1 on the choosing half, [latents most] numbers of the values that reach it)."""
    n_latents = len(sample.weight)
    f1, sets = np.zeros(n_latents), np.full((n_latents, most), -1, np.int64)
    found = values[sample.places[0]]
    here = found >= 0
    keys, hits = np.unique(sample.rows[0][here] * max(size, 1) + found[here], return_counts=True)
    rows, value = keys // max(size, 1), keys % max(size, 1)
    enough = hits >= np.maximum(2, _LEAST_SHARE * sample.n[0][rows])
    rows, value, hits = rows[enough], value[enough], hits[enough].astype(float)
    if not len(rows):
        return f1, sets
    costs = stood[value] / sample.weight[rows]
    hits = np.minimum(hits, costs)  # a value cannot be fired on more often than it stands
    starts = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]])
    lengths, of_row = np.diff(np.r_[starts, len(rows)]), rows[starts]
    total, cost, free = np.zeros(n_latents), np.zeros(n_latents), np.ones(len(rows), bool)
    for k in range(most):
        after = np.where(free, 2 * (total[rows] + hits) / (sample.n[0][rows] + cost[rows] + costs), -1.0)
        best = np.maximum.reduceat(after, starts)
        gains = best > f1[of_row] + (_PER_VALUE if k else 0)
        if not gains.any():
            break
        at = np.flatnonzero(after == np.repeat(best, lengths))
        at = at[np.r_[True, rows[at][1:] != rows[at][:-1]]][gains]
        which = rows[at]
        total[which] += hits[at]
        cost[which] += costs[at]
        f1[which], sets[which, k], free[at] = after[at], value[at], False
        free &= np.repeat(gains, lengths)
    return f1, sets


def _f1(sample: _Sample, half: int, values: np.ndarray, stood: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """[latents] F1, on one half, of the rules that hold where the value is in a latent's set."""
    found, rows = values[sample.places[half]], sample.rows[half]
    size = len(stood) + 1
    wanted = np.sort((np.arange(len(sets))[:, None] * size + sets)[sets >= 0])
    keys = (rows * size + found)[found >= 0]
    at = np.minimum(np.searchsorted(wanted, keys), max(len(wanted) - 1, 0))
    inside = wanted[at] == keys if len(wanted) else np.zeros(len(keys), bool)
    hits = np.bincount(rows[found >= 0][inside], minlength=len(sets))
    cost = np.where(sets >= 0, stood[np.maximum(sets, 0)] if len(stood) else 0, 0).sum(1) / sample.weight
    both = sample.n[half] + cost
    return np.divide(2 * np.minimum(hits, cost), both, out=np.zeros(len(sets)), where=both > 0)


def _results(text: TextProperties, real: _Search, null: _Search) -> Iterator[RuleScore]:
    for i in range(len(real.rank)):
        names, kind = real.names[i] or ((), "")
        rule = Rule(names, real.values[i], promoted=kind == "promoted") if names else None
        yield RuleScore(
            rule=rule,
            chosen=float(real.chosen[i]),
            score=float(real.score[i]),
            single_token=float(real.single[i]),
            null=float(null.score[i]),
            firings=int(real.sample.n[1, i]),
        )
