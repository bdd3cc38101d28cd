"""The sizes and switches of a Griffin, read from the config.json of a RecurrentGemma in any of its spellings."""

from dataclasses import dataclass
from typing import Any

from scope.errors import CheckpointError, ConfigError
from scope.models.parts.config_checks import LARGEST, check_values, common_fields, refuse_quantised, token_ids
from scope.models.transformer_lens.config_names import ConfigNames, with_switches
from scope.typed_json import typed

_KINDS = {"recurrent": "recurrent", "attention": "local"}
_PATTERN = ("recurrent", "recurrent", "local")
_UNSAID = {
    "hidden_size": 2560,
    "num_hidden_layers": 26,
    "num_attention_heads": 10,
    "intermediate_size": 7680,
    "vocab_size": 256_000,
    "attention_window_size": 2048,
    "conv1d_width": 4,
    "logits_soft_cap": 30.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "hidden_activation": "gelu_pytorch_tanh",
}
"""What transformers takes where a config.json leaves a field out."""


@with_switches
@dataclass(frozen=True, kw_only=True)
class GriffinConfig(ConfigNames):
    """A Griffin. `layer_types` says of each block whether it is "recurrent" or attends to a window ("local")."""

    model_type: str = "recurrent_gemma"
    d_model: int
    n_layers: int
    n_heads: int
    """Query heads, and as many blocks in the maps of the gates."""

    n_kv_heads: int
    d_head: int
    d_mlp: int
    """Width of the MLP, half of what config.json calls intermediate_size."""

    d_vocab: int
    lru_width: int
    """Channels of the recurrence."""

    conv_width: int = 4
    """Inputs that the convolution sees, the token's own included."""

    n_ctx: int = 8192
    window: int = 2048
    window_convention: str = "deepmind"
    """How many keys a window of W shows: W + 1 ("deepmind"), the token's own and W before it, as in DeepMind's code, which the
    published weights were trained with; or W ("hf"), as transformers computes them."""

    final_cap: float | None = 30.0
    rope_theta: float = 10000.0
    d_rotary: int
    """Features of a head that turn with the position, the first ones."""

    attention_bias: bool = False
    """Whether queries, keys and values have biases."""

    eps: float = 1e-6
    layer_types: tuple[str, ...] = ()
    bos: int = 2
    eos: tuple[int, ...] = (1,)
    pad: int = 0
    model_name: str = "recurrent_gemma"

    def __post_init__(self):
        sizes = "d_model n_layers n_heads n_kv_heads d_head d_mlp d_vocab lru_width conv_width n_ctx window".split()
        check_values(self, sizes, ("final_cap", "rope_theta", "eps"))
        if self.lru_width % self.n_heads:
            raise ConfigError(
                f"lru_width is {self.lru_width}; the gates split it into {self.n_heads} blocks, one a head, so it must be a "
                f"multiple of {self.n_heads}."
            )
        if not 2 <= self.d_rotary <= self.d_head or self.d_rotary % 2:
            raise ConfigError(
                f"{self.d_rotary} of {self.d_head} features of a head turn with the position; they turn in pairs, so that "
                f"number must be even, from 2 to {self.d_head}."
            )
        if self.window_convention not in ("deepmind", "hf"):
            raise ConfigError(
                f"window_convention is {self.window_convention!r}; it can be deepmind (a window of W shows W + 1 keys, as the "
                "published weights were trained) or hf (W keys, as transformers computes them)."
            )
        if not self.layer_types:
            object.__setattr__(self, "layer_types", repeated(_PATTERN, self.n_layers))
        if len(self.layer_types) != self.n_layers or set(self.layer_types) - set(_KINDS.values()):
            raise ConfigError(f'layer_types must say "recurrent" or "local" for each of {self.n_layers} layers.')

    def local_window(self, layer: int) -> int | None:
        """Keys that an attention layer sees; None of a recurrent layer."""
        return self.effective_window if self.layer_types[layer] == "local" else None

    rotary_dim = property(lambda self: self.d_rotary)
    effective_window = property(lambda self: self.window + (self.window_convention == "deepmind"))
    query_scalar = property(lambda self: self.d_head)
    attn_cap = rope_local_theta = rotary_base_local = property(lambda self: None)
    rotary_scaling_factor = property(lambda self: 1.0)
    post_norms = use_qk_norm = property(lambda self: False)
    family_name = property(lambda self: "RecurrentGemma")
    original_architecture = property(lambda self: "RecurrentGemmaForCausalLM")

    @classmethod
    def from_hf(cls, raw: dict[str, Any], where: str) -> "GriffinConfig":
        """From the dictionary in config.json; `where` names the checkpoint in refusals.

        Raises:
            CheckpointError: blocks of unknown kinds, an activation or rope variant not computed here, a value of another type.
        """
        typed(raw, _Fields, f"config.json of {where}", CheckpointError, "Fetch it again.")
        rope = (raw.get("rope_parameters") or {}) | {}
        _refuse_variants(raw, rope, where)
        said = {name: value for name, value in raw.items() if value is not None or name == "logits_soft_cap"}
        said |= {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if rope.get(name) is not None}
        raw = _UNSAID | said
        d_model, n_heads = raw["hidden_size"], raw["num_attention_heads"]
        if n_heads < 1:
            raise CheckpointError(f"{where} has {n_heads} attention heads (num_attention_heads); it needs at least one.")
        d_head, turned = raw.get("head_dim", d_model // n_heads), raw["partial_rotary_factor"]
        if not 0 < turned <= 1:
            raise CheckpointError(f"{where} turns {turned} of each head (partial_rotary_factor), not a part above 0 to 1.")
        try:
            return cls(
                d_model=d_model,
                n_layers=raw["num_hidden_layers"],
                n_heads=n_heads,
                n_kv_heads=raw.get("num_key_value_heads", n_heads),
                d_head=d_head,
                d_mlp=raw["intermediate_size"] // 2,
                d_vocab=raw["vocab_size"],
                lru_width=raw.get("lru_width", d_model),
                conv_width=raw["conv1d_width"],
                n_ctx=raw["max_position_embeddings"],
                window=raw["attention_window_size"],
                window_convention=raw.get("window_convention", "deepmind"),
                final_cap=raw["logits_soft_cap"],
                rope_theta=raw["rope_theta"],
                d_rotary=int(d_head * turned),
                attention_bias=raw.get("attention_bias", False),
                eps=raw["rms_norm_eps"],
                layer_types=_layer_types(raw, where),
                **token_ids(raw),
                model_name=where,
            )
        except ConfigError as error:
            raise CheckpointError(f"config.json of {where}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The dictionary of a config.json that transformers reads as the same model, but for a window of one key fewer with the
        convention "deepmind", which it does not know."""
        names = {ours: theirs for theirs, ours in _KINDS.items()}
        return {
            **common_fields(self),
            "intermediate_size": 2 * self.d_mlp,
            "lru_width": self.lru_width,
            "conv1d_width": self.conv_width,
            "block_types": [names[kind] for kind in self.layer_types],
            "attention_window_size": self.window,
            "window_convention": self.window_convention,
            "logits_soft_cap": self.final_cap,
            "partial_rotary_factor": self.d_rotary / self.d_head,
            "attention_bias": self.attention_bias,
        }


@dataclass(frozen=True)
class _Rope:
    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None


@dataclass(frozen=True)
class _Fields:
    """The types of the fields that are read."""

    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    vocab_size: int | None = None
    lru_width: int | None = None
    conv1d_width: int | None = None
    attention_window_size: int | None = None
    window_convention: str | None = None
    max_position_embeddings: int | None = None
    logits_soft_cap: float | None = None
    rms_norm_eps: float | None = None
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None
    block_types: list[str] | None = None
    _block_types: list[str] | None = None
    hidden_activation: str | None = None
    attention_bias: bool | None = None
    embeddings_scale_by_sqrt_dim: bool | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool | None = None


def repeated(pattern: tuple[str, ...], n_layers: int) -> tuple[str, ...]:
    """A pattern of blocks, repeated and cut."""
    return tuple(pattern[layer % len(pattern)] for layer in range(n_layers))


def _layer_types(raw: dict[str, Any], where: str) -> tuple[str, ...]:
    """Kinds of blocks by layer, from the pattern in either spelling.

    Raises:
        CheckpointError: unknown kinds, an empty pattern, or two spellings that differ.
    """
    now, released = raw.get("block_types"), raw.get("_block_types")
    n_layers = min(raw["num_hidden_layers"], LARGEST["n_layers"])  # more are refused by the config
    for pattern in (now, released):
        if pattern is not None and (not pattern or set(pattern) - set(_KINDS)):
            strange = ", ".join(sorted(set(pattern) - set(_KINDS))) or "nothing"
            raise CheckpointError(
                f"{where} has blocks of type {strange[:80]} (block_types); a RecurrentGemma has {' and '.join(_KINDS)}.\n"
                "  Fetch the checkpoint again; other kinds of blocks are not computed."
            )
    if now and released and repeated(tuple(now), n_layers) != repeated(tuple(released), n_layers):
        raise CheckpointError(
            f"config.json of {where} has block_types {now} and _block_types {released}, which differ. Remove the wrong one."
        )
    pattern = now or released
    return repeated(tuple(_KINDS[kind] for kind in pattern), n_layers) if pattern else ()


def _refuse_variants(raw: dict[str, Any], rope: dict[str, Any], where: str) -> None:
    """Raises CheckpointError where a config asks for what is not computed here."""
    if raw.get("hidden_activation") not in ("gelu_pytorch_tanh", None):
        raise CheckpointError(
            f"{where} asks for activation {raw['hidden_activation']!r}; a RecurrentGemma has gelu_pytorch_tanh."
        )
    for asked in (raw.get("rope_scaling"), rope):
        if asked and (asked.get("rope_type") or asked.get("type") or "default") != "default":
            raise CheckpointError(f"{where} asks for rope scaling {asked}; only unscaled rotary positions are computed.")
    if raw.get("embeddings_scale_by_sqrt_dim") is False:
        raise CheckpointError(
            f"{where} says that embeddings are not multiplied by sqrt(d_model) (embeddings_scale_by_sqrt_dim); transformers "
            "multiplies them all the same.\n  If that is what its logits are meant to be, remove that line."
        )
    refuse_quantised(raw, where)
