"""What the pages say when something is missing, damaged or out of range."""

import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
from scope.app.serve import models

from scope.errors import CheckpointError, PackError, TokensError
from scope.features.face import Pack
from scope.features.pack.format import SCHEMA
from scope.features.reading.view import TokenView
from tests.app.conftest import bars, said
from tests.help.components import tiles


@pytest.fixture
def own_pack(tmp_path, toy_folder):
    """A pack that a test may damage."""
    return Path(shutil.copytree(toy_folder, tmp_path / "mine" / "pack"))


def test_without_packs_the_page_says_how_to_make_one(open_app, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(json, "dumps", lambda packs: "[]")
    at = open_app()
    assert not at.exception
    assert "There are no packs in" in said(at)
    assert "scope demo" in said(at)
    assert "scope features" in said(at)


def test_packs_in_runs_are_found_when_none_is_given(open_app, monkeypatch, tmp_path, toy_folder):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy_folder, tmp_path / "runs" / "demo" / "pack")
    monkeypatch.setattr(json, "dumps", lambda packs: "[]")
    assert [line.value for line in open_app().sidebar.markdown] == ["Pack **demo**"]


def test_a_pack_being_built_tells_how_far_it_is(open_app, tmp_path):
    building = tmp_path / "new.building"
    building.mkdir()
    (building / "build.json").write_text('{"done": 40, "total": 100}')
    at = open_app(packs=[tmp_path / "new"])
    assert "40 of 100 tokens" in said(at)
    assert at.get("progress")[0].proto.value == 40
    assert any("updates itself" in caption.value for caption in at.caption)


def test_a_pack_that_is_finished_meanwhile_opens(open_app, tmp_path, toy_folder):
    (tmp_path / "new.building").mkdir()
    (tmp_path / "new.building" / "build.json").write_text("{")
    at = open_app(packs=[tmp_path / "new"])
    assert "just begun" in said(at)
    shutil.copytree(toy_folder, tmp_path / "new")
    assert not at.run().error
    assert tiles(at)


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


@pytest.mark.parametrize(
    ("schema", "what", "way_out"),
    [(0, "older than this program", "Make it again"), (99, "newer than this program", "Open it with scope 9.9 or later")],
)
def test_another_schema_says_both_versions_and_the_way_out(open_app, own_pack, schema, what, way_out):
    manifest = json.loads((own_pack / "manifest.json").read_text())
    (own_pack / "manifest.json").write_text(json.dumps({**manifest, "schema": schema, "made": {"scope": "9.9"}}))
    told = said(open_app(packs=[own_pack]))
    assert f"schema {schema}" in told
    assert f"reads schema {SCHEMA}" in told
    assert what in told
    assert way_out in told
    assert ("Make it again" in told) is (schema < SCHEMA)  # never over a pack that a newer program wrote


def test_a_table_of_relations_that_was_cut_short_is_told_and_other_panels_stand(open_app, own_pack):
    file = own_pack / "relations.h5"
    file.write_bytes(bytes(file.stat().st_size))  # the right size, and nothing that HDF5 knows
    at = open_app("feature", packs=[own_pack], f=9)
    assert not at.exception
    assert "damaged" in said(at)
    assert tiles(at)


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
    at.session_state["how made"] = True
    at.run()
    next(b for b in at.button if b.label == "Check every byte of this pack").click().run()
    assert "contexts.npy" in said(at)


@pytest.mark.parametrize("f", [24, -1, 10**15])
def test_a_latent_out_of_range_is_refused_with_the_range(open_app, f):
    at = open_app("feature", f=f)
    assert "from 0 to 23" in said(at)
    assert not at.title


@pytest.mark.parametrize("f", ["abc", "1.5", "", "1e2", "<b>7</b>"])
def test_a_latent_that_is_no_number_is_refused_and_not_read_as_the_first(open_app, f):
    at = open_app("feature", f=f)
    assert "whole numbers from 0 to 23" in said(at)
    assert not at.title


def test_a_pack_that_is_not_open_is_refused_and_the_open_ones_named(open_app):
    at = open_app("feature", pack="other", f=3)
    assert "No pack called 'other'" in said(at)
    assert "Open: toy" in said(at)


def test_a_dead_latent_says_in_how_many_tokens_and_keeps_its_weights(open_app, toy_folder):
    at, store = open_app("feature", f=0), Pack.open(toy_folder)
    assert f"did not fire in {store.n_tokens:,} tokens" in said(at)
    assert f"{3 / store.n_tokens:.1e}" in said(at)
    assert len(bars(at)) == 1
    assert not at.get("plotly_chart")


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
    assert tiles(hurt)
    assert len(bars(hurt)) == 1  # what it writes still stands
    well = open_app("feature", packs=[own_pack], f=10)
    assert not well.warning


def tried(at, text: str = "the dog"):
    """A text written into the test field of a latent's page, and Read pressed."""
    at.text_area(key="text").set_value(text)
    return next(b for b in at.button if b.label == "Read").click().run()


def test_a_text_cannot_be_tested_without_the_dictionary_and_browsing_goes_on(open_app, monkeypatch):
    monkeypatch.setattr("scope.app.serve.models.load_model", lambda known: None)
    at = tried(open_app("feature", f=9, tab="Try a text"))
    assert "dictionary of this pack is not where it was" in said(at)
    assert tiles(at)


