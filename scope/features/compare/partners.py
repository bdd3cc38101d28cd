"""Latents of two SAEs of two models, matched by what they do on the same text: correlation of activations, beside chance.

Two models cut a text into other tokens, so activations are compared by words: a latent's value on a word is its largest over
the tokens of the word. Words that no latent of either SAE knows count as zeros, as they must.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from scope.errors import PackError, TokensError
from scope.fit import check_fit
from scope.models.face import LanguageModel
from scope.models.text.characters import characters
from scope.null_seeds import null_seed
from scope.progress import OnProgress
from scope.result import Result
from scope.sae.base import SAE
from scope.typed_json import read_typed
from scope.whole_files import beside, write_json

Spans = list[tuple[int, int]]
Correlations = Float[np.ndarray, " latent"]
Partners = Int[np.ndarray, " latent"]

FEWEST_WORDS = 10
"""Words that a latent must fire on to be matched: the correlation of fewer says nothing."""

SCHEMA = 1
"""Of saved matches."""

_PIECE_WORDS = 60
_BLOCK = 512


@dataclass(frozen=True)
class Encoder:
    """An SAE with the model that it reads."""

    model: LanguageModel
    sae: SAE


@dataclass(frozen=True)
class WordActivations:
    """`values` is a scipy CSR matrix [word latent]; `documents` says for each word which document it is of."""

    values: Any
    documents: np.ndarray

    def reordered(self, order: np.ndarray) -> "WordActivations":
        return WordActivations(self.values[order], self.documents)


@dataclass(frozen=True, kw_only=True)
class Match(Result):
    """For each latent of A that fires on enough words, the latent of B that it correlates with most.

    `by_chance` is the same with B's documents exchanged among each other. A latent has a partner where its correlation exceeds
    `threshold`, the 99th percentile of what one such exchange gives; `share_by_chance` is the share that exceeds it in another.
    """

    latents: Partners
    partners: Partners
    correlation: Correlations
    by_chance: Correlations
    mutual: np.ndarray
    """Whether the partner's own best match is this latent."""

    threshold: float
    share: float
    share_by_chance: float
    ceiling: float | None
    """The share with a partner in a third SAE, such as another seed on the same model; None if none was given."""

    words: int
    documents: int
    provenance: dict[str, Any] = field(default_factory=dict)
    """Of `a`, `b` and `ceiling`, the SAE (`DictionaryId`) with its model; the text, and the seed of the exchanges."""

    def _write(self, file: Path) -> None:
        """Write it as JSON; `Match.load` reads it, and the app shows those in the folder `matches_beside` a pack."""
        value = {"schema": SCHEMA} | {f.name: getattr(self, f.name) for f in fields(self)}
        write_json(file, {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in value.items()}, indent=None)

    def plot(self):
        """How many latents have which best correlation, beside the same with documents exchanged, as a Plotly figure."""
        import plotly.graph_objects as go

        figure = go.Figure(
            [
                go.Histogram(x=values.tolist(), name=name, opacity=0.6, xbins={"start": -1, "end": 1, "size": 0.05})
                for name, values in (("best correlation", self.correlation), ("documents exchanged", self.by_chance))
            ]
        )
        figure.add_vline(self.threshold, line_dash="dot", line_color="#888888")
        return figure.update_layout(barmode="overlay", template="simple_white", height=400, xaxis_title="correlation")

    @classmethod
    def load(cls, file: Path) -> "Match":
        """A match that `save` wrote.

        Raises:
            PackError: it cannot be read, or is none.
        """
        way_out = "Make it again with scope match."
        saved = read_typed(file, SavedMatch, PackError, way_out)
        columns = (saved.latents, saved.partners, saved.correlation, saved.by_chance, saved.mutual)
        if saved.schema != SCHEMA or len({len(column) for column in columns}) != 1 or not saved.latents:
            raise PackError(f"{file} holds no match of latents of schema {SCHEMA}. {way_out}")
        values = {f.name: getattr(saved, f.name) for f in fields(cls)}
        return cls(**{k: np.array(v) if isinstance(v, list) else v for k, v in values.items()})

    def to_frame(self):
        """A row per latent of A, the best correlated first."""
        import pandas as pd

        columns = {
            "latent": self.latents,
            "partner": self.partners,
            "correlation": self.correlation,
            "by_chance": self.by_chance,
            "mutual": self.mutual,
            "has_partner": self.correlation > self.threshold,
        }
        return pd.DataFrame(columns).sort_values("correlation", ascending=False, ignore_index=True)

    def __str__(self) -> str:
        ceiling = "" if self.ceiling is None else f" Ceiling, a third SAE: {self.ceiling:.0%}."
        return (
            f"{self.share:.0%} of {len(self.latents):,} latents have a partner: a correlation above {self.threshold:.2f} on "
            f"{self.words:,} words of {self.documents:,} documents. Documents exchanged: {self.share_by_chance:.0%}.{ceiling}\n"
            f"Median best correlation {np.median(self.correlation):.2f}; documents exchanged {np.median(self.by_chance):.2f}. "
            f"{self.mutual.mean():.0%} are each other's best."
        )


