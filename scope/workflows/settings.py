"""From keywords, or from flags, to the config of a workflow; and the settings that all have that load a model."""

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from scope.device import find_device, find_dtype
from scope.errors import ConfigError
from scope.escape import visible
from scope.provenance import ModelId

T = TypeVar("T")
P = TypeVar("P", bound="ModelPlace")


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


@dataclass(frozen=True, kw_only=True)
class ModelPlace:
    """Which model, and where it runs."""

    model: str | None = None
    """Model: bundled, a checkpoint's folder, a hub id, BASE+ADAPTER, an adapter that names its base, or lens:NAME for one that
    TransformerLens loads. None: the one that the dictionary was made for."""

    adapter: str | None = None
    """PEFT adapter to apply to the model: a folder, a hub id, or the name of one that comes with bundled."""

    device: str = "auto"
    """Where to run: auto (cuda, else mps, else cpu), cpu, cuda, cuda:1, mps. Under torchrun, cuda is each process's own GPU."""

    revision: str | None = None
    """Branch, tag or commit of a hub model."""

    window_convention: Literal["deepmind", "hf"] | None = None
    """Only for a RecurrentGemma: a window of W shows a token W + 1 keys (deepmind, as the published weights were trained) or W
    (hf, as transformers computes). None: as the SAE's model or the checkpoint says, else deepmind."""

    def load_model(self, made_for: Mapping[str, Any] | None = None, streamed: bool = False, pictures: bool = False) -> Any:
        """The model; where none is named, the one that a provenance `made_for` names, and at last the bundled one.

        Raises:
            ConfigError: the model reads pictures, and the work is on text alone (`pictures` False).
        """
        from scope.models.face import VisionModel
        from scope.models.load import load_model

        known = ModelId.of((made_for or {}).get("model")) if self.model is None else ModelId()
        model = load_model(
            self.model or known.name or "bundled",
            adapter=self.adapter,
            dtype=dtype_of(self),
            device=self.device,
            revision=self.revision or known.revision,
            window_convention=self.window_convention or known.window_convention,
            streamed=streamed,
        )
        if isinstance(model, VisionModel) and not pictures:
            raise ConfigError(
                f"{self.model or known.name} is a {model.cfg.family_name}, which reads pictures; this command reads text.\n"
                "  scope harvest, train, evaluate, features, attribute and steer take it; in Python, model.record(...) and\n"
                "  model.run_with_cache(...) take pictures."
            )
        return model

    def of_another(self: P, model: str | None) -> P:
        """The settings of a second model: the same place, without what belongs to the first one alone."""
        return replace(self, model=model, adapter=None, revision=None, window_convention=None)


@dataclass(frozen=True, kw_only=True)
class ModelSettings(ModelPlace):
    """Which model, where it runs, and in which precision."""

    dtype: str = "auto"
    """What the model computes in: auto (bfloat16 on cuda, else float32), float32, bfloat16 or float16."""


def dtype_of(settings: Any) -> str:
    """What the model computes in; where `dtype` is that of stored activations, it is called compute_dtype."""
    return getattr(settings, "compute_dtype", None) or settings.dtype


def in_words(settings: Any) -> str:
    """Model, device and precision of settings that have the fields of `ModelPlace`, as in "bundled+fim on cpu in float32".

    Raises:
        ConfigError: a device that is not there, or an unknown precision.
    """
    device = find_device(settings.device)
    dtype = str(find_dtype(dtype_of(settings), device)).removeprefix("torch.")
    others = {"index": "the index", "folder": "the monitor"}
    source = next((name for field, name in others.items() if getattr(settings, field, None) is not None), "the dictionary")
    name = visible(settings.model or f"{source}'s model")
    window = f", window_convention {settings.window_convention}" if settings.window_convention else ""
    return f"{name}{f'+{visible(settings.adapter)}' if settings.adapter else ''} on {device} in {dtype}{window}"


def sae_of_lab(place: str | Path) -> str:
    """The folder of the SAE in a lab (a folder with dictionary/, such as runs/demo); any other place as it is."""
    folder = Path(place).expanduser() / "dictionary"
    return str(folder if folder.is_dir() else place)
