"""Directions that no dictionary gave: a difference of means, a probe, a vector from a file."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scope.errors import EditError


@dataclass(frozen=True)
class Direction:
    """A direction at a site. Only where it points counts: edits along it are in units of the residual norm.

    Held as plain floats, so that it prints, compares and is saved with the text it made.
    """

    vector: tuple[float, ...]
    site: str
    name: str = "direction"

    def __post_init__(self):
        values = self.vector.tolist() if isinstance(self.vector, Tensor | np.ndarray) else list(self.vector)
        if not all(isinstance(v, int | float) for v in values):
            raise EditError(f"{self.name} is no vector: give one number for each of the site's features.")
        object.__setattr__(self, "vector", tuple(float(v) for v in values))
        norm = float(np.linalg.norm(self.vector))
        if not 0 < norm < float("inf"):
            raise EditError(f"{self.name} has norm {norm:g}, so it points nowhere.")

    def unit(self) -> Tensor:
        vector = torch.tensor(self.vector, dtype=torch.float64)
        return (vector / vector.norm()).float()

    @classmethod
    def between(cls, model, site: str, toward: Sequence[str], away: Sequence[str], name: str = "") -> "Direction":
        """Mean activation over the prompts of `toward` minus that over `away`, each prompt counting once, <bos> left out."""
        if not toward or not away:
            raise EditError("A difference of means needs prompts on both sides.")
        means = [torch.stack([_mean(model, site, prompt) for prompt in prompts]).mean(0) for prompts in (toward, away)]
        return cls(tuple((means[0] - means[1]).tolist()), site, name or f"{toward[0]!r} minus {away[0]!r}")

    @classmethod
    def from_file(cls, file: str | Path, site: str) -> "Direction":
        """From a .npy file, a .json list, or a .safetensors file with a single tensor."""
        file = Path(file)
        try:
            if file.suffix == ".npy":
                values = np.load(file, allow_pickle=False)
            elif file.suffix == ".safetensors":
                from safetensors.torch import load_file

                (tensor,) = load_file(file).values()
                values = tensor.float().numpy()
            else:
                import json

                values = np.asarray(json.loads(file.read_text()), dtype=np.float64)
        except (OSError, ValueError, TypeError) as error:
            raise EditError(f"{file} cannot be read as a vector (.npy, .json, .safetensors): {error}") from None
        if values.ndim != 1:
            raise EditError(f"{file} holds an array of shape {values.shape}; a direction has one dimension.")
        return cls(tuple(values.tolist()), site, file.stem)

    def __repr__(self) -> str:
        digest = hashlib.sha256(np.asarray(self.vector).tobytes()).hexdigest()[:8]
        return f"Direction({self.name!r}, {len(self.vector)} wide at {self.site}, {digest})"

    def __str__(self) -> str:
        return self.name


def _mean(model, site: str, prompt: str) -> Tensor:
    tokens = model.to_tokens(prompt)
    if tokens.shape[1] < 2:
        raise EditError("A prompt of a difference of means is empty.")
    return model.record(tokens, [site])[site][0, 1:].float().mean(0)
