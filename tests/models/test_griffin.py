"""Our RecurrentGemma against transformers' eager float32 model, on tiny random twins of several shapes, at every hook point."""

import json

import pytest
import torch

from scope.errors import CheckpointError, ConfigError, DictionaryError, TokensError
from scope.fit import check_fit
from scope.models.griffin.config import GriffinConfig
from scope.models.load import load_model
from scope.pretrain.export import export
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from scope.workflows.settings import ModelSettings
from tests.models.griffin_twins import (
    CLOSE,
    SHAPES,
    flow,
    loss_of,
    pair_of,
    random_recurrent,
    reference,
    rewritten,
    some_tokens,
)


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request, tmp_path_factory, toy_tokenizer):
    return pair_of(tmp_path_factory.mktemp("twin"), toy_tokenizer, **SHAPES[request.param])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy_tokenizer):
    return random_recurrent(tmp_path_factory.mktemp("twin"), toy_tokenizer)


@torch.no_grad()
def test_logits_equal_transformers_on_every_shape(pair):
    ours, theirs = pair
    for length in (1, 2, 23, 64):
        tokens = some_tokens(length=length)
        torch.testing.assert_close(ours(tokens), theirs(tokens, use_cache=False).logits, **CLOSE)


def test_gradients_equal_transformers_at_every_parameter(pair):
    ours, theirs = pair
    tokens = some_tokens()
    ours.zero_grad(), theirs.zero_grad()
    ours(tokens, return_type="loss").backward()
    loss_of(theirs(tokens, use_cache=False).logits, tokens).backward()
    names, expected = ours.tensor_names(ours.cfg), dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, expected[names[name]].grad, rtol=1e-4, atol=1e-5)


