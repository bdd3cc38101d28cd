"""A game that tests a label: guess in which five of ten short texts the latent fires.

The answers are exact, without a model: what fires where is read from the activations that lie beside each example. Silent
texts are stretches of examples in which the latent stays silent at every token, near misses among them, so they come from
documents like those in which it fires.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from scope.errors import PackError
from scope.features.pack.feature import Example, Feature

LENGTH = 17
"""Tokens of a text."""
SHORTEST = 8
_ALL = 1000


@dataclass(frozen=True)
class Window:
    """A text of the game, and the answer: where the latent fires most, or None where it is silent throughout."""

    tokens: list[str]
    acts: list[float]
    peak: int | None


def draw_windows(feature: Feature, seed: int, n: int = 5) -> list[Window]:
    """2 n windows in random order, in n of which the latent fires, each from a context of its own.

    Firing ones come from the uniform sample of all its firings, not from its loudest.

    Raises:
        PackError: the pack holds too few examples of this latent for it, or none in which it is silent for long enough.
    """
    rng = np.random.default_rng(seed)
    used: set[int] = set()
    firing = _some(feature.examples("random", _ALL) or feature.examples("bands", _ALL), n, used, rng, lambda e: e.value > 0)
    pool = [example for group in ("near", "top", "bands", "random") for example in feature.examples(group, _ALL)]
    silent = _some(pool, n, used, rng, lambda e: _gap(e)[0] >= SHORTEST)
    if len(firing) < n or len(silent) < n:
        what = "fires in too few" if len(firing) < n else "is silent for long enough in too few"
        raise PackError(f"Latent {feature.id} {what} different contexts of this pack for a game.")
    length = min(LENGTH, *(_gap(example)[0] for example in silent))  # equal for all: length must not tell
    windows = [_around_peak(e, length, rng) for e in firing] + [_within_gap(e, length, rng) for e in silent]
    return [windows[i] for i in rng.permutation(len(windows))]


def _some(
    examples: list[Example], n: int, used: set[int], rng: np.random.Generator, fits: Callable[[Example], bool]
) -> list[Example]:
    """Up to n examples that fit, of contexts not used before."""
    found: list[Example] = []
    for i in rng.permutation(len(examples)):
        example = examples[i]
        if len(found) < n and example.context not in used and fits(example):
            used.add(example.context)
            found.append(example)
    return found


def _gap(example: Example) -> tuple[int, int]:
    """(length, start) of the longest stretch without a firing."""
    edges = [-1, *np.flatnonzero(example.acts > 0).tolist(), len(example.tokens)]
    return max((after - before - 1, before + 1) for before, after in pairwise(edges))


def _around_peak(example: Example, length: int, rng: np.random.Generator) -> Window:
    """The peak may stand anywhere in it: place must not tell either."""
    start = example.peak - int(rng.integers(length))
    return _window(example, max(0, min(start, len(example.tokens) - length)), length)


def _within_gap(example: Example, length: int, rng: np.random.Generator) -> Window:
    size, start = _gap(example)
    return _window(example, start + int(rng.integers(size - length + 1)), length)


def _window(example: Example, start: int, length: int) -> Window:
    acts = [float(a) for a in example.acts[start : start + length]]
    peak = int(np.argmax(acts))
    return Window(example.tokens[start : start + length], acts, peak if acts[peak] > 0 else None)
