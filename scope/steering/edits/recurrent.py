"""Edits of what the state of a recurrence remembers. They act on what is written into it, so that what they change flows on."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from scope.errors import EditError
from scope.steering.edits.base import Edit, number
from scope.steering.edits.positions import Positions
from scope.steering.edits.spans import Span


@dataclass(frozen=True)
class OfState(Edit):
    """An edit of a state, with a part that it takes or holds: 1 is all."""

    strength: float = 1.0
    """The part: of what the tokens left, or of what decays; 1 is all of it, 0 none."""

    has_amount: ClassVar[bool] = True
    unit: ClassVar[str] = "part"

    def _set(self, latent: Any, strength: Any, positions: Any, when: Any, site: str | None) -> None:
        if when is not None:
            raise EditError(f"{self.kind} takes no condition on another latent; positions say from where on it acts.")
        for name, value in {"latent": latent, "positions": positions, "when": None, "site": site}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "strength", number(strength, "strength"))
        super().__post_init__()

    def scaled(self, factor: float) -> Edit:
        return replace(self, strength=self.strength * number(factor, "factor"))

    def __str__(self) -> str:
        part = "" if self.strength == 1 else f", {self.strength:g} of it"
        return f"{super().__str__()}{part}"


@dataclass(frozen=True)
class Forget(OfState):
    """h_t - (share of the tokens in h_t): what the tokens left in the state is taken out, with the gates as they are.

    `positions` says from where on the state shall be without it: by default from the last token of the prompt on, so that the
    prompt is read with all it holds and what follows has forgotten; "not_bos" means at once, as if they had never been written.
    `site` is the state of one recurrent layer; without it the edit acts on all of them. `strength` is the part that is
    forgotten; below 0 it is remembered more strongly.
    """

    kind: ClassVar[str] = "forget"
    reads = "nothing"

    def __init__(
        self,
        latent: Any,
        strength: Any = 1.0,
        *,
        positions: Positions | str = "last_prompt",
        when: Any = None,
        site: str | None = None,
    ):
        self._set(Span.of(latent), strength, positions, when, site)

    def coefficient(self, reading: Tensor, amount: float) -> Tensor:
        return -amount * reading


@dataclass(frozen=True)
class Hold(OfState):
    """h_t + (1 - a_t) f_(t-1) d: the gate is kept open for the latent's part f d of the state before, which does not decay.

    For latents of an SAE of a state (blocks.N.rec.hook_state), or a direction there, whose part is the projection on it.
    `strength` is the part of the decay that is prevented, from 0 to 1.
    """

    kind: ClassVar[str] = "hold"

    def __init__(
        self,
        latent: Any,
        strength: Any = 1.0,
        *,
        positions: Positions | str = "not_bos",
        when: Any = None,
        site: str | None = None,
    ):
        self._set(latent, strength, positions, when, site)
        if not 0 <= self.strength <= 1:
            raise EditError(
                f"Hold prevents a part of the decay, from 0 to 1; {self.strength:g} is none. Above 1 a state would grow."
            )

    def coefficient(self, reading: Tensor, amount: float) -> Tensor:
        return amount * reading
