"""Counterparts of one pack's latents in another: by brute force, and where there can be none."""

import numpy as np
import pytest

from scope.errors import PackError
from scope.features.compare.counterparts import counterparts
from scope.features.face import Pack
from tests.features.toy_pack import make_toy_pack


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for seed in range(2):
        make_toy_pack(folder / str(seed), seed=seed)
    return [Pack.open(folder / str(seed)) for seed in range(2)]


def test_counterparts_are_those_of_brute_force(two):
    a, b = two
    pairs = counterparts(a, b)
    lists = [{f.id: {t for t, _ in f.promoted} for f in pack if not f.dead} for pack in two]
    assert list(pairs.index) == list(lists[0])
    for latent, row in pairs.iterrows():
        overlap = {j: len(lists[0][latent] & tokens) for j, tokens in lists[1].items()}
        assert row["shared"] == max(overlap.values())
        assert overlap[row["other"]] == row["shared"]


def test_few_latents_are_taken_evenly(two):
    taken = counterparts(*two, most=6).index
    assert len(taken) <= 6
    assert np.ptp(taken) > 12


def test_packs_without_promoted_tokens_or_of_other_vocabularies_are_refused(two, monkeypatch):
    a, b = two
    monkeypatch.setitem(a._relations, "promoted_id", np.zeros((a.d_sae, 0), np.int32))
    with pytest.raises(PackError, match="no promoted tokens"):
        counterparts(a, b)
    monkeypatch.setitem(b.__dict__, "vocab", ["x"])
    with pytest.raises(PackError, match="different vocabularies"):
        counterparts(a, b)
