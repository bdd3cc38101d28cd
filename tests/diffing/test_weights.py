"""The change of weights: size and directions, of factors and of whole matrices."""

import copy
from pathlib import Path

import pytest
import torch

from scope.diffing.weights import BFLOAT16_ROUNDING, dense, weight_changes
from scope.errors import ConfigError
from scope.models.adapters import Adapter, LowRank, Settings
from tests.conftest import random_gemma

NAME = "blocks.1.mlp.down_proj.weight"


def with_update(model, update: LowRank):
    """A copy with an adapter of one weight applied, as `load_model` does."""
    tuned = copy.deepcopy(model)
    tuned.adapter = Adapter(Path("nowhere"), Settings(), {})
    tuned.adapter.updates = {NAME: update}
    tuned.adapter.apply(tuned)
    return tuned


def test_an_adapters_change_follows_from_its_factors_and_equals_that_of_the_weights(tiny_model):
    numbers = torch.Generator().manual_seed(0)
    update = LowRank(torch.randn(3, 48, generator=numbers), torch.randn(32, 3, generator=numbers), 0.01)
    tuned = with_update(tiny_model, update)
    (change,), directions = weight_changes(tiny_model, tuned)
    assert (change.parameter, change.rank, change.source) == (NAME, 3, "adapter")
    values = torch.linalg.svdvals(update.delta().double())[:3]
    assert directions[NAME].sizes.tolist() == pytest.approx(values.tolist(), rel=1e-5)
    tuned.adapter = None
    (whole,), _ = weight_changes(tiny_model, tuned)
    assert whole.source == "weights"
    for measure in ("relative", "stable", "effective", "first"):
        assert getattr(whole, measure) == pytest.approx(getattr(change, measure), rel=1e-3)
    assert change.relative == pytest.approx((update.delta().norm() / tiny_model.get_parameter(NAME).norm()).item(), rel=1e-5)


def test_factors_that_are_not_what_lies_between_the_weights_are_not_believed(tiny_model):
    tuned = with_update(tiny_model, LowRank(torch.ones(1, 48), torch.ones(32, 1), 0.01))
    with torch.no_grad():
        tuned.get_parameter(NAME)[0, 0] += 1
    (change,), _ = weight_changes(tiny_model, tuned)
    assert change.source == "weights"


def test_singular_values_and_directions_of_a_matrix_are_those_of_its_decomposition():
    for shape in ((7, 4), (4, 7)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        values, found = dense(matrix)
        assert values.tolist() == pytest.approx(torch.linalg.svdvals(matrix).tolist())
        assert torch.allclose(found.writes * found.sizes @ found.reads.T, matrix.float(), atol=1e-5)


def test_rows_of_the_embedding_that_changed_are_counted(tiny_model):
    tuned = copy.deepcopy(tiny_model)
    with torch.no_grad():
        tuned.embed.weight[[3, 8]] += 0.5
    (change,), _ = weight_changes(tiny_model, tuned)
    assert (change.parameter, change.rows, change.rank) == ("embed.weight", 2, 1)


def test_rounding_to_bfloat16_is_as_large_as_the_constant_says(tiny_model):
    tuned = copy.deepcopy(tiny_model).to(torch.bfloat16).to(torch.float32)
    changes, _ = weight_changes(tiny_model, tuned)
    sizes = [c.relative for c in changes if c.stable is not None]
    assert sum(sizes) / len(sizes) == pytest.approx(BFLOAT16_ROUNDING, rel=0.05)
    assert min(c.rank for c in changes if c.rank) > 10


def test_models_of_other_weights_are_refused_with_the_way_out(tiny_model, tiny_config, toy_tokenizer):
    from dataclasses import replace

    other = random_gemma(replace(tiny_config, d_mlp=40), toy_tokenizer)
    with pytest.raises(ConfigError, match="scope match"):
        weight_changes(tiny_model, other)
