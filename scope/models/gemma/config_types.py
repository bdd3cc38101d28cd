"""The types of the fields of config.json that are read: a field of another type is refused by name, not computed with."""

from dataclasses import dataclass
from typing import Any

from scope.errors import CheckpointError
from scope.typed_json import typed


@dataclass(frozen=True)
class _Rope:
    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None


@dataclass(frozen=True)
class _RopeByKind(_Rope):
    """Gemma 3 has one for each kind of layer; the others one for all."""

    full_attention: _Rope | None = None
    sliding_attention: _Rope | None = None


@dataclass(frozen=True)
class _Fields:
    model_type: str | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    sliding_window: int | None = None
    sliding_window_pattern: int | None = None
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    rope_theta: float | None = None
    rope_local_base_freq: float | None = None
    rope_parameters: _RopeByKind | None = None
    rope_scaling: _Rope | None = None
    rms_norm_eps: float | None = None
    hidden_activation: str | None = None
    hidden_act: str | None = None
    layer_types: list[str] | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool | None = None


def check_types(raw: dict[str, Any], where: str) -> None:
    """Raises CheckpointError where a field of config.json, or of the language model's part of it, has another type."""
    for part in (raw, raw.get("text_config")):
        if isinstance(part, dict):
            typed(part, _Fields, f"config.json of {where}", CheckpointError, "Fetch it again.")
