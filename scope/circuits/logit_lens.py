"""The logit lens: what the residual stream after each block would predict if it went straight to the unembedding.

The stream passes the model's own final norm (and soft cap), nothing is trained. Early layers need not speak the vocabulary of
the last one, so read what a layer promotes as a lower bound on what it knows. The last row is the model's own prediction.
Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from scope.circuits.tables import html_table
from scope.errors import ConfigError, TokensError
from scope.escape import visible
from scope.models.face import LanguageModel
from scope.result import Result, heat_figure
from scope.sites import match_sites
from scope.texts import for_each_text


@dataclass(frozen=True, kw_only=True, eq=False)
class LogitLens(Result):
    """The likeliest next tokens by site and position, and how likely the token that does follow is there."""

    text: str
    pieces: tuple[str, ...]
    sites: tuple[str, ...]
    tokens: tuple[tuple[tuple[str, ...], ...], ...]
    """[site position k], the likeliest first."""
    probabilities: Float[np.ndarray, "site pos k"]
    p_next: Float[np.ndarray, "site pos"]
    """Probability of the token that follows in the text; NaN at its end."""
    rank_next: Int[np.ndarray, "site pos"]
    """How many tokens are likelier than the one that follows; -1 at the end."""

    def to_frame(self):
        """A row for each site, position and predicted token, as a pandas table."""
        import pandas as pd

        rows = [
            {
                "site": site,
                "position": at,
                "token": self.pieces[at],
                "rank": rank,
                "predicted": predicted,
                "probability": float(self.probabilities[i, at, rank]),
                "p_next": float(self.p_next[i, at]),
                "rank_next": int(self.rank_next[i, at]),
            }
            for i, site in enumerate(self.sites)
            for at in range(len(self.pieces))
            for rank, predicted in enumerate(self.tokens[i][at])
        ]
        return pd.DataFrame(rows)

    def plot(self):
        """The likeliest token in each cell, coloured by its probability, as a Plotly heat map; the first layer is below."""
        return heat_figure(
            self.probabilities[:, :, 0],
            self.pieces,
            self.sites,
            [[tokens[0] for tokens in row] for row in self.tokens],
            colorscale="Blues",
            zmin=0,
            zmax=1,
        )

    def _rows(self) -> list[tuple[str, ...]]:
        """(site, the likeliest next tokens at the text's end with their probabilities), the last site first."""
        rows = []
        for i in reversed(range(len(self.sites))):
            pairs = zip(self.tokens[i][-1], self.probabilities[i, -1], strict=True)
            rows.append((self.sites[i], "  ".join(f"{visible(token)!r} {p:.2f}" for token, p in pairs)))
        return rows

    def __str__(self) -> str:
        width = max(map(len, self.sites))
        return "\n".join(
            [f"Next token after {visible(self.text)!r}, read at each site", *(f"{s:<{width}}  {t}" for s, t in self._rows())]
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table([f"Next token after {visible(self.text)!r}, read at each site"], ("site", "tokens"), self._rows(), [])


@torch.no_grad()
def logit_lens(
    model: LanguageModel, text: str | Iterable[str], sites: Iterable[str] | str | None = None, k: int = 5
) -> LogitLens | list[LogitLens]:
    """What the stream at each site would predict after every token of a text; for several texts, a list.

    `sites` are by default the streams after all blocks, or patterns such as "blocks.*.hook_resid_mid".

    Raises:
        ConfigError: a site that is no part of the residual stream. TokensError: no text, or more than the context holds.
    """
    wanted = residual_sites(model, sites)

    def read(one: str) -> LogitLens:
        if not one:
            raise TokensError("There is no text to read: it is empty. Give at least a word.")
        tokens = model.to_tokens(one)
        streams = model.record(tokens, wanted)
        follows = tokens[0, 1:]
        best, p_next, rank_next = [], [], []
        for site in wanted:
            log_p = model.logits_of(streams[site])[0].float().log_softmax(-1)
            best.append(log_p.exp().topk(min(k, log_p.shape[-1])))
            known = log_p[:-1].gather(1, follows[:, None])
            p_next.append([*known[:, 0].exp().tolist(), float("nan")])
            rank_next.append([*(log_p[:-1] > known).sum(1).tolist(), -1])
        return LogitLens(
            text=one,
            pieces=tuple(model.to_str_tokens(tokens[0])),
            sites=tuple(wanted),
            tokens=tuple(tuple(tuple(model.words.pieces(row)) for row in top.indices.tolist()) for top in best),
            probabilities=np.array([top.values.cpu().numpy() for top in best]),
            p_next=np.array(p_next),
            rank_next=np.array(rank_next),
        )

    return for_each_text(text, read, TokensError)


def residual_sites(model: LanguageModel, sites: Iterable[str] | str | None) -> list[str]:
    """Sites of the residual stream: the streams after all blocks, or those that match.

    Raises:
        UnknownSite: no site matches. ConfigError: one that is no part of the residual stream.
    """
    matched = match_sites("blocks.*.hook_resid_post" if sites is None else sites, model.sites())
    other = next((site for site in matched if not site.rpartition(".")[2].startswith("hook_resid")), None)
    if other is not None:
        raise ConfigError(f"{other} is not the residual stream, which the unembedding reads. Give blocks.*.hook_resid_post.")
    return matched
