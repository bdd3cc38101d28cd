"""What computes gradients while a dictionary is trained: autograd for any kind, by hand for JumpReLU.

An engine fills `.grad` of every parameter for one batch and says what the batch looked like. `Autograd` is the reference.
`JumpReLUEngine` computes the same gradients without a graph: rows go through in slices that reuse one workspace, and once few
latents are near firing only those are touched after the encoder's product (a sparse matrix of candidates: latents that fire
or lie in their threshold's window). Nothing is approximated on either way.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from scope.sae.base import SAE
from scope.sae.jumprelu import JumpReLUSAE, in_window
from scope.shapes import Acts


@dataclass
class Batch:
    """What one batch looked like. `error` is the mean squared error per token; `fired` counts tokens per latent."""

    terms: dict[str, float]
    error: float
    l0: float
    fired: Tensor
    candidates: float = 0.0
    """Latents per token that took part in the gradients."""


@runtime_checkable
class Engine(Protocol):
    def gradients(self, x: Acts) -> Batch:
        """Fill `.grad` of every parameter with the gradient of the summed losses for this batch."""
        ...

    def state(self) -> dict[str, Any]:
        """What the next call depends on beside the dictionary; saved with every checkpoint."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class Autograd:
    """The reference: `sae.losses(x)` and a backward pass."""

    def __init__(self, sae: SAE):
        self.sae = sae

    def gradients(self, x: Acts) -> Batch:
        self.sae.zero_grad(set_to_none=True)
        terms = self.sae.losses(x)
        torch.stack(list(terms.values())).sum().backward()
        with torch.no_grad():
            latents = self.sae.encode(x)
            fired = (latents > 0).sum(0)
            error = (self.sae.decode(latents) - x).square().sum(1).mean().item()
        l0 = fired.sum().item() / len(x)
        return Batch({name: term.item() for name, term in terms.items()}, error, l0, fired)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


SPARSE_BELOW = 1 / 8
"""Share of candidates among all latents below which the sparse way is the faster one on a CPU (measured, see
tests/benchmarks)."""


