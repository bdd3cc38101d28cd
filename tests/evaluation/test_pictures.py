"""Scores on pictures equal their definitions: FVU of each kind of rows, the loss of answers, the change of vectors."""

import numpy as np
import pytest
import torch
from PIL import Image
from scope.activations.config import HarvestConfig
from scope.activations.corpus.document import Document
from scope.activations.corpus.roles import Role
from scope.activations.harvest.harvest import harvest
from scope.activations.pictures.sources import open_pictures

from scope.errors import ConfigError, DictionaryError
from scope.evaluation import metrics
from scope.evaluation.certificate.certify import certify
from scope.evaluation.pictures.evaluate_pictures import evaluate_pictures
from scope.evaluation.result import EvaluateConfig
from scope.models.load import load_model
from scope.models.pictures.inputs import InputOptions
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from scope.workflows.training_source import recorded_provenance
from tests.models.vision_twins import save_with_words, siglip
from tests.steering.conftest import random_sae

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'
CONFIG = EvaluateConfig(contexts=6, batch_contexts=4, resamples=20)


def documents(tmp_path, answers=True, n=6):
    for i in range(n):
        file = tmp_path / f"p{i}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(file)
        yield Document(file.name, "a red circle" * answers, picture=str(file))


def sae_at(model, site, **recording):
    sae = random_sae(model.sites()[site], 40, site)
    sae.provenance = {"model": dict(model.provenance), "recording": recording}
    return sae


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory):
    place = tmp_path_factory.mktemp("paligemma")
    save_with_words(place, ["a red circle", "caption en"] * 40)
    return load_model(str(place))


@pytest.mark.parametrize("site", ["blocks.1.hook_resid_post", "projector.hook_out", "vision.blocks.0.hook_resid_post"])
def test_a_paligemma_is_scored_by_the_loss_of_its_answers_and_by_kind_of_rows(paligemma, site, tmp_path):
    model, sae = paligemma, sae_at(paligemma, site)
    maker = model.prompt_maker(InputOptions(prompt="caption en"))
    inputs = maker.stream(documents(tmp_path), 20).take(6)
    scores = evaluate_pictures(model, sae, inputs, CONFIG)
    batch = inputs.to("cpu")
    mask = batch.arguments["attention_mask"]
    assert scores.counted["loss"] == pytest.approx(float(model.loss_fn(model(batch), batch.tokens, mask)))
    x = model.record(batch, [site])[site].float()
    roles = torch.as_tensor(inputs.roles)[:, : x.shape[1]]
    rows = {"image": x[roles == Role.IMAGE], "text": x[(roles == Role.PROMPT) | (roles == Role.ANSWER)]}
    for kind, scored in scores.arms["sae"]["by_kind"].items():
        assert scored["tokens"] == len(rows[kind])
        assert scored["fvu"] == pytest.approx(float(metrics.fvu(rows[kind], sae(rows[kind]))), rel=1e-4)
    assert set(scores.arms["sae"]["by_kind"]) == ({"image", "text"} if site.startswith("blocks") else {"image"})
    counted = torch.isin(roles, torch.tensor([Role.IMAGE, Role.PROMPT, Role.ANSWER]))
    replaced = x.clone()
    replaced[counted] = sae(x[counted])
    with model.hooks([(site, lambda old, hook: replaced.view_as(old))]):
        spliced = model.loss_fn(model(batch), batch.tokens, mask)
    assert scores["delta_loss"] == pytest.approx(float(spliced) - scores.counted["loss"], rel=1e-3, abs=1e-5)


def test_an_sae_of_patches_alone_is_scored_on_patches_alone(paligemma, tmp_path):
    maker = paligemma.prompt_maker(InputOptions(prompt="caption en"))
    inputs = maker.stream(documents(tmp_path), 20).take(6)
    scores = evaluate_pictures(paligemma, sae_at(paligemma, "blocks.1.hook_resid_post", rows="image"), inputs, CONFIG)
    assert scores.counted["tokens"] == 54
    assert list(scores.arms["sae"]["by_kind"]) == ["image"]
    without = maker.stream(documents(tmp_path, answers=False), 20).take(6)
    with pytest.raises(ConfigError, match="No context has an answer"):
        evaluate_pictures(paligemma, sae_at(paligemma, "blocks.1.hook_resid_post"), without, CONFIG)


