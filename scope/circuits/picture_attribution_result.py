"""The result of a picture's attribution: drawn on the picture, as text, as HTML and as pandas tables."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scope.circuits.attribution_result import Attribution
from scope.circuits.tables import html_table
from scope.escape import visible
from scope.html_page import html_page
from scope.models.pictures.draw import img_tag, overlay, png
from scope.models.pictures.processor import Box
from scope.provenance import without_folders
from scope.result import heat_figure
from scope.whole_files import write_whole

_PAIRS = 12  # pairs in the printed table


@dataclass(frozen=True, kw_only=True)
class PatchAblation:
    """What becomes of the logit difference when some patches are replaced by the mean patch, beside random sets of as many."""

    patches: tuple[int, ...]
    change: float
    """The logit difference minus what it is without these patches: above 0 where they speak for the token."""
    expected: float
    """What the sum over (patch, latent) pairs gives these patches, relative to b_dec and not to the mean patch."""
    random: tuple[float, ...]
    """The same change for random sets of as many patches."""

    @property
    def n_above(self) -> int:
        """Random sets whose change is at least as large."""
        return sum(value >= self.change for value in self.random)

    def __str__(self) -> str:
        beside = np.array(self.random)
        n = len(self.patches)
        text = f"Replacing the {n} patches of the largest effect by the mean patch changes it by {-self.change:+.3f}"
        if not len(beside):
            return f"{text}."
        return (
            f"{text}; {len(beside)} random sets of as many: {-beside.mean():+.3f} (sd {beside.std():.3f}), "
            f"{self.n_above} of them as much."
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureAttribution(Attribution):
    """A logit difference as a sum over (row, latent) pairs, of which the patches can be drawn; see
    `scope.circuits.picture_attribution`. `rows` has each latent's sum over all its rows."""

    answer: str
    """The answer so far, after which the token is asked about."""
    picture: Any = field(repr=False)
    grid: tuple[int, int]
    boxes: tuple[Box, ...] = field(repr=False)
    """(left, top, right, bottom) of each patch in the picture's pixels."""
    latents: tuple[int, ...]
    """The latents that fire at a row or more, in the order of the columns of `effects`."""
    patch_rows: tuple[int, ...]
    """Row of each patch in `pieces`, `effects` and `errors`."""
    effects: np.ndarray = field(repr=False)
    """[row latent] in logits."""
    activations: np.ndarray = field(repr=False)
    """[row latent]."""
    nulls: np.ndarray = field(repr=False)
    """[row latent], one standard deviation of the effect of a random direction in the latent's place."""
    errors: np.ndarray = field(repr=False)
    """[row], the effect of what the SAE does not reconstruct."""
    ablation: PatchAblation | None
    """None where the rows are no patches."""
    provenance: dict[str, Any]
    """What it was made from: the model, the SAE, the picture's pixels, the seed and the number of random sets."""
    picture_copy: str = field(default="", repr=False)
    """A PNG as base64 of which the model reads what it reads of the picture."""

    @property
    def patches(self) -> np.ndarray:
        """[patch], the effect of all latents at each patch, in logits."""
        return self.effects.sum(1)[list(self.patch_rows)]

    def heat(self, latent: int | None = None) -> np.ndarray:
        """[patch], the effect of one latent at each patch, or of all."""
        if latent is None:
            return self.patches
        if latent not in self.latents:
            return np.zeros(len(self.patch_rows))
        return self.effects[list(self.patch_rows), self.latents.index(latent)]

    def pairs(self, k: int | None = None):
        """The (patch, latent) pairs as a pandas table, the largest effects first: patch, its row and column and pixel box, the
        latent, its activation there, its effect in logits, and the effect's null (1 sd). Rows of the text have patch -1."""
        import pandas as pd

        row, column = np.nonzero(self.activations)
        order = np.argsort(-np.abs(self.effects[row, column]), kind="stable")[:k]
        row, column = row[order], column[order]
        patch = np.full(len(self.pieces), -1)
        patch[list(self.patch_rows)] = np.arange(len(self.patch_rows))
        of, n_columns = patch[row], self.grid[1]
        boxes = np.array([self.boxes[p] if p >= 0 else (np.nan,) * 4 for p in of]).reshape(-1, 4)
        table = {"where": [self.pieces[r] for r in row], "patch": of, "patch_row": np.where(of < 0, -1, of // n_columns)}
        table |= {"patch_column": np.where(of < 0, -1, of % n_columns)}
        table |= {name: boxes[:, i] for i, name in enumerate(("left", "top", "right", "bottom"))}
        table |= {"latent": np.array(self.latents, dtype=int)[column], "activation": self.activations[row, column]}
        return pd.DataFrame(table | {"effect": self.effects[row, column], "null": self.nulls[row, column]})

    def draw(self, latent: int | None = None) -> Any:
        """The picture as a PIL image with the effect of each patch over it, of one latent or of all: orange speaks for the
        token, blue for the other."""
        return overlay(self.picture, self.boxes if self.patch_rows else (), self.heat(latent))

    def save(self, file: str | Path, latent: int | None = None) -> Path:
        """Write `draw` as a PNG; a table or a page where the file's name says so."""
        if Path(file).suffix.lower() in (".html", ".csv", ".parquet", ".json", ".svg", ".pdf"):
            return super().save(file)
        write_whole(Path(file), png(self.draw(latent)))
        return Path(file)

    def plot(self) -> Any:
        """The effect of each patch, as the picture lies, in a Plotly figure."""
        if not self.patch_rows:
            return super().plot()
        rows, columns = self.grid
        largest = float(np.abs(self.patches).max()) or 1.0
        figure = heat_figure(
            self.patches.reshape(rows, columns), [str(i) for i in range(columns)], [str(i) for i in range(rows)],
            colorscale="PuOr", reversescale=True, zmin=-largest, zmax=largest,
        )  # fmt: skip
        return figure.update_yaxes(autorange="reversed", scaleanchor="x")

    def to_html(self, file: str | Path | None = None) -> str:
        """The drawn picture and the tables as a page without scripts, also written to `file`."""
        text = html_page("Attribution", self._repr_html_())
        if file is not None:
            write_whole(Path(file), text)
        return text

    def _repr_html_(self) -> str:
        """The drawn picture and the tables; nothing is loaded from elsewhere, and all text is escaped."""
        columns = ("part", "effect, logits", "null (1 sd)", "")
        alt = f"The picture, each patch coloured by its effect on {visible(self.token)}"
        foot = [*self._foot(), f"Made from {json.dumps(without_folders(self.provenance))}"]
        return img_tag(self.draw(), alt) + html_table(self._head(), columns, self._pair_rows() + self._shown(), foot)

    def _head(self) -> list[str]:
        after = f"{visible(self.prompt)!r}" + (f" and the answer {visible(self.answer)!r}" if self.answer else "")
        title = (
            f"{visible(self.token)!r} (p {self.p_token:.3f}) rather than {visible(self.other)!r} (p {self.p_other:.3f}) after "
            f"a picture and {after}: logit difference {self.logit_difference:+.3f}; {self.method}, {self.site}"
        )
        return [title, *self.cautions(), *([str(self.ablation)] if self.ablation else [])]

    def _pair_rows(self) -> list[tuple[str, str, str, str]]:
        if not self.patch_rows:  # one row alone, of which the table of latents says everything
            return []
        table = self.pairs(_PAIRS)
        rows = zip(table["where"], table["latent"], table["effect"], table["null"], table["activation"], strict=True)
        drawn = [(f"{visible(where)} x latent {i}", f"{e:+.3f}", f"{n:.3f}", f"fires at {a:.2f}") for where, i, e, n, a in rows]
        rest = self.effects.sum() - table["effect"].sum()
        return [
            *drawn,
            (f"{int((self.activations > 0).sum()) - len(table)} further pairs", f"{rest:+.3f}", "", ""),
            ("", "", "", ""),
        ]

    def __str__(self) -> str:
        shown = [*self._pair_rows(), *self._shown()]
        width = max(len(row[0]) for row in shown)
        lines = [*self._head(), f"{'':<{width}} {'effect':>9} {'null':>7}"]
        lines += [f"{name:<{width}} {value:>9} {null:>7}  {meaning}".rstrip() for name, value, null, meaning in shown]
        return "\n".join([*lines, *self._foot()])

    __repr__ = __str__


class MatchAttribution(PictureAttribution):
    """The logit of a picture and a text as a sum over latents; see `scope.circuits.picture_match`. `token` is the text, and
    `other` the one that it is compared with, "" if there is none."""

    def _head(self) -> list[str]:
        than = f" rather than {visible(self.other)!r} (p {self.p_other:.3f})" if self.other else ""
        what = "logit difference" if self.other else "logit"
        title = f"{visible(self.token)!r} (p {self.p_token:.3f}){than} for the picture: {what} {self.logit_difference:+.3f}"
        return [f"{title}; {self.method}, {self.site}", *self.cautions(), *([str(self.ablation)] if self.ablation else [])]

    def cautions(self) -> list[str]:
        """What a reader must know of the method before the rows."""
        if self.method == "direct":
            return ["The sum is exact with the length of the picture's vector held at its value."]
        return super().cautions()
