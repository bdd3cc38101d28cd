"""Readouts fitted many at once are what each would be alone."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from scope.monitor.linear import balanced, logistic, means_apart, separation

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 4))
Y = np.stack([X[:, 0] + 0.5 * RNG.normal(size=30) > 0, X[:, 1] > 0.3], 1)
USED = np.stack([np.ones(30, bool), np.arange(30) % 3 > 0], 1)


def test_at_the_minimum_the_gradient_is_zero_and_unused_texts_change_nothing():
    weights, ridge = balanced(Y, USED), np.array([0.1, 0.01])
    w, b = logistic(X, Y, weights, ridge)
    signs = np.where(Y, 1, -1)
    slope = -weights * signs / (1 + np.exp(signs * (X @ w + b)))
    assert np.abs(X.T @ slope + ridge * w).max() < 2e-5
    other = X.copy()
    other[~USED[:, 1]] = 9.0
    assert logistic(other, Y, weights, ridge)[0][:, 1] == pytest.approx(w[:, 1], abs=1e-3)
    assert weights.sum(0) == pytest.approx([1, 1])


def test_more_features_than_texts_sparse_matrices_and_forbidden_features():
    wide = RNG.normal(size=(30, 50))
    weights, ridge = balanced(Y, USED), np.array([0.1, 0.1])
    alone = logistic(wide, Y, weights, ridge, np.ones((50, 2), bool))  # without the shorter way
    for other in (logistic(wide, Y, weights, ridge), logistic(csr_matrix(wide), Y, weights, ridge)):
        assert other[0] == pytest.approx(alone[0], abs=1e-3)
    allowed = np.zeros((50, 2), bool)
    allowed[[3, 7], :] = True
    assert np.flatnonzero(logistic(wide, Y, weights, ridge, allowed)[0][:, 0]).tolist() == [3, 7]


def test_means_apart_and_separation_use_the_texts_of_their_column_alone():
    w, _ = means_apart(X, Y, USED)
    for column in (0, 1):
        use, y = USED[:, column], Y[:, column]
        assert w[:, column] == pytest.approx(X[use & y].mean(0) - X[use & ~y].mean(0))
    apart = separation(X, Y, USED)
    assert np.abs(apart).argmax(0).tolist() == [0, 1]
    assert separation(csr_matrix(X), Y, USED) == pytest.approx(apart)
