"""Kinds of dictionary beside JumpReLU: numbers that can be checked by hand, SAELens as judge, and training to the bit."""

import json
import re
import warnings
from dataclasses import fields

import pytest
import torch

from scope.errors import ConfigError, DictionaryError
from scope.sae.base import ZeroRowsWarning
from scope.sae.engines.autograd import Autograd
from scope.sae.files import read_sae
from scope.sae.formats.gemma_scope import as_jumprelu
from scope.sae.gated import GatedConfig
from scope.sae.jumprelu import JumpReLUConfig
from scope.sae.kinds import KINDS, kind_of, make_objective, make_sae
from scope.sae.objectives.l0_control import L0Control
from scope.sae.topk import BatchTopKConfig, TopKConfig
from scope.sae.transcoder import TranscoderConfig
from scope.training.batches import TensorBatches
from scope.training.config import TrainConfig
from scope.training.trainer import train

SITE = "blocks.1.hook_resid_post"
CONFIGS = {
    "topk": TopKConfig(d_in=6, d_sae=20, k=3),
    "batch_topk": BatchTopKConfig(d_in=6, d_sae=20, k=2.5),
    "gated": GatedConfig(d_in=6, d_sae=20, target_l0=4.0),
    "jumprelu": JumpReLUConfig(d_in=6, d_sae=20, target_l0=4.0),
    "transcoder": TranscoderConfig(d_in=6, d_sae=20, d_out=4, site_out="blocks.1.hook_mlp_out", skip=True),
}
TRAINABLE = [name for name, kind in KINDS.items() if kind.trainable]
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(9))


