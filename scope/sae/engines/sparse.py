"""The few latents that matter: found by a screen, computed exactly, and multiplied without a dense matrix."""

import warnings

import torch
from torch import Tensor

from scope.sae.engines.screen import Screen
from scope.sae.jumprelu import JumpReLUSAE
from scope.shapes import Acts

_GROUPS = 1024
_CACHED = 6 * 2**20
"""Bytes of a matrix whose rows are asked for in no order, which a processor's cache holds."""


def find(screen: Screen, x: Acts, sae: JumpReLUSAE, bandwidth: float) -> tuple[Tensor, Tensor, Tensor]:
    """(latent, token, pre-activation) of every candidate, ordered by latent and then token: so a latent's weights are read
    once, and the tokens' activations, which are few, stay in the processor's cache.

    The pre-activations are dot products in the dictionary's own precision, and what does not reach the window is dropped,
    so the result depends in no way on the screen's rounding.
    """
    lowest = sae.threshold - bandwidth / 2
    keys = screen.candidates(x, sae.W_enc.T, lowest - sae.b_enc)
    latents, tokens = (keys // len(x)).int(), (keys % len(x)).int()
    pre = dots(latents, tokens, sae.W_enc.T, x).add_(sae.b_enc.index_select(0, latents))
    kept = (pre > lowest.index_select(0, latents)).nonzero().squeeze(1)
    return latents.index_select(0, kept), tokens.index_select(0, kept), pre.index_select(0, kept)


def dots(i: Tensor, j: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a[i] . b[j] for each of these pairs, which are ordered by i. As many rows of b at a time as stay in the processor's
    cache: every row of a is then fetched more than once, but those of b, which come in no order, only once."""
    rows = max(1, _CACHED // (b.shape[1] * b.element_size()))
    if rows >= len(b):
        return _dots(i, j, a, b)
    products, block = a.new_empty(len(i)), j.div(rows, rounding_mode="floor")
    for k, part in enumerate(b.split(rows)):
        some = (block == k).nonzero().squeeze(1)
        products[some] = _dots(i.index_select(0, some), j.index_select(0, some).sub_(k * rows), a, part)
    return products


def _dots(i: Tensor, j: Tensor, a: Tensor, b: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")  # said once a process
        places = torch.sparse_csr_tensor(
            compressed(i, len(a)),
            j,
            torch.zeros(len(i), dtype=a.dtype, device=a.device),
            (len(a), len(b)),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(places, a, b.T, beta=0.0).values()


def compressed(groups: Tensor, n: int) -> Tensor:
    """Of group numbers 0 to n - 1: where each group starts once they are ordered, and the end."""
    starts = torch.zeros(n + 1, dtype=torch.int32, device=groups.device)
    torch.cumsum(torch.bincount(groups, minlength=n), 0, out=starts[1:])
    return starts


def sums(values: Tensor, groups: Tensor, n: int) -> Tensor:
    """The sum of each group's values."""
    return torch.bincount(groups, weights=values, minlength=n).to(values.dtype)


def weighted_rows(rows: Tensor, chosen: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """For each group of `chosen` (bounded by `starts`) the sum of these rows, weighted: a sparse matrix times `rows`."""
    return torch.embedding_bag(rows, chosen, starts, False, 0, False, weights, True)[0]


def weighted_rows_into(out: Tensor, rows: Tensor, chosen: Tensor, starts: Tensor, weights: Tensor) -> None:
    """The same, some groups at a time, into memory that is there: large results that come and go scatter what is free."""
    for i in range(0, len(out), _GROUPS):
        some = starts[i : i + _GROUPS + 1]
        first, last = int(some[0]), int(some[-1])
        out[i : i + _GROUPS] = weighted_rows(rows, chosen[first:last], some - first, weights[first:last])
