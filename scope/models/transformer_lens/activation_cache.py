"""The cache of `run_with_cache`: activations by name, long or short, with decompositions of the residual stream."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from scope.errors import ConfigError, UnknownSite
from scope.models.hooks import nearest
from scope.models.transformer_lens.decomposition import Decomposition, Slice, cut

_IN_ATTENTION = {"q", "k", "v", "z", "rot_q", "rot_k", "attn_scores", "pattern", "result"}
_IN_MLP = {"pre", "pre_linear", "post"}
_IN_RECURRENCE = {"x", "conv", "gate_x", "gate_a", "log_a", "a", "write", "state", "y", "rec_out"}
_ALIASES = {"attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v"}
_ALIASES |= {"mlp_pre": "pre", "mlp_post": "post"}
_PARTS = {"a": "attn", "attention": "attn", "m": "mlp"}


def full_name(name: str, layer: int | None = None, part: str | None = None) -> str:
    """TransformerLens' shorthand, spelled out: ("resid_post", 3), or "resid_post3", is blocks.3.hook_resid_post."""
    if layer is None and ("." in name or name.startswith("hook_")):
        return name
    glued = re.fullmatch(r"([a-z_]+?)(\d+)([a-z]?.*)", name)
    if layer is None and glued:
        name, layer, part = glued[1], int(glued[2]), glued[3] or part
    name, part = _ALIASES.get(name, name), _PARTS.get(part, part)
    if layer is None:
        return f"ln_final.hook_{name}" if name in ("scale", "normalized") else f"hook_{name}"
    if name in ("scale", "normalized"):
        return f"blocks.{layer}.{part or 'ln1'}.hook_{name}"
    named = (("attn", _IN_ATTENTION), ("mlp", _IN_MLP), ("rec", _IN_RECURRENCE))
    part = next((part for part, names in named if name in names), part)
    return f"blocks.{layer}.{part}.hook_{name}" if part else f"blocks.{layer}.hook_{name}"


class ActivationCache(Decomposition):
    """A mapping from hook name to tensor. `model` answers for the weights that some sums need; None does without them."""

    def __init__(self, cache_dict: dict[str, Tensor] | None = None, model: Any = None, has_batch_dim: bool = True):
        self.tensors = {} if cache_dict is None else cache_dict
        self.model, self.has_batch_dim = model, has_batch_dim

    def __getitem__(self, key: str | tuple) -> Tensor:
        """By full name, or TransformerLens' short form: cache["resid_post", 3], cache["z", -1], cache["embed"]."""
        name = key if key in self.tensors else self._spell(*([key] if isinstance(key, str) else key))
        if name not in self.tensors:
            raise UnknownSite(f"The cache holds no {name}.{nearest(name, list(self.tensors))}")
        return self.tensors[name]

    def _spell(self, name: str, layer: int | None = None, part: str | None = None) -> str:
        if layer is not None and layer < 0:  # from the last block
            held = 1 + max((int(n.split(".")[1]) for n in self.tensors if n.startswith("blocks.")), default=-1)
            layer += held if self.model is None else self.model.cfg.n_layers
        return full_name(name, layer, part)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return f"ActivationCache of {len(self)} activations: {', '.join(list(self)[:6])}{' …' if len(self) > 6 else ''}"

    cache_dict = property(lambda self: self.tensors)
    has_embed = property(lambda self: "hook_embed" in self.tensors)
    has_pos_embed = property(lambda self: "hook_pos_embed" in self.tensors)

    def keys(self):
        return self.tensors.keys()

    def items(self):
        return self.tensors.items()

    def values(self):
        return self.tensors.values()

    def to(self, device: str | torch.device) -> "ActivationCache":
        self.tensors = {name: x.to(device) for name, x in self.tensors.items()}
        return self

    def remove_batch_dim(self) -> "ActivationCache":
        """Drops the batch dimension of a batch of one.

        Raises:
            ConfigError: the batch is larger.
        """
        if self.has_batch_dim:
            sizes = {x.shape[0] for x in self.tensors.values()}
            if sizes - {1}:
                raise ConfigError(f"The batch holds {max(sizes)} sequences; only a batch of one can go without its dimension.")
            self.tensors = {name: x[0] for name, x in self.tensors.items()}
            self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self, batch_slice: Slice) -> "ActivationCache":
        if not self.has_batch_dim:
            raise ConfigError("This cache has no batch dimension to take a slice of.")
        parts = {name: cut(x, batch_slice, 0) for name, x in self.tensors.items()}
        one = isinstance(getattr(batch_slice, "slice", batch_slice), int)
        return ActivationCache(parts, self.model, not one)

    def toggle_autodiff(self, mode: bool = False) -> None:
        """TransformerLens' switch: gradients off or on everywhere, until it is called again."""
        torch.set_grad_enabled(mode)

    def stack_activation(self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None) -> Tensor:
        """[layer ...] of one activation in the blocks before `layer`, -1 for all."""
        return torch.stack([self[activation_name, n, sublayer_type] for n in range(self._upto(layer))])
