"""A baseline: the same architecture with random weights. What an SAE explains there, it did not learn from the trained model.

Source: Heap et al., arXiv:2501.17727. The SAE is unchanged and reads the random model at its own site, scaled to the norm it
was trained on. Whether an SAE trained on the random model does as well is another question: record that model and train one.
"""

import copy
from typing import Any

import torch

from scope.errors import ConfigError
from scope.models.face import Model
from scope.null_seeds import generator


@torch.no_grad()
def randomised(model: Model, stop: int | None, seed: int = 0) -> Any:
    """A copy of a model with every matrix drawn again from a normal distribution of the same mean and standard deviation. Gains
    and biases stay, so that each layer keeps its scale. Blocks from `stop` on are shared with the model: they are not run.

    Raises:
        ConfigError: the weights of a streamed model are not in memory.
    """
    if model.streamed:
        raise ConfigError("the weights of a streamed model are not in memory")
    kept = [model.tokenizer, model.provenance]
    if stop is not None:
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
