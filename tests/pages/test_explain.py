"""A hit is a sum over pairs of latents, for SAEs of every site near the end, and drawn where the pairs are."""

import numpy as np
import pytest
import torch
from PIL import ImageChops

from scope.errors import DictionaryError
from scope.models.pictures.draw import overlay
from scope.pages.build import build_index
from scope.pages.errors import PagesError
from scope.pages.head import Head, page_rows, query_rows
from scope.sae.configs.topk import TopKConfig
from scope.sae.topk import TopKSAE
from tests.pages.conftest import picture

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'
SITES = ["hook_embeddings", "proj.hook_out", "unembed.hook_in", "blocks.2.hook_resid_post"]
QUERY = "the dog runs"


def random_sae(model, site: str, d_sae: int = 40, k: int = 6, seed: int = 0) -> TopKSAE:
    """Latents in random directions, with biases, and far from reconstructing anything."""
    width = model.sites()[site]
    sae = TopKSAE(TopKConfig(d_in=width, d_sae=d_sae, k=k), site)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        directions = torch.nn.functional.normalize(torch.randn(d_sae, width, generator=generator), dim=1)
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
        sae.b_enc.copy_(0.1 * torch.randn(d_sae, generator=generator))
        sae.b_dec.copy_(0.2 * torch.randn(width, generator=generator))
    return sae.eval()


