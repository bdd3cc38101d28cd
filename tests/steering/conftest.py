"""A small dictionary with known numbers, fitting the tiny model."""

import pytest
import torch

from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from scope.steering.apply.strength_units import StrengthUnits

SITE = "blocks.1.hook_resid_post"


def random_sae(d_in: int = 32, d_sae: int = 64, site: str = SITE, seed: int = 1) -> JumpReLUSAE:
    """Decoder rows of unequal length, thresholds above 0: what hides in unit rows and zero thresholds shows here."""
    sae = JumpReLUSAE(JumpReLUConfig(d_in=d_in, d_sae=d_sae), site)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        sae.threshold.abs_()
    sae.provenance = {"model": {"model": "tiny", "weights_sha256": "random-0"}, "weights_sha256": f"sae-{seed}"}
    return sae.requires_grad_(False)


@pytest.fixture
def sae() -> JumpReLUSAE:
    return random_sae()


@pytest.fixture
def units() -> StrengthUnits:
    return StrengthUnits(8.0, "given", maximum={3: 4.0, 5: 2.0}, p99={3: 3.0, 5: 1.5})