def random_kind(kind: str, seed: int = 0, **changes):
    """A dictionary of a kind with every array random, thresholds above 0."""
    from dataclasses import replace

    sae = make_sae(replace(CONFIGS[kind], **changes), SITE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
            if name == "threshold":
                p.abs_()
    return sae


def lens(name: str):
    """A class of SAELens, which warns at import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens
        from sae_lens.saes import matryoshka_batchtopk_sae

        return getattr(sae_lens, name, None) or getattr(matryoshka_batchtopk_sae, name)


def identity(kind: str, **settings):
    """A dictionary over width 4 with 4 latents whose pre-activations are the activations."""
    sae = make_sae(KINDS[kind].config(d_in=4, d_sae=4, **settings), SITE)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(4))
        sae.W_dec.copy_(torch.eye(4))
    return sae


# What encodes how


def test_topk_keeps_the_k_greatest_of_each_token_and_of_these_the_positive_ones():
    sae = identity("topk", k=2)
    x = torch.tensor([[4.0, 3.0, 2.0, 1.0], [-1.0, -2.0, 5.0, -3.0]])
    assert sae.encode(x).tolist() == [[4.0, 3.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0]]


def test_batch_topk_shares_its_k_over_the_batch_in_training_and_goes_by_its_threshold_after_it():
    sae = identity("batch_topk", k=1.5)
    x = torch.tensor([[4.0, 3.0, 2.0, 1.0], [0.5, 0.0, -1.0, -2.0]])
    assert make_objective(sae).choose(x).tolist() == [[4.0, 3.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]  # 3 for both tokens together
    with torch.no_grad():
        sae.threshold.fill_(0.4)
    assert sae.encode(x).tolist() == [[4.0, 3.0, 2.0, 1.0], [0.5, 0.0, 0.0, 0.0]]
    assert torch.equal(sae.encode(x)[1:], sae.encode(x[1:]))  # no token depends on its neighbours


def test_the_threshold_of_batch_topk_follows_the_smallest_value_that_training_kept():
    sae = identity("batch_topk", k=1.5, follow=0.25)
    with torch.no_grad():
        sae.threshold.fill_(1.0)
    objective = make_objective(sae)
    objective.losses(torch.tensor([[4.0, 3.0, 2.0, 1.0], [0.5, 0.0, -1.0, -2.0]]))
    objective.after_step(1.5, 0.1)
    assert sae.threshold.tolist() == [1.25] * 4  # a quarter of the way from 1 to 2


def test_a_gated_latent_fires_by_its_gate_and_weighs_by_its_magnitude():
    sae = identity("gated", target_l0=2.0)
    with torch.no_grad():
        sae.b_enc.copy_(torch.tensor([-1.0, -3.0, 0.0, 0.0]))
        sae.r_mag.copy_(torch.tensor([2.0, 1.0, 1.0, 1.0]).log())
        sae.b_mag.copy_(torch.tensor([1.0, 1.0, 1.0, -9.0]))
    x = torch.tensor([[2.0, 2.0, 0.0, 5.0]])
    assert sae.encode(x)[0].tolist() == pytest.approx([5.0, 0.0, 0.0, 0.0])  # open: 2*2+1; shut; 0 is shut; open but below 0


def test_a_transcoder_predicts_another_width_and_adds_what_it_skips():
    sae = random_kind("transcoder")
    with torch.no_grad():
        sae.threshold.fill_(1e9)
    torch.testing.assert_close(sae(X), sae.b_dec + X @ sae.W_skip.T)
    assert (sae.d_out, sae.site_out) == (4, "blocks.1.hook_mlp_out")


# Losses


def test_nested_widths_add_the_errors_that_the_first_latents_alone_leave():
    sae = identity("topk", k=4, nested=(1, 3))
    x = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    terms = make_objective(sae).losses(x)
    assert terms["error"].item() == 0.0
    assert terms["nested"].item() == (9 + 4 + 1) + 1  # without latents 1-3, and without latent 3


def test_silent_latents_are_asked_to_reconstruct_what_the_others_left():
    objective = make_objective(identity("topk", k=1, aux_weight=0.5, aux_k=1, revive_after=10))
    x = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    assert "auxiliary" not in objective.losses(x)
    objective.silent[2] = 10
    assert objective.losses(x)["auxiliary"].item() == 0.5 * (9 + 1)  # latent 2 takes its 2 of the 3, 2, 1 that are left
    objective.config = TopKConfig(d_in=4, d_sae=4, k=1, aux_weight=0.5, aux_k=4, revive_after=10)
    assert objective.losses(x)["auxiliary"].item() == 0.5 * (9 + 1) / 4  # one of four wanted: a quarter of the weight


@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_p33_free_rows_decide_nothing_by_their_length_and_are_unit_in_the_end(kind):
    sae = make_sae(CONFIGS[kind], SITE).double()
    objective = make_objective(sae)
    objective.start(X.double())
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((20,), 0.1, dtype=torch.float64))
    if kind == "batch_topk":
        sae.threshold.data.mul_(0.99)  # it lies at somebody's pre-activation, and rounding would decide there
    pre, terms, latents = sae.pre_activations(X.double()), objective.losses(X.double()), sae.encode(X.double())
    kept, x_hat = sae.compete(pre, objective.choose) > 0, sae.decode(latents)
    with torch.no_grad():
        lengths = torch.rand(20, generator=torch.Generator().manual_seed(1)).double() + 0.1
        sae.W_dec.mul_(lengths[:, None])
        for array in (sae.W_enc, sae.b_enc, *([sae.threshold] if kind == "batch_topk" else [])):
            array.div_(lengths)
    torch.testing.assert_close(objective.losses(X.double()), terms)
    assert torch.equal(sae.compete(sae.pre_activations(X.double()), objective.choose) > 0, kept)
    sae.unit_decoder()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(20, dtype=torch.float64))
    assert torch.equal(sae.compete(sae.pre_activations(X.double()), objective.choose) > 0, kept)
    torch.testing.assert_close(sae(X.double()), x_hat)
    if kind == "batch_topk":
        torch.testing.assert_close(sae.threshold, sae.threshold[:1].expand(20))


def test_unit_rows_stay_unit_if_that_is_asked_for():
    sae = make_sae(TopKConfig(d_in=12, d_sae=32, k=3, decoder="unit"), SITE)
    objective = make_objective(sae)
    objective.start(_world()[:64])
    for _ in range(3):
        Autograd(objective).gradients(_world()[:64])
        objective.before_step()
        torch.testing.assert_close((sae.W_dec.grad * sae.W_dec).sum(1), torch.zeros(32), atol=1e-4, rtol=0)
        with torch.no_grad():
            sae.W_dec.sub_(0.01 * sae.W_dec.grad)
        objective.after_step(3.0, 0.1)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))


def test_a_latent_counts_as_silent_for_the_tokens_since_it_fired():
    objective = make_objective(identity("topk", k=1))
    for _ in range(3):
        objective.losses(torch.tensor([[4.0, 3.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]]))
        objective.after_step(1.0, 0.1)
    assert objective.silent.tolist() == [0, 6, 6, 6]


def test_the_gates_auxiliary_reconstruction_teaches_the_decoder_nothing():
    sae = random_kind("gated")
    make_objective(sae).losses(X)["auxiliary"].backward()
    assert sae.W_dec.grad is None
    assert sae.b_dec.grad is None
    assert sae.W_enc.grad.abs().sum() > 0


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("nested", [(), (5, 12)])
def test_losses_of_topk_and_batch_topk_are_saelens_to_rounding(nested, free):
    step = _step(X, torch.arange(20) % 3 == 0)
    ours = random_kind("batch_topk" if nested else "topk", aux_weight=1.0, revive_after=1, nested=nested)
    objective = make_objective(ours)
    with torch.no_grad():
        ours.W_enc.abs_()  # theirs lets silent latents be negative in the auxiliary loss, ours does not
        ours.b_enc.fill_(50.0)
        objective.silent.copy_(step.dead_neuron_mask)
        ours.free = free
    name = "MatryoshkaBatchTopKTrainingSAE" if nested else "TopKTrainingSAE"
    settings = {"matryoshka_widths": [*nested, 20], "k": 2.5} if nested else {"k": 3}
    theirs = lens(name)(
        lens(name + "Config")(
            d_in=6,
            d_sae=20,
            apply_b_dec_to_input=False,
            rescale_acts_by_decoder_norm=free,
            aux_loss_coefficient=1.0,
            **settings,
        )
    )
    theirs.load_state_dict({k: p.detach() for k, p in ours.named_parameters() if k != "threshold"}, strict=False)
    output, terms = theirs.training_forward_pass(step), objective.losses(X)
    torch.testing.assert_close(terms["error"], output.losses["mse_loss"])
    torch.testing.assert_close(terms["auxiliary"], output.losses["auxiliary_reconstruction_loss"])
    torch.testing.assert_close(torch.stack(list(terms.values())).sum(), output.loss)


def test_losses_of_gated_are_saelens_to_rounding():
    ours = random_kind("gated", l1_weight=0.3)
    objective = make_objective(ours)
    objective.after_step(4.0, 1.0)  # unit rows, and the weight has risen
    name = "GatedTrainingSAE"
    theirs = lens(name)(lens(name + "Config")(d_in=6, d_sae=20, apply_b_dec_to_input=False, l1_coefficient=0.3))
    arrays = {k: p.detach() for k, p in ours.named_parameters()}
    theirs.load_state_dict(arrays | {"b_gate": arrays["b_enc"]}, strict=False)
    output, terms = theirs.training_forward_pass(_step(X, None, l1=0.3)), objective.losses(X)
    torch.testing.assert_close(terms["error"], output.losses["mse_loss"])
    torch.testing.assert_close(terms["sparsity"], output.losses["l1_loss"])
    torch.testing.assert_close(terms["auxiliary"], output.losses["auxiliary_reconstruction_loss"])


def _step(x, dead, **coefficients):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sae_lens.saes.sae import TrainStepInput
    return TrainStepInput(sae_in=x, coefficients=coefficients, dead_neuron_mask=dead, n_training_steps=1, is_logging_step=False)


# Folding


@pytest.mark.parametrize("kind", TRAINABLE)
def test_p23_folding_makes_a_dictionary_of_standardised_activations_one_of_raw_activations(kind):
    sae = random_kind(kind).double()
    x = X.double() * 7 + 3
    mean, scale = x.mean(0), 11.0
    latents, x_hat = sae.encode((x - mean) / scale), sae((x - mean) / scale)
    sae.fold(mean, scale)
    torch.testing.assert_close(sae.encode(x), latents * scale)
    torch.testing.assert_close(sae(x), x_hat * scale + mean)


@pytest.mark.parametrize("kind", KINDS)
def test_p24_unit_decoder_rows_change_no_reconstruction_and_no_decision_to_fire(kind):
    sae = random_kind(kind).double()
    x = X.double()
    fired, x_hat = sae.encode(x) > 0, sae(x)
    sae.unit_decoder()
    assert torch.equal(sae.encode(x) > 0, fired)
    torch.testing.assert_close(sae(x), x_hat)
    if kind != "topk":  # whose latents compete: their sizes must stay
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["gated", "batch_topk"])
def test_gated_and_batch_topk_are_jumprelu_dictionaries(kind):
    sae = random_kind(kind).double()
    made = as_jumprelu(sae).double()
    exact = random_kind(kind).double()
    torch.testing.assert_close(made.encode(X.double()), exact.encode(X.double()), rtol=1e-5, atol=1e-6)
    assert made.site == SITE


def test_p27_topk_is_no_jumprelu():
    with pytest.raises(DictionaryError, match="batch_topk"):
        as_jumprelu(random_kind("topk"))


# Training


def _world(n: int = 6000) -> torch.Tensor:
    """Sparse sums of 24 directions in 12 dimensions, off the origin."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.nn.functional.normalize(torch.randn(24, 12, generator=generator), dim=1)
    strength = torch.rand(n, 24, generator=generator) * (torch.rand(n, 24, generator=generator) < 0.1)
    return 9 * strength @ directions + 2


TRAINED = {
    "topk": TopKConfig(d_in=12, d_sae=32, k=3, revive_after=2000),
    "batch_topk": BatchTopKConfig(d_in=12, d_sae=32, k=3, revive_after=2000, nested=(8,)),
    "gated": GatedConfig(d_in=12, d_sae=32, target_l0=3.0),
    "jumprelu": JumpReLUConfig(d_in=12, d_sae=32, target_l0=3.0),
}


def run(kind: str, out, steps: int = 300, on_progress=None):
    config = TrainConfig(steps=steps, batch_size=256, lr=5e-3, save_every=20, log_every=10, dead_after=5000)
    return train(make_sae(TRAINED[kind], SITE), TensorBatches(_world(), 256), config, out, on_progress)


@pytest.mark.parametrize("kind", TRAINABLE)
def test_every_kind_learns_and_comes_back_from_the_disk_as_it_was_trained(kind, tmp_path):
    x = _world()
    sae = run(kind, tmp_path)
    loaded = read_sae(tmp_path)
    assert (loaded.kind, loaded.config) == (kind, TRAINED[kind])
    assert torch.equal(loaded.encode(x), sae.encode(x))
    assert (x - loaded(x)).square().sum() / (x - x.mean(0)).square().sum() < 0.35
    assert (loaded.encode(x) > 0).sum(1).float().mean().item() == pytest.approx(3.0, rel=0.2)
    assert json.loads((tmp_path / "training.json").read_text())["kind"] == kind


@pytest.mark.parametrize("kind", TRAINABLE)
def test_p36_every_kind_resumes_to_the_bit(kind, tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total, numbers):
        if done == 90:
            raise Stop

    with pytest.raises(Stop):
        run(kind, tmp_path / "stopped", 120, stop)
    whole, resumed = run(kind, tmp_path / "whole", 120), run(kind, tmp_path / "stopped", 120)
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_kind_without_a_recipe_says_so():
    sae = make_sae(CONFIGS["transcoder"], SITE)
    with pytest.raises(ConfigError, match=r"cannot be trained.*jumprelu"):
        make_objective(sae)


def test_the_weight_of_a_penalty_follows_its_target_and_a_fixed_one_rises():
    weights = {}
    for l0 in (2.0, 16.0):
        control = L0Control(4.0, 0.1, 1.0, 0.3)
        for step in range(1, 101):
            control.update(l0, step / 100)
        weights[l0] = control.weight
    assert weights[16.0] > 100 * weights[2.0]
    fixed = L0Control(4.0, 0.1, 1.0, 0.5, fixed=2.0)
    fixed.update(9.0, 0.25)
    assert fixed.weight == 1.0


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (TopKConfig, {"k": 0}),
        (TopKConfig, {"k": 65}),
        (TopKConfig, {"aux_weight": -1.0}),
        (TopKConfig, {"start_norm": 0.0}),
        (BatchTopKConfig, {"decoder": "unit", "start_norm": 0.1}),
        (BatchTopKConfig, {"follow": 0.0}),
        (GatedConfig, {"target_l0": 65.0}),
        (GatedConfig, {"l1_weight": -1.0}),
        (TranscoderConfig, {"k": 65}),
        (TopKConfig, {"nested": (32, 16)}),
        (JumpReLUConfig, {"nested": (64,)}),
    ],
)
def test_settings_that_cannot_be_are_refused(config, wrong):
    with pytest.raises(ConfigError):
        config(**{"d_in": 8, "d_sae": 64, **wrong})


