"""The engines compute one and the same gradient."""

import pytest
import torch

from scope.sae.engine import Autograd, JumpReLUEngine
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE


def prepared(d_in: int, d_sae: int, l0: float, bandwidth: float) -> tuple[JumpReLUSAE, torch.Tensor]:
    generator = torch.Generator().manual_seed(d_in)
    x = torch.randn(203, d_in, generator=generator, dtype=torch.float64) / d_in**0.5
    sae = JumpReLUSAE(JumpReLUConfig(d_in=d_in, d_sae=d_sae, target_l0=l0, start_l0=1.0, bandwidth=bandwidth)).double()
    sae.initialise(x)
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.05, generator=generator)
        sae.b_dec.normal_(0, 0.05, generator=generator)
        sae.W_dec.mul_(1.3)
    sae.l0_weight = 0.03
    return sae, x


def gradients(sae: JumpReLUSAE) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in sae.named_parameters()}


@pytest.mark.parametrize("way", ["dense", "sparse"])
@pytest.mark.parametrize(("d_in", "d_sae", "l0", "bandwidth"), [(16, 64, 6.0, 0.2), (8, 8, 4.0, 0.5), (24, 96, 1.0, 1e-3)])
def test_gradients_by_hand_equal_autograd_in_float64(way, d_in, d_sae, l0, bandwidth):
    sae, x = prepared(d_in, d_sae, l0, bandwidth)
    reference = Autograd(sae).gradients(x)
    expected = gradients(sae)
    engine = JumpReLUEngine(sae, rows=64)  # 203 rows: three whole slices and a rest
    engine.share = 1.0 if way == "dense" else 0.0
    batch = engine.gradients(x)
    for name, gradient in gradients(sae).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-13, msg=name)
    assert batch.l0 == reference.l0
    assert batch.error == pytest.approx(reference.error, rel=1e-12)
    assert batch.terms == pytest.approx(reference.terms)
    assert torch.equal(batch.fired, reference.fired)


def test_a_batch_on_which_nothing_fires_still_teaches_the_decoder_bias():
    sae, x = prepared(16, 64, 6.0, 0.01)
    with torch.no_grad():
        sae.threshold.fill_(100.0)
    Autograd(sae).gradients(x)
    expected = gradients(sae)
    engine = JumpReLUEngine(sae)
    engine.share = 0.0
    assert engine.gradients(x).l0 == 0
    for name, gradient in gradients(sae).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_the_dense_way_is_left_once_few_latents_are_candidates():
    sae, x = prepared(24, 512, 2.0, 1e-3)
    engine = JumpReLUEngine(sae)
    assert engine.share is None
    assert engine.gradients(x).candidates < 512 / 8
    assert engine.share < 1 / 8
