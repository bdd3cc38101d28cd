"""Loading: whole and equal, or refused with what is wrong; nothing half-loaded."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scope.errors import CheckpointError, ConfigError
from scope.models.gemma.config import GemmaConfig
from scope.models.gemma.model import Gemma
from scope.models.gemma.weights import tensor_names
from scope.models.load import load_model
from scope.pretrain.tokenizer import save_tokenizer
from tests.conftest import random_gemma
from tests.models.twins import SHAPES, save_checkpoint, some_tokens, twins

SHARD = "model-00002-of-00003.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path, tiny_config, toy_tokenizer):
    return save_checkpoint(random_gemma(tiny_config), tmp_path / "one", toy_tokenizer)


@pytest.fixture
def sharded(tmp_path, tiny_config, toy_tokenizer):
    return save_checkpoint(random_gemma(tiny_config), tmp_path / "many", toy_tokenizer, shards=3)


def edit_config(folder, **changes):
    raw = json.loads((folder / "config.json").read_text())
    raw.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@torch.no_grad()
def test_one_file_and_several_with_an_index_load_the_same(folder, sharded, tiny_config):
    tokens = some_tokens(tiny_config)
    assert torch.equal(load_model(str(folder))(tokens), load_model(str(sharded))(tokens))


def test_config_survives_the_way_to_hugging_face_and_back(tiny_config):
    other = replace(tiny_config, attn_cap=None, layer_types=("global", "global", "local", "local"), eos=(1, 6))
    assert GemmaConfig.from_hf(other.to_hf(), other.model_name) == other


def test_what_a_released_config_leaves_out_is_gemma_2s(tiny_config):
    raw = tiny_config.to_hf()
    for name in ("layer_types", "rope_theta", "attn_logit_softcapping", "rms_norm_eps", "hidden_activation"):
        del raw[name]
    config = GemmaConfig.from_hf(raw, "here")
    assert config.layer_types == ("local", "global", "local", "global")
    assert (config.rope_theta, config.attn_cap, config.eps) == (10000.0, 50.0, 1e-6)


def test_embeddings_are_tied_and_stored_once(folder):
    model = load_model(str(folder))
    assert model.W_U.data_ptr() == model.embed.weight.data_ptr()
    assert sum(p.shape == model.W_E.shape for p in model.parameters()) == 1


def test_an_equal_lm_head_is_accepted_and_another_one_refused(folder):
    edit_weights(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    load_model(str(folder))
    edit_weights(folder, lambda t: t["lm_head.weight"].mul_(2))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        load_model(str(folder))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_load_in_the_dtype_asked_for(folder, dtype):
    model = load_model(str(folder), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert model.provenance["dtype"] == dtype
    assert torch.isfinite(model(some_tokens(model.cfg))).all()


def test_provenance_names_a_folder_so_that_it_is_found_from_anywhere(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder.parent)
    named = load_model(folder.name).provenance["model"]
    monkeypatch.chdir("/")
    assert named == str(folder.resolve())
    assert load_model(named).provenance["model"] == named


def test_provenance_names_the_weights_and_changes_with_them(folder):
    before = load_model(str(folder)).provenance
    assert before == load_model(str(folder)).provenance
    edit_weights(folder, lambda t: t[UP].add_(1e-3))
    after = load_model(str(folder)).provenance
    assert before["weights_sha256"] != after["weights_sha256"]
    assert before["tokenizer_sha256"] == after["tokenizer_sha256"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "llama"}, r"model of type 'llama'; scope computes gemma, gemma2"),
        ({"hidden_activation": "relu"}, "activation 'relu'"),
        ({"hidden_activation": "gelu"}, "activation 'gelu'"),
        ({"hidden_activation": None, "hidden_act": "silu"}, "activation 'silu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope scaling"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope scaling"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling"),
        ({"rope_scaling": {"factor": 2.0}}, "rope scaling"),
        ({"layer_types": ["chunked_attention"] * 4}, "layers of type chunked_attention"),
        ({"use_bidirectional_attention": True}, "both directions"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"attention_bias": True}, "attention biases"),
        ({"num_attention_heads": "4"}, "Expected `int | null`, got `str`.*num_attention_heads"),
        ({"vocab_size": None}, "has a value that is no number"),
        ({"hidden_size": "absent"}, "has no 'hidden_size'"),
        ({"num_key_value_heads": 3}, "cannot share 3 key-value heads"),
        ({"intermediate_size": 64}, r"has shape \(48, 32\) where config.json asks for \(64, 32\)"),
        ({"num_hidden_layers": 5, "layer_types": None}, "lacks 11 tensors, first model.layers.4"),
        ({"num_hidden_layers": 3, "layer_types": None}, "holds tensors no Gemma 2 has: model.layers.3"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder, changes, says):
    edit_config(folder, **changes)
    with pytest.raises((CheckpointError, ConfigError), match=says):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(UP), f"lacks 1 tensors, first {UP}"),
        (lambda t: t[UP].__setitem__((0, 0), float("nan")), f"{UP} holds NaN"),
        (lambda t: t.update({UP: t[UP].T.contiguous()}), r"shape \(32, 48\)"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(3)}), "no Gemma 2 has"),
    ],
)
def test_weights_that_are_damaged_are_refused(folder, change, says):
    edit_weights(folder, change)
    with pytest.raises(CheckpointError, match=says):
        load_model(str(folder))


def test_a_missing_or_truncated_shard_is_named(sharded):
    whole = (sharded / SHARD).read_bytes()
    (sharded / SHARD).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=rf"{SHARD} is damaged or cut short"):
        load_model(str(sharded))
    (sharded / SHARD).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks {SHARD}"):
        load_model(str(sharded))


def test_an_index_that_names_tensors_its_files_lack_is_refused(sharded):
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"][UP] = next(f for f in set(index["weight_map"].values()) if f != index["weight_map"][UP])
    file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=UP):
        load_model(str(sharded))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/nowhere/at/all", "There is no folder"),
        ("gemma", "There is no folder"),
        ("{folder}/config.json", "is a file; give the folder"),
        ("{folder}/..", "no config.json"),
    ],
)
def test_a_place_that_is_no_checkpoint_is_refused(folder, name, says):
    with pytest.raises(CheckpointError, match=says):
        load_model(name.format(folder=folder))


@pytest.mark.parametrize("damage", ["{", "[]", '{"weights": {}}'])
def test_an_index_that_cannot_be_read_is_refused(sharded, damage):
    (sharded / "model.safetensors.index.json").write_text(damage)
    with pytest.raises(CheckpointError, match=r"index\.json(.|\n)*is damaged(.|\n)*Fetch it again"):
        load_model(str(sharded))


def test_weights_beyond_float16_are_refused_there_and_load_in_bfloat16(folder):
    edit_weights(folder, lambda t: t[UP].__setitem__((0, 0), 1e5))
    with pytest.raises(CheckpointError, match=rf"{UP} holds NaN(.|\n)*bfloat16"):
        load_model(str(folder), dtype="float16")
    assert load_model(str(folder), dtype="bfloat16").dtype == torch.bfloat16


def test_an_old_name_of_the_activation_means_its_tanh_form_as_transformers_reads_it(folder):
    edit_config(folder, hidden_act="gelu", hidden_activation=None)
    load_model(str(folder))


def test_rope_settings_that_scale_nothing_are_accepted(folder):
    edit_config(folder, rope_scaling={"rope_type": "default"}, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert load_model(str(folder)).cfg.rope_theta == 500.0


def test_a_file_that_changes_after_loading_changes_no_weight(folder):
    model = load_model(str(folder))
    tokens = some_tokens(model.cfg)
    before = model(tokens)
    file = folder / "model.safetensors"
    with open(file, "r+b") as opened:
        opened.seek(file.stat().st_size - 4096)
        opened.write(b"\xff" * 4096)
    assert torch.equal(model(tokens), before)


@pytest.mark.parametrize("device", ["cuda", "mps"])
@torch.no_grad()
def test_a_model_on_another_device_computes_the_same(folder, device):
    if not getattr(torch, device).is_available():
        pytest.skip(f"this machine has no {device}")
    here, there = load_model(str(folder)), load_model(str(folder), device=device)
    assert there.cfg.device.type == there.to_tokens("the dog").device.type == device
    tokens = some_tokens(here.cfg)
    torch.testing.assert_close(there(tokens.to(device)).cpu(), here(tokens), rtol=0, atol=1e-4)


PEAK = """
import sys, torch
from scope.models.load import load_model

