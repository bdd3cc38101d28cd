"""Which latents of a batch may lie above a cut: a product in low precision that errs on the safe side only.

Every pair (token, latent) with x . w > cut is found; a few more may be. With x~ and w~ rounded to bfloat16 (8 bits, so each
number is off by at most 2^-9 of itself) and sums kept in float32 (K terms, so off by at most K 2^-24 of the sum of magnitudes),

    |x~ . w~  -  x . w|  <=  c  sum |x_i| |w_i|  <=  c |x| |w|,      c = 2^-8 + 2^-16 + 4 K 2^-24

by Cauchy and Schwarz. That margin, and the cut, are further columns of the two matrices: (c |x|, 1, 1) against
(|w|, hi, lo) with hi + lo = -cut, each rounded to the safe side. So the product is x~ . w~ - cut + margin, its sign is the
answer, and the rounding of the result does not matter, for it keeps signs. Numbers below 1e-30 may be taken for zero.
"""

import time
from functools import cache

import torch
from torch import Tensor

from scope.sae.engines.workspace import Workspace
from scope.shapes import Acts

_ELEMENTS = 2**23
"""Pre-activations at a time: 16 MiB in bfloat16, which a processor's cache may hold."""


class Screen:
    """Candidates of x against rows w, a slice of tokens at a time in one buffer."""

    def __init__(self, workspace: Workspace, dtype: torch.dtype | None = None):
        self.workspace, self.dtype = workspace, dtype

    def candidates(self, x: Acts, w: Tensor, cut: Tensor) -> Tensor:
        """token * d_sae + latent, ascending, of every pair with x . w > cut. `w` is [d_sae d_in], `cut` [d_sae]."""
        dtype = self.dtype or quickest(x.device)
        d_in, d_sae = x.shape[1], len(w)
        wide = -(-(d_in + 3) // 8) * 8
        left = self.workspace.take("screen.x", len(x), wide, dtype=dtype)
        right = self.workspace.take("screen.w", d_sae, wide, dtype=dtype)
        rounding = 4 * wide * 2.0**-24
        c = rounding + (2.0**-8 + 2.0**-16 if dtype == torch.bfloat16 else 2.0**-21)
        up = 1 + 2.0**-7  # more than any rounding takes away
        left[:, :d_in], right[:, :d_in] = x, w
        left[:, d_in] = x.norm(dim=1) * (c * up) + 1e-30
        right[:, d_in] = w.norm(dim=1) * up + 1e-30
        left[:, d_in + 1 : d_in + 3] = 1
        lowered = (2.0**-14 + rounding) * cut.abs() - cut
        right[:, d_in + 1] = lowered
        right[:, d_in + 2] = lowered - right[:, d_in + 1]
        left[:, d_in + 3 :], right[:, d_in + 3 :] = 0, 0
        rows = max(256, _ELEMENTS // d_sae)
        return torch.cat([self._above(left[i : i + rows], right).add_(i * d_sae) for i in range(0, len(x), rows)])

    def _above(self, left: Tensor, right: Tensor) -> Tensor:
        shape = (len(left), len(right))
        product = torch.mm(left, right.T, out=self.workspace.take("screen.product", *shape, dtype=left.dtype))
        whole = torch.int16 if left.dtype == torch.bfloat16 else torch.int32
        # a number and the integer of the same bits are positive together, and it is whole numbers that are handled fast
        positive = product.view(-1).view(whole).clamp_min_(0)
        several = 8 // positive.element_size()
        if len(positive) % several:
            return positive.nonzero().squeeze(1)
        words = positive.view(torch.int64)  # several answers each: nearly all are no
        some = words.nonzero().squeeze(1)
        word, place = words.index_select(0, some).view(whole).view(-1, several).nonzero().unbind(1)
        return some.index_select(0, word).mul_(several).add_(place)


@cache
def quickest(device: torch.device) -> torch.dtype:
    """bfloat16 where this machine multiplies it faster than float32, by trying. What is found decides nothing but speed:
    candidates are refined in full precision, and the margin is dropped with the others that do not reach the cut."""
    if device.type == "cuda":
        return torch.bfloat16
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if device.type != "cpu" or known is None or not known():
        return torch.float32
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(256, 512, dtype=dtype), torch.ones(1024, 512, dtype=dtype)
        tries = []
        for _ in range(4):
            started = time.perf_counter()
            torch.mm(a, b.T)
            tries.append(time.perf_counter() - started)
        seconds[dtype] = min(tries)
    return min(seconds, key=seconds.__getitem__)
