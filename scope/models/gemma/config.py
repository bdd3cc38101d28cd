"""The sizes and switches of a Gemma, under TransformerLens' names, read from a Hugging Face config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scope.errors import CheckpointError, ConfigError
from scope.models.gemma.config_types import check_types
from scope.models.parts.config_checks import LARGEST, check_values, common_fields, refuse_quantised, token_ids
from scope.models.transformer_lens.config_names import ConfigNames, with_switches

_ATTENTION = {"sliding_attention": "local", "full_attention": "global"}


@dataclass(frozen=True)
class _Generation:
    """What one generation of Gemma has, whatever its size."""

    name: str
    architecture: str
    post_norms: bool
    attention: tuple[str, ...]
    """Kinds of layers, in the order in which they alternate."""

    unsaid: Mapping[str, Any]
    """What transformers takes where a config.json leaves a field out."""

    qk_norm: bool = False


_BEFORE_3 = {"head_dim": 256, "max_position_embeddings": 8192, "rope_theta": 10000.0}
_GENERATIONS = {
    "gemma": _Generation("Gemma 1", "GemmaForCausalLM", post_norms=False, attention=("global",), unsaid=_BEFORE_3),
    "gemma2": _Generation(
        "Gemma 2",
        "Gemma2ForCausalLM",
        post_norms=True,
        attention=("local", "global"),
        unsaid=_BEFORE_3 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3_text": _Generation(
        "Gemma 3",
        "Gemma3ForCausalLM",
        post_norms=True,
        attention=("local",) * 5 + ("global",),
        unsaid={
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
            "rope_theta": 1_000_000.0,
        },
        qk_norm=True,
    ),
}
"""model_type of config.json -> the generation. CodeGemma is a Gemma 1; ShieldGemma and DataGemma are Gemma 2."""


@with_switches
@dataclass(frozen=True, kw_only=True)
class GemmaConfig(ConfigNames):
    """A Gemma. `layer_types` says of each block whether it looks at all keys ("global") or at a window ("local")."""

    model_type: str = "gemma2"
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int = 8192
    window: int = 4096
    query_scalar: float = 256.0
    attn_cap: float | None = 50.0
    final_cap: float | None = 30.0
    rope_theta: float = 10000.0
    rope_local_theta: float | None = None
    """The base of local layers where they have one of their own, as in Gemma 3."""

    rope_factor: float = 1.0
    """Positions are divided by it in global layers: 8 in Gemma 3 from 4B on."""

    eps: float = 1e-6
    layer_types: tuple[str, ...] = ()
    bos: int = 2
    eos: tuple[int, ...] = (1,)
    pad: int = 0
    model_name: str = "gemma2"

    def __post_init__(self):
        if self.model_type not in _GENERATIONS:
            raise ConfigError(f"model_type is {self.model_type!r}; a Gemma's is {' or '.join(_GENERATIONS)}.")
        sizes = "d_model n_layers n_heads n_kv_heads d_head d_mlp d_vocab n_ctx window".split()
        check_values(self, sizes, "query_scalar attn_cap final_cap rope_theta rope_local_theta rope_factor eps".split())
        if self.d_head % 2:
            raise ConfigError(f"d_head is {self.d_head}; rotary positions pair features, so it must be even.")
        if not self.layer_types:
            kinds = self._generation.attention
            object.__setattr__(self, "layer_types", tuple(kinds[layer % len(kinds)] for layer in range(self.n_layers)))
        caps = self.attn_cap is not None or self.final_cap is not None
        if self.model_type == "gemma" and (caps or self.query_scalar != self.d_head or "local" in self.layer_types):
            raise ConfigError(
                "A Gemma 1 has global attention, no soft caps, and query_scalar d_head.\n"
                f"  Give attn_cap=None, final_cap=None, query_scalar={self.d_head} and no layer_types."
            )
        if self.model_type != "gemma3_text" and (self.rope_local_theta is not None or self.rope_factor != 1):
            raise ConfigError(
                f"A {self.family_name} has one rotary base, unscaled; rope_local_theta and rope_factor are Gemma 3's."
            )
        if self.model_type == "gemma3_text" and self.attn_cap is not None:
            raise ConfigError("A Gemma 3 normalises queries and keys and has no soft cap on scores. Give attn_cap=None.")
        if len(self.layer_types) != self.n_layers or set(self.layer_types) - {"local", "global"}:
            raise ConfigError(f'layer_types must say "local" or "global" for each of {self.n_layers} layers.')

    def local_window(self, layer: int) -> int | None:
        return self.window if self.layer_types[layer] == "local" else None

    def rope(self, layer: int) -> tuple[float, float]:
        """(base, divisor of positions) of a layer's rotary angles."""
        if self.layer_types[layer] == "local" and self.rope_local_theta is not None:
            return self.rope_local_theta, 1.0
        return self.rope_theta, self.rope_factor

    _generation = property(lambda self: _GENERATIONS[self.model_type])
    post_norms = property(lambda self: self._generation.post_norms)
    use_qk_norm = property(lambda self: self._generation.qk_norm)
    rotary_base_local = property(lambda self: self.rope_local_theta)
    rotary_scaling_factor = property(lambda self: self.rope_factor)
    family_name = property(lambda self: self._generation.name)
    original_architecture = property(lambda self: self._generation.architecture)

    @classmethod
    def from_hf(cls, raw: dict[str, Any], where: str) -> "GemmaConfig":
        """From the dictionary in config.json; `where` names the checkpoint in refusals.

        Raises:
            CheckpointError: another model_type, an activation or rope variant not computed here, a missing field.
        """
        check_types(raw, where)
        if raw.get("model_type") == "gemma3":
            raw = _language_part(raw, where)
        kind = raw.get("model_type")
        if kind not in _GENERATIONS:
            raise CheckpointError(f"{where} holds a model of type {kind!r}; a Gemma's is {' or '.join(_GENERATIONS)}.")
        generation, first = _GENERATIONS[kind], kind == "gemma"
        name = generation.name
        raw = dict(generation.unsaid) | raw
        _check_activation(raw, where, name)
        if raw.get("attention_bias"):
            raise CheckpointError(f"{where} has attention biases, which no {name} has.")
        if raw.get("use_bidirectional_attention"):
            raise CheckpointError(f"{where} asks for attention in both directions; only causal attention is computed.")
        refuse_quantised(raw, where)
        known = [theirs for theirs, ours in _ATTENTION.items() if ours in generation.attention]
        if strange := sorted(set(raw.get("layer_types") or ()) - set(known)):
            raise CheckpointError(f"{where} has layers of type {', '.join(strange)}; a {name} has {', '.join(known)}.")
        try:
            d_head = raw["head_dim"]
            return cls(
                model_type=kind,
                d_model=raw["hidden_size"],
                n_layers=raw["num_hidden_layers"],
                n_heads=raw["num_attention_heads"],
                n_kv_heads=raw["num_key_value_heads"],
                d_head=d_head,
                d_mlp=raw["intermediate_size"],
                d_vocab=raw["vocab_size"],
                n_ctx=raw["max_position_embeddings"],
                window=raw.get("sliding_window") or 4096,
                query_scalar=d_head if first else raw.get("query_pre_attn_scalar", 256),
                attn_cap=None if first else raw.get("attn_logit_softcapping"),
                final_cap=None if first else raw.get("final_logit_softcapping"),
                **(_rotary_by_kind if kind == "gemma3_text" else _rotary)(raw, where),
                eps=raw.get("rms_norm_eps", 1e-6),
                layer_types=_layer_types(raw),
                **token_ids(raw),
                model_name=where,
            )
        except KeyError as missing:
            raise CheckpointError(f"config.json of {where} has no {missing}.") from None
        except TypeError as error:
            raise CheckpointError(f"config.json of {where} has a value that is no number or list: {error}.") from None

    def to_hf(self) -> dict[str, Any]:
        """The dictionary of a config.json that transformers reads as the same model."""
        types = {ours: theirs for theirs, ours in _ATTENTION.items()}
        whole = self.query_scalar == int(self.query_scalar)  # theirs is an int
        later = {
            "sliding_window": self.window,
            "query_pre_attn_scalar": int(self.query_scalar) if whole else self.query_scalar,
            "attn_logit_softcapping": self.attn_cap,
            "final_logit_softcapping": self.final_cap,
            "layer_types": [types[t] for t in self.layer_types],
        }
        scaling = {"rope_type": "linear", "factor": self.rope_factor} if self.rope_factor != 1 else None
        local = {"rope_local_base_freq": self.rope_local_theta or self.rope_theta, "rope_scaling": scaling}
        return {
            **common_fields(self),
            "intermediate_size": self.d_mlp,
            **(later if self.post_norms else {}),
            **(local if self.model_type == "gemma3_text" else {}),
            "hidden_act": "gelu_pytorch_tanh",
            "attention_bias": False,
            "initializer_range": 0.02,
        }


