"""Interventions at a site: small frozen values that print, compose with `+`, and are saved with the texts they steered.

Every edit reads one number at a position (a latent's activation, or the projection on its direction in units of d) and says
how much of its decoder row to add there: `x + coefficient(reading) * d`. What the dictionary does not explain is in x and
stays. Several edits at one site read the same unedited x, and their sum is added once, so their order does not matter.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from scope.errors import EditError
from scope.steering.edits.base import UNITS, Edit, Edits, When, WithStrength, number
from scope.steering.edits.directions import Direction
from scope.steering.edits.encoders import LatentEncoder
from scope.steering.edits.positions import KINDS as POSITION_KINDS
from scope.steering.edits.positions import Positions
from scope.steering.edits.recurrent import Forget, Hold
from scope.steering.edits.spans import Span
from scope.typed_json import typed

__all__ = [
    "KINDS",
    "POSITION_KINDS",
    "UNITS",
    "Ablate",
    "Add",
    "AtLeast",
    "Cap",
    "Clamp",
    "Direction",
    "Edit",
    "Edits",
    "Floor",
    "Forget",
    "Hold",
    "LatentEncoder",
    "Positions",
    "ProjectOut",
    "Scale",
    "Span",
    "When",
]


class Add(WithStrength):
    """x + strength * norm * d/|d|: push along the latent's decoder row, whatever the latent does by itself."""

    kind, reads = "add", "nothing"

    def coefficient(self, reading: Tensor, amount: float) -> Tensor:
        return reading.new_full(reading.shape, amount)


class Clamp(WithStrength):
    """x + (c - f) d: the latent contributes exactly c, all other latents and the error what they did. Clamp(1208, 5) sets the
    activation to 5; another `unit` measures it otherwise."""

    kind, sets_activation = "clamp", True

    def coefficient(self, reading: Tensor, amount: float) -> Tensor:
        return amount - reading


class AtLeast(WithStrength):
    """x + max(0, c - f) d: like Clamp, but never weakens what is there."""

    kind, sets_activation = "at least", True

    def coefficient(self, reading: Tensor, amount: float) -> Tensor:
        return (amount - reading).clamp(min=0)


class Ablate(Edit):
    """x - f d: the latent's contribution is taken away. Nothing happens where it is silent."""

    kind = "ablate"

    def coefficient(self, reading: Tensor, amount: float) -> Tensor:
        return -reading


class ProjectOut(Edit):
    """x - (x . d/|d|) d/|d|: nothing along the direction is left, even where the dictionary reads 0."""

    kind, reads = "project out", "projection"

    def coefficient(self, reading: Tensor, amount: float) -> Tensor:
        return -reading


class Cap(WithStrength):
    """x - max(0, p - c) d, with p = x . d / |d|^2: the projection on the direction is at most c, whatever the latent reads."""

    kind, reads = "cap", "projection"

    def coefficient(self, reading: Tensor, amount: float) -> Tensor:
        return -(reading - amount).clamp(min=0)


class Floor(WithStrength):
    """x + max(0, c - p) d, with p = x . d / |d|^2: the projection on the direction is at least c."""

    kind, reads = "floor", "projection"

    def coefficient(self, reading: Tensor, amount: float) -> Tensor:
        return (amount - reading).clamp(min=0)


@dataclass(frozen=True)
class Scale(Edit):
    """x + (m - 1) f d: what is there, m times. 0 ablates, -1 inverts."""

    factor: float = 2.0

    kind: ClassVar[str] = "scale"

    def __init__(
        self,
        latent: Any,
        factor: Any = 2.0,
        *,
        positions: Positions | str = "not_bos",
        when: When | None = None,
        site: str | None = None,
    ):
        for name, value in {"latent": latent, "positions": positions, "when": when, "site": site}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "factor", number(factor, "factor"))
        super().__post_init__()

    def coefficient(self, reading: Tensor, amount: float) -> Tensor:
        return (self.factor - 1) * reading

    def __str__(self) -> str:
        return super().__str__().replace(self.target, f"{self.target} x {self.factor:g}", 1)


KINDS: dict[str, type[Edit]] = {c.kind: c for c in (Add, Clamp, AtLeast, Ablate, ProjectOut, Scale, Cap, Floor, Forget, Hold)}


@dataclass(frozen=True)
class _Stored:
    """The JSON of an edit of any kind."""

    edit: str
    latent: int | Direction | None = None
    tokens: Span | None = None
    positions: str = "not_bos"
    when: When | None = None
    site: str | None = None
    strength: float | None = None
    unit: str | None = None
    factor: float | None = None


def edit_from(raw: Any) -> Edit:
    """Undo of `Edit.to_dict`.

    Raises:
        EditError: an edit that this version does not know, or a value of another type.
    """
    stored = typed(raw, _Stored, "The saved edit", EditError)
    kind = KINDS.get(stored.edit)
    if kind is None:
        raise EditError(f"There is no edit {stored.edit[:40]!r}; there are {', '.join(KINDS)}.")
    values = {f.name: getattr(stored, f.name) for f in fields(kind)}
    values["latent"] = stored.tokens if kind is Forget else stored.latent
    missing = [name for name in ("latent", "strength", "unit", "factor") if name in values and values[name] is None]
    if missing:
        raise EditError(f"The saved edit {stored.edit} lacks its {missing[0]}.")
    return kind(**values)
