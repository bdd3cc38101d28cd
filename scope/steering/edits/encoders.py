"""`LatentEncoder` reads one latent without its SAE, for latents that are handed over with their own rows."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentEncoder:
    """f(x) = relu(x . weights + bias), zero unless it exceeds the threshold, in the units of the SAE that it came from.

    Without `weights` nothing can be read: the latents of that SAE compete, as those of a TopK SAE, so none can be read alone.
    """

    number: int
    """The latent's number in its SAE."""
    weights: tuple[float, ...] | None = None
    bias: float = 0.0
    threshold: float = 0.0
    maximum: float | None = None
    """Its largest activation in the feature pack, where that was known."""

    def __call__(self, x: Tensor) -> Tensor:
        """[... d_in] -> [...], in float32; zeros without weights."""
        if self.weights is None:
            return x.new_zeros(x.shape[:-1], dtype=torch.float32)
        pre = x.float() @ torch.tensor(self.weights, device=x.device) + self.bias
        return torch.relu(pre) * (pre > self.threshold)
