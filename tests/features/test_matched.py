"""Directions that two dictionaries share, where the answer is known."""

import numpy as np
import pytest
import torch

from scope.errors import DictionaryError
from scope.features.compare.matched_directions import matched_directions
from tests.steering.conftest import random_sae


def test_a_dictionary_whose_latents_were_shuffled_rescaled_and_partly_drawn_anew_is_matched_where_it_is_the_same():
    one, two = random_sae(32, 40), random_sae(32, 40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        two.W_dec.copy_(one.W_dec[order] * 3)
        two.W_dec[:5] = torch.randn(5, 32, generator=torch.Generator().manual_seed(4))
    pairs, null = matched_directions(one, two)
    place = {int(old): new for new, old in enumerate(order.tolist()) if new >= 5}
    assert all(pairs["other"][old] == new for old, new in place.items())
    assert pairs["cosine"][list(place)].to_numpy() == pytest.approx(1.0, abs=1e-5)
    lost = [old for old in range(40) if old not in place]
    assert pairs["cosine"][lost].max() < 0.9
    assert 0.1 < null < 0.8


def test_a_direction_that_points_the_other_way_is_no_match():
    one, two = random_sae(32, 40), random_sae(32, 40)
    with torch.no_grad():
        two.W_dec.copy_(-one.W_dec)
    assert (matched_directions(one, two)[0]["cosine"] < 0.9).all()


def test_blocks_of_any_size_give_the_same_pairs():
    one, two = random_sae(16, 50), random_sae(16, 40)
    with torch.no_grad():
        two.W_dec.copy_(torch.randn(40, 16, generator=torch.Generator().manual_seed(1)))
    whole, small = matched_directions(one, two)[0], matched_directions(one, two, memory=1)[0]
    assert np.array_equal(whole["other"], small["other"])


@pytest.mark.parametrize("what", ["site", "model"])
def test_dictionaries_of_other_sites_or_models_are_refused(what):
    one, two = random_sae(16, 40), random_sae(16, 40)
    one.provenance, two.provenance = ({"model": {"weights_sha256": name}} for name in ("a", "b" if what == "model" else "a"))
    if what == "site":
        two.site = "blocks.0.hook_resid_pre"
    with pytest.raises(DictionaryError, match="within one site of one model"):
        matched_directions(one, two)


def test_chance_is_not_told_by_the_numbers_from_which_a_dictionary_was_started():
    one, two = random_sae(64, 256), random_sae(64, 256)
    with torch.no_grad():
        two.W_dec.copy_(torch.randn(256, 64, generator=torch.Generator().manual_seed(0)))
    expected = 2.75 / 64**0.5  # about the largest of 256 normal draws, of standard deviation 1 / sqrt(64)
    assert matched_directions(one, two, seed=0)[1] == pytest.approx(expected, rel=0.15)
