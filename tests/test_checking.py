"""The check of signatures that every other test runs under does refuse what it must."""

import sys
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from scope.evaluation import metrics
from scope.shapes import Acts, PerToken
from tests.help.checking import checked


@checked
def total(x: Float[Tensor, "tok d_in"], y: Float[Tensor, "tok d_in"], more: float = 0) -> PerToken:
    return (x + y).sum(1) + more if more >= 0 else x[:-1].sum(1)


@checked
@dataclass(frozen=True, kw_only=True)
class Pair:
    x: Acts
    y: Acts
    name: "Unknown" = ""  # noqa: F821


def test_sizes_of_one_name_must_agree_within_a_call_and_may_differ_between_calls():
    assert total(torch.ones(3, 2), torch.ones(3, 2)).tolist() == [4, 4, 4]
    assert total(torch.ones(5, 4), torch.ones(5, 4), 1).shape == (5,)
    for x, y, more in [((3, 2), (4, 2), 0), ((3,), (3,), 0), ((3, 2), (3, 2), -1), ((3, 2), (3, 2), "1")]:
        with pytest.raises(TypeError, match="violates type hint"):
            total(torch.ones(x), torch.ones(y), more)


def test_a_dataclass_is_checked_where_it_is_made():
    assert Pair(x=torch.ones(3, 2), y=torch.ones(3, 2)).x.shape == (3, 2)
    for wrong in (torch.ones(4, 2), torch.ones(3, 2, dtype=torch.int64), [1.0]):
        with pytest.raises(TypeError, match="violates type hint"):
            Pair(x=torch.ones(3, 2), y=wrong)


def test_what_is_imported_of_scope_is_checked_as_it_is_called():
    with pytest.raises(TypeError, match="violates type hint"):
        metrics.fvu(torch.ones(3, 2), torch.ones(3, 4))


def test_every_module_of_scope_that_is_loaded_is_checked():
    loaded = [m for name, m in sys.modules.items() if name.split(".")[0] == "scope" and getattr(m, "__file__", None)]
    assert len(loaded) > 20
    assert [m.__name__ for m in loaded if not hasattr(m, "_signature_checked")] == []
