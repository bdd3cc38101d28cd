"""`TokenView`: latents at each token of a text, and their ranking at a token or over all of it."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from scope import renamed
from scope.errors import PackError
from scope.escape import escape, visible_token
from scope.features.exports.strip import strip_html, strip_text
from scope.features.pack.data import PackData
from scope.features.pack.feature import Feature
from scope.result import Result, heat_figure

ORDERS = ("surprise", "value", "share")


@dataclass(frozen=True, eq=False)
class TokenView(Result):
    """Which latents fire where in a text. Tokens that do not count, such as <bos>, have none, as everywhere in a pack."""

    pack: PackData
    ids: list[int]
    pieces: list[str]
    latents: np.ndarray
    """float32 [pos d_sae]."""
    fvu: float
    """`scope.evaluation.metrics.fvu` of the counted tokens; NaN where there are fewer than two different ones."""
    counted: np.ndarray
    """[pos] whether a token counts, by `scope.activations.corpus.inputs.counted_tokens`."""
    fvu_at: np.ndarray
    """[pos] `fvu_at_tokens`: the squared error there over the mean squared distance from this text's mean activation. Its mean
    is `fvu`; NaN where a token does not count."""
    tuning: str = ""
    """In words, when pack or dictionary belong to another tuning of this model, as a base model's dictionary read with the
    instruction-tuned one; else ""."""

    _quantiles: dict[tuple[int, float], float] = field(default_factory=dict, repr=False)

    store = renamed.old_attribute("store", "pack")

    def quantile(self, latent: int, value: float) -> float:
        """Share of a latent's firings in the pack that are weaker; looked up once a value, since pages ask again and again."""
        if (latent, value) not in self._quantiles:
            self._quantiles[latent, value] = Feature(latent, self.pack).quantile(value)
        return self._quantiles[latent, value]

    def values(self, latent: int) -> np.ndarray:
        """A latent's activation at every token."""
        return self.latents[:, self.pack.latent_id(latent)]

    def top(self, k: int = 10, by: str = "surprise", position: int | None = None) -> pd.DataFrame:
        """The k foremost latents at a position, or anywhere in the text.

        surprise  -log10 of the share of all tokens on which this latent fires at least so strongly (default)
        value     activation
        share     activation / the latent's maximum in the pack
        """
        return ranked(self, position, by, k, dense=True)

    def to_frame(self) -> pd.DataFrame:
        """A row for each firing of a latent on a token: position, token, latent, value, label."""
        position, latent = np.nonzero(self.latents)
        return pd.DataFrame(
            {
                "position": position,
                "token": [self.pieces[i] for i in position],
                "latent": latent,
                "value": self.latents[position, latent].astype(float),
                "label": self.pack.table["label"].to_numpy()[latent],
            }
        )

    def plot(self):
        """The foremost latents at each token, in parts of their maximum, as a Plotly heat map."""
        latents, shares = matrix(self)
        names = [f"#{i} {self.pack.table['label'].iloc[i]}" for i in latents]
        return heat_figure(shares, self.pieces, names, colorscale="Oranges")

    def strip(self, latent: int) -> str:
        """The text as HTML, coloured by one latent."""
        values = self.values(latent)
        return strip_html(self.pieces, values, max(float(self.pack.table["max"].iloc[latent]), float(values.max())))

    def __repr__(self) -> str:
        rows = [f"  #{i} {r.label}  {r.value:.3g} on «{visible_token(r.token)}»" for i, r in self.top(8).iterrows()]
        line = self.tuned() or f"reconstruction error on this text (FVU): {self.fvu:.3f}"
        return "\n".join([strip_text(self.pieces), *rows, f"  {line}"])

    def tuned(self) -> str:
        """`tuning` with what it costs on this text, measured; "" where there is no other tuning."""
        return self.tuning and f"{self.tuning} It leaves {self.fvu:.1%} of this text unexplained (FVU, measured)."

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<div style="border-top:1px solid rgba(128,128,128,.3);padding:2px 0"><b>#{i}</b> <bdi>{escape(r.label)}</bdi> '
            f'<span style="opacity:.65;font-size:12px">{r.value:.3g} on '
            f"<bdi>{escape(visible_token(r.token, True))}</bdi></span>"
            f"<div>{self.strip(int(i))}</div></div>"
            for i, r in self.top(8).iterrows()
        )
        line = escape(self.tuned()) or f"reconstruction error on this text (FVU): {self.fvu:.3f}"
        return f'<div style="font-family:sans-serif;line-height:1.5;max-width:900px">{rows}<div>{line}</div></div>'


def ranked(
    view: TokenView,
    position: int | None = None,
    by: str = "surprise",
    k: int = 20,
    *,
    dense: bool = False,
    least: float = 0.0,
) -> pd.DataFrame:
    """The k foremost latents at a token, or anywhere in the text (then by their strongest token).

    Columns: value; share (of the latent's maximum in the pack); quantile (share of its firings that are weaker); surprise
    (-log10 of the share of all tokens on which it fires at least so strongly); token; label.

    Args:
        by: surprise, value or share.
        dense: whether to include latents that fire on more than a tenth of all tokens.
        least: smallest quantile to include.

    Raises:
        PackError: an unknown order, or a token that the text does not have.
    """
    if by not in ORDERS:
        raise PackError(f"Latents cannot be ranked by {by!r}; there are {', '.join(ORDERS)}.")
    if position is not None and not 0 <= position < len(view.pieces):
        raise PackError(f"There is no token {position}; this text has tokens 0 to {len(view.pieces) - 1}.")
    index, table = view.pack.index, view.pack.table
    values = view.latents.max(0) if position is None else view.latents[position]
    fired = np.flatnonzero(values > 0)
    if not dense:
        fired = fired[~index.flagged(("dense",))[fired]]
    rows = pd.DataFrame({"value": values[fired].astype(float)}, index=pd.Index(fired, name="id"))
    rows["share"] = rows["value"] / np.maximum(index.column("max")[fired], 1e-12)
    rows["quantile"] = [view.quantile(int(f), float(values[f])) for f in fired]
    stronger = np.maximum((1 - rows["quantile"]) * index.column("count")[fired], 0.5)
    rows["surprise"] = np.log10(max(view.pack.n_tokens, 1) / stronger)
    rows["token"] = [view.pieces[int(view.latents[:, f].argmax()) if position is None else position] for f in fired]
    rows["label"] = table["label"].to_numpy()[fired]
    rows = rows[rows["quantile"] >= least]
    return rows.sort_values(by, ascending=False, kind="stable").head(k)


def matrix(
    view: TokenView, k: int = 20, by: str = "surprise", *, dense: bool = False, latents: np.ndarray | None = None
) -> tuple[list[int], np.ndarray]:
    """(latents, shares of their maximum [latent token]) of the k foremost in the text, or of those given, all of which fire in
    it; in the order of their first firing."""
    if latents is None:
        latents = ranked(view, by=by, k=k, dense=dense).index.to_numpy()
    first = [int(np.flatnonzero(view.latents[:, i] > 0)[0]) for i in latents]
    latents = latents[np.argsort(first, kind="stable")]
    largest = np.maximum(view.pack.index.column("max")[latents], 1e-12)
    return latents.tolist(), (view.latents[:, latents] / largest).T