def memory(name):  # of this process alone; getrusage's would begin at its parent's
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

kept = [load_model("bundled")]  # kept: memory that it gave back would be used again, and not be counted
kept[0]("what loading anything takes is taken before")
for dtype in ("bfloat16", "float32"):
    before = memory("VmRSS")
    kept.append(load_model(sys.argv[1], dtype=dtype))
    print(memory("VmHWM") - before, sum(p.numel() * p.element_size() for p in kept[-1].parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read where Linux tells it")
def test_loading_takes_the_memory_of_the_weights_and_no_second_copy(tmp_path, toy_tokenizer):
    """A bfloat16 checkpoint of two files, as bfloat16 and then, beside it, as float32."""
    config = GemmaConfig(
        d_model=512, n_layers=4, n_heads=8, n_kv_heads=4, d_head=64, d_mlp=2048, d_vocab=96_000, query_scalar=64
    )
    with torch.device("meta"):
        model = Gemma(config)
    save_checkpoint(model.to_empty(device="cpu").apply(zero), tmp_path, toy_tokenizer, torch.bfloat16, shards=2)
    run = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    for line, least in zip(run.stdout.splitlines(), (120e6, 240e6), strict=True):
        peak, weights = map(int, line.split())
        assert weights > least, run.stdout
        assert 0.9 * weights < peak < 1.15 * weights + 40e6, run.stdout


def zero(module):
    for p in module.parameters(recurse=False):
        torch.nn.init.zeros_(p)


SHAPE = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_mlp", "query_scalar")
PUBLISHED = {
    "google/gemma-2-2b": ((2304, 26, 8, 4, 256, 9216, 256), {"torch_dtype": "float32"}, 288, 2.61e9),
    "google/gemma-2-2b-it": ((2304, 26, 8, 4, 256, 9216, 256), {"eos_token_id": [1, 107]}, 288, 2.61e9),
    "google/gemma-2-9b": ((3584, 42, 16, 8, 256, 14336, 256), {"torch_dtype": "float32"}, 464, 9.24e9),
    "google/gemma-2-9b-it": ((3584, 42, 16, 8, 256, 14336, 256), {"sliding_window_size": 4096}, 464, 9.24e9),
    "google/gemma-2-27b": ((4608, 46, 32, 16, 128, 36864, 144), {"torch_dtype": "float32"}, 508, 27.2e9),
    "google/gemma-2-27b-it": ((4608, 46, 32, 16, 128, 36864, 144), {}, 508, 27.2e9),
    "google/shieldgemma-2b": ((2304, 26, 8, 4, 256, 9216, 256), {}, 288, 2.61e9),
    "google/shieldgemma-9b": ((3584, 42, 16, 8, 256, 14336, 224), {}, 464, 9.24e9),
    "google/shieldgemma-27b": ((4608, 46, 32, 16, 128, 36864, 144), {}, 508, 27.2e9),
    "google/datagemma-rig-27b-it": ((4608, 46, 32, 16, 128, 36864, 144), {"cache_implementation": "hybrid"}, 508, 27.2e9),
    "google/datagemma-rag-27b-it": ((4608, 46, 32, 16, 128, 36864, 144), {"cache_implementation": "hybrid"}, 508, 27.2e9),
    "google/gemma-2b": ((2048, 18, 8, 1, 256, 16384, 256), {"hidden_act": "gelu"}, 164, 2.506e9),
    "google/gemma-2b-it": ((2048, 18, 8, 1, 256, 16384, 256), {"hidden_act": "gelu"}, 164, 2.506e9),
    "google/gemma-1.1-2b-it": ((2048, 18, 8, 1, 256, 16384, 256), {"rope_scaling": None}, 164, 2.506e9),
    "google/gemma-7b": ((3072, 28, 16, 16, 256, 24576, 256), {"hidden_act": "gelu"}, 254, 8.538e9),
    "google/gemma-7b-it": ((3072, 28, 16, 16, 256, 24576, 256), {"hidden_act": "gelu"}, 254, 8.538e9),
    "google/gemma-1.1-7b-it": ((3072, 28, 16, 16, 256, 24576, 256), {"hidden_activation": None}, 254, 8.538e9),
    "google/codegemma-2b": ((2048, 18, 8, 1, 256, 16384, 256), {"hidden_activation": "gelu_pytorch_tanh"}, 164, 2.506e9),
    "google/codegemma-7b": ((3072, 28, 16, 16, 256, 24576, 256), {"hidden_activation": "gelu_pytorch_tanh"}, 254, 8.538e9),
    "google/codegemma-7b-it": ((3072, 28, 16, 16, 256, 24576, 256), {"hidden_activation": None}, 254, 8.538e9),
    "ClusterlabAi/GemmAr-7B-v1": (
        (3072, 28, 16, 16, 256, 24576, 256),
        {"hidden_act": "gelu", "pad_token_id": None},
        254,
        8.538e9,
    ),
}
ONLY_GEMMA_2 = (
    *("query_pre_attn_scalar", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "hidden_activation"),
)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_config_of_every_published_checkpoint_gives_its_model(name):
    """As released: no layer_types, no rope_parameters, both names of the activation, torch_dtype."""
    shape, more, n_tensors, n_params = PUBLISHED[name]
    d, layers, heads, kv, d_head, d_mlp, scalar = shape
    first = "gemma-2-" not in name and "shield" not in name and "data" not in name
    raw = {
        "architectures": ["GemmaForCausalLM" if first else "Gemma2ForCausalLM"],
        "model_type": "gemma" if first else "gemma2",
        "hidden_size": d,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": d_head,
        "intermediate_size": d_mlp,
        "query_pre_attn_scalar": scalar,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-06,
        "attention_bias": False,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }
    raw = {key: value for key, value in raw.items() if not (first and key in ONLY_GEMMA_2)} | more
    config = GemmaConfig.from_hf(raw, name)
    assert tuple(getattr(config, field) for field in SHAPE) == shape
    caps = (None, None) if first else (50, 30)
    assert (config.n_ctx, config.attn_cap, config.final_cap, config.d_vocab) == (8192, *caps, 256000)
    assert config.layer_types[:3] == (("global",) * 3 if first else ("local", "global", "local"))
    assert config.local_window(0) == (None if first else 4096)
    assert (config.post_norms, config.original_architecture) == (not first, raw["architectures"][0])
    assert GemmaConfig.from_hf(config.to_hf(), name) == config
    assert config.eos == ((1, 107) if "eos_token_id" in more else (1,))
    with torch.device("meta"):
        model = Gemma(config)
    assert len(tensor_names(config)) == len(list(model.parameters())) == n_tensors
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(n_params, rel=2e-3)
    assert model.sites()["blocks.3.attn.hook_z"] == heads * d_head


PATTERN = {"layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3, "_sliding_window_pattern": 6}
FEW_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262_144, "sliding_window": 512}
ONLY_TEXT = FEW_HEADS | {
    "model_type": "gemma3_text",
    "max_position_embeddings": 32_768,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1_000_000,
    "rope_local_base_freq": 10_000,
    "rope_scaling": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "use_bidirectional_attention": False,
}
BESIDE_VISION = {"model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
GEMMA_3 = {
    "google/gemma-3-270m": ((640, 18, 4, 1, 256, 2048, 256), ONLY_TEXT | PATTERN, 268e6),
    "google/gemma-3-1b-it": ((1152, 26, 4, 1, 256, 6912, 256), ONLY_TEXT | {"sliding_window_pattern": 6}, 1.0e9),
    "google/gemma-3-4b-pt": ((2560, 34, 8, 4, 256, 10240, 256), BESIDE_VISION, 3.88e9),
    "google/gemma-3-12b-it": (
        (3840, 48, 16, 8, 256, 15360, 256),
        BESIDE_VISION | {"num_attention_heads": 16, "num_key_value_heads": 8},
        11.77e9,
    ),
    "google/gemma-3-27b-it": (
        (5376, 62, 32, 16, 128, 21504, 168),
        BESIDE_VISION | {"num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": 168},
        27.0e9,
    ),
}


@pytest.mark.parametrize("name", list(GEMMA_3))
def test_the_config_of_every_published_gemma_3_gives_its_language_model(name):
    """As released: from 4B on the text model is a part that leaves out what is its class's default."""
    shape, released, n_params = GEMMA_3[name]
    d, layers, heads, _, d_head, d_mlp, _ = shape
    raw = {"hidden_size": d, "num_hidden_layers": layers, "intermediate_size": d_mlp, **released}
    small = "rope_theta" in raw
    if not small:
        raw = {"model_type": "gemma3", "text_config": raw, "vision_config": {"hidden_size": 1152}, "eos_token_id": [1, 106]}
    config = GemmaConfig.from_hf(raw, name)
    assert tuple(getattr(config, field) for field in SHAPE) == shape
    assert (config.n_ctx, config.d_vocab, config.window) == ((32_768, 262_144, 512) if small else (131_072, 262_208, 1024))
    assert (config.attn_cap, config.final_cap) == (None, None)
    assert config.layer_types[:7] == ("local",) * 5 + ("global", "local")
    assert (config.rope(0), config.rope(5)) == ((1e4, 1), (1e6, 1 if small else 8))
    assert config.eos == ((1,) if small else (1, 106))
    assert GemmaConfig.from_hf(config.to_hf(), name) == config
    with torch.device("meta"):
        model = Gemma(config)
    assert len(tensor_names(config)) == len(list(model.parameters())) == 13 * layers + 2
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(n_params, rel=1e-2)
    assert model.sites()["blocks.3.attn.q_norm.hook_normalized"] == heads * d_head


@pytest.mark.parametrize("saved", ["as transformers 5 names its tensors", "as the hub names them"])
@torch.no_grad()
def test_of_a_gemma_3_with_a_vision_tower_the_language_model_is_loaded(saved, tmp_path, toy_tokenizer):
    from safetensors.torch import load_file, save_file
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, SiglipVisionConfig

    config = SHAPES["Gemma 3, scaled positions, one kv head"]
    text = {k: v for k, v in config.to_hf().items() if k not in ("architectures", "dtype")}
    vision = SiglipVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    both = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    theirs = Gemma3ForConditionalGeneration._from_config(both, attn_implementation="eager").eval()
    theirs.save_pretrained(tmp_path)
    save_tokenizer(toy_tokenizer.backend, tmp_path, config.n_ctx)
    tensors = load_file(tmp_path / "model.safetensors")
    parts = {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower."}
    parts |= {"model.multi_modal_projector.": "multi_modal_projector.", "lm_head.": "language_model.lm_head."}
    if saved == "as the hub names them":
        for old, new in parts.items():
            tensors = {new + n.removeprefix(old) if n.startswith(old) else n: t for n, t in tensors.items()}
    assert any("language_model" in name for name in tensors)
    assert any("vision_tower" in name for name in tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    ours, tokens = load_model(str(tmp_path)), some_tokens(config)
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_model_saved_without_its_unembedding_is_the_same_model(folder):
    from safetensors.torch import load_file, save_file

    tokens, before = torch.tensor([[2, 30, 31]]), load_model(str(folder))
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): t for name, t in tensors.items()}, folder / "model.safetensors")
    assert torch.equal(load_model(str(folder))(tokens), before(tokens))


@pytest.mark.parametrize(
    "name", ["several kv heads, low caps", "Gemma 1, one kv head", "Gemma 3, scaled positions, one kv head"]
)
@torch.no_grad()
def test_what_transformers_writes_today_loads_with_the_same_numbers(name, tmp_path, toy_tokenizer):
    """Its spelling of config.json: `dtype`, `rope_parameters`, one name for the activation."""
    ours, theirs = twins(SHAPES[name], tmp_path / "ours", toy_tokenizer)
    theirs.save_pretrained(tmp_path / "theirs")
    for file in (tmp_path / "ours").glob("tokenizer*"):
        file.rename(tmp_path / "theirs" / file.name)
    again = load_model(str(tmp_path / "theirs"))
    assert "rope_parameters" in (tmp_path / "theirs/config.json").read_text()
    assert replace(again.cfg, model_name="") == replace(ours.cfg, model_name="")
    assert torch.equal(again(some_tokens(ours.cfg)), ours(some_tokens(ours.cfg)))


@pytest.mark.parametrize(
    ("spelling", "says"),
    [
        ({"hidden_act": "gelu", "hidden_activation": "absent"}, None),
        ({"hidden_act": "gelu", "hidden_activation": None}, None),
        ({"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}, None),
        ({"hidden_act": "absent", "hidden_activation": "absent"}, None),
        ({"hidden_act": "gelu", "hidden_activation": "gelu"}, "activation 'gelu'; a Gemma 1 has gelu_pytorch_tanh"),
        ({"hidden_act": "relu", "hidden_activation": None}, "activation 'relu'; a Gemma 1 has gelu_pytorch_tanh"),
    ],
)
@torch.no_grad()
def test_the_gelu_of_a_gemma_1_is_the_tanh_form_whatever_its_config_calls_it(spelling, says, tmp_path, toy_tokenizer):
    folder = save_checkpoint(random_gemma(SHAPES["Gemma 1, one kv head"]), tmp_path, toy_tokenizer)
    tokens, expected = some_tokens(SHAPES["Gemma 1, one kv head"]), load_model(str(folder))
    edit_config(folder, **spelling)
    if says:
        with pytest.raises(CheckpointError, match=says):
            load_model(str(folder))
        return
    model = load_model(str(folder))
    assert torch.equal(model(tokens), expected(tokens))
    exact = torch.nn.functional.gelu(torch.tensor(1.0))
    with model.hooks([("blocks.0.mlp.hook_pre", lambda x, hook: torch.ones_like(x))]):
        post = model.run_with_cache(tokens, names_filter=["blocks.0.mlp.hook_post", "blocks.0.mlp.hook_pre_linear"])[1]
    gate = post["blocks.0.mlp.hook_post"] / post["blocks.0.mlp.hook_pre_linear"]
    torch.testing.assert_close(gate, torch.full_like(gate, 0.8411920), rtol=1e-5, atol=0)  # tanh form; the exact one: 0.8413447
    assert exact > 0.84134


def test_layers_without_end_are_refused_before_their_kinds_are_counted():
    raw = GemmaConfig(
        model_type="gemma3_text", attn_cap=None, d_model=8, n_layers=2, n_heads=1, n_kv_heads=1, d_head=8, d_mlp=8, d_vocab=8
    ).to_hf()
    del raw["layer_types"]
    with pytest.raises(ConfigError, match=r"n_layers is 10+; it must be from 1 to 1,000"):
        GemmaConfig.from_hf(raw | {"num_hidden_layers": 10**30, "sliding_window_pattern": 6}, "x")


def test_a_gemma_1_with_what_only_a_gemma_2_has_is_refused():
    first = SHAPES["Gemma 1, one kv head"]
    for change in ({"attn_cap": 50.0}, {"final_cap": 30.0}, {"query_scalar": 256.0}, {"layer_types": ("local",) * 3}):
        with pytest.raises(ConfigError, match="no soft caps, and query_scalar d_head"):
            replace(first, **change)
    with pytest.raises(ConfigError, match="model_type is 'llama'"):
        replace(first, model_type="llama")


def test_files_that_are_missing_or_unreadable_are_named(folder):
    (folder / "tokenizer.json").rename(folder / "kept.json")
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        load_model(str(folder))
    (folder / "kept.json").rename(folder / "tokenizer.json")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors(.|\n)*Pickled weights are not read"):
        load_model(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("setting", "says"), [({"dtype": "int8"}, "dtype is 'int8'"), ({"device": "warp"}, "cannot be used here")]
)
def test_an_unknown_dtype_or_device_is_refused(folder, setting, says):
    with pytest.raises(ConfigError, match=says):
        load_model(str(folder), **setting)


def test_a_header_whose_places_do_not_fit_its_tensors_is_refused(folder):
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    for change in (
        lambda entry: entry.update(dtype="BF16"),  # half as long as its place
        lambda entry: entry["data_offsets"].__setitem__(slice(None), [n - 4 for n in entry["data_offsets"]]),
    ):
        header = json.loads(raw[8 : 8 + length])
        change(header[UP])
        told = json.dumps(header).encode()
        file.write_bytes(len(told).to_bytes(8, "little") + told + raw[8 + length :])
        for streamed in (False, True):
            with pytest.raises(CheckpointError, match="places that do not fit"):
                load_model(str(folder), streamed=streamed)


@pytest.mark.parametrize("name", ["bundled", "folder"])
def test_a_revision_of_what_is_no_hub_id_is_refused_rather_than_noted(folder, name):
    with pytest.raises(ConfigError, match="no hub id"):
        load_model(str(folder) if name == "folder" else name, revision="v2")


@pytest.mark.parametrize(("changes", "says"), [({"attn_logit_softcapping": 0}, "attn_cap"), ({"rms_norm_eps": -1e-6}, "eps")])
def test_a_cap_or_epsilon_that_makes_nan_is_refused(folder, changes, says):
    edit_config(folder, **changes)
    with pytest.raises(ConfigError, match=f"{says} is .*above 0"):
        load_model(str(folder))


def test_settings_of_the_tokenizer_that_cannot_be_read_are_named(folder):
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is damaged"):
        load_model(str(folder))


def test_of_several_chat_templates_the_default_is_taken(folder):
    templates = [{"name": "tool", "template": "no"}, {"name": "default", "template": "{{ messages[0]['content'] }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    assert load_model(str(folder)).tokenizer.chat([{"role": "user", "content": "hi"}]) == "hi"
