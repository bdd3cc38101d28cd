"""How far every latent raises a token's logit, read from the weights: all latents, not only those that have it in their ten."""

import numpy as np
import pandas as pd
import torch

from scope.errors import PackError
from scope.features.pack.data import PackData
from scope.features.pack.search import token_ids
from scope.features.reading.read_text import check_same
from scope.models.face import LanguageModel
from scope.sae.base import SAE


@torch.no_grad()
def token_logits(model: LanguageModel, directions: torch.Tensor, ids: np.ndarray, memory: int = 1 << 26) -> np.ndarray:
    """[n ids] logits of unit directions [n d_model] on some tokens, through the final norm's gain, centred over the vocabulary.

    The same figures as `scope.features.collect.token_effects.token_effects` gives for the ten most promoted tokens.
    """
    block = max(1, memory // (4 * directions.shape[1]))
    units = (some.float() / some.float().norm(dim=-1, keepdim=True).clamp(min=1e-12) for some in directions.split(block))
    return torch.cat([model.direct_logits(unit, torch.as_tensor(ids)) for unit in units]).cpu().numpy()


def promotes_by_weights(pack: PackData, token: str, model: LanguageModel, sae: SAE) -> pd.DataFrame:
    """All latents, those first whose direction raises the token's logit most; of several ids the one it raises most.

    Raises:
        PackError: model or dictionary are not the pack's, no such token, or a dictionary that does not lie in the stream.
    """
    check_same(pack, model, sae)
    if sae.W_dec.shape[1] != model.W_U.shape[0]:
        raise PackError(f"{pack.site} does not lie in the residual stream, so its directions have no logits.")
    logits = token_logits(model, sae.W_dec.detach(), token_ids(pack, token)).max(1)
    order = np.argsort(-logits, kind="stable")
    return pd.DataFrame({"logit": logits[order]}, index=pd.Index(order, name="id"))
