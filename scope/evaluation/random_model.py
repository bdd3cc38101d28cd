"""A model of the same architecture with random weights: what a dictionary still makes of that, it did not learn from training.

Source of the null: Heap et al., arXiv:2501.17727. The dictionary stays as it is, and reads the random model at its own site, at
the scale that it was made for. Whether one trained on such a model does as well takes a recording of it, and a training.
"""

import copy

import torch
from torch import nn

from scope.errors import ConfigError
from scope.null_seeds import generator


@torch.no_grad()
def randomised(model, stop: int | None, seed: int = 0):
    """A copy of a model with every matrix drawn anew: normal, with the mean and the spread that the trained one has. Gains and
    biases stay, so that each layer keeps its scale. Blocks from `stop` on are neither copied nor changed: they are not run.

    Raises:
        ConfigError: a model whose weights do not lie in memory.
    """
    if hasattr(model, "stored_bytes"):
        raise ConfigError("a streamed model's weights do not lie in memory")
    kept = [model.tokenizer, model.provenance]
    if stop is not None and isinstance(getattr(model, "blocks", None), nn.ModuleList):
        kept += list(model.blocks[stop:])
    made = copy.deepcopy(model, {id(part): part for part in kept})
    trained = {id(p) for p in model.parameters()}
    chance = generator("random model", seed)
    for p in made.parameters():
        if p.dim() < 2 or id(p) in trained:
            continue
        mean, spread = p.float().mean().item(), p.float().std().item()
        for row in p.view(len(p), -1).split(4096):
            row.copy_(torch.randn(row.shape, generator=chance) * spread + mean)
    return made
