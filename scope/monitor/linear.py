"""Linear readouts, many at once: one column for each set of labels, each part of the texts and each setting."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

Design = Any
"""[text feature], a numpy array or a sparse matrix of scipy."""
Columns = Float[np.ndarray, "text column"]
Weights = Float[np.ndarray, "feature column"]
Offsets = Float[np.ndarray, " column"]
Allowed = Bool[np.ndarray, "feature column"]


def balanced(labels: Bool[np.ndarray, "text column"], used: Bool[np.ndarray, "text column"]) -> Columns:
    """Weight of each text in each column: the two labels weigh the same, and texts that are not used nothing."""
    weights = np.zeros(labels.shape)
    for side in (labels & used, ~labels & used):
        weights += side * 0.5 / np.maximum(side.sum(0), 1)
    return weights


def logistic(
    x: Design, labels: Bool[np.ndarray, "text column"], weights: Columns, ridge: Offsets, allowed: Allowed | None = None
) -> tuple[Weights, Offsets]:
    """Logistic regressions: for each column the minimum of sum_i weights_i log(1 + exp(-y_i z_i)) + ridge |w|^2 / 2 over w and
    b, z = x w + b. A column may be `allowed` some features only. By L-BFGS over all columns, in float64.
    """
    from scipy.optimize import minimize

    n, d = x.shape
    basis = None
    if allowed is None and d > n and isinstance(x, np.ndarray):
        basis, r = np.linalg.qr(x.T)  # the minimum lies in the span of the texts
        x, d = r.T, n
    signs = np.where(labels, 1.0, -1.0)
    mask = 1.0 if allowed is None else allowed.astype(float)
    shape = (d + 1, labels.shape[1])

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = flat.reshape(shape)[:-1] * mask, flat.reshape(shape)[-1]
        margin = signs * (x @ w + b)
        value = (weights * np.logaddexp(0, -margin)).sum() + (ridge * w**2).sum() / 2
        slope = -weights * signs / (1 + np.exp(np.minimum(margin, 500)))
        gradient = np.vstack([(x.T @ slope + ridge * w) * mask, slope.sum(0)])
        return float(value), gradient.ravel()

    options = {"maxiter": 200, "gtol": 1e-5, "ftol": 1e-12, "maxcor": 10}
    best = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(shape)
    w = best[:-1] * mask
    return (w if basis is None else basis @ w), best[-1]


def means_apart(
    x: Design, labels: Bool[np.ndarray, "text column"], used: Bool[np.ndarray, "text column"]
) -> tuple[Weights, Offsets]:
    """Difference of the two means in each column."""
    apart = sum(x.T @ (side * sign / np.maximum(side.sum(0), 1)) for sign, side in ((1, labels & used), (-1, ~labels & used)))
    return np.asarray(apart), np.zeros(labels.shape[1])


def separation(x: Design, labels: Bool[np.ndarray, "text column"], used: Bool[np.ndarray, "text column"]) -> Weights:
    """How far each feature's two means lie apart, in standard errors, in each column; with its sign."""
    squares = x.multiply(x).tocsr() if hasattr(x, "multiply") else x * x
    apart, variance = 0.0, 0.0
    for sign, side in ((1, labels & used), (-1, ~labels & used)):
        n = np.maximum(side.sum(0), 1)
        mean = np.asarray(x.T @ side.astype(float)) / n
        apart = apart + sign * mean
        variance = variance + (np.asarray(squares.T @ side.astype(float)) / n - mean**2).clip(0) / n
    return apart / np.sqrt(variance + 1e-12)
