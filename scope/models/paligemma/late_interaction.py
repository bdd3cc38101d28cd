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
from jaxtyping import Float
from torch import Tensor

from scope.errors import ConfigError
from scope.shapes import PerToken

Vectors = Float[Tensor, "_ _"]  # [pos d_out], and each of a list may have another pos
Scores = Float[Tensor, "query page"]
PRODUCTS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 26, "mps": 1 << 26}
"""Similarities that are in memory at one time, by the kind of device: on a CPU, as many as a core's own cache holds."""

ROWS_AT_ONCE = 1024
"""Vectors of pages up to which small pages are compared together: to lay larger ones side by side costs more than it spares."""


def max_sim(queries: Any, pages: Any, at_once: int | None = None) -> Scores:
    """Scores [query page] in float32, from vectors padded with zeros [n pos d_out], or a list of [pos d_out].

    Raises:
        ConfigError: a query or a page without a vector, or vectors of unequal length.
    """
    _check(queries, "query")
    _check(pages, "page")
    rows = [without_padding(one, "query", i, len(queries)) for i, one in enumerate(queries)]
    q = torch.cat(rows).float()
    at_once = PRODUCTS_AT_ONCE.get(q.device.type, 1 << 20) if at_once is None else at_once
    owner = torch.repeat_interleave(torch.tensor([len(one) for one in rows])).to(q.device)
    scores = torch.zeros(len(rows), len(pages), device=q.device)
    buffer = torch.empty(0, device=q.device)
    done = 0
    for block, lengths in _blocks(pages, max(1, min(at_once // len(q), ROWS_AT_ONCE))):
        if block.shape[1] != q.shape[1]:
            raise ConfigError(
                f"Vectors of queries have {q.shape[1]} numbers and those of pages {block.shape[1]}: two models made them."
            )
        block = block.to(q.device).float().T
        parts = q.split(max(1, at_once // block.shape[1]))
        if buffer.numel() < len(parts[0]) * block.shape[1]:
            buffer = torch.empty(len(parts[0]) * block.shape[1], device=q.device)
        best = [_best(part, block, lengths, buffer) for part in parts]
        scores[:, done : done + len(lengths)].index_add_(0, owner, best[0] if len(best) == 1 else torch.cat(best))
        done += len(lengths)
    return scores


def _best(q: Vectors, block: Vectors, lengths: list[int], buffer: PerToken) -> Float[Tensor, "_ page"]:
    """The best match of each vector of queries in each page; `block` is [d_out, vectors of pages one after another], and
    `buffer` is memory for the products."""
    if torch.is_grad_enabled() and (q.requires_grad or block.requires_grad):
        similarity = q @ block
    else:
        similarity = torch.mm(q, block, out=buffer[: len(q) * block.shape[1]].view(len(q), -1))
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


def without_padding(vectors: Vectors, kind: str = "page", i: int = 0, n: int = 1) -> Vectors:
    """The vectors that are no padding, of the `kind` that is number `i` of `n`.

    Raises:
        ConfigError: none is left.
    """
    if not bool(vectors[:, 0].all()):  # few real vectors begin with 0, and a page without such is not looked at as a whole
        vectors = vectors[(vectors != 0).any(1)]
    if not len(vectors):
        raise ConfigError(f"Item {i} of {n} is a {kind} without a vector: all of its rows are zero.")
    return vectors


def _blocks(pages: Any, most: int) -> Iterator[tuple[Vectors, list[int]]]:
    """(vectors of some pages one after another, how many each has), with at most `most` vectors, but one page at least."""
    held: list[Vectors] = []
    for i, page in enumerate(pages):
        rows = without_padding(page, "page", i, len(pages))
        if held and sum(map(len, held)) + len(rows) > most:
            yield _joined(held), [len(one) for one in held]
            held = []
        held.append(rows)
    yield _joined(held), [len(one) for one in held]


def _joined(rows: list[Vectors]) -> Vectors:
    return rows[0] if len(rows) == 1 else torch.cat(rows)
