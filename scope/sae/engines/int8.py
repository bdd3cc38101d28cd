"""The screen's product in 8-bit whole numbers, which many processors multiply twice as fast as bfloat16.

A number v is taken for s q with q = floor(v / s + u): s is a 127th of the largest number of its row, u from [0, 1) by chance,
the same for all rows but another for each column. So the error of a product x . w is a sum of independent numbers of mean 0,
each in an interval of width s_x |w~_i| (from x) or s_w |x_i| (from w), and by Hoeffding's inequality

    P(x . w - s_x s_w q_x . q_w > SURE / 2 sqrt(A^2 + B^2)) <= exp(-SURE^2 / 2),  A = s_x (|w| + s_w sqrt(d)),  B = s_w |x|,

which is 2e-11 for a pair on the very edge of its cut, and less the further above it lies. Tokens are taken in order of their
largest number, so that one scale serves a slice, and what remains is one comparison of whole numbers for each pair.
"""

from collections.abc import Iterator
from functools import cache
from math import sqrt

import torch
from torch import Tensor

from scope.sae.engines.workspace import Workspace
from scope.shapes import Acts

SURE = 7.0
_LARGEST = 126.9
WIDEST = 2**31 // 2**14
"""Terms in a sum of products of such numbers that 32 bits hold."""
_ELEMENTS = 2**22
"""Sums at a time: 16 MiB, which a processor's cache may hold."""
_ROWS = 256  # of a matrix at a time, so that what is computed from them stays in the processor's cache


class Int8:
    """Tokens x against rows w, both rounded."""

    def __init__(self, x: Acts, w: Tensor, workspace: Workspace):
        self.x, self.w, self.workspace = x, w, workspace
        self.scale_x, self.scale_w = _scale(x), _scale(w)
        self.norm_x, self.norm_w = x.norm(dim=1), w.norm(dim=1)

    def margin(self) -> float:
        """As a share of |x| |w|, of the typical pair."""
        pairs = ((self.scale_x, self.norm_x), (self.scale_w, self.norm_w))
        x, w = ((scale / norm.clamp_min(1e-30)).mean().item() for scale, norm in pairs)
        return SURE / 2 * sqrt(x**2 + w**2)

    def above(self, cut: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(tokens, [tokens d_sae] of 1 and 0) of one slice of tokens after the other; its memory is used again by the next."""
        d_in, d_sae = self.x.shape[1], len(self.w)
        dither_x, dither_w = _dither(d_in).to(self.x)
        right = self.workspace.take("screen.w", d_sae, d_in, dtype=torch.int8)
        for w, scale, into in zip(self.w.split(_ROWS), self.scale_w.split(_ROWS), right.split(_ROWS), strict=True):
            _round(w * (1 / scale)[:, None], dither_w, into)
        level = cut.double() / self.scale_w
        spread = (self.norm_w / self.scale_w + sqrt(d_in)).square()
        for tokens in self.scale_x.argsort().split(max(64, _ELEMENTS // d_sae)):
            scale, longest = self.scale_x[tokens[-1]], self.norm_x[tokens].max()
            left = self.workspace.take("screen.x", len(tokens), d_in, dtype=torch.int8)
            _round(self.x.index_select(0, tokens).mul_(1 / scale), dither_x, left)
            limit = level / scale - SURE / 2 * 1.01 * (spread + (longest / scale).square()).sqrt()
            limit.sub_(1e-5 * level.abs() / scale).clamp_(-(2.0**31), 2.0**31 - 1)
            product = self.workspace.take("screen.product", len(tokens), d_sae, dtype=torch.int32)
            torch._int_mm(left, right.T, out=product)
            yield tokens, product.gt_(limit.floor_().int())


def exact(device: torch.device) -> bool:
    """Whether this machine's product of 8-bit numbers is to be had and loses nothing, at the numbers that lose most."""
    a = torch.full((64, 256), 127, dtype=torch.int8, device=device)
    b = torch.full((256, 64), 127, dtype=torch.int8, device=device)
    a[::2], b[:, ::3] = -127, -127
    try:
        return bool((torch._int_mm(a, b) == (a.double() @ b.double())).all())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def _scale(rows: Tensor) -> Tensor:
    return torch.maximum(rows.amax(1), rows.amin(1).neg_()).clamp_min_(1e-30).div_(_LARGEST)


def _round(scaled: Tensor, dither: Tensor, into: Tensor) -> None:
    into.copy_(scaled.add_(dither).floor_())


@cache
def _dither(d_in: int) -> Tensor:
    return torch.rand(2, d_in, generator=torch.Generator().manual_seed(8))
