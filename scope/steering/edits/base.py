"""Base of all edits: latent or direction, positions, strength and its unit, JSON."""

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from scope.errors import EditError
from scope.steering.edits.directions import Direction
from scope.steering.edits.positions import KINDS as POSITION_KINDS
from scope.steering.edits.positions import Positions
from scope.steering.edits.spans import Span

Unit = Literal["norm", "raw", "max"]
UNITS = {
    "norm": "fractions of the site's typical residual norm",
    "raw": "the latent's own activation",
    "max": "multiples of the latent's largest activation",
}


class UnitWarning(FutureWarning):
    """A strength without a unit that has another meaning than in version 0.1.0."""


def number(value: Any, name: str) -> float:
    """`value` as a finite float.

    Raises:
        EditError: it is none.
    """
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise EditError(f"{name} is {value!r}; it must be a number, such as 0.5 (half the site's typical residual norm).")
    return result


@dataclass(frozen=True)
class When:
    """Restricts an edit to positions where `latent` is more active than `above` (in the latent's own units).

    A latent that was handed over without its SAE is a `Direction` with an encoder.
    """

    latent: int | Direction
    above: float = 0.0

    def __post_init__(self):
        if not (isinstance(self.latent, Direction) and self.latent.encoder is not None):
            object.__setattr__(self, "latent", whole(self.latent))
        object.__setattr__(self, "above", number(self.above, "above"))

    @classmethod
    def of(cls, written: str) -> "When":
        """From text: "7", or "7:2.5"."""
        latent, _, above = written.partition(":")
        if not latent.strip().isdecimal():
            raise EditError(f"The condition is {written!r}; write a latent, as in 7, or what it must exceed too, as in 7:2.5.")
        return cls(int(latent), number(above or 0.0, "above"))

    def __str__(self) -> str:
        name = self.latent if isinstance(self.latent, Direction) else f"latent {self.latent}"
        return f"where {name} > {self.above:g}"


def whole(latent: Any) -> int:
    if isinstance(latent, bool) or not hasattr(latent, "__index__"):
        raise EditError(f"{latent!r} is no latent. Give its number, or a Direction.")
    return latent.__index__()


@dataclass(frozen=True)
class Edit(ABC):
    """One edit of one latent, of a direction, or of what tokens left in a state.

    `positions` is a rule such as "generated" or "from:12"; `when` a further condition; `site` is where, if several dictionaries
    are at hand: None means the only one's site, or the direction's.
    """

    latent: int | Direction | Span
    positions: Positions | str = "not_bos"
    when: When | None = None
    site: str | None = None

    kind: ClassVar[str]
    reads: ClassVar[Literal["nothing", "activation", "projection"]] = "activation"
    has_amount: ClassVar[bool] = False

    def __post_init__(self):
        if isinstance(self.latent, Span):
            pass
        elif not isinstance(self.latent, Direction):
            object.__setattr__(self, "latent", whole(self.latent))
        elif self.site is None:
            object.__setattr__(self, "site", self.latent.site)
        elif self.site != self.latent.site:
            raise EditError(f"{self.latent} is a direction at {self.latent.site}; it means nothing at {self.site}.")
        object.__setattr__(self, "positions", Positions.of(self.positions))

    @abstractmethod
    def coefficient(self, reading: Tensor, amount: float) -> Tensor:
        """How much of the decoder row is added, given the reading; `amount` is in the latent's own units."""

    def scaled(self, factor: float) -> "Edit":
        """The same edit, `factor` times as strong; only edits that have a strength can be."""
        raise EditError(f"{self.kind} has no strength to scale. Add, Clamp, AtLeast, Cap, Floor, Forget and Hold have one.")

    def __add__(self, other: "Edit | Edits") -> "Edits":
        return Edits((self,)) + other

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `edit_from` reads it back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.on_direction:
            values["latent"] = {**asdict(self.latent), "vector": list(self.latent.vector)}
        if self.on_tokens:
            values["tokens"] = asdict(values.pop("latent"))
        values["positions"] = str(self.positions)
        values["when"] = asdict(self.when) if self.when else None
        return {"edit": self.kind, **values}

    @property
    def on_direction(self) -> bool:
        """Whether it edits a direction, not a latent."""
        return isinstance(self.latent, Direction)

    @property
    def on_tokens(self) -> bool:
        """Whether it edits what tokens left, not a latent."""
        return isinstance(self.latent, Span)

    @property
    def reads_own_latent(self) -> bool:
        """Whether its direction is a latent's decoder row that was handed over with what the latent reads."""
        return isinstance(self.latent, Direction) and self.latent.encoder is not None

    @property
    def on_latent(self) -> bool:
        return not self.on_direction and not self.on_tokens

    @property
    def target(self) -> str:
        return f"latent {self.latent}" if self.on_latent else str(self.latent)

    def __str__(self) -> str:
        parts = [f"{self.kind} {self.target}", f"at {POSITION_KINDS[self.positions.kind]}"]
        if self.positions.kind == "from":
            parts[1] = f"from position {self.positions.start} on"
        return ", ".join([*parts, *([str(self.when)] if self.when else [])])


