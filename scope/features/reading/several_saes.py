"""One text read with several dictionaries of one model: their latents side by side, and the FVU of each."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from scope.errors import PackError
from scope.features.reading.view import TokenView, matrix, ranked


def require_same_text(views: Mapping[str, TokenView]) -> None:
    """Refuse readings of different tokens, whose places cannot be laid side by side.

    Raises:
        PackError: readings of different texts, or by different tokenizers.
    """
    (first, one), *others = views.items()
    strange = next((name for name, view in others if view.ids != one.ids), None)
    if strange is not None:
        raise PackError(f"{first} and {strange} did not read the same tokens, so their latents cannot be laid side by side.")


def overview(views: Mapping[str, TokenView], position: int | None = None) -> pd.DataFrame:
    """A row a dictionary: site, fires (latents per token, mean over the counted tokens, or at a position), fvu there.

    Raises:
        PackError: see `require_same_text`.
    """
    require_same_text(views)
    rows = []
    for name, view in views.items():
        counts = (view.latents > 0).sum(1)
        fires = float(counts[view.counted].mean()) if view.counted.any() else 0.0
        fires, fvu = (fires, view.fvu) if position is None else (float(counts[position]), float(view.fvu_at[position]))
        rows.append({"dictionary": name, "site": view.pack.site, "latents": view.pack.d_sae, "fires": fires, "fvu": fvu})
    return pd.DataFrame(rows)


def ranked_together(
    views: Mapping[str, TokenView],
    position: int | None = None,
    by: str = "surprise",
    k: int = 20,
    *,
    dense: bool = False,
    least: float = 0.0,
) -> pd.DataFrame:
    """The k foremost latents of all dictionaries, with the columns of `ranked` beside "dictionary" and "latent".

    `surprise` is in one unit for all dictionaries, and `share` is of each latent's own maximum; `value` is in each dictionary's
    own unit, so an order by it says little where there are several.

    Raises:
        PackError: see `require_same_text` and `ranked`.
    """
    require_same_text(views)
    frames = [
        ranked(view, position, by, k, dense=dense, least=least).rename_axis("latent").reset_index().assign(dictionary=name)
        for name, view in views.items()
    ]
    return foremost(frames, by, k)


def foremost(frames: list[pd.DataFrame], by: str, k: int) -> pd.DataFrame:
    """The k rows of several tables with the largest value, either way, of a column."""
    filled = [frame for frame in frames if len(frame)] or frames[:1]
    rows = pd.concat(filled, ignore_index=True)
    return rows.sort_values(by, key=np.abs, ascending=False, kind="stable").head(k).reset_index(drop=True)


def matrix_together(
    views: Mapping[str, TokenView], k: int = 20, by: str = "surprise", *, dense: bool = False
) -> tuple[list[tuple[str, int]], np.ndarray]:
    """((dictionary, latent) of the k foremost, shares of their maximum [latent token]), dictionary by dictionary in the order
    given, within one by first firing.

    Raises:
        PackError: see `ranked_together`.
    """
    rows, names, parts = ranked_together(views, by=by, k=k, dense=dense), [], []
    for name, view in views.items():
        latents = rows.loc[rows["dictionary"] == name, "latent"].to_numpy(int)
        found, shares = matrix(view, by=by, dense=dense, latents=latents)
        names += [(name, latent) for latent in found]
        parts.append(shares)
    return names, np.concatenate(parts)
