"""Checks whether a latent of a SigLIP's picture vectors means a word in pictures and in texts alike.

For each word the latent is chosen that tells best, on one half of the pictures, which of them the word belongs to, by the area
under the ROC curve (AUC: how often a picture with the word fires it more than one without). It is then scored on the other
half: on those pictures, and on the vectors of their texts, which SigLIP puts into the same space. Beside both stands chance:

pictures  the same choice and score with the pictures exchanged among each other, so that choosing the best of many latents is
          part of it
texts     the same latent's score with the texts exchanged

A latent that knows the word in pictures alone is one of the picture side. The two sides' vectors form two cones; a text's
vector is scaled to the length that pictures' have, and moved to their mean unless `centred` is False.
Source: of the gap between the two sides, arXiv:2203.02053.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scope.circuits.picture_match import POOLED
from scope.circuits.tables import html_table
from scope.errors import ConfigError, EditError
from scope.escape import visible
from scope.fit import check_fit
from scope.models.siglip.model import Siglip
from scope.null_seeds import null_seed
from scope.progress import OnProgress
from scope.provenance import without_folders
from scope.result import Result
from scope.sae.base import SAE
from scope.whole_files import write_whole

BATCH = 64
_FEWEST = 4  # pictures with, and without, a word in each half


@dataclass(frozen=True, kw_only=True)
class WordRow:
    """A word, the latent that tells it best in pictures, and how well that latent tells it; all AUCs on held-out pictures."""

    word: str
    n_pictures: int
    """Pictures of the held-out half whose text has the word."""
    latent: int
    pictures: float
    """AUC on the held-out pictures."""
    pictures_by_chance: float
    """95th percentile of the same with the pictures exchanged."""
    texts: float
    """AUC of the same latent on the held-out pictures' texts."""
    texts_by_chance: float
    """95th percentile of the same with the texts exchanged."""
    frequency: float
    """Share of the held-out pictures on which the latent fires."""

    @property
    def both(self) -> bool:
        """Whether it tells the word in pictures and in texts better than chance."""
        return self.pictures > self.pictures_by_chance and self.texts > self.texts_by_chance


