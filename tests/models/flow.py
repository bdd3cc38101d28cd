"""What passes every hook point of ours, and its gradient, read off the modules of transformers' Gemma 1, 2 or 3."""

import sys
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

NORMS = {
    "gemma": {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"},
    "gemma2": {
        "ln1": "input_layernorm",
        "ln1_post": "post_attention_layernorm",
        "ln2": "pre_feedforward_layernorm",
        "ln2_post": "post_feedforward_layernorm",
    },
}
NORMS["gemma3_text"] = NORMS["gemma2"]
Named = dict[str, Tensor]


def positions_of(mask: Tensor) -> Tensor:
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def flow(theirs, tokens: Tensor, mask: Tensor | None = None, grad: bool = False) -> Named | tuple[Named, Named]:
    """Hook name -> what flows there; with `grad` also what the mean loss of next real tokens has as gradient there. Only the
    scores before the mask, the norms' scales and what follows from them are worked out here rather than read off."""

    c, inner = theirs.config, theirs.model
    heads, kv = c.num_attention_heads, c.num_key_value_heads
    seen: Named = {}
    split = {"hook_q": heads, "hook_k": kv, "hook_v": kv, "hook_z": heads}
    turned: list[tuple[Tensor, Tensor]] = []
    modeling, norm_class, norms = sys.modules[type(theirs).__module__], type(inner.norm), NORMS[c.model_type]
    real_rotary, real_norm = modeling.apply_rotary_pos_emb, norm_class._norm
    norm_names = {inner.norm: "ln_final"}

    def on(module, name: str, take: str = "out") -> None:
        def fn(module, inputs, output):
            value = output if take == "out" else inputs[0]
            seen[name] = value[0] if isinstance(value, tuple) else value

        stack.callback(module.register_forward_hook(fn).remove)

    def rotary(*args, **kwargs):
        turned.append(real_rotary(*args, **kwargs))
        return turned[-1]

    def norm(self, x):
        name = norm_names[self]
        seen[f"{name}.hook_scale"] = (x.detach().square().mean(-1, keepdim=True) + self.eps).sqrt()
        seen[f"{name}.hook_normalized"] = real_norm(self, x)
        return seen[f"{name}.hook_normalized"]

    with ExitStack() as stack, torch.set_grad_enabled(grad):
        stack.enter_context(patch.object(modeling, "apply_rotary_pos_emb", rotary))
        stack.enter_context(patch.object(norm_class, "_norm", norm))
        on(inner.embed_tokens, "hook_embed")
        for i, layer in enumerate(inner.layers):
            at, b = layer.self_attn, f"blocks.{i}"
            norm_names |= {getattr(layer, theirs): f"{b}.{ours}" for ours, theirs in norms.items()}
            norm_names |= {getattr(at, n): f"{b}.attn.{n}" for n in ("q_norm", "k_norm") if hasattr(at, n)}
            on(layer, f"{b}.hook_resid_pre", "in")
            on(layer, f"{b}.hook_resid_post")
            on(getattr(layer, norms["ln2"]), f"{b}.hook_resid_mid", "in")
            on(getattr(layer, norms["ln1_post"]) if "ln1_post" in norms else at.o_proj, f"{b}.hook_attn_out")
            on(getattr(layer, norms["ln2_post"]) if "ln2_post" in norms else layer.mlp.down_proj, f"{b}.hook_mlp_out")
            for x in "qkv":
                on(getattr(at, f"{x}_proj"), f"{b}.attn.hook_{x}")
            on(at.o_proj, f"{b}.attn.hook_z", "in")
            on(at.o_proj, f"{b}.attn.hook_out")
            on(layer.mlp.gate_proj, f"{b}.mlp.hook_pre")
            on(layer.mlp.up_proj, f"{b}.mlp.hook_pre_linear")
            on(layer.mlp.down_proj, f"{b}.mlp.hook_post", "in")
            on(layer.mlp.down_proj, f"{b}.mlp.hook_out")
        on(theirs.lm_head, "unembed.hook_in", "in")
        on(theirs.lm_head, "unembed.hook_out")
        given = {} if mask is None else {"attention_mask": mask.long(), "position_ids": positions_of(mask)}
        out = theirs(tokens, use_cache=False, output_attentions=True, output_hidden_states=True, **given)
    for i, pattern in enumerate(out.attentions):
        seen[f"blocks.{i}.attn.hook_pattern"] = pattern
        seen[f"blocks.{i}.attn.hook_rot_q"], seen[f"blocks.{i}.attn.hook_rot_k"] = turned[i]
    for i, hidden in enumerate(out.hidden_states[:-1]):
        torch.testing.assert_close(seen[f"blocks.{i}.hook_resid_pre"], hidden)
    grads: Named = {}
    if grad:
        names = [name for name, x in seen.items() if x.requires_grad]
        found = torch.autograd.grad(_loss(out.logits, tokens, mask), [seen[name] for name in names])
        grads = dict(zip(names, found, strict=True))

    def in_our_layout(values: Named) -> None:
        for name, x in values.items():
            leaf = name.rsplit(".", 1)[-1]
            if leaf in split:
                values[name] = x.unflatten(-1, (split[leaf], -1))
            elif leaf in ("hook_rot_q", "hook_rot_k") or ".attn.q_norm." in name or ".attn.k_norm." in name:
                values[name] = x.transpose(1, 2)
            values[name] = values[name].detach()

    in_our_layout(seen)
    for i in range(len(inner.layers)):
        a = f"blocks.{i}.attn"
        q, k = (seen[f"{a}.hook_rot_{x}"].transpose(1, 2) for x in "qk")
        scores = q @ k.repeat_interleave(heads // kv, 1).transpose(2, 3) * inner.layers[i].self_attn.scaling
        cap = getattr(c, "attn_logit_softcapping", None)
        seen[f"{a}.hook_attn_scores"] = scores if cap is None else cap * torch.tanh(scores / cap)
    if not grad:
        return seen
    in_our_layout(grads)
    for name in [n.removesuffix("hook_scale") for n in seen if n.endswith("hook_scale")]:  # normalized = x / scale
        g, normalized = grads[f"{name}hook_normalized"], seen[f"{name}hook_normalized"]
        grads[f"{name}hook_scale"] = -(g * normalized).sum(-1, keepdim=True) / seen[f"{name}hook_scale"]
    for name in [n.removesuffix("pattern") for n in seen if n.endswith("hook_pattern")]:  # pattern = softmax(scores)
        g, p = grads[f"{name}pattern"], seen[f"{name}pattern"]
        grads[f"{name}attn_scores"] = p * (g - (g * p).sum(-1, keepdim=True))
    return seen, grads


def _loss(logits: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    counted = mask[:, 1:] & mask[:, :-1]
    return cross_entropy(logits[:, :-1][counted], tokens[:, 1:][counted])


def at_real_tokens(name: str, x: Tensor, mask: Tensor) -> Tensor:
    """[real ...] the rows of real tokens; of scores and patterns, those of their queries."""
    return (x.transpose(1, 2) if name.endswith(("attn_scores", "pattern")) else x)[mask]
