"""`Pack`: everything known about the latents of one dictionary, in one object; `scope features` writes packs."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scope import renamed
from scope.errors import PackError
from scope.escape import escape, visible
from scope.features.exports.card import card_html, card_text
from scope.features.exports.export import export
from scope.features.pack import search
from scope.features.pack.data import PackData
from scope.features.pack.feature import Feature
from scope.features.search import hits
from scope.result import Result


class FeatureCard(Feature, Result):
    """A feature that shows itself: as a card in a notebook, as text in a terminal."""

    def to_frame(self) -> pd.DataFrame:
        """Its examples: group, activation at the peak, token, text and document, as a pandas table."""
        return pd.DataFrame(
            [
                {
                    "group": group,
                    "value": example.value,
                    "token": example.tokens[example.peak],
                    "text": "".join(example.tokens),
                    "document": example.document,
                }
                for group in self.groups
                for example in self.examples(group, n=1000)
            ],
            columns=["group", "value", "token", "text", "document"],
        )

    def plot(self) -> Any:
        """How often it fires how strongly, and the tokens that it promotes and suppresses, as a Plotly figure."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        figure = make_subplots(1, 2, subplot_titles=["activations when it fires", "logits by the weights"])
        edges, counts = self.histogram
        fired = np.flatnonzero(counts)
        shown = slice(fired[0], fired[-1] + 1) if len(fired) else slice(0, 0)
        figure.add_trace(go.Bar(x=np.sqrt(edges[:-1] * edges[1:])[shown].tolist(), y=counts[shown].tolist()), 1, 1)
        figure.update_xaxes(type="log", row=1, col=1)
        tokens = [*self.suppressed[:8], *reversed(self.promoted[:8])]
        places = list(range(len(tokens)))
        figure.add_trace(go.Bar(x=[value for _, value in tokens], y=places, orientation="h"), 1, 2)
        names = [escape(visible(token)) for token, _ in tokens]
        figure.update_yaxes(tickmode="array", tickvals=places, ticktext=names, row=1, col=2)
        title = escape(visible(f"latent {self.id}  {self.label}"))
        return figure.update_layout(title=title, template="simple_white", height=400, showlegend=False)

    def __repr__(self) -> str:
        return card_text(self)

    def _repr_html_(self) -> str:
        return card_html(self)


class Pack(PackData):
    """All latents of one dictionary. `pack[1208]` is a latent, `pack.table` has a row for each.

    It needs no model, no tokenizer and no GPU; only `read` does.
    """

    def __len__(self) -> int:
        return self.d_sae

    def __iter__(self) -> Iterator[FeatureCard]:
        return (self[i] for i in range(self.d_sae))

    def __getitem__(self, latent: object) -> FeatureCard:
        """A latent by number.

        Raises:
            PackError: not a whole number, or not the number of a latent of this pack.
        """
        return FeatureCard(self.latent_id(latent), self)

    def find(self, text: str) -> pd.DataFrame:
        """`search` as a table: rows of all latents that match, best first, with where the text was found and the score."""
        return hits.find(self, text)

    def search(self, text: str, limit: int | None = 20) -> list[hits.Hit]:
        """Latents that fire on a text, are named by it or promote it, the best first, as (latent, why, score); see
        `scope.features.search.hits`. None gives all that match."""
        return hits.search(self, text, limit)

    def fires_on(self, token: str) -> pd.DataFrame:
        """Latents that fire on this token, with P(fires | token), P(token | fires) and lift, most telling first."""
        return search.fires_on(self, token)

    def promotes(self, token: str) -> pd.DataFrame:
        """Latents among whose most promoted tokens this one is, by weights and as measured."""
        return search.promotes(self, token)

    def steerable(self, n: int = 10, words: bool = True) -> pd.DataFrame:
        """Latents to steer with, by measured output score; see `scope.features.pack.search.steerable`."""
        return search.steerable(self, n, words)

    def random(self, rng: np.random.Generator | int | None = None, living: bool = True) -> FeatureCard:
        """A latent drawn uniformly, by default among those that fired."""
        rng = rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)
        alive = np.flatnonzero(self.table["count"].to_numpy() > 0) if living else np.arange(self.d_sae)
        if not len(alive):
            raise PackError(f"No latent of {self.folder} fired in {self.n_tokens:,} tokens.")
        return self[int(rng.choice(alive))]

    def read(self, text: str | Iterable[str], model, sae):
        """Which latents fire on a text: a `TokenView`; of several texts, a list. Model and dictionary must be the pack's."""
        from scope.features.reading.read_text import read  # imports torch, which browsing does not need

        return read(self, text, model, sae)

    def read_picture(self, picture: Any, model, sae, text: str | None = None, answer: str | None = None):
        """Which latents fire on which patch of a picture, and on the text beside it: a `PictureView`; see
        `scope.features.reading.read_picture`. Model and dictionary must be the pack's."""
        from scope.features.reading.read_picture import read_picture

        return read_picture(self, picture, model, sae, text, answer)

    def export(self, to: str, out: str | Path, latents: str | list[int] | None = None, **settings: Any) -> Path:
        """Write latents to parquet, csv, json, html, neuronpedia or saedashboard; see `scope.features.exports.export`.

        `latents` are ids, or words such as "3,17,40-60", "starred", "out_score:50"; none for all.
        """
        if latents is not None:
            latents = search.chosen(self, latents) if isinstance(latents, str) else [self.latent_id(i) for i in latents]
        return export(self, to, Path(out), latents, **settings)


def __getattr__(name: str):
    if name != "FeatureStore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    renamed.warn("FeatureStore", "scope.Pack")
    return Pack
