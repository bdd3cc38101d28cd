"""The small recurrent model that ships with the package: the same in transformers within its window, whole, and trained."""

import pytest
import torch

import scope
from scope.models.checkpoints import BUNDLED, SHIPPED
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.pretrain.evaluate import document_bits
from tests.models.griffin_twins import reference

FOLDER = SHIPPED["bundled-recurrent"]
TEXT = (
    "The old man went down to the river, and his two sons went with him. When they came to the water, they saw a small boat, "
    "and in the boat there was a box of wood. He opened it, and there was nothing in it but a letter."
)


@pytest.fixture(scope="module")
def model():
    return scope.load_model("bundled-recurrent")


@torch.no_grad()
def test_it_gives_the_logits_of_transformers_up_to_its_window_and_beyond_with_its_convention(model):
    theirs = reference(FOLDER)
    tokens = model.to_tokens(TEXT * 4)[:, : model.cfg.n_ctx]
    expected = theirs(tokens, use_cache=False).logits
    torch.testing.assert_close(model(tokens)[:, :128], expected[:, :128], rtol=0, atol=1e-4)
    other = scope.load_model("bundled-recurrent", window_convention="hf")
    torch.testing.assert_close(other(tokens), expected, rtol=0, atol=1e-4)


def test_it_has_the_tokenizer_of_the_bundled_model(model):
    assert (FOLDER / "tokenizer.json").read_bytes() == (BUNDLED / "tokenizer.json").read_bytes()
    assert model.provenance["model"] == "bundled-recurrent"


def test_it_predicts_english_far_better_than_a_model_of_random_weights(model):
    """2.2 bits a byte is what a compressor needs for so short a text, and 3 what its bytes alone would."""
    [(bits, n_tokens)] = document_bits(model, [TEXT])
    assert n_tokens < 80
    assert bits / len(TEXT.encode()) < 1.9


def test_it_writes_the_same_with_a_cache_and_without(model):
    sampling = SamplingConfig(max_new_tokens=24)
    prompts = ["In the morning", "The first thing that"]
    with_cache, without = (generate(model, prompts, sampling, use_cache=cache) for cache in (True, False))
    assert with_cache == without


def test_all_shipped_models_together_are_small_and_the_card_says_what_it_is():
    shipped = [file for folder in SHIPPED.values() for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in shipped) < 60e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for part in ("## Training", "## Text", "## Held-out text", "## Limits", "RecurrentGemma", "window_convention"):
        assert part in card, part
