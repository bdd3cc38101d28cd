"""Latents of a text: ranked, as a matrix, and one text against another, by numbers that can be checked by hand."""

import numpy as np
import pytest

from scope.errors import PackError
from scope.features.face import Pack
from scope.features.reading.two_texts import compared
from scope.features.reading.view import TokenView, matrix, ranked
from tests.features.toy_pack import make_toy_pack


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompt") / "toy.pack"
    make_toy_pack(folder)
    return Pack.open(folder)


def view(store, fires: dict[int, list[float]]) -> TokenView:
    """A reading of four tokens, <bos> first, on which latents fire as given."""
    latents = np.zeros((4, store.d_sae), np.float32)
    for latent, values in fires.items():
        latents[:, latent] = values
    counted = np.array([False, True, True, True])
    return TokenView(store, [2, 4, 5, 13], store.pieces([2, 4, 5, 13]), latents, 0.1, counted, np.full(4, 0.1))


def test_latents_are_ranked_by_value_share_and_surprise(store):
    largest = store.table["max"]
    seen = view(store, {3: [0, 0, 1.0, 0], 4: [0, 0.5, 0, 0]})
    assert ranked(seen, by="value").index.tolist() == [3, 4]
    rows = ranked(seen, by="share")
    assert rows["share"].to_dict() == pytest.approx({3: 1.0 / largest[3], 4: 0.5 / largest[4]})
    assert rows["token"].to_dict() == {3: " dog", 4: " the"}
    surprise = ranked(seen, by="surprise")
    for latent, value in ((3, 1.0), (4, 0.5)):
        stronger = max((1 - store[latent].quantile(value)) * store.table["count"][latent], 0.5)
        assert surprise["surprise"][latent] == pytest.approx(np.log10(store.n_tokens / stronger))


def test_a_token_shows_only_what_fires_on_it_and_filters_narrow_it(store):
    seen = view(store, {2: [0, 2.0, 2.0, 0], 3: [0, 0, 1.0, 0], 4: [0, 0.5, 0, 0]})
    assert "dense" in store[2].flags
    assert ranked(seen, 1).index.tolist() == [4]
    assert set(ranked(seen, 1, dense=True).index) == {2, 4}
    assert ranked(seen, 3).empty
    low = min(ranked(seen)["quantile"])
    assert len(ranked(seen, least=low + 1e-6)) == 1


def test_the_matrix_holds_shares_in_the_order_of_first_firing(store):
    seen = view(store, {3: [0, 0, 1.0, 0.5], 4: [0, 0.5, 0, 0]})
    latents, shares = matrix(seen)
    assert latents == [4, 3]
    assert shares[1].tolist() == pytest.approx([0, 0, 1.0 / store.table["max"][3], 0.5 / store.table["max"][3]])


def test_two_texts_differ_by_the_change_of_the_pooled_share(store):
    a, b = view(store, {3: [0, 0, 1.0, 0], 4: [0, 0.5, 0, 0]}), view(store, {3: [0, 0.2, 0.4, 0]})
    rows = compared(a, b)
    assert rows["change"][3] == pytest.approx((0.4 - 1.0) / store.table["max"][3])
    assert rows["second"][4] == 0
    mean = compared(a, b, pool="mean")
    assert mean["first"][3] == pytest.approx(1.0 / 3 / store.table["max"][3])


def test_what_cannot_be_ranked_is_refused(store):
    seen = view(store, {3: [0, 0, 1.0, 0]})
    with pytest.raises(PackError, match="surprise, value, share"):
        ranked(seen, by="luck")
    with pytest.raises(PackError, match="tokens 0 to 3"):
        ranked(seen, 9)
    with pytest.raises(PackError, match="largest, mean"):
        compared(seen, seen, pool="median")
