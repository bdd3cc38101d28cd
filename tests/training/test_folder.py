"""The folder of a training: older descriptions mean what they meant, and what is not a training is left alone."""

import json
from pathlib import Path

import pytest

from scope.errors import ConfigError
from scope.training.folder import RUN
from scope.training.trainer import CHECKPOINT
from tests.training.planted import same
from tests.training.test_resume import run, stopped


def forget(folder: Path, *names: str) -> None:
    """Make the description that of a time in which the dictionary had no such settings."""
    described = json.loads((folder / RUN).read_text())
    for name in names:
        described["dictionary"].pop(name)
    (folder / RUN).write_text(json.dumps(described))


@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_a_run_from_before_rows_could_be_free_goes_on_with_unit_rows_only_and_to_the_same_bits(tmp_path, kind):
    before = {"decoder": "unit", "aux_weight": 1 / 32}
    whole = run(tmp_path / "whole", kind, **before)
    stopped(tmp_path / "old", kind, **before)
    forget(tmp_path / "old", "decoder", "start_norm")
    with pytest.raises(ConfigError) as refused:
        run(tmp_path / "old", kind)
    for line in ("decoder: unit then, free now", "aux_weight: 0.03125 then, 1.0 now"):
        assert f"dictionary.{line}" in str(refused.value)
    with pytest.raises(ConfigError, match="decoder: unit then, free now"):
        run(tmp_path / "old", kind, aux_weight=1 / 32)
    assert same(run(tmp_path / "old", kind, **before), whole)


def test_a_jumprelu_run_from_before_latents_were_revived_goes_on_without_revival_only(tmp_path):
    whole = run(tmp_path / "whole", "jumprelu", revive_after=None)
    stopped(tmp_path / "old", "jumprelu", revive_after=None)
    forget(tmp_path / "old", "revive_after")
    with pytest.raises(ConfigError, match="revive_after: None then, 50000 now"):
        run(tmp_path / "old", "jumprelu", revive_after=50_000)
    assert same(run(tmp_path / "old", "jumprelu", revive_after=None), whole)


def test_of_another_kind_only_the_kind_is_named(tmp_path):
    stopped(tmp_path, "jumprelu")
    with pytest.raises(ConfigError) as refused:
        run(tmp_path, "topk")
    lines = str(refused.value).splitlines()
    assert [line.strip() for line in lines[1:-1]] == ["kind: jumprelu then, topk now"]
    assert "--out" in lines[-1]
    assert (tmp_path / CHECKPOINT).exists()
