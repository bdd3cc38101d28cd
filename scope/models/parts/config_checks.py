"""Checks that the configs of all text families share, and the fields of a config.json that they write alike."""

from collections.abc import Iterable
from typing import Any

from scope.errors import CheckpointError, ConfigError

LARGEST = {"n_layers": 1000, "d_vocab": 2**24, "n_ctx": 2**31, "window": 2**31, "conv_width": 64}
"""Sizes beyond any model's, which only a damaged file asks for; 2^17 where nothing else stands."""


def check_values(config: Any, sizes: Iterable[str], above_zero: Iterable[str]) -> None:
    """
    Raises:
        ConfigError: a size that cannot be, a value that is not above 0, a token id outside of the vocabulary, heads that do not
            divide.
    """
    for name in sizes:
        most = LARGEST.get(name, 2**17)
        if not 1 <= getattr(config, name) <= most:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be from 1 to {most:,}.")
    for name in above_zero:
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {value}; it must be above 0.")
    for name in ("bos", "pad"):
        if not 0 <= getattr(config, name) < config.d_vocab:
            raise ConfigError(f"{name} is {getattr(config, name)}, and the vocabulary has the ids 0 to {config.d_vocab - 1}.")
    if config.n_heads % config.n_kv_heads:
        raise ConfigError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} key-value heads evenly.")


def refuse_quantised(raw: dict[str, Any], where: str) -> None:
    """
    Raises:
        CheckpointError: the weights are quantised.
    """
    if raw.get("quantization_config") or raw.get("compression_config"):
        raise CheckpointError(f"{where} holds quantised weights, which are not read. Give the checkpoint they were made from.")


def token_ids(raw: dict[str, Any]) -> dict[str, Any]:
    """bos, eos and pad of a config.json, where nothing or an empty list is said those of all Gemmas; a pad of -1 means none."""
    bos, eos = raw.get("bos_token_id"), raw.get("eos_token_id")
    eos = 1 if eos is None or eos == [] else eos
    return {
        "bos": 2 if bos is None else bos,
        "eos": tuple(eos) if isinstance(eos, list | tuple) else (eos,),
        "pad": max(0, raw.get("pad_token_id") or 0),
    }


def common_fields(config: Any) -> dict[str, Any]:
    """The fields of a config.json that mean the same in every text family."""
    return {
        "architectures": [config.original_architecture],
        "model_type": config.model_type,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "vocab_size": config.d_vocab,
        "max_position_embeddings": config.n_ctx,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.eps,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": config.bos,
        "eos_token_id": config.eos[0] if len(config.eos) == 1 else list(config.eos),
        "pad_token_id": config.pad,
        "use_cache": True,
        "dtype": "bfloat16",
    }
