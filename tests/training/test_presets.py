"""Recipes: the values that their sources state, and what the trainer makes of them."""

import pytest

from scope.errors import ConfigError
from scope.sae.jumprelu import JumpReLUConfig
from scope.training.config import TrainConfig, rate
from scope.training.presets import PRESETS, resolve


def test_gemma_scope_is_the_paper():
    training, dictionary = resolve("gemma-scope", "jumprelu", 2**14)
    config = TrainConfig(**training)
    assert config.steps * config.batch_size == pytest.approx(4e9, rel=1e-5)
    assert (config.lr, config.beta1, config.beta2, config.batch_size) == (7e-5, 0.0, 0.999, 4096)
    rates = [
        rate(s, config.steps, config.warmup, config.decay, config.warmup_start, config.warmup_shape)
        for s in (-1, 499, 999, 10**5)
    ]
    assert rates == pytest.approx([0.1, 0.55, 1.0, 1.0])  # a cosine from a tenth over 1000 steps, then constant
    assert (config.center, config.pre_bias) == (False, True)
    sae = JumpReLUConfig(d_in=256, d_sae=2**14, **dictionary)
    assert (sae.bandwidth, sae.start_threshold, sae.threshold_rate, sae.decoder) == (1e-3, 1e-3, 1.0, "unit")
    assert sae.revive_after is None
    assert sae.anneal * config.steps == pytest.approx(10_000)
    assert resolve("gemma-scope", "jumprelu", 2**20)[0]["steps"] * 4096 == pytest.approx(16e9, rel=1e-5)


def test_gemma_scope_2_pulls_to_a_target_and_minds_frequencies():
    sae = JumpReLUConfig(d_in=256, d_sae=2**14, **resolve("gemma-scope-2", "jumprelu", 2**14)[1])
    assert (sae.penalty, sae.target_l0) == ("quadratic", 60.0)
    assert sae.frequency_scale
    assert (sae.bandwidth, sae.revive_after) == (1e-3, None)


def test_a_wider_dictionary_gets_more_tokens_and_a_lower_rate_by_default():
    narrow, wide = (resolve("small-budget", "jumprelu", d_sae)[0] for d_sae in (2048, 16384))
    assert (narrow["steps"], narrow["batch_size"], narrow["lr"]) == (2000, 1024, 8e-3)
    assert wide["steps"] * wide["batch_size"] > 3 * narrow["steps"] * narrow["batch_size"]
    assert wide["lr"] < narrow["lr"]
    patience = [resolve("small-budget", "jumprelu", d_sae)[1]["revive_after"] for d_sae in (2048, 16384)]
    assert patience == [51_200, 204_800]  # a fortieth of the tokens: with 32 of 16384 latents on a token, 400 chances to fire


@pytest.mark.parametrize(
    "budget", [{"tokens": 1000}, {"steps": 7}, {"tokens": 10**6, "batch_size": 100}, {"steps": 9, "batch_size": 3}]
)
def test_every_recipe_makes_settings_that_can_be_at_any_budget(budget):
    for name, preset in PRESETS.items():
        for kind in preset.kinds:
            training, dictionary = resolve(name, kind, 512, **budget)
            config = TrainConfig(**training)
            if kind == "jumprelu":
                JumpReLUConfig(d_in=16, d_sae=512, **dictionary)
            assert config.steps == budget.get("steps", config.steps)
            assert config.batch_size == budget.get("batch_size", config.batch_size)
            if "tokens" in budget:
                assert 0 <= config.steps * config.batch_size - budget["tokens"] < config.batch_size


def test_a_recipe_for_another_kind_is_refused():
    with pytest.raises(ConfigError, match="recipe for jumprelu, not for topk"):
        resolve("gemma-scope", "topk", 512)
    with pytest.raises(ConfigError, match="There are: small-budget"):
        resolve("gemma", "topk", 512)
