"""Latents on one picture and the text beside it, and what the model says of it, by the model and the SAE of the pack."""

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import streamlit as st
from scope.app.kit.pictures import place_name
from scope.app.serve import models, pack_facts

from scope.errors import EditError
from scope.features.face import Pack

_KEPT = 8
LONGEST_ANSWER = 32
"""Tokens of an answer at most."""


@dataclass(frozen=True, eq=False)
class PictureReading:
    """A picture read with a pack's model and SAE, as the pack's own pictures were."""

    view: Any
    """A `PictureView`: latents at each patch and, in a language model's trunk, at each token of the question and the answer."""
    grid: tuple[int, int]
    question: str
    answer: str
    answer_ids: tuple[int, ...]
    answer_pieces: tuple[str, ...]
    says: bool
    """Whether the model says anything of pictures."""
    matches: bool
    """Whether the model gives a logit to pictures and texts."""

    picture = property(lambda self: self.view.picture)
    boxes = property(lambda self: self.view.boxes)
    n_patches = property(lambda self: self.view.n_patches)

    @property
    def key(self) -> str:
        """A name of what was read, for the keys of controls and of results that are cached."""
        return f"{self.view.pack.folder} {zlib.crc32(self.picture.tobytes())} {self.picture.size} {self.question}"

    def heat(self, latent: int) -> np.ndarray:
        """[patch], a latent's activation at each patch."""
        return self.view.patches(latent)


def asks(store: Pack) -> bool:
    """Whether the pack's model is asked something about a picture, as far as its recording says so."""
    known = pack_facts.recorded_rows(store)
    return "prompt" in known or "image_token" in known or store.site.startswith("projector.")


def reading(store: Pack, picture: Any, question: str) -> PictureReading:
    """The reading of a picture; the last few are cached for this session.

    Raises:
        ScopeError: the model or the SAE cannot be loaded, or the picture or the question cannot be read.
    """
    key = (str(store.folder), id(store), zlib.crc32(picture.tobytes()), picture.size, question)
    kept = st.session_state.setdefault("picture readings", {})
    if key not in kept:
        with models.in_turn(store) as (model, sae), st.spinner("Reading"):
            kept[key] = read(store, picture, question, model, sae)
        while len(kept) > _KEPT:
            del kept[next(iter(kept))]
    return kept[key]


def read(store: Pack, picture: Any, question: str, model: Any, sae: Any) -> PictureReading:
    """One picture with its question read as the pack's were, and answered where the model says words."""
    from scope.models.paligemma.model import PaliGemma  # need torch, which browsing does without
    from scope.models.siglip.model import Siglip

    ids, answer, says = (), "", isinstance(model, PaliGemma) and model.has_unembedding
    if says:
        ids, answer = _answer(model, picture, question)
    view = store.read_picture(picture, model, sae, question or None, answer or None)
    n = store.manifest.pictures.grid
    names = ["the whole picture"] if n == 1 else [place_name(patch, n) for patch in range(n * n)]
    view = replace(view, pieces=[*names, *view.pieces[len(names) :]])
    words = tuple(model.words.pieces(list(ids))) if ids else ()
    matches = isinstance(model, Siglip) and model.text is not None and model.tokenizer is not None
    return PictureReading(view, (n, n), question, answer, ids, words, says, matches)


def _answer(model: Any, picture: Any, question: str) -> tuple[tuple[int, ...], str]:
    """The likeliest answer, token by token.

    Raises:
        EditError: nothing is asked.
    """
    from scope.models.paligemma.pictured import with_picture
    from scope.models.text.generate import generate
    from scope.models.text.sampling_config import SamplingConfig

    if not question.strip():
        raise EditError("The question is empty. Ask something, or give a task such as “caption en”.")
    sampling = SamplingConfig(max_new_tokens=LONGEST_ANSWER, temperature=0.0, repetition_penalty=1.0)
    (said,) = generate(with_picture(model, picture), question, sampling)
    return said.new_ids, model.words.decode(list(said.new_ids))
