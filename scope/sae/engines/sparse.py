"""The few latents that matter: found by a screen, computed exactly, and multiplied without a dense matrix."""

import warnings

import torch
from torch import Tensor

from scope.sae.engines.screen import Screen
from scope.sae.jumprelu import JumpReLUSAE
from scope.shapes import Acts

_GROUPS = 1024


def find(screen: Screen, x: Acts, sae: JumpReLUSAE) -> tuple[Tensor, Tensor, Tensor]:
    """(latent, token, pre-activation) of every candidate, ordered by latent and then token: so a latent's weights are read
    once, and the tokens' activations, which are few, stay in the processor's cache.

    The pre-activations are dot products in the dictionary's own precision, and what does not reach the window is dropped,
    so the result depends in no way on the screen's rounding.
    """
    lowest = sae.threshold - sae.bandwidth / 2
    flat = screen.candidates(x, sae.W_enc.T, lowest - sae.b_enc)
    tokens = (flat // sae.d_sae).int()
    latents, order = torch.sort((flat % sae.d_sae).int(), stable=True)
    tokens = tokens.index_select(0, order)
    pre = dots(latents, tokens, sae.W_enc.T, x).add_(sae.b_enc.index_select(0, latents))
    kept = (pre > lowest.index_select(0, latents)).nonzero().squeeze(1)
    return latents.index_select(0, kept), tokens.index_select(0, kept), pre.index_select(0, kept)


def dots(i: Tensor, j: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a[i] . b[j] for each of these pairs, which are ordered by i."""
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
