"""One text with several dictionaries, on views whose latents are made up."""

import numpy as np
import pytest

from scope.errors import PackError
from scope.features.face import Pack
from scope.features.reading.several_saes import matrix_together, overview, ranked_together
from scope.features.reading.view import TokenView, matrix, ranked
from tests.features.toy_pack import make_toy_pack


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    made = {}
    for seed, name in enumerate(("early", "late")):
        folder = tmp_path_factory.mktemp("together") / name
        make_toy_pack(folder, seed=seed)
        store, rng = Pack.open(folder), np.random.default_rng(seed)
        latents = (rng.random((4, 24)) * (rng.random((4, 24)) < 0.3)).astype(np.float32)
        latents[0] = 0
        counted, ids = np.array([False, True, True, True]), [2, 4, 5, 13]
        fvu_at = np.array([np.nan, 0.1, 0.2, 0.3 + seed])
        made[name] = TokenView(store, ids, store.pieces(ids), latents, 0.1 + seed, counted, fvu_at)
    return made


@pytest.mark.parametrize("by", ["surprise", "share"])
@pytest.mark.parametrize("position", [None, 2])
def test_the_foremost_of_all_dictionaries_are_those_of_each_merged(views, by, position):
    rows = ranked_together(views, position, by, 7, dense=True)
    each = [(name, i, r[by]) for name, view in views.items() for i, r in ranked(view, position, by, 99, dense=True).iterrows()]
    wanted = sorted(each, key=lambda item: -item[2])[:7]
    assert list(zip(rows["dictionary"], rows["latent"], strict=True)) == [(name, i) for name, i, _ in wanted]
    assert set(rows["dictionary"]) == {"early", "late"}


def test_one_dictionary_is_ranked_as_alone(views):
    alone = ranked(views["early"], by="share", dense=True)
    rows = ranked_together({"early": views["early"]}, by="share", dense=True)
    assert rows["latent"].tolist() == alone.index.tolist()


def test_a_dictionary_of_which_nothing_fires_leaves_the_others_alone(views):
    silent = TokenView(**{**vars(views["late"]), "latents": np.zeros((4, 24), np.float32), "_quantiles": {}})
    both = {"early": views["early"], "late": silent}
    assert set(ranked_together(both, dense=True)["dictionary"]) == {"early"}
    assert ranked_together({"late": silent}).empty
    assert matrix_together({"late": silent})[1].shape == (0, 4)


def test_the_matrix_holds_each_dictionarys_own_rows(views):
    names, shares = matrix_together(views, 8, "share", dense=True)
    for (name, latent), row in zip(names, shares, strict=True):
        largest = views[name].pack.table["max"].iat[latent]
        assert row == pytest.approx(views[name].latents[:, latent] / max(largest, 1e-12), rel=1e-5)
    found, alone = matrix(views["early"], 5, dense=True)
    assert matrix_together({"early": views["early"]}, 5, dense=True)[0] == [("early", i) for i in found]
    assert np.array_equal(matrix_together({"early": views["early"]}, 5, dense=True)[1], alone)


def test_the_overview_counts_what_fires_and_what_is_left_in_the_text_or_at_a_token(views):
    whole, there = overview(views), overview(views, 3)
    counts = (views["late"].latents > 0).sum(1)
    assert whole["fires"].tolist()[1] == pytest.approx(counts[1:].mean())
    assert whole["fvu"].tolist() == pytest.approx([0.1, 1.1])
    assert there["fires"].tolist()[1] == counts[3]
    assert there["fvu"].tolist() == pytest.approx([0.3, 1.3])


def test_readings_of_other_tokens_are_refused(views):
    other = TokenView(**{**vars(views["late"]), "ids": [2, 4, 5, 12]})
    with pytest.raises(PackError, match="early and late did not read the same tokens"):
        ranked_together({"early": views["early"], "late": other})
