"""Our model in TransformerLens' classes: a HookedRootModule around it, or a HookedTransformer with a copy of its weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens import ActivationCache, HookedTransformer, HookedTransformerConfig
from transformer_lens.hook_points import HookPoint as LensPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.HookedTransformer import Output

from scope.models.parts.mask import as_mask
from scope.models.transformer_lens.kv_cache import refuse_recurrent

_PASSED_ON = ("W_", "b_", "embed", "unembed", "ln_final", "blocks", "to_")
_METHODS = ("generate", "get_token_position", "tokens_to_residual_directions", "accumulated_bias", "all_head_labels")


def hf_tokenizer(tokenizer: Any, n_ctx: int) -> Any:
    """Our tokenizer as transformers' class: it adds nothing to a text, and names the control tokens."""
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    known = {role: token for role, token in names.items() if tokenizer.backend.token_to_id(token) is not None}
    copy = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    copy.post_processor = None
    # Without a name and add_bos_token among its settings, HookedTransformer would look for another one on the hub.
    settings = {"model_max_length": n_ctx, "padding_side": "right", "name_or_path": "scope"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=copy, **settings, **known)
    wrapped.init_kwargs |= {"name_or_path": "scope", "add_bos_token": True}
    return wrapped


class HookedRoot(HookedRootModule):
    """Our model under TransformerLens' hook points. Each relays what passes the one of its name in it, while it has hooks.

    The weights are the model's own: training one trains the other. `cfg`, `W_U` and the like are passed on from it.
    """

    def __init__(self, model: Any):
        super().__init__()
        self._held = (model,)  # in a tuple: a registered module would have its hook points renamed
        self.cfg = model.cfg
        self.tokenizer = None if model.tokenizer is None else hf_tokenizer(model.tokenizer, model.cfg.n_ctx)
        # In dictionaries, where TransformerLens looks them up: submodules would stand where blocks and ln_final are passed on.
        self.hook_dict = {name: LensPoint() for name in model.hook_dict}
        self.mod_dict: dict[str, nn.Module] = dict(self.hook_dict)
        for name, point in self.hook_dict.items():
            point.name = name

    model = property(lambda self: self._held[0])

    def forward(
        self,
        input: Any,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        stop_at_layer: int | None = None,
        attention_mask: Tensor | None = None,
    ) -> Any:
        """As HookedTransformer's: logits, loss, both (an Output), nothing, or the stream before block `stop_at_layer`."""
        options = {"prepend_bos": prepend_bos, "padding_side": padding_side, "attention_mask": attention_mask}
        if isinstance(input, Tensor) and input.dim() == 1:
            input = input[None]
        if attention_mask is not None:
            attention_mask = as_mask(attention_mask)
        relays = [(name, _relay(point)) for name, point in self.hook_dict.items() if point.has_hooks()]
        with self.model.hooks(relays, must_fire=False):
            out = self.model(input, return_type, loss_per_token, stop_at_layer=stop_at_layer, **options)
        return Output(*out) if isinstance(out, tuple) else out

    def run_with_cache(self, *args, return_cache_object: bool = True, remove_batch_dim: bool = False, **kwargs):
        """(output, TransformerLens' ActivationCache, or a plain dictionary). Without a filter, what our model's own keeps."""
        if kwargs.get("names_filter") is None:
            kwargs["names_filter"] = self.model.match(None)
        out, tensors = super().run_with_cache(*args, remove_batch_dim=remove_batch_dim, **kwargs)
        return out, ActivationCache(tensors, self, not remove_batch_dim) if return_cache_object else tensors

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Tensor:
        """As HookedTransformer's, which cuts a text at the context unless told not to."""
        return self.model.to_tokens(input, prepend_bos, padding_side, move_to_device, truncate)

    def __getattr__(self, name: str):
        if name.startswith(_PASSED_ON) or name in _METHODS:
            return getattr(self.__dict__["_held"][0], name)
        return super().__getattr__(name)

    # The weights lie in the model, which is no submodule.

    def named_parameters(self, *args, **kwargs):
        return self.model.named_parameters(*args, **kwargs)

    def parameters(self, recurse: bool = True):
        return self.model.parameters(recurse)

    def state_dict(self, *args, **kwargs):
        return self.model.state_dict(*args, **kwargs)

    def _apply(self, fn, recurse: bool = True):
        self.model._apply(fn, recurse)
        return self

    def train(self, mode: bool = True):
        self.model.train(mode)
        return super().train(mode)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.model.zero_grad(set_to_none)


