"""The screen's product in 8-bit whole numbers, which many processors multiply twice as fast as bfloat16.

A number v is taken for s q with q = floor(v / s + u): s is a 127th of the largest number of its row, u from [0, 1) by chance,
the same for all rows but another for each column. So the error of a product x . w is a sum of independent numbers of mean 0,
each in an interval of width s_x |w~_i| (from x) or s_w |x_i| (from w), and by Hoeffding's inequality

    P(x . w - s_x s_w q_x . q_w > SURE / 2 sqrt(A^2 + B^2)) <= exp(-SURE^2 / 2),  A = s_x (|w| + s_w sqrt(d)),  B = s_w |x|,

which is 2e-11 for a pair on the very edge of its cut, and less the further above it lies. Columns in which x is large and w is
not would make s_x large for all: so both are brought to the same size in every column first, x divided by what w is multiplied
with. Tokens are taken in order of their largest number, so that one scale serves a slice, and what remains is one comparison of
whole numbers for each pair.
"""

from collections.abc import Iterator
from functools import cache
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from scope.sae.base import rows_at_once
from scope.sae.engines.workspace import Workspace
from scope.shapes import Acts

SURE = 7.0
_LARGEST = 126.9
_LEAST = 1e-30
_ALIKE = 1.5  # times the least scale of a slice may be the greatest
WIDEST = 2**31 // 2**14
"""Terms in a sum of products of such numbers that 32 bits hold."""
_ELEMENTS = 2**22
"""Sums at a time: 16 MiB, which a processor's cache may hold."""


class Int8:
    """Tokens x against rows w, both rounded."""

    def __init__(self, x: Acts, w: Tensor, workspace: Workspace):
        self.workspace = workspace
        balance = (_columns(x) / _columns(w)).sqrt_()
        self.x, self.w = _Rows(x, 1 / balance, workspace), _Rows(w, balance, workspace)

    def margins(self) -> Float[Tensor, " tok"]:
        """Of each token beside the typical row of w, in standard deviations of products of vectors that point anywhere."""
        x, w, d_in = self.x, self.w, self.x.rows.shape[1]
        ours, theirs = x.share_of_scale * w.share_of_norm.mean(), x.share_of_norm * w.share_of_scale.mean()
        return SURE / 2 * sqrt(d_in) * torch.hypot(ours, theirs)

    def above(self, chosen: Tensor, cut: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the chosen tokens, (tokens, [tokens d_sae] of 1 and 0) of one slice after the other; its memory is used again by
        the next."""
        x, w, d_sae, d_in = self.x, self.w, *self.w.rows.shape
        dither_x, dither_w = _dither(d_in).to(x.rows)
        right = self.workspace.take("screen.w8", d_sae, d_in, dtype=torch.int8)
        n = rows_at_once(w.rows)
        for rows, scale, into in zip(w.rows.split(n), w.scale.split(n), right.split(n), strict=True):
            some = torch.mul(rows, w.columns, out=self.workspace.take("screen.some", *rows.shape, dtype=rows.dtype))
            into.copy_(some.mul_((1 / scale)[:, None]).add_(dither_w).floor_())
        level = cut.double() / w.scale
        spread = (w.norm / w.scale + sqrt(d_in)).square()
        for tokens in _slices(x.scale, chosen, max(64, _ELEMENTS // d_sae)):
            scale, longest = x.scale[tokens[-1]], x.norm[tokens].max()
            left = self.workspace.take("screen.x8", len(tokens), d_in, dtype=torch.int8)
            some = self.workspace.take("screen.some", len(tokens), d_in, dtype=x.rows.dtype)
            torch.index_select(x.rows, 0, tokens, out=some)
            left.copy_(some.mul_(x.columns / scale).add_(dither_x).floor_())
            limit = level / scale - SURE / 2 * 1.01 * (spread + (longest / scale).square()).sqrt()
            limit.sub_(1e-5 * level.abs() / scale).clamp_(-(2.0**31), 2.0**31 - 1)
            product = self.workspace.take("screen.product8", len(tokens), d_sae, dtype=torch.int32)
            torch._int_mm(left, right.T, out=product)
            yield tokens, product.gt_(limit.floor_().int())


class _Rows:
    """A matrix whose columns are multiplied by `columns`: of each row then, the norm and the size of one step."""

    def __init__(self, rows: Tensor, columns: Tensor, workspace: Workspace):
        self.rows, self.columns = rows, columns
        scales, norms = [], []
        for some in rows.split(rows_at_once(rows)):
            scaled = torch.mul(some, columns, out=workspace.take("screen.some", *some.shape, dtype=rows.dtype))
            scales.append(torch.maximum(scaled.amax(1), scaled.amin(1).neg_()).clamp_min_(_LEAST).div_(_LARGEST))
            norms.append(scaled.norm(dim=1))
        self.scale, self.norm = torch.cat(scales), torch.cat(norms)
        before = rows.norm(dim=1).clamp_min_(_LEAST)
        self.share_of_scale, self.share_of_norm = self.scale / before, self.norm / before


def _slices(scale: Tensor, chosen: Tensor, most: int) -> Iterator[Tensor]:
    """The chosen tokens in order of their scales, so many at a time, and none with one of far smaller scale."""
    order = chosen.index_select(0, scale.index_select(0, chosen).argsort())
    scales, start = scale.index_select(0, order).tolist(), 0
    for i in range(1, len(scales) + 1):
        if i == len(scales) or i - start == most or scales[i] > _ALIKE * scales[start]:
            yield order[start:i]
            start = i


def _columns(rows: Tensor) -> Tensor:
    """The root mean square of each column, of some rows: it decides how narrow a margin is, not whether it is wide enough."""
    mean = rows[:: max(1, len(rows) // 1024)].square().mean(0)
    return (mean + 1e-12 * mean.max() + _LEAST).sqrt_()


def exact(device: torch.device) -> bool:
    """Whether this machine's product of 8-bit numbers is to be had and loses nothing, at the numbers that lose most."""
    a = torch.full((64, 256), 127, dtype=torch.int8, device=device)
    b = torch.full((256, 64), 127, dtype=torch.int8, device=device)
    a[::2], b[:, ::3] = -127, -127
    try:
        return bool((torch._int_mm(a, b) == (a.double() @ b.double())).all())
    except (AttributeError, RuntimeError):  # of another release, or not made for this device
        return False


@cache
def _dither(d_in: int) -> Tensor:
    return torch.rand(2, d_in, generator=torch.Generator().manual_seed(8))
