"""Rows of huge norm: flagged by the rule that the manifest states, kept in place, left out of shuffled reading."""

import numpy as np
import pytest
import torch
from scope.activations.config import HarvestConfig
from scope.activations.errors import ActivationsError, RecordingError
from scope.activations.read.store import ActivationStore

from tests.activations.toy import Arithmetic, contents, record

SPIKE = 4 + ord("7")  # the token at which site a is a hundred times as large


class Spiked(Arithmetic):
    def record(self, tokens, sites):
        out = super().record(tokens, sites)
        if "a" in out:
            out["a"] = torch.where((tokens == SPIKE)[..., None], 100 * out["a"], out["a"])
        return out


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return record(tmp_path_factory.mktemp("spiked") / "r", model=Spiked(), dtype="float32")


def test_the_rows_that_are_flagged_are_those_above_the_threshold_that_the_manifest_states(store):
    rule = store.manifest.outliers
    assert rule.times == 10.0
    assert rule.sample["contexts"] == 16
    first = store["a"][: rule.sample["rows"]].norm(dim=1).numpy()
    assert rule.median["a"] == pytest.approx(np.sort(first)[(len(first) - 1) // 2], rel=1e-6)
    assert rule.threshold["a"] == pytest.approx(10 * rule.median["a"])
    assert np.array_equal(store.outliers("a"), store.token_ids == SPIKE)
    assert not store.outliers("b.x").any()


def test_outliers_are_stored_like_all_other_rows_and_counted_in_the_journal(store):
    spikes = np.flatnonzero(store.token_ids == SPIKE)
    assert store.n_outliers("a") == len(spikes) > 50
    assert store.n_outliers("b.x") == 0
    assert (store["a"][spikes].norm(dim=1) > store.outlier_rule.threshold["a"]).all()
    assert store["b.x"].shape[0] == store["a"].shape[0]


@pytest.mark.parametrize("memory_bytes", [1 << 30, 200_000])
def test_shuffled_reading_gives_every_row_once_but_the_outliers(store, memory_bytes):
    batches = store.shuffled("a", 100, epochs=1, memory_bytes=memory_bytes)
    assert (batches.n_pools > 1) is (memory_bytes < 1 << 30)
    norms = torch.cat([b.norm(dim=1) for b in batches])
    expected = store["a"][np.flatnonzero(~store.outliers("a"))].norm(dim=1)
    assert torch.allclose(norms.sort().values, expected.sort().values)
    assert batches.left_out == store.n_outliers("a")
    assert batches.n_rows + batches.left_out == len(store)


def test_with_outliers_asked_for_all_rows_come(store):
    batches = store.shuffled("a", 100, epochs=1, outliers=True)
    assert sum(len(b) for b in batches) == len(store)
    assert batches.left_out == 0


def test_a_row_flagged_at_one_site_is_left_out_of_all_so_that_they_stay_aligned(store):
    a, b = store["a"][:], store["b.x"][:]
    of = {tuple(row.tolist()): i for i, row in enumerate(torch.cat([a, b], 1))}
    both = store.shuffled(("a", "b.x"), 64, epochs=1, memory_bytes=400_000)
    rows = [tuple(row.tolist()) for x, y in both for row in torch.cat([x, y], 1)]
    assert both.left_out == store.n_outliers("a")
    assert len(rows) == len(store) - both.left_out
    assert all(row in of for row in rows)


def test_what_order_says_is_what_comes(store):
    batches = store.shuffled("a", 64, seed=3, epochs=1, memory_bytes=200_000)
    rows = np.concatenate(list(batches.order(0)))
    assert torch.equal(torch.cat(list(batches)), store["a"][rows])


def test_reading_without_outliers_goes_on_at_the_exact_row(store):
    whole = list(store.shuffled("a", 100, seed=1, epochs=1, memory_bytes=200_000))
    first, rest = store.shuffled("a", 100, seed=1, epochs=1, memory_bytes=200_000), []
    stream = iter(first)
    for _ in range(7):
        next(stream)
    other = store.shuffled("a", 100, seed=1, epochs=1, memory_bytes=200_000)
    other.load_state_dict(first.state_dict())
    rest = list(other)
    assert torch.equal(torch.cat(whole[7:]), torch.cat(rest))


def test_the_thresholds_of_a_longer_recording_are_those_of_a_shorter_one(tmp_path):
    record(tmp_path / "steps", model=Spiked(), tokens=1500)
    record(tmp_path / "steps", model=Spiked())
    record(tmp_path / "once", model=Spiked())
    assert contents(tmp_path / "steps") == contents(tmp_path / "once")


def test_another_rule_is_refused_and_no_rule_flags_nothing(tmp_path):
    store = record(tmp_path / "r", model=Spiked(), tokens=2000, outlier_times=0.0)
    assert store.outlier_rule is None
    assert not store.outliers("a").any()
    assert store.shuffled("a", 10).left_out == 0
    with pytest.raises(RecordingError, match=r"outlier_times: recorded 0\.0, asked 10\.0"):
        record(tmp_path / "r", model=Spiked())


def test_a_recording_from_before_there_was_a_rule_is_extended_without_one(tmp_path):
    from scope.activations.format.files import read_json, write_json

    record(tmp_path / "r", model=Spiked(), tokens=2048)
    path = tmp_path / "r" / "manifest.json"
    manifest = read_json(path)
    del manifest["config"]["outlier_times"], manifest["outliers"]
    write_json(path, manifest)
    store = record(tmp_path / "r", model=Spiked())
    assert store.n_contexts == 188
    assert store.outlier_rule is None
    assert not ActivationStore.open(tmp_path / "r").outliers("a").any()


@pytest.mark.parametrize("times", [1.0, -3.0, float("nan")])
def test_a_multiple_that_would_flag_half_of_the_rows_is_refused(times):
    with pytest.raises(ActivationsError, match="outlier_times is"):
        HarvestConfig(outlier_times=times)