def test_a_siglip_is_scored_by_the_change_of_its_vectors(tmp_path):
    model, site = load_model(str(siglip(tmp_path / "model"))), "vision.blocks.0.hook_resid_post"
    inputs = model.inputs_for([site]).stream(documents(tmp_path), 16).take(6)
    sae, pixels = sae_at(model, site), torch.as_tensor(inputs.arguments["pixel_values"])
    scores = evaluate_pictures(model, sae, inputs, CONFIG)
    with model.hooks([(site, lambda x, hook: sae(x.flatten(0, 1)).view_as(x))]):
        spliced = model.embed_images(pixels)
    change = 1 - (spliced * model.embed_images(pixels)).sum(1)
    assert scores["output_change"] == pytest.approx(float(change.mean()), rel=1e-4, abs=1e-6)
    assert "delta_loss" not in scores.arms["sae"]
    assert scores.arms["zero"]["output_change"] > 0


def components(x, site):
    """An SAE of both ends of each principal component of rows, which are most of them."""
    mean, n = x.mean(0), x.shape[1] - 4
    axes = torch.linalg.svd(x - mean, full_matrices=False).Vh[:n]
    sae = JumpReLUSAE(JumpReLUConfig(d_in=x.shape[1], d_sae=2 * n), site)
    both = torch.cat([axes, -axes])
    with torch.no_grad():
        values = {"W_enc": both.T, "W_dec": both, "b_dec": mean, "b_enc": -both @ mean, "threshold": torch.zeros(2 * n)}
        for name, value in values.items():
            getattr(sae, name).copy_(value)
    return sae.requires_grad_(False)


@pytest.mark.parametrize("site", ["blocks.1.hook_resid_post", "vision.blocks.1.hook_resid_post"])
def test_an_sae_of_pictures_is_certified_on_those_of_its_recording(paligemma, site, tmp_path):
    (tmp_path / "pictures").mkdir()
    for document in documents(tmp_path / "pictures", n=12):
        (tmp_path / "pictures" / document.name).with_suffix(".txt").write_text(document.text)
    maker = paligemma.inputs_for([site], InputOptions(prompt="caption en"))
    config = HarvestConfig(sites=(site,), context=maker.context_for(None), dtype="float32", tokens=10**6)
    corpus = open_pictures(str(tmp_path / "pictures"))
    store = harvest(paligemma, maker, corpus, config, tmp_path / "recording", paligemma.provenance)
    image = torch.from_numpy(store.row_roles == Role.IMAGE)
    sae = components(store[site][:][image], site)
    made = recorded_provenance(store, site)
    made["recording"]["rows"] = "image"
    made |= {"text_from": {"recording": str(tmp_path / "recording")}, "training": {"l0": 28.0, "fvu": 0.1}}
    sae.provenance = made
    certificate = certify(paligemma, sae)
    assert certificate.measured["tokens"] == int(image.sum())
    x = store[site][:][image]
    assert certificate.measured["fvu"] == pytest.approx(float(metrics.fvu(x, sae(x))), abs=1e-4)
    assert certificate.measured["fvu"] < certificate.null["fvu"]
    assert f"rows of {tmp_path / 'recording'}" in certificate.line()
    sae.site = site.replace(".1.", ".0.")
    with pytest.raises(DictionaryError, match=f"it reads {site}, not"):
        certify(paligemma, sae)
    sae.site, made["text_from"] = site, {}
    elsewhere = certify(paligemma, sae)
    assert elsewhere.provenance["text_missing"] == "pictures"
    assert "synthetic scenes" in elsewhere.notes[-1]
