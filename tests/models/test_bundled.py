"""The model that ships with the package: the same in transformers and here, whole, and small enough to ship."""

import pytest
import torch

from scope.models.checkpoints import BUNDLED
from scope.models.load import load_model
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig

TEXT = (
    "The river begins in the mountains, and 12 boats go down to the sea every day.\n\n"
    "def f(x):\n    return {'a': [x, 'naïve']}\n"
)


@pytest.fixture(scope="module")
def bundled():
    return load_model("bundled")


@torch.no_grad()
@pytest.mark.parametrize("times", [1, 6])
def test_the_bundled_model_gives_the_logits_of_transformers_within_and_beyond_its_window(bundled, times):
    from transformers import Gemma2ForCausalLM

    theirs = Gemma2ForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = bundled.to_tokens(TEXT * times)[:, : bundled.cfg.n_ctx]
    assert (tokens.shape[1] > bundled.cfg.window) is (times > 1)
    torch.testing.assert_close(bundled(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)


def test_autotokenizer_reads_the_bundled_tokenizer_with_bos_and_loses_nothing(bundled):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(BUNDLED)
    ids = theirs(TEXT)["input_ids"]
    assert ids == bundled.words.encode(TEXT)
    assert theirs.decode(ids[1:]) == TEXT


def test_the_bundled_model_writes_the_same_with_a_cache_and_without(bundled):
    sampling = SamplingConfig(max_new_tokens=24)
    prompts = ["In the morning", "The first thing that"]
    with_cache, without = (generate(bundled, prompts, sampling, use_cache=cache) for cache in (True, False))
    assert with_cache == without


def test_the_bundled_model_is_bf16_under_30_megabytes_and_says_what_it_is():
    from safetensors import safe_open

    with safe_open(BUNDLED / "model.safetensors", framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118 - not a dict
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 30e6
    card = (BUNDLED / "README.md").read_text(encoding="utf-8")
    assert all(heading in card for heading in ("## Training", "## Text", "## Limits"))
