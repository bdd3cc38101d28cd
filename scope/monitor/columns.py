"""The readouts that a monitor is chosen from, and those of its nulls: fitted to the training texts, then run over all texts.

A readout is a column: for the true labels or for shuffled ones, for a setting and an aggregation, with or without each fold of
the training texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope.models.face import LanguageModel
from scope.monitor import linear
from scope.monitor.labelled import Labelled, MonitorError
from scope.monitor.monitor import Choice
from scope.monitor.reading import Read, activations
from scope.monitor.scorer import aggregate
from scope.monitor.statistics import auc
from scope.null_seeds import generator, null_seed
from scope.progress import OnProgress
from scope.sae.base import SAE
from scope.shapes import Acts

AGGREGATIONS = ("max", "mean", "last")
FOLDS = 3
_RIDGES = (1e-3, 1e-2, 1e-1)
_COUNTS = (1, 4, 16)
_HELD = 512 * 2**20
"""Bytes of training activations that are held in memory; what exceeds them is read twice."""


@dataclass(frozen=True, kw_only=True)
class How:
    """How a monitor is fitted."""

    method: str
    site: str
    latents: tuple[int, ...] | None = None
    """Latents to read; None: those that tell the training texts apart best."""
    direction: tuple[float, ...] | None = None
    direction_name: str | None = None
    aggregation: str | None = None
    """max, mean or last; None: the one that is best on training texts left out in turn."""
    fpr: float = 0.05
    nulls: int = 10
    seed: int = 0
    chat: bool = False
    context: int | None = None


@dataclass(frozen=True)
class Column:
    """One readout: for which labels, by which setting, without which fold of the training texts."""

    labels: int
    """0: the true ones; then the shuffled ones; below 0 the true ones with latents drawn at random."""
    aggregation: str
    setting: float | None
    fold: int | None


@dataclass(frozen=True)
class Fitted:
    """Readouts [feature column] of some features, and the scores [text column] of each text."""

    columns: list[Column]
    features: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    scores: np.ndarray
    random: dict[str, np.ndarray]
    """Aggregation -> scores [text draw] of random directions."""

    def at(self, column: Column) -> int:
        return self.columns.index(column)


def rng_of(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng(null_seed(f"{name} of a monitor", seed))


def _pooled(acts: Tensor) -> dict[str, np.ndarray]:
    return {how: aggregate(acts, how).cpu().numpy() for how in AGGREGATIONS}


def fit_columns(
    model: LanguageModel,
    data: Labelled,
    how: How,
    sae: SAE | None,
    reads: Sequence[Read],
    train: np.ndarray,
    folds: np.ndarray,
    on_progress: OnProgress | None,
) -> Fitted:
    """Read the training texts, fit every column to them, then score all texts with every column."""
    done = 0
    total = sum(len(read.ids) for read in reads)

    def progress(n: int, of: int, numbers: dict[str, Any]) -> None:
        if on_progress:
            on_progress(min(done + n, total), total, {})

    held: dict[int, Acts] = {}
    designs: dict[str, Any] = {name: [None] * len(train) for name in AGGREGATIONS}
    row_of, room = {int(i): row for row, i in enumerate(train)}, _HELD
    for n, acts in activations(model, how.site, [reads[i] for i in train], progress):
        if (room := room - acts.nbytes) > 0:
            held[int(train[n])] = acts.cpu()
        read = acts if sae is None or how.method != "latents" else sae.encode(acts.to(sae.W_enc.device)).detach()
        for name, values in _pooled(read).items():
            designs[name][row_of[int(train[n])]] = _sparse(values) if how.method == "latents" else values
    done = sum(len(reads[i].ids) for i in held)
    x = {name: _stacked(rows) for name, rows in designs.items()}
    if how.method in ("probe", "difference"):
        x["max"] = x["mean"]  # a token that stands out is found by the direction that the means differ along
    columns, features, weights, bias = _all_columns(how, data.labels[train], folds, x)

    w, b = torch.tensor(weights, dtype=torch.float32), torch.tensor(bias, dtype=torch.float32)
    ids = torch.tensor(features)
    scores = np.zeros((len(reads), len(columns)), dtype=np.float32)
    by = {name: np.array([i for i, c in enumerate(columns) if c.aggregation == name], dtype=int) for name in AGGREGATIONS}
    width = model.sites()[how.site]
    directions = torch.randn(width, how.nulls, generator=generator("random directions of a monitor", how.seed))
    random = {name: np.zeros((len(reads), how.nulls)) for name in AGGREGATIONS}

    def score(text: int, acts: Acts) -> None:
        acts = acts.cpu()
        read = acts if how.method != "latents" or sae is None else sae.encode(acts.to(sae.W_enc.device)).detach().cpu()[:, ids]
        each, null = read @ w + b, acts @ directions
        for name in AGGREGATIONS:
            scores[text, by[name]] = aggregate(each[:, by[name]], name).numpy()
            random[name][text] = aggregate(null, name).numpy()

    for text, acts in held.items():
        score(text, acts)
    rest = [i for i in range(len(reads)) if i not in held]
    for n, acts in activations(model, how.site, [reads[i] for i in rest], progress):
        score(rest[n], acts)
    return Fitted(columns, features, weights, bias, scores, random)


def _sparse(values: np.ndarray) -> Any:
    from scipy.sparse import csr_matrix

    return csr_matrix(values)


def _stacked(rows: list[Any]) -> Any:
    """Rows of numbers as a matrix, in float64; sparse ones stay sparse."""
    if isinstance(rows[0], np.ndarray):
        return np.stack(rows).astype(float)
    from scipy.sparse import vstack

    return vstack(rows).tocsr().astype(float)


def _all_columns(
    how: How, labels: np.ndarray, folds: np.ndarray, x: dict[str, Any]
) -> tuple[list[Column], np.ndarray, np.ndarray, np.ndarray]:
    """(columns, features that they read, weights [feature column], bias [column])."""
    shuffles = [labels, *(rng_of(f"labels shuffled {n}", how.seed).permutation(labels) for n in range(how.nulls))]
    settings: Sequence[float | None] = {"probe": _RIDGES, "latents": _COUNTS if how.latents is None else (None,)}.get(
        how.method, (None,)
    )
    aggregations = AGGREGATIONS if how.aggregation is None else (how.aggregation,)
    columns = [
        Column(s, a, setting, fold)
        for a, s, setting, fold in product(aggregations, range(len(shuffles)), settings, [None, *range(FOLDS)])
    ]
    if how.method == "latents":
        columns += [Column(-1 - r, a, s, None) for a, r, s in product(aggregations, range(how.nulls), settings)]
    y = {a: np.stack([shuffles[max(c.labels, 0)] for c in columns if c.aggregation == a], 1) for a in aggregations}
    used = {
        a: np.stack([folds != (-1 if c.fold is None else c.fold) for c in columns if c.aggregation == a], 1)
        for a in aggregations
    }
    by = {a: [c for c in columns if c.aggregation == a] for a in aggregations}
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    if how.method == "latents":
        choice = {a: _latents_of(how, by[a], x[a], y[a], used[a]) for a in aggregations}
        features = np.array(sorted({i for rows in choice.values() for row in rows for i in row}), dtype=int)
        place = {int(f): n for n, f in enumerate(features)}
        for a in aggregations:
            allowed = np.zeros((len(features), len(by[a])), dtype=bool)
            for n, row in enumerate(choice[a]):
                allowed[[place[i] for i in row], n] = True
            parts.append(_latent_columns(x[a][:, features].toarray(), y[a], used[a], allowed))
    else:
        features = np.arange(x["mean"].shape[1])
        for a in aggregations:
            again = next((n for n, b in enumerate(aggregations[: len(parts)]) if x[b] is x[a]), None)
            parts.append(_vector_columns(how, by[a], x[a], y[a], used[a]) if again is None else parts[again])
    order = [c for a in aggregations for c in by[a]]
    weights, bias = np.concatenate([w for w, _ in parts], 1), np.concatenate([b for _, b in parts])
    if not weights[:, [i for i, c in enumerate(order) if c.labels == 0 and c.fold is None]].any():
        which = "these latents" if how.latents else "no latent of this SAE"
        raise MonitorError(
            f"On the training texts {which} never fire{'s' if not how.latents else ''}, so there is nothing to read."
        )
    return order, features, weights, bias


def _latents_of(how: How, columns: list[Column], x: Any, y: np.ndarray, used: np.ndarray) -> list[list[int]]:
    """The latents that each column may read: those that were named, those that lie furthest apart on the texts that the column
    is fitted to, or for a null as many at random of those that fire."""
    firing = np.flatnonzero(np.asarray((x != 0).sum(0)).ravel() >= 2)
    apart = np.abs(linear.separation(x, y, used)) if how.latents is None else None
    rows = []
    for n, column in enumerate(columns):
        k = int(column.setting) if column.setting is not None else len(how.latents or ())
        if column.labels < 0:
            rng = rng_of(f"latents drawn {-column.labels} of {column.setting}", how.seed)
            row = rng.choice(firing, min(k, len(firing)), replace=False) if len(firing) else []
        elif apart is None:
            row = how.latents or ()
        else:
            row = np.argsort(-apart[:, n], kind="stable")[:k]
        rows.append([int(i) for i in row])
    return rows


def _latent_columns(x: np.ndarray, y: np.ndarray, used: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logistic weights of latents, in units of each one's spread; of a single latent its sign alone, so that the score is the
    activation."""
    spread = x.std(0)
    scale = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0)[:, None]
    w, b = linear.logistic(x * scale.T, y, linear.balanced(y, used), np.full(y.shape[1], 1e-2), allowed)
    w = w * scale
    single = allowed.sum(0) == 1
    w[:, single], b[single] = np.sign(w[:, single]), 0.0
    return w, b


