"""Streams give the same whatever the order and size of the pieces."""

import numpy as np
import pytest

from scope.features.collect.codes import Codes, priority
from scope.features.collect.streams import Entries, Shortlist, TokenCounts, order_by


def entries(n: int, groups: int, seed: int, narrow: bool) -> Entries:
    rng = np.random.default_rng(seed)
    rank = rng.integers(0, 50 if narrow else 1 << 63, n).astype(np.uint64)
    return Entries(
        rng.integers(0, groups, n),
        rank,
        rng.permutation(n).astype(np.int64),
        rng.random(n).astype(np.float32),
        rng.integers(0, 40, n).astype(np.uint64),
    )


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("unique", [True, False])
def test_a_shortlist_is_exact_in_any_order_of_arrival(narrow, unique):
    every = entries(3000, 7, 0, narrow)
    expected = []
    for g in range(7):
        rows = sorted(np.flatnonzero(every.group == g), key=lambda i: (every.rank[i], every.position[i]))
        seen: set[int] = set()
        kept = [i for i in rows if not (unique and every.twin[i] in seen) and not seen.add(int(every.twin[i]))]
        expected += [int(every.position[i]) for i in kept[:5]]
    for order in (np.arange(3000), np.random.default_rng(1).permutation(3000)):
        some = Shortlist(7, 5, unique=unique, buffer=100)
        for part in np.array_split(order, 23):
            some.add(every[part])
        assert some.result().position.tolist() == expected


def test_priorities_draw_uniformly():
    drawn = np.sort(priority(np.full(20000, 3), np.arange(20000), seed=0)[:]) / 2.0**64
    assert np.abs(drawn - np.linspace(0, 1, 20000)).max() < 0.02
    assert (priority(np.array([1]), np.array([5]), 0) != priority(np.array([1]), np.array([5]), 1)).all()


def test_token_counts_beyond_capacity_state_their_error():
    rng = np.random.default_rng(0)
    exact, small = TokenCounts(1000, 4), TokenCounts(1000, 4, capacity=400)
    for k in range(20):
        feature = np.sort(rng.integers(0, 5, 500)).astype(np.int32)
        tokens = np.minimum(rng.geometric(0.02, 500), 999)
        codes = Codes(feature, np.arange(500) + 500 * k, np.ones(500, np.float32))
        exact.add(codes, tokens)
        small.add(codes, tokens)
    right, rough = exact.result(5), small.result(5)
    assert exact.lost == 0
    assert small.lost > 0
    for f in range(5):
        true = dict(zip(right["id"][f].tolist(), right["count"][f].tolist(), strict=True))
        for token, count in zip(rough["id"][f].tolist(), rough["count"][f].tolist(), strict=True):
            if token in true:
                assert true[token] - small.lost <= count <= true[token]


@pytest.mark.parametrize("largest", [200, 1 << 16, 1 << 20])
def test_an_order_by_radix_is_the_stable_one(largest):
    rng = np.random.default_rng(largest)
    first, second = rng.integers(0, largest, (2, 5000)).astype(np.int32)
    assert (order_by(first, second) == np.lexsort((second, first))).all()
    assert order_by(first[:0], second[:0]).tolist() == []
