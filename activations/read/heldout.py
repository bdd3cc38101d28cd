"""Text that a recording's corpus still holds after the last recorded document: the same kind of text, never recorded."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from scope.activations.corpus.contexts import Cursor, Packer, TextTokenizer
from scope.activations.corpus.installed import without_name
from scope.activations.corpus.sources import Corpus, Document
from scope.activations.errors import CorpusError
from scope.activations.read.store import ActivationStore


def following(store: ActivationStore, corpus: Corpus, tokenizer: TextTokenizer, n_contexts: int) -> np.ndarray:
    """Up to `n_contexts` contexts of tokens [n position] from documents of which the recording holds nothing."""
    return following_documents(store, corpus, tokenizer, n_contexts)[0]


def following_documents(
    store: ActivationStore, corpus: Corpus, tokenizer: TextTokenizer, n_contexts: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same contexts, and which document [n position] of the corpus each token is from, -1 for padding.

    A later document that repeats an earlier one, as an inherited docstring does under another name, is passed over.

    Raises:
        CorpusError: the recording was made from another corpus, or has used all of this one.
    """
    if store.manifest["corpus"] != corpus.identity:
        raise CorpusError(f"{store.folder} was made from another corpus than {corpus.spec}. Give the one it was made from.")
    cursor = Cursor(**store.journal[-1]["cursor"])
    documents = _new(corpus.documents(store.manifest["config"]["seed"]), cursor.documents)
    packer = Packer(documents, tokenizer, store.context, cursor)
    found: list[np.ndarray] = []
    documents_of: list[np.ndarray] = []
    packed = None
    while len(found) < n_contexts and not (packed and packed.exhausted):
        packed = packer.take(n_contexts)
        # The document in which the recording ended goes on at first; it is not new.
        new = ~(packed.documents == cursor.documents - 1).any(1)
        found += list(packed.tokens[new])
        documents_of += list(packed.documents[new])
    if not found:
        raise CorpusError(f"The recording {store.folder} has used all of {corpus.spec}; nothing is left that it has not seen.")
    return np.stack(found[:n_contexts]), np.stack(documents_of[:n_contexts])


def _new(documents: Iterable[Document], recorded: int) -> Iterator[Document]:
    """The documents that were recorded, then those of the others that repeat none before them."""
    seen: set[bytes] = set()
    for number, document in enumerate(documents):
        digest = hashlib.sha256(" ".join(without_name(document.text).lower().split()).encode()).digest()
        if number < recorded or digest not in seen:
            yield document
        seen.add(digest)
