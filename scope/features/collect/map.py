"""A flat map of all decoder directions, and how much of their neighbourhoods it preserves.

Two axes cannot hold a few hundred dimensions, so each map brings its own measure: how many of a latent's nearest directions are
among its nearest on the map, beside what chance would give.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope.errors import ConfigError, PackError
from scope.features.pack.data import PackData
from scope.features.pack.write import add_file, npy
from scope.null_seeds import generator
from scope.sae.base import SAE
from scope.sae.files import parameters_sha256

METHODS = ("pca", "umap", "none")
NEAR = 10
_SAMPLE = 2000  # latents on which a map is measured
_BLOCK = 1 << 26  # numbers of a block


@torch.no_grad()
def map_directions(
    directions: Tensor, neighbours: np.ndarray, method: str = "pca", seed: int = 0
) -> tuple[np.ndarray, dict[str, Any]] | None:
    """(places [d_sae 2] float32, facts about them) of decoder directions [d_sae d_in]; None for the method "none".

    Directions are taken at unit length. The facts: method; of PCA `explained`, the share of the directions' variance along each
    axis, and `explained_by_chance`, that of as many random directions; `kept`, the share of the ten nearest directions
    (`neighbours` [d_sae k], nearest first) that are among the ten nearest on the map, mean over at most 2,000 latents, and
    `kept_by_chance`, what it would be were the places shuffled.

    Raises:
        ConfigError: an unknown method, or umap-learn is not installed.
    """
    if method not in METHODS:
        raise ConfigError(f"There is no map {method!r}; there are {', '.join(METHODS)}.")
    if method == "none":
        return None
    unit = directions.float() / directions.float().norm(dim=1, keepdim=True).clamp(min=1e-12)
    facts: dict[str, Any] = {"method": method, "seed": seed}
    if method == "pca":
        places, facts["explained"] = _pca(unit)
        facts["explained_by_chance"] = _pca(_random_like(unit, seed))[1]
    else:
        places = _umap(unit, seed)
    places = np.ascontiguousarray(places, np.float32)
    facts["kept"], facts["kept_by_chance"] = preserved(places, neighbours, seed), NEAR / max(len(places) - 1, NEAR)
    return places, facts


def _pca(unit: Tensor) -> tuple[np.ndarray, list[float]]:
    """Places along the two axes of most variance, and the share of the variance along each."""
    n, width = unit.shape
    mean, square = unit.mean(0), torch.zeros(width, width, dtype=torch.float64, device=unit.device)
    for some in unit.split(max(1, _BLOCK // width)):
        centred = some - mean
        square += (centred.T @ centred).double()
    variances, axes = torch.linalg.eigh(square.cpu())
    shares = (variances.clamp(min=0) / variances.clamp(min=0).sum().clamp(min=1e-30)).flip(0)[:2].tolist()
    axes = axes.flip(1)[:, :2].float()
    rows = torch.arange(axes.shape[1])
    axes = axes * axes[axes.abs().argmax(0), rows].sign()  # an axis may point either way; always the same here
    places = torch.zeros(n, 2)
    places[:, : axes.shape[1]] = ((unit - mean) @ axes.to(unit.device)).cpu()
    return places.numpy(), [float(s) for s in (*shares, 0.0)[:2]]


def _random_like(unit: Tensor, seed: int) -> Tensor:
    drawn = torch.randn(unit.shape, generator=generator("directions of a map", seed)).to(unit.device)
    return drawn / drawn.norm(dim=1, keepdim=True)


def require(method: str) -> None:
    """Refuse a map that could not be made, before the work whose last step it is.

    Raises:
        ConfigError: umap-learn is not installed.
    """
    from importlib.util import find_spec

    if method == "umap" and find_spec("umap") is None:
        raise ConfigError(
            "A map by UMAP needs umap-learn, which is not installed.\n"
            "  To install it: pip install 'scope-workbench[umap]'\n"
            "  Or take the method pca, which needs nothing more."
        )


def _umap(unit: Tensor, seed: int) -> np.ndarray:
    require("umap")
    from umap import UMAP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        near = max(2, min(15, len(unit) - 1))
        return UMAP(n_neighbors=near, min_dist=0.05, metric="cosine", random_state=seed).fit_transform(unit.cpu().numpy())


def preserved(places: np.ndarray, neighbours: np.ndarray, seed: int = 0) -> float:
    """Share of the ten nearest directions that are among the ten nearest places, mean over at most 2,000 latents."""
    n = len(places)
    near = min(NEAR, n - 1, neighbours.shape[1])
    if near < 1:
        return 0.0
    some = np.sort(np.random.default_rng(seed).permutation(n)[:_SAMPLE])
    points, shares = torch.from_numpy(places), []
    for rows in np.array_split(some, max(1, len(some) * n // _BLOCK)):
        distance = torch.cdist(points[rows], points)
        distance[torch.arange(len(rows)), rows] = torch.inf
        found = distance.topk(near, largest=False).indices.numpy()
        both = (found[:, :, None] == neighbours[rows, None, :near]).any(2)
        shares.append(both.mean(1))
    return float(np.concatenate(shares).mean())


def add_map(folder: Path, sae: SAE, method: str = "pca", seed: int = 0) -> PackData:
    """Give a finished pack a map made from its dictionary, in place of the one that it has. Nothing else of the pack changes.

    Raises:
        PackError: the dictionary is not the pack's, or the pack is damaged.
        ConfigError: see `map_directions`.
    """
    pack = PackData.open(folder)
    expected, given = pack.dictionary.parameters_sha256, parameters_sha256(sae)
    if expected != given:
        raise PackError(
            f"{folder} was made from another dictionary (parameters {str(expected)[:12]}; given {given[:12]}).\n"
            f"  Give the one that it was made from: scope map {folder} --dictionary FOLDER"
        )
    neighbours = pack.relation("neighbour_id")
    pack.close()
    made = map_directions(sae.W_dec.detach(), neighbours, method, seed)
    if made is None:
        raise ConfigError("The method 'none' makes no map; give pca or umap.")
    places, facts = made
    add_file(folder, "map.npy", npy(places), {"map": facts})
    return PackData.open(folder)
