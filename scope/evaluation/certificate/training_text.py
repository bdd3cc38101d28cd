"""The text on which a certificate measures an SAE: some of what it was trained on, where that is still on this machine.

L0 and FVU that an SAE declares are those of its training's text. On other text, such as English for an SAE that was trained on
Arabic, they say nothing against it.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scope.activations.corpus.contexts import Packer, maker_of
from scope.activations.corpus.infill import FimMaker, FimShares
from scope.activations.corpus.inputs import Inputs
from scope.activations.corpus.roles import RULES
from scope.activations.corpus.sources import open_corpus
from scope.activations.read.store import ActivationStore
from scope.errors import ConfigError, ScopeError
from scope.models.face import LanguageModel
from scope.sae.base import SAE
from scope.sae.claims import Provenance, TextFrom
from scope.shapes import Tokens

TOKENS, CONTEXT = 2048, 128
"""Tokens of the check, and tokens of a context."""

_FEWEST = 256  # tokens of a training's text that are worth a measurement


@dataclass(frozen=True)
class Text:
    """Contexts to measure an SAE on; without `tokens`, the bundled text."""

    tokens: Tokens | Inputs | None = None
    """Token ids, or inputs whose rows have roles."""

    place: str = ""
    """The recording or corpus that the tokens are from."""

    missing: str = ""
    """What the SAE was trained on, where that is another text and not to be read here."""

    instead: str = "the bundled English text"
    """What it is measured on then."""

    rules: tuple[str, ...] = RULES
    """Which rows of inputs are left out."""

    @property
    def unit(self) -> str:
        """What a row is called."""
        return "rows" if isinstance(self.tokens, Inputs) else "tokens"


def training_text(model: LanguageModel, sae: SAE) -> Text:
    """Some of the text that the SAE was trained on, if its provenance leads to it; else the bundled text."""
    provenance = Provenance.of(sae.provenance)
    recording, source = provenance.recording or {}, provenance.text_from or TextFrom()
    corpus = recording.get("corpus")
    if not isinstance(corpus, Mapping) or model.tokenizer is None:  # trained elsewhere, or a model without text
        return Text()
    kind, plain = corpus.get("kind"), not source.fim and "fim" not in recording
    if plain and kind == "bundled":
        return Text()
    tokens = None
    with contextlib.suppress(ScopeError, OSError):
        tokens = _recorded(model, corpus, source) if source.recording else _read(model, corpus, source)
    if tokens is not None:
        return Text(tokens, source.recording or str(source.corpus))
    name = str(corpus.get("name") or kind or "another corpus") + ("" if plain else " as infilling examples")
    return Text(missing="" if plain and kind == "docs" else name)  # the bundled text is documentation too


def _recorded(model: LanguageModel, corpus: Mapping[str, Any], source: TextFrom) -> Tokens | None:
    """The beginnings of a recording's first contexts; None if it is another recording by now, or not of text alone."""
    if not Path(source.recording).is_dir():
        return None
    store = ActivationStore.open(source.recording)
    if store.manifest.corpus != corpus or store.manifest.tokenizer.get("sha256") != model.words.sha256:
        return None
    return _some(model, store.reader(0).small("tokens"))


def _read(model: LanguageModel, corpus: Mapping[str, Any], source: TextFrom) -> Tokens | None:
    """The first contexts of a corpus on this machine; None if it is another by now, or one of the hub."""
    if source.corpus is None or corpus.get("kind") == "hub":
        return None
    opened = open_corpus(source.corpus, source.text_field)
    if json.loads(json.dumps(opened.identity)) != corpus:
        return None
    words = FimMaker(model.words, FimShares.parse(source.fim), source.fim_seed) if source.fim else model.words
    context = min(CONTEXT, model.cfg.n_ctx)
    return _some(model, maker_of(words).stream(opened.documents(0), context).take(4 * TOKENS // context).tokens)


def _some(model: LanguageModel, contexts: Any) -> Tokens | None:
    """As many of the contexts as hold `TOKENS` tokens, each cut to `CONTEXT`; None if they hold hardly any, or no text."""
    tokens = torch.from_numpy(contexts[:, :CONTEXT].copy()).long()
    held = (tokens != model.cfg.pad).sum(1).cumsum(0)
    if not len(tokens) or held[-1] < _FEWEST or bool((tokens < 0).any()):
        return None
    return tokens[: int((held < TOKENS).sum()) + 1]


def sample_text(model: LanguageModel, n_tokens: int = TOKENS) -> Tokens:
    """Contexts of at least so many tokens of the bundled text.

    Raises:
        ConfigError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise ConfigError("The model has no tokenizer, so a certificate needs tokens: certify(model, sae, tokens=...).")
    context = min(CONTEXT, model.cfg.n_ctx)
    packed = Packer(open_corpus("bundled").documents(0), model.tokenizer, context).take(-(-n_tokens // (context - 1)))
    return torch.from_numpy(packed.tokens).long()