def test_another_dictionary_than_the_packs_is_refused(open_app, monkeypatch, tmp_path):
    def another(store, model, sae):
        raise PackError("The pack was made with something else:\n  model weights: this pack's aa, given bb")

    monkeypatch.setattr("scope.app.serve.models.load_model", lambda known: None)
    monkeypatch.setattr("scope.app.serve.models.load_dictionary", lambda folder: None)
    monkeypatch.setattr("scope.app.serve.models.dictionary_of", lambda store: tmp_path)
    monkeypatch.setattr("scope.features.reading.read_text.check_same", another)
    at = tried(open_app("feature", f=9, tab="Try a text"))
    assert "this pack's aa, given bb" in said(at)


@pytest.mark.parametrize(
    "told",
    [
        "google/gemma-2-2b is gated: accept its licence on https://huggingface.co/google/gemma-2-2b, then run `hf auth login`",
        "google/gemma-2-2b is no folder here and the hub is switched off (HF_HUB_OFFLINE).",
        "google/gemma-2-2b is no folder here, and https://huggingface.co cannot be reached.",
    ],
)
def test_a_model_that_cannot_be_had_is_named_and_browsing_goes_on(open_app, monkeypatch, told):
    def cannot(known):
        raise CheckpointError(told)

    monkeypatch.setattr("scope.app.serve.models.load_model", cannot)
    at = tried(open_app("feature", f=9, tab="Try a text"))
    assert told in said(at).replace("\u2060", "")
    assert tiles(at)
    assert len(bars(at)) == 1


@pytest.fixture
def no_model(monkeypatch, tmp_path):
    """Live actions get this far without a model."""
    monkeypatch.setattr("scope.app.serve.models.load_model", lambda known: None)
    monkeypatch.setattr("scope.app.serve.models.load_dictionary", lambda folder: None)
    monkeypatch.setattr("scope.app.serve.models.dictionary_of", lambda store: tmp_path)
    monkeypatch.setattr("scope.features.reading.read_text.check_same", lambda store, model, sae: None)
    monkeypatch.setattr("scope.models.griffin.shares.recurrent_layers", lambda model: [])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")])
def test_without_memory_the_page_says_so_lets_the_model_go_and_keeps_the_text(open_app, monkeypatch, no_model, error):
    def too_much(store, text, model, sae):
        raise error

    monkeypatch.setattr(Pack, "read", too_much)
    at = tried(open_app("feature", f=9, tab="Try a text"))
    assert not at.exception
    assert "not enough memory" in said(at)
    assert at.text_area(key="text").value == "the dog"
    ticket = models.queue().join()
    assert models.queue().ahead(ticket) == 0  # nobody holds the model any more
    models.queue().leave(ticket)


def test_another_error_of_torch_is_not_taken_for_missing_memory():
    with pytest.raises(RuntimeError, match="shapes"), models.memory_errors():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_a_text_that_is_too_long_is_refused_with_its_length_and_the_part_that_fits(open_app, monkeypatch, no_model):
    def too_long(store, text, model, sae):
        if len(text) > 10:
            raise TokensError("The text has 300 tokens; the context holds 256.")

    monkeypatch.setattr(Pack, "read", too_long)
    monkeypatch.setattr("scope.app.serve.models.truncated", lambda store, text: (text[:7], 300, 256))
    at = open_app("prompt", text="the dog and the river")
    assert "300 tokens" in said(at)
    assert any(button.label == "Read the first 256 tokens" for button in at.button)
    assert at.get("text")[0].value == "the dog"


def test_a_poor_reconstruction_is_told_beside_the_text(open_app, monkeypatch, no_model, toy_folder):
    def poorly(store, text, model, sae):
        return SimpleNamespace(pieces=["the", " dog"], values=lambda f: np.array([0.0, 2.0]), fvu=0.7, tuned=str)

    monkeypatch.setattr(Pack, "read", poorly)
    at = tried(open_app("feature", f=9, tab="Try a text"))
    assert not at.exception
    assert "explains only 30%" in said(at)


def test_a_dictionary_of_another_tuning_is_told_in_amber_with_what_it_leaves_unexplained(open_app, monkeypatch, no_model):
    told = "The dictionary was trained on gemma-2-2b, and the text was read by gemma-2-2b-it, another tuning of it."

    def read(store, text, model, sae):
        latents = np.zeros((2, store.d_sae), np.float32)
        latents[1, 9] = 2.0
        return TokenView(store, [4, 5], ["the", " dog"], latents, 0.31, np.ones(2, bool), np.full(2, 0.31), told)

    monkeypatch.setattr(Pack, "read", read)
    monkeypatch.setattr("scope.app.prompt.panels.next_tokens_after", lambda *_: pd.DataFrame({"token": ["."], "p": [1.0]}))
    for at in (tried(open_app("feature", f=9, tab="Try a text")), open_app("prompt", text="the dog")):
        assert not at.exception
        assert any("leaves 31.0%" in box.value.replace("\\", "") for box in at.warning)
        assert "another tuning" in said(at)


def test_the_place_in_the_queue_for_the_model_is_shown_until_it_is_the_readers_turn(open_app, monkeypatch, no_model):
    at, messages, queue = open_app("feature", f=9, tab="Try a text"), [], models.queue()
    monkeypatch.setattr(
        "streamlit.delta_generator.DeltaGenerator.info", lambda self, text, **kwargs: messages.append(text), raising=True
    )

    def read(store, text, model, sae):
        return SimpleNamespace(pieces=["the"], values=lambda f: np.array([1.0]), fvu=0.1, latents=np.zeros(1), tuned=str)

    monkeypatch.setattr(Pack, "read", read)
    other = queue.join()
    threading.Timer(2.0, lambda: queue.leave(other)).start()
    at = tried(at)
    assert not at.exception
    assert any("1 ahead of you" in text for text in messages)
    assert at.session_state["tested"]["toy", 9][0]["text"] == "the dog"
