"""Latents that mean a word in pictures and in texts are told from those of one side, beside chance."""

import numpy as np
import pytest
import torch

from scope.circuits.modalities import aucs, modalities
from scope.errors import ConfigError, EditError
from scope.models.load import load_model
from scope.models.siglip.words import TextTowerTokenizer
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from tests.models.vision_twins import siglip
from tests.steering.conftest import random_sae

WORDS = ("red", "green", "dog", "cat")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'


@pytest.fixture
def planted(tmp_path):
    """(model, SAE, pictures, texts): latent 0 fires on "red" in pictures and texts, latent 1 on "dog" in pictures alone."""
    model = load_model(str(siglip(tmp_path)))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (160, 2)).astype(bool)
    texts = [f"a {WORDS[0 if a else 1]} {WORDS[2 if b else 3]} here" for a, b in labels]
    d = model.sites()["vision.hook_pooled"]

    def vectors(given, sites):
        site = sites[0]
        rows = labels if site.startswith("vision") else np.array([[("red" in t), ("dog" in t)] for t in given])
        x = torch.randn(len(given), d, generator=torch.Generator().manual_seed(len(given))) * 0.1
        for i in range(len(given)):
            red, dog = rows[given[i]] if site.startswith("vision") else rows[i]
            x[i, 0] += 3.0 * red
            x[i, 1] += 3.0 * dog * site.startswith("vision")
        return {site: x}

    model.record, model.to_pixels, model.to_tokens = vectors, list, list
    model.tokenizer = object.__new__(TextTowerTokenizer)
    model.tokenizer.encode = str.split
    sae = JumpReLUSAE(JumpReLUConfig(d_in=d, d_sae=d * 2, target_l0=2), "vision.hook_pooled")
    with torch.no_grad():
        for p in sae.parameters():
            p.zero_()
        sae.W_enc[:d, :d] = torch.eye(d)
        sae.W_enc[:, d:] = torch.randn(d, d, generator=torch.Generator().manual_seed(9)) * 0.3
        sae.W_dec[:] = torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(1))
        sae.threshold.fill_(0.05)
    sae.provenance = {"model": model.provenance, "weights_sha256": "sae"}
    return model, sae.requires_grad_(False), list(range(160)), texts


def test_a_word_that_both_sides_know_is_told_from_one_that_pictures_alone_know(planted):
    found = modalities(*planted, WORDS[:1] + WORDS[2:3], draws=20)
    red, dog = found.rows
    assert (red.word, red.latent) == ("red", 0)
    assert red.pictures > 0.99
    assert red.texts > 0.99
    assert red.both
    assert (dog.word, dog.latent) == ("dog", 1)
    assert dog.pictures > 0.99
    assert 0.3 < dog.texts < 0.7
    assert not dog.both
    assert 0.4 < red.pictures_by_chance < 0.8
    assert "1 of these latents tell the word in texts too" in str(found)
    assert found.to_frame()["both"].tolist() == [True, False]


def test_exchanged_pictures_leave_nothing_beyond_chance(planted):
    model, sae, pictures, texts = planted
    shuffled = [texts[i] for i in np.random.default_rng(5).permutation(len(texts))]
    found = modalities(model, sae, pictures, shuffled, ["red", "dog"], draws=40)
    assert max(row.pictures for row in found.rows) < 0.75


def test_words_are_those_of_the_texts_unless_they_are_given(planted):
    assert [row.word for row in modalities(*planted, draws=2).rows] == ["cat", "dog", "green", "red"]


def test_pictures_whose_text_does_not_fit_are_left_out_and_counted(planted):
    model, sae, pictures, texts = planted
    texts = [f"{text} and much more than the tower can read" if i < 7 else text for i, text in enumerate(texts)]
    found = modalities(model, sae, pictures, texts, ["red"], draws=2)
    assert found.n_too_long == 7
    assert found.n_held_out == 77
    assert "7 pictures were left out" in str(found)


def test_an_auc_counts_ties_as_half():
    scores = np.array([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert aucs(scores, np.array([True, True, False, False])).tolist() == [1.0, 0.5]
    assert np.isnan(aucs(scores, np.ones(4, bool))).all()


def test_too_few_pictures_another_site_and_a_word_that_is_nowhere_are_refused(planted):
    model, sae, pictures, texts = planted
    with pytest.raises(EditError, match="purple"):
        modalities(model, sae, pictures, texts, ["purple"])
    with pytest.raises(EditError, match="Give more pictures"):
        modalities(model, sae, pictures[:4], texts[:4])
    with pytest.raises(EditError, match="one text a picture"):
        modalities(model, sae, pictures, texts[:3])
    with pytest.raises(ConfigError, match="hook_pooled of a SigLIP"):
        modalities(model, random_sae(), pictures, texts)