def _check_activation(raw: dict[str, Any], where: str, name: str) -> None:
    """Every Gemma has the tanh form of GELU. The first releases wrote `hidden_act: gelu` and meant it too, as transformers
    reads them; `hidden_activation`, where there is one, is meant to the letter."""
    meant = raw.get("hidden_activation") or {"gelu": "gelu_pytorch_tanh"}.get(raw.get("hidden_act"), raw.get("hidden_act"))
    if meant not in ("gelu_pytorch_tanh", None):
        raise CheckpointError(f"{where} asks for activation {meant!r}; a {name} has gelu_pytorch_tanh.")


def _language_part(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The text model's part of the config of a Gemma 3 with a vision tower (4B to 27B); ids may stand beside it."""
    text = raw.get("text_config")
    if not isinstance(text, dict):
        raise CheckpointError(f"config.json of {where} has no text_config, which says what its language model is.")
    ids = {name: raw[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if raw.get(name) is not None}
    return {**ids, **text, "model_type": text.get("model_type", "gemma3_text")}


def _layer_types(raw: dict[str, Any]) -> tuple[str, ...]:
    """Kinds of attention, by layer; older configs of Gemma 3 say only that every nth layer is global."""
    if raw.get("layer_types"):
        return tuple(_ATTENTION[t] for t in raw["layer_types"])
    n_layers = min(raw["num_hidden_layers"], LARGEST["n_layers"])  # more are refused by the config
    if nth := raw.get("sliding_window_pattern"):
        return tuple("local" if (layer + 1) % nth else "global" for layer in range(n_layers))
    return ()


def _rotary(raw: dict[str, Any], where: str) -> dict[str, float]:
    rope = raw.get("rope_parameters") or {}
    if scaling := next((r for r in (raw.get("rope_scaling"), rope) if r and _rope_kind(r) != "default"), None):
        raise CheckpointError(f"{where} asks for rope scaling {scaling}; only unscaled rotary positions are computed.")
    if rope.keys() & {"full_attention", "sliding_attention"}:
        raise CheckpointError(f"{where} asks for rotary positions by kind of layer, which only a Gemma 3 has.")
    return {"rope_theta": rope.get("rope_theta") or raw["rope_theta"]}


def _rotary_by_kind(raw: dict[str, Any], where: str) -> dict[str, float]:
    """Gemma 3's bases and the scaling of its global layers, in the older or the newer spelling of transformers."""
    by_kind = raw.get("rope_parameters") or {}
    local = by_kind.get("sliding_attention") or {}
    whole = {**(by_kind.get("full_attention") or {}), **(raw.get("rope_scaling") or {})}
    if _rope_kind(local) != "default" or _rope_kind(whole) not in ("default", "linear"):
        asked = local if _rope_kind(local) != "default" else whole
        raise CheckpointError(
            f"{where} asks for rope scaling {asked}; a Gemma 3 scales the positions of global layers linearly."
        )
    return {
        "rope_theta": whole.get("rope_theta") or raw["rope_theta"],
        "rope_local_theta": local.get("rope_theta") or raw.get("rope_local_base_freq") or 10000.0,
        "rope_factor": float(whole.get("factor", 1.0)) if _rope_kind(whole) == "linear" else 1.0,
    }


def _rope_kind(rope: dict[str, Any]) -> str:
    """What a rope_scaling or rope_parameters asks for; older files write `type`, and some a factor alone."""
    return rope.get("rope_type") or rope.get("type") or ("factor" if "factor" in rope else "default")
