"""Settings that every kind of dictionary has, and the checks that all settings go through."""

import math
from dataclasses import dataclass, fields
from itertools import pairwise
from types import UnionType
from typing import Any, ClassVar, Literal, get_args, get_origin

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

    UNSAID: ClassVar[dict[str, Any]] = {}
    """Settings that descriptions of old trainings lack -> what was done then, where that is not today's default."""

    def __post_init__(self):
        refuse_other_types(self)
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


def refuse_other_types(config: Any) -> None:
    """A setting of another type than its field names passes for one of these, or fails far from where it was given.

    Raises:
        ConfigError: a word that is none of the field's choices, or a number that is not whole where it must be.
    """
    for f in fields(config):
        value = getattr(config, f.name)
        if not _is(value, f.type):
            raise ConfigError(f"{f.name} is {value!r}; give {_type_in_words(f.type)}.")


def refuse_start_norm(norm: float | None, decoder: str) -> None:
    """Rows that start shorter are lost in float32, and longer ones drown the activations.

    Raises:
        ConfigError: one out of bounds, or other than 1 where rows are kept unit.
    """
    if norm is None:
        return
    if decoder == "unit" and norm != 1:
        raise ConfigError(f"start_norm is {norm:g}; it must be 1 unless decoder is free.")
    if not 1e-3 <= norm <= 10:
        raise ConfigError(f"start_norm is {norm:g}; give a norm from 0.001 to 10.")


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is UnionType:
        return any(_is(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_is(one, get_args(kind)[0]) for one in value)
    if kind is None:
        return value is None
    if kind in (int, float):
        return isinstance(value, (int,) if kind is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _type_in_words(kind: Any) -> str:
    if get_origin(kind) is UnionType:
        return " or ".join(_type_in_words(one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "whole numbers"
    return {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}.get(kind, "None")
