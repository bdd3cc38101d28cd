"""What pages keep of a pack between their runs."""

import json

import numpy as np
import pytest
from scope.app.serve import packs
from scope.app.warm_up import warm_up

from scope.features.face import Pack
from tests.features.toy_pack import make_toy_pack


def test_a_figure_is_made_again_for_other_latents_or_labels_and_only_then(tmp_path):
    make_toy_pack(tmp_path / "toy")
    store = Pack.open(tmp_path / "toy")
    made = []

    def shown(*latents: int) -> int:
        return packs.cached_recently(store, "points", np.array(latents), lambda: made.append(latents) or len(made))

    assert [shown(1, 2), shown(1, 2), shown(2), shown(1, 2), shown(2)] == [1, 1, 2, 1, 2]
    store.table = store.table.assign(label="another")
    assert [shown(1, 2), shown(1, 2)] == [3, 3]
    for latent in range(20):
        shown(latent)
    assert shown(1, 2) == len(made)  # not kept for ever


def test_the_first_visit_finds_the_first_pack_open_and_its_overview_computed(tmp_path, monkeypatch):
    make_toy_pack(tmp_path / "toy")
    monkeypatch.setenv(packs.PACKS, json.dumps([str(tmp_path / "toy")]))
    warm_up()
    monkeypatch.setattr(Pack, "open", lambda folder: pytest.fail("opened a second time"))
    store = packs.open_pack("toy")
    assert packs.once(store, "start here", lambda: pytest.fail("computed a second time"))


def test_a_pack_that_cannot_be_opened_or_none_at_all_does_not_keep_the_server_from_starting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(packs.PACKS, raising=False)
    warm_up()
    make_toy_pack(tmp_path / "toy")
    (tmp_path / "toy" / "manifest.json").write_text("{")
    monkeypatch.setenv(packs.PACKS, json.dumps([str(tmp_path / "toy")]))
    warm_up()
