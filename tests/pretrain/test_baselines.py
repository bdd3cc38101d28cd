"""The yardsticks of the language-model benchmark measure what they say."""

import numpy as np
import pytest

from scope.pretrain.evaluate import DocumentBits
from tests.benchmarks.kneser_ney import KneserNey
from tests.benchmarks.language_model import paired, run_hashes, xz_size


@pytest.mark.parametrize("context", [[2, 3], [6, 6], [0, 5], [4]])
def test_kneser_ney_probabilities_sum_to_one_after_any_context(context):
    rng = np.random.default_rng(0)
    stream = np.concatenate([[1] * 5, rng.choice(7, size=3000, p=[0.3, 0.25, 0.2, 0.1, 0.1, 0.03, 0.02])])
    model = KneserNey(stream, d_vocab=7, order=3)
    total = sum(2 ** -model.bits(np.array([*context[1:], w]), context[0])[-1] for w in range(7))
    assert total == pytest.approx(1)


def test_kneser_ney_learns_what_follows_what():
    stream = np.array([1] * 3 + [2, 3, 4] * 50)
    bits = KneserNey(stream, d_vocab=8, order=3).bits(np.array([2, 3, 4, 2, 4]), boundary=1)
    assert bits[1:4].max() < 0.3  # seen every time
    assert bits[4] > 3  # never seen


def test_a_run_that_repeats_has_the_same_hash_and_no_other_has():
    hashes = run_hashes(np.array([5, 6, 7, 8, 5, 6, 7, 9]), 3)
    assert hashes[0] == hashes[4]
    assert len(set(hashes.tolist())) == 5
    assert len(run_hashes(np.array([1, 2]), 3)) == 0


def test_text_seen_before_costs_a_primed_compressor_next_to_nothing():
    text = np.random.default_rng(0).bytes(5000)
    assert xz_size(text) > 4900
    assert xz_size(text, prime=text) < 200


def test_a_model_against_itself_has_ratio_one_and_no_interval():
    costs = [DocumentBits(d, b, 100, 30) for d in "ab" for b in (100.0, 150.0, 210.0)]
    assert paired(costs, costs) == pytest.approx((1, 1, 1))
