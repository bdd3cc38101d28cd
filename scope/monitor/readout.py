"""The numbers that turn activations into a monitor's scores, as weights.safetensors holds them: SAE latents or a vector."""

import numpy as np
import torch
from torch import Tensor

from scope.sae.base import SAE

_BY_LATENT = ("b_enc", "threshold", "r_mag", "b_mag")


def top_k_of(sae: SAE | None) -> int | None:
    """How many latents of a token compete for, where that decides whether a latent fires; None where each decides alone."""
    k = getattr(sae.config, "k", None) if sae is not None and sae.kind in ("topk", "transcoder") else None
    return int(k) if k else None


def vector_weights(vector: np.ndarray, bias: float) -> dict[str, Tensor]:
    """A score that is the product of activations with a vector."""
    return {
        "weight": torch.tensor(np.asarray(vector), dtype=torch.float32)[:, None],
        "bias": torch.tensor([bias], dtype=torch.float32),
    }


def latent_weights(sae: SAE, latents: list[int], weights: np.ndarray, bias: float) -> dict[str, Tensor]:
    """A score that is a weighted sum of latents. Where the latents of a token compete, the whole encoder is needed."""
    ids = torch.tensor(latents)
    arrays = {name: p.detach().float().cpu() for name, p in sae.named_parameters()}
    tensors = {name: arrays[name] for name in ("W_enc", *_BY_LATENT) if name in arrays}
    if top_k_of(sae) is None:
        tensors = {name: t[..., ids] for name, t in tensors.items()}
    else:
        tensors = {"W_enc": tensors["W_enc"], "b_enc": tensors["b_enc"], "latents": ids.to(torch.int32)}
    return {name: t.clone().contiguous() for name, t in (tensors | vector_weights(weights, bias)).items()}


def direction_of(weights: dict[str, Tensor]) -> Tensor:
    """The direction [d_in] in the activations along which the score grows where every latent of it fires."""
    if "W_enc" not in weights:
        return weights["weight"][:, 0]
    encoder = weights["W_enc"]
    if "latents" in weights:
        encoder = encoder[:, weights["latents"].long()]
    return encoder @ weights["weight"][:, 0]
