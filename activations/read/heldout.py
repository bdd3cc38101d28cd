"""Held-out inputs: documents of a recording's corpus that come after the last recorded one."""

import hashlib
from collections.abc import Iterable, Iterator

from scope.activations.corpus.contexts import TextTokenizer, maker_of
from scope.activations.corpus.inputs import Cursor, InputMaker, Inputs
from scope.activations.corpus.installed import without_name
from scope.activations.corpus.sources import Corpus, Document
from scope.activations.errors import CorpusError
from scope.activations.read.store import ActivationStore


def following(store: ActivationStore, corpus: Corpus, tokenizer: TextTokenizer | InputMaker, n_contexts: int) -> Inputs:
    """Up to `n_contexts` contexts from documents of which the recording holds nothing.

    Documents that repeat an earlier one, such as inherited docstrings, are skipped.

    Raises:
        CorpusError: the recording was made from another corpus, or has used all of this one.
    """
    if store.manifest.corpus != corpus.identity:
        raise CorpusError(f"{store.folder} was made from another corpus than {corpus.spec}. Give the one it was made from.")
    cursor = store.journal[-1].cursor or Cursor()
    documents = _new(corpus.documents(store.manifest.config.seed), cursor.documents)
    stream = maker_of(tokenizer).stream(documents, store.context, cursor)
    parts: list[Inputs] = []
    n, exhausted = 0, False
    while n < n_contexts and not exhausted:
        packed = stream.take(n_contexts)
        # the first contexts may continue the last recorded document
        parts.append(packed[~(packed.documents == cursor.documents - 1).any(1)])
        n, exhausted = n + len(parts[-1]), packed.exhausted
    if not n:
        raise CorpusError(f"The recording {store.folder} has used all of {corpus.spec}; nothing is left that it has not seen.")
    return Inputs.joined(parts)[:n_contexts]


def _new(documents: Iterable[Document], recorded: int) -> Iterator[Document]:
    """The recorded documents, then those of the others that repeat no earlier one."""
    seen: set[bytes] = set()
    for number, document in enumerate(documents):
        words = " ".join(without_name(document.text).lower().split())
        picture = "" if document.picture is None else f"\0{document.crc32}"  # other pictures may share a text
        digest = hashlib.sha256((words + picture).encode()).digest()
        if number < recorded or digest not in seen:
            yield document
        seen.add(digest)
