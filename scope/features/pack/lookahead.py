"""Suffix look-ahead as a result: which latents fire in a middle because of the suffix. `scope.features.compare.lookahead`
computes it; a pack may hold it as lookahead.json."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

from scope.errors import PackError
from scope.escape import escape, visible_token
from scope.html_page import html_page
from scope.json_result import JsonResult
from scope.whole_files import write_whole

FILE = "lookahead.json"
SCHEMA = 1
HALF = 0.5
"""Share of its activation that a latent must lose with the suffix to fire mainly because of it."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
_MUTED = "opacity:.65;font-size:12px"


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """How many latents fire more in the middle with one suffix than with suffixes of other documents."""

    threshold: float
    """The z above which a latent is beyond chance on the choosing half: 95 % of permutations have no latent beyond it."""

    found: float
    """Latents beyond it, of those tested; a mean where several suffixes were tried."""

    confirmed: float
    """Of these, latents with p below 0.05 on the held-out half."""

    nominal: float
    """Share of all tested latents with p below 0.05 on the held-out half, where chance gives 5 %."""

    fvu: float | None = None
    """Fraction of variance unexplained by the SAE on the rows of the middle; None where it was not measured."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The held-out example in which a latent gains most from the suffix."""

    before: str
    """The end of the prefix."""
    tokens: tuple[str, ...]
    """The middle."""
    after: str
    """The beginning of the suffix."""
    own: tuple[float, ...]
    """The latent's activation at each token of the middle, with this suffix."""
    others: tuple[float, ...]
    """The same with suffixes of other documents, their mean."""


@dataclass(frozen=True, kw_only=True)
class LatentLookahead:
    """One latent: means over the middles of the held-out half, with the own suffix and with those of other documents."""

    latent: Count
    examples: Count
    """Examples, of all, in whose middle it fires with any suffix."""
    z: float
    """Difference on the choosing half, in standard deviations under exchanged suffixes."""
    z_held_out: float
    p_held_out: float
    own: float
    """Mean activation with the own suffix."""
    others: float
    own_density: float
    """Share of the middles' tokens on which it fires with the own suffix."""
    others_density: float
    floor_z: float | None = None
    """z on the held-out half in the floor's model, without the adapter."""
    more_z: float | None = None
    """z there of how much more it gains in the model than in the floor's."""
    place: Place | None = None

    @property
    def lost(self) -> float:
        """Share of its activation that goes with the suffix; negative where others' suffixes give more."""
        return 1 - self.others / self.own if self.own > 0 else float("nan")


