"""What passes every hook point of a SigLIP tower, read off the modules of transformers' eager model; its gradients too."""

import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn

Named = dict[str, Tensor]


class TowerFlow:
    """Within `with flow.watch(tower, "vision."):`, a run of theirs fills `seen`: our name -> (their tensor, to our layout)."""

    def __init__(self):
        self.seen: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {}

    def value(self, name: str) -> Tensor:
        x, layout = self.seen[name]
        return layout(x).detach()

    def gradients(self, loss: Tensor) -> Named:
        """The gradient of a scalar at every name."""
        names = list(self.seen)
        found = torch.autograd.grad(loss, [self.seen[name][0] for name in names])
        return {name: self.seen[name][1](g) for name, g in zip(names, found, strict=True)}

    def on(self, module: nn.Module, name: str, take: str = "out", layout: Callable = lambda x: x) -> None:
        def fn(module, inputs, output):
            value = output if take == "out" else inputs[0]
            self.seen[name] = (value[0] if isinstance(value, tuple) else value, layout)

        self.stack.callback(module.register_forward_hook(fn).remove)

    def norm(self, module: nn.LayerNorm, name: str) -> None:
        """Replaces the norm by its definition, which gives scale and quotient names; `watch` checks it against the real one."""
        real = module.forward

        def forward(x):
            centred = x - x.mean(-1, keepdim=True)
            scale = (centred.square().mean(-1, keepdim=True) + module.eps).sqrt()
            normalized = centred / scale
            self.seen[f"{name}.hook_scale"] = (scale, lambda x: x)
            self.seen[f"{name}.hook_normalized"] = (normalized, lambda x: x)
            out = normalized * module.weight + module.bias
            torch.testing.assert_close(out, real(x), rtol=1e-5, atol=1e-5)
            return real(x).detach() + (out - out.detach())  # the real one's bits, with the gradients of its parts

        self.stack.enter_context(patch.object(module, "forward", forward))

    def pooling(self, attention: nn.MultiheadAttention, name: str) -> None:
        """Replaces torch's attention by its definition, checked against the real one."""
        real, heads = attention.forward, attention.num_heads

        def forward(probe, x, _):
            parts = zip((probe, x, x), attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
            q, k, v = (nn.functional.linear(t, w, b).unflatten(-1, (heads, -1)) for t, w, b in parts)
            scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
            pattern = scores.softmax(-1)
            z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
            values = {"q": q, "k": k, "v": v, "attn_scores": scores, "pattern": pattern, "z": z}
            self.seen |= {f"{name}.hook_{leaf}": (value, lambda x: x) for leaf, value in values.items()}
            out = attention.out_proj(z.flatten(2))
            torch.testing.assert_close(out, real(probe, x, x)[0], rtol=1e-5, atol=1e-5)
            return real(probe, x, x)[0].detach() + (out - out.detach()), None

        self.stack.enter_context(patch.object(attention, "forward", forward))

    @contextmanager
    def watch(self, tower: nn.Module, prefix: str):
        modeling, config = sys.modules["transformers.models.siglip.modeling_siglip"], tower.config
        heads, names = config.num_attention_heads, {}
        real_attention = modeling.eager_attention_forward

        def attention(module, query, key, value, attention_mask, scaling, **kwargs):
            if module not in names:
                return real_attention(module, query, key, value, attention_mask, scaling, **kwargs)
            scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
            pattern = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
            self.seen[f"{names[module]}.hook_attn_scores"] = (scores, lambda x: x)
            self.seen[f"{names[module]}.hook_pattern"] = (pattern, lambda x: x)
            out = torch.matmul(pattern, value).transpose(1, 2).contiguous()
            expected, _ = real_attention(module, query, key, value, attention_mask, scaling, **kwargs)
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
            return out, pattern

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (heads, -1))

        with ExitStack() as self.stack:
            self.stack.enter_context(patch.object(modeling, "eager_attention_forward", attention))
            embeddings = tower.embeddings
            if hasattr(embeddings, "patch_embedding"):
                self.on(embeddings.patch_embedding, f"{prefix}hook_patches", layout=lambda x: x.flatten(2).transpose(1, 2))
                last = tower.post_layernorm
            else:
                self.on(embeddings.token_embedding, f"{prefix}hook_embed")
                last = tower.final_layer_norm
            self.on(embeddings.position_embedding, f"{prefix}hook_pos")
            for i, layer in enumerate(tower.encoder.layers):
                at, b = layer.self_attn, f"{prefix}blocks.{i}"
                names[at] = f"{b}.attn"
                self.on(layer, f"{b}.hook_resid_pre", "in")
                self.norm(layer.layer_norm1, f"{b}.ln1")
                for x in "qkv":
                    self.on(getattr(at, f"{x}_proj"), f"{b}.attn.hook_{x}", layout=split)
                self.on(at.out_proj, f"{b}.attn.hook_z", "in", split)
                self.on(at.out_proj, f"{b}.hook_attn_out")
                self.on(layer.layer_norm2, f"{b}.hook_resid_mid", "in")
                self.norm(layer.layer_norm2, f"{b}.ln2")
                self.on(layer.mlp.fc1, f"{b}.mlp.hook_pre")
                self.on(layer.mlp.fc2, f"{b}.mlp.hook_post", "in")
                self.on(layer.mlp.fc2, f"{b}.hook_mlp_out")
                self.on(layer, f"{b}.hook_resid_post")
            self.norm(last, f"{prefix}ln_final")
            self.on(last, f"{prefix}hook_out")
            if isinstance(getattr(tower, "head", None), nn.Linear):
                self.on(tower.head, f"{prefix}hook_pooled")
            elif hasattr(tower, "head"):
                head, name = tower.head, f"{prefix}head"
                self.pooling(head.attention, f"{name}.attn")
                self.on(head.attention.out_proj, f"{name}.hook_attn_out")
                self.norm(head.layernorm, f"{name}.ln")
                self.on(head.mlp.fc1, f"{name}.mlp.hook_pre")
                self.on(head.mlp.fc2, f"{name}.mlp.hook_post", "in")
                self.on(head.mlp.fc2, f"{name}.hook_mlp_out")
                self.on(head, f"{prefix}hook_pooled")
            yield self


def assert_same_hooks(names, cache, flow: TowerFlow, grads: Named, atol: float = 1e-4) -> float:
    """Every hook's value and gradient in `cache` equals theirs; the share of values that are equal to the last bit."""
    exact = 0
    for name in names:
        value, expected = cache[name], flow.value(name)
        exact += torch.equal(value, expected.expand_as(value))
        torch.testing.assert_close(value, expected.expand_as(value), rtol=1e-5, atol=atol, msg=lambda t, n=name: f"{n}: {t}")
        grad, wanted = cache[f"{name}_grad"], grads[name]
        grad = grad.sum(0, keepdim=True) if name.endswith("hook_pos") else grad  # theirs is one table for all inputs
        largest = wanted.abs().max()
        assert largest > 1e-9, name
        worst = (grad - wanted).abs().max() / largest
        assert worst < 1e-4, f"the gradient at {name} differs by {worst:.1e} of its largest"
    return exact / len(names)
