"""Tiny random RecurrentGemmas as transformers writes them, and what flows through transformers' modules, under our names."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from scope.models.griffin.config import GriffinConfig
from scope.models.griffin.model import Griffin
from scope.models.load import load_model
from scope.models.text.tokenizer import Tokenizer
from scope.pretrain.tokenizer import save_tokenizer

_BASE = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "intermediate_size": 96,
    "vocab_size": 384,
    "attention_window_size": 5,
    "logits_soft_cap": 5.0,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
SHAPES: dict[str, dict] = {
    "as published, small": {},
    "wider than the stream, heads that do not divide it": {"hidden_size": 34, "lru_width": 52, "num_hidden_layers": 5},
    "attention first, a kv head each, biases": {
        "block_types": ["attention", "recurrent"],
        "num_key_value_heads": 4,
        "attention_bias": True,
        "attention_window_size": 2,
    },
    "conv of three, heads of ten, all but a fifth unturned": {
        "conv1d_width": 3,
        "head_dim": 10,
        "partial_rotary_factor": 0.2,
        "num_key_value_heads": 2,
        "intermediate_size": 65,
    },
    "conv of one, narrow recurrence, large window": {
        "conv1d_width": 1,
        "lru_width": 12,
        "attention_window_size": 40,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 1.0},
        "rms_norm_eps": 1e-2,
    },
    "recurrent alone": {"block_types": ["recurrent"], "num_hidden_layers": 2},
}
CLOSE = {"rtol": 0, "atol": 2e-5}


def random_recurrent(folder: Path, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32, seed: int = 0, **changed) -> Path:
    """A checkpoint of random weights, biases and gains too, as transformers writes it."""
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    model = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**_BASE | changed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.3 if p.dim() == 1 else 3 * p.shape[1] ** -0.5 if "embed" in name else p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator) * scale)
            if "recurrent_param" in name:
                p.sub_(2.5)
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(tokenizer.backend, folder, 64)
    return folder


def reference(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def pair_of(folder: Path, tokenizer: Tokenizer, **changed):
    """(our model with transformers' window, transformers' model) of one folder."""
    random_recurrent(folder, tokenizer, **changed)
    return load_model(str(folder), window_convention="hf"), reference(folder)


def tiny_griffin(tokenizer: Tokenizer | None = None, seed: int = 0, **changed) -> Griffin:
    """Ours alone, of random weights, without a folder."""
    sizes = {"d_model": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 1, "d_head": 8, "d_mlp": 48, "d_vocab": 384}
    more = {"lru_width": 40, "n_ctx": 64, "window": 5, "d_rotary": 4, "final_cap": 5.0}
    model = Griffin(GriffinConfig(**sizes | more | changed), tokenizer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.3 if p.dim() == 1 else 3 * p.shape[1] ** -0.5 if "embed" in name else p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator) * scale)
            if "recurrent_param" in name:
                p.sub_(2.5)
    model.provenance = {"model": "tiny", "weights_sha256": f"random-griffin-{seed}", "dtype": "float32"}
    return model.eval()


def some_tokens(batch: int = 3, length: int = 23, seed: int = 1) -> Tensor:
    tokens = torch.randint(7, 384, (batch, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = 2
    return tokens


def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def flow(theirs, tokens: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(hook name -> what flows there, hook name -> the gradient of the mean next-token loss there), read off the modules."""
    c, inner = theirs.config, theirs.model
    modeling = sys.modules[type(theirs).__module__]
    seen: dict[str, Tensor] = {}
    names = {inner.final_norm: "ln_final"}
    turned: list[tuple[Tensor, Tensor]] = []
    sigmoids: list[Tensor] = []
    exponents: list[Tensor] = []
    scans: list[tuple[Tensor, Tensor]] = []
    real_rotary, real_norm = modeling.apply_rotary_pos_emb, modeling.RecurrentGemmaRMSNorm._norm
    real_scan, real_sigmoid, real_exp = modeling.RecurrentGemmaRglru._rnn_scan, torch.sigmoid, torch.exp

    def on(module, name: str, take: str = "out") -> None:
        def fn(module, inputs, output):
            value = output if take == "out" else inputs[0]
            seen[name] = value[0] if isinstance(value, tuple) else value

        stack.callback(module.register_forward_hook(fn).remove)

    def noted(fn, results, which=lambda args, out: out):
        def call(*args, **kwargs):
            out = fn(*args, **kwargs)
            results.append(which(args, out))
            return out

        return call

    def norm(self, x):
        seen[f"{names[self]}.hook_normalized"] = real_norm(self, x)
        return seen[f"{names[self]}.hook_normalized"]

    def scan(self, hidden_states, recurrent_gate, **kwargs):
        scans.append((hidden_states, recurrent_gate))
        return real_scan(self, hidden_states=hidden_states, recurrent_gate=recurrent_gate, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(patch.object(modeling, "apply_rotary_pos_emb", noted(real_rotary, turned)))
        stack.enter_context(patch.object(modeling.RecurrentGemmaRMSNorm, "_norm", norm))
        stack.enter_context(patch.object(modeling.RecurrentGemmaRglru, "_rnn_scan", scan))
        stack.enter_context(patch.object(torch, "sigmoid", noted(real_sigmoid, sigmoids)))
        stack.enter_context(patch.object(torch, "exp", noted(real_exp, exponents, lambda args, out: args[0])))
        for i, layer in enumerate(inner.layers):
            at, b, mlp = layer.temporal_block, f"blocks.{i}", layer.mlp_block
            names |= {layer.temporal_pre_norm: f"{b}.ln1", layer.channel_pre_norm: f"{b}.ln2"}
            on(layer, f"{b}.hook_resid_pre", "in")
            on(layer, f"{b}.hook_resid_post")
            on(layer.channel_pre_norm, f"{b}.hook_resid_mid", "in")
            if hasattr(at, "rg_lru"):
                on(at.linear_x, f"{b}.rec.hook_x")
                on(at.act_fn, f"{b}.rec.hook_y")
                on(at.rg_lru, f"{b}.rec.hook_conv", "in")
                on(at.rg_lru, f"{b}.rec.hook_state")
                on(at.linear_out, f"{b}.rec.hook_rec_out")
            else:
                for x in "qkv":
                    on(getattr(at, f"{x}_proj"), f"{b}.attn.hook_{x}")
                on(at.o_proj, f"{b}.attn.hook_z", "in")
                on(at.o_proj, f"{b}.attn.hook_out")
                on(at.o_proj, f"{b}.hook_attn_out")
            on(mlp.gate_proj, f"{b}.mlp.hook_pre")
            on(mlp.up_proj, f"{b}.mlp.hook_pre_linear")
            on(mlp.down_proj, f"{b}.mlp.hook_post", "in")
            on(mlp.down_proj, f"{b}.mlp.hook_out")
            on(mlp.down_proj, f"{b}.hook_mlp_out")
        on(theirs.lm_head, "unembed.hook_in", "in")
        on(theirs.lm_head, "unembed.hook_out")
        out = theirs(tokens, use_cache=False, output_attentions=True)
    kinds = c.layers_block_type
    recurrent = [i for i, kind in enumerate(kinds) if kind == "linear_attention"]
    for n, i in enumerate(recurrent):
        at = f"blocks.{i}.rec"
        seen[f"{at}.hook_gate_x"], seen[f"{at}.hook_gate_a"] = sigmoids[2 * n : 2 * n + 2]
        seen[f"{at}.hook_log_a"] = exponents[2 * n]
        seen[f"{at}.hook_write"], seen[f"{at}.hook_a"] = scans[n]
    for n, i in enumerate(i for i, kind in enumerate(kinds) if kind != "linear_attention"):
        at = f"blocks.{i}.attn"
        seen[f"{at}.hook_pattern"] = out.attentions[n]
        seen[f"{at}.hook_rot_q"], seen[f"{at}.hook_rot_k"] = turned[n]
    watched = [name for name, x in seen.items() if x.requires_grad]
    found = torch.autograd.grad(loss_of(out.logits, tokens), [seen[name] for name in watched])
    grads = dict(zip(watched, found, strict=True))
    for i in recurrent:  # theirs sees what a state does at its own token; an edit of it flows on
        at = f"blocks.{i}.rec"
        total, a = grads[f"{at}.hook_state"].clone(), seen[f"{at}.hook_a"]
        for t in range(total.shape[1] - 2, -1, -1):
            total[:, t] += a[:, t + 1] * total[:, t + 1]
        grads[f"{at}.hook_state"] = total
    heads = {"hook_q": c.num_attention_heads, "hook_z": c.num_attention_heads}
    heads |= dict.fromkeys(("hook_k", "hook_v"), c.num_key_value_heads)
    for values in (seen, grads):
        for name, x in values.items():
            leaf = name.rsplit(".", 1)[-1]
            if leaf in heads:
                values[name] = x.unflatten(-1, (heads[leaf], -1))
            elif leaf in ("hook_rot_q", "hook_rot_k"):
                values[name] = x.transpose(1, 2)
            values[name] = values[name].detach()
    return seen, grads


def rewritten(folder: Path, **changed) -> Path:
    """config.json with fields changed; None takes one out."""
    file = folder / "config.json"
    raw = json.loads(file.read_text()) | changed
    file.write_text(json.dumps({name: value for name, value in raw.items() if value is not None}))
    return folder
