"""What follows a text, and what the latents add to it by the direct path."""

import numpy as np
import pytest
import torch

from scope.features.face import Pack
from scope.features.reading.direct_effects import direct_effects, next_tokens
from scope.models.load import load_model
from scope.sae.files import read_sae
from tests.conftest import random_gemma
from tests.help.labs import make_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tiny_config, toy_tokenizer, toy_text):
    folder = make_lab(tmp_path_factory.mktemp("direct") / "tiny", random_gemma(tiny_config, toy_tokenizer), toy_text)
    store = Pack.open(folder / "pack")
    model, sae = load_model(str(folder / "checkpoint")), read_sae(folder / "dictionary")
    return store.read("the dog runs to the river", model, sae), model, sae


@torch.no_grad()
def test_the_likeliest_tokens_are_the_models(lab):
    view, model, _ = lab
    p = model(torch.tensor([view.ids]))[0].softmax(-1)
    for at in (2, None):
        rows = next_tokens(view, model, at, k=5)
        wanted = p[-1 if at is None else at].topk(5)
        assert rows["id"].tolist() == wanted.indices.tolist()
        assert rows["p"].tolist() == pytest.approx(wanted.values.tolist(), rel=1e-4)


@torch.no_grad()
def test_a_direct_effect_is_what_leaving_the_latent_out_before_the_last_norm_would_take_with_the_norms_scale_held(lab):
    view, model, sae = lab
    token, effects = direct_effects(view, model, sae)
    stream = model(torch.tensor([view.ids]), stop_at_layer=model.cfg.n_layers)[0, -1].double()
    scale = (stream.square().mean() + model.cfg.eps).sqrt()
    gain, unembedding = 1 + model.ln_final.weight.double(), model.W_U.double()

    def centred(x):
        logits = (x / scale * gain) @ unembedding
        return float(logits[token] - logits.mean())

    for latent in np.argsort(-view.latents[-1])[:3]:
        part = float(view.latents[-1, latent]) * sae.W_dec[latent].double()
        assert effects[latent] == pytest.approx(centred(stream) - centred(stream - part), abs=1e-4)
    assert not effects[view.latents[-1] == 0].any()
