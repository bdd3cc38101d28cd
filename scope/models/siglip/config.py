"""The sizes of SigLIP's towers, read from a Hugging Face config.json. What it leaves out is what transformers takes then."""

from dataclasses import dataclass, field, replace
from typing import Any

from scope.errors import CheckpointError, ConfigError
from scope.models.pictures.processor import PictureProcessor
from scope.typed_json import typed

_LARGEST = 2**20
_ACTIVATION = "gelu_pytorch_tanh"


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """What both towers have."""

    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    d_mlp: int = 3072
    eps: float = 1e-6

    d_head = property(lambda self: self.d_model // self.n_heads)

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and not 0 <= value <= _LARGEST:
                raise ConfigError(f"{name} is {value}; it must be from 0 to {_LARGEST:,}.")
        for name in ("d_model", "n_layers", "n_heads", "d_mlp"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is 0; it must be at least 1.")
        if self.d_model % self.n_heads:
            raise ConfigError(f"{self.n_heads} heads cannot share d_model {self.d_model} evenly.")
        if not 0 < self.eps < float("inf"):
            raise ConfigError(f"eps is {self.eps}; it must be above 0.")


@dataclass(frozen=True, kw_only=True)
class VisionConfig(TowerConfig):
    """The tower that reads pictures: squares of `image_size` pixels, cut into patches of `patch_size`. What is left over at
    the right and at the bottom is not seen."""

    image_size: int = 224
    patch_size: int = 16
    n_channels: int = 3
    use_head: bool = True
    """Whether a pooling head makes one vector of a picture; PaliGemma's tower has none."""

    grid = property(lambda self: self.image_size // self.patch_size)
    n_patches = property(lambda self: self.grid**2)

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.patch_size <= self.image_size:
            raise ConfigError(f"Pictures of {self.image_size} pixels hold no patch of {self.patch_size}.")
        if self.n_channels != 3:
            raise ConfigError(f"The tower reads pictures of {self.n_channels} channels; pictures are prepared in 3, RGB.")

    def to_hf(self) -> dict[str, Any]:
        """The dictionary of a config.json that transformers reads as the same tower."""
        sizes = {"image_size": self.image_size, "patch_size": self.patch_size, "num_channels": self.n_channels}
        return _shared_to_hf(self, "siglip_vision_model") | sizes | {"vision_use_head": self.use_head}


@dataclass(frozen=True, kw_only=True)
class TextConfig(TowerConfig):
    """The tower that reads texts, always padded to `n_ctx` tokens."""

    d_vocab: int = 32000
    n_ctx: int = 64
    d_out: int = 768
    """Numbers of the vector of a text: as many as the vision tower's."""

    pad: int = 1

    def to_hf(self) -> dict[str, Any]:
        """The dictionary of a config.json that transformers reads as the same tower."""
        sizes = {"vocab_size": self.d_vocab, "max_position_embeddings": self.n_ctx, "projection_size": self.d_out}
        return _shared_to_hf(self, "siglip_text_model") | sizes | {"pad_token_id": self.pad}


def _shared_to_hf(tower: TowerConfig, model_type: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": tower.d_model,
        "num_hidden_layers": tower.n_layers,
        "num_attention_heads": tower.n_heads,
        "intermediate_size": tower.d_mlp,
        "layer_norm_eps": tower.eps,
        "hidden_act": _ACTIVATION,
        "attention_dropout": 0.0,
    }


@dataclass(frozen=True)
class _Fields:
    """The fields of config.json that are read, of either tower. `num_positions` is not: released files carry a stale one."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-6
    hidden_act: str | None = _ACTIVATION
    image_size: int | list[int] = 224
    patch_size: int | list[int] = 16
    num_channels: int = 3
    vision_use_head: bool = True
    vocab_size: int = 32000
    max_position_embeddings: int = 64
    projection_size: int | None = None
    pad_token_id: int | None = 1


def vision_from_hf(raw: Any, where: str) -> VisionConfig:
    """The vision tower's part of a config.json; `where` names the checkpoint in refusals.

    Raises:
        CheckpointError: a field of another type, or a tower that is not computed here.
    """
    f = _fields(raw, "vision_config", where)
    sizes = {"image_size": _square(f.image_size, "image_size", where), "patch_size": _square(f.patch_size, "patch_size", where)}
    return _built(VisionConfig, where, **_shared(f), **sizes, n_channels=f.num_channels, use_head=f.vision_use_head)


def text_from_hf(raw: Any, where: str) -> TextConfig:
    """The text tower's part of a config.json.

    Raises:
        CheckpointError: a field of another type, or a tower that is not computed here.
    """
    f = _fields(raw, "text_config", where)
    d_out = f.hidden_size if f.projection_size is None else f.projection_size
    pad = 1 if f.pad_token_id is None else f.pad_token_id
    return _built(TextConfig, where, **_shared(f), d_vocab=f.vocab_size, n_ctx=f.max_position_embeddings, d_out=d_out, pad=pad)


def _fields(raw: Any, part: str, where: str) -> _Fields:
    f = typed({} if raw is None else raw, _Fields, f"{part} of {where}", CheckpointError, "Fetch it again.")
    if f.hidden_act not in (_ACTIVATION, None):
        raise CheckpointError(f"{where} asks for activation {f.hidden_act!r}; a SigLIP has {_ACTIVATION}.")
    return f


def _shared(f: _Fields) -> dict[str, Any]:
    return {
        "d_model": f.hidden_size,
        "n_layers": f.num_hidden_layers,
        "n_heads": f.num_attention_heads,
        "d_mlp": f.intermediate_size,
        "eps": f.layer_norm_eps,
    }


def _square(size: int | list[int], name: str, where: str) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise CheckpointError(f"{where} has {name} {size}; pictures and patches are squares in a SigLIP.")
    return sides.pop()


def _built(kind: type, where: str, **values: Any) -> Any:
    try:
        return kind(**values)
    except ConfigError as error:
        raise CheckpointError(f"config.json of {where} cannot be: {error}") from None


@dataclass(frozen=True, kw_only=True)
class SiglipConfig:
    """A SigLIP: two towers whose vectors are compared, or one of them alone."""

    vision: VisionConfig | None = field(default_factory=VisionConfig)
    text: TextConfig | None = field(default_factory=TextConfig)
    pictures: PictureProcessor | None = None
    """How pictures are prepared; None: as every released SigLIP prepares them."""

    model_type: str = "siglip"
    model_name: str = "siglip"
    family_name = "SigLIP"

    def __post_init__(self):
        if self.vision is None and self.text is None:
            raise ConfigError("A SigLIP needs a vision tower or a text tower.")
        if self.vision is not None and self.pictures is None:
            object.__setattr__(self, "pictures", PictureProcessor(size=self.vision.image_size))
        if self.vision is not None and self.text is not None:
            if not self.vision.use_head:
                raise ConfigError("The vision tower has no head, so there is no vector of a picture to compare with texts.")
            if self.text.d_out != self.vision.d_model:
                raise ConfigError(
                    f"Vectors of texts have {self.text.d_out} numbers and those of pictures {self.vision.d_model}; they must "
                    "have as many."
                )

    @classmethod
    def from_hf(cls, raw: dict[str, Any], where: str) -> "SiglipConfig":
        """From the dictionary in config.json; `where` names the checkpoint in refusals.

        Raises:
            CheckpointError: a field of another type, or a tower that is not computed here.
        """
        kind = raw.get("model_type")
        if raw.get("quantization_config"):
            raise CheckpointError(
                f"{where} holds quantised weights, which are not read. Give the checkpoint they were made from."
            )
        vision = text = None
        if kind in ("siglip", "siglip_vision_model"):
            vision = vision_from_hf(raw if kind == "siglip_vision_model" else raw.get("vision_config"), where)
        if kind in ("siglip", "siglip_text_model"):
            text = text_from_hf(raw if kind == "siglip_text_model" else raw.get("text_config"), where)
        return _built(cls, where, vision=vision, text=text, model_type=kind, model_name=where)

    def to_hf(self) -> dict[str, Any]:
        """The dictionary of a config.json that transformers reads as the same model."""
        if self.text is None:
            return self.vision.to_hf() | {"architectures": ["SiglipVisionModel"]}
        if self.vision is None:
            return self.text.to_hf() | {"architectures": ["SiglipTextModel"]}
        towers = {"vision_config": self.vision.to_hf(), "text_config": self.text.to_hf()}
        return {"architectures": ["SiglipModel"], "model_type": "siglip", **towers}

    def with_pictures(self, pictures: PictureProcessor) -> "SiglipConfig":
        return replace(self, pictures=pictures)
