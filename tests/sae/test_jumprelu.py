"""JumpReLU's gradients by numbers that a reader can check, its start, and the algebra of folding."""

import pytest
import torch

from scope.errors import ConfigError
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from scope.sae.objectives.jumprelu import Gate, Jump, JumpReLUObjective


def random_sae(d_in: int = 6, d_sae: int = 20, seed: int = 0) -> JumpReLUSAE:
    generator = torch.Generator().manual_seed(seed)
    sae = JumpReLUSAE(JumpReLUConfig(d_in=d_in, d_sae=d_sae, target_l0=4.0))
    with torch.no_grad():
        for p in sae.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
        sae.threshold.abs_()
    return sae


@pytest.mark.parametrize(
    ("pre", "learns"), [(0.35, False), (0.41, True), (0.49, True), (0.51, True), (0.59, True), (0.65, False)]
)
def test_a_threshold_learns_only_from_inside_its_window_and_from_both_sides_of_it(pre, learns):
    threshold = torch.tensor([0.5], requires_grad=True)
    Gate.apply(torch.tensor([[pre]]), threshold, 0.2).sum().backward()
    assert threshold.grad.item() == pytest.approx(-5.0 if learns else 0.0)  # 1 / 0.2


def test_the_thresholds_gradient_through_the_latent_is_the_gradient_times_threshold_over_bandwidth():
    threshold = torch.tensor([0.5], requires_grad=True)
    pre = torch.tensor([[0.45], [0.55], [0.9]], requires_grad=True)
    (Jump.apply(pre, threshold, 0.2) * torch.tensor([[2.0], [3.0], [100.0]])).sum().backward()
    assert threshold.grad.item() == pytest.approx(-(2 + 3) * 0.5 / 0.2)
    assert pre.grad.tolist() == [[0.0], [3.0], [100.0]]  # the pre-activation learns where the latent fires, and only there


def test_a_latent_is_its_pre_activation_above_the_threshold_and_zero_at_it():
    sae = JumpReLUSAE(JumpReLUConfig(d_in=1, d_sae=3, target_l0=1.0))
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.threshold.copy_(torch.tensor([0.5, 1.0, 2.0]))
    assert sae.encode(torch.tensor([[1.0]])).tolist() == [[1.0, 0.0, 0.0]]


def test_at_the_start_every_latent_fires_equally_often_and_l0_is_the_multiple_asked_for():
    sample = torch.randn(4000, 16, generator=torch.Generator().manual_seed(1)) / 4
    sae = JumpReLUSAE(JumpReLUConfig(d_in=16, d_sae=64, target_l0=4.0, start_l0=2.0, bandwidth=0.01))
    JumpReLUObjective(sae).start(sample, seed=3)
    fired = (sae.encode(sample) > 0).float()
    assert fired.sum(1).mean().item() == pytest.approx(8.0, rel=0.05)
    assert fired.mean(0).std() < 0.002
    assert torch.equal(sae.W_enc, sae.W_dec.T)


@pytest.mark.parametrize(("d_sae", "target_l0", "multiple"), [(1000, 20.0, 2.0), (16384, 64.0, 8.0), (64, 32.0, 1.0)])
def test_a_run_starts_with_4_percent_of_the_latents_firing_within_once_and_8_times_the_target(d_sae, target_l0, multiple):
    objective = JumpReLUObjective(JumpReLUSAE(JumpReLUConfig(d_in=4, d_sae=d_sae, target_l0=target_l0)))
    assert objective.start_l0 == pytest.approx(multiple)


def test_folding_makes_a_dictionary_of_standardised_activations_one_of_raw_activations():
    sae = random_sae().double()
    x = torch.randn(50, 6, dtype=torch.float64) * 7 + 3
    mean, scale = x.mean(0), 11.0
    latents, x_hat = sae.encode((x - mean) / scale), sae((x - mean) / scale)
    sae.fold(mean, scale)
    torch.testing.assert_close(sae.encode(x), latents * scale)
    torch.testing.assert_close(sae(x), x_hat * scale + mean)


def test_unit_decoder_rows_change_no_reconstruction_and_no_decision_to_fire():
    sae = random_sae().double()
    x = torch.randn(50, 6, dtype=torch.float64)
    fired, x_hat = sae.encode(x) > 0, sae(x)
    sae.unit_decoder()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(20, dtype=torch.float64))
    assert torch.equal(sae.encode(x) > 0, fired)
    torch.testing.assert_close(sae(x), x_hat)


def test_p33_the_part_of_the_gradient_along_a_unit_row_is_removed():
    sae = random_sae()
    objective = JumpReLUObjective(sae)
    objective.after_step(l0=4.0, progress=0.1)
    sae.W_dec.grad = torch.randn(20, 6)
    objective.before_step()
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-6


