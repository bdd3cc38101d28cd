"""The activations that a pack is made from: a recording, or a model that runs on given tokens or inputs."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope.activations.corpus.inputs import NO_TOKEN, Inputs, counted, text_roles
from scope.activations.corpus.roles import Role
from scope.activations.read.store import ActivationStore, PatchPlaces, PictureSize
from scope.errors import ConfigError, PackError, TokensError, UnknownSite
from scope.features.pack.manifest import Natural
from scope.models.face import LanguageModel, Model, VisionModel
from scope.provenance import ModelId
from scope.shapes import Acts, Tokens
from scope.typed_json import typed

_CONTROL_CONTEXTS = 256
"""Contexts whose control tokens are read, where a recording has left them out."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """The picture of each context. Its patches stand first, row by row; of a pooled site, one row stands for all of it."""

    grid: int
    """Patches to a row, and rows."""
    picture_size: int
    """Pixels of a side of what the model sees."""
    patch_size: int
    sizes: np.ndarray
    """int32 [n_contexts 2]: width and height of each picture as it was, upright."""
    hashes: np.ndarray
    """uint64 [n_contexts]: equal for equal pictures."""
    texts: list[str]
    """The text beside each picture."""
    thumbnail: Callable[[int], bytes | None]
    """The file of a small picture of a context."""

    @property
    def n_patches(self) -> int:
        return self.grid**2


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
    roles: np.ndarray | None = None
    """uint8 [n_contexts context]: the `Role` of each row, where roles do not follow from the tokens."""
    control: Callable[[], Acts] | None = None
    """The activations at control tokens, such as the marks of infilling: of all of them where they are known, else of some."""
    pictures: Pictures | None = None
    n_pieces: int | None = None
    """Ids in `contexts` from here on are no tokens, but roles of rows; None: all are tokens."""

    @property
    def n_tokens(self) -> int:
        return int(self.keep.sum())


def from_recording(store: ActivationStore, site: str, model: Model, tokens: int | None = None) -> Source:
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
    stored = np.zeros(contexts.shape, bool)
    in_contexts = slice(0, int(first_row[-1]))
    stored[context_of[in_contexts], np.asarray(store.positions[in_contexts])] = True
    keep, roles, control, n_pieces = stored, None, None, len(vocab)
    if store.has_roles:
        roles = np.asarray(store.roles[:n_contexts])
        keep = stored & (roles != Role.CONTROL)
        tokens = np.asarray(contexts)
        # A row that is no token is shown by its role, whose id follows those of the vocabulary.
        no_token = (contexts == NO_TOKEN) | (roles == Role.IMAGE)
        contexts = np.where(no_token, len(vocab) + roles.astype(contexts.dtype), contexts)
        vocab += [f"<{role.name.lower()}>" for role in Role]

        def control() -> Acts:
            if (stored & ~keep).any():
                return store[site][np.flatnonzero(~keep[stored])]
            known = (roles == Role.CONTROL).any(1) & (tokens != NO_TOKEN).all(1)
            some = np.flatnonzero(known)[:_CONTROL_CONTEXTS]
            return _control_acts(model, site, torch.from_numpy(tokens[some]).long(), roles[some])

    def read(a: int, b: int) -> Tensor:
        acts = store[site][int(first_row[a]) : int(first_row[b])]
        return acts if keep is stored else acts[torch.from_numpy(keep[a:b][stored[a:b]])]

    return Source(
        contexts=contexts,
        keep=keep,
        read=read,
        documents=np.asarray(store.documents[:n_contexts]),
        document_names=list(store.document_names),
        vocab=vocab,
        described={"recording": store.manifest.to_json(), "contexts": n_contexts},
        roles=roles,
        control=None if isinstance(model, VisionModel) else control,
        pictures=_pictures(store, n_contexts),
        n_pieces=n_pieces,
    )


@dataclass(frozen=True, kw_only=True)
class _Facts(PictureSize):
    """What a recording says of the document of a picture."""

    crc32: Natural = 0
    text: str = ""
    question: str = ""
    answer: str = ""


def _pictures(store: ActivationStore, n_contexts: int) -> Pictures | None:
    """The pictures of a recording's contexts; None where rows are no patches."""
    if not store.has_roles:
        return None
    places = typed(store.manifest.tokenizer, PatchPlaces, f"manifest.json of {store.folder}", PackError)
    if not places.picture_size or not places.patch_size:
        return None
    documents = np.asarray(store.documents[:n_contexts]).max(1)
    every = [typed(f, _Facts, f"Facts of a document of {store.folder}", PackError) for f in store.document_facts]
    facts = [every[d] if d >= 0 else _Facts() for d in documents.tolist()]
    return Pictures(
        grid=places.picture_size // places.patch_size,
        picture_size=places.picture_size,
        patch_size=places.patch_size,
        sizes=np.array([(f.width, f.height) for f in facts], np.int32).reshape(-1, 2),
        hashes=np.array([f.crc32 for f in facts], np.uint64),
        texts=[" ".join(filter(None, (f.text, f.question, f.answer))) for f in facts],
        thumbnail=lambda context: store.thumbnail(int(documents[context])) if documents[context] >= 0 else None,
    )


