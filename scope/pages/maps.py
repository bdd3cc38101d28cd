"""Similarity maps: how well each token of a query matches each patch of a page, drawn over the page."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from scope.escape import escape, visible, visible_token
from scope.models.pictures.draw import img_tag, overlay, png
from scope.pages.errors import PagesError
from scope.renamed import old_attribute
from scope.result import Result
from scope.whole_files import write_whole

Maps = Float[np.ndarray, "tok rows columns"]
PerToken = Float[np.ndarray, "tok"]
_SHOWN = 10  # pictures in a notebook


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SimilarityMaps(Result):
    """Similarities of each token of a query with each patch of a page."""

    query: str
    pieces: tuple[str, ...]
    """The tokens of the query, the beginning and the pad tokens that the model reads with it among them."""

    page: int
    name: str
    values: Maps
    text: Float[np.ndarray, "tok pos"]
    """Similarities with the page's positions that are no patch: <bos> and the text beside every page."""

    text_pieces: tuple[str, ...]
    index: Any = field(default=None)

    @property
    def best(self) -> PerToken:
        """What each token adds to the score: its best similarity, patch or not."""
        return np.maximum(self.values.max((1, 2)), self.text.max(1, initial=-np.inf))

    @property
    def score(self) -> float:
        return float(self.best.sum())

    @cached_property
    def places(self) -> list[str]:
        """Where each token has its best match, in words."""
        places = []
        for patches, beside in zip(self.values, self.text, strict=True):
            row, column = np.unravel_index(patches.argmax(), patches.shape)
            on_patch = not beside.size or patches.max() >= beside.max()
            text = (
                f"row {row}, column {column}" if on_patch else f"text {visible_token(self.text_pieces[int(beside.argmax())])}"
            )
            places.append(text)
        return places

    def token(self, token: int | str) -> int:
        """The number of a token of the query, from its number or its text.

        Raises:
            PagesError: the query has no such token.
        """
        if isinstance(token, int) and 0 <= token < len(self.pieces):
            return token
        alike = [i for i, piece in enumerate(self.pieces) if piece.strip() == str(token).strip()]
        if not alike:
            raise PagesError(f"The query has no token {token!r}. It has: {', '.join(map(visible_token, self.pieces))}")
        return alike[0]

    def drawn(self, token: int | str | None = None) -> Any:
        """The page with the similarities of a token, or their mean over all tokens, above the page's mean: a PIL image."""
        values = self.values.mean(0) if token is None else self.values[self.token(token)]
        picture = self.index.shown(self.page)
        return overlay(picture, self.index.model.patch_boxes(picture.size), np.maximum(values - values.mean(), 0).ravel())

    def save(self, file: Path | str, token: int | str | None = None) -> Path:
        """As every result's; a PNG is what `drawn` gives."""
        return self.save_drawn(file, token) if Path(file).suffix.lower() == ".png" else super().save(file)

    def save_drawn(self, file: Path | str, token: int | str | None = None) -> Path:
        """Write `drawn` as a PNG, whatever the file's name is."""
        write_whole(Path(file), png(self.drawn(token)))
        return Path(file)

    figure = old_attribute("figure", "plot")

    def plot(self, token: int | str | None = None) -> Any:
        """The similarities over the page as a Plotly figure, with the numbers where the pointer is."""
        import plotly.graph_objects as go

        values = self.values.mean(0) if token is None else self.values[self.token(token)]
        rows, columns = values.shape
        picture = self.index.shown(self.page)
        figure = go.Figure(
            go.Heatmap(
                z=values, opacity=0.55, colorscale="Oranges", hovertemplate="row %{y}, column %{x}: %{z:.3f}<extra></extra>"
            )
        )
        figure.add_layout_image(
            source=picture, xref="x", yref="y", x=-0.5, y=-0.5, sizex=columns, sizey=rows, sizing="stretch", layer="below"
        )
        of = "mean of all tokens" if token is None else visible_token(self.pieces[self.token(token)])
        figure.update_layout(
            title=f"{escape(visible(self.query))}: {escape(of)}",
            template="simple_white",
            width=90 + picture.width,
            height=110 + picture.height,
            yaxis={"autorange": "reversed", "title": "row"},
            xaxis={"title": "column"},
        )
        return figure

    def to_frame(self) -> Any:
        """A row per token: what it adds to the score, and where."""
        import pandas as pd

        return pd.DataFrame({"token": self.pieces, "similarity": self.best, "place": self.places})

    def _head(self) -> str:
        return f"{visible(self.query)!r} on {visible(self.name)}: score {self.score:.3f} = sum over {len(self.pieces)} tokens"

    def __str__(self) -> str:
        tokens = [visible_token(piece, mark_space=True) for piece in self.pieces]
        width = max(map(len, tokens))
        rows = [f"{t:<{width}}  {s:>7.3f}  {place}" for t, s, place in zip(tokens, self.best, self.places, strict=True)]
        return "\n".join([self._head(), *rows])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        order = np.argsort(-self.best, kind="stable")[:_SHOWN]
        cells = []
        for i in sorted(order.tolist()):
            piece = visible_token(self.pieces[i])
            text = f"{escape(piece)}<br>{self.best[i]:.3f}, {escape(self.places[i])}"
            cells.append(
                '<div style="display:inline-block;padding:4px;vertical-align:top;max-width:240px;font-size:90%">'
                f"{img_tag(small(self.drawn(i), 96), f'where {piece} matches')}<div>{text}</div></div>"
            )
        return f"<div>{escape(self._head())}</div>{''.join(cells)}"


def small(image: Any, longest: int) -> Any:
    """An image of at most so many pixels a side and 64 colours, for a notebook that holds many."""
    image.thumbnail((longest, longest))
    return image.quantize(64)


def similarity_maps(index: Any, query: str, page: int | str) -> SimilarityMaps:
    """The similarities of each token of a query with each position of a page.

    Raises:
        PagesError: an empty query, or a page that the index does not have.
    """
    number, manifest = index.number(page), index.manifest
    rows = index.queries([query])[0]
    similarity = (rows @ index.vectors(number).T).numpy()
    first, last = manifest.first_patch, manifest.first_patch + manifest.grid[0] * manifest.grid[1]
    ids = index.model.prepare_queries([query])["input_ids"][0].tolist()
    return SimilarityMaps(
        query=query,
        pieces=tuple(index.model.words.pieces(ids)),
        page=number,
        name=index.pages[number].name,
        values=similarity[:, first:last].reshape(len(rows), *manifest.grid),
        text=np.concatenate([similarity[:, :first], similarity[:, last:]], 1),
        text_pieces=manifest.pieces[:first] + manifest.pieces[last:],
        index=index,
    )
