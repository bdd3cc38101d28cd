"""The latents of a batch that may lie above a cut, by a product in low precision that errs on the safe side only.

Every pair (token, latent) with x . w > cut is found; a few more may be. With x~ and w~ rounded to bfloat16 (8 bits, so each
number is off by at most 2^-9 of itself) and sums kept in float32 (K terms, so off by at most K 2^-24 of the sum of magnitudes),

    |x~ . w~  -  x . w|  <=  c  sum |x_i| |w_i|  <=  c |x| |w|,      c = 2^-8 + 2^-16 + 4 K 2^-24

by Cauchy and Schwarz. That margin, and the cut, are further columns of the two matrices: (c |x|, 1, 1) against
(|w|, hi, lo) with hi + lo = -cut, each rounded to the safe side. So the product is x~ . w~ - cut + margin, its sign is the
answer, and the rounding of the result does not matter, for it keeps signs. Numbers below 1e-30 may be taken for zero.

Where a processor multiplies 8-bit numbers faster still, these are taken for the tokens that are not ruled by a few huge numbers
(`int8`, which is as good as certain, and says how).
"""

import time
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from scope.sae.engines.int8 import WIDEST, Int8, exact
from scope.sae.engines.workspace import Workspace
from scope.shapes import Acts

_ELEMENTS = 2**23
"""Pre-activations at a time: 16 MiB in bfloat16, which a processor's cache may hold."""

_INTEGER = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
_WORTH = 0.4
"""How wide the margin of 8-bit numbers may be for a token, in standard deviations of products of vectors that point anywhere:
about 3 times as many candidates, of which two are then computed in vain, cost what the faster product saves."""

_MOST = 0.75
"""Share of tokens with so narrow a margin from which 8 bits are worth it; the other tokens' product is then one in bfloat16."""

_ROUNDING_PAYS = 0.6
"""Share of a bfloat16 product's time that an 8-bit product may take: rounding to 8 bits, and looking for the few candidates,
costs more than with 16, at 768 x 16384 as much as the product itself."""


class Screen:
    """Candidates of x against rows w, a slice of tokens at a time in one buffer."""

    def __init__(self, workspace: Workspace, dtype: torch.dtype | None = None):
        self.workspace, self.dtype = workspace, dtype

    def candidates(self, x: Acts, w: Tensor, cut: Tensor) -> Tensor:
        """latent * tokens + token, ascending, of every pair with x . w > cut. `w` is [d_sae d_in], `cut` [d_sae]."""
        n, d_sae = len(x), len(w)
        found = [
            (places % d_sae).mul_(n).add_(tokens.index_select(0, places.div(d_sae, rounding_mode="floor")))
            for tokens, places in self._places(x, w, cut)
        ]
        keys = torch.cat(found)
        return torch.sort(keys.int() if n * d_sae < 2**31 else keys).values  # 32 bits are sorted faster

    def _places(self, x: Acts, w: Tensor, cut: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(some tokens, row * d_sae + latent of the candidates among them), until there are no more tokens."""
        dtype, tokens = self.dtype or quickest(x.device), torch.arange(len(x), device=x.device)
        if dtype == torch.int8 and x.shape[1] < WIDEST:
            rounded = Int8(x, w, self.workspace)
            narrow = rounded.margins() < (_WORTH if self.dtype is None else float("inf"))
            if narrow.double().mean() > _MOST:
                for some, above in rounded.above(tokens[narrow], cut):
                    yield some, _where(above.view(-1))
                tokens = tokens[~narrow]
        if not len(tokens):
            return
        dtype = torch.bfloat16 if dtype == torch.int8 else dtype
        left, right = self._widened(x if len(tokens) == len(x) else x[tokens], w, cut, dtype)
        rows = max(256, _ELEMENTS // len(w))
        for part, some in zip(left.split(rows), tokens.split(rows), strict=True):
            product = torch.mm(part, right.T, out=self.workspace.take("screen.product", len(part), len(w), dtype=dtype))
            # a number and the integer of the same bits are positive together, and it is whole numbers that are handled fast
            yield some, _where(product.view(-1).view(_INTEGER[dtype]).clamp_min_(0))

    def _widened(self, x: Acts, w: Tensor, cut: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Both matrices with the columns for margin and cut."""
        d_in, wide = x.shape[1], -(-(x.shape[1] + 3) // 8) * 8
        left = self.workspace.take("screen.x", len(x), wide, dtype=dtype)
        right = self.workspace.take("screen.w", len(w), wide, dtype=dtype)
        up = 1 + 2.0**-7  # more than any rounding takes away
        left[:, :d_in], right[:, :d_in] = x, w
        left[:, d_in] = x.norm(dim=1) * (_rounding(dtype, wide) * up) + 1e-30
        right[:, d_in] = w.norm(dim=1) * up + 1e-30
        left[:, d_in + 1 : d_in + 3] = 1
        lowered = (2.0**-14 + 4 * wide * 2.0**-24) * cut.abs() - cut
        right[:, d_in + 1] = lowered
        right[:, d_in + 2] = lowered - right[:, d_in + 1]
        left[:, d_in + 3 :], right[:, d_in + 3 :] = 0, 0
        return left, right


def _rounding(dtype: torch.dtype, terms: int) -> float:
    """c of the file's first lines."""
    return 4 * terms * 2.0**-24 + (2.0**-8 + 2.0**-16 if dtype == torch.bfloat16 else 2.0**-21)


def _where(answers: Tensor) -> Tensor:
    """The places of what is not zero, of whole numbers that are nearly all zero: several are looked at in one word."""
    several = 8 // answers.element_size()
    if len(answers) % several:
        return answers.nonzero().squeeze(1)
    words = answers.view(torch.int64)
    some = words.nonzero().squeeze(1)
    word, place = words.index_select(0, some).view(answers.dtype).view(-1, several).nonzero().unbind(1)
    return some.index_select(0, word).mul_(several).add_(place)


@cache
def quickest(device: torch.device) -> torch.dtype:
    """The precision this machine multiplies fastest, by trying. What is found decides nothing but speed: candidates are
    refined in full precision, and what the margin let through is dropped with the others that do not reach the cut."""
    if device.type == "cuda":
        return torch.bfloat16
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if device.type != "cpu" or known is None or not known():
        return torch.float32
    products: dict[torch.dtype, Callable[[Tensor, Tensor], Tensor]] = {torch.float32: torch.mm, torch.bfloat16: torch.mm}
    if exact(device):
        products[torch.int8] = torch._int_mm
    seconds = _seconds(products)
    if torch.int8 in seconds:
        seconds[torch.int8] /= _ROUNDING_PAYS
    return min(seconds, key=seconds.__getitem__)


def _seconds(products: dict[torch.dtype, Callable[[Tensor, Tensor], Tensor]]) -> dict[torch.dtype, float]:
    """Of each product the least of many tries, taken in turns, so that other programs disturb all or none."""
    factors = {d: (torch.ones(256, 512, dtype=d), torch.ones(1024, 512, dtype=d)) for d in products}
    least = dict.fromkeys(products, float("inf"))
    for _ in range(12):
        for dtype, product in products.items():
            started = time.perf_counter()
            product(factors[dtype][0], factors[dtype][1].T)
            least[dtype] = min(least[dtype], time.perf_counter() - started)
    return least