def test_the_penalty_grows_while_l0_lies_above_its_target_and_falls_while_below():
    weights = {}
    for l0 in (2.0, 16.0):
        objective = JumpReLUObjective(random_sae())
        for step in range(1, 101):
            objective.after_step(l0, step / 100)
        weights[l0] = objective.control.weight
    assert weights[16.0] > 100 * weights[2.0]


def test_a_fixed_weight_rises_linearly_and_stays():
    config = JumpReLUConfig(d_in=2, d_sae=4, target_l0=1.0, l0_weight=0.5, anneal=0.4, decoder="free")
    objective, seen = JumpReLUObjective(JumpReLUSAE(config)), []
    for step in range(1, 11):
        objective.after_step(3.0, step / 10)
        seen.append(objective.control.weight)
    assert seen == pytest.approx([0.125, 0.25, 0.375, *[0.5] * 7])


def objective_of(**settings) -> JumpReLUObjective:
    return JumpReLUObjective(JumpReLUSAE(JumpReLUConfig(d_in=2, **settings)))


def paid(objective: JumpReLUObjective, l0: list[float], frequency: list[float]) -> dict[str, float]:
    return {name: term.item() for name, term in objective.penalties(torch.tensor(l0), torch.tensor(frequency)).items()}


def test_the_quadratic_penalty_is_twice_the_squared_distance_over_the_target_token_by_token():
    objective = objective_of(d_sae=16, target_l0=4.0, penalty="quadratic")
    objective.control.weight = 0.5
    assert paid(objective, [4.0, 4.0], [0.0])["sparsity"] == 0
    assert paid(objective, [2.0, 6.0], [0.0])["sparsity"] == pytest.approx(0.5 * 2 / 4 * 4)  # though their mean is the target
    assert objective.price(torch.tensor([2.0, 6.0])).tolist() == pytest.approx([-1.0, 1.0])  # 0.5 * 2 / 4 * 2 * (-2 and 2)


def test_a_latent_that_always_fires_pays_for_its_frequency_and_a_rare_one_hardly():
    objective = objective_of(d_sae=3, target_l0=1.0, frequency_scale=0.1)
    objective.control.weight = 0.5
    assert paid(objective, [1.0], [1.0, 0.1, 0.01]) == pytest.approx(
        {"sparsity": 0.5, "frequency": 0.5 * (1 + 0.01 + 0.0001) / 0.1}
    )
    assert objective.surcharge(torch.tensor([1.0, 0.1])).tolist() == pytest.approx([10.0, 1.0])


def test_the_quadratics_centre_moves_below_the_target_while_l0_lies_above_it():
    objective = objective_of(d_sae=64, target_l0=10.0, penalty="quadratic", anneal=0.0)
    for step in range(1, 11):
        objective.after_step(12.0, step / 10)
    assert objective.control.centre < 10.0
    assert objective.watched()["l0_centre"] == objective.control.centre


def test_a_threshold_in_logarithms_is_moved_in_them_and_stays_positive():
    sae = JumpReLUSAE(JumpReLUConfig(d_in=2, d_sae=2, target_l0=1.0, threshold_form="log"))
    with torch.no_grad():
        sae.threshold.copy_(torch.tensor([0.5, 0.001]))
    sae.threshold.grad = torch.tensor([3.0, 3.0])
    sae.W_dec.data.fill_(1.0)
    objective = JumpReLUObjective(sae)
    objective.before_step()
    assert sae.threshold.grad.tolist() == pytest.approx([1.5, 0.003])  # d/d log t = t d/dt
    with torch.no_grad():
        sae.threshold.sub_(0.1)  # what an optimiser would do
    objective.after_step(1.0, 0.1)
    assert sae.threshold.tolist() == pytest.approx([0.5 * 0.904837, 0.001 * 0.904837])


def test_rows_start_at_the_norm_and_thresholds_at_the_value_asked_for():
    sample = torch.randn(100, 16, generator=torch.Generator().manual_seed(1)) / 4
    sae = JumpReLUSAE(JumpReLUConfig(d_in=16, d_sae=64, decoder="free", start_norm=0.1, start_threshold=0.001))
    JumpReLUObjective(sae).start(sample)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((64,), 0.1))
    assert sae.threshold.tolist() == pytest.approx([0.001] * 64)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"target_l0": 0.0}, {"target_l0": 65.0}, {"bandwidth": 0.0}, {"d_sae": 0}, {"start_l0": 0.5}, {"l0_weight": -1.0}),
        *({"start_norm": 0.1}, {"frequency_scale": 0.0}, {"start_threshold": 0.0}),
        *({"l0_weight": float("nan")}, {"bandwidth": float("inf")}),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError):
        JumpReLUConfig(**{"d_in": 8, "d_sae": 64, **wrong})


def test_a_dictionary_must_know_the_width_that_it_reads():
    with pytest.raises(ConfigError, match="width"):
        JumpReLUSAE(JumpReLUConfig(d_sae=64))