@dataclass(frozen=True, kw_only=True)
class Lookahead(JsonResult):
    """Which latents fire in a middle because of the suffix that the model has read.

    The suffix of an example is exchanged for suffixes of other documents, prefix and middle staying as they are. `own` tests
    whether latents fire more with the own suffix; `null` puts one of the others' in its place; `floor` is the same on the model
    without its adapter. Latents are chosen on half of the documents and reported on the other half.
    """

    error, way_out = PackError, "Make it again: scope lookahead DICTIONARY"

    schema: int = SCHEMA
    model: str
    site: str
    dictionary: str
    """Hash of the SAE's parameters."""
    corpus: str = ""
    form: str
    examples: Count
    documents: Count
    suffixes: Count
    """Other suffixes for each example."""
    donors: str = "documents"
    """Where they come from: other documents, or elsewhere in the same one."""
    permutations: Count
    seed: int
    tested: Count
    """Latents that fire in enough examples, under any suffix, to be tested."""
    own: Beyond
    null: Beyond
    floor: Beyond | None = None
    more: Beyond | None = None
    """How many latents gain more from the suffix than they do in the floor's model."""
    floor_model: str = ""
    latents: tuple[LatentLookahead, ...] = field(repr=False)
    """Those tested, the largest z on the held-out half first."""

    @property
    def ahead(self) -> tuple[LatentLookahead, ...]:
        """Latents beyond chance on the choosing half that are confirmed on the other."""
        return tuple(row for row in self.latents if row.z > self.own.threshold and row.p_held_out < 0.05)

    @property
    def exchanged(self) -> str:
        """The other suffixes, in words."""
        return "suffixes of other documents" if self.donors == "documents" else "suffixes from elsewhere in the document"

    @property
    def because_of_it(self) -> tuple[LatentLookahead, ...]:
        """Of these, latents that lose half of their activation when the suffix is exchanged."""
        return tuple(row for row in self.ahead if row.lost >= HALF)

    def of(self, latent: int) -> LatentLookahead | None:
        """What is known of a latent; None where it fired in too few examples to be tested."""
        return next((row for row in self.latents if row.latent == latent), None)

    def to_frame(self) -> Any:
        """A row per tested latent."""
        import pandas as pd

        chosen = {row.latent for row in self.ahead}
        rows = [
            {name: value for name, value in asdict(row).items() if name != "place"}
            | {"lost": row.lost, "ahead": row.latent in chosen}
            for row in self.latents
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        n, rows = max(self.tested, 1), [("own suffix", self.own), ("another in its place", self.null)]
        if self.floor:
            rows.append((f"own suffix, {self.floor_model}", self.floor))
        if self.more:
            rows.append((f"more than in {self.floor_model}", self.more))
        lines = [
            f"{self.examples} middles of {self.documents} documents ({self.form}), each with its own suffix and "
            f"{self.suffixes} {self.exchanged.removeprefix('suffixes ')}, at {self.site} of {self.model}; "
            f"{self.tested:,} latents tested.",
            f"{'':<26} {'beyond chance':>14} {'confirmed':>10} {'share':>7} {'p < 0.05':>9}",
        ]
        lines += [f"{name:<26} {t.found:>14g} {t.confirmed:>10g} {t.confirmed / n:>7.1%} {t.nominal:>9.1%}" for name, t in rows]
        lines.append(
            "Beyond chance: z on half of the documents above what 95 % of permutations of the suffixes reach with any latent "
            "(family-wise 5 %);\nconfirmed: of these, p < 0.05 on the other half; p < 0.05 there of all latents, where chance "
            "gives 5 %."
        )
        if self.ahead:
            lost = sorted(row.lost for row in self.ahead)
            lines.append(
                f"Of the {len(self.ahead)} found, {len(self.because_of_it)} lose half of their activation or more with "
                f"another's suffix; median {lost[len(lost) // 2]:.0%}."
            )
        if self.floor and self.floor.fvu is not None and self.own.fvu is not None:
            lines.append(
                f"The SAE leaves {self.own.fvu:.3f} of the variance of these middles unexplained, and {self.floor.fvu:.3f} in "
                f"{self.floor_model}."
            )
        return "\n".join(lines)

    def plot(self) -> Any:
        """Mean activation with others' suffixes over that with the own one, a point a latent, as a Plotly figure."""
        import plotly.graph_objects as go

        chosen = {row.latent for row in self.ahead}
        groups = {"found": [r for r in self.latents if r.latent in chosen]}
        groups["others"] = [r for r in self.latents if r.latent not in chosen]
        figure = go.Figure()
        for name, rows in reversed(groups.items()):
            hover = [f"#{r.latent}: lost {r.lost:.0%}, z {r.z_held_out:.1f}" for r in rows]
            style = {"color": "#CF7A00" if name == "found" else "rgba(128,128,128,.5)", "size": 7 if name == "found" else 4}
            x, y = [r.own for r in rows], [r.others for r in rows]
            figure.add_scatter(x=x, y=y, mode="markers", name=name, text=hover, hoverinfo="text", marker=style)
        most = max((r.own for r in self.latents), default=1.0)
        figure.add_scatter(x=[0, most], y=[0, most], mode="lines", name="equal", line={"dash": "dot", "color": "gray"})
        figure.update_layout(
            xaxis_title="mean activation in the middle, own suffix",
            yaxis_title=f"the same, {self.exchanged}",
            template="simple_white",
            height=420,
        )
        return figure

    def to_html(self, file: str | Path | None = None, n: int = 40) -> str:
        """As a page that needs nothing else, also written to `file`: the counts, and the latents that lose most."""
        head = "".join(
            f"<th style='text-align:left;padding:0 10px'>{name}</th>"
            for name in ("latent", "own suffix", "others'", "lost", "z, held out", "where it gains most")
        )
        body = "".join(_row(row) for row in sorted(self.ahead, key=lambda row: -row.lost)[:n])
        text = html_page("Suffix look-ahead", f"<pre>{escape(self)}</pre><table><tr>{head}</tr>{body}</table>")
        if file is not None:
            write_whole(Path(file), text)
        return text

    @classmethod
    def of_pack(cls, file: Path, owner: str) -> "Lookahead":
        """The one that a pack holds, whose SAE has the hash `owner`.

        Raises:
            PackError: see `load`; or it is about another SAE.
        """
        result = cls.load(file)
        if result.dictionary != owner:
            raise PackError(
                f"{file} is about another SAE than its pack: it was copied there, or the pack was made anew.\n"
                "  Make it again: scope lookahead DICTIONARY --pack PACK"
            )
        return result


def _row(row: LatentLookahead) -> str:
    figures = (f"#{row.latent}", f"{row.own:.3g}", f"{row.others:.3g}", f"{row.lost:.0%}", f"{row.z_held_out:.1f}")
    cells = "".join(f"<td style='padding:0 10px;vertical-align:top'>{escape(cell)}</td>" for cell in figures)
    return f"<tr>{cells}<td>{'' if row.place is None else place_html(row.place)}</td></tr>"


def place_html(place: Place) -> str:
    """Prefix, middle and suffix of an example, the middle's tokens shaded by what the own suffix adds to the activation."""
    largest = max((a - b for a, b in zip(place.own, place.others, strict=True)), default=0.0)
    tokens = "".join(
        f"<span title='{a:.3g} with this suffix, {b:.3g} with others' style='background:rgba(207,122,0,"
        f"{max(0.0, (a - b) / largest if largest > 0 and math.isfinite(largest) else 0.0):.2f})'>"
        f"{escape(visible_token(token))}</span>"
        for token, a, b in zip(place.tokens, place.own, place.others, strict=True)
    )
    before, after = (f"<span style='{_MUTED}'>{escape(text)}</span>" for text in (place.before, place.after))
    return f"<code style='white-space:pre-wrap'>{before}<b>⟨</b>{tokens}<b>⟩</b>{after}</code>"
