"""Texts scored by a monitor: one row a text with its score, the threshold, whether the alarm sounds, and the loudest token."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from scope.errors import UnknownSite
from scope.escape import escape
from scope.features.exports.strip import strip_html
from scope.models.face import LanguageModel
from scope.monitor.labelled import MonitorError
from scope.monitor.monitor import Monitor
from scope.monitor.reading import activations, read_text
from scope.monitor.scorer import aggregate, token_scores
from scope.provenance import ModelId
from scope.result import Result

_AT_ONCE, _SHOWN = 64, 100


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A text's score. A text of which no token counts has none."""

    text: str
    score: float | None
    threshold: float
    alarm: bool | None
    probability: float | None
    token: str | None
    """The token with the highest score."""
    position: int | None
    """Its position; <bos> has 0."""
    cut: int = 0
    """Tokens at the end of the text that were not read."""
    pieces: tuple[str, ...] = field(default=(), repr=False)
    """Every token of the text, <bos> first."""
    values: tuple[float | None, ...] = field(default=(), repr=False)
    """The score of each token; None where a token does not count."""

    def above(self, typical: float) -> list[float]:
        """How far each token's score is above a typical one; 0 where it is below, or the token does not count."""
        return [0.0 if value is None else max(0.0, value - typical) for value in self.values]

    def loudest(self, typical: float) -> float:
        """The largest of these; never 0."""
        return max([*self.above(typical), abs(self.threshold - typical), 1e-9])

    def to_json(self) -> dict[str, Any]:
        names = ("score", "threshold", "alarm", "probability", "token", "position", "cut", "text")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class MonitorRun(Result):
    """Scored texts, as a table, a figure, a page or a file."""

    rows: tuple[Scored, ...]
    monitor: Monitor

    bars = ("text", "score")

    def to_frame(self):
        import pandas as pd

        return pd.DataFrame([row.to_json() for row in self.rows])

    def plot(self):
        """How many texts have which score, with the threshold, as a Plotly figure."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Histogram(x=[row.score for row in self.rows if row.score is not None], nbinsx=40))
        figure.add_vline(self.monitor.threshold, line_dash="dot", line_color="#888888", annotation_text="threshold")
        return figure.update_layout(template="simple_white", height=400, xaxis_title="score", yaxis_title="texts")

    def _repr_html_(self) -> str:
        m, shown = self.monitor, self.rows[:_SHOWN]
        quiet = f"Colour: how far a token's score is above {m.typical:.4g}, the median of the negative validation texts."
        largest = max((row.loudest(m.typical) for row in shown), default=1.0)
        rows = "".join(
            f'<div style="margin:10px 0"><small>{"ALARM" if row.alarm else "no alarm"} · score {_number(row.score)}'
            f"{f' · {row.cut:,} tokens at the end were not read' if row.cut else ''}</small>"
            f"{strip_html(row.pieces, row.above(m.typical), largest, row.position)}</div>"
            for row in shown
        )
        more = f"<p>{len(self.rows) - len(shown):,} further texts</p>" if len(self.rows) > len(shown) else ""
        return f"<p>{escape(self)}</p><p><small>{quiet}</small></p>{rows}{more}"

    def __str__(self) -> str:
        n = sum(bool(row.alarm) for row in self.rows)
        return f"{n:,} alarms on {len(self.rows):,} texts; threshold {self.monitor.threshold:.6g}. {self.monitor.verdict()}"


def check_model(monitor: Monitor, weights: dict[str, Tensor], model: LanguageModel, any_model: bool = False) -> str:
    """Refuse a model that the monitor was not fitted to; returns a remark, such as on another precision.

    Raises:
        MonitorError: other weights, another adapter or tokenizer (allowed with `any_model`), or another width.
        UnknownSite: the model has no such site.
    """
    known, there = ModelId.of(monitor.model), ModelId.of(model.provenance)
    sites = model.sites()
    if monitor.site not in sites:
        raise UnknownSite(f"This monitor reads {monitor.site}, which {there.name or 'this model'} does not have.")
    width = len(weights["W_enc"] if "W_enc" in weights else weights["weight"])
    if sites[monitor.site] != width:
        raise MonitorError(f"This monitor reads {width} numbers at {monitor.site}; this model has {sites[monitor.site]} there.")
    wrong = []
    if known.same_weights(there) is False:
        wrong.append(
            f"  weights: fitted to {str(known.weights_sha256)[:16]} ({known}), these are {str(there.weights_sha256)[:16]}"
        )
    if known.tokenizer_sha256 and there.tokenizer_sha256 and known.tokenizer_sha256 != there.tokenizer_sha256:
        wrong.append(f"  tokenizer: fitted to {known.tokenizer_sha256[:16]}, this is {there.tokenizer_sha256[:16]}")
    if (known.adapter or None) != (there.adapter or None):
        wrong.append(f"  adapter: fitted with {known.adapter or 'none'}, this has {there.adapter or 'none'}")
    if wrong and not any_model:
        lines = "\n".join(wrong)
        raise MonitorError(
            f"This monitor was fitted to another model, so its threshold means nothing here:\n{lines}\n"
            "  Give its model with --model, or fit it anew; --any-model scores all the same."
        )
    if wrong:
        return "The monitor was fitted to another model: its error rates do not hold here."
    if known.dtype and there.dtype and known.dtype != there.dtype:
        return (
            f"The monitor was fitted in {known.dtype}, the model runs in {there.dtype}: scores near the threshold may differ."
        )
    return ""


def score_texts(
    monitor: Monitor, weights: dict[str, Tensor], model: LanguageModel, texts: Iterable[str], at_once: int = _AT_ONCE
) -> Iterator[Scored]:
    """Each text scored, in order, a few at a time: a file of any size needs no more memory than they."""
    texts = iter(texts)
    while batch := list(islice(texts, at_once)):
        reads = [read_text(model, text, monitor.chat, monitor.context) for text in batch]
        rows: list[Scored | None] = [None] * len(batch)
        for n, acts in activations(model, monitor.site, reads):
            places, pieces = list(reads[n].places), tuple(model.words.pieces(reads[n].ids))
            common = {"text": batch[n], "threshold": monitor.threshold, "cut": reads[n].cut, "pieces": pieces}
            if not places:
                rows[n] = Scored(score=None, alarm=None, probability=None, token=None, position=None, **common)
                continue
            scores = token_scores(acts.cpu(), weights, monitor.top_k)
            score, top = float(aggregate(scores, monitor.aggregation)[0]), int(scores[:, 0].argmax())
            values = np.full(len(pieces), np.nan)
            values[places] = scores[:, 0].numpy()
            rows[n] = Scored(
                score=score,
                alarm=score > monitor.threshold,
                probability=monitor.probability_of(score),
                token=pieces[places[top]],
                position=places[top],
                values=tuple(None if np.isnan(v) else float(v) for v in values),
                **common,
            )
        yield from (row for row in rows if row is not None)


def _number(score: float | None) -> str:
    return "none: no token counts" if score is None else f"{score:.6g}"
