"""Sums by document: they give the scores of the whole, and intervals that are as wide as documents make them."""

import pytest
import torch

from scope.errors import ConfigError
from scope.evaluation import metrics
from scope.evaluation.by_position import PositionSums, ends_of, group_of
from scope.evaluation.latent_statistics import Firing
from scope.evaluation.tally import Histogram, Resampled, Tally


def noisy(n: int, d: int = 5):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator) + 3
    return x, x + 0.3 * torch.randn(n, d, generator=generator)


@pytest.mark.parametrize("units", [1, 4])
def test_sums_gathered_in_pieces_equal_the_metrics_of_the_whole(units):
    x, x_hat = noisy(60)
    tally = Tally(x.double().mean(0), units)
    of = torch.arange(60) % units
    for part, part_hat, at in zip(x.split(17), x_hat.split(17), of.split(17), strict=True):
        tally.add(part, part_hat, at)
    found = tally.result()
    assert found == pytest.approx({name: getattr(metrics, name)(x, x_hat).item() for name in found})


def test_pooled_fvu_does_not_depend_on_what_was_centred_on():
    x, x_hat = noisy(60)
    tally = Tally(torch.full((5,), -20.0), 3)
    tally.add(x, x_hat, torch.arange(60) % 3)
    assert tally.result()["fvu"] == pytest.approx(metrics.fvu(x, x_hat).item(), rel=1e-9)
    assert tally.result()["fvu_per_dimension"] == pytest.approx(metrics.fvu_per_dimension(x, x_hat).item(), rel=1e-9)


def test_equal_tokens_have_no_variance_to_explain():
    tally = Tally(torch.zeros(2))
    tally.add(torch.ones(3, 2), torch.zeros(3, 2))
    with pytest.raises(ConfigError, match="no variance"):
        tally.result()


def test_p40_the_interval_over_units_covers_the_mean_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    ones = torch.ones(40, dtype=torch.float64)
    covered = 0
    for seed in range(200):
        low, high = Resampled(40, seed, 300).ratio(torch.randn(40, generator=generator).double() + 1, ones)
        covered += low <= 1 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_p40_an_interval_over_documents_is_wider_where_a_document_fills_several_contexts():
    """Eight documents of five contexts each, equal within: contexts pretend to be forty observations."""
    values = torch.randn(8, generator=torch.Generator().manual_seed(1)).double().repeat_interleave(5)
    by_document = values.view(8, 5).sum(1), torch.full((8,), 5.0)
    narrow, wide = Resampled(40).ratio(values, torch.ones(40)), Resampled(8).ratio(*by_document)
    assert wide[1] - wide[0] > 1.8 * (narrow[1] - narrow[0])


