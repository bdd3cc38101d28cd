"""What every kind of dictionary must be told."""

import math
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from scope.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """Sizes of a dictionary. A kind adds its own fields; each is also a flag of `scope train`."""

    d_sae: int = 2048
    """Latents in the dictionary."""

    d_in: int = 0
    """Width of the activations that are read; 0 takes it from the recording."""

    nested: tuple[int, ...] = ()
    """Matryoshka: widths, ascending and below d_sae, whose first latents must reconstruct alone too. Their squared errors are
    added to the whole dictionary's, so that the first latents learn what is common (arXiv:2503.17547)."""

    def __post_init__(self):
        refuse_no_number(self)
        if self.d_sae < 1:
            raise ConfigError(f"d_sae is {self.d_sae}; a dictionary needs at least one latent.")
        if self.d_in < 0:
            raise ConfigError(f"d_in is {self.d_in}; a width cannot be negative.")
        if any(a >= b for a, b in pairwise((0, *self.nested, self.d_sae))):
            raise ConfigError(
                f"nested is {', '.join(map(str, self.nested))}; the widths must rise, from 1 at least, and stay below d_sae "
                f"({self.d_sae})."
            )


def refuse_no_number(config: Any) -> None:
    """NaN passes every check for being too small or too large, and then spoils the weights without a word.

    Raises:
        ConfigError: a setting that is NaN or infinite.
    """
    for f in fields(config):
        value = getattr(config, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{f.name} is {value}; give a number.")