@dataclass(frozen=True, kw_only=True)
class Modalities(Result):
    """What `modalities` found."""

    bars = ("word", "pictures", "pictures_by_chance", "texts", "texts_by_chance")

    rows: tuple[WordRow, ...]
    n_held_out: int
    cosine: float
    """Cosine of the mean picture vector and the mean text vector: how far apart the two sides are."""
    n_fires_on_texts: int
    """Latents that fire on a text at least, of those that fire on a picture (`n_fires_on_pictures`)."""
    n_fires_on_pictures: int
    n_too_long: int = 0
    """Pictures left out, since their text does not fit the text tower."""
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_frame(self):
        """A row a word, as a pandas table."""
        import pandas as pd

        return pd.DataFrame([{**asdict(row), "both": row.both} for row in self.rows])

    def to_json(self, file: str | Path | None = None) -> str:
        """As JSON text, also written to `file`."""
        text = json.dumps(without_folders(asdict(self)), indent=1, allow_nan=False)
        if file is not None:
            write_whole(Path(file), text)
        return text

    def _lines(self) -> list[str]:
        n_pictures, n_both = sum(r.pictures > r.pictures_by_chance for r in self.rows), sum(r.both for r in self.rows)
        return [
            f"{n_pictures} of {len(self.rows)} words have a latent that tells them in pictures beyond chance; {n_both} of "
            f"these latents tell the word in texts too. On {self.n_held_out} held-out pictures.",
            f"{self.n_fires_on_texts} of the {self.n_fires_on_pictures} latents that fire on a picture fire on a text; the "
            f"mean vectors of the two sides have a cosine of {self.cosine:.2f}.",
            *([f"{self.n_too_long} pictures were left out: their texts do not fit the text tower."] if self.n_too_long else []),
        ]

    def _table(self) -> list[tuple[str, ...]]:
        return [
            (visible(r.word), str(r.latent), f"{r.pictures:.2f}", f"{r.pictures_by_chance:.2f}", f"{r.texts:.2f}",
             f"{r.texts_by_chance:.2f}", f"{r.frequency:.0%}", "yes" if r.both else "")
            for r in self.rows
        ]  # fmt: skip

    def __str__(self) -> str:
        table = [_COLUMNS, *self._table()]
        widths = [max(len(row[i]) for row in table) for i in range(len(_COLUMNS))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([*lines, *self._lines()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table([], _COLUMNS, self._table(), self._lines())


_COLUMNS = ("word", "latent", "AUC pictures", "chance (95 %)", "AUC texts", "chance (95 %)", "fires on", "both")


@torch.no_grad()
def modalities(
    model: Any,
    sae: SAE,
    pictures: Sequence[Any],
    texts: Sequence[str],
    words: Sequence[str] | None = None,
    *,
    draws: int = 40,
    centred: bool = True,
    any_model: bool = False,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Modalities:
    """Which latents of an SAE of `vision.hook_pooled` mean a word in pictures and in texts.

    Args:
        pictures, texts: as many of each; text i says what picture i shows.
        words: by default those that stand in 5 to 95 of a hundred texts.
        draws: exchanges of the pictures that chance is measured on.

    Raises:
        ConfigError: no SigLIP with both towers, or an SAE of another site.
        EditError: too few pictures, or a word that stands in too few texts or nearly all.
        PictureError, TokensError: what cannot be read.
    """
    if not isinstance(model, Siglip) or model.text is None or model.vision is None or sae.site != POOLED:
        raise ConfigError(f"Pictures and texts are compared by an SAE of {POOLED} of a SigLIP; this one is of {sae.site}.")
    check_fit(model, sae, any_model, reconstructs=True)
    if len(pictures) != len(texts):
        raise EditError(f"There are {len(pictures)} pictures and {len(texts)} texts; give one text a picture.")
    fit = [i for i, text in enumerate(texts) if len(model.words.encode(text)) <= model.text.cfg.n_ctx]
    n_too_long = len(texts) - len(fit)
    pictures, texts = [pictures[i] for i in fit], [texts[i] for i in fit]
    has = {word: np.array([_has(text, word) for text in texts]) for word in _words(texts, words)}
    order = np.random.default_rng(null_seed("halves of pictures", seed)).permutation(len(texts))
    chosen_on, held_out = order[: len(order) // 2], order[len(order) // 2 :]
    unfit = [w for w, h in has.items() if min(h[half].sum() for half in (chosen_on, held_out)) < _FEWEST
             or min((~h[half]).sum() for half in (chosen_on, held_out)) < _FEWEST]  # fmt: skip
    if words is not None and unfit:
        raise EditError(f"{', '.join(unfit)}: in each half {_FEWEST} texts with the word and {_FEWEST} without are needed.")
    has = {word: h for word, h in has.items() if word not in unfit}
    if not has:
        left_out = f" ({n_too_long} are too long for the text tower)" if n_too_long else ""
        raise EditError(
            f"No word stands in enough of these {len(texts)} texts{left_out} and is missing in enough. Give more pictures."
        )
    x = _vectors(model, pictures, texts, on_progress)
    of_text = x["text"] * (x["image"].norm(dim=1).mean() / x["text"].norm(dim=1, keepdim=True))
    cosine = float(torch.cosine_similarity(x["image"].mean(0), x["text"].mean(0), dim=0))
    if centred:
        of_text = of_text - of_text.mean(0) + x["image"].mean(0)
    fires = {side: sae.encode(v.to(sae.W_enc)).float().cpu().numpy() for side, v in (("image", x["image"]), ("text", of_text))}
    rows = [_row(word, h, fires, chosen_on, held_out, draws, seed) for word, h in has.items()]
    on_picture, on_text = (fires[side].max(0) > 0 for side in ("image", "text"))
    return Modalities(
        rows=tuple(rows),
        n_held_out=len(held_out),
        cosine=cosine,
        n_fires_on_texts=int((on_picture & on_text).sum()),
        n_fires_on_pictures=int(on_picture.sum()),
        n_too_long=n_too_long,
        provenance={
            "model": dict(model.provenance),
            "dictionary": {name: sae.provenance.get(name) for name in ("path", "weights_sha256")},
            "n_pictures": len(pictures), "draws": draws, "centred": centred, "seed": seed,
        },
    )  # fmt: skip


def aucs(scores: Float[np.ndarray, "n k"], positive: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
    """For each column how often a positive scores above a negative, ties counting half; nan where there is only one kind."""
    from scipy.stats import rankdata

    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return np.full(scores.shape[1], np.nan)
    return (rankdata(scores, axis=0)[positive].sum(0) - n * (n + 1) / 2) / (n * m)


def _row(
    word: str, has: np.ndarray, fires: dict[str, np.ndarray], chosen_on: np.ndarray, held_out: np.ndarray, draws: int, seed: int
) -> WordRow:
    def best_of(image: np.ndarray) -> tuple[int, float]:
        latent = int(np.nan_to_num(aucs(image[chosen_on], has[chosen_on])).argmax())
        return latent, float(aucs(image[held_out][:, [latent]], has[held_out])[0])

    image, rng = fires["image"], np.random.default_rng(null_seed(f"exchanged pictures {word}", seed))
    latent, score = best_of(image)
    by_chance = [best_of(image[rng.permutation(len(image))])[1] for _ in range(draws)]
    on_texts, known = fires["text"][held_out][:, [latent]], has[held_out]
    exchanged = np.concatenate([on_texts[rng.permutation(len(known))] for _ in range(draws)], 1) if draws else on_texts[:, :0]
    return WordRow(
        word=word,
        n_pictures=int(has[held_out].sum()),
        latent=latent,
        pictures=score,
        pictures_by_chance=float(np.quantile(by_chance, 0.95)) if by_chance else 0.5,
        texts=float(aucs(on_texts, known)[0]),
        texts_by_chance=float(np.quantile(aucs(exchanged, known), 0.95)) if draws else 0.5,
        frequency=float((image[held_out, latent] > 0).mean()),
    )


def _vectors(
    model: Siglip, pictures: Sequence[Any], texts: Sequence[str], on_progress: OnProgress | None
) -> dict[str, Float[Tensor, "n d"]]:
    """The pooled vectors of pictures and of texts, before they are normalised. Equal texts are read once."""
    sides: dict[str, list[Tensor]] = {"image": [], "text": []}
    unique = list(dict.fromkeys(texts))
    total = len(pictures) + len(unique)
    for start in range(0, len(pictures), BATCH):
        pixels = model.to_pixels(list(pictures[start : start + BATCH]))
        sides["image"].append(model.record(pixels, [POOLED])[POOLED].reshape(len(pixels), -1))
        if on_progress:
            on_progress(min(start + BATCH, len(pictures)), total, {})
    for start in range(0, len(unique), BATCH):
        tokens = model.to_tokens(unique[start : start + BATCH])
        sides["text"].append(model.record(tokens, ["text.hook_pooled"])["text.hook_pooled"].reshape(len(tokens), -1))
        if on_progress:
            on_progress(len(pictures) + min(start + BATCH, len(unique)), total, {})
    place = {text: i for i, text in enumerate(unique)}
    image, text = (torch.cat(part).float() for part in sides.values())
    return {"image": image, "text": text[[place[t] for t in texts]]}


def _words(texts: Sequence[str], words: Sequence[str] | None) -> list[str]:
    if words is not None:
        return list(dict.fromkeys(words))
    counts: dict[str, int] = {}
    for text in texts:
        for word in set(re.findall(r"\w+", text.lower())):
            counts[word] = counts.get(word, 0) + 1
    return sorted(w for w, n in counts.items() if 0.05 * len(texts) <= n <= 0.95 * len(texts))


def _has(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word.lower())}(?!\w)", text.lower()) is not None
