"""A null has nothing of what it is compared with, though both are given the same seed."""

import pytest
import torch

from scope.evaluation.latent_statistics import geometry, shared
from scope.null_seeds import generator
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from scope.sae.objectives.jumprelu import JumpReLUObjective


def just_started(seed: int) -> JumpReLUSAE:
    sae = JumpReLUSAE(JumpReLUConfig(d_in=64, d_sae=256, target_l0=4.0))
    JumpReLUObjective(sae).start(torch.randn(500, 64), seed)
    return sae


def test_numbers_of_a_null_are_the_same_again_and_those_of_no_other_null_or_seed():
    first = torch.randn(100, generator=generator("directions", 3))
    assert torch.equal(first, torch.randn(100, generator=generator("directions", 3)))
    for other in (generator("directions", 4), generator("dictionary", 3), torch.Generator().manual_seed(3)):
        assert (first != torch.randn(100, generator=other)).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_that_a_dictionary_started_with_are_not_the_random_rows_it_is_compared_with(seed):
    """A dictionary whose rows are all in the null would read as alike to chance as can be: a cosine of 1."""
    one, two = just_started(seed), just_started(7)
    assert shared(one, two)["cosine_median_random"] == pytest.approx(shared(one, two)["cosine_median"], abs=0.02)
    assert geometry(one)["nearest_cosine_median"] == pytest.approx(geometry(one)["nearest_cosine_median_random"], abs=0.02)
