"""The guess game: its answers are those of the activations themselves."""

import numpy as np
import pytest

from scope.errors import PackError
from scope.features.face import Pack
from scope.features.labels.guess import draw_windows
from tests.features.toy_pack import VOCAB, make_toy_pack


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guess") / "pack"
    return make_toy_pack(folder), Pack.open(folder)


def where(tokens: list[str], brute) -> list[tuple[int, int]]:
    """(context, offset) of every place where these tokens stand."""
    ids = [VOCAB.index(t) for t in tokens]
    spots = []
    for c, row in enumerate(brute.tokens):
        spots += [(c, o) for o in range(len(row) - len(ids) + 1) if row[o : o + len(ids)].tolist() == ids]
    return spots


@pytest.mark.parametrize("latent", [4, 9, 12])
def test_it_fires_in_five_of_ten_and_is_silent_throughout_the_others(toy, latent):
    brute, store = toy
    windows = draw_windows(store[latent], seed=3)
    assert sorted(w.peak is None for w in windows) == [False] * 5 + [True] * 5
    for window in windows:
        n = len(window.tokens)
        truths = [brute.latents[c, o : o + n, latent] for c, o in where(window.tokens, brute)]
        assert any(np.allclose(truth, window.acts, rtol=1e-3) for truth in truths)
        assert window.peak is None or window.acts[window.peak] == max(window.acts)


def test_neither_length_nor_order_tells_the_answer(toy):
    _, store = toy
    orders = {tuple(w.peak is None for w in draw_windows(store[9], seed)) for seed in range(8)}
    assert len(orders) > 4
    windows = draw_windows(store[9], 0)
    assert len({len(w.tokens) for w in windows}) == 1
    assert draw_windows(store[9], 0) == windows


def test_a_latent_without_enough_examples_is_refused(toy):
    with pytest.raises(PackError, match="too few"):
        draw_windows(toy[1][0], 0)
    with pytest.raises(PackError, match="silent"):
        draw_windows(toy[1][2], 0)  # dense: it is never silent for long
