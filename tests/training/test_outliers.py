"""Activations of huge norm among ordinary ones: what training says of FVU, with them and without."""

import pytest

from scope.cli.train import summary
from scope.evaluation.metrics import fvu
from scope.sae.kinds import KINDS, make_sae
from scope.training.batches import TensorBatches
from scope.training.config import TrainConfig
from scope.training.progress import read_log
from scope.training.trainer import train
from tests.training.planted import planted

KIND = {"jumprelu": {"target_l0": 3.0}, "topk": {"k": 3}, "batch_topk": {"k": 3.0}, "gated": {"target_l0": 3.0}}


def trained(out, rows, kind="jumprelu", steps=60, lr=4e-3, on_progress=None, **changes):
    """The last tenth of the steps, for which training declares its numbers, are taken at a rate of almost 0."""
    config = TrainConfig(steps=steps, batch_size=100, lr=lr, decay=0.9, log_every=5, calibration=2000, **changes)
    sae = make_sae(KINDS[kind].config(d_in=24, d_sae=64, **KIND[kind]), "blocks.0.hook_resid_post")
    return train(sae, TensorBatches(rows, 100, outlier_times=0), config, out, on_progress)


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "gated"])
@pytest.mark.parametrize("pre_bias", [False, True])
def test_fvu_without_huge_rows_is_that_of_the_others_and_with_them_that_of_all(tmp_path, kind, pre_bias):
    if kind == "gated" and pre_bias:
        return
    rows = planted(600)[0]
    rows[::50] *= 300
    sae = trained(tmp_path, rows, kind, pre_bias=pre_bias)
    huge = rows.norm(dim=1) > 10 * rows.norm(dim=1).median()
    result = sae.provenance["training"]
    assert result["fvu"] == pytest.approx(fvu(rows, sae(rows)).item(), rel=0.15)
    assert result["fvu_without_outliers"] == pytest.approx(fvu(rows[~huge], sae(rows[~huge])).item(), rel=0.15)
    assert result["fvu_without_outliers"] > 3 * result["fvu"]
    assert result["outliers"] == 60 / 6 * int(huge.sum())
    assert f"FVU is {result['fvu']:.3f} with them and {result['fvu_without_outliers']:.3f} without" in result["notes"][0]
    assert "without outliers)" in summary(tmp_path, sae)
    assert read_log(tmp_path)[-1]["fvu_without_outliers"] == pytest.approx(result["fvu_without_outliers"], rel=0.15)


def test_a_single_huge_row_is_counted_each_time_it_is_read(tmp_path):
    rows = planted(600)[0]
    rows[7] *= 1e4
    result = trained(tmp_path, rows).provenance["training"]
    assert result["outliers"] == 10
    assert result["fvu_without_outliers"] > 10 * result["fvu"]


def test_of_ordinary_activations_one_fvu_is_said(tmp_path):
    sae = trained(tmp_path, planted(600)[0])
    assert not {"outliers", "fvu_without_outliers"} & set(sae.provenance["training"])
    assert "without outliers" not in summary(tmp_path, sae)
    assert all("fvu_without_outliers" not in row for row in read_log(tmp_path))


def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path):
    rows = planted(600)[0]
    rows[::50] *= 300
    whole = trained(tmp_path / "whole", rows, save_every=7).provenance["training"]

    class Stop(Exception):
        pass

    def stop(done, total, numbers):
        if done >= 55:
            raise Stop

    with pytest.raises(Stop):
        trained(tmp_path / "stopped", rows, on_progress=stop, save_every=7)
    resumed = trained(tmp_path / "stopped", rows, save_every=7).provenance["training"]
    assert resumed == whole