@torch.no_grad()
def _control_acts(model: LanguageModel, site: str, tokens: Tokens, roles: np.ndarray, batch: int = 16) -> Acts:
    """The activations at the control tokens of contexts, by the model."""
    acts = [torch.zeros(0, model.sites()[site])]
    for a in range(0, len(tokens), batch):
        at = torch.from_numpy(roles[a : a + batch] == Role.CONTROL)
        x = model.record(tokens[a : a + batch].to(model.device), [site])[site]
        acts.append(x[at.to(x.device)].float().cpu())
    return torch.cat(acts)


def from_inputs(model: LanguageModel, site: str, inputs: Inputs, corpus: dict[str, Any] | None = None) -> Source:
    """As `from_tokens`, of contexts whose rows have roles, as infilling examples.

    Raises:
        UnknownSite, TokensError: as there.
    """
    tokens, roles = torch.as_tensor(inputs.tokens).long(), np.asarray(inputs.roles)
    source = from_tokens(model, site, tokens, corpus, roles)
    return replace(source, roles=roles, control=lambda: _control_acts(model, site, tokens, roles))


def from_tokens(
    model: LanguageModel, site: str, tokens: Tensor, corpus: dict[str, Any] | None = None, roles: np.ndarray | None = None
) -> Source:
    """The activations of a model at a site on contexts [n context] that begin with <bos>, padded on the right. `roles` [n
    context] are by default those of plain text.

    Raises:
        UnknownSite: the model has no such site.
        TokensError: contexts without <bos>.
    """
    if site not in model.sites():
        raise UnknownSite(f"This model has no site {site}. It has: {', '.join(model.sites())}")
    ids = np.asarray(tokens.cpu())
    if ids.ndim != 2 or not (ids[:, 0] == model.cfg.bos).all():
        raise TokensError(f"Contexts must be [n context] and begin with <bos> ({model.cfg.bos}), as Gemma was trained.")
    roles_of_rows = text_roles(tokens, model.special_ids) if roles is None else torch.from_numpy(roles)
    keep = counted(roles_of_rows).cpu().numpy()

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


def _vocab(model: Model) -> list[str]:
    tokenizer = getattr(model, "tokenizer", None)
    pieces = [] if tokenizer is None else tokenizer.vocab()
    return pieces + [f"<{i}>" for i in range(len(pieces), getattr(model.cfg, "d_vocab", 0))]


def _hash(ids: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(ids.astype(np.int64))).hexdigest()


def require_tokens(source: Source) -> None:
    if not source.n_tokens:
        raise ConfigError("There is no token on which a latent could fire: the text is empty, or all of it is excluded.")
