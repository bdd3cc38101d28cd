"""The kinds of dictionary there are: a name, the config that describes one, the module, and what computes its gradients."""

from collections.abc import Callable
from dataclasses import dataclass

from scope.errors import ConfigError
from scope.sae.base import SAE
from scope.sae.config import SAEConfig
from scope.sae.engine import Engine, JumpReLUEngine
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE


@dataclass(frozen=True)
class Kind:
    """`engine(sae)` makes the fastest engine whose gradients equal those of `sae.losses`."""

    config: type[SAEConfig]
    sae: type[SAE]
    engine: Callable[[SAE], Engine]


KINDS: dict[str, Kind] = {
    "jumprelu": Kind(JumpReLUConfig, JumpReLUSAE, JumpReLUEngine),
}


def kind_of(config: SAEConfig) -> Kind:
    """The row that a config belongs to."""
    for kind in KINDS.values():
        if type(config) is kind.config:
            return kind
    raise ConfigError(f"No kind of dictionary is configured by {type(config).__name__}; there are {', '.join(KINDS)}.")


def make_sae(config: SAEConfig, site: str = "") -> SAE:
    """An untrained dictionary of the kind that the config describes."""
    return kind_of(config).sae(config, site)
