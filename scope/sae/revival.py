"""Latents that have long been silent start anew, each on a token that is badly reconstructed.

What is missing from a token's reconstruction is the direction that the latent takes, in decoder and encoder. Its threshold is
set so that it fires on few tokens: on no more than a latent does on average, and only where at least half as much of the
direction is present as in its own. (After the resampling of Bricken et al. 2023, "Towards Monosemanticity".)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scope.shapes import Acts

UNTIL = 0.6
"""Share of the run after which none starts anew, so that those that did have time to settle."""

EVERY = 0.02
"""Share of the run between two revivals."""


@dataclass
class Start:
    """Latents that start anew, and the directions [latents d_in] and thresholds with which they do."""

    latents: Tensor
    directions: Tensor
    thresholds: Tensor


class Revival:
    """Counts silence, and proposes fresh starts for latents that were silent for `after` tokens."""

    def __init__(self, d_sae: int, after: int):
        self.after, self.tokens, self.last, self.started = after, 0, 0.0, 0
        self.silent = torch.zeros(d_sae, dtype=torch.long)

    def observe(self, x: Acts, surplus: Acts, fired: Tensor, share: float, progress: float) -> Start | None:
        """`surplus` is x_hat - x times any positive number; `share` of the tokens is what a fresh latent may fire on."""
        if self.silent.device != fired.device:
            self.silent = self.silent.to(fired.device)
        self.silent.add_(len(x)).masked_fill_(fired > 0, 0)
        self.tokens += len(x)
        if not self.last + EVERY <= progress <= UNTIL:
            return None
        self.last = progress
        dead = (self.silent >= self.after).nonzero().squeeze(1)[: len(x) // 4]
        if not len(dead):
            return None
        badly = surplus.square().sum(1).double().cpu()
        if not badly.sum() > 0:
            return None
        generator = torch.Generator().manual_seed(self.tokens)
        chosen = torch.multinomial(badly, len(dead), generator=generator).to(x.device)
        directions = nn.functional.normalize(-surplus[chosen], dim=1)
        self.silent[dead] = 0
        self.started += len(dead)
        pre = x @ directions.T
        often = min(len(x), max(1, round(share * len(x))) + 1)  # the first value that is not to fire
        own = (x[chosen] * directions).sum(1)
        return Start(dead, directions, torch.maximum(pre.topk(often, dim=0).values[-1], own / 2))

    def state(self) -> dict:
        return {"silent": self.silent, "tokens": self.tokens, "last": self.last, "started": self.started}

    def load_state(self, state: dict) -> None:
        self.silent, self.tokens = state["silent"], state["tokens"]
        self.last, self.started = state["last"], state["started"]


@torch.no_grad()
def start_anew(
    start: Start,
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    threshold: Float[Tensor, " d_sae"],
) -> None:
    """With the mean norms of all latents, so that a fresh one is as strong as the others."""
    encoder, decoder = W_enc.norm(dim=0).mean(), W_dec.norm(dim=1).mean()
    W_dec[start.latents] = decoder * start.directions
    W_enc[:, start.latents] = encoder * start.directions.T
    b_enc[start.latents] = 0.0
    threshold[start.latents] = encoder * start.thresholds.clamp_min(0.0)
