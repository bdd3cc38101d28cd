"""Scores on pictures equal their definitions: FVU of each kind of rows, the loss of answers, the change of vectors."""

import numpy as np
import pytest
import torch
from PIL import Image
from scope.activations.corpus.document import Document
from scope.activations.corpus.roles import Role

from scope.errors import ConfigError
from scope.evaluation import metrics
from scope.evaluation.pictures.evaluate_pictures import evaluate_pictures
from scope.evaluation.result import EvaluateConfig
from scope.models.load import load_model
from scope.models.pictures.inputs import InputOptions
from tests.models.vision_twins import save_with_words, siglip
from tests.steering.conftest import random_sae

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'
CONFIG = EvaluateConfig(contexts=6, batch_contexts=4, resamples=20)


def documents(tmp_path, answers=True):
    for i in range(6):
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
