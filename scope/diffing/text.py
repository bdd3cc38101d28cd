"""The text that two models are compared on: the same token ids for both, with the document and the group of every token."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from scope.activations.corpus.contexts import Packer
from scope.activations.corpus.document import Document, token_ids
from scope.errors import TokensError
from scope.models.face import TextTokenizer
from scope.shapes import Tokens

UNITS = 512
"""Documents are redrawn one by one, or, of more of them, in so many groups."""


@dataclass(frozen=True)
class DiffText:
    """`units` says for each token which document, or group of documents, is redrawn with it; `groups` indexes `names`."""

    tokens: Tokens
    units: Int[Tensor, "batch pos"]
    groups: Int[Tensor, "batch pos"]
    names: tuple[str, ...]
    described: dict[str, Any] = field(default_factory=dict)

    @property
    def n_units(self) -> int:
        return int(self.units.max()) + 1


def read_text(
    documents: Iterable[tuple[Document, str]],
    tokenizer: TextTokenizer,
    contexts: int,
    context: int,
    described: dict[str, Any] | None = None,
    seed: int = 0,
) -> DiffText:
    """Contexts of documents, each given with the name of its group. Of a long document a part is read that fits a context, from
    a random place: many documents tell more than a few whole ones.

    Raises:
        TokensError: fewer than two documents, or fewer than two contexts.
    """
    grouped: list[str] = []
    rng = np.random.default_rng(seed)

    def remembered() -> Iterator[Document]:
        for document, group in documents:
            ids = token_ids(document, tokenizer)
            start = int(rng.integers(max(1, len(ids) - context + 3)))
            grouped.append(group)
            yield replace(document, ids=tuple(ids[start : start + context - 2]))

    packed = Packer(remembered(), tokenizer, context).take(contexts)
    of = np.maximum(packed.documents, 0)
    if len(packed.tokens) < 2 or len(np.unique(of)) < 2:
        raise TokensError(
            f"The text fills {len(packed.tokens)} contexts with {len(np.unique(of))} documents. Both must be at least two, "
            "since the null draws documents anew.\n  Give more text, or shorter contexts."
        )
    read, units = np.unique(of, return_inverse=True)
    names = tuple(sorted({grouped[i] for i in read}))
    group = np.array([names.index(name) if name in names else 0 for name in grouped])[of]
    return DiffText(
        torch.from_numpy(packed.tokens).long(),
        torch.from_numpy(units.reshape(of.shape)).long() % UNITS,
        torch.from_numpy(group).long(),
        names,
        {"context": context, "documents": len(read), **(described or {})},
    )


def in_balance(sources: Sequence[tuple[str, Iterator[Document]]], longest: int) -> Iterator[tuple[Document, str]]:
    """(document, name of its source), always of the source that gave the fewest characters so far, counting at most `longest`
    of a document."""
    given = dict.fromkeys((name for name, _ in sources), 0)
    streams = dict(sources)
    while streams:
        name = min(streams, key=lambda name: given[name])
        document = next(streams[name], None)
        if document is None:
            del streams[name]
            continue
        given[name] += min(len(document), longest)
        yield document, name


def script_of(text: str) -> str:
    """The script of most of a text's letters, as Unicode names it: Latin, Arabic, Cyrillic, Cjk; "none" without letters."""
    import unicodedata
    from collections import Counter

    letters = (c for c in text[:2000] if c.isalpha())
    counts = Counter("Latin" if c.isascii() else unicodedata.name(c, "none").split(" ")[0].capitalize() for c in letters)
    return counts.most_common(1)[0][0] if counts else "none"
