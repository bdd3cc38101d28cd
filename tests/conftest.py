"""Tiny random models and text that every test can use: no network, no bundled weights."""

import os
import random
from dataclasses import replace

if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores; before torch is loaded
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from tests.help.checking import check_signatures

check_signatures()  # before the first import of what is checked

from scope.models.gemma.config import GemmaConfig  # noqa: E402
from scope.models.gemma.model import Gemma  # noqa: E402
from scope.models.text.tokenizer import Tokenizer  # noqa: E402
from scope.pretrain.tokenizer import train_tokenizer  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))

# Files of tests that take longest, first: begun last, one of them would keep a process busy while the others have ended.
_LONG = ("tests/notebooks/", "tests/browser/", "tests/evaluation/test_certificate", "tests/cli/test_demo", "tests/training/")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: next((i for i, name in enumerate(_LONG) if item.nodeid.startswith(name)), len(_LONG)))


_SUBJECTS = "the dog|a cat|my sister|the old king|one small boat|an angry crowd|the teacher|this function".split("|")
_VERBS = "runs to|looks at|returns|sails over|sings about|counts|breaks|asks for".split("|")
_OBJECTS = "the river|a list of numbers|the red house|her friend|12 apples|the moon|nothing|a value".split("|")


@pytest.fixture(scope="session")
def toy_text() -> list[str]:
    """300 short documents of plain sentences, from a fixed seed."""
    rng = random.Random(0)

    def sentence() -> str:
        return f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)}"

    return [". ".join(sentence() for _ in range(rng.randint(3, 12))) + "." for _ in range(300)]


@pytest.fixture(scope="session")
def toy_tokenizer(toy_text) -> Tokenizer:
    return Tokenizer(train_tokenizer(toy_text, 384))


@pytest.fixture(scope="session")
def coder(toy_tokenizer) -> Tokenizer:
    """The toy tokenizer with CodeGemma's four marks of infilling."""
    from scope.activations.corpus.infill import MARKS

    backend = Backend.from_str(toy_tokenizer.backend.to_str())
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS.values()])
    return Tokenizer(backend)


@pytest.fixture(scope="session")
def coding_gemma(coder, tiny_config) -> Gemma:
    """A random Gemma 1 with one key-value head, as a CodeGemma 2B, whose tokenizer has the marks of infilling."""
    first = {"model_type": "gemma", "attn_cap": None, "final_cap": None, "layer_types": (), "n_kv_heads": 1}
    return random_gemma(replace(tiny_config, **first, d_vocab=len(coder)), coder)


def random_gemma(config: GemmaConfig, tokenizer: Tokenizer | None = None, seed: int = 0) -> Gemma:
    """A model whose every parameter is random, gains too: zeros would hide half of all mistakes."""
    model = Gemma(config, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.3 if p.dim() == 1 else 3 * p.shape[1] ** -0.5 if "embed" in name else p.shape[1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator) * scale)
    model.provenance = {
        "model": "tiny",
        "revision": None,
        "weights_sha256": f"random-{seed}",
        "config_sha256": "tiny",
        "tokenizer_sha256": tokenizer.sha256 if tokenizer else "none",
        "dtype": "float32",
    }
    return model.eval()


@pytest.fixture(scope="session")
def tiny_config(toy_tokenizer) -> GemmaConfig:
    """Heads x d_head differs from d_model, key-value heads from heads, and the window is shorter than the context."""
    return GemmaConfig(
        d_model=32,
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        d_head=12,
        d_mlp=48,
        d_vocab=len(toy_tokenizer),
        n_ctx=64,
        window=8,
        query_scalar=12,
    )


@pytest.fixture
def tiny_model(tiny_config, toy_tokenizer) -> Gemma:
    return random_gemma(tiny_config, toy_tokenizer)