@dataclass(frozen=True, kw_only=True)
class SavedMatch:
    """The fields of a saved `Match`."""

    schema: int
    latents: list[int]
    partners: list[int]
    correlation: list[float]
    by_chance: list[float]
    mutual: list[bool]
    threshold: float
    share: float
    share_by_chance: float
    ceiling: float | None
    words: int
    documents: int
    provenance: dict[str, Any]


def matches_beside(pack: str | Path) -> Path:
    """Where the matches of a pack's SAE are saved: beside it, as runs/demo/pack.matches."""
    return beside(Path(pack), ".matches")


def match(
    a: Encoder,
    b: Encoder,
    texts: Iterable[str],
    ceiling: Encoder | None = None,
    words: int = 20_000,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Match:
    """Match the latents of two SAEs on the first `words` words of some texts.

    Raises:
        TokensError: fewer than two documents, or no latent of A fires on enough words.
        DictionaryError: an SAE does not fit its model.
    """
    encoders = [a, b, *([ceiling] if ceiling else [])]
    for encoder in encoders:
        check_fit(encoder.model, encoder.sae)
    pieces = _pieces(texts, words, [encoder.model for encoder in encoders])
    n_documents = len({document for document, _, _ in pieces})
    if n_documents < 2:
        raise TokensError("Latents are matched on at least two documents, since chance is measured by exchanging them.")
    read: list[WordActivations] = []
    for number, encoder in enumerate(encoders):

        def step(done: int, total: int, at: int = number) -> None:
            if on_progress:
                on_progress(at * total + done, len(encoders) * total, {})

        read.append(word_activations(encoder, pieces, step))
    first, second, *third = read
    n_words = len(first.documents)
    fires = np.asarray((first.values > 0).sum(0)).ravel()
    latents = np.flatnonzero(fires >= FEWEST_WORDS)
    if not len(latents):
        raise TokensError(f"No latent of the first SAE fires on {FEWEST_WORDS} of {n_words} words. Give more text.")
    mine = first.values[:, latents]
    correlation, partners = best_correlations(mine, second.values)
    _, home = best_correlations(second.values, mine)
    rng = np.random.default_rng(null_seed("partners", seed))
    shuffled = [second.reordered(exchanged(first.documents, rng)).values for _ in range(2)]
    chance, other_chance = (best_correlations(mine, values)[0] for values in shuffled)
    threshold = float(np.quantile(chance, 0.99))
    above = None
    if third:
        own = best_correlations(mine, third[0].reordered(exchanged(first.documents, rng)).values)[0]
        reached = best_correlations(mine, third[0].values)[0]
        above = float((reached > np.quantile(own, 0.99)).mean())
    return Match(
        latents=latents,
        partners=partners,
        correlation=correlation,
        by_chance=other_chance,
        mutual=home[partners] == np.arange(len(latents)),
        threshold=threshold,
        share=float((correlation > threshold).mean()),
        share_by_chance=float((other_chance > threshold).mean()),
        ceiling=above,
        words=n_words,
        documents=n_documents,
    )


def _pieces(texts: Iterable[str], words: int, models: Sequence[LanguageModel]) -> list[tuple[int, str, Spans]]:
    """(document, text, where its words lie) of pieces that fit the context of every model."""
    pieces: list[tuple[int, str, Spans]] = []
    n = 0
    for document, text in enumerate(texts):
        spans = [match.span() for match in re.finditer(r"\S+", text)]
        at = 0
        while at < len(spans) and n < words:
            length = min(_PIECE_WORDS, len(spans) - at, words - n)
            while True:
                part = text[spans[at][0] : spans[at + length - 1][1]]
                if all(len(model.words.encode(part)) <= model.cfg.n_ctx for model in models):
                    break
                if length == 1:
                    part = ""  # one word that no context holds, such as a line of data
                    break
                length //= 2
            if part:
                start = spans[at][0]
                pieces.append((document, part, [(x - start, y - start) for x, y in spans[at : at + length]]))
            at, n = at + length, n + length
        if n >= words:
            break
    return pieces


@torch.no_grad()
def word_activations(encoder: Encoder, pieces: Sequence[tuple[int, str, Spans]], on_progress: Any = None) -> WordActivations:
    """The latents' values on every word of the pieces.

    Raises:
        TokensError: the tokens of a piece do not spell its text.
    """
    from scipy import sparse

    model, sae = encoder.model, encoder.sae
    blocks, documents = [], []
    for number, (document, text, spans) in enumerate(pieces):
        ids = model.words.encode(text)
        owner = _word_of(model, ids, text, spans)
        acts = model.record(torch.tensor([ids], device=model.device), [sae.site])[sae.site].flatten(0, 1)
        latents = sae.encode(acts.flatten(1).float())
        values = latents.new_zeros(len(spans), latents.shape[1])
        kept = torch.tensor(owner) >= 0
        where = torch.tensor(owner)[kept][:, None].expand(-1, latents.shape[1]).to(latents.device)
        values.scatter_reduce_(0, where, latents[kept], "amax")
        blocks.append(sparse.csr_matrix(values.float().cpu().numpy()))
        documents += [document] * len(spans)
        if on_progress:
            on_progress(number + 1, len(pieces))
    return WordActivations(sparse.vstack(blocks).tocsr(), np.array(documents))


def _word_of(model: LanguageModel, ids: list[int], text: str, spans: Spans) -> list[int]:
    """For each token the word that most of it lies in, -1 for <bos> and white space."""
    pieces = model.words.pieces(ids)
    first = 1 if ids and ids[0] == model.cfg.bos else 0
    owner, at = [-1] * len(ids), 0
    word_at = np.full(len(text) + 1, -1)
    for number, (start, stop) in enumerate(spans):
        word_at[start:stop] = number
    joined = characters(pieces[first:])
    if "".join(piece for _, _, piece in joined) != text:
        raise TokensError(f"The tokens of {text[:40]!r} do not spell it, so its words cannot be found in them.")
    for start, stop, piece in joined:
        within = word_at[at : at + len(piece)]
        within = within[within >= 0]
        if len(within):
            for token in range(start, stop):
                owner[first + token] = int(within[-1])
        at += len(piece)
    return owner


def exchanged(documents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order of the words in which every document stands where another was; a shorter one is repeated to fill its place."""
    names = np.unique(documents)
    shift = rng.permutation(len(names))
    place = dict(zip(names[shift], names[np.roll(shift, 1)], strict=True))  # one cycle, so that none stays
    rows = {name: np.flatnonzero(documents == name) for name in names}
    order = np.empty(len(documents), np.int64)
    for name in names:
        source = rows[place[name]]
        order[rows[name]] = np.resize(source, len(rows[name]))
    return order


def best_correlations(a: Any, b: Any) -> tuple[Correlations, Partners]:
    """For each column of a sparse [word latent] matrix, the largest Pearson correlation with a column of another, and which."""
    n = a.shape[0]
    mean_a, mean_b = (np.asarray(x.mean(0)).ravel() for x in (a, b))
    spread_a, spread_b = (
        np.sqrt(np.maximum(np.asarray(x.multiply(x).mean(0)).ravel() - mean**2, 0)) for x, mean in ((a, mean_a), (b, mean_b))
    )
    best, which = np.zeros(a.shape[1]), np.full(a.shape[1], -1)
    alive = spread_b > 0
    columns = a.tocsc()
    for start in range(0, a.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        product = np.asarray((columns[:, block].T @ b).todense()) / n - np.outer(mean_a[block], mean_b)
        scale = np.outer(spread_a[block], spread_b)
        correlations = np.divide(product, scale, out=np.full(product.shape, -1.0), where=(scale > 0) & alive[None])
        which[block] = correlations.argmax(1)
        best[block] = correlations.max(1)
    return best, which
