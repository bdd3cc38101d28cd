"""Where the app finds a pack's dictionary, and when it loads anew what it keeps."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from scope.app.serve import models

from scope.errors import DictionaryError
from scope.features.face import Pack
from scope.provenance import ModelId

DATA_PACK = Path(__file__).parents[1] / "data" / "version_0_1_0" / "pack"
HUB = "google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"


def pack_of(folder, stated):
    manifest = Pack.open(DATA_PACK).manifest
    return Pack(folder / "pack", replace(manifest, dictionary=manifest.dictionary | {"path": stated}))


def test_a_dictionary_is_where_it_was_or_beside_the_pack(tmp_path):
    (tmp_path / "dictionary").mkdir()
    (tmp_path / "mine").mkdir()
    assert models.dictionary_of(pack_of(tmp_path, str(tmp_path / "mine"))) == str(tmp_path / "mine")
    for gone in (str(tmp_path / "gone"), HUB, None):
        assert models.dictionary_of(pack_of(tmp_path, gone)) == str(tmp_path / "dictionary")


def test_a_dictionary_of_the_hub_is_named_by_its_id(tmp_path):
    assert models.dictionary_of(pack_of(tmp_path, HUB)) == HUB


@pytest.mark.parametrize("stated", ["/gone/with/the/wind", "./a/b/c", "~/a/b/c", "owner/name", "dictionary", None])
def test_what_is_neither_here_nor_on_the_hub_is_refused(tmp_path, stated):
    with pytest.raises(DictionaryError, match="not where it was"):
        models.dictionary_of(pack_of(tmp_path, stated))


def test_a_dictionary_trained_anew_and_a_model_written_anew_are_loaded_anew(tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr("scope.sae.files.read_sae", lambda place, device: loads.append(place) or len(loads))
    monkeypatch.setattr("scope.models.load.load_model", lambda name, **how: loads.append(name) or len(loads))
    weights = tmp_path / "model.safetensors"
    for load in (models.load_dictionary, lambda place: models.load_model(ModelId(name=place))):
        weights.write_bytes(b"old")
        os.utime(weights, ns=(1, 1))
        first = load(str(tmp_path))
        assert load(str(tmp_path)) == first
        os.utime(weights, ns=(2, 2))
        assert load(str(tmp_path)) == first + 1