@dataclass(frozen=True)
class WithStrength(Edit):
    """An edit with an amount, in one of three units."""

    strength: float = 0.5
    """How much, in `unit`s."""

    unit: Unit = "norm"
    """Unit of the strength: "norm" fractions of the site's typical norm, "raw" its activation, "max" parts of its maximum.
    Where none is given, it is raw for an edit that sets a latent's activation, as Clamp(1208, 5), and else the norm."""

    has_amount: ClassVar[bool] = True
    sets_activation: ClassVar[bool] = False

    def __init__(
        self,
        latent: Any,
        strength: Any = None,
        *,
        positions: Positions | str = "not_bos",
        when: When | None = None,
        site: str | None = None,
        unit: Any = None,
    ):
        if unit is None:
            level = self.sets_activation and strength is not None and getattr(latent, "encoder", latent) is not None
            unit = "raw" if level else "norm"
            if level and 0 < abs(number(strength, "strength")) < 1:
                _note_unit(type(self).__name__, latent, strength)
        strength = 0.5 if strength is None else strength
        for name, value in {"latent": latent, "positions": positions, "when": when, "site": site}.items():
            object.__setattr__(self, name, value)
        if unit not in UNITS:
            raise EditError(f"unit is {unit!r}; there are {', '.join(UNITS)}.")
        object.__setattr__(self, "strength", number(strength, "strength"))
        object.__setattr__(self, "unit", unit)
        super().__post_init__()

    def scaled(self, factor: float) -> Edit:
        return replace(self, strength=self.strength * number(factor, "factor"))

    def __str__(self) -> str:
        of = {"norm": "of the residual norm", "raw": "activation", "max": "x maximum"}[self.unit]
        return super().__str__().replace(self.target, f"{self.target} {self.strength:+g} {of}", 1)


def _note_unit(kind: str, latent: Any, strength: Any) -> None:
    """A strength below 1 was a fraction of the norm until version 0.1.0, and may still be meant so."""
    warnings.warn(
        f"{kind}({latent}, {strength}) sets the activation to {strength}. In version 0.1.0 it was that fraction of the "
        f'residual norm, which is now {kind}({latent}, {strength}, unit="norm"); with unit="raw" this note does not appear.',
        UnitWarning,
        stacklevel=3,
    )


class Edits(tuple):
    """Several edits, done together."""

    def __add__(self, other: "Edit | Edits") -> "Edits":
        return Edits((*self, other) if isinstance(other, Edit) else (*self, *other))

    def scaled(self, factor: float) -> "Edits":
        return Edits(edit.scaled(factor) if edit.has_amount else edit for edit in self)

    def latents(self) -> list[int]:
        """The latents that are edited, and those that a `when` reads."""
        conditions = [e.when.latent for e in self if e.when and isinstance(e.when.latent, int)]
        return [e.latent for e in self if e.on_latent] + conditions

    @classmethod
    def of(cls, edits: "Edit | Edits | tuple | list") -> "Edits":
        """One edit or several, as Edits.

        Raises:
            EditError: there is none, or something else among them.
        """
        result = cls((edits,) if isinstance(edits, Edit) else edits)
        strange = next((e for e in result if not isinstance(e, Edit)), None)
        if strange is not None:
            raise EditError(f"{strange!r} is no edit. Edits are made as Add(1208, 0.5), Clamp(1208, 5), Ablate(1208), ...")
        if not result:
            raise EditError("There is no edit to apply. Give at least one, such as Add(1208, 0.5).")
        return result

    def __str__(self) -> str:
        return "; ".join(map(str, self))
