"""The cost of a monitor for each token: operations counted, and microseconds measured beside the model's own forward pass."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scope.models.face import LanguageModel
from scope.monitor.monitor import Cost
from scope.monitor.reading import Read
from scope.monitor.scorer import token_scores

_TOKENS, _RUNS = 512, 5


def cost(model: LanguageModel, site: str, reads: Sequence[Read], weights: dict[str, Tensor], top_k: int | None) -> Cost:
    """The cost on a batch of a text's first tokens: the monitor alone, the model up to the site, and the whole model."""
    longest = max(reads, key=lambda read: len(read.ids)).ids
    rows = max(1, _TOKENS // len(longest))
    tokens = torch.tensor([longest] * rows, device=model.device)
    acts = model.record(tokens, [site])[site].flatten(0, 1)
    placed = {name: tensor.to(model.device) for name, tensor in weights.items()}
    n = tokens.numel()

    def median(run: Callable[[], Any]) -> float:
        times = []
        run()
        for _ in range(_RUNS):
            _wait(model.device)
            start = time.perf_counter()
            run()
            _wait(model.device)
            times.append(time.perf_counter() - start)
        return statistics.median(times) / n * 1e6

    with torch.no_grad():
        alone = median(lambda: token_scores(acts, placed, top_k))
        to_site = median(lambda: model.record(tokens, [site]))
        whole = median(lambda: model(tokens))
    matrices = [p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    unembedding = model.cfg.d_model * model.cfg.d_vocab
    encoder = weights.get("W_enc")
    flops = 2 * weights["weight"].numel() + (0 if encoder is None else 2 * encoder.numel())
    return Cost(
        flops=flops,
        model_flops=2 * (sum(matrices) + unembedding),
        layers=model.layers_for([site]),
        n_layers=model.cfg.n_layers,
        microseconds=alone,
        to_site=to_site,
        whole=whole,
        tokens=n,
        device=str(model.device),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
