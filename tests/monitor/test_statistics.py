"""AUC, its interval, thresholds, rates and calibration, where the answer is known."""

import math

import numpy as np
import pytest

from scope.monitor.statistics import (
    Rate,
    auc,
    auc_interval,
    calibration,
    difference_interval,
    half_width,
    right_alarms,
    standard_error,
    threshold_at,
)

LABELS = np.array([True, True, True, False, False, False, False])
SCORES = np.array([3.0, 2.0, 1.0, 2.0, 1.5, 0.0, 0.0])


def test_auc_counts_pairs_and_ties_as_half():
    assert auc(SCORES, LABELS)[0] == pytest.approx((4 + 3.5 + 2) / 12)


def test_the_standard_error_is_that_of_delong():
    rng = np.random.default_rng(0)
    labels = rng.random(200) < 0.4
    scores = rng.normal(size=200) + labels
    positive, negative = scores[labels], scores[~labels]
    above = (positive[:, None] > negative[None]) * 1.0
    variance = above.mean(1).var(ddof=1) / len(positive) + above.mean(0).var(ddof=1) / len(negative)
    assert standard_error(auc(scores, labels)[1]) == pytest.approx(math.sqrt(variance), rel=0.02)


def test_texts_of_one_group_count_as_one():
    influence = np.array([0.1, 0.1, -0.1, -0.1])
    assert standard_error(influence, np.array([0, 0, 1, 1])) == pytest.approx(math.sqrt(0.08 * 2))
    assert standard_error(influence) == pytest.approx(math.sqrt(0.04 * 4 / 3))
    assert half_width(influence, np.array([0, 0, 1, 1])) == pytest.approx(12.706 * 0.4, rel=1e-3)
    assert half_width(influence, np.array([0, 1, 0, 1])) == half_width(influence)  # two groups that are alike by chance


@pytest.mark.parametrize("n", [10, 100])
def test_a_perfect_auc_has_an_interval_that_depends_on_how_many_texts_there_are(n):
    labels = np.arange(2 * n) % 2 == 0
    value, influence = auc(labels.astype(float), labels)
    interval = auc_interval(value, influence, labels)
    assert (value, interval.high) == (1.0, 1.0)
    assert interval.low == pytest.approx({10: 0.80, 100: 0.97}[n], abs=0.015)


def test_intervals_cover_the_true_auc_about_as_often_as_they_say():
    rng, inside = np.random.default_rng(1), 0
    labels = np.arange(80) % 2 == 0
    for _ in range(200):
        value, influence = auc(rng.normal(size=80) + labels, labels)
        interval = auc_interval(value, influence, labels)
        inside += interval.low < 0.7602 < interval.high  # the normal distribution at 1 / sqrt(2)
    assert inside >= 185


def test_detectors_that_rank_alike_are_not_told_apart():
    _, one = auc(SCORES, LABELS)
    assert difference_interval(0.0, one - auc(2 * SCORES, LABELS)[1]) is None


def test_at_most_the_chosen_share_of_negatives_exceeds_the_threshold():
    negatives = np.arange(100.0)
    for fpr in (0.01, 0.05, 0.29, 0.5):
        assert (negatives > threshold_at(negatives, fpr)).mean() == pytest.approx(fpr)
    ties = np.zeros(100)
    assert (ties > threshold_at(ties, 0.05)).sum() == 0


def test_a_rate_without_texts_has_no_interval():
    assert Rate.of(0, 0).interval is None
    rate = Rate.of(1, 100)
    assert (rate.interval.low, rate.interval.high) == pytest.approx((0.001767, 0.054486), abs=1e-4)


def test_exact_probabilities_have_the_calibration_error_of_chance_and_wrong_ones_more():
    rng = np.random.default_rng(2)
    probabilities = rng.random(2000)
    labels = rng.random(2000) < probabilities
    right = calibration(probabilities, labels, rng)
    assert right.error == pytest.approx(right.by_chance, abs=0.02)
    assert calibration(probabilities**3, labels, rng).error > 0.1
    assert sum(b.n for b in right.bins) == 2000


def test_rare_positives_make_most_alarms_wrong():
    assert right_alarms(0.9, 0.05, 0.5) == pytest.approx(0.947, abs=1e-3)
    assert right_alarms(0.9, 0.05, 0.001) == pytest.approx(0.0177, abs=1e-4)
    assert math.isnan(right_alarms(0.0, 0.0, 0.1))
