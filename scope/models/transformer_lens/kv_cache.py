"""Converts keys and values between our cache and TransformerLens': its own models have one kind, its bridges transformers'."""

from typing import Any

import torch

from scope.errors import ConfigError
from scope.models.parts.cache import LayerCache, ModelCache
from scope.shapes import Mask


def run_arguments(lens: Any, cache: ModelCache, real: Mask) -> dict[str, Any]:
    """What a run of `lens` is given so that it continues `cache`; `real` says which of the new tokens are no padding."""
    if not hasattr(lens, "original_model"):
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        past = TransformerLensKeyValueCache.init_cache(lens.cfg, real.device, len(real))
        if cache.n_tokens:
            for entry, layer in zip(past.entries, cache.layers, strict=True):
                entry.past_keys, entry.past_values = layer.k, layer.v
            past.previous_attention_mask = cache.real.int()
        return {"past_kv_cache": past, "attention_mask": real.long()}
    from transformers import DynamicCache

    past = DynamicCache()
    for n, layer in enumerate(cache.layers if cache.n_tokens else ()):
        past.update(layer.k.transpose(1, 2), layer.v.transpose(1, 2), n)
    seen = real if cache.real is None else torch.cat([cache.real, real], 1)
    return {"past_key_values": past, "use_cache": True, "attention_mask": seen.long()}


def refuse_recurrent(model: Any) -> None:
    """Raises ConfigError where a block remembers a state, for which TransformerLens' classes have no place."""
    recurrent = [str(n) for n, block in enumerate(model.blocks) if not hasattr(block, "attn")]
    if recurrent:
        raise ConfigError(
            f"Blocks {', '.join(recurrent)} of this model are recurrent, and TransformerLens' own models and caches know "
            "attention alone.\n  Its hooks and run_with_cache work on this model as it is; to continue a text, give "
            "cache=model.new_cache()."
        )


def continued(past: Any) -> ModelCache:
    """Our cache of what a TransformerLensKeyValueCache holds. No layer forgets keys, as there; masks know the windows.

    Raises:
        ConfigError: another model filled it. Its keys would not be turned by their positions, as ours are.
    """
    if past.entries[0].past_keys.shape[1] and not getattr(past, "keys_are_rotated", False):
        raise ConfigError(
            "This past_kv_cache was filled by a model of TransformerLens, which keeps keys before their rotary positions.\n"
            "  Fill it with this model: TransformerLensKeyValueCache.init_cache(model.cfg, model.device, batch)."
        )
    layers = [LayerCache(None, e.past_keys, e.past_values) if e.past_keys.shape[1] else LayerCache() for e in past.entries]
    real = past.previous_attention_mask.bool()
    if not real.shape[1]:
        return ModelCache(layers, padded=False)
    return ModelCache(layers, (real.long().cumsum(1) - 1).clamp(min=0), real, padded=not bool(real.all()))


def extend(past: Any, cache: ModelCache) -> None:
    """Hand what a run added to a `continued` cache back, but for what is frozen."""
    past.keys_are_rotated = True
    for entry, layer in zip(past.entries, cache.layers, strict=True):
        if not entry.frozen and layer.k is not None:
            entry.past_keys, entry.past_values = layer.k, layer.v
    if not past.frozen:
        past.previous_attention_mask = cache.real.to(past.previous_attention_mask.dtype)


def cache_entries(arguments: dict[str, Any], n_layers: int) -> list[LayerCache]:
    """What the run left in the `run_arguments` of it.

    Raises:
        ConfigError: a model that caches something else than keys and values of every layer.
    """
    if "past_kv_cache" in arguments:
        return [LayerCache(None, entry.past_keys, entry.past_values) for entry in arguments["past_kv_cache"].entries]
    layers = [layer for layer in arguments["past_key_values"].layers if getattr(layer, "keys", None) is not None]
    if len(layers) != n_layers:
        raise ConfigError(
            f"This model keeps keys and values of {len(layers)} of its {n_layers} layers, so it cannot continue from a cache. "
            "Give use_cache=False."
        )
    return [LayerCache(None, layer.keys.transpose(1, 2), layer.values.transpose(1, 2)) for layer in layers]
