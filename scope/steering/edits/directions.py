"""Directions that are not latents: a difference of means, a probe, a vector from a file."""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scope.activations.corpus.inputs import counted_tokens
from scope.errors import EditError
from scope.models.face import LanguageModel
from scope.sae.base import SAE
from scope.texts import list_of_texts
from scope.typed_json import parse_json, read_bytes, typed

_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Direction:
    """A direction at a site. Only where it points counts: edits along it are in units of the residual norm.

    Held as plain floats, so that it prints, compares and is saved with the texts it steered.
    """

    vector: tuple[float, ...]
    site: str
    name: str = "direction"

    def __post_init__(self):
        values = self.vector.tolist() if isinstance(self.vector, Tensor | np.ndarray) else list(self.vector)
        if not all(isinstance(v, int | float) for v in values):
            raise EditError(f"{self.name} is no vector: give one number for each of the site's features.")
        try:
            object.__setattr__(self, "vector", tuple(float(v) for v in values))
        except OverflowError:
            raise EditError(f"{self.name} holds a number that no float can hold.") from None
        norm = float(np.linalg.norm(self.vector))
        if not 0 < norm < float("inf"):
            raise EditError(f"{self.name} has norm {norm:g}, so it points nowhere.")

    def unit(self) -> Tensor:
        vector = torch.tensor(self.vector, dtype=torch.float64)
        return (vector / vector.norm()).float()

    @classmethod
    def between(
        cls, model: LanguageModel, site: str, toward: Sequence[str], away: Sequence[str], name: str = ""
    ) -> "Direction":
        """Mean activation over the prompts of `toward` minus that over `away`: the mean of each prompt's mean."""
        sides = [_means(model, site, prompts) for prompts in (toward, away)]
        difference = sides[0].mean(0) - sides[1].mean(0)
        return cls(tuple(difference.tolist()), site, name or f"{toward[0]!r} minus {away[0]!r}")

    @classmethod
    def probe(
        cls, model: LanguageModel, site: str, toward: Sequence[str], away: Sequence[str], ridge: float = 1.0, name: str = ""
    ) -> "Direction":
        """A linear probe that separates the prompts of `toward` from those of `away`: ridge regression on each prompt's mean.

        Unlike a difference of means it gives little weight to features in which prompts of one side differ anyway. Its
        leave-one-out accuracy stands in the name, beside the share of the larger side, which is what guessing reaches.
        `ridge` is in units of the mean squared length of the centred means.
        """
        sides = [_means(model, site, prompts) for prompts in (toward, away)]
        x, y = torch.cat(sides).double(), torch.cat([torch.ones(len(sides[0])), -torch.ones(len(sides[1]))]).double()
        x = x - x.mean(0)
        gram = x @ x.T
        scale = gram.diagonal().mean()
        if not scale > 0:
            raise EditError("All prompts of the probe are alike at this site, so no probe separates them.")
        inverse = torch.linalg.inv(gram + scale * (1 + ridge * torch.eye(len(x), dtype=torch.float64)))
        weights = inverse @ y
        left_out = y - weights / inverse.diagonal()  # what the fit without prompt i says of prompt i
        right, guess = float((left_out.sign() == y).double().mean()), max(len(side) for side in sides) / len(y)
        accuracy = f"leave-one-out accuracy {right:.2f}, guessing {guess:.2f}"
        return cls(tuple((weights @ x).tolist()), site, f"{name or f'probe for {toward[0]!r}'} ({accuracy})")

    @classmethod
    def of_latent(cls, sae: SAE, latent: int) -> "Direction":
        """A latent's decoder row, to be edited as a direction: `Scale` of it rescales the whole component along the row."""
        if not 0 <= latent < sae.d_sae:
            raise EditError(f"There is no latent {latent}: this dictionary's run from 0 to {sae.d_sae - 1}.")
        return cls(tuple(sae.W_dec[latent].detach().float().tolist()), sae.site, f"row of latent {latent}")

    @classmethod
    def from_file(cls, file: str | Path, site: str, key: str | None = None) -> "Direction":
        """From a .npy or .json file with one vector, or from an .npz or .safetensors file; `key` says which of several.

        Raises:
            EditError: no vector, several without `key`, or a pickle, which is never opened: it may run code.
        """
        file = Path(file)
        if file.suffix in _PICKLES:
            raise EditError(
                f"{file} is a pickle, which can run code when it is opened, so it is not. Save the vector anew:\n"
                "  safetensors.torch.save_file({'direction': vector}, 'direction.safetensors')"
            )
        arrays = _arrays(file)
        if key is None and len(arrays) == 1:
            key = next(iter(arrays))
        if key not in arrays:
            which = "say which with key=" if key is None else f"none is {key!r}"
            raise EditError(f"{file} holds {', '.join(sorted(map(repr, arrays))) or 'nothing'}; {which}.")
        values = arrays[key]
        if values.ndim != 1:
            raise EditError(f"{file} holds an array of shape {values.shape}; a direction has one dimension.")
        return cls(tuple(values.tolist()), site, f"{file.stem}: {key}" if len(arrays) > 1 else file.stem)

    def __repr__(self) -> str:
        digest = hashlib.sha256(np.asarray(self.vector).tobytes()).hexdigest()[:8]
        return f"Direction({self.name!r}, {len(self.vector)} wide at {self.site}, {digest})"

    def __str__(self) -> str:
        return self.name


LARGEST = 64 * 2**20
"""Bytes that a file of vectors may hold, and that its arrays may take: a vector is as wide as a model."""


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """Every array of a file by name; a file that holds one vector has the name "".

    Raises:
        EditError: it is none of these files, is damaged, or is too large.
    """
    data = read_bytes(file, EditError, "Give a vector as .npy, .npz, .json or .safetensors.", LARGEST)
    if file.suffix == ".json":
        return {"": np.asarray(typed(parse_json(data, file, EditError), list[float], file, EditError), dtype=np.float64)}
    try:
        return {name: _numbers(array) for name, array in _stored(data, file.suffix).items()}
    except Exception as error:  # numpy, zipfile and safetensors have an exception of their own for every kind of damage
        why = "it holds Python objects, or is damaged" if "pickle" in str(error) else str(error) or type(error).__name__
        raise EditError(f"{file} cannot be read as a vector (.npy, .npz, .json, .safetensors): {why}") from None


def _stored(data: bytes, suffix: str) -> dict[str, np.ndarray]:
    if suffix == ".safetensors":
        from safetensors.torch import load

        return {name: tensor.double().numpy() for name, tensor in load(data).items()}
    if suffix == ".npy":
        return {"": np.load(io.BytesIO(data), allow_pickle=False)}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST:
        raise ValueError(f"its arrays take {size:,} bytes; at most {LARGEST:,} are read")
    with np.load(io.BytesIO(data), allow_pickle=False) as saved:
        return {name: saved[name] for name in saved.files}


def _numbers(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"it holds values of type {array.dtype}, and a vector holds real numbers")
    return array.astype(np.float64)


def _means(model: LanguageModel, site: str, prompts: Sequence[str]) -> Tensor:
    """Each prompt's mean activation [prompt width], special tokens left out."""
    if isinstance(prompts, str) or not prompts:
        raise EditError("A direction between prompts needs a list of prompts on both sides.")
    means = []
    for prompt in list_of_texts(prompts, EditError):
        tokens = model.to_tokens(prompt)
        counted = counted_tokens(tokens, model.special_ids)
        if not counted.any():
            raise EditError("A prompt of a direction between prompts is empty, or holds special tokens only.")
        means.append(model.record(tokens, [site])[site][counted].float().mean(0))
    return torch.stack(means)
