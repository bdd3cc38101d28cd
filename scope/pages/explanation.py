"""The score of a hit as a sum over pairs of latents: as tables, as a picture of the page, and in notebooks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from scope.circuits.tables import html_table
from scope.escape import visible, visible_token
from scope.models.pictures.draw import img_tag, overlay, png
from scope.pages.maps import small
from scope.result import Result, bar_figure
from scope.whole_files import write_whole

BIAS, ERROR = -1, -2
"""What stands in place of a latent's number for the bias of the head and the SAE, and for what the SAE misses."""

Numbers = Int[np.ndarray, "pair"]
Values = Float[np.ndarray, "pair"]
Flags = Bool[np.ndarray, "pair"]
Rounding = Float[np.ndarray, "tok"]
PatchValues = Float[np.ndarray, "patch"]
_SHOWN = 12
_INK = (207, 0, 60)


def part_name(latent: int) -> str:
    """A latent's number, or bias or error."""
    return {BIAS: "bias", ERROR: "error"}.get(latent, str(latent))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Explanation(Result):
    """Pairs of parts, one of the query and one of the page, and what each adds to the score.

    Pairs, `rounding` and `smaller` add up to `score`.
    """

    query: str
    pieces: tuple[str, ...]
    page: int
    name: str
    site: str
    query_site: str
    score: float
    token: Numbers
    position: Numbers
    """Where on the page the token has its best match."""

    query_latent: Numbers
    page_latent: Numbers
    value: Values
    rounding: Rounding
    """For each token, what vectors rounded to the index's precision add."""

    smaller: float
    """The sum of pairs too many to be kept."""

    grid: tuple[int, int]
    first_patch: int
    page_pieces: tuple[str, ...]
    index: Any = field(default=None)

    @property
    def total(self) -> float:
        """The sum of all rows."""
        return float(self.value.sum() + self.rounding.sum() + self.smaller)

    @property
    def gap(self) -> float:
        """What the rows miss of the score."""
        return self.score - self.total

    def place(self, position: int) -> str:
        """A position of the page in words: a patch by row and column, or a token of the text beside every page."""
        patch = position - self.first_patch
        if 0 <= patch < self.grid[0] * self.grid[1]:
            row, column = divmod(patch, self.grid[1])
            return f"row {row}, column {column}"
        return f"text {visible_token(self.page_pieces[position])}"

    def to_frame(self) -> Any:
        """A row per (query token, position, query part, page part), largest first."""
        import pandas as pd

        table = pd.DataFrame(
            {
                "token": self.token,
                "piece": [self.pieces[i] for i in self.token.tolist()],
                "position": self.position,
                "place": [self.place(i) for i in self.position.tolist()],
                "query part": [part_name(i) for i in self.query_latent.tolist()],
                "page part": [part_name(i) for i in self.page_latent.tolist()],
                "value": self.value,
            }
        )
        return table.iloc[np.argsort(-np.abs(self.value), kind="stable")].reset_index(drop=True)

    def _on_patch(self) -> Flags:
        patch = self.position - self.first_patch
        return (patch >= 0) & (patch < self.grid[0] * self.grid[1])

    def beside_patches(self) -> float:
        """What tokens add whose best match is no patch but the text beside every page."""
        return float(self.value[~self._on_patch()].sum())

    def pairs(self, patches_only: bool = True) -> Any:
        """A row per pair of latents, summed over tokens and positions, largest first.

        By default where tokens match patches: the text beside a page is every page's.

        Columns: the pair, its sum, its share of the score, at how many tokens, and the position and token where it adds most.
        """
        import pandas as pd

        kept = (self.query_latent >= 0) & (self.page_latent >= 0) & (self._on_patch() | (not patches_only))
        columns = {"query_latent": self.query_latent, "page_latent": self.page_latent, "value": self.value}
        table = pd.DataFrame(columns | {"token": self.token, "position": self.position})[kept]
        groups = table.groupby(["query_latent", "page_latent"], sort=True)
        pairs = groups["value"].sum().to_frame()
        pairs["tokens"] = groups["token"].nunique()
        if len(table):
            strongest = table.loc[groups["value"].apply(lambda v: v.abs().idxmax())]
            pairs["position"] = strongest["position"].to_numpy()
            pairs["piece"] = [self.pieces[i] for i in strongest["token"]]
        else:
            pairs["position"], pairs["piece"] = [], []
        pairs["share"] = pairs["value"] / self.score
        order = np.argsort(-pairs["value"].abs().to_numpy(), kind="stable")
        return pairs.reset_index().iloc[order].reset_index(drop=True)

    def page_latents(self, patches_only: bool = True) -> Any:
        """A row per latent of the page: what it adds by way of all parts of the query, largest first; by default at patches."""
        import pandas as pd

        kept = (self.page_latent >= 0) & (self._on_patch() | (not patches_only))
        table = pd.DataFrame({"latent": self.page_latent[kept], "value": self.value[kept]})
        return table.groupby("latent")["value"].sum().sort_values(key=np.abs, ascending=False).reset_index()

    def sums(self) -> dict[str, float]:
        """The score by kind of row: pairs of latents, those with a bias, those with an error, and rounding."""
        error = (self.query_latent == ERROR) | (self.page_latent == ERROR)
        bias = ~error & ((self.query_latent == BIAS) | (self.page_latent == BIAS))
        return {
            "latent x latent": float(self.value[~error & ~bias].sum()) + self.smaller,
            "with a bias": float(self.value[bias].sum()),
            "with an error": float(self.value[error].sum()),
            "rounding of vectors": float(self.rounding.sum()),
        }

    def _values_on_page(self) -> PatchValues:
        """What pairs of latents add at each patch."""
        patch = self.position - self.first_patch
        kept = (self.query_latent >= 0) & (self.page_latent >= 0) & self._on_patch()
        n = self.grid[0] * self.grid[1]
        return np.bincount(patch[kept], weights=self.value[kept], minlength=n).astype(float)

    def drawn(self, top: int = 5) -> Any:
        """The page with what pairs of latents add at each patch, as a PIL image; the `top` pairs stand by number at the patch
        where they add most."""
        from PIL import ImageDraw

        picture = self.index.shown(self.page)
        boxes = self.index.model.patch_boxes(picture.size)
        image = overlay(picture, boxes, self._values_on_page())
        factor, draw = image.width / picture.width, ImageDraw.Draw(image)
        marks: dict[int, list[str]] = {}
        for i, position in enumerate(self.pairs()["position"].head(top).tolist()):
            marks.setdefault(int(position) - self.first_patch, []).append(str(i + 1))
        for patch, numbers in marks.items():
            if 0 <= patch < len(boxes):
                left, upper, right, lower = (edge * factor for edge in boxes[patch])
                draw.rectangle((left, upper, max(left, right - 1), max(upper, lower - 1)), outline=_INK, width=2)
                draw.text((left + 3, upper + 1), ",".join(numbers), fill=_INK)
        return image

    def plot(self) -> Any:
        """The largest pairs of latents as bars, in a Plotly figure."""
        table = self.pairs()
        names = [f"{query} x {page}" for query, page in zip(table["query_latent"], table["page_latent"], strict=True)]
        return bar_figure(table.assign(pair=names), "pair", "value")

    def save(self, file: Path | str, top: int = 5) -> Path:
        """As every result's; a PNG is what `drawn` gives."""
        return self.save_drawn(file, top) if Path(file).suffix.lower() == ".png" else super().save(file)

    def save_drawn(self, file: Path | str, top: int = 5) -> Path:
        """Write `drawn` as a PNG, whatever the file's name is."""
        write_whole(Path(file), png(self.drawn(top)))
        return Path(file)

    def _head(self) -> list[str]:
        sites = self.site if self.site == self.query_site else f"{self.query_site} of the query, {self.site} of the page"
        return [
            f"{visible(self.query)!r} on {visible(self.name)}: score {self.score:.4f}; {sites}",
            "Each token's best position and every division of the head are held at their values.",
        ]

    def _foot(self) -> list[str]:
        sums = self.sums()
        lines = [", ".join(f"{name} {value:+.4f}" for name, value in sums.items()) + f"; together {self.total:+.4f}"]
        lines.append(
            f"Tokens that match the text beside every page add {self.beside_patches():+.4f}; the table has those at patches."
        )
        if abs(sums["with an error"]) > 0.5 * abs(sums["latent x latent"]):
            lines.append("The error weighs more than half as much as all pairs of latents: the SAE misses much of this hit.")
        if abs(sums["with a bias"]) > abs(sums["latent x latent"]):
            lines.append("The bias weighs more than all pairs of latents: much of this score every page has.")
        return lines

    _COLUMNS = ("", "query latent", "page latent", "adds", "share", "tokens", "most at", "token")

    def _rows(self, top: int) -> list[tuple[str, ...]]:
        return [
            (
                str(i + 1),
                str(row.query_latent),
                str(row.page_latent),
                f"{row.value:+.4f}",
                f"{row.share:.1%}",
                str(row.tokens),
                self.place(int(row.position)),
                visible_token(row.piece, mark_space=True),
            )
            for i, row in enumerate(self.pairs().head(top).itertuples())
        ]

    def text(self, top: int = _SHOWN) -> str:
        """The `top` pairs as a table of text, and the sums."""
        rows = [self._COLUMNS, *self._rows(top)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self._COLUMNS))]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*self._head(), *lines, *self._foot()])

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        picture = img_tag(small(self.drawn(), 320), f"the page {self.name} with the patches of the largest pairs")
        return picture + html_table(self._head(), self._COLUMNS, self._rows(_SHOWN), self._foot())
