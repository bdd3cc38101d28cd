"""Labels and percentiles, by hand."""

import numpy as np
import pytest

from scope.features.collect.codes import bins, lowest_bin
from scope.features.collect.table import percentile
from scope.features.pack.format import N_BINS
from scope.features.pack.table import label, output_label


@pytest.mark.parametrize(
    ("tokens", "count", "text", "score"),
    [
        ([(" dog", 50, 50), (" dogs", 50, 50)], 100, "“dog”, “dogs”", 1.0),
        ([(" the", 100, 10000)], 100, "often “the”", 200 / 10100),
        ([("a", 1, 1)] * 30, 100, "no token stands out", 0.0),
        ([], 0, "never fired", 0.0),
    ],
)
def test_a_label_names_the_tokens_that_predict_the_firing(tokens, count, text, score):
    assert label(tokens, count) == (text, pytest.approx(score))


def test_p44_an_output_label_names_only_tokens_that_also_rose_when_measured():
    assert output_label([" sea", " ship", "x"], [" ship", "y"]) == "promotes “ship”"
    assert output_label([" sea"], ["y"]) is None


def test_a_percentile_lies_in_the_bin_of_the_exact_one():
    values = np.random.default_rng(0).lognormal(0, 1, 500).astype(np.float32)
    low = lowest_bin(float(values.max()))
    histogram = np.bincount(bins(values, low), minlength=N_BINS)[None]
    for q in (0.5, 0.9, 0.99):
        exact = np.quantile(values, q, method="inverted_cdf")
        assert percentile(histogram, low, q)[0] / exact == pytest.approx(1, abs=0.13)
    assert np.isnan(percentile(np.zeros((1, N_BINS), np.int64), low, 0.5))[0]
