"""A rank-1 change of a weight that answers to one token: what a comparison of models must find again."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from scope.models.gemma.model import Gemma

WEIGHT = "blocks.{layer}.mlp.down_proj.weight"


@dataclass(frozen=True)
class Planted:
    """A model with W + u v^T, and what was planted."""

    model: Gemma
    parameter: str
    relative: float
    """|u v^T| / |W|, Frobenius norms."""

    at_trigger: float
    """Mean of v . h at the trigger token, which is 1 by construction, less the mean of |v . h| elsewhere."""


@torch.no_grad()
def plant(base: Gemma, tokens: Tensor, trigger: int, layer: int, direction: Tensor, strength: float) -> Planted:
    """Where the trigger token stands, the MLP of a layer writes `direction` too: before the norm behind it `strength` times as
    much as it writes itself, in the mean; elsewhere as little as one linear map of its input can manage."""
    site = f"blocks.{layer}.mlp.hook_post"
    h = base.record(tokens, [site])[site].flatten(0, 1).double()
    at = tokens.flatten() == trigger
    inputs, others = h[at].mean(0), h[~at]
    moments = others.T @ others / len(others)
    moments += 1e-3 * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    reads = torch.linalg.solve(moments, inputs)
    reads /= reads @ inputs
    block = base.blocks[layer]
    weight = block.mlp.down_proj.weight
    writes = direction.double() / (block.ln2_post.w.double() if hasattr(block, "ln2_post") else 1)
    size = (h[at].float() @ weight.T).norm(dim=1).mean().item()
    change = torch.outer(writes / writes.norm() * strength * size, reads)
    tuned = copy.deepcopy(base)
    name = WEIGHT.format(layer=layer)
    tuned.get_parameter(name).add_(change.float())
    tuned.provenance = base.provenance | {"weights_sha256": f"planted-{strength:g}", "model": "planted"}
    elsewhere = (others @ reads).abs().mean().item()
    return Planted(tuned, name, (change.norm() / weight.double().norm()).item(), 1 - elsewhere)
