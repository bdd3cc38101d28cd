"""Decoder directions that two dictionaries share: nearest directions with their cosines, beside random directions."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scope.errors import DictionaryError
from scope.null_seeds import generator
from scope.provenance import DictionaryId
from scope.sae.base import SAE

_NULL = 256  # random directions whose nearest tells what chance gives


@torch.no_grad()
def matched_directions(sae: SAE, other: SAE, seed: int = 0, memory: int = 1 << 26) -> tuple[pd.DataFrame, float]:
    """(a row for each latent of `sae`: "other", the latent of the other dictionary with the nearest direction, and "cosine";
    the median cosine that random directions of this width have with their nearest there).

    Signed: a direction that points the other way is no match. Two dictionaries of one site that share a latent both have its
    direction; across sites or models a cosine means nothing, so these are refused.

    Raises:
        DictionaryError: dictionaries of different sites, widths or models.
    """
    models = [DictionaryId.of(each.provenance).model for each in (sae, other)]
    other_model = models[0].same_weights(models[1]) is False
    if sae.W_dec.shape[1] != other.W_dec.shape[1] or sae.site != other.site or other_model:
        raise DictionaryError(
            f"Directions can be matched within one site of one model: these are of {sae.site} ({sae.W_dec.shape[1]} wide) and "
            f"{other.site} ({other.W_dec.shape[1]} wide)." + (" Their models differ." if other_model else "")
        )
    there = _unit(other.W_dec.detach().float())
    cosine, place = _nearest(_unit(sae.W_dec.detach().float()), there, memory)
    drawn = torch.randn(_NULL, there.shape[1], generator=generator("directions matched", seed)).to(there.device)
    null = float(np.median(_nearest(_unit(drawn), there, memory)[0]))
    return pd.DataFrame({"other": place, "cosine": cosine}, index=pd.RangeIndex(len(place), name="id")), null


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _nearest(rows: Tensor, there: Tensor, memory: int) -> tuple[np.ndarray, np.ndarray]:
    """(largest cosine of each row with any of `there`, and with which)."""
    found = [(some @ there.T).max(1) for some in rows.split(max(1, memory // (4 * len(there))))]
    return torch.cat([f.values for f in found]).cpu().numpy(), torch.cat([f.indices for f in found]).cpu().numpy()
