"""`Decay`: how long the latents of a state last, with decay profiles, half-lives, and the tokens that are retained.
`scope.features.compare.decay` computes it; a pack may hold it as decay.json."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from scope.errors import PackError
from scope.escape import visible_token
from scope.json_result import JsonResult

FILE = "decay.json"
SCHEMA = 1
LONG = 16
"""Further tokens beyond which a half-life counts as long."""

MORE_THAN_ALL = (
    "A token adds to a latent in some channels and takes from it in others. Where what it takes is forgotten sooner, more than "
    "100% is left."
)

Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]


@dataclass(frozen=True, kw_only=True)
class KeptToken:
    """A token of which a latent keeps much."""

    token: str
    id: Count
    count: Count
    """How often it stood where the latent fired and was written, with enough tokens after it."""
    left: float
    """The part of what it added that is left after `Decay.kept_at` further tokens; above 1 where MORE_THAN_ALL says so."""


@dataclass(frozen=True, kw_only=True)
class LatentDecay:
    """One latent: what is left, after some further tokens, of what tokens added to it."""

    latent: Count
    writes: Count
    """Tokens that fired it and added to it, of which the profile is made."""
    half_life: float | None
    """Further tokens until half is left; None where more than half is left at the largest age."""
    low: float | None
    high: float | None
    """95 % interval of the half-life, over contexts; None at an end that lies beyond the largest age."""
    profile: tuple[float | None, ...]
    """The part that is left at each of `Decay.ages`; None where no context is that long."""
    retained: tuple[KeptToken, ...] = ()
    """Tokens of which most is left, by how much they add."""

    @property
    def long(self) -> bool:
        return self.half_life is None or self.half_life > LONG


@dataclass(frozen=True, kw_only=True)
class Decay(JsonResult):
    """How long the latents of a state (or of its writes) last, with the gates of the text as they are.

    A token t that fires latent j adds w_t . e_j to it (e_j: the encoder's row), and after n more tokens (a_(t+1) ... a_(t+n)
    w_t) . e_j of that is left. The profile is the mean of what is left over the mean of what was added, over tokens that added
    something; starts of documents are left out. `null` is the same on the model with its weights drawn again, at as many
    tokens, those that add most.
    """

    error, way_out = PackError, "Make the pack again: scope features DICTIONARY ..."

    schema: int = SCHEMA
    model: str
    site: str
    dictionary: str
    """Hash of the SAE's parameters."""
    tokens: Count
    contexts: Count
    ages: tuple[int, ...]
    kept_at: int
    share: float
    """Share of the latents below whose half-life is beyond 16 tokens."""
    low: float
    high: float
    null: float | None = None
    """The same share on the model with its weights drawn again."""
    null_low: float | None = None
    null_high: float | None = None
    state: tuple[float, ...] = ()
    """The same profile of the length of all writes, whatever they say."""
    latents: tuple[LatentDecay, ...] = field(repr=False)
    """Those with enough writes, by number."""

    def of(self, latent: int) -> LatentDecay | None:
        """What is known of a latent; None where it had too few writes."""
        return next((row for row in self.latents if row.latent == latent), None)

    def to_frame(self) -> Any:
        """A row per latent, the longest half-lives first."""
        import pandas as pd

        rows = [
            {
                "latent": row.latent,
                "half_life": _number(row.half_life),
                "low": _number(row.low),
                "high": _number(row.high),
                "writes": row.writes,
                **{f"left_{age}": row.profile[i] for i, age in enumerate(self.ages)},
                "retained": " ".join(visible_token(k.token) for k in row.retained),
            }
            for row in self.latents
        ]
        return pd.DataFrame(rows).sort_values("half_life", ascending=False, ignore_index=True) if rows else pd.DataFrame(rows)

    def __str__(self) -> str:
        lives = sorted(_number(row.half_life) for row in self.latents)
        middle = lives[len(lives) // 2] if lives else math.nan
        null = ""
        if self.null is not None:
            null = f"; on the model with its weights drawn again {self.null:.0%} [{self.null_low:.0%}, {self.null_high:.0%}]"
        return (
            f"{len(self.latents):,} latents at {self.site}, {self.tokens:,} tokens: {self.share:.0%} [{self.low:.0%}, "
            f"{self.high:.0%}] have a half-life beyond {LONG} tokens{null}.\nMedian half-life "
            f"{steps(None if math.isinf(middle) else middle, self.ages)} tokens."
        )

    def plot(self, latent: int | None = None) -> Any:
        """The profile of a latent, or of all of them as faint lines, beside that of all writes, as a Plotly figure."""
        import plotly.graph_objects as go

        rows = self.latents if latent is None else [row for row in (self.of(latent),) if row]
        figure = go.Figure()
        for row in rows:
            style = {"color": "#0072B2", "width": 2} if latent is not None else {"color": "rgba(0,114,178,.12)", "width": 1}
            name = f"latent {row.latent}"
            shown = latent is not None
            figure.add_scatter(x=[0, *self.ages], y=[1, *row.profile], name=name, line=style, showlegend=shown, mode="lines")
        if self.state:
            dotted = {"color": "gray", "dash": "dot"}
            figure.add_scatter(x=[0, *self.ages], y=[1, *self.state], name="all writes, length", line=dotted, mode="lines")
        figure.add_hline(y=0.5, line={"color": "gray", "width": 1})
        figure.update_layout(
            xaxis_title="further tokens", yaxis_title="left of what was added", template="simple_white", height=360
        )
        return figure

    def damage(self) -> str:
        return "a profile is not of its length" if any(len(row.profile) != len(self.ages) for row in self.latents) else ""


def steps(value: float | None, ages: tuple[int, ...]) -> str:
    """A half-life in words."""
    return f"more than {max(ages, default=0)}" if value is None else f"{value:.1f}"


def _number(value: float | None) -> float:
    return math.inf if value is None else value
