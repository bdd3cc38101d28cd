"""Layer-streamed models: the numbers of the resident one, from a memory that could not hold its weights."""

import json
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from scope.errors import CheckpointError, ConfigError, UnknownSite
from scope.models import streamed
from scope.models.load import load_model
from tests.conftest import random_gemma
from tests.models.twins import SHAPES, save_checkpoint, some_tokens

CONFIG = replace(SHAPES["several kv heads, low caps"], n_ctx=128)


GEMMA_1 = replace(SHAPES["Gemma 1, one kv head"], n_ctx=128, n_layers=4, layer_types=())
GEMMA_3 = replace(SHAPES["Gemma 3, scaled positions, one kv head"], n_ctx=128, n_layers=4, layer_types=("local", "global") * 2)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "Gemma 1", "Gemma 3"])
def folder(request, tmp_path_factory, toy_tokenizer):
    path = tmp_path_factory.mktemp("stored")
    others = {"Gemma 1": (GEMMA_1, "bfloat16"), "Gemma 3": (GEMMA_3, "float32")}
    config, dtype = others.get(request.param, (CONFIG, request.param))
    return save_checkpoint(random_gemma(config), path, toy_tokenizer, getattr(torch, dtype), shards=2)


def test_a_streamed_model_records_what_the_resident_one_does_bit_for_bit_at_every_site(folder, monkeypatch):
    monkeypatch.setattr(streamed, "TOKENS_AT_ONCE", 50)
    tokens = some_tokens(CONFIG, batch=7)
    resident, stream = load_model(str(folder)), load_model(str(folder), streamed=True)
    sites = list(stream.sites())
    assert sites == list(resident.sites())
    assert stream.provenance == resident.provenance
    found = stream.record(tokens, sites)
    for start in range(0, 7, 2):  # 50 tokens are two contexts of 23
        expected = resident.record(tokens[start : start + 2], sites)
        for site in sites:
            assert torch.equal(found[site][start : start + 2], expected[site]), site


@torch.no_grad()
def test_every_other_call_works_on_a_streamed_model_too(folder):
    resident, stream = load_model(str(folder)), load_model(str(folder), streamed=True)
    tokens = some_tokens(CONFIG, batch=2)
    double = ("blocks.1.hook_resid_post", lambda x, hook: x * 2)
    torch.testing.assert_close(stream(tokens), resident(tokens), rtol=0, atol=1e-5)
    edited, plain = (m.run_with_hooks(tokens, fwd_hooks=[double], return_type="loss") for m in (stream, resident))
    torch.testing.assert_close(edited, plain, rtol=0, atol=1e-5)
    _, a = stream.run_with_cache(tokens)
    _, b = resident.run_with_cache(tokens)
    assert list(a) == list(b)
    torch.testing.assert_close(a["resid_post", -1], b["resid_post", -1], rtol=0, atol=1e-5)


def test_a_hook_works_on_each_slice_of_a_streamed_record_by_its_own_positions(folder, monkeypatch):
    monkeypatch.setattr(streamed, "TOKENS_AT_ONCE", 50)
    tokens = some_tokens(CONFIG, batch=3)
    site = "blocks.3.hook_resid_post"

    def mark(x, hook):
        return x + (hook.run.tokens * hook.run.positions)[..., None]

    found = []
    for model in (load_model(str(folder)), load_model(str(folder), streamed=True)):
        with model.hooks([("blocks.0.hook_resid_post", mark)]):
            found.append(model.record(tokens, [site])[site])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-4)


def test_record_reads_no_block_above_the_last_site_and_only_the_rows_of_its_tokens(folder):
    stream = load_model(str(folder), streamed=True)
    read = []
    inner = stream._weights.read
    stream._weights.read = lambda name, into, row=0: read.append((name, row)) or inner(name, into, row)
    tokens = torch.tensor([[2, 9, 7, 9, 9]])
    stream.record(tokens, ["blocks.1.hook_mlp_out"])
    assert {name.split(".")[1] for name, _ in read if name.startswith("blocks")} == {"0", "1"}
    assert [row for name, row in read if "embed" in name] == [2, 7, 9]
    assert len(read) == len(set(read))


def test_weights_that_are_not_in_memory_are_refused_rather_than_given_empty(folder):
    stream = load_model(str(folder), streamed=True)
    for name in ("W_E", "W_U", "W_Q", "W_out"):
        with pytest.raises(ConfigError, match=f"no {name}. Load it without streamed"):
            getattr(stream, name)


