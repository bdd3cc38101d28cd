"""Two texts token by token, on views whose latents are made up."""

import numpy as np
import pytest

from scope.errors import PackError
from scope.features.face import Pack
from scope.features.reading.two_texts import alignment, compared_by_token
from scope.features.reading.view import TokenView
from tests.features.toy_pack import make_toy_pack


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligned") / "toy"
    make_toy_pack(folder)
    return Pack.open(folder)


def view(store, ids: list[int], fires: dict[tuple[int, int], float]) -> TokenView:
    latents = np.zeros((len(ids), 24), np.float32)
    for (token, latent), share in fires.items():
        latents[token, latent] = share * store.table["max"].iat[latent]
    counted = np.array([i > 3 for i in ids])
    return TokenView(store, ids, store.pieces(ids), latents, 0.1, counted, np.full(len(ids), 0.1))


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ([2, 4, 5, 9], [2, 4, 7, 9], [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ([2, 4, 5, 9], [2, 4, 7, 8, 9], [(0, 0), (1, 1), (3, 4)]),
        ([2, 4, 9], [2, 9], [(0, 0), (2, 1)]),
    ],
)
def test_equal_tokens_and_exchanged_stretches_of_one_length_stand_for_each_other(first, second, pairs):
    assert alignment(first, second) == pairs


def test_a_latent_changes_where_its_aligned_tokens_differ_most(store):
    a = view(store, [2, 4, 5, 9], {(1, 9): 0.5, (2, 9): 0.9, (3, 10): 0.4})
    b = view(store, [2, 4, 7, 8, 9], {(1, 9): 0.2, (2, 9): 0.1, (4, 10): 0.4, (4, 11): 0.6})
    rows, alone, alone_second = compared_by_token(a, b)
    assert (alone, alone_second) == (1, 2)
    assert rows.index.tolist() == [11, 9]  # 10 fires alike where the texts meet again; 9's exchanged token has no partner
    assert rows.loc[9, ["first", "second", "change"]].tolist() == pytest.approx([0.5, 0.2, -0.3])
    assert rows.loc[11, ["at", "at_second"]].tolist() == [3, 4]
    assert rows.loc[11, "token"] == store.vocab[9]


def test_texts_without_a_common_stretch_are_refused(store):
    a, b = view(store, [2, 4, 5], {}), view(store, [2, 7, 8, 9], {})
    with pytest.raises(PackError, match="pooled"):
        compared_by_token(a, b)
