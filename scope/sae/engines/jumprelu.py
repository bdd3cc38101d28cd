"""Gradients of `JumpReLUObjective.losses` by hand, without a graph.

With r = x_hat - x, u = (2/n) r and h = u W_dec^T, the gradients are: W_dec: latents^T u; b_dec: sum u; pre: h where the
latent fires, 0 elsewhere; threshold: -(threshold h + (price + surcharge) / n) / bandwidth, summed over tokens in the window.
Only *candidates*, latents that fire or lie in their threshold's window, appear in them. While these are many, rows go
through dense matrices in slices that reuse one workspace; once they are few, only they are touched (`sparse`). Both ways
compute the same numbers in the dictionary's own precision, up to the order of sums.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from scope.sae.engines.base import Batch, Losses
from scope.sae.engines.screen import Screen
from scope.sae.engines.sparse import compressed, dots, find, sums, weighted_rows, weighted_rows_into
from scope.sae.engines.workspace import Workspace
from scope.sae.jumprelu import JumpReLUSAE
from scope.shapes import Acts, Scalar

SPARSE_BELOW = 1 / 8
"""Share of candidates among all latents below which the sparse way is the faster one on a CPU (measured, see
tests/benchmarks). On a GPU dense matrices are, at the widths that fit one."""


@runtime_checkable
class ThresholdLosses(Losses, Protocol):
    """The part of `JumpReLUObjective` that this engine reads."""

    sae: JumpReLUSAE
    bandwidth: float

    def penalties(self, l0: Tensor, frequency: Tensor) -> dict[str, Scalar]: ...

    def price(self, l0: Tensor) -> Tensor | float: ...

    def surcharge(self, frequency: Tensor) -> Tensor | float: ...


def in_window(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Where a pre-activation lies within bandwidth / 2 of its threshold, on either side."""
    return (pre - threshold).abs() < bandwidth / 2


@dataclass
class Seen:
    """Sums over a batch, on its device: squared error, L0 of each token, tokens per latent, candidates; and u."""

    squares: Tensor
    l0: Tensor
    fired: Tensor
    candidates: Tensor
    u: Acts


