"""The parts of a dictionary's provenance that are read by name: what its training came to, and what its format declares."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scope.errors import DictionaryError
from scope.typed_json import typed


@dataclass(frozen=True, kw_only=True)
class Training:
    """The outcome of a training, provenance["training"]: means over its last tenth."""

    l0: float | None = None
    fvu: float | None = None
    fvu_without_outliers: float | None = None
    """Where some activations had a norm far above the others'."""

    outliers: int | None = None
    dead: float | None = None
    """Share of the latents."""

    tokens: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        _check_l0(self.l0)


@dataclass(frozen=True, kw_only=True)
class Declared:
    """Numbers that a foreign format gives, provenance["declared"]."""

    l0: float | tuple[float, float] | None = None
    """Or the two ends of a range."""

    fvu: float | None = None

    def __post_init__(self):
        _check_l0(self.l0)


def _check_l0(l0: float | tuple[float, float] | None) -> None:
    ends = l0 if isinstance(l0, tuple) else () if l0 is None else (l0, l0)
    if ends and not 0 <= ends[0] <= ends[1] < math.inf:
        raise ValueError(f"An L0 of {l0} cannot be")


@dataclass(frozen=True, kw_only=True)
class TextFrom:
    """Where the training found its text, provenance["text_from"]: the folder of a recording, or a corpus of a running model."""

    recording: str | None = None
    corpus: str | None = None
    text_field: str = "text"
    fim: str | None = None
    """Shares of infilling forms that documents were turned into."""

    fim_seed: int = 0
    prompt: str | None = None
    """What a model that reads pictures was asked of those without a question."""

    queries: bool = False
    """Whether texts were read as queries, by a ColPali."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The entries of `sae.provenance` that are read by name; others are kept as they are."""

    training: Training = Training()
    """Without any number where a dictionary was not trained here."""

    declared: Declared | None = None
    versions: dict[str, str] | None = None
    model: dict[str, Any] | None = None
    recording: dict[str, Any] | None = None
    text_from: TextFrom | None = None
    stored: dict[str, str] | None = None
    """Arrays that were stored with less than float32's precision -> their type."""

    weights_sha256: str | None = None
    site: str | None = None
    reads: str | None = None
    source: str | None = None
    preset: str | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any], where: object = "The provenance of this dictionary") -> "Provenance":
        """
        Raises:
            DictionaryError: an entry is of another type.
        """
        return typed(dict(record), cls, where, DictionaryError, "Copy or fetch the dictionary again.")


def claims_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a dictionary says of itself by its provenance: an L0 (or the two ends of a range), an FVU, and where it says so
    ("from"); {} if nothing."""
    provenance = Provenance.of({name: record[name] for name in ("training", "declared") if name in record})
    claims: Declared | Training = provenance.declared or provenance.training
    source = "its training"
    if provenance.declared:
        source = str(record["declared"].get("from", "its format"))
    found = {name: value for name in ("l0", "fvu") if (value := getattr(claims, name, None)) not in (None, math.nan)}
    return found | {"from": source} if found else {}
