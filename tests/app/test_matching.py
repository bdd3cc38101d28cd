"""Two dictionaries held against each other on the Health page."""

import shutil

import pytest
import torch

from scope.features.collect.collect_pack import CollectConfig, collect
from scope.features.compare.matched_directions import matched_directions
from scope.features.face import Pack
from scope.models.load import load_model
from scope.sae.files import read_sae, save_sae
from tests.app.conftest import said


@pytest.fixture(scope="module")
def pair(tmp_path_factory, folder):
    """The tiny lab, and one of the same model and site whose second half of directions was drawn anew."""
    place = tmp_path_factory.mktemp("pair") / "late"
    sae, model = read_sae(folder / "dictionary"), load_model(str(folder / "checkpoint"))
    with torch.no_grad():
        half = sae.W_dec.shape[0] // 2
        sae.W_dec[half:] = torch.randn(sae.W_dec[half:].shape, generator=torch.Generator().manual_seed(9))
    save_sae(sae, place / "dictionary")
    tokens = torch.tensor(Pack.open(folder / "pack").contexts[:10].astype(int))
    collect(model, read_sae(place / "dictionary"), tokens, CollectConfig(score_prompts=0), place / "pack")
    return folder / "pack", place / "pack"


def test_the_button_tells_what_the_library_finds(open_app, pair):
    at = open_app("health", packs=list(pair), pack="tiny", beside="late")
    assert not at.exception
    next(b for b in at.button if b.label == "Match directions").click()
    at.run()
    assert not at.exception
    pairs, null = matched_directions(*(read_sae(pack.parent / "dictionary") for pack in pair))
    told = " ".join(c.value.replace("\\", "") for c in at.caption)
    assert f"nearest {pairs['cosine'].median():.2f}; of random directions {null:.2f}" in told
    table = next(f.value for f in at.dataframe if "nearest there" in f.value)
    lonely = table["latent"].tolist()
    assert pairs["cosine"][lonely].max() < 0.7
    assert pairs["cosine"][lonely].is_monotonic_increasing


def test_a_dictionary_that_is_gone_is_told_and_the_page_stands(open_app, pair, tmp_path):
    alone = shutil.copytree(pair[1], tmp_path / "alone" / "pack")
    shutil.copytree(
        pair[0].parent / "dictionary", tmp_path / "alone" / "dictionary"
    )  # another one, where it would be looked for
    at = open_app("health", packs=[pair[0], alone], pack="tiny", beside="alone")
    next(b for b in at.button if b.label == "Match directions").click()
    at.run()
    assert not at.exception
    assert "is not the one that the pack was made from" in said(at)
    assert at.dataframe
