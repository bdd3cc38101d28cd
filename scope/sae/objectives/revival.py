"""Latents that have long been silent start anew, each on a token that is badly reconstructed.

What is missing from a token's reconstruction is the direction that the latent takes, in decoder and encoder. Its threshold is
set so that it fires on few tokens: on no more than a latent does on average, and only where at least half as much of the
direction is present as in its own. (After the resampling of Bricken et al. 2023, "Towards Monosemanticity".)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scope.sae.objectives.base import Processes
from scope.shapes import Acts

UNTIL = 0.6
"""Share of the run after which none starts anew, so that those that did have time to settle."""

EVERY = 0.02
"""Share of the run between two revivals."""


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Pool:
    """How several processes that train one dictionary put together what each has, so that all choose alike. One has it all."""

    batches: int = 1
    """Processes whose rows make up a batch."""

    rows: Callable[[Tensor], Tensor] = _unchanged
    """The rows of one process -> those of the whole batch."""

    counts: Callable[[Tensor], Tensor] = _unchanged
    """Tokens on which each latent fired, of one process's rows -> of the whole batch."""

    latents: Callable[[Tensor], Tensor] = _unchanged
    """A number for each latent of this process -> for all of the dictionary."""

    first: int = 0
    """Of this process's latents, the number in the dictionary."""

    @classmethod
    def of(cls, processes: Processes, d_sae: int) -> "Pool":
        """As one process would choose with the whole batch and all latents. Every process is given the sum of parts that are
        zero elsewhere, so all have the same bits."""

        def placed(mine: Tensor, size: int, at: slice) -> Tensor:
            whole = mine.new_zeros(size, *mine.shape[1:])
            whole[at] = mine
            return processes.sum(whole)

        def rows(mine: Tensor) -> Tensor:
            at = len(mine) * processes.rank
            return placed(mine, len(mine) * processes.world, slice(at, at + len(mine)))

        if processes.mode == "data":
            return cls(batches=processes.world, rows=rows, counts=lambda fired: processes.sum(fired.clone()))
        own = processes.share(d_sae)
        return cls(latents=lambda mine: placed(mine, d_sae, own), first=own.start)


@dataclass
class Start:
    """Latents that start anew, and the directions [latents d_in] and thresholds with which they do."""

    latents: Tensor
    directions: Tensor
    thresholds: Tensor


class Revival:
    """Counts silence, and proposes fresh starts for latents that were silent for `after` tokens."""

    def __init__(self, d_sae: int, after: int, pool: Pool = Pool()):
        self.after, self.pool, self.tokens, self.last, self.started = after, pool, 0, 0.0, 0
        self.silent = torch.zeros(d_sae, dtype=torch.long)

    def observe(self, x: Acts, surplus: Acts, fired: Tensor, share: float, progress: float) -> Start | None:
        """`surplus` is x_hat - x times any positive number; `share` of the tokens is what a fresh latent may fire on."""
        pool = self.pool
        n = len(x) * pool.batches
        if self.silent.device != fired.device:
            self.silent = self.silent.to(fired.device)
        self.silent.add_(n).masked_fill_(pool.counts(fired) > 0, 0)
        self.tokens += n
        if not self.last + EVERY <= progress <= UNTIL:
            return None
        self.last = progress
        dead = pool.latents((self.silent >= self.after).long()).nonzero().squeeze(1)[: n // 4]
        if not len(dead):
            return None
        x, surplus = pool.rows(x), pool.rows(surplus)
        badly = surplus.square().sum(1).double().cpu()
        if not badly.sum() > 0:
            return None
        generator = torch.Generator().manual_seed(self.tokens)
        chosen = torch.multinomial(badly, len(dead), generator=generator).to(x.device)
        self.started += len(dead)
        mine = ((dead >= pool.first) & (dead < pool.first + len(self.silent))).nonzero().squeeze(1)
        dead, chosen = dead[mine] - pool.first, chosen[mine]
        self.silent[dead] = 0
        directions = nn.functional.normalize(-surplus[chosen], dim=1)
        often = min(n, max(1, round(share * n)) + 1)  # the first value that is not to fire
        seldom = (x @ directions.T).topk(often, dim=0).values[-1]
        return Start(dead, directions, torch.maximum(seldom, (x[chosen] * directions).sum(1) / 2))

    def state(self) -> dict:
        return {"silent": self.silent, "tokens": self.tokens, "last": self.last, "started": self.started}

    def load_state(self, state: dict) -> None:
        self.silent, self.tokens = state["silent"], state["tokens"]
        self.last, self.started = state["last"], state["started"]

    @torch.no_grad()
    def start_anew(
        self,
        start: Start,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        threshold: Float[Tensor, " d_sae"],
    ) -> None:
        """With the mean norms of all latents, so that a fresh one is as strong as the others."""
        encoder, decoder = (self.pool.latents(norms).mean() for norms in (W_enc.norm(dim=0), W_dec.norm(dim=1)))
        W_dec[start.latents] = decoder * start.directions
        W_enc[:, start.latents] = encoder * start.directions.T
        b_enc[start.latents] = 0.0
        threshold[start.latents] = encoder * start.thresholds.clamp_min(0.0)
