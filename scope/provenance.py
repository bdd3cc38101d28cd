"""The model, the recording and the dictionary that made a result, as results record them.

Results carry these facts as JSON objects. The classes here name the fields once; `of` reads an object of any version and
leaves absent what it lacks, `to_json` writes today's fields.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any


class SampledHashWarning(UserWarning):
    """Two models were compared by samples of their weights, since a result of version 0.1 knows no more of its model."""


def without_folders(value: Any) -> Any:
    """A JSON value in which each absolute path is the last name in it: what is sent to others does not show this machine."""
    if isinstance(value, Mapping):
        return {without_folders(key): without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if isinstance(value, str) and "\n" not in value:
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute() or value.startswith("~"):
                return kind(value).name or value
    return value


def _text(record: Mapping[str, Any], *names: str) -> str | None:
    """The first of these entries that is a text."""
    return next((record[n] for n in names if isinstance(record.get(n), str) and record[n]), None)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


SAMPLED = "sampled-"
"""Begins the hashes that version 0.1 gave to weights of a gigabyte or more."""


@dataclass(frozen=True, kw_only=True)
class ModelId:
    """A language or vision model: where it was loaded from and the hashes of what decides its outputs."""

    name: str | None = None
    """The argument that loads it again: "bundled", a hub id, or a folder."""
    revision: str | None = None
    weights_sha256: str | None = None
    config_sha256: str | None = None
    tokenizer_sha256: str | None = None
    dtype: str | None = None
    adapter: str | None = None
    """Folder or hub id of a PEFT adapter applied to the weights."""
    weights_sampled: str | None = None
    """The hash that version 0.1 gave to weights of a gigabyte or more, from samples; for comparing with its results."""
    window_convention: str | None = None
    """How the window of a RecurrentGemma was read, "deepmind" or "hf", where that is not what its checkpoint says."""

    @classmethod
    def of(cls, record: Any) -> "ModelId":
        """From the "model" entry of a result; of anything else than an object, a ModelId that knows nothing."""
        record = _object(record)
        rest = [f.name for f in fields(cls) if f.name != "name"]
        return cls(name=_text(record, "model"), **{key: _text(record, key) for key in rest})

    def to_json(self) -> dict[str, Any]:
        always = {
            "model": self.name,
            "revision": self.revision,
            "weights_sha256": self.weights_sha256,
            "config_sha256": self.config_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "dtype": self.dtype,
        }
        optional = {key: getattr(self, key) for key in ("adapter", "weights_sampled", "window_convention")}
        return always | {key: value for key, value in optional.items() if value}

    def same_weights(self, other: "ModelId") -> bool | None:
        """Whether both have the same weights, and read windows alike; None where either's hash is unknown.

        Warns with SampledHashWarning where samples are equal and the rest of the weights is not known.
        """
        if not self.weights_sha256 or not other.weights_sha256:
            return None
        hashes = {self.weights_sha256, other.weights_sha256}
        sampled = [h for h in hashes if h.startswith(SAMPLED)]
        if len(hashes) == 2 and len(sampled) == 1:
            known = other if self.weights_sha256 == sampled[0] else self
            hashes = {sampled[0], known.weights_sampled}
        if len(hashes) == 1 and sampled:
            warnings.warn(
                f"{self.name or other.name or 'The model'} has the weights that were recorded as far as version 0.1 looked, "
                "which is at samples of them; an edit between the samples would not be noticed.\n"
                "  To have all of them compared from now on, make the recording or result again.",
                SampledHashWarning,
                stacklevel=3,
            )
        return len(hashes) == 1 and self.window_convention == other.window_convention

    def __str__(self) -> str:
        known = [f"weights {self.weights_sha256[:12]}"] if self.weights_sha256 else []
        known += [f"window_convention {self.window_convention}"] if self.window_convention else []
        return (self.name or "an unnamed model") + (f" ({', '.join(known)})" if known else "")


@dataclass(frozen=True, kw_only=True)
class RecordingId:
    """The activations that a dictionary was trained on: corpus, settings, and how many rows."""

    corpus: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    tokens: int | None = None
    stored: bool = True
    """False for activations taken straight from a running model."""

    @classmethod
    def of(cls, record: Any) -> "RecordingId":
        record = _object(record)
        tokens = record.get("tokens")
        return cls(
            corpus=_object(record.get("corpus")),
            config=_object(record.get("config")),
            tokens=tokens if isinstance(tokens, int) else None,
            stored=record.get("stored") is not False,
        )


@dataclass(frozen=True, kw_only=True)
class DictionaryId:
    """An SAE, transcoder or crosscoder: its kind, its place in the model, and the hash of its parameters."""

    kind: str | None = None
    site: str | None = None
    path: str | None = None
    parameters_sha256: str | None = None
    """Over names and values in memory (`scope.sae.files.parameters_sha256`); the same whatever file they came from."""
    weights_sha256: str | None = None
    """Hash of the file it was loaded from."""
    model: ModelId = field(default_factory=ModelId)
    recording: RecordingId = field(default_factory=RecordingId)

    @classmethod
    def of(cls, record: Any) -> "DictionaryId":
        """From the "dictionary" entry of a pack's manifest, or from `sae.provenance`."""
        record = _object(record)
        made = _object(record.get("provenance")) or record
        return cls(
            **{key: _text(record, key) for key in ("kind", "site", "path", "parameters_sha256", "weights_sha256")},
            model=ModelId.of(made.get("model")),
            recording=RecordingId.of(made.get("recording")),
        )
