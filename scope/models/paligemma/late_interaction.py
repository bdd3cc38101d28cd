"""MaxSim: each vector of a query takes its best match among the vectors of a page, and the matches are added up.

    score(query, page) = sum over i of max over j of <query_i, page_j>

Rows of zeros are padding, for every real vector has length 1: they are left out, so that a padded slot, whose product with
anything is 0, never beats a negative similarity.

The products of some vectors of queries with one page or a few are made, and their maxima taken, while they still lie in the
processor's cache: what is left to do is the matrix product, and no more memory is needed for more pages.

Source: ColBERT, arXiv:2004.12832; ColPali, arXiv:2407.01449.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scope.errors import ConfigError
from scope.shapes import PerToken

Vectors = Float[Tensor, "_ _"]  # [pos d_out], and each of a list may have another pos
Scores = Float[Tensor, "query page"]
RowMask = Bool[Tensor, "row"]
PRODUCTS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 26, "mps": 1 << 26}
"""Similarities that are in memory at one time, by the kind of device: on a CPU, as many as a core's own cache holds."""

ROWS_AT_ONCE = 2560
"""Vectors of pages that are compared together: so many of 128 numbers fit a core's own cache too."""


def max_sim(queries: Any, pages: Any, at_once: int | None = None) -> Scores:
    """Scores [query page] in float32, from vectors padded with zeros [n pos d_out], or a list of [pos d_out].

    Raises:
        ConfigError: a query or a page without a vector, or vectors of unequal length.
    """
    _check(queries, "query")
    _check(pages, "page")
    rows = [_without_padding(one, i, len(queries)) for i, one in enumerate(queries)]
    q = torch.cat(rows).float()
    if q.shape[1] != pages[0].shape[1]:
        raise ConfigError(
            f"Vectors of queries have {q.shape[1]} numbers and those of pages {pages[0].shape[1]}: two models made them."
        )
    at_once = PRODUCTS_AT_ONCE.get(q.device.type, 1 << 20) if at_once is None else at_once
    owner = torch.repeat_interleave(torch.tensor([len(one) for one in rows])).to(q.device)
    scores = torch.zeros(len(rows), len(pages), device=q.device)
    buffer = torch.empty(0, device=q.device)
    first, columns = 0, []
    for block, lengths in _blocks(pages, max(1, min(at_once // len(q), ROWS_AT_ONCE))):
        block = block.to(q.device).float()
        parts, best, padding = q.split(max(1, at_once // len(block))), [], None
        if buffer.numel() < len(parts[0]) * len(block):
            buffer = torch.empty(len(parts[0]) * len(block), device=q.device)
        for i, part in enumerate(parts):
            similarity = _products(part, block, buffer)
            padding = _padding(block) if i == 0 else padding  # after a product the block is cached
            best.append(_maxima(similarity if padding is None else similarity.masked_fill(padding, -torch.inf), lengths))
        if padding is not None and bool((empty := best[0][0] == -torch.inf).any()):
            i = first + int(empty.nonzero()[0])
            raise ConfigError(f"Item {i} of {len(pages)} is a page without a vector: all of its rows are zero.")
        columns.append(best[0] if len(best) == 1 else torch.cat(best))
        first += len(lengths)
        if first == len(pages) or len(q) * len(columns) >= at_once:
            some = torch.cat(columns, 1)
            scores[:, first - some.shape[1] : first].index_add_(0, owner, some)
            columns = []
    return scores


def _products(q: Vectors, block: Vectors, buffer: PerToken) -> Vectors:
    """All similarities, in the memory of `buffer` where no gradient is wanted."""
    if torch.is_grad_enabled() and (q.requires_grad or block.requires_grad):
        return q @ block.T
    return torch.mm(q, block.T, out=buffer[: len(q) * len(block)].view(len(q), -1))


def _padding(block: Vectors) -> RowMask | None:
    """Which vectors are padding; None where none is. Few vectors begin with 0, and only then all are looked at as a whole."""
    return None if bool(block[:, 0].all()) else (block == 0).all(1)


def _maxima(similarity: Vectors, lengths: list[int]) -> Float[Tensor, "_ page"]:
    """The best match of each vector of queries in each page, whose vectors lie one after another."""
    if len(lengths) == 1:
        return similarity.amax(1, keepdim=True)
    if len(set(lengths)) == 1:
        return similarity.unflatten(1, (len(lengths), -1)).amax(2)
    return torch.stack([part.amax(1) for part in similarity.split(lengths, 1)], 1)


def _check(vectors: Any, kind: str) -> None:
    if len(vectors) == 0:
        raise ConfigError(f"There is no {kind}. Give at least one.")
    if {one.dim() for one in vectors} != {2}:
        raise ConfigError(
            f"Vectors of a {kind} are [n, pos, d_embed], or a list of [pos, d_embed]. One alone is vectors[None]."
        )
    if empty := [i for i, one in enumerate(vectors) if not len(one)]:
        raise ConfigError(f"Item {empty[0]} of {len(vectors)} is a {kind} without a vector.")


def _without_padding(query: Vectors, i: int, n: int) -> Vectors:
    """The vectors of query `i` of `n` that are no padding.

    Raises:
        ConfigError: none is left.
    """
    rows = query[(query != 0).any(1)]
    if not len(rows):
        raise ConfigError(f"Item {i} of {n} is a query without a vector: all of its rows are zero.")
    return rows


def _blocks(pages: Any, most: int) -> Iterator[tuple[Vectors, list[int]]]:
    """(vectors of some pages one after another, how many each has), with at most `most` vectors, but one page at least."""
    if isinstance(pages, Tensor):
        step = max(1, most // pages.shape[1])
        yield from ((some.flatten(0, 1), [pages.shape[1]] * len(some)) for some in pages.split(step))
        return
    held: list[Vectors] = []
    for page in pages:
        if held and sum(map(len, held)) + len(page) > most:
            yield _joined(held), [len(one) for one in held]
            held = []
        held.append(page)
    yield _joined(held), [len(one) for one in held]


def _joined(rows: list[Vectors]) -> Vectors:
    return rows[0] if len(rows) == 1 else torch.cat(rows)
