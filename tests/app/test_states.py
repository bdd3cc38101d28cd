"""What the pages say when something is missing, damaged or out of range."""

import json
import shutil
from pathlib import Path

import h5py
import pytest

from scope.errors import PackError
from scope.features.store import FeatureStore
from tests.app.conftest import said


@pytest.fixture
def own_pack(tmp_path, toy_folder):
    """A pack that a test may damage."""
    return Path(shutil.copytree(toy_folder, tmp_path / "mine" / "pack"))


def test_without_packs_the_page_says_how_to_make_one(open_app, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(json, "dumps", lambda packs: "[]")
    at = open_app()
    assert not at.exception
    assert "No packs in" in said(at)
    assert "scope demo" in said(at)
    assert "scope features" in said(at)


def test_packs_in_runs_are_found_when_none_is_given(open_app, monkeypatch, tmp_path, toy_folder):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy_folder, tmp_path / "runs" / "demo" / "pack")
    monkeypatch.setattr(json, "dumps", lambda packs: "[]")
    assert open_app().selectbox[0].options == ["demo"]


def test_a_pack_being_built_tells_how_far_it_is(open_app, tmp_path):
    building = tmp_path / "new.building"
    building.mkdir()
    (building / "build.json").write_text('{"done": 40, "total": 100}')
    assert "40 of 100 tokens" in said(open_app(packs=[tmp_path / "new"]))


@pytest.mark.parametrize("page", ["overview", "features", "feature"])
def test_a_file_of_the_wrong_size_is_named(open_app, own_pack, page):
    (own_pack / "relations.h5").write_bytes(b"short")
    at = open_app(page, packs=[own_pack])
    assert not at.exception
    assert "relations.h5 has 5 bytes" in said(at)
    assert "make it again" in said(at)


def test_a_damaged_manifest_is_named(open_app, own_pack):
    (own_pack / "manifest.json").write_text("{")
    assert "manifest.json is damaged" in said(open_app(packs=[own_pack]))


def test_another_schema_says_both_versions(open_app, own_pack):
    manifest = json.loads((own_pack / "manifest.json").read_text())
    (own_pack / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    assert "schema 99" in said(open_app(packs=[own_pack]))


def test_a_damaged_pack_leaves_the_others_open(open_app, own_pack, toy_folder):
    (own_pack / "manifest.json").write_text("{")
    at = open_app(packs=[own_pack, toy_folder])
    assert at.error
    assert not at.selectbox[0].set_value("toy").run().error


def test_flipped_bytes_are_found_when_asked_for(open_app, own_pack):
    file = own_pack / "contexts.npy"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    at = open_app(packs=[own_pack])
    assert not at.error
    next(b for b in at.button if b.label == "Check every byte of this pack").click().run()
    assert "contexts.npy" in said(at)


@pytest.mark.parametrize("f", [24, -1, 10**15])
def test_a_latent_out_of_range_is_refused_with_the_range(open_app, f):
    at = open_app("feature", f=f)
    assert "from 0 to 23" in said(at)
    assert not at.subheader


@pytest.mark.parametrize("f", ["abc", "1.5", "", "1e2", "<b>7</b>"])
def test_a_latent_that_is_no_number_is_refused_and_not_read_as_the_first(open_app, f):
    at = open_app("feature", f=f)
    assert "whole numbers from 0 to 23" in said(at)
    assert not at.subheader


def test_a_pack_that_is_not_open_is_refused_and_the_open_ones_named(open_app):
    at = open_app("feature", pack="other", f=3)
    assert "No pack called 'other'" in said(at)
    assert "Open: toy" in said(at)


def test_a_dead_latent_says_in_how_many_tokens_and_keeps_its_weights(open_app, toy_folder):
    at, store = open_app("feature", f=0), FeatureStore.open(toy_folder)
    assert f"did not fire in {store.n_tokens:,} tokens" in said(at)
    assert f"{3 / store.n_tokens:.1e}" in said(at)
    assert len(at.get("plotly_chart")) == 3


def damage_examples(folder, latent):
    """Flip a byte in each chunk of one latent."""
    with h5py.File(folder / "examples.h5") as f:
        places = [f[name].id.get_chunk_info_by_coord((latent, *[0] * (f[name].ndim - 1))) for name in f]
    with (folder / "examples.h5").open("r+b") as f:
        for place in places:
            f.seek(place.byte_offset + place.size // 2)
            byte = f.read(1)[0]
            f.seek(-1, 1)
            f.write(bytes([byte ^ 0xFF]))


def test_one_damaged_chunk_is_told_on_that_latent_alone(open_app, own_pack):
    damage_examples(own_pack, 9)
    hurt = open_app("feature", packs=[own_pack], f=9)
    assert not hurt.exception
    assert "examples of latent 9 are damaged" in said(hurt)
    assert hurt.metric
    assert len(hurt.get("plotly_chart")) == 3  # what it writes still stands
    well = open_app("feature", packs=[own_pack], f=10)
    assert not well.warning


def test_a_text_cannot_be_tested_without_the_dictionary_and_browsing_goes_on(open_app, monkeypatch):
    monkeypatch.setattr("app.session.load_model", lambda name, revision: None)
    at = open_app("feature", f=9)
    at.text_area(key="text").set_value("the dog")
    next(b for b in at.button if b.label == "Read").click().run()
    assert "dictionary of this pack is not where it was" in said(at)
    assert at.metric


def test_another_dictionary_than_the_packs_is_refused(open_app, monkeypatch, tmp_path):
    def another(store, model, sae):
        raise PackError("The pack was made with something else:\n  model weights: this pack's aa, given bb")

    monkeypatch.setattr("app.session.load_model", lambda name, revision: None)
    monkeypatch.setattr("app.session.load_dictionary", lambda folder: None)
    monkeypatch.setattr("app.session.dictionary_of", lambda store: tmp_path)
    monkeypatch.setattr("scope.features.live.check_same", another)
    at = open_app("feature", f=9)
    at.text_area(key="text").set_value("the dog")
    next(b for b in at.button if b.label == "Read").click().run()
    assert "this pack's aa, given bb" in said(at)
