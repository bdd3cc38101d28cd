"""Labels and percentiles, by hand."""

import numpy as np
import pytest

from scope.features.collect.codes import Codes, bins, lowest_bin
from scope.features.collect.streams import Moments
from scope.features.collect.table import percentile
from scope.features.pack.table import label, output_label


@pytest.mark.parametrize(
    ("tokens", "count", "text", "score"),
    [
        ([(" dog", 50, 50), (" dogs", 50, 50)], 100, "“dog”, “dogs”", 1.0),
        ([(" the", 100, 10000)], 100, "often “the”", 200 / 10100),
        ([("a", 1, 1)] * 30, 100, "on “a” among others", 0.0),
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
    for q in (0.5, 0.9, 0.99):
        exact = np.quantile(values, q, method="inverted_cdf")
        assert percentile(moments_of(values, low), low, q)[0] / exact == pytest.approx(1, abs=0.13)
    assert np.isnan(percentile(Moments(1, low), low, 0.5))[0]


def moments_of(values: np.ndarray, low: int) -> Moments:
    moments = Moments(1, low)
    moments.add(Codes(np.zeros(len(values), np.int32), np.arange(len(values)), values), bins(values, low))
    return moments


@pytest.mark.parametrize("values", [[3.0], [1.0, 1.01], [0.001, 900.0], [2.0] * 50, [1e-30, 1.0], np.geomspace(1, 1.4, 7)])
def test_percentiles_rise_from_the_weakest_firing_to_the_strongest(values):
    values = np.array(values, np.float32)
    low = lowest_bin(2.0)
    found = [percentile(moments_of(values, low), low, q)[0] for q in (0, 0.01, 0.5, 0.9, 0.99, 1)]
    assert found == sorted(found)
    assert float(values.min()) <= found[0] <= found[-1] <= float(values.max())
