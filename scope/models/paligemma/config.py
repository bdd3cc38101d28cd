"""The sizes of a PaliGemma: those of its Gemma, of its vision tower, and the token that stands for a patch."""

from dataclasses import dataclass, fields, replace
from typing import Any

from scope.errors import CheckpointError, ConfigError
from scope.models.gemma.config import GemmaConfig
from scope.models.pictures.processor import PictureProcessor
from scope.models.siglip.config import VisionConfig, vision_from_hf
from scope.models.transformer_lens.config_names import with_switches
from scope.typed_json import typed

_LEFT_OUT = {
    "gemma": {
        "vocab_size": 256_000,
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "gemma2": {
        "vocab_size": 256_000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
    },
}
"""What transformers takes where a text_config leaves a size out, as released ones do."""

_NAMES = {"gemma": "PaliGemma", "gemma2": "PaliGemma 2"}


@dataclass(frozen=True)
class _Fields:
    """The fields beside the language model's and the tower's. The top-level hidden_size is 2048 even where it is not, and is
    not read."""

    image_token_index: int | None = None
    image_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    embedding_dim: int = 128


@with_switches
@dataclass(frozen=True, kw_only=True)
class PaliGemmaConfig(GemmaConfig):
    """A Gemma 1 or 2 that reads the patches of pictures among its tokens."""

    vision: VisionConfig
    image_token: int
    """The id that stands where a patch is to be read. It may lie beyond the vocabulary: its own row is never read."""

    pictures: PictureProcessor | None = None
    """How pictures are prepared; None: as every released PaliGemma prepares them."""

    d_embed: int | None = None
    """A ColPali's: how many numbers the vector of a position has. None in a PaliGemma."""

    def __post_init__(self):
        super().__post_init__()
        if self.model_type not in _NAMES:
            raise ConfigError(f"A PaliGemma's language model is a {' or a '.join(_NAMES)}; this is a {self.model_type}.")
        if self.image_token < 0:
            raise ConfigError(f"image_token is {self.image_token}; it must be the id of a token.")
        if self.d_embed is not None and not 1 <= self.d_embed <= 2**20:
            raise ConfigError(f"d_embed is {self.d_embed}; it must be at least 1.")
        if self.pictures is None:
            object.__setattr__(self, "pictures", PictureProcessor(size=self.vision.image_size))

    n_image_tokens = property(lambda self: self.vision.n_patches)
    family_name = property(lambda self: "ColPali" if self.d_embed is not None else _NAMES[self.model_type])

    @classmethod
    def from_hf(cls, raw: dict[str, Any], where: str) -> "PaliGemmaConfig":
        """From the dictionary in config.json, of a PaliGemma or a ColPali in any of its layouts.

        Raises:
            CheckpointError: a field of another type, a part that is missing, or one that is not computed here.
        """
        classes = raw.get("architectures")
        retrieval = raw.get("model_type") == "colpali" or (isinstance(classes, list) and "ColPali" in classes)
        whole, raw = raw, raw["vlm_config"] if isinstance(raw.get("vlm_config"), dict) else raw
        f = typed(whole | raw, _Fields, f"config.json of {where}", CheckpointError, "Fetch it again.")
        text, vision = raw.get("text_config"), raw.get("vision_config")
        for name, part in (("text_config", text), ("vision_config", vision)):
            if not isinstance(part, dict):
                raise CheckpointError(f"config.json of {where} has no {name}, which a PaliGemma's must have.")
        if raw.get("quantization_config") or whole.get("quantization_config"):
            raise CheckpointError(
                f"{where} holds quantised weights, which are not read. Give the checkpoint they were made from."
            )
        kind = text.get("model_type", "gemma")
        if kind not in _LEFT_OUT:
            raise CheckpointError(f"{where} has a language model of type {kind!r}; a PaliGemma's is {' or '.join(_LEFT_OUT)}.")
        ids = {name: getattr(f, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        named = {name: value for name, value in ids.items() if value is not None}
        both_ways = {"use_bidirectional_attention": None}  # how transformers writes down that the prefix is read both ways
        gemma = GemmaConfig.from_hf({"model_type": kind} | _LEFT_OUT[kind] | text | named | both_ways, where)
        token = 256_000 if f.image_token_index is None else f.image_token_index
        token = token if f.image_token_id is None else f.image_token_id
        shared = {field.name: getattr(gemma, field.name) for field in fields(GemmaConfig)}
        defaults = {"vision_use_head": False} if "vision_use_head" not in vision else {}
        tower = vision_from_hf(defaults | vision, where)
        if tower.use_head:
            tower = replace(tower, use_head=False)  # its weights, if there are any, are not read
        d_embed = f.embedding_dim if retrieval else None
        try:
            return cls(**shared, vision=tower, image_token=token, d_embed=d_embed)
        except ConfigError as error:
            raise CheckpointError(f"config.json of {where} cannot be: {error}") from None

    def with_pictures(self, pictures: PictureProcessor) -> "PaliGemmaConfig":
        return replace(self, pictures=pictures)

    def to_hf(self) -> dict[str, Any]:
        """The dictionary of a config.json that transformers reads as the same model."""
        text = super().to_hf() | {"architectures": ["Gemma2ForCausalLM" if self.post_norms else "GemmaForCausalLM"]}
        whole = {
            "architectures": ["PaliGemmaForConditionalGeneration"],
            "model_type": "paligemma",
            "text_config": text,
            "vision_config": self.vision.to_hf() | {"projection_dim": self.d_model},
            "projection_dim": self.d_model,
            "hidden_size": self.d_model,
            "image_token_index": self.image_token,
            "tie_word_embeddings": True,
            **{name: text[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        }
        if self.d_embed is None:
            return whole
        head = {"embedding_dim": self.d_embed, "vlm_config": whole}
        return {"architectures": ["ColPaliForRetrieval"], "model_type": "colpali", **head}
