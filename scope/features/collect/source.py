"""Where a pack's activations come from: a recording, or a model that runs on given tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope.activations.read.store import ActivationStore
from scope.errors import ConfigError, PackError, TokensError, UnknownSite


@dataclass(frozen=True, eq=False)
class Source:
    """Contexts of tokens, which of their positions count, and the activations there."""

    contexts: np.ndarray
    """Token ids [n_contexts context]."""
    keep: np.ndarray
    """bool [n_contexts context]: where latents may fire; <bos>, control tokens and padding do not count."""
    read: Callable[[int, int], Tensor]
    """(a, b) -> float32 [kept positions of contexts a to b, width], in order of position."""
    documents: np.ndarray
    document_names: list[str]
    described: dict[str, Any]
    """What these activations are, for the manifest: equal descriptions mean equal activations."""

    @property
    def n_tokens(self) -> int:
        return int(self.keep.sum())


def from_recording(store: ActivationStore, site: str, model, tokens: int | None = None) -> Source:
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
    recorded, given = store.manifest.get("model", {}), getattr(model, "provenance", {})
    if recorded.get("weights_sha256") != given.get("weights_sha256"):
        raise PackError(
            f"The recording was made with {recorded.get('model')} (weights {str(recorded.get('weights_sha256'))[:12]}), "
            f"and the model given is {given.get('model')} (weights {str(given.get('weights_sha256'))[:12]}).\n"
            "  Give the model that made the recording."
        )
    context_of = np.asarray(store.contexts_of[0 : store.n_rows])
    rows = store.n_rows if tokens is None else min(tokens, store.n_rows)
    n_contexts = int(context_of[rows - 1]) + 1 if rows else 0
    first_row = np.searchsorted(context_of, np.arange(n_contexts + 1))
    contexts = np.asarray(store.tokens[:n_contexts])
    keep = np.zeros(contexts.shape, bool)
    kept = slice(0, int(first_row[-1]))
    keep[context_of[kept], np.asarray(store.positions[kept])] = True
    return Source(
        contexts=contexts,
        keep=keep,
        read=lambda a, b: store[site][int(first_row[a]) : int(first_row[b])],
        documents=np.asarray(store.documents[:n_contexts]),
        document_names=list(store.document_names),
        described={"recording": store.manifest, "contexts": n_contexts},
    )


def from_tokens(model, site: str, tokens: Tensor, corpus: dict[str, Any] | None = None) -> Source:
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
    special = {model.cfg.bos, model.cfg.pad, *model.cfg.eos}
    if model.tokenizer is not None:
        special |= set(model.tokenizer.special_ids)
    keep = ~np.isin(ids, sorted(special))

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
        described={"corpus": corpus or {}, "tokens_sha256": _hash(ids), "contexts": len(ids)},
    )


def _hash(ids: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(ids.astype(np.int64))).hexdigest()


def require_tokens(source: Source) -> None:
    if not source.n_tokens:
        raise ConfigError("There is no token on which a latent could fire: the text is empty, or all of it is excluded.")