def _relay(point: LensPoint):
    return lambda x, hook: point(x)


def sae_transformer(model: Any, as_theirs: Callable[[Any], Any] = lambda sae: sae) -> Any:
    """SAELens' HookedSAETransformer of the same numbers; `as_theirs` makes SAELens' object of what is attached to it."""
    from sae_lens import HookedSAETransformer

    class WithSaes(HookedSAETransformer):
        """Takes SAEs of ours wherever SAELens' class takes its own."""

        def add_sae(self, sae: Any, *args: Any, **kwargs: Any) -> None:
            super().add_sae(as_theirs(sae), *args, **kwargs)

        def saes(self, saes: Any = (), *args: Any, **kwargs: Any) -> Any:
            return super().saes(
                [as_theirs(sae) for sae in (saes if isinstance(saes, list | tuple) else [saes])], *args, **kwargs
            )

    return export(model, WithSaes)


@torch.no_grad()
def export(model: Any, kind: type = HookedTransformer) -> Any:
    """A HookedTransformer of the same numbers, nothing folded or centred; the weights are copied. `kind` is a subclass."""
    refuse_recurrent(model)
    c = model.cfg
    config = HookedTransformerConfig(
        d_model=c.d_model,
        n_layers=c.n_layers,
        n_heads=c.n_heads,
        n_key_value_heads=c.n_kv_heads,
        d_head=c.d_head,
        d_mlp=c.d_mlp,
        d_vocab=c.d_vocab,
        n_ctx=c.n_ctx,
        eps=c.eps,
        act_fn=c.act_fn,
        normalization_type=c.normalization_type,
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_base=c.rope_theta,
        rotary_base_local=c.rotary_base_local,
        rotary_scaling_factor=c.rotary_scaling_factor,
        use_qk_norm=c.use_qk_norm,
        rotary_dim=c.d_head,
        attn_scale=c.attn_scale,
        attn_scores_soft_cap=c.attn_scores_soft_cap,
        output_logits_soft_cap=c.output_logits_soft_cap,
        use_local_attn=c.use_local_attn,
        window_size=c.window,
        attn_types=list(c.layer_types),
        use_normalization_before_and_after=c.post_norms,
        original_architecture=c.original_architecture,
        model_name=c.model_name,
        dtype=model.dtype,
        device=str(model.device),
        init_weights=False,
    )
    tensors = {"embed.W_E": model.W_E, "unembed.W_U": model.W_U, "unembed.b_U": model.b_U, "ln_final.w": model.ln_final.w}
    norms = ("ln1", "ln1_post", "ln2", "ln2_post") if c.post_norms else ("ln1", "ln2")
    for n, block in enumerate(model.blocks):
        kv = slice(None, None, c.n_heads // c.n_kv_heads)  # theirs are kept once for each key-value head
        attn, mlp, at = block.attn, block.mlp, f"blocks.{n}"
        tensors |= {f"{at}.{norm}.w": getattr(block, norm).w for norm in norms}
        if c.use_qk_norm:
            tensors |= {f"{at}.attn.{norm}.w": getattr(attn, norm).w for norm in ("q_norm", "k_norm")}
        tensors |= {f"{at}.attn.{w}": getattr(attn, w) for w in ("W_Q", "W_O", "b_Q", "b_O")}
        tensors |= {f"{at}.attn._{w}": getattr(attn, w)[kv] for w in ("W_K", "W_V", "b_K", "b_V")}
        tensors |= {f"{at}.mlp.{w}": getattr(mlp, w) for w in ("W_gate", "W_in", "W_out", "b_in", "b_out")}
    tokenizer = None if model.tokenizer is None else hf_tokenizer(model.tokenizer, c.n_ctx)
    twin = kind(config, tokenizer, move_to_device=False)
    state = twin.state_dict()
    left = set(tensors) ^ {name for name in state if not name.endswith((".mask", ".IGNORE", "rotary_sin", "rotary_cos"))}
    if left:
        raise RuntimeError(f"TransformerLens' {c.family_name} has other parameters than this version knows: {sorted(left)[:6]}")
    for name, tensor in tensors.items():
        state[name].copy_(tensor)
    return twin.to(model.device, print_details=False).eval()