def _vector_columns(
    how: How, columns: list[Column], x: np.ndarray, y: np.ndarray, used: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if how.method == "difference":
        return linear.means_apart(x, y, used)
    if how.method == "direction":
        vector = np.array(how.direction, dtype=float)
        vector /= np.linalg.norm(vector)
        sides = np.sign(linear.means_apart((x @ vector)[:, None], y, used)[0][0])
        return vector[:, None] * np.where(sides == 0, 1, sides), np.zeros(len(columns))
    centre, spread = x.mean(0), x.std(0)
    scale = np.where(spread > 1e-8, 1 / np.where(spread > 1e-8, spread, 1), 0)[:, None]
    ridge = np.array([c.setting for c in columns], dtype=float)
    w, b = linear.logistic((x - centre) * scale.T, y, linear.balanced(y, used), ridge)
    w = w * scale
    return w, b - centre @ w


def choose(
    fitted: Fitted, data: Labelled, train: np.ndarray, folds: np.ndarray, labels: int, shuffled: np.ndarray | None = None
) -> tuple[Column, tuple[Choice, ...]]:
    """The column, fitted to all training texts, whose setting is best on training texts left out in turn."""
    y = data.labels[train] if shuffled is None else shuffled
    finals = [c for c in fitted.columns if c.labels == labels and c.fold is None]

    def left_out(column: Column) -> float:
        values = []
        for fold in range(FOLDS):
            place = fitted.at(Column(labels, column.aggregation, column.setting, fold))
            value, _ = auc(fitted.scores[train[folds == fold], place], y[folds == fold])
            values.append(0.5 if np.isnan(value) else value)
        return float(np.mean(values))

    rated = [(c, left_out(c)) for c in finals]
    best = max(rated, key=lambda pair: round(pair[1], 6))[0]
    return best, tuple(Choice(aggregation=c.aggregation, setting=c.setting, auc=value, chosen=c == best) for c, value in rated)


def context_of(model: LanguageModel, how: How) -> int:
    return min(how.context or model.cfg.n_ctx, model.cfg.n_ctx)