def test_a_config_belongs_to_one_kind():
    assert [kind_of(config).sae.kind for config in CONFIGS.values()] == list(CONFIGS)


@pytest.mark.parametrize(
    ("config", "wrong", "said"),
    [
        (TopKConfig, {"decoder": "banana"}, "decoder is 'banana'; give 'free' or 'unit'"),
        (JumpReLUConfig, {"penalty": "banana"}, "penalty is 'banana'; give 'l0' or 'quadratic'"),
        (TopKConfig, {"k": 2.5}, "k is 2.5; give a whole number"),
        (TopKConfig, {"k": True}, "k is True; give a whole number"),
        (BatchTopKConfig, {"k": "3"}, "k is '3'; give a number"),
        (GatedConfig, {"nested": (5.5,)}, "give whole numbers"),
        (JumpReLUConfig, {"nested": ("a",)}, "give whole numbers"),
        (JumpReLUConfig, {"d_sae": 64.0}, "d_sae is 64.0; give a whole number"),
        (JumpReLUConfig, {"l0_weight": "none"}, "give a number or None"),
        (TranscoderConfig, {"skip": 1}, "skip is 1; give True or False"),
        (TranscoderConfig, {"site_out": 5}, "site_out is 5; give a string"),
        *((kind, {"start_norm": 1e-30, "decoder": "free"}, "0.001 to 10") for kind in (TopKConfig, JumpReLUConfig)),
        (BatchTopKConfig, {"start_norm": 1e30}, "0.001 to 10"),
    ],
)
def test_a_setting_of_another_type_or_size_than_its_field_takes_is_refused_when_it_is_given(config, wrong, said):
    usual = {"k": 4} if config in (TopKConfig, BatchTopKConfig) else {}
    made = object.__new__(config)  # tests check arguments by their types; users have nothing but this
    for f in fields(config):
        object.__setattr__(made, f.name, ({"d_in": 8, "d_sae": 64} | usual | wrong).get(f.name, f.default))
    with pytest.raises(ConfigError, match=re.escape(said)):
        made.__post_init__()


@pytest.mark.parametrize("kind", ["jumprelu", "batch_topk", "gated"])
def test_rows_of_zeros_are_told_when_the_decoder_is_made_unit(kind):
    sae = random_kind(kind)
    with torch.no_grad():
        sae.W_dec[3:5] = 0
    with pytest.warns(ZeroRowsWarning, match="2 of 20 latents"):
        sae.unit_decoder()
    assert torch.isfinite(sae.W_enc).all()