class JumpReLUEngine:
    """Gradients of `JumpReLUSAE.losses` by hand.

    With r = x_hat - x, u = (2/n) r and h = u W_dec^T, the gradients are: W_dec: latents^T u; b_dec: sum u; pre: h where the
    latent fires, 0 elsewhere; threshold: -(threshold h + l0_weight / n) / bandwidth, summed over the tokens in the window.
    """

    def __init__(self, sae: JumpReLUSAE, rows: int = 512):
        self.sae, self.rows = sae, rows
        self.share: float | None = None
        self.buffers: dict[str, Tensor] = {}

    def gradients(self, x: Acts) -> Batch:
        with torch.no_grad():
            for p in self.sae.parameters():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad.zero_()
            way = self._sparse if self.share is not None and self.share < SPARSE_BELOW else self._dense
            squares, fired, candidates = way(x)
        self.share = candidates / (len(x) * self.sae.d_sae)
        error, l0 = squares / len(x), fired.sum().item() / len(x)
        terms = {"error": error, "sparsity": self.sae.l0_weight * l0}
        return Batch(terms, error, l0, fired, candidates / len(x))

    def state(self) -> dict:
        """The way taken next decides the order of sums, so a resumed run must know it."""
        return {"share": self.share}

    def load_state(self, state: dict) -> None:
        self.share = state["share"]

    def _buffer(self, name: str, *shape: int, like: Tensor) -> Tensor:
        size = 1
        for n in shape:
            size *= n
        kept = self.buffers.get(name)
        if kept is None or kept.numel() < size or kept.dtype != like.dtype or kept.device != like.device:
            kept = self.buffers[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return kept[:size].view(*shape)

    def _dense(self, x: Acts) -> tuple[float, Tensor, int]:
        sae, n = self.sae, len(x)
        eps = sae.config.bandwidth
        squares = torch.zeros((), dtype=torch.float64, device=x.device)
        candidates = torch.zeros((), dtype=torch.long, device=x.device)
        fired = torch.zeros(sae.d_sae, dtype=torch.long, device=x.device)
        at_threshold, in_windows = torch.zeros_like(sae.threshold), torch.zeros_like(sae.threshold)
        for part in x.split(self.rows):
            shape = (len(part), sae.d_sae)
            pre = torch.addmm(sae.b_enc, part, sae.W_enc, out=self._buffer("pre", *shape, like=x))
            fires = pre > sae.threshold
            near = in_window(pre, sae.threshold, eps)
            latents = pre.mul_(fires)
            residual = torch.addmm(sae.b_dec, latents, sae.W_dec, out=self._buffer("residual", *part.shape, like=x)).sub_(part)
            squares += residual.double().square().sum()
            u = residual.mul_(2 / n)
            sae.W_dec.grad.addmm_(latents.T, u)
            sae.b_dec.grad.add_(u.sum(0))
            h = torch.mm(u, sae.W_dec.T, out=self._buffer("h", *shape, like=x))
            at_threshold.add_(torch.mul(h, near, out=latents).sum(0))
            in_windows.add_(near.sum(0))
            h.mul_(fires)
            sae.W_enc.grad.addmm_(part.T, h)
            sae.b_enc.grad.add_(h.sum(0))
            fired.add_(fires.sum(0))
            candidates += (near | fires).sum()
        sae.threshold.grad.copy_(-(sae.threshold * at_threshold + sae.l0_weight / n * in_windows) / eps)
        return squares.item(), fired, int(candidates)

    def _sparse(self, x: Acts) -> tuple[float, Tensor, int]:
        sae, n = self.sae, len(x)
        eps = sae.config.bandwidth
        rows, cols, pre = self._candidates(x, sae.threshold - eps / 2)
        threshold = sae.threshold[cols]
        fires = pre > threshold
        near = in_window(pre, threshold, eps)
        latents = pre * fires
        crow = torch.zeros(n + 1, dtype=torch.int32, device=x.device)
        torch.cumsum(torch.bincount(rows, minlength=n), 0, out=crow[1:])
        by_token = _csr(crow, cols.int(), latents, (n, sae.d_sae))
        residual = torch.sparse.mm(by_token, sae.W_dec).add_(sae.b_dec).sub_(x)
        squares = residual.double().square().sum().item()
        u = residual.mul_(2 / n)
        h = torch.sparse.sampled_addmm(by_token, u, sae.W_dec.T, beta=0.0).values()
        order = torch.sort(cols, stable=True).indices
        per_latent = torch.bincount(cols, minlength=sae.d_sae)
        ccol = torch.zeros(sae.d_sae + 1, dtype=torch.int32, device=x.device)
        torch.cumsum(per_latent, 0, out=ccol[1:])
        tokens = rows[order].int()
        d_pre = h * fires
        sae.W_dec.grad.copy_(torch.sparse.mm(_csr(ccol, tokens, latents[order], (sae.d_sae, n)), u))
        sae.W_enc.grad.copy_(torch.sparse.mm(_csr(ccol, tokens, d_pre[order], (sae.d_sae, n)), x).T)
        sae.b_dec.grad.copy_(u.sum(0))
        sae.b_enc.grad.copy_(_sums(d_pre, cols, sae.d_sae))
        at_threshold, in_windows = _sums(h * near, cols, sae.d_sae), _sums(near.to(x.dtype), cols, sae.d_sae)
        sae.threshold.grad.copy_(-(sae.threshold * at_threshold + sae.l0_weight / n * in_windows) / eps)
        return squares, torch.bincount(cols[fires], minlength=sae.d_sae), len(cols)

    def _candidates(self, x: Acts, lowest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(token, latent, pre-activation) of everything above `lowest`, ordered by token and then latent."""
        sae, found = self.sae, []
        for start in range(0, len(x), self.rows):
            part = x[start : start + self.rows]
            pre = torch.addmm(sae.b_enc, part, sae.W_enc, out=self._buffer("pre", len(part), sae.d_sae, like=x))
            flat = (pre > lowest).view(-1).nonzero().squeeze(1)
            found.append((flat + start * sae.d_sae, pre.view(-1)[flat]))
        flat, values = (torch.cat(parts) for parts in zip(*found, strict=True))
        rows = flat // sae.d_sae
        return rows, flat - rows * sae.d_sae, values


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")  # said once a process
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def _sums(values: Tensor, groups: Tensor, n: int) -> Tensor:
    return torch.zeros(n, dtype=values.dtype, device=values.device).index_add_(0, groups, values)