def _damage(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def _poison(name):
    def change(tensors):
        tensors[name].view(-1)[-1] = float("nan")

    return change


def test_damage_is_found_when_it_is_first_read(tmp_path, toy_tokenizer):
    save_checkpoint(random_gemma(CONFIG), tmp_path, toy_tokenizer)
    _damage(tmp_path, _poison("model.layers.1.mlp.up_proj.weight"))
    stream, tokens = load_model(str(tmp_path), streamed=True), some_tokens(CONFIG)
    stream.record(tokens, ["blocks.0.hook_resid_post"])
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        stream.record(tokens, ["blocks.1.hook_resid_post"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.norm.weight"), "lacks 1 tensors, first model.norm.weight"),
        (lambda t: t.update(extra=torch.zeros(2)), "no Gemma 2 has: extra"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(5)}), r"has shape \(5,\)"),
        (lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}), "lm_head.weight differs"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_at_the_door(tmp_path, toy_tokenizer, change, said):
    save_checkpoint(random_gemma(CONFIG), tmp_path, toy_tokenizer)
    _damage(tmp_path, change)
    with pytest.raises(CheckpointError, match=said):
        load_model(str(tmp_path), streamed=True)


def test_a_file_cut_short_is_refused_by_name(tmp_path, toy_tokenizer):
    save_checkpoint(random_gemma(CONFIG), tmp_path, toy_tokenizer)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(str(tmp_path), streamed=True)


CHILD = """
import json, resource, sys
import torch
from scope.errors import ConfigError
from scope.models.load import load_model
folder, limit, sites, out = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
model = load_model(folder, streamed=True)
tokens = torch.randint(7, model.cfg.d_vocab, (8, 32), generator=torch.Generator().manual_seed(0))
torch.save(model.record(tokens, sites), out)
del model
try:
    load_model(folder)
except ConfigError as error:
    print("too large" if "do not fit into memory" in str(error) else error)
"""


def test_a_model_of_twice_the_memory_limit_is_recorded_under_it_and_equals_the_resident_run(tmp_path, toy_tokenizer):
    config = replace(CONFIG, d_model=512, n_heads=8, n_kv_heads=4, d_head=64, d_mlp=4096, n_layers=26, layer_types=())
    limit = 345 * 2**20  # of all memory, torch's own 250 MiB included
    save_checkpoint(random_gemma(config), tmp_path, toy_tokenizer, torch.bfloat16)
    resident = load_model(str(tmp_path))
    assert sum(p.numel() * p.itemsize for p in resident.parameters()) > 2 * limit
    sites, out = ["blocks.10.attn.hook_z", "blocks.25.hook_resid_post"], tmp_path / "out.pt"
    arguments = [str(tmp_path), str(limit), json.dumps(sites), str(out)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # each further one has buffers of its own
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False, env=one_thread
    )
    assert done.stdout == "too large\n", done.stderr[-2000:]
    tokens = torch.randint(7, config.d_vocab, (8, 32), generator=torch.Generator().manual_seed(0))
    found = torch.load(out)
    for site, expected in resident.record(tokens, sites).items():
        torch.testing.assert_close(found[site], expected, rtol=1e-5, atol=1e-4)


def test_a_copy_is_refused_and_leaves_the_model_reading(folder):
    stream = load_model(str(folder), streamed=True)
    with pytest.raises(ConfigError, match="load it a second time"):
        deepcopy(stream)
    assert stream.record(some_tokens(CONFIG, batch=1), ["blocks.0.hook_resid_post"])


def test_one_row_of_ids_is_recorded_and_a_table_of_scores_is_not(folder):
    stream, site = load_model(str(folder), streamed=True), "blocks.0.hook_resid_post"
    tokens = some_tokens(CONFIG, batch=1)
    assert torch.equal(stream.record(tokens[0], [site])[site], stream.record(tokens, [site])[site])
    with pytest.raises(UnknownSite, match="no row for each token"):
        stream.record(tokens, ["blocks.0.attn.hook_pattern"])


def test_weights_beyond_float16_say_so_when_they_are_first_read(tmp_path, toy_tokenizer):
    save_checkpoint(random_gemma(CONFIG), tmp_path, toy_tokenizer)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    stream = load_model(str(tmp_path), dtype="float16", streamed=True)
    with pytest.raises(CheckpointError, match="Load it in bfloat16"):
        stream.record(some_tokens(CONFIG, batch=1), ["blocks.0.hook_resid_post"])