class JumpReLUEngine:
    """By hand; see the file's first lines.

    Of a dictionary whose width is split over processes, each holds some latents. `reduce` adds a tensor up over them, in
    place or not, and is called with the same shapes in the same order by all: once per `rows` tokens for the partial
    reconstruction latents @ W_dec, before b_dec is added, and once for the L0 of these tokens. `average` takes the mean of
    the latents' frequencies over processes that hold the same latents and see other tokens.
    """

    def __init__(
        self,
        objective: ThresholdLosses,
        rows: int = 512,
        reduce: Callable[[Tensor], Tensor] | None = None,
        average: Callable[[Tensor], Tensor] | None = None,
        screen: torch.dtype | None = None,
    ):
        self.objective, self.sae = objective, objective.sae
        self.rows, self.reduce, self.average = rows, reduce, average
        self.share: float | None = None
        self.workspace = Workspace()
        self.screen = Screen(self.workspace, screen)

    @torch.no_grad()
    def gradients(self, x: Acts) -> Batch:
        sae, n = self.sae, len(x)
        self.workspace.device = x.device
        few = self.share is not None and self.share < SPARSE_BELOW and x.device.type == "cpu"
        seen = (self._sparse if few else self._dense)(x)
        l0 = seen.l0.to(x.dtype)
        self.objective.observe(x, seen.u, seen.fired)
        terms = self.objective.penalties(l0, self._frequency(seen.fired, n))
        numbers = torch.stack(
            [seen.squares, l0.sum().double(), seen.candidates.double(), *(t.double() for t in terms.values())]
        )
        squares, fires, candidates, *paid = numbers.tolist()
        self.share = candidates / (n * sae.d_sae)
        said = dict(zip(terms, paid, strict=True))
        return Batch({"error": squares / n, **said}, squares / n, fires / n, seen.fired, candidates / n)

    def state(self) -> dict:
        """The way taken next decides the order of sums, so a resumed run must know it."""
        return {"share": self.share}

    def load_state(self, state: dict) -> None:
        self.share = state["share"]

    def _frequency(self, fired: Tensor, n: int) -> Tensor:
        frequency = fired.to(self.sae.threshold.dtype) / n
        return self.average(frequency) if self.average else frequency

    def _summed(self, partial: Tensor) -> Tensor:
        return self.reduce(partial) if self.reduce else partial

    def _set_threshold(self, at_threshold: Tensor, prices: Tensor, near: Tensor, fired: Tensor, n: int) -> None:
        """From sums over each latent's window: of h, of the tokens' prices, and of ones."""
        sae = self.sae
        paid = prices + self.objective.surcharge(self._frequency(fired, n)) * near
        sae.threshold.grad = -(sae.threshold * at_threshold + paid / n) / self.objective.bandwidth

    def _dense(self, x: Acts) -> Seen:
        sae, n, dtype = self.sae, len(x), x.dtype
        for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad.zero_()
        squares = torch.zeros((), dtype=torch.float64, device=x.device)
        candidates = torch.zeros((), dtype=torch.long, device=x.device)
        fired = torch.zeros(sae.d_sae, dtype=torch.long, device=x.device)
        at_threshold, prices, in_windows = (torch.zeros_like(sae.threshold) for _ in range(3))
        l0s, residuals = [], self.workspace.take("residual", *x.shape, dtype=dtype)
        for part, into_part in zip(x.split(self.rows), residuals.split(self.rows), strict=True):
            shape = (len(part), sae.d_sae)
            pre = torch.addmm(sae.b_enc, part, sae.W_enc, out=self.workspace.take("pre", *shape, dtype=dtype))
            fires = pre > sae.threshold
            near = in_window(pre, sae.threshold, self.objective.bandwidth)
            latents = pre.mul_(fires)
            partial = torch.mm(latents, sae.W_dec, out=into_part)
            residual = torch.sub(self._summed(partial).add_(sae.b_dec), part, out=into_part)
            l0s.append(self._summed(fires.sum(1).to(dtype)))
            squares += torch.linalg.vector_norm(residual, dtype=torch.float64).square()
            u = residual.mul_(2 / n)
            sae.W_dec.grad.addmm_(latents.T, u)
            sae.b_dec.grad.add_(u.sum(0))
            h = torch.mm(u, sae.W_dec.T, out=self.workspace.take("h", *shape, dtype=dtype))
            at_threshold.add_(torch.mul(h, near, out=latents).sum(0))
            in_windows.add_(near.sum(0))
            price = self.objective.price(l0s[-1])
            if isinstance(price, Tensor):
                prices.add_(price @ near.to(dtype))
            h.mul_(fires)
            sae.W_enc.grad.T.addmm_(h.T, part)
            sae.b_enc.grad.add_(h.sum(0))
            fired.add_(fires.sum(0))
            candidates += (near | fires).sum()
        l0 = torch.cat(l0s)
        if not isinstance(price := self.objective.price(l0), Tensor):
            prices = price * in_windows
        self._set_threshold(at_threshold, prices, in_windows, fired, n)
        return Seen(squares, l0, fired, candidates, residuals)

    def _sparse(self, x: Acts) -> Seen:
        sae, n, d_sae = self.sae, len(x), self.sae.d_sae
        for p in (sae.W_enc, sae.W_dec):
            if p.grad is None:
                p.grad = torch.empty_like(p)
        latents, tokens, pre = find(self.screen, x, sae, self.objective.bandwidth)
        threshold = sae.threshold.index_select(0, latents)
        at = (pre > threshold).nonzero().squeeze(1)
        near = in_window(pre, threshold, self.objective.bandwidth).nonzero().squeeze(1)
        fires, on, values = latents.index_select(0, at), tokens.index_select(0, at), pre.index_select(0, at)
        u, squares, l0 = self._residual(x, fires, on, values)
        u.mul_(2 / n)
        h = dots(latents, tokens, sae.W_dec, u)
        d_pre, starts = h.index_select(0, at), compressed(fires, d_sae)
        weighted_rows_into(sae.W_dec.grad, u, on, starts, values)
        weighted_rows_into(sae.W_enc.grad.T, x, on, starts, d_pre)
        sae.b_dec.grad, sae.b_enc.grad = u.sum(0), sums(d_pre, fires, d_sae)
        inside, price, fired = latents.index_select(0, near), self.objective.price(l0), starts.diff().long()
        in_windows = torch.bincount(inside, minlength=d_sae).to(x.dtype)
        if isinstance(price, Tensor):
            prices = sums(price.index_select(0, tokens.index_select(0, near)), inside, d_sae)
        else:
            prices = price * in_windows
        self._set_threshold(sums(h.index_select(0, near), inside, d_sae), prices, in_windows, fired, n)
        return Seen(squares, l0, fired, torch.tensor(len(latents), device=x.device), u)

    def _residual(self, x: Acts, fires: Tensor, on: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_hat - x in the workspace, its sum of squares, and L0 of each token."""
        sae, n = self.sae, len(x)
        by_token = torch.sort(on, stable=True).indices
        fires, values, starts = fires.index_select(0, by_token), values.index_select(0, by_token), compressed(on, n)
        residual, squares, l0s = self.workspace.take("residual", *x.shape, dtype=x.dtype), [], []
        for i in range(0, n, self.rows):
            part, some = residual[i : i + self.rows], starts[i : i + self.rows + 1]
            first, last = int(some[0]), int(some[-1])
            partial = weighted_rows(sae.W_dec, fires[first:last], some - first, values[first:last])
            torch.sub(self._summed(partial).add_(sae.b_dec), x[i : i + self.rows], out=part)
            l0s.append(self._summed(some.diff().to(x.dtype)))
            squares.append(torch.linalg.vector_norm(part, dtype=torch.float64).square())
        return residual, torch.stack(squares).sum(), torch.cat(l0s)
