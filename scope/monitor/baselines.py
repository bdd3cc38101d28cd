"""Baselines of a monitor: the words of a text, and its length. Both are fitted to the same training texts."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from scope.monitor.linear import balanced, logistic
from scope.monitor.statistics import Labels, Scores, auc

RIDGES = (1e-4, 1e-3, 1e-2)
"""Ridges that are tried, by training texts left out in turn."""


def bag_of_words(tokens: Sequence[Sequence[int]], labels: Labels, train: np.ndarray, folds: np.ndarray) -> Scores:
    """A logistic regression on log(1 + count) of each token that at least two training texts hold; a score for each text.
    `folds` gives a number for each training text, by which the ridge is chosen."""
    from scipy.sparse import csr_matrix

    counts = [Counter(ids) for ids in tokens]
    spread = Counter(token for i in train for token in counts[i])
    column = {token: j for j, token in enumerate(sorted(token for token, n in spread.items() if n > 1))}
    cells = [(i, column[t], np.log1p(n)) for i, c in enumerate(counts) for t, n in c.items() if t in column]
    rows, columns, values = (np.array(part) for part in zip(*cells, strict=True)) if cells else (np.zeros(0, int),) * 3
    x = csr_matrix((values.astype(float), (rows, columns)), shape=(len(tokens), max(1, len(column))))
    parts = [None, *np.unique(folds)]
    used = np.array([[True] * len(train) if part is None else folds != part for part in parts]).T
    used = np.tile(used, len(RIDGES))
    y = np.tile(labels[train][:, None], used.shape[1])
    w, b = logistic(x[train], y, balanced(y, used), np.repeat(RIDGES, len(parts)))
    scores = np.asarray(x @ w) + b

    def left_out(ridge: int) -> float:
        values = [
            auc(scores[train[folds == part], ridge * len(parts) + n], labels[train[folds == part]])[0]
            for n, part in enumerate(parts[1:], 1)
        ]
        return float(np.mean(values))

    best = max(range(len(RIDGES)), key=left_out)
    return scores[:, best * len(parts)]


def length(tokens: Sequence[Sequence[int]], labels: Labels, train: np.ndarray) -> Scores:
    """The number of tokens, or its negative, whichever speaks for the positive label on the training texts."""
    n = np.array([len(ids) for ids in tokens], dtype=float)
    return n if auc(n[train], labels[train])[0] >= 0.5 else -n
