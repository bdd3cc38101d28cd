"""Text that a recording's corpus still holds after the last recorded document: the same kind of text, never recorded."""

import numpy as np

from activations.contexts import Cursor, Packer, TextTokenizer
from activations.corpus import Corpus
from activations.errors import CorpusError
from activations.store import ActivationStore


def following(store: ActivationStore, corpus: Corpus, tokenizer: TextTokenizer, n_contexts: int) -> np.ndarray:
    """Up to `n_contexts` contexts of tokens [n position] from documents of which the recording holds nothing.

    Raises:
        CorpusError: the recording was made from another corpus, or has used all of this one.
    """
    if store.manifest["corpus"] != corpus.identity:
        raise CorpusError(f"{store.folder} was made from another corpus than {corpus.spec}. Give the one it was made from.")
    cursor = Cursor(**store.entries[-1]["cursor"])
    packer = Packer(corpus.documents(store.manifest["config"]["seed"]), tokenizer, store.context, cursor)
    found: list[np.ndarray] = []
    packed = None
    while len(found) < n_contexts and not (packed and packed.exhausted):
        packed = packer.take(n_contexts)
        # The document in which the recording ended goes on at first; it is not new.
        new = ~(packed.documents == cursor.documents - 1).any(1)
        found += list(packed.tokens[new])
    if not found:
        raise CorpusError(f"The recording {store.folder} has used all of {corpus.spec}; nothing is left that it has not seen.")
    return np.stack(found[:n_contexts])
