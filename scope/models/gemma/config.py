"""The sizes and switches of a Gemma 2, under TransformerLens' names, read from a Hugging Face config.json."""

from dataclasses import dataclass
from typing import Any

import torch

from scope.errors import CheckpointError, ConfigError

FAMILIES = ("gemma2",)
_LAYER_TYPES = {"sliding_attention": "local", "full_attention": "global"}


@dataclass(frozen=True, kw_only=True)
class GemmaConfig:
    """A Gemma 2. `layer_types` says of each block whether it looks at all keys ("global") or at a window ("local")."""

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
    eps: float = 1e-6
    layer_types: tuple[str, ...] = ()
    bos: int = 2
    eos: tuple[int, ...] = (1,)
    pad: int = 0
    model_name: str = "gemma2"

    def __post_init__(self):
        for name in ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("query_scalar", "attn_cap", "final_cap", "rope_theta", "eps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}; it must be above 0.")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(f"{self.n_heads} query heads cannot share {self.n_kv_heads} key-value heads evenly.")
        if self.d_head % 2:
            raise ConfigError(f"d_head is {self.d_head}; rotary positions pair features, so it must be even.")
        if not self.layer_types:
            types = tuple("local" if layer % 2 == 0 else "global" for layer in range(self.n_layers))
            object.__setattr__(self, "layer_types", types)
        if len(self.layer_types) != self.n_layers or set(self.layer_types) - {"local", "global"}:
            raise ConfigError(f'layer_types must say "local" or "global" for each of {self.n_layers} layers.')

    def note_place(self, dtype: torch.dtype, device: torch.device) -> None:
        """The model that owns this config says where its weights are now, for those who ask cfg.dtype and cfg.device.
        No fields, for they are nothing that a checkpoint could be compared by."""
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "device", device)

    # TransformerLens' other names for the same things.
    n_key_value_heads = property(lambda self: self.n_kv_heads)
    window_size = property(lambda self: self.window)
    attn_scores_soft_cap = property(lambda self: -1.0 if self.attn_cap is None else self.attn_cap)
    output_logits_soft_cap = property(lambda self: -1.0 if self.final_cap is None else self.final_cap)
    d_vocab_out = property(lambda self: self.d_vocab)
    act_fn = property(lambda self: "gelu_pytorch_tanh")
    normalization_type = property(lambda self: "RMS")
    positional_embedding_type = property(lambda self: "rotary")
    default_prepend_bos = property(lambda self: True)
    tokenizer_prepends_bos = property(lambda self: False)
    tokenizer_name = property(lambda self: self.model_name)
    original_architecture = property(lambda self: "Gemma2ForCausalLM")
    attn_types = property(lambda self: list(self.layer_types))
    attn_scale = property(lambda self: self.query_scalar**0.5)
    use_attn_scale = use_local_attn = use_normalization_before_and_after = property(lambda self: True)
    gated_mlp = final_rms = tie_word_embeddings = uses_rms_norm = property(lambda self: True)
    attn_only = parallel_attn_mlp = rotary_adjacent_pairs = use_qk_norm = property(lambda self: False)
    use_attn_result = use_split_qkv_input = use_attn_in = use_hook_mlp_in = False  # what model.set_use_...() changes
    ungroup_grouped_query_attention = post_embedding_ln = scale_attn_by_inverse_layer_idx = from_checkpoint = False
    num_experts = rotary_base_local = None
    rotary_dim = property(lambda self: self.d_head)
    rotary_base = property(lambda self: self.rope_theta)
    attention_dir = property(lambda self: "causal")
    n_devices = property(lambda self: 1)

    def local_window(self, layer: int) -> int | None:
        return self.window if self.layer_types[layer] == "local" else None

    @classmethod
    def from_hf(cls, raw: dict[str, Any], where: str) -> "GemmaConfig":
        """From the dictionary in config.json; `where` names the checkpoint in refusals.

        Raises:
            CheckpointError: another model_type, an activation or rope variant not computed here, a missing field.
        """
        kind = raw.get("model_type")
        if kind not in FAMILIES:
            raise CheckpointError(
                f"{where} holds a model of type {kind!r}; scope computes {', '.join(FAMILIES)}.\n"
                "  Give a Gemma 2 checkpoint, --model bundled, or --model lens:NAME for a model that TransformerLens loads."
            )
        activation = raw.get("hidden_activation") or raw.get("hidden_act") or "gelu_pytorch_tanh"
        meant = activation == "gelu" and not raw.get("hidden_activation")  # older files say so and mean the tanh form
        if activation != "gelu_pytorch_tanh" and not meant:
            raise CheckpointError(f"{where} asks for activation {activation!r}; a Gemma 2 has gelu_pytorch_tanh.")
        rope = raw.get("rope_parameters") or {}
        scaling = next((r for r in (raw.get("rope_scaling"), rope) if r and _rope_kind(r) != "default"), None)
        if scaling:
            raise CheckpointError(f"{where} asks for rope scaling {scaling}; only unscaled rotary positions are computed.")
        if raw.get("attention_bias"):
            raise CheckpointError(f"{where} has attention biases, which no Gemma 2 has.")
        if raw.get("use_bidirectional_attention"):
            raise CheckpointError(f"{where} asks for attention in both directions; only causal attention is computed.")
        if raw.get("quantization_config"):
            raise CheckpointError(
                f"{where} holds quantised weights, which are not read. Give the checkpoint they were made from."
            )
        if strange := sorted(set(raw.get("layer_types") or ()) - set(_LAYER_TYPES)):
            raise CheckpointError(f"{where} has layers of type {', '.join(strange)}; a Gemma 2 has {', '.join(_LAYER_TYPES)}.")
        eos = raw.get("eos_token_id")
        eos = 1 if eos is None else eos
        types = tuple(_LAYER_TYPES[t] for t in raw.get("layer_types") or ())
        try:
            return cls(
                d_model=raw["hidden_size"],
                n_layers=raw["num_hidden_layers"],
                n_heads=raw["num_attention_heads"],
                n_kv_heads=raw["num_key_value_heads"],
                d_head=raw.get("head_dim", 256),
                d_mlp=raw["intermediate_size"],
                d_vocab=raw["vocab_size"],
                n_ctx=raw.get("max_position_embeddings", 8192),
                window=raw.get("sliding_window") or 4096,
                query_scalar=raw.get("query_pre_attn_scalar", 256),
                attn_cap=raw.get("attn_logit_softcapping", 50.0),
                final_cap=raw.get("final_logit_softcapping", 30.0),
                rope_theta=rope.get("rope_theta") or raw.get("rope_theta", 10000.0),
                eps=raw.get("rms_norm_eps", 1e-6),
                layer_types=types,
                bos=raw.get("bos_token_id", 2),
                eos=tuple(eos) if isinstance(eos, list | tuple) else (eos,),
                pad=raw.get("pad_token_id", 0) or 0,
                model_name=where,
            )
        except KeyError as missing:
            raise CheckpointError(f"config.json of {where} says nothing of {missing}.") from None
        except TypeError as error:
            raise CheckpointError(f"config.json of {where} holds something that is no number or list: {error}.") from None

    def to_hf(self) -> dict[str, Any]:
        """The dictionary of a config.json that transformers reads as the same model."""
        types = {ours: theirs for theirs, ours in _LAYER_TYPES.items()}
        scalar = (
            int(self.query_scalar) if self.query_scalar == int(self.query_scalar) else self.query_scalar
        )  # theirs is an int
        return {
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            "hidden_size": self.d_model,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.d_head,
            "intermediate_size": self.d_mlp,
            "vocab_size": self.d_vocab,
            "max_position_embeddings": self.n_ctx,
            "sliding_window": self.window,
            "query_pre_attn_scalar": scalar,
            "attn_logit_softcapping": self.attn_cap,
            "final_logit_softcapping": self.final_cap,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.eps,
            "layer_types": [types[t] for t in self.layer_types],
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_act": "gelu_pytorch_tanh",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "bos_token_id": self.bos,
            "eos_token_id": self.eos[0] if len(self.eos) == 1 else list(self.eos),
            "pad_token_id": self.pad,
            "initializer_range": 0.02,
            "use_cache": True,
            "dtype": "bfloat16",
        }


def _rope_kind(rope: dict[str, Any]) -> str:
    """What a rope_scaling or rope_parameters asks for; older files write `type`, and some a factor alone."""
    return rope.get("rope_type") or rope.get("type") or ("factor" if "factor" in rope else "default")
