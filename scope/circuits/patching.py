"""Activation patching: which activations of a clean prompt, put into a run of a corrupted one, bring its answer back.

For every site and position the corrupted prompt is run with the clean prompt's activation there, and the logit difference
between the clean answer and the corrupted one is read at the last token. `recovered` is 0 where nothing changes and 1 where the
clean run's difference is reached. Beside it stands the null: a random vector of the length of what was exchanged, added at the
same place.
Source: Meng et al., arXiv:2202.05262; on the choice of prompts and metric Heimersheim & Nanda, arXiv:2404.15255.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scope.circuits.attribution import token_pair
from scope.circuits.tables import html_table
from scope.errors import EditError
from scope.escape import visible
from scope.models.face import LanguageModel
from scope.null_seeds import generator
from scope.progress import OnProgress
from scope.result import Result, heat_figure
from scope.shapes import Tokens
from scope.sites import match_sites

_BATCH = 32
_SHOWN = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class Patching(Result):
    """What each patch does to logit(token) - logit(other); see the module."""

    clean: str
    corrupted: str
    token: str
    other: str
    pieces: tuple[str, ...]
    """Tokens of the clean prompt."""
    pieces_corrupted: tuple[str, ...]
    sites: tuple[str, ...]
    clean_difference: float
    corrupted_difference: float
    differences: Float[np.ndarray, "site pos"]
    """The logit difference with the patch; that of the corrupted run where both prompts have the same activation."""
    null: Float[np.ndarray, "site pos"]
    """Root mean square of the change by random vectors of the same length; NaN without nulls, 0 where nothing is exchanged."""

    @property
    def recovered(self) -> Float[np.ndarray, "site pos"]:
        """(patched - corrupted) / (clean - corrupted)."""
        return (self.differences - self.corrupted_difference) / self._whole

    @property
    def null_recovered(self) -> Float[np.ndarray, "site pos"]:
        """The null in the same unit."""
        return self.null / abs(self._whole)

    @property
    def _whole(self) -> float:
        return self.clean_difference - self.corrupted_difference

    def to_frame(self):
        """A row for each site and position, the largest effects first, as a pandas table."""
        import pandas as pd

        site, at = np.indices(self.differences.shape).reshape(2, -1)
        table = pd.DataFrame(
            {
                "site": np.array(self.sites)[site],
                "position": at,
                "token": np.array(self.pieces, dtype=object)[at],
                "corrupted_token": np.array(self.pieces_corrupted, dtype=object)[at],
                "logit_difference": self.differences.ravel(),
                "recovered": self.recovered.ravel(),
                "null": self.null_recovered.ravel(),
            }
        )
        return table.sort_values("recovered", key=np.abs, ascending=False, kind="stable", ignore_index=True)

    def plot(self):
        """What is recovered by site and position, as a Plotly heat map; the first layer is below."""
        names = [a if a == b else f"{a} / {b}" for a, b in zip(self.pieces, self.pieces_corrupted, strict=True)]
        largest = max(1.0, float(np.abs(self.recovered).max()))
        return heat_figure(self.recovered, names, self.sites, colorscale="RdBu", zmin=-largest, zmax=largest)

    def _head(self) -> list[str]:
        return [
            f"logit {visible(self.token)!r} - {visible(self.other)!r}: clean {self.clean_difference:+.3f} after "
            f"{visible(self.clean)!r}, corrupted {self.corrupted_difference:+.3f} after {visible(self.corrupted)!r}.",
            "recovered: 0 as corrupted, 1 as clean; null: a random vector as long as what was exchanged.",
        ]

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (r.site, str(r.position), f"{r.recovered:+.2f}", f"{r.null:.2f}", visible(f"{r.token} / {r.corrupted_token}"))
            for r in self.to_frame().head(_SHOWN).itertuples()
        ]

    _COLUMNS = ("site", "position", "recovered", "null", "clean / corrupted token")

    def __str__(self) -> str:
        rows = [self._COLUMNS, *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self._COLUMNS))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*self._head(), *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self._head(), self._COLUMNS, self._rows(), [])


@torch.no_grad()
def patch(
    model: LanguageModel,
    clean: str,
    corrupted: str,
    token: str | int | None = None,
    other: str | int | None = None,
    *,
    sites: Iterable[str] | str | None = None,
    nulls: int = 4,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Patching:
    """Put the clean prompt's activations into the corrupted prompt's run, one site and position at a time.

    `token` and `other` make the logit difference: by default the likeliest token after the clean prompt and after the corrupted
    one. `sites` are by default the streams after all blocks, or patterns such as "blocks.*.hook_mlp_out". `nulls` random
    vectors are tried at each place.

    Raises:
        EditError: an empty prompt, prompts of unequal numbers of tokens, or such as the model answers alike.
        UnknownSite: no site matches. TokensError: a token that is several.
    """
    if not clean.strip() or not corrupted.strip():
        raise EditError("A prompt is empty. Give a clean and a corrupted prompt.")
    right, wrong = model.to_tokens(clean), model.to_tokens(corrupted)
    pieces = [tuple(model.to_str_tokens(tokens[0])) for tokens in (right, wrong)]
    if right.shape != wrong.shape:
        raise EditError(
            f"The prompts have {right.shape[1]} and {wrong.shape[1]} tokens; patching by position needs equally many.\n"
            f"  clean:     {'|'.join(pieces[0])}\n  corrupted: {'|'.join(pieces[1])}"
        )
    likely = [_last(model, tokens)[0].log_softmax(-1) for tokens in (right, wrong)]
    wanted, against = token_pair(model, *likely, token, other)
    start = [float(log_p[wanted] - log_p[against]) for log_p in likely]
    if abs(start[0] - start[1]) < 1e-6:
        raise EditError("Both prompts give the same logit difference, so there is nothing to recover. Give other prompts.")
    matched = match_sites("blocks.*.hook_resid_post" if sites is None else sites, model.sites())
    source, target = (model.record(tokens, matched) for tokens in (right, wrong))
    shape = (len(matched), right.shape[1])
    differences, null = np.full(shape, start[1]), np.full(shape, 0.0 if nulls else np.nan)
    draw = generator("random vectors in place of clean activations", seed)
    for number, site in enumerate(matched):
        x, y = source[site][0], target[site][0]
        change = x.float() - y.float()
        places = [at for at in range(shape[1]) if bool(change[at].any())]
        rows = [(at, x[at]) for at in places]
        for at in places:
            noise = torch.randn(nulls, change.shape[-1], generator=draw).to(change)
            rows += [(at, (y[at].float() + one / one.norm() * change[at].norm()).to(y)) for one in noise]
        found = _differences(model, wrong, site, rows, wanted, against)
        differences[number, places] = found[: len(places)]
        if nulls:
            by_chance = np.asarray(found[len(places) :]).reshape(len(places), nulls) - start[1]
            null[number, places] = np.sqrt((by_chance**2).mean(1))
        if on_progress:
            on_progress(number + 1, len(matched), {})
    return Patching(
        clean=clean,
        corrupted=corrupted,
        token=model.words.pieces([wanted])[0],
        other=model.words.pieces([against])[0],
        pieces=pieces[0],
        pieces_corrupted=pieces[1],
        sites=tuple(matched),
        clean_difference=start[0],
        corrupted_difference=start[1],
        differences=differences,
        null=null,
    )


def _last(model: LanguageModel, tokens: Tokens) -> Float[Tensor, "batch d_vocab"]:
    """Logits after the last token."""
    return model.logits_of(model(tokens, stop_at_layer=model.cfg.n_layers)[:, -1:])[:, 0].float()


def _differences(
    model: LanguageModel, tokens: Tokens, site: str, rows: list[tuple[int, Tensor]], wanted: int, against: int
) -> list[float]:
    """The logit difference with each of these vectors at its position of the site."""
    found: list[float] = []
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        with model.hooks([(site, _setting(batch))]):
            logits = _last(model, tokens.expand(len(batch), -1))
        found += (logits[:, wanted] - logits[:, against]).tolist()
    return found


def _setting(rows: list[tuple[int, Tensor]]) -> Callable:
    def hook(x: Tensor, hook) -> Tensor:
        x = x.clone()
        for i, (at, vector) in enumerate(rows):
            x[i, at] = vector.to(x).reshape(x[i, at].shape)
        return x

    return hook