def test_every_hook_point_and_its_gradient_equal_transformers(pair):
    ours, theirs = pair
    tokens = some_tokens()
    expected, expected_grads = flow(theirs, tokens)
    grads = {}

    def keep(x, hook):
        grads[hook.name] = x

    with ours.hooks(bwd_hooks=[(None, keep)]):
        _, cache = ours.run_with_cache(tokens)
        ours(tokens, return_type="loss").backward()
    left = set(cache.keys()) - set(expected)
    assert {name.rsplit(".", 1)[-1] for name in left} <= {"hook_embed", "hook_scale", "hook_attn_scores"}
    for name, value in expected.items():
        torch.testing.assert_close(cache[name], value, rtol=1e-5, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
        scale = expected_grads[name].abs().max().clamp(min=1e-6)
        assert ((grads[name] - expected_grads[name]).abs().max() / scale) < 1e-4, name


def test_points_of_a_recurrent_block_are_passed_in_the_order_of_its_formulas(pair):
    ours, _ = pair
    layer = ours.cfg.layer_types.index("recurrent")
    names = [n.removeprefix(f"blocks.{layer}.") for n in ours.sites() if n.startswith(f"blocks.{layer}.")]
    rec = [n.removeprefix("rec.hook_") for n in names if n.startswith("rec.")]
    assert rec == "x conv gate_x gate_a log_a a write state y rec_out".split()
    assert (
        names.index("ln1.hook_normalized")
        < names.index("rec.hook_x")
        < names.index("hook_resid_mid")
        < names.index("mlp.hook_pre")
    )
    assert not any("attn" in n for n in names)


@pytest.mark.parametrize("shards", [1, 3])
@torch.no_grad()
def test_the_spellings_of_the_hub_load_alike(folder, tmp_path, toy_tokenizer, shards):
    """Released configs: `_block_types`, a factor that is read by nobody, the rotary settings outside, no width of the
    recurrence, other names for the dtype; weights in several files."""
    random_recurrent(tmp_path, toy_tokenizer)
    if shards > 1:
        reference(tmp_path).save_pretrained(tmp_path, max_shard_size="40KB")
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
    rewritten(
        tmp_path,
        _block_types=["recurrent", "recurrent", "attention"],
        block_types=None,
        embeddings_scale_by_sqrt_dim=True,
        lru_width=None,
        rope_parameters=None,
        rope_theta=10000.0,
        partial_rotary_factor=0.5,
        torch_dtype="float32",
        dtype=None,
        w_init_variance_scale=0.01,
    )
    tokens = some_tokens()
    assert torch.equal(load_model(str(tmp_path))(tokens), load_model(str(folder))(tokens))


@torch.no_grad()
def test_a_checkpoint_in_bfloat16_computes_its_recurrence_in_float32(tmp_path, toy_tokenizer):
    random_recurrent(tmp_path, toy_tokenizer, torch.bfloat16)
    narrow, tokens = load_model(str(tmp_path), dtype="bfloat16", window_convention="hf"), some_tokens()
    whole = load_model(str(tmp_path), window_convention="hf")
    torch.testing.assert_close(whole(tokens), reference(tmp_path)(tokens, use_cache=False).logits, **CLOSE)
    logits, cache = narrow.run_with_cache(tokens)
    assert logits.dtype == cache["blocks.0.rec.hook_conv"].dtype == torch.bfloat16
    h, a, w = (cache[f"blocks.0.rec.hook_{x}"] for x in ("state", "a", "write"))
    assert h.dtype == a.dtype == w.dtype == torch.float32
    torch.testing.assert_close(h[:, 1:], a[:, 1:] * h[:, :-1] + w[:, 1:], rtol=0, atol=1e-6)
    agree = (logits.float().softmax(-1) - whole(tokens).softmax(-1)).abs().sum(-1) / 2
    assert agree.mean() < 0.05
    assert narrow.to(torch.float32).dtype == torch.float32


def test_deepminds_window_shows_one_key_more_and_is_what_weights_are_read_with(folder):
    tokens = some_tokens(length=30)
    default, hf = load_model(str(folder)), load_model(str(folder), window_convention="hf")
    attended = default.cfg.layer_types.index("local")
    for model, keys in ((default, 6), (hf, 5)):
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
        pattern = cache[f"blocks.{attended}.attn.hook_pattern"]
        for i in range(30):  # in words: the token's own key, and those of the W before it, or of one fewer
            seen = [j for j in range(30) if bool((pattern[:, :, i, j] > 0).any())]
            assert seen == list(range(max(0, i - keys + 1), i + 1))
    with torch.no_grad():
        a, b = default(tokens), hf(tokens)
    assert torch.equal(a[:, :5], b[:, :5])
    assert not torch.allclose(a[:, 5:], b[:, 5:])
    assert "window_convention='deepmind', which sees 6 keys" in repr(default)


def test_an_sae_of_another_window_convention_is_noticed_and_brings_its_own(folder):
    default, hf = load_model(str(folder)), load_model(str(folder), window_convention="hf")
    assert default.provenance["config_sha256"] != hf.provenance["config_sha256"]
    assert load_model(str(folder), window_convention="deepmind").provenance == default.provenance
    assert hf.provenance["window_convention"] == "hf"
    assert "window_convention" not in default.provenance
    for made_with, other, way_out in ((hf, default, "--window-convention hf"), (default, hf, r"as in its config\.json")):
        sae = JumpReLUSAE(JumpReLUConfig(d_in=made_with.cfg.d_model, d_sae=64), "blocks.0.hook_resid_post")
        sae.provenance = {"model": made_with.provenance}
        assert check_fit(made_with, sae) == check_fit(other, sae, any_model=True) == sae.site
        with pytest.raises(DictionaryError, match=way_out):
            check_fit(other, sae)
        assert ModelSettings().load_model(sae.provenance).provenance == made_with.provenance


def test_a_window_convention_is_for_models_that_have_one(tiny_config, folder):
    with pytest.raises(ConfigError, match=r"deepmind .* or hf"):
        load_model(str(folder), window_convention="jax")
    with pytest.raises(ConfigError, match="Gemma 2 has one reading"):
        load_model("bundled", window_convention="hf")


@torch.no_grad()
def test_an_exported_model_is_read_by_transformers_and_by_us(folder, tmp_path):
    tokens = some_tokens()
    model = load_model(str(folder), dtype="bfloat16", window_convention="hf")
    out = export(model, folder, tmp_path / "out", "# card")
    again = load_model(str(out))
    assert again.cfg.window_convention == "hf"
    theirs = reference(out)
    torch.testing.assert_close(again(tokens), theirs(tokens, use_cache=False).logits, **CLOSE)
    assert theirs.config.block_types == ["recurrent", "recurrent", "attention", "recurrent"]
    theirs.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs/config.json").read_text())["window_convention"] == "hf"


BAD = {
    "unknown kinds of blocks": ({"block_types": ["recurrent", "mamba"]}, "mamba.*has recurrent and attention"),
    "a pattern without blocks": ({"block_types": []}, "nothing"),
    "two spellings that differ": ({"_block_types": ["attention"]}, "_block_types .* differ"),
    "a window of nothing": ({"attention_window_size": 0}, "window is 0; it must be from 1"),
    "a conv of nothing": ({"conv1d_width": 0}, "conv_width is 0; it must be from 1 to 64"),
    "a conv of another width than the weights": (
        {"conv1d_width": 3},
        r"shape \(32, 1, 4\) where config.json asks for \(32, 1, 3\)",
    ),
    "a conv width that is no number": ({"conv1d_width": "4"}, "conv1d_width"),
    "heads that do not divide the recurrence": ({"lru_width": 30}, "multiple of 4"),
    "no heads": ({"num_attention_heads": 0}, "at least one"),
    "another activation": ({"hidden_activation": "relu"}, "gelu_pytorch_tanh"),
    "features that turn alone": ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.4}}, "turn in pairs"),
    "scaled positions": ({"rope_parameters": {"rope_type": "yarn"}}, "rope scaling"),
    "embeddings without their factor": ({"embeddings_scale_by_sqrt_dim": False}, "multiplied by sqrt"),
    "more blocks than weights": ({"num_hidden_layers": 5}, "lacks .* tensors"),
    "fewer blocks than weights": ({"num_hidden_layers": 3}, "tensors no RecurrentGemma has"),
    "layers without end": ({"num_hidden_layers": 10**30}, "n_layers is 1000.*; it must be from 1 to 1,000"),
    "no heads of keys": ({"num_key_value_heads": 0}, "n_kv_heads is 0"),
    "heads of nothing": ({"head_dim": 0}, "d_head is 0"),
    "no channels": ({"lru_width": 0}, "lru_width is 0"),
    "a part of a head that is none": ({"rope_parameters": {"partial_rotary_factor": float("inf")}}, "turns inf of each head"),
    "a convention nobody has": ({"window_convention": "jax"}, "deepmind .* or hf"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_config_that_cannot_be_is_refused_with_the_way_out(name, folder, tmp_path):
    changed, message = BAD[name]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rewritten(tmp_path, **changed)
    with pytest.raises(CheckpointError, match=message):
        load_model(str(tmp_path))


def test_what_a_config_leaves_out_is_what_transformers_takes(folder, tmp_path):
    from transformers import RecurrentGemmaConfig

    theirs, ours = RecurrentGemmaConfig(), GriffinConfig.from_hf({"model_type": "recurrent_gemma"}, "x")
    assert (ours.d_model, ours.n_layers, ours.d_head) == (theirs.hidden_size, theirs.num_hidden_layers, theirs.head_dim)
    assert (ours.d_mlp, ours.n_kv_heads) == (theirs.intermediate_size // 2, theirs.num_key_value_heads)
    assert (ours.window, ours.conv_width, ours.lru_width) == (2048, theirs.conv1d_width, theirs.lru_width)
    assert ours.d_rotary == theirs.head_dim * theirs.rope_parameters["partial_rotary_factor"]
    assert [
        {"local": "sliding_attention"}.get(kind, "linear_attention") for kind in ours.layer_types
    ] == theirs.layers_block_type


def test_weights_stacked_over_layers_are_refused_where_a_block_has_no_attention(folder):
    model = load_model(str(folder))
    with pytest.raises(ConfigError, match=r"Blocks 0, 1, 3 have no attention.*\n.*blocks\[n\].attn.W_Q"):
        _ = model.W_Q
    assert model.W_out.shape == (4, 48, 32)
    from scope.models.transformer_lens.hooked_root import export as as_hooked_transformer

    for refused in (lambda: as_hooked_transformer(model), lambda: model(some_tokens(), past_kv_cache=object())):
        with pytest.raises(ConfigError, match=r"Blocks 0, 1, 3 of this model are recurrent.*\n.*cache=model.new_cache"):
            refused()
    assert model.accumulated_bias(2).abs().max() > 0


@torch.no_grad()
def test_the_stream_is_the_sum_of_what_heads_recurrent_blocks_neurons_and_biases_add(folder):
    model = load_model(str(folder)).double()
    _, cache = model.run_with_cache(some_tokens())
    parts, labels = cache.get_full_resid_decomposition(-1, return_labels=True)
    torch.testing.assert_close(parts.sum(0), cache["resid_post", 3], rtol=0, atol=1e-9)
    assert [label for label in labels if "rec" in label] == ["L0rec", "L1rec", "L3rec"]
    assert [label for label in labels if label.startswith("L2H")] == [f"L2H{head}" for head in range(4)]
    parts, labels = cache.decompose_resid(-1, return_labels=True)
    torch.testing.assert_close(parts.sum(0), cache["resid_post", 3], rtol=0, atol=1e-9)
    assert labels[1:5] == ["0_rec_out", "0_mlp_out", "1_rec_out", "1_mlp_out"]
    assert torch.equal(cache["state", 1], cache["blocks.1.rec.hook_state"])
    parts, labels = cache.get_full_resid_decomposition(2, mlp_input=True, expand_neurons=False, return_labels=True)
    torch.testing.assert_close(parts.sum(0), cache["resid_mid", 2], rtol=0, atol=1e-9)


@torch.no_grad()
def test_folding_the_gains_into_what_reads_them_changes_no_logit(folder):
    model, tokens = load_model(str(folder)), some_tokens()
    before = model(tokens)
    model.process_weights_()
    assert model.blocks[0].ln1.weight.abs().max() == 0
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=1e-5)


def test_a_cache_of_another_batch_is_refused(folder):
    model = load_model(str(folder))
    cache = model.new_cache()
    model(some_tokens(batch=2), cache=cache)
    with pytest.raises(TokensError, match="holds 2 rows, and the tokens have 3"):
        model(some_tokens(batch=3), cache=cache)
