"""The activations that a pack is made from: a recording, or a model that runs on given tokens."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope.activations.corpus.inputs import NO_TOKEN, counted_tokens
from scope.activations.corpus.roles import Role
from scope.activations.read.store import ActivationStore
from scope.errors import ConfigError, PackError, TokensError, UnknownSite
from scope.models.face import LanguageModel
from scope.provenance import ModelId


@dataclass(frozen=True, eq=False)
class Source:
    """Contexts of tokens, which of their positions count, and the activations there."""

    contexts: np.ndarray
    """Token ids [n_contexts context]."""
    keep: np.ndarray
    """bool [n_contexts context]: which rows count; <bos>, control tokens and padding do not."""
    read: Callable[[int, int], Tensor]
    """(a, b) -> float32 [counted positions of contexts a to b, width], in order of position."""
    documents: np.ndarray
    document_names: list[str]
    vocab: list[str]
    """The text of every id in `contexts`."""
    described: dict[str, Any]
    """What these activations are, for the manifest: equal descriptions mean equal activations."""

    @property
    def n_tokens(self) -> int:
        return int(self.keep.sum())


def from_recording(store: ActivationStore, site: str, model: LanguageModel, tokens: int | None = None) -> Source:
    """The activations of a recording at a site, up to `tokens` of them, in whole contexts.

    Raises:
        UnknownSite: the recording does not hold the site.
        PackError: the recording was made with other weights than the model's.
    """
    if site not in store.sites:
        raise UnknownSite(
            f"The recording holds no activations of {site}.\n  It holds: {', '.join(store.sites)}\n"
            f"  Record it: scope harvest --site {site}, or collect from text: scope features --corpus."
        )
    recorded, given = ModelId.of(store.manifest.model), ModelId.of(model.provenance)
    if recorded.weights_sha256 != given.weights_sha256 and not recorded.same_weights(given):
        raise PackError(
            f"The recording was made with {recorded}, and the model given is {given}.\n"
            "  Give the model that made the recording."
        )
    context_of = np.asarray(store.contexts_of[0 : store.n_rows])
    rows = store.n_rows if tokens is None else min(tokens, store.n_rows)
    n_contexts = int(context_of[rows - 1]) + 1 if rows else 0
    first_row = np.searchsorted(context_of, np.arange(n_contexts + 1))
    contexts, vocab = np.asarray(store.tokens[:n_contexts]), _vocab(model)
    if store.has_roles:  # a row that is no token is shown by its role, whose id follows those of the vocabulary
        contexts = np.where(contexts == NO_TOKEN, len(vocab) + store.roles[:n_contexts].astype(contexts.dtype), contexts)
        vocab += [f"<{role.name.lower()}>" for role in Role]
    keep = np.zeros(contexts.shape, bool)
    in_contexts = slice(0, int(first_row[-1]))
    keep[context_of[in_contexts], np.asarray(store.positions[in_contexts])] = True
    return Source(
        contexts=contexts,
        keep=keep,
        read=lambda a, b: store[site][int(first_row[a]) : int(first_row[b])],
        documents=np.asarray(store.documents[:n_contexts]),
        document_names=list(store.document_names),
        vocab=vocab,
        described={"recording": store.manifest.to_json(), "contexts": n_contexts},
    )


def from_tokens(model: LanguageModel, site: str, tokens: Tensor, corpus: dict[str, Any] | None = None) -> Source:
    """The activations of a model at a site on contexts [n context] that begin with <bos>, padded on the right.

    Raises:
        UnknownSite: the model has no such site.
        TokensError: contexts without <bos>.
    """
    if site not in model.sites():
        raise UnknownSite(f"This model has no site {site}. It has: {', '.join(model.sites())}")
    ids = np.asarray(tokens.cpu())
    if ids.ndim != 2 or not (ids[:, 0] == model.cfg.bos).all():
        raise TokensError(f"Contexts must be [n context] and begin with <bos> ({model.cfg.bos}), as Gemma was trained.")
    keep = counted_tokens(tokens, model.special_ids).cpu().numpy()

    def read(a: int, b: int) -> Tensor:
        some = tokens[a:b].to(model.device)
        # Padding on the right lies behind every real token, so it changes none of them.
        acts = model.record(some, [site])[site]
        return acts[torch.from_numpy(keep[a:b]).to(acts.device)].float().cpu()

    return Source(
        contexts=ids,
        keep=keep,
        read=read,
        documents=np.full(ids.shape, -1, np.int32),
        document_names=[],
        vocab=_vocab(model),
        described={"corpus": corpus or {}, "tokens_sha256": _hash(ids), "contexts": len(ids)},
    )


def _vocab(model: LanguageModel) -> list[str]:
    pieces = [] if model.tokenizer is None else model.tokenizer.vocab()
    return pieces + [f"<{i}>" for i in range(len(pieces), model.cfg.d_vocab)]


def _hash(ids: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(ids.astype(np.int64))).hexdigest()


def require_tokens(source: Source) -> None:
    if not source.n_tokens:
        raise ConfigError("There is no token on which a latent could fire: the text is empty, or all of it is excluded.")
