"""The Prompt page with several dictionaries of one model on one text."""

import json
import shutil
from pathlib import Path

import pytest

from scope.features.collect.collect_pack import CollectConfig, collect
from scope.features.face import Pack
from scope.features.reading.several_saes import overview, ranked_together
from scope.models.load import load_model
from scope.sae.files import read_sae, save_sae
from tests.app.conftest import said
from tests.steering.conftest import random_sae

TEXT = "the dog ran"


@pytest.fixture(scope="module")
def packs(tmp_path_factory, folder) -> dict[str, Path]:
    """The tiny lab's pack, and one of another dictionary of the same model at another site."""
    model, first = load_model(str(folder / "checkpoint")), Pack.open(folder / "pack")
    sae = random_sae(model.cfg.d_model, 40)
    sae.site = next(site for site in model.sites() if site.endswith("hook_resid_post") and site != first.site)
    sae.provenance = {"model": dict(model.provenance), "site": sae.site}
    place = tmp_path_factory.mktemp("other") / "other"
    save_sae(sae, place / "dictionary")
    import torch

    tokens = torch.tensor(first.contexts[:20].astype(int))
    collect(model, read_sae(place / "dictionary"), tokens, CollectConfig(score_prompts=0), place / "pack")
    return {"tiny": folder / "pack", "other": place / "pack"}


@pytest.fixture
def page(open_app, packs):
    def opened(**params):
        return open_app("prompt", packs=list(packs.values()), text=TEXT, dense="true", pack="tiny", **params)

    return opened


@pytest.fixture(scope="module")
def views(packs, folder):
    model = load_model(str(folder / "checkpoint"))
    stores = {slug: Pack.open(place) for slug, place in packs.items()}
    saes = {slug: read_sae(place.parent / "dictionary") for slug, place in packs.items()}
    return {slug: store.read(TEXT, model, saes[slug]) for slug, store in stores.items()}


def frame(at, column: str):
    return next(f.value for f in at.dataframe if column in f.value)


def test_one_dictionary_names_no_dictionary(page):
    at = page()
    assert not at.exception
    assert "dictionary" not in frame(at, "surprise")
    assert at.multiselect(key="also").options == ["other"]


def test_latents_of_both_are_ranked_together_as_the_library_ranks_them(page, views):
    at = page(also="other")
    assert not at.exception
    table, wanted = frame(at, "surprise"), ranked_together(views, dense=True)
    assert list(zip(table["dictionary"], table["latent"], strict=True)) == list(
        zip(wanted["dictionary"], wanted["latent"], strict=True)
    )
    assert set(table["dictionary"]) == {"tiny", "other"}


def test_what_each_leaves_unexplained_stands_side_by_side(page, views):
    at = page(also="other", colour="unexplained")
    table = frame(at, "fvu")
    assert table["fvu"].tolist() == pytest.approx(overview(views)["fvu"].tolist(), rel=1e-5)
    assert table["site"].nunique() == 2
    strips = [json.loads(c.proto.json) for c in at.get("bidi_component")]
    drawn = next(data["rows"] for data in strips if data.get("pick"))
    assert [row["notes"] for row in drawn] == [["tiny"], ["other"]]


def test_a_latent_of_the_other_pack_colours_the_text_and_links_to_its_own_page(page, views):
    at = page(also="other")
    wanted = ranked_together(views, dense=True)
    latent = int(wanted.loc[wanted["dictionary"] == "other", "latent"].iloc[0])
    at.session_state["shown latent"] = ("other", latent)
    at.run()
    strips = [json.loads(c.proto.json) for c in at.get("bidi_component")]
    drawn = next(data["rows"] for data in strips if data.get("pick"))
    assert drawn[0]["value"] == f"other #{latent}"
    links = [link.proto.query_string for link in at.get("page_link") if link.proto.label.startswith("Open")]
    assert links
    assert f"pack=other&f={latent}" in links[0]


def test_direct_effects_of_both_are_ranked_together(page):
    at = page(also="other", by="direct effect")
    assert not at.exception
    effects = frame(at, "direct")["direct"].abs().tolist()
    assert effects == sorted(effects, reverse=True)


def test_packs_of_other_models_are_not_offered(open_app, packs, toy_folder):
    at = open_app("prompt", packs=[packs["tiny"], toy_folder], text=TEXT, dense="true", pack="tiny")
    assert not at.exception
    assert not [m for m in at.multiselect if m.key == "also"]


def test_a_pack_whose_dictionary_is_gone_is_told_and_the_other_goes_on(open_app, packs, tmp_path):
    alone = shutil.copytree(packs["other"], tmp_path / "lonely" / "pack")
    places = [packs["tiny"], alone]
    at = open_app("prompt", packs=places, text=TEXT, dense="true", pack="tiny", also="lonely")
    assert not at.exception
    assert "dictionary" in said(at)
    assert len(frame(at, "surprise"))


def test_a_kept_reading_brings_back_its_dictionaries(page):
    at = page(also="other")
    next(b for b in at.button if b.label == "Save reading").click()
    run = at.run().query_params["run"]
    again = page(run=run if isinstance(run, str) else run[0])
    assert not again.exception
    assert again.multiselect(key="also").value == ["other"]
    assert set(frame(again, "surprise")["dictionary"]) == {"tiny", "other"}
