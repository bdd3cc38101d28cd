"""Tiny random Gemma checkpoints on disk, and transformers' reading of them: eager attention, float32, no cache."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from scope.models.gemma.config import GemmaConfig
from scope.models.gemma.model import Gemma
from scope.models.gemma.weights import tensor_names
from scope.models.text.tokenizer import Tokenizer
from scope.pretrain.tokenizer import save_tokenizer
from tests.conftest import random_gemma

_GQA = GemmaConfig(
    d_model=32,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    d_head=12,
    d_mlp=48,
    d_vocab=384,
    n_ctx=64,
    window=5,
    query_scalar=12,
    attn_cap=3.0,
    final_cap=5.0,
)

_GEMMA_1 = replace(_GQA, model_type="gemma", attn_cap=None, final_cap=None, layer_types=())
_GEMMA_3 = replace(_GQA, model_type="gemma3_text", attn_cap=None, final_cap=None, rope_theta=500.0, rope_local_theta=20.0)

SHAPES = {
    "several kv heads, low caps": _GQA,
    "one kv head, three layers": replace(_GQA, n_kv_heads=1, d_head=10, n_layers=3, window=3, layer_types=()),
    "a kv head each, window of two": replace(_GQA, n_heads=2, n_kv_heads=2, d_head=24, window=2, layer_types=()),
    "query scale that is not 1/sqrt(d_head)": replace(
        _GQA, d_model=36, n_heads=6, n_kv_heads=3, d_head=6, query_scalar=8.0, attn_cap=50.0, final_cap=30.0
    ),
    "no caps": replace(_GQA, attn_cap=None, final_cap=None),
    "layers in another order": replace(_GQA, n_layers=5, layer_types=("global", "local", "local", "global", "global")),
    "another rope base and epsilon": replace(_GQA, rope_theta=300.0, eps=1e-2, window=40),
    "Gemma 1, one kv head": replace(_GEMMA_1, n_kv_heads=1, d_head=10, query_scalar=10, n_layers=3, layer_types=()),
    "Gemma 1, a kv head each, wider than the stream": replace(_GEMMA_1, d_model=36, n_kv_heads=4, n_layers=3, layer_types=()),
    "Gemma 1, several kv heads": replace(_GEMMA_1, rope_theta=300.0, eps=1e-2),
    "Gemma 3, five local layers to a global one": replace(_GEMMA_3, n_layers=7, layer_types=()),
    "Gemma 3, scaled positions, one kv head": replace(
        _GEMMA_3, n_kv_heads=1, d_head=10, n_layers=3, layer_types=("local", "global", "global"), rope_factor=8.0
    ),
    "Gemma 3, a kv head each, another query scale and epsilon": replace(
        _GEMMA_3, n_kv_heads=4, query_scalar=7.0, eps=1e-2, final_cap=4.0, layer_types=("global", "local") * 2
    ),
}


def save_checkpoint(
    model: Gemma, folder: Path, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32, shards: int = 1
) -> Path:
    """A folder as the hub has them; with `shards` > 1, that many files and an index."""
    parameters = dict(model.named_parameters())
    tensors = {theirs: parameters[ours].detach().to(dtype).contiguous() for ours, theirs in tensor_names(model.cfg).items()}
    save_tokenizer(tokenizer.backend, folder, model.cfg.n_ctx)
    (folder / "config.json").write_text(json.dumps(model.cfg.to_hf()))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for shard in range(shards):
        names = list(tensors)[shard::shards]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: tensors[n] for n in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def twins(config: GemmaConfig, folder: Path, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32):
    """(our model, transformers' model), both loaded from one folder of random weights."""
    from scope.models.load import load_model

    save_checkpoint(random_gemma(config), folder, tokenizer, dtype)
    return load_model(str(folder), dtype=dtype), reference(folder, dtype)


def reference(folder: Path, dtype: torch.dtype = torch.float32):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


def some_tokens(config: GemmaConfig, batch: int = 3, length: int = 23, seed: int = 1) -> torch.Tensor:
    """Random ids after a <bos>, longer than every window above."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(7, config.d_vocab, (batch, length), generator=generator)
    tokens[:, 0] = config.bos
    return tokens


def hooked_transformer(config: GemmaConfig, theirs):
    """TransformerLens' reading of transformers' model, nothing folded."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gemma_weights

    c = config
    wanted = HookedTransformerConfig(
        d_model=c.d_model,
        n_layers=c.n_layers,
        n_heads=c.n_heads,
        n_key_value_heads=c.n_kv_heads,
        d_head=c.d_head,
        d_mlp=c.d_mlp,
        d_vocab=c.d_vocab,
        n_ctx=c.n_ctx,
        eps=c.eps,
        act_fn="gelu_pytorch_tanh",
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_base=c.rope_theta,
        rotary_base_local=c.rope_local_theta,
        rotary_scaling_factor=c.rope_factor,
        use_qk_norm=c.use_qk_norm,
        rotary_dim=c.d_head,
        attn_scale=c.query_scalar**0.5,
        attn_scores_soft_cap=c.attn_cap or -1.0,
        output_logits_soft_cap=c.final_cap or -1.0,
        use_local_attn=c.post_norms,
        window_size=c.window,
        attn_types=list(c.layer_types),
        use_normalization_before_and_after=c.post_norms,
        original_architecture=c.original_architecture,
        device="cpu",
    )
    lens = HookedTransformer(wanted)
    lens.load_state_dict(convert_gemma_weights(theirs, wanted), strict=False)
    return lens
