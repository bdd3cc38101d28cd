"""Documents to contexts: <bos>, then text, document after document with <eos> between, cut where a context is full.

A document that is cut continues in the next context. Attention crosses document boundaries within a context; the document of
every token is recorded.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from scope.activations.corpus.document import REPLACEMENT, Document, TextTokenizer, token_ids
from scope.activations.corpus.inputs import NO_DOCUMENT, Cursor, InputMaker, Packed, text_roles
from scope.activations.errors import RecordingError

PACKING = "documents end to end with <eos> between, cut where a context is full; attention crosses their boundaries"


class TextMaker:
    """Makes contexts from text. Roles follow from the tokens, so recordings do not store them."""

    packing, stores_roles = PACKING, False

    def __init__(self, tokenizer: TextTokenizer):
        self.tokenizer = tokenizer

    @property
    def identity(self) -> dict[str, Any]:
        return {name: getattr(self.tokenizer, name) for name in ("sha256", "bos", "eos", "pad")}

    def stream(self, documents: Iterable[Document], context: int, cursor: Cursor = Cursor()) -> "Packer":
        return Packer(documents, self.tokenizer, context, cursor)


def maker_of(tokenizer: TextTokenizer | InputMaker) -> InputMaker:
    """A `TextMaker` for a tokenizer; an `InputMaker` is returned unchanged."""
    return tokenizer if isinstance(tokenizer, InputMaker) else TextMaker(tokenizer)


class Packer:
    """Cuts a stream of documents into contexts, starting at a cursor.

    <bos> and <pad> within a text are removed and counted: they would look like the start of a context and like padding.

    Raises:
        RecordingError: the corpus no longer has the document at the cursor, or a context has no room for text.
    """

    def __init__(self, documents: Iterable[Document], tokenizer: TextTokenizer, context: int, cursor: Cursor = Cursor()):
        if context < 2:
            raise RecordingError(f"context is {context}; <bos> and one token of text need at least 2.")
        self.tokenizer, self.context = tokenizer, context
        self.stream = iter(documents)
        self.opened, self.dropped, self.crc32, self.replaced = 0, cursor.dropped, cursor.crc32, cursor.replaced
        self.names: list[str] = []
        self.ids: list[int] = []
        self.at = cursor.offset
        self.exhausted = False
        for number in range(cursor.documents):
            document = next(self.stream, None)
            if document is None:
                raise RecordingError(_changed(number, "it has no such document any more"))
            self.opened += 1
            if self.opened == cursor.documents:
                if document.crc32 != cursor.crc32:
                    raise RecordingError(_changed(number, f"it gives {document.name} there"))
                self.ids = self._encode(document)
                self.dropped = cursor.dropped

    def take(self, n_contexts: int) -> Packed:
        """The next contexts; fewer only at the end of the corpus, where the last may be padded."""
        tokens = np.full((n_contexts, self.context), self.tokenizer.pad, np.int32)
        documents = np.full((n_contexts, self.context), NO_DOCUMENT, np.int32)
        self.names, filled = [], 0
        for row in range(n_contexts):
            tokens[row, 0] = self.tokenizer.bos
            at = 1
            while at < self.context and self._fill():
                n = min(len(self.ids) - self.at, self.context - at)
                tokens[row, at : at + n] = self.ids[self.at : self.at + n]
                documents[row, at : at + n] = self.opened - 1
                at, self.at = at + n, self.at + n
            if at == 1:
                break
            documents[row, 0] = documents[row, 1]
            filled += 1
        cursor = Cursor(documents=self.opened, offset=self.at, crc32=self.crc32, dropped=self.dropped, replaced=self.replaced)
        ended = filled < n_contexts or bool(documents[filled - 1, -1] == NO_DOCUMENT)
        tokens, documents = tokens[:filled], documents[:filled]
        real = torch.from_numpy(documents != NO_DOCUMENT)
        roles = text_roles(torch.from_numpy(tokens), self.tokenizer.special_ids, real=real).numpy()
        return Packed(tokens=tokens, documents=documents, roles=roles, names=self.names, cursor=cursor, exhausted=ended)

    def _fill(self) -> bool:
        """Load documents until a token is available; False at the end of the corpus."""
        while self.at >= len(self.ids):
            document = next(self.stream, None)
            if document is None:
                return False
            self.opened += 1
            self.names.append(document.name)
            self.replaced += document.text.count(REPLACEMENT)
            self.crc32 = document.crc32
            self.ids, self.at = self._encode(document), 0
        return True

    def _encode(self, document: Document) -> list[int]:
        structural = (self.tokenizer.bos, self.tokenizer.pad)
        ids = token_ids(document, self.tokenizer)
        text_ids = [i for i in ids if i not in structural]
        self.dropped += len(ids) - len(text_ids)
        return [*text_ids, self.tokenizer.eos] if text_ids else []


def _changed(number: int, what: str) -> str:
    return (
        f"The corpus changed since this recording began: at document {number}, {what}.\n"
        "  Give the corpus as it was, or record into another folder."
    )
