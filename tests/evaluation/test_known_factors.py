"""The benchmark of known factors: facts of patches are those of the world, and its AUCs are those of the definition."""

import numpy as np
import pytest
from scope.activations.scenes.scene import scene
from scope.activations.scenes.world import COLOURS, GRID

from tests.benchmarks.known_factors import aucs, best_column, facts, probe


def test_an_auc_counts_ties_half():
    values = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [1.0, 4.0]])
    positive = np.array([False, True, False, True])
    expected = [np.mean([np.sign(p - n) / 2 + 0.5 for p in v[positive] for n in v[~positive]]) for v in values.T]
    assert aucs(values, positive) == pytest.approx(expected)


def test_a_column_is_chosen_on_one_half_and_scored_on_the_other():
    rng = np.random.default_rng(0)
    positive, half = rng.random(2000) < 0.5, np.arange(2000) % 2 == 0
    noise = rng.standard_normal((2000, 20))
    fact = positive, np.ones(2000, bool)
    assert best_column(noise, fact, half, either_sign=True) == pytest.approx(0.5, abs=0.06)
    noise[:, 3] -= 2 * positive
    assert best_column(noise, fact, half, either_sign=True) > 0.85
    assert best_column(noise, fact, half, either_sign=False) < 0.6
    assert probe(noise, fact, half) > 0.85


def test_the_facts_of_a_patch_are_those_of_the_objects_on_it():
    s = scene(3, 5, counts=(2,))
    named = facts([s])
    covered, counts = named["is-object"]
    shares = s.covered.max(0)
    assert np.array_equal(covered, shares >= 0.35)
    assert not counts[(shares < 0.35) & (s.covered.sum(0) > 0.005)].any()
    for i, thing in enumerate(s.things):
        its = covered & (s.covered.argmax(0) == i)
        assert named[f"shape {thing.shape}"][0][its].all()
        assert named[f"colour {thing.colour}"][0][its].all()
        assert (named["size large"][0][its] == (thing.size == "large")).all()
    rows = np.arange(GRID**2) // GRID
    assert np.array_equal(named["row 2"][0], rows == 2)
    present = {thing.colour for thing in s.things}
    assert all(named[f"elsewhere {c}"][0].all() == (c in present) for c in COLOURS)
