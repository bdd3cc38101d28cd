"""Packs of pictures: heat maps equal the latents of the model on the picture, and nothing of a picture's file but its pixels is
kept or run."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scope.activations.config import HarvestConfig
from scope.activations.harvest.harvest import harvest
from scope.activations.pictures.sources import open_pictures

from scope.errors import PackError
from scope.features.collect.collect_pack import CollectConfig, collect
from scope.features.face import Pack
from scope.models.load import load_model
from scope.models.pictures.inputs import InputOptions
from scope.sae.files import save_sae
from tests.models.vision_twins import save_with_words, siglip
from tests.steering.conftest import random_sae

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'
SITES = {"siglip": "vision.blocks.0.hook_resid_post", "paligemma": "blocks.0.hook_resid_post"}
N, D_SAE = 40, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pictures")
    for i in range(N):
        levels = np.random.default_rng(i).integers(0, 255, (20 + i % 3, 30, 3), dtype=np.uint8)
        levels[:, :15] = (200, 0, 0) if i % 2 else (0, 0, 200)
        exif = Image.Exif()
        exif[0x010E] = "<script>alert(1)</script>"
        Image.fromarray(levels).save(place / f"<b>p{i:02d}.png", exif=exif)
        (place / f"<b>p{i:02d}.txt").write_text("a red side" if i % 2 else "a blue side")
    shutil.copy(place / "<b>p01.png", place / "z<b>p01.png")  # the same picture again
    return place


@pytest.fixture(scope="module", params=list(SITES))
def lab(request, folder, tmp_path_factory):
    place, site = tmp_path_factory.mktemp("lab"), SITES[request.param]
    if request.param == "siglip":
        siglip(place / "model")
    else:
        save_with_words(place / "model", ["a red side", "a blue side", "caption en"] * 40)
    model = load_model(str(place / "model"))
    maker = model.inputs_for([site], InputOptions(prompt="caption en"))
    context = maker.context_for(None)
    config = HarvestConfig(sites=(site,), context=context, dtype="float32", tokens=10**6)
    store = harvest(model, maker, open_pictures(str(folder)), config, place / "recording", model.provenance)
    sae = random_sae(model.sites()[site], D_SAE, site)
    sae.provenance = {"model": dict(model.provenance), "site": site}
    save_sae(sae, place / "dictionary")
    collect(model, sae, store, CollectConfig(), place / "pack", dictionary=str(place / "dictionary"))
    return model, sae, store, Pack.open(place / "pack"), place


def test_a_heat_map_is_the_latent_at_every_patch_of_the_picture(lab, folder):
    model, sae, store, pack, _ = lab
    checked = 0
    for feature in list(pack)[:8]:
        for example in [*feature.pictures("top", 4), *feature.pictures("random", 3)]:
            rows = store.rows_of_context(example.context)
            patches = rows.start + np.flatnonzero(store.positions[rows] < example.grid.n_patches)
            latents = sae.encode(store[pack.site][patches.tolist()])[:, feature.id].detach().numpy()
            np.testing.assert_allclose(example.acts, latents, rtol=1e-4, atol=1e-5)
            assert example.size == Image.open(folder / example.document).size
            if example.peak is not None:
                assert example.acts[example.peak] == pytest.approx(example.value, rel=1e-5)
                assert example.boxes == model.patch_boxes(example.size)
                assert example.map[example.place] == example.acts[example.peak]
            checked += 1
    assert checked > 20


def test_a_pack_made_from_a_corpus_equals_one_of_a_recording_of_it(lab, folder, tmp_path):
    from scope.workflows.features import collect_features

    *_, pack, place = lab
    settings = {"corpus": str(folder), "certificate": False, "score_prompts": 0, "seed": 0, "bad_pictures": "skip"}
    made = collect_features(str(place / "dictionary"), out=tmp_path / "pack", tokens=10**6, **settings)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["pack"]  # its recording is gone
    assert made.table["density"].tolist() == pack.table["density"].tolist()
    shown, before = (next(f for f in each if f.pictures()).pictures("top", 3) for each in (made, pack))
    assert [e.file for e in shown] == [e.file for e in before]
    np.testing.assert_array_equal(shown[0].map, before[0].map)


def test_a_demo_asks_about_pictures_with_latents_added_at_their_patches_beside_random_directions(lab):
    from types import SimpleNamespace

    from scope.workflows.demo import _steer_pictures

    model, sae, store, pack, _ = lab
    facts = [{**f, "question": "caption en"} for f in store.document_facts[:2]]
    asked = SimpleNamespace(document_facts=facts, thumbnail=store.thumbnail, document_names=store.document_names)
    run, answers = _steer_pictures(model, sae, pack, asked, 0)
    if not model.cfg.family_name.startswith("PaliGemma"):
        assert (run, answers) == (None, "")
        return
    assert [edit.positions.kind for edit in run.edits] == ["image"]
    assert "Asked 'caption en' of " in answers
    assert "with random directions" in answers
    assert _steer_pictures(model, sae, pack, store, 0) == (None, "")  # no question


def test_of_equal_pictures_one_is_a_top_example_and_every_picture_can_be_one(lab):
    *_, pack, _ = lab
    for feature in list(pack)[:8]:
        names = [example.document.removeprefix("z") for example in feature.pictures("top", 16)]
        on_patches = [e.document.removeprefix("z") for e in feature.pictures("top", 16) if e.peak is not None]
        assert len(set(on_patches)) == len(on_patches)
        assert len(names) == min(16, len(feature.examples("top", 16)))
    assert not pack.table["flags"].str.contains("single-token").any() or "paligemma" in pack.title


def test_what_a_file_and_its_name_say_is_neither_kept_nor_run(lab):
    *_, pack, place = lab
    feature = next(f for f in pack if f.pictures())
    example = feature.pictures()[0]
    assert b"script" not in example.file
    html = feature._repr_html_() + example._repr_html_() + feature.pictures()._repr_html_()
    assert "<b>p" not in html
    assert "&lt;b&gt;p" in html
    saved = Image.open(example.save(place / "map.png"))
    assert not saved.getexif()
    assert saved.size == example.image().size
    assert not np.array_equal(np.asarray(saved), np.asarray(example.image(heat=False).resize(saved.size)))


def test_words_beside_pictures_are_a_label_where_a_latent_goes_with_them_and_beat_chance():
    from scope.features.collect.streams import WordsBeside

    texts = [f"a {'red' if i % 2 else 'blue'} thing of {i % 7}" for i in range(60)]
    beside = WordsBeside(3, texts)
    strongest = np.stack([np.arange(60) % 2 * 2.0, np.ones(60), np.random.default_rng(0).random(60)], 1)
    for first in (0, 20, 40):
        context, feature = np.nonzero(strongest[first : first + 20])
        beside.add(feature, context + first, strongest[context + first, feature], first, 20)
    r = beside.result()
    expected = np.corrcoef(strongest[:, 2], beside.present[:, beside.words.index("3")])[0, 1]
    assert r[0, beside.words.index("red")] == pytest.approx(1, abs=1e-6)
    assert r[2, beside.words.index("3")] == pytest.approx(expected, abs=1e-5)
    assert np.abs(r[1]).max() < 1e-6
    assert np.abs(r[2]).max() < beside.chance


def test_a_damaged_file_of_pictures_is_refused_and_a_pack_without_one_is_of_text(lab, tmp_path):
    *_, _pack, place = lab
    folder = shutil.copytree(place / "pack", tmp_path / "pack")
    data = bytearray((folder / "pictures.h5").read_bytes())
    data[len(data) // 2] ^= 255
    (folder / "pictures.h5").write_bytes(data)
    with pytest.raises(PackError, match=r"pictures.h5 is damaged"):
        Pack.open(folder)[0].pictures()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["pictures.h5"], manifest["pictures"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert Pack.open(folder)[0].pictures() == []
    assert Pack.open(folder)[0].examples()


def test_a_picture_of_yours_is_read_as_those_of_the_pack(lab, folder):
    model, sae, store, pack, _ = lab
    shown = next(e for f in pack for e in f.pictures("top", 3) if e.peak is not None)
    latent = next(f.id for f in pack if any(e.file == shown.file and e.value == shown.value for e in f.pictures("top", 3)))
    text = store.document_facts[int(store.documents[shown.context, 0])]["text"]
    view = pack.read_picture(folder / shown.document, model, sae, answer=text)
    np.testing.assert_allclose(view.map(latent), shown.map, rtol=1e-4, atol=1e-5)
    assert view.values(latent)[shown.peak] == pytest.approx(shown.value, rel=1e-4)
    again = pack.read_picture(Image.open(folder / shown.document), model, sae, answer=text)
    assert np.array_equal(view.latents, again.latents)
    assert list(view.boxes) == model.patch_boxes(view.picture.size)
    assert view.roles.count("image") == view.n_patches
    assert Image.open(io.BytesIO(view.png(latent))).size == view.image(latent).size
    assert "<img" in view._repr_html_()
    assert len(view.top(3, "value")) == 3
    with pytest.raises(PackError, match="read_picture"):
        pack.read("text", model, sae)