@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_the_head_from_a_site_gives_the_vectors_of_the_model(index, model, site):
    rows = page_rows(index, 2, site)
    torch.testing.assert_close(Head(model, site).vectors(rows.double()).float(), index.vectors(2), rtol=0, atol=2e-6)
    queries = Head(model, site).vectors(query_rows(index, QUERY, site).double())
    torch.testing.assert_close(queries.float(), index.queries([QUERY])[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_the_rows_add_up_to_the_score_and_each_is_what_its_parts_give(index, model, site):
    sae = random_sae(model, site)
    explanation = index.explain(QUERY, 2, sae)
    score = float(index.scores(QUERY)[0, 2])
    assert explanation.score == pytest.approx(score, abs=1e-5)
    assert explanation.gap == pytest.approx(0, abs=1e-6)
    assert abs(explanation.rounding).max() < 1e-6
    assert sum(explanation.sums().values()) == pytest.approx(explanation.score, abs=1e-6)
    assert abs(explanation.sums()["latent x latent"]) > 1e-3
    # one pair by hand: activations times directions through the head, divided as the whole vector was
    at = int(np.argmax(np.abs(explanation.value) * (explanation.query_latent >= 0) * (explanation.page_latent >= 0)))
    token, position = explanation.token[at], explanation.position[at]
    sides = []
    for rows, latent in (
        (query_rows(index, QUERY, site)[token], explanation.query_latent[at]),
        (page_rows(index, 2, site)[position], explanation.page_latent[at]),
    ):
        sides.append(
            taken_through(model, site, rows.double(), float(sae.encode(rows[None])[0, latent]) * sae.W_dec[latent].double())
        )
    assert explanation.value[at] == pytest.approx(float(sides[0] @ sides[1]), abs=1e-7)


def taken_through(model, site: str, x: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """What a part of the activation adds to the vector, written out."""
    weight, bias = model.proj.weight.double(), model.proj.bias.double()
    gain, rms = 1 + model.ln_final.weight.double(), (x.square().mean() + model.ln_final.eps).sqrt()
    if site == "hook_embeddings":
        return part
    if site == "proj.hook_out":
        return part / x.norm()
    if site == "unembed.hook_in":
        return weight @ part / (weight @ x + bias).norm()
    return weight @ (gain * part / rms) / (weight @ (gain * x / rms) + bias).norm()


@torch.no_grad()
def test_an_exact_sae_leaves_no_error_and_pairs_that_are_all_of_the_score(index, model):
    """Two latents for each coordinate, one for each sign: the SAE is the identity, and the vectors have no bias."""
    width = model.sites()["hook_embeddings"]
    sae = random_sae(model, "hook_embeddings", d_sae=2 * width, k=2 * width)
    eye = torch.cat([torch.eye(width), -torch.eye(width)])
    sae.W_dec.copy_(eye)
    sae.W_enc.copy_(eye.T)
    sae.b_enc.zero_()
    sae.b_dec.zero_()
    explanation = index.explain(QUERY, 0, sae)
    sums = explanation.sums()
    assert sums["latent x latent"] == pytest.approx(explanation.score, abs=1e-6)
    assert sums["with an error"] == pytest.approx(0, abs=1e-9)


@torch.no_grad()
def test_both_sides_can_have_saes_of_their_own_and_a_half_index_says_its_rounding(model, tmp_path):
    half = build_index(model, {"a.png": picture(0), "b.png": picture(1)}, tmp_path / "index")
    explanation = half.explain(
        QUERY, "b.png", random_sae(model, "unembed.hook_in"), random_sae(model, "hook_embeddings", seed=1)
    )
    assert explanation.gap == pytest.approx(0, abs=1e-6)
    assert 0 < abs(explanation.rounding).max() < 2e-3
    assert "hook_embeddings of the query, unembed.hook_in of the page" in str(explanation)


@torch.no_grad()
def test_tables_and_pictures_say_the_same_sums(index, model):
    explanation = index.explain(QUERY, 2, random_sae(model, "unembed.hook_in"))
    table, pairs = explanation.to_frame(), explanation.pairs(patches_only=False)
    assert table["value"].sum() + explanation.rounding.sum() == pytest.approx(explanation.score, abs=1e-6)
    assert pairs["value"].sum() == pytest.approx(explanation.sums()["latent x latent"])
    assert (pairs["value"].abs().diff().dropna() <= 1e-12).all()
    at_patches = table[table["place"].str.startswith("row")]
    assert explanation.beside_patches() == pytest.approx(table["value"].sum() - at_patches["value"].sum())
    numbers = at_patches["query part"].str.isdecimal() & at_patches["page part"].str.isdecimal()
    assert explanation.pairs()["value"].sum() == pytest.approx(at_patches["value"][numbers].sum())
    first = pairs.iloc[0]
    mine = (explanation.query_latent == first.query_latent) & (explanation.page_latent == first.page_latent)
    assert first.value == pytest.approx(explanation.value[mine].sum())
    assert "latent x latent" in str(explanation)
    assert explanation.drawn().size == index.shown(2).size
    html = index.explain("<b>dog</b>", 2, random_sae(model, "unembed.hook_in"))._repr_html_()
    assert "data:image/png" in html
    assert "<b>" not in html


def test_a_map_is_the_similarity_of_a_token_with_each_patch(index, tmp_path):
    maps = index.maps(QUERY, 2)
    similarity = index.queries([QUERY])[0] @ index.vectors(2).T
    assert maps.values.shape == (len(similarity), 3, 3)
    np.testing.assert_allclose(maps.values[4].ravel(), similarity[4, :9], atol=1e-6)
    assert maps.score == pytest.approx(float(index.scores(QUERY)[0, 2]), abs=1e-5)
    assert maps.token("dog") == next(i for i, piece in enumerate(maps.pieces) if "dog" in piece)
    with pytest.raises(PagesError, match="no token 'cat'"):
        maps.token("cat")
    at = int(maps.values[3].argmax())
    picture = index.shown(2)
    boxes = index.model.patch_boxes(picture.size)
    changed = np.asarray(ImageChops.difference(maps.drawn(3), overlay(picture, boxes, [0.0] * 9)))
    left, top, right, bottom = map(int, boxes[at])
    assert changed[top + 2 : bottom - 2, left + 2 : right - 2].mean() > 1.5 * changed.mean()
    assert maps.save(tmp_path / "map.png", "dog").read_bytes()[:4] == b"\x89PNG"
    assert "<b>" not in index.maps("<b>", 2)._repr_html_()
    assert np.asarray(maps.plot("dog").data[0].z).shape == (3, 3)


def test_an_sae_that_cannot_take_a_hit_apart_is_refused_with_the_way_out(index, model):
    with pytest.raises(PagesError, match="only what follows it linearly"):
        index.explain(QUERY, 0, random_sae(model, "blocks.0.hook_resid_post"))
    with pytest.raises(DictionaryError, match="width 99"):
        index.explain(QUERY, 0, TopKSAE(TopKConfig(d_in=99, d_sae=4, k=1), "unembed.hook_in"))
    other = random_sae(model, "unembed.hook_in")
    other.provenance["model"] = {"model": "other", "weights_sha256": "0" * 64}
    with pytest.raises(DictionaryError, match="was trained on other"):
        index.explain(QUERY, 0, other)
    assert index.explain(QUERY, 0, other, any_model=True).gap == pytest.approx(0, abs=1e-6)
