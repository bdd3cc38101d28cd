"""MaxSim: each vector of a query takes its best match among the vectors of a page, and the matches are added up.

    score(query, page) = sum over i of max over j of <query_i, page_j>

Rows of zeros are padding, for every real vector has length 1: they are left out, so that a padded slot, whose product with
anything is 0, never beats a negative similarity.

Source: ColBERT, arXiv:2004.12832; ColPali, arXiv:2407.01449.
"""

from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scope.errors import ConfigError

Vectors = Float[Tensor, "_ _"]  # [pos d_out], and each of a list may have another pos
Scores = Float[Tensor, "query page"]
PRODUCTS_AT_ONCE = 1 << 23
"""Similarities that are in memory at one time."""


def max_sim(queries: Any, pages: Any, at_once: int = PRODUCTS_AT_ONCE) -> Scores:
    """Scores [query page] in float32, from vectors padded with zeros [n pos d_out], or a list of [pos d_out].

    Raises:
        ConfigError: a query or a page without a vector, or vectors of unequal length.
    """
    q, q_lengths = _rows(queries, "query")
    p, p_lengths = _rows(pages, "page")
    if q.shape[1] != p.shape[1]:
        raise ConfigError(
            f"Vectors of queries have {q.shape[1]} numbers and those of pages {p.shape[1]}: two models made them."
        )
    q, p = q.float(), p.to(q.device).float()
    starts = [0, *accumulate(p_lengths)]
    columns = []
    for first, last in _blocks(p_lengths, max(1, at_once // len(q))):
        lengths = p_lengths[first:last]
        similarity = q @ p[starts[first] : starts[last]].T
        if len(set(lengths)) == 1:
            best = similarity.unflatten(1, (len(lengths), -1)).amax(2)
        else:
            best = torch.stack([part.amax(1) for part in similarity.split(lengths, 1)], 1)
        columns.append(torch.stack([part.sum(0) for part in best.split(q_lengths)]))
    return torch.cat(columns, 1)


def _rows(vectors: Any, kind: str) -> tuple[Vectors, list[int]]:
    """(the vectors of all, one after another, without padding; how many each has)."""
    if len(vectors) == 0:
        raise ConfigError(f"There is no {kind}. Give at least one.")
    if {one.dim() for one in vectors} != {2}:
        raise ConfigError(
            f"Vectors of a {kind} are [n, pos, d_embed], or a list of [pos, d_embed]. One alone is vectors[None]."
        )
    if (
        isinstance(vectors, Tensor) and vectors.shape[1] and bool((torch.linalg.vector_norm(vectors, dim=-1) > 0).all())
    ):  # nothing is padded
        return vectors.flatten(0, 1), [vectors.shape[1]] * len(vectors)
    rows = [one[torch.linalg.vector_norm(one, dim=-1) > 0] for one in vectors]
    if empty := [i for i, one in enumerate(rows) if not len(one)]:
        raise ConfigError(f"Item {empty[0]} of {len(rows)} is a {kind} without a vector: all of its rows are zero.")
    return torch.cat(rows), [len(one) for one in rows]


def _blocks(lengths: list[int], most: int) -> list[tuple[int, int]]:
    """Ranges of pages with about `most` vectors each, one page at least."""
    blocks, first, held = [], 0, 0
    for i, n in enumerate(lengths):
        if held and held + n > most:
            blocks.append((first, i))
            first, held = i, 0
        held += n
    return [*blocks, (first, len(lengths))]
