"""Silent latents start anew where something is missing, at most until the run's last part, and alike after a resume."""

import pytest
import torch

from scope.sae.engines.autograd import Autograd
from scope.sae.engines.jumprelu import JumpReLUEngine
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from scope.sae.objectives.jumprelu import JumpReLUObjective
from scope.sae.objectives.revival import EVERY, UNTIL, Revival


def one_direction_missing() -> tuple[torch.Tensor, torch.Tensor]:
    """40 tokens along e0, of which the last 4 hold e1 too, which nothing reconstructs."""
    x = torch.zeros(40, 8)
    x[:, 0] = 1.0
    x[36:, 1] = 2.0
    missing = torch.zeros(40, 8)
    missing[36:, 1] = 2.0
    return x, missing


def test_a_silent_latent_takes_the_missing_direction_and_fires_on_the_tokens_that_miss_it_and_no_others():
    x, missing = one_direction_missing()
    revival = Revival(3, after=40)
    start = revival.observe(x, -missing, torch.tensor([40, 0, 7]), share=0.1, progress=0.1)
    assert start.latents.tolist() == [1]
    torch.testing.assert_close(start.directions, torch.eye(8)[1:2])
    fires = (x @ start.directions.T > start.thresholds).squeeze(1)
    assert fires.nonzero().squeeze(1).tolist() == [36, 37, 38, 39]


@pytest.mark.parametrize(("silent", "progress"), [(39, 0.1), (40, UNTIL + 0.01), (40, EVERY / 2)])
def test_none_starts_anew_too_soon_too_late_or_too_often(silent, progress):
    x, missing = one_direction_missing()
    revival = Revival(1, after=80)
    revival.silent.fill_(silent)
    assert revival.observe(x, -missing, torch.tensor([0]), share=0.1, progress=progress) is None


def test_a_resumed_run_chooses_the_same_tokens():
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    whole, resumed = Revival(16, after=100), Revival(16, after=100)
    nothing = torch.zeros(16, dtype=torch.long)
    whole.observe(x, x, nothing, share=0.1, progress=0.1)
    resumed.load_state(whole.state() | {"silent": whole.silent.clone()})
    a, b = (revival.observe(x, x, nothing, share=0.1, progress=0.2) for revival in (whole, resumed))
    assert torch.equal(a.directions, b.directions)
    assert torch.equal(a.thresholds, b.thresholds)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_dictionary_revives_after_the_step_with_the_strength_of_its_other_latents(share):
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(2)) / 12**0.5
    sae = JumpReLUSAE(JumpReLUConfig(d_in=12, d_sae=96, target_l0=2.0, start_l0=1.0, revive_after=400))
    objective = JumpReLUObjective(sae)
    objective.start(x)
    with torch.no_grad():
        sae.threshold[:3] = 100.0
        sae.W_enc.mul_(2.0)
        sae.threshold.mul_(2.0)
    objective.control.progress, engine = 0.1, JumpReLUEngine(objective)
    engine.share = share  # the dense way and the sparse one
    assert engine.gradients(x).fired[:3].tolist() == [0, 0, 0]
    objective.after_step(2.0, 0.2)
    fired = (sae.encode(x) > 0).sum(0)[:3]
    assert (fired > 0).all()
    assert (fired < 0.1 * len(x)).all()
    torch.testing.assert_close(sae.W_enc.norm(dim=0)[:3], torch.full((3,), 2.0))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(96))


@pytest.mark.parametrize("nested", [(), (32,)])
def test_every_engine_revives_the_same_latents_in_the_same_way(nested):
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64) / 12**0.5
    started = []
    for make, share in [(Autograd, None), *([] if nested else [(JumpReLUEngine, 1.0), (JumpReLUEngine, 0.0)])]:
        config = JumpReLUConfig(d_in=12, d_sae=96, target_l0=2.0, start_l0=1.0, revive_after=400, nested=nested)
        sae = JumpReLUSAE(config).double()
        objective = JumpReLUObjective(sae)
        objective.start(x)
        sae.threshold.data.mul_(1.01)[:3] = 100.0  # they start at somebody's pre-activation, and rounding would decide there
        objective.control.progress, engine = 0.1, make(objective)
        engine.share = share
        engine.gradients(x)
        started.append(objective.fresh)
    for start in started:
        assert start.latents.tolist() == [0, 1, 2]
        torch.testing.assert_close(start.directions, started[0].directions)
        torch.testing.assert_close(start.thresholds, started[0].thresholds)


def test_none_leaves_latents_dead():
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(2)) / 12**0.5
    sae = JumpReLUSAE(JumpReLUConfig(d_in=12, d_sae=96, target_l0=2.0, start_l0=1.0, revive_after=None))
    objective = JumpReLUObjective(sae)
    objective.start(x)
    sae.threshold.data[:3] = 100.0
    objective.control.progress = 0.1
    JumpReLUEngine(objective).gradients(x)
    objective.after_step(2.0, 0.2)
    assert sae.threshold[:3].tolist() == [100.0] * 3
    assert "revival" not in objective.state()
