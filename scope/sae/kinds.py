"""The kinds of dictionary: a name, the settings of one, and where its class and its training objective are.

Classes are loaded on first use, so that the flags of every kind are known without torch.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from scope.errors import ConfigError
from scope.sae.configs.base import SAEConfig
from scope.sae.configs.gated import GatedConfig
from scope.sae.configs.jumprelu import JumpReLUConfig
from scope.sae.configs.topk import BatchTopKConfig, TopKConfig
from scope.sae.configs.transcoder import TranscoderConfig


@dataclass(frozen=True)
class Kind:
    """`dictionary` and `training` are "module:class"; without `training` a kind can be read and not trained."""

    config: type[SAEConfig]
    dictionary: str
    training: str | None = None

    @property
    def sae(self) -> type:
        return _load(self.dictionary)

    @property
    def trainable(self) -> bool:
        return self.training is not None


KINDS: dict[str, Kind] = {
    "jumprelu": Kind(JumpReLUConfig, "scope.sae.jumprelu:JumpReLUSAE", "scope.sae.objectives.jumprelu:JumpReLUObjective"),
    "topk": Kind(TopKConfig, "scope.sae.topk:TopKSAE", "scope.sae.objectives.topk:TopKObjective"),
    "batch_topk": Kind(BatchTopKConfig, "scope.sae.topk:BatchTopKSAE", "scope.sae.objectives.topk:BatchTopKObjective"),
    "gated": Kind(GatedConfig, "scope.sae.gated:GatedSAE", "scope.sae.objectives.gated:GatedObjective"),
    "transcoder": Kind(TranscoderConfig, "scope.sae.transcoder:Transcoder"),
}


def kind_of(config: SAEConfig) -> Kind:
    """The row that a config belongs to."""
    for kind in KINDS.values():
        if type(config) is kind.config:
            return kind
    raise ConfigError(f"No kind of dictionary is configured by {type(config).__name__}; there are {', '.join(KINDS)}.")


def make_sae(config: SAEConfig, site: str = "") -> Any:
    """An untrained dictionary of the kind that the config describes."""
    return kind_of(config).sae(config, site)


def make_objective(sae: Any) -> Any:
    """What trains a dictionary, by its kind.

    Raises:
        ConfigError: its kind cannot be trained.
    """
    kind = kind_of(sae.config)
    if kind.training is None:
        trainable = ", ".join(name for name, other in KINDS.items() if other.trainable)
        raise ConfigError(f"A dictionary of kind {sae.kind} cannot be trained here. Kinds that can: {trainable}.")
    return _load(kind.training)(sae)


def _load(place: str) -> type:
    module, name = place.split(":")
    return getattr(import_module(module), name)
