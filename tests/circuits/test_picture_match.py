"""The logit of a picture and a text is a sum over latents of the picture's side."""

import numpy as np
import pytest
import torch
from PIL import Image

from scope.circuits.picture_match import POOLED, attribute_match
from scope.errors import ConfigError, EditError
from scope.models.load import load_model
from tests.models.vision_twins import siglip
from tests.steering.conftest import random_sae

PATCHES = "vision.blocks.0.hook_resid_post"
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = load_model(str(siglip(tmp_path_factory.mktemp("siglip"))), dtype=torch.float64)
    ids = {"a red circle": [5, 9, 3], "a dog": [7, 7, 2]}
    model.to_tokens = lambda texts: torch.tensor([ids[t] for t in texts])
    return model


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))


def an_sae(model, site):
    sae = random_sae(model.sites()[site], 48, site).double()
    sae.provenance = {"model": model.provenance, "weights_sha256": "sae"}
    return sae


@pytest.mark.parametrize("other", [None, "a dog"])
def test_the_pooled_vectors_latents_add_up_to_the_logit_exactly(model, picture, other):
    sae = an_sae(model, POOLED)
    found = attribute_match(model, sae, picture, "a red circle", other)
    texts = ["a red circle"] if other is None else ["a red circle", other]
    logits = model(model.to_tokens(texts), pixel_values=model.to_pixels([picture]))[0]
    assert found.logit_difference == pytest.approx(float(logits[0] - (logits[1] if other else 0)), abs=1e-10)
    assert sum(row.value for row in found.rows) == pytest.approx(found.logit_difference, abs=1e-10)
    assert found.p_token == pytest.approx(float(torch.sigmoid(logits[0])))
    x = model.record(model.to_pixels([picture]), [POOLED])[POOLED].reshape(-1)
    text = model.embed_texts(model.to_tokens(["a red circle"]))[0]
    if other is None:
        latents = sae.encode(x[None])[0]
        for row in (row for row in found.rows if row.latent is not None):
            share = model.logit_scale.exp() * latents[row.latent] * (sae.W_dec[row.latent] @ text) / x.norm()
            assert row.value == pytest.approx(float(share), abs=1e-10)
    assert ("a dog" in str(found)) == (other is not None)
    assert found.draw().size
    assert "<img" in found.to_html()


@pytest.mark.parametrize("other", [None, "a dog"])
def test_patches_and_latents_add_up_to_the_logit_through_head_and_normalisation(model, picture, other):
    found = attribute_match(model, an_sae(model, PATCHES), picture, "a red circle", other, steps=24, draws=3)
    assert abs(found.gap) < 0.02 * sum(abs(row.value) for row in found.rows)
    assert len(found.patches) == len(found.boxes) == 16
    assert len(found.ablation.random) == 3


def test_what_cannot_be_split_is_refused(model, picture):
    with pytest.raises(EditError, match="picture's side"):
        attribute_match(model, an_sae(model, "text.blocks.0.hook_resid_post"), picture, "a dog")
    with pytest.raises(EditError, match="empty"):
        attribute_match(model, an_sae(model, POOLED), picture, " ")
    with pytest.raises(EditError, match="nothing to"):
        attribute_match(model, an_sae(model, POOLED), picture, "a dog", method="ablation")


def test_a_language_model_gives_no_logit_of_a_pair(tiny_model, picture):
    with pytest.raises(ConfigError, match="both towers"):
        attribute_match(tiny_model, random_sae(), picture, "a dog")