def test_every_score_of_a_tally_has_an_interval_that_holds_it():
    x, x_hat = noisy(400)
    tally = Tally(x.double().mean(0), 20)
    tally.add(x, x_hat, torch.arange(400) // 20, torch.arange(400) % 7)
    scores, intervals = tally.result(), tally.intervals(Resampled(20))
    assert scores.keys() == intervals.keys()
    for name, (low, high) in intervals.items():
        assert low <= scores[name] <= high, name
    assert intervals["fvu"][1] - intervals["fvu"][0] < 0.05


def test_a_table_too_large_by_dimension_leaves_the_scores_and_the_other_intervals(monkeypatch):
    monkeypatch.setattr("scope.evaluation.tally._LARGEST", 10)
    x, x_hat = noisy(60)
    tally = Tally(x.double().mean(0), 4)
    tally.add(x, x_hat, torch.arange(60) % 4)
    assert tally.result()["fvu_per_dimension"] == pytest.approx(metrics.fvu_per_dimension(x, x_hat).item())
    intervals = tally.intervals(Resampled(4))
    assert "fvu_per_dimension" not in intervals
    assert intervals["fvu"][0] <= tally.result()["fvu"] <= intervals["fvu"][1]


def test_one_unit_has_no_interval():
    with pytest.raises(ConfigError, match="two at least"):
        Resampled(1)


def test_quantiles_of_whole_numbers_are_numbers_that_were_seen():
    histogram = Histogram(4)
    histogram.add(torch.arange(1, 101), torch.arange(100) % 4)
    (half, (low, high)), (most, _) = histogram.quantiles((0.5, 0.95), Resampled(4))
    assert (half, most) == (50.0, 95.0)
    assert low <= 50 <= high


# Latents


def test_firing_is_counted_in_any_number_of_pieces():
    latents = torch.relu(torch.randn(50, 12, generator=torch.Generator().manual_seed(2)) - 0.5)
    units = torch.arange(50) // 10
    whole, pieces = Firing(12), Firing(12)
    whole.add(latents, units)
    for part, of in zip(latents.split(7), units.split(7), strict=True):
        pieces.add(part, of)
    assert torch.equal(whole.counts, (latents > 0).sum(0))
    assert torch.equal(whole.keys, pieces.keys)
    assert torch.equal(whole.times, pieces.times)


def test_the_share_of_dense_latents_has_an_interval_over_documents():
    """Ten documents of ten tokens: latent 0 fires always, latent 1 in half of the documents only, latent 2 never."""
    latents = torch.zeros(100, 3)
    latents[:, 0] = 1
    latents[:50, 1] = 1
    firing = Firing(3)
    firing.add(latents, torch.arange(100) // 10)
    found = firing.result(torch.full((10,), 10.0), 0.4, Resampled(10))
    assert found["dense"] == pytest.approx(2 / 3)
    low, high = found["interval"]["dense"]
    assert (low, high) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert found["never_fired"] == pytest.approx(1 / 3)


def test_p31_of_the_latents_that_never_fired_some_would_on_more_text():
    """Chao: 6 latents in one document only, 3 in two, so at least 36/6 * 9/10 = 5.4 of the 10 silent ones are not dead."""
    firing = Firing(20)
    for latent in range(6):
        firing.add(torch.eye(20)[[latent]], torch.tensor([latent]))
    for latent in range(6, 9):
        firing.add(torch.eye(20)[[latent]].repeat(2, 1), torch.tensor([0, 1]))
    firing.add(torch.eye(20)[[9]].repeat(3, 1), torch.tensor([0, 1, 2]))
    found = firing.result(torch.full((10,), 2.0), 0.5, Resampled(10))
    assert found["never_fired"] == 0.5
    assert found["interval"]["never_fired"] == (pytest.approx((10 - 5.4) / 20), 0.5)


# Positions


def test_groups_of_positions_double_after_the_first():
    found = group_of(torch.arange(40)).tolist()
    assert found[:10] == [0, 1, 2, 3, 4, 5, 5, 5, 5, 6]
    for position, group in enumerate(found):
        first, last = ends_of(group)
        assert first <= position <= last


def test_p08_scores_by_position_are_those_of_the_tokens_there():
    curve = PositionSums(2, 20)
    positions, units = torch.arange(20).repeat(2), torch.arange(40) // 20
    error, ones = torch.arange(40.0), torch.ones(40)
    curve.add(positions, units, tokens=ones, error=error, spread=4 * ones, l0=2 * ones)
    curve.add(positions[1:5], units[1:5], predicted=ones[1:5], loss=ones[1:5])
    rows = {row["from"]: row for row in curve.result(Resampled(2))}
    assert rows[5]["to"] == 8
    assert rows[5]["fvu"] == pytest.approx(error.view(2, 20)[:, 5:9].sum().item() / (4 * 8))
    assert (rows[3]["l0"], rows[3]["delta_loss"], rows[9]["delta_loss"]) == (2.0, 1.0, None)
    assert [row["counted"] for row in rows.values()] == [False] + [True] * (len(rows) - 1)
