"""Holds the input and output directions of a change of weights against the SAE's: which latents it reads and writes.

A weight that reads the residual stream meets it behind a norm with gain g, one that writes to it may have such a norm behind
it. With a change D of the weight and a direction d of the SAE (length 1) the two numbers are

    reads    |D (g * d)|       how much the change answers to the direction
    writes   |D^T (g * d)|     how much of what the change adds lies along the direction

in multiples of their root mean square over random directions, which are drawn as the SAE's own lie: with the covariance of its
decoder rows or encoder columns. Beyond chance is what exceeds the largest of as many random directions as there are latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scope.diffing.weights import Directions
from scope.models.face import LanguageModel
from scope.null_seeds import generator
from scope.sae.base import SAE

_READS = {"attn.q_proj": "ln1", "attn.k_proj": "ln1", "attn.v_proj": "ln1", "mlp.gate_proj": "ln2", "mlp.up_proj": "ln2"}
_WRITES = {"attn.o_proj": "ln1_post", "mlp.down_proj": "ln2_post"}
_EMBEDDING = "embed.weight"
_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")


@dataclass(frozen=True, kw_only=True)
class UpdateLatents:
    """The latents that the change of one weight reads or writes more than chance."""

    parameter: str
    role: str
    """reads, writes"""

    by: str
    """Which directions of the SAE were held against it: decoder, encoder."""

    meets: bool
    """Whether the weight meets the stream of the SAE's site: a reader behind it, a writer before it."""

    latents: tuple[int, ...]
    strengths: tuple[float, ...]
    """In multiples of a random direction's, the strongest first."""

    beyond: int
    """Latents beyond the largest of as many random directions."""

    threshold: float
    by_chance: int
    """The same count of further random directions."""


def update_latents(
    model: LanguageModel, sae: SAE, directions: Mapping[str, Directions], top: int = 10, seed: int = 0
) -> list[UpdateLatents]:
    """A row for each changed weight that reads or writes the stream, by decoder and, of reading, by encoder directions; none
    where the SAE's site is no residual stream."""
    layer, _, kind = sae.site.removeprefix("blocks.").partition(".")
    if kind not in _STREAM:
        return []
    at = 2 * int(layer) + _STREAM.index(kind)
    decoder, encoder = (m.detach().float().cpu() for m in (sae.W_dec, sae.W_enc.T))
    sides = {"decoder": _Side(decoder, "diff decoder", seed), "encoder": _Side(encoder, "diff encoder", seed)}
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    rows = []
    for name, found in directions.items():
        if name == _EMBEDDING:
            seen = found.reads * found.sizes
            rows.append(sides["decoder"].row(seen, top, parameter=name, role="writes", by="decoder", meets=True))
            continue
        block, part = name.removesuffix(".weight").removeprefix("blocks.").split(".", 1)
        passed = 2 * int(block) + part.startswith("mlp")
        if part in _READS:
            gain = _gain(modules, f"blocks.{block}.{_READS[part]}", found.reads)
            for by, side in sides.items():
                seen = gain * found.reads * found.sizes
                rows.append(side.row(seen, top, parameter=name, role="reads", by=by, meets=passed >= at))
        elif part in _WRITES:
            seen = _gain(modules, f"blocks.{block}.{_WRITES[part]}", found.writes) * found.writes * found.sizes
            rows.append(sides["decoder"].row(seen, top, parameter=name, role="writes", by="decoder", meets=passed < at))
    return rows


def _gain(modules: Mapping[str, nn.Module], norm: str, like: Tensor) -> Tensor:
    """[d_model 1], ones where there is no such norm."""
    if norm not in modules:
        return torch.ones(len(like), 1)
    return modules[norm].w.detach().float().cpu()[:, None]


class _Side:
    """The directions of an SAE, and as many random ones twice over with their covariance."""

    def __init__(self, directions: Float[Tensor, "latent d"], null: str, seed: int):
        self.directions = _unit(directions)
        squares, axes = torch.linalg.eigh((self.directions.T @ self.directions).double())
        lying = (axes * squares.clamp_min(0).sqrt()).T.float()
        drawn = torch.randn(2 * len(directions), len(lying), generator=generator(null, seed))
        self.random = _unit(drawn @ lying).split(len(directions))

    def row(self, seen: Float[Tensor, "d k"], top: int, **named: object) -> UpdateLatents:
        """The latents whose directions the columns of `seen` answer to most."""
        own, null, other = ((side @ seen).norm(dim=1) for side in (self.directions, *self.random))
        unit = null.square().mean().sqrt().clamp_min(1e-30)
        threshold = null.max()
        strengths, latents = own.topk(min(top, int((own > threshold).sum())))
        return UpdateLatents(
            **named,
            latents=tuple(latents.tolist()),
            strengths=tuple((strengths / unit).tolist()),
            beyond=int((own > threshold).sum()),
            threshold=(threshold / unit).item(),
            by_chance=int((other > threshold).sum()),
        )


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
