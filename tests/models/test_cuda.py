"""On a GPU: the numbers of the CPU, generation, streaming. Skipped where there is none."""

import pytest
import torch

from scope.models.load import load_model
from tests.conftest import random_gemma
from tests.models.twins import SHAPES, save_checkpoint, some_tokens

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CONFIG = SHAPES["several kv heads, low caps"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy_tokenizer):
    return str(save_checkpoint(random_gemma(CONFIG), tmp_path_factory.mktemp("cuda"), toy_tokenizer))


@pytest.fixture(autouse=True)
def exact_products():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_every_hook_on_a_gpu_equals_the_cpu(folder, padded):
    tokens = some_tokens(CONFIG)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :7] = not padded
    caches = []
    for device in ("cpu", "cuda"):
        model = load_model(folder, device=device)
        given = {"attention_mask": mask.to(device)} if padded else {}
        _, whole = model.run_with_cache(tokens.to(device), device="cpu", **given)
        site = "blocks.3.hook_resid_post"
        _, pieces = model.run_with_cache(tokens.to(device), names_filter=site, device="cpu", **given)
        torch.testing.assert_close(pieces[site], whole[site], rtol=1e-5, atol=1e-4)
        caches.append(whole)
    for name, value in caches[0].items():
        torch.testing.assert_close(caches[1][name], value, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_generation_on_a_gpu_writes_what_the_cpu_writes_cached_or_not(folder):
    prompts, greedy = ["the dog", "my sister looks at the river"], {"max_new_tokens": 16, "do_sample": False}
    expected = load_model(folder).generate(prompts, **greedy)
    model = load_model(folder, device="cuda")
    assert model.generate(prompts, **greedy) == expected
    assert model.generate(prompts, use_past_kv_cache=False, **greedy) == expected


def test_a_model_streamed_to_a_gpu_records_what_the_resident_one_does(folder):
    tokens, site = some_tokens(CONFIG, batch=5), "blocks.2.hook_resid_post"
    resident, streamed = (load_model(folder, device="cuda", streamed=s) for s in (False, True))
    found = streamed.record(tokens.cuda(), [site])[site]
    assert found.is_cuda
    torch.testing.assert_close(found, resident.record(tokens.cuda(), [site])[site])
