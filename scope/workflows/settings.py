"""From keywords, or from flags, to the config of a workflow."""

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from scope.errors import ConfigError

T = TypeVar("T")


def from_settings(config: type[T], settings: Mapping[str, Any]) -> T:
    """A config from settings by name. Those of a config within it (a field whose default is one) are given by name too.

    Raises:
        ConfigError: a setting that there is not, with the nearest; a setting that cannot be; one that is missing.
    """
    rest, values = dict(settings), {}
    for f in sorted(fields(config), key=lambda f: inner_config(f) is not None):  # its own names come before those within
        inner = inner_config(f)
        if f.name in rest:
            values[f.name] = _fitting(f.type, rest.pop(f.name))
        elif inner is not None:
            its = {g.name: rest.pop(g.name) for g in fields(inner) if g.name in rest}
            values[f.name] = from_settings(inner, its)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{f.name} is missing. Give it as {f.name}=...")
    if rest:
        known = [name for f in fields(config) for name in _names(f)]  # type: ignore[arg-type]
        name = next(iter(rest))
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        near = f" Nearest: {', '.join(close)}." if close else ""
        raise ConfigError(f"There is no setting {name!r}.{near}\n  There are: {', '.join(known)}")
    return config(**values)


def resolve(config: type[T], config_or_first: Any, settings: Mapping[str, Any], first: str | None = None) -> T:
    """The config that a workflow runs: one that was given, or one from keywords. `first` is the field that a positional
    argument stands for.

    Raises:
        ConfigError: both a config and keywords, or a setting that cannot be.
    """
    if isinstance(config_or_first, config):
        if settings:
            raise ConfigError(f"Give a {config.__name__} or keywords, not both: {', '.join(settings)}.")
        return config_or_first
    if config_or_first is not None and first is not None:
        settings = {first: config_or_first, **settings}
    elif config_or_first is not None:
        raise ConfigError(f"The first argument is {config_or_first!r}; give a {config.__name__}, or keywords.")
    return from_settings(config, settings)


def inner_config(f: Field) -> type | None:
    """The class of a field that is itself a config."""
    kind = get_args(f.type)[0] if get_origin(f.type) is not None and hasattr(f.type, "__metadata__") else f.type
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


def _names(f: Field) -> list[str]:
    inner = inner_config(f)
    return [f.name] if inner is None else [g.name for g in fields(inner)]


def _fitting(kind: Any, value: Any) -> Any:
    """A text where a path is meant becomes one, and a single value or a list where several are meant a tuple."""
    options = get_args(kind) if get_origin(kind) is not tuple else (kind,)
    for option in options or (kind,):
        if option in (Path, str) and isinstance(value, Path | str):
            return option(value)
        if get_origin(option) is tuple:
            each = get_args(option)[0]
            several = value if isinstance(value, list | tuple) else (value,)
            return tuple(_fitting(each, v) for v in several)
    return value
