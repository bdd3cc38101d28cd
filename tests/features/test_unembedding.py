"""Every latent's logit on a token, by the live weights."""

import numpy as np
import pytest

from scope.errors import PackError
from scope.features.face import Pack
from scope.features.reading.direct_effects import promotes_by_weights
from scope.models.load import load_model
from scope.sae.files import read_sae
from tests.conftest import random_gemma
from tests.help.labs import make_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tiny_config, toy_tokenizer, toy_text):
    folder = make_lab(tmp_path_factory.mktemp("weights") / "tiny", random_gemma(tiny_config, toy_tokenizer), toy_text)
    store = Pack.open(folder / "pack")
    return store, load_model(str(folder / "checkpoint")), read_sae(folder / "dictionary")


def test_the_live_weights_give_the_figures_that_lie_in_the_pack(lab):
    store, model, sae = lab
    for latent in (0, 7, 31):
        for token, logit in store[latent].promoted[:3]:
            if token != token.strip() or len(store.loose_ids_of[token.casefold()]) > 1:
                continue
            hits = promotes_by_weights(store, token, model, sae)
            assert hits.loc[latent, "logit"] == pytest.approx(logit, abs=1e-3)


def test_all_latents_are_ranked_the_strongest_first(lab):
    store, model, sae = lab
    hits = promotes_by_weights(store, "dog", model, sae)
    assert sorted(hits.index) == list(range(store.d_sae))
    assert (np.diff(hits["logit"]) <= 0).all()


def test_another_dictionary_is_refused(lab):
    store, model, sae = lab
    other = load_sae_with_noise(sae)
    with pytest.raises(PackError, match="something else"):
        promotes_by_weights(store, "dog", model, other)


def load_sae_with_noise(sae):
    import copy

    import torch

    other = copy.deepcopy(sae)
    with torch.no_grad():
        other.W_dec += 1.0
    return other
